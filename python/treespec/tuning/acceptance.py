# SPDX-License-Identifier: Apache-2.0
"""How often the target accepts a guess, by depth and sibling rank.

Source: Chen et al., "Sequoia", 2024, arXiv 2402.12374: the positional acceptance vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from treespec import _core
from treespec.generation import RoundRecord
from treespec.tuning.pair import (
    PROPOSALS,
    Progress,
    as_decoder,
    exact_verifier,
    prompt_list,
    with_tree,
)

MIN_TRIALS = 100  # a depth seen less often is left out: its shares would be noise


@dataclass(frozen=True)
class Acceptance:
    """Counts of a measurement.

    Attributes
    ----------
    counts
        ``[d][r]``: rounds in which the child of rank r below an accepted node of depth d was the
        one accepted.
    trials
        ``[d]``: rounds in which a node of depth d was accepted and could be gone on from.
    """

    counts: list[list[int]]
    trials: list[int]

    @property
    def table(self) -> list[list[float]]:
        """Shares as `GrowthMap.optimal` takes them; each row is smoothed so that it never rises."""
        return [_core.non_increasing_fit(row) for row in self.shares]

    @property
    def shares(self) -> list[list[float]]:
        """The raw shares, counts over trials."""
        return [
            [count / total for count in row]
            for row, total in zip(self.counts, self.trials, strict=True)
        ]


def measure_acceptance(
    models: Any,
    prompts: Sequence[Any],
    *,
    width: int = 32,
    max_depth: int = 1,
    temperature: float = 0.6,
    proposal: str | None = None,
    max_new_tokens: int = 128,
    seed: int = 0,
    progress: Progress[Any] = iter,
) -> Acceptance:
    """Measure Sequoia's acceptance vector, a row for each depth.

    For each depth one run drafts a path of single nodes down to it and `width` children there, and
    counts which of them the verifier accepts. The text is the target's own throughout. Rows below
    the first are thus those of the likeliest path; side branches do a little worse.

    Parameters
    ----------
    models
        A `SpeculativeDecoder`, whose models are used, or a (target, drafter) pair for
        `treespec.load`.
    prompts
        Texts or lists of token ids.
    width
        Children that are tried; a row has so many entries.
    max_depth
        Rows wanted. Depths with fewer than 100 trials are left out.
    temperature
        The target's; acceptance depends on it.
    proposal
        ``"deterministic"``: ranks are the drafter's order. ``"without_replacement"``: ranks are
        draws, verified by recursive rejection. None: the first at temperature 0, else the second.
    max_new_tokens, seed
        Of each text; drawn numbers are those of `SpeculativeDecoder.generate`.
    progress
        Walks the list of runs, for instance ``rich.progress.track``.

    Raises
    ------
    ValueError
        For bad sizes, another proposal, no prompts, or texts too short to count anything.
    NotImplementedError
        For a target that cannot verify trees.

    Examples
    --------
    >>> import treespec.tuning
    >>> measured = treespec.tuning.measure_acceptance(
    ...     ("demo", "demo"), ["def main():"], width=4, max_new_tokens=16, temperature=0
    ... )  # doctest: +SKIP
    >>> treespec.GrowthMap.optimal(measured.table, 16).save("map.json")  # doctest: +SKIP
    """
    if width < 1 or max_depth < 1:
        raise ValueError(
            "measure_acceptance: width and max_depth must be at least 1, "
            f"got {width} and {max_depth}"
        )
    prompts = prompt_list("measure_acceptance", prompts)
    if proposal is None:
        proposal = "without_replacement" if temperature > 0 else "deterministic"
    if proposal not in PROPOSALS:
        raise ValueError(
            f"measure_acceptance: proposal must be {' or '.join(PROPOSALS)}, got {proposal!r}"
        )
    decoder = as_decoder(models)
    tallies = [_Tally(depth, width, max_new_tokens) for depth in range(1, max_depth + 1)]
    decoders = [
        with_tree(
            decoder,
            "kary",
            {"expansion": [1] * (tally.depth - 1) + [width], "proposal": proposal},
            verifier=exact_verifier(proposal, temperature),
        )
        for tally in tallies
    ]
    for tally, one, prompt in progress(
        [(t, d, prompt) for t, d in zip(tallies, decoders, strict=True) for prompt in prompts]
    ):
        tally.begin()
        one.generate(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            on_round=tally.count,
        )
    kept = [tally for tally in tallies if tally.depth == 1 or tally.trials >= MIN_TRIALS]
    if not kept[0].trials:
        raise ValueError(
            "measure_acceptance: texts must have rounds to count, these ended at once "
            f"(max_new_tokens={max_new_tokens})"
        )
    return Acceptance([tally.counts for tally in kept], [tally.trials for tally in kept])


class _Tally:
    """Counts the accepted rank at one depth."""

    def __init__(self, depth: int, width: int, max_new_tokens: int) -> None:
        self.depth, self.max_new_tokens = depth, max_new_tokens
        self.counts, self.trials = [0] * width, 0
        self._first: int | None = None

    def begin(self) -> None:
        """A new text."""
        self._first = None

    def count(self, record: RoundRecord) -> None:
        if self._first is None:
            self._first = record.position
        # Nodes that could not be emitted any more are not drafted: such a round shows nothing.
        useful_depth = self.max_new_tokens - 2 - (record.position - self._first)
        path = [0, *record.verdict.accepted_nodes.tolist()]
        if useful_depth < self.depth or len(path) < self.depth:
            return
        self.trials += 1
        if len(path) > self.depth:
            siblings = list(record.tree.draws[path[self.depth - 1]])
            self.counts[siblings.index(path[self.depth])] += 1
