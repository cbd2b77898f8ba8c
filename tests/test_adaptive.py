# SPDX-License-Identifier: Apache-2.0
"""Decoders that choose the tree of every round: what they emit, and which profiles they accept."""

import json
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from decoder_models import TableDrafter, TableTarget, table_pair
from exported_models import exported

import treespec
from treespec import Profile, tuning
from treespec.decoder import SpeculativeDecoder
from treespec.identity import identity_of
from treespec.profile import TargetSeconds, profile_path
from treespec.testing.statistics import chi_square

PROMPTS = [[1, 2, 3], [4, 5], [1, 5, 4, 1], [3]]
KINDS = {"plain", "chain", "tree"}


def profile_of(
    *, rows=None, call=None, by_level=True, acceptance=None, calibration=(), **fields
) -> Profile:
    """Rows are cheap and calls are not dear unless told otherwise."""
    return Profile(
        target=(TargetSeconds(0, 1, rows or {1: 10.0, 8: 11.0, 64: 20.0}),),
        draft_call=call if call is not None else {1: 1.0, 64: 2.0},
        drafts_by_level=by_level,
        drafted_round=0.1,
        plain_round=0.05,
        acceptance=acceptance
        or {"deterministic": [[0.6, 0.2]], "without_replacement": [[0.6, 0.2]]},
        calibration=list(calibration),
        **fields,
    )


WORTH_IT, DEAR = profile_of(), profile_of(call={1: 100.0, 64: 200.0})
CALIBRATED = profile_of(calibration=[[0.5, 0.3], [1, 0.9]])
PROFILES = {"worth it": WORTH_IT, "dear": DEAR, "calibrated": CALIBRATED}


def adaptive(profile, noise=0.5, seed=0, **options):
    target, drafter = table_pair(seed, noise=noise)
    return SpeculativeDecoder(target, drafter, profile=profile, **options)


def kinds_of(decoder, prompt, **options):
    """Drafted nodes of every round beside the text."""
    sizes = []
    result = decoder.generate(prompt, on_round=lambda r: sizes.append(len(r.tree) - 1), **options)
    return result, sizes


# ------------------------------------------------------------------ the text is the target's own


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("builder", ["opt_tree", "eagle2", "kary", "sequoia", "chain"])
def test_texts_do_not_depend_on_what_is_decided(builder, temperature, profile):
    options = {"max_new_tokens": 60, "temperature": temperature, "seed": 3}
    plain = SpeculativeDecoder(table_pair()[0], None)
    decoder = adaptive(profile, builder=builder)
    for prompt in PROMPTS:
        expected = plain.generate(prompt, **options).token_ids
        result, sizes = kinds_of(decoder, prompt, **options)
        assert result.token_ids == expected
        if profile is DEAR:
            assert sum(sizes) < len(sizes) / 2, "calls that dear are hardly ever made"
    assert decoder.target.open_sequences == 0 and decoder.drafter.open_sessions == 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_batch_shares_rows_and_emits_what_each_would_alone(temperature):
    options = {"max_new_tokens": 50, "temperature": temperature, "seed": 5}
    decoder = adaptive(WORTH_IT)
    together = decoder.generate(PROMPTS, **options)
    for prompt, result in zip(PROMPTS, together, strict=True):
        assert result.token_ids == decoder.generate(prompt, **options).token_ids


@pytest.mark.parametrize("builder", ["dyspec", "rollouts", "delayed", "kary"])
def test_drawn_trees_give_the_same_text_for_the_same_seed(builder):
    options = {"builder": builder}
    if builder == "kary":
        options["builder_options"] = {"proposal": "iid"}
    runs = [
        adaptive(WORTH_IT, **options).generate(
            [1, 2, 3], max_new_tokens=80, temperature=0.9, seed=7
        )
        for _ in range(2)
    ]
    assert runs[0].token_ids == runs[1].token_ids
    assert runs[0].stats.rounds < 80


@pytest.mark.parametrize("builder", ["dyspec", "delayed"])
def test_drawn_trees_of_chosen_sizes_keep_the_law_of_the_text(builder):
    """Sizes follow what was accepted: a rule that looked at the round's own draws would show."""
    target = TableTarget(4, seed=2)
    decoder = SpeculativeDecoder(
        target, TableDrafter(target, 3, noise=1.5), builder=builder, profile=WORTH_IT
    )
    length, runs = 4, 1500
    counts: Counter = Counter()
    for seed in range(runs):
        result = decoder.generate([1, 2], max_new_tokens=length, temperature=1.0, seed=seed)
        counts[tuple(result.token_ids)] += 1
    law = {(): 1.0}
    for _ in range(length):
        grown = {}
        for text, mass in law.items():
            row = target.row([1, 2, *text])
            weights = np.exp(row - row.max())
            for token, share in enumerate(weights / weights.sum()):
                grown[(*text, token)] = mass * share
        law = grown
    _, p_value = chi_square([counts[text] for text in law], list(law.values()))
    assert p_value > 1e-4


def test_stops_limits_and_streams_are_those_of_fixed_sizes():
    decoder, plain = adaptive(WORTH_IT), SpeculativeDecoder(table_pair()[0], None)
    text = plain.generate([1, 2], max_new_tokens=40).token_ids
    stop = text[17]
    expected = text[: text.index(stop) + 1]
    assert decoder.generate([1, 2], max_new_tokens=40, stop_token_ids=[stop]).token_ids == expected
    pieces = decoder.stream([1, 2], max_new_tokens=40)
    assert [token for piece in pieces for token in piece.token_ids] == text
    for limit in range(5):
        assert decoder.generate([1, 2], max_new_tokens=limit).token_ids == text[:limit]


# ------------------------------------------------------------------ what is decided


def test_a_good_drafter_gets_large_trees_and_a_hopeless_one_none():
    sure, sizes = kinds_of(adaptive(WORTH_IT, noise=0.01), [1, 2], max_new_tokens=300)
    assert np.mean(sizes[5:]) > 8 and sure.stats.block_efficiency > 3
    _, sizes = kinds_of(adaptive(WORTH_IT, noise=30.0), [1, 2], max_new_tokens=600)
    assert np.mean([size == 0 for size in sizes[100:]]) > 0.7


def test_a_budget_that_is_given_bounds_the_trees_and_options_are_kept():
    decoder = adaptive(WORTH_IT, noise=0.01, node_budget=5, max_depth=2)
    depths = []
    decoder.generate([1], max_new_tokens=90, on_round=lambda r: depths.append(r.tree.depth.max()))
    assert max(depths) <= 2
    _, sizes = kinds_of(decoder, [1], max_new_tokens=90)
    assert max(sizes) <= 5


def test_shapes_that_are_fixed_are_no_graphs():
    with pytest.raises(ValueError, match="profile must be None with graph=True"):
        adaptive(WORTH_IT, graph=True)


# ------------------------------------------------------------------ profiles


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, and the bundled models loaded once."""
    monkeypatch.setenv("TREESPEC_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def demo():
    return treespec.load(profile=None)


def demo_profile(demo) -> Profile:
    return profile_of(identity=identity_of(demo.target, demo.drafter), metadata={"date": "today"})


def plans(decoder) -> bool:
    return type(decoder.planner).__name__ == "BudgetPlan"


def test_a_profile_survives_a_file(tmp_path):
    profile = profile_of(identity={"device": "x"}, calibration=[[0.5, 0.3]])
    profile.save(tmp_path / "deep" / "profile.json")
    assert Profile.load(tmp_path / "deep" / "profile.json") == profile


def test_load_picks_up_the_profile_of_the_pair(cache, demo):
    assert not plans(treespec.load())
    profile = demo_profile(demo)
    profile.save(profile_path(profile.identity))
    assert plans(treespec.load())
    assert not plans(treespec.load(node_budget=8)), "a size that is given is kept"
    assert not plans(treespec.load(profile=None))
    assert not plans(treespec.load(drafter="suffix")), "another pair"
    assert not plans(treespec.load(drafter=None))


@pytest.mark.parametrize("field", ["target", "drafter", "device", "libraries"])
def test_a_profile_of_something_else_is_not_used_and_says_why(cache, demo, field):
    profile = demo_profile(demo)
    foreign = replace(profile, identity={**profile.identity, field: "something else"})
    foreign.save(cache / "foreign.json")
    with pytest.warns(UserWarning, match=f"profile is not used.*{field} is .*something else"):
        decoder = treespec.load(profile=cache / "foreign.json")
    assert not plans(decoder)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"format": "treespec.profile"}', '{"format": "other", "version": 1}'],
)
@pytest.mark.parametrize("place", ["kept", "named"])
def test_a_corrupt_profile_never_stops_generation(cache, demo, content, place):
    identity = identity_of(demo.target, demo.drafter)
    path = profile_path(identity) if place == "kept" else cache / "mine.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.warns(UserWarning, match="profile is not used"):
        decoder = treespec.load(profile="auto" if place == "kept" else path)
    assert decoder.generate("def f(", max_new_tokens=3).token_ids


@pytest.mark.parametrize(
    "change",
    [
        {"target": []},
        {"target": [{"context": 0, "batch": 1, "seconds": {"1": -1.0}}]},
        {"target": [{"context": 0, "batch": 1, "seconds": {"one": 1.0}}]},
        {"draft_call": None},
        {"acceptance": {}},
        {"acceptance": {"deterministic": [[0.9, 0.9]]}},
        {"plain_round": "fast"},
        {"identity": []},
    ],
)
def test_figures_that_no_measurement_gives_are_refused_by_name(tmp_path, change):
    path = tmp_path / "profile.json"
    profile_of().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"profile\.json must"):
        Profile.load(path)


def test_a_file_that_is_named_must_be_there(cache):
    with pytest.raises(OSError, match=r"nowhere\.json"):
        treespec.load(profile=cache / "nowhere.json")


def test_models_are_told_apart_by_their_weights(demo):
    first = identity_of(demo.target, demo.drafter)
    assert first == identity_of(demo.target, demo.drafter)
    weights = next(demo.drafter.model.parameters())
    with torch.no_grad():
        weights[0, 0] += 1
        other = identity_of(demo.target, demo.drafter)
        weights[0, 0] -= 1
    assert other["drafter"] != first["drafter"] and other["target"] == first["target"]


def test_a_measured_profile_holds_for_its_pair_and_can_be_used(cache, demo):
    profile = tuning.measure_profile(
        demo, ["def main():"], rows=(1, 4, 16), contexts=(16, 64), batches=(1, 2),
        repetitions=1, max_depth=2, max_new_tokens=24, temperature=0.5,
    )  # fmt: skip
    assert [(c.context, c.batch) for c in profile.target] == [(16, 1), (16, 2), (64, 1), (64, 2)]
    assert set(profile.target[1].seconds) == {2, 8, 32}, "rows of all sequences"
    assert profile.most_rows == 16 and profile.drafts_by_level
    assert set(profile.acceptance) == {"deterministic", "without_replacement"}
    profile.save(profile_path(profile.identity))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder = treespec.load()
    assert plans(decoder)
    expected = demo.generate("def f(", max_new_tokens=20).token_ids
    assert decoder.generate("def f(", max_new_tokens=20).token_ids == expected


@pytest.mark.parametrize("drafter", ["suffix", "demo:treeflash", "demo:eagle3", "demo:medusa"])
def test_every_kind_of_drafter_can_be_profiled(drafter):
    decoder = treespec.load(drafter=drafter, builder="trie" if drafter == "suffix" else "opt_tree")
    profile = tuning.measure_profile(
        decoder, ["def main():"], rows=(1, 8), contexts=(32,), repetitions=1, max_depth=1,
        max_new_tokens=16,
    )  # fmt: skip
    assert profile.drafts_by_level == (drafter == "demo:eagle3")
    assert min(profile.draft_call.values()) > 0


def test_an_exported_pair_is_profiled_up_to_the_rows_it_was_made_for(tmp_path_factory, cache, demo):
    folder = exported("demo", tmp_path_factory)
    pair = treespec.load(folder, folder / "drafter")
    profile = tuning.measure_profile(
        pair, ["def main():"], rows=(4, 100_000), contexts=(32,), repetitions=1, max_depth=1,
        max_new_tokens=16,
    )  # fmt: skip
    assert set(profile.target[0].seconds) == {1, 4} and pair.target.max_nodes < 100_000
    profile.save(profile_path(profile.identity))
    decoder = treespec.load(folder, folder / "drafter")
    assert plans(decoder) and decoder.planner.max_nodes == 3
    expected = demo.generate("def f(", max_new_tokens=20).token_ids
    assert decoder.generate("def f(", max_new_tokens=20).token_ids == expected
