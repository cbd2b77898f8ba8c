# SPDX-License-Identifier: Apache-2.0
"""Steps 1 and 2 of a static round: what a drafter has to offer, and what its steps read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from treespec import _core
from treespec.device import Law, Trees
from treespec.drafts.base import DraftSettings
from treespec.static.attention import TreeAttention
from treespec.static.runner import RowStates
from treespec.static.selecting import Past, StaticSelector
from treespec.targets.base import Needs


@dataclass(frozen=True)
class DraftRecipe:
    """What every draft is made for.

    Attributes
    ----------
    builder, options, node_budget
        A builder, its resolved options, and the most drafted nodes.
    vocab_size
        V of the target.
    temperature
        Of the draft law. None: 1 if the tokens are the likeliest ones, else the temperature of the
        text. Drawn tokens follow its top-k and top-p as well, as far as these concern the ranked
        candidates.
    attention
        How to attend.
    compiled
        Whether the layers of drafters that are called level by level go through torch.compile.
    selector
        Chooses the lengths of every sequence in every round, for ``"delayed"``.
    """

    builder: _core.TreeBuilder
    options: Mapping[str, Any]
    node_budget: int
    vocab_size: int
    temperature: float | None
    attention: TreeAttention
    compiled: bool = False
    selector: StaticSelector | None = None

    @property
    def drawn(self) -> bool:
        """Whether tokens are drawn."""
        return self.builder.proposal != "deterministic"

    @property
    def settings(self) -> DraftSettings:
        """Of one-pass drafters; what concerns drawn tokens is done to their lists."""
        return DraftSettings(
            temperature=self.temperature or 1.0,
            max_depth=min(self.options.get("max_depth", self.node_budget), self.node_budget),
            node_budget=self.node_budget,
        )


class DraftStep(NamedTuple):
    """What the drafting steps of a round read; all tensors on the device.

    Attributes
    ----------
    root
        ``[B]`` int32, the last committed tokens.
    prefix_length
        ``[B]`` int32, their positions.
    active
        ``[B]`` int32, 1 or 0: nothing lasting changes for a sequence that is not active.
    key
        ``[B, 2]`` int64: seed, and sequence_id + (position << 32).
    params
        ``[B, 7]`` float64, in the order of `treespec.static.ops.PARAM_NAMES`.
    envelope
        KV rows that are looked at.
    status
        ``[B]`` int32: what is wrong with the data.
    past
        What a selector reads besides at the beginning of a round, if there is one.
    """

    root: torch.Tensor
    prefix_length: torch.Tensor
    active: torch.Tensor
    key: torch.Tensor
    params: torch.Tensor
    envelope: int
    status: torch.Tensor
    past: Past | None = None


class Drafted(NamedTuple):
    """Trees of a batch and, for drawn ones, the law of their draws."""

    trees: Trees
    law: Law | None


class Observed(NamedTuple):
    """What a round has committed.

    Attributes
    ----------
    tokens
        ``[B, C]`` int32: the accepted ones and one more, then anything.
    nodes
        ``[B, C]`` int32: the root and the accepted nodes, then anything.
    count
        ``[B]`` int32: how many of both are committed; 0 for sequences that are not active.
    states
        Of the target's M rows, as the drafter's `needs` say.
    """

    tokens: torch.Tensor
    nodes: torch.Tensor
    count: torch.Tensor
    states: RowStates


class StaticDrafter(Protocol):
    """Drafts trees for a batch with fixed shapes and all lengths on the device.

    Attributes
    ----------
    needs
        The target states that `observe` must be given.
    max_depth
        Depth of the deepest node.
    spare_rows
        KV rows that are written behind the root.
    widths
        Most rows of the calls of a round, the first being that of `begin`; None: as many calls of
        `grow` as ``state.waiting``, ``[B]``, asks for.
    max_rows
        Most rows of all calls together.
    """

    needs: Needs
    max_depth: int
    spare_rows: int
    widths: tuple[int, ...] | None
    max_rows: int

    def prepare(self, sessions: Sequence[Any]) -> None:
        """Compute what prefilled sessions of the step-by-step drafter have put off."""
        ...

    def make_state(self, sessions: Sequence[Any], capacity: int) -> Any:
        """Buffers for as many sequences of up to `capacity` tokens, drafted rows included.

        Its ``tensors()`` are those that `begin` and `grow` leave for the next step.
        """
        ...

    def load(self, state: Any, sessions: Sequence[Any]) -> None:
        """Take over sessions that are prepared, and whose roots are observed."""
        ...

    def begin(self, state: Any, step: DraftStep) -> None:
        """Make the call whose size is known: that for the root."""
        ...

    def grow(self, state: Any, step: DraftStep, width: int, num_slots: int) -> None:
        """Make one more call, for up to `width` nodes a sequence.

        Parameters
        ----------
        num_slots
            Rows behind the root that may be in use afterwards.
        """
        ...

    def finish(self, state: Any, step: DraftStep) -> Drafted:
        """The trees, when nothing is waiting."""
        ...

    def observe(self, state: Any, step: DraftStep, observed: Observed) -> None:
        """Append what was committed, for active sequences."""
        ...
