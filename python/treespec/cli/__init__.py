# SPDX-License-Identifier: Apache-2.0
"""The `treespec` command. A new command is one file here and one row in `COMMANDS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from treespec.cli import (
    bench,
    chat,
    export,
    generate,
    info,
    inspect,
    train_drafter,
    train_selector,
    tune,
)
from treespec.cli.command import as_command

COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "generate": (generate.generate, generate.SUMMARY),
    "chat": (chat.chat, chat.SUMMARY),
    "inspect": (inspect.inspect, inspect.SUMMARY),
    "tune": (tune.tune, tune.SUMMARY),
    "bench": (bench.bench, bench.SUMMARY),
    "train-drafter": (train_drafter.train_drafter, train_drafter.SUMMARY),
    "train-selector": (train_selector.train_selector, train_selector.SUMMARY),
    "export": (export.export, export.SUMMARY),
    "info": (info.info, info.SUMMARY),
}

HELP = """Tree-based speculative decoding: the target model's own text, several tokens per round.

[bold]Start here[/bold]

    treespec generate "def main():" --stats

    treespec inspect "def main():" --out tree.png

    treespec tune --growth-map map.json

    treespec bench --ignore-eos --report out.html

    treespec train-drafter --kind dflash --out my-dflash

    treespec export --drafter demo --out demo-onnx

    treespec info
"""


def build_app() -> typer.Typer:
    """Return the Typer application with every row of `COMMANDS`."""
    app = typer.Typer(
        name="treespec",
        help=HELP,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_show_locals=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, (function, summary) in COMMANDS.items():
        app.command(name, short_help=summary)(as_command(function))
    return app


def main() -> None:
    """Run the command line; the console script `treespec` and `python -m treespec` end here."""
    build_app()(prog_name="treespec")


def _print_version(wanted: bool) -> None:
    if wanted:
        import treespec

        typer.echo(treespec.__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options of the program itself."""
