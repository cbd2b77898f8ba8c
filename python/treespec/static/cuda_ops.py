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
from treespec.device.candidates import FrontierLists
from treespec.device.families import UNLIMITED, Family, Growing, family_of
from treespec.device.growth import Request
from treespec.device.scores import scored_by
from treespec.static import ops
from treespec.static.growth import GrowthState


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
    proposal: str,
    lossy: bool,
    max_depth: int,
    logits: torch.Tensor,
    num_nodes: torch.Tensor,
    token: torch.Tensor,
    parent: torch.Tensor,
    depth: torch.Tensor,
    draw_offset: torch.Tensor,
    draw: torch.Tensor,
    law: Sequence[torch.Tensor],
    max_support: int,
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
        proposal=proposal,
        law=device.Law.sparse(law, logits.shape[2], max_support) if law else None,
        lossy=lossy,
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


def begin_growth(
    builder: str,
    options: str,
    node_budget: int,
    num_candidates: int,
    vocab_size: int,
    state: Sequence[torch.Tensor],
    root: torch.Tensor,
    key: torch.Tensor,
    status: torch.Tensor,
) -> None:
    """`ops.begin_growth`."""
    family, growing = _growth(
        builder, options, node_budget, num_candidates, vocab_size, state, status
    )
    family.begin(growing, num_candidates, Request.of(growing.trees, root_token=root))


def grow(
    builder: str,
    options: str,
    node_budget: int,
    num_candidates: int,
    vocab_size: int,
    state: Sequence[torch.Tensor],
    token: torch.Tensor,
    logprob: torch.Tensor,
    root: torch.Tensor,
    key: torch.Tensor,
    status: torch.Tensor,
) -> None:
    """`ops.grow`."""
    family, growing = _growth(
        builder, options, node_budget, num_candidates, vocab_size, state, status
    )
    lists = device.CandidateLists(token, logprob)
    if growing.law is None:  # where draws come from is not for options to change
        lists = scored_by(json.loads(options), lists)
    family.grow(growing, key, FrontierLists(lists.token, lists.logprob))


def finish_growth(
    builder: str,
    options: str,
    node_budget: int,
    num_candidates: int,
    vocab_size: int,
    state: Sequence[torch.Tensor],
    root: torch.Tensor,
    key: torch.Tensor,
    status: torch.Tensor,
) -> None:
    """`ops.finish_growth`."""
    family, growing = _growth(
        builder, options, node_budget, num_candidates, vocab_size, state, status
    )
    family.finish(growing, num_candidates, Request.of(growing.trees, root_token=root))


def _growth(
    builder: str,
    options: str,
    node_budget: int,
    num_candidates: int,
    vocab_size: int,
    tensors: Sequence[torch.Tensor],
    status: torch.Tensor,
) -> tuple[Family, Growing]:
    """The native functions, and the arrays that they take."""
    state = GrowthState.of(tensors, num_candidates, vocab_size)
    family = family_of(builder, json.loads(options), node_budget, UNLIMITED, status.device)
    law = state.law if state.law.prob.numel() else None
    return family, Growing(state.workspace, state.frontier, state.trees, law, status)


def _register(function: Callable[..., Any]) -> None:
    """Make it the CUDA kernel of the op of its name, on the device of its arguments."""
    op = getattr(ops, function.__name__)

    @op.register_kernel("cuda")
    @functools.wraps(function)
    def kernel(*inputs: Any) -> Any:
        with torch.cuda.device(inputs[-1].device):  # the status
            return function(*inputs)


for _function in (
    rank_candidates,
    build_trees,
    mask_trees,
    verify_trees,
    commit_kv,
    begin_growth,
    grow,
    finish_growth,
):
    _register(_function)
