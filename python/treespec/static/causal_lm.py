# SPDX-License-Identifier: Apache-2.0
"""A causal language model as the drafter of static rounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from treespec.drafts.autoregressive import AutoregressiveDrafter, AutoregressiveSession
from treespec.static.attention import RowMask, TreeAttention
from treespec.static.drafting import DraftStep, Observed
from treespec.static.levels import LevelState, last_row
from treespec.static.runner import StaticRunner
from treespec.static.selecting import RootStates, StaticSelector
from treespec.targets.base import Needs
from treespec.targets.hf_model import text_config


class StaticCausalLm:
    """A `treespec.static.levels.LevelModel` of an `AutoregressiveDrafter`.

    Parameters
    ----------
    drafter
        Shared and not modified.
    attention
        How to attend.
    compiled
        Whether the model's blocks go through torch.compile.
    selector
        Reads rows of the model around the roots, which are kept then.

    Raises
    ------
    NotImplementedError
        See `StaticRunner`.
    """

    needs = Needs()

    def __init__(
        self,
        drafter: AutoregressiveDrafter,
        attention: TreeAttention,
        compiled: bool = False,
        selector: StaticSelector | None = None,
    ) -> None:
        self.device = next(drafter.model.parameters()).device
        self._keeps_rows = selector is not None
        self._keeps_states = selector is not None and selector.reads_draft_states
        needs = Needs(last_hidden=self._keeps_states)
        self.runner = StaticRunner(drafter.model, attention, needs, compiled=compiled)
        self._drafter = drafter

    def prepare(self, sessions: Sequence[AutoregressiveSession]) -> None:
        """As `LevelModel.prepare`."""
        for session in sessions:
            session.wants_root_rows = self._keeps_rows
        self._drafter.catch_up(sessions)

    def make_states(self, batch: int, max_tokens: int, max_rows: int) -> tuple[torch.Tensor, ...]:
        """As `LevelModel.make_states`: a row depends on nothing but tokens, a selector on rows."""
        if not self._keeps_rows:
            return ()
        model = self._drafter.model
        width = text_config(model).hidden_size if self._keeps_states else 0
        sizes = (self.runner.vocab_size, self.runner.vocab_size, width, width)
        like = next(model.parameters())
        return RootStates(*(like.new_zeros(batch, size) for size in sizes))

    def load(self, state: LevelState, place: int, session: AutoregressiveSession) -> list[int]:
        """As `LevelModel.load`: the root is computed again."""
        if self._keeps_rows:
            assert session.root_rows is not None, "a text of two tokens or more"
            state.states.load(place, session.root_rows)
        return session.tokens[-1:]

    def catch_up(self, state: LevelState, mask: RowMask) -> torch.Tensor:
        """As `LevelModel.catch_up`."""
        logits, states = self.runner.forward_with_states(state.kv, state.pending, mask)
        if self._keeps_rows:
            state.states.learn(state.num_pending, logits, states.last_hidden)
        return last_row(logits, state.num_pending)

    def grow(
        self,
        state: LevelState,
        token: torch.Tensor,
        slot: torch.Tensor,
        parent: torch.Tensor,
        mask: RowMask,
    ) -> torch.Tensor:
        """As `LevelModel.grow`."""
        return self.runner.forward(state.kv, token, mask, slot)

    def observe(self, state: LevelState, step: DraftStep, observed: Observed) -> None:
        """As `LevelModel.observe`: tokens are enough, but for a selector."""
        if self._keeps_rows:
            state.states.pass_on(step.active)

    def target_ids(self, token: torch.Tensor) -> torch.Tensor:
        """As `LevelModel.target_ids`: the ids are the target's."""
        return token
