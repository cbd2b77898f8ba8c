# SPDX-License-Identifier: Apache-2.0
"""What the builders share: nodes being drafted, expansion of one layer, the finished tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.reference.rng import Purpose, RoundKey, child_slot, race_keys, uniform
from treespec.reference.sampling import draft_law, inverse_cdf
from treespec.reference.sources import CandidateRow, FrontierNode, open_source
from treespec.reference.tree import Tree


@dataclass(eq=False)
class Node:
    """A drafted node (or the root). ``draws`` and ``law`` are filled when it is expanded."""

    token: int
    parent: Node | None
    depth: int
    score: np.float32
    slot: int = 0
    state: int = 0
    index: int = -1
    draws: list[Node] | None = None
    law: dict[int, np.float32] | None = None


class Growth:
    """One round of drafting over one source."""

    def __init__(self, source: Any) -> None:
        self.reader = open_source(source)
        self.root = Node(token=0, parent=None, depth=0, score=np.float32(0))
        self._handed_over = 0

    def rows(self, nodes: Sequence[Node]) -> list[CandidateRow]:
        """One drafter call; numbers the nodes in order of hand-over."""
        frontier = []
        for node in nodes:
            node.index = self._handed_over
            self._handed_over += 1
            parent = -1 if node.parent is None else node.parent.index
            frontier.append(FrontierNode(node.index, parent, node.token, node.depth, node.state))
        return self.reader.rows(frontier) if frontier else []


def children_of(node: Node, row: CandidateRow) -> list[Node]:
    """All possible children in rank order (log-probability down, token up), scores in float32."""
    ranked = sorted(range(len(row.token)), key=lambda k: (-row.logprob[k], row.token[k]))
    return [
        Node(
            token=int(row.token[k]),
            parent=node,
            depth=node.depth + 1,
            score=np.float32(node.score + row.logprob[k]),
            slot=child_slot(node.slot, int(row.token[k])),
            state=int(row.state[k]),
        )
        for k in ranked
        if row.logprob[k] > -np.inf
    ]


def draw_children(
    node: Node, row: CandidateRow, count: int, proposal: str, key: RoundKey
) -> list[Node]:
    """``count`` draws at a node (fewer when an exhausted row stops), new children in draw order.

    Sets ``node.draws`` (with multiplicity) and, for sampled proposals, ``node.law``. Randomness:
    purpose draft at the node's path slot; iid: draw j takes counter j; without replacement: token t
    takes counter t.
    """
    ranked = children_of(node, row)
    if proposal == "deterministic":
        node.draws = ranked[:count]
        return node.draws
    by_id = np.argsort(row.token, kind="stable")
    token, law = row.token[by_id], draft_law(row.logprob)[by_id]
    wide = law.astype(np.float64)
    if not np.any(wide > 0):
        node.draws = []
        return []
    node.law = {int(t): q for t, q in zip(token, law, strict=True) if q > 0}
    if proposal == "iid":
        coins = [uniform(key, Purpose.DRAFT, node.slot, j) for j in range(count)]
        drawn = [int(token[inverse_cdf(wide, u)]) for u in coins]
    elif proposal == "without_replacement":
        keys = race_keys(key, Purpose.DRAFT, node.slot, token, wide)
        order = sorted(np.flatnonzero(wide > 0), key=lambda k: (keys[k], token[k]))
        drawn = [int(token[k]) for k in order[:count]]
    else:
        raise ValueError(f"draw_children: proposal must be known, got {proposal}")
    by_token = {child.token: child for child in ranked}
    node.draws = [by_token[t] for t in drawn]
    return list(dict.fromkeys(node.draws))


def grow_levels(
    source: Any, expansion: Sequence[int], proposal: str, max_depth: float, key: RoundKey
) -> Tree:
    """Every node at depth d - 1 draws ``expansion[d - 1]`` children; layer order.

    Source: SpecInfer (Miao et al., 2023, arXiv 2305.09781), section 3.
    """
    growth = Growth(source)
    layer, order = [growth.root], [growth.root]
    for depth, count in enumerate(expansion):
        if depth >= min(max_depth, growth.reader.max_depth):
            break
        rows = growth.rows(layer)
        layer = [
            child
            for node, row in zip(layer, rows, strict=True)
            for child in draw_children(node, row, count, proposal, key)
        ]
        order += layer
    return finish(order, proposal)


def total_order(layers: Sequence[Sequence[Node]]) -> list[Node]:
    """All drafted nodes, best first: score down, depth up, parent up, token up.

    "Parent" compares the parents by this same order; parents of nodes of equal depth are in one
    layer, so their places in the sorted layer decide.
    """
    place: dict[Node, int] = {}
    for layer in layers:
        ranked = sorted(layer, key=lambda n: (-n.score, _place(place, n.parent), n.token))
        place.update({node: i for i, node in enumerate(ranked)})
    nodes = [node for layer in layers for node in layer]
    return sorted(nodes, key=lambda n: (-n.score, n.depth, _place(place, n.parent), n.token))


def _place(place: dict[Node, int], parent: Node | None) -> int:
    return -1 if parent is None else place.get(parent, -1)


def finish(order: Sequence[Node], proposal: str) -> Tree:
    """The tree of the nodes in final order, root first."""
    ids = {node: i for i, node in enumerate(order)}
    draws: list[list[int]] = [[] for _ in order]
    if proposal == "deterministic":
        for node in order[1:]:
            assert node.parent is not None
            draws[ids[node.parent]].append(ids[node])
    else:
        draws = [[ids[child] for child in node.draws or []] for node in order]
    return Tree(
        token=np.array([n.token for n in order], dtype=np.int32),
        parent=np.array([-1 if n.parent is None else ids[n.parent] for n in order], dtype=np.int32),
        depth=np.array([n.depth for n in order], dtype=np.int32),
        path_logprob=np.array([n.score for n in order], dtype=np.float32),
        proposal=proposal,
        draws=draws,
        draft_probs=None if proposal == "deterministic" else _dense_laws(order),
    )


def _dense_laws(order: Sequence[Node]) -> npt.NDArray[np.float32] | None:
    width = 1 + max((t for n in order for t in n.law or {}), default=-1)
    if width == 0:
        return None
    table = np.zeros((len(order), width), dtype=np.float32)
    for i, node in enumerate(order):
        for token, probability in (node.law or {}).items():
            table[i, token] = probability
    return table
