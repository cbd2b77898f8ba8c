# SPDX-License-Identifier: Apache-2.0
"""What the host answers about the trees of static rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import treespec
from treespec.config import SamplingParams
from treespec.device import Trees
from treespec.generation import Generation
from treespec.static.grammar import Grammar, NodeColumns, packed_nodes

VOCAB, NODES = 40, 5


def trees() -> Trees:
    """A chain of two below the root, and a root with two children."""
    chain = treespec.TokenTree([7, 8, 9], parent=[-1, 0, 1])
    fork = treespec.TokenTree([3, 4, 5, 6], parent=[-1, 0, 0, 2])
    return Trees.pack([chain, fork], NODES, "cpu")


def generation(rule: Any, text: list[int], max_new_tokens: int = 9) -> Generation:
    """One that has emitted the last token of its text."""
    params = SamplingParams(allowed_tokens=rule, max_new_tokens=max_new_tokens)
    g = Generation(0, np.array(text[:-1], np.int32), params, 0, None, ())
    g.append(np.array(text[-1:], np.int32))
    return g


def answered(
    *rounds: list[tuple[int, Generation]],
) -> tuple[Callable[[int, int], list[int]], torch.Tensor]:
    """Which tokens may follow a node after these rounds, and the words that say so."""
    nodes, allowed = packed_nodes(trees()), torch.zeros(2, NODES, 2, dtype=torch.int32)
    grammar = Grammar(nodes, allowed)
    for running in rounds:
        grammar.ask()
        grammar.answer(running)

    def after(place: int, node: int) -> list[int]:
        words = allowed[place, node].numpy().view(np.uint8)
        return np.flatnonzero(np.unpackbits(words, bitorder="little")[:VOCAB]).tolist()

    return after, allowed


def only(*tokens: int) -> Any:
    return np.isin(np.arange(VOCAB), tokens)


def test_columns_are_those_of_the_trees() -> None:
    packed = packed_nodes(trees()).numpy()
    for numbers, token, parent in zip(
        packed, ([7, 8, 9], [3, 4, 5, 6]), ([-1, 0, 1], [-1, 0, 0, 2]), strict=True
    ):
        columns = NodeColumns.of(numbers)
        assert columns.token.tolist() == token and columns.parent.tolist() == parent
    assert columns.depth.tolist() == [0, 1, 1, 2]


def test_a_rule_is_asked_about_the_text_to_every_node() -> None:
    seen: list[list[int]] = []

    def rule(ids: Any) -> Any:
        seen.append(ids.tolist())
        return only(len(seen), 39)

    after, _ = answered([(0, generation(rule, [1, 2, 7])), (1, generation(rule, [3]))])
    assert seen[:3] == [[1, 2, 7], [1, 2, 7, 8], [1, 2, 7, 8, 9]]
    assert seen[3:] == [[3], [3, 4], [3, 5], [3, 5, 6]]
    assert [after(0, node) for node in range(3)] == [[1, 39], [2, 39], [3, 39]]
    assert [after(1, node) for node in range(4)] == [[4, 39], [5, 39], [6, 39], [7, 39]]


def test_all_tokens_may_follow_what_nobody_reads() -> None:
    """Sequences that have stopped, nodes too deep to be emitted, padding: whatever was before."""

    def nothing(ids: Any) -> Any:
        return only()

    def rule(ids: Any) -> Any:
        return only(5)

    every = list(range(VOCAB))
    both = [(0, generation(nothing, [7])), (1, generation(nothing, [3]))]
    after, allowed = answered(both)
    assert not after(0, 2) and not after(1, 3)
    after, allowed = answered(both, [(0, generation(rule, [7], max_new_tokens=3))])
    assert [after(0, node) for node in range(3)] == [[5], [5], every]
    assert (allowed[0, 3:] == -1).all() and (allowed[1] == -1).all()
    after, _ = answered(both, [(1, generation(None, [3]))])
    assert after(1, 0) == every


def test_another_number_of_tokens_is_refused() -> None:
    message = r"allowed_tokens must answer with \[V\] booleans, 2 words of 32 bits, got 1"
    with pytest.raises(ValueError, match=message):
        answered([(0, generation(lambda ids: np.ones(VOCAB // 2, bool), [7]))])
