# SPDX-License-Identifier: Apache-2.0
"""The benchmark of whole rounds: where there is no GPU, it plays them with a tiny pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch


def test_rounds_are_split_and_set_beside_generate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import bench_rounds

    chosen: list[Any] = [bench_rounds.CASES[0], bench_rounds.CASES[-1]]
    monkeypatch.setattr(bench_rounds, "CASES", chosen)
    out = tmp_path / "rounds.json"
    whole, parts = bench_rounds.main(["--quick", "--repetitions", "1", "--json", str(out)], "cpu")
    assert whole["tokens_per_round"] == 6  # the drafter is the target but for layers without weight
    assert whole["share_outside_forwards"] < 1 and "gap_seconds" in whole
    assert parts["tokens_per_round"] > 1 and "round_seconds" not in parts
    assert json.loads(out.read_text())["results"][0]["of_generate"] == whole["of_generate"]


def test_the_drafter_is_the_beginning_of_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import bench_rounds

    target, drafter = bench_rounds.make_pair(bench_rounds.TINY, torch.float32, "cpu")
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.allclose(target(ids).logits, drafter(ids).logits, atol=1e-4)
    assert drafter.lm_head.weight.data_ptr() == target.lm_head.weight.data_ptr()
