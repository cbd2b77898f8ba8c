# SPDX-License-Identifier: Apache-2.0
"""Step 4 of a round: what a target offers, and the small types that cross its border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Int32Array = npt.NDArray[np.int32]

# A torch tensor, or a NumPy array of a backend without torch.
Array = Any


def in_host_memory(array: Array) -> Array:
    """The array itself, or a copy of a tensor that is on another device."""
    return array if isinstance(array, np.ndarray) else array.cpu()


def in_numpy(array: Array) -> npt.NDArray[Any]:
    """Rows in NumPy, from which the core borrows sooner than from torch; narrow ones as float32.

    The same memory where that is possible.
    """
    if isinstance(array, np.ndarray):
        return array
    wide = array if array.element_size() >= 4 else array.float()  # NumPy has no bfloat16
    rows: npt.NDArray[Any] = wide.cpu().numpy()
    return rows


@dataclass(frozen=True)
class Needs:
    """What a drafter asks of the target for every committed position.

    Attributes
    ----------
    layers
        0-based decoder layers whose output (the residual stream after the layer) is wanted, in this
        order.
    last_hidden
        Whether the state that the output head reads (after the final norm) is wanted.
    """

    layers: tuple[int, ...] = ()
    last_hidden: bool = False


@dataclass
class TargetStates:
    """Hidden states of n rows, in row order; a field nobody asked for is None.

    Attributes
    ----------
    features
        ``[n, k * H]``: the outputs of the k layers of `Needs.layers`, concatenated in that order.
    last_hidden
        ``[n, H]``: the states after the final norm.
    """

    features: Array | None = None
    last_hidden: Array | None = None

    def rows(self, nodes: npt.NDArray[np.integer[Any]]) -> TargetStates:
        """The states of the chosen rows, for instance of the accepted path.

        Parameters
        ----------
        nodes
            ``[m]`` row numbers below n.
        """

        def pick(states: Array | None) -> Array | None:
            return None if states is None else states[nodes.tolist()]

        return TargetStates(pick(self.features), pick(self.last_hidden))

    @staticmethod
    def join(parts: Sequence[TargetStates]) -> TargetStates:
        """The states of consecutive runs of rows as one; at least one part."""

        def concatenate(states: list[Array | None]) -> Array | None:
            present = [rows for rows in states if rows is not None]
            if len(present) < 2:
                return present[0] if present else None
            if isinstance(present[0], np.ndarray):
                return np.concatenate(present)
            import torch

            return torch.cat(present)

        return TargetStates(
            concatenate([part.features for part in parts]),
            concatenate([part.last_hidden for part in parts]),
        )


@dataclass(frozen=True)
class TreeRows:
    """One sequence's tree as the target sees it.

    Attributes
    ----------
    token, parent, depth
        ``[N]`` int32; ``parent[0] == -1`` is the root, every other parent is smaller than its
        child.
    """

    token: Int32Array
    parent: Int32Array
    depth: Int32Array

    def __len__(self) -> int:
        return len(self.token)

    @staticmethod
    def chain(token_ids: npt.ArrayLike) -> TreeRows:
        """The tree without forks over `token_ids` (``[N]`` integers, the root first).

        Examples
        --------
        >>> TreeRows.chain([5, 7, 9]).parent.tolist()
        [-1, 0, 1]
        """
        token = np.asarray(token_ids, dtype=np.int32)
        depth = np.arange(len(token), dtype=np.int32)
        return TreeRows(token, depth - 1, depth)

    @property
    def is_chain(self) -> bool:
        """Whether no node has two children."""
        return bool(np.array_equal(self.parent, np.arange(len(self.parent)) - 1))


class Target(Protocol):
    """The model whose distribution must be reproduced.

    One whose results lie in buffers that it uses again has a reentrant `lock` besides, which a
    decoder holds for a whole round; so has a drafter.

    Attributes
    ----------
    vocab_size
        V, the length of a row of logits.
    max_context
        The largest number of positions the model takes, or None when it names no limit.
    supports_trees
        False when the state of the model cannot fork; `forward` then takes chains only.
    device
        Where the logits are.
    eos_ids
        Tokens that end a text; may be empty.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_context(self) -> int | None: ...
    @property
    def supports_trees(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    def open(self, capacity: int) -> Any:
        """A new, empty sequence that holds up to `capacity` rows, tree nodes included."""
        ...

    def prefill(
        self,
        sequences: Sequence[Any],
        token_ids: Sequence[npt.NDArray[np.integer[Any]]],
        needs: Needs,
    ) -> tuple[list[Array], list[TargetStates]]:
        """Append tokens to each sequence and commit them.

        Parameters
        ----------
        sequences
            B sequences from `open`, each at most once.
        token_ids
            B non-empty integer arrays, of any lengths.
        needs
            The states to return.

        Returns
        -------
        logits, states
            B rows ``[V]``, after the last token of each sequence; B states over all its new tokens.

        Raises
        ------
        ValueError
            If an argument breaks these rules or a capacity is exceeded; no sequence has changed
            then.
        """
        ...

    def forward(
        self, sequences: Sequence[Any], trees: Sequence[TreeRows], needs: Needs
    ) -> tuple[list[Array], list[TargetStates]]:
        """Compute every node of one tree per sequence, without advancing the sequences.

        The root is the first token that is not yet committed to the sequence; the position of a
        node is the sequence's length + depth.

        Returns
        -------
        logits, states
            B arrays ``[N_i, V]`` in the model's dtype, which hold until the next call; B states
            over the ``N_i`` nodes, the same.

        Raises
        ------
        ValueError
            If a capacity is exceeded, or a tree forks and `supports_trees` is False.
        """
        ...

    def commit(
        self, sequences: Sequence[Any], accepted: Sequence[npt.NDArray[np.integer[Any]]]
    ) -> None:
        """Keep the rows of the accepted nodes and drop the others of the last `forward`.

        Parameters
        ----------
        accepted
            Per sequence the node ids of the root and the accepted path, ascending; an empty array
            rolls the whole tree back.
        """
        ...

    def close(self, sequence: Any) -> None:
        """Release the memory of a sequence; it cannot be used afterwards."""
        ...
