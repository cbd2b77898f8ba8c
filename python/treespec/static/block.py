# SPDX-License-Identifier: Apache-2.0
"""DFlash and its conditionals in a static round: one pass over a block behind each context."""

from __future__ import annotations

import numpy as np
import torch

from treespec import _core
from treespec.device import CandidateLists
from treespec.drafts.base import DraftSettings
from treespec.drafts.dflash import DFlashConfig, DFlashDrafter, DFlashSession, KeysValues
from treespec.drafts.layers import KvAttention
from treespec.static import ops  # noqa: F401 - registers them
from treespec.static.attention import RowMask, TreeAttention
from treespec.static.one_pass import check_settings
from treespec.static.runner import RowStates
from treespec.targets.hf_attention import ScoreRule
from treespec.targets.hf_model import rope_depends_on_length

OPS = torch.ops.treespec


class BlockContext:
    """Keys and values of the committed positions of B sequences; blocks are written behind them.

    Parameters
    ----------
    rows
        ``[2 * layers, B, kv_heads, capacity, D]``: keys and values in layer order. Zeros at first,
        because a masked row still enters the sums, and 0 x NaN is NaN.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def load(self, place: int, session: DFlashSession) -> None:
        """Copy the context of `session` to the first rows of sequence `place`."""
        capacity = self.rows.shape[3]
        if session.length > capacity:
            raise ValueError(
                f"BlockContext: capacity must be at least {session.length}, got {capacity}"
            )
        self.rows[:, place, :, : session.length] = session.committed_rows()

    def append(
        self, layers: list[KeysValues], positions: torch.Tensor, committed: torch.Tensor
    ) -> None:
        """Write those of C new rows that are committed.

        Parameters
        ----------
        layers
            Per layer keys and values ``[B, kv_heads, C, D]``.
        positions, committed
            ``[B, C]`` int64 and bool.
        """
        new = torch.stack([states for pair in layers for states in pair])
        places = positions[:, None, :, None].expand_as(new)
        kept = torch.where(committed[:, None, :, None], new, self.rows.gather(3, places))
        self.rows.scatter_(3, places, kept)

    def with_block(
        self, layer: int, block: KeysValues, slots: torch.Tensor, envelope: int
    ) -> KeysValues:
        """Keys and values ``[B, kv_heads, envelope, D]`` of a layer, block rows in their slots.

        Parameters
        ----------
        slots
            ``[B, T]`` int64: where the block's rows go.
        """
        places = slots[:, None, :, None].expand_as(block[0])
        keys, values = (
            self.rows[2 * layer + i].scatter_(2, places, states)[:, :, :envelope]
            for i, states in enumerate(block)
        )
        return keys, values


class StaticMemory:
    """`treespec.drafts.dflash.Memory` over a `BlockContext`.

    Parameters
    ----------
    context
        Where keys and values are.
    whole, earlier
        Masks of slots that see all slots of their block, and of slots that see earlier ones only.
    config
        Says which layer takes which, and the windows.
    attention
        How to attend.
    """

    def __init__(
        self,
        context: BlockContext,
        whole: RowMask,
        earlier: RowMask,
        config: DFlashConfig,
        attention: TreeAttention,
    ) -> None:
        self._context, self._whole, self._earlier = context, whole, earlier
        self._config, self._attention = config, attention
        self._slots = whole.slot_rows

    def attend(
        self, layer: int, attention: KvAttention, queries: torch.Tensor, block: KeysValues
    ) -> torch.Tensor:
        """As `treespec.drafts.dflash.Memory`."""
        window = self._config.window(layer)
        mask = self._earlier if self._config.sees_earlier_only(window) else self._whole
        keys, values = self._context.with_block(layer, block, self._slots, mask.envelope)
        rule = ScoreRule(attention.head_dim**-0.5, window=window)
        return attention.project(self._attention(queries, keys, values, mask, rule))


class StaticBlockDrafter:
    """A `treespec.static.one_pass.OnePassDrafter` of a `DFlashDrafter`.

    Parameters
    ----------
    drafter
        Shared and not modified.
    settings
        Of every draft.
    attention
        How to attend.

    Raises
    ------
    NotImplementedError
        For settings that no static draft has, and for a rotation that depends on the length of the
        text.
    """

    def __init__(
        self, drafter: DFlashDrafter, settings: DraftSettings, attention: TreeAttention
    ) -> None:
        check_settings(settings)
        if rope_depends_on_length(drafter.model):
            raise NotImplementedError(
                "StaticBlockDrafter: the rotation of the drafter depends on the length of the "
                "text, which only the device knows"
            )
        self.needs, self.max_depth = drafter.needs, drafter.depth(settings)
        self.num_slots = drafter.model.config.block_size
        self.num_rows, width = drafter.list_shape(settings)
        limits = [width, drafter.vocabulary.size]
        if drafter.head_rows is not None and not drafter.chain:
            limits.append(drafter.head_rows)
        self.num_candidates = min(limits)
        self._drafter, self._settings, self._attention = drafter, settings, attention
        self._weight = drafter.model.fc.weight
        drafter.vocabulary.keep_on(self._weight.device)
        chain = np.arange(-1, self.num_slots - 1, dtype=np.int32)
        bits = torch.from_numpy(_core.ancestor_bits(chain).view(np.int32))
        self._earlier_bits = bits.to(self._weight.device)
        self._all_bits = torch.full_like(self._earlier_bits, -1)

    def make_context(self, batch: int, capacity: int) -> BlockContext:
        """As `OnePassDrafter.make_context`."""
        shape = self._drafter.model.config.shape
        sizes = (shape.num_key_value_heads, capacity, shape.head_dim)
        return BlockContext(self._weight.new_zeros(2 * shape.num_hidden_layers, batch, *sizes))

    def load(self, context: BlockContext, place: int, session: DFlashSession) -> None:
        """As `OnePassDrafter.load`."""
        context.load(place, session)

    @torch.inference_mode()
    def observe(
        self,
        context: BlockContext,
        states: RowStates,
        first: torch.Tensor,
        count: torch.Tensor,
        active: torch.Tensor,
    ) -> None:
        """As `OnePassDrafter.observe`."""
        if states.features is None:
            raise ValueError(
                "StaticBlockDrafter: states must hold the features of `needs`, got none"
            )
        steps = torch.arange(states.features.shape[1], device=first.device)
        positions = first[:, None] + steps
        layers = self._drafter.model.context(states.features.to(self._weight.dtype), positions)
        context.append(layers, positions, steps < (count * active)[:, None])

    @torch.inference_mode()
    def draft(
        self,
        context: BlockContext,
        length: torch.Tensor,
        root: torch.Tensor,
        envelope: int,
        status: torch.Tensor,
    ) -> CandidateLists:
        """As `OnePassDrafter.draft`: marginals, or with a conditional transitions."""
        root = root.long()
        memory = self._memory(context, length, envelope)
        states = self._drafter.block_states(root, length, memory)[:, : self.max_depth]
        if self._drafter.conditional is None:
            token, logprob = self._rank(self._drafter.marginal_logits(states), status)
            return CandidateLists(self._target_ids(token), logprob)
        draft = self._chain if self._drafter.chain else self._transitions
        token, logprob, owner = draft(states, root, status)
        return CandidateLists(*OPS.link_transitions(token, logprob, owner.contiguous()))

    def _memory(self, context: BlockContext, length: torch.Tensor, envelope: int) -> StaticMemory:
        steps = torch.arange(self.num_slots, dtype=torch.int32, device=length.device)
        positions = length[:, None] + steps
        whole, earlier = (
            RowMask(length, bits.expand(len(length), -1, -1), positions, positions, envelope)
            for bits in (self._all_bits, self._earlier_bits)
        )
        return StaticMemory(context, whole, earlier, self._drafter.model.config, self._attention)

    def _transitions(
        self, states: torch.Tensor, root: torch.Tensor, status: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lists ``[B, N, K]`` and their owners ``[B, D - 1, R]``."""
        rows = self._drafter.conditional_rows(states, root, self._settings)
        token, logprob = rows.lists(*self._rank(rows.logits, status))
        return self._target_ids(token), logprob, rows.owner

    def _chain(
        self, states: torch.Tensor, root: torch.Tensor, status: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same, each depth after the likeliest token of the one before."""
        previous = root[:, None, None]
        lists = []
        for state in states.split(1, dim=1):
            logits = self._drafter.conditional_logits(state, previous)[:, 0]
            token, logprob = self._rank(logits, status)
            token = self._target_ids(token)
            lists.append((token, logprob))
            previous = token[:, :, :1].long()
        token, logprob = (torch.cat(column, dim=1) for column in zip(*lists, strict=True))
        return token, logprob, token[:, :-1, :1]

    def _rank(
        self, logits: torch.Tensor, status: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest columns of ``[B, N, V]``."""
        ranked: tuple[torch.Tensor, torch.Tensor] = OPS.rank_candidates(
            logits.contiguous(),
            logits.shape[2],
            self.num_candidates,
            self._settings.temperature,
            status,
        )
        return ranked

    def _target_ids(self, token: torch.Tensor) -> torch.Tensor:
        return self._drafter.vocabulary.target_ids(token)
