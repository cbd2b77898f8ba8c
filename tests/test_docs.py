# SPDX-License-Identifier: Apache-2.0
"""The documentation: its tables are the registries', its code runs, its links lead somewhere."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

import treespec
from treespec import _core

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROPOSALS = ("deterministic", "iid", "without_replacement", "top_plus_one")
SOURCES = ("Marginals", "Transitions", "Expander", "Trie")


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(language):
    """(page and line, code) of every fenced block of a language, in all pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match.group(1), id=f"{name_of(page)}:{line}"))
    return found


def table_after(text, header):
    """Rows below a table header, up to the first line that is none."""
    lines = text.splitlines()
    start = lines.index(header) + 2
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return lines[start:end]


# --- tables ---------------------------------------------------------------------------------------


def offered_proposals(builder_name):
    offered = []
    for proposal in PROPOSALS:
        try:
            builder = _core.TreeBuilder(builder_name, proposal=proposal)
        except ValueError:  # there is no such choice, or not this one
            builder = _core.TreeBuilder(builder_name)
        if builder.proposal == proposal:
            offered.append(proposal)
    return offered


def read_sources(builder_name):
    builder, read = _core.TreeBuilder(builder_name), []
    for kind in SOURCES:
        try:
            builder.check_source_kind(kind)
        except ValueError:
            continue
        read.append(kind)
    return read


def exact_proposals(verifier_name):
    exact = []
    for proposal in PROPOSALS:
        try:
            _core.check_verifier(verifier_name, proposal, True)
        except ValueError:
            continue
        exact.append(proposal)
    return exact


def builder_row(name):
    sources = read_sources(name)
    read = "every source" if len(sources) == len(SOURCES) else ", ".join(sources)
    trees = ", ".join(offered_proposals(name))
    return f"| `{name}` | {treespec.builder_summaries()[name]} | {trees} | {read} |"


def verifier_row(name):
    exact = ", ".join(exact_proposals(name)) or "no tree: lossy"
    return f"| `{name}` | {treespec.verifier_summaries()[name]} | {exact} |"


def drafter_row(name):
    return f"| `{name}` | {treespec.drafter_summaries()[name]} |"


@pytest.mark.parametrize(
    ("header", "row", "names"),
    [
        ("| builder | what it builds | trees | reads |", builder_row, treespec.builder_names),
        ("| verifier | rule | exact on |", verifier_row, treespec.verifier_names),
        ("| drafter | how it guesses |", drafter_row, treespec.drafter_names),
    ],
    ids=["builders", "verifiers", "drafters"],
)
def test_the_readme_table_is_the_registry(header, row, names):
    expected = [row(name) for name in names()]
    assert table_after(README.read_text(encoding="utf-8"), header) == expected, (
        "README.md must hold these rows:\n" + "\n".join(expected)
    )


def test_what_auto_stands_for_is_what_the_readme_says():
    text = " ".join(README.read_text(encoding="utf-8").split())
    meanings = {
        mode: _core.auto_verifier(mode, False)
        for mode in ("deterministic", "iid", "without_replacement")
    }
    assert meanings["iid"] == meanings["without_replacement"]
    assert (
        f"`{_core.auto_verifier('iid', True)}` at temperature 0, "
        f"`{meanings['deterministic']}` for deterministic trees and `{meanings['iid']}` for drawn"
    ) in text


def test_the_oldest_onnx_runtime_is_the_same_everywhere():
    from treespec.targets.onnx import MIN_VERSION

    floor = ".".join(map(str, MIN_VERSION))
    assert f'"onnxruntime>={floor}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    source = ROOT / "cpp/backends/onnxruntime/ort_model.cc"
    assert f"kFirstVersion = {MIN_VERSION[1]};" in source.read_text(encoding="utf-8")
    for page in (ROOT / "docs/cpp.md", ROOT / "examples/cpp_service/README.md"):
        text = " ".join(page.read_text(encoding="utf-8").split())
        assert re.findall(r"ONNX Runtime ([\d.]+) or newer", text) == [floor], name_of(page)
        for archive in re.findall(r"onnxruntime-linux-x64-(\d+)\.(\d+)", text):
            assert tuple(map(int, archive)) >= MIN_VERSION, name_of(page)


# --- code -----------------------------------------------------------------------------------------


def test_the_blocks_that_ci_runs_follow_their_marks():
    text = README.read_text(encoding="utf-8")
    for mark in ("try", "test"):
        assert text.count(f"<!-- ci: {mark} -->\n```bash\n") == 1


@pytest.mark.parametrize("code", blocks("python"))
def test_python_code_runs(code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # some of it writes files
    load = treespec.load

    def load_bundled(target="demo", drafter="demo", **options):
        """`load` that takes the bundled pair in place of models of the hub."""
        if isinstance(drafter, str) and "/" in drafter:
            drafter = "demo:dflash" if "DFlash" in drafter else "demo"
        target = "demo" if isinstance(target, str) and "/" in target else target
        return load(target, drafter, **options)

    monkeypatch.setattr(treespec, "load", load_bundled, raising=False)
    exec(compile(code, "<documentation>", "exec"), {"__name__": "documentation"})


@pytest.mark.parametrize("code", blocks("cpp"))
def test_cpp_code_compiles(code):
    # Kernels among the examples are compiled against the emulation.
    folders = ("cpp/include", "cpp/backends/include", "cpp/src", "tests/cpp/emulation", "cuda")
    done = subprocess.run(
        [
            os.environ.get("CXX", "c++"),
            *("-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"),
            *(f"-I{ROOT / folder}" for folder in folders),
            *("-x", "c++", "-"),
        ],
        input=code,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def command_lines():
    lines = [
        line
        for block in blocks("bash")
        for line in block.values[0].replace("\\\n", "").splitlines()
        if line.startswith("treespec ")
    ]
    return sorted(set(lines))


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_are_understood(line):
    from treespec.cli import build_app

    name, *arguments = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(build_app()).commands[name]
    command.make_context(name, arguments)  # parses and checks, runs nothing


def test_every_option_of_the_export_is_on_its_page():
    from treespec.cli import build_app

    command = typer.main.get_command(build_app()).commands["export"]
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    for option in command.params:
        names = (*option.opts, *option.secondary_opts)
        assert any(name in page for name in names) or "--debug" in names, names


@pytest.mark.parametrize("backend", ["onnx", "tensorrt"])
def test_every_option_of_a_backend_is_on_its_page(backend):
    from treespec.backends import BACKENDS

    page = (ROOT / "docs/backends.md").read_text(encoding="utf-8")
    names = [field.name for field in dataclasses.fields(BACKENDS[backend]()[1])]
    assert [name for name in names if f"`{name}`" not in page] == []


def modules():
    names = [
        module.name
        for module in pkgutil.walk_packages(treespec.__path__, "treespec.")
        if not module.name.startswith(("treespec._core", "treespec.__main__"))
    ]
    return ["treespec", *names]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name):
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(importlib.import_module(name)):
        # Later lines of a docstring need the earlier ones: one skipped line skips all.
        if not any(example.options.get(doctest.SKIP) for example in test.examples):
            runner.run(test)
    assert runner.summarize().failed == 0


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_the_picture_is_small():
    for path in (ROOT / "docs/images").iterdir():
        assert path.stat().st_size < 150_000, name_of(path)
