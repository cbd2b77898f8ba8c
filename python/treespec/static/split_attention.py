# SPDX-License-Identifier: Apache-2.0
"""Attention in two parts, prefix and tree, merged by their sums of exponentials.

The prefix part is dense over an envelope: its mask is one bit per key, whatever the tree is. The
tree part is small. Source of the merge: Milakov and Gimelshein, "Online normalizer calculation for
softmax", 2018, arXiv 1805.02867, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from treespec.static.attention import RowMask
from treespec.targets.hf_attention import ScoreRule

# Doubling keeps the number of different envelopes, hence of captures, logarithmic.
SMALLEST_ENVELOPE = 256


class SplitAttention:
    """Plain torch arithmetic in float32 (float64 for float64); runs on every device."""

    name = "split"

    def __init__(self, smallest_envelope: int = SMALLEST_ENVELOPE) -> None:
        self._smallest = smallest_envelope

    def envelope(self, needed: int, capacity: int) -> int:
        """The smallest doubling of the smallest envelope that holds `needed` rows."""
        rows = self._smallest
        while rows < needed:
            rows *= 2
        return min(rows, capacity)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: RowMask,
        rule: ScoreRule,
    ) -> torch.Tensor:
        """See `treespec.static.attention.TreeAttention`."""
        heads, rows = query.shape[1:3]
        wide = torch.promote_types(query.dtype, torch.float32)
        grouped = query.to(wide).unflatten(1, (key.shape[1], -1))
        parts = [
            _part(grouped, key.to(wide), value.to(wide), _sees_prefix(mask, rule.window), rule),
            _part(
                grouped,
                _slots(key, mask).to(wide),
                _slots(value, mask).to(wide),
                _sees_slots(mask, rule.window),
                rule,
            ),
        ]
        if rule.sinks is not None:
            sinks = rule.sinks.to(wide).view(1, key.shape[1], -1, 1, 1)
            parts.append(_Part(sinks, torch.ones_like(sinks), torch.zeros_like(sinks)))
        return _merge(parts).reshape(len(query), heads, rows, -1).to(query.dtype)


@dataclass(frozen=True)
class _Part:
    """A softmax over some of the keys: ``weighted / mass`` with all exponents relative to `top`."""

    top: torch.Tensor  # [B, H_kv, groups, R, 1]
    mass: torch.Tensor
    weighted: torch.Tensor  # [B, H_kv, groups, R, E]


def _part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    rule: ScoreRule,
) -> _Part:
    """Of ``[B, H_kv, groups, R, D]`` queries over ``[B, H_kv, L, D]`` keys; `visible` is
    ``[B, R or 1, L]``.
    """
    shape = query.shape[2:4]
    scores = query.flatten(2, 3) @ key.mT * rule.scale
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    lowest = torch.finfo(scores.dtype).min
    scores = scores.unflatten(2, shape).masked_fill(~visible[:, None, None], -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp(min=lowest)  # finite where a row sees nothing here
    weights = torch.exp(scores - top)
    weighted = (weights.flatten(2, 3) @ value).unflatten(2, shape)
    return _Part(top, weights.sum(-1, keepdim=True), weighted)


def _merge(parts: list[_Part]) -> torch.Tensor:
    top = parts[0].top
    for part in parts[1:]:
        top = torch.maximum(top, part.top)
    factors = [torch.exp(part.top - top) for part in parts]
    mass = sum(part.mass * factor for part, factor in zip(parts, factors, strict=True))
    weighted = sum(part.weighted * factor for part, factor in zip(parts, factors, strict=True))
    output: torch.Tensor = weighted / mass
    return output


def _slots(states: torch.Tensor, mask: RowMask) -> torch.Tensor:
    """The slots' rows ``[B, H, T, D]`` of ``[B, H, envelope, D]``."""
    rows = mask.slot_rows[:, None, :, None]
    return states.gather(2, rows.expand(-1, states.shape[1], -1, states.shape[3]))


def _sees_prefix(mask: RowMask, window: int | None) -> torch.Tensor:
    """``[B, 1, envelope]``, with a window ``[B, R, envelope]``."""
    key = ("prefix", window)
    if key not in mask.derived:
        rows = torch.arange(mask.envelope, device=mask.prefix.device)
        visible = rows < mask.prefix[:, None, None]
        if window is not None:
            visible = visible & (mask.positions[:, :, None] - rows < window)
        mask.derived[key] = visible
    sees: torch.Tensor = mask.derived[key]
    return sees


def _sees_slots(mask: RowMask, window: int | None) -> torch.Tensor:
    """``[B, R, T]``."""
    key = ("slots", window)
    if key not in mask.derived:
        slots = torch.arange(mask.num_slots, device=mask.bits.device)
        words = mask.bits.index_select(-1, slots // 32)
        visible = (words >> (slots % 32)) & 1 == 1
        if window is not None:
            distance = mask.positions[:, :, None] - mask.slot_positions[:, None, :]
            visible = visible & (distance < window)
        mask.derived[key] = visible
    sees: torch.Tensor = mask.derived[key]
    return sees
