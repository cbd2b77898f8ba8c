# SPDX-License-Identifier: Apache-2.0
"""The decoder at temperature 0: Hugging Face's text, batches, streams, stops, statistics."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from decoder_models import (
    BUILD_IDS,
    BUILDS,
    DRAFTER_NAMES,
    FOR_ANY_TARGET,
    ByteTokenizer,
    builders_for,
    draft_model,
    drafter_object,
    pair_id,
    pairs,
    pairs_by_kind,
    reads,
    table_pair,
    target_model,
)
from tiny_models import RECURRENT, VOCAB_SIZE, tiny_model

import treespec
from treespec import demo
from treespec.decoder import SpeculativeDecoder

ARCHITECTURES = ["llama", "qwen3_window", "gemma3", "gpt2", "mistral_window"]
NEW_TOKENS = 20
DEMO_TOKENS = 32


def prompt_of(length, seed=0):
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, length).tolist()


PROMPTS = [prompt_of(9), [5, 6, 7] * 4, prompt_of(1, 2)]


def hf_greedy(model, prompt, max_new_tokens, **options):
    with torch.inference_mode():
        ids = torch.tensor([list(prompt)])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=0,
            **options,
        )
    return output[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def hf_texts():
    return {
        name: [hf_greedy(target_model(name), prompt, NEW_TOKENS) for prompt in PROMPTS]
        for name in ARCHITECTURES
    }


@pytest.fixture(scope="module")
def demo_pair():
    """Target, drafter, tokenizer, prompts, and Hugging Face's greedy texts."""
    decoder = treespec.load("demo", "demo", device="cpu")
    model, tokenizer = decoder.target.model, decoder.tokenizer
    prompts = [demo.prompts()[0], *(excerpt["text"][:120] for excerpt in demo.held_out()[:2])]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    # No id is -1: the whole length whatever the weights; the end of a text is tested above.
    texts = [hf_greedy(model, prompt, DEMO_TOKENS, eos_token_id=-1) for prompt in ids]
    drafters = {
        name: treespec.load(model, name, tokenizer=tokenizer, device="cpu").drafter
        for name in FOR_ANY_TARGET
    }
    return model, drafters, tokenizer, prompts, texts


def token_ids(results):
    return [result.token_ids for result in results]


# --- greedy: Hugging Face's text --------------------------------------------------------------


def pairs_and_architectures():
    """All pairs, and all architectures with every drafter, in turns.

    A drafter that is a model has the target's architecture: its pairs meet all of them.
    """
    for turn, pair in enumerate(pairs()):
        for place, architecture in enumerate(ARCHITECTURES):
            if pair[2] == "tiny" or place == turn % len(ARCHITECTURES):
                yield pytest.param(pair, architecture, id=f"{pair_id(pair)}-{architecture}")


@pytest.mark.parametrize(("pair", "architecture"), pairs_and_architectures())
def test_the_greedy_text_is_hugging_faces(pair, architecture, hf_texts):
    builder, mode, drafter = pair
    own = draft_model(architecture) if drafter == "tiny" else drafter_object(drafter)
    decoder = treespec.load(target_model(architecture), own, builder=builder, builder_options=mode)
    results = decoder.generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    assert token_ids(results) == hf_texts[architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_plain_greedy_text_is_hugging_faces(architecture, hf_texts):
    decoder = treespec.load(target_model(architecture), None)
    assert token_ids(decoder.generate(PROMPTS, max_new_tokens=NEW_TOKENS)) == hf_texts[architecture]


def pairs_of_the_demo():
    """Its own drafter with every builder, those without a model in turns."""
    own = [pair for pair in pairs() if pair[2] == "demo"]
    return [*own, *(pair for pair in pairs_by_kind() if pair[2] in ("ngram", "suffix"))]


@pytest.mark.parametrize("pair", pairs_of_the_demo(), ids=pair_id)
def test_the_demo_pairs_greedy_text_is_hugging_faces(demo_pair, pair):
    model, drafters, tokenizer, prompts, texts = demo_pair
    builder, mode, drafter = pair
    options = {"tokenizer": tokenizer, "builder": builder, "builder_options": mode}
    decoder = treespec.load(model, drafters[drafter], **options)
    results = decoder.generate(prompts, max_new_tokens=DEMO_TOKENS, ignore_eos=True)
    assert token_ids(results) == texts
    for result in results:
        assert result.text == tokenizer.decode(result.token_ids, skip_special_tokens=True)


def test_the_demo_drafter_saves_target_forwards(demo_pair):
    model, drafters, tokenizer, prompts, _ = demo_pair
    decoder = treespec.load(model, drafters["demo"], tokenizer=tokenizer)
    results = decoder.generate(prompts, max_new_tokens=DEMO_TOKENS, ignore_eos=True)
    assert np.mean([result.stats.block_efficiency for result in results]) > 1.2


@pytest.mark.parametrize("builder_and_mode", BUILDS, ids=BUILD_IDS)
@pytest.mark.parametrize("drafter", DRAFTER_NAMES)
def test_a_builder_that_cannot_read_the_drafter_names_those_that_can(builder_and_mode, drafter):
    builder, mode = builder_and_mode
    own = drafter_object(drafter)
    options = {"builder": builder, "builder_options": mode}
    able = builders_for(drafter)
    if builder in able:
        decoder = treespec.load(target_model("llama"), own, **options)
        assert len(decoder.generate([3, 4, 3], max_new_tokens=3).token_ids) == 3
        return
    with pytest.raises(ValueError, match="builders that read it: " + ", ".join(able)):
        treespec.load(target_model("llama"), own, **options)


@pytest.mark.parametrize("verifier", ["token_level", "recursive_rejection", "target_only"])
@pytest.mark.parametrize("proposal", ["iid", "without_replacement"])
def test_a_rejection_verifier_is_greedy_at_temperature_zero(verifier, proposal, hf_texts):
    if verifier == "token_level" and proposal != "iid":
        proposal = "iid"  # the only mode it is exact on
    builder = "chain" if verifier == "token_level" else "kary"
    options = {"builder": builder, "builder_options": {"proposal": proposal}}
    decoder = treespec.load(
        target_model("llama"), drafter_object("tiny"), verifier=verifier, **options
    )
    results = decoder.generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    assert token_ids(results) == hf_texts["llama"]


@pytest.fixture(scope="module")
def ending_model(hf_texts):
    """A model with tokens that end a text, and Hugging Face's texts."""
    model = tiny_model("llama", torch.float64)
    # Tokens that the texts have in different places; one text may never meet them.
    model.generation_config.eos_token_id = [hf_texts["llama"][0][7], hf_texts["llama"][1][13]]
    expected = [hf_greedy(model, prompt, NEW_TOKENS) for prompt in PROMPTS]
    assert len(expected[0]) <= 8 and len(expected[1]) <= 14
    return model, expected


@pytest.mark.parametrize("pair", pairs_by_kind(), ids=pair_id)
def test_end_of_text_stops_where_hugging_face_stops(pair, ending_model, hf_texts):
    builder, mode, drafter = pair
    model, expected = ending_model
    decoder = treespec.load(model, drafter_object(drafter), builder=builder, builder_options=mode)
    results = decoder.generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    assert token_ids(results) == expected
    assert [result.finish_reason for result in results[:2]] == ["eos", "eos"]
    going_on = decoder.generate(PROMPTS, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    assert token_ids(going_on) == hf_texts["llama"]
    assert [result.finish_reason for result in going_on] == ["length"] * 3


def test_penalties_at_temperature_zero_are_hugging_faces():
    expected = [
        hf_greedy(target_model("llama"), prompt, NEW_TOKENS, repetition_penalty=1.7)
        for prompt in PROMPTS
    ]
    for drafter in (None, *DRAFTER_NAMES):
        own = drafter_object(drafter) if drafter else None
        decoder = treespec.load(target_model("llama"), own)
        results = decoder.generate(PROMPTS, max_new_tokens=NEW_TOKENS, repetition_penalty=1.7)
        assert token_ids(results) == expected


@pytest.mark.parametrize("node_budget", [0, 1, 2, 40])
@pytest.mark.parametrize("max_depth", [None, 1, 3])
def test_the_text_does_not_depend_on_the_trees_size(node_budget, max_depth, hf_texts):
    for builder in ("opt_tree", "chain"):
        decoder = treespec.load(
            target_model("llama"),
            drafter_object("tiny"),
            builder=builder,
            node_budget=node_budget,
            max_depth=max_depth,
        )
        records = []
        results = decoder.generate(PROMPTS, max_new_tokens=NEW_TOKENS, on_round=records.append)
        assert token_ids(results) == hf_texts["llama"]
        assert max(len(record.tree) for record in records) <= node_budget + 1
        if max_depth is not None:
            assert max(record.tree.depth.max() for record in records) <= max_depth


# --- targets whose state cannot fork ----------------------------------------------------------


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_target_decodes_chains_as_hugging_face(name):
    model = target_model(name)
    expected = [hf_greedy(model, prompt, 10) for prompt in PROMPTS]
    for drafter, mode in (
        (None, {}),
        ("ngram", {}),
        ("tiny", {}),
        ("tiny", {"proposal": "iid"}),
    ):
        own = drafter_object(drafter) if drafter else None
        decoder = treespec.load(model, own, builder="chain", builder_options=mode)
        assert token_ids(decoder.generate(PROMPTS, max_new_tokens=10)) == expected


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("builder", [n for n in treespec.builder_names() if n != "chain"])
def test_a_recurrent_target_refuses_trees_and_offers_chains(name, builder):
    with pytest.raises(NotImplementedError, match="builder='chain', or drafter=None"):
        treespec.load(target_model(name), "ngram", builder=builder)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_target_samples_the_same_text_with_chains(name):
    options = {"max_new_tokens": 10, "temperature": 0.8, "seed": [3, 4, 5]}
    plain = treespec.load(target_model(name), None).generate(PROMPTS, **options)
    for drafter in ("suffix", "tiny"):
        decoder = treespec.load(target_model(name), drafter_object(drafter), builder="chain")
        assert token_ids(decoder.generate(PROMPTS, **options)) == token_ids(plain)


# --- batches and streams ----------------------------------------------------------------------


BATCH = [*PROMPTS, prompt_of(14, 3), [9, 8, 9, 8, 9]]
BATCH_OPTIONS = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.2},
}
SEEDS, SEQUENCE_IDS = [0, 1, 2, 3, 2**63], [0, 0, 7, 1, 2**32 - 1]


def pairs_and_batch_options():
    """Either options of a batch, in turns."""
    for turn, pair in enumerate(pairs_by_kind()):
        name = list(BATCH_OPTIONS)[turn % len(BATCH_OPTIONS)]
        yield pytest.param(pair, BATCH_OPTIONS[name], id=f"{pair_id(pair)}-{name}")


@pytest.mark.parametrize(("pair", "options"), pairs_and_batch_options())
def test_every_sequence_of_a_ragged_batch_equals_its_own_single_run(pair, options):
    builder, mode, drafter = pair
    model = tiny_model("qwen3_window", torch.float64)
    model.generation_config.eos_token_id = list(
        range(20, 28)
    )  # so that they end at different times
    decoder = treespec.load(model, drafter_object(drafter), builder=builder, builder_options=mode)
    options = {**options, "max_new_tokens": NEW_TOKENS}
    batch = decoder.generate(BATCH, seed=SEEDS, sequence_id=SEQUENCE_IDS, **options)
    singles = [
        decoder.generate(prompt, seed=seed, sequence_id=sequence_id, **options)
        for prompt, seed, sequence_id in zip(BATCH, SEEDS, SEQUENCE_IDS, strict=True)
    ]
    assert token_ids(batch) == token_ids(singles)
    assert [r.finish_reason for r in batch] == [r.finish_reason for r in singles]
    assert [r.stats.rounds for r in batch] == [r.stats.rounds for r in singles]
    assert [r.stats.accepted for r in batch] == [r.stats.accepted for r in singles]
    assert len({len(result.token_ids) for result in batch}) > 1


def test_equal_prompts_in_a_batch_give_equal_texts_and_other_ids_give_others():
    decoder = treespec.load(target_model("llama"), drafter_object("tiny"))
    prompts = [PROMPTS[0]] * 4
    options = {"max_new_tokens": NEW_TOKENS, "temperature": 1.0, "seed": [5, 5, 5, 6]}
    first, same, other_id, other_seed = token_ids(
        decoder.generate(prompts, sequence_id=[0, 0, 1, 0], **options)
    )
    assert first == same
    assert first != other_id and first != other_seed


def test_lists_of_keys_must_have_one_entry_per_prompt():
    decoder = treespec.load(target_model("llama"), None)
    for name in ("seed", "sequence_id"):
        with pytest.raises(ValueError, match=rf"{name} must be one value or one per prompt \(3\)"):
            decoder.generate(PROMPTS, **{name: [1, 2]})


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("drafter", [None, *FOR_ANY_TARGET])
def test_a_stream_is_generate_in_pieces(demo_pair, drafter, temperature):
    model, drafters, tokenizer, prompts, _ = demo_pair
    own = drafters[drafter] if drafter else None
    decoder = treespec.load(model, own, tokenizer=tokenizer)
    options = {"max_new_tokens": 32, "temperature": temperature, "seed": 3, "stop": "\n\n"}
    whole = decoder.generate(prompts[0], **options)
    pieces = list(decoder.stream(prompts[0], **options))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [t for piece in pieces for t in piece.token_ids] == whole.token_ids
    assert all(piece.result is None for piece in pieces[:-1])
    assert pieces[-1].result.token_ids == whole.token_ids
    assert pieces[-1].result.text == whole.text
    assert pieces[-1].result.finish_reason == whole.finish_reason
    assert pieces[-1].result.stats.rounds == whole.stats.rounds
    assert len(pieces) == whole.stats.rounds + 1


# --- where a text ends ------------------------------------------------------------------------


STOPS = [
    (),
    ("STOP",),
    ("TOP",),
    ("b a", "aa"),
    ("abab", "é", "\n"),
    ("€", "😀"),
    ("a",),
]


@pytest.fixture(scope="module", params=[0.0, 1.3])
def stop_case(request):
    """Plain decoding of many prompts and stops, where texts end anywhere."""
    target, drafter = table_pair(noise=0.8)
    target.eos_ids = (0,)
    # "STO" is often followed by "P".
    target.table[..., 7, 8] += 3.0
    prompts = [prompt_of(1 + seed % 5, seed) for seed in range(60)]
    prompts = [[token % target.vocab_size for token in prompt] for prompt in prompts]
    options = [
        {"max_new_tokens": 24, "temperature": request.param, "seed": list(range(60)), "stop": stop}
        for stop in STOPS
    ]
    plain = SpeculativeDecoder(target, None, tokenizer=ByteTokenizer())
    return target, drafter, prompts, [(o, plain.generate(prompts, **o)) for o in options]


@pytest.mark.parametrize("builder", ["chain", "kary", "opt_tree"])
def test_stops_inside_an_accepted_path_cut_as_plain_decoding(stop_case, builder):
    target, drafter, prompts, cases = stop_case
    decoder = SpeculativeDecoder(
        target, drafter, tokenizer=ByteTokenizer(), builder=builder, verifier="auto", node_budget=12
    )
    inside = 0
    for options, expected in cases:
        records = {place: [] for place in range(len(prompts))}
        results = decoder.generate(
            prompts, **options, on_round=lambda r, to=records: to[r.sequence].append(r)
        )
        assert token_ids(results) == token_ids(expected)
        assert [r.text for r in results] == [r.text for r in expected]
        assert [r.finish_reason for r in results] == [r.finish_reason for r in expected]
        offered = [sum(len(r.verdict.tokens) for r in rounds) for rounds in records.values()]
        inside += sum(
            1 + more > len(result.token_ids) and result.finish_reason != "length"
            for more, result in zip(offered, results, strict=True)
        )
    assert inside > 10, "no text ended inside an accepted path"


def test_texts_end_in_every_way_and_without_their_stop_string(stop_case):
    *_, cases = stop_case
    reasons = {result.finish_reason for _, results in cases for result in results}
    assert reasons == {"length", "eos", "stop"}
    split = 0
    for options, results in cases:
        for result in results:
            whole = ByteTokenizer().decode(result.token_ids)
            assert not any(stop in result.text for stop in options["stop"])
            found = [whole.find(stop) for stop in options["stop"] if stop in whole]
            if result.finish_reason == "stop":
                assert result.text == whole[: min(found)]
                before = ByteTokenizer().decode(result.token_ids[:-1])
                assert not any(stop in before for stop in options["stop"]), "stopped too late"
                split += "STOP" in options["stop"]
            else:
                assert not found
                assert result.text == whole
    assert split, "no stop string was split over tokens"


@pytest.mark.parametrize("builder", [None, "opt_tree", "kary"])
def test_a_stream_never_shows_half_a_character_or_half_a_stop_string(stop_case, builder):
    target, drafter, prompts, cases = stop_case
    decoder = SpeculativeDecoder(
        target,
        drafter if builder else None,
        tokenizer=ByteTokenizer(),
        builder=builder or "opt_tree",
    )
    multibyte = 0
    for options, expected in cases[:6]:
        for place, result in enumerate(expected[:20]):
            own = {**options, "seed": options["seed"][place]}
            shown = ""
            for piece in decoder.stream(prompts[place], **own):
                shown += piece.text
                # Half a character would be shown as another one, half a stop string be too much.
                assert result.text.startswith(shown)
            assert shown == result.text
            multibyte += "é" in shown or "€" in shown
    assert multibyte > 2


def test_stop_token_ids_end_the_text_and_are_kept():
    target, drafter = table_pair()
    plain, decoder = (
        SpeculativeDecoder(target, d, builder="kary", node_budget=20) for d in (None, drafter)
    )
    whole = plain.generate([1, 2, 3], max_new_tokens=30)
    stop = whole.token_ids[11]
    first = whole.token_ids.index(stop)
    for one in (plain, decoder):
        result = one.generate([1, 2, 3], max_new_tokens=30, stop_token_ids=[stop])
        assert result.token_ids == whole.token_ids[: first + 1]
        assert (result.finish_reason, result.text) == ("stop", None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", [None, *DRAFTER_NAMES])
def test_any_number_of_new_tokens_is_a_prefix_of_the_longer_text(drafter, temperature):
    own = drafter_object(drafter) if drafter else None
    decoder = treespec.load(target_model("gpt2"), own)
    options = {"temperature": temperature, "ignore_eos": True}
    longest = token_ids(decoder.generate(PROMPTS, max_new_tokens=9, **options))
    for count in (0, 1, 2, 3, 8):
        results = decoder.generate(PROMPTS, max_new_tokens=count, **options)
        assert token_ids(results) == [ids[:count] for ids in longest]
        assert [result.finish_reason for result in results] == ["length"] * 3
        assert all(result.stats.tokens == count for result in results)
        assert all((result.stats.rounds == 0) == (count < 2) for result in results)
        pieces = list(decoder.stream(PROMPTS[0], max_new_tokens=count, **options))
        assert [t for piece in pieces for t in piece.token_ids] == longest[0][:count]
        assert pieces[-1].result is not None


# --- statistics and records -------------------------------------------------------------------


def children_of(tree, node):
    return np.flatnonzero(tree.parent == node).tolist()


@pytest.mark.parametrize("stop_token_ids", [(), (3,)], ids=["length", "stop"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("builder_and_mode", BUILDS, ids=BUILD_IDS)
def test_statistics_and_records_say_what_was_emitted(builder_and_mode, temperature, stop_token_ids):
    builder, mode = builder_and_mode
    target, drafter = table_pair(vocab_size=12)
    if not reads(builder, drafter):
        drafter = drafter_object("suffix")
    verifier = "auto" if not mode or mode["proposal"] == "deterministic" else "target_only"
    decoder = SpeculativeDecoder(
        target, drafter, builder=builder, builder_options=mode, verifier=verifier, node_budget=9
    )
    prompts = [[1, 2, 1, 2, 1], [4], [7, 8, 9], *([n] for n in range(8))]
    records = []
    results = decoder.generate(
        prompts,
        max_new_tokens=40,
        temperature=temperature,
        seed=list(range(len(prompts))),
        stop_token_ids=stop_token_ids,
        on_round=records.append,
    )
    for place, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        own, stats = [r for r in records if r.sequence == place], result.stats
        text = [*prompt, *result.token_ids]
        position, accepted = len(prompt), 0
        depth, rank = ([0] * 99, [0] * 99), ([0] * 99, [0] * 99)
        for record in own:
            assert record.position == position
            assert treespec.check_tree(record.tree) == []
            assert record.tree.token[0] == text[position]
            emitted = text[position + 1 : position + 1 + len(record.verdict.tokens)]
            assert record.verdict.tokens[: len(emitted)].tolist() == emitted
            assert len(emitted) == len(record.verdict.tokens) or record is own[-1]
            path = record.verdict.accepted_nodes[: len(emitted)].tolist()
            accepted += len(path)
            for level, node in enumerate([0, *path]):
                below = children_of(record.tree, node)
                if not below or level == len(emitted):
                    break
                taken = path[level] if level < len(path) else None
                depth[0][level] += 1
                depth[1][level] += taken is not None
                for r, child in enumerate(below):
                    rank[0][r] += 1
                    if child == taken:
                        rank[1][r] += 1
                        break
            position += len(emitted)
        assert position == len(text) - 1
        assert stats.rounds == len(own)
        assert stats.tokens == len(result.token_ids)
        assert stats.accepted == accepted
        assert stats.accepted == sum(stats.accepted_by_depth) == sum(stats.accepted_by_rank)
        assert stats.drafted_nodes == sum(len(r.tree) - 1 for r in own)
        assert stats.shapes == Counter((len(r.tree) - 1, int(r.tree.depth.max())) for r in own)
        promised = sum(np.exp(r.tree.path_logprob[1:].astype(float)).sum() for r in own)
        assert stats.predicted_accepted == pytest.approx(promised)
        assert stats.rounds - 1 <= stats.tokens - 1 - stats.accepted <= stats.rounds
        for counts, (offered, hit) in (
            ((stats.offered_by_depth, stats.accepted_by_depth), depth),
            ((stats.offered_by_rank, stats.accepted_by_rank), rank),
        ):
            for measured, expected in zip(counts, (offered, hit), strict=True):
                assert measured == expected[: len(measured)]
                assert not any(expected[len(measured) :])
        if stats.rounds:
            assert stats.block_efficiency == (stats.tokens - 1) / stats.rounds
        for ratio in (*stats.acceptance_by_depth, *stats.acceptance_by_rank):
            assert 0 <= ratio <= 1
        assert len(stats.acceptance_by_depth) == len(stats.offered_by_depth)
        assert all(seconds >= 0 for seconds in stats.seconds.values())
        assert stats.total_seconds > 0
    assert sum(result.stats.accepted for result in results) > 0


@pytest.mark.parametrize("length", [1, 4])
def test_the_target_as_its_own_drafter_is_always_accepted(length):
    """So the drafter has seen every committed token, at its place, and none that was dropped."""
    model = target_model("llama")
    decoder = treespec.load(model, model, builder="chain", node_budget=length)
    results = decoder.generate(PROMPTS, max_new_tokens=1 + 5 * (length + 1), ignore_eos=True)
    assert [result.stats.block_efficiency for result in results] == [length + 1] * 3
    assert [result.stats.accepted for result in results] == [5 * length] * 3
    assert all(result.stats.acceptance_by_depth == [1.0] * length for result in results)


def test_a_plain_run_has_one_round_per_token_after_the_first():
    decoder = treespec.load(target_model("llama"), None)
    result = decoder.generate([3, 4], max_new_tokens=7, ignore_eos=True)
    assert (result.stats.rounds, result.stats.tokens, result.stats.accepted) == (6, 7, 0)
    assert result.stats.block_efficiency == 1
    assert result.stats.acceptance_by_depth == result.stats.acceptance_by_rank == []
