# SPDX-License-Identifier: Apache-2.0
"""The frozen shape of a draft tree: found by acceptance, kept in a file, read by builders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec import _core
from treespec.growth import UNLIMITED
from treespec.json_file import load_json, save_json

_FORMAT = "treespec.growth_map"
_METHODS = {"heap": _core.optimal_growth_map, "dp": _core.optimal_growth_map_dp}

# One row for all depths, or a row per depth: shares accepted by sibling rank.
Acceptance = Sequence[float] | Sequence[Sequence[float]] | npt.NDArray[np.floating[Any]]


class GrowthMap:
    """A tree without tokens; option `growth_map` of the builders `sequoia` and `medusa_choices`.

    Parameters
    ----------
    parent
        ``[n]`` integers: the parent of node i + 1, in [0, i]; node 0 is the root. The rank of a
        node is its place among the children of its parent by id.
    acceptance
        The table that the map was made for, if any.
    metadata
        Anything JSON can hold: models, temperature, date.

    Raises
    ------
    ValueError
        For a parent that is no earlier node, or a table that `optimal` refuses.

    Examples
    --------
    >>> map = GrowthMap.optimal([0.6, 0.2], num_nodes=4)
    >>> map.paths()
    [[0], [0, 0], [0, 0, 0], [1]]
    >>> round(map.expected_tokens([0.6, 0.2]), 3)
    2.376
    """

    def __init__(
        self,
        parent: npt.ArrayLike,
        *,
        acceptance: Acceptance | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        given = np.asarray(parent)
        if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
            raise ValueError(f"GrowthMap: parent must be a list of integers, got {parent!r}")
        if given.size and not -(2**31) <= int(given.min()) <= int(given.max()) < 2**31:
            raise ValueError("GrowthMap: parent must hold node ids, got one beyond int32")
        self.parent: npt.NDArray[np.int32] = given.astype(np.int32)
        self.parent.flags.writeable = False
        _core.check_growth_map(self.parent.tolist())
        self.acceptance = None if acceptance is None else as_table(acceptance)
        self.metadata = dict(metadata or {})

    @staticmethod
    def optimal(
        acceptance: Acceptance,
        num_nodes: int,
        *,
        max_depth: int | None = None,
        method: str = "heap",
        metadata: Mapping[str, Any] | None = None,
    ) -> GrowthMap:
        """The map of at most `num_nodes` nodes that emits most tokens per round.

        Parameters
        ----------
        acceptance
            ``p[d][r]``: how often the child of rank r below an accepted node of depth d is the one
            accepted. One row stands for every depth; depths beyond the table use its last row.
        num_nodes
            The most drafted nodes; the root is not counted.
        max_depth
            The deepest node; None: any.
        method
            ``"heap"`` smooths each row until it never rises (the bumps of a measurement are noise);
            its first n nodes are the best map of n nodes. ``"dp"`` takes the rows as they are, at a
            cost that grows with the square of `num_nodes`.

        Raises
        ------
        ValueError
            For shares outside [0, 1], rows that sum to more than 1, a bad depth, or an unknown
            method.

        Notes
        -----
        Source: Chen et al., "Sequoia", 2024, arXiv 2402.12374 (the dynamic program; the heap is
        ours). Static trees of Medusa are the same search over the accuracies of its heads.
        """
        if method not in _METHODS:
            raise ValueError(
                f"GrowthMap.optimal: method must be one of {', '.join(_METHODS)}; got {method!r}"
            )
        table = as_table(acceptance)
        depth = UNLIMITED if max_depth is None else max_depth
        if not isinstance(depth, int | np.integer) or depth < 0:
            raise ValueError(
                f"GrowthMap.optimal: max_depth must be an integer >= 0 or None, got {max_depth!r}"
            )
        parent = _METHODS[method](table, num_nodes, min(int(depth), UNLIMITED))
        return GrowthMap(parent, acceptance=table, metadata=metadata)

    @staticmethod
    def from_paths(
        paths: Iterable[Sequence[int]], *, metadata: Mapping[str, Any] | None = None
    ) -> GrowthMap:
        """The map of rank paths, Medusa's format: ``[[0], [1], [0, 0], ...]``.

        The order is kept where it can be: a node comes after its parent and its elder siblings.

        Raises
        ------
        ValueError
            For an empty or repeated path, a missing parent, or a skipped rank.
        """
        wanted = [tuple(int(rank) for rank in path) for path in paths]
        _check_paths(wanted)
        ids: dict[tuple[int, ...], int] = {(): 0}
        parent: list[int] = []
        for path in wanted:
            waiting = [path]
            while waiting:
                if waiting[-1] in ids:
                    waiting.pop()
                elif (needed := _needed_before(waiting[-1])) in ids:
                    ids[waiting[-1]] = len(ids)
                    parent.append(ids[waiting.pop()[:-1]])
                else:
                    waiting.append(needed)
        return GrowthMap(parent, metadata=metadata)

    def paths(self) -> list[list[int]]:
        """The rank path of every node, in order of ids."""
        paths: list[list[int]] = [[]]
        num_children = [0] * (len(self) + 1)
        for parent in self.parent.tolist():
            paths.append([*paths[parent], num_children[parent]])
            num_children[parent] += 1
        return paths[1:]

    def node_acceptance(self, acceptance: Acceptance | None = None) -> npt.NDArray[np.float64]:
        """``[n + 1]``: the probability that each node is accepted, 1 for the root.

        None: the table the map was made for; ValueError when it has none.
        """
        table = self.acceptance if acceptance is None else as_table(acceptance)
        if table is None:
            raise ValueError("GrowthMap: acceptance must be given, this map was made without one")
        return np.asarray(_core.node_acceptance(self.parent.tolist(), table))

    def expected_tokens(self, acceptance: Acceptance | None = None) -> float:
        """Tokens per target forward that a table promises, the target's own included."""
        return float(self.node_acceptance(acceptance).sum())

    @property
    def depth(self) -> npt.NDArray[np.int32]:
        """``[n + 1]`` depths, the root first."""
        depth = np.zeros(len(self) + 1, dtype=np.int32)
        for node, parent in enumerate(self.parent.tolist(), start=1):
            depth[node] = depth[parent] + 1
        return depth

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map as JSON; whole or not at all."""
        fields: dict[str, Any] = {"parent": self.parent.tolist()}
        if self.acceptance is not None:
            fields["acceptance"] = self.acceptance
        save_json(path, _FORMAT, {**fields, "metadata": self.metadata})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> GrowthMap:
        """Read a map that `save` wrote.

        Raises
        ------
        ValueError
            For a file that holds no map; names the file.
        OSError
            If there is no such file.
        """
        fields = load_json(path, _FORMAT)
        try:
            return GrowthMap(
                fields["parent"],
                acceptance=fields.get("acceptance"),
                metadata=fields.get("metadata"),
            )
        except KeyError as missing:
            raise ValueError(f"{_FORMAT}: {path} must have {missing}") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{_FORMAT}: {path} holds no sound map: {error}") from None

    def __len__(self) -> int:
        return len(self.parent)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GrowthMap) and np.array_equal(self.parent, other.parent)

    def __hash__(self) -> int:
        return hash(self.parent.tobytes())

    def __repr__(self) -> str:
        return f"GrowthMap({len(self)} nodes, depth {self.depth.max()})"


def as_table(acceptance: Acceptance) -> list[list[float]]:
    """One row per depth, from rows or from a single one.

    Raises
    ------
    ValueError
        For what is no list of numbers or of rows of numbers, and for rows that are no shares.
    """
    try:
        rows = list(acceptance)
        if rows and np.ndim(rows[0]) == 0:
            rows = [rows]
        table = [[float(share) for share in row] for row in rows]
    except (TypeError, ValueError):
        raise ValueError(
            f"GrowthMap: acceptance must be rows of numbers, got {acceptance!r}"
        ) from None
    _core.node_acceptance([], table)  # refuses rows that are no shares
    return table


def _needed_before(path: tuple[int, ...]) -> tuple[int, ...]:
    """The elder sibling of a node, or the parent of a first child."""
    return (*path[:-1], path[-1] - 1) if path[-1] else path[:-1]


def _check_paths(paths: Sequence[tuple[int, ...]]) -> None:
    known = {(), *paths}
    if len(known) <= len(paths):
        repeated = next(p for i, p in enumerate(paths) if not p or p in paths[:i])
        raise ValueError(
            "GrowthMap.from_paths: paths must be distinct and not empty, "
            f"got {list(repeated)} {'twice' if repeated else ''}".rstrip()
        )
    for path in paths:
        if path[-1] < 0:
            raise ValueError(f"GrowthMap.from_paths: ranks must be at least 0, got {list(path)}")
        if path[:-1] not in known:
            raise ValueError(
                f"GrowthMap.from_paths: every parent must be there, {list(path)} lacks "
                f"{list(path[:-1])}"
            )
        if _needed_before(path) not in known:
            raise ValueError(
                f"GrowthMap.from_paths: ranks must not be skipped, {list(path)} lacks "
                f"{list(_needed_before(path))}"
            )
