# SPDX-License-Identifier: Apache-2.0
"""Every name of TensorRT that the backend uses, against NVIDIA's own Python bindings.

The backend runs on `fake_tensorrt` in the other tests, so what it calls is in the fake; here the
fake is compared with the bindings, which install without the libraries they belong to. Stubs of
those are compiled to import them. Nothing of TensorRT runs.
"""

from __future__ import annotations

import enum
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fake_tensorrt
import pytest

# The floor, and the newest.
_VERSIONS = ("10.15.1.29", "11.4.0.106")

_SYMBOLS = """
    createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL
    createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry
    getNvOnnxParserVersion getPluginRegistry initLibNvInferPlugins
"""
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")

# Prints, class by class, the docstrings of all that the bindings offer, and numbers of enums.
_DESCRIBE = """
import json, sys
import tensorrt_bindings as trt
classes = {}
for name, found in vars(trt).items():
    if isinstance(found, type):
        classes[name] = {a: str(getattr(found, a).__doc__) for a in dir(found)}
print(json.dumps({"version": trt.__version__, "classes": classes}))
"""

# What TensorRT calls back is derived from classes of the bindings: that works without TensorRT.
_CALL_BACK = """
import sys
import tensorrt_bindings as trt
from treespec.export import to_tensorrt

class Progress:
    def start(self, *values): print("start", *values)
    def step(self, *values): print("step", *values); return values[1] < 1
    def finish(self, *values): print("finish", *values)

log = to_tensorrt.make_logger(trt)
log.log(trt.ILogger.Severity.ERROR, "a message")
print(log.errors())
monitor = to_tensorrt._make_monitor(trt, Progress())
trt.IProgressMonitor.phase_start(monitor, "build", None, 2)
print(trt.IProgressMonitor.step_complete(monitor, "build", 0))
print(trt.IProgressMonitor.step_complete(monitor, "build", 1))
trt.IProgressMonitor.phase_finish(monitor, "build")
tensor = trt.PluginTensorDesc()
tensor.dims = (1, 2, 3)
print(tuple(tensor.dims))
sys.modules["tensorrt"] = trt
assert to_tensorrt.load_tensorrt() is trt
"""


class Bindings:
    """An installed wheel with stubs of its libraries."""

    def __init__(self, version: str, folder: Path) -> None:
        self._folder = folder
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler for stubs of TensorRT's libraries")
        wheel = f"tensorrt_cu13_bindings=={version}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--no-compile", "--retries=0"]
        options = {"capture_output": True, "text": True, "check": False}
        result = subprocess.run([*command, f"--target={folder}", wheel], **options)
        if result.returncode:
            pytest.skip(f"pip cannot install {wheel}: {result.stderr.strip().splitlines()[-1:]}")
        source = folder / "stubs.c"
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in _SYMBOLS.split()))
        for library in _LIBRARIES:
            name = f"lib{library}.so.{version.split('.')[0]}"
            build = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", str(source)]
            subprocess.run([*build, "-o", str(folder / name)], check=True)

    def run(self, program: str) -> str:
        paths = [str(self._folder), *sys.path]
        env = {**os.environ, "LD_LIBRARY_PATH": str(self._folder), "PYTHONPATH": ":".join(paths)}
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, env=env, check=True, stdout=subprocess.PIPE, text=True
        ).stdout


@pytest.fixture(scope="module", params=_VERSIONS)
def bindings(request, tmp_path_factory):
    return Bindings(request.param, tmp_path_factory.mktemp("bindings"))


@pytest.fixture(scope="module")
def real(bindings):
    return json.loads(bindings.run(_DESCRIBE))["classes"]


def fake_classes():
    return {
        name: found
        for name, found in vars(fake_tensorrt).items()
        if inspect.isclass(found)
        and found.__module__ == "fake_tensorrt"
        and name not in ("AlignedMemory", "FakeTensorRT", "HostQueue", "Stream")
        and not name.startswith("_")
    }


def signatures(docstring):
    """Parameter names and result of every overload that a docstring of pybind11 lists."""
    found = []
    for line in docstring.splitlines():
        match = re.match(r"(?:\d+\. )?(\w+)\((self: .*)\) -> (.+)$", line)
        if match:
            names = re.findall(r"(?:^|, )(\w+): ", match.group(2))
            found.append((names[1:], match.group(3)))
    return found


def test_every_class_and_enum_of_the_fake_is_in_the_bindings(real):
    assert set(fake_classes()) <= set(real)
    severities = {member.name for member in fake_tensorrt.ILogger.Severity}
    assert severities | {"Severity"} <= set(real["ILogger"])
    for name, found in fake_classes().items():
        if issubclass(found, enum.Enum):
            missing = {member.name for member in found} - set(real[name])
            assert missing <= {"EXPLICIT_BATCH"}, name  # gone in 11, and not used


def test_every_method_of_the_fake_has_the_signature_of_the_bindings(real):
    checked = 0
    for name, found in fake_classes().items():
        if issubclass(found, enum.Enum):
            continue
        for method, function in inspect.getmembers(found, inspect.isfunction):
            if method.startswith("_"):
                continue
            own = inspect.signature(function)
            result = own.return_annotation
            options = signatures(real[name][method])
            given = list(own.parameters)[1:]
            fitting = [kind for names, kind in options if names[: len(given)] == given]
            assert fitting, f"{name}.{method}{own}: {options}"
            if result in ("bool", "int", "None"):
                assert result in fitting, f"{name}.{method}: {fitting}"
            checked += 1
    assert checked > 25


def test_every_attribute_of_the_fake_is_in_the_bindings(real):
    checked = 0
    for name, found in fake_classes().items():
        if issubclass(found, enum.Enum):
            continue
        body = inspect.getsource(found)
        own = set(re.findall(r"self\.([a-z]\w*)(?:: [^=\n]+)? = ", body))
        own |= {n for n, v in vars(found).items() if isinstance(v, property)}
        assert own <= set(real[name]), (name, own - set(real[name]))
        checked += len(own)
    assert checked >= 4


def test_a_class_that_the_bindings_lack_would_be_noticed(real):
    assert not signatures(real["IExecutionContext"].get("execute_async_v4", ""))
    assert signatures(real["IExecutionContext"]["execute_async_v3"]) == [
        (["stream_handle"], "bool")
    ]


def test_the_log_and_the_monitor_derive_from_the_real_classes_and_shapes_are_tuples(bindings):
    lines = bindings.run(_CALL_BACK).splitlines()
    assert lines == [
        "a message",
        "start build None 2",
        "step build 0",
        "True",
        "step build 1",
        "False",
        "finish build",
        "(1, 2, 3)",
    ]
