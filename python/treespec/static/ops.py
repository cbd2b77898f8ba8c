# SPDX-License-Identifier: Apache-2.0
"""The steps of a round as torch custom ops over batches of fixed size: ``torch.ops.treespec.*``.

Build, mask, verify and commit work on padded arrays, with all lengths in tensors. On CPU tensors
they run the native core, on CUDA tensors `treespec.device` (`treespec.static.cuda_ops`). Each has a
fake implementation, so that programs that call it can be traced and compiled. What a device finds
wrong with its data goes to `status`, ``[B]``, which `treespec.device.check_status` reads; a CPU
raises at once.

Letters in shapes: B sequences; M nodes, root included; D levels of R candidate lists of K each;
C = largest depth + 1. All integers are int32 unless another type is named.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from treespec import _core
from treespec.device.trees import Trees
from treespec.static.build_ops import (
    begin_growth,
    build_trees,
    draw_trees,
    finish_growth,
    grow,
    link_transitions,
    score_lists,
)
from treespec.static.host_trees import rows_of, tree_of

__all__ = [
    "PARAM_NAMES",
    "CandidateLists",
    "begin_growth",
    "build_trees",
    "choose_shapes",
    "commit_kv",
    "draw_trees",
    "encode_options",
    "finish_growth",
    "grow",
    "link_transitions",
    "mask_trees",
    "rank_candidates",
    "root_scalars",
    "score_lists",
    "verify_trees",
]

# Columns of `params` of `verify_trees`, float64.
PARAM_NAMES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


class CandidateLists(NamedTuple):
    """What was drafted, as the arrays of `treespec.Transitions` of each sequence.

    Attributes
    ----------
    token, logprob
        ``[B, D, R, K]`` int32 and float32 (natural logarithms, -inf pads): list r of level d,
        ranked. Level 0 has list 0 only.
    next
        ``[B, D, R, K]``: the list of level d + 1 that continues a candidate, -1 for none.
    """

    token: torch.Tensor
    logprob: torch.Tensor
    next: torch.Tensor


def encode_options(options: Mapping[str, Any]) -> str:
    """Resolved builder options (`resolve_options`) as the text that `build_trees` takes."""
    return json.dumps(dict(options), sort_keys=True)


@functools.lru_cache(maxsize=64)
def _row_params(
    values: tuple[float, ...], biases: tuple[tuple[int, float], ...] = ()
) -> _core.RowParams:
    named: dict[str, Any] = dict(zip(PARAM_NAMES, values, strict=True))
    return _core.RowParams(**{**named, "top_k": int(named["top_k"])}, logit_bias=dict(biases))


def _biases_of(
    token: torch.Tensor | None, bias: torch.Tensor | None, b: int
) -> tuple[tuple[int, float], ...]:
    """Those of a sequence, without padding."""
    if token is None or bias is None:
        return ()
    pairs = zip(token[b].tolist(), bias[b].tolist(), strict=True)
    return tuple(pair for pair in pairs if pair[0] >= 0)


def _int32(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return like.new_empty(shape, dtype=torch.int32)


# --- outputs --------------------------------------------------------------------------------------
# Made by one function for the kernels of all devices and for tracing.


def empty_candidates(
    logits: torch.Tensor, vocab_size: int, width: int, temperature: float, status: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of `rank_candidates`."""
    shape = (*logits.shape[:2], width)
    return _int32(logits, *shape), logits.new_empty(shape, dtype=torch.float32)


def empty_mask(
    num_nodes: torch.Tensor, parent: torch.Tensor, *rest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of `mask_trees`."""
    batch, nodes = parent.shape
    return _int32(parent, batch, nodes, (nodes + 31) // 32), _int32(parent, batch, nodes)


def empty_scalars(target_logits: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
    """Output of `root_scalars`."""
    return target_logits.new_empty((len(target_logits), 9), dtype=torch.float32)


def empty_choices(
    state_widths: Sequence[int],
    projection_width: int,
    layer_widths: Sequence[int],
    parameters: torch.Tensor,
    shapes: torch.Tensor,
    states: Sequence[torch.Tensor],
    scalars: torch.Tensor,
    *rest: torch.Tensor,
) -> torch.Tensor:
    """Output of `choose_shapes`."""
    return _int32(scalars, len(scalars))


def empty_verdicts(
    verifier: str, proposal: str, lossy: bool, max_depth: int, logits: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outputs of `verify_trees`."""
    return _verdicts(max_depth, logits)


def _verdicts(
    max_depth: int, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = logits.shape[0]
    return _int32(logits, batch, max_depth + 1), _int32(logits, batch), _int32(logits, batch)


# --- the ops and their kernels over the native core -----------------------------------------------


@torch.library.custom_op("treespec::rank_candidates", mutates_args=("status",), device_types="cpu")
def rank_candidates(
    logits: torch.Tensor, vocab_size: int, width: int, temperature: float, status: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens of each row of a drafter.

    Parameters
    ----------
    logits
        ``[B, R, V_draft]`` float16, bfloat16, float32 or, on a CPU, float64.
    vocab_size
        V of the target; columns beyond it take no part.
    width
        K; rows with fewer tokens are padded with -inf.
    temperature
        Of the softmax, above 0.

    Returns
    -------
    token, logprob
        ``[B, R, K]`` int32 and float32, ranked; ties fall to the lower id.
    """
    batch, rows, draft_vocab = logits.shape
    token, logprob = empty_candidates(logits, vocab_size, width, temperature, status)
    columns = min(vocab_size, draft_vocab)
    flat = logits[..., :columns].reshape(batch * rows, columns)
    best = _core.Marginals.from_logits(flat, min(width, columns), temperature=temperature)
    tokens, logprobs = (array.reshape(batch, rows, -1) for array in best.arrays)
    known = tokens.shape[2]
    token.zero_()[..., :known] = torch.from_numpy(tokens)
    logprob.fill_(-torch.inf)[..., :known] = torch.from_numpy(logprobs)
    return token, logprob


@torch.library.custom_op("treespec::root_scalars", mutates_args=("status",), device_types="cpu")
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
    """What a selector reads of the laws around the roots, beside hidden states.

    Parameters
    ----------
    target_logits
        ``[B, V]`` float16, bfloat16, float32 or, on a CPU, float64: the target's after the token
        before the root.
    draft_logits, root_logits
        ``[B, W]``, any W: the drafter's there, and after the root; columns beyond V take no part.
    params
        ``[B, 7]`` float64, in the order of `PARAM_NAMES`: of the target.
    draft_params
        ``[B, 3]`` float64: temperature, top-k and top-p of both rows of the drafter.
    history, prefix_length, prompt_length
        As of `verify_trees`: ``prefix_length[b]`` tokens are before the root, at least 1.
    bias_token, bias
        As of `verify_trees`.

    Returns
    -------
    torch.Tensor
        ``[B, 9]`` float32, in the order of `treespec.selector.features.SCALARS`.
    """
    scalars = empty_scalars(target_logits)
    for b in range(len(scalars)):
        temperature, top_k, top_p = draft_params[b].tolist()
        numbers = _core.root_scalars(
            target_logits[b],
            _row_params(tuple(params[b].tolist()), _biases_of(bias_token, bias, b)),
            history[b, : int(prefix_length[b])].numpy(),
            int(prompt_length[b]),
            draft_logits[b],
            root_logits[b],
            temperature,
            int(top_k),
            top_p,
        )
        scalars[b] = torch.from_numpy(numbers)
    return scalars


@torch.library.custom_op("treespec::choose_shapes", mutates_args=("status",), device_types="cpu")
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
    """The trees that a selector's network scores best.

    Parameters
    ----------
    state_widths, projection_width, layer_widths
        Of `treespec.selector.selector.NetworkSizes`.
    parameters
        ``[P]`` float32: `Selector.parameters`.
    shapes
        ``[A, 3]``: num_paths, trunk and branch of all actions.
    states
        ``[B, width]`` float32 for each of `state_widths`.
    scalars
        ``[B, 9]`` float32, of `root_scalars`.
    node_budget, max_depth
        ``[B]``: larger trees are not chosen.

    Returns
    -------
    torch.Tensor
        ``[B]``: places among the actions, the first among equals (on a device -1 for scores that
        are no numbers, or where no action is that small).
    """
    network = _core.DelayedSelector(
        state_widths=state_widths,
        projection_width=projection_width,
        num_scalars=scalars.shape[1],
        layer_widths=layer_widths,
        parameters=parameters.numpy(),
        shapes=shapes.tolist(),
    )
    chosen = [
        network.choose(
            [state[b].numpy() for state in states],
            scalars[b].numpy(),
            int(node_budget[b]),
            int(max_depth[b]),
        )
        for b in range(len(scalars))
    ]
    return torch.tensor(chosen, dtype=torch.int32)


@torch.library.custom_op("treespec::mask_trees", mutates_args=("status",), device_types="cpu")
def mask_trees(
    num_nodes: torch.Tensor,
    parent: torch.Tensor,
    depth: torch.Tensor,
    prefix_length: torch.Tensor,
    status: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ancestor bits and positions of trees.

    Parameters
    ----------
    num_nodes, parent, depth
        Of `treespec.device.Trees`.
    prefix_length
        ``[B]``: the root's absolute position.

    Returns
    -------
    bits
        ``[B, M, ceil(M / 32)]``: bit ``j % 32`` of word ``j // 32`` of row i says that j is i or
        its ancestor. A padding node sees itself and is seen by nobody.
    positions
        ``[B, M]``: `prefix_length` + depth.
    """
    bits, positions = empty_mask(num_nodes, parent)
    batch, nodes = parent.shape
    words = bits.zero_().numpy().view(np.uint32)
    own = np.arange(nodes)
    words[:, own, own // 32] = np.uint32(1) << (own % 32).astype(np.uint32)
    for b in range(batch):
        count = int(num_nodes[b])
        rows = _core.ancestor_bits(parent[b, :count].numpy())
        words[b, :count, : rows.shape[1]] = rows
    torch.add(depth, prefix_length[:, None], out=positions)
    return bits, positions


@torch.library.custom_op("treespec::verify_trees", mutates_args=("status",), device_types="cpu")
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
    """Keep the longest path the target itself could have produced, and draw one more token.

    Parameters
    ----------
    verifier
        A name of `treespec.verifier_names`.
    proposal
        How all trees were drawn.
    lossy
        Admits verifiers that change the distribution of the text.
    max_depth
        C - 1.
    logits
        ``[B, M, V]``, float16, bfloat16, float32 or, on a CPU, float64; rows are processed when
        the walk visits them.
    num_nodes, token, parent, depth, draw_offset, draw
        Of `treespec.device.Trees`.
    law
        `row_of_node`, `prob`, `token` and `row_offset` of a sparse `treespec.device.Law` whose
        tokens are below V; empty where there is none.
    max_support
        The most entries of one of its rows.
    history
        ``[B, T]``: committed tokens; sequence b has ``prefix_length[b] + 1``, the root last.
    prefix_length
        ``[B]``: the root's absolute position.
    prompt_length
        ``[B]``: how many of the history are prompt.
    params
        ``[B, 7]`` float64, in the order of `PARAM_NAMES`.
    bias_token, bias
        ``[B, biases]`` (-1: none) and float64: added to the logits of these tokens. None: nothing.
    allowed
        ``[B, M, ceil(V / 32)]``: bit ``t % 32`` of word ``t // 32`` allows token t after node i.
        None: all tokens.
    seed, sequence_id
        ``[B]`` int64; a seed's 64 bits are read as unsigned.

    Returns
    -------
    path, num_accepted, next_token
        The arrays of `treespec.device.Verdicts`.
    """
    path, num_accepted, next_token = _verdicts(max_depth, logits)
    path.fill_(-1)
    trees = Trees(num_nodes, token, parent, depth, None, draw_offset, draw)
    for b in range(len(num_nodes)):
        rows = rows_of(law, b, int(num_nodes[b]), logits.shape[2]) if law else None
        position, count = int(prefix_length[b]), int(num_nodes[b])
        verdict = _core.verify_logits(
            tree_of(trees, b, proposal, rows),
            logits[b, :count],
            None,
            _row_params(tuple(params[b].tolist()), _biases_of(bias_token, bias, b)),
            verifier,
            history[b, : position + 1].numpy(),
            int(prompt_length[b]),
            None if allowed is None else allowed[b, :count].numpy().view(np.uint32),
            int(seed[b]) % 2**64,
            int(sequence_id[b]) % 2**32,
            position,
            lossy,
        )
        nodes = [0, *verdict.accepted_nodes.tolist()]
        path[b, : len(nodes)] = torch.tensor(nodes)
        num_accepted[b], next_token[b] = verdict.num_accepted, verdict.next_token
    return path, num_accepted, next_token


@torch.library.custom_op(
    "treespec::commit_kv", mutates_args=("buffers", "status"), device_types="cpu"
)
def commit_kv(
    buffers: Sequence[torch.Tensor],
    prefix_length: torch.Tensor,
    path: torch.Tensor,
    count: torch.Tensor,
    status: torch.Tensor,
) -> None:
    """Keep the KV rows of the accepted paths, in place.

    Parameters
    ----------
    buffers
        Keys and values ``[B, H, rows, D]`` of all layers, of any dtype.
    prefix_length
        ``[B]``: the row of the root.
    path
        ``[B, C]``: row ``prefix_length + path[d]`` moves to ``prefix_length + d``; ascending.
    count
        ``[B]``: how many of the path are kept; 0 changes nothing.
    """
    for b in range(len(count)):
        kept = int(count[b])
        if kept:
            rows = _core.KvBuffers([buffer[b] for buffer in buffers])
            rows.commit(int(prefix_length[b]), path[b, :kept].numpy())


rank_candidates.register_fake(empty_candidates)
root_scalars.register_fake(empty_scalars)
choose_shapes.register_fake(empty_choices)
mask_trees.register_fake(empty_mask)
verify_trees.register_fake(empty_verdicts)
commit_kv.register_fake(lambda buffers, prefix_length, path, count, status: None)
