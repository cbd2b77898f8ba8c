# SPDX-License-Identifier: Apache-2.0
"""A trained selector: its network, what it reads, what it was trained for; and its file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from treespec import _core
from treespec.config import SamplingParams
from treespec.selector.actions import Action
from treespec.selector.features import SCALARS, STATES, Float32Array, RootView, Setting
from treespec.tuning.costs import Costs

_FORMAT, _VERSION = "treespec.selector", 1
Weights = Mapping[str, npt.NDArray[np.floating[Any]]]


class NetworkSizes(NamedTuple):
    """`treespec::SelectorSizes`.

    Attributes
    ----------
    state_widths, projection_width
        Of the hidden states it reads, and of what each is projected to; 0 without states.
    num_scalars
        Of `SCALARS`.
    layer_widths
        The last layer has an output for every action.
    """

    state_widths: tuple[int, ...]
    projection_width: int
    num_scalars: int
    layer_widths: tuple[int, ...]


@dataclass(frozen=True)
class StaticChoice:
    """The best single actions at a sampling setting: the baseline, by throughput.

    Attributes
    ----------
    action
        Of all actions.
    from_root
        Of those that branch at the root.
    """

    setting: Setting
    action: Action
    from_root: Action


@dataclass(frozen=True)
class SelectorConfig:
    """What a selector reads and what it was trained for.

    Attributes
    ----------
    states
        Widths of the hidden states it reads, by name of `STATES`; empty reads laws only.
    projection_width
        Of every state.
    layer_widths
        Of the hidden layers; one more layer has an output for every action.
    actions
        What it chooses among.
    verifier
        The verifier whose acceptance it learnt.
    static
        The best single actions at each sampling setting it was trained for.
    costs
        The latencies it was trained with.
    models, metadata
        Names of target and drafter; anything JSON can hold.
    """

    states: Mapping[str, int]
    projection_width: int
    layer_widths: Sequence[int]
    actions: Sequence[Action]
    verifier: str
    static: Sequence[StaticChoice]
    costs: Costs
    models: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.states) - set(STATES)
        if unknown or list(self.states) != [name for name in STATES if name in self.states]:
            raise ValueError(
                f"selector: states must be of {', '.join(STATES)}, in this order, "
                f"got {list(self.states)}"
            )
        if not self.static:
            raise ValueError("selector: static must have a choice for each setting, got none")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every array, in the order in which the core takes them."""
        shapes: dict[str, tuple[int, ...]] = {}
        width = self.projection_width
        for name, size in self.states.items():
            shapes[f"{name}.weight"] = (size, width)
            shapes |= {f"{name}.{part}": (width,) for part in ("bias", "scale", "shift")}
        shapes["scalars.mean"] = shapes["scalars.inverse_deviation"] = (len(SCALARS),)
        inputs = len(self.states) * width + len(SCALARS)
        for place, outputs in enumerate((*self.layer_widths, len(self.actions))):
            shapes[f"layers.{place}.weight"] = (inputs, outputs)
            shapes[f"layers.{place}.bias"] = (outputs,)
            inputs = outputs
        return shapes

    @property
    def sizes(self) -> NetworkSizes:
        """Of the network, as the core takes them."""
        return NetworkSizes(
            tuple(self.states.values()),
            self.projection_width if self.states else 0,
            len(SCALARS),
            (*self.layer_widths, len(self.actions)),
        )


class Selector:
    """Chooses a (K, L1, L2) tree from what is known before a round.

    A choice is a function of the past alone, never of the round's own draws, so that texts keep
    the target's distribution (verification.md, section 0.2).

    Parameters
    ----------
    config
        What it reads.
    weights
        Arrays of the names and shapes of `SelectorConfig.weight_shapes`; input-major, so that an
        output adds its inputs in one order on every device.

    Raises
    ------
    ValueError
        If arrays are missing, left over, of another shape, or not finite.
    """

    def __init__(self, config: SelectorConfig, weights: Weights) -> None:
        self.config, self.weights = config, dict(weights)
        shapes = config.weight_shapes()
        if set(shapes) != set(weights):
            odd = sorted(set(shapes) ^ set(weights))
            raise ValueError(f"selector: weights must be {', '.join(shapes)}; check {odd}")
        for name, shape in shapes.items():
            if weights[name].shape != shape:
                raise ValueError(
                    f"selector: {name} must have shape {shape}, got {weights[name].shape}"
                )
        self._network = _core.DelayedSelector(
            **config.sizes._asdict(),
            parameters=self.parameters,
            shapes=[tuple(action) for action in config.actions],
        )

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the hidden states it reads."""
        return tuple(self.config.states)

    @property
    def parameters(self) -> Float32Array:
        """``[P]``: all weights, one after the other, as the core takes them."""
        weights = (self.weights[name] for name in self.config.weight_shapes())
        return np.concatenate([np.asarray(array, dtype=np.float32).ravel() for array in weights])

    @property
    def max_nodes(self) -> int:
        """Nodes of its largest tree."""
        return max(action.nodes for action in self.config.actions)

    def scores(self, states: Sequence[Float32Array], scalars: Float32Array) -> Float32Array:
        """``[A]``: logits of all actions."""
        scores: Float32Array = self._network.score(list(states), scalars)
        return scores

    def choose(
        self,
        states: Sequence[Float32Array],
        scalars: Float32Array,
        node_budget: int,
        max_depth: int,
    ) -> Action:
        """The best action of at most so many nodes and levels, the first among equals.

        Parameters
        ----------
        states
            A row for each name of `states`.
        scalars
            The numbers of `SCALARS`.

        Raises
        ------
        ValueError
            For rows of another length, NaN, or when no action is that small.
        """
        place = self._network.choose(list(states), scalars, node_budget, max_depth)
        return self.config.actions[place]

    def choose_at(
        self, root: RootView, states: Sequence[Float32Array], node_budget: int, max_depth: int
    ) -> Action:
        """`choose` with the scalars of a root, in one call of the core."""
        place = self._network.choose_at_root(states, node_budget, max_depth, *root)
        return self.config.actions[place]

    def check_sampling(self, params: SamplingParams) -> None:
        """ValueError for a temperature or top-p beyond those it was trained for."""
        for name, value in (("temperature", params.temperature), ("top_p", params.top_p)):
            known = [getattr(choice.setting, name) for choice in self.config.static]
            if not min(known) <= value <= max(known):
                raise ValueError(
                    f"generate: {name} must be in [{min(known):g}, {max(known):g}], which the "
                    f"selector was trained for, got {value:g}"
                )

    def static_choice(self, setting: Setting) -> StaticChoice:
        """The best single actions at a setting it was trained for."""
        for choice in self.config.static:
            if choice.setting == setting:
                return choice
        known = "; ".join(str(choice.setting) for choice in self.config.static)
        raise ValueError(f"selector: setting must be one of {known}, got {setting}")

    def save(self, path: str | os.PathLike[str], dtype: str = "float32") -> None:
        """Write a safetensors file with the configuration in its header; whole or not at all."""
        from safetensors.numpy import save

        path = Path(path)
        header = {
            "format": _FORMAT,
            "version": str(_VERSION),
            "config": json.dumps(_plain(self.config)),
        }
        arrays = {
            name: np.ascontiguousarray(array, dtype=dtype) for name, array in self.weights.items()
        }
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_bytes(save(arrays, header))
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Selector:
        """Read a file that `save` wrote.

        Raises
        ------
        ValueError
            For a file that is damaged, of another kind or version, or does not fit itself; names
            the file.
        OSError
            If there is no such file.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"selector: there is no file {path}")
        try:
            with safe_open(str(path), framework="np") as file:
                header = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"selector: {path} must be a safetensors file: {error}") from None
        if header.get("format") != _FORMAT:
            raise ValueError(
                f"selector: {path} must say format {_FORMAT!r}, got {header.get('format')!r}"
            )
        if header.get("version") != str(_VERSION):
            raise ValueError(
                f"selector: {path} must be of version {_VERSION}, which this treespec reads, "
                f"got {header.get('version')!r}"
            )
        try:
            return Selector(_config(json.loads(header["config"])), weights)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"selector: {path} does not fit itself: {error}") from None


def _plain(config: SelectorConfig) -> dict[str, Any]:
    return {
        **{name: getattr(config, name) for name in ("projection_width", "verifier")},
        "states": dict(config.states),
        "layer_widths": list(config.layer_widths),
        "scalars": list(SCALARS),
        "actions": [list(action) for action in config.actions],
        "static": [[list(c.setting), list(c.action), list(c.from_root)] for c in config.static],
        "costs": asdict(config.costs),
        "models": dict(config.models),
        "metadata": dict(config.metadata),
    }


def _config(fields: dict[str, Any]) -> SelectorConfig:
    if fields["scalars"] != list(SCALARS):
        raise ValueError(f"scalars must be {', '.join(SCALARS)}, got {fields['scalars']}")
    costs = fields["costs"]
    by_rows = {int(rows): float(s) for rows, s in costs.pop("target_seconds").items()}
    return SelectorConfig(
        fields["states"],
        int(fields["projection_width"]),
        tuple(int(width) for width in fields["layer_widths"]),
        tuple(Action(*action) for action in fields["actions"]),
        str(fields["verifier"]),
        tuple(StaticChoice(Setting(*s), Action(*a), Action(*r)) for s, a, r in fields["static"]),
        Costs(by_rows, **costs),
        fields["models"],
        fields["metadata"],
    )
