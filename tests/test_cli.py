# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, where, and with which exit code. Runs on the demo pair."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

import treespec
from treespec import demo
from treespec.cli import COMMANDS, build_app
from treespec.cli.answer import split_piece
from treespec.cli.options import parse_assignments
from treespec.cli.pictures import _place, save_picture, terminal_tree
from treespec.cli.round_view import RoundView, view_round

PROMPT = "def main():\n"
SIZE = ["--nodes", "16", "--max-new-tokens", "24"]

# Python leaves SIGINT ignored where a parent ignored it (background jobs), so the tests arm it.
ARMED = (
    "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('treespec', run_name='__main__', alter_sys=True)"
)


def call(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(build_app(), list(arguments), input=stdin)


def program(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "treespec", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def small_view(accepted: list[int], next_label: str | None = "'!'") -> RoundView:
    """Return root -> (1 -> (3 -> 5), 2 -> 4) with halves as probabilities."""
    return RoundView(
        labels=["'r'", "'a'", "'b'", "'c'", "'$d$'", "'\\n'"],
        parents=[-1, 0, 0, 1, 2, 3],
        depths=[0, 1, 1, 2, 2, 3],
        own_probs=[1.0, 0.5, 0.25, 0.5, 0.5, 0.5],
        path_probs=[1.0, 0.5, 0.25, 0.25, 0.125, 0.125],
        children=[[1, 2], [3], [4], [5], [], []],
        accepted=accepted,
        next_label=next_label,
    )


# --- help and usage -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_shows_an_example(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.output
    assert f"treespec {name}" in result.output


def test_help_imports_no_model_library() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from treespec.cli import build_app; "
        "[CliRunner().invoke(build_app(), a) for a in (['--help'], ['generate', '--help'])]; "
        "print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_the_packages() -> None:
    assert call("--version").output.strip() == treespec.__version__


def test_wrong_usage_exits_2(tmp_path: Path) -> None:
    assert call("generate", "x", "--prompt-file", str(tmp_path / "f")).exit_code == 2
    assert call("generate", "x", "--nodes", "many").exit_code == 2
    assert call("generate", "x", "--builder-option", "width").exit_code == 2
    assert call("no-such-command").exit_code == 2


def test_builder_options_are_numbers_lists_and_words() -> None:
    given = ["width=4", "expansion=4,2,1", "threshold=0.5", "proposal=iid", "flat=true"]
    assert parse_assignments("--builder-option", given) == {
        "width": 4,
        "expansion": [4, 2, 1],
        "threshold": 0.5,
        "proposal": "iid",
        "flat": True,
    }


# --- generate -------------------------------------------------------------------------------------


def test_generate_json_is_what_the_api_returns() -> None:
    result = call("generate", PROMPT, "--json", *SIZE)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    decoder = treespec.load(node_budget=16)
    expected = decoder.generate(PROMPT, max_new_tokens=24)
    assert answer["text"] == expected.text
    assert answer["token_ids"] == [int(token) for token in expected.token_ids]
    assert answer["finish_reason"] == expected.finish_reason
    assert answer["stats"]["rounds"] == expected.stats.rounds
    assert answer["stats"]["block_efficiency"] == pytest.approx(expected.stats.block_efficiency)


def test_streamed_text_is_the_whole_text() -> None:
    streamed = call("generate", PROMPT, *SIZE)
    whole = call("generate", PROMPT, "--no-stream", *SIZE)
    assert streamed.exit_code == whole.exit_code == 0
    assert streamed.stdout == whole.stdout != "\n"


def test_prompt_comes_from_argument_file_or_pipe(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n", encoding="utf-8")
    given = call("generate", PROMPT, *SIZE).stdout
    assert call("generate", "--prompt-file", str(file), *SIZE).stdout == given
    assert call("generate", *SIZE, stdin=PROMPT + "\n").stdout == given
    assert call("generate", "-", *SIZE, stdin=PROMPT + "\n").stdout == given


def test_without_a_prompt_a_demo_prompt_runs_and_is_named() -> None:
    result = call("generate", *SIZE, stdin="")
    assert result.exit_code == 0
    assert repr(demo.prompts()[0]) in result.stderr
    assert result.stdout.strip()


def test_stats_go_to_stderr_and_leave_stdout_alone() -> None:
    plain = call("generate", PROMPT, *SIZE)
    result = call("generate", PROMPT, "--stats", *SIZE)
    assert result.stdout == plain.stdout
    for word in ("tokens/s", "tokens per target forward", "depth", "sibling", "verify", "outside"):
        assert word in result.stderr


def test_batch_file_gives_one_answer_per_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("import os\n\ndef main():\n", encoding="utf-8")
    result = call("generate", "--batch-file", str(file), "--json", *SIZE)
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["import os", "def main():"]
    alone = json.loads(call("generate", "import os", "--json", *SIZE).stdout)
    assert answers[0]["token_ids"] == alone["token_ids"]


def test_no_drafter_writes_the_same_text() -> None:
    with_tree = call("generate", PROMPT, *SIZE)
    plain = call("generate", PROMPT, "--drafter", "none", *SIZE)
    assert plain.exit_code == 0, plain.output
    assert plain.stdout == with_tree.stdout


def test_unknown_builder_lists_the_known_ones() -> None:
    result = call("generate", PROMPT, "--builder", "nope")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert all(name in result.stderr for name in treespec.builder_names())


def test_missing_prompt_file_is_one_line_and_debug_a_traceback(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.txt")
    short = program("generate", "--prompt-file", missing)
    assert short.returncode == 1
    assert short.stderr.startswith("error: ") and short.stderr.count("\n") == 1
    assert "Traceback" in program("generate", "--prompt-file", missing, "--debug").stderr


def test_interrupt_keeps_the_text_and_exits_130() -> None:
    command = [sys.executable, "-c", ARMED, "generate", PROMPT, "--stats", "-t", "1"]
    command += ["--nodes", "4", "--max-new-tokens", "900", "--ignore-eos"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)  # the answer has begun
    process.send_signal(2)
    rest, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages.decode()
    assert (first + rest).strip()
    assert b"interrupted" in messages and b"Traceback" not in messages


def test_accepted_tokens_are_told_from_the_targets_own() -> None:
    tokenizer = SimpleNamespace(decode=lambda ids: "".join("abcdef"[i] for i in ids))
    decoder = SimpleNamespace(tokenizer=tokenizer)
    piece = SimpleNamespace(text="abc", token_ids=[0, 1, 2])
    verdict = SimpleNamespace(num_accepted=2)
    assert split_piece(piece, [], decoder) == ("", "abc")
    assert split_piece(piece, [verdict], decoder) == ("ab", "c")
    assert split_piece(piece, [SimpleNamespace(num_accepted=3)], decoder) == ("abc", "")


# --- chat -----------------------------------------------------------------------------------------


def test_chat_answers_obeys_and_leaves() -> None:
    lines = "import os\n/stats\n/seed 3\n/temperature hot\n/reset\nimport os\n/exit\nnever\n"
    result = call("chat", *SIZE, stdin=lines)
    assert result.exit_code == 0, result.output
    assert "no chat template" in result.stderr
    assert "tokens per target forward" in result.stderr
    assert "seed 3" in result.stderr and "/temperature needs a number" in result.stderr
    answer = call("generate", "import os", *SIZE).stdout
    assert result.stdout == answer * 2


# --- inspect --------------------------------------------------------------------------------------


def test_inspect_draws_the_round_and_writes_pictures(tmp_path: Path) -> None:
    png, svg = tmp_path / "tree.png", tmp_path / "tree.svg"
    result = call("inspect", PROMPT, "--out", str(png), "--out", str(svg), *SIZE)
    assert result.exit_code == 0, result.output
    assert "root" in result.stdout and "✓" in result.stdout and "16 nodes" in result.stdout
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text(encoding="utf-8")


def test_inspect_json_is_a_tree() -> None:
    result = call("inspect", PROMPT, "--round", "2", "--json", *SIZE)
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout)
    assert tree["round"] == 2
    assert tree["parent"][0] == -1
    assert all(parent < node for node, parent in enumerate(tree["parent"]))
    assert len(tree["token"]) == len(tree["path_probability"]) == 17


def test_inspect_says_when_the_answer_has_fewer_rounds() -> None:
    result = call("inspect", PROMPT, "--round", "500", *SIZE)
    assert result.exit_code == 1
    assert "it ended after" in result.stderr


def test_inspect_refuses_an_unknown_picture_format(tmp_path: Path) -> None:
    result = call("inspect", PROMPT, "--out", str(tmp_path / "tree.gif"), *SIZE)
    assert result.exit_code == 1
    assert ".png, .svg, .pdf" in result.stderr


def test_next_token_is_a_bonus_only_after_a_whole_path() -> None:
    assert small_view([1, 3, 5]).next_kind == "bonus"
    assert small_view([1]).next_kind == "correction"
    assert small_view([]).next_kind == "correction"


def test_view_reads_probabilities_from_the_path() -> None:
    tree = SimpleNamespace(
        token=[7, 1, 2], parent=[-1, 0, 1], depth=[0, 1, 2], path_logprob=[0.0, -1.0, -3.0]
    )
    verdict = SimpleNamespace(accepted_nodes=[1], num_accepted=1, next_token=9)
    view = view_round(SimpleNamespace(tree=tree, verdict=verdict), str)
    assert view.own_probs == pytest.approx([1.0, 0.36788, 0.13534], abs=1e-5)
    assert view.emitted == ["1", "9"]


@pytest.mark.parametrize("accepted", [[], [1], [2, 4], [1, 3, 5]])
def test_boxes_never_overlap_and_the_emitted_path_is_the_top_line(accepted: list[int]) -> None:
    boxes = _place(small_view(accepted))
    taken = {(box.x, box.row) for box in boxes.values()}
    assert len(taken) == len(boxes) == 7
    assert all(boxes[node].row == 0 for node in accepted)


def test_same_round_same_picture_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        save_picture(small_view([1]), tmp_path / name, "title", "subtitle")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_terminal_tree_ticks_accepted_guesses_only() -> None:
    root = terminal_tree(dataclasses.replace(small_view([1]), next_label=None))
    first, second = root.children
    assert str(first.label).startswith("✓ 'a'")
    assert str(second.label).startswith("'b'")


# --- tune -----------------------------------------------------------------------------------------


@pytest.fixture
def quick(tmp_path: Path) -> list[str]:
    """Return the options of a measurement of seconds."""
    file = tmp_path / "prompts.txt"
    file.write_text("import os\n\ndef main():\n", encoding="utf-8")
    return ["--prompts", str(file), "-n", "12", "--width", "4", "--max-depth", "2"]


def test_tune_writes_a_map_that_generate_reads(tmp_path: Path, quick: list[str]) -> None:
    path = tmp_path / "map.json"
    result = call("tune", "--growth-map", str(path), *quick)
    assert result.exit_code == 0, result.output
    for words in ("sibling", "tokens per target forward", "plain decoding", f"growth_map={path}"):
        assert words in result.stdout
    shape = treespec.GrowthMap.load(path)
    assert len(shape) and shape.depth.max() <= 2
    assert shape.metadata["target"] == "demo" and shape.metadata["trials"][0] > 0
    option = ["--builder", "sequoia", "--builder-option", f"growth_map={path}"]
    with_map = call("generate", PROMPT, *option, "--max-new-tokens", "24")
    assert with_map.exit_code == 0, with_map.output
    assert with_map.stdout == call("generate", PROMPT, *SIZE).stdout


def test_tune_takes_a_number_of_nodes_and_prints_json(quick: list[str]) -> None:
    result = call("tune", "--nodes", "5", "-t", "0.7", "--json", *quick)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert len(facts["parent"]) == facts["num_nodes"]
    assert 1 <= facts["num_nodes"] <= 5, "ranks that were never accepted have no place"
    assert set(facts["costs"]["target_seconds"]) == {"1", "6"}
    assert facts["speedup"] > 0 and facts["expected_tokens"] > 1
    assert len(facts["acceptance"][0]) == 4


def test_tune_names_the_options_that_its_map_was_measured_with(
    tmp_path: Path, quick: list[str]
) -> None:
    path = tmp_path / "map.json"
    result = call("tune", "--nodes", "3", "-t", "0.5", "--growth-map", str(path), *quick)
    assert result.exit_code == 0, result.output
    assert "proposal=without_replacement -t 0.5" in result.stdout
    assert treespec.GrowthMap.load(path).metadata["proposal"] == "without_replacement"


def test_tune_writes_a_calibration(tmp_path: Path, quick: list[str]) -> None:
    path = tmp_path / "table.json"
    result = call("tune", "--calibration", str(path), *quick)
    assert result.exit_code == 0, result.output
    assert "draft probability" in result.stdout and "sibling" not in result.stdout
    table = treespec.Calibration.load(path)
    assert table.metadata["drafter"] == "demo" and len(table.trials) == len(table.table) > 1


def test_tune_says_what_it_cannot_do(tmp_path: Path, quick: list[str]) -> None:
    assert call("tune", "--nodes", "some", *quick).exit_code == 2
    assert call("tune", "--nodes", "0", *quick).exit_code == 2
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    result = call("tune", "--prompts", str(empty))
    assert result.exit_code == 1 and "at least one prompt" in result.stderr
    result = call("tune", "--drafter", "none", *quick)
    assert result.exit_code == 1 and "must have a drafter" in result.stderr


@pytest.mark.parametrize("option", ["--growth-map", "--calibration"])
def test_tune_refuses_a_missing_folder_before_any_work(
    option: str, tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treespec.cli.options.PairOptions.load", no_work)
    for path in (tmp_path / "missing" / "out.json", tmp_path):
        result = call("tune", option, str(path), *quick)
        assert result.exit_code == 2
        assert message_of(result).startswith(f"{option} must be a file in an existing folder, got ")


def test_tune_refuses_other_proposals_before_any_work(
    quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treespec.cli.options.PairOptions.load", no_work)
    result = call("tune", "--proposal", "iid", *quick)
    assert result.exit_code == 2
    expected = "--proposal must be deterministic or without_replacement, got 'iid'"
    assert message_of(result).startswith(expected)


def test_tune_refuses_rows_beyond_the_context_before_it_measures(
    quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treespec.tuning.measure_acceptance", no_work)
    result = call("tune", "--nodes", "9999", *quick)
    assert result.exit_code == 1
    assert "rows must fit the context" in result.stderr and "got 10000" in result.stderr


def no_work(*_: object, **__: object) -> None:
    raise AssertionError("work was done before the refusal")


def message_of(result: Result) -> str:
    """Return the words of a usage error without the box that they are drawn in."""
    words = " ".join(result.stderr.replace("│", " ").split())
    return words[words.index("--", words.index("Invalid value")) :]


def test_a_map_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    result = call(
        "generate", PROMPT, "--builder", "sequoia", "--builder-option", f"growth_map={path}"
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and str(path) in result.stderr


# --- info and python -m ---------------------------------------------------------------------------


def test_info_lists_every_name() -> None:
    result = call("info")
    assert result.exit_code == 0, result.output
    names = [*treespec.builder_names(), *treespec.verifier_names(), *treespec.drafter_names()]
    assert all(name in result.stdout for name in names)


def test_info_json_holds_the_same_facts() -> None:
    facts = json.loads(call("info", "--json").stdout)
    assert facts["version"] == treespec.__version__
    assert facts["cuda"]["available"] == treespec.cuda_available()
    assert set(facts["builders"]) == set(treespec.builder_names())
    assert facts["demo"] and all(model["parameters"] > 0 for model in facts["demo"])


def test_cmake_dir_is_printed_or_explained() -> None:
    done = program("--cmake-dir")
    if done.returncode == 0:
        assert (Path(done.stdout.strip()) / "treespecConfig.cmake").is_file()
    else:
        assert done.returncode == 1
        assert "pip install ." in done.stderr
