# SPDX-License-Identifier: Apache-2.0
"""What a pair costs and reaches on one machine: measured once, read by every `load`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from treespec import _core
from treespec.json_file import load_json, save_json

_FORMAT = "treespec.profile"
_CACHE = "TREESPEC_CACHE"


@dataclass(frozen=True)
class TargetSeconds:
    """One curve of target forwards.

    Attributes
    ----------
    context
        Committed tokens of every sequence.
    batch
        Sequences of the forward.
    seconds
        By rows of all sequences together.
    """

    context: int
    batch: int
    seconds: dict[int, float]


@dataclass(frozen=True)
class Profile:
    """Seconds, and shares of acceptance.

    Attributes
    ----------
    target
        Curves of the target's forward; every context for every batch.
    draft_call
        One pass of the drafter by rows: nodes of a level, or tokens to catch up with.
    drafts_by_level
        Whether a tree costs a call for each of its levels (expanders), or one in all.
    drafted_round, plain_round
        All else of a round with a tree, and of one without.
    acceptance
        By proposal mode, shares by depth and sibling rank.
    calibration
        Pairs (draft probability, acceptance), or none.
    identity
        What the figures hold for (`treespec.identity.identity_of`).
    metadata
        For people: names, temperature, prompts, date.
    """

    target: tuple[TargetSeconds, ...]
    draft_call: dict[int, float]
    drafts_by_level: bool
    drafted_round: float
    plain_round: float
    acceptance: dict[str, list[list[float]]]
    calibration: list[list[float]] = field(default_factory=list)
    identity: dict[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def most_rows(self) -> int:
        """Rows of one sequence that were timed, at most."""
        return max(max(curve.seconds) // curve.batch for curve in self.target)

    def costs(self) -> _core.CostModel:
        """The native form of the costs.

        Raises
        ------
        ValueError
            For numbers that no measurement gives.
        """
        curves: Any = [(curve.context, curve.batch, curve.seconds) for curve in self.target]
        draft_call: Any = self.draft_call
        return _core.CostModel(
            target=curves,
            draft_call=draft_call,
            drafts_by_level=self.drafts_by_level,
            drafted_round_seconds=self.drafted_round,
            plain_round_seconds=self.plain_round,
        )

    def acceptance_of(self, proposal: str) -> list[list[float]]:
        """The table for trees of this proposal mode.

        Modes that were not measured take the nearest one: independent draws those without
        replacement, and anything the only one there is.
        """
        nearest = (proposal, "without_replacement", "deterministic")
        return next(self.acceptance[name] for name in nearest if name in self.acceptance)

    def differences(self, identity: Mapping[str, str]) -> list[str]:
        """What differs from a running pair, in words; empty when the figures hold for it."""
        return [
            f"{name} is {identity.get(name, 'unknown')!r}, not {value!r}"
            for name, value in self.identity.items()
            if identity.get(name) != value
        ]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON; whole or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_json(path, _FORMAT, asdict(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Profile:
        """Read a profile that `save` wrote.

        Raises
        ------
        ValueError
            For a file that holds no profile; names the file and what is wrong.
        OSError
            If there is no such file.
        """
        fields = load_json(path, _FORMAT)
        try:
            profile = _profile_of(fields)
            profile.costs()
            for table in profile.acceptance.values():
                _core.optimal_growth_map(table, 1)
            profile.acceptance_of("deterministic")
        except (KeyError, TypeError, AttributeError, StopIteration) as error:
            raise ValueError(
                f"{_FORMAT}: {path} must have the fields of a Profile: {error!r}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{_FORMAT}: {path} must hold sound figures: {error}") from None
        return profile


def profile_path(identity: Mapping[str, str]) -> Path:
    """Where `treespec tune` keeps the profile of a pair, and where `load` looks for it.

    ``$TREESPEC_CACHE/profiles``, else ``profiles`` in the user's cache folder for treespec.
    """
    root = os.environ.get(_CACHE)
    if root is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = str(Path(cache) / "treespec")
    name = sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:16]
    return Path(root) / "profiles" / f"{name}.json"


def _profile_of(fields: Mapping[str, Any]) -> Profile:
    return Profile(
        target=tuple(
            TargetSeconds(int(one["context"]), int(one["batch"]), _seconds(one["seconds"]))
            for one in fields["target"]
        ),
        draft_call=_seconds(fields["draft_call"]),
        drafts_by_level=bool(fields["drafts_by_level"]),
        drafted_round=float(fields["drafted_round"]),
        plain_round=float(fields["plain_round"]),
        acceptance={
            str(name): [_floats(row) for row in table]
            for name, table in fields["acceptance"].items()
        },
        calibration=[_floats(pair) for pair in fields.get("calibration", [])],
        identity={str(name): str(value) for name, value in fields["identity"].items()},
        metadata=dict(fields.get("metadata", {})),
    )


def _seconds(values: Mapping[str, Any]) -> dict[int, float]:
    return {int(rows): float(seconds) for rows, seconds in values.items()}


def _floats(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]
