# SPDX-License-Identifier: Apache-2.0
"""Step 5 of a round: every verifier, in two launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from treespec.device import native
from treespec.device.trees import Trees

# Of a tree that `traversal` or `block` verifies.
MOST_TRAVERSAL_DEPTH = 128


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

    @classmethod
    def empty(cls, trees: Trees, width: int, vocab_size: int) -> Law:
        """Room for a list of that width for every node, unwritten."""
        batch, nodes = trees.parent.shape
        rows = batch * nodes
        return cls(
            native.ints(trees.parent, batch, nodes),
            trees.path_logprob.new_empty(rows * width),
            native.ints(trees.parent, rows * width),
            trees.parent.new_empty(rows + 1, dtype=torch.int64),
            vocab_size,
            width,
        )

    @classmethod
    def sparse(cls, arrays: Sequence[torch.Tensor], vocab_size: int, max_support: int) -> Law:
        """The law that has these `arrays`."""
        row_of_node, prob, token, row_offset = arrays
        return cls(row_of_node, prob, token, row_offset, vocab_size, max_support)

    @property
    def arrays(self) -> list[torch.Tensor]:
        """`row_of_node`, `prob`, `token` and `row_offset` of a sparse law."""
        if self.token is None or self.row_offset is None:
            raise ValueError("Law.arrays: law must be sparse, got dense rows")
        return [self.row_of_node, self.prob, self.token, self.row_offset]


class ScoreChanges(NamedTuple):
    """Scores that differ from the model's, in the order of `treespec.SamplingParams`.

    Attributes
    ----------
    penalties
        ``[B, 3]`` float64: repetition, presence and frequency; along a node's own path. They need
        the next three.
    history, history_length, prompt_length
        ``[B, T]``, ``[B]``, ``[B]``: the committed text, the root last, and how much of it is
        prompt.
    allowed
        ``[B, M, ceil(V / 32)]``: bit ``t % 32`` of word ``t // 32`` allows token t after node i.
    bias_token, bias
        ``[B, biases]`` int32 (-1: none) and float64.
    """

    penalties: torch.Tensor | None = None
    history: torch.Tensor | None = None
    history_length: torch.Tensor | None = None
    prompt_length: torch.Tensor | None = None
    allowed: torch.Tensor | None = None
    bias_token: torch.Tensor | None = None
    bias: torch.Tensor | None = None


class Verdicts(NamedTuple):
    """What a round has decided.

    Attributes
    ----------
    nodes
        ``[B, C]``: the root, the accepted nodes, and -1.
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
    changes: ScoreChanges | None
    seed: torch.Tensor
    sequence_id: torch.Tensor
    position: torch.Tensor
    lossy: bool


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
    changes: ScoreChanges | None = None,
    lossy: bool = False,
    status: torch.Tensor,
) -> Verdicts:
    """Keep the longest path the target itself could have produced, and draw one more token.

    The verdicts and the random draws are those of `treespec.verify_logits`.

    Parameters
    ----------
    trees
        With their draws.
    logits
        ``[B, M, V]`` float32, float16 or bfloat16.
    verifier
        A name of `treespec.verifier_names`.
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
    changes
        Penalties, allowed tokens and biases.
    lossy
        Admit verifiers that change the distribution of the text.

    Raises
    ------
    ValueError
        For a verifier that would bias such trees, or needs a law and has none.
    """
    batch = len(logits)
    verdicts = Verdicts(
        native.ints(logits, batch, max_depth + 1).fill_(-1),
        native.ints(logits, batch),
        native.ints(logits, batch),
    )
    key = (seed, sequence_id, position)
    given = _Input(trees, proposal, logits, law, sampling, changes, *key, lossy)
    size = native.ops.verify_workspace_bytes(verifier, given, verdicts)
    workspace = native.workspace(logits, size)
    native.ops.verify(native.stream(logits), verifier, given, workspace, verdicts, status)
    return verdicts
