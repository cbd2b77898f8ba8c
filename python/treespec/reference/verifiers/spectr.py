# SPDX-License-Identifier: Apache-2.0
"""K-SEQ: every draw is tested against the same scaled law.

Source: Sun et al., "SpecTr" (2023, arXiv 2310.15141), algorithm 3 and theorem 2.
"""

from __future__ import annotations

from math import fsum
from typing import Any

import numpy as np

from treespec.reference.coins import Coins
from treespec.reference.residual import accepts
from treespec.reference.rng import RoundKey
from treespec.reference.sampling import Row, inverse_cdf, normalise
from treespec.reference.tree import Tree
from treespec.reference.walk import drawn_tokens, follow, rows_at

BISECTION_STEPS = 52


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
    """Accept a draw with min(1, p / (rho q)); else draw y from the residual and follow it.

    Random numbers: accept (node, j) for each draw tested, repeats included, then sample (node).
    """
    laws: Any = tree.draft_probs if draft_probs is None else draft_probs
    tosses = Coins(RoundKey(seed, sequence_id, position), coins)

    def solve(node: int) -> int:
        target, draft = rows_at(tree, node, target_probs, laws)
        return _token_after(tree, node, target, draft, tosses)

    return follow(tree, solve)


def _token_after(tree: Tree, node: int, target: Row, draft: Row | None, tosses: Coins) -> int:
    if draft is None:
        return inverse_cdf(target, tosses.sample(node))
    scale, left = k_seq(target, draft, len(tree.draws[node]))
    tried = drawn_tokens(tree, node, draft)
    for j, token in tried:
        if accepts(tosses.accept(node, j) * scale, target, draft, token):
            return token
    if left is None and tried:
        return tried[-1][1]  # p = q up to rounding: acceptance was certain
    return inverse_cdf(target if left is None else left, tosses.sample(node))


def k_seq(target: Row, draft: Row, num_draws: int) -> tuple[float, Row | None]:
    """The scale rho for lists of ``num_draws``, and the residual after all rejections, or None."""
    scale = smallest_scale(target, draft, num_draws)
    gamma = _rejections(overlap(target, draft, scale), num_draws)
    left = np.maximum(target - gamma * np.minimum(target / scale, draft), 0.0)
    return scale, normalise(left) if np.any(left > 0) else None


def smallest_scale(target: Row, draft: Row, num_draws: int) -> float:
    """Smallest rho in [1, k] with acc(rho) <= rho beta(rho): the upper end of the bisection.

    Every rho from there to k is lossless, hence the upper end; any smaller one is biased.
    """
    low, high = 1.0, float(num_draws)
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        beta = overlap(target, draft, middle)
        if beta * _rejections(beta, num_draws) <= middle * beta:
            high = middle
        else:
            low = middle
    return high


def overlap(target: Row, draft: Row, scale: float) -> float:
    """beta(rho) = sum of min(p / rho, q): the probability that one draw is accepted."""
    return fsum(np.minimum(target / scale, draft))


def _rejections(beta: float, num_draws: int) -> float:
    """(1 - (1 - beta)^k) / beta, as the sum of (1 - beta)^j: no cancellation, no 0 / 0."""
    total, power = 0.0, 1.0
    for _ in range(num_draws):
        total += power
        power *= 1.0 - beta
    return total
