# SPDX-License-Identifier: Apache-2.0
"""Step 1 of a round: what a drafter has to offer, and the small types that cross its border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from treespec.targets.base import Int32Array, Needs, TargetStates

if TYPE_CHECKING:
    import torch

# What the tree builder takes: Marginals, Transitions, a Trie, or an object with `expand`.
Source = Any


@dataclass(frozen=True)
class DraftSettings:
    """How a round is drafted.

    Attributes
    ----------
    temperature
        Temperature of the draft distribution, above 0.
    top_k
        Keep the k likeliest tokens of a row (ties of the k-th kept); 0 keeps all.
    top_p
        Keep the likeliest tokens that reach this mass; 1 keeps all.
    max_depth
        The deepest node the builder will ask for, or None.
    node_budget
        The most nodes the builder will keep, or None.
    list_width
        How many of a row's likeliest tokens are enough for the builder, or None: whole rows are
        wanted. Drafters whose rows are not in host memory may then bring `RankedRows` there.
    root_rows
        Whether `RootRows` are wanted, too; drafters without a `reads_root_rows` have none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_depth: int | None = None
    node_budget: int | None = None
    list_width: int | None = None
    root_rows: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"DraftSettings: temperature must be above 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"DraftSettings: top_k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"DraftSettings: top_p must be in (0, 1], got {self.top_p}")


class RankedRows(NamedTuple):
    """Rows of an expander, cut to their likeliest tokens; in host memory.

    Attributes
    ----------
    token, logprob
        ``[n, K]`` int32 and float32: natural logarithms, -inf pads.
    """

    token: Int32Array
    logprob: npt.NDArray[np.float32]


class NodeBatch(Protocol):
    """Nodes that a builder wants expanded.

    Attributes
    ----------
    token, parent, depth, index
        ``[n]`` int32. `index` counts nodes in the order of their first hand-over, the root is 0;
        `parent` uses that numbering, -1 for the root. Every parent was handed over in an earlier
        call.
    """

    @property
    def token(self) -> Int32Array: ...
    @property
    def parent(self) -> Int32Array: ...
    @property
    def depth(self) -> Int32Array: ...
    @property
    def index(self) -> Int32Array: ...

    def __len__(self) -> int: ...


class Expander(Protocol):
    """A source that scores children on demand. The first call is the root alone.

    A class may also have a static ``expand_together(expanders, node_batches)``, which returns the
    rows of several expanders of one `draft` at once; builders then grow their trees in lock-step.
    """

    def expand(self, nodes: NodeBatch) -> torch.Tensor | npt.NDArray[np.floating[Any]] | RankedRows:
        """``[n, V]`` log-probabilities of the children of each node, -inf off the support."""
        ...


class Drafter(Protocol):
    """A model, or an index, that proposes trees.

    Committed state advances in `observe` only; `draft` changes nothing that can be observed, may be
    called twice with the same result, and drops what an earlier, unfinished draft has left.

    Attributes
    ----------
    needs
        The target states that `begin` and `observe` must be given.
    source_kind
        What `draft` returns: ``"Expander"``, ``"Marginals"``, ``"Transitions"`` or ``"Trie"``.
    """

    needs: Needs
    source_kind: str

    def begin(
        self, prompt_ids: npt.NDArray[np.integer[Any]], states: TargetStates | None, capacity: int
    ) -> Any:
        """Open a session.

        Parameters
        ----------
        prompt_ids
            ``[n]`` committed tokens; the first sampled token follows through `observe`.
        states
            The target's states of those n positions, or None if `needs` is empty.
        capacity
            The number of tokens the sequence may reach, drafted nodes included.
        """
        ...

    def draft(self, sessions: Sequence[Any], settings: DraftSettings) -> list[Source]:
        """One source per session, for trees whose root is the session's last observed token."""
        ...

    def observe(
        self, session: Any, token_ids: npt.NDArray[np.integer[Any]], states: TargetStates | None
    ) -> None:
        """Append newly committed tokens, in order; the last one is the new root.

        `states` has the target's states of the positions that the last forward has committed: the
        old root and the accepted tokens. None if `needs` is empty, and for the first token after
        `begin`.
        """
        ...

    def end(self, session: Any) -> None:
        """Close a session and release its memory."""
        ...
