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

from treespec.drafts.base import DraftSettings, NodeBatch
from treespec.targets.base import Needs, TargetStates
from treespec.targets.hf_cache import KvSequence, Segment
from treespec.targets.hf_model import (
    can_fork,
    check_supported,
    load_model,
    max_context,
    vocab_size,
)
from treespec.targets.hf_runner import PackedRunner

# Room for a wide beam over a few levels; sequences grow when a builder asks for more.
_SPARE_ROWS = 64


class AutoregressiveSession:
    """The drafter's state of one sequence.

    Attributes
    ----------
    tokens
        Committed tokens, the root last.
    sequence
        Keys and values of the first ``sequence.length`` of them.
    root_logits
        ``[V_draft]``: what the model says after the root, once computed; None after `observe`.
    expander
        The expander of the running round; an older one is refused.
    """

    def __init__(self, token_ids: npt.NDArray[np.integer[Any]], capacity: int) -> None:
        self.tokens: list[int] = token_ids.tolist()
        self.sequence = KvSequence(max(capacity, 1))
        self.root_logits: torch.Tensor | None = None
        self.expander: AutoregressiveExpander | None = None

    def reset_round(self) -> None:
        """Drop everything speculative."""
        self.sequence.truncate(self.sequence.length)
        self.expander = None


class AutoregressiveDrafter:
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
    source_kind = "Expander"

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

    def draft(
        self, sessions: Sequence[AutoregressiveSession], settings: DraftSettings
    ) -> list[AutoregressiveExpander]:
        """Bring all sessions up to their roots in one packed forward, and hand out expanders."""
        for session in sessions:
            session.reset_round()
        self.catch_up([session for session in sessions if session.root_logits is None])
        for session in sessions:
            session.expander = AutoregressiveExpander(self, session, settings)
        return [session.expander for session in sessions if session.expander is not None]

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

    def end(self, session: AutoregressiveSession) -> None:
        """Release the rows of a session."""
        session.expander = session.root_logits = None
        session.sequence.release()

    def known(self, token_ids: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Token ids as the model can embed them.

        Ids that only the target has become 0: that costs acceptance there, never correctness.
        """
        ids = np.asarray(token_ids, dtype=np.int32)
        unknown = ids >= self._known_ids
        return np.where(unknown, 0, ids).astype(np.int32) if unknown.any() else ids

    def run(self, segments: Sequence[Segment]) -> list[torch.Tensor]:
        """Logits ``[n_i, V_draft]`` of all rows of each segment, in one packed forward."""
        logits, _ = self._runner.forward(segments)
        return list(logits.split([len(segment) for segment in segments]))

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
        logits, _ = self._runner.prefill(
            [session.sequence for session in sessions],
            [self.known(session.tokens[session.sequence.length :]) for session in sessions],
            self.needs,
        )
        for session, row in zip(sessions, logits, strict=True):
            session.root_logits = row


class AutoregressiveExpander:
    """Scores the children of tree nodes; made by `AutoregressiveDrafter.draft`.

    Every node but the root takes a slot behind the committed rows when it is expanded.
    """

    def __init__(
        self,
        drafter: AutoregressiveDrafter,
        session: AutoregressiveSession,
        settings: DraftSettings,
    ) -> None:
        self.drafter, self.session, self.settings = drafter, session, settings
        self._slot_of = {0: -1}  # by node index; the root is the last committed row
        self._parent = np.empty(0, dtype=np.int32)
        self._depth = np.empty(0, dtype=np.int32)

    def expand(self, nodes: NodeBatch) -> torch.Tensor:
        """Score the children of `nodes`: ``[n, V]`` log-probabilities on the model's device.

        float32, or float64 for a float64 model; -inf for truncated tokens and ids the model lacks.

        Raises
        ------
        RuntimeError
            If a later `draft` or `observe` has ended this round.
        ValueError
            If the parent of a node was not expanded before.
        """
        return self.expand_together([self], [nodes])[0]

    @staticmethod
    @torch.inference_mode()
    def expand_together(
        expanders: Sequence[AutoregressiveExpander], nodes: Sequence[NodeBatch]
    ) -> list[torch.Tensor]:
        """Grow several trees in lock-step: one packed forward for the nodes of all sequences.

        Parameters
        ----------
        expanders
            B expanders of the same drafter and round.
        nodes
            B batches; they may be of any size, also empty.

        Returns
        -------
        list of torch.Tensor
            B tensors ``[n_i, V]``, each as `expand` gives it.
        """
        segments = [e.segment(batch) for e, batch in zip(expanders, nodes, strict=True)]
        running = [segment for segment in segments if segment is not None]
        computed = iter(expanders[0].drafter.run(running) if running else ())
        results = []
        for expander, batch, segment in zip(expanders, nodes, segments, strict=True):
            if segment is not None:
                expander.accept(batch, segment)
            logits = None if segment is None else next(computed)
            results.append(expander.log_probs(batch, logits))
        return results

    def segment(self, nodes: NodeBatch) -> Segment | None:
        """The rows to compute for the nodes other than the root; None if there are none."""
        if self.session.expander is not self:
            raise RuntimeError("expand: this round is over, call draft again")
        below = np.flatnonzero(nodes.index > 0)
        if not len(below):
            return None
        first, sequence = len(self._parent), self.session.sequence
        rows = sequence.length + first + len(below)
        if rows > sequence.capacity:
            sequence.reserve(rows + _SPARE_ROWS)
        parent = [self._slot(index) for index in nodes.parent[below].tolist()]
        return Segment(
            sequence,
            self.drafter.known(nodes.token[below]),
            np.concatenate([self._parent, np.array(parent, dtype=np.int32)]),
            np.concatenate([self._depth, nodes.depth[below].astype(np.int32) - 1]),
            first,
        )

    def accept(self, nodes: NodeBatch, segment: Segment) -> None:
        """Remember the slots of a segment that has been computed."""
        assert segment.parent is not None and segment.depth is not None
        self._parent, self._depth = segment.parent, segment.depth
        for slot, index in enumerate(nodes.index[nodes.index > 0].tolist(), start=segment.first):
            self._slot_of[index] = slot

    def log_probs(self, nodes: NodeBatch, logits: torch.Tensor | None) -> torch.Tensor:
        """Rows in the order of `nodes`, from the logits of those below the root."""
        root = self.session.root_logits
        assert root is not None
        if logits is None:
            logits = root.expand(len(nodes), -1)
        elif len(logits) < len(nodes):
            below = torch.from_numpy(np.flatnonzero(nodes.index > 0)).to(root.device)
            logits = root.repeat(len(nodes), 1).index_copy_(0, below, logits)
        return draft_log_probs(logits, self.drafter.vocab_size, self.settings)

    def _slot(self, parent: int) -> int:
        try:
            return self._slot_of[parent]
        except KeyError:
            raise ValueError(f"expand: parent {parent} must be expanded before its child") from None


expand_batch = AutoregressiveExpander.expand_together


def draft_log_probs(logits: torch.Tensor, vocab_size: int, settings: DraftSettings) -> torch.Tensor:
    """Log-probabilities in the target's vocabulary after temperature, top-k and top-p.

    Parameters
    ----------
    logits
        ``[n, V_draft]``.
    vocab_size
        V. Surplus columns are cut before the softmax; missing ones become -inf.

    Returns
    -------
    torch.Tensor
        ``[n, V]``, float64 for float64 logits, else float32.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    scores = logits[:, :vocab_size].to(wide)
    if settings.temperature != 1:
        scores = scores / settings.temperature
    if 0 < settings.top_k < scores.shape[1]:
        smallest = scores.topk(settings.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    if settings.top_p < 1:
        scores = _keep_top_p(scores, settings.top_p)
    missing = vocab_size - scores.shape[1]
    rows = torch.log_softmax(scores, dim=-1)
    return torch.nn.functional.pad(rows, (0, missing), value=-torch.inf) if missing else rows


def _keep_top_p(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Hugging Face's rule: drop, from the bottom, tokens whose cumulated mass is at most 1 -
    top_p.
    """
    ascending, order = scores.sort(dim=-1)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[:, -1] = False
    return scores.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)


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
