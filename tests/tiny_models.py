# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of many architectures, for tests of the wiring; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 64

# Shorter than the prefixes of the tests, so that it hides something.
WINDOW = 6

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256, "vocab_size": VOCAB_SIZE}
_MIXED_LAYERS = ["sliding_attention", "full_attention"]
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}


def _make(config_name: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, config_name)(**options)


_CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": _make("LlamaConfig", **_BASE),
    "qwen2": _make("Qwen2Config", **_BASE),
    "qwen3": _make("Qwen3Config", **_BASE, head_dim=8),
    "qwen3_window": _make(
        "Qwen3Config",
        **_BASE,
        head_dim=8,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
        layer_types=_MIXED_LAYERS,
    ),
    "mistral_window": _make("MistralConfig", **_BASE, sliding_window=WINDOW),
    "gemma2": _make(
        "Gemma2Config",
        **_BASE,
        head_dim=8,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
    ),
    "gemma3": _make(
        "Gemma3TextConfig",
        **_BASE,
        head_dim=8,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        layer_types=_MIXED_LAYERS,
    ),
    "gpt_oss": _make("GptOssConfig", **_BASE, **_MOE, head_dim=8, sliding_window=WINDOW),
    "phi3": _make("Phi3Config", **_BASE, sliding_window=None),
    "phimoe_window": _make("PhimoeConfig", **_BASE, **_MOE, sliding_window=WINDOW),
    "gpt2": _make("GPT2Config", **_GPT2, bos_token_id=1, eos_token_id=2),
    "gpt_neox": _make("GPTNeoXConfig", **{**_BASE, "num_key_value_heads": 4}),
    "mixtral": _make("MixtralConfig", **_BASE, **_MOE, sliding_window=None),
    "deepseek_v3": _make(
        "DeepseekV3Config",
        **{**_BASE, "num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_shared_experts=1,
    ),
    "mamba": _make("MambaConfig", **_BASE, state_size=4, expand=2),
    "jamba": _make(
        "JambaConfig",
        **_BASE,
        attn_layer_offset=1,
        attn_layer_period=2,
        num_experts=1,
        num_experts_per_tok=1,
        expert_layer_offset=1,
        expert_layer_period=2,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "lfm2": _make(
        "Lfm2Config", **_BASE, layer_types=["conv", "full_attention"], block_multiple_of=16
    ),
    "bloom": _make(
        "BloomConfig", vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4, eos_token_id=2
    ),
}

# State that cannot fork.
RECURRENT = ["mamba", "jamba", "lfm2"]

# State that is keys and values: trees work.
ARCHITECTURES = [name for name in _CONFIGS if name not in (*RECURRENT, "bloom")]


def tiny_model(
    name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A random 2-layer model with hidden size 32 and 64 tokens, in evaluation mode.

    Parameters
    ----------
    name
        One of `ARCHITECTURES`, `RECURRENT`, or ``"bloom"``.
    overrides
        Fields of the config to replace, for instance ``vocab_size``.
    """
    config = _CONFIGS[name]()
    for field, value in overrides.items():
        setattr(config, field, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, experts_implementation="eager"
        )
        for parameter in model.parameters():
            # HF's 0.02 makes every row nearly uniform, which would hide errors.
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return model.to(dtype).eval()
