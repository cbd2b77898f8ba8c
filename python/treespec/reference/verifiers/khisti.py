# SPDX-License-Identifier: Apache-2.0
"""Canonical decomposition: a tournament picks one draw, then the token-level rule on its exact law.

Source: Khisti et al., "Multi-Draft Speculative Sampling: Canonical Decomposition and Theoretical
Limits" (2024, arXiv 2410.18234), theorem 1 and the truncated linear program of its section 5.
"""

from __future__ import annotations

from itertools import chain, combinations
from math import fsum
from typing import Any, NamedTuple

import numpy as np

from treespec.reference.coins import Coins
from treespec.reference.residual import accepts, residual
from treespec.reference.rng import RoundKey
from treespec.reference.sampling import Row, inverse_cdf
from treespec.reference.tree import Tree
from treespec.reference.walk import drawn_tokens, follow, rows_at

OPTIMISED_TOKENS = 5
"""s: the tokens among which pairs are split by the linear program."""

Pair = tuple[int, int]


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
    """Accept the winner Y with min(1, p/r), r its law; else draw y from norm((p - r)+), follow it.

    Random numbers: select (node, j) when draw j >= 1 meets a winner with another token, accept
    (node, 0) for the last winner, then sample (node).
    """
    laws: Any = tree.draft_probs if draft_probs is None else draft_probs
    tosses = Coins(RoundKey(seed, sequence_id, position), coins)

    def solve(node: int) -> int:
        target, draft = rows_at(tree, node, target_probs, laws)
        return _token_after(tree, node, target, draft, tosses)

    return follow(tree, solve)


def coin_order(tree: Tree) -> list[tuple[str, int, int]]:
    """Top down; at a node its tournament, the test of the winner, the sample."""
    order: list[tuple[str, int, int]] = []
    for node in range(tree.num_nodes):
        order += [("select", node, j) for j in range(1, len(tree.draws[node]))]
        order += [("accept", node, 0)] if tree.draws[node] else []
        order.append(("sample", node, 0))
    return order


def _token_after(tree: Tree, node: int, target: Row, draft: Row | None, tosses: Coins) -> int:
    drawn = [] if draft is None else drawn_tokens(tree, node, draft)
    if draft is None or not drawn:
        return inverse_cdf(target, tosses.sample(node))
    merges, law = tournament(target, draft, len(drawn))
    winner = drawn[0][1]
    for merge, (j, fresh) in zip(merges, drawn[1:], strict=True):
        if fresh != winner and not tosses.select(node, j) < merge.keep(winner, fresh):
            winner = fresh
    if accepts(tosses.accept(node, 0), target, law, winner):
        return winner
    left = residual(target, law)
    return winner if left is None else inverse_cdf(left, tosses.sample(node))


class Merge(NamedTuple):
    """How the current winner meets one more draw.

    ``place``: rank of each token; ``share[i, j]``, i < j < s: how often rank i beats rank j.
    """

    place: dict[int, int]
    share: dict[Pair, float]

    def keep(self, winner: int, fresh: int) -> float:
        """Probability that ``winner`` stays against another token."""
        i, j = self.place[winner], self.place[fresh]
        return self.share.get((i, j), 1.0) if i < j else 1.0 - self.share.get((j, i), 1.0)


def tournament(target: Row, draft: Row, num_draws: int) -> tuple[list[Merge], Row]:
    """The ``num_draws - 1`` merges, and r: the law of the last winner."""
    merges: list[Merge] = []
    law = draft
    for _ in range(num_draws - 1):
        order = ranked(target, law, draft)
        merge = Merge({t: i for i, t in enumerate(order)}, _shares(target, law, draft, order))
        law = merged_law(merge, law, draft, order)
        merges.append(merge)
    return merges, law


def ranked(target: Row, law: Row, draft: Row) -> list[int]:
    """Tokens that can meet, those whose target mass two equal draws leave most open first."""
    possible = [int(t) for t in np.flatnonzero(draft > 0)]
    return sorted(possible, key=lambda t: (-(target[t] - law[t] * draft[t]), t))


def merged_law(merge: Merge, law: Row, draft: Row, order: list[int]) -> Row:
    """r(y): law of the winner after one merge; every pair of tokens is added up."""
    result = law * draft
    for a, b in combinations(order, 2):
        mass = law[a] * draft[b] + law[b] * draft[a]
        share = merge.keep(a, b)
        result[a] += share * mass
        result[b] += (1.0 - share) * mass
    return result


def _shares(target: Row, law: Row, draft: Row, order: list[int]) -> dict[Pair, float]:
    """How pairs among the first s tokens are split; pairs that cannot meet count as the earlier."""
    top = order[:OPTIMISED_TOKENS]
    pairs = list(combinations(range(len(top)), 2))
    mass = {
        (i, j): float(law[top[i]] * draft[top[j]] + law[top[j]] * draft[top[i]]) for i, j in pairs
    }
    beaten = order[OPTIMISED_TOKENS:]  # these lose to every token of the top
    won = [
        fsum([law[t] * draft[t], *(law[t] * draft[b] + law[b] * draft[t] for b in beaten)])
        for t in top
    ]
    wanted = [max(0.0, float(target[t]) - w) for t, w in zip(top, won, strict=True)]
    split = best_split(wanted, mass)
    return {pair: split[pair] / mass[pair] if mass[pair] > 0 else 1.0 for pair in pairs}


def best_split(wanted: list[float], mass: dict[Pair, float]) -> dict[Pair, float]:
    """The linear program: what the earlier token of each pair gets of the pair's mass.

    The sum over tokens of min(wanted, received) is as large as it can be. Of the solutions it is
    the one that favours earlier tokens: the first pair gives its earlier token as much as the
    optimum allows, then the second pair does, and so on. That one is unique and continuous in the
    numbers, so that rounding does not select another.

    By max-flow min-cut a split serves ``value`` in all iff no set T of tokens is in the way:
    wanted(T) + the mass that can go elsewhere >= value. Each set bounds a pair's share from above
    when it holds the earlier token alone.
    """
    tokens = range(len(wanted))
    sets = list(chain.from_iterable(combinations(tokens, size) for size in range(len(wanted) + 1)))
    given, free = [0.0] * len(wanted), dict(mass)
    value = min(_served(held, wanted, given, free) for held in sets)
    split: dict[Pair, float] = {}
    for pair in sorted(mass):
        i, j = pair
        m = free.pop(pair)
        bounds = [
            _served(held, wanted, given, free) + m - value
            for held in sets
            if i in held and j not in held
        ]
        split[pair] = max(0.0, min(m, *bounds))
        given[i] += split[pair]
        given[j] += m - split[pair]
    return split


def _served(
    held: tuple[int, ...], wanted: list[float], given: list[float], free: dict[Pair, float]
) -> float:
    """The cut of a set of tokens: what they want, and all mass that need not go to them."""
    elsewhere = [m for (i, j), m in free.items() if not (i in held and j in held)]
    settled = [given[t] for t in range(len(wanted)) if t not in held]
    return fsum([*(wanted[t] for t in held), *elsewhere, *settled])
