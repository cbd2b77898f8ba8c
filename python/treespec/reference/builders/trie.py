# SPDX-License-Identifier: Apache-2.0
"""Trie: the best nodes of a scored trie (suffix trees, n-grams, retrieval)."""

from __future__ import annotations

from typing import Any

from treespec.reference.growth import Growth, Node, children_of, depth_cap, finish, total_order
from treespec.reference.scores import Calibration, check_scores, rescore
from treespec.reference.tree import Tree


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    max_depth: int | None = None,
    score_temperature: float = 1.0,
    calibration: Calibration | None = None,
) -> Tree:
    """The first ``node_budget`` nodes of the whole trie in the total order; no random numbers."""
    check_scores("trie", score_temperature, calibration)
    growth = Growth(source)
    if growth.reader.kind != "trie":
        raise ValueError("trie: source must be a Trie")
    layers: list[list[Node]] = [[growth.root]]
    cap = depth_cap(source, max_depth)
    while layers[-1] and len(layers) <= cap:
        rows = growth.rows(layers[-1])
        layers.append(
            [
                child
                for node, row in zip(layers[-1], rows, strict=True)
                for child in children_of(node, rescore(row, score_temperature, calibration))
            ]
        )
    best = total_order(layers[1:])[:node_budget]
    return finish([growth.root, *best], "deterministic")
