# SPDX-License-Identifier: Apache-2.0
"""A selector in static rounds: its choices, and so trees and texts, are those of step by step."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import draft_model, target_model
from device_backends import ORDERS, use_backend
from selector_cases import random_selector
from support import in_turns
from test_graph_decoding import PROMPTS, captures, play_on_fake_gpu, texts
from test_static_device import NAMES
from test_static_round import CAPACITY, NoHostReads, fake_kv, move_to_fake_device
from tiny_models import VOCAB_SIZE, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode

import treespec
from treespec.decoder import SpeculativeDecoder
from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.planning.selector import SelectorPlan, TargetBefore
from treespec.selector.actions import Action
from treespec.selector.features import Setting
from treespec.selector.selector import Selector
from treespec.static import capture, cuda_ops, decoding, growth, levels, round, selecting
from treespec.static.drafters import make_static_drafter
from treespec.static.drafting import DraftRecipe
from treespec.static.round import Judgement, RoundRecipe, RoundState, play
from treespec.static.runner import StaticRunner
from treespec.static.selecting import StaticSelector, TargetPast
from treespec.static.split_attention import SplitAttention

STATES = {"target_before": 32, "draft_before": 32, "draft_root": 32}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "seed": [1, 2**64 - 1, 3]},
    "truncated": {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.02},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.3, "presence_penalty": 0.2},
    "biases": {"temperature": 0.8, "logit_bias": {5: 2.5, 9: -4.0, 40: 3.0}},
}
# States that selectors read, and their seeds.
READS = {"none": ({}, 2), "one": ({"draft_root": 32}, 0), "all": (STATES, 1)}
Choices = dict[tuple[int, ...], Action]


def selector_of(
    states: dict[str, int] | None = None, seed: int = 2, verifier: str = "target_only"
) -> Selector:
    """A random one without biases, so that its inputs decide; it says it knows greedy texts."""
    made = random_selector(states, seed, verifier=verifier)
    static = (*made.config.static, replace(made.config.static[0], setting=Setting(0.0)))
    weights = dict(made.weights)
    for place in range(3):
        weights[f"layers.{place}.bias"] = 0 * weights[f"layers.{place}.bias"]
    return Selector(replace(made.config, static=static), weights)


def decoder_of(
    selector: Selector, graph: bool | str = True, dtype: torch.dtype = torch.float64, **options: Any
) -> SpeculativeDecoder:
    models = target_model("llama", dtype), draft_model("llama", dtype)
    options = {"builder": "delayed", "device": "cpu", **options}
    made: SpeculativeDecoder = treespec.load(*models, selector=selector, graph=graph, **options)
    return made


@pytest.fixture
def static_choices(monkeypatch: pytest.MonkeyPatch) -> list[Choices]:
    """What is chosen on the device from now on, round by round, by the text."""
    rounds: list[Choices] = []
    choose = StaticSelector.choose

    def watched(self: StaticSelector, step: Any, rows: Any) -> torch.Tensor:
        lengths = choose(self, step, rows)
        ends = (step.prefix_length + 1).tolist()
        rounds.append(
            {
                tuple(step.past.history[b, : ends[b]].tolist()): Action(*lengths[b].tolist())
                for b in range(len(ends))
                if step.active[b]
            }
        )
        return lengths

    monkeypatch.setattr(StaticSelector, "choose", watched)
    return rounds


@pytest.fixture
def host_choices(monkeypatch: pytest.MonkeyPatch) -> Choices:
    """What is chosen step by step from now on."""
    chosen: Choices = {}
    choose = SelectorPlan.choose

    def watched(self: SelectorPlan, g: Any, source: Any) -> Action:
        action = choose(self, g, source)
        chosen[tuple(g.tokens.tolist())] = action
        return action

    monkeypatch.setattr(SelectorPlan, "choose", watched)
    return chosen


def merged(rounds: list[Choices]) -> Choices:
    return {text: action for chosen in rounds for text, action in chosen.items()}


def check_same(static: list[Choices], host: Choices) -> None:
    """Step by step nothing is chosen where one more token is left."""
    found = merged(static)
    assert host == {text: found[text] for text in host}
    assert {found[text] for text in found if text not in host} <= {Action(1, 0, 0)}


@pytest.mark.parametrize(
    ("case", "sampling"),
    in_turns(itertools.product(["none", "one", "all"], [None, 0.2]), SAMPLINGS, each=2),
    ids=str,
)
def test_choices_and_texts_are_those_of_the_step_by_step_decoder(
    case: tuple[str, float | None],
    sampling: str,
    static_choices: list[Choices],
    host_choices: Choices,
    caplog: Any,
) -> None:
    reads, temperature = case
    options = SAMPLINGS[sampling]
    law = {"draft_temperature": temperature}
    selector = selector_of(*READS[reads])
    with caplog.at_level(logging.INFO, "treespec"):
        ours = texts(decoder_of(selector, **law), **options)
    assert not [text for text in caplog.messages if "step by step" in text]
    assert ours == texts(decoder_of(selector, graph=False, **law), **options)
    assert ours == texts(treespec.load(target_model("llama"), None), **options)
    check_same(static_choices, host_choices)
    assert 40 < len(host_choices) < 85, "many rounds, and tokens are accepted"
    assert len(set(host_choices.values())) > 3
    apart = [set(chosen.values()) for chosen in static_choices if len(chosen) == len(PROMPTS)]
    assert any(len(actions) > 1 for actions in apart), "each its own in a round"


@pytest.mark.parametrize("sampling", ["greedy", "penalties", "biases"])
def test_choices_read_what_they_read_step_by_step(
    sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the same tree would have been chosen for other numbers."""
    selector, law = selector_of(STATES, 1), {"draft_temperature": 0.2}
    ours: dict[tuple[int, ...], Any] = {}
    theirs: dict[tuple[int, ...], Any] = {}
    choose, choose_at = StaticSelector.choose, Selector.choose_at
    given: list[Any] = []

    def choose_shapes(*inputs: Any) -> torch.Tensor:
        given[:] = [torch.cat([inputs[6], *inputs[5]], 1)]  # scalars and states
        return torch.ops.treespec.choose_shapes(*inputs)

    def on_device(self: StaticSelector, step: Any, rows: Any) -> torch.Tensor:
        lengths = choose(self, step, rows)
        for b, end in enumerate(step.prefix_length.tolist()):
            if step.active[b]:
                ours[tuple(step.past.history[b, :end].tolist())] = given[0][b].numpy()
        return lengths

    def on_host(self: Selector, root: Any, states: Any, *bounds: int) -> Action:
        theirs[tuple(root.history_ids.tolist())] = np.concatenate([root.scalars(), *states])
        return choose_at(self, root, states, *bounds)

    named = {"root_scalars": torch.ops.treespec.root_scalars, "choose_shapes": choose_shapes}
    monkeypatch.setattr(selecting, "OPS", SimpleNamespace(**named))
    monkeypatch.setattr(StaticSelector, "choose", on_device)
    monkeypatch.setattr(Selector, "choose_at", on_host)
    for graph in (True, False):
        texts(decoder_of(selector, graph, **law), max_new_tokens=20, **SAMPLINGS[sampling])
    assert len(theirs) > 20
    for text, numbers in theirs.items():
        np.testing.assert_allclose(ours[text], numbers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("verifier", ["recursive_rejection", "traversal", "naive_tree"])
def test_other_verifiers_see_the_same_trees(
    verifier: str, static_choices: list[Choices], host_choices: Choices
) -> None:
    """Texts part where a root alone is verified: here its draw is the verifier's own."""
    selector = selector_of(STATES, 3, verifier)
    fewer = replace(selector.config, actions=selector.config.actions[1:])
    weights = dict(selector.weights)
    for name in ("layers.2.weight", "layers.2.bias"):
        weights[name] = weights[name][..., 1:]
    selector = Selector(fewer, weights)  # always drafts something
    made = decoder_of(selector)
    assert made.verifier_name == verifier
    ours = texts(made, temperature=0.8, seed=7, max_new_tokens=40)
    theirs = texts(decoder_of(selector, graph=False), temperature=0.8, seed=7, max_new_tokens=40)
    assert [text[:-1] for text in ours] == [text[:-1] for text in theirs]
    check_same(static_choices, host_choices)


def test_budget_and_depth_bound_the_choice(
    static_choices: list[Choices], host_choices: Choices
) -> None:
    selector, bounds = selector_of(seed=4), {"node_budget": 7, "max_depth": 3}
    made = decoder_of(selector, **bounds)
    assert texts(made) == texts(decoder_of(selector, graph=False, **bounds))
    check_same(static_choices, host_choices)
    found = merged(static_choices)
    assert max(action.nodes for action in found.values()) <= 7
    assert max(action.depth for action in found.values()) == 3
    recipe = made.graph._recipe
    assert (recipe.max_nodes, recipe.max_tokens) == (8, 4)  # 7 = 1 + 3 * 2 nodes
    # The envelope is that of the largest tree that fits, (4, 1, 1), not of the budget.
    small = decoder_of(selector, node_budget=39, max_depth=2).graph._recipe
    assert (small.max_nodes, small.drafter.max_rows) == (9, 5)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_short_texts(count: int) -> None:
    for verifier in ("target_only", "recursive_rejection"):
        made = decoder_of(selector_of(STATES, 2, verifier))
        lengths = [len(text) for text in texts(made, max_new_tokens=count, temperature=0.8)]
        assert lengths == [count] * len(PROMPTS)


def test_buffers_are_used_again(static_choices: list[Choices], host_choices: Choices) -> None:
    """Nothing of a text is left for the choices of the next ones."""
    selector = selector_of(STATES, 5)
    made, stepped = decoder_of(selector), decoder_of(selector, graph=False)
    used = set()
    for prompts in (PROMPTS, PROMPTS[::-1], [[1, 2], [9, 8, 7], [5]]):
        for sampling in (SAMPLINGS["sampled"], SAMPLINGS["greedy"]):
            options = {"max_new_tokens": 20, **sampling}
            assert texts(made, prompts, **options) == texts(stepped, prompts, **options)
            used.add(id(made.graph._idle))
    assert len(used) == 1
    check_same(static_choices, host_choices)


def test_sequences_stop_where_they_would_alone() -> None:
    selector = selector_of(STATES, 1)
    made, stepped = decoder_of(selector), decoder_of(selector, graph=False)
    free = texts(stepped, max_new_tokens=12)
    for text in free[:2]:
        options = {"stop_token_ids": [text[5]], "max_new_tokens": 12}
        ours = texts(made, **options)
        assert ours == texts(stepped, **options)
        assert min(map(len, ours)) < 12


def guarded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Plays every part of rounds under a guard from now on; the parts."""
    played: list[str] = []
    play = decoding.play

    def watched(recipe: Any, state: Any, part: str, *how: Any) -> None:
        played.append(part)
        with NoHostReads():
            play(recipe, state, part, *how)

    monkeypatch.setattr(decoding, "play", watched)
    return played


def test_parts_read_nothing_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    played = guarded(monkeypatch)
    made, options = decoder_of(selector_of(STATES, 1)), {"temperature": 0.8, "max_new_tokens": 5}
    assert texts(made, **options) == texts(treespec.load(target_model("llama"), None), **options)
    assert set(played) == {"begin", "grow", "finish"}


def test_parts_stay_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "kernel_bytes", lambda *_: 64)  # needs a build with device code
    plan = decoder_of(selector_of(STATES), graph=False).planner
    assert isinstance(plan, SelectorPlan)
    models = [tiny_model("llama") for _ in range(2)]
    known = TargetBefore(np.zeros(VOCAB_SIZE), np.zeros(32, np.float32))
    with FakeTensorMode():
        for model in models:
            move_to_fake_device(model)
        selector = StaticSelector(plan, None, VOCAB_SIZE, torch.device("meta"))
        sizes = (selector.node_budget, VOCAB_SIZE, None)
        drafting = DraftRecipe(
            selector.builder, selector.options, *sizes, SplitAttention(), selector=selector
        )
        static = make_static_drafter(AutoregressiveDrafter(models[1], VOCAB_SIZE), drafting)
        runner = StaticRunner(models[0], SplitAttention(), static.needs)
        recipe = RoundRecipe(runner, static, selector.node_budget, "iid", selects=True)
        kv, draft_kv = (fake_kv(model.config, 2) for model in models)
        bounds = (recipe.max_tokens, recipe.max_nodes)
        past = TargetPast(known, 2, kv.buffers[0])
        state = RoundState(kv, static.state_of(draft_kv), *bounds, past)
        with NoHostReads():
            play(recipe, state, "begin", CAPACITY)
            play(recipe, state, "grow", CAPACITY, 2, static.max_rows - 1)
            play(recipe, state, "finish", CAPACITY, Judgement("target_only"))
        assert state.results.device.type == past.logits.device.type == "meta"


def test_warming_up_and_replaying_costs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are played in pauses, which change no choice."""
    # A call that is played once more may lack rows for a tree that forks: an error on a CPU only.
    monkeypatch.setattr(capture, "_WARM_UP_RUNS", 1)
    selector = selector_of(STATES, 1)
    own, stepped = decoder_of(selector), decoder_of(selector, graph=False)
    cuda = play_on_fake_gpu(monkeypatch)
    for sampling in ("greedy", "sampled"):
        options = {"max_new_tokens": 20, **SAMPLINGS[sampling]}
        assert texts(own, **options) == texts(stepped, **options)
        assert own_rounds(own, options) == own_rounds(stepped, options)
    parts = [part for part, *_ in captures(cuda)]
    assert parts.count("begin") == parts.count("finish") == 1
    assert 2 < parts.count("grow") < 16


def own_rounds(made: SpeculativeDecoder, options: dict[str, Any]) -> list[int]:
    """Equal trees take equally many rounds."""
    return [r.stats.rounds for r in made.generate(PROMPTS, ignore_eos=True, **options)]


@pytest.fixture(params=ORDERS, ids=lambda order: f"emulation-{order}")
def on_device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], None]]:
    """Makes rounds go by the device functions from the call on."""
    use_backend(request.param, monkeypatch)
    names = (*NAMES, "root_scalars", "choose_shapes")
    ops = SimpleNamespace(**{name: getattr(cuda_ops, name) for name in names})

    def use() -> None:
        for module in (round, levels, selecting):
            monkeypatch.setattr(module, "OPS", ops)
        monkeypatch.setattr(growth, "record_bytes", growth.kernel_bytes)

    yield use


@pytest.mark.parametrize("verifier", ["target_only", "traversal"])
def test_rounds_by_kernels_choose_what_the_core_does(
    verifier: str, on_device: Callable[[], None], static_choices: list[Choices]
) -> None:
    selector = selector_of(STATES, 1, verifier)
    options = {"max_new_tokens": 14, **SAMPLINGS["penalties"]}
    expected = texts(decoder_of(selector, dtype=torch.float32), **options)
    chosen = merged(static_choices)
    static_choices.clear()
    on_device()
    assert texts(decoder_of(selector, dtype=torch.float32), **options) == expected
    assert merged(static_choices) == chosen
    assert len(set(chosen.values())) > 2


def test_a_drafter_that_answers_nan_is_reported(on_device: Callable[[], None]) -> None:
    made = decoder_of(selector_of(), dtype=torch.float32)
    on_device()
    runner = made.graph._recipe.drafter.model.runner
    forward = runner.forward_with_states

    def answer_nan(*arguments: Any) -> Any:
        logits, states = forward(*arguments)
        logits[1] = torch.nan
        return logits, states

    runner.forward_with_states = answer_nan
    with pytest.raises(ValueError, match="sequence 1 of the batch: NaN"):
        texts(made, temperature=0.8)


def test_what_the_device_cannot_hold_goes_step_by_step(caplog: Any, monkeypatch: Any) -> None:
    made = selector_of()
    config = replace(made.config, layer_widths=(13000, 2))
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in config.weight_shapes().items()
    }
    wide = Selector(config, weights)
    with pytest.raises(NotImplementedError, match=r"widest layer .* at most 12664, got 13000"):
        decoder_of(wide)
    monkeypatch.setattr(SpeculativeDecoder, "_check_worthwhile", lambda _: None)  # as on a GPU
    with caplog.at_level(logging.INFO, "treespec"):
        assert decoder_of(wide, graph="auto").graph is None
    assert "rounds run step by step: graph: the widest layer of the selector" in caplog.text


def test_a_selector_without_trees_has_no_graph() -> None:
    with pytest.raises(NotImplementedError, match=r"node_budget must be in \[1, 1024\], got 0"):
        decoder_of(selector_of(), node_budget=0)
    assert decoder_of(selector_of(), graph="auto").graph is None  # as for all on a CPU
