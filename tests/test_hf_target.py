# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face target: a tree forward equals one full forward per root-to-node path."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_models import ARCHITECTURES, RECURRENT, VOCAB_SIZE, WINDOW, tiny_model
from tiny_trees import PARENT, tokens, tree_rows

from treespec.targets.base import Needs, TreeRows
from treespec.targets.hf import HfTarget, load_target
from treespec.targets.hf_attention import attention_bias
from treespec.targets.hf_cache import KvSequence, Segment
from treespec.targets.hf_runner import PackedRunner, model_view
from treespec.targets.hf_sequential import SequentialTarget

# Parts of HF are float32 whatever the model's dtype is: the softmax of eager attention, a router.
FLOAT64_TOLERANCE = {"gemma2": 1e-5, "deepseek_v3": 1e-6}
WINDOWED = ["qwen3_window", "mistral_window", "gemma2", "gemma3", "gpt_oss", "phimoe_window"]
NOTHING = Needs()


def path_to(tree: TreeRows, node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = int(tree.parent[node])
    return path[::-1]


def plain_logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits after the last token by one cache-free forward of the model as its user has it."""
    with torch.inference_mode():
        return model(torch.tensor([list(map(int, ids))]), use_cache=False).logits[0, -1]


def path_logits(model: Any, prompt: npt.NDArray[np.int32], tree: TreeRows) -> torch.Tensor:
    paths = [[*prompt, *tree.token[path_to(tree, node)]] for node in range(len(tree))]
    return torch.stack([plain_logits(model, path) for path in paths])


def reference_model(name: str, dtype: torch.dtype = torch.float64) -> Any:
    model = tiny_model(name, dtype)
    if name == "gemma2":
        model.set_attn_implementation("eager")  # sdpa would drop the soft cap
    return model


def prefilled(
    target: HfTarget, prompt: npt.NDArray[np.int32], capacity: int = 96
) -> tuple[KvSequence, torch.Tensor]:
    sequence = target.open(capacity)
    logits, _ = target.prefill([sequence], [prompt], NOTHING)
    return sequence, logits[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tree_forward_equals_one_full_forward_per_path(name: str, dtype: torch.dtype) -> None:
    model, prompt, tree = reference_model(name, dtype), tokens(20), tree_rows()
    target = HfTarget(model)
    sequence, last = prefilled(target, prompt)
    rows, _ = target.forward([sequence], [tree], NOTHING)
    tolerance = FLOAT64_TOLERANCE.get(name, 1e-9) if dtype == torch.float64 else 2e-5
    assert torch.allclose(last, plain_logits(model, prompt), rtol=0, atol=tolerance)
    assert rows[0].dtype == dtype
    assert torch.allclose(rows[0], path_logits(model, prompt, tree), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", WINDOWED)
def test_the_window_hides_something(name: str) -> None:
    windowed = tiny_model(name, torch.float64)
    full = tiny_model(name, torch.float64, sliding_window=10_000)
    prompt = tokens(4 * WINDOW)
    rows = [prefilled(HfTarget(model), prompt)[1] for model in (windowed, full)]
    assert (rows[0] - rows[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gemma2", "deepseek_v3"])
def test_a_ragged_batch_equals_single_runs(name: str) -> None:
    target = HfTarget(tiny_model(name, torch.float64))
    prompts = [tokens(size, size) for size in (3, 25, 11)]
    trees = [tree_rows(5), tree_rows(6, np.array([-1], dtype=np.int32)), tree_rows(7, PARENT[:5])]
    batch = [target.open(64) for _ in prompts]
    firsts, _ = target.prefill(batch, prompts, NOTHING)
    rows, _ = target.forward(batch, trees, NOTHING)
    for prompt, tree, first, row in zip(prompts, trees, firsts, rows, strict=True):
        sequence, alone = prefilled(target, prompt)
        expected, _ = target.forward([sequence], [tree], NOTHING)
        tolerance = FLOAT64_TOLERANCE.get(name, 1e-12)
        assert torch.allclose(first, alone, rtol=0, atol=tolerance)
        assert torch.allclose(row, expected[0], rtol=0, atol=tolerance)


def test_a_long_batch_mate_does_not_change_the_rotation() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    model = tiny_model(
        "phi3",
        torch.float64,
        original_max_position_embeddings=16,
        rope_parameters={**rope, "original_max_position_embeddings": 16},
    )
    target = HfTarget(model)
    prompts = [tokens(5), tokens(30)]
    needs = Needs(last_hidden=True)
    logits, states = target.prefill([target.open(32), target.open(32)], prompts, needs)
    for prompt, row, state in zip(prompts, logits, states, strict=True):
        assert torch.allclose(row, plain_logits(model, prompt), rtol=0, atol=1e-12)
        assert state.last_hidden.shape == (len(prompt), 32)


def test_positions_beyond_a_learned_table_are_refused() -> None:
    target = HfTarget(tiny_model("gpt2"))
    sequence = target.open(512)
    with pytest.raises(ValueError, match="positions must be below 256"):
        target.prefill([sequence], [tokens(257)], NOTHING)
    assert sequence.length == 0


def test_threads_share_a_target() -> None:
    target = HfTarget(tiny_model("llama", torch.float64))

    def run(seed: int) -> bool:
        prompt, tree = tokens(5 + seed, seed), tree_rows(seed)
        needs = Needs(layers=(seed % 2,))
        results = []
        for _ in range(8):
            sequence, _ = prefilled(target, prompt)
            rows, states = target.forward([sequence], [tree], needs)
            results.append((rows[0], states[0].features))
        return all(torch.equal(a, b) for r in results for a, b in zip(r, results[0], strict=True))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(run, range(6)))


def test_a_batch_mate_of_nan_does_not_leak() -> None:
    model = tiny_model("llama", torch.float64)
    with torch.no_grad():
        model.get_input_embeddings().weight[1] = torch.nan
    target = HfTarget(model)
    prompt, poison = tokens(9), np.ones(5, dtype=np.int32)
    batch = [target.open(32), target.open(32)]
    logits, _ = target.prefill(batch, [prompt, poison], NOTHING)
    assert logits[1].isnan().all()
    assert torch.allclose(logits[0], prefilled(target, prompt)[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma2", "gpt2", "gpt_neox"])
def test_prefill_in_small_chunks_equals_one_chunk(name: str) -> None:
    model = tiny_model(name, torch.float64)
    prompts = [tokens(23, 1), tokens(17, 2)]
    needs = Needs(layers=(0,), last_hidden=True)
    results = []
    for max_rows in (5, 2048):
        target = HfTarget(model, prefill_rows=max_rows)
        batch = [target.open(32), target.open(32)]
        results.append(target.prefill(batch, prompts, needs))
        assert [sequence.length for sequence in batch] == [23, 17]
    for chunked, whole in zip(results[0][0], results[1][0], strict=True):
        assert torch.allclose(chunked, whole, rtol=0, atol=1e-12)
    for chunked, whole in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(chunked.features, whole.features, rtol=0, atol=1e-12)
        assert torch.allclose(chunked.last_hidden, whole.last_hidden, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "qwen3_window", "mistral_window", "gemma2", "gpt2"])
def test_after_a_commit_the_next_logits_are_those_of_a_fresh_prefill(name: str) -> None:
    model = tiny_model(name, torch.float64)
    target = HfTarget(model)
    context = list(tokens(10))
    sequence, _ = prefilled(target, tokens(10))
    for seed, leaf in ((2, 9), (3, 3), (4, 0), (5, 5)):
        tree = tree_rows(seed)
        target.forward([sequence], [tree], NOTHING)
        path = path_to(tree, leaf)
        target.commit([sequence], [np.array(path)])
        context += tree.token[path].tolist()
    assert sequence.length == len(context)
    following, _ = target.forward([sequence], [TreeRows.chain([7])], NOTHING)
    _, fresh = prefilled(target, np.array([*context, 7], dtype=np.int32))
    assert torch.allclose(following[0][0], fresh, rtol=0, atol=1e-10)


def test_commit_moves_rows_bit_for_bit() -> None:
    target = HfTarget(tiny_model("llama"))
    sequence, _ = prefilled(target, tokens(5))
    target.forward([sequence], [tree_rows()], NOTHING)
    nodes = np.array([0, 2, 5])
    before = [layer.blocks[0].clone() for layer in sequence._layers.values()]
    target.commit([sequence], [nodes])
    for old, layer in zip(before, sequence._layers.values(), strict=True):
        assert torch.equal(layer.blocks[0][:, :, :5], old[:, :, :5])
        assert torch.equal(layer.blocks[0][:, :, 5:8], old[:, :, 5 + nodes])


def test_an_empty_commit_rolls_the_tree_back() -> None:
    target = HfTarget(tiny_model("llama", torch.float64))
    sequence, _ = prefilled(target, tokens(10))
    target.forward([sequence], [tree_rows(3)], NOTHING)
    target.commit([sequence], [np.array([], dtype=np.int64)])
    assert sequence.length == 10
    again, _ = target.forward([sequence], [tree_rows(4)], NOTHING)
    fresh, _ = prefilled(target, tokens(10))
    expected, _ = target.forward([fresh], [tree_rows(4)], NOTHING)
    assert torch.equal(again[0], expected[0])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma3"])
def test_captured_states_equal_output_hidden_states(name: str) -> None:
    model = tiny_model(name, torch.float64)
    target = HfTarget(model)
    prompts = [tokens(12, 1), tokens(7, 2)]
    batch = [target.open(32), target.open(32)]
    needs = Needs(layers=(1, 0), last_hidden=True)
    _, states = target.prefill(batch, prompts, needs)
    for prompt, state in zip(prompts, states, strict=True):
        with torch.inference_mode():
            outputs = model(torch.tensor(prompt)[None].long(), output_hidden_states=True)
        hidden = outputs.hidden_states
        assert state.features.shape == (len(prompt), 64)
        assert torch.allclose(state.features[:, 32:], hidden[1][0], rtol=0, atol=1e-12)
        assert torch.allclose(state.last_hidden, hidden[-1][0], rtol=0, atol=1e-12)
    # The tuple has the last layer after the final norm only, so it is checked through the norm.
    norm = getattr(model.base_model, "norm", None) or getattr(
        model.base_model, "ln_f", getattr(model.base_model, "final_layer_norm", None)
    )
    with torch.inference_mode():
        assert torch.allclose(norm(states[0].features[:, :32]), states[0].last_hidden, atol=1e-12)


def test_states_of_tree_nodes_follow_the_nodes() -> None:
    target = HfTarget(tiny_model("llama", torch.float64))
    sequence, _ = prefilled(target, tokens(10))
    rows, states = target.forward([sequence], [tree_rows()], Needs(last_hidden=True))
    head = target.model.get_output_embeddings()
    with torch.inference_mode():
        assert torch.allclose(head(states[0].last_hidden), rows[0], rtol=0, atol=1e-12)
    picked = states[0].rows(np.array([0, 2, 5]))
    assert torch.equal(picked.last_hidden, states[0].last_hidden[[0, 2, 5]])


def test_a_state_that_does_not_exist_is_refused() -> None:
    target = HfTarget(tiny_model("llama"))
    with pytest.raises(ValueError, match=r"layers must be in \[0, 2\), got 2"):
        target.prefill([target.open(8)], [tokens(3)], Needs(layers=(2,)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "qwen3_window"])
def test_half_precision_is_as_close_to_the_truth_as_plain_forwards(
    name: str, dtype: torch.dtype
) -> None:
    model, prompt, tree = reference_model(name, dtype), tokens(20), tree_rows()
    target = HfTarget(model)
    sequence, _ = prefilled(target, prompt)
    rows, _ = target.forward([sequence], [tree], NOTHING)
    plain = path_logits(model, prompt, tree).double()
    truth = path_logits(copy.deepcopy(model).double(), prompt, tree)
    assert rows[0].dtype == dtype
    ours, theirs = ((logits - truth).square().mean().sqrt() for logits in (rows[0].double(), plain))
    assert ours < 1.5 * theirs + 1e-3


def test_capacity_is_checked_before_any_work() -> None:
    target = HfTarget(tiny_model("llama"))
    sequence, _ = prefilled(target, tokens(10), capacity=16)
    with pytest.raises(ValueError, match="KV capacity must be at least 21, got 16"):
        target.forward([sequence], [tree_rows()], NOTHING)
    with pytest.raises(ValueError, match="KV capacity must be at least 17, got 16"):
        target.prefill([sequence], [tokens(7)], NOTHING)
    assert (sequence.length, sequence.pending) == (10, 0)


def test_a_failed_prefill_leaves_every_sequence_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    target = HfTarget(tiny_model("llama"), prefill_rows=4)
    sequence, _ = prefilled(target, tokens(3))
    calls = []

    def fail_late(_module: Any, _inputs: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError

    handle = target.runner.view.register_forward_pre_hook(fail_late)
    with pytest.raises(MemoryError):
        target.prefill([sequence], [tokens(16)], NOTHING)
    handle.remove()
    assert sequence.length == 3
    again, _ = target.prefill([sequence], [tokens(4, 9)], NOTHING)
    _, fresh = prefilled(target, np.concatenate([tokens(3), tokens(4, 9)]))
    assert torch.allclose(again[0], fresh, rtol=0, atol=1e-5)


@pytest.mark.parametrize("nodes", [[1, 0], [0, 0], [0, 11], [-1]])
def test_a_wrong_commit_is_refused(nodes: list[int]) -> None:
    target = HfTarget(tiny_model("llama"))
    sequence, _ = prefilled(target, tokens(4))
    target.forward([sequence], [tree_rows()], NOTHING)
    with pytest.raises(ValueError, match="nodes must ascend within"):
        target.commit([sequence], [np.array(nodes)])
    assert sequence.length == 4


def test_the_same_sequence_twice_is_refused() -> None:
    target = HfTarget(tiny_model("llama"))
    sequence = target.open(16)
    with pytest.raises(ValueError, match="different sequences"):
        target.prefill([sequence, sequence], [tokens(3), tokens(3)], NOTHING)


def test_buffers_start_at_zero_and_grow_with_their_content() -> None:
    target = HfTarget(tiny_model("llama"))
    sequence, _ = prefilled(target, tokens(4), capacity=8)
    block = sequence._layers[0].blocks[0]
    assert block.shape[2] == 8 and not block[:, :, 4:].any()
    sequence.reserve(20)
    grown = sequence._layers[0].blocks[0]
    assert grown.shape[2] == 20 and torch.equal(grown[:, :, :8], block)
    assert not grown[:, :, 8:].any()


def test_the_users_model_is_not_touched() -> None:
    model = tiny_model("gemma3").train()
    modules = {name: dict(module.__dict__) for name, module in model.named_modules()}
    implementation = model.config._attn_implementation
    target = HfTarget(model)
    target.prefill([target.open(16)], [tokens(5)], Needs(layers=(0,), last_hidden=True))
    assert model.training and model.config._attn_implementation == implementation
    for name, module in model.named_modules():
        assert module.__dict__ == modules[name]
    for own, shared in zip(model.parameters(), target.runner.view.parameters(), strict=True):
        assert own is shared


def test_only_wanted_rows_get_logits() -> None:
    runner = PackedRunner(tiny_model("llama", torch.float64))

    def run(logits: Any) -> torch.Tensor:
        segments = [Segment(KvSequence(16), tokens(5, 1)), Segment(KvSequence(16), tokens(4, 2))]
        return runner.forward(segments, logits=logits)[0]

    everything = run("all")
    assert everything.shape == (9, VOCAB_SIZE)
    assert torch.allclose(run("last"), everything[[4, 8]], rtol=0, atol=1e-12)
    assert torch.allclose(run(np.array([0, 6])), everything[[0, 6]], rtol=0, atol=1e-12)
    assert run("none").shape == (0, VOCAB_SIZE)


def test_the_bias_is_the_ancestor_rule_and_the_window_rule() -> None:
    rng = np.random.default_rng(0)
    for window in (None, 1, 3, 8):
        parent = np.array([-1, *[rng.integers(-1, i) for i in range(1, 12)]], dtype=np.int32)
        depth = np.zeros(12, dtype=np.int32)
        for i in range(12):
            depth[i] = 0 if parent[i] < 0 else depth[parent[i]] + 1
        first, prefix = 4, 5
        bias = attention_bias(parent, depth, first, prefix, window, torch.float32)
        for query in range(first, 12):
            lineage, slot = set(), query
            while slot >= 0:
                lineage.add(slot)
                slot = int(parent[slot])
            for key in range(prefix + 12):
                seen = key < prefix or key - prefix in lineage
                position = key if key < prefix else prefix + depth[key - prefix]
                if window is not None:
                    seen = seen and prefix + depth[query] - position < window
                hidden = torch.finfo(torch.float32).min
                assert bias[query - first, key] == (0 if seen else hidden)


def test_models_that_would_be_silently_wrong_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="ALiBi"):
        HfTarget(tiny_model("bloom"))
    with pytest.raises(NotImplementedError, match="chunked attention"):
        HfTarget(tiny_model("llama", attention_chunk_size=8))
    with pytest.raises(NotImplementedError, match="bidirectional"):
        HfTarget(tiny_model("llama", use_bidirectional_attention=True))
    with pytest.raises(NotImplementedError, match="encoder-decoder"):
        HfTarget(tiny_model("llama", is_encoder_decoder=True))
    with pytest.raises(NotImplementedError, match="cannot fork; use load_target"):
        HfTarget(tiny_model("mamba"))
    with pytest.raises(NotImplementedError, match="share the keys of others"):
        HfTarget(tiny_model("llama", num_kv_shared_layers=1))
    with pytest.raises(TypeError, match="transformers model, got int"):
        HfTarget(3)  # type: ignore[arg-type]


def test_limits_come_from_the_config() -> None:
    target = load_target(tiny_model("gpt2"))
    assert isinstance(target, HfTarget) and target.supports_trees
    assert (target.vocab_size, target.max_context, target.eos_ids) == (VOCAB_SIZE, 256, (2,))
    model = tiny_model("llama")
    model.generation_config.eos_token_id = [5, 6]
    assert load_target(model).eos_ids == (5, 6)


def test_a_saved_model_loads_by_path(tmp_path: Any) -> None:
    model = tiny_model("llama", torch.bfloat16)
    model.save_pretrained(tmp_path)
    for asked, given in (("auto", torch.float32), (torch.bfloat16, torch.bfloat16)):
        target = load_target(tmp_path, device="cpu", dtype=asked)
        logits, _ = target.prefill([target.open(8)], [tokens(4)], NOTHING)
        assert logits[0].dtype == given


def test_a_view_shares_weights_trained_in_place() -> None:
    model = tiny_model("llama")
    view = model_view(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    assert torch.equal(plain_logits(model, [3, 4]), plain_logits(view, [3, 4]))


# --- models whose state cannot fork -----------------------------------------------------------


def greedy(target: Any, prompt: npt.NDArray[np.int32], count: int) -> list[int]:
    sequence = target.open(96)
    logits, _ = target.prefill([sequence], [prompt], NOTHING)
    output = [int(logits[0].argmax())]
    while len(output) < count:
        rows, _ = target.forward([sequence], [TreeRows.chain(output[-1:])], NOTHING)
        target.commit([sequence], [np.array([0])])
        output.append(int(rows[0][0].argmax()))
    return output


@pytest.mark.parametrize("name", [*RECURRENT, "llama"])
def test_plain_decoding_equals_repeated_full_forwards(name: str) -> None:
    model = tiny_model(name, torch.float64)
    target = load_target(model)
    assert target.supports_trees == (name == "llama")
    expected = list(tokens(9))
    for _ in range(8):
        expected.append(int(plain_logits(model, expected).argmax()))
    assert greedy(target, tokens(9), 8) == expected[9:]


@pytest.mark.parametrize("name", RECURRENT)
def test_a_chain_commits_and_rolls_back(name: str) -> None:
    model = tiny_model(name, torch.float64)
    target = SequentialTarget(model)
    prompt, draft = tokens(9), tokens(5, 3)
    sequence = target.open(32)
    target.prefill([sequence], [prompt], NOTHING)
    for accepted in (0, 3):
        rows, states = target.forward(
            [sequence], [TreeRows.chain(draft)], Needs(layers=(0,), last_hidden=True)
        )
        for node in range(5):
            expected = plain_logits(model, [*prompt, *draft[: node + 1]])
            assert torch.allclose(rows[0][node], expected, rtol=0, atol=1e-5)
        assert states[0].features.shape == states[0].last_hidden.shape == (5, 32)
        target.commit([sequence], [np.arange(accepted)])
    rows, _ = target.forward([sequence], [TreeRows.chain([7])], NOTHING)
    expected = plain_logits(model, [*prompt, *draft[:3], 7])
    assert torch.allclose(rows[0][0], expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="trees must be chains"):
        target.forward([sequence], [tree_rows()], NOTHING)
    with pytest.raises(ValueError, match="capacity must be at least"):
        target.forward([sequence], [TreeRows.chain(tokens(30))], NOTHING)
    with pytest.raises(ValueError, match="nodes must be 0, 1"):
        target.commit([sequence], [np.array([1])])


@pytest.mark.parametrize("name", RECURRENT)
def test_a_second_prefill_continues_the_first(name: str) -> None:
    model = tiny_model(name, torch.float64)
    target = SequentialTarget(model)
    sequence = target.open(32)
    target.prefill([sequence], [tokens(6)], NOTHING)
    logits, _ = target.prefill([sequence], [tokens(3, 5)], NOTHING)
    expected = plain_logits(model, [*tokens(6), *tokens(3, 5)])
    assert sequence.length == 9
    assert torch.allclose(logits[0], expected, rtol=0, atol=1e-5)
