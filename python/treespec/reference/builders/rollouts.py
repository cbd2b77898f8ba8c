# SPDX-License-Identifier: Apache-2.0
"""Rollouts: K independent samples of the drafter, from the root.

Source: Miao et al., "SpecInfer" (2023, arXiv 2305.09781), sequence-based speculation; trees.md,
section 5.
"""

from __future__ import annotations

from typing import Any

from treespec.reference.growth import check_count, depth_cap
from treespec.reference.rng import RoundKey
from treespec.reference.rollouts import grow_rollouts
from treespec.reference.tree import Tree


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    num_paths: int | None = None,
    max_depth: int | None = None,
) -> Tree:
    """``num_paths`` paths (default 4, fewer when the budget is smaller), as long as all can be.

    Randomness: draw j at a node takes purpose draft, the node's path slot, counter j.
    """
    check_count("rollouts", "num_paths", num_paths, 1)
    if (num_paths or 0) > node_budget:
        raise ValueError(
            f"rollouts: node_budget must hold a node of each of the num_paths = {num_paths} paths, "
            f"got {node_budget}"
        )
    paths = min(4, max(1, node_budget)) if num_paths is None else num_paths
    length = int(min(depth_cap(source, max_depth), node_budget // paths))
    key = RoundKey(seed, sequence_id, position)
    return grow_rollouts(source, trunk=0, num_paths=paths, branch=length, key=key)
