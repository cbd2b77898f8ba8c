# SPDX-License-Identifier: Apache-2.0
"""The pair that is measured, and decoders over the same models with other trees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from treespec.decoder import SpeculativeDecoder

_Job = TypeVar("_Job")
# Walks a list of jobs and shows how far it is: `rich.progress.track`, `tqdm`, or `iter`.
Progress = Callable[[Sequence[_Job]], Iterable[_Job]]
PROPOSALS = ("deterministic", "without_replacement")  # whose ranks a growth map can be made for


def as_decoder(models: Any) -> SpeculativeDecoder:
    """A decoder, or a (target, drafter) pair as `treespec.load` takes them, as a decoder.

    Raises
    ------
    ValueError
        Without a drafter there is nothing to measure.
    """
    if not isinstance(models, SpeculativeDecoder):
        from treespec.loading import load

        target, drafter = models
        models = load(target, drafter)
    if models.drafter is None:
        raise ValueError("tuning: models must have a drafter, plain decoding has none")
    return models


def with_tree(
    decoder: SpeculativeDecoder,
    builder: str,
    options: Mapping[str, Any],
    *,
    verifier: str = "auto",
    node_budget: int | None = None,
) -> SpeculativeDecoder:
    """The same models with another builder and verifier."""
    return SpeculativeDecoder(
        decoder.target,
        decoder.drafter,
        tokenizer=decoder.tokenizer,
        builder=builder,
        builder_options=options,
        verifier=verifier,
        node_budget=node_budget,
        draft_temperature=decoder.draft_temperature,
    )


def exact_verifier(proposal: str, temperature: float) -> str:
    """The lossless verifier whose acceptance is measured."""
    if temperature == 0:
        return "greedy"
    return "target_only" if proposal == "deterministic" else "recursive_rejection"


def prompt_list(who: str, prompts: Sequence[Any]) -> list[Any]:
    """The prompts; ValueError when there are none or when they are one text."""
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"{who}: prompts must be a list of prompts, got {prompts!r}")
    return list(prompts)
