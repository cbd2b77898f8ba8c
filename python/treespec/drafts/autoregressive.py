# SPDX-License-Identifier: Apache-2.0
"""A causal language model as the drafter: one packed forward per level of all trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from treespec.drafts.base import DraftSettings, RankedRows
from treespec.drafts.candidates import draft_log_probs, is_on_host, rank_rows
from treespec.drafts.expander import ExpanderDrafter, ExpanderSession, RootRows
from treespec.targets.base import Needs, TargetStates
from treespec.targets.hf_cache import KvSequence
from treespec.targets.hf_model import (
    can_fork,
    check_supported,
    load_model,
    max_context,
    vocab_size,
)
from treespec.targets.hf_runner import PackedRunner
from treespec.targets.segment import Segment


class AutoregressiveSession(ExpanderSession):
    """The drafter's state of one sequence.

    Attributes
    ----------
    tokens
        Committed tokens, the root last; the first ``sequence.length`` of them have rows.
    """

    sequence: KvSequence

    def __init__(self, token_ids: npt.NDArray[np.integer[Any]], capacity: int) -> None:
        super().__init__(KvSequence(max(capacity, 1)))
        self.tokens: list[int] = token_ids.tolist()


class AutoregressiveDrafter(ExpanderDrafter[AutoregressiveSession]):
    """Drafts with any causal language model that has the target's token ids.

    Parameters
    ----------
    model_or_path
        A local path, a hub id, or a transformers model, which is shared and not modified.
    target_vocab_size
        V of the target. Rows are cut to it, or extended with -inf, whatever padding the models
        have.
    tokenizer, target_tokenizer
        Objects with ``get_vocab()``. When both are given, equal ids must mean equal tokens.
    device, dtype
        For a path or id, as in `treespec.targets.hf.HfTarget`.

    Raises
    ------
    ValueError
        If the tokenizers differ.
    NotImplementedError
        If the architecture is not supported, or its state cannot fork.
    """

    needs = Needs()
    reads_root_rows = has_root_states = True

    def __init__(
        self,
        model_or_path: PreTrainedModel | str | PathLike[str],
        target_vocab_size: int,
        *,
        tokenizer: Any = None,
        target_tokenizer: Any = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        model = load_model(model_or_path, device, dtype)
        check_supported(model)
        if not can_fork(model):
            raise NotImplementedError(
                f"AutoregressiveDrafter: the state of {type(model).__name__} cannot fork"
            )
        if tokenizer is not None and target_tokenizer is not None:
            check_same_tokens(tokenizer.get_vocab(), target_tokenizer.get_vocab())
        self.model = model
        self.vocab_size = target_vocab_size
        self.max_context = max_context(model)
        self._known_ids = vocab_size(model)
        self._runner = PackedRunner(model)

    def begin(
        self,
        prompt_ids: npt.NDArray[np.integer[Any]],
        states: TargetStates | None,
        capacity: int,
    ) -> AutoregressiveSession:
        """Open a session; the prompt is computed by the first `draft`, together with the root."""
        return AutoregressiveSession(np.asarray(prompt_ids), capacity)

    def observe(
        self,
        session: AutoregressiveSession,
        token_ids: npt.NDArray[np.integer[Any]],
        states: TargetStates | None,
    ) -> None:
        """Append committed tokens; their keys and values are computed by the next `draft`."""
        if len(token_ids):
            session.reset_round()
            session.tokens += np.asarray(token_ids).tolist()
            session.root_logits = None

    def known(self, token_ids: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Token ids as the model can embed them.

        Ids that only the target has become 0: that costs acceptance there, never correctness.
        """
        ids = np.asarray(token_ids, dtype=np.int32)
        unknown = ids >= self._known_ids
        return np.where(unknown, 0, ids).astype(np.int32) if unknown.any() else ids

    def run(
        self, sessions: Sequence[AutoregressiveSession], segments: Sequence[Segment]
    ) -> list[torch.Tensor]:
        """Logits ``[n_i, V_draft]`` of all rows of each segment, in one packed forward."""
        logits, _ = self._runner.forward(segments)
        return list(logits.split([len(segment) for segment in segments]))

    @torch.inference_mode()
    def log_probs(self, logits: torch.Tensor, settings: DraftSettings) -> torch.Tensor | RankedRows:
        """Surplus ids are cut before the softmax, those the model lacks are impossible."""
        if settings.list_width is not None and not is_on_host(logits):
            return RankedRows(
                *rank_rows(logits[:, : self.vocab_size], settings.list_width, settings)
            )
        return draft_log_probs(logits, self.vocab_size, settings)

    def stack(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rows as one tensor."""
        return torch.stack(list(rows))

    def catch_up(self, sessions: Sequence[AutoregressiveSession]) -> None:
        """Compute what was committed since the last draft, in one packed forward.

        Computing it again beats keeping the accepted rows.
        """
        if not sessions:
            return
        for session in sessions:
            if not session.tokens:
                raise ValueError("draft: a session must have observed a token")
            session.sequence.reserve(len(session.tokens))
        wanted = any(session.wants_root_rows for session in sessions)
        logits, states = self._runner.prefill_tails(
            [session.sequence for session in sessions],
            [self.known(session.tokens[session.sequence.length :]) for session in sessions],
            Needs(last_hidden=wanted),
            2 if wanted else 1,
        )
        for session, rows, own in zip(sessions, logits, states, strict=True):
            session.root_logits = rows[-1]
            if session.wants_root_rows:
                session.root_rows = RootRows.of(rows, own.last_hidden, session.root_rows)


def check_same_tokens(draft: Mapping[str, int], target: Mapping[str, int]) -> None:
    """Require that every id both vocabularies have is the same token.

    Parameters
    ----------
    draft, target
        Token to id, as ``tokenizer.get_vocab()`` gives it.

    Raises
    ------
    ValueError
        With the first id that differs.

    Examples
    --------
    >>> check_same_tokens({"a": 0, "b": 1}, {"a": 0, "b": 1, "<pad>": 2})
    """
    names = {index: token for token, index in draft.items()}
    pairs = sorted(
        (index, names[index], token) for token, index in target.items() if index in names
    )
    for index, ours, theirs in pairs:
        if ours != theirs:
            raise ValueError(
                "AutoregressiveDrafter: drafter and target must have the same tokenizer, but id "
                f"{index} is {ours!r} in the drafter and {theirs!r} in the target"
            )
    if not pairs:
        raise ValueError("AutoregressiveDrafter: the tokenizers have no token id in common")
