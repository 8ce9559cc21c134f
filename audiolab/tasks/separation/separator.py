"""What every separator shares: any length, any level, and what is done to its estimates.

Shapes: b batch, s speaker, t time.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from audiolab.errors import InputError
from audiolab.tasks.separation.output import OUTPUTS, Output

SPEAKERS = range(2, 6)
"""How many a model may separate."""


class Separator(nn.Module):
    """Mixture -> one waveform for each speaker, as long as the mixture; `separate` is the model itself.

    The mixture is brought to an RMS of 1 and the estimates back, so no level is special to the model. A causal one may
    not look at the whole mixture for that: `separate` then gets it as it is, and must itself be indifferent to level.
    """

    def __init__(self, num_speakers: int, output: Output, *, causal: bool) -> None:
        super().__init__()
        if num_speakers not in SPEAKERS:
            raise InputError(f"model.num_speakers={num_speakers} does not fit: give {SPEAKERS[0]} to {SPEAKERS[-1]}")
        if output not in OUTPUTS:
            raise InputError(f"model.output={output!r} does not fit: give one of {', '.join(OUTPUTS)}")
        if causal and output != "as_is":
            raise InputError(
                f"model.output={output} needs the whole recording, which a causal model does not wait for: give "
                "model.output=as_is or model.causal=false"
            )
        self.num_speakers, self.output, self.causal = num_speakers, output, causal

    @abstractmethod
    def separate(self, wave_bt: Tensor) -> Tensor:
        """Waveform (batch, time) of at least one sample -> estimates (batch, speaker, time)."""

    def forward(self, mixture_bt: Tensor) -> Tensor:
        """Mixture (batch, time) -> estimates (batch, speaker, time). Raises InputError for any other shape."""
        self.check(mixture_bt)
        if self.causal:
            return self.separate(mixture_bt)
        level_b1 = _level(mixture_bt)
        estimate_bst = self.separate(mixture_bt / level_b1) * level_b1[..., None]
        return OUTPUTS[self.output](estimate_bst, mixture_bt)

    def facts(self, sample_rate_hz: int) -> dict[str, str]:
        """Return what a user may want to know of the model before it is trained: `what, unit -> value`."""
        return {}

    def check(self, mixture_bt: Tensor) -> None:
        """Raise InputError unless this is (batch, time) with at least one sample."""
        if mixture_bt.ndim != 2 or mixture_bt.shape[-1] == 0:
            raise InputError(
                f"{type(self).__name__} got a mixture of shape {tuple(mixture_bt.shape)}: give (batch, time) with at "
                "least one sample; mix channels down or separate them one by one"
            )


@torch.no_grad()
def _level(wave_bt: Tensor) -> Tensor:
    """RMS (batch, 1), 1 for silence; squares of a float32 at -200 dBFS would already be too small for float32."""
    level_b1 = wave_bt.double().square().mean(-1, keepdim=True).sqrt()
    return torch.where(level_b1 > 0, level_b1, 1.0).to(wave_bt.dtype)
