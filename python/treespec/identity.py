# SPDX-License-Identifier: Apache-2.0
"""What measurements of a pair hold for: these models, this device, these versions."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from treespec import _core
from treespec.machine import cpu_model

_SAMPLED = 32  # weights of a tensor that enter a fingerprint
_LIBRARIES = ("torch", "onnxruntime", "tensorrt")


def identity_of(target: Any, drafter: Any) -> dict[str, str]:
    """Fields that must agree before figures of one process mean something in another.

    Models are told apart by class, configuration and a sample of their weights, so that a folder
    that was trained anew has another identity; its name does not matter.

    Examples
    --------
    >>> sorted(identity_of(None, None))[:3]
    ['device', 'drafter', 'libraries']
    """
    return {
        "target": fingerprint(target),
        "drafter": fingerprint(drafter),
        "device": _device(target),
        "threads": _threads(),
        "libraries": _libraries(),
    }


def fingerprint(model: Any) -> str:
    """The class of a model and a digest of what it computes with."""
    kind = type(model).__name__
    manifest = _manifest(model)
    if manifest is not None:
        return f"{kind} {_digest(json.dumps(manifest.files, default=dict, sort_keys=True))}"
    modules = [value for value in _attributes(model).values() if hasattr(value, "state_dict")]
    if not modules:
        options = _attributes(model).get("_options")
        return f"{kind} {_digest(repr(sorted(options.items())))}" if options else kind
    return f"{kind} {_digest(*(part for module in modules for part in _sample(module)))}"


def _attributes(model: Any) -> Mapping[str, Any]:
    return getattr(model, "__dict__", {})


def _manifest(model: Any) -> Any:
    return getattr(getattr(model, "runner", None), "manifest", None)


def _sample(module: Any) -> list[str]:
    """Names, shapes and a few numbers of every tensor."""
    parts = []
    for name, tensor in module.state_dict().items():
        few = tensor.detach().flatten()[:_SAMPLED].float().cpu().tolist()
        parts.append(f"{name} {tuple(tensor.shape)} {tensor.dtype} {few}")
    return parts


def _digest(*parts: str) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()[:16]


def _device(target: Any) -> str:
    device = getattr(target, "device", None)
    if device is not None and getattr(device, "type", "cpu") == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return cpu_model()


def _threads() -> str:
    """Threads of the library that is loaded; one more changes every figure."""
    torch = sys.modules.get("torch")
    return str(torch.get_num_threads()) if torch is not None else "default"


def _libraries() -> str:
    found = [f"treespec {_core.__version__}"]
    for name in _LIBRARIES:
        if name in sys.modules:
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                continue
    return ", ".join(found)
