# SPDX-License-Identifier: Apache-2.0
"""Options that change scores, not what is possible: score_temperature and calibration."""

import numpy as np
import pytest
from support import (
    SOURCE_KINDS,
    core_build,
    make_source,
    only,
    options_of,
    oracle_build,
    reads,
    same_shape,
    same_tree,
)

import treespec
from treespec import reference
from treespec.reference import scores, sources
from treespec.testing import ToyDrafter, random_laws

# Lowers confident candidates more than others, and keeps their order: no candidate overtakes a
# sibling, but a deep path of confident tokens is worth less than before.
OVERCONFIDENT = [[0.25, 0.2], [0.5, 0.35], [1.0, 0.55]]


def scored(builder_name):
    return "score_temperature" in options_of(builder_name)


def kind_for(builder_name):
    return next(kind for kind in SOURCE_KINDS if reads(builder_name, kind))


def rescored_source(kind, seed, change):
    """A source whose rows of probabilities have gone through ``change``."""
    if kind == "expander":
        laws = random_laws(seed, 6, ("smooth",))
        return ToyDrafter(lambda path: change(laws(path)))
    if kind == "marginals":
        _, source = make_source(kind, seed, kinds=("smooth",))
        rows = [np.log(change(row)) for row in np.exp(source.logprob.astype(np.float64))]
        return sources.Marginals(source.token, np.array(rows, np.float32))
    return trie_of_laws(random_laws(seed, 3, ("smooth",)), change)


def trie_of_laws(laws, change):
    parent, token, logprob, paths = [], [], [], [()]
    for index, path in enumerate(paths):
        for t, p in enumerate(change(laws(path))):
            parent.append(index - 1)
            token.append(t)
            logprob.append(np.log(p))
            if len(path) < 2:
                paths.append((*path, t))
    # Nodes were added in the order of their paths: node i is paths[i + 1].
    return sources.Trie(np.array(parent, np.int32), np.array(token), np.array(logprob, np.float32))


def unchanged(law):
    return law


def calibrated(law, table=OVERCONFIDENT):
    given, accepted = np.array([[0.0, 0.0], *table]).T
    return np.interp(law, given, accepted)


@only(scored)
@pytest.mark.parametrize("temperature", [0.3, 0.9, 2.5])
def test_score_temperature_sharpens_the_scores_only(builder_name, temperature):
    kind = kind_for(builder_name)

    def sharp(law):
        law = law ** (1 / temperature)
        return law / law.sum()

    for seed in range(8):
        options = {"node_budget": 15, "max_depth": 4}
        source = rescored_source(kind, seed, unchanged)
        core = core_build(builder_name, source, **options, score_temperature=temperature)
        oracle = oracle_build(builder_name, source, **options, score_temperature=temperature)
        same_tree(core, oracle, exact_scores=False)
        by_hand = oracle_build(builder_name, rescored_source(kind, seed, sharp), **options)
        same_shape(core, by_hand)


@only(scored)
def test_a_calibration_gives_the_tree_of_calibrated_probabilities(builder_name):
    kind, changed = kind_for(builder_name), 0
    for seed in range(10):
        options = {"node_budget": 15, "max_depth": 4}
        source = rescored_source(kind, seed, unchanged)
        core = core_build(builder_name, source, **options, calibration=OVERCONFIDENT)
        oracle = oracle_build(builder_name, source, **options, calibration=OVERCONFIDENT)
        same_tree(core, oracle, exact_scores=False)
        by_hand = oracle_build(builder_name, rescored_source(kind, seed, calibrated), **options)
        same_shape(core, by_hand)
        np.testing.assert_allclose(core.path_logprob, by_hand.path_logprob, rtol=1e-5, atol=1e-6)
        plain = oracle_build(builder_name, source, **options)
        changed += list(plain.parent) != list(core.parent)
    assert changed > 0, "the table must matter"


@only(scored)
def test_the_identity_calibration_changes_nothing(builder_name):
    kind = kind_for(builder_name)
    for seed in range(6):
        source = rescored_source(kind, seed, unchanged)
        options = {"node_budget": 20, "max_depth": 4}
        plain = core_build(builder_name, source, **options)
        for table in ([[1, 1]], [[1.0, 1.0]], [[0.25, 0.25], [0.5, 0.5], [1.0, 1.0]]):
            tree = core_build(builder_name, source, **options, calibration=table)
            same_shape(tree, plain)
            np.testing.assert_allclose(tree.path_logprob, plain.path_logprob, rtol=1e-5, atol=1e-6)


@only(scored)
def test_sharpening_comes_before_calibration(builder_name):
    kind = kind_for(builder_name)

    def both(law):
        return calibrated(law**2 / np.sum(law**2))

    for seed in range(6):
        options = {"node_budget": 12, "max_depth": 4}
        source = rescored_source(kind, seed, unchanged)
        score = {"score_temperature": 0.5, "calibration": OVERCONFIDENT}
        tree = core_build(builder_name, source, **options, **score)
        same_tree(tree, oracle_build(builder_name, source, **options, **score), exact_scores=False)
        same_shape(tree, oracle_build(builder_name, rescored_source(kind, seed, both), **options))


def test_one_confident_path_is_judged_as_by_hand(build):
    # Uncalibrated .9 * .9 = .81 > .1; a calibration that believes in no more than .3 prefers the
    # second token at the root: .3 * .3 = .09 < .1.
    source = sources.Marginals([[0, 1], [0, 1]], np.log([[0.9, 0.1], [0.9, 0.1]]))
    options = {"node_budget": 2, "max_depth": 2}
    for name in ("opt_tree", "eagle2", "dtree"):
        assert list(build(name, source, **options).parent) == [-1, 0, 1]
        table = [[0.1, 0.1], [0.3, 0.3]]
        tree = build(name, source, **options, calibration=table)
        assert list(tree.parent) == [-1, 0, 0]
        np.testing.assert_allclose(np.exp(tree.path_logprob[1:]), [0.3, 0.1], rtol=1e-6)


def test_candidates_that_calibration_makes_equal_come_by_token(build):
    # Flat after the last pair: .6 and .3 are both worth .25; the token decides, not the draft.
    source = sources.Marginals([[7, 5, 3]], np.log([[0.6, 0.3, 0.1]]))
    for name in ("opt_tree", "eagle2", "dtree"):
        tree = build(name, source, node_budget=3, calibration=[[0.2, 0.25]])
        np.testing.assert_array_equal(tree.token[1:], [5, 7, 3])
        np.testing.assert_allclose(np.exp(tree.path_logprob[1:]), [0.25, 0.25, 0.125], rtol=1e-6)
    tree = build("eagle2", source, node_budget=3, width=1, calibration=[[0.2, 0.25]])
    np.testing.assert_array_equal(tree.token[1:], [5])


def test_candidates_that_are_never_accepted_are_never_taken(build):
    source = sources.Marginals([[0, 1, 2]] * 2, np.log([[0.7, 0.2, 0.1]] * 2))
    for name in ("opt_tree", "eagle2", "dtree"):
        tree = build(name, source, node_budget=9, calibration=[[0.3, 0.0], [1.0, 1.0]])
        np.testing.assert_array_equal(tree.token[1:], [0, 0])
        assert len(build(name, source, node_budget=9, calibration=[[1.0, 0.0]]).token) == 1


def test_a_table_may_be_lists_or_tuples(build):
    source = sources.Marginals([[0, 1]], np.log([[0.6, 0.4]]))
    trees = [
        build("dtree", source, node_budget=2, calibration=table)
        for table in ([[0.5, 0.25], [1, 0.5]], ((0.5, 0.25), (1.0, 0.5)), [(0.5, 0.25), [1.0, 0.5]])
    ]
    for tree in trees:
        np.testing.assert_allclose(np.exp(tree.path_logprob[1:]), [0.3, 0.2], rtol=1e-6)


def test_an_impossible_row_has_no_children_at_any_score_temperature():
    rows = np.array([[-0.5, -1.0], [-np.inf, -np.inf]], np.float32)
    source = treespec.Marginals([[1, 2], [3, 4]], rows)
    for name, temperature in [(n, t) for n in ("opt_tree", "dtree") for t in (1.0, 0.5, 1e-6)]:
        tree = treespec.build_tree(name, source, 6, score_temperature=temperature)
        assert set(tree.token[1:].tolist()) <= {1, 2}
        assert len(tree.token) >= 2


def test_a_calibration_never_lifts_a_child_above_its_parent():
    row = reference.sources.CandidateRow(
        np.arange(4), np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32)), np.zeros(4, np.int64)
    )
    raised = scores.calibrate(row, [[0.1, 0.9], [1.0, 1.0]])
    assert np.all(raised.logprob <= 0)
    assert np.all(np.diff(raised.logprob) <= 0)
