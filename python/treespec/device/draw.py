# SPDX-License-Identifier: Apache-2.0
"""Step 2 of a round: trees that are drawn from tables of candidates, with the law they follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from treespec import _core
from treespec.builder_options import resolve_options
from treespec.device import native
from treespec.device.candidates import CandidateLists
from treespec.device.growth import Frontier, Request, Shape
from treespec.device.scores import calibration_of
from treespec.device.trees import Trees
from treespec.device.verify import Law

SHAPES = ("chain", "kary", "sequoia", "top_plus_one")
PATHS = ("delayed", "rollouts")
SLOTS = ("dyspec", "dyspec_threshold")
DRAWN_BUILDERS = (*SHAPES, *PATHS, *SLOTS)


class DrawnTrees(NamedTuple):
    """What `treespec.device.verify` wants to know of drawn trees.

    Attributes
    ----------
    trees
        In pop order.
    proposal
        How the tokens were drawn.
    law
        What they were drawn from: the lists of their parents, renormalised.
    """

    trees: Trees
    proposal: str
    law: Law


class _Slots(NamedTuple):
    """`treespec::device::SlotOptions`."""

    max_depth: int
    threshold: float
    calibration: torch.Tensor | None


class _Paths(NamedTuple):
    """`treespec::device::PathOptions`."""

    max_depth: int
    rollouts: bool
    num_paths: int
    trunk: int
    branch: int


class _Growing(NamedTuple):
    """The arrays of trees that are being drawn."""

    lists: CandidateLists
    key: torch.Tensor
    request: Request
    trees: Trees
    law: Law
    status: torch.Tensor

    @property
    def sizes(self) -> tuple[int, int, int]:
        """B, M and K."""
        batch, nodes = self.trees.parent.shape
        return batch, nodes, self.lists.token.shape[-1]

    def state(self, workspace_bytes: int, room: int) -> tuple[Any, ...]:
        """Trees, workspace, a frontier with that room, and status."""
        workspace = native.workspace(self.trees.parent, workspace_bytes)
        frontier = Frontier.empty(self.trees.parent, len(self.trees.parent), room)
        return self.trees, workspace, frontier, self.status


def draw_tree(
    name: str,
    lists: CandidateLists,
    node_budget: int,
    *,
    vocab_size: int,
    seed: torch.Tensor,
    sequence_id: torch.Tensor,
    position: torch.Tensor,
    budgets: torch.Tensor | None = None,
    root_token: torch.Tensor | None = None,
    status: torch.Tensor,
    **options: Any,
) -> DrawnTrees:
    """Draw one tree per sequence: what `treespec.build_tree` draws from the same lists.

    Trees are those of a drafter that is truncated to the tokens of its lists, and the law says so.

    Parameters
    ----------
    name
        One of `DRAWN_BUILDERS`.
    lists, node_budget, budgets, root_token
        As `build_tree` takes them. Paths that do not fit a budget are reported in the status.
    vocab_size
        V of the target.
    seed
        ``[B]`` int64, read as unsigned.
    sequence_id, position
        ``[B]``; the position is the root's. Draws have the numbers of these keys, purpose 0.
    options
        The builder's own. Evaluation of dyspec is batched in any case: the trees are the same.

    Raises
    ------
    ValueError
        For options that do not fit the node budget.
    NotImplementedError
        For builders and options whose trees are not drawn.
    """
    resolved = resolve_options(options)
    builder = _core.TreeBuilder(name, **resolved)  # knows its options
    if name not in DRAWN_BUILDERS or builder.proposal == "deterministic":
        raise NotImplementedError(
            f"device.draw_tree: builder must be one of {', '.join(DRAWN_BUILDERS)} with drawn "
            f"trees, got {name} with {builder.proposal} ones"
        )
    builder.begin(node_budget, lists.token.shape[1])  # refuses a budget that its options do not fit
    key = torch.stack([seed, sequence_id.long() % 2**32 + (position.long() << 32)], 1)
    growing = _Growing(
        lists,
        key,
        Request.of(lists, node_budget, budgets, root_token),
        Trees.empty(len(lists.token), node_budget + 1, lists.token.device),
        _empty_law(lists, node_budget + 1, vocab_size),
        status,
    )
    if name in SHAPES:
        _fill_shape(Shape.of(name, resolved, lists, node_budget), builder.proposal, growing)
    elif name in PATHS:
        _walk_paths(_paths_of(name, resolved, lists), growing)
    else:
        _draw_slots(_slots_of(name, resolved, lists), growing)
    return DrawnTrees(growing.trees, builder.proposal, growing.law)


def _empty_law(lists: CandidateLists, nodes: int, vocab_size: int) -> Law:
    """Room for a list of every node."""
    batch, width = len(lists.token), lists.token.shape[-1]
    rows = batch * nodes
    return Law(
        native.ints(lists.token, batch, nodes),
        lists.logprob.new_empty(rows * width),
        native.ints(lists.token, rows * width),
        lists.token.new_empty(rows + 1, dtype=torch.int64),
        vocab_size,
        width,
    )


def _depth(options: Mapping[str, Any], lists: CandidateLists) -> int:
    depth: int = lists.token.shape[1]
    return min(options.get("max_depth", depth), depth)


def _paths_of(name: str, options: Mapping[str, Any], lists: CandidateLists) -> _Paths:
    rollouts = name == "rollouts"
    num_paths = options.get("num_paths", 4 if rollouts else 3)
    lengths = (options.get("trunk", -1), options.get("branch", -1))
    return _Paths(_depth(options, lists), rollouts, num_paths, *lengths)


def _slots_of(name: str, options: Mapping[str, Any], lists: CandidateLists) -> _Slots:
    by_budget = -1.0  # one over the budget of the sequence
    threshold = 0.0 if name == "dyspec" else options.get("threshold", by_budget)
    return _Slots(_depth(options, lists), threshold, calibration_of(options, lists.token.device))


def _fill_shape(shape: Shape, proposal: str, growing: _Growing) -> None:
    lists, key, request, trees, law, _ = growing
    batch, nodes, width = growing.sizes
    ops, stream = native.ops, native.stream(trees.parent)
    size = ops.shape_workspace_bytes(batch, nodes, len(shape.parent), width, proposal)
    state = growing.state(size, nodes - 1)
    ops.begin_shape(stream, shape, width, proposal, request, *state)
    for _ in range(shape.depth):
        ops.grow_shape(stream, shape, proposal, key, lists, *state)
    ops.finish_shape(stream, shape, width, proposal, request, state[1], trees, law)


def _walk_paths(paths: _Paths, growing: _Growing) -> None:
    lists, key, request, trees, law, _ = growing
    batch, nodes, width = growing.sizes
    ops, stream = native.ops, native.stream(trees.parent)
    size = ops.paths_workspace_bytes(batch, nodes, width)
    state = growing.state(size, max(nodes - 1, paths.num_paths))
    ops.begin_paths(stream, paths, width, request, *state)
    for _ in range(paths.max_depth):
        ops.grow_paths(stream, paths, key, lists, *state)
    ops.finish_paths(stream, width, request, state[1], trees, law)


def _draw_slots(slots: _Slots, growing: _Growing) -> None:
    lists, key, request, trees, law, status = growing
    batch, nodes, width = growing.sizes
    ops, stream = native.ops, native.stream(trees.parent)
    state = growing.state(ops.slots_workspace_bytes(batch, nodes, width), nodes - 1)
    ops.begin_slots(stream, slots, width, request, *state)
    # A call serves the best node that waits, which is in the tree.
    for _ in range(nodes - 1):
        ops.grow_slots(stream, slots, key, lists, *state)
    ops.finish_slots(stream, width, request, state[1], trees, law, status)
