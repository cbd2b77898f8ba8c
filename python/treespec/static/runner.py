# SPDX-License-Identifier: Apache-2.0
"""Forwards of a Hugging Face decoder whose shapes are fixed and whose lengths are on the device."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from treespec.static.attention import ATTENTION_NAME, RowMask, TreeAttention, static_context
from treespec.static.kv import StaticCache, StaticKv
from treespec.targets.hf_model import (
    check_supported,
    has_position_table,
    max_context,
    rope_depends_on_length,
    vocab_size,
)
from treespec.targets.hf_runner import model_view


class StaticRunner:
    """Runs R new rows of each of B sequences through a model.

    Parameters
    ----------
    model
        A causal language model whose state is keys and values; left as it is (see `model_view`).
    attention
        How to attend.

    Raises
    ------
    NotImplementedError
        For models whose rotation depends on the length of the text: they read it on the host.
    """

    def __init__(self, model: PreTrainedModel, attention: TreeAttention) -> None:
        check_supported(model)
        if rope_depends_on_length(model):
            raise NotImplementedError(
                f"StaticRunner: the rotation of {type(model).__name__} depends on the length of "
                "the text, which only the device knows"
            )
        self.attention = attention
        self.vocab_size = vocab_size(model)
        self._view = model_view(model, ATTENTION_NAME)
        self._last_position = (max_context(model) or 0) - 1 if has_position_table(model) else None

    @torch.inference_mode()
    def forward(
        self, kv: StaticKv, token_ids: torch.Tensor, mask: RowMask, first_slot: int = 0
    ) -> torch.Tensor:
        """Compute rows and write their keys and values to consecutive slots.

        Parameters
        ----------
        token_ids
            ``[B, R]`` integers; ids that the model does not have are computed as 0.
        mask
            For these R rows. Positions beyond a model's table are moved to its end: no token there
            can be emitted.
        first_slot
            The slot of the first row.

        Returns
        -------
        torch.Tensor
            Logits ``[B, R, V]`` in the model's dtype.
        """
        positions = mask.positions.long()
        if self._last_position is not None:
            positions = positions.clamp(max=self._last_position)
        rows = mask.slot_rows[:, first_slot : first_slot + token_ids.shape[1]]
        with static_context(self.attention, mask):
            output = self._view(
                input_ids=torch.where(token_ids < self.vocab_size, token_ids, 0).long(),
                position_ids=positions,
                past_key_values=StaticCache(kv, rows, mask),
                use_cache=True,
            )
        logits: torch.Tensor = output.logits
        return logits
