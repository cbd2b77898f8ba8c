# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the module `tensorrt`, in host memory and with ONNX Runtime as its kernels.

It refuses what TensorRT is documented to refuse: graphs that break the rules of its parser, shapes
outside of a profile, missing addresses, the default stream, outputs beside their alias. What is
queued on a stream runs when somebody waits for it, so that results read too early are wrong. It
does not tune, fuse or round like TensorRT, and has no GPU: it shows that the backend calls the API
in the right order with the right values, nothing else.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import pickle
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from treespec.export.tensorrt_rules import violations
from treespec.export.to_tensorrt import Gpu
from treespec.targets.memory import DeviceMemory

ALIGNMENT = 256
GPU = Gpu("No GPU at all", "9.0")


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4 = range(10)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = range(2)


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    pass


_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.BOOL: DataType.BOOL,
}


# --- streams -----------------------------------------------------------------------------------


@dataclass
class Stream:
    """Work that waits to be done; `recording` takes it instead while a graph is captured."""

    memory: AlignedMemory
    waiting: list[Callable[[], None]] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None

    def put(self, work: Callable[[], None]) -> None:
        (self.waiting if self.recording is None else self.recording).append(work)

    def finish(self) -> None:
        assert self.recording is None, "waiting for a stream breaks the capture of a graph"
        while self.waiting:
            self.waiting.pop(0)()


STREAMS: dict[int, Stream] = {}
_HANDLES = itertools.count(7)


class AlignedMemory(DeviceMemory):
    """Host memory that is aligned as CUDA's is.

    Attributes
    ----------
    fresh
        Addresses of arrays that another stream may still be zeroing.
    """

    def __init__(self) -> None:
        super().__init__("cpu")
        self.fresh: set[int] = set()

    def zeros(self, shape: Any, dtype: str) -> torch.Tensor:
        size = int(np.prod(shape)) * getattr(torch, dtype).itemsize
        raw = torch.zeros(size + ALIGNMENT, dtype=torch.uint8)
        start = -raw.data_ptr() % ALIGNMENT
        self.fresh.add(raw.data_ptr() + start)
        return raw[start : start + size].view(getattr(torch, dtype)).reshape(tuple(shape))


class HostQueue:
    """`treespec.targets.tensorrt_queue.Queue` without a GPU.

    Attributes
    ----------
    captures, replays
        Graphs recorded, and how often any was replayed.
    error
        Raised by captures.
    """

    gpu = GPU

    def __init__(self) -> None:
        self.memory = AlignedMemory()
        self.handle = next(_HANDLES)
        self.stream = STREAMS[self.handle] = Stream(self.memory)
        self.captures = self.replays = 0
        self.error: Exception | None = None

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def begin(self) -> None:
        self.memory.fresh.clear()

    def upload(self, source: Any, goal: torch.Tensor) -> None:
        kept = torch.as_tensor(source).clone()
        assert kept.shape == goal.shape and goal.data_ptr() not in self.memory.fresh
        self.stream.put(lambda: goal.copy_(kept))

    def download(self, source: torch.Tensor) -> torch.Tensor:
        goal = torch.full_like(source, -77)  # what is read too early
        self.stream.put(lambda: goal.copy_(source))
        return goal

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.stream.recording = recorded = []
        try:
            work()
            if self.error is not None:
                raise self.error
        finally:
            self.stream.recording = None
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            self.stream.waiting += recorded

        return replay

    def finish(self) -> None:
        self.stream.finish()


# --- building ----------------------------------------------------------------------------------


@dataclass
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: DataType


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._model: onnx.ModelProto | None = None
        self._inputs: list[_Tensor] = []


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._errors = network, []

    def parse(self, model: bytes, path: str | None = None) -> bool:
        parsed = onnx.load_from_string(model)
        for node in parsed.graph.node:
            for attribute in [a for a in node.attribute if a.name.startswith("TRT_")]:
                assert node.op_type == "Attention" and attribute.i in (0, 1)
                node.attribute.remove(attribute)
        self._errors = violations(parsed)
        if path is None or not Path(path).is_file():
            self._errors.append("external weights need the path of the model")
        if self._errors:
            return False
        onnx.load_external_data_for_model(parsed, str(Path(path).parent))
        self._network._model = parsed
        self._network._inputs = [_tensor(value) for value in parsed.graph.input]
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> str:
        return self._errors[index]


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[Any, Any, Any]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))


class ITimingCache:
    def __init__(self, blob: bytes) -> None:
        self._blob = blob

    def serialize(self) -> bytes:
        return self._blob


class IBuilderConfig:
    # Without a dictionary: a misspelt setting is an error.
    __slots__ = (
        "_module",
        "_pools",
        "_profiles",
        "_timings",
        "builder_optimization_level",
        "progress_monitor",
    )

    def __init__(self, module: FakeTensorRT) -> None:
        self._module = module
        self._profiles: list[IOptimizationProfile] = []
        self._pools: dict[MemoryPoolType, int] = {}
        self.builder_optimization_level = 3
        self.progress_monitor: Any = None
        self._timings = ITimingCache(b"")

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        mark = f"timings of {self._module.__version__}".encode()
        if cache._blob and not cache._blob.startswith(mark):
            return False
        self._module.timing_hits += bool(cache._blob)
        self._timings = ITimingCache(cache._blob or mark)
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self._timings


class Builder:
    def __init__(self, module: FakeTensorRT, logger: ILogger) -> None:
        self._module, self._logger = module, logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        self._module.config = IBuilderConfig(self._module)
        return self._module.config

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Any:
        self._module.builds += 1
        if self._module.build_error is not None:
            self._logger.log(ILogger.Severity.ERROR, self._module.build_error)
            return None
        for tensor in network._inputs:
            for profile in config._profiles:
                _check_profile(tensor, profile)
        if not _report(config.progress_monitor):
            return None
        plan = {
            "version": self._module.__version__,
            "model": network._model.SerializeToString(),
            "profiles": [profile._shapes for profile in config._profiles],
        }
        return memoryview(pickle.dumps(plan))


def _report(monitor: Any) -> bool:
    """Two nested phases; whether the build may go on."""
    if monitor is None:
        return True
    monitor.phase_start("Building engine", None, 2)
    monitor.phase_start("Tactics", "Building engine", 3)
    going = all(monitor.step_complete("Tactics", step) for step in range(3))
    monitor.phase_finish("Tactics")
    going = going and monitor.step_complete("Building engine", 1)
    monitor.phase_finish("Building engine")
    return going


def _check_profile(tensor: _Tensor, profile: IOptimizationProfile) -> None:
    if -1 not in tensor.shape:
        return
    assert tensor.name in profile._shapes, f"{tensor.name} must be in every profile"
    least, likely, most = profile._shapes[tensor.name]
    assert len(least) == len(tensor.shape)
    for size, a, b, c in zip(tensor.shape, least, likely, most, strict=True):
        assert 1 <= a <= b <= c and (size == -1 or a == c == size), tensor.name


def _tensor(value: onnx.ValueInfoProto) -> _Tensor:
    own = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in own.shape.dim)
    return _Tensor(value.name, shape, _TYPES[own.elem_type])


# --- running -----------------------------------------------------------------------------------


class Runtime:
    def __init__(self, module: FakeTensorRT, logger: ILogger) -> None:
        self._module, self._logger = module, logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        plan = pickle.loads(serialized_engine)
        if self._module.refuse_plans or plan["version"] != self._module.__version__:
            self._logger.log(ILogger.Severity.ERROR, "plan of another version")
            return None
        self._module.deserialized += 1
        return ICudaEngine(plan, self._module)


class ICudaEngine:
    def __init__(self, plan: dict[str, Any], module: FakeTensorRT) -> None:
        model = onnx.load_from_string(plan["model"])
        self._module = module
        self._inputs = {v.name: _tensor(v) for v in model.graph.input}
        self._outputs = {v.name: _tensor(v) for v in model.graph.output}
        self._profiles = plan["profiles"]
        self._alias = {
            node.output[0]: node.input[0]
            for node in model.graph.node
            if node.op_type == "TensorScatter"
        }
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            plan["model"], options, providers=["CPUExecutionProvider"]
        )
        self.num_io_tensors = len(self._inputs) + len(self._outputs)
        self.device_memory_size_v2 = 1000

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return (self._inputs | self._outputs)[name].dtype

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._module.aliases.get(name, self._alias.get(name))

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> IExecutionContext:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._module.contexts += 1
        return IExecutionContext(self)


class IExecutionContext:
    """Refuses changes once a graph was captured from it."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._has_memory = self._captured = False

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % ALIGNMENT == 0 and size >= self._engine.device_memory_size_v2
        self._has_memory = True

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in STREAMS and not self._captured
        self._profile = profile_index
        return 0 <= profile_index < len(self._engine._profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None and not self._captured
        least, _, most = self._engine._profiles[self._profile].get(
            name, (self._engine._inputs[name].shape,) * 3
        )
        fits = all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))
        if fits:
            self._shapes[name] = shape
        return fits

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert not self._captured
        self._addresses[name] = memory
        return name in self._engine._inputs or name in self._engine._outputs

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._engine._inputs:
            return self._shapes[name]
        if name in self._engine._alias:
            return self._shapes[self._engine._alias[name]]
        return self._output_shape(name)

    def _output_shape(self, name: str) -> tuple[int, ...]:
        rows, fixed = self._shapes, self._engine._outputs[name].shape
        batch = rows["write_index"][0]
        if name == "logits":
            return (batch, rows["logit_rows"][0], fixed[2])
        if name == "features":
            return (batch, rows["input_ids"][1], fixed[2])
        return (batch, *fixed[1:])

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle, "the default stream"
        assert self._has_memory
        module = self._engine._module
        if module.run_error is not None:
            module.logger.log(ILogger.Severity.ERROR, module.run_error)
            return False
        addresses = dict(self._addresses)
        assert set(addresses) == {*self._engine._inputs, *self._engine._outputs}
        assert not any(address % ALIGNMENT for address in addresses.values())
        for name, source in self._engine._alias.items():
            assert addresses[name] == addresses[source], name
        stream = STREAMS[stream_handle]
        assert not stream.memory.fresh & set(addresses.values())
        self._captured = self._captured or stream.recording is not None
        shapes = {name: self.get_tensor_shape(name) for name in addresses}
        stream.put(lambda: self._run(addresses, shapes))
        return True

    def _run(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        engine = self._engine
        engine._module.runs.append((self._profile, shapes.get("input_ids")))
        start = int(_array(addresses["write_index"], shapes["write_index"], np.int64).max())
        cache = next(iter(engine._alias.values()))
        rows = shapes["input_ids"][1] if "input_ids" in shapes else 0
        # TensorRT drops such rows without a word; the backend must not let it come to that.
        assert start + rows <= shapes[cache][2]
        binding = engine._session.io_binding()
        for names, bind in ((engine._inputs, binding.bind_input), (engine._outputs, None)):
            for name, tensor in names.items():
                bind = bind or binding.bind_output
                dtype = onnx.helper.tensor_dtype_to_np_dtype(_onnx_type(tensor.dtype))
                bind(name, "cpu", 0, dtype, shapes[name], addresses[name])
        engine._session.run_with_iobinding(binding)


def _onnx_type(dtype: DataType) -> int:
    return next(number for number, own in _TYPES.items() if own is dtype)


def _array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class FakeTensorRT(types.ModuleType):
    """The module; counts what is done, and fails on demand.

    Attributes
    ----------
    builds, deserialized, contexts, timing_hits
        How often.
    runs
        Profile and shape of the token ids of every run.
    build_error, run_error
        What TensorRT logs when it fails; None: it does not.
    aliases
        What engines say of outputs besides the truth.
    refuse_plans
        Take every plan for one of another version.
    """

    ILogger, IProgressMonitor = ILogger, IProgressMonitor
    NetworkDefinitionCreationFlag, MemoryPoolType = NetworkDefinitionCreationFlag, MemoryPoolType
    DataType, TensorIOMode, OnnxParser = DataType, TensorIOMode, OnnxParser
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, version: str = "10.15.1.29") -> None:
        super().__init__("tensorrt")
        self.__spec__ = ModuleSpec("tensorrt", None)  # torch looks for it
        self.__version__ = version
        self.builds = self.deserialized = self.contexts = self.timing_hits = 0
        self.runs: list[Any] = []
        self.build_error: str | None = None
        self.run_error: str | None = None
        self.aliases: dict[str, str | None] = {}
        self.refuse_plans = False
        self.config: IBuilderConfig | None = None

    def Builder(self, logger: ILogger) -> Builder:
        return Builder(self, logger)

    def Runtime(self, logger: ILogger) -> Runtime:
        self.logger = logger
        return Runtime(self, logger)
