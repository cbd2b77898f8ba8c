# SPDX-License-Identifier: Apache-2.0
"""Shows a cost profile: in the terminal, as a PNG, SVG or PDF picture (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from treespec.cli.report import BAR_WIDTH, bar
from treespec.cli.svg import LIGHT, MARKERS, style
from treespec.profile import Profile, TargetSeconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN_RANKS = 8
_SAME = 1 - 1e-9  # a point of the envelope, up to rounding
_BATCH_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))


def profile_summary(profile: Profile) -> RenderableType:
    """What a target forward costs by rows, the drafter, the rest, and what is accepted."""
    parts: list[RenderableType] = [_headline(profile)]
    for batch, curves in _by_batch(profile):
        parts.append(_target_table(profile, batch, curves))
    if profile.draft_call:
        parts.append(_draft_table(profile.draft_call))
    parts += [_acceptance_table(proposal, table) for proposal, table in profile.acceptance.items()]
    if profile.calibration:
        parts.append(_calibration_table(profile.calibration))
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def draw_profile(profile: Profile, title: str) -> Figure:
    """Draw the costs above, acceptance and calibration below, on white."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**style(LIGHT), "figure.facecolor": "white"}):
        figure = Figure(figsize=(10, 7.4), layout="constrained")
        (target, draft), (acceptance, calibration) = figure.subplots(
            2, 2, width_ratios=(1.5, 1), height_ratios=(1.15, 1)
        )
        _draw_target(target, profile)
        _draw_draft(draft, profile)
        _draw_acceptance(acceptance, profile)
        _draw_calibration(calibration, profile.calibration)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold", color=LIGHT.ink)
    return figure


def _by_batch(profile: Profile) -> Iterator[tuple[int, list[TargetSeconds]]]:
    """Yield the curves of each batch, the shortest context first."""
    curves = sorted(profile.target, key=lambda curve: (curve.batch, curve.context))
    for batch, group in groupby(curves, key=lambda curve: curve.batch):
        yield batch, list(group)


def _envelope(profile: Profile, curve: TargetSeconds) -> dict[int, float]:
    """Return what is reckoned with at the measured rows: no size dearer than a larger one."""
    seconds = profile.costs().target_seconds(curve.context, curve.batch, max(curve.seconds))
    return {rows: seconds[rows - 1] for rows in sorted(curve.seconds)}


# --- terminal -------------------------------------------------------------------------------------


def _headline(profile: Profile) -> Text:
    facts = {**profile.metadata, "device": profile.identity.get("device")}
    shown = [f"{name} {value}" for name, value in facts.items() if isinstance(value, (str, float))]
    rest = (
        f"\nall else of a round: {1e3 * profile.drafted_round:.2f} ms with a tree, "
        f"{1e3 * profile.plain_round:.2f} ms without"
    )
    return Text(", ".join(shown), style="dim").append(rest, style="not dim")


def _target_table(profile: Profile, batch: int, curves: Sequence[TargetSeconds]) -> Table:
    """A bar for the shortest context, figures for all; a star where more rows were cheaper."""
    table = _table("rows", "target forward" + (f", batch of {batch}" if batch > 1 else ""))
    for curve in curves:
        table.add_column(f"behind {curve.context}", justify="right")
    table.add_column("x one row", justify="right", style="dim")
    envelopes = [_envelope(profile, curve) for curve in curves]
    most = max(envelopes[0].values())
    one = next(iter(envelopes[0].values()))
    for rows, seconds in envelopes[0].items():
        cells = [
            _cell(curve, envelope, rows) for curve, envelope in zip(curves, envelopes, strict=True)
        ]
        table.add_row(str(rows), bar(seconds / most, "cyan"), *cells, f"{seconds / one:.2f}")
    if any(
        _padded(*pair, rows) for pair in zip(curves, envelopes, strict=True) for rows in pair[1]
    ):
        table.caption = "* slower than more rows, and so padded to them"
        table.caption_justify = "left"
    return table


def _cell(curve: TargetSeconds, envelope: dict[int, float], rows: int) -> str:
    if rows not in envelope:
        return ""
    return f"{'*' * _padded(curve, envelope, rows)}{1e3 * envelope[rows]:.2f} ms"


def _padded(curve: TargetSeconds, envelope: dict[int, float], rows: int) -> bool:
    return envelope[rows] < curve.seconds[rows] * _SAME


def _draft_table(draft_call: dict[int, float]) -> Table:
    table = _table("rows", "drafter call")
    table.add_column("", justify="right")
    most = max(draft_call.values())
    for rows, seconds in sorted(draft_call.items()):
        table.add_row(str(rows), bar(seconds / most, "blue"), f"{1e3 * seconds:.2f} ms")
    return table


def _acceptance_table(proposal: str, shares: Sequence[Sequence[float]]) -> Table:
    table = _table("sibling", f"accepted, {proposal}")
    for depth in range(1, len(shares) + 1):
        table.add_column(f"depth {depth}", justify="right")
    for rank in range(min(_SHOWN_RANKS, max(map(len, shares)))):
        cells = [f"{row[rank]:.1%}" if rank < len(row) else "" for row in shares]
        first = shares[0][rank] if rank < len(shares[0]) else 0.0
        table.add_row(str(rank + 1), bar(first, "green"), *cells)
    return table


def _calibration_table(pairs: Sequence[Sequence[float]]) -> Table:
    table = _table("draft probability", "accepted")
    table.add_column("", justify="right")
    for probability, share in pairs:
        table.add_row(f"{probability:.1%}", bar(share, "green"), f"{share:.1%}")
    return table


def _table(first: str, second: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, justify="right", min_width=7)
    table.add_column(second, min_width=BAR_WIDTH)
    return table


# --- picture --------------------------------------------------------------------------------------


def _draw_target(axes: Axes, profile: Profile) -> None:
    """Lines are what is reckoned with, crosses what was measured; a dash pattern per batch."""
    contexts = sorted({curve.context for curve in profile.target})
    for (batch, curves), dashes in zip(_by_batch(profile), _BATCH_DASHES, strict=False):
        for curve in curves:
            color = LIGHT.series[contexts.index(curve.context) % len(LIGHT.series)]
            most = max(curve.seconds)
            line = profile.costs().target_seconds(curve.context, curve.batch, most)
            label = f"behind {curve.context} tokens" + (f", batch of {batch}" if batch > 1 else "")
            axes.plot(
                range(1, most + 1), [1e3 * s for s in line], color=color, ls=dashes, label=label
            )
            measured = sorted(curve.seconds.items())
            axes.plot(*zip(*[(r, 1e3 * s) for r, s in measured], strict=True), "x", color=color)
    axes.set(ylim=(0, None), xlim=(0, None), xlabel="rows of the forward", ylabel="milliseconds")
    axes.set_title("target forward: measured (crosses), padded envelope (lines)")
    axes.grid()
    axes.legend()


def _draw_draft(axes: Axes, profile: Profile) -> None:
    if profile.draft_call:
        rows, seconds = zip(*sorted(profile.draft_call.items()), strict=True)
        axes.plot(rows, [1e3 * s for s in seconds], color=LIGHT.series[1], marker=MARKERS[1])
    for name, value, color in (
        ("all else, with a tree", profile.drafted_round, LIGHT.series[2]),
        ("all else, without", profile.plain_round, LIGHT.grey),
    ):
        axes.axhline(1e3 * value, color=color, linestyle=(0, (4, 3)), label=name)
    axes.set(ylim=(0, None), xlim=(0, None), xlabel="rows of a call", ylabel="milliseconds")
    per = "level" if profile.drafts_by_level else "round"
    axes.set_title(f"drafter call, one a {per}" if profile.draft_call else "drafting costs nothing")
    axes.grid()
    axes.legend()


def _draw_acceptance(axes: Axes, profile: Profile) -> None:
    """A line per depth, a dash pattern per proposal mode."""
    for (proposal, table), dashes in zip(profile.acceptance.items(), _BATCH_DASHES, strict=False):
        for depth, row in enumerate(table):
            shown = row[:_SHOWN_RANKS]
            label = f"depth {depth + 1}" + (f", {proposal}" if len(profile.acceptance) > 1 else "")
            axes.plot(
                range(1, len(shown) + 1), shown, ls=dashes, label=label,
                color=LIGHT.series[depth % len(LIGHT.series)], marker=MARKERS[depth % len(MARKERS)],
            )  # fmt: skip
    axes.set(ylim=(0, 1.02), xlabel="rank among its siblings", ylabel="share accepted")
    axes.set_title("acceptance by depth and sibling rank")
    axes.grid()
    axes.legend()


def _draw_calibration(axes: Axes, pairs: Sequence[Sequence[float]]) -> None:
    axes.plot([0, 1], [0, 1], color=LIGHT.faint, linewidth=1, linestyle=(0, (4, 3)))
    if pairs:
        axes.plot(*zip(*pairs, strict=True), color=LIGHT.series[0], marker=MARKERS[0])
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="draft probability", ylabel="share accepted")
    axes.set_title("calibration" if pairs else "calibration: not measured")
    axes.grid()
