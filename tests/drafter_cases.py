# SPDX-License-Identifier: Apache-2.0
"""What tests of drafters on the target's states share: states, data, training, drafts as arrays."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from node_batches import batch, tokens

import treespec
from treespec.decoder import SpeculativeDecoder
from treespec.drafts.base import DraftSettings
from treespec.drafts.eagle3 import Eagle3Drafter
from treespec.targets.base import Needs, TargetStates
from treespec.targets.hf import HfTarget
from treespec.training.base import Batch
from treespec.training.eagle3 import Eagle3Trainee

PROMPT = tokens(7, 5)
# Builders of all kinds with options under which they draft deep trees.
BUILDERS: dict[str, dict[str, Any]] = {
    "dtree": {},
    "opt_tree": {"max_depth": 3, "threshold": 0.0},
    "chain": {"max_depth": 3},
    "eagle2": {"max_depth": 3, "width": 4},
}


def states_of(target: Any, ids: npt.NDArray[np.int32], needs: Needs) -> TargetStates:
    """The target's states of all positions of a text."""
    sequence = target.open(len(ids))
    _, (states,) = target.prefill([sequence], [ids], needs)
    target.close(sequence)
    return states


def started(
    drafter: Any, target: Any, committed: npt.NDArray[np.int32], prompt: int | None = None
) -> Any:
    """A session whose root is the last committed token, which was observed in one piece."""
    prompt = len(committed) - 1 if prompt is None else prompt
    states = states_of(target, committed[:-1], drafter.needs)
    session = drafter.begin(committed[:prompt], states.rows(np.arange(prompt)), 64)
    drafter.observe(session, committed[prompt : prompt + 1], None)
    rest = np.arange(prompt, len(committed) - 1)
    if len(rest):
        drafter.observe(session, committed[prompt + 1 :], states.rows(rest))
    return session


def text_batch(target: Any, needs: Needs, count: int = 4, length: int = 24) -> Batch:
    """Texts that the target has written after prompts of 4 tokens, greedily."""
    return continued(target, needs, [tokens(4, 60 + i).tolist() for i in range(count)], length)


def continued(target: Any, needs: Needs, prompts: list[list[int]], length: int) -> Batch:
    """Texts of one length that the target has written after prompts, greedily."""
    results = SpeculativeDecoder(target, None).generate(
        prompts, max_new_tokens=length - min(map(len, prompts)), ignore_eos=True
    )
    pairs = zip(prompts, results, strict=True)
    texts = [[*prompt, *result.token_ids][:length] for prompt, result in pairs]
    every = Needs(needs.layers, last_hidden=True)
    states = [states_of(target, np.array(text, np.int32), every) for text in texts]
    own = torch.ones(len(texts), length, dtype=torch.bool)
    for row, prompt in zip(own, prompts, strict=True):
        row[: len(prompt)] = False
    features = torch.stack([s.features for s in states]).clone() if needs.layers else None
    hidden = torch.stack([s.last_hidden for s in states]).clone()
    return Batch(torch.tensor(texts), own, features, hidden)


def fit(trainee: Any, data: Batch, steps: int, learning_rate: float = 3e-3) -> list[float]:
    """Losses of some steps on one batch."""
    optimizer = torch.optim.Adam(trainee.module.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = trainee.loss(data, torch.Generator())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# What static rounds are tested on goes on from these.
STATIC_PROMPTS = [(9, 1), (20, 2), (3, 3), (21, 21), (9, 9)]


@functools.cache
def fitted_eagle3(model: Any) -> Eagle3Drafter:
    """A drafter that has learnt greedy texts by heart; it cannot say every fourth token."""
    torch.manual_seed(0)
    own, ids = HfTarget(model), torch.arange(model.config.vocab_size)
    trainee = Eagle3Trainee(own, num_steps=3, draft_vocab=ids[ids % 4 > 0])
    trainee.module.to(model.dtype)
    prompts = [tokens(*prompt).tolist() for prompt in STATIC_PROMPTS]
    fit(trainee, continued(own, trainee.needs, prompts, 40), 60, 1e-2)
    return trainee.drafter()


def drafted(drafter: Any, target: Any, committed: npt.NDArray[np.int32] = PROMPT) -> list[Any]:
    """One draft as arrays: all lists of marginals, or the rows of a root and of two chains."""
    (source,) = drafter.draft([started(drafter, target, committed)], DraftSettings(node_budget=8))
    if drafter.source_kind == "Marginals":
        return list(source.arrays)
    ids = tokens(9, 1)
    return [source.expand(batch(call, ids)).cpu().numpy() for call in ([0], [1, 2], [4])]


def drafted_in_a_fresh_process(target: Path, drafters: list[Path], out: Path) -> list[Any]:
    """What `drafted` gives for several drafters where nothing but the folders is known."""
    script = (
        "import sys, numpy, treespec; from drafter_cases import drafted\n"
        "arrays = []\n"
        "for folder in sys.argv[3:]:\n"
        "    decoder = treespec.load(sys.argv[1], drafter=folder, device='cpu',\n"
        "                            drafter_options={'self_test': False})\n"
        "    arrays += drafted(decoder.drafter, decoder.target)\n"
        "numpy.savez(sys.argv[2], *arrays)\n"
    )
    command = [sys.executable, "-c", script, str(target), str(out), *map(str, drafters)]
    subprocess.run(command, check=True, cwd=Path(__file__).parent, capture_output=True)
    with np.load(out) as arrays:
        return [arrays[name] for name in arrays.files]


def load_drafter(model: Any, folder: Path, **options: Any) -> Any:
    """The drafter that `treespec.load` makes of a folder; random weights pass no self-test."""
    options = {"self_test": False, **options}
    return treespec.load(model, drafter=folder, drafter_options=options).drafter


def equal(some: list[Any], others: list[Any], tolerance: float = 0.0) -> bool:
    return all(
        np.allclose(one, other, rtol=0, atol=tolerance)
        for one, other in zip(some, others, strict=True)
    )


def generated(target: Any, drafter: Any, builder: str, temperature: float) -> list[Any]:
    """Results of a ragged batch of three."""
    decoder = SpeculativeDecoder(
        target,
        drafter,
        builder=builder,
        builder_options=BUILDERS[builder] if drafter is not None else {},
        verifier="auto" if temperature == 0 or drafter is None else "target_only",
        node_budget=6,
    )
    prompts = [tokens(size, size).tolist() for size in (4, 9, 1)]
    return decoder.generate(
        prompts, max_new_tokens=24, temperature=temperature, seed=[3, 4, 5], ignore_eos=True
    )
