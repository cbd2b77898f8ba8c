# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the GPU: where there is none, its cases and checks run on the emulation."""

from __future__ import annotations

from pathlib import Path

from device_backends import use_backend


def test_every_case_checks_itself_against_the_core(monkeypatch):
    place = use_backend(0, monkeypatch)
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import bench_cuda

    monkeypatch.setattr(bench_cuda, "COLD_BYTES", 1 << 20)
    results = bench_cuda.main(["--quick", "--check", "--repetitions", "1"], place)
    assert len(results) == 9
    assert all(row["side"] == "emulation" and row["ratio"][0] > 0 for row in results)
