# SPDX-License-Identifier: Apache-2.0
"""One row per check: a call, the exception, and what its message says."""

import numpy as np
import pytest

import treespec
from treespec import _core, testing

FLOATS = np.float32
HALF = np.full((2, 2), 0.5)
LAW = np.array([[0.5, 0.5], [0, 0]], np.float32)


def chain(**fields):
    return treespec.TokenTree(token=[0, 1], parent=[-1, 0], **fields)


def sampled(**fields):
    return chain(**{"proposal": "iid", "draws": [[1], []], "draft_probs": LAW, **fields})


def sparse(vocab_size=2, nodes=(0, -1), offset=(0, 2), token=(0, 1), prob=(0.5, 0.5)):
    law = (vocab_size, nodes, offset, token, np.array(prob, FLOATS))
    return chain(proposal="iid", draws=[[1], []], draft_rows=law)


def supply_lists(token, logprob):
    return lambda: _core.TreeBuilder("opt_tree").begin(2).supply_lists(token, logprob)


def lists(depth=1):
    rows = np.log(np.full((depth, 2), 0.5)).astype(np.float32)
    return treespec.Marginals(np.tile([0, 1], (depth, 1)), rows)


def build(name="kary", source=None, **options):
    return treespec.build_tree(name, lists() if source is None else source, **options)


class Expand:
    """An expander that returns what it was given."""

    def __init__(self, rows):
        self.rows = rows

    def expand(self, nodes):
        return self.rows


ROWS = {
    # --- trees
    "no nodes": (lambda: treespec.TokenTree(token=[], parent=[]), ValueError, r"token"),
    "lengths differ": (
        lambda: treespec.TokenTree(token=[0, 1], parent=[-1]),
        ValueError,
        r"TokenTree: parent must be \[2\].*got \[1\]",
    ),
    "root with a parent": (
        lambda: treespec.ancestor_mask(treespec.TokenTree(token=[0], parent=[0])),
        ValueError,
        r"parent\[0\] must be -1, got 0",
    ),
    "parent after child": (
        lambda: treespec.tree_positions(treespec.TokenTree(token=[0, 1, 2], parent=[-1, 2, 0])),
        ValueError,
        r"parent\[1\] must be in \[0, 1\), got 2",
    ),
    "a NaN in the law of a tree": (
        lambda: treespec.verify(sampled(draft_probs=np.array([[np.nan, 1], [0, 0]])), HALF),
        ValueError,
        r"draft_probs: row of node 0 must not contain NaN",
    ),
    "a law that does not sum to 1": (
        lambda: treespec.verify(sampled(draft_probs=LAW * 3), HALF),
        ValueError,
        r"draft_probs: row of node 0 must sum to 1.*got 3",
    ),
    "ragged rows": (
        lambda: treespec.verify(chain(), [[0.5, 0.5], [1.0]]),
        ValueError,
        r"target_probs: must be a rectangular array of numbers",
    ),
    "rows of another byte order": (
        lambda: treespec.verify(chain(), HALF.astype(">f8")),
        ValueError,
        r"byte order",
    ),
    "rows inside records": (
        lambda: treespec.commit_kv(np.zeros((2, 2), "f4,i2")["f0"], 0, [0]),
        ValueError,
        r"whole elements|contiguous",
    ),
    "ids beyond 32 bits": (
        lambda: treespec.TokenTree([0, 2**32 + 1], parent=[-1, 0]),
        ValueError,
        r"TokenTree: token: must be 32-bit integers, got 0 to 4294967297",
    ),
    "too few scores": (
        lambda: chain(path_logprob=np.zeros(1, np.float32)),
        ValueError,
        r"TokenTree: path_logprob must be \[2\], got \[1\]",
    ),
    "scores in float64": (
        lambda: chain(path_logprob=np.zeros(2)),
        ValueError,
        r"TokenTree: path_logprob must be contiguous float32 of one dimension",
    ),
    "a read-only cache": (
        lambda: treespec.commit_kv(np.broadcast_to(np.float32(0), (4, 2)), 0, [0]),
        ValueError,
        r"read-only|contiguous",
    ),
    "a cache that is a list": (
        lambda: treespec.commit_kv([[0.0], [1.0]], 0, [0, 1]),
        ValueError,
        r"writeable",
    ),
    "a base that overflows": (
        lambda: treespec.commit_kv(np.zeros((4, 2)), 2**63 - 2, [0, 1]),
        ValueError,
        r"below the number of rows 4",
    ),
    "penalties without a text": (
        lambda: treespec.verify_logits(
            chain(), HALF, sampling=treespec.SamplingParams(repetition_penalty=1.5)
        ),
        ValueError,
        r"prefix_ids must be given",
    ),
    "one array of coins": (
        lambda: treespec.verify(sampled(), HALF, coins=([[0.5], []],)),
        ValueError,
        r"coins must be \(accept, sample\) or \(accept, sample, select\), got 1",
    ),
    "coins that are no rows": (
        lambda: treespec.verify(sampled(), HALF, coins=([[0.5], []], [0.5, 0.5], [0.5])),
        ValueError,
        r"coins: select must be a list of coins per node, got \[0.5\]",
    ),
    "a seed below zero": (
        lambda: treespec.verify(chain(), HALF, seed=-1),
        ValueError,
        r"seed must be an integer in \[0, 2\*\*64\), got -1",
    ),
    "a position beyond 32 bits": (
        lambda: build(position=2**32),
        ValueError,
        r"position must be an integer in \[0, 2\*\*32\)",
    ),
    "unknown proposal": (
        lambda: chain(proposal="magic"),
        ValueError,
        r"deterministic, iid, without_replacement, top_plus_one.*magic",
    ),
    "draws of another length": (
        lambda: chain(draws=[[1]]),
        ValueError,
        r"draws must have one list",
    ),
    "draws missing": (lambda: chain(proposal="iid"), ValueError, r"draws must be given"),
    "law of another length": (
        lambda: sampled(draft_probs=LAW[:1]),
        ValueError,
        r"draft_probs must be \[2, V\], got",
    ),
    "law of integers": (
        lambda: sampled(draft_probs=np.ones((2, 2), np.int64)),
        ValueError,
        r"draft_probs.*float",
    ),
    "a law with and without zeros": (
        lambda: sampled(draft_rows=sampled().draft_rows),
        ValueError,
        r"TokenTree: draft_probs and draft_rows must not both be given",
    ),
    "sparse law without a vocabulary": (
        lambda: sparse(vocab_size=0),
        ValueError,
        r"draft_rows: vocab_size must be >= 1, got 0",
    ),
    "sparse law of other nodes": (
        lambda: sparse(nodes=[0]),
        ValueError,
        r"draft_rows: row_of_node must be \[2\], got \[1\]",
    ),
    "sparse law of a row that is not there": (
        lambda: sparse(nodes=[1, -1]),
        ValueError,
        r"draft_rows: row_of_node must be in \[-1, 1\), got 1",
    ),
    "sparse law without rows": (
        lambda: sparse(offset=[]),
        ValueError,
        r"draft_rows: row_offset must ascend from 0 to 2",
    ),
    "sparse law that ends early": (
        lambda: sparse(offset=[0, 1]),
        ValueError,
        r"draft_rows: row_offset must ascend from 0 to 2",
    ),
    "sparse law whose rows fall": (
        lambda: sparse(offset=[0, 3, 2]),
        ValueError,
        r"draft_rows: row_offset must ascend from 0 to 2",
    ),
    "sparse law with fewer probabilities": (
        lambda: sparse(prob=[1.0]),
        ValueError,
        r"draft_rows: token and prob must have the same shape, got \[2\] and \[1\]",
    ),
    "sparse law of a token beyond": (
        lambda: sparse(token=[0, 2]),
        ValueError,
        r"draft_rows: token must be in \[0, 2\), got 2",
    ),
    "sparse law in two dimensions": (
        lambda: sparse(prob=[[0.5, 0.5]]),
        ValueError,
        r"draft_rows: prob must be contiguous float32 of one dimension, got \[1, 2\]",
    ),
    # --- sources
    "lists of different shapes": (
        supply_lists([[0, 1]], np.zeros((1, 3), FLOATS)),
        ValueError,
        r"supply_lists: token and logprob must have the same shape",
    ),
    "lists of one dimension": (
        supply_lists([0, 1], np.zeros(2, FLOATS)),
        ValueError,
        r"supply_lists: token must have 2 dimensions, got 1",
    ),
    "lists with a token twice": (
        supply_lists([[3, 3]], np.full((1, 2), -1, FLOATS)),
        ValueError,
        r"supply_lists: tokens of a list must be distinct, got 3 twice in list 0",
    ),
    "lists of others": (
        supply_lists([[3], [4]], np.full((2, 1), -1, FLOATS)),
        ValueError,
        r"rows must be one per frontier node \(1\), got 2",
    ),
    "marginals of different shapes": (
        lambda: treespec.Marginals([[0, 1]], np.zeros((1, 3), FLOATS)),
        ValueError,
        r"Marginals: .*same shape",
    ),
    "marginals of one dimension": (
        lambda: treespec.Marginals([0, 1], np.zeros(2, FLOATS)),
        ValueError,
        r"Marginals: token must have 2 dimensions, got 1",
    ),
    "a token twice in a list": (
        lambda: treespec.Marginals([[3, 3]], np.full((1, 2), -1, FLOATS)),
        ValueError,
        r"distinct, got 3 twice",
    ),
    "a negative token in a list": (
        lambda: treespec.Marginals([[3, -1]], np.full((1, 2), -1, FLOATS)),
        ValueError,
        r"token must be in \[0, 2\^31 - 1\), got -1",
    ),
    "a NaN in a list": (
        lambda: treespec.Marginals([[0, 1]], np.array([[-1, np.nan]], FLOATS)),
        ValueError,
        r"logprob must be <= 0 and not NaN",
    ),
    "a positive log-probability": (
        lambda: treespec.Marginals([[0, 1]], np.array([[-1, 0.5]], FLOATS)),
        ValueError,
        r"logprob must be <= 0 and not NaN, got 0.5",
    ),
    "a link out of range": (
        lambda: treespec.Transitions([[[0]]], np.zeros((1, 1, 1), FLOATS), [[[1]]]),
        ValueError,
        r"next must be in \[-1, 1\), got 1",
    ),
    "a trie whose parents come late": (
        lambda: treespec.Trie([1, -1], [0, 0], np.zeros(2, FLOATS)),
        ValueError,
        r"Trie: parent\[0\] must be in \[-1, 0\), got 1",
    ),
    "a trie with twins": (
        lambda: treespec.Trie([-1, -1], [4, 4], np.zeros(2, FLOATS)),
        ValueError,
        r"Trie: siblings must have distinct tokens, got 4 twice",
    ),
    "a trie of different lengths": (
        lambda: treespec.Trie([-1], [4, 5], np.zeros(1, FLOATS)),
        ValueError,
        r"Trie: .*one length",
    ),
    # --- builders
    "unknown builder": (
        lambda: build("oak"),
        ValueError,
        r"must be one of chain, kary.*got \"oak\"",
    ),
    "no source": (lambda: build(source=object()), TypeError, r"source: must be Marginals.*object"),
    "negative budget": (
        lambda: build(node_budget=-1),
        ValueError,
        r"node_budget must be in \[0, 2\*\*31\), got -1",
    ),
    "trie builder on marginals": (
        lambda: build("trie"),
        ValueError,
        r"trie: source .*Marginals; builders that read it: .*opt_tree",
    ),
    "unknown option": (
        lambda: build("opt_tree", width=3),
        ValueError,
        r"opt_tree: option must be one of calibration, floor, .*, threshold; got width",
    ),
    "negative depth": (
        lambda: build("chain", max_depth=-1),
        ValueError,
        r"chain: max_depth must be",
    ),
    "depth of a wrong type": (
        lambda: build("chain", max_depth=1.5),
        ValueError,
        r"chain: max_depth must be an integer",
    ),
    "negative threshold": (
        lambda: build("opt_tree", threshold=-0.1),
        ValueError,
        r"opt_tree: threshold must be a number >= 0, got -0.1",
    ),
    "NaN threshold": (
        lambda: build("opt_tree", threshold=float("nan")),
        ValueError,
        r"opt_tree: threshold must be",
    ),
    "zero score temperature": (
        lambda: build("opt_tree", score_temperature=0),
        ValueError,
        r"score_temperature must be a number >= 1e-06 and <= 1e\+06, got 0",
    ),
    "a proposal that is none": (
        lambda: build("kary", proposal="greedy"),
        ValueError,
        r"proposal must be one of deterministic, iid, without_replacement",
    ),
    "a proposal the builder lacks": (
        lambda: build("kary", proposal="top_plus_one"),
        ValueError,
        r"kary: proposal must be one of deterministic, iid, without_replacement, got top_plus_one",
    ),
    "empty expansion": (
        lambda: build("kary", expansion=[]),
        ValueError,
        r"kary: expansion must be a non-empty list of integers >= 1",
    ),
    "expansion with a zero": (
        lambda: build("kary", expansion=[2, 0]),
        ValueError,
        r"kary: expansion must be a non-empty list of integers >= 1, got \[2, 0\]",
    ),
    "too few expanded rows": (
        lambda: build("opt_tree", Expand(np.zeros((0, 3), FLOATS))),
        ValueError,
        r"rows must be one per frontier node \(1\), got 0",
    ),
    "too many expanded rows": (
        lambda: build("opt_tree", Expand(np.zeros((2, 3), FLOATS))),
        ValueError,
        r"rows must be one per frontier node \(1\), got 2",
    ),
    "expanded rows of one dimension": (
        lambda: build("opt_tree", Expand(np.zeros(3, FLOATS))),
        ValueError,
        r"expand",
    ),
    "an expanded NaN": (
        lambda: build("opt_tree", Expand(np.full((1, 3), np.nan, FLOATS))),
        ValueError,
        r"not NaN",
    ),
    "an expanded positive": (
        lambda: build("kary", Expand(np.full((1, 3), 2.0, FLOATS))),
        ValueError,
        r"log-probabilities must be <= 0",
    ),
    # --- masks
    "unknown format": (
        lambda: treespec.ancestor_mask(chain(), format="fp8"),
        ValueError,
        r"ancestor_mask: format must be one of bool.*'fp8'",
    ),
    "negative prefix": (
        lambda: treespec.ancestor_mask(chain(), prefix_length=-1),
        ValueError,
        r"prefix_length must be >= 0, got -1",
    ),
    "negative prefix of positions": (
        lambda: treespec.tree_positions(chain(), prefix_length=-1),
        ValueError,
        r"prefix_length must be >= 0, got -1",
    ),
    "a prefix in bits": (
        lambda: treespec.ancestor_mask(chain(), format="bits", prefix_length=2),
        ValueError,
        r"prefix_length must be 0 for format 'bits', got 2",
    ),
    # --- sampling
    "negative temperature": (
        lambda: treespec.SamplingParams(temperature=-1),
        ValueError,
        r"SamplingParams: temperature must be 0 \(greedy\) or finite and >= 1e-6, got -1",
    ),
    "NaN temperature": (
        lambda: treespec.SamplingParams(temperature=float("nan")),
        ValueError,
        r"temperature",
    ),
    "negative top_k": (
        lambda: treespec.SamplingParams(top_k=-1),
        ValueError,
        r"top_k must be >= 0",
    ),
    "top_p of 0": (
        lambda: treespec.SamplingParams(top_p=0.0),
        ValueError,
        r"top_p must be in \(0, 1\], got 0",
    ),
    "top_p above 1": (lambda: treespec.SamplingParams(top_p=1.1), ValueError, r"top_p must be in"),
    "min_p of 1": (
        lambda: treespec.SamplingParams(min_p=1.0),
        ValueError,
        r"min_p must be in \[0, 1\), got 1",
    ),
    "repetition penalty of 0": (
        lambda: treespec.SamplingParams(repetition_penalty=0.0),
        ValueError,
        r"repetition_penalty must be finite and > 0, got 0",
    ),
    "infinite presence penalty": (
        lambda: treespec.SamplingParams(presence_penalty=float("inf")),
        ValueError,
        r"presence_penalty must be finite",
    ),
    "a bias of +inf": (
        lambda: treespec.SamplingParams(logit_bias={1: float("inf")}),
        ValueError,
        r"logit_bias must be a number below \+inf",
    ),
    "a bias beyond the vocabulary": (
        lambda: treespec.verify_logits(
            chain(), np.zeros((2, 2), FLOATS), sampling=treespec.SamplingParams(logit_bias={7: 1.0})
        ),
        ValueError,
        r"logit_bias token must be in \[0, 2\), got 7",
    ),
    # --- verifiers
    "unknown verifier": (
        lambda: treespec.verify(chain(), HALF, verifier="oracle"),
        ValueError,
        r"auto or one of greedy, target_only.*oracle",
    ),
    "too few target rows": (
        lambda: treespec.verify(chain(), HALF[:1]),
        ValueError,
        r"target_probs: shape must be \[2, V >= 1\] for 2 nodes, got \[1, 2\]",
    ),
    "target rows of one dimension": (
        lambda: treespec.verify(chain(), HALF[0]),
        ValueError,
        r"target_probs",
    ),
    "target rows of integers": (
        lambda: treespec.verify(chain(), np.eye(2, dtype=np.int64)),
        ValueError,
        r"target_probs.*float",
    ),
    "a target row that does not sum to 1": (
        lambda: treespec.verify(chain(), HALF * 0.99),
        ValueError,
        r"target_probs: row 0 must sum to 1 within 0.001, got 0.99",
    ),
    "a NaN target row": (
        lambda: treespec.verify(chain(), np.array([[0.5, 0.5], [np.nan, 1]])),
        ValueError,
        r"target_probs: row 1 must not contain NaN or negative",
    ),
    "a negative target row": (
        lambda: treespec.verify(chain(), np.array([[1.5, -0.5], [0.5, 0.5]])),
        ValueError,
        r"target_probs: row 0 must not contain NaN or negative",
    ),
    "a law row that does not sum to 1": (
        lambda: treespec.verify(sampled(), HALF, HALF * 0.9, verifier="token_level"),
        ValueError,
        r"draft_probs: row 0 must sum to 1",
    ),
    "too few law rows": (
        lambda: treespec.verify(sampled(), HALF, HALF[:1], verifier="token_level"),
        ValueError,
        r"draft_probs: shape must be \[2, V\], got",
    ),
    "a law wider than the target": (
        lambda: treespec.verify(sampled(), HALF, np.full((2, 4), 0.25), verifier="token_level"),
        ValueError,
        r"draft_probs: vocabulary must be at most the target's \(2\), got 4",
    ),
    "a token beyond the target's vocabulary": (
        lambda: treespec.verify(treespec.TokenTree(token=[0, 5], parent=[-1, 0]), HALF),
        ValueError,
        r"token\[1\] must be .*got 5",
    ),
    "a negative drafted token": (
        lambda: treespec.verify(treespec.TokenTree(token=[0, -2], parent=[-1, 0]), HALF),
        ValueError,
        r"token\[1\] must be .*got -2",
    ),
    "a negative drafted token for a rejection verifier": (
        lambda: treespec.verify(
            treespec.TokenTree(token=[0, -2], parent=[-1, 0], proposal="iid", draws=[[1], []]),
            HALF,
            HALF,
            verifier="token_level",
        ),
        ValueError,
        r"token\[1\] must be .*got -2",
    ),
    "draws that are no children": (
        lambda: treespec.verify(sampled(draws=[[7], []]), HALF, verifier="token_level"),
        ValueError,
        r"draws",
    ),
    "a top-k tree for a rejection verifier": (
        lambda: treespec.verify(chain(), HALF, HALF, verifier="recursive_rejection"),
        ValueError,
        r"recursive_rejection: would bias a deterministic tree.*fit: greedy, target_only",
    ),
    "no law": (
        lambda: treespec.verify(sampled(draft_probs=None), HALF, verifier="recursive_rejection"),
        ValueError,
        r"recursive_rejection: draft_probs must be given",
    ),
    "coins for target_only": (
        lambda: treespec.verify(
            chain(), HALF, verifier="target_only", coins=([[0.5], []], [0.5] * 2)
        ),
        ValueError,
        r"target_only: coins",
    ),
    "too few coins": (
        lambda: treespec.verify(
            sampled(), HALF, verifier="token_level", coins=([[], []], [0.5] * 2)
        ),
        ValueError,
        r"coins: accept must have entry 0 of node 0",
    ),
    "a coin of 1": (
        lambda: treespec.verify(
            sampled(), HALF, verifier="token_level", coins=([[0.5], []], [1.0] * 2)
        ),
        ValueError,
        r"in \[0, 1\)",
    ),
    "a NaN coin": (
        lambda: treespec.verify(
            sampled(), HALF, verifier="token_level", coins=([[0.5], []], [float("nan")] * 2)
        ),
        ValueError,
        r"in \[0, 1\)",
    ),
    "lists of different lengths": (
        lambda: treespec.verify([chain(), chain()], [HALF]),
        ValueError,
        r"one entry per tree \(2\), got 1",
    ),
    "NaN logits": (
        lambda: treespec.verify_logits(chain(), np.full((2, 2), np.nan, FLOATS)),
        ValueError,
        r"target_logits: row 0 must not contain NaN or \+inf",
    ),
    "too few logits": (
        lambda: treespec.verify_logits(chain(), np.zeros((3, 2), FLOATS)),
        ValueError,
        r"target_logits: shape must be \[2, V >= 1\]",
    ),
    "a prompt longer than the prefix": (
        lambda: treespec.verify_logits(
            chain(), np.zeros((2, 2), FLOATS), prefix_ids=[0], prompt_length=2
        ),
        ValueError,
        r"prompt_length: must be in \[0, 1\], got 2",
    ),
    # --- numbers
    "an unknown purpose": (
        lambda: _core.random53(0, 0, 0, 5, 0, 0),
        ValueError,
        r"random53: purpose must be in \[0, 4\], got 5",
    ),
    "a coin below the unit interval": (
        lambda: _core.inverse_cdf(np.ones(2), -0.5),
        ValueError,
        r"inverse_cdf: u must be in \[0, 1\)",
    ),
    "a coin above the unit interval": (
        lambda: _core.inverse_cdf(np.ones(2), 1.0),
        ValueError,
        r"inverse_cdf: u must be in \[0, 1\)",
    ),
    "an unknown law kind": (
        lambda: testing.random_law(np.random.default_rng(), 3, "even"),
        ValueError,
        r"random_law: kind must be one of dense, sparse",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_wrong_argument_is_refused_in_words(case):
    call, error, message = ROWS[case]
    with pytest.raises(error, match=message):
        call()


def test_a_refused_call_is_refused_before_any_drafter_call():
    drafter = testing.ToyDrafter(testing.random_laws(0, 3))
    for wrong in ({"node_budget": -1}, {"node_budget": 3, "no_such": 1}):
        with pytest.raises(ValueError):
            treespec.build_tree("opt_tree", drafter, **wrong)
    assert drafter.calls == 0


def test_an_error_inside_an_expander_reaches_the_caller():
    class Failing:
        def expand(self, nodes):
            raise KeyError("the drafter's own")

    with pytest.raises(KeyError, match="the drafter's own"):
        treespec.build_tree("opt_tree", Failing(), node_budget=3)
