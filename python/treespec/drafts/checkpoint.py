# SPDX-License-Identifier: Apache-2.0
"""Drafter checkpoints: a folder (or hub id) with `config.json` and weights, read and written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

# The first that exists is read. Pickles are loaded as plain tensors, without running their code.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "medusa_lm_head.safetensors",
    "medusa_lm_head.pt",
)


@dataclass(frozen=True)
class Checkpoint:
    """A drafter on disk.

    Attributes
    ----------
    folder
        Where it lies.
    config
        Its `config.json`.
    """

    folder: Path
    config: Mapping[str, Any]

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All weights by their names in the file, on the CPU, in the dtype they are stored in.

        Raises
        ------
        OSError
            If there are none, or a file is broken.
        """
        for name in _WEIGHT_FILES:
            path = self.folder / name
            if path.is_file():
                return _read_index(path) if name.endswith(".json") else _read_weights(path)
        raise FileNotFoundError(
            f"Checkpoint: {self.folder} must hold weights, one of {', '.join(_WEIGHT_FILES)}"
        )

    def get(self, *names: str, default: Any = None, inside: str = "") -> Any:
        """The first config field of that name, at the top or inside a nested one."""
        nested = self.config.get(inside) or {}
        for place in (self.config, nested):
            for name in names:
                if place.get(name) is not None:
                    return place[name]
        return default


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint | None:
    """The drafter at a path or hub id, or None when nothing there has a `config.json`.

    Of a hub id only `config.json` is fetched; `fetched` gets the weights.
    """
    from transformers.utils import cached_file

    if not os.path.isdir(path):
        found = cached_file(str(path), "config.json", _raise_exceptions_for_missing_entries=False)
        folder = None if found is None else Path(found).parent
    else:
        folder = Path(path) if (Path(path) / "config.json").is_file() else None
    if folder is None:
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise OSError(f"Checkpoint: {folder}/config.json is broken: {error}") from error
    return Checkpoint(folder, config)


def fetched(path: str | os.PathLike[str], checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with its weights on this machine."""
    if os.path.isdir(path):
        return checkpoint
    from huggingface_hub import snapshot_download

    folder = snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors", "*.bin", "*.pt"])
    return Checkpoint(Path(folder), checkpoint.config)


def save_checkpoint(
    folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write `config.json` and `model.safetensors`, each in one step, weights last.

    Parameters
    ----------
    folder
        Made if need be; other files in it stay.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    config_part, weights_part = target / "config.json.partial", target / "model.safetensors.partial"
    config_part.write_text(json.dumps(dict(config), indent=1) + "\n", encoding="utf-8")
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, weights_part)
    weights_part.chmod(0o644)  # safetensors writes for the owner alone
    os.replace(config_part, target / "config.json")
    os.replace(weights_part, target / "model.safetensors")


def load_weights(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, what: str, ignored: Iterable[str] = ()
) -> None:
    """Copy tensors into a module, all of them and nothing else.

    Parameters
    ----------
    what
        Names the drafter in errors.
    ignored
        Names in the file that the module has no use for.

    Raises
    ------
    ValueError
        Naming what is missing, unknown, or of another shape.
    """
    own = module.state_dict()
    missing = sorted(set(own) - set(tensors))
    unknown = sorted(set(tensors) - set(own) - set(ignored))
    if missing or unknown:
        parts = [f"{word} {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
                 for word, names in (("missing", missing), ("unknown", unknown)) if names]
        raise ValueError(f"{what}: weights must be those of its config; {'; '.join(parts)}")
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"{what}: {name} must be {list(parameter.shape)} by the config, "
                f"got {list(tensors[name].shape)}"
            )
    module.load_state_dict({name: tensors[name] for name in own})


def _read_index(path: Path) -> dict[str, torch.Tensor]:
    files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(files.values())):
        tensors.update(_read_weights(path.parent / name))
    return tensors


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return loaded
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise OSError(f"Checkpoint: the weights in {path} are broken: {error}") from error
