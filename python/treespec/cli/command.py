# SPDX-License-Identifier: Apache-2.0
"""Turns a plain function into a Typer command: option groups, `--debug`, errors, exit codes.

0 is done, 1 refused or failed (one `error:` line on stderr), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.text import Text

INTERRUPTED = 130  # 128 + SIGINT, what shells report for Ctrl-C
EXPECTED_ERRORS = (ValueError, OSError, NotImplementedError, ImportError)

Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the Python traceback of an error.", rich_help_panel="Other"),
]


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """Return `function` as Typer wants it.

    A parameter annotated with a dataclass becomes one option per field, so that commands share
    groups of options; `--debug` is added; expected errors become one line instead of a traceback.
    """
    groups, parameters = _spread(function)

    def command(**values: Any) -> None:
        debug = values.pop("debug")
        for name, group in groups.items():
            fields = [field.name for field in dataclasses.fields(group)]
            values[name] = group(**{field: values.pop(field) for field in fields})
        _run(lambda: function(**values), debug)

    parameters.append(_option("debug", Debug, False))
    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def show_error(message: str) -> None:
    """Print `error: message` in red on stderr."""
    line = Text("error: ", style="bold red").append(message, style="red")
    Console(stderr=True).print(line, soft_wrap=True, highlight=False)


def show_note(message: str) -> None:
    """Print a dim line on stderr, where it does not mix with the answer."""
    Console(stderr=True).print(Text(message, style="dim"), soft_wrap=True, highlight=False)


def check_output(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written, before any work."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(f"{option} must be a file in an existing folder, got {path}")


def _run(action: Callable[[], None], debug: bool) -> None:
    _never_fail_to_print()
    try:
        action()
    except BrokenPipeError:
        raise  # Typer ends quietly when the reader of a pipe has left
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except EXPECTED_ERRORS as error:
        if debug:
            raise
        show_error(str(error) or type(error).__name__)
        raise typer.Exit(1) from None


def _never_fail_to_print() -> None:
    """Show a question mark where stdout's encoding lacks a character of the text."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def _spread(function: Callable[..., None]) -> tuple[dict[str, Any], list[inspect.Parameter]]:
    """Split the parameters into option groups (by name) and the flat list that Typer sees."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            groups[name] = hints[name]
            flat.extend(_fields(hints[name]))
        else:
            flat.append(_option(name, hints[name], parameter.default))
    return groups, flat


def _fields(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [_option(f.name, hints[f.name], f.default) for f in dataclasses.fields(group)]


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
