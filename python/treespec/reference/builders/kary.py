# SPDX-License-Identifier: Apache-2.0
"""K-ary tree: a fixed number of children per level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treespec.reference.growth import fitting_levels, grow_levels
from treespec.reference.rng import RoundKey
from treespec.reference.tree import Tree

DEFAULT_EXPANSION = (1, 1, 3, 1, 1, 1, 1, 1)


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    expansion: Sequence[int] | None = None,
    max_depth: int | None = None,
    proposal: str = "deterministic",
) -> Tree:
    """Expansion ⟨k1, ..., km⟩: every node at depth i - 1 gets ki children.

    The default is cut to the levels that fit; a given expansion must fit.
    Source: SpecInfer (Miao et al., 2023, arXiv 2305.09781), section 3.
    """
    cap = float("inf") if max_depth is None else max_depth
    levels = fitting_levels("kary", expansion, DEFAULT_EXPANSION, node_budget, cap)
    key = RoundKey(seed, sequence_id, position)
    return grow_levels(source, levels, proposal, cap, key)
