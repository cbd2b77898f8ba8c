# SPDX-License-Identifier: Apache-2.0
"""What trees of all kinds grow by: budgets, frontiers, and the shapes of fixed ones."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from treespec import _core
from treespec.device import native
from treespec.device.trees import Trees


class Request(NamedTuple):
    """`treespec::device::BuildRequest`, and the lengths of `PathOptions`."""

    node_budget: torch.Tensor
    root_token: torch.Tensor | None
    lengths: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        trees: Trees,
        budgets: torch.Tensor | None = None,
        root_token: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> Request:
        """The envelope of the trees for all sequences, unless they have budgets of their own."""
        if budgets is None:
            batch, nodes = trees.parent.shape
            budgets = native.ints(trees.parent, batch).fill_(nodes - 1)
        return cls(budgets, root_token, lengths)


def check_lengths(who: str, builder: str, lengths: torch.Tensor | None) -> None:
    """ValueError for lengths of sequences where the builder has none."""
    if lengths is not None and builder != "delayed":
        raise ValueError(f"{who}: lengths must be None unless builder is 'delayed', got {builder}")


def round_keys(
    seed: torch.Tensor, sequence_id: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """Keys of rounds, as kernels that draw read them.

    Parameters
    ----------
    seed
        ``[B]`` int64, read as unsigned.
    sequence_id, position
        ``[B]`` integers, of which 32 bits count.

    Returns
    -------
    torch.Tensor
        ``[B, 2]`` int64.
    """
    return torch.stack([seed, sequence_id.long() % 2**32 + (position.long() << 32)], 1)


class Frontier(NamedTuple):
    """`treespec::device::Frontier`."""

    num_nodes: torch.Tensor
    index: torch.Tensor
    parent: torch.Tensor
    token: torch.Tensor
    depth: torch.Tensor
    state: torch.Tensor

    @classmethod
    def empty(cls, like: torch.Tensor, batch: int, room: int) -> Frontier:
        """Room for that many nodes of each sequence, at least for the root."""
        columns = [native.ints(like, batch, max(room, 1)) for _ in range(5)]
        return cls(native.ints(like, batch), *columns)


class Shape(NamedTuple):
    """`treespec::device::ShapeSource`, and how deep it is."""

    parent: torch.Tensor
    whole_levels: bool
    depth: int

    @classmethod
    def of(
        cls,
        name: str,
        options: Mapping[str, Any],
        node_budget: int,
        max_depth: int,
        device: torch.device,
    ) -> Shape:
        """That of a fixed builder with these bounds."""
        # Draws may repeat and leave places empty, the likeliest tokens never do.
        own = {key: value for key, value in options.items() if key != "proposal"}
        places = _places(name, json.dumps(own, sort_keys=True), node_budget, max_depth)
        parent = native.constant(places, torch.int32, device)
        # What an expansion vector that nobody has chosen is cut to.
        levels = name in ("kary", "top_plus_one") and "expansion" not in options
        return cls(parent, levels, _depth_of(places))


@functools.lru_cache(maxsize=64)
def _places(name: str, options: str, node_budget: int, max_depth: int) -> tuple[int, ...]:
    """Parents of the shape's places, from a tree of the builder's that lacks none of them."""
    growth = _core.TreeBuilder(name, **json.loads(options)).begin(node_budget, max_depth)
    row = -1e-3 * np.arange(1, node_budget + 2, dtype=np.float32)
    while size := len(growth.frontier()):
        growth.supply(np.tile(row, (size, 1)))
    return tuple(growth.finish().parent[1:].tolist())


def _depth_of(parents: tuple[int, ...]) -> int:
    depth = [0]
    for parent in parents:
        depth.append(depth[parent] + 1)
    return max(depth)
