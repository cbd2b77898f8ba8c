# SPDX-License-Identifier: Apache-2.0
"""The optimal solver for the likeliest tokens plus one draw from the rest.

Source: verification.md, section 4.4, for the trees of "Towards optimal multi-draft speculative
decoding" (2025, arXiv 2502.18779).
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
    """Accept the draw with min(1, p/q'), q' its own law; else draw y from norm((p - q')+).

    The likeliest tokens keep their full target mass in the residual, so that y may be one of them
    and the walk goes on there. Random numbers: accept (node, last draw), then sample (node).
    """
    laws: Any = tree.draft_probs if draft_probs is None else draft_probs
    tosses = Coins(RoundKey(seed, sequence_id, position), coins)

    def solve(node: int) -> int:
        target, draft = rows_at(tree, node, target_probs, laws)
        return _token_after(tree, node, target, draft, tosses)

    return follow(tree, solve)


def _token_after(tree: Tree, node: int, target: Row, draft: Row | None, tosses: Coins) -> int:
    law = None if draft is None else law_of_draw(tree, node, draft)
    if law is None:
        return inverse_cdf(target, tosses.sample(node))
    last = len(tree.draws[node]) - 1
    token = int(tree.token[tree.draws[node][last]])
    if accepts(tosses.accept(node, last), target, law, token):
        return token
    left = residual(target, law)
    return token if left is None else inverse_cdf(left, tosses.sample(node))


def law_of_draw(tree: Tree, node: int, draft: Row) -> Row | None:
    """q': the draft law outside the tokens listed before the draw.

    None if it cannot have drawn the last token: then all are fixed, and only the target may draw.
    """
    *top, last = (int(tree.token[child]) for child in tree.draws[node])
    rest = draft.copy()
    rest[top] = 0.0
    return normalise(rest) if np.any(rest > 0) and rest[last] > 0 else None
