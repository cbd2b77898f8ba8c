# SPDX-License-Identifier: Apache-2.0
"""Step 3 of a round: layouts and masks of trees."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from treespec.device import native
from treespec.device.trees import Trees

_FLOAT_MASKS = ("float16", "bfloat16", "float32", "float64")
MASK_FORMATS = ("bool", *_FLOAT_MASKS, "bits", "intervals", "sequence_ids")


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
    chains = [native.ints(like, batch, nodes) for _ in range(2 if links else 0)]
    layout = TreeLayout(
        native.ints(like, batch, nodes, (nodes + 31) // 32),
        native.ints(like, batch, nodes),
        *chains,
    )
    native.ops.tree_layout(native.stream(like), trees, prefix_length, layout, status)
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
    native.ops.fill_mask(
        native.stream(out), trees, layout, prefix_length, out, status, first=first, window=window
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
    both = native.ints(trees.parent, 2, *trees.parent.shape)
    native.ops.preorder_intervals(native.stream(both), trees, both[0], both[1], status)
    return both.permute(1, 2, 0)


def _sequence_ids(trees: Trees, status: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, nodes = trees.parent.shape
    # L leaves below M - L other nodes: at most L * (M - L + 1) ids.
    capacity = (nodes + 1) ** 2 // 4
    offset, ids = (
        native.ints(trees.parent, batch, nodes + 1),
        native.ints(trees.parent, batch, capacity),
    )
    native.ops.sequence_ids(native.stream(ids), trees, offset, ids, status)
    return offset, ids


def tree_positions(trees: Trees, prefix_length: torch.Tensor) -> torch.Tensor:
    """``[B, M]``: `prefix_length` ``[B]``, the roots' positions, + depth."""
    return trees.depth + prefix_length[:, None]
