"""Codecs that libsndfile has not, through PyAV (`pip install audiolab[codecs]`): AAC, G.722, AMR-NB.

Frames go straight from the encoder to the decoder: there is no container that would say how many samples the codec
delays, so the known delay is taken off here.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np

from audiolab.errors import InputError

if TYPE_CHECKING:
    from av import AudioCodecContext

AAC_LAG = 1024  # samples: one frame of look-ahead of the lapped transform
G722_LAG = 22  # samples at 16 kHz: the two 24-tap quadrature mirror filters
AMR_NB_LAG = 40  # samples at 8 kHz: 5 ms of look-ahead of the linear prediction


def require_pyav(codec: str, encoder: str) -> None:
    """Raise InputError where PyAV, or the FFmpeg in it, cannot run `encoder`, which `codec` needs."""
    if importlib.util.find_spec("av") is None:
        raise InputError(f"the codec {codec} needs PyAV, which is not installed: install audiolab[codecs].")
    import av

    try:
        av.Codec(encoder, "w")
    except ValueError:
        raise InputError(
            f"the codec {codec} needs the encoder {encoder}, which the FFmpeg inside PyAV {av.__version__} was built "
            "without: install PyAV from its wheels on PyPI, or leave the codec out."
        ) from None


def aac_round_trip(pcm: np.ndarray, sample_rate: int, rate_kbps: int) -> np.ndarray:
    """AAC-LC (FFmpeg's encoder) at about `rate_kbps`."""
    return _round_trip(pcm, sample_rate, "aac", "aac", 1000 * rate_kbps)[AAC_LAG:]


def g722_round_trip(pcm: np.ndarray, sample_rate: int) -> np.ndarray:
    """G.722 at 64 kbit/s: two sub-bands of ADPCM; 16 kHz only."""
    return _round_trip(pcm, sample_rate, "adpcm_g722", "adpcm_g722", None)[G722_LAG:]


def amr_nb_round_trip(pcm: np.ndarray, sample_rate: int, rate_kbps: float) -> np.ndarray:
    """AMR narrow band in one of its modes: 4.75, 5.15, 5.9, 6.7, 7.4, 7.95, 10.2 or 12.2 kbit/s; 8 kHz only."""
    return _round_trip(pcm, sample_rate, "libopencore_amrnb", "amrnb", round(1000 * rate_kbps))[AMR_NB_LAG:]


def _round_trip(pcm: np.ndarray, sample_rate: int, encoder: str, decoder: str, bit_rate: int | None) -> np.ndarray:
    """Encode and decode int16 samples (time,); float32, longer than the input by delay and padding."""
    import av

    coder: AudioCodecContext = av.CodecContext.create(encoder, "w")
    coder.sample_rate, coder.layout, coder.format = sample_rate, "mono", coder.codec.audio_formats[0]
    if bit_rate is not None:
        coder.bit_rate = bit_rate
    coder.open()
    decoding: AudioCodecContext = av.CodecContext.create(decoder, "r")
    decoding.sample_rate, decoding.layout = sample_rate, "mono"
    if coder.extradata:
        decoding.extradata = coder.extradata
    size = coder.frame_size or 1024
    padded = np.pad(pcm, (0, 3 * size + -len(pcm) % size))  # whole frames, and silence that pushes the end out
    samples = padded if coder.format.name.startswith("s16") else padded.astype(np.float32) / 32768.0
    decoded = []
    for start in [*range(0, len(samples), size), None]:
        frame = None
        if start is not None:
            frame = av.AudioFrame.from_ndarray(
                samples[None, start : start + size], format=coder.format.name, layout="mono"
            )
            frame.sample_rate, frame.pts = sample_rate, start
        for packet in coder.encode(frame):
            decoded += [output.to_ndarray().reshape(-1) for output in decoding.decode(packet)]
    joined = np.concatenate(decoded)
    return joined.astype(np.float32) / 32768.0 if joined.dtype == np.int16 else joined.astype(np.float32)
