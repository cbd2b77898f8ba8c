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
from treespec.targets.base import Needs


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

    Raises
    ------
    NotImplementedError
        See `StaticRunner`.
    """

    needs = Needs()

    def __init__(
        self, drafter: AutoregressiveDrafter, attention: TreeAttention, compiled: bool = False
    ) -> None:
        self.device = next(drafter.model.parameters()).device
        self.runner = StaticRunner(drafter.model, attention, compiled=compiled)
        self._drafter = drafter

    def prepare(self, sessions: Sequence[AutoregressiveSession]) -> None:
        """As `LevelModel.prepare`."""
        self._drafter.catch_up(sessions)

    def make_states(self, batch: int, max_tokens: int, max_rows: int) -> tuple[torch.Tensor, ...]:
        """As `LevelModel.make_states`: a row depends on nothing but tokens."""
        return ()

    def load(self, state: LevelState, place: int, session: AutoregressiveSession) -> list[int]:
        """As `LevelModel.load`: the root is computed again."""
        return session.tokens[-1:]

    def catch_up(self, state: LevelState, mask: RowMask) -> torch.Tensor:
        """As `LevelModel.catch_up`."""
        return last_row(self.runner.forward(state.kv, state.pending, mask), state.num_pending)

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
        """As `LevelModel.observe`: tokens are enough."""

    def target_ids(self, token: torch.Tensor) -> torch.Tensor:
        """As `LevelModel.target_ids`: the ids are the target's."""
        return token
