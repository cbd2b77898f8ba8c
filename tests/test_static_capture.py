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
from fake_cuda import FakeCuda

from treespec.static.capture import CapturedRound, CaptureStatus, Mailbox, Outbox

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class Pause:
    """Says whether it is on, and whether warm-up rounds, and no others, were played in it."""

    def __init__(self) -> None:
        self.on = False
        self.played: list[bool] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.on = True
        yield
        self.on = False

    def note(self, *key: Any) -> None:
        self.played.append(self.on)


PAUSE = Pause()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    PAUSE.played.clear()
    return FakeCuda(monkeypatch, PAUSE.note)


def make_round(cuda: FakeCuda, device: torch.device = CUDA, status: Any = None) -> CapturedRound:
    return CapturedRound(cuda.play, PAUSE, device, status or CaptureStatus())


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
    assert captured.num_graphs == 1
    assert PAUSE.played == [True, True, False, False, False]


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
    assert len(cuda.graphs) == 1 and captured.num_graphs == 0


def test_errors_of_the_round_itself_are_not_swallowed(cuda: FakeCuda) -> None:
    def play(*key: Any) -> None:
        raise RuntimeError("out of memory")

    captured = CapturedRound(play, PAUSE, CUDA, CaptureStatus())
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


def test_a_mailbox_brings_what_was_there_when_it_was_sent() -> None:
    source = torch.ones(2, dtype=torch.int32)
    mailbox = Mailbox(source)
    mailbox.send()
    source.fill_(7)
    assert mailbox.receive().tolist() == [1, 1]


def test_an_outbox_writes_when_it_is_sent() -> None:
    target = torch.ones(2, 2, dtype=torch.int32)
    outbox = Outbox(target)
    outbox.values[1] = 5
    assert target.tolist() == [[1, 1], [1, 1]]
    outbox.send()
    assert target.tolist() == [[0, 0], [5, 5]]
