# SPDX-License-Identifier: Apache-2.0
"""Training of Medusa heads on a frozen target.

Source: arXiv 2401.10774, section 2.2 (Medusa-1: output matrices begin as the target's, residual
blocks as nothing, weights fall by 0.8 from head to head), with the target's law instead of its
token as the label.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from torch import nn

from treespec.drafts import medusa_format
from treespec.drafts.medusa import MedusaDrafter, MedusaHeads
from treespec.drafts.vocabulary import TokenModules
from treespec.training.base import Batch, export_tensors, frozen, mean_loss, soft_cross_entropy

_DECAY = 0.8


class MedusaTrainee:
    """Heads, by forward KL towards what the target says at the same position later.

    Parameters
    ----------
    target
        A Hugging Face target; its parameters are frozen.
    num_heads, num_layers
        Tokens that are guessed, and residual blocks of a head.
    shared_head
        Heads have no output matrices of their own and use the target's.

    Raises
    ------
    ValueError
        For sizes below 1.
    """

    def __init__(
        self, target: Any, *, num_heads: int = 4, num_layers: int = 1, shared_head: bool = False
    ) -> None:
        for name, value in (("num_heads", num_heads), ("num_layers", num_layers)):
            if value < 1:
                raise ValueError(f"MedusaTrainee: {name} must be at least 1, got {value}")
        frozen(target.model)
        self.tokens = TokenModules.of_target(target)
        vocab_size, hidden_size = self.tokens.head.weight.shape
        heads = MedusaHeads(num_heads, num_layers, hidden_size, None if shared_head else vocab_size)
        if not shared_head:
            for head in heads:
                head[-1].weight.data.copy_(self.tokens.head.weight)
        self.module: nn.Module = heads.to(target.device)
        self.needs = MedusaDrafter.needs

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Mean over heads, by weights that fall from head to head, and over the target's text."""
        length, heads = batch.tokens.shape[1], self.module
        losses, weights = [], []
        for head in range(len(heads)):
            # The state of position t gave the root t + 1; the head says what follows at t + 2 + i.
            ahead = head + 1
            rows = max(0, length - 1 - ahead)
            states = heads.states(head, batch.last_hidden[:, :rows])
            counted = batch.own[:, 1 : 1 + rows] & batch.own[:, 1 + ahead :]
            wanted = batch.last_hidden[:, ahead : ahead + rows]
            losses.append(self._head_loss(head, counted.float(), states, wanted))
            weights.append(_DECAY**head)
        return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)

    def _head_loss(
        self, head: int, weight: torch.Tensor, states: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        def rows_loss(rows: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                law = self.tokens.logits(hidden.to(self.tokens.head.weight)).float().log_softmax(-1)
            return soft_cross_entropy(law, self.module.logits(head, rows, self.tokens))

        return mean_loss(rows_loss, weight, states, wanted)

    def drafter(self) -> MedusaDrafter:
        """The drafter as it stands."""
        return MedusaDrafter(self.module, self.tokens)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write it in the published format, float16."""
        medusa_format.save(folder, self.module, export_tensors(self.module))
