# SPDX-License-Identifier: Apache-2.0
"""`treespec train-selector`: teach a network which (K, L1, L2) tree a round should draft."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from treespec.cli.command import check_output, show_note
from treespec.cli.generate import print_json
from treespec.cli.options import PairOptions
from treespec.cli.progress import progress_bar

if TYPE_CHECKING:
    from treespec.decoder import SpeculativeDecoder
    from treespec.selector.features import Setting
    from treespec.selector.labels import Labels
    from treespec.selector.report import Row
    from treespec.selector.selector import Selector
    from treespec.selector.training import Problem, Schedule
    from treespec.tuning.costs import Costs

SUMMARY = "Train what chooses the tree of every round, and compare it with the best single trees."

_data = {"rich_help_panel": "Data"}
_training = {"rich_help_panel": "Training"}


@dataclass(frozen=True)
class LabelOptions:
    """What the target writes, and what is drawn at the roots of it."""

    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Prompts: `.jsonl`, texts or folders of texts; `python`, this interpreter's "
            "standard library. Repeatable.",
            **_data,
        ),
    ] = None
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the labels are kept; a file that is there is used, so that several "
            "trainings share one pass.",
            show_default="OUT.labels.npz",
            **_data,
        ),
    ] = None
    temperatures: Annotated[
        str,
        typer.Option(
            metavar="T,T:P", help="Of the texts; `1:0.9` is top-p 0.9 at temperature 1.", **_data
        ),
    ] = "0.4,0.7,1,1:0.9"
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also", metavar="NAME", help="More verifiers to label, for later runs.", **_data
        ),
    ] = None
    prompts: Annotated[int, typer.Option(metavar="N", min=3, help="Prompts.", **_data)] = 100
    prompt_tokens: Annotated[
        int, typer.Option(metavar="N", min=2, help="Most tokens of a prompt.", **_data)
    ] = 64
    new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens per text.", **_data)
    ] = 128
    supersets: Annotated[
        int, typer.Option(metavar="S", min=1, help="Trees of all shapes drawn per root.", **_data)
    ] = 4
    eval_share: Annotated[
        float,
        typer.Option(
            metavar="X", min=0.01, max=0.9, help="Of the prompts: for the report alone.", **_data
        ),
    ] = 0.2

    def settings(self) -> list[Setting]:
        """Return what `--temperatures` asks for."""
        from treespec.selector.features import Setting

        try:
            parts = [part.split(":") for part in self.temperatures.split(",")]
            settings = [Setting(*map(float, part)) for part in parts]
            for setting in settings:
                setting.params  # noqa: B018 - checks the numbers
        except (TypeError, ValueError) as error:
            raise typer.BadParameter(
                f"--temperatures must be like `0.7,1,1:0.9`, got {self.temperatures!r}: {error}"
            ) from None
        return settings


@dataclass(frozen=True)
class TrainingOptions:
    """How the network is trained."""

    states: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME",
            help="Hidden states to read: `none`, `all`, or of `target_before`, `draft_before`, "
            "`draft_root`. Exported drafters have none.",
            **_training,
        ),
    ] = "none"
    objective: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="`total`, tokens over seconds in all; `log_ratio`, the paper's mean over roots.",
            **_training,
        ),
    ] = "total"
    penalty: Annotated[
        float, typer.Option(metavar="X", min=0, help="Of rare large regressions.", **_training)
    ] = 0.1
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="At most.", **_training)] = 200
    learning_rate: Annotated[float, typer.Option(metavar="X", help="AdamW's.", **_training)] = 1e-3
    half: Annotated[bool, typer.Option("--half", help="Write float16 weights.", **_training)] = (
        False
    )
    seed: Annotated[int, typer.Option(metavar="N", help="Of texts and training.", **_training)] = 0

    def schedule(self) -> Schedule:
        """Return the schedule."""
        from treespec.selector.training import Schedule

        return Schedule(
            objective=self.objective,
            penalty=self.penalty,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )

    def state_names(self) -> tuple[str, ...]:
        """Return the names of `--states`."""
        from treespec.selector.features import STATES

        given = {"none": (), "all": STATES}.get(self.states, tuple(self.states.split(",")))
        if unknown := [name for name in given if name not in STATES]:
            raise typer.BadParameter(
                f"--states must be none, all, or of {', '.join(STATES)}, got {unknown}"
            )
        return given


def train_selector(
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where the selector is written.")
    ],
    verifier: Annotated[
        str, typer.Option("--verifier", metavar="NAME", help="The one it will be used with.")
    ] = "recursive_rejection",
    pair: PairOptions,
    label: LabelOptions,
    training: TrainingOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object.")
    ] = False,
) -> None:
    r"""Label roots of the target's texts with every delayed tree, and train a selector on them.

    Labels are expected tokens of all 233 (K, L1, L2) trees at the root of every eighth round of a
    text. The report sets the selector beside the best single tree of each sampling setting, the
    best tree that branches at the root, and the best tree of every single root, on prompts that
    nothing was chosen by. Seconds come from costs measured on this machine. (arXiv 2602.16994)

    [bold]Examples[/bold]

    A selector for the bundled pair, and a text with it:

        treespec train-selector --out demo-selector.safetensors

        treespec generate "class Stack:" --builder delayed --selector demo-selector.safetensors \
            --temperature 0.7 --stats

    Another objective from the same labels, with hidden states:

        treespec train-selector --labels demo-selector.labels.npz --states all \
            --objective log_ratio --penalty 1 --out paper.safetensors
    """
    from treespec.selector.supersets import TREE_VERIFIERS
    from treespec.selector.training import train_selector as train

    for name in (verifier, *(label.also or [])):
        if name not in TREE_VERIFIERS:
            raise typer.BadParameter(
                f"--verifier and --also must be of {', '.join(TREE_VERIFIERS)}, got {name!r}"
            )
    settings, states, schedule = label.settings(), training.state_names(), training.schedule()
    check_output("--out", out)
    check_output("--labels", label.labels)
    decoder = pair.load(builder="chain", builder_options={"proposal": "iid"}, node_budget=4)
    labels = _labels(decoder, label, settings, verifier, out, pair, training.seed)
    labels.check(verifier)
    costs = _costs(decoder, label, training.seed)
    seen, unseen = _split(labels, label.eval_share)
    with _EpochsBar(schedule) as on_epoch:
        selector = train(
            seen,
            verifier,
            costs,
            states=states,
            schedule=schedule,
            models={"target": pair.target, "drafter": pair.drafter},
            metadata={"command": shlex.join(["treespec", *sys.argv[1:]])},
            on_epoch=on_epoch,
        )
    selector.save(out, "float16" if training.half else "float32")
    rows = _report(selector, seen, unseen, costs)
    if as_json:
        from treespec.selector.report import as_json as plain

        print_json({"roots": [len(seen), len(unseen)], "rows": plain(rows)})
    else:
        _print_report(out, rows, len(seen), len(unseen))


# --- Steps ----------------------------------------------------------------------------------------


def _labels(
    decoder: SpeculativeDecoder,
    options: LabelOptions,
    settings: Sequence[Setting],
    verifier: str,
    out: Path,
    pair: PairOptions,
    seed: int,
) -> Labels:
    """Read the labels, or make them."""
    from treespec.selector.labels import Labels, collect_labels
    from treespec.training.data import read_prompts

    path = options.labels or out.with_suffix(".labels.npz")
    if path.exists():
        show_note(f"labels of {path}")
        return Labels.load(path)
    prompts = read_prompts(
        options.data or ["python"],
        decoder.tokenizer,
        count=options.prompts,
        prompt_tokens=options.prompt_tokens,
        seed=seed,
    )
    wanted = dict.fromkeys((verifier, *(options.also or []), "traversal"))
    labels = collect_labels(
        decoder,
        prompts,
        settings,
        verifiers=list(wanted),
        root_only={"traversal"} - {verifier, *(options.also or [])},
        new_tokens=options.new_tokens,
        supersets=options.supersets,
        seed=seed,
        metadata={"target": pair.target, "drafter": pair.drafter},
        progress=progress_bar("label"),
    )
    labels.save(path)
    return labels


def _costs(decoder: SpeculativeDecoder, options: LabelOptions, seed: int) -> Costs:
    from treespec.selector.latency import ROWS
    from treespec.training.data import read_prompts
    from treespec.tuning.costs import measure_costs

    prompts = read_prompts(
        options.data or ["python"],
        decoder.tokenizer,
        count=3,
        prompt_tokens=options.prompt_tokens,
        seed=seed,
    )
    temperature = max(setting.temperature for setting in options.settings())
    return measure_costs(
        decoder,
        [prompt.tolist() for prompt in prompts],
        rows=ROWS,
        temperature=temperature,
        proposal="iid",
        progress=progress_bar("costs"),
    )


def _split(labels: Labels, share: float) -> tuple[Labels, Labels]:
    """Labels to train on, and those of the last prompts, for the report."""
    known = np.unique(labels.prompt)
    count = min(max(1, round(share * len(known))), len(known) - 2)
    unseen = np.isin(labels.prompt, known[-count:])
    return labels.select(~unseen), labels.select(unseen)


def _report(selector: Selector, seen: Labels, unseen: Labels, costs: Costs) -> list[Row]:
    from treespec.selector.report import compare
    from treespec.selector.training import Problem

    traversal: Problem = Problem.of(seen, "traversal", costs)
    return compare(
        selector,
        unseen,
        reference="traversal",
        reference_static=traversal.static_choices(),
    )


# --- What people read -----------------------------------------------------------------------------


class _EpochsBar:
    """Shows loss and held-out gain of every epoch."""

    def __init__(self, schedule: Schedule) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("epoch {task.completed}  loss {task.fields[loss]:.4f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[gain]:.3f} of the static trees' speed"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(
            "", total=schedule.epochs, loss=float("nan"), gain=float("nan")
        )

    def __enter__(self) -> Any:
        self._progress.__enter__()
        return lambda epoch, loss, gain: self._progress.update(
            self._task, completed=epoch + 1, loss=loss, gain=gain
        )

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """Print the comparison, a block for every sampling setting."""
    table = Table(box=None)
    for heading in ("", "tree", "", "tokens/round", "to static", "tokens/s", "to static"):
        table.add_column(heading, justify="left" if not heading or heading == "tree" else "right")
    shown = None
    for row in rows:
        table.add_row(
            "" if row.setting == shown else str(row.setting),
            row.policy,
            "" if row.action is None else str(tuple(row.action)),
            f"{row.block_efficiency:.3f}",
            "{:.3f} [{:.3f}, {:.3f}]".format(*row.tokens_to_static),
            f"{row.speed:.1f}",
            "{:.3f} [{:.3f}, {:.3f}]".format(*row.speed_to_static),
        )
        shown = row.setting
    console.print(table)


def _print_report(out: Path, rows: Sequence[Row], seen: int, unseen: int) -> None:
    from treespec.selector.report import overall

    console = Console()
    console.print(
        f"\n[bold]{seen}[/] roots to train on, [bold]{unseen}[/] of other prompts to judge by; "
        "intervals are 95 %, over prompts"
    )
    print_rows(console, rows)
    speed = overall(rows, "selector")
    console.print(f"\nthe selector: [bold]{speed:.2f}[/] times the speed of the best single trees")
    if speed <= 1:
        console.print(
            "It does not pay: take the best single tree, or train on more --prompts.",
            style="yellow",
        )
    console.print(f"written to {out}; use it with\n", style="dim", soft_wrap=True)
    command = ["treespec", "generate", "--builder", "delayed", "--selector", str(out)]
    temperature = f"{rows[0].setting.temperature:g}"
    console.print(
        f"    {shlex.join([*command, '--temperature', temperature])}\n",
        soft_wrap=True,
        highlight=False,
    )
