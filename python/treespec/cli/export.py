# SPDX-License-Identifier: Apache-2.0
"""`treespec export`: a pair of PyTorch models becomes folders that run without PyTorch."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from treespec.cli.command import show_note
from treespec.cli.generate import print_json
from treespec.cli.options import hide_progress_bars, parse_assignments
from treespec.export.manifest import DRAFTER_FOLDER, FILE_NAME, Manifest

if TYPE_CHECKING:
    from treespec.export.pair import Exported

SUMMARY = "Turn models into ONNX graphs or TensorRT engines that run without PyTorch."

_FORMATS = ("onnx", "tensorrt")
_CACHES = {"in-place": "in_place", "new-rows": "new_rows"}


def export(
    *,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="`demo`, a folder, or a hub id.")
    ] = "demo",
    drafter: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Its drafter, written to OUT/drafter: `demo`, `demo:treeflash`, a folder, a hub "
            "id. `ngram` and `suffix` need no export.",
        ),
    ] = "none",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write; made if missing.")],
    format: Annotated[
        str, typer.Option(metavar="NAME", help="`onnx`, or `tensorrt`: an engine beside it.")
    ] = "onnx",
    features: Annotated[
        str | None,
        typer.Option(
            metavar="I,J,...",
            help="Layers whose outputs drafters read; given a drafter, its own.",
            show_default="the drafter's",
        ),
    ] = None,
    cache: Annotated[
        str,
        typer.Option(
            metavar="STYLE",
            help="`in-place`: the graph writes into the cache. `new-rows`: the host does, for "
            "runtimes that lack TensorScatter.",
        ),
    ] = "in-place",
    max_nodes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most nodes of a tree, with its root.")
    ] = 256,
    max_context: Annotated[
        int | None,
        typer.Option(
            metavar="L", min=2, help="Most tokens of a text.", show_default="the model's, to 4096"
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="`float32`, `float16`, `bfloat16`.")
    ] = "auto",
    drafter_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Of the drafter, repeatable: `num_previous=8`, `width=32`, `conditional=false`.",
        ),
    ] = None,
    selector: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A selector that reads laws only, for `--builder delayed` with the folder.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Compare every export with its model on the same inputs.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print a report for programs.")] = False,
) -> None:
    """Export a target, and its drafter, into a folder that runs without PyTorch.

    [bold]Examples[/bold]

    The demo pair, and a text from it in ONNX Runtime:

        treespec export --drafter demo --out demo-onnx

        treespec generate --target demo-onnx "def main():"

    A drafter on the target's states:

        treespec export --drafter demo:treeflash --out demo-treeflash

    Models of your own:

        treespec export --target ./llama --drafter ./llama-small --out llama-onnx --dtype float16

    An engine for this machine's GPU, also of a folder that is there already:

        treespec export --format tensorrt --out llama-onnx

    The folder holds graph, weights, tokenizer and `treespec.json`, which C++ reads, too.
    """
    if format not in _FORMATS:
        raise typer.BadParameter(f"--format must be {' or '.join(_FORMATS)}, got {format!r}")
    if cache not in _CACHES:
        raise typer.BadParameter(f"--cache must be {' or '.join(_CACHES)}, got {cache!r}")
    layers = _layers(features)
    if format == "tensorrt":
        _require_tensorrt(cache)
    if format == "tensorrt" and (out / FILE_NAME).exists():
        show_note(f"{out} is an export already; building its engines")
        exported = _existing(out)
    else:
        exported = _export(
            target,
            out,
            drafter=None if drafter.lower() == "none" else drafter,
            drafter_options=parse_assignments("--drafter-option", drafter_option) or None,
            layers=layers,
            cache_style=_CACHES[cache],
            max_nodes=max_nodes,
            max_context=max_context,
            dtype=dtype,
            selector=selector,
            check=check,
        )
    if format == "tensorrt":
        _build_engines(exported)
    if as_json:
        print_json({"folders": [_fields(one) for one in exported]})
    else:
        _show(exported)


def _export(target: str, out: Path, **options: Any) -> list[Exported]:
    from treespec.export.pair import export_pair

    hide_progress_bars()
    with Console(stderr=True).status("starting") as status:
        return export_pair(target, out, on_step=status.update, **options)


def _existing(out: Path) -> list[Exported]:
    """The exports in a folder, as if just made."""
    from treespec.export.pair import Exported

    folders = [path for path in (out, out / DRAFTER_FOLDER) if (path / FILE_NAME).exists()]
    return [Exported(path, Manifest.load(path), None) for path in folders]


def _require_tensorrt(cache: str) -> None:
    """Refuse before any work what would fail after all of it."""
    from treespec.export.to_tensorrt import current_gpu, load_tensorrt

    if cache != "in-place":
        raise typer.BadParameter(f"--format tensorrt needs --cache in-place, got {cache!r}")
    load_tensorrt()
    current_gpu()


def _build_engines(exported: list[Exported]) -> None:
    from treespec.export.build_progress import RichBuildProgress
    from treespec.export.to_tensorrt import build_engine

    for one in exported:
        with RichBuildProgress() as progress:
            build_engine(one.folder, progress=progress)


def _layers(features: str | None) -> list[int] | None:
    if features is None:
        return None
    try:
        return [int(layer) for layer in features.split(",") if layer.strip()]
    except ValueError:
        raise typer.BadParameter(
            f"--features must be layer numbers with commas, got {features!r}"
        ) from None


def _fields(one: Exported) -> dict[str, Any]:
    manifest, report = one.manifest, one.report
    return {
        "folder": str(one.folder),
        "role": manifest.role,
        "kind": manifest.kind,
        "bytes": _size(one),
        "dtype": manifest.dtype,
        "max_context": manifest.max_context,
        "largest_difference": None
        if report is None
        else max(difference.share for difference in report.differences),
    }


def _size(one: Exported) -> int:
    return sum(int(file["bytes"]) for file in one.manifest.files.values())


def _show(exported: list[Exported]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "folder", "kind", "dtype", "size", "difference from PyTorch"):
        justify: Any = "right" if column == "size" else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for one in exported:
        fields = _fields(one)
        difference = fields["largest_difference"]
        table.add_row(
            one.manifest.role,
            fields["folder"],
            fields["kind"],
            fields["dtype"],
            f"{fields['bytes'] / 1e6:.1f} MB",
            "not compared" if difference is None else f"{difference:.1g} of the values",
        )
    Console().print(table)
    Console(soft_wrap=True).print(
        f'\ntreespec generate --target {shlex.quote(str(exported[0].folder))} "def main():"',
        highlight=False,
    )
