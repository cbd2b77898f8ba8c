# SPDX-License-Identifier: Apache-2.0
"""Top-(k-1) plus one: the likeliest tokens, and one drawn from the rest.

A deterministic tree can accept no more than the mass of its tokens; the drawn one covers the rest.
Source: Sun et al., "SpecHub" (2024, arXiv 2411.05289); "Towards optimal multi-draft speculative
decoding" (2025, arXiv 2502.18779).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treespec.reference.growth import fitting_levels, grow_levels
from treespec.reference.rng import RoundKey
from treespec.reference.tree import Tree

DEFAULT_EXPANSION = (3, 2, 1, 1)


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    expansion: Sequence[int] | None = None,
    max_depth: int | None = None,
) -> Tree:
    """Levels as ``kary``; a node of k children has its k - 1 likeliest tokens and one draw.

    The draw comes last. Randomness: token t of a node's race takes purpose draft, the node's path
    slot, counter t; the winner among the rest is drawn. The recorded law is the whole row.
    """
    cap = float("inf") if max_depth is None else max_depth
    levels = fitting_levels("top_plus_one", expansion, DEFAULT_EXPANSION, node_budget, cap)
    key = RoundKey(seed, sequence_id, position)
    return grow_levels(source, levels, "top_plus_one", cap, key)
