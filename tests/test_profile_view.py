# SPDX-License-Identifier: Apache-2.0
"""`treespec inspect --profile`: a cost profile in the terminal and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from treespec.cli import build_app
from treespec.cli.profile_view import draw_profile, profile_summary
from treespec.profile import Profile, TargetSeconds

# A forward over 4 rows is slower than one over 8, to which it is padded then.
CURVES = (
    TargetSeconds(64, 1, {1: 0.004, 4: 0.009, 8: 0.008, 16: 0.010}),
    TargetSeconds(512, 1, {1: 0.005, 4: 0.006, 8: 0.009, 16: 0.014}),
    TargetSeconds(64, 2, {2: 0.006, 8: 0.012, 16: 0.016}),
    TargetSeconds(512, 2, {2: 0.007, 8: 0.014, 16: 0.020}),
)
PROFILE = Profile(
    target=CURVES,
    draft_call={1: 0.001, 8: 0.002},
    drafts_by_level=True,
    drafted_round=0.0007,
    plain_round=0.0002,
    acceptance={"deterministic": [[0.6, 0.2], [0.7, 0.1]]},
    calibration=[[0.2, 0.1], [0.9, 0.8]],
    identity={"device": "a machine"},
    metadata={"target": "mine", "drafter": "yours"},
)


def shown(profile: Profile) -> list[str]:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(profile_summary(profile))
    return console.export_text().splitlines()


def row_of(lines: list[str], heading: str, first: str) -> list[str]:
    """Words of a row of the table with this heading."""
    start = next(place for place, line in enumerate(lines) if heading in line)
    return next(line for line in lines[start:] if line.split()[:1] == [first]).split()


def test_every_figure_is_in_the_tables() -> None:
    lines = shown(PROFILE)
    assert any("target mine" in line and "device a machine" in line for line in lines)
    assert any("0.70 ms with a tree, 0.20 ms without" in line for line in lines)
    assert row_of(lines, "target forward ", "16")[-5:] == ["10.00", "ms", "14.00", "ms", "2.50"]
    assert row_of(lines, "batch of 2", "16")[-5:] == ["16.00", "ms", "20.00", "ms", "2.67"]
    assert row_of(lines, "drafter call", "8")[-2:] == ["2.00", "ms"]
    assert row_of(lines, "accepted, deterministic", "2")[-2:] == ["20.0%", "10.0%"]
    assert row_of(lines, "draft probability", "90.0%")[-1] == "80.0%"


def test_what_is_padded_to_more_rows_is_marked() -> None:
    lines = shown(PROFILE)
    assert "*8.00 ms" in " ".join(row_of(lines, "target forward ", "4"))
    assert sum("*" in line for line in lines) == 2  # the figure, and the note
    assert any("* slower than more rows" in line for line in lines)


def test_the_picture_shows_measured_and_reckoned_seconds() -> None:
    target, draft, acceptance, calibration = draw_profile(PROFILE, "title").axes
    lines = {line.get_label(): line for line in target.lines}
    reckoned = lines["behind 64 tokens"]
    assert reckoned.get_xdata()[3] == 4 and reckoned.get_ydata()[3] == pytest.approx(8.0)
    crosses = [line for line in target.lines if line.get_marker() == "x"]
    assert [dict(zip(*cross.get_data(), strict=True))[8] for cross in crosses] == pytest.approx(
        [8.0, 9.0, 12.0, 14.0]
    )
    assert draft.lines[0].get_ydata() == pytest.approx([1.0, 2.0])
    assert [list(line.get_ydata()) for line in acceptance.lines] == [[0.6, 0.2], [0.7, 0.1]]
    assert list(calibration.lines[1].get_ydata()) == [0.1, 0.8]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), ["inspect", *arguments])


def test_the_command_prints_and_draws_a_file(tmp_path: Path) -> None:
    file, png, svg = tmp_path / "costs.json", tmp_path / "costs.png", tmp_path / "costs.svg"
    PROFILE.save(file)
    result = call("--profile", str(file), "--out", str(png), "--out", str(svg))
    assert result.exit_code == 0, result.output
    assert "target forward" in result.stdout
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "What a round costs: mine and yours" in svg.read_text(encoding="utf-8")
    again = tmp_path / "again.svg"
    assert call("--profile", str(file), "--out", str(again)).exit_code == 0
    assert again.read_bytes() == svg.read_bytes()


def test_the_command_prints_json(tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "costs.json")
    result = call("--profile", str(tmp_path / "costs.json"), "--json")
    assert json.loads(result.stdout)["drafted_round"] == 0.0007


def test_a_profile_has_no_prompt_and_a_file_must_be_one(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    PROFILE.save(file)
    assert call("text", "--profile", str(file)).exit_code == 2
    assert call("--profile", str(tmp_path / "none.json")).exit_code == 1
    file.write_text("{}", encoding="utf-8")
    result = call("--profile", str(file))
    assert result.exit_code == 1 and "costs.json" in result.stderr


def test_a_drafter_without_costs_or_calibration_can_be_shown() -> None:
    import dataclasses

    bare = dataclasses.replace(PROFILE, draft_call={}, calibration=[], drafts_by_level=False)
    assert not any("drafter call" in line for line in shown(bare))
    titles = [axes.get_title(loc="left") for axes in draw_profile(bare, "title").axes]
    assert "drafting costs nothing" in titles and "calibration: not measured" in titles
