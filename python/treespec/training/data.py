# SPDX-License-Identifier: Apache-2.0
"""Training data: prompts from files, and what the target writes after them.

A drafter is judged by how often the target agrees, so that it learns on the target's own text, at
the temperatures it will be used at.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from treespec.decoder import SpeculativeDecoder
from treespec.targets.base import Needs
from treespec.training.base import Batch

Int32Array = npt.NDArray[np.int32]
States = tuple[torch.Tensor | None, torch.Tensor]  # features and last_hidden of a text
Progress = Callable[[Sequence[Any]], Iterable[Any]]

TEMPERATURES = (0.0, 0.7, 1.0)  # a third of the texts each
_TEXT_SUFFIXES = {".txt", ".py", ".md", ".rst"}
_MIN_BYTES, _MAX_BYTES = 400, 150_000
_HELD_OUT_ONE_IN = 20
_SKIPPED = {
    *("test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "encodings", "pydoc_data"),
    *("site-packages", "dist-packages", "lib-dynload", "__pycache__"),
}


# --- Prompts --------------------------------------------------------------------------------------


def python_sources(*, held_out: bool = False) -> Iterator[str]:
    """Sources of the running interpreter's standard library, what the demo target was trained on.

    Parameters
    ----------
    held_out
        The twentieth of the files, by the hash of their names, that no demo model has seen.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        digest = hashlib.sha256(f"python/{name.as_posix()}".encode()).hexdigest()
        left_out = int(digest[:8], 16) % _HELD_OUT_ONE_IN == 0
        if left_out != held_out or _SKIPPED.intersection(name.parts):
            continue
        content = path.read_bytes()
        if _MIN_BYTES <= len(content) <= _MAX_BYTES and content.isascii():
            yield content.decode("ascii")


def read_prompts(
    paths: Sequence[str | os.PathLike[str]],
    tokenizer: Any,
    *,
    count: int,
    prompt_tokens: int,
    seed: int = 0,
) -> list[Int32Array]:
    """Prompts for the target to continue.

    Parameters
    ----------
    paths
        ``.jsonl`` files, a JSON object a line with `prompt`, `text` or `messages` (which the
        tokenizer's chat template turns into a prompt); other files and folders of text, of which
        windows are cut. ``"python"`` is the standard library of the interpreter.
    count
        Prompts wanted; fewer when the files hold no more.
    prompt_tokens
        Length of a window, and the most of a given prompt that is kept, from its end. What the
        tokenizer puts before every text is before these as well, and counts.
    seed
        Which windows, and which prompts when there are too many.

    Raises
    ------
    ValueError
        If there is nothing to read, or a line is not as it should be.
    """
    given: list[Int32Array] = []
    texts: list[str] = []
    for path in paths:
        if str(path) == "python":
            texts += python_sources()
        elif Path(path).suffix == ".jsonl":
            given += [_end(ids, prompt_tokens, tokenizer) for ids in _json_prompts(path, tokenizer)]
        else:
            texts += [file.read_text("utf-8", errors="replace") for file in _text_files(Path(path))]
    if not given and not texts:
        read = ", ".join(map(str, paths))
        raise ValueError(f"train-drafter: data must hold prompts, got none in {read}")
    random = np.random.default_rng(seed)
    if len(given) > count:
        return [given[i] for i in random.permutation(len(given))[:count]]
    missing = count - len(given) if texts else 0
    return given + windows(texts, tokenizer, missing, prompt_tokens, random)


def windows(
    texts: Sequence[str],
    tokenizer: Any,
    count: int,
    length: int,
    random: np.random.Generator,
) -> list[Int32Array]:
    """`count` windows of `length` tokens at random places of the texts, which never overlap.

    Raises
    ------
    ValueError
        If there is no text that long.
    """
    if count <= 0:
        return []
    begin = _begin(tokenizer)
    size = length - len(begin)
    streams = [_ids(tokenizer, text, add_special_tokens=False) for text in texts]
    cut = [
        stream[start : start + size]
        for stream in streams
        for start in range(
            int(random.integers(1 + max(0, min(size, len(stream) - size)))),
            len(stream) - size + 1,
            size,
        )
    ]
    if not cut:
        raise ValueError(f"train-drafter: data must hold a text of {size} tokens, got none")
    return [np.concatenate([begin, cut[i]]) for i in random.permutation(len(cut))[:count]]


def _begin(tokenizer: Any) -> Int32Array:
    """The mark that the tokenizer puts before every text, or nothing."""
    ids = _ids(tokenizer, "")
    return ids[: len(ids) > 0 and int(ids[0]) == getattr(tokenizer, "bos_token_id", None)]


def _end(ids: Int32Array, count: int, tokenizer: Any) -> Int32Array:
    """The last tokens of a prompt, behind the mark it begins with."""
    if len(ids) <= count:
        return ids
    begin = _begin(tokenizer)
    if not np.array_equal(ids[: len(begin)], begin):
        return ids[-count:]
    return np.concatenate([begin, ids[len(ids) - count + len(begin) :]])


def _ids(tokenizer: Any, text: str, **options: Any) -> Int32Array:
    return np.asarray(tokenizer(text, verbose=False, **options)["input_ids"], dtype=np.int32)


def _text_files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"train-drafter: no such data: {path}")
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in _TEXT_SUFFIXES)


def _json_prompts(path: str | os.PathLike[str], tokenizer: Any) -> Iterator[Int32Array]:
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                ids = _json_prompt(f"{path}:{number}", line, tokenizer)
                if not len(ids):
                    raise ValueError(f"train-drafter: {path}:{number} must not be empty")
                yield ids


def _json_prompt(place: str, line: str, tokenizer: Any) -> Int32Array:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"train-drafter: {place} must be JSON: {error}") from error
    if isinstance(row, dict) and "messages" in row:
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(f"train-drafter: {place} has messages, the tokenizer no chat template")
        text = tokenizer.apply_chat_template(
            row["messages"], tokenize=False, add_generation_prompt=True
        )
        return _ids(tokenizer, text, add_special_tokens=False)  # the template has put them
    text = row.get("prompt", row.get("text")) if isinstance(row, dict) else None
    if not isinstance(text, str):
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(
            f"train-drafter: {place} must have prompt or text, or messages, got {found}"
        )
    return _ids(tokenizer, text)


# --- Samples --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A text: a prompt and what the target wrote after it.

    Attributes
    ----------
    tokens
        ``[n]`` int32.
    prompt_length
        How many of them are the prompt's.
    """

    tokens: Int32Array
    prompt_length: int


def write_samples(
    folder: Path,
    target: Any,
    prompts: Sequence[Int32Array],
    *,
    new_tokens: int,
    batch_size: int,
    temperatures: Sequence[float] = TEMPERATURES,
    seed: int = 0,
    progress: Progress = iter,
) -> None:
    """Let the target continue every prompt, one file per batch; goes on where it was stopped.

    Parameters
    ----------
    folder
        Where the files go, by number. Batch b has temperature ``temperatures[b % len]``.
    new_tokens
        The most tokens after each prompt; a text may end before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    decoder = SpeculativeDecoder(target, None)
    starts = range(0, len(prompts), batch_size)
    for number, start in progress(list(enumerate(starts))):
        path = folder / f"{number:05d}.npz"
        if path.exists():
            continue
        batch = prompts[start : start + batch_size]
        results = decoder.generate(
            [prompt.tolist() for prompt in batch],
            max_new_tokens=new_tokens,
            temperature=temperatures[number % len(temperatures)],
            seed=seed,
            sequence_id=list(range(start, start + len(batch))),
        )
        texts = [[*p.tolist(), *r.token_ids] for p, r in zip(batch, results, strict=True)]
        _write_texts(path, texts, [len(prompt) for prompt in batch])


def _write_texts(path: Path, texts: Sequence[list[int]], prompt_lengths: list[int]) -> None:
    part = path.with_suffix(".partial")
    with part.open("wb") as file:
        np.savez(
            file,
            tokens=np.concatenate([np.array(text, dtype=np.int32) for text in texts]),
            lengths=np.array([len(text) for text in texts]),
            prompt_lengths=np.array(prompt_lengths),
        )
    os.replace(part, path)


def read_samples(folder: Path) -> list[Sample]:
    """All samples of a folder, in order.

    Raises
    ------
    FileNotFoundError
        If there are none.
    """
    samples: list[Sample] = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            ends = np.cumsum(file["lengths"])[:-1]
            texts = np.split(file["tokens"], ends)
            samples += [
                Sample(text, int(length))
                for text, length in zip(texts, file["prompt_lengths"], strict=True)
            ]
    if not samples:
        raise FileNotFoundError(f"train-drafter: {folder} must hold samples, got none")
    return samples


@dataclass(frozen=True)
class Recipe:
    """What decides which texts a folder holds, besides the target.

    Attributes
    ----------
    data
        Paths, as `read_prompts` takes them.
    prompts, prompt_tokens
        How many prompts, and the most tokens of one.
    new_tokens
        The most tokens that the target adds to one.
    batch_size
        Prompts that are continued together, at one temperature.
    """

    data: tuple[str, ...]
    prompts: int
    prompt_tokens: int
    new_tokens: int
    batch_size: int
    seed: int = 0


def samples_by(
    recipe: Recipe, folder: Path, target: Any, tokenizer: Any, progress: Progress = iter
) -> list[Sample]:
    """The texts of a recipe: those a folder holds, and the ones that are missing, written now.

    Raises
    ------
    ValueError
        If the folder holds texts of another recipe or target, with what differs.
    """
    notes = folder / "recipe.json"
    wanted = {**vars(recipe), "data": list(recipe.data), "target": fingerprint(target)}
    found = json.loads(notes.read_text("utf-8")) if notes.exists() else {}
    differing = [name for name in wanted if found.get(name, wanted[name]) != wanted[name]]
    if differing:
        told = ", ".join(f"{name} {found[name]} (not {wanted[name]})" for name in differing)
        raise ValueError(
            f"train-drafter: {folder} holds texts of {told}; give the same options, or another "
            "folder with --samples"
        )
    if not found.get("complete"):
        _write_json(notes, wanted)
        write_samples(
            folder,
            target,
            read_prompts(
                recipe.data,
                tokenizer,
                count=recipe.prompts,
                prompt_tokens=recipe.prompt_tokens,
                seed=recipe.seed,
            ),
            new_tokens=recipe.new_tokens,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            progress=progress,
        )
        _write_json(notes, {**wanted, "complete": True})
    return read_samples(folder)


def fingerprint(target: Any) -> str:
    """A short name of a target's weights: of the shapes and the first numbers of all of them."""
    digest = hashlib.sha256()
    for name, weight in target.model.named_parameters():
        first = weight.detach().flatten()[:8].float().cpu().numpy()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + first.tobytes())
    return digest.hexdigest()[:16]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".partial")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


# --- Batches --------------------------------------------------------------------------------------


class Batches:
    """Batches of samples with the target's states; batch `step` depends on seed and step alone.

    Parameters
    ----------
    target
        A `Target`.
    samples
        At least one.
    needs
        States wanted besides `last_hidden`.
    size
        Samples per batch.
    cache_bytes
        States are computed once and kept, in half precision, as long as they fit.
    """

    def __init__(
        self,
        target: Any,
        samples: Sequence[Sample],
        needs: Needs,
        *,
        size: int,
        seed: int = 0,
        cache_bytes: float = 4e9,
    ) -> None:
        self.target, self.samples = target, samples
        self.size, self.seed = min(size, len(samples)), seed
        self._needs = Needs(needs.layers, last_hidden=True)
        self._room = cache_bytes
        self._kept: dict[int, States] = {}

    def __getitem__(self, step: int) -> Batch:
        per_epoch = len(self.samples) // self.size
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.samples))
        return self.batch(order[place * self.size : (place + 1) * self.size].tolist())

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples of these numbers, padded at the end to one length."""
        samples, states = [self.samples[i] for i in indices], self._states(indices)
        length = max(len(sample.tokens) for sample in samples)
        tokens = torch.zeros(len(samples), length, dtype=torch.long)
        own = torch.zeros(len(samples), length, dtype=torch.bool)
        for row, sample in enumerate(samples):
            tokens[row, : len(sample.tokens)] = torch.from_numpy(sample.tokens)
            own[row, sample.prompt_length : len(sample.tokens)] = True
        features = [rows for rows, _ in states if rows is not None]
        return Batch(
            tokens.to(self.target.device),
            own.to(self.target.device),
            _padded(features, length) if features else None,
            _padded([rows for _, rows in states], length),
        )

    def _states(self, indices: Sequence[int]) -> list[States]:
        out = []
        for index in indices:
            states = self._kept.get(index) or self._compute(self.samples[index].tokens)
            size = _bytes(states)
            if index not in self._kept and size <= self._room:
                self._room -= size
                self._kept[index] = states
            out.append(states)
        return out

    def _compute(self, text: Int32Array) -> States:
        """By itself, so that its states do not depend on which texts are in a batch."""
        sequence = self.target.open(len(text))
        try:
            _, (states,) = self.target.prefill([sequence], [text], self._needs)
        finally:
            self.target.close(sequence)
        return _half(states.features), _half(states.last_hidden)


def _half(rows: torch.Tensor | None) -> Any:
    """In 16 bits, bfloat16 for what float16 might not hold."""
    if rows is None or rows.dtype.itemsize == 2:
        return rows
    return rows.half() if rows.abs().max() < 6e4 else rows.bfloat16()


def _padded(rows: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    out = rows[0].new_zeros(len(rows), length, rows[0].shape[1], dtype=torch.float32)
    for place, part in enumerate(rows):
        out[place, : len(part)] = part
    return out


def _bytes(states: States) -> int:
    return sum(rows.numel() * rows.element_size() for rows in states if rows is not None)
