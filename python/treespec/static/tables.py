# SPDX-License-Identifier: Apache-2.0
"""Drafters of one pass in a static round: their lists are all there before a tree is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from treespec.device import Law, Trees
from treespec.static.drafting import Drafted, DraftRecipe, DraftStep, Observed
from treespec.static.levels import drawn_law
from treespec.static.one_pass import OnePassDrafter
from treespec.static.ops import encode_options
from treespec.static.plan import TABLE_BUILDERS, check_envelope

OPS = torch.ops.treespec


class TableState(NamedTuple):
    """The drafter's part of a static round.

    Attributes
    ----------
    context
        Of the `OnePassDrafter`.
    """

    context: Any

    def tensors(self) -> list[torch.Tensor]:
        """What one step of a draft leaves for the next: nothing."""
        return []


class TableDrafter:
    """Builds trees from the lists of a one-pass drafter.

    Parameters
    ----------
    one_pass
        Drafts the lists.
    recipe
        What every draft is made for.

    Raises
    ------
    NotImplementedError
        For builders that do not read tables on a device.
    """

    widths: tuple[int, ...] | None = (1,)
    max_rows = 1

    def __init__(self, one_pass: OnePassDrafter, recipe: DraftRecipe) -> None:
        check_envelope(recipe.builder, recipe.node_budget, TABLE_BUILDERS)
        self.one_pass, self.recipe = one_pass, recipe
        self.needs, self.max_depth = one_pass.needs, one_pass.max_depth
        self.spare_rows = max(one_pass.num_slots, self.max_depth + 1)
        name, options = recipe.builder.name, encode_options(recipe.options)
        self._built = (name, options, recipe.node_budget)

    def prepare(self, sessions: Sequence[Any]) -> None:
        """See `StaticDrafter`: nothing is put off."""

    def make_state(self, sessions: Sequence[Any], capacity: int) -> TableState:
        """See `StaticDrafter`."""
        return TableState(self.one_pass.make_context(len(sessions), capacity))

    def load(self, state: TableState, sessions: Sequence[Any]) -> None:
        """See `StaticDrafter`."""
        for place, session in enumerate(sessions):
            self.one_pass.load(state.context, place, session)

    def begin(self, state: TableState, step: DraftStep) -> None:
        """See `StaticDrafter`: the lists are of `finish`."""

    def grow(self, state: TableState, step: DraftStep, width: int, num_slots: int) -> None:
        """See `StaticDrafter`: there are no further calls."""
        raise AssertionError("a one-pass drafter is called once")

    def finish(self, state: TableState, step: DraftStep) -> Drafted:
        """See `StaticDrafter`."""
        lists = self.one_pass.draft(
            state.context, step.prefix_length, step.root, step.envelope, step.status
        )
        if not self.recipe.drawn:
            trees = OPS.build_trees(*self._built, *lists, step.root, step.status)
            return Drafted(Trees(*trees), None)
        law = drawn_law(lists.logprob, step.params, tempered=self.recipe.temperature is None)
        vocab_size, width = self.recipe.vocab_size, lists.token.shape[-1]
        drawn = OPS.draw_trees(
            *self._built,
            vocab_size,
            *lists._replace(logprob=law),
            step.root,
            step.key,
            step.status,
        )
        row_of_node, prob, token, row_offset = drawn[7:]
        law_of_draws = Law(row_of_node, prob, token, row_offset, vocab_size, width)
        return Drafted(Trees(*drawn[:7]), law_of_draws)

    def observe(self, state: TableState, step: DraftStep, observed: Observed) -> None:
        """Take over the target's states of the root and the accepted nodes."""
        states = observed.states.rows(observed.nodes)
        self.one_pass.observe(
            state.context, states, step.prefix_length, observed.count, step.active
        )
