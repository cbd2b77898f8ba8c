# SPDX-License-Identifier: Apache-2.0
"""`treespec bench`: compare settings with plain decoding, as a table and as a report."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from treespec.cli.command import check_output, show_note
from treespec.cli.generate import read_prompts
from treespec.cli.options import PairOptions, SamplingOptions, parse_assignments
from treespec.cli.progress import progress_bar
from treespec.cli.report import stats_dict
from treespec.cli.round_view import token_label

if TYPE_CHECKING:
    from treespec.benchmarking import Agreement, Comparison, Outcome, Setting
    from treespec.cli.bench_report import Provenance

SUMMARY = "Compare trees with plain decoding on this machine; write a report with pictures."

_PIPE_WIDTH = 140
AUTO = "auto"  # in place of a number of nodes
DEFAULT_SETTINGS = ("opt_tree", "chain")


def bench(
    *,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare",
            "-c",
            metavar="SETTING",
            help="BUILDER[:NODES[:VERIFIER]][,OPTION=VALUE...], repeatable; NODES `auto` chooses "
            "the size of every round by a profile.",
            show_default="opt_tree and chain",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="One prompt per line; none: demo prompts."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            metavar="FILE",
            help="The profile for NODES `auto`.",
            show_default="what `treespec tune --profile` kept for this pair here",
        ),
    ] = None,
    repetitions: Annotated[
        int,
        typer.Option(
            "--repetitions",
            "-r",
            metavar="N",
            min=1,
            help="How often each prompt is timed; the median counts.",
        ),
    ] = 3,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write pictures and numbers as one page."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every figure here.")
    ] = None,
    lossy: Annotated[
        bool, typer.Option(help="Admit verifiers that change the distribution of the text.")
    ] = False,
    sampling: SamplingOptions,
    pair: PairOptions,
) -> None:
    """Time settings against plain decoding: same models, same prompts, in turn, in one process.

    Texts that must be plain decoding's are compared token for token; exit code 1 if one differs by
    more than a near-tie of the target.

    [bold]Examples[/bold]

    The bundled pair with the default tree and a chain, and a page to read:

        treespec bench --ignore-eos --report out.html

    Trees of several sizes, a drawn one with its verifier, and options of a builder:

        treespec bench -c opt_tree:8 -c dyspec:32:traversal -c kary:6,expansion=3,1 -t 0.7

    Sizes chosen round by round, beside a fixed one:

        treespec tune --profile

        treespec bench -c opt_tree:auto -c opt_tree:8

    Your own pair and prompts, every figure for a script:

        treespec bench --target ./llama-8b --drafter ./llama-1b --prompts my.txt --json out.json
    """
    from treespec.benchmarking import compare as run

    check_output("--report", report)
    check_output("--json", json_file)
    if report is not None:
        from treespec.cli.bench_report import require_report_packages

        require_report_packages()
    settings = [parse_setting(text, lossy) for text in compare or DEFAULT_SETTINGS]
    texts = _prompts(prompts)
    # A chain is what every drafter and target serves; settings say what is played.
    models = pair.load(builder="chain", profile=None)
    settings = _with_profile(settings, models, profile)
    comparison = run(
        models,
        settings,
        texts,
        _params(sampling),
        repetitions=repetitions,
        progress=progress_bar("bench"),
    )
    provenance = _provenance(pair, models)
    # A pipe has no width of its own; a table that is cut would be of no use there.
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(_table(comparison), _footnote(comparison), soft_wrap=True)
    if json_file is not None:
        facts = _facts(comparison, provenance)
        json_file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        show_note(f"wrote {json_file}")
    if report is not None:
        from treespec.cli.bench_report import write_report

        write_report(report, comparison, provenance, token_label(models.tokenizer))
        show_note(f"wrote {report}")
    _refuse_different_texts(comparison)


def parse_setting(text: str, lossy: bool = False) -> Setting:
    """Read `BUILDER[:NODES[:VERIFIER]][,OPTION=VALUE...]`; lists go on after a comma.

    Returns the setting, named as it was written.
    """
    from treespec.benchmarking import Setting

    head, *rest = text.split(",")
    builder, *more = head.split(":")
    if not builder or len(more) > 2:
        raise typer.BadParameter(
            f"--compare must be BUILDER[:NODES[:VERIFIER]][,OPTION=VALUE...], got {text!r}"
        )
    nodes = more[0] if more else ""
    if nodes not in ("", AUTO) and not nodes.isdecimal():
        raise typer.BadParameter(
            f"--compare: NODES must be a number or {AUTO}, got {nodes!r} in {text!r}"
        )
    options = parse_assignments("--compare", _joined(rest))
    return Setting(
        text,
        builder,
        int(nodes) if nodes.isdecimal() else None,
        more[1] if len(more) > 1 else "auto",
        options,
        lossy,
        selector=options.pop("selector", None),
    )


def _joined(parts: list[str]) -> list[str]:
    """Put the items of a list back behind their option: `["a=1", "2"]` is `["a=1,2"]`."""
    options: list[str] = []
    for part in parts:
        if "=" in part or not options:
            options.append(part)
        else:
            options[-1] += f",{part}"
    return options


def _is_auto(setting: Setting) -> bool:
    head, *_ = setting.name.split(",")
    return head.split(":")[1:2] == [AUTO]


def _with_profile(settings: list[Setting], models: Any, file: Path | None) -> list[Setting]:
    """Give the profile of this pair on this machine to the settings that ask for one."""
    from treespec.identity import identity_of
    from treespec.profile import Profile, profile_path

    if not any(map(_is_auto, settings)):
        return settings
    identity = identity_of(models.target, models.drafter)
    path = file or profile_path(identity)
    if file is None and not path.exists():
        raise ValueError(
            f"bench: NODES {AUTO} needs a profile of this pair on this machine, there is none: "
            "run treespec tune --profile, or give --profile FILE"
        )
    profile = Profile.load(path)
    if differences := profile.differences(identity):
        raise ValueError(f"bench: --profile must be of this pair: {'; '.join(differences)}")
    return [replace(one, profile=profile) if _is_auto(one) else one for one in settings]


def _prompts(path: Path | None) -> list[str]:
    if path is not None:
        return read_prompts("bench: --prompts", path)
    from treespec import demo

    show_note("no --prompts given, so the demo prompts: yours give better figures")
    return demo.prompts()


def _params(sampling: SamplingOptions) -> Any:
    from treespec import SamplingParams

    return SamplingParams(**{**sampling.keywords(), "stop": sampling.stop or ()})


def _provenance(pair: PairOptions, models: Any) -> Provenance:
    from treespec.benchmarking.machine import machine
    from treespec.cli.bench_report import Provenance

    device = str(models.target.device)
    torch = sys.modules.get("torch")  # exported pairs run without
    threads = torch.get_num_threads() if torch is not None else 0
    return Provenance(
        shlex.join(["treespec", *sys.argv[1:]]),
        {
            "target": pair.target,
            "drafter": str(pair.named_drafter),
            "device": device,
            "dtype": pair.dtype,
        },
        machine(threads),
        datetime.now(timezone.utc).date().isoformat(),
    )


# --- what people and scripts read -----------------------------------------------------------------


def _table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("setting", no_wrap=True)
    for heading in ("tokens/s", "speed-up", "tokens/forward", "wasted", "outside", "texts"):
        table.add_column(heading, justify="right")
    for one in comparison.outcomes:
        table.add_row(*_cells(one))
    return table


def _cells(one: Outcome) -> list[str | Text]:
    ratio, low, high = one.speedup
    style = "green" if low > 1 else "yellow" if high < 1 else ""
    interval = "" if one.builder is None else f" [{low:.2f}, {high:.2f}]"
    return [
        one.name,
        f"{one.tokens_per_second:.1f}",
        Text(f"{ratio:.2f}", style=style).append(interval, style="dim"),
        f"{one.stats.block_efficiency:.2f}",
        "" if one.builder is None else f"{one.stats.wasted_share:.0%}",
        f"{one.stats.share_outside_models:.1%}",
        _agreement_text(one),
    ]


def _agreement_text(one: Outcome) -> str | Text:
    if one.agreement is None:
        return "" if one.builder is None else Text("own draws", style="dim")
    parts = [f"{one.agreement.equal} same"]
    if one.agreement.near_ties:
        parts.append(f"{one.agreement.near_ties} near-tie")
    if one.agreement.different:
        parts.append(f"{one.agreement.different} DIFFERENT")
    return Text(", ".join(parts), style="red" if one.agreement.different else "")


def _footnote(comparison: Comparison) -> Text:
    return Text(
        f"{comparison.num_prompts} prompts, each timed {comparison.repetitions} times in turn; "
        "[95 % intervals] are over the prompts; outside: of the two models",
        style="dim",
    )


def _facts(comparison: Comparison, provenance: Provenance) -> dict[str, Any]:
    return {
        **vars(provenance),
        "num_prompts": comparison.num_prompts,
        "repetitions": comparison.repetitions,
        "temperature": comparison.params.temperature,
        "max_new_tokens": comparison.params.max_new_tokens,
        "outcomes": [_outcome_facts(one) for one in comparison.outcomes],
    }


def _outcome_facts(one: Outcome) -> dict[str, Any]:
    facts = {**vars(one), "tokens_per_second": one.tokens_per_second}
    del facts["typical_round"]
    return facts | {
        "speedup": one.speedup._asdict(),
        "stats": stats_dict(one.stats),
        "agreement": None if one.agreement is None else vars(one.agreement),
        "reliability": None
        if one.reliability is None
        else {
            "calibration_error": one.reliability.calibration_error,
            "bins": [row._asdict() for row in one.reliability.bins()],
        },
    }


def _refuse_different_texts(comparison: Comparison) -> None:
    wrong = [one.name for one in comparison.outcomes if _differs(one.agreement)]
    if wrong:
        raise ValueError(
            f"bench: texts of {', '.join(wrong)} must be plain decoding's, but some differ by more "
            "than a near-tie of the target"
        )


def _differs(agreement: Agreement | None) -> bool:
    return agreement is not None and agreement.different > 0
