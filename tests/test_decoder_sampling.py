# SPDX-License-Identifier: Apache-2.0
"""The decoder above temperature 0: the text of plain decoding, and the target's law."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from decoder_models import (
    BUILD_IDS,
    BUILDS,
    TableDrafter,
    TableTarget,
    draft_model,
    drafter_object,
    pair_id,
    pairs,
    pairs_by_kind,
    reads,
    target_model,
)
from tiny_drafters import TINY_DRAFTERS

import treespec
from treespec import demo, testing
from treespec.decoder import SpeculativeDecoder
from treespec.drafts import DRAFTERS, DrafterContext

PROMPTS = [[5, 6, 7, 8, 5, 6, 7, 8, 5, 6], [40, 41, 42], [9] * 7]
SETTINGS = {
    "low": {"temperature": 0.3, "top_k": 12, "repetition_penalty": 1.3, "presence_penalty": 0.4},
    "middle": {"temperature": 0.7, "top_p": 0.9, "min_p": 0.02, "frequency_penalty": 0.6},
    "all": {
        "temperature": 1.0,
        "top_k": 40,
        "top_p": 0.97,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {3: -4.0, 50: 1.5},
    },
}
COMMON = {"max_new_tokens": 16, "seed": [11, 12, 13]}

# One small vocabulary and a seed for every joint law below.
LAW_VOCAB = 5
LAW_RUNS = 1500
LAW_PROMPT = [1, 4, 3]


def token_ids(results):
    return [result.token_ids for result in results]


# --- target_only: the text of plain decoding --------------------------------------------------


@pytest.fixture(scope="module")
def plain_texts():
    decoder = treespec.load(target_model("llama"), None)
    return {
        name: token_ids(decoder.generate(PROMPTS, **COMMON, **settings))
        for name, settings in SETTINGS.items()
    }


@pytest.mark.parametrize("pair", pairs_by_kind(), ids=pair_id)
def test_target_only_gives_the_text_of_plain_decoding(pair, plain_texts):
    builder, mode, drafter = pair
    decoder = treespec.load(
        target_model("llama"),
        drafter_object(drafter),
        builder=builder,
        builder_options=mode,
        verifier="target_only",
    )
    for name, settings in SETTINGS.items():
        results = decoder.generate(PROMPTS, **COMMON, **settings)
        assert token_ids(results) == plain_texts[name], name


def test_settings_seeds_and_prompts_matter(plain_texts):
    texts = [tuple(ids) for results in plain_texts.values() for ids in results]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", ["qwen3_window", "gemma3", "gpt2"])
def test_other_architectures_sample_the_text_of_plain_decoding(name):
    for settings in SETTINGS.values():
        plain = treespec.load(target_model(name), None).generate(PROMPTS, **COMMON, **settings)
        for builder in ("opt_tree", "kary"):
            decoder = treespec.load(target_model(name), draft_model(name), builder=builder)
            assert token_ids(decoder.generate(PROMPTS, **COMMON, **settings)) == token_ids(plain)


def test_every_drafter_is_accepted_somewhere():
    """Without this, the equalities above could hold by never accepting anything."""
    for builder, mode, drafter in pairs():
        if drafter == "demo" or drafter in TINY_DRAFTERS:
            continue  # a stranger to the tiny target, or of random weights
        decoder = treespec.load(
            target_model("llama"),
            drafter_object(drafter),
            builder=builder,
            builder_options=mode,
            verifier="target_only",
        )
        results = decoder.generate(PROMPTS, **COMMON, temperature=0.3, ignore_eos=True)
        assert sum(result.stats.accepted for result in results) > 0, (builder, mode, drafter)


def test_the_demo_pair_samples_the_text_of_plain_decoding(record_property):
    """In float32 the forwards of trees and of single tokens round differently: counted."""
    plain = treespec.load("demo", None, device="cpu")
    model, tokenizer = plain.target.model, plain.tokenizer
    context = DrafterContext(plain.target.vocab_size, tokenizer, "cpu", "auto")
    texts = [excerpt["text"] for excerpt in demo.held_out()]
    prompts = [tokenizer(text)["input_ids"][:24] for text in (texts * 4)[:4]]
    options = {
        "max_new_tokens": 48,
        "seed": list(range(4)),
        "ignore_eos": True,
        "top_p": 0.95,
        "repetition_penalty": 1.05,
    }
    diverged, differing, sequences, total = 0, 0, 0, 0
    expected = {t: plain.generate(prompts, temperature=t, **options) for t in (0.3, 0.7, 1.0)}
    for name, builder in (("demo", "opt_tree"), ("demo", "kary"), ("suffix", "opt_tree")):
        drafter = DRAFTERS[name].make(context, {})
        decoder = treespec.load(model, drafter, tokenizer=tokenizer, builder=builder)
        for temperature, plain_results in expected.items():
            results = decoder.generate(prompts, temperature=temperature, **options)
            for ours, theirs in zip(token_ids(results), token_ids(plain_results), strict=True):
                differing += sum(a != b for a, b in zip(ours, theirs, strict=True))
                diverged += ours != theirs
                sequences += 1
                total += len(ours)
    print(f"{diverged} of {sequences} sequences diverged, {differing} of {total} tokens differ")
    record_property("diverged_sequences", f"{diverged} of {sequences}")
    record_property("differing_tokens", f"{differing} of {total}")
    assert diverged <= max(1, sequences // 100)


# --- the law ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def law_models():
    """Target and drafter over five tokens, far enough apart that much is rejected."""
    return (
        target_model("llama", vocab_size=LAW_VOCAB),
        draft_model("llama", vocab_size=LAW_VOCAB, seed=5),
    )


def processed(model, texts, temperature, top_k):
    """``[n, V]`` by the model's own forward and Hugging Face's processors."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper

    with torch.inference_mode():
        logits = model(torch.tensor(texts), use_cache=False).logits[:, -1]
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    return torch.softmax(scores.double(), dim=-1).numpy()


def joint_law(model, length, temperature, top_k=0):
    """``[V] * length`` by enumeration of every continuation."""
    law = np.ones(())
    for count in range(length):
        texts = [[*LAW_PROMPT, *path] for path in itertools.product(range(LAW_VOCAB), repeat=count)]
        rows = processed(model, texts, temperature, top_k)
        law = law[..., None] * rows.reshape([LAW_VOCAB] * (count + 1))
    return law


def joint_counts(decoder, length, max_new_tokens, **options):
    counts = np.zeros([LAW_VOCAB] * length, dtype=np.int64)
    accepted = 0
    for first in range(0, LAW_RUNS, 500):
        seeds = list(range(first, first + 500))
        for result in decoder.generate(
            [LAW_PROMPT] * 500,
            seed=seeds,
            max_new_tokens=max_new_tokens,
            ignore_eos=True,
            **options,
        ):
            counts[tuple(result.token_ids[:length])] += 1
            accepted += result.stats.accepted
    return counts, accepted


@pytest.mark.parametrize("top_k", [0, 3])
def test_first_tokens_follow_the_models_softmax(law_models, top_k):
    target, _ = law_models
    counts, _ = joint_counts(treespec.load(target, None), 1, 1, temperature=0.8, top_k=top_k)
    statistic, bound = testing.chi_square(counts, joint_law(target, 1, 0.8, top_k))
    assert statistic < bound


LAW_CASES = [
    ("token_level", "chain", {"proposal": "iid"}),
    ("recursive_rejection", "chain", {"proposal": "iid"}),
    ("recursive_rejection", "chain", {"proposal": "without_replacement"}),
    ("recursive_rejection", "kary", {"proposal": "iid", "expansion": [3, 2]}),
    ("recursive_rejection", "kary", {"proposal": "without_replacement", "expansion": [3, 2]}),
    ("target_only", "kary", {"proposal": "iid", "expansion": [3, 2]}),
    ("target_only", "opt_tree", {}),
]
LAW_IDS = ["-".join([v, b, *map(str, list(o.values())[:1])]) for v, b, o in LAW_CASES]


@pytest.mark.parametrize(("verifier", "builder", "mode"), LAW_CASES, ids=LAW_IDS)
def test_three_tokens_follow_the_models_joint_law(law_models, verifier, builder, mode):
    target, draft = law_models
    decoder = treespec.load(
        target, draft, verifier=verifier, builder=builder, builder_options=mode, node_budget=9
    )
    counts, accepted = joint_counts(decoder, 3, 4, temperature=0.9)
    statistic, bound = testing.chi_square(counts, joint_law(target, 3, 0.9))
    assert statistic < bound
    assert accepted > LAW_RUNS / 3


@pytest.mark.parametrize("proposal", ["iid", "without_replacement"])
def test_truncated_draws_follow_the_truncated_joint_law(law_models, proposal):
    target, draft = law_models
    decoder = treespec.load(
        target, draft, builder="kary", builder_options={"proposal": proposal, "expansion": [3, 2]}
    )
    counts, _ = joint_counts(decoder, 3, 4, temperature=1.2, top_k=3)
    statistic, bound = testing.chi_square(counts, joint_law(target, 3, 1.2, 3))
    assert statistic < bound


@pytest.mark.parametrize("draft_temperature", [0.5, 2.0])
def test_the_law_does_not_depend_on_the_drafters_temperature(law_models, draft_temperature):
    target, draft = law_models
    decoder = treespec.load(
        target,
        draft,
        builder="kary",
        builder_options={"proposal": "without_replacement", "expansion": [3, 2]},
        draft_temperature=draft_temperature,
    )
    counts, _ = joint_counts(decoder, 3, 4, temperature=0.9)
    statistic, bound = testing.chi_square(counts, joint_law(target, 3, 0.9))
    assert statistic < bound


def test_the_chi_square_would_see_the_drafters_law(law_models):
    target, draft = law_models
    counts, _ = joint_counts(treespec.load(draft, None), 3, 3, temperature=0.9)
    statistic, bound = testing.chi_square(counts, joint_law(target, 3, 0.9))
    assert statistic > bound


# --- what the caller restricts ----------------------------------------------------------------


def even_after_odd(text):
    """A grammar: parity alternates, and a token is never that of two places before."""
    allowed = (np.arange(12) + text[-1]) % 2 == 1
    if len(text) > 1:
        allowed[text[-2]] = False
    return allowed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("builder", "mode"), BUILDS, ids=BUILD_IDS)
def test_a_grammar_is_never_broken(builder, mode, temperature):
    target = TableTarget(12, 4)
    drafter = TableDrafter(target, 5, 0.5)
    if not reads(builder, drafter):
        drafter = drafter_object("ngram")
    options = {
        "max_new_tokens": 40,
        "temperature": temperature,
        "seed": [1, 2, 3],
        "allowed_tokens": even_after_odd,
    }
    prompts = [[1, 2], [3], [5, 6, 5]]
    plain = token_ids(SpeculativeDecoder(target, None).generate(prompts, **options))
    verifiers = ["target_only"] if temperature else ["greedy", "target_only"]
    if mode.get("proposal", "deterministic") != "deterministic":
        verifiers.append("recursive_rejection")
    for verifier in verifiers:
        decoder = SpeculativeDecoder(
            target, drafter, builder=builder, builder_options=mode, verifier=verifier
        )
        results = decoder.generate(prompts, **options)
        for prompt, ids in zip(prompts, token_ids(results), strict=True):
            text = [*prompt, *ids]
            for place in range(len(prompt), len(text)):
                assert even_after_odd(text[:place])[text[place]]
        if verifier != "recursive_rejection" or not temperature:
            assert token_ids(results) == plain
        assert sum(result.stats.accepted for result in results) > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("builder", "mode"), BUILDS, ids=BUILD_IDS)
def test_a_banned_token_is_never_emitted(builder, mode, temperature):
    target = TableTarget(12, 4)
    drafter = TableDrafter(target, 5, 0.5)
    if not reads(builder, drafter):
        drafter = drafter_object("suffix")
    plain = SpeculativeDecoder(target, None)
    free = plain.generate([1, 2], max_new_tokens=40, temperature=temperature)
    banned = sorted(set(free.token_ids))[:3]
    options = {
        "max_new_tokens": 40,
        "temperature": temperature,
        "logit_bias": dict.fromkeys(banned, -1e4),
    }
    expected = plain.generate([1, 2], **options).token_ids
    assert not set(expected) & set(banned)
    decoder = SpeculativeDecoder(
        target, drafter, builder=builder, builder_options=mode, verifier="target_only"
    )
    assert decoder.generate([1, 2], **options).token_ids == expected
    if mode.get("proposal", "deterministic") != "deterministic":
        decoder = SpeculativeDecoder(target, drafter, builder=builder, builder_options=mode)
        assert not set(decoder.generate([1, 2], **options).token_ids) & set(banned)


@pytest.mark.parametrize(("builder", "mode"), BUILDS, ids=BUILD_IDS)
@pytest.mark.parametrize("drafter", ["table", "ngram", "suffix"])
def test_batch_mates_change_nothing_whatever_the_verifier(builder, mode, drafter):
    target = TableTarget(5, 3)
    own = TableDrafter(target) if drafter == "table" else drafter_object(drafter)
    if not reads(builder, own):
        own = drafter_object("ngram")
    decoder = SpeculativeDecoder(target, own, builder=builder, builder_options=mode, node_budget=12)
    prompts = [[1, 2, 1, 2, 1, 2, 1, 2, 1], [3, 3, 3, 3, 3, 3], [1]] * 10
    options = {"max_new_tokens": 12, "temperature": 1.0}
    batch = decoder.generate(prompts, seed=list(range(30)), **options)
    for seed, (prompt, result) in enumerate(zip(prompts, batch, strict=True)):
        single = decoder.generate(prompt, seed=seed, **options)
        assert single.token_ids == result.token_ids
        assert single.stats.drafted_nodes == result.stats.drafted_nodes
