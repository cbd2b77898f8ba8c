# SPDX-License-Identifier: Apache-2.0
"""Says what a generation cost and gained: to people as small bars, to machines as a dict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from treespec.stats import MODEL_STEPS, Stats

if TYPE_CHECKING:
    from treespec.cli.answer import Answer
    from treespec.generation import GenerateResult

BAR_WIDTH = 24
DERIVED = (
    "block_efficiency",
    "wasted_nodes",
    "wasted_share",
    "rounds_by_kind",
    "share_outside_models",
    "total_seconds",
    "tokens_per_second",
    "acceptance_by_depth",
    "acceptance_by_rank",
)


def stats_dict(stats: Stats) -> dict[str, Any]:
    """Return the statistics, fields and ratios alike, as plain JSON values."""
    values = dataclasses.asdict(stats)
    values["shapes"] = [
        {"nodes": nodes, "depth": depth, "rounds": rounds}
        for (nodes, depth), rounds in sorted(stats.shapes.items())
    ]
    values.update({name: getattr(stats, name) for name in DERIVED})
    return {name: _plain(value) for name, value in values.items()}


def result_dict(result: GenerateResult | Answer) -> dict[str, Any]:
    """Return one generation as plain JSON values."""
    return {
        "text": result.text,
        "token_ids": [int(token) for token in result.token_ids],
        "finish_reason": result.finish_reason,
        "stats": stats_dict(result.stats),
    }


def print_stats(stats: Stats, console: Console, interrupted: bool = False) -> None:
    """Print speed, acceptance by depth and by sibling rank, and the time of every step.

    The decoder reports times for whole answers only, so an interrupted one has no table of steps.
    """
    console.print("\n[bold yellow]interrupted[/]" if interrupted else "")
    console.print(_headline(stats), soft_wrap=True)
    if stats.rounds:
        console.print(Padding(_acceptance(stats), (1, 0, 0, 0)))
    if not interrupted:
        console.print(Padding(_time(stats), (1, 0, 0, 0)))


def bar(share: float, style: str) -> Text:
    """Draw a share between 0 and 1 as a bar, in eighths of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * BAR_WIDTH * 8)
    full, rest = divmod(eighths, 8)
    filled = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    return Text(filled, style=style).append("·" * (BAR_WIDTH - len(filled)), style="dim")


def _headline(stats: Stats) -> Text:
    line = Text()
    line.append(f"{stats.tokens_per_second:.1f} tokens/s", style="bold green")
    line.append(f"   {stats.tokens} tokens in {stats.total_seconds:.2f} s", style="default")
    if stats.rounds:
        line.append(f"   {stats.block_efficiency:.2f} tokens per target forward", style="bold")
        line.append(f"\n{stats.rounds} rounds, {stats.drafted_nodes} nodes drafted", style="dim")
        line.append(f", {stats.accepted} accepted, {stats.draft_calls} drafter calls", style="dim")
        if stats.drafted_nodes:
            line.append(f"\n{stats.wasted_share:.0%} of the nodes wasted", style="dim")
            line.append(f", {stats.predicted_accepted:.1f} accepted promised", style="dim")
    return line


def _acceptance(stats: Stats) -> RenderableType:
    by_depth = _ratios("depth", stats.accepted_by_depth, stats.offered_by_depth)
    by_rank = _ratios("sibling", stats.accepted_by_rank, stats.offered_by_rank)
    note = Text("sibling 1 is the first guess at a place, 2 the second, ...", style="dim")
    return Group(by_depth, Text(), by_rank, note)


def _ratios(name: str, accepted: Sequence[int], offered: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(name, justify="right", min_width=7)
    table.add_column("accepted", min_width=BAR_WIDTH)
    table.add_column("", justify="right")
    table.add_column("of", justify="right", style="dim")
    for index, (yes, total) in enumerate(zip_longest(accepted, offered, fillvalue=0), start=1):
        if total:
            share = yes / total
            table.add_row(str(index), bar(share, "green"), f"{share:4.0%}", f"{yes}/{total}")
    return table


def _time(stats: Stats) -> RenderableType:
    total = sum(stats.seconds.values())
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", justify="right", min_width=7)
    table.add_column("time", min_width=BAR_WIDTH)
    table.add_column("", justify="right")
    table.add_column("ms", justify="right", style="dim")
    for step, seconds in stats.seconds.items():
        share = seconds / total if total > 0 else 0.0
        style = "blue" if step in MODEL_STEPS else "yellow"
        table.add_row(step, bar(share, style), f"{share:4.0%}", f"{1e3 * seconds:.1f}")
    outside = Text(f"{stats.share_outside_models:.1%} of the rounds", style="bold")
    return Group(table, outside.append(" was spent outside the two models", style="not bold"))


def _plain(value: Any) -> Any:
    """Turn numpy scalars and arrays, and tuples, into what `json` writes."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
