# SPDX-License-Identifier: Apache-2.0
"""Pairs of decoders, one on ONNX Runtime and one in PyTorch, over the same models."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from exported_models import DRAFTERS, exported, tiny_target
from tiny_models import tiny_model

import treespec

# Models of the exports that are used here.
TARGETS = {
    "target": tiny_target,
    "target of new rows": tiny_target,
    "target with windows": lambda: tiny_model("qwen3_window"),
}


def onnx_decoder(
    factory: Any, target: str = "target", drafter: Any = "causal_lm", **options: Any
) -> Any:
    """A decoder on ONNX Runtime; a drafter that is exported by its name there."""
    if drafter in DRAFTERS:
        options.setdefault(
            "drafter_options", {} if drafter == "causal_lm" else {"self_test": False}
        )
        drafter = exported(drafter, factory)
    return treespec.load(exported(target, factory), drafter, **options)


def torch_decoder(target: str = "target", drafter: Any = "causal_lm", **options: Any) -> Any:
    """The same models in PyTorch."""
    if drafter in DRAFTERS:
        drafter = DRAFTERS[drafter]()
    return treespec.load(TARGETS[target](), drafter, device="cpu", **options)


def ragged_prompts(lengths: tuple[int, ...] = (3, 21, 9), seed: int = 0) -> list[list[int]]:
    """Random token ids; 0 to 2 are special."""
    random = np.random.default_rng(seed)
    return [random.integers(3, 64, length).tolist() for length in lengths]


def texts(decoder: Any, prompts: Any, **options: Any) -> list[list[int]]:
    """Token ids of a batch; an end-of-text token does not end it unless asked for."""
    options = {"max_new_tokens": 30, "ignore_eos": True, **options}
    return [result.token_ids for result in decoder.generate(prompts, **options)]


def pool_content(pool: Any, sequence: Any) -> list[npt.NDArray[Any]]:
    """Committed and pending rows of a sequence, per cache input."""
    return [buffer[sequence.place, :, : sequence.used].copy() for buffer in pool.buffers]
