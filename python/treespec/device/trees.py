# SPDX-License-Identifier: Apache-2.0
"""Trees of a batch in a fixed envelope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from treespec._core import TokenTree

# The largest envelope, the root counted.
MOST_NODES = 4096


class Trees(NamedTuple):
    """Trees of a batch in a fixed envelope.

    Attributes
    ----------
    num_nodes
        ``[B]``, in [1, M]; node 0 is the root.
    token, parent, depth, path_logprob
        ``[B, M]``, the arrays of `TokenTree`, the last float32. Padding nodes have token 0, parent
        -1, depth 0 and score 0.
    draw_offset, draw
        ``[B, M + 1]`` and ``[B, draws]``: the draws of node i are
        ``draw[b, draw_offset[b, i]:draw_offset[b, i + 1]]``. None where nobody reads them.
    """

    num_nodes: torch.Tensor
    token: torch.Tensor
    parent: torch.Tensor
    depth: torch.Tensor
    path_logprob: torch.Tensor
    draw_offset: torch.Tensor | None = None
    draw: torch.Tensor | None = None

    @classmethod
    def empty(cls, batch: int, max_nodes: int, device: Any = "cuda") -> Trees:
        """Room for trees, unwritten; a draw per drafted node."""

        def ints(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        token, parent, depth = (ints(batch, max_nodes) for _ in range(3))
        score = torch.empty((batch, max_nodes), dtype=torch.float32, device=device)
        offset, draw = ints(batch, max_nodes + 1), ints(batch, max_nodes - 1)
        return cls(ints(batch), token, parent, depth, score, offset, draw)

    @classmethod
    def pack(
        cls, trees: Sequence[TokenTree], max_nodes: int | None = None, device: Any = "cuda"
    ) -> Trees:
        """Copy trees from the host into an envelope of `max_nodes`, or of the largest."""
        largest = max(tree.num_nodes for tree in trees)
        nodes = largest if max_nodes is None else max_nodes
        if nodes < largest:
            raise ValueError(f"Trees.pack: max_nodes must be at least {largest}, got {nodes}")
        draws = [[node for of_node in tree.draws for node in of_node] for tree in trees]
        ends = [np.cumsum([0, *map(len, tree.draws)]) for tree in trees]
        columns = (
            np.array([tree.num_nodes for tree in trees], np.int32),
            _padded([tree.token for tree in trees], nodes, 0),
            _padded([tree.parent for tree in trees], nodes, -1),
            _padded([tree.depth for tree in trees], nodes, 0),
            _padded([tree.path_logprob for tree in trees], nodes, 0, np.float32),
            np.stack([np.pad(end, (0, nodes + 1 - len(end)), "edge") for end in ends]),
            _padded(draws, max(nodes - 1, *map(len, draws)), 0),
        )
        return cls(*(torch.from_numpy(_as_stored(column)).to(device) for column in columns))


def _padded(rows: Sequence[Any], width: int, fill: int, dtype: Any = np.int32) -> Any:
    out = np.full((len(rows), width), fill, dtype)
    for to, row in zip(out, rows, strict=True):
        to[: len(row)] = row
    return out


def _as_stored(column: Any) -> Any:
    return column if column.dtype == np.float32 else column.astype(np.int32)
