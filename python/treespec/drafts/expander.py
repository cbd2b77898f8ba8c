# SPDX-License-Identifier: Apache-2.0
"""Drafters with a cache of their own, whose trees grow by one forward per level.

What a row is computed from, what its logits mean, and whether they are torch tensors or NumPy
arrays, is the drafter's. The rounds are here: which row every node of a tree has, and when it may
be used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from treespec.drafts.base import DraftSettings, NodeBatch, RankedRows
from treespec.targets.base import Array, Int32Array
from treespec.targets.segment import Segment, SequenceRows

# Room for a wide beam over a few levels; sequences grow when a builder asks for more.
_SPARE_ROWS = 64


@dataclass(frozen=True)
class RootRows:
    """What a drafter knows at a root before it drafts; a selector chooses the tree by it.

    Attributes
    ----------
    before, root
        ``[V_draft]``: logits after the token before the root, and after the root.
    before_state, root_state
        ``[H]``: the states that the output head reads there; None for drafters that are graphs.
    """

    before: Array
    root: Array
    before_state: Array | None = None
    root_state: Array | None = None

    @staticmethod
    def of(logits: Array, states: Array | None, earlier: RootRows | None) -> RootRows | None:
        """From the last rows that were computed, and what was known at the root before them.

        Parameters
        ----------
        logits, states
            ``[n, V_draft]`` and ``[n, H]`` of the last n >= 1 committed tokens.
        earlier
            Used when n is 1: the token before the root was the root.
        """
        root_state = None if states is None else states[-1]
        if len(logits) > 1:
            before_state = None if states is None else states[-2]
            return RootRows(logits[-2], logits[-1], before_state, root_state)
        if earlier is None:
            return None
        return RootRows(earlier.root, logits[-1], earlier.root_state, root_state)


class ExpanderSession:
    """What the rounds of one sequence share.

    Attributes
    ----------
    sequence
        Keys and values of the committed rows, the root's last, and behind them those of the nodes
        of the running round.
    root_logits
        ``[V_draft]``: what the drafter says after the root, once computed; None after `observe`.
    wants_root_rows, root_rows
        Whether `catch_up` is to keep `RootRows`, and those of the last root; None when nobody
        asked, or when the text has one token.
    expander
        The expander of the running round; an older one is refused.
    """

    def __init__(self, sequence: SequenceRows) -> None:
        self.sequence = sequence
        self.root_logits: Array | None = None
        self.wants_root_rows = False
        self.root_rows: RootRows | None = None
        self.expander: TreeExpander | None = None

    def reset_round(self) -> None:
        """Drop everything speculative."""
        self.sequence.truncate(self.sequence.length)
        self.expander = None

    def release(self) -> None:
        """Drop all rows."""
        self.expander = self.root_logits = self.root_rows = None
        self.sequence.release()


SessionT = TypeVar("SessionT", bound=ExpanderSession)


class ExpanderDrafter(ABC, Generic[SessionT]):
    """A drafter that hands out a `TreeExpander` per sequence and round."""

    source_kind = "Expander"
    # Whether `catch_up` keeps `RootRows` when asked, and whether these have states.
    reads_root_rows = False
    has_root_states = False

    def draft(self, sessions: Sequence[SessionT], settings: DraftSettings) -> list[TreeExpander]:
        """Bring all sessions up to their roots, and hand out expanders."""
        for session in sessions:
            session.reset_round()
            session.wants_root_rows = settings.root_rows
        self.catch_up([session for session in sessions if session.root_logits is None])
        expanders = [TreeExpander(self, session, settings) for session in sessions]
        for session, expander in zip(sessions, expanders, strict=True):
            session.expander = expander
        return expanders

    def end(self, session: SessionT) -> None:
        """Release the rows of a session."""
        session.release()

    @abstractmethod
    def catch_up(self, sessions: Sequence[SessionT]) -> None:
        """Compute the rows committed since the last draft, and `root_logits`."""

    @abstractmethod
    def run(self, sessions: Sequence[SessionT], segments: Sequence[Segment]) -> Sequence[Array]:
        """Logits ``[n_i, V_draft]`` of all rows of each segment, in one forward."""

    @abstractmethod
    def log_probs(self, logits: Array, settings: DraftSettings) -> Array | RankedRows:
        """``[n, V]`` of the target from logits ``[n, V_draft]``, or what the settings let pass."""

    @abstractmethod
    def stack(self, rows: Sequence[Array]) -> Array:
        """Rows ``[V_draft]`` as one array ``[n, V_draft]``."""

    def known(self, token_ids: npt.ArrayLike) -> Int32Array:
        """Token ids as the drafter can embed them."""
        return np.asarray(token_ids, dtype=np.int32)


class TreeExpander:
    """Scores the children of tree nodes; made by `ExpanderDrafter.draft`.

    Every node but the root takes a slot behind the committed rows when it is expanded.
    """

    def __init__(
        self, drafter: ExpanderDrafter[Any], session: ExpanderSession, settings: DraftSettings
    ) -> None:
        self.drafter, self.session, self.settings = drafter, session, settings
        self._slot_of = {0: -1}  # by node index; the root is the last committed row
        self._parent = np.empty(0, dtype=np.int32)
        self._depth = np.empty(0, dtype=np.int32)

    @property
    def root_rows(self) -> RootRows | None:
        """What is known at the root, if the settings asked for it."""
        return self.session.root_rows

    def expand(self, nodes: NodeBatch) -> Array | RankedRows:
        """Score the children of `nodes`: ``[n, V]`` log-probabilities on the drafter's device.

        float32, or float64 for a float64 drafter; -inf for truncated tokens and ids the drafter
        lacks. `RankedRows` from another device, if the settings of the draft let lists do.

        Raises
        ------
        RuntimeError
            If a later `draft` or `observe` has ended this round.
        ValueError
            If the parent of a node was not expanded before.
        """
        return self.expand_together([self], [nodes])[0]

    @staticmethod
    def expand_together(
        expanders: Sequence[TreeExpander], nodes: Sequence[NodeBatch]
    ) -> list[Array | RankedRows]:
        """Grow several trees in lock-step: one forward for the nodes of all sequences.

        Parameters
        ----------
        expanders
            B expanders of the same drafter and round.
        nodes
            B batches; they may be of any size, also empty.

        Returns
        -------
        list
            B results of ``n_i`` rows, each as `expand` gives it.
        """
        segments = [e.segment(batch) for e, batch in zip(expanders, nodes, strict=True)]
        running = [
            (expander.session, segment)
            for expander, segment in zip(expanders, segments, strict=True)
            if segment is not None
        ]
        computed = iter(expanders[0].drafter.run(*zip(*running, strict=True)) if running else ())
        results = []
        for expander, batch, segment in zip(expanders, nodes, segments, strict=True):
            if segment is not None:
                expander.accept(batch, segment)
            logits = None if segment is None else next(computed)
            results.append(expander.log_probs(batch, logits))
        return results

    def segment(self, nodes: NodeBatch) -> Segment | None:
        """The rows to compute for the nodes other than the root; None if there are none."""
        if self.session.expander is not self:
            raise RuntimeError("expand: this round is over, call draft again")
        below = np.flatnonzero(nodes.index > 0)
        if not len(below):
            return None
        first, sequence = len(self._parent), self.session.sequence
        rows = sequence.length + first + len(below)
        if rows > sequence.capacity:
            sequence.reserve(rows + _SPARE_ROWS)
        parent = [self._slot(index) for index in nodes.parent[below].tolist()]
        return Segment(
            sequence,
            self.drafter.known(nodes.token[below]),
            np.concatenate([self._parent, np.array(parent, dtype=np.int32)]),
            np.concatenate([self._depth, nodes.depth[below].astype(np.int32) - 1]),
            first,
        )

    def accept(self, nodes: NodeBatch, segment: Segment) -> None:
        """Remember the slots of a segment that has been computed."""
        assert segment.parent is not None and segment.depth is not None
        self._parent, self._depth = segment.parent, segment.depth
        for slot, index in enumerate(nodes.index[nodes.index > 0].tolist(), start=segment.first):
            self._slot_of[index] = slot

    def log_probs(self, nodes: NodeBatch, logits: Array | None) -> Array | RankedRows:
        """Rows in the order of `nodes`, from the logits of those below the root."""
        if logits is None or len(logits) < len(nodes):
            root = self.session.root_logits
            below = iter(() if logits is None else logits)
            rows = [next(below) if index > 0 else root for index in nodes.index.tolist()]
            logits = self.drafter.stack(rows or [root])[: len(rows)]
        return self.drafter.log_probs(logits, self.settings)

    def _slot(self, parent: int) -> int:
        try:
            return self._slot_of[parent]
        except KeyError:
            raise ValueError(f"expand: parent {parent} must be expanded before its child") from None
