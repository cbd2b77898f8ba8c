# SPDX-License-Identifier: Apache-2.0
"""Whether a loaded drafter fits its target: a mis-wired one does not crash, it guesses nothing."""

from __future__ import annotations

from typing import Any

from treespec.drafts import DrafterContext
from treespec.drafts.base import Drafter

# Mis-wired drafters stay below 0.05; published ones are above 0.6.
LEAST_ACCEPTANCE = 0.3
_NEW_TOKENS = 64
_PROMPTS = (
    "The quick brown fox jumps over the lazy dog. The dog",
    "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):",
    "Question: What is the capital of France?\nAnswer:",
    "import os\nimport sys\n\n\ndef main():",
)


def check_acceptance(drafter: Drafter, context: DrafterContext, name: str) -> None:
    """Refuse a drafter whose first guess is accepted in too few greedy rounds.

    Four prompts of 64 tokens are decoded with the real target; takes as long as that does.

    Raises
    ------
    ValueError
        With the share that was accepted.
    """
    from treespec.decoder import SpeculativeDecoder

    decoder = SpeculativeDecoder(
        context.target, drafter, builder="chain", max_depth=1, node_budget=1
    )
    prompts = _prompts(context)
    room = (context.target.max_context or _NEW_TOKENS) - max(map(len, prompts))
    results = decoder.generate(
        prompts, max_new_tokens=max(1, min(_NEW_TOKENS, room)), ignore_eos=True
    )
    accepted = sum(sum(result.stats.accepted_by_depth[:1]) for result in results)
    offered = sum(sum(result.stats.offered_by_depth[:1]) for result in results)
    share = accepted / max(offered, 1)
    if share < LEAST_ACCEPTANCE:
        raise ValueError(
            f"{name}: the first guess must be right in {LEAST_ACCEPTANCE:.0%} of greedy rounds, "
            f"got {share:.0%}: features or embedding convention mismatch, or a drafter of another "
            "target (drafter_options={'self_test': False} loads it all the same)"
        )


def _prompts(context: DrafterContext) -> list[Any]:
    """Texts, or without a tokenizer a few token ids."""
    if context.tokenizer is None:
        return [
            [i % context.vocab_size for i in range(first, first + 8)] for first in (3, 50, 97, 144)
        ]
    return [list(context.tokenizer(text)["input_ids"]) for text in _PROMPTS]
