# SPDX-License-Identifier: Apache-2.0
"""Growth on a CPU: native growths are played again from the lists that were handed in so far.

A native growth is an object, which no tensor can hold; its lists are numbers, and they say it all.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from treespec import _core
from treespec.device.growth import check_lengths
from treespec.device.trees import Trees
from treespec.static.growth import GrowthState
from treespec.static.host_trees import write_law, written_key


class Record:
    """What each sequence took, in the workspace of a state.

    Attributes
    ----------
    lengths
        ``[B, 3]`` int32: num_paths, trunk and branch of its own; 0, 0, 0 for those of the options.
    count
        ``[B]``: how many lists.
    token, logprob
        ``[B, max_rows, K]`` int32 and float32, in the order of hand-over.
    """

    def __init__(self, state: GrowthState, num_candidates: int) -> None:
        batch, words = len(state.num_waiting), state.workspace.numpy().view(np.int32)
        token, logprob = np.split(words[4 * batch :], 2)
        shape = (batch, -1, num_candidates)
        self.count, self.lengths = words[:batch], words[batch : 4 * batch].reshape(batch, 3)
        self.token, self.logprob = token.reshape(shape), logprob.view(np.float32).reshape(shape)

    def append(self, b: int, token: npt.NDArray[Any], logprob: npt.NDArray[Any]) -> None:
        """Keep the lists of a frontier."""
        begin, end = int(self.count[b]), int(self.count[b]) + len(token)
        if end > self.token.shape[1]:
            raise ValueError(
                f"grow: max_rows must be at least {end}, the nodes that sequence {b} has handed "
                f"over, got {self.token.shape[1]}"
            )
        self.token[b, begin:end], self.logprob[b, begin:end] = token, logprob
        self.count[b] = end


class Replay:
    """The growths of a batch.

    Parameters
    ----------
    builder, options, node_budget, num_candidates
        As of `GrowthRecipe`.
    state
        Of the batch.
    root, key
        ``[B]`` and ``[B, 2]``, see `treespec.static.ops.begin_growth`.
    """

    def __init__(
        self,
        builder: str,
        options: str,
        node_budget: int,
        num_candidates: int,
        state: GrowthState,
        root: torch.Tensor,
        key: torch.Tensor,
    ) -> None:
        self._name, self._options = builder, options
        self._builder = _batched_builder(builder, options)
        self._node_budget = node_budget
        self._state, self._record = state, Record(state, num_candidates)
        self._root, self._key = root.tolist(), key.tolist()

    def begin(self, lengths: torch.Tensor | None) -> None:
        """Forget all lists; the frontiers are the roots."""
        self._record.count[:] = 0
        self._record.lengths[:] = 0 if lengths is None else self._checked(lengths)
        for b in range(len(self._root)):
            self._show_frontier(b, self._growth(b))

    def grow(self, token: torch.Tensor, logprob: torch.Tensor) -> None:
        """Take ``[B, rows, K]`` lists of the frontiers and replace these."""
        tokens, logprobs = token.numpy(), logprob.numpy()
        for b in range(len(self._root)):
            growth = self._growth(b)
            waiting = len(growth.frontier())
            if waiting == 0:
                continue
            if waiting > tokens.shape[1]:
                raise ValueError(
                    f"grow: token must have a list for each of the {waiting} nodes that sequence "
                    f"{b} waits for, got {tokens.shape[1]}"
                )
            lists = tokens[b, :waiting], logprobs[b, :waiting]
            self._record.append(b, *lists)
            growth.supply_lists(*lists)
            self._show_frontier(b, growth)

    def finish(self) -> None:
        """Write the trees and their law."""
        grown = [self._growth(b).finish(root) for b, root in enumerate(self._root)]
        trees, law = self._state.trees, self._state.law
        packed = Trees.pack(grown, self._node_budget + 1, "cpu")
        for own, written in zip(trees, packed, strict=True):
            own.copy_(written)
        if self._builder.proposal != "deterministic":
            write_law(grown, law.arrays)

    def _growth(self, b: int) -> _core.TreeGrowth:
        """That of a sequence, where its lists have brought it."""
        record, taken = self._record, 0
        builder = self._builder
        if record.lengths[b].any():
            builder = _builder_of_lengths(self._options, *record.lengths[b].tolist())
        growth = builder.begin(self._node_budget, **written_key(self._key[b]))
        while taken < record.count[b]:
            end = taken + len(growth.frontier())
            growth.supply_lists(record.token[b, taken:end], record.logprob[b, taken:end])
            taken = end
        return growth

    def _checked(self, lengths: torch.Tensor) -> npt.NDArray[np.int32]:
        """Lengths that the options hold; the rest is for the builder to check."""
        check_lengths("begin_growth", self._name, lengths)
        most = json.loads(self._options).get("num_paths", 3)
        for b, (num_paths, *_) in enumerate(lengths.tolist()):
            if not 1 <= num_paths <= most:
                raise ValueError(
                    f"begin_growth: lengths of sequence {b} must have num_paths in [1, {most}], "
                    f"got {num_paths}"
                )
        checked: npt.NDArray[np.int32] = lengths.numpy()
        return checked

    def _show_frontier(self, b: int, growth: _core.TreeGrowth) -> None:
        nodes = growth.frontier(self._root[b])
        count, frontier = len(nodes), self._state.frontier
        room = frontier.index.shape[1]
        if count > room:
            raise ValueError(f"grow: sequence {b} must wait for at most {room} nodes, got {count}")
        frontier.num_nodes[b] = count
        for name, padding in (("index", -1), ("parent", -1), ("token", 0), ("depth", 0)):
            column = getattr(frontier, name)[b]
            column[:count] = torch.from_numpy(getattr(nodes, name))
            column[count:] = padding
        frontier.state[b] = 0


@functools.lru_cache(maxsize=64)
def _batched_builder(name: str, options: str) -> _core.TreeBuilder:
    """The builder for growing by calls of a drafter.

    `dyspec` waits for many nodes at a time there, whatever its option says: the trees are the same.
    """
    named = json.loads(options)
    if name == "dyspec":
        named.pop("evaluation", None)
    builder = _core.TreeBuilder(name, **named)
    builder.check_source_kind("Expander")
    return builder


@functools.lru_cache(maxsize=512)
def _builder_of_lengths(options: str, num_paths: int, trunk: int, branch: int) -> _core.TreeBuilder:
    """`delayed` with lengths in place of its options'."""
    lengths = {"num_paths": num_paths, "trunk": trunk, "branch": branch}
    return _core.TreeBuilder("delayed", **{**json.loads(options), **lengths})
