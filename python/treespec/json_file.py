# SPDX-License-Identifier: Apache-2.0
"""Small JSON files that say what they are: format, version, fields."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERSION = 1


def save_json(path: str | os.PathLike[str], format: str, fields: Mapping[str, Any]) -> None:
    """Write a file whole or not at all; an older file of that name is replaced.

    Raises
    ------
    OSError
        If the folder cannot be written to.
    """
    path = Path(path)
    text = json.dumps({"format": format, "version": VERSION, **fields}, allow_nan=False)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_json(path: str | os.PathLike[str], format: str) -> dict[str, Any]:
    """Read the fields of a file that `save_json` wrote.

    Raises
    ------
    ValueError
        For what is no JSON, of another format, or of a newer version.
    OSError
        If there is no such file.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # also a file that is no text
        raise ValueError(f"{format}: {path} must be a JSON file: {error}") from None
    found = value.get("format") if isinstance(value, dict) else None
    if found != format:
        raise ValueError(f"{format}: {path} must say 'format': '{format}', got {found!r}")
    if value.get("version") != VERSION:
        raise ValueError(
            f"{format}: {path} must be of version {VERSION}, which this treespec reads, "
            f"got {value.get('version')!r}"
        )
    return dict(value)
