"""Through a codec and back, with the delay taken off: what a transmission or a storage format does to speech.

Every codec has a name (`CODECS`) and belongs to a family (`FAMILIES`). G.711 and mere resampling run in batch on the
waveforms' device; the other codecs encode and decode row by row on the CPU, without temporary files. Everything is
deterministic.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from audiolab.audio import pyav_codecs, sndfile_codecs
from audiolab.audio.resample import resample_tensor
from audiolab.augment import g711
from audiolab.augment.rows import Waveforms, as_rows
from audiolab.errors import InputError

_ANY_RATE = ()
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


@dataclass(frozen=True)
class Codec:
    """One codec at one quality: int16 samples at one of `rates_hz` (empty: any) in, decoded samples out.

    `on_tensor` maps int16 (batch, time) to int16; `on_array` maps (time,) int16 and the rate to float32 of at least
    that length, its delay taken off. With neither, what remains is the change of rate. `encoder` is FFmpeg's name
    of a codec that needs PyAV.
    """

    name: str
    family: str
    rates_hz: tuple[int, ...]
    on_tensor: Callable[[torch.Tensor], torch.Tensor] | None = None
    on_array: Callable[[np.ndarray, int], np.ndarray] | None = None
    encoder: str | None = None

    def rate_for(self, sample_rate: int) -> int:
        """The rate it runs at: the lowest of its rates that keeps the band of the signal, else its highest.

        >>> CODECS["opus_16kbps"].rate_for(22050), CODECS["g711_alaw"].rate_for(16000), CODECS["vorbis_q0"].rate_for(7)
        (24000, 8000, 7)
        """
        if not self.rates_hz:
            return sample_rate
        return min((rate for rate in self.rates_hz if rate >= sample_rate), default=max(self.rates_hz))


def _codecs() -> list[Codec]:
    codecs = [Codec(f"resample_{khz}k", "resample", (1000 * khz,)) for khz in (8, 6, 4)]
    codecs.append(Codec("g711_mulaw", "g711", (8000,), lambda pcm: g711.mulaw_decode(g711.mulaw_encode(pcm))))
    codecs.append(Codec("g711_alaw", "g711", (8000,), lambda pcm: g711.alaw_decode(g711.alaw_encode(pcm))))
    for name, family, container, subtype in (
        ("gsm610", "gsm", "WAV", "GSM610"),  # GSM full rate, 13 kbit/s
        ("g726_24kbps", "g726", "AU", "G723_24"),  # G.726 took over G.723 (24 and 40 kbit/s) and G.721 (32)
        ("g726_32kbps", "g726", "AU", "G721_32"),
        ("g726_40kbps", "g726", "AU", "G723_40"),
        ("ima_adpcm", "adpcm", "WAV", "IMA_ADPCM"),
        ("ms_adpcm", "adpcm", "WAV", "MS_ADPCM"),
        ("vox_adpcm", "adpcm", "RAW", "VOX_ADPCM"),
        ("nms_adpcm_16kbps", "adpcm", "RAW", "NMS_ADPCM_16"),
        ("nms_adpcm_32kbps", "adpcm", "RAW", "NMS_ADPCM_32"),
    ):
        on_array = partial(sndfile_codecs.telephone_round_trip, container=container, subtype=subtype)
        codecs.append(Codec(name, family, (8000,), on_array=on_array))
    for kbps in (16, 32, 64):
        on_array = partial(sndfile_codecs.mp3_round_trip, rate_kbps=kbps)
        codecs.append(Codec(f"mp3_{kbps}kbps", "mp3", _MP3_RATES, on_array=on_array))
    for quality in (0, 3, 6):
        on_array = partial(sndfile_codecs.vorbis_round_trip, quality=quality)
        codecs.append(Codec(f"vorbis_q{quality}", "vorbis", _ANY_RATE, on_array=on_array))
    for kbps in (8, 16, 32):
        on_array = partial(sndfile_codecs.opus_round_trip, rate_kbps=kbps)
        codecs.append(Codec(f"opus_{kbps}kbps", "opus", _OPUS_RATES, on_array=on_array))
    for kbps in (16, 32, 64):
        on_array = partial(pyav_codecs.aac_round_trip, rate_kbps=kbps)
        codecs.append(Codec(f"aac_{kbps}kbps", "aac", _AAC_RATES, on_array=on_array, encoder="aac"))
    codecs.append(Codec("g722", "g722", (16000,), on_array=pyav_codecs.g722_round_trip, encoder="adpcm_g722"))
    for kbps in ("4.75", "7.95", "12.2"):
        on_array = partial(pyav_codecs.amr_nb_round_trip, rate_kbps=float(kbps))
        codecs.append(
            Codec(f"amr_nb_{kbps}kbps", "amr_nb", (8000,), on_array=on_array, encoder="libopencore_amrnb"),
        )
    return codecs


CODECS: dict[str, Codec] = {codec.name: codec for codec in _codecs()}
"""Every codec by name."""

FAMILIES: dict[str, tuple[str, ...]] = {
    family: tuple(name for name, codec in CODECS.items() if codec.family == family)
    for family in dict.fromkeys(codec.family for codec in CODECS.values())
}
"""Names of the codecs of each family, e.g. `resample`: to 8, 6 or 4 kHz and back."""


def find_codec(name: str) -> Codec:
    """The codec of that name, once it is known to run here.

    Raises InputError for an unknown name, with the nearest one, and for a codec whose package is not installed.
    """
    if name not in CODECS:
        nearest = difflib.get_close_matches(str(name), CODECS, n=1, cutoff=0.0)[0]
        raise InputError(
            f"there is no codec {name!r}; did you mean {nearest!r}? {', '.join(CODECS)} are all there are."
        )
    codec = CODECS[name]
    if codec.encoder is not None:
        pyav_codecs.require_pyav(name, codec.encoder)
    return codec


def round_trip(waveforms: Waveforms, sample_rate: int, codec: str, num_threads: int = 1) -> Waveforms:
    """`waveforms`, (time,) or (batch, time), after encoding and decoding; same kind, length, dtype and device.

    They are resampled to the codec's rate and back where needed, so what is heard above its band is gone. The codec
    sees 16-bit samples. A waveform that would clip there (peak above full scale 1.0) goes through at a peak of 1.0
    and is scaled back. The delay of the codec is taken off. `num_threads` is for codecs that run row by row.
    Raises InputError for an unknown codec or one that is not installed.

    >>> round_trip(np.array([-1.0, 0.0, 0.3]), 8000, "g711_mulaw").round(3).tolist()
    [-0.98, 0.0, 0.301]
    """
    wave_bt, restore = as_rows(waveforms, "a codec")
    found = find_codec(codec)
    if wave_bt.device.type == "cpu":  # one by one, so that a row is bit-identical alone and in any batch
        rows = [wave_bt[row : row + 1] for row in range(len(wave_bt))]
        run = partial(_run, sample_rate=sample_rate, codec=found)
        coded_bt = torch.cat(_map(run, rows, num_threads if found.on_array else 1))
    else:
        coded_bt = _run(wave_bt, sample_rate, found, num_threads)
    return restore(coded_bt)


def _run(wave_bt: torch.Tensor, sample_rate: int, codec: Codec, num_threads: int = 1) -> torch.Tensor:
    """One codec on rows that run together."""
    rate = codec.rate_for(sample_rate)
    narrow_bt = resample_tensor(wave_bt, sample_rate, rate)
    narrow_bt = _fit(narrow_bt, max(1, narrow_bt.shape[-1]))  # a wave of one sample may have none at a lower rate
    if codec.on_tensor or codec.on_array:
        peak_b1 = narrow_bt.abs().amax(dim=-1, keepdim=True).clamp_min(1.0)
        pcm_bt = (narrow_bt / peak_b1 * 32768.0).round().clamp(-32768, 32767).to(torch.int16)
        if codec.on_tensor:
            decoded_bt = codec.on_tensor(pcm_bt).to(wave_bt) / 32768.0
        else:
            encode = partial(_encode_row, rate=rate, codec=codec)
            rows = _map(encode, list(pcm_bt.cpu().numpy()), num_threads)
            decoded_bt = torch.from_numpy(np.stack(rows)).to(wave_bt)
        narrow_bt = decoded_bt * peak_b1
    return _fit(resample_tensor(narrow_bt, rate, sample_rate), wave_bt.shape[-1])


def _encode_row(pcm: np.ndarray, rate: int, codec: Codec) -> np.ndarray:
    """One row of int16 samples through a codec of arrays, cut or padded to its length."""
    assert codec.on_array is not None
    decoded = codec.on_array(pcm, rate)[: len(pcm)]
    return np.pad(decoded, (0, len(pcm) - len(decoded)))


def _fit(wave_bt: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Exactly `num_samples`: two changes of rate may gain or lose one."""
    return torch.nn.functional.pad(wave_bt, (0, max(0, num_samples - wave_bt.shape[-1])))[:, :num_samples]


def _map(function: Callable, rows: list, num_threads: int) -> list:
    """Map over rows, in threads where that helps: the codecs run without the interpreter's lock."""
    if num_threads <= 1 or len(rows) == 1:
        return [function(row) for row in rows]
    with ThreadPoolExecutor(min(num_threads, len(rows))) as pool:
        return list(pool.map(function, rows))
