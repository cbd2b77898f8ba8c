# SPDX-License-Identifier: Apache-2.0
"""Tuning: acceptance, calibration and costs of a toy pair, and the size they ask for."""

import numpy as np
import pytest
from decoder_models import TableDrafter, TableTarget, table_pair

import treespec
from treespec import GrowthMap, tuning
from treespec.decoder import SpeculativeDecoder
from treespec.tuning.calibration import fit_calibration

PROMPTS = [[1, 2, 3], [4, 5], [1, 5, 4, 1], [3]]


def decoder_of(seed=0, noise=0.8, vocab_size=9):
    target = TableTarget(vocab_size, seed)
    return SpeculativeDecoder(target, TableDrafter(target, seed + 1, noise))


def softmax(row):
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def ranks_along(decoder, text, length):
    """Place of each greedy token in the drafter's order."""
    text, places = list(text), []
    for _ in range(length):
        token = int(decoder.target.row(text).argmax())
        order = np.argsort(-decoder.drafter.row(text), kind="stable")
        places.append(int(np.flatnonzero(order == token)[0]))
        text.append(token)
    return places


# ------------------------------------------------------------------ acceptance


def test_greedy_acceptance_is_the_targets_choice_in_the_drafters_order():
    # With no acceptance at all a round is a token, so that every place can be recomputed.
    decoder = decoder_of(noise=3.0)
    measured = tuning.measure_acceptance(
        decoder, PROMPTS, width=9, temperature=0, max_new_tokens=200
    )
    (row,), (trials,) = measured.counts, measured.trials
    assert sum(row) == trials, "all nine tokens were offered"
    places = np.concatenate([ranks_along(decoder, prompt, 400) for prompt in PROMPTS])
    expected = np.bincount(places, minlength=9) / len(places)
    # Rounds that accept skip a place, so the counts are a sample of it.
    np.testing.assert_allclose(measured.shares[0], expected, atol=0.12)


def test_deeper_rows_count_only_rounds_that_reached_them():
    decoder = decoder_of(noise=0.3)
    measured = tuning.measure_acceptance(
        decoder, PROMPTS, width=4, max_depth=3, temperature=0, max_new_tokens=600
    )
    assert len(measured.trials) == 3
    assert measured.trials == sorted(measured.trials, reverse=True)
    assert all(
        sum(row) <= trials for row, trials in zip(measured.counts, measured.trials, strict=True)
    )
    for row in measured.table:
        assert row == sorted(row, reverse=True) and sum(row) <= 1 + 1e-12
    assert GrowthMap.optimal(measured.table, 20).expected_tokens() > 1.5


def test_depths_that_are_hardly_reached_are_left_out():
    measured = tuning.measure_acceptance(
        decoder_of(), PROMPTS[:1], width=3, max_depth=5, temperature=0, max_new_tokens=30
    )
    assert len(measured.trials) == 1


@pytest.mark.parametrize("proposal", ["deterministic", "without_replacement"])
def test_sampled_acceptance_is_what_the_verifier_accepts(proposal):
    # A target of one law everywhere: each round is an independent trial of the same tree.
    decoder = decoder_of(vocab_size=6)
    decoder.target.table[:] = decoder.target.table[0, 0, 0]
    decoder.drafter.table[:] = decoder.drafter.table[0, 0, 0]
    measured = tuning.measure_acceptance(
        decoder, PROMPTS, width=6, temperature=1.0, proposal=proposal, max_new_tokens=1200
    )
    target, draft = softmax(decoder.target.table[0, 0, 0]), softmax(decoder.drafter.table[0, 0, 0])
    if proposal == "deterministic":
        expected = target[np.argsort(-draft)]
        np.testing.assert_allclose(measured.shares[0], expected, atol=0.04)
    else:
        assert measured.shares[0][0] == pytest.approx(np.minimum(target, draft).sum(), abs=0.04)
    assert sum(measured.counts[0]) == measured.trials[0], "the whole vocabulary is never rejected"


def test_rounds_that_the_end_of_a_text_cuts_are_no_trials():
    # The drafter is the target: everything offered is accepted, unless the text ends first.
    target = TableTarget(9, 0)
    decoder = SpeculativeDecoder(target, TableDrafter(target, noise=0.0))
    measured = tuning.measure_acceptance(
        decoder, PROMPTS, width=2, max_depth=2, temperature=0, max_new_tokens=401
    )
    assert [row[0] for row in measured.counts] == measured.trials


def test_the_text_is_measured_without_being_changed():
    target, drafter = table_pair()
    decoder = SpeculativeDecoder(target, drafter)
    before = decoder.generate([1, 2, 3], max_new_tokens=20).token_ids
    tuning.measure_acceptance(decoder, PROMPTS, width=4, temperature=0, max_new_tokens=20)
    tuning.measure_calibration(decoder, PROMPTS, max_new_tokens=20)
    tuning.measure_costs(decoder, PROMPTS, rows=(1, 4), repetitions=1, max_new_tokens=8)
    assert decoder.generate([1, 2, 3], max_new_tokens=20).token_ids == before
    assert target.open_sequences == 0 and drafter.open_sessions == 0


def test_a_pair_may_be_models_and_progress_sees_every_run():
    seen = []

    def progress(jobs):
        seen.append(len(jobs))
        return iter(jobs)

    measured = tuning.measure_acceptance(
        ("demo", "ngram"),
        ["import os\n"],
        width=2,
        max_depth=2,
        temperature=0,
        max_new_tokens=12,
        progress=progress,
    )
    assert seen == [2] and measured.trials[0] > 0


def test_what_cannot_be_measured_is_refused():
    decoder = decoder_of()
    with pytest.raises(ValueError, match="must have a drafter"):
        tuning.measure_acceptance(SpeculativeDecoder(decoder.target, None), PROMPTS)
    with pytest.raises(ValueError, match="list of prompts"):
        tuning.measure_acceptance(decoder, [])
    with pytest.raises(ValueError, match="list of prompts"):
        tuning.measure_calibration(decoder, "a text")
    with pytest.raises(ValueError, match="width and max_depth"):
        tuning.measure_acceptance(decoder, PROMPTS, width=0)
    with pytest.raises(ValueError, match=r"proposal must be deterministic or .*, got 'iid'"):
        tuning.measure_acceptance(decoder, PROMPTS, proposal="iid")
    with pytest.raises(ValueError, match="rounds to count"):
        tuning.measure_acceptance(decoder, PROMPTS, max_new_tokens=1)
    with pytest.raises(ValueError, match="guesses to count"):
        tuning.measure_calibration(decoder, PROMPTS, max_new_tokens=1)
    with pytest.raises(ValueError, match="num_nodes and bins"):
        tuning.measure_calibration(decoder, PROMPTS, bins=0)
    with pytest.raises(ValueError, match="rows and repetitions"):
        tuning.measure_costs(decoder, PROMPTS, rows=(0,))


# ------------------------------------------------------------------ calibration


def test_a_fitted_table_rises_and_keeps_equal_probabilities_together(rng):
    probability = rng.choice([0.1, 0.5, 0.5, 1.0], size=2000)
    accepted = rng.random(2000) < probability**2
    table = np.array(fit_calibration(probability, accepted, 10).table)
    assert np.all(np.diff(table[:, 0]) > 0) and np.all(np.diff(table[:, 1]) >= 0)
    np.testing.assert_allclose(table[:, 0], [0.1, 0.5, 1.0])
    np.testing.assert_allclose(table[:, 1], [0.01, 0.25, 1.0], atol=0.05)


def test_few_trials_claim_no_certainty():
    (pair,) = fit_calibration(np.array([0.4, 0.4]), np.array([False, False]), 5).table
    assert pair == pytest.approx([0.4, 0.4 / 3])
    table = fit_calibration(np.array([0.2, 0.9]), np.array([True, False]), 5).table
    assert table[0][1] == table[1][1], "falling shares are pooled"


def test_calibration_of_a_sharper_target_is_above_the_draft_probability():
    target = TableTarget(9, 0, scale=2.0)
    drafter = TableDrafter(target, noise=0.0)
    drafter.table = drafter.table / 2
    decoder = SpeculativeDecoder(target, drafter)
    calibration = tuning.measure_calibration(
        decoder, PROMPTS, temperature=1.0, max_new_tokens=400, bins=8
    )
    table = np.array(calibration.table)
    assert 3 <= len(table) <= 8 and len(calibration.trials) == len(table)
    assert np.all(np.diff(table[:, 0]) > 0) and np.all(np.diff(table[:, 1]) >= 0)
    assert np.all((table > 0) & (table <= 1))
    assert table[-1, 1] > table[-1, 0]


# ------------------------------------------------------------------ costs and size


def test_costs_are_times_by_row():
    costs = tuning.measure_costs(
        decoder_of(), PROMPTS, rows=(8, 1, 2), repetitions=3, max_new_tokens=12
    )
    assert list(costs.target_seconds) == [1, 2, 8]
    assert all(seconds > 0 for seconds in costs.target_seconds.values())
    assert costs.draft_seconds > 0 and costs.round_seconds > 0 and costs.plain_seconds > 0


def test_drafters_without_a_model_cost_nothing_per_level():
    decoder = treespec.load("demo", "suffix", builder="trie")
    costs = tuning.measure_costs(decoder, ["def a():"], rows=(1,), repetitions=1, max_new_tokens=8)
    assert costs.draft_seconds == 0 and costs.round_seconds > 0


def test_more_rows_than_the_context_are_refused():
    decoder = decoder_of()
    decoder.target.max_context = 50
    with pytest.raises(ValueError, match=r"rows must fit .* \(47\), got 64"):
        tuning.measure_costs(decoder, PROMPTS, rows=(1, 64))


def test_the_size_is_the_best_of_all(rng):
    acceptance = [[0.5, 0.2, 0.1], [0.4, 0.2]]
    rows = {1: 1.0, 4: 1.1, 8: 1.7, 16: 1.6, 32: 4.0}
    size = tuning.best_size(acceptance, rows, 0.2, 5, round_seconds=0.1)
    padded = {**rows, 8: 1.6}  # 16 rows are faster than 8: so are 8, padded
    best = 0.0
    for n in range(1, 32):
        for depth in range(1, 6):
            shape = GrowthMap.optimal(acceptance, n, max_depth=depth)
            seconds = np.interp(n + 1, list(padded), list(padded.values()))
            cost = seconds + shape.depth.max() * 0.2 + 0.1
            best = max(best, shape.expected_tokens() * 1.1 / cost)
    assert size.speedup == pytest.approx(best)
    shape = GrowthMap.optimal(acceptance, size.num_nodes, max_depth=size.max_depth)
    assert size.expected_tokens == pytest.approx(shape.expected_tokens())
    assert shape.depth.max() == size.max_depth


def test_the_size_follows_the_prices():
    acceptance = [0.6, 0.2, 0.05]
    flat = dict.fromkeys((1, 64), 1.0)
    assert tuning.best_size(acceptance, flat, 0.0, 8).num_nodes == 63, "rows for nothing"
    assert tuning.best_size(acceptance, flat, 10.0, 8).max_depth == 1, "calls for a fortune"
    steep = {1: 1.0, 64: 64.0}
    hopeless = tuning.best_size(acceptance, steep, 0.5, 8)
    assert hopeless.num_nodes == 1 and hopeless.speedup < 1
    assert tuning.best_size(acceptance, flat, 0.1, 8, num_nodes=7).num_nodes == 7
    plain = tuning.best_size(acceptance, flat, 0.0, 8, plain_seconds=2.0)
    assert plain.speedup == pytest.approx(2 * plain.expected_tokens)
    without_one = tuning.best_size(acceptance, {8: 1.0, 64: 1.0}, 0.0, 8, plain_seconds=2.0)
    assert without_one == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_seconds": {}}, "rows to seconds above 0"),
        ({"target_seconds": {1: 1.0, 2: 0.0}}, "rows to seconds above 0"),
        ({"target_seconds": {1: 1.0}}, "num_nodes below the most rows"),
        ({"target_seconds": {1: 1.0, 2: float("inf")}}, "seconds above 0, finite"),
        (
            {"target_seconds": {2: 1.0, 8: 2.0}},
            r"must hold 1 row.*plain_seconds.*got rows \[2, 8\]",
        ),
        ({"draft_seconds": -0.1}, "draft_seconds must be finite and >= 0, got -0.1"),
        ({"draft_seconds": float("nan")}, "draft_seconds must be finite"),
        ({"round_seconds": -1.0}, "round_seconds must be finite and >= 0, got -1"),
        ({"round_seconds": float("inf")}, "round_seconds must be finite"),
        ({"plain_seconds": float("nan")}, "plain_seconds must be finite and >= 0, got nan"),
        ({"max_depth": 0}, "max_depth must be at least 1"),
        ({"num_nodes": 8}, "num_nodes below the most rows"),
        ({"acceptance": [0.0]}, "above 0 somewhere"),
        ({"acceptance": [0.8, 0.8]}, "sum to at most 1"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    given = {
        "acceptance": [0.5],
        "target_seconds": {1: 1.0, 8: 2.0},
        "draft_seconds": 0.1,
        "max_depth": 3,
        **arguments,
    }
    with pytest.raises(ValueError, match=message):
        tuning.best_size(**given)


def test_a_tuned_map_beats_a_chain_of_its_size():
    decoder = decoder_of(noise=1.0)
    measured = tuning.measure_acceptance(
        decoder, PROMPTS, width=6, max_depth=3, temperature=0, max_new_tokens=400
    )
    shape = GrowthMap.optimal(measured.table, 8)

    def tokens_per_forward(builder, **options):
        tree = SpeculativeDecoder(
            decoder.target, decoder.drafter, builder=builder, builder_options=options, node_budget=8
        )
        texts = tree.generate([[2, 2], [0, 5, 1], [5]], max_new_tokens=300)
        return np.mean([text.stats.block_efficiency for text in texts])

    tuned = tokens_per_forward("sequoia", growth_map=shape)
    assert tuned > tokens_per_forward("chain")
    assert tuned == pytest.approx(shape.expected_tokens(), rel=0.2)
