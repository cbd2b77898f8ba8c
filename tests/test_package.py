# SPDX-License-Identifier: Apache-2.0
"""The package as others meet it: what an import costs, the stubs, the headers, the C++ install."""

import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
from installed_package import IS_EDITABLE, ask_cmake_dir, build_with_cmake, run

import treespec

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = ROOT / "cpp/include"
FOLDERS = (INCLUDE, ROOT / "cpp/backends/include")  # of headers that the package brings
HEADERS = sorted(path for folder in FOLDERS for path in folder.rglob("*.h"))
CORE_SOURCES = sorted(
    path
    for folder in ("cpp", "cuda")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".h", ".cc", ".cu", ".cuh"}
)
# The service needs more than treespec: test_cpp_service.py builds it.
CPP_EXAMPLES = sorted(set((ROOT / "examples").glob("cpp_*")) - {ROOT / "examples/cpp_service"})


def relative(path):
    return str(path.relative_to(ROOT))


def test_import_needs_neither_torch_nor_transformers():
    heavy = {"torch", "transformers", "tokenizers", "matplotlib", "scipy", "typer", "rich"}
    code = "import sys, treespec; print(*sys.modules)"
    imported = set(run(sys.executable, "-c", code).split())
    assert not imported & heavy


def test_versions_agree_with_the_header():
    header = (INCLUDE / "treespec/version.h").read_text()
    version = re.search(r'define TREESPEC_VERSION "(.+)"', header).group(1)
    assert treespec.__version__ == version
    assert metadata.version("treespec") == version


def test_stubs_are_current():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import update_stubs
    finally:
        sys.path.pop(0)
    assert update_stubs.difference() == "", f"_core: {update_stubs.HOW_TO_UPDATE}"


@pytest.mark.parametrize("header", HEADERS, ids=relative)
def test_public_header_compiles_alone(header):
    compiler = os.environ.get("CXX", "c++")
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    [own] = [folder for folder in FOLDERS if header.is_relative_to(folder)]
    main = f'#include "{header.relative_to(own)}"\nint main() {{}}\n'
    folders = [f"-I{folder}" for folder in FOLDERS]
    run(compiler, *flags, *folders, "-x", "c++", "-", input=main)


@pytest.mark.parametrize("header", HEADERS, ids=relative)
def test_public_header_includes_no_framework(header):
    included = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', header.read_text(), re.MULTILINE)
    foreign = r"cuda|cublas|thrust|cub/|nv|torch|ATen|c10|pybind11|Python\.h"
    assert [name for name in included if re.match(foreign, name)] == []


def test_core_sources_never_name_torch():
    assert CORE_SOURCES
    assert [relative(p) for p in CORE_SOURCES if "torch" in p.read_text().lower()] == []


def test_cmake_dir_is_printed_or_its_absence_explained():
    answer = ask_cmake_dir()
    if IS_EDITABLE:
        assert answer.returncode != 0
        assert "editable" in answer.stderr
        assert answer.stdout == ""
    else:
        assert answer.returncode == 0, answer.stderr
        assert (Path(answer.stdout.strip()) / "treespecConfig.cmake").is_file()


def test_there_is_a_cpp_example():
    assert CPP_EXAMPLES


@pytest.mark.parametrize("example", CPP_EXAMPLES, ids=relative)
def test_cpp_example_builds_runs_and_links_neither_python_nor_torch(example, cmake_dir, tmp_path):
    build_with_cmake(example, tmp_path, f"-Dtreespec_DIR={cmake_dir}", "-DCMAKE_CXX_FLAGS=-Wall")
    programs = [p for p in tmp_path.iterdir() if p.is_file() and os.access(p, os.X_OK)]
    assert programs, f"{relative(example)} builds no program at the top of its build folder"
    for program in programs:
        run(program, timeout=120)
        if shutil.which("ldd"):
            linked = run("ldd", program).lower()
            assert not re.search(r"python|torch|libc10|libcudart", linked), linked
