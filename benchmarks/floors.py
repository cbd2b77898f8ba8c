# SPDX-License-Identifier: Apache-2.0
"""Work beside its floor: what bench_build and bench_core share.

The native part (`benchmarks/cpp/<benchmark>.cc`) is run when it has been compiled; the Python part
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

FloatRows = npt.NDArray[np.float32]

VOCAB_SIZE = 151_936
POOL_BYTES = 192 << 20  # walked through block by block: larger than the last cache


@dataclass
class Case:
    """Work and floor; `check` compares the work's result with the oracle and raises.

    Attributes
    ----------
    calls
        Per sample.
    num_rows
        Vocabulary rows that one call reads; 0: not counted.
    """

    name: str
    floor_name: str
    work: Callable[[], Any]
    floor: Callable[[], Any]
    check: Callable[[], None]
    calls: int = 1
    num_rows: int = 0


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


def pool(rows: Any, num_read: int | None = None) -> Iterator[Any]:
    """Endless copies at changing addresses, so that each is cold again when it returns.

    `rows`: a NumPy array or a torch tensor. `num_read`: how many of them a call reads; None: all.
    """
    copy = rows.copy if isinstance(rows, np.ndarray) else rows.clone
    read_bytes = rows.nbytes * (num_read or len(rows)) // len(rows)
    return cycle([copy() for _ in range(max(2, POOL_BYTES // read_bytes))])


def run(
    benchmark: str,
    description: str,
    cases: Callable[[bool], Iterator[Case]],
    arguments: Sequence[str],
) -> None:
    """Run a benchmark as the command line says: both sides, a table, JSON."""
    options = _parse(benchmark, description, arguments)
    repetitions = options.repetitions or (3 if options.quick else 15)
    results = []
    if options.binary is not None:
        results += _native_results(options.binary, repetitions)
    results += [_measure(case, options, repetitions) for case in cases(options.quick)]
    show(results)
    command = shlex.join(["python", f"benchmarks/bench_{benchmark}.py", *arguments])
    harness.write_report(options.json, benchmark, command, options, results)


def _parse(benchmark: str, description: str, arguments: Sequence[str]) -> argparse.Namespace:
    options = harness.parser(description)
    options.add_argument(
        "--binary",
        type=Path,
        default=_find_binary(f"bench_{benchmark}"),
        help=f"compiled bench_{benchmark}; default: the newest in build/",
    )
    return options.parse_args(arguments)


def _find_binary(name: str) -> Path | None:
    found = Path(__file__).resolve().parents[1].glob(f"build/**/{name}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _measure(case: Case, options: argparse.Namespace, repetitions: int) -> dict[str, Any]:
    if options.check:
        case.check()
    times = harness.interleaved(
        {"work": case.work, "floor": case.floor}, repetitions, calls=case.calls
    )
    row = {"name": case.name, "floor_name": case.floor_name}
    if case.num_rows:
        row["num_rows"] = case.num_rows
    spent, least = (getattr(times[name], options.clock) for name in ("work", "floor"))
    return _result("Python", row, spent, least)


def _native_results(binary: Path, repetitions: int) -> list[dict[str, Any]]:
    """What the compiled benchmark prints; it measures processor time."""
    printed = subprocess.run([binary, str(repetitions)], check=True, capture_output=True, text=True)
    return [
        _result("C++", case, case["seconds"], case["floor_seconds"])
        for case in json.loads(printed.stdout)
    ]


def _result(
    side: str, case: dict[str, Any], work: Sequence[float], floor: Sequence[float]
) -> dict[str, Any]:
    return {
        "side": side,
        **case,
        "seconds": harness.summarise(work),
        "floor_seconds": harness.summarise(floor),
        "ratio": harness.ratio_interval(work, floor),
    }


def bar_text(row: dict[str, Any]) -> str:
    """The bars of a result, and whether it meets them."""
    spent, least = row["seconds"]["median"], row["floor_seconds"]["median"]
    bars = []
    if "bar_ratio" in row:
        bars.append((f"{row['bar_ratio']:g} x", spent <= row["bar_ratio"] * least))
    if "bar_seconds" in row:
        bars.append((f"{1e6 * row['bar_seconds']:g} us", spent <= row["bar_seconds"]))
    return ", ".join(f"{bar}: {'met' if met else 'missed'}" for bar, met in bars)


def per_row_text(row: dict[str, Any]) -> str:
    """Microseconds per vocabulary row."""
    return f"{1e6 * row['seconds']['median'] / row['num_rows']:.1f}" if "num_rows" in row else ""


def show(results: Sequence[dict[str, Any]]) -> None:
    table = Table(title="medians in microseconds; ratio with its 95 % interval")
    numbers = ("time", "spread", "per row", "floor")
    for heading in ("", "case", *numbers, "ratio", "bar", "the floor is"):
        table.add_column(heading, justify="right" if heading in numbers else "left")
    for row in results:
        table.add_row(
            row["side"],
            row["name"],
            f"{1e6 * row['seconds']['median']:.1f}",
            f"{1e6 * row['seconds']['spread']:.1f}",
            per_row_text(row),
            f"{1e6 * row['floor_seconds']['median']:.1f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"]),
            bar_text(row),
            row["floor_name"],
        )
    Console(width=None if sys.stdout.isatty() else 180).print(table)
