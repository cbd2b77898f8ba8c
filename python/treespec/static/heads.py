# SPDX-License-Identifier: Apache-2.0
"""Medusa heads in a static round."""

from __future__ import annotations

import torch

from treespec.device import CandidateLists
from treespec.drafts.base import DraftSettings
from treespec.drafts.medusa import MedusaDrafter, MedusaSession
from treespec.static import ops  # noqa: F401 - registers them
from treespec.static.one_pass import check_settings
from treespec.static.runner import RowStates

OPS = torch.ops.treespec


class StaticHeads:
    """A `treespec.static.one_pass.OnePassDrafter` of a `MedusaDrafter`.

    Its contexts are ``[B, H]``: the target's last state of the newest committed position of each
    sequence.

    Parameters
    ----------
    drafter
        Shared and not modified.
    settings
        Of every draft.

    Raises
    ------
    NotImplementedError
        For settings that no static draft has.
    """

    num_rows, num_slots = 1, 0

    def __init__(self, drafter: MedusaDrafter, settings: DraftSettings) -> None:
        check_settings(settings)
        self.needs, self.max_depth = drafter.needs, drafter.depth(settings)
        self._vocab_size = drafter.tokens.head.weight.shape[0]
        self.num_candidates = min(drafter.list_width(settings), self._vocab_size)
        self._drafter, self._temperature = drafter, settings.temperature

    def make_context(self, batch: int, capacity: int) -> torch.Tensor:
        """As `OnePassDrafter.make_context`; the capacity does not matter."""
        heads = self._drafter.heads
        return next(heads.parameters()).new_zeros(batch, heads.hidden_size)

    def load(self, context: torch.Tensor, place: int, session: MedusaSession) -> None:
        """As `OnePassDrafter.load`."""
        context[place] = session.hidden

    @torch.inference_mode()
    def observe(
        self,
        context: torch.Tensor,
        states: RowStates,
        first: torch.Tensor,
        count: torch.Tensor,
        active: torch.Tensor,
    ) -> None:
        """As `OnePassDrafter.observe`: keep the state of the last committed row."""
        newest = states.rows(count[:, None] - 1).last_hidden
        if newest is None:
            raise ValueError("StaticHeads: states must hold last_hidden, as `needs` says, got none")
        kept = (count * active > 0)[:, None]
        context.copy_(torch.where(kept, newest.squeeze(1), context))

    @torch.inference_mode()
    def draft(
        self,
        context: torch.Tensor,
        length: torch.Tensor,
        root: torch.Tensor,
        envelope: int,
        status: torch.Tensor,
    ) -> CandidateLists:
        """As `OnePassDrafter.draft`: marginals, from the newest states alone."""
        logits = self._drafter.logits(context, self.max_depth)
        return CandidateLists(
            *OPS.rank_candidates(
                logits, self._vocab_size, self.num_candidates, self._temperature, status
            )
        )
