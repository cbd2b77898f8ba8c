# SPDX-License-Identifier: Apache-2.0
"""Does a selector of (K, L1, L2) trees overtake Traversal? The claim of arXiv 2602.16994.

Selectors are trained on labels of texts from training prompts, and judged on held-out prompts:
`recursive_rejection` with a selector, with the best static delayed tree, with the best static tree
from the root, and `traversal` with the best static tree from the root. By replay (expected tokens;
seconds by measured costs, what the choice costs counted), also with the costs of a large target,
whose forward does not depend on its rows; and by real generations. Static trees are chosen on the
training prompts, so that nobody is scored on prompts that chose for him. Intervals are a bootstrap
over prompts.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import harness
import numpy as np
import torch
from bench_decode import load_prompts
from rich.console import Console
from rich.progress import track

import treespec
from treespec import SpeculativeDecoder, tuning
from treespec.cli.train_selector import print_rows
from treespec.planning.selector import SelectorPlan
from treespec.selector.actions import Action
from treespec.selector.features import STATES, Setting
from treespec.selector.labels import Labels, collect_labels
from treespec.selector.latency import ROWS
from treespec.selector.report import Row, as_json, compare, overall
from treespec.selector.selector import Selector, StaticChoice
from treespec.selector.training import Problem, Schedule, static_outcome, train_selector
from treespec.training.data import read_prompts
from treespec.tuning.costs import Costs

SETTINGS = (Setting(0.4), Setting(0.7), Setting(1.0), Setting(1.0, 0.9))
VERIFIER, REFERENCE = "recursive_rejection", "traversal"
PAPER = Schedule(objective="log_ratio", penalty=1.0, learning_rate=3e-4)
# A forward of one unit whatever its rows, a drafter call of a twentieth.
LARGE = Costs({1: 1.0, 41: 1.0}, 0.05, 0.0, 1.0)
KINDS = {
    "laws": ((), Schedule()),
    "laws, the paper's loss": ((), PAPER),
    "laws and states": (STATES, Schedule()),
}


# --- Labels and costs -----------------------------------------------------------------------------


def labels_of(
    path: Path | None, decoder: SpeculativeDecoder, prompts: Sequence[Any], supersets: int, new: int
) -> Labels:
    """From a file, or made and kept there."""
    if path is not None and path.exists():
        return Labels.load(path)
    labels = collect_labels(
        decoder,
        prompts,
        SETTINGS,
        verifiers=(VERIFIER, REFERENCE),
        root_only=(REFERENCE,),
        new_tokens=new,
        supersets=supersets,
        progress=lambda jobs: track(jobs, "label", console=Console(stderr=True)),
    )
    if path is not None:
        labels.save(path)
    return labels


def costs_of(path: Path | None, decoder: SpeculativeDecoder, quick: bool) -> Costs:
    """From another benchmark's report, or measured now."""
    if path is not None:
        found = json.loads(path.read_text(encoding="utf-8"))["results"]["costs"]
        found["target_seconds"] = {int(n): s for n, s in found["target_seconds"].items()}
        return Costs(**found)
    return tuning.measure_costs(
        decoder,
        load_prompts(3, 64, False),
        rows=ROWS,
        repetitions=3 if quick else 15,
        temperature=0.7,
        proposal="iid",
    )


# --- What a choice costs --------------------------------------------------------------------------


class _Timed(SelectorPlan):
    """Notes how long choices take."""

    def __init__(self, plan: SelectorPlan) -> None:
        self.__dict__.update(plan.__dict__)
        self.seconds: list[float] = []

    def choose(self, g: Any, source: Any) -> Action:
        start = perf_counter()
        action = super().choose(g, source)
        self.seconds.append(perf_counter() - start)
        return action


def selecting_seconds(
    decoder: SpeculativeDecoder, selector: Selector, new_tokens: int
) -> dict[str, float]:
    """Median seconds of a choice, and its share of a round."""
    own = with_selector(decoder, selector)
    assert isinstance(own.planner, SelectorPlan)
    own.planner = timed = _Timed(own.planner)
    rounds, spent = 0, 0.0
    for prompt in load_prompts(4, 64, False):
        result = own.generate(prompt, max_new_tokens=new_tokens, temperature=0.7, ignore_eos=True)
        rounds += result.stats.rounds
        spent += sum(s for step, s in result.stats.seconds.items() if step != "prefill")
    choice = float(np.median(timed.seconds))
    return {"seconds": choice, "share_of_round": choice / (spent / rounds)}


def static_round_seconds(labels: Labels, costs: Costs) -> float:
    """Mean over roots of a round with the best static trees."""
    problem = Problem.of(labels, VERIFIER, costs)
    place = problem.static_places(problem.static_choices())
    return float(static_outcome(problem, place).seconds.mean())


def with_selector(decoder: SpeculativeDecoder, selector: Selector) -> SpeculativeDecoder:
    """The same models."""
    return SpeculativeDecoder(decoder.target, decoder.drafter, builder="delayed", selector=selector)


def with_action(decoder: SpeculativeDecoder, verifier: str, action: Action) -> SpeculativeDecoder:
    """The same models with one tree; an action without nodes is plain decoding."""
    return SpeculativeDecoder(
        decoder.target,
        decoder.drafter if action.nodes else None,
        builder="delayed",
        builder_options=action.options,
        verifier=verifier,
        node_budget=action.nodes,
    )


# --- Real generations -----------------------------------------------------------------------------


@dataclass
class Runs:
    """Of one contestant, by prompt."""

    tokens: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def ratio(self, other: Runs, of: str) -> tuple[float, float, float]:
        """Tokens per second or per round of this over the other's, over paired prompts.

        Every run emits the same number of tokens.
        """
        return harness.ratio_interval(getattr(other, of), getattr(self, of))


def generations(
    decoder: SpeculativeDecoder,
    setting: Setting,
    contestants: dict[str, SpeculativeDecoder],
    options: argparse.Namespace,
) -> dict[str, Runs]:
    """Let all write the same prompts, in turn."""
    runs = {name: Runs() for name in contestants}
    prompts = load_prompts(options.run_prompts, 64, False)
    for seed, prompt in enumerate(track(prompts, str(setting), console=Console(stderr=True))):
        for name, one in contestants.items():
            start, cpu = perf_counter(), process_time()
            result = one.generate(
                prompt,
                max_new_tokens=options.run_tokens,
                temperature=setting.temperature,
                top_p=setting.top_p,
                seed=seed,
                ignore_eos=True,
            )
            own = runs[name]
            own.wall.append(perf_counter() - start)
            own.cpu.append(process_time() - cpu)
            own.tokens.append(len(result.token_ids))
            own.rounds.append(result.stats.rounds)
    return runs


def contestants_at(
    decoder: SpeculativeDecoder,
    setting: Setting,
    selectors: dict[str, Selector],
    reference: Sequence[StaticChoice],
) -> dict[str, SpeculativeDecoder]:
    """Everybody at a sampling setting."""
    static = selectors["laws"].static_choice(setting)
    other = next(choice for choice in reference if choice.setting == setting)
    return {
        "plain": SpeculativeDecoder(decoder.target),
        f"{VERIFIER}, static": with_action(decoder, VERIFIER, static.action),
        f"{VERIFIER}, static, root": with_action(decoder, VERIFIER, static.from_root),
        f"{REFERENCE}, static, root": with_action(decoder, REFERENCE, other.from_root),
        **{
            f"{VERIFIER}, selector ({kind})": with_selector(decoder, one)
            for kind, one in selectors.items()
        },
    }


def run_rows(runs: dict[str, Runs], setting: Setting, clock: str) -> list[dict[str, Any]]:
    """Figures of a sampling setting."""
    static, reference = (
        runs[f"{VERIFIER}, static"],
        runs[f"{REFERENCE}, static, root"],
    )
    return [
        {
            "setting": str(setting),
            "name": name,
            "block_efficiency": (sum(own.tokens) - len(own.tokens)) / sum(own.rounds),
            "tokens_per_second": sum(own.tokens) / sum(getattr(own, clock)),
            "rounds_to_static": own.ratio(static, "rounds"),
            "speed_to_static": own.ratio(static, clock),
            "speed_to_traversal": own.ratio(reference, clock),
            "samples": asdict(own),
        }
        for name, own in runs.items()
    ]


# --- Showing --------------------------------------------------------------------------------------


def show_runs(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Real generations of a setting."""
    for row in rows:
        console.print(
            f"{row['setting']:18} {row['name']:52} {row['block_efficiency']:.2f} tokens/round  "
            f"{row['tokens_per_second']:6.1f} tokens/s  "
            "{:.3f} [{:.3f}, {:.3f}] to static  ".format(*row["speed_to_static"])
            + "{:.3f} [{:.3f}, {:.3f}] to traversal".format(*row["speed_to_traversal"]),
            highlight=False,
        )


def plot(results: dict[str, Any], path: Path) -> None:
    """Speed to the static tree by setting: by replay, for a large target, and for real."""
    from matplotlib import pyplot

    panels = [
        ("by replay", _bars(results["replay"]["laws"], "policy", "speed_to_static")),
        ("by replay, large target", _bars(results["large"]["laws"], "policy", "speed_to_static")),
        ("real generations", _bars(results["runs"], "name", "speed_to_static")),
    ]
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 5), sharey=True, layout="constrained")
    for axis, (title, bars) in zip(axes, panels, strict=True):
        for place, (name, by_setting) in enumerate(bars.items()):
            at = np.arange(len(by_setting)) + place * 0.8 / len(bars)
            middle, low, high = np.array(list(by_setting.values())).T
            error = [middle - low, high - middle]
            axis.bar(at, middle, 0.8 / len(bars), yerr=error, label=name, error_kw={"lw": 0.8})
            axis.set_xticks(np.arange(len(by_setting)) + 0.3, list(by_setting))
        axis.axhline(1.0, color="black", lw=0.8)
        axis.set(title=title, ylim=(0.7, 1.35))
        axis.legend(fontsize=7, loc="upper left")
    axes[0].set_ylabel("tokens per second / best static delayed tree")
    figure.savefig(path, dpi=90)


def _bars(rows: Sequence[dict[str, Any]], name: str, value: str) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row[name] not in ("plain", "static", f"{VERIFIER}, static"):
            out.setdefault(row[name], {})[row["setting"]] = row[value]
    return out


# --- Running --------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    options = harness.parser(__doc__ or "")
    options.add_argument("--train-labels", type=Path, metavar="FILE", help="made if missing")
    options.add_argument("--held-labels", type=Path, metavar="FILE", help="made if missing")
    options.add_argument("--costs", type=Path, metavar="JSON", help="a report that has them")
    options.add_argument("--save", type=Path, metavar="FILE", help="keep the selector (laws)")
    options.add_argument("--prompts", type=int, metavar="N", help="to train on")
    options.add_argument("--run-prompts", type=int, metavar="N", help="of real generations")
    options.add_argument("--run-tokens", type=int, metavar="N")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw the results")
    out = options.parse_args(arguments)
    out.prompts = out.prompts or (6 if out.quick else 90)
    out.run_prompts = out.run_prompts or (2 if out.quick else 24)
    out.run_tokens = out.run_tokens or (16 if out.quick else 64)
    return out


def train_all(labels: Labels, costs: Costs, quick: bool) -> dict[str, Selector]:
    """One selector of every kind."""
    out = {}
    for kind, (states, schedule) in KINDS.items():
        if quick:
            schedule = Schedule(objective=schedule.objective, epochs=2)
        out[kind] = train_selector(labels, VERIFIER, costs, states=states, schedule=schedule)
    return out


def replayed(
    selectors: dict[str, Selector],
    held: Labels,
    reference: Sequence[StaticChoice],
    selecting: float,
) -> dict[str, list[Row]]:
    """All selectors on held-out roots."""
    return {
        kind: compare(
            selector,
            held,
            selecting=selecting,
            reference=REFERENCE,
            reference_static=reference,
        )
        for kind, selector in selectors.items()
    }


def main(arguments: Sequence[str]) -> None:
    """Run and print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    start, progress = perf_counter(), Console(stderr=True)
    console = Console(width=None if sys.stdout.isatty() else 150)
    decoder = treespec.load(builder="chain", builder_options={"proposal": "iid"}, node_budget=4)
    training = read_prompts(
        ["python"], decoder.tokenizer, count=options.prompts, prompt_tokens=64, seed=0
    )
    new = 32 if options.quick else 128
    held_prompts = load_prompts(2 if options.quick else 24, 64, False)
    labels = labels_of(options.train_labels, decoder, training, 2, new)
    held = labels_of(options.held_labels, decoder, held_prompts, 4, new)
    costs = costs_of(options.costs, decoder, options.quick)
    selectors = train_all(labels, costs, options.quick)
    large = train_all(labels, LARGE, options.quick)
    if options.save is not None:
        selectors["laws"].save(options.save, "float16")
    choice = {
        kind: selecting_seconds(decoder, one, options.run_tokens) for kind, one in selectors.items()
    }
    references = [Problem.of(labels, REFERENCE, c).static_choices() for c in (costs, LARGE)]
    # As a share of the round, since costs may be of another, quieter run.
    selecting = choice["laws"]["share_of_round"] * static_round_seconds(labels, costs)
    replays = replayed(selectors, held, references[0], selecting)
    large_replays = replayed(large, held, references[1], 0.0)
    for kind in KINDS:
        console.rule(kind)
        print_rows(console, replays[kind])
        console.rule(f"{kind}, large target")
        print_rows(console, large_replays[kind])
    runs = []
    for setting in SETTINGS:
        racing = contestants_at(decoder, setting, selectors, references[0])
        rows = run_rows(generations(decoder, setting, racing, options), setting, options.clock)
        show_runs(console, rows)
        runs += rows
    results = {
        "roots": [len(labels), len(held)],
        "costs": asdict(costs),
        "choice": choice,
        "selecting_seconds": selecting,
        "replay": {kind: as_json(rows) for kind, rows in replays.items()},
        "large": {kind: as_json(rows) for kind, rows in large_replays.items()},
        "overall": {
            name: {kind: overall(rows, "selector") for kind, rows in found.items()}
            for name, found in (("replay", replays), ("large", large_replays))
        },
        "runs": runs,
    }
    console.print(results["choice"], results["overall"])
    command = shlex.join(["python", "benchmarks/bench_selector.py", *arguments])
    harness.write_report(options.json, "selector", command, options, results)
    if options.plot is not None:
        plot(results, options.plot)
    progress.print(f"{perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
