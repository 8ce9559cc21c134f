"""TFMamba: complex masks on the spectrum from convolutions and Mamba layers along time and frequency.

What makes it small is what speech repeats: a spectrum shifted in frequency or time is treated alike. As in TF-GridNet
(Wang et al. 2023, arXiv:2211.12433) one layer runs along frequency, with weights shared over frames, and one along
time, with weights shared over frequency; as in band-split RNNs (Luo & Yu 2023, arXiv:2209.15174) they see bands instead
of bins, narrow ones where harmonics lie, wide ones above. The layers are Mamba (Gu & Dao 2023, arXiv:2312.00752), half
the channels forward and half backward, as one direction of each is half the work of two. Dense convolutions between
them do the local work, for a fifth of the time an LSTM takes for as many products on a CPU. The masks are made at full
resolution, from the bands' context and what the first convolutions saw there.

Shapes: b batch, s speaker, t frames (samples for waves), f bins, g bands, c channels of a bin, d channels of a band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiolab.errors import InputError
from audiolab.nn.mamba import Mamba
from audiolab.tasks.separation.output import Output
from audiolab.tasks.separation.separator import Separator
from audiolab.training.limits import check_range

SequenceKind = Literal["mamba", "lstm"]
Layer = Literal["conv", "frequency", "time"]
_FEATURES = 3  # of a bin: magnitude, real and imaginary part
_LEAST_MAGNITUDE = 1e-4  # of a bin, where the mixture's RMS is 1: below it the compression ends


class TFMamba(Separator):
    """Separate on a short-time spectrum of `window_samples` every `hop_samples`.

    Bins up to `split_hz` form bands of `narrow_bins`, and are looked at one by one first and last, in `bin_channels`;
    those above form bands of `wide_bins`. Each of `num_blocks` blocks runs the `layers` in their order over bands of
    `channels`. `sequence`: what runs along time and frequency, `state` is the size of Mamba's state per channel.
    `compression` is the exponent of the magnitudes at the input. Not causal: both directions of time, and the level of
    the whole mixture, are looked at. Raises InputError for sizes that do not fit each other.

    >>> model = TFMamba(num_speakers=3, num_blocks=1, channels=16)
    >>> model(torch.randn(2, 4321, generator=torch.Generator().manual_seed(0))).shape
    torch.Size([2, 3, 4321])
    """

    def __init__(
        self,
        num_speakers: int = 2,
        sample_rate_hz: int = 16000,
        window_samples: int = 512,
        hop_samples: int = 256,
        compression: float = 0.3,
        split_hz: float = 4000.0,
        narrow_bins: int = 4,
        wide_bins: int = 16,
        bin_channels: int = 16,
        channels: int = 48,
        num_blocks: int = 3,
        layers: Sequence[Layer] = ("conv", "frequency", "time"),
        sequence: SequenceKind = "mamba",
        state: int = 4,
        dropout: float = 0.05,
        output: Output = "as_is",
    ) -> None:
        super().__init__(num_speakers, output, causal=False)
        sizes = {"sample_rate_hz": sample_rate_hz, "window_samples": window_samples, "narrow_bins": narrow_bins}
        sizes |= {"wide_bins": wide_bins, "bin_channels": bin_channels, "channels": channels, "state": state}
        for name, size in {**sizes, "num_blocks": num_blocks}.items():
            check_range(f"model.{name}", size, least=1)
        check_range("model.compression", compression, most=1, above=0)
        check_range("model.dropout", dropout, least=0, most=0.9)
        num_bins = window_samples // 2  # without 0 Hz, which holds no speech
        self.num_low = round(split_hz / sample_rate_hz * window_samples)
        self.num_narrow, rest = divmod(self.num_low, narrow_bins)
        self.num_wide, rest_above = divmod(num_bins - self.num_low, wide_bins)
        if window_samples % 2 or rest or rest_above or self.num_narrow < 1 or self.num_wide < 0:
            raise InputError(
                f"model.split_hz={split_hz} is bin {self.num_low} of {num_bins}, which bands of model.narrow_bins="
                f"{narrow_bins} below and model.wide_bins={wide_bins} above do not fill: change one of them"
            )
        if not 0 < hop_samples <= window_samples // 2:
            raise InputError(
                f"model.hop_samples={hop_samples} does not fit: give at most half of model.window_samples="
                f"{window_samples}"
            )
        wrong_layers = not layers or not set(layers) <= set(get_args(Layer))
        if channels % 2 or sequence not in get_args(SequenceKind) or wrong_layers:
            raise InputError(
                f"model.channels={channels}, model.sequence={sequence}, model.layers={list(layers)} do not fit: give "
                f"an even number, mamba or lstm, and one or more of {', '.join(get_args(Layer))}"
            )
        self.window_samples, self.hop_samples, self.compression = window_samples, hop_samples, compression
        self.narrow_bins, self.wide_bins, self.bin_channels = narrow_bins, wide_bins, bin_channels
        self.register_buffer("window", torch.hann_window(window_samples).sqrt(), persistent=False)

        self.stem = nn.Conv2d(_FEATURES, bin_channels, 3, padding=1)
        self.look = Convolution(bin_channels)
        self.narrow_in = nn.Linear(narrow_bins * bin_channels, channels)
        self.wide_in = nn.Linear(wide_bins * _FEATURES, channels)
        self.place = nn.Parameter(0.02 * torch.randn(self.num_narrow + self.num_wide, channels))
        self.blocks = nn.Sequential(
            *(_layer(kind, channels, sequence, state, dropout) for _ in range(num_blocks) for kind in layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.narrow_out = nn.Linear(channels, narrow_bins * bin_channels)
        self.look_again = Convolution(bin_channels)
        self.norm_again = nn.LayerNorm(bin_channels)
        self.narrow_mask = nn.Conv2d(bin_channels, 2 * num_speakers, 3, padding=1)
        self.wide_mask = nn.Linear(channels, 2 * num_speakers * wide_bins)

    def separate(self, wave_bt: Tensor) -> Tensor:
        """Waveform (batch, time) of RMS 1 -> estimates (batch, speaker, time)."""
        num_samples = wave_bt.shape[-1]
        spectrum_btf = self._spectrum(wave_bt)
        mask_bstf = self._masks(self._features(spectrum_btf[..., 1:]))
        estimate_bstf = F.pad(mask_bstf * spectrum_btf[:, None, :, 1:], (1, 0))
        estimate_bft = estimate_bstf.flatten(0, 1).transpose(1, 2) * math.sqrt(self.window_samples)
        padded = num_samples + -num_samples % self.hop_samples
        wave_bt = torch.istft(estimate_bft, self.window_samples, self.hop_samples, window=self.window, length=padded)
        return wave_bt.view(-1, self.num_speakers, padded)[..., :num_samples]

    def _spectrum(self, wave_bt: Tensor) -> Tensor:
        """Complex (batch, frames, bins), of unit scale for a waveform of RMS 1."""
        wave_bt = F.pad(wave_bt, (0, -wave_bt.shape[-1] % self.hop_samples))
        spectrum_bft = torch.stft(
            wave_bt, self.window_samples, self.hop_samples, window=self.window, pad_mode="constant", return_complex=True
        )
        return spectrum_bft.transpose(1, 2) / math.sqrt(self.window_samples)

    def _features(self, spectrum_btf: Tensor) -> Tensor:
        """Compressed magnitude, real and imaginary part, (batch, frames, bins, 3)."""
        magnitude_btf = spectrum_btf.abs().clamp_min(_LEAST_MAGNITUDE)
        scale_btf = magnitude_btf ** (self.compression - 1)
        parts = magnitude_btf * scale_btf, spectrum_btf.real * scale_btf, spectrum_btf.imag * scale_btf
        return torch.stack(parts, dim=-1)

    def _masks(self, features_btfc: Tensor) -> Tensor:
        """Complex masks (batch, speaker, frames, bins), around an equal share for each speaker."""
        batch, frames = features_btfc.shape[:2]
        bins_btfc = self.look(_convolve(self.stem, features_btfc[:, :, : self.num_low]))
        narrow_btgd = self.narrow_in(bins_btfc.reshape(batch, frames, self.num_narrow, -1))
        above_btfc = features_btfc[:, :, self.num_low :]
        wide_btgd = self.wide_in(above_btfc.reshape(batch, frames, self.num_wide, self.wide_bins * _FEATURES))
        bands_btgd = self.blocks(torch.cat([narrow_btgd, wide_btgd], dim=2) + self.place)
        narrow_btgd, wide_btgd = self.norm(bands_btgd).split([self.num_narrow, self.num_wide], dim=2)
        bins_btfc = bins_btfc + self.narrow_out(narrow_btgd).reshape(bins_btfc.shape)
        bins_btfc = F.gelu(self.norm_again(self.look_again(bins_btfc)))
        wide_btfk = self.wide_mask(wide_btgd).reshape(
            batch, frames, self.num_wide * self.wide_bins, 2 * self.num_speakers
        )
        mask_btfk = torch.cat([_convolve(self.narrow_mask, bins_btfc), wide_btfk], dim=2)
        mask_bstf2 = mask_btfk.view(batch, frames, -1, self.num_speakers, 2).permute(0, 3, 1, 2, 4)
        return torch.view_as_complex(mask_bstf2.float().contiguous()) + 1 / self.num_speakers


class Convolution(nn.Module):
    """x + W GELU(3 x 3 convolution (LayerNorm(x))) over frames and bins or bands, W zero at the start."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.around = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_btgd: Tensor) -> Tensor:
        """(batch, frames, bands, channels) -> the same shape."""
        return x_btgd + self.dropout(self.out(F.gelu(_convolve(self.around, self.norm(x_btgd)))))


class AlongAxis(nn.Module):
    """x + sequence layer (LayerNorm(x)) along time (axis 1) or frequency (axis 2)."""

    def __init__(self, axis: Literal[1, 2], channels: int, sequence: SequenceKind, state: int, dropout: float) -> None:
        super().__init__()
        self.axis = axis
        self.norm = nn.LayerNorm(channels)
        self.layer = TwoWayMamba(channels, state) if sequence == "mamba" else TwoWayLSTM(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_btgd: Tensor) -> Tensor:
        """(batch, frames, bands, channels) -> the same shape."""
        sequences = self.norm(x_btgd).movedim(self.axis, 2)
        out = self.layer(sequences.flatten(0, 1)).view(sequences.shape).movedim(2, self.axis)
        return x_btgd + self.dropout(out)


class TwoWayMamba(nn.Module):
    """After a linear layer one half of the channels runs forward, the other backward, through the same Mamba."""

    def __init__(self, channels: int, state: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels, channels)
        self.mamba = Mamba(channels // 2, d_state=state, expand=1)

    def forward(self, x_btd: Tensor) -> Tensor:
        """(batch, time, channels) -> the same shape."""
        ahead_btd, back_btd = self.mix(x_btd).chunk(2, dim=-1)
        ahead_btd, back_btd = self.mamba(torch.cat([ahead_btd, back_btd.flip(1)])).chunk(2)
        return torch.cat([ahead_btd, back_btd.flip(1)], dim=-1)


class TwoWayLSTM(nn.Module):
    """LSTM in both directions, brought back to as many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * channels, channels)

    def forward(self, x_btd: Tensor) -> Tensor:
        """(batch, time, channels) -> the same shape."""
        return self.out(self.lstm(x_btd)[0])


def _layer(kind: Layer, channels: int, sequence: SequenceKind, state: int, dropout: float) -> nn.Module:
    if kind == "conv":
        return Convolution(channels, dropout)
    return AlongAxis(1 if kind == "time" else 2, channels, sequence, state, dropout)


def _convolve(convolution: nn.Conv2d, x_btfc: Tensor) -> Tensor:
    """Two-dimensional convolution with the channels last, which is how they lie in memory."""
    return convolution(x_btfc.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
