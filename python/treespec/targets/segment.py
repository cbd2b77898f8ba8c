# SPDX-License-Identifier: Apache-2.0
"""New rows of a sequence in a forward, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from treespec.targets.base import Int32Array


class SequenceRows(Protocol):
    """Keys and values of one sequence.

    Attributes
    ----------
    capacity
        The number of rows it may have.
    length, pending
        Committed rows; rows behind them that the last forwards have written.
    """

    capacity: int
    length: int
    pending: int

    def reserve(self, capacity: int) -> None:
        """Grow to `capacity` rows if there are fewer; rows keep their content."""
        ...

    def truncate(self, length: int) -> None:
        """Forget every row from `length` on, pending ones included."""
        ...

    def commit(self, nodes: npt.NDArray[np.integer[Any]]) -> None:
        """Keep pending rows `nodes` (ascending) behind the prefix and drop the others."""
        ...

    def release(self) -> None:
        """Drop all rows and their memory."""
        ...


@dataclass(frozen=True)
class Segment:
    """New rows of one sequence in a forward.

    Slots are the uncommitted rows behind the prefix, S in all; the segment computes slots
    ``[first, S)`` and sees the earlier ones, which an earlier forward has written.

    Attributes
    ----------
    sequence
        Where keys and values go, a `SequenceRows` of the model's own kind.
    token_ids
        ``[S - first]`` int32.
    parent
        ``[S]`` int32, the parent slot of every slot, -1 for a child of the prefix; None is a chain.
    depth
        ``[S]`` int32: the position of a slot is the length of the prefix + its depth. None with a
        chain.
    first
        The first slot to compute.
    """

    sequence: Any
    token_ids: Int32Array
    parent: Int32Array | None = None
    depth: Int32Array | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_slots(self) -> int:
        """S."""
        return self.first + len(self.token_ids)

    @property
    def query_depth(self) -> Int32Array:
        """``[S - first]`` int32: depths of the new rows."""
        if self.depth is None:
            return np.arange(self.first, self.num_slots, dtype=np.int32)
        return self.depth[self.first :]

    def check(self) -> None:
        """Raise ValueError when the segment is empty, skips slots or does not fit its sequence."""
        sequence, end = self.sequence, self.sequence.length + self.num_slots
        if len(self.token_ids) == 0:
            raise ValueError("Segment: token_ids must not be empty")
        if not 0 <= self.first <= sequence.pending:
            raise ValueError(f"Segment: first must be in [0, {sequence.pending}], got {self.first}")
        if end > sequence.capacity:
            raise ValueError(
                f"Segment: KV capacity must be at least {end}, got {sequence.capacity}"
            )
        for name, slots in (("parent", self.parent), ("depth", self.depth)):
            if slots is not None and len(slots) != self.num_slots:
                raise ValueError(f"Segment: {name} must be [{self.num_slots}], got [{len(slots)}]")
        if (self.parent is None) != (self.depth is None):
            raise ValueError("Segment: parent and depth must be given together")


def check_segments(segments: Sequence[Segment]) -> None:
    """ValueError unless there is one, each is sound, and they belong to different sequences."""
    if not segments:
        raise ValueError("forward: segments must not be empty")
    if len({id(segment.sequence) for segment in segments}) < len(segments):
        raise ValueError("forward: segments must belong to different sequences")
    for segment in segments:
        segment.check()


def check_prompts(
    sequences: Sequence[SequenceRows], token_ids: Sequence[npt.NDArray[np.integer[Any]]]
) -> None:
    """ValueError for a prompt that is empty or has no room: before the first of its forwards."""
    for sequence, ids in zip(sequences, token_ids, strict=True):
        if len(ids) == 0:
            raise ValueError("prefill: token_ids must not be empty")
        if sequence.length + len(ids) > sequence.capacity:
            raise ValueError(
                f"prefill: KV capacity must be at least {sequence.length + len(ids)}, "
                f"got {sequence.capacity}"
            )


def check_kept(sequence: SequenceRows, nodes: npt.NDArray[np.integer[Any]]) -> None:
    """ValueError unless `nodes` are pending rows of the sequence, strictly ascending."""
    if not len(nodes):
        return
    ascending = bool((nodes[1:] > nodes[:-1]).all())
    if nodes[0] < 0 or nodes[-1] >= sequence.pending or not ascending:
        raise ValueError(
            f"commit: nodes must ascend within [0, {sequence.pending}), got {nodes.tolist()}"
        )


def rooted(
    parent: Int32Array, depth: Int32Array, first: int, prefix: int
) -> tuple[Int32Array, Int32Array, int, int]:
    """The slots as one tree: of a forest the last row of the prefix becomes the root.

    Parameters
    ----------
    parent, depth
        ``[S]`` int32; -1 is a child of the prefix, which must have a row when there are several.
    first, prefix
        The first query slot; the number of committed rows.
    """
    if not (parent[1:] < 0).any():
        return parent, depth, first, prefix
    parent = np.concatenate([[-1], parent + 1]).astype(np.int32)
    depth = np.concatenate([[0], depth + 1]).astype(np.int32)
    return parent, depth, first + 1, prefix - 1
