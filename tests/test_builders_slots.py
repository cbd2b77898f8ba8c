# SPDX-License-Identifier: Apache-2.0
"""dyspec and dyspec_threshold: draws are made where they are most likely to be looked at."""

import itertools

import numpy as np
import pytest
from support import (
    core_build,
    first_nodes,
    make_source,
    marginals,
    oracle_build,
    path_of,
    paths_of,
    same_shape,
    same_tree,
)

from treespec.reference.tree import check_tree
from treespec.testing import ToyDrafter, random_laws

KINDS = ("expander", "marginals", "transitions", "trie")


def certain(path):
    """Token 1 for ever; a builder that follows it for ever fails here."""
    assert len(path) < 100, "no node of a small tree is that deep"
    return np.array([0.0, 1.0, 0.0])


def fixed_row(tree, node):
    """The recorded law of a node in units of 2^-60."""
    return [int(np.floor(np.float64(p) * 2.0**60)) for p in tree.draft_probs[node]]


def drawn_values(tree):
    """Value of the slot each drafted node was drawn in, in pop order, by the contract."""
    value = {0: 1.0}
    slot = {}
    for node, draws in enumerate(tree.draws):
        if not draws:
            continue
        fixed = fixed_row(tree, node)
        total = rest = sum(fixed)
        for child in draws:
            slot[child] = value[node] * (float(rest) / float(total))
            share = fixed[tree.token[child]]
            value[child] = value[node] * (float(share) / float(total))
            rest -= share
    return [slot[node] for node in range(1, len(tree.token))]


def open_values(tree, laws, max_depth=99):
    """{(path, j): value} of the slots next to the tree, by (2.1) in float64."""
    result = {}
    for node, draws in enumerate(tree.draws):
        path = path_of(tree, node)
        if len(path) >= max_depth:
            continue
        drawn = [int(tree.token[child]) for child in draws]
        above = np.prod([laws(path[:d])[path[d]] for d in range(len(path))])
        left = 1 - sum(laws(path)[t] for t in drawn)
        if np.count_nonzero(laws(path)) > len(drawn):
            result[path, len(draws)] = above * left
    return result


# ------------------------------------------------------------------ greedy


def test_dyspec_gives_the_golden_tree(build):
    # G3 of the specification: draws 1, then 0 at the root, then 0 under [0].
    table = {(): [0.6, 0.3, 0.1], (0,): [0.5, 0.5, 0.0]}

    def laws(path):
        return np.array(table.get(path, [0.25, 0.25, 0.5]))

    for position in range(200):
        tree = build("dyspec", ToyDrafter(laws), node_budget=3, position=position)
        if paths_of(tree) == [(1,), (0,), (0, 0)]:
            break
    else:
        pytest.fail("one position in ten draws the golden tokens")
    np.testing.assert_array_equal(tree.parent, [-1, 0, 0, 2])
    assert [list(d) for d in tree.draws] == [[1, 2], [], [3], []]
    np.testing.assert_allclose(drawn_values(tree), [1.0, 0.7, 0.6], rtol=1e-6)
    slots = open_values(tree, laws)
    expected = {((), 2): 0.1, ((1,), 0): 0.3, ((0,), 1): 0.3, ((0, 0), 0): 0.3}
    assert slots == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(6))
def test_popped_values_never_rise_and_nothing_better_stays_open(build, seed):
    for kinds, budget in itertools.product((("dense",), ("smooth", "peaked")), (1, 5, 20)):
        laws = random_laws(seed, 5, kinds)
        options = {"node_budget": budget, "max_depth": 4, "seed": seed}
        tree = build("dyspec", ToyDrafter(laws), **options)
        assert check_tree(tree) == []
        assert tree.proposal == "without_replacement"
        popped = drawn_values(tree)
        assert popped[0] == 1.0
        assert np.all(np.diff(popped) <= 0)
        best_open = max(open_values(tree, laws, 4).values(), default=0.0)
        assert len(tree.token) == budget + 1 or best_open == 0
        assert best_open <= popped[-1] * (1 + 1e-5)


def test_a_slots_value_is_the_mass_that_reaches_it(build):
    # (2.1): the product of the path's probabilities, times what earlier draws left.
    for seed in range(5):
        laws = random_laws(seed, 6, ("smooth",))
        tree = build("dyspec", ToyDrafter(laws), node_budget=25, seed=seed)
        for node, value in enumerate(drawn_values(tree), start=1):
            parent = int(tree.parent[node])
            path = path_of(tree, parent)
            draws = list(tree.draws[parent])
            earlier = [int(tree.token[c]) for c in draws[: draws.index(node)]]
            above = np.prod([laws(path[:d])[path[d]] for d in range(len(path))])
            mass = above * (1 - sum(laws(path)[t] for t in earlier))
            assert value == pytest.approx(mass, rel=1e-4, abs=1e-7)


def test_a_smaller_budget_gives_the_first_draws_of_a_larger_one(build):
    for seed in range(4):
        laws = random_laws(seed, 5, ("dense", "sparse"))
        large = build("dyspec", ToyDrafter(laws), node_budget=30, max_depth=6, seed=seed)
        for budget in (0, 1, 2, 3, 7, 15, 29):
            small = build("dyspec", ToyDrafter(laws), node_budget=budget, max_depth=6, seed=seed)
            assert len(small.token) == min(budget + 1, len(large.token))
            first_nodes(small, large)


def test_a_certain_drafter_is_followed_as_a_chain(build):
    # At draft temperature 0 nothing is left after the first draw.
    tree = build("dyspec", ToyDrafter(certain), node_budget=7)
    assert paths_of(tree) == [(1,) * d for d in range(1, 8)]


def test_a_flat_drafter_is_drawn_wide_first(build):
    # v falls by 1/V per draw at the root, and by a factor V per level.
    tree = build("dyspec", marginals(np.full((3, 8), 1 / 8)), node_budget=8)
    assert np.max(tree.depth) == 1
    assert sorted(tree.token[1:]) == list(range(8))


def test_an_exhausted_row_is_no_obstacle(build):
    law = np.array([0.5, 0.5])
    tree = build("dyspec", ToyDrafter(lambda path: law), node_budget=100, max_depth=3)
    assert len(tree.token) == 1 + 2 + 4 + 8
    for draws, depth in zip(tree.draws, tree.depth, strict=True):
        assert len(draws) == (2 if depth < 3 else 0)


def test_equal_values_are_popped_shallow_first_then_by_parent_and_draw(build):
    # Four tokens of 1/4, then certain tokens: every second-level slot ties with a first-level one.
    rows = [[0.25] * 4, [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    tree = build("dyspec", marginals(rows), node_budget=12)
    # v at the root: 1, .75, .5, .25; below each child .25, then .25 again.
    np.testing.assert_array_equal(tree.parent, [-1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert drawn_values(tree) == [1.0, 0.75, 0.5] + [0.25] * 9


@pytest.mark.parametrize("kind", KINDS)
def test_batched_lazy_and_greedy_give_one_tree(kind):
    calls = {"batched": 0, "lazy": 0}
    for seed, budget, depth in itertools.product(range(6), (1, 8, 24), (1, 3, 8)):
        options = {"node_budget": budget, "max_depth": depth, "seed": seed, "position": 9}
        trees = {}
        for evaluation in calls:
            source, oracle_source = make_source(kind, seed, kinds=("dense", "smooth", "peaked"))
            trees[evaluation] = core_build("dyspec", source, evaluation=evaluation, **options)
            calls[evaluation] += getattr(source, "calls", 0)
            oracle = oracle_build("dyspec", oracle_source, evaluation=evaluation, **options)
            same_tree(trees[evaluation], oracle)
            if kind == "expander" and evaluation == "lazy":
                inner = sum(bool(draws) for draws in trees["lazy"].draws)
                assert source.calls == source.num_rows == inner
        same_shape(trees["batched"], trees["lazy"])
    if kind == "expander":
        assert calls["batched"] < calls["lazy"]


def test_batched_evaluation_needs_far_fewer_calls():
    # About the depth of the tree, against one call for every inner node: 3.7 and 18.5 here.
    calls = {"batched": [], "lazy": []}
    for seed, evaluation in itertools.product(range(20), calls):
        drafter = ToyDrafter(random_laws(seed, 8, ("dense",)))
        tree = core_build("dyspec", drafter, node_budget=64, seed=seed, evaluation=evaluation)
        calls[evaluation].append(drafter.calls)
        if evaluation == "batched":
            assert max(tree.depth) <= drafter.calls <= max(tree.depth) + 2
    assert np.mean(calls["batched"]) < np.mean(calls["lazy"]) / 3


def test_dyspec_is_batched_unless_told_otherwise():
    one, two = (ToyDrafter(random_laws(3, 8, ("smooth",))) for _ in range(2))
    core_build("dyspec", one, node_budget=24)
    core_build("dyspec", two, node_budget=24, evaluation="batched")
    assert (one.calls, one.num_rows) == (two.calls, two.num_rows)


# ------------------------------------------------------------------ threshold


@pytest.mark.parametrize("seed", range(8))
def test_the_threshold_of_the_last_popped_value_gives_the_greedy_tree(build, seed):
    for kinds, budget in itertools.product((("smooth",), ("dense", "sparse")), (1, 6, 20)):
        laws = random_laws(seed, 5, kinds)
        options = {"max_depth": 5, "seed": seed, "position": 3}
        greedy = build("dyspec", ToyDrafter(laws), node_budget=budget, **options)
        last = drawn_values(greedy)[-1]
        options |= {"node_budget": budget, "threshold": last}
        tree = build("dyspec_threshold", ToyDrafter(laws), **options)
        same_shape(tree, greedy)
        np.testing.assert_array_equal(tree.path_logprob, greedy.path_logprob)
        np.testing.assert_array_equal(tree.draft_probs, greedy.draft_probs)
        # Just above it the last slot is gone.
        options["threshold"] = float(np.nextafter(last, 2.0))
        fewer = build("dyspec_threshold", ToyDrafter(laws), **options)
        assert len(fewer.token) < len(greedy.token)
        first_nodes(fewer, greedy)


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3, 0.9, 1.0])
def test_all_slots_above_the_threshold_and_no_others_are_drawn(build, threshold):
    for seed in range(5):
        laws = random_laws(seed, 5, ("smooth",))
        options = {"max_depth": 4, "seed": seed, "threshold": threshold}
        tree = build("dyspec_threshold", ToyDrafter(laws), node_budget=1000, **options)
        popped = drawn_values(tree)
        assert min(popped) >= threshold
        assert np.all(np.diff(popped) <= 0), "node order is pop order"
        assert max(open_values(tree, laws, 4).values(), default=0.0) < threshold + 1e-6


def test_a_budget_below_the_threshold_tree_cuts_by_value(build):
    for seed in range(5):
        laws = random_laws(seed, 6, ("smooth", "dense"))
        options = {"max_depth": 4, "seed": seed, "threshold": 0.01}
        large = build("dyspec_threshold", ToyDrafter(laws), node_budget=1000, **options)
        assert len(large.token) > 20
        for budget in (1, 2, 7, 20):
            small = build("dyspec_threshold", ToyDrafter(laws), node_budget=budget, **options)
            assert len(small.token) == budget + 1
            first_nodes(small, large)
            greedy = build("dyspec", ToyDrafter(laws), node_budget=budget, max_depth=4, seed=seed)
            same_shape(small, greedy)


def test_the_default_threshold_is_one_over_the_budget(build):
    for seed, budget in itertools.product(range(4), (1, 3, 10, 40)):
        laws = random_laws(seed, 6, ("smooth",))
        options = {"node_budget": budget, "seed": seed, "max_depth": 6}
        one = build("dyspec_threshold", ToyDrafter(laws), **options)
        two = build("dyspec_threshold", ToyDrafter(laws), threshold=1 / budget, **options)
        same_shape(one, two)


def test_nothing_reaches_a_threshold_above_one(build):
    tree = build("dyspec_threshold", make_source("expander", 0)[1], node_budget=9, threshold=1.5)
    assert len(tree.token) == 1
    assert tree.draft_probs is None or not np.any(tree.draft_probs)


def test_a_certain_drafter_stops_at_the_budget(build):
    # v stays 1 for ever: only the budget ends the chain.
    tree = build("dyspec_threshold", ToyDrafter(certain), node_budget=7)
    assert paths_of(tree) == [(1,) * d for d in range(1, 8)]


def test_a_threshold_takes_one_call_per_level():
    for seed in range(6):
        drafter = ToyDrafter(random_laws(seed, 6, ("smooth",)))
        options = {"node_budget": 400, "threshold": 0.02, "seed": seed, "max_depth": 9}
        tree = core_build("dyspec_threshold", drafter, **options)
        assert drafter.calls <= max(tree.depth) + 1
        assert drafter.num_rows <= len(tree.token)


@pytest.mark.parametrize("kind", KINDS)
def test_every_threshold_tree_equals_the_oracle(kind):
    for seed, budget, threshold in itertools.product(range(5), (1, 9, 60), (0.03, 0.11, 0.5)):
        core_source, oracle_source = make_source(kind, seed, kinds=("dense", "smooth", "one_hot"))
        options = {"node_budget": budget, "threshold": threshold, "seed": seed, "max_depth": 5}
        core = core_build("dyspec_threshold", core_source, **options)
        same_tree(core, oracle_build("dyspec_threshold", oracle_source, **options))


# ------------------------------------------------------------------ calibration

CURVE = [[0.05, 0.3], [0.3, 0.45], [0.9, 0.8], [1.0, 1.0]]


@pytest.mark.parametrize("name", ["dyspec", "dyspec_threshold"])
def test_a_calibrated_tree_equals_the_oracle(name):
    differs = 0
    for kind, seed, budget in itertools.product(KINDS, range(6), (1, 5, 20)):
        core, oracle = make_source(kind, seed, kinds=("dense", "sparse", "smooth"))
        options = {"node_budget": budget, "seed": seed, "max_depth": 4, "calibration": CURVE}
        tree = core_build(name, core, **options)
        same_tree(tree, oracle_build(name, oracle, **options))
        del options["calibration"]
        plain = core_build(
            name, make_source(kind, seed, kinds=("dense", "sparse", "smooth"))[0], **options
        )
        differs += tree.token.tolist() != plain.token.tolist()
    assert differs > 5, "the curve must matter"


def test_batched_and_lazy_agree_on_a_calibrated_tree():
    for seed, budget in itertools.product(range(6), (3, 12, 30)):
        laws = random_laws(seed, 6, ("dense", "peaked"))
        options = {"node_budget": budget, "seed": seed, "max_depth": 6, "calibration": CURVE}
        batched, lazy = ToyDrafter(laws), ToyDrafter(laws)
        one = core_build("dyspec", batched, **options)
        two = core_build("dyspec", lazy, evaluation="lazy", **options)
        np.testing.assert_array_equal(one.token, two.token)
        np.testing.assert_array_equal(one.parent, two.parent)
        assert batched.calls <= lazy.calls


def test_a_draw_that_is_surely_accepted_has_no_sibling():
    law = np.array([0.4, 0.3, 0.2, 0.1])
    tree = core_build(
        "dyspec", ToyDrafter(lambda path: law), node_budget=6, calibration=[[0.01, 1.0]]
    )
    assert tree.parent.tolist() == [-1, 0, 1, 2, 3, 4, 5]


def test_the_identity_calibration_is_the_plain_value():
    for seed in range(5):
        laws = random_laws(seed, 5, ("dense",))
        options = {"node_budget": 15, "seed": seed, "max_depth": 4}
        one = core_build("dyspec", ToyDrafter(laws), **options)
        two = core_build("dyspec", ToyDrafter(laws), calibration=[[1.0, 1.0]], **options)
        np.testing.assert_array_equal(one.token, two.token)
        np.testing.assert_array_equal(one.parent, two.parent)
