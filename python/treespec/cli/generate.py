# SPDX-License-Identifier: Apache-2.0
"""`treespec generate`: continue a prompt and show the text as it comes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from treespec.cli import report
from treespec.cli.answer import ends_line, print_answer_stats, stream_answer
from treespec.cli.command import INTERRUPTED
from treespec.cli.options import PromptOptions, SamplingOptions, SizedModelOptions

SUMMARY = "Continue a prompt, several tokens per round."


def generate(
    *,
    prompt: PromptOptions,
    batch_file: Annotated[
        Path | None,
        typer.Option("--batch-file", metavar="FILE", help="One prompt per line, run as one batch."),
    ] = None,
    sampling: SamplingOptions,
    models: SizedModelOptions,
    show_stats: Annotated[
        bool, typer.Option("--stats", help="Print speed, acceptance and time by step on stderr.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
    stream: Annotated[bool, typer.Option(help="Show the text as it comes.")] = True,
    color_accepted: Annotated[
        bool,
        typer.Option(
            "--color-accepted",
            help="On a terminal: accepted guesses green, the target's own tokens plain.",
        ),
    ] = False,
) -> None:
    """Continue a prompt. With no model named, the small bundled pair runs: no download.

    [bold]Examples[/bold]

    The bundled pair, what it cost, and which words were guessed:

        treespec generate "def main():" --stats --color-accepted

    Your own models, sampling:

        treespec generate "Hi" --target ./llama-8b --drafter ./llama-1b -t 0.8

    No drafter model at all; guesses come from the text itself:

        treespec generate --prompt-file f.txt --target ./qwen --drafter ngram

    In a pipe, for machines:

        cat f.txt | treespec generate --json | jq .stats.block_efficiency

    Ctrl-C keeps the text so far (exit code 130).
    """
    if batch_file is not None:
        _generate_batch(batch_file, prompt, models, sampling, as_json, show_stats)
        return
    text = prompt.read()
    decoder = models.load()
    write = stream and not as_json
    answer = stream_answer(
        decoder, text, sampling.keywords(), write=write, color_accepted=color_accepted
    )
    if as_json:
        print_json(report.result_dict(answer))
    elif not write:
        sys.stdout.write(answer.text)
    if not as_json:
        ends_line(answer.text)
    if show_stats:
        print_answer_stats(answer)
    if answer.interrupted:
        raise typer.Exit(INTERRUPTED)


def print_json(value: Any) -> None:
    """Print one JSON value on one line; escapes only where stdout cannot carry the character."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, ensure_ascii=not is_utf8) + "\n")


def read_prompts(who: str, path: Path) -> list[str]:
    """Return the lines of a file that are not empty; ValueError when there are none."""
    prompts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{who} must hold at least one prompt, {path} has none")
    return prompts


def _generate_batch(
    path: Path,
    prompt: PromptOptions,
    models: SizedModelOptions,
    sampling: SamplingOptions,
    as_json: bool,
    show_stats: bool,
) -> None:
    if prompt.prompt is not None or prompt.prompt_file is not None:
        raise typer.BadParameter("--batch-file replaces PROMPT and --prompt-file")
    prompts = read_prompts("generate: --batch-file", path)
    results = models.load().generate(prompts, **sampling.keywords())
    for number, (text, result) in enumerate(zip(prompts, results, strict=True), start=1):
        if as_json:
            print_json({"prompt": text, **report.result_dict(result)})
        else:
            sys.stdout.write(f"[{number}/{len(prompts)}] {text}{result.text}\n")
        if show_stats:
            report.print_stats(result.stats, Console(stderr=True))
