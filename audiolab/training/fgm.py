"""Fast gradient method: a second loss at the point near an embedding where the first one rises fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def adversarial(embedding_bd: Tensor, loss_of: Callable[[Tensor], Tensor], epsilon: float) -> Tensor:
    """Return embedding + epsilon g / ||g||, g the gradient of `loss_of` in each row (Miyato et al. 2017, eq. 5).

    The step counts as a constant: the loss of the result trains the network through the embedding, as the clean loss
    does. The gradient is taken in float32 under autocast too, since half precision loses small ones; it reaches no
    parameter, so accumulation and DDP see one backward pass.

    >>> adversarial(torch.zeros(1, 2), lambda e: (e @ torch.tensor([3.0, 4.0])).sum(), epsilon=0.5).tolist()
    [[0.30000001192092896, 0.4000000059604645]]
    """
    device = embedding_bd.device.type
    point_bd = embedding_bd.detach()
    point_bd = (point_bd.float() if torch.is_autocast_enabled(device) else point_bd).requires_grad_()
    with torch.autocast(device, enabled=False):
        (gradient_bd,) = torch.autograd.grad(loss_of(point_bd), point_bd)
    return embedding_bd + epsilon * F.normalize(gradient_bd, dim=1).to(embedding_bd.dtype)
