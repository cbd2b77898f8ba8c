# SPDX-License-Identifier: Apache-2.0
"""`treespec train-drafter`: teach a drafter a target, and report what it accepts."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from treespec.cli.command import show_note
from treespec.cli.generate import print_json
from treespec.cli.options import PairOptions, parse_assignments
from treespec.cli.progress import progress_bar
from treespec.training import TRAINEES, check_options
from treespec.training.memory import keep_freed_memory

if TYPE_CHECKING:
    from treespec.drafts.base import Drafter
    from treespec.training.base import Trainee
    from treespec.training.data import Recipe, Sample
    from treespec.training.loop import Plan, State
    from treespec.training.replay import Replay, Trajectory

SUMMARY = "Train a drafter for a target, and report its tokens per target forward."

# Tokens of a text behind the last round of its replay; a round never reaches further.
_SPARE = 16
_HELD_OUT_WINDOW = 64  # tokens of a held-out prompt
_CHECK_MINUTES = 2.0  # between two looks at the acceptance while training
_LOG_SECONDS = 30.0  # between two lines where there is no terminal
_data = {"rich_help_panel": "Data"}
_training = {"rich_help_panel": "Training"}
_report = {"rich_help_panel": "Report"}


@dataclass(frozen=True)
class TargetOptions:
    """For which target, and where it runs."""

    target: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="`demo`, a folder, or a hub id.", rich_help_panel="Models"
        ),
    ] = "demo"
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="A trained DFlash drafter: what `treeflash` and `pairwise` build on.",
            rich_help_panel="Models",
        ),
    ] = None
    device: Annotated[
        str, typer.Option(metavar="NAME", help="`cpu`, `cuda`, ...", rich_help_panel="Models")
    ] = "auto"
    dtype: Annotated[
        str,
        typer.Option(metavar="NAME", help="Of the target's weights.", rich_help_panel="Models"),
    ] = "auto"

    def check(self, kind: str) -> None:
        """Refuse a backbone too many, or one missing."""
        if TRAINEES[kind].needs_backbone and self.backbone is None:
            raise typer.BadParameter(
                f"--kind {kind} is a module on a trained DFlash drafter; give it with --backbone"
            )
        if self.backbone is not None and not TRAINEES[kind].needs_backbone:
            raise typer.BadParameter(f"--backbone must not be given with --kind {kind}")

    def load(self) -> Any:
        """Load the target alone, in a decoder without drafter."""
        return PairOptions(
            target=self.target,
            drafter="none",
            backend="hf",
            device=self.device,
            dtype=self.dtype,
        ).load()


@dataclass(frozen=True)
class DataOptions:
    """What the target writes, and after which prompts."""

    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Prompts: `.jsonl` with `prompt`, `text` or `messages`; texts or folders of texts,"
            " cut into windows; `python`, this interpreter's standard library. Repeatable.",
            **_data,
        ),
    ] = None
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the target's texts are kept; runs of several kinds may share one.",
            show_default="OUT/samples",
            **_data,
        ),
    ] = None
    prompts: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts.", **_data)] = 3072
    prompt_tokens: Annotated[
        int, typer.Option(metavar="N", min=2, help="Most tokens of a prompt.", **_data)
    ] = 48
    new_tokens: Annotated[
        int, typer.Option(metavar="N", min=2, help="Tokens the target adds to each.", **_data)
    ] = 208
    sample_batch: Annotated[
        int, typer.Option(metavar="N", min=1, help="Prompts per sampling batch.", **_data)
    ] = 96

    def recipe(self, seed: int) -> Recipe:
        """Return what decides the texts."""
        from treespec.training.data import Recipe

        return Recipe(
            tuple(self.data or ["python"]),
            self.prompts,
            self.prompt_tokens,
            self.new_tokens,
            self.sample_batch,
            seed,
        )


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how fast."""

    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Budget in steps.", **_training)
    ] = None
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="MIN",
            min=0.0,
            help="Budget in minutes of training.",
            show_default="10, when neither is given",
            **_training,
        ),
    ] = None
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Texts per step.", **_training)] = 8
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="X", help="Of matrices.", show_default="by kind", **_training),
    ] = None
    optimizer: Annotated[
        str, typer.Option(metavar="NAME", help="`muon` or `adamw`.", **_training)
    ] = "muon"
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="`bfloat16` autocast or `float32`; `auto` is bfloat16 on a GPU.",
            **_training,
        ),
    ] = "auto"
    seed: Annotated[int, typer.Option(metavar="N", help="Of all draws.", **_training)] = 0
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Sizes of the kind, repeatable: `num_layers=5`, `block_size=16`.",
            **_training,
        ),
    ] = None

    def plan(self, kind: str) -> Plan:
        """Return what the loop takes, in float32 unless bfloat16 is asked for."""
        from treespec.training.loop import Plan

        if self.precision not in ("auto", "bfloat16", "float32"):
            raise typer.BadParameter(
                f"--precision must be auto, bfloat16 or float32, got {self.precision!r}"
            )
        by_default = self.steps is None and self.minutes is None
        rate = self.learning_rate
        return Plan(
            steps=self.steps,
            minutes=10.0 if by_default else self.minutes,
            learning_rate=TRAINEES[kind].learning_rate if rate is None else rate,
            optimizer=self.optimizer,
            bfloat16=self.precision == "bfloat16",
            seed=self.seed,
        )

    def plan_on(self, plan: Plan, device: str) -> Plan:
        """Return the plan with what suits the device."""
        suits = self.precision == "auto" and device == "cuda"
        return replace(plan, bfloat16=True) if suits else plan


@dataclass(frozen=True)
class ReportOptions:
    """On what the drafter is judged."""

    eval_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="As --data, of texts that are not in it.",
            show_default="held-out files of the standard library for `demo` and where --data is "
            "that library, else --data",
            **_report,
        ),
    ] = None
    eval_prompts: Annotated[
        int, typer.Option(metavar="N", min=1, help="Prompts of the report.", **_report)
    ] = 40
    eval_tokens: Annotated[
        int, typer.Option(metavar="N", min=8, help="Tokens replayed of each.", **_report)
    ] = 144
    temperatures: Annotated[
        str, typer.Option(metavar="T,T", help="The target's in the report.", **_report)
    ] = "0,0.7,1"

    def values(self) -> list[float]:
        """Return the temperatures."""
        try:
            return [float(part) for part in self.temperatures.split(",")]
        except ValueError:
            raise typer.BadParameter(
                f"--temperatures must be numbers and commas, got {self.temperatures!r}"
            ) from None


def train_drafter(
    *,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="KIND",
            help=", ".join(f"`{name}`" for name in TRAINEES) + ".",
        ),
    ] = "dflash",
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the drafter is written.")
    ],
    target: TargetOptions,
    data: DataOptions,
    training: TrainingOptions,
    report: ReportOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON object.")
    ] = False,
) -> None:
    r"""Let the target write texts, train a drafter on them, and replay held-out ones.

    A run that was stopped goes on with the same command: texts and checkpoints are kept in the
    output folder. What is reported is tokens per target forward at temperatures 0, 0.7 and 1, of a
    chain and of trees, never the loss alone: a lower loss need not accept more.

    [bold]Examples[/bold]

    A block drafter for the bundled target, ten minutes, and what it accepts:

        treespec train-drafter --kind dflash --out my-dflash

    A TreeFlash module on top of it, from the same texts:

        treespec train-drafter --kind treeflash --backbone my-dflash \
            --samples my-dflash/samples --out my-treeflash --minutes 4

        treespec generate "class Stack:" --drafter my-treeflash --builder dtree --stats

    Your own model and prompts, on a GPU:

        treespec train-drafter --kind dflash --target ./llama-8b --data prompts.jsonl \
            --option num_layers=5 --option block_size=16 --option num_features=5 \
            --prompt-tokens 512 --new-tokens 1024 --steps 50000 --out llama-dflash
    """
    if kind not in TRAINEES:
        raise typer.BadParameter(f"--kind must be one of {', '.join(TRAINEES)}, got {kind!r}")
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"--out must be a folder, got the file {out}")
    target.check(kind)
    temperatures, options = report.values(), parse_assignments("--option", training.option)
    plan = training.plan(kind)
    check_options(kind, options)
    keep_freed_memory()
    decoder = target.load()
    plan = training.plan_on(plan, decoder.target.device.type)
    _check_target(decoder, data, report)
    samples = _texts(data, out, decoder, plan.seed)
    trainee = _trainee(kind, target, decoder, samples, options, plan.seed)
    held_out = _held_out(target, data, report, decoder.tokenizer, plan.seed)
    state = _train(kind, trainee, decoder.target, samples(), held_out, training, plan, out)
    trainee.save(out)
    drafter = _reloaded(out, decoder)
    figures = _evaluate(drafter, decoder.target, held_out, report.eval_tokens, temperatures)
    facts = _facts(kind, target, data, training, plan, state, trainee, figures)
    (out / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(facts)
    else:
        _print_report(out, drafter.source_kind, figures, facts)


# --- Steps ----------------------------------------------------------------------------------------


def _check_target(decoder: Any, data: DataOptions, report: ReportOptions) -> None:
    """Refuse a target without tokenizer, and texts beyond its context, before any work."""
    if decoder.tokenizer is None:
        raise ValueError("train-drafter: the target's folder must have a tokenizer, got none")
    texts = data.prompt_tokens + data.new_tokens
    replayed = max(data.prompt_tokens, _HELD_OUT_WINDOW) + report.eval_tokens + _SPARE
    limit = decoder.target.max_context
    if limit is not None and max(texts, replayed) > limit:
        raise ValueError(
            f"train-drafter: texts of {texts} tokens (--prompt-tokens and --new-tokens) and of "
            f"{replayed} (--eval-tokens) must fit the target's context of {limit}"
        )


def _texts(data: DataOptions, out: Path, decoder: Any, seed: int) -> Callable[[], list[Sample]]:
    """Return what reads the target's texts, and has the missing ones written, once."""
    from treespec.training.data import samples_by

    @cache
    def texts() -> list[Sample]:
        return samples_by(
            data.recipe(seed),
            data.samples or out / "samples",
            decoder.target,
            decoder.tokenizer,
            progress_bar("the target writes"),
        )

    return texts


def _trainee(
    kind: str,
    target: TargetOptions,
    decoder: Any,
    samples: Callable[[], list[Sample]],
    options: dict[str, Any],
    seed: int,
) -> Trainee:
    """Make the drafter to be trained; refuses what does not fit before texts are written."""
    import torch

    from treespec.training import TrainingContext

    torch.manual_seed(seed)
    context = TrainingContext(decoder.target, decoder.tokenizer, samples, target.backbone, options)
    return TRAINEES[kind].make(context)


def _train(
    kind: str,
    trainee: Trainee,
    target: Any,
    samples: list[Sample],
    held_out: Sequence[Any],
    training: TrainingOptions,
    plan: Plan,
    out: Path,
) -> State:
    from treespec.training.data import Batches
    from treespec.training.loop import fit

    batches = Batches(target, samples, trainee.needs, size=training.batch, seed=plan.seed)
    with _training_bar(kind, trainee, target, held_out[:8]) as on_step:
        return fit(trainee, batches, plan, out / "training.pt", on_step)


def _held_out(
    target: TargetOptions, data: DataOptions, report: ReportOptions, tokenizer: Any, seed: int
) -> list[Any]:
    """Prompts of the report, where possible from files that no training reads."""
    import numpy as np

    from treespec.training.data import python_sources, read_prompts, windows

    library = target.target == "demo" or set(data.data or ["python"]) == {"python"}
    if report.eval_data is None and library:
        texts = list(python_sources(held_out=True))
        random = np.random.default_rng(seed)
        return windows(texts, tokenizer, report.eval_prompts, _HELD_OUT_WINDOW, random)
    if report.eval_data is None:
        show_note("no --eval-data given: the report is on windows of --data, seen in training")
    return read_prompts(
        report.eval_data or data.data or ["python"],
        tokenizer,
        count=report.eval_prompts,
        prompt_tokens=data.prompt_tokens,
        seed=seed + 1,
    )


def _reloaded(out: Path, decoder: Any) -> Drafter:
    """The drafter as users will load it."""
    from treespec.drafts import DrafterContext, load_drafter

    model = decoder.target
    context = DrafterContext(model.vocab_size, decoder.tokenizer, model.device, "auto", model)
    return load_drafter(str(out), context, {"self_test": False})  # the report tells


def _evaluate(
    drafter: Drafter,
    target: Any,
    prompts: Sequence[Any],
    new_tokens: int,
    temperatures: Sequence[float],
) -> dict[str, dict[str, Replay]]:
    """Replays by tree and temperature."""
    from treespec.training.replay import replay, standard_trees, write_trajectories

    trees = standard_trees(drafter.source_kind)
    out: dict[str, dict[str, Replay]] = {tree.name: {} for tree in trees}
    for temperature in progress_bar("replay")(list(temperatures)):
        trajectories = write_trajectories(
            target, prompts, drafter.needs, new_tokens=new_tokens + _SPARE, temperature=temperature
        )
        for tree in trees:
            out[tree.name][f"{temperature:g}"] = replay(drafter, trajectories, tree, spare=_SPARE)
    return out


def _facts(
    kind: str,
    target: TargetOptions,
    data: DataOptions,
    training: TrainingOptions,
    plan: Plan,
    state: State,
    trainee: Trainee,
    figures: dict[str, dict[str, Replay]],
) -> dict[str, Any]:
    from treespec.training.base import trainable

    return {
        "kind": kind,
        "target": target.target,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": shlex.join(["treespec", *sys.argv[1:]]),
        "parameters": sum(p.numel() for p in trainable(trainee.module)),
        "steps": state.step,
        "minutes": round(state.seconds / 60, 1),
        "loss": round(state.loss, 4),
        "batch": training.batch,
        "learning_rate": plan.learning_rate,
        "optimizer": plan.optimizer,
        "seed": plan.seed,
        "prompts": data.prompts,
        "block_efficiency": {
            tree: {t: [round(one.mean, 3), round(one.error, 3)] for t, one in row.items()}
            for tree, row in figures.items()
        },
        "accepted_by_depth": {
            tree: {t: [one.accepted_by_depth, one.offered_by_depth] for t, one in row.items()}
            for tree, row in figures.items()
        },
    }


# --- What people read -----------------------------------------------------------------------------


@contextmanager
def _training_bar(
    kind: str, trainee: Trainee, target: Any, prompts: Sequence[Any]
) -> Iterator[Callable[[State, float], None]]:
    """Yield the callback that shows loss and, every few minutes, the acceptance."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}"),
        TextColumn("tree-16 at 0.7: {task.fields[accepted]} tokens per forward"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    check = _Check(trainee, target, prompts)
    with progress:
        task = progress.add_task(kind, total=1.0, step=0, loss=float("nan"), accepted="-")
        logged = 0.0

        def on_step(state: State, share: float) -> None:
            nonlocal logged
            accepted = check.after(state.seconds)
            progress.update(
                task, completed=share, step=state.step, loss=state.loss, accepted=accepted
            )
            if not console.is_terminal and state.seconds - logged > _LOG_SECONDS:
                logged = state.seconds
                show_note(
                    f"{kind}: {share:.0%}, step {state.step}, loss {state.loss:.3f}, "
                    f"tree-16 at 0.7: {accepted} tokens per forward"
                )

        yield on_step


class _Check:
    """A short replay every few minutes."""

    def __init__(self, trainee: Trainee, target: Any, prompts: Sequence[Any]) -> None:
        self._trainee, self._target, self._prompts = trainee, target, prompts
        self._trajectories: list[Trajectory] = []
        self._next = _CHECK_MINUTES * 60
        self._shown = "-"

    def after(self, seconds: float) -> str:
        """Return the last figure, a new one when it is time."""
        if seconds < self._next:
            return self._shown
        from treespec.training.replay import replay, standard_trees, write_trajectories

        self._next = seconds + _CHECK_MINUTES * 60
        drafter = self._trainee.drafter()
        self._trajectories = self._trajectories or write_trajectories(
            self._target, self._prompts, drafter.needs, new_tokens=80, temperature=0.7
        )
        self._trainee.module.eval()
        tree = standard_trees(drafter.source_kind)[1]
        self._shown = f"{replay(drafter, self._trajectories, tree).mean:.2f}"
        self._trainee.module.train()
        return self._shown


def _print_report(
    out: Path, source_kind: str, figures: dict[str, dict[str, Replay]], facts: dict[str, Any]
) -> None:
    console = Console()
    table = Table(title="tokens per target forward", title_justify="left", box=None)
    table.add_column("tree")
    for temperature in next(iter(figures.values())):
        table.add_column(f"temperature {temperature}", justify="right")
    for tree, row in figures.items():
        table.add_row(tree, *[f"{one.mean:.2f} ± {one.error:.2f}" for one in row.values()])
    console.print(
        f"\n[bold]{facts['kind']}[/]: {facts['parameters'] / 1e6:.2f} M parameters, "
        f"{facts['steps']} steps in {facts['minutes']} minutes, loss {facts['loss']}"
    )
    console.print(table)
    console.print(f"written to {out}; use it with\n", style="dim", soft_wrap=True)
    console.print(
        f"    {_use(out, source_kind, facts['target'])}\n", soft_wrap=True, highlight=False
    )


def _use(out: Path, source_kind: str, target: str) -> str:
    """Return the command that decodes with the drafter, with a builder that reads it."""
    command = ["treespec", "generate", "--drafter", str(out), "--stats"]
    if target != "demo":
        command += ["--target", target]
    if source_kind != "Expander":
        command += ["--builder", "dtree"]
    return shlex.join(command)
