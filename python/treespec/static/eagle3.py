# SPDX-License-Identifier: Apache-2.0
"""EAGLE-3 in a static round: a level goes on from the states of the level before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from treespec.drafts.eagle3 import Eagle3Drafter, Eagle3Session, KeysValues
from treespec.drafts.layers import KvAttention
from treespec.static.attention import RowMask, TreeAttention
from treespec.static.compilation import many_shapes
from treespec.static.drafting import DraftStep, Observed
from treespec.static.kv import StaticCache, StaticKv
from treespec.static.levels import LevelState, last_row
from treespec.targets.hf_attention import ScoreRule


class Eagle3States(NamedTuple):
    """The states that rows are made of; written in place.

    Attributes
    ----------
    pending
        ``[B, C, H]``: ``fc`` of the target's features at the positions before the pending tokens.
    computed
        ``[B, 1 + S, H]``: what the model gave for the root's row, then for the slots.
    """

    pending: torch.Tensor
    computed: torch.Tensor

    def above(self, parent: torch.Tensor) -> torch.Tensor:
        """``[B, W, H]``: those of parents by their slots ``[B, W]``, -1 for the root."""
        places = (parent + 1).clamp(min=0, max=self.computed.shape[1] - 1)
        return self.computed.gather(1, self._wide(places))

    def keep(self, slot: torch.Tensor, states: torch.Tensor) -> None:
        """Write those of slots ``[B, W]``."""
        self.computed.scatter_(1, self._wide(slot + 1), states)

    def _wide(self, places: torch.Tensor) -> torch.Tensor:
        return places[..., None].expand(-1, -1, self.computed.shape[2])


class StaticMemory:
    """`treespec.drafts.eagle3.Memory` over static buffers.

    Parameters
    ----------
    kv
        Keys and values of the one layer.
    rows
        ``[B, T]`` int64: where those of the new rows go.
    mask
        Who sees whom.
    attention
        How to attend.
    """

    def __init__(
        self, kv: StaticKv, rows: torch.Tensor, mask: RowMask, attention: TreeAttention
    ) -> None:
        self._cache, self._mask = StaticCache(kv, rows, mask), mask
        self._attention = attention

    @torch.compiler.disable
    def attend(
        self, attention: KvAttention, queries: torch.Tensor, own: KeysValues
    ) -> torch.Tensor:
        """As `treespec.drafts.eagle3.Memory`. Not compiled: the kernels are the attention's."""
        keys, values = self._cache.update(*own, 0)
        rule = ScoreRule(attention.head_dim**-0.5)
        return attention.project(self._attention(queries, keys, values, self._mask, rule))


class StaticEagle3:
    """A `treespec.static.levels.LevelModel` of an `Eagle3Drafter`.

    The row of a token stands at the position before it, so that the root's is the last committed
    one here, too.

    Parameters
    ----------
    drafter
        Shared and not modified.
    attention
        How to attend.
    compiled
        Whether the layer goes through torch.compile, once for every number of rows.
    """

    def __init__(
        self, drafter: Eagle3Drafter, attention: TreeAttention, compiled: bool = False
    ) -> None:
        self.needs = drafter.needs
        self._drafter, self._model, self._attention = drafter, drafter.model, attention
        self._weight = drafter.model.fc.weight
        self.device = self._weight.device
        drafter.vocabulary.keep_on(self.device)
        self._layer: Callable[..., torch.Tensor] = drafter.model
        self._shapes: Callable[[], AbstractContextManager[Any]] = nullcontext
        if compiled:
            self._layer = torch.compile(drafter.model.forward, dynamic=False)
            self._shapes = many_shapes

    def prepare(self, sessions: Sequence[Eagle3Session]) -> None:
        """As `LevelModel.prepare`."""
        self._drafter.catch_up(sessions)

    def make_states(self, batch: int, max_tokens: int, max_rows: int) -> Eagle3States:
        """As `LevelModel.make_states`."""
        width = self._weight.shape[0]
        return Eagle3States(
            self._weight.new_zeros(batch, max_tokens, width),
            self._weight.new_zeros(batch, 1 + max_rows, width),
        )

    def load(self, state: LevelState, place: int, session: Eagle3Session) -> list[int]:
        """As `LevelModel.load`: the root's state is known, nothing is computed again."""
        states: Eagle3States = state.states
        states.computed[place, 0] = session.states[0]
        return []

    @torch.inference_mode()
    def catch_up(self, state: LevelState, mask: RowMask) -> torch.Tensor:
        """As `LevelModel.catch_up`; keeps the root's state for its children."""
        states: Eagle3States = state.states
        count = state.num_pending
        rows = self._forward(state.kv, states.pending, state.pending, mask.slot_rows, mask)
        known = states.computed[:, :1]
        known.copy_(torch.where((count > 0)[:, None, None], last_row(rows, count), known))
        return self._model.logits(known)

    @torch.inference_mode()
    def grow(
        self,
        state: LevelState,
        token: torch.Tensor,
        slot: torch.Tensor,
        parent: torch.Tensor,
        mask: RowMask,
    ) -> torch.Tensor:
        """As `LevelModel.grow`; keeps the states for the nodes' children."""
        states: Eagle3States = state.states
        rows = self._forward(state.kv, states.above(parent), token, mask.rows_of(slot), mask)
        states.keep(slot, rows)
        return self._model.logits(rows)

    @torch.inference_mode()
    def observe(self, state: LevelState, step: DraftStep, observed: Observed) -> None:
        """As `LevelModel.observe`: the states of the positions before the pending tokens."""
        features = observed.states.rows(observed.nodes).features
        if features is None:
            raise ValueError("StaticEagle3: states must hold the features of `needs`, got none")
        states: Eagle3States = state.states
        new, active = self._model.fc(features.to(self._weight.dtype)), step.active == 1
        states.pending.copy_(torch.where(active[:, None, None], new, states.pending))

    def target_ids(self, token: torch.Tensor) -> torch.Tensor:
        """As `LevelModel.target_ids`."""
        return self._drafter.vocabulary.target_ids(token)

    def _forward(
        self,
        kv: StaticKv,
        states: torch.Tensor,
        token: torch.Tensor,
        rows: torch.Tensor,
        mask: RowMask,
    ) -> torch.Tensor:
        """What the model gives for rows made of `states` ``[B, T, H]`` and `token` ``[B, T]``."""
        embedded = self._drafter.embedding(token.long()).to(states.dtype)
        memory = StaticMemory(kv, rows, mask, self._attention)
        with self._shapes():
            return self._layer(states, embedded, mask.positions.long(), memory)
