# SPDX-License-Identifier: Apache-2.0
"""The CUDA stream that engines run on, against a double of torch.cuda: which calls, on what."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from treespec.targets import tensorrt_queue
from treespec.targets.tensorrt_queue import CudaQueue


class Stream:
    cuda_stream = 99

    def __init__(self, cuda, device=None):
        self._cuda, self.device = cuda, device

    def wait_stream(self, other):
        self._cuda.log.append(("wait for", other))

    def synchronize(self):
        self._cuda.log.append(("finish", self))


class Cuda:
    """Logs what is done, with the stream it is done on."""

    def __init__(self, monkeypatch):
        self.log: list = []
        self.on: list = []
        self.default = Stream(self)
        real = torch.empty

        def empty(shape, *, pin_memory=False, **options):
            if pin_memory:
                self.log.append(("pinned", tuple(shape)))
            return real(shape, **options)

        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(
            tensorrt_queue, "DeviceMemory", lambda name: SimpleNamespace(device=torch.device(name))
        )
        replaced = {
            "is_available": lambda: True,
            "current_device": lambda: 1,
            "get_device_capability": lambda device: (9, 0),
            "get_device_name": lambda device: f"GPU of {device}",
            "Stream": lambda device: Stream(self, device),
            "current_stream": lambda device: self.default,
            "stream": self.stream,
            "device": lambda device: device,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.log.append("replay")),
            "graph": self.graph,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def stream(self, stream):
        self.on.append(stream)
        self.log.append(("on", stream))
        yield
        self.on.pop()

    @contextmanager
    def graph(self, graph, *, stream, capture_error_mode):
        self.log.append(("capture", stream, capture_error_mode))
        yield


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


@pytest.mark.parametrize(
    "device, number", [("auto", 1), ("cuda", 1), ("cuda:0", 0), (torch.device("cuda", 3), 3)]
)
def test_a_queue_is_on_one_gpu_with_a_stream_of_its_own(cuda, device, number):
    queue = CudaQueue(device)
    assert str(queue.memory.device) == f"cuda:{number}"
    assert queue._stream.device == queue.memory.device
    assert queue.handle == 99 != 0
    assert queue.gpu.compute_capability == "9.0"
    assert queue.current() == queue.memory.device


def test_work_begins_after_what_torch_has_queued(cuda):
    CudaQueue().begin()
    assert cuda.log == [("wait for", cuda.default)]


def test_host_arrays_go_up_through_pinned_memory_on_the_stream(cuda):
    queue, goal = CudaQueue(), torch.zeros(2, 3)
    queue.upload(np.arange(6).reshape(2, 3), goal)
    assert goal.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert cuda.log == [("pinned", (2, 3)), ("on", queue._stream)]
    cuda.log.clear()
    queue.upload(torch.ones(2, 3), goal)
    assert goal.sum() == 6 and cuda.log == [("on", queue._stream)]


def test_results_come_down_into_pinned_memory_of_their_own(cuda):
    queue, source = CudaQueue(), torch.arange(4, dtype=torch.bfloat16)
    found = queue.download(source)
    source.zero_()
    assert found.tolist() == [0, 1, 2, 3] and found.dtype == torch.bfloat16
    assert cuda.log == [("pinned", (4,)), ("on", queue._stream)]


def test_a_capture_leaves_other_threads_alone_and_is_replayed_on_the_stream(cuda):
    queue = CudaQueue()
    replay = queue.capture(lambda: cuda.log.append("work"))
    assert cuda.log == [("capture", queue._stream, "thread_local"), "work"]
    cuda.log.clear()
    replay()
    replay()
    assert cuda.log == [("on", queue._stream), "replay"] * 2


def test_finishing_waits_for_the_stream(cuda):
    queue = CudaQueue()
    queue.finish()
    assert cuda.log == [("finish", queue._stream)]
