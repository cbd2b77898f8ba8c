# SPDX-License-Identifier: Apache-2.0
"""Logits to laws as Hugging Face's own processors do it; drawing by race and by inverse CDF."""

import itertools

import numpy as np
import pytest
from support import chain_tree

import treespec
from treespec import _core, testing
from treespec.reference import sampling as oracle
from treespec.testing import chi_square


def core_weights(logits, *, history=(), prompt_length=0, path=(), allowed=None, **params):
    """Weights of one row by the core; `allowed` is a list of booleans here."""
    if allowed is not None:
        allowed = pack(allowed)
    return np.asarray(
        _core.process_logits(
            logits,
            _core.RowParams(**params),
            np.array(history, np.int32),
            prompt_length,
            np.array(path, np.int32),
            allowed,
        )
    )


def pack(allowed):
    words = np.zeros((len(allowed) + 31) // 32, np.uint32)
    for token in np.flatnonzero(allowed):
        words[token // 32] |= np.uint32(1 << (int(token) % 32))
    return words


def rows(rng, count=12, vocab_size=50):
    """Random rows: smooth, with many ties, very peaked, with impossible tokens."""
    for i in range(count):
        row = rng.normal(size=vocab_size) * 3
        if i % 4 == 1:
            row = np.round(row)
        if i % 4 == 2:
            row *= 12
        if i % 4 == 3:
            row[rng.random(vocab_size) < 0.4] = -np.inf
        yield row.astype(np.float32)


PARAMS = [
    {},
    {"temperature": 0.7},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"min_p": 0.1},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 0.0},
    {"logit_bias": {3: 2.5, 7: -4.0}},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.6, "frequency_penalty": 0.4},
    {"repetition_penalty": 0.8, "presence_penalty": -0.5, "temperature": 1.7, "top_p": 0.9},
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_a_processed_row_equals_the_oracle(rng, params, dtype):
    for row in rows(rng):
        row = np.maximum(row, np.finfo(np.float16).min).astype(dtype)
        history = rng.integers(0, 50, size=12)
        path = rng.integers(0, 50, size=3)
        allowed = rng.random(50) < 0.8
        context = {"history": list(history), "prompt_length": 5, "path": list(path)}
        for mask in (None, allowed):
            core = core_weights(row, **context, allowed=mask, **params)
            expected = oracle.process_logits(row, **context, allowed=mask, **params)
            assert_weights(core, expected, narrow=dtype != np.float64)


def assert_weights(core, expected, narrow=True):
    """Narrow rows are weighed in float32: 2e-5, and nothing below 2^-126 of the likeliest."""
    least = 2.0**-125 if narrow else 0.0
    np.testing.assert_array_equal((core > 0)[expected > least], True)
    np.testing.assert_array_equal((core > 0)[expected == 0], False)
    np.testing.assert_allclose(core, expected, rtol=2e-5 if narrow else 1e-12, atol=least)


def hf_law(row, processors, ids=(0,)):
    """The law after Hugging Face's processors; softmax in float64, float32's would underflow."""
    import torch

    scores = torch.from_numpy(row.copy())[None]
    for processor in processors:
        scores = processor(torch.tensor([list(ids)]), scores)
    assert scores.dtype == torch.float32
    return torch.softmax(scores[0].double(), dim=-1).numpy()


def assert_law(weights, expected):
    assert_weights(weights / weights.max(), expected / expected.max())


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.5])
def test_temperature_equals_hugging_face(rng, temperature):
    import transformers as hf

    for row in rows(rng):
        row = np.maximum(row, row.max() - 600 * temperature)  # exp in float64 ends at -708
        expected = hf_law(
            row, [hf.TemperatureLogitsWarper(temperature)] if temperature != 1 else []
        )
        assert_law(core_weights(row, temperature=temperature), expected)


@pytest.mark.parametrize("top_k", [1, 2, 5, 49, 50, 80])
def test_top_k_equals_hugging_face_and_keeps_all_ties(rng, top_k):
    import transformers as hf

    more_than_k = 0
    for row in rows(rng, count=24):
        row = np.maximum(row, -30)
        weights = core_weights(row, top_k=top_k)
        assert_law(weights, hf_law(row, [hf.TopKLogitsWarper(top_k)]))
        more_than_k += np.count_nonzero(weights) > top_k
    assert more_than_k > 0 or top_k > 48


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.8, 0.95, 0.999])
def test_top_p_equals_hugging_face(rng, top_p):
    import transformers as hf

    for _ in range(20):
        row = (rng.normal(size=50) * rng.choice([0.5, 3.0])).astype(np.float32)
        assert_law(core_weights(row, top_p=top_p), hf_law(row, [hf.TopPLogitsWarper(top_p)]))


def test_ties_at_the_edge_of_the_nucleus_are_broken_by_token_id():
    row = np.log(np.array([0.1, 0.2, 0.2, 0.3, 0.2], np.float32))
    np.testing.assert_array_equal(np.flatnonzero(core_weights(row, top_p=0.45)), [1, 3])
    np.testing.assert_array_equal(np.flatnonzero(core_weights(row, top_p=0.65)), [1, 2, 3])
    flat = np.zeros(8, np.float32)
    np.testing.assert_array_equal(np.flatnonzero(core_weights(flat, top_p=0.5)), range(4))


@pytest.mark.parametrize("min_p", [0.01, 0.1, 0.5, 0.99])
def test_min_p_equals_hugging_face(rng, min_p):
    import transformers as hf

    for row in rows(rng):
        row = np.maximum(row, -30)
        assert_law(core_weights(row, min_p=min_p), hf_law(row, [hf.MinPLogitsWarper(min_p)]))


@pytest.mark.parametrize("penalty", [0.7, 1.2, 2.0])
def test_repetition_penalty_equals_hugging_face(rng, penalty):
    import transformers as hf

    for row in rows(rng):
        row = np.maximum(row, -20)
        ids = rng.integers(0, 50, size=15)
        expected = hf_law(row, [hf.RepetitionPenaltyLogitsProcessor(penalty)], ids)
        for split in (0, 6, 15):
            weights = core_weights(
                row,
                repetition_penalty=penalty,
                history=ids[:split],
                prompt_length=min(split, 4),
                path=ids[split:],
            )
            assert_law(weights, expected)


def test_logit_bias_equals_hugging_face(rng):
    import transformers as hf

    bias = {3: 2.5, 7: -4.0, 49: 0.125}
    processor = hf.SequenceBiasLogitsProcessor({(t,): b for t, b in bias.items()})
    for row in rows(rng):
        row = np.maximum(row, -30)
        assert_law(core_weights(row, logit_bias=bias), hf_law(row, [processor]))


def test_the_whole_pipeline_equals_hugging_face(rng):
    import transformers as hf

    for _ in range(30):
        row = (rng.normal(size=50) * 3).astype(np.float32)
        ids = rng.integers(0, 50, size=10)
        processors = [
            hf.SequenceBiasLogitsProcessor({(2,): 1.5}),
            hf.RepetitionPenaltyLogitsProcessor(1.3),
            hf.TemperatureLogitsWarper(0.8),
            hf.TopKLogitsWarper(20),
            hf.TopPLogitsWarper(0.9),
            hf.MinPLogitsWarper(0.03),
        ]
        weights = core_weights(
            row,
            history=ids,
            logit_bias={2: 1.5},
            repetition_penalty=1.3,
            temperature=0.8,
            top_k=20,
            top_p=0.9,
            min_p=0.03,
        )
        assert_law(weights, hf_law(row, processors, ids))


def test_presence_and_frequency_count_what_came_after_the_prompt():
    row = np.zeros(6, np.float32)
    weights = core_weights(
        row,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        history=[0, 0, 1, 1, 2],
        prompt_length=3,
        path=[2, 3],
    )
    # 0: prompt only. 1: once after the prompt. 2: once in the output, once on the path. 3: path.
    np.testing.assert_allclose(
        np.log(weights / weights[0]), [0, -0.75, -1.0, -0.75, 0, 0], atol=1e-6
    )


def test_temperature_zero_is_the_lowest_arg_max():
    row = np.array([1, 5, 2, 5], np.float32)
    np.testing.assert_array_equal(core_weights(row, temperature=0.0), [0, 1, 0, 0])
    np.testing.assert_array_equal(
        core_weights(row, temperature=0.0, logit_bias={2: 9.0}), [0, 0, 1, 0]
    )


def test_disallowed_tokens_have_weight_zero(rng):
    row = rng.normal(size=70).astype(np.float32)
    allowed = rng.random(70) < 0.3
    allowed[65] = True
    weights = core_weights(row, allowed=allowed, top_k=0)
    np.testing.assert_array_equal(weights > 0, allowed)


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}], ids=str
)
@pytest.mark.parametrize("bad", ["nan", "+inf", "nothing possible", "nothing allowed"])
def test_a_broken_row_is_refused(bad, params):
    row = np.zeros(5, np.float32)
    allowed = None
    if bad == "nan":
        row[3] = np.nan
    elif bad == "+inf":
        row[3] = np.inf
    elif bad == "nothing possible":
        row[:] = -np.inf
    else:
        allowed = [False] * 5
    with pytest.raises(ValueError, match="target_logits: row"):
        core_weights(row, allowed=allowed, **params)


# ------------------------------------------------------------------ penalties on the path


def logits_after(tokens, vocab_size):
    return np.random.default_rng([3, *tokens]).normal(size=vocab_size).astype(np.float32) * 2


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.8},
        {"presence_penalty": 1.5, "frequency_penalty": 0.7},
        {"temperature": 0.0, "repetition_penalty": 3.0, "frequency_penalty": 1.0},
        {"temperature": 1.3, "top_p": 0.8, "frequency_penalty": 0.9},
    ],
    ids=str,
)
def test_penalties_on_a_trees_paths_equal_sequential_decoding(params):
    vocab_size, prompt = 6, [4, 1, 1]
    greedy = params.get("temperature") == 0.0
    accepted = 0
    for seed in range(15):
        # Plain decoding: one token at a time, the whole text as history.
        text = list(prompt)
        for _ in range(5):
            row = logits_after(text, vocab_size)
            weights = oracle.process_logits(row, history=text, prompt_length=3, **params)
            if greedy:
                text.append(int(np.argmax(weights)))
            else:
                text.append(oracle.sample_at_position(weights, seed, 7, len(text)))
        # The same text through a tree that has the right path and wrong ones.
        tree = testing.random_tree(
            np.random.default_rng(seed), num_nodes=12, vocab_size=vocab_size, max_children=3
        )
        right = chain_tree(text[3:7])
        for candidate in (tree, right):
            target = np.stack(
                [
                    logits_after(prompt + candidate.path(n), vocab_size)
                    for n in range(candidate.num_nodes)
                ]
            )
            verdict = treespec.verify_logits(
                testing.core_tree(candidate),
                target,
                sampling=treespec.SamplingParams(**params),
                verifier="greedy" if greedy else "target_only",
                prefix_ids=np.array(prompt, np.int32),
                prompt_length=3,
                seed=seed,
                sequence_id=7,
                position=2,
            )
            emitted = [int(t) for t in verdict.tokens]
            assert emitted == text[3 : 3 + len(emitted)]
            accepted += verdict.num_accepted
            if candidate is right:
                assert len(emitted) == 5
    assert accepted > 60


# ------------------------------------------------------------------ drawing


def test_fixed_sum_and_inverse_cdf_equal_the_oracle(rng):
    for _ in range(100):
        values = rng.dirichlet(np.ones(int(rng.integers(1, 40)))) * rng.choice([1.0, 1e-9, 3.0])
        values[rng.random(len(values)) < 0.3] = 0.0
        assert _core.fixed_sum(values) == oracle.fixed_sum(values)
        if oracle.fixed_sum(values) == 0:
            continue
        for u in (0.0, 1 - 2.0**-53, float(rng.random()), 0.5):
            token = _core.inverse_cdf(values, u)
            assert token == oracle.inverse_cdf(values, u)
            assert values[token] > 0


def test_inverse_cdf_changes_exactly_at_the_cumulative_weights():
    values = np.array([0.25, 0.0, 0.5, 0.25])
    step = 2.0**-53
    for u, token in [
        (0, 0),
        (0.25 - step, 0),
        (0.25, 2),
        (0.75 - step, 2),
        (0.75, 3),
        (1 - step, 3),
    ]:
        assert _core.inverse_cdf(values, u) == token
    assert _core.fixed_sum(values) == 2**60


@pytest.mark.parametrize("values", [[0.0, 0.0], [2.0**-62, 0.0]])
def test_inverse_cdf_refuses_an_empty_row(values):
    with pytest.raises(ValueError, match="inverse_cdf"):
        _core.inverse_cdf(np.array(values), 0.5)


def test_sample_at_position_equals_the_oracle(rng):
    for trial in range(150):
        weights = np.exp(rng.normal(size=int(rng.integers(1, 700))) * rng.choice([1.0, 20.0]))
        weights[rng.random(len(weights)) < rng.choice([0.0, 0.5, 0.99])] = 0.0
        weights[int(rng.integers(len(weights)))] = 1.0
        key = (int(rng.integers(2**63)), trial, int(rng.integers(2**32)))
        assert _core.sample_at_position(weights, *key) == oracle.sample_at_position(weights, *key)


def test_the_winner_of_the_race_is_distributed_as_the_weights():
    law = np.array([0.5, 0.3, 0.15, 0.04, 0.01, 0.0])
    weights = law * 37.0
    counts = np.zeros(6)
    for position in range(40_000):
        counts[_core.sample_at_position(weights, 5, 0, position)] += 1
    statistic, bound = chi_square(counts, law)
    assert statistic < bound


def test_the_race_needs_no_normaliser_and_sees_each_token_alone():
    weights = np.random.default_rng(0).random(50)
    for position in range(50):
        winner = _core.sample_at_position(weights, 1, 2, position)
        assert _core.sample_at_position(weights * 8.0, 1, 2, position) == winner
        fewer = weights.copy()
        fewer[[t for t in range(50) if t != winner and t % 2]] = 0.0
        assert _core.sample_at_position(fewer, 1, 2, position) == winner


def test_a_rare_token_does_not_win_by_a_coarse_uniform():
    # The upper 32 bits of this counter are ones: a 32-bit uniform would be 1, its arrival 0, and
    # a token of probability 1e-12 would win. 53 bits give it its due of 4e-11 / 1e-12.
    position, token = 1328909, 2858
    assert _core.random53(0, 0, position, 4, 0, token) >> 21 == 2**32 - 1
    weights = np.zeros(token + 1)
    rival = token % 256  # of the same lane: the two meet in the last heat
    weights[rival], weights[token] = 1.0, 1e-12
    assert oracle.sample_at_position(weights, 0, 0, position) == rival
    assert _core.sample_at_position(weights, 0, 0, position) == rival
    weights[token] = 1e-9
    assert _core.sample_at_position(weights, 0, 0, position) == token


def test_the_race_refuses_a_row_without_weight():
    with pytest.raises(ValueError, match="sample_at_position: weights"):
        _core.sample_at_position(np.zeros(4), 0, 0, 0)


@pytest.mark.parametrize("name", ["target_only", "recursive_rejection"])
def test_a_flat_row_of_a_large_vocabulary_does_not_overflow(name):
    # 150,000 logits of 0 have weights 1 each: their mass is far above what a 2^60 sum can hold.
    vocab_size = 150_000
    tree = treespec.TokenTree(token=[0], parent=[-1])
    if name == "recursive_rejection":
        tree = treespec.TokenTree(token=[0], parent=[-1], proposal="iid", draws=[[]])
    tokens = [
        treespec.verify_logits(
            tree, np.zeros((1, vocab_size), np.float32), verifier=name, seed=seed
        ).next_token
        for seed in range(12)
    ]
    assert len(set(tokens)) == 12
    assert max(tokens) > vocab_size // 2 > min(tokens)


def test_random_law_kinds_are_what_they_say():
    rng = np.random.default_rng(1)
    for kind, vocab_size in itertools.product(testing.LAW_KINDS, (1, 2, 5, 30)):
        law = testing.random_law(rng, vocab_size, kind)
        assert law.shape == (vocab_size,)
        assert law.sum() == pytest.approx(1.0)
        if kind == "one_hot":
            assert np.count_nonzero(law) == 1
        if kind == "dense":
            assert np.all(law > 0)
    with pytest.raises(ValueError, match="kind must be one of"):
        testing.random_law(rng, 3, "odd")
