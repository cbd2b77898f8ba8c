# SPDX-License-Identifier: Apache-2.0
"""What a deterministic builder may do to a row before it scores children with it.

A drafter's confidence is not the chance of acceptance: both steps replace the one by an estimate of
the other (trees.md, section 0.2). They change scores only, never what is lossless.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from treespec.reference.sampling import fixed_sum
from treespec.reference.sources import CandidateRow

Calibration = Sequence[Sequence[float]]
"""Pairs ``[draft probability, acceptance]``, both ascending."""


def check_scores(name: str, score_temperature: float, calibration: Calibration | None) -> None:
    """Refuses options that :func:`rescore` cannot follow, in the name of a builder."""
    if not 1e-6 <= score_temperature <= 1e6:
        raise ValueError(
            f"{name}: score_temperature must be in [1e-6, 1e6], got {score_temperature}"
        )
    if calibration is None:
        return
    sound = len(calibration) > 0 and all(len(pair) == 2 for pair in calibration)
    if sound:
        given, accepted = np.asarray(calibration, dtype=np.float64).T
        sound = bool(
            np.all(np.diff(given, prepend=0.0) > 0)
            and np.all(np.diff(accepted, prepend=0.0) >= 0)
            and given[-1] <= 1
            and accepted[-1] <= 1
        )
    if not sound:
        raise ValueError(
            f"{name}: calibration must be pairs [q, a], q rising in (0, 1], a never falling in "
            f"[0, 1], got {calibration}"
        )


def rescore(
    row: CandidateRow, score_temperature: float, calibration: Calibration | None
) -> CandidateRow:
    """The row with its log-probabilities sharpened, then calibrated."""
    return calibrate(sharpen(row, score_temperature), calibration)


def sharpen(row: CandidateRow, score_temperature: float) -> CandidateRow:
    """``log_softmax(logprob / score_temperature)`` over the candidates; 1 changes nothing."""
    if score_temperature == 1.0 or not np.any(row.logprob > -np.inf):
        return row
    scaled = row.logprob.astype(np.float64) / score_temperature
    scaled -= np.max(scaled)
    mass = fixed_sum(np.exp(scaled), bits=44) * 2.0**-44
    return row._replace(logprob=(scaled - np.log(mass)).astype(np.float32))


def calibrate(row: CandidateRow, calibration: Calibration | None) -> CandidateRow:
    """``float32(ln A(exp(logprob)))``; A is linear between (0, 0) and the pairs, then flat."""
    if calibration is None:
        return row
    given, accepted = np.asarray(calibration, dtype=np.float64).T
    probability = np.exp(row.logprob.astype(np.float64))
    acceptance = np.interp(probability, [0.0, *given], [0.0, *accepted])
    with np.errstate(divide="ignore"):
        return row._replace(logprob=np.log(acceptance).astype(np.float32))
