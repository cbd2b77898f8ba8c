# SPDX-License-Identifier: Apache-2.0
"""Single rows of drawn supersets: how far the laws are apart, and what one level would accept."""

from __future__ import annotations

import numpy as np

from treespec import _core
from treespec.selector.actions import DEPTH, PATHS
from treespec.selector.supersets import Array, Superset


def distances(superset: Superset) -> tuple[Array, Array]:
    """``||p - q||_1`` by depth, means over drawn paths, and along the main path alone."""
    gap = np.abs(superset.trie.target - superset.trie.draft).sum(axis=1)
    sums, counts = np.zeros(DEPTH), np.zeros(DEPTH)
    for path in superset.paths():
        inner = path[:-1]  # nothing was drawn after a leaf
        sums[: len(inner)] += gap[inner]
        counts[: len(inner)] += 1
    first = superset.main[:-1]
    return sums / counts, gap[first]


def one_level(superset: Superset) -> dict[str, Array]:
    """``[16]``: chance that a child is accepted below the nodes of the main path."""
    first = superset.main[:-1]
    target, draft = superset.trie.target[first], superset.trie.draft[first]
    most = [
        _core.alpha_star(p.tolist(), q.tolist(), PATHS, "iid")
        for p, q in zip(target, draft, strict=True)
    ]
    accepted = [rejection(target, draft, draws) for draws in (1, PATHS)]
    return {"1 draw": accepted[0], "4 draws": accepted[1], "4 draws, optimum": np.array(most)}


def rejection(target: Array, draft: Array, draws: int) -> Array:
    """Acceptance of recursive rejection with independent draws, row by row."""
    left, rejected = target, np.ones(len(target))
    for _ in range(draws):
        rejected = rejected * (1 - np.minimum(left, draft).sum(axis=1)).clip(0)
        left = (left - draft).clip(0)
        left = left / np.maximum(left.sum(axis=1, keepdims=True), 1e-300)
    return 1 - rejected
