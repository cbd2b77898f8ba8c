# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of README.md from the JSON files in results/."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from floors import bar_text, per_row_text

from treespec.benchmarking.timing import ratio_interval

FOLDER = Path(__file__).resolve().parent
BEGIN, END = "<!-- results: written by report.py -->", "<!-- end of results -->"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others are numbers."""
    align = ["---", *["---:"] * (len(heading) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (heading, align, *rows)]


def ratio(values: Sequence[float]) -> str:
    """A ratio with its interval."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*values)


def finer(values: Sequence[float]) -> str:
    """The same where a hundredth matters."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*values)


def decode_tables(results: Sequence[dict[str, Any]]) -> list[str]:
    """One table per temperature."""
    lines = []
    for temperature in dict.fromkeys(row["temperature"] for row in results):
        rows = [row for row in results if row["temperature"] == temperature]
        best = rows[0]["best_hf_assisted"]
        lines += ["", f"Temperature {temperature}; best HF assisted: {best!r}.", ""]
        heading = ["decoder", "tokens/s", "/ HF generate", "/ best HF assisted", "/ HF lookup"]
        heading += ["block efficiency", "nodes", "outside models"]
        lines += table(heading, map(decode_row, rows))
    return lines


def decode_row(row: dict[str, Any]) -> list[str]:
    """One decoder."""
    cells = [
        row["name"],
        f"{row['tokens_per_second']:.0f}",
        ratio(row["to_hf_generate"]),
        ratio(row["to_best_hf_assisted"]),
        ratio(row["to_hf_prompt_lookup"]),
    ]
    if "block_efficiency" not in row:
        return [*cells, "", "", ""]
    return [
        *cells,
        f"{row['block_efficiency']:.2f}",
        f"{row['nodes_per_round']:.1f}",
        f"{row['share_outside_models']:.1%}",
    ]


def floor_table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Medians in microseconds beside floors and bars; columns that say nothing are left out."""
    rows = [
        {
            "case": row["name"],
            "side": row["side"],
            "time (us)": f"{1e6 * row['seconds']['median']:.1f}",
            "per row (us)": per_row_text(row),
            "floor (us)": f"{1e6 * row['floor_seconds']['median']:.1f}",
            "ratio of medians": f"{row['seconds']['median'] / row['floor_seconds']['median']:.2f}",
            "bar": bar_text(row),
            "the floor is": row["floor_name"],
        }
        for row in results
    ]
    heading = [name for name in rows[0] if any(row[name] for row in rows)]
    return ["", *table(heading, [[row[name] for name in heading] for row in rows])]


def builder_tables(results: dict[str, Any]) -> list[str]:
    """Block efficiency by budget, adaptive builders against fixed ones, and what predicts it."""
    lines = []
    rows = results["rows"]
    budgets = sorted({row["budget"] for row in rows})
    for temperature in sorted({row["temperature"] for row in rows}):
        own = [row for row in rows if row["temperature"] == temperature]
        at = {(row["name"], row["budget"]): row for row in own}
        lines += ["", f"Tokens per target forward by node budget, temperature {temperature}:", ""]
        heading = ["builder", *map(str, budgets), f"nodes at {budgets[-1]}"]
        heading += [f"drafter calls at {budgets[-1]}", f"rows at {budgets[-1]}"]
        lines += table(heading, [builder_row(at, name, budgets) for name, _ in dict.fromkeys(at)])
        lines += ["", "Fewer target forwards than the fixed shapes (ratio, 95 % interval):", ""]
        lines += against_table(results["against_fixed"], temperature)
    return [*lines, *relation_table(results)]


def builder_row(at: dict[Any, Any], name: str, budgets: Sequence[int]) -> list[str]:
    """One builder at all budgets."""
    widest = at[name, max(budget for own, budget in at if own == name)]
    return [
        name,
        *(f"{at[name, b]['block_efficiency']:.2f}" if (name, b) in at else "" for b in budgets),
        f"{widest['nodes_per_round']:.1f}",
        f"{widest['draft_calls_per_round']:.1f}",
        f"{widest['draft_rows_per_round']:.1f}",
    ]


def against_table(entries: Sequence[dict[str, Any]], temperature: float) -> list[str]:
    """The adaptive builders the papers claim most for, at every budget."""
    own = [e for e in entries if e["temperature"] == temperature]
    fixed = list(dict.fromkeys(e["fixed"] for e in own))
    pairs = [(n, b) for n, b in dict.fromkeys((e["name"], e["budget"]) for e in own)]
    rows = []
    for name, budget in pairs:
        if name not in ("opt_tree", "dyspec", "eagle2"):
            continue
        cells = {e["fixed"]: e["ratio"] for e in own if (e["name"], e["budget"]) == (name, budget)}
        rows.append([f"{name}, {budget}", *(ratio(cells[f]) if f in cells else "" for f in fixed)])
    return table(["builder, nodes", *(f"/ {name}" for name in fixed)], rows)


def relation_table(results: dict[str, Any]) -> list[str]:
    """Correlations."""
    rows = []
    for key, words in (
        ("expected_and_accepted", "expected acceptance of the tree, accepted tokens"),
        ("draft_prob_and_acceptance", "draft probability of a node, its acceptance"),
    ):
        for line in results[key]:
            name = f"{words}: {line['builder']}, temperature {line['temperature']}"
            rows.append(
                [name, str(line["count"]), f"{line['pearson']:.2f}", f"{line['spearman']:.2f}"]
            )
    return ["", "What predicts acceptance:", "", *table(["", "n", "Pearson", "Spearman"], rows)]


def verifier_tables(results: dict[str, Any]) -> list[str]:
    """Families by sampling setting; ratios; laws by depth; real generations."""
    lines = []
    for setting in results["settings"]:
        name, own = setting["setting"], setting["rows"]
        roots = f"{setting['roots']} roots, {setting['prompts']} prompts"
        lines += ["", f"{name} ({roots}); the best tree of each family, and what it earns:", ""]
        heading = ["verifier", "tokens/round, root", "delayed", "/ root", "depth <= 8 / root"]
        heading += ["large target, root", "delayed", "/ root", "tokens/s here"]
        names = dict.fromkeys(row["verifier"] for row in own)
        lines += table(
            heading,
            (
                verifier_row({row["family"]: row for row in own if row["verifier"] == verifier})
                for verifier in names
            ),
        )
    settings = results["settings"]
    lines += budget_table(settings, results["actions"])
    lines += ["", "Tokens per round, ratios paired by root:", ""]
    lines += table(
        ["pair", *(setting["setting"] for setting in settings)],
        (
            [pairs[0]["name"], *(ratio(pair["ratio"]) for pair in pairs)]
            for pairs in zip(*(setting["pairs"] for setting in settings), strict=True)
        ),
    )
    lines += ["", "The same by thirds of the roots, in order of `||p - q||_1` at the root:", ""]
    lines += table(
        ["mean distance", *settings[0]["thirds"][0]["ratios"]],
        (
            [
                f"{setting['setting']}, {third['distance']:.2f}",
                *map(ratio, third["ratios"].values()),
            ]
            for setting in settings
            for third in setting["thirds"]
        ),
    )
    lines += depth_table(settings)
    lines += ["", "Real generations; `modelled` is what replay and measured costs foretell.", ""]
    heading = ["decoder", "tokens/s", "modelled", "/ plain", "tokens/round", "by replay"]
    return [*lines, *table([*heading, "verify (ms)"], map(run_row, results["runs"]))]


def verifier_row(families: dict[str, dict[str, Any]]) -> list[str]:
    """One verifier in one sampling setting."""
    root, delayed = families["root"], families["delayed"]
    shallow = families.get("delayed, depth <= 8")
    cells = [root["verifier"]]
    cells += [f"{row['tokens']:.2f}, {tree_name(row['tokens_action'])}" for row in (root, delayed)]
    cells.append(ratio(delayed["tokens_to_root"]))
    cells.append(ratio(shallow["tokens_to_root"]) if shallow else "")
    for row in (root, delayed):
        cells.append(f"{row['large']:.2f}, {tree_name(row['large_action'])}")
    cells.append(ratio(delayed["large_to_root"]))
    cells.append(f"{delayed['speed']:.0f}, {tree_name(delayed['speed_action'])}")
    return cells


def tree_name(action: Sequence[int]) -> str:
    """(K, L1, L2), or the length of a chain."""
    return f"chain {action[2]}" if action[0] == 1 else f"({', '.join(map(str, action))})"


def budget_table(settings: Sequence[dict[str, Any]], actions: Sequence[Sequence[int]]) -> list[str]:
    """What later branching is good for when nodes are scarce."""
    budgets, rows = (4, 8, 12, 16, 24, 32), []
    for setting in settings:
        for verifier in ("recursive_rejection", "traversal"):
            cells = [f"{setting['setting']}, {verifier}"]
            for budget in budgets:
                fits = {
                    tuple(action): tokens
                    for action, tokens in zip(actions, setting["tokens"][verifier], strict=True)
                    if 0 < action[1] + action[0] * action[2] <= budget
                }
                from_root = {a: fits[a] for a in fits if a[1] == 0 and a[2] <= 8}
                cells.append("; ".join(best_of(family) for family in (from_root, fits)))
            rows.append(cells)
    lines = [
        "",
        "Tokens per round of the best tree within a node budget (all prompts choose): from",
    ]
    lines += ["the root; of all:", ""]
    return [*lines, *table(["setting, verifier", *map(str, budgets)], rows)]


def best_of(family: dict[tuple[int, ...], float]) -> str:
    """The best tree and its tokens per round."""
    action = max(family, key=lambda a: family[a])
    return f"{family[action]:.2f} {tree_name(action)}"


def depth_table(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Distance and acceptance by depth, settings side by side."""
    lines = ["", "`||p - q||_1` at drafted nodes / at accepted nodes of a chain; acceptance of one"]
    lines += ["level of recursive_rejection with 1 / 4 draws, both at drafted nodes:", ""]
    rows = []
    for depth in (0, 1, 2, 4, 6, 8, 12, 15):
        cells = [str(depth)]
        for setting in settings:
            seen = setting["by_depth"]
            one, four = (seen["one_level"][key][depth] for key in ("1 draw", "4 draws"))
            gap, met = seen["distance"][depth], seen["distance_where_accepted"][depth]
            cells.append(f"{gap:.2f} / {met:.2f}; {one:.2f} / {four:.2f}")
        rows.append(cells)
    return [*lines, *table(["depth", *(setting["setting"] for setting in settings)], rows)]


def run_row(run: dict[str, Any]) -> list[str]:
    """One decoder that really ran."""
    return [
        f"{run['setting']}, {run['verifier']} {tree_name(run['action'])}",
        f"{run['tokens_per_second']:.0f}",
        f"{run['modelled_speed']:.0f}",
        ratio(run["to_plain"]),
        f"{run['block_efficiency']:.2f}",
        f"{run['expected_tokens']:.2f}",
        f"{run['milliseconds_per_round']['verify']:.2f}",
    ]


def drafter_tables(results: dict[str, Any]) -> list[str]:
    """Acceptance by tree, paired ratios, total variation by depth, time of a round by step."""
    lines, rows = [], results["acceptance"]
    trees = dict.fromkeys(row["tree"] for row in rows)
    for temperature in dict.fromkeys(row["temperature"] for row in rows):
        own = [row for row in rows if row["temperature"] == temperature]
        at = {(row["drafter"], row["tree"]): row for row in own}
        lines += ["", f"Tokens per target forward, temperature {temperature}:", ""]
        lines += table(
            ["drafter", *trees],
            ([name, *(mean_error(at[name, t]) for t in trees)] for name in _names(own)),
        )
    lines += ["", "Ratios, paired by text:", ""]
    temperatures = list(dict.fromkeys(row["temperature"] for row in results["paired"]))
    pairs = dict.fromkeys((r["drafter"], r["tree"], r["against"]) for r in results["paired"])
    found = {
        (r["drafter"], r["tree"], r["against"], r["temperature"]): r["ratio"]
        for r in results["paired"]
    }
    lines += table(
        ["pair", *(f"temperature {t}" for t in temperatures)],
        (
            [f"{one} {tree} / {other}", *(ratio(found[one, tree, other, t]) for t in temperatures)]
            for one, tree, other in pairs
        ),
    )
    lines += ["", "Share of offered depths that were accepted, largest tree, temperature 0.7:", ""]
    widest = max(row["budget"] for row in rows)
    deep = [r for r in rows if (r["kind"], r["budget"], r["temperature"]) == ("tree", widest, 0.7)]
    depths = max((len(row["offered_by_depth"]) for row in deep), default=0)
    lines += table(
        ["drafter", *map(str, range(1, depths + 1))],
        ([row["drafter"], *by_depth(row, depths)] for row in deep),
    )
    lines += ["", "Total variation to the target's law after the true tokens, temperature 1:", ""]
    lines += table(
        ["drafter", *map(str, range(1, depths + 1))],
        (
            [name, *(f"{mean:.3f} ± {error:.3f}" for mean, error in values)]
            + [""] * (depths - len(values))
            for name, values in results["total_variation"].items()
        ),
    )
    lines += ["", "Time of a round by step, milliseconds:", ""]
    heading = ["decoder", "tokens/s", "/ plain", "tokens/forward", "drafter passes"]
    return [*lines, *table([*heading, *DRAFTER_STEPS], map(drafter_time_row, results["times"]))]


DRAFTER_STEPS = ("draft", "build", "target", "verify", "commit", "other")


def selector_tables(results: dict[str, Any]) -> list[str]:
    """By replay with both costs, then real generations."""
    lines = []
    titles = {
        "replay": "Costs of this pair",
        "large": "Costs of a large target (units of a forward)",
    }
    heading = ["setting", "tree", "tokens/round", "/ static", "tokens/s", "/ static"]
    for key, title in titles.items():
        lines += ["", f"By replay, {results['roots'][1]} held-out roots. {title}.", ""]
        rows = [
            selector_row(row, kind)
            for kind, found in results[key].items()
            for row in found
            if kind == "laws" or row["policy"] == "selector"
        ]
        lines += table(heading, sorted(rows, key=lambda row: row[0]))
    heading = ["setting", "decoder", "tokens/round", "tokens/s", "/ static", "/ traversal"]
    lines += ["", "Real generations, held-out prompts.", ""]
    return lines + table(
        heading,
        [
            [
                run["setting"],
                run["name"],
                f"{run['block_efficiency']:.2f}",
                f"{run['tokens_per_second']:.0f}",
                ratio(run["speed_to_static"]),
                ratio(run["speed_to_traversal"]),
            ]
            for run in results["runs"]
        ],
    )


def selector_row(row: dict[str, Any], kind: str) -> list[str]:
    """A policy at a setting."""
    name = row["policy"] if row["policy"] != "selector" else f"selector ({kind})"
    if row["action"] is not None:
        name += f" {tree_name(row['action'])}"
    return [
        row["setting"],
        name,
        f"{row['block_efficiency']:.2f}",
        ratio(row["tokens_to_static"]),
        f"{row['speed']:.3g}",
        ratio(row["speed_to_static"]),
    ]


def _names(rows: Sequence[dict[str, Any]]) -> dict[str, None]:
    return dict.fromkeys(row["drafter"] for row in rows)


def mean_error(row: dict[str, Any]) -> str:
    """A mean with its standard error."""
    return f"{row['block_efficiency']:.2f} ± {row['standard_error']:.2f}"


def by_depth(row: dict[str, Any], depths: int) -> list[str]:
    """Shares of one drafter, blank where nothing was offered."""
    pairs = zip(row["accepted_by_depth"], row["offered_by_depth"], strict=True)
    cells = [f"{accepted / offered:.2f}" if offered else "" for accepted, offered in pairs]
    return cells + [""] * (depths - len(cells))


def drafter_time_row(row: dict[str, Any]) -> list[str]:
    """One decoder."""
    spent = row["milliseconds_per_round"]
    return [
        row["name"],
        f"{row['tokens_per_second']:.0f}",
        ratio(row["to_plain"]),
        f"{row['block_efficiency']:.2f}",
        f"{row['passes_per_round']:.2f}",
        *(f"{spent[step]:.2f}" for step in DRAFTER_STEPS),
    ]


def adaptive_tables(results: dict[str, Any]) -> list[str]:
    """Speed over plain decoding by group of prompts, a table per temperature."""
    lines = []
    for name, found in results.items():
        if name == "hopeless":
            continue
        groups = found["groups"]
        lines += ["", f"Speed over plain decoding, {name}:", ""]
        rows = [
            [
                label if label in ("plain", "adaptive") else f"{label} nodes",
                f"{found['mean_nodes'][label]:.1f}",
                *(ratio(group["over_plain"][label]) for group in groups.values()),
            ]
            for label in found["mean_nodes"]
        ]
        versus = (ratio(group["adaptive_over_best_fixed"]) for group in groups.values())
        rows.append(["adaptive / best fixed", "", *versus])
        lines += table(["decoder", "nodes a round", *groups], rows)
    if "hopeless" in results:
        lines += ["", "A drafter of random weights, speed over plain decoding:", ""]
        rows = [
            [name, "{:.3f} [{:.3f}, {:.3f}]".format(*v)] for name, v in results["hopeless"].items()
        ]
        lines += table(["profile", "speed"], rows)
    return lines


def backend_tables(results: dict[str, Any]) -> list[str]:
    """Median milliseconds of a tree forward, and tokens per second beside eager PyTorch."""
    names = list(results["forward"][0]["seconds"])
    rows = [
        [
            f"{row['context']} tokens, {row['nodes']} nodes",
            *(f"{1e3 * median(row['seconds'][name]):.2f}" for name in names),
        ]
        for row in results["forward"]
    ]
    lines = ["", "A tree forward, milliseconds (median):", "", *table(["context", *names], rows)]
    for row in results["decode"]:
        eager = next(iter(row["seconds"].values()))
        rows = [
            [
                name,
                f"{row['new_tokens'] * len(seconds) / sum(seconds):.0f}",
                ratio(ratio_interval(eager, seconds)),
            ]
            for name, seconds in row["seconds"].items()
        ]
        lines += ["", f"Whole texts, temperature {row['temperature']:g}:", ""]
        lines += table(["decoder", "tokens/s", "speed over eager"], rows)
    return lines


def section(path: Path) -> list[str]:
    """The tables of one file under its command, machine and date."""
    report = json.loads(path.read_text(encoding="utf-8"))
    words = report["machine"]
    software = ", ".join(
        f"{name} {words[name]}" for name in ("python", "torch", "transformers") if words.get(name)
    )
    lines = [
        f"### {path.stem}",
        "",
        f"`{report['command']}`",
        "",
        f"{report['date']}; {words['processor']}, {words['cores']} cores, {words['threads']} "
        f"thread(s) used; {software}.",
    ]
    if "note" in report:
        lines += ["", report["note"]]
    if report["benchmark"] == "adaptive":
        return [*lines, *adaptive_tables(report["results"])]
    if report["benchmark"] == "backends":
        return [*lines, *backend_tables(report["results"])]
    if report["benchmark"] in ("build", "core", "cuda"):
        return [*lines, *floor_table(report["results"])]
    if report["benchmark"] == "builders":
        return [*lines, *builder_tables(report["results"])]
    if report["benchmark"] == "drafters":
        return [*lines, *drafter_tables(report["results"])]
    if report["benchmark"] == "selector":
        return [*lines, *selector_tables(report["results"])]
    if report["benchmark"] == "verifiers":
        return [*lines, *verifier_tables(report["results"])]
    return [*lines, *decode_tables(report["results"])]


def main() -> None:
    """Rewrite the part of README.md between the marks."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    readme = FOLDER / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    sections = [section(path) for path in sorted((FOLDER / "results").glob("*.json"))]
    body = "\n\n".join("\n".join(lines) for lines in sections)
    readme.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
