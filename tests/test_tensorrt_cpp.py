# SPDX-License-Identifier: Apache-2.0
"""The C++ component for TensorRT: compiled against NVIDIA's headers, where those are.

Its logic is tested without them (tests/cpp/backends/tensorrt).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "cpp" / "backends" / "tensorrt"
SOURCES = sorted(FOLDER.glob("*.cc"))

_ROOT_VARIABLE = "TensorRT_ROOT"  # as CMake reads it

# What runs without TensorRT and CUDA, and is tested so.
_LOGIC = ("engine.h", "engine_file.h", "engine_file.cc", "engine_runner.h", "engine_runner.cc")


def folder_of(header, *roots):
    """The include folder with a header, or None."""
    folders = [Path(root) / "include" for root in roots if root]
    return next((folder for folder in folders if (folder / header).is_file()), None)


def test_the_logic_knows_neither_tensorrt_nor_cuda():
    for name in _LOGIC:
        text = (FOLDER / name).read_text()
        assert not [word for word in ("NvInfer", "cuda_runtime", "nvinfer1") if word in text], name
    public = ROOT / "cpp" / "backends" / "include" / "treespec" / "tensorrt.h"
    assert "NvInfer" not in public.read_text() and "cuda_runtime" not in public.read_text()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_a_source_compiles_against_nvidias_headers(source):
    tensorrt = folder_of("NvInfer.h", os.environ.get(_ROOT_VARIABLE))
    if tensorrt is None:
        pytest.skip(f"{_ROOT_VARIABLE} does not name a folder with include/NvInfer.h")
    nvcc = shutil.which("nvcc")
    cuda = folder_of(
        "cuda_runtime_api.h",
        os.environ.get("CUDA_HOME"),
        Path(nvcc).resolve().parent.parent if nvcc else None,
        "/usr/local/cuda",
    )
    json = any(Path(f, "nlohmann").is_dir() for f in ("/usr/include", "/usr/local/include"))
    compiler = shutil.which("c++")
    if cuda is None or compiler is None or not json:
        pytest.skip("no CUDA toolkit, C++ compiler or nlohmann/json")
    ours = ("cpp/include", "cpp/backends/include", "cpp/backends/src", "cpp/backends/tensorrt")
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
    command += [f"-I{ROOT / folder}" for folder in ours]
    command += ["-isystem", str(tensorrt), "-isystem", str(cuda), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
