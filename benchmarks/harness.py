# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: interleaved timing, intervals of ratios, the machine, JSON."""

from __future__ import annotations

import argparse
import gc
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np


@dataclass
class Samples:
    """Repetitions of one piece of work, in seconds.

    Attributes
    ----------
    wall, cpu
        Elapsed and process time. On a shared machine the second is the steadier one.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], Any]) -> Any:
        """Run `work` once, keep its times, return its result."""
        wall, cpu = perf_counter(), process_time()
        result = work()
        self.cpu.append(process_time() - cpu)
        self.wall.append(perf_counter() - wall)
        return result

    def summary(self, clock: str = "wall") -> dict[str, float]:
        """Median, minimum and the distance between the quartiles."""
        return summarise(getattr(self, clock))


def summarise(seconds: Sequence[float]) -> dict[str, float]:
    """Median, minimum and the distance between the quartiles of some samples."""
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "min": min(seconds), "spread": high - low}


def interleaved(
    works: Mapping[str, Callable[[], Any]], repetitions: int, warm_up: int = 1, calls: int = 1
) -> dict[str, Samples]:
    """Time every piece of work in turn (A B C A B C), so that drift hits all of them alike.

    Parameters
    ----------
    calls
        Calls per sample, for work that is too short to be timed alone; samples are per call.
    """
    samples = {name: Samples() for name in works}
    for repetition in range(warm_up + repetitions):
        for name, work in works.items():
            taken = Samples() if repetition < warm_up else samples[name]
            with collected():
                taken.measure(lambda work=work: [work() for _ in range(calls)])
            taken.wall[-1] /= calls
            taken.cpu[-1] /= calls
    return samples


@contextmanager
def collected() -> Iterator[None]:
    """Keep the garbage collector out of a timed block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of two sums of paired samples, with the 95 % interval of a paired bootstrap."""
    pairs = np.array([numerator, denominator], dtype=np.float64)
    picked = np.random.default_rng(seed).integers(0, pairs.shape[1], (draws, pairs.shape[1]))
    sums = pairs[:, picked].sum(axis=-1)
    low, high = np.quantile(sums[0] / sums[1], [0.025, 0.975]).tolist()
    return float(pairs[0].sum() / pairs[1].sum()), low, high


def machine(threads: int) -> dict[str, Any]:
    """The machine and the software in general words."""
    return {
        "processor": _cpu_model(),
        "cores": _cores(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("treespec", "numpy", "torch", "transformers")},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _cores() -> int:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return sum(line.startswith("processor") for line in text.splitlines())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


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
