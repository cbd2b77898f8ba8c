# SPDX-License-Identifier: Apache-2.0
"""Where device ops run in tests: on a GPU, or on the host emulation that the C++ tests build.

TREESPEC_EMULATION is a build folder with the module `_core_emulated` (TREESPEC_TESTS and
TREESPEC_PYTHON on).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import treespec
from treespec import _core, placement
from treespec.device import native

# In which the emulation resumes threads: a shuffled one. The tests in C++ take several.
ORDERS = (3,)
BACKENDS = [
    *(pytest.param(order, id=f"emulation-{order}") for order in ORDERS),
    pytest.param("cuda", id="gpu", marks=pytest.mark.gpu),
]


def emulated_ops():
    """The module `_core_emulated`; skips where none was built, fails where one was promised."""
    folder = os.environ.get("TREESPEC_EMULATION")
    if folder is None:
        pytest.skip("TREESPEC_EMULATION is not set: no build with the emulation")
    [path] = Path(folder).rglob("_core_emulated*.so")
    spec = importlib.util.spec_from_file_location("_core_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def use_backend(backend, monkeypatch):
    """Make `treespec.device` run there; returns the torch device of its arrays."""
    if backend == "cuda":
        if not (treespec.cuda_available() and torch.cuda.is_available()):
            pytest.skip("needs a CUDA GPU, treespec with CUDA and torch with CUDA")
        return "cuda"
    ops = emulated_ops()
    ops.set_order(backend)
    monkeypatch.setattr(native, "ops", ops)
    return "cpu"


class There(NamedTuple):
    """A device, and what was copied off it as a whole."""

    device: str
    copied: list[Any]

    def __call__(self, array: Any) -> torch.Tensor:
        """The array on the device."""
        return torch.as_tensor(array).to(self.device)


def arrays_there(backend, monkeypatch):
    """A backend for the functions of treespec itself, which ask arrays where they are.

    On the emulation torch tensors pass for arrays on a GPU (see `gpu_of_tensor`), and NumPy ones
    are on the host.
    """
    place = use_backend(backend, monkeypatch)
    if place == "cpu":
        monkeypatch.setattr(placement, "gpu_of", gpu_of_tensor)
        monkeypatch.setattr(_core, "cuda_built", lambda: True)
    copied: list[Any] = []
    to_host = placement.in_host_memory

    def in_host_memory(array):
        if placement.gpu_of(array) is not None:
            copied.append(array)
        return to_host(array)

    monkeypatch.setattr(placement, "in_host_memory", in_host_memory)
    return There(place, copied)


def gpu_of_tensor(array):
    """In place of `placement.gpu_of`: of tensors, their attribute `gpu` if they have one, or 0."""
    return getattr(array, "gpu", 0) if isinstance(array, torch.Tensor) else None
