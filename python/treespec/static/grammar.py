# SPDX-License-Identifier: Apache-2.0
"""Allowed tokens of static rounds: the host reads the trees and answers while the target runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from treespec.device import Trees
from treespec.generation import Generation, pack_bits
from treespec.static.capture import Mailbox, Outbox

_ALL = np.uint32(2**32 - 1)


class NodeColumns(NamedTuple):
    """A sequence's tree, on the host.

    Attributes
    ----------
    token, parent, depth
        ``[N]`` int32.
    """

    token: npt.NDArray[np.int32]
    parent: npt.NDArray[np.int32]
    depth: npt.NDArray[np.int32]

    @classmethod
    def of(cls, numbers: npt.NDArray[np.int32]) -> NodeColumns:
        """Out of a row of `packed_nodes`."""
        columns = numbers[1:].reshape(3, -1)
        return cls(*columns[:, : numbers[0]])


def packed_nodes(trees: Trees) -> torch.Tensor:
    """``[B, 1 + 3 M]`` int32: how many nodes, then tokens, parents and depths of `Trees`."""
    return torch.cat([trees.num_nodes[:, None], trees.token, trees.parent, trees.depth], 1)


class Grammar:
    """Between the trees of a round and their verdicts: says which tokens may follow each node.

    Parameters
    ----------
    nodes
        ``[B, 1 + 3 M]`` int32 of `packed_nodes`, on the device.
    allowed
        ``[B, M, ceil(V / 32)]`` int32, on the device: written here.
    """

    def __init__(self, nodes: torch.Tensor, allowed: torch.Tensor) -> None:
        self._nodes, self._allowed = Mailbox(nodes), Outbox(allowed)

    def ask(self) -> None:
        """Send the trees to the host, behind the work queued so far."""
        self._nodes.send()

    def answer(self, running: Iterable[tuple[int, Generation]]) -> None:
        """Wait for the trees and send what may follow their nodes.

        Parameters
        ----------
        running
            Sequences that go on, with their places; all tokens may follow elsewhere.

        Raises
        ------
        ValueError
            For a rule that answers with another number of tokens.
        """
        nodes, words = self._nodes.receive(), self._allowed.values.view(np.uint32)
        words.fill(_ALL)
        for place, g in running:
            _write_allowed(g, NodeColumns.of(nodes[place]), words[place])
        self._allowed.send()


def _write_allowed(g: Generation, tree: NodeColumns, words: npt.NDArray[np.uint32]) -> None:
    """Ask the rule for every node whose next token could still be emitted."""
    rule = g.params.allowed_tokens
    if rule is None:
        return
    for node in np.flatnonzero(tree.depth <= g.useful_depth).tolist():
        own = pack_bits(rule(g.text_to(tree, node)))
        if own.shape != words[node].shape:
            raise ValueError(
                f"generate: allowed_tokens must answer with [V] booleans, {words.shape[1]} words "
                f"of 32 bits, got {len(own)}"
            )
        words[node] = own
