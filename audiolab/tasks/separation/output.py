"""What is done to estimates that the model left at an arbitrary level, given the mixture they came from.

Shapes: b batch, s speaker, t time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Output = Literal["as_is", "least_squares", "consistent"]
_RIDGE = 1e-6  # of a unit energy: equal estimates share their gain instead of taking huge ones of opposite sign


def least_squares(estimate_bst: Tensor, mixture_bt: Tensor) -> Tensor:
    """Scale each estimate so that together they are as near to the mixture as gains alone can bring them.

    Silent estimates stay silent. Their SI-SDR is unchanged. A loss is taken through this, so gains have to be smooth
    in the estimates, also where two are alike: hence a ridge. `LevelGains`, which nothing is trained through, leaves
    alone what the signals do not determine, and gathers its sums block by block.

    >>> mixture = torch.tensor([[3.0, 5.0, 0.0]])
    >>> least_squares(torch.tensor([[[0.1, 0.0, 0.0], [0.0, 200.0, 0.0]]]), mixture).round(decimals=3)
    tensor([[[3., 0., 0.],
             [0., 5., 0.]]])
    """
    norm_bs1 = torch.linalg.vector_norm(estimate_bst, dim=-1, keepdim=True)
    unit_bst = estimate_bst / norm_bs1.masked_fill(norm_bs1 == 0, 1)
    gram_bss, toward_bs1 = (unit_bst @ unit_bst.mT).double(), (unit_bst @ mixture_bt[..., None]).double()
    factor_bss = torch.linalg.cholesky(gram_bss + _RIDGE * torch.eye(gram_bss.shape[-1], device=gram_bss.device))
    return torch.cholesky_solve(toward_bs1, factor_bss).to(unit_bst.dtype) * unit_bst


def consistent(estimate_bst: Tensor, mixture_bt: Tensor) -> Tensor:
    """Scale as `least_squares` does, then give every estimate an equal share of what the mixture still has besides.

    They then sum to the mixture, noise included (Wisdom et al. 2019, arXiv:1811.08521, equation 7).

    >>> mixture = torch.tensor([[3.0, 5.0, 2.0]])
    >>> consistent(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), mixture).round(decimals=3)
    tensor([[[3., 0., 1.],
             [0., 5., 1.]]])
    """
    estimate_bst = least_squares(estimate_bst, mixture_bt)
    lacking_b1t = mixture_bt[:, None] - estimate_bst.sum(1, keepdim=True)
    return estimate_bst + lacking_b1t / estimate_bst.shape[1]


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "as_is": lambda estimate_bst, mixture_bt: estimate_bst,
    "least_squares": least_squares,
    "consistent": consistent,
}
