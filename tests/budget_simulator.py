# SPDX-License-Identifier: Apache-2.0
"""A pair whose acceptance and costs are known: rounds without models, on the model's own clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from treespec import _core

VOCAB = 32
Rows = Callable[[np.random.Generator, int], Any]  # (rng, n) -> [n, VOCAB] probabilities


def dirichlet(concentration: float) -> Rows:
    """Rows of random sharpness: a drafter that knows how sure it may be."""
    return lambda rng, n: rng.dirichlet(np.full(VOCAB, concentration), n)


def perfect(rng: np.random.Generator, n: int) -> Any:
    """The drafter is always right, and knows it."""
    rows = np.full((n, VOCAB), 1e-12)
    rows[:, 3] = 1.0 - 1e-11
    return rows


def useless(rng: np.random.Generator, n: int) -> Any:
    """The drafter is never right; what it says is chosen by `claims`."""
    return np.zeros((n, VOCAB))


@dataclass
class Costs:
    """Seconds of a simulated machine."""

    target: Mapping[int, float]
    call: Mapping[int, float]
    drafted_round: float = 0.0
    plain_round: float = 0.0
    by_level: bool = True

    def model(self) -> Any:
        return _core.CostModel(
            target=[(0, 1, dict(self.target))],
            draft_call=dict(self.call),
            drafts_by_level=self.by_level,
            drafted_round_seconds=self.drafted_round,
            plain_round_seconds=self.plain_round,
        )


@dataclass
class Simulation:
    """Plays rounds under a rule, or with a fixed size, and counts tokens and seconds.

    `truth` are the laws of the target given what the drafter knows, `claims` what the drafter says;
    None: the truth.
    """

    costs: Costs
    truth: Rows
    claims: Rows | None = None
    seed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    kinds: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.model = self.costs.model()
        self.backlog = 1

    def play(self, rule: Any, tokens: int) -> float:
        """Tokens per second of a text under a `BudgetRule`."""
        start, begun = self.tokens, self.seconds
        while self.tokens < start + tokens:
            plan = rule.plan(self.tokens, 1, 10**6)
            self.kinds.append(plan.kind)
            if plan.kind == "plain":
                self._plain(rule)
                continue
            builder = "chain" if plan.kind == "chain" else "opt_tree"
            options = {"max_depth": min(plan.max_depth, plan.node_budget)}
            if builder == "opt_tree":
                options |= {"threshold": plan.threshold, "floor": plan.floor}
            tree, calls, laws = self._grow(builder, plan.node_budget, options)
            (kept,) = _core.share_budget([rule], [tree])
            self._finish(_core.beginning_of(tree, kept), calls, laws, rule)
        return (self.tokens - start) / (self.seconds - begun)

    def play_fixed(self, builder: str, budget: int, tokens: int, **options: Any) -> float:
        """Tokens per second with one size."""
        start, begun = self.tokens, self.seconds
        while self.tokens < start + tokens:
            tree, calls, laws = self._grow(builder, budget, options)
            self._finish(tree, calls, laws, None)
        return (self.tokens - start) / (self.seconds - begun)

    def plain_rate(self) -> float:
        return 1.0 / (self.model.target_seconds(0, 1, 1)[0] + self.costs.plain_round)

    def _plain(self, rule: Any) -> None:
        root = _core.root_tree(0)
        rule.learn(root, _verdict(root, []))
        self._count(0, self.model.target_seconds(0, 1, 1)[0] + self.costs.plain_round)
        self.backlog += 1

    def _grow(self, builder: str, budget: int, options: Mapping[str, Any]) -> Any:
        growth = _core.TreeBuilder(builder, **options).begin(budget)
        calls: list[int] = []
        laws: dict[tuple[int, ...], Any] = {}
        paths: list[tuple[int, ...]] = []
        while len(frontier := growth.frontier(0)):
            for node in frontier:
                above = paths[node.parent] if node.index else None
                paths.append(() if above is None else (*above, node.token))
            truth = self.truth(self.rng, len(frontier))
            claims = truth if self.claims is None else self.claims(self.rng, len(frontier))
            for path, law in zip(paths[-len(frontier) :], truth, strict=True):
                laws[path] = law
            with np.errstate(divide="ignore"):
                growth.supply(np.minimum(np.log(claims), 0).astype(np.float32))
            calls.append(len(frontier))
        return growth.finish(0), calls, laws

    def _finish(self, tree: Any, calls: list[int], laws: Any, rule: Any) -> None:
        accepted, path = [], ()
        while path in laws:
            law = laws[path]
            drawn = int(self.rng.choice(VOCAB, p=law / law.sum())) if law.sum() > 0 else -1
            node = accepted[-1] if accepted else 0
            right = [c for c in tree.draws[node] if tree.token[c] == drawn]
            if not right:
                break
            accepted.append(right[0])
            path = (*path, drawn)
        if rule is not None:
            rule.learn(tree, _verdict(tree, accepted))
        rows = len(tree)
        seconds = self.model.target_seconds(0, 1, rows)[-1] + self.costs.drafted_round
        call_rows = [self.backlog, *calls[1:]] if self.costs.by_level else [self.backlog]
        seconds += sum(self.model.draft_seconds(1, 1.0, n) for n in call_rows)
        self._count(len(accepted), seconds)
        self.sizes.append(rows - 1)
        self.backlog = len(accepted) + 1

    def _count(self, accepted: int, seconds: float) -> None:
        self.tokens += accepted + 1
        self.seconds += seconds


def _verdict(tree: Any, accepted: list[int]) -> Any:
    """A verdict with this path, by laws that leave no choice."""
    rows = np.zeros((len(tree), VOCAB + 1), dtype=np.float64)
    rows[:, VOCAB] = 1.0  # nobody drafts it
    for node in accepted:
        rows[tree.parent[node]] = 0.0
        rows[tree.parent[node], tree.token[node]] = 1.0
    verdict = _core.verify(tree, rows, None, "greedy", 0, 0, 0)
    assert verdict.accepted_nodes.tolist() == accepted
    return verdict
