# SPDX-License-Identifier: Apache-2.0
"""Rounds of a decoder over static buffers: what `treespec.load(graph=...)` switches on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any

import torch

from treespec import _core
from treespec._core import Verdict
from treespec.generation import Generation, OnRound, RoundRecord
from treespec.planning.selector import SelectorPlan
from treespec.static import cuda_ops
from treespec.static.attention import TreeAttention
from treespec.static.capture import CapturedRound, CaptureStatus, Mailbox
from treespec.static.choice import AttentionShape, choose_attention
from treespec.static.drafters import make_static_drafter, weights_of
from treespec.static.drafting import DraftRecipe
from treespec.static.grammar import Grammar
from treespec.static.host_trees import trees_on_host
from treespec.static.kv import StaticKv
from treespec.static.ops import PARAM_NAMES
from treespec.static.plan import TABLE_BUILDERS, check_envelope
from treespec.static.round import Judgement, RoundRecipe, RoundState, SequenceStart, play
from treespec.static.runner import StaticRunner
from treespec.static.selecting import StaticSelector, TargetPast
from treespec.stats import Clock
from treespec.targets.hf import HfTarget
from treespec.targets.hf_model import text_config

# The most levels of a tree that verifiers from the bottom up hold on a device.
_MOST_LEVELS = {"traversal": 128, "block": 128}

# Buffers grow in steps of this many rows, so that calls of similar length share them.
_CAPACITY_STEP = 256

# A usual context, to choose the attention by.
_TYPICAL_CONTEXT, _TYPICAL_CAPACITY = 2048, 4096


class GraphRounds:
    """Plays the rounds of a decoder with static shapes; on a GPU each is one CUDA graph.

    Parameters
    ----------
    target, drafter
        What the decoder drives.
    builder, options, verifier, node_budget
        Of the decoder; options resolved.
    draft_temperature
        Of the draft law.
    lossy
        Whether verifiers that change the distribution of the text are admitted.
    compiled
        Whether the blocks of language models go through torch.compile.
    attention
        None: the faster one on this machine (`treespec.static.choice`).
    plan
        Of a selector, which then chooses the options and bounds the node budget.

    Attributes
    ----------
    attention
        How both models attend.
    status
        Says why rounds cannot be captured, once that is known.

    Raises
    ------
    NotImplementedError
        If something does not go with static shapes, or needs a build with CUDA.
    """

    def __init__(
        self,
        target: Any,
        drafter: Any,
        *,
        builder: _core.TreeBuilder,
        options: Mapping[str, Any],
        verifier: str,
        node_budget: int,
        draft_temperature: float | None,
        lossy: bool = False,
        compiled: bool = False,
        attention: TreeAttention | None = None,
        plan: SelectorPlan | None = None,
    ) -> None:
        self.device = _common_device(target, drafter)
        selector = None
        if plan is not None:
            selector = StaticSelector(plan, draft_temperature, target.vocab_size, self.device)
            builder, options = selector.builder, selector.options
            node_budget = selector.node_budget
        check_envelope(builder, node_budget, TABLE_BUILDERS)
        self.attention = attention or _fast_attention(target, node_budget + 1, self.device)
        self.status = CaptureStatus()
        self._target, self._drafter, self._verifier = target, drafter, verifier
        recipe = DraftRecipe(
            builder,
            options,
            node_budget,
            target.vocab_size,
            draft_temperature,
            self.attention,
            compiled,
            selector,
        )
        static = make_static_drafter(drafter, recipe)
        self._recipe = RoundRecipe(
            target=StaticRunner(target.model, self.attention, static.needs, compiled=compiled),
            drafter=static,
            node_budget=node_budget,
            proposal=builder.proposal,
            lossy=lossy,
            selects=selector is not None,
        )
        _check_levels(verifier, builder.proposal, static.max_depth)
        self._idle: _Buffers | None = None  # of the last generation, with their graphs
        self._lock = Lock()  # two threads must not take the same ones

    @contextmanager
    def open(
        self, running: Sequence[Generation], on_round: OnRound | None = None
    ) -> Iterator[GraphRun]:
        """Take over prefilled sequences; their states are in static buffers afterwards."""
        self._recipe.drafter.prepare([g.draft_state for g in running])
        buffers = self._take_buffers(running)
        buffers.load(running)
        self._release_states(running)
        run = GraphRun(running, self._recipe, buffers, self.attention, self._verifier, on_round)
        try:
            yield run
        except GeneratorExit:  # closed by its user
            self._idle = buffers
            raise
        self._idle = buffers  # not after an error: what it has left there may be NaN

    def _take_buffers(self, running: Sequence[Generation]) -> _Buffers:
        """The idle ones if they fit; another generation may run at the same time."""
        recipe = self._recipe
        # The last round may emit more tokens than are kept, and the next ones run behind them.
        needed = max(g.capacity for g in running) + recipe.max_tokens + recipe.spare_rows
        with self._lock:
            idle, self._idle = self._idle, None
        if idle is not None and idle.fit(len(running), needed):
            return idle
        capacity = -(-needed // _CAPACITY_STEP) * _CAPACITY_STEP
        return _Buffers(recipe, running, capacity, self.device, self.status)

    def _release_states(self, running: Sequence[Generation]) -> None:
        for g in running:
            self._target.close(g.target_state)
            self._drafter.end(g.draft_state)
            g.target_state = g.draft_state = None


class _Buffers:
    """The state of B sequences on the device and the graphs that work on it."""

    def __init__(
        self,
        recipe: RoundRecipe,
        running: Sequence[Generation],
        capacity: int,
        device: torch.device,
        status: CaptureStatus,
    ) -> None:
        self._static, self._vocab_size = recipe.drafter, recipe.target.vocab_size
        self._grammar: Grammar | None = None
        target_kv = StaticKv(running[0].target_state, len(running), capacity)
        draft = recipe.drafter.make_state([g.draft_state for g in running], capacity)
        past = None
        if recipe.selects:
            past = TargetPast(running[0].plan_state, len(running), target_kv.buffers[0])
        self.state = RoundState(target_kv, draft, recipe.max_tokens, recipe.max_nodes, past)
        self.results = Mailbox(self.state.results)
        self.waiting = None if recipe.drafter.widths is not None else Mailbox(draft.waiting)
        self.captured = CapturedRound(
            partial(play, recipe, self.state), self.state.paused, device, status
        )

    @property
    def grammar(self) -> Grammar:
        """Made when it is first asked for."""
        if self._grammar is None:
            self._grammar = Grammar(self.state.nodes, self.state.allow(self._vocab_size))
        return self._grammar

    def fit(self, batch: int, capacity: int) -> bool:
        kv = self.state.target_kv
        return kv.batch == batch and kv.capacity >= capacity

    def load(self, running: Sequence[Generation]) -> None:
        for place, g in enumerate(running):
            self.state.target_kv.load(place, g.target_state)
            if self.state.past is not None:
                self.state.past.load(place, g.plan_state, g.capacity)
        self._static.load(self.state.draft, [g.draft_state for g in running])
        self.state.start([_start(g) for g in running])


class GraphRun:
    """The rounds of one batch.

    Parameters
    ----------
    generations
        The batch, in the order of the buffers.
    recipe, buffers, attention
        What is played on which buffers, and who knows the envelope.
    verifier
        A name of `treespec.verifier_names`, or ``"auto"``.
    on_round
        Told of every sequence's part of every round.
    """

    def __init__(
        self,
        generations: Sequence[Generation],
        recipe: RoundRecipe,
        buffers: _Buffers,
        attention: TreeAttention,
        verifier: str,
        on_round: OnRound | None = None,
    ) -> None:
        self._generations, self._recipe, self._buffers = list(generations), recipe, buffers
        self._attention, self._on_round = attention, on_round
        greedy = generations[0].params.greedy
        name = _core.auto_verifier(recipe.proposal, greedy) if verifier == "auto" else verifier
        ruled = any(g.params.allowed_tokens is not None for g in generations)
        self._grammar = buffers.grammar if ruled else None
        self._how = Judgement(name, buffers.state.num_biases, ruled)
        self._lengths = [g.length for g in generations]  # as the device has them
        self._active = [True] * len(self._generations)
        self._buffers.state.set_active(self._active)

    def round(self, running: Sequence[Generation], clock: Clock) -> None:
        """Play one round and commit what it emitted to the running generations.

        All time on the device is booked as the target's: a graph has no steps. Where the data
        decide how often the drafter is called, its calls are waited for and booked as drafting.
        What allowed tokens take is booked as verifying.
        """
        if self._buffers.waiting is not None:
            with clock.step("draft"):
                self._draft(clock, self._buffers.waiting)
        with clock.step("target"):
            self._finish(clock)
            results = self._buffers.results.fetch()
        for width in self._recipe.drafter.widths or ():
            clock.count_draft(width * sum(self._active))
        with clock.step("commit"):
            self._buffers.state.check_results(results)
            records = self._records(results) if self._on_round is not None else []
            self._commit(results)
        if self._on_round is not None:
            for record in records:
                self._on_round(record)

    def _finish(self, clock: Clock) -> None:
        """Play what is left of a round: in parts if the host looks at its trees."""
        if self._grammar is None and self._on_round is None:
            self._run("round" if self._buffers.waiting is None else "finish", self._how)
            return
        self._run("trees")
        if self._grammar is not None:
            self._grammar.ask()
        self._run("target")
        if self._grammar is not None:
            with clock.step("verify"):
                self._grammar.answer(self._going_on())
        self._run("judge", self._how)

    def _going_on(self) -> list[tuple[int, Generation]]:
        """Active sequences with their places."""
        return [(b, g) for b, g in enumerate(self._generations) if self._active[b]]

    def _draft(self, clock: Clock, waiting: Mailbox) -> None:
        """Call the drafter as long as a sequence waits for rows."""
        most, used = self._recipe.drafter.max_rows - 1, 0
        self._run("begin", *([self._how.num_biases] if self._recipe.selects else []))
        clock.count_draft(sum(self._active))
        while widest := int((count := waiting.fetch()).max()):
            used += widest  # no sequence has more slots in use afterwards
            self._run("grow", _bucket(widest, most), _bucket(used, most))
            clock.count_draft(int(count.sum()))

    def _run(self, part: str, *how: Any) -> None:
        self._buffers.captured.run(part, self._envelope(), *how)

    def _envelope(self) -> int:
        needed = max(self._lengths) + self._recipe.spare_rows
        return self._attention.envelope(needed, self._buffers.state.target_kv.capacity)

    def _records(self, results: Any) -> list[RoundRecord]:
        """What `on_round` is told; the trees are brought to the host for it alone."""
        state, going_on = self._buffers.state, self._going_on()
        drafted = state.drafted[self._envelope()]
        trees = trees_on_host(*drafted, self._recipe.proposal, [place for place, _ in going_on])
        records = []
        for (place, g), tree in zip(going_on, trees, strict=True):
            result = state.read_results(results, place)
            verdict = Verdict(tree, result.accepted_nodes.tolist(), int(result.tokens[-1]))
            records.append(RoundRecord(tree, verdict, g.length - 1, g.place))
        return records

    def _commit(self, results: Any) -> None:
        """Append tokens up to a stop; who has stopped stays in the batch and is not changed."""
        state = self._buffers.state
        for place, g in self._going_on():
            result = state.read_results(results, place)
            self._lengths[place] += len(result.tokens)
            emitted = g.append(result.tokens)
            g.stats.count_round(result, result.accepted_nodes, emitted)
        active = [g.finish_reason is None for g in self._generations]
        if active != self._active:
            self._active = active
            state.set_active(active)


def _bucket(width: int, most: int) -> int:
    """The next power of two, so that few graphs serve all widths."""
    return min(1 << (width - 1).bit_length(), most)


def _check_levels(verifier: str, proposal: str, max_depth: int) -> None:
    name = _core.auto_verifier(proposal, False) if verifier == "auto" else verifier
    most = _MOST_LEVELS.get(name, max_depth)
    if max_depth > most:
        raise NotImplementedError(
            f"graph: max_depth must be at most {most} for verifier {name!r}, got {max_depth}"
        )


def _common_device(target: Any, drafter: Any) -> torch.device:
    """The one device of both models, with device functions if it needs them."""
    weights = weights_of(drafter)
    if not isinstance(target, HfTarget) or weights is None:
        raise NotImplementedError(
            "graph: target must be a Hugging Face model with keys and values, and drafter such a "
            "model, or one of the kinds dflash, treeflash, pairwise, medusa and eagle3; got "
            f"{type(target).__name__} and {type(drafter).__name__}"
        )
    models = (target.model, weights)
    devices = {parameter.device for model in models for parameter in model.parameters()}
    if len(devices) > 1:
        raise NotImplementedError(
            f"graph: target and drafter must be on one device, got {sorted(map(str, devices))}"
        )
    device: torch.device = devices.pop()
    if device.type == "cuda":
        cuda_ops.require_cuda()
    return device


def _fast_attention(target: HfTarget, rows: int, device: torch.device) -> TreeAttention:
    config = text_config(target.model)
    heads = config.num_attention_heads
    shape = AttentionShape(
        batch=1,
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        rows=rows,
        context=_TYPICAL_CONTEXT,
        capacity=_TYPICAL_CAPACITY,
    )
    return choose_attention(shape, target.model.dtype, device)


def _start(g: Generation) -> SequenceStart:
    params = tuple(float(getattr(g.params, name)) for name in PARAM_NAMES)
    biases = tuple(g.params.logit_bias.items())
    return SequenceStart(g.tokens, g.prompt_length, params, g.params.seed, g.sequence_id, biases)
