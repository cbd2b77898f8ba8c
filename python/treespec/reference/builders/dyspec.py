# SPDX-License-Identifier: Apache-2.0
"""DySpec: draw where a draw is most likely to be looked at, one token after the other.

Source: Xiong et al., "DySpec" (2024, arXiv 2410.11744), the greedy construction.
"""

from __future__ import annotations

import heapq
from typing import Any

from treespec.reference.growth import Growth, depth_cap, finish
from treespec.reference.rng import RoundKey
from treespec.reference.scores import Calibration, check_scores
from treespec.reference.slots import Slots, open_slots
from treespec.reference.tree import Tree


def build(
    source: Any,
    *,
    node_budget: int,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    max_depth: int | None = None,
    calibration: Calibration | None = None,
    evaluation: str = "batched",
) -> Tree:
    """``node_budget`` times: pop the slot of largest value and draw there.

    Order of slots: value down, depth of the drawn node up, parent (in pop order) up, draw up.
    ``evaluation`` says how a fast builder batches its drafter calls; the tree is the same, and here
    a node is evaluated when its first slot is popped. Randomness: token t of a node's race takes
    purpose draft, the node's path slot, counter t.
    """
    if evaluation not in ("batched", "lazy"):
        raise ValueError(f"dyspec: evaluation must be batched or lazy, got {evaluation}")
    check_scores("dyspec", 1.0, calibration)
    key, growth = RoundKey(seed, sequence_id, position), Growth(source)
    cap = depth_cap(source, max_depth)
    order, value = [growth.root], [1.0]
    slots: dict[int, Slots] = {}
    heap = [(-1.0, 1, 0, 0)] if cap > 0 else []
    while heap and len(order) <= node_budget:
        _, depth, place, draw = heapq.heappop(heap)
        node = order[place]
        if place not in slots:
            (row,) = growth.rows([node])
            slots[place] = open_slots(node, row, value[place], key, calibration)
        here = slots[place]
        if not here.exists(draw):
            continue
        child = here.children[draw]
        assert node.draws is not None
        node.draws.append(child)
        order.append(child)
        value.append(here.child_value(draw))
        if here.exists(draw + 1):
            heapq.heappush(heap, (-here.slot_value(draw + 1), depth, place, draw + 1))
        if value[-1] > 0 and depth < cap:
            heapq.heappush(heap, (-value[-1], depth + 1, len(order) - 1, 0))
    return finish(order, "without_replacement")
