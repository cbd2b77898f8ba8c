# SPDX-License-Identifier: Apache-2.0
"""Traversal Verification: bottom-up, leaf by leaf; a whole path is accepted or loses its leaf.

Source: Weng et al., "Traversal Verification for speculative tree decoding" (2025, arXiv
2505.12398), algorithm 1 in its recursive form (verification.md, section 5).
"""

from __future__ import annotations

from collections.abc import Callable
from math import fsum
from typing import Any

import numpy as np

from treespec.reference.coins import Coins
from treespec.reference.rng import RoundKey
from treespec.reference.sampling import Row, inverse_cdf, normalise
from treespec.reference.tree import Tree
from treespec.reference.walk import rows_at

Test = Callable[[int, float], bool]
"""``test(node, acceptance)``: whether the walk stops at this node."""


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
    """Test nodes in post-order, each with its acceptance; the first success ends the round.

    Random numbers: accept (parent, index of the node's first draw) per node tested, then sample
    (node) at the accepted one, from its current row.
    """
    laws: Any = tree.draft_probs if draft_probs is None else draft_probs
    tosses = Coins(RoundKey(seed, sequence_id, position), coins)

    def test(node: int, acceptance: float) -> bool:
        return tosses.accept(*coin_of(tree, node)) < acceptance

    node, row = visit(tree, target_probs, laws, test)
    return ancestors(tree, node), inverse_cdf(row, tosses.sample(node))


def coin_of(tree: Tree, node: int) -> tuple[int, int]:
    """(parent, index of its first draw): the accept coin of a drafted node."""
    parent = int(tree.parent[node])
    return parent, tree.draws[parent].index(node)


def coin_order(tree: Tree) -> list[tuple[str, int, int]]:
    """Nodes in post-order, children in draw order; then the samples."""
    order: list[tuple[str, int, int]] = []

    def enter(node: int) -> None:
        for child in dict.fromkeys(tree.draws[node]):
            enter(child)
        if node > 0:
            order.append(("accept", *coin_of(tree, node)))

    enter(0)
    return [*order, *(("sample", node, 0) for node in range(tree.num_nodes))]


def ancestors(tree: Tree, node: int) -> list[int]:
    """Node ids from the root's child down to ``node``."""
    found: list[int] = []
    while node > 0:
        found.append(node)
        node = int(tree.parent[node])
    return found[::-1]


def visit(tree: Tree, target_probs: Any, laws: Any, test: Test) -> tuple[int, Row]:
    """The node at which the walk stops, and its current row; the root stops it at last."""

    def enter(node: int, alpha: float) -> tuple[int, Row] | None:
        target, draft = rows_at(tree, node, target_probs, laws)
        entered: set[int] = set()
        for child in tree.draws[node]:
            token = int(tree.token[child])
            if alpha == 0:
                break  # nothing below can be accepted, nor the node itself
            if draft is None or draft[token] == 0:
                continue  # exhausted, or outside the support: no test, no update
            if child not in entered:  # a repeat has acceptance 0, but its rejection counts
                entered.add(child)
                found = enter(child, min(1.0, alpha * target[token] / draft[token]))
                if found is not None:
                    return found
            target, alpha = after_rejection(target, draft, alpha)
            if tree.proposal == "without_replacement":
                draft = without(draft, token)
            alpha = 1.0 if node == 0 else alpha
        return (node, target) if node == 0 or test(node, alpha) else None

    stop = enter(0, 1.0)
    assert stop is not None, "the root is not tested"
    return stop


def after_rejection(target: Row, draft: Row, alpha: float) -> tuple[Row, float]:
    """Row and acceptance of a node below which one more draw was rejected.

    P becomes (alpha P - Q)+ normalised; with S its mass, alpha becomes S / (S + 1 - alpha).
    """
    left = np.maximum(alpha * target - draft, 0.0)
    mass = fsum(left)
    if mass > 0:
        return normalise(left), mass / (mass + (1.0 - alpha))
    # Nothing is left: a dead node, or P = Q and alpha = 1, where the rejection was rounding.
    return target, 1.0 if alpha == 1 else 0.0


def without(draft: Row, token: int) -> Row | None:
    """The law of the next draw without replacement; None when it is exhausted."""
    rest = draft.copy()
    rest[token] = 0.0
    return normalise(rest) if np.any(rest > 0) else None
