# SPDX-License-Identifier: Apache-2.0
"""Compares settings on a pair of models: speed, acceptance, waste, calibration, and a report.

The command `treespec bench` runs it.
"""

from __future__ import annotations

from treespec.benchmarking.comparison import Agreement, Comparison, Outcome, Speedup, compare
from treespec.benchmarking.settings import PLAIN, Setting

__all__ = ["PLAIN", "Agreement", "Comparison", "Outcome", "Setting", "Speedup", "compare"]
