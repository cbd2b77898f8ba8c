# SPDX-License-Identifier: Apache-2.0
"""Growth maps: the shape of a tree, fixed before anything is drafted.

A map is a list ``parent``: drafted node i + 1 hangs below node ``parent[i]`` (0 is the root); its
rank is its place among the children of that parent. An acceptance table has a row per depth of the
child, the last one for all deeper ones: ``acceptance[d][r]`` is the chance that the child of rank r
of an accepted node at depth d is accepted. A flat list is a table of one row.

Source: Chen et al., "Sequoia" (2024, arXiv 2402.12374), section 3.1, and Cai et al., "Medusa"
(2024, arXiv 2401.10774), whose choices are the same thing built from accuracies of heads.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

Table = list[list[float]]


def read_table(name: str, option: str, value: Any) -> Table:
    """The rows of an acceptance table; refuses what is no law of disjoint events."""
    rows = [value] if len(value) > 0 and np.ndim(value[0]) == 0 else list(value)
    table = [[float(p) for p in row] for row in rows]
    sound = bool(table) and all(
        row and all(0.0 <= p <= 1.0 for p in row) and sum(row) <= 1.0 + 1e-6 for row in table
    )
    if not sound:
        raise ValueError(
            f"{name}: {option} must be rows of numbers in [0, 1] with sum <= 1, got {value}"
        )
    return table


def read_map(name: str, growth_map: Any) -> list[int]:
    """The parents of a map; parents come first."""
    parent = [int(p) for p in getattr(growth_map, "parent", growth_map)]
    for i, p in enumerate(parent):
        if not 0 <= p <= i:
            raise ValueError(f"{name}: growth_map must have parent[{i}] in [0, {i}], got {p}")
    return parent


# ------------------------------------------------------------------ reading a map


def depths(parent: Sequence[int]) -> list[int]:
    """Depth of every node, the root included."""
    result = [0]
    for p in parent:
        result.append(result[p] + 1)
    return result


def children(parent: Sequence[int]) -> list[list[int]]:
    """Children of every node, by rank."""
    result: list[list[int]] = [[] for _ in range(len(parent) + 1)]
    for i, p in enumerate(parent):
        result[p].append(i + 1)
    return result


def ranks(parent: Sequence[int]) -> list[int]:
    """Rank of every node among its siblings; the root has -1."""
    result = [-1] * (len(parent) + 1)
    for siblings in children(parent):
        for rank, node in enumerate(siblings):
            result[node] = rank
    return result


def paths(parent: Sequence[int]) -> list[list[int]]:
    """The drafted nodes as paths of ranks, in map order."""
    result: list[list[int]] = [[]]
    for p, rank in zip(parent, ranks(parent)[1:], strict=True):
        result.append([*result[p], rank])
    return result[1:]


def cut(parent: Sequence[int], node_budget: int, max_depth: float) -> list[int]:
    """The first ``node_budget`` nodes of those not deeper than ``max_depth``."""
    depth = depths(parent)
    new_id = {0: 0}
    kept: list[int] = []
    for node in range(1, len(depth)):
        if depth[node] <= max_depth and len(kept) < node_budget:
            new_id[node] = len(new_id)
            kept.append(new_id[parent[node - 1]])
    return kept


# ------------------------------------------------------------------ what a map is worth


def row_at(table: Table, depth: int) -> list[float]:
    """Acceptance of the children of a node at ``depth``."""
    return table[min(depth, len(table) - 1)]


def expected_tokens(parent: Sequence[int], acceptance: Any) -> float:
    """Tokens per target call under the positional model: 1 + the sum of f over drafted nodes.

    f(child of rank r) = f(parent) * acceptance[depth of the parent][r], as the table has it.
    """
    table = read_table("expected_tokens", "acceptance", acceptance)
    f = [1.0]
    for p, rank, depth in zip(parent, ranks(parent)[1:], depths(parent)[1:], strict=True):
        row = row_at(table, depth - 1)
        f.append(f[p] * (row[rank] if rank < len(row) else 0.0))
    return sum(f)


# ------------------------------------------------------------------ the best map


def smooth(row: Sequence[float]) -> list[float]:
    """The nearest row that never rises (isotonic regression, pool adjacent violators).

    Measured acceptances are noisy in their tail; a rise there is noise.
    """
    blocks: list[tuple[float, int]] = []
    for p in row:
        total, count = p, 1
        while blocks and blocks[-1][0] / blocks[-1][1] < total / count:
            before, size = blocks.pop()
            total, count = before + total, size + count
        blocks.append((total, count))
    return [total / count for total, count in blocks for _ in range(count)]


def optimal(acceptance: Any, num_nodes: int, max_depth: float | None = None) -> list[int]:
    """The ``num_nodes`` nodes of largest f over the smoothed table, best first.

    Order: f down, depth up, parent up, rank up. Nodes of f = 0 are never taken. f falls along
    children and along siblings, so this is the optimum for every number of nodes at once
    (trees.md, sections 0.3 and 3.2).
    """
    table = [smooth(row) for row in read_table("optimal", "acceptance", acceptance)]
    cap = float("inf") if max_depth is None else max_depth
    parent: list[int] = []
    heap: list[tuple[float, int, int, int]] = []

    def offer(node: int, depth: int, f: float) -> None:
        if depth < cap:
            for rank, p in enumerate(row_at(table, depth)):
                if f * p > 0:
                    heapq.heappush(heap, (-(f * p), depth + 1, node, rank))

    offer(0, 0, 1.0)
    while heap and len(parent) < num_nodes:
        negative_f, depth, above, _ = heapq.heappop(heap)
        parent.append(above)
        offer(len(parent), depth, -negative_f)
    return parent


def dynamic_programme(
    acceptance: Any, num_nodes: int, max_depth: int | None = None
) -> tuple[float, list[int]]:
    """(F, map) of the best map of at most ``num_nodes`` nodes over the table as it is.

    Source: Sequoia, section 3.1 (trees.md 3.2), with an acceptance per depth: ``best[k][n][b]`` is
    the largest sum of f, relative to its root, of a subtree of exactly n nodes, its root counted,
    whose root is at depth k and has exactly b children.
    """
    table = read_table("dynamic_programme", "acceptance", acceptance)
    deepest = num_nodes if max_depth is None else min(max_depth, num_nodes)
    size = num_nodes + 1
    best: list[list[list[float]]] = [[] for _ in range(deepest + 1)]
    last: list[list[list[int]]] = [[] for _ in range(deepest + 1)]  # size of the last child
    for depth in range(deepest, -1, -1):
        row = row_at(table, depth) if depth < deepest else []
        best[depth], last[depth] = _subtrees(row, size, best[depth + 1] if depth < deepest else [])
    total = max(range(1, size + 1), key=lambda n: max(best[0][n]))
    return max(best[0][total]), _rebuild(best, last, total)


def _subtrees(
    row: Sequence[float], size: int, below: list[list[float]]
) -> tuple[list[list[float]], list[list[int]]]:
    """``T[n][b] = max over y of T[y][b - 1] + p_b * max over b' of T_below[n - y][b']``."""
    best = [[-np.inf] * (len(row) + 1) for _ in range(size + 1)]
    last = [[0] * (len(row) + 1) for _ in range(size + 1)]
    best[1][0] = 1.0
    for b, p in enumerate(row, start=1):
        for n in range(2, size + 1):
            for child in range(1, n):
                value = best[n - child][b - 1] + p * max(below[child])
                if value > best[n][b]:
                    best[n][b], last[n][b] = value, child
    return best, last


def _rebuild(best: list[list[list[float]]], last: list[list[list[int]]], total: int) -> list[int]:
    parent: list[int] = []

    def expand(node: int, depth: int, n: int) -> None:
        b = int(np.argmax(best[depth][n]))
        sizes: list[int] = []
        while b > 0:
            sizes.append(last[depth][n][b])
            n, b = n - sizes[-1], b - 1
        first = len(parent) + 1
        parent.extend([node] * len(sizes))
        for child, subtree in enumerate(reversed(sizes), start=first):
            expand(child, depth + 1, subtree)

    expand(0, 0, total)
    return parent
