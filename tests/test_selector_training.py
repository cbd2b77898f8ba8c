# SPDX-License-Identifier: Apache-2.0
"""Labels against exact expectations, training on a made-up task, and `treespec train-selector`."""

import json

import numpy as np
import pytest
import tiny_models
import torch
from decoder_models import draft_model, target_model
from selector_cases import COSTS, made_up_labels
from training_cases import target_folder
from typer.testing import CliRunner

import treespec
from treespec.cli import build_app
from treespec.cli.train_selector import _print_report
from treespec.config import SamplingParams
from treespec.decoder import SpeculativeDecoder
from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.selector.actions import ACTIONS, PLACE, Action
from treespec.selector.features import SCALARS, STATES, Setting
from treespec.selector.labels import ROUNDS, WRITTEN_WITH, Labels, collect_labels
from treespec.selector.latency import round_seconds
from treespec.selector.report import Row, compare
from treespec.selector.selector import Selector
from treespec.selector.supersets import Pair, evaluate
from treespec.selector.training import (
    Problem,
    Schedule,
    SelectorNetwork,
    selector_loss,
    train_selector,
)
from treespec.targets.hf import HfTarget

VERIFIER = "recursive_rejection"


@pytest.fixture(scope="module")
def pair():
    drafter = AutoregressiveDrafter(draft_model("llama"), tiny_models.VOCAB_SIZE)
    return Pair(HfTarget(target_model("llama")), drafter)


# ------------------------------------------------------------------ labels


def test_supersets_of_one_trie_are_fair_trees_with_their_expectations(pair):
    """Every action, evaluated alone by the public function, gives the label."""
    rng = np.random.default_rng(0)
    text = [1, 5, 9, 30, 12, 40]
    (root,) = pair.roots(text, [4], 2, SamplingParams(temperature=0.8), rng)
    assert root.supersets[0].trie is root.supersets[1].trie
    for superset in root.supersets:
        found = evaluate(superset, (VERIFIER, "traversal"), root_only=("traversal",))
        trie = superset.trie
        for action in (Action(3, 2, 2), Action(1, 0, 5), Action(2, 0, 3)):
            cut = action.trunk if action.paths > 1 else 8
            paths = [
                [*superset.main[: cut + 1], *superset.branches[cut][k]][: action.depth + 1]
                for k in range(action.paths)
            ]
            nodes = sorted({node for path in paths for node in path})
            place = {node: i for i, node in enumerate(nodes)}
            draws = [[] for _ in nodes]
            for depth in range(action.depth):
                alone = depth < action.trunk  # the trunk is drawn once
                for path in paths[:1] if alone else paths:
                    draws[place[path[depth]]].append(place[path[depth + 1]])
            tree = treespec.TokenTree(
                [trie.token[node] for node in nodes],
                parent=[place.get(trie.parent[node], -1) for node in nodes],
                proposal="iid",
                draws=draws,
            )
            laws = trie.target[nodes], trie.draft[nodes]
            verifiers = (VERIFIER, "traversal") if action.trunk == 0 else (VERIFIER,)
            for verifier in verifiers:
                exact = treespec.expected_acceptance(tree, *laws, verifier).block_efficiency
                assert found.tokens[verifier][PLACE[action]] == pytest.approx(exact, abs=1e-9)
            assert found.rows[PLACE[action]] == len(nodes)
        assert np.isnan(found.tokens["traversal"][PLACE[Action(2, 1, 1)]])
        assert not np.isnan(found.tokens[VERIFIER]).any()


def test_labels_come_back_from_their_file(pair, tmp_path):
    decoder = SpeculativeDecoder(pair.target, pair.drafter)
    settings = (Setting(0.7), Setting(1.0, 0.9))
    made = collect_labels(
        decoder, [[1, 5, 9], [1, 7]], settings, verifiers=[VERIFIER], new_tokens=20, supersets=2
    )
    count = len(made)
    assert set(zip(made.setting, made.prompt, strict=True)) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert made.tokens[VERIFIER].shape == (count, 2, len(ACTIONS))
    assert {n: s.shape for n, s in made.states.items()} == dict.fromkeys(STATES, (count, 32))
    top_p = made.scalars[:, SCALARS.index("top_p")]
    np.testing.assert_allclose(top_p, np.where(made.setting == 0, 1.0, 0.9), rtol=1e-6)
    made.save(tmp_path / "l.npz")
    loaded = Labels.load(tmp_path / "l.npz")
    assert loaded.settings == settings and loaded.metadata == made.metadata
    np.testing.assert_array_equal(loaded.tokens[VERIFIER], made.tokens[VERIFIER])
    np.testing.assert_array_equal(loaded.scalars, made.scalars)
    with pytest.raises(ValueError, match="verifier must be one of recursive_rejection"):
        loaded.check("spectr")


def test_roots_lie_where_rounds_began(pair):
    """Every eighth round's, from any of the first eight on, and no other token."""
    prompt, new_tokens, found = [1, 5, 9], 32, []
    for seed in range(6):
        made = collect_labels(
            SpeculativeDecoder(pair.target, pair.drafter),
            [prompt],
            [Setting(0.3)],
            verifiers=[VERIFIER],
            new_tokens=new_tokens,
            supersets=1,
            seed=seed,
        )
        places = np.exp(made.scalars[:, SCALARS.index("log_context")]).round().astype(int)
        writer = SpeculativeDecoder(
            pair.target,
            pair.drafter,
            builder="delayed",
            builder_options=WRITTEN_WITH.options,
            verifier=VERIFIER,
            node_budget=WRITTEN_WITH.nodes,
        )
        pieces = writer.stream(
            prompt, max_new_tokens=new_tokens, temperature=0.3, seed=seed, ignore_eos=True
        )
        ends = len(prompt) + np.cumsum([len(piece.token_ids) for piece in pieces])
        starts = list(ends[:-1] - 1)
        at = [starts.index(place) for place in places]
        assert at == list(range(at[0], len(starts), ROUNDS))
        found.append(at[0])
    assert len(set(found)) > 2


@pytest.mark.parametrize("content", [b"", b"no labels", b"PK\x03\x04 broken"])
def test_a_damaged_file_of_labels_is_refused_by_name(tmp_path, content):
    path = tmp_path / "l.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="must hold labels") as error:
        Labels.load(path)
    assert str(path) in str(error.value)


def test_seconds_follow_the_costs():
    rows = np.array([1.0 + action.nodes for action in ACTIONS])
    static = round_seconds(COSTS, rows)
    chosen = round_seconds(COSTS, rows, selecting=0.0005)
    at = PLACE[Action(2, 1, 3)]  # 7 nodes, 4 drafter calls, 8 rows
    assert static[at] == pytest.approx(0.011 + 4 * 0.001 + 0.001)
    assert chosen[at] == pytest.approx(static[at] + 0.0005)
    assert static[0] == COSTS.plain_seconds
    assert chosen[0] == pytest.approx(0.010 + 0.001 + 0.001 + 0.0005), "the root's row is drafted"


# ------------------------------------------------------------------ training


def test_the_loss_is_its_formula():
    rng = np.random.default_rng(0)
    logits, tokens, seconds = (torch.tensor(rng.random((6, 4)) + 0.5) for _ in range(3))
    base, group = torch.tensor(rng.random(6) + 0.5), torch.tensor([0, 0, 1, 1, 1, 1])
    policy = np.exp(logits.numpy())
    policy /= policy.sum(axis=1, keepdims=True)
    gained, spent = ((policy * x.numpy()).sum(axis=1) for x in (tokens, seconds))
    ratio = gained / spent / base.numpy()
    worst = np.sort(np.maximum(1 - ratio, 0))[-2:]
    schedule = Schedule(objective="log_ratio", penalty=3.0, worst=1 / 3)
    found = selector_loss(logits, tokens, seconds, base, group, schedule)
    assert found.item() == pytest.approx(-np.log(ratio).mean() + 3 * (worst**2).mean())
    total = Schedule(objective="total", penalty=0.0)
    parts = [np.log(gained[g].sum() / spent[g].sum()) for g in (slice(0, 2), slice(2, 6))]
    expected = -(parts[0] * 2 + parts[1] * 4) / 6
    found = selector_loss(logits, tokens, seconds, base, group, total)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("objective", ["total", "log_ratio"])
@pytest.mark.parametrize("states", [(), ("draft_root",)])
def test_training_beats_the_static_choice_where_the_features_tell(objective, states):
    schedule = Schedule(
        objective=objective,
        layer_widths=(32,),
        projection_width=4,
        epochs=80,
        batch=64,
        learning_rate=1e-2,
    )
    selector = train_selector(made_up_labels(), VERIFIER, COSTS, states=states, schedule=schedule)
    rows = {row.policy: row for row in compare(selector, made_up_labels(seed=9))}
    # By turns 3 tokens in 15 ms and 5 in 20: a static choice has 5 and 1.5, of these or those.
    assert rows["selector"].speed_to_static[0] > 1.1
    assert rows["selector"].speed_to_static[1] > 1.05, "beyond the noise of the prompts"
    assert rows["selector"].speed > 0.93 * rows["best per root"].speed


def test_training_on_noise_keeps_near_the_static_choice():
    labels = made_up_labels()
    shuffled = np.random.default_rng(1).permutation(len(labels))
    noise = labels.select(np.arange(len(labels)))
    noise.scalars[:] = labels.scalars[shuffled]
    schedule = Schedule(layer_widths=(32,), epochs=40, batch=64)
    selector = train_selector(noise, VERIFIER, COSTS, schedule=schedule)
    rows = {row.policy: row for row in compare(selector, made_up_labels(seed=9))}
    assert rows["selector"].speed_to_static[0] < 1.05


def test_the_trained_network_is_what_the_core_runs():
    torch.manual_seed(0)
    schedule = Schedule(layer_widths=(24, 8), projection_width=16)
    network = SelectorNetwork([12], len(ACTIONS), schedule).eval()
    labels = made_up_labels(prompts=2)
    network.standardise(torch.from_numpy(labels.scalars))
    selector = train_selector(
        labels, VERIFIER, COSTS, states=["draft_root"],
        schedule=Schedule(layer_widths=(24, 8), projection_width=16, epochs=1),
    )  # fmt: skip
    own = Selector(selector.config, network.weights(["draft_root"]))
    state = labels.states["draft_root"].astype(np.float32)
    with torch.no_grad():
        expected = network([torch.from_numpy(state)], torch.from_numpy(labels.scalars)).numpy()
    found = np.array([own.scores([s], x) for s, x in zip(state, labels.scalars, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_training_without_the_labels_it_needs_is_refused():
    labels = made_up_labels(prompts=3)
    with pytest.raises(ValueError, match="verifier must be one of recursive_rejection, got 'spec"):
        train_selector(labels, "spectr", COSTS)
    with pytest.raises(ValueError, match=r"states must be of draft_root, got .'target_before'."):
        train_selector(labels, VERIFIER, COSTS, states=["target_before"])
    with pytest.raises(ValueError, match="at least 2 prompts, got 1"):
        train_selector(labels.select(labels.prompt == 0), VERIFIER, COSTS)
    labels.tokens[VERIFIER][:, :, 30] = np.nan
    with pytest.raises(ValueError, match="only evaluated on trees from the root"):
        train_selector(labels, VERIFIER, COSTS)


def test_the_best_static_actions_are_those_of_greatest_throughput():
    problem = Problem.of(made_up_labels(), VERIFIER, COSTS)
    (choice,) = problem.static_choices()
    speed = problem.tokens.sum(axis=0) / problem.seconds.sum(axis=0)
    assert choice.action == ACTIONS[int(speed.argmax())]
    assert choice.from_root.from_root


# ------------------------------------------------------------------ the command


def run(*arguments):
    return CliRunner().invoke(build_app(), [*map(str, arguments)])


def test_the_command_trains_a_selector_that_decodes(tmp_path):
    folder = target_folder(tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("ab c", "def", "x = 1")))
    models = ["--target", folder, "--drafter", folder]
    common = [
        "train-selector", *models, "--data", prompts, "--temperatures", "0.7,1:0.9",
        "--new-tokens", 17, "--supersets", 2, "--epochs", 2,
    ]  # fmt: skip
    out = tmp_path / "s.safetensors"
    result = run(*common, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["roots"] == [2 * 2, 2], "one of each text of so few rounds"
    assert {row["policy"] for row in report["rows"]} >= {"selector", "static", "traversal, root"}
    # A second training reads the labels of the first.
    again = run(
        *common, "--labels", tmp_path / "s.labels.npz", "--states", "all", "--half",
        "--out", tmp_path / "t.safetensors",
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert "times the speed of the best single trees" in again.output
    for file in (out, tmp_path / "t.safetensors"):
        text = run(
            "generate", "ab c", *models, "--builder", "delayed", "--selector", file,
            "--temperature", 0.7, "-n", 8,
        )  # fmt: skip
        assert text.exit_code == 0, text.output


@pytest.mark.parametrize("speed, pays", [(1.04, True), (0.98, False)])
def test_a_selector_that_does_not_pay_is_called_so(capsys, tmp_path, speed, pays):
    measured = (speed, speed - 0.01, speed + 0.01)
    row = Row(Setting(0.7), "selector", None, 2.0, 100.0, measured, measured)
    _print_report(tmp_path / "s.safetensors", [row], 900, 200)
    shown = capsys.readouterr().out
    assert f"{speed:.2f} times the speed of the best single trees" in shown
    assert ("It does not pay" in shown) is not pays


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--verifier", "block"], "--verifier and --also must be of"),
        (["--temperatures", "warm"], "--temperatures must be like"),
        (["--states", "draft"], "--states must be none, all, or of"),
        (["--objective", "speed"], "objective must be one of total, log_ratio"),
    ],
)
def test_wrong_usage_is_refused_before_any_work(tmp_path, arguments, message):
    result = run("train-selector", "--out", tmp_path / "s.safetensors", *arguments)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.replace("│", " ").split())
