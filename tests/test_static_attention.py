# SPDX-License-Identifier: Apache-2.0
"""Static attention against its definition, and models run with it against the packed target."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from static_models import padded_tokens, plain_attention, row_mask, visible_keys
from tiny_models import ARCHITECTURES, tiny_model
from tiny_trees import PARENT, tokens, tree_rows

from treespec.static import choice
from treespec.static.attention import RowMask
from treespec.static.choice import AttentionShape, choose_attention, make_attention
from treespec.static.flex_attention import BLOCK_ROWS, FlexAttention, block_mask, visited_blocks
from treespec.static.kv import StaticKv
from treespec.static.runner import RowStates, StaticRunner
from treespec.static.split_attention import SplitAttention
from treespec.targets.base import Needs
from treespec.targets.hf import HfTarget
from treespec.targets.hf_attention import ScoreRule

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

ATTENTIONS = {"split": SplitAttention(), "flex": FlexAttention(compiled=False)}
WIDTH, VALUE_WIDTH, HEADS, KEY_HEADS, ENVELOPE = 8, 6, 4, 2, 300
RULES = {
    "plain": {},
    "window": {"window": 9},
    "short window": {"window": 2},
    "long window": {"window": 150},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.linspace(-1, 2, HEADS, dtype=torch.float64)},
    "everything": {"window": 40, "softcap": 3.0, "sinks": torch.zeros(HEADS, dtype=torch.float64)},
}
# Prefixes that end anywhere, one row before a block's end, and with it; one tree of 40 nodes, so
# that bits take two words.
LONG_PARENT = np.array([-1, *[i // 2 for i in range(39)]], dtype=np.int32)
PREFIXES = (1, BLOCK_ROWS - 1, 2 * BLOCK_ROWS + 3, BLOCK_ROWS)
TREES = [tree_rows(1), tree_rows(2, PARENT[:1]), tree_rows(3, LONG_PARENT), tree_rows(4)]


def random_case(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, RowMask]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    query = normal(4, HEADS, 40, WIDTH)
    key, value = normal(4, KEY_HEADS, ENVELOPE, WIDTH), normal(4, KEY_HEADS, ENVELOPE, VALUE_WIDTH)
    return query, key, value, row_mask(PREFIXES, TREES, 40, ENVELOPE)


def rule_of(name: str) -> ScoreRule:
    return ScoreRule(WIDTH**-0.5, **RULES[name])


@pytest.mark.parametrize("rule_name", RULES)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_float64_attention_is_plain_masked_attention(name: str, rule_name: str) -> None:
    query, key, value, mask = random_case(torch.float64)
    output = ATTENTIONS[name](query, key, value, mask, rule_of(rule_name))
    expected = plain_attention(query, key, value, mask, rule_of(rule_name))
    assert torch.allclose(output, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_narrow_attention_is_close(name: str, dtype: torch.dtype, tolerance: float) -> None:
    query, key, value, mask = random_case(dtype)
    output = ATTENTIONS[name](query, key, value, mask, rule_of("plain"))
    wide = plain_attention(query.double(), key.double(), value.double(), mask, rule_of("plain"))
    assert output.dtype == dtype
    assert torch.allclose(output.double(), wide, rtol=0, atol=tolerance)


@pytest.mark.parametrize("window", [None, 2, 9, 40, 130, 200])
def test_visited_blocks_leave_nothing_out_and_full_ones_hide_nothing(window: int | None) -> None:
    mask = random_case(torch.float32)[3]
    full, partial = visited_blocks(mask, window)
    rows = visible_keys(mask, window)
    padded = torch.nn.functional.pad(rows, (0, -ENVELOPE % BLOCK_ROWS))
    blocks = padded.unflatten(-1, (-1, BLOCK_ROWS))
    assert not (full & partial).any()
    assert blocks.all(-1).all(1)[full].all()
    assert not blocks.any(-1).any(1)[~(full | partial)].any()
    if window is None:  # the cost is that of the context
        used = [-(-(prefix + 40) // BLOCK_ROWS) for prefix in PREFIXES]
        assert (full | partial).sum(1).tolist() == used
        assert full.sum(1).tolist() == [prefix // BLOCK_ROWS for prefix in PREFIXES]


def test_the_block_lists_name_the_visited_blocks_first() -> None:
    mask = random_case(torch.float32)[3]
    full, partial = visited_blocks(mask, 130)
    blocks = block_mask(mask, 130)
    for chosen, count, order in (
        (partial, blocks.kv_num_blocks, blocks.kv_indices),
        (full, blocks.full_kv_num_blocks, blocks.full_kv_indices),
    ):
        for b in range(4):
            listed = order[b, 0, 0, : int(count[b, 0, 0])].tolist()
            assert listed == chosen[b].nonzero().flatten().tolist()


@pytest.mark.slow
def test_a_compiled_flex_kernel_visits_the_listed_blocks_only() -> None:
    """The only proof on a CPU that the lists are what the kernel reads, not the mask function."""
    query, key, value, mask = random_case(torch.float32)
    value = torch.cat([value, value[..., :2]], -1)  # the CPU kernel wants equal widths
    attention, rule = FlexAttention(compiled=True), rule_of("plain")
    with torch.inference_mode():
        output = attention(query, key, value, mask, rule)
        expected = plain_attention(query, key, value, mask, rule)
        assert torch.allclose(output, expected, rtol=0, atol=2e-6)
        block_mask(mask, None).full_kv_num_blocks[2] = 1  # forget the second block of the prefix
        fewer = attention(query, key, value, mask, rule)
    assert torch.equal(fewer[[0, 1, 3]], output[[0, 1, 3]])
    hidden = visible_keys(mask, None)
    hidden[2, :, BLOCK_ROWS : 2 * BLOCK_ROWS] = False
    scores = query[2] @ key[2].repeat_interleave(2, 0).mT * rule.scale
    weights = scores.masked_fill(~hidden[2], -torch.inf).softmax(-1)
    assert torch.allclose(fewer[2], weights @ value[2].repeat_interleave(2, 0), rtol=0, atol=2e-6)


# --- models ---------------------------------------------------------------------------------------

# Parts of HF are float32 whatever the model's dtype is: a router, the softmax of eager attention.
TOLERANCE = {"deepseek_v3": 1e-6}


def static_rows(
    name: str, attention: Any, needs: Needs | None = None
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Logits and states of two ragged trees by the static runner, and by the packed target."""
    model, needs = tiny_model(name, torch.float64), needs or Needs()
    target = HfTarget(model)
    prompts, trees = [tokens(20, 1), tokens(7, 2)], [tree_rows(5), tree_rows(6, PARENT[:4])]
    sequences = [target.open(64) for _ in prompts]
    target.prefill(sequences, prompts, Needs())
    kv = StaticKv(sequences[0], batch=2, capacity=64)
    for place, sequence in enumerate(sequences):
        kv.load(place, sequence)
    mask = row_mask([20, 7], trees, 13, attention.envelope(33, 64))
    runner = StaticRunner(model, attention, needs)
    own = runner.forward_with_states(kv, padded_tokens(trees, 13), mask)
    return own, target.forward(sequences, trees, needs)


def assert_packed_rows(name: str, attention: Any) -> None:
    (logits, _), (expected, _) = static_rows(name, attention)
    for own, packed in zip(logits, expected, strict=True):
        assert torch.allclose(own[: len(packed)], packed, rtol=0, atol=TOLERANCE.get(name, 1e-9))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_computes_what_the_packed_target_computes(name: str) -> None:
    assert_packed_rows(name, SplitAttention(smallest_envelope=32))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "qwen3_window", "deepseek_v3"])
def test_flex_runs_models_too(name: str) -> None:
    assert_packed_rows(name, ATTENTIONS["flex"])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "needs",
    [Needs(layers=(1, 0)), Needs(layers=(0,), last_hidden=True), Needs(last_hidden=True), Needs()],
    ids=str,
)
def test_states_are_those_of_the_packed_target(name: str, needs: Needs) -> None:
    (_, own), (_, expected) = static_rows(name, SplitAttention(smallest_envelope=32), needs)
    for b, states in enumerate(expected):
        for field in ("features", "last_hidden"):
            rows, packed = getattr(own, field), getattr(states, field)
            assert (rows is None) == (packed is None)
            if packed is not None:
                difference = rows[b, : len(packed)] - packed
                assert difference.abs().max() < TOLERANCE.get(name, 1e-9)


def test_states_of_a_path_are_chosen_by_numbers_on_the_device() -> None:
    hidden = torch.arange(2.0 * 4 * 3).view(2, 4, 3)
    path = torch.tensor([[0, 2, -1], [0, 1, 3]], dtype=torch.int32)
    features, kept = RowStates(None, hidden).rows(path)
    assert features is None and kept is not None
    assert torch.equal(kept[0, :2], hidden[0, [0, 2]])
    assert torch.equal(kept[1], hidden[1, [0, 1, 3]])


def test_layers_that_a_model_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers must be in \[0, 2\), got 2"):
        static_rows("llama", SplitAttention(), Needs(layers=(2,)))


def test_positions_beyond_a_table_are_moved_to_its_end() -> None:
    model = tiny_model("gpt2", torch.float64, n_positions=24)
    target = HfTarget(model)
    sequence = target.open(64)
    target.prefill([sequence], [tokens(20)], Needs())
    kv = StaticKv(sequence, 1, 64)
    kv.load(0, sequence)
    chain = tree_rows(1, np.arange(-1, 7, dtype=np.int32))
    runner = StaticRunner(model, SplitAttention())
    logits = runner.forward(kv, padded_tokens([chain], 8), row_mask([20], [chain], 8, 64))
    whole, _ = target.forward([sequence], [tree_rows(1, chain.parent[:4])], Needs())
    assert torch.allclose(logits[0, :4], whole[0], rtol=0, atol=1e-12)


def test_what_cannot_run_is_refused() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    model = tiny_model("phi3", original_max_position_embeddings=16, rope_parameters=rope)
    with pytest.raises(NotImplementedError, match="rotation of Phi3ForCausalLM depends"):
        StaticRunner(model, SplitAttention())
    target = HfTarget(tiny_model("llama"))
    sequence = target.open(16)
    target.prefill([sequence], [tokens(9)], Needs())
    with pytest.raises(ValueError, match="capacity must be at least 9, got 8"):
        StaticKv(sequence, 1, 8).load(0, sequence)
    with pytest.raises(ValueError, match="must be one of split, flex; got 'dense'"):
        make_attention("dense", torch.device("cpu"))


def test_the_attention_is_chosen_by_time_and_the_choice_is_logged(
    monkeypatch: Any, caplog: Any
) -> None:
    seconds = {"split": 2e-3, "flex": 1e-3}
    monkeypatch.setattr(choice, "_trial", lambda attention, *_: attention)
    monkeypatch.setattr(choice, "_fastest", lambda run, device: seconds[run.name])
    shape = AttentionShape(1, 4, 2, 8, 5, 100, 256)
    with caplog.at_level(logging.INFO, "treespec"):
        assert choose_attention(shape, torch.float32, torch.device("cpu")).name == "flex"
        seconds["flex"] = 3e-3
        assert choose_attention(shape, torch.float32, torch.device("cpu")).name == "flex"  # kept
    assert caplog.messages == ["static attention on cpu: flex (per layer: split 2 ms, flex 1 ms)"]
    choose_attention.cache_clear()


def test_an_older_torch_has_one_attention(monkeypatch: Any) -> None:
    monkeypatch.delattr(torch.nn.attention.flex_attention, "AuxRequest")
    monkeypatch.setattr(choice, "_fastest", lambda run, device: 1.0)
    shape = AttentionShape(1, 4, 2, 8, 5, 100, 256)
    assert choose_attention(shape, torch.float32, torch.device("cpu")).name == "split"
    choose_attention.cache_clear()


def test_the_attention_is_really_timed() -> None:
    shape = AttentionShape(2, 4, 2, 16, 5, 100, 512)
    chosen = choose_attention(shape, torch.float32, torch.device("cpu"))
    assert chosen.name in ("split", "flex")
    choose_attention.cache_clear()


def test_envelopes_double() -> None:
    attention = SplitAttention(smallest_envelope=64)
    asked = [attention.envelope(rows, 300) for rows in (1, 64, 65, 200, 290)]
    assert asked == [64, 64, 128, 256, 300]
