"""The texture stream: how band levels move in windows far shorter than a pitch period, as statistics of an utterance.

Windows of 2 to 4 ms every quarter of their length follow the waveform inside each pitch period, where a spectrogram's
long windows see an average. That rendering speech again (a vocoder, a filter bank, cross-faded units) changes these
statistics whatever the method is a hypothesis: what is measured is that they generalise to attacks that training has
not seen on la_mini, where every spoof also went through one matching of spectrum and noise floor (README.md).
Statistics of band levels as a description of a sound: McDermott and Simoncelli, "Sound texture perception via
statistics of the auditory periphery", Neuron 2011.

Shapes: b batch, t samples, n short frames, f bins, k bands, s segments, d statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.model import FrontEnd

_POWER_FLOOR = 1e-7  # of a window scaled to the length below: about -70 dBFS a band, under any recording's noise
_NOMINAL_WINDOW_SAMPLES = 128
_HOPS_PER_WINDOW = 4


class TextureStream(nn.Module):
    """Waveform (batch, time) at 16 kHz -> statistics (batch, segments, dim) of windows of one length.

    Levels L = log(power + floor) in equally wide bands of short Hann windows every quarter of a window, without DC:
    num_bands = window_samples / 2 / bins_per_band. Over the loudest `1 - inactive_share` of the frames, for each band:
    the log deviation of L, and for each lag d (in frames), with D = |L(n) - L(n - d)|, log E[D] and the log kurtosis
    log E[D^4] - 2 log E[D^2]; dim = num_bands (1 + 2 len(lags)). One segment is the whole utterance (`segment_s` None)
    or `segment_s` seconds every `segment_hop_s`. The floor is absolute, so the level of the input matters: the task
    brings it to one RMS level. Nothing here is trained.

    Raises InputError where the window does not divide into its hops or its bands.

    >>> stream = TextureStream(window_samples=48, bins_per_band=2, lags=(1, 2, 4, 8))
    >>> stream(torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))).shape, stream.dim
    (torch.Size([2, 1, 108]), 108)
    """

    def __init__(
        self,
        window_samples: int = 48,
        bins_per_band: int = 2,
        lags: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16),
        segment_s: float | None = None,
        segment_hop_s: float = 0.2,
        inactive_share: float = 0.45,
        sample_rate: int = 16_000,
    ) -> None:
        super().__init__()
        if window_samples % _HOPS_PER_WINDOW or window_samples // 2 % bins_per_band:
            raise InputError(
                f"a texture window of {window_samples} samples does not divide into {_HOPS_PER_WINDOW} hops and bands "
                f"of {bins_per_band} bins: take a multiple of {math.lcm(_HOPS_PER_WINDOW, 2 * bins_per_band)}"
            )
        self.hop_samples, self.bins_per_band = window_samples // _HOPS_PER_WINDOW, bins_per_band
        self.lags, self.inactive_share = tuple(lags), inactive_share
        self.segment_samples: tuple[int, int] | None = None
        if segment_s is not None:
            self.segment_samples = (round(segment_s * sample_rate), round(segment_hop_s * sample_rate))
        self.dim = window_samples // 2 // bins_per_band * (1 + 2 * len(self.lags))
        self.min_samples = self.hop_samples * (max(self.lags) + 2)
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
            return self._statistics(self.levels(wave_bt.float()), wave_bt.shape[1])

    def _statistics(self, level_bkn: Tensor, num_samples: int) -> Tensor:
        weight_bns = self._segment_weights(level_bkn, num_samples)

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

    def _segment_weights(self, level_bkn: Tensor, num_samples: int) -> Tensor:
        """Weights (batch, frames, segments) that average over the active frames of each segment."""
        loudness_bn = level_bkn.mean(1)
        num_frames = loudness_bn.shape[1]
        rank = 1 + int(self.inactive_share * (num_frames - 1))
        active_bn = (loudness_bn > loudness_bn.kthvalue(rank, dim=1, keepdim=True).values).float()
        # segments are counted in samples, so that windows of every length give the same number of them
        size, hop = self.segment_samples or (num_samples + self.hop_samples, num_samples)
        starts_s = torch.arange(0, max(1, num_samples - size + 1), hop, device=level_bkn.device)
        distance_ns = torch.arange(num_frames, device=level_bkn.device)[:, None] * self.hop_samples - starts_s
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
    """Statistics of windows of several lengths, side by side and projected: (batch, time) -> (batch, segments, dim).

    For little data and CPUs: it learns from hundreds of utterances in minutes.

    >>> TextureFrontEnd()(torch.zeros(2, 16000)).shape
    torch.Size([2, 1, 96])
    """

    def __init__(
        self,
        window_samples: Sequence[int] = (32, 48, 64),
        bins_per_band: int = 2,
        lags: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16),
        segment_s: float | None = None,
        segment_hop_s: float = 0.2,
        inactive_share: float = 0.45,
        hidden: int = 128,
        feature_noise: float = 0.5,
        dropout: float = 0.3,
        dim: int = 96,
    ) -> None:
        super().__init__()
        if not window_samples:
            raise InputError("window_samples is empty: give at least one window length, e.g. [48]")
        self.streams = nn.ModuleList(
            TextureStream(size, bins_per_band, lags, segment_s, segment_hop_s, inactive_share)
            for size in window_samples
        )
        num_statistics = sum(stream.dim for stream in self.streams)
        self.projection = TextureProjection(num_statistics, hidden, dim, dropout, feature_noise)
        self.dim, self.min_samples = dim, max(stream.min_samples for stream in self.streams)

    def forward(self, wave_bt: Tensor) -> Tensor:
        """Run the streams and the projection."""
        return self.projection(torch.cat([stream(wave_bt) for stream in self.streams], dim=2))
