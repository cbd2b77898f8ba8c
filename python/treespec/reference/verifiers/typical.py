# SPDX-License-Identifier: Apache-2.0
"""Typical acceptance: keep what the target finds likely enough. LOSSY.

Source: Cai et al., "Medusa" (2024, arXiv 2401.10774), section 2.3.2, with its defaults.
"""

from __future__ import annotations

from math import exp, fsum, log
from typing import Any

from treespec.reference.coins import Coins
from treespec.reference.rng import RoundKey
from treespec.reference.sampling import Row, inverse_cdf, normalise
from treespec.reference.tree import Tree

EPSILON, DELTA = 0.09, 0.3


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
    """The longest path of acceptable tokens, and a token of the target's at its end.

    Ties: the larger sum of log p, then the lower node id. Random numbers: sample (last node).
    """
    tosses = Coins(RoundKey(seed, sequence_id, position), coins)
    paths: dict[int, tuple[list[int], float]] = {0: ([], 0.0)}
    for node in range(1, tree.num_nodes):
        parent = int(tree.parent[node])
        target, token = normalise(target_probs[parent]), int(tree.token[node])
        if parent in paths and target[token] > threshold(target):
            nodes, score = paths[parent]
            paths[node] = [*nodes, node], score + log(target[token])
    best = min(paths, key=lambda node: (-len(paths[node][0]), -paths[node][1], node))
    return paths[best][0], inverse_cdf(normalise(target_probs[best]), tosses.sample(best))


def threshold(target: Row) -> float:
    """min(epsilon, delta exp(-entropy in nats)); a token must exceed it."""
    entropy = -fsum(float(p) * log(p) for p in target if p > 0)
    return min(EPSILON, DELTA * exp(-entropy))
