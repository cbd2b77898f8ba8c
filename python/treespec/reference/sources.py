# SPDX-License-Identifier: Apache-2.0
"""What a drafter hands to a builder, in four shapes behind one method ``rows(nodes)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class FrontierNode:
    """A node whose children are wanted. ``index``: order of first hand-over, the root is 0."""

    index: int
    parent: int
    token: int
    depth: int
    state: int


class CandidateRow(NamedTuple):
    """Possible children of one node: [K] tokens, float32 log-probabilities, states."""

    token: npt.NDArray[np.int64]
    logprob: npt.NDArray[np.float32]
    state: npt.NDArray[np.int64]


class Reader(Protocol):
    """A source being read in one round."""

    kind: str
    max_depth: float

    def rows(self, nodes: Sequence[FrontierNode]) -> list[CandidateRow]:
        """One row per node, in order; every node's parent was handed over before."""
        ...


@dataclass
class Marginals:
    """Depth-wise lists ``[D, K]``: the same row for all nodes of a depth."""

    token: Any
    logprob: Any


@dataclass
class Transitions:
    """First-order lists ``[D, R, K]``; ``next[d, r, k]`` is the child's row below, or -1."""

    token: Any
    logprob: Any
    next: Any


def link_transitions(token: Any, logprob: Any, owner: Any) -> Transitions:
    """`Transitions` of a drafter that conditions on the token before, and on nothing earlier.

    ``token``, ``logprob`` [1 + (D - 1) * R, K]: the root's list, then R lists per depth; ``owner``
    [D - 1, R]: the token below which list r of a depth stands, negative for none. Of equal owners
    the first is followed. Depth 0 is padded with lists that nobody reads.

    Source: Rheinboldt, Berdoz, Wattenhofer, "TreeFlash: Parallel AR-Approximation for Faster
    Speculative Decoding", 2026, arXiv 2606.03819 (the drafter).
    """
    below = [[int(t) for t in row] for row in owner]
    num_rows = max(1, np.shape(owner)[1])
    shape = (len(below) + 1, num_rows, np.shape(token)[1])
    tokens, follow = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    scores = np.full(shape, -np.inf, np.float32)
    for place, (ids, row) in enumerate(zip(token, logprob, strict=True)):
        d, r = (0, 0) if place == 0 else (1 + (place - 1) // num_rows, (place - 1) % num_rows)
        tokens[d, r], scores[d, r] = ids, row
        owners = below[d] if d < len(below) else []
        follow[d, r] = [owners.index(t) if t >= 0 and t in owners else -1 for t in map(int, ids)]
    return Transitions(tokens, scores, follow)


@dataclass
class Trie:
    """Scored nodes; ``parent`` -1 is the root, parents first, ``logprob`` is conditional."""

    parent: Any
    token: Any
    logprob: Any


def open_source(source: Any) -> Reader:
    """A reader over any source, recognised by its fields."""
    if hasattr(source, "expand"):
        return _ExpanderReader(source)
    if hasattr(source, "next"):
        return _TransitionsReader(source)
    if hasattr(source, "parent"):
        return _TrieReader(source)
    if hasattr(source, "token"):
        return _MarginalsReader(source)
    raise TypeError(f"open_source: source must be one of the four shapes, got {type(source)}")


def _row(token: Any, logprob: Any, state: Any = None) -> CandidateRow:
    scores = np.asarray(logprob, dtype=np.float32)
    if np.any(np.isnan(scores)) or np.any(scores > 0):
        raise ValueError("rows: log-probabilities must be <= 0 and not NaN")
    ids = np.asarray(token, dtype=np.int64)
    states = np.zeros(len(ids), dtype=np.int64) if state is None else np.asarray(state, np.int64)
    return CandidateRow(ids, scores, states)


def _empty() -> CandidateRow:
    return _row([], [])


class _ExpanderReader:
    kind = "expander"
    max_depth = float("inf")

    def __init__(self, source: Any) -> None:
        self._source = source

    def rows(self, nodes: Sequence[FrontierNode]) -> list[CandidateRow]:
        table = np.asarray(self._source.expand(list(nodes)))
        return [_row(np.arange(table.shape[1]), row) for row in table]


class _MarginalsReader:
    kind = "marginals"

    def __init__(self, source: Any) -> None:
        self._source = source
        self.max_depth: float = len(source.token)

    def rows(self, nodes: Sequence[FrontierNode]) -> list[CandidateRow]:
        source = self._source
        return [
            _row(source.token[n.depth], source.logprob[n.depth])
            if n.depth < self.max_depth
            else _empty()
            for n in nodes
        ]


class _TransitionsReader:
    kind = "transitions"

    def __init__(self, source: Any) -> None:
        self._source = source
        self.max_depth: float = len(source.token)

    def rows(self, nodes: Sequence[FrontierNode]) -> list[CandidateRow]:
        source = self._source
        return [
            _row(
                source.token[n.depth][n.state],
                source.logprob[n.depth][n.state],
                source.next[n.depth][n.state],
            )
            if n.depth < self.max_depth and n.state >= 0
            else _empty()
            for n in nodes
        ]


class _TrieReader:
    kind = "trie"

    def __init__(self, source: Any) -> None:
        self._source = source
        self._children: dict[int, list[int]] = {}
        depth: list[int] = []
        for node, parent in enumerate(source.parent):
            self._children.setdefault(int(parent), []).append(node)
            depth.append(1 if parent < 0 else depth[parent] + 1)
        self.max_depth: float = max(depth, default=0)

    def rows(self, nodes: Sequence[FrontierNode]) -> list[CandidateRow]:
        # The state of a candidate is its trie node + 1, so that the root's 0 is nobody else's.
        rows = []
        for n in nodes:
            children = self._children.get(n.state - 1, [])
            children = sorted(children, key=lambda c: int(self._source.token[c]))
            token = [self._source.token[c] for c in children]
            logprob = [self._source.logprob[c] for c in children]
            rows.append(_row(token, logprob, [c + 1 for c in children]))
        return rows
