# SPDX-License-Identifier: Apache-2.0
"""opt_tree and eagle2: trees grown layer by layer from a deterministic drafter."""

import itertools

import numpy as np
import pytest
from support import (
    all_trees,
    core_build,
    expected_acceptance,
    first_nodes,
    make_source,
    marginals,
    oracle_build,
    path_weights,
    paths_of,
    same_shape,
    same_tree,
)

from treespec import testing
from treespec.reference.tree import check_tree
from treespec.testing import ToyDrafter, random_laws

LAYERED = ("opt_tree", "eagle2")
GROWTHS = {
    "layer": {},
    "constant": {"growth": "constant"},
    "ratio .03": {"width_ratio": 0.03},
    "ratio .5": {"width_ratio": 0.5},
    "ratio 1": {"width_ratio": 1.0},
}


def sharp_laws(seed, vocab_size=5):
    """Rows whose best token has probability 1 in float32, or nearly; the others next to nothing."""

    def law(path):
        rng = np.random.default_rng([seed, len(path), *path])
        rest = rng.choice([0.0, 1e-30, 1e-12, 1e-8, 6e-8, 1e-7, 1e-3], size=vocab_size)
        row = np.where(np.arange(vocab_size) == rng.integers(vocab_size), 1.0, rest)
        return row / row.sum()

    return law


# ------------------------------------------------------------------ opt_tree


def test_opt_tree_gives_the_golden_tree(build):
    # G2 of the specification: E = 1.49, the second layer gains 0.49 > 0.4.
    laws = {
        (): [0.55, 0.35, 0.10],
        (0,): [0.5, 0.3, 0.2],
        (1,): [0.9, 0.05, 0.05],
        (2,): [0.4, 0.3, 0.3],
    }
    options = {"node_budget": 4, "max_depth": 2, "threshold": 0.4}
    drafter = ToyDrafter(lambda path: np.array(laws[path]))
    tree = build("opt_tree", drafter, **options)
    assert paths_of(tree) == [(0,), (1,), (1, 0), (0, 0)]
    np.testing.assert_array_equal(tree.parent, [-1, 0, 0, 2, 1])
    weights = np.exp(tree.path_logprob[1:])
    np.testing.assert_allclose(weights, [0.55, 0.35, 0.315, 0.275], rtol=1e-5)
    assert expected_acceptance(tree) == pytest.approx(1.49, rel=1e-5)
    shallow = build("opt_tree", drafter, node_budget=4, max_depth=1)
    assert expected_acceptance(shallow) == pytest.approx(1.0, rel=1e-5)
    tree = build("opt_tree", drafter, **{**options, "threshold": 0.5})
    assert len(tree.token) == 5, "the stop is tested after the layer was added"
    tree = build("opt_tree", drafter, **{**options, "threshold": 1.01})
    np.testing.assert_array_equal(tree.parent, [-1, 0, 0, 0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("vocab_size", "depth"), [(2, 3), (3, 2)])
def test_opt_tree_is_the_best_of_all_prefix_closed_sets(build, vocab_size, depth, seed):
    laws = random_laws(seed, vocab_size, ("dense", "smooth"))
    weight = path_weights(laws, vocab_size, depth)
    for size in range(1, 6):
        best = max(sum(weight[p] for p in tree) for tree in all_trees(vocab_size, depth, size))
        tree = build("opt_tree", ToyDrafter(laws), node_budget=size, max_depth=depth)
        assert expected_acceptance(tree) == pytest.approx(best, rel=1e-5)
        assert len(tree.token) == size + 1


def test_a_smaller_budget_gives_the_first_nodes_of_a_larger_one(build):
    laws = random_laws(5, 6, ("dense", "peaked"))
    large = build("opt_tree", ToyDrafter(laws), node_budget=24, max_depth=5)
    for budget in range(1, 24):
        small = build("opt_tree", ToyDrafter(laws), node_budget=budget, max_depth=5)
        assert len(small.token) == budget + 1
        first_nodes(small, large)


def test_a_further_layer_gains_no_more_than_its_bound(build):
    # E never falls with depth; the gain is at most the mass of last-layer nodes above theta.
    for seed, budget in itertools.product(range(8), (1, 3, 10)):
        laws = random_laws(seed, 4, ("smooth", "peaked", "dense"))
        trees = [
            build("opt_tree", ToyDrafter(laws), node_budget=budget, max_depth=d)
            for d in range(1, 6)
        ]
        for depth, (tree, deeper) in enumerate(itertools.pairwise(trees), start=1):
            gain = expected_acceptance(deeper) - expected_acceptance(tree)
            scores = np.asarray(tree.path_logprob[1:], dtype=np.float64)
            theta = np.min(scores) if len(scores) == budget else -np.inf
            last = scores[(tree.depth[1:] == depth) & (scores > theta)]
            assert -1e-6 <= gain <= np.exp(last).sum() + 1e-6
            if len(last) == 0:
                same_shape(deeper, tree)


def test_pruning_asks_for_no_more_rows_than_whole_layers():
    saved = 0
    for seed, budget in itertools.product(range(5), (1, 4, 12, 30)):
        laws = random_laws(seed, 6, ("dense", "peaked"))
        core, oracle = ToyDrafter(laws), ToyDrafter(laws)
        options = {"node_budget": budget, "max_depth": 5}
        same_tree(
            core_build("opt_tree", core, **options), oracle_build("opt_tree", oracle, **options)
        )
        assert core.num_rows <= oracle.num_rows
        assert core.calls <= oracle.calls
        saved += oracle.num_rows - core.num_rows
    assert saved > 0


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.35, 0.5, 0.8, 0.99, 1.01, 3.0])
def test_opt_tree_stops_where_the_oracle_stops(threshold):
    depths = set()
    for seed, budget in itertools.product(range(6), (1, 3, 8, 25)):
        laws = random_laws(seed, 5, ("smooth", "peaked", "dense"))
        options = {"node_budget": budget, "threshold": threshold, "max_depth": 6}
        core_source, oracle_source = ToyDrafter(laws), ToyDrafter(laws)
        core = core_build("opt_tree", core_source, **options)
        same_tree(core, oracle_build("opt_tree", oracle_source, **options))
        assert core_source.calls == oracle_source.calls
        depths.add(int(core.depth.max()))
    assert threshold >= 0.8 or len(depths) > 1


@pytest.mark.parametrize("calibration", [None, [[0.2, 0.1], [0.6, 0.75], [0.9, 0.95]]])
@pytest.mark.parametrize("floor", [0.001, 0.03, 0.2, 0.7])
def test_nodes_below_the_floor_are_left_out_and_not_expanded(floor, calibration):
    sizes = set()
    for seed, budget in itertools.product(range(6), (1, 3, 8, 40)):
        laws = random_laws(seed, 5, ("smooth", "peaked", "dense"))
        options = {"node_budget": budget, "max_depth": 6}
        if calibration:
            options["calibration"] = calibration
        core_source, oracle_source = ToyDrafter(laws), ToyDrafter(laws)
        core = core_build("opt_tree", core_source, **options, floor=floor)
        same_tree(core, oracle_build("opt_tree", oracle_source, **options, floor=floor))
        assert core_source.calls <= oracle_source.calls
        assert np.all(core.path_logprob >= np.float32(np.log(floor)))
        whole = core_build("opt_tree", ToyDrafter(laws), **options)
        kept = int(np.sum(whole.path_logprob[1:] >= np.float32(np.log(floor))))
        assert len(core) - 1 == kept, "a beginning of the tree without a floor"
        sizes.add(kept)
    assert floor > 0.5 or len(sizes) > 2


# ------------------------------------------------------------------ eagle2


@pytest.mark.parametrize("growth", ["layer", "constant", "ratio .03"])
def test_eagle2_with_a_wide_beam_is_opt_tree(build, growth):
    # Constant growth spends its calls on the best open nodes: as many calls as nodes are enough.
    for seed, budget in itertools.product(range(5), (1, 4, 9)):
        laws = random_laws(seed, 4, ("dense", "peaked", "smooth"))
        best = build("opt_tree", ToyDrafter(laws), node_budget=budget, max_depth=budget)
        options = {"width": budget, "max_depth": budget, **GROWTHS[growth]}
        tree = build("eagle2", ToyDrafter(laws), node_budget=budget, **options)
        if growth == "ratio .03":  # it stops when the budget is filled
            assert expected_acceptance(tree) <= expected_acceptance(best) + 1e-6
        else:
            same_shape(tree, best)
            np.testing.assert_array_equal(tree.path_logprob, best.path_logprob)


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("width", [1, 2, 3])
def test_eagle2_is_no_better_than_opt_tree(build, growth, width):
    worse = 0
    for seed, budget in itertools.product(range(6), (4, 12)):
        laws = random_laws(seed, 5, ("dense", "smooth"))
        best = build("opt_tree", ToyDrafter(laws), node_budget=budget, max_depth=4)
        options = {"width": width, "max_depth": 4, **GROWTHS[growth]}
        tree = build("eagle2", ToyDrafter(laws), node_budget=budget, **options)
        assert check_tree(tree) == []
        assert expected_acceptance(tree) <= expected_acceptance(best) + 1e-6
        worse += expected_acceptance(tree) < expected_acceptance(best) - 1e-3
    assert worse > 0 or width > 1


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("kind", ["expander", "marginals", "transitions", "trie"])
def test_every_growth_of_eagle2_equals_the_oracle(growth, kind):
    for seed, width, budget, depth in itertools.product(range(4), (1, 2, 4), (1, 6, 25), (1, 3, 6)):
        core_source, oracle_source = make_source(kind, seed)
        options = {"node_budget": budget, "width": width, "max_depth": depth, **GROWTHS[growth]}
        core = core_build("eagle2", core_source, **options)
        same_tree(core, oracle_build("eagle2", oracle_source, **options))
        if kind == "expander":
            assert core_source.calls <= oracle_source.calls
            assert core_source.num_rows <= oracle_source.num_rows


def test_the_pool_of_eagle2_is_one_beam_and_its_squares(build):
    # k + (L - 1) k^2 drafted, and every one of them is in a tree without a limit.
    laws = random_laws(1, 6, ("dense",))
    for width, depth in itertools.product((1, 2, 3), (1, 2, 4)):
        drafter = ToyDrafter(laws)
        options = {"width": width, "max_depth": depth}
        tree = build("eagle2", drafter, node_budget=1000, **options)
        assert len(tree.token) - 1 == width + (depth - 1) * width**2
        assert drafter.calls == depth
        assert drafter.num_rows == 1 + (depth - 1) * width


@pytest.mark.parametrize("growth", ["layer", "constant"])
def test_a_smaller_budget_gives_the_first_nodes_of_a_larger_one_in_eagle2(build, growth):
    laws = random_laws(7, 6, ("dense", "peaked"))
    options = {"width": 3, "max_depth": 4, **GROWTHS[growth]}
    large = build("eagle2", ToyDrafter(laws), node_budget=60, **options)
    for budget in range(0, 40):
        first_nodes(build("eagle2", ToyDrafter(laws), node_budget=budget, **options), large)


@pytest.mark.parametrize("growth", GROWTHS)
def test_sharply_peaked_rows_never_give_orphans(build, growth):
    # Scores of parent and child are equal there: the shallower one comes first.
    for seed, budget in itertools.product(range(15), (2, 5, 11)):
        laws = sharp_laws(seed)
        options = {"node_budget": budget, "width": 3, "max_depth": 6, **GROWTHS[growth]}
        tree = build("eagle2", ToyDrafter(laws), **options)
        assert check_tree(tree) == []
        for node, path in enumerate(paths_of(tree), start=1):
            parent = tree.parent[node]
            step = np.float32(np.log(laws(path[:-1])[path[-1]]))
            assert tree.path_logprob[node] == np.float32(tree.path_logprob[parent] + step)


@pytest.mark.parametrize("seed", range(15))
def test_opt_tree_and_eagle2_agree_on_sharply_peaked_rows(build, seed):
    options = {"node_budget": 6, "max_depth": 6}
    one = build("opt_tree", ToyDrafter(sharp_laws(seed)), **options)
    two = build("eagle2", ToyDrafter(sharp_laws(seed)), width=6, **options)
    same_shape(one, two)


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_siblings_ids_decides_ties_alone(build, name, seed):
    # The same laws under another naming of tokens: the same shape of scores.
    rng = np.random.default_rng(seed)
    rows = np.stack([testing.random_law(rng, 6, "smooth") for _ in range(4)])
    naming = rng.permutation(6)
    renamed = np.empty_like(rows)
    renamed[:, naming] = rows
    one = build(name, marginals(rows), node_budget=12)
    two = build(name, marginals(renamed), node_budget=12)
    np.testing.assert_array_equal(naming[one.token[1:]], two.token[1:])
    np.testing.assert_array_equal(one.parent, two.parent)


# ------------------------------------------------------------------ eagle2: other growths


@pytest.mark.parametrize(("width", "depth"), [(1, 5), (2, 3), (4, 4), (8, 2)])
def test_constant_growth_has_calls_of_one_size(build, width, depth):
    laws = random_laws(3, 9, ("dense",))
    sizes = []

    class Counting(ToyDrafter):
        def expand(self, nodes):
            sizes.append(len(nodes))
            return super().expand(nodes)

    for budget in (3, 20, 500):
        sizes.clear()
        options = {"growth": "constant", "width": width, "max_depth": depth}
        tree = build("eagle2", Counting(laws), node_budget=budget, **options)
        assert check_tree(tree) == []
        assert len(sizes) <= depth
        assert max(sizes) <= width
        assert len(tree.token) - 1 <= min(budget, width * sum(sizes))
    # Unlimited budget: nothing can be left out, and after the root all calls are full.
    assert sizes == [1] + [width] * (depth - 1)
    assert len(tree.token) - 1 == width * sum(sizes)


def test_constant_growth_goes_deep_where_the_drafter_is_sure(build):
    # One token of .99 everywhere: each call follows it one level further, at any width.
    law = np.array([0.99, 0.004, 0.003, 0.003])
    options = {"growth": "constant", "width": 2, "max_depth": 6}
    tree = build("eagle2", ToyDrafter(lambda path: law), node_budget=6, **options)
    assert paths_of(tree) == [(0,) * d for d in range(1, 7)]


def test_constant_growth_takes_what_is_best_anywhere(build):
    laws = {(): [0.6, 0.4], (0,): [0.9, 0.1], (1,): [0.9, 0.1], (0, 0): [0.5, 0.5]}
    drafter = ToyDrafter(lambda path: np.array(laws[path]))
    # Calls: the root; [0] at .6; [0, 0] at .54, before [1] at .4.
    options = {"growth": "constant", "width": 2, "node_budget": 9}
    single = build("eagle2", drafter, **{**options, "width": 1, "max_depth": 3})
    assert paths_of(single) == [(0,), (0, 0), (0, 0, 0)]
    laws[(1, 0)] = laws[(0, 1)] = [0.5, 0.5]
    tree = build("eagle2", drafter, max_depth=2, **options)
    assert paths_of(tree) == [(0,), (0, 0), (1,), (1, 0), (0, 1), (1, 1)]


def test_a_ratio_keeps_what_is_near_the_best_of_its_layer(build):
    laws = {
        (): [0.5, 0.3, 0.2, 0.0],
        (0,): [0.7, 0.1, 0.1, 0.1],
        (1,): [0.8, 0.1, 0.05, 0.05],
        (2,): [0.25, 0.25, 0.25, 0.25],
    }
    drafter = ToyDrafter(lambda path: np.array(laws[path]))
    # Layer 2: .35 is best; at .5 of it only [1, 0] = .24 stays beside it.
    options = {"node_budget": 20, "max_depth": 2, "width": 3}
    tree = build("eagle2", drafter, width_ratio=0.5, **options)
    assert sorted(paths_of(tree)) == [(0,), (0, 0), (1,), (1, 0), (2,)]
    # At .1 of it all of at least .035 stay, more than the width.
    tree = build("eagle2", drafter, width_ratio=0.1, **options)
    assert len(tree.token) - 1 == 3 + 3 + 1 + 3
    # The first layer is a plain beam.
    tree = build("eagle2", drafter, width_ratio=1.0, **options)
    assert sorted(paths_of(tree)) == [(0,), (0, 0), (1,), (2,)]


def test_growth_by_ratio_stops_when_the_budget_is_filled(build):
    for budget, calls in ((3, 1), (4, 2), (12, 2), (13, 3), (40, 4)):
        drafter = ToyDrafter(lambda path: np.full(3, 1 / 3))
        options = {"width": 3, "max_depth": 4, "width_ratio": 0.5}
        tree = build("eagle2", drafter, node_budget=budget, **options)
        assert len(tree.token) == budget + 1
        assert drafter.calls <= calls
    assert drafter.calls == 4


def test_a_tie_with_the_ratio_is_kept(build):
    drafter = ToyDrafter(lambda path: np.array([0.5, 0.25, 0.25]))
    tree = build("eagle2", drafter, node_budget=50, width=3, max_depth=2, width_ratio=0.5)
    # Best .25; kept from .125 on: [0, *] and [1, 0], [2, 0].
    assert sorted(p for p in paths_of(tree) if len(p) == 2) == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (2, 0),
    ]
