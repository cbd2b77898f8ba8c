# SPDX-License-Identifier: Apache-2.0
"""Losslessness, by enumeration: every tree that can be drawn, every outcome of the coins.

What is emitted must have the target's law to rounding. ``treespec.testing`` does the work;
``test_verifiers_controls.py`` shows that it would notice.
"""

import itertools

import numpy as np
import pytest
from support import only
from verifier_cases import (
    DRAWN,
    EXACT,
    LOSSLESS,
    NOT_BY_COINS,
    PAIRS,
    bias_of,
    by_coins,
    decide_by_core,
    deep_laws,
    modes,
    oracle,
    pair_of,
    rotated,
    small_laws,
    takes,
    takes_trees,
)

from treespec import build_tree
from treespec.reference.sampling import inverse_cdf
from treespec.reference.tree import from_arrays
from treespec.reference.walk import follow
from treespec.testing import (
    ToyDrafter,
    chi_square,
    growth_map_trees,
    random_laws,
    sampled_trees,
)

ORACLES = [name for name in LOSSLESS if name not in NOT_BY_COINS]


@pytest.mark.parametrize("pair", PAIRS)
@only(by_coins)
def test_every_verifier_emits_exactly_the_targets_law(verifier_name, pair):
    target, draft = pair_of(pair)
    for label, trees in small_laws(verifier_name).items():
        found = bias_of(verifier_name, decide_by_core(verifier_name), trees(draft), target)
        assert found < EXACT, (label, found)


@pytest.mark.parametrize("seed", [1, 2])
@only(by_coins)
def test_every_verifier_is_exact_on_deeper_trees_of_unrelated_rows(verifier_name, seed):
    target = random_laws(seed, 3, ("dense", "sparse", "smooth"))
    draft = random_laws(seed + 50, 3, ("dense", "sparse", "peaked"))
    for label, trees in deep_laws(verifier_name).items():
        found = bias_of(verifier_name, decide_by_core(verifier_name), trees(draft), target)
        assert found < EXACT, (label, found)


@only(by_coins)
@only(takes_trees)
@only(lambda verifier_name: "without_replacement" in modes(verifier_name))
def test_every_verifier_is_exact_on_two_levels_of_two_draws(verifier_name):
    target = random_laws(1, 3, ("dense", "sparse", "smooth"))
    draft = random_laws(51, 3, ("dense", "sparse", "peaked"))
    trees = sampled_trees(draft, (2, 2), "without_replacement")
    assert bias_of(verifier_name, decide_by_core(verifier_name), trees, target) < EXACT


# Ranks with different subtrees: more below the first draw, or more below a later one.
GROWTH_MAPS = {"first": [0, 0, 1, 1], "second": [0, 0, 2, 3], "third": [0, 0, 0, 3, 2]}


@pytest.mark.parametrize("parent", GROWTH_MAPS.values(), ids=GROWTH_MAPS)
@pytest.mark.parametrize("pair", ["draft is far", "draft misses target mass", "unrelated rows"])
@pytest.mark.parametrize("name", ["traversal", "recursive_rejection", "naive_tree", "target_only"])
def test_drawn_growth_maps_are_exact(name, pair, parent):
    if pair == "unrelated rows":
        target = random_laws(1, 3, ("dense", "sparse"))
        draft = random_laws(51, 3, ("dense", "sparse"))
    else:
        target, draft = pair_of(pair)
    trees = growth_map_trees(draft, parent, "without_replacement")
    decide = decide_nss if name == "target_only" else decide_by_core(name)
    assert bias_of(name, decide, trees, target) < EXACT


def decide_nss(tree, rows, coins):
    """`target_only` by coins; the core's takes the coin of the token's position in the text."""
    return follow(tree, lambda node: inverse_cdf(rows[node], coins[1][node]))


def test_trees_of_a_growth_map_are_those_that_sequoia_draws():
    laws = random_laws(0, 3, ("dense", "sparse"))
    parent = [0, 0, 2, 2, 1, 4]
    trees = list(growth_map_trees(laws, parent, "without_replacement"))
    place = {shape_of(tree): i for i, (tree, _) in enumerate(trees)}
    assert len(place) == len(trees)
    assert len({tree.num_nodes for tree, _ in trees}) > 1, "some rows are exhausted"
    counts = np.zeros(len(trees))
    for seed in range(4000):
        options = {"seed": seed, "growth_map": parent, "proposal": "without_replacement"}
        counts[place[shape_of(build_tree("sequoia", ToyDrafter(laws), 6, **options))]] += 1
    statistic, bound = chi_square(counts, [probability for _, probability in trees])
    assert statistic < bound


def shape_of(tree):
    draws = tuple(tuple(int(child) for child in drawn) for drawn in tree.draws)
    return (*tree.token.tolist()[1:], *tree.parent.tolist()), draws


def test_growth_map_trees_refuse_what_no_map_can_be():
    law = rotated([20, 44])
    with pytest.raises(ValueError, match=r"proposal must be deterministic or .*, got 'iid'"):
        next(growth_map_trees(law, [0], "iid"))
    with pytest.raises(ValueError, match=r"parent\[1\] in \[0, 1\], got 2"):
        next(growth_map_trees(law, [0, 2], "deterministic"))


@only(by_coins)
@only(takes_trees)
def test_lists_longer_than_the_vocabulary_are_exact(verifier_name):
    target, draft = (lambda path: np.array([20, 44]) / 64), (lambda path: np.array([49, 15]) / 64)
    for mode in modes(verifier_name):
        trees = sampled_trees(draft, (4,), mode)
        found = bias_of(verifier_name, decide_by_core(verifier_name), trees, target)
        assert found < EXACT, (mode, found)


@pytest.mark.parametrize("proposal", DRAWN)
@only(by_coins)
@only(takes)
def test_a_verifier_with_no_draft_left_samples_the_target(verifier_name, proposal):
    target = rotated([10, 30, 4, 20])
    trees = [(from_arrays([0], [-1], proposal=proposal, draws=[[]]), 1.0)]
    assert bias_of(verifier_name, decide_by_core(verifier_name), trees, target) < EXACT


@pytest.mark.parametrize("decide", [decide_by_core, oracle], ids=["core", "oracle"])
@pytest.mark.parametrize("name", ["recursive_rejection", "traversal"])
def test_a_nearly_certain_draft_is_renormalised_precisely(name, decide):
    # Without the first token the rest has mass 1.4e-17: too small for a 2^60 sum of the raw row.
    draft = np.array([1.0, 1e-17, 3e-18, 1e-18], np.float32).astype(np.float64)
    target = np.array([8, 20, 20, 16]) / 64
    trees = sampled_trees(lambda path: draft, (2,), "without_replacement")
    assert bias_of(name, decide(name), trees, lambda path: target) < 1e-9


@pytest.mark.parametrize("name", ORACLES)
def test_the_oracles_are_exact(name):
    for pair in ("draft is far", "draft misses target mass"):
        target, draft = pair_of(pair)
        for label, trees in itertools.islice(small_laws(name).items(), 0, None, 2):
            found = bias_of(name, oracle(name), trees(draft), target)
            assert found < EXACT, (pair, label, found)
