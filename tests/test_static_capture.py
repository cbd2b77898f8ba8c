# SPDX-License-Identifier: Apache-2.0
"""When rounds are captured, replayed, captured again, and given up, with doubles for torch.cuda."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from treespec.static.capture import CapturedRound, CaptureStatus, Mailbox

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class FakeGraph:
    """Remembers what was played during its capture, and plays that again."""

    def __init__(self, log: list[Any]) -> None:
        self.log, self.captured = log, []
        self.from_pool: Any = None

    def replay(self) -> None:
        self.log.extend(("replay", *key) for key in self.captured)

    def pool(self) -> str:
        return "the pool"


class FakeCuda:
    """The part of torch.cuda that captures need."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[Any] = []
        self.graphs: list[FakeGraph] = []
        self.capturing: FakeGraph | None = None
        self.paused = False
        self.error: Exception | None = None
        self.side = False
        for name in ("graph", "stream", "current_stream", "Stream", "CUDAGraph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def CUDAGraph(self) -> FakeGraph:
        self.graphs.append(FakeGraph(self.log))
        return self.graphs[-1]

    @contextmanager
    def graph(self, graph: FakeGraph, pool: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        graph.from_pool = pool
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.side = True
        yield
        self.side = False

    def Stream(self) -> FakeCuda:
        return self

    current_stream = Stream

    def wait_stream(self, stream: Any) -> None:
        self.log.append("wait")

    @contextmanager
    def pause(self) -> Iterator[None]:
        self.paused = True
        yield
        self.paused = False

    def play(self, *key: Any) -> None:
        if self.capturing is not None:
            if self.error is not None:
                raise self.error
            self.capturing.captured.append(key)
            self.log.append(("capture", *key))
        else:
            kind = "warm up" if self.side else "play"
            self.log.append((kind, *key))
            assert self.paused == self.side


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def make_round(cuda: FakeCuda, device: torch.device = CUDA, status: Any = None) -> CapturedRound:
    return CapturedRound(cuda.play, cuda.pause, device, status or CaptureStatus())


WARM_UP = [("warm up", "greedy", 256)] * 2


def test_a_key_is_captured_once_and_replayed_ever_after(cuda: FakeCuda) -> None:
    captured = make_round(cuda)
    for _ in range(3):
        captured.run("greedy", 256)
    assert cuda.log == [
        "wait",
        *WARM_UP,
        "wait",
        ("capture", "greedy", 256),
        *[("replay", "greedy", 256)] * 3,
    ]
    assert captured.num_graphs == 1 and not cuda.paused


def test_a_new_envelope_or_verifier_is_a_new_graph_in_the_same_pool(cuda: FakeCuda) -> None:
    captured = make_round(cuda)
    for key in (("greedy", 256), ("greedy", 512), ("greedy", 256), ("target_only", 512)):
        captured.run(*key)
    events = [entry for entry in cuda.log if entry[0] in ("capture", "replay")]
    assert events == [
        ("capture", "greedy", 256),
        ("replay", "greedy", 256),
        ("capture", "greedy", 512),
        ("replay", "greedy", 512),
        ("replay", "greedy", 256),
        ("capture", "target_only", 512),
        ("replay", "target_only", 512),
    ]
    assert captured.num_graphs == 3
    assert [graph.from_pool for graph in cuda.graphs] == [None, "the pool", "the pool"]


def test_what_cannot_be_captured_is_played_and_said_once(cuda: FakeCuda, caplog: Any) -> None:
    status = CaptureStatus()
    captured, other = make_round(cuda, status=status), make_round(cuda, status=status)
    cuda.error = RuntimeError("operation not permitted when stream is capturing\nstack ...")
    with caplog.at_level(logging.WARNING, "treespec"):
        captured.run("greedy", 256)
        captured.run("greedy", 256)
        captured.run("greedy", 512)
        other.run("greedy", 256)
    played = [entry for entry in cuda.log if entry != "wait" and entry[0] != "warm up"]
    assert played == [("play", "greedy", n) for n in (256, 256, 512, 256)]
    assert caplog.messages == [
        "rounds run without a CUDA graph, capturing one failed: "
        "operation not permitted when stream is capturing"
    ]
    assert len(cuda.graphs) == 1 and captured.num_graphs == 0 and not cuda.paused


def test_errors_of_the_round_itself_are_not_swallowed(cuda: FakeCuda) -> None:
    def play(*key: Any) -> None:
        raise RuntimeError("out of memory")

    captured = CapturedRound(play, cuda.pause, CUDA, CaptureStatus())
    with pytest.raises(RuntimeError, match="out of memory"):
        captured.run("greedy", 256)


def test_on_a_cpu_rounds_are_played(cuda: FakeCuda) -> None:
    captured = make_round(cuda, CPU)
    captured.run("greedy", 256)
    captured.run("greedy", 256)
    assert cuda.log == [("play", "greedy", 256)] * 2 and not cuda.graphs


def test_a_mailbox_brings_the_latest_values() -> None:
    source = torch.zeros(2, 3, dtype=torch.int32)
    mailbox = Mailbox(source)
    assert not mailbox.fetch().any()
    source.fill_(7)
    assert np.array_equal(mailbox.fetch(), np.full((2, 3), 7))
