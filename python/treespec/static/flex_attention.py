# SPDX-License-Identifier: Apache-2.0
"""Attention by torch's FlexAttention: kernels visit the blocks of the real context only.

The lists of blocks are tensors computed on the device from lengths and bits, so that one graph
serves every length: whole blocks of the prefix are full, the last one and those of the tree go
through the mask function, all others are not visited.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from treespec.static.attention import RowMask
from treespec.static.compilation import many_shapes
from treespec.targets.hf_attention import ScoreRule

BLOCK_ROWS = 128  # of queries and of keys; FlexAttention's own default


def is_available() -> bool:
    """Whether this torch has all that is used here (2.9 has; the rest of treespec needs less)."""
    return hasattr(flex, "AuxRequest")


class FlexAttention:
    """FlexAttention over the whole buffers.

    Parameters
    ----------
    compiled
        Whether the kernels are compiled, which is what skips blocks. Uncompiled, torch computes
        all scores: good for tests.
    """

    name = "flex"

    def __init__(self, compiled: bool) -> None:
        self._attend: Any = _compiled if compiled else flex_attention

    def envelope(self, needed: int, capacity: int) -> int:
        """The capacity: blocks that are not visited cost nothing."""
        return capacity

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: RowMask,
        rule: ScoreRule,
    ) -> torch.Tensor:
        """See `treespec.static.attention.TreeAttention`."""
        options: dict[str, Any] = {
            "block_mask": block_mask(mask, rule.window),
            "scale": rule.scale,
            "score_mod": None if rule.softcap is None else _softcap(rule.softcap),
            "enable_gqa": query.shape[1] != key.shape[1],
        }
        if rule.sinks is None:
            output: torch.Tensor = self._attend(query, key, value, **options)
            return output
        output, aux = self._attend(
            query, key, value, **options, return_aux=flex.AuxRequest(lse=True)
        )
        # A sink only adds to the normaliser: exp(lse) / (exp(lse) + exp(sink)).
        share = torch.sigmoid(aux.lse - rule.sinks.to(aux.lse.dtype)[:, None])
        return output * share.unsqueeze(-1).to(output.dtype)


_COMPILED = torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _compiled(*arguments: torch.Tensor, **options: Any) -> Any:
    """FlexAttention by compiled kernels, one per shape; never the uncompiled form in silence."""
    with many_shapes():
        return _COMPILED(*arguments, **options)


def _softcap(cap: float) -> Any:
    def score_mod(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return cap * torch.tanh(score / cap)

    return score_mod


def block_mask(mask: RowMask, window: int | None) -> BlockMask:
    """The `BlockMask` of a `RowMask`; layers with the same window share it."""
    key = ("blocks", window)
    if key not in mask.derived:
        mask.derived[key] = _block_mask(mask, window)
    blocks: BlockMask = mask.derived[key]
    return blocks


def _block_mask(mask: RowMask, window: int | None) -> BlockMask:
    rows = mask.positions.shape[1]
    query_blocks = -(-rows // BLOCK_ROWS)
    full, partial = visited_blocks(mask, window)
    lists = [*_block_list(partial, query_blocks), *_block_list(full, query_blocks)]
    return BlockMask.from_kv_blocks(
        *lists,
        BLOCK_SIZE=BLOCK_ROWS,
        mask_mod=_mask_mod(mask, window),
        seq_lengths=(rows, mask.envelope),
        compute_q_blocks=False,  # for the backward pass
    )


def visited_blocks(mask: RowMask, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of keys that all rows see whole, and those that some row may see a part of.

    Returns
    -------
    full, partial
        ``[B, ceil(envelope / 128)]`` bool, disjoint.
    """
    prefix = mask.prefix[:, None]
    blocks = -(-mask.envelope // BLOCK_ROWS)
    begin = torch.arange(blocks, device=prefix.device) * BLOCK_ROWS
    end = begin + BLOCK_ROWS
    full = end <= prefix
    visited = begin < prefix + mask.num_slots
    if window is not None:
        # Rows of the tree are never cut away whole: every row sees itself.
        oldest = mask.positions.amin(1, keepdim=True) - window
        visited = visited & ((end - 1 > oldest) | (end > prefix))
        newest = mask.positions.amax(1, keepdim=True) - window
        full = full & (begin > newest)
    return full, visited & ~full


def _block_list(chosen: torch.Tensor, query_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``[B, 1, Q]`` counts and ``[B, 1, Q, K]`` numbers of the chosen blocks, ascending."""
    count = chosen.sum(-1, dtype=torch.int32)
    order = torch.argsort(chosen.to(torch.int8), dim=-1, descending=True, stable=True)
    lists = order.to(torch.int32)[:, None, None].expand(-1, 1, query_blocks, -1)
    return count[:, None, None].expand(-1, 1, query_blocks).contiguous(), lists.contiguous()


def _mask_mod(mask: RowMask, window: int | None) -> Any:
    prefix, bits, positions = mask.prefix, mask.bits, mask.positions
    slot_positions, last_slot = mask.slot_positions, mask.num_slots - 1

    def visible(
        b: torch.Tensor, h: torch.Tensor, row: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        slot = key - prefix[b]
        known = slot.clamp(0, last_slot)
        bit = (bits[b, row, known // 32] >> (known % 32)) & 1
        sees = (slot < 0) | ((slot <= last_slot) & (bit == 1))
        if window is None:
            return sees
        position = torch.where(slot < 0, key, slot_positions[b, known])
        return sees & (positions[b, row] - position < window)

    return visible
