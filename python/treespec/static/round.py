# SPDX-License-Identifier: Apache-2.0
"""The round over device memory: six steps, no host value read, no shape that depends on data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from treespec.device import Trees, Verdicts, check_status, round_keys
from treespec.static.attention import RowMask
from treespec.static.drafting import Drafted, DraftStep, Observed, StaticDrafter
from treespec.static.grammar import packed_nodes
from treespec.static.kv import StaticKv
from treespec.static.levels import schedule
from treespec.static.runner import RowStates, StaticRunner
from treespec.static.selecting import Past, TargetPast

OPS = torch.ops.treespec
_HEADS = 5  # numbers in front of the lists of a result: nodes, accepted, status, depth, expectation


@dataclass(frozen=True)
class RoundRecipe:
    """What the steps of every round are, whoever's sequences they serve.

    Attributes
    ----------
    target, drafter
        Models.
    node_budget
        Most drafted nodes.
    proposal
        How tokens are drafted.
    lossy
        Whether verifiers that change the distribution of the text are admitted.
    selects
        Whether a selector chooses the trees: what it reads of the target is kept.
    """

    target: StaticRunner
    drafter: StaticDrafter
    node_budget: int
    proposal: str = "deterministic"
    lossy: bool = False
    selects: bool = False

    @property
    def max_nodes(self) -> int:
        """M: rows of the target's forward per sequence."""
        return self.node_budget + 1

    @property
    def max_tokens(self) -> int:
        """C: most tokens that a round emits per sequence."""
        return self.drafter.max_depth + 1

    @property
    def spare_rows(self) -> int:
        """KV rows that a round may write behind the committed tokens."""
        return max(self.max_nodes, self.drafter.spare_rows, self.max_tokens)


class SequenceStart(NamedTuple):
    """A prefilled sequence as a round takes it over.

    Attributes
    ----------
    tokens
        ``[n]`` int32, committed, the root last.
    prompt_length
        How many of them are prompt.
    params
        Seven numbers in the order of `treespec.static.ops.PARAM_NAMES`.
    seed, sequence_id
        Key of all draws.
    biases
        Tokens, and what is added to their logits.
    """

    tokens: npt.NDArray[np.int32]
    prompt_length: int
    params: tuple[float, ...]
    seed: int
    sequence_id: int
    biases: tuple[tuple[int, float], ...] = ()


class Biases(NamedTuple):
    """Logit biases of B sequences.

    Attributes
    ----------
    token, value
        ``[B, n]`` int32 (-1: none) and float64.
    """

    token: torch.Tensor
    value: torch.Tensor


class Scored(NamedTuple):
    """What the target says of trees: logits ``[B, M, V]``, and the states that were asked for."""

    logits: torch.Tensor
    states: RowStates


class Judgement(NamedTuple):
    """How trees are judged; a graph serves one.

    Attributes
    ----------
    verifier
        A name of `treespec.verifier_names` for the recipe's proposal.
    num_biases
        n of the `RoundState.biases` that count; 0: none.
    restricted
        Whether `RoundState.allowed` counts.
    """

    verifier: str
    num_biases: int = 0
    restricted: bool = False


class RoundResult(NamedTuple):
    """One sequence's part of a round, on the host.

    Attributes
    ----------
    parent, max_depth, expected_acceptance
        Of the verified tree: ``[N]`` int32, the depth of its deepest node, and the sum of the path
        probabilities of its drafted nodes.
    accepted_nodes
        ``[a]`` int32, root excluded.
    tokens
        ``[a + 1]`` int32: the accepted ones and one more.
    """

    parent: npt.NDArray[np.int32]
    max_depth: int
    expected_acceptance: float
    accepted_nodes: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]


class RoundState:
    """Everything a round reads and changes for B sequences; tensors are written in place.

    Attributes
    ----------
    target_kv
        Keys and values.
    draft
        The drafter's own state (`StaticDrafter.make_state`).
    active
        ``[B]`` int32, 1 or 0: a sequence that is not active stays as it is.
    history, prefix_length, prompt_length
        ``[B, T]``, ``[B]``, ``[B]`` int32: committed tokens and the position of the root.
    params, seed, sequence_id
        ``[B, 7]`` float64, ``[B]`` int64, ``[B]`` int64.
    biases, num_biases
        Logit biases by their width, a power of two, and the width of those that count; 0: none.
    nodes
        ``[B, 1 + 3 M]`` int32 of `packed_nodes`, where the host looks at the trees.
    allowed
        ``[B, M, ceil(V / 32)]`` int32, see `verify_trees`; None until a sequence asks for it.
    drafted, scored
        By envelope, what parts of a round leave for the next one. A graph has addresses of its own
        for them, which these keep from being used again.
    status
        ``[B]`` int32: what the round under way has found wrong with its data.
    results
        ``[B, 5 + 2 C + M]`` int32: what the host reads after a round, see `read_results`.
    past
        What a selector reads of the target; None without one.
    """

    def __init__(
        self,
        target_kv: StaticKv,
        draft: Any,
        max_tokens: int,
        max_nodes: int,
        past: TargetPast | None = None,
    ) -> None:
        batch, capacity = target_kv.batch, target_kv.capacity
        device = target_kv.buffers[0].device

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.target_kv, self.draft, self.past = target_kv, draft, past
        self.max_tokens = max_tokens
        self.active, self.status = zeros(batch), zeros(batch)
        # A round writes C tokens behind the root before it is known how many of them count.
        self.history = zeros(batch, capacity + max_tokens)
        self.prefix_length, self.prompt_length = zeros(batch), zeros(batch)
        self.params = zeros(batch, 7, dtype=torch.float64)
        self.seed, self.sequence_id = (zeros(batch, dtype=torch.int64) for _ in range(2))
        self.biases: dict[int, Biases] = {}
        self.num_biases = 0
        self.nodes = zeros(batch, 1 + 3 * max_nodes)
        self.allowed: torch.Tensor | None = None
        self.drafted: dict[int, Drafted] = {}
        self.scored: dict[int, Scored] = {}
        self.results = zeros(batch, _HEADS + 2 * max_tokens + max_nodes)

    def start(self, sequences: Sequence[SequenceStart]) -> None:
        """Write B sequences, whose keys and values are loaded but for those of their roots."""
        self._set_biases([sequence.biases for sequence in sequences])
        for place, (tokens, prompt_length, params, seed, sequence_id, _) in enumerate(sequences):
            self.history[place, : len(tokens)] = torch.from_numpy(tokens)
            self.params[place] = torch.tensor(params, dtype=torch.float64)
            for column, value in (
                (self.prefix_length, len(tokens) - 1),
                (self.prompt_length, prompt_length),
                (self.seed, int(np.uint64(seed).astype(np.int64))),
                (self.sequence_id, sequence_id),
            ):
                column[place] = value

    def _set_biases(self, biases: Sequence[tuple[tuple[int, float], ...]]) -> None:
        """Pad them to a power of two, so that few graphs serve all."""
        longest = max(map(len, biases))
        self.num_biases = 1 << (longest - 1).bit_length() if longest else 0
        if not longest:
            return
        shape, device = (len(biases), self.num_biases), self.active.device
        if self.num_biases not in self.biases:
            token = torch.empty(shape, dtype=torch.int32, device=device)
            value = torch.empty(shape, dtype=torch.float64, device=device)
            self.biases[self.num_biases] = Biases(token, value)
        own = self.biases[self.num_biases]
        padded = [[*pairs, *[(-1, 0.0)] * (shape[1] - len(pairs))] for pairs in biases]
        numbers = torch.tensor(padded, dtype=torch.float64)
        own.token.copy_(numbers[..., 0])
        own.value.copy_(numbers[..., 1])

    def allow(self, vocab_size: int) -> torch.Tensor:
        """`allowed`, which is made if need be."""
        if self.allowed is None:
            batch, max_nodes = len(self.active), (self.nodes.shape[1] - 1) // 3
            shape = (batch, max_nodes, -(-vocab_size // 32))
            self.allowed = torch.full(shape, -1, dtype=torch.int32, device=self.active.device)
        return self.allowed

    def set_active(self, active: Sequence[bool]) -> None:
        """Say which sequences go on."""
        self.active.copy_(torch.tensor(active, dtype=torch.int32))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Steps inside the block change no sequence, nor what the steps before have left."""
        passing = [self.active, self.status, *self.draft.tensors()]
        before = [tensor.clone() for tensor in passing]
        self.active.zero_()
        try:
            yield
        finally:
            for tensor, values in zip(passing, before, strict=True):
                tensor.copy_(values)

    def draft_step(self, envelope: int) -> DraftStep:
        """What the drafter reads."""
        root = self.history.gather(1, self.prefix_length.long()[:, None]).squeeze(1)
        key = round_keys(self.seed, self.sequence_id, self.prefix_length)
        return DraftStep(
            root, self.prefix_length, self.active, key, self.params, envelope, self.status
        )

    def read_results(self, results: npt.NDArray[np.int32], place: int) -> RoundResult:
        """One sequence's result out of a host copy of `results`."""
        num_nodes, num_accepted, _status, max_depth, _ = results[place, :_HEADS].tolist()
        expected = results[place, _HEADS - 1 : _HEADS].view(np.float32)
        lists = results[place, _HEADS:]
        path, tokens, parent = np.split(lists, [self.max_tokens, 2 * self.max_tokens])
        return RoundResult(
            parent[:num_nodes],
            max_depth,
            float(expected[0]),
            path[1 : num_accepted + 1],
            tokens[: num_accepted + 1],
        )

    @staticmethod
    def check_results(results: npt.NDArray[np.int32]) -> None:
        """Raise ValueError for what the device has found in its data (`check_status`)."""
        check_status(results[:, 2])


# --- the parts of a round -------------------------------------------------------------------------


@torch.inference_mode()
def play(recipe: RoundRecipe, state: RoundState, part: str, envelope: int, *how: Any) -> None:
    """Play a part of `PARTS`, which may be a graph of its own.

    Parameters
    ----------
    envelope
        KV rows that the models look at: at least every active sequence's tokens and
        `RoundRecipe.spare_rows`.
    how
        What the part takes besides.
    """
    PARTS[part](recipe, state, state.draft_step(envelope), *how)


def play_round(recipe: RoundRecipe, state: RoundState, step: DraftStep, how: Judgement) -> None:
    """All parts, for drafters whose calls are known."""
    draft_trees(recipe, state, step)
    finish_round(recipe, state, step, how)


def draft_trees(recipe: RoundRecipe, state: RoundState, step: DraftStep) -> None:
    """All calls of a drafter whose calls are known."""
    assert recipe.drafter.widths is not None
    begin_round(recipe, state, step)
    for width, num_slots in schedule(recipe.drafter.widths):
        grow_trees(recipe, state, step, width, num_slots)


def begin_round(
    recipe: RoundRecipe, state: RoundState, step: DraftStep, num_biases: int = 0
) -> None:
    """The drafter's call for the roots.

    Parameters
    ----------
    num_biases
        As of `Judgement`, for a selector.
    """
    state.status.zero_()
    if state.past is not None:
        biases = state.biases.get(num_biases)
        step = step._replace(past=Past(state.history, state.prompt_length, state.past, biases))
    recipe.drafter.begin(state.draft, step)


def grow_trees(
    recipe: RoundRecipe, state: RoundState, step: DraftStep, width: int, num_slots: int
) -> None:
    """One more call of the drafter, see `StaticDrafter.grow`."""
    recipe.drafter.grow(state.draft, step, width, num_slots)


def finish_round(recipe: RoundRecipe, state: RoundState, step: DraftStep, how: Judgement) -> None:
    """Tree, mask, target, verdict and commit; the results are in ``state.results``."""
    drafted = recipe.drafter.finish(state.draft, step)
    _judge(recipe, state, step, drafted, _score(recipe, state, step, drafted.trees), how)


def show_trees(recipe: RoundRecipe, state: RoundState, step: DraftStep) -> None:
    """The trees, for a host that looks at them."""
    if recipe.drafter.widths is not None:
        draft_trees(recipe, state, step)
    drafted = state.drafted[step.envelope] = recipe.drafter.finish(state.draft, step)
    state.nodes.copy_(packed_nodes(drafted.trees))


def score_trees(recipe: RoundRecipe, state: RoundState, step: DraftStep) -> None:
    """Mask and target."""
    trees = state.drafted[step.envelope].trees
    state.scored[step.envelope] = _score(recipe, state, step, trees)


def judge_trees(recipe: RoundRecipe, state: RoundState, step: DraftStep, how: Judgement) -> None:
    """Verdict and commit."""
    drafted, scored = state.drafted[step.envelope], state.scored[step.envelope]
    _judge(recipe, state, step, drafted, scored, how)


PARTS: dict[str, Callable[..., None]] = {
    "round": play_round,
    # Where the data decide how many calls of the drafter there are:
    "begin": begin_round,
    "grow": grow_trees,
    "finish": finish_round,
    # Where the host looks at the trees, instead of "round" or "finish":
    "trees": show_trees,
    "target": score_trees,
    "judge": judge_trees,
}


def _score(recipe: RoundRecipe, state: RoundState, step: DraftStep, trees: Trees) -> Scored:
    """Write the rows of the trees behind the prefix."""
    bits, positions = OPS.mask_trees(
        trees.num_nodes, trees.parent, trees.depth, state.prefix_length, state.status
    )
    mask = RowMask(state.prefix_length, bits, positions, positions, step.envelope)
    return Scored(*recipe.target.forward_with_states(state.target_kv, trees.token, mask))


def _judge(
    recipe: RoundRecipe,
    state: RoundState,
    step: DraftStep,
    drafted: Drafted,
    scored: Scored,
    how: Judgement,
) -> None:
    """Keep what is accepted, of the target's rows and in the drafter."""
    verdicts = _verify(recipe, how, state, drafted, scored.logits)
    observed = Observed(*_commit(state, drafted.trees, verdicts), scored.states)
    recipe.drafter.observe(state.draft, step, observed)
    if state.past is not None:
        state.past.keep(state.active, verdicts, scored.logits, scored.states)
    state.prefix_length.add_(observed.count)


def _verify(
    recipe: RoundRecipe,
    how: Judgement,
    state: RoundState,
    drafted: Drafted,
    logits: torch.Tensor,
) -> Verdicts:
    trees, law = drafted
    arrays = [] if law is None else [law.row_of_node, law.prob, law.token, law.row_offset]
    verdicts = OPS.verify_trees(
        how.verifier,
        recipe.proposal,
        recipe.lossy,
        recipe.max_tokens - 1,
        logits,
        trees.num_nodes,
        trees.token,
        trees.parent,
        trees.depth,
        trees.draw_offset,
        trees.draw,
        arrays,
        0 if law is None else law.max_support,
        state.history,
        state.prefix_length,
        state.prompt_length,
        state.params,
        *state.biases.get(how.num_biases, (None, None)),
        state.allowed if how.restricted else None,
        state.seed,
        state.sequence_id,
        state.status,
    )
    return Verdicts(*verdicts)


def _commit(
    state: RoundState, trees: Trees, verdicts: Verdicts
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keep the accepted rows, append the tokens, and say what happened.

    Returns
    -------
    tokens, nodes, count
        As in `Observed`.
    """
    count = (verdicts.num_accepted + 1) * state.active
    OPS.commit_kv(state.target_kv.buffers, state.prefix_length, verdicts.nodes, count, state.status)
    tokens = _emitted(trees, verdicts)
    steps = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    places = state.prefix_length.long()[:, None] + steps
    state.history.scatter_(1, places, tokens)
    used = state.status * state.active  # what ran along without being used cannot fail
    heads = torch.stack([trees.num_nodes, verdicts.num_accepted, used, *_outline(trees)], 1)
    state.results.copy_(torch.cat([heads, verdicts.nodes, tokens, trees.parent], 1))
    return tokens, verdicts.nodes, count


def _outline(trees: Trees) -> tuple[torch.Tensor, torch.Tensor]:
    """``[B]``, ``[B]`` int32: depth of the trees, and the bits of their expected acceptance."""
    places = torch.arange(trees.depth.shape[1], device=trees.depth.device)
    absent = places >= trees.num_nodes[:, None]
    depth = trees.depth.masked_fill(absent, 0).amax(1)
    absent[:, 0] = True  # the root is not drafted
    expected = trees.path_logprob.exp().masked_fill(absent, 0.0).sum(1)
    return depth, expected.float().view(torch.int32)


def _emitted(trees: Trees, verdicts: Verdicts) -> torch.Tensor:
    """``[B, C]``: tokens of the accepted nodes, then the next token, then anything."""
    below = torch.nn.functional.pad(verdicts.nodes[:, 1:], (0, 1), value=-1).long()
    tokens = trees.token.gather(1, below.clamp(min=0))
    last = verdicts.num_accepted.clamp(min=0).long()  # -1: a sequence whose status is set
    return tokens.scatter(1, last[:, None], verdicts.next_token[:, None])
