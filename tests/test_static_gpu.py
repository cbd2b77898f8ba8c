# SPDX-License-Identifier: Apache-2.0
"""Static forwards, captures and whole generations on a GPU, against the CPU and step by step."""

from __future__ import annotations

import copy
import logging
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import draft_model, target_model
from static_models import padded_tokens, plain_attention, row_mask, static_kv
from tiny_drafters import TINY_DRAFTERS
from tiny_models import tiny_model
from tiny_trees import tokens, tree_rows

import treespec
from treespec import _core
from treespec.static.attention import RowMask
from treespec.static.capture import CapturedRound, CaptureStatus, Mailbox
from treespec.static.choice import ATTENTION_NAMES, make_attention
from treespec.static.runner import StaticRunner
from treespec.targets.hf_attention import ScoreRule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

CUDA = torch.device("cuda")
ROWS, CAPACITY = 11, 512
needs_device_functions = pytest.mark.skipif(
    not _core.cuda_built(), reason="the extension was built without CUDA"
)


def on_gpu(mask: RowMask) -> RowMask:
    tensors = (mask.prefix, mask.bits, mask.positions, mask.slot_positions)
    return RowMask(*(tensor.to(CUDA) for tensor in tensors), mask.envelope)


@pytest.mark.parametrize("rule", [{}, {"window": 40}, {"softcap": 3.0}, {"sinks": torch.zeros(4)}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("name", ATTENTION_NAMES)
def test_attention_is_plain_masked_attention(
    name: str, dtype: torch.dtype, tolerance: float, rule: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, rows, 64, generator=generator).to(dtype)
        for heads, rows in ((4, ROWS), (2, CAPACITY), (2, CAPACITY))
    )
    mask = row_mask([5, 300], [tree_rows(1), tree_rows(2)], ROWS, CAPACITY)
    wide = (query.double(), key.double(), value.double())
    expected = plain_attention(*wide, mask, ScoreRule(0.125, **rule))
    own = ScoreRule(
        0.125, **{k: v.to(CUDA) if isinstance(v, torch.Tensor) else v for k, v in rule.items()}
    )
    attention = make_attention(name, CUDA)
    with torch.inference_mode():
        gpu = (query.to(CUDA), key.to(CUDA), value.to(CUDA))
        output = attention(*gpu, on_gpu(mask), own)
    assert torch.allclose(output.cpu().double(), expected, rtol=0, atol=tolerance)


class Forward:
    """A target forward over two trees as a round that can be captured: buffers, nothing read."""

    def __init__(self, name: str, attention: str) -> None:
        model = tiny_model(name).to(CUDA)
        self.trees = [tree_rows(1), tree_rows(2)]
        self.runner = StaticRunner(model, make_attention(attention, CUDA))
        self.kv = static_kv(model, [tokens(20), tokens(7)], CAPACITY)
        self.mask = on_gpu(row_mask([20, 7], self.trees, ROWS, CAPACITY))
        self.tokens = padded_tokens(self.trees, ROWS).to(CUDA)
        self.logits = torch.zeros(2, ROWS, 64, device=CUDA)
        self.status = CaptureStatus()
        self.captured = CapturedRound(self.play, nullcontext, CUDA, self.status)
        self.mailbox = Mailbox(self.logits)

    def play(self) -> None:
        mask = self.mask
        fresh = RowMask(mask.prefix, mask.bits, mask.positions, mask.slot_positions, mask.envelope)
        self.logits.copy_(self.runner.forward(self.kv, self.tokens, fresh))


@pytest.mark.parametrize("attention", ATTENTION_NAMES)
@pytest.mark.parametrize("name", ["llama", "mistral_window", "gpt2"])
def test_a_captured_forward_follows_tokens_and_lengths(name: str, attention: str) -> None:
    forward = Forward(name, attention)
    forward.captured.run()
    forward.tokens.add_(1)
    forward.mask.prefix.sub_(1)
    forward.mask.positions.sub_(1)  # the slots' positions are the same tensor
    forward.mask.slot_positions.copy_(forward.mask.positions)
    forward.captured.run()
    replayed = forward.mailbox.fetch().copy()
    assert forward.captured.num_graphs == 1
    with torch.inference_mode():
        forward.play()
    assert np.allclose(replayed, forward.mailbox.fetch(), rtol=0, atol=1e-5)


def test_a_model_that_reads_on_the_host_is_played(caplog: Any) -> None:
    forward = Forward("mixtral", "split")
    with caplog.at_level(logging.WARNING, "treespec"):
        forward.captured.run()
        first = forward.mailbox.fetch().copy()
        forward.captured.run()
    assert forward.status.reason is not None and forward.captured.num_graphs == 0
    assert len(caplog.messages) == 1
    assert np.array_equal(first, forward.mailbox.fetch())


def loaded(drafter: Any, build: tuple[str, dict[str, Any]], **options: Any) -> list[Any]:
    """A decoder with graphs and one without, over the same weights."""
    target = copy.deepcopy(target_model("llama")).to(CUDA)
    made = []
    for graph in ("auto", False):
        how = {"builder": build[0], "builder_options": build[1], "graph": graph}
        made.append(treespec.load(target, drafter(target), **how, **(options if graph else {})))
    assert made[0].graph is not None
    return made


def language_model(target: Any) -> Any:
    return copy.deepcopy(draft_model("llama")).to(CUDA)


def check_texts(made: list[Any], temperature: float, count: int = 100) -> None:
    prompts = [tokens(n, n).tolist() for n in (3, 21, 9)]
    options = {"max_new_tokens": count, "ignore_eos": True, "temperature": temperature}
    own, stepped = ([r.token_ids for r in one.generate(prompts, **options)] for one in made)
    assert own == stepped
    assert made[0].graph.status.reason is None


BUILDS = [
    ("chain", {}),
    ("kary", {}),
    ("sequoia", {}),
    ("eagle2", {}),
    ("opt_tree", {}),
    ("opt_tree", {"threshold": 0.4}),  # in parts
]
DRAWN = [
    ("kary", {"expansion": [2, 2], "proposal": "iid"}),
    ("sequoia", {"proposal": "without_replacement"}),
    ("top_plus_one", {}),
    ("delayed", {}),
    ("dyspec", {"max_depth": 8}),
]


@needs_device_functions
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_captured_texts_are_those_of_the_step_by_step_decoder(
    build: Any, temperature: float
) -> None:
    check_texts(loaded(language_model, build), temperature)


@needs_device_functions
@pytest.mark.parametrize("build", DRAWN, ids=str)
def test_captured_texts_of_drawn_trees_too(build: Any) -> None:
    """Greedy, or drawn from the target at each position: a function of the text alone."""
    check_texts(loaded(language_model, build), 0.0)
    target, drafter = (
        copy.deepcopy(m).to(CUDA) for m in (target_model("llama"), draft_model("llama"))
    )
    how = {"builder": build[0], "builder_options": build[1], "verifier": "target_only"}
    check_texts([treespec.load(target, drafter, **how, graph=g) for g in ("auto", False)], 0.8)
    made = treespec.load(target, drafter, builder=build[0], builder_options=build[1], graph="auto")
    stats = made.generate(tokens(9, 9).tolist(), temperature=0.8, max_new_tokens=60).stats
    assert stats.accepted > 0 and made.graph.status.reason is None


@needs_device_functions
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["dflash", "treeflash", "pairwise", "medusa"])
def test_captured_texts_of_drafters_of_one_pass_too(kind: str, temperature: float) -> None:
    check_texts(loaded(TINY_DRAFTERS[f"tiny {kind}"], ("dtree", {})), temperature)


def no_like_residue(ids: Any) -> Any:
    return np.arange(64) % 3 != ids[-1] % 3


@needs_device_functions
@pytest.mark.parametrize("build", [("eagle2", {}), ("opt_tree", {"threshold": 0.4})], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {"logit_bias": {3: 1.0, 9: -2.0, 40: 1.5}},
        {"allowed_tokens": no_like_residue},
        {"logit_bias": {7: 2.0}, "allowed_tokens": no_like_residue, "temperature": 0.8},
        {},
    ],
    ids=["biases", "grammar", "both", "neither"],
)
def test_captured_rounds_with_biases_grammars_and_listeners(changes: Any, build: Any) -> None:
    """Over several envelopes, twice, so that graphs of small ones follow those of large ones."""
    own, stepped = loaded(language_model, build)
    prompts = [tokens(n, n).tolist() for n in (3, 21, 9)]
    options = {"max_new_tokens": 300, "ignore_eos": True, **changes}
    expected = [result.token_ids for result in stepped.generate(prompts, **options)]
    told: list[Any] = []
    for listener in (None, told.append, told.append):
        told.clear()
        found = own.generate(prompts, **options, on_round=listener)
        assert [result.token_ids for result in found] == expected
    assert own.graph.status.reason is None
    for record in told:
        text = [*prompts[record.sequence], *expected[record.sequence]]
        after = text[record.position + 1 :]
        assert record.tree.token[0] == text[record.position]
        assert record.verdict.tokens.tolist()[: len(after)] == after[: len(record.verdict.tokens)]
    assert sum(record.verdict.num_accepted for record in told) > 0


@needs_device_functions
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_captured_texts_of_eagle3_too(build: Any, temperature: float) -> None:
    check_texts(loaded(TINY_DRAFTERS["tiny eagle3"], build), temperature)


@needs_device_functions
def test_compiled_models_are_captured() -> None:
    build = ("chain", {"max_depth": 2})
    check_texts(loaded(language_model, build, compile=True), 0.0, 40)
    check_texts(loaded(TINY_DRAFTERS["tiny eagle3"], build, compile=True), 0.0, 40)
