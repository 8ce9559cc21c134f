"""The sinc stream: a fixed mel-spaced band-pass bank, then the residual encoder of RawNet2 and AASIST."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.model import FrontEnd

_POOL = 3  # the bank's output is max-pooled 3 x 3, each block's 1 x 3
_BLOCK_SAMPLES = 24  # outputs of the bank a row of the matrix product: measured with benchmarks/sinc_stream.py
_PIECE_NUMEL = {"cpu": 2**21, "cuda": 2**26}  # numbers of bank output alive at a time


def mel_band_edges_hz(num_bands: int, sample_rate_hz: int) -> np.ndarray:
    """num_bands + 1 edges from 0 Hz to half the sample rate, equally spaced on mel = 2595 log10(1 + f / 700).

    >>> mel_band_edges_hz(2, 16000).round(1).tolist()
    [0.0, 1767.8, 8000.0]
    """
    top_mel = 2595 * math.log10(1 + sample_rate_hz / 2 / 700)
    return 700 * (10 ** (np.linspace(0, top_mel, num_bands + 1) / 2595) - 1)


def band_pass_filters(num_filters: int, num_taps: int, sample_rate_hz: int) -> np.ndarray:
    """Band-pass filters (num_filters, num_taps) in float64, each the difference of two sincs times a Hamming window.

    h[n] = 2 f2/fs sinc(2 f2 n/fs) - 2 f1/fs sinc(2 f1 n/fs), n centred, no scaling (Tak et al. 2021, RawNet2 for
    anti-spoofing; `AASIST` of clovaai).

    >>> filters = band_pass_filters(70, 129, 16000)
    >>> filters.shape, bool(np.allclose(filters, filters[:, ::-1]))
    ((70, 129), True)
    """
    edges = mel_band_edges_hz(num_filters, sample_rate_hz)[:, None] * 2 / sample_rate_hz
    n = np.arange(num_taps) - (num_taps - 1) / 2
    low_pass = edges * np.sinc(edges * n)
    return np.hamming(num_taps) * (low_pass[1:] - low_pass[:-1])


class PooledSincBank(nn.Module):
    """|band-pass bank| of a waveform, max-pooled 3 x 3 over filters and time: (batch, time) -> (batch, bands, frames).

    Equal to conv1d (stride 1, no padding), |.| and max_pool2d(3), as one matrix product: each row of 24 outputs is the
    signal under it times a banded matrix, whose columns are ordered so that the nine values pooled together lie in
    nine slabs. The full-rate bank output is never stored, and the filters that the pooling drops are not computed.
    The matrix is a buffer that is not saved: it is a function of the constructor's numbers.
    """

    banded: Tensor

    def __init__(self, num_filters: int, num_taps: int, sample_rate_hz: int) -> None:
        super().__init__()
        self.num_taps, self.num_bands = num_taps, num_filters // _POOL
        filters = band_pass_filters(num_filters, num_taps, sample_rate_hz)
        frames_a_row = _BLOCK_SAMPLES // _POOL
        # (sample in the row's signal, filter in the pool, output in the pool, band, frame in the row)
        banded = np.zeros((_BLOCK_SAMPLES + num_taps - 1, _POOL, _POOL, self.num_bands, frames_a_row))
        for position in range(_BLOCK_SAMPLES):
            frame, offset = divmod(position, _POOL)
            for member in range(_POOL):
                chosen = filters[member : _POOL * self.num_bands : _POOL]
                banded[position : position + num_taps, member, offset, :, frame] = chosen.T
        self.register_buffer("banded", torch.tensor(banded, dtype=torch.float32), persistent=False)

    def num_frames(self, num_samples: int) -> int:
        """Frames for so many samples; 0 or less means too short."""
        return (num_samples - self.num_taps + 1) // _POOL

    def forward(self, wave_bt: Tensor, keep_f: Tensor | None = None) -> Tensor:
        """Run the bank; `keep_f` (num_filters,) multiplies each filter's output. Float32, also under autocast."""
        banded = self.banded
        if keep_f is not None:
            keep = keep_f[: _POOL * self.num_bands].view(self.num_bands, _POOL).t()
            banded = banded * keep.to(banded)[:, None, :, None]
        batch, num_samples = wave_bt.shape
        num_frames = self.num_frames(num_samples)
        row_samples, frames_a_row = banded.shape[0], banded.shape[-1]
        num_rows = math.ceil(num_frames / frames_a_row)
        padding = (num_rows - 1) * _BLOCK_SAMPLES + row_samples - num_samples
        rows = F.pad(wave_bt.to(banded.dtype), (0, padding)).unfold(1, row_samples, _BLOCK_SAMPLES).flatten(0, 1)
        columns = banded.flatten(1)
        piece_rows = max(_PIECE_NUMEL.get(wave_bt.device.type, _PIECE_NUMEL["cuda"]) // columns.shape[1], 1)
        with torch.autocast(wave_bt.device.type, enabled=False):
            pooled = [
                (piece @ columns).unflatten(1, (_POOL * _POOL, -1)).abs_().amax(1) for piece in rows.split(piece_rows)
            ]
        pooled_brfp = torch.cat(pooled).view(batch, num_rows, self.num_bands, frames_a_row)
        return pooled_brfp.transpose(1, 2).flatten(2)[..., :num_frames]


class SincBlock(nn.Module):
    """Residual block (batch, channel, band, frame) -> the same with 1 / `pool` of the frames.

    [BN, SELU unless first] conv 2 x 3 -> BN -> SELU -> conv 2 x 3, plus the raw input (through conv 1 x 3 where the
    number of channels changes), then max-pooling 1 x 3. The public code of AASIST and its forks computes the opening BN
    and SELU but then convolves the raw input: `pre_activation` False is that, with the BN kept, frozen and unused, so
    that published weights load; True is the block as described.
    """

    def __init__(
        self, in_channels: int, out_channels: int, first: bool, pre_activation: bool, pool: int = _POOL
    ) -> None:
        super().__init__()
        self.pool = pool
        self.norm1 = None if first else nn.Sequential(nn.BatchNorm2d(in_channels), nn.SELU(inplace=True))
        self.pre_activation = pre_activation
        if self.norm1 is not None:
            self.norm1.requires_grad_(pre_activation)
        self.conv1 = nn.Conv2d(in_channels, out_channels, (2, 3), padding=(1, 1))
        self.norm2 = nn.Sequential(nn.BatchNorm2d(out_channels), nn.SELU(inplace=True))
        self.conv2 = nn.Conv2d(out_channels, out_channels, (2, 3), padding=(0, 1))
        changes = in_channels != out_channels
        self.skip = nn.Conv2d(in_channels, out_channels, (1, 3), padding=(0, 1)) if changes else nn.Identity()

    def forward(self, x_bcft: Tensor) -> Tensor:
        """Run the block."""
        y_bcft = self.norm1(x_bcft) if self.norm1 is not None and self.pre_activation else x_bcft
        y_bcft = self.conv2(self.norm2(self.conv1(y_bcft)))
        y_bcft += self.skip(x_bcft)
        return F.max_pool2d(y_bcft, (1, self.pool)) if self.pool > 1 else y_bcft


class SincStream(FrontEnd):
    """Waveform (batch, time) -> features (batch, frames, channels[-1]); 64,600 samples give 29 frames.

    In training a random run of 0 .. max_masked_filters - 1 adjacent filters is silenced, one run for the whole batch,
    drawn from torch's default generator as dropout is; 0 turns it off.

    >>> stream = SincStream(channels=(4, 8)).eval()
    >>> stream.min_samples, stream(torch.zeros(2, 1000)).shape
    (155, torch.Size([2, 32, 8]))
    """

    def __init__(
        self,
        num_filters: int = 70,
        num_taps: int = 129,
        sample_rate_hz: int = 16000,
        channels: Sequence[int] = (32, 32, 64, 64, 64, 64),
        max_masked_filters: int = 20,
        pre_activation: bool = False,
    ) -> None:
        super().__init__()
        if num_filters < _POOL or not 0 <= max_masked_filters <= num_filters:
            raise InputError(
                f"The sinc stream got num_filters={num_filters} and max_masked_filters={max_masked_filters}; it needs "
                f"{_POOL} filters or more, and a mask of 0 to num_filters of them."
            )
        self.num_filters, self.max_masked_filters, self.dim = num_filters, max_masked_filters, channels[-1]
        self.bank = PooledSincBank(num_filters, num_taps, sample_rate_hz)
        self.norm = nn.Sequential(nn.BatchNorm2d(1), nn.SELU(inplace=True))
        widths = itertools.pairwise([1, *channels])
        self.blocks = nn.Sequential(*(SincBlock(*pair, i == 0, pre_activation) for i, pair in enumerate(widths)))
        self.min_samples = num_taps - 1 + _POOL ** (len(channels) + 1)

    def forward(self, wave_bt: Tensor) -> Tensor:
        """Run the stream on `min_samples` samples or more."""
        return self.maps(wave_bt).amax(2).transpose(1, 2)

    def maps(self, wave_bt: Tensor) -> Tensor:
        """Magnitudes before the maximum over the bands: (batch, channels[-1], num_filters // 3, frames)."""
        masks = self.training and self.max_masked_filters > 0
        x_bcft = self.norm(self.bank(wave_bt, self._draw_kept(wave_bt) if masks else None).unsqueeze(1))
        # channels last: a third less time in the convolutions on the CPU, and the layout tensor cores want
        return self.blocks(x_bcft.to(memory_format=torch.channels_last)).abs()

    def _draw_kept(self, wave_bt: Tensor) -> Tensor:
        """(num_filters,) with zeros for A = int(U(0, max)) filters from an offset in 0 .. num_filters - A."""
        num_masked = int(torch.randint(self.max_masked_filters, (), device="cpu"))
        first = int(torch.randint(self.num_filters - num_masked + 1, (), device="cpu"))
        keep_f = wave_bt.new_ones(self.num_filters)
        keep_f[first : first + num_masked] = 0
        return keep_f
