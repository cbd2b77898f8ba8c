# SPDX-License-Identifier: Apache-2.0
"""The decoder when something is wrong: refusals before any work, failures in mid-round."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoder_models import (
    ByteTokenizer,
    TableDrafter,
    TableTarget,
    draft_model,
    drafter_object,
    table_pair,
    target_model,
)
from tiny_models import VOCAB_SIZE, tiny_model

import treespec
from treespec import demo
from treespec.decoder import SpeculativeDecoder
from treespec.drafts.autoregressive import AutoregressiveDrafter

PROMPT = [3, 4, 5, 3, 4]
OPTIONS = {"max_new_tokens": 20, "temperature": 0.9, "seed": 4}


# --- refused before any work ------------------------------------------------------------------


class Untouchable(TableTarget):
    """A target that must not be asked for anything."""

    max_context = 32

    def open(self, capacity):
        raise AssertionError("work has started")


def untouchable(**options):
    target = Untouchable(12)
    return SpeculativeDecoder(target, None, tokenizer=None, **options)


REFUSED = {
    "no tokens": ([], {}, "at least one token"),
    "an empty array": (np.empty(0, np.int64), {}, "at least one token"),
    "an id past the vocabulary": ([1, 12], {}, r"must be in \[0, 12\), got 12"),
    "a negative id": ([-1], {}, r"must be in \[0"),
    "an id that wraps in 32 bits": ([2**32 + 3], {}, r"must be in \[0"),
    "floats": (np.array([1.0, 2.0]), {}, "text or a list of token ids"),
    "text without a tokenizer": ("a", {}, "tokenizer"),
    "one empty prompt of a batch": ([[1], []], {}, "at least one token"),
    "more than the context": ([1] * 13, {"max_new_tokens": 20}, r"context of 32 .*got 13 \+ 20"),
    "a stop string without a tokenizer": ([1], {"stop": "a"}, "stop strings need a tokenizer"),
    "an empty stop string": ([1], {"stop": [""]}, "stop must be non-empty"),
    "a negative temperature": ([1], {"temperature": -0.5}, "temperature"),
    "a nucleus of nothing": ([1], {"top_p": 0.0}, "top_p"),
    "a negative top_k": ([1], {"top_k": -1}, "top_k"),
    "min_p of one": ([1], {"min_p": 1.0}, "min_p"),
    "a repetition penalty of zero": ([1], {"repetition_penalty": 0.0}, "repetition_penalty"),
    "NaN": ([1], {"temperature": float("nan")}, "temperature"),
    "a negative length": ([1], {"max_new_tokens": -1}, "max_new_tokens must be >= 0, got -1"),
    "a negative seed": ([1], {"seed": -1}, "seed must be in"),
    "a seed past 64 bits": ([1], {"seed": 2**64}, "seed must be in"),
    "a sequence id past 32 bits": ([1], {"sequence_id": 2**32}, "sequence_id must be in"),
}


@pytest.mark.parametrize(("prompt", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_request_is_refused_before_any_work(prompt, options, message):
    options = {"max_new_tokens": 4, **options}
    with pytest.raises(ValueError, match=message):
        untouchable().generate(prompt, **options)
    with pytest.raises(ValueError, match="stream: |" + message):
        untouchable().stream(prompt, **options)  # before the first piece is asked for


def test_an_unknown_option_is_refused():
    for call in (untouchable().generate, untouchable().stream):
        with pytest.raises(TypeError, match="max_tokens"):
            call([1], max_tokens=3)


def test_the_drafters_context_counts_too():
    drafter = AutoregressiveDrafter(draft_model("gpt2"), VOCAB_SIZE)
    limit = draft_model("gpt2").config.n_positions
    assert drafter.max_context == limit
    long = tiny_model("llama", torch.float64, max_position_embeddings=4 * limit)
    decoder = treespec.load(long, drafter)
    with pytest.raises(ValueError, match=rf"drafter's context of {limit} tokens"):
        decoder.generate([3] * (limit - 5), max_new_tokens=6)
    assert len(decoder.generate([3] * (limit - 5), max_new_tokens=5, ignore_eos=True).token_ids)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_text_may_fill_the_context_to_the_last_position(name):
    model = target_model(name)
    plain, decoder = (treespec.load(model, d) for d in (None, drafter_object("tiny")))
    limit = plain.target.max_context
    prompt = [3 + n % 50 for n in range(limit - 8)]
    options = {"max_new_tokens": 8, "ignore_eos": True}
    assert (
        decoder.generate(prompt, **options).token_ids == plain.generate(prompt, **options).token_ids
    )
    with pytest.raises(ValueError, match=rf"target's context of {limit} tokens"):
        decoder.generate([*prompt, 3], **options)


LOADS = {
    "an unknown builder": ({"builder": "bush"}, r"bush.*(chain|opt_tree)|(chain|opt_tree).*bush"),
    "an unknown verifier": ({"verifier": "coin"}, r"coin.*greedy|greedy.*coin"),
    "an unknown option": ({"builder_options": {"girth": 3}}, r"girth"),
    "an option of another builder": (
        {"builder": "chain", "builder_options": {"threshold": 1}},
        "threshold",
    ),
    "a negative budget": ({"node_budget": -1}, "node_budget must be >= 0, got -1"),
    "an expansion of endless size": (
        {"builder": "kary", "builder_options": {"expansion": [2**31 - 1] * 3}},
        rf"node_budget must be below 2\*\*31, got {sum((2**31 - 1) ** d for d in (1, 2, 3))}",
    ),
    "a negative depth": ({"max_depth": -1}, "max_depth"),
    "a draft temperature of zero": ({"draft_temperature": 0.0}, "draft_temperature must be above"),
}


@pytest.mark.parametrize(("options", "message"), LOADS.values(), ids=LOADS)
def test_a_wrong_setting_is_refused_at_load(options, message):
    with pytest.raises(ValueError, match=message):
        treespec.load(target_model("llama"), "ngram", **options)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of auto, hf, onnx, tensorrt"):
        treespec.load(target_model("llama"), None, backend="abacus")


@pytest.mark.parametrize("verifier", ["token_level", "recursive_rejection"])
def test_a_pair_that_would_be_biased_is_refused_at_load_with_those_that_fit(verifier):
    for builder in ("opt_tree", "chain", "kary"):
        with pytest.raises(ValueError, match=r"would bias.*verifiers that fit: .*target_only"):
            treespec.load(target_model("llama"), "ngram", builder=builder, verifier=verifier)


def test_a_chain_verifier_refuses_trees_and_names_those_that_fit():
    options = {"builder": "kary", "verifier": "token_level"}
    for expansion, fits in (([2], False), ([1, 1], True)):
        own = {"proposal": "iid", "expansion": expansion}
        if fits:
            SpeculativeDecoder(*table_pair(), **options, builder_options=own)
            continue
        with pytest.raises(ValueError, match=r"must be a chain.*verifiers that fit: .*target_only"):
            SpeculativeDecoder(*table_pair(), **options, builder_options=own)


def test_an_expansion_that_the_budget_does_not_hold_is_refused_at_load():
    with pytest.raises(ValueError, match=r"node_budget must hold the 6 nodes.*got 5"):
        SpeculativeDecoder(
            *table_pair(), builder="kary", builder_options={"expansion": [2, 2]}, node_budget=5
        )


def test_the_greedy_verifier_is_refused_above_temperature_zero():
    target, drafter = table_pair()
    decoder = SpeculativeDecoder(target, drafter, verifier="greedy")
    for call in (decoder.generate, decoder.stream):
        with pytest.raises(ValueError, match=r"temperature must be 0 .*'greedy', got 0.5"):
            call([1], temperature=0.5)
    assert len(decoder.generate([1], max_new_tokens=3).token_ids) == 3


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["target", "drafter"])
@pytest.mark.parametrize("state", ["missing", "empty", "without weights", "broken weights"])
def test_files_that_cannot_be_read_are_refused_with_their_path(tmp_path, monkeypatch, role, state):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "model_of_nobody"
    if state != "missing":
        folder.mkdir()
    if state in ("without weights", "broken weights"):
        (folder / "config.json").write_text((demo.drafter_path() / "config.json").read_text())
    if state == "broken weights":
        data = (demo.drafter_path() / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    models = {"target": target_model("llama"), "drafter": None, role: folder}
    with pytest.raises((OSError, ValueError), match="model_of_nobody"):
        treespec.load(**models)


def test_another_tokenizer_is_refused_at_load(tmp_path):
    import json
    import shutil

    shutil.copytree(demo.drafter_path(), tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    first, second = (token for token, index in vocabulary.items() if index in (300, 301))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="must have the same tokenizer, but id 300"):
        treespec.load("demo", tmp_path / "other", device="cpu")


@pytest.mark.parametrize("size", [48, 80])
def test_a_drafter_with_padded_or_fewer_ids_changes_no_text(size):
    draft = tiny_model("llama", torch.float64, vocab_size=size)
    plain, decoder = (treespec.load(target_model("llama"), d) for d in (None, draft))
    assert decoder.generate(PROMPT, **OPTIONS).token_ids == (
        plain.generate(PROMPT, **OPTIONS).token_ids
    )


# --- failures in mid-round --------------------------------------------------------------------


class Failing:
    """Wraps an object: the n-th call of a method raises."""

    def __init__(self, inner, method, calls):
        self._inner, self._method, self._left = inner, method, calls

    def __getattr__(self, name):
        value = getattr(self._inner, name)
        if name != self._method:
            return value

        def fail(*arguments):
            self._left -= 1
            if self._left == 0:
                raise KeyError(f"{name} has failed")
            return value(*arguments)

        return fail


class FailingExpansion(TableDrafter):
    """Its expanders raise in the n-th call."""

    left = 4

    def draft(self, sessions, settings):
        sources = super().draft(sessions, settings)
        return [_FailingExpander(self, source) for source in sources]


class _FailingExpander:
    def __init__(self, drafter, inner):
        self.drafter, self.inner = drafter, inner

    def expand(self, nodes):
        self.drafter.left -= 1
        if self.drafter.left == 0:
            raise KeyError("expand has failed")
        return self.inner.expand(nodes)


DRAFTER_CALLS = [("begin", 1), ("begin", 2), ("draft", 1), ("draft", 3), ("observe", 1)]
DRAFTER_CALLS += [("observe", 7), ("end", 1)]
TARGET_CALLS = [("open", 2), ("prefill", 1), ("forward", 1), ("forward", 3), ("commit", 2)]
PROMPTS = [[1, 2, 3], [4, 5], [6]]
BATCH = {"max_new_tokens": 20, "temperature": 0.9, "seed": [1, 2, 3]}


def ids_of(results):
    return [result.token_ids for result in results]


def expected_texts(target):
    return ids_of(SpeculativeDecoder(target, None).generate(PROMPTS, **BATCH))


@pytest.mark.parametrize(("method", "calls"), DRAFTER_CALLS)
def test_an_error_of_the_drafter_passes_through_and_the_decoder_goes_on(method, calls):
    target, inner = table_pair()
    decoder = SpeculativeDecoder(target, Failing(inner, method, calls))
    with pytest.raises(KeyError, match=f"{method} has failed"):
        decoder.generate(PROMPTS, **BATCH)
    if method != "end":  # what could not be closed stays open
        assert target.open_sequences == inner.open_sessions == 0
    assert ids_of(decoder.generate(PROMPTS, **BATCH)) == expected_texts(target)


@pytest.mark.parametrize(("method", "calls"), TARGET_CALLS)
def test_an_error_of_the_target_passes_through_and_the_decoder_goes_on(method, calls):
    inner, drafter = table_pair()
    decoder = SpeculativeDecoder(Failing(inner, method, calls), drafter)
    with pytest.raises(KeyError, match=f"{method} has failed"):
        decoder.generate(PROMPTS, **BATCH)
    assert inner.open_sequences == drafter.open_sessions == 0
    assert ids_of(decoder.generate(PROMPTS, **BATCH)) == expected_texts(inner)


@pytest.mark.parametrize("calls", [1, 2, 9])
def test_an_error_in_mid_tree_passes_through_and_the_decoder_goes_on(calls):
    target, _ = table_pair()
    drafter = FailingExpansion(target)
    drafter.left = calls
    decoder = SpeculativeDecoder(target, drafter)
    with pytest.raises(KeyError, match="expand has failed"):
        decoder.generate(PROMPTS, **BATCH)
    assert target.open_sequences == drafter.open_sessions == 0
    assert ids_of(decoder.generate(PROMPTS, **BATCH)) == expected_texts(target)


@pytest.mark.parametrize("calls", [1, 5])
def test_an_error_of_the_callback_passes_through_and_the_decoder_goes_on(calls):
    records = []

    def watch(record):
        records.append(record)
        if len(records) == calls:
            raise KeyError("watch has failed")

    decoder = treespec.load(target_model("llama"), drafter_object("tiny"))
    expected = decoder.generate(PROMPT, **OPTIONS).token_ids
    for call in (decoder.generate, lambda *a, **o: list(decoder.stream(*a, **o))):
        records.clear()
        with pytest.raises(KeyError, match="watch has failed"):
            call(PROMPT, **OPTIONS, on_round=watch)
        assert decoder.generate(PROMPT, **OPTIONS).token_ids == expected


def test_an_error_of_a_grammar_passes_through_and_the_decoder_goes_on():
    target, drafter = table_pair()
    decoder = SpeculativeDecoder(target, drafter)

    def grammar(text):
        if len(text) > 6:
            raise KeyError("grammar has failed")
        return np.ones(target.vocab_size, np.bool_)

    with pytest.raises(KeyError, match="grammar has failed"):
        decoder.generate(PROMPTS, **BATCH, allowed_tokens=grammar)
    assert target.open_sequences == drafter.open_sessions == 0
    assert ids_of(decoder.generate(PROMPTS, **BATCH)) == expected_texts(target)


@pytest.mark.parametrize("drafter", ["tiny", "ngram", "suffix"])
def test_a_closed_stream_frees_its_state_and_the_decoder_goes_on(drafter):
    decoder = treespec.load(target_model("llama"), drafter_object(drafter))
    expected = decoder.generate(PROMPT, **OPTIONS).token_ids
    for pieces in (0, 1, 3):
        stream = decoder.stream(PROMPT, **OPTIONS)
        for _ in range(pieces):
            next(stream)
        stream.close()
        assert decoder.generate(PROMPT, **OPTIONS).token_ids == expected


def test_a_closed_stream_closes_its_sequences():
    target, drafter = table_pair()
    decoder = SpeculativeDecoder(target, drafter, tokenizer=ByteTokenizer())
    stream = decoder.stream([1], max_new_tokens=20)
    next(stream)
    assert (target.open_sequences, drafter.open_sessions) == (1, 1)
    stream.close()
    assert (target.open_sequences, drafter.open_sessions) == (0, 0)


def test_two_streams_of_one_decoder_do_not_disturb_each_other():
    decoder = treespec.load(target_model("llama"), drafter_object("tiny"))
    prompts = [PROMPT, [9, 8, 7]]
    expected = [decoder.generate(prompt, **OPTIONS).token_ids for prompt in prompts]
    streams = [decoder.stream(prompt, **OPTIONS) for prompt in prompts]
    texts = [[], []]
    running = [0, 1]
    while running:
        for place in list(running):
            piece = next(streams[place], None)
            if piece is None:
                running.remove(place)
            else:
                texts[place] += piece.token_ids
    assert texts == expected


# --- numbers ----------------------------------------------------------------------------------


class Broken(TableTarget):
    """Its rows go bad at one position."""

    bad, at = float("nan"), 6

    def row(self, text):
        row = super().row(text).copy()
        if len(text) == self.at:
            row[3] = self.bad
        return row


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("at", [2, 6])
def test_nan_logits_are_refused_and_the_row_is_named(at, temperature):
    target = Broken(8)
    target.at = at
    for drafter in (None, TableDrafter(target)):
        decoder = SpeculativeDecoder(target, drafter)
        with pytest.raises(ValueError, match=r"(?i)row \d+.*nan"):
            decoder.generate([1, 2], max_new_tokens=12, temperature=temperature)
        target.at = -1
        assert len(decoder.generate([1, 2], max_new_tokens=12).token_ids) == 12
        target.at = at


def test_nan_of_a_drafter_is_refused():
    target, drafter = table_pair()
    drafter.table[:] = float("nan")
    decoder = SpeculativeDecoder(target, drafter)
    with pytest.raises(ValueError, match=r"(?i)nan"):
        decoder.generate([1, 2], max_new_tokens=12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_decodes(dtype):
    target, draft = tiny_model("llama", dtype), tiny_model("llama", dtype, seed=1)
    decoder = treespec.load(target, draft)
    for temperature in (0.0, 0.8):
        result = decoder.generate(
            PROMPT, max_new_tokens=16, temperature=temperature, ignore_eos=True
        )
        assert len(result.token_ids) == 16
        assert all(0 <= token < VOCAB_SIZE for token in result.token_ids)
        again = decoder.generate(
            PROMPT, max_new_tokens=16, temperature=temperature, ignore_eos=True
        )
        assert again.token_ids == result.token_ids


@pytest.mark.parametrize(
    ("builder", "options", "nodes"),
    [("kary", {"expansion": [3, 2]}, 9), ("chain", {"max_depth": 7}, 7), ("opt_tree", {}, 8)],
)
def test_the_default_budget_is_what_the_options_ask_for(builder, options, nodes):
    decoder = SpeculativeDecoder(*table_pair(), builder=builder, builder_options=options)
    assert decoder.node_budget == nodes


@pytest.mark.parametrize("builder", ["chain", "kary", "opt_tree", "sequoia"])
def test_an_option_that_is_none_has_its_default(builder):
    names = {"chain": ["max_depth"], "kary": ["expansion"], "opt_tree": ["threshold"]}
    options = dict.fromkeys(names.get(builder, ["growth_map", "max_depth"]))
    given = SpeculativeDecoder(*table_pair(), builder=builder, builder_options=options)
    default = SpeculativeDecoder(*table_pair(), builder=builder)
    assert given.node_budget == default.node_budget
    shapes = [[], []]
    for decoder, seen in zip((given, default), shapes, strict=True):
        decoder.generate(
            [1, 2, 3],
            max_new_tokens=20,
            on_round=lambda record, seen=seen: seen.append(record.tree.parent.tolist()),
        )
    assert shapes[0] == shapes[1]


def test_a_depth_of_zero_drafts_nothing():
    decoder = SpeculativeDecoder(*table_pair(), max_depth=0, node_budget=4)
    sizes = []
    decoder.generate(
        [1, 2, 3], max_new_tokens=6, on_round=lambda record: sizes.append(len(record.tree.token))
    )
    assert set(sizes) == {1}
