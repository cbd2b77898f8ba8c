# SPDX-License-Identifier: Apache-2.0
"""Keys and values per sequence and layer, and the Hugging Face cache that fills them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from treespec import _core
from treespec.targets.segment import Segment as Segment
from treespec.targets.segment import check_kept

_Rows = tuple[torch.Tensor, torch.Tensor]  # keys and values


@dataclass
class _LayerRows:
    """Keys ``[H, capacity, D]`` and values ``[H, capacity, E]`` of one layer, as views of
    `blocks`.
    """

    keys: torch.Tensor
    values: torch.Tensor
    blocks: tuple[torch.Tensor, ...]

    @staticmethod
    def zeros(keys: torch.Tensor, values: torch.Tensor, capacity: int) -> _LayerRows:
        """Room for `capacity` rows shaped like `keys` ``[H, n, D]`` and `values` ``[H, n, E]``.

        Zeros, because a masked row still enters the sums, and 0 x NaN is NaN.
        """
        heads, _, width = keys.shape
        if values.shape == keys.shape:
            block = keys.new_zeros(2, heads, capacity, width)
            return _LayerRows(block[0], block[1], (block,))
        blocks = (
            keys.new_zeros(heads, capacity, width),
            values.new_zeros(values.shape[0], capacity, values.shape[-1]),
        )
        return _LayerRows(*blocks, blocks)


class KvSequence:
    """The keys and values of one sequence, all layers.

    Rows ``[0, length)`` are committed; rows ``[length, length + pending)`` hold the nodes of the
    last forward until `commit` keeps some of them. Buffers appear at the first write of a layer,
    with the heads, dtype and device found there, which is what makes tensor parallel and device
    maps work.

    Parameters
    ----------
    capacity
        The number of rows, tree nodes included.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"KvSequence: capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self.length = 0
        self.pending = 0
        self._layers: dict[int, _LayerRows] = {}
        self._native: _core.KvBuffers | None = None  # the blocks as the native core sees them

    def reserve(self, capacity: int) -> None:
        """Grow to `capacity` rows if there are fewer; rows keep their content."""
        if capacity <= self.capacity:
            return
        for index, old in self._layers.items():
            new = _LayerRows.zeros(old.keys, old.values, capacity)
            for target, source in zip(new.blocks, old.blocks, strict=True):
                target[..., : self.capacity, :] = source
            self._layers[index] = new
        self.capacity, self._native = capacity, None

    def write(
        self, layer: int, row: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store `keys` ``[H, n, D]`` and `values` ``[H, n, E]`` of a layer at rows ``row ..``.

        Returns
        -------
        keys, values
            Views ``[H, row + n, D]`` and ``[H, row + n, E]`` of everything up to the new rows.
        """
        rows = self._layers.get(layer)
        if rows is None:
            rows = self._layers[layer] = _LayerRows.zeros(keys, values, self.capacity)
            self._native = None
        end = row + keys.shape[1]
        rows.keys[:, row:end] = keys
        rows.values[:, row:end] = values
        return rows.keys[:, :end], rows.values[:, :end]

    def committed_rows(self) -> list[_Rows]:
        """Per layer the committed keys ``[H, length, D]`` and values ``[H, length, E]``: views."""
        layers = [self._layers[index] for index in sorted(self._layers)]
        return [(rows.keys[:, : self.length], rows.values[:, : self.length]) for rows in layers]

    def truncate(self, length: int) -> None:
        """Forget every row from `length` on, pending ones included."""
        if not 0 <= length <= self.length:
            raise ValueError(f"truncate: length must be in [0, {self.length}], got {length}")
        self.length, self.pending = length, 0

    def release(self) -> None:
        """Drop all rows and their memory."""
        self.length = self.pending = 0
        self._layers.clear()
        self._native = None

    @torch.inference_mode()
    def commit(self, nodes: npt.NDArray[np.integer[Any]]) -> None:
        """Keep pending rows `nodes` (``[m]``, strictly ascending) behind the prefix and drop the
        others.

        Raises
        ------
        ValueError
            If a node is not pending or the order is wrong; nothing has changed then.
        """
        check_kept(self, nodes)
        count = len(nodes)
        if count and nodes[-1] >= count:  # otherwise every row is in its place
            self._move_rows(nodes)
        self.length += count
        self.pending = 0

    def _move_rows(self, nodes: npt.NDArray[np.integer[Any]]) -> None:
        """Move rows ``length + nodes[d]`` to ``length + d`` in all layers."""
        blocks = [block for rows in self._layers.values() for block in rows.blocks]
        if all(block.device.type == "cpu" for block in blocks):
            self._native = self._native or _core.KvBuffers(blocks)
            self._native.commit(self.length, nodes.astype(np.int32))
            return
        source = torch.from_numpy(self.length + nodes.astype(np.int64))
        for block in blocks:
            rows = block.index_select(-2, source.to(block.device))  # copies: rows may overlap
            block[..., self.length : self.length + len(nodes), :] = rows


class KeysTransformed(Exception):
    """A layer changes keys or values between the cache and the attention, like latent attention."""


class PackedRows:
    """The row layout of one packed forward, and the keys and values of the layer that is running.

    Parameters
    ----------
    segments
        Checked segments; their rows follow each other in the one row ``[1, T]`` of the batch.
    joined
        Hand the whole history to the layer, one segment after another, for layers that store
        something else than what they attend to. Otherwise the new rows only, which copies nothing.
    """

    def __init__(self, segments: Sequence[Segment], joined: bool = False) -> None:
        self.segments = tuple(segments)
        self.joined = joined
        ends = list(accumulate(len(segment) for segment in self.segments))
        self.spans = [slice(end - len(s), end) for s, end in zip(self.segments, ends, strict=True)]
        self.total = ends[-1]
        self._visible: list[_Rows] | None = None
        self._handed: _Rows | None = None

    def part(self, states: torch.Tensor, index: int) -> torch.Tensor:
        """The rows ``[H, n, D]`` of one segment, of states ``[1, H, T, D]``."""
        return states[0] if len(self.segments) == 1 else states[0, :, self.spans[index]]

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> _Rows:
        """Write a layer's new ``[1, H, T, D]`` keys and values; return what the layer works on."""
        self.require_taken()
        self._visible = [
            segment.sequence.write(
                layer,
                segment.sequence.length + segment.first,
                self.part(keys, index),
                self.part(values, index),
            )
            for index, segment in enumerate(self.segments)
        ]
        self._handed = self._join() if self.joined else (keys, values)
        return self._handed

    def take(self, keys: torch.Tensor, values: torch.Tensor) -> list[_Rows]:
        """Per segment the keys ``[H, L + S, D]`` and values that the running layer attends to.

        Parameters
        ----------
        keys, values
            What the layer passes to the attention function.

        Raises
        ------
        KeysTransformed
            If that is not what `store` has returned, and the history is not `joined`.
        NotImplementedError
            If the layer has not stored keys of its own.
        """
        if self._visible is None or self._handed is None:
            raise NotImplementedError(
                "treespec attention: layers that share the keys of others are not supported"
            )
        if self.joined:
            visible = self._split(keys, values)
        elif not _same_memory(keys, self._handed[0]) or not _same_memory(values, self._handed[1]):
            raise KeysTransformed
        else:
            visible = self._visible
        self._visible = self._handed = None
        return visible

    def require_taken(self) -> None:
        """Raise NotImplementedError when a layer stored keys but attended without us."""
        if self._visible is not None:
            raise NotImplementedError(
                "treespec attention: the model does not call transformers' AttentionInterface"
            )

    def finish(self) -> None:
        """Mark the new rows as pending in their sequences, after a forward that went through."""
        self.require_taken()
        for segment in self.segments:
            segment.sequence.pending = segment.num_slots

    def _join(self) -> _Rows:
        assert self._visible is not None
        if len(self._visible) == 1:
            return self._visible[0][0][None], self._visible[0][1][None]
        keys, values = (torch.cat(parts, dim=1)[None] for parts in zip(*self._visible, strict=True))
        return keys, values

    def _split(self, keys: torch.Tensor, values: torch.Tensor) -> list[_Rows]:
        lengths = [segment.sequence.length + segment.num_slots for segment in self.segments]
        return list(zip(keys[0].split(lengths, 1), values[0].split(lengths, 1), strict=True))


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether a tensor is another one, or a view of all of it."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


class PackedLayer(CacheLayerMixin):
    """One layer of `PackedCache`: passes keys and values on to the sequences.

    `update` returns what `PackedRows.store` says; our attention function takes it from there.
    """

    is_compileable, is_sliding, is_croppable = False, False, False

    def __init__(self, rows: PackedRows, index: int) -> None:
        super().__init__()
        self.rows, self.index = rows, index
        self.is_initialized = True

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the sequences allocate."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store ``[1, H, T, D]`` states. transformers 5.0 passes `cache_kwargs`, later versions do
        not.
        """
        return self.rows.store(self.index, key_states, value_states)

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        """Not used: no mask function is registered for our attention. T rows, offset 0."""
        return self.rows.total, 0

    def get_seq_length(self, *args: Any) -> int:
        """0: position ids are always explicit."""
        return 0

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1

    get_max_cache_shape = get_max_length  # the name in transformers 5.0


class PackedCache(Cache):
    """The `past_key_values` of one packed forward; the state lives in the sequences."""

    def __init__(self, rows: PackedRows, num_layers: int) -> None:
        super().__init__(layers=[PackedLayer(rows, index) for index in range(num_layers)])
