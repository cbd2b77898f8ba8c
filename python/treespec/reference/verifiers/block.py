# SPDX-License-Identifier: Apache-2.0
"""Block Verification of a chain: the longest prefix that the block as a whole supports.

Source: Sun et al., "Block Verification Accelerates Speculative Decoding" (2024, arXiv 2403.10444),
algorithm 2, in its bottom-up form (verification.md, section 2.2).
"""

from __future__ import annotations

from math import fsum
from typing import Any

import numpy as np

from treespec.reference.coins import Coins
from treespec.reference.rng import RoundKey
from treespec.reference.sampling import Row, inverse_cdf, normalise
from treespec.reference.tree import Tree
from treespec.reference.walk import rows_at


def verify(
    tree: Tree,
    target_probs: Any,
    draft_probs: Any = None,
    *,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    coins: Any = None,
) -> tuple[list[int], int]:
    """Test the nodes from the leaf up, node i with h_i; the first success ends the round.

    Equal to traversal on the same chain, with the same coins. Random numbers: accept (parent, 0)
    per node tested, from the leaf up; then sample (node) at the accepted one.
    """
    laws: Any = tree.draft_probs if draft_probs is None else draft_probs
    tosses = Coins(RoundKey(seed, sequence_id, position), coins)
    path, chances, rows = block_chances(tree, target_probs, laws)
    for i in range(len(path) - 1, 0, -1):
        if tosses.accept(path[i - 1], 0) < chances[i]:
            return path[1 : i + 1], inverse_cdf(rows[i], tosses.sample(path[i]))
    return [], inverse_cdf(rows[0], tosses.sample(0))


def block_chances(
    tree: Tree, target_probs: Any, laws: Any
) -> tuple[list[int], list[float], list[Row]]:
    """Nodes of the chain, h of each, and the row of the next token if that node is the last one.

    w_0 = 1, w_i = min(1, w_{i-1} p/q); S_i = mass of (w_i p_i - q_i)+; h_i = S_i / (S_i + 1 - w_i),
    at the leaf w, at the root 1. A token the law cannot have drawn ends the chain before it.
    """
    path = [0]
    chances: list[float] = []
    rows: list[Row] = []
    weight = 1.0
    while True:
        node = path[-1]
        target, draft = rows_at(tree, node, target_probs, laws)
        child = tree.draws[node][0] if tree.draws[node] else -1
        if draft is None or draft[tree.token[child]] == 0:
            return path, [*chances, weight], [*rows, target]
        chance, row = _stop_here(target, draft, weight)
        chances.append(chance)
        rows.append(row)
        token = int(tree.token[child])
        weight = min(1.0, weight * target[token] / draft[token])
        path.append(child)


def _stop_here(target: Row, draft: Row, weight: float) -> tuple[float, Row]:
    left = np.maximum(weight * target - draft, 0.0)
    mass = fsum(left)
    if mass > 0:
        return mass / (mass + (1.0 - weight)), normalise(left)
    # w = 1 and p = q: the next node was certain. Otherwise no mass: never here.
    return (1.0 if weight == 1 else 0.0), target


def coin_order(tree: Tree) -> list[tuple[str, int, int]]:
    """From the leaf up; then the samples."""
    drawing = [node for node in range(tree.num_nodes) if tree.draws[node]]
    tests = sorted(drawing, key=lambda node: -int(tree.depth[node]))
    return [
        *(("accept", node, 0) for node in tests),
        *(("sample", node, 0) for node in range(tree.num_nodes)),
    ]
