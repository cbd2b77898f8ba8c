# SPDX-License-Identifier: Apache-2.0
"""Medusa heads: what they draft, checkpoints in the wild, and training."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drafter_cases import (
    BUILDERS,
    PROMPT,
    drafted,
    equal,
    fit,
    generated,
    load_drafter,
    started,
    states_of,
    text_batch,
)
from node_batches import tokens
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE, tiny_model

import treespec
from treespec.drafts.base import DraftSettings
from treespec.drafts.medusa import MedusaDrafter, MedusaHeads
from treespec.drafts.vocabulary import TokenModules
from treespec.targets.base import Needs
from treespec.targets.hf import HfTarget
from treespec.training.medusa import MedusaTrainee

NUM_HEADS, NUM_LAYERS = 3, 2
SETTINGS = DraftSettings(node_budget=8)
HIDDEN = Needs(last_hidden=True)


@functools.cache
def target(dtype: torch.dtype = torch.float64, name: str = "llama") -> HfTarget:
    return HfTarget(tiny_model(name, dtype))


@functools.cache
def weights(*, shared: bool = False, num_heads: int = NUM_HEADS) -> dict[str, torch.Tensor]:
    """Random ones under the published names."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    out = {}
    for head in range(num_heads):
        for block in range(NUM_LAYERS):
            out[f"{head}.{block}.linear.weight"] = random(32, 32)
            out[f"{head}.{block}.linear.bias"] = random(32)
        if not shared:
            out[f"{head}.{NUM_LAYERS}.weight"] = random(VOCAB_SIZE, 32)
    return out


def drafter(dtype: torch.dtype = torch.float64, *, shared: bool = False) -> MedusaDrafter:
    heads = MedusaHeads(NUM_HEADS, NUM_LAYERS, 32, None if shared else VOCAB_SIZE)
    heads.load_state_dict(weights(shared=shared))
    return MedusaDrafter(heads.to(dtype), TokenModules.of_target(target(dtype)))


def plain_rows(
    tensors: dict[str, torch.Tensor], hidden: torch.Tensor, head: torch.Tensor | None = None
) -> torch.Tensor:
    """Log-probabilities ``[K, V]`` of a state, head by head, as the paper writes them."""
    rows = []
    for i in range(NUM_HEADS):
        state = hidden
        for j in range(NUM_LAYERS):
            weight = tensors[f"{i}.{j}.linear.weight"].to(hidden)
            inner = weight @ state + tensors[f"{i}.{j}.linear.bias"].to(hidden)
            state = state + inner * torch.sigmoid(inner)
        output = tensors[f"{i}.{NUM_LAYERS}.weight"].to(hidden) if head is None else head
        rows.append(torch.log_softmax(output @ state, dim=-1))
    return torch.stack(rows)


def assert_ranks(arrays: list[Any], rows: torch.Tensor, tolerance: float) -> None:
    """`arrays` are the likeliest tokens of `rows`, in order."""
    token, logprob = arrays
    best = rows.sort(dim=-1, descending=True).values[:, : token.shape[1]]
    assert np.allclose(logprob, best.float().numpy(), rtol=0, atol=tolerance)
    own = rows.gather(1, torch.from_numpy(token).long())
    assert np.allclose(logprob, own.float().numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_depth_is_what_its_head_says_of_the_state_that_gave_the_root(
    dtype: torch.dtype, shared: bool
) -> None:
    arrays = drafted(drafter(dtype, shared=shared), target(dtype))
    with torch.inference_mode():
        ids = torch.from_numpy(PROMPT[:-1]).long()[None]
        hidden = target(dtype).model.model(ids).last_hidden_state[0, -1]
        head = target(dtype).model.lm_head.weight if shared else None
        rows = plain_rows(weights(shared=shared), hidden, head)
    assert arrays[0].shape == (NUM_HEADS, VOCAB_SIZE)
    assert_ranks(arrays, rows, 1e-5)


def test_what_is_observed_counts_not_how_it_is_split() -> None:
    committed, one = tokens(20), drafter()
    expected = drafted(one, target(), committed)
    states = states_of(target(), committed[:-1], one.needs)
    for prompt, cuts in ((1, [2, 5, 19]), (5, [6, 7, 8, 19]), (12, [19])):
        session = one.begin(committed[:prompt], states.rows(np.arange(prompt)), 64)
        one.observe(session, committed[prompt : prompt + 1], None)
        begin = prompt
        for end in cuts:
            one.draft([session], SETTINGS)
            rows = states.rows(np.arange(begin, end))
            one.observe(session, committed[begin + 1 : end + 1], rows)
            begin = end
        assert session.root == committed[-1]
        (source,) = one.draft([session], SETTINGS)
        assert equal(list(source.arrays), expected, 1e-6)


def test_drafting_twice_gives_the_same() -> None:
    one = drafter()
    session = started(one, target(), tokens(9))
    first, second = (one.draft([session], SETTINGS)[0].arrays for _ in range(2))
    assert equal(list(first), list(second))


def test_a_ragged_batch_equals_single_sessions() -> None:
    one = drafter()
    sessions = [started(one, target(), tokens(size, size)) for size in (4, 17, 9)]
    together = one.draft(sessions, SETTINGS)
    for session, source in zip(sessions, together, strict=True):
        (alone,) = one.draft([session], SETTINGS)
        assert equal(list(source.arrays), list(alone.arrays), 1e-6)


def test_depth_and_width_are_cut_to_what_is_asked_for() -> None:
    session = started(drafter(), target(), PROMPT)
    shallow = DraftSettings(max_depth=2, node_budget=5)
    assert drafter().draft([session], shallow)[0].arrays[0].shape == (2, VOCAB_SIZE)
    narrow = MedusaDrafter(drafter().heads, drafter().tokens, width=3)
    assert narrow.draft([session], SETTINGS)[0].arrays[0].shape == (NUM_HEADS, 3)


# --- Decoding -------------------------------------------------------------------------------------


@functools.cache
def trained(shared: bool = False) -> MedusaTrainee:
    torch.manual_seed(0)
    trainee = MedusaTrainee(target(), num_heads=3, shared_head=shared)
    trainee.module.double()
    fit(trainee, text_batch(target(), HIDDEN), 60, 1e-2)
    return trainee


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("builder", BUILDERS)
def test_text_is_the_text_of_plain_decoding(builder: str, temperature: float) -> None:
    plain = generated(target(), None, builder, temperature)
    results = generated(target(), trained().drafter(), builder, temperature)
    assert [r.token_ids for r in results] == [r.token_ids for r in plain]
    # Some guesses were right: at a temperature luck decides for so short a chain.
    assert temperature > 0 or sum(r.stats.block_efficiency for r in results) > 3.0


# --- Checkpoints ----------------------------------------------------------------------------------


def write(
    folder: Path, tensors: dict[str, torch.Tensor], name: str = "medusa_lm_head.pt", **fields: Any
) -> Path:
    """A checkpoint as the authors publish it."""
    config = {
        "medusa_num_heads": NUM_HEADS,
        "medusa_num_layers": NUM_LAYERS,
        "base_model_name_or_path": "lmsys/vicuna-7b-v1.3",
        **fields,
    }
    (folder / "config.json").write_text(json.dumps(config))
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name)
    else:
        torch.save(tensors, folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("medusa_lm_head.pt", ""),
        ("medusa_lm_head.safetensors", ""),
        ("model.safetensors", "medusa_head."),
    ],
)
def test_published_checkpoints_draft_what_their_weights_say(
    tmp_path: Path, name: str, prefix: str
) -> None:
    tensors = {prefix + key: tensor for key, tensor in weights().items()}
    if prefix:
        tensors["model.embed_tokens.weight"] = torch.zeros(VOCAB_SIZE, 32)  # of the whole model
    loaded = load_drafter(target().model, write(tmp_path, tensors, name), width=8)
    hidden = states_of(target(), PROMPT[:-1], HIDDEN).last_hidden[-1]
    assert_ranks(drafted(loaded, target()), plain_rows(weights(), hidden), 1e-5)


def test_early_configs_name_fewer_heads_than_there_are(tmp_path: Path) -> None:
    folder = write(tmp_path, weights(), medusa_num_heads=2)
    assert drafted(load_drafter(target().model, folder), target())[0].shape[0] == NUM_HEADS


def test_heads_without_output_matrices_use_the_targets(tmp_path: Path) -> None:
    folder = write(tmp_path, weights(shared=True), medusa_shared_head=True)
    loaded = load_drafter(target().model, folder)
    assert equal(drafted(loaded, target()), drafted(drafter(shared=True), target()), 1e-6)


def test_heads_run_in_the_targets_dtype(tmp_path: Path) -> None:
    model = tiny_model("llama", torch.bfloat16)
    loaded = load_drafter(model, write(tmp_path, weights()))
    assert {p.dtype for p in loaded.heads.parameters()} == {torch.bfloat16}
    assert np.isfinite(drafted(loaded, HfTarget(model))[1]).all()


@pytest.mark.parametrize("shared", [False, True])
def test_a_saved_drafter_is_a_published_checkpoint(tmp_path: Path, shared: bool) -> None:
    own = target(torch.float32)
    trainee = MedusaTrainee(own, num_heads=NUM_HEADS, num_layers=NUM_LAYERS, shared_head=shared)
    with torch.no_grad():
        for parameter in trainee.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape)).copy_(parameter.half())
    trainee.save(tmp_path)
    here, there = drafted(trainee.drafter(), own), drafted(load_drafter(own.model, tmp_path), own)
    assert equal(here, there, 1e-6)
    saved = load_file(tmp_path / "model.safetensors")
    shapes = {name: tensor.shape for name, tensor in saved.items()}
    assert shapes == {name: tensor.shape for name, tensor in weights(shared=shared).items()}


def without(key: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights().items() if name != key}


@pytest.mark.parametrize(
    ("tensors", "fields", "message"),
    [
        (without("1.0.linear.bias"), {}, "missing 1.0.linear.bias"),
        (without(f"1.{NUM_LAYERS}.weight"), {}, f"missing 1.{NUM_LAYERS}.weight"),
        ({**weights(), "0.5.weight": torch.zeros(1)}, {}, "unknown 0.5.weight"),
        (weights(), {"medusa_num_heads": 5}, "must have medusa_num_heads = 5 heads.* got 3"),
        ({"lm_head.weight": torch.zeros(2, 2)}, {}, "got 0"),
        (weights(), {"medusa_num_layers": 1}, "unknown 0.1.linear.bias"),
        (
            {**weights(), "0.0.linear.weight": torch.zeros(48, 48)},
            {},
            "0.0.linear.weight must have the target's hidden size, 32 rows, got 48",
        ),
        (
            {**weights(), f"0.{NUM_LAYERS}.weight": torch.zeros(70, 32)},
            {},
            "must have the target's vocabulary, 64 rows, got 70",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_drafter(target().model, write(tmp_path, tensors, **fields))


def test_heads_of_another_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the first guess must be right in 30% of greedy rounds"):
        load_drafter(target().model, write(tmp_path, weights()), self_test=True)


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        MedusaDrafter(drafter().heads, drafter().tokens, width=0)
    with pytest.raises(ValueError, match="medusa drafters must be among width, got"):
        load_drafter(target().model, write(tmp_path, weights()), chain=True)
    with pytest.raises(ValueError, match="states must hold last_hidden"):
        drafter().begin(PROMPT, None, 64)
    session = drafter().begin(PROMPT, states_of(target(), PROMPT, HIDDEN), 64)
    with pytest.raises(ValueError, match="must have observed a token"):
        drafter().draft([session], SETTINGS)
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        MedusaTrainee(target(), num_layers=0)


# --- Training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_a_few_steps_lower_the_loss_and_leave_the_target_alone(shared: bool) -> None:
    own = HfTarget(tiny_model("llama"))
    data = text_batch(own, HIDDEN)
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    trainee = MedusaTrainee(own, shared_head=shared)
    losses = fit(trainee, data, 12)
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is not None for parameter in trainee.module.parameters())
    assert all(parameter.grad is None for parameter in own.model.parameters())
    after = own.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_fresh_heads_say_what_the_target_says() -> None:
    own = target(torch.float32)
    token, logprob = drafted(MedusaTrainee(own).drafter(), own)
    hidden = states_of(own, PROMPT[:-1], HIDDEN).last_hidden[-1]
    row = torch.log_softmax(own.model.lm_head.weight @ hidden, dim=-1)
    assert_ranks([token, logprob], row.detach().expand(4, -1), 1e-5)


def test_a_head_learns_the_law_of_its_own_position() -> None:
    """The loss is the mean divergence over the target's own text, computed here row by row."""
    own = target(torch.float32)
    data = text_batch(own, HIDDEN, count=2, length=9)
    trainee = MedusaTrainee(own, num_heads=3)
    with torch.no_grad():
        for parameter in trainee.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        laws = torch.log_softmax(own.model.lm_head(data.last_hidden), dim=-1)
        total = 0.0
        for head in range(3):
            terms = []
            for text in range(2):
                for root in range(4, 9 - head - 1):  # position 4 is the first token of the target
                    state = trainee.module.states(head, data.last_hidden[text, root - 1])
                    row = torch.log_softmax(trainee.module[head][-1](state), dim=-1)
                    law = laws[text, root + head]  # of the token at root + head + 1
                    terms.append((law.exp() * (law - row)).sum())
            total += 0.8**head * torch.stack(terms).mean() / (1 + 0.8 + 0.64)
    assert torch.allclose(trainee.loss(data, torch.Generator()), total, rtol=1e-4)


def test_a_trained_drafter_is_over_the_parameters_in_training() -> None:
    trainee = MedusaTrainee(target(torch.float32))
    one = trainee.drafter()
    before = drafted(one, target(torch.float32))
    with torch.no_grad():
        next(trainee.module.parameters()).add_(1.0)
    assert not equal(before, drafted(one, target(torch.float32)))
    assert treespec.load(target(torch.float32).model, drafter=one).drafter is one
