# SPDX-License-Identifier: Apache-2.0
"""From a drafter's own probability to how often the target accepts: a table in a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treespec.json_file import load_json, save_json

_FORMAT = "treespec.calibration"


@dataclass(frozen=True)
class Calibration:
    """Option `calibration` of the builders that rank guesses by probability.

    Attributes
    ----------
    table
        ``[[q, a], ...]``: a guess of draft probability q is accepted with probability a; q strictly
        rises, a never falls. Linear between the pairs, through (0, 0), flat after the last.
    trials
        Guesses behind each pair.
    metadata
        Anything JSON can hold: models, temperature, date.
    """

    table: list[list[float]]
    trials: Sequence[int] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON; whole or not at all."""
        fields = {"table": self.table, "trials": list(self.trials)}
        save_json(path, _FORMAT, {**fields, "metadata": dict(self.metadata)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Calibration:
        """Read a table that `save` wrote; builders check its numbers.

        Raises
        ------
        ValueError
            For a file that holds no calibration; names the file.
        OSError
            If there is no such file.
        """
        fields = load_json(path, _FORMAT)
        try:
            table = [[float(q), float(a)] for q, a in fields["table"]]
            return Calibration(table, list(fields.get("trials", [])), fields.get("metadata", {}))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{_FORMAT}: {path} must have 'table': [[q, a], ...]") from None
