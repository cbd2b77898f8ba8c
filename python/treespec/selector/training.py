# SPDX-License-Identifier: Apache-2.0
"""Trains a selector on throughput, and judges it beside static choices and the best per root.

Source: arXiv 2602.16994, section 5. What it leaves open, optimiser and rates, are choices of ours;
so is the default objective. Roots have labels from few draws, and the paper's, a mean over roots
with a penalty on single roots, takes their noise for regressions. On held-out prompts tokens over
seconds in all, with little penalty, gained 4 % by replay where it lost 2 % (benchmarks/README.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from treespec.selector.actions import ACTIONS
from treespec.selector.features import SCALARS
from treespec.selector.labels import Labels
from treespec.selector.latency import round_seconds
from treespec.selector.selector import Selector, SelectorConfig, StaticChoice
from treespec.tuning.costs import Costs

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

OBJECTIVES = ("total", "log_ratio")


@dataclass(frozen=True)
class Schedule:
    """How a selector is trained.

    Attributes
    ----------
    projection_width, layer_widths, dropout
        Of the network.
    learning_rate, weight_decay, batch, epochs
        AdamW; the rate falls along a cosine.
    objective
        ``"total"``: -log of all tokens over all seconds by setting, which is what throughput means
        over many rounds. ``"log_ratio"``: the paper's mean of -log(TPS / TPS_static) over roots.
    penalty, worst
        lambda and alpha: the weight of squared regressions, and the share of a batch, the worst,
        over which they are averaged. The paper's text has no numbers for them.
    held_out
        Share of the prompts that choose the epoch.
    patience
        Epochs without a better one after which training ends.
    seed
        Of weights, order, dropout and the held-out prompts.
    """

    projection_width: int = 128
    layer_widths: tuple[int, ...] = (512, 32)
    dropout: float = 0.1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch: int = 256
    epochs: int = 200
    objective: str = "total"
    penalty: float = 0.1
    worst: float = 0.1
    held_out: float = 0.2
    patience: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"train-selector: objective must be one of {', '.join(OBJECTIVES)}, "
                f"got {self.objective!r}"
            )
        for name, value, ok in (
            ("batch", self.batch, self.batch >= 1),
            ("epochs", self.epochs, self.epochs >= 1),
            ("worst", self.worst, 0 < self.worst <= 1),
            ("held_out", self.held_out, 0 < self.held_out < 1),
            ("dropout", self.dropout, 0 <= self.dropout < 1),
            ("penalty", self.penalty, self.penalty >= 0),
            ("learning_rate", self.learning_rate, self.learning_rate > 0),
        ):
            if not ok:
                raise ValueError(f"train-selector: {name} is out of range, got {value}")


# --- The network ----------------------------------------------------------------------------------


class SelectorNetwork(nn.Module):
    """The network of `treespec/selector.h`, with dropout.

    Parameters
    ----------
    state_widths
        Of the hidden states it reads, in order; none reads scalars only.
    """

    def __init__(self, state_widths: Sequence[int], num_actions: int, schedule: Schedule) -> None:
        super().__init__()
        width = schedule.projection_width
        self.projections = nn.ModuleList(nn.Linear(size, width) for size in state_widths)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in state_widths)
        self.register_buffer("mean", torch.zeros(len(SCALARS)))
        self.register_buffer("inverse_deviation", torch.ones(len(SCALARS)))
        sizes = [
            len(state_widths) * width + len(SCALARS), *schedule.layer_widths, num_actions
        ]  # fmt: skip
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(schedule.dropout)

    def forward(self, states: Sequence[torch.Tensor], scalars: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, A]`` from states ``[B, H]`` and scalars ``[B, 9]``."""
        parts = [
            norm(projection(state))
            for projection, norm, state in zip(self.projections, self.norms, states, strict=True)
        ]
        x = torch.cat([*parts, (scalars - self.mean) * self.inverse_deviation], dim=-1)
        for layer in self.layers[:-1]:
            x = self.dropout(nn.functional.gelu(layer(x), approximate="tanh"))
        logits: torch.Tensor = self.layers[-1](x)
        return logits

    def standardise(self, scalars: torch.Tensor) -> None:
        """Take mean and deviation from training data; what never varies counts as 0."""
        deviation = scalars.std(dim=0, correction=0)
        self.mean = scalars.mean(dim=0)
        self.inverse_deviation = torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0.0)

    def weights(self, names: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Arrays as `Selector` takes them; `names` are those of the states."""
        out: dict[str, torch.Tensor] = {}
        for name, projection, norm in zip(names, self.projections, self.norms, strict=True):
            out[f"{name}.weight"], out[f"{name}.bias"] = projection.weight.T, projection.bias
            out[f"{name}.scale"], out[f"{name}.shift"] = norm.weight, norm.bias
        out["scalars.mean"] = self.mean
        out["scalars.inverse_deviation"] = self.inverse_deviation
        for place, layer in enumerate(self.layers):
            out[f"layers.{place}.weight"] = layer.weight.T
            out[f"layers.{place}.bias"] = layer.bias
        return {name: w.detach().float().contiguous().numpy() for name, w in out.items()}


# --- Objective ------------------------------------------------------------------------------------


def selector_loss(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    seconds: torch.Tensor,
    base: torch.Tensor,
    group: torch.Tensor,
    schedule: Schedule,
) -> torch.Tensor:
    """Loss of a softmax policy.

    Parameters
    ----------
    logits, tokens, seconds
        ``[B, A]``: the policy's, and the labels.
    base
        ``[B]``: tokens per second of the static action of each root's setting.
    group
        ``[B]``: the setting.
    """
    policy = logits.softmax(dim=-1)
    gained, spent = (policy * tokens).sum(dim=-1), (policy * seconds).sum(dim=-1)
    ratio = gained / spent / base
    regression = (1 - ratio).clamp(min=0)
    count = max(1, round(schedule.worst * len(ratio)))
    penalty = regression.topk(count).values.square().mean()
    if schedule.objective == "log_ratio":
        return -ratio.log().mean() + schedule.penalty * penalty
    totals = [
        (gained[group == g].sum() / spent[group == g].sum()).log() * (group == g).float().mean()
        for g in group.unique()
    ]
    return -torch.stack(totals).sum() + schedule.penalty * penalty


# --- Policies on labels ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Labels with the seconds of every action.

    Attributes
    ----------
    tokens
        ``[R, A]``: expected tokens of the verifier to be deployed.
    seconds, chosen_seconds
        ``[R, A]``: of a round with a static action, and with one that a selector chose.
    """

    labels: Labels
    verifier: str
    tokens: Array
    seconds: Array
    chosen_seconds: Array

    @staticmethod
    def of(labels: Labels, verifier: str, costs: Costs, selecting: float = 0.0) -> Problem:
        """`selecting`: seconds that a choice costs."""
        rows = labels.rows.astype(np.float64)
        return Problem(
            labels,
            verifier,
            labels.mean_tokens(verifier),
            round_seconds(costs, rows),
            round_seconds(costs, rows, selecting=selecting),
        )

    def static_choices(self, by: str = "speed") -> list[StaticChoice]:
        """The best single action at each setting, by ``"speed"`` or ``"tokens"``.

        Where the verifier was only asked about some actions, these are all that can be chosen.
        """
        out = []
        root = np.array([action.from_root for action in ACTIONS])
        for place, setting in enumerate(self.labels.settings):
            own = self.labels.setting == place
            gain = self.tokens[own].sum(axis=0)
            if by == "speed":
                gain = gain / self.seconds[own].sum(axis=0)
            best, from_root = (
                int(np.nanargmax(np.where(mask, gain, np.nan))) for mask in (root | True, root)
            )
            out.append(StaticChoice(setting, ACTIONS[best], ACTIONS[from_root]))
        return out

    def static_places(self, choices: Sequence[StaticChoice], *, from_root: bool = False) -> Places:
        """``[R]``: the static action of each root's setting."""
        at = [ACTIONS.index(c.from_root if from_root else c.action) for c in choices]
        return np.array(at)[self.labels.setting]

    def chosen(self, selector: Selector) -> Places:
        """``[R]``: what a selector chooses."""
        labels, out = self.labels, []
        for root in range(len(labels)):
            states = [labels.states[name][root].astype(np.float32) for name in selector.states]
            out.append(ACTIONS.index(selector.choose(states, labels.scalars[root], 2**30, 2**30)))
        return np.array(out)

    def best(self, supersets: slice = slice(None)) -> Places:
        """``[R]``: the best action of each root by some of its supersets.

        Over many rounds tokens / seconds is greatest where every root maximises tokens - rate *
        seconds, the rate being that optimum; found by iteration, by setting.
        """
        tokens = self.labels.tokens[self.verifier][:, supersets].astype(np.float64).mean(axis=1)
        out = np.zeros(len(tokens), dtype=np.intp)
        for place in range(len(self.labels.settings)):
            own = np.flatnonzero(self.labels.setting == place)
            rate = 0.0
            for _ in range(30):
                gain = tokens[own] - rate * self.chosen_seconds[own]
                out[own] = np.nanargmax(gain, axis=1)
                rate = tokens[own, out[own]].sum() / self.chosen_seconds[own, out[own]].sum()
        return out


# --- Training -------------------------------------------------------------------------------------

OnEpoch = Callable[[int, float, float], Any]


def train_selector(
    labels: Labels,
    verifier: str,
    costs: Costs,
    *,
    states: Sequence[str] = (),
    schedule: Schedule | None = None,
    models: dict[str, str] | None = None,
    metadata: dict[str, Any] | None = None,
    on_epoch: OnEpoch = lambda epoch, loss, gain: None,
) -> Selector:
    """Train a selector.

    Parameters
    ----------
    labels
        Of at least two prompts, with the verifier's labels for all actions.
    states
        Hidden states to read, names of `STATES`; none makes a selector that reads laws only.
    on_epoch
        Called with the epoch, the loss, and the gain over the static choices on held-out prompts
        (tokens per second, the mean over settings of their ratio).

    Raises
    ------
    ValueError
        If labels are missing for the verifier or for some actions, or prompts are too few.
    """
    schedule = schedule or Schedule()
    problem = Problem.of(labels, verifier, costs)
    if np.isnan(problem.tokens).any():
        raise ValueError(
            f"train-selector: labels must have all actions for {verifier!r}; it was only evaluated "
            "on trees from the root"
        )
    missing = [name for name in states if name not in labels.states]
    if missing:
        raise ValueError(
            f"train-selector: states must be of {', '.join(labels.states)}, got {missing}"
        )
    held = _held_out(labels.prompt, schedule)
    fit_on = Problem.of(labels.select(~held), verifier, costs)
    judge_on = Problem.of(labels.select(held), verifier, costs)
    choices = problem.static_choices()
    torch.manual_seed(schedule.seed)
    names = [name for name in labels.states if name in states]
    network = SelectorNetwork([labels.states[n].shape[1] for n in names], len(ACTIONS), schedule)
    run = _Run(network, fit_on, judge_on, choices, names, schedule)
    run.fit(on_epoch)
    config = SelectorConfig(
        {name: labels.states[name].shape[1] for name in names},
        schedule.projection_width,
        list(schedule.layer_widths),
        ACTIONS,
        verifier,
        choices,
        costs,
        models or {},
        {**(metadata or {}), "labels": dict(labels.metadata), "objective": schedule.objective},
    )
    return Selector(config, network.weights(names))


def _held_out(prompt: npt.NDArray[Any], schedule: Schedule) -> npt.NDArray[np.bool_]:
    """A share of the prompts, at least one on either side."""
    known = np.unique(prompt)
    if len(known) < 2:
        raise ValueError(f"train-selector: labels must be of at least 2 prompts, got {len(known)}")
    count = min(max(1, round(schedule.held_out * len(known))), len(known) - 1)
    chosen = np.random.default_rng(schedule.seed).permutation(known)[:count]
    return np.isin(prompt, chosen)


@dataclass
class _Batch:
    states: list[torch.Tensor]
    scalars: torch.Tensor
    tokens: torch.Tensor
    seconds: torch.Tensor
    static_tokens: torch.Tensor
    static_seconds: torch.Tensor
    group: torch.Tensor

    @property
    def base(self) -> torch.Tensor:
        """Tokens per second of the static actions."""
        return self.static_tokens / self.static_seconds

    def pick(self, kept: torch.Tensor) -> _Batch:
        rest = (
            *(self.scalars, self.tokens, self.seconds),
            *(self.static_tokens, self.static_seconds, self.group),
        )
        return _Batch([s[kept] for s in self.states], *(one[kept] for one in rest))


class _Run:
    """A network with its data, and the best weights so far."""

    def __init__(
        self,
        network: SelectorNetwork,
        fit_on: Problem,
        judge_on: Problem,
        choices: Sequence[StaticChoice],
        names: Sequence[str],
        schedule: Schedule,
    ) -> None:
        self.network, self.schedule = network, schedule
        self.data = _tensors(fit_on, choices, names)
        self.held = _tensors(judge_on, choices, names)
        network.standardise(self.data.scalars)

    def fit(self, on_epoch: OnEpoch) -> None:
        """Train, and leave the weights of the epoch that was best on held-out prompts."""
        plan, network = self.schedule, self.network
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.epochs)
        best, best_gain, waited = copy.deepcopy(network.state_dict()), self.gain(), 0
        for epoch in range(plan.epochs):
            loss = self._epoch(optimizer)
            decay.step()
            gain = self.gain()
            on_epoch(epoch, loss, gain)
            waited += 1
            if gain > best_gain:
                best, best_gain, waited = copy.deepcopy(network.state_dict()), gain, 0
            if waited >= plan.patience:
                break
        network.load_state_dict(best)
        network.eval()

    def _epoch(self, optimizer: torch.optim.Optimizer) -> float:
        self.network.train()
        losses = []
        for kept in torch.randperm(len(self.data.scalars)).split(self.schedule.batch):
            part = self.data.pick(kept)
            logits = self.network(part.states, part.scalars)
            loss = selector_loss(
                logits, part.tokens, part.seconds, part.base, part.group, self.schedule
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    @torch.no_grad()
    def gain(self) -> float:
        """Throughput of the argmax over the static choices', the mean over settings."""
        self.network.eval()
        data = self.held
        place = self.network(data.states, data.scalars).argmax(dim=-1, keepdim=True)
        gained, spent = data.tokens.gather(1, place)[:, 0], data.seconds.gather(1, place)[:, 0]
        ratios = []
        for g in data.group.unique():
            own = data.group == g
            static = data.static_tokens[own].sum() / data.static_seconds[own].sum()
            ratios.append(gained[own].sum() / spent[own].sum() / static)
        return float(torch.stack(ratios).mean())


def _tensors(problem: Problem, choices: Sequence[StaticChoice], names: Sequence[str]) -> _Batch:
    labels, place = problem.labels, problem.static_places(choices)
    root = np.arange(len(labels))

    def tensor(values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32))

    return _Batch(
        [tensor(labels.states[name]) for name in names],
        tensor(labels.scalars),
        tensor(problem.tokens),
        tensor(problem.chosen_seconds),
        tensor(problem.tokens[root, place]),
        tensor(problem.seconds[root, place]),
        torch.from_numpy(labels.setting.astype(np.int64)),
    )


# --- Judging --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A policy on roots.

    Attributes
    ----------
    tokens, seconds
        ``[R]``: of the chosen actions.
    """

    tokens: Array
    seconds: Array

    def block_efficiency(self, own: npt.NDArray[Any]) -> float:
        """Tokens per round on some roots."""
        return float(self.tokens[own].mean())

    def speed(self, own: npt.NDArray[Any]) -> float:
        """Tokens per second on some roots."""
        return float(self.tokens[own].sum() / self.seconds[own].sum())


def static_outcome(problem: Problem, place: Places) -> Outcome:
    """Of static actions."""
    root = np.arange(len(place))
    return Outcome(problem.tokens[root, place], problem.seconds[root, place])


def chosen_outcome(problem: Problem, place: Places) -> Outcome:
    """Of actions that somebody chose at the root."""
    root = np.arange(len(place))
    return Outcome(problem.tokens[root, place], problem.chosen_seconds[root, place])


def crossed_best(problem: Problem) -> Outcome:
    """The best action of each root by one half of its supersets, scored on the other half.

    What a perfect reading of these labels would gain; the best on the very supersets that chose
    it would count their noise as gain. A choice by half of the supersets is a worse choice, so
    that the truth lies above.

    Raises
    ------
    ValueError
        If roots have a single superset.
    """
    drawn = problem.labels.tokens[problem.verifier].astype(np.float64)
    half = drawn.shape[1] // 2
    if half == 0:
        raise ValueError("crossed_best: labels must have at least 2 supersets a root, got 1")
    root = np.arange(len(drawn))
    parts = []
    for choosing, scoring in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        place = problem.best(choosing)
        scored = drawn[:, scoring].mean(axis=1)[root, place]
        parts.append((scored, problem.chosen_seconds[root, place]))
    tokens, seconds = (np.mean([part[i] for part in parts], axis=0) for i in (0, 1))
    return Outcome(tokens, seconds)


def speed_ratio(
    one: Outcome, other: Outcome, prompt: npt.NDArray[Any], own: npt.NDArray[Any], draws: int = 2000
) -> tuple[float, float, float]:
    """Ratio of tokens per second on some roots, with a 95 % bootstrap interval over prompts."""
    return _ratio((one.tokens, one.seconds), (other.tokens, other.seconds), prompt, own, draws)


def token_ratio(
    one: Outcome, other: Outcome, prompt: npt.NDArray[Any], own: npt.NDArray[Any], draws: int = 2000
) -> tuple[float, float, float]:
    """Ratio of tokens per round, the same way."""
    ones = np.ones(len(one.tokens))
    return _ratio((one.tokens, ones), (other.tokens, ones), prompt, own, draws)


def _ratio(
    one: tuple[Array, Array],
    other: tuple[Array, Array],
    prompt: npt.NDArray[Any],
    own: npt.NDArray[Any],
    draws: int,
) -> tuple[float, float, float]:
    known, group = np.unique(prompt[own], return_inverse=True)
    sums = [
        np.bincount(group, weights=column[own], minlength=len(known)) for column in (*one, *other)
    ]
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), size=draws)
    a, b, c, d = (counts @ column for column in sums)
    low, high = np.quantile((a / b) / (c / d), (0.025, 0.975))
    a, b, c, d = (column.sum() for column in sums)
    return float((a / b) / (c / d)), float(low), float(high)
