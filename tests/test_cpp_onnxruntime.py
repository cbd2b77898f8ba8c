# SPDX-License-Identifier: Apache-2.0
"""Exported models in C++ on ONNX Runtime: the texts of PyTorch, from an installed package."""

import json
import os
import subprocess

import pytest
from exported_models import DEMO_DRAFTERS, exported
from filelock import FileLock
from installed_package import ROOT, build_with_cmake, run
from onnx_cases import onnx_decoder, ragged_prompts, texts, torch_decoder

import treespec
from treespec.text import encode

PROMPTS = ROOT / "python/treespec/demo/prompts.json"
SOURCE = ROOT / "tests/cpp/backends/onnxruntime"
TINY_TARGETS = ["target", "target of new rows", "target with windows"]
KARY = {"builder": "kary", "builder_options": {"expansion": [2, 2]}, "node_budget": 6}
TRAVERSAL = {"builder": "delayed", "verifier": "traversal", "node_budget": 10}
LAWS = [{"temperature": 0.0}, {"temperature": 0.8, "top_k": 20, "seed": 5}]


@pytest.fixture(scope="session")
def programs(tmp_path_factory, cmake_dir):
    """The folder of the programs, built once for all workers as a project of its own."""
    if not os.environ.get("ONNXRUNTIME_ROOT"):
        pytest.skip("ONNXRUNTIME_ROOT must name a folder with ONNX Runtime's headers and library")
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    build, built = base / "cpp_onnxruntime", base / "cpp_onnxruntime.built"
    with FileLock(base / "cpp_onnxruntime.lock"):
        if not built.exists():
            # They run for less time than -O3 would take to compile them.
            quick = "-DCMAKE_CXX_FLAGS_RELEASE=-O1"
            build_with_cmake(SOURCE, build, f"-Dtreespec_DIR={cmake_dir}", quick)
            built.touch()
    return build


@pytest.fixture
def generate(programs):
    """``generate(requests)``: the answers of the C++ program, one process for all of them."""
    return lambda requests: json.loads(run(programs / "ort_generate", input=json.dumps(requests)))


@pytest.fixture
def folder(tmp_path_factory):
    """``folder(name)``: an exported folder, which nobody may change."""
    return lambda name: str(exported(name, tmp_path_factory))


def expect_texts(requests, answers, expected):
    """Every answer has the tokens that belong to its request."""
    for request, answer, tokens in zip(requests, answers, expected, strict=True):
        named = {name: request[name] for name in request if name not in ("prompt", "prompts")}
        found = [one["token_ids"] for one in (answer if "prompts" in request else [answer])]
        assert found == (tokens if "prompts" in request else [tokens]), named


@pytest.mark.parametrize("target", TINY_TARGETS)
def test_texts_are_those_of_pytorch_with_every_drafter_alone_and_in_batches(
    target, generate, folder
):
    prompts = ragged_prompts((3, 21, 90))
    drafters = [None, "ngram", folder("causal_lm")]
    if target != "target with windows":
        drafters += [folder("dflash"), folder("treeflash")]
    plain = torch_decoder(target, None)
    requests, expected = [], []
    for law in LAWS:
        reference = texts(plain, prompts, max_new_tokens=45, **law)
        for drafter in drafters:
            request = {
                "target": folder(target), "drafter": drafter, "max_new_tokens": 45, **law,
                **(KARY if drafter in drafters[2:] else {}),
            }  # fmt: skip
            requests += [{**request, "prompt": prompt} for prompt in prompts]
            expected += reference
            requests.append({**request, "prompts": prompts, "batch": 2})
            expected.append(reference)
    expect_texts(requests, generate(requests), expected)


@pytest.mark.parametrize("drafter", ["causal_lm", "dflash", "treeflash"])
def test_trees_are_drawn_by_the_law_that_pytorch_draws_by(drafter, generate, folder):
    prompts = ragged_prompts((5, 13))
    law = {"temperature": 0.9, "top_p": 0.8, "seed": 3, "max_new_tokens": 30}
    expected = texts(torch_decoder("target", drafter, **TRAVERSAL), prompts, **law)
    request = {"target": folder("target"), "drafter": folder(drafter), **TRAVERSAL, **law}
    requests = [{**request, "prompt": prompt} for prompt in prompts]
    expect_texts(requests, generate(requests), expected)


def test_float16_gives_the_texts_that_it_gives_from_python_and_bfloat16_is_refused(
    generate, programs, folder, tmp_path_factory
):
    prompts = ragged_prompts((4, 17))
    decoder = onnx_decoder(tmp_path_factory, "target in float16", "causal_lm", node_budget=5)
    expected = texts(decoder, prompts, max_new_tokens=20)
    request = {"drafter": folder("causal_lm"), "node_budget": 5, "max_new_tokens": 20}
    requests = [
        {**request, "target": folder("target in float16"), "prompt": prompt} for prompt in prompts
    ]
    expect_texts(requests, generate(requests), expected)

    request = {**request, "target": folder("target in bfloat16"), "prompt": prompts[0]}
    command = [str(programs / "ort_generate")]
    done = subprocess.run(command, input=json.dumps([request]), capture_output=True, text=True)
    assert done.returncode == 1
    assert "must be exported as float32 or float16" in done.stderr


@pytest.mark.parametrize("style", DEMO_DRAFTERS)
def test_the_demo_pair_gives_pytorchs_texts_in_as_many_rounds(style, generate, folder):
    plain = treespec.load("demo", None, device="cpu")
    prompts = [encode(plain.tokenizer, text).tolist() for text in json.loads(PROMPTS.read_text())]
    trees = [
        ("drafter", "demo", {"builder": "opt_tree", "builder_options": {"threshold": 0.4}}),
        ("drafter", "demo", TRAVERSAL),
        ("treeflash", "demo:treeflash", {"builder": "dtree", "node_budget": 16}),
        ("treeflash", "demo:treeflash", KARY),
    ]
    requests, expected, rounds = [], [], []
    for law, prompt in zip(LAWS, prompts, strict=False):
        for name, drafter, tree in trees:
            if name not in DEMO_DRAFTERS[style] or (tree is TRAVERSAL and not law["temperature"]):
                continue
            request = {"node_budget": 8, **tree, "max_new_tokens": 40, **law}
            options = {
                name: request[name] for name in request if name not in {"max_new_tokens", *law}
            }
            decoder = treespec.load("demo", drafter, device="cpu", **options)
            reference = decoder.generate(prompt, ignore_eos=True, max_new_tokens=40, **law)
            own = f"{folder(style)}/{name}"
            requests.append({"target": folder(style), "drafter": own, "prompt": prompt, **request})
            expected.append(reference.token_ids)
            rounds.append(reference.stats.rounds)
    answers = generate(requests)
    expect_texts(requests, answers, expected)
    # Nearly equal candidates may change their order with the kernels of a machine.
    found = sum(answer["rounds"] for answer in answers)
    assert found == pytest.approx(sum(rounds), rel=0.05)


def test_a_long_text_outgrows_the_first_rows_of_the_caches(generate, folder):
    plain = treespec.load("demo", None, device="cpu")
    prompt = encode(plain.tokenizer, json.loads(PROMPTS.read_text())[0]).tolist()
    expected = plain.generate(prompt, ignore_eos=True, max_new_tokens=420).token_ids
    requests = [
        {"target": folder(style), "drafter": f"{folder(style)}/{drafter}", "prompt": prompt,
         "max_new_tokens": 420}
        for style, drafters in DEMO_DRAFTERS.items() for drafter in drafters
    ]  # fmt: skip
    expect_texts(requests, generate(requests), [expected] * len(requests))


@pytest.mark.parametrize("style", ["in place", "new rows"])
def test_generations_end_threads_share_models_and_wrong_pairs_are_refused(
    style, programs, folder, tmp_path
):
    models = [folder("demo"), f"{folder('demo')}/drafter", f"{folder('demo')}/treeflash"]
    if style == "new rows":
        models = [folder(f"{name} of new rows") for name in ("target", "causal_lm", "treeflash")]
    run(programs / "ort_check", *models, tmp_path)


OLD_LIBRARY = """
struct base { const void* (*get_api)(unsigned); const char* (*version)(void); };
static const void* get_api(unsigned number) { static int api; return number <= 24 ? &api : 0; }
static const char* version(void) { return "1.24.4"; }
static const struct base old = {get_api, version};
const struct base* OrtGetApiBase(void) { return &old; }
"""


def test_a_library_without_the_operators_is_refused(programs, folder, tmp_path):
    run("cc", "-shared", "-fPIC", "-x", "c", "-", "-o", tmp_path / "old.so", input=OLD_LIBRARY)
    done = subprocess.run(
        [programs / "ort_generate"],
        input=json.dumps([{"target": folder("target"), "drafter": None, "prompt": [3]}]),
        env={**os.environ, "LD_PRELOAD": str(tmp_path / "old.so")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ONNX Runtime library must be at least 1.25, got 1.24.4" in done.stderr


def refusal(cmake_dir, folder, component, *options):
    """What CMake says when the package cannot give a component."""
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(service LANGUAGES CXX)\n"
        f"find_package(treespec CONFIG REQUIRED COMPONENTS {component})\n"
    )
    environment = {name: os.environ[name] for name in os.environ if name != "ONNXRUNTIME_ROOT"}
    command = ["cmake", "-S", folder, "-B", folder / "build", "-G", "Ninja", *options]
    words = [str(word) for word in (*command, f"-Dtreespec_DIR={cmake_dir}")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    return " ".join(done.stderr.split())


def test_what_a_component_lacks_is_said_when_the_package_is_looked_for(cmake_dir, tmp_path):
    bare = "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF"
    assert "set ONNXRUNTIME_ROOT to" in refusal(cmake_dir, tmp_path, "onnxruntime", bare)
    assert "treespec has no component teapot" in refusal(cmake_dir, tmp_path, "teapot")
    for version in (None, (10, 14)):
        root = f"-DTensorRT_ROOT={tensorrt_in_name(tmp_path / 'old', version)}"
        message = refusal(cmake_dir, tmp_path, "tensorrt", bare, root)
        assert "TensorRT 10.15 or later was not found: set TensorRT_ROOT to" in message


def tensorrt_in_name(root, version):
    """A folder with what CMake looks for; None: without."""
    if version is not None:
        for folder in ("include", "lib"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "include/NvInfer.h").touch()
        (root / "lib/libnvinfer.so").touch()
        names = zip(("MAJOR", "MINOR", "PATCH"), (*version, 0), strict=True)
        lines = [f"#define TRT_{name}_ENTERPRISE {number}\n" for name, number in names]
        (root / "include/NvInferVersion.h").write_text("".join(lines))
    return root


@pytest.mark.parametrize("version", [(10, 15), (11, 1)])
def test_both_components_are_found_together(cmake_dir, tmp_path, version):
    if not os.environ.get("ONNXRUNTIME_ROOT"):
        pytest.skip("ONNXRUNTIME_ROOT must name a folder with ONNX Runtime's headers and library")
    options = (f"-DTensorRT_ROOT={tensorrt_in_name(tmp_path / 'trt', version)}",)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(service LANGUAGES CXX)\n"
        "find_package(treespec CONFIG REQUIRED COMPONENTS onnxruntime tensorrt)\n"
        "get_target_property(links treespec::tensorrt LINK_LIBRARIES)\n"
        'message(STATUS "tensorrt links ${links}")\n'
    )
    command = ["cmake", "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja", *options]
    words = [str(word) for word in (*command, f"-Dtreespec_DIR={cmake_dir}")]
    done = subprocess.run(words, capture_output=True, text=True)
    if "set(TREESPEC_WITH_CUDA ON)" in (cmake_dir / "treespecConfig.cmake").read_text():
        assert done.returncode == 0, done.stderr
        assert "TensorRT::nvinfer" in done.stdout
    else:
        message = " ".join(done.stderr.split())
        assert done.returncode != 0
        assert "CUDA toolkit was not found" in message or "was built without CUDA" in message
