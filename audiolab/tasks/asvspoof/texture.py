"""The texture stream: how band levels move in windows far shorter than a pitch period, as statistics of an utterance.

A 3 ms window every 0.75 ms follows the waveform inside each pitch period, where a spectrogram's long windows see an
average. That rendering speech again (a vocoder, a filter bank, cross-faded units) changes these statistics whatever the
method is a hypothesis: what is measured is that they generalise to attacks that training has not seen on la_mini, where
every spoof also went through one matching of spectrum and noise floor (README.md). Statistics of band levels as a
description of a sound: McDermott and Simoncelli, "Sound texture perception via statistics of the auditory periphery",
Neuron 2011.

Shapes: b batch, t samples, n short frames, f bins, k bands, s segments, d statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.model import FrontEnd

_POWER_FLOOR = 1e-7  # of a window scaled to the length below: about -70 dBFS a band, under any recording's noise
_NOMINAL_WINDOW_SAMPLES = 128


class TextureStream(nn.Module):
    """Waveform (batch, time) at 16 kHz -> statistics (batch, segments, dim), dim = num_bands (1 + 2 len(lags)).

    Levels L = log(power + floor) in equally wide bands of short Hann windows, without DC. Over the loudest
    `1 - inactive_share` of the frames, for each band: the log deviation of L, and for each lag d (in frames), with
    D = |L(n) - L(n - d)|, log E[D] and the log kurtosis log E[D^4] - 2 log E[D^2]. One segment is the whole utterance
    (`segment_s` None) or `segment_s` seconds every `segment_hop_s`. The floor is absolute, so the level of the input
    matters: the task brings it to one RMS level. Nothing here is trained.

    Raises InputError where the bins do not divide into the bands.

    >>> stream = TextureStream(window_samples=48, hop_samples=12, num_bands=12, lags=(1, 2, 4, 8))
    >>> stream(torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))).shape, stream.dim
    (torch.Size([2, 1, 108]), 108)
    """

    def __init__(
        self,
        window_samples: int = 48,
        hop_samples: int = 12,
        num_bands: int = 12,
        lags: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16),
        segment_s: float | None = None,
        segment_hop_s: float = 0.2,
        inactive_share: float = 0.3,
        sample_rate: int = 16_000,
    ) -> None:
        super().__init__()
        num_bins = window_samples // 2
        if num_bins % num_bands:
            raise InputError(
                f"num_bands={num_bands} does not divide the {num_bins} bins of window_samples={window_samples}: "
                f"take a divisor of {num_bins}"
            )
        self.hop_samples, self.bins_per_band, self.lags = hop_samples, num_bins // num_bands, tuple(lags)
        self.inactive_share = inactive_share
        self.segment_frames: tuple[int, int] | None = None
        if segment_s is not None:
            frames_hz = sample_rate / hop_samples
            self.segment_frames = (round(segment_s * frames_hz), round(segment_hop_s * frames_hz))
        self.dim = num_bands * (1 + 2 * len(self.lags))
        self.min_samples = hop_samples * (max(self.lags) + 2)
        self.register_buffer("window", torch.hann_window(window_samples, periodic=False), persistent=False)

    def levels(self, wave_bt: Tensor) -> Tensor:
        """Return log band powers (batch, bands, frames)."""
        size = len(self.window)
        frames_bnt = F.pad(wave_bt, (size // 2, size // 2)).unfold(1, size, self.hop_samples) * self.window
        spectrum_bnf = torch.fft.rfft(frames_bnt)[..., 1:]
        power_bnf = spectrum_bnf.real.square() + spectrum_bnf.imag.square()
        power_bkn = power_bnf.unflatten(2, (-1, self.bins_per_band)).mean(3).transpose(1, 2)
        return torch.log(power_bkn * (_NOMINAL_WINDOW_SAMPLES / size) + _POWER_FLOOR)

    @torch.no_grad()
    def forward(self, wave_bt: Tensor) -> Tensor:
        """Return the statistics of each segment, computed in float32 also under autocast."""
        with torch.autocast(wave_bt.device.type, enabled=False):
            return self._statistics(self.levels(wave_bt.float()))

    def _statistics(self, level_bkn: Tensor) -> Tensor:
        weight_bns = self._segment_weights(level_bkn)

        def mean(x_bkn: Tensor) -> Tensor:
            """Mean over the active frames of each segment, (batch, bands, segments); late frames where x is shorter."""
            return x_bkn @ weight_bns[:, -x_bkn.shape[2] :]

        variance_bks = mean(level_bkn.square()) - mean(level_bkn).square()
        statistics = [0.5 * variance_bks.clamp_min(1e-3).log()]
        for lag in self.lags:
            change_bkn = (level_bkn[..., lag:] - level_bkn[..., :-lag]).abs_()
            first = mean(change_bkn)
            second = mean(change_bkn.square_())
            fourth = mean(change_bkn.square_())
            statistics += [(first + 1e-4).log(), (fourth + 1e-6).log() - 2 * (second + 1e-4).log()]
        return torch.cat(statistics, dim=1).transpose(1, 2)

    def _segment_weights(self, level_bkn: Tensor) -> Tensor:
        """Weights (batch, frames, segments) that average over the active frames of each segment."""
        loudness_bn = level_bkn.mean(1)
        num_frames = loudness_bn.shape[1]
        rank = 1 + int(self.inactive_share * (num_frames - 1))
        active_bn = (loudness_bn > loudness_bn.kthvalue(rank, dim=1, keepdim=True).values).float()
        size, hop = self.segment_frames or (num_frames, num_frames)
        starts_s = torch.arange(0, max(1, num_frames - size + 1), hop, device=level_bkn.device)
        distance_ns = torch.arange(num_frames, device=level_bkn.device)[:, None] - starts_s
        weight_bns = active_bn[:, :, None] * ((distance_ns >= 0) & (distance_ns < size))
        return weight_bns / weight_bns.sum(1, keepdim=True).clamp_min(1.0)


class TextureProjection(nn.Module):
    """Statistics (batch, segments, dim) -> frames (batch, segments, d_model): standardised, limited, one hidden layer.

    In training, Gaussian noise of `feature_noise` standard deviations is added to the standardised statistics (from
    torch's default generator, as dropout): with few recordings it does what weight decay cannot.
    """

    def __init__(self, dim: int, hidden: int, d_model: int, dropout: float, feature_noise: float) -> None:
        super().__init__()
        self.standardize = nn.BatchNorm1d(dim)
        self.hidden, self.output = nn.Linear(dim, hidden), nn.Linear(hidden, d_model)
        self.dropout, self.feature_noise = nn.Dropout(dropout), feature_noise

    def forward(self, statistics_bsd: Tensor) -> Tensor:
        """Project."""
        x_bsd = self.standardize(statistics_bsd.transpose(1, 2)).transpose(1, 2).clamp(-4.0, 4.0)
        if self.training and self.feature_noise > 0:
            x_bsd = x_bsd + self.feature_noise * torch.randn_like(x_bsd)
        return self.output(self.dropout(F.gelu(self.hidden(x_bsd))))


class TextureFrontEnd(FrontEnd):
    """`TextureStream` and `TextureProjection` in a row: waveform (batch, time) -> frames (batch, segments, dim).

    For little data and CPUs: it learns from hundreds of utterances in minutes.

    >>> TextureFrontEnd()(torch.zeros(2, 16000)).shape
    torch.Size([2, 1, 96])
    """

    def __init__(
        self,
        window_samples: int = 48,
        hop_samples: int = 12,
        num_bands: int = 12,
        lags: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16),
        segment_s: float | None = None,
        segment_hop_s: float = 0.2,
        inactive_share: float = 0.3,
        hidden: int = 128,
        feature_noise: float = 0.5,
        dropout: float = 0.3,
        dim: int = 96,
    ) -> None:
        super().__init__()
        self.stream = TextureStream(
            window_samples, hop_samples, num_bands, lags, segment_s, segment_hop_s, inactive_share
        )
        self.projection = TextureProjection(self.stream.dim, hidden, dim, dropout, feature_noise)
        self.dim, self.min_samples = dim, self.stream.min_samples

    def forward(self, wave_bt: Tensor) -> Tensor:
        """Run stream and projection."""
        return self.projection(self.stream(wave_bt))
