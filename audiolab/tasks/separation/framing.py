"""Where the frames of a learned filterbank lie on a waveform, and how a waveform of any length is padded to them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

Padding = Literal["full", "windows", "none"]


class Framing(NamedTuple):
    """Frames of `kernel_size` samples, one every `stride`.

    `full`: frames reach over both ends, so that every sample lies in equally many (torchaudio's, where the stride is
    half a frame). `windows`: the same on the left, on the right filled up to whole kernels and a stride more (the
    paper's authors). `none`: only whole frames, what is left at the end is lost (asteroid's, the seed's).

    >>> Framing(16, 8, "full").num_frames(800), Framing(16, 8, "windows").num_frames(800)
    (101, 102)
    >>> Framing(16, 8, "none").num_frames(803), Framing(16, 8, "none").num_frames(1)
    (99, 1)
    """

    kernel_size: int
    stride: int
    padding: Padding

    @property
    def left(self) -> int:
        """Zeros before the first sample."""
        if self.padding == "windows":
            return self.stride
        return self.kernel_size - self.stride if self.padding == "full" else 0

    def num_frames(self, num_samples: int) -> int:
        """Count the frames of a waveform of at least one sample."""
        kernel, stride = self.kernel_size, self.stride
        if self.padding == "full":
            return (num_samples - 1 + self.left) // stride + 1
        if self.padding == "windows":
            filling = kernel - (stride + num_samples) % kernel
            return (num_samples + filling + 2 * stride - kernel) // stride + 1
        return max(0, num_samples - kernel) // stride + 1

    def pad(self, wave_bt: Tensor) -> Tensor:
        """Return the waveform over exactly the span of its frames."""
        num_samples = wave_bt.shape[-1]
        span = (self.num_frames(num_samples) - 1) * self.stride + self.kernel_size
        return F.pad(wave_bt, (self.left, span - self.left - num_samples))

    def crop(self, wave_bst: Tensor, num_samples: int) -> Tensor:
        """Return what the frames' span has of the waveform itself, with zeros for samples in no frame."""
        wave_bst = wave_bst[..., self.left : self.left + num_samples]
        return F.pad(wave_bst, (0, num_samples - wave_bst.shape[-1]))
