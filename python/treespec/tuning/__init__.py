# SPDX-License-Identifier: Apache-2.0
"""Measures a pair of models on this machine, and chooses the tree that pays.

Acceptance by sibling rank gives a growth map, costs its size; a calibration table corrects the
drafter's probabilities; a profile has all of it, for decoders that choose the size of every round.
The command `treespec tune` writes each of them to a file.
"""

from __future__ import annotations

from treespec.tuning.acceptance import Acceptance, measure_acceptance
from treespec.tuning.calibration import measure_calibration
from treespec.tuning.costs import Costs, measure_costs
from treespec.tuning.pair import PROPOSALS
from treespec.tuning.profiling import measure_profile
from treespec.tuning.size import Size, best_size

__all__ = [
    "PROPOSALS",
    "Acceptance",
    "Costs",
    "Size",
    "best_size",
    "measure_acceptance",
    "measure_calibration",
    "measure_costs",
    "measure_profile",
]
