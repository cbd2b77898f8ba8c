# SPDX-License-Identifier: Apache-2.0
"""Which attention static forwards use: measured once per machine and shape, and logged."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from treespec.static import flex_attention
from treespec.static.attention import RowMask, TreeAttention
from treespec.static.split_attention import SplitAttention
from treespec.targets.hf_attention import ScoreRule

LOGGER = logging.getLogger("treespec")

ATTENTION_NAMES = ("split", "flex")

_REPETITIONS = 5


def make_attention(name: str, device: torch.device) -> TreeAttention:
    """One of `ATTENTION_NAMES`. Flex kernels are compiled for GPUs only.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if name == "split":
        return SplitAttention()
    if name == "flex":
        return flex_attention.FlexAttention(compiled=device.type != "cpu")
    raise ValueError(f"attention: must be one of {', '.join(ATTENTION_NAMES)}; got {name!r}")


@dataclass(frozen=True)
class AttentionShape:
    """The sizes that decide which attention is faster.

    Attributes
    ----------
    batch, heads, key_heads, width, rows
        B, query heads, key heads, width of a head, new rows per sequence.
    context, capacity
        Rows in use, and rows of a buffer.
    """

    batch: int
    heads: int
    key_heads: int
    width: int
    rows: int
    context: int
    capacity: int


@functools.cache
def choose_attention(
    shape: AttentionShape, dtype: torch.dtype, device: torch.device
) -> TreeAttention:
    """The faster attention for these sizes on this machine; measured at the first call."""
    seconds = {}
    for name in ("split", "flex") if flex_attention.is_available() else ("split",):
        attention = make_attention(name, device)
        seconds[name] = _fastest(_trial(attention, shape, dtype, device), device)
    best = min(seconds, key=lambda name: seconds[name])
    figures = ", ".join(f"{name} {1e3 * time:.3g} ms" for name, time in seconds.items())
    LOGGER.info("static attention on %s: %s (per layer: %s)", device, best, figures)
    return make_attention(best, device)


def _trial(
    attention: TreeAttention, shape: AttentionShape, dtype: torch.dtype, device: torch.device
) -> Callable[[], object]:
    """One layer of a forward over a chain, the mask included."""
    envelope = attention.envelope(shape.context + shape.rows, shape.capacity)

    def zeros(heads: int, rows: int) -> torch.Tensor:
        return torch.zeros(shape.batch, heads, rows, shape.width, dtype=dtype, device=device)

    query, key = zeros(shape.heads, shape.rows), zeros(shape.key_heads, envelope)
    steps = torch.arange(shape.rows, dtype=torch.int32, device=device).expand(shape.batch, -1)
    prefix = torch.full((shape.batch,), shape.context, dtype=torch.int32, device=device)
    bits = torch.full(
        (shape.batch, shape.rows, -(-shape.rows // 32)), -1, dtype=torch.int32, device=device
    )
    rule = ScoreRule(shape.width**-0.5)

    @torch.inference_mode()
    def run() -> object:
        positions = steps + shape.context
        mask = RowMask(prefix, bits, positions, positions, envelope)
        return attention(query, key, key, mask, rule)

    return run


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some runs after one to warm up (and to compile)."""

    def timed() -> float:
        start = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - start

    with warnings.catch_warnings():
        # That flex is not compiled on a CPU is what the time shows.
        warnings.filterwarnings("ignore", "flex_attention called without", UserWarning)
        timed()
        return min(timed() for _ in range(_REPETITIONS))
