# SPDX-License-Identifier: Apache-2.0
"""The drafters that have a static form: a row each in the table below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.drafts.dflash import DFlashDrafter
from treespec.drafts.eagle3 import Eagle3Drafter
from treespec.drafts.medusa import MedusaDrafter
from treespec.static.block import StaticBlockDrafter
from treespec.static.causal_lm import StaticCausalLm
from treespec.static.drafting import DraftRecipe, StaticDrafter
from treespec.static.eagle3 import StaticEagle3
from treespec.static.heads import StaticHeads
from treespec.static.levels import LevelDrafter
from treespec.static.tables import TableDrafter


class _Kind(NamedTuple):
    weights: Callable[[Any], torch.nn.Module]
    make: Callable[[Any, DraftRecipe], StaticDrafter]


def _causal_lm(drafter: AutoregressiveDrafter, recipe: DraftRecipe) -> StaticDrafter:
    shared = (recipe.attention, recipe.compiled, recipe.selector)
    return LevelDrafter(StaticCausalLm(drafter, *shared), recipe)


def _eagle3(drafter: Eagle3Drafter, recipe: DraftRecipe) -> StaticDrafter:
    return LevelDrafter(StaticEagle3(drafter, recipe.attention, recipe.compiled), recipe)


def _block(drafter: DFlashDrafter, recipe: DraftRecipe) -> StaticDrafter:
    return TableDrafter(StaticBlockDrafter(drafter, recipe.settings, recipe.attention), recipe)


def _heads(drafter: MedusaDrafter, recipe: DraftRecipe) -> StaticDrafter:
    return TableDrafter(StaticHeads(drafter, recipe.settings), recipe)


_KINDS: dict[type, _Kind] = {
    AutoregressiveDrafter: _Kind(lambda drafter: drafter.model, _causal_lm),
    Eagle3Drafter: _Kind(lambda drafter: drafter.model, _eagle3),
    DFlashDrafter: _Kind(lambda drafter: drafter.model, _block),
    MedusaDrafter: _Kind(lambda drafter: drafter.heads, _heads),
}


def weights_of(drafter: Any) -> torch.nn.Module | None:
    """The module that drafts; None for drafters without a static form."""
    kind = _KINDS.get(type(drafter))
    return None if kind is None else kind.weights(drafter)


def make_static_drafter(drafter: Any, recipe: DraftRecipe) -> StaticDrafter:
    """The static form of a step-by-step drafter that has one.

    Raises
    ------
    NotImplementedError
        If it does not go with the recipe.
    """
    return _KINDS[type(drafter)].make(drafter, recipe)
