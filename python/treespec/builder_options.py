# SPDX-License-Identifier: Apache-2.0
"""Builder options as users give them, in the form that the core takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from treespec._core import TreeBuilder
from treespec.calibration import Calibration
from treespec.growth_map import GrowthMap


def resolve_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options with plain lists and numbers in place of maps, tables, the paths of their files, and
    arrays of any library; without those that are None, which means the builder's default.

    Raises
    ------
    ValueError
        For a file that does not hold what the option takes.
    OSError
        If there is no such file.
    """
    given = {} if options is None else options
    resolved = {name: _plain(value) for name, value in given.items() if value is not None}
    if "growth_map" in resolved:
        resolved["growth_map"] = _parents(resolved["growth_map"])
    if "calibration" in resolved:
        resolved["calibration"] = _pairs(resolved["calibration"])
    return resolved


def list_width(builder: TreeBuilder, options: Mapping[str, Any], node_budget: int) -> int | None:
    """How many of a row's likeliest tokens are enough for a builder with these resolved options.

    None: whole rows are wanted. A tempered score has the normaliser of a whole row, and so has the
    law of drawn tokens.
    """
    tempered = options.get("score_temperature", 1) != 1
    return None if tempered or builder.proposal != "deterministic" else max(node_budget, 1)


def _plain(value: Any) -> Any:
    """Arrays, tensors and their scalars, also within lists, as Python lists and numbers."""
    if callable(getattr(value, "tolist", None)):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _parents(value: Any) -> Any:
    shape = GrowthMap.load(value) if isinstance(value, str | os.PathLike) else value
    return shape.parent.tolist() if isinstance(shape, GrowthMap) else shape


def _pairs(value: Any) -> Any:
    table = Calibration.load(value) if isinstance(value, str | os.PathLike) else value
    return table.table if isinstance(table, Calibration) else table
