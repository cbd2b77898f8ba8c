# SPDX-License-Identifier: Apache-2.0
"""The exact checker itself: it must find every bias that the literature warns of.

Total variations on three-token rows. Where verification.md (sections 0.2, 3.3, 3.4, 4.2, 5, 8)
names the largest one of its models, ours must come up to half of it.
"""

from dataclasses import replace
from math import fsum

import numpy as np
import pytest
from support import chain_tree
from verifier_cases import (
    EXACT,
    bias_of,
    decide_by,
    decide_by_core,
    oracle,
    rotated,
)

from treespec import testing
from treespec.reference.coins import Coins
from treespec.reference.rng import RoundKey
from treespec.reference.sampling import inverse_cdf, normalise
from treespec.reference.tree import check_tree, from_arrays
from treespec.reference.verifiers import spectr, traversal
from treespec.reference.walk import follow
from treespec.testing import (
    best_first_trees,
    delayed_trees,
    output_bias,
    pruned_by_value,
    random_laws,
    sampled_trees,
    sorted_siblings,
    top_tokens_as_sampled,
)

WOR, IID = "without_replacement", "iid"
CONTROL_TARGET, CONTROL_DRAFT = rotated([10, 30, 24]), rotated([34, 10, 20])


def dense(seed):
    """(target, draft) laws of three tokens; the seeds below are bad ones of a dozen."""
    return random_laws(seed, 3), random_laws(seed + 100, 3)


def peaked(seed):
    kinds = ("peaked", "dense")
    return random_laws(seed, 3, ("dense", "sparse")), random_laws(seed + 100, 3, kinds)


DENSE = dense(9)


def target_only_by_coins(tree, target_probs, draft_probs=None, *, coins, **key):
    """NSS with a sample coin per node: exact on every tree law, legal or not."""
    tosses = Coins(RoundKey(), coins)
    return follow(tree, lambda node: inverse_cdf(target_probs[node], tosses.sample(node)))


# ------------------------------------------------------------------ tree laws that are illegal


def labelled(trees, proposal):
    """The same trees, taken for draws of another mode."""
    for tree, probability in trees:
        yield replace(tree, proposal=proposal), probability


def siblings_sorted(draft):
    return sorted_siblings(sampled_trees(draft, (2,), WOR))


def siblings_pruned(draft):
    return pruned_by_value(sampled_trees(draft, (2,), IID), 1)


def subtree_pruned(draft):
    return pruned_by_value(sampled_trees(draft, (2, 1), WOR), 2)


def top_tokens(proposal):
    return lambda draft: top_tokens_as_sampled(draft, (2,), proposal)


def relabelled(drawn, taken_for):
    return lambda draft: labelled(sampled_trees(draft, (2,), drawn), taken_for)


def adaptive_lists(draft):
    return best_first_trees(draft, 3, IID)


AS_IID = "without replacement as iid"
# (what is wrong, trees, verifier, rows with much bias, total variation of the specification's page)
ILLEGAL = [
    ("siblings sorted", siblings_sorted, "naive_tree", DENSE, 0.44),
    ("siblings sorted", siblings_sorted, "recursive_rejection", DENSE, 0.44),
    ("siblings sorted", siblings_sorted, "traversal", DENSE, 0.44),
    ("pruned by value", siblings_pruned, "naive_tree", DENSE, 0.22),
    ("pruned by value", siblings_pruned, "recursive_rejection", DENSE, 0.22),
    ("pruned by value", subtree_pruned, "traversal", peaked(7), 0.22),
    ("top tokens as sampled", top_tokens(WOR), "naive_tree", DENSE, 0.75),
    ("top tokens as sampled", top_tokens(WOR), "recursive_rejection", DENSE, 0.75),
    ("top tokens as sampled", top_tokens(WOR), "traversal", DENSE, 0.75),
    ("top tokens as sampled", top_tokens(IID), "spectr", peaked(4), 0.67),
    ("top tokens as sampled", top_tokens(IID), "khisti", peaked(4), 0.74),
    ("top-plus-one as iid", relabelled("top_plus_one", IID), "naive_tree", DENSE, 0.75),
    ("top-plus-one as iid", relabelled("top_plus_one", IID), "khisti", peaked(0), 0.52),
    (AS_IID, relabelled(WOR, IID), "recursive_rejection", peaked(11), 0.03),
    (AS_IID, relabelled(WOR, IID), "traversal", peaked(11), 0.03),
    (AS_IID, relabelled(WOR, IID), "spectr", dense(0), 0.14),
    (AS_IID, relabelled(WOR, IID), "khisti", peaked(8), 0.43),
    ("a list as long as its draws say", adaptive_lists, "spectr", peaked(0), 0.035),
    ("a list as long as its draws say", adaptive_lists, "khisti", dense(7), 0.046),
]


@pytest.mark.parametrize(
    ("trees", "name", "laws", "page"),
    [case[1:] for case in ILLEGAL],
    ids=[f"{case[2]}-{case[0]}" for case in ILLEGAL],
)
def test_a_tree_law_that_biases_a_verifier_is_found(trees, name, laws, page):
    target, draft = laws
    assert bias_of(name, oracle(name), trees(draft), target) > page / 2
    # The trees are in order, it is their law that the verifier must not trust:
    assert bias_of("naive_tree", decide_by(target_only_by_coins), trees(draft), target) < EXACT


@pytest.mark.parametrize("name", ["recursive_rejection", "traversal"])
def test_the_core_is_as_biased_as_its_oracle_on_illegal_trees(name):
    target, draft = DENSE
    for trees in (siblings_sorted, siblings_pruned, top_tokens(WOR)):
        found, expected = (
            bias_of(name, decide, trees(draft), target)
            for decide in (decide_by_core(name), oracle(name))
        )
        assert found == pytest.approx(expected, abs=1e-10)
        assert found > 0.1


@pytest.mark.parametrize("proposal", [IID, WOR])
def test_dropping_a_sampled_node_by_its_probability_is_caught(proposal):
    trees = []
    for tree, probability in sampled_trees(CONTROL_DRAFT, (1,), proposal):
        if tree.draft_probs[0, tree.token[1]] < 0.2:
            tree = from_arrays([0], [-1], proposal=proposal, draws=[[]])
            tree.draft_probs = np.zeros((1, 3), np.float32)
        trees.append((tree, probability))
    decide = decide_by_core("recursive_rejection")
    assert output_bias(decide, trees, CONTROL_TARGET, 2).total_variation > 0.01


def test_cutting_by_draw_index_is_harmless():
    """Whatever was drawn, the second draw of every node goes: a legal law again."""
    trees = []
    for tree, probability in sampled_trees(CONTROL_DRAFT, (2,), WOR):
        first = chain_tree(
            tree.token[1:2], proposal=WOR, draws=[[1], []], draft_probs=tree.draft_probs[:2]
        )
        trees.append((first, probability))
    for name in ("recursive_rejection", "traversal"):
        assert bias_of(name, oracle(name), trees, CONTROL_TARGET) < EXACT


def test_a_law_other_than_the_recorded_one_is_caught():
    trees = []
    for tree, probability in sampled_trees(CONTROL_DRAFT, (1,), IID):
        sharper = tree.draft_probs[:1].astype(np.float64) ** 1.1
        tree.draft_probs[0] = sharper / sharper.sum()
        trees.append((tree, probability))
    found = output_bias(decide_by_core("token_level"), trees, CONTROL_TARGET, 2)
    assert found.total_variation > 1e-3


# ------------------------------------------------------------------ published mistakes, top down


def mutant(change):
    """recursive_rejection with one published mistake; the exact tests must catch each."""

    def verify(tree, target_probs, draft_probs=None, *, coins=None, **key):
        accept, sample = coins
        accepted, node = [], 0
        while True:
            target = original = np.asarray(target_probs[node])
            draft = tree.draft_probs[node].astype(np.float64)
            draws = list(enumerate(tree.draws[node]))
            if change == "draws are sorted by token":
                draws.sort(key=lambda pair: tree.token[pair[1]])
            repeated = [tree.draws[node].index(c) < j for j, c in draws]
            if change == "repeats are dropped":
                draws = [pair for pair, again in zip(draws, repeated, strict=True) if not again]
            if change == "repeats come last":
                draws = [pair for _, pair in sorted(zip(repeated, draws, strict=True))]
            chosen = -1
            for j, child in draws:
                token = int(tree.token[child])
                if draft[token] == 0:
                    continue
                if accept[node][j] * draft[token] < target[token]:
                    chosen = child
                    break
                left = np.maximum(target - draft, 0.0)
                if change == "the residual comes from the target":
                    left = np.maximum(original - draft, 0.0)
                if change == "only the rejected token is removed":
                    left = target.copy()
                    left[token] = 0.0
                target = left / left.sum()
                if tree.proposal == IID or change == "the draft stays whole":
                    continue
                draft[token] = 0.0
                if draft.sum() > 0 and change != "the draft is not renormalised":
                    draft /= draft.sum()
            if chosen < 0:
                if change == "the correction comes from the target":
                    target = original
                return accepted, inverse_cdf(target, sample[node])
            accepted.append(chosen)
            node = chosen

    return verify


# With the page's total variation; 0.002 where it names none.
MUTANTS = [
    ("only the rejected token is removed", WOR, (2,), 0.09),
    ("only the rejected token is removed", IID, (2,), 0.09),
    ("the correction comes from the target", WOR, (2,), 0.10),
    ("the correction comes from the target", IID, (1,), 0.10),
    ("the residual comes from the target", WOR, (2,), 0.002),
    ("the residual comes from the target", IID, (3,), 0.002),
    ("the draft stays whole", WOR, (2,), 0.002),
    ("the draft is not renormalised", WOR, (2,), 0.026),
    ("draws are sorted by token", WOR, (2,), 0.002),
    ("draws are sorted by token", IID, (2,), 0.002),
    ("repeats are dropped", IID, (3,), 0.002),
    ("repeats come last", IID, (3,), 0.012),
]


@pytest.mark.parametrize(("change", "proposal", "expansion", "page"), MUTANTS)
def test_a_known_mistake_is_caught(change, proposal, expansion, page):
    trees = list(sampled_trees(CONTROL_DRAFT, expansion, proposal))
    sound = output_bias(decide_by(mutant("")), trees, CONTROL_TARGET)
    wrong = output_bias(decide_by(mutant(change)), trees, CONTROL_TARGET)
    assert sound.total_variation < EXACT
    assert wrong.total_variation > page / 2


# ------------------------------------------------------------------ ... of K-SEQ and of traversal


def wrong_scale(monkeypatch):
    monkeypatch.setattr(spectr, "smallest_scale", lambda target, draft, num_draws: 1.0)


def wrong_update(mass_of, acceptance_of):
    def after_rejection(target, draft, alpha):
        left = np.maximum(mass_of(target, alpha) - draft, 0.0)
        mass = fsum(left)
        return (normalise(left), acceptance_of(mass, alpha)) if mass > 0 else (target, 0.0)

    return lambda monkeypatch: monkeypatch.setattr(traversal, "after_rejection", after_rejection)


def forget_the_mass(monkeypatch):
    def without(draft, token):
        rest = draft.copy()
        rest[token] = 0.0
        return rest if np.any(rest > 0) else None

    monkeypatch.setattr(traversal, "without", without)


def plain_bonus(monkeypatch):
    real = traversal.visit

    def visit(tree, target_probs, laws, test):
        node, _ = real(tree, target_probs, laws, test)
        return node, normalise(target_probs[node])

    monkeypatch.setattr(traversal, "visit", visit)


def of_target(target, alpha):
    return target


def of_share(target, alpha):
    return alpha * target


def bare_mass(mass, alpha):
    return mass


def share_of(mass, alpha):
    return mass / (mass + (1.0 - alpha))


PATCHES = [
    ("K-SEQ with rho = 1", wrong_scale, "spectr", (2,), IID, dense(0), 0.13),
    ("the residual of P", wrong_update(of_target, share_of), "traversal", (1, 1), IID,
     peaked(11), 0.34),
    ("alpha is S", wrong_update(of_share, bare_mass), "traversal", (1, 1), IID,
     dense(9), 0.06),
    ("the draft is not renormalised", forget_the_mass, "traversal", (2,), WOR,
     dense(10), 0.03),
    ("the last token from p", plain_bonus, "traversal", (1,), IID, dense(5), 0.08),
]  # fmt: skip


@pytest.mark.parametrize(
    ("patch", "name", "expansion", "proposal", "laws", "page"),
    [case[1:] for case in PATCHES],
    ids=[case[0] for case in PATCHES],
)
def test_a_wrong_formula_is_caught(monkeypatch, patch, name, expansion, proposal, laws, page):
    target, draft = laws
    trees = list(sampled_trees(draft, expansion, proposal))
    assert bias_of(name, oracle(name), trees, target) < EXACT
    patch(monkeypatch)
    found = bias_of(name, oracle(name), trees, target)
    assert found > page / 2


def test_typical_acceptance_is_not_lossless():
    target, draft = rotated([44, 12, 8]), rotated([12, 44, 8])
    trees = list(sampled_trees(draft, (2,), "deterministic"))
    found = output_bias(oracle("typical"), trees, target)
    assert found.total_variation > 0.1


# ------------------------------------------------------------------ the checker's own contract


def test_a_bias_says_where_it_is_largest():
    trees = list(sampled_trees(CONTROL_DRAFT, (1,), IID))
    found = output_bias(
        decide_by(mutant("the correction comes from the target")), trees, CONTROL_TARGET
    )
    assert 0 < abs(found.emitted - found.expected) <= found.total_variation
    expected = testing.target_law(CONTROL_TARGET, 2)
    assert found.expected == expected[found.text]
    assert str(found.text) in str(found) and f"{found.total_variation:.3g}" in str(found)


def test_probing_notices_when_a_threshold_depends_on_a_later_coin():
    def decide(coins):
        first, second = coins[0][0]
        return ((1,), 0) if first < (0.25 if second < 0.5 else 0.75) else ((), 0)

    order = [("accept", 0, 1), ("accept", 0, 0)]
    law = testing.outcome_law(decide, [[1, 2]], order)
    assert law == {((1,), 0): pytest.approx(0.5), ((), 0): pytest.approx(0.5)}
    with pytest.raises(RuntimeError, match="order"):
        testing.outcome_law(decide, [[1, 2]], order[::-1], checks=50)


def test_probing_notices_a_coin_that_the_order_does_not_name():
    def decide(coins):
        return ((1,), 0) if coins[0][0][0] < 0.5 else ((), 0)

    with pytest.raises(RuntimeError, match="order"):
        testing.outcome_law(decide, [[1], []], [("sample", 0, 0)], checks=50)


def test_select_coins_are_given_when_the_order_names_them():
    def decide(coins):
        select = coins[2]
        return ((1,) if select[0][1] < 0.375 else (2,), 0)

    law = testing.outcome_law(decide, [[1, 2], [], []], [("select", 0, 1)])
    assert law == {((1,), 0): pytest.approx(0.375), ((2,), 0): pytest.approx(0.625)}


def test_trees_must_be_all_trees():
    trees = list(sampled_trees(CONTROL_DRAFT, (1,), IID))[1:]
    with pytest.raises(ValueError, match="sum to 1"):
        output_bias(oracle("token_level"), trees, CONTROL_TARGET)


def test_accepted_nodes_must_be_a_path():
    trees = sampled_trees(CONTROL_DRAFT, (1, 1), IID)
    with pytest.raises(ValueError, match="path"):
        output_bias(lambda tree, rows, coins: ((2,), 0), trees, CONTROL_TARGET)


# ------------------------------------------------------------------ the tree laws


def test_probabilities_of_trees_sum_to_one():
    laws = [
        *(sampled_trees(CONTROL_DRAFT, (2, 1), mode) for mode in (IID, WOR, "top_plus_one")),
        delayed_trees(CONTROL_DRAFT, 2, 1, 1),
        delayed_trees(CONTROL_DRAFT, 2, 0, 2),
        best_first_trees(CONTROL_DRAFT, 4),
        best_first_trees(CONTROL_DRAFT, 3, IID),
    ]
    for law in laws:
        drawn = list(law)
        assert sum(probability for _, probability in drawn) == pytest.approx(1, abs=1e-12)
        assert [check_tree(tree) for tree, _ in drawn] == [[]] * len(drawn)


def test_a_top_plus_one_law_lists_the_likeliest_and_draws_the_rest():
    law = np.array([16, 32, 4, 12]) / 64
    drawn = dict(testing.draw_outcomes(law, 3, "top_plus_one"))
    assert drawn == {(1, 0, 2): pytest.approx(0.25), (1, 0, 3): pytest.approx(0.75)}
    short = np.array([16, 48, 0, 0]) / 64
    assert dict(testing.draw_outcomes(short, 4, "top_plus_one")) == {(1, 0): 1.0}


def test_a_delayed_law_keeps_repeats_and_draws_once_per_path():
    law = np.array([48, 16]) / 64
    trees = {
        (tuple(t.token[1:].tolist()), tuple(map(tuple, t.draws))): p
        for t, p in delayed_trees(lambda path: law, 2, 0, 2)
    }
    both = ((0, 0), ((1, 1), (2, 2), ()))  # both paths are (0, 0)
    assert trees[both] == pytest.approx(0.75**4)
    assert sum(trees.values()) == pytest.approx(1)
    parted = ((0, 1, 0, 0), ((1, 2), (3,), (4,), (), ()))
    assert trees[parted] == pytest.approx(0.75 * 0.25 * 0.75 * 0.75)


def test_a_best_first_law_draws_where_the_value_is():
    law = np.array([40, 16, 8]) / 64
    shapes = {
        (tuple(t.parent.tolist()), tuple(t.token[1:].tolist())): p
        for t, p in best_first_trees(lambda path: law, 2)
    }
    # After a likely first token (0.625) its child comes next, after an unlikely one its sibling.
    assert shapes[(-1, 0, 1), (0, 0)] == pytest.approx(0.625**2)
    assert shapes[(-1, 0, 0), (1, 0)] == pytest.approx(0.25 * 0.625 / 0.75)


def test_illegal_laws_are_what_they_say():
    tree, _ = next(t for t in sampled_trees(CONTROL_DRAFT, (2,), WOR) if t[0].token[1] == 1)
    ((sorted_tree, _),) = sorted_siblings([(tree, 1.0)])
    assert tree.draws[0] == [1, 2] and sorted_tree.draws[0] == [2, 1]
    ((pruned, _),) = pruned_by_value([(tree, 1.0)], 1)
    assert pruned.num_nodes == 2 and pruned.token[1] == tree.token[2]
    ((top, _),) = top_tokens_as_sampled(CONTROL_DRAFT, (2,), IID)
    assert top.token[1:].tolist() == [0, 2] and top.proposal == IID
