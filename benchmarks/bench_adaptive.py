# SPDX-License-Identifier: Apache-2.0
"""Trees sized by measured costs against every fixed size, and against none, on the demo pair.

Held-out prompts are ranked by how much a fixed tree gets accepted on them, in a pass of its own
with other seeds: the upper third are the easy ones, the lower third the hard ones, all the mixed
ones. The profile is measured first, on other prompts. All share the models and run in turn.
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import treespec
from treespec import Profile, demo, tuning
from treespec.decoder import SpeculativeDecoder
from treespec.drafts.autoregressive import AutoregressiveDrafter

BUDGETS = (8, 16, 32, 64, 128)
PLAIN, ADAPTIVE = "plain", "adaptive"


@dataclass
class Runs:
    """One decoder: seconds by prompt and repetition, and how its rounds were spent."""

    decoder: SpeculativeDecoder
    samples: dict[tuple[int, int], float] = field(default_factory=dict)
    nodes: list[int] = field(default_factory=list)

    def run(self, prompt: str, place: tuple[int, int], clock: str, **options: Any) -> list[int]:
        """Write one text and keep its time."""
        taken = harness.Samples()
        with harness.collected():
            result = taken.measure(
                lambda: self.decoder.generate(prompt, ignore_eos=True, **options)
            )
        self.samples[place] = getattr(taken, clock)[0]
        self.nodes.append(result.stats.drafted_nodes / max(result.stats.rounds, 1))
        return result.token_ids


def decoders(pair: SpeculativeDecoder, profile: Profile, budgets: Sequence[int]) -> dict[str, Runs]:
    """Plain decoding, every fixed size, and the adaptive one, over the same models."""
    shared: Any = {"tokenizer": pair.tokenizer}
    out = {PLAIN: SpeculativeDecoder(pair.target, None, **shared)}
    for budget in budgets:
        out[str(budget)] = SpeculativeDecoder(
            pair.target, pair.drafter, node_budget=budget, **shared
        )
    out[ADAPTIVE] = SpeculativeDecoder(pair.target, pair.drafter, profile=profile, **shared)
    return {name: Runs(decoder) for name, decoder in out.items()}


def by_difficulty(
    pair: SpeculativeDecoder, prompts: Sequence[str], temperature: float
) -> list[int]:
    """Places of the prompts, the easiest first."""
    reached = [
        np.mean(
            [
                pair.generate(
                    prompt, max_new_tokens=64, temperature=temperature, seed=seed, ignore_eos=True
                ).stats.block_efficiency
                for seed in (101, 102)
            ]
        )
        for prompt in track(prompts, "difficulty")
    ]
    return np.argsort(reached)[::-1].tolist()


def race(
    runs: dict[str, Runs],
    prompts: Sequence[str],
    *,
    repetitions: int,
    new_tokens: int,
    temperature: float,
    clock: str,
) -> int:
    """Let all write every text in turn; how many tokens differ from plain decoding's."""
    differ = 0
    for place, prompt in enumerate(track(prompts, "texts")):
        for repetition in range(repetitions):
            options: Any = {
                "max_new_tokens": new_tokens, "temperature": temperature, "seed": repetition,
            }  # fmt: skip
            texts = {
                name: one.run(prompt, (place, repetition), clock, **options)
                for name, one in runs.items()
            }
            differ += sum(
                a != b for text in texts.values() for a, b in zip(texts[PLAIN], text, strict=True)
            )
    return differ


def ratios(runs: dict[str, Runs], places: Sequence[int], repetitions: int) -> dict[str, Any]:
    """Speed of every decoder over plain decoding's, and the adaptive one over the best fixed."""

    def seconds(name: str) -> list[float]:
        return [sum(runs[name].samples[place, r] for r in range(repetitions)) for place in places]

    speed = {name: harness.ratio_interval(seconds(PLAIN), seconds(name)) for name in runs}
    fixed = [name for name in runs if name not in (PLAIN, ADAPTIVE)]
    best = max(fixed, key=lambda name: speed[name][0])
    return {
        "over_plain": speed,
        "best_fixed": best,
        "adaptive_over_best_fixed": harness.ratio_interval(seconds(best), seconds(ADAPTIVE)),
        "adaptive_over_each": {
            name: harness.ratio_interval(seconds(name), seconds(ADAPTIVE)) for name in fixed
        },
    }


def hopeless(pair: SpeculativeDecoder, seed: int = 0) -> SpeculativeDecoder:
    """The demo target with a drafter of random weights."""
    model = copy.deepcopy(pair.drafter.model)  # type: ignore[union-attr]
    torch.manual_seed(seed)
    model.init_weights()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    drafter = AutoregressiveDrafter(model, pair.target.vocab_size)
    return SpeculativeDecoder(pair.target, drafter, tokenizer=pair.tokenizer)


def hopeless_race(
    pair: SpeculativeDecoder, prompts: Sequence[str], clock: str, tokens: int
) -> dict[str, Any]:
    """Long texts with a useless drafter, under the profile of the useful one and under its own."""
    bad = hopeless(pair)
    useful = tuning.measure_profile(pair, demo.prompts()[:4], temperature=0.7, max_new_tokens=64)
    own = tuning.measure_profile(bad, demo.prompts()[:4], temperature=0.7, max_new_tokens=64)
    runs = {PLAIN: Runs(SpeculativeDecoder(pair.target, None, tokenizer=pair.tokenizer))}
    for name, one in (("the useful drafter's", useful), ("its own", own)):
        decoder = SpeculativeDecoder(bad.target, bad.drafter, tokenizer=pair.tokenizer, profile=one)
        runs[name] = Runs(decoder)
    for place, prompt in enumerate(track(prompts, "hopeless")):
        for one in runs.values():
            one.run(prompt, (place, 0), clock, max_new_tokens=tokens, temperature=0.7, seed=place)
    seconds = {name: list(one.samples.values()) for name, one in runs.items()}
    return {
        name: harness.ratio_interval(seconds[PLAIN], seconds[name])
        for name in runs
        if name != PLAIN
    }


def show(
    console: Console, temperature: float, groups: dict[str, Any], runs: dict[str, Runs]
) -> None:
    """One table: rows are decoders, columns are groups of prompts."""
    table = Table(title=f"speed over plain decoding, temperature {temperature:g}")
    table.add_column("nodes")
    table.add_column("mean")
    for group in groups:
        table.add_column(group)
    for name, one in runs.items():
        cells = [_interval(groups[group]["over_plain"][name]) for group in groups]
        table.add_row(name, f"{np.mean(one.nodes):.1f}", *cells)
    versus = [_interval(groups[group]["adaptive_over_best_fixed"]) for group in groups]
    table.add_row("adaptive / best fixed", "", *versus)
    console.print(table)


def _interval(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"


def held_out() -> list[str]:
    """Beginnings of the demo's held-out files."""
    path = Path(demo.__file__).with_name("held_out.json")
    return [entry["text"] for entry in json.loads(path.read_text(encoding="utf-8"))]


def main() -> None:
    """Run and report."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.0, 0.7])
    parser.add_argument("--prompts", type=int, default=24, metavar="N")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--hopeless-texts", type=int, default=6, metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    repetitions = options.repetitions or (1 if options.quick else 2)
    prompts = held_out()[: 4 if options.quick else options.prompts]
    budgets = BUDGETS[:2] if options.quick else BUDGETS
    pair = treespec.load(profile=None)
    results: dict[str, Any] = {}
    for temperature in options.temperatures:
        profile = tuning.measure_profile(
            pair, demo.prompts(), temperature=temperature, progress=_bar("profile")
        )
        order = by_difficulty(pair, prompts, temperature)
        third = max(1, len(prompts) // 3)
        groups = {"easy": order[:third], "hard": order[-third:], "mixed": order}
        runs = decoders(pair, profile, budgets)
        race(runs, prompts[:1], repetitions=1, new_tokens=16, temperature=temperature, clock="wall")
        for one in runs.values():
            one.samples.clear(), one.nodes.clear()
        differ = race(
            runs,
            prompts,
            repetitions=repetitions,
            new_tokens=options.new_tokens,
            temperature=temperature,
            clock=options.clock,
        )
        found = {name: ratios(runs, groups[name], repetitions) for name in groups}
        show(console, temperature, found, runs)
        results[f"temperature {temperature:g}"] = {
            "groups": found,
            "tokens_unlike_plain": differ,
            "mean_nodes": {name: float(np.mean(one.nodes)) for name, one in runs.items()},
            "profile": profile.costs().target_seconds(64, 1, 129),
            "seconds": {
                name: {f"{p}/{r}": value for (p, r), value in one.samples.items()}
                for name, one in runs.items()
            },
        }
    if options.hopeless_texts:
        tokens = 200 if options.quick else 1000
        count = 1 if options.quick else options.hopeless_texts
        results["hopeless"] = hopeless_race(pair, prompts[:count], options.clock, tokens)
        for name, values in results["hopeless"].items():
            console.print(
                f"hopeless drafter, profile {name}: {_interval(values)} x plain, {tokens} tokens"
            )
    command = (
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python {shlex.join(sys.argv)}"
    )
    harness.write_report(options.json, "adaptive", command, options, results)


def _bar(what: str) -> Callable[[Sequence[Any]], Any]:
    return lambda jobs: track(jobs, what)


if __name__ == "__main__":
    main()
