# SPDX-License-Identifier: Apache-2.0
"""How much a verifier accepts: closed forms against enumeration, ceilings, and who beats whom."""

from itertools import chain, combinations

import numpy as np
import pytest
from scipy.optimize import linprog
from support import only
from verifier_cases import (
    DRAWN,
    LOSSLESS,
    NOT_BY_COINS,
    PAIRS,
    by_coins,
    coin_order,
    deep_laws,
    modes,
    oracle,
    pair_of,
    small_laws,
    takes,
    takes_trees,
    width_for,
)

import treespec
from treespec import reference, testing
from treespec.reference import expected
from treespec.reference import tree as reference_tree
from treespec.reference.residual import residual
from treespec.reference.sampling import normalise
from treespec.reference.verifiers import khisti, spectr
from treespec.testing import core_tree, random_law, random_laws, sampled_trees

KINDS = ("dense", "sparse", "peaked", "one_hot", "smooth")
NAMES = [name for name in LOSSLESS if name != "typical"]
BY_COINS = [name for name in LOSSLESS if name not in NOT_BY_COINS]


def by_core(tree, rows, name):
    return treespec.expected_acceptance(core_tree(tree), rows, verifier=name)


def by_oracle(tree, rows, name):
    return expected.expected_acceptance(tree, rows, None, name)


ENGINES = pytest.mark.parametrize("engine", [by_core, by_oracle], ids=["core", "oracle"])


def average(engine, name, trees, target, weigh=lambda tree, found: found.num_accepted):
    """Mean over a tree law of what is expected of each tree."""
    return sum(
        probability * weigh(tree, engine(tree, testing.rows_of(tree, target), name))
        for tree, probability in trees
    )


def random_case(seed, proposal, width, vocab_size=4, num_nodes=7):
    rng = np.random.default_rng([seed, vocab_size])
    tree = testing.random_tree(
        rng,
        num_nodes=num_nodes,
        vocab_size=vocab_size,
        proposal=proposal,
        max_children=width,
        kinds=KINDS,
    )
    rows = np.stack([random_law(rng, vocab_size, str(rng.choice(KINDS))) for _ in tree.token])
    for node in range(tree.num_nodes):
        if tree.draws[node] and tree.draft_probs is not None and rng.random() < 0.3:
            rows[node] = normalise(tree.draft_probs[node])
    return tree, rows


# ------------------------------------------------------------------ against enumeration


@pytest.mark.parametrize("name", BY_COINS)
def test_the_closed_form_is_what_enumeration_finds(name):
    for seed, mode in enumerate(modes(name) * 6):
        tree, rows = random_case(seed, mode, width_for(name, 3), vocab_size=3, num_nodes=5)
        decide = oracle(name)
        law = testing.outcome_law(
            lambda coins, decide=decide, tree=tree, rows=rows: decide(tree, rows, coins),
            tree.draws,
            coin_order(name)(tree),
        )
        found = by_oracle(tree, rows, name)
        enumerated = np.zeros(tree.num_nodes)
        for (nodes, _), mass in law.items():
            enumerated[[0, *nodes]] += mass
        np.testing.assert_allclose(found.node_probability, enumerated, atol=1e-11)
        assert found.num_accepted == pytest.approx(enumerated[1:].sum(), abs=1e-11)


# Where p = q the smallest rho of K-SEQ is lost in rounding, (1e-16)^(1/k) wide; all are lossless.
TOLERANCE = {"spectr": 1e-4}


@only(lambda verifier_name: bool(LOSSLESS[verifier_name]))
def test_the_core_expects_what_its_oracle_expects(verifier_name):
    close = TOLERANCE.get(verifier_name, 1e-11)
    for mode in LOSSLESS[verifier_name]:
        for seed in range(40):
            tree, rows = random_case(seed, mode, width_for(verifier_name, 4), num_nodes=14)
            found, wanted = (engine(tree, rows, verifier_name) for engine in (by_core, by_oracle))
            assert found.num_accepted == pytest.approx(wanted.num_accepted, abs=close)
            np.testing.assert_allclose(
                np.asarray(found.node_probability)[1:], wanted.node_probability[1:], atol=close
            )


def test_auto_expects_what_the_verifier_of_the_mode_does():
    meant = {"deterministic": "target_only", "top_plus_one": "top_plus_one"}
    for mode in reference_tree.PROPOSALS:
        tree, rows = random_case(3, mode, 3)
        auto = treespec.expected_acceptance(core_tree(tree), rows)
        named = by_core(tree, rows, meant.get(mode, "traversal"))
        assert auto.num_accepted == named.num_accepted


def test_a_given_draft_law_is_used():
    tree, rows = random_case(5, "iid", 3)
    own = by_core(tree, rows, "traversal").num_accepted
    bare = reference_tree.from_arrays(tree.token, tree.parent, proposal="iid", draws=tree.draws)
    given = treespec.expected_acceptance(core_tree(bare), rows, tree.draft_probs, "traversal")
    assert given.num_accepted == own


@pytest.mark.parametrize("name", NAMES)
def test_a_one_hot_target_accepts_its_own_path(name):
    for mode in LOSSLESS[name]:
        for seed in range(10):
            tree, _ = random_case(seed, mode, width_for(name, 3))
            rows = testing.rows_of(tree, random_laws(seed, 4, ("one_hot",)))
            found = by_oracle(tree, rows, name).node_probability
            wanted = by_oracle(tree, rows, "greedy").node_probability
            np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_typical_acceptance_is_certain_about_its_path():
    tree, rows = random_case(1, "deterministic", 3)
    nodes, _ = reference.verifier("typical")(tree, rows)
    found = by_oracle(tree, rows, "typical")
    assert found.num_accepted == len(nodes)
    assert set(np.flatnonzero(found.node_probability)) == {0, *nodes}


# ------------------------------------------------------------------ one level


def row_pairs(count, seed=0):
    """Random (target, draft) laws of 2 to 5 tokens, and all named ones."""
    for counts in PAIRS.values():
        yield tuple(np.array(side) / 64 for side in counts)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        size = int(rng.integers(2, 6))
        yield tuple(random_law(rng, size, str(rng.choice(KINDS))) for _ in range(2))


def exact_pairs(count, seed=0):
    """Those that a float32 draft law holds exactly."""
    for target, draft in row_pairs(count, seed):
        if np.array_equal(draft, draft.astype(np.float32)):
            yield target, draft


def one_level(engine, name, target, draft, num_draws, proposal):
    trees = sampled_trees(lambda path: draft, (num_draws,), proposal)
    return average(engine, name, trees, lambda path: target)


def naive_tree_accepts(p, q, k):
    return np.minimum(p, q).sum() + (np.maximum(p - q, 0) * (1 - (1 - q) ** (k - 1))).sum()


def specinfer_accepts(p, q, k):
    rejected = 1.0
    for _ in range(k):
        rejected *= 1 - np.minimum(p, q).sum()
        left = residual(p, q)
        p = p if left is None else left
    return 1 - rejected


def k_seq_accepts(p, q, k):
    rho, left = spectr.k_seq(p, q, k)
    beta = np.minimum(p / rho, q).sum()
    acc = 1 - (1 - beta) ** k
    if beta > 1 - 1e-12 or left is None:
        return 1.0
    rejected = np.maximum(q - p / rho, 0) / (1 - beta)
    return acc + (1 - acc) * (left * (1 - (1 - rejected) ** k)).sum()


def target_only_accepts(p, q, k):
    return (p * (1 - (1 - q) ** k)).sum()


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("target_only", target_only_accepts),
        ("naive_tree", naive_tree_accepts),
        ("recursive_rejection", specinfer_accepts),
        ("traversal", specinfer_accepts),
        ("spectr", k_seq_accepts),
    ],
)
@ENGINES
def test_one_level_of_independent_draws_accepts_by_its_formula(engine, name, formula):
    for p, q in exact_pairs(12):
        for k in (1, 2, 3):
            found = one_level(engine, name, p, q, k, "iid")
            assert found == pytest.approx(formula(p, q, k), abs=1e-9), (p, q, k)


@pytest.mark.parametrize("name", [name for name in BY_COINS if "iid" in LOSSLESS[name]])
@ENGINES
def test_one_draw_is_accepted_by_the_overlap(engine, name):
    for p, q in exact_pairs(12):
        assert one_level(engine, name, p, q, 1, "iid") == pytest.approx(
            np.minimum(p, q).sum(), abs=1e-11
        )


# ------------------------------------------------------------------ the ceiling of one level


def brute_force_alpha_star(p, q, k):
    """1 + min over all sets H of p(H) - q(H)^k."""
    tokens = range(len(p))
    sets = chain.from_iterable(combinations(tokens, size) for size in range(len(p) + 1))
    return 1 + min(p[list(h)].sum() - q[list(h)].sum() ** k for h in sets)


def transport_alpha_star(p, trees):
    """The transport program itself: which emitted token goes with which list of draws."""
    lists = [(set(tree.token[1:].tolist()), probability) for tree, probability in trees]
    size, count = len(p), len(lists)
    cost = np.array([-1.0 if t in drawn else 0.0 for t in range(size) for drawn, _ in lists])
    emitted = np.kron(np.eye(size), np.ones(count))
    drafted = np.kron(np.ones(size), np.eye(count))
    found = linprog(
        cost,
        A_eq=np.vstack([emitted, drafted]),
        b_eq=[*p, *(probability for _, probability in lists)],
    )
    return -found.fun


def core_alpha_star(*args):
    return treespec.alpha_star(*args)


STARS = pytest.mark.parametrize(
    "alpha_star", [core_alpha_star, expected.alpha_star], ids=["core", "oracle"]
)


@STARS
def test_alpha_star_is_the_minimum_over_all_sets(alpha_star):
    for p, q in row_pairs(100):
        for k in (1, 2, 3, 4):
            assert alpha_star(p, q, k) == pytest.approx(brute_force_alpha_star(p, q, k), abs=1e-12)


@pytest.mark.parametrize("proposal", ["iid", "top_plus_one"])
@STARS
def test_alpha_star_is_the_optimum_of_the_transport_program(alpha_star, proposal):
    for p, q in row_pairs(6, seed=2):
        for k in (2, 3):
            trees = sampled_trees(lambda path, q=q: q, (k,), proposal)
            found = transport_alpha_star(p, trees)
            assert alpha_star(p, q, k, proposal) == pytest.approx(found, abs=1e-7)


@STARS
def test_alpha_star_of_one_draw_is_the_overlap(alpha_star):
    for p, q in row_pairs(30):
        for proposal in ("iid", "top_plus_one"):
            assert alpha_star(p, q, 1, proposal) == pytest.approx(np.minimum(p, q).sum())


@STARS
def test_alpha_star_refuses_other_modes(alpha_star):
    with pytest.raises(ValueError, match="proposal"):
        alpha_star([0.5, 0.5], [0.5, 0.5], 2, "without_replacement")


@pytest.mark.parametrize("name", [n for n in BY_COINS if "iid" in LOSSLESS[n] and takes_trees(n)])
@ENGINES
def test_nobody_exceeds_alpha_star_on_one_level(engine, name):
    for p, q in exact_pairs(12):
        for k in (2, 3):
            found = one_level(engine, name, p, q, k, "iid")
            assert found <= expected.alpha_star(p, q, k) + 1e-10


@ENGINES
def test_top_plus_one_attains_alpha_star(engine):
    for p, q in exact_pairs(20):
        for k in (1, 2, 3):
            found = one_level(engine, "top_plus_one", p, q, k, "top_plus_one")
            assert found == pytest.approx(expected.alpha_star(p, q, k, "top_plus_one"), abs=1e-11)


@ENGINES
def test_khisti_attains_alpha_star_with_two_draws(engine):
    for p, q in exact_pairs(20):
        found = one_level(engine, "khisti", p, q, 2, "iid")
        assert found == pytest.approx(expected.alpha_star(p, q, 2), abs=1e-11)


@ENGINES
def test_khisti_accepts_at_least_the_overlap_with_the_winners_law(engine):
    for p, q in exact_pairs(12):
        for k in (2, 3):
            _, law = khisti.tournament(p, q, k)
            found = one_level(engine, "khisti", p, q, k, "iid")
            assert found >= np.minimum(p, law).sum() - 1e-11


# ------------------------------------------------------------------ the program of khisti


def test_the_split_of_pairs_is_an_optimum_of_the_linear_program():
    rng = np.random.default_rng(0)
    for _ in range(60):
        size = int(rng.integers(2, 6))
        pairs = list(combinations(range(size), 2))
        mass = {pair: float(rng.integers(0, 5)) / 7 for pair in pairs}
        wanted = [float(rng.integers(0, 6)) / 7 for _ in range(size)]
        split = khisti.best_split(wanted, mass)
        received = np.zeros(size)
        for (i, j), m in mass.items():
            assert -1e-12 <= split[i, j] <= m + 1e-12
            received += np.eye(size)[i] * split[i, j] + np.eye(size)[j] * (m - split[i, j])
        optimum = served_at_most(wanted, mass)
        assert np.minimum(wanted, received).sum() == pytest.approx(optimum, abs=1e-9)


def served_at_most(wanted, mass):
    """Max sum_t f_t with f_t <= wanted_t and f_t <= what t receives."""
    pairs, size = list(mass), len(wanted)
    receives = np.zeros((size, len(pairs)))
    constant = np.zeros(size)
    for column, (i, j) in enumerate(pairs):
        receives[i, column], receives[j, column] = 1.0, -1.0
        constant[j] += mass[i, j]
    found = linprog(
        np.concatenate([np.zeros(len(pairs)), -np.ones(size)]),
        A_ub=np.hstack([-receives, np.eye(size)]),
        b_ub=constant,
        bounds=[(0, mass[pair]) for pair in pairs] + [(0, w) for w in wanted],
    )
    return -found.fun


def test_the_split_favours_the_earlier_token_where_it_costs_nothing():
    mass = {(0, 1): 0.5, (0, 2): 0.25, (1, 2): 0.25}
    assert (
        khisti.best_split([1.0, 1.0, 1.0], mass) == mass
    )  # everybody is short: all to the earlier
    split = khisti.best_split([0.5, 0.5, 0.0], mass)
    assert split == {(0, 1): 0.25, (0, 2): 0.25, (1, 2): 0.25}


@pytest.mark.parametrize("num_draws", [2, 3, 4])
def test_the_law_of_the_winner_is_a_law(num_draws):
    for p, q in row_pairs(40):
        _, law = khisti.tournament(p, q, num_draws)
        assert law.sum() == pytest.approx(1, abs=1e-12) and np.all(law >= 0)
        assert np.all(law[q == 0] == 0)


# ------------------------------------------------------------------ who accepts more


def reaching(depth):
    return lambda tree, found: np.asarray(found.node_probability)[tree.depth == depth].sum()


@pytest.mark.parametrize("pair", PAIRS)
@ENGINES
def test_block_accepts_at_least_as_long_a_prefix_as_token_level(engine, pair):
    target, draft = pair_of(pair)
    trees = list(sampled_trees(draft, (1, 1, 1), "iid"))
    for depth in (1, 2, 3):
        block, token_level = (
            average(engine, name, trees, target, reaching(depth))
            for name in ("block", "token_level")
        )
        assert block >= token_level - 1e-12, depth


def test_block_accepts_more_than_token_level():
    target, draft = pair_of("draft is near")
    trees = list(sampled_trees(draft, (1, 1, 1), "iid"))
    block, token_level = (
        average(by_oracle, name, trees, target) for name in ("block", "token_level")
    )
    assert block > token_level + 1e-4


@pytest.mark.parametrize("pair", PAIRS)
@ENGINES
def test_traversal_accepts_at_least_as_much_as_recursive_rejection(engine, pair):
    target, draft = pair_of(pair)
    for label, law in {**small_laws("traversal")}.items():
        trees = list(law(draft))
        traversal, rejection = (
            average(engine, name, trees, target) for name in ("traversal", "recursive_rejection")
        )
        assert traversal >= rejection - 1e-12, label


@pytest.mark.parametrize("seed", range(4))
def test_traversal_accepts_more_on_deeper_trees(seed):
    target, draft = random_laws(seed, 3), random_laws(seed + 70, 3)
    for label, law in deep_laws("traversal").items():
        trees = list(law(draft))
        traversal, rejection = (
            average(by_oracle, name, trees, target) for name in ("traversal", "recursive_rejection")
        )
        assert traversal >= rejection - 1e-12, label


def test_draws_without_replacement_are_worth_more():
    """verification.md, 3.4: per level 0.81 against 0.79 with two draws, random rows of five."""
    rng = np.random.default_rng(3)
    found = {"iid": 0.0, "without_replacement": 0.0}
    for _ in range(30):
        p, q = (random_law(rng, 5) for _ in range(2))
        for mode in found:
            found[mode] += one_level(by_oracle, "recursive_rejection", p, q, 2, mode) / 30
    assert found["without_replacement"] > found["iid"]


@pytest.mark.parametrize("proposal", DRAWN)
@only(by_coins)
@only(takes)
@only(takes_trees)
def test_more_draws_are_not_worse_on_one_level(verifier_name, proposal):
    for p, q in exact_pairs(4, seed=5):
        found = [one_level(by_core, verifier_name, p, q, k, proposal) for k in (1, 2, 3)]
        assert found[0] <= found[1] + 1e-9 and found[1] <= found[2] + 1e-9
