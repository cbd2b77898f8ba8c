# SPDX-License-Identifier: Apache-2.0
"""Step 6 of a round: accepted rows of a cache move, in place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from treespec.device import native
from treespec.device.status import new_status
from treespec.device.transfers import to_device
from treespec.device.trees import MOST_NODES


class _Paths(NamedTuple):
    nodes: torch.Tensor
    num_accepted: torch.Tensor


class KvCache:
    """Keys and values of a batch, where they are; made once, committed in every round.

    Parameters
    ----------
    arrays
        ``[B, heads, rows, dim]`` of any dtype, or pages ``[pages, heads, rows of a page, dim]``
        with `block_table`. Rows are contiguous, the rest may be strided: a cache that keeps rows
        outside heads comes as ``array.transpose(1, 2)``.
    block_table
        ``[B, pages of a sequence]``: the page of its rows ``[p * R, (p + 1) * R)``.
    """

    def __init__(
        self, arrays: Sequence[torch.Tensor], block_table: torch.Tensor | None = None
    ) -> None:
        self._native = native.ops.KvCache(list(arrays))
        self._table = _on_device(self._native.table.tobytes(), arrays[0].device)
        self._block_table = block_table
        self._workspace: torch.Tensor | None = None  # made when first needed

    def _zeroed_workspace(self, paths: _Paths) -> torch.Tensor:
        if self._workspace is None:
            size = native.ops.commit_kv_workspace_bytes(len(paths.num_accepted))
            self._workspace = native.workspace(paths.nodes, size).zero_()
        return self._workspace


@functools.cache
def _on_device(table: bytes, device: torch.device) -> torch.Tensor:
    """Kept for good: a captured graph may read it at any time, and copies nothing from the host."""
    numbers = np.frombuffer(table, np.int64).reshape(-1, 6).copy()
    return torch.from_numpy(numbers).to(device)


def commit_kv(
    cache: KvCache,
    nodes: torch.Tensor,
    num_accepted: torch.Tensor,
    prefix_length: torch.Tensor,
    *,
    advance: bool = False,
    status: torch.Tensor,
) -> None:
    """Keep the KV rows of the accepted paths, in place, in all tensors by one launch.

    Row ``prefix_length + nodes[d]`` moves to row ``prefix_length + d``. A sequence whose status is
    set stays as it is.

    Parameters
    ----------
    nodes
        ``[B, C]``: the root and the accepted nodes, ascending; what follows is ignored.
    num_accepted
        ``[B]``; the root is not counted, -1 commits nothing.
    prefix_length
        ``[B]``: the row of the root.
    advance
        Add ``num_accepted + 1`` to `prefix_length` of every sequence that moved.
    """
    paths, table = _Paths(nodes, num_accepted), cache._block_table
    stream = native.stream(nodes)
    common = (stream, cache._table, paths, prefix_length)
    if advance:
        cache._native.commit_and_advance(
            *common, cache._zeroed_workspace(paths), status, block_table=table
        )
    else:
        cache._native.commit(*common, status, block_table=table)


def commit_path(array: torch.Tensor, base: int, nodes: npt.NDArray[np.int32]) -> None:
    """Keep the rows of one accepted path that the host knows, in place.

    Parameters
    ----------
    array
        ``[..., rows, dim]``; rows are contiguous, the rest may be strided.
    base
        Row of the root.
    nodes
        ``[n]``: the root and the accepted nodes. Checked by the caller, as `base` is.

    Raises
    ------
    NotImplementedError
        For paths that are longer than the kernel's.
    """
    if len(nodes) > MOST_NODES:
        raise NotImplementedError(
            f"commit_kv: in CUDA memory nodes must be at most {MOST_NODES}, got {len(nodes)}"
        )
    if len(nodes) == 0:
        return
    blocks = [array if array.dim() > 2 else array[None]]
    for _ in range(array.dim() - 3):
        blocks = [part for block in blocks for part in block]
    cache = native.ops.KvCache([block[None] for block in blocks])
    lengths = np.array([[len(nodes) - 1], [base]], np.int32)
    numbers = (cache.table, nodes[None], *lengths)
    with torch.cuda.device_of(array):
        given = to_device([torch.from_numpy(each) for each in numbers], array.device)
        table, path, num_accepted, prefix_length = given
        paths, status = _Paths(path, num_accepted), new_status(1, array.device)
        cache.commit(native.stream(array), table, paths, prefix_length, status)
