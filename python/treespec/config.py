# SPDX-License-Identifier: Apache-2.0
"""What a caller may ask of a generation; checked when it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from treespec import _core

# Called with prompt + output + the path to a node; says which tokens may follow, [V] booleans.
AllowedTokens = Callable[[npt.NDArray[np.int32]], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class SamplingParams:
    """How a row of target logits becomes a distribution, and when a text ends.

    The order is Hugging Face's: logit_bias, repetition penalty, presence and frequency penalty,
    allowed tokens, temperature, top-k, top-p, min-p. Penalties count the tokens on a node's own
    path, so the result equals sequential decoding.

    Parameters
    ----------
    temperature
        0 is greedy; else at least 1e-6.
    top_k
        Keep the k largest and all ties of the k-th; 0 is off.
    top_p
        Keep the smallest set of mass at least this, in (0, 1].
    min_p
        Keep tokens of at least this share of the largest probability, in [0, 1).
    repetition_penalty
        Above 0; over prompt, output and path.
    presence_penalty, frequency_penalty
        Over output and path: once per distinct token, and times its count.
    logit_bias
        Added to the logits of these token ids.
    allowed_tokens
        A grammar: which tokens may follow a text, ``[V]`` booleans.
    seed
        Every draw is a function of it, the sequence id and the position.
    stop
        Strings that end the text; they are cut off it.
    stop_token_ids
        Token ids that end the text besides the model's own; kept in ``token_ids``.
    max_new_tokens
        The most tokens to emit.
    ignore_eos
        Go on after an end-of-text token.

    Raises
    ------
    ValueError
        Naming the parameter, its rule and the value.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_tokens: AllowedTokens | None = None
    seed: int = 0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    max_new_tokens: int = 128
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if any(not isinstance(text, str) or not text for text in stop):
            raise ValueError(f"SamplingParams: stop must be non-empty strings, got {self.stop!r}")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(int(t) for t in self.stop_token_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"SamplingParams: seed must be in [0, 2**64), got {self.seed}")
        if self.max_new_tokens < 0:
            raise ValueError(
                f"SamplingParams: max_new_tokens must be >= 0, got {self.max_new_tokens}"
            )
        self.row_params()

    def row_params(self) -> _core.RowParams:
        """The native form of what shapes a row; checks it."""
        return _core.RowParams(
            temperature=float(self.temperature),
            top_k=int(self.top_k),
            top_p=float(self.top_p),
            min_p=float(self.min_p),
            repetition_penalty=float(self.repetition_penalty),
            presence_penalty=float(self.presence_penalty),
            frequency_penalty=float(self.frequency_penalty),
            logit_bias={int(token): float(bias) for token, bias in self.logit_bias.items()},
        )

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change a row."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0
