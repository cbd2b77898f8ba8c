# SPDX-License-Identifier: Apache-2.0
"""OPT-Tree: the tree of at most n nodes with the largest expected accepted length.

Source: Wang et al., "OPT-Tree" (2024, arXiv 2406.17276), algorithm 1. Written without pruning:
every layer is expanded whole and its n best kept, so that a pruned builder has something to equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from treespec.reference.growth import Growth, Node, children_of, finish, total_order
from treespec.reference.scores import Calibration, check_scores, rescore
from treespec.reference.tree import Tree


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    max_depth: int = 10,
    threshold: float = 0.0,
    floor: float = 0.0,
    score_temperature: float = 1.0,
    calibration: Calibration | None = None,
) -> Tree:
    """The ``node_budget`` best nodes of depth <= ``max_depth``; takes no random numbers.

    ``threshold`` is the paper's delta: stop when a layer adds no more than this to the expected
    accepted length E = sum of exp(score) over the best nodes, or cannot. The first layer is always
    drafted. Nodes whose score is below ln(``floor``) are left out, whatever the budget.
    """
    check_scores("opt_tree", score_temperature, calibration)
    growth = Growth(source)
    layers: list[list[Node]] = []
    best: list[Node] = []
    layer, expected = [growth.root], 0.0
    lowest = np.float32(np.log(np.float64(floor))) if floor > 0 else -np.inf
    while len(layers) < min(max_depth, growth.reader.max_depth) and node_budget > 0:
        # theta: a child must beat it to enter the tree; scores only fall along a path.
        theta = best[node_budget - 1].score if len(best) >= node_budget else lowest
        useful = [n for n in layer if n.score > theta and n in best]
        mass = sum(np.exp(np.float64(n.score)) for n in useful)
        if layers and (not useful or (threshold > 0 and mass <= threshold)):
            break
        rows = growth.rows(layer)
        new = [
            child
            for node, row in zip(layer, rows, strict=True)
            for child in children_of(node, rescore(row, score_temperature, calibration))
            if child.score >= lowest
        ]
        # The n best of a layer suffice: a node beaten by n of its own depth is not in the tree.
        layer = total_order([*layers, new])
        layer = [node for node in layer if node.depth == len(layers) + 1][:node_budget]
        layers.append(layer)
        best = total_order(layers)[:node_budget]
        before, expected = expected, sum(float(np.exp(np.float64(n.score))) for n in best)
        if threshold > 0 and expected - before <= threshold:
            break
    return finish([growth.root, *best], "deterministic")
