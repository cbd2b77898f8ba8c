# SPDX-License-Identifier: Apache-2.0
"""Predicted against realised acceptance: what became of guesses, by the probability they had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from treespec.generation import RoundRecord


class Trials(NamedTuple):
    """The guesses of a round that the target looked at: children of the accepted path.

    Attributes
    ----------
    probability
        ``[n]`` float64: each guess's own, given its parent, as the tree has it: the drafter's, or
        the one that the builder's `calibration` makes of it.
    accepted
        ``[n]`` bool.
    """

    probability: npt.NDArray[np.float64]
    accepted: npt.NDArray[np.bool_]


def trials_of(record: RoundRecord) -> Trials:
    """Every child of the root and of the accepted nodes is a trial, beside the one that was taken.

    Says something of the drafter for deterministic trees, whose target either takes a guess or
    another token. Whether a rejection rule takes a drawn token depends on how it was drawn.
    """
    tree, path = record.tree, record.verdict.accepted_nodes
    parent = tree.parent
    guesses = np.flatnonzero(np.isin(parent, np.append(path, 0)))
    logprob = tree.path_logprob.astype(np.float64)
    own = np.minimum(logprob[guesses] - logprob[parent[guesses]], 0.0)
    return Trials(np.exp(own), np.isin(guesses, path))


class ReliabilityBin(NamedTuple):
    """Guesses of like probability.

    Attributes
    ----------
    low, high
        Their probability is in ``[low, high)``; the last bin has 1, too.
    trials, accepted
        Guesses, and how many of them the target took.
    predicted
        Their mean probability.
    """

    low: float
    high: float
    trials: int
    accepted: int
    predicted: float

    @property
    def realised(self) -> float:
        """Share that was accepted."""
        return self.accepted / self.trials

    def interval(self) -> tuple[float, float]:
        """95 % interval of `realised`."""
        return wilson_interval(self.accepted, self.trials)


def wilson_interval(hits: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a share, of 95 % unless told otherwise; trials must be above 0.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    share = hits / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    half = z / (1 + z * z / trials) * spread
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass
class Reliability:
    """The reliability table of a generation; pass `count` to `generate` as `on_round`.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599, section 2.

    Parameters
    ----------
    num_bins
        Bins of equal width over [0, 1].

    Raises
    ------
    ValueError
        Without a bin.

    Examples
    --------
    >>> import treespec
    >>> from treespec.reliability import Reliability
    >>> table = Reliability()
    >>> decoder = treespec.load()
    >>> result = decoder.generate("class Stack:", max_new_tokens=32, on_round=table.count)
    >>> sum(row.accepted for row in table.bins()) >= result.stats.accepted
    True
    """

    num_bins: int = 10

    def __post_init__(self) -> None:
        if self.num_bins < 1:
            raise ValueError(f"Reliability: num_bins must be at least 1, got {self.num_bins}")
        self._trials = np.zeros(self.num_bins, dtype=np.int64)
        self._accepted = np.zeros(self.num_bins, dtype=np.int64)
        self._predicted = np.zeros(self.num_bins)

    def count(self, record: RoundRecord) -> None:
        """Add a round."""
        probability, accepted = trials_of(record)
        place = np.minimum((probability * self.num_bins).astype(np.int64), self.num_bins - 1)
        np.add.at(self._trials, place, 1)
        np.add.at(self._accepted, place, accepted)
        np.add.at(self._predicted, place, probability)

    def bins(self) -> list[ReliabilityBin]:
        """The bins that have trials, ascending."""
        return list(self._bins())

    @property
    def trials(self) -> int:
        """Guesses counted."""
        return int(self._trials.sum())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean distance of a bin's share to its prediction, by trials.

        0 without trials.
        """
        return expected_calibration_error(self.bins())

    def _bins(self) -> Iterator[ReliabilityBin]:
        for place in np.flatnonzero(self._trials).tolist():
            trials = int(self._trials[place])
            yield ReliabilityBin(
                place / self.num_bins,
                (place + 1) / self.num_bins,
                trials,
                int(self._accepted[place]),
                float(self._predicted[place]) / trials,
            )


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean of ``|realised - predicted|`` over the trials; 0 without any (Guo et al., 2017, 2)."""
    trials = sum(row.trials for row in bins)
    wrong = sum(row.trials * abs(row.realised - row.predicted) for row in bins)
    return wrong / trials if trials else 0.0
