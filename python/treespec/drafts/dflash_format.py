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
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import LlamaConfig, Qwen3Config

from treespec.drafts import DrafterContext
from treespec.drafts.checkpoint import (
    SHAPE_FIELDS,
    Checkpoint,
    load_weights,
    save_checkpoint,
    shape_fields,
)
from treespec.drafts.dflash import (
    Conditional,
    DFlashConfig,
    DFlashDrafter,
    DFlashModel,
    feature_layers,
)
from treespec.drafts.pairwise import PairwiseSelector
from treespec.drafts.treeflash import TreeFlashModule
from treespec.drafts.vocabulary import DraftVocabulary, TokenModules

Tensors = dict[str, torch.Tensor]

_ARCHITECTURE = "DFlashDraftModel"
# Those built on it: their configs look the same, and so do most of their weights.
_FAMILY = ("dflash", "domino", "dspark")
_INSIDE = "dflash_config"
_NESTED_SHAPE = "transformer_layer_config"  # of "speculators" checkpoints
_NATIVE_FIELDS = {"block_size", "mask_token_id", "target_layer_ids"}  # of transformers' own ones
_ROPE_FIELDS = ("rope_theta", "rope_scaling", "rope_parameters")
_PREFIX_OF = {"treeflash": "ar_approximation.", "pairwise": "candidate_selector."}
_RENAMED = {
    "encoder.fc.weight": "fc.weight",
    "encoder.output_norm_enc.weight": "hidden_norm.weight",
}
# What a checkpoint may hold that treespec does not run, by what gives it away.
_REFUSED = {
    r"attention_sink_bias$": "its attention has sinks",
    r"(attention|mlp)_conv\.": "its layers have dynamic convolutions (DFlash 2)",
    r"markov_head\.": "its guesses go through a Markov head (DSpark)",
    r"\.g_proj\.": "its attention is gated (Laguna)",
}
_DOMINO = re.compile(r"(^|\.)(prefix_gru|embed_proj|hidden_proj)\.")
# Copies of what the target has, and tables that follow from the config.
_NEEDLESS = re.compile(r"^verifier_(norm|lm_head)\.|\.inv_freq$")


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether a folder holds a DFlash drafter, or one of its family, by its config."""
    config = checkpoint.config
    names = [str(name).lower() for name in config.get("architectures") or ()]
    kinds = (config.get("speculators_model_type"), config.get("speculation_type"))
    return (
        any(kind in name for name in names for kind in _FAMILY)
        or any(kind in _FAMILY for kind in kinds)
        or _INSIDE in config
        or set(config) >= _NATIVE_FIELDS
    )


def load(
    checkpoint: Checkpoint,
    context: DrafterContext,
    *,
    conditional: bool = True,
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
    conditional
        False leaves out the module of a TreeFlash or pairwise checkpoint and drafts with its stack
        alone, as plain DFlash.
    num_previous, width, head_rows, chain
        As `DFlashDrafter`.
    block_size
        Slots of a block, at most the trained number.
    windows_causal
        Direction inside the block of layers with a sliding window; None: as the config says, else
        the rule of vLLM (`_windows_causal`).

    Raises
    ------
    NotImplementedError
        For a variant that treespec does not run.
    ValueError
        If config, weights and target do not fit together.
    """
    name = f"DFlash checkpoint {checkpoint.folder.name}"
    fields = _Fields(checkpoint, name)
    shape = read_shape(fields)
    parts = _split(_unfused(canonical(checkpoint.tensors, name), shape, name))
    parts.backbone |= _mask_file(fields, parts.backbone)
    config = read_config(fields, shape, parts.feature_width(name))
    if block_size is not None:
        config = replace(config, block_size=_smaller_block(block_size, config.block_size))
    if windows_causal is not None:
        config = replace(config, windows_causal=windows_causal)
    _check_target(config, context, name)
    tokens, vocabulary = _token_modules(parts, config, context, name)
    model = DFlashModel(config, own_mask="mask_embedding" in parts.backbone)
    load_weights(model, parts.backbone, what=name)
    module = _conditional(parts, config, tokens, context, name) if conditional else None
    place = {"device": tokens.head.weight.device, "dtype": tokens.head.weight.dtype}
    return DFlashDrafter(
        model.to(**place).eval(),
        tokens,
        vocabulary,
        conditional=None if module is None else module.to(**place).eval(),
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
    prefix = "model." if kind == "treeflash" else ""
    tensors = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    fields: dict[str, Any] = {
        "architectures": [_ARCHITECTURE],
        "model_type": "qwen3",
        **shape_fields(model.config.shape),
        "vocab_size": vocab_size,
        "num_target_layers": num_target_layers,
        **_written(model.config),
    }
    if conditional is not None:
        tensors |= {_PREFIX_OF[kind] + n: tensor for n, tensor in conditional.state_dict().items()}
        if kind == "treeflash":
            fields["treeflash_config"] = {"ar_approximation": "swiglu", "candidate_tokens": 64}
    save_checkpoint(folder, fields, {name: tensor.to(dtype) for name, tensor in tensors.items()})


# --- One form for all variants --------------------------------------------------------------------


def canonical(tensors: Mapping[str, torch.Tensor], name: str) -> Tensors:
    """The weights under the names of the first checkpoints, whatever variant they come in.

    Raises
    ------
    NotImplementedError
        For weights that treespec has no use for, with what they are.
    """
    for pattern, reason in _REFUSED.items():
        if any(re.search(pattern, key) for key in tensors):
            raise NotImplementedError(f"{name}: {reason}, which treespec does not run")
    if any(_DOMINO.search(key) for key in tensors):
        warnings.warn(
            f"{name}: its Domino correction is left out; it drafts as plain DFlash", stacklevel=2
        )
    out: Tensors = {}
    for key, tensor in tensors.items():
        short = key.removeprefix("model.")
        if not (_DOMINO.search(short) or _NEEDLESS.search(short)):
            out[_RENAMED.get(short, short.replace("midlayer.", "layers.0."))] = tensor
    return out


def _unfused(tensors: Tensors, shape: Any, name: str) -> Tensors:
    """Rows of `qkv_proj` as the three projections."""
    heads = [shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads]
    sizes = [count * shape.head_dim for count in heads]
    out: Tensors = {}
    for key, tensor in tensors.items():
        if "qkv_proj" not in key:
            out[key] = tensor
        elif len(tensor) != sum(sizes):
            raise ValueError(
                f"{name}: {key} must have {sum(sizes)} rows by the config, got {len(tensor)}"
            )
        else:
            for letter, rows in zip("qkv", tensor.split(sizes), strict=True):
                out[key.replace("qkv_proj", f"{letter}_proj")] = rows
    return out


@dataclass(frozen=True)
class _Fields:
    """`config.json`, whose fields are at the top or inside `dflash_config`; errors name them."""

    checkpoint: Checkpoint
    name: str

    def find(self, *names: str) -> Any:
        return self.checkpoint.get(*names, inside=_INSIDE)

    def find_of_layers(self, name: str) -> Any:
        return self.checkpoint.get(name, inside=_NESTED_SHAPE)

    def nested(self) -> Mapping[str, Any]:
        return self.checkpoint.config.get(_INSIDE) or {}

    def needed(self, *names: str) -> Any:
        value = self.find(*names)
        if value is None:
            raise ValueError(f"{self.name}: config.json must have {names[0]}, got none")
        return value

    def integer(self, name: str) -> int:
        return self._checked(name, [self.needed(name)])[0]

    def integers(self, *names: str) -> list[int] | None:
        value = self.find(*names)
        return None if value is None else self._checked(names[0], value)

    def _checked(self, name: str, values: Any) -> list[int]:
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise ValueError(f"{self.name}: {name} must hold integers, got {values!r}")
        return values


def read_shape(fields: _Fields) -> Any:
    """The layers' sizes and rotation; what the config leaves out is as in its model type.

    Raises
    ------
    ValueError
        If they are no layers.
    """
    config = fields.checkpoint.config
    given = config.get(_NESTED_SHAPE) or config
    present = {n: given[n] for n in (*SHAPE_FIELDS, *_ROPE_FIELDS) if given.get(n) is not None}
    # The published classes read their configs as Qwen3's.
    kind = LlamaConfig if given.get("model_type") == "llama" else Qwen3Config
    try:
        full = kind(**present)
        shape = {name: getattr(full, name) for name in SHAPE_FIELDS}
        # Not Llama's, whose width must be a multiple of the heads.
        return Qwen3Config(**shape, rope_parameters=dict(full.rope_parameters), mlp_bias=False)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{fields.name}: config.json must describe its layers: {error}") from error


def read_config(fields: _Fields, shape: Any, feature_width: int) -> DFlashConfig:
    """Conventions from `config.json`, whichever place a field has.

    Parameters
    ----------
    feature_width
        Columns of `fc`: the widths of all target layers that are read.

    Raises
    ------
    ValueError
        For a field that is missing or wrong.
    """
    layer_ids = _layer_ids(fields, shape)
    if not layer_ids or feature_width % len(layer_ids):
        raise ValueError(
            f"{fields.name}: fc.weight must have a multiple of {len(layer_ids)} columns, one part "
            f"for each of the layers {list(layer_ids)}, got {feature_width}"
        )
    windows = _windows(fields, shape)
    return DFlashConfig(
        shape=shape,
        block_size=fields.integer("block_size"),
        # Mandatory: whatever else stood in its place (pad, end of text) would be a wrong input.
        mask_token_id=fields.integer("mask_token_id"),
        layer_ids=layer_ids,
        target_width=feature_width // len(layer_ids),
        predicts_next=bool(fields.find("sample_from_anchor") or fields.find("shift_label")),
        causal=bool(fields.find("causal_head") or _direction(fields)),
        windows=windows,
        windows_causal=_windows_causal(fields),
    )


def _written(config: DFlashConfig) -> dict[str, Any]:
    """The fields that `read_config` reads back."""
    inside: dict[str, Any] = {
        "mask_token_id": config.mask_token_id,
        "target_layer_ids": list(config.layer_ids),
    }
    fields: dict[str, Any] = {"block_size": config.block_size, _INSIDE: inside}
    if config.predicts_next:
        inside["shift_label"] = True
    if config.causal:
        inside["causal_head"] = True
    sizes = set(filter(None, config.windows))
    if len(sizes) > 1:
        raise ValueError(f"save: all windows of a drafter must be of one size, got {sorted(sizes)}")
    for size in sizes:
        kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
        fields |= {"layer_types": kinds, "use_sliding_window": True, "sliding_window": size}
        if not (config.windows_causal or config.causal):
            inside["causal"] = False
    return fields


def _layer_ids(fields: _Fields, shape: Any) -> tuple[int, ...]:
    # Ids of speculators checkpoints count the embedding's output as 0.
    direct = fields.integers("aux_hidden_state_layer_ids")
    if direct is not None:
        return tuple(i - 1 for i in direct)
    given = fields.integers("target_layer_ids", "layer_ids")
    if given is not None:
        return tuple(given)
    if fields.find("num_target_layers") is None:
        fields.needed("target_layer_ids")
    # The default of the published code.
    return feature_layers(fields.integer("num_target_layers"), shape.num_hidden_layers)


def _windows(fields: _Fields, shape: Any) -> tuple[int | None, ...]:
    """Per layer the sliding window; empty when there is none at all."""
    sliding = _sliding_layers(fields, shape.num_hidden_layers)
    if not any(sliding):
        return ()
    window = fields.nested().get("swa_window_size") or fields.find_of_layers("sliding_window")
    if window is None:
        raise ValueError(
            f"{fields.name}: config.json must have sliding_window, since layers are sliding, "
            "got none"
        )
    size = int(window) + _is_native(fields)  # transformers counts the distance, others the keys
    return tuple(size if one else None for one in sliding)


def _sliding_layers(fields: _Fields, count: int) -> list[bool]:
    kinds = fields.find_of_layers("layer_types") or ()
    sliding = ["sliding" in str(kind) for kind in kinds]
    if any(sliding):
        if len(sliding) != count:
            raise ValueError(f"{fields.name}: layer_types must be {count}, got {len(sliding)}")
        return sliding
    return [bool(fields.nested().get("use_swa"))] * count


def _windows_causal(fields: _Fields) -> bool:
    """Direction inside a block of layers with a window.

    What the config says, else the rule of vLLM: forwards too where `use_swa` makes all layers
    sliding, backwards only where `layer_types` names some.
    """
    said = _direction(fields)
    if said is not None:
        return said
    if fields.find("sliding_window_non_causal") or _is_native(fields):
        return False
    return any("sliding" in str(kind) for kind in fields.find_of_layers("layer_types") or ())


def _direction(fields: _Fields) -> bool | None:
    """Whether all layers see backwards only, if the config says so or not."""
    said = fields.find("causal", "is_causal")
    return None if said is None else bool(said)


def _is_native(fields: _Fields) -> bool:
    """Whether transformers has a class of its own for the drafter, whose windows look both ways."""
    return str(fields.checkpoint.config.get("model_type")).endswith("_assistant")


def _mask_file(fields: _Fields, tensors: Tensors) -> Tensors:
    """A vector for the mask that lies beside the weights or among them, in one shape."""
    kept = tensors.get("mask_embedding")
    if kept is None:
        kept = fields.checkpoint.extra("mask_embedding.pt")
    if isinstance(kept, dict):
        kept = kept.get("embedding", "no embedding")
    if kept is None:
        return {}
    if not isinstance(kept, torch.Tensor):
        raise ValueError(f"{fields.name}: mask_embedding.pt must hold a vector, got {kept!r}")
    return {"mask_embedding": kept.reshape(-1)}


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

    def feature_width(self, name: str) -> int:
        """Columns of `fc`."""
        if "fc.weight" not in self.backbone:
            raise ValueError(f"{name}: weights must have fc.weight, got none")
        return self.backbone["fc.weight"].shape[-1]

    def size(self, key: str, dimension: int, name: str) -> int:
        """A size of one of the conditional's tensors."""
        if key not in self.conditional:
            raise ValueError(f"{name}: weights must have {_PREFIX_OF[self.kind]}{key}, got none")
        return self.conditional[key].shape[dimension]


def _split(tensors: Tensors) -> _Parts:
    rest = dict(tensors)
    conditional: Tensors = {}
    kind = "dflash"
    for name, prefix in _PREFIX_OF.items():
        own = {key: rest.pop(key) for key in list(rest) if key.startswith(prefix)}
        if own:
            kind, conditional = name, {k.removeprefix(prefix): t for k, t in own.items()}
    embedding, head = rest.pop("embed_tokens.weight", None), rest.pop("lm_head.weight", None)
    offset, covered = rest.pop("d2t", None), rest.pop("t2d", None)
    if offset is None and covered is not None:
        ids = covered.nonzero()[:, 0]
        offset = ids - torch.arange(len(ids))
    return _Parts(rest, conditional, kind, embedding, head, offset)


def _check_target(config: DFlashConfig, context: DrafterContext, name: str) -> None:
    """Require a target with the layers and the width that the drafter reads."""
    from treespec.targets.hf_model import decoder_blocks, text_config

    TokenModules.of_target(context.target)  # says what it must be
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


def _token_modules(
    parts: _Parts, config: DFlashConfig, context: DrafterContext, name: str
) -> tuple[TokenModules, DraftVocabulary]:
    """The target's embedding and head, or the checkpoint's own ones."""
    tokens = TokenModules.of_target(context.target)
    if parts.embedding is not None:
        tokens = replace(tokens, embedding=_embedding(parts.embedding, tokens))
    if parts.head is not None:
        tokens = TokenModules(tokens.embedding, _head(parts.head, tokens))
    elif parts.offset is not None:
        raise ValueError(f"{name}: a reduced vocabulary (d2t) needs a lm_head.weight, got none")
    for what, module in (("embedding", tokens.embedding), ("head", tokens.head)):
        if module.weight.shape[1] != config.shape.hidden_size:
            raise ValueError(
                f"{name}: hidden_size must be that of the target's {what}, "
                f"{module.weight.shape[1]}, unless it has its own; got {config.shape.hidden_size}"
            )
    rows = tokens.embedding.weight.shape[0]
    if not 0 <= config.mask_token_id < rows:
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
    parts: _Parts, config: DFlashConfig, tokens: TokenModules, context: DrafterContext, name: str
) -> Any:
    """The module on top, or None."""
    makers: Mapping[str, Callable[[], Conditional]] = {
        "treeflash": lambda: TreeFlashModule(config.shape, parts.size("d.weight", 1, name)),
        "pairwise": lambda: _pairwise(parts, config, tokens, context, name),
    }
    if parts.kind not in makers:
        return None
    module: Any = makers[parts.kind]()
    load_weights(module, parts.conditional, what=f"{name}, {parts.kind} module")
    return module


def _pairwise(
    parts: _Parts, config: DFlashConfig, tokens: TokenModules, context: DrafterContext, name: str
) -> PairwiseSelector:
    before = parts.size("predecessor_codebook", 0, name)
    after, rank = (parts.size("successor_codebook", i, name) for i in (0, 1))
    rows = tokens.head.weight.shape[0]
    if before < context.vocab_size or after != rows:
        raise ValueError(
            f"{name}: codebooks must have rows for the target's {context.vocab_size} tokens and "
            f"the head's {rows}, got {before} and {after}"
        )
    return PairwiseSelector(config.shape, before, after, rank)


def _smaller_block(wanted: int, trained: int) -> int:
    if not 2 <= wanted <= trained:
        raise ValueError(
            f"DFlashDrafter: block_size must be in [2, {trained}], the trained size, got {wanted}"
        )
    return wanted
