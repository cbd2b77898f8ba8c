# SPDX-License-Identifier: Apache-2.0
"""DFlash and its conditionals: what they compute, and that drafting leaves no trace."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_drafters import MASK, tiny_dflash, with_every_second_token
from tiny_models import VOCAB_SIZE, tiny_model

import treespec
from treespec import _core
from treespec.decoder import SpeculativeDecoder
from treespec.drafts.base import DraftSettings
from treespec.drafts.dflash import feature_layers
from treespec.growth import grow_tree
from treespec.targets.base import TargetStates
from treespec.targets.hf import load_target

SETTINGS = DraftSettings(node_budget=16)
KINDS = [None, "treeflash", "pairwise"]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"predicts_next": True},
    {"windows": (5, None)},
    {"windows": (3, 8), "windows_causal": False},
    {"windows": (4, None), "causal": True, "block_size": 3},
]


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, count, dtype=np.int32)


def states_of(model: Any, ids: np.ndarray) -> TargetStates:
    """Outputs of layers 0 and 1, from the model's own tuple."""
    with torch.inference_mode():
        output = model(torch.tensor(ids[None].astype(np.int64)), output_hidden_states=True)
    # The last entry of the tuple is normed; a hook takes the layer's own output.
    kept: dict[int, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out, n=n: kept.__setitem__(n, _plain(out)))
        for n, layer in enumerate(model.model.layers)
    ]
    with torch.inference_mode():
        model(torch.tensor(ids[None].astype(np.int64)))
    for hook in hooks:
        hook.remove()
    assert torch.allclose(kept[0], output.hidden_states[1][0])
    return TargetStates(torch.cat([kept[0], kept[1]], dim=-1))


def _plain(output: Any) -> torch.Tensor:
    return (output if isinstance(output, torch.Tensor) else output[0])[0]


def started(drafter: Any, model: Any, ids: np.ndarray, cuts: list[int] | None = None) -> Any:
    """A session with root ``ids[-1]``, observed in the given pieces."""
    states = states_of(model, ids)
    first, *rest = cuts or [len(ids) - 1]
    session = drafter.begin(ids[:first], states.rows(np.arange(first)), 8)
    drafter.observe(session, ids[first : first + 1], None)
    for begin, end in zip([first, *rest], [*rest, len(ids) - 1], strict=True):
        if end > begin:
            rows = states.rows(np.arange(begin, end))
            drafter.observe(session, ids[begin + 1 : end + 1], rows)
    return session


# --- The formulas, written anew with loops --------------------------------------------------------


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def rope(x: torch.Tensor, position: int) -> torch.Tensor:
    half = len(x) // 2
    angle = position * 10000.0 ** (-torch.arange(half, dtype=torch.float64) * 2 / len(x))
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([x[:half] * cos - x[half:] * sin, x[half:] * cos + x[:half] * sin])


@torch.no_grad()
def plain_states(drafter: Any, features: torch.Tensor, root: int) -> torch.Tensor:
    """Pre-norm states ``[D, H]`` of the block behind context rows ``features [s, k * H]``."""
    model, config = drafter.model, drafter.model.config
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    embedding = drafter.tokens.embedding.weight.double()
    context = rms(features.double() @ weights["fc.weight"].T, weights["hidden_norm.weight"])
    s, size, width = len(context), config.block_size, config.shape.head_dim
    block = torch.stack([embedding[root]] + [embedding[MASK]] * (size - 1))
    for n in range(config.shape.num_hidden_layers):
        own = {k.split(f"layers.{n}.")[1]: v for k, v in weights.items() if f"layers.{n}." in k}
        normed = rms(block, own["input_layernorm.weight"])
        everything = torch.cat([context, normed])
        out = torch.zeros(size, config.shape.num_attention_heads * width, dtype=torch.float64)
        q, k, v, o = (own[f"self_attn.{letter}_proj.weight"] for letter in "qkvo")
        groups = config.shape.num_attention_heads // config.shape.num_key_value_heads
        for head in range(config.shape.num_attention_heads):
            rows = slice(head * width, head * width + width)
            shared = slice(head // groups * width, head // groups * width + width)
            keys = rms(everything @ k[shared].T, own["self_attn.k_norm.weight"])
            values = everything @ v[shared].T
            queries = rms(normed @ q[rows].T, own["self_attn.q_norm.weight"])
            for m in range(size):
                query = rope(queries[m], s + m)
                scores = torch.full((s + size,), -math.inf, dtype=torch.float64)
                for j in range(s + size):
                    window = config.window(n)
                    distance = s + m - j
                    hidden = (config.causal or (window and config.windows_causal)) and distance < 0
                    if not hidden and not (window and distance >= window):
                        scores[j] = query @ rope(keys[j], j) / math.sqrt(width)
                out[m, rows] = scores.softmax(0) @ values
        block = block + out @ o.T
        inner = rms(block, own["post_attention_layernorm.weight"])
        gate, up = inner @ own["mlp.gate_proj.weight"].T, inner @ own["mlp.up_proj.weight"].T
        block = block + (torch.nn.functional.silu(gate) * up) @ own["mlp.down_proj.weight"].T
    return block if config.predicts_next else block[1:]


@torch.no_grad()
def plain_logits(drafter: Any, state: torch.Tensor, previous: int) -> torch.Tensor:
    """``[V]`` after a previous token, or whatever it was without a conditional."""
    norm, head = drafter.model.norm.weight.double(), drafter.tokens.head.weight.double()
    module = drafter.conditional
    if module is None:
        out = head @ rms(state, norm)
    elif hasattr(module, "ug"):
        embedded = drafter.tokens.embedding.weight[previous].double()
        before = rms(embedded, module.norm.weight.double())
        both = torch.cat([before, rms(state, norm)])
        up, gate = (module.ug.weight.double() @ both + module.ug.bias.double()).chunk(2)
        corrected = state + module.d.weight.double() @ (torch.nn.functional.silu(gate) * up)
        out = head @ rms(corrected, norm)
    else:
        normed = rms(state, norm)
        pair = module.predecessor_codebook[previous].double() * (
            module.hidden_projection.weight.double() @ normed
        )
        out = head @ normed + module.successor_codebook.double() @ pair
    out[MASK] = -math.inf
    return out


# --- What is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_states_equal_the_formulas(variant: dict[str, Any]) -> None:
    model = tiny_model("llama", torch.float64)
    drafter = tiny_dflash(model, **variant)
    ids = tokens(13)
    session = started(drafter, model, ids)
    with torch.inference_mode():
        (states,) = drafter.states([session])
    features = states_of(model, ids).features
    assert features is not None
    wanted = plain_states(drafter, features[:-1], int(ids[-1]))
    assert states.shape == wanted.shape
    assert torch.allclose(states, wanted, rtol=0, atol=2e-5)  # norms are float32 in the library


@pytest.mark.parametrize("kind", ["treeflash", "pairwise"])
def test_transitions_equal_the_formulas(kind: str) -> None:
    model = tiny_model("llama", torch.float64)
    drafter = tiny_dflash(model, kind, num_previous=4, width=5)
    ids = tokens(9)
    features = states_of(model, ids).features
    assert features is not None
    states = plain_states(drafter, features[:-1], int(ids[-1]))
    (source,) = drafter.draft([started(drafter, model, ids)], SETTINGS)
    token, logprob, follow = source.arrays
    assert token.shape == (5, 4, 5)
    marginal = [plain_logits(tiny_dflash(model), state, 0) for state in states]
    owners = [[int(ids[-1])]] + [m.topk(4).indices.tolist() for m in marginal[:-1]]
    for depth, state in enumerate(states):
        for row, previous in enumerate(owners[depth]):
            law = plain_logits(drafter, state, previous).log_softmax(0)
            best = law.topk(5)
            assert token[depth, row].tolist() == best.indices.tolist()
            assert np.allclose(logprob[depth, row], best.values.numpy(), atol=2e-5)
            for place, child in enumerate(best.indices.tolist()):
                below = owners[depth + 1] if depth + 1 < len(states) else []
                wanted = below.index(child) if child in below else -1
                assert follow[depth, row, place] == wanted


def test_marginals_equal_the_formulas_and_never_hold_the_mask() -> None:
    model = tiny_model("llama", torch.float64)
    drafter = tiny_dflash(model)
    ids = tokens(9)
    features = states_of(model, ids).features
    assert features is not None
    (source,) = drafter.draft([started(drafter, model, ids)], DraftSettings(node_budget=VOCAB_SIZE))
    token, logprob = source.arrays
    for depth, state in enumerate(plain_states(drafter, features[:-1], int(ids[-1]))):
        law = plain_logits(drafter, state, 0).log_softmax(0)
        possible = np.isfinite(logprob[depth])
        assert MASK not in token[depth][possible]
        assert np.allclose(logprob[depth][possible], law[token[depth][possible]], atol=2e-5)


# --- Sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_observed_counts_not_how_it_is_split(kind: str | None) -> None:
    model = tiny_model("llama", torch.float64)
    drafter = tiny_dflash(model, kind)
    ids = tokens(20)
    (wanted,) = drafter.draft([started(drafter, model, ids)], SETTINGS)
    for cuts in ([5], [1, 2, 3, 12], [5, 6, 9, 18], [18]):
        session = started(drafter, model, ids, cuts)
        (source,) = drafter.draft([session], SETTINGS)
        for one, other in zip(source.arrays, wanted.arrays, strict=True):
            assert np.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_drafting_twice_gives_the_same_and_leaves_no_trace(kind: str | None) -> None:
    model = tiny_model("llama")
    drafter = tiny_dflash(model, kind)
    ids = tokens(20)
    session = started(drafter, model, ids, [5])
    first, second = (drafter.draft([session], SETTINGS)[0] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.arrays, second.arrays, strict=True))
    assert session.length == 19
    more, states = tokens(3, 9), states_of(model, np.concatenate([ids, tokens(3, 9)]))
    drafter.observe(session, more, states.rows(np.arange(19, 22)))
    fresh = started(drafter, model, np.concatenate([ids, more]))
    (one,), (other,) = (drafter.draft([s], SETTINGS) for s in (session, fresh))
    assert np.allclose(one.arrays[1], other.arrays[1], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_ragged_batch_equals_single_drafts(kind: str | None) -> None:
    model = tiny_model("llama", torch.float64)
    drafter = tiny_dflash(model, kind, windows=(6, None))
    texts = [tokens(size, size) for size in (3, 17, 9)]
    sessions = [started(drafter, model, text) for text in texts]
    together = drafter.draft(sessions, SETTINGS)
    for session, source in zip(sessions, together, strict=True):
        (alone,) = drafter.draft([session], SETTINGS)
        assert np.array_equal(source.arrays[0], alone.arrays[0])
        assert np.allclose(source.arrays[1], alone.arrays[1], atol=1e-6)


def test_one_pass_per_draft() -> None:
    model = tiny_model("llama")
    drafter = tiny_dflash(model, "treeflash")
    calls: list[int] = []
    drafter.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    sessions = [started(drafter, model, tokens(size)) for size in (5, 8)]
    drafter.draft(sessions, SETTINGS)
    assert len(calls) == 1


def test_a_session_without_a_root_and_states_without_features_are_refused() -> None:
    model = tiny_model("llama")
    drafter = tiny_dflash(model)
    ids = tokens(4)
    session = drafter.begin(ids, states_of(model, ids), 8)
    with pytest.raises(ValueError, match="must have observed a token"):
        drafter.draft([session], SETTINGS)
    with pytest.raises(ValueError, match="features of `needs`"):
        drafter.begin(ids, None, 8)


# --- Tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["treeflash", "pairwise"])
def test_a_fresh_conditional_leaves_the_marginals_as_they_are(kind: str) -> None:
    model = tiny_model("llama", torch.float64)
    plain, drafter = tiny_dflash(model), tiny_dflash(model, kind, num_previous=6, width=6)
    with torch.no_grad():
        if kind == "treeflash":
            drafter.conditional.d.weight.zero_()
        else:
            drafter.conditional.successor_codebook.zero_()
    ids = tokens(9)
    (table,) = drafter.draft([started(drafter, model, ids)], SETTINGS)
    (marginals,) = plain.draft([started(plain, model, ids)], SETTINGS)
    for depth in range(5):
        rows = 1 if depth == 0 else 6
        for row in range(rows):
            assert table.arrays[0][depth, row].tolist() == marginals.arrays[0][depth, :6].tolist()
            assert np.allclose(table.arrays[1][depth, row], marginals.arrays[1][depth, :6])
    short = treespec.Marginals(marginals.arrays[0][:, :6], marginals.arrays[1][:, :6])
    builder = _core.TreeBuilder("dtree")
    one, other = (grow_tree(builder, source, 40) for source in (table, short))
    assert np.array_equal(one.token, other.token) and np.array_equal(one.parent, other.parent)


@pytest.mark.parametrize("kind", ["treeflash", "pairwise"])
def test_the_table_with_one_row_is_the_cheap_chain(kind: str) -> None:
    model = tiny_model("llama", torch.float64)
    drafter = tiny_dflash(model, kind, num_previous=1, width=1)
    ids = tokens(9)
    (table,) = drafter.draft([started(drafter, model, ids)], SETTINGS)
    tree = grow_tree(_core.TreeBuilder("dtree"), table, drafter.model.config.depth)
    # Every depth after the marginal's likeliest token of the one before, as long as they agree.
    (marginals,) = tiny_dflash(model).draft([started(drafter, model, ids)], SETTINGS)
    chain = [int(table.arrays[0][0, 0, 0])]
    for depth in range(1, drafter.model.config.depth):
        if chain[-1] != marginals.arrays[0][depth - 1, 0]:
            break
        chain.append(int(table.arrays[0][depth, 0, 0]))
    assert tree.token[1:].tolist() == chain
    assert tree.parent.tolist() == list(range(-1, len(chain)))


@pytest.mark.parametrize("kind", ["treeflash", "pairwise"])
def test_a_chain_follows_its_own_likeliest_tokens(kind: str) -> None:
    model = tiny_model("llama", torch.float64)
    drafter = tiny_dflash(model, kind, chain=True)
    ids = tokens(9)
    features = states_of(model, ids).features
    assert features is not None
    (source,) = drafter.draft([started(drafter, model, ids)], SETTINGS)
    tree = grow_tree(_core.TreeBuilder("chain"), source, 5)
    previous, wanted = int(ids[-1]), []
    for state in plain_states(drafter, features[:-1], previous):
        previous = int(plain_logits(drafter, state, previous).argmax())
        wanted.append(previous)
    assert tree.token[1:].tolist() == wanted


@pytest.mark.parametrize("kind", ["treeflash", "pairwise"])
def test_a_head_over_all_tokens_as_candidates_is_the_full_head(kind: str) -> None:
    model = tiny_model("llama", torch.float64)
    full = tiny_dflash(model, kind)
    narrow = tiny_dflash(model, kind, head_rows=VOCAB_SIZE - 1)  # all but the mask
    ids = tokens(9)
    (one,) = full.draft([started(full, model, ids)], SETTINGS)
    (other,) = narrow.draft([started(narrow, model, ids)], SETTINGS)
    assert np.array_equal(one.arrays[0], other.arrays[0])
    assert np.allclose(one.arrays[1], other.arrays[1], atol=1e-5)
    assert np.array_equal(one.arrays[2], other.arrays[2])


def test_a_restricted_head_keeps_the_mass_of_its_candidates() -> None:
    model = tiny_model("llama", torch.float64)
    drafter = tiny_dflash(model, "treeflash", head_rows=8, width=8)
    plain = tiny_dflash(model, width=8)
    ids = tokens(9)
    (table,) = drafter.draft([started(drafter, model, ids)], SETTINGS)
    (marginals,) = plain.draft([started(plain, model, ids)], SETTINGS)
    for depth in range(5):
        allowed = set(marginals.arrays[0][depth].tolist())
        mass = np.exp(marginals.arrays[1][depth]).sum()
        for row in range(1 if depth == 0 else 8):
            assert set(table.arrays[0][depth, row].tolist()) == allowed
            assert np.exp(table.arrays[1][depth, row]).sum() == pytest.approx(mass, rel=1e-5)


def test_sizes_grow_with_the_budget() -> None:
    model = tiny_model("llama")
    drafter = tiny_dflash(model, "treeflash")
    session = started(drafter, model, tokens(9))
    for budget, rows, width in ((16, 8, 16), (64, 8, 16), (65, 16, 32)):
        (source,) = drafter.draft([session], DraftSettings(node_budget=budget))
        assert source.arrays[0].shape == (5, rows, width)
    (source,) = drafter.draft([session], DraftSettings(node_budget=16, max_depth=2))
    assert source.arrays[0].shape == (2, 8, 16)


def test_a_reduced_vocabulary_is_mapped() -> None:
    model = tiny_model("llama", torch.float64)
    for kind in (None, "treeflash"):
        whole = tiny_dflash(model, kind)
        kept = torch.arange(1, VOCAB_SIZE, 2)
        small = with_every_second_token(tiny_dflash(model, kind))
        ids = tokens(9)
        (source,) = small.draft([started(small, model, ids)], SETTINGS)
        token, logprob = source.arrays[:2]
        assert set(token[np.isfinite(logprob)].tolist()) <= set(kept.tolist())
        features = states_of(model, ids).features
        assert features is not None
        state = plain_states(small, features[:-1], int(ids[-1]))[0]
        logits = plain_logits(whole, state, int(ids[-1]))[kept]
        first = token[0] if kind is None else token[0, 0]
        assert first[:4].tolist() == kept[logits.topk(4).indices].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_previous": 0}, "num_previous must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"head_rows": "some"}, "head_rows must be 'all' or at least 1, got 'some'"),
        ({"chain": True, "conditional": None}, "need a conditional"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    conditional = options.pop("conditional", "treeflash")
    with pytest.raises(ValueError, match=message):
        tiny_dflash(tiny_model("llama"), conditional, **options)


def test_default_layers_are_those_of_published_drafters() -> None:
    assert feature_layers(36, 5) == (1, 9, 17, 25, 33)
    assert feature_layers(32, 5) == (1, 8, 15, 22, 29)
    assert feature_layers(64, 5) == (1, 16, 31, 46, 61)
    assert feature_layers(12, 1) == (6,)


# --- Decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "kind", "builder"),
    [
        *(("llama", kind, builder) for kind in KINDS for builder in ("dtree", "opt_tree", "chain")),
        ("gemma2", "treeflash", "dtree"),
        ("qwen3_window", "treeflash", "dtree"),
    ],
)
def test_text_is_that_of_plain_decoding(architecture: str, kind: str | None, builder: str) -> None:
    model = tiny_model(architecture, torch.float64)
    target = load_target(model)
    drafter = tiny_dflash(model, kind)
    plain = SpeculativeDecoder(target)
    decoder = SpeculativeDecoder(target, drafter, builder=builder, node_budget=12)
    prompts = [tokens(size, size).tolist() for size in (4, 11)]
    for sampling in ({}, {"temperature": 0.9, "top_p": 0.9}):
        options = {**sampling, "max_new_tokens": 16, "seed": 3, "ignore_eos": True}
        wanted = [result.token_ids for result in plain.generate(prompts, **options)]
        results = decoder.generate(prompts, **options)
        assert [result.token_ids for result in results] == wanted
        rounds = max(one.stats.rounds for one in results)
        # A pass per round, but none in a last round that could emit nothing more.
        assert results[0].stats.draft_calls in (rounds - 1, rounds)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_trees_decode_with_rejection_rules(kind: str | None) -> None:
    model = tiny_model("llama", torch.float64)
    decoder = SpeculativeDecoder(
        load_target(model), tiny_dflash(model, kind), builder="dyspec", node_budget=12
    )
    result = decoder.generate(tokens(5).tolist(), max_new_tokens=24, temperature=0.9, seed=1)
    assert result.token_ids and result.stats.rounds
