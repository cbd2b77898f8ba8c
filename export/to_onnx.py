# SPDX-License-Identifier: Apache-2.0
"""From a PyTorch model to a folder: graph, weights, tokenizer, manifest."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import PreTrainedModel

from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.drafts.dflash import DFlashDrafter
from treespec.export.causal_lm import CausalLmGraph
from treespec.export.dflash import DFlashGraph
from treespec.export.graph_ops import OPSET
from treespec.export.manifest import (
    CACHE_STYLES,
    FILE_NAME,
    CacheInput,
    CacheStyle,
    Manifest,
    MaskInput,
    Role,
)
from treespec.targets.hf_model import (
    can_fork,
    check_supported,
    eos_ids,
    load_model,
    text_config,
    vocab_size,
)

if TYPE_CHECKING:
    from treespec.drafts.base import Drafter

GRAPH_FILE = "model.onnx"

# What the runtimes are built for when nobody says: trees of 256 nodes in texts of 4,096 tokens.
DEFAULT_MAX_NODES, DEFAULT_MAX_CONTEXT = 256, 4096

# R and K of an exported block drafter when nobody says; trees of up to 64 nodes need no more.
DEFAULT_NUM_PREVIOUS, DEFAULT_WIDTH, DEFAULT_MARGINAL_WIDTH = 8, 16, 64

# The axis that TensorRT engines fix, as it is called in the graph.
CAPACITY_AXIS = "capacity"


class Graph(Protocol):
    """A module that says how to trace it."""

    @property
    def masks(self) -> tuple[MaskInput, ...]: ...
    @property
    def cache(self) -> tuple[CacheInput, ...]: ...
    @property
    def input_names(self) -> list[str]: ...
    @property
    def output_names(self) -> list[str]: ...

    def example(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]: ...
    def eval(self) -> torch.nn.Module: ...


def export_target(
    model_or_path: PreTrainedModel | str | PathLike[str],
    folder: str | PathLike[str],
    *,
    layers: Sequence[int] = (),
    cache_style: CacheStyle = "in_place",
    max_nodes: int = DEFAULT_MAX_NODES,
    max_context: int | None = None,
    dtype: Any = "auto",
    tokenizer: Any = None,
) -> Manifest:
    """Export a causal language model as a target.

    Parameters
    ----------
    model_or_path
        A folder, a hub id, or a transformers model on the CPU, which is not modified.
    folder
        Made if it is not there; must not hold another export, nor a tokenizer's files.
    layers
        Decoder layers whose outputs a drafter needs.
    cache_style
        ``"in_place"``: the graph writes into the cache (ONNX Runtime, TensorRT from 10.15).
        ``"new_rows"``: it gives the new rows, and the host writes them.
    max_nodes, max_context
        Most rows of a forward and positions of a text; None: the model's, at most 4,096.
    dtype
        As in `treespec.load`.
    tokenizer
        None: the one beside the model, if there is one.

    Raises
    ------
    ValueError, FileExistsError
        For bad arguments, before the model is loaded.
    NotImplementedError
        For architectures that trees or the graph do not support.
    """
    check_arguments(folder, cache_style, max_nodes, max_context)
    model = load_model(model_or_path, "cpu", dtype)
    if tokenizer is None and not isinstance(model_or_path, PreTrainedModel):
        from treespec.text import load_tokenizer

        tokenizer = load_tokenizer(str(model_or_path))
    graph = _causal_lm(model, layers, cache_style)
    manifest = _causal_lm_manifest(model, graph, "target", max_nodes, max_context)
    return _write(graph, manifest, folder, tokenizer)


def export_drafter(
    drafter: Drafter,
    folder: str | PathLike[str],
    *,
    cache_style: CacheStyle = "in_place",
    max_nodes: int = DEFAULT_MAX_NODES,
    max_context: int | None = None,
) -> Manifest:
    """Export a drafter that `treespec.load` has made: autoregressive, DFlash or TreeFlash.

    Of a block drafter, `num_previous` and `width` go into the graph.

    Raises
    ------
    NotImplementedError
        For other kinds.

    The parameters are those of `export_target`.
    """
    check_arguments(folder, cache_style, max_nodes, max_context)
    check_drafter(drafter)
    if isinstance(drafter, DFlashDrafter):
        return _export_dflash(drafter, folder, cache_style, max_nodes, max_context)
    assert isinstance(drafter, AutoregressiveDrafter)
    graph = _causal_lm(drafter.model, (), cache_style)
    manifest = _causal_lm_manifest(drafter.model, graph, "drafter", max_nodes, max_context)
    return _write(graph, manifest, folder, None)


def check_drafter(drafter: Drafter) -> None:
    """Raise NotImplementedError for a drafter that has no graph, or whose model has none."""
    if isinstance(drafter, DFlashDrafter):
        if drafter.chain or drafter.head_rows is not None:
            raise NotImplementedError(
                "export: the options chain and head_rows of block drafters are not in the graph"
            )
    elif isinstance(drafter, AutoregressiveDrafter):
        _causal_lm(drafter.model, (), "in_place")
    else:
        raise NotImplementedError(
            "export: drafters must be causal language models, DFlash or TreeFlash, got "
            f"{type(drafter).__name__}; those without a model (ngram, suffix) need no export"
        )


def _export_dflash(
    drafter: DFlashDrafter,
    folder: str | PathLike[str],
    cache_style: CacheStyle,
    max_nodes: int,
    max_context: int | None,
) -> Manifest:
    conditional = drafter.conditional is not None
    width = drafter.width or (DEFAULT_WIDTH if conditional else DEFAULT_MARGINAL_WIDTH)
    graph = DFlashGraph(drafter, drafter.num_previous or DEFAULT_NUM_PREVIOUS, width, cache_style)
    config = drafter.model.config
    manifest = Manifest(
        role="drafter",
        kind="dflash",
        model=type(drafter.conditional or drafter.model).__name__,
        model_type="dflash",
        dtype=_dtype_name(graph.dtype),
        cache_style=cache_style,
        vocab_size=drafter.vocabulary.target_size,
        max_context=min(max_context or DEFAULT_MAX_CONTEXT, drafter.max_context),
        max_nodes=max_nodes,
        masks=graph.masks,
        cache=graph.cache,
        layers=config.layer_ids,
        layers_width=graph.features_width,
        block=graph.block,
    )
    return _write(graph, manifest, folder, None)


def _causal_lm(
    model: PreTrainedModel, layers: Sequence[int], cache_style: CacheStyle
) -> CausalLmGraph:
    check_supported(model)
    if not can_fork(model):
        raise NotImplementedError(
            f"export: the state of {type(model).__name__} is not keys and values alone, so a tree "
            "cannot share it; use backend='hf'"
        )
    return CausalLmGraph(model, layers, cache_style)


def _causal_lm_manifest(
    model: PreTrainedModel,
    graph: CausalLmGraph,
    role: Role,
    max_nodes: int,
    max_context: int | None,
) -> Manifest:
    limits = [size for size in (max_context, graph.max_context) if size is not None]
    return Manifest(
        role=role,
        kind="causal_lm",
        model=Path(model.config.name_or_path).name or type(model).__name__,
        model_type=str(model.config.model_type),
        dtype=_dtype_name(graph.dtype),
        cache_style=graph.cache_style,
        vocab_size=vocab_size(model),
        max_context=min(limits) if max_context else min([*limits, DEFAULT_MAX_CONTEXT]),
        max_nodes=max_nodes,
        masks=graph.masks,
        cache=graph.cache,
        eos_token_ids=eos_ids(model),
        layers=graph.layers,
        layers_width=len(graph.layers) * text_config(model).hidden_size,
    )


def _write(
    graph: Graph, manifest: Manifest, folder: str | PathLike[str], tokenizer: Any
) -> Manifest:
    """Trace and save; the folder appears whole or not at all."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
        whole = Path(unfinished) / folder.name
        whole.mkdir()
        if tokenizer is not None:
            tokenizer.save_pretrained(whole)
        _check_nothing_lost(whole, folder)  # before the tracing, which takes long
        _trace(graph).save(str(whole / manifest.graph), external_data=True)
        manifest.save(whole)
        if folder.exists():
            for path in whole.iterdir():
                path.replace(folder / path.name)
        else:
            whole.replace(folder)
    return Manifest.load(folder)


def _check_nothing_lost(whole: Path, folder: Path) -> None:
    """Raise FileExistsError if the folder has files of the names that are to be moved there."""
    names = sorted(path.name for path in whole.iterdir() if (folder / path.name).exists())
    if names:
        raise FileExistsError(
            f"export: cannot write {', '.join(names)} into {folder}, which has such files already; "
            "name another folder"
        )


def _trace(graph: Graph) -> torch.onnx.ONNXProgram:
    arguments, axes = graph.example()
    with _quiet_exporter(), torch.inference_mode():
        program = torch.onnx.export(
            graph.eval(),
            arguments,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=axes,
            input_names=graph.input_names,
            output_names=graph.output_names,
            verbose=False,
        )
    assert program is not None
    _forget_origins(program)
    return program


def _forget_origins(program: torch.onnx.ONNXProgram) -> None:
    """Drop the stack traces that the exporter leaves at every node: half of the file, and local
    paths.
    """
    for node in program.model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    program.model.metadata_props.clear()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's remarks on packages we do not need and axes that share a name."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def check_arguments(
    folder: str | PathLike[str], cache_style: str, max_nodes: int, max_context: int | None
) -> None:
    """Raise for what `export_target` would refuse, before a model is loaded."""
    if cache_style not in CACHE_STYLES:
        raise ValueError(
            f"export: cache_style must be one of {', '.join(CACHE_STYLES)}, got {cache_style!r}"
        )
    if max_nodes < 1:
        raise ValueError(f"export: max_nodes must be at least 1, got {max_nodes}")
    if max_context is not None and max_context < 2:
        raise ValueError(f"export: max_context must be at least 2, got {max_context}")
    folder = Path(folder)
    if (folder / FILE_NAME).exists() or (folder / GRAPH_FILE).exists():
        raise FileExistsError(
            f"export: {folder} holds an export already; remove it or name another"
        )
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"export: {folder} must be a folder")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
