# SPDX-License-Identifier: Apache-2.0
"""EAGLE-3: one decoder layer over the target's features, which goes on from its own states.

Source: Li, Wei, Zhang, Zhang, "EAGLE-3: Scaling up Inference Acceleration of Large Language Models
via Training-Time Test", 2025, arXiv 2503.01840.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from treespec.drafts.base import DraftSettings, RankedRows
from treespec.drafts.candidates import draft_log_probs, is_on_host, rank_rows
from treespec.drafts.expander import ExpanderDrafter, ExpanderSession
from treespec.drafts.layers import MLP, KvAttention, RMSNorm, Rotary
from treespec.drafts.vocabulary import DraftVocabulary
from treespec.targets.base import Needs, TargetStates
from treespec.targets.hf_attention import packed_attention, packed_context
from treespec.targets.hf_cache import KvSequence, PackedRows
from treespec.targets.hf_runner import PREFILL_ROWS, waves
from treespec.targets.segment import Segment

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Eagle3Config:
    """Shape and conventions of an EAGLE-3 drafter.

    Attributes
    ----------
    shape
        A transformers `LlamaConfig`: sizes of the layer, rotation, norms.
    layer_ids
        Target layers whose output (0-based, the residual stream after the layer) is read.
    target_width
        H of the target.
    draft_vocab_size
        Tokens that the drafter can say.
    norm_before_residual
        The residual stream begins with the normed feature, as in some later checkpoints, and not
        with the feature itself.
    normed_heads
        Queries and keys are normed per head (Qwen3).
    """

    shape: Any
    layer_ids: tuple[int, ...]
    target_width: int
    draft_vocab_size: int
    norm_before_residual: bool = False
    normed_heads: bool = False


def feature_layers(num_layers: int) -> tuple[int, int, int]:
    """The target layers that published checkpoints read: what enters layers 2, n // 2 and n - 3.

    Examples
    --------
    >>> feature_layers(32)
    (1, 15, 28)
    """
    return (1, num_layers // 2 - 1, num_layers - 4)


class Memory(Protocol):
    """Where a row's attention finds the keys and values of the rows before it."""

    def attend(
        self, attention: KvAttention, queries: torch.Tensor, own: KeysValues
    ) -> torch.Tensor:
        """``[B, T, H]``: attention of new rows over earlier ones and their own.

        Parameters
        ----------
        queries
            ``[B, heads, T, D]``.
        own
            Keys and values ``[B, kv_heads, T, D]`` of the new rows.
        """
        ...


class Eagle3Layer(nn.Module):
    """The layer, which reads token embedding and feature side by side."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        shape, hidden = config.shape, config.shape.hidden_size
        self.self_attn = KvAttention(shape, input_size=2 * hidden, normed=config.normed_heads)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(hidden, shape.rms_norm_eps)
        self.hidden_norm = RMSNorm(hidden, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(hidden, shape.rms_norm_eps)


class Eagle3Model(nn.Module):
    """All weights of a drafter but the token embedding; the names are the published ones."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        shape, hidden = config.shape, config.shape.hidden_size
        self.config = config
        self.fc = nn.Linear(len(config.layer_ids) * config.target_width, hidden, bias=False)
        self.midlayer = Eagle3Layer(config)
        self.norm = RMSNorm(hidden, shape.rms_norm_eps)
        self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
        self.rotary = Rotary(shape)

    def forward(
        self,
        states: torch.Tensor,
        embedded: torch.Tensor,
        positions: torch.Tensor,
        memory: Memory,
    ) -> torch.Tensor:
        """One step of some rows.

        Parameters
        ----------
        states
            ``[B, T, H]``: ``fc`` of the target's features at a committed position, or what this
            method gave for the parent of a drafted token.
        embedded
            ``[B, T, H]``: the embedding of the token after that position.
        positions
            ``[B, T]``: that position.

        Returns
        -------
        torch.Tensor
            ``[B, T, H]`` before the final norm.
        """
        layer = self.midlayer
        normed = layer.hidden_norm(states)
        pair = torch.cat([layer.input_layernorm(embedded), normed], dim=-1)
        rotation = self.rotary(states, positions)
        queries = layer.self_attn.queries(pair, rotation)
        own = layer.self_attn.keys_values(pair, rotation)
        residual = normed if self.config.norm_before_residual else states
        hidden = residual + memory.attend(layer.self_attn, queries, own)
        out: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return out

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., V_draft]`` of what `forward` gives."""
        rows: torch.Tensor = self.lm_head(self.norm(states))
        return rows


class PackedMemory:
    """The rows of several sequences as one, each with the keys of its own sequence alone."""

    def __init__(self, rows: PackedRows) -> None:
        self._rows = rows

    def attend(
        self, attention: KvAttention, queries: torch.Tensor, own: KeysValues
    ) -> torch.Tensor:
        """As `Memory`, for a batch of one."""
        stored = self._rows.store(0, *own)
        with packed_context(self._rows):
            heads, _ = packed_attention(attention, queries, *stored, None, sliding_window=None)
        projected: torch.Tensor = attention.o_proj(heads.flatten(2))
        return projected


class Eagle3Session(ExpanderSession):
    """The drafter's state of one sequence.

    Row t is made of the target's features at position t and the token at t + 1, so that the row of
    the newest position waits until the root is known.

    Attributes
    ----------
    tokens, features
        Tokens, and features ``[n, k * H_target]`` of the positions before them, that have no rows
        yet.
    states
        ``[1 + S, H]``: what the model gave for the root's row and for the slots of the newest
        round; the states that their children go on from.
    """

    def __init__(
        self, token_ids: npt.NDArray[np.integer[Any]], features: torch.Tensor, capacity: int
    ) -> None:
        super().__init__(KvSequence(max(capacity, 1)))
        self.tokens: list[int] = token_ids[1:].tolist()
        self.features = features
        self.states = features.new_empty(0)

    def advance(self, count: int, last: torch.Tensor) -> None:
        """Commit `count` rows just computed; `last` ``[1, H]`` is what the model gave there."""
        self.sequence.commit(np.arange(count))
        self.tokens = self.tokens[count:]
        self.features = self.features[count:].clone()  # not a view, which would keep all rows
        self.states = last

    def release(self) -> None:
        """Drop all rows."""
        super().release()
        self.features = self.states = self.states.new_empty(0)


class Eagle3Drafter(ExpanderDrafter[Eagle3Session]):
    """Drafts level by level from the target's features.

    Parameters
    ----------
    model
        The layer with what is around it.
    embedding
        Token embedding, the target's or the checkpoint's own.
    vocabulary
        What draft ids mean to the target.

    Notes
    -----
    It sets no limit to the context: rotations have none, and published configs name the length of
    the training texts.
    """

    def __init__(
        self, model: Eagle3Model, embedding: nn.Module, vocabulary: DraftVocabulary
    ) -> None:
        self.model, self.embedding, self.vocabulary = model, embedding, vocabulary
        self.needs = Needs(layers=model.config.layer_ids)

    def begin(
        self, prompt_ids: npt.NDArray[np.integer[Any]], states: TargetStates | None, capacity: int
    ) -> Eagle3Session:
        """Open a session; its rows are computed by the first `draft`, together with the root's."""
        return Eagle3Session(np.asarray(prompt_ids), _features(states), capacity)

    def observe(
        self,
        session: Eagle3Session,
        token_ids: npt.NDArray[np.integer[Any]],
        states: TargetStates | None,
    ) -> None:
        """Append committed tokens and features; their rows are computed by the next `draft`."""
        if states is not None:
            session.features = torch.cat([session.features, _features(states)])
        if len(token_ids):
            session.reset_round()
            session.tokens += np.asarray(token_ids).tolist()
            session.root_logits = None

    @torch.inference_mode()
    def catch_up(self, sessions: Sequence[Eagle3Session]) -> None:
        """Compute what was committed since the last draft, in packed forwards of bounded size."""
        for session in sessions:
            _check_complete(session)
            session.sequence.reserve(session.sequence.length + len(session.tokens))
        for wave in waves([len(session.tokens) for session in sessions], PREFILL_ROWS):
            working = [(sessions[index], end - begin) for index, begin, end in wave]
            segments = [
                Segment(session.sequence, self.known(session.tokens[:count]))
                for session, count in working
            ]
            features = torch.cat([session.features[:count] for session, count in working])
            states = self._forward(segments, self.model.fc(features.to(self.model.fc.weight)))
            for (session, count), rows in zip(working, states, strict=True):
                session.advance(count, rows[-1:].clone())
        if sessions:
            logits = self.model.logits(torch.cat([session.states for session in sessions]))
            for session, row in zip(sessions, logits, strict=True):
                session.root_logits = row

    @torch.inference_mode()
    def run(
        self, sessions: Sequence[Eagle3Session], segments: Sequence[Segment]
    ) -> Sequence[torch.Tensor]:
        """Logits ``[n_i, V_draft]`` of the nodes of each segment, from their parents' states."""
        parents = [
            session.states[_parent_slots(segment) + 1]  # the root's row comes first
            for session, segment in zip(sessions, segments, strict=True)
        ]
        states = self._forward(segments, torch.cat(parents))
        for session, segment, rows in zip(sessions, segments, states, strict=True):
            session.states = torch.cat([session.states[: 1 + segment.first], rows])
        return self.model.logits(torch.cat(states)).split([len(segment) for segment in segments])

    @torch.inference_mode()
    def log_probs(self, logits: torch.Tensor, settings: DraftSettings) -> torch.Tensor | RankedRows:
        """The draft law over what the drafter can say, under the target's ids."""
        if settings.list_width is not None and not is_on_host(logits):
            token, logprob = rank_rows(self.vocabulary.cut(logits), settings.list_width, settings)
            return RankedRows(self.vocabulary.target_ids_on_host(token), logprob)
        rows = draft_log_probs(self.vocabulary.cut(logits), self.vocabulary.size, settings)
        return self.vocabulary.spread(rows)

    def stack(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rows as one tensor."""
        return torch.stack(list(rows))

    def _forward(
        self, segments: Sequence[Segment], states: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Per segment what the model gives for rows made of `states` ``[T, H]``."""
        device = states.device
        rows = PackedRows(segments)
        tokens = np.concatenate([segment.token_ids for segment in segments])
        positions = np.concatenate([s.sequence.length + s.query_depth for s in segments])
        embedded = self.embedding(torch.from_numpy(tokens).long().to(device)).to(states.dtype)
        out = self.model(
            states[None],
            embedded[None],
            torch.from_numpy(positions).to(device)[None],
            PackedMemory(rows),
        )
        rows.finish()
        parts: tuple[torch.Tensor, ...] = out[0].split([len(segment) for segment in segments])
        return parts


def _parent_slots(segment: Segment) -> npt.NDArray[np.int32]:
    assert segment.parent is not None
    return segment.parent[segment.first :]


def _check_complete(session: Eagle3Session) -> None:
    if len(session.tokens) != len(session.features):
        raise ValueError(
            "draft: a session must have observed its root, and the features of all positions "
            f"before, got {len(session.tokens)} tokens for {len(session.features)} features"
        )


def _features(states: TargetStates | None) -> torch.Tensor:
    if states is None or states.features is None:
        raise ValueError("Eagle3Drafter: states must hold the features of `needs`, got none")
    return states.features
