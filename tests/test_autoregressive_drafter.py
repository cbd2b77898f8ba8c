# SPDX-License-Identifier: Apache-2.0
"""The autoregressive drafter: rows equal path-wise recomputation, and drafting leaves no trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from node_batches import CALLS, PARENT, batch, expand_all, path_to, tokens
from tiny_models import VOCAB_SIZE, tiny_model

from treespec.drafts.autoregressive import (
    AutoregressiveDrafter,
    AutoregressiveSession,
    check_same_tokens,
)
from treespec.drafts.base import DraftSettings
from treespec.drafts.candidates import draft_log_probs
from treespec.drafts.expander import TreeExpander

SETTINGS = DraftSettings()


def started(
    drafter: AutoregressiveDrafter, committed: npt.NDArray[np.int32], capacity: int = 64
) -> AutoregressiveSession:
    session = drafter.begin(committed[:-1], None, capacity)
    drafter.observe(session, committed[-1:], None)
    return session


def plain_rows(
    model: Any, committed: npt.NDArray[np.int32], ids: npt.NDArray[np.int32]
) -> torch.Tensor:
    """Log-softmax of one cache-free forward per path, for all nodes of `CALLS`."""
    rows = []
    for node in range(len(PARENT)):
        context = [*committed, *ids[path_to(node)[1:]]]
        with torch.inference_mode():
            rows.append(model(torch.tensor([list(map(int, context))])).logits[0, -1])
    return torch.log_softmax(torch.stack(rows), dim=-1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral_window", "gemma2", "qwen3_window"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_equal_path_wise_recomputation(name: str, dtype: torch.dtype) -> None:
    model = tiny_model(name, dtype)
    if name == "gemma2":
        model.set_attn_implementation("eager")
    drafter = AutoregressiveDrafter(model, VOCAB_SIZE)
    committed, ids = tokens(15), tokens(len(PARENT), 1)
    ids[0] = committed[-1]
    (expander,) = drafter.draft([started(drafter, committed)], SETTINGS)
    rows = expand_all(expander, ids)
    tolerance = 1e-10 if dtype == torch.float64 and name != "gemma2" else 2e-5
    assert rows.dtype == dtype and rows.shape == (len(PARENT), VOCAB_SIZE)
    assert torch.allclose(rows, plain_rows(model, committed, ids), rtol=0, atol=tolerance)


def test_half_precision_models_give_float32_rows() -> None:
    drafter = AutoregressiveDrafter(tiny_model("llama", torch.bfloat16), VOCAB_SIZE)
    (expander,) = drafter.draft([started(drafter, tokens(5))], SETTINGS)
    row = expander.expand(batch([0], tokens(9)))
    assert row.dtype == torch.float32
    assert torch.allclose(row.exp().sum(-1), torch.ones(1), atol=1e-5)


def test_drafting_twice_gives_the_same_and_leaves_no_trace() -> None:
    drafter = AutoregressiveDrafter(tiny_model("llama"), VOCAB_SIZE)
    committed, ids = tokens(15), tokens(len(PARENT), 1)
    session = started(drafter, committed)
    results = []
    for _ in range(3):
        (expander,) = drafter.draft([session], SETTINGS)
        results.append(expand_all(expander, ids))
        assert session.sequence.length == len(committed)
        drafter.draft([session], SETTINGS)[0].expand(batch([0], ids))  # an unfinished round
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_what_is_observed_counts_not_how_it_is_split() -> None:
    model = tiny_model("llama", torch.float64)
    committed, ids = tokens(20), tokens(len(PARENT), 1)
    ids[0] = committed[-1]
    expected = plain_rows(model, committed, ids)
    for cuts in ([5, 6], [5, 6, 9, 20], [5, 6, 7, 8, 19], [1, 12]):
        drafter = AutoregressiveDrafter(model, VOCAB_SIZE)
        session = drafter.begin(committed[: cuts[0]], None, 64)
        for begin, end in zip(cuts, [*cuts[1:], 20], strict=True):
            drafter.observe(session, committed[begin:end], None)
            (expander,) = drafter.draft([session], SETTINGS)
            expand_all(expander, tokens(len(PARENT), begin))  # other speculation in between
        (expander,) = drafter.draft([session], SETTINGS)
        assert torch.allclose(expand_all(expander, ids), expected, rtol=0, atol=1e-10)


def test_several_trees_grow_in_lock_step() -> None:
    model = tiny_model("gemma3", torch.float64)
    drafter = AutoregressiveDrafter(model, VOCAB_SIZE)
    contexts = [tokens(size, size) for size in (4, 17, 9)]
    drafts = [tokens(len(PARENT), 30 + size) for size in range(3)]
    sessions = [started(drafter, context) for context in contexts]
    expanders = drafter.draft(sessions, SETTINGS)
    parts: list[list[torch.Tensor]] = [[], [], []]
    for call in CALLS:
        calls = [call, call, call if call != [6] else []]  # a batch may be empty, a tree may end
        if call == [7, 8]:
            calls[2] = [8]
        nodes = [batch(index, ids) for index, ids in zip(calls, drafts, strict=True)]
        for part, rows in zip(parts, TreeExpander.expand_together(expanders, nodes), strict=True):
            part.append(rows)
    for context, ids, part in zip(contexts[:2], drafts[:2], parts[:2], strict=True):
        assert torch.allclose(torch.cat(part), plain_rows(model, context, ids), rtol=0, atol=1e-10)
    expected = plain_rows(model, contexts[2], drafts[2])[[0, 1, 2, 3, 4, 5, 8]]
    assert torch.allclose(torch.cat(parts[2]), expected, rtol=0, atol=1e-10)


def test_one_forward_per_level_serves_all_sequences() -> None:
    drafter = AutoregressiveDrafter(tiny_model("llama"), VOCAB_SIZE)
    calls: list[int] = []
    drafter._runner.view.register_forward_pre_hook(lambda *_: calls.append(1))
    sessions = [started(drafter, tokens(size)) for size in (5, 8)]
    expanders = drafter.draft(sessions, SETTINGS)
    ids = tokens(len(PARENT))
    for call in ([0], [1, 2], [4]):
        TreeExpander.expand_together(expanders, [batch(call, ids), batch(call, ids)])
    assert len(calls) == 3


def test_a_node_may_be_handed_over_again() -> None:
    drafter = AutoregressiveDrafter(tiny_model("llama", torch.float64), VOCAB_SIZE)
    (expander,) = drafter.draft([started(drafter, tokens(6))], SETTINGS)
    ids = tokens(len(PARENT), 1)
    rows = expand_all(expander, ids)
    again = expander.expand(batch([4, 0, 8], ids))
    assert torch.allclose(again, rows[[4, 0, 8]], rtol=0, atol=1e-12)


def test_sequences_grow_when_a_builder_expands_more_than_planned() -> None:
    model = tiny_model("llama", torch.float64)
    drafter = AutoregressiveDrafter(model, VOCAB_SIZE)
    committed, ids = tokens(15), tokens(len(PARENT), 1)
    (expander,) = drafter.draft([started(drafter, committed, capacity=15)], SETTINGS)
    expected = plain_rows(model, committed, ids)
    assert torch.allclose(expand_all(expander, ids), expected, rtol=0, atol=1e-10)


def test_an_old_expander_is_refused() -> None:
    drafter = AutoregressiveDrafter(tiny_model("llama"), VOCAB_SIZE)
    session = started(drafter, tokens(5))
    (old,) = drafter.draft([session], SETTINGS)
    drafter.draft([session], SETTINGS)
    with pytest.raises(RuntimeError, match="this round is over"):
        old.expand(batch([0], tokens(9)))


def test_a_node_before_its_parent_is_refused() -> None:
    drafter = AutoregressiveDrafter(tiny_model("llama"), VOCAB_SIZE)
    (expander,) = drafter.draft([started(drafter, tokens(5))], SETTINGS)
    expander.expand(batch([0], tokens(9)))
    with pytest.raises(ValueError, match="parent 1 must be expanded"):
        expander.expand(batch([4], tokens(9)))


@pytest.mark.parametrize("draft_size", [56, 80])
def test_a_padded_vocabulary_is_cut_or_extended_before_the_softmax(draft_size: int) -> None:
    model = tiny_model("llama", torch.float64, vocab_size=draft_size)
    drafter = AutoregressiveDrafter(model, VOCAB_SIZE)
    common = min(draft_size, VOCAB_SIZE)
    committed, ids = tokens(9, high=common), tokens(len(PARENT), 1, high=common)
    (expander,) = drafter.draft([started(drafter, committed)], SETTINGS)
    rows = expand_all(expander, ids)
    raw = plain_rows(model, committed, ids)[:, :common]
    expected = torch.log_softmax(raw, dim=-1)
    assert rows.shape == (len(PARENT), VOCAB_SIZE)
    assert torch.allclose(rows[:, :common], expected, rtol=0, atol=1e-10)
    assert (rows[:, common:] == -torch.inf).all()


def test_tokens_the_drafter_cannot_embed_do_no_harm() -> None:
    drafter = AutoregressiveDrafter(tiny_model("llama", vocab_size=32), VOCAB_SIZE)
    (expander,) = drafter.draft([started(drafter, np.array([5, 60, 63]))], SETTINGS)
    assert expand_all(expander, np.full(len(PARENT), 50, dtype=np.int32)).isfinite()[:, :32].all()


def test_truncation_is_hugging_faces() -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(6, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    logits[:, 7] = logits[:, 9]  # ties
    for top_k, top_p, temperature in ((0, 1.0, 0.7), (5, 1.0, 1.0), (0, 0.6, 1.3), (20, 0.8, 0.5)):
        expected = TemperatureLogitsWarper(temperature)(None, logits)
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        settings = DraftSettings(temperature=temperature, top_k=top_k, top_p=top_p)
        rows = draft_log_probs(logits, VOCAB_SIZE, settings)
        assert torch.equal(rows, torch.log_softmax(expected, dim=-1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DraftSettings(**fields)


class Tokenizer:
    """As much of a tokenizer as the drafter asks for."""

    def __init__(self, names: str) -> None:
        self.names = names

    def get_vocab(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}


def test_another_tokenizer_is_refused() -> None:
    model = tiny_model("llama")
    ours = Tokenizer("abcd")
    AutoregressiveDrafter(model, VOCAB_SIZE, tokenizer=ours, target_tokenizer=Tokenizer("abcdef"))
    with pytest.raises(ValueError, match="id 1 is 'b' in the drafter and 'x' in the target"):
        AutoregressiveDrafter(model, VOCAB_SIZE, tokenizer=ours, target_tokenizer=Tokenizer("axcd"))
    with pytest.raises(ValueError, match="no token id in common"):
        check_same_tokens({"a": 0}, {"b": 1})


def test_a_drafter_that_cannot_fork_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="cannot fork"):
        AutoregressiveDrafter(tiny_model("mamba"), VOCAB_SIZE)


def test_an_ended_session_holds_no_rows() -> None:
    drafter = AutoregressiveDrafter(tiny_model("llama"), VOCAB_SIZE)
    session = started(drafter, tokens(5))
    drafter.draft([session], SETTINGS)
    drafter.end(session)
    assert not session.sequence._layers and session.sequence.length == 0
