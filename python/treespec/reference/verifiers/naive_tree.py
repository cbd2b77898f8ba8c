# SPDX-License-Identifier: Apache-2.0
"""NaiveTree: the token-level rule on the first draw; the other draws may carry the correction.

Source: the baseline of "delayed tree expansion" (2026, arXiv 2602.16994), section 2; the rule is
that of Leviathan et al. (2022, arXiv 2211.17192), algorithm 1.
"""

from __future__ import annotations

from typing import Any

from treespec.reference.coins import Coins
from treespec.reference.residual import accepts, residual
from treespec.reference.rng import RoundKey
from treespec.reference.sampling import Row, inverse_cdf
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
    """Accept the first draw with min(1, p/q), else draw y from norm((p - q)+) and follow it.

    Random numbers: accept (node, 0), then sample (node), at each node of the path.
    """
    laws: Any = tree.draft_probs if draft_probs is None else draft_probs
    tosses = Coins(RoundKey(seed, sequence_id, position), coins)

    def solve(node: int) -> int:
        target, draft = rows_at(tree, node, target_probs, laws)
        return token_after(tree, node, target, draft, tosses)

    return follow(tree, solve)


def token_after(tree: Tree, node: int, target: Row, draft: Row | None, tosses: Coins) -> int:
    """The token-level rule for the first draw of a node; None: nothing was drawn."""
    if draft is None:
        return inverse_cdf(target, tosses.sample(node))
    token = int(tree.token[tree.draws[node][0]])
    if draft[token] == 0:  # a law that cannot have drawn it: no test, no update
        return inverse_cdf(target, tosses.sample(node))
    if accepts(tosses.accept(node, 0), target, draft, token):
        return token
    left = residual(target, draft)
    return token if left is None else inverse_cdf(left, tosses.sample(node))
