# SPDX-License-Identifier: Apache-2.0
"""Counters of a generation: what was drafted, what was accepted, where the time went."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

STEPS = ("prefill", "draft", "build", "mask", "target", "verify", "commit", "other")
MODEL_STEPS = ("prefill", "draft", "target")
ROUND_KINDS = ("plain", "chain", "tree")


class DraftedTree(Protocol):
    """What is counted of a verified tree: a `TokenTree` has it, and so has a static round."""

    @property
    def parent(self) -> npt.NDArray[np.int32]:
        """``[N]``, -1 for the root."""

    @property
    def max_depth(self) -> int:
        """Depth of the deepest node."""

    @property
    def expected_acceptance(self) -> float:
        """Sum of the path probabilities of the drafted nodes."""


@dataclass
class Stats:
    """Counters of one text, or of several; times are those of the whole batch it ran in.

    Attributes
    ----------
    texts
        Texts counted.
    rounds
        Target forwards after the prefill.
    tokens
        Tokens emitted, the first one of each text (from the prefill) included.
    drafted_nodes, accepted
        Drafted nodes verified, and how many of them were emitted.
    predicted_accepted
        How many the drafts promised: over all trees, the sum of the nodes' path probabilities
        (OPT-Tree, Wang et al., 2024, arXiv 2406.17276, section 3.1), which are the drafter's own or
        those of the builder's `calibration`. It foretells `accepted` for deterministic trees; what
        a rejection rule accepts of drawn tokens does not follow from their probabilities alone.
    shapes
        Rounds by ``(drafted nodes, depth)`` of their tree; ``(0, 0)`` is plain decoding.
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

    texts: int = 1
    rounds: int = 0
    tokens: int = 0
    drafted_nodes: int = 0
    accepted: int = 0
    predicted_accepted: float = 0.0
    shapes: dict[tuple[int, int], int] = field(default_factory=dict)
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
        return _share(self.tokens - self.texts, self.rounds)

    @property
    def wasted_nodes(self) -> int:
        """Drafted nodes that the target computed for nothing: verified and not emitted."""
        return self.drafted_nodes - self.accepted

    @property
    def wasted_share(self) -> float:
        """Part of the drafted nodes that were wasted; 0 when none was drafted."""
        return _share(self.wasted_nodes, self.drafted_nodes)

    @property
    def rounds_by_size(self) -> dict[int, int]:
        """Rounds by the number of drafted nodes, ascending."""
        return _marginal(self.shapes, 0)

    @property
    def rounds_by_depth(self) -> dict[int, int]:
        """Rounds by the depth of the tree, ascending; 0 where nothing was drafted."""
        return _marginal(self.shapes, 1)

    @property
    def rounds_by_kind(self) -> dict[str, int]:
        """Rounds that were ``"plain"`` (a root alone), of a ``"chain"``, and of a ``"tree"``."""
        kinds = dict.fromkeys(ROUND_KINDS, 0)
        for (nodes, depth), rounds in self.shapes.items():
            kinds["plain" if not nodes else "chain" if nodes == depth else "tree"] += rounds
        return kinds

    @property
    def total_seconds(self) -> float:
        """Wall time of everything."""
        return sum(self.seconds.values())

    @property
    def round_seconds(self) -> float:
        """Wall time of all rounds: everything but the prefill."""
        return sum(time for step, time in self.seconds.items() if step != "prefill")

    @property
    def tokens_per_second(self) -> float:
        """Tokens over the whole wall time, prefill included; 0 before the first."""
        return _share(self.tokens, self.total_seconds)

    @property
    def seconds_per_token(self) -> float:
        """Wall time of the rounds per token that they emitted; 0 before the first."""
        return _share(self.round_seconds, self.tokens - self.texts)

    @property
    def share_outside_models(self) -> float:
        """Part of the rounds' time that is spent in neither model."""
        models = self.seconds["draft"] + self.seconds["target"]
        return _share(self.round_seconds - models, self.round_seconds)

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Share of offered depths that were accepted."""
        return _ratios(self.accepted_by_depth, self.offered_by_depth)

    @property
    def acceptance_by_rank(self) -> list[float]:
        """Share of offered sibling ranks that were accepted."""
        return _ratios(self.accepted_by_rank, self.offered_by_rank)

    def speedup_estimate(self, plain_seconds: float) -> float:
        """How many times as fast as plain decoding the rounds were; 0 before the first.

        Parameters
        ----------
        plain_seconds
            Seconds of plain decoding per token, without the prefill: `seconds_per_token` of a run
            without a drafter, or `plain_seconds` of `treespec.tuning.measure_costs`. What plain
            decoding would have taken for the tokens of the rounds is divided by what they took; the
            prefill, the same for both, is on neither side.

        Raises
        ------
        ValueError
            For a time that is not above 0.
        """
        if not plain_seconds > 0:
            raise ValueError(
                f"speedup_estimate: plain_seconds must be above 0, got {plain_seconds}"
            )
        return _share(plain_seconds, self.seconds_per_token)

    def count_round(
        self, tree: DraftedTree, accepted_nodes: npt.NDArray[np.int32], emitted: int
    ) -> None:
        """Count one round, of whose tokens the first `emitted` were kept.

        Parameters
        ----------
        tree
            The verified one.
        accepted_nodes
            Ids of the accepted path, root excluded.
        """
        parent = tree.parent
        path = accepted_nodes[:emitted].tolist()
        self.rounds += 1
        self.tokens += emitted
        self.drafted_nodes += len(parent) - 1
        self.accepted += len(path)
        self.predicted_accepted += tree.expected_acceptance
        shape = (len(parent) - 1, tree.max_depth)
        self.shapes[shape] = self.shapes.get(shape, 0) + 1
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

    @staticmethod
    def total(parts: Iterable[Stats]) -> Stats:
        """Counters of several texts that ran one after the other, times and all."""
        out = Stats(texts=0)
        for part in parts:
            for name in _SUMMED:
                setattr(out, name, getattr(out, name) + getattr(part, name))
            for name in _SUMMED_LISTS:
                _bump(getattr(out, name), range(len(getattr(part, name))), getattr(part, name))
            for shape, rounds in part.shapes.items():
                out.shapes[shape] = out.shapes.get(shape, 0) + rounds
            for step, seconds in part.seconds.items():
                out.seconds[step] += seconds
        return out


_SUMMED = (
    "texts",
    "rounds",
    "tokens",
    "drafted_nodes",
    "accepted",
    "predicted_accepted",
    "draft_calls",
    "draft_rows",
)
_SUMMED_LISTS = ("offered_by_depth", "accepted_by_depth", "offered_by_rank", "accepted_by_rank")


def _bump(counts: list[int], places: Sequence[int], by: Sequence[int] | None = None) -> None:
    """Add 1, or the numbers `by`, at some places of a list that grows as needed."""
    for place, step in zip(places, by or [1] * len(places), strict=True):
        if place >= len(counts):
            counts.extend([0] * (place + 1 - len(counts)))
        counts[place] += step


def _ratios(accepted: list[int], offered: list[int]) -> list[float]:
    padded = [*accepted, *[0] * (len(offered) - len(accepted))]
    return [_share(hit, total) for hit, total in zip(padded, offered, strict=True)]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _marginal(shapes: dict[tuple[int, int], int], axis: int) -> dict[int, int]:
    rounds = dict.fromkeys(sorted({shape[axis] for shape in shapes}), 0)
    for shape, count in shapes.items():
        rounds[shape[axis]] += count
    return rounds


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
