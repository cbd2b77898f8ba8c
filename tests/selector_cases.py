# SPDX-License-Identifier: Apache-2.0
"""Selectors with random weights, and labels of a made-up task."""

import numpy as np
import torch

from treespec.selector.actions import ACTIONS, PLACE, Action
from treespec.selector.features import SCALARS, Setting
from treespec.selector.labels import Labels
from treespec.selector.selector import Selector, SelectorConfig, StaticChoice
from treespec.tuning.costs import Costs

COSTS = Costs({1: 0.010, 8: 0.011, 41: 0.020}, 0.001, 0.001, 0.011)
SETTINGS = (Setting(0.4), Setting(1.0), Setting(1.0, 0.9))


def random_selector(states=None, seed=0, layer_widths=(24, 8), verifier="recursive_rejection"):
    """Reads `states` (widths by name); its choices vary from root to root."""
    static = tuple(StaticChoice(s, Action(2, 1, 2), Action(3, 0, 2)) for s in SETTINGS)
    config = SelectorConfig(states or {}, 16, layer_widths, ACTIONS, verifier, static, COSTS)
    rng = np.random.default_rng(seed)
    weights = {
        name: rng.normal(size=shape, scale=1 if len(shape) == 1 else shape[0] ** -0.5)
        for name, shape in config.weight_shapes().items()
    }
    return Selector(config, {name: w.astype(np.float32) for name, w in weights.items()})


def random_inputs(rng, selector, batch):
    """States and scalars ``[B, width]`` of B roots, as tensors."""
    widths = (*selector.config.states.values(), len(SCALARS))
    *states, scalars = (
        torch.from_numpy(rng.normal(size=(batch, width)).astype(np.float32)) for width in widths
    )
    return states, scalars


def choose_arguments(selector, states, scalars, node_budget, max_depth, status):
    """Those of the op `choose_shapes`; budgets and depths are lists."""
    sizes = selector.config.sizes
    bounds = (torch.tensor(column, dtype=torch.int32) for column in (node_budget, max_depth))
    return (
        list(sizes.state_widths),
        sizes.projection_width,
        list(sizes.layer_widths),
        torch.from_numpy(selector.parameters),
        torch.tensor(selector.config.actions, dtype=torch.int32),
        states,
        scalars,
        *bounds,
        status,
    )


def made_up_labels(seed=0, prompts=40, roots=12, supersets=2):
    """Roots where (4, 0, 2) is best when the draft is unsure at the root, a long chain otherwise.

    Only the entropy at the root tells which; everything else is noise.
    """
    rng = np.random.default_rng(seed)
    count = prompts * roots
    scalars = rng.normal(size=(count, len(SCALARS))).astype(np.float32)
    unsure = scalars[:, SCALARS.index("root_entropy")] > 0
    tokens = np.full((count, len(ACTIONS)), 1.2)
    tokens[:, PLACE[Action(4, 0, 2)]] = np.where(unsure, 3.0, 1.5)
    tokens[:, PLACE[Action(1, 0, 8)]] = np.where(unsure, 1.5, 5.0)
    noisy = tokens[:, None] + rng.normal(size=(count, supersets, len(ACTIONS)), scale=0.1)
    rows = np.array([1 + action.nodes for action in ACTIONS], dtype=np.float16)
    return Labels(
        SETTINGS[1:2],
        np.zeros(count, dtype=np.int32),
        np.repeat(np.arange(prompts, dtype=np.int32), roots),
        scalars,
        {"draft_root": rng.normal(size=(count, 12)).astype(np.float16)},
        np.tile(rows, (count, 1)),
        {"recursive_rejection": noisy.astype(np.float16)},
    )
