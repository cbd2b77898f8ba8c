# SPDX-License-Identifier: Apache-2.0
"""`treespec train-drafter` from end to end, on a tiny target in a folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import VOCAB_SIZE
from training_cases import LETTERS, target_folder, text_of
from typer.testing import CliRunner, Result

import treespec
from treespec.cli import build_app
from treespec.training import TRAINEES

Runs = Callable[[str], dict[str, Any]]

PROMPTS = ["def add(a", "for i in ", "import os", "x = [1, 2", "return se", "if a and "]


def train(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), ["train-drafter", *arguments])


def done(*arguments: str) -> dict[str, Any]:
    """The report of a run that must succeed."""
    result = train(*arguments, "--json")
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, prompts of two kinds, and what every run leaves."""
    path = tmp_path_factory.mktemp("train")
    target_folder(path / "target")
    rows = [json.dumps({"prompt": prompt}) for prompt in PROMPTS]
    (path / "prompts.jsonl").write_text("\n".join(rows))
    (path / "other.txt").write_text(LETTERS * 8)
    return path


def options(folder: Path, kind: str, out: Path | None = None, steps: int = 3) -> list[str]:
    """A run of a second."""
    given = {
        "kind": kind,
        "target": folder / "target",
        "data": folder / "prompts.jsonl",
        "samples": folder / "samples",
        "out": out or folder / kind,
        "prompts": 6,
        "prompt-tokens": 9,
        "new-tokens": 20,
        "sample-batch": 2,
        "steps": steps,
        "batch": 3,
        "eval-data": folder / "other.txt",
        "eval-prompts": 2,
        "eval-tokens": 8,
        "temperatures": "0.7",
    }
    if TRAINEES[kind].needs_backbone:
        given["backbone"] = folder / "dflash"
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Runs:
    """``trained(kind)``: the report of a run, which is made when it is first asked for."""

    @functools.cache
    def report(kind: str) -> dict[str, Any]:
        if TRAINEES[kind].needs_backbone:
            report("dflash")
        return done(*options(folder, kind))

    return report


# --- What a run leaves ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRAINEES)
def test_a_trained_drafter_loads_and_keeps_the_targets_text(
    kind: str, folder: Path, trained: Runs
) -> None:
    trained(kind)
    target, out = str(folder / "target"), str(folder / kind)
    plain = treespec.load(target, drafter=None)
    skipped = {} if kind == "ar" else {"self_test": False}  # after three steps none passes
    drafter = treespec.load(target, drafter=out, drafter_options=skipped).drafter
    builder = "opt_tree" if drafter.source_kind == "Expander" else "dtree"
    decoder = treespec.load(
        plain.target.model, drafter, tokenizer=plain.tokenizer, builder=builder, node_budget=6
    )
    for prompt in PROMPTS[:2]:
        expected = plain.generate(prompt, max_new_tokens=20, ignore_eos=True)
        assert decoder.generate(prompt, max_new_tokens=20, ignore_eos=True).text == expected.text


@pytest.mark.parametrize("kind", TRAINEES)
def test_the_report_says_what_was_done_and_reached(kind: str, folder: Path, trained: Runs) -> None:
    report = trained(kind)
    assert report["kind"] == kind and report["steps"] == 3 and report["seed"] == 0
    assert report["learning_rate"] == TRAINEES[kind].learning_rate
    assert report["target"] == str(folder / "target") and report["parameters"] > 0
    assert report["loss"] > 0
    assert list(report["block_efficiency"]) == ["chain-4", "tree-16", "tree-64"]
    for row in report["block_efficiency"].values():
        assert list(row) == ["0.7"]
        assert all(1 <= mean <= 9 and error >= 0 for mean, error in row.values())
    for row in report["accepted_by_depth"].values():
        for accepted, offered in row.values():
            assert len(accepted) == len(offered)
            assert all(a <= o for a, o in zip(accepted, offered, strict=True))
    assert json.loads((folder / kind / "training.json").read_text()) == report


def test_kinds_share_the_targets_texts(folder: Path, trained: Runs) -> None:
    trained("dflash")
    written = {file: file.stat().st_mtime_ns for file in (folder / "samples").iterdir()}
    trained("medusa")
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())
    assert sorted(file.name for file in written) == [
        *("00000.npz", "00001.npz", "00002.npz"),
        "recipe.json",
    ]


def test_a_module_leaves_its_stack_as_it_was(folder: Path, trained: Runs) -> None:
    from safetensors.torch import load_file

    for kind in ("treeflash", "pairwise"):
        trained(kind)
    stack = load_file(folder / "dflash" / "model.safetensors")
    for kind, prefix in (("treeflash", "model."), ("pairwise", "")):
        found = load_file(folder / kind / "model.safetensors")
        assert len(found) > len(stack)
        assert all(torch.equal(found[prefix + name], tensor) for name, tensor in stack.items())


# --- Stopping and going on ------------------------------------------------------------------------


def test_the_same_command_again_ends_at_once(folder: Path, tmp_path: Path) -> None:
    command = [*options(folder, "dflash", tmp_path), "--temperatures", "0,1"]
    first = done(*command)
    assert [list(row) for row in first["block_efficiency"].values()] == [["0", "1"]] * 3
    weights = (tmp_path / "model.safetensors").read_bytes()
    again = done(*command)
    assert again["steps"] == first["steps"] == 3 and again["minutes"] == first["minutes"]
    assert again["block_efficiency"] == first["block_efficiency"]
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_an_interrupted_run_goes_on_to_the_same_weights(
    folder: Path, tmp_path: Path, trained: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained("dflash")
    command = options(folder, "dflash", tmp_path)

    def stop(check: Any, seconds: float) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("treespec.cli.train_drafter._Check.after", stop)
        assert train(*command).exit_code == 130
    saved = torch.load(tmp_path / "training.pt")
    assert saved["state"]["step"] == 1 and not (tmp_path / "model.safetensors").exists()
    assert done(*command)["steps"] == 3
    assert (tmp_path / "model.safetensors").read_bytes() == (
        folder / "dflash" / "model.safetensors"
    ).read_bytes()


def test_texts_with_other_settings_need_another_folder(
    folder: Path, tmp_path: Path, trained: Runs
) -> None:
    trained("dflash")
    result = train(*options(folder, "dflash", tmp_path), "--new-tokens", "30")
    assert result.exit_code == 1
    assert "holds texts of new_tokens 20 (not 30)" in result.stderr and "--samples" in result.stderr


def test_a_folder_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    done(*options(folder, "dflash", tmp_path, steps=1))
    result = train(*options(folder, "medusa", tmp_path, steps=1))
    assert result.exit_code == 1 and "is the checkpoint of another run" in result.stderr


# --- What people read -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "builder"), [("pairwise", " --builder dtree"), ("ar", "")])
def test_the_report_is_a_table_and_a_command_that_runs(
    kind: str, builder: str, folder: Path, trained: Runs
) -> None:
    trained(kind)
    result = train(*options(folder, kind))
    assert result.exit_code == 0, result.output
    assert "tokens per target forward" in result.stdout
    assert "temperature 0.7" in result.stdout and "tree-64" in result.stdout
    (line,) = [line.strip() for line in result.stdout.splitlines() if "treespec generate" in line]
    assert line.endswith(f"--drafter {folder / kind} --stats --target {folder / 'target'}{builder}")
    command = [*line.split()[1:], "abc", "-n", "4"]
    if kind != "ar":
        command += ["--drafter-option", "self_test=false"]
    assert CliRunner().invoke(build_app(), command).exit_code == 0


def test_without_held_out_texts_it_says_so(folder: Path, tmp_path: Path) -> None:
    command = options(folder, "dflash", tmp_path, steps=1)
    place = command.index("--eval-data")
    result = train(*command[:place], *command[place + 2 :])
    assert result.exit_code == 0, result.output
    assert "no --eval-data given" in result.stderr and "seen in training" in result.stderr


@pytest.mark.slow
def test_the_demo_is_judged_on_files_that_nobody_trained_on(folder: Path, tmp_path: Path) -> None:
    command = ["--data", str(folder / "prompts.jsonl"), "--prompts", "4", "--new-tokens", "16"]
    command += ["--steps", "1", "--batch", "2", "--eval-prompts", "2", "--eval-tokens", "16"]
    result = train("--out", str(tmp_path), *command, "--temperatures", "0", "--json")
    assert result.exit_code == 0, result.output
    assert "--eval-data" not in result.stderr
    assert json.loads(result.stdout)["target"] == "demo"


# --- Bad arguments --------------------------------------------------------------------------------


def no_work(*_: object, **__: object) -> None:
    raise AssertionError("work was done before the refusal")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--kind", "nope"], 2, "--kind must be one of dflash, treeflash"),
        (["--kind", "treeflash"], 2, "give it with --backbone"),
        (["--backbone", "x"], 2, "--backbone must not be given with --kind dflash"),
        (["--temperatures", "warm"], 2, "--temperatures must be numbers and commas"),
        (["--precision", "int8"], 2, "--precision must be auto, bfloat16 or float32"),
        (["--option", "num_layers"], 2, "--option must be NAME=VALUE"),
        (["--prompts", "0"], 2, "--prompts"),
        (["--steps", "0"], 2, "--steps"),
        (["--option", "depth=3"], 1, "options of dflash must be among mask_token_id, num_layers"),
        (["--option", "num_layers=two"], 1, "num_layers must be int, got 'two'"),
        (["--steps", "3", "--minutes", "1"], 1, "give either steps or minutes"),
        (["--minutes", "0"], 1, "the budget must be above 0"),
        (["--optimizer", "sgd"], 1, "optimizer must be muon or adamw, got 'sgd'"),
        (["--learning-rate", "0"], 1, "learning_rate must be above 0"),
    ],
)
def test_bad_arguments_are_one_message_before_any_work(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("treespec.cli.options.PairOptions.load", no_work)
    result = train("--out", str(tmp_path / "out"), *arguments)
    message = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == code, result.output
    assert words in message and "Traceback" not in message
    if code == 1:
        assert message.startswith("error: train-drafter: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_out_is_needed_and_must_be_no_file(tmp_path: Path) -> None:
    assert train().exit_code == 2
    (tmp_path / "file").touch()
    result = train("--out", str(tmp_path / "file"))
    assert result.exit_code == 2 and "--out must be a folder" in result.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--new-tokens", "250"], "must fit the target's context of 256"),
        (["--eval-tokens", "180"], "must fit the target's context of 256"),
        (["--option", "block_size=1"], "block_size must be at least 2, got 1"),
        (["--option", "num_layers=0"], "num_layers must be at least 1, got 0"),
        (["--option", f"mask_token_id={VOCAB_SIZE}"], "mask_token_id must be in [0, 64)"),
        (["--data", "/no/such/file.txt"], "/no/such/file.txt"),
        (["--eval-data", "/no/such/file.txt"], "/no/such/file.txt"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_text_is_written(
    more: list[str], words: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treespec.training.data.write_samples", no_work)
    command = options(folder, "dflash", tmp_path / "out")
    command += ["--samples", str(tmp_path / "samples"), *more]
    result = train(*command)
    assert result.exit_code == 1, result.output
    assert words in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("backbone", ["target", "nowhere"])
def test_a_backbone_that_is_none_is_refused(backbone: str, folder: Path, tmp_path: Path) -> None:
    command = options(folder, "pairwise", tmp_path)
    command += ["--backbone", str(folder / backbone)]
    result = train(*command)
    assert result.exit_code == 1
    assert ("must be a DFlash drafter" if backbone == "target" else backbone) in result.stderr


def test_a_target_without_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    from tiny_models import tiny_model

    tiny_model("llama").save_pretrained(tmp_path / "mute")
    result = train(*options(folder, "dflash", tmp_path), "--target", str(tmp_path / "mute"))
    assert result.exit_code == 1 and "must have a tokenizer" in result.stderr


def test_the_prompts_of_these_tests_are_in_the_vocabulary() -> None:
    from training_cases import letter_tokenizer

    for prompt in PROMPTS:
        assert text_of(letter_tokenizer()(prompt)["input_ids"]) == prompt
