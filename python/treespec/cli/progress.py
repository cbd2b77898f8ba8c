# SPDX-License-Identifier: Apache-2.0
"""A bar on stderr for work that takes long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track


def progress_bar(what: str) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """Return the walk over jobs that draws a bar on a terminal's stderr, and nothing elsewhere."""
    console = Console(stderr=True)

    def walk(jobs: Sequence[Any]) -> Iterable[Any]:
        return track(jobs, what, console=console, transient=True, disable=not sys.stderr.isatty())

    return walk
