# SPDX-License-Identifier: Apache-2.0
"""What the top-down verifiers share: the walk, and the two rows of a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treespec.reference.residual import wide
from treespec.reference.sampling import Row, normalise
from treespec.reference.tree import Tree


def follow(tree: Tree, solve: Callable[[int], int]) -> tuple[list[int], int]:
    """(accepted nodes, next token) of the walk whose token after node i is ``solve(i)``.

    If every ``solve`` has the target's law at its node, so has the emitted text: the child that
    carries the token is just where the walk goes on. Source: verification.md, section 0.3.
    """
    accepted: list[int] = []
    node = 0
    while True:
        token = solve(node)
        child = tree.child_with(node, token)
        if child < 0:
            return accepted, token
        accepted.append(child)
        node = child


def rows_at(tree: Tree, node: int, target_probs: Any, laws: Any) -> tuple[Row, Row | None]:
    """The normalised target row ``[V]`` and draft row ``[V]`` of a node; None if nothing drew."""
    target = normalise(target_probs[node])
    draft = normalise(wide(laws[node], len(target))) if tree.draws[node] else None
    return target, draft


def drawn_tokens(tree: Tree, node: int, draft: Row) -> list[tuple[int, int]]:
    """(draw index, token) of the draws that the law can have made, in draw order."""
    tokens = [int(tree.token[child]) for child in tree.draws[node]]
    return [(j, token) for j, token in enumerate(tokens) if draft[token] > 0]
