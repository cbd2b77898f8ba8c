# SPDX-License-Identifier: Apache-2.0
"""`treespec chat`: talk to a model in the terminal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treespec.cli.answer import Answer, ends_line, print_answer_stats, stream_answer
from treespec.cli.command import EXPECTED_ERRORS, show_error, show_note
from treespec.cli.options import SamplingOptions, SizedModelOptions

if TYPE_CHECKING:
    from treespec.decoder import SpeculativeDecoder

SUMMARY = "Talk to a model; Ctrl-C stops an answer, Ctrl-D leaves."

HELP = "/reset  /stats  /seed N  /temperature X  /help  /exit   (Ctrl-C stops an answer)"


def chat(
    *,
    sampling: SamplingOptions,
    models: SizedModelOptions,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A system message to start with.")
    ] = None,
    color_accepted: Annotated[
        bool, typer.Option("--color-accepted", help="Accepted guesses green, own tokens plain.")
    ] = False,
) -> None:
    """Talk to a model. A model without a chat template continues the text instead, and says so.

    [bold]Examples[/bold]

        treespec chat --target ./llama-8b-it --drafter ./llama-1b-it -t 0.7

        treespec chat --target ./qwen --drafter ngram --system "Be brief."

    [bold]While talking[/bold]

        /reset            forget the conversation
        /stats            what the last answer cost, what was accepted
        /seed 7           another seed
        /temperature 0.7  another temperature
        /exit             leave (Ctrl-D does too); Ctrl-C stops an answer
    """
    decoder = models.load()
    session = Session(decoder, sampling, system)
    if not session.has_template:
        show_note("this model has no chat template: it continues the text you type")
        if system:
            show_note("--system is put in front of that text")
    show_note(HELP)
    for line in _lines():
        if not line.strip():
            continue
        if not line.startswith("/"):
            _answer(session, line, color_accepted)
        elif not session.obey(line):
            break


def _answer(session: Session, line: str, color_accepted: bool) -> None:
    """A refused answer (a prompt too long, a bad setting) does not end the conversation."""
    try:
        session.answer(line, color_accepted)
    except EXPECTED_ERRORS as error:
        show_error(str(error))


class Session:
    """One conversation and the settings of its answers."""

    def __init__(
        self, decoder: SpeculativeDecoder, sampling: SamplingOptions, system: str | None
    ) -> None:
        self.decoder = decoder
        self.sampling = sampling
        self.system = system
        self.last: Answer | None = None
        self.has_template = bool(getattr(decoder.tokenizer, "chat_template", None))
        self.reset()

    def reset(self) -> None:
        """Forget the conversation, keep the settings."""
        self.messages: list[dict[str, str]] = []
        if self.system:
            self.messages.append({"role": "system", "content": self.system})
        self.text = f"{self.system}\n" if self.system else ""

    def answer(self, line: str, color_accepted: bool = False) -> None:
        """Answer one line of the user, and remember both, cut answers too."""
        messages = [*self.messages, {"role": "user", "content": line}]
        text = self.text + line
        self.last = stream_answer(
            self.decoder,
            self._prompt(messages, text),
            self.sampling.keywords(),
            color_accepted=color_accepted,
        )
        ends_line(self.last.text)
        self.messages = [*messages, {"role": "assistant", "content": self.last.text}]
        self.text = text + self.last.text + ("" if self.last.text.endswith("\n") else "\n")

    def obey(self, line: str) -> bool:
        """Do what a /command says; False when it is time to leave."""
        name, _, value = line[1:].strip().partition(" ")
        if name in ("exit", "quit"):
            return False
        if name == "reset":
            self.reset()
            show_note("conversation forgotten")
        elif name == "stats":
            self._show_stats()
        elif name in ("seed", "temperature"):
            self._set(name, value)
        else:
            show_note(HELP)
        return True

    def _prompt(self, messages: list[dict[str, str]], text: str) -> str | list[int]:
        if not self.has_template:
            return text
        ids = self.decoder.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return [int(token) for token in ids]

    def _show_stats(self) -> None:
        if self.last is None:
            show_note("no answer yet")
        else:
            print_answer_stats(self.last)

    def _set(self, name: str, value: str) -> None:
        changed: dict[str, Any] = {}
        try:
            changed[name] = int(value) if name == "seed" else float(value)
        except ValueError:
            show_error(f"/{name} needs a number, got {value!r}")
            return
        self.sampling = dataclasses.replace(self.sampling, **changed)
        show_note(f"{name} {changed[name]}")


def _lines() -> Iterator[str]:
    """Yield what the user types until the end of input; Ctrl-C at the prompt clears the line."""
    interactive = sys.stdin.isatty()
    if interactive:
        _enable_line_editing()
    while True:
        try:
            yield input("> " if interactive else "")
        except EOFError:
            sys.stdout.write("\n" if interactive else "")
            return
        except KeyboardInterrupt:
            show_note("\nCtrl-D or /exit leaves")


def _enable_line_editing() -> None:
    """Importing `readline` is what gives `input` history and arrow keys; some systems have none."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
