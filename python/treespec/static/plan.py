# SPDX-License-Identifier: Apache-2.0
"""How many drafter rows a round computes per call, found out by asking the builder itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec import _core
from treespec.device.families import DRAWN_SHAPES, FIXED_SHAPES, LAYERED, PATHS, SLOTS
from treespec.selector.actions import Action

SHAPES = (*FIXED_SHAPES, *DRAWN_SHAPES)
BUILDERS = tuple(sorted({*SHAPES, *PATHS, *LAYERED, *SLOTS}))
# From lists that are all there.
TABLE_BUILDERS = tuple(sorted(("dtree", *BUILDERS)))

# Options that let the data decide how often the drafter is called, with the value that does not.
_DATA_DEPENDENT = {"threshold": 0, "floor": 0, "width_ratio": 0, "growth": "layer"}

# Drafted nodes that the device functions hold; lists are as wide at most.
MOST_DRAFTED = 1024

# Candidates of a drawn tree's lists; the drafter's law is cut to these likeliest tokens.
_DRAWN_CANDIDATES = 128
# Nodes that DySpec may ask for, per node that it keeps. Not a bound: random searches reached 2.6,
# and a round that asks for more is reported.
_SLOT_ROOM = 8


@dataclass(frozen=True)
class DraftPlan:
    """The static shape of a draft.

    Attributes
    ----------
    widths
        Most rows of the drafter's forward per call; the first is the root's, 1. None: how often it
        is called depends on the data, and so do the widths.
    max_depth
        Depth of the deepest node that can be drafted.
    max_rows
        Most rows of all calls together.
    num_candidates
        K, the candidates that are ranked for every row.
    """

    widths: tuple[int, ...] | None
    max_depth: int
    max_rows: int
    num_candidates: int

    @classmethod
    def of_widths(cls, widths: tuple[int, ...], num_candidates: int) -> DraftPlan:
        """A level per call."""
        return cls(widths, len(widths), sum(widths), num_candidates)


def plan_draft(
    builder: _core.TreeBuilder, options: Mapping[str, Any], node_budget: int
) -> DraftPlan:
    """The plan for a builder with its resolved options.

    Raises
    ------
    NotImplementedError
        For builders and node budgets that have no fixed envelope.
    """
    check_envelope(builder, node_budget, BUILDERS)
    if builder.name in SHAPES:
        return _shape_plan(builder, options, node_budget)
    if builder.name in PATHS:
        return _paths_plan(builder, node_budget)
    if builder.name in LAYERED:
        return _layered_plan(builder.name, options, node_budget)
    return _slots_plan(options, node_budget)


def plan_choices(actions: Sequence[Action]) -> DraftPlan:
    """The plan for trees of which another one is chosen in every round."""
    plans = [
        _paths_plan(_core.TreeBuilder("delayed", **action.options), action.nodes)
        for action in actions
    ]
    return DraftPlan(
        None,
        max(plan.max_depth for plan in plans),
        max(plan.max_rows for plan in plans),
        max(plan.num_candidates for plan in plans),
    )


def check_envelope(builder: _core.TreeBuilder, node_budget: int, builders: Sequence[str]) -> None:
    """Refuse what the device functions do not hold.

    Raises
    ------
    NotImplementedError
        For other builders than these, and for too large node budgets.
    """
    if builder.name not in builders:
        raise NotImplementedError(
            f"graph: builder must be one of {', '.join(builders)} with this drafter, "
            f"got {builder.name}"
        )
    if not 1 <= node_budget <= MOST_DRAFTED:
        raise NotImplementedError(
            f"graph: node_budget must be in [1, {MOST_DRAFTED}], got {node_budget}"
        )


def drawn_candidates(node_budget: int) -> int:
    """K of drawn trees: no node has more draws than the budget."""
    return max(_DRAWN_CANDIDATES, node_budget)


def _ranked_row(size: int) -> npt.NDArray[np.float32]:
    """Log-probabilities that fall with the token id."""
    return -1e-3 * np.arange(1, size + 1, dtype=np.float32)


# --- shapes and paths -------------------------------------------------------------------------


def _shape_plan(
    builder: _core.TreeBuilder, options: Mapping[str, Any], node_budget: int
) -> DraftPlan:
    """Draws may repeat and leave places empty, the likeliest tokens never do."""
    own = {key: value for key, value in options.items() if key != "proposal"}
    widths, tree = _grown(_core.TreeBuilder(builder.name, **own), node_budget)
    if builder.proposal != "deterministic":
        return DraftPlan.of_widths(widths, drawn_candidates(node_budget))
    return DraftPlan.of_widths(widths, 1 + int(tree.token.max()))


def _paths_plan(builder: _core.TreeBuilder, node_budget: int) -> DraftPlan:
    """Every path draws at every depth, whether it meets another one or not."""
    widths, tree = _grown(builder, node_budget)
    draws = np.array([len(of_node) for of_node in tree.draws])
    most = [int(draws[tree.depth == d].sum()) for d in range(len(widths) - 1)]
    return DraftPlan.of_widths((1, *most), drawn_candidates(node_budget))


def _grown(builder: _core.TreeBuilder, node_budget: int) -> tuple[tuple[int, ...], _core.TokenTree]:
    """Rows per call, and the tree, when the token of a candidate is its rank."""
    growth = builder.begin(node_budget)
    row = _ranked_row(node_budget + 1)
    widths = []
    while width := len(growth.frontier()):
        widths.append(width)
        growth.supply(np.tile(row, (width, 1)))
    return tuple(widths), growth.finish()


# --- layered ----------------------------------------------------------------------------------


def _layered_plan(name: str, options: Mapping[str, Any], node_budget: int) -> DraftPlan:
    """Widths that hold every node a layer can want expanded.

    A layer of depth d has d - 1 ancestors and at least one other node of the tree beside those it
    expands: at the end of the budget the worst node is never worth a call.
    """
    own = {key: options[key] for key in ("max_depth", "width") if key in options}
    builder = _core.TreeBuilder(name, **own)
    depth = _num_calls(builder, node_budget)
    widest = _second_frontier(builder, node_budget)
    candidates = min(widest + 1, node_budget) if widest else node_budget
    widths = (1, *(max(1, min(widest, node_budget - d)) for d in range(1, depth)))
    if all(options.get(key, neutral) == neutral for key, neutral in _DATA_DEPENDENT.items()):
        return DraftPlan.of_widths(widths, candidates)
    rows = sum(widths)
    if options.get("growth") == "constant":  # may stay at a depth, and has the worst node expanded
        constant = _core.TreeBuilder(name, growth="constant", **own)
        later = _num_calls(constant, node_budget) - 1
        rows = 1 + later * _second_frontier(constant, node_budget)
    elif options.get("width_ratio", 0) > 0:  # goes on only while no node was thrown out
        rows = node_budget
    return DraftPlan(None, depth, rows, candidates)


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
    if len(growth.frontier()):  # none for a depth of 0
        growth.supply(_ranked_row(node_budget)[None])
    return len(growth.frontier())


# --- slots ------------------------------------------------------------------------------------


def _slots_plan(options: Mapping[str, Any], node_budget: int) -> DraftPlan:
    depth = min(options.get("max_depth", node_budget), node_budget)
    rows = 1 + _SLOT_ROOM * node_budget
    return DraftPlan(None, depth, rows, drawn_candidates(node_budget))
