# SPDX-License-Identifier: Apache-2.0
"""Masks and forwards of static shapes for tests, from trees as the packed target takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from treespec import _core
from treespec.static.attention import RowMask
from treespec.static.kv import StaticKv
from treespec.targets.base import Needs, TreeRows
from treespec.targets.hf import HfTarget


def row_mask(
    prefixes: Sequence[int], trees: Sequence[TreeRows], max_nodes: int, envelope: int
) -> RowMask:
    """The mask of a batch of trees, padded to `max_nodes` with rows that see themselves."""
    batch, words = len(trees), -(-max_nodes // 32)
    bits = np.zeros((batch, max_nodes, words), np.uint32)
    positions = np.tile(np.array(prefixes, np.int32)[:, None], (1, max_nodes))
    for b, tree in enumerate(trees):
        n = len(tree)
        own = _core.ancestor_bits(tree.parent)
        bits[b, :n, : own.shape[1]] = own
        positions[b, :n] += tree.depth
        for padding in range(n, max_nodes):
            bits[b, padding, padding // 32] = 1 << (padding % 32)
    return RowMask(
        torch.tensor(prefixes, dtype=torch.int32),
        torch.from_numpy(bits.view(np.int32)),
        torch.from_numpy(positions),
        torch.from_numpy(positions),
        envelope,
    )


def padded_tokens(trees: Sequence[TreeRows], max_nodes: int) -> torch.Tensor:
    out = torch.zeros(len(trees), max_nodes, dtype=torch.int32)
    for b, tree in enumerate(trees):
        out[b, : len(tree)] = torch.from_numpy(tree.token)
    return out


def plain_attention(query: Any, key: Any, value: Any, mask: RowMask, rule: Any) -> torch.Tensor:
    """The definition: every score, every key asked one by one whether the row sees it."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * rule.scale
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    scores = scores.masked_fill(~visible_keys(mask, rule.window)[:, None], -torch.inf)
    if rule.sinks is not None:
        sinks = rule.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    return scores.softmax(-1)[..., : key.shape[2]] @ value


def visible_keys(mask: RowMask, window: int | None) -> torch.Tensor:
    """``[B, R, envelope]`` bool, by the definition of `treespec.static.attention`."""
    batch, rows = mask.positions.shape
    visible = torch.zeros(batch, rows, mask.envelope, dtype=torch.bool)
    for b in range(batch):
        prefix = int(mask.prefix[b])
        for row in range(rows):
            for j in range(min(mask.envelope, prefix + mask.num_slots)):
                slot = j - prefix
                word = 0 if slot < 0 else int(mask.bits[b, row, slot // 32])
                seen = slot < 0 or (word >> (slot % 32)) & 1 == 1
                position = j if slot < 0 else int(mask.slot_positions[b, slot])
                if window is not None:
                    seen = seen and int(mask.positions[b, row]) - position < window
                visible[b, row, j] = seen
    return visible


def static_kv(model: Any, texts: Sequence[Sequence[int]], capacity: int) -> StaticKv:
    """Buffers with the keys and values of all tokens of `texts`."""
    target = HfTarget(model)
    sequences = [target.open(len(text)) for text in texts]
    target.prefill(sequences, [np.array(text, np.int32) for text in texts], Needs())
    kv = StaticKv(sequences[0], len(texts), capacity)
    for place, sequence in enumerate(sequences):
        kv.load(place, sequence)
    return kv
