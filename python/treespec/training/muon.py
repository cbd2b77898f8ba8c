# SPDX-License-Identifier: Apache-2.0
"""Muon for weight matrices.

`torch.optim.Muon` orthogonalises in bfloat16, which a processor without such instructions does at a
twentieth of its speed; this one keeps the dtype of the weights there.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is made orthogonal.

    Parameters
    ----------
    parameters
        Matrices.
    lr, momentum, weight_decay
        The update of an ``[m, n]`` matrix is scaled by ``sqrt(max(1, m / n))``; weight decay is
        decoupled.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                average = state.setdefault("momentum", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(average, group["momentum"]))
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with singular values about 1, by five Newton-Schulz steps.

    On CUDA in bfloat16, which suffices; elsewhere in the matrix's own dtype.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    rows = matrix.mT if tall else matrix
    rows = rows.bfloat16() if rows.is_cuda else rows
    rows = rows / (rows.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = rows @ rows.mT
        rows = a * rows + (b * gram + c * gram @ gram) @ rows
    return (rows.mT if tall else rows).to(matrix.dtype)
