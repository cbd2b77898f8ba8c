# SPDX-License-Identifier: Apache-2.0
"""Selectors: the network against the oracle, the file, the plan in a decoder, and losslessness."""

import json
from collections import defaultdict
from itertools import product

import numpy as np
import pytest
import tiny_models
import torch
from decoder_models import draft_model, target_model
from selector_cases import SETTINGS, random_selector
from verifier_cases import decide_by_core

import treespec
from treespec import _core, testing
from treespec.config import SamplingParams
from treespec.decoder import SpeculativeDecoder
from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.drafts.base import DraftSettings
from treespec.drafts.expander import RootRows
from treespec.generation import Generation
from treespec.reference import selector as oracle
from treespec.selector.actions import ACTIONS, PLACE, Action
from treespec.selector.features import SCALARS, STATES, RootView
from treespec.selector.selector import Selector
from treespec.targets.hf import HfTarget

WIDTHS = {"target_before": 20, "draft_before": 12, "draft_root": 12}


def inputs_of(selector, seed):
    rng = np.random.default_rng(seed)
    states = {n: rng.normal(size=w).astype(np.float32) for n, w in selector.config.states.items()}
    return states, rng.normal(size=len(SCALARS)).astype(np.float32)


# ------------------------------------------------------------------ actions


def test_the_grid_has_every_distinct_tree_of_the_paper_once():
    assert len(ACTIONS) == len(set(ACTIONS)) == 233
    assert sum(action.paths > 1 for action in ACTIONS) == 216
    assert max(action.nodes for action in ACTIONS) == 40


# ------------------------------------------------------------------ the network


@pytest.mark.parametrize("names", [(), ("draft_root",), STATES])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_the_oracles(names, seed):
    selector = random_selector({name: WIDTHS[name] for name in names}, seed)
    states, scalars = inputs_of(selector, seed)
    found = selector.scores(list(states.values()), scalars)
    expected = oracle.scores(selector.weights, states, scalars.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("budget, depth", [(40, 16), (8, 4), (3, 16), (40, 1), (0, 0)])
def test_the_choice_is_the_best_action_that_fits(budget, depth):
    for seed in range(10):
        selector = random_selector(seed=seed)
        _, scalars = inputs_of(selector, seed)
        logits = selector.scores([], scalars)
        found = selector.choose([], scalars, budget, depth)
        assert found == ACTIONS[oracle.choose(logits, ACTIONS, budget, depth)]
        assert found.nodes <= budget and found.depth <= depth


def test_equal_scores_go_to_the_first_action():
    config = random_selector().config
    zeros = {name: np.zeros(shape) for name, shape in config.weight_shapes().items()}
    assert Selector(config, zeros).choose([], np.zeros(9, np.float32), 40, 16) == ACTIONS[0]


def test_bad_inputs_are_refused():
    selector = random_selector({"draft_root": 12})
    state, scalars = np.zeros(12, np.float32), np.zeros(9, np.float32)
    with pytest.raises(ValueError, match="state 0 must have 12 numbers, got 11"):
        selector.choose([state[1:]], scalars, 8, 8)
    with pytest.raises(ValueError, match="scalars must be 9 numbers, got 8"):
        selector.choose([state], scalars[1:], 8, 8)
    with pytest.raises(ValueError, match="states must be 1 rows, got 0"):
        selector.choose([], scalars, 8, 8)
    with pytest.raises(ValueError, match="must be a number, got NaN"):
        selector.choose([state * np.nan], scalars, 8, 8)
    with pytest.raises(ValueError, match="must admit a shape, got -1 and 8"):
        selector.choose([state], scalars, -1, 8)


# ------------------------------------------------------------------ features


def softmax(row, temperature=1.0):
    weights = np.exp((row - row.max()) / temperature, dtype=np.float64)
    return weights / weights.sum()


@pytest.mark.parametrize("vocab, draft_vocab", [(7, 7), (300, 290), (5000, 5100)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_law_features_are_their_formulas(vocab, draft_vocab, dtype):
    rng = np.random.default_rng(vocab)
    rows = [rng.normal(size=n, scale=3).astype(dtype) for n in (vocab, draft_vocab, draft_vocab)]
    found = _core.root_scalars(
        rows[0], _core.RowParams(temperature=0.7), [1], 0, *rows[1:], draft_temperature=1.3
    )
    width = min(vocab, draft_vocab)
    laws = [np.zeros(vocab) for _ in rows]
    laws[0][:] = softmax(rows[0], 0.7)
    for law, row in zip(laws[1:], rows[1:], strict=True):
        law[:width] = softmax(row[:width], 1.3)
    np.testing.assert_allclose(found[:6], oracle.law_features(*laws), rtol=2e-5, atol=1e-6)


def test_law_features_see_truncation_and_penalties():
    rng = np.random.default_rng(0)
    logits, draft, root = (rng.normal(size=50).astype(np.float32) for _ in range(3))
    params = _core.RowParams(temperature=0.8, top_p=0.6, repetition_penalty=1.5)
    history = np.array([3, 4, 9], dtype=np.int32)
    found = _core.root_scalars(logits, params, history, 2, draft, root, draft_top_k=5)
    weights = _core.process_logits(logits, params, history, 2, np.empty(0, np.int32))
    laws = [weights / weights.sum()]
    for row in (draft, root):
        law = softmax(row)
        law[np.argsort(-law)[5:]] = 0
        laws.append(law / law.sum())
    np.testing.assert_allclose(found[:6], oracle.law_features(*laws), rtol=2e-5, atol=1e-6)
    assert found[3] < 30, "divergences stay finite where a law lacks a token"


def test_equal_laws_have_no_distance():
    row = np.random.default_rng(1).normal(size=99).astype(np.float32)
    found = _core.root_scalars(row, _core.RowParams(temperature=1.0), [1], 0, row, row)
    np.testing.assert_allclose(found[3:6], 0, atol=1e-12)
    assert found[0] == found[1] == found[2]


def test_scalars_name_what_is_there():
    row = np.zeros(8, dtype=np.float32)
    params = _core.RowParams(temperature=0.75, top_p=0.5)
    found = dict(zip(SCALARS, _core.root_scalars(row, params, [3] * 20, 5, row, row), strict=True))
    assert found["log_context"] == np.float32(np.log(20.0))
    assert (found["temperature"], found["top_p"]) == (0.75, 0.5)
    assert found["draft_entropy"] == pytest.approx(np.log(8.0), rel=1e-6)
    with pytest.raises(ValueError, match="tokens_before must be at least 1, got 0"):
        _core.root_scalars(row, params, [], 0, row, row)


@pytest.mark.parametrize("states", [{}, {"draft_root": 12}])
def test_the_choice_of_one_call_is_that_of_its_parts(states):
    rng, selector = np.random.default_rng(5), random_selector(states)
    rows = [rng.normal(size=60, scale=3).astype(np.float32) for _ in range(3)]
    known = [rng.normal(size=12).astype(np.float32) for _ in states]
    chosen = set()
    for temperature, top_k in product((0.3, 0.8, 2.0), (0, 4)):
        params = _core.RowParams(temperature=temperature, top_k=top_k, presence_penalty=0.3)
        history = np.array([3, 9, 3, 50], dtype=np.int32)
        view = RootView(rows[0], params, history, 2, *rows[1:], temperature, top_k, 1.0)
        found = selector.choose_at(view, known, 20, 8)
        assert found == selector.choose(known, view.scalars(), 20, 8)
        chosen.add(found)
    assert len(chosen) > 1, "the laws must matter"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_view_has_every_row_in_its_place(dtype):
    rng = np.random.default_rng(7)
    rows = [torch.from_numpy(rng.normal(size=40, scale=3)).to(dtype) for _ in range(3)]
    params, history = _core.RowParams(temperature=0.7), np.array([3, 9, 4], dtype=np.int32)
    settings = DraftSettings(temperature=1.3)
    view = RootView.of(rows[0], params, history, 2, RootRows(*rows[1:]), settings)
    laws = [
        softmax(row.double().numpy(), temperature)
        for row, temperature in zip(rows, (0.7, 1.3, 1.3), strict=True)
    ]
    found = view.scalars()
    np.testing.assert_allclose(found[:6], oracle.law_features(*laws), rtol=2e-5, atol=1e-6)
    assert found[SCALARS.index("log_context")] == np.float32(np.log(3.0))


# ------------------------------------------------------------------ the file


def test_a_saved_selector_chooses_the_same(tmp_path):
    selector = random_selector(WIDTHS, seed=3)
    selector.save(tmp_path / "s.safetensors")
    loaded = Selector.load(tmp_path / "s.safetensors")
    states, scalars = inputs_of(selector, 0)
    one, other = (s.scores(list(states.values()), scalars) for s in (selector, loaded))
    assert one.tobytes() == other.tobytes()
    assert loaded.config == selector.config
    selector.save(tmp_path / "half.safetensors", dtype="float16")
    half = Selector.load(tmp_path / "half.safetensors").scores(list(states.values()), scalars)
    np.testing.assert_allclose(half, one, atol=0.05)


def _with_header(path, **changes):
    """The file with another header."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework="np") as file:
        header, weights = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    config = json.loads(header["config"])
    config |= changes.pop("config", {})
    for name in changes.pop("without", ()):
        del weights[name]
    save_file(weights, path, {**header, "config": json.dumps(config), **changes})


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.write_bytes(b"nothing"), "must be a safetensors file"),
        (_truncate, "must be a safetensors file"),
        (lambda path: _with_header(path, format="model"), "must say format 'treespec.selector'"),
        (lambda path: _with_header(path, version="2"), "must be of version 1, which"),
        (lambda path: _with_header(path, without=["layers.0.bias"]), "check .'layers.0.bias'."),
        (
            lambda path: _with_header(path, config={"layer_widths": [24, 9]}),
            r"layers.1.weight must have shape \(24, 9\), got \(24, 8\)",
        ),
        (lambda path: _with_header(path, config={"scalars": ["distance"]}), "scalars must be"),
        (lambda path: _with_header(path, config={"actions": [[1, 0]]}), "does not fit itself"),
        (lambda path: _with_header(path, config={"static": []}), "static must have a choice"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage, message):
    path = tmp_path / "s.safetensors"
    random_selector().save(path)
    damage(path)
    with pytest.raises(ValueError, match=message) as error:
        Selector.load(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_no_selector(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        Selector.load(tmp_path / "none")


def test_weights_must_be_finite():
    selector = random_selector()
    selector.weights["layers.0.bias"][0] = np.inf
    with pytest.raises(ValueError, match="finite"):
        Selector(selector.config, selector.weights)


# ------------------------------------------------------------------ in a decoder


@pytest.fixture(scope="module")
def models():
    drafter = AutoregressiveDrafter(draft_model("llama"), tiny_models.VOCAB_SIZE)
    return HfTarget(target_model("llama")), drafter


TINY = {"target_before": 32, "draft_before": 32, "draft_root": 32}
PROMPTS = [[1, 5, 9, 30], [1, 7, 3], [1, 44, 2, 6, 8, 21]]
SAMPLING = {"temperature": 0.9, "max_new_tokens": 24, "ignore_eos": True}


def decoder_of(models, selector, **options):
    return SpeculativeDecoder(*models, builder="delayed", selector=selector, **options)


@pytest.mark.parametrize("states", [{}, TINY])
def test_texts_of_the_walk_are_plain_decodings_whatever_is_chosen(models, states):
    plain = SpeculativeDecoder(models[0]).generate(PROMPTS, **SAMPLING)
    for seed in range(3):
        selector = random_selector(states, seed, verifier="target_only")
        sizes = set()
        found = decoder_of(models, selector).generate(
            PROMPTS, **SAMPLING, on_round=lambda r, sizes=sizes: sizes.add(len(r.tree))
        )
        assert [r.token_ids for r in found] == [r.token_ids for r in plain]
        assert len(sizes) > 2, "the selector must have chosen different trees"


def test_a_batch_and_a_second_run_give_the_same_text(models):
    decoder = decoder_of(models, random_selector(TINY, 1))
    first = decoder.generate(PROMPTS, **SAMPLING)
    assert decoder.verifier_name == "recursive_rejection"
    assert [r.token_ids for r in decoder.generate(PROMPTS, **SAMPLING)] == [
        r.token_ids for r in first
    ]
    alone = [decoder.generate(prompt, **SAMPLING).token_ids for prompt in PROMPTS]
    assert alone == [r.token_ids for r in first]


def test_a_choice_depends_on_the_text_alone_not_on_the_coins(models):
    """Two seeds, one text: the plan chooses the same, also after other rounds were played."""
    target, drafter = models
    plan = decoder_of(models, random_selector(TINY, 2)).planner
    text, chosen = np.array([1, 5, 9, 30, 12], dtype=np.int32), []
    for seed, accepted in product((0, 1), (0, 2)):
        g = Generation(0, text, SamplingParams(temperature=0.9, seed=seed), seed, None, ())
        state = target.open(64)
        # The row before the root comes from a prefill, or from a tree whose nodes were accepted.
        (row,), (states,) = target.prefill([state], [text[: 4 - accepted]], plan.needs)
        plan.begin(g, row, states)
        if accepted:
            tree = _core.TokenTree(text[2:4], parent=[-1, 0], proposal="deterministic")
            chain = treespec.targets.base.TreeRows(tree.token, tree.parent, tree.depth)
            rows, states = target.forward([state], [chain], plan.needs)
            laws = torch.zeros(2, 64)
            laws[0, 30] = laws[1, 12] = 1
            plan.learn(
                [g], [tree], [treespec.verify(tree, laws, None, "target_only")], rows, states
            )
        session = drafter.begin(text, None, 64)
        (source,) = drafter.draft([session], DraftSettings(temperature=0.9, root_rows=True))
        chosen.append(plan.choose(g, source))
    assert len(set(chosen)) == 1


def test_root_rows_are_those_of_a_fresh_prefill(models):
    _, drafter = models
    settings = DraftSettings(root_rows=True)
    text = [1, 5, 9, 30, 12, 7]
    session = drafter.begin(np.array(text[:3]), None, 64)
    for more in ([], text[3:4], text[4:6]):  # one new token, then two
        drafter.observe(session, np.array(more, dtype=np.int32), None)
        (source,) = drafter.draft([session], settings)
    (fresh,) = drafter.draft([drafter.begin(np.array(text), None, 64)], settings)
    (before,) = drafter.draft([drafter.begin(np.array(text[:-1]), None, 64)], settings)
    close = {"rtol": 0, "atol": 1e-9}
    for name in ("before", "root", "before_state", "root_state"):
        one, other = getattr(source.root_rows, name), getattr(fresh.root_rows, name)
        torch.testing.assert_close(one, other, **close)
    torch.testing.assert_close(source.root_rows.before, before.root_rows.root, **close)


def test_no_action_is_larger_than_the_budget(models):
    decoder = decoder_of(models, random_selector(seed=4), node_budget=6, max_depth=3)
    sizes = []
    decoder.generate(
        PROMPTS, **SAMPLING, on_round=lambda r: sizes.append((len(r.tree) - 1, max(r.tree.depth)))
    )
    assert max(nodes for nodes, _ in sizes) <= 6 and max(depth for _, depth in sizes) <= 3


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"builder": "opt_tree"}, ValueError, "builder must be 'delayed' with a selector"),
        ({"builder_options": {"trunk": 2}}, ValueError, "chooses the builder's options; got"),
        ({"verifier": "traversal"}, ValueError, "verifier must be 'recursive_rejection'"),
    ],
)
def test_what_a_selector_cannot_serve_is_refused(models, options, error, message):
    with pytest.raises(error, match=message):
        SpeculativeDecoder(
            *models, **{"builder": "delayed", "selector": random_selector(), **options}
        )


def test_sampling_beyond_the_training_is_refused_before_any_work(models):
    decoder = decoder_of(models, random_selector())
    with pytest.raises(ValueError, match=r"temperature must be in \[0.4, 1\]"):
        decoder.generate(PROMPTS, temperature=0.0)
    with pytest.raises(ValueError, match=r"top_p must be in \[0.9, 1\]"):
        decoder.generate(PROMPTS, temperature=1.0, top_p=0.5)


def test_a_drafter_without_rows_at_the_root_is_refused(models):
    with pytest.raises(
        NotImplementedError, match="needs a drafter that is a causal language model"
    ):
        treespec.load(target_model("llama"), "ngram", builder="delayed", selector=random_selector())


# ------------------------------------------------------------------ losslessness, exactly

TARGET = {
    (): (0.5, 0.375, 0.125),
    (0,): (0.25, 0.25, 0.5),
    (1,): (0.625, 0.25, 0.125),
    (2,): (0.125, 0.75, 0.125),
}
DRAFT = {
    (): (0.25, 0.25, 0.5),
    (0,): (0.5, 0.25, 0.25),
    (1,): (0.125, 0.625, 0.25),
    (2,): (0.5, 0.375, 0.125),
}
DECIDE = decide_by_core("recursive_rejection")


def law_after(table, text):
    """The law depends on the last token."""
    return np.array(table[tuple(text[-1:])])


def round_law(trees, text):
    """Law of the texts that a round leaves behind, over drawn trees and coins."""
    out = defaultdict(float)
    for tree, probability in trees:
        rows = testing.rows_of(tree, lambda path: law_after(TARGET, (*text, *path)))
        outcomes = testing.outcome_law(
            lambda coins, tree=tree, rows=rows: DECIDE(tree, rows, coins),
            tree.draws,
            testing.top_down_order(tree),
            checks=1,
        )
        for (accepted, token), mass in outcomes.items():
            path = (int(tree.token[node]) for node in accepted)
            out[(*text, *path, token)] += probability * mass
    return out


def trees_after(text, action):
    return testing.delayed_trees(lambda path: law_after(DRAFT, (*text, *path)), *action)


def two_rounds(trees_of, length=4):
    """Law of the first tokens that two rounds emit, completed by plain sampling."""
    law = defaultdict(float)
    for first, mass in round_law(trees_of(()), ()).items():
        for text, chance in round_law(trees_of(first), first).items():
            rest = testing.target_law(
                lambda path, text=text: law_after(TARGET, (*text, *path)),
                max(length - len(text), 0),
            )
            for tail, probability in rest.items():
                law[(*text, *tail)[:length]] += mass * chance * probability
    return law


def plain_law(length=4):
    return testing.target_law(lambda path: law_after(TARGET, path), length)


def test_choices_by_the_past_keep_the_law_exactly():
    """As a selector does: by the length of what was emitted, and by the last token."""

    def trees_of(text):
        action = (2, 0, 1) if len(text) != 1 else ((1, 1, 1) if text[-1] else (3, 0, 1))
        return trees_after(text, action)

    assert testing.total_variation(two_rounds(trees_of), plain_law()) < 1e-11


def test_a_choice_that_peeks_at_the_drawn_tokens_is_found():
    """Of two drawn trees the one that begins with the likelier token."""

    def trees_of(text):
        both = [list(trees_after(text, action)) for action in ((2, 0, 1), (1, 1, 1))]
        law = law_after(DRAFT, text)
        for (one, p), (other, q) in product(*both):
            likelier = law[one.token[1]] >= law[other.token[1]]
            yield (one if likelier else other), p * q

    assert testing.total_variation(two_rounds(trees_of), plain_law()) > 0.01


def test_static_choices_are_by_setting():
    selector = random_selector()
    assert selector.static_choice(SETTINGS[0]).action == Action(2, 1, 2)
    with pytest.raises(ValueError, match=r"setting must be one of T 0\.4; T 1; T 1, top-p 0\.9"):
        selector.static_choice(SETTINGS[0]._replace(temperature=0.5))
    assert ACTIONS[PLACE[Action(2, 1, 2)]] == Action(2, 1, 2)


# ------------------------------------------------------------------ exported with a pair


def _root_rows(drafter, text):
    """After a long text, and two tokens more."""
    session = drafter.begin(text[:-2], None, 64)
    for more in ([], text[-2:]):
        drafter.observe(session, np.array(more, dtype=np.int32), None)
        (source,) = drafter.draft([session], DraftSettings(root_rows=True))
    return source.root_rows


def test_an_exported_folder_brings_its_selector(tmp_path):
    pytest.importorskip("onnxruntime")
    from treespec.export.manifest import SELECTOR_FILE, Manifest
    from treespec.export.pair import export_pair

    random_selector(seed=3, verifier="target_only").save(tmp_path / "s.safetensors")
    models = [tiny_models.tiny_model("llama", seed=seed) for seed in (0, 1)]
    folder = tmp_path / "out"
    export_pair(
        models[0],
        folder,
        drafter=models[1],
        selector=tmp_path / "s.safetensors",
        max_nodes=64,
        check=False,
    )
    assert SELECTOR_FILE in Manifest.load(folder).files
    Manifest.load(folder).check_files(folder)
    decoder = treespec.load(folder, builder="delayed")
    assert decoder.verifier_name == "target_only"
    sizes = set()
    found = decoder.generate(PROMPTS, **SAMPLING, on_round=lambda r: sizes.add(len(r.tree)))
    plain = treespec.load(folder, None).generate(PROMPTS, **SAMPLING)
    assert [r.token_ids for r in found] == [r.token_ids for r in plain]
    assert len(sizes) > 2
    eager = AutoregressiveDrafter(models[1], tiny_models.VOCAB_SIZE)
    text = np.arange(50) % 60  # so long that all but its end is computed first
    one, other = (_root_rows(drafter, text) for drafter in (decoder.drafter, eager))
    for name in ("before", "root"):
        np.testing.assert_allclose(
            np.asarray(getattr(one, name)), np.asarray(getattr(other, name)), atol=1e-4
        )
    fixed = treespec.load(folder, builder="delayed", builder_options={"trunk": 2})
    assert type(fixed.planner).__name__ == "FixedPlan"
    (folder / SELECTOR_FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"selector.safetensors must have \d+ bytes, as exported"):
        treespec.load(folder, builder="delayed")


def test_a_selector_of_states_is_not_exported(tmp_path):
    from treespec.export.pair import export_pair

    random_selector(TINY).save(tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="must read laws only, got one that reads target_before"):
        export_pair("demo", tmp_path / "out", drafter="demo", selector=tmp_path / "s.safetensors")
    assert not (tmp_path / "out").exists()
