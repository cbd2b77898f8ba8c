# SPDX-License-Identifier: Apache-2.0
"""The profile of a pair: all that the budget rule reads, measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.decoder import SpeculativeDecoder
from treespec.drafts.base import DraftSettings
from treespec.growth import as_float32
from treespec.identity import identity_of
from treespec.profile import Profile, TargetSeconds
from treespec.stats import Stats
from treespec.targets.base import Needs, TargetStates, TreeRows, in_host_memory
from treespec.text import encode
from treespec.tuning.acceptance import Acceptance, measure_acceptance
from treespec.tuning.calibration import count_trials
from treespec.tuning.costs import ROWS, time_target, undisturbed
from treespec.tuning.pair import PROPOSALS, Progress, as_decoder, prompt_list, with_tree

CONTEXTS = (64, 256, 1024, 4096)
# Tokens to catch up with, and nodes of a level.
_CALL_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_TREE_NODES = 16  # of the rounds whose steps outside the models are timed
_TEXT_TOKENS = 48
_CALIBRATED_NODES, _BINS = 32, 20


def measure_profile(
    models: Any,
    prompts: Sequence[Any],
    *,
    temperature: float = 0.0,
    rows: Sequence[int] = ROWS,
    contexts: Sequence[int] = CONTEXTS,
    batches: Sequence[int] = (1,),
    repetitions: int = 9,
    max_depth: int = 4,
    max_new_tokens: int = 128,
    seed: int = 0,
    progress: Progress[Any] = iter,
) -> Profile:
    """Measure target and drafter by rows, context and batch, and what is accepted.

    Parameters
    ----------
    models, prompts, temperature, max_new_tokens, seed, progress
        As in `measure_acceptance`, which is run for every proposal mode at this temperature
        (deterministic trees alone at 0).
    rows
        Rows of one sequence to time target forwards with; one is timed always, and none beyond what
        an exported target was made for.
    contexts, batches
        Committed tokens, and sequences; what does not fit the target's context is left out.
    repetitions
        Forwards for each figure; the lower quartile counts.
    max_depth
        Depths of the acceptance table.

    Raises
    ------
    ValueError
        For bad sizes, no prompts, or a context that holds none of `contexts` with `rows`.
    """
    _check_sizes(rows=rows, contexts=contexts, batches=batches, repetitions=[repetitions])
    decoder, prompts = as_decoder(models), prompt_list("measure_profile", prompts)
    text = _long_text(decoder, prompts, max(contexts))
    most = getattr(decoder.target, "max_nodes", max(rows))  # of an exported target
    rows, batches = sorted({n for n in rows if n <= most} | {1}), sorted({*batches})
    contexts = _that_fit(decoder, contexts, rows[-1], len(text))
    jobs: list[Any] = [(context, batch) for context in contexts for batch in batches]
    catcher, start = _Catcher(decoder, text), contexts[0] // 2
    target = []
    for context, batch in progress(jobs):
        seconds = time_target(
            decoder,
            [text[:context]] * batch,
            rows,
            repetitions,
            between=lambda: catcher.seconds(start, 1),
        )
        own = {n * batch: value for n, value in seconds.items()}
        target.append(TargetSeconds(context, batch, own))
    draft_call = _draft_calls(catcher, start, repetitions)
    drafted_round, plain_round = _outside_models(decoder, prompts, temperature, seed, progress)
    keywords: Any = {
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "progress": progress,
    }
    proposals = PROPOSALS if temperature > 0 else PROPOSALS[:1]
    acceptance = {"deterministic": [[0.0]]}
    calibration: list[list[float]] = []
    if decoder.target.supports_trees:
        acceptance = {
            proposal: _never_impossible(
                measure_acceptance(
                    decoder, prompts, max_depth=max_depth, proposal=proposal, **keywords
                )
            )
            for proposal in proposals
        }
        trials = count_trials(decoder, prompts, num_nodes=_CALIBRATED_NODES, **keywords)
        calibration = trials.fit(_BINS).table if trials.probability else []
    return Profile(
        target=tuple(target),
        draft_call=draft_call,
        drafts_by_level=_by_level(decoder),
        drafted_round=drafted_round,
        plain_round=plain_round,
        acceptance=acceptance,
        calibration=calibration,
        identity=identity_of(decoder.target, decoder.drafter),
        metadata={
            "temperature": temperature,
            "prompts": len(prompts),
            "date": datetime.now(timezone.utc).date().isoformat(),
        },
    )


def _never_impossible(measured: Acceptance) -> list[list[float]]:
    """The table, with half an acceptance where none was seen: seldom is not never."""
    return [
        [max(row[0], 0.5 / (trials + 1)), *row[1:]]
        for row, trials in zip(measured.table, measured.trials, strict=True)
    ]


def _check_sizes(**sizes: Sequence[int]) -> None:
    for name, values in sizes.items():
        if not len(values) or min(values) < 1:
            raise ValueError(f"measure_profile: {name} must be at least 1, got {values}")


def _by_level(decoder: SpeculativeDecoder) -> bool:
    return decoder.drafter is not None and decoder.drafter.source_kind == "Expander"


def _long_text(
    decoder: SpeculativeDecoder, prompts: Sequence[Any], length: int
) -> npt.NDArray[np.int32]:
    """The prompts one after the other, again and again."""
    once = np.concatenate([encode(decoder.tokenizer, prompt) for prompt in prompts])
    return np.tile(once, -(-length // len(once)))[:length]


def _that_fit(
    decoder: SpeculativeDecoder, contexts: Sequence[int], rows: int, longest: int
) -> list[int]:
    limits = [getattr(model, "max_context", None) for model in (decoder.target, decoder.drafter)]
    room = min([limit for limit in limits if limit is not None], default=longest + rows) - rows
    fitting = sorted(context for context in {*contexts} if context <= room)
    if fitting:
        return fitting
    if room < 1:
        raise ValueError(
            f"measure_profile: rows must fit the context of {room + rows} tokens, got {rows}"
        )
    return [room]


class _Catcher:
    """Times a drafter's pass after tokens that it had not seen."""

    def __init__(self, decoder: SpeculativeDecoder, text: npt.NDArray[np.int32]) -> None:
        assert decoder.drafter is not None
        self.decoder, self.drafter, self.text = decoder, decoder.drafter, text
        self.states: TargetStates | None = None
        if self.drafter.needs != Needs():
            sequence = decoder.target.open(len(text))
            try:
                _, (self.states,) = decoder.target.prefill([sequence], [text], self.drafter.needs)
            finally:
                decoder.target.close(sequence)

    def seconds(self, start: int, rows: int, before: Callable[[], None] | None = None) -> float:
        """One draft after `rows` tokens behind the first `start` ones; `before` is called first."""
        last = start + 1 + rows
        session = self.drafter.begin(self.text[:start], self._rows(0, start), len(self.text) + 256)
        try:
            self.drafter.observe(session, self.text[start : start + 1], None)
            self._draft(session)
            if before is not None:
                before()
            begun = perf_counter()
            ids = self.text[start + 1 : last]
            self.drafter.observe(session, ids, self._rows(start, start + rows))
            self._draft(session)
            return perf_counter() - begun
        finally:
            self.drafter.end(session)

    def _draft(self, session: Any) -> None:
        settings = DraftSettings(max_depth=8, node_budget=_TREE_NODES)
        (source,) = self.drafter.draft([session], settings)
        if self.drafter.source_kind == "Expander":
            as_float32(source.expand(_Root()))  # the root's row, as a builder asks for it

    def _rows(self, first: int, last: int) -> TargetStates | None:
        return None if self.states is None else self.states.rows(np.arange(first, last))


class _Root:
    """The first frontier of every tree."""

    token = np.zeros(1, dtype=np.int32)
    parent = np.full(1, -1, dtype=np.int32)
    depth = np.zeros(1, dtype=np.int32)
    index = np.zeros(1, dtype=np.int32)

    def __len__(self) -> int:
        return 1


def _draft_calls(catcher: _Catcher, start: int, repetitions: int) -> dict[int, float]:
    """Each after a target forward, which leaves the caches to the drafter as it does in a round."""
    counts = [n for n in _CALL_ROWS if start + n + 1 < len(catcher.text)] or [1]
    samples: dict[int, list[float]] = {n: [] for n in counts}
    target, prefix = catcher.decoder.target, catcher.text[:start]
    state = target.open(start + 1)

    def one_row() -> None:
        logits, _ = target.forward([state], [TreeRows.chain(prefix[-1:])], Needs())
        in_host_memory(logits[0])
        target.commit([state], [np.empty(0, dtype=np.int32)])

    try:
        target.prefill([state], [prefix], Needs())
        for _ in range(repetitions + 1):
            for n in counts:
                samples[n].append(catcher.seconds(start, n, one_row))
    finally:
        target.close(state)
    return {n: undisturbed(seconds[1:]) for n, seconds in samples.items()}


def _outside_models(
    decoder: SpeculativeDecoder,
    prompts: Sequence[Any],
    temperature: float,
    seed: int,
    progress: Progress[Any],
) -> tuple[float, float]:
    """Seconds of a round outside both models: with a tree, and with none."""
    trees = decoder.target.supports_trees
    drafting = with_tree(decoder, "kary" if trees else "chain", {}, node_budget=_TREE_NODES)
    plain = with_tree(decoder, "kary" if trees else "chain", {}, node_budget=0)
    spent: dict[SpeculativeDecoder, list[float]] = {drafting: [], plain: []}
    for prompt in progress(prompts):
        for one, seconds in spent.items():
            result = one.generate(
                prompt,
                max_new_tokens=_TEXT_TOKENS,
                temperature=temperature,
                seed=seed,
                ignore_eos=True,
            )
            seconds.append(_outside(result.stats))
    return median(spent[drafting]), median(spent[plain])


def _outside(stats: Stats) -> float:
    models = ("prefill", "draft", "target")
    rest = sum(value for step, value in stats.seconds.items() if step not in models)
    return rest / max(stats.rounds, 1)
