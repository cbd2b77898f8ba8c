# SPDX-License-Identifier: Apache-2.0
"""Token-level speculative sampling of a chain.

Sources: Leviathan et al. (2022, arXiv 2211.17192), algorithm 1; Chen et al. (2023, arXiv
2302.01318).
"""

from __future__ import annotations

from typing import Any

from treespec.reference.coins import Coins
from treespec.reference.residual import accepts, residual, wide
from treespec.reference.rng import RoundKey
from treespec.reference.sampling import inverse_cdf, normalise
from treespec.reference.tree import Tree


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
    """Accept with min(1, p/q); at the first rejection sample norm((p - q)+), at the end p."""
    laws: Any = tree.draft_probs if draft_probs is None else draft_probs
    tosses = Coins(RoundKey(seed, sequence_id, position), coins)
    accepted: list[int] = []
    node = 0
    while True:
        target = normalise(target_probs[node])
        if not tree.draws[node]:
            return accepted, inverse_cdf(target, tosses.sample(node))
        child = tree.draws[node][0]
        token = int(tree.token[child])
        draft = normalise(wide(laws[node], len(target)))
        if draft[token] == 0:  # a law that cannot have drawn it: no test, no update
            return accepted, inverse_cdf(target, tosses.sample(node))
        if not accepts(tosses.accept(node, 0), target, draft, token):
            left = residual(target, draft)
            if left is not None:
                return accepted, inverse_cdf(left, tosses.sample(node))
        accepted.append(child)
        node = child
