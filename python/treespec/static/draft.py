# SPDX-License-Identifier: Apache-2.0
"""Step 1 of a static round: one forward per level of a causal language model, of fixed width."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from treespec.static.attention import RowMask, TreeAttention
from treespec.static.kv import StaticKv
from treespec.static.ops import CandidateLists
from treespec.static.plan import DraftPlan
from treespec.static.runner import StaticRunner

OPS = torch.ops.treespec


class StaticDrafter:
    """Drafts for a batch with all lengths on the device.

    Parameters
    ----------
    model
        A causal language model that has the target's token ids.
    plan
        The shape of a draft.
    vocab_size
        V of the target.
    temperature
        Of the draft law.
    attention
        How to attend.
    device
        Where the model takes its input.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        plan: DraftPlan,
        vocab_size: int,
        temperature: float,
        attention: TreeAttention,
        device: torch.device,
    ) -> None:
        self.plan, self.vocab_size, self.temperature = plan, vocab_size, temperature
        self._runner = StaticRunner(model, attention)
        self._catch_up_bits = _on(device, _chain_bits(plan.max_depth + 1))
        self._own_bits = _on(device, _single_bits(self.num_slots))
        depth = np.repeat(np.arange(1, plan.max_depth), plan.widths[1:])
        self._slot_depth = _on(device, depth.astype(np.int32))
        self._sources = [
            _on(device, np.array(level, dtype=np.int64)) for level in plan.sources or ()
        ]

    @property
    def num_slots(self) -> int:
        """KV rows that a draft writes behind the root."""
        return sum(self.plan.widths[1:])

    def draft(
        self,
        kv: StaticKv,
        length: torch.Tensor,
        pending: torch.Tensor,
        num_pending: torch.Tensor,
        envelope: int,
        status: torch.Tensor,
    ) -> CandidateLists:
        """Compute the tokens since the last round and the lists of all levels.

        Rows up to ``length + num_pending`` are those of committed tokens afterwards; a draft that
        is repeated writes the same.

        Parameters
        ----------
        kv
            The drafter's keys and values.
        length
            ``[B]`` int32, committed rows of it.
        pending
            ``[B, C]`` int32, committed tokens without rows, the root last, then anything.
        num_pending
            ``[B]`` int32, at least 1: how many they are.
        envelope
            KV rows that are looked at.
        status
            ``[B]``: what is wrong with the logits.
        """
        logits = self._catch_up(kv, length, pending, envelope)
        last = (num_pending.long() - 1)[:, None, None].expand(-1, 1, logits.shape[-1])
        levels = [self._rank(logits.gather(1, last), status)]
        follow: list[torch.Tensor] = []
        prefix = length + num_pending
        score = levels[0][1].new_zeros(len(length), 1)
        bits, first_slot = None, 0
        for level, width in enumerate(self.plan.widths[1:]):
            token, logprob = levels[-1]
            scores = (score[:, :, None] + logprob).flatten(1)
            chosen = self._choose(level, scores, width)
            follow.append(_follow(logprob, chosen))
            score = scores.gather(1, chosen)
            bits = self._lineage(bits, chosen // token.shape[2], first_slot)
            mask = self._level_mask(prefix, bits, first_slot + width, envelope)
            frontier = token.flatten(1).gather(1, chosen)
            logits = self._runner.forward(kv, frontier, mask, first_slot)
            levels.append(self._rank(logits, status))
            first_slot += width
        follow.append(torch.full_like(levels[-1][0], -1))
        return self._padded(levels, follow)

    def _catch_up(
        self, kv: StaticKv, length: torch.Tensor, pending: torch.Tensor, envelope: int
    ) -> torch.Tensor:
        """Logits ``[B, C, V_draft]`` after each of the pending tokens."""
        steps = torch.arange(pending.shape[1], dtype=torch.int32, device=pending.device)
        positions = length[:, None] + steps
        bits = self._catch_up_bits.expand(len(length), -1, -1)
        return self._runner.forward(
            kv, pending, RowMask(length, bits, positions, positions, envelope)
        )

    def _rank(
        self, logits: torch.Tensor, status: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ranked: tuple[torch.Tensor, torch.Tensor] = OPS.rank_candidates(
            logits, self.vocab_size, self.plan.num_candidates, self.temperature, status
        )
        return ranked

    def _choose(self, level: int, scores: torch.Tensor, width: int) -> torch.Tensor:
        """``[B, width]`` int64: the candidates that go on, of ``[B, R * K]`` scores.

        Lists are in the order of their nodes and ranked within, so that a stable sort gives the
        builders' total order: score down, then parent, then token id.
        """
        if self._sources:
            return self._sources[level].expand(len(scores), -1)
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices
        return order[:, :width]

    def _lineage(
        self, parents: torch.Tensor | None, parent_row: torch.Tensor, first_slot: int
    ) -> torch.Tensor:
        """``[B, W, words]``: slots that the rows of a level see, their own included."""
        batch, width = parent_row.shape
        own = self._own_bits[first_slot : first_slot + width].expand(batch, -1, -1)
        if parents is None:
            return own
        rows = parent_row.unsqueeze(2).expand(-1, -1, own.shape[2])
        return parents.gather(1, rows) | own

    def _level_mask(
        self, prefix: torch.Tensor, bits: torch.Tensor, num_slots: int, envelope: int
    ) -> RowMask:
        slot_positions = prefix[:, None] - 1 + self._slot_depth[:num_slots]
        return RowMask(
            prefix, bits, slot_positions[:, num_slots - bits.shape[1] :], slot_positions, envelope
        )

    def _padded(
        self, levels: list[tuple[torch.Tensor, torch.Tensor]], follow: list[torch.Tensor]
    ) -> CandidateLists:
        """Stack the levels, with empty lists up to the widest."""
        widest = max(self.plan.widths)

        def stack(parts: list[torch.Tensor], fill: float) -> torch.Tensor:
            pad = torch.nn.functional.pad
            rows = [pad(p, (0, 0, 0, widest - p.shape[1]), value=fill) for p in parts]
            return torch.stack(rows, 1)

        token, logprob = zip(*levels, strict=True)
        return CandidateLists(
            stack(list(token), 0), stack(list(logprob), -torch.inf), stack(follow, -1)
        )


def _follow(logprob: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The table ``next`` of a level: row numbers at the chosen candidates, -1 elsewhere."""
    rows = torch.arange(chosen.shape[1], dtype=torch.int32, device=chosen.device)
    nowhere = torch.full_like(logprob.flatten(1), -1, dtype=torch.int32)
    return nowhere.scatter(1, chosen, rows.expand(len(chosen), -1)).view_as(logprob)


def _single_bits(count: int) -> np.ndarray:
    """``[count, words]`` int32: row i has bit i."""
    slots = np.arange(count)
    bits = np.zeros((count, -(-count // 32)), np.uint32)
    bits[slots, slots // 32] = np.uint32(1) << (slots % 32).astype(np.uint32)
    return bits.view(np.int32)


def _chain_bits(count: int) -> np.ndarray:
    """``[count, words]`` int32: row i has bits 0 .. i."""
    return np.bitwise_or.accumulate(_single_bits(count), axis=0)


def _on(device: torch.device, values: np.ndarray) -> torch.Tensor:
    """A constant on the device."""
    return torch.from_numpy(values).to(device)
