# SPDX-License-Identifier: Apache-2.0
"""The custom ops on CUDA tensors: `treespec.device` under their signatures.

Outputs and workspaces are torch's, whose allocator is aware of captures, so that those of a
captured round live as long as its graph. Nothing waits.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from treespec import _core, device
from treespec.static import ops


def require_cuda() -> None:
    """Raise NotImplementedError if the extension was built without CUDA."""
    if not _core.cuda_built():
        raise NotImplementedError(
            "treespec: CUDA tensors need a build with CUDA (TREESPEC_CUDA=ON), "
            "this extension has the CPU core only"
        )


def rank_candidates(
    logits: torch.Tensor, vocab_size: int, width: int, temperature: float, status: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ops.rank_candidates`."""
    columns = min(vocab_size, logits.shape[2])
    lists = device.rank_candidates(logits[..., :columns], width, temperature, status=status)
    return lists.token, lists.logprob


def build_trees(
    builder: str,
    options: str,
    node_budget: int,
    token: torch.Tensor,
    logprob: torch.Tensor,
    next: torch.Tensor,
    root: torch.Tensor,
    status: torch.Tensor,
) -> tuple[Any, ...]:
    """`ops.build_trees`."""
    lists = device.CandidateLists(token, logprob, next)
    named = json.loads(options)
    return tuple(
        device.build_tree(builder, lists, node_budget, root_token=root, status=status, **named)
    )


def mask_trees(
    num_nodes: torch.Tensor,
    parent: torch.Tensor,
    depth: torch.Tensor,
    prefix_length: torch.Tensor,
    status: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ops.mask_trees`."""
    trees = device.Trees(num_nodes, None, parent, depth, None)
    layout = device.tree_layout(trees, prefix_length, status=status)
    return layout.ancestor_bits, layout.position


def verify_trees(
    verifier: str,
    max_depth: int,
    logits: torch.Tensor,
    num_nodes: torch.Tensor,
    token: torch.Tensor,
    parent: torch.Tensor,
    depth: torch.Tensor,
    draw_offset: torch.Tensor,
    draw: torch.Tensor,
    history: torch.Tensor,
    prefix_length: torch.Tensor,
    prompt_length: torch.Tensor,
    params: torch.Tensor,
    seed: torch.Tensor,
    sequence_id: torch.Tensor,
    status: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`ops.verify_trees`."""
    temperature, top_k, top_p, min_p = params[:, :4].unbind(1)
    changes = device.ScoreChanges(
        params[:, 4:].contiguous(), history, prefix_length + 1, prompt_length
    )
    verdicts = device.verify(
        device.Trees(num_nodes, token, parent, depth, None, draw_offset, draw),
        logits,
        verifier,
        max_depth=max_depth,
        sampling=device.sampling_words(temperature, top_k, top_p, min_p),
        changes=changes,
        seed=seed,
        sequence_id=sequence_id.int(),
        position=prefix_length,
        status=status,
    )
    return tuple(verdicts)


def commit_kv(
    buffers: Sequence[torch.Tensor],
    prefix_length: torch.Tensor,
    path: torch.Tensor,
    count: torch.Tensor,
    status: torch.Tensor,
) -> None:
    """`ops.commit_kv`."""
    device.commit_kv(device.KvCache(buffers), path, count - 1, prefix_length, status=status)


def _register(function: Callable[..., Any]) -> None:
    """Make it the CUDA kernel of the op of its name, on the device of its arguments."""
    op = getattr(ops, function.__name__)

    @op.register_kernel("cuda")
    @functools.wraps(function)
    def kernel(*inputs: Any) -> Any:
        with torch.cuda.device(inputs[-1].device):  # the status
            return function(*inputs)


for _function in (rank_candidates, build_trees, mask_trees, verify_trees, commit_kv):
    _register(_function)
