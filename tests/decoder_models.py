# SPDX-License-Identifier: Apache-2.0
"""Pairs of models for tests of the decoder: tiny random ones, and tables without any network."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from drafter_cases import states_of
from support import modes_of
from tiny_drafters import TINY_DRAFTERS
from tiny_models import tiny_model

import treespec
from treespec import _core
from treespec.drafts import DRAFTERS, DrafterContext
from treespec.drafts.base import DraftSettings
from treespec.growth import source_kind
from treespec.targets.base import Needs, TargetStates
from treespec.targets.hf import load_target

# Every builder with every proposal mode it offers.
BUILDS = [(name, mode) for name in treespec.builder_names() for mode in modes_of(name)]
BUILD_IDS = ["-".join([name, *mode.values()]) for name, mode in BUILDS]

# The others draft from the demo target's states: test_demo_drafters.py.
FOR_ANY_TARGET = [name for name in treespec.drafter_names() if not name.startswith("demo:")]
# Every name of the registry, a model object, and kinds that fit no target but their own.
DRAFTER_NAMES = [
    *FOR_ANY_TARGET,
    "tiny",
    *TINY_DRAFTERS,
]


@functools.cache
def target_model(name: str, dtype: torch.dtype = torch.float64, **overrides: Any) -> Any:
    return tiny_model(name, dtype, **overrides)


@functools.cache
def draft_model(name: str, dtype: torch.dtype = torch.float64, **overrides: Any) -> Any:
    """The target with noise on its weights: right often enough to be accepted, never always."""
    model = tiny_model(name, dtype, **overrides)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((0.01 * noise).to(dtype))
    return model


@functools.cache
def drafter_object(name: str, architecture: str = "llama") -> Any:
    """A drafter for the tiny float64 targets."""
    model = draft_model(architecture)
    context = DrafterContext(model.config.vocab_size, None, "cpu", torch.float64)
    if name in TINY_DRAFTERS:
        return TINY_DRAFTERS[name](target_model(architecture))
    if name in DRAFTERS:
        return DRAFTERS[name].make(context, {})
    return treespec.load(model, model, device="cpu").drafter


def reads(builder: str, drafter: Any) -> bool:
    """Whether a builder reads what a drafter drafts."""
    prompt = np.array([3, 4, 5, 3], np.int32)
    states = None
    if drafter.needs != Needs():
        states = states_of(load_target(target_model("llama")), prompt, drafter.needs)
    session = drafter.begin(prompt, states, 64)
    drafter.observe(session, np.array([4], np.int32), None)
    (source,) = drafter.draft([session], DraftSettings(max_depth=2, node_budget=4))
    try:
        _core.TreeBuilder(builder).check_source_kind(source_kind(source))
    except ValueError:
        return False
    finally:
        drafter.end(session)
    return True


@functools.cache
def builders_for(drafter: str) -> tuple[str, ...]:
    """Names of the builders that read what a drafter drafts."""
    own = drafter_object(drafter)
    return tuple(name for name in treespec.builder_names() if reads(name, own))


@functools.cache
def pairs() -> tuple[Any, ...]:
    """(builder, its options, drafter name) for all pairs that fit."""
    return tuple(
        (builder, mode, drafter)
        for builder, mode in BUILDS
        for drafter in DRAFTER_NAMES
        if builder in builders_for(drafter)
    )


@functools.cache
def pairs_by_kind() -> tuple[Any, ...]:
    """Of `pairs`, one per builder, mode and kind of source: drafters of a kind take turns."""
    chosen: list[Any] = []
    for place, (builder, mode) in enumerate(BUILDS):
        by_kind: dict[str, list[Any]] = {}
        for pair in pairs():
            if pair[:2] == (builder, mode):
                by_kind.setdefault(drafter_object(pair[2]).source_kind, []).append(pair)
        chosen += [of_kind[place % len(of_kind)] for of_kind in by_kind.values()]
    return tuple(chosen)


def pair_id(value: Any) -> str:
    builder, mode, drafter = value
    return "-".join([builder, *mode.values(), drafter])


class TableTarget:
    """A target that looks its logits up by the last two tokens and the position's remainder."""

    supports_trees = True
    max_context: int | None = None
    device = torch.device("cpu")
    period = 5

    def __init__(self, vocab_size: int, seed: int = 0, scale: float = 2.0) -> None:
        self.vocab_size = vocab_size
        self.eos_ids: tuple[int, ...] = ()
        shape = (self.period, vocab_size, vocab_size, vocab_size)
        self.table = np.random.default_rng(seed).normal(scale=scale, size=shape)
        self.open_sequences = 0

    def row(self, text: Sequence[int]) -> Any:
        before = text[-2] if len(text) > 1 else 0
        return self.table[len(text) % self.period, before, text[-1]]

    def open(self, capacity: int) -> list[int]:
        self.open_sequences += 1
        return []

    def prefill(self, sequences: Any, token_ids: Any, needs: Needs) -> Any:
        for sequence, ids in zip(sequences, token_ids, strict=True):
            sequence.extend(ids.tolist())
        rows = [torch.from_numpy(self.row(sequence).copy()) for sequence in sequences]
        return rows, [TargetStates() for _ in sequences]

    def forward(self, sequences: Any, trees: Any, needs: Needs) -> Any:
        self.trees = trees
        logits = []
        for sequence, tree in zip(sequences, trees, strict=True):
            texts: list[list[int]] = []
            for token, parent in zip(tree.token.tolist(), tree.parent.tolist(), strict=True):
                texts.append([*(texts[parent] if parent >= 0 else sequence), token])
            logits.append(torch.from_numpy(np.stack([self.row(text) for text in texts])))
        return logits, [TargetStates() for _ in sequences]

    def commit(self, sequences: Any, accepted: Any) -> None:
        for sequence, tree, nodes in zip(sequences, self.trees, accepted, strict=True):
            sequence.extend(tree.token[nodes].tolist())

    def close(self, sequence: list[int]) -> None:
        self.open_sequences -= 1


class TableDrafter:
    """Drafts from a noisy copy of a `TableTarget`."""

    needs = Needs()
    source_kind = "Expander"

    def __init__(self, target: TableTarget, seed: int = 1, noise: float = 1.0) -> None:
        self.period = target.period
        rng = np.random.default_rng(seed)
        self.table = target.table + rng.normal(scale=noise, size=target.table.shape)
        self.open_sessions = 0

    row = TableTarget.row

    def begin(self, prompt_ids: Any, states: Any, capacity: int) -> list[int]:
        self.open_sessions += 1
        return prompt_ids.tolist()

    def draft(self, sessions: Any, settings: DraftSettings) -> list[Any]:
        return [_TableExpander(self, list(session), settings) for session in sessions]

    def observe(self, session: list[int], token_ids: Any, states: Any) -> None:
        session.extend(token_ids.tolist())

    def end(self, session: list[int]) -> None:
        self.open_sessions -= 1


class _TableExpander:
    def __init__(self, drafter: TableDrafter, text: list[int], settings: DraftSettings) -> None:
        self.drafter, self.settings = drafter, settings
        self.texts = {0: text}

    def expand(self, nodes: Any) -> Any:
        for node in nodes:
            if node.index:
                self.texts[node.index] = [*self.texts[node.parent], node.token]
        rows = np.stack([self.drafter.row(self.texts[node.index]) for node in nodes])
        scaled = torch.from_numpy(rows) / self.settings.temperature
        return torch.log_softmax(scaled, dim=-1).float()


class ByteTokenizer:
    """Tokens that are pieces of UTF-8, also halves of characters; id 0 is a special token."""

    pieces = (
        b"",
        *(b"a", b"b", b"ab", b"ba", b" ", b"\n", b"STO", b"P", b"x\xc3"),
        *(b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\x98", b"\x80"),
    )

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.pieces.index(character.encode()) for character in text]}

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        data = b"".join(self.pieces[int(token)] for token in token_ids)
        return data.decode("utf-8", errors="replace")


def table_pair(seed: int = 0, vocab_size: int = len(ByteTokenizer.pieces), noise: float = 0.5):
    target = TableTarget(vocab_size, seed)
    return target, TableDrafter(target, seed + 1, noise)
