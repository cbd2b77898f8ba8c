# SPDX-License-Identifier: Apache-2.0
"""What the builders share: nodes being drafted, expansion of one layer, the finished tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.reference import growth_map
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


def depth_cap(source: Any, max_depth: int | None) -> float:
    """The deepest level that a source and ``max_depth`` (None: any) allow."""
    deepest = open_source(source).max_depth
    return deepest if max_depth is None else min(max_depth, deepest)


def check_count(name: str, option: str, value: int | None, least: int) -> None:
    """Refuses a count below ``least``; None is "not given"."""
    if value is not None and value < least:
        raise ValueError(f"{name}: {option} must be >= {least}, got {value}")


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
    takes counter t; top_plus_one: the ``count - 1`` likeliest, then a race of the rest.
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
    elif proposal == "top_plus_one":
        # A token whose probability rounds to 0 is in no law that could be recorded.
        top = [child.token for child in ranked if child.token in node.law][: count - 1]
        rest = np.where(np.isin(token, top), 0.0, wide)
        keys = race_keys(key, Purpose.DRAFT, node.slot, token, rest)
        order = sorted(np.flatnonzero(rest > 0), key=lambda k: (keys[k], token[k]))
        drawn = [*top, *(int(token[k]) for k in order[:1])]
    else:
        raise ValueError(f"draw_children: proposal must be known, got {proposal}")
    by_token = {child.token: child for child in ranked}
    node.draws = [by_token[t] for t in drawn]
    return list(dict.fromkeys(node.draws))


def worst_case_nodes(expansion: Sequence[int]) -> int:
    """Drafted nodes when every draw gives a new child: sum of the products of the prefixes."""
    total, width = 0, 1
    for count in expansion:
        width *= count
        total += width
    return total


def fitting_levels(
    name: str,
    expansion: Sequence[int] | None,
    default: Sequence[int],
    node_budget: int,
    max_depth: float,
) -> list[int]:
    """The levels to grow: the default cut to those that fit, or the given ones, which must."""
    levels = list(default if expansion is None else expansion)
    if any(count < 1 for count in levels) or (expansion is not None and not levels):
        raise ValueError(f"{name}: expansion must be integers >= 1, got {expansion}")
    while worst_case_nodes(levels) > node_budget or len(levels) > max_depth:
        if expansion is not None:
            raise ValueError(
                f"{name}: expansion {expansion} must fit node_budget and max_depth, "
                f"got {node_budget} and {max_depth}"
            )
        levels.pop()
    return levels


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


def grow_map(source: Any, parent: Sequence[int], proposal: str, key: RoundKey) -> Tree:
    """Fills a growth map: the node of rank r carries the r-th best token, or the r-th draw.

    One drafter call per level, over the nodes that have children in the map; a node that finds no
    candidate falls away with its subtree. Randomness: as :func:`draw_children`.
    """
    growth = Growth(source)
    depth, children = growth_map.depths(parent), growth_map.children(parent)
    filled: dict[int, Node] = {0: growth.root}
    for level in range(max(depth)):
        inner = [i for i in sorted(filled) if depth[i] == level and children[i]]
        rows = growth.rows([filled[i] for i in inner])
        for i, row in zip(inner, rows, strict=True):
            drawn = draw_children(filled[i], row, len(children[i]), proposal, key)
            filled.update(zip(children[i], drawn, strict=False))
    return finish([filled[i] for i in sorted(filled)], proposal)


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
    # A law that nothing in the tree was drawn from is not part of it.
    laws = [(node.law or {}) if node.draws else {} for node in order]
    width = 1 + max((token for law in laws for token in law), default=-1)
    if width == 0:
        return None
    table = np.zeros((len(order), width), dtype=np.float32)
    for i, law in enumerate(laws):
        for token, probability in law.items():
            table[i, token] = probability
    return table
