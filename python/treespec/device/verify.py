# SPDX-License-Identifier: Apache-2.0
"""Step 5 of a round: every verifier, in two launches."""

from __future__ import annotations

from typing import NamedTuple

import torch

from treespec.device import native
from treespec.device.trees import Trees


class Law(NamedTuple):
    """The law of the first child of each node, dense or sparse.

    Attributes
    ----------
    row_of_node
        ``[B, M]``, -1: drew nothing.
    prob
        Dense: ``[rows, V]`` float32. Sparse: ``[entries]`` float32.
    token
        Sparse: ``[entries]``, ascending in a row. None: rows are dense.
    row_offset
        Sparse: ``[rows + 1]`` int64, row r has the entries from ``row_offset[r]`` on.
    vocab_size, max_support
        Sparse: V, and the most entries of a row.
    """

    row_of_node: torch.Tensor
    prob: torch.Tensor
    token: torch.Tensor | None = None
    row_offset: torch.Tensor | None = None
    vocab_size: int = 0
    max_support: int = 0


class Verdicts(NamedTuple):
    """What a round has decided.

    Attributes
    ----------
    nodes
        ``[B, C]``: the root and the accepted nodes; what follows is anything.
    num_accepted, next_token
        ``[B]``; the root is not counted, and -1 says that the status does.
    """

    nodes: torch.Tensor
    num_accepted: torch.Tensor
    next_token: torch.Tensor


class _Input(NamedTuple):
    """`treespec::device::VerifyInput`."""

    trees: Trees
    proposal: str
    logits: torch.Tensor
    law: Law | None
    sampling: torch.Tensor
    seed: torch.Tensor
    sequence_id: torch.Tensor
    position: torch.Tensor


def sampling_words(
    temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """Sampling parameters ``[B]`` as `verify` reads them: ``[B, 4]`` int64.

    Temperature 0 decodes greedily, whatever the verifier.
    """
    numbers = torch.stack([temperature, top_p, min_p], 1).double()
    return torch.cat([numbers.view(torch.int64), top_k.long()[:, None]], 1)


def verify(
    trees: Trees,
    logits: torch.Tensor,
    verifier: str,
    *,
    max_depth: int,
    sampling: torch.Tensor,
    seed: torch.Tensor,
    sequence_id: torch.Tensor,
    position: torch.Tensor,
    proposal: str = "deterministic",
    law: Law | None = None,
    status: torch.Tensor,
) -> Verdicts:
    """Keep the longest path the target itself could have produced, and draw one more token.

    The verdicts and the random draws are those of `treespec.verify_logits`; penalties, biases and
    allowed tokens are not applied here.

    Parameters
    ----------
    trees
        With their draws.
    logits
        ``[B, M, V]`` float32, float16 or bfloat16.
    verifier
        A name of `treespec.verifier_names`, not a lossy one.
    max_depth
        C - 1.
    sampling
        Of `sampling_words`.
    seed
        ``[B]`` int64, read as unsigned.
    sequence_id, position
        ``[B]``; the position is the root's.
    proposal
        How all trees were drawn.
    law
        Must be given to the verifiers of drawn trees.

    Raises
    ------
    ValueError
        For a verifier that would bias such trees, or needs a law and has none.
    """
    batch = len(logits)
    verdicts = Verdicts(
        native.ints(logits, batch, max_depth + 1),
        native.ints(logits, batch),
        native.ints(logits, batch),
    )
    given = _Input(trees, proposal, logits, law, sampling, seed, sequence_id, position)
    size = native.ops.verify_workspace_bytes(verifier, given, verdicts)
    workspace = native.workspace(logits, size)
    native.ops.verify(native.stream(logits), verifier, given, workspace, verdicts, status)
    return verdicts
