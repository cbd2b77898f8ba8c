# SPDX-License-Identifier: Apache-2.0
"""Who may attend to whom, in every format; each computed from the definition by parent walks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def ancestors_or_self(parent: Any, node: int) -> list[int]:
    """``node`` and its ancestors, bottom up; the root is last."""
    chain = [node]
    while parent[chain[-1]] >= 0:
        chain.append(int(parent[chain[-1]]))
    return chain


def visible(parent: Any) -> npt.NDArray[np.bool_]:
    """[N, N] bool: row i sees i and its ancestors."""
    mask = np.zeros((len(parent), len(parent)), dtype=np.bool_)
    for node in range(len(parent)):
        mask[node, ancestors_or_self(parent, node)] = True
    return mask


def bool_mask(
    parent: Any, prefix_length: int = 0, first: int = 0, window: int = 0
) -> npt.NDArray[np.bool_]:
    """[N - first, prefix_length + N] bool; ``window`` > 0 hides keys ``window`` or more back."""
    tree = visible(parent)
    prefix = np.ones((len(parent), prefix_length), dtype=np.bool_)
    mask = np.concatenate([prefix, tree], axis=1)
    if window > 0:
        node_position = positions(parent, prefix_length)
        key_position = np.concatenate([np.arange(prefix_length), node_position])
        mask &= node_position[:, None] - key_position[None, :] < window
    return mask[first:]


def additive_mask(
    parent: Any,
    prefix_length: int = 0,
    dtype: str = "float32",
    first: int = 0,
    window: int = 0,
) -> npt.NDArray[Any]:
    """The same with 0 where visible and the lowest finite value of ``dtype`` where hidden.

    bfloat16 has no NumPy type: its lowest value is returned as float32, which holds it exactly.
    """
    lowest: Any
    if dtype == "bfloat16":
        lowest = np.array([0xFF7F0000], dtype=np.uint32).view(np.float32)[0]
    else:
        lowest = np.finfo(dtype).min
    mask = bool_mask(parent, prefix_length, first, window)
    return np.where(mask, np.zeros_like(lowest), lowest)


def bits(parent: Any) -> npt.NDArray[np.uint32]:
    """[N, ceil(N / 32)] uint32: bit j % 32 of word j // 32 in row i says that i sees j."""
    num_nodes = len(parent)
    words = np.zeros((num_nodes, (num_nodes + 31) // 32), dtype=np.uint32)
    for i, j in zip(*np.nonzero(visible(parent)), strict=True):
        words[i, j // 32] |= np.uint32(1 << (int(j) % 32))
    return words


def intervals(parent: Any) -> npt.NDArray[np.int32]:
    """[N, 2] int32 (rank, end): j is i or its ancestor iff ``rank[j] <= rank[i] < end[j]``.

    Preorder with children by id.
    """
    result = np.zeros((len(parent), 2), dtype=np.int32)

    def visit(node: int, rank: int) -> int:
        end = rank + 1
        for child in range(node + 1, len(parent)):
            if parent[child] == node:
                end = visit(child, end)
        result[node] = rank, end
        return end

    visit(0, 0)
    return result


def sequence_ids(parent: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """(offset [N + 1], id): leaves are numbered by id; node i belongs to the leaves below it."""
    has_child = {int(p) for p in parent}
    leaves = [node for node in range(len(parent)) if node not in has_child]
    offset, ids = [0], []
    for node in range(len(parent)):
        ids += [s for s, leaf in enumerate(leaves) if node in ancestors_or_self(parent, leaf)]
        offset.append(len(ids))
    return np.array(offset, dtype=np.int32), np.array(ids, dtype=np.int32)


def positions(parent: Any, prefix_length: int = 0) -> npt.NDArray[np.int32]:
    """[N] int32: prefix_length + depth."""
    depth = [len(ancestors_or_self(parent, node)) - 1 for node in range(len(parent))]
    return np.array(depth, dtype=np.int32) + np.int32(prefix_length)
