# SPDX-License-Identifier: Apache-2.0
"""From arrays of the host, and of several calls, to those of one launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from treespec.device.trees import MOST_NODES


def stacked(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """``[B, M, V]`` from ``[n, V]`` each, M at least any n; what lies between means nothing.

    The same memory if the rows are evenly spaced parts of one tensor, as those of a batch may be.
    """
    spacing = _spacing(rows)
    if spacing is None:
        return copied(rows, max(map(len, rows)))
    first = rows[0]
    shape = (len(rows), spacing, first.shape[1])
    return first.as_strided(shape, (spacing * first.stride(0), *first.stride()))


def copied(rows: Sequence[torch.Tensor], most: int) -> torch.Tensor:
    """``[B, most, V]`` from ``[n, V]`` each; what lies between is unwritten."""
    out = rows[0].new_empty(len(rows), most, rows[0].shape[1])
    for to, own in zip(out, rows, strict=True):
        to[: len(own)] = own
    return out


def _spacing(rows: Sequence[torch.Tensor]) -> int | None:
    """Rows from the first of a part to the first of the next, if that is the same everywhere."""
    first = rows[0]
    if len(rows) == 1:
        return len(first)
    step, row = rows[1].storage_offset() - first.storage_offset(), first.stride(0)
    spacing, rest = divmod(step, row) if row > 0 else (0, 0)
    end = first.storage_offset() + len(rows) * step
    fits = (
        rest == 0
        and max(map(len, rows)) <= spacing <= MOST_NODES
        and end * first.element_size() <= first.untyped_storage().nbytes()
    )
    even = fits and all(
        own.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and own.storage_offset() == first.storage_offset() + i * step
        and own.stride() == first.stride()
        for i, own in enumerate(rows)
    )
    return spacing if even else None


def moved(given: Any, device: torch.device) -> Any:
    """Nested tuples with tensors of the host replaced by copies on the device; see `to_device`."""
    return _replaced(given, iter(to_device(list(_host_tensors(given)), device)))


def _host_tensors(given: Any) -> Iterator[torch.Tensor]:
    if isinstance(given, tuple):
        for item in given:
            yield from _host_tensors(item)
    elif _is_on_host(given):
        yield given


def _replaced(given: Any, copies: Iterator[torch.Tensor]) -> Any:
    if isinstance(given, tuple):
        items = [_replaced(item, copies) for item in given]
        return type(given)(*items)
    return next(copies) if _is_on_host(given) else given


def _is_on_host(given: Any) -> bool:
    return isinstance(given, torch.Tensor) and given.device.type == "cpu"


def to_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copies of host tensors, by one transfer that nobody waits for."""
    room = [-(-t.nbytes // 16) * 16 for t in tensors]  # where any type is aligned
    packed = torch.empty(sum(room), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, t in zip(packed.split(room), tensors, strict=True):
        part[: t.nbytes] = t.new_empty(t.numel()).copy_(t.flatten()).view(torch.uint8)
    parts = packed.to(device, non_blocking=True).split(room)
    return [
        part[: t.nbytes].view(t.dtype).view(t.shape) for part, t in zip(parts, tensors, strict=True)
    ]
