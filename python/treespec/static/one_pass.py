# SPDX-License-Identifier: Apache-2.0
"""Step 1 of a static round with a drafter that says all depths in one pass over target states."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from treespec.device import CandidateLists
from treespec.drafts.base import DraftSettings
from treespec.static.runner import RowStates
from treespec.targets.base import Needs


class OnePassDrafter(Protocol):
    """Drafts for a batch with all lengths on the device.

    A context holds what is known of the committed positions of B sequences, in buffers that never
    move. Its length is the position of the root: the target's states of the root come with the next
    `observe`.

    Attributes
    ----------
    needs
        The target's states that `observe` must be given.
    max_depth, num_rows, num_candidates
        D, R and K of the lists.
    num_slots
        Rows of a context that a draft writes behind its length and nobody else reads.
    """

    needs: Needs
    max_depth: int
    num_rows: int
    num_candidates: int
    num_slots: int

    def make_context(self, batch: int, capacity: int) -> Any:
        """Buffers for sequences of up to `capacity` positions, slots included."""
        ...

    def load(self, context: Any, place: int, session: Any) -> None:
        """Copy what a session of the step-by-step drafter knows to sequence `place`.

        Raises
        ------
        ValueError
            If it does not fit.
        """
        ...

    def observe(
        self,
        context: Any,
        states: RowStates,
        first: torch.Tensor,
        count: torch.Tensor,
        active: torch.Tensor,
    ) -> None:
        """Take over the states of newly committed positions.

        Parameters
        ----------
        states
            Of C rows; those from `count` on may be anything.
        first, count
            ``[B]`` int32: the position of row 0, which is the context's length, and how many rows
            are committed. ``first + C`` must be within the capacity.
        active
            ``[B]`` int32, 1 or 0: the context of a sequence that is not active does not change.
        """
        ...

    def draft(
        self,
        context: Any,
        length: torch.Tensor,
        root: torch.Tensor,
        envelope: int,
        status: torch.Tensor,
    ) -> CandidateLists:
        """The lists of all depths; what is known of committed positions stays as it is.

        Parameters
        ----------
        length, root
            ``[B]`` int32: length of the context, and the token at that position.
        envelope
            Rows of the context that are looked at; every ``length + num_slots`` must fit.
        status
            ``[B]``: what is wrong with the logits.

        Returns
        -------
        CandidateLists
            `treespec.Marginals` ``[B, D, K]`` or `treespec.Transitions` ``[B, D, R, K]``.
        """
        ...


def check_settings(settings: DraftSettings) -> None:
    """Refuse a draft law that `rank_candidates` does not compute.

    Raises
    ------
    NotImplementedError
        For top-k and top-p.
    """
    for name, neutral in (("top_k", 0), ("top_p", 1.0)):
        value = getattr(settings, name)
        if value != neutral:
            raise NotImplementedError(f"graph: {name} of a draft must be {neutral}, got {value}")
