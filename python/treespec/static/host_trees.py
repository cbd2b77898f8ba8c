# SPDX-License-Identifier: Apache-2.0
"""Trees, laws and keys of a batch as the native core has them, and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from treespec import _core
from treespec.device.trees import Trees
from treespec.device.verify import Law


def written_key(words: Sequence[int]) -> dict[str, int]:
    """A row of `treespec.device.round_keys` as arguments of a native builder."""
    seed, rest = words
    return {
        "seed": seed % 2**64,
        "sequence_id": rest % 2**32,
        "position": (rest >> 32) % 2**32,
    }


def tree_of(trees: Trees, b: int, proposal: str, law: Any) -> _core.TokenTree:
    """That of a sequence, with `draft_rows`."""
    count = int(trees.num_nodes[b])
    assert trees.draw_offset is not None and trees.draw is not None, "trees with their draws"
    ends, draw = trees.draw_offset[b, : count + 1].tolist(), trees.draw[b].tolist()
    draws = [draw[begin:end] for begin, end in itertools.pairwise(ends)]
    token, parent = (column[b, :count].numpy() for column in (trees.token, trees.parent))
    score = None if trees.path_logprob is None else trees.path_logprob[b, :count].numpy()
    return _core.TokenTree(
        token,
        parent=parent,
        proposal=proposal,
        draws=draws,
        draft_rows=law,
        path_logprob=score,
    )


def trees_on_host(
    trees: Trees, law: Law | None, proposal: str, places: Sequence[int]
) -> list[_core.TokenTree]:
    """Copies of some sequences' trees, with scores, draws and law; waits for the device."""
    there = Trees(*(None if column is None else column.cpu() for column in trees))
    arrays = [] if law is None else [array.cpu() for array in law.arrays]
    out = []
    for b in places:
        own = None
        if law is not None:
            own = rows_of(arrays, b, int(there.num_nodes[b]), law.vocab_size)
        out.append(tree_of(there, b, proposal, own))
    return out


def rows_of(law: Sequence[torch.Tensor], b: int, num_nodes: int, vocab_size: int) -> Any:
    """The laws of a sequence's nodes as `draft_rows`."""
    row_of_node, prob, token, row_offset = law
    rows = row_of_node[b, :num_nodes]
    drew = rows >= 0
    ends = [row_offset[rows[drew].long() + end].tolist() for end in (0, 1)]
    spans = [slice(*span) for span in zip(*ends, strict=True)]
    offset = np.cumsum([0, *(span.stop - span.start for span in spans)])
    local = torch.where(drew, drew.cumsum(0) - 1, -1)
    entries = (torch.cat([column[:0], *(column[s] for s in spans)]) for column in (token, prob))
    return vocab_size, local.numpy(), offset, *(column.numpy() for column in entries)


def write_law(trees: Sequence[_core.TokenTree], law: Sequence[torch.Tensor]) -> None:
    """Into the arrays of a `Law`: rows one after the other, as kernels pack them. Row ``b * M + i``
    is that of node i of sequence b, empty if it drew nothing.
    """
    row_of_node, prob, token, row_offset = law
    batch, nodes = row_of_node.shape
    size = np.zeros(batch * nodes, np.int64)
    rows = []
    for b, tree in enumerate(trees):
        for node, entries in _laws_of(tree):
            size[b * nodes + node] = len(entries[0])
            rows.append(entries)
    of_node = np.where(size > 0, np.arange(len(size)), -1).astype(np.int32)
    row_of_node.copy_(torch.from_numpy(of_node).view(batch, nodes))
    row_offset.copy_(torch.from_numpy(np.concatenate([[0], np.cumsum(size)])))
    for out, column in zip((token, prob), zip(*rows, strict=True), strict=bool(rows)):
        out[: size.sum()] = torch.from_numpy(np.concatenate(column))


def _laws_of(
    tree: _core.TokenTree,
) -> Iterator[tuple[int, tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]]:
    """Nodes that drew, with the tokens of their laws and the probabilities."""
    rows = tree.draft_rows
    if rows is None:
        return
    _, row_of_node, row_offset, token, prob = rows
    for node in np.flatnonzero(row_of_node >= 0).tolist():
        begin, end = row_offset[row_of_node[node] :][:2]
        yield node, (token[begin:end], prob[begin:end])
