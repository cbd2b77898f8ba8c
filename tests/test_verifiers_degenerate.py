# SPDX-License-Identifier: Apache-2.0
"""Verifiers at the edges: coins on a threshold, no mass, no support, repeats (spec, section 9).

Each case states its outcome; ``verdict_of`` runs core and oracle and compares them.
"""

import numpy as np
import pytest
from support import chain_tree, only
from verifier_cases import (
    DRAWN,
    HIGH,
    LOSSLESS,
    LOW,
    by_coins,
    coins_for,
    modes,
    takes,
    takes_trees,
    verdict_of,
    wide_tree,
)

import treespec
from treespec import reference, testing
from treespec.reference.sampling import inverse_cdf
from treespec.reference.tree import from_arrays
from treespec.reference.verifiers import khisti, spectr, traversal
from treespec.testing import core_tree, random_laws

# At one level Traversal is recursive rejection.
SEQUENTIAL = ("recursive_rejection", "traversal")

# ------------------------------------------------------------------ 9.1, 9.3: the accept test


@pytest.mark.parametrize("proposal", DRAWN)
@only(by_coins)
@only(takes)
def test_the_accept_test_is_strict(verifier_name, proposal):
    tree = wide_tree(proposal, [1], [0.5, 0.5, 0])
    # p/q = 1/2: a coin of exactly 1/2 rejects, just below it accepts.
    law = [0.5, 0.25, 0.25]
    assert verdict_of(tree, law, [0.5], LOW, verifier_name) == ([], 2)
    assert verdict_of(tree, law, [0.5 - 2.0**-53], LOW, verifier_name) == ([1], 0)


@only(by_coins)
def test_a_token_of_zero_target_mass_is_rejected_by_every_coin(verifier_name):
    tree = wide_tree(modes(verifier_name)[0], [2], [0.25, 0.25, 0.5])
    for coin in (LOW, 0.5, HIGH):
        assert verdict_of(tree, [0.5, 0.5, 0], [coin], LOW, verifier_name) == ([], 0)


@only(by_coins)
def test_a_ratio_of_one_or_more_is_accepted_by_every_coin(verifier_name):
    tree = wide_tree(modes(verifier_name)[0], [1], [0.5, 0.25, 0.25])
    for coin in (LOW, HIGH):
        assert verdict_of(tree, [0.5, 0.25, 0.25], [coin], LOW, verifier_name) == ([1], 0)
        assert verdict_of(tree, [0.25, 0.5, 0.25], [coin], LOW, verifier_name) == ([1], 0)


@only(by_coins)
def test_equal_rows_of_any_dtype_accept_by_every_coin(verifier_name, rng):
    # 1/3 and 1/7 are no float32: the target's row and the law must be normalised alike.
    for _ in range(100):
        law = rng.dirichlet(np.ones(7)).astype(np.float32)
        token = int(rng.choice(7, p=law.astype(np.float64) / law.astype(np.float64).sum()))
        tree = wide_tree(modes(verifier_name)[0], [token], law)
        rows = np.tile(law, (2, 1))
        coins = coins_for(verifier_name, [[1 - 2.0**-40], []], [0.0, 0.0])
        verdict = treespec.verify(core_tree(tree), rows, verifier=verifier_name, coins=coins)
        assert verdict.num_accepted == 1


# ------------------------------------------------------------------ 9.2: a token of no draft mass


@pytest.mark.parametrize("proposal", DRAWN)
@only(by_coins)
@only(takes)
def test_a_token_that_the_law_cannot_have_drawn_is_not_tested(verifier_name, proposal):
    # Usually a dtype or vocabulary mismatch. Refused, or skipped without an update: then the token
    # is drawn from the target, 1 by a sample coin of 3/4 (a top-down walk may find it in the tree).
    tree = wide_tree(proposal, [1], [1.0, 0.0])
    rows = np.full((2, 2), 0.5)
    coins = coins_for(verifier_name, [[LOW], []], [0.75, 0.75])
    nodes, token = reference.verifier(verifier_name)(tree, rows, None, coins=coins)
    assert token == 1
    try:
        verdict = treespec.verify(core_tree(tree), rows, verifier=verifier_name, coins=coins)
    except ValueError as error:
        assert "draft_probs" in str(error)
    else:
        assert (list(verdict.accepted_nodes), verdict.next_token) == (nodes, token)


@only(by_coins)
def test_a_missing_id_of_a_narrow_draft_law_has_probability_zero(verifier_name):
    for seed, mode in enumerate(modes(verifier_name) * 10):
        narrow = np.array([0.25, 0.5, 0.25], np.float32)
        tree = wide_tree(mode, [1], narrow)
        tree.draft_probs = None
        rows = np.tile(np.array([0.25, 0.125, 0.125, 0.5]), (2, 1))
        law = np.stack([narrow, np.zeros(3, np.float32)])
        padded = np.pad(law, ((0, 0), (0, 1)))
        one, two = (
            treespec.verify(core_tree(tree), rows, given, verifier=verifier_name, seed=seed)
            for given in (law, padded)
        )
        assert list(one.tokens) == list(two.tokens)


# ------------------------------------------------------------------ 9.4, 9.5: nothing is left


@only(by_coins)
@only(takes_trees)
def test_equal_rows_leave_nothing_to_a_second_draw(verifier_name):
    """P = Q: the first draw is certain, and no zero residual is ever sampled."""
    law = [0.375, 0.5, 0.125]
    for mode in modes(verifier_name):
        tokens = [1, 0]  # for top_plus_one: the likeliest, and a draw from (.75, 0, .25)
        tree = wide_tree(mode, tokens, law)
        nodes, _ = verdict_of(tree, law, [HIGH, HIGH], HIGH, verifier_name)
        if mode != "top_plus_one" and verifier_name not in ("khisti", "spectr"):
            assert nodes == [1]


def test_a_node_without_acceptance_is_dead_and_so_is_all_below():
    # p(1) = 0 after the root: node 1 has alpha 0, its child is never tested, whatever its coins.
    tree = from_arrays([0, 1, 0], [-1, 0, 1], proposal="iid", draws=[[1], [2], []])
    laws = np.array([[0.5, 0.5], [0.5, 0.5], [0, 0]])
    rows = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
    coins = ([[LOW], [LOW], []], [LOW, LOW, LOW])
    for name in ("block", "traversal"):
        verdict = treespec.verify(core_tree(tree), rows, laws, verifier=name, coins=coins)
        assert list(verdict.tokens) == [0] and verdict.num_accepted == 0


def test_the_root_keeps_acceptance_one_after_every_rejection():
    tree = wide_tree("iid", [1, 1, 1], [0.25, 0.5, 0.25])
    for name in SEQUENTIAL:
        nodes, token = verdict_of(tree, [0.6, 0.0, 0.4], [LOW, LOW, LOW], HIGH, name)
        assert nodes == [] and token in (0, 2)


def test_rejection_at_the_root_still_emits_one_token():
    tree = wide_tree("iid", [0], [1.0, 0.0])
    for name in ("recursive_rejection", "traversal", "spectr", "khisti", "naive_tree", "block"):
        assert verdict_of(tree, [0.0, 1.0], [LOW], LOW, name) == ([], 1)


# ------------------------------------------------------------------ repeats and exhausted drafts


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_a_repeated_draw_is_rejected_but_still_updates_the_residual(name):
    # SpecInfer's rule: after a rejection P(x) = 0 for ever, and (P - Q)+ is applied once more.
    tree = wide_tree("iid", [1, 1], [0.25, 0.5, 0.25])
    law = [0.6, 0.0, 0.4]
    # After one update: (.35, 0, .15)/.5 = (.7, 0, .3); after two: (.45, 0, .05)/.5 = (.9, 0, .1).
    assert verdict_of(tree, law, [LOW, LOW], 0.89, name) == ([], 0)
    assert verdict_of(tree, law, [LOW, LOW], 0.91, name) == ([], 2)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_a_repeat_without_replacement_is_skipped_without_an_update(name):
    law = np.array([[0.25, 0.5, 0.25], [0, 0, 0]], np.float32)
    token, draws = [0, 1], [[1, 1], []]
    # Such a tree is unsound; the oracle states the rule for draws that could not have happened.
    tree = from_arrays(token, [-1, 0], proposal="without_replacement", draws=draws, draft_probs=law)
    rows = np.tile([0.6, 0.0, 0.4], (2, 1))
    for sample, expected in ((0.69, 0), (0.71, 2)):
        coins = ([[LOW, LOW], []], [sample, sample])
        assert reference.verifier(name)(tree, rows, None, coins=coins) == ([], expected)


def test_a_repeated_draw_has_a_coin_of_its_own_in_spectr():
    tree = wide_tree("iid", [1, 1], [0.25, 0.5, 0.25])
    law = [0.5, 0.25, 0.25]
    scale, _ = spectr.k_seq(np.array(law), np.array([0.25, 0.5, 0.25]), 2)
    chance = 0.5 / scale
    for first, second in ((chance - 1e-9, HIGH), (HIGH, chance - 1e-9)):
        assert verdict_of(tree, law, [first, second], LOW, "spectr") == ([1], 0)
    assert verdict_of(tree, law, [chance + 1e-9, chance + 1e-9], LOW, "spectr")[0] == []


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_the_draft_law_is_renormalised_after_each_rejection(name):
    tree = wide_tree("without_replacement", [0, 1], [0.5, 0.25, 0.25])
    law = [0.0, 0.375, 0.625]
    # Token 0 is rejected: P = (0, .125, .375) / .5 = (0, .25, .75), Q = (0, .5, .5).
    assert verdict_of(tree, law, [LOW, 0.5 - 2.0**-50], LOW, name)[0] == [2]
    assert verdict_of(tree, law, [LOW, 0.5], LOW, name) == ([], 2)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_an_exhausted_draft_leaves_the_rest_of_the_target(name):
    tree = wide_tree("without_replacement", [1, 0], [0.5, 0.5, 0.0, 0.0])
    law = [0.0, 0.0, 0.5, 0.5]
    assert verdict_of(tree, law, [LOW, LOW], 0.49, name) == ([], 2)
    assert verdict_of(tree, law, [LOW, LOW], 0.51, name) == ([], 3)


# ------------------------------------------------------------------ 9.10: the last token


@only(by_coins)
def test_the_last_token_of_positive_weight_is_drawn_by_the_largest_coin(verifier_name):
    tree = wide_tree(modes(verifier_name)[0], [1], [0.25, 0.75, 0.0, 0.0])
    law = [0.7, 0.0, 0.3, 0.0]
    assert verdict_of(tree, law, [LOW], HIGH, verifier_name) == ([], 2)
    assert verdict_of(tree, law, [LOW], LOW, verifier_name) == ([], 0)


@only(by_coins)
def test_a_full_path_ends_with_a_bonus_token_of_the_target(verifier_name):
    laws = random_laws(2, 4)
    mode = modes(verifier_name)[0]
    tree = chain_tree([1, 2, 3], proposal=mode, draws=[[1], [2], [3], []])
    rows = testing.rows_of(tree, laws)
    coins = coins_for(verifier_name, [[LOW], [LOW], [LOW], []], [0.0, 0.0, 0.0, 0.6])
    verdict = treespec.verify(core_tree(tree), rows, rows, verifier=verifier_name, coins=coins)
    assert list(verdict.accepted_nodes) == [1, 2, 3]
    assert verdict.next_token == inverse_cdf(rows[3], 0.6)


# ------------------------------------------------------------------ a correction inside the tree


@pytest.mark.parametrize("name", ["naive_tree", "spectr", "khisti"])
def test_a_correction_that_a_sibling_carries_goes_on_there(name):
    assert "iid" in LOSSLESS[name]
    # Token 1 has no target mass; whatever is drawn instead, 0 is the smallest and in the tree.
    tree = wide_tree("iid", [1, 0], [0.25, 0.5, 0.25])
    nodes, token = verdict_of(tree, [0.75, 0.0, 0.25], [HIGH, HIGH], LOW, name)
    assert nodes == [2] and token == 0


def test_a_listed_token_of_top_plus_one_keeps_its_target_mass():
    tree = wide_tree("top_plus_one", [0, 2], [0.5, 0.25, 0.25])
    law = [0.5, 0.375, 0.125]
    # q' = (0, .5, .5): token 2 is accepted with .25; the residual is (.5, 0, 0) / .5 = token 0.
    name = "top_plus_one"
    assert verdict_of(tree, law, [HIGH, 0.25 - 2.0**-50], LOW, name)[0] == [2]
    assert verdict_of(tree, law, [HIGH, 0.25], LOW, name) == ([1], 0)
    assert verdict_of(tree, law, [HIGH, 0.25], HIGH, name)[0] == [1]


def test_the_only_token_left_is_the_draw_of_top_plus_one():
    # q' is sure of token 1: accepted with p(1), and what is rejected goes to the rest of p.
    tree = wide_tree("top_plus_one", [0, 1], [0.75, 0.25, 0.0])
    law = [0.25, 0.5, 0.25]
    name = "top_plus_one"
    assert verdict_of(tree, law, [LOW, 0.5 - 2.0**-50], LOW, name)[0] == [2]
    assert verdict_of(tree, law, [LOW, 0.5], LOW, name) == ([1], 0)
    assert verdict_of(tree, law, [LOW, 0.5], HIGH, name) == ([], 2)


# ------------------------------------------------------------------ the tournament of khisti


def test_a_select_coin_below_the_share_keeps_the_winner_of_the_earlier_draws():
    target, draft = np.array([0.4, 0.4, 0.2]), np.array([0.375, 0.375, 0.25])
    (merge,), law = khisti.tournament(target, draft, 2)
    np.testing.assert_allclose(law, target, atol=1e-12)  # p(S) >= q(S)^2: two draws reach 1
    tree = wide_tree("iid", [0, 1], draft)
    share = merge.keep(0, 1)
    assert 0.1 < share < 0.9
    coins = [LOW, LOW]
    assert verdict_of(tree, target, coins, LOW, "khisti", [HIGH, share - 1e-9])[0] == [1]
    assert verdict_of(tree, target, coins, LOW, "khisti", [LOW, share + 1e-9])[0] == [2]
    back = wide_tree("iid", [1, 0], draft)
    assert verdict_of(back, target, coins, LOW, "khisti", [HIGH, 1 - share - 1e-9])[0] == [1]


def test_equal_draws_meet_without_a_coin():
    target, draft = np.array([0.5, 0.375, 0.125]), np.array([0.25, 0.25, 0.5])
    tree = wide_tree("iid", [0, 0], draft)
    for coin in (LOW, HIGH):
        assert verdict_of(tree, target, [LOW, LOW], LOW, "khisti", [coin, coin])[0] == [1]


def test_tokens_beyond_the_program_lose_to_earlier_ones():
    """More tokens than s = 5: outside the program the larger p - q^2 wins, whatever the coin."""
    draft = np.full(8, 1 / 8)
    target = np.array([20, 15, 10, 8, 5, 3, 2, 1]) / 64
    (merge,), _ = khisti.tournament(target, draft, 2)
    assert [merge.keep(i, j) for i, j in ((0, 5), (4, 7), (5, 6), (7, 6), (6, 0))] == [
        1,
        1,
        1,
        0,
        0,
    ]
    tree = wide_tree("iid", [7, 5], draft)
    for coin in (LOW, HIGH):
        assert verdict_of(tree, target, [LOW, LOW], LOW, "khisti", [coin, coin])[0] == [2]


def test_khisti_needs_three_arrays_of_coins():
    tree = wide_tree("iid", [0, 1], [0.5, 0.5])
    coins = ([[LOW, LOW], [], []], [LOW] * 3)
    with pytest.raises(ValueError, match="select"):
        treespec.verify(core_tree(tree), np.full((3, 2), 0.5), verifier="khisti", coins=coins)


# ------------------------------------------------------------------ traversal, worked


def test_traversal_tests_what_the_worked_example_says():
    """verification.md, section 5: every row p = (.3, .4, .3), q = (.6, .3, .1)."""
    draws = [[1, 2], [3, 4], [5], [], [], []]
    tree = from_arrays(
        [0, 0, 2, 1, 2, 0], [-1, 0, 0, 1, 1, 2], proposal="without_replacement", draws=draws
    )
    rows, laws = np.tile([0.3, 0.4, 0.3], (6, 1)), np.tile([0.6, 0.3, 0.1], (6, 1))
    tests = []

    def fail(node, acceptance):
        tests.append((node, acceptance))
        return False

    node, _ = traversal.visit(tree, rows, laws, fail)
    assert node == 0
    expected = [(3, 2 / 3), (4, 7 / 11), (1, 0.0), (5, 0.5), (2, 1.0)]
    assert [n for n, _ in tests] == [n for n, _ in expected]
    assert [a for _, a in tests] == pytest.approx([a for _, a in expected], abs=1e-12)


# ------------------------------------------------------------------ typical acceptance, worked


def test_typical_acceptance_takes_the_longest_acceptable_path():
    # Entropy of (.5, .25, .25): 1.04; threshold min(.09, .3 exp(-1.04)) = .09.
    tree = from_arrays(
        [0, 0, 1, 2], [-1, 0, 0, 2], proposal="deterministic", draws=[[1, 2], [], [3], []]
    )
    rows = np.tile([0.5, 0.25, 0.25], (4, 1))
    verify = reference.verifier("typical")
    coins = ([[], [], [], []], [HIGH] * 4)
    assert verify(tree, rows, coins=coins) == ([2, 3], 2)
    rows[2] = [0.5, 0.45, 0.05]  # the path's second token is not likely enough any more
    assert verify(tree, rows, coins=coins) == ([1], 2)  # of two of length one: the likelier
    rows[0] = [0.25, 0.25, 0.5]
    assert verify(tree, rows, coins=coins) == ([1], 2)  # equal: the lower id


def test_a_flat_row_lowers_the_threshold_of_typical_acceptance():
    from treespec.reference.verifiers import typical

    assert typical.threshold(np.array([1.0, 0.0])) == 0.09
    flat = np.full(100, 0.01)
    assert typical.threshold(flat) == pytest.approx(0.3 * 0.01)


# ------------------------------------------------------------------ found by a review


@only(lambda verifier_name: verifier_name not in ("greedy", "typical", "top_plus_one", "khisti"))
def test_a_grammar_may_have_no_row_behind_a_forbidden_token(verifier_name):
    # Behind what cannot be emitted there is nothing to allow; nobody may ask for such a row.
    law = np.array([[0.5, 0.5, 0.0]] * 4, np.float32)
    tree = treespec.TokenTree(
        [0, 0, 1, 1],
        parent=[-1, 0, 1, 2],
        proposal="iid",
        draws=[[1], [2], [3], []],
        draft_probs=law,
    )
    only_two = np.array([[0b100], [0], [0], [0]], np.uint32)
    for seed in range(20):
        verdict = treespec.verify_logits(
            tree,
            np.zeros((4, 3), np.float32),
            verifier=verifier_name,
            allowed_tokens=only_two,
            seed=seed,
        )
        assert (verdict.num_accepted, verdict.next_token) == (0, 2)


@pytest.mark.parametrize("verifier", ["traversal", "block"])
def test_a_chain_may_be_deeper_than_any_stack(verifier):
    length = 300_000
    law = np.broadcast_to(np.array([1.0], np.float32), (length + 1, 1))
    tree = treespec.TokenTree(
        np.zeros(length + 1, np.int32),
        parent=np.arange(-1, length, dtype=np.int32),
        proposal="iid",
        draws=[*([i + 1] for i in range(length)), []],
        draft_probs=law,
    )
    verdict = treespec.verify(tree, np.ones((length + 1, 1)), verifier=verifier)
    assert verdict.num_accepted == length


@pytest.mark.parametrize("row", [[np.nan, 1.0], [5.0, 5.0], [-5.0, 6.0], [0.5, 0.4]])
def test_alpha_star_takes_laws_only(row):
    for pair in ((row, [0.5, 0.5]), ([0.5, 0.5], row)):
        with pytest.raises(ValueError, match="must be a law"):
            treespec.alpha_star(*pair, 2)
