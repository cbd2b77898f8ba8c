# SPDX-License-Identifier: Apache-2.0
"""Seconds of work on a GPU, captured in a graph, so that launches and Python are not timed."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

_WARM_UP_RUNS = 2  # lazy initialisation is not for a graph


def timed(work: Callable[[], Any], place: str) -> Callable[[], float]:
    """A function that does the work once and gives its seconds.

    On a GPU it replays a graph of it. Elsewhere it calls `work`: of use to try a script, not to
    measure.
    """
    return _captured(work) if place == "cuda" else _called(work)


def _captured(work: Callable[[], Any]) -> Callable[[], float]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP_RUNS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()

    def replay() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    replay.outputs = outputs  # type: ignore[attr-defined]  # alive, so that memory is not shared
    return replay


def _called(work: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        start = perf_counter()
        work()
        return perf_counter() - start

    return run
