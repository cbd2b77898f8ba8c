# SPDX-License-Identifier: Apache-2.0
"""`treespec tune`: measure a pair on this machine and write what builders read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from treespec.cli.command import check_output, show_note
from treespec.cli.generate import print_json, read_prompts
from treespec.cli.options import PairOptions
from treespec.cli.progress import progress_bar
from treespec.cli.report import BAR_WIDTH, bar
from treespec.profile import Profile, profile_path

if TYPE_CHECKING:
    from treespec.calibration import Calibration
    from treespec.decoder import SpeculativeDecoder
    from treespec.growth_map import GrowthMap
    from treespec.tuning import Acceptance, Costs, Size

SUMMARY = "Measure a pair on this machine; write the tree shape and tables that suit it."

_SHOWN_RANKS = 8
_MEASURED_DEPTHS = 4  # a run each; deeper nodes are rarely reached, the last row stands for them
_measure = partial(typer.Option, rich_help_panel="What is measured")
_tree = partial(typer.Option, rich_help_panel="The tree")


@dataclass(frozen=True)
class MeasureOptions:
    """On which texts, and how they are drawn."""

    prompts: Annotated[
        Path | None,
        _measure("--prompts", metavar="FILE", help="One prompt per line; none: demo prompts."),
    ] = None
    max_new_tokens: Annotated[
        int,
        _measure(
            "--max-new-tokens", "-n", metavar="N", min=8,
            help="Length of each text; longer texts and more prompts give smoother figures.",
        ),
    ] = 128  # fmt: skip
    temperature: Annotated[
        float,
        _measure(
            "--temperature", "-t", metavar="X", min=0.0,
            help="Measure at the temperature that you will generate at.",
        ),
    ] = 0.0  # fmt: skip
    proposal: Annotated[
        str | None,
        _measure(
            metavar="NAME",
            help="`deterministic` or `without_replacement`; the first at temperature 0, else the "
            "second.",
        ),
    ] = None
    width: Annotated[
        int, _measure(metavar="W", min=1, help="Siblings that are tried at a place.")
    ] = 32
    seed: Annotated[int, _measure(metavar="N", help="Of the texts that are drawn.")] = 0

    def read_prompts(self) -> list[str]:
        """Return the prompts of the file, or the demo's."""
        if self.prompts is not None:
            return read_prompts("tune: --prompts", self.prompts)
        from treespec import demo

        show_note("no --prompts given, so the demo prompts: yours give better figures")
        return demo.prompts()

    def check_proposal(self) -> None:
        """Refuse a proposal whose ranks cannot be measured."""
        from treespec.tuning.pair import PROPOSALS

        if self.proposal is not None and self.proposal not in PROPOSALS:
            raise typer.BadParameter(
                f"--proposal must be {' or '.join(PROPOSALS)}, got {self.proposal!r}"
            )

    def keywords(self) -> dict[str, Any]:
        """Return the keyword arguments that all measurements of acceptance share."""
        return {
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }


def tune(
    *,
    growth_map: Annotated[
        Path | None,
        typer.Option(
            "--growth-map",
            metavar="FILE",
            help="Write the best tree shape here, for `sequoia` and `medusa_choices`.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Write the table from draft probability to acceptance here.",
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Measure all that a round costs and keep it: from then on `generate` and `load` "
            "choose the size of every round for this pair on this machine.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write the profile here, not where `load` looks."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        _measure(metavar="B", min=1, help="Also time batches of this size; repeatable."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the summary.")
    ] = False,
    nodes: Annotated[
        str,
        _tree(metavar="auto|N", help="Most guesses per round; `auto`: what pays on this machine."),
    ] = "auto",
    max_depth: Annotated[int, _tree(metavar="D", min=1, help="Most guesses on one path.")] = 8,
    measure: MeasureOptions,
    pair: PairOptions,
) -> None:
    """Measure how often guesses are accepted, and what they cost here, and write the best tree.

    Without a file to write it only prints what it finds.

    [bold]Examples[/bold]

    The tree shape for the bundled pair on this machine, and its use:

        treespec tune --growth-map map.json

        treespec generate --builder sequoia --builder-option growth_map=map.json

    Your own target and prompts, sampling; 32 guesses whatever they cost:

        treespec tune --target ./llama-8b --prompts my.txt -t 0.8 --nodes 32

    How far the drafter's probabilities can be trusted:

        treespec tune --calibration table.json

    Everything, once: from then on every round has the tree that pays here, or none:

        treespec tune --profile

        treespec generate "def main():" --stats
    """
    budget = _parse_nodes(nodes)
    measure.check_proposal()
    check_output("--growth-map", growth_map)
    check_output("--calibration", calibration)
    check_output("--out", out)
    if out is not None and not profile:
        raise typer.BadParameter("--out is for --profile, got it alone")
    prompts = measure.read_prompts()
    decoder = pair.load()
    report: dict[str, Any] = {}
    shown: list[RenderableType] = []
    if profile:
        measured = _tune_profile(decoder, prompts, measure, pair, batch or [])
        path = out or profile_path(measured.identity)
        measured.save(path)
        report["profile"] = asdict(measured)
        shown.append(_profile_summary(measured, path))
    if growth_map is not None or not (calibration or profile):
        tuned = _tune_map(decoder, prompts, measure, budget, max_depth)
        tuned.map.metadata.update(
            _provenance(pair, measure), proposal=tuned.proposal, trials=tuned.acceptance.trials
        )
        if growth_map is not None:
            tuned.map.save(growth_map)
        report.update(tuned.facts())
        shown.append(_map_summary(tuned, measure, growth_map))
    if calibration is not None:
        table = _tune_calibration(decoder, prompts, measure, pair)
        table.save(calibration)
        report["calibration"] = table.table
        shown.append(_calibration_summary(table, calibration))
    if as_json:
        print_json(report)
    else:
        Console().print(Group(*shown), soft_wrap=True)


@dataclass(frozen=True)
class _TunedMap:
    map: GrowthMap
    acceptance: Acceptance
    costs: Costs
    size: Size
    proposal: str

    def facts(self) -> dict[str, Any]:
        return {
            "parent": self.map.parent.tolist(),
            "acceptance": self.acceptance.table,
            "trials": self.acceptance.trials,
            "costs": vars(self.costs),
            **self.size._asdict(),
        }


def _tune_map(
    decoder: SpeculativeDecoder,
    prompts: list[str],
    measure: MeasureOptions,
    budget: int | None,
    max_depth: int,
) -> _TunedMap:
    from treespec import GrowthMap
    from treespec.tuning import best_size, measure_acceptance, measure_costs
    from treespec.tuning.costs import ROWS, check_room

    rows = ROWS if budget is None else (1, budget + 1)
    check_room(decoder, prompts[0], rows[-1])
    proposal = measure.proposal or (
        "without_replacement" if measure.temperature else "deterministic"
    )
    acceptance = measure_acceptance(
        decoder,
        prompts,
        width=measure.width,
        max_depth=min(max_depth, _MEASURED_DEPTHS),
        proposal=proposal,
        progress=progress_bar("acceptance"),
        **measure.keywords(),
    )
    costs = measure_costs(
        decoder,
        prompts,
        rows=rows,
        temperature=measure.temperature,
        proposal=proposal,
        seed=measure.seed,
        progress=progress_bar("costs"),
    )
    size = best_size(
        acceptance.table,
        costs.target_seconds,
        costs.draft_seconds,
        max_depth,
        round_seconds=costs.round_seconds,
        plain_seconds=costs.plain_seconds,
        num_nodes=budget,
    )
    map = GrowthMap.optimal(acceptance.table, size.num_nodes, max_depth=size.max_depth)
    return _TunedMap(map, acceptance, costs, size, proposal)


def _tune_calibration(
    decoder: SpeculativeDecoder, prompts: list[str], measure: MeasureOptions, pair: PairOptions
) -> Calibration:
    from treespec.tuning import measure_calibration

    table = measure_calibration(
        decoder, prompts, progress=progress_bar("calibration"), **measure.keywords()
    )
    return replace(table, metadata=_provenance(pair, measure))


def _tune_profile(
    decoder: SpeculativeDecoder,
    prompts: list[str],
    measure: MeasureOptions,
    pair: PairOptions,
    batches: list[int],
) -> Profile:
    from treespec.tuning import measure_profile

    measured = measure_profile(
        decoder,
        prompts,
        batches=(1, *batches),
        progress=progress_bar("profile"),
        **measure.keywords(),
    )
    return replace(measured, metadata={**measured.metadata, **_provenance(pair, measure)})


def _parse_nodes(nodes: str) -> int | None:
    if nodes == "auto":
        return None
    if not nodes.isdecimal() or int(nodes) < 1:
        raise typer.BadParameter(f"--nodes must be auto or a number from 1 on, got {nodes!r}")
    return int(nodes)


def _provenance(pair: PairOptions, measure: MeasureOptions) -> dict[str, Any]:
    return {
        "target": pair.target,
        "drafter": pair.named_drafter,
        "temperature": measure.temperature,
        "max_new_tokens": measure.max_new_tokens,
        "prompts": str(measure.prompts.name) if measure.prompts is not None else "demo",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


# --- what people read -----------------------------------------------------------------------------


def _map_summary(tuned: _TunedMap, measure: MeasureOptions, path: Path | None) -> RenderableType:
    size, line = tuned.size, Text()
    line.append(f"\n{size.num_nodes} guesses, {size.max_depth} deep", style="bold green")
    line.append(f"   {size.expected_tokens:.2f} tokens per target forward predicted", style="bold")
    line.append(f"   {size.speedup:.2f} x plain decoding")
    if size.speedup < 1:
        line.append("\nSpeculation does not pay with this pair here.", style="yellow")
    if path is not None:
        line.append(f"\nwritten to {path}; use it with\n\n    ", style="dim")
        line.append(_usage(tuned, measure, path))
    return Group(_acceptance_table(tuned.acceptance), line)


def _usage(tuned: _TunedMap, measure: MeasureOptions, path: Path) -> str:
    usage = f"treespec generate --builder sequoia --builder-option growth_map={path}"
    if tuned.proposal != "deterministic":
        usage += f" --builder-option proposal={tuned.proposal}"
    return usage + (f" -t {measure.temperature:g}" if measure.temperature else "")


def _acceptance_table(acceptance: Acceptance) -> Table:
    """Draw the first row as bars and the shares of the deeper ones beside it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sibling", justify="right")
    table.add_column("accepted", min_width=BAR_WIDTH)
    for depth, trials in enumerate(acceptance.trials, start=1):
        table.add_column(f"depth {depth}\nof {trials}", justify="right")
    for rank in range(min(_SHOWN_RANKS, len(acceptance.counts[0]))):
        shares = [row[rank] for row in acceptance.table]
        table.add_row(str(rank + 1), bar(shares[0], "green"), *[f"{s:.1%}" for s in shares])
    return table


def _calibration_summary(calibration: Calibration, path: Path) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("draft probability", justify="right")
    table.add_column("accepted", min_width=BAR_WIDTH)
    table.add_column("")
    table.add_column("of", justify="right", style="dim")
    for (probability, share), trials in zip(calibration.table, calibration.trials, strict=True):
        table.add_row(f"{probability:.1%}", bar(share, "green"), f"{share:.1%}", str(trials))
    return Group(Text(), table, Text(f"written to {path}", style="dim"))


def _profile_summary(profile: Profile, path: Path) -> RenderableType:
    """Draw what a target forward costs by rows, beside one row."""
    curve = profile.target[0]
    plain, most = curve.seconds[curve.batch], max(curve.seconds.values())
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rows", justify="right")
    table.add_column(f"target forward, {curve.context} tokens before", min_width=BAR_WIDTH)
    table.add_column("")
    table.add_column("x one row", justify="right", style="dim")
    for rows, seconds in sorted(curve.seconds.items()):
        table.add_row(
            str(rows),
            bar(seconds / most, "cyan"),
            f"{1e3 * seconds:.2f} ms",
            f"{seconds / plain:.2f}",
        )
    call = min(profile.draft_call.values(), default=0.0)
    line = Text(f"\na drafter call {1e3 * call:.2f} ms, all else of a round ")
    line.append(f"{1e3 * profile.drafted_round:.2f} ms\nkept in {path}")
    return Group(Text(), table, line)
