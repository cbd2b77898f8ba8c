# SPDX-License-Identifier: Apache-2.0
"""Attention and cache writes as single ONNX operators, with the same result in eager PyTorch.

TensorRT's parser reads both: `Attention` without its cache inputs, `TensorScatter` along axis -2
into a network input (ONNX opset 24).
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

OPSET = 24


def exporting() -> bool:
    """Whether a graph is being traced."""
    return bool(torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export())


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Grouped attention; key heads are not repeated in the graph.

    Parameters
    ----------
    query
        ``[B, heads, N, D]``.
    key, value
        ``[B, kv_heads, L, D]``, ``[B, kv_heads, L, E]``.
    mask
        ``[B, 1, N, L]`` bool, True where a query sees a key.

    Returns
    -------
    torch.Tensor
        ``[B, heads, N, E]``.
    """
    if exporting():
        shape = (*query.shape[:3], value.shape[3])
        result: torch.Tensor = torch.onnx.ops.symbolic(
            "Attention",
            (query, key, value, mask),
            attrs={"scale": float(scale)},
            dtype=query.dtype,
            shape=shape,
            version=OPSET,
        )
        return result
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def write_rows(cache: torch.Tensor, rows: torch.Tensor, write_index: torch.Tensor) -> torch.Tensor:
    """`cache` ``[B, heads, S, D]`` with `rows` ``[B, heads, N, D]`` at ``write_index[b] ...``.

    In a graph, input and output may be the same memory.
    """
    if exporting():
        result: torch.Tensor = torch.onnx.ops.symbolic(
            "TensorScatter",
            (cache, rows, write_index),
            attrs={"axis": -2, "mode": "linear"},
            dtype=cache.dtype,
            shape=cache.shape,
            version=OPSET,
        )
        return result
    written = cache.clone()
    for sequence, start in enumerate(write_index.tolist()):
        written[sequence, :, start : start + rows.shape[2]] = rows[sequence]
    return written
