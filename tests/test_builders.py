# SPDX-License-Identifier: Apache-2.0
"""Tree builders: sound trees, equality with the oracles, golden trees, optimality, edge cases."""

import itertools
import re

import numpy as np
import pytest
from support import (
    MODES,
    SOURCE_KINDS,
    chain_tree,
    log,
    make_source,
    modes_of,
    only,
    options_of,
    random_trie,
    reads,
    same_tree,
)

import treespec
from treespec import reference, testing
from treespec.reference import sources
from treespec.reference.tree import check_tree
from treespec.testing import ToyDrafter, chi_square, draw_outcomes, random_laws

BUDGETS = (0, 1, 2, 5, 16)


def kwargs_for(builder_name, **wanted):
    """The options of `wanted` that the builder has."""
    known = options_of(builder_name)
    return {name: value for name, value in wanted.items() if name in known}


# ------------------------------------------------------------------ every builder


@pytest.mark.parametrize("kind", SOURCE_KINDS)
@only(reads)
def test_a_built_tree_is_sound_and_within_budget(builder_name, kind):
    for mode, budget, seed in itertools.product(modes_of(builder_name), BUDGETS, range(3)):
        source, _ = make_source(kind, seed)
        options = {**mode, **kwargs_for(builder_name, max_depth=3)}
        tree = treespec.build_tree(builder_name, source, node_budget=budget, seed=seed, **options)
        assert treespec.check_tree(tree) == []
        assert check_tree(tree) == []
        assert len(tree.token) <= budget + 1
        assert max(tree.depth) <= 3 or "max_depth" not in options_of(builder_name)
        assert tree.proposal == mode.get("proposal", tree.proposal)


@pytest.mark.parametrize("kind", SOURCE_KINDS)
@only(reads)
def test_a_built_tree_equals_the_oracle(builder_name, kind):
    build = reference.builder(builder_name)
    sizes = set()
    for mode, budget, seed in itertools.product(modes_of(builder_name), BUDGETS, range(4)):
        core_source, oracle_source = make_source(kind, seed, kinds=("dense", "sparse", "smooth"))
        key = {"seed": seed * 7919, "sequence_id": seed, "position": 100 + seed}
        options = {"node_budget": budget, **mode, **kwargs_for(builder_name, max_depth=4), **key}
        core = treespec.build_tree(builder_name, core_source, **options)
        same_tree(core, build(oracle_source, **options))
        sizes.add(len(core.token))
    assert len(sizes) > 2, "the sources must give trees of several sizes"


def test_core_and_oracle_read_the_same_sources_with_the_same_options(builder_name):
    for kind in SOURCE_KINDS:
        _, oracle_source = make_source(kind, 0)
        if reads(builder_name, kind):
            reference.builder(builder_name)(oracle_source, node_budget=1)
        else:
            with pytest.raises(ValueError, match="source must be"):
                reference.builder(builder_name)(oracle_source, node_budget=1)
    kind = next(k for k in SOURCE_KINDS if reads(builder_name, k))
    with pytest.raises(ValueError, match="no_such_option") as refused:
        treespec.build_tree(builder_name, make_source(kind, 0)[0], node_budget=1, no_such_option=1)
    known = re.search(r"one of (.*);", str(refused.value)).group(1)
    assert sorted(known.split(", ")) == options_of(builder_name)


def test_a_budget_of_zero_gives_the_root_alone(builder_name):
    for kind in SOURCE_KINDS:
        if reads(builder_name, kind):
            source, _ = make_source(kind, 1)
            tree = treespec.build_tree(builder_name, source, node_budget=0)
            assert len(tree.token) == 1
            assert getattr(source, "calls", 0) == 0, "no drafter call for an empty tree"


def test_a_budget_beyond_all_candidates_is_no_problem(builder_name):
    for kind in ("marginals", "transitions", "trie"):
        if reads(builder_name, kind):
            core_source, oracle_source = make_source(kind, 2, vocab_size=3, depth=3)
            core = treespec.build_tree(builder_name, core_source, node_budget=100_000)
            same_tree(core, reference.builder(builder_name)(oracle_source, node_budget=100_000))


def test_the_same_arguments_give_the_same_tree(builder_name):
    for kind, mode in itertools.product(SOURCE_KINDS, modes_of(builder_name)):
        if not reads(builder_name, kind):
            continue
        options = {"node_budget": 9, "seed": 5, **mode, **kwargs_for(builder_name, max_depth=3)}
        one, two = (
            treespec.build_tree(builder_name, make_source(kind, 3)[0], **options) for _ in range(2)
        )
        np.testing.assert_array_equal(one.token, two.token)
        np.testing.assert_array_equal(one.parent, two.parent)
        np.testing.assert_array_equal(one.path_logprob, two.path_logprob)


@only(lambda builder_name: reads(builder_name, "marginals"))
def test_equal_and_certain_probabilities_follow_the_total_order(builder_name):
    # Half the tokens tie, one layer is certain (log-probability exactly 0): products tie by depth.
    rows = log([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]])
    token = np.array([[3, 1, 2, 0], [2, 0, 1, 3], [1, 3, 0, 2]], np.int32)
    for mode, budget in itertools.product(modes_of(builder_name), range(0, 30)):
        options = {"node_budget": budget, "seed": 1, **mode}
        core = treespec.build_tree(builder_name, treespec.Marginals(token, rows), **options)
        oracle = reference.builder(builder_name)(sources.Marginals(token, rows), **options)
        same_tree(core, oracle)
        assert check_tree(core) == []


def test_impossible_tokens_are_never_taken(builder_name):
    # Odd and even vocabularies: a row without any possible token must end its branch.
    for vocab_size, kind in itertools.product((3, 4), ("expander", "marginals")):
        if not reads(builder_name, kind):
            continue
        laws = np.zeros((3, vocab_size))
        laws[0, :2] = 0.5
        laws[1, 1] = 1.0
        for mode in modes_of(builder_name):
            options = {"node_budget": 8, **mode, **kwargs_for(builder_name, max_depth=3)}
            if kind == "marginals":
                token = np.tile(np.arange(vocab_size, dtype=np.int32), (3, 1))
                source = treespec.Marginals(token, log(laws))
            else:
                source = ToyDrafter(lambda path, laws=laws: laws[len(path)])
            tree = treespec.build_tree(builder_name, source, **options)
            assert check_tree(tree) == []
            assert max(tree.depth) == 2
            for node in range(1, len(tree.token)):
                assert laws[tree.depth[node] - 1, tree.token[node]] > 0
            if tree.draft_probs is not None:
                assert np.all(np.isfinite(tree.draft_probs))


@only(lambda builder_name: reads(builder_name, "expander"))
def test_a_nan_is_refused(builder_name):

    class Broken:
        def expand(self, nodes):
            rows = np.full((len(nodes), 4), -2.0, np.float32)
            rows[-1, 2] = np.nan
            return rows

    with pytest.raises(ValueError, match="NaN"):
        treespec.build_tree(builder_name, Broken(), node_budget=4)


@pytest.mark.parametrize("kind", ["marginals", "trie"])
@only(reads)
def test_a_positive_log_probability_never_corrupts_a_tree(builder_name, kind):
    # Clearly positive is refused; within rounding it may pass, but the tree must stay sound.
    for excess in (0.5, 5e-4, 1e-7):
        logprob = np.array([[-0.7, -0.7], [excess, -9.0], [excess, -9.0]], np.float32)
        try:
            if kind == "marginals":
                source = treespec.Marginals([[0, 1]] * 3, logprob)
            else:
                parent, token = [-1, -1, 0, 0, 2, 2], [0, 1] * 3
                source = treespec.Trie(parent, token, logprob.ravel())
            tree = treespec.build_tree(builder_name, source, node_budget=6)
        except ValueError as error:
            assert "log" in str(error)
            assert "prob" in str(error)
            continue
        assert excess < 0.1
        assert check_tree(tree) == []
        assert np.all(np.diff(tree.depth) <= 1)
        for node in range(1, len(tree.token)):
            parent = tree.parent[node]
            step = logprob[tree.depth[parent], tree.token[node]]
            assert abs(tree.path_logprob[node] - tree.path_logprob[parent] - step) < 2e-3


def test_more_children_than_tokens_are_clamped():
    laws = random_laws(3, 3)
    tree = treespec.build_tree("kary", ToyDrafter(laws), node_budget=12, expansion=[12])
    assert sorted(tree.token[1:]) == [0, 1, 2]
    tree = treespec.build_tree(
        "kary", ToyDrafter(laws), node_budget=12, expansion=[12], proposal="without_replacement"
    )
    assert sorted(tree.token[1:]) == [0, 1, 2]
    tree = treespec.build_tree(
        "kary", ToyDrafter(laws), node_budget=12, expansion=[12], proposal="iid"
    )
    assert len(tree.draws[0]) == 12
    assert len(tree.token) <= 4


# ------------------------------------------------------------------ kary and chain


def test_the_default_expansion_is_the_golden_one():
    # G5: <1,1,3,1,1,1,1,1> has 20 drafted nodes and 3 leaves; <2,2,1> has 10 and 4.
    source = make_source("expander", 0, vocab_size=8, kinds=("dense",))[0]
    tree = treespec.build_tree("kary", source, node_budget=64)
    assert len(tree.token) == 21
    assert sum(not d for d in tree.draws) == 3
    tree = treespec.build_tree("kary", source, node_budget=10, expansion=[2, 2, 1])
    assert len(tree.token) == 11
    assert sum(not d for d in tree.draws) == 4


@pytest.mark.parametrize(("budget", "nodes"), [(0, 0), (1, 1), (4, 2), (5, 5), (7, 5), (8, 8)])
def test_the_default_expansion_is_cut_to_whole_levels(budget, nodes):
    source = make_source("expander", 0, vocab_size=8, kinds=("dense",))[0]
    assert len(treespec.build_tree("kary", source, node_budget=budget).token) == nodes + 1


def test_a_given_expansion_must_fit():
    source = make_source("expander", 0)[0]
    with pytest.raises(ValueError, match="node_budget"):
        treespec.build_tree("kary", source, node_budget=9, expansion=[2, 2, 1])
    with pytest.raises(ValueError, match="max_depth"):
        treespec.build_tree("kary", source, node_budget=10, expansion=[2, 2, 1], max_depth=2)


def test_a_deterministic_chain_is_the_greedy_path():
    laws = random_laws(8, 9)
    tree = treespec.build_tree("chain", ToyDrafter(laws), node_budget=6)
    path = ()
    for node in range(1, 7):
        token = int(np.argmax(laws(path)))
        assert (tree.token[node], tree.parent[node]) == (token, node - 1)
        path = (*path, token)
    assert (
        len(treespec.build_tree("chain", ToyDrafter(laws), node_budget=6, max_depth=2).token) == 3
    )


@pytest.mark.parametrize("proposal", ["iid", "without_replacement"])
@pytest.mark.parametrize("builder", ["chain", "kary"])
def test_the_recorded_law_is_the_drafters_law(builder, proposal):
    laws = random_laws(4, 7, ("dense", "sparse"))
    tree = treespec.build_tree(
        builder, ToyDrafter(laws), node_budget=20, max_depth=4, seed=3, proposal=proposal
    )
    # Token of a node's path, from the arrays alone.
    for node, draws in enumerate(tree.draws):
        if not draws:
            np.testing.assert_array_equal(tree.draft_probs[node], 0)
            continue
        path, at = [], node
        while at > 0:
            path.append(int(tree.token[at]))
            at = tree.parent[at]
        np.testing.assert_allclose(
            tree.draft_probs[node], laws(tuple(path[::-1])), rtol=1e-5, atol=0
        )
        assert all(tree.draft_probs[node, tree.token[child]] > 0 for child in draws)


@pytest.mark.parametrize("proposal", ["iid", "without_replacement"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_draws_follow_the_enumerated_law(proposal, count):
    law = np.array([0.5, 0.25, 0.125, 0.125, 0.0])
    token = np.array([[0, 1, 2, 3, 4]], np.int32)
    source = treespec.Marginals(token, log([law]))
    expected = dict(draw_outcomes(law, count, proposal))
    seen = dict.fromkeys(expected, 0)
    for position in range(6000):
        tree = treespec.build_tree(
            "kary",
            source,
            node_budget=count,
            expansion=[count],
            proposal=proposal,
            seed=11,
            position=position,
        )
        seen[tuple(int(tree.token[c]) for c in tree.draws[0])] += 1
    statistic, bound = chi_square(list(seen.values()), list(expected.values()))
    assert statistic < bound


def test_an_exhausted_row_stops_drawing_without_replacement():
    law = np.array([0.5, 0.0, 0.5])
    tree = treespec.build_tree(
        "kary",
        ToyDrafter(lambda path: law),
        node_budget=3,
        expansion=[3],
        proposal="without_replacement",
    )
    assert len(tree.draws[0]) == 2
    assert sorted(tree.token[1:]) == [0, 2]


@pytest.mark.parametrize("proposal", ["iid", "without_replacement"])
def test_the_noise_of_a_node_depends_on_its_path_alone(proposal):
    laws = random_laws(6, 6)
    options = {"seed": 9, "position": 4, "proposal": proposal}
    wide = treespec.build_tree(
        "kary", ToyDrafter(laws), node_budget=12, expansion=[3, 2], **options
    )
    chain = treespec.build_tree("chain", ToyDrafter(laws), node_budget=2, **options)
    # The chain's path is the wide tree's first draws.
    first = wide.draws[0][0]
    assert wide.token[first] == chain.token[1]
    assert wide.token[wide.draws[first][0]] == chain.token[2]


@pytest.mark.parametrize("proposal", ["iid", "without_replacement"])
def test_the_order_of_a_candidate_list_does_not_change_the_draws(proposal):
    rng = np.random.default_rng(0)
    laws = [testing.random_law(rng, 6) for _ in range(3)]
    sorted_lists = np.tile(np.arange(6, dtype=np.int32), (3, 1))
    shuffled = np.stack([rng.permutation(6) for _ in range(3)]).astype(np.int32)
    for seed in range(10):
        options = {"node_budget": 14, "expansion": [2, 2, 2], "seed": seed, "proposal": proposal}
        one = treespec.build_tree("kary", treespec.Marginals(sorted_lists, log(laws)), **options)
        rows = np.take_along_axis(log(laws), shuffled, axis=1)
        two = treespec.build_tree("kary", treespec.Marginals(shuffled, rows), **options)
        np.testing.assert_array_equal(one.token, two.token)
        np.testing.assert_array_equal(one.parent, two.parent)
        three = treespec.build_tree("kary", ToyDrafter(lambda p: laws[len(p)]), **options)
        np.testing.assert_array_equal(one.token, three.token)


# ------------------------------------------------------------------ opt_tree and trie


def test_opt_tree_gives_the_golden_tree():
    # G2 of the specification: E = 1.49, the second layer gains 0.49 > 0.4.
    laws = {
        (): [0.55, 0.35, 0.10],
        (0,): [0.5, 0.3, 0.2],
        (1,): [0.9, 0.05, 0.05],
        (2,): [0.4, 0.3, 0.3],
    }
    options = {"node_budget": 4, "max_depth": 2, "threshold": 0.4}
    drafter = ToyDrafter(lambda path: np.array(laws[path]))
    for tree in (
        treespec.build_tree("opt_tree", drafter, **options),
        reference.builder("opt_tree")(drafter, **options),
    ):
        np.testing.assert_array_equal(tree.token[1:], [0, 1, 0, 0])
        np.testing.assert_array_equal(tree.parent, [-1, 0, 0, 2, 1])
        weights = np.exp(tree.path_logprob[1:])
        np.testing.assert_allclose(weights, [0.55, 0.35, 0.315, 0.275], rtol=1e-5)
        assert weights.sum() == pytest.approx(1.49, rel=1e-5)
    options["threshold"] = 0.5
    tree = treespec.build_tree("opt_tree", drafter, **options)
    assert len(tree.token) == 5, "the stop is tested after the layer was added"
    options["threshold"] = 1.01
    tree = treespec.build_tree("opt_tree", drafter, **options)
    np.testing.assert_array_equal(tree.parent, [-1, 0, 0, 0])


def all_trees(vocab_size, depth, size):
    """Every prefix-closed set of `size` paths."""
    paths = [p for d in range(1, depth + 1) for p in itertools.product(range(vocab_size), repeat=d)]
    for chosen in itertools.combinations(paths, size):
        members = set(chosen)
        if all(len(p) == 1 or p[:-1] in members for p in chosen):
            yield chosen


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("vocab_size", "depth"), [(2, 3), (3, 2)])
def test_opt_tree_is_the_best_of_all_prefix_closed_sets(vocab_size, depth, seed):
    laws = random_laws(seed, vocab_size, ("dense", "smooth"))
    weight = {(): 1.0}
    for d in range(1, depth + 1):
        for p in itertools.product(range(vocab_size), repeat=d):
            weight[p] = weight[p[:-1]] * laws(p[:-1])[p[-1]]
    for size in range(1, 6):
        best = max(sum(weight[p] for p in tree) for tree in all_trees(vocab_size, depth, size))
        core = treespec.build_tree("opt_tree", ToyDrafter(laws), node_budget=size, max_depth=depth)
        assert core.expected_acceptance == pytest.approx(best, rel=1e-5)
        assert len(core.token) == size + 1


def test_a_smaller_budget_gives_the_first_nodes_of_a_larger_one():
    laws = random_laws(5, 6, ("dense", "peaked"))
    large = treespec.build_tree("opt_tree", ToyDrafter(laws), node_budget=24, max_depth=5)
    for budget in range(1, 24):
        small = treespec.build_tree("opt_tree", ToyDrafter(laws), node_budget=budget, max_depth=5)
        np.testing.assert_array_equal(small.token, large.token[: budget + 1])
        np.testing.assert_array_equal(small.parent, large.parent[: budget + 1])


def test_pruning_asks_for_no_more_rows_than_whole_layers():
    saved = 0
    for seed, budget in itertools.product(range(5), (1, 4, 12, 30)):
        laws = random_laws(seed, 6, ("dense", "peaked"))
        core, oracle = ToyDrafter(laws), ToyDrafter(laws)
        options = {"node_budget": budget, "max_depth": 5}
        same_tree(
            treespec.build_tree("opt_tree", core, **options),
            reference.builder("opt_tree")(oracle, **options),
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
        core = treespec.build_tree("opt_tree", core_source, **options)
        same_tree(core, reference.builder("opt_tree")(oracle_source, **options))
        assert core_source.calls == oracle_source.calls
        depths.add(int(core.depth.max()))
    assert threshold >= 0.8 or len(depths) > 1


@pytest.mark.parametrize("temperature", [0.3, 0.9, 2.5])
def test_score_temperature_sharpens_the_scores_only(temperature):
    for seed in range(8):
        laws = random_laws(seed, 6, ("smooth",))
        options = {"node_budget": 15, "max_depth": 4, "score_temperature": temperature}
        core = treespec.build_tree("opt_tree", ToyDrafter(laws), **options)
        oracle = reference.builder("opt_tree")(ToyDrafter(laws), **options)
        same_tree(core, oracle, exact_scores=False)

        def sharp(path, laws=laws):
            law = laws(path) ** (1 / temperature)
            return law / law.sum()

        del options["score_temperature"]
        by_hand = reference.builder("opt_tree")(ToyDrafter(sharp), **options)
        np.testing.assert_array_equal(core.token, by_hand.token)
        np.testing.assert_array_equal(core.parent, by_hand.parent)


def test_trie_takes_the_best_nodes_in_the_total_order(rng):
    for _ in range(10):
        parent, token, logprob = random_trie(rng, 4, 30)
        score, depth = {-1: np.float32(0)}, {-1: 0}
        for node in range(30):
            score[node] = np.float32(score[parent[node]] + logprob[node])
            depth[node] = depth[parent[node]] + 1
        for budget in (1, 7, 30):
            source = treespec.Trie(parent, token, logprob)
            tree = treespec.build_tree("trie", source, node_budget=budget)
            possible = sorted((s for n, s in score.items() if n >= 0 and s > -np.inf), reverse=True)
            np.testing.assert_array_equal(tree.path_logprob[1:], possible[:budget])
            same_tree(
                tree,
                reference.builder("trie")(sources.Trie(parent, token, logprob), node_budget=budget),
            )


def test_a_trie_respects_max_depth(rng):
    parent, token, logprob = random_trie(rng, 4, 30)
    source = treespec.Trie(parent, token, logprob)
    tree = treespec.build_tree("trie", source, node_budget=30, max_depth=2)
    assert max(tree.depth) == 2


# ------------------------------------------------------------------ the oracle itself, and sources


def test_an_expander_sees_its_contract():
    """Indices count hand-overs, the first call is the root alone, parents come first."""
    calls = []

    class Watcher(ToyDrafter):
        def expand(self, nodes):
            calls.append([(n.index, n.parent, n.token, n.depth) for n in nodes])
            return super().expand(nodes)

    treespec.build_tree("opt_tree", Watcher(random_laws(2, 4)), node_budget=10, max_depth=4)
    assert [n[0] for n in calls[0]] == [0]
    assert calls[0][0][1] == -1
    assert calls[0][0][3] == 0
    handed = [node for call in calls for node in call]
    assert [node[0] for node in handed] == list(range(len(handed)))
    for index, parent, _, depth in handed[1:]:
        assert 0 <= parent < index
        assert depth == handed[parent][3] + 1


def test_transitions_follow_their_links_and_end_at_leaves():
    token = np.array([[[1, 2], [0, 0]], [[3, 4], [5, 6]]], np.int32)
    logprob = log([[[0.5, 0.5], [1, 0]], [[0.75, 0.25], [0.75, 0.25]]])
    follow = np.array([[[1, -1], [0, 0]], [[0, 0], [0, 0]]], np.int32)
    tree = treespec.build_tree(
        "opt_tree", treespec.Transitions(token, logprob, follow), node_budget=9
    )
    np.testing.assert_array_equal(tree.token[1:], [1, 2, 5, 6])
    np.testing.assert_array_equal(tree.parent, [-1, 0, 0, 1, 1])


def test_the_oracle_of_a_chain_is_a_chain():
    tree = reference.builder("chain")(ToyDrafter(random_laws(1, 4)), node_budget=3)
    expected = chain_tree(tree.token[1:])
    np.testing.assert_array_equal(tree.parent, expected.parent)
    assert tree.draws == expected.draws


@pytest.mark.parametrize("mode", MODES)
def test_enumerated_trees_are_sound_and_their_probabilities_sum_to_one(mode):
    laws = random_laws(3, 3, ("dense", "sparse"))
    trees = list(testing.sampled_trees(laws, (2, 1), mode))
    assert sum(p for _, p in trees) == pytest.approx(1.0, abs=1e-12)
    for tree, _ in trees:
        assert check_tree(tree) == []


def test_an_impossible_row_has_no_children_at_any_score_temperature():
    rows = np.array([[-0.5, -1.0], [-np.inf, -np.inf]], np.float32)
    source = treespec.Marginals([[1, 2], [3, 4]], rows)
    for temperature in (1.0, 0.5, 1e-30):
        tree = treespec.build_tree("opt_tree", source, 6, score_temperature=temperature)
        assert set(tree.token[1:].tolist()) <= {1, 2} and tree.num_nodes >= 2


def test_a_grown_tree_takes_no_more_rows_and_is_finished_once():
    growth = treespec._core.TreeBuilder("chain").begin(1)
    growth.supply(np.zeros((1, 1), np.float32))
    with pytest.raises(ValueError, match="takes no more rows"):
        growth.supply(np.zeros((0, 1), np.float32))
    assert growth.finish().num_nodes == 2
    with pytest.raises(ValueError, match="called once"):
        growth.finish()
