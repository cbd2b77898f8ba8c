# SPDX-License-Identifier: Apache-2.0
"""Work in order on a device: what a TensorRT engine needs besides memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from treespec.export.to_tensorrt import Gpu, current_gpu
from treespec.targets.base import Array
from treespec.targets.memory import DeviceMemory, Memory


class Queue(Protocol):
    """A stream of its own: never the default one, which TensorRT would wait for.

    Attributes
    ----------
    memory, gpu
        Where the work is.
    handle
        The stream as a number.
    """

    @property
    def memory(self) -> Memory: ...
    @property
    def gpu(self) -> Gpu: ...
    @property
    def handle(self) -> int: ...

    def current(self) -> AbstractContextManager[None]:
        """Within it, the device is the one that TensorRT works on."""
        ...

    def begin(self) -> None:
        """What is queued from here on comes after all that others have queued on the device."""
        ...

    def upload(self, source: Array, goal: Array) -> None:
        """Copy an array of the host or the device into device memory of the same shape."""
        ...

    def download(self, source: Array) -> Array:
        """A host array of the same content, which is there after `finish`."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues, without running it; the result queues it all at once.

        Raises
        ------
        RuntimeError
            If it cannot be recorded.
        """
        ...

    def finish(self) -> None:
        """Wait for all that is queued."""
        ...


class CudaQueue:
    """A CUDA stream of torch.

    Parameters
    ----------
    device
        ``"auto"``, ``"cuda"``, ``"cuda:1"``, or a torch device.

    Raises
    ------
    NotImplementedError
        If there is no GPU.
    ValueError
        For a device of another kind.
    """

    def __init__(self, device: Any = "auto") -> None:
        import torch

        asked = torch.device("cuda" if str(device) == "auto" else device)
        if asked.type != "cuda":
            raise ValueError(f"load: device must be 'auto' or 'cuda' with TensorRT, got {device}")
        self.gpu = current_gpu(asked)
        number = torch.cuda.current_device() if asked.index is None else asked.index
        self._torch = torch
        self.memory = DeviceMemory(f"cuda:{number}")
        self._stream = torch.cuda.Stream(self.memory.device)

    @property
    def handle(self) -> int:
        """As `Queue`."""
        handle: int = self._stream.cuda_stream
        return handle

    def current(self) -> AbstractContextManager[None]:
        """As `Queue`."""
        device: AbstractContextManager[None] = self._torch.cuda.device(self.memory.device)
        return device

    def begin(self) -> None:
        """As `Queue`: torch's own work is on its current stream."""
        self._stream.wait_stream(self._torch.cuda.current_stream(self.memory.device))

    def upload(self, source: Array, goal: Array) -> None:
        """As `Queue`; host arrays go through pinned memory."""
        torch = self._torch
        if not isinstance(source, torch.Tensor):
            pinned = torch.empty(goal.shape, dtype=goal.dtype, pin_memory=True)
            source = pinned.copy_(torch.from_numpy(source))
        with torch.cuda.stream(self._stream):
            goal.copy_(source, non_blocking=True)

    def download(self, source: Array) -> Array:
        """As `Queue`, in pinned memory."""
        goal = self._torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        with self._torch.cuda.stream(self._stream):
            return goal.copy_(source, non_blocking=True)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """As `Queue`; other threads may go on using the GPU meanwhile."""
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()

        def replay() -> None:
            with self._torch.cuda.stream(self._stream):
                graph.replay()

        return replay

    def finish(self) -> None:
        """As `Queue`."""
        self._stream.synchronize()
