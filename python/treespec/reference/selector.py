# SPDX-License-Identifier: Apache-2.0
"""The selector's features and network. Source: 2026, arXiv 2602.16994, section 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LEAST_PROBABILITY = 1e-9  # below it a probability counts as this in logarithms


def law_features(target: Array, draft: Array, root: Array) -> tuple[float, ...]:
    """Entropies, both divergences and the distance of laws ``[V]``."""

    def log(law: Array) -> Array:
        return np.log(np.maximum(law, LEAST_PROBABILITY))

    def entropy(law: Array) -> float:
        return float(-(law * log(law)).sum())

    def divergence(p: Array, q: Array) -> float:
        return float((p * (log(p) - log(q))).sum())

    return (
        entropy(target),
        entropy(draft),
        entropy(root),
        divergence(target, draft),
        divergence(draft, target),
        float(np.abs(target - draft).sum()),
    )


def gelu(x: Array) -> Array:
    """GELU in its tanh form."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def scores(
    weights: Mapping[str, npt.NDArray[Any]], states: Mapping[str, Array], scalars: Array
) -> Array:
    """Logits of all actions; `weights` by the names of `SelectorConfig.weight_shapes`."""
    parts: list[Array] = []
    for name, state in states.items():
        projected = state @ weights[f"{name}.weight"] + weights[f"{name}.bias"]
        unit = (projected - projected.mean()) / np.sqrt(projected.var() + 1e-5)
        parts.append(unit * weights[f"{name}.scale"] + weights[f"{name}.shift"])
    x = np.concatenate(
        [*parts, (scalars - weights["scalars.mean"]) * weights["scalars.inverse_deviation"]]
    )
    layers = sum(name.startswith("layers.") for name in weights) // 2
    for place in range(layers):
        x = x @ weights[f"layers.{place}.weight"] + weights[f"layers.{place}.bias"]
        if place + 1 < layers:
            x = gelu(x)
    return x


def choose(
    logits: Array, shapes: Sequence[tuple[int, int, int]], node_budget: int, max_depth: int
) -> int:
    """Place of the best (K, L1, L2) that fits, the first among equals."""
    fitting = [
        place
        for place, (paths, trunk, branch) in enumerate(shapes)
        if trunk + paths * branch <= node_budget and trunk + branch <= max_depth
    ]
    return max(fitting, key=lambda place: (logits[place], -place))
