# SPDX-License-Identifier: Apache-2.0
"""How far an engine build is: what it reports, and a display for terminals."""

from __future__ import annotations

from typing import Any, Protocol


class BuildProgress(Protocol):
    """Hears of the phases of a build, which are nested. Called from any thread."""

    def start(self, phase: str, parent: str | None, num_steps: int) -> None:
        """A phase of `num_steps` steps begins."""
        ...

    def step(self, phase: str, step: int) -> bool:
        """Step number `step` is done; False stops the build."""
        ...

    def finish(self, phase: str) -> None:
        """A phase ends, also before its last step."""
        ...


class RichBuildProgress:
    """A bar per running phase, inner phases indented. A context manager."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        self.display = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed()
        )
        self._phases: dict[str, tuple[Any, int]] = {}

    def __enter__(self) -> RichBuildProgress:
        self.display.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.display.stop()

    def start(self, phase: str, parent: str | None, num_steps: int) -> None:
        """Add a bar."""
        depth = self._phases[parent][1] + 1 if parent in self._phases else 0
        task = self.display.add_task("  " * depth + phase, total=num_steps)
        self._phases[phase] = task, depth

    def step(self, phase: str, step: int) -> bool:
        """Move a bar on."""
        self.display.update(self._phases[phase][0], completed=step + 1)
        return True

    def finish(self, phase: str) -> None:
        """Remove a bar."""
        self.display.remove_task(self._phases.pop(phase)[0])
