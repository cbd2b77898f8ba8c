# SPDX-License-Identifier: Apache-2.0
"""Exported drafters on a graph: what they draft, and that drafting changes nothing."""

import numpy as np
import pytest
import torch
from drafter_cases import states_of
from exported_models import DRAFTERS, exported, tiny_target
from node_batches import CALLS, PARENT, batch, expand_all, tokens
from tiny_models import VOCAB_SIZE

from treespec.drafts import candidates
from treespec.drafts.base import DraftSettings
from treespec.drafts.expander import TreeExpander
from treespec.drafts.graph_causal_lm import GraphCausalLmDrafter
from treespec.drafts.graph_dflash import GraphDflashDrafter
from treespec.drafts.rows import draft_log_probs, in_total_order, truncated
from treespec.targets.base import TargetStates
from treespec.targets.hf import load_target
from treespec.targets.onnx import OrtSession

STYLES = ["in_place", "new_rows"]
SETTINGS = [
    DraftSettings(),
    DraftSettings(temperature=0.6, top_k=9, max_depth=2),
    DraftSettings(temperature=1.3, top_p=0.8),
    DraftSettings(top_k=12, top_p=0.6),
]


@pytest.fixture(scope="module", params=STYLES)
def make(request, tmp_path_factory):
    """``make(name)``: an exported drafter of a cache style, and the same in PyTorch."""

    def drafters(name):
        theirs = DRAFTERS[name]()
        export = f"{name} of new rows" if request.param == "new_rows" else name
        session = OrtSession(exported(export, tmp_path_factory), "cpu")
        if name == "causal_lm":
            return GraphCausalLmDrafter(session, VOCAB_SIZE), theirs
        return GraphDflashDrafter(session), theirs

    return drafters


def started(drafter, committed, cuts=(5,), drafts=False):
    """A session over `committed`, whose tokens after the prompt are observed in several pieces."""
    target = load_target(tiny_target())
    states = None
    if drafter.needs.layers:
        states = states_of(target, committed[:-1], drafter.needs)

    def rows(begin, end):
        return None if states is None else states.rows(np.arange(begin, end))

    session = drafter.begin(committed[: cuts[0]], rows(0, cuts[0]), 80)
    drafter.observe(session, committed[cuts[0] : cuts[0] + 1], None)
    if drafts:
        drafter.draft([session], DraftSettings())
    pieces = [*(cut + 1 for cut in cuts[1:]), len(committed)]
    begin = cuts[0] + 1
    for end in pieces:
        if end > begin:
            drafter.observe(session, committed[begin:end], rows(begin - 1, end - 1))
            if drafts:
                drafter.draft([session], DraftSettings())
        begin = end
    return session


def assert_same_lists(ours, theirs):
    """Lists of the same tokens; PyTorch's may be longer."""
    for own, other in zip(ours, theirs, strict=True):
        token, logprob = own.arrays[:2]
        others = [array[..., : token.shape[-1]] for array in other.arrays]
        np.testing.assert_array_equal(token, others[0])
        np.testing.assert_allclose(logprob, others[1], rtol=0, atol=2e-5)
        if len(own.arrays) == 3:
            np.testing.assert_array_equal(own.arrays[2], others[2])


# --- causal language models ---------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS)
def test_trees_in_lock_step_get_the_rows_of_pytorch(make, settings):
    contexts = [tokens(size, size) for size in (7, 25, 12)]
    drafts = [tokens(len(PARENT), 30 + size) for size in range(3)]
    results = []
    for drafter in make("causal_lm"):
        sessions = [started(drafter, context) for context in contexts]
        expanders = drafter.draft(sessions, settings)
        parts = []
        for call in CALLS:
            calls = [call, call if call != [6] else [], call if call != [4, 5] else [5]]
            if call in ([6], [7, 8]):  # below what was left out
                calls[1] = [8] if call == [7, 8] else []
                calls[2] = [8] if call == [7, 8] else []
            nodes = [batch(index, ids) for index, ids in zip(calls, drafts, strict=True)]
            parts += TreeExpander.expand_together(expanders, nodes)
        results.append([np.asarray(part) for part in parts])
    for own, other in zip(*results, strict=True):
        assert own.dtype == np.float32
        np.testing.assert_array_equal(np.isinf(own), np.isinf(other))
        np.testing.assert_allclose(np.exp(own), np.exp(other), rtol=0, atol=2e-5)


@pytest.mark.parametrize("cuts", [(5,), (5, 6, 9), (1, 12), (5, 6, 7, 8, 13)])
def test_rows_depend_on_what_is_observed_alone(make, cuts):
    ours, theirs = make("causal_lm")
    committed, ids = tokens(15), tokens(len(PARENT), 1)
    expected = expand_all(theirs.draft([started(theirs, committed)], SETTINGS[0])[0], ids).numpy()
    session = started(ours, committed, cuts, drafts=True)
    for _ in range(2):
        (expander,) = ours.draft([session], SETTINGS[0])
        rows = np.concatenate([expander.expand(batch(call, ids)) for call in CALLS])
        np.testing.assert_allclose(rows, expected, rtol=0, atol=5e-5)
        assert (session.sequence.length, len(session.tokens)) == (15, 15)


def test_an_older_expander_is_refused(make):
    drafter, _ = make("causal_lm")
    session = started(drafter, tokens(9))
    (old,) = drafter.draft([session], SETTINGS[0])
    drafter.draft([session], SETTINGS[0])
    with pytest.raises(RuntimeError, match="this round is over"):
        old.expand(batch([0], tokens(9)))


def test_vocabularies_of_other_sizes_are_cut_and_filled(tmp_path_factory):
    session = OrtSession(exported("causal_lm", tmp_path_factory), "cpu")
    for size in (VOCAB_SIZE - 10, VOCAB_SIZE + 10):
        drafter = GraphCausalLmDrafter(session, size)
        state = drafter.begin(np.array([3, VOCAB_SIZE + 5, 4]), None, 20)
        drafter.observe(state, np.array([5]), None)
        (expander,) = drafter.draft([state], DraftSettings())
        row = expander.expand(batch([0], tokens(9)))[0]
        assert row.shape == (size,)
        assert np.isclose(np.exp(row).sum(), 1, atol=1e-5)
        assert np.isneginf(row[VOCAB_SIZE:]).all()


# --- blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dflash", "treeflash"])
@pytest.mark.parametrize("max_depth", [None, 1, 2])
def test_blocks_are_the_lists_of_pytorch(make, name, max_depth):
    settings = DraftSettings(temperature=0.8, max_depth=max_depth)
    results = []
    for drafter in make(name):
        sessions = [started(drafter, tokens(size, size)) for size in (9, 30, 16)]
        results.append(drafter.draft(sessions, settings))
    ours, theirs = results
    depth = ours[0].max_depth
    assert depth == max_depth or max_depth is None
    if max_depth is not None and name == "treeflash":
        # What hangs below the last depth is not in ours.
        theirs = [cut(source, depth) for source in theirs]
    elif max_depth is not None:
        theirs = [type(source)(*(a[:depth] for a in source.arrays)) for source in theirs]
    assert_same_lists(ours, theirs)


def cut(source, depth):
    token, logprob, following = (array[:depth].copy() for array in source.arrays)
    following[-1] = -1
    return type(source)(token, logprob, following)


@pytest.mark.parametrize("name", ["dflash", "treeflash"])
@pytest.mark.parametrize("cuts", [(5,), (5, 6, 9), (1, 12), (5, 6, 7, 8, 13)])
def test_blocks_depend_on_what_is_observed_alone(make, name, cuts):
    ours, theirs = make(name)
    committed = tokens(15)
    expected = theirs.draft([started(theirs, committed)], SETTINGS[0])
    for drafts in (False, True):
        session = started(ours, committed, cuts, drafts)
        first = ours.draft([session], SETTINGS[0])
        assert_same_lists(first, expected)
        again = ours.draft([session], SETTINGS[0])
        for one, other in zip(first[0].arrays, again[0].arrays, strict=True):
            np.testing.assert_array_equal(one, other)


def test_long_prompts_are_read_piece_by_piece(make):
    ours, theirs = make("dflash")
    committed = tokens(30)
    expected = theirs.draft([started(theirs, committed, (20,))], SETTINGS[0])
    ours._max_features = 7
    session = started(ours, committed, (20,))
    assert_same_lists(ours.draft([session], SETTINGS[0]), expected)
    assert session.sequence.length == 28  # four pieces, the fifth waits to be committed
    assert len(session.features) == 1


def test_freed_sessions_leave_no_memory(make):
    drafter, _ = make("treeflash")
    sessions = [started(drafter, tokens(size)) for size in (9, 12)]
    drafter.draft(sessions, SETTINGS[0])
    assert drafter._pool.buffers
    for session in sessions:
        drafter.end(session)
    assert not drafter._pool.buffers
    assert not len(sessions[0].features)


def test_blocks_without_features_are_refused(make):
    drafter, _ = make("dflash")
    with pytest.raises(ValueError, match="states must hold the features"):
        drafter.begin(tokens(5), None, 20)
    session = started(drafter, tokens(9))
    session.root = None
    with pytest.raises(ValueError, match="must have observed a token"):
        drafter.draft([session], SETTINGS[0])
    with pytest.raises(ValueError, match=r"features must be \[n, 64\], got \[2, 3\]"):
        drafter.observe(session, tokens(2), TargetStates(np.zeros((2, 3), np.float32)))


# --- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", [40, 50, 64])
def test_the_law_of_a_row_is_that_of_pytorch(rng, settings, size):
    logits = (3 * rng.standard_normal((6, 50))).astype(np.float32)
    logits[2, 7] = logits[2, 9] = np.sort(logits[2, :size])[-settings.top_k or -1]  # a tie
    before = logits.copy()
    expected = candidates.draft_log_probs(torch.from_numpy(logits), size, settings).numpy()
    ours = draft_log_probs(logits, size, settings)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(expected))
    np.testing.assert_allclose(np.exp(ours), np.exp(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS)
def test_lists_are_truncated_as_whole_rows_are(rng, settings):
    logits = torch.from_numpy((4 * rng.standard_normal((40, 50))).astype(np.float32))
    full = DraftSettings(temperature=settings.temperature)
    token, logprob = candidates.rank_rows(logits, 25, full)
    expected_token, expected = candidates.rank_rows(logits, 25, settings)
    ours = truncated(logprob, settings)
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(expected))
    np.testing.assert_array_equal(token[np.isfinite(ours)], expected_token[np.isfinite(ours)])
    np.testing.assert_allclose(np.exp(ours), np.exp(expected), rtol=0, atol=1e-6)


def test_a_list_that_is_kept_whole_stays_as_it_is():
    logprob = np.log(np.array([[0.3, 0.2, 0.1]], np.float32))
    for settings in (DraftSettings(top_p=0.9), DraftSettings(top_k=3), DraftSettings(top_k=8)):
        np.testing.assert_array_equal(truncated(logprob, settings), logprob)


def test_equal_scores_are_ordered_by_token():
    token = np.array([[5, 4, 9, 1], [1, 2, 3, 4]], np.int32)
    logprob = np.array([[-1, -2, -2, -2], [-1, -1, -1, -4]], np.float32)
    ordered, same = in_total_order(token, logprob)
    assert ordered.tolist() == [[5, 1, 4, 9], [1, 2, 3, 4]]
    assert same is logprob
