# SPDX-License-Identifier: Apache-2.0
"""Block efficiency of a drafter without decoding: along texts that the target has written already.

With the walk verifier the emitted text is the target's own sample, whatever the drafter says. So a
finished text can be replayed: at each root build the tree, accept the longest part of the text that
it contains, go on behind it. Exact at every temperature, and no tree forward of the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from treespec import _core
from treespec.decoder import SpeculativeDecoder
from treespec.drafts.base import Drafter, DraftSettings
from treespec.growth import UNLIMITED, Recipe, RoundKey, grow_trees
from treespec.stats import Clock, Stats
from treespec.targets.base import Needs, TargetStates
from treespec.training.data import Int32Array, Sample


@dataclass(frozen=True)
class Tree:
    """How trees are built: arguments of `treespec.load`."""

    name: str
    builder: str
    node_budget: int
    options: Mapping[str, Any] = field(default_factory=dict)


def standard_trees(source_kind: str) -> tuple[Tree, ...]:
    """The three that every drafter reports; an expander has no table for the best-first builder."""
    expands = source_kind == "Expander"
    options = {"max_depth": 7, "threshold": 0.0} if expands else {}
    builder = "opt_tree" if expands else "dtree"
    return (
        Tree("chain-4", "chain", 4, {"max_depth": 4}),
        Tree("tree-16", builder, 16, options),
        Tree("tree-64", builder, 64, options),
    )


@dataclass(frozen=True)
class Trajectory:
    """A text of the target with the states a drafter asks for, at all its positions."""

    sample: Sample
    states: TargetStates


def write_trajectories(
    target: Any,
    prompts: Sequence[Int32Array],
    needs: Needs,
    *,
    new_tokens: int,
    temperature: float,
    seed: int = 0,
) -> list[Trajectory]:
    """Let the target continue prompts by `new_tokens` tokens each, past any end of text."""
    results = SpeculativeDecoder(target, None).generate(
        [prompt.tolist() for prompt in prompts],
        max_new_tokens=new_tokens,
        temperature=temperature,
        seed=seed,
        sequence_id=list(range(len(prompts))),
        ignore_eos=True,
    )
    out = []
    for prompt, result in zip(prompts, results, strict=True):
        text = np.array([*prompt.tolist(), *result.token_ids], dtype=np.int32)
        sequence = target.open(len(text))
        try:
            _, (states,) = target.prefill([sequence], [text], needs)
        finally:
            target.close(sequence)
        out.append(Trajectory(Sample(text, len(prompt)), states))
    return out


@dataclass(frozen=True)
class Replay:
    """What a drafter reached.

    Attributes
    ----------
    block_efficiency
        By text: tokens per round.
    offered_by_depth, accepted_by_depth
        ``[d]``: rounds in which a tree had a node of depth d + 1 to go on with, and in which one
        was right.
    """

    block_efficiency: list[float]
    offered_by_depth: list[int]
    accepted_by_depth: list[int]

    @property
    def mean(self) -> float:
        """Over the texts."""
        return float(np.mean(self.block_efficiency))

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        count = len(self.block_efficiency)
        return float(np.std(self.block_efficiency, ddof=1) / np.sqrt(count)) if count > 1 else 0.0


class _Walk:
    """One text on its way: the root is at `position`."""

    def __init__(self, drafter: Drafter, trajectory: Trajectory, spare: int) -> None:
        self.drafter, self.tokens = drafter, trajectory.sample.tokens
        self.states = trajectory.states if drafter.needs != Needs() else None
        self.start = self.position = trajectory.sample.prompt_length
        self.end = len(self.tokens) - spare
        self.stats = Stats()
        prompt = self.tokens[: self.start]
        self.session = drafter.begin(prompt, self._rows(0, self.start), len(self.tokens) + 256)
        drafter.observe(self.session, self.tokens[self.start : self.start + 1], None)

    @property
    def root(self) -> int:
        return int(self.tokens[self.position])

    def accept(self, tree: Any) -> None:
        """Follow the text through a tree, and go on behind what was in it."""
        path = self._path(tree)
        first, last = self.position, self.position + len(path)
        self.stats.count_round(tree, np.array(path, dtype=np.int32), len(path) + 1)
        self.position = last + 1
        if self.position < self.end:
            ids = self.tokens[first + 1 : last + 2]
            self.drafter.observe(self.session, ids, self._rows(first, last + 1))

    def _path(self, tree: Any) -> list[int]:
        """The nodes of the longest part of the text that the tree contains."""
        path: list[int] = []
        for wanted in self.tokens[self.position + 1 :]:
            children = np.flatnonzero(tree.parent == (path[-1] if path else 0))
            right = children[tree.token[children] == wanted]
            if not len(right):
                break
            path.append(int(right[0]))
        return path

    def _rows(self, first: int, last: int) -> TargetStates | None:
        return None if self.states is None else self.states.rows(np.arange(first, last))


def replay(
    drafter: Drafter, trajectories: Sequence[Trajectory], tree: Tree, *, spare: int = 16
) -> Replay:
    """Replay every text, all of them in step.

    Parameters
    ----------
    spare
        Tokens at the end of a text at which no round begins, so that the last one is not cut short.
    """
    recipe = Recipe(_core.TreeBuilder(tree.builder, **tree.options), tree.node_budget)
    settings = DraftSettings(
        max_depth=min(int(tree.options.get("max_depth", UNLIMITED)), tree.node_budget),
        node_budget=tree.node_budget,
    )
    walks = [_Walk(drafter, trajectory, spare) for trajectory in trajectories]
    clock = Clock()
    while running := [walk for walk in walks if walk.position < walk.end]:
        sources = drafter.draft([walk.session for walk in running], settings)
        keys = [RoundKey(position=walk.position) for walk in running]
        roots = [walk.root for walk in running]
        trees = grow_trees([recipe] * len(running), sources, keys, roots, clock)
        for walk, grown in zip(running, trees, strict=True):
            walk.accept(grown)
    for walk in walks:
        drafter.end(walk.session)
    offered = _sums([walk.stats.offered_by_depth for walk in walks])
    accepted = _sums([[0] * len(offered), *[walk.stats.accepted_by_depth for walk in walks]])
    reached = [(walk.position - walk.start) / max(walk.stats.rounds, 1) for walk in walks]
    return Replay(reached, offered, accepted)


def _sums(rows: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip_longest(*rows, fillvalue=0)]
