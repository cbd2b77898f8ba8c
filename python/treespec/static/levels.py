# SPDX-License-Identifier: Apache-2.0
"""A causal language model as the drafter of static rounds: one forward per call of the builder.

Every node that is expanded takes a slot, the KV row behind the root that its number of hand-over
says, so that a call needs no list of what earlier ones have computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from treespec.drafts.autoregressive import AutoregressiveDrafter, AutoregressiveSession
from treespec.static.attention import RowMask
from treespec.static.drafting import Drafted, DraftRecipe, DraftStep, Observed
from treespec.static.growth import GrowthRecipe, GrowthState
from treespec.static.kv import StaticKv
from treespec.static.ops import encode_options
from treespec.static.plan import plan_draft
from treespec.static.runner import StaticRunner
from treespec.targets.base import Needs

OPS = torch.ops.treespec

_OUT_OF_BOUNDS = 8  # `treespec::device::kOutOfBounds`


class LevelState:
    """The drafter's part of a static round; tensors are written in place.

    Attributes
    ----------
    kv
        Keys and values.
    length
        ``[B]`` int32, committed rows of it.
    pending, num_pending
        ``[B, C]``, ``[B]`` int32: committed tokens without rows, the root last, then anything.
    growth
        The trees.
    bits, slot_depth
        ``[B, S, words]``, ``[B, S]`` int32: slots that every slot sees, its own included, and its
        depth. The last slot is for rows of nobody.
    """

    def __init__(self, kv: StaticKv, recipe: GrowthRecipe, max_tokens: int) -> None:
        device, batch, slots = kv.buffers[0].device, kv.batch, recipe.max_rows

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.kv = kv
        self.length, self.num_pending = zeros(batch), zeros(batch)
        self.pending = zeros(batch, max_tokens)
        self.growth = GrowthState.empty(recipe, batch, device)
        self.bits, self.slot_depth = zeros(batch, slots, -(-slots // 32)), zeros(batch, slots)

    @property
    def waiting(self) -> torch.Tensor:
        """``[B]`` int32: nodes that wait for a row."""
        return self.growth.num_waiting

    def tensors(self) -> list[torch.Tensor]:
        """What one step of a draft leaves for the next."""
        return [*self.growth.tensors, self.bits, self.slot_depth]


class LevelDrafter:
    """Drafts with a causal language model that has the target's token ids.

    Parameters
    ----------
    drafter
        The step-by-step drafter, whose model it is.
    recipe
        What every draft is made for.

    Raises
    ------
    NotImplementedError
        See `plan_draft` and `StaticRunner`.
    """

    needs = Needs()

    def __init__(self, drafter: AutoregressiveDrafter, recipe: DraftRecipe) -> None:
        plan = plan_draft(recipe.builder, recipe.options, recipe.node_budget)
        self.max_depth, self.widths, self.max_rows = plan.max_depth, plan.widths, plan.max_rows
        self.spare_rows = max(plan.max_rows, plan.max_depth + 1)
        self.drawn, self.tempered = recipe.drawn, recipe.temperature is None
        # The normaliser of scores is that of a whole row: candidates are ranked with it.
        options = dict(recipe.options)
        self.temperature = (recipe.temperature or 1.0) * options.pop("score_temperature", 1.0)
        self.growth = GrowthRecipe(
            recipe.builder.name,
            encode_options(options),
            recipe.node_budget,
            plan.num_candidates,
            recipe.vocab_size,
            plan.max_rows,
        )
        device = next(drafter.model.parameters()).device
        self._drafter = drafter
        self._runner = StaticRunner(drafter.model, recipe.attention, compiled=recipe.compiled)
        self._catch_up_bits = _on(device, np.bitwise_or.accumulate(_own_bits(self.max_depth + 1)))
        self._own_bits = _on(device, _own_bits(self.max_rows))

    def prepare(self, sessions: Sequence[AutoregressiveSession]) -> None:
        """See `StaticDrafter`: the prompts are computed here."""
        self._drafter.catch_up(sessions)

    def make_state(self, sessions: Sequence[AutoregressiveSession], capacity: int) -> LevelState:
        """See `StaticDrafter`."""
        kv = StaticKv(sessions[0].sequence, len(sessions), capacity)
        return LevelState(kv, self.growth, self.max_depth + 1)

    def load(self, state: LevelState, sessions: Sequence[AutoregressiveSession]) -> None:
        """See `StaticDrafter`; roots are computed again."""
        for place, session in enumerate(sessions):
            state.kv.load(place, session.sequence)
            state.pending[place, 0] = session.tokens[-1]
            state.length[place] = len(session.tokens) - 1
            state.num_pending[place] = 1

    def begin(self, state: LevelState, step: DraftStep) -> None:
        """Compute the tokens since the last round, and the root's candidates.

        Rows up to ``length + num_pending`` are those of committed tokens afterwards; a draft that
        is repeated writes the same.
        """
        logits = self._catch_up(state, step.envelope)
        last = (state.num_pending.long() - 1)[:, None, None].expand(-1, 1, logits.shape[-1])
        self._call(OPS.begin_growth, state, step)
        token, logprob = self._rank(step, logits.gather(1, last))
        # Nobody waits for the trees of sequences that are not active: they end with the root.
        nothing = (step.active == 0)[:, None, None]
        self._supply(state, step, token, logprob.masked_fill(nothing, -torch.inf))

    def grow(self, state: LevelState, step: DraftStep, width: int, num_slots: int) -> None:
        """See `StaticDrafter`."""
        growth, prefix = state.growth, state.length + state.num_pending
        slot, parent = (numbers[:, :width].long() - 1 for numbers in (growth.index, growth.parent))
        self._report(slot >= num_slots, step)
        nobody = (slot < 0) | (slot >= num_slots)
        slot = slot.masked_fill(nobody, num_slots)
        depth = growth.depth[:, :width]
        bits = self._lineage(state, slot, parent)
        state.slot_depth.scatter_(1, slot, depth)
        mask = RowMask(
            prefix,
            bits,
            prefix[:, None] - 1 + depth,
            prefix[:, None] - 1 + state.slot_depth[:, : num_slots + 1],
            step.envelope,
        )
        logits = self._runner.forward(state.kv, growth.token[:, :width], mask, slot)
        self._supply(state, step, *self._rank(step, logits))

    def finish(self, state: LevelState, step: DraftStep) -> Drafted:
        """See `StaticDrafter`."""
        self._call(OPS.finish_growth, state, step)
        growth = state.growth
        return Drafted(growth.trees, growth.law if self.drawn else None)

    def observe(self, state: LevelState, step: DraftStep, observed: Observed) -> None:
        """Keep the tokens for the next `begin`: to compute their rows again beats moving them."""
        active = step.active == 1
        state.length.add_(state.num_pending * step.active)
        state.pending.copy_(torch.where(active[:, None], observed.tokens, state.pending))
        state.num_pending.copy_(torch.where(active, observed.count, state.num_pending))

    def _catch_up(self, state: LevelState, envelope: int) -> torch.Tensor:
        """Logits ``[B, C, V_draft]`` after each of the pending tokens."""
        length, count = state.length, state.pending.shape[1]
        steps = torch.arange(count, dtype=torch.int32, device=length.device)
        positions = length[:, None] + steps
        bits = self._catch_up_bits.expand(len(length), -1, -1)
        mask = RowMask(length, bits, positions, positions, envelope)
        return self._runner.forward(state.kv, state.pending, mask)

    def _lineage(self, state: LevelState, slot: torch.Tensor, parent: torch.Tensor) -> torch.Tensor:
        """``[B, W, words]``: slots that rows see, kept for their children."""
        words = state.bits.shape[2]
        above = parent.clamp(min=0, max=state.bits.shape[1] - 1)[..., None].expand(-1, -1, words)
        inherited = state.bits.gather(1, above).masked_fill((parent < 0)[..., None], 0)
        bits = inherited | self._own_bits[slot]
        state.bits.scatter_(1, slot[..., None].expand(-1, -1, words), bits)
        return bits

    def _rank(self, step: DraftStep, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Candidates ``[B, W, K]`` after each of the rows ``[B, W, V_draft]``."""
        token, logprob = OPS.rank_candidates(
            logits,
            self.growth.vocab_size,
            self.growth.num_candidates,
            self.temperature,
            step.status,
        )
        return token, drawn_law(logprob, step.params, self.tempered) if self.drawn else logprob

    def _supply(
        self, state: LevelState, step: DraftStep, token: torch.Tensor, logprob: torch.Tensor
    ) -> None:
        """Hand the candidates of the waiting nodes over."""
        self._call(OPS.grow, state, step, token, logprob)

    def _call(self, op: Any, state: LevelState, step: DraftStep, *lists: torch.Tensor) -> None:
        growth = state.growth
        op(*self.growth.arguments, growth.tensors, *lists, step.root, step.key, step.status)

    @staticmethod
    def _report(beyond: torch.Tensor, step: DraftStep) -> None:
        """Nodes that no slot is there for."""
        step.status.bitwise_or_(beyond.any(1).int() * _OUT_OF_BOUNDS)


def schedule(widths: Sequence[int]) -> list[tuple[int, int]]:
    """Width and slots of every call of `LevelDrafter.grow`, for calls of known width."""
    return list(zip(widths[1:], accumulate(widths[1:]), strict=True))


def drawn_law(logprob: torch.Tensor, params: torch.Tensor, tempered: bool) -> torch.Tensor:
    """What tokens are drawn by: the text's temperature (at 0: 1), top-k and top-p over lists.

    The target's own truncation spares draws that it would reject.

    Parameters
    ----------
    logprob
        ``[B, ..., K]`` float32, ranked; -inf pads.
    params
        Of `DraftStep`.
    tempered
        Whether the temperature counts, too.
    """
    greedy = params[:, 0] == 0
    temperature = (
        params[:, 0].masked_fill(greedy, 1.0) if tempered else torch.ones_like(params[:, 0])
    )
    top_k = params[:, 1].masked_fill(greedy | (params[:, 1] == 0), logprob.shape[-1])
    top_p = params[:, 2].masked_fill(greedy, 1.0)
    per_sequence = (-1, *[1] * (logprob.dim() - 1))
    heat, count, mass = (p.float().view(per_sequence) for p in (temperature, top_k, top_p))
    heat = heat.clamp(min=torch.finfo(torch.float32).tiny)
    ranks = torch.arange(logprob.shape[-1], device=logprob.device)
    scores = (logprob / heat).masked_fill(ranks >= count, -torch.inf)
    law = scores.softmax(-1)
    beyond = (mass < 1) & (law.cumsum(-1) - law >= mass)
    beyond[..., 0] = False
    scores = scores.masked_fill(beyond, -torch.inf)
    changed = (heat != 1) | (scores.isinf() & ~logprob.isinf()).any(-1, keepdim=True)
    return torch.where(changed & ~scores.isinf(), scores.log_softmax(-1), scores)


def _own_bits(count: int) -> np.ndarray:
    """``[count, words]`` int32: row i has bit i."""
    slots = np.arange(count)
    bits = np.zeros((count, -(-count // 32)), np.uint32)
    bits[slots, slots // 32] = np.uint32(1) << (slots % 32).astype(np.uint32)
    return bits.view(np.int32)


def _on(device: torch.device, values: np.ndarray) -> torch.Tensor:
    """A constant on the device."""
    return torch.from_numpy(values).to(device)
