# SPDX-License-Identifier: Apache-2.0
"""From an exported folder to a TensorRT engine for this GPU.

The graph is the exported one, with its dynamic capacity fixed and its precision as it is: networks
are strongly typed. One code path serves TensorRT 10.15 to 11.x.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from treespec.export.build_progress import BuildProgress
from treespec.export.engine_cache import Engine, EngineCache, EngineSpec, Profile, write_whole
from treespec.export.manifest import Manifest

if TYPE_CHECKING:
    import onnx

LOGGER = logging.getLogger("treespec")

# The first version that has the cache update layer and reads its ONNX operator.
MIN_VERSION = (10, 15)

DTYPES = ("float32", "float16", "bfloat16")

# Of addresses that TensorRT is given, in bytes.
ALIGNMENT = 256

# Rows of a prefill forward: about as many as keep the arithmetic of a GPU busy while it reads the
# weights. Every cache has as many rows more, for padding.
DEFAULT_PREFILL_ROWS = 256

# Each tree size is a tuning of its own, and build time; a factor of four wastes little, since
# reading the weights dominates a forward of few rows.
_FIRST_TREE_SIZE, _TREE_SIZE_STEP = 16, 4

_ENGINES_FOLDER = "engines"
_ERRORS_SHOWN = 5


class Gpu(NamedTuple):
    """What an engine is bound to, besides TensorRT's version."""

    name: str
    compute_capability: str


def load_tensorrt() -> Any:
    """The module `tensorrt`, of a version that treespec can use.

    Raises
    ------
    ImportError
        If it is not installed.
    NotImplementedError
        If it is too old.
    """
    try:
        import tensorrt
    except ImportError as error:  # also when the Python package is there without its libraries
        raise ImportError(
            "backend 'tensorrt' needs NVIDIA TensorRT 10.15 or later (pip install tensorrt) and a "
            f"GPU: {error}"
        ) from error
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < MIN_VERSION:
        floor = ".".join(map(str, MIN_VERSION))
        raise NotImplementedError(
            f"TensorRT must be at least {floor}, which updates caches in place, "
            f"got {tensorrt.__version__}"
        )
    return tensorrt


def current_gpu(device: Any = None) -> Gpu:
    """The GPU of a torch device; None is the current one.

    Raises
    ------
    NotImplementedError
        If there is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise NotImplementedError(
            "backend 'tensorrt' needs an NVIDIA GPU and a torch with CUDA, got none; use "
            "backend='onnx' or 'hf'"
        )
    major, minor = torch.cuda.get_device_capability(device)
    return Gpu(torch.cuda.get_device_name(device), f"{major}.{minor}")


# --- what to build -----------------------------------------------------------------------------


def tree_sizes(max_nodes: int) -> tuple[int, ...]:
    """Sizes that trees are padded to.

    Examples
    --------
    >>> tree_sizes(256), tree_sizes(61), tree_sizes(5)
    ((16, 64, 256), (16, 61), (5,))
    """
    sizes = []
    size = _FIRST_TREE_SIZE
    while size < max_nodes:
        sizes.append(size)
        size *= _TREE_SIZE_STEP
    return (*sizes, max_nodes)


def default_profiles(
    manifest: Manifest,
    *,
    max_nodes: int,
    max_batch: int = 1,
    prefill_rows: int = DEFAULT_PREFILL_ROWS,
) -> tuple[Profile, ...]:
    """Profiles for plain decoding, trees of several sizes, and prefill; smallest first.

    Of a block drafter: one for what a round commits, and one for prompts.
    """
    batch = (1, max_batch, max_batch)
    if manifest.block is not None:
        most = manifest.block.depth + 1  # the root and a whole accepted path
        sizes = [("round", most), ("prefill", max(most, prefill_rows))]
        return tuple(Profile(name, {"batch": batch, "features": (1, n, n)}) for name, n in sizes)
    one, last = (1, 1, 1), (1, max_batch, max_batch)  # a last row for every length in a batch
    profiles = [Profile("decode", {"batch": batch, "nodes": one, "logit_rows": one})]
    for n in tree_sizes(max_nodes):
        axes = {"batch": batch, "nodes": (1, n, n), "logit_rows": (1, n, n)}
        profiles.append(Profile(f"tree of {n}", axes))
    rows = (1, prefill_rows, prefill_rows)
    profiles.append(Profile("prefill", {"batch": batch, "nodes": rows, "logit_rows": last}))
    return tuple(profiles)


def engine_spec(
    folder: str | PathLike[str],
    *,
    max_context: int | None = None,
    max_nodes: int | None = None,
    max_batch: int = 1,
    prefill_rows: int = DEFAULT_PREFILL_ROWS,
    profiles: Sequence[Profile] | None = None,
    decomposable_attention: bool = True,
    workspace_bytes: int | None = None,
    optimization_level: int | None = None,
    gpu: Gpu | None = None,
) -> EngineSpec:
    """The engine that `build_engine` builds of these arguments.

    Raises
    ------
    ValueError
        For arguments or an export that no engine can be built for.
    """
    manifest = Manifest.load(folder)
    max_context = manifest.max_context if max_context is None else max_context
    max_nodes = manifest.max_nodes if max_nodes is None else max_nodes
    _check_buildable(manifest)
    _check_limit("max_context", max_context, manifest.max_context)
    _check_limit("max_nodes", max_nodes, manifest.max_nodes)
    _check_limit("max_batch", max_batch)
    _check_limit("prefill_rows", prefill_rows)
    if profiles is None:
        profiles = default_profiles(
            manifest, max_nodes=max_nodes, max_batch=max_batch, prefill_rows=prefill_rows
        )
    slots = manifest.block.slots if manifest.block is not None else 0
    tensorrt = load_tensorrt()
    gpu = gpu or current_gpu()
    settings = {
        "decomposable_attention": decomposable_attention,
        "workspace_bytes": workspace_bytes,
        "optimization_level": optimization_level,
    }
    return EngineSpec(
        model=_model_files(manifest),
        kind=manifest.kind,
        dtype=manifest.dtype,
        max_context=max_context,
        max_nodes=max_nodes,
        # Behind the last position there is room for whatever a run is padded to: TensorRT drops a
        # write that ends behind the cache, its real rows, too.
        capacity=_rounded(max_context + _most_rows(profiles) + slots),
        max_batch=max_batch,
        profiles=tuple(profiles),
        settings=settings,
        tensorrt=tensorrt.__version__,
        compute_capability=gpu.compute_capability,
        gpu=gpu.name,
    )


def _check_buildable(manifest: Manifest) -> None:
    if manifest.cache_style != "in_place":
        raise ValueError(
            "build_engine: the export must be of cache_style 'in_place', got "
            f"{manifest.cache_style!r}; export again"
        )
    if manifest.dtype not in DTYPES:
        raise ValueError(
            f"build_engine: the export must be of dtype {', '.join(DTYPES)}, got {manifest.dtype}"
        )


def _check_limit(name: str, value: int, most: int | None = None) -> None:
    if value < 1 or (most is not None and value > most):
        limit = "at least 1" if most is None else f"in [1, {most}], as exported"
        raise ValueError(f"build_engine: {name} must be {limit}, got {value}")


def build_engine(
    folder: str | PathLike[str],
    *,
    max_context: int | None = None,
    max_nodes: int | None = None,
    max_batch: int = 1,
    prefill_rows: int = DEFAULT_PREFILL_ROWS,
    profiles: Sequence[Profile] | None = None,
    decomposable_attention: bool = True,
    workspace_bytes: int | None = None,
    optimization_level: int | None = None,
    cache: str | PathLike[str] | None = None,
    gpu: Gpu | None = None,
    progress: BuildProgress | None = None,
) -> Engine:
    """Build the engine of an exported folder, or find it where an earlier call has left it.

    Parameters
    ----------
    folder
        What `export_target` or `export_drafter` has written, with ``cache_style="in_place"``.
    max_context, max_nodes
        Positions of a text and rows of a tree; None: as exported.
    max_batch
        Most sequences of a forward. Cache memory is allocated for all of them.
    prefill_rows
        Rows of a prefill forward; longer prompts take several.
    profiles
        None: `default_profiles`. They name the axes of the graph.
    decomposable_attention
        Let TensorRT split attention where no fused kernel takes the mask or the width of the heads.
        Otherwise the build fails there.
    workspace_bytes, optimization_level
        As TensorRT's builder takes them; None: its defaults.
    cache
        Folder of engines; None: ``engines`` in `folder`. Use only folders that you trust: loading
        an engine can run code.
    gpu
        None: the current one, which the engine is tuned on and bound to.
    progress
        Hears how far the build is.

    Raises
    ------
    ImportError, NotImplementedError
        If TensorRT is not there or too old, or there is no GPU.
    ValueError
        For bad arguments, files that differ from the manifest, or a graph TensorRT cannot read.
    RuntimeError
        If TensorRT fails, with what it says.
    """
    spec = engine_spec(
        folder,
        max_context=max_context,
        max_nodes=max_nodes,
        max_batch=max_batch,
        prefill_rows=prefill_rows,
        profiles=profiles,
        decomposable_attention=decomposable_attention,
        workspace_bytes=workspace_bytes,
        optimization_level=optimization_level,
        gpu=gpu,
    )
    engines = engine_cache(folder, cache)
    if (engine := engines.find(spec)) is not None:
        return engine
    with engines.building(spec):
        if (engine := engines.find(spec)) is not None:  # built while we waited
            return engine
        LOGGER.info("building a TensorRT engine for %s; this takes minutes", folder)
        Manifest.load(folder).check_files(folder)
        return engines.store(spec, _Build(Path(folder), spec, engines.folder, progress).run())


def find_engine(
    folder: str | PathLike[str], spec: EngineSpec, cache: str | PathLike[str] | None = None
) -> Engine:
    """An engine that was built before.

    Raises
    ------
    FileNotFoundError
        If there is none that fits; says how those that are there differ.
    """
    engines = engine_cache(folder, cache)
    if (engine := engines.find(spec)) is not None:
        return engine
    there = engines.others(spec)
    found = "\n  ".join(["there are:", *there]) if there else "there is none"
    raise FileNotFoundError(
        f"no engine in {engines.folder} fits this model, TensorRT {spec.tensorrt} and {spec.gpu}; "
        f"build one with `treespec export --format tensorrt`; {found}"
    )


def engine_cache(
    folder: str | PathLike[str], cache: str | PathLike[str] | None = None
) -> EngineCache:
    """Where the engines of an exported folder are."""
    return EngineCache(Path(folder) / _ENGINES_FOLDER if cache is None else cache)


def _most_rows(profiles: Sequence[Profile]) -> int:
    """Of a sequence in a run."""
    sizes = (
        one.axes[axis][2] for one in profiles for axis in ("nodes", "features") if axis in one.axes
    )
    return max(sizes, default=0)


def _rounded(rows: int) -> int:
    """So that the rows of every sequence of a batch begin at an aligned address."""
    step = ALIGNMENT // 2  # elements have two bytes or more
    return -(-rows // step) * step


def _model_files(manifest: Manifest) -> dict[str, str]:
    """Checksums of graph and weights, as the manifest has them."""
    own = (name for name in manifest.files if name.startswith(manifest.graph))
    return {name: manifest.files[name]["sha256"] for name in sorted(own)}


# --- how to build it ---------------------------------------------------------------------------


def network_graph(folder: str | PathLike[str], spec: EngineSpec) -> onnx.ModelProto:
    """The graph of a folder as TensorRT is to read it, without its weights.

    Cache buffers have a fixed number of rows, and a batch of one is fixed as well.

    Raises
    ------
    ValueError
        With the rules of TensorRT's parser that the graph breaks.
    """
    import onnx

    from treespec.export.tensorrt_rules import violations

    manifest = Manifest.load(folder)
    model = onnx.load(Path(folder) / manifest.graph, load_external_data=False)
    cache = {one.name for one in manifest.cache}
    sizes = {"batch": 1} if spec.max_batch == 1 else {}
    for value in model.graph.input:
        if value.name in cache:
            sizes[value.type.tensor_type.shape.dim[2].dim_param] = spec.capacity
    _fix_axes(model, sizes)
    if found := violations(model):
        shown = "; ".join(found[:_ERRORS_SHOWN])
        raise ValueError(f"build_engine: TensorRT must be able to read {folder}: {shown}")
    for node in model.graph.node:
        if node.op_type == "Attention":
            decomposable = int(spec.settings["decomposable_attention"])
            node.attribute.append(onnx.helper.make_attribute("TRT_decomposable", decomposable))
    return model


def _fix_axes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in sizes:
                axis.dim_value = sizes[axis.dim_param]  # also clears the name


def _axes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


class _Build:
    """One build; holds what TensorRT's objects refer to."""

    def __init__(
        self, folder: Path, spec: EngineSpec, engines: Path, progress: BuildProgress | None
    ) -> None:
        self.trt = load_tensorrt()
        self.folder, self.spec, self.progress = folder, spec, progress
        self.stopped = False
        self.logger = make_logger(self.trt)
        self._timings = engines / f"timings-{spec.tensorrt}-{spec.compute_capability}.bin"

    def run(self) -> Any:
        """The plan."""
        model = network_graph(self.folder, self.spec)
        builder = self.trt.Builder(self.logger)
        flag = self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED  # implied from 11.0 on
        network = builder.create_network(1 << int(flag))
        parser = self.trt.OnnxParser(network, self.logger)
        # The path is where the parser looks for the weights; nothing is written there.
        path = str(self.folder / Manifest.load(self.folder).graph)
        if not parser.parse(model.SerializeToString(), path):
            errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise RuntimeError(f"TensorRT cannot read {path}: {'; '.join(errors[:_ERRORS_SHOWN])}")
        config = builder.create_builder_config()
        self._configure(builder, config, model)
        with self._timing_cache(config), self._monitoring(config):
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            if self.stopped:
                raise RuntimeError("the engine build was stopped by its progress display")
            raise RuntimeError(f"TensorRT cannot build an engine of {path}: {self.logger.errors()}")
        return plan

    def _configure(self, builder: Any, config: Any, model: onnx.ModelProto) -> None:
        settings = self.spec.settings
        if settings["workspace_bytes"] is not None:
            pool = self.trt.MemoryPoolType.WORKSPACE
            config.set_memory_pool_limit(pool, settings["workspace_bytes"])
        if settings["optimization_level"] is not None:
            config.builder_optimization_level = settings["optimization_level"]
        for profile in self.spec.profiles:
            shapes = builder.create_optimization_profile()
            for value in model.graph.input:
                axes = _axes(value)
                if any(isinstance(axis, str) for axis in axes):
                    shapes.set_shape(value.name, *(_sizes(profile, axes, i) for i in range(3)))
            if config.add_optimization_profile(shapes) < 0:
                raise RuntimeError(
                    f"TensorRT refuses the profile {profile.name!r}: {self.logger.errors()}"
                )

    @contextmanager
    def _timing_cache(self, config: Any) -> Iterator[None]:
        """Measurements of kernels, kept from build to build."""
        known = self._timings.read_bytes() if self._timings.exists() else b""
        timings = config.create_timing_cache(known)
        if timings is None or not config.set_timing_cache(timings, False):
            # Of another version or GPU, or damaged: begin anew.
            config.set_timing_cache(config.create_timing_cache(b""), False)
        yield
        write_whole(self._timings, config.get_timing_cache().serialize())

    @contextmanager
    def _monitoring(self, config: Any) -> Iterator[None]:
        if self.progress is None:
            yield
            return
        monitor = _make_monitor(self.trt, self.progress)
        config.progress_monitor = monitor
        yield
        if monitor.error is not None:
            raise monitor.error
        self.stopped = monitor.stopped


def _sizes(profile: Profile, axes: Sequence[int | str], place: int) -> tuple[int, ...]:
    """The smallest (0), likeliest (1) or largest (2) shape of a profile."""
    missing = [axis for axis in axes if isinstance(axis, str) and axis not in profile.axes]
    if missing:
        raise ValueError(
            f"build_engine: profile {profile.name!r} must name the axes {', '.join(missing)}, "
            f"got {', '.join(profile.axes)}"
        )
    return tuple(a if isinstance(a, int) else profile.axes[a][place] for a in axes)


# --- what TensorRT calls back ------------------------------------------------------------------

# A Python exception must not reach TensorRT's C++, which would end the process.


def make_logger(tensorrt: Any) -> Any:
    """TensorRT's log as the log "treespec"; remembers errors for the messages of exceptions."""
    severity = tensorrt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,  # TensorRT says much of no use to its users
        severity.VERBOSE: logging.DEBUG,
    }

    class Log(tensorrt.ILogger):
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity, logging.ERROR)
            if level == logging.ERROR:
                self._errors.append(msg)
            LOGGER.log(level, "TensorRT: %s", msg)

        def errors(self) -> str:
            """The errors since the last call."""
            text = "; ".join(self._errors[-_ERRORS_SHOWN:]) or "no reason given"
            self._errors.clear()
            return text

    return Log()


def _make_monitor(tensorrt: Any, progress: BuildProgress) -> Any:
    """Tells `progress`; stops the build at its first exception, which `error` then holds."""

    class Monitor(tensorrt.IProgressMonitor):
        def __init__(self) -> None:
            tensorrt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tell(progress.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self._tell(progress.step, phase_name, step) is False:
                self.stopped = True
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            self._tell(progress.finish, phase_name)

        def _tell(self, call: Callable[..., bool | None], *values: Any) -> bool | None:
            if self.error is not None:
                return False
            try:
                return call(*values)
            except BaseException as error:  # an interrupt too
                self.error = error
                return False

    return Monitor()
