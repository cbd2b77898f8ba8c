# SPDX-License-Identifier: Apache-2.0
"""A static round by the device functions has the bits of one by the core.

The functions run over the host emulation; they are what CUDA tensors are dispatched to.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import target_model
from device_backends import ORDERS, use_backend
from support import in_turns
from test_static_round import (
    BUILDS,
    BY_THE_DATA,
    CAPACITY,
    DRAFTS,
    DRAWN,
    GREEDY,
    SAMPLED,
    draft_round,
    make_recipe,
    make_state,
    play_round,
    starts,
)
from tiny_models import VOCAB_SIZE

import treespec
from treespec import _core, device
from treespec.generation import pack_bits
from treespec.static import cuda_ops, growth, levels, round
from treespec.static.round import Judgement, RoundState
from treespec.static.round import play as play_part
from treespec.static.split_attention import SplitAttention

NAMES = (
    "rank_candidates",
    "begin_growth",
    "grow",
    "finish_growth",
    "mask_trees",
    "verify_trees",
    "commit_kv",
)
LAWS = {"greedy": GREEDY, "sampled": SAMPLED}  # the second has penalties
# Of a law and a drafter; two neighbours have all of them.
CASES = [
    ("greedy", "language model"),
    ("sampled", "eagle3"),
    ("sampled", "language model"),
    ("greedy", "eagle3"),
]


@pytest.fixture(params=ORDERS, ids=lambda order: f"emulation-{order}")
def device_ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes rounds go by the device functions from the call on."""
    use_backend(request.param, monkeypatch)
    ops = SimpleNamespace(**{name: getattr(cuda_ops, name) for name in NAMES})

    def use() -> None:
        for module in (round, levels):
            monkeypatch.setattr(module, "OPS", ops)
        monkeypatch.setattr(growth, "record_bytes", growth.kernel_bytes)

    return use


def float32_models(draft: str = "language model") -> tuple[Any, Any]:
    target = target_model("llama", torch.float32)
    return target, DRAFTS[draft](target)


def play(state: RoundState, recipe: Any, verifier: str, rounds: int = 4) -> list[torch.Tensor]:
    seen = []
    for _ in range(rounds):
        play_round(recipe, state, verifier, CAPACITY)
        state.check_results(state.results)
        seen.append(state.results.clone())
    return [*seen, *(buffer.clone() for buffer in state.target_kv.buffers)]


@pytest.mark.parametrize(
    ("build", "case"),
    in_turns(BUILDS + DRAWN + BY_THE_DATA, CASES, each=2),
    ids=str,
)
def test_rounds_have_the_bits_of_the_core(
    build: Any, case: tuple[str, str], device_ops: Any
) -> None:
    law, draft = case
    models = float32_models(draft)
    recipe = make_recipe(models, build, SplitAttention())
    verifier = _core.auto_verifier(recipe.proposal, law == "greedy")
    begin = starts(LAWS[law])
    expected = play(make_state(models, recipe, begin), recipe, verifier)
    device_ops()
    ours = play(make_state(models, recipe, begin), recipe, verifier)
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)
    accepted = sum(int(results[:, 1].sum()) for results in expected[:4])
    assert accepted > 0


def play_shown(state: RoundState, recipe: Any, verifier: str) -> list[torch.Tensor]:
    """Rounds in parts, with biases and allowed tokens."""
    allowed = state.allow(VOCAB_SIZE)
    bits = np.random.default_rng(3).random((*allowed.shape[:2], VOCAB_SIZE)) < 0.7
    words = [[pack_bits(row) for row in rows] for rows in bits]
    allowed.copy_(torch.from_numpy(np.array(words).view(np.int32)))
    seen = []
    for _ in range(3):
        draft_round(recipe, state, CAPACITY)
        play_part(recipe, state, "trees", CAPACITY)
        play_part(recipe, state, "target", CAPACITY)
        play_part(recipe, state, "judge", CAPACITY, Judgement(verifier, state.num_biases, True))
        state.check_results(state.results)
        seen += [state.nodes.clone(), state.results.clone()]
    return seen


@pytest.mark.parametrize("build", [BUILDS[3], DRAWN[0], *BY_THE_DATA], ids=str)
def test_rounds_in_parts_with_changed_scores_have_the_bits_of_the_core(
    build: Any, device_ops: Any
) -> None:
    models = float32_models()
    recipe = make_recipe(models, build, SplitAttention())
    verifier = _core.auto_verifier(recipe.proposal, False)
    biases = ((7, 2.0), (30, -1.0), (31, 0.5))
    begin = [s._replace(biases=biases[: 2 + i]) for i, s in enumerate(starts(SAMPLED))]
    expected = play_shown(make_state(models, recipe, begin), recipe, verifier)
    device_ops()
    ours = play_shown(make_state(models, recipe, begin), recipe, verifier)
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)
    plain = [s._replace(biases=()) for s in begin]
    assert not torch.equal(
        play_shown(make_state(models, recipe, plain), recipe, verifier)[1], ours[1]
    )


@pytest.mark.parametrize("broken", ["target", "draft"])
def test_a_model_that_answers_nan_is_reported(broken: str, device_ops: Any) -> None:
    models = float32_models()
    recipe = make_recipe(models, BUILDS[3], SplitAttention())
    device_ops()
    state = make_state(models, recipe, starts())
    before = state.prefix_length.clone()
    runner = recipe.target if broken == "target" else recipe.drafter.model.runner
    forward = runner.forward_with_states

    def answer_nan(*arguments: Any) -> Any:
        logits, states = forward(*arguments)
        logits[1] = torch.nan
        return logits, states

    runner.forward_with_states = answer_nan  # type: ignore[method-assign]
    play_round(recipe, state, "greedy", CAPACITY)
    with pytest.raises(ValueError, match="sequence 1 of the batch: NaN"):
        state.check_results(state.results)
    if broken == "target":  # nothing was committed
        assert state.prefix_length[1] == before[1]
    assert state.prefix_length[0] > before[0]


def test_candidates_have_the_bits_of_the_core(device_ops: Any) -> None:
    logits = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(1))
    for width in (5, 20):
        status = torch.zeros(2, dtype=torch.int32)
        ours = cuda_ops.rank_candidates(logits, 8, width, 0.7, status)
        expected = torch.ops.treespec.rank_candidates(logits, 8, width, 0.7, status)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_penalties_count_the_root_and_all_behind_the_prompt_as_on_the_core(device_ops: Any) -> None:
    """Token 5 would win twice, but it is the root here, and the first behind the prompt there."""
    tree = treespec.TokenTree([5, 6], parent=[-1, 0])
    trees = device.Trees.pack([tree, tree], device="cpu")
    logits = torch.zeros(2, 2, 8)
    logits[..., 5], logits[..., 7] = 3.0, 2.5
    history = torch.tensor([[1, 2, 5, 7], [1, 5, 4, 7]], dtype=torch.int32)
    ints = [torch.tensor(values, dtype=torch.int32) for values in ([2, 2], [2, 1], [0, 0])]
    prefix_length, prompt_length, status = ints
    params = torch.tensor([[0.0, 0, 1, 0, 1, 1, 0]] * 2).double()
    keys = torch.zeros(2, dtype=torch.int64)
    columns = (trees.num_nodes, trees.token, trees.parent, trees.depth, *trees[5:])
    head = ("greedy", "deterministic", False, 1, logits)
    text = (history, prefix_length, prompt_length, params)
    rest = ([], 0, *text, None, None, None, keys, keys, status)
    ours = cuda_ops.verify_trees(*head, *columns, *rest)
    expected = torch.ops.treespec.verify_trees(*head, *columns, *rest)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert expected[2].tolist() == [7, 7]
