# SPDX-License-Identifier: Apache-2.0
"""Training of DFlash and of the conditionals on top of it.

Sources: arXiv 2602.06036, section 4 (random anchors, position weights); arXiv 2606.03819 (forward
KL on a frozen backbone, the true previous token).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from treespec.drafts import DrafterContext, dflash_format, load_drafter
from treespec.drafts.dflash import (
    DFlashConfig,
    DFlashDrafter,
    DFlashModel,
    KeysValues,
    feature_layers,
    visible,
)
from treespec.drafts.layers import KvAttention
from treespec.drafts.pairwise import PairwiseSelector
from treespec.drafts.treeflash import TreeFlashModule
from treespec.drafts.vocabulary import DraftVocabulary, TokenModules
from treespec.targets.base import Needs
from treespec.targets.hf_model import decoder_blocks, text_config
from treespec.training import TrainingContext
from treespec.training.base import (
    Batch,
    frozen,
    layer_shape,
    logits_of,
    mean_loss,
    soft_cross_entropy,
    target_law,
)

# Position weights exp(-k / gamma) of the published block sizes.
_GAMMA = {8: 4.0, 10: 5.0, 16: 7.0}
_RANK = 64  # of a new pairwise selector
_MARGINAL_SHARE = 0.3  # of the stack's own loss beside a conditional's
_FIRST_NORM = 0.1  # of the final norm: a fresh drafter behind a tied head is too sure of the mask


def default_config(
    target: Any,
    *,
    mask_token_id: int,
    num_layers: int,
    block_size: int,
    num_features: int,
) -> DFlashConfig:
    """A drafter with the target's own width, heads and rotation."""
    count = len(decoder_blocks(target.model))
    return DFlashConfig(
        shape=layer_shape(target, num_layers),
        block_size=block_size,
        mask_token_id=mask_token_id,
        layer_ids=tuple(sorted({*feature_layers(count, min(num_features, max(1, count - 2)))})),
        target_width=int(text_config(target.model).hidden_size),
    )


@dataclass
class Blocks:
    """Blocks drawn in a batch.

    Attributes
    ----------
    anchor
        ``[B, N]``: positions of their roots.
    label
        ``[B, N, D]``: the tokens behind the roots.
    weight
        ``[B, N, D]``: what a label counts; 0 for those that are not the target's own.
    previous
        ``[B, N, D]``: the token before each label.
    """

    anchor: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor
    previous: torch.Tensor


def draw_blocks(
    batch: Batch, depth: int, count: int, gamma: float, generator: torch.Generator
) -> Blocks:
    """Roots at random positions before the target's own tokens, without replacement.

    A text with fewer than `count` such positions gives blocks of weight 0 besides; so are the
    depths behind its end.
    """
    batch_size, length = batch.tokens.shape
    device = batch.tokens.device
    possible = batch.own.roll(-1, dims=1)
    possible[:, -1] = False  # nothing follows
    keys = torch.rand(batch_size, length, generator=generator).to(device)
    keys = keys.masked_fill(~possible, -1.0)
    chosen = keys.topk(min(count, length), dim=1)
    anchor = chosen.indices
    wanted = anchor[..., None] + torch.arange(1, depth + 1, device=device)
    at = wanted.clamp(max=length - 1)
    rows = torch.arange(batch_size, device=device)[:, None, None]
    by_depth = torch.exp(-torch.arange(depth, device=device) / gamma)
    counts = batch.own[rows, at] & (wanted < length) & (chosen.values >= 0)[..., None]
    return Blocks(anchor, batch.tokens[rows, at], counts * by_depth, batch.tokens[rows, at - 1])


class TrainingMemory:
    """Keys of whole texts; a block sees what lies before its root, and itself."""

    def __init__(
        self, context: list[KeysValues], anchor: torch.Tensor, config: DFlashConfig
    ) -> None:
        self._context, self._anchor, self._config = context, anchor, config
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(
        self, layer: int, attention: KvAttention, queries: torch.Tensor, block: KeysValues
    ) -> torch.Tensor:
        """As `treespec.drafts.dflash.Memory`."""
        keys, values = (
            torch.cat(pair, dim=2) for pair in zip(self._context[layer], block, strict=True)
        )
        window = self._config.window(layer)
        if window not in self._masks:
            self._masks[window] = self._mask(keys.shape[2] - queries.shape[2], window)
        return attention.attend(queries, keys, values, self._masks[window])

    def _mask(self, length: int, window: int | None) -> torch.Tensor:
        """``[B, 1, N * T, S + N * T]``."""
        slots, device = self._config.block_size, self._anchor.device
        root = self._anchor.repeat_interleave(slots, dim=1)
        position = root + torch.arange(slots, device=device).repeat(self._anchor.shape[1])
        text = torch.arange(length, device=device).expand(len(root), -1)
        number = torch.arange(root.shape[1], device=device) // slots
        before = (text[:, None] < root[..., None]) & visible(position, text, window, self._config)
        same = (number[:, None] == number) & visible(position, position, window, self._config)
        return torch.cat([before, same], dim=-1)[:, None]


def block_states(
    model: DFlashModel, tokens: TokenModules, batch: Batch, anchor: torch.Tensor
) -> torch.Tensor:
    """``[B, N, D, H]``: what the stack says of each depth of every block, before the final norm."""
    assert batch.features is not None
    texts, slots = batch.tokens, model.config.block_size
    positions = torch.arange(texts.shape[1], device=texts.device)[None]
    context = model.context(batch.features, positions)
    block = model.embed_block(texts.gather(1, anchor), tokens).flatten(1, 2).float()
    at = (anchor[..., None] + torch.arange(slots, device=texts.device)).flatten(1)
    states = model.block(block, at, TrainingMemory(context, anchor, model.config))
    return model.guesses(states.unflatten(1, (-1, slots)))


class _BlockTrainee:
    """What the stack and the modules on it share: blocks, drafter and file.

    Attributes
    ----------
    backbone, conditional
        The stack, and the module on it or None.
    """

    module: nn.Module

    def __init__(
        self, target: Any, backbone: DFlashModel, num_anchors: int, conditional: Any = None
    ) -> None:
        _check_sizes(num_anchors=num_anchors)
        frozen(target.model)
        self.target, self.num_anchors = target, num_anchors
        self.backbone, self.conditional = backbone.to(target.device), conditional
        self.tokens = TokenModules.of_target(target)
        self.kind = "dflash"
        config = backbone.config
        self.needs = Needs(layers=config.layer_ids)
        self._mask, self._depth = config.mask_token_id, config.depth
        self._gamma = _GAMMA.get(config.block_size, config.block_size / 2)

    def drafter(self) -> DFlashDrafter:
        """The drafter as it stands."""
        vocabulary = DraftVocabulary(self.tokens.head.weight.shape[0], self.target.vocab_size)
        return DFlashDrafter(self.backbone, self.tokens, vocabulary, conditional=self.conditional)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write it in the published format, float16."""
        dflash_format.save(
            folder,
            self.backbone,
            num_target_layers=len(decoder_blocks(self.target.model)),
            vocab_size=self.target.vocab_size,
            conditional=self.conditional,
            kind=self.kind,
        )

    def _blocks(self, batch: Batch, generator: torch.Generator) -> Blocks:
        """Blocks of a batch; the mask, which is never proposed, is no label."""
        blocks = draw_blocks(batch, self._depth, self.num_anchors, self._gamma, generator)
        return replace(blocks, weight=blocks.weight * (blocks.label != self._mask))

    def _cross_entropy(self, normed: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits = without(logits_of(self.tokens, normed), self._mask)
        return cross_entropy(logits, label, reduction="none")


class DFlashTrainee(_BlockTrainee):
    """The stack, by cross-entropy on the target's own text.

    Parameters
    ----------
    target
        A Hugging Face target; its parameters are frozen.
    mask_token_id
        A token that the text never holds.
    num_layers, block_size, num_features
        Layers of the stack (at least 2: the root's own state must be made first), slots of a block,
        target layers that are read.
    num_anchors
        Blocks per text and step.

    Raises
    ------
    ValueError
        For sizes below 1, or a mask that is no row of the target's embedding.
    """

    def __init__(
        self,
        target: Any,
        *,
        mask_token_id: int,
        num_layers: int = 2,
        block_size: int = 8,
        num_features: int = 4,
        num_anchors: int = 24,
    ) -> None:
        _check_sizes(num_layers=num_layers, num_features=num_features)
        rows = TokenModules.of_target(target).embedding.weight.shape[0]
        if not 0 <= mask_token_id < rows:
            raise ValueError(
                f"train-drafter: mask_token_id must be in [0, {rows}), got {mask_token_id}"
            )
        config = default_config(
            target,
            mask_token_id=mask_token_id,
            num_layers=num_layers,
            block_size=block_size,
            num_features=num_features,
        )
        super().__init__(target, DFlashModel(config), num_anchors)
        self.module = self.backbone
        nn.init.constant_(self.module.norm.weight, _FIRST_NORM)

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Cross-entropy of the labels, weighted by depth; the mask is no candidate."""
        blocks = self._blocks(batch, generator)
        states = block_states(self.backbone, self.tokens, batch, blocks.anchor)
        normed = self.backbone.norm(states)
        return mean_loss(self._cross_entropy, blocks.weight, normed, blocks.label)


class ConditionalTrainee(_BlockTrainee):
    """A conditional on a trained stack, by forward KL towards the target's law.

    Parameters
    ----------
    target
        A Hugging Face target; its parameters are frozen.
    backbone
        The stack; its drafter without the conditional stays bit for bit as it was, unless
        `train_backbone`.
    kind
        ``"treeflash"`` or ``"pairwise"``.
    inner_size
        F of treeflash, rank of pairwise. None: the stack's inner size, 64.
    num_anchors
        Blocks per text and step.
    train_backbone
        Train the stack too, with 0.3 times its own cross-entropy, since the marginals choose the
        previous tokens.

    Raises
    ------
    ValueError
        For sizes below 1.
    """

    conditional: nn.Module

    def __init__(
        self,
        target: Any,
        backbone: DFlashModel,
        *,
        kind: str = "treeflash",
        inner_size: int | None = None,
        num_anchors: int = 24,
        train_backbone: bool = False,
    ) -> None:
        if inner_size is not None:
            _check_sizes(inner_size=inner_size)
        shape, head = backbone.config.shape, TokenModules.of_target(target).head.weight.shape[0]
        conditional = (
            TreeFlashModule(shape, inner_size)
            if kind == "treeflash"
            else PairwiseSelector(shape, target.vocab_size, head, inner_size or _RANK)
        )
        super().__init__(target, backbone.float(), num_anchors, conditional.to(target.device))
        self.kind, self.train_backbone = kind, train_backbone
        self.backbone.requires_grad_(train_backbone)
        self.module = nn.ModuleDict({"conditional": self.conditional, "backbone": self.backbone})

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """KL from the target's law to the guess after the true previous token."""
        blocks = self._blocks(batch, generator)
        with torch.set_grad_enabled(self.train_backbone):
            states = block_states(self.backbone, self.tokens, batch, blocks.anchor)
        # The state of the token before says the law of a label.
        before = blocks.anchor[..., None] + torch.arange(self._depth, device=states.device)
        rows = torch.arange(len(before), device=states.device)[:, None, None]
        said = batch.last_hidden[rows, before.clamp(max=batch.tokens.shape[1] - 1)]
        return mean_loss(
            self._rows_loss, blocks.weight, states, blocks.previous, said, blocks.label
        )

    def _rows_loss(
        self, state: torch.Tensor, previous: torch.Tensor, said: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        logits = self.conditional.rows(
            state[:, None], previous[:, None, None], self.backbone, self.tokens
        )
        law = target_law(self.tokens, said)
        loss = soft_cross_entropy(law, without(logits[:, 0, 0], self._mask))
        if self.train_backbone:
            loss = loss + _MARGINAL_SHARE * self._cross_entropy(self.backbone.norm(state), label)
        return loss


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"train-drafter: {name} must be at least 1, got {value}")


def without(logits: torch.Tensor, token: int) -> torch.Tensor:
    """Logits with one token impossible."""
    if not 0 <= token < logits.shape[-1]:
        return logits
    column = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    column[token] = True
    return logits.masked_fill(column, -torch.inf)


def mask_token_of(context: TrainingContext) -> int:
    """The tokenizer's mask token, else the first row of the embedding behind the tokenizer's.

    Raises
    ------
    ValueError
        If there is neither.
    """
    mask = getattr(context.tokenizer, "mask_token_id", None)
    if mask is not None:
        return int(mask)
    rows = TokenModules.of_target(context.target).embedding.weight.shape[0]
    known = 0 if context.tokenizer is None else len(context.tokenizer)
    if not 0 < known < rows:
        raise ValueError(
            "train-drafter: the tokenizer has no mask token and the embedding no spare row; give "
            "a token that texts never hold: --option mask_token_id=N"
        )
    return known


def backbone_of(context: TrainingContext) -> DFlashModel:
    """The trained stack that a conditional is put on.

    Raises
    ------
    ValueError
        If there is none, or it has an embedding or head of its own.
    """
    if context.backbone is None:
        raise ValueError(
            "train-drafter: this kind is a module on a trained DFlash drafter; give its folder "
            "with --backbone"
        )
    place = DrafterContext(
        context.target.vocab_size, context.tokenizer, "auto", "auto", context.target
    )
    drafter = load_drafter(context.backbone, place, {"self_test": False})
    if not isinstance(drafter, DFlashDrafter):
        raise ValueError(
            f"train-drafter: --backbone must be a DFlash drafter, got {type(drafter).__name__}"
        )
    lent = TokenModules.of_target(context.target)
    if drafter.tokens.embedding is not lent.embedding or drafter.tokens.head is not lent.head:
        raise ValueError(
            "train-drafter: --backbone must borrow the target's embedding and head, got one with "
            "its own"
        )
    return drafter.model
