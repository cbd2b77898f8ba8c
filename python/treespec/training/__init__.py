# SPDX-License-Identifier: Apache-2.0
"""Training of drafters for a target, and their block efficiency by replay.

`treespec train-drafter` runs all of it; `TRAINEES` is the table of kinds.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from treespec.training.base import Trainee
    from treespec.training.data import Sample


@dataclass(frozen=True)
class TrainingContext:
    """What a new drafter is made from.

    Attributes
    ----------
    target, tokenizer
        A Hugging Face target and its tokenizer.
    samples
        Gives the data, for statistics of its tokens; may have to write it first.
    backbone
        Folder of a trained DFlash drafter, for kinds that build on one.
    options
        Sizes by name, those of the kind's class; what is not given has its default.
    """

    target: Any
    tokenizer: Any
    samples: Callable[[], list[Sample]]
    backbone: str | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class TraineeInfo:
    """A row of the table.

    Attributes
    ----------
    learning_rate
        The default, of matrices.
    trainee
        ``"module:class"`` under this package, whose keywords are the options.
    more
        Options by name and type that `make` turns into keywords.
    needs_backbone
        Whether it is a module on a trained DFlash drafter.
    """

    summary: str
    learning_rate: float
    make: Callable[[TrainingContext], Trainee]
    trainee: str
    more: Mapping[str, type] = field(default_factory=dict)
    needs_backbone: bool = False

    def options(self) -> dict[str, Any]:
        """Names and types of the options."""
        module, name = self.trainee.split(":")
        create = getattr(importlib.import_module(f"{__name__}.{module}"), name).__init__
        parameters, hints = inspect.signature(create).parameters.values(), get_type_hints(create)
        own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        return {**{n: hints[n] for n in own if n not in _FROM_CONTEXT}, **self.more}


# Keywords of trainees that come from elsewhere than the user's options.
_FROM_CONTEXT = ("kind", "tokenizer", "draft_vocab")


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a kind does not have, or of another type, before any work.

    Raises
    ------
    ValueError
        Naming the option, and what it may be.
    """
    known = TRAINEES[kind].options()
    for name, value in options.items():
        if name not in known:
            raise ValueError(
                f"train-drafter: options of {kind} must be among {', '.join(known)}, got {name!r}"
            )
        # A flag is no number here, although Python counts it as one.
        if not isinstance(value, known[name]) or (isinstance(value, bool) != (known[name] is bool)):
            wanted = getattr(known[name], "__name__", None) or str(known[name])
            raise ValueError(f"train-drafter: {name} must be {wanted}, got {value!r}")


def _dflash(context: TrainingContext) -> Trainee:
    from treespec.training.dflash import DFlashTrainee, mask_token_of

    options = {"mask_token_id": mask_token_of(context), **context.options}
    return DFlashTrainee(context.target, **options)


def _conditional(kind: str) -> Callable[[TrainingContext], Trainee]:
    def make(context: TrainingContext) -> Trainee:
        from treespec.training.dflash import ConditionalTrainee, backbone_of

        return ConditionalTrainee(
            context.target, backbone_of(context), kind=kind, **context.options
        )

    return make


def _medusa(context: TrainingContext) -> Trainee:
    from treespec.training.medusa import MedusaTrainee

    return MedusaTrainee(context.target, **context.options)


def _eagle3(context: TrainingContext) -> Trainee:
    from treespec.training.eagle3 import Eagle3Trainee, frequent_tokens

    options = dict(context.options)
    size = options.pop("draft_vocab_size", None)
    vocabulary = None if size is None else frequent_tokens(context.samples(), int(size))
    return Eagle3Trainee(context.target, draft_vocab=vocabulary, **options)


def _autoregressive(context: TrainingContext) -> Trainee:
    from treespec.training.autoregressive import AutoregressiveTrainee

    return AutoregressiveTrainee(context.target, tokenizer=context.tokenizer, **context.options)


TRAINEES: Mapping[str, TraineeInfo] = MappingProxyType(
    {
        "dflash": TraineeInfo(
            "a block in one pass, from the target's states", 0.02, _dflash, "dflash:DFlashTrainee"
        ),
        "treeflash": TraineeInfo(
            "a module on a DFlash drafter: guesses that know the token before",
            0.01,
            _conditional("treeflash"),
            "dflash:ConditionalTrainee",
            needs_backbone=True,
        ),
        "pairwise": TraineeInfo(
            "the cheap form of treeflash: low-rank scores of token pairs",
            0.01,
            _conditional("pairwise"),
            "dflash:ConditionalTrainee",
            needs_backbone=True,
        ),
        "medusa": TraineeInfo(
            "parallel heads on the target's last state", 0.01, _medusa, "medusa:MedusaTrainee"
        ),
        "eagle3": TraineeInfo(
            "one autoregressive layer on the target's states",
            0.02,
            _eagle3,
            "eagle3:Eagle3Trainee",
            more={"draft_vocab_size": int},
        ),
        "ar": TraineeInfo(
            "a small causal language model",
            0.02,
            _autoregressive,
            "autoregressive:AutoregressiveTrainee",
        ),
    }
)
