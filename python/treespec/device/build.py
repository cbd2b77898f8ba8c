# SPDX-License-Identifier: Apache-2.0
"""Step 2 of a round: deterministic trees from tables of candidates.

Drawn trees, and drafters that are called between layers, take the native functions themselves
(``begin_*``, ``grow_*``, ``finish_*`` of `treespec._core.device`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from treespec import _core
from treespec.builder_options import resolve_options
from treespec.device import native
from treespec.device.candidates import CandidateLists
from treespec.device.trees import Trees

FIXED_SHAPES = ("chain", "kary", "medusa_choices", "sequoia")
LAYERED = ("eagle2", "opt_tree")
BUILDERS = ("dtree", *LAYERED, *FIXED_SHAPES)

_INT32_MAX = 2**31 - 1
# Scores are the drafter's own on a device.
_NEUTRAL_OPTIONS = {"score_temperature": 1, "calibration": [], "floor": 0}


@dataclass(frozen=True)
class _Layers:
    """`treespec::device::LayerOptions`."""

    max_depth: int
    max_calls: int = _INT32_MAX
    width: int = _INT32_MAX
    threshold: float = 0.0
    width_ratio: float = 0.0
    constant_growth: bool = False

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> _Layers:
        """The builder's options, its defaults for the others."""
        if name == "opt_tree":
            return cls(options.get("max_depth", 10), threshold=options.get("threshold", 0.0))
        depth = options.get("max_depth", 6)
        return cls(
            depth,
            depth,
            options.get("width", 10),
            width_ratio=options.get("width_ratio", 0.0),
            constant_growth=options.get("growth", "layer") == "constant",
        )


class _Shape(NamedTuple):
    """`treespec::device::ShapeSource`."""

    parent: torch.Tensor


class _Request(NamedTuple):
    """`treespec::device::BuildRequest`."""

    node_budget: torch.Tensor
    root_token: torch.Tensor | None


class _Frontier(NamedTuple):
    """`treespec::device::Frontier`."""

    num_nodes: torch.Tensor
    index: torch.Tensor
    parent: torch.Tensor
    token: torch.Tensor
    depth: torch.Tensor
    state: torch.Tensor

    @classmethod
    def empty(cls, like: torch.Tensor, batch: int, room: int) -> _Frontier:
        columns = [native.ints(like, batch, room) for _ in range(5)]
        return cls(native.ints(like, batch), *columns)


def build_tree(
    name: str,
    lists: CandidateLists,
    node_budget: int,
    *,
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
    root_token
        ``[B]``; None: 0.
    options
        The builder's own, but for those that change scores or draw.

    Returns
    -------
    Trees
        In pop order.

    Raises
    ------
    NotImplementedError
        For builders and options that only the host has.
    """
    resolved = resolve_options(options)
    _check_builder(name, resolved)
    batch = len(lists.token)
    budgets = native.ints(lists.token, batch).fill_(node_budget)
    trees = Trees.empty(batch, node_budget + 1, lists.token.device)
    request = _Request(budgets, root_token)
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
    for option, neutral in _NEUTRAL_OPTIONS.items():
        if options.get(option, neutral) != neutral:
            raise NotImplementedError(
                f"device.build_tree: {option} of {name} must be {neutral!r}, got {options[option]}"
            )


def _best_first(
    lists: CandidateLists,
    options: Mapping[str, Any],
    request: _Request,
    trees: Trees,
    status: torch.Tensor,
) -> None:
    depth = options.get("max_depth", lists.token.shape[1])
    stream = native.stream(lists.token)
    native.ops.build_best_first(stream, lists, depth, request, trees, status)


def _layered(
    layers: _Layers, lists: CandidateLists, request: _Request, trees: Trees, status: torch.Tensor
) -> None:
    batch, nodes = trees.parent.shape
    frontier = _Frontier.empty(trees.parent, batch, max(nodes - 1, 1))
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
    request: _Request,
    trees: Trees,
    status: torch.Tensor,
) -> None:
    batch, nodes = trees.parent.shape
    depth, width = lists.token.shape[1], lists.token.shape[-1]
    parents = _places(name, json.dumps(dict(options), sort_keys=True), nodes - 1, depth)
    shape = _Shape(_on_device(parents, lists.token.device))
    frontier = _Frontier.empty(trees.parent, batch, max(nodes - 1, 1))
    mode = "deterministic"
    size = native.ops.shape_workspace_bytes(batch, nodes, len(parents), width, mode)
    workspace = native.workspace(trees.parent, size)
    stream = native.stream(trees.parent)
    begun = (trees, workspace, frontier, status)
    native.ops.begin_shape(stream, shape, width, mode, request, *begun)
    for _ in range(_depth_of(parents)):
        native.ops.grow_shape(stream, shape, mode, None, lists, *begun)
    native.ops.finish_shape(stream, shape, width, mode, request, workspace, trees, None)


@functools.lru_cache(maxsize=64)
def _places(name: str, options: str, node_budget: int, max_depth: int) -> tuple[int, ...]:
    """Parents of the shape's places, from a tree of the builder's that lacks none of them."""
    growth = _core.TreeBuilder(name, **json.loads(options)).begin(node_budget, max_depth)
    row = -1e-3 * np.arange(1, node_budget + 2, dtype=np.float32)
    while size := len(growth.frontier()):
        growth.supply(np.tile(row, (size, 1)))
    return tuple(growth.finish().parent[1:].tolist())


def _depth_of(parents: tuple[int, ...]) -> int:
    depth = [0]
    for parent in parents:
        depth.append(depth[parent] + 1)
    return max(depth)


@functools.cache
def _on_device(parents: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Kept for good: a captured graph may read it at any time, and copies nothing from the host."""
    return torch.tensor(parents, dtype=torch.int32, device=device)
