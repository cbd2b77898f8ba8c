# SPDX-License-Identifier: Apache-2.0
"""The static round: nothing is read on the host, nothing grows, pauses leave no trace.

Fake tensors on another device stand in for a GPU: they have shapes but no values, so that a host
read, a shape that depends on data, or an operand on the wrong device is an error.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import draft_model, target_model
from drafter_cases import fitted_eagle3, started
from static_models import row_mask, static_kv
from tiny_drafters import tiny_eagle3
from tiny_models import ARCHITECTURES, VOCAB_SIZE, tiny_model
from tiny_trees import tokens, tree_rows
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from treespec import _core
from treespec.builder_options import resolve_options
from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.drafts.eagle3 import Eagle3Drafter
from treespec.static import growth
from treespec.static.drafters import make_static_drafter
from treespec.static.drafting import DraftRecipe
from treespec.static.flex_attention import block_mask
from treespec.static.kv import StaticKv
from treespec.static.round import Judgement, RoundRecipe, RoundState, SequenceStart, play
from treespec.static.runner import StaticRunner
from treespec.static.split_attention import SplitAttention
from treespec.targets.hf import HfTarget

BUILDS = [
    ("chain", {"max_depth": 3}, 3),
    ("kary", {"expansion": [2, 2]}, 6),
    ("sequoia", {}, 6),
    ("eagle2", {"width": 2, "max_depth": 3}, 6),
    ("opt_tree", {"max_depth": 3}, 6),
]
DRAWN = [
    ("kary", {"expansion": [2, 2], "proposal": "without_replacement"}, 6),
    ("top_plus_one", {"expansion": [2, 2]}, 6),
    ("delayed", {"num_paths": 2, "trunk": 1, "branch": 2}, 5),
]
# In parts: the data decide how often the drafter is called.
BY_THE_DATA = [
    ("opt_tree", {"threshold": 0.4}, 6),
    ("dyspec", {}, 6),
]
CAPACITY = 256
MIXTURES = ["gpt_oss", "phimoe_window", "mixtral", "deepseek_v3"]
GREEDY, SAMPLED = (0.0, 0, 1, 0, 1, 0, 0), (0.8, 20, 0.9, 0, 1.2, 0.1, 0)


def make_recipe(
    models: tuple[Any, Any], build: tuple[str, Any, int], attention: Any
) -> RoundRecipe:
    """A target, and what drafts for it: a language model or a drafter on its states."""
    target, draft = models
    recipe = draft_recipe(build, attention)
    static = make_static_drafter(drafter_of(draft), recipe)
    runner = StaticRunner(target, attention, static.needs)
    return RoundRecipe(runner, static, recipe.node_budget, recipe.builder.proposal)


def drafter_of(draft: Any) -> Any:
    """Step by step."""
    if isinstance(draft, Eagle3Drafter):
        return draft
    return AutoregressiveDrafter(draft, VOCAB_SIZE)


def draft_recipe(build: tuple[str, Any, int], attention: Any, temperature: Any = None) -> Any:
    name, options, budget = build
    resolved = resolve_options(options)
    builder = _core.TreeBuilder(name, **resolved)
    return DraftRecipe(builder, resolved, budget, VOCAB_SIZE, temperature, attention)


def starts(params: tuple[float, ...] = GREEDY) -> list[SequenceStart]:
    texts = [tokens(9, 1), tokens(20, 2)]
    return [
        SequenceStart(text, len(text) - 1, params, 2**64 - 1, i) for i, text in enumerate(texts)
    ]


def make_state(models: tuple[Any, Any], recipe: RoundRecipe, begin: Any) -> RoundState:
    target, drafter = HfTarget(models[0]), drafter_of(models[1])
    sessions = [started(drafter, target, start.tokens) for start in begin]
    recipe.drafter.prepare(sessions)
    target_kv = static_kv(models[0], [list(start.tokens[:-1]) for start in begin], CAPACITY)
    draft = recipe.drafter.make_state(sessions, CAPACITY)
    state = RoundState(target_kv, draft, recipe.max_tokens, recipe.max_nodes)
    recipe.drafter.load(draft, sessions)
    state.start(begin)
    state.set_active([True] * len(begin))
    return state


def play_round(recipe: RoundRecipe, state: RoundState, verifier: str, envelope: int) -> None:
    """A whole round, in as many parts as it takes."""
    if recipe.drafter.widths is not None:
        return play(recipe, state, "round", envelope, Judgement(verifier))
    draft_round(recipe, state, envelope)
    play(recipe, state, "finish", envelope, Judgement(verifier))


def draft_round(recipe: RoundRecipe, state: RoundState, envelope: int) -> None:
    """The parts that come first if the data decide how many there are."""
    if recipe.drafter.widths is None:
        play(recipe, state, "begin", envelope)
        while widest := int(state.draft.waiting.max()):
            play(recipe, state, "grow", envelope, widest, recipe.drafter.max_rows - 1)


DRAFTS: dict[str, Callable[[Any], Any]] = {
    "language model": lambda target: draft_model("llama", target.dtype),
    "eagle3": fitted_eagle3,
}


@pytest.fixture(params=DRAFTS)
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    target = target_model("llama")
    return target, DRAFTS[request.param](target)


class NoHostReads(TorchDispatchMode):
    """Fails on what would make the host wait for a device, and on copies between the two."""

    forbidden = frozenset(
        [
            "_local_scalar_dense",
            "item",  # what the first one is in inference mode
            "is_nonzero",
            "nonzero",
            "masked_select",
            "equal",
            "unique_dim",
        ]
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert name not in self.forbidden and not masked, f"{name} makes the host wait"
        out = func(*args, **(kwargs or {}))
        if name in ("to", "_to_copy", "copy_"):
            sides = {t.device.type for t in (*args, out) if isinstance(t, torch.Tensor)}
            assert len(sides) == 1, f"{name} between {sides}"
        return out


@pytest.mark.parametrize("mode", [False, True], ids=["plain", "inference"])
def test_the_guard_sees_host_reads(mode: bool) -> None:
    value = torch.ones(2)
    for read in (lambda: value[0].item(), lambda: bool(value[0]), lambda: value[value > 0]):
        guard, inference = NoHostReads(), torch.inference_mode(mode)
        with pytest.raises(AssertionError, match="makes the host wait"), guard, inference:
            read()


def play_guarded(models: tuple[Any, Any], build: Any) -> None:
    recipe = make_recipe(models, build, SplitAttention())
    state = make_state(models, recipe, starts(SAMPLED))
    verifier = _core.auto_verifier(recipe.proposal, False)
    with NoHostReads():
        play_round(recipe, state, verifier, CAPACITY)


@pytest.mark.parametrize("build", BUILDS + DRAWN, ids=lambda build: build[0])
def test_no_step_reads_on_the_host(build: Any, models: Any) -> None:
    play_guarded(models, build)


def test_parts_read_nothing_on_the_host_either(models: Any) -> None:
    recipe = make_recipe(models, ("dyspec", {}, 6), SplitAttention())
    state = make_state(models, recipe, starts(SAMPLED))
    with NoHostReads():
        play(recipe, state, "begin", CAPACITY)
        play(recipe, state, "grow", CAPACITY, 2, recipe.drafter.max_rows - 1)
        play(recipe, state, "finish", CAPACITY, Judgement("traversal"))


@pytest.mark.parametrize("build", [BUILDS[3], DRAWN[0]], ids=str)
def test_rounds_that_the_host_looks_at_read_nothing_themselves(models: Any, build: Any) -> None:
    recipe = make_recipe(models, build, SplitAttention())
    begin = [start._replace(biases=((3, 1.0), (5, -1.0), (9, 2.0))) for start in starts(SAMPLED)]
    state = make_state(models, recipe, begin)
    state.allow(VOCAB_SIZE)
    judgement = Judgement(_core.auto_verifier(recipe.proposal, False), state.num_biases, True)
    with NoHostReads():
        play(recipe, state, "trees", CAPACITY)
        play(recipe, state, "target", CAPACITY)
        play(recipe, state, "judge", CAPACITY, judgement)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in MIXTURES])
def test_dense_models_read_nothing_on_the_host(name: str) -> None:
    play_guarded((target_model(name), draft_model("llama")), BUILDS[3])


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_experts_read_which_experts_run_unless_told_otherwise(name: str) -> None:
    model = tiny_model(name)
    models = (model, draft_model("llama", torch.float32))
    with pytest.raises(AssertionError, match="nonzero makes the host wait"):
        play_guarded(models, BUILDS[3])
    model.set_experts_implementation("batched_mm")
    play_guarded(models, BUILDS[3])


def test_block_lists_are_made_without_a_host_read() -> None:
    mask = row_mask([5, 200], [tree_rows(1), tree_rows(2)], 11, 300)
    for window in (None, 7):
        with NoHostReads():
            block_mask(mask, window)


def move_to_fake_device(model: Any) -> None:
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def move_drafter_to_fake_device(drafter: Eagle3Drafter) -> None:
    """All but the embedding, which is the target's, and the table of ids, which stays."""
    move_to_fake_device(drafter.model)
    table = drafter.vocabulary._target_ids
    assert table is not None
    drafter.vocabulary._target_ids = torch.empty(table.shape, dtype=table.dtype)


def fake_kv(config: Any, batch: int) -> StaticKv:
    """Buffers as for prefilled sequences, on the fake device."""

    class Example:
        def committed_rows(self) -> Any:
            states = torch.zeros(config.num_key_value_heads, 4, 8, device="meta")
            return [(states, states)] * config.num_hidden_layers

    return StaticKv(Example(), batch, CAPACITY)  # type: ignore[arg-type]


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0])
def test_the_round_stays_on_its_device(
    build: Any, draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "kernel_bytes", lambda *_: 64)  # needs a build with device code
    target = tiny_model("llama")
    drafting = tiny_eagle3(target) if draft == "eagle3" else tiny_model("llama")
    with FakeTensorMode():
        move_to_fake_device(target)
        move = move_drafter_to_fake_device if draft == "eagle3" else move_to_fake_device
        move(drafting)
        recipe = make_recipe((target, drafting), build, SplitAttention())
        shape = drafting.model.config.shape if draft == "eagle3" else drafting.config
        kv, draft_kv = (fake_kv(config, 2) for config in (target.config, shape))
        own = recipe.drafter.state_of(draft_kv)
        state = RoundState(kv, own, recipe.max_tokens, recipe.max_nodes)
        with NoHostReads():
            play_round(recipe, state, "greedy", CAPACITY)
            play_round(recipe, state, "target_only", CAPACITY)
        assert state.results.device.type == "meta"
        with pytest.raises(DataDependentOutputException):
            state.results[0, 0].item()


def test_rounds_allocate_nothing_that_stays(models: Any) -> None:
    recipe = make_recipe(models, BUILDS[4], SplitAttention())
    state = make_state(models, recipe, starts())

    def live() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    def addresses() -> list[int]:
        tensors = [
            value
            for part in (state, state.draft)
            for value in vars(part).values()
            if isinstance(value, torch.Tensor)
        ]
        draft = state.draft
        tensors += [*state.target_kv.buffers, *draft.kv.buffers, *draft.states, *draft.tensors()]
        return [tensor.data_ptr() for tensor in tensors]

    play_round(recipe, state, "greedy", CAPACITY)
    count, places = live(), addresses()
    for _ in range(5):
        play_round(recipe, state, "greedy", CAPACITY)
    assert live() == count
    assert addresses() == places


def observed(state: RoundState) -> dict[str, torch.Tensor]:
    """What later rounds depend on: rows behind the committed ones hold anything."""
    seen = {name: getattr(state, name).clone() for name in ("active", "prefix_length")}
    draft = state.draft
    seen |= {name: getattr(draft, name).clone() for name in ("length", "num_pending", "pending")}
    for b, length in enumerate(state.prefix_length.tolist()):
        seen[f"history {b}"] = state.history[b, : length + 1].clone()
        for i, buffer in enumerate(state.target_kv.buffers):
            seen[f"target {i} {b}"] = buffer[b, :, :length].clone()
        for i, buffer in enumerate(draft.kv.buffers):
            seen[f"draft {i} {b}"] = buffer[b, :, : int(draft.length[b])].clone()
        if draft.states:
            seen[f"states {b}"] = draft.states.pending[b].clone()
    return seen


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("build", BUILDS + DRAWN + BY_THE_DATA, ids=str)
def test_a_paused_round_leaves_no_trace(build: Any, models: Any) -> None:
    recipe = make_recipe(models, build, SplitAttention())
    state, fresh = (make_state(models, recipe, starts()) for _ in range(2))
    for _ in range(3):
        before = observed(state)
        with state.paused():
            play_round(recipe, state, "greedy", CAPACITY)
        assert same(before, observed(state))
        play_round(recipe, state, "greedy", CAPACITY)
        play_round(recipe, fresh, "greedy", CAPACITY)
        assert torch.equal(state.results, fresh.results)
        assert same(observed(fresh), observed(state))


# Its second call is wider than its first: a call that is played once too often lacks rows.
WIDENING = ("eagle2", {"width_ratio": 0.5, "width": 4}, 20)


@pytest.mark.parametrize("build", [*BY_THE_DATA, WIDENING], ids=str)
def test_a_part_that_is_played_in_a_pause_leaves_the_others_as_they_were(
    build: Any, models: Any
) -> None:
    """So does warming up, which plays a part more often than the round has it."""
    recipe = make_recipe(models, build, SplitAttention())
    state, fresh = (make_state(models, recipe, starts(SAMPLED)) for _ in range(2))
    verifier, most = _core.auto_verifier(recipe.proposal, False), recipe.drafter.max_rows - 1

    def part(*key: Any) -> None:
        with state.paused():
            play(recipe, state, *key)
        play(recipe, state, *key)

    for _ in range(3):
        part("begin", CAPACITY)
        while widest := int(state.draft.waiting.max()):
            part("grow", CAPACITY, widest, most)
        part("finish", CAPACITY, Judgement(verifier))
        play_round(recipe, fresh, verifier, CAPACITY)
        assert torch.equal(state.results, fresh.results)
        assert same(observed(fresh), observed(state))


@pytest.mark.parametrize("build", [BUILDS[3], DRAWN[0], *BY_THE_DATA], ids=str)
def test_parts_that_the_host_looks_at_make_the_same_round(models: Any, build: Any) -> None:
    """Also if each is played in a pause before."""
    recipe = make_recipe(models, build, SplitAttention())
    state, fresh = (make_state(models, recipe, starts(SAMPLED)) for _ in range(2))
    verifier = _core.auto_verifier(recipe.proposal, False)

    def part(*key: Any) -> None:
        with state.paused():
            play(recipe, state, *key)
        play(recipe, state, *key)

    for _ in range(3):
        draft_round(recipe, state, CAPACITY)
        part("trees", CAPACITY)
        part("target", CAPACITY)
        part("judge", CAPACITY, Judgement(verifier))
        play_round(recipe, fresh, verifier, CAPACITY)
        assert torch.equal(state.results, fresh.results)
        assert same(observed(fresh), observed(state))
        count, nodes = state.results[:, 0], state.nodes
        assert torch.equal(nodes[:, 0], count) and (count > 1).all()


def test_biases_are_padded_to_a_power_of_two(models: Any) -> None:
    recipe = make_recipe(models, BUILDS[0], SplitAttention())
    begin = starts()
    state = make_state(models, recipe, begin)
    assert state.num_biases == 0 and not state.biases
    state.start([begin[0], begin[1]._replace(biases=((4, 1.0), (2, -1e30), (63, 0.1)))])
    assert state.num_biases == 4
    token, value = state.biases[4]
    assert token.tolist() == [[-1] * 4, [4, 2, 63, -1]]
    assert value.tolist() == [[0.0] * 4, [1.0, -1e30, 0.1, 0.0]]
    state.start([begin[0]._replace(biases=((1, 1.0),)), begin[1]])
    assert state.num_biases == 1
    state.start([start._replace(biases=((8, 1.0),) * 3) for start in begin])
    assert state.biases[4].token is token  # where graphs look


def test_a_sequence_that_is_not_active_stays_as_it_is_and_disturbs_nobody(models: Any) -> None:
    recipe = make_recipe(models, BUILDS[3], SplitAttention())
    state, fresh = (make_state(models, recipe, starts()) for _ in range(2))
    state.set_active([False, True])
    before = observed(state)
    for _ in range(3):
        play_round(recipe, state, "greedy", CAPACITY)
        play_round(recipe, fresh, "greedy", CAPACITY)
        assert torch.equal(state.results[1], fresh.results[1])
    after = observed(state)
    for name, value in before.items():
        if name.endswith(" 0"):
            assert torch.equal(value, after[name]), name
    assert after["prefix_length"][0] == 8


def test_results_say_what_was_emitted() -> None:
    models = target_model("llama"), draft_model("llama")
    recipe = make_recipe(models, BUILDS[4], SplitAttention())
    state = make_state(models, recipe, starts())
    accepted = 0
    for _ in range(6):
        before = state.prefix_length.clone()
        play_round(recipe, state, "greedy", CAPACITY)
        results = state.results.numpy()
        state.check_results(results)
        for b in range(2):
            result = state.read_results(results, b)
            tokens_after = state.history[b, before[b] + 1 : state.prefix_length[b] + 1]
            assert result.tokens.tolist() == tokens_after.tolist()
            assert len(result.accepted_nodes) == len(result.tokens) - 1
            assert result.parent[0] == -1 and (result.parent[1:] >= 0).all()
            depth = _core.TokenTree([0] * len(result.parent), parent=result.parent).depth
            assert result.max_depth == depth.max()
            assert 0 < result.expected_acceptance <= len(result.parent) - 1
            path = [0, *result.accepted_nodes.tolist()]
            assert [result.parent[node] for node in path[1:]] == path[:-1]
            accepted += len(result.accepted_nodes)
    assert accepted > 3
    results = np.zeros_like(results)
    results[1, 2] = 1
    with pytest.raises(ValueError, match="sequence 1 of the batch: NaN"):
        state.check_results(results)
