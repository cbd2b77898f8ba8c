# SPDX-License-Identifier: Apache-2.0
"""Trees as large as they pay, by a measured profile: the native `BudgetRule` of every sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp2, log2
from typing import TYPE_CHECKING, Any

from treespec import _core
from treespec._core import BudgetRule, TokenTree, TreeBuilder, Verdict
from treespec.growth import Recipe
from treespec.planning.base import Planner
from treespec.profile import Profile
from treespec.targets.base import Array, TargetStates

if TYPE_CHECKING:
    from treespec.generation import Generation

MAX_NODES = 64
# Builders whose nodes come in order of falling score: a beginning is the best tree of its size.
_RANKED = ("opt_tree", "dtree", "eagle2", "trie")
_CALIBRATED = (*_RANKED, "dyspec", "dyspec_threshold")
# Prices are rounded to this many steps per factor of two.
_STEPS = 4
_DEEPEST = 2**30


class BudgetPlan(Planner):
    """Chooses node budget, depth and threshold of every round, a chain, or no tree at all.

    Costs are the profile's and no clock is read: with one seed and one profile the decisions are
    the same in every run. In a batch the trees of all sequences compete for the rows of a forward,
    so that a tree, though never the law of the text, depends on the batch mates.

    Parameters
    ----------
    builder, options
        The name and its options. Those given are kept: a `threshold` is not tuned, a `max_depth`
        is the deepest tree. Builders of ranked trees take the profile's calibration if none is
        given.
    profile
        Of this pair on this machine.
    max_nodes
        No tree is larger.
    verifier, lossy
        Of the decoder: a chain must suit them, or none is played.

    Raises
    ------
    ValueError
        For options that the builder refuses.
    """

    def __init__(
        self,
        builder: str,
        options: Mapping[str, Any],
        profile: Profile,
        max_nodes: int,
        *,
        verifier: str = "auto",
        lossy: bool = False,
    ) -> None:
        self._name, self._options = builder, dict(options)
        self.max_nodes = max(1, min(max_nodes, profile.most_rows - 1))
        if builder in _CALIBRATED and profile.calibration:
            self._options.setdefault("calibration", profile.calibration)
        self._max_depth = self._options.get("max_depth", _DEEPEST)
        if builder == "opt_tree":
            self._options["max_depth"] = min(self._max_depth, self.max_nodes)
        priced = ("threshold", "floor") if builder == "opt_tree" else ()
        self._priced = [name for name in priced if name not in options]
        self._tree = TreeBuilder(builder, **self._options)
        self._builders: dict[tuple[float, ...], TreeBuilder] = {}
        self._ranked = builder in _RANKED
        self._chain = _chain_like(self._tree, verifier, lossy)
        self._costs = profile.costs()
        self._acceptance = profile.acceptance_of(self._tree.proposal)

    def begin(self, generation: Generation, logits: Array, states: TargetStates) -> None:
        """A rule of its own for every sequence."""
        generation.plan_state = BudgetRule(
            self._costs,
            acceptance=self._acceptance,
            max_nodes=self.max_nodes,
            max_depth=min(self._max_depth, _DEEPEST),
            ranked_trees=self._ranked,
            chains=self._chain is not None,
        )

    def drafting(self, running: Sequence[Generation]) -> list[Generation]:
        """Those for which a tree or a chain pays, and those that look whether one would."""
        batch, out = len(running), []
        for g in running:
            g.plan = g.plan_state.plan(g.length, batch, g.useful_depth)
            if g.plan.node_budget > 0:
                out.append(g)
        return out

    def recipes(self, drafting: Sequence[Generation], sources: Sequence[Any]) -> list[Recipe]:
        """The builder of every plan, with its threshold."""
        return [
            Recipe(self._builder(g.plan), g.plan.node_budget, g.plan.max_depth) for g in drafting
        ]

    def cut(self, running: Sequence[Generation], trees: Sequence[TokenTree]) -> list[TokenTree]:
        """The nodes of the whole batch that are worth their rows."""
        sizes = _core.share_budget([g.plan_state for g in running], list(trees))
        return [
            tree if size == len(tree) - 1 else _core.beginning_of(tree, size)
            for tree, size in zip(trees, sizes, strict=True)
        ]

    def learn(
        self,
        running: Sequence[Generation],
        trees: Sequence[TokenTree],
        verdicts: Sequence[Verdict],
        logits: Sequence[Array],
        states: Sequence[TargetStates],
    ) -> None:
        """What was accepted; rows and states are not looked at."""
        for g, tree, verdict in zip(running, trees, verdicts, strict=True):
            g.plan_state.learn(tree, verdict)

    def _builder(self, plan: Any) -> TreeBuilder:
        if plan.kind == "chain":
            assert self._chain is not None
            return self._chain
        if not self._priced:
            return self._tree
        prices = tuple(_rounded(getattr(plan, name)) for name in self._priced)
        if prices not in self._builders:
            options = {**self._options, **dict(zip(self._priced, prices, strict=True))}
            self._builders[prices] = TreeBuilder(self._name, **options)
        return self._builders[prices]


def _rounded(price: float) -> float:
    """To a few values, so that few builders are made."""
    return exp2(round(log2(price) * _STEPS) / _STEPS) if price > 0 else 0.0


def _chain_like(tree: TreeBuilder, verifier: str, lossy: bool) -> TreeBuilder | None:
    """A builder of chains with the same kind of draws; None where no verifier would fit."""
    if tree.makes_chains or tree.proposal == "top_plus_one":
        return None
    chain = TreeBuilder("chain", proposal=tree.proposal)
    if verifier != "auto":
        try:
            _core.check_verifier(verifier, chain.proposal, True, lossy)
        except ValueError:
            return None
    return chain
