# SPDX-License-Identifier: Apache-2.0
"""The custom ops: equal to the core they wrap, traceable, and clear without CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from growth_cases import (
    BATCH,
    BUDGET,
    DRAWN,
    KEYS,
    VOCAB,
    WIDTH,
    keys,
    lossless_verifiers,
    make_recipe,
    score_changes,
)
from growth_cases import verify_arguments as verify_arguments_of
from selector_cases import choose_arguments, random_inputs, random_selector
from torch._subclasses.fake_tensor import FakeTensorMode

import treespec
from treespec import _core
from treespec.device import Law, Trees, Verdicts
from treespec.selector.features import RootView
from treespec.static import cuda_ops, ops
from treespec.static.host_trees import rows_of, tree_of
from treespec.static.ops import PARAM_NAMES, CandidateLists

LEVELS, LISTS = 3, WIDTH
OPS = torch.ops.treespec


def no_status(batch: int = BATCH) -> torch.Tensor:
    return torch.zeros(batch, dtype=torch.int32)


def candidate_lists(rng: np.random.Generator) -> CandidateLists:
    """Lists whose candidate k of list r goes on with list k, ranked as the ops rank them."""
    logits = torch.from_numpy(rng.normal(size=(BATCH * LEVELS, LISTS, VOCAB)))
    token, logprob = OPS.rank_candidates(logits, VOCAB, WIDTH, 1.0, no_status(9))
    shape = (BATCH, LEVELS, LISTS, WIDTH)
    follow = torch.arange(WIDTH, dtype=torch.int32).expand(shape).contiguous()
    return CandidateLists(token.view(shape), logprob.view(shape), follow)


def roots() -> torch.Tensor:
    return torch.tensor([7, 8, 9], dtype=torch.int32)


def trees(lists: CandidateLists, builder: str = "opt_tree", **options: Any) -> Trees:
    text = ops.encode_options(options)
    return Trees(*OPS.build_trees(builder, text, BUDGET, *lists, roots(), no_status()))


def tree_columns(grown: Trees) -> dict[str, torch.Tensor]:
    """The arrays that `verify_trees` takes."""
    columns: dict[str, Any] = grown._asdict()
    del columns["path_logprob"]
    return columns


def verify_arguments(
    rng: np.random.Generator, grown: Trees, verifier: str, temperature: float
) -> dict[str, Any]:
    """Of trees that were not drawn."""
    rows = torch.from_numpy(rng.normal(scale=2, size=(BATCH, BUDGET + 1, VOCAB)))
    prefix = torch.tensor([3, 5, 4], dtype=torch.int32)
    history = torch.from_numpy(rng.integers(20, VOCAB, (BATCH, 12), dtype=np.int32))
    history[torch.arange(BATCH), prefix.long()] = roots()
    rows[:, :, 7:10], rows[:, :, 11] = 10, 9  # the penalty of the root decides between these
    params = torch.tensor([[temperature, 0, 0.9, 0, 1.3, 0, 0]] * BATCH, dtype=torch.float64)
    return {
        "verifier": verifier,
        "proposal": "deterministic",
        "lossy": False,
        "max_depth": LEVELS,
        "logits": rows,
        **tree_columns(grown),
        "law": [],
        "max_support": 0,
        "history": history,
        "prefix_length": prefix,
        "prompt_length": torch.tensor([2, 2, 4], dtype=torch.int32),
        "params": params,
        "bias_token": None,
        "bias": None,
        "allowed": None,
        "seed": torch.tensor([1, -1, 3]),
        "sequence_id": torch.arange(BATCH),
        "status": no_status(),
    }


def test_ranks_are_those_of_the_core(rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.normal(size=(2, 3, 10)))
    logits[0, 0, 4] = logits[0, 0, 2] = 9.0  # a tie: the lower id first
    token, logprob = OPS.rank_candidates(logits, 8, 5, 0.7, no_status(2))
    law = torch.log_softmax(logits[..., :8] / 0.7, -1)
    best = torch.sort(law, dim=-1, descending=True, stable=True)
    assert torch.equal(token.long(), best.indices[..., :5])
    assert torch.allclose(logprob.double(), best.values[..., :5], rtol=0, atol=1e-5)
    token, logprob = OPS.rank_candidates(logits, 8, 20, 0.7, no_status(2))
    assert token.shape == (2, 3, 20)
    assert (logprob[..., 8:] == -torch.inf).all() and not token[..., 8:].any()


@pytest.mark.parametrize(
    ("builder", "options"),
    [("opt_tree", {}), ("eagle2", {"width": 2}), ("kary", {"expansion": [3, 2]}), ("chain", {})],
)
def test_trees_are_those_of_the_core(
    rng: np.random.Generator, builder: str, options: dict[str, Any]
) -> None:
    lists = candidate_lists(rng)
    grown = trees(lists, builder, **options)
    for b in range(BATCH):
        source = treespec.Transitions(*(array[b].numpy() for array in lists))
        root = int(roots()[b])
        tree = treespec.build_tree(builder, source, BUDGET, root_token=root, **options)
        n = int(grown.num_nodes[b])
        assert n == tree.num_nodes
        for name in ("token", "parent", "depth", "path_logprob"):
            own = getattr(grown, name)[b]
            assert np.array_equal(own[:n].numpy(), getattr(tree, name)), name
            assert (own[n:] == (-1 if name == "parent" else 0)).all()


def marginals(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """``[B, D, K]`` lists with ties."""
    logits = torch.from_numpy(rng.integers(0, 9, (BATCH, LEVELS, VOCAB)) / 2)
    token, logprob = OPS.rank_candidates(logits, VOCAB, WIDTH, 1.0, no_status())
    return token, logprob


def sources(token: torch.Tensor, logprob: torch.Tensor) -> list[treespec.Marginals]:
    pairs = zip(token, logprob, strict=True)
    return [treespec.Marginals(ids.numpy(), scores.numpy()) for ids, scores in pairs]


def check_trees(grown: Trees, expected: list[_core.TokenTree]) -> None:
    """Asserts that trees have the bits of the core's."""
    for ours, theirs in zip(grown, Trees.pack(expected, BUDGET + 1, "cpu"), strict=True):
        assert ours is not None and theirs is not None
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()


@pytest.mark.parametrize("builder", ["dtree", "opt_tree", "sequoia"])
def test_trees_of_lists_by_depth_are_those_of_the_core(
    rng: np.random.Generator, builder: str
) -> None:
    lists = marginals(rng)
    built = OPS.build_trees(builder, "{}", BUDGET, *lists, None, roots(), no_status())
    expected = [
        treespec.build_tree(builder, source, BUDGET, root_token=int(root))
        for source, root in zip(sources(*lists), roots(), strict=True)
    ]
    check_trees(Trees(*built), expected)


@pytest.mark.parametrize(("builder", "options"), DRAWN, ids=str)
def test_drawn_trees_and_their_verdicts_are_those_of_the_core(
    rng: np.random.Generator, builder: str, options: dict[str, Any]
) -> None:
    lists, recipe = marginals(rng), make_recipe(builder, options)
    outputs = OPS.draw_trees(
        builder, recipe.options, BUDGET, VOCAB, *lists, None, roots(), keys(), no_status()
    )
    grown, law = Trees(*outputs[:7]), Law.sparse(outputs[7:], VOCAB, WIDTH)
    names = ("seed", "sequence_id", "position")
    expected = [
        treespec.build_tree(
            builder,
            source,
            BUDGET,
            root_token=int(root),
            **dict(zip(names, key, strict=True)),
            **options,
        )
        for source, root, key in zip(sources(*lists), roots(), KEYS, strict=True)
    ]
    check_trees(grown, expected)
    proposal = recipe.native_builder.proposal
    accepted = 0
    for verifier in lossless_verifiers(recipe):
        given = verify_arguments_of(grown, proposal, law, verifier)
        verdicts = Verdicts(*OPS.verify_trees(**given))
        for b, (tree, key) in enumerate(zip(expected, KEYS, strict=True)):
            verdict = host_verdict(tree, given, b, key)
            count = verdict.num_accepted
            accepted += count
            assert verdicts.nodes[b].tolist() == [
                0,
                *verdict.accepted_nodes,
                *[-1] * (BUDGET - count),
            ]
            assert verdicts.num_accepted[b] == count
            assert verdicts.next_token[b] == verdict.next_token
    assert accepted > 0


def host_verdict(
    tree: _core.TokenTree, given: dict[str, Any], b: int, key: tuple[int, int, int]
) -> treespec.Verdict:
    """What `treespec.verify_logits` finds on a tree that carries its own law."""
    seed, sequence_id, _ = key
    numbers = dict(zip(PARAM_NAMES, given["params"][b].tolist(), strict=True))
    biases = {}
    if given["bias"] is not None:
        pairs = zip(given["bias_token"][b].tolist(), given["bias"][b].tolist(), strict=True)
        biases = {token: bias for token, bias in pairs if token >= 0}
    sampling = treespec.SamplingParams(
        **{**numbers, "top_k": int(numbers["top_k"])}, logit_bias=biases
    )
    position = int(given["prefix_length"][b])
    allowed = given["allowed"]
    return treespec.verify_logits(
        tree,
        given["logits"][b, : tree.num_nodes],
        sampling=sampling,
        verifier=given["verifier"],
        lossy=given["lossy"],
        prefix_ids=given["history"][b, : position + 1].numpy(),
        prompt_length=int(given["prompt_length"][b]),
        allowed_tokens=None if allowed is None else allowed[b, : tree.num_nodes].numpy().view("u4"),
        seed=seed,
        sequence_id=sequence_id,
        position=position,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("builder", "verifier"), [("dtree", "target_only"), ("rollouts", "auto")])
def test_biases_and_allowed_tokens_are_those_of_the_core(
    rng: np.random.Generator, builder: str, verifier: str, dtype: torch.dtype
) -> None:
    lists = marginals(rng)
    if builder == "dtree":
        grown = Trees(*OPS.build_trees(builder, "{}", BUDGET, *lists, None, roots(), no_status()))
        law, proposal = None, "deterministic"
    else:
        outputs = OPS.draw_trees(
            builder, "{}", BUDGET, VOCAB, *lists, None, roots(), keys(), no_status()
        )
        grown, law = Trees(*outputs[:7]), Law.sparse(outputs[7:], VOCAB, WIDTH)
        proposal = "iid"
    given = verify_arguments_of(grown, proposal, law, verifier)
    given["logits"] = given["logits"].to(dtype)
    plain = OPS.verify_trees(**given)
    for changes in (score_changes(), {"allowed": score_changes()["allowed"]}):
        changed = {**given, **changes}
        verdicts = Verdicts(*OPS.verify_trees(**changed))
        for b, key in enumerate(KEYS):
            rows = None if law is None else rows_of(law.arrays, b, int(grown.num_nodes[b]), VOCAB)
            verdict = host_verdict(tree_of(grown, b, proposal, rows), changed, b, key)
            assert verdicts.num_accepted[b] == verdict.num_accepted
            assert verdicts.next_token[b] == verdict.next_token
        assert not torch.equal(verdicts.next_token, plain[2])
    with pytest.raises(ValueError, match=r"allowed_tokens: must be uint32 \[\d+, 2\]"):
        OPS.verify_trees(**{**given, "allowed": score_changes()["allowed"][..., :1].contiguous()})


def test_trees_of_the_wrong_kind_are_refused(rng: np.random.Generator) -> None:
    lists = marginals(rng)
    with pytest.raises(NotImplementedError, match="deterministic, got rollouts with iid ones"):
        OPS.build_trees("rollouts", "{}", BUDGET, *lists, None, roots(), no_status())
    with pytest.raises(NotImplementedError, match="drawn, got dtree with deterministic ones"):
        OPS.draw_trees("dtree", "{}", BUDGET, VOCAB, *lists, None, roots(), keys(), no_status())


def test_a_law_that_is_none_is_refused(rng: np.random.Generator) -> None:
    outputs = OPS.draw_trees(
        "rollouts", "{}", BUDGET, VOCAB, *marginals(rng), None, roots(), keys(), no_status()
    )
    trees, law = Trees(*outputs[:7]), Law.sparse(outputs[7:], VOCAB, WIDTH)
    law.prob[0] += 0.1
    given = verify_arguments_of(trees, "iid", law, "traversal")
    with pytest.raises(ValueError, match="draft_probs: row of node 0 must sum to 1"):
        OPS.verify_trees(**given)
    with pytest.raises(ValueError, match=r"token must be in .*, got"):
        OPS.verify_trees(**{**given, "logits": given["logits"][..., :3].contiguous()})
    with pytest.raises(ValueError, match="traversal: draft_probs must be given"):
        OPS.verify_trees(**{**given, "law": []})


def test_lists_are_linked_as_by_the_core(rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.normal(size=(BATCH, 1 + 2 * LISTS, VOCAB)))
    token, logprob = OPS.rank_candidates(logits, VOCAB, WIDTH, 1.0, no_status())
    owner = token[:, 0, :1, None].expand(BATCH, 2, LISTS).contiguous()
    linked = OPS.link_transitions(token, logprob, owner)
    assert linked[2].max() == 0
    for b in range(BATCH):
        known = treespec.Transitions.linked(token[b].numpy(), logprob[b].numpy(), owner[b].numpy())
        for ours, theirs in zip(linked, known.arrays, strict=True):
            assert np.array_equal(ours[b].numpy(), theirs)
    alone = OPS.link_transitions(token[:, :1], logprob[:, :1], owner[:, :0])
    assert torch.equal(alone[0][:, 0, :1], token[:, :1])
    assert (alone[2] == -1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"score_temperature": 0.3},
        {"calibration": [[0.2, 0.1], [0.6, 0.9]]},
        {"calibration": [[0.01, 0.5]]},  # most scores are equal then
        {"score_temperature": 4.0, "calibration": [1, 1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("linked", [False, True])
def test_scored_lists_give_the_trees_of_their_options(
    rng: np.random.Generator, linked: bool, options: dict[str, Any]
) -> None:
    text = ops.encode_options({**options, "max_depth": 2})
    lists = candidate_lists(rng) if linked else (*marginals(rng), None)
    scored = OPS.score_lists(text, *lists)
    assert scored[2].numel() == (lists[0].numel() if linked else 0)
    assert not torch.equal(scored[1], lists[1])
    fall, rise = scored[1].diff(dim=-1), scored[0].diff(dim=-1)
    assert ((fall < 0) | ((fall == 0) & (rise > 0))).all()
    end = (scored[2] if linked else None, roots(), no_status())
    plain = OPS.build_trees("dtree", '{"max_depth": 2}', BUDGET, *scored[:2], *end)
    known = OPS.build_trees("dtree", text, BUDGET, *lists, roots(), no_status())
    assert all(map(torch.equal, plain, known))


def test_lists_without_a_rule_or_sense_are_left_alone(rng: np.random.Generator) -> None:
    token, logprob = marginals(rng)
    for options in ("{}", '{"score_temperature": 0.5}'):
        if options != "{}":
            logprob[:, :, 1] = torch.nan
        scored = OPS.score_lists(options, token, logprob, None)
        assert torch.equal(scored[0], token)
        assert torch.equal(scored[1].nan_to_num(7), logprob.nan_to_num(7))
        assert scored[1].data_ptr() != logprob.data_ptr()
    with pytest.raises(ValueError, match="score_lists: option must be one of calibration"):
        _core.score_lists(token.numpy(), logprob.numpy(), breadth=2)
    with pytest.raises(ValueError, match="score_lists: calibration must be pairs"):
        _core.score_lists(token.numpy(), logprob.numpy(), calibration=[[0.5, 0.9], [0.4, 1.0]])
    with pytest.raises(ValueError, match="score_lists: token and logprob must have the same"):
        _core.score_lists(token.numpy(), logprob[:1].numpy())


def scalar_arguments(rng: np.random.Generator) -> dict[str, torch.Tensor]:
    rows = (torch.from_numpy(rng.normal(0, 2, (BATCH, width))).float() for width in (40, 42, 42))
    params = torch.tensor([[0.7, 0, 0.9, 0, 1.2, 0.3, 0.1]] * BATCH, dtype=torch.float64)
    params[1, 0] = 0.0
    return {
        **dict(zip(("target_logits", "draft_logits", "root_logits"), rows, strict=True)),
        "params": params,
        "draft_params": torch.tensor([[1.3, 5, 1.0]] * BATCH, dtype=torch.float64),
        "history": torch.from_numpy(rng.integers(0, VOCAB, (BATCH, 12), dtype=np.int32)),
        "prefix_length": torch.tensor([7, 9, 11], dtype=torch.int32),
        "prompt_length": torch.tensor([3, 0, 11], dtype=torch.int32),
        "bias_token": torch.tensor([[3, 17], [-1, -1], [5, -1]], dtype=torch.int32),
        "bias": torch.tensor([[1.5, -0.7], [0, 0], [2.0, 0]], dtype=torch.float64),
        "status": no_status(),
    }


def test_root_scalars_are_those_of_the_core(rng: np.random.Generator) -> None:
    given = scalar_arguments(rng)
    scalars = OPS.root_scalars(**given)
    assert (scalars.shape, scalars.dtype) == ((BATCH, 9), torch.float32)
    for b in range(BATCH):
        length = int(given["prefix_length"][b])
        view = RootView(
            given["target_logits"][b].numpy(),
            _core.RowParams(
                temperature=(0.7, 0.0, 0.7)[b],
                top_p=0.9,
                repetition_penalty=1.2,
                presence_penalty=0.3,
                frequency_penalty=0.1,
                logit_bias=({3: 1.5, 17: -0.7}, {}, {5: 2.0})[b],
            ),
            given["history"][b, :length].numpy(),
            int(given["prompt_length"][b]),
            given["draft_logits"][b].numpy(),
            given["root_logits"][b].numpy(),
            1.3,
            5,
            1.0,
        )
        assert scalars[b].tolist() == view.scalars().tolist()


@pytest.mark.parametrize("states", [{}, {"target_before": 20, "draft_root": 12}])
def test_choices_are_those_of_the_core(rng: np.random.Generator, states: dict[str, int]) -> None:
    budgets, depths, chosen = [40, 9, 3], [16, 4, 1], set()
    for seed in range(5):
        selector = random_selector(states, seed)
        rows, scalars = random_inputs(rng, selector, BATCH)
        given = choose_arguments(selector, rows, scalars, budgets, depths, no_status())
        for b, place in enumerate(OPS.choose_shapes(*given).tolist()):
            own = [row[b].numpy() for row in rows]
            expected = selector.choose(own, scalars[b].numpy(), budgets[b], depths[b])
            assert selector.config.actions[place] == expected
            chosen.add(expected)
    assert len(chosen) > BATCH


def test_masks_are_those_of_the_core(rng: np.random.Generator) -> None:
    grown = trees(candidate_lists(rng), "chain", max_depth=2)
    prefix = torch.tensor([0, 5, 70], dtype=torch.int32)
    bits, positions = OPS.mask_trees(
        grown.num_nodes, grown.parent, grown.depth, prefix, no_status()
    )
    for b in range(BATCH):
        n = int(grown.num_nodes[b])
        expected = [1 << i for i in range(BUDGET + 1)]
        expected[:n] = _core.ancestor_bits(grown.parent[b, :n].numpy())[:, 0].tolist()
        assert bits[b, :, 0].tolist() == expected
        assert torch.equal(positions[b], prefix[b] + grown.depth[b])


@pytest.mark.parametrize("verifier", ["greedy", "target_only"])
def test_verdicts_are_those_of_the_core(rng: np.random.Generator, verifier: str) -> None:
    grown = trees(candidate_lists(rng))
    temperature = 0.0 if verifier == "greedy" else 0.8
    arguments = verify_arguments(rng, grown, verifier, temperature)
    names = ("logits", "history", "prefix_length", "prompt_length")
    rows, history, prefix, prompt = (arguments[name] for name in names)
    for b in range(BATCH):  # so that something is accepted
        rows[b, 0, grown.token[b, 1]] = 20.0
    verdicts = Verdicts(*OPS.verify_trees(**arguments))
    sampling = treespec.SamplingParams(temperature, top_p=0.9, repetition_penalty=1.3)
    for b, seed in enumerate([1, 2**64 - 1, 3]):
        n, position = int(grown.num_nodes[b]), int(prefix[b])
        tree = treespec.TokenTree(grown.token[b, :n].numpy(), parent=grown.parent[b, :n].numpy())
        expected = treespec.verify_logits(
            tree,
            rows[b, :n],
            sampling=sampling,
            verifier=verifier,
            prefix_ids=history[b, : position + 1].numpy(),
            prompt_length=int(prompt[b]),
            seed=seed,
            sequence_id=b,
            position=position,
        )
        path = [0, *expected.accepted_nodes]
        assert len(path) > 1
        assert verdicts.nodes[b].tolist() == path + [-1] * (LEVELS + 1 - len(path))
        assert verdicts.num_accepted[b] == expected.num_accepted
        assert verdicts.next_token[b] == expected.next_token


def test_commits_keep_paths_and_leave_the_others() -> None:
    buffers = [torch.arange(2.0 * 3 * 10 * 4).view(2, 3, 10, 4).clone() for _ in range(2)]
    before = [buffer.clone() for buffer in buffers]
    prefix = torch.tensor([4, 1], dtype=torch.int32)
    path = torch.tensor([[0, 2, 5], [0, 3, -1]], dtype=torch.int32)
    OPS.commit_kv(buffers, prefix, path, torch.tensor([3, 0], dtype=torch.int32), no_status(2))
    for buffer, old in zip(buffers, before, strict=True):
        assert torch.equal(buffer[0, :, 4:7], old[0, :, [4, 6, 9]])
        assert torch.equal(buffer[1], old[1])


def test_the_ops_follow_the_rules_of_torch(rng: np.random.Generator) -> None:
    lists = candidate_lists(rng)
    grown = trees(lists)
    prefix = torch.zeros(BATCH, dtype=torch.int32)
    path = torch.tensor([[0, 2]] * BATCH, dtype=torch.int32)
    buffers = [torch.randn(BATCH, 2, 8, 4)]
    token, logprob = marginals(rng)
    owner = token[:, :2, :1].contiguous()
    samples: list[tuple[Any, tuple[Any, ...]]] = [
        (ops.rank_candidates, (torch.zeros(2, 3, 10), 8, 4, 1.0, no_status(2))),
        (ops.build_trees, ("opt_tree", "{}", BUDGET, *lists, roots(), no_status())),
        (ops.build_trees, ("dtree", "{}", BUDGET, token, logprob, None, roots(), no_status())),
        (ops.draw_trees, ("rollouts", "{}", BUDGET, VOCAB, *lists, roots(), keys(), no_status())),
        (ops.link_transitions, (token, logprob, owner)),
        (ops.score_lists, ('{"score_temperature": 0.5}', *lists)),
        (ops.score_lists, ("{}", token, logprob, None)),
        (ops.mask_trees, (grown.num_nodes, grown.parent, grown.depth, prefix, no_status())),
        (ops.commit_kv, (buffers, prefix, path, prefix + 2, no_status())),
    ]
    for op, arguments in samples:
        torch.library.opcheck(op, arguments)
    torch.library.opcheck(ops.root_scalars, (), scalar_arguments(rng))
    selector = random_selector({"draft_root": 12})
    inputs = random_inputs(rng, selector, BATCH)
    bounds = [[40] * BATCH, [16] * BATCH]
    given = choose_arguments(selector, *inputs, *bounds, no_status())
    torch.library.opcheck(ops.choose_shapes, given)
    arguments = verify_arguments(rng, grown, "greedy", 0.0)
    torch.library.opcheck(ops.verify_trees, (), arguments)
    torch.library.opcheck(ops.verify_trees, (), {**arguments, **score_changes()})


def test_a_program_of_all_ops_compiles_into_one_graph(rng: np.random.Generator) -> None:
    lists = candidate_lists(rng)
    buffers = [torch.randn(BATCH, 2, 20, 4)]

    def program(lists: CandidateLists, rest: dict[str, Any], kv: list[torch.Tensor]) -> Any:
        grown = Trees(*OPS.build_trees("opt_tree", "{}", BUDGET, *lists, roots(), no_status()))
        prefix = rest["prefix_length"]
        mask = OPS.mask_trees(grown.num_nodes, grown.parent, grown.depth, prefix, no_status())
        verdicts = Verdicts(*OPS.verify_trees(**{**rest, **tree_columns(grown)}))
        OPS.commit_kv(kv, prefix, verdicts.nodes, verdicts.num_accepted + 1, no_status())
        return grown, mask, verdicts

    rest = verify_arguments(rng, trees(lists), "greedy", 0.0)
    compiled = torch.compile(program, fullgraph=True, backend="eager")
    own, traced = [buffers[0].clone()], [buffers[0].clone()]
    expected, result = program(lists, rest, own), compiled(lists, rest, traced)
    for one, other in zip(expected, result, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(own[0], traced[0])


def test_cuda_tensors_need_a_build_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "cuda_built", lambda: False)
    with pytest.raises(NotImplementedError, match="CUDA tensors need a build with CUDA"):
        cuda_ops.require_cuda()
    names = [name for name in ops.__all__ if hasattr(getattr(ops, name), "register_kernel")]
    assert len(names) == 13
    for name in names:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"treespec::{name}", "CUDA")


def test_on_fake_cuda_tensors_outputs_are_on_the_device() -> None:
    with FakeTensorMode():
        logits = torch.empty(2, 3, 10, device="cuda")
        status = torch.zeros(2, dtype=torch.int32, device="cuda")
        token, logprob = OPS.rank_candidates(logits, 8, 4, 1.0, status)
        root, key = status + 4, torch.zeros(2, 2, dtype=torch.int64, device="cuda")
        drawn = OPS.draw_trees("rollouts", "{}", 5, 8, token, logprob, None, root, key, status)
    assert token.device.type == logprob.device.type == "cuda"
    assert (token.shape, token.dtype, logprob.dtype) == ((2, 3, 4), torch.int32, torch.float32)
    assert {array.device.type for array in drawn} == {"cuda"}
    row_of_node, prob, tokens, row_offset = drawn[7:]
    assert (row_of_node.shape, row_offset.shape) == ((2, 6), (13,))
    assert prob.shape == tokens.shape == (2 * 6 * 4,)
    assert (prob.dtype, row_offset.dtype) == (torch.float32, torch.int64)
