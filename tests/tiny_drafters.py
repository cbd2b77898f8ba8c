# SPDX-License-Identifier: Apache-2.0
"""Tiny random drafters on the states of the tiny targets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig

from treespec.drafts.dflash import DFlashConfig, DFlashDrafter, DFlashModel
from treespec.drafts.eagle3 import Eagle3Config, Eagle3Drafter, Eagle3Model
from treespec.drafts.medusa import MedusaDrafter, MedusaHeads
from treespec.drafts.pairwise import PairwiseSelector
from treespec.drafts.treeflash import TreeFlashModule
from treespec.drafts.vocabulary import DraftVocabulary, TokenModules
from treespec.targets.hf import load_target

MASK = 0


def shape(hidden_size: int = 32, num_layers: int = 2) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-6,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


def randomise(module: torch.nn.Module, dtype: torch.dtype, seed: int = 7) -> Any:
    """Weights of a size at which every part matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            around = 1.0 if "norm" in name else 0.0
            parameter.copy_((around + 0.3 * noise).to(parameter.dtype))
    return module.to(dtype).eval()


def tiny_dflash(
    model: Any, conditional: str | None = None, *, seed: int = 7, **options: Any
) -> DFlashDrafter:
    """A random DFlash drafter for a tiny target model; fields of its config and options by name."""
    fields = {
        name: options.pop(name)
        for name in ("block_size", "predicts_next", "causal", "windows", "windows_causal")
        if name in options
    }
    config = DFlashConfig(
        shape=shape(model.config.hidden_size),
        mask_token_id=MASK,
        layer_ids=(0, 1),
        target_width=model.config.hidden_size,
        **{"block_size": 6, **fields},
    )
    tokens = TokenModules.of_target(load_target(model))
    size = tokens.head.weight.shape[0]
    modules = {
        None: lambda: None,
        "treeflash": lambda: TreeFlashModule(config.shape),
        "pairwise": lambda: PairwiseSelector(config.shape, size, size, 4),
    }
    module = modules[conditional]()
    if module is not None:
        module = randomise(module, model.dtype, seed + 1)
    return DFlashDrafter(
        randomise(DFlashModel(config), model.dtype, seed),
        tokens,
        DraftVocabulary(size, model.config.vocab_size),
        conditional=module,
        **options,
    )


def with_every_second_token(drafter: DFlashDrafter) -> DFlashDrafter:
    """The same drafter without the words for the target's even tokens; changed and returned."""
    size = drafter.vocabulary.target_size
    kept = torch.arange(1, size, 2)
    drafter.vocabulary = DraftVocabulary(len(kept), size, kept - torch.arange(len(kept)))
    drafter._mask_column = drafter.vocabulary.draft_id(MASK)
    whole = drafter.tokens.head.weight
    head = torch.nn.Linear(whole.shape[1], len(kept), bias=False, dtype=whole.dtype)
    head.weight.data = whole.data[kept]
    drafter.tokens = TokenModules(drafter.tokens.embedding, head)
    if isinstance(drafter.conditional, PairwiseSelector):
        successors = drafter.conditional.successor_codebook
        successors.data = successors.data[kept]
    return drafter


def tiny_medusa(model: Any, *, seed: int = 9) -> MedusaDrafter:
    """Three random heads for a tiny target model."""
    tokens = TokenModules.of_target(load_target(model))
    heads = MedusaHeads(3, 1, model.config.hidden_size, tokens.head.weight.shape[0])
    return MedusaDrafter(randomise(heads, model.dtype, seed), tokens)


def tiny_eagle3(model: Any, *, seed: int = 9) -> Eagle3Drafter:
    """A random layer for a tiny target model, which can say every second token."""
    size = model.config.vocab_size
    kept = torch.arange(1, size, 2)
    width = model.config.hidden_size
    config = Eagle3Config(shape(width, 1), (0, 1), width, len(kept))
    return Eagle3Drafter(
        randomise(Eagle3Model(config), model.dtype, seed),
        model.get_input_embeddings(),
        DraftVocabulary(len(kept), size, kept - torch.arange(len(kept))),
    )


# By the name of their kind, as tests of all drafters take them.
TINY_DRAFTERS: dict[str, Callable[[Any], Any]] = {
    "tiny dflash": tiny_dflash,
    "tiny treeflash": functools.partial(tiny_dflash, conditional="treeflash"),
    "tiny pairwise": functools.partial(tiny_dflash, conditional="pairwise"),
    "tiny medusa": tiny_medusa,
    "tiny eagle3": tiny_eagle3,
}
