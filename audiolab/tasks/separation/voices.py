"""What voices sound like on average, so that a speaker is known again after a pause that no chunk reaches across.

The measure is the long-term average spectrum: by ear and by far simpler than a speaker encoder, it tells two voices
apart after a few seconds, the better the more they differ. Shapes: c, s speaker or slot, t time, f frame, n band.
"""

from __future__ import annotations

import numpy as np

_FRAME_S, _HOP_S = 0.064, 0.032
_LOWEST_HZ, _HIGHEST_HZ, _NUM_BANDS = 80.0, 4000.0, 40
_QUIET = 1e-3  # a frame 30 dB below the loudest chunk is no speech
_LEAK = 0.25  # nor is one 6 dB below another slot's: what leaks from another speaker is not this voice
_ENOUGH_FRAMES = 30  # about a second of speech; less counts in proportion
_FARTHEST = 100.0  # square dB a band: two voices cannot be more unlike, whatever the noise


class VoiceMemory:
    """The average spectra of speakers so far, against which the slots of a new chunk are held.

    >>> memory = VoiceMemory(2, 16000)
    >>> low, high = (np.sin(np.arange(16000) * step) for step in (0.1, 1.0))
    >>> memory.add(memory.spectra(np.stack([low, high]), 0.5), np.array([0, 1]))
    >>> fit_cs = memory.fit(memory.spectra(np.stack([high, low]), 0.5))
    >>> bool(fit_cs[0, 1] + fit_cs[1, 0] > fit_cs[0, 0] + fit_cs[1, 1])
    True
    """

    def __init__(self, num_speakers: int, sample_rate_hz: int) -> None:
        self._size, self._hop = round(_FRAME_S * sample_rate_hz), round(_HOP_S * sample_rate_hz)
        self._window = np.hanning(self._size).astype(np.float32)
        self._bands_kn = _mel_bands(self._size, sample_rate_hz)
        self._sum_cn = np.zeros((num_speakers, self._bands_kn.shape[1]))
        self._num_c = np.zeros(num_speakers)

    def spectra(self, estimate_st: np.ndarray, loudest: float) -> tuple[np.ndarray, np.ndarray]:
        """Return sums (slot, band) of the spectra in dB of the frames in which a slot talks, and their numbers (slot,).

        `loudest` is the mean square of the loudest chunk so far.
        """
        num_slots, num_samples = estimate_st.shape
        if num_samples < self._size:
            return np.zeros((num_slots, self._bands_kn.shape[1])), np.zeros(num_slots)
        frames_sft = np.lib.stride_tricks.sliding_window_view(estimate_st, self._size, axis=1)[:, :: self._hop]
        power_sf = np.square(frames_sft).mean(-1)
        talks_sf = (power_sf > _QUIET * loudest) & (power_sf >= _LEAK * power_sf.max(0))
        sums, numbers = [], []
        for frames_ft, talks_f in zip(frames_sft, talks_sf, strict=True):
            spectrum_fk = np.abs(np.fft.rfft(frames_ft[talks_f] * self._window)) ** 2
            band_fn = 10 * np.log10(spectrum_fk @ self._bands_kn + np.finfo(np.float32).tiny)
            sums.append((band_fn - band_fn.mean(1, keepdims=True)).sum(0))
            numbers.append(talks_f.sum())
        return np.stack(sums), np.array(numbers, float)

    def fit(self, spectra: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Return how well each slot fits each speaker, (speaker, slot), 0 (nothing known, or alike) to -1."""
        sum_sn, num_s = spectra
        mean_cn, mean_sn = _means(self._sum_cn, self._num_c), _means(sum_sn, num_s)
        distance_cs = np.square(mean_cn[:, None] - mean_sn).mean(-1).clip(max=_FARTHEST) / _FARTHEST
        return -distance_cs * _known(self._num_c)[:, None] * _known(num_s)

    def add(self, spectra: tuple[np.ndarray, np.ndarray], order_c: np.ndarray) -> None:
        """Remember a chunk whose order is decided."""
        self._sum_cn += spectra[0][order_c]
        self._num_c += spectra[1][order_c]


def _means(sums: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return sums / np.maximum(numbers, 1)[:, None]


def _known(num_frames: np.ndarray) -> np.ndarray:
    return np.minimum(1.0, num_frames / _ENOUGH_FRAMES)


def _mel_bands(size: int, sample_rate_hz: int) -> np.ndarray:
    """Triangles of equal area at equal distances on the mel scale, (bin, band)."""
    highest = min(_HIGHEST_HZ, sample_rate_hz / 2)
    mel = np.linspace(*(2595 * np.log10(1 + hz / 700) for hz in (_LOWEST_HZ, highest)), _NUM_BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = np.fft.rfftfreq(size, 1 / sample_rate_hz)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bands_kn = np.maximum(0, np.minimum(rising, falling))
    return (bands_kn / np.maximum(bands_kn.sum(0), 1e-9)).astype(np.float32)
