# SPDX-License-Identifier: Apache-2.0
"""Block efficiency of every tree builder on the demo pair, at equal node budgets.

All builders draft for the same target, with the same drafter, along the same texts: at temperature
0 by themselves, above it because the text is that of plain decoding (`target_only`), while each
tree is credited with what its own verifier accepts of it on average (`expected_acceptance`, no
verification noise). Ratios are paired by prompt. Two findings of the papers are tested on the way:
that the expected acceptance of a tree predicts its accepted length (OPT-Tree, figure 4), and that a
token's draft probability predicts its acceptance (DySpec, section 3). `--plot` draws all of it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import numpy as np
import numpy.typing as npt
import torch
from bench_decode import load_prompts
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer

import treespec
from treespec import _core, demo
from treespec.decoder import SpeculativeDecoder
from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.drafts.base import DraftSettings
from treespec.generation import RoundRecord
from treespec.targets.base import Needs
from treespec.targets.hf_model import load_model
from treespec.tuning.calibration import fit_calibration

BUDGETS = (8, 16, 32, 64, 128)
TEMPERATURES = (0.0, 0.6)
DEPTH = 16  # no tree is deeper
FIXED = ("chain", "kary", "sequoia", "medusa_choices")
# Expansion vectors whose trees come nearest to the budget without passing it.
EXPANSIONS = {
    8: (2, 1, 1, 1),
    16: (2, 2, 1, 1),
    32: (2, 2, 2, 1, 1),
    64: (4, 2, 2, 1, 1),
    128: (4, 2, 2, 2, 1, 1),
}
SAMPLED_DRAFT_TEMPERATURE = 0.6  # of drawn trees at target temperature 0, as in the DySpec paper


# --- What is compared -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """A builder with its options for a node budget, and the temperatures it is meant for."""

    name: str
    builder: str
    options: Callable[[int], Mapping[str, Any]] = lambda budget: {}
    drawn: bool = False
    drafter: str = "demo"
    temperatures: Sequence[float] = TEMPERATURES


def by_temperature(name: str, options: Callable[[int, float], Mapping[str, Any]]) -> list[Setup]:
    """A fixed shape: filled with the likeliest tokens at temperature 0, with draws above it."""
    drawn = {"proposal": "without_replacement"}
    return [
        Setup(name, name, lambda b: options(b, 0.0), temperatures=(0.0,)),
        Setup(name, name, lambda b: {**options(b, 0.6), **drawn}, drawn=True, temperatures=(0.6,)),
    ]


def setups(curve: Sequence[Sequence[float]]) -> list[Setup]:
    """Every builder. Fixed shapes take the tables that were measured on this pair.

    `curve`: acceptance of a drawn token by its probability, for the calibrated DySpec.
    """
    tables = {0.0: _core.demo_accuracy(), 0.6: _core.demo_acceptance()}
    deep = {"max_depth": DEPTH}

    def expansion(budget: int) -> Mapping[str, Any]:
        return {"expansion": list(EXPANSIONS[budget])}

    return [
        *by_temperature("chain", lambda b, t: deep),
        *by_temperature("kary", lambda b, t: expansion(b)),
        *by_temperature("sequoia", lambda b, t: {**deep, "acceptance": tables[t]}),
        Setup("medusa_choices", "medusa_choices", lambda b: {**deep, "accuracy": tables[0.0]}),
        Setup("eagle2", "eagle2", lambda b: {**deep, "width": 10}),
        Setup("opt_tree", "opt_tree", lambda b: {**deep, "threshold": 0.0}),
        Setup("dtree (greedy path's marginals)", "dtree", lambda b: deep, drafter="marginals"),
        Setup("dyspec", "dyspec", lambda b: deep, drawn=True),
        Setup(
            "dyspec, calibrated",
            "dyspec",
            lambda b: {**deep, "calibration": curve},
            drawn=True,
            temperatures=(0.6,),
        ),
        Setup("dyspec_threshold", "dyspec_threshold", lambda b: deep, drawn=True),
        Setup("rollouts", "rollouts", lambda b: {"num_paths": 4, **deep}, drawn=True),
        Setup("delayed", "delayed", lambda b: {"num_paths": 3}, drawn=True),
        Setup("top_plus_one", "top_plus_one", expansion, drawn=True),
        Setup("trie (suffix drafter)", "trie", drafter="suffix"),
    ]


class GreedyPathMarginals:
    """A stand-in for one-pass drafters: the rows along the drafter's greedy path, as marginals.

    Costs a drafter call per depth, so that only its block efficiency means anything.
    """

    needs = Needs()
    source_kind = "Marginals"

    def __init__(self, drafter: AutoregressiveDrafter, depth: int, width: int) -> None:
        self.drafter, self.depth, self.width = drafter, depth, width
        self.begin, self.observe, self.end = drafter.begin, drafter.observe, drafter.end
        self.max_context = drafter.max_context

    def draft(self, sessions: Sequence[Any], settings: DraftSettings) -> list[treespec.Marginals]:
        """One list per depth and session."""
        expanders = self.drafter.draft(sessions, settings)
        together = type(expanders[0]).expand_together
        tokens = [0] * len(expanders)
        rows: list[list[npt.NDArray[np.float32]]] = [[] for _ in expanders]
        for depth in range(self.depth):
            batches = [PathNode(token, depth) for token in tokens]
            for place, row in enumerate(together(expanders, batches)):
                rows[place].append(row[0].float().cpu().numpy())
                tokens[place] = int(row[0].argmax())
        return [treespec.Marginals.from_logits(np.stack(own), self.width) for own in rows]


class PathNode:
    """A batch of one node: the one at `depth` of a single path."""

    def __init__(self, token: int, depth: int) -> None:
        self.token = np.array([token], dtype=np.int32)
        self.index = self.depth = np.array([depth], dtype=np.int32)
        self.parent = self.index - 1

    def __len__(self) -> int:
        return 1


# --- Running --------------------------------------------------------------------------------------


class ReplayDecoder(SpeculativeDecoder):
    """Writes plain decoding's text, whatever the tree, and credits each tree with what the
    verifier of its kind accepts of it on average.
    """

    def _verify(self, g: Any, tree: Any, logits: Any) -> Any:
        if g.params.greedy or g.length == g.prompt_length:  # the first draw has no tree yet
            return super()._verify(g, tree, logits)
        law = torch.softmax(logits.double() / g.params.temperature, dim=-1).numpy()
        credit = treespec.expected_acceptance(tree, law).num_accepted
        self.credits.setdefault(g.place, []).append(credit)
        return _core.verify_logits(
            tree, logits, None, g.row_params, "target_only", g.tokens, g.prompt_length, None, *g.key
        )

    @property
    def credits(self) -> dict[int, list[float]]:
        """Expected accepted nodes of every round, by place of the prompt."""
        return self.__dict__.setdefault("_credits", {})


@dataclass
class Findings:
    """What single rounds and nodes show, collected over all runs of a builder."""

    expected: list[float] = field(default_factory=list)  # E(T) of a round's tree
    accepted: list[int] = field(default_factory=list)
    draft_prob: list[float] = field(default_factory=list)  # of nodes the verifier looked at
    was_accepted: list[bool] = field(default_factory=list)

    def add(self, record: RoundRecord) -> None:
        """One round."""
        tree, path = record.tree, record.verdict.accepted_nodes.tolist()
        self.expected.append(tree.expected_acceptance)
        self.accepted.append(len(path))
        for node, taken in zip([0, *path], [*path, None], strict=True):
            seen = dict.fromkeys(tree.draws[node])
            for child in seen:
                step = tree.path_logprob[child] - tree.path_logprob[node]
                self.draft_prob.append(float(np.exp(step)))
                self.was_accepted.append(child == taken)


@dataclass
class Bench:
    """The models that all runs share."""

    target: Any
    draft: Any
    prompts: list[list[int]]
    new_tokens: int

    def decoder(self, setup: Setup, budget: int, temperature: float) -> Any:
        """The decoder of one run."""
        drafter: Any = self.draft
        if setup.drafter == "marginals":
            size = self.target.config.vocab_size
            drafter = GreedyPathMarginals(AutoregressiveDrafter(self.draft, size), DEPTH, 64)
        elif setup.drafter != "demo":
            drafter = setup.drafter
        drawn_at_zero = setup.drawn and temperature == 0.0
        loaded = treespec.load(self.target, drafter)
        return ReplayDecoder(
            loaded.target,
            loaded.drafter,
            builder=setup.builder,
            builder_options=setup.options(budget),
            node_budget=budget,
            draft_temperature=SAMPLED_DRAFT_TEMPERATURE if drawn_at_zero else None,
        )

    def run(
        self, setup: Setup, budget: int, temperature: float, findings: Findings
    ) -> dict[str, Any]:
        """Block efficiency and costs of one builder at one budget; all prompts in one batch."""
        decoder = self.decoder(setup, budget, temperature)
        results = decoder.generate(
            self.prompts,
            max_new_tokens=self.new_tokens,
            temperature=temperature,
            ignore_eos=True,
            sequence_id=range(len(self.prompts)),
            on_round=findings.add,
        )
        stats = [result.stats for result in results]
        rounds = [s.rounds for s in stats]
        tokens = [s.tokens - 1.0 for s in stats]
        if decoder.credits:
            tokens = [sum(1.0 + c for c in own) for _, own in sorted(decoder.credits.items())]
            rounds = [len(own) for _, own in sorted(decoder.credits.items())]
        return {
            "name": setup.name,
            "builder": setup.builder,
            "budget": budget,
            "temperature": temperature,
            "tokens": tokens,
            "rounds": rounds,
            "block_efficiency": sum(tokens) / sum(rounds),
            "nodes_per_round": sum(s.drafted_nodes for s in stats) / sum(rounds),
            # A call serves the whole batch, which runs as many rounds as its slowest text.
            "draft_calls_per_round": stats[0].draft_calls / max(rounds),
            "draft_rows_per_round": stats[0].draft_rows / sum(rounds),
        }


def run_all(
    bench: Bench, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every setup at every budget and temperature."""
    curve = acceptance_curve(bench)
    jobs = [
        (setup, budget, temperature)
        for temperature in TEMPERATURES
        for setup in setups(curve)
        if temperature in setup.temperatures
        for budget in options.budgets
        if not options.builders or setup.builder in options.builders
    ]
    findings: dict[tuple[str, float], Findings] = {}
    rows = []
    console = Console(stderr=True)
    for setup, budget, temperature in track(jobs, "builders", console=console):
        seen = findings.setdefault((setup.name, temperature), Findings())
        rows.append(bench.run(setup, budget, temperature, seen))
        reached = rows[-1]["block_efficiency"]
        console.print(f"{setup.name}, {budget} nodes, temperature {temperature}: {reached:.2f}")
    return rows, {"acceptance_curve": curve, **summaries(findings)}


def acceptance_curve(bench: Bench) -> list[list[float]]:
    """How often a drawn token is accepted at temperature 0.6, by its draft probability.

    Measured on drawn chains, by the rejection rule, on prompts that are not measured later.
    """
    decoder = treespec.load(
        bench.target,
        bench.draft,
        builder="chain",
        builder_options={"proposal": "without_replacement"},
        node_budget=6,
        verifier="recursive_rejection",
    )
    tokenizer = AutoTokenizer.from_pretrained(demo.target_path())
    seen = Findings()
    decoder.generate(
        [tokenizer.encode(text) for text in demo.prompts()],
        max_new_tokens=4 * bench.new_tokens,
        temperature=0.6,
        ignore_eos=True,
        on_round=seen.add,
    )
    fit = fit_calibration(np.array(seen.draft_prob), np.array(seen.was_accepted), 12)
    return [[float(q), float(a)] for q, a in fit.table]


def summaries(findings: Mapping[tuple[str, float], Findings]) -> dict[str, Any]:
    """Correlations, and means in bins for the pictures."""
    out: dict[str, Any] = {"expected_and_accepted": [], "draft_prob_and_acceptance": []}
    for (builder, temperature), seen in findings.items():
        label = {"builder": builder, "temperature": temperature}
        pairs = (
            ("expected_and_accepted", seen.expected, seen.accepted),
            ("draft_prob_and_acceptance", seen.draft_prob, seen.was_accepted),
        )
        for name, x, y in pairs:
            if len(x) > 1:
                out[name].append({**label, **relation(np.array(x), np.array(y, dtype=float))})
    return out


def relation(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], bins: int = 12) -> Any:
    """Pearson and rank correlation of two columns, and their means in bins of equal counts."""
    edges = np.quantile(x, np.linspace(0, 1, bins + 1))
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
    full = [b for b in range(bins) if (place == b).any()]
    return {
        "count": len(x),
        "pearson": correlation(x, y),
        "spearman": correlation(ranks(x), ranks(y)),
        "x": [float(x[place == b].mean()) for b in full],
        "y": [float(y[place == b].mean()) for b in full],
    }


def correlation(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """0 for a constant column."""
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0


def ranks(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean ranks: equal values share one."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


# --- Showing --------------------------------------------------------------------------------------


def against(rows: Sequence[dict[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """Adaptive builders against every fixed one at the same budget: > 1 accepts more."""
    at = {(r["name"], r["budget"], r["temperature"]): r for r in rows}
    out = []
    for (name, budget, temperature), row in at.items():
        for fixed in FIXED:
            other = at.get((fixed, budget, temperature))
            if name in names and other is not None:
                ratio = efficiency_ratio(row, other)
                label = {"name": name, "fixed": fixed, "budget": budget, "temperature": temperature}
                out.append({**label, "ratio": ratio})
    return out


def efficiency_ratio(row: Mapping[str, Any], other: Mapping[str, Any]) -> list[float]:
    """Ratio of two block efficiencies with the 95 % interval of a bootstrap over prompts."""
    columns = [row["tokens"], row["rounds"], other["tokens"], other["rounds"]]
    table = np.array(columns, dtype=np.float64)
    picked = np.random.default_rng(0).integers(0, table.shape[1], (2000, table.shape[1]))
    drawn = [table.sum(axis=1), *table[:, picked].sum(axis=-1).T]
    ratios = np.array([(t / r) / (u / s) for t, r, u, s in drawn])
    return [float(ratios[0]), *np.quantile(ratios[1:], [0.025, 0.975]).tolist()]


def show(console: Console, rows: Sequence[dict[str, Any]], temperature: float) -> None:
    """Block efficiency, a line per builder and a column per budget."""
    own = [row for row in rows if row["temperature"] == temperature]
    budgets = sorted({row["budget"] for row in own})
    table = Table(title=f"tokens per target forward, temperature {temperature}")
    table.add_column("builder")
    for budget in budgets:
        table.add_column(str(budget), justify="right")
    table.add_column("drafter calls", justify="right")
    for name in dict.fromkeys(row["name"] for row in own):
        mine = {row["budget"]: row for row in own if row["name"] == name}
        figures = [f"{mine[b]['block_efficiency']:.2f}" if b in mine else "" for b in budgets]
        table.add_row(name, *figures, f"{mine[max(mine)]['draft_calls_per_round']:.1f}")
    console.print(table)


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Block efficiency over the budget, and the two findings."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(15, 9), layout="constrained")
    for axis, temperature in zip(axes[0], TEMPERATURES, strict=True):
        own = [row for row in results["rows"] if row["temperature"] == temperature]
        names = dict.fromkeys(row["name"] for row in results["rows"])  # one colour in both panels
        for place, name in enumerate(names):
            mine = sorted((r["budget"], r["block_efficiency"]) for r in own if r["name"] == name)
            style = {"linestyle": "--"} if name in FIXED else {}
            axis.plot(
                *zip(*mine, strict=True),
                marker="o",
                ms=3,
                label=name,
                color=f"C{place % 10}",
                **style,
            )
        axis.set(xscale="log", xlabel="node budget", title=f"temperature {temperature}")
        axis.set(ylabel="tokens per target forward")
        axis.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
        axis.minorticks_off()
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    panels = (
        ("expected_and_accepted", "opt_tree", "expected acceptance of the tree", "accepted tokens"),
        ("draft_prob_and_acceptance", "dyspec", "draft probability", "share accepted"),
    )
    for axis, (key, builder, x_label, y_label) in zip(axes[1], panels, strict=True):
        for line in results[key]:
            if line["builder"] == builder:
                label = f"temperature {line['temperature']}, r = {line['pearson']:.2f}"
                axis.plot(line["x"], line["y"], marker="o", label=label)
        axis.axline((0, 0), slope=1, color="grey", linewidth=0.8)
        axis.set(xlabel=x_label, ylabel=y_label, title=builder)
        axis.legend()
    figure.savefig(path, dpi=110)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    options = harness.parser(__doc__ or "")
    options.add_argument("--budgets", type=int, nargs="+", choices=BUDGETS, metavar="N")
    options.add_argument("--builders", nargs="+", metavar="NAME", help="only these")
    options.add_argument("--new-tokens", type=int, metavar="N")
    options.add_argument("--prompts", type=int, metavar="N", help="held-out files to continue")
    options.add_argument("--prompt-length", type=int, default=64, metavar="N")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw the results")
    parsed = options.parse_args(arguments)
    parsed.budgets = parsed.budgets or ([8, 32] if parsed.quick else list(BUDGETS))
    return parsed


def main(arguments: Sequence[str]) -> None:
    """Run and print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    target = load_model(str(demo.target_path()))
    bench = Bench(
        target,
        load_model(str(demo.drafter_path())),
        load_prompts(options.prompts or (2 if options.quick else 24), options.prompt_length, False),
        options.new_tokens or (16 if options.quick else 48),
    )
    rows, findings = run_all(bench, options)
    adaptive = dict.fromkeys(row["name"] for row in rows if row["name"] not in FIXED)
    results = {"rows": rows, "against_fixed": against(rows, adaptive), **findings}
    console = Console(width=None if sys.stdout.isatty() else 140)
    for temperature in TEMPERATURES:
        show(console, rows, temperature)
    if options.plot is not None:
        plot(json.loads(json.dumps(results)), options.plot)
    command = shlex.join(["python", "benchmarks/bench_builders.py", *arguments])
    harness.write_report(options.json, "builders", command, options, results)


if __name__ == "__main__":
    main(sys.argv[1:])
