# SPDX-License-Identifier: Apache-2.0
"""The examples in Python run as they are, on the bundled pair (test_package.py builds the C++)."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# Arguments that make an example quick, and a part of what it must print.
RUNS = [
    ("generate_hf.py", ["--max-new-tokens", "12"], "per forward"),
    ("generate_hf.py", ["x = 1\n", "-n", "12", "-t", "0.8", "--drafter", "suffix"], "per forward"),
    ("my_drafter.py", [], "tokens per target forward"),
    # Trains for an hour; its own tests are its checkpoints and its report.
    ("train_demo.py", ["--help"], "--target-minutes"),
]


@pytest.mark.parametrize(("name", "arguments", "expected"), RUNS)
def test_an_example_runs(name, arguments, expected):
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {name for name, *_ in RUNS}


def test_a_drafter_of_ones_own_never_changes_the_text():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import my_drafter
    finally:
        sys.path.pop(0)
    import treespec

    plain = treespec.load("demo", drafter=None)
    for proposal in ("deterministic", "iid"):
        ours = treespec.SpeculativeDecoder(
            plain.target,
            my_drafter.PairDrafter(plain.target.vocab_size),
            tokenizer=plain.tokenizer,
            builder="chain",
            builder_options={"proposal": proposal},
            verifier="target_only",
        )
        settings = {"max_new_tokens": 24, "temperature": 0.8, "seed": 5}
        prompt = "import os\nimport sys\n"
        assert ours.generate(prompt, **settings).token_ids == (
            plain.generate(prompt, **settings).token_ids
        )
