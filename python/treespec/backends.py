# SPDX-License-Identifier: Apache-2.0
"""Runtimes of exported folders: `BACKENDS` is the table of names that `treespec.load` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from treespec.drafts import DrafterContext, Options, checked
from treespec.export.manifest import Manifest

if TYPE_CHECKING:
    from treespec.drafts.base import Drafter
    from treespec.targets.graph_session import GraphSession
    from treespec.targets.graph_target import GraphTarget


def _onnx() -> tuple[Any, Any]:
    from treespec.targets.onnx import OnnxOptions, OrtSession

    return OrtSession, OnnxOptions


def _tensorrt() -> tuple[Any, Any]:
    from treespec.targets.tensorrt import TensorRtOptions, TensorRtSession

    return TensorRtSession, TensorRtOptions


# What opens a folder, and the class of its options. Imported on first use.
BACKENDS: Mapping[str, Callable[[], tuple[Any, Any]]] = MappingProxyType(
    {"onnx": _onnx, "tensorrt": _tensorrt}
)


def open_session(
    backend: str, folder: str, device: Any, dtype: Any, options: Options
) -> GraphSession:
    """Load the graph of a folder that `treespec export` has written.

    Parameters
    ----------
    backend
        A name of `BACKENDS`.
    dtype
        ``"auto"``, or the one it was exported with.
    options
        Fields of the backend's options.

    Raises
    ------
    ValueError
        For unknown options, another dtype, or a folder that is not complete.
    """
    session, settings = BACKENDS[backend]()
    known = [field.name for field in fields(settings)]
    for name in options:
        if name not in known:
            raise ValueError(
                f"load: backend_options of {backend} must be among {', '.join(known)}, got {name!r}"
            )
    exported = Manifest.load(folder).dtype
    wanted = str(dtype).removeprefix("torch.")
    if wanted not in ("auto", exported):
        raise ValueError(
            f"load: dtype must be 'auto' or {exported!r}, which {folder} was exported with, got "
            f"{wanted!r}; export it again with --dtype {wanted}"
        )
    opened: GraphSession = session(folder, device, settings(**options))
    return opened


def make_target(session: GraphSession) -> GraphTarget:
    """The target that a session runs."""
    from treespec.targets.graph_target import GraphTarget

    return GraphTarget(session)


def make_drafter(session: GraphSession, context: DrafterContext, options: Options) -> Drafter:
    """The drafter that a session runs.

    Raises
    ------
    ValueError
        If it is none, or not one for this target.
    """
    from treespec.drafts.graph_causal_lm import GraphCausalLmDrafter
    from treespec.drafts.graph_dflash import GraphDflashDrafter
    from treespec.drafts.self_test import check_acceptance

    manifest, rest = session.manifest, dict(options)
    if manifest.role != "drafter":
        raise ValueError(f"load: drafter must be an exported drafter, got a {manifest.role}")
    if manifest.kind == "causal_lm":
        checked(GraphCausalLmDrafter, rest, "exported causal language models")
        return GraphCausalLmDrafter(session, context.vocab_size)
    tested = rest.pop("self_test", True)
    checked(GraphDflashDrafter, rest, "exported block drafters")
    if manifest.vocab_size != context.vocab_size:
        raise ValueError(
            f"load: the drafter must be one of this target's {context.vocab_size} tokens, got "
            f"{manifest.vocab_size}"
        )
    drafter = GraphDflashDrafter(session)
    check_needs(context.target, drafter)
    if tested:
        check_acceptance(drafter, context, manifest.model)
    return drafter


def check_needs(target: Any, drafter: Drafter | None) -> None:
    """Refuse a drafter that reads states an exported target does not give."""
    if drafter is not None and hasattr(target, "check_needs"):
        target.check_needs(drafter.needs)


def check_budget(target: Any, node_budget: int) -> None:
    """Refuse trees that are larger than an exported target was made for."""
    if hasattr(target, "check_nodes"):
        target.check_nodes(node_budget + 1)
