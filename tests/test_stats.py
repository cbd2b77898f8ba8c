# SPDX-License-Identifier: Apache-2.0
"""Counters: against a round counted by hand, and against sets and loops on random rounds."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

import treespec
from treespec import Stats, TokenTree
from treespec.cli.report import stats_dict


def with_logprobs(parent: list[int], own: list[float]) -> TokenTree:
    """A tree with these probabilities of the nodes below the root, given their parents."""
    entries = [above - 1 for above in parent[1:]]  # a trie has no entry for the root
    trie = treespec.Trie(entries, list(range(len(entries))), np.log(own))
    tree = treespec.build_tree("trie", trie, node_budget=len(own))
    assert len(tree) == len(parent)
    return tree


class Oracle:
    """What `Stats` counts, from sets and loops."""

    def __init__(self) -> None:
        self.offered: list[tuple[int, int]] = []  # (depth, rank), one by one
        self.accepted: list[tuple[int, int]] = []
        self.sizes: list[int] = []
        self.depths: list[int] = []
        self.promised = 0.0

    def count(self, parent: list[int], probability: list[float], path: list[int]) -> None:
        nodes = range(1, len(parent))

        def ancestors(node: int) -> list[int]:
            return [node, *ancestors(parent[node])] if node else []

        self.sizes.append(len(nodes))
        self.depths.append(max((len(ancestors(node)) for node in nodes), default=0))
        self.promised += sum(
            float(np.prod([probability[one] for one in ancestors(node)])) for node in nodes
        )
        node = 0
        while True:
            children = [child for child in nodes if parent[child] == node]
            depth = len(ancestors(node))
            for rank, child in enumerate(children):
                self.offered.append((depth, rank))
                if child in path:
                    self.accepted.append((depth, rank))
                    break
            if not set(children) & set(path):
                return
            node = (set(children) & set(path)).pop()


def random_round(rng: np.random.Generator) -> tuple[list[int], list[float], list[int]]:
    """A random tree, probabilities of its nodes and a path from its root."""
    nodes = int(rng.integers(0, 12))
    parent = [-1, *(int(rng.integers(max(0, n - 3), n)) for n in range(1, nodes + 1))]
    probability = [1.0, *rng.uniform(0.05, 1.0, nodes).tolist()]
    node, path = 0, []
    while children := [c for c in range(1, nodes + 1) if parent[c] == node]:
        if rng.random() < 0.3:
            break
        node = int(rng.choice(children))
        path.append(node)
    return parent, probability, path


@dataclasses.dataclass
class Drafted:
    """A `DraftedTree` of given numbers."""

    parent: np.ndarray
    max_depth: int
    expected_acceptance: float


def drafted(parent: list[int], probability: list[float]) -> Drafted:
    depth, reach = [0] * len(parent), [1.0] * len(parent)
    for node in range(1, len(parent)):
        depth[node] = depth[parent[node]] + 1
        reach[node] = reach[parent[node]] * probability[node]
    return Drafted(np.array(parent, dtype=np.int32), max(depth), sum(reach[1:]))


def test_a_round_counted_by_hand() -> None:
    """Root -> 1, 2; 1 -> 3; 2 -> 4, 5; the walk takes 2, then 5, and adds a token."""
    tree = with_logprobs([-1, 0, 0, 1, 2, 2], [0.5, 0.4, 0.5, 0.5, 0.5])
    assert tree.parent.tolist() == [-1, 0, 0, 1, 2, 2]
    stats = Stats()
    stats.count_round(tree, np.array([2, 5], dtype=np.int32), 3)
    assert (stats.rounds, stats.tokens, stats.drafted_nodes, stats.accepted) == (1, 3, 5, 2)
    assert stats.wasted_nodes == 3
    assert stats.wasted_share == 3 / 5
    assert stats.predicted_accepted == pytest.approx(0.5 + 0.4 + 0.25 + 0.2 + 0.2)
    assert (stats.offered_by_depth, stats.accepted_by_depth) == ([1, 1], [1, 1])
    assert (stats.offered_by_rank, stats.accepted_by_rank) == ([2, 2], [0, 2])
    assert stats.shapes == {(5, 2): 1}
    assert stats.rounds_by_kind == {"plain": 0, "chain": 0, "tree": 1}


def test_what_a_stop_cuts_off_counts_as_wasted() -> None:
    tree = with_logprobs([-1, 0, 1, 2], [0.9, 0.9, 0.9])
    stats = Stats()
    stats.count_round(tree, np.array([1, 2, 3], dtype=np.int32), 2)
    assert (stats.tokens, stats.accepted, stats.wasted_nodes) == (2, 2, 1)
    assert stats.offered_by_depth == stats.accepted_by_depth == [1, 1]


def test_kinds_of_rounds() -> None:
    stats = Stats()
    for parent in ([-1], [-1, 0], [-1, 0, 1], [-1, 0, 0], [-1, 0, 0]):
        tree = drafted(parent, [1.0] * len(parent))
        stats.count_round(tree, np.empty(0, dtype=np.int32), 1)
    assert stats.rounds_by_kind == {"plain": 1, "chain": 2, "tree": 2}
    assert stats.rounds_by_size == {0: 1, 1: 1, 2: 3}
    assert stats.rounds_by_depth == {0: 1, 1: 3, 2: 1}


def test_random_rounds_are_counted_as_the_oracle_counts_them() -> None:
    rng = np.random.default_rng(0)
    stats, oracle = Stats(), Oracle()
    for _ in range(300):
        parent, probability, path = random_round(rng)
        tree = drafted(parent, probability)
        stats.count_round(tree, np.array(path, dtype=np.int32), len(path) + 1)
        oracle.count(parent, probability, path)
    assert stats.drafted_nodes == sum(oracle.sizes)
    assert stats.wasted_nodes == sum(oracle.sizes) - len(oracle.accepted)
    assert stats.predicted_accepted == pytest.approx(oracle.promised)
    assert stats.rounds_by_size == dict(sorted(Counter(oracle.sizes).items()))
    assert stats.rounds_by_depth == dict(sorted(Counter(oracle.depths).items()))
    places = Counter(depth for depth, rank in oracle.offered if rank == 0)
    for axis, offered, accepted in (
        (0, stats.offered_by_depth, stats.accepted_by_depth),
        (1, stats.offered_by_rank, stats.accepted_by_rank),
    ):
        expected = places if axis == 0 else Counter(place[1] for place in oracle.offered)
        taken = Counter(place[axis] for place in oracle.accepted)
        assert offered == [expected[n] for n in range(len(offered))]
        assert sum(offered) == sum(expected.values())
        assert accepted == [taken[n] for n in range(len(accepted))]
        assert sum(accepted) == len(oracle.accepted)


def test_the_total_of_several_texts_is_one_count() -> None:
    rng = np.random.default_rng(1)
    whole, parts = Stats(texts=3, tokens=3), []
    for _ in range(3):
        part = Stats(tokens=1, draft_calls=2, draft_rows=5)
        part.seconds["target"] = 0.5
        for _ in range(40):
            parent, probability, path = random_round(rng)
            for stats in (part, whole):
                tree = drafted(parent, probability)
                stats.count_round(tree, np.array(path, dtype=np.int32), len(path) + 1)
        parts.append(part)
    total = Stats.total(parts)
    assert total.seconds["target"] == 1.5
    assert (total.draft_calls, total.draft_rows) == (6, 15)
    assert total.predicted_accepted == pytest.approx(whole.predicted_accepted)
    uncompared = {"seconds", "draft_calls", "draft_rows", "predicted_accepted"}
    for field in dataclasses.fields(Stats):
        if field.name not in uncompared:
            assert getattr(total, field.name) == getattr(whole, field.name), field.name
    assert total.block_efficiency == (total.tokens - 3) / total.rounds


def test_speedup_is_plain_time_over_the_time_of_the_rounds() -> None:
    stats = Stats(rounds=10, tokens=31)
    stats.seconds |= {"prefill": 99.0, "target": 1.0, "draft": 0.4, "other": 0.1}
    assert stats.seconds_per_token == pytest.approx(0.05)
    assert stats.speedup_estimate(0.1) == pytest.approx(2.0)
    assert Stats().speedup_estimate(0.1) == 0.0
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="plain_seconds must be above 0"):
            stats.speedup_estimate(seconds)


def test_nothing_counted_divides_by_nothing() -> None:
    stats = Stats()
    ratios = (stats.block_efficiency, stats.wasted_share, stats.tokens_per_second)
    assert ratios == (0.0, 0.0, 0.0)
    assert stats.acceptance_by_depth == []
    assert stats.rounds_by_size == {}


def test_statistics_are_plain_json() -> None:
    stats = Stats()
    stats.count_round(with_logprobs([-1, 0, 0], [0.5, 0.25]), np.array([1], dtype=np.int32), 2)
    values = json.loads(json.dumps(stats_dict(stats)))
    assert values["shapes"] == [{"nodes": 2, "depth": 1, "rounds": 1}]
    assert values["wasted_nodes"] == 1
    assert values["predicted_accepted"] == pytest.approx(0.75)
    assert values["rounds_by_kind"] == {"plain": 0, "chain": 0, "tree": 1}
