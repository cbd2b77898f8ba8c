# SPDX-License-Identifier: Apache-2.0
"""Verifiers: lossless by exact enumeration, equal to the oracles, right in every degenerate case.

Exact tests walk over every tree a builder can draw and every outcome of the verifier's coins
(``treespec.testing``); what is emitted must have the target's law to rounding.
"""

import itertools
from functools import partial

import numpy as np
import pytest
from support import chain_tree, only

import treespec
from treespec import reference, testing
from treespec.reference.sampling import inverse_cdf, normalise, sample_at_position
from treespec.reference.tree import PROPOSALS, from_arrays
from treespec.testing import chi_square, core_tree, output_bias, random_laws, sampled_trees

EXACT = 1e-11
SAMPLED = ("iid", "without_replacement")
# What the design says is lossless; a verifier that is not listed fails the matrix test by name.
LOSSLESS = {
    "greedy": PROPOSALS,
    "target_only": PROPOSALS,
    "token_level": SAMPLED,
    "block": SAMPLED,
    "naive_tree": SAMPLED,
    "recursive_rejection": SAMPLED,
    "spectr": ("iid",),
    "khisti": ("iid",),
    "traversal": SAMPLED,
    "top_plus_one": ("top_plus_one",),
    "typical": (),
}
CHAIN_ONLY = ("token_level", "block")
# Their law is not a matter of coins, or not the target's.
NOT_BY_COINS = ("greedy", "target_only", "typical")

# (target, draft) at the root; deeper rows are rotations of the same pair. Multiples of 1/64.
PAIRS = {
    "draft equals target": ([32, 20, 12], [32, 20, 12]),
    "draft is near": ([32, 20, 12], [30, 22, 12]),
    "draft is far": ([2, 12, 50], [50, 12, 2]),
    "draft misses target mass": ([20, 24, 20], [40, 24, 0]),
    "draft offers tokens of zero target mass": ([40, 24, 0], [20, 24, 20]),
    "supports are disjoint": ([64, 0, 0], [0, 30, 34]),
    "target is one-hot": ([0, 64, 0], [20, 24, 20]),
    "draft is one-hot and exhausted": ([20, 24, 20], [0, 64, 0]),
    "both are one-hot and equal": ([0, 0, 64], [0, 0, 64]),
    "both are one-hot and differ": ([64, 0, 0], [0, 0, 64]),
    "four tokens": ([10, 30, 4, 20], [25, 5, 30, 4]),
    "four tokens with gaps": ([0, 30, 14, 20], [34, 0, 30, 0]),
    "one-token vocabulary": ([64], [64]),
}


def rotated(counts):
    base = np.array(counts, dtype=np.float64) / 64

    def law(path):
        return np.roll(base, sum(path) + len(path))

    return law


def decide_by_core(name):
    """A verifier of the core in the form ``testing.output_bias`` takes."""
    cache = {}

    def decide(tree, rows, coins):
        if cache.get("tree") is not tree:
            cache.update(tree=tree, core=core_tree(tree))
        verdict = treespec.verify(cache["core"], rows, verifier=name, coins=coins)
        return tuple(verdict.accepted_nodes.tolist()), verdict.next_token

    return decide


def decide_by(verify):
    return lambda tree, rows, coins: verify(tree, rows, None, coins=coins)


def coin_order(name):
    """An oracle may say in which order its verifier consults coins; the default is top down."""
    module = reference.verifier(name).__module__
    return getattr(__import__(module, fromlist=["_"]), "coin_order", testing.top_down_order)


def bias(name, proposal, expansion, target, draft):
    return output_bias(
        decide_by_core(name),
        sampled_trees(draft, expansion, proposal),
        target,
        len(expansion) + 1,
        order=coin_order(name),
    )


def by_coins(verifier_name):
    return verifier_name not in NOT_BY_COINS


def takes(verifier_name, proposal):
    return proposal in LOSSLESS[verifier_name]


def modes(name):
    return [mode for mode in SAMPLED if mode in LOSSLESS[name]]


# ------------------------------------------------------------------ lossless, by enumeration


@pytest.mark.parametrize("pair", PAIRS)
@only(by_coins)
def test_every_verifier_emits_exactly_the_targets_law(verifier_name, pair):
    target, draft = (rotated(side) for side in PAIRS[pair])
    shapes = [(1,), (1, 1)] if verifier_name in CHAIN_ONLY else [(1,), (2,), (3,), (1, 1)]
    for proposal, expansion in itertools.product(modes(verifier_name), shapes):
        found = bias(verifier_name, proposal, expansion, target, draft)
        assert found < EXACT, (proposal, expansion, found)


@pytest.mark.parametrize("seed", [1, 2])
@only(by_coins)
def test_every_verifier_is_exact_on_deeper_trees_of_unrelated_rows(verifier_name, seed):
    target = random_laws(seed, 3, ("dense", "sparse", "smooth"))
    draft = random_laws(seed + 50, 3, ("dense", "sparse", "peaked"))
    shapes = [(1, 1, 1)] if verifier_name in CHAIN_ONLY else [(1, 2), (2, 1)]
    cases = list(itertools.product(modes(verifier_name), shapes))
    if "without_replacement" in modes(verifier_name) and verifier_name not in CHAIN_ONLY:
        cases.append(("without_replacement", (2, 2)))
    for proposal, expansion in cases:
        found = bias(verifier_name, proposal, expansion, target, draft)
        assert found < EXACT, (proposal, expansion, found)


@pytest.mark.parametrize("proposal", SAMPLED)
@only(by_coins)
@only(takes)
def test_a_verifier_with_no_draft_left_samples_the_target(verifier_name, proposal):
    target = rotated([10, 30, 4, 20])
    trees = [(from_arrays([0], [-1], proposal=proposal, draws=[[]]), 1.0)]
    assert output_bias(decide_by_core(verifier_name), trees, target, 1) < EXACT


def test_a_nearly_certain_draft_is_renormalised_precisely():
    # Without the first token the rest has mass 1.4e-17: too small for a 2^60 sum of the raw row.
    draft = np.array([1.0, 1e-17, 3e-18, 1e-18], np.float32).astype(np.float64)
    target = np.array([8, 20, 20, 16]) / 64
    found = bias(
        "recursive_rejection", "without_replacement", (2,), lambda path: target, lambda path: draft
    )
    assert found < 1e-9


def test_a_nearly_certain_draft_is_exact_for_the_oracle():
    draft = np.array([1.0, 1e-17, 3e-18, 1e-18], np.float32).astype(np.float64)
    target = np.array([8, 20, 20, 16]) / 64
    trees = sampled_trees(lambda path: draft, (2,), "without_replacement")
    oracle = decide_by(reference.verifier("recursive_rejection"))
    assert output_bias(oracle, trees, lambda path: target, 2) < 1e-9


@pytest.mark.parametrize("name", ["token_level", "recursive_rejection"])
@pytest.mark.parametrize("proposal", SAMPLED)
def test_the_oracles_are_exact(name, proposal):
    expansion = (1, 1) if name in CHAIN_ONLY else (3,)
    for pair in ("draft is far", "draft misses target mass", "draft equals target"):
        target, draft = (rotated(side) for side in PAIRS[pair])
        trees = sampled_trees(draft, expansion, proposal)
        decide = decide_by(reference.verifier(name))
        assert output_bias(decide, trees, target, len(expansion) + 1) < EXACT


@pytest.mark.parametrize("mode", ("deterministic", *SAMPLED))
def test_target_only_emits_the_targets_law_on_any_tree(mode):
    target = random_laws(3, 4, ("dense", "sparse"))
    rng = np.random.default_rng(4)
    tree = testing.random_tree(rng, num_nodes=9, vocab_size=4, proposal=mode, max_children=3)
    core, rows = core_tree(tree), testing.rows_of(tree, target)
    length = int(tree.depth.max()) + 1
    expected = testing.target_law(target, length)
    counts = dict.fromkeys(expected, 0)
    for position in range(12_000):
        verdict = treespec.verify(
            core, rows, verifier="target_only", seed=2, position=position * 16
        )
        text = list(verdict.tokens)
        while len(text) < length:
            text.append(sample_small(target(tuple(text)), 2, position * 16 + len(text) + 1))
        counts[tuple(text)] += 1
    statistic, bound = chi_square(list(counts.values()), list(expected.values()))
    assert statistic < bound


def sample_small(law, seed, position):
    from treespec import _core

    return _core.sample_at_position(law, seed, 0, position)


def test_target_only_gives_the_text_of_plain_decoding():
    target = random_laws(11, 6, ("dense", "peaked"))
    rng = np.random.default_rng(5)
    lengths = []
    for seed in range(60):
        text = []
        for step in range(6):
            text.append(sample_at_position(target(tuple(text)), seed, 3, 50 + step + 1))
        trees = [chain_tree(text[:4])]
        for mode in PROPOSALS:
            trees.append(testing.random_tree(rng, num_nodes=15, vocab_size=6, proposal=mode))
        for tree in trees:
            verdict = treespec.verify(
                core_tree(tree),
                testing.rows_of(tree, target),
                verifier="target_only",
                seed=seed,
                sequence_id=3,
                position=50,
            )
            assert list(verdict.tokens) == text[: len(verdict.tokens)]
            lengths.append(len(verdict.tokens))
        assert 5 in lengths
    assert max(lengths) == 5 and min(lengths) == 1


# ------------------------------------------------------------------ against the oracles


@pytest.mark.parametrize("vocab_size", [2, 5, 40])
@only(lambda verifier_name: bool(LOSSLESS[verifier_name]))
def test_every_verifier_decides_as_its_oracle(verifier_name, vocab_size):
    oracle = reference.verifier(verifier_name)
    accepted = 0
    for mode, seed in itertools.product(LOSSLESS[verifier_name], range(80)):
        rng = np.random.default_rng([seed, vocab_size])
        width = 1 if verifier_name in CHAIN_ONLY else 4
        kinds = ("dense", "sparse", "peaked", "one_hot", "smooth")
        tree = testing.random_tree(
            rng, num_nodes=14, vocab_size=vocab_size, proposal=mode, max_children=width, kinds=kinds
        )
        rows = np.stack(
            [testing.random_law(rng, vocab_size, str(rng.choice(kinds))) for _ in tree.token]
        )
        # Half the rows are near the draft's, so that paths get long.
        if tree.draft_probs is not None:
            for node in range(tree.num_nodes):
                if tree.draws[node] and rng.random() < 0.5:
                    rows[node] = normalise(tree.draft_probs[node])
        key = {"seed": seed, "sequence_id": 2, "position": seed * 31}
        verdict = treespec.verify(core_tree(tree), rows, verifier=verifier_name, **key)
        nodes, token = oracle(tree, rows, None, **key)
        assert list(verdict.accepted_nodes) == nodes
        assert verdict.next_token == token
        assert verdict.num_accepted == len(nodes)
        assert list(verdict.tokens) == [*tree.token[nodes], token]
        accepted += len(nodes)
    assert accepted > 20


@pytest.mark.parametrize("proposal", SAMPLED)
@only(by_coins)
@only(takes)
@only(lambda verifier_name: verifier_name not in CHAIN_ONLY)
def test_long_lists_of_draws_decide_as_the_oracle(verifier_name, proposal):
    oracle = reference.verifier(verifier_name)
    ranks = np.zeros(8)
    for seed in range(250):
        rng = np.random.default_rng(seed)
        draft, target = (testing.random_law(rng, 6, kind) for kind in ("dense", "smooth"))
        tokens = testing.random_draws(rng, draft, 7, proposal)
        tree = wide_tree(proposal, tokens, draft)
        rows = np.tile(target, (tree.num_nodes, 1))
        verdict = treespec.verify(core_tree(tree), rows, verifier=verifier_name, seed=seed)
        nodes, token = oracle(tree, rows, None, seed=seed)
        assert (list(verdict.accepted_nodes), verdict.next_token) == (nodes, token)
        ranks[tree.draws[0].index(nodes[0]) if nodes else 7] += 1
    assert np.count_nonzero(ranks) > 3


def test_float32_rows_and_a_given_law_decide_alike(verifier_name):
    modes_of = [mode for mode in LOSSLESS[verifier_name] if mode in SAMPLED]
    for mode, seed in itertools.product(modes_of, range(20)):
        rng = np.random.default_rng(seed)
        width = 1 if verifier_name in CHAIN_ONLY else 3
        tree = testing.random_tree(
            rng, num_nodes=9, vocab_size=5, proposal=mode, max_children=width
        )
        rows = testing.rows_of(tree, random_laws(seed, 5))
        expected = treespec.verify(core_tree(tree), rows, verifier=verifier_name, seed=seed)
        bare = from_arrays(tree.token, tree.parent, proposal=mode, draws=tree.draws)
        for target, law in itertools.product(
            (rows, rows.astype(np.float32)),
            (tree.draft_probs, tree.draft_probs.astype(np.float64)),
        ):
            verdict = treespec.verify(
                core_tree(bare), target, law, verifier=verifier_name, seed=seed
            )
            assert list(verdict.tokens) == list(expected.tokens)


def test_every_verifier_is_greedy_on_one_hot_rows(verifier_name):
    for mode, seed in itertools.product(LOSSLESS[verifier_name], range(25)):
        rng = np.random.default_rng(seed)
        width = 1 if verifier_name in CHAIN_ONLY else 3
        tree = testing.random_tree(
            rng, num_nodes=12, vocab_size=4, proposal=mode, max_children=width
        )
        rows = testing.rows_of(tree, random_laws(seed, 4, ("one_hot",)))
        expected = reference.verifier("greedy")(tree, rows)
        verdict = treespec.verify(core_tree(tree), rows, verifier=verifier_name, seed=seed)
        assert (list(verdict.accepted_nodes), verdict.next_token) == expected


def test_greedy_takes_the_lowest_of_tied_tokens():
    tree = treespec.TokenTree(token=[0, 2, 1], parent=[-1, 0, 0])
    rows = np.array([[0.2, 0.4, 0.4], [1, 0, 0], [0.3, 0.3, 0.4]])
    verdict = treespec.verify(tree, rows, verifier="greedy")
    assert list(verdict.accepted_nodes) == [2]
    assert verdict.next_token == 2


def test_auto_is_greedy_at_temperature_zero():
    tree = treespec.TokenTree(token=[0, 2, 1], parent=[-1, 0, 0])
    logits = np.log(np.array([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2], [1, 1, 1]], np.float32))
    for seed in range(20):
        verdict = treespec.verify_logits(
            tree, logits, sampling=treespec.SamplingParams(temperature=0.0), seed=seed
        )
        assert list(verdict.tokens) == [2, 0]


# ------------------------------------------------------------------ degenerate cases (spec, 9)

LOW, HIGH = 0.0, 1 - 2.0**-53


def wide_tree(proposal, tokens, law, deeper=0):
    """A root that drew `tokens` from `law`."""
    ids = {}
    for t in tokens:
        ids.setdefault(t, len(ids) + 1)
    token, parent = [0, *ids], [-1] + [0] * len(ids)
    table = np.zeros((len(token), len(law)), np.float32)
    table[0] = law
    draws = [[ids[t] for t in tokens]] + [[] for _ in ids]
    return from_arrays(token, parent, proposal=proposal, draws=draws, draft_probs=table)


def verdict_of(tree, root_law, accept, sample, name="recursive_rejection"):
    rows = np.tile(np.array(root_law, dtype=np.float64), (tree.num_nodes, 1))
    coins = ([accept, *([] for _ in tree.token[1:])], [sample] * tree.num_nodes)
    verdict = treespec.verify(core_tree(tree), rows, verifier=name, coins=coins)
    oracle = reference.verifier(name)(tree, rows, None, coins=coins)
    assert (list(verdict.accepted_nodes), verdict.next_token) == oracle
    return oracle


@pytest.mark.parametrize("name", ["token_level", "recursive_rejection"])
@pytest.mark.parametrize("proposal", SAMPLED)
def test_the_accept_test_is_strict(name, proposal):
    tree = wide_tree(proposal, [1], [0.5, 0.5, 0])
    # p/q = 1/2: a coin of exactly 1/2 rejects, just below it accepts.
    law = [0.5, 0.25, 0.25]
    assert verdict_of(tree, law, [0.5], LOW, name) == ([], 2)
    assert verdict_of(tree, law, [0.5 - 2.0**-53], LOW, name) == ([1], 0)


@pytest.mark.parametrize("name", ["token_level", "recursive_rejection"])
def test_a_token_of_zero_target_mass_is_rejected_by_every_coin(name):
    tree = wide_tree("iid", [2], [0.25, 0.25, 0.5])
    for coin in (LOW, 0.5, HIGH):
        assert verdict_of(tree, [0.5, 0.5, 0], [coin], LOW, name) == ([], 0)


@pytest.mark.parametrize("name", ["token_level", "recursive_rejection"])
def test_a_ratio_of_one_or_more_is_accepted_by_every_coin(name):
    tree = wide_tree("iid", [1], [0.5, 0.25, 0.25])
    for coin in (LOW, HIGH):
        assert verdict_of(tree, [0.5, 0.25, 0.25], [coin], LOW, name) == ([1], 0)
        assert verdict_of(tree, [0.25, 0.5, 0.25], [coin], LOW, name) == ([1], 0)


def test_equal_rows_of_any_dtype_accept_by_every_coin(rng):
    # 1/3 and 1/7 are no float32: the target's row and the law must be normalised alike.
    for _ in range(100):
        law = rng.dirichlet(np.ones(7)).astype(np.float32)
        token = int(rng.choice(7, p=law.astype(np.float64) / law.astype(np.float64).sum()))
        tree = wide_tree("iid", [token], law)
        rows = np.tile(law, (2, 1))
        coins = ([[1 - 2.0**-40], []], [0.0, 0.0])
        verdict = treespec.verify(core_tree(tree), rows, verifier="token_level", coins=coins)
        assert verdict.num_accepted == 1


def test_a_repeated_draw_is_rejected_but_still_updates_the_residual():
    # SpecInfer's rule: after a rejection P(x) = 0 for ever, and (P - Q)+ is applied once more.
    tree = wide_tree("iid", [1, 1], [0.25, 0.5, 0.25])
    law = [0.6, 0.0, 0.4]
    # After one update: (.35, 0, .15)/.5 = (.7, 0, .3); after two: (.45, 0, .05)/.5 = (.9, 0, .1).
    assert verdict_of(tree, law, [LOW, LOW], 0.89) == ([], 0)
    assert verdict_of(tree, law, [LOW, LOW], 0.91) == ([], 2)


def test_a_repeat_without_replacement_is_skipped_without_an_update():
    law = np.array([[0.25, 0.5, 0.25], [0, 0, 0]], np.float32)
    token, draws = [0, 1], [[1, 1], []]
    # Such a tree is unsound; the oracle states the rule for draws that could not have happened.
    tree = from_arrays(token, [-1, 0], proposal="without_replacement", draws=draws, draft_probs=law)
    rows = np.tile([0.6, 0.0, 0.4], (2, 1))
    for sample, expected in ((0.69, 0), (0.71, 2)):
        coins = ([[LOW, LOW], []], [sample, sample])
        assert reference.verifier("recursive_rejection")(tree, rows, None, coins=coins) == (
            [],
            expected,
        )


def test_the_draft_law_is_renormalised_after_each_rejection():
    tree = wide_tree("without_replacement", [0, 1], [0.5, 0.25, 0.25])
    law = [0.0, 0.375, 0.625]
    # Token 0 is rejected: P = (0, .125, .375) / .5 = (0, .25, .75), Q = (0, .5, .5).
    assert verdict_of(tree, law, [LOW, 0.5 - 2.0**-50], LOW)[0] == [2]
    assert verdict_of(tree, law, [LOW, 0.5], LOW) == ([], 2)


def test_an_exhausted_draft_leaves_the_rest_of_the_target():
    tree = wide_tree("without_replacement", [1, 0], [0.5, 0.5, 0.0, 0.0])
    law = [0.0, 0.0, 0.5, 0.5]
    assert verdict_of(tree, law, [LOW, LOW], 0.49) == ([], 2)
    assert verdict_of(tree, law, [LOW, LOW], 0.51) == ([], 3)


def test_the_last_token_of_positive_weight_is_drawn_by_the_largest_coin():
    tree = wide_tree("iid", [1], [0.25, 0.75, 0.0, 0.0])
    assert verdict_of(tree, [0.7, 0.0, 0.3, 0.0], [LOW], HIGH) == ([], 2)
    assert verdict_of(tree, [0.7, 0.0, 0.3, 0.0], [LOW], LOW) == ([], 0)


def test_a_full_path_ends_with_a_bonus_token_of_the_target():
    laws = random_laws(2, 4)
    tree = chain_tree([1, 2, 3], proposal="iid", draws=[[1], [2], [3], []])
    rows = testing.rows_of(tree, laws)
    coins = ([[LOW], [LOW], [LOW], []], [0.0, 0.0, 0.0, 0.6])
    verdict = treespec.verify(
        core_tree(tree), rows, rows, verifier="recursive_rejection", coins=coins
    )
    assert list(verdict.accepted_nodes) == [1, 2, 3]
    assert verdict.next_token == inverse_cdf(rows[3], 0.6)


def test_rejection_at_the_root_still_emits_one_token():
    tree = wide_tree("iid", [0], [1.0, 0.0])
    assert verdict_of(tree, [0.0, 1.0], [LOW], LOW) == ([], 1)


@pytest.mark.parametrize("name", ["token_level", "recursive_rejection"])
@pytest.mark.parametrize("proposal", SAMPLED)
def test_a_token_that_the_law_cannot_have_drawn_is_never_accepted(name, proposal):
    # Usually a dtype or vocabulary mismatch. Refused, or skipped without an update (spec, 9.2).
    tree = wide_tree(proposal, [1], [1.0, 0.0])
    rows = np.full((2, 2), 0.5)
    coins = ([[LOW], []], [0.75, 0.75])
    assert reference.verifier(name)(tree, rows, None, coins=coins) == ([], 1)
    try:
        verdict = treespec.verify(core_tree(tree), rows, verifier=name, coins=coins)
    except ValueError as error:
        assert "draft_probs" in str(error)
    else:
        assert list(verdict.accepted_nodes) == []
        assert verdict.next_token == 1


# ------------------------------------------------------------------ identities


@pytest.mark.parametrize("proposal", SAMPLED)
@only(by_coins)
@only(takes)
@only(lambda verifier_name: verifier_name not in ("block", "traversal"))
def test_one_draw_per_node_makes_all_rejection_verifiers_equal(verifier_name, proposal):
    outcomes = set()
    for seed in range(80):
        rng = np.random.default_rng(seed)
        tree = testing.random_tree(
            rng, num_nodes=5, vocab_size=4, proposal=proposal, max_children=1
        )
        rows = testing.rows_of(tree, random_laws(seed, 4, ("dense", "sparse")))
        one, two = (
            treespec.verify(core_tree(tree), rows, verifier=name, seed=seed)
            for name in ("token_level", verifier_name)
        )
        assert list(one.tokens) == list(two.tokens)
        outcomes.add(one.num_accepted)
    assert len(outcomes) > 2


@pytest.mark.parametrize("proposal", SAMPLED)
def test_the_acceptance_rate_of_one_draw_is_the_overlap(proposal):
    rng = np.random.default_rng(1)
    for _ in range(5):
        p, q = (testing.random_law(rng, 4) for _ in range(2))
        accepted = 0.0
        for tree, probability in sampled_trees(lambda path, q=q: q, (1,), proposal):
            rows = np.tile(p, (tree.num_nodes, 1))
            decide = partial(decide_by_core("token_level"), tree, rows)
            law = testing.outcome_law(decide, tree.draws, testing.top_down_order(tree))
            accepted += probability * sum(m for (nodes, _), m in law.items() if nodes)
        assert accepted == pytest.approx(np.minimum(p, q).sum(), abs=1e-10)


@only(lambda verifier_name: bool(LOSSLESS[verifier_name]))
def test_results_do_not_depend_on_batch_mates_or_order(verifier_name):
    mode = next((m for m in (*SAMPLED, *PROPOSALS) if m in LOSSLESS[verifier_name]), None)
    rng = np.random.default_rng(7)
    width = 1 if verifier_name in CHAIN_ONLY else 3
    trees = [
        testing.random_tree(rng, num_nodes=n, vocab_size=5, proposal=mode, max_children=width)
        for n in (1, 4, 9, 12, 6)
    ]
    cores = [core_tree(t) for t in trees]
    rows = [testing.rows_of(t, random_laws(3, 5)) for t in trees]
    keys = {"sequence_id": [4, 1, 0, 9, 2], "position": [10, 20, 30, 40, 50]}
    together = treespec.verify(cores, rows, verifier=verifier_name, seed=3, **keys)
    for i, core in enumerate(cores):
        alone = treespec.verify(
            core,
            rows[i],
            verifier=verifier_name,
            seed=3,
            sequence_id=keys["sequence_id"][i],
            position=keys["position"][i],
        )
        assert list(alone.tokens) == list(together[i].tokens)
    back = treespec.verify(
        cores[::-1],
        rows[::-1],
        verifier=verifier_name,
        seed=3,
        **{name: values[::-1] for name, values in keys.items()},
    )
    assert [list(v.tokens) for v in back[::-1]] == [list(v.tokens) for v in together]


# ------------------------------------------------------------------ pairs that would be biased


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_a_biased_pair_is_refused_and_the_fitting_verifiers_named(verifier_name, proposal):
    assert verifier_name in LOSSLESS, "say in LOSSLESS on which modes this verifier is lossless"
    rng = np.random.default_rng(0)
    tree = testing.random_tree(rng, num_nodes=4, vocab_size=4, proposal=proposal, max_children=1)
    rows = testing.rows_of(tree, random_laws(0, 4))
    if proposal in LOSSLESS[verifier_name]:
        treespec.verify(core_tree(tree), rows, verifier=verifier_name)
        return
    with pytest.raises(ValueError, match=verifier_name) as refused:
        treespec.verify(core_tree(tree), rows, verifier=verifier_name)
    for name in treespec.verifier_names():
        if proposal in LOSSLESS[name]:
            assert name in str(refused.value)


@only(lambda verifier_name: verifier_name in CHAIN_ONLY)
def test_chain_verifiers_refuse_a_tree(verifier_name):
    tree = wide_tree("iid", [0, 1], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"chain.*recursive_rejection"):
        treespec.verify(core_tree(tree), np.full((3, 2), 0.5), verifier=verifier_name)


@only(by_coins)
def test_a_missing_law_is_refused(verifier_name):
    mode = modes(verifier_name)[0]
    tree = treespec.TokenTree(token=[0, 1], parent=[-1, 0], proposal=mode, draws=[[1], []])
    with pytest.raises(ValueError, match="draft_probs"):
        treespec.verify(tree, np.full((2, 2), 0.5), verifier=verifier_name)


# ------------------------------------------------------------------ negative controls


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
            if change == "repeats are dropped":
                draws = [(j, c) for j, c in draws if tree.draws[node].index(c) == j]
            chosen = -1
            for j, child in draws:
                token = int(tree.token[child])
                if draft[token] == 0:
                    continue
                if accept[node][j] * draft[token] < target[token]:
                    chosen = child
                    break
                left = np.maximum(target - draft, 0.0)
                if change == "only the rejected token is removed":
                    left = target.copy()
                    left[token] = 0.0
                target = left / left.sum()
                if tree.proposal == "iid" or change == "the draft stays whole":
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


CONTROL_TARGET, CONTROL_DRAFT = rotated([10, 30, 24]), rotated([34, 10, 20])
MUTANTS = [
    ("only the rejected token is removed", "without_replacement", (2,)),
    ("only the rejected token is removed", "iid", (2,)),
    ("the correction comes from the target", "without_replacement", (2,)),
    ("the correction comes from the target", "iid", (1,)),
    ("the draft stays whole", "without_replacement", (2,)),
    ("the draft is not renormalised", "without_replacement", (2,)),
    ("draws are sorted by token", "without_replacement", (2,)),
    ("draws are sorted by token", "iid", (2,)),
    ("repeats are dropped", "iid", (3,)),
]


@pytest.mark.parametrize(("change", "proposal", "expansion"), MUTANTS)
def test_a_known_mistake_is_caught(change, proposal, expansion):
    trees = list(sampled_trees(CONTROL_DRAFT, expansion, proposal))
    length = len(expansion) + 1
    sound = output_bias(decide_by(mutant("")), trees, CONTROL_TARGET, length)
    wrong = output_bias(decide_by(mutant(change)), trees, CONTROL_TARGET, length)
    assert sound < EXACT
    assert wrong > 1e-3


def test_verifying_a_top_k_tree_as_if_it_were_sampled_is_caught():
    trees = []
    for tree, probability in sampled_trees(CONTROL_DRAFT, (2,), "deterministic"):
        tree.proposal = "without_replacement"
        tree.draft_probs = testing.rows_of(tree, CONTROL_DRAFT).astype(np.float32)
        trees.append((tree, probability))
    assert output_bias(decide_by_core("recursive_rejection"), trees, CONTROL_TARGET, 2) > 0.01


@pytest.mark.parametrize("proposal", SAMPLED)
def test_dropping_a_sampled_node_by_its_probability_is_caught(proposal):
    trees = []
    for tree, probability in sampled_trees(CONTROL_DRAFT, (1,), proposal):
        if tree.draft_probs[0, tree.token[1]] < 0.2:
            tree = from_arrays([0], [-1], proposal=proposal, draws=[[]])
            tree.draft_probs = np.zeros((1, 3), np.float32)
        trees.append((tree, probability))
    assert output_bias(decide_by_core("recursive_rejection"), trees, CONTROL_TARGET, 2) > 0.01


def test_a_law_other_than_the_recorded_one_is_caught():
    trees = []
    for tree, probability in sampled_trees(CONTROL_DRAFT, (1,), "iid"):
        sharper = tree.draft_probs[:1].astype(np.float64) ** 1.1
        tree.draft_probs[0] = sharper / sharper.sum()
        trees.append((tree, probability))
    assert output_bias(decide_by_core("token_level"), trees, CONTROL_TARGET, 2) > 1e-3


def test_probing_notices_when_a_threshold_depends_on_a_later_coin():
    def decide(coins):
        first, second = coins[0][0]
        return ((1,), 0) if first < (0.25 if second < 0.5 else 0.75) else ((), 0)

    law = testing.outcome_law(decide, [[1, 2]], [(0, 1), (0, 0)])
    assert law == {((1,), 0): pytest.approx(0.5), ((), 0): pytest.approx(0.5)}
    with pytest.raises(RuntimeError, match="order"):
        testing.outcome_law(decide, [[1, 2]], [(0, 0), (0, 1)], checks=50)


# ------------------------------------------------------------------ with the generator


@pytest.mark.parametrize("proposal", SAMPLED)
@only(takes)
@only(lambda verifier_name: verifier_name not in ("greedy", "typical"))
def test_drafting_and_verifying_with_the_generator_is_lossless(verifier_name, proposal):
    p, q = np.array([10, 30, 24]) / 64, np.array([34, 10, 20]) / 64
    with np.errstate(divide="ignore"):
        source = treespec.Marginals([[0, 1, 2]], np.log(q)[None].astype(np.float32))
    count = 1 if verifier_name in CHAIN_ONLY else 2
    rows = {n: np.tile(p, (n, 1)) for n in (2, 3)}
    counts = np.zeros(3)
    for position in range(20_000):
        key = {"seed": 99, "position": position}
        options = {"expansion": [count], "proposal": proposal}
        tree = treespec.build_tree("kary", source, node_budget=count, **options, **key)
        verdict = treespec.verify(tree, rows[len(tree.token)], verifier=verifier_name, **key)
        counts[verdict.tokens[0]] += 1
    statistic, bound = chi_square(counts, p)
    assert statistic < bound


@pytest.mark.parametrize("name", ["target_only", "recursive_rejection", "token_level"])
def test_a_thousand_tokens_are_emitted_with_the_targets_frequencies(name):
    rng = np.random.default_rng(6)
    p, q = (rng.dirichlet(np.full(1000, 0.5)) for _ in range(2))
    q = 0.5 * (p + q)
    source = treespec.Marginals(
        np.arange(1000, dtype=np.int32)[None], np.log(q)[None].astype(np.float32)
    )
    count = 1 if name == "token_level" else 3
    proposal = {"target_only": "deterministic"}.get(name, "without_replacement")
    counts = np.zeros(1000)
    rows = {n: np.tile(p, (n, 1)) for n in (2, 4)}
    for position in range(20_000):
        key = {"seed": 41, "position": position}
        options = {"expansion": [count], "proposal": proposal}
        tree = treespec.build_tree("kary", source, node_budget=count, **options, **key)
        verdict = treespec.verify(tree, rows[len(tree.token)], verifier=name, **key)
        counts[verdict.tokens[0]] += 1
    statistic, bound = chi_square(counts, p)
    assert statistic < bound


def test_chi_square_sees_a_biased_sampler():
    law = np.array([0.5, 0.3, 0.2])
    rng = np.random.default_rng(0)
    fair, biased = rng.multinomial(20_000, law), rng.multinomial(20_000, [0.52, 0.29, 0.19])
    statistic, bound = chi_square(fair, law)
    assert statistic < bound
    statistic, bound = chi_square(biased, law)
    assert statistic > bound
    assert chi_square([5, 1], [1.0, 0.0])[0] == np.inf
