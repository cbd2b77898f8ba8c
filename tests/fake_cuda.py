# SPDX-License-Identifier: Apache-2.0
"""A double of the part of torch.cuda that captures need, to see when rounds are captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch


class FakeGraph:
    """Remembers with which keys `play` was called during its capture, and plays them again."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.keys: list[Any] = []
        self.from_pool: Any = None

    def replay(self) -> None:
        for key in self.keys:
            self.cuda.log.append(("replay", *key))
            self.cuda.work(*key)

    def pool(self) -> str:
        return "the pool"


class FakeCuda:
    """Patches torch.cuda; `play` is what a `CapturedRound` is to play.

    Attributes
    ----------
    log
        Keys with what was done with them: "warm up", "capture", "replay" or "play".
    work
        Done when a key is played for real, on no GPU; not during a capture.
    error
        Raised during captures.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, work: Callable[..., None]) -> None:
        self.log: list[Any] = []
        self.graphs: list[FakeGraph] = []
        self.work = work
        self.error: Exception | None = None
        self._capturing: FakeGraph | None = None
        self._beside = False
        for name in ("graph", "stream", "current_stream", "Stream", "CUDAGraph", "device"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def device(self, device: torch.device) -> Any:
        return nullcontext()

    def CUDAGraph(self) -> FakeGraph:
        self.graphs.append(FakeGraph(self))
        return self.graphs[-1]

    @contextmanager
    def graph(self, graph: FakeGraph, pool: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        graph.from_pool = pool
        self._capturing = graph
        try:
            yield
        finally:
            self._capturing = None

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self._beside = True
        yield
        self._beside = False

    def Stream(self) -> FakeCuda:
        return self

    def current_stream(self, device: Any = None) -> FakeCuda:
        return self

    cuda_stream = 77

    def wait_stream(self, stream: Any) -> None:
        self.log.append("wait")

    def play(self, *key: Any) -> None:
        if self._capturing is not None:
            if self.error is not None:
                raise self.error
            self._capturing.keys.append(key)
            self.log.append(("capture", *key))
        else:
            self.log.append(("warm up" if self._beside else "play", *key))
            self.work(*key)
