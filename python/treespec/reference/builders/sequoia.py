# SPDX-License-Identifier: Apache-2.0
"""Sequoia: the shape of largest expected length for measured acceptances by rank, then filled.

Source: Chen et al., "Sequoia" (2024, arXiv 2402.12374), section 3.1.
"""

from __future__ import annotations

from typing import Any

from treespec.reference import growth_map as maps
from treespec.reference.growth import depth_cap, grow_map
from treespec.reference.rng import RoundKey
from treespec.reference.tree import Tree

PROPOSALS = ("deterministic", "without_replacement")
# The core's `demo_acceptance`: draws without replacement of the demo pair at temperature 0.6.
# fmt: off
DEFAULT_ACCEPTANCE = (
    0.5666, 0.1084, 0.0534, 0.0327, 0.0256, 0.019,  0.0156, 0.0121, 0.011,  0.0098, 0.008,
    0.007,  0.0063, 0.0063, 0.0057, 0.0051, 0.0041, 0.0032, 0.0032, 0.0029, 0.0029, 0.0029,
    0.0023, 0.0023, 0.0022, 0.0022, 0.0022, 0.0022, 0.0022, 0.0022, 0.0012, 0.001,
)
# fmt: on


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    acceptance: Any = None,
    growth_map: Any = None,
    max_depth: int | None = None,
    proposal: str = "deterministic",
) -> Tree:
    """The optimal map for ``node_budget`` nodes, or a given one, filled with tokens.

    Randomness of ``proposal="without_replacement"``: token t of a node's race takes purpose draft,
    the node's path slot, counter t.
    """
    if acceptance is not None and growth_map is not None:
        raise ValueError("sequoia: acceptance must not be given with growth_map")
    if proposal not in PROPOSALS:
        raise ValueError(f"sequoia: proposal must be one of {PROPOSALS}, got {proposal}")
    cap = depth_cap(source, max_depth)
    if growth_map is not None:
        shape = maps.cut(maps.read_map("sequoia", growth_map), node_budget, cap)
    else:
        given = DEFAULT_ACCEPTANCE if acceptance is None else acceptance
        table = maps.read_table("sequoia", "acceptance", given)
        shape = maps.optimal(table, node_budget, cap)
    return grow_map(source, shape, proposal, RoundKey(seed, sequence_id, position))
