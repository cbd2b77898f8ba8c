# SPDX-License-Identifier: Apache-2.0
"""Saved drafters: what they draft depends on their folder and the target's alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from drafter_cases import drafted, drafted_in_a_fresh_process, equal
from tiny_models import tiny_model

from treespec.targets.hf import HfTarget
from treespec.training.eagle3 import Eagle3Trainee
from treespec.training.medusa import MedusaTrainee


def test_saved_drafters_draft_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    own = HfTarget(tiny_model("llama", num_hidden_layers=3))
    own.model.save_pretrained(tmp_path / "target")
    trainees: dict[str, Any] = {
        "medusa": MedusaTrainee(own),
        "medusa_shared": MedusaTrainee(own, shared_head=True),
        "eagle3": Eagle3Trainee(own),
        "eagle3_reduced": Eagle3Trainee(own, draft_vocab=torch.arange(5, 40)),
    }
    here: list[Any] = []
    for name, trainee in trainees.items():
        with torch.no_grad():
            for parameter in trainee.module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape)).copy_(parameter.half())
        trainee.save(tmp_path / name)
        here += drafted(trainee.drafter(), own)
    folders = [tmp_path / name for name in trainees]
    there = drafted_in_a_fresh_process(tmp_path / "target", folders, tmp_path / "arrays.npz")
    assert equal(here, there, 1e-6)  # where memory lies may round sums otherwise
