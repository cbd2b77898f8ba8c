# SPDX-License-Identifier: Apache-2.0
"""Attention of static forwards: who sees whom is read from device memory, by layers and kernels.

The reference meaning, for key row j of sequence b and query row i: j is a row of the prefix
(``j < prefix[b]``), or bit ``j - prefix[b]`` of ``bits[b, i]`` is set; and with a window, the key's
position is less than `window` behind the query's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from treespec.targets.hf_attention import ScoreRule, score_rule

ATTENTION_NAME = "treespec_static"


@dataclass(frozen=True)
class RowMask:
    """Who sees whom in one forward over R rows of each of B sequences; all tensors on the device.

    Slots are the uncommitted rows behind the prefix: slot s is KV row ``prefix[b] + s``.

    Attributes
    ----------
    prefix
        ``[B]`` int32, committed KV rows.
    bits
        ``[B, R, words]`` int32: bit ``s % 32`` of word ``s // 32`` says that the row sees slot s.
        Every row sees itself.
    positions
        ``[B, R]`` int32, absolute positions of the rows.
    slot_positions
        ``[B, T]`` int32, absolute positions of the T slots.
    envelope
        KV rows that are looked at; every ``prefix + T`` must fit.
    derived
        What layers with the same window share.
    """

    prefix: torch.Tensor
    bits: torch.Tensor
    positions: torch.Tensor
    slot_positions: torch.Tensor
    envelope: int
    derived: dict[Any, Any] = field(default_factory=dict)

    @property
    def num_slots(self) -> int:
        """T."""
        return self.slot_positions.shape[1]

    @property
    def slot_rows(self) -> torch.Tensor:
        """``[B, T]`` int64: KV rows of the slots."""
        return self.rows_of(torch.arange(self.num_slots, device=self.prefix.device))

    def rows_of(self, slots: torch.Tensor) -> torch.Tensor:
        """``[B, R]`` int64: KV rows of given slots, ``[B, R]`` or the same ``[R]`` for all."""
        return self.prefix.long().unsqueeze(1) + slots


class TreeAttention(Protocol):
    """One way to compute the attention of a `RowMask`.

    Attributes
    ----------
    name
        As in `treespec.static.choice`.
    """

    name: str

    def envelope(self, needed: int, capacity: int) -> int:
        """KV rows to look at when `needed` of `capacity` are in use; a shape, so the fewer
        different answers the better.
        """
        ...

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: RowMask,
        rule: ScoreRule,
    ) -> torch.Tensor:
        """``[B, H, R, E]`` in the dtype of `query`.

        Parameters
        ----------
        query
            ``[B, H, R, D]``.
        key, value
            ``[B, H / groups, envelope, D]`` and ``[..., E]``; rows beyond the slots hold anything
            finite.
        """
        ...


_CONTEXT: ContextVar[tuple[TreeAttention, RowMask] | None] = ContextVar(
    "treespec_static_context", default=None
)


@contextmanager
def static_context(attention: TreeAttention, mask: RowMask) -> Iterator[None]:
    """Let the attention function of a model view compute `attention` inside the block."""
    token = _CONTEXT.set((attention, mask))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def static_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """The function registered with `transformers.AttentionInterface` as ``"treespec_static"``.

    Parameters, errors and the result ``[B, R, H, E]`` are those of
    `treespec.targets.hf_attention.packed_attention`, for a batch of B.
    """
    context = _CONTEXT.get()
    if context is None:
        raise RuntimeError("treespec attention: call the model through StaticRunner.forward")
    attention, mask = context
    rule = score_rule(module, query, attention_mask, scaling, keywords)
    output = attention(query, key, value, mask, rule)
    return output.transpose(1, 2).contiguous(), None


# Programs that torch.compile makes of a model call it: a context is nothing to trace.
AttentionInterface.register(ATTENTION_NAME, torch.compiler.disable(static_attention))
