# SPDX-License-Identifier: Apache-2.0
"""Sources, trees and growth from arrays in CUDA memory: the same as from arrays on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from device_backends import BACKENDS, There, arrays_there, gpu_of_tensor, use_backend

import treespec
from treespec import _core, growth, placement
from treespec.device import host_rows

VOCAB = 40


@pytest.fixture(params=BACKENDS)
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> There:
    return arrays_there(request.param, monkeypatch)


def same_tree(ours: treespec.TokenTree, expected: treespec.TokenTree) -> None:
    for name in ("token", "parent", "path_logprob"):
        assert getattr(ours, name).tolist() == getattr(expected, name).tolist()
    assert ours.draws == expected.draws


def lists(rng: Any, *shape: int) -> tuple[Any, Any]:
    token = np.stack([rng.permutation(VOCAB)[: shape[-1]] for _ in range(int(np.prod(shape[:-1])))])
    logprob = np.sort(np.log(rng.dirichlet(np.ones(shape[-1] + 1), shape[:-1])), -1)[..., :0:-1]
    return token.reshape(shape), np.ascontiguousarray(logprob, np.float32)


def test_sources_are_copied(rng: Any, there: There) -> None:
    token, logprob = lists(rng, 3, 4)
    host = treespec.Marginals(token, logprob)
    same_arrays(treespec.Marginals(there(token), there(logprob)), host)
    same_arrays(treespec.Marginals(token, there(logprob).requires_grad_()), host)
    token, logprob = lists(rng, 3, 2, 4)
    following = rng.integers(-1, 2, (3, 2, 4))
    following[-1] = -1
    parts = (token, logprob, following)
    same_arrays(treespec.Transitions(*map(there, parts)), treespec.Transitions(*parts))
    token, logprob = lists(rng, 1 + 2 * 2, 4)
    parts = (token, logprob, np.array([[3, 5], [1, 9]], np.int32))
    same_arrays(
        treespec.Transitions.linked(*map(there, parts)), treespec.Transitions.linked(*parts)
    )
    parts = (np.array([-1, 0, 0]), np.array([3, 4, 5]), np.log(np.float32([0.5, 0.4, 0.3])))
    same_arrays(treespec.Trie(*map(there, parts)), treespec.Trie(*parts))
    assert len(there.copied) == 2 + 1 + 3 + 3 + 3


def same_arrays(ours: Any, expected: Any) -> None:
    for one, other in zip(ours.arrays, expected.arrays, strict=True):
        assert np.array_equal(one, other)
    assert len(ours.arrays) == len(expected.arrays)


def test_a_tree_is_made_of_arrays_anywhere(there: There) -> None:
    token, parent, law = [0, 1, 2], [-1, 0, 1], np.full((3, 4), 0.25, np.float32)
    drawn: dict[str, Any] = {"proposal": "iid", "draws": [[1], [2], []]}
    host = treespec.TokenTree(token, parent=parent, draft_probs=law, **drawn)
    ours = treespec.TokenTree(there(token), parent=there(parent), draft_probs=there(law), **drawn)
    same_tree(ours, host)
    assert np.array_equal(ours.draft_probs, host.draft_probs)
    vocab_size, *rows = host.draft_rows
    sparse = (vocab_size, *map(there, rows))
    ours = treespec.TokenTree(token, parent=parent, draft_rows=sparse, **drawn)
    assert np.array_equal(ours.draft_probs, host.draft_probs)
    assert len(there.copied) == 3 + 4


@pytest.mark.parametrize("width", [1, 5, 64])
def test_logits_are_ranked_where_they_are(rng: Any, there: There, width: int) -> None:
    logits = torch.tensor(rng.integers(-4, 4, (6, VOCAB)), dtype=torch.float16)  # with ties
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "gpu_of", lambda array: None)
        expected = treespec.Marginals.from_logits(logits, width, temperature=0.7)
    same_arrays(treespec.Marginals.from_logits(there(logits), width, temperature=0.7), expected)
    assert all(max(array.shape) <= width for array in there.copied)


UNRANKED = {
    "float64": ((2, 4), 64, torch.float64, NotImplementedError, "got torch.float64, 4 and 4"),
    "a large vocabulary": ((1, 2**18 + 1), 2, None, NotImplementedError, "262145 and 2"),
    "a long list": ((1, 2000), 1025, None, NotImplementedError, "2000 and 1025"),
    "one axis": ((4,), 64, None, ValueError, r"logits must be \[D, V\], got \[4\]"),
    "no width": ((2, 4), 0, None, ValueError, "width must be >= 1, got 0"),
}


@pytest.mark.parametrize(
    ("shape", "width", "dtype", "error", "message"), UNRANKED.values(), ids=UNRANKED
)
def test_what_is_not_ranked_is_refused(
    there: There, shape: Any, width: int, dtype: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        treespec.Marginals.from_logits(there(torch.zeros(shape, dtype=dtype)), width)


def test_logits_with_nan_are_refused(there: There) -> None:
    with pytest.raises(ValueError, match="NaN"):
        treespec.Marginals.from_logits(there(torch.full((2, 4), torch.nan)))


def test_logits_to_rank_need_a_build_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "gpu_of", gpu_of_tensor)
    monkeypatch.setattr(_core, "cuda_built", lambda: False)
    with pytest.raises(NotImplementedError, match="install it with a CUDA compiler on PATH"):
        treespec.Marginals.from_logits(torch.zeros(2, 4))


class Rows:
    """An expander whose rows are a function of the path; where they are is up to `put`."""

    def __init__(self, seed: int, put: Any, change: Any) -> None:
        self.seed, self.put, self.change = seed, put, change

    def expand(self, nodes: Any) -> Any:
        if nodes.index[0] == 0:
            self.paths: list[tuple[int, ...]] = []
        rows = []
        for token, parent in zip(nodes.token, nodes.parent, strict=True):
            path = () if parent < 0 else (*self.paths[parent], int(token))
            self.paths.append(path)
            row = np.random.default_rng([self.seed, *path]).normal(0, 2, VOCAB)
            row -= np.log(np.exp(row).sum())
            rows.append(self.change(row))
        return self.put(np.stack(rows).astype(np.float32))


CHANGES = {
    "as they are": lambda row: row,
    "with ties": lambda row: np.minimum(np.round(row), -1),
    "with impossible tokens": lambda row: np.where(row < row.max() - 1, -np.inf, row),
    "with ends": lambda row: row if row.argmax() % 3 else np.full_like(row, -np.inf),
}
DETERMINISTIC = [
    ("opt_tree", {}),
    ("opt_tree", {"threshold": 0.1, "calibration": [[0.2, 0.3], [0.7, 0.9]]}),
    ("eagle2", {"width": 4, "max_depth": 3}),
    ("kary", {"expansion": [3, 2]}),
    ("sequoia", {"growth_map": [0, 0, 1, 1, 2]}),
    ("medusa_choices", {}),
    ("chain", {}),
]


def refuse_rows(rows: Any) -> Any:
    raise AssertionError("whole rows were brought to the host")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("name", "options"), DETERMINISTIC, ids=str)
def test_rows_of_an_expander_are_ranked_where_they_are(
    there: There, name: str, options: Any, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trees(put: Any) -> list[treespec.TokenTree]:
        sources = [Rows(seed, put, change) for seed in range(3)]
        budgets = (9, 60) if name == "kary" else (1, 7, 60)
        return [treespec.build_tree(name, s, n, **options) for s in sources for n in budgets]

    expected = trees(np.asarray)
    monkeypatch.setattr(growth, "as_float32", refuse_rows)
    for one, other in zip(trees(there), expected, strict=True):
        same_tree(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_rows_of_other_types_are_ranked_as_float32(there: There, dtype: torch.dtype) -> None:
    def on_host(rows: Any) -> Any:
        return torch.as_tensor(rows).to(dtype).float().numpy()

    expected = treespec.build_tree("opt_tree", Rows(1, on_host, CHANGES["as they are"]), 12)
    source = Rows(1, lambda rows: there(rows).to(dtype), CHANGES["as they are"])
    same_tree(treespec.build_tree("opt_tree", source, 12), expected)


COPIED = [
    ("opt_tree", {"score_temperature": 0.5}),
    ("kary", {"proposal": "iid"}),
    ("rollouts", {}),
    ("dyspec", {}),
]


@pytest.mark.parametrize(("name", "options"), COPIED, ids=str)
def test_where_whole_rows_count_they_are_copied(
    there: There, name: str, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = CHANGES["as they are"]
    expected = treespec.build_tree(name, Rows(1, np.asarray, change), 12, seed=4, **options)
    monkeypatch.setattr(host_rows, "rank_scores", refuse_rows)
    ours = treespec.build_tree(name, Rows(1, there, change), 12, seed=4, **options)
    same_tree(ours, expected)


def test_rows_with_nan_are_refused(there: There) -> None:
    source = Rows(1, there, lambda row: row * np.nan)
    with pytest.raises(ValueError, match="NaN"):
        treespec.build_tree("opt_tree", source, 12)


def test_a_build_without_cuda_copies_the_rows_of_an_expander(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change = CHANGES["as they are"]
    expected = treespec.build_tree("opt_tree", Rows(1, np.asarray, change), 12)
    monkeypatch.setattr(placement, "gpu_of", gpu_of_tensor)
    monkeypatch.setattr(_core, "cuda_built", lambda: False)
    same_tree(treespec.build_tree("opt_tree", Rows(1, torch.from_numpy, change), 12), expected)


class Foreign:
    """An array of a library that speaks DLPack, on a device of the given kind."""

    def __init__(self, tensor: torch.Tensor, kind: int) -> None:
        self.tensor, self.kind = tensor, kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 3

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__()


def test_arrays_of_any_library_say_where_they_are() -> None:
    tensor = torch.zeros(2)
    assert placement.gpu_of(Foreign(tensor, 2)) == 3
    others = (Foreign(tensor, 1), np.zeros(2), tensor, torch.zeros(2, device="meta"), [0.0], None)
    assert [placement.gpu_of(array) for array in others] == [None] * 6


def test_arrays_of_another_library_are_taken_without_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensor = torch.arange(6.0).reshape(3, 2)
    array = Foreign(tensor, 2)
    monkeypatch.setattr(torch, "from_dlpack", lambda foreign: foreign.tensor)
    assert placement.as_tensor(array).data_ptr() == tensor.data_ptr()
    assert treespec.Trie([-1], [3], Foreign(torch.tensor([-0.5]), 2)).arrays[2].tolist() == [-0.5]


@pytest.mark.gpu
def test_tensors_on_a_gpu_say_so() -> None:
    use_backend("cuda", pytest.MonkeyPatch())
    assert placement.gpu_of(torch.zeros(2, device="cuda")) == torch.cuda.current_device()
