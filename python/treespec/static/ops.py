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
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from treespec import _core
from treespec.device.trees import Trees
from treespec.static.growth import GrowthState
from treespec.static.replay import Replay

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
def _builder(name: str, options: str) -> _core.TreeBuilder:
    return _core.TreeBuilder(name, **json.loads(options))


@functools.lru_cache(maxsize=64)
def _row_params(values: tuple[float, ...]) -> _core.RowParams:
    named: dict[str, Any] = dict(zip(PARAM_NAMES, values, strict=True))
    return _core.RowParams(**{**named, "top_k": int(named["top_k"])})


TreeArrays = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]


def _arrays(trees: Trees) -> TreeArrays:
    """Trees as an op returns them: a plain tuple, without None."""
    arrays: Any = tuple(trees)
    return arrays


def _int32(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return like.new_empty(shape, dtype=torch.int32)


def _replay(
    builder: str,
    options: str,
    node_budget: int,
    num_candidates: int,
    vocab_size: int,
    state: Sequence[torch.Tensor],
    root: torch.Tensor,
    key: torch.Tensor,
) -> Replay:
    whole = GrowthState.of(state, num_candidates, vocab_size)
    return Replay(builder, options, node_budget, num_candidates, whole, root, key)


def _tree_of(trees: Trees, b: int, proposal: str, law: Any) -> _core.TokenTree:
    """That of a sequence, with `draft_rows`."""
    count = int(trees.num_nodes[b])
    assert trees.draw_offset is not None and trees.draw is not None, "trees with their draws"
    ends, draw = trees.draw_offset[b, : count + 1].tolist(), trees.draw[b].tolist()
    draws = [draw[begin:end] for begin, end in itertools.pairwise(ends)]
    token, parent = (column[b, :count].numpy() for column in (trees.token, trees.parent))
    return _core.TokenTree(token, parent=parent, proposal=proposal, draws=draws, draft_rows=law)


def _rows_of(law: Sequence[torch.Tensor], b: int, num_nodes: int, vocab_size: int) -> Any:
    """The laws of a sequence's nodes as `draft_rows`."""
    row_of_node, prob, token, row_offset = law
    rows = row_of_node[b, :num_nodes]
    drew = rows >= 0
    ends = [row_offset[rows[drew].long() + end].tolist() for end in (0, 1)]
    spans = [slice(*span) for span in zip(*ends, strict=True)]
    offset = np.cumsum([0, *(span.stop - span.start for span in spans)])
    local = torch.where(drew, drew.cumsum(0) - 1, -1)
    entries = (torch.cat([column[:0], *(column[s] for s in spans)]) for column in (token, prob))
    return vocab_size, local.numpy(), offset, *(column.numpy() for column in entries)


# --- outputs --------------------------------------------------------------------------------------
# Made by one function for the kernels of all devices and for tracing.


def empty_candidates(
    logits: torch.Tensor, vocab_size: int, width: int, temperature: float, status: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of `rank_candidates`."""
    shape = (*logits.shape[:2], width)
    return _int32(logits, *shape), logits.new_empty(shape, dtype=torch.float32)


def empty_trees(
    builder: str, options: str, node_budget: int, token: torch.Tensor, *rest: torch.Tensor
) -> TreeArrays:
    """Outputs of `build_trees`."""
    return _arrays(Trees.empty(token.shape[0], node_budget + 1, token.device))


def empty_mask(
    num_nodes: torch.Tensor, parent: torch.Tensor, *rest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of `mask_trees`."""
    batch, nodes = parent.shape
    return _int32(parent, batch, nodes, (nodes + 31) // 32), _int32(parent, batch, nodes)


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


@torch.library.custom_op("treespec::build_trees", mutates_args=("status",), device_types="cpu")
def build_trees(
    builder: str,
    options: str,
    node_budget: int,
    token: torch.Tensor,
    logprob: torch.Tensor,
    next: torch.Tensor,
    root: torch.Tensor,
    status: torch.Tensor,
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]:
    """Build one deterministic tree per sequence; takes no random numbers.

    Parameters
    ----------
    builder, options
        A name of `treespec.builder_names` and the text of `encode_options`.
    node_budget
        M - 1.
    token, logprob, next
        The arrays of `CandidateLists`.
    root
        ``[B]``: tokens of the roots.

    Returns
    -------
    num_nodes, token, parent, depth, path_logprob, draw_offset, draw
        The arrays of `treespec.device.Trees`, in pop order.
    """
    grown = []
    for b in range(len(root)):
        source = _core.Transitions(token[b].numpy(), logprob[b].numpy(), next[b].numpy())
        tree = _builder(builder, options).build(source, node_budget, root_token=int(root[b]))
        grown.append(tree)
    return _arrays(Trees.pack(grown, node_budget + 1, "cpu"))


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
        rows = _rows_of(law, b, int(num_nodes[b]), logits.shape[2]) if law else None
        position = int(prefix_length[b])
        verdict = _core.verify_logits(
            _tree_of(trees, b, proposal, rows),
            logits[b, : int(num_nodes[b])],
            None,
            _row_params(tuple(params[b].tolist())),
            verifier,
            history[b, : position + 1].numpy(),
            int(prompt_length[b]),
            None,
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


@torch.library.custom_op(
    "treespec::begin_growth", mutates_args=("state", "status"), device_types="cpu"
)
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
    """Begin to grow a tree per sequence: they wait for the lists of their roots.

    Parameters
    ----------
    builder, options, node_budget, num_candidates, vocab_size
        Of a `GrowthRecipe`; the trees are those of `treespec.build_tree` over a drafter that is
        truncated to the tokens of its lists.
    state
        The tensors of a `GrowthState` that was made for it; written in place.
    root
        ``[B]``: tokens of the roots.
    key
        ``[B, 2]`` int64, of `treespec.device.round_keys`: draws have the numbers of these keys,
        purpose 0. Deterministic builders take none.
    """
    _replay(builder, options, node_budget, num_candidates, vocab_size, state, root, key).begin()


@torch.library.custom_op("treespec::grow", mutates_args=("state", "status"), device_types="cpu")
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
    """Take the lists that trees wait for; they wait for others, or are grown.

    A tree that is grown is left alone, so that a program may hold a fixed number of calls.

    Parameters
    ----------
    builder, options, node_budget, num_candidates, vocab_size, state, root, key
        As `begin_growth` took them.
    token, logprob
        ``[B, rows, K]`` int32 and float32, as `rank_candidates` ranks them: list i of a sequence is
        that of the i-th node that waits, and further ones are not read. A sequence that waits for
        more than `rows` nodes is an error (on a device: `kOutOfBounds`).
    """
    replay = _replay(builder, options, node_budget, num_candidates, vocab_size, state, root, key)
    replay.grow(token, logprob)


@torch.library.custom_op(
    "treespec::finish_growth", mutates_args=("state", "status"), device_types="cpu"
)
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
    """Write the trees of a state, none of which waits any more, and the law of drawn ones.

    Parameters
    ----------
    builder, options, node_budget, num_candidates, vocab_size, state, root, key
        As `begin_growth` took them.
    """
    _replay(builder, options, node_budget, num_candidates, vocab_size, state, root, key).finish()


rank_candidates.register_fake(empty_candidates)
build_trees.register_fake(empty_trees)
mask_trees.register_fake(empty_mask)
verify_trees.register_fake(empty_verdicts)
commit_kv.register_fake(lambda buffers, prefix_length, path, count, status: None)
for _growth_op in (begin_growth, grow, finish_growth):
    _growth_op.register_fake(lambda *inputs: None)
