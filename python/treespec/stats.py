# SPDX-License-Identifier: Apache-2.0
"""Counters of a generation: what was drafted, what was accepted, where the time went."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import numpy.typing as npt

STEPS = ("prefill", "draft", "build", "mask", "target", "verify", "commit", "other")
MODEL_STEPS = ("prefill", "draft", "target")


@dataclass
class Stats:
    """Counters of one sequence; times are those of the whole batch it ran in.

    Attributes
    ----------
    rounds
        Target forwards after the prefill.
    tokens
        Tokens emitted, the first one (from the prefill) included.
    drafted_nodes, accepted
        Drafted nodes verified, and how many of them were emitted.
    offered_by_depth, accepted_by_depth
        ``[d - 1]``: rounds in which a node of depth d had its parent accepted, and in which one of
        depth d was accepted itself.
    offered_by_rank, accepted_by_rank
        ``[r]``: accepted nodes whose r-th child existed and was looked at, and was accepted.
    draft_calls, draft_rows
        Passes of a drafting model, and the rows (nodes, or blocks) they computed.
    seconds
        Wall time by step.
    """

    rounds: int = 0
    tokens: int = 0
    drafted_nodes: int = 0
    accepted: int = 0
    offered_by_depth: list[int] = field(default_factory=list)
    accepted_by_depth: list[int] = field(default_factory=list)
    offered_by_rank: list[int] = field(default_factory=list)
    accepted_by_rank: list[int] = field(default_factory=list)
    draft_calls: int = 0
    draft_rows: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @property
    def block_efficiency(self) -> float:
        """Mean tokens emitted per target forward after the prefill; 0 before the first."""
        return (self.tokens - 1) / self.rounds if self.rounds else 0.0

    @property
    def total_seconds(self) -> float:
        """Wall time of everything."""
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens over the whole wall time, prefill included; 0 before the first."""
        return self.tokens / self.total_seconds if self.total_seconds else 0.0

    @property
    def share_outside_models(self) -> float:
        """Part of the rounds' time that is spent in neither model."""
        rounds = sum(time for step, time in self.seconds.items() if step != "prefill")
        models = self.seconds["draft"] + self.seconds["target"]
        return (rounds - models) / rounds if rounds else 0.0

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Share of offered depths that were accepted."""
        return _ratios(self.accepted_by_depth, self.offered_by_depth)

    @property
    def acceptance_by_rank(self) -> list[float]:
        """Share of offered sibling ranks that were accepted."""
        return _ratios(self.accepted_by_rank, self.offered_by_rank)

    def count_round(
        self, parent: npt.NDArray[np.int32], accepted_nodes: npt.NDArray[np.int32], emitted: int
    ) -> None:
        """Count one round, of whose tokens the first `emitted` were kept.

        Parameters
        ----------
        parent
            ``[N]``, of the verified tree.
        accepted_nodes
            Ids of the accepted path, root excluded.
        """
        path = accepted_nodes[:emitted].tolist()
        self.rounds += 1
        self.tokens += emitted
        self.drafted_nodes += len(parent) - 1
        self.accepted += len(path)
        for depth, node in enumerate([0, *path]):
            children = (parent == node).nonzero()[0].tolist()
            if not children or depth == emitted:
                break
            taken = depth < len(path)
            rank = children.index(path[depth]) if taken else len(children)
            _bump(self.offered_by_depth, [depth])
            _bump(self.accepted_by_depth, [depth] if taken else [])
            _bump(self.offered_by_rank, range(min(rank + 1, len(children))))
            _bump(self.accepted_by_rank, [rank] if taken else [])


def _bump(counts: list[int], places: range | list[int]) -> None:
    for place in places:
        if place >= len(counts):
            counts.extend([0] * (place + 1 - len(counts)))
        counts[place] += 1


def _ratios(accepted: list[int], offered: list[int]) -> list[float]:
    padded = [*accepted, *[0] * (len(offered) - len(accepted))]
    return [hit / total if total else 0.0 for hit, total in zip(padded, offered, strict=True)]


class Clock:
    """Books wall time to steps; a step inside another is taken out of it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STEPS, 0.0)
        self.draft_calls = 0
        self.draft_rows = 0
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Book the time of the block to `name`, whatever was running before."""
        self._book()
        self._open.append(name)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def count_draft(self, rows: int) -> None:
        """Count one expander call over `rows` nodes."""
        self.draft_calls += 1
        self.draft_rows += rows

    def _book(self) -> None:
        now = perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
