"""Codecs are those that they are named after, lose no sample and no time, and refuse what they cannot use."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_speech import la_mini_speech

from audiolab.audio import pyav_codecs, sndfile_codecs
from audiolab.audio.resample import resample, resample_tensor
from audiolab.augment import g711
from audiolab.augment.codec_augment import CodecAugment
from audiolab.augment.codecs import CODECS, FAMILIES, round_trip
from audiolab.augment.conditions import CONDITIONS, check_condition, degrade
from audiolab.augment.noise import NoiseAugment, colored_noise
from audiolab.errors import InputError


@pytest.fixture(scope="module")
def speech(la_mini: Path) -> np.ndarray:
    """Two seconds at 16 kHz."""
    return la_mini_speech(la_mini, 32_000)


@pytest.fixture(scope="module")
def narrow(speech: np.ndarray) -> np.ndarray:
    """The same at 8 kHz."""
    return resample(speech, 16000, 8000)


def generators(*seeds: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in seeds]


def lag_samples(reference: np.ndarray, wave: np.ndarray) -> int:
    """By how many samples `wave` is late, and that the two belong together at all."""
    size = 2 * len(reference)
    product = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(reference, size).conj())
    correlation = product / (np.linalg.norm(wave) * np.linalg.norm(reference))
    assert correlation.max() > 0.6
    lag = int(correlation.argmax())
    return lag if lag < size // 2 else lag - size


def snr_db(reference: np.ndarray, wave: np.ndarray) -> float:
    reference, wave = reference.astype(np.float64), wave.astype(np.float64)
    return 10 * np.log10((reference**2).sum() / ((wave - reference) ** 2).sum())


# G.711


def test_g711_equals_the_normative_tables(shared: Path):
    tables = np.load(shared / "reference/telephony/g711_tables.npz")
    samples, codes = np.arange(-32768, 32768).astype(np.int16), np.arange(256).astype(np.uint8)
    for law, encode, decode in (
        ("ulaw", g711.mulaw_encode, g711.mulaw_decode),
        ("alaw", g711.alaw_encode, g711.alaw_decode),
    ):
        np.testing.assert_array_equal(encode(samples), tables[f"{law}_g191"])
        np.testing.assert_array_equal(decode(codes), tables[f"{law}_decode"])
        encoded = encode(torch.from_numpy(samples).reshape(256, 256))
        assert encoded.dtype == torch.uint8 and encoded.shape == (256, 256)
        np.testing.assert_array_equal(encoded.numpy().ravel(), tables[f"{law}_g191"])
        decoded = decode(torch.from_numpy(codes))
        assert decoded.dtype == torch.int16
        np.testing.assert_array_equal(decoded.numpy(), tables[f"{law}_decode"])
        # half a step of the largest segment; mu-law also clips above 32635
        error = np.abs(decode(encode(samples)).astype(int) - samples)
        assert error.max() <= (644 if law == "ulaw" else 512)


@pytest.mark.parametrize("function", [g711.mulaw_encode, g711.alaw_decode])
@pytest.mark.parametrize("kind", [np.zeros, torch.zeros])
def test_g711_refuses_floats(function, kind):
    with pytest.raises(InputError, match=r"G.711 got values of float\d\d, it takes (int16|uint8)"):
        function(kind(3))


# Change of rate on tensors


@pytest.mark.parametrize(("from_hz", "to_hz"), [(16000, 8000), (16000, 6000), (8000, 16000), (44100, 16000)])
def test_resampling_keeps_the_band_and_nothing_else(from_hz: int, to_hz: int):
    nyquist, num_samples = min(from_hz, to_hz) / 2, 9001
    time = torch.arange(num_samples, dtype=torch.float64) / from_hz
    for hz in (50.0, 0.3 * nyquist, 0.9 * nyquist):
        out = resample_tensor(torch.sin(2 * torch.pi * hz * time), from_hz, to_hz)
        assert len(out) == int(num_samples * to_hz / from_hz + 0.5)
        expected = torch.sin(2 * torch.pi * hz * torch.arange(len(out), dtype=torch.float64) / to_hz)
        inner = slice(len(out) // 4, -len(out) // 4)  # the ends are cut off sines
        torch.testing.assert_close(out[inner], expected[inner], rtol=0, atol=3e-4)
    if to_hz < from_hz:
        above = resample_tensor(torch.sin(2 * torch.pi * 1.1 * nyquist * time), from_hz, to_hz)
        assert above[len(above) // 4 : -len(above) // 4].abs().max() < 1e-3


def test_resampling_of_speech_agrees_with_soxr(speech: np.ndarray):
    expected = resample(speech, 16000, 8000)
    ours = resample_tensor(torch.from_numpy(speech), 16000, 8000).numpy()
    assert lag_samples(expected, ours) == 0
    assert snr_db(expected, ours) > 35  # they differ in the last 8 % of the band
    with pytest.raises(InputError, match="both rates must be positive"):
        resample_tensor(torch.zeros(4), 16000, 0)


# All codecs


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        ("gsm610", "gsm610"),
        ("g726_32kbps", "g726_32_g721"),
        ("g726_24kbps", "g723_24"),
        ("g726_40kbps", "g723_40"),
        ("ima_adpcm", "ima_adpcm"),
        ("ms_adpcm", "ms_adpcm"),
        ("vox_adpcm", "vox_adpcm"),
        ("nms_adpcm_32kbps", "nms_adpcm_32"),
    ],
)
def test_telephone_codecs_equal_the_reference(ours: str, reference: str, shared: Path):
    arrays = np.load(shared / "reference/telephony/codec_roundtrip.npz")
    decoded = round_trip(arrays["input_8k"] / np.float32(32768), 8000, ours)
    np.testing.assert_array_equal(decoded * 32768, arrays[f"out_{reference}"][:16000])


@pytest.mark.parametrize(("ours", "law"), [("g711_mulaw", "ulaw"), ("g711_alaw", "alaw")])
def test_g711_equals_the_reference_where_the_conventions_do(ours: str, law: str, shared: Path):
    arrays = np.load(shared / "reference/telephony/codec_roundtrip.npz")
    tables = np.load(shared / "reference/telephony/g711_tables.npz")
    samples = arrays["input_8k"]
    decoded = round_trip(samples / np.float32(32768), 8000, ours) * 32768
    index = samples.astype(int) + 32768
    same = tables[f"{law}_g191"][index] == tables[f"{law}_libsndfile"][index]
    assert same.mean() > 0.95
    np.testing.assert_array_equal(decoded[same], arrays[f"out_g711_{law}"][same])
    assert snr_db(samples, decoded) == pytest.approx(37.4 if law == "ulaw" else 37.28, abs=0.05)


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_keeps_time_and_length_and_is_deterministic(codec: str, speech: np.ndarray, narrow: np.ndarray):
    for wave, sample_rate in ((speech, 16000), (narrow, 8000)):
        coded = round_trip(wave, sample_rate, codec)
        assert coded.shape == wave.shape and coded.dtype == wave.dtype and np.isfinite(coded).all()
        rate = CODECS[codec].rate_for(sample_rate)
        assert abs(lag_samples(wave, coded)) <= max(1, sample_rate // rate)
        assert 0.7 < np.linalg.norm(coded[-2000:]) / np.linalg.norm(wave[-2000:]) < 1.3  # nor is the end lost
    if codec != "resample_8k":
        assert not np.array_equal(coded, wave)
    np.testing.assert_array_equal(round_trip(wave, sample_rate, codec), coded)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_samples", [1, 161])
def test_any_length_and_silence(codec: str, num_samples: int, speech: np.ndarray):
    assert round_trip(speech[5000 : 5000 + num_samples], 16000, codec).shape == (num_samples,)
    assert round_trip(speech[:num_samples], 22050, codec).shape == (num_samples,)
    silent = round_trip(np.zeros(num_samples, np.float32), 16000, codec)
    assert np.abs(silent).max() < 0.003  # A-law has no zero, AMR and GSM hum a little


def test_delays_are_those_measured(narrow: np.ndarray, speech: np.ndarray):
    def late(wave: np.ndarray, sample_rate: int, *encoder: object) -> int:
        pcm = (wave * 32767).astype(np.int16)
        return lag_samples(wave, pyav_codecs._round_trip(pcm, sample_rate, *encoder)[: len(wave)])

    assert late(speech, 16000, "aac", "aac", 32000) == pyav_codecs.AAC_LAG
    assert late(speech, 16000, "adpcm_g722", "adpcm_g722", None) == pyav_codecs.G722_LAG
    for bit_rate in (4750, 12200):
        assert late(narrow, 8000, "libopencore_amrnb", "amrnb", bit_rate) == pyav_codecs.AMR_NB_LAG
    pcm = (speech * 32767).astype(np.int16)
    level = (160 - 16.5) / 152
    untagged = sndfile_codecs._round_trip(pcm, 16000, "MP3", "MPEG_LAYER_III", level, "CONSTANT")
    assert lag_samples(speech, untagged[: len(speech)]) == sndfile_codecs._MP3_UNTAGGED_LAG


@pytest.mark.parametrize(
    ("codec", "sample_rate", "kbps"),
    [
        ("mp3_16kbps", 16000, 16),
        ("mp3_32kbps", 16000, 32),
        ("mp3_64kbps", 16000, 64),
        ("mp3_32kbps", 8000, 32),
        ("opus_8kbps", 8000, 8),
        ("opus_16kbps", 16000, 16),
        ("opus_32kbps", 16000, 32),
        ("gsm610", 8000, 13.2),
        ("g726_24kbps", 8000, 24),
        ("ima_adpcm", 8000, 32),
    ],
)
def test_bit_rates_are_those_of_the_names(codec, sample_rate, kbps, speech, narrow, monkeypatch):
    sizes = []

    class Stream(io.BytesIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            sizes.append(len(self.getvalue()))
            return super().seek(offset, whence)

    monkeypatch.setattr(sndfile_codecs.io, "BytesIO", Stream)
    round_trip(speech if sample_rate == 16000 else narrow, sample_rate, codec)
    # in 2 s, with up to 1 kB of header, and the silence or the frames after the end
    assert kbps * 0.95 < 8e-3 * max(sizes) / 2.0 < kbps * 1.2 + 4


@pytest.mark.parametrize("codec", ["g711_mulaw", "gsm610", "mp3_32kbps"])
def test_loud_waveforms_are_not_clipped(codec: str, narrow: np.ndarray):
    peak = np.abs(narrow).max()
    loud = round_trip(3 * narrow / peak, 8000, codec)
    np.testing.assert_allclose(loud, 3 * round_trip(narrow / peak, 8000, codec), atol=1e-5)
    assert np.abs(loud).max() > 2


@pytest.mark.parametrize("codec", ["resample_6k", "g711_alaw", "ima_adpcm", "mp3_32kbps"])
def test_rows_are_the_same_alone_in_a_batch_and_in_threads(codec: str, speech: np.ndarray):
    waves = torch.from_numpy(speech).reshape(4, 8000)
    before = waves.clone()
    together = round_trip(waves, 16000, codec)
    assert torch.equal(waves, before)
    assert torch.equal(together, round_trip(waves, 16000, codec, num_threads=3))
    for row in range(4):
        assert torch.equal(together[row], round_trip(waves[row], 16000, codec))
        np.testing.assert_array_equal(
            together[row].numpy(), round_trip(speech[8000 * row : 8000 * (row + 1)], 16000, codec)
        )
    half = round_trip(waves.half(), 16000, codec)
    assert half.dtype == torch.float16
    assert torch.equal(half, round_trip(waves.half().float(), 16000, codec).half())


def test_rows_run_together_equal_rows_alone(speech: np.ndarray):
    # How devices other than the CPU run them.
    from audiolab.augment import codecs

    waves = torch.from_numpy(speech).reshape(4, 8000).double()
    for codec in ("resample_6k", "g711_mulaw", "ima_adpcm"):
        torch.testing.assert_close(
            codecs._run(waves, 16000, CODECS[codec], 2), round_trip(waves, 16000, codec), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(
    ("given", "nearest"), [("mp3_32", "mp3_32kbps"), ("g711_ulaw", "g711_mulaw"), ("resample8k", "resample_8k")]
)
def test_an_unknown_codec_names_the_nearest(given: str, nearest: str):
    for call in (
        lambda: round_trip(np.zeros(9), 8000, given),
        lambda: CodecAugment([given], p=1.0, sample_rate=16000, num_threads=1),
        lambda: check_condition(given),
    ):
        with pytest.raises(InputError, match=f"'{given}'; did you mean '{nearest}'"):
            call()


def test_a_codec_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "av" else find_spec(name))
    for call in (
        lambda: round_trip(np.zeros(9), 8000, "aac_32kbps"),
        lambda: CodecAugment(["amr_nb"], p=1.0, sample_rate=16000, num_threads=1),
        lambda: degrade(np.zeros(9), 8000, "g722", generators(0)[0]),
    ):
        with pytest.raises(InputError, match=r"needs PyAV, which is not installed: install audiolab\[codecs\]"):
            call()
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"AMR needs the encoder libmissing, which the FFmpeg inside PyAV"):
        pyav_codecs.require_pyav("AMR", "libmissing")


def test_waveforms_that_no_codec_takes():
    for wave in (np.zeros(9, np.int16), np.zeros((1, 1, 9)), np.zeros(0)):
        with pytest.raises(InputError, match="a codec got waveforms of shape"):
            round_trip(wave, 8000, "gsm610")


# As an augmentation


def test_codecs_are_drawn_evenly_and_families_count_once():
    augment = CodecAugment(["resample", "gsm610"], p=0.5, sample_rate=16000, num_threads=1)
    drawn = [augment.draw(100, generator) for generator in generators(*range(2000))]
    counts = {name: drawn.count(name) for name in set(drawn)}
    assert set(counts) == {"none", "gsm610", *FAMILIES["resample"]}
    assert abs(counts["none"] - 1000) < 90 and abs(counts["gsm610"] - 500) < 80
    assert all(abs(counts[name] - 500 / 3) < 50 for name in FAMILIES["resample"])
    assert augment.draw(100, generators(5)[0]) == drawn[5]


def test_each_row_goes_through_its_codec(speech: np.ndarray):
    augment = CodecAugment(["resample"], p=1.0, sample_rate=16000, num_threads=2)
    waves = torch.from_numpy(speech).reshape(4, 8000)
    coded = augment.apply(waves, ["g711_alaw", "none", "gsm610", "g711_alaw"])
    assert torch.equal(coded[1], waves[1])
    for row, codec in ((0, "g711_alaw"), (2, "gsm610"), (3, "g711_alaw")):
        assert torch.equal(coded[row], round_trip(waves[row], 16000, codec))
    assert augment.describe("gsm610") == {"codec": "gsm610"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.2}, "probability 1.2"),
        ({"codecs": []}, "list of codecs is empty"),
        ({"num_threads": 0}, "0 threads"),
    ],
)
def test_unusable_options(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        CodecAugment(**{"codecs": ["mp3"], "p": 1.0, "sample_rate": 16000, "num_threads": 1, **options})


# Noise and test conditions


def test_noise_has_its_level_and_colour(speech: np.ndarray):
    waves = torch.from_numpy(speech).reshape(4, 8000)
    augment = NoiseAugment(["white", "pink"], 3.0, 30.0, p=0.8)
    draws = [augment.draw(8000, generator) for generator in generators(*range(400))]
    assert 50 < draws.count(None) < 110
    noisy = [draw for draw in draws if draw]
    assert 130 < sum(draw.kind == "pink" for draw in noisy) < 200
    assert 3 <= min(draw.snr_db for draw in noisy) < 3.5 and 29.5 < max(draw.snr_db for draw in noisy) <= 30
    out = augment.apply(waves, [noisy[0], None, noisy[1], noisy[2]])
    assert torch.equal(out[1], waves[1])
    for row, draw in ((0, noisy[0]), (2, noisy[1]), (3, noisy[2])):
        assert snr_db(waves[row].numpy(), out[row].numpy()) == pytest.approx(draw.snr_db, abs=0.01)
    for kind, slope in (("white", 0.0), ("pink", -1.0)):
        power = np.abs(np.fft.rfft(colored_noise(kind, 2**16, generators(1)[0]))) ** 2
        octaves = [power[2**i : 2 ** (i + 1)].mean() for i in range(5, 15)]
        assert np.polyfit(np.arange(10), np.log2(octaves), 1)[0] == pytest.approx(slope, abs=0.05)
    silent = torch.zeros(1, 8000)
    assert torch.equal(augment.apply(silent, noisy[:1]), silent)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["brown"]}, "give some of white, pink"),
        ({"kinds": []}, "give some of"),
        ({"min_snr_db": 50}, "above max_snr_db"),
        ({"p": -0.1}, "probability -0.1"),
    ],
)
def test_unusable_noise(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        NoiseAugment(**{"kinds": ["white"], "min_snr_db": 10, "max_snr_db": 20, "p": 1.0, **options})
    with pytest.raises(InputError, match="no noise 'brown'"):
        colored_noise("brown", 9, generators(0)[0])


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_is_a_function_of_wave_and_generator(condition: str, speech: np.ndarray):
    wave = speech[:8000]
    first = degrade(wave, 16000, condition, generators(3)[0])
    assert first.shape == wave.shape and first.dtype == wave.dtype
    np.testing.assert_array_equal(first, degrade(wave, 16000, condition, generators(3)[0]))
    assert np.array_equal(first, wave) == (condition == "none")
    if condition.startswith(("noise_", "pink_")):
        level_db = float(condition.partition("_")[2].removesuffix("db"))
        assert snr_db(wave, first) == pytest.approx(level_db, abs=0.01)
        assert not np.array_equal(first, degrade(wave, 16000, condition, generators(4)[0]))


def test_an_unknown_condition_names_the_nearest():
    with pytest.raises(InputError, match=r"'noise_20'; did you mean 'noise_20db'"):
        degrade(np.zeros(9), 16000, "noise_20", generators(0)[0])
