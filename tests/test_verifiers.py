# SPDX-License-Identifier: Apache-2.0
"""Verifiers: equal to the oracles, right in every degenerate case, refused where they are biased.

That they are lossless is proved in ``test_verifiers_exact.py``.
"""

import itertools

import numpy as np
import pytest
from support import chain_tree, only
from verifier_cases import (
    CHAIN_ONLY,
    DRAWN,
    LOSSLESS,
    SAMPLED,
    by_coins,
    coin_order,
    decide_by_core,
    modes,
    oracle,
    takes,
    takes_trees,
    wide_tree,
    width_for,
)

import treespec
from treespec import reference, testing
from treespec.reference.sampling import normalise, sample_at_position
from treespec.reference.tree import PROPOSALS, from_arrays
from treespec.testing import chi_square, core_tree, random_laws


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
    decide = reference.verifier(verifier_name)
    accepted = 0
    for mode, seed in itertools.product(LOSSLESS[verifier_name], range(80)):
        rng = np.random.default_rng([seed, vocab_size])
        width = width_for(verifier_name, 4)
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
        nodes, token = decide(tree, rows, None, **key)
        assert list(verdict.accepted_nodes) == nodes
        assert verdict.next_token == token
        assert verdict.num_accepted == len(nodes)
        assert list(verdict.tokens) == [*tree.token[nodes], token]
        accepted += len(nodes)
    assert accepted > 20


@pytest.mark.parametrize("proposal", DRAWN)
@only(by_coins)
@only(takes)
@only(takes_trees)
def test_long_lists_of_draws_decide_as_the_oracle(verifier_name, proposal):
    decide = reference.verifier(verifier_name)
    ranks = np.zeros(8)
    for seed in range(250):
        rng = np.random.default_rng(seed)
        draft, target = (testing.random_law(rng, 6, kind) for kind in ("dense", "smooth"))
        tokens = testing.random_draws(rng, draft, 7, proposal)
        tree = wide_tree(proposal, tokens, draft)
        rows = np.tile(target, (tree.num_nodes, 1))
        verdict = treespec.verify(core_tree(tree), rows, verifier=verifier_name, seed=seed)
        nodes, token = decide(tree, rows, None, seed=seed)
        assert (list(verdict.accepted_nodes), verdict.next_token) == (nodes, token)
        ranks[tree.draws[0].index(nodes[0]) if nodes else 7] += 1
    assert np.count_nonzero(ranks) > (3 if proposal in SAMPLED else 2)


@only(by_coins)
def test_float32_rows_and_a_given_law_decide_alike(verifier_name):
    for mode, seed in itertools.product(modes(verifier_name), range(20)):
        rng = np.random.default_rng(seed)
        width = width_for(verifier_name, 3)
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
        width = width_for(verifier_name, 3)
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


# ------------------------------------------------------------------ identities


@pytest.mark.parametrize("proposal", DRAWN)
@only(by_coins)
@only(takes)
@only(lambda verifier_name: verifier_name not in ("block", "traversal"))
def test_one_draw_per_node_makes_all_top_down_verifiers_equal(verifier_name, proposal):
    outcomes = set()
    for seed in range(80):
        rng = np.random.default_rng(seed)
        tree = testing.random_tree(
            rng, num_nodes=5, vocab_size=4, proposal=proposal, max_children=1
        )
        rows = testing.rows_of(tree, random_laws(seed, 4, ("dense", "sparse")))
        verdict = treespec.verify(core_tree(tree), rows, verifier=verifier_name, seed=seed)
        tree.proposal = "iid"  # with one draw there is no difference
        plain = treespec.verify(core_tree(tree), rows, verifier="token_level", seed=seed)
        assert list(verdict.tokens) == list(plain.tokens)
        outcomes.add(plain.num_accepted)
    assert len(outcomes) > 2


def random_chains(count, proposal):
    for seed in range(count):
        rng = np.random.default_rng([seed, 5])
        kinds = ("dense", "sparse", "peaked", "smooth")
        tree = testing.random_tree(
            rng, num_nodes=7, vocab_size=4, proposal=proposal, max_children=1, kinds=kinds
        )
        rows = np.stack([testing.random_law(rng, 4, str(rng.choice(kinds))) for _ in tree.token])
        for node in range(tree.num_nodes):
            if tree.draws[node] and rng.random() < 0.5:
                rows[node] = normalise(tree.draft_probs[node])
        yield seed, tree, rows


@pytest.mark.parametrize("proposal", SAMPLED)
def test_block_is_traversal_on_a_chain(proposal):
    accepted = set()
    for seed, tree, rows in random_chains(200, proposal):
        one, two = (
            treespec.verify(core_tree(tree), rows, verifier=name, seed=seed)
            for name in ("block", "traversal")
        )
        assert list(one.tokens) == list(two.tokens)
        accepted.add(one.num_accepted)
        both = [reference.verifier(name)(tree, rows, seed=seed) for name in ("block", "traversal")]
        assert both[0] == both[1]
    assert len(accepted) > 4


@pytest.mark.parametrize("decide", [decide_by_core, oracle], ids=["core", "oracle"])
def test_block_has_the_thresholds_of_traversal_to_the_last_probed_bit(decide):
    for _, tree, rows in itertools.islice(random_chains(20, "iid"), 0, None, 2):
        laws = []
        for name in ("block", "traversal"):
            verify = decide(name)
            laws.append(
                testing.outcome_law(
                    lambda coins, verify=verify, tree=tree, rows=rows: verify(tree, rows, coins),
                    tree.draws,
                    coin_order("traversal")(tree),
                )
            )
        assert laws[0] == laws[1]


@only(lambda verifier_name: bool(LOSSLESS[verifier_name]))
def test_results_do_not_depend_on_batch_mates_or_order(verifier_name):
    mode = next(m for m in (*SAMPLED, *PROPOSALS) if m in LOSSLESS[verifier_name])
    rng = np.random.default_rng(7)
    width = width_for(verifier_name, 3)
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
    if not LOSSLESS[verifier_name]:
        assert "lossy" in str(refused.value)  # it fits nowhere; what it takes is to ask for it
        return
    for name in treespec.verifier_names():
        if proposal in LOSSLESS[name]:
            assert name in str(refused.value)


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_typical_acceptance_is_refused_unless_asked_for_as_lossy(proposal):
    rng = np.random.default_rng(0)
    tree = testing.random_tree(rng, num_nodes=6, vocab_size=4, proposal=proposal)
    rows = testing.rows_of(tree, random_laws(0, 4))
    with pytest.raises(ValueError, match=r"typical.*lossy"):
        treespec.verify(core_tree(tree), rows, verifier="typical")
    verdict = treespec.verify(core_tree(tree), rows, verifier="typical", lossy=True)
    expected = reference.verifier("typical")(tree, rows)
    assert (list(verdict.accepted_nodes), verdict.next_token) == expected


@pytest.mark.parametrize("vocab_size", [3, 30])
def test_typical_acceptance_decides_as_its_oracle(vocab_size):
    lengths = set()
    for proposal, seed in itertools.product(PROPOSALS, range(40)):
        rng = np.random.default_rng([seed, vocab_size])
        tree = testing.random_tree(rng, num_nodes=14, vocab_size=vocab_size, proposal=proposal)
        # Dirichlet rows: no two paths have equal products, whose order would be a matter of ulps.
        rows = np.stack([testing.random_law(rng, vocab_size, "smooth") for _ in tree.token])
        verdict = treespec.verify(core_tree(tree), rows, verifier="typical", lossy=True, seed=seed)
        expected = reference.verifier("typical")(tree, rows, seed=seed)
        assert (list(verdict.accepted_nodes), verdict.next_token) == expected
        lengths.add(verdict.num_accepted)
    assert len(lengths) > 2


def test_typical_acceptance_is_greedy_on_one_hot_rows():
    for proposal, seed in itertools.product(PROPOSALS, range(25)):
        rng = np.random.default_rng(seed)
        tree = testing.random_tree(rng, num_nodes=12, vocab_size=4, proposal=proposal)
        rows = testing.rows_of(tree, random_laws(seed, 4, ("one_hot",)))
        verdict = treespec.verify(core_tree(tree), rows, verifier="typical", lossy=True, seed=seed)
        expected = reference.verifier("greedy")(tree, rows)
        assert (list(verdict.accepted_nodes), verdict.next_token) == expected


def test_lossy_changes_nothing_for_a_lossless_verifier(verifier_name):
    for mode in LOSSLESS[verifier_name]:
        rng = np.random.default_rng(1)
        width = width_for(verifier_name, 3)
        tree = testing.random_tree(
            rng, num_nodes=9, vocab_size=4, proposal=mode, max_children=width
        )
        rows = testing.rows_of(tree, random_laws(1, 4))
        one, two = (
            treespec.verify(core_tree(tree), rows, verifier=verifier_name, lossy=lossy)
            for lossy in (False, True)
        )
        assert list(one.tokens) == list(two.tokens)


@pytest.mark.parametrize(
    ("proposal", "meant"),
    [
        ("deterministic", "target_only"),
        ("iid", "traversal"),
        ("without_replacement", "traversal"),
        ("top_plus_one", "top_plus_one"),
    ],
)
def test_auto_is_the_best_rule_for_the_mode(proposal, meant):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        tree = testing.random_tree(rng, num_nodes=9, vocab_size=4, proposal=proposal)
        rows = testing.rows_of(tree, random_laws(seed, 4))
        auto, named = (
            treespec.verify(core_tree(tree), rows, verifier=name, seed=seed)
            for name in ("auto", meant)
        )
        assert list(auto.tokens) == list(named.tokens)


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


# ------------------------------------------------------------------ with the generator


@pytest.mark.parametrize("proposal", DRAWN)
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
        options = {"expansion": [count], "node_budget": count}
        if proposal == "top_plus_one":
            tree = treespec.build_tree("top_plus_one", source, **options, **key)
        else:
            tree = treespec.build_tree("kary", source, proposal=proposal, **options, **key)
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
