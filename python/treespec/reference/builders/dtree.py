# SPDX-License-Identifier: Apache-2.0
"""DDTree: the likeliest prefixes of a drafter that drafts all positions in one pass.

Source: "DDTree" (2026, arXiv 2604.12989), the best-first heap of its propositions 1 and 2. The
paper pushes one sibling at a time; here a popped node offers all its children at once.
"""

from __future__ import annotations

import heapq
from typing import Any

from treespec.reference.growth import Growth, Node, children_of, depth_cap, finish
from treespec.reference.scores import Calibration, check_scores, rescore
from treespec.reference.tree import Tree


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    max_depth: int | None = None,
    score_temperature: float = 1.0,
    calibration: Calibration | None = None,
) -> Tree:
    """The first ``node_budget`` prefixes in the total order; takes no random numbers."""
    check_scores("dtree", score_temperature, calibration)
    growth = Growth(source)
    if growth.reader.kind == "expander":
        raise ValueError("dtree: source must be Marginals, Transitions or a Trie")
    cap = depth_cap(source, max_depth)
    order = [growth.root]
    heap: list[tuple[float, int, int, int, Node]] = []

    def offer_children(place: int) -> None:
        node = order[place]
        if node.depth < cap:
            (row,) = growth.rows([node])
            for child in children_of(node, rescore(row, score_temperature, calibration)):
                entry = (-float(child.score), child.depth, place, child.token, child)
                heapq.heappush(heap, entry)

    if node_budget > 0:
        offer_children(0)
    while heap and len(order) <= node_budget:
        order.append(heapq.heappop(heap)[-1])
        offer_children(len(order) - 1)
    return finish(order, "deterministic")
