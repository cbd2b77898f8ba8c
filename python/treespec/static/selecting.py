# SPDX-License-Identifier: Apache-2.0
"""A selector in static rounds: (K, L1, L2) of every sequence, chosen where they are read.

As step by step (`treespec.planning.selector`) a choice is a function of the text so far, never of
what is drawn in the round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from treespec import _core
from treespec.device import Verdicts
from treespec.drafts.expander import RootRows
from treespec.planning.selector import SelectorPlan, TargetBefore
from treespec.selector.features import STATES
from treespec.static.runner import RowStates

if TYPE_CHECKING:
    from treespec.static.drafting import DraftStep
    from treespec.static.round import Biases

OPS = torch.ops.treespec

# What `treespec::device::choose_shapes` and `root_scalars` hold: two rows of the network in the
# shared memory of a block, and a vocabulary.
_WIDEST_ROW = (99 * 1024 - 64) // 8
_MOST_TOKENS = 2**18


class TargetPast:
    """The target at the tokens before the roots, and where texts end; written in place.

    Parameters
    ----------
    example
        What a sequence's plan knows of its prompt (`SelectorPlan.begin`).
    batch
        B.
    like
        Of the dtype and the device of the target.

    Attributes
    ----------
    logits
        ``[B, V]``: the roots were drawn from them.
    state
        ``[B, H]``, the state that gave them; H is 0 when the selector does not read it.
    max_length
        ``[B]`` int32: most tokens, the prompt included.
    """

    def __init__(self, example: TargetBefore, batch: int, like: torch.Tensor) -> None:
        width = 0 if example.state is None else len(example.state)
        self.logits = like.new_zeros(batch, len(example.logits))
        self.state = like.new_zeros(batch, width)
        self.max_length = like.new_zeros(batch, dtype=torch.int32)

    def load(self, place: int, known: TargetBefore, max_length: int) -> None:
        """Take over what the plan of a sequence knows."""
        self.logits[place] = torch.from_numpy(known.logits)
        if known.state is not None:
            self.state[place] = torch.from_numpy(known.state)
        self.max_length[place] = max_length

    def keep(
        self, active: torch.Tensor, verdicts: Verdicts, logits: torch.Tensor, states: RowStates
    ) -> None:
        """Remember the rows after the last accepted nodes, of active sequences.

        Parameters
        ----------
        active
            ``[B]``, 1 or 0.
        logits, states
            ``[B, M, V]`` and those of the M nodes.
        """
        last = verdicts.num_accepted.clamp(min=0).long()[:, None]
        node = verdicts.nodes.gather(1, last).clamp(min=0).long()
        _keep_row(self.logits, active, node, logits)
        if self.state.shape[1]:
            assert states.last_hidden is not None, "states that the selector reads"
            _keep_row(self.state, active, node, states.last_hidden)


class Past(NamedTuple):
    """What a choice reads of the target and the text.

    Attributes
    ----------
    history, prompt_length
        ``[B, T]``, ``[B]`` int32, see `treespec.static.round.RoundState`.
    target
        What was known before the root.
    biases
        Logit biases of the target; None: none.
    """

    history: torch.Tensor
    prompt_length: torch.Tensor
    target: TargetPast
    biases: Biases | None


class RootStates(NamedTuple):
    """A drafter's rows around the roots, as `RootRows` has them; written in place.

    Attributes
    ----------
    before, root
        ``[B, V_draft]``: logits after the tokens before the roots, and after the roots.
    before_state, root_state
        ``[B, H]``: the states that gave them; H is 0 when the selector does not read them.
    """

    before: torch.Tensor
    root: torch.Tensor
    before_state: torch.Tensor
    root_state: torch.Tensor

    def load(self, place: int, rows: RootRows) -> None:
        """Take over the rows at the first root; its own is computed again."""
        self.before[place] = rows.before
        if self.before_state.shape[1]:
            self.before_state[place] = rows.before_state

    def learn(self, count: torch.Tensor, logits: torch.Tensor, states: torch.Tensor | None) -> None:
        """Keep the last two of ``[B, C, X]`` rows of committed tokens.

        Where `count` ``[B]`` is 1, the token before the root was the root, see `pass_on`.
        """
        several = (count > 1)[:, None]
        pairs = [(self.before, self.root, logits), (self.before_state, self.root_state, states)]
        for before, root, rows in pairs:
            if rows is not None and root.shape[1]:
                root.copy_(_row(rows, count - 1))
                before.copy_(torch.where(several, _row(rows, count - 2), before))

    def pass_on(self, active: torch.Tensor) -> None:
        """The roots of active sequences ``[B]`` are tokens before a root from now on."""
        for before, root in ((self.before, self.root), (self.before_state, self.root_state)):
            before.copy_(torch.where((active == 1)[:, None], root, before))


class StaticSelector:
    """Chooses the trees of a batch on its device, as `SelectorPlan.choose` does on the host.

    Parameters
    ----------
    plan
        Of the decoder.
    draft_temperature
        Of the draft law; None: the text's.
    vocab_size
        V of the target.
    device
        Where rounds are played.

    Attributes
    ----------
    states
        Names of the hidden states it reads.
    actions
        Those that fit the plan's bounds.
    node_budget
        Nodes of the largest of them.
    options
        Those of ``"delayed"`` that hold all of them.

    Raises
    ------
    NotImplementedError
        For more than the device functions hold.
    """

    def __init__(
        self,
        plan: SelectorPlan,
        draft_temperature: float | None,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        selector = plan.selector
        self.needs, self.states, self.actions = plan.needs, selector.states, plan.actions
        self.node_budget = max(action.nodes for action in self.actions)
        self.options = {"num_paths": max(action.paths for action in self.actions)}
        self.builder = _core.TreeBuilder("delayed", **self.options)
        self._sizes = selector.config.sizes
        self._check_sizes(vocab_size)
        shapes = np.array(selector.config.actions, np.int32)
        self._parameters = torch.from_numpy(selector.parameters).to(device)
        self._shapes = torch.from_numpy(shapes).to(device)
        self._nothing = torch.from_numpy(np.array([1, 0, 0], np.int32)).to(device)
        self._max_nodes, self._max_depth = plan.max_nodes, plan.max_depth
        self._draft_temperature = draft_temperature

    @property
    def reads_draft_states(self) -> bool:
        """Whether it reads hidden states of the drafter."""
        return any(name.startswith("draft") for name in self.states)

    def choose(self, step: DraftStep, rows: RootStates) -> torch.Tensor:
        """``[B, 3]`` int32: num_paths, trunk and branch of every sequence.

        Nothing is drafted for sequences that are not active or emit one more token only.
        """
        past = step.past
        assert past is not None, "rounds that keep what a selector reads"
        scalars = OPS.root_scalars(
            past.target.logits,
            rows.before,
            rows.root,
            step.params,
            self._draft_params(step.params),
            past.history,
            step.prefix_length,
            past.prompt_length,
            *(past.biases or (None, None)),
            step.status,
        )
        known = (past.target.state, rows.before_state, rows.root_state)
        states = dict(zip(STATES, known, strict=True))
        useful = past.target.max_length - step.prefix_length - 2
        drafts = (useful > 0) & (step.active == 1)
        chosen = OPS.choose_shapes(
            self._sizes.state_widths,
            self._sizes.projection_width,
            self._sizes.layer_widths,
            self._parameters,
            self._shapes,
            [states[name].float() for name in self.states],
            scalars,
            torch.full_like(useful, self._max_nodes),
            torch.where(drafts, useful, self._max_depth).clamp(max=self._max_depth),
            step.status,
        )
        lengths = self._shapes[chosen.clamp(min=0).long()]
        return torch.where(drafts[:, None], lengths, self._nothing)

    def _draft_params(self, params: torch.Tensor) -> torch.Tensor:
        """``[B, 3]``: temperature, top-k and top-p of the drafter, as `DraftSettings` has them."""
        temperature, top_k, top_p = params[:, :3].unbind(1)
        greedy = temperature == 0
        heat = temperature.masked_fill(greedy, 1.0)
        if self._draft_temperature is not None:
            heat = torch.full_like(heat, self._draft_temperature)
        return torch.stack([heat, top_k.masked_fill(greedy, 0), top_p.masked_fill(greedy, 1)], 1)

    def _check_sizes(self, vocab_size: int) -> None:
        inputs = len(self._sizes.state_widths) * self._sizes.projection_width
        rows = (inputs + self._sizes.num_scalars, *self._sizes.layer_widths)
        for name, value, most in (
            ("the widest layer of the selector", max(rows), _WIDEST_ROW),
            ("the vocabulary of the target with a selector", vocab_size, _MOST_TOKENS),
        ):
            if value > most:
                raise NotImplementedError(f"graph: {name} must be at most {most}, got {value}")


def _keep_row(
    kept: torch.Tensor, active: torch.Tensor, place: torch.Tensor, rows: torch.Tensor
) -> None:
    """Row `place` ``[B, 1]`` of ``[B, M, X]`` into ``[B, X]``, where active."""
    kept.copy_(torch.where((active == 1)[:, None], _row(rows, place.squeeze(1)), kept))


def _row(rows: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """``[B, X]``: row `place` ``[B]`` of ``[B, C, X]``; the first for a negative one."""
    places = place.long().clamp(min=0)[:, None, None]
    return rows.gather(1, places.expand(-1, 1, rows.shape[2])).squeeze(1)
