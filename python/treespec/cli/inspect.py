# SPDX-License-Identifier: Apache-2.0
"""`treespec inspect`: look at the tree of one round, or at a cost profile."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from treespec.cli.command import show_note
from treespec.cli.generate import print_json
from treespec.cli.options import ModelOptions, PromptOptions, SamplingOptions
from treespec.cli.pictures import check_picture, save_figure, save_picture, terminal_tree
from treespec.cli.round_view import RoundView, token_label, view_round

if TYPE_CHECKING:
    from treespec.decoder import SpeculativeDecoder
    from treespec.generation import RoundRecord

SUMMARY = "Show the tree of one round, guessed and accepted, or what `tune --profile` measured."


def inspect(
    *,
    prompt: PromptOptions,
    round_number: Annotated[
        int,
        typer.Option(
            "--round", "-r", metavar="N", min=1, help="Which round to show; 1 is the first."
        ),
    ] = 1,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            metavar="FILE",
            help="Show this cost profile of `treespec tune --profile` instead of a round.",
        ),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Also draw a .png, .svg or .pdf picture; repeatable.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the nodes, or the profile, as one JSON object.")
    ] = False,
    sampling: SamplingOptions,
    models: ModelOptions,
) -> None:
    """Show the tree of one round: every guess, and which of them the target took.

    A tick marks an accepted guess, a plus the token that the target added.
    Behind a guess: its own probability and its path's, as the drafter has them.

    [bold]Examples[/bold]

    The first round on the bundled pair, and a picture of the third:

        treespec inspect "def main():"

        treespec inspect "def main():" --round 3 --out tree.png --out tree.svg

    How another builder spends the same 16 guesses:

        treespec inspect "def main():" --builder kary --nodes 16

    What a target forward costs here by rows, and a picture of it:

        treespec tune --profile --out costs.json

        treespec inspect --profile costs.json --out costs.png
    """
    for path in out or []:
        check_picture("inspect", path)
    if profile is not None:
        if prompt.prompt is not None or prompt.prompt_file is not None:
            raise typer.BadParameter("--profile shows a file, which has no PROMPT")
        _inspect_profile(profile, out or [], as_json)
        return
    text = prompt.read()
    decoder = models.load()
    record = find_round(decoder, text, sampling.keywords(), round_number)
    view = view_round(record, token_label(decoder.tokenizer))
    if as_json:
        print_json(_round_dict(record, view, round_number))
    else:
        console = Console()
        console.print(terminal_tree(view), soft_wrap=True, highlight=False)
        console.print(f"round {round_number}: {view.totals()}", soft_wrap=True, highlight=False)
    for path in out or []:
        save_picture(view, path, f"Round {round_number}: {view.totals()}", _subtitle(decoder, view))
        show_note(f"wrote {path}")


def _inspect_profile(file: Path, out: list[Path], as_json: bool) -> None:
    from treespec.cli.profile_view import draw_profile, profile_summary
    from treespec.profile import Profile

    profile = Profile.load(file)
    if as_json:
        print_json(dataclasses.asdict(profile))
    else:
        Console().print(profile_summary(profile))
    names = [str(profile.metadata.get(name, "")) for name in ("target", "drafter")]
    title = "What a round costs: " + " and ".join(filter(None, names or [file.name]))
    for path in out:
        save_figure(draw_profile(profile, title), path)
        show_note(f"wrote {path}")


def find_round(
    decoder: SpeculativeDecoder, prompt: str, keywords: dict[str, Any], number: int
) -> RoundRecord:
    """Generate up to round `number` and return its RoundRecord."""
    records: list[RoundRecord] = []
    for _ in decoder.stream(prompt, on_round=records.append, **keywords):
        if len(records) >= number:
            return records[number - 1]
    raise ValueError(
        f"inspect: --round must be a round of this answer, got {number}, but it ended after "
        f"{len(records)} rounds; a larger --max-new-tokens gives more"
    )


def _subtitle(decoder: SpeculativeDecoder, view: RoundView) -> str:
    names = f"builder {decoder.builder_name}, verifier {decoder.verifier_name}"
    return f"{names}   emitted: {' '.join(view.emitted)}"


def _round_dict(record: RoundRecord, view: RoundView, number: int) -> dict[str, Any]:
    return {
        "round": number,
        "position": int(record.position),
        "token": [int(token) for token in record.tree.token],
        "parent": view.parents,
        "depth": view.depths,
        "text": view.labels,
        "own_probability": view.own_probs,
        "path_probability": view.path_probs,
        "accepted_nodes": view.accepted,
        "next_token": int(record.verdict.next_token),
        "next_kind": view.next_kind,
        "expected_accepted": view.expected,
    }
