# SPDX-License-Identifier: Apache-2.0
"""Medusa's choices: a fixed list of rank paths, chosen by the heads' accuracies by rank.

Source: Cai et al., "Medusa" (2024, arXiv 2401.10774), section 2.3.3: greedily the paths of largest
product of accuracies, which is :func:`treespec.reference.growth_map.optimal`.
"""

from __future__ import annotations

from typing import Any

from treespec.reference import growth_map as maps
from treespec.reference.growth import depth_cap, grow_map
from treespec.reference.rng import RoundKey
from treespec.reference.tree import Tree

# The core's `demo_accuracy`: the demo pair at temperature 0.
DEFAULT_ACCURACY = (
    (0.644, 0.091, 0.035, 0.03, 0.019, 0.013, 0.01, 0.007, 0.007, 0.004),
    (0.695, 0.078, 0.028, 0.026, 0.015, 0.012, 0.009, 0.009, 0.007, 0.007),
    (0.772, 0.069, 0.019, 0.019, 0.016, 0.005, 0.004, 0.004, 0.004, 0.004),
    (0.751, 0.064, 0.027, 0.024, 0.014, 0.014, 0.009, 0.005, 0.005, 0.003),
)


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    accuracy: Any = None,
    growth_map: Any = None,
    max_depth: int | None = None,
) -> Tree:
    """The choices, cut to the budget and filled with top-k tokens; takes no random numbers."""
    if accuracy is not None and growth_map is not None:
        raise ValueError("medusa_choices: accuracy must not be given with growth_map")
    cap = depth_cap(source, max_depth)
    if growth_map is not None:
        shape = maps.cut(maps.read_map("medusa_choices", growth_map), node_budget, cap)
    else:
        given = DEFAULT_ACCURACY if accuracy is None else accuracy
        table = maps.read_table("medusa_choices", "accuracy", given)
        shape = maps.optimal(table, node_budget, cap)
    return grow_map(source, shape, "deterministic", RoundKey(seed, sequence_id, position))
