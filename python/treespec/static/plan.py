# SPDX-License-Identifier: Apache-2.0
"""How many drafter rows a round computes per level, found out by asking the builder itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec import _core

# Which place of a fixed shape goes on is known before any token; layers go on with their best.
FIXED_SHAPES = ("chain", "kary", "medusa_choices", "sequoia")
LAYERED = ("eagle2", "opt_tree")

# What a level costs must not depend on the data, and scores must be the drafter's own.
_NEUTRAL_OPTIONS = {
    "threshold": 0,
    "floor": 0,
    "width_ratio": 0,
    "growth": "layer",
    "score_temperature": 1,
    "calibration": [],
}


@dataclass(frozen=True)
class DraftPlan:
    """The static shape of a draft.

    Attributes
    ----------
    widths
        Rows of the drafter's forward per level; the first is the root's, 1.
    num_candidates
        K, the candidates that are ranked for every row.
    sources
        Of a fixed shape: ``sources[d][r]`` is the candidate ``list * K + rank`` of level d that row
        r of level d + 1 continues. None: the best by score.
    """

    widths: tuple[int, ...]
    num_candidates: int
    sources: tuple[tuple[int, ...], ...] | None

    @property
    def max_depth(self) -> int:
        """Depth of the deepest node that can be drafted."""
        return len(self.widths)


def plan_draft(
    builder: _core.TreeBuilder, options: Mapping[str, Any], node_budget: int
) -> DraftPlan:
    """The plan for a builder with its resolved options.

    Raises
    ------
    NotImplementedError
        If the number or the size of drafter calls would depend on the data.
    """
    if builder.name not in FIXED_SHAPES + LAYERED or builder.proposal != "deterministic":
        raise NotImplementedError(
            f"graph: builder must be one of {', '.join(sorted(FIXED_SHAPES + LAYERED))} with "
            f"deterministic trees, got {builder.name} with {builder.proposal} ones"
        )
    for name, neutral in _NEUTRAL_OPTIONS.items():
        if options.get(name, neutral) != neutral:
            raise NotImplementedError(
                f"graph: option {name} of {builder.name} must be {neutral!r}, got {options[name]!r}"
            )
    if node_budget < 1:
        raise NotImplementedError(f"graph: node_budget must be at least 1, got {node_budget}")
    probe = _fixed_plan if builder.name in FIXED_SHAPES else _layered_plan
    return probe(builder, node_budget)


def _fixed_plan(builder: _core.TreeBuilder, node_budget: int) -> DraftPlan:
    """Let the builder draft from rows in which the token of a candidate is its rank."""
    growth = builder.begin(node_budget)
    row = _ranked_row(node_budget)
    row_of: dict[int, int] = {}  # of an expanded node, within its level
    chosen: list[list[tuple[int, int]]] = []  # per level (list, rank)
    while len(frontier := growth.frontier()):
        row_of.update({index: place for place, index in enumerate(frontier.index.tolist())})
        pairs = zip(frontier.parent.tolist(), frontier.token.tolist(), strict=True)
        chosen.append([(row_of.get(parent, 0), rank) for parent, rank in pairs])
        growth.supply(np.tile(row, (len(frontier), 1)))
    candidates = 1 + int(growth.finish().token.max())
    sources = tuple(
        tuple(place * candidates + rank for place, rank in level) for level in chosen[1:]
    )
    return DraftPlan(tuple(len(level) for level in chosen), candidates, sources)


def _layered_plan(builder: _core.TreeBuilder, node_budget: int) -> DraftPlan:
    """Widths that hold every node a layer can want expanded.

    A layer of depth d has d - 1 ancestors and at least one other node of the tree beside those it
    expands: at the end of the budget the worst node is never worth a call.
    """
    depth = _num_calls(builder, node_budget)
    widest = _second_frontier(builder, node_budget)
    candidates = min(widest + 1, node_budget) if widest else node_budget
    widths = (1, *(max(1, min(widest, node_budget - d)) for d in range(1, depth)))
    return DraftPlan(widths, candidates, None)


def _num_calls(builder: _core.TreeBuilder, node_budget: int) -> int:
    """Drafter calls when one likely token after another makes the deepest tree."""
    growth = builder.begin(node_budget)
    calls = 0
    while len(growth.frontier()):
        growth.supply(np.array([[-1e-3]], np.float32))
        calls += 1
    return calls


def _second_frontier(builder: _core.TreeBuilder, node_budget: int) -> int:
    """Nodes that the second call expands when the first has as many as the budget."""
    growth = builder.begin(node_budget)
    growth.frontier()
    growth.supply(_ranked_row(node_budget)[None])
    return len(growth.frontier())


def _ranked_row(size: int) -> npt.NDArray[np.float32]:
    """Log-probabilities that fall with the token id."""
    return -1e-3 * np.arange(1, size + 1, dtype=np.float32)
