# SPDX-License-Identifier: Apache-2.0
"""Exports against the models they came from, and what is refused before anything is written."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from exported_models import DRAFTERS, OTHER_MODELS, exported, tiny_target
from tiny_drafters import tiny_dflash
from tiny_models import RECURRENT, tiny_model
from typer.testing import CliRunner

from treespec import demo
from treespec.cli import build_app
from treespec.drafts.ngram import NgramDrafter
from treespec.export.check_export import check_export, onnxruntime_engine
from treespec.export.manifest import FILE_NAME, Manifest, is_exported
from treespec.export.pair import export_pair
from treespec.export.to_onnx import export_drafter, export_target

# Full and windowed layers in one model, half precision, and the other way to keep rows.
SHARED_TARGETS = {
    "target": tiny_target,
    "target of new rows": tiny_target,
    "target in float16": lambda: tiny_target(dtype=torch.float16),
    "target in bfloat16": lambda: tiny_target(dtype=torch.bfloat16),
    "target with windows": lambda: tiny_model("qwen3_window"),
}


@pytest.fixture(scope="module", params=[*SHARED_TARGETS, *OTHER_MODELS])
def causal_lm(request, tmp_path_factory):
    """A tiny model, and the folder it was exported to."""
    model = SHARED_TARGETS.get(request.param, lambda: tiny_model(request.param))()
    return model, exported(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_target(), exported("target", tmp_path_factory)


def test_an_export_computes_what_its_model_computes(causal_lm):
    model, folder = causal_lm
    report = check_export(folder, model)
    report.require_passed()
    assert report.num_same_choice == report.num_nodes
    names = {one.name for one in report.differences}
    assert {"logits", "features", "logits of every path"} < names
    assert {one.layer for one in report.differences} == {0, 1, None}


@pytest.mark.parametrize("name", ["dflash", "treeflash"])
def test_a_block_drafter_ranks_the_same_tokens_as_its_graph(tmp_path_factory, name):
    drafter, folder = DRAFTERS[name](), exported(name, tmp_path_factory)
    report = check_export(folder, drafter)
    report.require_passed()
    assert report.num_same_choice == report.num_nodes
    manifest = Manifest.load(folder)
    assert manifest.layers == drafter.needs.layers
    assert manifest.block.num_previous == (0 if name == "dflash" else 3)


@pytest.mark.parametrize(
    "output, spoil",
    [
        ("token", lambda ids: (ids + 1) % 64),
        ("token", lambda ids: ids[..., ::-1]),
        ("owner", lambda ids: ids[:, ::-1]),
    ],
)
def test_lists_of_other_tokens_are_found(tmp_path_factory, output, spoil):
    folder = exported("treeflash", tmp_path_factory)
    engine = onnxruntime_engine(folder / "model.onnx")

    def spoilt(inputs):
        found = engine(inputs)
        return {**found, output: spoil(found[output])}

    report = check_export(folder, DRAFTERS["treeflash"](), spoilt)
    assert [one.name for one in report.failed] == [output]
    with pytest.raises(ValueError, match=f"at {output}, the first of 1 outputs"):
        report.require_passed()


def test_the_graph_holds_attention_and_cache_writes_as_single_operators(llama):
    _, folder = llama
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    onnx.checker.check_model(str(folder / "model.onnx"))
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Attention") == 2
    assert kinds.count("TensorScatter") == 4
    assert not {"Loop", "If", "Expand", "Softmax"} & set(kinds)
    assert [one.version for one in graph.opset_import if one.domain == ""] == [24]


def test_an_export_does_not_tell_where_it_was_made(llama):
    _, folder = llama
    text = (folder / "model.onnx").read_bytes() + (folder / FILE_NAME).read_bytes()
    assert b"site-packages" not in text
    assert b".py" not in text


def test_a_drifting_layer_is_named(llama, tmp_path):
    """A weight of layer 1 is changed: layer 0 agrees, and layer 1 is where it begins."""
    model, folder = llama
    graph = onnx.load(folder / "model.onnx")
    products = [node.input[1] for node in graph.graph.node if node.op_type == "MatMul"]
    keys = products[7 + 1]  # seven products a layer: queries, keys, ...
    (weight,) = (one for one in graph.graph.initializer if one.name == keys)
    changed = onnx.numpy_helper.to_array(weight) + 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save(graph, tmp_path / "model.onnx")
    report = check_export(folder, model, onnxruntime_engine(tmp_path / "model.onnx"))
    assert {one.layer for one in report.failed} == {1, None}
    with pytest.raises(ValueError, match=r"at layer 1 \(present_keys_1\)"):
        report.require_passed()


def test_a_manifest_says_what_was_exported(llama):
    _, folder = llama
    manifest = Manifest.load(folder)
    assert is_exported(folder)
    assert (manifest.role, manifest.kind, manifest.model_type) == ("target", "causal_lm", "llama")
    assert (manifest.vocab_size, manifest.eos_token_ids, manifest.dtype) == (64, (2,), "float32")
    assert (manifest.max_nodes, manifest.max_context) == (32, 160)
    assert [(one.heads, one.width) for one in manifest.cache] == [(2, 8)] * 4
    assert set(manifest.files) == {"model.onnx", "model.onnx.data"}
    manifest.check_files(folder)


def test_windows_are_masks_of_their_own(causal_lm):
    model, folder = causal_lm
    window = getattr(model.config, "sliding_window", None)
    expected = [None] if model.config.model_type != "qwen3" else [None, window]
    assert [mask.window for mask in Manifest.load(folder).masks] == expected


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / "model.onnx.data").unlink(), "must be there"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"x"), "must have .* bytes"),
        (lambda folder: (folder / FILE_NAME).write_text("{"), "must be a JSON file"),
        (lambda folder: edit(folder, format="other"), "must say 'format'"),
        (lambda folder: edit(folder, version=99), "must be of version 1"),
        (lambda folder: edit(folder, cache=None), "must be complete"),
        (lambda folder: edit(folder, unheard_of=1), "must be complete"),
    ],
    ids=["missing", "changed", "no-json", "format", "version", "field", "unknown"],
)
def test_a_spoilt_folder_is_refused(llama, tmp_path, spoil, message):
    model, folder = llama
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)
    with pytest.raises(ValueError, match=message):
        check_export(copy, model)


def edit(folder, **fields):
    path = folder / FILE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"cache_style": "paged"}, ValueError, "cache_style must be one of in_place, new_rows"),
        ({"max_nodes": 0}, ValueError, "max_nodes must be at least 1, got 0"),
        ({"max_context": 1}, ValueError, "max_context must be at least 2, got 1"),
        ({"layers": (2,)}, ValueError, r"features must be in \[0, 2\), got 2"),
    ],
)
def test_bad_arguments_leave_no_folder(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        export_target(tiny_model("llama"), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "bloom", *RECURRENT])
def test_models_without_a_graph_are_refused_with_the_reason(tmp_path, name):
    with pytest.raises(NotImplementedError, match=r"soft caps|ALiBi|is not keys and values"):
        export_target(tiny_model(name), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_drafters_without_a_graph_are_refused(tmp_path):
    chain = tiny_dflash(tiny_model("llama"), "treeflash", chain=True)
    for drafter, message in ((NgramDrafter(), "need no export"), (chain, "chain and head_rows")):
        with pytest.raises(NotImplementedError, match=message):
            export_drafter(drafter, tmp_path / "out")


def test_a_pair_whose_drafter_has_no_graph_leaves_no_folder(tmp_path):
    target, drafter = tiny_model("llama"), tiny_model("gemma2")
    with pytest.raises(NotImplementedError, match="soft caps"):
        export_pair(target, tmp_path / "out", drafter=drafter, check=False)
    assert not list(tmp_path.iterdir())


def test_an_export_is_never_overwritten(llama):
    model, folder = llama
    with pytest.raises(FileExistsError, match="holds an export already"):
        export_target(model, folder)


def test_files_of_others_are_never_overwritten(tmp_path):
    """Least of all those of the model that is exported."""
    folder = shutil.copytree(demo.target_path(), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"write tokenizer\.json.* into .*model, which has"):
        export_target(folder, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "own").mkdir()
    (tmp_path / "own/notes.txt").write_text("mine")
    export_target(tiny_model("llama"), tmp_path / "own")
    assert (tmp_path / "own/notes.txt").read_text() == "mine"


def test_an_export_leaves_the_model_as_it_was(llama):
    model, _ = llama
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, tiny_model("llama")(ids).logits)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What the command makes of a pair in half precision, as published ones are."""
    folder = tmp_path_factory.mktemp("pair")
    for name in ("target", "draft"):
        shutil.copytree(demo.drafter_path(), folder / name)
    command = ["export", "--target", str(folder / "target"), "--drafter", str(folder / "draft")]
    result = CliRunner().invoke(build_app(), [*command, "--out", str(folder / "out"), "--json"])
    assert result.exit_code == 0, result.output
    return folder / "out", json.loads(result.stdout)


def test_the_command_writes_a_checked_pair(pair):
    folder, report = pair
    assert [one["role"] for one in report["folders"]] == ["target", "drafter"]
    assert all(one["largest_difference"] < 1e-4 for one in report["folders"])
    target, drafter = Manifest.load(folder), Manifest.load(folder / "drafter")
    assert (target.model, drafter.model) == ("target", "draft")
    assert target.dtype == "float32"  # on a CPU, unless asked otherwise


def test_the_tokenizer_comes_along(pair):
    folder, _ = pair
    from treespec.text import encode, load_tokenizer

    own, exported = load_tokenizer(str(demo.target_path())), load_tokenizer(str(folder))
    assert np.array_equal(encode(own, "def f(x):"), encode(exported, "def f(x):"))


def test_a_command_without_tensorrt_fails_before_any_work(tmp_path):
    arguments = ["export", "--format", "tensorrt", "--out", str(tmp_path / "x")]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 1
    assert "needs NVIDIA TensorRT 10.15" in result.output or "needs an NVIDIA GPU" in result.output
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--format", "gguf"], "--format must be onnx or tensorrt"),
        (["--cache", "ring"], "--cache must be in-place or new-rows"),
        (["--features", "1;2"], "--features must be layer numbers"),
        (["--drafter", "suffix"], "need no export"),
        (["--drafter", "demo:treeflash", "--features", "0"], "must be what the drafter reads"),
    ],
)
def test_the_command_explains_what_it_refuses(tmp_path, arguments, message):
    result = CliRunner().invoke(build_app(), ["export", "--out", str(tmp_path / "x"), *arguments])
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", "").split())
    assert not (tmp_path / "x").exists()
