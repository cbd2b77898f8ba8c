# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of a function that reads and writes fixed buffers, and its results on the host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

LOGGER = logging.getLogger("treespec")

# The first run compiles and picks kernels; libraries may allocate workspaces in the second.
_WARM_UP_RUNS = 2


@dataclass
class CaptureStatus:
    """Whether a model can be captured; shared by all that run it.

    Attributes
    ----------
    reason
        Why not, or None. Found out by trying.
    """

    reason: str | None = None

    def give_up(self, error: Exception) -> None:
        """Remember the reason and say it, once."""
        self.reason = str(error).partition("\n")[0]
        LOGGER.warning("rounds run without a CUDA graph, capturing one failed: %s", self.reason)


class CapturedRound:
    """Plays a round, on a GPU as one CUDA graph per key.

    Parameters
    ----------
    play
        Called with the parts of a key. Launches work on the current stream, reads nothing on the
        host, and touches the same addresses whenever the key is the same.
    paused
        Within it, `play` has no lasting effect; warming up needs that.
    device
        Where the work is. On a CPU `play` is called every time.
    status
        Shared knowledge of what cannot be captured; then, too, `play` is called every time.
    """

    def __init__(
        self,
        play: Callable[..., None],
        paused: Callable[[], AbstractContextManager[None]],
        device: torch.device,
        status: CaptureStatus,
    ) -> None:
        self._play, self._paused, self._device, self._status = play, paused, device, status
        self._graphs: dict[Hashable, Any] = {}

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    def run(self, *key: Hashable) -> None:
        """Play once; captures first when the key is new."""
        if self._device.type != "cuda":
            return self._play(*key)
        with torch.cuda.device(self._device):  # streams and captures belong to the current one
            self._run_on_gpu(key)

    def _run_on_gpu(self, key: tuple[Hashable, ...]) -> None:
        if self._status.reason is None and key not in self._graphs:
            self._capture(key)
        if key in self._graphs:
            self._graphs[key].replay()
        else:
            self._play(*key)

    def _capture(self, key: tuple[Hashable, ...]) -> None:
        """Add a graph, or give up. Errors of the warm-up are the model's own and are raised."""
        with self._paused():
            self._warm_up(key)
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self._graphs.values())).pool() if self._graphs else None
            try:
                # Threads that run other models may go on allocating.
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    self._play(*key)
            except RuntimeError as error:
                return self._status.give_up(error)
        self._graphs[key] = graph

    def _warm_up(self, key: tuple[Hashable, ...]) -> None:
        """Run beside the current stream, as captures must be prepared."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_RUNS):
                self._play(*key)
        current.wait_stream(side)


class Mailbox:
    """Brings a small tensor to the host: one copy to pinned memory, one event, one wait.

    Parameters
    ----------
    source
        Read at every `send`.
    """

    def __init__(self, source: torch.Tensor) -> None:
        self._source = source
        self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
        self._event = torch.cuda.Event() if source.is_cuda else None

    def fetch(self) -> npt.NDArray[Any]:
        """The values after all work queued so far; valid until the next call."""
        self.send()
        return self.receive()

    def send(self) -> None:
        """Queue the copy behind the work queued so far."""
        self._host.copy_(self._source, non_blocking=True)
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._source.device))

    def receive(self) -> npt.NDArray[Any]:
        """Wait for what was sent, not for what was queued since; valid until the next `send`."""
        if self._event is not None:
            self._event.synchronize()
        return np.asarray(self._host)


class Outbox:
    """Brings values of the host to a tensor: one copy from pinned memory that nobody waits for.

    Parameters
    ----------
    target
        Written by every `send`.
    """

    def __init__(self, target: torch.Tensor) -> None:
        self._target = target
        self._host = torch.zeros(target.shape, dtype=target.dtype, pin_memory=target.is_cuda)

    @property
    def values(self) -> npt.NDArray[Any]:
        """What is sent; not to be written before the device has come past the last `send`."""
        return np.asarray(self._host)

    def send(self) -> None:
        """Queue the copy behind the work queued so far."""
        self._target.copy_(self._host, non_blocking=True)
