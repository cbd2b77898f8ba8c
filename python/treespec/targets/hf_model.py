# SPDX-License-Identifier: Apache-2.0
"""What a Hugging Face model tells before it runs: its limits, and whether its state can fork."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

# Layers whose state is a list of keys and values: any subset of rows is a valid state.
_FORKABLE_LAYER_TYPES = {"full_attention", "sliding_attention", "attention"}

_ALIBI_MODEL_TYPES = {"bloom", "mpt"}

_BLOCK_LIST_NAMES = ("layers", "h", "blocks", "block")

_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def load_model(
    model_or_path: PreTrainedModel | str | PathLike[str],
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> PreTrainedModel:
    """A model in evaluation mode from a local path or hub id; a model object is returned untouched.

    Parameters
    ----------
    device
        ``"auto"``: CUDA if there is one. Ignored, like `dtype`, for a model object.
    dtype
        ``"auto"``: as stored in the checkpoint, but float32 for half precision on a CPU.

    Raises
    ------
    TypeError
        If the object is not a transformers model.
    """
    if isinstance(model_or_path, PreTrainedModel):
        return model_or_path
    if not isinstance(model_or_path, (str, PathLike)):
        raise TypeError(
            "load_model: model_or_path must be a path, a hub id or a transformers model, "
            f"got {type(model_or_path).__name__}"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(model_or_path, dtype=dtype)
    except SafetensorError as error:
        raise OSError(f"load_model: the weights in {model_or_path} are broken: {error}") from error
    if dtype == "auto" and torch.device(device).type == "cpu" and model.dtype.itemsize < 4:
        model = model.float()
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def text_config(model: PreTrainedModel) -> Any:
    """The config of the language model, also inside a multimodal one."""
    return model.config.get_text_config(decoder=True)


def vocab_size(model: PreTrainedModel) -> int:
    """The number of logits per row, which is what counts; a tokenizer may know fewer tokens."""
    head = model.get_output_embeddings()
    return int(head.weight.shape[0] if head is not None else text_config(model).vocab_size)


def max_context(model: PreTrainedModel) -> int | None:
    """The number of positions the config allows, or None."""
    sizes = [getattr(text_config(model), name, None) for name in _CONTEXT_FIELDS]
    return next((int(size) for size in sizes if size), None)


def eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """End-of-text tokens of the generation config, else of the config."""
    for config in (getattr(model, "generation_config", None), text_config(model)):
        eos = getattr(config, "eos_token_id", None)
        if eos is not None:
            return tuple(eos) if isinstance(eos, Iterable) else (int(eos),)
    return ()


def output_transform(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the model does to the products of its output head, elementwise: a scale, a soft cap.

    Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Gemma caps softly.
    """
    config = text_config(model)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (
        getattr(config, "logits_scaling", None) or 1.0
    )
    cap = getattr(config, "final_logit_softcapping", None)

    def transform(logits: torch.Tensor) -> torch.Tensor:
        if scale != 1:
            logits = logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return transform


def decoder_of(model: PreTrainedModel) -> torch.nn.Module:
    """The decoder stack, whose output is the state after the final norm."""
    decoder = model.get_decoder()
    return model.base_model if decoder is None or decoder is model else decoder


def decoder_blocks(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder's list of blocks, whatever it is called.

    Raises
    ------
    NotImplementedError
        If there is none under a known name.
    """
    decoder = decoder_of(model)
    for name in _BLOCK_LIST_NAMES:
        blocks = getattr(decoder, name, None)
        if isinstance(blocks, torch.nn.ModuleList):
            return blocks
    raise NotImplementedError(
        f"decoder_blocks: {type(decoder).__name__} has no list of blocks named "
        f"{', '.join(_BLOCK_LIST_NAMES)}"
    )


def has_position_table(model: PreTrainedModel) -> bool:
    """Whether positions are looked up in a table, beyond whose end there is nothing."""
    tokens = model.get_input_embeddings()
    children = decoder_of(model).children()
    return any(isinstance(child, torch.nn.Embedding) and child is not tokens for child in children)


def rope_depends_on_length(model: torch.nn.Module) -> bool:
    """Whether the longest row of a forward changes the rotation of all rows (dynamic, longrope)."""
    kinds = {str(getattr(module, "rope_type", "")) for module in model.modules()}
    return any(name in kind for kind in kinds for name in ("dynamic", "longrope"))


def layer_types(model: PreTrainedModel) -> set[str]:
    """The kinds of layers the config names; may be empty."""
    config = text_config(model)
    for name in ("layer_types", "layers_block_type", "block_types"):
        types = getattr(config, name, None)
        if types:
            return set(types)
    return set()


def can_fork(model: PreTrainedModel) -> bool:
    """Whether the state is keys and values alone, so that tree nodes can share a prefix.

    False for recurrent, state-space, linear-attention and convolution layers and for hybrids with
    them.
    """
    return not getattr(model, "_is_stateful", False) and layer_types(model) <= _FORKABLE_LAYER_TYPES


def check_supported(model: PreTrainedModel) -> None:
    """Refuse models that would run and be silently wrong.

    Raises
    ------
    NotImplementedError
        With the reason and the way out.
    """
    reason = _refusal(model)
    if reason is not None:
        raise NotImplementedError(f"{type(model).__name__} is not supported: {reason}")


def _refusal(model: PreTrainedModel) -> str | None:
    config = text_config(model)
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder; treespec decodes decoder-only models"
    if config.model_type in _ALIBI_MODEL_TYPES or getattr(config, "alibi", False):
        return "its ALiBi bias is computed from a 2-D mask, which cannot describe a tree"
    if "chunked_attention" in layer_types(model) or getattr(config, "attention_chunk_size", None):
        return "chunked attention is not implemented; full and sliding-window attention are"
    if getattr(config, "use_bidirectional_attention", False) or not getattr(
        config, "is_causal", True
    ):
        return "its attention is bidirectional; treespec decodes causal models"
    if getattr(config, "num_kv_shared_layers", 0):
        return "some of its layers share the keys of others, which the packed cache does not hold"
    if can_fork(model) and not type(model)._can_set_attn_implementation():
        return "it does not call transformers' AttentionInterface"
    return None
