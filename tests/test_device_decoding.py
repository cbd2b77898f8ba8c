# SPDX-License-Identifier: Apache-2.0
"""A decoder whose logits are on a device verifies them there, and gives the texts of the host's.

The device is the host emulation; what stays on the host is a copy that the tests count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import TableTarget, draft_model, target_model
from device_backends import ORDERS, use_backend
from tiny_drafters import tiny_eagle3

import treespec
from treespec import _core, growth, testing, verification
from treespec.config import SamplingParams
from treespec.decoder import SpeculativeDecoder
from treespec.device import host_rows
from treespec.device.transfers import to_device
from treespec.drafts import autoregressive, candidates, eagle3
from treespec.drafts.base import DraftSettings
from treespec.generation import Generation
from treespec.verification import Case, verify_cases

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VOCAB = 40


@pytest.fixture(params=ORDERS, ids=lambda order: f"emulation-{order}")
def to_emulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """From the call on, host tensors pass for tensors on a device; lists what is copied off it."""

    def use() -> list[Any]:
        copied: list[Any] = []

        def copy(logits: Any) -> Any:
            copied.append(logits)
            return logits

        use_backend(request.param, monkeypatch)
        monkeypatch.setattr(verification, "on_gpu", lambda logits: True)
        monkeypatch.setattr(verification, "in_host_memory", copy)
        return copied

    return use


def even_after_odd(text: Any) -> Any:
    return np.arange(VOCAB) % 2 != text[-1] % 2


PARAMS = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 1e-6, "logit_bias": {3: 2.0, 7: -1.0}},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.3, "repetition_penalty": 1.3, "presence_penalty": 0.4},
    {"temperature": 0.0, "frequency_penalty": 0.5, "logit_bias": {0: 1.0}},
    {"temperature": 1.0, "allowed_tokens": even_after_odd, "repetition_penalty": 0.8},
]


def random_case(rng: Any, dtype: torch.dtype, verifier: str, place: int = 0) -> Case:
    """A tree of random size at a random point of a text; the target likes what was drafted."""
    params = SamplingParams(
        **PARAMS[int(rng.integers(len(PARAMS)))], seed=int(rng.integers(2**64, dtype=np.uint64))
    )
    text = rng.integers(0, VOCAB, int(rng.integers(1, 12))).astype(np.int32)
    g = Generation(place, text[:3], params, int(rng.integers(2**32)), None, ())
    g.append(text[3:])
    size = int(rng.integers(1, 30))
    tree = testing.core_tree(
        testing.random_tree(rng, num_nodes=size, vocab_size=VOCAB, max_children=3)
    )
    logits = torch.tensor(rng.normal(0, 2, (size, VOCAB)))
    logits[tree.parent[1:], tree.token[1:]] += 4
    return Case.of(g, tree, logits.to(dtype), verifier, verifier == "typical")


def same(ours: Any, expected: Any) -> bool:
    return bool(
        ours.accepted_nodes.tolist() == expected.accepted_nodes.tolist()
        and ours.tokens.tolist() == expected.tokens.tolist()
        and ours.next_token == expected.next_token
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_verdicts_equal_those_of_the_host(rng: Any, dtype: torch.dtype, to_emulation: Any) -> None:
    accepted, copies = 0, to_emulation()
    for _ in range(40):
        verifiers = rng.choice(["auto", "target_only", "typical"], int(rng.integers(1, 5)))
        cases = [random_case(rng, dtype, str(v), place) for place, v in enumerate(verifiers)]
        for ours, case in zip(verify_cases(cases), cases, strict=True):
            expected = verification.verify_on_host(case)
            assert same(ours, expected)
            accepted += ours.num_accepted
        assert not copies
    assert accepted > 40


@pytest.mark.parametrize("params", PARAMS[:5], ids=str)
@pytest.mark.parametrize("builder", ["opt_tree", "chain", "kary"])
def test_texts_equal_those_of_the_host(builder: str, params: Any, to_emulation: Any) -> None:
    """Also of a batch, whose sequences have trees of different sizes."""
    models = target_model("llama", torch.float32), draft_model("llama", torch.float32)
    decoder = treespec.load(*models, device="cpu", builder=builder, node_budget=8)
    prompts = [[3, 4, 5], [7, 8, 9, 10, 3], [5]]

    def texts() -> list[list[int]]:
        results = decoder.generate(prompts, max_new_tokens=14, seed=[1, 2, 3], **params)
        return [result.token_ids for result in results]

    expected = texts()
    copies = to_emulation()
    assert texts() == expected
    assert not copies


def refuse_rows(rows: Any) -> Any:
    raise AssertionError("whole rows were brought to the host")


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize(
    ("builder", "options"),
    [
        ("opt_tree", {"threshold": 0.2}),
        ("opt_tree", {"calibration": [[0.2, 0.3], [0.7, 0.9]]}),
        ("eagle2", {"width": 12, "max_depth": 3}),
        ("kary", {"expansion": [3, 2]}),
        ("chain", {}),
    ],
    ids=str,
)
def test_draft_rows_are_ranked_where_they_are(
    builder: str, options: Any, kernels: bool, to_emulation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only lists come to the host, for trees whose tokens are the likeliest ones."""
    models = target_model("llama", torch.float32), draft_model("llama", torch.float32)
    for drafter in (models[1], tiny_eagle3(models[0])):
        decoder = treespec.load(
            models[0], drafter, device="cpu", builder=builder, builder_options=options
        )
        expected = decoder.generate([3, 4, 5], max_new_tokens=20, ignore_eos=True)
        with monkeypatch.context() as patch:
            to_emulation()
            patch.setattr(candidates, "cuda_built", lambda: kernels)
            for module in (candidates, autoregressive, eagle3):
                patch.setattr(module, "is_on_host", lambda logits: False)
            patch.setattr(growth, "as_float32", refuse_rows)
            ours = decoder.generate([3, 4, 5], max_new_tokens=20, ignore_eos=True)
        assert ours.token_ids == expected.token_ids
        assert ours.stats.shapes == expected.stats.shapes


@pytest.mark.parametrize(
    ("builder", "options"),
    [("rollouts", {}), ("opt_tree", {"score_temperature": 0.5})],
    ids=str,
)
def test_where_whole_rows_count_they_are_brought(
    builder: str, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoregressive, "is_on_host", lambda logits: False)
    models = target_model("llama", torch.float32), draft_model("llama", torch.float32)
    decoder = treespec.load(*models, device="cpu", builder=builder, builder_options=options)
    expected = decoder.generate([3, 4, 5], max_new_tokens=8, temperature=0.7)
    monkeypatch.undo()
    ours = decoder.generate([3, 4, 5], max_new_tokens=8, temperature=0.7)
    assert ours.token_ids == expected.token_ids


@pytest.mark.parametrize("width", [1, 5, 40])
def test_ranked_rows_have_the_bits_of_the_core(
    width: int, rng: Any, to_emulation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.tensor(rng.integers(-4, 4, (6, VOCAB)), dtype=torch.float16)  # with ties
    settings = DraftSettings(temperature=0.7)
    expected = candidates.rank_rows(logits, width, settings)
    to_emulation()
    monkeypatch.setattr(candidates, "is_on_host", lambda logits: False)
    for kernels in (True, False):
        monkeypatch.setattr(candidates, "cuda_built", lambda kernels=kernels: kernels)
        token, logprob = candidates.rank_rows(logits, width, settings)
        exact = np.array_equal if kernels else np.allclose
        assert exact(logprob, expected[1])
        if kernels:
            assert np.array_equal(token, expected[0])
            with pytest.raises(ValueError, match="NaN"):
                candidates.rank_rows(logits * torch.nan, width, settings)


def test_rows_are_ranked_on_the_device_where_they_are(
    to_emulation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model need not be on the current GPU, where kernels are launched."""
    to_emulation()
    entered: list[Any] = []
    real_rank = host_rows.rank_candidates

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        entered.append(tensor)
        yield
        entered.pop()

    def rank(*args: Any, **options: Any) -> Any:
        assert entered
        return real_rank(*args, **options)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(host_rows, "rank_candidates", rank)
    token, _ = host_rows.rank(torch.tensor([[0.0, 2.0, 1.0]]), 2, 1.0)
    assert token.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("builder", "dtype"), [("rollouts", torch.float32), ("opt_tree", torch.float64)], ids=str
)
def test_what_the_device_does_not_take_goes_to_the_host(
    builder: str, dtype: torch.dtype, to_emulation: Any
) -> None:
    copies = to_emulation()
    models = target_model("llama", dtype), draft_model("llama", dtype)
    decoder = treespec.load(*models, device="cpu", builder=builder, node_budget=6)
    result = decoder.generate([3, 4, 5], max_new_tokens=6, temperature=0.8)
    assert len(result.token_ids) == 6
    assert copies


def test_errors_name_the_prompt(rng: Any, to_emulation: Any) -> None:
    to_emulation()
    cases = [random_case(rng, torch.float32, "target_only", place) for place in (0, 2, 5)]
    cases[1].logits[0] = torch.nan
    with pytest.raises(ValueError, match="sequence 2 of the batch: NaN"):
        verify_cases(cases)


def test_an_error_leaves_no_sequence_open(to_emulation: Any) -> None:
    to_emulation()

    class Broken(TableTarget):
        def row(self, text: Any) -> Any:
            return np.where(len(text) > 6, np.nan, super().row(text)).astype(np.float32)

    target = Broken(VOCAB)
    decoder = SpeculativeDecoder(target)
    with pytest.raises(ValueError, match="NaN"):
        decoder.generate([1, 2, 3], max_new_tokens=20)
    assert target.open_sequences == 0


def test_tensors_of_all_types_are_packed(rng: Any) -> None:
    given = [
        torch.tensor(rng.integers(-9, 9, shape)).to(dtype)
        for dtype in (torch.int32, torch.float64, torch.int64, torch.float32)
        for shape in ((1,), (3, 5), (0,), (2, 0))
    ]
    given.append(torch.arange(12).reshape(3, 4).T)
    for ours, tensor in zip(to_device(given, torch.device("cpu")), given, strict=True):
        assert ours.dtype == tensor.dtype
        assert torch.equal(ours, tensor)


def test_a_verdict_names_nodes_of_its_tree() -> None:
    tree = treespec.TokenTree([3, 4, 5], parent=[-1, 0, 1])
    verdict = _core.Verdict(tree, [1, 2], 9)
    assert verdict.tokens.tolist() == [4, 5, 9]
    assert verdict.num_accepted == 2
    with pytest.raises(ValueError, match=r"accepted_nodes must be in \[0, 3\), got 3"):
        _core.Verdict(tree, [3], 9)
