# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines on disk, each under a key of everything it depends on.

A folder holds ``KEY.plan`` and ``KEY.json`` of every engine: the plan as TensorRT wrote it, and the
`EngineSpec` it was built for. Loading a plan can run code that is in it: the checksum beside it
finds damage, not malice, so read plans only from where you trust the writer.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from os import PathLike, getpid
from pathlib import Path
from typing import Any

from filelock import FileLock

from treespec.json_file import load_json, save_json

FORMAT = "treespec-engine"

LOGGER = logging.getLogger("treespec")

Range = tuple[int, int, int]


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine is tuned for.

    Attributes
    ----------
    name
        For messages.
    axes
        Least, most likely and largest size by axis of the graph ("batch", "nodes", ...).
    """

    name: str
    axes: Mapping[str, Range]

    def __post_init__(self) -> None:
        for axis, sizes in self.axes.items():
            if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                raise ValueError(
                    f"Profile: {axis} of {self.name!r} must be three ascending sizes from 1 on, "
                    f"got {sizes}"
                )

    def admits(self, sizes: Mapping[str, int]) -> bool:
        """Whether every axis of `sizes` is within its range."""
        return all(self.axes[axis][0] <= n <= self.axes[axis][2] for axis, n in sizes.items())


@dataclass(frozen=True)
class EngineSpec:
    """Everything that an engine depends on.

    Attributes
    ----------
    model
        Checksums of graph and weights by file name.
    kind, dtype
        As the manifest has them.
    max_context, max_nodes, max_batch
        Most positions of a text, rows of a tree, and sequences of a run.
    capacity
        Rows of every cache buffer.
    profiles
        In the order TensorRT counts them.
    settings
        Options of the builder.
    tensorrt, compute_capability, gpu
        What it was built with and for.
    """

    model: Mapping[str, str]
    kind: str
    dtype: str
    max_context: int
    max_nodes: int
    max_batch: int
    capacity: int
    profiles: tuple[Profile, ...]
    settings: Mapping[str, Any]
    tensorrt: str
    compute_capability: str
    gpu: str

    @property
    def key(self) -> str:
        """The name of its files."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def differences(self, wanted: EngineSpec) -> list[str]:
        """In which fields this engine is not the wanted one."""
        return [
            f"{field.name} must be {_short(getattr(wanted, field.name))}, "
            f"got {_short(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(wanted, field.name)
        ]


@dataclass(frozen=True)
class Engine:
    """An engine on disk and in memory.

    Attributes
    ----------
    plan
        What TensorRT deserialises; has the buffer protocol.
    """

    spec: EngineSpec
    path: Path
    plan: Any


class EngineCache:
    """The engines of a folder.

    Parameters
    ----------
    folder
        Made when an engine is to be built.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, spec: EngineSpec) -> Path:
        """Where the plan of an engine is, or would be."""
        return self.folder / f"{spec.key}.plan"

    def find(self, spec: EngineSpec) -> Engine | None:
        """The engine, or None; one that is damaged counts as none, with a warning."""
        path = self.path(spec)
        if not path.exists():
            return None
        try:
            return read_engine(path, spec)
        except (OSError, ValueError) as error:
            LOGGER.warning("an engine of the cache is not used: %s", error)
            return None

    def others(self, wanted: EngineSpec) -> list[str]:
        """The engines there are, each with what differs from the wanted one."""
        lines = []
        for path in sorted(self.folder.glob("*.plan")):
            try:
                spec = _read_description(path)[0]
            except (OSError, ValueError) as error:
                lines.append(str(error))
            else:
                lines.append(f"{path.name}: {'; '.join(spec.differences(wanted))}")
        return lines

    def store(self, spec: EngineSpec, plan: Any) -> Engine:
        """Write an engine, whole or not at all."""
        path = self.path(spec)
        write_whole(path, plan)
        described = {
            "spec": asdict(spec),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(plan).hexdigest(),
        }
        save_json(path.with_suffix(".json"), FORMAT, described)
        return Engine(spec, path, plan)

    @contextmanager
    def building(self, spec: EngineSpec) -> Iterator[None]:
        """One process at a time builds an engine; the others wait, and find it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path(spec).with_suffix(".lock")):
            yield


def read_engine(path: str | PathLike[str], wanted: EngineSpec) -> Engine:
    """The engine of a file, if it is the wanted one.

    Raises
    ------
    OSError
        If the plan or its description is not there.
    ValueError
        If the description differs, with the fields that do, or the plan is damaged.
    """
    path = Path(path)
    spec, checksum = _read_description(path)
    if differences := spec.differences(wanted):
        raise ValueError(f"{FORMAT}: {path} does not fit: {'; '.join(differences)}")
    plan = path.read_bytes()
    if hashlib.sha256(plan).hexdigest() != checksum:
        raise ValueError(f"{FORMAT}: {path} must be as built, its checksum differs")
    return Engine(spec, path, plan)


def write_whole(path: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{getpid()}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read_description(path: Path) -> tuple[EngineSpec, str]:
    """The spec and the checksum beside a plan."""
    file = path.with_suffix(".json")
    fields = load_json(file, FORMAT)
    try:
        described = fields["spec"]
        described["profiles"] = tuple(
            Profile(one["name"], {axis: tuple(sizes) for axis, sizes in one["axes"].items()})
            for one in described["profiles"]
        )
        return EngineSpec(**described), str(fields["sha256"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{FORMAT}: {file} must be complete: {error}") from None


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{one.name} {dict(one.axes)}" for one in value)
    return repr(value)
