# SPDX-License-Identifier: Apache-2.0
"""Drafter checkpoints: a folder (or hub id) with `config.json` and weights, read and written."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
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

    def extra(self, name: str) -> Any:
        """What another file of torch's format beside the weights holds, or None without it."""
        path = self.folder / name
        return _unpickled(path) if path.is_file() else None

    def get(self, *names: str, default: Any = None, inside: str = "") -> Any:
        """The first config field of that name, at the top or inside a nested one."""
        nested = self.config.get(inside) or {}
        for place in (self.config, nested):
            for name in names:
                if place.get(name) is not None:
                    return place[name]
        return default


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint | None:
    """The drafter at a path or hub id, or None for a folder without `config.json`.

    Of a hub id only `config.json` is fetched; `fetched` gets the weights.

    Raises
    ------
    OSError
        If there is no such folder and no such id, or the file is broken.
    """
    folder = Path(path) if os.path.isdir(path) else _folder_of_id(str(path))
    config = folder / "config.json"
    return Checkpoint(folder, _read_json(config)) if config.is_file() else None


def _folder_of_id(name: str) -> Path:
    from transformers.utils import cached_file

    from treespec.drafts import drafter_names

    known = ", ".join(drafter_names())
    try:
        found = cached_file(name, "config.json")
    except OSError as error:
        raise OSError(
            f"load: drafter must be a folder, a hub id, or one of {known}, got {name!r}: {error}"
        ) from error
    return Path(found).parent


def fetched(path: str | os.PathLike[str], checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with its weights on this machine."""
    if os.path.isdir(path):
        return checkpoint
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        str(path), allow_patterns=["*.json", "*.safetensors", "*.bin", "*.pt"]
    )
    return Checkpoint(Path(folder), checkpoint.config)


# Config fields of the layers' shape that mean the same in Llama, Qwen3 and here.
SHAPE_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "hidden_act", "attention_bias"),
    "max_position_embeddings",
)


def shape_fields(shape: Any) -> dict[str, Any]:
    """A drafter's layers as `config.json` has them, the rotation in its old and its new form."""
    return {
        **{name: getattr(shape, name) for name in SHAPE_FIELDS},
        "rope_theta": shape.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "rope_parameters": dict(shape.rope_parameters),
    }


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
    save_file(
        {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, weights_part
    )
    weights_part.chmod(0o644)  # safetensors writes for the owner alone
    os.replace(config_part, target / "config.json")
    os.replace(weights_part, target / "model.safetensors")


def load_weights(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, what: str
) -> None:
    """Copy tensors into a module, all of them and nothing else.

    Parameters
    ----------
    what
        Names the drafter in errors.

    Raises
    ------
    ValueError
        Naming what is missing, unknown, or of another shape.
    """
    own = module.state_dict()
    wrong = {"missing": set(own) - set(tensors), "unknown": set(tensors) - set(own)}
    listed = [f"{word} {_some(names)}" for word, names in wrong.items() if names]
    if listed:
        raise ValueError(f"{what}: weights must be those of its config; {'; '.join(listed)}")
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"{what}: {name} must be {list(parameter.shape)} by the config, "
                f"got {list(tensors[name].shape)}"
            )
    module.load_state_dict(dict(tensors))


def _some(names: set[str], count: int = 4) -> str:
    return ", ".join(sorted(names)[:count]) + (" ..." if len(names) > count else "")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise OSError(f"Checkpoint: {path} is broken: {error}") from error
    if not isinstance(content, dict):
        raise OSError(f"Checkpoint: {path} must hold an object, got {type(content).__name__}")
    return content


def _read_index(path: Path) -> dict[str, torch.Tensor]:
    files = _read_json(path).get("weight_map")
    if not isinstance(files, dict):
        raise OSError(f"Checkpoint: {path} must have a weight_map, got none")
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(files.values())):
        tensors.update(_read_weights(path.parent / name))
    return tensors


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix != ".safetensors":
        tensors = _unpickled(path)
    else:
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise OSError(f"Checkpoint: the weights in {path} are broken: {error}") from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise OSError(f"Checkpoint: {path} must hold tensors by name and nothing else")
    return tensors


def _unpickled(path: Path) -> Any:
    """What torch has saved: tensors, numbers, text and containers of them; no code is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise OSError(f"Checkpoint: the weights in {path} are broken: {error}") from error
