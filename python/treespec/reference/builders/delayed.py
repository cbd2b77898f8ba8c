# SPDX-License-Identifier: Apache-2.0
"""Delayed expansion: one sampled path first, K independent ones from its end.

Near the root one draw is usually accepted, so branching there wastes nodes.
Source: "delayed tree expansion" (2026, arXiv 2602.16994); trees.md, section 5.
"""

from __future__ import annotations

from typing import Any

from treespec.reference.growth import check_count, depth_cap
from treespec.reference.rng import RoundKey
from treespec.reference.rollouts import grow_rollouts
from treespec.reference.tree import Tree

LONGEST_DEFAULT = 8


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    num_paths: int = 3,
    trunk: int | None = None,
    branch: int | None = None,
    max_depth: int | None = None,
) -> Tree:
    """(K, L1, L2): ``trunk`` draws, then ``num_paths`` paths of ``branch`` draws.

    What is not given takes what the budget leaves, at most 8 levels. Randomness: draw j at a node
    takes purpose draft, the node's path slot, counter j.
    """
    check_count("delayed", "num_paths", num_paths, 1)
    check_count("delayed", "trunk", trunk, 0)
    check_count("delayed", "branch", branch, 0)
    if (trunk or 0) + num_paths * (branch or 0) > node_budget:
        raise ValueError(
            f"delayed: node_budget must hold trunk = {trunk} and {num_paths} paths of branch = "
            f"{branch}, got {node_budget}"
        )
    if branch is None and trunk is None:
        branch = min(LONGEST_DEFAULT, node_budget // (num_paths + 1))
    elif branch is None:
        branch = min(LONGEST_DEFAULT, (node_budget - (trunk or 0)) // num_paths)
    if trunk is None:
        trunk = min(LONGEST_DEFAULT, node_budget - num_paths * branch)
    cap = depth_cap(source, max_depth)
    trunk = int(min(trunk, cap))
    branch = int(min(branch, cap - trunk))
    key = RoundKey(seed, sequence_id, position)
    return grow_rollouts(source, trunk=trunk, num_paths=num_paths, branch=branch, key=key)
