# SPDX-License-Identifier: Apache-2.0
"""Trees that grow between calls of a drafter: on a CPU they are the core's, on a device the CPU's.

Kernels of CUDA tensors run over the host emulation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from device_backends import ORDERS, use_backend
from growth_cases import (
    BATCH,
    BUDGET,
    DRAWN,
    GROWTHS,
    KEYS,
    VOCAB,
    WIDTH,
    PathDrafter,
    built_trees,
    draft_lists,
    grow_trees,
    keys,
    lossless_verifiers,
    make_recipe,
    roots,
    score_changes,
    verify_arguments,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import treespec
from treespec import _core
from treespec.device import Trees
from treespec.static import cuda_ops, growth, ops
from treespec.static.growth import GrowthRecipe, GrowthState
from treespec.static.host_trees import trees_on_host

CPU = torch.device("cpu")
OPS = torch.ops.treespec


def no_status() -> torch.Tensor:
    return torch.zeros(BATCH, dtype=torch.int32)


def is_drawn(recipe: GrowthRecipe) -> bool:
    return recipe.native_builder.proposal != "deterministic"


@pytest.fixture(params=ORDERS, ids=lambda order: f"emulation-{order}")
def kernel_state(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes states for the kernels of a device, which take the emulation's memory."""
    use_backend(request.param, monkeypatch)

    def make(recipe: GrowthRecipe) -> GrowthState:
        with monkeypatch.context() as patch:
            patch.setattr(growth, "workspace_bytes", growth.kernel_bytes)
            return GrowthState.empty(recipe, BATCH, CPU)

    return make


def check_trees(trees: Trees, expected: list[_core.TokenTree]) -> None:
    """Asserts that trees have the bits of the core's, padding included."""
    packed = Trees.pack(expected, BUDGET + 1, "cpu")
    for name, ours, theirs in zip(Trees._fields, trees, packed, strict=True):
        assert ours is not None and theirs is not None
        if name == "draw":  # what follows the last draw is nobody's
            for b, tree in enumerate(expected):
                count = sum(map(len, tree.draws))
                assert torch.equal(ours[b, :count], theirs[b, :count])
        else:
            assert ours.numpy().tobytes() == theirs.numpy().tobytes(), name


def check_law(state: GrowthState, expected: list[_core.TokenTree]) -> None:
    """Asserts that rows are those that the core's trees carry, and where they are."""
    row_of_node, prob, token, row_offset = state.law.arrays
    for b, tree in enumerate(expected):
        if tree.draft_rows is None:  # a root alone
            assert tree.num_nodes == 1 and (row_of_node[b] == -1).all()
            continue
        _, rows, offset, tokens, probs = tree.draft_rows
        for node in range(BUDGET + 1):
            drew = node < tree.num_nodes and rows[node] >= 0
            place = b * (BUDGET + 1) + node
            begin, end = row_offset[place : place + 2].tolist()
            assert row_of_node[b, node] == (place if drew else -1)
            if not drew:
                assert begin == end
                continue
            own = slice(*offset[rows[node] :][:2])
            assert token[begin:end].tolist() == tokens[own].tolist()
            assert prob[begin:end].numpy().tobytes() == probs[own].tobytes()


def test_trees_without_scores_come_to_the_host_as_well() -> None:
    expected = built_trees("kary", {})
    trees = Trees.pack(expected, BUDGET + 1, "cpu")._replace(path_logprob=None)
    for one, other in zip(
        trees_on_host(trees, None, "deterministic", range(BATCH)), expected, strict=True
    ):
        assert (one.token == other.token).all() and (one.parent == other.parent).all()
        assert one.draws == other.draws and not one.path_logprob.any()


@pytest.mark.parametrize(("name", "options"), GROWTHS, ids=str)
def test_trees_are_those_of_the_core(name: str, options: dict[str, Any]) -> None:
    recipe = make_recipe(name, options)
    state = GrowthState.empty(recipe, BATCH, CPU)
    addresses = [tensor.data_ptr() for tensor in state.tensors]
    for numbers in (KEYS, KEYS[::-1]):  # a state may be used again
        grow_trees(OPS, recipe, state, no_status(), keys(numbers))
        expected = built_trees(name, options, numbers)
        check_trees(state.trees, expected)
        if is_drawn(recipe):
            check_law(state, expected)
    assert [tensor.data_ptr() for tensor in state.tensors] == addresses
    assert all(tree.num_nodes > 1 for tree in expected)


@pytest.mark.parametrize(("name", "options"), GROWTHS, ids=str)
def test_kernels_have_the_bits_of_the_core(
    name: str, options: dict[str, Any], kernel_state: Any
) -> None:
    recipe, status = make_recipe(name, options), no_status()
    expected, ours = GrowthState.empty(recipe, BATCH, CPU), kernel_state(recipe)
    frontiers = grow_trees(OPS, recipe, expected, status)
    for before, after in zip(frontiers, grow_trees(cuda_ops, recipe, ours, status), strict=True):
        assert all(map(torch.equal, before, after))
    assert not status.any()
    check_trees(ours.trees, built_trees(name, options))
    law = None
    if is_drawn(recipe):
        law, count = ours.law, int(expected.law.arrays[3][-1])
        for one, other in zip(law.arrays, expected.law.arrays, strict=True):
            size = count if one.shape == law.prob.shape else None
            assert one[:size].numpy().tobytes() == other[:size].numpy().tobytes()
    accepted = 0
    for verifier in lossless_verifiers(recipe):
        arguments = verify_arguments(ours.trees, recipe.native_builder.proposal, law, verifier)
        found = cuda_ops.verify_trees(**arguments)
        assert not arguments["status"].any()
        assert all(map(torch.equal, found, OPS.verify_trees(**arguments)))
        accepted += int(found[1].sum())
    assert accepted > 0


@pytest.mark.parametrize(
    ("name", "options"), [("kary", {}), ("kary", DRAWN[3][1]), ("rollouts", {})], ids=str
)
def test_changed_scores_have_the_bits_of_the_core(
    name: str, options: dict[str, Any], kernel_state: Any
) -> None:
    """Of every verifier: biases and allowed tokens, on top of the penalties."""
    recipe, status = make_recipe(name, options), no_status()
    state = kernel_state(recipe)
    grow_trees(cuda_ops, recipe, state, status)
    law = state.law if is_drawn(recipe) else None
    changes, accepted = score_changes(), 0
    for verifier in lossless_verifiers(recipe):
        plain = verify_arguments(state.trees, recipe.native_builder.proposal, law, verifier)
        before = cuda_ops.verify_trees(**plain)
        for names in (("bias_token", "bias"), ("allowed",), tuple(changes)):
            arguments = {**plain, **{name: changes[name] for name in names}}
            found = cuda_ops.verify_trees(**arguments)
            assert not arguments["status"].any()
            assert all(map(torch.equal, found, OPS.verify_trees(**arguments)))
            accepted += int(found[1].sum())
        assert not all(map(torch.equal, found, before))
    assert accepted > 0


# num_paths, trunk and branch of each sequence: a tree, a chain that ends before it forks, and paths
# from the root as large as the budget; then in another order, with a root alone.
LENGTHS = [[(2, 1, 3), (3, 4, 0), (3, 0, 4)], [(1, 0, 0), (3, 2, 3), (1, 0, 7)]]
OWN = make_recipe("delayed", {"num_paths": 3})


def own_options(lengths: Any) -> list[dict[str, Any]]:
    return [dict(zip(("num_paths", "trunk", "branch"), own, strict=True)) for own in lengths]


def test_sequences_may_have_lengths_of_their_own() -> None:
    state = GrowthState.empty(OWN, BATCH, CPU)
    for lengths in LENGTHS:
        grow_trees(OPS, OWN, state, no_status(), lengths=torch.tensor(lengths, dtype=torch.int32))
        expected = built_trees("delayed", own_options(lengths))
        check_trees(state.trees, expected)
        check_law(state, expected)
    grow_trees(OPS, OWN, state, no_status())  # nothing is left of them
    check_trees(state.trees, built_trees("delayed", {"num_paths": 3}))


def test_kernels_have_the_bits_of_the_core_for_lengths_of_each_sequence(kernel_state: Any) -> None:
    state, ours = GrowthState.empty(OWN, BATCH, CPU), kernel_state(OWN)
    for numbers in LENGTHS:
        status, lengths = no_status(), torch.tensor(numbers, dtype=torch.int32)
        frontiers = grow_trees(OPS, OWN, state, status, lengths=lengths)
        found = grow_trees(cuda_ops, OWN, ours, status, lengths=lengths)
        for before, after in zip(frontiers, found, strict=True):
            assert all(map(torch.equal, before, after))
        assert not status.any()
        expected = built_trees("delayed", own_options(numbers))
        check_trees(ours.trees, expected)
        count = int(state.law.arrays[3][-1])
        for one, other in zip(ours.law.arrays, state.law.arrays, strict=True):
            size = count if one.shape == ours.law.prob.shape else None
            assert one[:size].numpy().tobytes() == other[:size].numpy().tobytes()


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ((0, 1, 1), r"sequence 1 must have num_paths in \[1, 3\], got 0"),
        ((4, 1, 1), r"sequence 1 must have num_paths in \[1, 3\], got 4"),
        ((2, -1, 1), "delayed: trunk must be"),
        ((2, 1, -1), "delayed: branch must be"),
        ((3, 1, 4), r"node_budget must hold trunk \+ num_paths \* branch = 13 nodes, got 12"),
    ],
)
def test_lengths_that_cannot_be_had_are_an_error(
    lengths: Any, message: str, kernel_state: Any
) -> None:
    rows = torch.tensor([(1, 1, 1), lengths, (3, 1, 1)], dtype=torch.int32)
    state, there, status = GrowthState.empty(OWN, BATCH, CPU), kernel_state(OWN), no_status()
    with pytest.raises(ValueError, match=message):
        OPS.begin_growth(*OWN.arguments, state.tensors, roots(), keys(), status, rows)
    cuda_ops.begin_growth(*OWN.arguments, there.tensors, roots(), keys(), status, rows)
    assert status.tolist() == [0, 8, 0]
    assert there.num_waiting.tolist() == [1, 0, 1]


@pytest.mark.parametrize("kernels", [OPS, cuda_ops])
def test_only_delayed_has_lengths(kernels: Any, kernel_state: Any) -> None:
    recipe, rows = make_recipe("rollouts", {}), torch.ones(BATCH, 3, dtype=torch.int32)
    state = GrowthState.empty(recipe, BATCH, CPU) if kernels is OPS else kernel_state(recipe)
    data = (roots(), keys(), no_status(), rows)
    with pytest.raises(ValueError, match="lengths must be None unless builder is 'delayed'"):
        kernels.begin_growth(*recipe.arguments, state.tensors, *data)


def begun(recipe: GrowthRecipe, state: GrowthState, kernels: Any) -> Any:
    """Calls an op of a growth by its name, with more arguments if it takes any."""

    def call(name: str, *lists: torch.Tensor, status: torch.Tensor | None = None) -> None:
        word = no_status() if status is None else status
        getattr(kernels, name)(*recipe.arguments, state.tensors, *lists, roots(), keys(), word)

    call("begin_growth")
    return call


@pytest.mark.parametrize(("name", "options"), [("opt_tree", {}), DRAWN[5], DRAWN[12]], ids=str)
def test_more_nodes_than_lists_are_an_error(
    name: str, options: dict[str, Any], kernel_state: Any
) -> None:
    recipe = make_recipe(name, options)
    drafters = [PathDrafter() for _ in range(BATCH)]
    state, there = GrowthState.empty(recipe, BATCH, CPU), kernel_state(recipe)
    call, call_there = begun(recipe, state, OPS), begun(recipe, there, cuda_ops)
    lists = draft_lists(state, drafters)
    call("grow", *lists)
    call_there("grow", *lists)
    most = int(state.num_waiting.max())
    too_few = [array[:, : most - 1].contiguous() for array in draft_lists(state, drafters)]
    with pytest.raises(ValueError, match=f"a list for each of the {most} nodes that sequence"):
        call("grow", *too_few)
    status = no_status()
    call_there("grow", *too_few, status=status)
    assert status.tolist() == [8 if int(count) == most else 0 for count in state.num_waiting]


def test_what_is_wrong_is_said() -> None:
    recipe = make_recipe("opt_tree", {}, max_rows=3)
    state = GrowthState.empty(recipe, BATCH, CPU)
    call, drafters = begun(recipe, state, OPS), [PathDrafter() for _ in range(BATCH)]
    with pytest.raises(
        ValueError, match="finish: must be called once, after the frontier is empty"
    ):
        call("finish_growth")
    with pytest.raises(ValueError, match="logprob must be <= 0 and not NaN"):
        tokens = torch.arange(WIDTH, dtype=torch.int32).expand(BATCH, 1, WIDTH)
        call("grow", tokens, torch.full((BATCH, 1, WIDTH), torch.nan))
    begun(recipe, state, OPS)
    call("grow", *draft_lists(state, drafters))
    with pytest.raises(ValueError, match=r"max_rows must be at least \d+, .* got 3"):
        call("grow", *draft_lists(state, drafters))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("dtree", {}, NotImplementedError, "must be one of chain, delayed, .* got dtree"),
        ("opt_tree", {"breadth": 2}, ValueError, "option must be one of .*; got breadth"),
        ("delayed", {"trunk": 30}, ValueError, "node_budget must hold .* = 30 nodes, got 12"),
    ],
)
def test_growths_that_cannot_be_are_refused(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        GrowthState.empty(make_recipe(name, options), BATCH, CPU)


def test_the_core_refuses_builders_of_tables() -> None:
    state = GrowthState.empty(make_recipe("opt_tree", {}), BATCH, CPU)
    with pytest.raises(ValueError, match="dtree: source must be one it can read, got Expander"):
        begun(make_recipe("dtree", {}), state, OPS)


def test_the_law_of_deterministic_trees_is_empty() -> None:
    state = GrowthState.empty(make_recipe("opt_tree", {}), BATCH, CPU)
    assert [array.numel() for array in state.law.arrays] == [0] * 4
    assert (state.law.vocab_size, state.law.max_support) == (VOCAB, 0)


def test_a_state_is_its_tensors() -> None:
    state = GrowthState.empty(make_recipe("delayed", {}), BATCH, CPU)
    again = GrowthState.of(state.tensors, WIDTH, VOCAB)
    assert all(a is b for a, b in zip(again.tensors, state.tensors, strict=True))
    assert (again.law.vocab_size, again.law.max_support) == (VOCAB, WIDTH)
    assert state.law[4:] == again.law[4:]


@pytest.mark.parametrize(("name", "options"), [("opt_tree", {}), DRAWN[2], DRAWN[11]], ids=str)
def test_the_ops_follow_the_rules_of_torch(name: str, options: dict[str, Any]) -> None:
    recipe = make_recipe(name, options)
    state, drafters = GrowthState.empty(recipe, BATCH, CPU), [PathDrafter() for _ in range(BATCH)]
    head, data = recipe.arguments, (roots(), keys(), no_status())
    torch.library.opcheck(ops.begin_growth, (*head, state.tensors, *data))
    if name == "delayed":
        lengths = torch.tensor(LENGTHS[0], dtype=torch.int32)
        torch.library.opcheck(ops.begin_growth, (*head, state.tensors, *data, lengths))
    OPS.begin_growth(*head, state.tensors, *data)
    lists = draft_lists(state, drafters)
    torch.library.opcheck(ops.grow, (*head, state.tensors, *lists, *data))
    OPS.grow(*head, state.tensors, *lists, *data)
    for _ in range(BUDGET):
        OPS.grow(*head, state.tensors, *draft_lists(state, drafters), *data)
    torch.library.opcheck(ops.finish_growth, (*head, state.tensors, *data))


def test_on_fake_tensors_nothing_is_computed() -> None:
    recipe = make_recipe("dyspec", {})
    state, data = GrowthState.empty(recipe, BATCH, CPU), (roots(), keys(), no_status())
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        tensors = [mode.from_tensor(tensor) for tensor in state.tensors]
        root, key, status = map(mode.from_tensor, data)
        lists = torch.zeros(BATCH, 2, WIDTH, dtype=torch.int32), torch.zeros(BATCH, 2, WIDTH)
        OPS.begin_growth(*recipe.arguments, tensors, root, key, status)
        OPS.grow(*recipe.arguments, tensors, *lists, root, key, status)
        OPS.finish_growth(*recipe.arguments, tensors, root, key, status)


@pytest.mark.parametrize(("name", "options"), [("opt_tree", {}), ("kary", DRAWN[3][1])], ids=str)
def test_a_growth_and_its_verification_compile_into_one_graph(
    name: str, options: dict[str, Any]
) -> None:
    recipe = make_recipe(name, options)
    proposal, drawn = recipe.native_builder.proposal, is_drawn(recipe)
    data = (roots(), keys(), no_status())
    # Lists that need no drafter: one for every place of a frontier.
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 2, (BATCH, BUDGET, VOCAB)))
    lists = OPS.rank_candidates(logits, VOCAB, WIDTH, 1.0, no_status())
    known = GrowthState.empty(recipe, BATCH, CPU)
    rest = verify_arguments(known.trees, proposal, None, "target_only")

    def program(tensors: list[torch.Tensor], lists: Any) -> Any:
        OPS.begin_growth(*recipe.arguments, tensors, *data)
        for _ in range(BUDGET):
            OPS.grow(*recipe.arguments, tensors, *lists, *data)
        OPS.finish_growth(*recipe.arguments, tensors, *data)
        state = GrowthState.of(tensors, WIDTH, VOCAB)
        names = ("num_nodes", "token", "parent", "depth", "draw_offset", "draw")
        columns = {column: getattr(state.trees, column) for column in names}
        law = {"law": state.law.arrays, "max_support": WIDTH} if drawn else {}
        return OPS.verify_trees(**{**rest, **columns, **law})

    compiled = torch.compile(program, fullgraph=True, backend="eager")
    one, other = (GrowthState.empty(recipe, BATCH, CPU) for _ in range(2))
    expected, found = program(one.tensors, lists), compiled(other.tensors, lists)
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, other.tensors, one.tensors))


def test_keys_are_bits_whatever_their_sign() -> None:
    key = keys([(2**64 - 1, 2**32 - 1, 2**32 - 1), (0, 5, 3), (1, 0, 2**31)])
    assert key.tolist() == [[-1, -1], [0, 5 + (3 << 32)], [1, -(2**63)]]
    narrow = [torch.tensor([-1], dtype=dtype) for dtype in (torch.int64, torch.int32, torch.int32)]
    assert treespec.device.round_keys(*narrow).tolist() == [[-1, -1]]
