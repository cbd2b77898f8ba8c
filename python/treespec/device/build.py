# SPDX-License-Identifier: Apache-2.0
"""Step 2 of a round: deterministic trees from tables of candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from treespec import _core
from treespec.builder_options import resolve_options
from treespec.device import native
from treespec.device.candidates import CandidateLists
from treespec.device.families import FIXED_SHAPES, LAYERED, family_of, grow_tables
from treespec.device.growth import Request
from treespec.device.scores import scored_by
from treespec.device.trees import Trees

BUILDERS = ("dtree", *LAYERED, *FIXED_SHAPES)


def build_tree(
    name: str,
    lists: CandidateLists,
    node_budget: int,
    *,
    budgets: torch.Tensor | None = None,
    root_token: torch.Tensor | None = None,
    status: torch.Tensor,
    **options: Any,
) -> Trees:
    """Grow one draft tree per sequence, as `treespec.build_tree` does. Takes no random numbers.

    Parameters
    ----------
    name
        One of `BUILDERS`.
    lists
        Tables of candidates ``[B, D, K]``, or ``[B, D, R, K]`` with `next`.
    node_budget
        M - 1: the most drafted nodes of a tree, at most 1,024.
    budgets
        ``[B]``: those of each sequence, at most `node_budget`; None: all have that. Fixed shapes
        are those of `node_budget`, cut to their first places, or to whole levels if an expansion
        vector is a default.
    root_token
        ``[B]``; None: 0.
    options
        The builder's own.

    Returns
    -------
    Trees
        In pop order.

    Raises
    ------
    NotImplementedError
        For builders that only the host has.
    """
    resolved = resolve_options(options)
    _check_builder(name, resolved)
    lists = scored_by(resolved, lists)
    batch, depth = lists.token.shape[:2]
    trees = Trees.empty(batch, node_budget + 1, lists.token.device)
    request = Request.of(trees, budgets, root_token)
    if name == "dtree":
        deepest = resolved.get("max_depth", depth)
        stream = native.stream(lists.token)
        native.ops.build_best_first(stream, lists, deepest, request, trees, status)
    else:
        family = family_of(name, resolved, node_budget, depth, lists.token.device)
        grow_tables(family, lists, None, request, trees, None, status)
    return trees


def _check_builder(name: str, options: Mapping[str, Any]) -> None:
    builder = _core.TreeBuilder(name, **options)  # knows its options
    if name not in BUILDERS or builder.proposal != "deterministic":
        raise NotImplementedError(
            f"device.build_tree: builder must be one of {', '.join(BUILDERS)} with deterministic "
            f"trees, got {name} with {builder.proposal} ones"
        )
