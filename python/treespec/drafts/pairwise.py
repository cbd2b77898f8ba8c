# SPDX-License-Identifier: Apache-2.0
"""A low-rank score of token pairs on top of a DFlash guess: the cheap conditional.

After token a, token b of a slot with state h scores ``U(b) + <A[a] * (W h), B[b]>``, U the marginal
logits. The form is that of the candidate selector of DFlash 2; ours scores every token and is
trained towards the target's distribution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from treespec.drafts.dflash import DFlashModel
    from treespec.drafts.vocabulary import TokenModules


class PairwiseSelector(nn.Module):
    """Codebooks of predecessors and successors, of rank r.

    At the start the successors are zero, so that a fresh selector leaves the marginals as they are.

    Parameters
    ----------
    shape
        `hidden_size`.
    num_predecessors, num_successors
        V of the target, and rows of the output head.
    rank
        r.
    """

    def __init__(self, shape: Any, num_predecessors: int, num_successors: int, rank: int) -> None:
        super().__init__()
        self.predecessor_codebook = nn.Parameter(torch.randn(num_predecessors, rank))
        self.successor_codebook = nn.Parameter(torch.zeros(num_successors, rank))
        self.hidden_projection = nn.Linear(shape.hidden_size, rank, bias=False)

    def rows(
        self,
        states: torch.Tensor,
        previous: torch.Tensor,
        backbone: DFlashModel,
        tokens: TokenModules,
        candidates: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits as `treespec.drafts.dflash.Conditional` gives them.

        Predecessors are counted as the target counts them, successors as the output head does.
        """
        normed = backbone.norm(states)
        pair = self.predecessor_codebook[previous] * self.hidden_projection(normed)[..., None, :]
        headed = normed.to(tokens.head.weight.dtype)
        if candidates is None:
            return tokens.logits(headed)[..., None, :] + pair @ self.successor_codebook.mT
        flat = headed.flatten(0, 1)[:, None]
        unary = tokens.logits_of(flat, candidates.flatten(0, 1)).unflatten(0, states.shape[:2])
        return unary + pair @ self.successor_codebook[candidates].mT
