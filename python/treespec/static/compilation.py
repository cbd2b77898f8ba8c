# SPDX-License-Identifier: Apache-2.0
"""What torch.compile compiles for static forwards: one program for every shape there is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import PreTrainedModel

from treespec.targets.hf_model import decoder_blocks

# Every width of a draft has a shape of its own, and so has every model; dynamo would stop at 8.
_MAX_SHAPES = 256


def many_shapes() -> AbstractContextManager[Any]:
    """Within it, a function may be compiled for all shapes of a round."""
    patch: AbstractContextManager[Any] = torch._dynamo.config.patch(recompile_limit=_MAX_SHAPES)
    return patch


def compile_blocks(view: PreTrainedModel) -> None:
    """Compile the forwards of a model view's decoder blocks, up to and from their attention.

    Attention is not traced: it has kernels of its own, and finds its mask in the context of the
    call. In a captured round the seams cost nothing.
    """
    for block in decoder_blocks(view):
        block.forward = torch.compile(block.forward, dynamic=False)
