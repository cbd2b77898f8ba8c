# SPDX-License-Identifier: Apache-2.0
"""An exported model against the PyTorch model it came from, on the same inputs.

Three comparisons: every output of the graph with the traced module's own (whose caches show at
which layer a difference begins), every node of a tree with a full forward of its path through the
untouched model, and for block drafters the tokens of the ranked lists.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.drafts.dflash import DFlashDrafter
from treespec.export.causal_lm import CausalLmGraph
from treespec.export.dflash import DFlashGraph
from treespec.export.manifest import CacheInput, Manifest
from treespec.targets.base import TreeRows
from treespec.targets.hf_model import load_model
from treespec.targets.memory import DeviceMemory
from treespec.targets.onnx import load_onnxruntime

Arrays = Mapping[str, npt.NDArray[Any]]

# Runs an engine: arrays by the names of its inputs to arrays by the names of its outputs.
RunEngine = Callable[[Arrays], Arrays]

# Largest difference by dtype, as a share of the largest value of the output.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}

_PREFIX, _CAPACITY, _SEED = 21, 64, 0
_PARENT = (-1, 0, 0, 0, 1, 1, 2, 4, 4, 5, 6, 7)  # a tree with forks at several depths


@dataclass(frozen=True)
class Difference:
    """One comparison.

    Attributes
    ----------
    name
        An output of the graph, or what was compared.
    layer
        The decoder layer whose cache it is, else None.
    largest, scale
        Largest absolute difference, and largest absolute value.
    """

    name: str
    layer: int | None
    largest: float
    scale: float

    @property
    def share(self) -> float:
        """The difference as a share of the values."""
        return self.largest / max(self.scale, 1e-30)


@dataclass(frozen=True)
class ExportReport:
    """What `check_export` has found.

    Attributes
    ----------
    differences
        Per output, caches by layer first.
    num_nodes, num_same_choice
        Tree nodes, and those whose most likely token is the untouched model's.
    """

    folder: Path
    dtype: str
    differences: tuple[Difference, ...]
    num_nodes: int
    num_same_choice: int

    @property
    def tolerance(self) -> float:
        """The largest share of a difference that passes."""
        return TOLERANCE[self.dtype]

    @property
    def failed(self) -> tuple[Difference, ...]:
        """Comparisons that are off."""
        return tuple(one for one in self.differences if not one.share <= self.tolerance)

    def require_passed(self) -> None:
        """Raise when the engine is off, naming the first layer that drifts.

        Raises
        ------
        ValueError
        """
        if not self.failed:
            return
        first = next((one for one in self.failed if one.layer is not None), self.failed[0])
        where = first.name if first.layer is None else f"layer {first.layer} ({first.name})"
        raise ValueError(
            f"check_export: {self.folder} must agree with its model to {self.tolerance:g} of the "
            f"values, got {first.share:.2g} at {where}, the first of {len(self.failed)} outputs "
            "that differ"
        )


def check_export(
    folder: str | PathLike[str],
    source: Any,
    run: RunEngine | None = None,
) -> ExportReport:
    """Compare an exported model with its source.

    Parameters
    ----------
    source
        What was exported: a model, its folder or hub id, or a drafter.
    run
        The engine; None: ONNX Runtime on the CPU, for bfloat16 in float32 with the same weights.

    Returns
    -------
    ExportReport
        Also when the engine is off; see `ExportReport.require_passed`.

    Raises
    ------
    ValueError
        If files of the folder are missing or changed.
    ImportError
        Without onnxruntime.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    manifest.check_files(folder)
    run = run or onnxruntime_engine(folder / manifest.graph)
    if isinstance(source, DFlashDrafter):
        return _check_dflash(folder, manifest, source, run)
    if isinstance(source, AutoregressiveDrafter):
        source = source.model
    model = load_model(source, "cpu", getattr(torch, manifest.dtype))
    return _check_causal_lm(folder, manifest, model, run)


def onnxruntime_engine(graph: Path) -> RunEngine:
    """The engine of a graph in ONNX Runtime, on the CPU: a bfloat16 one computes in float32."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(_runnable(graph, Path(folder)))
    names = [output.name for output in session.get_outputs()]
    known = {one.name for one in session.get_inputs()}

    def run(inputs: Arrays) -> Arrays:
        feeds = {name: value for name, value in inputs.items() if name in known}
        return dict(zip(names, session.run(names, feeds), strict=True))

    return run


def _session(graph: Path) -> Any:
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # not a warning per cache that these plain runs copy
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _runnable(graph: Path, folder: Path) -> Path:
    """The graph, or what a CPU can run in its place: bfloat16 has no kernels there."""
    import onnx

    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    model = onnx.load(graph, load_external_data=False)
    if not any(one.type.tensor_type.elem_type == narrow for one in model.graph.input):
        return graph
    model = onnx.load(graph)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = wide
    attributes = [one for node in model.graph.node for one in node.attribute]
    for attribute in attributes:
        if attribute.name in ("to", "dtype") and attribute.i == narrow:
            attribute.i = wide
    for tensor in (*model.graph.initializer, *(one.t for one in attributes if one.HasField("t"))):
        if tensor.data_type == narrow:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    widened = folder / graph.name
    onnx.save(model, widened, save_as_external_data=True)
    return widened


# --- causal language models -----------------------------------------------------------------------


def _check_causal_lm(
    folder: Path, manifest: Manifest, model: PreTrainedModel, run: RunEngine
) -> ExportReport:
    graph = CausalLmGraph(model, manifest.layers, manifest.cache_style)
    tree = _example_tree(manifest.vocab_size)
    prefix = np.random.default_rng(_SEED).integers(manifest.vocab_size, size=_PREFIX)
    cache = [
        torch.zeros(1, one.heads, _CAPACITY, one.width, dtype=graph.dtype) for one in graph.cache
    ]
    prompt = _step(graph, TreeRows.chain(prefix), 0, cache)
    with torch.inference_mode():
        prefilled = graph(*prompt)
    cache = _with_rows(graph, prefilled, cache, 0, len(prefix))
    inputs = _step(graph, tree, len(prefix), cache)
    with torch.inference_mode():
        expected = graph(*inputs)
    found = run(_named(graph, inputs))
    by_layer = _compare(graph.output_names, expected, found, graph.cache)
    logits = torch.from_numpy(np.asarray(found["logits"], dtype=np.float32))[0]
    by_path = _path_logits(model, prefix, tree)
    difference = Difference("logits of every path", None, *_distance(by_path, logits))
    same = int((by_path.argmax(-1) == logits.argmax(-1)).sum())
    return ExportReport(folder, manifest.dtype, (*by_layer, difference), len(tree), same)


def _example_tree(vocab_size: int) -> TreeRows:
    parent = np.array(_PARENT, dtype=np.int32)
    depth = np.zeros_like(parent)
    for node in range(1, len(parent)):
        depth[node] = depth[parent[node]] + 1
    tokens = np.random.default_rng(_SEED + 1).integers(vocab_size, size=len(parent))
    return TreeRows(tokens.astype(np.int32), parent, depth)


def _step(
    graph: CausalLmGraph, tree: TreeRows, prefix: int, cache: list[torch.Tensor]
) -> tuple[Any, ...]:
    """Arguments of the graph for a tree behind `prefix` rows, all logits wanted."""
    ids = torch.from_numpy(tree.token.astype(np.int64))[None]
    positions = torch.from_numpy(prefix + tree.depth.astype(np.int64))[None]
    in_place = graph.cache_style == "in_place"
    masks = [_mask(tree, prefix, window, in_place) for window in graph.windows]
    write_index = torch.tensor([prefix]) if in_place else None
    return ids, positions, torch.arange(len(tree)), masks, write_index, cache


def _mask(tree: TreeRows, prefix: int, window: int | None, in_place: bool) -> torch.Tensor:
    """``[1, 1, N, keys]``, written out node by node."""
    first = prefix if in_place else _CAPACITY  # the key slot of node 0
    mask = torch.zeros(len(tree), _CAPACITY if in_place else _CAPACITY + len(tree)).bool()
    for node, depth in enumerate(tree.depth.tolist()):
        lowest = 0 if window is None else max(0, prefix + depth - window + 1)
        mask[node, lowest:prefix] = True
        ancestor = node
        while ancestor >= 0:
            if prefix + int(tree.depth[ancestor]) >= lowest:
                mask[node, first + ancestor] = True
            ancestor = int(tree.parent[ancestor])
    return mask[None, None]


def _with_rows(
    graph: CausalLmGraph,
    outputs: tuple[torch.Tensor, ...],
    cache: list[torch.Tensor],
    start: int,
    count: int,
) -> list[torch.Tensor]:
    """The cache after a step of `count` rows."""
    written = list(outputs[-len(cache) :])
    if graph.cache_style == "in_place":
        return written
    grown = [one.clone() for one in cache]
    for one, rows in zip(grown, written, strict=True):
        one[:, :, start : start + count] = rows
    return grown


@torch.inference_mode()
def _path_logits(
    model: PreTrainedModel, prefix: npt.NDArray[np.integer[Any]], tree: TreeRows
) -> torch.Tensor:
    """``[N, V]`` float32: a full forward of the untouched model for every node."""
    rows = []
    for node in range(len(tree)):
        path = []
        while node >= 0:
            path.append(int(tree.token[node]))
            node = int(tree.parent[node])
        ids = torch.tensor([[*prefix.tolist(), *reversed(path)]])
        rows.append(model(input_ids=ids, use_cache=False).logits[0, -1].float())
    return torch.stack(rows)


# --- block drafters -------------------------------------------------------------------------------


def _check_dflash(
    folder: Path, manifest: Manifest, drafter: DFlashDrafter, run: RunEngine
) -> ExportReport:
    assert manifest.block is not None
    graph = DFlashGraph(
        drafter, manifest.block.num_previous, manifest.block.width, manifest.cache_style
    )
    arguments, _ = graph.example()
    features, positions, root, block_positions, temperature, masks, index, cache = arguments
    generator = torch.Generator().manual_seed(_SEED)
    features = torch.randn(features.shape, generator=generator).to(graph.dtype)
    block_positions = block_positions + features.shape[1]
    hidden = slice(features.shape[1] + block_positions.shape[1], None)
    for mask in masks:  # context and block alone, where the graph puts them
        if index is None:
            mask[..., : -features.shape[1] - block_positions.shape[1]] = False
        else:
            mask[..., hidden] = False
    inputs = (features, positions, root, block_positions, temperature, masks, index, cache)
    with torch.inference_mode():
        expected = graph(*inputs)
    found = run(_named(graph, inputs))
    differences = _compare(graph.output_names, expected, found, graph.cache)
    token, logprob = expected[0].numpy(), expected[1].numpy()
    lists = int(np.prod(token.shape[:2]))
    first = token[..., 0] == np.asarray(found["token"])[..., 0]
    # Token ids are no quantities: what they stand for is compared.
    named = [one for one in differences if one.name not in ("token", "owner")]
    named.append(_token_difference(token, logprob, np.asarray(found["token"])))
    if manifest.block.num_previous:
        others = int((expected[2].numpy() != np.asarray(found["owner"])).sum())
        named.append(Difference("owner", None, others, 1))
    return ExportReport(folder, manifest.dtype, tuple(named), lists, int(first.sum()))


def _token_difference(
    token: npt.NDArray[Any], logprob: npt.NDArray[Any], found: npt.NDArray[Any]
) -> Difference:
    """How much less or more likely the found tokens are than those that stand in their places.

    One that is not in its list is as likely as the last one there: equal scores may be cut apart.
    """
    same = found[..., :, None] == token[..., None, :]
    own = np.take_along_axis(logprob, same.argmax(-1), axis=-1)
    own = np.where(same.any(-1), own, logprob[..., -1:])
    return Difference("token", None, *_distance(torch.from_numpy(logprob), torch.from_numpy(own)))


# --- small helpers --------------------------------------------------------------------------------


def _named(graph: CausalLmGraph | DFlashGraph, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Arrays by input name, from the nested arguments of the graph."""
    flat: list[torch.Tensor] = []
    for one in inputs:
        if isinstance(one, (list, tuple)):
            flat += one
        elif one is not None:
            flat.append(one)
    to_host = DeviceMemory("cpu").to_host
    return {
        name: to_host(one.contiguous()) for name, one in zip(graph.input_names, flat, strict=True)
    }


def _compare(
    names: list[str],
    expected: tuple[torch.Tensor, ...],
    found: Arrays,
    cache: tuple[CacheInput, ...],
) -> tuple[Difference, ...]:
    """Differences of all outputs; the caches first, layer by layer, since there it begins."""
    layers = {one.output: place // 2 for place, one in enumerate(cache)}
    result = []
    for name, value in zip(names, expected, strict=True):
        got = torch.from_numpy(np.asarray(found[name]).astype(np.float32))
        result.append(Difference(name, layers.get(name), *_distance(value.float(), got)))
    return tuple(sorted(result, key=lambda one: one.layer is None))


def _distance(expected: torch.Tensor, found: torch.Tensor) -> tuple[float, float]:
    if found.shape != expected.shape:
        return float("inf"), float(expected.abs().max())
    apart = torch.where(expected == found, 0.0, expected - found)  # both may be -inf
    return float(apart.abs().max()), float(expected[expected.isfinite()].abs().max())
