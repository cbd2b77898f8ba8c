# SPDX-License-Identifier: Apache-2.0
"""The custom ops that make trees of candidate lists (`treespec.static.ops`).

Lists are all there (`build_trees`, `draw_trees`), or come from a drafter that is called while trees
grow (`begin_growth`, `grow`, `finish_growth`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from treespec import _core
from treespec.device.trees import Trees
from treespec.device.verify import Law
from treespec.static.growth import GrowthState
from treespec.static.host_trees import write_law, written_key
from treespec.static.replay import Replay


@functools.lru_cache(maxsize=64)
def _builder(name: str, options: str) -> _core.TreeBuilder:
    return _core.TreeBuilder(name, **json.loads(options))


def _source(
    token: torch.Tensor, logprob: torch.Tensor, next: torch.Tensor | None, b: int
) -> _core.CandidateSource:
    """The tables of a sequence."""
    if next is None:
        return _core.Marginals(token[b].numpy(), logprob[b].numpy())
    return _core.Transitions(token[b].numpy(), logprob[b].numpy(), next[b].numpy())


# --- outputs --------------------------------------------------------------------------------------
# Made by one function for the kernels of all devices and for tracing.

TreeArrays = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]
DrawnArrays = tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]
ListArrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def empty_links(token: torch.Tensor, logprob: torch.Tensor, owner: torch.Tensor) -> ListArrays:
    """Outputs of `link_transitions`."""
    batch, levels, rows = owner.shape
    shape = (batch, levels + 1, max(rows, 1), token.shape[-1])
    return token.new_empty(shape), logprob.new_empty(shape), token.new_empty(shape)


def empty_scored(
    options: str, token: torch.Tensor, logprob: torch.Tensor, next: torch.Tensor | None
) -> ListArrays:
    """Outputs of `score_lists`."""
    following = token.new_empty(0) if next is None else torch.empty_like(next)
    return torch.empty_like(token), torch.empty_like(logprob), following


def empty_trees(
    builder: str, options: str, node_budget: int, token: torch.Tensor, *rest: Any
) -> TreeArrays:
    """Outputs of `build_trees`."""
    arrays: Any = tuple(Trees.empty(token.shape[0], node_budget + 1, token.device))
    return arrays


def empty_drawn(
    builder: str, options: str, node_budget: int, vocab_size: int, token: torch.Tensor, *rest: Any
) -> DrawnArrays:
    """Outputs of `draw_trees`."""
    trees = Trees.empty(token.shape[0], node_budget + 1, token.device)
    arrays: Any = (*trees, *Law.empty(trees, token.shape[-1], vocab_size).arrays)
    return arrays


# --- the ops and their kernels over the native core -----------------------------------------------


@torch.library.custom_op("treespec::link_transitions", mutates_args=(), device_types="cpu")
def link_transitions(
    token: torch.Tensor, logprob: torch.Tensor, owner: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Link the lists of a drafter that conditions on the token before, and on nothing earlier.

    Parameters
    ----------
    token, logprob
        ``[B, 1 + (D - 1) * R, K]``, as `rank_candidates` ranks them: the root's list, then R per
        further level.
    owner
        ``[B, D - 1, R]``: the token below which a list stands, negative for none.

    Returns
    -------
    token, logprob, next
        ``[B, D, R, K]``, the arrays of `CandidateLists`; level 0 has one list.
    """
    outputs = empty_links(token, logprob, owner)
    for b in range(len(token)):
        linked = _core.Transitions.linked(token[b].numpy(), logprob[b].numpy(), owner[b].numpy())
        for output, array in zip(outputs, linked.arrays, strict=True):
            output[b] = torch.from_numpy(array)
    return outputs


@torch.library.custom_op("treespec::score_lists", mutates_args=(), device_types="cpu")
def score_lists(
    options: str, token: torch.Tensor, logprob: torch.Tensor, next: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lists whose log-probabilities are scores, as the options of deterministic builders say.

    `build_trees` and `grow` do this by themselves. What is wrong with lists is left in them.

    Parameters
    ----------
    options
        The text of `encode_options`, of which `score_temperature` and `calibration` count.
    token, logprob, next
        ``[B, D, K]`` without `next`, or ``[B, D, R, K]``.

    Returns
    -------
    token, logprob, next
        Of the same shapes, ranked by the scores; `next` is empty where none was given.
    """
    named = json.loads(options)
    scored_token, scored_logprob, scored_next = _core.score_lists(
        token.numpy(),
        logprob.numpy(),
        None if next is None else next.numpy(),
        **{key: named[key] for key in ("score_temperature", "calibration") if key in named},
    )
    links = np.zeros(0, np.int32) if scored_next is None else scored_next
    return torch.from_numpy(scored_token), torch.from_numpy(scored_logprob), torch.from_numpy(links)


@torch.library.custom_op("treespec::build_trees", mutates_args=("status",), device_types="cpu")
def build_trees(
    builder: str,
    options: str,
    node_budget: int,
    token: torch.Tensor,
    logprob: torch.Tensor,
    next: torch.Tensor | None,
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
        ``[B, D, K]`` without `next`, as of `treespec.Marginals`, or the arrays of
        `CandidateLists`.
    root
        ``[B]``: tokens of the roots.

    Returns
    -------
    num_nodes, token, parent, depth, path_logprob, draw_offset, draw
        The arrays of `treespec.device.Trees`, in pop order.

    Raises
    ------
    NotImplementedError
        For builders and options whose trees are drawn.
    """
    native = _builder_for("build_trees", "deterministic", builder, options)
    grown = []
    for b in range(len(root)):
        source = _source(token, logprob, next, b)
        grown.append(native.build(source, node_budget, root_token=int(root[b])))
    arrays: Any = tuple(Trees.pack(grown, node_budget + 1, "cpu"))
    return arrays


@torch.library.custom_op("treespec::draw_trees", mutates_args=("status",), device_types="cpu")
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
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
]:
    """Draw one tree per sequence, from a drafter that is truncated to the tokens of its lists.

    Parameters
    ----------
    builder, options, node_budget, token, logprob, next, root
        As `build_trees` takes them.
    vocab_size
        V of the target.
    key
        ``[B, 2]`` int64, of `treespec.device.round_keys`: draws have the numbers of these keys,
        purpose 0.

    Returns
    -------
    num_nodes, token, parent, depth, path_logprob, draw_offset, draw
        The arrays of `treespec.device.Trees`, in pop order.
    row_of_node, prob, token, row_offset
        Those of their law, with room for a list of every node; `verify_trees` takes them.

    Raises
    ------
    NotImplementedError
        For builders and options whose trees are not drawn.
    """
    native = _builder_for("draw_trees", "drawn", builder, options)
    grown = []
    for b, words in enumerate(key.tolist()):
        source = _source(token, logprob, next, b)
        named = written_key(words)
        grown.append(native.build(source, node_budget, root_token=int(root[b]), **named))
    trees = Trees.pack(grown, node_budget + 1, "cpu")
    arrays = [array.zero_() for array in Law.empty(trees, token.shape[-1], vocab_size).arrays]
    write_law(grown, arrays)
    outputs: Any = (*trees, *arrays)
    return outputs


def _builder_for(who: str, kind: str, name: str, options: str) -> _core.TreeBuilder:
    """The builder; raises NotImplementedError unless its trees are of that kind."""
    builder = _builder(name, options)
    if (builder.proposal == "deterministic") != (kind == "deterministic"):
        raise NotImplementedError(
            f"{who}: trees must be {kind}, got {name} with {builder.proposal} ones"
        )
    return builder


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
    lengths: torch.Tensor | None = None,
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
    lengths
        ``[B, 3]``: num_paths, trunk and branch of every sequence, for ``"delayed"``; num_paths
        within the option, and no more nodes than the budget (on a device, what is not:
        `kOutOfBounds`). None: the options.
    """
    replay = _replay(builder, options, node_budget, num_candidates, vocab_size, state, root, key)
    replay.begin(lengths)


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


link_transitions.register_fake(empty_links)
score_lists.register_fake(empty_scored)
build_trees.register_fake(empty_trees)
draw_trees.register_fake(empty_drawn)
for _op in (begin_growth, grow, finish_growth):
    _op.register_fake(lambda *inputs: None)
