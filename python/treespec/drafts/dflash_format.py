# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints of DFlash and of what is built on it, and our own, which look the same.

The variants in the wild differ in names and conventions, and a wrong convention does not crash: it
only accepts nothing. Hence each variant is either put into one form here or refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig

from treespec.drafts import DrafterContext
from treespec.drafts.checkpoint import Checkpoint, load_weights, save_checkpoint
from treespec.drafts.dflash import Conditional, DFlashConfig, DFlashDrafter, DFlashModel
from treespec.drafts.pairwise import PairwiseSelector
from treespec.drafts.treeflash import TreeFlashModule
from treespec.drafts.vocabulary import DraftVocabulary, TokenModules

Tensors = dict[str, torch.Tensor]

_ARCHITECTURE = "DFlashDraftModel"
_INSIDE = "dflash_config"
# Config fields of the layers' shape that mean the same in Llama, Qwen3 and here.
_SHAPE_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "hidden_act", "attention_bias"),
    *("max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters"),
)
_PREFIX_OF = {"treeflash": "ar_approximation.", "pairwise": "candidate_selector."}
_RENAMED = {
    "encoder.fc.weight": "fc.weight",
    "encoder.output_norm_enc.weight": "hidden_norm.weight",
}
# What a checkpoint may hold that treespec does not run, by what gives it away.
_REFUSED = {
    r"attention_sink_bias$": "its attention has sinks",
    r"(attention|mlp)_conv\.": "its layers have dynamic convolutions (DFlash 2)",
}
_DOMINO = re.compile(r"^(prefix_gru|embed_proj|projector)\.")


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether a folder holds a DFlash drafter, by its config."""
    config = checkpoint.config
    return (
        any("dflash" in str(name).lower() for name in config.get("architectures") or ())
        or _INSIDE in config
        or "dflash" in (config.get("speculators_model_type"), config.get("speculation_type"))
    )


def load(
    checkpoint: Checkpoint,
    context: DrafterContext,
    *,
    num_previous: int | None = None,
    width: int | None = None,
    head_rows: int | str = "all",
    chain: bool = False,
    block_size: int | None = None,
    windows_causal: bool | None = None,
) -> DFlashDrafter:
    """The drafter of a checkpoint, for a target it was trained with.

    Parameters
    ----------
    num_previous, width, head_rows, chain
        As `DFlashDrafter`.
    block_size
        Slots of a block, at most the trained number.
    windows_causal
        Direction inside the block of layers with a sliding window; None: as the config says, else
        causal.

    Raises
    ------
    NotImplementedError
        For a variant that treespec does not run.
    ValueError
        If config, weights and target do not fit together.
    """
    name = f"DFlash checkpoint {checkpoint.folder.name}"
    tensors = canonical(dict(checkpoint.tensors), name)
    config = read_config(checkpoint, tensors, name)
    if block_size is not None:
        config = replace(config, block_size=_smaller_block(block_size, config.block_size))
    if windows_causal is not None:
        config = replace(config, windows_causal=windows_causal)
    parts = _split(tensors)
    tokens, vocabulary = _token_modules(parts, config, context, name)
    model = DFlashModel(config, own_mask="mask_embedding" in parts.backbone)
    load_weights(model, parts.backbone, what=name)
    conditional = _conditional(parts, config, context, vocabulary, tokens, name)
    place = {"device": tokens.head.weight.device, "dtype": tokens.head.weight.dtype}
    _check_layers(config, context, name)
    return DFlashDrafter(
        model.to(**place).eval(),
        tokens,
        vocabulary,
        conditional=None if conditional is None else conditional.to(**place).eval(),
        num_previous=num_previous,
        width=width,
        head_rows=head_rows,
        chain=chain,
    )


def save(
    folder: str | PathLike[str],
    model: DFlashModel,
    *,
    num_target_layers: int,
    conditional: nn.Module | None = None,
    kind: str = "dflash",
    vocab_size: int,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a drafter that borrows the target's embedding and head, as the papers' authors do.

    Parameters
    ----------
    conditional, kind
        A module of kind ``"treeflash"`` or ``"pairwise"``, or none and ``"dflash"``.
    num_target_layers, vocab_size
        Of the target.
    """
    config, shape = model.config, model.config.shape
    prefix = "model." if kind == "treeflash" else ""
    tensors = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    fields: dict[str, Any] = {
        "architectures": [_ARCHITECTURE],
        "model_type": "qwen3",
        **{name: getattr(shape, name, None) for name in _SHAPE_FIELDS if name[:4] != "rope"},
        "rope_theta": shape.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "rope_parameters": dict(shape.rope_parameters),
        "vocab_size": vocab_size,
        "block_size": config.block_size,
        "num_target_layers": num_target_layers,
        _INSIDE: {
            "mask_token_id": config.mask_token_id,
            "target_layer_ids": list(config.layer_ids),
        },
    }
    if conditional is not None:
        tensors |= {_PREFIX_OF[kind] + n: tensor for n, tensor in conditional.state_dict().items()}
        if kind == "treeflash":
            fields["treeflash_config"] = {"ar_approximation": "swiglu", "candidate_tokens": 64}
    save_checkpoint(folder, fields, {name: tensor.to(dtype) for name, tensor in tensors.items()})


# --- One form for all variants --------------------------------------------------------------------


def canonical(tensors: Tensors, name: str) -> Tensors:
    """The weights under the names of the first checkpoints, whatever variant they come in.

    Raises
    ------
    NotImplementedError
        For weights that treespec has no use for, with what they are.
    """
    for pattern, reason in _REFUSED.items():
        if any(re.search(pattern, key) for key in tensors):
            raise NotImplementedError(f"{name}: {reason}, which treespec does not run")
    domino = {key for key in tensors if _DOMINO.search(key)}
    if domino:
        warnings.warn(
            f"{name}: its Domino correction is left out; it drafts as plain DFlash", stacklevel=2
        )
    out: Tensors = {}
    for key, tensor in tensors.items():
        if key not in domino:
            short = key.removeprefix("model.")
            out[_RENAMED.get(short, short.replace("midlayer.", "layers.0."))] = tensor
    return out


def _unfused(tensors: Tensors, shape: Any) -> Tensors:
    """Rows of `qkv_proj` as the three projections."""
    heads = [shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads]
    sizes = [count * shape.head_dim for count in heads]
    out: Tensors = {}
    for key, tensor in tensors.items():
        if "qkv_proj" not in key:
            out[key] = tensor
            continue
        for letter, rows in zip("qkv", tensor.split(sizes), strict=True):
            out[key.replace("qkv_proj", f"{letter}_proj")] = rows
    return out


def read_config(checkpoint: Checkpoint, tensors: Tensors, name: str) -> DFlashConfig:
    """Shape and conventions from `config.json`, whichever place a field has.

    Raises
    ------
    ValueError
        For a field that is missing.
    """
    config = checkpoint.config
    shape = _shape(config.get("transformer_layer_config") or config)
    tensors.update(_unfused(dict(tensors), shape))
    for key in [key for key in tensors if "qkv_proj" in key]:
        del tensors[key]

    def field(*names: str) -> Any:
        value = checkpoint.get(*names, inside=_INSIDE)
        if value is None:
            raise ValueError(f"{name}: config.json must have {names[0]}, got none")
        return value

    # Ids of speculators checkpoints count the embedding's output as 0.
    direct = checkpoint.get("aux_hidden_state_layer_ids", inside=_INSIDE)
    layer_ids = field("target_layer_ids") if direct is None else [i - 1 for i in direct]
    layer_ids = tuple(int(i) for i in layer_ids)
    if "fc.weight" not in tensors:
        raise ValueError(f"{name}: weights must have fc.weight, got none")
    width = tensors["fc.weight"].shape[1]
    if not layer_ids or width % len(layer_ids):
        raise ValueError(
            f"{name}: fc.weight must have a multiple of {len(layer_ids)} columns, one part for each "
            f"of the layers {list(layer_ids)}, got {width}"
        )
    windows = _windows(checkpoint, shape)
    return DFlashConfig(
        shape=shape,
        block_size=int(field("block_size")),
        mask_token_id=int(field("mask_token_id")) if "mask_embedding" not in tensors
        else int(checkpoint.get("mask_token_id", inside=_INSIDE, default=-1)),
        layer_ids=layer_ids,
        target_width=width // len(layer_ids),
        predicts_next=bool(checkpoint.get("sample_from_anchor", "shift_label", inside=_INSIDE)),
        causal=bool(checkpoint.get("causal_head", inside=_INSIDE)),
        windows=windows,
        windows_causal=bool(checkpoint.get("is_causal", "causal", inside=_INSIDE, default=True)),
    )  # fmt: skip


def _shape(config: Mapping[str, Any]) -> Any:
    given = {name: config[name] for name in _SHAPE_FIELDS if config.get(name) is not None}
    rope = given.pop("rope_parameters", None)
    theta, scaling = given.pop("rope_theta", 10000.0), given.pop("rope_scaling", None)
    if rope is None:
        rope = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
        rope["rope_type"] = rope.pop("type", rope["rope_type"])
    return LlamaConfig(**given, rope_parameters=dict(rope))


def _windows(checkpoint: Checkpoint, shape: Any) -> tuple[int | None, ...]:
    """Per layer the sliding window; empty when there is none at all."""
    count = shape.num_hidden_layers
    nested = checkpoint.config.get(_INSIDE) or {}
    if nested.get("use_swa"):
        return (int(nested["swa_window_size"]),) * count
    types = checkpoint.get("layer_types", inside="transformer_layer_config") or ()
    window = checkpoint.get("sliding_window", inside="transformer_layer_config")
    if window is None or not any("sliding" in kind for kind in types):
        return ()
    return tuple(int(window) if "sliding" in kind else None for kind in types)


# --- Parts of a checkpoint ------------------------------------------------------------------------


@dataclass
class _Parts:
    """Weights by what they belong to."""

    backbone: Tensors
    conditional: Tensors
    kind: str
    embedding: torch.Tensor | None
    head: torch.Tensor | None
    offset: torch.Tensor | None


def _split(tensors: Tensors) -> _Parts:
    rest = dict(tensors)
    conditional: Tensors = {}
    kind = "dflash"
    for name, prefix in _PREFIX_OF.items():
        own = {key: rest.pop(key) for key in list(rest) if key.startswith(prefix)}
        if own:
            kind, conditional = name, {k.removeprefix(prefix): t for k, t in own.items()}
    taken = [rest.pop(key, None) for key in ("embed_tokens.weight", "lm_head.weight", "d2t")]
    rest.pop("t2d", None)  # says the same as d2t
    return _Parts(rest, conditional, kind, *taken)


def _token_modules(
    parts: _Parts, config: DFlashConfig, context: DrafterContext, name: str
) -> tuple[TokenModules, DraftVocabulary]:
    """The target's embedding and head, or the checkpoint's own ones."""
    tokens, width = TokenModules.of_target(context.target), config.shape.hidden_size
    if parts.embedding is not None:
        tokens = replace(tokens, embedding=_embedding(parts.embedding, tokens))
    if parts.head is not None:
        tokens = TokenModules(tokens.embedding, _head(parts.head, tokens))
    for what, module in (("embedding", tokens.embedding), ("head", tokens.head)):
        if module.weight.shape[1] != width:
            raise ValueError(
                f"{name}: hidden_size must be that of the target's {what}, "
                f"{module.weight.shape[1]}, unless it has its own; got {width}"
            )
    rows = tokens.embedding.weight.shape[0]
    if "mask_embedding" not in parts.backbone and not 0 <= config.mask_token_id < rows:
        raise ValueError(
            f"{name}: mask_token_id must be in [0, {rows}), the embedding's rows, "
            f"got {config.mask_token_id}"
        )
    vocabulary = DraftVocabulary(tokens.head.weight.shape[0], context.vocab_size, parts.offset)
    return tokens, vocabulary


def _embedding(weight: torch.Tensor, like: TokenModules) -> nn.Module:
    return nn.Embedding.from_pretrained(weight.to(like.head.weight), freeze=True)


def _head(weight: torch.Tensor, like: TokenModules) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    head.weight = nn.Parameter(weight.to(like.head.weight), requires_grad=False)
    return head


def _conditional(
    parts: _Parts,
    config: DFlashConfig,
    context: DrafterContext,
    vocabulary: DraftVocabulary,
    tokens: TokenModules,
    name: str,
) -> Any:
    if parts.kind == "dflash":
        return None
    makers: Mapping[str, Callable[[], Conditional]] = {
        "treeflash": lambda: TreeFlashModule(config.shape, _rows(parts, "d.weight", 1, name)),
        "pairwise": lambda: PairwiseSelector(
            config.shape,
            _rows(parts, "predecessor_codebook", 0, name),
            _rows(parts, "successor_codebook", 0, name),
            _rows(parts, "successor_codebook", 1, name),
        ),
    }
    module: Any = makers[parts.kind]()
    load_weights(module, parts.conditional, what=f"{name}, {parts.kind} module")
    if parts.kind == "pairwise":
        sizes = (module.predecessor_codebook.shape[0], module.successor_codebook.shape[0])
        if sizes[0] < context.vocab_size or sizes[1] != tokens.head.weight.shape[0]:
            raise ValueError(
                f"{name}: codebooks must have rows for the target's {context.vocab_size} tokens and "
                f"the head's {tokens.head.weight.shape[0]}, got {sizes[0]} and {sizes[1]}"
            )
    return module


def _rows(parts: _Parts, key: str, dimension: int, name: str) -> int:
    if key not in parts.conditional:
        raise ValueError(f"{name}: weights must have {_PREFIX_OF[parts.kind]}{key}, got none")
    return parts.conditional[key].shape[dimension]


def _check_layers(config: DFlashConfig, context: DrafterContext, name: str) -> None:
    from treespec.targets.hf_model import decoder_blocks, text_config

    count = len(decoder_blocks(context.target.model))
    outside = [i for i in config.layer_ids if not 0 <= i < count]
    if outside:
        raise ValueError(
            f"{name}: target_layer_ids must be in [0, {count}), the target's layers, got {outside}"
        )
    width = int(text_config(context.target.model).hidden_size)
    if config.target_width != width:
        raise ValueError(
            f"{name}: fc.weight must read {len(config.layer_ids)} layers of the target's width "
            f"{width}, got {config.target_width} each"
        )


def _smaller_block(wanted: int, trained: int) -> int:
    if not 2 <= wanted <= trained:
        raise ValueError(
            f"DFlashDrafter: block_size must be in [2, {trained}], the trained size, got {wanted}"
        )
    return wanted
