# SPDX-License-Identifier: Apache-2.0
"""From a drafter's logits to the rows and ranked lists that tree builders take."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from treespec._core import Marginals, cuda_built
from treespec.device import host_rows
from treespec.drafts.base import DraftSettings

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


def draft_log_probs(logits: torch.Tensor, vocab_size: int, settings: DraftSettings) -> torch.Tensor:
    """Log-probabilities in the target's vocabulary after temperature, top-k and top-p.

    Parameters
    ----------
    logits
        ``[n, V_draft]``.
    vocab_size
        V. Surplus columns are cut before the softmax; missing ones become -inf.

    Returns
    -------
    torch.Tensor
        ``[n, V]``, float64 for float64 logits, else float32.
    """
    rows = torch.log_softmax(_scores(logits[:, :vocab_size], settings), dim=-1)
    missing = vocab_size - rows.shape[1]
    return torch.nn.functional.pad(rows, (0, missing), value=-torch.inf) if missing else rows


def marginal_width(settings: DraftSettings) -> int:
    """K of a depth's list when nobody says: no tree of likeliest tokens needs more than its budget,
    and a drawn one draws from the whole list.
    """
    return max(64, settings.node_budget or 0)


def rank_rows(
    logits: torch.Tensor, width: int, settings: DraftSettings
) -> tuple[Int32Array, Float32Array]:
    """The `width` likeliest tokens of each row under the draft law, ranked.

    Parameters
    ----------
    logits
        ``[n, V]``, on any device; -inf is impossible.

    Returns
    -------
    token, logprob
        ``[n, min(width, V)]`` in host memory: logprob falls, equal ones by ascending token, and
        -inf pads.
    """
    temperature = settings.temperature
    if settings.top_k > 0 or settings.top_p < 1:
        logits, temperature = _scores(logits, settings), 1.0
    width = min(width, logits.shape[1])
    if is_on_host(logits):
        token, logprob = Marginals.from_logits(
            logits.contiguous(), width, temperature=temperature
        ).arrays
        return token, logprob
    if cuda_built() and host_rows.takes(logits, width):
        return host_rows.rank(logits, width, temperature)
    return _rank_by_torch(logits, width, temperature)


def is_on_host(logits: torch.Tensor) -> bool:
    """Whether the core reads rows where they are."""
    return logits.device.type == "cpu"


def _rank_by_torch(
    logits: torch.Tensor, width: int, temperature: float
) -> tuple[Int32Array, Float32Array]:
    rows = torch.log_softmax(logits.float() / temperature, dim=-1)
    logprob, token = rows.topk(width)
    ascending = token.argsort(dim=-1)
    logprob, order = logprob.gather(-1, ascending).sort(dim=-1, descending=True, stable=True)
    token = token.gather(-1, ascending).gather(-1, order)
    return token.int().cpu().numpy(), logprob.cpu().numpy()


def _scores(logits: torch.Tensor, settings: DraftSettings) -> torch.Tensor:
    """Logits at the draft's temperature, -inf where truncated; at least float32."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if settings.temperature != 1:
        scores = scores / settings.temperature
    if 0 < settings.top_k < scores.shape[1]:
        smallest = scores.topk(settings.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    return _keep_top_p(scores, settings.top_p) if settings.top_p < 1 else scores


def _keep_top_p(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Hugging Face's rule: drop, from the bottom, tokens whose cumulated mass is at most 1 -
    top_p.
    """
    ascending, order = scores.sort(dim=-1)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[:, -1] = False
    return scores.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
