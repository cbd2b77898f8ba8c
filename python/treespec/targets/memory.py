# SPDX-License-Identifier: Apache-2.0
"""Where the buffers of an exported model are: host memory as NumPy, device memory as torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from treespec import _core
from treespec.targets.base import Array


@dataclass(frozen=True)
class Device:
    """A device by type and number, for processes without torch."""

    type: str
    index: int = 0


class Memory(Protocol):
    """Makes buffers and moves their rows; slices are read and written as NumPy and torch do.

    Attributes
    ----------
    device
        With `type` and `index`.
    """

    @property
    def device(self) -> Any: ...

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        """A zeroed, contiguous array.

        Zeros, because a masked row still enters the sums, and 0 x NaN is NaN.
        """
        ...

    def pointer(self, array: Array) -> int:
        """The address of its first element."""
        ...

    def copy(self, array: Array) -> Array:
        """A contiguous array of its own."""
        ...

    def take(self, array: Array, dtype: str) -> Array:
        """A copy here and of this dtype, of a NumPy array or a torch tensor from anywhere."""
        ...

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        """In NumPy, which has no bfloat16: that as float32. The same array where it is one."""
        ...

    def commit(self, arrays: Sequence[Array], base: int, nodes: npt.NDArray[np.int32]) -> None:
        """Move rows ``base + nodes[d]`` to ``base + d`` of arrays ``[heads, rows, width]``."""
        ...

    def wait(self) -> None:
        """Until all work on buffers is done that another library cannot see."""
        ...


class HostMemory:
    """NumPy arrays."""

    device = Device("cpu")

    def zeros(self, shape: Sequence[int], dtype: str) -> npt.NDArray[Any]:
        """As `Memory`."""
        return np.zeros(tuple(shape), dtype)

    def pointer(self, array: npt.NDArray[Any]) -> int:
        """As `Memory`."""
        address: int = array.__array_interface__["data"][0]  # `ctypes.data` takes ten times as long
        return address

    def copy(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """As `Memory`."""
        return array.copy()

    def take(self, array: Array, dtype: str) -> npt.NDArray[Any]:
        """As `Memory`."""
        if not isinstance(array, np.ndarray):
            array = array.detach().float().cpu().numpy()
        return np.array(array, dtype)

    def to_host(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """As `Memory`."""
        return array

    def commit(
        self, arrays: Sequence[npt.NDArray[Any]], base: int, nodes: npt.NDArray[np.int32]
    ) -> None:
        """As `Memory`."""
        _core.KvBuffers(arrays).commit(base, nodes)

    def wait(self) -> None:
        """Nothing runs behind our back."""


class DeviceMemory:
    """Torch tensors.

    Parameters
    ----------
    device
        What `torch.device` takes.

    Raises
    ------
    ValueError
        If torch cannot use it.
    """

    def __init__(self, device: Any) -> None:
        import torch

        self._torch = torch
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"load: device must be one that PyTorch {torch.__version__} sees, got "
                f"{str(self.device)!r}, and it sees no GPU"
            )

    def zeros(self, shape: Sequence[int], dtype: str) -> Any:
        """As `Memory`."""
        return self._torch.zeros(
            tuple(shape), dtype=getattr(self._torch, dtype), device=self.device
        )

    def pointer(self, array: Any) -> int:
        """As `Memory`."""
        address: int = array.data_ptr()
        return address

    def copy(self, array: Any) -> Any:
        """As `Memory`."""
        return array.clone(memory_format=self._torch.contiguous_format)

    def take(self, array: Array, dtype: str) -> Any:
        """As `Memory`."""
        here = self._torch.as_tensor(array).to(self.device, getattr(self._torch, dtype))
        return self.copy(here)

    def to_host(self, array: Any) -> npt.NDArray[Any]:
        """As `Memory`."""
        if array.dtype == self._torch.bfloat16:
            array = array.float()
        host: npt.NDArray[Any] = array.cpu().numpy()
        return host

    def commit(self, arrays: Sequence[Any], base: int, nodes: npt.NDArray[np.int32]) -> None:
        """As `Memory`."""
        source = self._torch.from_numpy(base + nodes.astype(np.int64)).to(self.device)
        for array in arrays:
            rows = array.index_select(-2, source)  # copies: rows may overlap
            array[..., base : base + len(nodes), :] = rows

    def wait(self) -> None:
        """Other libraries have streams of their own."""
        if self.device.type == "cuda":
            self._torch.cuda.current_stream(self.device).synchronize()
