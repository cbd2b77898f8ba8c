# SPDX-License-Identifier: Apache-2.0
"""`graph=True`: the same texts as step by step, for every builder, batch, stop and context."""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import draft_model, drafter_object, table_pair, target_model
from drafter_cases import fitted_eagle3
from fake_cuda import FakeCuda
from support import in_turns
from tiny_drafters import tiny_dflash, tiny_medusa
from tiny_trees import tokens

import treespec
from treespec.decoder import SpeculativeDecoder
from treespec.static import decoding
from treespec.static.choice import make_attention
from treespec.static.round import Judgement
from treespec.static.runner import StaticRunner
from treespec.static.split_attention import SplitAttention
from treespec.targets.hf import HfTarget
from treespec.targets.hf_model import decoder_blocks

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

BUILDS: list[tuple[str, dict[str, Any]]] = [
    ("chain", {"max_depth": 4}),
    ("kary", {"expansion": [2, 2, 1]}),
    ("sequoia", {}),
    ("medusa_choices", {}),
    ("eagle2", {"width": 3, "max_depth": 4}),
    ("opt_tree", {"max_depth": 4, "threshold": 0}),
]
# Called as often as the data ask for: in parts.
BY_THE_DATA: list[tuple[str, dict[str, Any]]] = [
    ("opt_tree", {"threshold": 0.4}),
    ("eagle2", {"width": 3, "width_ratio": 0.5}),
    ("eagle2", {"width": 2, "growth": "constant"}),
]
# The lists hold the whole vocabulary here, so that tokens are drawn from the same law.
DRAWN: list[tuple[str, dict[str, Any]]] = [
    ("chain", {"max_depth": 3, "proposal": "iid"}),
    ("kary", {"expansion": [2, 2], "proposal": "iid"}),
    ("kary", {"expansion": [3, 1], "proposal": "without_replacement"}),
    ("sequoia", {"proposal": "without_replacement"}),
    ("top_plus_one", {"expansion": [2, 2]}),
    ("rollouts", {"num_paths": 2}),
    ("delayed", {"num_paths": 2, "trunk": 1, "branch": 2}),
    ("dyspec", {}),
    ("dyspec_threshold", {"threshold": 0.1}),
]
FLEX = make_attention("flex", torch.device("cpu"))
PROMPTS = [tokens(n, n).tolist() for n in (3, 21, 9)]
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "seed": [1, 2**64 - 1, 3]},
    "truncated": {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.02},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.2},
    "sampled penalties": {"temperature": 0.8, "frequency_penalty": 0.3, "sequence_id": [4, 5, 6]},
}


@functools.cache
def decoder(name: str, graph: bool, model: str = "llama") -> SpeculativeDecoder:
    return make_decoder(name, dict(BUILDS)[name], graph, model)


def make_decoder(
    name: str, options: dict[str, Any], graph: bool, model: str = "llama", **more: Any
) -> SpeculativeDecoder:
    target, draft = target_model(model), draft_model(model)
    options = {"builder": name, "builder_options": options, "graph": graph, **more}
    return treespec.load(target, draft, device="cpu", **options)


def decoder_with(attention: Any, model: str, builder: str) -> SpeculativeDecoder:
    """A decoder that attends as told; what suits the machine is what load measures."""
    made = treespec.load(target_model(model), draft_model(model), builder=builder)
    made.graph = rounds_with(attention, made)
    return made


def rounds_with(attention: Any, made: SpeculativeDecoder) -> decoding.GraphRounds:
    """Of a decoder whose builder has no options."""
    return decoding.GraphRounds(
        made.target,
        made.drafter,
        builder=made.builder,
        options={},
        verifier="auto",
        node_budget=made.node_budget,
        draft_temperature=None,
        attention=attention,
    )


def texts(made: SpeculativeDecoder, prompts: Any = PROMPTS, **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": 30, "ignore_eos": True, **options}
    results = made.generate(prompts, **options)
    return [result.token_ids for result in results]


def check_played(caplog: Any) -> None:
    assert not [text for text in caplog.messages if "step by step" in text]


@pytest.mark.parametrize(
    ("name", "sampling"), in_turns([name for name, _ in BUILDS], SAMPLINGS, each=3)
)
def test_texts_are_those_of_the_step_by_step_decoder(name: str, sampling: str, caplog: Any) -> None:
    options = SAMPLINGS[sampling]
    with caplog.at_level(logging.INFO, "treespec"):
        assert texts(decoder(name, True), **options) == texts(decoder(name, False), **options)
    check_played(caplog)


def both(build: tuple[str, dict[str, Any]], **more: Any) -> tuple[SpeculativeDecoder, ...]:
    return make_decoder(*build, True, **more), make_decoder(*build, False, **more)


@pytest.mark.parametrize("sampling", ["greedy", "sampled penalties"])
@pytest.mark.parametrize("build", BY_THE_DATA, ids=str)
def test_the_data_may_decide_how_often_the_drafter_is_called(
    build: Any, sampling: str, caplog: Any
) -> None:
    options = SAMPLINGS[sampling]
    own, stepped = both(build)
    with caplog.at_level(logging.INFO, "treespec"):
        assert texts(own, **options) == texts(stepped, **options)
    check_played(caplog)


def but_last_rounds(texts: list[list[int]]) -> list[list[int]]:
    """Trees are smaller there step by step, and verdicts on drawn trees are about all of a tree."""
    return [text[:-8] for text in texts]


@pytest.mark.parametrize(
    ("build", "sampling"),
    in_turns(DRAWN, ["greedy", "truncated", "sampled penalties"], each=2),
    ids=str,
)
def test_drawn_trees_and_their_verifiers_give_the_same_texts(
    build: Any, sampling: str, caplog: Any
) -> None:
    options = SAMPLINGS[sampling]
    own, stepped = both(build)
    with caplog.at_level(logging.INFO, "treespec"):
        ours, theirs = texts(own, **options), texts(stepped, **options)
    assert but_last_rounds(ours) == but_last_rounds(theirs)
    check_played(caplog)


@pytest.mark.parametrize("verifier", ["naive_tree", "recursive_rejection", "target_only"])
def test_drawn_trees_have_a_choice_of_verifiers(verifier: str) -> None:
    own, stepped = both(("kary", {"expansion": [2, 2], "proposal": "iid"}), verifier=verifier)
    ours, theirs = (texts(made, temperature=0.8, seed=5) for made in (own, stepped))
    assert but_last_rounds(ours) == but_last_rounds(theirs)
    other = texts(make_decoder("kary", {"expansion": [2, 2]}, True), temperature=0.8, seed=5)
    assert (ours == other) == (verifier == "target_only")


def test_a_drafter_may_be_colder_than_the_text() -> None:
    own, stepped = both(("rollouts", {"num_paths": 2}), draft_temperature=0.6)
    for options in ({"temperature": 1.0}, {"temperature": 0.9, "top_k": 5}):
        ours, theirs = texts(own, **options), texts(stepped, **options)
        assert but_last_rounds(ours) == but_last_rounds(theirs)


def test_a_lossy_verifier_does_not_become_lossless() -> None:
    more = {"verifier": "typical", "lossy": True}
    own, stepped = both(("kary", {"expansion": [3, 2]}), **more)
    lossy, theirs = texts(own, temperature=0.9), texts(stepped, temperature=0.9)
    assert but_last_rounds(lossy) == but_last_rounds(theirs)
    assert but_last_rounds(lossy) != but_last_rounds(texts(decoder("kary", False), temperature=0.9))


ONE_PASS = {
    "dflash": tiny_dflash,
    "treeflash": functools.partial(tiny_dflash, conditional="treeflash", width=64),
    "pairwise": functools.partial(tiny_dflash, conditional="pairwise", width=64),
    "medusa": tiny_medusa,
}


@functools.cache
def one_pass(kind: str) -> Any:
    return ONE_PASS[kind](target_model("llama"))


@pytest.mark.parametrize("sampling", ["greedy", "truncated"])
@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        *((kind, "dtree", {}) for kind in ONE_PASS),
        ("dflash", "opt_tree", {"max_depth": 3}),
        ("treeflash", "eagle2", {"max_depth": 3, "width": 3}),
        ("pairwise", "chain", {"max_depth": 4}),
        ("medusa", "medusa_choices", {}),
        ("treeflash", "dtree", {"score_temperature": 0.7}),
        ("dflash", "rollouts", {"num_paths": 2}),
        ("treeflash", "dyspec", {}),
        ("pairwise", "sequoia", {"proposal": "without_replacement"}),
        ("medusa", "delayed", {"num_paths": 2, "trunk": 1, "branch": 1}),
    ],
    ids=str,
)
def test_drafters_of_one_pass_give_the_same_texts(
    kind: str, name: str, options: Any, sampling: str, caplog: Any
) -> None:
    target = target_model("llama")
    own, stepped = (
        treespec.load(
            target,
            one_pass(kind),
            device="cpu",
            builder=name,
            builder_options=options,
            graph=graph,
        )
        for graph in (True, False)
    )
    with caplog.at_level(logging.INFO, "treespec"):
        ours, theirs = (texts(made, **SAMPLINGS[sampling]) for made in (own, stepped))
    assert but_last_rounds(ours) == but_last_rounds(theirs)
    check_played(caplog)
    if own.builder.proposal == "deterministic":
        assert ours == theirs


EAGLE3_BUILDS: list[tuple[str, dict[str, Any]]] = [
    ("chain", {"max_depth": 3}),
    ("sequoia", {}),
    ("eagle2", {"width": 3, "max_depth": 4}),
    ("opt_tree", {"max_depth": 4, "threshold": 0}),
    ("opt_tree", {"threshold": 0.3}),
    ("dyspec", {}),
    ("delayed", {"num_paths": 2, "trunk": 1, "branch": 2}),
]


def with_eagle3(build: tuple[str, dict[str, Any]]) -> tuple[SpeculativeDecoder, ...]:
    """With static rounds and without, over a drafter that cannot say every token."""
    target, how = target_model("llama"), {"builder": build[0], "builder_options": build[1]}
    drafter = fitted_eagle3(target)
    return tuple(treespec.load(target, drafter, **how, graph=graph) for graph in (True, False))


@pytest.mark.parametrize(
    ("build", "sampling"),
    in_turns(EAGLE3_BUILDS, ["greedy", "truncated", "sampled penalties"]),
    ids=str,
)
def test_eagle3_gives_the_same_texts_in_as_many_rounds(
    build: Any, sampling: str, caplog: Any
) -> None:
    """Call after call on the same buffers, for sequences in another order, and for others."""
    own, stepped = with_eagle3(build)
    for prompts in (PROMPTS, PROMPTS[::-1], [[5], *PROMPTS[:2]]):
        with caplog.at_level(logging.INFO, "treespec"):
            ours, theirs = (
                made.generate(prompts, max_new_tokens=30, ignore_eos=True, **SAMPLINGS[sampling])
                for made in (own, stepped)
            )
        check_played(caplog)
        for one, other in zip(ours, theirs, strict=True):
            assert one.token_ids[:-8] == other.token_ids[:-8]  # as in `but_last_rounds`
            if own.builder.proposal == "deterministic":
                assert one.token_ids == other.token_ids
                # A map for the few tokens that are left has another shape.
                assert one.stats.rounds == other.stats.rounds or build[0] == "sequoia"
    if sampling == "greedy" and own.builder.proposal == "deterministic":
        assert sum(result.stats.accepted for result in ours[1:]) > 10


def test_eagle3_outgrows_envelopes_and_stops() -> None:
    own, stepped = with_eagle3(("eagle2", {}))
    own.graph = rounds_with(SplitAttention(16), own)
    expected = texts(stepped, max_new_tokens=100)
    assert texts(own, max_new_tokens=100) == expected
    stops = sorted({text[20] for text in expected})
    ours, theirs = (
        made.generate(PROMPTS, max_new_tokens=60, ignore_eos=True, stop_token_ids=stops)
        for made in (own, stepped)
    )
    assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]


def test_warming_up_costs_eagle3_no_token(monkeypatch: Any) -> None:
    """In the first round, too, whose root's state is not computed again."""
    for build in (("eagle2", {}), ("opt_tree", {"threshold": 0.3})):
        own, stepped = with_eagle3(build)
        expected = stepped.generate(PROMPTS, max_new_tokens=60, ignore_eos=True)
        with monkeypatch.context() as patch:
            cuda = play_on_fake_gpu(patch)
            results = own.generate(PROMPTS, max_new_tokens=60, ignore_eos=True)
            assert captures(cuda)
        for one, other in zip(results, expected, strict=True):
            assert one.token_ids == other.token_ids
            assert one.stats.rounds == other.stats.rounds


def test_calls_of_one_pass_are_counted() -> None:
    made = treespec.load(target_model("llama"), one_pass("dflash"), builder="dtree", graph=True)
    stats = made.generate(PROMPTS[1], max_new_tokens=20, ignore_eos=True).stats
    assert stats.draft_calls == stats.rounds


@pytest.mark.parametrize("kind", ONE_PASS)
def test_one_pass_drafts_no_deeper_than_trees_can_be(kind: str) -> None:
    own, stepped = (
        treespec.load(
            target_model("llama"), one_pass(kind), builder="dtree", node_budget=2, graph=graph
        )
        for graph in (True, False)
    )
    assert own.graph is not None and own.graph._recipe.max_tokens == 3
    assert texts(own, temperature=0.8) == texts(stepped, temperature=0.8)


def test_calls_are_no_more_than_the_data_ask_for() -> None:
    own, stepped = both(("opt_tree", {"threshold": 0.4}))
    options = {"max_new_tokens": 60, "ignore_eos": True}
    ours, theirs = (made.generate(PROMPTS[1], **options).stats for made in (own, stepped))
    assert ours.rounds == theirs.rounds
    assert 0 <= ours.draft_rows - theirs.draft_rows <= 8  # the last rounds are deeper
    assert ours.seconds["draft"] > 0 and ours.seconds["target"] > 0


@pytest.mark.parametrize(
    "model", ["qwen3_window", "gemma2", "gpt_oss", "gpt2", "mixtral", "deepseek_v3"]
)
def test_other_architectures_too(model: str) -> None:
    for options in ({"temperature": 0.0}, {"temperature": 0.8}):
        own = texts(decoder("opt_tree", True, model), **options)
        assert own == texts(decoder("opt_tree", False, model), **options)


def test_plain_decoding_gives_the_same_text() -> None:
    plain = treespec.load(target_model("llama"), None)
    for options in SAMPLINGS.values():
        assert texts(decoder("opt_tree", True), **options) == texts(plain, **options)


def test_something_is_accepted_and_counted_as_ever() -> None:
    """Statistics differ in the last rounds at most, whose trees need not be as deep."""
    results = [
        decoder("eagle2", graph).generate(PROMPTS[1], max_new_tokens=60, ignore_eos=True)
        for graph in (True, False)
    ]
    own, stepped = [result.stats for result in results]
    assert own.rounds == stepped.rounds < 50
    assert 0 <= own.accepted - stepped.accepted <= 1
    assert own.accepted > 10
    assert sum(own.shapes.values()) == own.rounds
    assert 0 <= sum((Counter(own.shapes) - Counter(stepped.shapes)).values()) <= 2
    assert own.predicted_accepted == pytest.approx(stepped.predicted_accepted, rel=0.05)
    for field in ("offered_by_depth", "accepted_by_depth", "accepted_by_rank"):
        pairs = zip(getattr(own, field), getattr(stepped, field), strict=True)
        assert all(0 <= one - other <= 1 for one, other in pairs)
    widths = decoder("eagle2", True).graph._recipe.drafter.widths
    assert own.draft_rows == own.rounds * sum(widths)
    assert own.seconds["target"] > 0 and own.seconds["draft"] == 0


def played_envelopes(monkeypatch: Any) -> list[int]:
    """Of every round from now on."""
    played: list[int] = []
    original = decoding.play

    def play(recipe: Any, state: Any, part: str, envelope: int, *how: Any) -> None:
        played.append(envelope)
        original(recipe, state, part, envelope, *how)

    monkeypatch.setattr(decoding, "play", play)
    return played


@pytest.mark.parametrize(
    ("attention", "count", "envelopes"),
    [(SplitAttention(16), 140, [64, 128, 256]), (FLEX, 20, [256])],
    ids=["split", "flex"],
)
def test_a_context_outgrows_several_envelopes(
    attention: Any, count: int, envelopes: list[int], monkeypatch: Any
) -> None:
    played = played_envelopes(monkeypatch)
    made = decoder_with(attention, "mistral_window", "eagle2")
    plain = treespec.load(target_model("mistral_window"), None)
    options = {"max_new_tokens": count, "temperature": 0.6}
    assert texts(made, **options) == texts(plain, **options)
    assert sorted(set(played)) == envelopes
    assert played == sorted(played)


def play_on_fake_gpu(monkeypatch: Any) -> FakeCuda:
    """The bookkeeping of a GPU around rounds of the CPU: what is captured is not executed."""
    real_play, real_capture = decoding.play, decoding.CapturedRound
    cuda = FakeCuda(monkeypatch, lambda *key: real_play(*key))

    def captured(play: Any, paused: Any, device: Any, status: Any) -> Any:
        return real_capture(play, paused, torch.device("cuda"), status)

    monkeypatch.setattr(decoding, "play", cuda.play)
    monkeypatch.setattr(decoding, "CapturedRound", captured)
    return cuda


def captures(cuda: FakeCuda) -> list[tuple[Any, ...]]:
    """Keys of the graphs, in order."""
    assert {entry[0] for entry in cuda.log if entry != "wait"} == {"warm up", "capture", "replay"}
    return [entry[3:] for entry in cuda.log if entry[0] == "capture"]


def test_warming_up_and_replaying_costs_no_token(monkeypatch: Any) -> None:
    made = decoder_with(SplitAttention(16), "llama", "eagle2")
    cuda = play_on_fake_gpu(monkeypatch)
    for options in ({"max_new_tokens": 60}, {"max_new_tokens": 60, "temperature": 0.8}):
        assert texts(made, **options) == texts(decoder("opt_tree", False), **options)
    judgements = [Judgement(name) for name in ("greedy", "target_only")]
    keys = [("round", n, how) for how in judgements for n in (64, 128)]
    assert captures(cuda) == keys


def test_parts_of_a_round_are_graphs_of_their_own(monkeypatch: Any) -> None:
    """Few ones: widths, and slots in use, are powers of two."""
    own, stepped = both(("dyspec", {}), draft_temperature=0.2)
    expected = texts(stepped, temperature=0.8, max_new_tokens=60)
    cuda = play_on_fake_gpu(monkeypatch)
    ours = texts(own, temperature=0.8, max_new_tokens=60)
    assert but_last_rounds(ours) == but_last_rounds(expected)
    by_part = Counter(part for part, *_ in captures(cuda))
    assert by_part["begin"] == by_part["finish"] == 1
    grown = [how for part, _, *how in captures(cuda) if part == "grow"]
    assert 0 < len(grown) == len(set(map(tuple, grown))) <= 12
    assert {width for width, _ in grown} <= {1, 2, 4, 8}
    assert {slots for _, slots in grown} <= {1, 2, 4, 8, 16, 32, 64}


def test_sequences_of_a_batch_stop_where_they_would_alone() -> None:
    """Stops, also inside accepted paths, at every place of the texts."""
    free = texts(decoder("opt_tree", False), max_new_tokens=24)
    for place in range(0, 24, 3):
        stops = sorted({text[place] for text in free})
        own, stepped = (
            decoder("opt_tree", graph).generate(
                PROMPTS, max_new_tokens=24, ignore_eos=True, stop_token_ids=stops
            )
            for graph in (True, False)
        )
        assert [r.token_ids for r in own] == [r.token_ids for r in stepped]
        assert [r.finish_reason for r in own] == [r.finish_reason for r in stepped]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_short_texts(count: int) -> None:
    own = texts(decoder("sequoia", True), max_new_tokens=count)
    assert own == texts(decoder("sequoia", False), max_new_tokens=count)
    assert [len(text) for text in own] == [count] * 3


@pytest.mark.parametrize("name", ["kary", "opt_tree"])
def test_no_row_is_written_behind_the_buffers(name: str, monkeypatch: Any) -> None:
    """Not by the last rounds, and not by batch mates that stopped long ago."""
    monkeypatch.setattr(decoding, "_CAPACITY_STEP", 1)
    options = dict(BUILDS)[name]
    made = treespec.load(
        target_model("llama"),
        draft_model("llama"),
        builder=name,
        builder_options=options,
        graph=True,
    )
    prompts = [PROMPTS[0] * 5, PROMPTS[0]]
    expected = texts(decoder(name, False), prompts, max_new_tokens=40)
    for count in range(30, 41):  # for some of them the longer text is the first to end
        assert texts(made, prompts, max_new_tokens=count) == [text[:count] for text in expected]


def test_a_text_may_fill_the_position_table() -> None:
    target, draft = target_model("gpt2", n_positions=48), draft_model("gpt2", n_positions=48)
    options = {"max_new_tokens": 27}
    own = treespec.load(target, draft, builder="chain", graph=True)
    assert texts(own, **options) == texts(treespec.load(target, None), **options)


def test_streams_may_interleave_and_be_closed() -> None:
    made, stepped = decoder("opt_tree", True), decoder("opt_tree", False)
    expected = texts(stepped, max_new_tokens=20)
    streams = [made.stream(p, max_new_tokens=20, ignore_eos=True) for p in PROMPTS]
    got: list[list[int]] = [[], [], []]
    for _ in range(30):
        for stream, out in zip(streams, got, strict=True):
            piece = next(stream, None)
            out += piece.token_ids if piece is not None else []
    assert got == expected
    stream = made.stream(PROMPTS[0], max_new_tokens=20)
    next(stream)
    next(stream)
    stream.close()
    assert texts(made, max_new_tokens=20) == expected


def test_threads_may_share_a_decoder() -> None:
    made = decoder("opt_tree", True)
    expected = texts(decoder("opt_tree", False))
    out: dict[int, Any] = {}

    def work(number: int) -> None:
        out[number] = texts(made)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(out.values()) == [expected] * 3


def test_buffers_are_used_again_and_dropped_after_an_error(monkeypatch: Any) -> None:
    made = treespec.load(target_model("llama"), draft_model("llama"), builder="eagle2", graph=True)
    rounds = made.graph
    first = texts(made)
    buffers = rounds._idle
    assert buffers is not None
    assert texts(made, max_new_tokens=12) == [text[:12] for text in first]
    assert rounds._idle is buffers
    texts(made, max_new_tokens=230, prompts=PROMPTS[:1])  # another batch needs others
    assert rounds._idle is not buffers
    kept = rounds._idle
    with monkeypatch.context() as patch:
        patch.setattr(rounds._target.runner, "prefill", None)
        with pytest.raises(TypeError):
            texts(made)
    assert rounds._idle is kept  # never taken

    def broken(*arguments: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(decoding, "play", broken)
    rounds._idle = None
    with pytest.raises(RuntimeError, match="no memory"):
        texts(made)
    assert rounds._idle is None
    monkeypatch.undo()
    assert texts(made) == first


def test_models_that_give_nan_are_refused_as_step_by_step() -> None:
    model = draft_model("llama", num_hidden_layers=1)
    made = treespec.load(target_model("llama"), model, builder="eagle2", graph=True)
    weight = model.get_output_embeddings().weight
    saved = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(math.nan)
    try:
        with pytest.raises(ValueError, match="NaN"):
            texts(made)
    finally:
        with torch.no_grad():
            weight.copy_(saved)
    assert texts(made) == texts(treespec.load(target_model("llama"), None))


def next_residue(ids: Any) -> Any:
    """A grammar that a node's own path decides: no token is like the last one, modulo 3."""
    return np.arange(64) % 3 != ids[-1] % 3


BIASES = {5: 1.5, 9: -2.0, 17: 1.0, 40: 0.5, 63: 1.0}
CHANGES: dict[str, dict[str, Any]] = {
    "bias": {"temperature": 0.0, "logit_bias": BIASES},
    "grammar": {"temperature": 0.0, "allowed_tokens": next_residue},
    "sampled": {
        "temperature": 0.9,
        "seed": [1, 2**64 - 1, 3],
        "top_p": 0.9,
        "logit_bias": BIASES,
        "allowed_tokens": next_residue,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.2,
    },
}
CHANGED_BUILDS = [
    ("kary", {"expansion": [2, 2, 1]}),
    ("eagle2", {"width": 3, "max_depth": 4}),
    ("opt_tree", {"threshold": 0.4}),
    ("kary", {"expansion": [3, 1], "proposal": "without_replacement"}),
    ("delayed", {"num_paths": 2, "trunk": 1, "branch": 2}),
    ("dyspec", {}),
]


@pytest.mark.parametrize(("build", "changes"), in_turns(CHANGED_BUILDS, CHANGES, each=2), ids=str)
def test_biases_and_grammars_are_part_of_static_rounds(
    build: Any, changes: str, caplog: Any
) -> None:
    own, stepped = both(build)
    options = CHANGES[changes]
    with caplog.at_level(logging.INFO, "treespec"):
        ours, theirs = texts(own, **options), texts(stepped, **options)
    check_played(caplog)
    assert but_last_rounds(ours) == but_last_rounds(theirs)
    if own.builder.proposal == "deterministic":
        assert ours == theirs


def test_what_a_generation_asks_for_ends_with_it() -> None:
    """In the same buffers; and it makes a difference."""
    own, stepped = both(BUILDS[4])
    for options in CHANGES.values():
        plain = {k: v for k, v in options.items() if k not in ("logit_bias", "allowed_tokens")}
        changed, expected = texts(stepped, **options), texts(stepped, **plain)
        assert changed != expected
        assert texts(own, **options) == changed
        assert texts(own, **plain) == expected


@pytest.mark.parametrize("kind", ["treeflash", "medusa"])
def test_drafters_of_one_pass_take_biases_and_grammars(kind: str) -> None:
    own, stepped = (
        treespec.load(target_model("llama"), one_pass(kind), builder="dtree", graph=graph)
        for graph in (True, False)
    )
    for options in CHANGES.values():
        assert texts(own, **options) == texts(stepped, **options)


def test_a_grammar_holds_for_the_text() -> None:
    written = texts(decoder("eagle2", True), **CHANGES["grammar"])
    for text, prompt in zip(written, PROMPTS, strict=True):
        ids = np.array([prompt[-1], *text])
        assert (ids[1:] % 3 != ids[:-1] % 3).all()


def test_a_grammar_is_asked_for_no_text_that_cannot_be() -> None:
    """Trees are as deep in the last round as in any other; batch mates end at other times."""
    seen: Counter[int] = Counter()
    ends = {len(prompt) + 12: prompt for prompt in PROMPTS}

    def rule(ids: Any) -> Any:
        [end] = [n for n, prompt in ends.items() if ids[: len(prompt)].tolist() == prompt]
        seen[end - len(ids)] += 1
        return next_residue(ids)

    texts(decoder("opt_tree", True), allowed_tokens=rule, max_new_tokens=12)
    assert min(seen) == 1 and max(seen) == 12


@pytest.mark.parametrize("build", [BUILDS[5], ("dyspec", {})], ids=str)
def test_batch_mates_may_end_at_any_time_under_a_grammar(build: Any) -> None:
    own, stepped = both(build, verifier="target_only")
    expected = texts(stepped, **CHANGES["sampled"])
    for stop in {text[6] for text in expected}:
        options = {**CHANGES["sampled"], "stop_token_ids": [stop]}
        assert texts(own, **options) == texts(stepped, **options)


def records(made: SpeculativeDecoder, **options: Any) -> list[Any]:
    """Of all rounds, but those near the ends of texts: trees are smaller there step by step."""
    seen: list[Any] = []
    results = texts(made, on_round=seen.append, **options)
    ends = [len(p) + len(t) - 8 for p, t in zip(PROMPTS, results, strict=True)]
    return [record for record in seen if record.position < ends[record.sequence]]


def check_told(ours: list[Any], theirs: list[Any]) -> None:
    """Asserts that rounds are the same, up to the rounding of the drafters' own forwards."""
    assert len(theirs) > 15
    for one, other in zip(ours, theirs, strict=True):
        assert (one.sequence, one.position) == (other.sequence, other.position)
        for name in ("token", "parent", "depth"):
            assert np.array_equal(getattr(one.tree, name), getattr(other.tree, name))
        assert one.tree.proposal == other.tree.proposal and one.tree.draws == other.tree.draws
        assert np.allclose(one.tree.path_logprob, other.tree.path_logprob, rtol=0, atol=1e-4)
        laws = [record.tree.draft_probs for record in (one, other)]
        if laws[1] is None:
            assert laws[0] is None
        else:
            assert np.allclose(*laws, rtol=0, atol=1e-5)
        verdicts = one.verdict, other.verdict
        assert verdicts[0].accepted_nodes.tolist() == verdicts[1].accepted_nodes.tolist()
        assert verdicts[0].tokens.tolist() == verdicts[1].tokens.tolist()


@pytest.mark.parametrize("sampling", ["greedy", "sampled penalties"])
@pytest.mark.parametrize("build", CHANGED_BUILDS, ids=str)
def test_rounds_are_told_as_step_by_step(build: Any, sampling: str, caplog: Any) -> None:
    own, stepped = both(build)
    options = SAMPLINGS[sampling]
    with caplog.at_level(logging.INFO, "treespec"):
        ours, theirs = records(own, **options), records(stepped, **options)
    check_played(caplog)
    check_told(ours, theirs)


def test_drafters_of_one_pass_are_told_of_too() -> None:
    for builder in ("dtree", "rollouts"):
        ours, theirs = (
            records(
                treespec.load(target_model("llama"), one_pass("dflash"), builder=builder, graph=g),
                temperature=0.8,
                allowed_tokens=next_residue,
            )
            for g in (True, False)
        )
        check_told(ours, theirs)


def test_who_has_stopped_is_not_told_of() -> None:
    own, stepped = both(BUILDS[4])
    stop = texts(stepped)[1][8]
    for made in (own, stepped):
        seen: list[Any] = []
        results = made.generate(
            PROMPTS, max_new_tokens=30, stop_token_ids=[stop], on_round=seen.append
        )
        rounds = Counter(record.sequence for record in seen)
        assert [rounds[place] for place in range(3)] == [r.stats.rounds for r in results]


def test_an_error_of_the_listener_drops_the_buffers() -> None:
    made = make_decoder(*BUILDS[4], True)
    expected = texts(made)

    def fail(record: Any) -> None:
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        texts(made, on_round=fail)
    assert made.graph is not None and made.graph._idle is None
    assert texts(made) == expected


def test_biases_of_like_number_share_a_graph(monkeypatch: Any) -> None:
    made = decoder_with(SplitAttention(256), "llama", "eagle2")
    stepped = treespec.load(target_model("llama"), None)
    cuda = play_on_fake_gpu(monkeypatch)
    for count in (3, 4, 0, 5, 8, 1):
        options = {"logit_bias": {7 * i: 1.0 + i for i in range(count)}}
        assert texts(made, **options) == texts(stepped, **options)
    widths = [how.num_biases for _, _, how in captures(cuda)]
    assert widths == [4, 0, 8, 1]


@pytest.mark.parametrize("build", [BUILDS[4], ("dyspec", {})], ids=str)
def test_rounds_that_the_host_looks_at_are_captured_in_parts(build: Any, monkeypatch: Any) -> None:
    """They keep their numbers from part to part, in every envelope."""
    monkeypatch.setattr(decoding, "choose_attention", lambda *_: SplitAttention(16))
    own, stepped = both(build, verifier="target_only")
    cuda = play_on_fake_gpu(monkeypatch)
    options = {**CHANGES["sampled"], "max_new_tokens": 60}
    for _ in range(2):
        assert texts(own, **options) == texts(stepped, **options)
    by_part = Counter(part for part, *_ in captures(cuda))
    assert by_part["trees"] == by_part["target"] == by_part["judge"] >= 2
    assert not {"round", "finish"} & set(by_part)
    order = [entry[1] for entry in cuda.log if entry[0] == "replay"]
    ends = [i for i, part in enumerate(order) if part == "judge"]
    assert all(order[i - 2 : i] == ["trees", "target"] for i in ends)
    assert captures(cuda)[-1][2] == Judgement("target_only", 8, True)
    texts(own, on_round=lambda record: None)
    assert captures(cuda)[-1][2] == Judgement("target_only")


def test_compiled_models_give_the_same_texts(caplog: Any) -> None:
    """In float64, where what compiling rounds in another order does not show."""
    models = [make("llama", num_hidden_layers=1) for make in (target_model, draft_model)]
    chosen = {"builder": "chain", "max_depth": 1, "device": "cpu"}
    compiled = treespec.load(*models, **chosen, graph=True, compile=True)
    blocks = [
        *_blocks(compiled.graph._recipe.target),
        *_blocks(compiled.graph._recipe.drafter.model.runner),
    ]
    assert all("forward" in vars(block) for block in blocks) and len(blocks) == 2
    assert not any("forward" in vars(block) for block in decoder_blocks(models[0]))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert texts(compiled, PROMPTS[:1]) == texts(treespec.load(*models, **chosen), PROMPTS[:1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    with pytest.raises(ValueError, match="compile must be False with graph=False"):
        treespec.load(*models, **chosen, compile=True)


def _blocks(runner: StaticRunner) -> Any:
    return decoder_blocks(runner._view)


def test_graphs_are_for_gpus_unless_asked_for() -> None:
    target, draft = target_model("llama"), draft_model("llama")
    assert treespec.load(target, draft).graph is None
    assert treespec.load(target, draft, graph=False).graph is None
    made = treespec.load(target, draft, graph=True)
    assert made.graph is not None and made.graph.attention.name in ("split", "flex")
    with pytest.raises(ValueError, match="graph must be True, False or 'auto', got 'on'"):
        treespec.load(target, draft, graph="on")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"builder": "dyspec", "node_budget": 200}, "max_depth must be at most 128 for verifier"),
        (
            {"builder": "opt_tree", "node_budget": 2000},
            "node_budget must be in .1, 1024., got 2000",
        ),
        ({"drafter": "ngram", "builder": "trie"}, "Hugging Face model .* and NgramDrafter"),
        ({"drafter": None}, "and NoneType"),
    ],
)
def test_what_has_no_graph_is_refused(options: Any, message: str) -> None:
    options = {"drafter": draft_model("llama"), **options}
    with pytest.raises(NotImplementedError, match=message):
        treespec.load(target_model("llama"), **options, graph=True)


def test_other_targets_are_refused() -> None:
    target, drafter = table_pair()
    with pytest.raises(NotImplementedError, match="got TableTarget and TableDrafter"):
        SpeculativeDecoder(target, drafter, graph=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_auto_falls_back_with_the_reason(compiled: bool, monkeypatch: Any, caplog: Any) -> None:
    """It is a warning where it makes a setting void."""
    target, ignored = HfTarget(target_model("llama")), " and compile=True is ignored" * compiled
    rest = {"graph": "auto", "compile": compiled, "builder": "chain"}

    def reason(drafter: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, "treespec"):
            assert SpeculativeDecoder(target, drafter, **rest).graph is None
        [record] = caplog.records
        assert record.levelname == ("WARNING" if compiled else "INFO")
        prefix = f"rounds run step by step{ignored}: graph: "
        assert record.getMessage().startswith(prefix)
        return record.getMessage().removeprefix(prefix)

    assert reason(drafter_object("ngram")) == "'auto' is for models on a GPU, target is on cpu"
    monkeypatch.setattr(HfTarget, "device", property(lambda own: torch.device("cuda")))
    assert reason(drafter_object("ngram")).startswith("target must be a Hugging Face model")


@pytest.mark.slow
@pytest.mark.parametrize("drafter", ["demo", "demo:eagle3"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_demo_pair_writes_the_same_texts(temperature: float, drafter: str) -> None:
    prompts = ["def main():", "class Stack:"]
    options = {"max_new_tokens": 32, "temperature": temperature}
    for builder in ("chain", "sequoia", "opt_tree"):
        own, stepped = (
            treespec.load("demo", drafter, builder=builder, graph=graph).generate(
                prompts, **options
            )
            for graph in (True, False)
        )
        assert [result.text for result in own] == [result.text for result in stepped]
