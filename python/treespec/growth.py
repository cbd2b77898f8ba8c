# SPDX-License-Identifier: Apache-2.0
"""Step 2 of a round in Python: feeds sources to native growths, many sequences in lock-step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from treespec import _core, placement
from treespec.drafts.base import RankedRows
from treespec.stats import Clock

UNLIMITED = 2**31 - 1  # a depth no tree reaches


class RoundKey(NamedTuple):
    """Names a round: everything random in it is a function of these three."""

    seed: int = 0
    sequence_id: int = 0
    position: int = 0


_DEFAULT_KEY = RoundKey()


class Recipe(NamedTuple):
    """How one tree is grown.

    Attributes
    ----------
    builder
        Its options included.
    node_budget, max_depth
        Most drafted nodes, and the deepest of them.
    list_width
        How many of a row's likeliest tokens are enough: rows on a GPU are then ranked there, if it
        can. None: whole rows are wanted.
    """

    builder: _core.TreeBuilder
    node_budget: int
    max_depth: int = UNLIMITED
    list_width: int | None = None


def source_kind(source: Any) -> str:
    """The name of a source's kind; raises TypeError for what is no source."""
    if isinstance(source, _core.CandidateSource):
        return str(source.kind)
    if callable(getattr(source, "expand", None)):
        return "Expander"
    raise TypeError(
        "source: must be Marginals, Transitions, a Trie or an object with expand(nodes), "
        f"got {type(source).__name__}"
    )


def grow_tree(
    builder: _core.TreeBuilder,
    source: Any,
    node_budget: int,
    *,
    max_depth: int = UNLIMITED,
    list_width: int | None = None,
    key: RoundKey = _DEFAULT_KEY,
    root_token: int = 0,
) -> _core.TokenTree:
    """Grow one tree from one source."""
    recipe = Recipe(builder, node_budget, max_depth, list_width)
    return grow_trees([recipe], [source], [key], [root_token], Clock())[0]


def grow_trees(
    recipes: Sequence[Recipe],
    sources: Sequence[Any],
    keys: Sequence[RoundKey],
    root_tokens: Sequence[int],
    clock: Clock,
) -> list[_core.TokenTree]:
    """Grow one tree per source, all of one kind.

    Expanders grow in lock-step: each pass hands the frontiers of all unfinished trees over
    together, in one call of ``expand_together`` where the expander's class has it. Time inside
    expanders is booked as drafting.

    Raises
    ------
    ValueError
        If a builder cannot read its source; names the builders that can.
    """
    for recipe, source in zip(recipes, sources, strict=True):
        recipe.builder.check_source_kind(source_kind(source))
    if isinstance(sources[0], _core.CandidateSource):
        return [
            recipe.builder.build(source, recipe.node_budget, recipe.max_depth, *key, root)
            for recipe, source, key, root in zip(recipes, sources, keys, root_tokens, strict=True)
        ]
    growths = [
        recipe.builder.begin(recipe.node_budget, recipe.max_depth, *key)
        for recipe, key in zip(recipes, keys, strict=True)
    ]
    _supply_all(growths, [recipe.list_width for recipe in recipes], sources, root_tokens, clock)
    return [growth.finish(root) for growth, root in zip(growths, root_tokens, strict=True)]


def _supply_all(
    growths: Sequence[_core.TreeGrowth],
    list_widths: Sequence[int | None],
    sources: Sequence[Any],
    root_tokens: Sequence[int],
    clock: Clock,
) -> None:
    waiting = list(range(len(growths)))
    while True:
        frontiers = {i: growths[i].frontier(root_tokens[i]) for i in waiting}
        waiting = [i for i in waiting if len(frontiers[i])]
        if not waiting:
            return
        with clock.step("draft"):
            rows = _expand([sources[i] for i in waiting], [frontiers[i] for i in waiting])
        clock.count_draft(sum(len(frontiers[i]) for i in waiting))
        for i, block in zip(waiting, rows, strict=True):
            _supply(growths[i], block, list_widths[i])


def _supply(growth: _core.TreeGrowth, rows: Any, list_width: int | None) -> None:
    if list_width is not None and placement.gpu_of(rows) is not None:
        rows = _ranked_where_it_is(rows, list_width)
    if isinstance(rows, RankedRows):
        growth.supply_lists(*rows)
    else:
        growth.supply(as_float32(rows))


def _ranked_where_it_is(rows: Any, width: int) -> Any:
    """Ranked lists of rows on a GPU, or the rows as they are where it does not rank them."""
    from treespec.device import host_rows

    scores = placement.as_tensor(rows).float()
    if scores.dim() != 2 or not _core.cuda_built():
        return rows
    width = min(width, scores.shape[1])
    if not host_rows.takes(scores, width):
        return rows
    return RankedRows(*host_rows.rank_scores(scores, width))


def _expand(sources: Sequence[Any], frontiers: Sequence[_core.Frontier]) -> Sequence[Any]:
    together = getattr(type(sources[0]), "expand_together", None)
    if together is not None:
        rows: Sequence[Any] = together(sources, frontiers)
        return rows
    return [source.expand(frontier) for source, frontier in zip(sources, frontiers, strict=True)]


def as_float32(rows: Any) -> Any:
    """Scores are float32 sums, in host memory; rows are converted once, here."""
    rows = rows if placement.gpu_of(rows) is None else placement.as_tensor(rows)
    if isinstance(rows, np.ndarray) or not hasattr(rows, "detach"):
        return np.ascontiguousarray(rows, dtype=np.float32)
    return rows.detach().float().cpu().contiguous()
