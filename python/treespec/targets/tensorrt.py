# SPDX-License-Identifier: Apache-2.0
"""Exported graphs as TensorRT engines.

Everything around an engine (slots, masks, padding, commits) is that of all exported graphs; here is
how one run goes to the GPU and back.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from os import PathLike
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from treespec.export.engine_cache import Engine
from treespec.export.manifest import Manifest
from treespec.export.to_tensorrt import (
    ALIGNMENT,
    DEFAULT_PREFILL_ROWS,
    build_engine,
    engine_spec,
    find_engine,
    load_tensorrt,
    make_logger,
)
from treespec.targets.base import Array
from treespec.targets.graph_session import Axis, Inputs, output_shapes
from treespec.targets.tensorrt_queue import CudaQueue, Queue

LOGGER = logging.getLogger("treespec")

_LOGITS, _FEATURES = "logits", "features"

# Prepared shapes that are kept. Trees and prompts are padded to a few sizes, so more come only from
# cache buffers that have moved.
_MAX_PREPARED = 32

# Of a buffer.
_LEAST_ELEMENTS = 4096


@dataclass(frozen=True)
class TensorRtOptions:
    """How engines are built, found and run: `backend_options` of `treespec.load`.

    Attributes
    ----------
    max_context, max_nodes, max_batch, prefill_rows, decomposable_attention, workspace_bytes, \
optimization_level, cache
        As `treespec.export.to_tensorrt.build_engine` takes them.
    build
        Build an engine if there is none. Otherwise that is an error.
    cuda_graphs
        Replay a run whose shapes and addresses were seen before as one CUDA graph.
    """

    max_context: int | None = None
    max_nodes: int | None = None
    max_batch: int = 1
    prefill_rows: int = DEFAULT_PREFILL_ROWS
    decomposable_attention: bool = True
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    cache: str | PathLike[str] | None = None
    build: bool = True
    cuda_graphs: bool = True


class TensorRtSession:
    """An engine ready to run, as `treespec.targets.graph_session.GraphSession`.

    Sessions of the same engine share its weights; each has a stream, buffers and execution contexts
    of its own. One thread at a time drives a session.

    Parameters
    ----------
    folder
        What `treespec export` has written.
    device
        ``"auto"``, ``"cuda"`` or ``"cuda:1"``.
    options
        More settings.
    queue
        None: a CUDA stream on the device.

    Raises
    ------
    ImportError, NotImplementedError
        If TensorRT is not there or too old, or there is no GPU.
    RuntimeError
        If TensorRT refuses the engine.
    FileNotFoundError
        If there is no engine and `build` is off.
    ValueError
        For bad options, and exports that no engine can be built for.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        device: Any = "auto",
        options: TensorRtOptions | None = None,
        *,
        queue: Queue | None = None,
    ) -> None:
        options = options or TensorRtOptions()
        self._queue = queue or CudaQueue(device)
        self.memory = self._queue.memory
        with self._queue.current():
            engine = _find_or_build(folder, options, self._queue)
            self._loaded = _load_engine(engine, self._queue)
        self.spec = engine.spec
        self.manifest = replace(
            Manifest.load(folder),
            max_context=self.spec.max_context,
            max_nodes=self.spec.max_nodes,
        )
        self._check_caches()
        self._cuda_graphs = options.cuda_graphs
        self._buffers: dict[str, Array] = {}  # flat; they grow
        self._prepared: OrderedDict[Any, _Prepared] = OrderedDict()
        # Activations, which all contexts share, since one runs at a time.
        self._scratch = self.memory.zeros((max(self._loaded.scratch_bytes, 1),), "uint8")

    @property
    def capacity(self) -> int:
        """Rows of every cache buffer."""
        return self.spec.capacity

    @property
    def max_batch(self) -> int:
        """Most sequences of a run."""
        return self.spec.max_batch

    @property
    def max_rows(self) -> int:
        """Most rows of a sequence in a run."""
        axis = "nodes" if self.manifest.block is None else "features"
        return max(profile.axes[axis][2] for profile in self.spec.profiles)

    def padded(self, axis: Axis, count: int, room: int) -> int:
        """The next size that the engine is tuned for."""
        sizes = sorted({profile.axes[axis][2] for profile in self.spec.profiles})
        for size in sizes:
            if size >= count:
                return max(count, min(size, room))
        raise ValueError(
            f"run: {axis} must be at most {sizes[-1]}, which the engine is built for, got {count}"
        )

    def run(self, inputs: Inputs, cache: Sequence[Array], outputs: Sequence[str]) -> dict[str, Any]:
        """As `GraphSession`; features stay on the device, all else comes to the host."""
        self._check_room(inputs)
        inputs, rows = _with_all_rows(inputs)
        profile = self._choose(_sizes(inputs))
        queue = self._queue
        with queue.current():
            bound = self._bound(inputs, cache)
            prepared = self._prepare(profile, bound)
            queue.begin()  # after all that is allocated, which others zero
            for name, array in inputs.items():
                queue.upload(array, bound[name])
            self._enqueue(prepared)
            results = {}
            for name in outputs:
                if name != _FEATURES:
                    results[name] = queue.download(bound[name])
            queue.finish()
            if _FEATURES in outputs:
                results[_FEATURES] = self.memory.copy(bound[_FEATURES])
        if _LOGITS in results:
            results[_LOGITS] = results[_LOGITS][:, :rows]
        return results

    # --- checks --------------------------------------------------------------------------------

    def _check_caches(self) -> None:
        """Refuse an engine that would not write its caches in place."""
        for one in self.manifest.cache:
            alias = self._loaded.engine.get_aliased_input_tensor(one.output)
            if alias != one.name:
                raise RuntimeError(
                    f"TensorRT engine: {one.output} must be written in place of {one.name}, "
                    f"but is {'that of ' + alias if alias else 'a tensor of its own'}"
                )

    def _check_room(self, inputs: Inputs) -> None:
        """TensorRT would drop rows behind the end of a cache without a word."""
        rows = inputs["input_ids" if "input_ids" in inputs else "feature_positions"].shape[1]
        if self.manifest.block is not None:
            rows += self.manifest.block.slots
        end = int(inputs["write_index"].max()) + rows
        if end > self.capacity:
            raise ValueError(
                f"run: rows must end at {self.capacity}, which the engine is built for, got {end}"
            )

    def _choose(self, sizes: Mapping[str, int]) -> int:
        """The number of the first profile, that is the narrowest, that takes these sizes."""
        for number, profile in enumerate(self.spec.profiles):
            if profile.admits(sizes):
                return number
        known = "; ".join(f"{one.name} {dict(one.axes)}" for one in self.spec.profiles)
        raise ValueError(f"run: sizes must fit a profile of the engine ({known}), got {sizes}")

    # --- a run ---------------------------------------------------------------------------------

    def _bound(self, inputs: Inputs, cache: Sequence[Array]) -> dict[str, Array]:
        """Where on the device every tensor of the engine is."""
        bound = {name: self._buffer(name, array.shape) for name, array in inputs.items()}
        for name, output in output_shapes(self.manifest, inputs).items():
            if name in self._loaded.dtypes:
                bound[name] = self._buffer(name, output.shape)
        for one, rows in zip(self.manifest.cache, cache, strict=True):
            bound[one.name] = bound[one.output] = rows
        return bound

    def _buffer(self, name: str, shape: Sequence[int]) -> Array:
        """Device memory of a tensor, at the same address unless it has to grow; it doubles, since
        every move means new contexts.
        """
        size = prod(shape)
        flat = self._buffers.get(name)
        if flat is None or flat.shape[0] < size:
            room = 1 << max(size - 1, _LEAST_ELEMENTS - 1).bit_length()
            flat = self._buffers[name] = self.memory.zeros((room,), self._loaded.dtypes[name])
        return flat[:size].reshape(tuple(shape))

    def _prepare(self, profile: int, bound: Mapping[str, Array]) -> _Prepared:
        """A context for these shapes and addresses, and for no others: a captured graph relies on
        the state of the context it came from.
        """
        places = {
            name: (tuple(array.shape), self.memory.pointer(array)) for name, array in bound.items()
        }
        key = (profile, *sorted(places.items()))
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = _Prepared(self._loaded, profile, places, self._scratch, self._queue)
            self._prepared[key] = prepared
            if len(self._prepared) > _MAX_PREPARED:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return prepared

    def _enqueue(self, prepared: _Prepared) -> None:
        """Run; from the second time on as a CUDA graph."""
        if self._cuda_graphs and prepared.runs and prepared.replay is None:
            try:
                prepared.replay = self._queue.capture(prepared.enqueue)
            except RuntimeError as error:
                self._cuda_graphs = False
                reason = str(error).partition("\n")[0]
                LOGGER.warning("TensorRT runs without CUDA graphs, capturing failed: %s", reason)
        prepared.runs += 1
        (prepared.replay or prepared.enqueue)()


class _Prepared:
    """An execution context with a profile, shapes and addresses.

    Attributes
    ----------
    runs
        How often it has run.
    replay
        Runs it as a CUDA graph; None while there is none.
    """

    def __init__(
        self,
        loaded: _LoadedEngine,
        profile: int,
        places: Mapping[str, tuple[tuple[int, ...], int]],
        scratch: Array,
        queue: Queue,
    ) -> None:
        self.runs = 0
        self.replay: Callable[[], None] | None = None
        self._loaded, self._queue = loaded, queue
        trt = loaded.trt
        self._context = context = loaded.engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is None:
            raise RuntimeError(f"TensorRT makes no execution context: {loaded.logger.errors()}")
        context.set_device_memory(queue.memory.pointer(scratch), scratch.shape[0])
        self._require(context.set_optimization_profile_async(profile, queue.handle), "profile")
        for name, (shape, address) in places.items():
            if address % ALIGNMENT:
                raise RuntimeError(f"run: {name} must be at a multiple of {ALIGNMENT}")
            if name in loaded.inputs:
                self._require(context.set_input_shape(name, shape), f"shape {shape} of {name}")
            self._require(context.set_tensor_address(name, address), f"address of {name}")
        if missing := context.infer_shapes():
            raise RuntimeError(f"TensorRT lacks shapes or addresses of {', '.join(missing)}")
        for name, (shape, _) in places.items():
            if (found := tuple(context.get_tensor_shape(name))) != shape:
                raise RuntimeError(f"TensorRT engine: {name} must be {shape}, but is {found}")

    def enqueue(self) -> None:
        """Run on the stream."""
        self._require(self._context.execute_async_v3(self._queue.handle), "run")

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise RuntimeError(f"TensorRT refuses the {what}: {self._loaded.logger.errors()}")


class _LoadedEngine:
    """A deserialised engine, and what must live as long.

    Attributes
    ----------
    inputs, dtypes
        Names of inputs; dtypes of all tensors by name.
    scratch_bytes
        What an execution context needs for activations.
    """

    def __init__(self, engine: Engine) -> None:
        self.trt = trt = load_tensorrt()
        self.logger = make_logger(trt)
        self._runtime = trt.Runtime(self.logger)
        self.engine = self._runtime.deserialize_cuda_engine(engine.plan)
        if self.engine is None:
            raise RuntimeError(
                f"TensorRT {trt.__version__} refuses the engine {engine.path}: "
                f"{self.logger.errors()}; remove the file to have it built again"
            )
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.dtypes = {name: self._dtype(name) for name in names}
        inputs = trt.TensorIOMode.INPUT
        self.inputs = {name for name in names if self.engine.get_tensor_mode(name) == inputs}
        self.scratch_bytes: int = self.engine.device_memory_size_v2

    def _dtype(self, name: str) -> str:
        types = self.trt.DataType
        names = {
            types.FLOAT: "float32",
            types.HALF: "float16",
            types.BF16: "bfloat16",
            types.INT32: "int32",
            types.INT64: "int64",
            types.BOOL: "bool",
        }
        return names[self.engine.get_tensor_dtype(name)]


# By file and device; sessions keep them alive.
_ENGINES: WeakValueDictionary[Any, _LoadedEngine] = WeakValueDictionary()
_ENGINES_LOCK = threading.Lock()


def _load_engine(engine: Engine, queue: Queue) -> _LoadedEngine:
    """Deserialise it, unless a session of this process has."""
    key = (engine.path.resolve(), str(queue.memory.device))
    with _ENGINES_LOCK:
        loaded = _ENGINES.get(key)
        if loaded is None:
            loaded = _ENGINES[key] = _LoadedEngine(engine)
        return loaded


def _find_or_build(folder: str | PathLike[str], options: TensorRtOptions, queue: Queue) -> Engine:
    own = ("cache", "build", "cuda_graphs")
    arguments = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in own}
    if options.build:
        return build_engine(folder, **arguments, cache=options.cache, gpu=queue.gpu)
    return find_engine(folder, engine_spec(folder, **arguments, gpu=queue.gpu), options.cache)


def _sizes(inputs: Inputs) -> dict[str, int]:
    """Sizes by axis of the graph."""
    if "input_ids" in inputs:
        batch, nodes = inputs["input_ids"].shape
        return {"batch": batch, "nodes": nodes, "logit_rows": len(inputs["logit_rows"])}
    batch, features = inputs["feature_positions"].shape
    return {"batch": batch, "features": features}


def _with_all_rows(inputs: Inputs) -> tuple[Inputs, int]:
    """With as many logit rows as sequences can need, so that few shapes occur; how many are asked
    for.
    """
    rows = inputs.get("logit_rows")
    if rows is None:
        return inputs, 0
    count = max(len(rows), min(inputs["input_ids"].shape))
    return {**inputs, "logit_rows": np.resize(rows, count)}, len(rows)
