# SPDX-License-Identifier: Apache-2.0
"""Trees that grow by calls of a toy drafter, in every way that builders can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import treespec
from treespec import _core, device
from treespec.builder_options import resolve_options
from treespec.device.growth import Frontier
from treespec.generation import pack_bits
from treespec.static.growth import GrowthRecipe, GrowthState
from treespec.static.ops import PARAM_NAMES, encode_options

BATCH, BUDGET, VOCAB, WIDTH = 3, 12, 40, 8
ROOTS = (4, 5, 6)
KEYS = [(11, 0, 7), (2**64 - 1, 2**32 - 1, 9), (13, 2, 2**31 + 8)]  # seed, sequence_id, position

DETERMINISTIC: list[tuple[str, dict[str, Any]]] = [
    ("chain", {"max_depth": 5}),
    ("kary", {}),
    ("kary", {"expansion": [2, 2, 1]}),
    ("sequoia", {}),
    ("sequoia", {"growth_map": [0, 0, 1, 1, 2, 5, 4, 7]}),
    ("medusa_choices", {}),
    ("opt_tree", {}),
    ("opt_tree", {"max_depth": 4, "threshold": 0.3}),
    ("opt_tree", {"floor": 0.05}),
    ("opt_tree", {"score_temperature": 0.3}),
    ("opt_tree", {"calibration": [1, 1], "score_temperature": 4, "floor": 0.01}),
    ("eagle2", {}),
    ("eagle2", {"width": 3, "max_depth": 4}),
    ("eagle2", {"width": 4, "width_ratio": 0.3}),
    ("eagle2", {"width": 2, "growth": "constant"}),
    ("eagle2", {"width": 3, "calibration": [[0.05, 0], [0.9, 0.9]]}),
]
DRAWN: list[tuple[str, dict[str, Any]]] = [
    ("chain", {"proposal": "iid"}),
    ("chain", {"proposal": "without_replacement", "max_depth": 3}),
    ("kary", {"expansion": [3, 2], "proposal": "iid"}),
    ("kary", {"proposal": "without_replacement"}),
    ("sequoia", {"growth_map": [0, 0, 1, 1, 2], "proposal": "without_replacement"}),
    ("sequoia", {"proposal": "without_replacement"}),
    ("top_plus_one", {}),
    ("top_plus_one", {"expansion": [3, 2], "max_depth": 2}),
    ("rollouts", {}),
    ("rollouts", {"num_paths": 12, "max_depth": 3}),
    ("delayed", {}),
    ("delayed", {"num_paths": 3, "trunk": 1, "branch": 2}),
    ("dyspec", {}),
    ("dyspec", {"evaluation": "lazy", "max_depth": 2}),
    ("dyspec", {"calibration": [[0.2, 0.5], [0.7, 0.8]]}),
    ("dyspec_threshold", {}),
    ("dyspec_threshold", {"threshold": 0.05, "calibration": [[0.5, 0.6]]}),
]
GROWTHS = DETERMINISTIC + DRAWN


class PathDrafter:
    """An expander whose rows depend on the whole path, with ties; truncated to its lists."""

    def __init__(self) -> None:
        self._path: dict[int, tuple[int, ...]] = {}

    def lists(self, nodes: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """``[n, K]`` ranked lists of nodes with `index`, `parent` and `token`."""
        columns = (
            np.asarray(column).tolist() for column in (nodes.index, nodes.parent, nodes.token)
        )
        rows = []
        for index, parent, token in zip(*columns, strict=True):
            self._path[index] = (*self._path.get(parent, ()), token)
            noise = np.random.default_rng(self._path[index]).normal(0, 2, VOCAB)
            rows.append(np.round(2 * noise) / 2)
        token, logprob = _core.Marginals.from_logits(np.stack(rows), WIDTH).arrays
        return token, logprob

    def expand(self, nodes: Any) -> npt.NDArray[np.float32]:
        """The same as rows of the vocabulary."""
        token, logprob = self.lists(nodes)
        rows = np.full((len(token), VOCAB), -np.inf, np.float32)
        np.put_along_axis(rows, token, logprob, 1)
        return rows


def make_recipe(
    name: str, options: dict[str, Any], max_rows: int = BUDGET * BUDGET
) -> GrowthRecipe:
    text = encode_options(resolve_options(options))
    return GrowthRecipe(name, text, BUDGET, WIDTH, VOCAB, max_rows)


def roots() -> torch.Tensor:
    return torch.tensor(ROOTS, dtype=torch.int32)


def keys(numbers: Sequence[tuple[int, int, int]] = KEYS) -> torch.Tensor:
    columns = [np.array(column, np.uint64) for column in zip(*numbers, strict=True)]
    seed, *rest = (torch.from_numpy(column.view(np.int64)) for column in columns)
    return device.round_keys(seed, *rest)


def built_trees(
    name: str,
    options: dict[str, Any] | Sequence[dict[str, Any]],
    numbers: Sequence[tuple[int, int, int]] = KEYS,
) -> list[_core.TokenTree]:
    """What the core makes of the toy drafter's rows, by the options of all or of each sequence."""
    names = ("seed", "sequence_id", "position")
    own = [options] * BATCH if isinstance(options, dict) else options
    return [
        treespec.build_tree(
            name,
            PathDrafter(),
            BUDGET,
            root_token=root,
            **dict(zip(names, key, strict=True)),
            **chosen,
        )
        for root, key, chosen in zip(ROOTS, numbers, own, strict=True)
    ]


def waiting_nodes(state: GrowthState, b: int) -> Frontier:
    """The frontier of a sequence without its padding."""
    count = int(state.num_waiting[b])
    return Frontier(state.num_waiting[b], *(column[b, :count] for column in state.frontier[1:]))


def draft_lists(
    state: GrowthState, drafters: Sequence[PathDrafter]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of all that wait; rows that nobody may read hold what would be an error."""
    rows = max(int(state.num_waiting.max()), 1)
    token = torch.full((BATCH, rows, WIDTH), -7, dtype=torch.int32)
    logprob = torch.full((BATCH, rows, WIDTH), torch.nan)
    for b, drafter in enumerate(drafters):
        count = int(state.num_waiting[b])
        if count:
            lists = drafter.lists(waiting_nodes(state, b))
            token[b, :count], logprob[b, :count] = map(torch.from_numpy, lists)
    return token, logprob


def grow_trees(
    ops: Any,
    recipe: GrowthRecipe,
    state: GrowthState,
    status: torch.Tensor,
    key: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
) -> list[list[torch.Tensor]]:
    """Grows and finishes trees by those ops, and calls once more; returns all frontiers."""
    drafters = [PathDrafter() for _ in range(BATCH)]
    begun = recipe.arguments
    data = (roots(), keys() if key is None else key, status)
    ops.begin_growth(*begun, state.tensors, *data, lengths)
    frontiers = [[column.clone() for column in state.frontier]]
    for _ in range(BUDGET + 1):
        ops.grow(*begun, state.tensors, *draft_lists(state, drafters), *data)
        frontiers.append([column.clone() for column in state.frontier])
    assert not state.num_waiting.any()
    ops.finish_growth(*begun, state.tensors, *data)
    return frontiers


def lossless_verifiers(recipe: GrowthRecipe) -> list[str]:
    """Verifiers of the trees of a recipe, and one that is lossy."""
    builder = recipe.native_builder

    def fits(name: str) -> bool:
        try:
            _core.check_verifier(name, builder.proposal, builder.makes_chains)
        except ValueError:
            return False
        return True

    return [*filter(fits, treespec.verifier_names()), "typical"]


def verify_arguments(
    trees: device.Trees, proposal: str, law: device.Law | None, verifier: str
) -> dict[str, Any]:
    """Arguments of `verify_trees`: a target that likes what was drafted, one sequence greedy."""
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(0, 1, (BATCH, BUDGET + 1, VOCAB))).float()
    for b in range(BATCH):
        drafted = slice(1, int(trees.num_nodes[b]))
        logits[b, trees.parent[b, drafted].long(), trees.token[b, drafted].long()] += 3
    history = torch.from_numpy(rng.integers(0, VOCAB, (BATCH, 12), dtype=np.int32))
    prefix_length = torch.tensor([7, 9, 8], dtype=torch.int32)
    history[torch.arange(BATCH), prefix_length.long()] = roots()
    params = torch.tensor([[0.8, 30, 0.95, 0.01, 1.1, 0, 0]] * BATCH, dtype=torch.float64)
    params[2, PARAM_NAMES.index("temperature")] = 0.0
    return {
        "verifier": verifier,
        "proposal": proposal,
        "lossy": verifier == "typical",
        "max_depth": BUDGET,
        "logits": logits,
        **{name: getattr(trees, name) for name in ("num_nodes", "token", "parent", "depth")},
        **{name: getattr(trees, name) for name in ("draw_offset", "draw")},
        "law": [] if law is None else law.arrays,
        "max_support": 0 if law is None else law.max_support,
        "history": history,
        "prefix_length": prefix_length,
        "prompt_length": torch.tensor([2, 9, 4], dtype=torch.int32),
        "params": params,
        "bias_token": None,
        "bias": None,
        "allowed": None,
        "seed": torch.from_numpy(np.array([key[0] for key in KEYS], np.uint64).view(np.int64)),
        "sequence_id": torch.tensor([key[1] for key in KEYS]),
        "status": torch.zeros(BATCH, dtype=torch.int32),
    }


def score_changes() -> dict[str, torch.Tensor]:
    """Biases, as many as each sequence has, and allowed tokens, as arguments of `verify_trees`."""
    rng = np.random.default_rng(2)
    allowed = rng.random((BATCH, BUDGET + 1, VOCAB)) < 0.8
    words = np.stack([[pack_bits(row) for row in rows] for rows in allowed])
    token = [[3, 7, 20, 30], [8, -1, 9, -1], [-1, -1, -1, -1]]
    return {
        "bias_token": torch.tensor(token, dtype=torch.int32),
        "bias": torch.tensor([[2.0, -1.0, 0.3, 1.1]] * BATCH, dtype=torch.float64),
        "allowed": torch.from_numpy(words.view(np.int32)),
    }
