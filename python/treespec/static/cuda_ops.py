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
from treespec.device.draw import draw_keyed_tree
from treespec.device.families import UNLIMITED, Family, Growing, family_of
from treespec.device.growth import Request, check_lengths
from treespec.device.scores import calibration_of, scored_by
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


def link_transitions(
    token: torch.Tensor, logprob: torch.Tensor, owner: torch.Tensor
) -> tuple[Any, ...]:
    """`ops.link_transitions`."""
    return tuple(device.link_transitions(device.CandidateLists(token, logprob), owner))


def score_lists(
    options: str, token: torch.Tensor, logprob: torch.Tensor, next: torch.Tensor | None
) -> tuple[Any, ...]:
    """`ops.score_lists`."""
    named = json.loads(options)
    scored = device.score_lists(
        device.CandidateLists(token, logprob, next),
        temperature=named.get("score_temperature", 1.0),
        calibration=calibration_of(named, token.device),
    )
    return tuple(token.new_empty(0) if array is None else array for array in scored)


def root_scalars(
    target_logits: torch.Tensor,
    draft_logits: torch.Tensor,
    root_logits: torch.Tensor,
    params: torch.Tensor,
    draft_params: torch.Tensor,
    history: torch.Tensor,
    prefix_length: torch.Tensor,
    prompt_length: torch.Tensor,
    bias_token: torch.Tensor | None,
    bias: torch.Tensor | None,
    status: torch.Tensor,
) -> torch.Tensor:
    """`ops.root_scalars`."""
    changes = _changes(params, history, prefix_length, prompt_length)
    temperature, top_k, top_p = draft_params.unbind(1)
    min_p = torch.zeros_like(top_p)
    return device.root_scalars(
        target_logits,
        draft_logits,
        root_logits,
        sampling=device.sampling_words(*params[:, :4].unbind(1)),
        draft_sampling=device.sampling_words(temperature, top_k, top_p, min_p),
        tokens_before=prefix_length,
        changes=changes._replace(bias_token=bias_token, bias=bias),
        status=status,
    )


def choose_shapes(
    state_widths: Sequence[int],
    projection_width: int,
    layer_widths: Sequence[int],
    parameters: torch.Tensor,
    shapes: torch.Tensor,
    states: Sequence[torch.Tensor],
    scalars: torch.Tensor,
    node_budget: torch.Tensor,
    max_depth: torch.Tensor,
    status: torch.Tensor,
) -> torch.Tensor:
    """`ops.choose_shapes`."""
    num_paths, trunk, branch = shapes.unbind(1)
    network = device.SelectorNetwork(
        state_widths,
        projection_width,
        scalars.shape[1],
        layer_widths,
        parameters,
        num_nodes=trunk + num_paths * branch,
        depth=trunk + branch,
    )
    return device.choose_shapes(
        network, states, scalars, node_budget=node_budget, max_depth=max_depth, status=status
    )


def build_trees(
    builder: str,
    options: str,
    node_budget: int,
    token: torch.Tensor,
    logprob: torch.Tensor,
    next: torch.Tensor | None,
    root: torch.Tensor,
    status: torch.Tensor,
) -> tuple[Any, ...]:
    """`ops.build_trees`."""
    lists = device.CandidateLists(token, logprob, next)
    named = json.loads(options)
    return tuple(
        device.build_tree(builder, lists, node_budget, root_token=root, status=status, **named)
    )


def draw_trees(
    builder: str,
    options: str,
    node_budget: int,
    vocab_size: int,
    token: torch.Tensor,
    logprob: torch.Tensor,
    next: torch.Tensor | None,
    root: torch.Tensor,
    key: torch.Tensor,
    status: torch.Tensor,
) -> tuple[Any, ...]:
    """`ops.draw_trees`."""
    drawn = draw_keyed_tree(
        builder,
        device.CandidateLists(token, logprob, next),
        node_budget,
        vocab_size=vocab_size,
        key=key,
        root_token=root,
        status=status,
        **json.loads(options),
    )
    return *drawn.trees, *drawn.law.arrays


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
    bias_token: torch.Tensor | None,
    bias: torch.Tensor | None,
    allowed: torch.Tensor | None,
    seed: torch.Tensor,
    sequence_id: torch.Tensor,
    status: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`ops.verify_trees`."""
    changes = _changes(params, history, prefix_length + 1, prompt_length)
    verdicts = device.verify(
        device.Trees(num_nodes, token, parent, depth, None, draw_offset, draw),
        logits,
        verifier,
        max_depth=max_depth,
        proposal=proposal,
        law=device.Law.sparse(law, logits.shape[2], max_support) if law else None,
        lossy=lossy,
        sampling=device.sampling_words(*params[:, :4].unbind(1)),
        changes=changes._replace(allowed=allowed, bias_token=bias_token, bias=bias),
        seed=seed,
        sequence_id=sequence_id.int(),
        position=prefix_length,
        status=status,
    )
    return tuple(verdicts)


def _changes(
    params: torch.Tensor, history: torch.Tensor, length: torch.Tensor, prompt_length: torch.Tensor
) -> device.ScoreChanges:
    """Penalties for what is among the first tokens of a history."""
    return device.ScoreChanges(params[:, 4:].contiguous(), history, length, prompt_length)


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
    lengths: torch.Tensor | None = None,
) -> None:
    """`ops.begin_growth`."""
    check_lengths("begin_growth", builder, lengths)
    family, growing = _growth(
        builder, options, node_budget, num_candidates, vocab_size, state, status
    )
    request = Request.of(growing.trees, root_token=root, lengths=lengths)
    family.begin(growing, num_candidates, request)


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
        [*_, last] = (value for value in inputs if isinstance(value, torch.Tensor))
        with torch.cuda.device(last.device):
            return function(*inputs)


for _function in (
    rank_candidates,
    link_transitions,
    score_lists,
    root_scalars,
    choose_shapes,
    build_trees,
    draw_trees,
    mask_trees,
    verify_trees,
    commit_kv,
    begin_growth,
    grow,
    finish_growth,
):
    _register(_function)
