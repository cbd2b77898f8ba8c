# SPDX-License-Identifier: Apache-2.0
"""DySpec with a threshold: layer by layer, draw while a draw is likely enough to be looked at.

Source: Xiong et al., "DySpec" (2024, arXiv 2410.11744), the threshold construction, with its
inequality put right: draw while the value is at least the threshold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from treespec.reference.growth import Growth, Node, depth_cap, finish
from treespec.reference.rng import RoundKey
from treespec.reference.scores import Calibration, check_scores
from treespec.reference.slots import open_slots
from treespec.reference.tree import Tree


class _Drawn(NamedTuple):
    """A node, and the slot that it was drawn in."""

    node: Node
    value: float
    draw: int


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    max_depth: int | None = None,
    calibration: Calibration | None = None,
    threshold: float | None = None,
) -> Tree:
    """Every slot of value >= ``threshold`` (default ``1 / node_budget``), the best of them first.

    More slots than ``node_budget`` are cut by what was known before a draw: value down, depth up,
    parent (in this order) up, draw up. Randomness: token t of a node's race takes purpose draft,
    the node's path slot, counter t.
    """
    if threshold is not None and not threshold > 0:
        raise ValueError(f"dyspec_threshold: threshold must be > 0, got {threshold}")
    if threshold is None:
        threshold = 1.0 / max(node_budget, 1)
    check_scores("dyspec_threshold", 1.0, calibration)
    key, growth = RoundKey(seed, sequence_id, position), Growth(source)
    # Ancestors come first, so nothing in the tree is deeper than the budget.
    cap = min(depth_cap(source, max_depth), node_budget)
    layers: list[list[_Drawn]] = []
    layer = [(growth.root, 1.0)]
    while layer and len(layers) < cap:
        layer = [(node, value) for node, value in layer if value > 0 and value >= threshold]
        rows = growth.rows([node for node, _ in layer])
        layers.append([])
        below = []
        for (node, value), row in zip(layer, rows, strict=True):
            slots = open_slots(node, row, value, key, calibration)
            draw = 0
            while slots.exists(draw) and slots.slot_value(draw) >= threshold:
                layers[-1].append(_Drawn(slots.children[draw], slots.slot_value(draw), draw))
                below.append((slots.children[draw], slots.child_value(draw)))
                draw += 1
        layer = below
    kept = _slot_order(layers)[:node_budget]
    for drawn in kept:
        assert drawn.node.parent is not None and drawn.node.parent.draws is not None
        drawn.node.parent.draws.append(drawn.node)
    return finish([growth.root, *(drawn.node for drawn in kept)], "without_replacement")


def _slot_order(layers: list[list[_Drawn]]) -> list[_Drawn]:
    """Value down, depth up, parent up, draw up; parents are compared by this same order."""
    place: dict[Node | None, int] = {}
    for layer in layers:
        ranked = sorted(layer, key=lambda d: (-d.value, place.get(d.node.parent, 0), d.draw))
        place.update({drawn.node: i for i, drawn in enumerate(ranked)})
    return sorted(
        (drawn for layer in layers for drawn in layer),
        key=lambda d: (-d.value, d.node.depth, place.get(d.node.parent, 0), d.draw),
    )
