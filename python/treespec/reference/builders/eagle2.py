# SPDX-License-Identifier: Apache-2.0
"""EAGLE-2: a beam of fixed width drafts a pool, and the best of the pool are the tree.

Source: Li et al., "EAGLE-2" (2024, arXiv 2406.16858), section 4. Variable width: "TALON" (2026,
arXiv 2601.07353). Constant growth: "Yggdrasil" (2025, arXiv 2512.23858). The rerank follows the
total order, so a node never comes before its parent, however close their scores are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from treespec.reference.growth import Growth, Node, children_of, finish, total_order
from treespec.reference.scores import Calibration, check_scores, rescore
from treespec.reference.tree import Tree


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    width: int = 10,
    max_depth: int = 6,
    width_ratio: float = 0.0,
    growth: str = "layer",
    score_temperature: float = 1.0,
    calibration: Calibration | None = None,
) -> Tree:
    """The ``node_budget`` best of the drafted pool; takes no random numbers.

    ``growth``: "layer" expands the ``width`` best of each layer; "constant" expands the ``width``
    best nodes that are open anywhere. ``width_ratio`` > 0: a layer keeps the nodes whose
    probability is at least this share of its best one's, however many, until the budget is filled.
    """
    check_scores("eagle2", score_temperature, calibration)
    _check(width, width_ratio, growth)
    drafting = _Drafting(source, width, score_temperature, calibration)
    if node_budget == 0:
        layers: list[list[Node]] = []
    elif growth == "constant":
        layers = _constant_growth(drafting, max_depth)
    elif width_ratio > 0:
        layers = _growth_by_ratio(drafting, max_depth, width_ratio, node_budget)
    else:
        layers = _layer_growth(drafting, max_depth)
    return finish([drafting.root, *total_order(layers)[:node_budget]], "deterministic")


def _check(width: int, width_ratio: float, growth: str) -> None:
    if width < 1:
        raise ValueError(f"eagle2: width must be >= 1, got {width}")
    if not 0.0 <= width_ratio <= 1.0:
        raise ValueError(f"eagle2: width_ratio must be in [0, 1], got {width_ratio}")
    if growth not in ("layer", "constant"):
        raise ValueError(f"eagle2: growth must be layer or constant, got {growth}")
    if growth == "constant" and width_ratio > 0:
        raise ValueError(f"eagle2: width_ratio must be 0 with constant growth, got {width_ratio}")


class _Drafting:
    """Expands nodes: the ``width`` best children of each, by rank."""

    def __init__(
        self, source: Any, width: int, score_temperature: float, calibration: Calibration | None
    ) -> None:
        self._growth = Growth(source)
        self._scores = score_temperature, calibration
        self.root, self.width = self._growth.root, width
        self.max_depth = self._growth.reader.max_depth

    def expand(self, nodes: list[Node]) -> list[Node]:
        rows = self._growth.rows(nodes)
        return [
            child
            for node, row in zip(nodes, rows, strict=True)
            for child in children_of(node, rescore(row, *self._scores))[: self.width]
        ]


def _best_of_last(layers: list[list[Node]]) -> list[Node]:
    """The last layer in the total order."""
    return [node for node in total_order(layers) if node.depth == len(layers)]


def _layer_growth(drafting: _Drafting, max_depth: int) -> list[list[Node]]:
    layers: list[list[Node]] = []
    beam = [drafting.root]
    while beam and len(layers) < min(max_depth, drafting.max_depth):
        layers.append(drafting.expand(beam))
        beam = _best_of_last(layers)[: drafting.width]
    return layers


def _growth_by_ratio(
    drafting: _Drafting, max_depth: int, width_ratio: float, node_budget: int
) -> list[list[Node]]:
    layers: list[list[Node]] = []
    beam, pool_size = [drafting.root], 0
    while beam and len(layers) < min(max_depth, drafting.max_depth) and pool_size < node_budget:
        layer = drafting.expand(beam)
        if layers and layer:
            best = max(node.score for node in layer)
            least = np.float32(best + np.float32(np.log(width_ratio)))
            layer = [node for node in layer if node.score >= least]
        layers.append(layer)
        pool_size += len(layer)
        beam = _best_of_last(layers)[:node_budget]
    return layers


def _constant_growth(drafting: _Drafting, max_depth: int) -> list[list[Node]]:
    layers: list[list[Node]] = []
    unexpanded = {drafting.root} if drafting.max_depth > 0 else set()
    for _ in range(max_depth):
        ranked = [drafting.root, *total_order(layers)]
        chosen = [node for node in ranked if node in unexpanded][: drafting.width]
        unexpanded.difference_update(chosen)
        for child in drafting.expand(chosen):
            if child.depth > len(layers):
                layers.append([])
            layers[child.depth - 1].append(child)
            if child.depth < drafting.max_depth:
                unexpanded.add(child)
    return layers
