# SPDX-License-Identifier: Apache-2.0
"""Token-level speculative sampling of a chain.

Sources: Leviathan et al. (2022, arXiv 2211.17192), algorithm 1; Chen et al. (2023, arXiv
2302.01318).
"""

from __future__ import annotations

from typing import Any

from treespec.reference.coins import Coins
from treespec.reference.rng import RoundKey
from treespec.reference.tree import Tree
from treespec.reference.verifiers.naive_tree import token_after
from treespec.reference.walk import follow, rows_at


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

    def solve(node: int) -> int:
        target, draft = rows_at(tree, node, target_probs, laws)
        return token_after(tree, node, target, draft, tosses)

    return follow(tree, solve)
