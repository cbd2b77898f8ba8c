# SPDX-License-Identifier: Apache-2.0
"""A bound for what can only be counted."""

from __future__ import annotations

from typing import Any

import numpy as np


def chi_square(counts: Any, probabilities: Any, *, minimum: float = 10.0) -> tuple[float, float]:
    """Pearson's statistic of counts against a law, and a bound that holds but once in a million.

    Cells with expectation below ``minimum`` are merged into one; a count in an impossible cell
    gives infinity. The bound is the
    Wilson-Hilferty quantile at z = 4.75.
    """
    observed = np.asarray(counts, dtype=np.float64)
    expected = np.asarray(probabilities, dtype=np.float64) * observed.sum()
    if np.any(observed[expected == 0] > 0):
        return float("inf"), 0.0
    small = expected < minimum
    if np.any(small) and expected[small].sum() > 0:
        observed = np.append(observed[~small], observed[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 0
    observed, expected = observed[keep], expected[keep]
    statistic = float(np.sum((observed - expected) ** 2 / expected))
    freedom = max(1, len(expected) - 1)
    spread = 2.0 / (9.0 * freedom)
    return statistic, freedom * (1.0 - spread + 4.75 * spread**0.5) ** 3
