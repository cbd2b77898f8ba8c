# SPDX-License-Identifier: Apache-2.0
"""Keys and values of many sequences in one pool, so that a batch is a slice of it.

Every cache input of a graph has one buffer ``[slots, heads, rows, width]``. The sequences of a
forward are moved next to each other when they are not, which happens when others have ended; the
copy is small beside the weights that a forward reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.export.manifest import CacheInput
from treespec.targets.base import Array
from treespec.targets.memory import Memory
from treespec.targets.segment import check_kept

# Attention reads all rows of a buffer, used or not: buffers grow by so many at a time.
BLOCK_ROWS = 128


class KvSlot:
    """The keys and values of one sequence, as `treespec.targets.segment.SequenceRows`.

    Attributes
    ----------
    place
        Its slot of the pool; None until a forward needs it.
    """

    def __init__(self, pool: KvPool, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"open: capacity must be at least 1, got {capacity}")
        self.pool, self.capacity = pool, capacity
        self.length = self.pending = 0
        self.place: int | None = None

    @property
    def used(self) -> int:
        """Rows that hold something."""
        return self.length + self.pending

    def reserve(self, capacity: int) -> None:
        """Grow to `capacity` rows if there are fewer; rows keep their content."""
        self.capacity = max(self.capacity, capacity)

    def truncate(self, length: int) -> None:
        """Forget every row from `length` on, pending ones included."""
        if not 0 <= length <= self.length:
            raise ValueError(f"truncate: length must be in [0, {self.length}], got {length}")
        self.length, self.pending = length, 0

    def commit(self, nodes: npt.NDArray[np.integer[Any]]) -> None:
        """Keep pending rows `nodes` (``[m]``, strictly ascending) behind the prefix and drop the
        others.

        Raises
        ------
        ValueError
            If a node is not pending or the order is wrong; nothing has changed then.
        """
        check_kept(self, nodes)
        count = len(nodes)
        if count and nodes[-1] >= count:  # otherwise every row is in its place
            self.pool.move_rows(self, nodes.astype(np.int32))
        self.length += count
        self.pending = 0

    def release(self) -> None:
        """Drop all rows and their memory."""
        self.length = self.pending = 0
        self.pool.free(self)


class KvPool:
    """Buffers of all cache inputs of a graph.

    Parameters
    ----------
    cache
        The inputs.
    dtype
        Of keys and values.
    memory
        Where they are.
    rows
        Rows of every slot; None: as many as the longest sequence needs, in blocks.

    Attributes
    ----------
    buffers
        ``[slots, heads, rows, width]`` in the order of `cache`; none while no sequence has rows.
    """

    def __init__(
        self, cache: Sequence[CacheInput], dtype: str, memory: Memory, rows: int | None = None
    ) -> None:
        self._cache, self._dtype, self._memory, self._fixed = tuple(cache), dtype, memory, rows
        self.buffers: list[Array] = []
        self._slots: list[KvSlot | None] = []
        self._slices: dict[tuple[int, int], list[Array]] = {}

    @property
    def rows(self) -> int:
        """Rows of every slot."""
        return int(self.buffers[0].shape[2]) if self.buffers else 0

    def open(self, capacity: int) -> KvSlot:
        """A new, empty sequence of up to `capacity` rows."""
        if self._fixed is not None and capacity > self._fixed:
            raise ValueError(
                f"open: capacity must be at most {self._fixed}, which the engine is built for, "
                f"got {capacity}"
            )
        return KvSlot(self, capacity)

    def place(self, sequences: Sequence[KvSlot], rows: int) -> int:
        """Make the sequences neighbours with at least `rows` rows each; the first slot of them.

        New ones are placed in the given order.
        """
        placed = [s for s in sequences if s.place is not None]
        if len(placed) == len(sequences) and rows <= self.rows:
            places = [s.place or 0 for s in placed]
            first = min(places)
            if max(places) - first < len(places):
                return first
        kept = sum(slot is not None for slot in self._slots)
        self._resize(kept + len(sequences) - len(placed), rows)
        first = self._best_window({s.place for s in placed if s.place is not None}, len(sequences))
        window = range(first, first + len(sequences))
        outside = [s for s in sequences if s.place is None or s.place not in window]
        free = [at for at in window if self._slots[at] not in sequences]
        for sequence, at in zip(outside, free, strict=True):
            self._move(sequence, at)
        return first

    def slices(self, first: int, count: int) -> list[Array]:
        """The buffers of neighbouring slots; the same list as long as they are the same memory."""
        if (first, count) not in self._slices:
            self._slices[first, count] = [b[first : first + count] for b in self.buffers]
        return self._slices[first, count]

    def write(self, sequence: KvSlot, row: int, rows: Sequence[Array]) -> None:
        """Store `rows` ``[heads, n, width]`` of every cache input at ``row ..``."""
        for buffer, states in zip(self.buffers, rows, strict=True):
            buffer[sequence.place, :, row : row + states.shape[1]] = states

    def move_rows(self, sequence: KvSlot, nodes: npt.NDArray[np.int32]) -> None:
        """Move rows ``length + nodes[d]`` to ``length + d``."""
        own = [buffer[sequence.place] for buffer in self.buffers]
        self._memory.commit(own, sequence.length, nodes)

    def free(self, sequence: KvSlot) -> None:
        """Give a slot back; the last one takes the buffers with it."""
        if sequence.place is not None:
            self._slots[sequence.place] = None
            sequence.place = None
        if not any(self._slots):
            self.buffers, self._slots, self._slices = [], [], {}

    def _resize(self, slots: int, rows: int) -> None:
        """Grow to at least so many slots and rows; what is there stays."""
        slots = max(slots, len(self._slots))
        rows = self._fixed or max(-(-rows // BLOCK_ROWS) * BLOCK_ROWS, self.rows)
        if slots == len(self._slots) and rows == self.rows:
            return
        used = max((slot.used for slot in self._slots if slot is not None), default=0)
        grown = []
        for one in self._cache:
            grown.append(self._memory.zeros((slots, one.heads, rows, one.width), self._dtype))
        for old, new in zip(self.buffers, grown, strict=bool(self.buffers)):
            new[: len(old), :, :used] = old[:, :, :used]
        self.buffers, self._slices = grown, {}
        self._slots += [None] * (slots - len(self._slots))

    def _best_window(self, places: set[int], count: int) -> int:
        """The first of `count` neighbouring slots that hold the most of `places`, then the fewest
        other sequences.
        """

        def cost(first: int) -> tuple[int, int]:
            window = range(first, first + count)
            others = sum(self._slots[at] is not None for at in window if at not in places)
            return -sum(at in places for at in window), others

        return min(range(len(self._slots) - count + 1), key=cost)

    def _move(self, sequence: KvSlot, place: int) -> None:
        """Put a sequence into a slot; who was there gets its old one, or a free one."""
        other, old = self._slots[place], sequence.place
        if other is not None:
            if old is None:
                old = next(at for at, slot in enumerate(self._slots) if slot is None)
            self._copy(place, old, other.used, exchange=sequence.used)
        elif old is not None:
            self._copy(old, place, sequence.used)
        if old is not None:
            self._slots[old] = other
            if other is not None:
                other.place = old
        self._slots[place], sequence.place = sequence, place

    def _copy(self, source: int, goal: int, rows: int, exchange: int = 0) -> None:
        """Copy the first rows of a slot to another, whose own first `exchange` come back."""
        for buffer in self.buffers:
            back = self._memory.copy(buffer[goal, :, :exchange])
            buffer[goal, :, :rows] = buffer[source, :, :rows]
            buffer[source, :, :exchange] = back
