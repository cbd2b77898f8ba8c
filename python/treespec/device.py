# SPDX-License-Identifier: Apache-2.0
"""The steps of a round on batches in CUDA memory: `treespec.ops` without the host in the way.

Arrays are torch tensors on the current GPU. Every function queues its work on torch's current
stream and returns at once; nothing is read back, so all of it may be captured in a CUDA graph.
Lengths are tensors, sizes of arrays are envelopes. What a kernel finds wrong with the data goes to
`status`, an int32 ``[B]`` tensor per round that `new_status` makes and `check_status` reads.

Letters in shapes: B sequences; M nodes, the root included; D levels of R lists of K candidates;
C = largest depth + 1; V vocabulary. All integers are int32. In a build without CUDA everything
here raises ``NotImplementedError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from treespec import _core
from treespec._core import TokenTree

_ops: Any = _core.device

_STATUS_TEXTS = {
    1: "NaN where a score or probability was read",
    2: "a row without a token that may be drawn",
    4: "num_nodes, parents, depths, draws or a path break the rules of a tree",
    8: "a row, page or capacity beyond the envelope",
}
_FLOAT_MASKS = ("float16", "bfloat16", "float32", "float64")
MASK_FORMATS = ("bool", *_FLOAT_MASKS, "bits", "intervals", "sequence_ids")


def new_status(batch: int, device: Any = "cuda") -> torch.Tensor:
    """``[B]`` status words, all in order."""
    return torch.zeros(batch, dtype=torch.int32, device=device)


def check_status(status: torch.Tensor) -> None:
    """Wait for the device, and raise for what it found in its data.

    Raises
    ------
    ValueError
        With the first sequence that is not in order, and why.
    """
    for sequence, word in enumerate(status.tolist()):
        if word:
            reasons = [text for bit, text in _STATUS_TEXTS.items() if word & bit]
            raise ValueError(f"status: sequence {sequence} of the batch: {'; '.join(reasons)}")


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
            _padded(draws, max(map(len, draws)), 0),
        )
        return cls(*(torch.from_numpy(_as_stored(column)).to(device) for column in columns))


def _padded(rows: Sequence[Any], width: int, fill: int, dtype: Any = np.int32) -> Any:
    out = np.full((len(rows), width), fill, dtype)
    for to, row in zip(out, rows, strict=True):
        to[: len(row)] = row
    return out


def _as_stored(column: Any) -> Any:
    return column if column.dtype == np.float32 else column.astype(np.int32)


class TreeLayout(NamedTuple):
    """Topology as attention and verification read it.

    Attributes
    ----------
    ancestor_bits
        ``[B, M, ceil(M / 32)]``: bit ``j % 32`` of word ``j // 32`` in row i says that j is i or
        its ancestor. A padding node sees itself and is seen by nobody.
    position
        ``[B, M]``: prefix length + depth.
    first_child, next_sibling
        ``[B, M]``, -1 for none; None where not asked for.
    """

    ancestor_bits: torch.Tensor
    position: torch.Tensor
    first_child: torch.Tensor | None = None
    next_sibling: torch.Tensor | None = None


class CandidateLists(NamedTuple):
    """Ranked candidates.

    Attributes
    ----------
    token, logprob
        As arrays of `treespec.Marginals` ``[B, D, K]`` or, with `next`, of `treespec.Transitions`
        ``[B, D, R, K]``; natural logarithms, -inf pads.
    next
        ``[B, D, R, K]``: the list of the next level that continues a candidate, -1 for none.
    """

    token: torch.Tensor
    logprob: torch.Tensor
    next: torch.Tensor | None = None


class _BuildRequest(NamedTuple):
    node_budget: torch.Tensor
    root_token: torch.Tensor | None


class _Paths(NamedTuple):
    nodes: torch.Tensor
    num_accepted: torch.Tensor


def _stream(tensor: torch.Tensor) -> int:
    """Torch's current stream; host tensors have none, and the ops refuse them."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _ints(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return like.new_empty(shape, dtype=torch.int32)


def _workspace(like: torch.Tensor, size: int) -> torch.Tensor:
    return like.new_empty(size, dtype=torch.uint8)


# --- draft and build ------------------------------------------------------------------------------


def rank_candidates(
    logits: torch.Tensor,
    width: int,
    temperature: float = 1.0,
    *,
    num_rows: torch.Tensor | None = None,
    status: torch.Tensor,
) -> CandidateLists:
    """The likeliest tokens of each row, as `treespec.Marginals.from_logits` ranks them.

    Parameters
    ----------
    logits
        ``[B, R, V]`` float32, float16 or bfloat16.
    width
        K, in [1, 1024]; rows with fewer tokens are padded with -inf.
    temperature
        Of the softmax.
    num_rows
        ``[B]``: rows from ``num_rows[b]`` on are not read, their lists are empty.

    Returns
    -------
    CandidateLists
        ``[B, R, K]``, without `next`.
    """
    batch, rows, vocab_size = logits.shape
    lists = CandidateLists(
        _ints(logits, batch, rows, width),
        logits.new_empty((batch, rows, width), dtype=torch.float32),
    )
    size = _ops.rank_candidates_workspace_bytes(batch * rows, vocab_size)
    workspace = _workspace(logits, size)
    _ops.rank_candidates(
        _stream(logits), logits, temperature, workspace, lists, status, num_rows=num_rows
    )
    return lists


def build_tree(
    name: str,
    lists: CandidateLists,
    node_budget: int,
    *,
    max_depth: int | None = None,
    budgets: torch.Tensor | None = None,
    root_token: torch.Tensor | None = None,
    status: torch.Tensor,
) -> Trees:
    """Grow one draft tree per sequence, as `treespec.build_tree` does. Takes no random numbers.

    Parameters
    ----------
    name
        ``"dtree"``.
    lists
        Tables of candidates ``[B, D, K]``, or ``[B, D, R, K]`` with `next`.
    node_budget
        M - 1: the most drafted nodes of a tree, at most 1,024.
    max_depth
        Of a drafted node; None: that of the tables.
    budgets
        ``[B]``: a budget for each sequence, at most `node_budget`.
    root_token
        ``[B]``; None: 0.

    Returns
    -------
    Trees
        In pop order.
    """
    if name != "dtree":
        raise ValueError(f"device.build_tree: name must be 'dtree', got {name!r}")
    batch, depth = lists.token.shape[:2]
    if budgets is None:
        budgets = _ints(lists.token, batch).fill_(node_budget)
    trees = Trees.empty(batch, node_budget + 1, lists.token.device)
    _ops.build_best_first(
        _stream(lists.token),
        lists,
        depth if max_depth is None else max_depth,
        _BuildRequest(budgets, root_token),
        trees,
        status,
    )
    return trees


# --- mask -----------------------------------------------------------------------------------------


def tree_layout(
    trees: Trees, prefix_length: torch.Tensor, *, links: bool = False, status: torch.Tensor
) -> TreeLayout:
    """Ancestor bits and positions, in one launch.

    Parameters
    ----------
    prefix_length
        ``[B]``: the positions of the roots.
    links
        Whether `first_child` and `next_sibling` are wanted.
    """
    batch, nodes = trees.parent.shape
    like = trees.parent
    chains = [_ints(like, batch, nodes) for _ in range(2 if links else 0)]
    layout = TreeLayout(
        _ints(like, batch, nodes, (nodes + 31) // 32), _ints(like, batch, nodes), *chains
    )
    _ops.tree_layout(_stream(like), trees, prefix_length, layout, status)
    return layout


def fill_mask(
    out: torch.Tensor,
    trees: Trees,
    layout: TreeLayout,
    prefix_length: torch.Tensor,
    *,
    first: int = 0,
    window: int = 0,
    status: torch.Tensor,
) -> None:
    """Write an attention mask over a cache in which node j has row ``prefix_length + j``.

    Parameters
    ----------
    out
        ``[B, M - first, columns]``; bool (True is visible) or floating (0 is visible, the lowest
        finite value hidden). Columns behind the last node are hidden.
    layout
        Of `tree_layout`, with the same `prefix_length`.
    first
        Queries are the nodes from here on.
    window
        Above 0 it hides keys with query position - key position >= `window`.
    """
    _ops.fill_mask(
        _stream(out), trees, layout, prefix_length, out, status, first=first, window=window
    )


def ancestor_mask(
    trees: Trees,
    format: str = "bool",
    prefix_length: torch.Tensor | None = None,
    *,
    columns: int | None = None,
    status: torch.Tensor,
) -> Any:
    """Who may attend to whom, `treespec.ancestor_mask` for a batch.

    A step of a loop that needs positions as well takes `tree_layout` and `fill_mask`.

    Parameters
    ----------
    format
        ``"bool"``, ``"float16"``, ``"bfloat16"``, ``"float32"``, ``"float64"``:
        ``[B, M, columns]``, see `fill_mask`; ``"bits"``: ``[B, M, ceil(M / 32)]``, see
        `TreeLayout`; ``"intervals"``: ``[B, M, 2]`` (rank, end), j is i or its ancestor iff
        rank[j] <= rank[i] < end[j]; ``"sequence_ids"``: (offset ``[B, M + 1]``, id), the leaves
        below each node. The last three leave the prefix out.
    prefix_length
        ``[B]``: committed tokens before the root; None: 0.
    columns
        Rows of the cache; must be given for bool and floating masks.
    """
    if format not in MASK_FORMATS:
        known = ", ".join(MASK_FORMATS)
        raise ValueError(f"ancestor_mask: format must be one of {known}; got {format!r}")
    if format == "intervals":
        return _intervals(trees, status)
    if format == "sequence_ids":
        return _sequence_ids(trees, status)
    if prefix_length is None:
        prefix_length = torch.zeros_like(trees.num_nodes)
    layout = tree_layout(trees, prefix_length, status=status)
    if format == "bits":
        return layout.ancestor_bits
    if columns is None:
        raise ValueError(f"ancestor_mask: columns must be given for format {format!r}")
    shape = (*trees.parent.shape, columns)
    out = trees.parent.new_empty(shape, dtype=getattr(torch, format))
    fill_mask(out, trees, layout, prefix_length, status=status)
    return out


def _intervals(trees: Trees, status: torch.Tensor) -> torch.Tensor:
    both = _ints(trees.parent, 2, *trees.parent.shape)
    _ops.preorder_intervals(_stream(both), trees, both[0], both[1], status)
    return both.permute(1, 2, 0)


def _sequence_ids(trees: Trees, status: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, nodes = trees.parent.shape
    # L leaves below M - L other nodes: at most L * (M - L + 1) ids.
    capacity = (nodes + 1) ** 2 // 4
    offset, ids = _ints(trees.parent, batch, nodes + 1), _ints(trees.parent, batch, capacity)
    _ops.sequence_ids(_stream(ids), trees, offset, ids, status)
    return offset, ids


def tree_positions(trees: Trees, prefix_length: torch.Tensor) -> torch.Tensor:
    """``[B, M]``: `prefix_length` ``[B]``, the roots' positions, + depth."""
    return trees.depth + prefix_length[:, None]


# --- commit ---------------------------------------------------------------------------------------


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
        self._native = _ops.KvCache(list(arrays))
        self._table = torch.from_numpy(self._native.table).to(arrays[0].device)
        self._block_table = block_table
        batch = self._native.num_pages if block_table is None else len(block_table)
        self._workspace = _workspace(arrays[0], _ops.commit_kv_workspace_bytes(batch)).zero_()


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
    stream = _stream(nodes)
    common = (stream, cache._table, paths, prefix_length)
    if advance:
        cache._native.commit_and_advance(*common, cache._workspace, status, block_table=table)
    else:
        cache._native.commit(*common, status, block_table=table)
