# SPDX-License-Identifier: Apache-2.0
"""The C API as other languages meet it: through the shared library of a build, or of the package.

`TREESPEC_BUILD_DIR` is a CMake build folder; the package has the library unless it is editable.
(tests/cpp/c_api compares the calls with the core.)
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import treespec

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = ROOT / "cpp/include"
HEADER = (INCLUDE / "treespec/treespec_c.h").read_text()
PAGE = (ROOT / "docs/c_api.md").read_text(encoding="utf-8")
ABI = int(re.search(r"define TREESPEC_C_ABI_VERSION (\d+)", HEADER).group(1))
NAME = f"libtreespec_c.so.{ABI}"
DECLARED = set(re.findall(r"\b(treespec_\w+)\(", re.sub(r"//.*|typedef.*?;", "", HEADER)))
PACKAGE = Path(treespec.__file__).resolve().parent
IS_EDITABLE = PACKAGE == ROOT / "python/treespec"
NO_LIBRARY = "an editable install has no C library, and TREESPEC_BUILD_DIR names no build"


def libraries():
    found = []
    if "TREESPEC_BUILD_DIR" in os.environ:
        path = Path(os.environ["TREESPEC_BUILD_DIR"]).resolve() / NAME
        found.append(pytest.param(path, id="build"))
    if not IS_EDITABLE:
        found.append(pytest.param(PACKAGE / "lib" / NAME, id="package"))
    return found or [pytest.param(None, id="none", marks=pytest.mark.skip(reason=NO_LIBRARY))]


@pytest.fixture(params=libraries())
def path(request):
    assert request.param.is_file(), f"no {request.param}: run ninja treespec_c there"
    return request.param


def run(*command, **options):
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, f"{words} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


def compile_c(source, output, *arguments):
    flags = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{INCLUDE}"]
    compiler = os.environ.get("CC", "cc")
    run(compiler, *flags, "-x", "c", source, "-x", "none", *arguments, "-o", output)


def page_blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


# --- The library ----------------------------------------------------------------------------------


def test_the_library_exports_what_the_header_declares_and_nothing_else(path):
    assert len(DECLARED) > 50
    library = ctypes.CDLL(str(path))
    assert [name for name in sorted(DECLARED) if not hasattr(library, name)] == []
    if shutil.which("nm"):
        exported = run("nm", "-D", "--defined-only", path).split("\n")
        names = {line.split()[-1] for line in exported if line}
        version = f"TREESPEC_C_{ABI}"
        assert names == {f"{name}@@{version}" for name in DECLARED} | {version}


def test_the_library_needs_neither_python_nor_torch_nor_cuda(path):
    if shutil.which("ldd") is None:
        pytest.skip("there is no ldd")
    linked = run("ldd", path).lower()
    assert "libc.so" in linked
    assert not re.search(r"python|torch|libc10|cuda|not found", linked), linked


def test_versions_are_those_of_header_and_package(path):
    library = ctypes.CDLL(str(path))
    library.treespec_version.restype = ctypes.c_char_p
    assert library.treespec_abi_version() == ABI
    assert library.treespec_version().decode() == treespec.__version__


# --- ctypes ---------------------------------------------------------------------------------------

VOCAB = 16
I32, I64, SIZE, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p


class Rows(ctypes.Structure):
    _fields_ = [
        ("data", POINTER),
        ("dtype", I32),
        ("reserved", I32),
        ("num_rows", I64),
        ("width", I64),
        ("row_stride", I64),
    ]


class TreeStep(ctypes.Structure):
    _fields_ = [
        ("struct_size", SIZE),
        ("tree", POINTER),
        ("num_nodes", I64),
        ("token", ctypes.POINTER(I32)),
        ("parent", ctypes.POINTER(I32)),
        ("position", ctypes.POINTER(I32)),
        ("ancestor_bits", ctypes.POINTER(ctypes.c_uint32)),
        ("prefix_length", I64),
    ]


PREFILL = ctypes.CFUNCTYPE(I32, POINTER, ctypes.POINTER(I32), I64, ctypes.POINTER(Rows))
FORWARD = ctypes.CFUNCTYPE(I32, POINTER, ctypes.POINTER(TreeStep), ctypes.POINTER(Rows))
COMMIT = ctypes.CFUNCTYPE(I32, POINTER, ctypes.POINTER(I32), I64)


class TargetModel(ctypes.Structure):
    _fields_ = [
        ("struct_size", SIZE),
        ("user", POINTER),
        ("vocab_size", I64),
        ("max_context", I64),
        ("prefill", PREFILL),
        ("forward", FORWARD),
        ("commit", COMMIT),
        ("states", POINTER),
    ]


class GenerateOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", SIZE),
        ("max_new_tokens", I32),
        ("sequence_id", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("sampling", POINTER),
        ("stop_token_ids", POINTER),
        ("num_stop_token_ids", I64),
        ("user", POINTER),
        ("stop_when", POINTER),
        ("on_tokens", COMMIT),
        ("allow", POINTER),
    ]


class LinearModel:
    """Logits are a random table of the last two tokens; its cache is the list of tokens."""

    def __init__(self, rng):
        self.table = 3.0 * rng.normal(size=(VOCAB, VOCAB, VOCAB))
        self.cache, self.rows = [], None
        self.target = TargetModel(
            ctypes.sizeof(TargetModel),
            None,
            VOCAB,
            0,
            PREFILL(self.prefill),
            FORWARD(self.forward),
            COMMIT(self.commit),
        )

    def give(self, rows, logits):
        self.rows = np.ascontiguousarray(rows)  # lives until the next call
        logits[0].data, logits[0].dtype = self.rows.ctypes.data, 1
        return 0

    def prefill(self, user, tokens, size, logits):
        self.cache = tokens[:size]
        return self.give(self.table[self.cache[-2], self.cache[-1]][None], logits)

    def forward(self, user, step, logits):
        step = step[0]
        self.tree = step.token[: step.num_nodes]
        parents = step.parent[: step.num_nodes]
        before = [self.cache[-1] if p < 0 else self.tree[p] for p in parents]
        return self.give(self.table[before, self.tree], logits)

    def commit(self, user, nodes, size):
        self.cache += [self.tree[node] for node in nodes[:size]]
        return 0


def generate(library, model, drafter, seed):
    """Tokens of one generation, as `on_tokens` gets them."""
    decoder, result, tokens = POINTER(), POINTER(), []

    def receive(user, token_ids, size):
        tokens.extend(token_ids[:size])
        return 0

    options = GenerateOptions()
    size = SIZE(ctypes.sizeof(options))
    assert library.treespec_generate_options_init(ctypes.byref(options), size) == 0
    options.max_new_tokens, options.seed, options.on_tokens = 40, seed, COMMIT(receive)
    prompt = (I32 * 3)(1, 2, 3)
    target = ctypes.byref(model.target)
    create = library.treespec_decoder_create
    assert create(target, drafter, None, ctypes.byref(decoder)) == 0
    status = library.treespec_decoder_generate(
        decoder, prompt, I64(3), ctypes.byref(options), ctypes.byref(result)
    )
    assert status == 0, ctypes.c_char_p(library.treespec_last_error()).value
    library.treespec_result_free(result)
    library.treespec_decoder_free(decoder)
    return tokens


def test_a_model_in_python_decodes_through_ctypes(path, rng):
    library, model = ctypes.CDLL(str(path)), LinearModel(rng)
    library.treespec_last_error.restype = POINTER
    drafter = POINTER()
    assert library.treespec_suffix_drafter_create(None, ctypes.byref(drafter)) == 0
    for seed in range(4):
        plain = generate(library, model, None, seed)
        assert len(plain) == 40
        assert generate(library, model, drafter, seed) == plain
        # Plain decoding once more, one row at a time, by the package.
        text = [1, 2, 3]
        for _ in range(40):
            verdict = treespec.verify_logits(
                treespec.TokenTree([text[-1]], parent=[-1]),
                model.table[text[-2], text[-1]][None],
                verifier="target_only",
                seed=seed,
                position=len(text) - 1,
            )
            text.append(verdict.next_token)
        assert plain == text[3:]
    library.treespec_drafter_free(drafter)


# --- The page -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", page_blocks("c"), ids=["decoder", "round"])
def test_c_code_of_the_page_compiles_and_runs(code, path, tmp_path):
    source = tmp_path / "main.c"
    source.write_text(code)
    if "int main" not in code:
        return compile_c(source, tmp_path / "round.o", "-c")
    compile_c(source, tmp_path / "main", path, f"-Wl,-rpath,{path.parent}", "-lm")
    printed = run(tmp_path / "main")
    emitted, forwards = re.search(r"(\d+) tokens in (\d+) target forwards", printed).groups()
    assert int(emitted) == 160
    assert int(forwards) < 120


def test_python_code_of_the_page_runs(path):
    [code] = page_blocks("py")
    printed = run(sys.executable, "-c", code, env={**os.environ, "LD_LIBRARY_PATH": path.parent})
    source = treespec.Marginals([[7, 8], [9, 3]], [[-0.4, -1.2], [-0.3, -1.6]])
    tree = treespec.build_tree("opt_tree", source, node_budget=6)
    assert printed.strip() == str(treespec.tree_positions(tree, 100).tolist())


RUST_MAIN = """
fn main() {
    let mut builder: *mut Builder = std::ptr::null_mut();
    unsafe {
        let unknown = c"fir".as_ptr();
        assert!(treespec_builder_create(unknown, std::ptr::null(), &mut builder) < 0);
        assert!(builder.is_null());
        println!("{}", std::ffi::CStr::from_ptr(treespec_last_error()).to_str().unwrap());
        let known = c"opt_tree".as_ptr();
        assert!(treespec_builder_create(known, std::ptr::null(), &mut builder) == 0);
        treespec_builder_free(builder);
        println!("{} {}", treespec_abi_version(), std::mem::size_of::<Rows>());
    }
}
"""


def test_rust_code_of_the_page_calls_the_library(path, tmp_path):
    if shutil.which("rustc") is None:
        pytest.skip("there is no rustc")
    [code] = page_blocks("rust")
    (tmp_path / "main.rs").write_text(code + RUST_MAIN)
    link = [f"-Clink-arg={path}", f"-Clink-arg=-Wl,-rpath,{path.parent}"]
    run("rustc", "--edition=2021", *link, tmp_path / "main.rs", "-o", tmp_path / "main")
    refusal, found = run(tmp_path / "main").splitlines()
    assert "fir" in refusal and "opt_tree" in refusal
    assert found == f"{ABI} {ctypes.sizeof(Rows)}"


@pytest.mark.skipif(IS_EDITABLE, reason="an editable install has no CMake package")
def test_a_cmake_project_in_c_alone_links_the_package(tmp_path):
    (tmp_path / "main.c").write_text(page_blocks("c")[0])
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\n"
        "project(service LANGUAGES C)\n"
        "find_package(treespec CONFIG REQUIRED)\n"
        "add_executable(service main.c)\n"
        "target_link_libraries(service PRIVATE treespec::c m)\n"
    )
    package = PACKAGE / "lib/cmake/treespec"
    build, options = tmp_path / "build", ("-G", "Ninja", f"-Dtreespec_DIR={package}")
    run("cmake", "-S", tmp_path, "-B", build, *options)
    run("cmake", "--build", build)
    assert "target forwards" in run(build / "service")
