# SPDX-License-Identifier: Apache-2.0
"""Step 1 of a round. `DRAFTERS` is the table of names that `treespec.load` knows,
`checkpoint_formats` that of the formats it finds in a folder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treespec.drafts.base import Drafter
    from treespec.drafts.checkpoint import Checkpoint

Options = Mapping[str, Any]

# Keywords of drafters that come from the context, not from the user.
_CONTEXT = ("tokenizer", "target_tokenizer", "device", "dtype")


@dataclass(frozen=True)
class DrafterContext:
    """What a drafter may need to know to be made.

    Attributes
    ----------
    target
        The `Target` it drafts for; some borrow its embedding and output head.
    """

    vocab_size: int
    tokenizer: Any
    device: Any
    dtype: Any
    target: Any = None


@dataclass(frozen=True)
class DrafterInfo:
    """A row of the table of names."""

    summary: str
    make: Callable[[DrafterContext, Options], Drafter]


@dataclass(frozen=True)
class CheckpointFormat:
    """A row of the table of formats: `load` is called for a folder that `recognises` admits."""

    recognises: Callable[[Checkpoint], bool]
    load: Callable[..., Drafter]


def _demo(folder: str, context: DrafterContext, options: Options, **own: Any) -> Drafter:
    from treespec import demo

    known_to_fit = {"self_test": False}
    path = str(demo.drafter_path(folder))
    return load_drafter(path, context, {**known_to_fit, **own, **options})


def _ngram(context: DrafterContext, options: Options) -> Drafter:
    from treespec.drafts.ngram import NgramDrafter

    return NgramDrafter(**options)


def _suffix(context: DrafterContext, options: Options) -> Drafter:
    from treespec.drafts.suffix import SuffixDrafter

    return SuffixDrafter(**options)


DRAFTERS: Mapping[str, DrafterInfo] = MappingProxyType(
    {
        "demo": DrafterInfo(
            "the bundled autoregressive drafter of the demo target", partial(_demo, "draft")
        ),
        "demo:dflash": DrafterInfo(
            "bundled: a block in one pass, each depth by itself (DFlash)",
            partial(_demo, "treeflash", conditional=False),
        ),
        "demo:treeflash": DrafterInfo(
            "bundled: the same block, each guess after the token before it (TreeFlash)",
            partial(_demo, "treeflash"),
        ),
        "demo:pairwise": DrafterInfo(
            "bundled: the cheap form of that, low-rank scores of token pairs",
            partial(_demo, "pairwise"),
        ),
        "demo:medusa": DrafterInfo(
            "bundled: parallel heads on the target's last state (Medusa)", partial(_demo, "medusa")
        ),
        "demo:eagle3": DrafterInfo(
            "bundled: one layer on the target's states, pass by pass (EAGLE-3)",
            partial(_demo, "eagle3"),
        ),
        "ngram": DrafterInfo("repeats what followed the last n tokens before", _ngram),
        "suffix": DrafterInfo("the same over all suffixes, weighted by counts", _suffix),
    }
)


def checkpoint_formats() -> Mapping[str, CheckpointFormat]:
    """Formats by the name of their kind; a causal language model is none of them."""
    from treespec.drafts import dflash_format, eagle3_format, medusa_format

    return {
        "dflash": CheckpointFormat(dflash_format.recognises, dflash_format.load),
        "eagle3": CheckpointFormat(eagle3_format.recognises, eagle3_format.load),
        "medusa": CheckpointFormat(medusa_format.recognises, medusa_format.load),
    }


def load_drafter(path: str, context: DrafterContext, options: Options) -> Drafter:
    """The drafter in a folder or at a hub id: one of `checkpoint_formats`, else a causal language
    model.

    One of those formats must show in a few greedy rounds that it fits the target, unless the option
    `self_test` is False.

    Raises
    ------
    ValueError
        For options the kind does not have, or a checkpoint that does not fit the target.
    """
    from treespec.drafts.checkpoint import fetched, open_checkpoint
    from treespec.drafts.self_test import check_acceptance

    rest = dict(options)
    tested = rest.pop("self_test", True)
    checkpoint = open_checkpoint(path)
    for name, one in checkpoint_formats().items() if checkpoint is not None else ():
        if checkpoint is not None and one.recognises(checkpoint):
            own = checked(one.load, rest, f"{name} drafters")
            drafter = one.load(fetched(path, checkpoint), context, **own)
            if tested:
                check_acceptance(drafter, context, str(path))
            return drafter
    return make_autoregressive(path, context, rest)


def make_autoregressive(model: Any, context: DrafterContext, options: Options) -> Drafter:
    """A causal language model (object, path or hub id) as the drafter."""
    from treespec.drafts.autoregressive import AutoregressiveDrafter
    from treespec.text import load_tokenizer

    return AutoregressiveDrafter(
        model,
        context.vocab_size,
        tokenizer=load_tokenizer(model) if isinstance(model, str) else None,
        target_tokenizer=context.tokenizer,
        device=context.device,
        dtype=context.dtype,
        **checked(AutoregressiveDrafter, options, "causal language models"),
    )


def checked(function: Callable[..., Drafter], options: Options, who: str) -> Options:
    """The options, if `function` takes them as keywords.

    Raises
    ------
    ValueError
        Naming the unknown one and the known ones.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _CONTEXT]
    for name in options:
        if name not in known:
            raise ValueError(
                f"load: drafter_options of {who} must be among {', '.join(known) or 'none'}, "
                f"got {name!r}"
            )
    return options


def drafter_names() -> list[str]:
    """Names for ``treespec.load(drafter=...)``, besides paths, hub ids, model objects and None."""
    return list(DRAFTERS)


def drafter_summaries() -> dict[str, str]:
    """One line per name."""
    return {name: info.summary for name, info in DRAFTERS.items()}
