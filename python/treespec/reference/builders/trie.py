# SPDX-License-Identifier: Apache-2.0
"""Trie: the best nodes of a scored trie (suffix trees, n-grams, retrieval)."""

from __future__ import annotations

from typing import Any

from treespec.reference.growth import Growth, Node, children_of, finish, total_order
from treespec.reference.tree import Tree


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    max_depth: int | None = None,
) -> Tree:
    """The first ``node_budget`` nodes of the whole trie in the total order; no random numbers."""
    growth = Growth(source)
    if growth.reader.kind != "trie":
        raise ValueError("trie: source must be a Trie")
    layers: list[list[Node]] = [[growth.root]]
    cap = growth.reader.max_depth if max_depth is None else min(max_depth, growth.reader.max_depth)
    while layers[-1] and len(layers) <= cap:
        rows = growth.rows(layers[-1])
        layers.append(
            [c for n, row in zip(layers[-1], rows, strict=True) for c in children_of(n, row)]
        )
    best = total_order(layers[1:])[:node_budget]
    return finish([growth.root, *best], "deterministic")
