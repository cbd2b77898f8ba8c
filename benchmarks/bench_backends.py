# SPDX-License-Identifier: Apache-2.0
"""The demo pair in eager PyTorch, in ONNX Runtime from Python and from C++, and in the C++ service.

Times of a tree forward by nodes and context, and tokens per second of whole decoders, in turn, one
thread each. Every contestant must first write the same texts.

    python benchmarks/bench_backends.py --service path/to/cpp_service --json results/backends.json

builds the C++ side itself (an installed treespec, ONNX Runtime as for `find_package(treespec
COMPONENTS onnxruntime)`); the service is built by its README.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

import treespec
from treespec import demo
from treespec.export.pair import export_pair
from treespec.targets.base import Needs, TreeRows

EAGER, PYTHON, PYTHON_ROWS, CPP, SERVICE = (
    "eager PyTorch",
    "ONNX Runtime, Python",
    "the same, new rows",
    "ONNX Runtime, C++",
    "the C++ service",
)
NODE_BUDGET = 8  # the default on a CPU
# After a prefill the weights come from memory, not from the cache. As in cpp/exported/main.cc.
WARM_CALLS = 6
SOURCE = Path(__file__).parent / "cpp/exported"


@dataclass
class Contestant:
    """A decoder under test.

    Attributes
    ----------
    forward
        Seconds of a forward of a binary tree: `forward(nodes, context, calls)`; None: not offered.
    generate
        Seconds of a text, and its tokens, or what they say if that is all there is:
        `generate(prompt_ids, new_tokens, temperature, seed)`.
    """

    name: str
    forward: Callable[[int, int, int], float] | None
    generate: Callable[[list[int], int, float, int], tuple[float, list[int] | str]]


# --- Python ---------------------------------------------------------------------------------------


def binary_tree(num_nodes: int) -> TreeRows:
    """A root and nodes that fork in two, as in cpp/exported/main.cc."""
    node = np.arange(num_nodes)
    parent = np.where(node == 0, -1, (node - 1) // 2).astype(np.int32)
    depth = np.floor(np.log2(node + 1)).astype(np.int32)
    return TreeRows((node % 100 + 1).astype(np.int32), parent, depth)


def decoder_contestant(name: str, decoder: treespec.decoder.SpeculativeDecoder) -> Contestant:
    """A decoder of `treespec.load`."""
    target = decoder.target

    def forward(nodes: int, context: int, calls: int) -> float:
        tree, needs = binary_tree(nodes), Needs()
        sequence = target.open(context + nodes)
        target.prefill([sequence], [np.arange(context) * 7 % 1000 + 2], needs)
        nothing = np.empty(0, dtype=np.int32)

        def repeat(times: int) -> float:
            start = time.perf_counter()
            for _ in range(times):
                target.forward([sequence], [tree], needs)
                target.commit([sequence], [nothing])
            return time.perf_counter() - start

        repeat(WARM_CALLS)
        seconds = repeat(calls) / calls
        target.close(sequence)
        return seconds

    def generate(
        prompt: list[int], new_tokens: int, temperature: float, seed: int
    ) -> tuple[float, list[int]]:
        start = time.perf_counter()
        result = decoder.generate(
            prompt, max_new_tokens=new_tokens, temperature=temperature, seed=seed, ignore_eos=True
        )
        return time.perf_counter() - start, result.token_ids

    return Contestant(name, forward, generate)


# --- C++ ------------------------------------------------------------------------------------------


@contextmanager
def cpp_contestant(program: Path, folder: Path) -> Iterator[Contestant]:
    """The program of cpp/exported, which answers a line with a line."""
    with subprocess.Popen(
        [program, folder, folder / "drafter"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(*words: Any) -> list[str]:
            print(*words, file=stdin, flush=True)
            answer = stdout.readline().split()
            if not answer:
                raise RuntimeError("bench_exported ended; see its message above")
            return answer

        def generate(
            prompt: list[int], new_tokens: int, temperature: float, seed: int
        ) -> tuple[float, list[int]]:
            seconds, *tokens = ask("generate", NODE_BUDGET, new_tokens, temperature, seed, *prompt)
            return float(seconds), [int(token) for token in tokens]

        yield Contestant(CPP, lambda *sizes: float(ask("forward", *sizes)[0]), generate)
        stdin.close()


@contextmanager
def service_contestant(program: Path, folder: Path) -> Iterator[Contestant]:
    """The service over HTTP on loopback, one slot."""
    command = [program, folder, "--port", "0", "--slots", "1", "--threads", "1"]
    command += ["--nodes", str(NODE_BUDGET)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        started = process.stdout.readline().split()
        if not started:
            raise SystemExit(f"{program} ended; see its message above")
        client = httpx.Client(base_url=started[-1], timeout=120)

        def generate(
            prompt: list[int], new_tokens: int, temperature: float, seed: int
        ) -> tuple[float, str]:
            body = {
                "prompt": prompt,
                "max_tokens": new_tokens,
                "temperature": temperature,
                "seed": seed,
                "ignore_eos": True,
            }
            start = time.perf_counter()
            answer = client.post("/v1/completions", json=body)
            seconds = time.perf_counter() - start
            answer.raise_for_status()
            return seconds, answer.json()["choices"][0]["text"]

        try:
            yield Contestant(SERVICE, None, generate)
        finally:
            client.close()
            process.terminate()


def build(folder: Path) -> Path:
    """The program of cpp/exported, built in `folder`."""
    package = subprocess.run(
        [sys.executable, "-m", "treespec", "--cmake-dir"],
        capture_output=True,
        text=True,
        check=True,
    )
    configure = ["cmake", "-S", SOURCE, "-B", folder, f"-Dtreespec_DIR={package.stdout.strip()}"]
    for command in (configure, ["cmake", "--build", folder]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "bench_exported"


# --- Runs -----------------------------------------------------------------------------------------


def prompts(count: int) -> list[list[int]]:
    """Held-out code, as token ids."""
    tokenizer = treespec.text.load_tokenizer(str(demo.target_path()))
    texts = [one["text"] if isinstance(one, dict) else one for one in demo.held_out()]
    return [tokenizer(text)["input_ids"][:96] for text in texts[:count]]


def check_texts(contestants: Sequence[Contestant], texts: list[list[int]], new_tokens: int) -> None:
    """Refuse to time decoders that do not write the same."""
    tokenizer = treespec.text.load_tokenizer(str(demo.target_path()))
    for temperature in (0.0, 0.7):
        for prompt in texts:
            _, expected = contestants[0].generate(prompt, new_tokens, temperature, 1)
            assert not isinstance(expected, str)
            text = treespec.text.decode(tokenizer, expected)
            for one in contestants[1:]:
                _, found = one.generate(prompt, new_tokens, temperature, 1)
                wanted = text if isinstance(found, str) else expected
                if found != wanted:
                    raise SystemExit(
                        f"{one.name} does not write what {EAGER} writes at temperature "
                        f"{temperature}: {found!r} instead of {wanted!r}"
                    )


def time_forwards(
    contestants: Sequence[Contestant], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Seconds by contestant, nodes and context, in turn."""
    rows = []
    repetitions = options.repetitions or (3 if options.quick else 15)
    for context in (128, 512):
        for nodes in (1, 16, 64):
            seconds: dict[str, list[float]] = {one.name: [] for one in contestants if one.forward}
            for repetition in range(repetitions + 1):
                for one in contestants:
                    if one.forward:
                        taken = one.forward(nodes, context, 4)
                        if repetition:  # the first warms up
                            seconds[one.name].append(taken)
            rows.append({"nodes": nodes, "context": context, "seconds": seconds})
    return rows


def time_texts(
    contestants: Sequence[Contestant], texts: list[list[int]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Seconds by contestant and text, in turn."""
    rows = []
    repetitions = options.repetitions or (1 if options.quick else 3)
    for temperature in (0.0, 0.7):
        seconds: dict[str, list[float]] = {one.name: [] for one in contestants}
        for repetition in range(repetitions):
            for prompt in texts:
                for one in contestants:
                    taken, _ = one.generate(prompt, options.new_tokens, temperature, repetition)
                    seconds[one.name].append(taken)
        rows.append(
            {"temperature": temperature, "new_tokens": options.new_tokens, "seconds": seconds}
        )
    return rows


def show(forwards: list[dict[str, Any]], texts: list[dict[str, Any]]) -> None:
    """Tables: milliseconds of a forward; tokens per second, and how often eager's."""
    table = Table(title="tree forward, ms (median)")
    names = list(forwards[0]["seconds"])
    for column in ("context", "nodes", *names):
        table.add_column(column, justify="right")
    for row in forwards:
        medians = [f"{1e3 * float(np.median(row['seconds'][name])):.2f}" for name in names]
        table.add_row(str(row["context"]), str(row["nodes"]), *medians)
    Console().print(table)
    table = Table(title="tokens per second")
    for column in ("temperature", "decoder", "tokens/s", f"/ {EAGER}"):
        table.add_column(column, justify="left" if column == "decoder" else "right")
    for row in texts:
        for name, seconds in row["seconds"].items():
            rate = row["new_tokens"] * len(seconds) / sum(seconds)
            ratio, low, high = harness.ratio_interval(row["seconds"][EAGER], seconds)
            table.add_row(
                str(row["temperature"]), name, f"{rate:.0f}", f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
            )
    Console().print(table)


def main() -> None:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--service", type=Path, metavar="FILE", help="the built cpp_service")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="its converted tokenizer")
    parser.add_argument("--prompts", type=int, default=8, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=96, metavar="N")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        root = Path(temporary)
        folders = {style: root / style for style in ("in_place", "new_rows")}
        for style, folder in folders.items():
            export_pair("demo", folder, drafter="demo", cache_style=style, check=options.check)

        def load(folder: Path) -> treespec.decoder.SpeculativeDecoder:
            return treespec.load(
                folder,
                folder / "drafter",
                backend="onnx",
                profile=None,
                backend_options={"threads": options.threads},
            )

        contestants = [
            decoder_contestant(EAGER, treespec.load(profile=None)),
            decoder_contestant(PYTHON, load(folders["in_place"])),
            decoder_contestant(PYTHON_ROWS, load(folders["new_rows"])),
            stack.enter_context(cpp_contestant(build(root / "build"), folders["in_place"])),
        ]
        if options.service:
            for path in (options.tokenizer or options.service.parent.parent / "demo").glob(
                "openv*"
            ):
                (folders["in_place"] / path.name).symlink_to(path.resolve())
            contestants.append(
                stack.enter_context(service_contestant(options.service, folders["in_place"]))
            )
        texts = prompts(2 if options.quick else options.prompts)
        check_texts(contestants, texts, 32 if options.quick else options.new_tokens)
        forwards = time_forwards(contestants, options)
        written = time_texts(contestants, texts, options)
    show(forwards, written)
    command = shlex.join(["python", "benchmarks/bench_backends.py", *sys.argv[1:]])
    results = {"forward": forwards, "decode": written}
    harness.write_report(options.json, "backends", command, options, results)


if __name__ == "__main__":
    main()
