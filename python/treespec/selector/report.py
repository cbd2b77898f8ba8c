# SPDX-License-Identifier: Apache-2.0
"""What a selector gains on labelled roots, beside static choices and the best action per root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from treespec.selector.features import Setting
from treespec.selector.labels import Labels
from treespec.selector.selector import Selector, StaticChoice
from treespec.selector.training import (
    Outcome,
    Problem,
    chosen_outcome,
    crossed_best,
    speed_ratio,
    static_outcome,
    token_ratio,
)

Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Row:
    """A policy at one sampling setting.

    Attributes
    ----------
    policy
        ``"static"``, ``"static, root"``, ``"selector"``, ``"best per root"`` or the reference
        verifier on trees from the root.
    action
        Of a static policy.
    block_efficiency, speed
        Tokens per round, and per second by the latencies.
    tokens_to_static, speed_to_static
        Ratios to the best static action with 95 % intervals, bootstrap over prompts.
    """

    setting: Setting
    policy: str
    action: tuple[int, ...] | None
    block_efficiency: float
    speed: float
    tokens_to_static: Interval
    speed_to_static: Interval


def compare(
    selector: Selector,
    labels: Labels,
    *,
    selecting: float = 0.0,
    reference: str | None = None,
    reference_static: Sequence[StaticChoice] = (),
) -> list[Row]:
    """Judge a selector on roots that it was not trained on.

    Parameters
    ----------
    labels
        With the selector's verifier; settings among those it was trained for.
    selecting
        Seconds that a choice costs; counted in the selector's rounds.
    reference, reference_static
        A verifier whose best static trees from the root are shown beside, and these trees.
    """
    config = selector.config
    problem = Problem.of(labels, config.verifier, config.costs, selecting)
    choices = [selector.static_choice(setting) for setting in labels.settings]
    static = static_outcome(problem, problem.static_places(choices))
    outcomes: dict[str, tuple[Outcome, list[Any]]] = {
        "static": (static, [c.action for c in choices]),
        "static, root": (
            static_outcome(problem, problem.static_places(choices, from_root=True)),
            [c.from_root for c in choices],
        ),
    }
    nothing = [None] * len(choices)
    if reference is not None:
        other = Problem.of(labels, reference, config.costs)
        by_setting = {choice.setting: choice for choice in reference_static}
        own = [by_setting[setting] for setting in labels.settings]
        outcomes[f"{reference}, root"] = (
            static_outcome(other, other.static_places(own, from_root=True)),
            [c.from_root for c in own],
        )
    outcomes["selector"] = (chosen_outcome(problem, problem.chosen(selector)), nothing)
    if labels.tokens[config.verifier].shape[1] > 1:
        outcomes["best per root"] = (crossed_best(problem), nothing)
    rows = []
    for place, setting in enumerate(labels.settings):
        at = labels.setting == place
        for policy, (outcome, actions) in outcomes.items():
            action = actions[place]
            rows.append(
                Row(
                    setting,
                    policy,
                    None if action is None else tuple(action),
                    outcome.block_efficiency(at),
                    outcome.speed(at),
                    token_ratio(outcome, static, labels.prompt, at),
                    speed_ratio(outcome, static, labels.prompt, at),
                )
            )
    return rows


def overall(rows: Sequence[Row], policy: str) -> float:
    """Mean over settings of a policy's speed over the static one's."""
    return float(np.mean([row.speed_to_static[0] for row in rows if row.policy == policy]))


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For a file."""
    return [{**asdict(row), "setting": str(row.setting)} for row in rows]
