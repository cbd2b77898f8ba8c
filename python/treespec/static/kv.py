# SPDX-License-Identifier: Apache-2.0
"""Keys and values of a batch in buffers whose shapes and addresses never change."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from treespec.static.attention import RowMask
from treespec.targets.hf_cache import KvSequence


class StaticKv:
    """Buffers of all layers for B sequences; who is how long is known on the device only.

    Parameters
    ----------
    example
        A sequence that has been prefilled: its layers' heads, widths, dtypes and devices.
    batch, capacity
        B, and the rows of each sequence, tree nodes included.

    Attributes
    ----------
    buffers
        Keys and values in layer order, each ``[B, H, capacity, D]``. Zeros at first, because a
        masked row still enters the sums, and 0 x NaN is NaN.
    """

    def __init__(self, example: KvSequence, batch: int, capacity: int) -> None:
        self.batch, self.capacity = batch, capacity
        self.buffers = [
            states.new_zeros(batch, states.shape[0], capacity, states.shape[2])
            for layer in example.committed_rows()
            for states in layer
        ]

    def load(self, place: int, sequence: KvSequence) -> None:
        """Copy the committed rows of `sequence` to the first rows of sequence `place`.

        Raises
        ------
        ValueError
            If they do not fit.
        """
        if sequence.length > self.capacity:
            raise ValueError(
                f"StaticKv: capacity must be at least {sequence.length}, got {self.capacity}"
            )
        layers = sequence.committed_rows()
        for buffer, states in zip(self.buffers, (s for pair in layers for s in pair), strict=True):
            buffer[place, :, : sequence.length] = states


class StaticLayer(CacheLayerMixin):
    """One layer of `StaticCache`: writes new rows to their slots, returns the envelope."""

    is_compileable, is_sliding, is_croppable = True, False, False

    def __init__(
        self,
        buffers: tuple[torch.Tensor, torch.Tensor],
        rows: torch.Tensor,
        envelope: int,
    ) -> None:
        super().__init__()
        self.keys, self.values = buffers
        self.rows, self.envelope = rows, envelope
        self.is_initialized = True

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the buffers are there."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[B, H, R, D]`` states to ``rows [B, R]``; everything up to the envelope."""
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, buffer: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        rows = self.rows[:, None, :, None].expand_as(states)
        return buffer.scatter_(2, rows, states)[:, :, : self.envelope]

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        """Not used: no mask function is registered for our attention."""
        return self.envelope, 0

    def get_seq_length(self, *args: Any) -> int:
        """0: position ids are always explicit."""
        return 0

    def get_max_length(self) -> int:
        """Rows of a buffer."""
        return self.keys.shape[2]

    get_max_cache_shape = get_max_length  # the name in transformers 5.0


class StaticCache(Cache):
    """The `past_key_values` of one static forward.

    Parameters
    ----------
    kv
        Where keys and values live.
    rows
        ``[B, R]`` int64: where those of the new rows go.
    mask
        Whose envelope the layers see.
    """

    def __init__(self, kv: StaticKv, rows: torch.Tensor, mask: RowMask) -> None:
        pairs = zip(kv.buffers[::2], kv.buffers[1::2], strict=True)
        super().__init__(layers=[StaticLayer(pair, rows, mask.envelope) for pair in pairs])
