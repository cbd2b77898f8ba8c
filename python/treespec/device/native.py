# SPDX-License-Identifier: Apache-2.0
"""The native ops, and what every call of one needs."""

from __future__ import annotations

import functools
from typing import Any

import torch

from treespec import _core

# Tests put the same functions over the host emulation in its place.
ops: Any = _core.device


def stream(tensor: torch.Tensor) -> int:
    """Torch's current stream; host tensors have none, and the ops refuse them."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def ints(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """An unwritten int32 tensor on the device of `like`."""
    return like.new_empty(shape, dtype=torch.int32)


def workspace(like: torch.Tensor, size: int) -> torch.Tensor:
    """`size` unwritten bytes on the device of `like`."""
    return like.new_empty(size, dtype=torch.uint8)


@functools.cache
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Kept for good: a captured graph may read it at any time, and copies nothing from the host."""
    return torch.tensor(values, dtype=dtype, device=device)
