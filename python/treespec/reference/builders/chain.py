# SPDX-License-Identifier: Apache-2.0
"""Chain: one child per node."""

from __future__ import annotations

from typing import Any

from treespec.reference.growth import grow_levels
from treespec.reference.rng import RoundKey
from treespec.reference.tree import Tree


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    max_depth: int | None = None,
    proposal: str = "deterministic",
) -> Tree:
    """A path of ``min(node_budget, max_depth)`` nodes: the likeliest child, or one draw each."""
    length = node_budget if max_depth is None else min(node_budget, max_depth)
    key = RoundKey(seed, sequence_id, position)
    return grow_levels(source, [1] * length, proposal, length, key)
