# SPDX-License-Identifier: Apache-2.0
"""The bundled drafters of the demo target: what they accept, how far they are off, what they cost.

Block efficiency comes from replaying texts that the target wrote at each temperature
(`treespec.training.replay`), so that every drafter is judged on the same texts and ratios are
paired by text. Total variation is that of the drafter's law to the target's after the true tokens,
by depth. Times are those of whole decoders, in turn, by step of a round. Drafters that guess a
block in one pass must have made one pass per round; `--check` also compares texts with plain
decoding.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import numpy as np
import numpy.typing as npt
import torch
from bench_builders import PathNode
from bench_decode import counters, load_prompts
from rich.console import Console
from rich.progress import track
from rich.table import Table

import treespec
from treespec import demo
from treespec.drafts.base import DraftSettings
from treespec.drafts.dflash import DFlashDrafter
from treespec.drafts.medusa import MedusaDrafter
from treespec.drafts.vocabulary import TokenModules
from treespec.targets.base import Needs
from treespec.targets.hf import load_target
from treespec.text import load_tokenizer
from treespec.training.data import python_sources, windows
from treespec.training.replay import Replay, Trajectory, Tree, replay, write_trajectories

TEMPERATURES = (0.0, 0.7, 1.0)
BUDGETS = (4, 16, 64)
DEPTH = 7  # what the bundled block drafters guess; nobody goes deeper
# Block drafters are measured with trees of marginals (DTree), of transitions, and as chains.
ONE_PASS = ("demo:dflash", "demo:treeflash", "demo:pairwise", "demo:medusa")
DRAFTERS = ("demo", "demo:eagle3", *ONE_PASS)
COMPARED = (
    ("demo:treeflash", "tree", "demo:dflash", "tree"),
    ("demo:treeflash", "tree", "demo:dflash", "chain"),
    ("demo:pairwise", "tree", "demo:dflash", "tree"),
    ("demo:dflash", "tree", "demo:dflash", "chain"),
    ("demo:dflash", "tree", "demo:medusa", "tree"),
    ("demo:dflash", "tree", "demo:medusa", "chain"),
)


@dataclass
class Bench:
    """The target and its texts, shared by all drafters."""

    target: Any
    prompts: Sequence[npt.NDArray[np.int32]]
    new_tokens: int
    kept: dict[tuple[Needs, float], list[Trajectory]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def drafter(self, name: str) -> Any:
        """A bundled drafter for the target."""
        if name not in self.made:
            self.made[name] = treespec.load(self.target.model, name).drafter
        return self.made[name]

    def trajectories(self, needs: Needs, temperature: float) -> list[Trajectory]:
        """Texts of the target with the states a drafter needs, and the last state."""
        wanted = Needs(needs.layers, last_hidden=True)
        if (wanted, temperature) not in self.kept:
            self.kept[wanted, temperature] = write_trajectories(
                self.target,
                self.prompts,
                wanted,
                new_tokens=self.new_tokens + 16,
                temperature=temperature,
            )
        return self.kept[wanted, temperature]


# --- Acceptance -----------------------------------------------------------------------------------


def trees(drafter: Any, budgets: Sequence[int]) -> list[tuple[str, Tree]]:
    """A chain, and a tree for every budget."""
    expands = drafter.source_kind == "Expander"
    options = {"max_depth": DEPTH, "threshold": 0.0} if expands else {"max_depth": DEPTH}
    builder = "opt_tree" if expands else "dtree"
    chain = Tree("chain", "chain", DEPTH, {"max_depth": DEPTH})
    return [
        ("chain", chain),
        *(("tree", Tree(f"tree-{budget}", builder, budget, options)) for budget in budgets),
    ]


def chain_form(drafter: Any) -> Any:
    """The drafter as it drafts chains: conditionals follow their own likeliest tokens."""
    if isinstance(drafter, DFlashDrafter) and drafter.conditional is not None:
        return DFlashDrafter(
            drafter.model,
            drafter.tokens,
            drafter.vocabulary,
            conditional=drafter.conditional,
            chain=True,
        )
    return drafter


def acceptance(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Block efficiency of every drafter, tree and temperature."""
    jobs = [
        (name, kind, tree, temperature)
        for name in options.drafters
        for kind, tree in trees(bench.drafter(name), options.budgets)
        for temperature in options.temperatures
    ]
    rows = []
    for name, kind, tree, temperature in track(jobs, "replay", console=Console(stderr=True)):
        drafter = bench.drafter(name)
        used = chain_form(drafter) if kind == "chain" else drafter
        texts = bench.trajectories(drafter.needs, temperature)
        rows.append(acceptance_row(name, kind, tree, temperature, replay(used, texts, tree)))
    return rows


def acceptance_row(
    name: str, kind: str, tree: Tree, temperature: float, found: Replay
) -> dict[str, Any]:
    """One line of the results."""
    return {
        "drafter": name,
        "kind": kind,
        "tree": tree.name,
        "budget": tree.node_budget,
        "temperature": temperature,
        "block_efficiency": found.mean,
        "standard_error": found.error,
        "by_text": found.block_efficiency,
        "accepted_by_depth": found.accepted_by_depth,
        "offered_by_depth": found.offered_by_depth,
    }


def paired(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratios of `COMPARED` at equal budgets, paired by text."""
    at = {(r["drafter"], r["tree"], r["temperature"]): r["by_text"] for r in rows}
    out = []
    for row in (row for row in rows if row["kind"] == "tree"):
        for one, _, other, kind in COMPARED:
            tree = "chain" if kind == "chain" else row["tree"]
            base = at.get((other, tree, row["temperature"]))
            if row["drafter"] != one or base is None:
                continue
            out.append(
                {
                    "drafter": one,
                    "tree": row["tree"],
                    "against": f"{other} {tree}",
                    "temperature": row["temperature"],
                    "ratio": harness.ratio_interval(row["by_text"], base),
                }
            )
    return out


# --- Laws -----------------------------------------------------------------------------------------


def laws_along(drafter: Any, session: Any, path: npt.NDArray[np.int32]) -> torch.Tensor:
    """``[d, V]``: what the drafter says of each token of a path, after the true ones before it."""
    root = int(path[0])
    if isinstance(drafter, DFlashDrafter):
        states = drafter.states([session])[:, : len(path) - 1]
        if drafter.conditional is None:
            return drafter.marginal_logits(states)[0].log_softmax(-1)
        previous = torch.from_numpy(path[: states.shape[1]].astype(np.int64))
        return drafter.conditional_logits(states, previous[None, :, None])[0, :, 0].log_softmax(-1)
    if isinstance(drafter, MedusaDrafter):
        depth = min(len(drafter.heads), len(path) - 1)
        return drafter.logits(session.hidden[None], depth)[0].log_softmax(-1)
    (expander,) = drafter.draft([session], DraftSettings())
    rows = [
        expander.expand(PathNode(token, depth))[0]
        for depth, token in enumerate([root, *path[1:-1]])
    ]
    return torch.stack(rows).float()


@torch.inference_mode()
def total_variation(bench: Bench, name: str, stride: int) -> list[list[float]]:
    """By depth ``[mean, standard error]`` over texts, at temperature 1 of both laws."""
    drafter, tokens = bench.drafter(name), TokenModules.of_target(bench.target)
    by_text: list[list[list[float]]] = []
    for text in bench.trajectories(drafter.needs, 1.0):
        found: list[list[float]] = [[] for _ in range(DEPTH)]
        ids, states = text.sample.tokens, text.states
        begin = text.sample.prompt_length
        assert states.last_hidden is not None
        session = drafter.begin(ids[:begin], states.rows(np.arange(begin)), len(ids) + 64)
        drafter.observe(session, ids[begin : begin + 1], None)
        for root in range(begin, len(ids) - DEPTH - 1, stride):
            said = laws_along(drafter, session, ids[root : root + DEPTH + 1])
            wanted = tokens.logits(states.last_hidden[root : root + len(said)]).softmax(-1)
            distance = 0.5 * (said.exp()[:, : wanted.shape[1]] - wanted).abs().sum(-1)
            for depth, value in enumerate(distance.tolist()):
                found[depth].append(value)
            after = ids[root + 1 : root + stride + 1]
            drafter.observe(session, after, states.rows(np.arange(root, root + stride)))
        drafter.end(session)
        by_text.append(found)
    out = []
    for depth in range(DEPTH):
        means = [float(np.mean(own[depth])) for own in by_text if own[depth]]
        if means:
            out.append([float(np.mean(means)), float(np.std(means) / np.sqrt(len(means)))])
    return out


# --- Time -----------------------------------------------------------------------------------------


def decoders(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Decoders of all drafters at the timed budgets, and plain decoding."""
    out = {"plain": treespec.load(bench.target.model, None)}
    for name in options.drafters:
        drafter = bench.drafter(name)
        for budget in options.timed_budgets:
            builder = "opt_tree" if drafter.source_kind == "Expander" else "dtree"
            out[f"{name}, {budget} nodes"] = treespec.load(
                bench.target.model, drafter, builder=builder, node_budget=budget, max_depth=DEPTH
            )
    return out


def times(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of a round by step, passes per round, and speed against plain decoding."""
    prompts = load_prompts(2 if options.quick else 8, 64, False)
    running = decoders(bench, options)
    settings: dict[str, Any] = {
        "max_new_tokens": 32 if options.quick else 128,
        "temperature": options.timed_temperature,
        "ignore_eos": True,
    }
    samples = {name: harness.Samples() for name in running}
    stats: dict[str, list[Any]] = {name: [] for name in running}
    texts: dict[str, list[list[int]]] = {name: [] for name in running}
    repetitions = options.repetitions or (1 if options.quick else 3)
    for repetition in range(-1, repetitions):
        for place, prompt in enumerate(prompts):
            for name, decoder in running.items():
                kept = samples[name] if repetition >= 0 else harness.Samples()
                with harness.collected():
                    result = kept.measure(
                        lambda d=decoder, p=prompt, s=place: d.generate(p, seed=s, **settings)
                    )
                if repetition >= 0:
                    stats[name].append(result.stats)
                    texts[name].append(result.token_ids)
    return [time_row(name, samples, stats[name], texts, options.clock) for name in running]


def time_row(
    name: str,
    samples: Mapping[str, harness.Samples],
    stats: Sequence[Any],
    texts: Mapping[str, Sequence[Sequence[int]]],
    clock: str,
) -> dict[str, Any]:
    """One decoder."""
    own, plain = getattr(samples[name], clock), getattr(samples["plain"], clock)
    rounds = sum(one.rounds for one in stats)
    pairs = zip(texts[name], texts["plain"], strict=True)
    return {
        "name": name,
        "tokens_per_second": sum(one.tokens for one in stats) / sum(own),
        "to_plain": harness.ratio_interval(plain, own),
        "passes_per_round": sum(one.draft_calls for one in stats) / rounds,
        "texts_equal_to_plain": sum(list(a) == list(b) for a, b in pairs) / len(stats),
        **counters(stats),
    }


def check(bench: Bench, options: argparse.Namespace) -> None:
    """Greedy texts are plain decoding's, and a block takes one pass."""
    prompt = load_prompts(1, 64, False)[0]
    plain = treespec.load(bench.target.model, None).generate(prompt, max_new_tokens=48)
    for name in options.drafters:
        drafter = bench.drafter(name)
        builder = "opt_tree" if drafter.source_kind == "Expander" else "dtree"
        decoder = treespec.load(bench.target.model, drafter, builder=builder, node_budget=16)
        result = decoder.generate(prompt, max_new_tokens=48)
        assert result.token_ids == plain.token_ids, f"{name}: not the text of plain decoding"
        if name in ONE_PASS:
            assert result.stats.draft_calls <= result.stats.rounds, f"{name}: more than one pass"


# --- Showing --------------------------------------------------------------------------------------


def show(console: Console, results: Mapping[str, Any]) -> None:
    """Tables of all three parts."""
    names = dict.fromkeys(row["drafter"] for row in results["acceptance"])
    kinds = dict.fromkeys(row["tree"] for row in results["acceptance"])
    at = {(r["drafter"], r["tree"], r["temperature"]): r for r in results["acceptance"]}
    for temperature in dict.fromkeys(r["temperature"] for r in results["acceptance"]):
        table = Table(title=f"tokens per target forward, temperature {temperature}")
        for heading in ("drafter", *kinds):
            table.add_column(heading)
        for name in names:
            found = [at[name, tree, temperature] for tree in kinds]
            cells = [f"{r['block_efficiency']:.2f} ± {r['standard_error']:.2f}" for r in found]
            table.add_row(name, *cells)
        console.print(table)
    table = Table(title="ratios, paired by text")
    for heading in ("drafter", "tree", "against", "temperature", "ratio"):
        table.add_column(heading)
    for row in results["paired"]:
        ratio = "{:.3f} [{:.3f}, {:.3f}]".format(*row["ratio"])
        table.add_row(row["drafter"], row["tree"], row["against"], str(row["temperature"]), ratio)
    console.print(table)
    table = Table(title="total variation to the target by depth, temperature 1")
    for heading in ("drafter", *(str(depth) for depth in range(1, DEPTH + 1))):
        table.add_column(heading)
    for name, by_depth in results["total_variation"].items():
        table.add_row(name, *[f"{mean:.3f}" for mean, _ in by_depth])
    console.print(table)
    steps = ("draft", "build", "target", "verify", "commit", "other")
    table = Table(title="time of a round")
    for heading in ("decoder", "tokens/s", "/ plain", "block eff.", "passes", *steps):
        table.add_column(heading)
    for row in results["times"]:
        spent = row["milliseconds_per_round"]
        table.add_row(
            row["name"],
            f"{row['tokens_per_second']:.0f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(*row["to_plain"]),
            f"{row['block_efficiency']:.2f}",
            f"{row['passes_per_round']:.2f}",
            *[f"{spent[step]:.2f}" for step in steps],
        )
    console.print(table)


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Acceptance over the budget, total variation by depth, time of a round by step."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(16, 4.6), layout="constrained")
    names = list(dict.fromkeys(row["drafter"] for row in results["acceptance"]))
    colour = {name: f"C{place}" for place, name in enumerate(names)}
    for name in names:
        mine = [
            (row["budget"], row["block_efficiency"], row["standard_error"])
            for row in results["acceptance"]
            if (row["drafter"], row["kind"], row["temperature"]) == (name, "tree", 0.7)
        ]
        budgets, means, errors = zip(*sorted(mine), strict=True)
        axes[0].errorbar(budgets, means, errors, marker="o", ms=4, label=name, color=colour[name])
    axes[0].set(xscale="log", xlabel="node budget", ylabel="tokens per target forward")
    axes[0].set_xticks(budgets, [str(budget) for budget in budgets])
    axes[0].minorticks_off()
    axes[0].set_title("trees, temperature 0.7")
    axes[0].legend(fontsize=8)
    for name, by_depth in results["total_variation"].items():
        means, errors = zip(*by_depth, strict=True)
        depths = range(1, len(means) + 1)
        axes[1].errorbar(depths, means, errors, marker="o", ms=4, label=name, color=colour[name])
    axes[1].set(xlabel="depth", ylabel="total variation to the target", ylim=(0, 1))
    axes[1].set_title("after the true tokens, temperature 1")
    steps = ("draft", "build", "target", "verify", "commit", "other")
    left = np.zeros(len(results["times"]))
    labels = [row["name"] for row in results["times"]]
    for step in steps:
        spent = np.array([row["milliseconds_per_round"][step] for row in results["times"]])
        axes[2].barh(labels, spent, left=left, label=step)
        left += spent
    axes[2].invert_yaxis()
    axes[2].set(xlabel="milliseconds of a round")
    axes[2].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    options = harness.parser(__doc__ or "")
    options.add_argument("--drafters", nargs="+", choices=DRAFTERS, default=list(DRAFTERS))
    options.add_argument("--budgets", type=int, nargs="+", metavar="N")
    options.add_argument("--temperatures", type=float, nargs="+", metavar="T")
    options.add_argument("--prompts", type=int, metavar="N", help="held-out prompts of 64 tokens")
    options.add_argument("--new-tokens", type=int, metavar="N", help="replayed of each")
    options.add_argument("--timed-budgets", type=int, nargs="+", default=[8, 16], metavar="N")
    options.add_argument("--timed-temperature", type=float, default=0.7, metavar="T")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw the results")
    parsed = options.parse_args(arguments)
    parsed.budgets = parsed.budgets or ([16] if parsed.quick else list(BUDGETS))
    parsed.temperatures = parsed.temperatures or ([0.7] if parsed.quick else list(TEMPERATURES))
    return parsed


def main(arguments: Sequence[str]) -> None:
    """Run and print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    folder = str(demo.target_path())
    prompts = windows(
        list(python_sources(held_out=True)),
        load_tokenizer(folder),
        options.prompts or (4 if options.quick else 40),
        64,
        np.random.default_rng(0),
    )
    new_tokens = options.new_tokens or (32 if options.quick else 144)
    bench = Bench(load_target(folder), prompts, new_tokens)
    if options.check:
        check(bench, options)
    rows = acceptance(bench, options)
    results = {
        "acceptance": rows,
        "paired": paired(rows),
        "total_variation": {
            name: total_variation(bench, name, 16 if options.quick else 8)
            for name in track(options.drafters, "laws", console=Console(stderr=True))
        },
        "times": times(bench, options),
    }
    show(Console(width=None if sys.stdout.isatty() else 150), results)
    if options.plot is not None:
        plot(json.loads(json.dumps(results)), options.plot)
    command = shlex.join(["python", "benchmarks/bench_drafters.py", *arguments])
    harness.write_report(options.json, "drafters", command, options, results)


if __name__ == "__main__":
    main(sys.argv[1:])
