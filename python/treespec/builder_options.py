# SPDX-License-Identifier: Apache-2.0
"""Builder options as users give them, in the form that the core takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from treespec.calibration import Calibration
from treespec.growth_map import GrowthMap


def resolve_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options with plain lists in place of maps, tables, and the paths of their files.

    Raises
    ------
    ValueError
        For a file that does not hold what the option takes.
    OSError
        If there is no such file.
    """
    resolved = dict(options or {})
    if "growth_map" in resolved:
        resolved["growth_map"] = _parents(resolved["growth_map"])
    if "calibration" in resolved:
        resolved["calibration"] = _pairs(resolved["calibration"])
    return resolved


def _parents(value: Any) -> Any:
    shape = GrowthMap.load(value) if isinstance(value, str | os.PathLike) else value
    return shape.parent.tolist() if isinstance(shape, GrowthMap) else shape


def _pairs(value: Any) -> Any:
    table = Calibration.load(value) if isinstance(value, str | os.PathLike) else value
    return table.table if isinstance(table, Calibration) else table
