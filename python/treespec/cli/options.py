# SPDX-License-Identifier: Apache-2.0
"""Groups of options that several commands share, and what each group means to the Python API."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treespec.cli.command import show_note
from treespec.export.manifest import is_exported

if TYPE_CHECKING:
    from treespec.decoder import SpeculativeDecoder

_model = partial(typer.Option, rich_help_panel="Models")
_tree = partial(typer.Option, rich_help_panel="Tree and verification")
_sampling = partial(typer.Option, rich_help_panel="Sampling")


@dataclass(frozen=True)
class PromptOptions:
    """Where the prompt comes from: the argument, a file, a pipe, or the demo."""

    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="Text to continue; `-` reads a pipe.",
            show_default="a demo prompt",
        ),
    ] = None
    prompt_file: Annotated[
        Path | None,
        typer.Option("--prompt-file", metavar="FILE", help="Read the prompt from this file."),
    ] = None

    def read(self) -> str:
        """Return the prompt, without the line end that closes a file or a pipe."""
        if self.prompt_file is not None:
            if self.prompt is not None:
                raise typer.BadParameter("give PROMPT or --prompt-file, not both")
            return _without_last_newline(self.prompt_file.read_text(encoding="utf-8"))
        if self.prompt is not None and self.prompt != "-":
            return self.prompt
        return _piped_text() or _demo_prompt()


@dataclass(frozen=True)
class PairOptions:
    """Which models, and where they run."""

    target: Annotated[
        str,
        _model(
            metavar="NAME",
            help="Whose text you want: `demo`, a folder (of `treespec export`, too), or a hub id.",
        ),
    ] = "demo"
    drafter: Annotated[
        str,
        _model(
            metavar="NAME",
            help="What guesses ahead: a name of `treespec info` (`demo:treeflash`, `suffix`), a "
            "folder, a hub id; `none` is plain decoding.",
            show_default="`demo`; beside an exported target its own, or `suffix`",
        ),
    ] = "auto"
    drafter_option: Annotated[
        list[str] | None,
        _model(
            metavar="NAME=VALUE",
            help="More for the drafter, repeatable: `head_rows=64`, `num_previous=8`.",
        ),
    ] = None
    backend: Annotated[
        str,
        _model(
            metavar="NAME",
            help="`hf`, or for exported folders `onnx` or `tensorrt`.",
            show_default="by the folder",
        ),
    ] = "auto"
    backend_option: Annotated[
        list[str] | None,
        _model(
            metavar="NAME=VALUE",
            help="More for the runtime of an exported folder, repeatable: `threads=4`, "
            "`providers=CUDAExecutionProvider,CPUExecutionProvider`.",
        ),
    ] = None
    device: Annotated[str, _model(metavar="NAME", help="`cpu`, `cuda`, `cuda:1`, ...")] = "auto"
    dtype: Annotated[str, _model(metavar="NAME", help="`float32`, `bfloat16`, ...")] = "auto"

    def load(self, **options: Any) -> SpeculativeDecoder:
        """Load the models and return the decoder; options are those of `treespec.load`."""
        import treespec

        if not self._runs_without_torch and (self.target == "demo" or not sys.stderr.isatty()):
            hide_progress_bars()
        return treespec.load(
            target=self.target,
            drafter=self.named_drafter,
            drafter_options=parse_assignments("--drafter-option", self.drafter_option) or None,
            backend=self.backend,
            backend_options=parse_assignments("--backend-option", self.backend_option) or None,
            device=self.device,
            dtype=self.dtype,
            **options,
        )

    @property
    def named_drafter(self) -> str | None:
        """The drafter, with what `auto` stands for."""
        from treespec.loading import named_drafter

        return None if self.drafter.lower() == "none" else named_drafter(self.target, self.drafter)

    @property
    def _runs_without_torch(self) -> bool:
        """Then transformers, which takes seconds to import, is left alone."""
        drafter = self.named_drafter
        drafts = is_exported(drafter) or drafter in (None, "ngram", "suffix")
        return is_exported(self.target) and drafts


@dataclass(frozen=True)
class ModelOptions(PairOptions):
    """Which models, and how trees are built and verified: the arguments of `treespec.load`."""

    builder: Annotated[
        str, _tree(metavar="NAME", help="How the tree of guesses grows: see `treespec info`.")
    ] = "opt_tree"
    verifier: Annotated[
        str, _tree(metavar="NAME", help="How guesses are accepted: see `treespec info`.")
    ] = "auto"
    nodes: Annotated[
        int | None,
        _tree(metavar="N", min=0, help="Most guesses per round (the root is not counted)."),
    ] = None
    max_depth: Annotated[
        int | None, _tree(metavar="N", min=1, help="Most guesses on one path.")
    ] = None
    builder_option: Annotated[
        list[str] | None,
        _tree(
            metavar="NAME=VALUE",
            help="More for the builder, repeatable: `width=4`, `expansion=4,2,1`.",
        ),
    ] = None
    selector: Annotated[
        Path | None,
        _tree(
            metavar="FILE",
            help="With `--builder delayed`: what chooses the tree of every round "
            "(`treespec train-selector`).",
        ),
    ] = None
    lossy: Annotated[
        bool,
        _tree(help="Admit verifiers that change the distribution of the text (`typical`)."),
    ] = False

    def load(self, **options: Any) -> SpeculativeDecoder:
        """Load the models and return the decoder with these trees."""
        return super().load(
            builder=self.builder,
            verifier=self.verifier,
            node_budget=self.nodes,
            max_depth=self.max_depth,
            builder_options=parse_assignments("--builder-option", self.builder_option) or None,
            lossy=self.lossy,
            selector=self.selector,
            **options,
        )


@dataclass(frozen=True)
class SizedModelOptions(ModelOptions):
    """The same, with trees that may be sized round by round."""

    profile: Annotated[
        str,
        _tree(
            metavar="auto|none|FILE",
            help="Choose every round's tree by the costs in this file; `auto`: by what "
            "`treespec tune --profile` kept for this pair here, unless --nodes is given; `none`: "
            "one size.",
        ),
    ] = "auto"

    def load(self, **options: Any) -> SpeculativeDecoder:
        """Load the models and return the decoder with these trees."""
        profile = None if self.profile == "none" else self.profile
        return super().load(profile=profile, **options)


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn and when to stop: the keyword arguments of `generate` and `stream`."""

    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", metavar="N", min=1, help="Stop after this many tokens."
        ),
    ] = 128
    temperature: Annotated[
        float,
        _sampling(
            "--temperature", "-t", metavar="X", min=0.0,
            help="0 takes the likeliest token; 1 samples the model as it is.",
        ),
    ] = 0.0  # fmt: skip
    top_p: Annotated[
        float,
        _sampling(
            metavar="X", min=0.0, max=1.0, help="Keep the likeliest up to this probability in all."
        ),
    ] = 1.0
    top_k: Annotated[
        int, _sampling(metavar="N", min=0, help="Keep this many likeliest tokens; 0 keeps all.")
    ] = 0
    min_p: Annotated[
        float,
        _sampling(metavar="X", min=0.0, max=1.0, help="Drop tokens below this share of the best."),
    ] = 0.0
    repetition_penalty: Annotated[
        float, _sampling(metavar="X", help="Above 1 repeats the prompt and the answer less.")
    ] = 1.0
    presence_penalty: Annotated[
        float, _sampling(metavar="X", help="Taken off the score of tokens already written.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, _sampling(metavar="X", help="The same, once per time it was written.")
    ] = 0.0
    seed: Annotated[int, _sampling(metavar="N", help="The same seed gives the same text.")] = 0
    stop: Annotated[
        list[str] | None, _sampling(metavar="TEXT", help="Stop before this text; repeatable.")
    ] = None

    ignore_eos: Annotated[
        bool, _sampling("--ignore-eos", help="Write on where the model would end.")
    ] = False

    def keywords(self) -> dict[str, Any]:
        """Return the keyword arguments for `generate` and `stream`."""
        return {**vars(self), "stop": self.stop or None}


def parse_assignments(option: str, assignments: list[str] | None) -> dict[str, Any]:
    """Turn `["width=4", "expansion=4,2,1"]` into `{"width": 4, "expansion": [4, 2, 1]}`."""
    values: dict[str, Any] = {}
    for assignment in assignments or []:
        name, separator, value = assignment.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"{option} must be NAME=VALUE, got {assignment!r}")
        values[name.strip().replace("-", "_")] = _parse_value(value)
    return values


def _parse_value(value: str) -> Any:
    for text in (value, f"[{value}]"):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            continue
    return value


def hide_progress_bars() -> None:
    """Load weights without the bars of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _piped_text() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    return _without_last_newline(sys.stdin.read())


def _without_last_newline(text: str) -> str:
    return text[:-1] if text.endswith("\n") else text


def _demo_prompt() -> str:
    from treespec import demo

    prompt = demo.prompts()[0]
    show_note(f"no prompt given, so this demo prompt: {prompt!r}")
    return prompt
