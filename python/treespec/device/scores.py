# SPDX-License-Identifier: Apache-2.0
"""From log-probabilities to the scores that rank nodes, as deterministic builders' options do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from treespec.device import native
from treespec.device.candidates import CandidateLists


class _Rule(NamedTuple):
    """`treespec::device::ScoreRule`."""

    temperature: float
    calibration: torch.Tensor | None


def score_lists(
    lists: CandidateLists, *, temperature: float = 1.0, calibration: torch.Tensor | None = None
) -> CandidateLists:
    """Lists whose log-probabilities are scores, ranked by these, in one launch.

    What is wrong with the lists is left in them, for the builder that reads them to report.

    Parameters
    ----------
    lists
        ``[B, D, K]``, or ``[B, D, R, K]`` with `next`.
    temperature
        The option `score_temperature` of builders, in [1e-6, 1e6].
    calibration
        Their option `calibration`, ``[points, 2]`` float64: draft probabilities rise, acceptances
        do not fall. Not checked, since it is on the device.

    Returns
    -------
    CandidateLists
        Of the same shapes.
    """
    following = None if lists.next is None else torch.empty_like(lists.next)
    scored = CandidateLists(
        torch.empty_like(lists.token), torch.empty_like(lists.logprob), following
    )
    stream = native.stream(lists.token)
    native.ops.score_lists(stream, _Rule(temperature, calibration), lists, scored)
    return scored


def scored_by(options: Mapping[str, Any], lists: CandidateLists) -> CandidateLists:
    """The lists as the options of a deterministic builder score them."""
    temperature = options.get("score_temperature", 1.0)
    calibration = calibration_of(options, lists.token.device)
    if temperature == 1.0 and calibration is None:
        return lists
    return score_lists(lists, temperature=temperature, calibration=calibration)


def calibration_of(options: Mapping[str, Any], device: torch.device) -> torch.Tensor | None:
    """The option `calibration` as the device reads it."""
    points = options.get("calibration")
    if not points:
        return None
    rows = tuple(map(tuple, np.reshape(points, (-1, 2)).tolist()))
    return native.constant(rows, torch.float64, device)
