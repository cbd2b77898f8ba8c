# SPDX-License-Identifier: Apache-2.0
"""Step 2 of a round: trees that are drawn from tables of candidates, with the law they follow."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from treespec import _core
from treespec.builder_options import resolve_options
from treespec.device.candidates import CandidateLists
from treespec.device.families import DRAWN_SHAPES, PATHS, SLOTS, family_of, grow_tables
from treespec.device.growth import Request, check_lengths, round_keys
from treespec.device.trees import Trees
from treespec.device.verify import Law

DRAWN_BUILDERS = (*DRAWN_SHAPES, *PATHS, *SLOTS)


class DrawnTrees(NamedTuple):
    """What `treespec.device.verify` wants to know of drawn trees.

    Attributes
    ----------
    trees
        In pop order.
    proposal
        How the tokens were drawn.
    law
        What they were drawn from: the lists of their parents, renormalised.
    """

    trees: Trees
    proposal: str
    law: Law


def draw_tree(
    name: str,
    lists: CandidateLists,
    node_budget: int,
    *,
    vocab_size: int,
    seed: torch.Tensor,
    sequence_id: torch.Tensor,
    position: torch.Tensor,
    budgets: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    root_token: torch.Tensor | None = None,
    status: torch.Tensor,
    **options: Any,
) -> DrawnTrees:
    """Draw one tree per sequence: what `treespec.build_tree` draws from the same lists.

    Trees are those of a drafter that is truncated to the tokens of its lists, and the law says so.

    Parameters
    ----------
    name
        One of `DRAWN_BUILDERS`.
    lists, node_budget, budgets, root_token
        As `build_tree` takes them. Paths that do not fit a budget are reported in the status.
    lengths
        ``[B, 3]``: num_paths, trunk and branch of every sequence, for ``"delayed"``; num_paths
        within the option. Others are reported in the status. None: the options.
    vocab_size
        V of the target.
    seed
        ``[B]`` int64, read as unsigned.
    sequence_id, position
        ``[B]``; the position is the root's. Draws have the numbers of these keys, purpose 0.
    options
        The builder's own. Evaluation of dyspec is batched in any case: the trees are the same.

    Raises
    ------
    ValueError
        For options that do not fit the node budget, and for `lengths` of another builder.
    NotImplementedError
        For builders and options whose trees are not drawn.
    """
    key = round_keys(seed, sequence_id, position)
    return draw_keyed_tree(
        name,
        lists,
        node_budget,
        vocab_size=vocab_size,
        key=key,
        budgets=budgets,
        lengths=lengths,
        root_token=root_token,
        status=status,
        **options,
    )


def draw_keyed_tree(
    name: str,
    lists: CandidateLists,
    node_budget: int,
    *,
    vocab_size: int,
    key: torch.Tensor,
    budgets: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    root_token: torch.Tensor | None = None,
    status: torch.Tensor,
    **options: Any,
) -> DrawnTrees:
    """`draw_tree` with the keys of `round_keys`."""
    resolved = resolve_options(options)
    builder = _core.TreeBuilder(name, **resolved)  # knows its options
    if name not in DRAWN_BUILDERS or builder.proposal == "deterministic":
        raise NotImplementedError(
            f"device.draw_tree: builder must be one of {', '.join(DRAWN_BUILDERS)} with drawn "
            f"trees, got {name} with {builder.proposal} ones"
        )
    check_lengths("device.draw_tree", name, lengths)
    token = lists.token
    batch, depth, width = len(token), token.shape[1], token.shape[-1]
    family = family_of(name, resolved, node_budget, depth, token.device)
    trees = Trees.empty(batch, node_budget + 1, token.device)
    law = Law.empty(trees, width, vocab_size)
    request = Request.of(trees, budgets, root_token, lengths)
    grow_tables(family, lists, key, request, trees, law, status)
    return DrawnTrees(trees, builder.proposal, law)
