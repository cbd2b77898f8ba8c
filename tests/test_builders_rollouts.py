# SPDX-License-Identifier: Apache-2.0
"""rollouts and delayed: independent paths, with multiplicity where they meet."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
from support import (
    core_build,
    log,
    make_source,
    marginals,
    oracle_build,
    path_of,
    same_shape,
    same_tree,
)

import treespec
from treespec.reference.rng import Purpose, RoundKey, child_slot, uniform
from treespec.reference.sampling import inverse_cdf
from treespec.reference.tree import check_tree
from treespec.testing import ToyDrafter, chi_square, random_laws


def deepest(tree):
    return int(max(tree.depth))


def multiplicity(tree):
    """How often each node was drawn; the root once."""
    times = [1] + [0] * (len(tree.token) - 1)
    for draws in tree.draws:
        for child in draws:
            times[child] += 1
    return times


def first_path(tree):
    """Tokens that follow first draws from the root."""
    node, tokens = 0, []
    while tree.draws[node]:
        node = tree.draws[node][0]
        tokens.append(int(tree.token[node]))
    return tokens


# ------------------------------------------------------------------ shapes


def test_the_golden_delayed_tree(build):
    # G5: (K, L1, L2) = (3, 2, 2): at most 8 nodes, 4 drafter calls.
    sizes = set()
    for seed in range(20):
        drafter = ToyDrafter(random_laws(seed, 3, ("dense",)))
        options = {"num_paths": 3, "trunk": 2, "branch": 2, "seed": seed}
        tree = build("delayed", drafter, node_budget=8, **options)
        assert len(tree.token) - 1 <= 8
        assert drafter.calls == 4
        assert drafter.num_rows <= 1 + 1 + 1 + 3
        assert deepest(tree) == 4
        sizes.add(len(tree.token))
    assert len(sizes) > 1


@pytest.mark.parametrize("paths", [1, 2, 5])
def test_delayed_without_a_trunk_is_rollouts(build, paths):
    for seed, length in itertools.product(range(5), (1, 3)):
        source = make_source("expander", seed, vocab_size=3)[1]
        options = {"node_budget": paths * length, "num_paths": paths, "seed": seed}
        one = build("delayed", source, trunk=0, branch=length, **options)
        same_shape(one, build("rollouts", source, **options))


@pytest.mark.parametrize("length", [1, 3, 6])
def test_one_path_is_a_chain_of_draws(build, length):
    for seed in range(5):
        source = make_source("expander", seed)[1]
        options = {"node_budget": length, "seed": seed}
        chain = build("chain", source, proposal="iid", **options)
        same_shape(chain, build("rollouts", source, num_paths=1, **options))
        same_shape(chain, build("delayed", source, trunk=length, branch=0, **options))
        same_shape(chain, build("delayed", source, num_paths=1, trunk=1, **options))


@pytest.mark.parametrize("name", ["rollouts", "delayed"])
def test_every_cursor_passes_through_its_children(build, name):
    """A node's draws are as many as its own, K at the branch node, and none at full depth."""
    for seed, (paths, trunk, branch) in itertools.product(
        range(6), [(3, 2, 3), (4, 0, 3), (2, 3, 1)]
    ):
        trunk = trunk if name == "delayed" else 0
        options = {"node_budget": trunk + paths * branch, "num_paths": paths, "seed": seed}
        if name == "delayed":
            options |= {"trunk": trunk, "branch": branch}
        tree = build(name, ToyDrafter(random_laws(seed, 3, ("dense",))), **options)
        assert check_tree(tree) == []
        assert tree.proposal == "iid"
        times = multiplicity(tree)
        for node, draws in enumerate(tree.draws):
            depth = int(tree.depth[node])
            passing = paths if depth == trunk else times[node]
            assert len(draws) == (passing if depth < trunk + branch else 0)
            # Children are numbered as they are drawn, and in layers.
            assert sorted(set(draws)) == list(dict.fromkeys(draws))
        assert (
            sum(t for t, d in zip(times, tree.depth, strict=True) if d == trunk + branch) == paths
        )
        assert np.all(np.diff(tree.depth) >= 0)


@pytest.mark.parametrize("name", ["rollouts", "delayed"])
def test_each_path_is_the_walk_of_its_cursor(build, name):
    """Draw j at a node is the inverse CDF of uniform j of its slot; cursors take turns."""
    laws = random_laws(3, 4, ("dense",))
    for seed in range(8):
        key = RoundKey(seed, 2, 7)
        paths, trunk, branch = (3, 2, 3) if name == "delayed" else (3, 0, 3)
        drawn, walks, alone = defaultdict(list), [()] * paths, ()

        def step(path, key=key, drawn=drawn):
            slot = 0
            for token in path:
                slot = child_slot(slot, token)
            u = uniform(key, Purpose.DRAFT, slot, len(drawn[path]))
            drawn[path].append(inverse_cdf(laws(path), u))
            return (*path, drawn[path][-1])

        for _ in range(trunk):
            alone = step(alone)
        walks = [alone] * paths
        for _ in range(branch):
            walks = [step(path) for path in walks]
        options = {"node_budget": 11, "num_paths": paths, "max_depth": trunk + branch}
        options |= {"seed": seed, "sequence_id": 2, "position": 7}
        if name == "delayed":
            options |= {"trunk": trunk, "branch": branch}
        tree = build(name, ToyDrafter(laws), **options)
        for node, draws in enumerate(tree.draws):
            assert [int(tree.token[c]) for c in draws] == drawn[path_of(tree, node)]


def test_trees_of_different_trunks_share_what_was_drawn_first(build):
    for seed in range(10):
        laws = random_laws(seed, 5, ("dense",))
        trees = [
            build("delayed", ToyDrafter(laws), node_budget=30, trunk=t, branch=2, seed=seed)
            for t in range(6)
        ]
        for short, long in itertools.pairwise(trees):
            one, two = first_path(short), first_path(long)
            assert two[: len(one)] == one
            # Where both draw, they draw the same: three times or once.
            place = {path_of(long, node): node for node in range(len(long.token))}
            for node, draws in enumerate(short.draws):
                there = (
                    long.draws[place[path_of(short, node)]] if path_of(short, node) in place else []
                )
                tokens = [int(short.token[c]) for c in draws]
                others = [int(long.token[c]) for c in there]
                count = min(len(tokens), len(others))
                assert tokens[:count] == others[:count]
        assert [len(first_path(tree)) for tree in trees] == [2, 3, 4, 5, 6, 7]


def test_more_paths_add_draws_and_change_none(build):
    laws = random_laws(1, 3, ("dense",))
    for seed in range(10):
        few = build("rollouts", ToyDrafter(laws), node_budget=6, num_paths=2, seed=seed)
        many = build("rollouts", ToyDrafter(laws), node_budget=15, num_paths=5, seed=seed)
        place = {path_of(many, node): node for node in range(len(many.token))}
        for node, draws in enumerate(few.draws):
            tokens = [int(few.token[c]) for c in draws]
            there = [int(many.token[c]) for c in many.draws[place[path_of(few, node)]]]
            assert there[: len(tokens)] == tokens


@pytest.mark.parametrize("name", ["rollouts", "delayed"])
def test_a_cursor_stops_where_nothing_is_possible(build, name):
    # After token 0 nothing is possible; token 1 goes on.
    def law(path):
        return np.zeros(3) if path and path[-1] == 0 else np.array([0.5, 0.5, 0.0])

    stopped = 0
    for seed in range(10):
        options = {"node_budget": 12, "num_paths": 4, "max_depth": 3, "seed": seed}
        tree = build(name, ToyDrafter(law), **options)
        assert check_tree(tree) == []
        for node, draws in enumerate(tree.draws):
            if node and tree.token[node] == 0:
                assert list(draws) == []
                stopped += tree.depth[node] < 3
    assert stopped > 0


# ------------------------------------------------------------------ defaults and limits


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 4, 5, 7, 8, 16, 63, 200])
def test_default_rollouts_are_four_paths_that_fill_the_budget(build, budget):
    source = marginals(np.full((30, 50), 1 / 50))
    tree = build("rollouts", source, node_budget=budget)
    paths = min(4, max(1, budget))
    assert len(tree.draws[0]) == (paths if budget else 0)
    assert deepest(tree) == min(30, budget // paths)


def lengths_by_contract(budget, paths, trunk, branch):
    if trunk is None and branch is None:
        branch = min(8, budget // (paths + 1))
        trunk = min(8, budget - paths * branch)
    elif branch is None:
        branch = min(8, (budget - trunk) // paths)
    elif trunk is None:
        trunk = min(8, budget - paths * branch)
    return trunk, branch


@pytest.mark.parametrize("paths", [None, 1, 2, 6])
@pytest.mark.parametrize(("trunk", "branch"), [(None, None), (3, None), (None, 2), (2, 1), (0, 0)])
def test_default_lengths_of_a_delayed_tree_fill_the_budget(build, paths, trunk, branch):
    source = marginals(np.full((30, 200), 1 / 200))
    given = {"num_paths": paths, "trunk": trunk, "branch": branch}
    given = {name: value for name, value in given.items() if value is not None}
    count = paths or 3
    for budget in (0, 1, 4, 5, 12, 13, 31, 64, 100):
        if (trunk or 0) + count * (branch or 0) > budget:
            with pytest.raises(ValueError, match="node_budget"):
                build("delayed", source, node_budget=budget, **given)
            continue
        l1, l2 = lengths_by_contract(budget, count, trunk, branch)
        tree = build("delayed", source, node_budget=budget, **given)
        assert deepest(tree) == l1 + l2
        forks = [d for d, draws in zip(tree.depth, tree.draws, strict=True) if len(draws) > 1]
        # Later forks would be chance meetings, which 200 tokens make rare.
        if count > 1 and l2 > 0:
            assert min(forks) == l1
        assert len(tree.token) - 1 <= budget


@pytest.mark.parametrize("max_depth", [0, 1, 2, 3, 5, 9])
def test_the_depth_cuts_the_branches_first_and_then_the_trunk(build, max_depth):
    source = marginals(np.full((30, 200), 1 / 200))
    options = {"num_paths": 3, "trunk": 3, "branch": 4, "node_budget": 15}
    tree = build("delayed", source, max_depth=max_depth, **options)
    assert deepest(tree) == min(7, max_depth)
    assert sum(len(draws) == 3 for draws in tree.draws) == (max_depth > 3)
    shallow = marginals(np.full((max_depth or 1, 200), 1 / 200))
    tree = build("delayed", shallow, **options)
    assert deepest(tree) == min(7, max_depth or 1)


def test_both_equal_the_oracle_for_every_shape():
    shapes = [
        ("rollouts", {"num_paths": 1}),
        ("rollouts", {"num_paths": 7}),
        ("rollouts", {"num_paths": 2, "max_depth": 2}),
        ("delayed", {"num_paths": 1}),
        ("delayed", {"num_paths": 5, "trunk": 1}),
        ("delayed", {"num_paths": 2, "branch": 3}),
        ("delayed", {"trunk": 3, "branch": 2, "num_paths": 4}),
        ("delayed", {"trunk": 3, "branch": 2, "num_paths": 4, "max_depth": 4}),
    ]
    for (name, shape), kind in itertools.product(shapes, ("expander", "marginals", "trie")):
        for seed in range(4):
            core_source, oracle_source = make_source(kind, seed, vocab_size=3)
            options = {"node_budget": 14, "seed": seed, **shape}
            core = core_build(name, core_source, **options)
            same_tree(core, oracle_build(name, oracle_source, **options))
            if kind == "expander":
                assert core_source.calls == oracle_source.calls
                assert core_source.num_rows == oracle_source.num_rows


# ------------------------------------------------------------------ law


def test_pairs_of_paths_are_independent():
    law = np.array([0.5, 0.3, 0.2])
    source = treespec.Marginals([[0, 1, 2]] * 2, log([law, law[::-1]]))
    joint = Counter()
    for position in range(6000):
        tree = treespec.build_tree("rollouts", source, 4, num_paths=2, position=position)
        one, two = tree.draws[0]
        first = tree.token[tree.draws[one][0]]
        second = tree.token[tree.draws[two][1 if one == two else 0]]
        joint[int(tree.token[one]), int(tree.token[two]), int(first), int(second)] += 1
    cells = list(itertools.product(range(3), repeat=4))
    expected = [law[a] * law[b] * law[::-1][c] * law[::-1][d] for a, b, c, d in cells]
    statistic, bound = chi_square([joint[cell] for cell in cells], expected)
    assert statistic < bound
