# SPDX-License-Identifier: Apache-2.0
"""`treespec.json`: what an exported model is, so that no runtime has to guess.

Needs no torch; the C++ adapters read the same file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from treespec.json_file import load_json, save_json

FILE_NAME = "treespec.json"
DRAFTER_FOLDER = "drafter"  # of the pair's target
SELECTOR_FILE = "selector.safetensors"  # beside the target, where the pair has one
FORMAT = "treespec-export"

Role = Literal["target", "drafter"]
Kind = Literal["causal_lm", "dflash"]
CacheStyle = Literal["in_place", "new_rows"]
CACHE_STYLES: tuple[CacheStyle, ...] = ("in_place", "new_rows")


@dataclass(frozen=True)
class MaskInput:
    """A boolean mask input ``[B, 1, N, keys]``.

    Attributes
    ----------
    window
        A query also sees only keys with ``query position - key position < window``; None is all.
    """

    name: str
    window: int | None = None


@dataclass(frozen=True)
class CacheInput:
    """Keys or values of a layer.

    Attributes
    ----------
    name, output
        The input ``[B, heads, S, width]``; the output that holds it with the new rows written
        (`in_place`), or the new rows alone, ``[B, heads, N, width]`` (`new_rows`).
    """

    name: str
    output: str
    heads: int
    width: int


@dataclass(frozen=True)
class BlockShape:
    """What a DFlash graph is built for.

    Attributes
    ----------
    depth
        D: depths a block has guesses for.
    slots
        T: slots of a block, the root's included.
    width
        K: ranked children of a row.
    num_previous
        R: previous tokens told apart at every depth but the first; 0: marginals, one row a depth.
    predicts_next, causal, windows_causal
        As `treespec.drafts.dflash.DFlashConfig` says.
    """

    depth: int
    slots: int
    width: int
    num_previous: int
    predicts_next: bool
    causal: bool
    windows_causal: bool


@dataclass(frozen=True)
class Manifest:
    """An exported model.

    Attributes
    ----------
    model, model_type
        Where it came from, and its architecture.
    dtype
        Of weights, cache, logits and features.
    max_context
        Positions it may be asked for, tree nodes included.
    max_nodes
        Most nodes of a tree, its root included: what engines are built for, and runtimes allow.
    layers, layers_width
        Target layers whose outputs are ``features [B, N, layers_width]``: given by a target, read
        by a drafter.
    files
        SHA-256 and size by file name, relative to the folder.
    """

    role: Role
    kind: Kind
    model: str
    model_type: str
    dtype: str
    cache_style: CacheStyle
    vocab_size: int
    max_context: int
    max_nodes: int
    masks: tuple[MaskInput, ...]
    cache: tuple[CacheInput, ...]
    eos_token_ids: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    layers_width: int = 0
    block: BlockShape | None = None
    graph: str = "model.onnx"
    opset: int = 24
    treespec_version: str = ""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write `treespec.json` into `folder`, with checksums of all files there."""
        from treespec import __version__

        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(Path(folder).iterdir())
            if path.is_file() and path.name != FILE_NAME
        }
        complete = replace(self, files=files, treespec_version=__version__)
        save_json(Path(folder) / FILE_NAME, FORMAT, asdict(complete))

    @staticmethod
    def load(folder: str | PathLike[str]) -> Manifest:
        """Read the manifest of an exported folder.

        Raises
        ------
        OSError
            If there is none.
        ValueError
            If it is of another format or version, or a field is missing or unknown.
        """
        fields = load_json(Path(folder) / FILE_NAME, FORMAT)
        fields.pop("format"), fields.pop("version")
        try:
            fields["masks"] = tuple(MaskInput(**one) for one in fields["masks"])
            fields["cache"] = tuple(CacheInput(**one) for one in fields["cache"])
            fields["block"] = BlockShape(**fields["block"]) if fields["block"] else None
            for name in ("layers", "eos_token_ids"):
                fields[name] = tuple(fields[name])
            return Manifest(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{FORMAT}: {folder}/{FILE_NAME} must be complete: {error}") from None

    def check_files(self, folder: str | PathLike[str], *, checksums: bool = True) -> None:
        """Compare the files of the folder with their sizes and checksums.

        Parameters
        ----------
        checksums
            False: the sizes alone, which reads no file.

        Raises
        ------
        ValueError
            For a file that is missing, cut short or changed.
        """
        for name, recorded in self.files.items():
            path = Path(folder) / name
            if not path.is_file():
                raise ValueError(f"{FORMAT}: {path} must be there, as {FILE_NAME} says")
            size = path.stat().st_size
            if size != recorded["bytes"]:
                raise ValueError(
                    f"{FORMAT}: {path} must have {recorded['bytes']} bytes, as exported, got {size}"
                )
            if checksums and sha256(path) != recorded["sha256"]:
                raise ValueError(f"{FORMAT}: {path} must be as exported, its checksum differs")


def is_exported(path: Any) -> bool:
    """Whether `path` is a folder that `treespec export` has written."""
    return isinstance(path, (str, PathLike)) and (Path(path) / FILE_NAME).is_file()


def sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
