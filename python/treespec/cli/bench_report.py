# SPDX-License-Identifier: Apache-2.0
"""The page of `treespec bench --report`: one HTML file, pictures inside, nothing to download."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treespec.benchmarking import Comparison, Outcome
from treespec.cli import bench_figures as figures
from treespec.cli.pictures import draw_round
from treespec.cli.round_view import view_round
from treespec.cli.svg import DARK, LIGHT, to_svg


@dataclass(frozen=True)
class Provenance:
    """Where the figures come from.

    Attributes
    ----------
    command
        As it was typed.
    pair
        Names of target and drafter.
    machine
        What `treespec.benchmarking.machine` says.
    date
        ISO, UTC.
    """

    command: str
    pair: Mapping[str, str]
    machine: Mapping[str, Any]
    date: str


@dataclass(frozen=True)
class _Section:
    """A picture, or why there is none, and how to read it."""

    name: str
    title: str
    picture: str | None
    reading: str
    paper: bool = False  # drawn for white paper, whatever the theme


def require_report_packages() -> None:
    """Refuse before any work what the report would lack after it."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        message = (
            "bench: --report needs matplotlib and jinja2: pip install 'treespec[plot]' "
            f"(missing: {error.name})"
        )
        raise ModuleNotFoundError(message) from error


def write_report(
    path: Path, comparison: Comparison, provenance: Provenance, label: Callable[[int], str]
) -> None:
    """Write the page.

    Parameters
    ----------
    label
        Turns a token id into what the picture of a round shows.

    Raises
    ------
    ModuleNotFoundError
        Without matplotlib or jinja2; names the extra to install.
    """
    require_report_packages()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("treespec.cli", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _with_code
    with figures.in_style():
        sections = _sections(comparison, label)
    page = environment.get_template("bench_report.html.jinja").render(
        comparison=comparison,
        provenance=provenance,
        sections=sections,
        headline=_headline(comparison),
        light=LIGHT,
        dark=DARK,
    )
    path.write_text(page, encoding="utf-8")


def _sections(comparison: Comparison, label: Callable[[int], str]) -> list[_Section]:
    outcomes = comparison.outcomes
    return [
        _Section("speed", "Speed", figures.speed(outcomes), _SPEED),
        _Section(
            "acceptance",
            "Acceptance by depth and by rank",
            figures.acceptance(outcomes),
            _ACCEPTANCE,
        ),
        _Section("nodes", "Sizes of trees, and waste", figures.nodes(outcomes), _NODES),
        _Section("calibration", "Promised and kept", figures.calibration(outcomes), _CALIBRATION),
        _Section("time", "Time by step", figures.time(outcomes), _TIME),
        _typical_round(comparison, label),
    ]


_SPEED = """
Each bar is one setting; past the dashed line it is faster than plain decoding on the same models.
The thick line is the 95 % interval over the prompts: blue lies wholly on the fast side, orange on
the slow one, grey on both.
"""
_ACCEPTANCE = f"""
Of the guesses that the target got to look at, the share that it took: left by how far ahead they
were, right by whether they were the first guess at their place, the second, and so on (at least
{figures.FEWEST_TRIALS} guesses a point, 95 % intervals). Where the left line falls, deeper trees
stop paying; where the right one is still high, wider ones would.
"""
_NODES = """
Left, how many guesses the trees had; a single bar is a size that never changes, and one at 0 is
plain decoding. Right, what a
target forward kept of them and what it computed for nothing: waste is cheap as long as more rows
cost the target little time.
"""
_CALIBRATION = """
Left, deterministic trees alone: guesses by the probability that the tree gave them, and how often
they were right; above the dashed line the drafter is too modest, below it promises too much. Right,
the same summed up per round; `treespec tune --calibration` measures the table that brings both
together.
"""
_TIME = """
Where the milliseconds of a token go: target and draft are the two models, prefill is the prompt.
What is spent outside the models is treespec's own part, written as a share of the rounds.
"""
_ROUND = """
Columns are depths; the green path on top was accepted, and the dashed token is what the target
added. Blue guesses were refused, the darker the likelier in the drafter's eyes.
"""


def _typical_round(comparison: Comparison, label: Callable[[int], str]) -> _Section:
    best = _fastest(comparison)
    record = best.typical_round
    picture = None
    if record is not None:
        view = view_round(record, label)
        emitted = f"emitted: {' '.join(view.emitted)}"
        picture = to_svg(
            draw_round(view, f"{best.name}: {view.totals()}", emitted), "round", themed=False
        )
    reading = f"A round of {best.name} that accepted about as much as its mean round. {_ROUND}"
    return _Section("round", "A round", picture, reading, paper=True)


def _with_code(text: str) -> Any:
    """Escape a text and set what is between backquotes as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text.strip()))))


def _fastest(comparison: Comparison) -> Outcome:
    """Of the settings that draft."""
    return max(comparison.outcomes[1:], key=lambda one: one.speedup.ratio)


def _headline(comparison: Comparison) -> str:
    best = _fastest(comparison)
    ratio, low, high = best.speedup
    if low > 1:
        verdict = "Speculation pays here."
    elif high < 1:
        verdict = "Speculation does not pay here, with any of these settings."
    else:
        verdict = "These prompts do not tell the two apart."
    return (
        f"{best.name} writes {ratio:.2f} times as fast as plain decoding "
        f"(95 % interval {low:.2f} to {high:.2f}). {verdict}"
    )
