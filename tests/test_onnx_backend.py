# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime as the backend: the texts of PyTorch, without it, and nothing left behind."""

import json
import shutil
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from exported_models import DEMO_DRAFTERS, exported
from onnx_cases import TARGETS, onnx_decoder, ragged_prompts, texts, torch_decoder
from typer.testing import CliRunner

import treespec
from treespec import demo
from treespec.cli import build_app
from treespec.drafts.suffix import SuffixDrafter
from treespec.export.manifest import FILE_NAME, Manifest
from treespec.loading import named_drafter
from treespec.targets import graph_runner, kv_slots, onnx
from treespec.targets.base import Needs, TreeRows
from treespec.targets.memory import DeviceMemory, HostMemory
from treespec.targets.onnx import OnnxOptions, OrtSession, load_target
from treespec.tuning import measure_costs

# One or two of every proposal mode, of growths of every kind.
BUILDERS = [
    ("chain", {}),
    ("chain", {"proposal": "iid"}),
    ("kary", {"expansion": [2, 2]}),
    ("opt_tree", {}),
    ("dyspec", {}),
    ("delayed", {}),
]
FROM_LISTS = [("chain", {}), ("dtree", {}), ("kary", {"expansion": [2, 2], "proposal": "iid"})]
TREE = {"node_budget": 8, "max_depth": 4}


@pytest.fixture
def load(tmp_path_factory):
    """``load(target, drafter, **options)``: a decoder on ONNX Runtime."""
    return lambda *names, **options: onnx_decoder(tmp_path_factory, *names, **options)


@pytest.fixture
def folder(tmp_path_factory):
    """``folder(name)``: an exported folder, which nobody may change."""
    return lambda name: exported(name, tmp_path_factory)


@pytest.fixture
def own_copy(tmp_path_factory, tmp_path):
    """``own_copy(name)``: an exported folder to break."""
    return lambda name: shutil.copytree(exported(name, tmp_path_factory), tmp_path / "copy")


def assert_nothing_left(decoder):
    """All slots are free, and their memory is gone."""
    assert not decoder.target.runner.pool.buffers
    if decoder.drafter is not None and hasattr(decoder.drafter, "runner"):
        assert not decoder.drafter.runner.pool.buffers


# --- the same texts as PyTorch ------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("builder", "options"), BUILDERS)
def test_a_ragged_batch_has_the_texts_of_pytorch(load, target, builder, options, temperature):
    wanted = {"builder": builder, "builder_options": options, **TREE}
    prompts = ragged_prompts()
    ours = texts(load(target, "causal_lm", **wanted), prompts, temperature=temperature, seed=5)
    theirs = texts(
        torch_decoder(target, "causal_lm", **wanted), prompts, temperature=temperature, seed=5
    )
    assert ours == theirs


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("drafter", ["dflash", "treeflash"])
@pytest.mark.parametrize(("builder", "options"), FROM_LISTS)
def test_block_drafters_give_the_texts_of_pytorch(load, drafter, builder, options, temperature):
    wanted = {"builder": builder, "builder_options": options, **TREE}
    prompts = ragged_prompts()
    decoder = load("target", drafter, **wanted)
    ours = decoder.generate(
        prompts, max_new_tokens=30, ignore_eos=True, temperature=temperature, seed=5
    )
    theirs = torch_decoder("target", drafter, **wanted).generate(
        prompts, max_new_tokens=30, ignore_eos=True, temperature=temperature, seed=5
    )
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
    assert [one.stats.rounds for one in ours] == [one.stats.rounds for one in theirs]


@pytest.mark.parametrize("drafter", ["ngram", "suffix", None])
def test_drafters_without_a_model_and_none_give_the_texts_of_pytorch(load, drafter):
    prompts = ragged_prompts()
    ours = texts(load("target", drafter), prompts, temperature=0.7)
    assert ours == texts(torch_decoder("target", drafter), prompts, temperature=0.7)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("drafter", ["causal_lm", "treeflash"])
def test_a_batch_equals_its_single_runs(load, target, drafter):
    builder = "opt_tree" if drafter == "causal_lm" else "dtree"
    decoder = load(target if drafter == "causal_lm" else "target", drafter, builder=builder, **TREE)
    prompts = ragged_prompts((5, 40, 1, 17))
    batch = texts(decoder, prompts, temperature=0.7)
    assert batch == [texts(decoder, [prompt], temperature=0.7)[0] for prompt in prompts]
    assert_nothing_left(decoder)


@pytest.mark.parametrize("target", ["target", "target of new rows"])
def test_buffers_that_grow_by_few_rows_give_the_same_text(load, target, monkeypatch):
    decoder = load(target, "causal_lm", **TREE)
    prompts = ragged_prompts((3, 60))
    usual = texts(decoder, prompts, max_new_tokens=80)
    grown = []
    resize = kv_slots.KvPool._resize

    def counted(pool, slots, rows):
        before = pool.rows
        resize(pool, slots, rows)
        grown.append(pool.rows != before)

    monkeypatch.setattr(kv_slots, "BLOCK_ROWS", 4)
    monkeypatch.setattr(kv_slots.KvPool, "_resize", counted)
    assert texts(decoder, prompts, max_new_tokens=80) == usual
    assert sum(grown) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMO_DRAFTERS)
def test_the_demo_pair_writes_what_it_writes_in_pytorch_over_several_blocks_of_rows(folder, name):
    prompts = demo.prompts()[:2]
    options = {"max_new_tokens": 300, "temperature": 0.7, "seed": 3, "ignore_eos": True}
    expected = treespec.load().generate(prompts, **options)
    for drafter in DEMO_DRAFTERS[name]:
        builder = "dtree" if drafter == "treeflash" else "opt_tree"
        decoder = treespec.load(folder(name), folder(name) / drafter, builder=builder)
        results = decoder.generate(prompts, **options)
        assert [one.token_ids for one in results] == [one.token_ids for one in expected]
        assert [one.text for one in results] == [one.text for one in expected]
        assert results[0].stats.block_efficiency > 1.3


def test_half_precision_is_as_close_as_half_precision_is(folder):
    prompt = np.array(ragged_prompts((20,))[0], np.int32)
    tree = TreeRows.chain([5, 6, 7])
    rows = []
    for name in ("target", "target in float16"):
        target = load_target(folder(name))
        sequence = target.open(40)
        target.prefill([sequence], [prompt], Needs())
        logits, _ = target.forward([sequence], [tree], Needs())
        rows.append(logits[0].astype(np.float64))
    assert 0 < np.abs(rows[0] - rows[1]).max() < 0.05


def test_half_precision_texts_are_those_of_plain_decoding(load):
    prompts = ragged_prompts()
    plain = texts(load("target in float16", None), prompts)
    assert texts(load("target in float16", "causal_lm", **TREE), prompts) == plain


def test_an_exported_drafter_drafts_for_a_pytorch_target(folder):
    model = TARGETS["target"]()
    expected = texts(torch_decoder("target", None), ragged_prompts())
    for name, builder in (("causal_lm", "opt_tree"), ("treeflash", "dtree")):
        options = {} if name == "causal_lm" else {"self_test": False}
        decoder = treespec.load(
            model, folder(name), builder=builder, drafter_options=options, device="cpu", **TREE
        )
        assert texts(decoder, ragged_prompts()) == expected


def test_a_pytorch_drafter_drafts_for_an_exported_target(folder):
    decoder = treespec.load(folder("target"), TARGETS["target"](), builder="chain", device="cpu")
    result = decoder.generate(ragged_prompts()[1], max_new_tokens=20, ignore_eos=True)
    assert result.token_ids == texts(torch_decoder("target", None), ragged_prompts()[1:2])[0][:20]
    assert result.stats.accepted == result.stats.drafted_nodes > 10  # it drafts for itself


# --- without PyTorch ----------------------------------------------------------------------------

ALONE = """
import sys, treespec
target = sys.argv[1]
for drafter in ("auto", target + "/drafter", "suffix", "ngram", target + "/treeflash"):
    builder = "dtree" if drafter.endswith("treeflash") else "opt_tree"
    decoder = treespec.load(target, drafter, builder=builder)
    print(repr(decoder.generate("def add(a, b):", max_new_tokens=12, temperature=0.5).text))
assert not {"torch", "transformers", "onnx"} & set(sys.modules), "imported"
"""


def test_a_process_on_onnx_runtime_imports_neither_torch_nor_transformers(folder):
    run = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder("demo"))], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert len(set(run.stdout.splitlines())) == 1 < len(run.stdout.splitlines())


def test_unless_named_the_drafter_is_the_one_that_was_exported_with_the_target(folder):
    beside = treespec.load(folder("demo")).drafter
    assert beside.runner.manifest == Manifest.load(folder("demo") / "drafter")
    assert isinstance(treespec.load(folder("target")).drafter, SuffixDrafter)
    assert named_drafter("a/model", "auto") == "demo"
    assert named_drafter(folder("demo"), "demo") == "demo"


# --- rounds that end early ----------------------------------------------------------------------


def test_stop_tokens_and_ends_of_text_cut_where_pytorch_cuts(load):
    prompts = ragged_prompts()
    free = texts(load("target", None), prompts)
    ours = load("target", "causal_lm", **TREE)
    theirs = torch_decoder("target", None)
    for options in ({"stop_token_ids": [free[0][7], free[1][11]]}, {"ignore_eos": False}):
        cut = texts(ours, prompts, **options)
        assert cut == texts(theirs, prompts, **options)
    assert_nothing_left(ours)


def test_a_stop_string_ends_the_text_of_the_demo(folder):
    decoder = treespec.load(folder("demo"), folder("demo") / "drafter")
    whole = decoder.generate("def add(a, b):", max_new_tokens=40).text
    stop = whole[10:13]
    result = decoder.generate("def add(a, b):", max_new_tokens=40, stop=stop)
    assert result.finish_reason == "stop"
    assert result.text == whole[: whole.index(stop)]


@pytest.mark.parametrize("drafter", ["causal_lm", "treeflash"])
def test_a_cancelled_stream_leaves_the_decoder_as_it_was(load, drafter):
    builder = "opt_tree" if drafter == "causal_lm" else "dtree"
    decoder = load("target", drafter, builder=builder, **TREE)
    prompt = ragged_prompts()[1]
    expected = texts(decoder, [prompt])[0]
    stream = decoder.stream(prompt, max_new_tokens=30, ignore_eos=True)
    next(stream), next(stream)
    stream.close()
    assert_nothing_left(decoder)
    assert texts(decoder, [prompt])[0] == expected


@pytest.mark.parametrize("target", ["target", "target of new rows"])
def test_the_memory_of_caches_goes_with_the_last_sequence(load, target, monkeypatch):
    made = []
    zeros = HostMemory.zeros

    def remembered(self, shape, dtype):
        array = zeros(self, shape, dtype)
        if len(shape) == 4:  # others are buffers of inputs and outputs
            made.append(weakref.ref(array))
        return array

    monkeypatch.setattr(HostMemory, "zeros", remembered)
    decoder = load(target, "causal_lm", **TREE)
    before = texts(decoder, ragged_prompts())
    assert made and [one for one in made if one() is not None] == []
    assert texts(decoder, ragged_prompts()) == before


def test_streams_may_take_turns(load):
    decoder = load("target", "causal_lm", **TREE)
    prompts = ragged_prompts()
    expected = texts(decoder, prompts)
    streams = [decoder.stream(p, max_new_tokens=30, ignore_eos=True) for p in prompts]
    written = [[] for _ in prompts]
    running = list(range(len(prompts)))
    while running:
        for at in list(running):
            piece = next(streams[at], None)
            if piece is None:
                running.remove(at)
            else:
                written[at] += piece.token_ids
    assert written == expected
    assert_nothing_left(decoder)


@pytest.mark.parametrize("drafter", ["causal_lm", "treeflash"])
def test_threads_may_share_a_decoder(load, drafter):
    builder = "opt_tree" if drafter == "causal_lm" else "dtree"
    decoder = load("target", drafter, builder=builder, **TREE)
    prompts = ragged_prompts((3, 21, 9, 40, 12))
    expected = [texts(decoder, [prompt])[0] for prompt in prompts]
    with ThreadPoolExecutor(5) as pool:
        for _ in range(3):
            written = pool.map(lambda prompt: texts(decoder, [prompt])[0], prompts)
            assert list(written) == expected
    assert_nothing_left(decoder)


@pytest.mark.parametrize("target", ["target", "target of new rows"])
@pytest.mark.parametrize("where", ["callback", "target", "drafter"])
def test_an_exception_in_a_round_leaves_the_decoder_as_it_was(load, target, where, monkeypatch):
    decoder = load(target, "causal_lm", **TREE)
    prompts = ragged_prompts()
    expected = texts(decoder, prompts)
    calls = []

    def fails_later(*args, **options):
        calls.append(args)
        if len(calls) > 4:
            raise RuntimeError("no more")
        return forward(*args, **options) if where != "callback" else None

    with monkeypatch.context() as patch:
        options = {}
        if where == "callback":
            options["on_round"] = fails_later
        else:
            runner = getattr(decoder, where).runner
            forward = runner.forward
            patch.setattr(runner, "forward", fails_later)
        with pytest.raises(RuntimeError, match="no more"):
            texts(decoder, prompts, **options)
    assert len(calls) == 5
    assert_nothing_left(decoder)
    assert texts(decoder, prompts) == expected


def test_a_failed_prefill_leaves_the_sequences_as_they_were(folder, monkeypatch):
    target = load_target(folder("target"))
    prompts = [np.array(p, np.int32) for p in ragged_prompts((30, 10))]
    sequences = [target.open(64) for _ in prompts]
    target.prefill(sequences, [p[:5] for p in prompts], Needs())
    run, calls = OrtSession.run, []

    def fails_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError
        return run(*args)

    with monkeypatch.context() as patch:
        patch.setattr(OrtSession, "run", fails_at_the_third)
        with pytest.raises(MemoryError):
            target.runner.prefill(sequences, [p[5:] for p in prompts], max_rows=8)
    assert [(one.length, one.pending) for one in sequences] == [(5, 0), (5, 0)]
    logits, _ = target.prefill(sequences, [p[5:] for p in prompts], Needs())
    whole, _ = target.prefill([target.open(64) for _ in prompts], prompts, Needs())
    for row, expected in zip(logits, whole, strict=True):
        np.testing.assert_allclose(row, expected, rtol=0, atol=2e-5)


# --- forwards -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_rows", [1, 7, 64])
@pytest.mark.parametrize("name", ["target", "target of new rows", "target with windows"])
def test_a_prefill_in_chunks_equals_one_in_pytorch(folder, name, max_rows):
    target, reference = load_target(folder(name)), torch_decoder(name, None).target
    prompts = [np.array(p, np.int32) for p in ragged_prompts((2, 30, 11, 30))]
    needs = Needs(layers=(1, 0))
    sequences = [target.open(64) for _ in prompts]
    features = {"max_rows": max_rows, "features": True}
    logits, _ = target.runner.prefill(sequences, prompts, **features)
    expected, _ = reference.prefill([reference.open(64) for _ in prompts], prompts, needs)
    for row, other in zip(logits, expected, strict=True):
        np.testing.assert_allclose(row, other, rtol=0, atol=2e-5)
    again = [target.open(64) for _ in prompts]
    _, states = target.prefill(again, prompts, needs)
    _, other_states = reference.prefill([reference.open(64) for _ in prompts], prompts, needs)
    for own, other in zip(states, other_states, strict=True):
        np.testing.assert_allclose(own.features, other.features, rtol=0, atol=2e-5)


def test_padding_and_mates_do_not_move_a_row(folder):
    target = load_target(folder("target"))
    prompts = [np.array(p, np.int32) for p in ragged_prompts((4, 25))]
    trees = [
        TreeRows(*(np.array(a, np.int32) for a in ([7, 8, 9], [-1, 0, 0], [0, 1, 1]))),
        TreeRows.chain(np.arange(10, 24)),
    ]
    batch = [target.open(64) for _ in prompts]
    target.prefill(batch, prompts, Needs())
    together = [rows.copy() for rows in target.forward(batch, trees, Needs())[0]]
    for prompt, tree, rows in zip(prompts, trees, together, strict=True):
        alone = target.open(64)
        target.prefill([alone], [prompt], Needs())
        (expected,), _ = target.forward([alone], [tree], Needs())
        assert rows.shape == (len(tree), target.vocab_size)
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)


def test_a_graph_for_fixed_buffers_and_few_sequences_gives_the_same_texts(folder, monkeypatch):
    """What an engine asks for: rows fixed, two sequences at once, rows padded to eights."""
    prompts = ragged_prompts((3, 21, 9, 5))
    options = {"builder": "opt_tree", **TREE}
    paths = (folder("target"), folder("causal_lm"))
    expected = texts(treespec.load(*paths, **options), prompts)
    monkeypatch.setattr(OrtSession, "capacity", 64)
    monkeypatch.setattr(OrtSession, "max_batch", 2)
    monkeypatch.setattr(
        OrtSession, "padded", lambda self, axis, count, room: min(room, -(-count // 8) * 8)
    )
    decoder = treespec.load(*paths, **options)
    assert texts(decoder, prompts) == expected
    with pytest.raises(ValueError, match="capacity must be at most 64"):
        texts(decoder, prompts, max_new_tokens=100)
    block = {"builder": "dtree", "drafter_options": {"self_test": False}, **TREE}
    decoder = treespec.load(folder("target"), folder("treeflash"), **block)
    assert texts(decoder, prompts, max_new_tokens=20) == [text[:20] for text in expected]


@pytest.mark.parametrize("name", ["target", "target of new rows"])
def test_buffers_in_torch_tensors_give_the_same_texts(load, name, monkeypatch):
    """As on a GPU, but for the device: what a run returns stays where it is."""
    prompts = ragged_prompts()
    pairs = [(name, "causal_lm", "opt_tree")]
    if name == "target":
        pairs.append((name, "treeflash", "dtree"))
    expected = texts(load(name, None), prompts, temperature=0.7)
    monkeypatch.setattr(onnx, "_memory", lambda providers: DeviceMemory("cpu"))
    for target, drafter, builder in pairs:
        decoder = load(target, drafter, builder=builder, **TREE)
        assert texts(decoder, prompts, temperature=0.7) == expected
        state = decoder.target.open(8)
        (row,), _ = decoder.target.prefill([state], [np.array([5])], Needs())
        assert isinstance(row, torch.Tensor)
        decoder.target.close(state)
        assert_nothing_left(decoder)


def test_a_drafter_whose_logits_are_bfloat16_drafts(load, monkeypatch):
    """As on a GPU: a torch tensor, of a dtype that NumPy lacks."""
    prompts = ragged_prompts()
    expected = texts(load("target", None), prompts)
    monkeypatch.setattr(onnx, "_memory", lambda providers: DeviceMemory("cpu"))
    decoder = load("target", "causal_lm", **TREE)
    session = decoder.drafter.runner._session
    run = session.run

    def rounded(*arguments):
        out = run(*arguments)
        return {**out, "logits": out["logits"].to(torch.bfloat16)}

    monkeypatch.setattr(session, "run", rounded)
    assert texts(decoder, prompts) == expected


def test_without_onnx_runtime_the_error_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'treespec\[onnx\]'"):
        treespec.load(folder("target"), None)


@pytest.mark.parametrize("version", ["1.24.4", "1.9.0"])
def test_an_onnx_runtime_without_the_operators_is_refused(folder, monkeypatch, version):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(NotImplementedError, match=f"must be at least 1.25, .* got {version}"):
        treespec.load(folder("target"), None)


def test_sequences_that_only_fit_without_padding_run_by_themselves(folder, monkeypatch):
    prompts = [np.array(p, np.int32) for p in ragged_prompts((60, 4))]
    trees = [TreeRows.chain([5, 6]), TreeRows.chain(np.arange(3, 23))]
    results = []
    for capacity in (None, 64):
        monkeypatch.setattr(OrtSession, "capacity", capacity)
        target = load_target(folder("target"))
        sequences = [target.open(64) for _ in prompts]
        target.prefill(sequences, prompts, Needs())
        results.append([rows.copy() for rows in target.forward(sequences, trees, Needs())[0]])
    for own, other in zip(*results, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-5)


def test_a_prefill_pads_little_and_runs_seldom():
    assert graph_runner._chunk([500], 512) == 500
    assert graph_runner._chunk([5000], 512) == 512
    assert graph_runner._chunk([100, 99, 98], 512) == 100  # little padding: one forward
    assert graph_runner._chunk([100] + [5] * 7, 512) == 5  # much padding: the short ones first


# --- what is refused ----------------------------------------------------------------------------

REFUSED = [
    ({"backend": "gguf"}, "backend must be one of auto, hf, onnx, tensorrt, got 'gguf'"),
    ({"backend": "hf"}, "backend must be one of onnx, tensorrt for .*, an exported folder"),
    ({"device": "tpu"}, "device must be 'auto', 'cpu', 'cuda' or 'cuda:N' .*, got 'tpu'"),
    ({"device": "cuda"}, "providers must be among .*CPUExecutionProvider, .* got CUDAExecutionPro"),
    ({"dtype": "float16"}, "dtype must be 'auto' or 'float32', .*--dtype float16"),
    ({"backend_options": {"cores": 2}}, "backend_options of onnx must be among providers, threads"),
    ({"backend_options": {"threads": 0}}, "threads must be at least 1, got 0"),
    ({"backend_options": {"providers": "NoProvider"}}, "must be among .* got NoProvider"),
    ({"node_budget": 32}, "trees must have at most 32 nodes with their root, .* got 33; lower"),
    ({"drafter": "demo:medusa"}, "target must be a transformers model, got GraphTarget"),
    ({"drafter": "demo:treeflash"}, "target must be a transformers model, got GraphTarget"),
    ({"drafter_options": {"width": 4}}, "exported causal language models must be among none"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_bad_arguments_are_refused_with_what_would_do(folder, options, message):
    options = {"drafter": folder("causal_lm"), **options}
    with pytest.raises(ValueError, match=message):
        treespec.load(folder("target"), **options)


@pytest.mark.parametrize("target", ["demo", "some/model"])
def test_a_model_that_is_not_exported_is_sent_to_the_export(target):
    with pytest.raises(ValueError, match=f"run: treespec export --target {target} --out DIR"):
        treespec.load(target, backend="onnx")
    with pytest.raises(ValueError, match="backend_options are for exported folders"):
        treespec.load(target, backend_options={"threads": 2})


def test_roles_are_not_mixed_up(folder):
    with pytest.raises(ValueError, match="target must be an exported target, got a drafter"):
        treespec.load(folder("causal_lm"), None)
    with pytest.raises(ValueError, match="drafter must be an exported drafter, got a target"):
        treespec.load(folder("target"), folder("target"))


def test_a_drafter_of_another_target_is_refused(folder):
    with pytest.raises(ValueError, match="one of this target's 64 tokens, got 2048"):
        treespec.load(folder("target"), folder("demo") / "treeflash", builder="dtree")
    with pytest.raises(ValueError, match="the first guess must be right"):  # a random one
        treespec.load(folder("target"), folder("treeflash"), builder="dtree")


def test_missing_features_are_asked_for_by_their_layers(folder, own_copy):
    copy = own_copy("target")
    change_manifest(copy, layers=[])
    with pytest.raises(ValueError, match=r"reads layers 0,1 .* with none; .* --features 0,1"):
        treespec.load(copy, folder("dflash"), builder="dtree")


def test_bfloat16_is_refused_on_a_cpu(folder):
    with pytest.raises(NotImplementedError, match="no bfloat16 on a CPU; export with --dtype"):
        treespec.load(folder("target in bfloat16"), None)


def test_trees_are_as_large_as_the_target_was_exported_for_and_not_larger(load, folder):
    assert load("target", None, node_budget=32).node_budget == 32  # of no use without a drafter
    largest = load("target", "causal_lm", node_budget=31, builder="kary")
    plain = load("target", None)
    assert texts(largest, ragged_prompts()) == texts(plain, ragged_prompts())
    target = load_target(folder("target"))
    sequence = target.open(80)
    target.prefill([sequence], [np.arange(40)], Needs())  # prompts have no such limit
    with pytest.raises(ValueError, match=r"at most 32 nodes with their root, .* got 33"):
        target.forward([sequence], [TreeRows.chain(np.arange(33))], Needs())
    assert sequence.pending == 0
    target.forward([sequence], [TreeRows.chain(np.arange(32))], Needs())


def test_a_text_that_does_not_fit_is_refused_before_any_work(load):
    decoder = load("target", "causal_lm", **TREE)
    with pytest.raises(ValueError, match="must fit the target's context of 160 tokens"):
        decoder.generate(ragged_prompts()[1], max_new_tokens=140)
    assert_nothing_left(decoder)


def test_graphs_are_refused(load):
    with pytest.raises(NotImplementedError, match="must be a Hugging Face model"):
        load("target", "causal_lm", graph=True)


def change_manifest(folder, **fields):
    path = folder / FILE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def cut_short(folder):
    (folder / "model.onnx.data").write_bytes(b"short")


def without_weights(folder):
    (folder / "model.onnx.data").unlink()


def of_the_future(folder):
    change_manifest(folder, version=9)


def incomplete(folder):
    fields = json.loads((folder / FILE_NAME).read_text())
    del fields["masks"]
    (folder / FILE_NAME).write_text(json.dumps(fields))


def no_graph(folder):
    path = folder / "model.onnx"
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (cut_short, "model.onnx.data must have [0-9]+ bytes, as exported, got 5"),
        (without_weights, "model.onnx.data must be there"),
        (of_the_future, "must be of version 1, which this treespec reads, got 9"),
        (incomplete, "must be complete: 'masks'"),
        (no_graph, "ONNX Runtime .* cannot open .*model.onnx"),
    ],
)
def test_a_broken_folder_is_refused_with_what_is_wrong(own_copy, breaks, message):
    copy = own_copy("target")
    breaks(copy)
    with pytest.raises(ValueError, match=message):
        treespec.load(copy, None)


def test_a_changed_file_is_found_when_asked_to_look(own_copy):
    copy = own_copy("target")
    path = copy / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    treespec.load(copy, None)
    with pytest.raises(ValueError, match=r"model.onnx.data must be as exported, its checksum"):
        treespec.load(copy, None, backend_options={"check_files": True})


# --- settings -----------------------------------------------------------------------------------


def test_threads_and_providers_are_as_asked(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    session = OrtSession(folder("target"), "cpu")
    assert session._session.get_session_options().intra_op_num_threads == 1
    options = OnnxOptions(threads=2, providers="CPUExecutionProvider")
    session = OrtSession(folder("target"), options=options)
    assert session._session.get_session_options().intra_op_num_threads == 2
    assert session._session.get_providers() == ["CPUExecutionProvider"]
    assert session.providers == [("CPUExecutionProvider", {})]


def test_options_of_a_cuda_provider_choose_the_gpu(monkeypatch):
    import onnxruntime

    from treespec.targets.onnx import _providers

    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    cuda, cpu = ("CUDAExecutionProvider", {"device_id": 0}), ("CPUExecutionProvider", {})
    assert _providers("auto", None) == _providers("cuda", None) == [cuda, cpu]
    assert _providers("cpu", None) == [cpu]
    asked = [("TensorrtExecutionProvider", {"trt_fp16_enable": True}), "CUDAExecutionProvider"]
    first, second, third = _providers("cuda:1", asked)
    assert first == ("TensorrtExecutionProvider", {"trt_fp16_enable": True, "device_id": 1})
    assert second == ("CUDAExecutionProvider", {"device_id": 1})
    assert third == cpu


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_an_error(folder, monkeypatch):
    """ONNX Runtime would run on the CPU, and say so in a warning at most."""
    import onnxruntime

    names = ["CUDAExecutionProvider", *onnxruntime.get_available_providers()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnx, "_memory", lambda providers: DeviceMemory("cpu"))
    with pytest.raises(ValueError, match=r"CUDAExecutionProvider must start, but .* CPUExecution"):
        OrtSession(folder("target"), "cuda")


def test_costs_are_measured_on_exported_folders(folder):
    decoder = treespec.load(folder("target"), folder("causal_lm"), device="cpu")
    costs = measure_costs(decoder, ragged_prompts(), rows=(1, 4), repetitions=1, max_new_tokens=8)
    assert set(costs.target_seconds) == {1, 4}


def test_the_command_line_runs_exported_folders(folder):
    app = build_app()
    target, drafter = str(folder("demo")), str(folder("demo") / "drafter")
    arguments = ["--target", target, "-n", "8", "--json", "def main():"]
    for more in ([], ["--drafter", drafter, "--backend", "onnx", "--backend-option", "threads=1"]):
        result = CliRunner().invoke(app, ["generate", *more, *arguments])
        assert result.exit_code == 0, result.output
        expected = treespec.load(target, None).generate("def main():", max_new_tokens=8)
        assert json.loads(result.output)["text"] == expected.text
    info = CliRunner().invoke(app, ["info", "--json"])
    assert "CPUExecutionProvider" in json.loads(info.output)["onnx_providers"]
