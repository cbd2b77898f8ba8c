# SPDX-License-Identifier: Apache-2.0
"""Published DFlash checkpoints: every variant drafts as it was trained to, or is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drafter_cases import equal, started
from node_batches import tokens
from safetensors.torch import save_file
from tiny_drafters import MASK, tiny_dflash
from tiny_models import VOCAB_SIZE, tiny_model
from torch import nn

import treespec
from treespec.drafts import dflash_format
from treespec.drafts.base import DraftSettings
from treespec.drafts.dflash import DFlashDrafter, DFlashModel, feature_layers
from treespec.drafts.vocabulary import DraftVocabulary, TokenModules
from treespec.targets.hf import HfTarget

Fields = dict[str, Any]
Tensors = dict[str, torch.Tensor]
Change = Callable[[Fields, Tensors], None]

# Longer than the windows below.
TEXT = tokens(12, 5)
PUBLISHED: Fields = {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "hidden_act": "silu",
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
    "layer_types": ["full_attention", "full_attention"],
    "sliding_window": None,
    "use_sliding_window": False,
    "block_size": 6,
    "num_target_layers": 4,
    "dflash_config": {"mask_token_id": MASK, "target_layer_ids": [0, 1]},
}


@pytest.fixture(scope="module")
def target() -> Any:
    return tiny_model("llama", num_hidden_layers=4)


def written(folder: Path, fields: Mapping[str, Any], tensors: Tensors, file: str = "") -> Path:
    """A checkpoint folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    if file.endswith(".bin"):
        torch.save(tensors, folder / file)
    else:
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    return folder


def published(drafter: Any) -> tuple[Fields, Tensors]:
    """Config and weights of a tiny drafter as the first checkpoints had them."""
    weights = {name: tensor.clone() for name, tensor in drafter.model.state_dict().items()}
    return json.loads(json.dumps(PUBLISHED)), weights


def loaded(model: Any, folder: Path, **options: Any) -> Any:
    options = {"self_test": False, **options}
    return treespec.load(model, drafter=folder, drafter_options=options).drafter


def drafted(drafter: Any, model: Any) -> list[Any]:
    """The lists of one draft."""
    session = started(drafter, HfTarget(model), TEXT)
    (source,) = drafter.draft([session], DraftSettings(node_budget=8))
    return list(source.arrays)


def same(drafter: Any, other: Any, model: Any) -> bool:
    """Whether two drafters draft bit for bit the same."""
    ours, theirs = drafted(drafter, model), drafted(other, model)
    return [a.shape for a in ours] == [a.shape for a in theirs] and equal(ours, theirs)


@contextmanager
def refused(kind: type[Exception], *words: str) -> Iterator[None]:
    with pytest.raises(kind) as found:
        yield
    assert all(word in str(found.value) for word in words), found.value


def tried(model: Any, folder: Path, change: Change, **options: Any) -> Any:
    """What loads of a published checkpoint after a change of it."""
    fields, tensors = published(tiny_dflash(model))
    change(fields, tensors)
    return loaded(model, written(folder, fields, tensors), **options)


# --- The same drafter under other names -----------------------------------------------------------


def nothing(fields: Fields, tensors: Tensors) -> None: ...


def block_size_inside(fields: Fields, tensors: Tensors) -> None:
    fields["dflash_config"]["block_size"] = fields.pop("block_size")


def ids_at_the_top(fields: Fields, tensors: Tensors) -> None:
    fields |= fields.pop("dflash_config")


def layer_ids_by_vllms_name(fields: Fields, tensors: Tensors) -> None:
    inside = fields["dflash_config"]
    inside["layer_ids"] = inside.pop("target_layer_ids")


def rope_of_transformers_5(fields: Fields, tensors: Tensors) -> None:
    del fields["rope_scaling"]
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}


def speculators(fields: Fields, tensors: Tensors) -> None:
    inside = fields.pop("dflash_config")
    own = {"block_size": fields.pop("block_size"), "mask_token_id": inside["mask_token_id"]}
    nested = {name: fields.pop(name) for name in list(fields)}
    del nested["architectures"], nested["num_target_layers"]
    fields |= {
        "architectures": ["DFlashSpeculator"],
        "speculators_model_type": "dflash",
        "transformer_layer_config": nested,
        "aux_hidden_state_layer_ids": [i + 1 for i in inside["target_layer_ids"]],
        "sample_from_anchor": False,
        "draft_vocab_size": VOCAB_SIZE,
        **own,
    }


def speculators_with_copies_of_the_target(fields: Fields, tensors: Tensors) -> None:
    speculators(fields, tensors)
    tensors |= {"verifier_norm.weight": torch.ones(32), "verifier_lm_head.weight": torch.ones(8, 8)}


def fused_projections(fields: Fields, tensors: Tensors) -> None:
    for layer in ("layers.0.self_attn.", "layers.1.self_attn."):
        parts = [tensors.pop(f"{layer}{letter}_proj.weight") for letter in "qkv"]
        tensors[f"{layer}qkv_proj.weight"] = torch.cat(parts)


def prefixed(fields: Fields, tensors: Tensors) -> None:
    for name in list(tensors):
        tensors[f"model.{name}"] = tensors.pop(name)


def transformers_own(fields: Fields, tensors: Tensors) -> None:
    """As `muse_glimmer_assistant` has it, without windows."""
    fields["architectures"] = ["MuseGlimmerAssistantModel"]
    fields["model_type"] = "muse_glimmer_assistant"
    fields |= fields.pop("dflash_config")
    tensors["encoder.fc.weight"] = tensors.pop("fc.weight")
    tensors["encoder.output_norm_enc.weight"] = tensors.pop("hidden_norm.weight")


def rotation_tables(fields: Fields, tensors: Tensors) -> None:
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


RENAMED = [
    nothing,
    block_size_inside,
    ids_at_the_top,
    layer_ids_by_vllms_name,
    rope_of_transformers_5,
    speculators,
    speculators_with_copies_of_the_target,
    fused_projections,
    prefixed,
    transformers_own,
    rotation_tables,
]


@pytest.mark.parametrize("change", RENAMED)
def test_names_and_places_do_not_matter(target: Any, tmp_path: Path, change: Change) -> None:
    assert same(tried(target, tmp_path, change), tiny_dflash(target), target)


def test_the_only_layer_may_be_called_midlayer(target: Any, tmp_path: Path) -> None:
    whole = tiny_dflash(target)
    config = replace(whole.model.config, shape=dflash_shape(num_hidden_layers=1))
    short = DFlashModel(config)
    short.load_state_dict(
        {n: t for n, t in whole.model.state_dict().items() if "layers.1" not in n}
    )
    expected = DFlashDrafter(short.eval(), whole.tokens, whole.vocabulary)
    fields, tensors = published(expected)
    fields |= {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    for name in [name for name in tensors if name.startswith("layers.0.")]:
        tensors[name.replace("layers.0.", "midlayer.")] = tensors.pop(name)
    assert same(loaded(target, written(tmp_path, fields, tensors)), expected, target)


def dflash_shape(**changes: Any) -> Any:
    from tiny_drafters import shape

    config = shape()
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def test_layer_ids_are_those_of_the_published_code_when_there_are_none(tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=8)
    fields, tensors = published(tiny_dflash(model))
    del fields["dflash_config"]["target_layer_ids"]
    fields["num_target_layers"] = 8
    drafter = loaded(model, written(tmp_path, fields, tensors))
    assert drafter.needs.layers == feature_layers(8, 2) == (1, 5)


@pytest.mark.parametrize("layout", ["bin", "index", "bin index"])
def test_weights_lie_in_any_of_the_usual_files(target: Any, tmp_path: Path, layout: str) -> None:
    fields, tensors = published(tiny_dflash(target))
    if layout == "bin":
        written(tmp_path, fields, tensors, "pytorch_model.bin")
    else:
        sharded(tmp_path, fields, tensors, layout)
    assert same(loaded(target, tmp_path), tiny_dflash(target), target)


def sharded(folder: Path, fields: Fields, tensors: Tensors, layout: str) -> None:
    """Two files of weights and their index."""
    stem, end = ("pytorch_model", "bin") if "bin" in layout else ("model", "safetensors")
    write = torch.save if end == "bin" else save_file
    halves = [dict(list(tensors.items())[i::2]) for i in (0, 1)]
    files = [f"{stem}-0000{i + 1}-of-00002.{end}" for i in (0, 1)]
    for name, half in zip(files, halves, strict=True):
        write(half, folder / name)
    places = {key: name for name, half in zip(files, halves, strict=True) for key in half}
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(fields))


def test_half_precision_checkpoints_run_in_the_targets_dtype(target: Any, tmp_path: Path) -> None:
    drafter = tiny_dflash(target)
    with torch.no_grad():
        for parameter in drafter.model.parameters():
            parameter.copy_(parameter.bfloat16())
    fields, tensors = published(drafter)
    folder = written(tmp_path, fields, {name: t.bfloat16() for name, t in tensors.items()})
    found = loaded(target, folder)
    assert found.model.fc.weight.dtype == torch.float32
    assert same(found, drafter, target)


# --- Conventions ----------------------------------------------------------------------------------


def inside(**values: Any) -> Change:
    return lambda fields, tensors: fields["dflash_config"].update(values)


def windows(size: int = 5, **more: Any) -> Change:
    """A first layer with a window, as the config of transformers says it."""

    def change(fields: Fields, tensors: Tensors) -> None:
        fields["layer_types"] = ["sliding_attention", "full_attention"]
        fields |= {"sliding_window": size, "use_sliding_window": True}
        fields["dflash_config"] |= more

    return change


def after(first: Change, second: Change) -> Change:
    def change(fields: Fields, tensors: Tensors) -> None:
        first(fields, tensors)
        second(fields, tensors)

    return change


def top(**values: Any) -> Change:
    return lambda fields, tensors: fields.update(values)


# What a config says, and the same as fields of our own config.
CONVENTIONS: dict[str, tuple[Change, Fields]] = {
    "jetspec": (inside(causal_head=True), {"causal": True}),
    "causal everywhere": (inside(causal=True), {"causal": True}),
    "shifted labels": (inside(shift_label=True), {"predicts_next": True}),
    "sample from the anchor": (
        after(speculators, top(sample_from_anchor=True)),
        {"predicts_next": True},
    ),
    "layer types": (windows(), {"windows": (5, None)}),
    "layer types, both ways": (
        windows(causal=False),
        {"windows": (5, None), "windows_causal": False},
    ),
    "layer types, is_causal at the top": (
        after(windows(), top(is_causal=False)),
        {"windows": (5, None), "windows_causal": False},
    ),
    "layer types, the size inside": (windows(9, swa_window_size=4), {"windows": (4, None)}),
    "use_swa": (
        inside(use_swa=True, swa_window_size=3),
        {"windows": (3, 3), "windows_causal": False},
    ),
    "use_swa, causal": (
        inside(use_swa=True, swa_window_size=3, causal=True),
        {"windows": (3, 3), "causal": True},
    ),
    "speculators": (after(windows(), speculators), {"windows": (5, None)}),
    "speculators, both ways": (
        after(after(windows(), speculators), top(sliding_window_non_causal=True)),
        {"windows": (5, None), "windows_causal": False},
    ),
    # Both ends of its windows count: |distance| <= 5.
    "transformers' own": (
        after(windows(), transformers_own),
        {"windows": (6, None), "windows_causal": False},
    ),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions_are_those_of_the_config(target: Any, tmp_path: Path, name: str) -> None:
    change, meant = CONVENTIONS[name]
    drafter, expected = tried(target, tmp_path, change), tiny_dflash(target, **meant)
    assert drafter.model.config.depth == expected.model.config.depth
    assert same(drafter, expected, target)
    assert not same(drafter, tiny_dflash(target), target), "the convention makes no difference"


def test_the_direction_of_windows_is_the_users_if_he_says(target: Any, tmp_path: Path) -> None:
    for said in (False, True):
        drafter = tried(target, tmp_path, windows(causal=not said), windows_causal=said)
        # `causal` holds for full layers too.
        meant = {"windows": (5, None), "windows_causal": said, "causal": not said}
        assert same(drafter, tiny_dflash(target, **meant), target)


def test_a_smaller_block_drafts_less_deep(target: Any, tmp_path: Path) -> None:
    drafter = tried(target, tmp_path, nothing, block_size=3)
    assert same(drafter, tiny_dflash(target, block_size=3), target)
    with refused(ValueError, "block_size must be in [2, 6], the trained size, got 7"):
        loaded(target, tmp_path, block_size=7)


@pytest.mark.parametrize("place", ["key", "file", "file with an id"])
def test_a_mask_may_have_a_vector_of_its_own(target: Any, tmp_path: Path, place: str) -> None:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(3))
    base = tiny_dflash(target)
    model = DFlashModel(base.model.config, own_mask=True)
    model.load_state_dict({**base.model.state_dict(), "mask_embedding": vector})
    expected = DFlashDrafter(model.eval(), base.tokens, base.vocabulary)
    fields, tensors = published(base)
    if place == "key":
        tensors["mask_embedding"] = vector[None]
    written(tmp_path, fields, tensors)
    if place != "key":
        content: Any = vector
        if place == "file with an id":
            content = {"mask_token_id": MASK, "embedding": vector[None]}
        torch.save(content, tmp_path / "mask_embedding.pt")
    drafter = loaded(target, tmp_path)
    assert same(drafter, expected, target) and not same(drafter, base, target)


# --- Vocabularies and widths ----------------------------------------------------------------------


def test_own_embedding_and_head_are_used(target: Any, tmp_path: Path) -> None:
    base = tiny_dflash(target)
    generator = torch.Generator().manual_seed(2)
    own = {
        "embed_tokens.weight": torch.randn(VOCAB_SIZE, 32, generator=generator),
        "lm_head.weight": torch.randn(VOCAB_SIZE, 32, generator=generator),
    }
    drafter = tried(target, tmp_path, lambda fields, tensors: tensors.update(own))
    expected = with_tokens(base, own["embed_tokens.weight"], own["lm_head.weight"])
    assert same(drafter, expected, target) and not same(drafter, base, target)


def with_tokens(drafter: Any, embedding: torch.Tensor, head: torch.Tensor) -> DFlashDrafter:
    linear = nn.Linear(*head.T.shape, bias=False)
    linear.weight = nn.Parameter(head)
    own = TokenModules(nn.Embedding.from_pretrained(embedding), linear)
    return DFlashDrafter(drafter.model, own, DraftVocabulary(len(head), VOCAB_SIZE))


@pytest.mark.parametrize("tables", [("d2t", "t2d"), ("d2t",), ("t2d",)])
def test_ids_of_a_reduced_vocabulary_are_mapped(
    target: Any, tmp_path: Path, tables: tuple[str, ...]
) -> None:
    ids = torch.tensor([MASK, 3, 4, 9, 17, 20, 33, 34, 35, 50, 63])
    head = torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(2))
    covered = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    covered[ids] = True
    mapping = {"d2t": ids - torch.arange(len(ids)), "t2d": covered}

    def change(fields: Fields, tensors: Tensors) -> None:
        fields["draft_vocab_size"] = len(ids)
        tensors |= {"lm_head.weight": head, **{name: mapping[name] for name in tables}}

    drafter = tried(target, tmp_path, change)
    token, logprob = drafted(drafter, target)
    session = started(drafter, HfTarget(target), TEXT)
    with torch.inference_mode():
        logits = drafter.model.norm(drafter.states([session])[0]) @ head.T
    law = logits[:, 1:].log_softmax(-1)  # without the mask
    ranked = law.argsort(dim=-1, descending=True)
    token, logprob = token[:, : len(ids) - 1], logprob[:, : len(ids) - 1]
    np.testing.assert_array_equal(token, ids[1:][ranked].numpy())
    np.testing.assert_allclose(logprob, law.gather(-1, ranked), rtol=1e-4, atol=1e-5)


def test_a_narrower_drafter_reads_a_wide_target(tmp_path: Path) -> None:
    """Features are k * H_target numbers; embedding and head are then its own."""
    wide = tiny_model("llama", num_hidden_layers=4, hidden_size=64)
    base = tiny_dflash(tiny_model("llama", num_hidden_layers=4))
    fields, tensors = published(base)
    generator = torch.Generator().manual_seed(4)
    fc = torch.randn(32, 128, generator=generator) * 0.3
    own = [torch.randn(VOCAB_SIZE, 32, generator=generator) for _ in range(2)]
    fields["target_hidden_size"] = 64
    tensors |= {"fc.weight": fc, "embed_tokens.weight": own[0], "lm_head.weight": own[1]}
    drafter = loaded(wide, written(tmp_path, fields, tensors))
    model = DFlashModel(replace(base.model.config, target_width=64))
    model.load_state_dict({**base.model.state_dict(), "fc.weight": fc})
    expected = with_tokens(DFlashDrafter(model.eval(), base.tokens, base.vocabulary), *own)
    assert same(drafter, expected, wide)
    for name in ("embed_tokens.weight", "lm_head.weight"):
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        with refused(ValueError, "unless it has its own", "got 32"):
            loaded(wide, written(tmp_path, fields, rest))


def test_a_mask_in_the_padding_of_the_embedding_is_fine(target: Any, tmp_path: Path) -> None:
    """Qwen3's is the first id that its tokenizer does not have."""
    assert tried(target, tmp_path, inside(mask_token_id=VOCAB_SIZE - 1)) is not None
    with refused(ValueError, f"mask_token_id must be in [0, {VOCAB_SIZE})", "got 64"):
        tried(target, tmp_path, inside(mask_token_id=VOCAB_SIZE))


# --- What is built on it --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["treeflash", "pairwise"])
def test_modules_on_top_are_found_by_their_names(target: Any, tmp_path: Path, kind: str) -> None:
    expected = tiny_dflash(target, kind)
    fields, tensors = published(expected)
    module = expected.conditional.state_dict()
    if kind == "treeflash":
        prefixed(fields, tensors)
        fields["treeflash_config"] = {"ar_approximation": "swiglu", "candidate_tokens": 64}
        tensors |= {f"ar_approximation.{name}": tensor for name, tensor in module.items()}
    else:
        tensors |= {f"candidate_selector.{name}": tensor for name, tensor in module.items()}
    written(tmp_path, fields, tensors)
    drafter = loaded(target, tmp_path)
    assert drafter.source_kind == "Transitions"
    assert same(drafter, expected, target)
    assert same(loaded(target, tmp_path, conditional=False), tiny_dflash(target), target)
    options = {"num_previous": 3, "width": 4, "head_rows": 16}
    assert same(loaded(target, tmp_path, **options), tiny_dflash(target, kind, **options), target)


@pytest.mark.parametrize("shifted", [False, True])
def test_domino_drafts_as_plain_dflash_and_says_so(
    target: Any, tmp_path: Path, shifted: bool
) -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        fields["architectures"] = ["DominoDraftModel"]
        fields["dflash_config"] |= {
            "projector_type": "domino",
            "pure_draft_prefix_len": 1,
            "emb_dim": 4,
            "gru_hidden_dim": 6,
            "shift_label": shifted,
        }
        tensors |= {
            "prefix_gru.weight_ih_l0": torch.ones(18, 32),
            "prefix_gru.weight_hh_l0": torch.ones(18, 6),
            "embed_proj.0.weight": torch.ones(4, 38),
            "embed_proj.2.weight": torch.ones(VOCAB_SIZE, 4),
        }

    with pytest.warns(UserWarning, match="Domino correction is left out"):
        drafter = tried(target, tmp_path, change)
    assert same(drafter, tiny_dflash(target, predicts_next=shifted), target)


def test_other_checkpoints_load_without_a_warning(target: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tried(target, tmp_path, nothing)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("layers.0.self_attn.attention_sink_bias", "sinks"),
        ("layers.1.attention_conv.base_kernel", "convolutions (DFlash 2)"),
        ("layers.1.mlp_conv.kernel_projection.weight", "convolutions (DFlash 2)"),
        ("markov_head.markov_w1.weight", "Markov head (DSpark)"),
        ("layers.0.self_attn.g_proj.weight", "gated (Laguna)"),
    ],
)
def test_variants_that_do_not_run_are_refused(
    target: Any, tmp_path: Path, key: str, words: str
) -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        tensors[key] = torch.ones(4)

    with refused(NotImplementedError, tmp_path.name, words, "does not run"):
        tried(target, tmp_path, change)


# --- What does not fit ----------------------------------------------------------------------------


def without_key(name: str) -> Change:
    def change(fields: Fields, tensors: Tensors) -> None:
        fields.pop(name, None)
        fields["dflash_config"].pop(name, None)

    return change


def tensor(name: str, shape: tuple[int, ...] | None) -> Change:
    def change(fields: Fields, tensors: Tensors) -> None:
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.zeros(shape)

    return change


UNFIT: dict[str, tuple[Change, list[str]]] = {
    "no mask": (without_key("mask_token_id"), ["must have mask_token_id"]),
    "no mask, but others to fall back to": (
        after(without_key("mask_token_id"), top(pad_token_id=1, eos_token_id=2)),
        ["must have mask_token_id"],
    ),
    "negative mask": (inside(mask_token_id=-1), ["mask_token_id must be in [0, 64)", "got -1"]),
    "no block size": (without_key("block_size"), ["must have block_size"]),
    "block of one": (top(block_size=1), ["block_size must be at least 2, got 1"]),
    "block size in words": (top(block_size="six"), ["block_size must hold integers", "six"]),
    "no layer ids": (
        after(without_key("target_layer_ids"), without_key("num_target_layers")),
        ["must have target_layer_ids"],
    ),
    "layer ids in words": (inside(target_layer_ids="0,1"), ["target_layer_ids", "'0,1'"]),
    "an empty list of layers": (inside(target_layer_ids=[]), ["fc.weight"]),
    "layers outside": (
        inside(target_layer_ids=[1, 4]),
        ["target_layer_ids must be in [0, 4)", "got [4]"],
    ),
    "the embedding as a layer": (
        after(speculators, top(aux_hidden_state_layer_ids=[0, 2])),
        ["target_layer_ids must be in [0, 4)", "got [-1]"],
    ),
    "another number of layers": (
        inside(target_layer_ids=[0, 1, 2]),
        ["fc.weight must have a multiple of 3 columns", "got 64"],
    ),
    "a target of another width": (
        tensor("fc.weight", (32, 32)),
        ["must read 2 layers of the target's width 32, got 16 each"],
    ),
    "a missing weight": (
        tensor("layers.1.mlp.up_proj.weight", None),
        ["missing layers.1.mlp.up_proj.weight"],
    ),
    "an unknown weight": (tensor("surprise.weight", (2,)), ["unknown surprise.weight"]),
    "no fc": (tensor("fc.weight", None), ["must have fc.weight"]),
    "a weight of another shape": (
        tensor("norm.weight", (31,)),
        ["norm.weight must be [32] by the config, got [31]"],
    ),
    "a fused weight of another shape": (
        after(fused_projections, tensor("layers.0.self_attn.qkv_proj.weight", (63, 32))),
        ["layers.0.self_attn.qkv_proj.weight must have 64 rows", "got 63"],
    ),
    "windows without a size": (
        after(windows(), top(sliding_window=None)),
        ["must have sliding_window"],
    ),
    "layer types of another depth": (
        after(windows(), top(layer_types=["sliding_attention"])),
        ["layer_types must be 2, got 1"],
    ),
    "sizes in words": (top(num_hidden_layers="two"), ["config.json must describe its layers"]),
    "a reduced vocabulary without head": (
        tensor("d2t", (5,)),
        ["a reduced vocabulary (d2t) needs a lm_head.weight"],
    ),
    "a map of ids instead of offsets": (
        lambda fields, tensors: tensors.update(
            {"lm_head.weight": torch.ones(3, 32), "d2t": torch.tensor([30, 40, 63])}
        ),
        ["d2t must lead to distinct ids in [0, 64); it holds offsets, not ids"],
    ),
    "a treeflash module in part": (
        tensor("ar_approximation.norm.weight", (32,)),
        ["must have ar_approximation.d.weight"],
    ),
    "a selector of another vocabulary": (
        after(
            tensor("candidate_selector.predecessor_codebook", (9, 4)),
            tensor("candidate_selector.successor_codebook", (9, 4)),
        ),
        ["codebooks must have rows for the target's 64 tokens", "got 9 and 9"],
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_named(target: Any, tmp_path: Path, name: str) -> None:
    change, words = UNFIT[name]
    with refused(ValueError, *words):
        tried(target, tmp_path, change)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_broken_files_are_named(target: Any, tmp_path: Path, file: str) -> None:
    fields, tensors = published(tiny_dflash(target))
    written(tmp_path, fields, tensors, file)
    (tmp_path / file).write_bytes(b'{"half')
    with refused(OSError, file, "broken"):
        loaded(target, tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"weight_map": 5}'])
def test_broken_indices_are_named(target: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with refused(OSError, "model.safetensors.index.json"):
        loaded(target, tmp_path)


def test_missing_files_are_named(target: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    with refused(OSError, "must hold weights, one of model.safetensors"):
        loaded(target, tmp_path)
    index = {"weight_map": {"fc.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with refused(OSError, "model-00001-of-00001.safetensors"):
        loaded(target, tmp_path)


def test_a_pickle_of_other_things_is_refused(target: Any, tmp_path: Path) -> None:
    written(tmp_path, PUBLISHED, {"state_dict": {}}, "pytorch_model.bin")  # type: ignore[dict-item]
    with refused(OSError, "must hold tensors by name"):
        loaded(target, tmp_path)


def test_code_in_a_pickle_is_not_run(target: Any, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    written(tmp_path, PUBLISHED, {"fc.weight": Trap()}, "pytorch_model.bin")  # type: ignore[dict-item]
    with refused(OSError, "broken"):
        loaded(target, tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["no-such/drafter", "/no/such/folder"])
def test_a_drafter_that_is_nowhere_is_one_error(
    target: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(OSError, name):
        loaded(target, name)  # type: ignore[arg-type]


# --- Through treespec.load ------------------------------------------------------------------------


def test_a_users_checkpoint_decodes(target: Any, tmp_path: Path) -> None:
    written(tmp_path, *published(tiny_dflash(target)))
    decoder = treespec.load(
        target, drafter=str(tmp_path), builder="dtree", drafter_options={"self_test": False}
    )
    plain = treespec.load(target, drafter=None)
    results = [d.generate(TEXT.tolist(), max_new_tokens=20).token_ids for d in (decoder, plain)]
    assert results[0] == results[1]


def test_unknown_options_are_refused_with_the_known_ones(target: Any, tmp_path: Path) -> None:
    written(tmp_path, *published(tiny_dflash(target)))
    with refused(ValueError, "dflash drafters", "'heads'", "num_previous", "windows_causal"):
        loaded(target, tmp_path, heads=3)
    with refused(ValueError, "need a conditional"):
        loaded(target, tmp_path, chain=True)


def test_a_target_that_lends_nothing_is_refused(tmp_path: Path) -> None:
    from decoder_models import TableTarget

    from treespec.drafts import DrafterContext, load_drafter

    model = tiny_model("llama", num_hidden_layers=4)
    written(tmp_path, *published(tiny_dflash(model)))
    context = DrafterContext(VOCAB_SIZE, None, "cpu", "auto", TableTarget(VOCAB_SIZE))
    with refused(ValueError, "must be a transformers model, got TableTarget"):
        load_drafter(str(tmp_path), context, {"self_test": False})


def test_a_causal_language_model_is_none_of_these(target: Any, tmp_path: Path) -> None:
    target.save_pretrained(tmp_path)
    decoder = treespec.load(target, drafter=tmp_path)
    assert type(decoder.drafter).__name__ == "AutoregressiveDrafter"
    with refused(ValueError, "causal language models", "'head_rows'"):
        treespec.load(target, drafter=tmp_path, drafter_options={"head_rows": 4})


# --- What we write ourselves ----------------------------------------------------------------------

CASES: list[tuple[str | None, Fields]] = [
    (None, {}),
    ("treeflash", {}),
    ("pairwise", {}),
    (None, {"causal": True}),
    (None, {"predicts_next": True}),
    (None, {"windows": (5, None)}),
    (None, {"windows": (5, 5), "windows_causal": False}),
    ("pairwise", {"windows": (None, 4), "causal": True, "predicts_next": True}),
]
NAMES = [f"{kind or 'dflash'}{i}" for i, (kind, _) in enumerate(CASES)]


def saved(folder: Path, model: Any, kind: str | None, fields: Fields) -> Any:
    """A tiny drafter whose weights are float16 numbers, and its folder."""
    drafter = tiny_dflash(model, kind, **fields)
    with torch.no_grad():
        for module in filter(None, (drafter.model, drafter.conditional)):
            for parameter in module.parameters():
                parameter.copy_(parameter.half())
    dflash_format.save(
        folder,
        drafter.model,
        num_target_layers=4,
        conditional=drafter.conditional,
        kind=kind or "dflash",
        vocab_size=VOCAB_SIZE,
    )
    return drafter


@pytest.mark.slow
def test_saved_drafters_draft_the_same_in_a_fresh_process(target: Any, tmp_path: Path) -> None:
    target.save_pretrained(tmp_path / "target")
    here: list[Any] = []
    for name, (kind, fields) in zip(NAMES, CASES, strict=True):
        drafter = saved(tmp_path / name, target, kind, fields)
        assert same(loaded(target, tmp_path / name), drafter, target)
        here += drafted(drafter, target)
    script = (
        "import sys, numpy; from pathlib import Path\n"
        "from test_dflash_format import drafted, loaded, treespec\n"
        "model = treespec.load(sys.argv[1], drafter=None, device='cpu').target.model\n"
        "found = [drafted(loaded(model, Path(p)), model) for p in sys.argv[3:]]\n"
        "numpy.savez(sys.argv[2], *[array for arrays in found for array in arrays])\n"
    )
    folders = [str(tmp_path / name) for name in NAMES]
    command = [sys.executable, "-c", script, str(tmp_path / "target"), str(tmp_path / "there.npz")]
    subprocess.run([*command, *folders], check=True, cwd=Path(__file__).parent)
    with np.load(tmp_path / "there.npz") as arrays:
        there = [arrays[name] for name in arrays.files]
    assert equal(here, there, 1e-6)  # where memory lies may round sums otherwise


def test_windows_of_several_sizes_have_no_format(target: Any, tmp_path: Path) -> None:
    with refused(ValueError, "all windows of a drafter must be of one size, got [3, 5]"):
        saved(tmp_path, target, None, {"windows": (3, 5)})


def test_what_is_written_is_what_the_papers_authors_write(target: Any, tmp_path: Path) -> None:
    saved(tmp_path, target, "treeflash", {})
    fields = json.loads((tmp_path / "config.json").read_text())
    for name, value in PUBLISHED.items():
        if name not in ("layer_types", "sliding_window", "use_sliding_window"):
            assert fields[name] == value, name
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    keys = {re.sub(r"\.\d+\.", ".0.", key) for key in _keys(tmp_path)}
    assert keys == {
        *("model.fc.weight", "model.hidden_norm.weight", "model.norm.weight"),
        *(
            f"model.layers.0.{part}.weight"
            for part in (
                *("input_layernorm", "post_attention_layernorm"),
                *(f"self_attn.{name}_proj" for name in "qkvo"),
                *("self_attn.q_norm", "self_attn.k_norm"),
                *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
            )
        ),
        *(f"ar_approximation.{name}" for name in ("ug.weight", "ug.bias", "d.weight")),
        "ar_approximation.norm.weight",
    }


def _keys(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


# --- The self-test --------------------------------------------------------------------------------

STEP = 5  # token t is followed by t + STEP, which goes round all of them


def counting_target() -> Any:
    """Says the follower of a token, which it writes into the state's upper half in its last
    layer.
    """
    size = VOCAB_SIZE
    model = tiny_model("llama", hidden_size=2 * size, intermediate_size=size)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        ones = torch.eye(2 * size)
        model.model.embed_tokens.weight.copy_(4 * ones[:size])
        last = model.model.layers[1].mlp
        for projection in (last.gate_proj, last.up_proj):
            projection.weight.copy_(ones[:size])
        # A unit of these gives about 2 * size.
        follower = ones[size:].roll(-STEP, dims=0)
        last.down_proj.weight.copy_((follower - ones[:size]).T * 4 / (2 * size))
        model.lm_head.weight.copy_(ones[size:])
    return model


def counting_drafter(folder: Path, layer: int) -> Path:
    """Knows the token before the root from a layer's output, and says what is two steps on.

    Its only layer has a window of three: the first guess sees itself, the root, and one state.
    """
    size = VOCAB_SIZE
    ones, none = torch.eye(2 * size), torch.zeros(2 * size, 2 * size)
    fields = {
        **PUBLISHED,
        "hidden_size": 2 * size,
        "head_dim": 32,
        "num_hidden_layers": 1,
        "intermediate_size": size,
        "layer_types": ["sliding_attention"],
        "sliding_window": 3,
        "block_size": 2,
        "dflash_config": {"mask_token_id": MASK, "target_layer_ids": [layer]},
    }
    fc, output = none.clone(), none.clone()
    fc[size:, :size] = torch.eye(size).roll(-2 * STEP, dims=1)
    fc[size:, size:] = torch.eye(size)  # what it makes of the last layer is wrong
    output[size : size + 32, :32], output[size + 32 :, 64:96] = torch.eye(32), torch.eye(32)
    weights = {
        "fc.weight": fc,
        "hidden_norm.weight": torch.ones(2 * size),
        "norm.weight": torch.ones(2 * size),
        "layers.0.input_layernorm.weight": torch.ones(2 * size),
        "layers.0.post_attention_layernorm.weight": torch.ones(2 * size),
        "layers.0.self_attn.q_norm.weight": torch.ones(32),
        "layers.0.self_attn.k_norm.weight": torch.ones(32),
        "layers.0.self_attn.q_proj.weight": torch.zeros(2 * size, 2 * size),
        "layers.0.self_attn.k_proj.weight": torch.zeros(size, 2 * size),
        "layers.0.self_attn.v_proj.weight": ones[size:],
        "layers.0.self_attn.o_proj.weight": output,
        "layers.0.mlp.gate_proj.weight": torch.zeros(size, 2 * size),
        "layers.0.mlp.up_proj.weight": torch.zeros(size, 2 * size),
        "layers.0.mlp.down_proj.weight": torch.zeros(2 * size, size),
    }
    return written(folder, fields, weights)


def test_the_self_test_passes_what_fits_and_refuses_the_wrong_layer(tmp_path: Path) -> None:
    model = counting_target()
    decoder = treespec.load(model, drafter=counting_drafter(tmp_path, 0), builder="chain")
    result = decoder.generate([9], max_new_tokens=20)
    assert result.token_ids == [(9 + STEP * i) % VOCAB_SIZE for i in range(1, 21)]
    assert result.stats.acceptance_by_depth[0] > 0.9
    wrong = counting_drafter(tmp_path, 1)
    with refused(ValueError, str(tmp_path), "features or embedding convention mismatch", "30%"):
        treespec.load(model, drafter=wrong)
    assert treespec.load(model, drafter=wrong, drafter_options={"self_test": False})


def test_the_self_test_fits_a_short_context(tmp_path: Path) -> None:
    model = counting_target()
    model.config.max_position_embeddings = 24
    treespec.load(model, drafter=counting_drafter(tmp_path, 0), builder="chain")
