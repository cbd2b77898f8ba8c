# SPDX-License-Identifier: Apache-2.0
"""Build, mask, verify and commit on the CPU, each beside its floor.

The native part (`benchmarks/cpp/bench_core.cc`) is run when it has been compiled; the Python part
times the same calls through the bindings, checked against the oracle first with `--check`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import harness
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import treespec
from treespec import _core, reference
from treespec.reference import mask as reference_mask
from treespec.reference import sampling as reference_sampling
from treespec.reference import sources as reference_sources
from treespec.reference.tree import Tree, from_arrays
from treespec.testing import core_tree

FloatRows = npt.NDArray[np.float32]

VOCAB_SIZE = 151_936
POOL_BYTES = 192 << 20  # walked through block by block: larger than the last cache
DEPTH = 10
MOST_ROWS = 320  # more than 64 nodes and 10 levels ask for


@dataclass
class Case:
    """Work and floor; `check` compares the work's result with the oracle and raises."""

    name: str
    floor_name: str
    work: Callable[[], Any]
    floor: Callable[[], Any]
    check: Callable[[], None]
    calls: int = 1


# --- Inputs ---------------------------------------------------------------------------------------


def logit_rows(count: int, width: int, seed: int = 0) -> FloatRows:
    """Rows with a few high logits, as a language model gives them."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0.0, 2.0, (count, width)).astype(np.float32)
    for row in rows:
        row[rng.integers(0, width, 8)] = 24 - 1.5 * np.arange(8)
    return rows


def log_softmax(rows: FloatRows) -> FloatRows:
    """In float64, rounded once."""
    wide = rows.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return np.minimum(wide, 0.0).astype(np.float32)


def pool(rows: FloatRows) -> Iterator[FloatRows]:
    """Endless copies at changing addresses, so that each is cold again when it returns."""
    return cycle([rows.copy() for _ in range(max(2, POOL_BYTES // rows.nbytes))])


class RowExpander:
    """Hands out the rows of a block in order of the calls."""

    def __init__(self, block: FloatRows) -> None:
        self.block, self.used = block, 0

    def expand(self, nodes: Any) -> FloatRows:
        self.used += len(nodes)
        return self.block[self.used - len(nodes) : self.used]


class TokenExpander:
    """A row per token and depth, whatever the order of the calls."""

    def __init__(self, block: FloatRows) -> None:
        self.block = block

    def expand(self, nodes: Any) -> FloatRows:
        return self.block[[(31 * node.token + node.depth) % len(self.block) for node in nodes]]


# --- Cases ----------------------------------------------------------------------------------------


def build_cases(budget: int) -> list[Case]:
    """Tree and ancestor bits from lists; the floor here is a call that does nothing but exist."""
    rng = np.random.default_rng(1)
    shape = (24, 16, 64)
    token = np.argsort(rng.random((*shape[:2], 4 * shape[2])), axis=-1)[..., : shape[2]]
    logprob = log_softmax(-np.sort(-rng.normal(0, 3, (shape[0] * shape[1], shape[2])), axis=1))
    logprob = logprob.reshape(shape)
    following = np.broadcast_to(np.arange(shape[2]) % shape[1], shape)
    lists = {
        "marginals": (token[:, 0], logprob[:, 0]),
        "transitions": (token, logprob, following),
    }
    return [_build_case(kind, arrays, budget) for kind, arrays in lists.items()]


def _build_case(kind: str, arrays: tuple[Any, ...], budget: int) -> Case:
    class_name = kind.capitalize()
    source = getattr(treespec, class_name)(*arrays)
    builder = _core.TreeBuilder("opt_tree", max_depth=24)

    def work() -> tuple[Any, Any]:
        tree = builder.build(source, budget)
        return tree, _core.ancestor_bits(tree.parent)

    def check() -> None:
        tree, bits = work()
        oracle_source = getattr(reference_sources, class_name)(*arrays)
        oracle = reference.builder("opt_tree")(oracle_source, node_budget=budget, max_depth=24)
        _same_tree(tree, oracle)
        np.testing.assert_array_equal(bits, reference_mask.bits(tree.parent))

    name = f"build+mask {kind} {budget}"
    return Case(name, "binding call alone", work, lambda: _core.root_tree(0), check, 20)


def dense_build_case(vocab_size: int) -> Case:
    """OPT-Tree, 64 nodes, from raw rows over the vocabulary."""
    rows = log_softmax(logit_rows(MOST_ROWS, vocab_size))
    blocks = pool(rows)
    probe = RowExpander(rows)
    treespec.build_tree("opt_tree", probe, 64, max_depth=DEPTH)
    used = probe.used

    def check() -> None:
        laws = TokenExpander(log_softmax(logit_rows(97, 512)))  # small: the oracle sorts all rows
        tree = treespec.build_tree("opt_tree", laws, 64, max_depth=DEPTH)
        oracle = reference.builder("opt_tree")(laws, node_budget=64, max_depth=DEPTH)
        _same_tree(tree, oracle)

    return Case(
        f"opt_tree 64 nodes, {used} dense rows of {vocab_size}, cold",
        "NumPy sum over those rows, cold",
        lambda: treespec.build_tree("opt_tree", RowExpander(next(blocks)), 64, max_depth=DEPTH),
        lambda: next(blocks)[:used].sum(),
        check,
    )


def _same_tree(tree: Any, oracle: Any) -> None:
    for name in ("token", "parent", "depth", "path_logprob"):
        np.testing.assert_array_equal(getattr(tree, name), getattr(oracle, name), err_msg=name)


def verify_cases(vocab_size: int) -> list[Case]:
    """A tree of 64 drafted nodes of which the walk takes three."""
    logits = logit_rows(65, vocab_size)
    for node, child in ((0, 1), (1, 5), (5, 21)):
        logits[node, child] = 40.0
    settings = {
        "greedy": ("deterministic", 0.0),
        "target_only": ("deterministic", 0.7),
        "recursive_rejection": ("iid", 0.7),
    }
    return [
        _verify_case(verifier, proposal, temperature, logits)
        for verifier, (proposal, temperature) in settings.items()
    ]


def _four_ary_tree(proposal: str, vocab_size: int) -> Tree:
    """64 drafted nodes; a sampled one has a law of four tokens a row, as after truncation."""
    parent = [-1, *((node - 1) // 4 for node in range(1, 65))]
    law = None
    if proposal != "deterministic":
        law = np.zeros((65, vocab_size), dtype=np.float32)
        for node, row in enumerate(law):
            row[4 * node + 1 : 4 * node + 5] = 0.25
    return from_arrays(list(range(65)), parent, proposal=proposal, draft_probs=law)


def _verify_case(verifier: str, proposal: str, temperature: float, logits: FloatRows) -> Case:
    oracle_tree = _four_ary_tree(proposal, logits.shape[1])
    tree = core_tree(oracle_tree)
    params = treespec.SamplingParams(temperature=temperature)
    blocks = pool(logits)

    def verify(rows: FloatRows) -> Any:
        return treespec.verify_logits(tree, rows, sampling=params, verifier=verifier, seed=3)

    def check() -> None:
        laws = np.stack(
            [
                reference_sampling.normalise(
                    reference_sampling.process_logits(row, temperature=temperature)
                )
                for row in logits
            ]
        )
        oracle = reference.verifier(verifier)(oracle_tree, laws, oracle_tree.draft_probs, seed=3)
        verdict = verify(logits)
        assert (verdict.accepted_nodes.tolist(), verdict.next_token) == oracle

    visited = verify(logits).num_accepted + 1
    return Case(
        f"verify {verifier}, {visited} of 65 rows of {logits.shape[1]}, cold",
        "NumPy sum over the visited rows, cold",
        lambda: verify(next(blocks)),
        lambda: next(blocks)[:visited].sum(),
        check,
    )


def mask_case() -> Case:
    """The additive mask of a tree of 65 rows behind 2048."""
    tree = core_tree(_four_ary_tree("deterministic", 65))
    out = np.empty((65, 2048 + 65), dtype=np.float32)

    def check() -> None:
        _core.fill_mask(tree.parent, tree.depth, 0, 2048, 0, out)
        np.testing.assert_array_equal(
            out == 0, reference_mask.bool_mask(tree.parent, prefix_length=2048)
        )

    return Case(
        "additive float32 mask [65, 2048 + 65]",
        "NumPy fill of the same array",
        lambda: _core.fill_mask(tree.parent, tree.depth, 0, 2048, 0, out),
        lambda: out.fill(0.0),
        check,
        50,
    )


def commit_case() -> Case:
    """Keys and values of 32 layers: 5 of 65 rows stay."""
    blocks = [np.zeros((2, 8, 2048, 128), dtype=np.float32) for _ in range(32)]
    nodes = np.array([0, 3, 9, 17, 40], dtype=np.int32)
    buffers = _core.KvBuffers(blocks)
    moved = np.zeros((32, 2, 8, 4, 128), dtype=np.float32)
    target = np.empty_like(moved)

    def check() -> None:
        block = np.random.default_rng(0).random((2, 8, 64, 16), dtype=np.float32)
        before = block.copy()
        treespec.commit_kv(block, 10, nodes)
        np.testing.assert_array_equal(block[..., 10:15, :], before[..., 10 + nodes, :])

    return Case(
        "commit 5 of 65 rows, 32 layers x 16 heads x 512 bytes",
        "one copy of the moved bytes",
        lambda: buffers.commit(1900, nodes),
        lambda: np.copyto(target, moved),
        check,
        20,
    )


def cases(quick: bool) -> list[Case]:
    """All of them; `quick` with a small vocabulary."""
    vocab_size = 8192 if quick else VOCAB_SIZE
    out = [case for budget in (64, 1024) for case in build_cases(budget)]
    return [
        *out,
        dense_build_case(vocab_size),
        *verify_cases(vocab_size),
        mask_case(),
        commit_case(),
    ]


# --- Running --------------------------------------------------------------------------------------


def python_results(options: argparse.Namespace, repetitions: int) -> list[dict[str, Any]]:
    """Every case through the bindings."""
    out = []
    for case in cases(options.quick):
        if options.check:
            case.check()
        times = harness.interleaved(
            {"work": case.work, "floor": case.floor}, repetitions, calls=case.calls
        )
        spent, least = (getattr(times[name], options.clock) for name in ("work", "floor"))
        out.append(_result("Python", case.name, case.floor_name, spent, least))
    return out


def native_results(binary: Path, repetitions: int) -> list[dict[str, Any]]:
    """What the compiled benchmark prints; it measures processor time."""
    printed = subprocess.run([binary, str(repetitions)], check=True, capture_output=True, text=True)
    return [
        _result("C++", case["name"], case["floor"], case["seconds"], case["floor_seconds"])
        for case in json.loads(printed.stdout)
    ]


def _result(
    side: str, name: str, floor_name: str, work: Sequence[float], floor: Sequence[float]
) -> dict[str, Any]:
    return {
        "side": side,
        "name": name,
        "floor_name": floor_name,
        "seconds": harness.summarise(work),
        "floor_seconds": harness.summarise(floor),
        "ratio": harness.ratio_interval(work, floor),
    }


def show(results: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="medians in microseconds; ratio with its 95 % interval")
    for heading in ("", "case", "time", "spread", "floor", "ratio", "the floor is"):
        table.add_column(
            heading, justify="right" if heading in ("time", "spread", "floor") else "left"
        )
    for result in results:
        table.add_row(
            result["side"],
            result["name"],
            f"{1e6 * result['seconds']['median']:.1f}",
            f"{1e6 * result['seconds']['spread']:.1f}",
            f"{1e6 * result['floor_seconds']['median']:.1f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(*result["ratio"]),
            result["floor_name"],
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def find_binary() -> Path | None:
    """The newest `bench_core` of a build folder of this checkout."""
    found = Path(__file__).resolve().parents[1].glob("build/**/bench_core")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    options = harness.parser(__doc__ or "")
    options.add_argument("--binary", type=Path, default=find_binary(), help="compiled bench_core")
    return options.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run and print."""
    options = parse(arguments)
    repetitions = options.repetitions or (3 if options.quick else 15)
    results = python_results(options, repetitions)
    if options.binary is not None:
        results = native_results(options.binary, repetitions) + results
    show(results)
    command = shlex.join(["python", "benchmarks/bench_core.py", *arguments])
    harness.write_report(options.json, "core", command, options, results)


if __name__ == "__main__":
    main(sys.argv[1:])
