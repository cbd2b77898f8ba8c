# SPDX-License-Identifier: Apache-2.0
"""Streams one answer to stdout, keeps what came when Ctrl-C cuts it, colours accepted guesses."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from treespec.cli import report
from treespec.stats import Stats

if TYPE_CHECKING:
    from treespec.decoder import SpeculativeDecoder
    from treespec.generation import Piece, RoundRecord

_ACCEPTED_COLOR = typer.colors.GREEN


@dataclass
class Answer:
    """What was generated, complete or cut by Ctrl-C."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = "cancelled"
    stats: Stats = field(default_factory=Stats)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C came before the end."""
        return self.finish_reason == "cancelled"


def stream_answer(
    decoder: SpeculativeDecoder,
    prompt: str | list[int],
    keywords: dict[str, Any],
    write: bool = True,
    color_accepted: bool = False,
) -> Answer:
    """Generate, writing every piece as it comes; Ctrl-C ends the answer and keeps what there is."""
    answer = Answer()
    verdicts: list[Any] = []
    partial = Stats()  # what an interrupted answer shows; the decoder reports only whole ones

    def on_round(record: RoundRecord) -> None:
        partial.count_round(record.tree, record.verdict.accepted_nodes, len(record.verdict.tokens))
        verdicts.append(record.verdict)

    colored = color_accepted and _colors_wanted()
    start = time.perf_counter()
    try:
        for piece in decoder.stream(prompt, on_round=on_round, **keywords):
            answer.text += piece.text
            answer.token_ids += [int(token) for token in piece.token_ids]
            if piece.result is not None:
                answer.finish_reason, answer.stats = piece.result.finish_reason, piece.result.stats
            if write:
                accepted, own = (
                    split_piece(piece, verdicts, decoder) if colored else ("", piece.text)
                )
                _write(accepted, own)
            verdicts.clear()
    except KeyboardInterrupt:
        answer.finish_reason = "cancelled"
    if answer.interrupted:
        partial.tokens, partial.seconds["other"] = (
            len(answer.token_ids),
            time.perf_counter() - start,
        )
        answer.stats = partial
    return answer


def split_piece(piece: Piece, verdicts: list[Any], decoder: SpeculativeDecoder) -> tuple[str, str]:
    """Split a piece's text into what was accepted from the drafter and the target's own last token.

    The first piece has no round behind it: all of it is the target's own. A piece cut by a stop
    condition inside the accepted path is all accepted.
    """
    accepted = sum(int(verdict.num_accepted) for verdict in verdicts)
    if accepted == 0:
        return "", piece.text
    if len(piece.token_ids) <= accepted:
        return piece.text, ""
    own = decoder.tokenizer.decode([int(piece.token_ids[-1])])
    return (piece.text.removesuffix(own), own) if piece.text.endswith(own) else (piece.text, "")


def print_answer_stats(answer: Answer) -> None:
    """Print on stderr what an answer cost, as far as it came."""
    report.print_stats(answer.stats, Console(stderr=True), answer.interrupted)


def ends_line(text: str) -> None:
    """Close the line that the answer left open."""
    sys.stdout.write("" if text.endswith("\n") else "\n")
    sys.stdout.flush()


def _write(accepted: str, own: str) -> None:
    if sys.stdout.isatty():  # an escape sequence in a model's text must not drive the terminal
        accepted, own = (text.replace("\x1b", "\N{SYMBOL FOR ESCAPE}") for text in (accepted, own))
    if accepted:
        accepted = typer.style(accepted, fg=_ACCEPTED_COLOR)
    sys.stdout.write(accepted + own)
    sys.stdout.flush()


def _colors_wanted() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
