# SPDX-License-Identifier: Apache-2.0
"""The pictures of `treespec bench --report`, each a function from outcomes to SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from treespec.benchmarking import Outcome
from treespec.cli.svg import MARKERS, PAGE, style, to_svg
from treespec.reliability import wilson_interval
from treespec.stats import STEPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _FAINT, _GRID, _GREY, _SERIES = PAGE
_WIDTH = 8.8  # inches; the page scales it
_ROW = 0.34  # inches for a setting in a picture of rows
# The models in full colour, what is around them in others; in the order of a round.
_STEP_COLORS = {
    "prefill": _SERIES[5],
    "target": _SERIES[0],
    "draft": _SERIES[1],
    "build": _SERIES[2],
    "mask": _SERIES[6],
    "verify": _SERIES[3],
    "commit": _SERIES[4],
    "other": _GREY,
}
_DEEPEST, _LAST_RANK = 12, 8  # what is further is rarely reached
FEWEST_TRIALS = 10  # a share of fewer guesses says nothing


def speed(outcomes: Sequence[Outcome]) -> str:
    """Speed-up over plain decoding, a row each, with its interval."""
    figure, axes = _rows_figure(outcomes, extra=0.55)
    for row, one in enumerate(outcomes):
        color = _speed_color(one)
        axes.barh(row, one.speedup.ratio, height=0.56, color=color, alpha=0.28, linewidth=0)
        axes.plot([one.speedup.low, one.speedup.high], [row, row], color=color, linewidth=2.2)
        axes.plot(one.speedup.ratio, row, "o", color=color, markersize=6)
    axes.axvline(1.0, color=_INK, linewidth=1.0, linestyle=(0, (4, 3)))
    longest = max(one.speedup.high for one in outcomes)
    for row, one in enumerate(outcomes):
        label = f"{one.speedup.ratio:.2f} x, {one.tokens_per_second:.0f} tokens/s"
        _write_beside(axes, longest, row, label)
    axes.set_xlim(0, longest * 1.02)
    axes.set_xlabel("times the speed of plain decoding")
    return to_svg(figure, "speed")


def acceptance(outcomes: Sequence[Outcome]) -> str:
    """Share of guesses that were accepted, by depth and by sibling rank."""
    figure = _figure(3.1)
    left, right = figure.subplots(1, 2, sharey=True)
    for place, one in enumerate(_drafting(outcomes)):
        _shares(left, place, one.stats.accepted_by_depth, one.stats.offered_by_depth, _DEEPEST)
        _shares(right, place, one.stats.accepted_by_rank, one.stats.offered_by_rank, _LAST_RANK)
        left.lines[-1].set_label(one.name)
    left.set(ylim=(0, 1.02), xlabel="depth of the guess", title="by depth")
    left.set_ylabel("share accepted")
    right.set(xlabel="rank among its siblings", title="by sibling rank")
    for axes in (left, right):
        _percent(axes.yaxis)
        axes.grid(axis="y")
        axes.xaxis.get_major_locator().set_params(integer=True)
    _legend_below(figure, left)
    return to_svg(figure, "acceptance")


def nodes(outcomes: Sequence[Outcome]) -> str:
    """Sizes of trees, and how many nodes of a round were kept and how many wasted."""
    drafting = _drafting(outcomes)
    figure = _figure(1.15 + _ROW * len(drafting))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.0, 1.15))
    for row, one in enumerate(drafting):
        _histogram(left, row, one.stats.rounds_by_size)
        kept = one.stats.accepted / max(one.stats.rounds, 1)
        wasted = one.stats.wasted_nodes / max(one.stats.rounds, 1)
        right.barh(row, kept, height=0.56, color=_SERIES[0])
        right.barh(row, wasted, left=kept, height=0.56, color=_GREY, alpha=0.45)
        _write_beside(right, kept + wasted, row, f"{one.stats.wasted_share:.0%} wasted")
    _rows_axis(left, drafting)
    most = max(size for one in drafting for size in one.stats.rounds_by_size)
    left.set(xlim=(-0.06 * most - 0.5, most * 1.08 + 0.5), xlabel="guesses in a tree")
    left.set_title("sizes of trees: height is the share of rounds")
    right.tick_params(left=False)
    right.margins(x=0.24)
    right.set(xlim=(0, None), xlabel="guesses per target forward")
    right.set_title("accepted (blue) and wasted (grey)")
    return to_svg(figure, "nodes")


def calibration(outcomes: Sequence[Outcome]) -> str | None:
    """Reliability diagram, and promised against kept tokens; None without deterministic trees."""
    shown = [(place, one) for place, one in enumerate(_drafting(outcomes)) if one.reliability]
    if not shown:
        return None
    figure = _figure(3.9)
    grid = figure.add_gridspec(2, 2, height_ratios=(3.4, 1), width_ratios=(1, 1), hspace=0.05)
    diagram, counts = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    totals = figure.add_subplot(grid[:, 1])
    diagram.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle=(0, (4, 3)))
    for place, one in shown:
        _diagram(diagram, counts, place, one)
    diagram.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share accepted")
    diagram.set_title("predicted and realised, guess by guess")
    diagram.tick_params(labelbottom=False)
    counts.set(xlim=(0, 1), yscale="log", ylabel="guesses")
    counts.yaxis.set_major_formatter("{x:g}")
    counts.set_xlabel("probability that the tree gave the guess")
    for axis in (diagram.yaxis, counts.xaxis):
        _percent(axis)
    diagram.grid()
    _totals(totals, shown)
    _legend_below(figure, diagram)
    return to_svg(figure, "calibration")


def time(outcomes: Sequence[Outcome]) -> str:
    """Milliseconds per emitted token by step, stacked."""
    figure, axes = _rows_figure(outcomes, extra=1.0)
    start = [0.0] * len(outcomes)
    for step in sorted(STEPS, key=list(_STEP_COLORS).index):
        spent = [1e3 * one.stats.seconds[step] / max(one.stats.tokens, 1) for one in outcomes]
        if any(spent):
            color = _STEP_COLORS[step]
            axes.barh(
                range(len(outcomes)), spent, left=start, height=0.62, color=color, label=step,
                edgecolor=_GRID, linewidth=0.4,
            )  # fmt: skip
        start = [before + more for before, more in zip(start, spent, strict=True)]
    for row, one in enumerate(outcomes):
        outside = f"{one.stats.share_outside_models:.1%} outside"
        _write_beside(axes, start[row], row, f"{start[row]:.2f} ms, {outside}")
    axes.set_xlim(0, 1.3 * max(start))
    axes.set_xlabel("milliseconds per emitted token")
    _legend_below(figure, axes, columns=len(STEPS))
    return to_svg(figure, "time")


# --- parts ----------------------------------------------------------------------------------------


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def _rows_figure(outcomes: Sequence[Outcome], extra: float) -> tuple[Figure, Axes]:
    figure = _figure(extra + _ROW * len(outcomes))
    axes = figure.subplots()
    _rows_axis(axes, outcomes)
    return figure, axes


def _rows_axis(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    """Names down the left side, the first on top."""
    axes.set_yticks(range(len(outcomes)), _names(outcomes), color=_INK)
    axes.set_ylim(len(outcomes) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _names(outcomes: Sequence[Outcome]) -> list[str]:
    return [one.name for one in outcomes]


def _drafting(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [one for one in outcomes if one.builder is not None]


def _speed_color(one: Outcome) -> str:
    if one.builder is None or one.speedup.low <= 1 <= one.speedup.high:
        return _GREY
    return _SERIES[0] if one.speedup.low > 1 else _SERIES[1]


def _shares(
    axes: Axes, place: int, accepted: Sequence[int], offered: Sequence[int], most: int
) -> None:
    """A line of shares with Wilson's intervals, as far as there are trials enough."""
    pairs = list(zip([*accepted, *[0] * len(offered)], offered, strict=False))[:most]
    pairs = [pair for pair in pairs if pair[1] >= FEWEST_TRIALS]
    xs = range(1, len(pairs) + 1)
    shares = [hit / trials for hit, trials in pairs]
    color = _SERIES[place % len(_SERIES)]
    for x, (hit, trials) in zip(xs, pairs, strict=True):
        axes.vlines(x, *wilson_interval(hit, trials), color=color, alpha=0.35, linewidth=1)
    axes.plot(xs, shares, color=color, marker=MARKERS[place % len(MARKERS)])


def _histogram(axes: Axes, row: int, rounds: Mapping[int, int]) -> None:
    """Stems on a line of its own, the most frequent size as high as there is room."""
    color, foot, most = _SERIES[row % len(_SERIES)], row + 0.36, max(rounds.values())
    axes.axhline(foot, color=_GRID, linewidth=0.8)
    tops = [foot - 0.76 * count / most for count in rounds.values()]
    axes.vlines(list(rounds), foot, tops, color=color, linewidth=3.2)


def _diagram(diagram: Axes, counts: Axes, place: int, one: Outcome) -> None:
    assert one.reliability is not None
    rows = one.reliability.bins()
    color, marker = _SERIES[place % len(_SERIES)], MARKERS[place % len(MARKERS)]
    xs = [row.predicted for row in rows]
    for row in rows:
        diagram.vlines(row.predicted, *row.interval(), color=color, alpha=0.35, linewidth=1)
    diagram.plot(xs, [row.realised for row in rows], color=color, marker=marker, label=one.name)
    counts.plot(xs, [row.trials for row in rows], color=color, marker=marker, markersize=3, lw=1)


def _totals(axes: Axes, shown: Sequence[tuple[int, Outcome]]) -> None:
    """Promised and kept guesses per round, a pair of bars each."""
    for row, (place, one) in enumerate(shown):
        rounds = max(one.stats.rounds, 1)
        color = _SERIES[place % len(_SERIES)]
        for offset, amount, alpha, what in (
            (-0.2, one.stats.predicted_accepted / rounds, 0.4, "promised"),
            (0.2, one.stats.accepted / rounds, 1.0, "kept"),
        ):
            axes.barh(row + offset, amount, height=0.36, color=color, alpha=alpha, linewidth=0)
            _write_beside(axes, amount, row + offset, f"{amount:.2f} {what}")
    _rows_axis(axes, [one for _, one in shown])
    axes.set_yticklabels([f"{one.name}\n{_error(one)}" for _, one in shown], color=_INK)
    axes.margins(x=0.3)
    axes.set(xlim=(0, None), xlabel="guesses per target forward")
    axes.set_title("promised and kept, round by round")


def _error(one: Outcome) -> str:
    assert one.reliability is not None
    return f"{100 * one.reliability.calibration_error:.1f} points off"


def _write_beside(axes: Axes, x: float, y: float, text: str) -> None:
    """Write a figure right of the end of its bar."""
    axes.annotate(
        text, (x, y), (5, 0), textcoords="offset points", va="center", color=_INK,
        annotation_clip=False,
    )  # fmt: skip


def _legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), columns),
        columnspacing=1.4, handletextpad=0.5, handlelength=1.6,
    )  # fmt: skip


def _percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def in_style() -> Any:
    """The context in which all pictures are drawn."""
    import matplotlib

    return matplotlib.rc_context(style(PAGE))
