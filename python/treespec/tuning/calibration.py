# SPDX-License-Identifier: Apache-2.0
"""How often the target accepts a guess, by the drafter's own probability of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec import _core
from treespec.calibration import Calibration
from treespec.decoder import SpeculativeDecoder
from treespec.generation import RoundRecord
from treespec.reliability import trials_of
from treespec.tuning.pair import Progress, as_decoder, exact_verifier, prompt_list, with_tree


def measure_calibration(
    models: Any,
    prompts: Sequence[Any],
    *,
    num_nodes: int = 32,
    bins: int = 20,
    temperature: float = 0.0,
    max_new_tokens: int = 128,
    seed: int = 0,
    progress: Progress[Any] = iter,
) -> Calibration:
    """Measure the table from draft probability to acceptance, for option `calibration`.

    Every child of an accepted node of a deterministic tree (opt_tree) is a trial.

    Parameters
    ----------
    models, prompts, max_new_tokens, seed, progress
        As in `measure_acceptance`.
    num_nodes
        Nodes per round: more reach to smaller probabilities.
    bins
        Pairs in the table, at most: quantiles of the probability mass, so that likely and unlikely
        guesses are resolved alike.
    temperature
        The target's. Probabilities are those of the decoder's draft law: of `draft_temperature`,
        or of 1.

    Returns
    -------
    Calibration
        Made monotone by isotonic regression, weighted by trials; one more trial per bin goes as the
        drafter says, so that no share is certain for want of trials.

    Raises
    ------
    ValueError
        For bad sizes, no prompts, or texts without a trial.
    """
    if num_nodes < 1 or bins < 1:
        raise ValueError(
            f"measure_calibration: num_nodes and bins must be at least 1, got {num_nodes}, {bins}"
        )
    prompts = prompt_list("measure_calibration", prompts)
    trials = count_trials(
        as_decoder(models),
        prompts,
        num_nodes=num_nodes,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        progress=progress,
    )
    if not trials.probability:
        raise ValueError(
            "measure_calibration: texts must have guesses to count, these have none "
            f"(max_new_tokens={max_new_tokens})"
        )
    return trials.fit(bins)


def count_trials(
    decoder: SpeculativeDecoder,
    prompts: Sequence[Any],
    *,
    num_nodes: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    progress: Progress[Any],
) -> Trials:
    """Write the texts and count the fate of every guess; arguments of `measure_calibration`."""
    one = with_tree(
        decoder,
        "opt_tree",
        {"threshold": 0.0},
        verifier=exact_verifier("deterministic", temperature),
        node_budget=num_nodes,
    )
    trials = Trials()
    for prompt in progress(prompts):
        one.generate(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            on_round=trials.count,
        )
    return trials


def fit_calibration(
    probability: npt.NDArray[np.float64], accepted: npt.NDArray[np.bool_], bins: int
) -> Calibration:
    """The table of trials: ``[n]`` draft probabilities above 0, and whether each was accepted.

    One more trial in each bin goes as the drafter's probability says, so that few trials do not
    claim certainty.
    """
    value, place = np.unique(probability, return_inverse=True)  # equal ones stay together
    trials = np.bincount(place)
    mass = np.cumsum(value * trials)
    bin_of = np.minimum((bins * (mass - value * trials / 2) / mass[-1]).astype(int), bins - 1)
    weight = _sums(trials, bin_of)
    mean = _sums(value * trials, bin_of) / weight
    share = (_sums(np.bincount(place, weights=accepted), bin_of) + mean) / (weight + 1)
    rises = np.diff(mean, prepend=0.0) > 0  # rounding may tie the means of close bins
    mean, share, weight = mean[rises], share[rises], weight[rises]
    fit = _core.non_increasing_fit(share[::-1].tolist(), weight[::-1].tolist())[::-1]
    pairs = [[float(q), float(a)] for q, a in zip(mean, fit, strict=True)]
    return Calibration(pairs, weight.astype(int).tolist())


def _sums(values: npt.NDArray[Any], bin_of: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Sum by bin, without the empty bins."""
    filled = np.unique(bin_of)
    return np.bincount(bin_of, weights=values)[filled]


class Trials:
    """Draft probability and fate of every guess the walk looked at."""

    def __init__(self) -> None:
        self.probability: list[float] = []
        self.accepted: list[bool] = []

    def fit(self, bins: int) -> Calibration:
        """The table; at least one trial."""
        return fit_calibration(np.array(self.probability), np.array(self.accepted), bins)

    def count(self, record: RoundRecord) -> None:
        """Count the children of the accepted nodes."""
        trials = trials_of(record)
        possible = trials.probability > 0
        self.probability += trials.probability[possible].tolist()
        self.accepted += trials.accepted[possible].tolist()
