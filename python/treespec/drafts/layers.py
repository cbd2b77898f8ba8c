# SPDX-License-Identifier: Apache-2.0
"""Attention whose keys the caller keeps, for drafters that are not transformers models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    rotate_half,
)

# Of one architecture under all names: Llama, Qwen3 and the drafters built like them.
RMSNorm, MLP = LlamaRMSNorm, LlamaMLP

Rotation = tuple[torch.Tensor, torch.Tensor]  # cos and sin, [B, T, D]


class Rotary(LlamaRotaryEmbedding):
    """Rotation by position, whose frequencies stay float32 when a drafter is cast.

    In half precision they would turn far positions by wrong angles.
    """

    inv_freq: torch.Tensor

    def _apply(self, *args: Any, **options: Any) -> Rotary:
        frequencies = self.inv_freq
        super()._apply(*args, **options)
        self.inv_freq = frequencies.to(self.inv_freq.device)
        return self


class KvAttention(nn.Module):
    """Grouped-query attention in parts, so that keys can come from several places.

    Parameters
    ----------
    config
        `hidden_size`, `num_attention_heads`, `num_key_value_heads`, `head_dim`, `attention_bias`,
        `rms_norm_eps`.
    input_size
        Width of what the projections read; None: `hidden_size`.
    normed
        Whether queries and keys are normed per head (Qwen3).
    """

    def __init__(self, config: Any, *, input_size: int | None = None, normed: bool = False) -> None:
        super().__init__()
        width, bias = input_size or config.hidden_size, bool(config.attention_bias)
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, self.num_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=bias)
        if normed:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.normed = normed

    def queries(self, states: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """``[B, heads, T, D]`` of ``[B, T, input]``, rotated."""
        rows = self._by_head(self.q_proj(states))
        return _rotate(self.q_norm(rows) if self.normed else rows, rotation)

    def keys_values(
        self, states: torch.Tensor, rotation: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``[B, kv_heads, T, D]`` each of ``[B, T, input]``, keys rotated."""
        rows = self._by_head(self.k_proj(states))
        keys = _rotate(self.k_norm(rows) if self.normed else rows, rotation)
        return keys, self._by_head(self.v_proj(states)).transpose(1, 2)

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Softmax over all given keys, and the output projection.

        Parameters
        ----------
        queries
            ``[B, heads, T, D]``.
        keys, values
            ``[B, kv_heads, L, D]``.
        mask
            ``[B or 1, 1, T, L]``, True or 0 where a query sees a key; None: it sees all.

        Returns
        -------
        torch.Tensor
            ``[B, T, hidden_size]``.
        """
        batch, _, count, width = queries.shape
        groups = self.num_heads // self.num_kv_heads
        # Query heads that share a key head become rows of one product, which reads the keys once.
        folded = queries.reshape(batch, self.num_kv_heads, groups * count, width)
        if mask is not None and groups > 1:
            mask = mask.repeat(1, 1, groups, 1)
        rows = scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
        return self.project(rows.reshape(batch, self.num_heads, count, width))

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        """``[B, T, hidden_size]`` of attended values ``[B, heads, T, D]``."""
        projected: torch.Tensor = self.o_proj(rows.transpose(1, 2).flatten(2))
        return projected

    def _by_head(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(-1, (-1, self.head_dim))


def _rotate(rows: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """``[B, T, heads, D]`` to ``[B, heads, T, D]`` with the half-split rotation."""
    heads, (cos, sin) = rows.transpose(1, 2), rotation
    rotated: torch.Tensor = heads * cos[:, None] + rotate_half(heads) * sin[:, None]
    return rotated
