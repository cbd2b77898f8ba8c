# SPDX-License-Identifier: Apache-2.0
"""The custom ops on CUDA tensors: outputs from torch's allocator, work by the native device code.

An extension that was built with CUDA has a submodule ``_core.device`` with one function per op:
``name(stream, *inputs, *outputs)``, in the order of the op's arguments and results. It launches on
the stream, allocates nothing that it does not free on it, and never waits. Torch's allocator is
aware of captures, so outputs and workspaces of a captured round live as long as its graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from treespec import _core
from treespec.static import ops


def require_device_functions() -> Any:
    """The native module of device functions.

    Raises
    ------
    NotImplementedError
        If the extension was built without CUDA.
    """
    device = getattr(_core, "device", None)
    if device is None:
        raise NotImplementedError(
            "treespec: CUDA tensors need a build with CUDA (TREESPEC_CUDA=ON), "
            "this extension has the CPU core only"
        )
    return device


def run_on_device(
    name: str, inputs: Sequence[Any], empty_outputs: Callable[..., Sequence[torch.Tensor]]
) -> Any:
    """Call a device function on the current stream of the inputs' device.

    Parameters
    ----------
    name
        Of the op, without its namespace.
    inputs
        Its arguments; all tensors are on one device.
    empty_outputs
        Makes the results from the inputs.
    """
    function = getattr(require_device_functions(), name)
    device = next(value.device for value in inputs if isinstance(value, torch.Tensor))
    outputs = empty_outputs(*inputs)
    with torch.cuda.device(device):
        function(torch.cuda.current_stream(device).cuda_stream, *inputs, *outputs)
    return tuple(outputs) or None


def _register(op: Any, empty_outputs: Callable[..., Sequence[torch.Tensor]]) -> None:
    name = op._name.partition("::")[2]

    @op.register_kernel("cuda")
    def kernel(*inputs: Any) -> Any:
        return run_on_device(name, inputs, empty_outputs)


_register(ops.rank_candidates, ops.empty_candidates)
_register(ops.build_trees, ops.empty_trees)
_register(ops.mask_trees, ops.empty_mask)
_register(ops.verify_trees, ops.empty_verdicts)
_register(ops.commit_kv, lambda *inputs: ())
