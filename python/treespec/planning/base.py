# SPDX-License-Identifier: Apache-2.0
"""What decides about the trees of a round, and the plan that never changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treespec._core import TokenTree, TreeBuilder, Verdict
from treespec.config import SamplingParams
from treespec.growth import Recipe
from treespec.targets.base import Array, Needs, TargetStates

if TYPE_CHECKING:
    from treespec.generation import Generation


class Planner(ABC):
    """Decides, round by round, who drafts and which tree is grown.

    A decision may depend on anything that was known before the round: committed text, laws and
    states of earlier positions, what was accepted. It must not depend on the round's own draws or
    coins, or the text would be biased (verification.md, section 0.2); a deterministic tree alone
    may also be cut by its own scores.

    What is remembered of a sequence belongs into ``generation.plan_state``, which `begin` sets.

    Attributes
    ----------
    max_nodes
        No tree has more drafted nodes.
    needs
        States of the target that `begin` and `learn` read, beside the drafter's own; layers must be
        none of them.
    root_rows
        Whether `recipes` reads the `RootRows` of sources.
    """

    max_nodes: int
    needs = Needs()
    root_rows = False

    def check(self, params: SamplingParams) -> None:  # noqa: B027
        """ValueError, before any work, for a generation that this plan cannot serve."""

    def begin(  # noqa: B027 - not every planner remembers something
        self, generation: Generation, logits: Array, states: TargetStates
    ) -> None:
        """A new sequence, after its prefill.

        Parameters
        ----------
        logits
            ``[V]``: the row from which its first token was drawn.
        states
            The target's states over the prompt.
        """

    @abstractmethod
    def drafting(self, running: Sequence[Generation]) -> list[Generation]:
        """Those for which the drafter is asked; the others get a root alone."""

    @abstractmethod
    def recipes(self, drafting: Sequence[Generation], sources: Sequence[Any]) -> list[Recipe]:
        """A recipe for each source; called before any of its trees is grown."""

    def cut(self, running: Sequence[Generation], trees: Sequence[TokenTree]) -> list[TokenTree]:
        """The trees that are verified: beginnings of those that were grown."""
        return list(trees)

    def learn(  # noqa: B027
        self,
        running: Sequence[Generation],
        trees: Sequence[TokenTree],
        verdicts: Sequence[Verdict],
        logits: Sequence[Array],
        states: Sequence[TargetStates],
    ) -> None:
        """See what became of the trees.

        Parameters
        ----------
        logits, states
            Rows ``[N_i, V]`` and states of every tree's nodes; they hold until the next forward.
        """


class FixedPlan(Planner):
    """The same builder and node budget in every round."""

    def __init__(self, builder: TreeBuilder, node_budget: int) -> None:
        self.builder, self.max_nodes = builder, node_budget

    def drafting(self, running: Sequence[Generation]) -> list[Generation]:
        """All that can still emit what is drafted."""
        return [g for g in running if g.useful_depth > 0 and self.max_nodes > 0]

    def recipes(self, drafting: Sequence[Generation], sources: Sequence[Any]) -> list[Recipe]:
        """The recipe, as deep as tokens can still be emitted."""
        return [Recipe(self.builder, self.max_nodes, g.useful_depth) for g in drafting]
