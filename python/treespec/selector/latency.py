# SPDX-License-Identifier: Apache-2.0
"""Seconds of a round by action, from measured costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.selector.actions import ACTIONS
from treespec.tuning.costs import Costs

Array = npt.NDArray[np.float64]

# Rows of the target's forward that the latencies are measured at: up to the largest tree's.
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 41)


def round_seconds(costs: Costs, rows: npt.NDArray[Any], *, selecting: float | None = None) -> Array:
    """Seconds of a round of every action.

    The paper's T(c, a) with a target forward that depends on its rows. Latencies are taken for
    independent of the context's length.

    Parameters
    ----------
    costs
        Linear between the measured numbers of rows.
    rows
        ``[..., A]``: rows of the target's forward.
    selecting
        What the choice itself costs, for a policy that makes one. It also needs the drafter's row
        at the root, whatever it chooses; None for a static action, which drafts nothing at depth 0.
    """
    sizes = sorted(costs.target_seconds)
    target = np.interp(rows, sizes, [costs.target_seconds[size] for size in sizes])
    calls = np.array([action.depth for action in ACTIONS])
    if selecting is not None:
        return np.asarray(
            target + calls.clip(1) * costs.draft_seconds + costs.round_seconds + selecting
        )
    out = target + calls * costs.draft_seconds + costs.round_seconds
    return np.where(calls > 0, out, costs.plain_seconds)
