# SPDX-License-Identifier: Apache-2.0
"""`load`: from names, paths and model objects to a decoder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treespec.backends import (
    BACKENDS,
    check_budget,
    check_needs,
    make_drafter,
    make_target,
    open_session,
)
from treespec.decoder import SpeculativeDecoder
from treespec.drafts import DRAFTERS, DrafterContext, load_drafter, make_autoregressive
from treespec.drafts.base import Drafter
from treespec.export.manifest import DRAFTER_FOLDER, SELECTOR_FILE, Manifest, is_exported
from treespec.identity import identity_of
from treespec.profile import Profile, profile_path
from treespec.text import load_tokenizer


def load(
    target: Any = "demo",
    drafter: Any = "auto",
    *,
    builder: str = "opt_tree",
    verifier: str = "auto",
    node_budget: int | None = None,
    max_depth: int | None = None,
    builder_options: Mapping[str, Any] | None = None,
    drafter_options: Mapping[str, Any] | None = None,
    draft_temperature: float | None = None,
    lossy: bool = False,
    graph: bool | str = False,
    compile: bool = False,
    selector: Any = None,
    profile: Any = "auto",
    tokenizer: Any = None,
    backend: str = "auto",
    backend_options: Mapping[str, Any] | None = None,
    device: Any = "auto",
    dtype: Any = "auto",
) -> SpeculativeDecoder:
    """Load models and make a decoder.

    Parameters
    ----------
    target
        ``"demo"``, a local folder, a hub id, or a transformers model object; or a folder that
        `treespec export` has written, which runs without PyTorch (docs/backends.md).
    drafter
        A name of `treespec.drafter_names`; a folder or hub id of a DFlash, TreeFlash, Medusa or
        EAGLE-3 checkpoint for this target, or of a causal language model with its tokens; a folder
        with an exported drafter; a model object; a `Drafter` of your own; or None for plain
        decoding. ``"auto"``: what was exported together with an exported target, or ``"suffix"`` if
        nothing was; ``"demo"`` for all other targets.
    drafter_options
        Settings of the drafter by name, for names, folders and hub ids (docs/drafters.md).
    backend
        ``"hf"`` (eager PyTorch), or ``"onnx"`` (ONNX Runtime) or ``"tensorrt"`` for exported
        folders. ``"auto"``: ``"onnx"`` for them, else ``"hf"``.
    selector
        With ``builder="delayed"``: a `Selector`, or the file of one, that chooses the tree of every
        round (docs/selector.md). None with `builder_options` None: the one in an exported folder,
        if there is one.
    backend_options
        Settings of an exported folder's runtime by name (docs/backends.md).
    profile
        What `treespec tune --profile` measured of this pair on this machine: every round then has
        the tree that pays, or none (docs/adaptive.md). A `Profile`, a file, or ``"auto"``: the one
        that was kept for exactly this pair, machine and these versions, unless `node_budget`,
        `graph` or `selector` is given. None: the same size in every round. Figures of another pair
        or machine, and files that hold none, are not used; a warning says why, and sizes are fixed.
    device, dtype
        ``"auto"``: CUDA if present; the checkpoint's dtype, float32 for half precision on a CPU.
        Exported folders have a dtype of their own.
    tokenizer
        None: the one beside the target.

    The other parameters are those of `SpeculativeDecoder`.

    Examples
    --------
    >>> import treespec
    >>> treespec.load("Qwen/Qwen3-8B", drafter="Qwen/Qwen3-0.6B")  # doctest: +SKIP
    """
    name = _demo_path(target)
    runtime = _runtime(backend, name, target, backend_options or {})
    if runtime is None:
        from treespec.targets.hf import load_target

        model: Any = load_target(name, device, dtype)
    else:
        model = make_target(open_session(runtime, name, device, dtype, backend_options or {}))
    if tokenizer is None and isinstance(name, str):
        tokenizer = load_tokenizer(name)
    drafter = named_drafter(name, drafter)
    context = DrafterContext(model.vocab_size, tokenizer, device, dtype, model)
    if is_exported(drafter):
        session = open_session(runtime or "onnx", drafter, device, "auto", backend_options or {})
        made: Drafter | None = make_drafter(session, context, drafter_options or {})
    else:
        made = _make_drafter(drafter, context, drafter_options or {})
    check_needs(model, made)
    if selector is None and builder == "delayed" and not builder_options:
        selector = _exported_selector(name)
    sized = node_budget is not None or graph is True or selector is not None
    decoder = SpeculativeDecoder(
        model,
        made,
        tokenizer=tokenizer,
        builder=builder,
        builder_options=builder_options,
        verifier=verifier,
        node_budget=node_budget,
        max_depth=max_depth,
        draft_temperature=draft_temperature,
        lossy=lossy,
        graph=graph,
        compile=compile,
        selector=selector,
        profile=_profile(profile, model, made, sized=sized),
    )
    if made is not None:
        check_budget(model, decoder.planner.max_nodes)
    return decoder


def _exported_selector(target: Any) -> Path | None:
    """The selector that was exported with a target."""
    if not is_exported(target) or SELECTOR_FILE not in Manifest.load(target).files:
        return None
    return Path(target) / SELECTOR_FILE


def _profile(wanted: Any, target: Any, drafter: Drafter | None, *, sized: bool) -> Profile | None:
    """The profile to go by, if there is one that holds for this pair."""
    if wanted is None or drafter is None or (wanted == "auto" and sized):
        return None
    identity = identity_of(target, drafter)
    try:
        profile = wanted
        if not isinstance(wanted, Profile):
            path = profile_path(identity) if wanted == "auto" else wanted
            if wanted == "auto" and not path.exists():
                return None
            profile = Profile.load(path)
        differences = profile.differences(identity)
    except ValueError as error:
        differences = [str(error)]
    if not differences:
        return profile
    warnings.warn(
        "load: profile is not used, every round has the same size: "
        f"{'; '.join(differences)}; measure this pair here with: treespec tune --profile",
        stacklevel=3,
    )
    return None


def _runtime(backend: str, path: Any, target: Any, options: Mapping[str, Any]) -> str | None:
    """The name of the runtime of an exported folder, None for eager PyTorch."""
    exported = is_exported(path)
    known = ["auto", "hf", *BACKENDS]
    if backend not in known:
        raise ValueError(f"load: backend must be one of {', '.join(known)}, got {backend!r}")
    if backend == "hf" and exported:
        raise ValueError(
            f"load: backend must be one of {', '.join(BACKENDS)} for {target}, an exported folder, "
            "got 'hf'"
        )
    name = target if isinstance(path, str) else type(target).__name__
    if backend in BACKENDS and not exported:
        raise ValueError(
            f"load: target must be a folder that `treespec export` has written with "
            f"backend={backend!r}, got {name}; run: treespec export --target {name} --out DIR"
        )
    if options and not exported:
        raise ValueError(
            f"load: backend_options are for exported folders, got {sorted(options)} with {name}"
        )
    if not exported:
        return None
    return "onnx" if backend == "auto" else backend


def named_drafter(target: Any, drafter: Any) -> Any:
    """The `drafter` of `load`, with what "auto" stands for; examples/cpp_service has its rule."""
    if not (isinstance(drafter, str) and drafter == "auto"):
        return drafter
    if not is_exported(target):
        return "demo"
    beside = Path(target) / DRAFTER_FOLDER
    return str(beside) if is_exported(beside) else "suffix"


def _demo_path(target: Any) -> Any:
    if target == "demo":
        from treespec import demo

        return str(demo.target_path())
    return str(target) if hasattr(target, "__fspath__") else target


def _make_drafter(
    drafter: Any, context: DrafterContext, options: Mapping[str, Any]
) -> Drafter | None:
    if isinstance(drafter, str) and drafter in DRAFTERS:
        return DRAFTERS[drafter].make(context, options)
    if isinstance(drafter, str) or hasattr(drafter, "__fspath__"):
        return load_drafter(str(drafter), context, options)
    if drafter is not None and not (hasattr(drafter, "draft") and hasattr(drafter, "observe")):
        return make_autoregressive(drafter, context, options)
    if options:
        raise ValueError(
            "load: drafter_options are for drafters that load makes, by name, folder or hub id; "
            f"got {sorted(options)} and {'None' if drafter is None else type(drafter).__name__}"
        )
    own: Drafter | None = drafter
    return own
