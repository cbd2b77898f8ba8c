# SPDX-License-Identifier: Apache-2.0
"""Every verifier on the same independent draws: which wastes least, and where a tree should branch.

The study of arXiv 2602.16994 on the demo pair: block efficiency of trees that branch at the root
against (K, L1, L2) trees that branch later, by replay (`treespec.selector`) at roots every 16
tokens of texts that the target wrote itself. Tokens per second come from measured costs of forwards
and calls; real generations check them. The best action of a family is chosen on half of the prompts
and scored on the other half, so that a family gains nothing from being large. Intervals are from a
bootstrap over prompts, since the roots of one are no independent samples.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import harness
import numpy as np
import replay
import torch
from bench_decode import Contestant, counters, load_prompts, run_all
from rich.console import Console
from rich.progress import track
from rich.table import Table

import treespec
from treespec import SamplingParams, SpeculativeDecoder, demo, tuning
from treespec.selector import supersets as drawing
from treespec.selector.actions import ACTIONS, BRANCH, PATHS, PLACE, TRUNK, Action
from treespec.selector.latency import ROWS, round_seconds
from treespec.selector.supersets import Array
from treespec.targets.hf_model import load_model

SETTINGS = {
    "T 0.4": (0.4, 1.0),
    "T 0.7": (0.7, 1.0),
    "T 1.0": (1.0, 1.0),
    "T 1.0, top-p 0.9": (1.0, 0.9),
}
VERIFIERS = (*drawing.CHAIN_VERIFIERS, *drawing.TREE_VERIFIERS)
FAMILIES: dict[str, Callable[[Action], bool]] = {
    "root": lambda action: action.from_root,
    "delayed": lambda action: action.depth > 0,
    "delayed, depth <= 8": lambda action: 0 < action.depth <= BRANCH,
}
STRIDE = 16
LARGE_CALL = 0.05  # drafter calls per forward of a large target, whose price ignores the rows
RUN_SETTINGS = ("T 0.7", "T 1.0")  # of real generations
# Run in any case: where to branch at equal depth.
RUN_CUTS = [Action(4, cut, 8 - cut) for cut in (0, 1, 4)]
SHOWN_SETTING = "T 0.7"  # of the pictures that show one
PATH_DEPTHS = (0, 1, 2, 4, 6, 8, 12, 15)


# --- Replay ---------------------------------------------------------------------------------------


@dataclass
class Recording:
    """What all roots of a sampling setting show; the first axis of every array is the root."""

    prompt: list[int] = field(default_factory=list)
    tokens: dict[str, list[Array]] = field(default_factory=lambda: {v: [] for v in VERIFIERS})
    rows: list[Array] = field(default_factory=list)
    reach: dict[str, list[Array]] = field(default_factory=dict)
    distance: list[Array] = field(default_factory=list)
    met_distance: list[Array] = field(default_factory=list)
    one_level: dict[str, list[Array]] = field(default_factory=dict)

    def add(self, prompt: int, supersets: Sequence[drawing.Superset]) -> None:
        """One root: means over its supersets."""
        seen = [drawing.evaluate(one) for one in supersets]
        gaps = [replay.distances(one) for one in supersets]
        levels = [replay.one_level(one) for one in supersets]
        self.prompt.append(prompt)
        self.rows.append(mean([one.rows for one in seen]))
        self.distance.append(mean([everywhere for everywhere, _ in gaps]))
        met = [g[1] * one.reach["chain"][:-1] for g, one in zip(gaps, seen, strict=True)]
        self.met_distance.append(mean(met))
        for verifier, own in self.tokens.items():
            own.append(mean([one.tokens[verifier] for one in seen]))
        for key in seen[0].reach:
            self.reach.setdefault(key, []).append(mean([one.reach[key] for one in seen]))
        for key in levels[0]:
            self.one_level.setdefault(key, []).append(mean([one[key] for one in levels]))


def mean(parts: Sequence[Array]) -> Array:
    """Of arrays of one shape."""
    return np.asarray(np.mean(parts, axis=0))


def record(
    decoder: SpeculativeDecoder, setting: str, options: argparse.Namespace, progress: Console
) -> Recording:
    """Let the target write texts, and replay all actions along them."""
    temperature, top_p = SETTINGS[setting]
    prompts = load_prompts(options.prompts, options.prompt_length, False) * options.texts
    written = SpeculativeDecoder(decoder.target).generate(
        prompts,
        max_new_tokens=options.new_tokens,
        temperature=temperature,
        top_p=top_p,
        sequence_id=range(len(prompts)),
        ignore_eos=True,
    )
    pair = drawing.Pair(decoder.target, decoder.drafter)  # type: ignore[arg-type]
    sampling = SamplingParams(temperature=temperature, top_p=top_p)
    rng, out = np.random.default_rng(list(SETTINGS).index(setting)), Recording()
    jobs = list(enumerate(zip(prompts, written, strict=True)))
    for place, (prompt, result) in track(jobs, setting, console=progress):
        tokens = [*prompt, *result.token_ids]
        roots = list(range(len(prompt), len(tokens), STRIDE))
        for root in pair.roots(tokens, roots, options.supersets, sampling, rng):
            out.add(place % options.prompts, root.supersets)
    return out


# --- Checks ---------------------------------------------------------------------------------------


def check(decoder: SpeculativeDecoder, draws: int) -> None:
    """Rows against plain forwards, expectations against the oracle or drawn coins."""
    prompt = load_prompts(1, 64, False)[0]
    pair = drawing.Pair(decoder.target, decoder.drafter)  # type: ignore[arg-type]
    for temperature, top_p in ((0.7, 1.0), (1.0, 0.9)):
        sampling = SamplingParams(temperature=temperature, top_p=top_p)
        rng = np.random.default_rng(7)
        (root,) = pair.roots(prompt, [len(prompt) - 1], 1, sampling, rng)
        (superset,) = root.supersets
        _check_rows(decoder, prompt, superset, sampling)
        _check_identities(superset)
        for paths, cut, depth in ((4, 0, 3), (3, 2, 5), (1, TRUNK, 4)):
            for verifier in VERIFIERS:
                if paths == 1 or verifier in drawing.TREE_VERIFIERS:
                    _check_expectation(
                        drawing.SubTree.of(superset, paths, cut).tree(depth), verifier, draws
                    )


def _check_rows(
    decoder: SpeculativeDecoder,
    prompt: list[int],
    superset: drawing.Superset,
    sampling: SamplingParams,
) -> None:
    """The laws at the end of a path are those of the plain text."""
    path = [*superset.main[:4], *superset.branches[3][1][:3]]
    trie = superset.trie
    tokens = np.array(prompt + [trie.token[node] for node in path[1:]], dtype=np.int32)
    state = decoder.target.open(len(tokens))
    logits, _ = decoder.target.prefill([state], [tokens], drawing.Needs())
    decoder.target.close(state)
    law = drawing.laws_of(logits[0][None].numpy(), sampling.row_params())[0]
    assert np.abs(law - trie.target[path[-1]]).max() < 1e-4, "target laws differ"
    drafter: Any = decoder.drafter
    session = drafter.begin(tokens, None, len(tokens))
    settings = drawing.DraftSettings(temperature=sampling.temperature, top_p=sampling.top_p)
    (expander,) = drafter.draft([session], settings)
    row = expander.expand(drawing.Level(drawing.Trie(0), 0, 1)).exp().numpy()[0]
    drafter.end(session)
    assert np.abs(row - trie.draft[path[-1]]).max() < 1e-4, "draft laws differ"


def _check_identities(superset: drawing.Superset) -> None:
    """Shorter branches are beginnings; with one path there are two rules and the plain walk."""
    tree, chain = drawing.SubTree.of(superset, 3, 2), drawing.SubTree.of(superset, 1, TRUNK)
    for verifier in drawing.TOP_DOWN:
        assert np.isclose(tree.by_depth(verifier)[:6].sum(), tree.tokens(verifier, 5))
    for verifier in ("naive_tree", "spectr", "khisti", "recursive_rejection"):
        assert np.isclose(chain.tokens(verifier, 9), chain.tokens("token_level", 9))
    assert np.isclose(chain.tokens("traversal", 9), chain.tokens("block", 9))


def _check_expectation(
    case: tuple[treespec.TokenTree, Array, Array], verifier: str, draws: int
) -> None:
    tree, target, draft = case
    expected = treespec.expected_acceptance(tree, target, draft, verifier).node_probability
    if importlib.util.find_spec("treespec.reference.expected") is not None:
        oracle = importlib.import_module("treespec.reference.expected")
        trees = importlib.import_module("treespec.reference.tree")
        own = trees.from_arrays(tree.token, tree.parent, proposal="iid", draws=tree.draws)
        found = oracle.expected_acceptance(own, target, draft, verifier).node_probability
        assert np.allclose(found, expected, atol=1e-9), f"{verifier} differs from the oracle"
        return
    counts = np.zeros(tree.num_nodes)
    for seed in range(draws):
        counts[treespec.verify(tree, target, draft, verifier, seed=seed).accepted_nodes] += 1
    spread = np.sqrt(expected * (1 - expected).clip(0) / draws) + 1e-9
    worst = float((np.abs(counts / draws - expected) / spread)[1:].max())
    rare = np.abs(counts - draws * expected)[1:].max() <= 3  # too few events for a normal law
    assert worst < 4.5 or rare, f"{verifier}: {worst:.1f} sigma from drawn coins"


# --- Figures --------------------------------------------------------------------------------------


@dataclass
class Choice:
    """The best action of a family, scored on prompts that did not choose it.

    Attributes
    ----------
    action
        By all prompts.
    value
        ``[roots]``: tokens, or tokens per second.
    """

    action: Action
    value: Array


def best(values: Array, family: Callable[[Action], bool], prompt: Sequence[int]) -> Choice:
    """`values`: ``[roots, actions]``."""
    allowed = [place for place, action in enumerate(ACTIONS) if family(action)]
    fold, own = np.array(prompt) % 2, np.zeros(len(values))

    def pick(rows: Array) -> int:
        return allowed[int(np.argmax(rows[:, allowed].mean(axis=0)))]

    for half in (0, 1):
        if (fold != half).any():
            own[fold == half] = values[fold == half, pick(values[fold != half])]
        else:
            own[:] = values[:, pick(values)]
    return Choice(ACTIONS[pick(values)], own)


def interval(
    one: Array, other: Array, seen: Recording, roots: Any = slice(None)
) -> tuple[float, float, float]:
    """Ratio of sums over roots; the prompts are what the bootstrap draws."""
    prompt, count = np.array(seen.prompt), max(seen.prompt) + 1
    sums = [
        np.bincount(prompt[roots], weights=column[roots], minlength=count).tolist()
        for column in (one, other)
    ]
    return harness.ratio_interval(*sums)


def figures(setting: str, seen: Recording, costs: tuning.Costs) -> dict[str, Any]:
    """All results of a sampling setting."""
    spent = round_seconds(costs, mean(seen.rows))
    calls = np.array([action.depth for action in ACTIONS])
    found: dict[tuple[str, str, str], Choice] = {}
    rows = []
    for verifier in VERIFIERS:
        tokens = np.array(seen.tokens[verifier])
        chains = verifier in drawing.CHAIN_VERIFIERS
        for name, family in FAMILIES.items():
            if chains and name == "delayed, depth <= 8":
                continue
            row: dict[str, Any] = {"verifier": verifier, "family": name}
            for by, values in (
                ("tokens", tokens),
                ("speed", tokens / spent),
                ("large", tokens / (1 + LARGE_CALL * calls)),
            ):
                choice = best(values, admitted(family, chains), seen.prompt)
                found[verifier, name, by] = choice
                root = found[verifier, "root", by]
                row[by] = float(choice.value.mean())
                row[f"{by}_action"] = list(choice.action)
                row[f"{by}_to_root"] = interval(choice.value, root.value, seen)
            rows.append(row)
    return {
        "setting": setting,
        "roots": len(seen.prompt),
        "prompts": len(set(seen.prompt)),
        "rows": rows,
        "pairs": pairs(seen, found),
        "thirds": thirds(seen),
        "by_depth": by_depth(seen),
        "tokens": {v: rounded(mean(seen.tokens[v])) for v in VERIFIERS},
        "seconds": np.round(spent, 6).tolist(),
        "nodes": np.round(mean(seen.rows) - 1, 2).tolist(),
    }


def rounded(column: Array) -> list[float | None]:
    """For JSON, which knows no NaN."""
    return [None if np.isnan(x) else round(x, 4) for x in column.tolist()]


def admitted(family: Callable[[Action], bool], chains: bool) -> Callable[[Action], bool]:
    """The family, or its chains."""
    return lambda action: family(action) and (action.paths == 1 or not chains)


def pairs(seen: Recording, found: Mapping[tuple[str, str, str], Choice]) -> list[dict[str, Any]]:
    """Ratios of tokens per round, paired by root."""
    out = []

    def compare(name: str, one: Array, other: Array) -> None:
        out.append({"name": name, "ratio": interval(one, other, seen)})

    def at(verifier: str, action: Action) -> Array:
        return np.array(seen.tokens[verifier])[:, PLACE[action]]

    best_root = {v: found[v, "root", "tokens"].value for v in VERIFIERS}
    for verifier in VERIFIERS:
        if verifier != "traversal":
            compare(f"traversal / {verifier}, root", best_root["traversal"], best_root[verifier])
    for length in (2, 4, 8, 16):
        chain = Action(1, 0, length)
        compare(f"block / token_level, {chain}", at("block", chain), at("token_level", chain))
    delayed = {v: found[v, "delayed", "tokens"].value for v in VERIFIERS}
    for verifier in drawing.TOP_DOWN:
        name = f"{verifier} delayed / traversal root"
        compare(name, delayed[verifier], best_root["traversal"])
    for verifier in drawing.TREE_VERIFIERS:
        for cut in (1, 2, 4):
            # Equal depth and fewer nodes.
            one = Action(4, cut, 8 - cut)
            compare(f"{verifier}, {one} / (4, 0, 8)", at(verifier, one), at(verifier, (4, 0, 8)))
    return out


def thirds(seen: Recording) -> list[dict[str, Any]]:
    """What a later branch point gains where the laws agree at the root, and where they do not."""
    distance = np.array(seen.distance)[:, 0]
    out = []
    for third in np.array_split(np.argsort(distance, kind="stable"), 3):
        row: dict[str, Any] = {"distance": float(distance[third].mean()), "ratios": {}}
        for verifier in ("recursive_rejection", "traversal"):
            tokens = np.array(seen.tokens[verifier])
            root = tokens[:, PLACE[Action(4, 0, 8)]]
            for cut in (1, 2):
                action = Action(4, cut, 8 - cut)
                ratio = interval(tokens[:, PLACE[action]], root, seen, third)
                row["ratios"][f"{verifier}, {action} / (4, 0, 8)"] = ratio
        out.append(row)
    return out


def by_depth(seen: Recording) -> dict[str, Any]:
    """Distance of the laws and acceptance by depth."""
    distance, met = np.array(seen.distance), np.array(seen.met_distance)
    reach = {key: mean(parts) for key, parts in seen.reach.items()}
    met_mean = met.mean(axis=0) / reach["chain"][:-1]
    return {
        "distance": distance.mean(axis=0).tolist(),
        "distance_to_root": [
            interval(distance[:, depth], distance[:, 0], seen) for depth in range(distance.shape[1])
        ],
        "distance_where_accepted": met_mean.tolist(),
        "one_level": {key: mean(parts).tolist() for key, parts in seen.one_level.items()},
        "accepted": {key: (own[1:] / own[:-1]).tolist() for key, own in reach.items()},
    }


# --- Real generations -----------------------------------------------------------------------------


def contestants(
    decoder: SpeculativeDecoder, rows: Sequence[dict[str, Any]], new_tokens: int
) -> list[tuple[str, Action, Contestant]]:
    """Plain decoding, and each verifier with its best actions by every measure."""
    wanted: dict[tuple[str, Action], None] = {}
    for row in rows:
        if row["family"] in ("root", "delayed"):
            for by in ("speed", "large", "tokens"):
                wanted[row["verifier"], Action(*row[f"{by}_action"])] = None
    for verifier in ("recursive_rejection", "traversal"):
        wanted |= {(verifier, action): None for action in RUN_CUTS}
    plain = SpeculativeDecoder(decoder.target)
    out = [("plain", ACTIONS[0], Contestant("plain", generation(plain, new_tokens)))]
    for verifier, action in wanted:
        own = decoder_for(decoder, verifier, action)
        name = f"{verifier} {action}"
        out.append((verifier, action, Contestant(name, generation(own, new_tokens))))
    return out


def generation(decoder: SpeculativeDecoder, new_tokens: int) -> Callable[..., tuple[int, Any]]:
    """What a contestant runs."""

    def run(prompt: list[int], temperature: float, seed: int) -> tuple[int, Any]:
        result = decoder.generate(
            prompt,
            max_new_tokens=new_tokens,
            temperature=temperature,
            seed=seed,
            ignore_eos=True,
        )
        return len(result.token_ids), result.stats

    return run


def decoder_for(decoder: SpeculativeDecoder, verifier: str, action: Action) -> SpeculativeDecoder:
    """The same models with an action and a verifier."""
    builder: str = "delayed"
    shape: dict[str, Any] = {
        "num_paths": action.paths,
        "trunk": action.trunk,
        "branch": action.branch,
    }
    if action.paths == 1:
        builder, shape = "chain", {"max_depth": action.depth, "proposal": "iid"}
    return SpeculativeDecoder(
        decoder.target,
        decoder.drafter,
        builder=builder,
        builder_options=shape,
        verifier=verifier,
        node_budget=action.nodes,
    )


def real_runs(
    decoder: SpeculativeDecoder, result: dict[str, Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Generate, in turn, and set the model's figures beside the measured ones."""
    temperature, _ = SETTINGS[result["setting"]]
    racing = contestants(decoder, result["rows"], options.run_tokens)
    prompts = load_prompts(options.run_prompts, options.prompt_length, False)
    run_all([one for _, _, one in racing], prompts, [temperature], options.repetitions)
    plain = racing[0][2].samples[temperature]
    out = []
    for verifier, action, contestant in racing:
        samples = contestant.samples[temperature]
        place = PLACE[action]
        expected = 1.0 if verifier == "plain" else result["tokens"][verifier][place]
        own, base = (getattr(one, options.clock) for one in (samples, plain))
        row = {
            "setting": result["setting"],
            "verifier": verifier,
            "action": list(action),
            "expected_tokens": expected,
            "modelled_speed": expected / result["seconds"][place],
            "tokens_per_second": contestant.tokens[temperature] / sum(own),
            "to_plain": harness.ratio_interval(base, own),
            "samples": samples,
        }
        out.append(row | counters(contestant.stats[temperature]))
    return out


def agreement(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Rank correlations of the model with the clock and the counters."""
    out = {}
    for one, other in (
        ("modelled_speed", "tokens_per_second"),
        ("expected_tokens", "block_efficiency"),
    ):
        columns = [np.argsort(np.argsort([run[key] for run in runs])) for key in (one, other)]
        out[f"{one}, {other}"] = float(np.corrcoef(*columns)[0, 1])
    return out


# --- Showing --------------------------------------------------------------------------------------


def show(console: Console, result: Mapping[str, Any]) -> None:
    """The tables of one sampling setting."""
    table = Table(title=f"{result['setting']}: {result['roots']} roots")
    for heading in ("verifier", "trees"):
        table.add_column(heading)
    for heading in ("tokens/round", "action", "/ root", "tokens/s", "action"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("large", "action", "/ root"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        cells = [row["verifier"], row["family"]]
        for by, digits in (("tokens", 3), ("speed", 0), ("large", 2)):
            cells.append(f"{row[by]:.{digits}f}")
            cells.append(str(Action(*row[f"{by}_action"])))
            if by != "speed":
                cells.append("{:.3f} [{:.3f}, {:.3f}]".format(*row[f"{by}_to_root"]))
        table.add_row(*cells)
    console.print(table)
    ratios = Table("pair", "ratio of tokens per round")
    for pair in result["pairs"]:
        ratios.add_row(pair["name"], "{:.3f} [{:.3f}, {:.3f}]".format(*pair["ratio"]))
    console.print(ratios)
    split = Table("|p-q| at the root", *result["thirds"][0]["ratios"])
    for third in result["thirds"]:
        ratios_text = ("{:.3f} [{:.3f}, {:.3f}]".format(*r) for r in third["ratios"].values())
        split.add_row(f"{third['distance']:.2f}", *ratios_text)
    console.print(split)
    seen = result["by_depth"]
    depths = Table("depth", "|p-q|", "/ root", "|p-q| where accepted", *seen["one_level"])
    for depth in PATH_DEPTHS:
        depths.add_row(
            str(depth),
            f"{seen['distance'][depth]:.3f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(*seen["distance_to_root"][depth]),
            f"{seen['distance_where_accepted'][depth]:.3f}",
            *(f"{own[depth]:.3f}" for own in seen["one_level"].values()),
        )
    console.print(depths)


def show_runs(console: Console, runs: Sequence[Mapping[str, Any]]) -> None:
    """Real generations beside the model."""
    table = Table(title="real generations")
    for heading in (
        "setting",
        "verifier",
        "action",
        "tokens/s",
        "modelled",
        "/ plain",
        "block eff.",
        "by replay",
        "verify ms",
    ):
        table.add_column(heading)
    for run in runs:
        table.add_row(
            run["setting"],
            run["verifier"],
            str(Action(*run["action"])),
            f"{run['tokens_per_second']:.0f}",
            f"{run['modelled_speed']:.0f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(*run["to_plain"]),
            f"{run['block_efficiency']:.2f}",
            f"{run['expected_tokens']:.2f}",
            f"{run['milliseconds_per_round']['verify']:.2f}",
        )
    console.print(table)


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Families by setting; growth with L; laws by depth; a heat map over (L1, L2)."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(15, 12), layout="constrained")
    bars, lines, rest = figure.subfigures(3, 1, height_ratios=(1.1, 0.9, 1.1))
    settings = results["settings"]
    panels = bars.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for axis, result in zip(panels, settings, strict=True):
        _bars(axis, result)
        axis.label_outer()
    most = max(row["tokens"] for result in settings for row in result["rows"])
    panels[0].set_ylim(1, 1.1 * most)  # the others share it
    shown = next((r for r in settings if r["setting"] == SHOWN_SETTING), settings[0])
    axes = lines.subplots(1, len(drawing.TREE_VERIFIERS), sharey=True)
    for axis, verifier in zip(axes, drawing.TREE_VERIFIERS, strict=True):
        for paths in range(1, PATHS + 1):
            own = [shown["tokens"][verifier][PLACE[Action(paths, 0, n)]] for n in range(1, 9)]
            axis.plot(range(1, 9), own, marker="o", ms=3, label=f"K = {paths}")
        axis.set(title=verifier, xlabel="L")
    axes[0].set(ylabel=f"tokens per round, {shown['setting']}")
    axes[0].legend(fontsize=8)
    distance, acceptance, heat = rest.subplots(1, 3)
    for place, result in enumerate(settings):
        seen, label = result["by_depth"], {"label": result["setting"], "color": f"C{place}"}
        distance.plot(seen["distance"], marker="o", ms=3, **label)
        met = seen["distance_where_accepted"][:9]  # deeper ones are hardly ever reached
        distance.plot(met, ls=":", color=f"C{place}")
        acceptance.plot(seen["one_level"]["4 draws"], marker="o", ms=3, **label)
        acceptance.plot(seen["one_level"]["1 draw"], ls="--", color=f"C{place}")
    distance.set(xlabel="depth", ylabel="||p - q||$_1$", title="drafted; dotted: where accepted")
    acceptance.set(xlabel="depth", ylabel="acceptance", title="one level: 4 draws; dashed: 1 draw")
    distance.legend(fontsize=8)
    grid = np.array(
        [
            [shown["tokens"]["recursive_rejection"][PLACE[canonical(4, l1, l2)]] for l2 in range(9)]
            for l1 in range(9)
        ]
    )
    image = heat.imshow(grid, origin="lower")
    heat.set(xlabel="L2", ylabel="L1", title=f"recursive_rejection, K = 4, {shown['setting']}")
    rest.colorbar(image, ax=heat, label="tokens per round")
    figure.savefig(path, dpi=90)


def _bars(axis: Any, result: Mapping[str, Any]) -> None:
    for place, verifier in enumerate(VERIFIERS):
        for shift, family in ((-0.2, "root"), (0.2, "delayed")):
            (row,) = (
                r for r in result["rows"] if (r["verifier"], r["family"]) == (verifier, family)
            )
            label = family if place == 0 else None
            colour = "C0" if family == "root" else "C1"
            axis.bar(place + shift, row["tokens"], 0.4, color=colour, label=label)
    axis.set_xticks(range(len(VERIFIERS)), VERIFIERS, rotation=60, ha="right", fontsize=8)
    axis.set(title=result["setting"], ylabel="tokens per round")
    axis.legend(fontsize=8, loc="upper left", ncols=2)


def canonical(paths: int, trunk: int, branch: int) -> Action:
    """Trees without a fork are chains."""
    if paths == 1 or branch == 0:
        return Action(1, 0, trunk + branch)
    return Action(paths, trunk, branch)


# --- Running --------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    options = harness.parser(__doc__ or "")
    options.add_argument("--settings", nargs="+", choices=SETTINGS, metavar="NAME")
    options.add_argument("--prompts", type=int, metavar="N", help="held-out files to replay")
    options.add_argument("--texts", type=int, metavar="N", help="written per prompt")
    options.add_argument("--prompt-length", type=int, default=64, metavar="N")
    options.add_argument("--new-tokens", type=int, metavar="N", help="a root every 16 of them")
    options.add_argument("--supersets", type=int, metavar="S", help="drawn per root")
    options.add_argument("--run-prompts", type=int, metavar="N", help="of real generations")
    options.add_argument("--run-tokens", type=int, metavar="N")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw the results")
    out = options.parse_args(arguments)
    out.settings = out.settings or list(RUN_SETTINGS if out.quick else SETTINGS)
    out.prompts = out.prompts or (4 if out.quick else 24)
    out.texts = out.texts or (1 if out.quick else 2)
    out.new_tokens = out.new_tokens or (32 if out.quick else 128)
    out.supersets = out.supersets or (1 if out.quick else 2)
    out.run_prompts = out.run_prompts or (1 if out.quick else 6)
    out.run_tokens = out.run_tokens or (8 if out.quick else 64)
    out.repetitions = out.repetitions or 1
    return out


def main(arguments: Sequence[str]) -> None:
    """Run and print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    start, progress = perf_counter(), Console(stderr=True)
    console = Console(width=None if sys.stdout.isatty() else 170)
    models = (load_model(str(path)) for path in (demo.target_path(), demo.drafter_path()))
    decoder = treespec.load(
        *models, builder="chain", builder_options={"proposal": "iid"}, node_budget=4
    )
    if options.check:
        check(decoder, 300 if options.quick else 4000)
        progress.print(f"checked in {perf_counter() - start:.0f} s")
    costs = tuning.measure_costs(
        decoder,
        load_prompts(3, options.prompt_length, False),
        rows=ROWS,
        repetitions=3 if options.quick else 15,
        temperature=0.7,
        proposal="iid",
    )
    settings, runs = [], []
    for name in options.settings:
        result = figures(name, record(decoder, name, options, progress), costs)
        settings.append(result)
        show(console, result)
        if name in RUN_SETTINGS:
            runs += real_runs(decoder, result, options)
    show_runs(console, runs)
    agreed = {
        name: agreement([run for run in runs if run["setting"] == name])
        for name in dict.fromkeys(run["setting"] for run in runs)
    }
    console.print(agreed)
    results = {
        "actions": [list(action) for action in ACTIONS],
        "costs": asdict(costs),
        "settings": settings,
        "runs": runs,
        "agreement": agreed,
    }
    command = shlex.join(["python", "benchmarks/bench_verifiers.py", *arguments])
    harness.write_report(options.json, "verifiers", command, options, results)
    if options.plot is not None:
        plot(results, options.plot)
    progress.print(f"{perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
