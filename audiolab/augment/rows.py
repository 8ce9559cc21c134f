"""Waveforms of any kind as rows of a tensor, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from audiolab.errors import InputError

Waveforms = TypeVar("Waveforms", np.ndarray, torch.Tensor)


def as_rows(waveforms: Any, what: str) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """The waveforms as a float32 or float64 tensor (batch, time), and the way back to what was given.

    The way back restores shape, dtype and kind. Raises InputError, which says that `what` got them, for anything but
    floating-point (time,) or (batch, time) with at least one sample.

    >>> rows_bt, restore = as_rows(np.zeros(3), "a filter")
    >>> rows_bt.shape, restore(rows_bt + 1)
    (torch.Size([1, 3]), array([1., 1., 1.]))
    """
    is_array = isinstance(waveforms, np.ndarray)
    tensor: torch.Tensor = torch.from_numpy(np.array(waveforms)) if is_array else waveforms
    if tensor.ndim not in (1, 2) or tensor.numel() == 0 or not tensor.is_floating_point():
        raise InputError(
            f"{what} got waveforms of shape {tuple(tensor.shape)} and type {tensor.dtype}: "
            "it takes floating-point (time,) or (batch, time) with at least one sample."
        )
    working = tensor.dtype if tensor.dtype in (torch.float32, torch.float64) else torch.float32

    def restore(result_bt: torch.Tensor) -> Any:
        """The result in the shape, dtype and kind of what was given."""
        result = result_bt.reshape(tensor.shape).to(tensor.dtype)
        return result.numpy() if is_array else result

    return tensor.reshape(-1, tensor.shape[-1]).to(working), restore
