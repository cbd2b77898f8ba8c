# SPDX-License-Identifier: Apache-2.0
"""What holds for every tree builder: sound trees, equality with the oracles, draws, edge cases.

One file per family has the rest: test_builders_best_first, _layered, _fixed, _slots, _rollouts, and
_scores for the options that change scores.
"""

import itertools
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from support import (
    MODES,
    SOURCE_KINDS,
    chain_tree,
    expected_acceptance,
    kwargs_for,
    log,
    make_source,
    marginals,
    modes_of,
    only,
    options_of,
    path_of,
    reads,
    same_shape,
    same_tree,
)

import treespec
from treespec import reference, testing
from treespec.reference import mask as reference_mask
from treespec.reference import sources
from treespec.reference.growth import Growth, children_of
from treespec.reference.tree import check_tree
from treespec.testing import ToyDrafter, chi_square, random_laws

BUDGETS = (0, 1, 2, 5, 16)


def sampled_modes(builder_name):
    """Options of the modes in which a builder draws its tokens."""
    source = marginals([[0.5, 0.5]])
    modes = []
    for mode in modes_of(builder_name):
        try:
            tree = reference.builder(builder_name)(source, node_budget=0, **mode)
        except ValueError as error:
            assert "source must be" in str(error), error
            continue
        if tree.proposal != "deterministic":
            modes.append(mode)
    return modes


def draws_tokens(builder_name):
    return bool(sampled_modes(builder_name))


# ------------------------------------------------------------------ soundness and equality


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


@pytest.mark.parametrize("kind", SOURCE_KINDS)
@only(reads)
def test_the_default_depth_is_the_oracles(builder_name, kind):
    for mode, budget in itertools.product(modes_of(builder_name), (7, 40)):
        core_source, oracle_source = make_source(kind, budget, depth=12, kinds=("peaked",))
        options = {"node_budget": budget, **mode}
        core = treespec.build_tree(builder_name, core_source, **options)
        same_tree(core, reference.builder(builder_name)(oracle_source, **options))


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


@pytest.mark.parametrize("kind", SOURCE_KINDS)
@only(reads)
def test_scores_are_sums_of_the_sources_log_probabilities(builder_name, kind):
    for mode, seed in itertools.product(modes_of(builder_name), range(3)):
        source, oracle_source = make_source(kind, seed)
        options = {"node_budget": 12, "seed": seed, **mode, **kwargs_for(builder_name, max_depth=4)}
        tree = treespec.build_tree(builder_name, source, **options)
        assert tree.expected_acceptance == pytest.approx(expected_acceptance(tree), rel=1e-6)
        rows = Growth(oracle_source)
        children, nodes = {}, [rows.root]
        for node, parent in enumerate(tree.parent[1:], start=1):
            if parent not in children:
                (row,) = rows.rows([nodes[parent]])
                children[parent] = {c.token: c for c in children_of(nodes[parent], row)}
            nodes.append(children[parent][int(tree.token[node])])
        np.testing.assert_array_equal(tree.path_logprob, [n.score for n in nodes])


def test_the_mask_of_a_built_tree_is_its_transitive_closure(builder_name):
    kind = next(k for k in SOURCE_KINDS if reads(builder_name, k))
    for seed in range(4):
        tree = treespec.build_tree(builder_name, make_source(kind, seed)[0], node_budget=40)
        closure = np.eye(len(tree.token), dtype=bool)
        for node in range(1, len(tree.token)):
            closure[node] |= closure[tree.parent[node]]
        np.testing.assert_array_equal(treespec.ancestor_mask(tree), closure)
        intervals = np.asarray(treespec.ancestor_mask(tree, format="intervals"))
        np.testing.assert_array_equal(intervals, reference_mask.intervals(tree.parent))
        rank, end = intervals.T
        inside = (rank[None, :] <= rank[:, None]) & (rank[:, None] < end[None, :])
        np.testing.assert_array_equal(inside, closure)


@pytest.mark.parametrize("kind", SOURCE_KINDS)
@only(reads)
def test_the_same_arguments_give_the_same_tree(builder_name, kind):
    for mode in modes_of(builder_name):
        options = {"node_budget": 9, "seed": 5, **mode, **kwargs_for(builder_name, max_depth=3)}
        one, two = (
            treespec.build_tree(builder_name, make_source(kind, 3)[0], **options) for _ in range(2)
        )
        same_shape(one, two)
        np.testing.assert_array_equal(one.path_logprob, two.path_logprob)


@only(lambda builder_name: reads(builder_name, "marginals"))
def test_the_order_of_a_candidate_list_does_not_change_the_tree(builder_name):
    rng = np.random.default_rng(0)
    laws = [testing.random_law(rng, 6) for _ in range(3)]
    shuffled = np.stack([rng.permutation(6) for _ in range(3)]).astype(np.int32)
    rows = np.take_along_axis(log(laws), shuffled, axis=1)
    for seed, mode in itertools.product(range(10), modes_of(builder_name)):
        options = {"node_budget": 14, "seed": seed, **mode, **kwargs_for(builder_name, max_depth=3)}
        one = treespec.build_tree(
            builder_name, treespec.Marginals(np.tile(np.arange(6), (3, 1)), log(laws)), **options
        )
        same_shape(
            one, treespec.build_tree(builder_name, treespec.Marginals(shuffled, rows), **options)
        )
        if reads(builder_name, "expander"):
            drafter = ToyDrafter(lambda path: laws[len(path)])
            same_shape(one, treespec.build_tree(builder_name, drafter, **options))


# ------------------------------------------------------------------ draws


@only(draws_tokens)
def test_every_draw_has_the_law_the_verifier_divides_by(builder_name):
    """Given that a draw is made, and the earlier ones: the law without what was drawn."""
    rows = np.array([[0.5, 0.25, 0.15, 0.1], [0.1, 0.3, 0.3, 0.3], [0.7, 0.1, 0.1, 0.1]])
    source = treespec.Marginals(np.tile(np.arange(4), (3, 1)), log(rows))
    for mode in sampled_modes(builder_name):
        given = defaultdict(Counter)
        for position in range(3000):
            options = {"node_budget": 9, "seed": 11, "position": position, **mode}
            tree = treespec.build_tree(builder_name, source, **options)
            for node, draws in enumerate(tree.draws):
                drawn = tuple(int(tree.token[child]) for child in draws)
                for j, token in enumerate(drawn):
                    known = drawn[:j] if tree.proposal != "iid" else (j,)
                    # Whether later draws are made may depend on this token; k is fixed before.
                    count = len(drawn) if tree.proposal == "top_plus_one" else 0
                    given[path_of(tree, node), known, count][token] += 1
        assert max(len(path) for path, _, _ in given) >= 1
        for (path, known, count), tokens in given.items():
            law = law_of_draw(rows[len(path)], known, count, tree.proposal)
            statistic, bound = chi_square([tokens[t] for t in range(4)], law)
            assert statistic < bound, (mode, path, known, tokens)


def law_of_draw(row, known, count, proposal):
    """The law of a draw after the draws ``known``, of ``count`` in all (top_plus_one)."""
    law = row.copy()
    if proposal == "iid":
        return law
    if proposal == "top_plus_one" and len(known) < count - 1:
        ranked = np.lexsort((np.arange(len(row)), -row))
        return np.eye(len(row))[ranked[len(known)]]
    law[list(known)] = 0.0
    return law / law.sum()


@only(draws_tokens)
def test_the_recorded_law_is_the_drafters_law(builder_name):
    laws = random_laws(4, 7, ("dense", "sparse"))
    for mode, seed in itertools.product(sampled_modes(builder_name), range(3)):
        options = {"node_budget": 20, "seed": seed, **mode, **kwargs_for(builder_name, max_depth=4)}
        tree = treespec.build_tree(builder_name, ToyDrafter(laws), **options)
        for node, draws in enumerate(tree.draws):
            if not draws:
                np.testing.assert_array_equal(tree.draft_probs[node], 0)
                continue
            law = laws(path_of(tree, node))
            np.testing.assert_allclose(tree.draft_probs[node], law, rtol=1e-5, atol=0)
            assert all(tree.draft_probs[node, tree.token[child]] > 0 for child in draws)


@only(draws_tokens)
def test_the_key_of_a_round_moves_every_draw(builder_name):
    source = treespec.Marginals(np.tile(np.arange(64), (3, 1)), np.full((3, 64), -np.log(64.0)))
    for mode in sampled_modes(builder_name):
        keys = [{}, {"seed": 1}, {"seed": 2**40}, {"sequence_id": 1}, {"position": 1}]
        trees = [treespec.build_tree(builder_name, source, 21, **mode, **key) for key in keys]
        assert len({tuple(tree.token[1:].tolist()) for tree in trees}) == len(keys)


# ------------------------------------------------------------------ edge cases


def test_a_budget_of_zero_gives_the_root_alone(builder_name):
    for kind in SOURCE_KINDS:
        if reads(builder_name, kind):
            source, _ = make_source(kind, 1)
            tree = treespec.build_tree(builder_name, source, node_budget=0)
            assert len(tree.token) == 1
            assert getattr(source, "calls", 0) == 0, "no drafter call for an empty tree"


def test_a_depth_of_zero_gives_the_root_alone(builder_name):
    for kind in SOURCE_KINDS:
        if reads(builder_name, kind):
            source, _ = make_source(kind, 1)
            tree = treespec.build_tree(builder_name, source, node_budget=9, max_depth=0)
            assert len(tree.token) == 1
            assert getattr(source, "calls", 0) == 0


@only(lambda builder_name: reads(builder_name, "marginals"))
def test_a_source_of_no_depth_gives_the_root_alone(builder_name):
    empty = np.zeros((0, 3))
    tree = treespec.build_tree(builder_name, treespec.Marginals(empty.astype(np.int32), empty), 9)
    assert len(tree.token) == 1


def test_a_budget_beyond_all_candidates_is_no_problem(builder_name):
    for kind in ("marginals", "transitions", "trie"):
        if reads(builder_name, kind):
            core_source, oracle_source = make_source(kind, 2, vocab_size=3, depth=3)
            core = treespec.build_tree(builder_name, core_source, node_budget=4096)
            same_tree(core, reference.builder(builder_name)(oracle_source, node_budget=4096))
            huge = treespec.build_tree(builder_name, core_source, node_budget=100_000)
            assert treespec.check_tree(huge) == []


@only(lambda builder_name: reads(builder_name, "expander"))
def test_a_large_budget_over_a_large_source_is_no_problem(builder_name):
    laws = np.random.default_rng(0).dirichlet(np.full(40, 0.2), size=6)
    for mode in modes_of(builder_name):
        options = {**mode, **kwargs_for(builder_name, max_depth=6)}
        drafter = ToyDrafter(lambda path: laws[len(path)])
        tree = treespec.build_tree(builder_name, drafter, node_budget=4096, **options)
        assert treespec.check_tree(tree) == []
        assert len(tree.token) <= 4097
        np.testing.assert_array_equal(np.unique(tree.depth), np.arange(tree.depth.max() + 1))


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


@only(lambda builder_name: reads(builder_name, "expander"))
def test_a_certain_drafter_gives_a_chain_of_certain_tokens(builder_name):
    laws = np.eye(5)
    for mode in modes_of(builder_name):
        options = {"node_budget": 8, **mode, **kwargs_for(builder_name, max_depth=5)}
        drafter = ToyDrafter(lambda path: laws[(len(path) * 2 + 1) % 5])
        tree = treespec.build_tree(builder_name, drafter, **options)
        assert 1 < len(tree.token) <= 6
        np.testing.assert_array_equal(tree.parent, np.arange(-1, len(tree.token) - 1))
        np.testing.assert_array_equal(tree.path_logprob, 0)
        assert all((2 * d - 1) % 5 == tree.token[d] for d in range(1, len(tree.token)))


def test_impossible_tokens_are_never_taken(builder_name):
    # Odd and even vocabularies: a row without any possible token must end its branch.
    for vocab_size, kind in itertools.product((3, 4), ("expander", "marginals")):
        if not reads(builder_name, kind):
            continue
        laws = np.zeros((3, vocab_size))
        laws[0, :2] = 0.5
        laws[1, 1] = 1.0
        for mode in modes_of(builder_name):
            options = {"node_budget": 9, **mode, **kwargs_for(builder_name, max_depth=3)}
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
def test_a_row_without_any_token_gives_the_root_alone(builder_name):
    for mode in modes_of(builder_name):
        drafter = ToyDrafter(lambda path: np.zeros(3))
        tree = treespec.build_tree(builder_name, drafter, node_budget=6, **mode)
        assert len(tree.token) == 1
        assert treespec.check_tree(tree) == []


@only(lambda builder_name: reads(builder_name, "expander"))
def test_a_vocabulary_of_one_or_two_tokens_is_enough(builder_name):
    for mode, vocab_size in itertools.product(modes_of(builder_name), (1, 2)):
        laws = random_laws(1, vocab_size)
        options = {"node_budget": 30, **mode, **kwargs_for(builder_name, max_depth=4)}
        core = treespec.build_tree(builder_name, ToyDrafter(laws), **options)
        same_tree(core, reference.builder(builder_name)(ToyDrafter(laws), **options))
        assert len(core.token) > 1


@only(lambda builder_name: reads(builder_name, "expander"))
@pytest.mark.parametrize("first_bad_call", [0, 1])
def test_a_nan_is_refused(builder_name, first_bad_call):

    class Broken:
        calls = 0

        def expand(self, nodes):
            rows = np.full((len(nodes), 4), -2.0, np.float32)
            if self.calls >= first_bad_call:
                rows[-1, 2] = np.nan
            self.calls += 1
            return rows

    with pytest.raises(ValueError, match="NaN"):
        treespec.build_tree(builder_name, Broken(), node_budget=16)


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
        for node in range(1, len(tree.token)):
            parent = tree.parent[node]
            step = logprob[tree.depth[parent], tree.token[node]]
            assert abs(tree.path_logprob[node] - tree.path_logprob[parent] - step) < 2e-3


# ------------------------------------------------------------------ refused options

TABLE = {
    "a row of sum above 1": [[0.6, 0.5]],
    "a negative number": [[0.6, -0.25]],
    "a number above 1": [[1.5]],
    "a NaN": [[float("nan")]],
    "no row": [],
}
PAIRS = {
    "q at 0": [[0.0, 0.5]],
    "q above 1": [[1.5, 0.5]],
    "q that does not rise": [[0.5, 0.25], [0.5, 0.75]],
    "a that falls": [[0.5, 0.75], [0.875, 0.25]],
    "a above 1": [[0.5, 1.5]],
    "a negative a": [[0.5, -0.25]],
    "no pair": [],
    "a triple": [[0.25, 0.5, 0.75]],
    "a NaN": [[0.5, float("nan")]],
}
# (builder, options, the option to blame, its value as the message gives it)
REFUSED = {
    "opt_tree: score_temperature": ("opt_tree", {"score_temperature": 0}, "score_temperature", "0"),
    "eagle2: width": ("eagle2", {"width": 0}, "width", "0"),
    "eagle2: a ratio above 1": ("eagle2", {"width_ratio": 1.5}, "width_ratio", "1.5"),
    "eagle2: a ratio below 0": ("eagle2", {"width_ratio": -0.5}, "width_ratio", "-0.5"),
    "eagle2: growth": ("eagle2", {"growth": "wild"}, "growth", "wild"),
    "eagle2: a ratio at constant growth": (
        "eagle2",
        {"growth": "constant", "width_ratio": 0.5},
        "width_ratio",
        "0.5",
    ),
    "opt_tree: a temperature that leaves no bits": (
        "opt_tree",
        {"score_temperature": 1e-310},
        "score_temperature",
        "1e-310",
    ),
    "eagle2: score_temperature": ("eagle2", {"score_temperature": -1}, "score_temperature", "-1"),
    "dtree: score_temperature": ("dtree", {"score_temperature": 0}, "score_temperature", "0"),
    "trie: score_temperature": ("trie", {"score_temperature": 0}, "score_temperature", "0"),
    "sequoia: proposal": ("sequoia", {"proposal": "iid"}, "proposal", "iid"),
    "sequoia: a table and a map": (
        "sequoia",
        {"acceptance": [0.5], "growth_map": [0]},
        "growth_map",
        "",
    ),
    "sequoia: a child before its parent": ("sequoia", {"growth_map": [0, 2]}, "growth_map", "2"),
    "sequoia: a negative parent": ("sequoia", {"growth_map": [-1]}, "growth_map", "-1"),
    "medusa_choices: a table and a map": (
        "medusa_choices",
        {"accuracy": [0.5], "growth_map": [0]},
        "growth_map",
        "",
    ),
    "medusa_choices: a child before its parent": (
        "medusa_choices",
        {"growth_map": [1]},
        "growth_map",
        "1",
    ),
    "kary: a width of 0": ("kary", {"expansion": [2, 0]}, "expansion", "0"),
    "top_plus_one: a width of 0": ("top_plus_one", {"expansion": [0]}, "expansion", "0"),
    "top_plus_one: no level": ("top_plus_one", {"expansion": []}, "expansion", ""),
    "top_plus_one: the budget": ("top_plus_one", {"expansion": [9, 2]}, "node_budget", "12"),
    "top_plus_one: the depth": (
        "top_plus_one",
        {"expansion": [1, 1, 1], "max_depth": 2},
        "max_depth",
        "2",
    ),
    "dyspec: evaluation": ("dyspec", {"evaluation": "eager"}, "evaluation", "eager"),
    "dyspec_threshold: zero": ("dyspec_threshold", {"threshold": 0.0}, "threshold", "0"),
    "dyspec_threshold: negative": ("dyspec_threshold", {"threshold": -0.5}, "threshold", "-0.5"),
    "dyspec_threshold: NaN": (
        "dyspec_threshold",
        {"threshold": float("nan")},
        "threshold",
        "nan",
    ),
    "rollouts: no path": ("rollouts", {"num_paths": 0}, "num_paths", "0"),
    "rollouts: more paths than nodes": ("rollouts", {"num_paths": 13}, "node_budget", "12"),
    "delayed: no path": ("delayed", {"num_paths": 0}, "num_paths", "0"),
    "delayed: a negative trunk": ("delayed", {"trunk": -1}, "trunk", "-1"),
    "delayed: a negative branch": ("delayed", {"branch": -1}, "branch", "-1"),
    "delayed: a long trunk": ("delayed", {"trunk": 13}, "node_budget", "12"),
    "delayed: long branches": ("delayed", {"branch": 5}, "node_budget", "12"),
    "delayed: both": ("delayed", {"trunk": 4, "branch": 3}, "node_budget", "12"),
    **{
        f"{name}: {option} with {what}": (name, {option: value}, option, "")
        for name, option in (("sequoia", "acceptance"), ("medusa_choices", "accuracy"))
        for what, value in TABLE.items()
    },
    **{
        f"{name}: calibration with {what}": (name, {"calibration": value}, "calibration", "")
        for name in ("opt_tree", "eagle2", "dtree", "trie")
        for what, value in PAIRS.items()
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_option_is_refused_by_name_and_value(build, case):
    name, options, option, value = REFUSED[case]
    source = make_source("trie" if name == "trie" else "marginals", 0)[1]
    with pytest.raises(ValueError, match=rf"(?s)^{name}: .*\b{option}\b") as refused:
        build(name, source, node_budget=12, **options)
    assert value in str(refused.value)


def test_a_negative_depth_is_refused(builder_name):
    kind = next(k for k in SOURCE_KINDS if reads(builder_name, k))
    with pytest.raises(ValueError, match="max_depth must be an integer >= 0, got -1"):
        treespec.build_tree(builder_name, make_source(kind, 0)[0], 5, max_depth=-1)


# ------------------------------------------------------------------ the oracle itself, and sources


def test_an_expander_sees_its_contract(builder_name):
    """Indices count hand-overs, the first call is the root alone, parents come first."""
    if not reads(builder_name, "expander"):
        return
    calls = []

    class Watcher(ToyDrafter):
        def expand(self, nodes):
            calls.append([(n.index, n.parent, n.token, n.depth) for n in nodes])
            return super().expand(nodes)

    for mode in modes_of(builder_name):
        calls.clear()
        options = {"node_budget": 12, **mode, **kwargs_for(builder_name, max_depth=4)}
        treespec.build_tree(builder_name, Watcher(random_laws(2, 4)), **options)
        assert [n[0] for n in calls[0]] == [0]
        assert calls[0][0][1] == -1
        assert calls[0][0][3] == 0
        handed = [node for call in calls for node in call]
        assert [node[0] for node in handed] == list(range(len(handed)))
        for index, parent, _, depth in handed[1:]:
            assert 0 <= parent < index
            assert depth == handed[parent][3] + 1
        assert all(depth < 4 for _, _, _, depth in handed), "no row that cannot matter"
        first = {node[0]: number for number, call in enumerate(calls) for node in call}
        assert all(first[parent] < first[index] for index, parent, _, _ in handed[1:])


def test_transitions_follow_their_links_and_end_at_leaves(builder_name):
    if not reads(builder_name, "transitions"):
        return
    token = np.array([[[1, 2], [0, 0]], [[3, 4], [5, 6]]], np.int32)
    logprob = log([[[0.5, 0.5], [1, 0]], [[0.75, 0.25], [0.75, 0.25]]])
    follow = np.array([[[1, -1], [0, 0]], [[0, 0], [0, 0]]], np.int32)
    source = treespec.Transitions(token, logprob, follow)
    possible = {(1,), (2,), (1, 5), (1, 6)}
    for mode in modes_of(builder_name):
        tree = treespec.build_tree(builder_name, source, node_budget=9, **mode)
        built = {path_of(tree, node) for node in range(1, len(tree.token))}
        assert built <= possible
        if builder_name in ("opt_tree", "dtree", "eagle2"):
            assert built == possible


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


@only(lambda builder_name: reads(builder_name, "marginals"))
def test_a_growth_takes_lists_in_place_of_rows(builder_name):
    source, _ = make_source("marginals", 5)  # its lists are not ranked
    token, logprob = source.arrays
    for mode in modes_of(builder_name):
        key = {"seed": 3, "sequence_id": 1, "position": 7}
        growth = treespec._core.TreeBuilder(builder_name, **mode).begin(9, 4, **key)
        while len(nodes := growth.frontier()):
            growth.supply_lists(token[nodes.depth], logprob[nodes.depth])
        same_tree(growth.finish(), treespec.build_tree(builder_name, source, 9, **key, **mode))


def test_a_grown_tree_takes_no_more_rows_and_is_finished_once():
    growth = treespec._core.TreeBuilder("chain").begin(1)
    growth.supply(np.zeros((1, 1), np.float32))
    with pytest.raises(ValueError, match="takes no more rows"):
        growth.supply(np.zeros((0, 1), np.float32))
    assert growth.finish().num_nodes == 2
    with pytest.raises(ValueError, match="called once"):
        growth.finish()
