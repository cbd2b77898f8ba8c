# SPDX-License-Identifier: Apache-2.0
"""An exported block drafter (DFlash, TreeFlash), on any runtime: one run per round."""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec._core import Marginals, Transitions
from treespec.drafts.base import DraftSettings
from treespec.drafts.rows import in_total_order, truncated
from treespec.export.manifest import BlockShape
from treespec.targets.base import Array, Needs, TargetStates
from treespec.targets.graph_runner import most_together
from treespec.targets.graph_session import GraphSession, block_of
from treespec.targets.kv_slots import KvPool, KvSlot

# Features per run and sequence, unless the runtime takes fewer; a longer prompt takes several runs.
_MAX_FEATURES = 512


class GraphDflashSession:
    """The context of one sequence.

    Attributes
    ----------
    sequence
        Keys and values of positions whose features are older than `features`.
    features
        ``[n, layers_width]``: of the newest positions; pending rows of the sequence are theirs.
    root
        The last observed token.
    """

    def __init__(self, sequence: KvSlot, features: Array) -> None:
        self.sequence, self.features = sequence, features
        self.root: int | None = None

    def settle(self, count: int) -> None:
        """Commit the rows of the first `count` features, which a run has written."""
        self.sequence.commit(np.arange(count))
        self.features = self.features[count:]


class GraphDflashDrafter:
    """Drafts a block in one run.

    Parameters
    ----------
    session
        The loaded graph.

    Raises
    ------
    ValueError
        If it is no drafter of this kind.
    """

    def __init__(self, session: GraphSession) -> None:
        manifest = session.manifest
        self._session, self.manifest, self.block = session, manifest, block_of(manifest)
        self.lock = RLock()
        self._in_place = manifest.cache_style == "in_place"
        self._pool = KvPool(manifest.cache, manifest.dtype, session.memory, session.capacity)
        self.needs = Needs(layers=manifest.layers)
        self.source_kind = "Transitions" if self.block.num_previous else "Marginals"
        self.max_context = manifest.max_context
        self._max_features = min(_MAX_FEATURES, session.max_rows or _MAX_FEATURES)

    def begin(
        self, prompt_ids: npt.NDArray[np.integer[Any]], states: TargetStates | None, capacity: int
    ) -> GraphDflashSession:
        """Open a session; the prompt's features are read by the first `draft`."""
        rows = capacity + self.block.slots
        return GraphDflashSession(self._pool.open(rows), self._features(states))

    def observe(
        self,
        session: GraphDflashSession,
        token_ids: npt.NDArray[np.integer[Any]],
        states: TargetStates | None,
    ) -> None:
        """Append the features of the old root and of the accepted tokens."""
        if states is not None:
            new = self._features(states)
            session.settle(session.sequence.pending)
            joined = TargetStates.join([TargetStates(session.features), TargetStates(new)])
            session.features = joined.features
        if len(token_ids):
            session.root = int(token_ids[-1])

    def draft(
        self, sessions: Sequence[GraphDflashSession], settings: DraftSettings
    ) -> list[Marginals | Transitions]:
        """Ranked lists of every depth, per session; equal ones by ascending token."""
        for session in sessions:
            if session.root is None or not len(session.features):
                raise ValueError("draft: a session must have observed a token and its features")
            while len(session.features) > self._max_features:
                self._run([session], settings)
                session.settle(self._max_features)
        if not sessions:
            return []
        limit = most_together(
            self._session,
            [session.sequence.length for session in sessions],
            max(len(session.features) for session in sessions) + self.block.slots,
        )
        drafted: dict[int, Marginals | Transitions] = {}
        for begin in range(0, len(sessions), limit):
            part = sessions[begin : begin + limit]
            drafted.update(self._sources(part, self._run(part, settings), settings))
        return [drafted[id(session)] for session in sessions]

    def end(self, session: GraphDflashSession) -> None:
        """Release the rows of a session."""
        session.sequence.release()
        session.features = session.features[:0]

    def _sources(
        self,
        sessions: Sequence[GraphDflashSession],
        out: dict[str, npt.NDArray[Any]],
        settings: DraftSettings,
    ) -> dict[int, Marginals | Transitions]:
        """By the session's id: the lists of its depths that a tree may reach."""
        depth, rows = self.block.depth, self.block.num_previous
        if settings.max_depth is not None:
            depth = max(1, min(depth, settings.max_depth))
        lists = 1 + (depth - 1) * rows if rows else depth
        sources: dict[int, Marginals | Transitions] = {}
        for b, session in enumerate(_by_place(sessions)):
            token, logprob = in_total_order(
                out["token"][b, :lists].astype(np.int32),
                truncated(out["logprob"][b, :lists], settings),
            )
            if rows:
                owner = out["owner"][b, : depth - 1].astype(np.int32)
                sources[id(session)] = Transitions.linked(token, logprob, owner)
            else:
                sources[id(session)] = Marginals(token, logprob)
        return sources

    def _run(
        self, sessions: Sequence[GraphDflashSession], settings: DraftSettings
    ) -> dict[str, npt.NDArray[Any]]:
        """Ranked lists of all sequences in the order of their slots; context rows become pending.

        Shorter contexts are padded; what is written for the padding is behind the sequence's rows
        and nobody sees it.
        """
        counts = {id(s): min(len(s.features), self._max_features) for s in sessions}
        most = max(counts.values())
        longest = max(session.sequence.length for session in sessions)
        slots = self.block.slots
        room = (self._session.capacity or longest + most + slots) - longest - slots
        padded = self._session.padded("features", most, room)
        first = self._pool.place([s.sequence for s in sessions], longest + padded + slots)
        ordered = _by_place(sessions)
        own = [counts[id(session)] for session in ordered]
        inputs = self._inputs(ordered, own, padded, settings.temperature)
        names = ["token", "logprob", "owner"] if self.block.num_previous else ["token", "logprob"]
        cache = self._pool.slices(first, len(sessions))
        out = self._session.run(inputs, cache, names)
        for b, (session, count) in enumerate(zip(ordered, own, strict=True)):
            if not self._in_place:
                rows = [out[one.output][b, :, :count] for one in self.manifest.cache]
                self._pool.write(session.sequence, session.sequence.length, rows)
            session.sequence.pending = count
        return {name: self._session.memory.to_host(out[name]) for name in names}

    def _inputs(
        self,
        sessions: Sequence[GraphDflashSession],
        counts: Sequence[int],
        padded: int,
        temperature: float,
    ) -> dict[str, Array]:
        batch, capacity, slots = len(sessions), self._pool.rows, np.arange(self.block.slots)
        keys = capacity if self._in_place else capacity + padded + len(slots)
        shape = (batch, padded, self.manifest.layers_width)
        features = self._session.memory.zeros(shape, self.manifest.dtype)
        starts = np.array([session.sequence.length for session in sessions])
        ends = np.empty_like(starts)  # positions of the roots
        masks = {
            one.name: np.zeros((batch, 1, len(slots), keys), np.bool_)
            for one in self.manifest.masks
        }
        for b, (session, count) in enumerate(zip(sessions, counts, strict=True)):
            features[b, :count] = session.features[:count]
            ends[b] = starts[b] + count
            new = int(starts[b]) if self._in_place else capacity  # the key of the first new row
            for one in self.manifest.masks:
                rows = masks[one.name][b, 0]
                context, block = block_mask(self.block, int(ends[b]), one.window)
                rows[:, : starts[b]] = context[:, : starts[b]]
                rows[:, new : new + count] = context[:, starts[b] :]
                rows[:, new + padded : new + padded + len(slots)] = block
        inputs = {
            "features": features,
            "feature_positions": starts[:, None] + np.arange(padded),
            "root": np.array([session.root for session in sessions], np.int64),
            "block_positions": ends[:, None] + slots,
            "temperature": np.array([temperature], np.float32),
            **masks,
        }
        return {**inputs, "write_index": starts} if self._in_place else inputs

    def _features(self, states: TargetStates | None) -> Array:
        if states is None or states.features is None:
            raise ValueError("draft: states must hold the features of `needs`, got none")
        shape, width = tuple(states.features.shape), self.manifest.layers_width
        if shape[1:] != (width,):
            raise ValueError(f"draft: features must be [n, {width}], got {list(shape)}")
        return self._session.memory.take(states.features, self.manifest.dtype)


def _by_place(sessions: Sequence[GraphDflashSession]) -> list[GraphDflashSession]:
    return sorted(sessions, key=lambda session: session.sequence.place or 0)


def block_mask(
    block: BlockShape, root: int, window: int | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """What the slots of a block see of the context ``[T, root]``, and of each other ``[T, T]``.

    Parameters
    ----------
    root
        Position of the root, which is the number of context rows.
    window
        Of the layers the mask is for.
    """
    queries = root + np.arange(block.slots)[:, None]
    distance = queries - np.arange(root + block.slots)
    seen = np.ones(distance.shape, np.bool_)
    if block.causal or (window is not None and block.windows_causal):
        seen &= distance >= 0
    if window is not None:
        seen &= distance < window
    return seen[:, :root], seen[:, root:]
