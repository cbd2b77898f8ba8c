# SPDX-License-Identifier: Apache-2.0
"""Forwards of an exported causal language model over segments of many sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from treespec import _core
from treespec.targets.base import Array, TargetStates
from treespec.targets.graph_session import GraphSession
from treespec.targets.kv_slots import KvPool, KvSlot
from treespec.targets.segment import Segment, check_prompts, check_segments, rooted

# Rows per prefill forward, all sequences together: bounds activations and masks of long prompts.
PREFILL_ROWS = 512

# What a forward costs however few rows it has, in rows: reading the weights.
_FIXED_ROWS = 16


@dataclass(frozen=True)
class _Batch:
    """Segments on neighbouring slots, and the shape they are padded to.

    Attributes
    ----------
    first
        The slot of the first segment; they follow in the order of their slots.
    nodes
        N: rows of every sequence.
    capacity
        S: rows of its cache.
    """

    segments: Sequence[Segment]
    first: int
    nodes: int
    capacity: int


class GraphRunner:
    """Runs segments through a graph of kind ``causal_lm``, padded to a rectangle.

    Padding sees nothing but itself, nobody sees it, and its rows are written behind those of its
    own sequence, where the next forward overwrites them.

    Parameters
    ----------
    session
        The loaded graph.

    Attributes
    ----------
    lock
        To be held from a forward until its results have been read.
    """

    def __init__(self, session: GraphSession) -> None:
        self._session, self.manifest = session, session.manifest
        self.lock = RLock()
        self._in_place = self.manifest.cache_style == "in_place"
        self.pool = KvPool(
            self.manifest.cache, self.manifest.dtype, session.memory, session.capacity
        )

    @property
    def device(self) -> Any:
        """Where logits and states are."""
        return self._session.memory.device

    def check_nodes(self, nodes: int) -> None:
        """Refuse a tree, of so many nodes with its root, that is larger than the graph is made for.

        Raises
        ------
        ValueError
            With the limit, and how to have a higher one.
        """
        most, manifest = self.manifest.max_nodes, self.manifest
        if nodes > most:
            raise ValueError(
                f"forward: trees must have at most {most} nodes with their root, which the "
                f"{manifest.role} {manifest.model} was exported or its engine built for, got "
                f"{nodes}; lower node_budget, or raise max_nodes"
            )

    def forward(
        self,
        segments: Sequence[Segment],
        *,
        logits: Literal["all", "last"] = "all",
        features: bool = False,
    ) -> tuple[list[Array], list[Array | None]]:
        """Compute all segments; their rows become pending in their sequences.

        Parameters
        ----------
        segments
            At least one; no sequence twice.
        logits
            The rows to compute logits for: all, or the last of every segment.
        features
            Whether the states of the exported layers are wanted.

        Returns
        -------
        logits, features
            Per segment ``[n, V]`` or ``[1, V]``, and ``[n, layers_width]`` or None. They hold until
            the next call.

        Raises
        ------
        ValueError
            If a segment does not fit, or all logits are wanted of more rows than the graph is made
            for; nothing has changed then.
        """
        check_segments(segments)
        if logits == "all":
            self.check_nodes(max(map(len, segments)))
        limit = most_together(
            self._session,
            [segment.sequence.length + segment.first for segment in segments],
            max(len(segment) for segment in segments),
        )
        if len(segments) > limit:
            parts = [
                self._copied(segments[begin : begin + limit], logits, features)
                for begin in range(0, len(segments), limit)
            ]
            return [r for rows, _ in parts for r in rows], [s for _, rows in parts for s in rows]
        batch = self._placed(segments)
        order = sorted(range(len(segments)), key=lambda i: segments[i].sequence.place)
        rows, states = self._run(batch, logits, features)
        for segment in segments:
            segment.sequence.pending = segment.num_slots
        back = sorted(range(len(order)), key=order.__getitem__)
        return [rows[at] for at in back], [states[at] for at in back]

    def prefill(
        self,
        sequences: Sequence[KvSlot],
        token_ids: Sequence[npt.NDArray[np.integer[Any]]],
        *,
        features: bool = False,
        every_row: bool = False,
        max_rows: int = PREFILL_ROWS,
    ) -> tuple[list[Array], list[TargetStates]]:
        """Append tokens to sequences and commit them.

        Parameters
        ----------
        sequences, token_ids
            B different sequences; B non-empty integer arrays of any lengths.
        features
            Whether states are wanted.
        every_row
            Logits of all tokens instead: for each sequence a list of parts ``[n, V]``.
        max_rows
            The most rows per forward, padding included.

        Returns
        -------
        logits, states
            B rows ``[V]`` after the last token of each sequence; B states over its new tokens.

        Raises
        ------
        ValueError
            If tokens are missing or do not fit. After any failure the sequences are as before.
        """
        check_prompts(sequences, token_ids)
        lengths = [sequence.length for sequence in sequences]
        logits: dict[int, Any] = {}
        parts: list[list[TargetStates]] = [[] for _ in sequences]
        # Long ones first: those that still have tokens stay neighbours.
        rest = sorted(range(len(sequences)), key=lambda i: -len(token_ids[i]))
        done = [0] * len(sequences)
        try:
            while rest:
                left = [len(token_ids[i]) - done[i] for i in rest]
                most = max(1, max_rows // len(rest))
                count = _chunk(left, min(most, self._session.max_rows or most))
                segments = [
                    Segment(sequences[i], token_ids[i][done[i] : done[i] + count].astype(np.int32))
                    for i in rest
                ]
                rows, states = self._copied(segments, "all" if every_row else "last", features)
                for i, segment, row, own in zip(rest, segments, rows, states, strict=True):
                    sequences[i].commit(np.arange(len(segment)))
                    done[i] += len(segment)
                    logits[i] = [*logits.get(i, ()), row] if every_row else row[0]
                    parts[i].append(TargetStates(own))
                rest = [i for i in rest if done[i] < len(token_ids[i])]
        except BaseException:
            for sequence, length in zip(sequences, lengths, strict=True):
                sequence.truncate(length)
            raise
        return [logits[i] for i in range(len(sequences))], [TargetStates.join(p) for p in parts]

    def _copied(
        self, segments: Sequence[Segment], logits: Literal["all", "last"], features: bool
    ) -> tuple[list[Array], list[Array | None]]:
        """`forward` with results that hold for good."""
        copy = self._session.memory.copy
        rows, states = self.forward(segments, logits=logits, features=features)
        return [copy(one) for one in rows], [s if s is None else copy(s) for s in states]

    def _placed(self, segments: Sequence[Segment]) -> _Batch:
        sequences = [segment.sequence for segment in segments]
        starts = [s.sequence.length + s.first for s in segments]
        longest = max(len(segment) for segment in segments)
        room = (self._session.capacity or max(starts) + longest) - max(starts)
        nodes = self._session.padded("nodes", longest, room)
        first = self.pool.place(sequences, max(starts) + nodes)
        ordered = sorted(segments, key=lambda segment: segment.sequence.place)
        return _Batch(ordered, first, nodes, self.pool.rows)

    def _run(
        self, batch: _Batch, logits: Literal["all", "last"], features: bool
    ) -> tuple[list[Array], list[Array | None]]:
        segments, count = batch.segments, len(batch.segments)
        inputs = self._inputs(batch)
        ends = sorted({len(segment) - 1 for segment in segments})
        inputs["logit_rows"] = np.arange(batch.nodes) if logits == "all" else np.array(ends)
        names = ["logits", "features"] if features else ["logits"]
        cache = self.pool.slices(batch.first, count)
        out = self._session.run(inputs, cache, names)
        if not self._in_place:
            self._write(batch, out)
        if logits == "all":
            rows = [out["logits"][b, : len(segment)] for b, segment in enumerate(segments)]
        else:
            place = [ends.index(len(segment) - 1) for segment in segments]
            rows = [out["logits"][b, at : at + 1] for b, at in enumerate(place)]
        if not features:
            return rows, [None] * count
        return rows, [out["features"][b, : len(segment)] for b, segment in enumerate(segments)]

    def _inputs(self, batch: _Batch) -> dict[str, npt.NDArray[Any]]:
        """All but the logit rows and the caches."""
        shape = (len(batch.segments), batch.nodes)
        ids, positions = np.zeros(shape, np.int64), np.empty(shape, np.int64)
        starts = np.empty(shape[0], np.int64)
        keys = batch.capacity if self._in_place else batch.capacity + batch.nodes
        masks = {
            one.name: np.zeros((shape[0], 1, batch.nodes, keys), np.bool_)
            for one in self.manifest.masks
        }
        for b, segment in enumerate(batch.segments):
            count, prefix = len(segment), segment.sequence.length
            ids[b, :count] = segment.token_ids
            positions[b] = prefix
            positions[b, :count] += segment.query_depth
            starts[b] = prefix + segment.first
            # Where the keys of the new rows are.
            own = int(starts[b]) if self._in_place else batch.capacity
            for one in self.manifest.masks:
                fill_segment_mask(masks[one.name][b, 0], segment, one.window, own)
        inputs = {"input_ids": ids, "position_ids": positions, **masks}
        return {**inputs, "write_index": starts} if self._in_place else inputs

    def _write(self, batch: _Batch, out: dict[str, Any]) -> None:
        """Put new rows into the cache; those of the padding are dropped."""
        for b, segment in enumerate(batch.segments):
            rows = [out[one.output][b, :, : len(segment)] for one in self.manifest.cache]
            self.pool.write(segment.sequence, segment.sequence.length + segment.first, rows)


def most_together(session: GraphSession, starts: Sequence[int], rows: int) -> int:
    """Most sequences of a run that writes `rows` rows, padding included, at the rows `starts`."""
    capacity = session.capacity
    if capacity is not None and max(starts) + rows > capacity:
        return 1  # they fit each by itself, without the padding
    return session.max_batch or len(starts)


def fill_segment_mask(
    rows: npt.NDArray[np.bool_], segment: Segment, window: int | None, own: int
) -> None:
    """Say what a segment sees.

    Parameters
    ----------
    rows
        ``[N, keys]``, all False. Rows behind the segment are padding.
    window
        The sliding window, or None.
    own
        The key of the first new row; keys before the new rows are rows of the cache.
    """
    count, prefix = len(segment), segment.sequence.length
    slots = np.arange(segment.num_slots, dtype=np.int32)
    parent = slots - 1 if segment.parent is None else segment.parent
    depth = slots if segment.depth is None else segment.depth
    seen = np.empty((count, prefix + len(slots)), np.bool_)
    _core.fill_mask(*rooted(parent, depth, segment.first, prefix), window or 0, seen)
    written = prefix + segment.first
    rows[:count, :written] = seen[:, :written]
    rows[:count, own : own + count] = seen[:, written:]
    if count < len(rows):
        padding = np.arange(count, len(rows))
        rows[padding, own + padding] = True


def _chunk(left: Sequence[int], most: int) -> int:
    """How many rows to run next, when sequences have so many tokens left: the cheapest, if what it
    leaves is then run without padding.
    """

    def cost(count: int) -> int:
        rest = sum(max(0, tokens - count) for tokens in left)
        return _FIXED_ROWS + len(left) * count + (_FIXED_ROWS + rest if rest else 0)

    return min(sorted({min(tokens, most) for tokens in left}), key=cost)
