# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: timing and intervals (of the package), options, JSON."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from treespec.benchmarking.machine import machine
from treespec.benchmarking.timing import (
    Samples,
    collected,
    interleaved,
    ratio_interval,
    summarise,
)

__all__ = [
    "Samples",
    "collected",
    "interleaved",
    "machine",
    "parser",
    "ratio_interval",
    "summarise",
    "write_report",
]


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    out.add_argument("--check", action="store_true", help="compare with the oracle before timing")
    out.add_argument("--quick", action="store_true", help="few repetitions, small sizes")
    out.add_argument("--repetitions", type=int, metavar="N")
    out.add_argument("--threads", type=int, default=1, metavar="N")
    out.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a shared machine"
    )
    return out


def write_report(
    path: Path | None, benchmark: str, command: str, options: argparse.Namespace, results: Any
) -> None:
    """Write command, machine, date and results, if a file was asked for."""
    if path is None:
        return
    report = {
        "benchmark": benchmark,
        "command": command,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(options.threads),
        "results": results,
    }
    path.write_text(json.dumps(report, indent=1, default=_plain) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Samples):
        return {clock: [round(s, 7) for s in times] for clock, times in asdict(value).items()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot write {type(value).__name__}")
