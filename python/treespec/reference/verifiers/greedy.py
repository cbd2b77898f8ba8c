# SPDX-License-Identifier: Apache-2.0
"""Greedy: what plain arg-max decoding would have said, as long as the tree has it."""

from __future__ import annotations

from typing import Any

import numpy as np

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
    """Walks down the arg-max (lowest id among ties); takes no random numbers."""
    accepted: list[int] = []
    node = 0
    while True:
        token = int(np.argmax(target_probs[node]))
        child = tree.child_with(node, token)
        if child < 0:
            return accepted, token
        accepted.append(child)
        node = child
