# SPDX-License-Identifier: Apache-2.0
"""Exported graphs on ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np

from treespec.export.manifest import Manifest
from treespec.targets.base import Array
from treespec.targets.graph_session import Axis, Inputs, OutputShape, output_shapes
from treespec.targets.graph_target import GraphTarget
from treespec.targets.memory import DeviceMemory, HostMemory, Memory

# The first version with TensorScatter on the CPU.
MIN_VERSION = (1, 25)

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"

# Providers whose buffers are in the memory of an NVIDIA GPU; those of all others are the host's.
_CUDA_PROVIDERS = (CUDA_PROVIDER, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")

# Numbers of the types in ONNX; NumPy has no bfloat16.
_ELEMENT_TYPES = {
    "float32": 1,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "bfloat16": 16,
}
# The same by NumPy's types, whose names are slow to ask for.
_NUMPY_TYPES = {
    np.dtype(name): number for name, number in _ELEMENT_TYPES.items() if name != "bfloat16"
}

_HOST = HostMemory()


@dataclass(frozen=True)
class OnnxOptions:
    """How ONNX Runtime runs a graph: `backend_options` of `treespec.load`.

    Attributes
    ----------
    providers
        Execution providers in order of preference, each a name or a pair of name and options; one
        name is enough. None: by the device, CUDA's or the CPU's.
    threads
        Threads of one operator. None: OMP_NUM_THREADS, else one per core.
    spinning
        Whether idle threads wait busily for the next operator: faster where nothing else runs, and
        many times slower where the cores are shared.
    check_files
        Compare the checksums of all files before they are read, not only their sizes.
    """

    providers: str | Sequence[Any] | None = None
    threads: int | None = None
    spinning: bool = False
    check_files: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None and not (isinstance(self.threads, int) and self.threads > 0):
            raise ValueError(f"load: threads must be at least 1, got {self.threads!r}")


def load_onnxruntime() -> Any:
    """The module `onnxruntime`, of a version that runs exported graphs.

    Raises
    ------
    ImportError
        If it is not installed.
    NotImplementedError
        If it is too old.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"load: backend 'onnx' needs ONNX Runtime, pip install 'treespec[onnx]': {error}"
        ) from None
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < MIN_VERSION:
        raise NotImplementedError(
            f"load: ONNX Runtime must be at least {'.'.join(map(str, MIN_VERSION))}, which writes "
            f"into caches (TensorScatter), got {onnxruntime.__version__}"
        )
    return onnxruntime


def load_target(
    folder: str | PathLike[str], device: Any = "auto", options: OnnxOptions | None = None
) -> GraphTarget:
    """The target in an exported folder."""
    return GraphTarget(OrtSession(folder, device, options))


class OrtSession:
    """A graph loaded into ONNX Runtime, as `treespec.targets.graph_session.GraphSession`.

    Inputs and outputs are bound by their address, so that nothing is allocated or copied by the
    runtime: with in_place a cache is input and output at once.

    Parameters
    ----------
    folder
        What `treespec export` has written.
    device
        ``"auto"`` (CUDA if this ONNX Runtime has it), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    options
        More settings.

    Raises
    ------
    ValueError
        For a folder that is not complete, and providers or devices that are not there.
    NotImplementedError
        For a graph that the provider cannot run.
    ImportError
        Without ONNX Runtime.
    """

    capacity: int | None = None
    max_batch: int | None = None
    max_rows: int | None = None

    def __init__(
        self,
        folder: str | PathLike[str],
        device: Any = "auto",
        options: OnnxOptions | None = None,
    ) -> None:
        options = options or OnnxOptions()
        self.manifest = Manifest.load(folder)
        self.manifest.check_files(folder, checksums=options.check_files)
        self.providers = _providers(device, options.providers)
        self.memory = _memory(self.providers)
        self._on_host = isinstance(self.memory, HostMemory)
        if self._on_host and self.manifest.dtype == "bfloat16":
            raise NotImplementedError(
                "load: ONNX Runtime has no bfloat16 on a CPU; export with --dtype float32, or use "
                "device='cuda'"
            )
        self._session = _open(Path(folder) / self.manifest.graph, self.providers, options)
        self._binding = self._session.io_binding()
        self._buffers: dict[str, Array] = {}  # flat; they grow
        self._bound: dict[str, Array] = {}  # inputs and outputs as they are bound
        # The first of the bound caches, by which the others are known; not kept, as the pool frees
        # them.
        self._cache: Callable[[], Array | None] = lambda: None
        self._wanted: list[str] = []

    def padded(self, axis: Axis, count: int, room: int) -> int:
        """As many as there are: any number is as good."""
        return count

    def run(self, inputs: Inputs, cache: Sequence[Array], outputs: Sequence[str]) -> dict[str, Any]:
        """As `GraphSession`."""
        shapes = output_shapes(self.manifest, inputs)
        wanted = list(outputs)
        if self.manifest.cache_style == "new_rows":
            wanted += [one.output for one in self.manifest.cache]
        if cache[0] is not self._cache() or wanted != self._wanted:
            self._bind_cache(cache)
            self._wanted = wanted
        for name, array in inputs.items():
            self._give(name, array)
        results = {name: self._bind_output(name, shapes[name]) for name in wanted}
        self.memory.wait()
        self._session.run_with_iobinding(self._binding)
        return results

    def _bind_cache(self, cache: Sequence[Array]) -> None:
        """Once per place in memory: binding takes longer than all else around a short run."""
        self._binding.clear_binding_outputs()
        self._bound.clear()
        for one, rows in zip(self.manifest.cache, cache, strict=True):
            self._bind_input(one.name, rows)
            if self.manifest.cache_style == "in_place":
                self._binding.bind_output(one.output, *self._address(rows))
        self._cache = ref(cache[0])

    def _give(self, name: str, array: Array) -> None:
        """Bind an input.

        On a CPU they are copied to where one of that shape was last time: that is faster than
        binding. A GPU's are copied to the device when they are bound.
        """
        if self._on_host:
            bound = self._bound.get(name)
            if bound is None or bound.shape != array.shape:
                bound = self._bound[name] = self._buffer(name, array.shape, array.dtype.name)
                self._bind_input(name, bound)
            bound[...] = array
        else:
            self._bind_input(name, array)

    def _bind_input(self, name: str, array: Array) -> None:
        self._binding.bind_input(name, *self._address(array))

    def _bind_output(self, name: str, output: OutputShape) -> Array:
        """The array that the run will fill."""
        bound = self._bound.get(name)
        if bound is None or bound.shape != output.shape:
            bound = self._bound[name] = self._buffer(name, output.shape, output.dtype)
            self._binding.bind_output(name, *self._address(bound))
        return bound

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: str) -> Array:
        """A slice of the buffer of this name."""
        size = prod(shape)
        flat = self._buffers.get(name)
        if flat is None or flat.shape[0] < size:
            flat = self._buffers[name] = self.memory.zeros((size,), dtype)
        return flat[:size].reshape(shape)

    def _address(self, array: Array) -> tuple[str, int, int, tuple[int, ...], int]:
        """What the binding must know of an array."""
        shape = tuple(array.shape)
        if isinstance(array, np.ndarray):
            return "cpu", 0, _NUMPY_TYPES[array.dtype], shape, _HOST.pointer(array)
        device = self.memory.device
        element = _ELEMENT_TYPES[str(array.dtype).removeprefix("torch.")]
        return device.type, device.index or 0, element, shape, self.memory.pointer(array)


def _providers(device: Any, asked: str | Sequence[Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """Names and options, of those that this ONNX Runtime has."""
    onnxruntime = load_onnxruntime()
    available = onnxruntime.get_available_providers()
    kind, _, number = str(device).partition(":")
    if kind not in ("auto", "cpu", "cuda") or not (number.isdigit() or not number):
        raise ValueError(
            f"load: device must be 'auto', 'cpu', 'cuda' or 'cuda:N' with ONNX Runtime, "
            f"got {str(device)!r}"
        )
    if asked is None:
        on_cuda = kind == "cuda" or (kind == "auto" and CUDA_PROVIDER in available)
        asked = [CUDA_PROVIDER] if on_cuda else []
    names = [asked] if isinstance(asked, str) else asked
    pairs = [(one, {}) if isinstance(one, str) else (one[0], dict(one[1])) for one in names]
    for name, own in pairs:
        if name not in available:
            raise ValueError(
                f"load: execution providers must be among {', '.join(available)}, which this ONNX "
                f"Runtime {onnxruntime.__version__} has, got {name}"
            )
        if name in _CUDA_PROVIDERS:
            own.setdefault("device_id", int(number or 0))
    if CPU_PROVIDER not in dict(pairs):
        pairs.append((CPU_PROVIDER, {}))  # for what the others leave
    return pairs


def _memory(providers: Sequence[tuple[str, dict[str, Any]]]) -> Memory:
    for name, options in providers:
        if name in _CUDA_PROVIDERS:
            return DeviceMemory(f"cuda:{options['device_id']}")
    return _HOST


def _open(path: Path, providers: Sequence[Any], options: OnnxOptions) -> Any:
    onnxruntime = load_onnxruntime()
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.use_deterministic_compute = True
    settings.intra_op_num_threads = options.threads or _threads_of_environment()
    # It keeps a plan of memory for every set of sizes that it has seen, and ours go on changing.
    settings.enable_mem_pattern = False
    settings.log_severity_level = 3  # warnings are about operators that stay on the CPU
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    # Target and drafter have threads of their own and take turns.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # a class of its own per status, none of them public
        message = f"load: ONNX Runtime {onnxruntime.__version__} cannot open {path}: {error}"
        if type(error).__name__ == "NotImplemented":
            raise NotImplementedError(message) from None
        raise ValueError(message) from None
    _check_providers(providers, session.get_providers())
    return session


def _check_providers(asked: Sequence[Any], used: Sequence[str]) -> None:
    """Refuse a session on fewer providers than asked for: ONNX Runtime goes on without those whose
    libraries it cannot load.
    """
    for name, _ in asked:
        if name not in used:
            raise ValueError(
                f"load: execution provider {name} must start, but ONNX Runtime uses "
                f"{', '.join(used)} alone; its log says which library is missing"
            )


def _threads_of_environment() -> int:
    """OMP_NUM_THREADS, or 0, one per core."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() else 0
