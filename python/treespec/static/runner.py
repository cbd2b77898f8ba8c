# SPDX-License-Identifier: Apache-2.0
"""Forwards of a Hugging Face decoder whose shapes are fixed and whose lengths are on the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from treespec.static.attention import ATTENTION_NAME, RowMask, TreeAttention, static_context
from treespec.static.compilation import compile_blocks, many_shapes
from treespec.static.kv import StaticCache, StaticKv
from treespec.targets.base import Needs
from treespec.targets.hf_model import (
    check_supported,
    has_position_table,
    max_context,
    rope_depends_on_length,
    vocab_size,
)
from treespec.targets.hf_runner import StateTap, captured_states, model_view


class RowStates(NamedTuple):
    """Hidden states of R rows of each of B sequences; a field nobody asked for is None.

    Attributes
    ----------
    features
        ``[B, R, k * H]``: the outputs of the k layers of `Needs.layers`, concatenated.
    last_hidden
        ``[B, R, H]``: the states after the final norm.
    """

    features: torch.Tensor | None
    last_hidden: torch.Tensor | None

    def rows(self, numbers: torch.Tensor) -> RowStates:
        """The states of chosen rows, for instance of the accepted path.

        Parameters
        ----------
        numbers
            ``[B, C]`` integers below R; a negative one gives the states of any row.
        """
        places = numbers.long().clamp(min=0).unsqueeze(2)

        def pick(states: torch.Tensor | None) -> torch.Tensor | None:
            if states is None:
                return None
            return states.gather(1, places.expand(-1, -1, states.shape[2]))

        return RowStates(pick(self.features), pick(self.last_hidden))


class StaticRunner:
    """Runs R new rows of each of B sequences through a model.

    Parameters
    ----------
    model
        A causal language model whose state is keys and values; left as it is (see `model_view`).
    attention
        How to attend.
    needs
        The hidden states that `forward_with_states` returns.
    compiled
        Whether the model's blocks go through torch.compile, once for every number of rows.

    Raises
    ------
    NotImplementedError
        For models whose rotation depends on the length of the text: they read it on the host.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        attention: TreeAttention,
        needs: Needs | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        check_supported(model)
        if rope_depends_on_length(model):
            raise NotImplementedError(
                f"StaticRunner: the rotation of {type(model).__name__} depends on the length of "
                "the text, which only the device knows"
            )
        self.attention, self.needs = attention, needs or Needs()
        self.vocab_size = vocab_size(model)
        self._view = model_view(model, ATTENTION_NAME)
        self._tap = StateTap(self._view)
        self._shapes: Callable[[], AbstractContextManager[Any]] = nullcontext
        if compiled:
            self._shapes = many_shapes
            compile_blocks(self._view)
        self._last_position = (max_context(model) or 0) - 1 if has_position_table(model) else None

    def forward(
        self,
        kv: StaticKv,
        token_ids: torch.Tensor,
        mask: RowMask,
        slots: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute rows and write their keys and values to their slots.

        Parameters
        ----------
        token_ids
            ``[B, R]`` integers; ids that the model does not have are computed as 0.
        mask
            For these R rows. Positions beyond a model's table are moved to its end: no token there
            can be emitted.
        slots
            ``[B, R]`` int64, those of the rows. None: row i has slot i.

        Returns
        -------
        torch.Tensor
            Logits ``[B, R, V]`` in the model's dtype.
        """
        return self.forward_with_states(kv, token_ids, mask, slots)[0]

    @torch.inference_mode()
    def forward_with_states(
        self,
        kv: StaticKv,
        token_ids: torch.Tensor,
        mask: RowMask,
        slots: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, RowStates]:
        """The same, and the states of `needs` of all R rows.

        Raises
        ------
        ValueError
            If the model lacks a layer of `needs`.
        """
        positions = mask.positions.long()
        if self._last_position is not None:
            positions = positions.clamp(max=self._last_position)
        rows = mask.slot_rows if slots is None else mask.rows_of(slots)
        with (
            static_context(self.attention, mask),
            self._tap.capture(self.needs) as capture,
            self._shapes(),
        ):
            output = self._view(
                input_ids=torch.where(token_ids < self.vocab_size, token_ids, 0).long(),
                position_ids=positions,
                past_key_values=StaticCache(kv, rows, mask),
                use_cache=True,
            )
        states = captured_states(capture)
        return output.logits, RowStates(states.features, states.last_hidden)
