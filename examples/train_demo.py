# SPDX-License-Identifier: Apache-2.0
"""Train the bundled demo pair, a small target and a smaller draft, from sources on this machine.

The text is Python source that every installation already has: the standard library of the running
interpreter and the permissively licensed packages that treespec itself brings along. Nothing is
downloaded. All stages share one work directory and can be run together or one at a time:

  data       collect the sources, hold out 5 % of the files by the hash of their name
  tokenizer  train a byte-level BPE of 2048 entries, encode everything
  draft      train the draft on the text (cross-entropy)
  target     train the target on the text (cross-entropy)
  samples    let the target write, at temperatures 0, 0.7 and 1
  distill    train the draft towards the target's distribution on those samples (forward KL)
  evaluate   held-out loss and block efficiency of chain-4, tree-16 and tree-64
  export     write weights, tokenizer, prompts and model card to the output directory

Training can be killed at any time: run the same command again and it goes on from the last
checkpoint. To train anew, take another work directory. Budgets are minutes of wall clock, and the
learning rate decays to zero at the end of each, so that a short run gives a weaker pair but never a
half-annealed one.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from treespec.training.memory import keep_freed_memory

EXAMPLES = """\
examples:
  train_demo.py                                    everything, about 70 minutes on one CPU core
  train_demo.py --target-minutes 2 --draft-minutes 1 --sample-minutes 1 --distill-minutes 1
                                                   a quick pass through all stages
  train_demo.py data tokenizer draft target        only these; run again to continue
  train_demo.py export --out snapshot              the latest checkpoints, also while training runs
  train_demo.py evaluate export                    measure again and rewrite the model card
"""

STAGES = ("data", "tokenizer", "draft", "target", "samples", "distill", "evaluate", "export")

# Distributions that an installation of treespec with its Hugging Face backend brings along, with
# their import names. All are permissively licensed; the model card lists what each states.
PACKAGES = {
    "torch": ("torch", "torchgen"),
    "transformers": ("transformers",),
    "numpy": ("numpy",),
    "tokenizers": ("tokenizers",),
    "safetensors": ("safetensors",),
    "huggingface_hub": ("huggingface_hub",),
    "rich": ("rich",),
    "typer": ("typer",),
    "click": ("click",),
    "Jinja2": ("jinja2",),
    "sympy": ("sympy",),
    "mpmath": ("mpmath",),
    "networkx": ("networkx",),
    "fsspec": ("fsspec",),
    "filelock": ("filelock",),
    "packaging": ("packaging",),
    "PyYAML": ("yaml",),
    "Pygments": ("pygments",),
    "anyio": ("anyio",),
    "regex": ("regex",),
}
# Tests and generated tables teach little; vendored folders carry somebody else's licence.
SKIPPED_FOLDERS = {
    *("test", "tests", "testing", "_test", "_tests", "idlelib", "lib2to3", "turtledemo"),
    *("ensurepip", "encodings", "pydoc_data", "site-packages", "dist-packages", "lib-dynload"),
    *("_vendor", "vendor", "vendored", "extern", "externals", "third_party"),
    *("_unicode_data", "lexers", "styles", "__pycache__"),
}
MAX_PACKAGE_BYTES = 4_000_000  # so that no package outweighs the standard library
MIN_FILE_BYTES, MAX_FILE_BYTES = 400, 150_000
HELD_OUT_ONE_IN = 20
DATA_TOTALS = ("files", "bytes", "held_out_files", "held_out_bytes")

VOCABULARY = 2048
END_OF_TEXT, MASK = "<|endoftext|>", "<|mask|>"  # ids 0 and 1; the mask serves block drafters
# A line break keeps the indentation that follows it; words, digits and punctuation stay apart.
PIECES = r"\n\s*| ?_*[A-Za-z]+|[0-9]{1,3}| ?[^\sA-Za-z0-9]+|[^\S\n]+"
SEQUENCE = 512
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}

# Eight layers: on a CPU depth is what makes one target forward cost several draft forwards.
TARGET_SHAPE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8}
DRAFT_SHAPE = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2}

SAMPLE_PROMPT, SAMPLE_NEW, SAMPLE_BATCH = 48, 208, 96
TEMPERATURES = (0.0, 0.7, 1.0)

EVALUATION_PROMPTS, EVALUATION_PROMPT_TOKENS, EVALUATION_NEW = 40, 64, 144
CHAIN_LENGTH, TREE_BUDGETS, TREE_WIDTH, TREE_DEPTH = 4, (16, 64), 16, 7

NUM_EXCERPTS, EXCERPT_CHARACTERS = 24, 400
# None ends in a line break: that would be a token without the indentation of the next line.
DEMO_PROMPTS = (
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):",
    'def read_config(path, encoding="utf-8"):\n    """Read a configuration file."""',
    "import os\nimport sys\n\n\ndef main():\n    parser = argparse.ArgumentParser(",
    "    def __repr__(self):\n        return ",
    "def parse_header(line):\n    if not line:\n        raise ValueError(",
    "class Node:\n    def __init__(self, name, parent=None):\n        self.name = name",
    "    try:\n        with open(filename, 'rb') as f:\n            data = f.read()\n    except ",
    "def is_valid(value):\n    return isinstance(value, ",
)


@dataclass(frozen=True)
class Run:
    """Where one training run keeps its files, and on what it runs."""

    options: argparse.Namespace
    device: torch.device
    console: Console = field(default_factory=Console)

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)

    @property
    def work(self) -> Path:
        return Path(self.options.work)

    @property
    def seed(self) -> int:
        return int(self.options.seed)

    def facts(self) -> dict[str, Any]:
        """What the stages have recorded so far; the model card is written from it."""
        path = self.work / "facts.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def record(self, stage: str, **facts: Any) -> None:
        everything = self.facts() | {stage: facts}
        write_atomically(self.work / "facts.json", json.dumps(everything, indent=1).encode())
        shown = {name: value for name, value in facts.items() if not isinstance(value, dict | list)}
        self.console.log(f"[bold]{stage}[/] {shown}")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a reader never sees half of it."""
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)


# --- data --------------------------------------------------------------------------------------


def licence_of(distribution: str) -> str:
    """The licence a distribution states about itself, as short as it says it."""
    metadata = importlib.metadata.metadata(distribution).json
    classifiers = [
        line.rsplit(" :: ", 1)[-1]
        for line in metadata.get("classifier", [])
        if line.startswith("License ::")
    ]
    stated = str(metadata.get("license_expression") or metadata.get("license") or "")
    short = stated.strip().splitlines()[0] if stated.strip() else ""
    return short if 0 < len(short) <= 160 else ", ".join(classifiers) or "not stated"


def source_files(root: Path, label: str) -> Iterator[tuple[str, str]]:
    """Names and texts of the ASCII Python files below a folder, ordered by the hash of the name."""
    names = {
        f"{label}/{path.relative_to(root).as_posix()}": path
        for path in root.rglob("*.py")
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
        and not path.name.startswith("_sysconfigdata")  # it holds paths of the build machine
    }
    for name in sorted(names, key=name_hash):
        content = names[name].read_bytes()
        if MIN_FILE_BYTES <= len(content) <= MAX_FILE_BYTES and content.isascii():
            yield name, content.decode("ascii").replace("\r\n", "\n")


def name_hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def is_held_out(name: str) -> bool:
    return int(name_hash(name)[:8], 16) % HELD_OUT_ONE_IN == 0


def collect_data(run: Run) -> None:
    """Gather the text: one JSON line per file, and a table of sources for the model card."""
    libraries: list[tuple[str, Path, str | None]] = [
        ("python", Path(sysconfig.get_paths()["stdlib"]), None)
    ]
    site_packages = Path(sysconfig.get_paths()["purelib"])
    for package, imports in PACKAGES.items():
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        libraries += [(name, site_packages / name, package) for name in imports]

    seen: set[str] = set()
    sources: dict[str, dict[str, Any]] = {}
    with (run.work / "text.jsonl").open("w") as output:
        for label, root, distribution in libraries:
            row = sources.setdefault(
                distribution or "Python standard library",
                {
                    "version": importlib.metadata.version(distribution)
                    if distribution
                    else platform.python_version(),
                    "licence": licence_of(distribution) if distribution else "PSF-2.0",
                    **dict.fromkeys(DATA_TOTALS, 0),
                },
            )
            for name, text in source_files(root, label):
                taken = row["bytes"] + row["held_out_bytes"]
                digest = hashlib.sha256(text.encode()).hexdigest()
                if digest in seen or (distribution and taken + len(text) > MAX_PACKAGE_BYTES):
                    continue
                seen.add(digest)
                prefix = "held_out_" if is_held_out(name) else ""
                row[f"{prefix}files"] += 1
                row[f"{prefix}bytes"] += len(text)
                output.write(json.dumps({"name": name, "text": text}) + "\n")
    totals = {key: sum(row[key] for row in sources.values()) for key in DATA_TOTALS}
    run.record("data", sources=sources, **totals)


def read_texts(run: Run, *, held_out: bool) -> list[tuple[str, str]]:
    """Names and texts of one side of the split."""
    with (run.work / "text.jsonl").open() as lines:
        files = [json.loads(line) for line in lines]
    return [(f["name"], f["text"]) for f in files if is_held_out(f["name"]) == held_out]


# --- tokenizer ---------------------------------------------------------------------------------


def train_tokenizer(run: Run) -> None:
    """Train the byte-level BPE on the training side only, then encode both sides as uint16."""
    train, held_out = read_texts(run, held_out=False), read_texts(run, held_out=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for _, text in train), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY

    folder = run.work / "tokenizer"
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "mask_token": MASK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    standard_library = [file for file in held_out if file[0].startswith("python/")]
    sides = {"train": train, "held_out": held_out, "standard_library": standard_library}
    counts: dict[str, int] = {}
    for side, files in sides.items():
        encodings = tokenizer.encode_batch([text for _, text in files])
        if side == "held_out":
            for encoding, (name, text) in zip(encodings, files, strict=True):
                assert tokenizer.decode(encoding.ids) == text, f"round trip failed: {name}"
        stream = np.concatenate([np.array([0, *e.ids], dtype=np.uint16) for e in encodings])
        np.save(run.work / f"{side}.npy", stream)
        counts[f"{side}_tokens"] = len(stream)
        counts[f"{side}_characters"] = sum(len(text) for _, text in files)
    run.record("tokenizer", **counts)


class Windows:
    """Shuffled windows over a token stream; batch `step` depends on the seed and the step only."""

    def __init__(self, path: Path, length: int, seed: int) -> None:
        self.tokens = np.load(path, mmap_mode="r")
        self.length, self.seed = length, seed
        self.per_epoch = (len(self.tokens) - 1) // length - 1  # one spare for the shifted start

    def batch(self, step: int, size: int) -> torch.Tensor:
        """Windows of `length + 1` tokens, [size, length + 1] int64; each epoch cuts elsewhere."""
        epoch, start = divmod(step * size, self.per_epoch)
        random = np.random.default_rng((self.seed, epoch))
        shift = int(random.integers(self.length))
        order = random.permutation(self.per_epoch)
        rows = [shift + self.length * order[(start + i) % self.per_epoch] for i in range(size)]
        windows = np.stack([self.tokens[row : row + self.length + 1] for row in rows])
        return torch.from_numpy(windows.astype(np.int64))


# --- training ----------------------------------------------------------------------------------


def new_model(shape: dict[str, int], seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            **shape,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def optimizers_for(model: LlamaForCausalLM, scale: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=0.03 * scale, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(others, lr=6e-3 * scale, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(progress: float) -> float:
    """Two per cent of warm-up, a plateau, then linear decay to zero over the last 60 %."""
    return min(progress / 0.02, 1.0, max(0.0, 1.0 - progress) / 0.6)


def fit(
    run: Run,
    name: str,
    model: LlamaForCausalLM,
    batch_loss: Callable[[int], torch.Tensor],
    *,
    minutes: float,
    tokens_per_step: int,
    learning_rate_scale: float = 1.0,
) -> None:
    """Train for a budget of wall clock; continue from `<name>.pt` when it exists."""
    path, budget = run.work / f"{name}.pt", 60 * minutes
    optimizers = optimizers_for(model, learning_rate_scale)
    base_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    step, spent, loss_average = 0, 0.0, math.nan
    if path.exists():
        saved = torch.load(path, map_location=run.device, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, spent, loss_average = saved["step"], saved["spent"], saved["loss"]

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "spent": spent,
            "loss": loss_average,
        }
        torch.save(state, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)

    model.train()
    last_save = last_line = spent
    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=run.console,
        disable=not run.console.is_terminal,
    )
    with progress:
        task = progress.add_task(name, total=budget, completed=int(spent), loss=math.nan, speed=0.0)
        while spent < budget:
            started = time.perf_counter()
            factor = learning_rate_factor(spent / budget)
            for optimizer, rate in zip(optimizers, base_rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * factor
            loss = batch_loss(step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            value = loss.item()
            loss_average = value if step == 0 else 0.98 * loss_average + 0.02 * value
            step += 1
            seconds = time.perf_counter() - started
            spent += seconds
            speed = tokens_per_step / seconds
            progress.update(task, completed=spent, loss=loss_average, speed=speed)
            if not run.console.is_terminal and spent - last_line > 60:
                last_line = spent
                run.console.log(
                    f"{name} step {step}: {spent / 60:.1f} of {minutes:g} min, "
                    f"loss {loss_average:.3f}, {speed:,.0f} tokens/s"
                )
            if spent - last_save > 60 * run.options.checkpoint_minutes:
                last_save = spent
                save()
    if last_save != spent:
        save()
    run.record(
        name,
        parameters=sum(p.numel() for p in model.parameters()),
        steps=step,
        tokens=step * tokens_per_step,
        minutes=round(spent / 60, 1),
        train_loss=round(loss_average, 3),
    )


def train_on_text(run: Run, name: str, shape: dict[str, int], minutes: float) -> None:
    """Next-token cross-entropy on the training stream."""
    model = new_model(shape, run.seed).to(run.device)
    windows = Windows(run.work / "train.npy", SEQUENCE, run.seed)
    size = BATCH_TOKENS[run.device.type] // SEQUENCE

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(run.device.type, torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

    compiled = torch.compile(loss_of) if run.options.compile else loss_of
    fit(
        run,
        name,
        model,
        lambda step: compiled(windows.batch(step, size).to(run.device)),
        minutes=minutes,
        tokens_per_step=size * SEQUENCE,
    )


def train_draft(run: Run) -> None:
    train_on_text(run, "draft", DRAFT_SHAPE, run.options.draft_minutes)


def train_target(run: Run) -> None:
    train_on_text(run, "target", TARGET_SHAPE, run.options.target_minutes)


def trained(run: Run, name: str, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The latest checkpoint, rounded to float16 first: the very weights that are exported.

    For the draft this is the distilled one as soon as it exists.
    """
    if name == "draft" and (run.work / "distill.pt").exists():
        name = "distill"
    model = new_model(TARGET_SHAPE if name == "target" else DRAFT_SHAPE, run.seed)
    saved = torch.load(run.work / f"{name}.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(saved["model"])
    return model.to(torch.float16).to(run.device, dtype).eval()


# --- distillation ------------------------------------------------------------------------------


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM,
    prompts: torch.Tensor,
    new_tokens: int,
    temperatures: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Continue a batch of prompts of equal length, each row at its own temperature.

    Gumbel-max: the arg-max of `logits + temperature * noise` is a draw from
    `softmax(logits / temperature)`, and the greedy token at temperature 0.
    """
    pieces, cache = [prompts], None
    for _ in range(new_tokens):
        output = model(
            input_ids=pieces[-1], past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        noise = -torch.empty_like(logits).exponential_(generator=generator).log()
        pieces.append((logits + temperatures[:, None] * noise).argmax(-1, keepdim=True))
    return torch.cat(pieces, dim=1)


def write_samples(run: Run) -> None:
    """Continue training prompts with the target until the budget is spent; one file per batch."""
    folder = run.work / "samples"
    if "samples" in run.facts() and folder.exists():
        return
    folder.mkdir(exist_ok=True)
    target = trained(run, "target", torch.bfloat16)
    windows = Windows(run.work / "train.npy", SAMPLE_PROMPT, run.seed + 1)
    size = SAMPLE_BATCH if run.device.type == "cpu" else 16 * SAMPLE_BATCH
    temperatures = torch.tensor(TEMPERATURES, device=run.device).repeat(size // len(TEMPERATURES))
    number, spent, fresh = len(list(folder.glob("*.npy"))), 0.0, 0
    while spent < 60 * run.options.sample_minutes:
        started = time.perf_counter()
        prompts = windows.batch(number, size)[:, :SAMPLE_PROMPT].to(run.device)
        generator = torch.Generator(run.device).manual_seed(run.seed * 1_000_003 + number)
        tokens = generate(target, prompts, SAMPLE_NEW, temperatures, generator)
        np.save(folder / f"{number:05d}.npy", tokens.cpu().numpy().astype(np.uint16))
        number, fresh = number + 1, fresh + size * SAMPLE_NEW
        spent += time.perf_counter() - started
        run.console.log(f"samples batch {number}: {fresh / spent:,.0f} tokens/s")
    run.record(
        "samples",
        sequences=number * size,
        prompt_tokens=SAMPLE_PROMPT,
        new_tokens=SAMPLE_NEW,
        minutes=round(spent / 60, 1),
    )


def distill_draft(run: Run) -> None:
    """Forward KL from the target to the draft, which makes the draft cover the target's mass."""
    target = trained(run, "target", torch.bfloat16)
    files = sorted((run.work / "samples").glob("*.npy"))
    samples = np.concatenate([np.load(path) for path in files])
    draft = new_model(DRAFT_SHAPE, run.seed).to(run.device)
    pretrained = torch.load(run.work / "draft.pt", map_location=run.device, weights_only=True)
    draft.load_state_dict(pretrained["model"])
    size = BATCH_TOKENS[run.device.type] // samples.shape[1]

    def batch_loss(step: int) -> torch.Tensor:
        epoch, start = divmod(step * size, len(samples) - size)
        order = np.random.default_rng((run.seed, epoch)).permutation(len(samples))
        rows = samples[order[start : start + size]].astype(np.int64)
        batch = torch.from_numpy(rows).to(run.device)
        with torch.no_grad():
            wanted = target(input_ids=batch, use_cache=False).logits.float().log_softmax(-1)
        with torch.autocast(run.device.type, torch.bfloat16):
            logits = draft(input_ids=batch, use_cache=False).logits
        return divergence(wanted, logits.float().log_softmax(-1)).mean()

    fit(
        run,
        "distill",
        draft,
        batch_loss,
        minutes=run.options.distill_minutes,
        tokens_per_step=size * samples.shape[1],
        learning_rate_scale=0.5,
    )


def divergence(wanted: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of two rows of log-probabilities, in nats."""
    return (wanted.exp() * (wanted - given)).sum(-1)


# --- evaluation --------------------------------------------------------------------------------


@torch.inference_mode()
def held_out_loss(run: Run, model: LlamaForCausalLM, side: str) -> dict[str, float]:
    """Loss on about 32,000 held-out tokens, in windows of the training length."""
    windows = Windows(run.work / f"{side}.npy", SEQUENCE, run.seed)
    counts = run.facts()["tokenizer"]
    losses = []
    for step in range(min(8, windows.per_epoch // 8)):
        batch = windows.batch(step, 8).to(run.device)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        losses.append(F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).item())
    nats = float(np.mean(losses))
    tokens_per_character = counts[f"{side}_tokens"] / counts[f"{side}_characters"]
    return {
        "nats_per_token": round(nats, 3),
        "bits_per_character": round(nats / math.log(2) * tokens_per_character, 3),
    }


def replay_chain(guesses: torch.Tensor, tokens: torch.Tensor, start: int, end: int) -> list[float]:
    """Block efficiency of the greedy chain, per row; `guesses[:, i]` is for position i + 1."""
    hits = (guesses[:, :-1] == tokens[:, 1:]).tolist()
    efficiency = []
    for row in hits:
        position, rounds = start, 0
        while position < end:
            window = row[position : position + CHAIN_LENGTH]
            accepted = window.index(False) if False in window else CHAIN_LENGTH
            position, rounds = position + accepted + 1, rounds + 1
        efficiency.append((position - start) / rounds)
    return efficiency


@torch.inference_mode()
def replay_tree(
    draft: LlamaForCausalLM, tokens: torch.Tensor, budget: int, start: int, end: int
) -> list[float]:
    """Block efficiency of best-first trees with `budget` nodes, per row of target trajectories.

    With the walk verifier the emitted text is the target's own sample whatever the draft says, so
    that a finished trajectory can be replayed: at each root, build the tree, accept the longest
    prefix of the trajectory that it contains, move on by that and one more token. All rows go in
    step; rows that are done wait for the others.

    Trees are grown level by level: the `TREE_WIDTH` best nodes of a level are expanded, every
    scored child is a candidate, the `budget` best candidates are the tree. A score is a sum of
    log-probabilities along the path and never exceeds its parent's, so that the best are a tree.
    """
    rows, length = tokens.shape
    width, device = TREE_WIDTH, tokens.device
    whole = draft(input_ids=tokens, use_cache=True)
    cache, row = whole.past_key_values, torch.arange(rows, device=device)
    position = torch.full((rows,), start, device=device)
    rounds = torch.zeros(rows, dtype=torch.long, device=device)

    while bool((position < end).any()):
        root = position.clamp(max=end - 1)
        score, token = whole.logits[row, root].log_softmax(-1).topk(width)  # depth 1
        prefix = torch.arange(length, device=device)[None, :] <= root[:, None]
        ancestors = torch.zeros(rows, width, 0, dtype=torch.bool, device=device)
        candidate_scores, path_candidates = [score], []
        on_path = token == tokens[row, root + 1][:, None]  # the node that follows the trajectory
        path_candidates.append(torch.where(on_path, score, -math.inf).amax(1))
        for depth in range(2, TREE_DEPTH + 1):
            itself = torch.eye(width, dtype=torch.bool, device=device).expand(rows, -1, -1)
            ancestors = torch.cat([ancestors, itself], dim=2)
            visible = torch.cat([prefix[:, None].expand(-1, width, -1), ancestors], dim=2)
            mask = torch.zeros(visible.shape, device=device).masked_fill(
                ~visible, torch.finfo(torch.float32).min
            )
            logits = draft(
                input_ids=token,
                position_ids=(root + depth - 1)[:, None].expand(-1, width),
                attention_mask=mask[:, None],
                past_key_values=cache,
            ).logits
            step_score, child = logits.log_softmax(-1).topk(width)  # [rows, width, width]
            child_score = (score[:, :, None] + step_score).flatten(1)
            follows = child == tokens[row, root + depth][:, None, None]
            child_on_path = (on_path[:, :, None] & follows).flatten(1)
            candidate_scores.append(child_score)
            path_candidates.append(torch.where(child_on_path, child_score, -math.inf).amax(1))
            score, best = child_score.topk(width)  # the next level's beam
            token, on_path = child.flatten(1).gather(1, best), child_on_path.gather(1, best)
            ancestors = ancestors[row[:, None], best // width]
        cache.crop(-(cache.get_seq_length() - length))
        # Scores fall along the path, so that the accepted nodes are those above the tree's worst.
        threshold = torch.cat(candidate_scores, dim=1).topk(budget).values[:, -1:]
        accepted = (torch.stack(path_candidates, dim=1) >= threshold).sum(1)
        active = position < end
        position = position + torch.where(active, accepted + 1, 0)
        rounds += active
    efficiency: list[float] = ((position - start) / rounds).tolist()
    return efficiency


def evaluate(run: Run) -> None:
    """Held-out loss of both models, divergence, and block efficiency on target trajectories."""
    started = time.perf_counter()
    target, draft = trained(run, "target"), trained(run, "draft")
    losses = {
        name: {side: held_out_loss(run, model, side) for side in ("held_out", "standard_library")}
        for name, model in (("target", target), ("draft", draft))
    }
    windows = Windows(run.work / "standard_library.npy", EVALUATION_PROMPT_TOKENS, run.seed)
    prompts = windows.batch(0, EVALUATION_PROMPTS)[:, :EVALUATION_PROMPT_TOKENS].to(run.device)
    start, end = EVALUATION_PROMPT_TOKENS, EVALUATION_PROMPT_TOKENS + EVALUATION_NEW
    generator = torch.Generator(run.device).manual_seed(run.seed)
    temperatures = torch.tensor(TEMPERATURES, device=run.device)
    tokens = generate(
        target,
        prompts.repeat(len(TEMPERATURES), 1),
        EVALUATION_NEW + TREE_DEPTH + 1,  # so that the last round is not cut short
        temperatures.repeat_interleave(EVALUATION_PROMPTS),
        generator,
    ).clone()
    with torch.inference_mode():
        draft_logits = draft(input_ids=tokens, use_cache=False).logits
        wanted = target(input_ids=tokens, use_cache=False).logits.log_softmax(-1)
        gap = divergence(wanted, draft_logits.log_softmax(-1))[:, start - 1 : end - 1].mean(1)
    results = {f"chain-{CHAIN_LENGTH}": replay_chain(draft_logits.argmax(-1), tokens, start, end)}
    for budget in TREE_BUDGETS:
        results[f"tree-{budget}"] = replay_tree(draft, tokens, budget, start, end)
        run.console.log(f"tree-{budget} replayed after {time.perf_counter() - started:.0f} s")

    table: dict[str, dict[str, tuple[float, float]]] = {}
    for name, values in results.items():
        groups = np.array(values).reshape(len(TEMPERATURES), EVALUATION_PROMPTS)
        errors = groups.std(1, ddof=1) / math.sqrt(EVALUATION_PROMPTS)
        table[name] = {
            f"{temperature:g}": (round(float(mean), 2), round(float(error), 2))
            for temperature, mean, error in zip(TEMPERATURES, groups.mean(1), errors, strict=True)
        }
    by_temperature = gap.reshape(len(TEMPERATURES), -1).mean(1).tolist()
    run.record(
        "evaluate",
        losses=losses,
        divergence={
            f"{t:g}": round(v, 3) for t, v in zip(TEMPERATURES, by_temperature, strict=True)
        },
        block_efficiency=table,
        minutes=round((time.perf_counter() - started) / 60, 1),
    )
    run.console.print(table)


# --- export ------------------------------------------------------------------------------------


def held_out_excerpts(run: Run) -> list[dict[str, str]]:
    """Snippets of held-out standard library files that begin at a definition, whole lines.

    The first snippet of every file comes before the second of any.
    """
    ranked = []
    for name, text in read_texts(run, held_out=True):
        starts = [match.start() for match in re.finditer(r"^(def|class) ", text, re.MULTILINE)]
        starts = [start for start in starts if start + EXCERPT_CHARACTERS <= len(text)]
        if name.startswith("python/") and starts:
            for rank, begin in enumerate(sorted({starts[len(starts) // 2], starts[0]})):
                end = text.find("\n", begin + EXCERPT_CHARACTERS - 1) + 1 or len(text)
                excerpt = {"file": name.removeprefix("python/"), "text": text[begin:end].rstrip()}
                ranked.append((rank, name_hash(name), excerpt))
    return [excerpt for _, _, excerpt in sorted(ranked, key=lambda row: row[:2])][:NUM_EXCERPTS]


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def export(run: Run) -> None:
    """Write both models in float16, each with the tokenizer, and everything that describes them."""
    for name in ("target", "draft"):
        folder = run.options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        model = trained(run, name, torch.float16)
        model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
        model.save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)
        for file in (run.work / "tokenizer").iterdir():
            shutil.copyfile(file, folder / file.name)
    write_json(run.options.out / "prompts.json", DEMO_PROMPTS)
    write_json(run.options.out / "held_out.json", held_out_excerpts(run))
    (run.options.out / "README.md").write_text(model_card(run))
    size = sum(file.stat().st_size for file in run.options.out.rglob("*") if file.is_file())
    run.record("export", megabytes=round(size / 1e6, 2))


def markdown_table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def model_card(run: Run) -> str:
    """The README of the pair, from what the stages recorded."""
    facts = run.facts()
    data, tokenizer = facts["data"], facts["tokenizer"]
    sources = markdown_table(
        ["source", "version", "licence", "files", "bytes", "held-out files", "held-out bytes"],
        [
            [
                *(name, row["version"], row["licence"]),
                *(row["files"], f"{row['bytes']:,}"),
                *(row["held_out_files"], f"{row['held_out_bytes']:,}"),
            ]
            for name, row in data["sources"].items()
            if row["files"]
        ],
    )
    training = markdown_table(
        ["stage", "minutes", "steps", "tokens", "training loss"],
        [
            [stage, f["minutes"], f["steps"], f"{f['tokens']:,}", f["train_loss"]]
            for stage in ("draft", "target", "distill")
            if (f := facts.get(stage))
        ],
    )
    card = CARD.format(
        target_shape=shape_text(TARGET_SHAPE),
        draft_shape=shape_text(DRAFT_SHAPE),
        target_parameters=f"{sum(p.numel() for p in trained(run, 'target').parameters()):,}",
        draft_parameters=f"{sum(p.numel() for p in trained(run, 'draft').parameters()):,}",
        sources=sources,
        **{key: f"{data[key]:,}" for key in DATA_TOTALS},
        train_tokens=f"{tokenizer['train_tokens']:,}",
        held_out_tokens=f"{tokenizer['held_out_tokens']:,}",
        characters_per_token=f"{tokenizer['train_characters'] / tokenizer['train_tokens']:.2f}",
        max_package=f"{MAX_PACKAGE_BYTES / 1e6:g}",
        sequence=SEQUENCE,
        batch_tokens=BATCH_TOKENS[run.device.type],
        sample_prompt=SAMPLE_PROMPT,
        sample_new=SAMPLE_NEW,
        training=training,
        samples=f"{facts.get('samples', {}).get('sequences', 0):,}",
        machine=run.options.machine or machine_text(run),
        seed=run.seed,
        commands=run.options.commands or "python examples/train_demo.py",
    )
    return card + (evaluation_text(facts["evaluate"]) if "evaluate" in facts else SNAPSHOT_NOTE)


def shape_text(shape: dict[str, int]) -> str:
    layers, width, inner = (
        shape[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size")
    )
    return f"Llama, {layers} layers x {width}, feed-forward {inner}, 4 heads / 2 kv heads, tied"


def machine_text(run: Run) -> str:
    if run.device.type == "cuda":
        return f"one {torch.cuda.get_device_name(run.device)}"
    threads = "one thread" if run.options.threads == 1 else f"{run.options.threads} threads"
    return f"{os.cpu_count()}-core {platform.machine()} CPU, {threads}"


def evaluation_text(facts: dict[str, Any]) -> str:
    losses = markdown_table(
        ["model", "held-out text", "nats / token", "bits / character"],
        [
            [model, side.replace("_", " "), row["nats_per_token"], row["bits_per_character"]]
            for model, sides in facts["losses"].items()
            for side, row in sides.items()
        ],
    )
    efficiency = markdown_table(
        ["tree", *(f"temperature {t:g}" for t in TEMPERATURES)],
        [
            [name, *(f"{mean:.2f} ± {error:.2f}" for mean, error in row.values())]
            for name, row in facts["block_efficiency"].items()
        ],
    )
    gaps = ", ".join(f"{v} (temperature {t})" for t, v in facts["divergence"].items())
    return EVALUATION.format(
        losses=losses,
        efficiency=efficiency,
        gaps=gaps,
        prompts=EVALUATION_PROMPTS,
        prompt_tokens=EVALUATION_PROMPT_TOKENS,
        new_tokens=EVALUATION_NEW,
        width=TREE_WIDTH,
        depth=TREE_DEPTH,
        minutes=facts["minutes"],
    )


CARD = """\
# The demo pair

Two small language models of Python source, trained from scratch by `examples/train_demo.py`, so
that treespec can be tried, tested and timed with nothing downloaded. They write code-like text, not
useful programs.

| | shape | parameters | folder |
| --- | --- | --- | --- |
| target | {target_shape} | {target_parameters} | `target/` |
| draft | {draft_shape} | {draft_parameters} | `draft/` |

Weights are float16 safetensors in Hugging Face layout; compute in float32 or bfloat16. Both folders
hold the same tokenizer: byte-level BPE, 2048 entries, `<|endoftext|>` = 0 between files,
`<|mask|>` = 1 reserved for block drafters. The models were trained on contexts of up to
{sequence} tokens; longer ones run, with less sense.

More drafters of this target, trained on what it writes, are in folders beside these two:
[DRAFTERS.md](DRAFTERS.md).

`prompts.json` holds short prompts for demonstrations, `held_out.json` excerpts of held-out standard
library files for benchmarks. A line break and the indentation after it are one piece for the
tokenizer: end a prompt before a line break, not behind it.

## Data

ASCII Python source of one installation:

| side | files | bytes | tokens |
| --- | --- | --- | --- |
| training | {files} | {bytes} | {train_tokens} |
| held out | {held_out_files} | {held_out_bytes} | {held_out_tokens} |

Files are held out by the hash of their name; neither the tokenizer nor a model has seen them. A
token is {characters_per_token} characters. At most {max_package} MB are taken of a package; tests,
generated tables and vendored folders are left out, equal files are taken once. Some packages repeat
themselves (model definitions above all), so that their held-out files have near-copies in training:
losses are also given for the standard library alone, and block efficiency is measured there.

{sources}

Licences are as the distributions state them. The models and this card have the licence of treespec.

## Recipe

1. Text: first the draft, then the target, by cross-entropy.
2. The target writes {samples} sequences of {sample_prompt} prompt and {sample_new} new tokens,
   a third each at temperatures 0, 0.7 and 1.
3. The draft is distilled on them by forward KL at every position.

Muon on the matrices of the layers (learning rate 0.03; 0.015 in distillation; weight decay 0.05),
AdamW on the rest (0.006; 0.003), bfloat16 autocast, gradients clipped at 1.0, 2 % warm-up, linear
decay to zero over the last 60 % of each budget, {batch_tokens} tokens a step. Seed {seed}.

{training}

The loss of `distill` is the KL on its own samples, seen several times over; on new text it is
higher (below).

Machine: {machine}.

```
{commands}
```

A budget is wall clock: another machine sees another number of tokens and ends with other weights.
"""

SNAPSHOT_NOTE = "\nThis is a snapshot of a run that has not finished; nothing is measured yet.\n"

EVALUATION = """
## Measured

{losses}

KL from target to draft on the target's own text, nats per token: {gaps}.

Block efficiency, tokens per target forward, mean ± standard error over {prompts} held-out prompts
from the standard library, {prompt_tokens} tokens each and {new_tokens} new ones:

{efficiency}

Target trajectories at the given temperature are replayed with the walk verifier (`target_only`);
the draft's own temperature is 1. The chain is the draft's greedy one. Trees are best-first: the
{width} best nodes of a level are expanded, to depth {depth} at most; tree-64 has 64 drafted nodes,
the root not counted. A model of this size repeats itself at temperature 0, which flatters every
drafter there: prefer 0.7. Measured in {minutes} minutes on the same machine.
"""


# --- command line ------------------------------------------------------------------------------


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    repository = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("stages", nargs="*", metavar="stage", help="stages to run, in order (default: all)")
    add(
        "--work",
        type=Path,
        default=Path("demo_work"),
        help="checkpoints and data (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        default=repository / "python" / "treespec" / "demo",
        help="where export writes (default: python/treespec/demo of this repository)",
    )
    for stage, minutes in (("draft", 4), ("target", 50), ("sample", 6), ("distill", 7)):
        text = f"budget of this stage, minutes (default: {minutes})"
        add(f"--{stage}-minutes", type=float, default=minutes, metavar="MIN", help=text)
    add("--checkpoint-minutes", type=float, default=3, metavar="MIN", help="default: %(default)s")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    add("--device", help="cpu or cuda (default: cuda when there is one)")
    add(
        "--compile", action="store_true", help="torch.compile the training step: about 20 %% faster"
    )
    add("--machine", help="how the model card names the machine (default: a generic line)")
    add("--commands", help="the command lines that the model card shows")
    options = parser.parse_args(arguments)
    unknown = set(options.stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; known: {', '.join(STAGES)}")
    options.stages = options.stages or list(STAGES)
    return options


def main() -> None:
    options = parse_options()
    keep_freed_memory()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(options=options, device=torch.device(device))
    actions: dict[str, Callable[[Run], None]] = {
        "data": collect_data,
        "tokenizer": train_tokenizer,
        "draft": train_draft,
        "target": train_target,
        "samples": write_samples,
        "distill": distill_draft,
        "evaluate": evaluate,
        "export": export,
    }
    for stage in options.stages:
        run.console.rule(stage)
        actions[stage](run)


if __name__ == "__main__":
    main()
