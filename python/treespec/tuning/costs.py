# SPDX-License-Identifier: Apache-2.0
"""What a round costs on this machine: the target by number of rows, a drafter call, the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.decoder import SpeculativeDecoder
from treespec.stats import Stats
from treespec.targets.base import TreeRows, in_host_memory
from treespec.text import encode
from treespec.tuning.pair import Progress, as_decoder, exact_verifier, prompt_list, with_tree

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_WARM_FORWARDS = 6  # of one row, until the caches are those of plain decoding
_EXPANSION = (2, 1, 1, 1)  # a small tree of a few calls, to time the drafter with


@dataclass(frozen=True)
class Costs:
    """Medians, in seconds.

    Attributes
    ----------
    target_seconds
        One target forward by number of rows (drafted nodes + 1).
    draft_seconds
        One drafter call per level; 0 for drafters that hand over a table, however deep.
    round_seconds
        All else in a round: the pass that makes a table, build, mask, verify, commit.
    plain_seconds
        One token of plain decoding.
    """

    target_seconds: dict[int, float]
    draft_seconds: float
    round_seconds: float
    plain_seconds: float


def measure_costs(
    models: Any,
    prompts: Sequence[Any],
    *,
    rows: Sequence[int] = ROWS,
    repetitions: int = 9,
    temperature: float = 0.0,
    proposal: str = "deterministic",
    max_new_tokens: int = 32,
    seed: int = 0,
    progress: Progress[Any] = iter,
) -> Costs:
    """Time the steps of a round.

    Parameters
    ----------
    models, prompts, temperature, proposal, seed, progress
        As in `measure_acceptance`: draws and sampling cost time too. Forwards run behind the first
        prompt, the rest is the median over the prompts.
    rows
        Numbers of rows to time the target with; they are timed in turn, so that a drifting machine
        hits all alike.
    repetitions
        Forwards per number of rows, after one that is not counted.
    max_new_tokens
        Of the texts that time the drafter and the rest.

    Raises
    ------
    ValueError
        For bad sizes, no prompts, or more rows than the context holds.
    """
    if not len(rows) or min(rows) < 1 or repetitions < 1:
        raise ValueError(
            f"measure_costs: rows and repetitions must be at least 1, got {rows}, {repetitions}"
        )
    prompts = prompt_list("measure_costs", prompts)
    decoder = as_decoder(models)
    check_room(decoder, prompts[0], max(rows))
    prompt_ids = encode(decoder.tokenizer, prompts[0])
    target_seconds = time_target(decoder, [prompt_ids], sorted({*rows}), repetitions)
    builder, shape = "chain", {}
    if decoder.target.supports_trees:
        builder, shape = "kary", {"expansion": _EXPANSION}
    drafting = with_tree(
        decoder,
        builder,
        {**shape, "proposal": proposal},
        verifier=exact_verifier(proposal, temperature),
    )
    plain = SpeculativeDecoder(decoder.target, None, tokenizer=decoder.tokenizer)
    runs: dict[SpeculativeDecoder, list[Stats]] = {drafting: [], plain: []}
    for one, prompt in progress([(one, prompt) for prompt in prompts for one in runs]):
        result = one.generate(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            ignore_eos=True,
        )
        runs[one].append(result.stats)
    per_level = drafting.drafter is not None and drafting.drafter.source_kind == "Expander"
    return Costs(
        target_seconds,
        median(_per_call(stats) for stats in runs[drafting]) if per_level else 0.0,
        median(_rest_of_round(stats, per_level) for stats in runs[drafting]),
        median(_per_round(stats) for stats in runs[plain]),
    )


def check_room(decoder: SpeculativeDecoder, prompt: Any, rows: int) -> None:
    """ValueError when so many rows do not fit the target's context behind the prompt."""
    limit = decoder.target.max_context
    if limit is None:
        return
    room = limit - len(encode(decoder.tokenizer, prompt))
    if rows > room:
        raise ValueError(
            f"measure_costs: rows must fit the context behind the prompt ({room}), got {rows} "
            "(the root and the nodes)"
        )


def time_target(
    decoder: SpeculativeDecoder,
    token_ids: Sequence[npt.NDArray[np.int32]],
    rows: Sequence[int],
    repetitions: int,
    between: Callable[[], object] | None = None,
) -> dict[int, float]:
    """Seconds of a target forward by rows of each sequence, behind these tokens.

    All numbers are timed in turn, so that a drifting machine hits all alike: one row behind
    others, as plain decoding computes it, larger numbers after a call of `between`, the
    drafter's pass, which leaves the caches to the target as it finds them in a round.
    """
    target, needs = decoder.target, decoder.drafter.needs  # type: ignore[union-attr]
    trees = {n: _tree_of(n, int(token_ids[0][-1]), target.supports_trees) for n in rows}
    samples: dict[int, list[float]] = {n: [] for n in rows}
    states = [target.open(len(ids) + max(rows)) for ids in token_ids]
    nothing = [np.empty(0, dtype=np.int32)] * len(states)

    def time_forward(num_rows: int) -> float:
        start = perf_counter()
        logits, _ = target.forward(states, [trees[num_rows]] * len(states), needs)
        in_host_memory(logits[-1][-1:, :1])  # waits for the device, and copies next to nothing
        seconds = perf_counter() - start
        target.commit(states, nothing)
        return seconds

    try:
        target.prefill(states, token_ids, needs)
        for _ in range(repetitions + 1):
            for n in rows:
                if between is not None:
                    between()
                for _ in range(_WARM_FORWARDS if n == 1 else 0):
                    time_forward(n)
                samples[n].append(time_forward(n))
    finally:
        for state in states:
            target.close(state)
    return {n: undisturbed(seconds[1:]) for n, seconds in samples.items()}


def undisturbed(seconds: Sequence[float]) -> float:
    """The lower quartile: what else a machine does only makes a run slower."""
    return float(np.quantile(seconds, 0.25))


def _tree_of(num_rows: int, token: int, forks: bool) -> TreeRows:
    """A root and its children, or a chain where the target cannot fork."""
    chain = TreeRows.chain([token] * num_rows)
    if not forks:
        return chain
    return TreeRows(chain.token, np.minimum(chain.parent, 0), np.minimum(chain.depth, 1))


def _per_call(stats: Stats) -> float:
    return stats.seconds["draft"] / stats.draft_calls if stats.draft_calls else 0.0


def _per_round(stats: Stats) -> float:
    spent = sum(seconds for step, seconds in stats.seconds.items() if step != "prefill")
    return spent / max(stats.rounds, 1)


def _rest_of_round(stats: Stats, per_level: bool) -> float:
    levels = stats.seconds["draft"] if per_level and stats.draft_calls else 0.0
    return _per_round(stats) - (stats.seconds["target"] + levels) / max(stats.rounds, 1)
