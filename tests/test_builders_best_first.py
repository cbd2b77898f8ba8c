# SPDX-License-Identifier: Apache-2.0
"""dtree and trie: the likeliest prefixes of a source that is there as a whole."""

import itertools

import numpy as np
import pytest
from support import (
    all_paths,
    all_trees,
    core_build,
    core_source,
    expected_acceptance,
    first_nodes,
    log,
    make_source,
    marginals,
    oracle_build,
    path_of,
    path_weights,
    paths_of,
    random_trie,
    same_shape,
    same_tree,
)

import treespec
from treespec import reference, testing
from treespec.reference import mask as reference_mask
from treespec.reference import sources
from treespec.reference.tree import check_tree
from treespec.testing import ToyDrafter, random_laws

# G1 of the specification: L = 2, B = 5.
GOLDEN_LAWS = [[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]]


def random_marginals(seed, vocab_size, depth, kind="smooth"):
    rng = np.random.default_rng([seed, vocab_size, depth])
    return np.stack([testing.random_law(rng, vocab_size, kind) for _ in range(depth)])


def in_total_order(score_of, vocab_size, depth):
    """All possible prefixes: score down, depth up, parent up (in this order), token up."""

    def key(path):
        above = key(path[:-1]) if path else ()
        return (-score_of[path], len(path), above, path[-1] if path else -1)

    possible = [p for p in all_paths(vocab_size, depth) if score_of[p] > -np.inf]
    return sorted(possible, key=key)


def float32_scores(rows, vocab_size, depth):
    score = {(): np.float32(0)}
    for p in all_paths(vocab_size, depth):
        score[p] = np.float32(score[p[:-1]] + rows[len(p) - 1][p[-1]])
    return score


# ------------------------------------------------------------------ dtree


def test_dtree_gives_the_golden_tree(build):
    tree = build("dtree", marginals(GOLDEN_LAWS), node_budget=5)
    assert paths_of(tree) == [(0,), (0, 0), (1,), (1, 0), (2,)]
    np.testing.assert_array_equal(tree.parent, [-1, 0, 1, 0, 3, 0])
    np.testing.assert_array_equal(tree.depth, [0, 1, 2, 1, 2, 1])
    np.testing.assert_allclose(np.exp(tree.path_logprob[1:]), [0.5, 0.35, 0.3, 0.21, 0.2], 1e-6)
    assert expected_acceptance(tree) == pytest.approx(1.56, rel=1e-6)
    bits = reference_mask.bits(tree.parent)[:, 0]
    rows = [{0}, {0, 1}, {0, 1, 2}, {0, 3}, {0, 3, 4}, {0, 5}]
    assert [{j for j in range(6) if row >> j & 1} for row in bits.tolist()] == rows
    np.testing.assert_array_equal(
        reference_mask.intervals(tree.parent), [[0, 6], [1, 3], [2, 3], [3, 5], [4, 5], [5, 6]]
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("vocab_size", "depth"), [(2, 3), (3, 2)])
def test_dtree_is_the_best_of_all_prefix_closed_sets(build, vocab_size, depth, seed):
    rows = random_marginals(seed, vocab_size, depth)
    weight = path_weights(lambda path: rows[len(path)], vocab_size, depth)
    for size in range(1, 6):
        best = max(sum(weight[p] for p in tree) for tree in all_trees(vocab_size, depth, size))
        tree = build("dtree", marginals(rows), node_budget=size)
        assert expected_acceptance(tree) == pytest.approx(best, rel=1e-5)
        assert len(tree.token) == size + 1


@pytest.mark.parametrize("kind", ["dense", "uniform", "sparse", "peaked", "one_hot", "smooth"])
def test_dtree_pops_in_the_total_order(build, kind):
    for seed in range(4):
        rows = log(random_marginals(seed, 4, 3, kind))
        score = float32_scores(rows, 4, 3)
        order = in_total_order(score, 4, 3)
        for budget in (1, 5, 20, 84, 200):
            source = sources.Marginals(np.tile(np.arange(4, dtype=np.int32), (3, 1)), rows)
            tree = build("dtree", source, node_budget=budget)
            assert paths_of(tree) == order[:budget]
            np.testing.assert_array_equal(tree.path_logprob[1:], [score[p] for p in order[:budget]])


@pytest.mark.parametrize("name", ["dtree", "trie", "opt_tree", "eagle2"])
def test_siblings_whose_scores_round_to_one_number_come_by_token(build, name):
    # Below a score of -41 the float32 sums of both children are -41: equal scores, token 3 first.
    logprob = np.array([[-41.0, -np.inf], [-1e-7, -2e-7]], np.float32)
    assert logprob[1, 0] > logprob[1, 1]
    assert np.float32(logprob[0, 0] + logprob[1, 1]) == logprob[0, 0]
    source = sources.Marginals([[7, 8], [9, 3]], logprob)
    if name == "trie":
        source = sources.Trie([-1, 0, 0], [7, 9, 3], logprob.ravel()[[0, 2, 3]])
    tree = build(name, source, node_budget=9)
    assert paths_of(tree) == [(7,), (7, 3), (7, 9)]
    assert paths_of(build(name, source, node_budget=2)) == [(7,), (7, 3)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["dtree", "opt_tree", "eagle2"])
def test_scores_that_swallow_small_differences_are_no_problem(name, seed):
    # Steps from 0 to -1e30 in one tree: sums lose what is small, and ties are everywhere.
    rng = np.random.default_rng(seed)
    steps = [0, -1e-8, -1e-7, -1e-3, -0.5, -2, -41, -60, -87.5, -104, -300, -1e30, -np.inf]
    for _ in range(40):
        depth, width = int(rng.integers(1, 5)), int(rng.integers(1, 8))
        token = np.stack([rng.permutation(20)[:width] for _ in range(depth)]).astype(np.int32)
        logprob = rng.choice(steps, size=(depth, width)).astype(np.float32)
        source = sources.Marginals(token, logprob)
        budget = int(rng.integers(1, 40))
        core = core_build(name, source, node_budget=budget)
        same_tree(core, oracle_build(name, source, node_budget=budget))


@pytest.mark.parametrize("kind", ["marginals", "transitions", "trie"])
def test_a_smaller_budget_gives_the_first_nodes_of_a_larger_one(build, kind):
    for seed in range(4):
        _, source = make_source(kind, seed)
        large = build("dtree", source, node_budget=60)
        for budget in (0, 1, 2, 3, 10, 31, 59):
            small = build("dtree", source, node_budget=budget)
            assert len(small.token) == min(budget + 1, len(large.token))
            first_nodes(small, large)


def test_the_ranks_of_a_kept_node_have_a_bounded_product(build):
    # Everything of lower ranks comes before: the product of 1 + rank is at most the budget.
    for seed, budget in itertools.product(range(5), (3, 8, 33)):
        rows = random_marginals(seed, 8, 5)
        rank = np.argsort(np.argsort(-rows, axis=1), axis=1)
        tree = build("dtree", marginals(rows), node_budget=budget)
        for path in paths_of(tree):
            assert np.prod([1 + rank[d, t] for d, t in enumerate(path)]) <= budget


@pytest.mark.parametrize("max_depth", [1, 2, 3, None])
def test_dtree_respects_max_depth_and_the_depth_of_its_source(build, max_depth):
    rows = random_marginals(1, 3, 3)
    tree = build("dtree", marginals(rows), node_budget=50, max_depth=max_depth or 9)
    cap = max_depth or 3
    assert sorted(paths_of(tree)) == sorted(all_paths(3, cap))


def test_dtree_over_transitions_is_opt_tree_without_its_depth_limit(build):
    for seed in range(6):
        _, source = make_source("transitions", seed)
        for budget in (1, 6, 25):
            same_shape(
                build("dtree", source, node_budget=budget),
                build("opt_tree", source, node_budget=budget),
            )


def test_dtree_of_a_trie_is_trie(build):
    for seed in range(6):
        _, source = make_source("trie", seed)
        for budget, max_depth in itertools.product((1, 6, 40), (1, 3, 30)):
            options = {"node_budget": budget, "max_depth": max_depth}
            one, two = build("dtree", source, **options), build("trie", source, **options)
            same_shape(one, two)
            np.testing.assert_array_equal(one.path_logprob, two.path_logprob)


def test_masked_candidates_never_reach_a_heap(build):
    # A sibling of log-probability -inf after a possible one: no NaN, no node, no loop.
    rows = np.array([[-0.5, -np.inf, -1.0], [-np.inf] * 3, [-0.1, -0.2, -0.3]], np.float32)
    source = sources.Marginals([[4, 9, 2], [0, 1, 2], [0, 1, 2]], rows)
    tree = build("dtree", source, node_budget=40)
    assert paths_of(tree) == [(4,), (2,)]
    assert check_tree(tree) == []


def test_long_narrow_and_short_wide_sources_are_the_same_to_dtree(build):
    # Depth 60 of two near-certain candidates; depth 2 of 300.
    narrow = np.tile([0.99, 0.01], (60, 1))
    tree = build("dtree", marginals(narrow), node_budget=100)
    assert max(tree.depth) == 60
    assert check_tree(tree) == []
    wide = np.random.default_rng(0).dirichlet(np.ones(300), size=2)
    tree = build("dtree", marginals(wide), node_budget=200)
    weight = np.sort(np.concatenate([wide[0], np.outer(*wide).ravel()]))[::-1]
    assert expected_acceptance(tree) == pytest.approx(weight[:200].sum(), rel=1e-5)


def test_dtree_refuses_an_expander(build):
    with pytest.raises(ValueError, match="dtree: source must be"):
        build("dtree", ToyDrafter(random_laws(0, 4)), node_budget=3)


# ------------------------------------------------------------------ trie


def test_trie_takes_the_best_nodes_in_the_total_order(build, rng):
    for _ in range(10):
        parent, token, logprob = random_trie(rng, 4, 30)
        score, depth = {-1: np.float32(0)}, {-1: 0}
        for node in range(30):
            score[node] = np.float32(score[parent[node]] + logprob[node])
            depth[node] = depth[parent[node]] + 1
        for budget in (1, 7, 30):
            source = sources.Trie(parent, token, logprob)
            tree = build("trie", source, node_budget=budget)
            possible = sorted((s for n, s in score.items() if n >= 0 and s > -np.inf), reverse=True)
            np.testing.assert_array_equal(tree.path_logprob[1:], possible[:budget])
            same_tree(
                treespec.build_tree("trie", core_source(source), node_budget=budget),
                reference.builder("trie")(source, node_budget=budget),
            )


def test_a_smaller_trie_tree_is_the_start_of_a_larger_one(build, rng):
    source = sources.Trie(*random_trie(rng, 4, 40))
    large = build("trie", source, node_budget=40)
    for budget in range(40):
        first_nodes(build("trie", source, node_budget=budget), large)


def test_a_trie_respects_max_depth(build, rng):
    tree = build("trie", sources.Trie(*random_trie(rng, 4, 30)), node_budget=30, max_depth=2)
    assert max(tree.depth) == 2
    assert all(len(path_of(tree, node)) <= 2 for node in range(len(tree.token)))


@pytest.mark.parametrize("kind", ["marginals", "transitions", "expander"])
def test_trie_refuses_everything_else(build, kind):
    with pytest.raises(ValueError, match="trie: source must be"):
        build("trie", make_source(kind, 0)[1], node_budget=3)
