# SPDX-License-Identifier: Apache-2.0
"""Plain decoding against settings of trees, on the same models and prompts, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from statistics import fmean, median
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from treespec import _core
from treespec.benchmarking.near_ties import common_length, is_near_tie
from treespec.benchmarking.settings import PLAIN, Setting
from treespec.benchmarking.timing import Samples, collected, ratio_interval
from treespec.config import SamplingParams
from treespec.decoder import SpeculativeDecoder
from treespec.generation import GenerateResult, RoundRecord
from treespec.reliability import Reliability
from treespec.stats import STEPS, Stats
from treespec.text import encode

_Job = TypeVar("_Job")
# Walks a list of jobs and shows how far it is: `rich.progress.track`, `tqdm`, or `iter`.
Progress = Callable[[Sequence[_Job]], Iterable[_Job]]


@dataclass(frozen=True)
class Agreement:
    """How texts compare with plain decoding's.

    Attributes
    ----------
    equal
        Texts that are the same, token for token.
    near_ties
        Texts that part where rounding may decide: the target's two best choices are as good as
        equal (docs/sampling.md).
    different
        Texts that part elsewhere, which no lossless setting may do.
    """

    equal: int = 0
    near_ties: int = 0
    different: int = 0


class Speedup(NamedTuple):
    """Plain decoding's time per token over a setting's, prefill included.

    Attributes
    ----------
    ratio
        Over all prompts, each weighing alike.
    low, high
        95 % interval of a bootstrap over the prompts: what other prompts of this kind would give.
    """

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Outcome:
    """What one setting did.

    Attributes
    ----------
    name, builder, verifier, node_budget, proposal
        The setting as it was resolved; `builder` is None for plain decoding.
    token_seconds
        ``[P]``: wall time per emitted token by prompt, prefill included; the median of the
        repetitions.
    speedup
        Against plain decoding.
    speedup_of_rounds
        The same without the prefill (`Stats.speedup_estimate`), from mean times.
    stats
        Counts of all prompts, each once; times by step are means over the repetitions.
    reliability
        Predicted against realised acceptance; None without deterministic trees, where a guess's
        probability says nothing of a rejection rule.
    agreement
        None where a setting keeps the target's law but not plain decoding's draws, so that texts
        are not comparable.
    typical_round
        One that accepted about as many guesses as the mean round; None without guesses.
    """

    name: str
    builder: str | None
    verifier: str
    node_budget: int
    proposal: str | None
    token_seconds: list[float]
    speedup: Speedup
    speedup_of_rounds: float
    stats: Stats
    reliability: Reliability | None
    agreement: Agreement | None
    typical_round: RoundRecord | None

    @property
    def tokens_per_second(self) -> float:
        """Over all prompts, each weighing alike; prefill included."""
        return 1.0 / fmean(self.token_seconds)


@dataclass(frozen=True)
class Comparison:
    """Outcomes on the same prompts; the first one is plain decoding.

    Attributes
    ----------
    outcomes
        In the order of the settings.
    num_prompts, repetitions
        How often each of how many prompts was timed.
    params
        How texts were drawn.
    """

    outcomes: list[Outcome]
    num_prompts: int
    repetitions: int
    params: SamplingParams


def compare(
    models: SpeculativeDecoder,
    settings: Sequence[Setting],
    prompts: Sequence[Any],
    params: SamplingParams,
    *,
    repetitions: int = 3,
    progress: Progress[Any] = iter,
) -> Comparison:
    """Time plain decoding and every setting.

    A first pass over the prompts is not timed: it warms up, compares texts and counts. In the timed
    passes every prompt goes through all settings before the next one (A B C A B C), so that a
    drifting machine hits all alike, with the garbage collector off.

    Parameters
    ----------
    models
        Target, drafter and tokenizer; its trees are not used.
    settings
        Named differently, and not ``"plain"``.
    prompts
        Texts or lists of token ids. Prompt i is drawn with seed ``params.seed + i``.
    params
        The same for all.
    repetitions
        Timed passes.
    progress
        Walks over the jobs, for a progress bar.

    Raises
    ------
    ValueError
        Without a drafter, settings, prompts or repetitions, for names that are not distinct, and
        before any work for a setting that cannot run.
    """
    _check(models, settings, prompts, repetitions)
    plain = SpeculativeDecoder(models.target, None, tokenizer=models.tokenizer)
    contestants = [_Contestant(PLAIN, plain)]
    contestants += [_Contestant(setting.name, setting.decoder(models)) for setting in settings]
    jobs = [
        (repetition, place, one)
        for repetition in range(repetitions + 1)
        for place in range(len(prompts))
        for one in contestants
    ]
    for repetition, place, one in progress(jobs):
        own = replace(params, seed=params.seed + place)
        if repetition == 0:
            one.observe(prompts[place], own)
        else:
            one.measure(place, prompts[place], own)
    ids = [encode(models.tokenizer, prompt) for prompt in prompts]
    outcomes = [one.outcome(contestants[0], ids, params) for one in contestants]
    return Comparison(outcomes, len(prompts), repetitions, params)


def _check(
    models: SpeculativeDecoder,
    settings: Sequence[Setting],
    prompts: Sequence[Any],
    repetitions: int,
) -> None:
    if models.drafter is None:
        raise ValueError("bench: models must have a drafter, plain decoding has none")
    names = [setting.name for setting in settings]
    if not names or len({PLAIN, *names}) <= len(names):
        raise ValueError(
            f"bench: settings must have names that differ, also from {PLAIN!r}, got {names}"
        )
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"bench: prompts must be a list of prompts, got {prompts!r}")
    if repetitions < 1:
        raise ValueError(f"bench: repetitions must be at least 1, got {repetitions}")


@dataclass
class _Contestant:
    """A decoder on its way through the passes."""

    name: str
    decoder: SpeculativeDecoder
    texts: list[list[int]] = field(default_factory=list)
    counts: list[Stats] = field(default_factory=list)
    reliability: Reliability = field(default_factory=Reliability)
    rounds: list[RoundRecord] = field(default_factory=list)
    samples: dict[int, Samples] = field(default_factory=dict)
    timed: list[Stats] = field(default_factory=list)

    def observe(self, prompt: Any, params: SamplingParams) -> None:
        """Generate untimed, look at every round, and keep those of the first prompt."""
        first = not self.texts

        def on_round(record: RoundRecord) -> None:
            self.reliability.count(record)
            if first:
                self.rounds.append(record)

        result = _generate(self.decoder, prompt, params, on_round=on_round)
        self.texts.append(result.token_ids)
        self.counts.append(result.stats)

    def measure(self, place: int, prompt: Any, params: SamplingParams) -> None:
        """Generate timed."""
        samples = self.samples.setdefault(place, Samples())
        with collected():
            result = samples.measure(lambda: _generate(self.decoder, prompt, params))
        self.timed.append(result.stats)

    def outcome(
        self, plain: _Contestant, prompts: Sequence[npt.NDArray[np.int32]], params: SamplingParams
    ) -> Outcome:
        drafts = self.decoder.drafter is not None
        stats = self._stats()
        return Outcome(
            name=self.name,
            builder=self.decoder.builder_name if drafts else None,
            verifier=self._verifier(params),
            node_budget=self.decoder.node_budget if drafts else 0,
            proposal=self.decoder.builder.proposal if drafts else None,
            token_seconds=self._token_seconds(),
            speedup=Speedup(*ratio_interval(plain._token_seconds(), self._token_seconds())),
            speedup_of_rounds=_speedup_of_rounds(stats, plain._stats()),
            stats=stats,
            reliability=self._reliability(),
            agreement=self._agreement(plain, prompts, params),
            typical_round=self._typical_round(stats),
        )

    def _token_seconds(self) -> list[float]:
        return [
            median(self.samples[place].wall) / max(len(text), 1)
            for place, text in enumerate(self.texts)
        ]

    def _stats(self) -> Stats:
        """Counts of the first pass: the others repeat it. Times of the timed ones."""
        stats = Stats.total(self.counts)
        times = Stats.total(self.timed).seconds
        passes = len(self.timed) / len(self.counts)
        stats.seconds = {step: times[step] / passes for step in STEPS}
        return stats

    def _verifier(self, params: SamplingParams) -> str:
        decoder = self.decoder
        if decoder.drafter is None:
            return _core.auto_verifier("deterministic", params.greedy)
        if decoder.verifier_name == "auto":
            return _core.auto_verifier(decoder.builder.proposal, params.greedy)
        return decoder.verifier_name

    def _reliability(self) -> Reliability | None:
        counted = self.reliability.trials and self.decoder.builder.proposal == "deterministic"
        return self.reliability if counted else None

    def _agreement(
        self, plain: _Contestant, prompts: Sequence[npt.NDArray[np.int32]], params: SamplingParams
    ) -> Agreement | None:
        same_draws = params.greedy or self._verifier(params) == "target_only"
        if self is plain or self.decoder.lossy or not same_draws:
            return None
        kinds = [
            _compare_texts(plain, prompt, place, self.texts[place], params)
            for place, prompt in enumerate(prompts)
        ]
        return Agreement(**{kind: kinds.count(kind) for kind in set(kinds)})

    def _typical_round(self, stats: Stats) -> RoundRecord | None:
        guessed = [record for record in self.rounds if len(record.tree) > 1]
        mean = stats.accepted / max(stats.rounds, 1)
        return min(
            guessed, key=lambda record: abs(record.verdict.num_accepted - mean), default=None
        )


def _generate(
    decoder: SpeculativeDecoder, prompt: Any, params: SamplingParams, **options: Any
) -> GenerateResult:
    keywords = {one.name: getattr(params, one.name) for one in fields(params)}
    result: GenerateResult = decoder.generate(prompt, **keywords, **options)
    return result


def _speedup_of_rounds(stats: Stats, plain: Stats) -> float:
    """0 where texts of one token leave no round to time."""
    seconds = plain.seconds_per_token
    return stats.speedup_estimate(seconds) if seconds else 0.0


def _compare_texts(
    plain: _Contestant,
    prompt: npt.NDArray[np.int32],
    place: int,
    text: list[int],
    params: SamplingParams,
) -> str:
    """The field of `Agreement` that counts this text."""
    expected = plain.texts[place]
    if text == expected:
        return "equal"
    parted = common_length(expected, text)
    if parted == min(len(expected), len(text)):
        return "different"  # one ends where the other goes on
    own = replace(params, seed=params.seed + place)
    choices = (expected[parted], text[parted])
    tie = is_near_tie(plain.decoder, prompt, expected[:parted], choices, own)
    return "near_ties" if tie else "different"
