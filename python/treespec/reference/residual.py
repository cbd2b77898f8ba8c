# SPDX-License-Identifier: Apache-2.0
"""The arithmetic the rejection-type verifiers share: accept test and residual distribution."""

from __future__ import annotations

from math import fsum
from typing import Any

import numpy as np

from treespec.reference.sampling import Row, normalise


def accepts(u: float, target: Row, draft: Row, token: int) -> bool:
    """``u < target(token) / draft(token)`` of unnormalised rows, strictly, without a division."""
    return bool(u * draft[token] * fsum(target) < target[token] * fsum(draft))


def residual(target: Row, draft: Row) -> Row | None:
    """``norm(max(0, target - draft))`` of two laws; None when nothing is left."""
    left = np.maximum(normalise(target) - normalise(draft), 0.0)
    return normalise(left) if np.any(left > 0) else None


def wide(row: Any, width: int) -> Row:
    """A draft row as float64 over the target's vocabulary; missing ids have probability 0."""
    result = np.zeros(width)
    result[: len(row)] = row
    return result
