# SPDX-License-Identifier: Apache-2.0
"""From a drafter's raw logits to ranked lists, and to linked ones."""

from __future__ import annotations

from typing import NamedTuple

import torch

from treespec.device import native

# What `rank_candidates` takes, and `treespec.device.verify` as far as rows are concerned.
ROW_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_TOKENS = 2**18
MOST_CANDIDATES = 1024


class CandidateLists(NamedTuple):
    """Ranked candidates.

    Attributes
    ----------
    token, logprob
        As arrays of `treespec.Marginals` ``[B, D, K]`` or, with `next`, of `treespec.Transitions`
        ``[B, D, R, K]``; natural logarithms, -inf pads.
    next
        ``[B, D, R, K]``: the list of the next level that continues a candidate, -1 for none.
    """

    token: torch.Tensor
    logprob: torch.Tensor
    next: torch.Tensor | None = None

    @property
    def kind(self) -> str:
        """The source that the lists are."""
        return "Marginals" if self.next is None else "Transitions"


class FrontierLists(NamedTuple):
    """Lists of a drafter that is called while trees grow.

    Attributes
    ----------
    token, logprob
        ``[B, R, K]``, ranked: list i of a sequence is that of its i-th frontier node; others are
        not read.
    """

    token: torch.Tensor
    logprob: torch.Tensor

    @property
    def kind(self) -> str:
        """The source that the lists are."""
        return "Expander"


def rank_candidates(
    logits: torch.Tensor,
    width: int,
    temperature: float = 1.0,
    *,
    num_rows: torch.Tensor | None = None,
    status: torch.Tensor,
) -> CandidateLists:
    """The likeliest tokens of each row, as `treespec.Marginals.from_logits` ranks them.

    Parameters
    ----------
    logits
        ``[B, R, V]`` float32, float16 or bfloat16.
    width
        K, in [1, 1024]; rows with fewer tokens are padded with -inf.
    temperature
        Of the softmax.
    num_rows
        ``[B]``: rows from ``num_rows[b]`` on are not read, their lists are empty.

    Returns
    -------
    CandidateLists
        ``[B, R, K]``, without `next`.
    """
    batch, rows, vocab_size = logits.shape
    lists = CandidateLists(
        native.ints(logits, batch, rows, width),
        logits.new_empty((batch, rows, width), dtype=torch.float32),
    )
    size = native.ops.rank_candidates_workspace_bytes(batch * rows, vocab_size)
    workspace = native.workspace(logits, size)
    native.ops.rank_candidates(
        native.stream(logits), logits, temperature, workspace, lists, status, num_rows=num_rows
    )
    return lists


def link_transitions(lists: CandidateLists, owner: torch.Tensor) -> CandidateLists:
    """Link the lists of a drafter that conditions on the token before, in one launch.

    What `treespec.Transitions.linked` does for a sequence. No data can be wrong, so that there is
    no status.

    Parameters
    ----------
    lists
        ``[B, 1 + (D - 1) * R, K]``, as `rank_candidates` gives them: the root's list, then R per
        further level.
    owner
        ``[B, D - 1, R]``: the token below which a list stands, negative for none.

    Returns
    -------
    CandidateLists
        ``[B, D, R, K]`` with `next`; level 0 has one list, the others there are padding.
    """
    batch, levels, rows = owner.shape
    shape = (batch, levels + 1, max(rows, 1), lists.token.shape[-1])
    token, following = (native.ints(lists.token, *shape) for _ in range(2))
    linked = CandidateLists(token, lists.logprob.new_empty(shape), following)
    native.ops.link_transitions(native.stream(owner), lists, owner, linked)
    return linked
