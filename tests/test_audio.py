"""Reading, writing, resampling and levels, on real recordings and on every way a file can be broken."""

from __future__ import annotations

import csv
import os
import pickle
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from torch.utils.data import DataLoader, Dataset

from audiolab.audio import io
from audiolab.audio.io import AudioError, BadAudioPolicy, audio_info, read_audio, write_audio
from audiolab.audio.level import normalize_peak, normalize_rms, peak_dbfs, rms_dbfs, rms_gain
from audiolab.audio.resample import resample
from audiolab.errors import InputError


@pytest.fixture(scope="module")
def speech(shared: Path) -> Path:
    return min((shared / "data/la_mini/LA/ASVspoof2019_LA_dev/flac").glob("*.flac"))


@pytest.fixture(scope="module")
def samples(speech: Path) -> np.ndarray:
    return sf.read(speech, dtype="float32")[0]


# Reading


def test_whole_file_and_part_equal_soundfile(speech, samples):
    waveform, rate = read_audio(speech)
    assert rate == 16000 and waveform.dtype == np.float32 and waveform.ndim == 1
    np.testing.assert_array_equal(waveform, samples)
    part, _ = read_audio(speech, start_s=12345 / rate, duration_s=6400 / rate)
    np.testing.assert_array_equal(part, samples[12345 : 12345 + 6400])
    tail, _ = read_audio(speech, start_s=(len(samples) - 100) / rate, duration_s=1.0)
    np.testing.assert_array_equal(tail, samples[-100:])


def test_a_part_does_not_decode_the_rest(speech, samples, tmp_path):
    cut = tmp_path / "cut.flac"
    cut.write_bytes(speech.read_bytes()[: speech.stat().st_size // 2])
    part, _ = read_audio(cut, start_s=0.1, duration_s=0.5)  # the half that is there
    np.testing.assert_array_equal(part, samples[1600 : 1600 + 8000])


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        (".wav", "PCM_16", 1e-4),
        (".wav", "PCM_24", 1e-6),
        (".wav", "FLOAT", 0),
        (".wav", "ULAW", 0.02),
        (".wav", "GSM610", None),
        (".aiff", "PCM_16", 1e-4),
        (".flac", "PCM_24", 1e-6),
        (".ogg", "VORBIS", 0.05),
        (".ogg", "OPUS", 0.05),
        (".mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_every_container_whole_and_in_part(tmp_path, samples, suffix, subtype, tolerance):
    path = tmp_path / f"speech{suffix}"
    write_audio(path, samples, 16000, subtype)
    waveform, rate = read_audio(path)
    assert rate == 16000
    assert audio_info(path).num_frames == len(waveform)
    assert len(waveform) - len(samples) in range(320)  # block codecs fill up their last block
    if tolerance is None:
        assert np.corrcoef(waveform[: len(samples)], samples)[0, 1] > 0.8
    else:
        assert np.abs(waveform[: len(samples)] - samples).max() <= tolerance
    part, _ = read_audio(path, start_s=0.5, duration_s=0.5)
    assert len(part) == 8000
    assert np.abs(part - waveform[8000:16000]).max() < 1e-2  # lossy decoders settle after a seek


def test_info(speech, samples, tmp_path):
    info = audio_info(speech)
    assert (info.sample_rate, info.num_channels, info.num_frames, info.encoding) == (
        16000,
        1,
        len(samples),
        "FLAC PCM_16",
    )
    assert info.duration_s == pytest.approx(len(samples) / 16000)


def test_channels(shared, tmp_path, samples):
    stereo = np.stack([samples[:1000], -0.5 * samples[:1000]])
    write_audio(tmp_path / "call.wav", stereo, 8000, "FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "call.wav", channel=1)[0], stereo[1])
    np.testing.assert_allclose(read_audio(tmp_path / "call.wav")[0], 0.25 * samples[:1000], atol=1e-7)
    everything, rate = read_audio(tmp_path / "call.wav", channel="all")
    np.testing.assert_array_equal(everything, stereo)
    assert rate == 8000 and everything.flags.c_contiguous
    up, rate = read_audio(tmp_path / "call.wav", channel="all", sample_rate=16000)
    assert up.shape == (2, 2000) and rate == 16000
    call = shared / "data/asr_mini/audio/fixtures/stereo_8k.flac"
    both, _ = read_audio(call, channel="all")
    np.testing.assert_allclose(read_audio(call)[0], both.mean(axis=0), atol=1e-7)
    with pytest.raises(AudioError, match=r"call\.wav has 2 channels, and channel 2 was asked for.*from 0 to 1"):
        read_audio(tmp_path / "call.wav", channel=2)
    for wrong in ("left", True, 1.0):
        with pytest.raises(InputError, match="channel is"):
            read_audio(tmp_path / "call.wav", channel=wrong)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_a_crop_in_seconds_has_an_exact_length_at_the_rate_asked_for(tmp_path, rate):
    noise = 0.1 * np.random.default_rng(0).standard_normal(6 * rate).astype(np.float32)
    write_audio(tmp_path / "noise.wav", noise, rate, "FLOAT")
    for start_s in (0.0, 0.123456, 1.9):
        crop, got = read_audio(tmp_path / "noise.wav", sample_rate=16000, start_s=start_s, duration_s=64600 / 16000)
        assert (len(crop), got) == (64600, 16000)
    whole, _ = read_audio(tmp_path / "noise.wav", sample_rate=16000)
    assert len(whole) == 96000


def test_wav_written_to_a_pipe_has_no_size_in_its_header(samples, tmp_path):
    write_audio(tmp_path / "speech.wav", samples, 16000)
    wav = bytearray((tmp_path / "speech.wav").read_bytes())
    assert wav[36:40] == b"data"
    for size in (0xFFFFFFFF, 0x7FFFF000):
        wav[40:44] = struct.pack("<I", size)
        (tmp_path / "stream.wav").write_bytes(wav)
        assert audio_info(tmp_path / "stream.wav").num_frames == len(samples)
        np.testing.assert_array_equal(read_audio(tmp_path / "stream.wav")[0], samples)


# Broken files


def _broken(kind: str, folder: Path, speech: Path) -> Path:
    """Make one broken file from a real recording."""
    flac = speech.read_bytes()
    samples, rate = sf.read(speech, dtype="float32")
    path = folder / ("broken.flac" if "flac" in kind else "broken.wav")
    if kind == "missing":
        return path
    if kind == "missing folder":
        return folder / "nowhere" / "x.flac"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty flac":
        path.touch()
    elif kind == "text":
        path.write_text("404 not found\n" * 20)
    elif kind == "cut flac":
        path.write_bytes(flac[: len(flac) // 2])
    elif kind == "flac without its last bytes":
        path.write_bytes(flac[:-100])
    elif kind == "flac with only a header":
        path.write_bytes(flac[:60])
    elif kind == "flac with a bad byte":
        path.write_bytes(flac[:20000] + bytes([flac[20000] ^ 0xFF]) + flac[20001:])
    elif kind == "flac without a length":
        path.write_bytes(flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:])  # 36 bits of STREAMINFO
    elif kind == "no frames":
        sf.write(path, np.zeros(0, np.float32), rate)
    elif kind in ("nan", "inf"):
        samples[777] = float(kind)
        sf.write(path, samples, rate, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", r"does not exist\. Check"),
        ("missing folder", r"does not exist, nor does its folder .*nowhere"),
        ("folder", "is a folder"),
        ("empty flac", r"is empty \(0 bytes\)"),
        ("text", "is not audio that libsndfile"),
        ("cut flac", "is damaged or cut off"),
        ("flac without its last bytes", "is damaged or cut off"),
        ("flac with only a header", "is damaged or cut off"),
        ("flac with a bad byte", "is damaged or cut off"),
        ("flac without a length", "has no length in its header"),
        ("no frames", "has a header and no samples"),
        ("nan", r"sample 777 \(0\.049 s\) is \[nan\]"),
        ("inf", r"sample 777 \(0\.049 s\) is \[inf\]"),
    ],
)
def test_a_broken_file_is_refused_with_file_reason_and_remedy(kind, reason, speech, tmp_path):
    path = _broken(kind, tmp_path, speech)
    with pytest.raises(AudioError, match=reason) as caught:
        read_audio(path)
    assert isinstance(caught.value, InputError)
    assert caught.value.path == str(path) and str(caught.value).startswith(str(path))
    assert caught.value.reason in str(caught.value)
    assert str(caught.value).count(". ") <= 2 and "\n" not in str(caught.value)
    if kind in ("missing", "folder", "empty flac", "text", "no frames", "flac without a length"):
        with pytest.raises(AudioError, match=reason):
            audio_info(path)


@pytest.mark.parametrize("suffix", [".wav", ".aiff", ".au", ".w64", ".rf64", ".mp3", ".caf"])
def test_a_file_cut_in_the_middle_is_never_taken_for_a_shorter_one(suffix, samples, tmp_path):
    path = tmp_path / f"speech{suffix}"
    write_audio(path, samples, 16000)
    np.testing.assert_allclose(read_audio(path)[0], samples, atol=0.05)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"cut off|malformed"):
        read_audio(path)


def test_a_missing_padding_byte_is_no_damage(tmp_path):
    odd = np.linspace(-0.5, 0.5, 1001, dtype=np.float32)
    write_audio(tmp_path / "odd.wav", odd, 8000, "PCM_U8")
    assert (tmp_path / "odd.wav").stat().st_size % 2 == 0
    (tmp_path / "odd.wav").write_bytes((tmp_path / "odd.wav").read_bytes()[:-1])
    assert len(read_audio(tmp_path / "odd.wav")[0]) == 1001


def test_not_permitted(speech):
    # outside tmp_path, whose parents only their owner may enter: root has to become somebody else to be refused
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    path = folder / "secret.flac"
    path.write_bytes(speech.read_bytes())
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(AudioError, match="may not be read by this user"):
            read_audio(path)
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_wrong_requests(speech):
    with pytest.raises(AudioError, match=r"has 2\.706 s, and 60\.000 s was asked for as the start"):
        read_audio(speech, start_s=60.0)
    for wrong in ({"start_s": -1.0}, {"duration_s": 0.0}):
        with pytest.raises(InputError, match="start from 0 and a positive duration"):
            read_audio(speech, **wrong)


# Writing


def test_write_is_within_one_step_and_refuses_to_clip(tmp_path):
    ramp = np.linspace(-1, 1, 4001, dtype=np.float32)
    write_audio(tmp_path / "new" / "ramp.flac", ramp, 16000)
    assert np.abs(read_audio(tmp_path / "new" / "ramp.flac")[0] - ramp).max() <= 1 / 32768
    with pytest.raises(AudioError, match=r"peak 1\.5 is beyond full scale and PCM_16 would clip"):
        write_audio(tmp_path / "loud.wav", 1.5 * ramp, 16000)
    assert not (tmp_path / "loud.wav").exists()
    write_audio(tmp_path / "loud.wav", 1.5 * ramp, 16000, "FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "loud.wav")[0], 1.5 * ramp)
    with pytest.raises(AudioError, match="NaN or infinite"):
        write_audio(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16000)
    with pytest.raises(AudioError, match="names no audio format"):
        write_audio(tmp_path / "speech.txt", ramp, 16000)
    with pytest.raises(AudioError, match="a waveform of shape"):
        write_audio(tmp_path / "none.wav", np.zeros(0), 16000)
    with pytest.raises(AudioError, match="cannot be written"):
        write_audio(tmp_path / "x.flac", ramp, 16000, "FLOAT")
    with pytest.raises(AudioError, match="cannot be written"):
        write_audio(tmp_path / "loud.wav" / "x.wav", ramp, 16000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loud.wav", "new"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "speech.wav"
    write_audio(path, np.full(100, 0.25, np.float32), 16000)
    before = path.read_bytes()

    def half(file, *_args, **_keywords):
        Path(file).write_bytes(b"RIFF")
        raise KeyboardInterrupt

    monkeypatch.setattr(io.sf, "write", half)
    with pytest.raises(KeyboardInterrupt):
        write_audio(path, np.zeros(100, np.float32), 16000)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["speech.wav"]


def test_written_files_are_readable_by_others(tmp_path):
    write_audio(tmp_path / "x.wav", np.zeros(10, np.float32), 8000)
    (tmp_path / "plain").touch()
    assert (tmp_path / "x.wav").stat().st_mode == (tmp_path / "plain").stat().st_mode


# Policy for bad files


class _Files(Dataset):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        try:
            waveform, _ = read_audio(self.paths[index], duration_s=0.5)
        except AudioError as error:
            return error
        return torch.from_numpy(waveform)


def _collate(items: list) -> dict:
    good = [item for item in items if not isinstance(item, AudioError)]
    errors = [item for item in items if isinstance(item, AudioError)]
    return {"wave_bt": torch.stack(good) if good else torch.zeros(0, 8000), "bad_audio": errors}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_worker_processes_hand_over_bad_files_once_each(num_workers, shared, speech, tmp_path):
    good = sorted(speech.parent.glob("*.flac"))[:6]
    header_only = _broken("flac with only a header", tmp_path, speech)
    missing = tmp_path / "missing.flac"
    dataset = _Files([*good[:3], header_only, *good[3:], missing])
    policy = BadAudioPolicy("skip", max_bad_audio=0.25, num_files=len(dataset))
    for _epoch in range(2):
        num_good = 0
        for batch in DataLoader(dataset, batch_size=3, num_workers=num_workers, collate_fn=_collate):
            for error in batch.pop("bad_audio"):
                policy.handle(error)
            num_good += len(batch["wave_bt"])
        assert num_good == 6
    assert set(policy.skipped) == {str(header_only), str(missing)}
    policy.write_list(tmp_path / "skipped.csv")
    with (tmp_path / "skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"]: row["reason"] for row in rows} == policy.skipped
    assert policy.skipped[str(missing)] == "does not exist"


def test_policy_raises_at_the_first_or_above_the_cap():
    errors = [AudioError(f"{name} is empty. Copy it.", name, "is empty") for name in "abc"]
    with pytest.raises(AudioError, match="a is empty"):
        BadAudioPolicy("raise").handle(errors[0])
    policy = BadAudioPolicy("skip", max_bad_audio=2, num_files=10)
    for error in (errors[0], errors[0], errors[1], errors[1]):
        policy.handle(error)
    with pytest.raises(
        InputError,
        match=r"3 of 10 audio files .* data.max_bad_audio=2 allows 2.*c is empty.*data.max_bad_audio=3 would do",
    ):
        policy.handle(errors[2])
    with pytest.raises(InputError, match="allows 0"):
        BadAudioPolicy("skip", max_bad_audio=0.01, num_files=99).handle(errors[0])
    assert BadAudioPolicy("skip", max_bad_audio=0.01, num_files=100).cap == 1
    share = {"mode": "skip", "max_bad_audio": 0.1}  # of an unknown number of files
    for wrong in ({"mode": "ignore"}, {"max_bad_audio": -1}, {"max_bad_audio": 1.5}, share):
        with pytest.raises(InputError, match=r"on_bad_audio|max_bad_audio"):
            BadAudioPolicy(**wrong)


def test_errors_survive_pickling_whole():
    error = pickle.loads(pickle.dumps(AudioError("a.wav is empty. Copy it.", "a.wav", "is empty")))
    assert (str(error), error.path, error.reason) == ("a.wav is empty. Copy it.", "a.wav", "is empty")


# Resampling and levels


@pytest.mark.parametrize(("from_hz", "to_hz"), [(22050, 16000), (44100, 16000), (8000, 16000), (16000, 8000)])
def test_resampled_sine_is_the_sine_at_the_new_rate(from_hz, to_hz):
    old_s, new_s = np.arange(from_hz) / from_hz, np.arange(to_hz) / to_hz
    wave = resample(np.stack([np.sin(2 * np.pi * 440 * old_s), np.cos(2 * np.pi * 1000 * old_s)]), from_hz, to_hz)
    wanted = np.stack([np.sin(2 * np.pi * 440 * new_s), np.cos(2 * np.pi * 1000 * new_s)])
    assert wave.shape == (2, to_hz) and wave.dtype == np.float32
    assert np.abs(wave - wanted)[:, 500:-500].max() < 1e-4
    above = np.sin(2 * np.pi * 0.6 * min(from_hz, to_hz) * old_s)
    if to_hz < from_hz:
        assert np.abs(resample(above, from_hz, to_hz)[500:-500]).max() < 1e-4  # no alias


def test_resampled_length_is_rounded():
    for num_samples in (1, 2, 3, 99, 100, 101, 22050, 30001):
        for from_hz, to_hz in ((22050, 16000), (44100, 16000), (8000, 16000), (11025, 16000), (16000, 22050)):
            wanted = int(np.floor(num_samples * to_hz / from_hz + 0.5))
            assert len(resample(np.zeros(num_samples, np.float32), from_hz, to_hz)) == wanted
    with pytest.raises(InputError, match="must be positive"):
        resample(np.zeros(5), 16000, 0)
    with pytest.raises(InputError, match="cannot be resampled"):
        resample(np.zeros((1, 2, 3)), 16000, 8000)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_levels(convert, samples):
    sine = np.sin(2 * np.pi * 100 * np.arange(16000) / 16000)
    assert float(rms_dbfs(convert(sine))) == pytest.approx(-3.0103, abs=1e-3)
    assert float(peak_dbfs(convert(0.5 * sine))) == pytest.approx(-6.0206, abs=1e-3)
    batch = convert(np.stack([samples, 0.01 * samples, 1e-7 * samples, 0 * samples]))
    level = normalize_rms(batch, -26.0)
    assert type(level) is type(batch) and level.dtype == batch.dtype
    np.testing.assert_allclose(np.asarray(rms_dbfs(level))[:2], -26.0, atol=1e-4)
    assert (level[2:] == batch[2:]).all()  # silence stays silence
    assert float(np.asarray(rms_dbfs(batch))[3]) == -np.inf
    np.testing.assert_allclose(np.asarray(peak_dbfs(normalize_peak(batch, -1.0)))[:2], -1.0, atol=1e-4)
    assert (normalize_peak(batch)[2:] == batch[2:]).all()
    limited = normalize_rms(batch, -3.0, peak_limit=0.9)
    np.testing.assert_allclose(np.abs(np.asarray(limited))[:2].max(axis=1), 0.9, rtol=1e-5)
    assert tuple(rms_gain(batch, -26.0).shape) == (4, 1)


def test_one_gain_for_a_mixture_keeps_it_the_sum_of_its_sources(samples):
    sources = torch.from_numpy(np.stack([samples[:20000], samples[-20000:]]))
    gain = rms_gain(sources.sum(0), -25.0)
    assert float(rms_dbfs(gain * sources.sum(0))) == pytest.approx(-25.0, abs=1e-4)
    torch.testing.assert_close((gain * sources).sum(0), gain * sources.sum(0))


def test_level_refuses_what_has_none():
    for wrong in (np.zeros(4, np.int16), np.zeros((2, 0)), torch.zeros(3, dtype=torch.long), np.float32(1.0)):
        with pytest.raises(InputError, match="no level for a waveform"):
            rms_dbfs(wrong)


def test_real_recording_fixtures(shared):
    with pytest.raises(AudioError, match="is not audio"):
        read_audio(shared / "data/asr_mini/audio/fixtures/not_audio.flac")
    silence, _ = read_audio(shared / "data/asr_mini/audio/fixtures/silence_1s.flac")
    assert len(silence) in (8000, 16000) and rms_dbfs(silence) < -60
