# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints of EAGLE-3, and our own, which look the same.

A folder has a Llama-like `config.json` and weights under the names of `Eagle3Model`; variants in
the wild rename some (`canonical`) and count layers otherwise (`_layer_ids`).
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig

from treespec.drafts import DrafterContext
from treespec.drafts.checkpoint import Checkpoint, load_weights, save_checkpoint, shape_fields
from treespec.drafts.eagle3 import Eagle3Config, Eagle3Drafter, Eagle3Model, feature_layers
from treespec.drafts.vocabulary import DraftVocabulary, TokenModules
from treespec.targets.hf_model import decoder_blocks, text_config

Tensors = Mapping[str, torch.Tensor]

_ARCHITECTURE = "LlamaForCausalLMEagle3"
_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
# Where published configs keep the shape: at the top, or here ("speculators").
_INSIDE = "transformer_layer_config"


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether a folder holds an EAGLE drafter, by its config; those before EAGLE-3 are refused."""
    names = checkpoint.config.get("architectures") or ()
    kind = str(checkpoint.config.get("speculators_model_type", ""))
    return any("eagle" in str(name).lower() for name in names) or kind.startswith("eagle")


def load(checkpoint: Checkpoint, context: DrafterContext) -> Eagle3Drafter:
    """The drafter of a checkpoint, for the target it was trained with.

    Raises
    ------
    NotImplementedError
        For a variant that treespec does not run.
    ValueError
        If config, weights and target do not fit together.
    """
    name = f"EAGLE-3 checkpoint {checkpoint.folder.name}"
    tensors = canonical(checkpoint.tensors)
    embedding, offset = tensors.pop("embed_tokens.weight", None), tensors.pop("d2t", None)
    tensors.pop("t2d", None)  # says the same as d2t
    config = read_config(checkpoint, tensors, context.target, name)
    model = Eagle3Model(config)
    load_weights(model, tensors, what=name)
    tokens = TokenModules.of_target(context.target)
    like = tokens.head.weight
    own = tokens.embedding
    if embedding is not None:
        own = nn.Embedding.from_pretrained(embedding.to(like), freeze=True)
    _check_embedding(own.weight, config.shape.hidden_size, context.vocab_size, name)
    vocabulary = DraftVocabulary(config.draft_vocab_size, context.vocab_size, offset)
    model = model.to(device=like.device, dtype=like.dtype).eval()
    return Eagle3Drafter(model, own, vocabulary)


def save(
    folder: str | PathLike[str],
    config: Eagle3Config,
    tensors: Tensors,
    vocabulary: DraftVocabulary,
) -> None:
    """Write a drafter that borrows the target's embedding.

    Parameters
    ----------
    tensors
        The weights of an `Eagle3Model`.
    vocabulary
        Written as `d2t` and `t2d` when the drafter knows a part of the target's tokens.
    """
    fields: dict[str, Any] = {
        "architectures": [_ARCHITECTURE],
        "model_type": "llama",
        **shape_fields(config.shape),
        "tie_word_embeddings": False,
        "vocab_size": vocabulary.target_size,
        "draft_vocab_size": config.draft_vocab_size,
        "target_hidden_size": config.target_width,
        _LAYER_IDS: [layer + 1 for layer in config.layer_ids],
    }
    out = dict(tensors)
    if config.draft_vocab_size < vocabulary.target_size:
        draft_ids = torch.arange(config.draft_vocab_size)
        target_ids = vocabulary.target_ids(draft_ids)
        out["d2t"] = target_ids - draft_ids
        out["t2d"] = torch.zeros(vocabulary.target_size, dtype=torch.bool)
        out["t2d"][target_ids] = True
    save_checkpoint(folder, fields, out)


def canonical(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The weights under the names of the first checkpoints."""
    return {
        name.removeprefix("model.").replace("layers.0.", "midlayer."): tensor
        for name, tensor in tensors.items()
    }


def read_config(checkpoint: Checkpoint, tensors: Tensors, target: Any, name: str) -> Eagle3Config:
    """Shape and conventions from `config.json`, checked against weights and target.

    Raises
    ------
    NotImplementedError, ValueError
        As `load`.
    """
    shape = LlamaConfig.from_dict(dict(checkpoint.config.get(_INSIDE) or checkpoint.config))
    _refuse_variants(shape, tensors, name)
    layer_ids = _layer_ids(checkpoint, target, name)
    width = int(text_config(target.model).hidden_size)
    for key, what, wanted in (
        ("fc.weight", f"{len(layer_ids)} target layers of width {width}", len(layer_ids) * width),
        ("lm_head.weight", "its own hidden_size", shape.hidden_size),
    ):
        columns = tensors[key].shape[1] if key in tensors else None
        if columns != wanted:
            raise ValueError(f"{name}: {key} must read {what}, {wanted} columns, got {columns}")
    rows = tensors["lm_head.weight"].shape[0]
    declared = checkpoint.get("draft_vocab_size", default=rows)
    if declared != rows:
        raise ValueError(
            f"{name}: lm_head.weight must have draft_vocab_size = {declared} rows, got {rows}"
        )
    return Eagle3Config(
        shape=shape,
        layer_ids=layer_ids,
        target_width=width,
        draft_vocab_size=rows,
        norm_before_residual=bool(checkpoint.get("norm_before_residual", default=False)),
        normed_heads="midlayer.self_attn.q_norm.weight" in tensors,
    )


def _refuse_variants(shape: Any, tensors: Tensors, name: str) -> None:
    """What looks like EAGLE-3 from afar and computes something else."""
    rope = str(shape.rope_parameters.get("rope_type"))
    pairs = "fc.weight" in tensors and tensors["fc.weight"].shape[1] == 2 * shape.hidden_size
    reasons = {
        "it is EAGLE-1 or EAGLE-2, whose fc reads embedding and state": (
            pairs and "midlayer.hidden_norm.weight" not in tensors
        ),
        "it is P-EAGLE, which drafts with mask_hidden": "mask_hidden" in tensors,
        "it has more than one layer": shape.num_hidden_layers != 1,
        "it attends through a sliding window": getattr(shape, "sliding_window", None) is not None,
        f"its rotation ({rope}) depends on the length of the text": rope in ("dynamic", "longrope"),
    }
    for reason, applies in reasons.items():
        if applies:
            raise NotImplementedError(f"{name}: {reason}; treespec does not run that")


def _layer_ids(checkpoint: Checkpoint, target: Any, name: str) -> tuple[int, ...]:
    """0-based layers whose output is read.

    At the top of a config ids count the states of a transformers model, the embedding's output
    first (vLLM); inside `eagle_config` they count layers (SGLang, SpecForge).
    """
    count = len(decoder_blocks(target.model))
    nested = (checkpoint.config.get("eagle_config") or {}).get(_LAYER_IDS)
    listed = checkpoint.config.get(_LAYER_IDS)
    if listed is not None:
        layer_ids = tuple(int(i) - 1 for i in listed)
    else:
        layer_ids = tuple(int(i) for i in nested) if nested else feature_layers(count)
    if not layer_ids or not all(0 <= i < count for i in layer_ids):
        raise ValueError(
            f"{name}: the layers to read must be in [0, {count}), the target's, got "
            f"{list(layer_ids)}"
        )
    return layer_ids


def _check_embedding(weight: torch.Tensor, hidden_size: int, vocab_size: int, name: str) -> None:
    rows, width = weight.shape
    if width != hidden_size:
        raise ValueError(
            f"{name}: hidden_size must be that of the target's embedding, {width}, unless it has "
            f"embed_tokens of its own; got {hidden_size}"
        )
    if rows < vocab_size:
        raise ValueError(
            f"{name}: embed_tokens must have a row for each of the target's {vocab_size} tokens, "
            f"got {rows}"
        )
