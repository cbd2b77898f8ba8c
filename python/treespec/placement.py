# SPDX-License-Identifier: Apache-2.0
"""Where arrays are: in host memory, or in that of a GPU. Torch is imported for the latter alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from treespec import _core

if TYPE_CHECKING:
    import torch

_CUDA = 2  # kDLCUDA, a device type of DLPack


def gpu_of(array: Any) -> int | None:
    """The number of the GPU in whose memory an array is; None: in host memory, or no array."""
    if isinstance(array, np.ndarray):
        return None
    if hasattr(array, "is_cuda"):  # of torch, whose other devices DLPack does not know
        return int(array.device.index) if array.is_cuda else None
    if not hasattr(array, "__dlpack_device__"):
        return None
    kind, index = array.__dlpack_device__()
    return int(index) if kind == _CUDA else None


def as_tensor(array: Any) -> torch.Tensor:
    """An array in CUDA memory as torch has it: the same memory, without its gradient."""
    import torch

    return (array if isinstance(array, torch.Tensor) else torch.from_dlpack(array)).detach()


def in_host_memory(array: Any) -> Any:
    """The array itself, or a copy of one in CUDA memory; what was queued before is waited for."""
    return array if gpu_of(array) is None else as_tensor(array).cpu()


def require_one_memory(who: str, arrays: Mapping[str, Any]) -> int | None:
    """The GPU in whose memory all of the named arrays are, or None; all but the first may be None.

    Raises
    ------
    ValueError
        If they are not in the same memory; names the first and one that is elsewhere.
    """
    first = next(iter(arrays))
    gpu = gpu_of(arrays[first])
    for name, array in arrays.items():
        if array is not None and gpu_of(array) != gpu:
            raise ValueError(
                f"{who}: {name} must be where {first} is, in {_memory(gpu)}, got one in "
                f"{_memory(gpu_of(array))}"
            )
    return gpu


def require_cuda_build(who: str, name: str) -> None:
    """Raise NotImplementedError where nothing but CUDA code can do it, and there is none."""
    if not _core.cuda_built():
        raise NotImplementedError(
            f"{who}: {name} in CUDA memory needs treespec built with CUDA, which this is not; "
            "install it with a CUDA compiler on PATH (TREESPEC_CUDA=1), or copy to host memory"
        )


def _memory(gpu: int | None) -> str:
    return "host memory" if gpu is None else f"CUDA memory of GPU {gpu}"
