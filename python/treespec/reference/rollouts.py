# SPDX-License-Identifier: Apache-2.0
"""Independent paths that may share a trunk: what ``rollouts`` and ``delayed`` have in common."""

from __future__ import annotations

from collections import Counter
from typing import Any

from treespec.reference.growth import Growth, draw_children, finish
from treespec.reference.rng import RoundKey
from treespec.reference.tree import Tree


def grow_rollouts(source: Any, *, trunk: int, num_paths: int, branch: int, key: RoundKey) -> Tree:
    """One path of ``trunk`` draws, then ``num_paths`` independent ones of ``branch`` draws.

    Each path has a cursor; a node that several cursors reach draws once for each, in their order,
    and equal draws are one node drawn repeatedly. One drafter call per level over the distinct
    nodes. Nodes are in order of creation. A cursor whose row has no possible token stops.

    Randomness: draw j at a node takes purpose draft, the node's path slot, counter j.
    Source: "delayed tree expansion" (2026, arXiv 2602.16994); the paths of SpecInfer (Miao et al.,
    2023, arXiv 2305.09781) with ``trunk = 0``.
    """
    growth = Growth(source)
    order, cursors = [growth.root], [growth.root]
    for level in range(trunk + branch):
        if level == trunk:
            cursors = cursors * num_paths
        visitors = Counter(cursors)
        for node, row in zip(visitors, growth.rows(list(visitors)), strict=True):
            draw_children(node, row, visitors[node], "iid", key)
        drawn = {node: iter(node.draws or []) for node in visitors}
        cursors = [next(drawn[node]) for node in cursors if node.draws]
        order += dict.fromkeys(cursors)
    return finish(order, "iid")
