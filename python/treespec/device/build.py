# SPDX-License-Identifier: Apache-2.0
"""Step 2 of a round: deterministic trees from tables of candidates.

Drafters that are called between layers take the native functions themselves (``begin_*``,
``grow_*``, ``finish_*`` of `treespec._core.device`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from treespec import _core
from treespec.builder_options import resolve_options
from treespec.device import native
from treespec.device.candidates import CandidateLists
from treespec.device.growth import Frontier, Request, Shape
from treespec.device.scores import calibration_of, score_lists
from treespec.device.trees import Trees

FIXED_SHAPES = ("chain", "kary", "medusa_choices", "sequoia")
LAYERED = ("eagle2", "opt_tree")
BUILDERS = ("dtree", *LAYERED, *FIXED_SHAPES)

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class _Layers:
    """`treespec::device::LayerOptions`."""

    max_depth: int
    max_calls: int = _INT32_MAX
    width: int = _INT32_MAX
    threshold: float = 0.0
    floor: float = 0.0
    width_ratio: float = 0.0
    constant_growth: bool = False

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> _Layers:
        """The builder's options, its defaults for the others."""
        if name == "opt_tree":
            bounds = {key: options[key] for key in ("threshold", "floor") if key in options}
            return cls(options.get("max_depth", 10), **bounds)
        depth = options.get("max_depth", 6)
        return cls(
            depth,
            depth,
            options.get("width", 10),
            width_ratio=options.get("width_ratio", 0.0),
            constant_growth=options.get("growth", "layer") == "constant",
        )


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
    lists = _scored(lists, resolved)
    trees = Trees.empty(len(lists.token), node_budget + 1, lists.token.device)
    request = Request.of(lists, node_budget, budgets, root_token)
    if name == "dtree":
        _best_first(lists, resolved, request, trees, status)
    elif name in LAYERED:
        _layered(_Layers.of(name, resolved), lists, request, trees, status)
    else:
        _fixed_shape(name, resolved, lists, request, trees, status)
    return trees


def _check_builder(name: str, options: Mapping[str, Any]) -> None:
    builder = _core.TreeBuilder(name, **options)  # knows its options
    if name not in BUILDERS or builder.proposal != "deterministic":
        raise NotImplementedError(
            f"device.build_tree: builder must be one of {', '.join(BUILDERS)} with deterministic "
            f"trees, got {name} with {builder.proposal} ones"
        )


def _scored(lists: CandidateLists, options: Mapping[str, Any]) -> CandidateLists:
    """The lists as the builder's options score them."""
    temperature = options.get("score_temperature", 1.0)
    calibration = calibration_of(options, lists.token.device)
    if temperature == 1.0 and calibration is None:
        return lists
    return score_lists(lists, temperature=temperature, calibration=calibration)


def _best_first(
    lists: CandidateLists,
    options: Mapping[str, Any],
    request: Request,
    trees: Trees,
    status: torch.Tensor,
) -> None:
    depth = options.get("max_depth", lists.token.shape[1])
    stream = native.stream(lists.token)
    native.ops.build_best_first(stream, lists, depth, request, trees, status)


def _layered(
    layers: _Layers, lists: CandidateLists, request: Request, trees: Trees, status: torch.Tensor
) -> None:
    batch, nodes = trees.parent.shape
    frontier = Frontier.empty(trees.parent, batch, nodes - 1)
    size = native.ops.layers_workspace_bytes(batch, nodes)
    workspace = native.workspace(trees.parent, size)
    stream = native.stream(trees.parent)
    native.ops.begin_layers(stream, layers, request, trees, workspace, frontier, status)
    # Calls that do not go deeper are bounded by their number and by the nodes to expand.
    depth = min(layers.max_depth, lists.token.shape[1])
    calls = min(layers.max_calls, nodes) if layers.constant_growth else depth
    for _ in range(calls):
        native.ops.grow_layer(stream, layers, lists, trees, workspace, frontier, status)
    native.ops.finish_layers(stream, request, workspace, trees)


def _fixed_shape(
    name: str,
    options: Mapping[str, Any],
    lists: CandidateLists,
    request: Request,
    trees: Trees,
    status: torch.Tensor,
) -> None:
    batch, nodes = trees.parent.shape
    width = lists.token.shape[-1]
    shape = Shape.of(name, options, lists, nodes - 1)
    frontier = Frontier.empty(trees.parent, batch, nodes - 1)
    mode = "deterministic"
    size = native.ops.shape_workspace_bytes(batch, nodes, len(shape.parent), width, mode)
    workspace = native.workspace(trees.parent, size)
    stream = native.stream(trees.parent)
    begun = (trees, workspace, frontier, status)
    native.ops.begin_shape(stream, shape, width, mode, request, *begun)
    for _ in range(shape.depth):
        native.ops.grow_shape(stream, shape, mode, None, lists, *begun)
    native.ops.finish_shape(stream, shape, width, mode, request, workspace, trees, None)
