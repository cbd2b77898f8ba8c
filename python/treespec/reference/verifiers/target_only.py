# SPDX-License-Identifier: Apache-2.0
"""Target-only (NSS): draw from the target, follow the child that carries the token."""

from __future__ import annotations

from typing import Any

from treespec.reference.sampling import sample_at_position
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
    """Token after node i: the race of its own absolute position (purpose 4), so that the text does
    not depend on the tree. Injected coins are refused.
    """
    if coins is not None:
        raise ValueError("target_only: coins must be None, the race is keyed by position")
    accepted: list[int] = []
    node = 0
    while True:
        own_position = position + int(tree.depth[node]) + 1
        token = sample_at_position(target_probs[node], seed, sequence_id, own_position)
        child = tree.child_with(node, token)
        if child < 0:
            return accepted, token
        accepted.append(child)
        node = child
