# SPDX-License-Identifier: Apache-2.0
"""Trees as large as they pay, by a measured profile: the native `BudgetRule` of every sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from treespec import _core
from treespec._core import BudgetRule, PlannedBuilders, TokenTree, Verdict
from treespec.growth import Recipe
from treespec.planning.base import Planner
from treespec.profile import Profile
from treespec.targets.base import Array, TargetStates

if TYPE_CHECKING:
    from treespec.generation import Generation

MAX_NODES = 64
_CALIBRATED = ("opt_tree", "dtree", "eagle2", "trie", "dyspec", "dyspec_threshold")


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
        self.max_nodes = max(1, min(max_nodes, profile.most_rows - 1))
        own = dict(options)
        if builder in _CALIBRATED and profile.calibration:
            own.setdefault("calibration", profile.calibration)
        self._builders = PlannedBuilders(builder, self.max_nodes, **own)
        self._chains = _suits_chains(self._builders.proposal, verifier, lossy)
        self._costs = profile.costs()
        self._acceptance = profile.acceptance_of(self._builders.proposal)

    def begin(self, generation: Generation, logits: Array, states: TargetStates) -> None:
        """A rule of its own for every sequence."""
        generation.plan_state = BudgetRule(
            self._costs,
            acceptance=self._acceptance,
            max_nodes=self.max_nodes,
            max_depth=self._builders.max_depth,
            ranked_trees=self._builders.ranked,
            chains=self._chains,
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
        """The builder of every plan, with its prices."""
        return [
            Recipe(self._builders.at(g.plan), g.plan.node_budget, g.plan.max_depth)
            for g in drafting
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


def _suits_chains(proposal: str, verifier: str, lossy: bool) -> bool:
    """Whether chains with this kind of draws can be verified."""
    if verifier == "auto":
        return True
    try:
        _core.check_verifier(verifier, proposal, True, lossy)
    except ValueError:
        return False
    return True
