# SPDX-License-Identifier: Apache-2.0
"""Writes python/treespec/_core.pyi from the built extension; `--check` only compares."""

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = Path(__file__).resolve().parents[1] / "python/treespec/_core.pyi"
HOW_TO_UPDATE = "run `python tools/update_stubs.py` with the extension built, and commit the result"


def generate() -> str:
    """Return the stub of the `treespec._core` that this interpreter imports."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "treespec._core", "-o", folder]
        done = subprocess.run([*command, "--exit-code"], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"pybind11-stubgen failed:\n{done.stdout}{done.stderr}")
        text = (Path(folder) / "treespec/_core.pyi").read_text()
    # The version has its own place; a release must not touch the stub.
    return re.sub(r"^__version__: str = .*$", "__version__: str", text, flags=re.MULTILINE)


def difference() -> str:
    """Return the committed stub's difference from a fresh one, empty when it is current."""
    committed = STUB.read_text() if STUB.exists() else ""
    lines = difflib.unified_diff(
        committed.splitlines(), generate().splitlines(), "committed", "generated", lineterm=""
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare and write nothing")
    if not parser.parse_args().check:
        STUB.write_text(generate())
        return 0
    if changes := difference():
        print(f"{changes}\n{STUB.name} is not current: {HOW_TO_UPDATE}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
