# SPDX-License-Identifier: Apache-2.0
"""Writes python/treespec/_core/*.pyi from the built extension; `--check` only compares."""

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

STUBS = Path(__file__).resolve().parents[1] / "python/treespec/_core"
HOW_TO_UPDATE = "run `python tools/update_stubs.py` with the extension built, and commit the result"


def generate() -> dict[str, str]:
    """Return the stubs of the `treespec._core` that this interpreter imports, by file name."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "treespec._core", "-o", folder]
        done = subprocess.run([*command, "--exit-code"], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"pybind11-stubgen failed:\n{done.stdout}{done.stderr}")
        return {path.name: read(path) for path in (Path(folder) / "treespec/_core").glob("*.pyi")}


def read(path: Path) -> str:
    # The version has its own place; a release must not touch the stub.
    return re.sub(r"^__version__: str = .*$", "__version__: str", path.read_text(), flags=re.M)


def difference() -> str:
    """Return the committed stubs' difference from fresh ones, empty when they are current."""
    committed = {path.name: path.read_text() for path in STUBS.glob("*.pyi")}
    generated = generate()
    lines = []
    for name in sorted({*committed, *generated}):
        old, new = (texts.get(name, "").splitlines() for texts in (committed, generated))
        lines += difflib.unified_diff(
            old, new, f"committed {name}", f"generated {name}", lineterm=""
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare and write nothing")
    if not parser.parse_args().check:
        STUBS.mkdir(exist_ok=True)
        for name, text in generate().items():
            (STUBS / name).write_text(text)
        return 0
    if changes := difference():
        print(f"{changes}\n{STUBS.name} is not current: {HOW_TO_UPDATE}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
