# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of whole decoders on the demo pair, against Hugging Face's.

All decoders run in one process, on the same models and prompts, for the same number of new tokens,
in turn. `--sweep` looks for good defaults of the demo pair instead.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import harness
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedModel

import treespec
from treespec import demo
from treespec.stats import Stats
from treespec.targets.hf_model import load_model

PLAIN, BEST_ASSISTED, LOOKUP = "HF generate", "best HF assisted", "HF prompt lookup"
STEPS = ("draft", "build", "mask", "target", "verify", "commit", "other")


@dataclass
class Contestant:
    """A decoder under test; `run(prompt_ids, temperature, seed)` gives new tokens and counters."""

    name: str
    run: Callable[[list[int], float, int], tuple[int, Stats | None]]
    assisted: bool = False
    samples: dict[float, harness.Samples] = field(default_factory=dict)
    tokens: dict[float, int] = field(default_factory=dict)
    stats: dict[float, list[Stats]] = field(default_factory=dict)


# --- Contestants ----------------------------------------------------------------------------------


@dataclass
class Pair:
    """The models that everybody shares; no end of text, so that all write equally much."""

    target: PreTrainedModel
    draft: PreTrainedModel
    new_tokens: int

    @staticmethod
    def demo(new_tokens: int) -> Pair:
        models = [load_model(str(path)) for path in (demo.target_path(), demo.drafter_path())]
        for model in models:
            model.generation_config.eos_token_id = None
            model.generation_config.pad_token_id = 0
        return Pair(models[0], models[1], new_tokens)


def hugging_face(pair: Pair, name: str, assistant: dict[str, Any] | None, **options: Any) -> Any:
    """`generate`, with the draft as assistant under the given settings if they are not None."""
    original = copy.deepcopy(pair.draft.generation_config)

    def run(prompt: list[int], temperature: float, seed: int) -> tuple[int, None]:
        keywords = dict(options)
        if assistant is not None:  # fresh every time: the heuristic schedule writes to it
            pair.draft.generation_config = copy.deepcopy(original)
            pair.draft.generation_config.update(**assistant)
            keywords["assistant_model"] = pair.draft
        if temperature:
            keywords |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        else:
            keywords["do_sample"] = False
        torch.manual_seed(seed)
        ids = torch.tensor([prompt])
        output = pair.target.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=pair.new_tokens, **keywords
        )
        return output.shape[1] - len(prompt), None

    return Contestant(name, run, assisted=assistant is not None)


def tree_decoder(pair: Pair, drafter: Any, name: str = "", **options: Any) -> Contestant:
    """A treespec decoder over the same model objects."""
    model = pair.draft if drafter == "demo" else drafter
    decoder = treespec.load(pair.target, model, profile=None, **options)

    def run(prompt: list[int], temperature: float, seed: int) -> tuple[int, Stats]:
        result = decoder.generate(
            prompt,
            max_new_tokens=pair.new_tokens,
            temperature=temperature,
            seed=seed,
            ignore_eos=True,
        )
        return len(result.token_ids), result.stats

    return Contestant(name or label(drafter, options), run)


def label(drafter: Any, options: dict[str, Any]) -> str:
    """A short name such as ``demo opt_tree b=8 threshold=0.3``."""
    words = [str(drafter or "plain"), options.get("builder", "") if drafter else ""]
    if "node_budget" in options:
        words.append(f"b={options['node_budget']}")
    if "max_depth" in options:
        words.append(f"d={options['max_depth']}")
    words += [f"{key}={value}" for key, value in options.get("builder_options", {}).items()]
    return " ".join(word for word in words if word)


def opt_tree(budget: int, threshold: float, depth: int = 10) -> dict[str, Any]:
    """Options of an OPT-Tree decoder."""
    return {
        "builder": "opt_tree",
        "node_budget": budget,
        "max_depth": depth,
        "builder_options": {"threshold": threshold},
    }


def chain(length: int, **builder_options: Any) -> dict[str, Any]:
    """Options of a decoder that drafts chains."""
    return {"builder": "chain", "node_budget": length, "builder_options": builder_options}


def hf_contestants(pair: Pair, quick: bool) -> list[Contestant]:
    """What transformers offers for this pair."""
    constant = {
        "num_assistant_tokens": 5,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    out = [
        hugging_face(pair, PLAIN, None),
        hugging_face(pair, "HF assisted, 5 tokens", constant),
        hugging_face(pair, "HF assisted, its defaults", {}),
    ]
    if not quick:
        fewer = {**constant, "num_assistant_tokens": 3}
        out.append(hugging_face(pair, "HF assisted, 3 tokens", fewer))
    out.append(hugging_face(pair, LOOKUP, None, prompt_lookup_num_tokens=10))
    return out


def treespec_contestants(pair: Pair, quick: bool) -> list[Contestant]:
    """Every drafter with builders that fit it."""
    settings: list[tuple[Any, dict[str, Any]]] = [
        (None, {}),
        ("demo", opt_tree(6, 0.5)),
        ("demo", chain(2, proposal="iid")),
        ("suffix", {"builder": "trie", "node_budget": 8}),
        ("ngram", {"builder": "trie", "node_budget": 8}),
    ]
    if not quick:
        settings += [
            ("demo", opt_tree(4, 0.5)),
            ("demo", opt_tree(8, 0.4)),
            ("demo", opt_tree(16, 0.2)),
            ("demo", opt_tree(16, 0.0)),
            ("demo", chain(1)),
            ("demo", chain(4)),
            ("demo", {"builder": "kary", "builder_options": {"expansion": [2, 1]}}),
            ("suffix", {"builder": "trie", "node_budget": 16}),
            ("suffix", chain(4)),
            ("ngram", {"builder": "opt_tree", "node_budget": 8}),
        ]
    return [tree_decoder(pair, drafter, **options) for drafter, options in settings]


def sweep_contestants(pair: Pair, quick: bool) -> list[Contestant]:
    """A grid for the defaults of the demo pair, and the two marks to beat."""
    out = hf_contestants(pair, quick=True)
    # One less than a multiple of four: with the root, rows that matrix kernels like.
    budgets = (3, 7) if quick else (3, 5, 7, 11, 15)
    thresholds = (0.3, 0.6) if quick else (0.0, 0.2, 0.4, 0.5, 0.6)
    settings = [("demo", chain(length)) for length in (1, 2, 4)]
    settings += [("demo", chain(length, proposal="iid")) for length in (1, 2, 3)]
    settings += [("demo", opt_tree(b, threshold)) for b in budgets for threshold in thresholds]
    settings += [
        (drafter, {"builder": "trie", "node_budget": budget})
        for drafter in ("suffix", "ngram")
        for budget in (3, 7, 15)
    ]
    return out + [tree_decoder(pair, drafter, **options) for drafter, options in settings]


# --- Running --------------------------------------------------------------------------------------


def load_prompts(count: int, length: int, sweep: bool) -> list[list[int]]:
    """The first tokens of held-out files; what defaults were searched on is not measured on."""
    tokenizer = AutoTokenizer.from_pretrained(demo.target_path())
    texts = [entry["text"] for entry in demo.held_out()]
    chosen = texts[:count] if sweep else texts[-count:]
    return [tokenizer.encode(text)[:length] for text in chosen]


def check(pair: Pair, contestants: Sequence[Contestant], prompt: list[int]) -> None:
    """At temperature 0 everybody must write what plain `generate` writes, up to rounding."""
    ids = torch.tensor([prompt])
    plain = pair.target.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=pair.new_tokens, do_sample=False
    )[0, len(prompt) :].tolist()
    reference = treespec.load(pair.target, None).generate(
        prompt, max_new_tokens=pair.new_tokens, ignore_eos=True
    )
    if reference.token_ids != plain:
        _require_near_tie(pair, prompt, plain, reference.token_ids)
    for contestant in contestants:
        count, _ = contestant.run(prompt, 0.0, 0)
        assert count == pair.new_tokens, f"{contestant.name}: {count} new tokens"


def _require_near_tie(pair: Pair, prompt: list[int], one: list[int], other: list[int]) -> None:
    at = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    with torch.inference_mode():
        logits = pair.target(torch.tensor([prompt + one[:at]])).logits[0, -1]
    gap = abs(float(logits[one[at]] - logits[other[at]]))
    assert gap < 1e-3, f"texts part at token {at}, where the logits are {gap} apart"


def run_all(
    contestants: Sequence[Contestant],
    prompts: Sequence[list[int]],
    temperatures: Sequence[float],
    repetitions: int,
) -> None:
    """A B C A B C: each prompt goes through all decoders before the next one."""
    for contestant in contestants:  # warm-up
        contestant.run(prompts[0], 0.7, 0)
    for repetition in range(repetitions):
        for place, prompt in enumerate(prompts):
            for temperature in temperatures:
                for contestant in contestants:
                    _measure(contestant, prompt, temperature, 1000 * repetition + place)


def _measure(contestant: Contestant, prompt: list[int], temperature: float, seed: int) -> None:
    samples = contestant.samples.setdefault(temperature, harness.Samples())
    with harness.collected():
        count, stats = samples.measure(lambda: contestant.run(prompt, temperature, seed))
    contestant.tokens[temperature] = contestant.tokens.get(temperature, 0) + count
    if stats is not None:
        contestant.stats.setdefault(temperature, []).append(stats)


# --- Figures --------------------------------------------------------------------------------------


def figures(
    contestants: Sequence[Contestant], temperature: float, clock: str
) -> list[dict[str, Any]]:
    """One row per decoder."""
    times = {c.name: getattr(c.samples[temperature], clock) for c in contestants}
    assisted = [c.name for c in contestants if c.assisted]
    best = min(assisted, key=lambda name: sum(times[name]))
    rows = []
    for contestant in contestants:
        own = times[contestant.name]
        row = {
            "name": contestant.name,
            "temperature": temperature,
            "tokens": contestant.tokens[temperature],
            "tokens_per_second": contestant.tokens[temperature] / sum(own),
            "to_hf_generate": harness.ratio_interval(times[PLAIN], own),
            "to_best_hf_assisted": harness.ratio_interval(times[best], own),
            "best_hf_assisted": best,
            "to_hf_prompt_lookup": harness.ratio_interval(times[LOOKUP], own),
            "samples": contestant.samples[temperature],
        }
        rows.append(row | counters(contestant.stats.get(temperature, [])))
    return rows


def counters(stats: Sequence[Stats]) -> dict[str, Any]:
    """Block efficiency, milliseconds per round by step, and the share outside the models."""
    rounds = sum(one.rounds for one in stats)
    if not rounds:
        return {}
    spent = {step: sum(one.seconds[step] for one in stats) / rounds for step in STEPS}
    models = spent["draft"] + spent["target"]
    return {
        "block_efficiency": sum(one.tokens - 1 for one in stats) / rounds,
        "nodes_per_round": sum(one.drafted_nodes for one in stats) / rounds,
        "share_outside_models": 1 - models / sum(spent.values()),
        "milliseconds_per_round": {step: 1e3 * value for step, value in spent.items()},
    }


def show(console: Console, rows: Sequence[dict[str, Any]], clock: str) -> None:
    """The table of one temperature."""
    temperature = rows[0]["temperature"]
    table = Table(title=f"temperature {temperature}, {clock} time")
    for heading in (
        "decoder",
        "tokens/s",
        "/ HF generate",
        f"/ {BEST_ASSISTED}",
        "/ HF lookup",
        "block eff.",
    ):
        table.add_column(heading, justify="left" if heading == "decoder" else "right")
    for heading in ("nodes", "outside", *(f"{step} ms" for step in STEPS if step != "mask")):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)


def cells(row: dict[str, Any]) -> list[str]:
    """The text of a table row."""
    ratios = [
        "{:.2f} [{:.2f}, {:.2f}]".format(*row[key])
        for key in ("to_hf_generate", "to_best_hf_assisted", "to_hf_prompt_lookup")
    ]
    out = [row["name"], f"{row['tokens_per_second']:.0f}", *ratios]
    if "block_efficiency" not in row:
        return out
    spent = row["milliseconds_per_round"]
    return [
        *out,
        f"{row['block_efficiency']:.2f}",
        f"{row['nodes_per_round']:.1f}",
        f"{row['share_outside_models']:.1%}",
        *(f"{spent[step]:.2f}" for step in STEPS if step != "mask"),
    ]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    options = harness.parser(__doc__ or "")
    options.add_argument("--sweep", action="store_true", help="search the demo pair's defaults")
    options.add_argument("--new-tokens", type=int, default=128, metavar="N")
    options.add_argument("--prompts", type=int, metavar="N", help="held-out files to continue")
    options.add_argument("--prompt-length", type=int, default=64, metavar="N")
    options.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7], metavar="T")
    return options.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run and print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    pair = Pair.demo(options.new_tokens)
    prompts = load_prompts(
        options.prompts or (3 if options.quick else 8), options.prompt_length, options.sweep
    )
    if options.sweep:
        contestants = sweep_contestants(pair, options.quick)
    else:
        contestants = hf_contestants(pair, options.quick)
        contestants += treespec_contestants(pair, options.quick)
    if options.check:
        check(pair, contestants, prompts[0])
    repetitions = options.repetitions or (1 if options.quick or options.sweep else 3)
    run_all(contestants, prompts, options.temperatures, repetitions)
    console = Console(width=None if sys.stdout.isatty() else 180)
    results = []
    for temperature in options.temperatures:
        rows = figures(contestants, temperature, options.clock)
        if options.sweep:
            rows.sort(key=lambda row: -row["tokens_per_second"])
        show(console, rows, options.clock)
        results += rows
    command = shlex.join(["python", "benchmarks/bench_decode.py", *arguments])
    harness.write_report(options.json, "decode", command, options, results)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    np.seterr(all="raise")
    main(sys.argv[1:])
