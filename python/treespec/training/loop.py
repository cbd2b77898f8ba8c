# SPDX-License-Identifier: Apache-2.0
"""The training loop of every kind of drafter: optimisers, schedule, checkpoints."""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from treespec.training.base import Trainee, trainable
from treespec.training.data import Batches
from treespec.training.muon import Muon

_WARM_UP, _DECAY = 0.02, 0.6  # shares of the budget
_SMOOTHING = 0.98
# Tables of vectors, one for each token, besides embeddings: no matrices in the sense of Muon. The
# output matrices of Medusa's heads have numbers for names.
_TABLES = re.compile(r"codebook|lm_head|^\d+\.\d+\.weight$")


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes
    ----------
    steps, minutes
        The budget, one of the two. Steps give the same weights wherever they run with the same
        arithmetic; minutes of wall clock do not.
    learning_rate
        Of matrices; tables, norms and biases take `learning_rate` / 5.
    optimizer
        ``"muon"`` (matrices; AdamW on the rest) or ``"adamw"`` throughout.
    bfloat16
        Whether forwards run in bfloat16 autocast.
    checkpoint_minutes
        Time between checkpoints.
    """

    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 0.02
    optimizer: str = "muon"
    bfloat16: bool = False
    checkpoint_minutes: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("train-drafter: give either steps or minutes")
        if (self.steps or self.minutes or 0) <= 0:
            raise ValueError(
                f"train-drafter: the budget must be above 0, got {self.steps or self.minutes}"
            )
        if not self.learning_rate > 0:
            raise ValueError(
                f"train-drafter: learning_rate must be above 0, got {self.learning_rate}"
            )
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(
                f"train-drafter: optimizer must be muon or adamw, got {self.optimizer!r}"
            )

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is spent."""
        return step / self.steps if self.steps is not None else seconds / (60 * (self.minutes or 1))


@dataclass
class State:
    """Where a run stands.

    Attributes
    ----------
    loss
        Running mean.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan

    def count(self, loss: float, seconds: float) -> None:
        """One more step."""
        first = math.isnan(self.loss)
        self.loss = loss if first else _SMOOTHING * self.loss + (1 - _SMOOTHING) * loss
        self.step += 1
        self.seconds += seconds


def learning_rate_factor(progress: float) -> float:
    """Two per cent of warm-up, a plateau, then linear decay to zero over the last 60 %."""
    return min(progress / _WARM_UP, 1.0, max(0.0, 1.0 - progress) / _DECAY)


def make_optimizers(module: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for matrices and AdamW for tables, norms and biases; or AdamW for all."""
    if plan.optimizer == "adamw":
        rate = plan.learning_rate
        return [torch.optim.AdamW(trainable(module), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)]
    tables = {id(weight) for weight in _tables(module)}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in trainable(module):
        (others if id(parameter) in tables else matrices).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=plan.learning_rate, weight_decay=0.05))
    if others:
        rate = plan.learning_rate / 5
        optimizers.append(torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0))
    return optimizers


def _tables(module: nn.Module) -> Iterator[nn.Parameter]:
    """Everything that is no matrix in the sense of Muon."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            yield part.weight
    for name, parameter in module.named_parameters():
        if parameter.ndim != 2 or _TABLES.search(name):
            yield parameter


def fit(
    trainee: Trainee,
    batches: Batches,
    plan: Plan,
    checkpoint: Path,
    on_step: Callable[[State, float], Any] = lambda state, progress: None,
) -> State:
    """Train until the budget is spent; goes on from `checkpoint` when it exists.

    An interrupt saves the checkpoint before it is passed on.

    Parameters
    ----------
    on_step
        Called after every step with the state and the share of the budget that is spent.

    Raises
    ------
    ValueError
        If the loss or its gradient is no finite number, or the checkpoint is of another run. The
        last checkpoint stays.
    """
    run = _Run(trainee, batches, plan, checkpoint)
    state, saved = run.state, run.state.seconds
    trainee.module.train()
    try:
        while (progress := plan.progress(state.step, state.seconds)) < 1:
            run.step(progress)
            on_step(state, plan.progress(state.step, state.seconds))
            if state.seconds - saved > 60 * plan.checkpoint_minutes:
                saved = state.seconds
                run.save()
    except KeyboardInterrupt:
        run.save()
        raise
    finally:
        trainee.module.eval()
    run.save()
    return state


class _Run:
    """A module with its optimisers, and where they stand."""

    def __init__(self, trainee: Trainee, batches: Batches, plan: Plan, checkpoint: Path) -> None:
        self._trainee, self._batches, self._plan = trainee, batches, plan
        self._checkpoint = checkpoint
        self._parameters = trainable(trainee.module)
        self._optimizers = make_optimizers(trainee.module, plan)
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        self.state = self._restore()

    def step(self, progress: float) -> None:
        """One update, or none at all."""
        started = time.perf_counter()
        loss = self._loss()
        if loss.requires_grad:  # else the batch had nothing to learn from
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise ValueError(
                f"train-drafter: loss must be finite, got {loss.item()} with a gradient of "
                f"{norm.item()} at step {self.state.step}; lower --learning-rate"
            )
        with _undivided():
            self._update(learning_rate_factor(max(progress, 1e-4)))
            self.state.count(loss.item(), time.perf_counter() - started)

    def save(self) -> None:
        """Write the checkpoint, in one step."""
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        part = self._checkpoint.with_suffix(".partial")
        content = {
            "module": self._trainee.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "state": vars(self.state),
        }
        torch.save(content, part)
        os.replace(part, self._checkpoint)

    def _loss(self) -> torch.Tensor:
        # Of the step alone, so that a run that goes on draws what it would have drawn.
        generator = torch.Generator().manual_seed(self._plan.seed * 1_000_003 + self.state.step)
        device = self._parameters[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._plan.bfloat16):
            return self._trainee.loss(self._batches[self.state.step], generator)

    def _update(self, factor: float) -> None:
        for optimizer, rate in zip(self._optimizers, self._rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _restore(self) -> State:
        if not self._checkpoint.exists():
            return State()
        saved = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        try:
            self._trainee.module.load_state_dict(saved["module"])
            for optimizer, state in zip(self._optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"train-drafter: {self._checkpoint} is the checkpoint of another run; use another "
                f"--out: {error}"
            ) from error
        return State(**saved["state"])


@contextmanager
def _undivided() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block."""
    held: list[int] = []
    try:
        before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    except ValueError:  # only the main thread has signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(signal.SIGINT)
