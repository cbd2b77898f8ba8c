# SPDX-License-Identifier: Apache-2.0
"""A target and its drafter into one folder, checked: what `treespec export` runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from treespec.export.check_export import ExportReport, check_export
from treespec.export.manifest import DRAFTER_FOLDER, SELECTOR_FILE, CacheStyle, Manifest
from treespec.export.to_onnx import (
    DEFAULT_MAX_NODES,
    check_arguments,
    check_drafter,
    export_drafter,
    export_target,
)
from treespec.loading import load


@dataclass(frozen=True)
class Exported:
    """A folder that was written.

    Attributes
    ----------
    report
        What the comparison with the source gave; None if it was not asked for.
    """

    folder: Path
    manifest: Manifest
    report: ExportReport | None


def export_pair(
    target: Any,
    folder: str | PathLike[str],
    *,
    drafter: Any = None,
    drafter_options: Mapping[str, Any] | None = None,
    layers: Sequence[int] | None = None,
    cache_style: CacheStyle = "in_place",
    max_nodes: int = DEFAULT_MAX_NODES,
    max_context: int | None = None,
    dtype: Any = "auto",
    selector: str | PathLike[str] | None = None,
    check: bool = True,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[Exported]:
    """Export a target into `folder`, and its drafter into ``folder/drafter``.

    Parameters
    ----------
    target, drafter, drafter_options
        As in `treespec.load`.
    layers
        Target layers to put out as features; None: those that the drafter reads.
    selector
        File of a selector to go along; it must read laws only, exported drafters have no states.
    check
        Compare every export with its model.
    on_step
        Called with a line before each step.

    Raises
    ------
    ValueError
        For bad arguments, before a model is loaded; if `layers` are not the drafter's; if a
        comparison fails, with the folders left to be looked at.
    NotImplementedError
        For models that have no graph.

    The other parameters are those of `treespec.export.to_onnx.export_target`.
    """
    folder = Path(folder)
    for path in (folder, folder / DRAFTER_FOLDER):
        check_arguments(path, cache_style, max_nodes, max_context)
    if selector is not None:
        _check_selector(selector, drafter)
    on_step("loading the models")
    decoder = load(
        target, drafter, drafter_options=drafter_options, device="cpu", dtype=dtype, builder="chain"
    )
    model = getattr(decoder.target, "model", None)
    if decoder.drafter is not None:
        check_drafter(decoder.drafter)
    wanted = tuple(decoder.drafter.needs.layers) if decoder.drafter is not None else ()
    if layers is not None and wanted and tuple(layers) != wanted:
        raise ValueError(f"export: features must be what the drafter reads, {wanted}, got {layers}")
    shape: dict[str, Any] = {
        "cache_style": cache_style,
        "max_nodes": max_nodes,
        "max_context": max_context,
    }

    def finished(path: Path, manifest: Manifest, source: Any) -> Exported:
        if not check:
            return Exported(path, manifest, None)
        on_step(f"comparing the {manifest.role} with its model")
        report = check_export(path, source)
        report.require_passed()
        return Exported(path, manifest, report)

    on_step("tracing the target")
    manifest = export_target(
        model, folder, layers=wanted or layers or (), tokenizer=decoder.tokenizer, **shape
    )
    exported = [finished(folder, manifest, model)]
    if decoder.drafter is not None:
        on_step("tracing the drafter")
        path = folder / DRAFTER_FOLDER
        manifest = export_drafter(decoder.drafter, path, **shape)
        exported.append(finished(path, manifest, decoder.drafter))
    if selector is not None:
        shutil.copyfile(selector, folder / SELECTOR_FILE)
        exported[0].manifest.save(folder)  # anew, with the checksum of one more file
        exported[0] = replace(exported[0], manifest=Manifest.load(folder))
    return exported


def _check_selector(path: str | PathLike[str], drafter: Any) -> None:
    from treespec.selector.selector import Selector

    if drafter is None:
        raise ValueError("export: a selector needs a drafter, got None")
    if states := Selector.load(path).states:
        raise ValueError(
            f"export: selector must read laws only, got one that reads {', '.join(states)}"
        )
