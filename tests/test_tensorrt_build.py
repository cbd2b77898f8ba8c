# SPDX-License-Identifier: Apache-2.0
"""Building TensorRT engines and finding them again, on a stand-in for TensorRT."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import fake_tensorrt
import numpy as np
import onnx
import pytest
from exported_models import exported
from fake_tensorrt import GPU, FakeTensorRT

from treespec.export.build_progress import RichBuildProgress
from treespec.export.engine_cache import EngineCache, Profile, read_engine
from treespec.export.manifest import Manifest
from treespec.export.to_tensorrt import (
    Gpu,
    build_engine,
    default_profiles,
    engine_spec,
    find_engine,
    load_tensorrt,
)


@pytest.fixture
def tensorrt(monkeypatch):
    module = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return exported("target", tmp_path_factory)


@pytest.fixture
def build(folder, tmp_path):
    """``build(**options)``: an engine of the target, in a cache of the test's own."""
    return lambda **options: build_engine(folder, **{"cache": tmp_path, "gpu": GPU, **options})


# --- the cache ---------------------------------------------------------------------------------


def test_an_engine_is_built_once(tensorrt, build):
    first, second = build(), build()
    assert tensorrt.builds == 1
    assert (first.spec, first.path) == (second.spec, second.path)
    assert bytes(first.plan) == bytes(second.plan) == first.path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"max_context": 100},
        {"max_nodes": 16},
        {"max_batch": 2},
        {"prefill_rows": 64},
        {"decomposable_attention": False},
        {"workspace_bytes": 1 << 30},
        {"optimization_level": 5},
        {"gpu": Gpu(GPU.name, "8.0")},
        {"gpu": Gpu("Another", GPU.compute_capability)},
    ],
    ids=lambda change: "-".join(change),
)
def test_an_engine_of_other_options_or_another_gpu_is_another_one(tensorrt, build, change):
    assert build().path != build(**change).path
    assert tensorrt.builds == 2


def test_an_engine_of_another_version_is_another_one(tensorrt, build, monkeypatch):
    old = build()
    newer = FakeTensorRT("11.4.0.106")
    monkeypatch.setitem(sys.modules, "tensorrt", newer)
    assert build().path != old.path
    assert newer.builds == 1


def test_an_engine_of_another_model_is_another_one(tensorrt, tmp_path, tmp_path_factory):
    target, drafter = (exported(name, tmp_path_factory) for name in ("target", "causal_lm"))
    keys = {build_engine(one, cache=tmp_path, gpu=GPU).path for one in (target, drafter)}
    assert len(keys) == tensorrt.builds == 2


def test_engines_are_beside_the_export_unless_told_otherwise(tensorrt, folder, tmp_path):
    own = tmp_path / "copy"
    shutil.copytree(folder, own)
    engine = build_engine(own, gpu=GPU)
    assert engine.path.parent == own / "engines"
    Manifest.load(own).check_files(own)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty_description(path):
    path.with_suffix(".json").write_text("")


def no_description(path):
    path.with_suffix(".json").unlink()


def incomplete_description(path):
    file = path.with_suffix(".json")
    fields = json.loads(file.read_text())
    del fields["spec"]["gpu"]
    file.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "damage", [cut_short, empty_description, no_description, incomplete_description]
)
def test_a_damaged_engine_is_built_again_with_a_warning(tensorrt, build, caplog, damage):
    engine = build()
    whole = engine.path.read_bytes()
    damage(engine.path)
    assert bytes(build().plan) == whole
    assert tensorrt.builds == 2
    assert "an engine of the cache is not used" in caplog.text
    caplog.clear()
    build()
    assert tensorrt.builds == 2 and not caplog.text


def test_a_description_of_another_engine_is_refused_field_by_field(tensorrt, build):
    engine = build()
    wanted = dataclasses.replace(
        engine.spec, tensorrt="11.4.0.106", compute_capability="8.9", dtype="float16"
    )
    with pytest.raises(ValueError) as error:
        read_engine(engine.path, wanted)
    for text in (
        "dtype must be 'float16', got 'float32'",
        "tensorrt must be '11.4.0.106', got '10.15.1.29'",
        "compute_capability must be '8.9', got '9.0'",
    ):
        assert text in str(error.value)
    assert "model" not in str(error.value)


def test_without_a_build_the_engines_that_do_not_fit_are_named(tensorrt, folder, build, tmp_path):
    spec = build().spec
    assert find_engine(folder, spec, tmp_path).spec == spec
    newer = dataclasses.replace(spec, tensorrt="11.4.0.106")
    with pytest.raises(FileNotFoundError, match=r"TensorRT 11.4.0.106 and No GPU at all") as error:
        find_engine(folder, newer, tmp_path)
    assert f"{spec.key}.plan: tensorrt must be '11.4.0.106', got '10.15.1.29'" in str(error.value)
    with pytest.raises(FileNotFoundError, match="there is none"):
        find_engine(folder, spec, tmp_path / "nowhere")


_PROCESS = """
import sys
import fake_tensorrt
from treespec.export.to_tensorrt import build_engine
module = sys.modules["tensorrt"] = fake_tensorrt.FakeTensorRT()
first = sys.argv[3] == "first"
slow = fake_tensorrt.Builder.build_serialized_network
def build(*values):
    print("building", flush=True)
    sys.stdin.readline()
    return slow(*values)
if first:
    fake_tensorrt.Builder.build_serialized_network = build
else:
    print("here", flush=True)
build_engine(sys.argv[1], cache=sys.argv[2], gpu=fake_tensorrt.GPU)
print(module.builds, flush=True)
"""


def test_of_two_processes_one_builds_and_the_other_waits_for_it(folder, tmp_path):
    def start(name):
        command = [sys.executable, "-c", _PROCESS, str(folder), str(tmp_path), name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        env = {"PYTHONPATH": str(Path(__file__).parent), "PATH": ""}
        return subprocess.Popen(command, env=env, **pipes)

    first = start("first")
    assert first.stdout.readline() == "building\n"
    second = start("second")
    assert second.stdout.readline() == "here\n"
    assert first.communicate("go on\n")[0] == "1\n"
    assert second.communicate()[0] == "0\n"
    assert len(list(tmp_path.glob("*.plan"))) == 1


def test_a_build_that_fails_leaves_no_engine(tensorrt, build, tmp_path):
    tensorrt.build_error = "no kernel takes this attention"
    with pytest.raises(RuntimeError, match="no kernel takes this attention"):
        build()
    assert not list(tmp_path.glob("*.plan")) and not list(tmp_path.glob(".*"))
    tensorrt.build_error = None
    build()


def test_timings_are_kept_for_the_next_build_of_the_same_version(tensorrt, build, monkeypatch):
    build()
    assert tensorrt.timing_hits == 0
    build(optimization_level=4)
    assert tensorrt.timing_hits == 1
    newer = FakeTensorRT("11.4.0.106")
    monkeypatch.setitem(sys.modules, "tensorrt", newer)
    build()
    assert newer.timing_hits == 0


def test_damaged_timings_are_measured_anew(tensorrt, build, tmp_path):
    build()
    (timings,) = tmp_path.glob("timings-*.bin")
    timings.write_bytes(b"rubbish")
    build(optimization_level=4)
    assert tensorrt.timing_hits == 0 and timings.read_bytes() != b"rubbish"


# --- what is built -----------------------------------------------------------------------------


def test_the_builder_gets_its_settings(tensorrt, build):
    build(workspace_bytes=1 << 28, optimization_level=2)
    config = tensorrt.config
    assert config.builder_optimization_level == 2
    assert config._pools == {tensorrt.MemoryPoolType.WORKSPACE: 1 << 28}
    build()
    assert tensorrt.config._pools == {}


def test_a_target_has_profiles_for_decoding_trees_and_prompts(tensorrt, folder):
    profiles = default_profiles(Manifest.load(folder), max_nodes=100, max_batch=3, prefill_rows=256)
    assert {p.name: (p.axes["nodes"], p.axes["logit_rows"]) for p in profiles} == {
        "decode": ((1, 1, 1), (1, 1, 1)),
        "tree of 16": ((1, 16, 16), (1, 16, 16)),
        "tree of 64": ((1, 64, 64), (1, 64, 64)),
        "tree of 100": ((1, 100, 100), (1, 100, 100)),
        "prefill": ((1, 256, 256), (1, 3, 3)),
    }
    assert {p.axes["batch"] for p in profiles} == {(1, 3, 3)}


def test_a_block_drafter_has_profiles_for_rounds_and_prompts(tmp_path_factory):
    manifest = Manifest.load(exported("treeflash", tmp_path_factory))
    profiles = default_profiles(manifest, max_nodes=32)
    most = manifest.block.depth + 1
    assert {p.name: p.axes["features"] for p in profiles} == {
        "round": (1, most, most),
        "prefill": (1, 256, 256),
    }


def test_profiles_reach_the_builder_with_all_shapes(tensorrt, folder, build):
    engine = build(max_batch=2, max_nodes=16, prefill_rows=64)
    decode, tree, prefill = tensorrt.config._profiles
    capacity = engine.spec.capacity
    assert tree._shapes["input_ids"] == ((1, 1), (2, 16), (2, 16))
    assert decode._shapes["logit_rows"] == ((1,), (1,), (1,))
    assert prefill._shapes["attention_mask"] == (
        (1, 1, 1, capacity),
        (2, 1, 64, capacity),
        (2, 1, 64, capacity),
    )
    assert prefill._shapes["cache_keys_1"][2] == (2, 2, capacity, 8)


def test_a_batch_of_one_is_fixed(tensorrt, build):
    build(max_batch=1)
    assert "write_index" not in tensorrt.config._profiles[0]._shapes


@pytest.mark.parametrize("name", ["target", "treeflash"])
def test_the_capacity_holds_a_text_and_the_rows_behind_it(tensorrt, name, tmp_path_factory):
    spec = engine_spec(exported(name, tmp_path_factory), max_context=100, gpu=GPU)
    assert spec.max_context == 100
    most = max(sizes[2] for p in spec.profiles for a, sizes in p.axes.items() if a != "batch")
    assert spec.capacity >= 100 + most + (0 if name == "target" else 6)
    assert spec.capacity % 128 == 0


def test_own_profiles_must_name_all_axes(tensorrt, build):
    own = [Profile("mine", {"batch": (1, 1, 1), "nodes": (1, 4, 8)})]
    with pytest.raises(ValueError, match="profile 'mine' must name the axes logit_rows"):
        build(profiles=own)
    own = [Profile("mine", {**own[0].axes, "logit_rows": (1, 4, 8)})]
    assert build(profiles=own).spec.profiles == tuple(own)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3), (1, 2)])
def test_a_profile_has_three_ascending_sizes(sizes):
    with pytest.raises(ValueError, match="nodes of 'p' must be three ascending sizes"):
        Profile("p", {"nodes": sizes})


# --- progress ----------------------------------------------------------------------------------


class Watcher:
    """Hears of a build; `at` a step it stops it, or raises."""

    def __init__(self, at: int | None = None, error: BaseException | None = None) -> None:
        self.heard: list[tuple] = []
        self._at, self._error = at, error

    def start(self, phase, parent, num_steps):
        self.heard.append(("start", phase, parent, num_steps))

    def step(self, phase, step):
        self.heard.append(("step", phase, step))
        if self._error is not None and step == self._at:
            raise self._error
        return step != self._at

    def finish(self, phase):
        self.heard.append(("finish", phase))


def test_a_build_says_how_far_it_is(tensorrt, build):
    watcher = Watcher()
    build(progress=watcher)
    assert watcher.heard[:3] == [
        ("start", "Building engine", None, 2),
        ("start", "Tactics", "Building engine", 3),
        ("step", "Tactics", 0),
    ]
    assert watcher.heard[-1] == ("finish", "Building engine")


def test_a_build_can_be_stopped(tensorrt, build, tmp_path):
    with pytest.raises(RuntimeError, match="stopped by its progress display"):
        build(progress=Watcher(at=1))
    assert not list(tmp_path.glob("*.plan"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no terminal")])
def test_an_exception_of_a_progress_display_stops_the_build_and_is_raised(
    tensorrt, build, tmp_path, error
):
    watcher = Watcher(at=0, error=error)
    with pytest.raises(type(error)):
        build(progress=watcher)
    assert [one for one in watcher.heard if one[0] == "step"] == [("step", "Tactics", 0)]
    assert not list(tmp_path.glob("*.plan"))


def test_bars_come_and_go_with_the_phases(tensorrt, build):
    with RichBuildProgress() as bars:
        seen = []

        class Spy:
            start, finish = staticmethod(bars.start), staticmethod(bars.finish)

            @staticmethod
            def step(phase, step):
                going = bars.step(phase, step)
                seen.append([(t.description, t.completed, t.total) for t in bars.display.tasks])
                return going

        build(progress=Spy())
        assert seen[1] == [("Building engine", 0, 2), ("  Tactics", 2, 3)]
        assert bars.display.tasks == []


# --- what is refused ---------------------------------------------------------------------------


def test_tensorrt_that_is_not_there_is_named(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ImportError, match=r"needs NVIDIA TensorRT 10\.15 or later"):
        build_engine(folder, gpu=GPU)


@pytest.mark.parametrize("version", ["10.14.1.48", "9.3.0", "8.6.1"])
def test_tensorrt_below_the_floor_is_refused(monkeypatch, folder, version):
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(version))
    with pytest.raises(NotImplementedError, match=f"must be at least 10.15.*got {version}"):
        build_engine(folder, gpu=GPU)


@pytest.mark.parametrize("version", ["10.15.1.29", "10.16.0.72", "11.0.0.114", "11.4.0.106"])
def test_tensorrt_from_the_floor_on_is_taken(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(version))
    assert load_tensorrt().__version__ == version


def test_a_machine_without_a_gpu_is_refused(tensorrt, folder):
    with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
        build_engine(folder)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_context": 161}, "max_context must be in [1, 160], as exported, got 161"),
        ({"max_nodes": 33}, "max_nodes must be in [1, 32], as exported, got 33"),
        ({"max_nodes": 0}, "max_nodes must be in [1, 32], as exported, got 0"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"prefill_rows": -1}, "prefill_rows must be at least 1, got -1"),
    ],
)
def test_bad_limits_are_refused(tensorrt, build, options, message):
    with pytest.raises(ValueError) as error:
        build(**options)
    assert message in str(error.value)
    assert tensorrt.builds == 0


@pytest.fixture
def own_copy(folder, tmp_path):
    own = tmp_path / "copy"
    shutil.copytree(folder, own)
    return own


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"cache_style": "new_rows"}, "must be of cache_style 'in_place', got 'new_rows'"),
        ({"dtype": "float64"}, "must be of dtype float32, float16, bfloat16, got float64"),
    ],
)
def test_exports_that_tensorrt_cannot_run_are_refused(tensorrt, own_copy, fields, message):
    dataclasses.replace(Manifest.load(own_copy), **fields).save(own_copy)
    with pytest.raises(ValueError, match=message):
        build_engine(own_copy, gpu=GPU)


def test_weights_that_were_changed_are_refused(tensorrt, own_copy):
    data = own_copy / "model.onnx.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    with pytest.raises(ValueError, match="its checksum differs"):
        build_engine(own_copy, gpu=GPU)
    assert tensorrt.builds == 0


def test_a_graph_that_tensorrt_cannot_read_is_refused_with_the_rule(tensorrt, own_copy):
    path = own_copy / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(onnx.helper.make_attribute("softcap", 30.0))
    path.write_bytes(model.SerializeToString())
    Manifest.load(own_copy).save(own_copy)
    with pytest.raises(ValueError, match=r"TensorRT must be able to read .*softcap must be absent"):
        build_engine(own_copy, gpu=GPU)
    assert tensorrt.builds == 0


def test_what_the_parser_says_is_passed_on(tensorrt, build, monkeypatch):
    monkeypatch.setattr(fake_tensorrt, "violations", lambda model: ["node 3 is not to my taste"])
    with pytest.raises(RuntimeError, match=r"cannot read .*model\.onnx: node 3 is not to"):
        build()


def test_a_key_is_stable(tensorrt, folder):
    one, other = (engine_spec(folder, gpu=GPU) for _ in range(2))
    assert one.key == other.key and len(one.key) == 24
    assert one.settings == {
        "decomposable_attention": True,
        "workspace_bytes": None,
        "optimization_level": None,
    }
    assert EngineCache("somewhere").path(one).name == f"{one.key}.plan"
    assert np.unique([p.name for p in one.profiles]).size == len(one.profiles)
