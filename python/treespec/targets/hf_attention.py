# SPDX-License-Identifier: Apache-2.0
"""The attention function of packed forwards: each segment has its own keys and mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from treespec import _core
from treespec.targets.base import Int32Array
from treespec.targets.hf_cache import PackedRows
from treespec.targets.segment import Segment, rooted

ATTENTION_NAME = "treespec"

# Up to this many rows the query heads that share a key head are folded into one taller product,
# which reads the keys once; above it the folded mask would cost more than it saves.
_MAX_FOLDED_ROWS = 64

# Score changes that arrive as keywords and that we do not compute.
_UNSUPPORTED_KEYWORDS = ("position_bias", "indices", "block_indices", "head_mask")


def attention_bias(
    parent: Int32Array | None,
    depth: Int32Array,
    first: int,
    prefix: int,
    window: int | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The additive mask of S slots behind a prefix, of which the last ``S - first`` are the
    queries.

    A query sees the prefix, its ancestors and itself. With a window it sees of those the keys with
    ``query position - key position < window``, the rule of Hugging Face.

    Parameters
    ----------
    parent
        ``[S]`` int32, -1 for a child of the prefix, which must have a row when there are several;
        None for a chain.
    depth
        ``[S]`` int32; a slot's position is ``prefix + depth``.
    first, prefix
        The first query slot; the number of committed rows.
    window
        The sliding window, or None.
    dtype
        A floating type.

    Returns
    -------
    torch.Tensor
        ``[S - first, prefix + S]`` on the CPU: 0 where visible, the lowest finite value elsewhere.

    Examples
    --------
    >>> attention_bias(np.array([-1, 0, 0]), np.array([0, 1, 1]), 1, 1, None, torch.float32) == 0
    tensor([[ True,  True,  True, False],
            [ True,  True, False,  True]])
    """
    if parent is None:
        parent = np.arange(-1, len(depth) - 1, dtype=np.int32)
    parent, depth, first, prefix = rooted(parent, depth, first, prefix)
    bias = torch.empty(len(depth) - first, prefix + len(depth), dtype=dtype)
    # torch's DLPack export costs ten times the fill of a small mask; NumPy has no bfloat16.
    out = bias if dtype == torch.bfloat16 else bias.numpy()
    _core.fill_mask(parent, depth, first, prefix, window or 0, out)
    return bias


@dataclass(frozen=True)
class SegmentMask:
    """What the rows of a segment may see: keys ``[start:]``, less what `bias` or the causal rule
    hides.

    Attributes
    ----------
    start
        The first key that any row sees; above 0 only with a sliding window.
    bias
        ``[n, L + S - start]`` additive, or None when nothing more is hidden.
    is_causal
        Row i sees keys ``0 .. i`` only, and `bias` is None.
    """

    start: int
    bias: torch.Tensor | None
    is_causal: bool = False


def segment_mask(
    segment: Segment, window: int | None, like: torch.Tensor, dense: bool
) -> SegmentMask:
    """Build the mask of one segment with the dtype and device of `like`.

    Parameters
    ----------
    window
        The sliding window, or None when it hides nothing (see `effective_window`).
    dense
        Whether a causal mask must be written out, for arithmetic without a causal switch.
    """
    prefix, slots = segment.sequence.length, segment.num_slots
    start = 0
    if window is not None:
        lowest = prefix + int(segment.query_depth.min())
        start = min(prefix, max(0, lowest - window + 1))
    if slots == 1:
        return SegmentMask(start, None)
    if (
        segment.parent is None
        and prefix == 0
        and segment.first == 0
        and window is None
        and not dense
    ):
        return SegmentMask(0, None, is_causal=True)
    depth = segment.depth if segment.depth is not None else np.arange(slots, dtype=np.int32)
    bias = attention_bias(segment.parent, depth, segment.first, prefix, window, like.dtype)
    return SegmentMask(start, bias[:, start:].to(like.device))


def effective_window(segment: Segment, window: int | None) -> int | None:
    """`window`, or None when the deepest row of the segment still sees position 0 through it."""
    if window is None or segment.sequence.length + int(segment.query_depth.max()) < window:
        return None
    return int(window)


@dataclass
class PackedContext:
    """What the attention function must know about the running forward; masks are shared by all
    layers.
    """

    rows: PackedRows
    _masks: dict[tuple[object, ...], SegmentMask] = field(default_factory=dict)

    def mask(
        self,
        index: int,
        window: int | None,
        like: torch.Tensor,
        groups: int = 1,
        dense: bool = False,
    ) -> SegmentMask:
        """The mask of segment `index`, its bias ``[groups * n, ...]`` repeated for folded heads."""
        segment = self.rows.segments[index]
        window = effective_window(segment, window)
        key = (index, window, like.dtype, like.device, groups, dense)
        if key not in self._masks:
            mask = segment_mask(segment, window, like, dense)
            if groups > 1 and mask.bias is not None:
                mask = SegmentMask(mask.start, torch.cat([mask.bias] * groups))
            self._masks[key] = mask
        return self._masks[key]


# Not a keyword of the forward: some blocks (GPT-2 in transformers 5.0) do not pass keywords on to
# the attention function. A context variable reaches it in every version and keeps threads apart.
_CONTEXT: ContextVar[PackedContext | None] = ContextVar("treespec_packed_context", default=None)


@contextmanager
def packed_context(rows: PackedRows) -> Iterator[None]:
    """Let the attention function serve `rows` inside the block."""
    token = _CONTEXT.set(PackedContext(rows))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


# Reading a config is slow in recent transformers, and the attention function runs in every layer.
_WINDOWS: WeakKeyDictionary[Any, int | None] = WeakKeyDictionary()


def layer_window(module: Any, keywords: dict[str, Any]) -> int | None:
    """The sliding window of an attention module, or None.

    Most architectures pass it as a keyword (Mistral in no other way). Those that keep it for their
    mask alone (Qwen2-MoE, PhiMoE) are asked through the config, once.
    """
    if "sliding_window" in keywords:
        window = keywords["sliding_window"]
        return None if window is None else int(window)
    if module not in _WINDOWS:
        _WINDOWS[module] = _own_window(module)
    return _WINDOWS[module]


def _own_window(module: Any) -> int | None:
    if hasattr(module, "sliding_window"):
        window = module.sliding_window
    else:
        window = _config_window(getattr(module, "config", None), getattr(module, "layer_idx", None))
    return None if window is None else int(window)


def _config_window(config: Any, layer: int | None) -> int | None:
    window: int | None = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is not None and layer is not None:
        return window if "sliding" in types[layer] else None
    return window if getattr(config, "use_sliding_window", True) else None


@dataclass(frozen=True)
class ScoreRule:
    """How an attention module turns products of queries and keys into scores.

    Attributes
    ----------
    scale
        Factor of the products.
    softcap
        c in ``c * tanh(score / c)``, or None.
    sinks
        ``[H]`` logits that take part in the softmax without a value, or None.
    window
        A query sees keys with ``query position - key position < window``; None is all.
    """

    scale: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    window: int | None = None


def score_rule(
    module: Any,
    query: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
    keywords: dict[str, Any],
) -> ScoreRule:
    """The rule that a model asks its attention function for.

    Raises
    ------
    NotImplementedError
        If the model changes scores in a way that treespec does not compute.
    """
    unknown = [name for name in _UNSUPPORTED_KEYWORDS if keywords.get(name) is not None]
    if attention_mask is not None:
        unknown.append("attention_mask")
    if unknown:
        raise NotImplementedError(f"treespec attention: the model adds its own {unknown[0]}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    softcap, sinks = keywords.get("softcap"), keywords.get("s_aux")
    return ScoreRule(scale, softcap, sinks, layer_window(module, keywords))


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """The function registered with `transformers.AttentionInterface` as ``"treespec"``.

    Parameters
    ----------
    query
        ``[1, H, T, D]``, the rows of all segments; float64, float32, bfloat16 or float16.
    key, value
        What `PackedCache` has handed to the layer; `PackedRows.take` adds the history.
    attention_mask
        Must be None: a mask that the model has built itself would be lost.
    scaling
        Factor of the scores; None is ``D ** -0.5``.
    keywords
        `sliding_window`, `softcap`, and `s_aux` (attention sinks, ``[H]``) are read.

    Returns
    -------
    output, None
        ``[1, T, H, E]``; there are no weights to give.

    Raises
    ------
    RuntimeError
        Outside of a packed forward.
    NotImplementedError
        If the model changes scores in a way that this function does not know.
    """
    context = _CONTEXT.get()
    if context is None:
        raise RuntimeError("treespec attention: call the model through PackedRunner.forward")
    rule = score_rule(module, query, attention_mask, scaling, keywords)
    outputs = []
    for index, (keys, values) in enumerate(context.rows.take(key, value)):
        rows = context.rows.part(query, index)
        if rule.softcap is None and rule.sinks is None:
            output = _attend(context, index, rows, keys, values, rule)
        else:
            mask = context.mask(index, rule.window, rows, dense=True)
            output = _attend_exactly(rows, keys, values, mask, rule)
        outputs.append(output)
    packed = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return packed.transpose(0, 1).unsqueeze(0), None


def _attend(
    context: PackedContext,
    index: int,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rule: ScoreRule,
) -> torch.Tensor:
    """Plain attention of ``[H, n, D]`` rows over ``[H / groups, L, D]`` keys: ``[H, n, E]``."""
    heads, count, width = query.shape
    groups = heads // keys.shape[0]
    folded = count <= _MAX_FOLDED_ROWS
    # The causal switch counts rows, and folding would repeat them.
    dense = folded and groups > 1
    mask = context.mask(index, rule.window, query, groups if folded else 1, dense)
    if mask.start:
        keys, values = keys[:, mask.start :], values[:, mask.start :]
    keys, values = keys.unsqueeze(1), values.unsqueeze(1)
    if folded:
        query = query.reshape(-1, 1, groups * count, width)
    else:
        query = query.reshape(-1, groups, count, width)
        keys, values = keys.expand(-1, groups, -1, -1), values.expand(-1, groups, -1, -1)
    output = scaled_dot_product_attention(
        query, keys, values, attn_mask=mask.bias, is_causal=mask.is_causal, scale=rule.scale
    )
    return output.reshape(heads, count, -1)


def _attend_exactly(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: SegmentMask,
    rule: ScoreRule,
) -> torch.Tensor:
    """Attention with a soft cap on the scores or sink logits, in float32 (float64 for float64)."""
    heads, count, width = query.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    shared = query.reshape(
        keys.shape[0], -1, width
    )  # rows of the query heads that share a key head
    scores = shared.to(wide) @ keys[:, mask.start :].to(wide).mT * rule.scale
    scores = scores.view(heads, count, -1)
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if mask.bias is not None:
        scores = scores + mask.bias
    if rule.sinks is not None:
        sinks = rule.sinks.to(wide).view(-1, 1, 1)
        scores = torch.cat([scores, sinks.expand(-1, count, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)
    if rule.sinks is not None:
        weights = weights[..., :-1]
    output = weights.view(*shared.shape[:2], -1) @ values[:, mask.start :].to(wide)
    return output.view(heads, count, -1).to(query.dtype)


AttentionInterface.register(ATTENTION_NAME, packed_attention)
