# SPDX-License-Identifier: Apache-2.0
"""The tree size that pays, from acceptance and costs.

Source: Chen et al., "Sequoia", 2024, arXiv 2402.12374 (hardware-aware optimizer), with the fixed
part of a round added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from treespec.growth_map import Acceptance, GrowthMap


class Size(NamedTuple):
    """A tree size and what it promises.

    Attributes
    ----------
    num_nodes, max_depth
        Drafted nodes, and drafter calls.
    speedup
        Predicted tokens per second over plain decoding's; below 1 decode plainly.
    expected_tokens
        Predicted tokens per target forward.
    """

    num_nodes: int
    max_depth: int
    speedup: float
    expected_tokens: float


def best_size(
    acceptance: Acceptance,
    target_seconds: Mapping[int, float],
    draft_seconds: float,
    max_depth: int,
    *,
    round_seconds: float = 0.0,
    plain_seconds: float | None = None,
    num_nodes: int | None = None,
) -> Size:
    """The number of nodes and the depth with most tokens per second.

    Maximises ``F(n, d) / (t(n + 1) + d * c + o)`` over every n up to the largest number of rows
    that was timed and every depth d, where F is the expected tokens of the best growth map.

    Parameters
    ----------
    acceptance
        A table as `GrowthMap.optimal` takes it.
    target_seconds
        t: seconds of a target forward by number of rows. Between two it is interpolated; a number
        that is slower than a larger one is taken to be padded to it.
    draft_seconds
        c: seconds of a drafter call; a tree of depth d needs d.
    max_depth
        The deepest tree to look at.
    round_seconds
        o: seconds of everything else in a round.
    plain_seconds
        Seconds of one token without speculation. None: t(1) + o, so that t(1) must be given.
    num_nodes
        Only this n; None: all.

    Raises
    ------
    ValueError
        For bad sizes, or times that are not finite, not above 0 (target) or below 0 (others).

    Examples
    --------
    >>> times = {1: 1.0, 2: 1.0, 4: 1.1, 8: 2.0}
    >>> best_size([0.6, 0.2], times, draft_seconds=0.1, max_depth=4)[:2]
    (3, 2)
    """
    rows, seconds = _envelope(target_seconds)
    if max_depth < 1 or rows[-1] < 2 or not (num_nodes is None or 1 <= num_nodes < rows[-1]):
        raise ValueError(
            "best_size: max_depth must be at least 1 and num_nodes below the most rows timed "
            f"({rows[-1]}), got {max_depth} and {num_nodes}"
        )
    if plain_seconds is None:
        if rows[0] != 1:
            raise ValueError(
                "best_size: target_seconds must hold 1 row, the cost of plain decoding, or "
                f"plain_seconds must be given, got rows {rows.tolist()}"
            )
        plain_seconds = float(seconds[0]) + round_seconds
    _check_seconds(draft=draft_seconds, round=round_seconds, plain=plain_seconds)
    best: Size | None = None
    for depth in range(1, max_depth + 1):
        map = GrowthMap.optimal(acceptance, num_nodes or int(rows[-1]) - 1, max_depth=depth)
        tokens = np.cumsum(map.node_acceptance())
        calls = np.maximum.accumulate(map.depth)
        cost = np.interp(np.arange(len(map) + 1) + 1, rows, seconds)
        speedup = plain_seconds * tokens / (cost + calls * draft_seconds + round_seconds)
        for n in [len(map)] if num_nodes else range(1, len(map) + 1):
            if best is None or speedup[n] > best.speedup:
                best = Size(n, int(calls[n]), float(speedup[n]), float(tokens[n]))
    if best is None or best.num_nodes == 0:
        raise ValueError(
            "best_size: acceptance must be above 0 somewhere, nothing is ever accepted"
        )
    return best


def _check_seconds(**seconds: float) -> None:
    for name, value in seconds.items():
        if not 0 <= value < np.inf:
            raise ValueError(f"best_size: {name}_seconds must be finite and >= 0, got {value}")


def _envelope(target_seconds: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Rows, rising, and seconds, never falling."""
    rows = np.array(sorted(target_seconds), dtype=int)
    seconds = np.array([target_seconds[int(n)] for n in rows], dtype=np.float64)
    if not len(rows) or rows[0] < 1 or not np.all((seconds > 0) & np.isfinite(seconds)):
        raise ValueError(
            "best_size: target_seconds must map rows to seconds above 0, finite ones, "
            f"got {target_seconds}"
        )
    return rows, np.minimum.accumulate(seconds[::-1])[::-1]
