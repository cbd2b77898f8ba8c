# SPDX-License-Identifier: Apache-2.0
"""The plan of a trained selector: a (K, L1, L2) tree for every round, from what is known before it.

A choice reads the row from which the root was drawn, states of the models at the root and the token
before it, and how texts are sampled: functions of the text so far. Nothing that is drawn in the
round is looked at, so that draws stay independent given the past, and texts keep the target's law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treespec._core import TokenTree, TreeBuilder, Verdict
from treespec.config import SamplingParams
from treespec.drafts.base import Drafter
from treespec.growth import Recipe
from treespec.planning.base import Planner
from treespec.selector.actions import Action
from treespec.selector.features import STATES, RootView, as_float32
from treespec.selector.selector import Selector
from treespec.targets.base import Array, Needs, TargetStates, in_numpy

if TYPE_CHECKING:
    from treespec.generation import Generation


@dataclass(frozen=True)
class TargetBefore:
    """The target at the token before the root.

    Attributes
    ----------
    logits
        ``[V]``, a copy: the root was drawn from it.
    state
        ``[H]``, or None when the selector does not read it.
    """

    logits: npt.NDArray[Any]
    state: npt.NDArray[np.float32] | None


class SelectorPlan(Planner):
    """Builds the tree that a selector chooses, round by round.

    Parameters
    ----------
    selector
        Its actions are options of the builder ``"delayed"``.
    drafter
        Must keep what it knows at a root (`RootRows`).
    node_budget, max_depth
        Larger actions are not chosen.

    Attributes
    ----------
    actions
        Those that fit.

    Raises
    ------
    NotImplementedError
        If the drafter cannot tell what the selector reads.
    ValueError
        If no action is that small.
    """

    root_rows = True

    def __init__(
        self, selector: Selector, drafter: Drafter, node_budget: int, max_depth: int
    ) -> None:
        _check_drafter(selector, drafter)
        fitting = [
            action
            for action in selector.config.actions
            if action.nodes <= node_budget and action.depth <= max_depth
        ]
        if not fitting:
            raise ValueError(
                "load: node_budget and max_depth must admit an action of the selector, got "
                f"{node_budget} and {max_depth}"
            )
        self.selector, self.max_nodes, self.max_depth = selector, node_budget, max_depth
        self.actions = tuple(fitting)
        self._builders = {a: TreeBuilder("delayed", **a.options) for a in fitting}
        self._reads_target = "target_before" in selector.states
        self.needs = Needs(last_hidden=self._reads_target)

    def check(self, params: SamplingParams) -> None:
        """ValueError for sampling that the selector was not trained for."""
        self.selector.check_sampling(params)

    def begin(self, generation: Generation, logits: Array, states: TargetStates) -> None:
        """Remember the row of the first token."""
        last = None if states.last_hidden is None else states.last_hidden[-1]
        generation.plan_state = self._before(logits, last)

    def drafting(self, running: Sequence[Generation]) -> list[Generation]:
        """All that can still emit what is drafted."""
        return [g for g in running if g.useful_depth > 0]

    def recipes(self, drafting: Sequence[Generation], sources: Sequence[Any]) -> list[Recipe]:
        """The builder of each sequence's action."""
        recipes = []
        for g, source in zip(drafting, sources, strict=True):
            action = self.choose(g, source)
            recipes.append(Recipe(self._builders[action], action.nodes, g.useful_depth))
        return recipes

    def choose(self, g: Generation, source: Any) -> Action:
        """The action of the coming round: a function of the text so far."""
        rows, before = source.root_rows, g.plan_state
        view = RootView.of(
            before.logits,
            g.row_params,
            g.tokens[:-1],
            g.prompt_length,
            rows,
            source.settings,
        )
        known = dict(zip(STATES, (before.state, rows.before_state, rows.root_state), strict=True))
        states = [as_float32(known[name]) for name in self.selector.states]
        depth = min(self.max_depth, g.useful_depth)
        return self.selector.choose_at(view, states, self.max_nodes, depth)

    def learn(
        self,
        running: Sequence[Generation],
        trees: Sequence[TokenTree],
        verdicts: Sequence[Verdict],
        logits: Sequence[Array],
        states: Sequence[TargetStates],
    ) -> None:
        """Remember the row after the last accepted node: the next root was drawn from it."""
        for g, verdict, rows, own in zip(running, verdicts, logits, states, strict=True):
            node = int(verdict.accepted_nodes[-1]) if verdict.num_accepted else 0
            state = None if own.last_hidden is None else own.last_hidden[node]
            g.plan_state = self._before(rows[node], state)

    def _before(self, logits: Array, state: Array | None) -> TargetBefore:
        reads = self._reads_target and state is not None
        return TargetBefore(in_numpy(logits).copy(), as_float32(state).copy() if reads else None)


def _check_drafter(selector: Selector, drafter: Drafter) -> None:
    if not getattr(drafter, "reads_root_rows", False):
        raise NotImplementedError(
            "load: a selector needs a drafter that is a causal language model, got "
            f"{type(drafter).__name__}"
        )
    wanted = [name for name in selector.states if name.startswith("draft")]
    if wanted and not getattr(drafter, "has_root_states", False):
        raise NotImplementedError(
            f"load: this selector reads states of the drafter ({', '.join(wanted)}), and "
            f"{type(drafter).__name__} has none; train one that reads laws only"
        )
