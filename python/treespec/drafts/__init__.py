# SPDX-License-Identifier: Apache-2.0
"""Step 1 of a round. `DRAFTERS` is the table of names that `treespec.load` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treespec.drafts.base import Drafter


@dataclass(frozen=True)
class DrafterContext:
    """What a drafter may need to know to be made."""

    vocab_size: int
    tokenizer: Any
    device: Any
    dtype: Any


@dataclass(frozen=True)
class DrafterInfo:
    """A row of the table."""

    summary: str
    make: Callable[[DrafterContext], Drafter]


def _demo(context: DrafterContext) -> Drafter:
    from treespec import demo

    return make_autoregressive(str(demo.draft_path()), context)


def _ngram(context: DrafterContext) -> Drafter:
    from treespec.drafts.ngram import NgramDrafter

    return NgramDrafter()


def _suffix(context: DrafterContext) -> Drafter:
    from treespec.drafts.suffix import SuffixDrafter

    return SuffixDrafter()


DRAFTERS: Mapping[str, DrafterInfo] = MappingProxyType(
    {
        "demo": DrafterInfo("the bundled autoregressive drafter of the demo target", _demo),
        "ngram": DrafterInfo("repeats what followed the last n tokens before", _ngram),
        "suffix": DrafterInfo("the same over all suffixes, weighted by counts", _suffix),
    }
)


def make_autoregressive(model: Any, context: DrafterContext) -> Drafter:
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
    )


def drafter_names() -> list[str]:
    """Names for ``treespec.load(drafter=...)``, besides paths, hub ids, model objects and None."""
    return list(DRAFTERS)


def drafter_summaries() -> dict[str, str]:
    """One line per name."""
    return {name: info.summary for name, info in DRAFTERS.items()}
