# SPDX-License-Identifier: Apache-2.0
"""Static one-pass drafts: the lists of the step-by-step drafters, round after round."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import target_model
from device_backends import ORDERS, use_backend
from drafter_cases import started, states_of
from node_batches import tokens
from test_dflash_drafter import KINDS, VARIANTS
from test_static_round import NoHostReads, move_to_fake_device
from tiny_drafters import tiny_dflash, tiny_medusa, with_every_second_token
from tiny_models import tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode

from treespec.device import CandidateLists
from treespec.drafts.base import DraftSettings
from treespec.static import block, cuda_ops, heads
from treespec.static.block import StaticBlockDrafter
from treespec.static.choice import make_attention
from treespec.static.heads import StaticHeads
from treespec.static.runner import RowStates
from treespec.static.split_attention import SplitAttention
from treespec.targets.hf import HfTarget

TEXTS = [tokens(size, size) for size in (40, 45, 36)]
START = (3, 17, 9)  # positions that are known when the buffers take over
# Committed positions of every sequence in each round, out of ROWS; not all take part in all.
COUNTS = [(1, 4, 2), (3, 1, 4), (4, 2, 3)]
ACTIVE = [(1, 1, 1), (1, 0, 1), (0, 1, 1)]
ROWS, CAPACITY = 4, 80
SETTINGS = DraftSettings(node_budget=16)


def target(dtype: torch.dtype = torch.float64) -> HfTarget:
    return HfTarget(target_model("llama", dtype))


def make_static(
    drafter: Any, settings: DraftSettings = SETTINGS, attention: Any = None
) -> StaticBlockDrafter | StaticHeads:
    if hasattr(drafter, "heads"):
        return StaticHeads(drafter, settings)
    return StaticBlockDrafter(drafter, settings, attention or SplitAttention(32))


class Rounds:
    """Sequences of one drafter twice: step by step, and in static buffers."""

    def __init__(
        self, drafter: Any, settings: DraftSettings = SETTINGS, attention: Any = None
    ) -> None:
        own = target(drafter.tokens.head.weight.dtype)
        self.drafter, self.settings = drafter, settings
        self.attention = attention or SplitAttention(32)
        self.static = make_static(drafter, settings, self.attention)
        self.states = [states_of(own, text, drafter.needs) for text in TEXTS]
        self.length = np.array(START)
        self.sessions = [
            started(drafter, own, text[: n + 1], prompt=2)
            for text, n in zip(TEXTS, START, strict=True)
        ]
        self.context = self.static.make_context(len(TEXTS), CAPACITY)
        for place, session in enumerate(self.sessions):
            self.static.load(self.context, place, session)

    def observe(self, counts: tuple[int, ...], active: tuple[int, ...]) -> None:
        """Commit some positions of the active sequences; rows beyond them are NaN."""
        first, fields = self.length.copy(), ("features", "last_hidden")
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in fields}
        for b, count in enumerate(counts):
            n = int(first[b])
            known = self.states[b].rows(np.arange(n, n + count))
            for name in fields:
                if getattr(known, name) is not None:
                    states = getattr(known, name)
                    rows[name].append(pad_rows(states, ROWS - count))
            if active[b] and count:
                ids = TEXTS[b][n + 1 : n + count + 1]
                self.drafter.observe(self.sessions[b], ids, known)
                self.length[b] += count
        features, hidden = (torch.stack(rows[name]) if rows[name] else None for name in fields)
        self.static.observe(
            self.context, RowStates(features, hidden), ints(first), ints(counts), ints(active)
        )

    def draft(self) -> CandidateLists:
        needed = int(self.length.max()) + self.static.num_slots
        roots = [int(text[n]) for text, n in zip(TEXTS, self.length, strict=True)]
        status = torch.zeros(len(TEXTS), dtype=torch.int32)
        envelope = self.attention.envelope(needed, CAPACITY)
        return self.static.draft(self.context, ints(self.length), ints(roots), envelope, status)

    def expected(self) -> list[Any]:
        sources = self.drafter.draft(self.sessions, self.settings)
        return [source.arrays for source in sources]

    def played(self) -> Any:
        """Lists of every round, and what the step-by-step drafter says."""
        yield self.draft(), self.expected()
        for counts, active in zip(COUNTS, ACTIVE, strict=True):
            self.observe(counts, active)
            yield self.draft(), self.expected()


def pad_rows(states: torch.Tensor, count: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, 0, count), value=torch.nan)


def ints(values: Any) -> torch.Tensor:
    return torch.tensor(np.array(values), dtype=torch.int32)


def assert_same(lists: CandidateLists, expected: list[Any], tolerance: float = 1e-6) -> None:
    for b, (token, logprob, *follow) in enumerate(expected):
        assert lists.token[b].numpy().tolist() == token.tolist()
        assert np.allclose(lists.logprob[b].numpy(), logprob, rtol=0, atol=tolerance)
        if follow:
            assert lists.next[b].numpy().tolist() == follow[0].tolist()
        else:
            assert lists.next is None


def assert_rounds_agree(drafter: Any, settings: DraftSettings = SETTINGS, **options: Any) -> None:
    rounds = Rounds(drafter, settings, **options)
    for lists, expected in rounds.played():
        assert_same(lists, expected)
        static = rounds.static
        shape = (3, static.max_depth, static.num_rows, static.num_candidates)
        assert lists.token.shape == (shape if lists.next is not None else shape[:2] + shape[3:])
    assert rounds.length.tolist() == [7, 23, 18]


# --- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_draft_what_sessions_draft(kind: str | None, variant: dict[str, Any]) -> None:
    assert_rounds_agree(tiny_dflash(target().model, kind, **variant))


@pytest.mark.parametrize("kind", ["treeflash", "pairwise"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_previous": 3, "width": 5},
        {"num_previous": 1, "width": 1},
        {"num_previous": 100, "width": 100},
        {"head_rows": 12},
        {"head_rows": 4, "num_previous": 6},
        {"chain": True},
        {"chain": True, "width": 3, "head_rows": 2},
    ],
    ids=str,
)
def test_options_of_conditionals_keep_their_meaning(kind: str, options: dict[str, Any]) -> None:
    assert_rounds_agree(tiny_dflash(target().model, kind, **options))


def narrowed(kind: str | None, **options: Any) -> Any:
    return with_every_second_token(tiny_dflash(target().model, kind, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reduced_vocabulary_is_mapped(kind: str | None) -> None:
    assert_rounds_agree(narrowed(kind))


@pytest.mark.parametrize("options", [{"chain": True}, {"head_rows": 5}], ids=str)
def test_a_reduced_vocabulary_is_mapped_for_other_heads_too(options: dict[str, Any]) -> None:
    assert_rounds_agree(narrowed("treeflash", **options))


def test_a_mask_of_its_own_stands_in_the_slots() -> None:
    drafter = tiny_dflash(target().model)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drafter.model.mask_embedding = torch.nn.Parameter(vector)
    assert_rounds_agree(drafter)


LAWS = [
    DraftSettings(temperature=0.5, node_budget=16),
    DraftSettings(node_budget=65),
    DraftSettings(node_budget=16, max_depth=2),
    DraftSettings(node_budget=16, max_depth=1),
    DraftSettings(node_budget=200, max_depth=50),
]


@pytest.mark.parametrize("settings", LAWS, ids=str)
@pytest.mark.parametrize("options", [{}, {"head_rows": 12}, {"chain": True}], ids=str)
def test_settings_shape_a_draft(options: dict[str, Any], settings: DraftSettings) -> None:
    assert_rounds_agree(tiny_dflash(target().model, "treeflash", **options), settings)


@pytest.mark.parametrize("settings", [SETTINGS, *LAWS], ids=str)
def test_marginals_of_blocks_and_heads_follow_settings(settings: DraftSettings) -> None:
    assert_rounds_agree(tiny_dflash(target().model), settings)
    assert_rounds_agree(tiny_medusa(target().model), settings)


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_flex_attends_to_blocks_too(variant: dict[str, Any]) -> None:
    attention = make_attention("flex", torch.device("cpu"))
    assert_rounds_agree(tiny_dflash(target().model, **variant), attention=attention)


def test_rows_beyond_the_envelope_are_not_looked_at() -> None:
    rounds = Rounds(tiny_dflash(target().model, windows=(5, None)))
    before = rounds.draft()
    rounds.context.rows[:, :, :, 32:] = torch.nan  # 17 + 6 slots fit in 32
    assert_same(rounds.draft(), [(t.numpy(), p.numpy()) for t, p in zip(*before[:2], strict=True)])
    rounds.context.rows[:, :, :, 16] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        rounds.draft()


# --- contexts -------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Any], Any]] = {
    "dflash": tiny_dflash,
    "treeflash": lambda model: tiny_dflash(model, "treeflash", windows=(5, None)),
    "pairwise": lambda model: tiny_dflash(model, "pairwise", head_rows=12),
    "chain": lambda model: tiny_dflash(model, "treeflash", chain=True),
    "medusa": tiny_medusa,
}
every_kind = pytest.mark.parametrize("name", MAKERS)


def known(rounds: Rounds, b: int) -> torch.Tensor:
    """What is known of the committed positions of a sequence."""
    context = rounds.context
    if isinstance(context, torch.Tensor):
        return context[b].clone()
    return context.rows[:, b, :, : rounds.length[b]].clone()


@every_kind
def test_a_draft_changes_nothing_that_is_known(name: str) -> None:
    rounds = Rounds(MAKERS[name](target().model))
    before = [known(rounds, b) for b in range(3)]
    first, second = rounds.draft(), rounds.draft()
    for one, other in zip(first, second, strict=True):
        assert one is other is None or torch.equal(one, other)
    assert all(torch.equal(known(rounds, b), rows) for b, rows in enumerate(before))


@every_kind
def test_observing_changes_committed_rows_of_active_sequences_alone(name: str) -> None:
    rounds = Rounds(MAKERS[name](target().model))
    buffer = rounds.context if name == "medusa" else rounds.context.rows
    before, address = buffer.clone(), buffer.data_ptr()
    rounds.observe((2, 3, 0), (1, 0, 1))
    changed = buffer != before
    if name == "medusa":
        assert changed.any(1).tolist() == [True, False, False]
    else:
        rows = changed.any((0, 2, 4))
        assert rows.nonzero().tolist() == [[0, 3], [0, 4]]
    assert buffer.isfinite().all() and buffer.data_ptr() == address
    rounds.observe((1, 3, 4), (0, 1, 1))  # who sat out goes on
    assert_same(rounds.draft(), rounds.expected())


def test_a_context_takes_over_shorter_sequences_later() -> None:
    rounds = Rounds(tiny_dflash(target().model))
    for _ in rounds.played():
        pass
    own = target()
    for b, n in enumerate((5, 2, 11)):
        rounds.sessions[b] = started(rounds.drafter, own, TEXTS[b][: n + 1])
        rounds.static.load(rounds.context, b, rounds.sessions[b])
        rounds.length[b] = n
    assert_same(rounds.draft(), rounds.expected())


# --- devices --------------------------------------------------------------------------------------


@every_kind
def test_nothing_is_read_on_the_host(name: str) -> None:
    rounds = Rounds(MAKERS[name](target().model))
    length, root, active = ints(rounds.length), ints([5, 6, 7]), ints([1, 0, 1])
    states = RowStates(torch.zeros(3, ROWS, 64).double(), torch.zeros(3, ROWS, 32).double())
    with NoHostReads():
        rounds.static.observe(rounds.context, states, length, active, active)
        rounds.static.draft(rounds.context, length, root, 64, 0 * length)


def to_fake_device(drafter: Any) -> None:
    modules = [drafter.tokens.embedding, drafter.tokens.head]
    modules += [getattr(drafter, name, None) for name in ("model", "conditional", "heads")]
    for module in modules:
        if module is not None:
            move_to_fake_device(module)
    table = getattr(getattr(drafter, "vocabulary", None), "_target_ids", None)
    if table is not None:  # stays on the CPU
        drafter.vocabulary._target_ids = torch.empty(table.shape, dtype=table.dtype)


FAKE_MAKERS = {
    **MAKERS,
    "reduced": lambda model: with_every_second_token(tiny_dflash(model)),
    "reduced treeflash": lambda model: with_every_second_token(tiny_dflash(model, "treeflash")),
}


@pytest.mark.parametrize("name", FAKE_MAKERS)
def test_observing_and_drafting_stay_on_their_device(name: str) -> None:
    drafter = FAKE_MAKERS[name](tiny_model("llama"))
    with FakeTensorMode():
        to_fake_device(drafter)
        static = make_static(drafter)
        context = static.make_context(2, CAPACITY)
        column = torch.zeros(2, dtype=torch.int32, device="meta")
        rows = [torch.zeros(2, ROWS, width, device="meta") for width in (64, 32)]
        with NoHostReads():
            static.observe(context, RowStates(*rows), column, column, column)
            lists = static.draft(context, column, column, 64, column)
        assert {part.device.type for part in lists if part is not None} == {"meta"}


@pytest.mark.parametrize("order", ORDERS)
@every_kind
def test_lists_have_the_bits_of_the_core(
    name: str, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = Rounds(MAKERS[name](target(torch.float32).model))
    expected = [rounds.draft()]
    rounds.observe(COUNTS[0], ACTIVE[0])
    expected.append(rounds.draft())
    use_backend(order, monkeypatch)
    names = ("rank_candidates", "link_transitions")
    ops = SimpleNamespace(**{name: getattr(cuda_ops, name) for name in names})
    for module in (block, heads):
        monkeypatch.setattr(module, "OPS", ops)
    again = Rounds(rounds.drafter)
    ours = [again.draft()]
    again.observe(COUNTS[0], ACTIVE[0])
    ours.append(again.draft())
    for lists, others in zip(ours, expected, strict=True):
        for one, other in zip(lists, others, strict=True):
            assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_kind
def test_narrow_models_draft_in_their_own_dtype(name: str, dtype: torch.dtype) -> None:
    rounds = Rounds(MAKERS[name](target(dtype).model))
    for lists, expected in rounds.played():
        for b, arrays in enumerate(expected):
            best = lists.logprob[b, 0].flatten()[:1]
            assert torch.allclose(best, torch.from_numpy(arrays[1][0]).flatten()[:1], atol=0.1)


@pytest.mark.parametrize("make", [tiny_dflash, tiny_medusa])
def test_drafters_may_be_narrower_than_their_target(make: Any) -> None:
    drafter = make(target().model)
    (drafter.heads if make is tiny_medusa else drafter.model).float()
    rounds = Rounds(drafter)
    for lists, expected in rounds.played():
        for b, (_, logprob) in enumerate(expected):
            assert np.allclose(lists.logprob[b].numpy(), logprob, rtol=0, atol=1e-4)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_dflash, tiny_medusa])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DraftSettings(top_k=5), "top_k of a draft must be 0, got 5"),
        (DraftSettings(top_p=0.9), r"top_p of a draft must be 1.0, got 0.9"),
    ],
)
def test_other_draft_laws_are_refused(make: Any, settings: DraftSettings, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        make_static(make(target().model), settings)


def test_rotations_that_depend_on_the_length_are_refused() -> None:
    drafter = tiny_dflash(target().model)
    drafter.model.rotary.rope_type = "dynamic"
    with pytest.raises(NotImplementedError, match="rotation of the drafter depends on the length"):
        make_static(drafter)


def test_what_does_not_fit_is_refused() -> None:
    rounds = Rounds(tiny_dflash(target().model))
    with pytest.raises(ValueError, match="capacity must be at least 17, got 16"):
        rounds.static.load(rounds.static.make_context(3, 16), 1, rounds.sessions[1])


@pytest.mark.parametrize(("name", "field"), [("dflash", "features"), ("medusa", "last_hidden")])
def test_states_must_be_those_that_are_needed(name: str, field: str) -> None:
    rounds = Rounds(MAKERS[name](target().model))
    with pytest.raises(ValueError, match=f"states must hold .*{field}.* got none"):
        rounds.static.observe(
            rounds.context, RowStates(None, None), ints(START), ints(START), ints(START)
        )
