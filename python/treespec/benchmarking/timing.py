# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing, and intervals of ratios."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
                taken.measure(lambda work=work: [work() for _ in range(calls)])  # type: ignore[misc]
            taken.wall[-1] /= calls
            taken.cpu[-1] /= calls
    return samples


@contextmanager
def collected() -> Iterator[None]:
    """Keep the garbage collector out of a timed block."""
    gc.collect(1)  # what was made since; a full collection takes 0.2 s behind torch's imports
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
