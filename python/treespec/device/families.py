# SPDX-License-Identifier: Apache-2.0
"""Builders that grow alike: the native functions that begin, grow and finish their trees.

A family is made for a builder, its options and a node budget; it is also the struct of options that
its native functions take.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch

from treespec import _core
from treespec.device import native
from treespec.device.candidates import CandidateLists, FrontierLists
from treespec.device.growth import Frontier, Request, Shape
from treespec.device.scores import calibration_of
from treespec.device.trees import Trees
from treespec.device.verify import Law

FIXED_SHAPES = ("chain", "kary", "medusa_choices", "sequoia")
LAYERED = ("eagle2", "opt_tree")
DRAWN_SHAPES = ("chain", "kary", "sequoia", "top_plus_one")
PATHS = ("delayed", "rollouts")
SLOTS = ("dyspec", "dyspec_threshold")

UNLIMITED = 2**31 - 1  # a depth that no tree reaches


class Growing(NamedTuple):
    """Trees in the making.

    Attributes
    ----------
    workspace
        State of the native functions.
    frontier
        Nodes whose lists are wanted next.
    trees, law
        Where the trees go, and the law of drawn ones; None where nothing is drawn.
    status
        ``[B]``.
    """

    workspace: torch.Tensor
    frontier: Frontier
    trees: Trees
    law: Law | None
    status: torch.Tensor

    @classmethod
    def empty(
        cls, family: Family, width: int, trees: Trees, law: Law | None, status: torch.Tensor
    ) -> Growing:
        """A workspace for lists of that width, and a frontier."""
        batch, nodes = trees.parent.shape
        workspace = native.workspace(trees.parent, family.workspace_bytes(batch, nodes, width))
        frontier = Frontier.empty(trees.parent, batch, family.room(nodes))
        return cls(workspace, frontier, trees, law, status)


class Family(Protocol):
    """Begins, grows and finishes trees; `nodes` counts the root, `width` is that of all lists."""

    def workspace_bytes(self, batch: int, nodes: int, width: int) -> int:
        """Size of the workspace."""

    def room(self, nodes: int) -> int:
        """Most nodes that a sequence can wait for."""

    def num_calls(self, nodes: int, depth: int) -> int:
        """How often `grow` is called for tables of that depth."""

    def begin(self, growing: Growing, width: int, request: Request) -> None:
        """Start with the frontier [root]."""

    def grow(
        self, growing: Growing, key: torch.Tensor | None, lists: CandidateLists | FrontierLists
    ) -> None:
        """Take the lists of the frontier and replace it; draws are those of the keys."""

    def finish(self, growing: Growing, width: int, request: Request) -> None:
        """Write the trees, and the law of drawn ones."""


@dataclass(frozen=True)
class Layers:
    """`treespec::device::LayerOptions`: the best of everything seen, a call per layer."""

    max_depth: int
    max_calls: int = UNLIMITED
    width: int = UNLIMITED
    threshold: float = 0.0
    floor: float = 0.0
    width_ratio: float = 0.0
    constant_growth: bool = False

    def workspace_bytes(self, batch: int, nodes: int, width: int) -> int:
        size: int = native.ops.layers_workspace_bytes(batch, nodes)
        return size

    def room(self, nodes: int) -> int:
        return nodes - 1

    def num_calls(self, nodes: int, depth: int) -> int:
        # Calls that do not go deeper are bounded by their number and by the nodes to expand.
        return min(self.max_calls, nodes) if self.constant_growth else min(self.max_depth, depth)

    def begin(self, growing: Growing, width: int, request: Request) -> None:
        stream, (workspace, frontier, trees, _, status) = _stream(growing), growing
        native.ops.begin_layers(stream, self, request, trees, workspace, frontier, status)

    def grow(
        self, growing: Growing, key: torch.Tensor | None, lists: CandidateLists | FrontierLists
    ) -> None:
        stream, (workspace, frontier, trees, _, status) = _stream(growing), growing
        native.ops.grow_layer(stream, self, lists, trees, workspace, frontier, status)

    def finish(self, growing: Growing, width: int, request: Request) -> None:
        native.ops.finish_layers(_stream(growing), request, growing.workspace, growing.trees)


@dataclass(frozen=True)
class Places:
    """Fixed places, a call per level: the likeliest tokens, or draws."""

    shape: Shape
    proposal: str

    def workspace_bytes(self, batch: int, nodes: int, width: int) -> int:
        places = len(self.shape.parent)
        size: int = native.ops.shape_workspace_bytes(batch, nodes, places, width, self.proposal)
        return size

    def room(self, nodes: int) -> int:
        return nodes - 1

    def num_calls(self, nodes: int, depth: int) -> int:
        return self.shape.depth

    def begin(self, growing: Growing, width: int, request: Request) -> None:
        stream, (workspace, frontier, trees, _, status) = _stream(growing), growing
        shape = (self.shape, width, self.proposal)
        native.ops.begin_shape(stream, *shape, request, trees, workspace, frontier, status)

    def grow(
        self, growing: Growing, key: torch.Tensor | None, lists: CandidateLists | FrontierLists
    ) -> None:
        stream, (workspace, frontier, trees, _, status) = _stream(growing), growing
        drawn = (self.proposal, key if self.proposal != "deterministic" else None)
        native.ops.grow_shape(stream, self.shape, *drawn, lists, trees, workspace, frontier, status)

    def finish(self, growing: Growing, width: int, request: Request) -> None:
        stream, (workspace, _, trees, law, _) = _stream(growing), growing
        shape = (self.shape, width, self.proposal)
        native.ops.finish_shape(stream, *shape, request, workspace, trees, law)


@dataclass(frozen=True)
class Paths:
    """`treespec::device::PathOptions`: independent paths, a call per level."""

    max_depth: int
    rollouts: bool
    num_paths: int
    trunk: int
    branch: int
    lengths: torch.Tensor | None = None

    def workspace_bytes(self, batch: int, nodes: int, width: int) -> int:
        size: int = native.ops.paths_workspace_bytes(batch, nodes, width)
        return size

    def room(self, nodes: int) -> int:
        return max(nodes - 1, self.num_paths)

    def num_calls(self, nodes: int, depth: int) -> int:
        return min(self.max_depth, depth)

    def begin(self, growing: Growing, width: int, request: Request) -> None:
        stream, (workspace, frontier, trees, _, status) = _stream(growing), growing
        options = replace(self, lengths=request.lengths)
        native.ops.begin_paths(stream, options, width, request, trees, workspace, frontier, status)

    def grow(
        self, growing: Growing, key: torch.Tensor | None, lists: CandidateLists | FrontierLists
    ) -> None:
        stream, (workspace, frontier, trees, _, status) = _stream(growing), growing
        native.ops.grow_paths(stream, self, key, lists, trees, workspace, frontier, status)

    def finish(self, growing: Growing, width: int, request: Request) -> None:
        stream, (workspace, _, trees, law, _) = _stream(growing), growing
        native.ops.finish_paths(stream, width, request, workspace, trees, law)


@dataclass(frozen=True)
class Slots:
    """`treespec::device::SlotOptions`: the best slots; a call for all nodes that may have some."""

    max_depth: int
    threshold: float
    calibration: torch.Tensor | None

    def workspace_bytes(self, batch: int, nodes: int, width: int) -> int:
        size: int = native.ops.slots_workspace_bytes(batch, nodes, width)
        return size

    def room(self, nodes: int) -> int:
        return nodes - 1

    def num_calls(self, nodes: int, depth: int) -> int:
        return nodes - 1  # a call serves the best node that waits, which is in the tree

    def begin(self, growing: Growing, width: int, request: Request) -> None:
        stream, (workspace, frontier, trees, _, status) = _stream(growing), growing
        native.ops.begin_slots(stream, self, width, request, trees, workspace, frontier, status)

    def grow(
        self, growing: Growing, key: torch.Tensor | None, lists: CandidateLists | FrontierLists
    ) -> None:
        stream, (workspace, frontier, trees, _, status) = _stream(growing), growing
        native.ops.grow_slots(stream, self, key, lists, trees, workspace, frontier, status)

    def finish(self, growing: Growing, width: int, request: Request) -> None:
        stream, (workspace, _, trees, law, status) = _stream(growing), growing
        native.ops.finish_slots(stream, width, request, workspace, trees, law, status)


class Recipe(NamedTuple):
    """What a family is made for.

    Attributes
    ----------
    name, options, proposal
        Of the builder, its options resolved.
    node_budget, max_depth
        Most drafted nodes, and the deepest of them.
    device
        Of its constants.
    """

    name: str
    options: Mapping[str, Any]
    proposal: str
    node_budget: int
    max_depth: int
    device: torch.device


def family_of(
    name: str,
    options: Mapping[str, Any],
    node_budget: int,
    max_depth: int,
    device: torch.device,
) -> Family:
    """The family of a builder with its resolved options.

    Raises
    ------
    ValueError
        For options that the builder does not have, or that do not fit the node budget.
    NotImplementedError
        For builders that do not grow by lists on a device.
    """
    return _family(name, json.dumps(options, sort_keys=True), node_budget, max_depth, device)


@functools.lru_cache(maxsize=64)
def _family(name: str, text: str, node_budget: int, max_depth: int, device: torch.device) -> Family:
    """Made once: a captured graph keeps its constants, and some shapes take long to find."""
    options = json.loads(text)
    builder = _core.TreeBuilder(name, **options)  # knows its options
    builder.begin(node_budget, max_depth)  # refuses a budget that they do not fit
    if name not in _MAKERS:
        raise NotImplementedError(
            f"device: builder must be one of {', '.join(sorted(_MAKERS))} to grow between calls "
            f"of a drafter, got {name}"
        )
    recipe = Recipe(name, options, builder.proposal, node_budget, max_depth, device)
    return _MAKERS[name](recipe)


def grow_tables(
    family: Family,
    lists: CandidateLists,
    key: torch.Tensor | None,
    request: Request,
    trees: Trees,
    law: Law | None,
    status: torch.Tensor,
) -> None:
    """Grow trees from lists that are all there."""
    depth, width = lists.token.shape[1], lists.token.shape[-1]
    growing = Growing.empty(family, width, trees, law, status)
    family.begin(growing, width, request)
    for _ in range(family.num_calls(trees.parent.shape[1], depth)):
        family.grow(growing, key, lists)
    family.finish(growing, width, request)


def _stream(growing: Growing) -> int:
    return native.stream(growing.trees.parent)


def _opt_tree(recipe: Recipe) -> Layers:
    bounds = {key: recipe.options[key] for key in ("threshold", "floor") if key in recipe.options}
    return Layers(recipe.options.get("max_depth", 10), **bounds)


def _eagle2(recipe: Recipe) -> Layers:
    options = recipe.options
    depth = options.get("max_depth", 6)
    return Layers(
        depth,
        depth,
        options.get("width", 10),
        width_ratio=options.get("width_ratio", 0.0),
        constant_growth=options.get("growth", "layer") == "constant",
    )


def _places(recipe: Recipe) -> Places:
    name, options, proposal, node_budget, max_depth, device = recipe
    return Places(Shape.of(name, options, node_budget, max_depth, device), proposal)


def _depth(recipe: Recipe) -> int:
    return min(recipe.options.get("max_depth", recipe.max_depth), recipe.max_depth)


def _rollouts(recipe: Recipe) -> Paths:
    return Paths(_depth(recipe), True, recipe.options.get("num_paths", 4), -1, -1)


def _delayed(recipe: Recipe) -> Paths:
    lengths = (recipe.options.get("trunk", -1), recipe.options.get("branch", -1))
    return Paths(_depth(recipe), False, recipe.options.get("num_paths", 3), *lengths)


def _dyspec(recipe: Recipe) -> Slots:
    return Slots(_depth(recipe), 0.0, calibration_of(recipe.options, recipe.device))


def _dyspec_threshold(recipe: Recipe) -> Slots:
    by_budget = -1.0  # one over the budget of the sequence
    threshold = recipe.options.get("threshold", by_budget)
    return Slots(_depth(recipe), threshold, calibration_of(recipe.options, recipe.device))


_MAKERS: dict[str, Callable[[Recipe], Family]] = {
    "eagle2": _eagle2,
    "opt_tree": _opt_tree,
    **dict.fromkeys((*FIXED_SHAPES, *DRAWN_SHAPES), _places),
    "delayed": _delayed,
    "rollouts": _rollouts,
    "dyspec": _dyspec,
    "dyspec_threshold": _dyspec_threshold,
}
