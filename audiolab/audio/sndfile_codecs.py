"""Speech and music codecs through libsndfile, in memory: encode, decode, and take the delay off.

What libsndfile's one number `compression_level` (0..1) means differs by codec (its sources `mpeg_l3_encode.c`,
`ogg_opus.c`, `ogg_vorbis.c`); the functions here take the codec's own unit instead.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile as sf

# An MP3 stream tells its decoder how many samples to drop only if its frames have room for LAME's info tag: not at low
# rates. Then the delays of the encoder (576) and of the decoder (529) stay at the start.
_MP3_UNTAGGED_LAG = 1105
_LONGEST_BLOCK = 1024  # samples; more than one block of any ADPCM at 8 kHz


def telephone_round_trip(pcm: np.ndarray, sample_rate: int, container: str, subtype: str) -> np.ndarray:
    """A codec of telephony: GSM 06.10, G.721, G.723 or one of the ADPCM kinds, under libsndfile's names.

    Int16 samples (time,) in; float32, full scale 1.0, longer than the input by the silence that follows it.

    >>> decoded = telephone_round_trip(np.full(600, 3000, np.int16), 8000, "WAV", "IMA_ADPCM")
    >>> len(decoded) > 600, round(float(decoded[:600].max()), 2)  # 3000 of 32768
    (True, 0.09)
    """
    # libsndfile may lose an incomplete last block of ADPCM, and refuses half a byte of VOX.
    num_after = _LONGEST_BLOCK + len(pcm) % 2
    return _round_trip(np.pad(pcm, (0, num_after)), sample_rate, container, subtype)


def mp3_round_trip(pcm: np.ndarray, sample_rate: int, rate_kbps: int) -> np.ndarray:
    """MP3 (LAME) at the constant bit rate nearest to `rate_kbps` that MPEG has for this sampling rate."""
    lowest, highest = (32, 320) if sample_rate >= 32000 else (8, 160) if sample_rate >= 16000 else (8, 64)
    level = (highest - rate_kbps - 0.5) / (highest - lowest)  # half a unit, since libsndfile truncates
    level = min(max(level, 0.0), 1.0)
    decoded = _round_trip(pcm, sample_rate, "MP3", "MPEG_LAYER_III", level, "CONSTANT")
    return decoded if len(decoded) == len(pcm) else decoded[_MP3_UNTAGGED_LAG:]


def vorbis_round_trip(pcm: np.ndarray, sample_rate: int, quality: float) -> np.ndarray:
    """Ogg Vorbis at `quality` 0..10, the scale of oggenc; the bit rate varies (0 is about 34 kbit/s at 16 kHz)."""
    return _round_trip(pcm, sample_rate, "OGG", "VORBIS", 1.0 - quality / 10.0)


def opus_round_trip(pcm: np.ndarray, sample_rate: int, rate_kbps: float) -> np.ndarray:
    """Ogg Opus at a variable bit rate around `rate_kbps` (6..256); sampling rates 8, 12, 16, 24 and 48 kHz."""
    return _round_trip(pcm, sample_rate, "OGG", "OPUS", (256.0 - rate_kbps) / 250.0)


def _round_trip(
    pcm: np.ndarray,
    sample_rate: int,
    container: str,
    subtype: str,
    compression_level: float | None = None,
    bitrate_mode: str | None = None,
) -> np.ndarray:
    """Encode and decode int16 samples (time,) in memory; float32."""
    stream = io.BytesIO()
    sf.write(
        stream,
        pcm,
        sample_rate,
        format=container,
        subtype=subtype,
        compression_level=compression_level,
        bitrate_mode=bitrate_mode,
    )
    stream.seek(0)
    headerless = {"samplerate": sample_rate, "channels": 1, "format": "RAW", "subtype": subtype}
    decoded, _ = sf.read(stream, dtype="float32", **(headerless if container == "RAW" else {}))
    return decoded
