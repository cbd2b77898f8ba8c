# SPDX-License-Identifier: Apache-2.0
"""Decoding with TensorRT engines, on a stand-in for TensorRT that computes with ONNX Runtime."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from exported_models import DRAFTERS, LIMITS, exported, tiny_target
from fake_tensorrt import FakeTensorRT, HostQueue

import treespec
from treespec.drafts.base import DraftSettings
from treespec.drafts.graph_dflash import GraphDflashDrafter
from treespec.targets import tensorrt as backend
from treespec.targets.base import Needs, TargetStates, TreeRows
from treespec.targets.graph_target import GraphTarget
from treespec.targets.onnx import OrtSession
from treespec.targets.tensorrt import TensorRtOptions, TensorRtSession
from treespec.targets.tensorrt_queue import CudaQueue

PROMPTS = [list(range(5, 17)), [9, 4, 33], list(range(60, 20, -1))]
GREEDY, SEEDED = {"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.95, "seed": 11}


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return exported("target", tmp_path_factory)


@pytest.fixture
def tensorrt(monkeypatch):
    """The stand-in; `queues` are those of the sessions, in the order of their making."""
    module = FakeTensorRT()
    module.queues = []

    def queue(device):
        module.queues.append(HostQueue())
        return module.queues[-1]

    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(backend, "CudaQueue", queue)
    monkeypatch.setattr(backend, "_ENGINES", WeakValueDictionary())
    return module


@pytest.fixture
def session(tensorrt, target, engines):
    """``session(**options)``: one of the target."""
    return lambda **options: TensorRtSession(
        target, options=TensorRtOptions(**{"cache": engines, **options})
    )


def load(folder, drafter, backend="tensorrt", **options):
    block = drafter is not None and drafter.name in ("dflash", "treeflash")
    return treespec.load(
        folder,
        drafter,
        builder="dtree" if block else "opt_tree",
        backend=backend,
        drafter_options={"self_test": False} if block else None,
        node_budget=12,
        backend_options=options or None,
    )


def texts(decoder, prompts=PROMPTS, sampling=GREEDY, **options):
    results = decoder.generate(prompts, max_new_tokens=24, **sampling, **options)
    return [result.token_ids for result in results]


# --- texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("name", [None, *DRAFTERS])
def test_texts_are_those_of_onnx_runtime_and_of_pytorch(
    tensorrt, target, engines, tmp_path_factory, name, sampling
):
    folder = None if name is None else exported(name, tmp_path_factory)
    eager = treespec.load(
        tiny_target(),
        None if name is None else DRAFTERS[name](),
        builder="dtree" if name in ("dflash", "treeflash") else "opt_tree",
        node_budget=12,
    )
    expected = texts(eager, sampling=sampling)
    assert texts(load(target, folder, "onnx"), sampling=sampling) == expected
    assert texts(load(target, folder, cache=engines), sampling=sampling) == expected
    assert {len(text) for text in expected} != {1}
    assert tensorrt.runs


@pytest.mark.parametrize("max_batch", [1, 2, 3])
@pytest.mark.parametrize("name", [None, "causal_lm", "treeflash"])
def test_a_batch_is_as_good_as_single_runs(
    tensorrt, target, engines, tmp_path_factory, name, max_batch
):
    folder = None if name is None else exported(name, tmp_path_factory)
    decoder = load(target, folder, cache=engines, max_batch=max_batch)
    single = [texts(decoder, [prompt], SEEDED)[0] for prompt in PROMPTS]
    tensorrt.runs.clear()
    assert texts(decoder, PROMPTS, SEEDED) == single
    assert max(shape[0] for _, shape in tensorrt.runs if shape) == max_batch


def test_long_prompts_go_in_parts_that_the_engine_takes(tensorrt, target, engines):
    prompt = [list(np.random.default_rng(3).integers(3, 60, 100))]
    whole = texts(load(target, None, cache=engines), prompt)
    tensorrt.runs.clear()
    decoder = load(target, None, cache=engines, prefill_rows=32, max_nodes=16)
    assert texts(decoder, prompt) == whole
    assert tensorrt.runs[0] == (2, (1, 32)) and max(s[1] for _, s in tensorrt.runs) == 32


def test_a_block_drafter_reads_long_prompts_in_parts(tensorrt, target, engines, tmp_path_factory):
    folder = exported("treeflash", tmp_path_factory)
    prompt = [list(np.random.default_rng(4).integers(3, 60, 70))]
    whole = texts(load(target, folder, cache=engines), prompt)
    assert texts(load(target, folder, cache=engines, prefill_rows=32), prompt) == whole


def test_a_block_drafter_drafts_what_it_drafts_on_onnx_runtime(tensorrt, engines, tmp_path_factory):
    folder = exported("treeflash", tmp_path_factory)
    own = TensorRtSession(folder, options=TensorRtOptions(cache=engines))
    features = np.random.default_rng(5).normal(size=(27, 64)).astype(np.float32)
    drafted = []
    for session, states in ((own, torch.from_numpy(features)), (OrtSession(folder), features)):
        drafter, trees = GraphDflashDrafter(session), []
        sequence = drafter.begin(np.arange(20), TargetStates(states[:20]), 60)
        drafter.observe(sequence, np.array([7]), None)
        for start, end in ((20, 20), (20, 22), (22, 27)):
            if end > start:
                new = TargetStates(states[start:end])
                drafter.observe(sequence, np.arange(start, end) % 50 + 3, new)
            for _ in range(2):  # a second draft changes nothing
                (source,) = drafter.draft([sequence], DraftSettings())
                trees.append(treespec.build_tree("dtree", source, node_budget=30))
        drafted.append(trees)
    for ours, again, theirs in zip(drafted[0][::2], drafted[0][1::2], drafted[1][::2], strict=True):
        for name in ("token", "parent"):
            expected = getattr(theirs, name)
            np.testing.assert_array_equal(getattr(ours, name), expected)
            np.testing.assert_array_equal(getattr(again, name), expected)
        np.testing.assert_allclose(ours.path_logprob, theirs.path_logprob, atol=1e-4)
    assert len({tuple(tree.token) for tree in drafted[0]}) == 3


def test_half_precision_runs_as_exported(tensorrt, engines, tmp_path_factory):
    folder = exported("target in float16", tmp_path_factory)
    target = GraphTarget(TensorRtSession(folder, options=TensorRtOptions(cache=engines)))
    sequence = target.open(60)
    logits, states = target.prefill([sequence], [np.arange(5, 17)], Needs(layers=(1,)))
    assert logits[0].dtype == states[0].features.dtype == torch.float16
    exact = tiny_target()(torch.arange(5, 17)[None]).logits[0, -1]
    assert torch.allclose(logits[0].float(), exact, atol=0.05)


# --- runs --------------------------------------------------------------------------------------


def forward(target, sequence, count=5, first=3):
    """Logits and features of a chain behind the sequence."""
    tree = TreeRows.chain(np.arange(first, first + count))
    logits, states = target.forward([sequence], [tree], Needs(layers=(0, 1)))
    return logits[0], states[0].features


@pytest.fixture
def prefilled(session):
    """``prefilled(**options)``: a target and a sequence of 12 tokens."""

    def make(**options):
        target = GraphTarget(session(**options))
        sequence = target.open(80)
        target.prefill([sequence], [np.arange(5, 17)], Needs())
        return target, sequence

    return make


def test_rows_are_padded_to_the_sizes_the_engine_is_tuned_for(tensorrt, prefilled):
    target, sequence = prefilled()
    for count in (1, 2, 16, 17, 32):
        logits, features = forward(target, sequence, count)
        assert logits.shape == (count, 64) and features.shape == (count, 64)
    assert tensorrt.runs[1:] == [
        (0, (1, 1)),
        (1, (1, 16)),
        (1, (1, 16)),
        (2, (1, 32)),
        (2, (1, 32)),
    ]


def test_padding_ends_where_the_cache_ends(tensorrt, session):
    target = GraphTarget(session())
    sequence = target.open(target.runner.pool.open(1).pool._fixed)
    prompt = np.random.default_rng(6).integers(3, 60, sequence.capacity - 20)
    target.prefill([sequence], [prompt], Needs())
    tensorrt.runs.clear()
    forward(target, sequence, 17)
    assert tensorrt.runs == [(2, (1, 20))]


def test_results_hold_after_the_next_run(tensorrt, prefilled):
    target, sequence = prefilled()
    logits, features = forward(target, sequence)
    before = logits.clone(), features.clone()
    forward(target, sequence, 7, first=20)
    assert torch.equal(logits, before[0]) and torch.equal(features, before[1])


def test_features_may_come_from_another_engine_without_the_host(tensorrt, prefilled):
    target, sequence = prefilled()
    _, features = forward(target, sequence)
    assert isinstance(features, torch.Tensor)


def test_a_seen_run_is_replayed_as_one_graph(tensorrt, prefilled):
    target, sequence = prefilled()
    (queue,) = tensorrt.queues
    first, _ = forward(target, sequence)
    assert (queue.captures, queue.replays) == (0, 0)
    for times in (1, 2, 3):
        logits, _ = forward(target, sequence)
        assert (queue.captures, queue.replays) == (1, times)
        assert torch.equal(logits, first)
    forward(target, sequence, 20)
    assert (queue.captures, queue.replays) == (1, 3)


def test_a_replay_reads_the_new_inputs(tensorrt, prefilled):
    target, sequence = prefilled()
    plain, other = prefilled(cuda_graphs=False)
    for count in (5, 3, 9, 5, 12):
        ours, theirs = forward(target, sequence, count), forward(plain, other, count)
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert tensorrt.queues[0].replays == 4 and tensorrt.queues[1].replays == 0


def test_each_slot_of_a_batch_has_a_context_of_its_own(tensorrt, session):
    target = GraphTarget(session(max_batch=2))
    sequences = [target.open(60), target.open(60)]
    target.prefill(sequences, [np.arange(5, 17), np.arange(9, 21)], Needs())
    made = tensorrt.contexts
    for _ in range(3):
        for sequence in sequences:
            forward(target, sequence)
    assert tensorrt.contexts == made + 2
    assert (tensorrt.queues[0].captures, tensorrt.queues[0].replays) == (2, 4)


def test_without_graphs_the_texts_are_the_same(tensorrt, target, engines):
    decoder = load(target, None, cache=engines)
    plain = load(target, None, cache=engines, cuda_graphs=False)
    assert texts(decoder) == texts(plain)
    assert tensorrt.queues[0].replays > 10
    assert tensorrt.queues[1].captures == 0


def test_a_capture_that_fails_is_said_once_and_runs_go_on(tensorrt, prefilled, caplog):
    target, sequence = prefilled()
    tensorrt.queues[0].error = RuntimeError("operation not permitted\nwhen stream is capturing")
    first, _ = forward(target, sequence)
    for _ in range(3):
        logits, _ = forward(target, sequence)
        assert torch.equal(logits, first)
    forward(target, sequence, 20)
    said = [r.message for r in caplog.records if "CUDA graphs" in r.message]
    assert said == ["TensorRT runs without CUDA graphs, capturing failed: operation not permitted"]


def test_prepared_shapes_are_forgotten_when_there_are_too_many(tensorrt, prefilled, monkeypatch):
    monkeypatch.setattr(backend, "_MAX_PREPARED", 2)
    target, sequence = prefilled()
    forward(target, sequence, 32)  # a buffer that grows moves, and needs new contexts anyway
    made = tensorrt.contexts
    for count in (1, 9, 1, 20):  # the one used longest ago goes
        forward(target, sequence, count)
    assert tensorrt.contexts == made + 3
    forward(target, sequence, 1)
    assert tensorrt.contexts == made + 3
    forward(target, sequence, 9)
    assert tensorrt.contexts == made + 4
    assert len(target.runner._session._prepared) == 2


def test_sessions_of_one_engine_share_its_weights(tensorrt, session):
    first, second = session(), session()
    assert tensorrt.deserialized == 1
    assert first._loaded is second._loaded
    assert first._queue.handle != second._queue.handle
    third = session(max_nodes=16)
    assert tensorrt.deserialized == 2 and third._loaded is not first._loaded


def test_threads_with_sessions_of_their_own_do_not_disturb_each_other(tensorrt, target, engines):
    decoders = [load(target, None, cache=engines) for _ in range(3)]
    alone = [texts(decoders[0], [prompt], SEEDED) for prompt in PROMPTS]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda d, p: texts(d, [p], SEEDED), decoders, PROMPTS))
    assert together == alone
    assert tensorrt.deserialized == 1


# --- what is refused ---------------------------------------------------------------------------


def a_run(session, nodes, **options):
    """A session, and inputs and caches of a run of so many rows that see everything."""
    own = session(**options)
    inputs = {
        "input_ids": np.zeros((1, nodes), np.int64),
        "position_ids": np.zeros((1, nodes), np.int64),
        "logit_rows": np.arange(nodes),
        "attention_mask": np.ones((1, 1, nodes, own.capacity), np.bool_),
        "write_index": np.array([0]),
    }
    shape = (1, 2, own.capacity, 8)
    return own, inputs, [own.memory.zeros(shape, "float32") for _ in own.manifest.cache]


def test_more_rows_than_the_engine_is_built_for_are_refused(tensorrt, prefilled, session):
    target, sequence = prefilled(max_nodes=16)
    with pytest.raises(ValueError, match=r"at most 16 nodes with their root, .* got 17"):
        forward(target, sequence, 17)
    forward(target, sequence, 16)
    own = session(max_nodes=16, prefill_rows=16)
    with pytest.raises(ValueError, match="nodes must be at most 16, which the engine is built for"):
        own.padded("nodes", 17, 100)
    own, inputs, cache = a_run(session, 17, max_nodes=16)
    with pytest.raises(ValueError, match=r"must fit a profile of the engine \(decode"):
        own.run(inputs, cache, ["logits"])


def test_a_text_longer_than_the_engine_is_built_for_is_refused(tensorrt, session):
    target = GraphTarget(session(max_context=100, max_nodes=16, prefill_rows=16))
    assert target.max_context == 100
    with pytest.raises(ValueError, match="capacity must be at most 128"):
        target.open(129)


def test_rows_behind_the_cache_are_refused_since_tensorrt_would_drop_them(tensorrt, session):
    own, inputs, cache = a_run(session, 4)
    inputs["write_index"] += own.capacity - 3
    with pytest.raises(ValueError, match=f"must end at {own.capacity}, .* got {own.capacity + 1}"):
        own.run(inputs, cache, ["logits"])
    inputs["write_index"] -= 1
    assert own.run(inputs, cache, ["logits"])["logits"].shape == (1, 4, 64)


def test_a_run_gives_as_many_logit_rows_as_are_asked_for(tensorrt, session):
    own = session(max_batch=2)
    cache = [own.memory.zeros((2, 2, own.capacity, 8), "float32") for _ in own.manifest.cache]
    inputs = {
        "input_ids": np.ones((2, 4), np.int64),
        "position_ids": np.zeros((2, 4), np.int64),
        "attention_mask": np.ones((2, 1, 4, own.capacity), np.bool_),
        "write_index": np.array([0, 9]),
    }
    everything = own.run({**inputs, "logit_rows": np.arange(4)}, cache, ["logits"])["logits"]
    for rows in ([2], [1, 3]):
        found = own.run({**inputs, "logit_rows": np.array(rows)}, cache, ["logits"])["logits"]
        assert torch.equal(found, everything[:, rows])


def test_memory_that_is_not_aligned_is_refused(tensorrt, session):
    own, inputs, _ = a_run(session, 1)
    rows = own.memory.zeros((1, 2, own.capacity + 1, 8), "float32")
    crooked = rows.flatten()[1 : 1 + 2 * own.capacity * 8].reshape(1, 2, own.capacity, 8)
    with pytest.raises(RuntimeError, match="cache_keys_0 must be at a multiple of 256"):
        own.run(inputs, [crooked] * len(own.manifest.cache), ["logits"])


def test_a_run_that_fails_says_what_tensorrt_says(tensorrt, prefilled):
    target, sequence = prefilled()
    tensorrt.run_error = "an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="refuses the run: an illegal memory access"):
        forward(target, sequence)
    tensorrt.run_error = None
    forward(target, sequence)


@pytest.mark.parametrize(
    "alias, message",
    [(None, "is a tensor of its own"), ("cache_keys_9", "is that of cache_keys_9")],
)
def test_an_engine_that_does_not_write_in_place_is_refused(tensorrt, session, alias, message):
    tensorrt.aliases = {"present_keys_0": alias}
    with pytest.raises(
        RuntimeError, match=f"must be written in place of cache_keys_0, but {message}"
    ):
        session()


def test_a_plan_that_tensorrt_refuses_is_named(tensorrt, target, tmp_path):
    options = TensorRtOptions(cache=tmp_path)
    engine = TensorRtSession(target, options=options)._loaded
    del engine
    tensorrt.refuse_plans = True
    with pytest.raises(RuntimeError, match=r"refuses the engine .*plan: .*another version.*remove"):
        TensorRtSession(target, options=options)


def test_without_a_build_a_missing_engine_is_an_error(tensorrt, target, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is none"):
        TensorRtSession(target, options=TensorRtOptions(cache=tmp_path, build=False))
    built = TensorRtSession(target, options=TensorRtOptions(cache=tmp_path))
    found = TensorRtSession(target, options=TensorRtOptions(cache=tmp_path, build=False))
    assert built.spec == found.spec and tensorrt.builds == 1


def test_an_engine_needs_neither_graph_nor_weights_once_built(tensorrt, target, tmp_path):
    import shutil

    own = tmp_path / "own"
    shutil.copytree(target, own)
    before = texts(load(own, None, build=True), PROMPTS[:1])
    for name in ("model.onnx", "model.onnx.data"):
        (own / name).unlink()
    assert texts(load(own, None, build=False), PROMPTS[:1]) == before


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_devices_that_are_no_gpu_are_refused(device):
    with pytest.raises(ValueError, match=f"'auto' or 'cuda' with TensorRT, got {device}"):
        CudaQueue(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_machine_without_a_gpu_is_told_what_to_use():
    with pytest.raises(NotImplementedError, match=r"needs an NVIDIA GPU .*use backend='onnx'"):
        CudaQueue()


def test_unknown_options_are_refused_with_the_known_ones(tensorrt, target):
    with pytest.raises(ValueError, match="backend_options of tensorrt must be among max_context"):
        treespec.load(target, None, backend="tensorrt", backend_options={"max_seq": 3})


def test_limits_reach_the_decoder(tensorrt, session):
    manifest = session(max_context=64, max_nodes=16).manifest
    assert (manifest.max_context, manifest.max_nodes) == (64, 16)
    assert LIMITS == {"max_nodes": 32, "max_context": 160}
