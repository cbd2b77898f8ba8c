# SPDX-License-Identifier: Apache-2.0
"""Drafters of static rounds that are called level by level: one forward per call of the builder.

Every node that is expanded takes a slot, the KV row behind the root that its number of hand-over
says, so that a call needs no list of what earlier ones have computed. What a row is computed from
is the model's (`treespec.static.causal_lm`, `treespec.static.eagle3`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch

from treespec.static.attention import RowMask
from treespec.static.drafting import Drafted, DraftRecipe, DraftStep, Observed
from treespec.static.growth import GrowthRecipe, GrowthState
from treespec.static.kv import StaticKv
from treespec.static.ops import encode_options
from treespec.static.plan import plan_choices, plan_draft
from treespec.targets.base import Needs

OPS = torch.ops.treespec

_OUT_OF_BOUNDS = 8  # `treespec::device::kOutOfBounds`


class LevelState:
    """The drafter's part of a static round; tensors are written in place.

    Attributes
    ----------
    kv
        Keys and values.
    states
        What the model keeps beside them (`LevelModel.make_states`).
    length
        ``[B]`` int32, committed rows of it.
    pending, num_pending
        ``[B, C]``, ``[B]`` int32: committed tokens without rows, the root last, then anything. 0
        before the first round, if the model knows its root (`LevelModel.load`).
    growth
        The trees.
    bits, slot_depth
        ``[B, S, words]``, ``[B, S]`` int32: slots that every slot sees, its own included, and its
        depth. The last slot is for rows of nobody.
    """

    def __init__(
        self,
        kv: StaticKv,
        states: tuple[torch.Tensor, ...],
        recipe: GrowthRecipe,
        max_tokens: int,
    ) -> None:
        device, batch, slots = kv.buffers[0].device, kv.batch, recipe.max_rows

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.kv = kv
        self.states: Any = states
        self.length, self.num_pending = zeros(batch), zeros(batch)
        self.pending = zeros(batch, max_tokens)
        self.growth = GrowthState.empty(recipe, batch, device)
        self.bits, self.slot_depth = zeros(batch, slots, -(-slots // 32)), zeros(batch, slots)

    @property
    def waiting(self) -> torch.Tensor:
        """``[B]`` int32: nodes that wait for a row."""
        return self.growth.num_waiting

    def tensors(self) -> list[torch.Tensor]:
        """What one step of a draft leaves for the next, but for what is written before it is read:
        rows of nodes, and their states.
        """
        return [*self.growth.tensors, self.bits, self.slot_depth]


class LevelModel(Protocol):
    """Computes the rows of committed tokens and of nodes, over the keys and values of a state.

    Attributes
    ----------
    needs
        The target's states that `observe` must be given.
    device
        Where its weights are.
    """

    needs: Needs
    device: torch.device

    def prepare(self, sessions: Sequence[Any]) -> None:
        """See `StaticDrafter`."""
        ...

    def make_states(self, batch: int, max_tokens: int, max_rows: int) -> tuple[torch.Tensor, ...]:
        """Buffers for what it keeps of B sequences beside keys and values.

        Parameters
        ----------
        max_tokens, max_rows
            Most tokens that a round commits, and `StaticDrafter.max_rows`.
        """
        ...

    def load(self, state: LevelState, place: int, session: Any) -> list[int]:
        """Take over what a prepared session knows beside keys and values.

        Returns
        -------
        list
            The last tokens with rows in the session, to be computed again by `catch_up`.
        """
        ...

    def catch_up(self, state: LevelState, mask: RowMask) -> torch.Tensor:
        """Compute the pending tokens, row i in slot i.

        Returns
        -------
        torch.Tensor
            Logits ``[B, 1, V_draft]`` after the root.
        """
        ...

    def grow(
        self,
        state: LevelState,
        token: torch.Tensor,
        slot: torch.Tensor,
        parent: torch.Tensor,
        mask: RowMask,
    ) -> torch.Tensor:
        """Compute nodes.

        Parameters
        ----------
        token
            ``[B, W]`` int32.
        slot, parent
            ``[B, W]`` int64: their slots, and those of their parents; the root has -1. Rows of
            nobody have slots of nobody, and any parent.

        Returns
        -------
        torch.Tensor
            Logits ``[B, W, V_draft]`` after them.
        """
        ...

    def observe(self, state: LevelState, step: DraftStep, observed: Observed) -> None:
        """Keep what `catch_up` will need beside the tokens, for active sequences."""
        ...

    def target_ids(self, token: torch.Tensor) -> torch.Tensor:
        """The target's ids of its own, any shape, in the same dtype."""
        ...


class LevelDrafter:
    """Drafts with a model that is called as the builder wants nodes scored.

    Parameters
    ----------
    model
        Computes the rows.
    recipe
        What every draft is made for.

    Raises
    ------
    NotImplementedError
        See `plan_draft`.
    """

    def __init__(self, model: LevelModel, recipe: DraftRecipe) -> None:
        self.model, self.needs, self._selector = model, model.needs, recipe.selector
        if recipe.selector is None:
            plan = plan_draft(recipe.builder, recipe.options, recipe.node_budget)
        else:
            plan = plan_choices(recipe.selector.actions)
            self.needs = replace(model.needs, last_hidden=recipe.selector.needs.last_hidden)
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
        bits = np.bitwise_or.accumulate(_own_bits(self.max_depth + 1))
        self._catch_up_bits = _on(model.device, bits)
        self._own_bits = _on(model.device, _own_bits(self.max_rows))

    def prepare(self, sessions: Sequence[Any]) -> None:
        """See `StaticDrafter`: the prompts are computed here."""
        self.model.prepare(sessions)

    def make_state(self, sessions: Sequence[Any], capacity: int) -> LevelState:
        """See `StaticDrafter`."""
        return self.state_of(StaticKv(sessions[0].sequence, len(sessions), capacity))

    def state_of(self, kv: StaticKv) -> LevelState:
        """The state of the sequences that these keys and values are for."""
        max_tokens = self.max_depth + 1
        states = self.model.make_states(kv.batch, max_tokens, self.max_rows)
        return LevelState(kv, states, self.growth, max_tokens)

    def load(self, state: LevelState, sessions: Sequence[Any]) -> None:
        """See `StaticDrafter`."""
        for place, session in enumerate(sessions):
            state.kv.load(place, session.sequence)
            again = self.model.load(state, place, session)
            state.pending[place, : len(again)] = torch.tensor(again, dtype=torch.int32)
            state.length[place] = session.sequence.length - len(again)
            state.num_pending[place] = len(again)

    def begin(self, state: LevelState, step: DraftStep) -> None:
        """Compute the tokens since the last round, and the root's candidates.

        A selector chooses between the two: it reads rows of committed tokens, and no draw.

        Rows up to ``length + num_pending`` are those of committed tokens afterwards; a draft that
        is repeated writes the same.
        """
        logits = self.model.catch_up(state, self.pending_mask(state, step.envelope))
        lengths = None if self._selector is None else self._selector.choose(step, state.states)
        data = (step.root, step.key, step.status)
        OPS.begin_growth(*self.growth.arguments, state.growth.tensors, *data, lengths)
        token, logprob = self._rank(step, logits)
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
        logits = self.model.grow(state, growth.token[:, :width], slot, parent, mask)
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
        self.model.observe(state, step, observed)

    def pending_mask(self, state: LevelState, envelope: int) -> RowMask:
        """Of the pending tokens, each of which sees those before it."""
        length, count = state.length, state.pending.shape[1]
        steps = torch.arange(count, dtype=torch.int32, device=length.device)
        positions = length[:, None] + steps
        bits = self._catch_up_bits.expand(len(length), -1, -1)
        return RowMask(length, bits, positions, positions, envelope)

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
        token = self.model.target_ids(token)
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


def last_row(rows: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """``[B, 1, X]``: row ``count - 1`` of ``[B, C, X]``; any row for a `count` ``[B]`` of 0."""
    place = (count.long() - 1).clamp(min=0)[:, None, None]
    return rows.gather(1, place.expand(-1, 1, rows.shape[2]))


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
