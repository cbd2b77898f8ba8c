# SPDX-License-Identifier: Apache-2.0
"""Trees that grow between calls of a drafter: what they are grown by, and where they are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch

from treespec import _core
from treespec.device.families import UNLIMITED, Family, family_of
from treespec.device.growth import Frontier
from treespec.device.trees import Trees
from treespec.device.verify import Law


class GrowthRecipe(NamedTuple):
    """Everything about a growth that is not data.

    Attributes
    ----------
    builder, options
        A name of `treespec.builder_names` and the text of `treespec.static.ops.encode_options`.
    node_budget
        M - 1.
    num_candidates
        K: width of every list.
    vocab_size
        V of the target.
    max_rows
        Most nodes of a sequence that are ever handed over, the root counted: so many lists are
        kept where growth is played again from them, on a CPU.
    """

    builder: str
    options: str
    node_budget: int
    num_candidates: int
    vocab_size: int
    max_rows: int

    @property
    def arguments(self) -> tuple[str, str, int, int, int]:
        """What the ops of a growth take first."""
        return self[:5]

    @property
    def native_builder(self) -> _core.TreeBuilder:
        """The builder with its options."""
        return _core.TreeBuilder(self.builder, **json.loads(self.options))

    def family(self, device: torch.device) -> Family:
        """The native functions that grow such trees on a device.

        Raises
        ------
        ValueError
            For options that do not fit the builder or the node budget.
        NotImplementedError
            For builders that read whole tables.
        """
        options = json.loads(self.options)
        return family_of(self.builder, options, self.node_budget, UNLIMITED, device)


class GrowthState(NamedTuple):
    """Trees of B sequences in the making; tensors are written in place by the ops.

    Attributes
    ----------
    workspace
        Bytes: what the kernels remember between calls.
    num_waiting
        ``[B]``: nodes that wait for their lists; 0 when a tree is grown.
    index, parent, token, depth, state
        ``[B, F]``: these nodes, in order, as `treespec.Frontier` has them. The index is that of the
        first hand-over, the root is 0. Padding: index and parent -1, the rest 0.
    trees
        The grown trees, after `finish_growth`.
    law
        What drawn ones follow, sparse; tensors of deterministic builders are empty.
    """

    workspace: torch.Tensor
    num_waiting: torch.Tensor
    index: torch.Tensor
    parent: torch.Tensor
    token: torch.Tensor
    depth: torch.Tensor
    state: torch.Tensor
    trees: Trees
    law: Law

    @classmethod
    def empty(cls, recipe: GrowthRecipe, batch: int, device: torch.device) -> GrowthState:
        """Room for the trees of a batch, on a device.

        Raises
        ------
        ValueError
            For options that do not fit the builder or the node budget.
        NotImplementedError
            For builders that read whole tables.
        """
        nodes = recipe.node_budget + 1
        size = workspace_bytes(recipe, batch, device)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        trees = Trees.empty(batch, nodes, device)
        frontier = Frontier.empty(trees.parent, batch, recipe.family(device).room(nodes))
        law = Law.empty(trees, recipe.num_candidates, recipe.vocab_size)
        if recipe.native_builder.proposal == "deterministic":
            law = Law.sparse([array.new_empty(0) for array in law.arrays], recipe.vocab_size, 0)
        state = cls(workspace, *frontier, trees, law)
        for tensor in state.tensors:
            tensor.zero_()
        return state

    @classmethod
    def of(
        cls, tensors: Sequence[torch.Tensor], num_candidates: int, vocab_size: int
    ) -> GrowthState:
        """The state whose tensors these are."""
        law = Law.sparse(tensors[14:], vocab_size, num_candidates)
        return cls._make([*tensors[:7], Trees._make(tensors[7:14]), law])

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors, as the ops take them."""
        return [*self[:7], *self.trees, *self.law.arrays]

    @property
    def frontier(self) -> Frontier:
        """The nodes that wait."""
        return Frontier(*self[1:7])


def workspace_bytes(recipe: GrowthRecipe, batch: int, device: torch.device) -> int:
    """Size of a state's workspace on a device."""
    size_of = record_bytes if device.type == "cpu" else kernel_bytes
    return size_of(recipe, batch, device)


def record_bytes(recipe: GrowthRecipe, batch: int, device: torch.device) -> int:
    """Of lengths, the lists that were handed in, and their number (`treespec.static.replay`)."""
    return 4 * batch * (4 + 2 * recipe.max_rows * recipe.num_candidates)


def kernel_bytes(recipe: GrowthRecipe, batch: int, device: torch.device) -> int:
    """Of what the kernels of `treespec.device` keep."""
    family = recipe.family(device)
    return family.workspace_bytes(batch, recipe.node_budget + 1, recipe.num_candidates)
