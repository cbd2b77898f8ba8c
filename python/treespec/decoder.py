# SPDX-License-Identifier: Apache-2.0
"""The round in Python: draft, build, mask, target forward, verify, commit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treespec import _core
from treespec._core import TokenTree, Verdict
from treespec.builder_options import list_width, resolve_options
from treespec.config import AllowedTokens, SamplingParams
from treespec.drafts.base import Drafter, DraftSettings
from treespec.generation import Generation, OnRound, Piece, RoundRecord
from treespec.growth import UNLIMITED, grow_trees
from treespec.planning.base import FixedPlan, Planner
from treespec.planning.budget import MAX_NODES, BudgetPlan
from treespec.profile import Profile
from treespec.stats import Clock
from treespec.targets.base import Array, Needs, Target, TargetStates, TreeRows
from treespec.text import encode
from treespec.verification import Case, verify_cases

if TYPE_CHECKING:
    from os import PathLike

    from treespec.planning.selector import SelectorPlan
    from treespec.selector.selector import Selector
    from treespec.static.decoding import GraphRounds

LOGGER = logging.getLogger("treespec")

PlayRound = Callable[[Sequence[Generation], Clock], None]

# What pays by device: on a CPU a forward over more rows costs more, on a GPU reading the weights
# dominates. The CPU's figures were measured (benchmarks/README.md), the GPU's are the papers'.
_NODE_BUDGETS = {"cpu": 8, "cuda": 60}
_CHAIN_LENGTHS = {"cpu": 2, "cuda": 5}
# Drafters that make one pass per round; expanders are counted where they are called.
_ONE_PASS = ("Marginals", "Transitions")
# OPT-Tree's threshold for drafters that pay for every layer: expected tokens a layer must add.
_THRESHOLDS = {"cpu": 0.4, "cuda": 0.0}


class SpeculativeDecoder:
    """Drives a target and a drafter, round by round. `treespec.load` makes one from names.

    A generation owns all that it changes, so that an error, also of a model or a callback in
    mid-round, leaves the decoder as it was.

    Parameters
    ----------
    target
        The model whose distribution is reproduced.
    drafter
        None decodes plainly, with the same sampler.
    tokenizer
        For text in and out; None works on token ids.
    builder, builder_options
        A name of `treespec.builder_names` and its options, as `treespec.build_tree` takes them;
        one that is None has its default.
    verifier
        A name of `treespec.verifier_names`, or ``"auto"``: greedy at temperature 0, else by the
        builder's proposal mode.
    node_budget, max_depth
        Most drafted nodes per round, and their depth. None: the size of a given expansion or growth
        map, the depth of a given chain, else what suits the device. So does the threshold of
        opt_tree, when the drafter is a model and `builder_options` has none.
    draft_temperature
        Temperature of the draft law. None: 1 for deterministic trees (it only ranks tokens), the
        target's own temperature, top-k and top-p for sampled ones.
    profile
        Measured costs of these models on this machine (`treespec tune --profile`): every round then
        has the tree that pays, or none, up to `node_budget` nodes, 64 if none is given. It may be
        played with graphs of static shapes no longer, so that ``graph=True`` is refused.
    lossy
        Admit verifiers that change the distribution of the text (``"typical"``).
    graph
        Play rounds with static shapes, on a GPU as CUDA graphs (docs/graphs.md). True insists,
        ``"auto"`` does so on GPUs for models and builders that allow it. Off by default, until a
        GPU has run it.
    compile
        With `graph`: let torch.compile fuse what lies between the attentions of language models
        and of EAGLE-3; the first rounds of every shape then take long. Ignored, with a warning that
        has the reason, where ``graph="auto"`` goes step by step.
    selector
        With ``builder="delayed"``: a `Selector`, or the file of one, that chooses (K, L1, L2) for
        every round (docs/selector.md). `node_budget` and `max_depth` then bound its choice; the
        verifier is the one it was trained for. With `graph` it chooses on the device.

    Raises
    ------
    ValueError
        For unknown names and options, or a verifier that would bias the builder's trees.
    NotImplementedError
        For trees on a target whose state cannot fork, and with ``graph=True`` for what cannot have
        static shapes.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None = None,
        *,
        tokenizer: Any = None,
        builder: str = "opt_tree",
        builder_options: Mapping[str, Any] | None = None,
        verifier: str = "auto",
        node_budget: int | None = None,
        max_depth: int | None = None,
        draft_temperature: float | None = None,
        lossy: bool = False,
        graph: bool | str = False,
        compile: bool = False,
        selector: Selector | str | PathLike[str] | None = None,
        profile: Profile | None = None,
    ) -> None:
        self.target, self.drafter, self.tokenizer = target, drafter, tokenizer
        locks = [getattr(model, "lock", None) for model in (target, drafter)]
        self._locks = [lock for lock in locks if lock is not None]
        options = resolve_options(builder_options)
        if max_depth is not None:
            options["max_depth"] = max_depth
        if profile is not None and selector is not None:
            raise ValueError("load: profile must be None with a selector, which chooses the trees")
        chosen = profile is not None and drafter is not None
        if chosen and graph is True:
            raise ValueError("load: profile must be None with graph=True, whose shapes are fixed")
        by_level = drafter is not None and drafter.source_kind == "Expander"
        if builder == "opt_tree" and by_level and not chosen:
            options.setdefault("threshold", self._by_device(_THRESHOLDS))
        self.builder_name, self.verifier_name = builder, verifier
        self.builder = _core.TreeBuilder(builder, **options)
        self._max_depth = options.get("max_depth", UNLIMITED)
        own_budget = node_budget
        if node_budget is None:
            node_budget = MAX_NODES if chosen else self._default_budget(options)
        self.node_budget = node_budget
        self._list_width = list_width(self.builder, options, node_budget)
        self.draft_temperature, self.lossy = draft_temperature, lossy
        if self.node_budget < 0:
            raise ValueError(f"load: node_budget must be >= 0, got {self.node_budget}")
        if self.node_budget >= 2**31:
            raise ValueError(f"load: node_budget must be below 2**31, got {self.node_budget}")
        if draft_temperature is not None and not draft_temperature > 0:
            raise ValueError(f"load: draft_temperature must be above 0, got {draft_temperature}")
        if verifier != "auto":
            _core.check_verifier(verifier, self.builder.proposal, self.builder.makes_chains, lossy)
        if drafter is not None:
            self.builder.check_source_kind(drafter.source_kind)
        self.builder.begin(self.node_budget)  # refuses a budget that its options do not fit
        self.planner: Planner = FixedPlan(self.builder, self.node_budget)
        selecting = None
        if selector is not None:
            self.planner = selecting = self._selector_plan(selector, options, own_budget)
        elif profile is not None and drafter is not None and node_budget > 0:
            self.planner = BudgetPlan(
                builder, options, profile, node_budget, verifier=verifier, lossy=lossy
            )
        self._needs = Needs()
        if drafter is not None:
            last_hidden = drafter.needs.last_hidden or self.planner.needs.last_hidden
            self._needs = replace(drafter.needs, last_hidden=last_hidden)
        if drafter is not None and not target.supports_trees and builder != "chain":
            raise NotImplementedError(
                "load: the state of this target (recurrent or hybrid) cannot fork, so it cannot "
                "verify trees; use builder='chain', or drafter=None for plain decoding"
            )
        if compile and graph is False:
            raise ValueError("load: compile must be False with graph=False, got True")
        self.graph = self._graph_rounds(graph, options, compile, selecting)

    def _selector_plan(
        self,
        selector: Selector | str | PathLike[str],
        options: Mapping[str, Any],
        node_budget: int | None,
    ) -> SelectorPlan:
        """Let a selector choose the trees; the verifier becomes the one it was trained for."""
        from treespec.planning.selector import SelectorPlan
        from treespec.selector.selector import Selector

        if self.builder_name != "delayed":
            raise ValueError(
                f"load: builder must be 'delayed' with a selector, got {self.builder_name!r}"
            )
        chosen = sorted(set(options) - {"max_depth"})
        if chosen:
            raise ValueError(f"load: a selector chooses the builder's options; got {chosen}")
        if self.drafter is None:
            raise ValueError("load: a selector needs a drafter, got None")
        own = selector if isinstance(selector, Selector) else Selector.load(selector)
        if self.verifier_name not in ("auto", own.config.verifier):
            raise ValueError(
                f"load: verifier must be {own.config.verifier!r}, which the selector was trained "
                f"for, got {self.verifier_name!r}"
            )
        self.verifier_name = own.config.verifier
        if node_budget is None:
            self.node_budget = own.max_nodes
        return SelectorPlan(own, self.drafter, self.node_budget, self._max_depth)

    def _graph_rounds(
        self,
        graph: bool | str,
        options: Mapping[str, Any],
        compiled: bool,
        plan: SelectorPlan | None,
    ) -> GraphRounds | None:
        """Static rounds; where ``"auto"`` finds none, the reason is logged."""
        if graph not in (True, False, "auto"):
            raise ValueError(f"load: graph must be True, False or 'auto', got {graph!r}")
        if graph is False:
            return None
        try:
            if graph == "auto":
                self._check_worthwhile()
            return self._make_graph_rounds(options, compiled, plan)
        except NotImplementedError as error:
            if graph is True:
                raise
            level = logging.WARNING if compiled else logging.INFO
            ignored = " and compile=True is ignored" if compiled else ""
            LOGGER.log(level, "rounds run step by step%s: %s", ignored, error)
            return None

    def _check_worthwhile(self) -> None:
        """Raise NotImplementedError where ``graph="auto"`` does not look any further."""
        if isinstance(self.planner, BudgetPlan):
            raise NotImplementedError("graph: a profile changes the trees from round to round")
        if self.target.device.type != "cuda":
            raise NotImplementedError(
                f"graph: 'auto' is for models on a GPU, target is on {self.target.device}"
            )

    def _make_graph_rounds(
        self, options: Mapping[str, Any], compiled: bool, plan: SelectorPlan | None
    ) -> GraphRounds:
        from treespec.static.decoding import GraphRounds

        return GraphRounds(
            self.target,
            self.drafter,
            builder=self.builder,
            options=options,
            verifier=self.verifier_name,
            node_budget=self.node_budget,
            draft_temperature=self.draft_temperature,
            lossy=self.lossy,
            compiled=compiled,
            plan=plan,
        )

    def _default_budget(self, options: Mapping[str, Any]) -> int:
        """The nodes that the options ask for, else what suits the device."""
        if "expansion" in options:
            return sum(accumulate(options["expansion"], mul))
        if "growth_map" in options:
            return len(options["growth_map"])
        if self.builder_name == "chain":
            return int(options.get("max_depth", self._by_device(_CHAIN_LENGTHS)))
        return int(self._by_device(_NODE_BUDGETS))

    def _by_device(self, table: Mapping[str, float]) -> float:
        return table.get(self.target.device.type, table["cuda"])

    # --- what users call -----------------------------------------------------------------------

    def generate(
        self,
        prompt: Any,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        allowed_tokens: AllowedTokens | None = None,
        seed: int | Sequence[int] = 0,
        sequence_id: int | Sequence[int] = 0,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        on_round: OnRound | None = None,
    ) -> Any:
        """Continue a prompt, or a list of prompts as one ragged batch.

        Parameters
        ----------
        prompt
            Text, or token ids; a list of texts or of id lists is a batch, each equal to its own
            single run.
        seed, sequence_id
            One value, or one per prompt.
        on_round
            Called with a `RoundRecord` after every round, for tracing.

        The other parameters are those of `SamplingParams`.

        Returns
        -------
        GenerateResult or list of GenerateResult

        Raises
        ------
        ValueError
            Before any work: for bad parameters, an empty prompt, ids outside the vocabulary, or a
            text that would not fit the context.
        """
        params = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias or {},
            allowed_tokens=allowed_tokens,
            stop=stop or (),
            stop_token_ids=stop_token_ids,
            max_new_tokens=max_new_tokens,
            ignore_eos=ignore_eos,
        )
        batch = _is_batch(prompt)
        generations = self._generations(prompt if batch else [prompt], params, seed, sequence_id)
        clock = Clock()
        for _ in self._run(generations, clock, on_round):
            pass
        results = [generation.result(clock) for generation in generations]
        return results if batch else results[0]

    def stream(self, prompt: Any, **options: Any) -> Iterator[Piece]:
        """Continue one prompt and yield a `Piece` per round; options are those of `generate`.

        The parameters are checked before the first piece is asked for. Closing the iterator ends
        the generation.
        """
        if _is_batch(prompt):
            raise ValueError("stream: prompt must be one prompt, got a list; use generate")
        on_round = options.pop("on_round", None)
        seed, sequence_id = options.pop("seed", 0), options.pop("sequence_id", 0)
        options.setdefault("temperature", 0.0)
        params = SamplingParams(**{k: v for k, v in options.items() if v is not None})
        (generation,) = self._generations([prompt], params, seed, sequence_id)
        return self._pieces(generation, on_round)

    # --- around the rounds ---------------------------------------------------------------------

    def _pieces(self, generation: Generation, on_round: OnRound | None) -> Iterator[Piece]:
        clock, shown = Clock(), 0
        for _ in self._run([generation], clock, on_round):
            token_ids = generation.new_tokens[shown:].tolist()
            shown += len(token_ids)
            stream = generation.stream
            if generation.finish_reason is None:
                yield Piece(stream.take() if stream is not None else "", token_ids)
                continue
            tail = stream.finish() if stream is not None else ""
            yield Piece(tail, token_ids, generation.result(clock))
        if not generation.params.max_new_tokens:
            yield Piece("", [], generation.result(clock))

    def _generations(
        self, prompts: Sequence[Any], params: SamplingParams, seed: Any, sequence_id: Any
    ) -> list[Generation]:
        seeds, ids = _column("seed", seed, prompts), _column("sequence_id", sequence_id, prompts)
        if self.tokenizer is None and params.stop:
            raise ValueError("generate: stop strings need a tokenizer; use stop_token_ids")
        if self.verifier_name == "greedy" and self.drafter is not None and not params.greedy:
            raise ValueError(
                f"generate: temperature must be 0 with verifier 'greedy', got {params.temperature}"
            )
        for token in params.logit_bias:
            if not 0 <= token < self.target.vocab_size:
                raise ValueError(
                    f"generate: logit_bias ids must be in [0, {self.target.vocab_size}), "
                    f"got {token}"
                )
        if self.drafter is not None:
            self.planner.check(params)
        out = []
        for place, (prompt, own_seed, own_id) in enumerate(zip(prompts, seeds, ids, strict=True)):
            token_ids = encode(self.tokenizer, prompt)
            self._check_prompt(token_ids, params.max_new_tokens)
            own = replace(params, seed=int(own_seed))
            if not 0 <= own_id < 2**32:
                raise ValueError(f"generate: sequence_id must be in [0, 2**32), got {own_id}")
            out.append(
                Generation(place, token_ids, own, int(own_id), self.tokenizer, self.target.eos_ids)
            )
        return out

    def _check_prompt(self, token_ids: npt.NDArray[np.int32], max_new_tokens: int) -> None:
        outside = token_ids[(token_ids < 0) | (token_ids >= self.target.vocab_size)]
        if len(outside):
            raise ValueError(
                f"generate: prompt ids must be in [0, {self.target.vocab_size}), got {outside[0]}"
            )
        needed = len(token_ids) + max_new_tokens
        for who, model in (("target", self.target), ("drafter", self.drafter)):
            limit = getattr(model, "max_context", None)
            if limit is not None and needed > limit:
                raise ValueError(
                    f"generate: prompt and max_new_tokens must fit the {who}'s context of {limit} "
                    f"tokens, got {len(token_ids)} + {max_new_tokens}"
                )

    def _run(
        self, generations: Sequence[Generation], clock: Clock, on_round: OnRound | None
    ) -> Iterator[None]:
        """Yields after the prefill and after every round; frees all state at the end."""
        running = [g for g in generations if g.finish_reason is None]
        graph = self.graph if running else None
        try:
            with clock.step("prefill"), self._turn():
                self._prefill(running, graph)
            if running:
                yield
            running = [g for g in running if g.finish_reason is None]
            with self._rounds(graph, running, clock, on_round) as play_round:
                while running:
                    with clock.step("other"), self._turn():
                        play_round(running, clock)
                    yield
                    running = [g for g in running if g.finish_reason is None]
        finally:
            with self._turn():
                self._close(generations)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Keep other threads off models that have a lock."""
        with ExitStack() as stack:
            for lock in self._locks:
                stack.enter_context(lock)
            yield

    @contextmanager
    def _rounds(
        self,
        graph: GraphRounds | None,
        running: Sequence[Generation],
        clock: Clock,
        on_round: OnRound | None,
    ) -> Iterator[PlayRound]:
        """How to play the rounds of prefilled sequences."""
        if graph is None or not running:
            yield partial(self._round, on_round=on_round)
            return
        with ExitStack() as stack:
            with clock.step("prefill"):
                run = stack.enter_context(graph.open(running, on_round))
            yield run.round

    def _prefill(self, running: Sequence[Generation], graph: GraphRounds | None) -> None:
        """Feed the prompts and draw the first token of each, at its own position.

        A graph has buffers of its own for what comes after the prompt.
        """
        if not running:
            return
        budget = self.planner.max_nodes if self.drafter is not None else 0
        needs = self._needs
        for g in running:
            rows = g.capacity + budget + 1 if graph is None else g.prompt_length
            g.target_state = self.target.open(rows)
        logits, states = self.target.prefill(
            [g.target_state for g in running], [g.tokens for g in running], needs
        )
        roots = [_core.root_tree(g.root) for g in running]
        verdicts = self._verify(running, roots, [row[None] for row in logits])
        for g, row, own_states, verdict in zip(running, logits, states, verdicts, strict=True):
            if self.drafter is not None:
                rows = g.capacity + budget if graph is None else g.prompt_length + 1
                g.draft_state = self.drafter.begin(g.tokens, own_states, rows)
            g.append(verdict.tokens)
            g.stats.tokens += 1
            if self.drafter is not None:
                self.drafter.observe(g.draft_state, verdict.tokens, None)
                self.planner.begin(g, row, own_states)

    def _close(self, generations: Sequence[Generation]) -> None:
        """Free all states, also when freeing one of them raises."""
        with ExitStack() as stack:
            for g in generations:
                if g.target_state is not None:
                    stack.callback(self.target.close, g.target_state)
                if self.drafter is not None and g.draft_state is not None:
                    stack.callback(self.drafter.end, g.draft_state)
                g.target_state = g.draft_state = None

    # --- the round -----------------------------------------------------------------------------

    def _round(self, running: Sequence[Generation], clock: Clock, on_round: OnRound | None) -> None:
        """The six steps, over all running sequences. Nothing is committed before the last."""
        drafting = [] if self.drafter is None else self.planner.drafting(running)
        with clock.step("draft"):
            sources = self._draft(drafting, clock)
        with clock.step("build"):
            trees = self._build(running, drafting, sources, clock)
        with clock.step("mask"):
            rows = [TreeRows(tree.token, tree.parent, tree.depth) for tree in trees]
        with clock.step("target"):
            logits, states = self.target.forward(
                [g.target_state for g in running], rows, self._needs
            )
        with clock.step("verify"):
            verdicts = self._verify(running, trees, logits)
        if self.drafter is not None:
            self.planner.learn(running, trees, verdicts, logits, states)
        positions = [g.length - 1 for g in running]
        with clock.step("commit"):
            self._commit(running, trees, verdicts, states, clock)
        if on_round is not None:
            for g, tree, verdict, position in zip(running, trees, verdicts, positions, strict=True):
                on_round(RoundRecord(tree, verdict, position, g.place))

    def _draft(self, drafting: Sequence[Generation], clock: Clock) -> list[Any]:
        """One source per sequence that wants one."""
        if self.drafter is None or not drafting:
            return []
        if self.drafter.source_kind in _ONE_PASS:
            clock.count_draft(len(drafting))
        settings = self._draft_settings(drafting[0].params)
        return self.drafter.draft([g.draft_state for g in drafting], settings)

    def _build(
        self,
        running: Sequence[Generation],
        drafting: Sequence[Generation],
        sources: Sequence[Any],
        clock: Clock,
    ) -> list[TokenTree]:
        """One tree per sequence; a root alone where nothing was drafted."""
        trees = {g.place: _core.root_tree(g.root) for g in running}
        if sources:
            grown = grow_trees(
                self.planner.recipes(drafting, sources),
                sources,
                [g.key for g in drafting],
                [g.root for g in drafting],
                clock,
            )
            trees.update({g.place: tree for g, tree in zip(drafting, grown, strict=True)})
        return self.planner.cut(running, [trees[g.place] for g in running])

    def _verify(
        self, running: Sequence[Generation], trees: Sequence[TokenTree], logits: Sequence[Array]
    ) -> list[Verdict]:
        cases = []
        for g, tree, rows in zip(running, trees, logits, strict=True):
            # A root alone has nothing to verify: the plain draw keeps the text independent of the
            # tree.
            plain = _core.auto_verifier("deterministic", g.params.greedy)
            verifier = plain if tree.num_nodes == 1 else self.verifier_name
            cases.append(Case.of(g, tree, rows, verifier, self.lossy))
        return verify_cases(cases)

    def _commit(
        self,
        running: Sequence[Generation],
        trees: Sequence[TokenTree],
        verdicts: Sequence[Verdict],
        states: Sequence[TargetStates],
        clock: Clock,
    ) -> None:
        """Keep what was accepted, up to a stop; the last emitted token is the next root.

        What a drafter makes of the new tokens is booked as drafting.
        """
        kept = []
        for g, tree, verdict in zip(running, trees, verdicts, strict=True):
            emitted = g.append(verdict.tokens)
            g.stats.count_round(tree, verdict.accepted_nodes, emitted)
            kept.append(np.array([0, *verdict.accepted_nodes[: emitted - 1]], dtype=np.int32))
        self.target.commit([g.target_state for g in running], kept)
        if self.drafter is None:
            return
        with clock.step("draft"):
            for g, nodes, own_states in zip(running, kept, states, strict=True):
                self.drafter.observe(g.draft_state, g.tokens[-len(nodes) :], own_states.rows(nodes))

    # --- small helpers -------------------------------------------------------------------------

    def _draft_settings(self, params: SamplingParams) -> DraftSettings:
        """The same for every sequence and round, so that batch mates do not shape a draft."""
        sampled = self.builder.proposal != "deterministic" and not params.greedy
        temperature = self.draft_temperature or (params.temperature if sampled else 1.0)
        return DraftSettings(
            temperature=temperature,
            top_k=params.top_k if sampled else 0,
            top_p=params.top_p if sampled else 1.0,
            max_depth=min(self._max_depth, self.node_budget),
            node_budget=self.node_budget,
            list_width=self._list_width,
            root_rows=self.planner.root_rows,
        )


def _is_batch(prompt: Any) -> bool:
    listed = isinstance(prompt, (list, tuple)) and len(prompt) > 0
    return listed and not isinstance(prompt[0], (int, np.integer))


def _column(name: str, value: Any, prompts: Sequence[Any]) -> list[int]:
    values = list(np.broadcast_to(value, len(prompts))) if np.isscalar(value) else list(value)
    if len(values) != len(prompts):
        raise ValueError(
            f"generate: {name} must be one value or one per prompt ({len(prompts)}), "
            f"got {len(values)}"
        )
    return values
