# SPDX-License-Identifier: Apache-2.0
"""`treespec info`: what is installed, what this machine has, which names there are."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from treespec.cli.generate import print_json
from treespec.machine import cpu_model, usable_threads

SUMMARY = "Show versions, devices, and the builders, verifiers and drafters there are."

PACKAGES = ("torch", "transformers", "numpy", "matplotlib", "onnx", "onnxruntime", "tensorrt")


def info(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
) -> None:
    """Show versions, devices, the demo pair, and every builder, verifier and drafter by name.

    [bold]Examples[/bold]

        treespec info

        treespec info --json | jq .cuda
    """
    facts = collect()
    if as_json:
        print_json(facts)
    else:
        _print(facts, Console())


def collect() -> dict[str, Any]:
    """Gather everything `treespec info` shows; loads neither torch nor a model."""
    import treespec

    gpus = nvidia_gpus()
    return {
        "version": treespec.__version__,
        "python": platform.python_version(),
        "cuda": _cuda(gpus),
        "packages": {name: _installed(name) for name in PACKAGES},
        "onnx_providers": onnx_providers(),
        "cpu": {"model": cpu_model(), "threads": usable_threads()},
        "gpus": gpus,
        "demo": demo_models(),
        "builders": treespec.builder_summaries(),
        "verifiers": treespec.verifier_summaries(),
        "drafters": treespec.drafter_summaries(),
    }


def nvidia_gpus() -> list[str]:
    """Return one line per GPU that the driver lists; empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = "--query-gpu=name,memory.total,driver_version"
    try:
        run = subprocess.run(
            [program, fields, "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in run.stdout.splitlines() if line.strip()]


def onnx_providers() -> list[str]:
    """Return what ONNX Runtime can run graphs with; empty without it."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def demo_models() -> list[dict[str, Any]]:
    """Return name, parameters and size of every model file in the demo package."""
    from treespec import demo

    folder = Path(demo.__file__).parent
    return [
        {
            "name": str(path.relative_to(folder).with_suffix("")),
            "parameters": count_parameters(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*.safetensors"))
    ]


def count_parameters(path: Path) -> int:
    """Count the numbers in a safetensors file from its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for length in tensor["shape"]:
                size *= length
            total += size
    return total


def _cuda(gpus: list[str]) -> dict[str, Any]:
    """Say whether the CUDA code can run, and if not, which part is missing."""
    from treespec import _core

    built, devices = bool(_core.cuda_built()), int(_core.cuda_device_count())
    if not built:
        reason = "this build has no CUDA code: it was built without a CUDA compiler (nvcc)"
    elif devices:
        reason = f"built with CUDA, {devices} GPU{'s' if devices > 1 else ''} usable"
    elif gpus:
        reason = "built with CUDA, but the driver offers no GPU: too old, or hidden by a setting"
    else:
        reason = "built with CUDA, but no NVIDIA driver answers"
    return {"built": built, "available": built and devices > 0, "reason": reason}


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _print(facts: dict[str, Any], console: Console) -> None:
    console.print(_overview(facts))
    for key in ("builders", "verifiers", "drafters"):
        console.print(_names(key.capitalize(), facts[key]))


def _overview(facts: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("treespec", f"{facts['version']} on Python {facts['python']}")
    mark = (
        Text("yes, ", style="green") if facts["cuda"]["available"] else Text("no, ", style="yellow")
    )
    table.add_row("CUDA", mark.append(facts["cuda"]["reason"], style="default"))
    for name, version in facts["packages"].items():
        table.add_row(name, version or Text("not installed", style="dim"))
        if name == "onnxruntime" and facts["onnx_providers"]:
            table.add_row("", Text(", ".join(facts["onnx_providers"]), style="dim"))
    table.add_row("CPU", f"{facts['cpu']['model']}, {facts['cpu']['threads']} threads usable")
    for gpu in facts["gpus"]:
        table.add_row("GPU", gpu)
    for model in facts["demo"]:
        size = f"{model['parameters'] / 1e6:.2f} M parameters, {model['bytes'] / 1e6:.1f} MB"
        table.add_row("demo", f"{model['name']}: {size}")
    return table


def _names(title: str, summaries: dict[str, str]) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.show_header = False
    for name, summary in summaries.items():
        table.add_row(name, summary)
    return table
