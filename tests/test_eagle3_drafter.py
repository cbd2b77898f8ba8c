# SPDX-License-Identifier: Apache-2.0
"""EAGLE-3: rows against a formula without a cache, checkpoints in the wild, and training."""

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
from node_batches import CALLS, PARENT, Nodes, batch, expand_all, path_to, tokens
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE, tiny_model
from torch.nn.functional import silu

from treespec.drafts import eagle3
from treespec.drafts.base import DraftSettings
from treespec.drafts.eagle3 import Eagle3Drafter, Eagle3Model, feature_layers
from treespec.drafts.expander import TreeExpander
from treespec.drafts.vocabulary import DraftVocabulary
from treespec.targets.base import Needs
from treespec.targets.hf import HfTarget
from treespec.training.data import Sample
from treespec.training.eagle3 import (
    Eagle3Trainee,
    chain_mask,
    default_config,
    default_layers,
    frequent_tokens,
)

SETTINGS = DraftSettings(node_budget=8)
HIDDEN, HEADS, KV_HEADS, WIDTH = 32, 4, 2, 8
DRAFT_IDS = torch.arange(3, VOCAB_SIZE, 2)


@functools.cache
def target(dtype: torch.dtype = torch.float64, num_layers: int = 4) -> HfTarget:
    return HfTarget(tiny_model("llama", dtype, num_hidden_layers=num_layers))


@functools.cache
def weights(*, draft_size: int = VOCAB_SIZE, features: int = 3) -> dict[str, torch.Tensor]:
    """Random ones under the published names."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    attention, layer = "midlayer.self_attn.", "midlayer."
    out = {
        "fc.weight": random(HIDDEN, features * HIDDEN),
        attention + "q_proj.weight": random(HEADS * WIDTH, 2 * HIDDEN),
        attention + "k_proj.weight": random(KV_HEADS * WIDTH, 2 * HIDDEN),
        attention + "v_proj.weight": random(KV_HEADS * WIDTH, 2 * HIDDEN),
        attention + "o_proj.weight": random(HIDDEN, HEADS * WIDTH),
        layer + "mlp.gate_proj.weight": random(48, HIDDEN),
        layer + "mlp.up_proj.weight": random(48, HIDDEN),
        layer + "mlp.down_proj.weight": random(HIDDEN, 48),
        "lm_head.weight": random(draft_size, HIDDEN),
    }
    for norm in ("input_layernorm", "hidden_norm", "post_attention_layernorm"):
        out[f"{layer}{norm}.weight"] = 1 + random(HIDDEN)
    return {**out, "norm.weight": 1 + random(HIDDEN)}


def drafter(dtype: torch.dtype = torch.float64, *, reduced: bool = False) -> Eagle3Drafter:
    size = len(DRAFT_IDS) if reduced else VOCAB_SIZE
    model = Eagle3Model(default_config(target(dtype), size))
    model.load_state_dict(weights(draft_size=size))
    offset = DRAFT_IDS - torch.arange(size) if reduced else None
    vocabulary = DraftVocabulary(size, VOCAB_SIZE, offset)
    embedding = target(dtype).model.get_input_embeddings()
    return Eagle3Drafter(model.to(dtype), embedding, vocabulary)


# --- The formula ----------------------------------------------------------------------------------


class Formula:
    """EAGLE-3 as the paper has it, one path at a time: no cache, no packing, no tree."""

    def __init__(self, tensors: dict[str, torch.Tensor], embedding: torch.Tensor) -> None:
        self.tensors = {name: tensor.to(embedding.dtype) for name, tensor in tensors.items()}
        self.embedding = embedding
        self.angles = 10000.0 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
        self.norm_before_residual = False

    def logits(self, features: torch.Tensor, ids: list[int], path: list[int]) -> torch.Tensor:
        """``[V_draft]`` after a path below the root: `ids` are x_1 .. x_s, features those of
        positions 0 .. s-1.
        """
        states = features @ self.tensors["fc.weight"].mT
        for token in path:
            out = self.layer(states, ids)
            states, ids = torch.cat([states, out[-1:]]), [*ids, token]
        last = self.layer(states, ids)[-1]
        return self.tensors["lm_head.weight"] @ self.norm(last, "norm")

    def layer(self, states: torch.Tensor, ids: list[int]) -> torch.Tensor:
        names = self.tensors
        normed = self.norm(states, "midlayer.hidden_norm")
        embedded = self.norm(self.embedding[ids], "midlayer.input_layernorm")
        pair = torch.cat([embedded, normed], dim=-1)
        query, key, value = (
            (pair @ names[f"midlayer.self_attn.{letter}_proj.weight"].mT)
            .unflatten(-1, (-1, WIDTH))
            .transpose(0, 1)
            for letter in "qkv"
        )
        query, key = self.rotate(query), self.rotate(key)
        key, value = (rows.repeat_interleave(HEADS // KV_HEADS, 0) for rows in (key, value))
        scores = query @ key.mT / WIDTH**0.5
        later = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
        heads = scores.masked_fill(later, -torch.inf).softmax(-1) @ value
        attended = heads.transpose(0, 1).flatten(1) @ names["midlayer.self_attn.o_proj.weight"].mT
        hidden = (normed if self.norm_before_residual else states) + attended
        inner = self.norm(hidden, "midlayer.post_attention_layernorm")
        gate, up, down = (names[f"midlayer.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        return hidden + (silu(inner @ gate.mT) * (inner @ up.mT)) @ down.mT

    def norm(self, states: torch.Tensor, name: str) -> torch.Tensor:
        scale = (states.float().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        return self.tensors[f"{name}.weight"] * (states.float() * scale).to(states.dtype)

    def rotate(self, rows: torch.Tensor) -> torch.Tensor:
        turn = torch.arange(rows.shape[1])[:, None] * self.angles
        cos, sin = turn.cos().to(rows.dtype), turn.sin().to(rows.dtype)
        left, right = rows.chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def plain_rows(
    formula: Formula, own: HfTarget, needs: Needs, committed: Any, ids: Any
) -> torch.Tensor:
    """Log-probabilities after every node of `CALLS`, each by itself."""
    features = states_of(own, committed[:-1], needs).features
    paths = [ids[path_to(node)[1:]].tolist() for node in range(len(PARENT))]
    rows = [formula.logits(features, committed[1:].tolist(), path) for path in paths]
    return torch.log_softmax(torch.stack(rows), dim=-1)


def formula(dtype: torch.dtype = torch.float64, *, reduced: bool = False) -> Formula:
    size = len(DRAFT_IDS) if reduced else VOCAB_SIZE
    embedding = target(dtype).model.get_input_embeddings().weight.detach()
    return Formula(weights(draft_size=size), embedding)


# --- Rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_equal_path_wise_recomputation(dtype: torch.dtype, reduced: bool) -> None:
    committed, ids, one = tokens(15), tokens(len(PARENT), 1), drafter(dtype, reduced=reduced)
    (expander,) = one.draft([started(one, target(dtype), committed)], SETTINGS)
    rows = expand_all(expander, ids)
    expected = plain_rows(formula(dtype, reduced=reduced), target(dtype), one.needs, committed, ids)
    assert rows.dtype == dtype and rows.shape == (len(PARENT), VOCAB_SIZE)
    said = DRAFT_IDS if reduced else torch.arange(VOCAB_SIZE)
    assert torch.allclose(rows[:, said], expected, rtol=0, atol=1e-4)
    unsaid = torch.ones(VOCAB_SIZE, dtype=torch.bool)
    unsaid[said] = False
    assert (rows[:, unsaid] == -torch.inf).all()


def test_drafting_twice_gives_the_same_and_leaves_no_trace() -> None:
    committed, ids, one = tokens(15), tokens(len(PARENT), 1), drafter()
    session = started(one, target(), committed)
    results = []
    for seed in range(3):
        (unfinished,) = one.draft([session], SETTINGS)
        for call in CALLS[:2]:
            unfinished.expand(batch(call, tokens(len(PARENT), seed)))
        (expander,) = one.draft([session], SETTINGS)
        results.append(expand_all(expander, ids))
        assert session.sequence.length == len(committed) - 1
    expected = plain_rows(formula(), target(), one.needs, committed, ids)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert torch.allclose(results[0], expected, rtol=0, atol=1e-5)


def test_what_is_observed_counts_not_how_it_is_split() -> None:
    committed, ids, one = tokens(20), tokens(len(PARENT), 1), drafter()
    expected = plain_rows(formula(), target(), one.needs, committed, ids)
    states = states_of(target(), committed[:-1], one.needs)
    for prompt, cuts in ((1, [2, 5, 19]), (5, [6, 7, 8, 19]), (12, [19]), (19, [])):
        session = one.begin(committed[:prompt], states.rows(np.arange(prompt)), 8)
        one.observe(session, committed[prompt : prompt + 1], None)
        begin = prompt
        for end in cuts:
            (expander,) = one.draft([session], SETTINGS)
            expand_all(expander, tokens(len(PARENT), begin))  # other speculation in between
            rows = states.rows(np.arange(begin, end))
            one.observe(session, committed[begin + 1 : end + 1], rows)
            begin = end
        (expander,) = one.draft([session], SETTINGS)
        assert torch.allclose(expand_all(expander, ids), expected, rtol=0, atol=1e-5)


def test_several_trees_grow_in_lock_step() -> None:
    one = drafter()
    contexts = [tokens(size, size) for size in (4, 17, 2)]
    drafts = [tokens(len(PARENT), 30 + size) for size in range(3)]
    sessions = [started(one, target(), context) for context in contexts]
    expanders = one.draft(sessions, SETTINGS)
    parts: list[list[torch.Tensor]] = [[], [], []]
    for call in CALLS:
        calls = [call, call, call if call != [6] else []]  # a batch may be empty, a tree may end
        if call == [7, 8]:
            calls[2] = [8]
        nodes = [batch(index, ids) for index, ids in zip(calls, drafts, strict=True)]
        for part, rows in zip(parts, TreeExpander.expand_together(expanders, nodes), strict=True):
            part.append(rows)
    seen = [*[list(range(len(PARENT)))] * 2, [0, 1, 2, 3, 4, 5, 8]]
    for context, ids, part, nodes in zip(contexts, drafts, parts, seen, strict=True):
        expected = plain_rows(formula(), target(), one.needs, context, ids)[nodes]
        assert torch.allclose(torch.cat(part), expected, rtol=0, atol=1e-5)


def test_one_forward_per_level_serves_all_sequences() -> None:
    one = drafter()
    calls: list[int] = []
    one.model.register_forward_pre_hook(lambda *_: calls.append(1))
    expanders = one.draft([started(one, target(), tokens(size)) for size in (5, 8)], SETTINGS)
    ids = tokens(len(PARENT))
    for call in ([0], [1, 2], [4]):
        TreeExpander.expand_together(expanders, [batch(call, ids), batch(call, ids)])
    assert len(calls) == 3


def test_a_node_may_be_handed_over_again() -> None:
    one, ids = drafter(), tokens(len(PARENT), 1)
    (expander,) = one.draft([started(one, target(), tokens(6))], SETTINGS)
    rows = expand_all(expander, ids)
    again = expander.expand(batch([4, 0, 8], ids))
    assert torch.allclose(again, rows[[4, 0, 8]], rtol=0, atol=1e-6)


def test_long_prompts_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    one = drafter()
    sessions = [started(one, target(), tokens(size)) for size in (15, 7)]
    expected = [one.draft([session], SETTINGS)[0].session.root_logits for session in sessions]
    monkeypatch.setattr(eagle3, "PREFILL_ROWS", 4)
    again = [started(one, target(), tokens(size)) for size in (15, 7)]
    one.draft(again, SETTINGS)
    for session, row in zip(again, expected, strict=True):
        assert torch.allclose(session.root_logits, row, rtol=0, atol=1e-5)


def test_a_draft_that_failed_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    one, committed, ids = drafter(), tokens(15), tokens(len(PARENT), 1)
    (expander,) = one.draft([started(one, target(), committed)], SETTINGS)
    expected = expand_all(expander, ids)
    monkeypatch.setattr(eagle3, "PREFILL_ROWS", 4)
    session = started(one, target(), committed)
    left = [2]

    def fail(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    hook = one.model.midlayer.mlp.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        one.draft([session], SETTINGS)
    hook.remove()
    (expander,) = one.draft([session], SETTINGS)
    assert torch.allclose(expand_all(expander, ids), expected, rtol=0, atol=1e-5)


def test_wrong_calls_are_refused() -> None:
    one = drafter()
    session = started(one, target(), tokens(5))
    (old,) = one.draft([session], SETTINGS)
    one.draft([session], SETTINGS)
    with pytest.raises(RuntimeError, match="this round is over"):
        old.expand(batch([0], tokens(9)))
    with pytest.raises(ValueError, match="states must hold the features of `needs`, got none"):
        one.begin(PROMPT, None, 64)
    fresh = one.begin(PROMPT, states_of(target(), PROMPT, one.needs), 64)
    with pytest.raises(ValueError, match=r"must have observed its root.* got 6 tokens for 7"):
        one.draft([fresh], SETTINGS)


def test_an_ended_session_holds_no_rows() -> None:
    one = drafter()
    session = started(one, target(), tokens(5))
    one.draft([session], SETTINGS)
    one.end(session)
    assert not session.sequence._layers and not len(session.features) and not len(session.states)


# --- Decoding -------------------------------------------------------------------------------------


@functools.cache
def trained(reduced: bool = False) -> Eagle3Trainee:
    torch.manual_seed(0)
    ids = DRAFT_IDS if reduced else None
    trainee = Eagle3Trainee(target(), num_steps=3, draft_vocab=ids)
    trainee.module.double()
    fit(trainee, text_batch(target(), trainee.needs), 40, 1e-2)
    return trainee


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("builder", sorted({*BUILDERS} - {"dtree"}))  # which reads no expander
def test_text_is_the_text_of_plain_decoding(
    builder: str, temperature: float, reduced: bool
) -> None:
    plain = generated(target(), None, builder, temperature)
    results = generated(target(), trained(reduced).drafter(), builder, temperature)
    assert [r.token_ids for r in results] == [r.token_ids for r in plain]
    # Some guesses were right: at a temperature luck decides for so short a chain.
    assert temperature > 0 or sum(r.stats.block_efficiency for r in results) > 3.0


# --- Checkpoints ----------------------------------------------------------------------------------

CONFIG = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": VOCAB_SIZE,
}


def write(
    folder: Path, tensors: dict[str, torch.Tensor], name: str = "pytorch_model.bin", **fields: Any
) -> Path:
    """A checkpoint as the authors publish it."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **fields}))
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name)
    else:
        torch.save(tensors, folder / name)
    return folder


def reduced_weights() -> dict[str, torch.Tensor]:
    """With the maps of a reduced vocabulary."""
    covered = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    covered[DRAFT_IDS] = True
    offset = DRAFT_IDS - torch.arange(len(DRAFT_IDS))
    return {**weights(draft_size=len(DRAFT_IDS)), "d2t": offset, "t2d": covered}


def test_published_checkpoints_draft_what_their_weights_say(tmp_path: Path) -> None:
    """As on the hub: pytorch_model.bin, `midlayer`, d2t and t2d, layers by default."""
    own = target(torch.float32, 8)
    folder = write(tmp_path, reduced_weights(), draft_vocab_size=len(DRAFT_IDS))
    one = load_drafter(own.model, folder)
    assert one.needs == Needs(layers=(1, 3, 4))  # what enters layers 2, 8 // 2 and 8 - 3
    plain = Formula(
        weights(draft_size=len(DRAFT_IDS)), own.model.get_input_embeddings().weight.detach()
    )
    committed, ids = tokens(9), tokens(len(PARENT), 1)
    (expander,) = one.draft([started(one, own, committed)], SETTINGS)
    expected = plain_rows(plain, own, one.needs, committed, ids)
    rows = expand_all(expander, ids)
    assert torch.allclose(rows[:, DRAFT_IDS], expected, rtol=0, atol=1e-4)


def test_checkpoints_of_other_trainers_draft_what_their_weights_say(tmp_path: Path) -> None:
    """`layers.0`, an embedding of its own, norm before the residual, linear rotation."""
    own, embedding = target(torch.float32), torch.randn(VOCAB_SIZE, HIDDEN)
    tensors = {
        "model." + name.replace("midlayer.", "layers.0."): tensor
        for name, tensor in weights().items()
    }
    tensors["embed_tokens.weight"] = embedding
    nested = {key: CONFIG[key] for key in CONFIG if key != "architectures"}
    folder = write(
        tmp_path,
        tensors,
        "model.safetensors",
        architectures=["Eagle3Speculator"],
        speculators_model_type="eagle3",
        norm_before_residual=True,
        draft_vocab_size=VOCAB_SIZE,
        eagle_aux_hidden_state_layer_ids=[1, 2, 4],
        transformer_layer_config={**nested, "rope_scaling": {"type": "linear", "factor": 2.0}},
    )
    one = load_drafter(own.model, folder)
    assert one.needs == Needs(layers=(0, 1, 3))
    plain = Formula(weights(), embedding)
    plain.norm_before_residual, plain.angles = True, plain.angles / 2
    committed, ids = tokens(9), tokens(len(PARENT), 1)
    (expander,) = one.draft([started(one, own, committed)], SETTINGS)
    expected = plain_rows(plain, own, one.needs, committed, ids)
    assert torch.allclose(expand_all(expander, ids), expected, rtol=0, atol=1e-4)


def test_layers_are_counted_as_the_config_counts_them(tmp_path: Path) -> None:
    nested = {"eagle_aux_hidden_state_layer_ids": [0, 2, 3], "use_aux_hidden_state": True}
    folder = write(tmp_path, weights(), eagle_config=nested)
    assert load_drafter(target().model, folder).needs.layers == (0, 2, 3)
    folder = write(tmp_path, weights(), eagle_aux_hidden_state_layer_ids=[1, 3, 4])
    assert load_drafter(target().model, folder).needs.layers == (0, 2, 3)


def test_heads_may_be_normed(tmp_path: Path) -> None:
    names = ("midlayer.self_attn.q_norm.weight", "midlayer.self_attn.k_norm.weight")
    tensors = {**weights(), **{name: 2 * torch.ones(WIDTH) for name in names}}
    fields = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}
    normed = load_drafter(target().model, write(tmp_path, tensors, **fields))
    plain = load_drafter(target().model, write(tmp_path, weights(), **fields))
    assert not equal(drafted(normed, target()), drafted(plain, target()), 1e-3)


def test_it_runs_in_the_targets_dtype_and_rotates_in_float32(tmp_path: Path) -> None:
    model = tiny_model("llama", torch.bfloat16, num_hidden_layers=8)
    one = load_drafter(model, write(tmp_path, weights()))
    assert {p.dtype for p in one.model.parameters()} == {torch.bfloat16}
    assert one.model.rotary.inv_freq.dtype == torch.float32
    rows = drafted(one, HfTarget(model))
    assert all(row.dtype == np.float32 and np.isfinite(row).all() for row in rows)


@pytest.mark.parametrize("reduced", [False, True])
def test_a_saved_drafter_is_a_published_checkpoint(tmp_path: Path, reduced: bool) -> None:
    own = target(torch.float32)
    trainee = Eagle3Trainee(own, draft_vocab=DRAFT_IDS if reduced else None)
    with torch.no_grad():
        for parameter in trainee.module.parameters():
            parameter.copy_(parameter.half())
    trainee.save(tmp_path)
    loaded = load_drafter(own.model, tmp_path)
    assert equal(drafted(loaded, own), drafted(trainee.drafter(), own), 1e-6)
    published = reduced_weights() if reduced else weights()
    saved = load_file(tmp_path / "model.safetensors")
    shapes = {name: tensor.shape for name, tensor in saved.items()}
    assert shapes == {name: tensor.shape for name, tensor in published.items()}
    if reduced:
        assert torch.equal(saved["d2t"], published["d2t"])
        assert torch.equal(saved["t2d"], published["t2d"])


def changed(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Weights with some replaced or, for None, removed; names have __ for a dot."""
    out = dict(weights())
    for name, tensor in tensors.items():
        out.pop(name.replace("__", "."), None)
        if tensor is not None:
            out[name.replace("__", ".")] = tensor
    return out


IDS = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}
ONE = torch.zeros(1)


@pytest.mark.parametrize(
    ("tensors", "fields", "error", "message"),
    [
        (
            changed(fc__weight=torch.zeros(HIDDEN, 64), midlayer__hidden_norm__weight=None),
            IDS,
            NotImplementedError,
            "it is EAGLE-1 or EAGLE-2",
        ),
        (changed(mask_hidden=ONE), IDS, NotImplementedError, "it is P-EAGLE"),
        (weights(), {**IDS, "num_hidden_layers": 2}, NotImplementedError, "more than one layer"),
        (weights(), {**IDS, "sliding_window": 8}, NotImplementedError, "sliding window"),
        (
            weights(),
            {**IDS, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            NotImplementedError,
            r"its rotation \(dynamic\) depends on the length",
        ),
        (
            changed(fc__weight=torch.zeros(HIDDEN, 4 * HIDDEN)),
            IDS,
            ValueError,
            "fc.weight must read 3 target layers of width 32, 96 columns, got 128",
        ),
        (changed(fc__weight=None), IDS, ValueError, "fc.weight must read .* got None"),
        (
            changed(lm_head__weight=torch.zeros(64, 48)),
            IDS,
            ValueError,
            "lm_head.weight must read its own hidden_size, 32 columns, got 48",
        ),
        (
            changed(midlayer__hidden_norm__weight=None),
            IDS,
            ValueError,
            "missing midlayer.hidden_norm.weight",
        ),
        (changed(fc_norm=ONE), IDS, ValueError, "unknown fc_norm"),
        (
            weights(),
            {**IDS, "draft_vocab_size": 60},
            ValueError,
            "lm_head.weight must have draft_vocab_size = 60 rows, got 64",
        ),
        (
            weights(),
            {"eagle_aux_hidden_state_layer_ids": [0, 2, 5]},
            ValueError,
            r"layers to read must be in \[0, 4\), the target's, got \[-1, 1, 4\]",
        ),
        (
            changed(d2t=torch.ones(VOCAB_SIZE, dtype=torch.long)),
            IDS,
            ValueError,
            "d2t must lead to distinct ids",
        ),
        (
            changed(embed_tokens__weight=torch.zeros(60, HIDDEN)),
            IDS,
            ValueError,
            "a row for each of the target's 64 tokens, got 60",
        ),
        (
            changed(embed_tokens__weight=torch.zeros(VOCAB_SIZE, 48)),
            IDS,
            ValueError,
            "hidden_size must be that of the .*embedding, 48",
        ),
    ],
)
def test_checkpoints_that_treespec_cannot_run_are_refused(
    tmp_path: Path,
    tensors: dict[str, torch.Tensor],
    fields: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        load_drafter(target().model, write(tmp_path, tensors, **fields))


def test_default_layers_fit_small_targets() -> None:
    assert default_layers(32) == feature_layers(32) == (1, 15, 28)
    for count in range(1, 12):
        layers = default_layers(count)
        assert list(layers) == sorted(set(layers)) and len(layers) == min(3, count)
        assert set(layers) <= set(range(count))


# --- Training -------------------------------------------------------------------------------------


def test_a_training_step_is_an_expansion_of_that_depth() -> None:
    """Row t of step j equals the drafter's row after j drafted tokens on t - j committed ones."""
    own = target(torch.float32)
    trainee = Eagle3Trainee(own, num_steps=4)
    trainee.module.load_state_dict(weights())
    data = text_batch(own, trainee.needs, count=2, length=14)
    one = trainee.drafter()
    with torch.no_grad():
        steps = [trainee.module.logits(states).log_softmax(-1) for states in trainee.unroll(data)]
    for text in range(2):
        ids = data.tokens[text].int().numpy()
        for root in range(1, 9):
            session = started(one, own, ids[: root + 1])
            (expander,) = one.draft([session], SETTINGS)
            for step in range(4):
                index = np.array([step], np.int32)
                nodes = Nodes(ids[root + step : root + step + 1], index - 1, index, index)
                row = expander.expand(nodes)[0]
                trained_row = steps[step][text, root - 1 + step]
                assert torch.allclose(row, trained_row, rtol=0, atol=1e-4)


def test_the_loss_is_the_divergence_on_the_draft_vocabulary() -> None:
    """Mean over the target's own text and over steps, computed here row by row."""
    own = target(torch.float32)
    trainee = Eagle3Trainee(own, num_steps=3, draft_vocab=DRAFT_IDS)
    data = text_batch(own, trainee.needs, count=2, length=9)
    data.own[1] = True  # a text without a prompt, as if
    with torch.no_grad():
        laws = own.model.lm_head(data.last_hidden)[..., DRAFT_IDS].log_softmax(-1)
        total = 0.0
        for step, states in enumerate(trainee.unroll(data)):
            rows = trainee.module.logits(states).log_softmax(-1)
            terms = [
                (laws[text, t + 1].exp() * (laws[text, t + 1] - rows[text, t])).sum()
                for text in range(2)
                for t in range(step, 7)
                if text == 1 or t + 2 >= 4  # position 4 is the first token of the target
            ]
            total += 0.8**step * torch.stack(terms).mean() / (1 + 0.8 + 0.64)
        assert torch.allclose(trainee.loss(data, torch.Generator()), total, rtol=1e-4)


@pytest.mark.parametrize("reduced", [False, True])
def test_a_few_steps_lower_the_loss_and_leave_the_target_alone(reduced: bool) -> None:
    own = HfTarget(tiny_model("llama"))
    trainee = Eagle3Trainee(own, num_steps=3, draft_vocab=DRAFT_IDS if reduced else None)
    data = text_batch(own, trainee.needs)
    losses = fit(trainee, data, 12)
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is not None for parameter in trainee.module.parameters())
    assert all(parameter.grad is None for parameter in own.model.parameters())


def test_prompts_and_padding_teach_nothing() -> None:
    own = target(torch.float32)
    trainee = Eagle3Trainee(own, num_steps=3)
    data = text_batch(own, trainee.needs, count=2, length=12)
    expected = trainee.loss(data, torch.Generator())
    data.last_hidden[:, :3] = 7.0  # the laws of prompt tokens
    padded = [
        torch.nn.functional.pad(part, pad)
        for part, pad in (
            (data.tokens, (0, 5)),
            (data.own, (0, 5)),
            (data.features, (0, 0, 0, 5)),
            (data.last_hidden, (0, 0, 0, 5)),
        )
    ]
    assert torch.allclose(trainee.loss(type(data)(*padded), torch.Generator()), expected)


def test_chains_see_the_text_before_them_and_themselves() -> None:
    mask = chain_mask(5, 3, torch.device("cpu"))
    seen = [divmod(int(i), 5) for i in mask[4].nonzero()[:, 0]]  # (step, row)
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 3), (2, 4)]


def test_frequent_tokens_are_those_that_the_target_wrote() -> None:
    samples = [
        Sample(np.array([9, 9, 9, 5, 7, 7], np.int32), 3),
        Sample(np.array([9, 4, 8, 5], np.int32), 1),
    ]
    assert frequent_tokens(samples, 3).tolist() == [4, 5, 7]  # of 4 and 8 the lower
    assert frequent_tokens(samples, 10).tolist() == [4, 5, 7, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"draft_vocab": torch.tensor([3, 2])}, r"ascending within \[0, 64\), got \[3, 2\]"),
        ({"draft_vocab": torch.tensor([3, 64])}, r"ascending within \[0, 64\)"),
        ({"draft_vocab": torch.tensor([])}, r"ascending within \[0, 64\)"),
    ],
)
def test_wrong_sizes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Eagle3Trainee(target(torch.float32), **options)
