# SPDX-License-Identifier: Apache-2.0
"""DFlash: a block of guesses in one pass, from the target's hidden states.

Source: Chen, Liang, Liu, "DFlash: Block Diffusion for Flash Speculative Decoding", 2026,
arXiv 2602.06036. With a conditional on top (`treeflash.py`, `pairwise.py`) the guesses of a depth
depend on the token before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from treespec._core import Marginals, Transitions
from treespec.drafts.base import DraftSettings
from treespec.drafts.candidates import marginal_width, rank_rows
from treespec.drafts.layers import MLP, KvAttention, RMSNorm, Rotary
from treespec.drafts.vocabulary import DraftVocabulary, TokenModules
from treespec.targets.base import Needs, TargetStates

KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class DFlashConfig:
    """Shape and conventions of a DFlash drafter.

    Attributes
    ----------
    shape
        A transformers `LlamaConfig`: sizes of the layers, rotation, norms.
    block_size
        Slots of a block, the root's included.
    mask_token_id
        The token that stands in every slot but the root's; it is never proposed.
    layer_ids
        Target layers whose output (0-based, the residual stream after the layer) is read.
    target_width
        H of the target.
    predicts_next
        Slot m says what follows it, as in a causal model, and slot 0 is used too. Otherwise slot m
        says its own token, and slot 0 nothing.
    causal
        A slot sees earlier slots only.
    windows
        Per layer the sliding window, or None.
    windows_causal
        In layers with a window a slot sees earlier slots only.
    """

    shape: Any
    block_size: int
    mask_token_id: int
    layer_ids: tuple[int, ...]
    target_width: int
    predicts_next: bool = False
    causal: bool = False
    windows: tuple[int | None, ...] = ()
    windows_causal: bool = True

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise ValueError(f"DFlash: block_size must be at least 2, got {self.block_size}")
        if not self.layer_ids:
            raise ValueError("DFlash: target_layer_ids must name at least one layer, got none")

    @property
    def depth(self) -> int:
        """D: depths that a block has guesses for."""
        return self.block_size if self.predicts_next else self.block_size - 1

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer."""
        return self.windows[layer] if self.windows else None

    def sees_earlier_only(self, window: int | None) -> bool:
        """Whether slots of a layer with this window see earlier slots only."""
        return self.causal or (window is not None and self.windows_causal)


def feature_layers(num_layers: int, count: int) -> tuple[int, ...]:
    """Target layers to read by default: from the second to the third last, evenly spaced.

    Examples
    --------
    >>> feature_layers(36, 5)
    (1, 9, 17, 25, 33)
    """
    if count == 1:
        return (num_layers // 2,)
    step = (num_layers - 4) / (count - 1)
    return tuple(max(0, min(num_layers - 1, round(1 + i * step))) for i in range(count))


class Memory(Protocol):
    """Where a block's attention finds the keys and values of the context."""

    def attend(
        self, layer: int, attention: KvAttention, queries: torch.Tensor, block: KeysValues
    ) -> torch.Tensor:
        """``[B, T, H]``: attention of a block's queries over context and block."""
        ...


class DFlashLayer(nn.Module):
    """A layer of the stack; its names are those of published checkpoints."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.self_attn = KvAttention(shape, normed=True)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class DFlashModel(nn.Module):
    """The stack that turns ``[root, mask, mask, ...]`` and target features into states.

    Parameters
    ----------
    config
        Shapes.
    own_mask
        Whether it has a vector of its own for the mask, instead of the embedding's row.
    """

    def __init__(self, config: DFlashConfig, *, own_mask: bool = False) -> None:
        super().__init__()
        shape = config.shape
        self.config = config
        self.fc = nn.Linear(
            len(config.layer_ids) * config.target_width, shape.hidden_size, bias=False
        )
        self.hidden_norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.layers = nn.ModuleList(DFlashLayer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        if own_mask:
            self.mask_embedding = nn.Parameter(torch.zeros(shape.hidden_size))
        self.rotary = Rotary(shape)

    def embed_block(self, roots: torch.Tensor, tokens: TokenModules) -> torch.Tensor:
        """``[..., block_size, H]``: the input of blocks that begin with `roots` ``[...]``."""
        count = self.config.block_size - 1
        masks = roots.new_full((*roots.shape, count), self.config.mask_token_id)
        states = tokens.embed(torch.cat([roots[..., None], masks], dim=-1))
        if hasattr(self, "mask_embedding"):
            states = states.clone()
            states[..., 1:, :] = self.mask_embedding
        return states

    def context(self, features: torch.Tensor, positions: torch.Tensor) -> list[KeysValues]:
        """Per layer the keys and values ``[B, kv_heads, S, D]`` of committed positions.

        Parameters
        ----------
        features
            ``[B, S, k * H_target]``.
        positions
            ``[B, S]``, absolute.
        """
        states = self.hidden_norm(self.fc(features))
        rotation = self.rotary(states, positions)
        return [layer.self_attn.keys_values(states, rotation) for layer in self.layers]

    def block(self, states: torch.Tensor, positions: torch.Tensor, memory: Memory) -> torch.Tensor:
        """The stack over block slots ``[B, T, H]`` at absolute positions ``[B, T]``.

        Returns
        -------
        torch.Tensor
            ``[B, T, H]`` before the final norm.
        """
        rotation = self.rotary(states, positions)
        for index, layer in enumerate(self.layers):
            normed = layer.input_layernorm(states)
            queries = layer.self_attn.queries(normed, rotation)
            block = layer.self_attn.keys_values(normed, rotation)
            states = states + memory.attend(index, layer.self_attn, queries, block)
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return states

    def guesses(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., depth, H]``: of the slots ``[..., block_size, H]`` those that predict."""
        return states if self.config.predicts_next else states[..., 1:, :]


class Conditional(Protocol):
    """A module that says how a slot's guess depends on the token before it.

    `rows` returns logits ``[B, D, R, V]``, or ``[B, D, R, C]`` of chosen candidates.
    """

    def rows(
        self,
        states: torch.Tensor,
        previous: torch.Tensor,
        backbone: DFlashModel,
        tokens: TokenModules,
        candidates: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits after each of R possible previous tokens.

        Parameters
        ----------
        states
            ``[B, D, H]`` before the final norm.
        previous
            ``[B, D, R]`` token ids of the target.
        candidates
            ``[B, D, C]`` draft ids to restrict the head to; None is the whole vocabulary.
        """
        ...


class DFlashSession:
    """The context of one sequence: keys and values per layer, and the root.

    Rows behind `length` are the scratch of a running block.
    """

    def __init__(self, model: DFlashModel, capacity: int, like: torch.Tensor) -> None:
        shape = model.config.shape
        self._model, self._spare = model, model.config.block_size
        self.length = 0
        self.root: int | None = None
        self._rows = like.new_zeros(
            shape.num_hidden_layers, 2, shape.num_key_value_heads, capacity + self._spare,
            shape.head_dim,
        )  # fmt: skip

    def append(self, features: torch.Tensor) -> None:
        """Commit the features ``[n, k * H]`` of the next n positions."""
        count = len(features)
        if not count:
            return
        self._reserve(self.length + count)
        positions = torch.arange(self.length, self.length + count, device=features.device)
        for layer, block in enumerate(self._model.context(features[None], positions[None])):
            self._write(layer, block, 0, count)
        self.length += count

    def committed_rows(self) -> torch.Tensor:
        """``[2 * layers, kv_heads, length, D]``: keys and values in layer order."""
        return self._rows[:, :, :, : self.length].flatten(0, 1)

    def with_block(self, layer: int, block: KeysValues, index: int) -> KeysValues:
        """Keys and values ``[1, kv_heads, length + T, D]`` of the context and block `index`."""
        count = block[0].shape[2]
        self._write(layer, block, index, count)
        rows = self._rows[layer, :, None, :, : self.length + count]
        return rows[0], rows[1]

    def _write(self, layer: int, block: KeysValues, index: int, count: int) -> None:
        for place, rows in enumerate(block):
            self._rows[layer, place, :, self.length : self.length + count] = rows[index]

    def _reserve(self, length: int) -> None:
        room = self._rows.shape[3] - self._spare
        if length > room:
            shape = list(self._rows.shape)
            shape[3] = 2 * length + self._spare
            grown = self._rows.new_zeros(shape)
            grown[:, :, :, : self.length] = self._rows[:, :, :, : self.length]
            self._rows = grown

    def release(self) -> None:
        """Drop all rows."""
        self.length, self.root = 0, None
        self._rows = self._rows[:, :, :, :0]


class SessionMemory:
    """The contexts of several sequences: a block each, attended to one after another."""

    def __init__(self, sessions: Sequence[DFlashSession], config: DFlashConfig) -> None:
        self._sessions, self._config = sessions, config
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}

    def attend(
        self, layer: int, attention: KvAttention, queries: torch.Tensor, block: KeysValues
    ) -> torch.Tensor:
        """As `Memory`."""
        outputs = []
        for index, session in enumerate(self._sessions):
            keys, values = session.with_block(layer, block, index)
            mask = self._mask(index, session.length, queries, self._config.window(layer))
            outputs.append(attention.attend(queries[index : index + 1], keys, values, mask))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _mask(
        self, index: int, length: int, queries: torch.Tensor, window: int | None
    ) -> torch.Tensor | None:
        if window is None and not self._config.causal:
            return None
        if (index, window) not in self._masks:
            end = length + queries.shape[2]
            positions = torch.arange(end, device=queries.device)
            mask = visible(positions[length:], positions, window, self._config)
            self._masks[index, window] = mask[None, None]
        return self._masks[index, window]


def visible(
    queries: torch.Tensor, keys: torch.Tensor, window: int | None, config: DFlashConfig
) -> torch.Tensor:
    """``[..., T, L]``: whether a slot at a position sees a key at another, inside one block."""
    distance = queries[..., :, None] - keys[..., None, :]
    seen = torch.ones_like(distance, dtype=torch.bool)
    if config.sees_earlier_only(window):
        seen &= distance >= 0
    return seen if window is None else seen & (distance < window)


class ConditionalRows(NamedTuple):
    """What a conditional says of each depth after R possible previous tokens.

    The first depth has one row, after the root: N = 1 + (D - 1) * R.

    Attributes
    ----------
    owner
        ``[B, D - 1, R]`` int32: the previous tokens of the further depths, as the target numbers
        them.
    logits
        ``[B, N, V]``, or ``[B, N, C]`` of chosen columns.
    columns, log_mass
        ``[B, N, C]`` draft ids of the columns, and ``[B, N, 1]`` the logarithm of the mass that
        they share; None for all columns.
    """

    owner: torch.Tensor
    logits: torch.Tensor
    columns: torch.Tensor | None = None
    log_mass: torch.Tensor | None = None

    def lists(
        self, column: torch.Tensor, logprob: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draft ids and log-probabilities of ranked columns ``[B, N, K]``, in their memory."""
        if self.columns is None or self.log_mass is None:
            return column, logprob
        ids = self.columns.to(column.device).gather(-1, column.long()).to(column.dtype)
        return ids, logprob + self.log_mass.to(logprob.device)


def _one_row_first(rows: torch.Tensor) -> torch.Tensor:
    """``[B, 1 + (D - 1) * R, ...]`` of ``[B, D, R, ...]``: those of the first depth are equal."""
    return rows.flatten(1, 2)[:, rows.shape[2] - 1 :]


class DFlashDrafter:
    """Drafts a block in one pass.

    Without a conditional `draft` gives `Marginals` (arXiv 2604.12989 builds the tree from them),
    with one `Transitions`: the likeliest tokens of a depth by the marginals are the previous tokens
    of the next depth's rows.

    Parameters
    ----------
    model
        The stack.
    tokens
        Embedding and head, the target's in published checkpoints.
    vocabulary
        What draft ids mean to the target.
    conditional
        A module for first-order guesses, or None.
    num_previous
        R, rows of a depth: previous tokens that are told apart. None: 8, or 16 for more than 64
        nodes.
    width
        K, children kept of a row. None: 16, or 32 for more than 64 nodes; of marginals
        `marginal_width`.
    head_rows
        ``"all"``: score the whole vocabulary after each previous token; an int C: the C likeliest
        tokens of the depth by its marginal, which then keep the mass they have there.
    chain
        Follow the likeliest token from depth to depth instead of telling previous tokens apart:
        one small head call per depth, for `builder="chain"`.

    Raises
    ------
    ValueError
        For sizes below 1, or `chain` or `head_rows` without a conditional.
    """

    def __init__(
        self,
        model: DFlashModel,
        tokens: TokenModules,
        vocabulary: DraftVocabulary,
        *,
        conditional: Conditional | None = None,
        num_previous: int | None = None,
        width: int | None = None,
        head_rows: int | str = "all",
        chain: bool = False,
    ) -> None:
        for name, value in (("num_previous", num_previous), ("width", width)):
            if value is not None and value < 1:
                raise ValueError(f"DFlashDrafter: {name} must be at least 1, got {value}")
        if head_rows != "all" and (isinstance(head_rows, str) or head_rows < 1):
            raise ValueError(
                f"DFlashDrafter: head_rows must be 'all' or at least 1, got {head_rows!r}"
            )
        if conditional is None and (chain or head_rows != "all" or num_previous is not None):
            raise ValueError(
                "DFlashDrafter: chain, head_rows and num_previous need a conditional "
                "(treeflash or pairwise), this drafter has none"
            )
        self.model, self.tokens, self.vocabulary = model, tokens, vocabulary
        self.conditional, self.chain = conditional, chain
        self.num_previous, self.width = num_previous, width
        self.head_rows = None if head_rows == "all" else int(head_rows)
        self.needs = Needs(layers=model.config.layer_ids)
        self.source_kind = "Marginals" if conditional is None else "Transitions"
        self._mask_column = vocabulary.draft_id(model.config.mask_token_id)
        self.max_context: int = model.config.shape.max_position_embeddings

    # --- the protocol of drafters --------------------------------------------------------------

    @torch.inference_mode()
    def begin(
        self, prompt_ids: npt.NDArray[np.integer[Any]], states: TargetStates | None, capacity: int
    ) -> DFlashSession:
        """Project the prompt's features into the context of every layer."""
        session = DFlashSession(self.model, capacity, self.model.fc.weight)
        session.append(self._features(states))
        return session

    @torch.inference_mode()
    def observe(
        self,
        session: DFlashSession,
        token_ids: npt.NDArray[np.integer[Any]],
        states: TargetStates | None,
    ) -> None:
        """Append the features of the old root and of the accepted tokens."""
        if states is not None:
            session.append(self._features(states))
        if len(token_ids):
            session.root = int(token_ids[-1])

    @torch.inference_mode()
    def draft(
        self, sessions: Sequence[DFlashSession], settings: DraftSettings
    ) -> list[Marginals] | list[Transitions]:
        """One pass over the blocks of all sequences."""
        states = self.states(sessions)[:, : self.depth(settings)]
        if self.conditional is None:
            return [self._marginals(rows, settings) for rows in self.marginal_logits(states)]
        if self.chain:
            return [self._chain(s, one, settings) for s, one in zip(sessions, states, strict=True)]
        return self._transitions(sessions, states, settings)

    def end(self, session: DFlashSession) -> None:
        """Release the context."""
        session.release()

    # --- the parts -----------------------------------------------------------------------------

    def depth(self, settings: DraftSettings) -> int:
        """D of a draft."""
        depth = self.model.config.depth
        return depth if settings.max_depth is None else max(1, min(depth, settings.max_depth))

    def list_shape(self, settings: DraftSettings) -> tuple[int, int]:
        """R and K of a draft: lists of a depth, and tokens of a list if there are as many."""
        if self.conditional is None:
            return 1, self.width or marginal_width(settings)
        if self.chain:
            return 1, self.width or 1
        large = (settings.node_budget or 64) > 64
        rows = self.num_previous or (16 if large else 8)
        return min(rows, self.vocabulary.size), self.width or (32 if large else 16)

    def states(self, sessions: Sequence[DFlashSession]) -> torch.Tensor:
        """``[B, D, H]``: what the stack says of each depth, before the final norm."""
        roots = self._roots(sessions)
        lengths = torch.tensor([session.length for session in sessions], device=roots.device)
        return self.block_states(roots, lengths, SessionMemory(sessions, self.model.config))

    def block_states(
        self, roots: torch.Tensor, lengths: torch.Tensor, memory: Memory
    ) -> torch.Tensor:
        """The same for roots ``[B]`` behind contexts of `lengths` ``[B]`` in `memory`."""
        block = self.model.embed_block(roots, self.tokens)
        positions = lengths[:, None] + torch.arange(block.shape[1], device=roots.device)
        slots = self.model.block(block.to(self.model.fc.weight.dtype), positions, memory)
        return self.model.guesses(slots)

    def marginal_logits(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., V]`` of what the drafter can say; the mask is impossible."""
        headed = self.model.norm(states).to(self.tokens.head.weight.dtype)
        return self._usable(self.tokens.logits(headed))

    def conditional_logits(self, states: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """``[B, D, R, V]`` after the target's tokens ``[B, D, R]``; the mask is impossible."""
        assert self.conditional is not None
        logits = self.conditional.rows(states, previous, self.model, self.tokens)
        return self._usable(logits)

    def conditional_rows(
        self, states: torch.Tensor, roots: torch.Tensor, settings: DraftSettings
    ) -> ConditionalRows:
        """The likeliest tokens of each depth's marginal, and what follows each of them.

        Parameters
        ----------
        states
            ``[B, D, H]``.
        roots
            ``[B]``.
        """
        assert self.conditional is not None
        rows, _ = self.list_shape(settings)
        marginal = self.marginal_logits(states)
        count = min(max(rows, self.head_rows or 0), marginal.shape[-1])
        best = marginal.topk(count).indices  # [B, D, >= R]
        owner = self.vocabulary.target_ids(best[:, :-1, :rows])
        previous = torch.cat([roots[:, None, None].expand(-1, 1, rows), owner], dim=1)
        if self.head_rows is None:
            logits = self.conditional_logits(states, previous)
            return ConditionalRows(owner.int(), _one_row_first(logits))
        # Ascending, so that equal scores fall to the lower token.
        allowed = best[..., : self.head_rows].sort(dim=-1).values
        law = torch.log_softmax(marginal.float() / settings.temperature, dim=-1)
        mass = law.gather(-1, allowed).logsumexp(-1, keepdim=True).clamp(max=0)
        logits = self.conditional.rows(states, previous, self.model, self.tokens, allowed)

        def for_each_row(values: torch.Tensor) -> torch.Tensor:
            return _one_row_first(values[:, :, None].expand(-1, -1, rows, -1))

        return ConditionalRows(
            owner.int(), _one_row_first(logits), for_each_row(allowed), for_each_row(mass)
        )

    def _marginals(self, logits: torch.Tensor, settings: DraftSettings) -> Marginals:
        _, width = self.list_shape(settings)
        token, logprob = rank_rows(logits, width, settings)
        return Marginals(self.vocabulary.target_ids_on_host(token), logprob)

    def _transitions(
        self, sessions: Sequence[DFlashSession], states: torch.Tensor, settings: DraftSettings
    ) -> list[Transitions]:
        rows = self.conditional_rows(states, self._roots(sessions), settings)
        _, width = self.list_shape(settings)
        ranked = rank_rows(rows.logits.flatten(0, 1), width, settings)
        by_session = (len(sessions), rows.logits.shape[1], -1)
        token, logprob = rows.lists(*(torch.from_numpy(a).reshape(by_session) for a in ranked))
        arrays = self.vocabulary.target_ids(token), logprob, rows.owner.cpu()
        return [
            Transitions.linked(*(one.numpy() for one in own)) for own in zip(*arrays, strict=True)
        ]

    def _chain(
        self, session: DFlashSession, states: torch.Tensor, settings: DraftSettings
    ) -> Transitions:
        """Each depth after the likeliest token of the one before: states ``[D, H]``."""
        previous = torch.tensor([[[session.root]]], device=states.device)
        _, width = self.list_shape(settings)
        tokens, logprobs = [], []
        for state in states:
            logits = self.conditional_logits(state[None, None], previous)[0, 0]
            token, logprob = rank_rows(logits, width, settings)
            tokens.append(self.vocabulary.target_ids_on_host(token))
            logprobs.append(logprob)
            previous = torch.full_like(previous, int(tokens[-1][0, 0]))
        token = np.concatenate(tokens)
        return Transitions.linked(token, np.concatenate(logprobs), token[:-1, :1])

    def _roots(self, sessions: Sequence[DFlashSession]) -> torch.Tensor:
        """``[B]`` int64, on the device of the weights."""
        roots = [session.root for session in sessions]
        if None in roots:
            raise ValueError("draft: a session must have observed a token")
        return torch.tensor(roots, device=self.model.fc.weight.device)

    def _features(self, states: TargetStates | None) -> torch.Tensor:
        if states is None or states.features is None:
            raise ValueError("DFlashDrafter: states must hold the features of `needs`, got none")
        return states.features.to(self.model.fc.weight)

    def _usable(self, logits: torch.Tensor) -> torch.Tensor:
        """Without the columns that the target lacks; the mask is impossible."""
        logits = self.vocabulary.cut(logits)
        if self._mask_column is not None:
            logits[..., self._mask_column] = -torch.inf
        return logits
