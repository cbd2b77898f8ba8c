# SPDX-License-Identifier: Apache-2.0
"""The graph of a DFlash drafter: target features in, ranked lists of every depth out.

One call commits the features of new positions and drafts a block over them; with a conditional
(TreeFlash, pairwise) the likeliest tokens of a depth go in as the previous tokens of the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from treespec.drafts.dflash import DFlashDrafter, KeysValues
from treespec.drafts.layers import KvAttention
from treespec.export.graph_ops import attend, write_rows
from treespec.export.manifest import BlockShape, CacheInput, CacheStyle, MaskInput

_EXAMPLE_FEATURES, _EXAMPLE_CAPACITY, _EXAMPLE_BATCH = 5, 48, 2


class _GraphMemory:
    """`treespec.drafts.dflash.Memory` over cache inputs: context rows first, block rows behind."""

    def __init__(
        self,
        drafter: DFlashDrafter,
        context: Sequence[KeysValues],
        cache: Sequence[torch.Tensor],
        masks: dict[int | None, torch.Tensor],
        write_index: torch.Tensor | None,
    ) -> None:
        self._config = drafter.model.config
        self._context, self._cache, self._masks = context, cache, masks
        self._write_index = write_index
        self.outputs: list[torch.Tensor] = []

    def attend(
        self, layer: int, attention: KvAttention, queries: torch.Tensor, block: KeysValues
    ) -> torch.Tensor:
        """As `treespec.drafts.dflash.Memory`."""
        visible = []
        for place in range(2):
            cached = self._cache[2 * layer + place]
            rows = torch.cat([self._context[layer][place], block[place]], dim=2)
            if self._write_index is None:
                visible.append(torch.cat([cached, rows], dim=2))
                self.outputs.append(rows)
            else:
                visible.append(write_rows(cached, rows, self._write_index))
                self.outputs.append(visible[-1])
        mask = self._masks[self._config.window(layer)]
        rows = attend(queries, visible[0], visible[1], mask, attention.head_dim**-0.5)
        return attention.project(rows)


class DFlashGraph(torch.nn.Module):
    """What is exported.

    Parameters
    ----------
    drafter
        Shared and not modified.
    num_previous, width
        R and K; see `BlockShape`.
    cache_style
        ``"in_place"`` or ``"new_rows"``.
    """

    def __init__(
        self, drafter: DFlashDrafter, num_previous: int, width: int, cache_style: CacheStyle
    ) -> None:
        super().__init__()
        config = drafter.model.config
        self.drafter, self.cache_style = drafter, cache_style
        self.model, self.conditional = drafter.model, drafter.conditional  # registers the weights
        self.embedding, self.head = drafter.tokens.embedding, drafter.tokens.head
        self.dtype: torch.dtype = drafter.model.fc.weight.dtype
        size = drafter.vocabulary.size
        self.block = BlockShape(
            depth=config.depth,
            slots=config.block_size,
            width=min(width, size),
            num_previous=min(num_previous, size) if drafter.conditional is not None else 0,
            predicts_next=config.predicts_next,
            causal=config.causal,
            windows_causal=config.windows_causal,
        )
        layers = range(config.shape.num_hidden_layers)
        self.windows = sorted({config.window(i) for i in layers}, key=lambda window: window or 0)
        self.features_width = len(config.layer_ids) * config.target_width

    def forward(
        self,
        features: torch.Tensor,
        feature_positions: torch.Tensor,
        root: torch.Tensor,
        block_positions: torch.Tensor,
        temperature: torch.Tensor,
        masks: Sequence[torch.Tensor],
        write_index: torch.Tensor | None,
        cache: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """The inputs and outputs in the order of `input_names` and `output_names`."""
        drafter = self.drafter
        context = self.model.context(features, feature_positions)
        by_window = dict(zip(self.windows, masks, strict=True))
        memory = _GraphMemory(drafter, context, cache, by_window, write_index)
        block = self.model.embed_block(root, drafter.tokens).to(self.dtype)
        states = self.model.guesses(self.model.block(block, block_positions, memory))
        marginals = drafter.marginal_logits(states)
        if self.conditional is None:
            return (*self._ranked(marginals, temperature), *memory.outputs)
        rows = self.block.num_previous
        best = torch.topk(marginals, rows).indices[:, :-1]
        owner = drafter.vocabulary.target_ids(best)
        previous = torch.cat([root[:, None, None].expand(-1, 1, rows), owner], dim=1)
        logits = drafter.conditional_logits(states, previous).flatten(1, 2)[:, rows - 1 :]
        return (*self._ranked(logits, temperature), owner, *memory.outputs)

    def _ranked(
        self, logits: torch.Tensor, temperature: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Target ids and log-probabilities of the likeliest tokens of ``[B, rows, V]``."""
        law = torch.log_softmax(logits.float() / temperature, dim=-1)
        logprob, token = torch.topk(law, self.block.width)
        return self.drafter.vocabulary.target_ids(token), logprob

    # --- names and shapes ----------------------------------------------------------------------

    @property
    def masks(self) -> tuple[MaskInput, ...]:
        """Mask inputs, one per window."""
        return tuple(
            MaskInput("attention_mask" if w is None else f"attention_mask_window_{w}", w)
            for w in self.windows
        )

    @property
    def cache(self) -> tuple[CacheInput, ...]:
        """Cache inputs, keys and values in turn."""
        shape = self.model.config.shape
        prefix = "present" if self.cache_style == "in_place" else "new"
        return tuple(
            CacheInput(
                f"cache_{place}_{layer}",
                f"{prefix}_{place}_{layer}",
                shape.num_key_value_heads,
                shape.head_dim,
            )
            for layer in range(shape.num_hidden_layers)
            for place in ("keys", "values")
        )

    @property
    def input_names(self) -> list[str]:
        """In the order of `forward`."""
        write_index = ["write_index"] if self.cache_style == "in_place" else []
        return [
            *("features", "feature_positions", "root", "block_positions", "temperature"),
            *(mask.name for mask in self.masks),
            *write_index,
            *(one.name for one in self.cache),
        ]

    @property
    def output_names(self) -> list[str]:
        """In the order of `forward`."""
        owner = ["owner"] if self.block.num_previous else []
        return ["token", "logprob", *owner, *(one.output for one in self.cache)]

    def example(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Arguments to trace with, and the names of their dynamic axes."""
        batch, count, rows = _EXAMPLE_BATCH, _EXAMPLE_FEATURES, _EXAMPLE_CAPACITY
        slots, in_place = self.block.slots, self.cache_style == "in_place"
        dim = torch.export.Dim
        b, s, c = dim("batch"), dim("features"), dim("capacity", min=2)
        k = c if in_place else dim("keys", min=3)  # capacity + features + slots
        keys = rows if in_place else rows + count + slots
        masks = [torch.ones(batch, 1, slots, keys, dtype=torch.bool) for _ in self.windows]
        cache = [
            torch.zeros(batch, one.heads, rows, one.width, dtype=self.dtype) for one in self.cache
        ]
        arguments = (
            torch.zeros(batch, count, self.features_width, dtype=self.dtype),
            torch.arange(count).repeat(batch, 1),
            torch.arange(batch),
            torch.arange(slots).repeat(batch, 1),
            torch.ones(1),
            masks,
            torch.zeros(batch, dtype=torch.long) if in_place else None,
            cache,
        )
        axes: tuple[Any, ...] = (
            {0: b, 1: s},
            {0: b, 1: s},
            {0: b},
            {0: b},
            {},
            [{0: b, 3: k} for _ in masks],
            {0: b} if in_place else None,
            [{0: b, 2: c} for _ in cache],
        )
        return arguments, axes
