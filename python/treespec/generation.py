# SPDX-License-Identifier: Apache-2.0
"""One sequence while it runs: committed tokens, stop conditions, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from treespec._core import TokenTree, Verdict
from treespec.config import SamplingParams
from treespec.growth import RoundKey
from treespec.stats import Clock, Stats
from treespec.text import TextStream


class DraftedTokens(Protocol):
    """What paths are read from."""

    @property
    def token(self) -> npt.NDArray[np.int32]:
        """``[N]``."""

    @property
    def parent(self) -> npt.NDArray[np.int32]:
        """``[N]``, -1 for the root."""


@dataclass(frozen=True)
class RoundRecord:
    """One sequence's part of a round, for tracing.

    Attributes
    ----------
    tree, verdict
        What was drafted; what was accepted of it.
    position
        Absolute position of the root.
    sequence
        Place of the prompt in the batch.
    """

    tree: TokenTree
    verdict: Verdict
    position: int
    sequence: int


OnRound = Callable[[RoundRecord], None]


@dataclass(frozen=True)
class GenerateResult:
    """One finished text.

    Attributes
    ----------
    text
        Without prompt, special tokens and stop string; None when there is no tokenizer.
    token_ids
        New tokens, an end-of-text or stop token included.
    finish_reason
        ``"length"``, ``"eos"``, or ``"stop"``.
    stats
        Counters and times.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: str
    stats: Stats


@dataclass(frozen=True)
class Piece:
    """What one round adds to a stream; `result` comes with the last piece."""

    text: str
    token_ids: list[int]
    result: GenerateResult | None = None


class Generation:
    """One sequence while it runs: committed tokens, target and drafter state, stop conditions."""

    def __init__(
        self,
        place: int,
        prompt: npt.NDArray[np.int32],
        params: SamplingParams,
        sequence_id: int,
        tokenizer: Any,
        eos_ids: Sequence[int],
    ) -> None:
        self.place, self.params, self.sequence_id = place, params, sequence_id
        self.row_params = params.row_params()
        self.prompt_length = len(prompt)
        self._tokens = np.empty(len(prompt) + params.max_new_tokens, dtype=np.int32)
        self._tokens[: len(prompt)] = prompt
        self.length = len(prompt)
        self.eos_ids = () if params.ignore_eos else tuple(eos_ids)
        self.stream = TextStream(tokenizer, params.stop) if tokenizer is not None else None
        self.stats = Stats()
        self.finish_reason: str | None = None if params.max_new_tokens else "length"
        self.target_state: Any = None
        self.draft_state: Any = None
        self.plan_state: Any = None  # the planner's, from `begin` to the end
        self.plan: Any = None  # of the running round

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Prompt and output; the last one is the root."""
        return self._tokens[: self.length]

    @property
    def capacity(self) -> int:
        """The most tokens it can reach, the prompt included."""
        return len(self._tokens)

    @property
    def new_tokens(self) -> npt.NDArray[np.int32]:
        return self._tokens[self.prompt_length : self.length]

    @property
    def num_new_tokens(self) -> int:
        return self.length - self.prompt_length

    @property
    def root(self) -> int:
        return int(self._tokens[self.length - 1])

    @property
    def key(self) -> RoundKey:
        """The running round's; its position is the root's."""
        return RoundKey(self.params.seed, self.sequence_id, self.length - 1)

    @property
    def useful_depth(self) -> int:
        """Nodes below could not be emitted: a round gives one token more than it accepts."""
        return self.params.max_new_tokens - self.num_new_tokens - 1

    def append(self, tokens: npt.NDArray[np.int32]) -> int:
        """Commit tokens up to where plain decoding would have stopped; how many those are."""
        for count, token in enumerate(tokens.tolist(), start=1):
            self._tokens[self.length] = token
            self.length += 1
            self.finish_reason = self._reason_to_stop(token)
            if self.finish_reason is not None:
                return count
        return len(tokens)

    def _reason_to_stop(self, token: int) -> str | None:
        stopped = self.stream is not None and self.stream.push(token)
        if token in self.eos_ids:
            return "eos"
        if stopped or token in self.params.stop_token_ids:
            return "stop"
        return "length" if self.num_new_tokens == self.params.max_new_tokens else None

    def allowed(self, tree: TokenTree) -> npt.NDArray[np.uint32] | None:
        """Bitmask of the tokens that may follow each node, or None without a grammar."""
        rule = self.params.allowed_tokens
        if rule is None:
            return None
        return np.stack(
            [pack_bits(rule(self.text_to(tree, node))) for node in range(tree.num_nodes)]
        )

    def text_to(self, tree: DraftedTokens, node: int) -> npt.NDArray[np.int32]:
        """Prompt, output and the path to a node, which is part of it."""
        path = []
        while node > 0:
            path.append(int(tree.token[node]))
            node = int(tree.parent[node])
        return np.concatenate([self.tokens, np.array(path[::-1], dtype=np.int32)])

    def result(self, clock: Clock) -> GenerateResult:
        self.stats.seconds = dict(clock.seconds)
        self.stats.draft_calls, self.stats.draft_rows = clock.draft_calls, clock.draft_rows
        text = None
        if self.stream is not None:
            self.stream.finish()
            text = self.stream.text
        return GenerateResult(
            text, self.new_tokens.tolist(), self.finish_reason or "length", self.stats
        )


def pack_bits(allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """``[V]`` booleans as ``[ceil(V / 32)]`` uint32 words, lowest bit first."""
    packed = np.packbits(np.asarray(allowed, dtype=np.bool_), bitorder="little")
    return np.pad(packed, (0, -len(packed) % 4)).view("<u4").astype(np.uint32)
