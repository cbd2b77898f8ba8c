# SPDX-License-Identifier: Apache-2.0
"""An exported causal language model as the drafter, on any runtime: one run per level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.drafts.base import DraftSettings
from treespec.drafts.expander import ExpanderDrafter, ExpanderSession, RootRows
from treespec.drafts.rows import draft_log_probs
from treespec.targets.base import Array, Int32Array, Needs, TargetStates
from treespec.targets.graph_runner import GraphRunner
from treespec.targets.graph_session import GraphSession
from treespec.targets.kv_slots import KvSlot
from treespec.targets.segment import Segment

_MOST_ROWS_OF_LOGITS = 32  # that are computed for the sake of two


class GraphCausalLmSession(ExpanderSession):
    """The drafter's state of one sequence.

    Attributes
    ----------
    tokens
        Committed tokens, the root last; the first ``sequence.length`` of them have rows.
    """

    sequence: KvSlot

    def __init__(self, token_ids: npt.NDArray[np.integer[Any]], sequence: KvSlot) -> None:
        super().__init__(sequence)
        self.tokens: list[int] = token_ids.tolist()

    @property
    def new_tokens(self) -> int:
        """Tokens that have no rows yet."""
        return len(self.tokens) - self.sequence.length


class GraphCausalLmDrafter(ExpanderDrafter[GraphCausalLmSession]):
    """Drafts with an exported model that has the target's token ids.

    Parameters
    ----------
    session
        The loaded graph.
    target_vocab_size
        V of the target. Rows are cut to it, or extended with -inf.

    Raises
    ------
    ValueError
        If it is no drafter of this kind.
    """

    needs = Needs()
    reads_root_rows = True

    def __init__(self, session: GraphSession, target_vocab_size: int) -> None:
        self.runner, self.vocab_size = GraphRunner(session), target_vocab_size
        self.lock = self.runner.lock
        self.max_context = session.manifest.max_context
        self._known_ids = session.manifest.vocab_size
        self._to_host = session.memory.to_host

    def begin(
        self, prompt_ids: npt.NDArray[np.integer[Any]], states: TargetStates | None, capacity: int
    ) -> GraphCausalLmSession:
        """Open a session; the prompt is computed by the first `draft`, together with the root."""
        return GraphCausalLmSession(np.asarray(prompt_ids), self.runner.pool.open(max(capacity, 1)))

    def observe(
        self,
        session: GraphCausalLmSession,
        token_ids: npt.NDArray[np.integer[Any]],
        states: TargetStates | None,
    ) -> None:
        """Append committed tokens; their keys and values are computed by the next `draft`."""
        if len(token_ids):
            session.reset_round()
            session.tokens += np.asarray(token_ids).tolist()
            session.root_logits = None

    def catch_up(self, sessions: Sequence[GraphCausalLmSession]) -> None:
        """Compute what was committed since the last draft."""
        if not sessions:
            return
        for session in sessions:
            if not session.tokens:
                raise ValueError("draft: a session must have observed a token")
            session.sequence.reserve(len(session.tokens))
        wanted = any(session.wants_root_rows for session in sessions)
        if wanted:
            self._shorten([s for s in sessions if s.new_tokens > _MOST_ROWS_OF_LOGITS])
        logits, _ = self._prefill(sessions, every_row=wanted)
        for session, rows in zip(sessions, logits, strict=True):
            if not wanted:
                session.root_logits = self._to_host(rows)
                continue
            own = np.concatenate([self._to_host(part) for part in rows])
            session.root_logits = own[-1]
            session.root_rows = RootRows.of(own, None, session.root_rows)

    def _shorten(self, sessions: Sequence[GraphCausalLmSession]) -> None:
        """Compute long texts up to their last two tokens, whose logits alone are wanted."""
        if sessions:
            self._prefill(sessions, end=-2)

    def _prefill(
        self, sessions: Sequence[GraphCausalLmSession], end: int | None = None, **options: bool
    ) -> tuple[list[Any], list[TargetStates]]:
        return self.runner.prefill(
            [session.sequence for session in sessions],
            [self.known(s.tokens[s.sequence.length : end]) for s in sessions],
            **options,
        )

    def run(
        self, sessions: Sequence[GraphCausalLmSession], segments: Sequence[Segment]
    ) -> list[Array]:
        """Logits ``[n_i, V_draft]`` of all rows of each segment."""
        logits, _ = self.runner.forward(segments)
        return [self._to_host(rows) for rows in logits]

    def log_probs(self, logits: Array, settings: DraftSettings) -> npt.NDArray[np.float32]:
        """Surplus ids are cut before the softmax, those the model lacks are impossible."""
        return draft_log_probs(logits, self.vocab_size, settings)

    def stack(self, rows: Sequence[Array]) -> npt.NDArray[Any]:
        """Rows as one array."""
        return np.stack(rows)

    def known(self, token_ids: npt.ArrayLike) -> Int32Array:
        """Token ids as the model can embed them; those that only the target has become 0."""
        ids = np.array(token_ids, dtype=np.int32)
        ids[ids >= self._known_ids] = 0
        return ids
