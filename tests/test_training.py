# SPDX-License-Identifier: Apache-2.0
"""Training: what is learned, that a run can go on, and that replay tells what decoding accepts."""

from __future__ import annotations

import functools
import itertools
import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import DRAFTER_NAMES, drafter_object, target_model
from drafter_cases import fit as fit_one_batch
from drafter_cases import started, states_of, text_batch
from node_batches import tokens
from tiny_drafters import MASK, tiny_dflash
from tiny_models import VOCAB_SIZE, tiny_model
from training_cases import letter_tokenizer, samples, text_of

import treespec
from treespec.decoder import SpeculativeDecoder
from treespec.drafts.base import DraftSettings
from treespec.generation import RoundRecord
from treespec.stats import Stats
from treespec.targets.base import Needs
from treespec.targets.hf import HfTarget
from treespec.training import TRAINEES, TrainingContext, base, check_options
from treespec.training.autoregressive import AutoregressiveTrainee
from treespec.training.base import Batch, mean_loss, soft_cross_entropy
from treespec.training.data import (
    Batches,
    Recipe,
    fingerprint,
    python_sources,
    read_prompts,
    read_samples,
    samples_by,
    windows,
    write_samples,
)
from treespec.training.dflash import (
    ConditionalTrainee,
    DFlashTrainee,
    backbone_of,
    block_states,
    default_config,
    draw_blocks,
    mask_token_of,
)
from treespec.training.loop import (
    Plan,
    State,
    _undivided,
    fit,
    learning_rate_factor,
    make_optimizers,
)
from treespec.training.muon import Muon, orthogonal
from treespec.training.replay import Tree, replay, standard_trees, write_trajectories

SPARE_TOKEN = VOCAB_SIZE - 1  # no text of these tests holds it


@functools.cache
def target() -> HfTarget:
    return HfTarget(tiny_model("llama", num_hidden_layers=3))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dflash(**options: Any) -> DFlashTrainee:
    torch.manual_seed(3)
    return DFlashTrainee(target(), mask_token_id=SPARE_TOKEN, **{"block_size": 5, **options})


def conditional(kind: str, **options: Any) -> ConditionalTrainee:
    stack = dflash().backbone
    torch.manual_seed(4)
    return ConditionalTrainee(target(), stack, kind=kind, **options)


def autoregressive() -> AutoregressiveTrainee:
    torch.manual_seed(5)
    return AutoregressiveTrainee(target(), num_layers=1, hidden_size=32)


MAKERS: dict[str, Callable[[], Any]] = {
    "dflash": dflash,
    "treeflash": functools.partial(conditional, "treeflash"),
    "pairwise": functools.partial(conditional, "pairwise", inner_size=8),
    "ar": autoregressive,
}


def batches(needs: Needs, **options: Any) -> Batches:
    return Batches(target(), samples(), needs, **{"size": 3, **options})


# --- Blocks ---------------------------------------------------------------------------------------


def plain_batch(lengths: list[int], prompt: int) -> Batch:
    """Texts without states."""
    size = max(lengths)
    ids = torch.from_numpy(np.stack([tokens(size, i) for i in range(len(lengths))])).long()
    place = torch.arange(size)
    own = (place >= prompt) & (place < torch.tensor(lengths)[:, None])
    return Batch(ids, own, None, torch.zeros(len(lengths), size, 1))


def test_roots_are_drawn_once_each_before_the_targets_own_tokens() -> None:
    batch = plain_batch([20, 12, 9, 6], prompt=6)
    blocks = draw_blocks(batch, 4, 9, 4.0, generator())
    assert blocks.anchor.shape == (4, 9) and blocks.label.shape == (4, 9, 4)
    assert not draw_blocks(plain_batch([6], prompt=0), 2, 9, 4.0, generator()).weight[0, 5:].any()
    for row, possible in enumerate([range(5, 19), range(5, 11), range(5, 8), range(0)]):
        counted = blocks.weight[row].sum(-1) > 0
        drawn = blocks.anchor[row][counted].tolist()
        assert len(drawn) == min(9, len(possible)) == len(set(drawn))
        assert set(drawn) <= set(possible)


def test_labels_are_the_text_behind_the_root_and_weights_fall_by_depth() -> None:
    batch = plain_batch([20, 12, 9], prompt=6)
    blocks = draw_blocks(batch, 4, 9, 3.0, generator(1))
    for row, column in np.ndindex(3, 9):
        root = int(blocks.anchor[row, column])
        for k in range(4):
            place, weight = root + 1 + k, float(blocks.weight[row, column, k])
            inside = place < batch.tokens.shape[1] and bool(batch.own[row, place])
            is_root = root + 1 < batch.tokens.shape[1] and bool(batch.own[row, root + 1])
            assert weight == pytest.approx(math.exp(-k / 3) if inside and is_root else 0)
            if weight:
                assert blocks.label[row, column, k] == batch.tokens[row, place]
                assert blocks.previous[row, column, k] == batch.tokens[row, place - 1]


def test_other_draws_give_other_roots_and_the_same_draws_the_same() -> None:
    batch = plain_batch([40], prompt=3)
    one, same, other = (draw_blocks(batch, 4, 6, 4.0, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.anchor, same.anchor) and not torch.equal(one.anchor, other.anchor)


def test_every_possible_root_is_drawn_as_often() -> None:
    batch = plain_batch([24], prompt=4)
    draws = [draw_blocks(batch, 3, 5, 4.0, generator(seed)).anchor for seed in range(400)]
    counts = np.bincount(torch.cat(draws).flatten(), minlength=24)
    assert (counts[:3] == 0).all() and counts[23] == 0
    expected, deviation = 2000 / 20, math.sqrt(400 * 0.25 * 0.75)
    assert (np.abs(counts[3:23] - expected) < 4.5 * deviation).all()


def test_a_text_too_short_for_any_block_costs_nothing() -> None:
    trainee = dflash()
    batch = text_batch(target(), trainee.needs, 2)
    batch.own[:] = False
    loss = trainee.loss(batch, generator())
    assert loss == 0 and loss.requires_grad
    loss.backward()


# --- Training forward and inference ---------------------------------------------------------------

VARIANTS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"predicts_next": True},
    {"windows": (5, None)},
    {"windows": (3, 8), "windows_causal": False},
    {"windows": (1, None), "causal": True, "block_size": 3},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_blocks_in_training_are_blocks_in_decoding(options: dict[str, Any]) -> None:
    drafter = tiny_dflash(target().model, **options)
    batch = exact(batches(drafter.needs).batch([0, 1, 3]), drafter.needs)  # of three lengths
    # All places of the texts, the first included, in any order.
    anchor = torch.tensor([[7, 0, 22, 3, 7], [1, 18, 0, 9, 17], [7, 2, 0, 1, 6]])
    with torch.no_grad():
        found = block_states(drafter.model, drafter.tokens, batch, anchor)
    assert found.isfinite().all()
    for row, column in np.ndindex(*anchor.shape):
        root = int(anchor[row, column])
        ids = batch.tokens[row, : root + 1].numpy().astype(np.int32)
        with torch.inference_mode():
            expected = drafter.states([drafter_session(drafter, ids)])[0]
        assert torch.allclose(found[row, column], expected, rtol=0, atol=1e-4)


def exact(batch: Batch, needs: Needs) -> Batch:
    """The batch with features that are not rounded to 16 bits."""
    features = torch.zeros_like(batch.features)
    for row, own in enumerate(batch.own):
        count = int(own.nonzero()[-1]) + 1
        ids = batch.tokens[row, :count].numpy().astype(np.int32)
        features[row, :count] = states_of(target(), ids, needs).features
    return replace(batch, features=features)


def drafter_session(drafter: Any, ids: np.ndarray) -> Any:
    """A session whose root is the last token; the context may be empty."""
    if len(ids) > 1:
        return started(drafter, target(), ids)
    session = drafter.begin(ids, states_of(target(), ids, drafter.needs), 8)
    session.length = 0
    session.root = int(ids[0])
    return session


def test_padding_blocks_and_empty_contexts_give_no_nan() -> None:
    for windows_of in ((), (1, 1), (2, None)):
        drafter = tiny_dflash(target().model, windows=windows_of)
        batch = batches(drafter.needs).batch([3, 2])
        states = block_states(drafter.model, drafter.tokens, batch, torch.zeros(2, 4).long())
        assert states.isfinite().all()
        states.square().mean().backward()
        for name, parameter in drafter.model.named_parameters():
            assert name == "norm.weight" or parameter.grad.isfinite().all()


# --- Losses ---------------------------------------------------------------------------------------


def test_kl_is_torchs_and_leaves_out_what_cannot_be_said() -> None:
    wanted = torch.randn(5, 9, generator=generator()).log_softmax(-1)
    logits = torch.randn(5, 9, generator=generator(1), requires_grad=True)
    expected = torch.nn.functional.kl_div(
        logits.log_softmax(-1), wanted, reduction="none", log_target=True
    ).sum(-1)
    assert torch.allclose(soft_cross_entropy(wanted, logits), expected, atol=1e-6)
    assert soft_cross_entropy(wanted, wanted).abs().max() < 1e-6
    blocked = logits.masked_fill(torch.arange(9) == 4, -torch.inf)
    loss = soft_cross_entropy(wanted, blocked)
    rest = [i for i in range(9) if i != 4]
    given = logits[:, rest].log_softmax(-1)
    assert torch.allclose(loss, (wanted[:, rest].exp() * (wanted[:, rest] - given)).sum(-1))
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad[:, 4] == 0).all()


def test_a_token_that_the_target_rules_out_costs_nothing() -> None:
    wanted = torch.tensor([[0.0, -torch.inf]])
    logits = torch.zeros(1, 2, requires_grad=True)
    loss = soft_cross_entropy(wanted, logits)
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2)) and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["dflash", "treeflash", "pairwise"])
def test_losses_of_blocks_are_their_formulas(name: str) -> None:
    """Computed anew from what the drafter says in a session, and from the model's own logits."""
    options: dict[str, Any] = {"num_anchors": 3}
    trainee: Any = dflash(**options) if name == "dflash" else conditional(name, **options)
    with torch.no_grad():
        for parameter in trainee.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    batch = text_batch(target(), trainee.needs, 2)
    drafter = trainee.drafter()
    blocks = draw_blocks(batch, 4, 3, 2.5, generator())
    total = 0.0
    with torch.inference_mode():
        law = target().model(batch.tokens).logits.log_softmax(-1)
        for row, column, k in blocks.weight.nonzero().tolist():
            root = int(blocks.anchor[row, column])
            ids = batch.tokens[row, : root + 1].numpy().astype(np.int32)
            states = drafter.states([drafter_session(drafter, ids)])
            if name == "dflash":
                said = drafter.marginal_logits(states)[0, k].log_softmax(-1)
                loss = -said[blocks.label[row, column, k]]
            else:
                before = batch.tokens[row, root + k].expand(1, 4, 1)
                said = drafter.conditional_logits(states, before)[0, k, 0].log_softmax(-1)
                terms = law[row, root + k].exp() * (law[row, root + k] - said)
                loss = terms[torch.arange(VOCAB_SIZE) != SPARE_TOKEN].sum()
            total += float(blocks.weight[row, column, k] * loss)
    expected = total / float(blocks.weight.sum())
    assert trainee.loss(batch, generator()).item() == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_a_small_model_is_its_formula() -> None:
    trainee = autoregressive()
    batch = text_batch(target(), trainee.needs)
    with torch.inference_mode():
        wanted = target().model(batch.tokens).logits[:, :-1].log_softmax(-1)
        said = trainee.module(batch.tokens).logits[:, :-1].log_softmax(-1)
    each = (wanted.exp() * (wanted - said)).sum(-1)[batch.own[:, 1:]]
    assert trainee.loss(batch, generator()).item() == pytest.approx(each.mean().item(), rel=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_losses_in_parts_equal_losses_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(6, 7, generator=generator(), requires_grad=True)
    states = torch.randn(2, 4, 6, generator=generator(1), requires_grad=True)
    label = torch.randint(7, (2, 4), generator=generator(2))
    weight = torch.tensor([[0.5, 0, 1, 2], [0, 0, 0.1, 0.7]])

    def rows_loss(state: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        assert len(state) <= rows
        return torch.nn.functional.cross_entropy(state @ matrix, wanted, reduction="none")

    monkeypatch.setattr(base, "ROWS_PER_CHUNK", rows)
    loss = mean_loss(rows_loss, weight, states, label)
    each = torch.nn.functional.cross_entropy(
        (states @ matrix).flatten(0, 1), label.flatten(), reduction="none"
    )
    expected = (each * weight.flatten()).sum() / weight.sum()
    assert torch.allclose(loss, expected)
    pairs = zip(
        torch.autograd.grad(loss, [matrix, states]),
        torch.autograd.grad(expected, [matrix, states]),
        strict=True,
    )
    assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in pairs)


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_reach_what_is_trained_and_nothing_else(name: str) -> None:
    trainee = MAKERS[name]()
    batch = text_batch(target(), trainee.needs)
    trainee.loss(batch, generator()).backward()
    for parameter_name, parameter in trainee.module.named_parameters():
        frozen = parameter_name.startswith("backbone.")
        assert (parameter.grad is None) == frozen, parameter_name
        assert parameter.requires_grad != frozen
    for parameter in target().model.parameters():
        assert parameter.grad is None and not parameter.requires_grad


@pytest.mark.parametrize("name", MAKERS)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    trainee = MAKERS[name]()
    batch = text_batch(target(), trainee.needs)
    losses = fit_one_batch(trainee, batch, 25, 1e-2)
    assert losses[-1] < 0.85 * losses[0], losses


@pytest.mark.parametrize("kind", ["treeflash", "pairwise"])
def test_a_trained_conditional_leaves_the_plain_drafter_as_it_was(kind: str) -> None:
    trainee = MAKERS[kind]()
    before = {name: t.clone() for name, t in trainee.backbone.state_dict().items()}
    ids = tokens(9, 8)

    def lists(drafter: Any) -> list[Any]:
        session = started(drafter, target(), ids)
        return list(drafter.draft([session], DraftSettings(node_budget=8))[0].arrays)

    plain = trainee.drafter()
    plain.conditional, plain.source_kind = None, "Marginals"
    marginals, fresh = lists(plain), lists(trainee.drafter())
    np.testing.assert_array_equal(fresh[0][1, 0], marginals[0][1, : fresh[0].shape[2]])
    fit_one_batch(trainee, text_batch(target(), trainee.needs), 6, 1e-2)
    after = trainee.backbone.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(np.array_equal(a, b) for a, b in zip(lists(plain), marginals, strict=True))
    assert not np.array_equal(lists(trainee.drafter())[1], fresh[1])


def test_a_stack_is_trained_too_when_asked_for() -> None:
    trainee = conditional("treeflash", train_backbone=True)
    trainee.loss(text_batch(target(), trainee.needs), generator()).backward()
    assert all(parameter.grad is not None for parameter in trainee.module.parameters())


@pytest.mark.parametrize("name", ["dflash", "treeflash"])
def test_a_text_may_hold_the_mask(name: str) -> None:
    trainee = MAKERS[name]()
    batch = text_batch(target(), trainee.needs)
    batch.tokens[:, 10:13] = SPARE_TOKEN
    loss = trainee.loss(batch, generator())
    assert 0 < loss.item() < 50, "the mask is no label"


@pytest.mark.parametrize("name", MAKERS)
def test_a_target_in_bfloat16_can_be_learned_from(name: str) -> None:
    low = HfTarget(tiny_model("llama", torch.bfloat16, num_hidden_layers=3))
    if name == "ar":
        trainee: Any = AutoregressiveTrainee(low, num_layers=1, hidden_size=32)
    elif name == "dflash":
        trainee = DFlashTrainee(low, mask_token_id=SPARE_TOKEN)
    else:
        stack = DFlashTrainee(low, mask_token_id=SPARE_TOKEN).backbone
        trainee = ConditionalTrainee(low, stack, kind=name)
    source = Batches(low, samples(), trainee.needs, size=3)
    loss = trainee.loss(source[0], generator())
    loss.backward()
    assert math.isfinite(loss.item())


def test_a_small_model_may_know_fewer_tokens_than_the_target(tmp_path: Path) -> None:
    tiny_model("llama", vocab_size=40).save_pretrained(tmp_path / "start")
    trainee = AutoregressiveTrainee(target(), start=str(tmp_path / "start"))
    batch = text_batch(target(), trainee.needs)
    batch.tokens %= 40
    losses = fit_one_batch(trainee, batch, 4)
    assert losses[-1] < losses[0]


def test_defaults_follow_the_target() -> None:
    config = default_config(
        target(), mask_token_id=MASK, num_layers=3, block_size=7, num_features=2
    )
    assert config.shape.hidden_size == 32 and config.shape.head_dim == 8
    assert config.depth == 6 and config.layer_ids == (1,)
    deep = HfTarget(tiny_model("llama", num_hidden_layers=9))
    assert default_config(
        deep, mask_token_id=MASK, num_layers=1, block_size=4, num_features=3
    ).layer_ids == (1, 4, 6)
    for name in ("gpt2", "gemma3"):
        other = HfTarget(tiny_model(name))
        assert DFlashTrainee(other, mask_token_id=MASK).backbone.config.target_width == 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_anchors": 0}, "num_anchors must be at least 1, got 0"),
        ({"block_size": 1}, "block_size must be at least 2, got 1"),
    ],
)
def test_sizes_of_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dflash(**options)
    with pytest.raises(ValueError, match="mask_token_id must be in"):
        DFlashTrainee(target(), mask_token_id=VOCAB_SIZE)
    with pytest.raises(ValueError, match="inner_size must be at least 1"):
        conditional("pairwise", inner_size=0)
    with pytest.raises(ValueError, match="hidden_size a multiple of 8, got 2 and 12"):
        AutoregressiveTrainee(target(), hidden_size=12)


# --- Kinds ----------------------------------------------------------------------------------------


def context(tokenizer: Any = None, backbone: Any = None, **options: Any) -> TrainingContext:
    return TrainingContext(target(), tokenizer, samples, backbone, options)


def test_the_mask_is_the_tokenizers_or_the_first_spare_row() -> None:
    letters = letter_tokenizer()
    assert mask_token_of(context(letters)) == len(letters) < VOCAB_SIZE
    letters.add_special_tokens({"mask_token": "<mask>"})
    assert mask_token_of(context(letters)) == letters.mask_token_id
    with pytest.raises(ValueError, match="--option mask_token_id=N"):
        mask_token_of(context(None))


@pytest.mark.parametrize("kind", TRAINEES)
def test_options_of_a_kind_are_those_of_its_class(kind: str) -> None:
    known = TRAINEES[kind].options()
    assert known and not {"kind", "target", "tokenizer", "draft_vocab", "backbone"} & set(known)
    with pytest.raises(ValueError, match=f"options of {kind} must be among {next(iter(known))}"):
        check_options(kind, {"nonsense": 1})
    for name, wanted in known.items():
        check_options(kind, {name: wanted() if isinstance(wanted, type) else None})
        with pytest.raises(ValueError, match=f"{name} must be .*, got \\[\\]"):
            check_options(kind, {name: []})


def test_every_kind_can_be_made_with_an_option(tmp_path: Path) -> None:
    dflash(num_layers=1).save(tmp_path)
    smallest = {
        "dflash": {"num_layers": 1, "mask_token_id": 3},
        "treeflash": {"inner_size": 8},
        "pairwise": {"inner_size": 2},
        "medusa": {"num_heads": 2},
        "eagle3": {"draft_vocab_size": 9},
        "ar": {"hidden_size": 16},
    }
    assert set(smallest) == set(TRAINEES)
    for kind, options in smallest.items():
        check_options(kind, options)
        folder = str(tmp_path) if TRAINEES[kind].needs_backbone else None
        trainee = TRAINEES[kind].make(context(letter_tokenizer(), folder, **options))
        assert trainee.drafter().source_kind in ("Marginals", "Transitions", "Expander")


def test_a_conditional_needs_a_stack_that_borrows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--backbone"):
        backbone_of(context())
    dflash().save(tmp_path / "stack")
    assert backbone_of(context(backbone=tmp_path / "stack")).config.block_size == 5
    tiny_model("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="must be a DFlash drafter, got AutoregressiveDrafter"):
        backbone_of(context(backbone=tmp_path / "model"))
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "stack" / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros(VOCAB_SIZE, 32)
    save_file(weights, tmp_path / "stack" / "model.safetensors")
    with pytest.raises(ValueError, match="must borrow the target's embedding and head"):
        backbone_of(context(backbone=tmp_path / "stack"))


def test_conventions_of_a_stack_survive_a_module_on_top(tmp_path: Path) -> None:
    stack = dflash().backbone
    stack.config = replace(stack.config, causal=True, predicts_next=True, windows=(4, None))
    ConditionalTrainee(target(), stack, kind="pairwise", inner_size=2).save(tmp_path)
    drafter = treespec.load(
        target().model, drafter=tmp_path, drafter_options={"self_test": False}
    ).drafter
    config = drafter.model.config
    assert (config.causal, config.predicts_next, config.windows) == (True, True, (4, None))


# --- Optimisers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 12), (40, 8), (8, 40), (1, 5)])
def test_orthogonal_keeps_the_singular_vectors_and_levels_the_values(
    shape: tuple[int, int],
) -> None:
    matrix = torch.randn(shape, generator=generator(), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ orthogonal(matrix) @ right.T
    level = inner.diagonal()
    # The band of the five steps for values of which none is tiny beside the norm.
    assert (values / values.max()).min() > 0.01
    assert level.min() > 0.6 and level.max() < 1.25
    assert (inner - torch.diag(level)).abs().max() < 1e-8
    assert (orthogonal(torch.zeros(3, 4)) == 0).all()


def test_a_step_of_muon_is_its_formula() -> None:
    weight = torch.nn.Parameter(torch.randn(6, 3, generator=generator()))
    before, average = weight.detach().clone(), torch.zeros(6, 3)
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    for seed in (1, 2):
        weight.grad = torch.randn(6, 3, generator=generator(seed))
        average = 0.9 * average + 0.1 * weight.grad
        update = orthogonal(0.1 * weight.grad + 0.9 * average)
        before = before * (1 - 0.1 * 0.5) - 0.1 * math.sqrt(2) * update
        optimizer.step()
        assert torch.allclose(weight, before, atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_every_trained_parameter_has_one_optimizer(name: str) -> None:
    trainee = MAKERS[name]()
    trained = {id(p): n for n, p in trainee.module.named_parameters() if p.requires_grad}
    for kind in ("muon", "adamw"):
        optimizers = make_optimizers(trainee.module, Plan(steps=1, optimizer=kind))
        held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        assert sorted(map(id, held)) == sorted(trained)
    muon = next(o for o in make_optimizers(trainee.module, Plan(steps=1)) if isinstance(o, Muon))
    for parameter in muon.param_groups[0]["params"]:
        assert parameter.ndim == 2
        assert not any(word in trained[id(parameter)] for word in ("embed", "codebook", "wte"))


def test_tables_are_found_whatever_they_are_called() -> None:
    model = tiny_model("gpt2")
    muon, rest = make_optimizers(model, Plan(steps=1))
    tables = {id(p) for p in rest.param_groups[0]["params"]}
    assert {id(model.transformer.wte.weight), id(model.transformer.wpe.weight)} <= tables
    assert isinstance(muon, Muon)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    found = [learning_rate_factor(p) for p in (0.0, 0.01, 0.02, 0.4, 0.7, 1.0, 1.5)]
    assert found == pytest.approx([0, 0.5, 1, 1, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "either steps or minutes"),
        ({"steps": 1, "minutes": 1.0}, "either steps or minutes"),
        ({"minutes": 0.0}, "must be above 0, got 0.0"),
        ({"steps": 3, "optimizer": "sgd"}, "muon or adamw, got 'sgd'"),
        ({"steps": 3, "learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_plans_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Plan(**fields)


# --- The loop -------------------------------------------------------------------------------------


def run(
    trainee: Any, path: Path, on_step: Callable[..., Any] = lambda *_: None, **plan: Any
) -> State:
    return fit(trainee, batches(trainee.needs), Plan(**plan), path / "training.pt", on_step)


def weights(trainee: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainee.module.state_dict().items()}


def equal_weights(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def interrupt_at(step: int) -> Callable[[State, float], None]:
    def on_step(state: State, share: float) -> None:
        if state.step == step:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("name", ["dflash", "pairwise", "ar"])
def test_a_run_that_goes_on_ends_bit_for_bit_where_one_at_once_does(
    name: str, optimizer: str, tmp_path: Path
) -> None:
    options = {"steps": 7, "learning_rate": 0.01, "optimizer": optimizer}
    whole = MAKERS[name]()
    run(whole, tmp_path / "whole", **options)
    for step in (3, 5):  # over the end of an epoch, which has two batches
        with pytest.raises(KeyboardInterrupt):
            run(MAKERS[name](), tmp_path / "parts", interrupt_at(step), **options)
    resumed = MAKERS[name]()
    seen: list[int] = []
    state = run(resumed, tmp_path / "parts", lambda s, _: seen.append(s.step), **options)
    assert seen == [6, 7] and state.step == 7
    assert equal_weights(weights(whole), weights(resumed))
    assert not equal_weights(weights(whole), weights(MAKERS[name]()))


def test_a_finished_run_ends_at_once(tmp_path: Path) -> None:
    trainee = dflash()
    first = run(trainee, tmp_path, steps=3)
    seen: list[int] = []
    again = run(dflash(), tmp_path, lambda s, _: seen.append(s.step), steps=3)
    assert not seen and again == first
    assert run(dflash(), tmp_path, steps=5).step == 5


def test_a_budget_of_minutes_ends(tmp_path: Path) -> None:
    shares: list[float] = []
    state = run(dflash(), tmp_path, lambda _, share: shares.append(share), minutes=0.005)
    assert state.seconds >= 0.3 and shares == sorted(shares) and shares[-1] >= 1


def test_checkpoints_are_written_while_it_runs(tmp_path: Path) -> None:
    seen: list[int] = []

    def on_step(state: State, share: float) -> None:
        if (tmp_path / "training.pt").exists():
            seen.append(torch.load(tmp_path / "training.pt")["state"]["step"])

    run(dflash(), tmp_path, on_step, steps=4, checkpoint_minutes=0.0)
    assert seen == [1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["training.pt"]


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(dflash(), tmp_path, steps=1)
    for other in (dflash(num_layers=1), dflash(num_features=2, block_size=5, num_layers=3)):
        with pytest.raises(ValueError, match=r"training\.pt is the checkpoint of another run"):
            run(other, tmp_path, steps=2)
    with pytest.raises(ValueError, match="another run"):
        run(MAKERS["pairwise"](), tmp_path, steps=2)
    with pytest.raises(ValueError, match="another run"):
        run(dflash(), tmp_path, steps=2, optimizer="adamw")


class Diverging:
    """Learns for two steps."""

    needs = Needs()

    def __init__(self, gradient_only: bool) -> None:
        self.module = torch.nn.Linear(2, 2)
        self.gradient_only, self.calls = gradient_only, 0

    def loss(self, batch: Batch, draws: torch.Generator) -> torch.Tensor:
        self.calls += 1
        total = self.module.weight.square().sum()
        if self.calls < 3:
            return total
        return (total * 0).sqrt() if self.gradient_only else total * torch.inf


@pytest.mark.parametrize("gradient_only", [False, True])
def test_numbers_without_end_stop_the_run_and_spoil_nothing(
    gradient_only: bool, tmp_path: Path
) -> None:
    trainee = Diverging(gradient_only)
    with pytest.raises(ValueError, match=r"loss must be finite, got .* at step 2; lower"):
        run(trainee, tmp_path, steps=9, checkpoint_minutes=0.0)
    assert trainee.module.weight.isfinite().all()
    saved = torch.load(tmp_path / "training.pt")
    assert saved["state"]["step"] == 2
    assert torch.equal(saved["module"]["weight"], trainee.module.weight)
    with pytest.raises(ValueError):
        run(Diverging(gradient_only), tmp_path / "other", steps=9)
    assert not (tmp_path / "other").exists(), "weights that lead nowhere are not kept"


def test_a_batch_with_nothing_to_learn_is_passed_over(tmp_path: Path) -> None:
    trainee = MAKERS["pairwise"]()
    source = Batches(target(), samples((5, 5)), trainee.needs, size=2)  # prompts alone
    before = weights(trainee)
    fit(trainee, source, Plan(steps=2), tmp_path / "training.pt")
    assert equal_weights(before, weights(trainee))


def test_an_update_is_not_divided_by_an_interrupt() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    done = []
    try:
        with pytest.raises(KeyboardInterrupt), _undivided():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        assert done == [1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# --- Batches --------------------------------------------------------------------------------------

LAYERS = Needs(layers=(0, 2))


def test_batches_depend_on_seed_and_step_alone() -> None:
    one, same, other = batches(LAYERS), batches(LAYERS), batches(LAYERS, seed=1)
    for step in (5, 0, 3):  # in any order
        assert torch.equal(one[step].tokens, same[step].tokens)
        assert torch.equal(one[step].features, same[step].features)
    assert any(not torch.equal(one[s].tokens, other[s].tokens) for s in range(4))


def test_an_epoch_has_every_text_once() -> None:
    source = batches(LAYERS)
    firsts = [row[0].item() for step in (0, 1) for row in source[step].tokens]
    assert sorted(firsts) == sorted(int(s.tokens[0]) for s in samples())


def test_shorter_texts_are_padded_at_the_end() -> None:
    texts = samples()
    batch = batches(LAYERS).batch([0, 3, 2])
    assert batch.tokens.shape == (3, 30) and batch.last_hidden.shape == (3, 30, 32)
    assert batch.features is not None and batch.features.shape == (3, 30, 64)
    for row, index in enumerate([0, 3, 2]):
        ids = texts[index].tokens
        states = states_of(target(), ids, Needs((0, 2), last_hidden=True))
        count = len(ids)
        np.testing.assert_array_equal(batch.tokens[row, :count], ids)
        assert torch.equal(batch.features[row, :count], states.features.half().float())
        assert torch.equal(batch.last_hidden[row, :count], states.last_hidden.half().float())
        assert not batch.features[row, count:].any() and not batch.last_hidden[row, count:].any()
        own = torch.zeros(30, dtype=torch.bool)
        own[5:count] = True
        assert torch.equal(batch.own[row], own)


def test_states_that_are_kept_are_those_computed_anew() -> None:
    size = 24 * 32 * 3 * 2  # bytes of a text of 24 tokens
    for room in (0, size, 2.5 * size):
        some, all_kept = batches(LAYERS, cache_bytes=room), batches(LAYERS)
        for step in (0, 1, 2, 3):
            ours, theirs = some[step], all_kept[step]
            assert torch.equal(ours.last_hidden, theirs.last_hidden)
            assert torch.equal(ours.features, theirs.features)
        kept = [len(s.tokens) for i, s in enumerate(samples()) if i in some._kept]
        assert sum(kept) * size / 24 <= room and (len(kept) > 0) == (room > 0)


def test_states_beyond_float16_are_kept_in_bfloat16() -> None:
    model = tiny_model("llama", num_hidden_layers=3)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e6)
    source = Batches(HfTarget(model), samples(), LAYERS, size=2)
    features = source[0].features
    assert features is not None and features.isfinite().all() and features.abs().max() > 7e4


def test_a_batch_is_never_larger_than_the_data() -> None:
    assert batches(LAYERS, size=50)[1].tokens.shape[0] == len(samples())


# --- Prompts --------------------------------------------------------------------------------------


def prompts_of(path: Path, count: int = 100, length: int = 6, seed: int = 0) -> list[str]:
    found = read_prompts([path], letter_tokenizer(), count=count, prompt_tokens=length, seed=seed)
    assert all(ids.dtype == np.int32 and 0 < len(ids) <= length for ids in found)
    return [text_of(ids) for ids in found]


def test_jsonl_rows_are_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "abc"}, {"text": "much longer text"}, {"prompt": "x", "answer": 3}]
    file.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert prompts_of(file) == ["abc", "r text", "x"], "fewer than asked for are all there are"
    some = prompts_of(file, count=2)
    assert len(some) == 2 and set(some) < {"abc", "r text", "x"}
    assert {tuple(prompts_of(file, count=2, seed=seed)) for seed in range(9)} > {tuple(some)}


def marking_tokenizer() -> Any:
    """One that begins every text with a mark and ends it with another."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = letter_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return tokenizer


def test_every_prompt_begins_with_the_mark_of_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "longer than five"}')
    (tmp_path / "b.txt").write_text("some text " * 9)
    found = read_prompts(
        [tmp_path / "a.jsonl", tmp_path / "b.txt"], marking_tokenizer(), count=6, prompt_tokens=5
    )
    assert [len(ids) for ids in found] == [5] * 6
    assert all(ids[0] == 1 and 1 not in ids[1:] for ids in found)
    assert all(text_of(ids[1:]) in "some text " * 9 for ids in found[1:])


def test_messages_go_through_the_chat_template_once(tmp_path: Path) -> None:
    from training_cases import TEMPLATE

    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}))
    tokenizer = marking_tokenizer()
    with pytest.raises(ValueError, match=r"chat\.jsonl:1 has messages, the tokenizer no chat"):
        read_prompts([file], tokenizer, count=1, prompt_tokens=40)
    tokenizer.chat_template = "<bos>" + TEMPLATE
    (ids,) = read_prompts([file], tokenizer, count=1, prompt_tokens=40)
    assert ids.tolist().count(1) == 1
    assert text_of(ids[1:]) == "u: hi\na: "


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", "must be JSON"),
        ('{"question": "x"}', "must have prompt or text, or messages, got ['question']"),
        ("[1]", "must have prompt or text, or messages, got list"),
        ('{"prompt": 5}', "must have prompt or text, or messages"),
        ('{"prompt": ""}', "must not be empty"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line)
    with pytest.raises(ValueError) as found:
        prompts_of(file)
    assert "prompts.jsonl:2" in str(found.value) and words in str(found.value)


def test_texts_are_cut_into_windows_that_never_overlap(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    text = "".join(chr(97 + i % 26) + str(i % 10) for i in range(60))
    (inner / "one.txt").write_text(text)
    (tmp_path / "two.md").write_text(text[::-1])
    (tmp_path / "short.txt").write_text("abc")
    (tmp_path / "ignored.bin").write_text(text)
    found = prompts_of(tmp_path, length=7)
    assert all(len(one) == 7 and (one in text or one in text[::-1]) for one in found)
    assert 2 * (120 // 7) - 2 <= len(found) <= 2 * (120 // 7)
    assert len(set(prompts_of(tmp_path, count=5, length=7))) == 5
    assert prompts_of(tmp_path, seed=1) != prompts_of(tmp_path, seed=2)
    tokenizer, random = letter_tokenizer(), np.random.default_rng(0)
    places = sorted(text.index(text_of(w)) for w in windows([text], tokenizer, 99, 7, random))
    assert all(later - earlier >= 7 for earlier, later in itertools.pairwise(places))


def test_rows_come_first_and_texts_fill_up(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "row"}')
    (tmp_path / "b.txt").write_text("text " * 20)
    found = read_prompts(
        [tmp_path / "a.jsonl", tmp_path / "b.txt"], letter_tokenizer(), count=4, prompt_tokens=5
    )
    assert text_of(found[0]) == "row" and len(found) == 4


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such data: .*nowhere"):
        prompts_of(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="must hold prompts, got none in"):
        prompts_of(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"got none in .*empty\.jsonl"):
        prompts_of(tmp_path / "empty.jsonl")
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(ValueError, match="must hold a text of 6 tokens, got none"):
        prompts_of(tmp_path / "short.txt")


def test_held_out_sources_are_no_training_sources() -> None:
    used, held = set(python_sources()), set(python_sources(held_out=True))
    assert len(held) > 5 and len(used) > 10 * len(held)
    assert not used & held


# --- Samples --------------------------------------------------------------------------------------

PROMPTS = [tokens(4 + i % 3, 40 + i) for i in range(7)]


def write(folder: Path, prompts: Any = PROMPTS, **options: Any) -> None:
    options = {"new_tokens": 9, "batch_size": 2, "seed": 3, **options}
    write_samples(folder, target(), prompts, **options)


def test_samples_are_what_plain_decoding_writes(tmp_path: Path) -> None:
    write(tmp_path, temperatures=(0.0, 0.7, 1.0))
    found = read_samples(tmp_path)
    assert len(found) == len(PROMPTS)
    decoder = SpeculativeDecoder(target(), None)
    for index, (sample, prompt) in enumerate(zip(found, PROMPTS, strict=True)):
        expected = decoder.generate(
            prompt.tolist(),
            max_new_tokens=9,
            temperature=(0.0, 0.7, 1.0)[index // 2 % 3],
            seed=3,
            sequence_id=index,
        )
        assert sample.tokens.tolist() == [*prompt.tolist(), *expected.token_ids]
        assert sample.prompt_length == len(prompt) and sample.tokens.dtype == np.int32


def test_a_killed_run_leaves_no_half_file_and_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "whole")

    def two_batches(jobs: Any) -> Any:
        yield from jobs[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "parts", progress=two_batches)
    (tmp_path / "parts" / "00002.partial").write_bytes(b"half")  # killed while it wrote
    assert len(read_samples(tmp_path / "parts")) == 4
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.npz")}
    write(tmp_path / "parts")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    pairs = zip(read_samples(tmp_path / "whole"), read_samples(tmp_path / "parts"), strict=True)
    assert all(np.array_equal(one.tokens, other.tokens) for one, other in pairs)
    assert not list((tmp_path / "parts").glob("*.partial"))


def test_a_folder_without_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must hold samples, got none"):
        read_samples(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"p{i} = "}) for i in range(5)))
    return Recipe((str(data),), prompts=5, prompt_tokens=6, new_tokens=8, batch_size=2, seed=1)


def test_a_recipe_is_followed_once(recipe: Recipe, tmp_path: Path) -> None:
    first = samples_by(recipe, tmp_path / "samples", target(), letter_tokenizer())
    assert len(first) == 5
    Path(recipe.data[0]).unlink()  # a folder that is complete needs no prompts

    def no_work(jobs: Any) -> Any:
        raise AssertionError

    again = samples_by(recipe, tmp_path / "samples", target(), letter_tokenizer(), no_work)
    pairs = zip(first, again, strict=True)
    assert all(np.array_equal(one.tokens, other.tokens) for one, other in pairs)


def test_texts_of_another_recipe_or_target_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    folder, tokenizer = tmp_path / "samples", letter_tokenizer()
    samples_by(recipe, folder, target(), tokenizer)
    with pytest.raises(ValueError, match=r"holds texts of new_tokens 8 \(not 9\), seed 1 \(not 4"):
        samples_by(replace(recipe, new_tokens=9, seed=4), folder, target(), tokenizer)
    other = HfTarget(tiny_model("llama", num_hidden_layers=3, seed=1))
    with pytest.raises(ValueError, match=f"target {fingerprint(target())}"):
        samples_by(recipe, folder, other, tokenizer)


def test_a_recipe_goes_on_where_it_was_stopped(recipe: Recipe, tmp_path: Path) -> None:
    def one_batch(jobs: Any) -> Any:
        yield jobs[0]
        raise KeyboardInterrupt

    folder, tokenizer = tmp_path / "samples", letter_tokenizer()
    with pytest.raises(KeyboardInterrupt):
        samples_by(recipe, folder, target(), tokenizer, one_batch)
    assert len(read_samples(folder)) == 2
    assert len(samples_by(recipe, folder, target(), tokenizer)) == 5


# --- Replay ---------------------------------------------------------------------------------------

REPLAYED = [name for name in DRAFTER_NAMES if name != "demo"]


def tree_for(drafter: Any) -> Tree:
    if drafter.source_kind == "Trie":
        return Tree("trie", "trie", 8)
    if drafter.source_kind == "Expander":
        return Tree("tree", "opt_tree", 8, {"max_depth": 4, "threshold": 0.0})
    return Tree("tree", "dtree", 8)


def played(tree: Tree, drafter: Any, prompts: Any, temperature: float) -> list[list[RoundRecord]]:
    """The rounds of real decoding, by text."""
    decoder = SpeculativeDecoder(
        HfTarget(target_model("llama")),
        drafter,
        builder=tree.builder,
        builder_options=tree.options,
        node_budget=tree.node_budget,
        verifier="target_only" if temperature else "greedy",
    )
    rounds: list[list[RoundRecord]] = [[] for _ in prompts]
    decoder.generate(
        [prompt.tolist() for prompt in prompts],
        max_new_tokens=40,
        temperature=temperature,
        seed=4,
        sequence_id=[0, 1],
        ignore_eos=True,
        on_round=lambda record: rounds[record.sequence].append(record),
    )
    return rounds


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("name", REPLAYED)
def test_replay_accepts_what_decoding_accepts(name: str, temperature: float) -> None:
    drafter = drafter_object(name)
    tree = tree_for(drafter)
    prompts = [tokens(size, size) for size in (4, 9)]
    texts = write_trajectories(
        HfTarget(target_model("llama")),
        prompts,
        drafter.needs,
        new_tokens=40,
        temperature=temperature,
        seed=4,
    )
    found = replay(drafter, texts, tree, spare=12)
    stats, reached = Stats(), []
    for text, rounds in zip(texts, played(tree, drafter, prompts, temperature), strict=True):
        ids, start = text.sample.tokens, text.sample.prompt_length
        counted = [one for one in rounds if one.position < len(ids) - 12]
        for one in counted:
            emitted = np.asarray(one.verdict.tokens)
            np.testing.assert_array_equal(emitted, ids[one.position + 1 :][: len(emitted)])
            stats.count_round(one.tree, one.verdict.accepted_nodes, len(emitted))
        end = counted[-1].position + 1 + counted[-1].verdict.num_accepted
        reached.append((end - start) / len(counted))
    assert found.block_efficiency == pytest.approx(reached)
    assert found.offered_by_depth == stats.offered_by_depth
    missing = len(stats.offered_by_depth) - len(stats.accepted_by_depth)
    assert found.accepted_by_depth == [*stats.accepted_by_depth, *[0] * missing]
    if name in ("tiny", "suffix") and (temperature == 0 or name == "tiny"):
        assert found.mean > 1.2, "something must be accepted, or nothing is shown"


def test_replay_ends_all_sessions_and_needs_no_forward_of_a_tree() -> None:
    drafter = drafter_object("tiny dflash")
    own = HfTarget(target_model("llama"))
    texts = write_trajectories(own, [tokens(5, 1)], drafter.needs, new_tokens=24, temperature=0.7)
    ended: list[Any] = []

    class Watched:
        needs, source_kind = drafter.needs, drafter.source_kind
        begin, draft, observe = drafter.begin, drafter.draft, drafter.observe

        def end(self, session: Any) -> None:
            ended.append(session)

    found = replay(Watched(), texts, Tree("tree", "dtree", 4), spare=4)  # type: ignore[arg-type]
    assert len(ended) == 1 and len(found.block_efficiency) == 1 and found.error == 0.0


def test_a_text_is_written_past_its_end() -> None:
    model = tiny_model("llama")
    model.generation_config.eos_token_id = list(range(VOCAB_SIZE))
    (text,) = write_trajectories(
        HfTarget(model), [tokens(5)], Needs(), new_tokens=7, temperature=0.0
    )
    assert len(text.sample.tokens) == 12


@pytest.mark.parametrize("kind", ["Expander", "Marginals", "Transitions", "Trie"])
def test_the_standard_trees_fit_every_source(kind: str) -> None:
    from support import make_source

    for tree in standard_trees(kind):
        source = make_source(kind.lower(), 0)[0]
        options = dict(tree.options)
        built = treespec.build_tree(tree.builder, source, node_budget=tree.node_budget, **options)
        assert 1 < len(built) <= tree.node_budget + 1
    assert [tree.node_budget for tree in standard_trees(kind)] == [4, 16, 64]
