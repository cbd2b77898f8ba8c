# SPDX-License-Identifier: Apache-2.0
"""Recursive rejection sampling over the draws of a node, in draw order.

Sources: iid draws: SpecInfer (Miao et al., 2023, arXiv 2305.09781), multi-step sampling;
draws without replacement: Sequoia (Chen et al., 2024, arXiv 2402.12374), algorithm 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from treespec.reference.coins import Coins
from treespec.reference.residual import accepts, residual
from treespec.reference.rng import RoundKey
from treespec.reference.sampling import Row, inverse_cdf, normalise
from treespec.reference.tree import Tree
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
    """At each node: accept a draw with min(1, P/Q), else P becomes norm((P - Q)+) and, without
    replacement, Q becomes norm(Q without the token); after the last rejection sample P.
    """
    laws: Any = tree.draft_probs if draft_probs is None else draft_probs
    tosses = Coins(RoundKey(seed, sequence_id, position), coins)

    def solve(node: int) -> int:
        target, draft = rows_at(tree, node, target_probs, laws)
        child, target = _first_accepted(tree, node, target, draft, tosses)
        return int(tree.token[child]) if child >= 0 else inverse_cdf(target, tosses.sample(node))

    return follow(tree, solve)


def _first_accepted(
    tree: Tree, node: int, target: Row, draft: Row | None, tosses: Coins
) -> tuple[int, Row]:
    """The child that is accepted, or -1 and the residual after all rejections."""
    for j, child in enumerate(tree.draws[node]):
        token = int(tree.token[child])
        if draft is None or draft[token] == 0:
            continue  # exhausted, or outside the support: no test, no update
        if accepts(tosses.accept(node, j), target, draft, token):
            return child, target
        left = residual(target, draft)
        if left is None:
            return child, target  # P = Q up to rounding: acceptance was certain
        target = left
        if tree.proposal == "without_replacement":
            draft = draft.copy()
            draft[token] = 0.0
            draft = normalise(draft) if np.any(draft > 0) else None
    return -1, target
