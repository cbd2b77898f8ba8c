# SPDX-License-Identifier: Apache-2.0
"""Ops on candidate lists have the bits of the core on a device, whose emulation is what runs here.

Growths are in `test_static_growth`, whole rounds in `test_static_device`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from device_backends import ORDERS, use_backend
from growth_cases import BATCH, BUDGET, DRAWN, VOCAB, WIDTH, keys, make_recipe, roots
from selector_cases import choose_arguments, random_inputs, random_selector

from treespec.device import Law, Trees
from treespec.static import cuda_ops
from treespec.static.ops import encode_options

OPS = torch.ops.treespec
LEVELS, LISTS = 4, 3


@pytest.fixture(params=ORDERS, ids=lambda order: f"emulation-{order}", autouse=True)
def emulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device functions run over host memory."""
    use_backend(request.param, monkeypatch)


def no_status() -> torch.Tensor:
    return torch.zeros(BATCH, dtype=torch.int32)


def ranked(rng: np.random.Generator, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of that shape, with ties and padding."""
    logits = torch.from_numpy(rng.integers(0, 9, (BATCH, int(np.prod(shape)), VOCAB)) / 2)
    logits[:, ::3, 5:] = -torch.inf
    token, logprob = OPS.rank_candidates(logits, VOCAB, WIDTH, 1.0, no_status())
    return token.view(BATCH, *shape, WIDTH), logprob.view(BATCH, *shape, WIDTH)


def tables(rng: np.random.Generator, linked: bool) -> tuple[torch.Tensor, torch.Tensor, Any]:
    if not linked:
        return *ranked(rng, LEVELS), None
    token, logprob = ranked(rng, LEVELS, LISTS)
    links = rng.integers(-1, LISTS, token.shape).astype(np.int32)
    return token, logprob, torch.from_numpy(links)


def same_bits(ours: Any, theirs: Any) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in pairs)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(("name", "options"), DRAWN, ids=str)
def test_drawn_trees(
    rng: np.random.Generator, name: str, options: dict[str, Any], linked: bool
) -> None:
    recipe, status = make_recipe(name, options), no_status()
    lists = tables(rng, linked)
    given = (name, recipe.options, BUDGET, VOCAB, *lists, roots(), keys(), status)
    ours, theirs = cuda_ops.draw_trees(*given), OPS.draw_trees(*given)
    assert not status.any()
    assert same_bits(ours[:6], theirs[:6])
    own, known = Trees(*ours[:7]), Trees(*theirs[:7])
    assert own.draw is not None and known.draw is not None and known.draw_offset is not None
    for drawn, others, ends in zip(own.draw, known.draw, known.draw_offset, strict=True):
        assert torch.equal(drawn[: ends[-1]], others[: ends[-1]])
    law, expected = (Law.sparse(arrays[7:], VOCAB, WIDTH).arrays for arrays in (ours, theirs))
    count = int(expected[3][-1])
    assert count > 0
    assert same_bits([law[0], law[3]], [expected[0], expected[3]])
    assert same_bits([column[:count] for column in law[1:3]], [c[:count] for c in expected[1:3]])


@pytest.mark.parametrize("name", ["dtree", "opt_tree"])
def test_trees_of_lists_by_depth(rng: np.random.Generator, name: str) -> None:
    status = no_status()
    given = (name, "{}", BUDGET, *tables(rng, linked=False), roots(), status)
    assert same_bits(cuda_ops.build_trees(*given), OPS.build_trees(*given))
    assert not status.any()


def test_linked_lists(rng: np.random.Generator) -> None:
    token, logprob = ranked(rng, 1 + (LEVELS - 1) * LISTS)
    owner = token[:, : LEVELS - 1, :LISTS].contiguous()
    ours = cuda_ops.link_transitions(token, logprob, owner)
    assert same_bits(ours, OPS.link_transitions(token, logprob, owner))
    assert ours[2].max() > 0


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score_temperature": 0.3},
        {"calibration": [[0.2, 0.1], [0.6, 0.9]]},
        {"calibration": [[0.01, 0.5]]},  # most scores are equal then
        {"calibration": [[0.1, 0.0], [0.3, 0.5]], "score_temperature": 4.0, "width": 3},
    ],
    ids=str,
)
def test_scored_lists(rng: np.random.Generator, options: dict[str, Any], linked: bool) -> None:
    token, logprob, links = tables(rng, linked)
    logprob[0, 1, ..., 2] = torch.nan  # what is wrong is handed on
    logprob[1, 0, ..., 1] = 0.5
    logprob[2, 2] = -torch.inf
    given = (encode_options(options), token, logprob, links)
    assert same_bits(cuda_ops.score_lists(*given), OPS.score_lists(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_root_scalars(rng: np.random.Generator, dtype: torch.dtype) -> None:
    widths = (5000, 5020, 5020)
    rows = [torch.from_numpy(rng.normal(0, 3, (BATCH, width))).to(dtype) for width in widths]
    params = torch.tensor([[0.7, 40, 0.9, 0.01, 1.2, 0.3, 0.1]] * BATCH, dtype=torch.float64)
    params[1, 0] = 0.0
    draft_params = torch.tensor([[1.3, 5, 0.8]] * BATCH, dtype=torch.float64)
    history = torch.from_numpy(rng.integers(0, 5000, (BATCH, 12), dtype=np.int32))
    lengths = [torch.tensor(column, dtype=torch.int32) for column in ([7, 9, 11], [3, 0, 11])]
    token = torch.tensor([[3, 4100], [-1, -1], [5, -1]], dtype=torch.int32)
    biases = (token, torch.tensor([[20.0, -0.7], [0, 0], [20.0, 0]], dtype=torch.float64))
    status = no_status()
    given = (*rows, params, draft_params, history, *lengths, *biases, status)
    ours = cuda_ops.root_scalars(*given)
    plain = cuda_ops.root_scalars(*given[:-3], None, None, status)
    assert not torch.equal(ours[0], plain[0]) and torch.equal(ours[1], plain[1])
    assert same_bits([ours], [OPS.root_scalars(*given)])
    assert not status.any() and ours.isfinite().all()


@pytest.mark.parametrize("states", [{}, {"target_before": 20, "draft_root": 12}])
def test_choices(rng: np.random.Generator, states: dict[str, int]) -> None:
    chosen = set()
    for seed in range(5):
        selector, status = random_selector(states, seed), no_status()
        inputs = random_inputs(rng, selector, BATCH)
        given = choose_arguments(selector, *inputs, [40, 9, 3], [16, 4, 1], status)
        ours = cuda_ops.choose_shapes(*given)
        assert same_bits([ours], [OPS.choose_shapes(*given)])
        assert not status.any()
        chosen.update(ours.tolist())
    assert len(chosen) > BATCH
