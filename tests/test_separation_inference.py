"""Recordings of any length and rate, talker by talker: known answers, memory, files, what predict and infer give."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

import audiolab
from audiolab.audio import writing
from audiolab.audio.level import PEAK_LIMIT
from audiolab.audio.recording import Recording
from audiolab.audio.resample import resample
from audiolab.audio.windows import sliding_windows
from audiolab.audio.writing import WaveWriter
from audiolab.config import compose_run
from audiolab.errors import InputError
from audiolab.metrics.separation import si_sdr
from audiolab.predict import main, predict
from audiolab.reporting.running_spectrogram import RunningSpectrogram
from audiolab.tasks.separation.inference import Chunking, separate_recording
from audiolab.tasks.separation.model import ConvTasNet
from audiolab.tasks.separation.prediction import RecordingSeparation
from audiolab.training.weights import write_weights

RATE = 16000
TINY = {"num_filters": 16, "bottleneck": 8, "hidden": 16, "skip": 8, "blocks": 2, "repeats": 1}
CAUSAL = {**TINY, "norm": "cLN", "causal": True}


def tiny(**options) -> ConvTasNet:
    torch.manual_seed(0)
    return ConvTasNet(**TINY | options).eval()


@pytest.fixture(scope="module")
def talk(shared: Path) -> Callable[[int], np.ndarray]:
    """What makes two speakers' sources (speaker, time) at 16 kHz of so many seconds: test utterances with pauses."""
    folders = sorted((shared / "data/mix_mini/LibriSpeech/test-clean").iterdir())[:2]
    spoken = [[soundfile.read(path, dtype="float32")[0] for path in sorted(f.rglob("*.flac"))] for f in folders]

    def of_length(length_s: int) -> np.ndarray:
        rng = np.random.default_rng(length_s)
        rows = []
        for utterances in spoken:
            row, length = [], 0
            while length < length_s * RATE:
                utterance = utterances[rng.integers(len(utterances))] * 10 ** (rng.uniform(-3, 3) / 20)
                row += [utterance, np.zeros(int(rng.uniform(0, 4) * RATE))]
                length += len(row[-1]) + len(row[-2])
            rows.append(np.concatenate(row)[: length_s * RATE])
        return np.stack(rows).astype(np.float32)

    return of_length


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    """As pytest.approx with an absolute tolerance, which takes seconds for long arrays."""
    return found.shape == expected.shape and float(np.abs(found - expected).max()) <= tolerance


class Oracle:
    """Knows the sources; gives each chunk's in an order and at gains of its own, with a fifth of the other talker."""

    def __init__(self, sources: np.ndarray, chunk: int, hop: int, *, leak: float = 0.0) -> None:
        self.sources, self.rng, self.leak = sources, np.random.default_rng(7), leak
        self.starts = iter([start for start, _ in sliding_windows([np.arange(sources.shape[1])], chunk, hop)])
        self.orders: list[list[int]] = []

    def __call__(self, mixture_bt: torch.Tensor) -> torch.Tensor:
        estimates = []
        for wave in mixture_bt.numpy():
            start = next(self.starts)
            piece = self.sources[:, start : start + len(wave)]
            assert close(wave, piece.sum(0), 1e-3)
            order = self.rng.permutation(len(piece))
            self.orders.append(order.tolist())
            gains = np.exp(self.rng.uniform(-2, 2, (len(piece), 1)))
            estimates.append(((piece + self.leak * (piece.sum(0) - piece)) * gains)[order])
        return torch.from_numpy(np.stack(estimates).astype(np.float32))


def separated(wave: np.ndarray, rate: int, oracle: Oracle, chunking: Chunking) -> np.ndarray:
    return np.concatenate(list(separate_recording(Recording(wave, rate), oracle, RATE, chunking)), axis=1)


def quality(estimate: np.ndarray, reference: np.ndarray) -> float:
    return si_sdr(torch.from_numpy(estimate), torch.from_numpy(reference)).min().item()


# ---- known answers


def test_the_order_of_speakers_is_kept_over_five_minutes_at_their_level(talk):
    sources = talk(300)
    oracle = Oracle(sources, 8 * RATE, 6 * RATE)
    found = separated(sources.sum(0), RATE, oracle, Chunking(batch_size=4))
    first = np.argsort(oracle.orders[0]).tolist()
    assert len({tuple(order) for order in oracle.orders}) == 2
    assert close(found[first], sources, 1e-4)  # gains and orders undone: nothing is left of either
    leaking = Oracle(sources, 8 * RATE, 6 * RATE, leak=0.25)
    found = separated(sources.sum(0), RATE, leaking, Chunking(batch_size=4))
    found = found[np.argsort(leaking.orders[0]).tolist()]
    for start in range(0, sources.shape[1], 20 * RATE):  # not a single swap anywhere
        piece = slice(start, start + 20 * RATE)
        assert quality(found[:, piece], sources[:, piece]) > 8
        assert np.linalg.norm(found[:, piece].sum(0)) == pytest.approx(
            np.linalg.norm(sources[:, piece].sum(0)), rel=0.05
        )


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_blocks_are_at_the_rate_of_the_recording_without_delay_or_drift(talk, rate: int):
    sources = resample(resample(talk(40), RATE, 7000), 7000, rate)  # nothing where filters fall off
    sources = sources[:, : sources.shape[1] - 17]
    oracle = Oracle(resample(sources, rate, RATE), 8 * RATE, 6 * RATE)
    found = separated(sources.sum(0), rate, oracle, Chunking())
    assert found.shape == sources.shape
    found = found[np.argsort(oracle.orders[0]).tolist()]
    for start in (0, 15 * rate, 34 * rate):
        piece = slice(start, start + 5 * rate)
        assert quality(found[:, piece], sources[:, piece]) > 45


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000, 96000])
@pytest.mark.parametrize("num_frames", [4, 7, 4001])
def test_short_recordings_of_any_length_and_rate(num_frames: int, rate: int):
    wave = 0.1 * np.random.default_rng(0).standard_normal(num_frames).astype(np.float32)
    found = RecordingSeparation(tiny(), RATE).talkers(wave, rate)
    assert found.shape == (2, num_frames) and found.dtype == np.float32 and np.isfinite(found).all()
    assert RecordingSeparation(tiny(**CAUSAL), RATE, streaming=True).talkers(wave, rate).shape == (2, num_frames)
    with pytest.raises(InputError, match=r"1 samples at 96000 Hz, less than one at the model's 16000 Hz"):
        RecordingSeparation(tiny(), RATE).talkers(wave[:1], 96000)


def test_what_fits_into_a_chunk_is_what_the_model_says_and_silence_is_silence(talk):
    wave, model = talk(5).sum(0), tiny()
    with torch.inference_mode():
        expected = model(torch.from_numpy(wave)[None])[0].numpy()
    found = RecordingSeparation(model, RATE).talkers(wave, RATE)
    assert quality(found, expected) > 100
    least_squares = np.linalg.lstsq(expected.T.astype(float), wave.astype(float), rcond=None)[0]
    assert np.linalg.norm(found, axis=1) == pytest.approx(
        np.abs(least_squares) * np.linalg.norm(expected, axis=1), rel=0.02
    )
    silent = RecordingSeparation(model, RATE, chunk_s=1.0).talkers(np.zeros(3 * RATE, np.float32), RATE)
    assert not silent.any()


def test_the_batch_and_the_blocks_change_nothing(talk):
    wave, model = talk(12).sum(0), tiny()
    expected = RecordingSeparation(model, RATE, chunk_s=2.0).talkers(wave, RATE)
    for batch_size in (3, 100):
        found = RecordingSeparation(model, RATE, batch_size=batch_size, chunk_s=2.0).talkers(wave, RATE)
        assert close(found, expected, 1e-5)


def test_a_stream_is_the_causal_model_at_the_level_of_the_mixture(talk):
    wave, model = talk(5).sum(0), tiny(**CAUSAL)
    with torch.inference_mode():
        offline = model(torch.from_numpy(wave)[None])[0].numpy()
    found = RecordingSeparation(model, RATE, streaming=True).talkers(wave, RATE)
    for one, other in zip(found, offline, strict=True):
        gain = float(one @ other / (other @ other))
        assert close(one, gain * other, 1e-5)
    assert np.linalg.norm(found.sum(0) - wave) <= np.linalg.norm(offline.sum(0) - wave) + 1e-3
    with pytest.raises(InputError, match=r"streaming=True \(--streaming\) needs a causal model"):
        RecordingSeparation(tiny(), RATE, streaming=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"chunk_s": 0.0}, r"chunk_s=0 \(--chunk-s\): give a positive number"),
        ({"hop_s": -1.0}, r"hop_s=-1 \(--hop-s\): give a positive number"),
        ({"hop_s": 8.0}, r"hop_s=8 \(--hop-s\) does not fit chunks of 8 s"),
        ({"chunk_s": 2.0, "hop_s": 3.0}, r"hop_s=3 \(--hop-s\) does not fit chunks of 2 s"),
        ({"batch_size": 0}, r"batch_size=0 \(--batch-size\): give 1 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, expected: str):
    with pytest.raises(InputError, match=expected):
        RecordingSeparation(tiny(), RATE, **options)


def test_estimates_that_are_not_finite_are_refused():
    model = tiny()
    torch.nn.init.constant_(model.decoder.weight, torch.nan)
    with pytest.raises(InputError, match="not finite numbers: did its training diverge"):
        RecordingSeparation(model, RATE).talkers(np.ones(2000, np.float32), RATE)


# ---- memory


MEMORY = """
import resource, sys, torch
from pathlib import Path
from audiolab.audio.level import PEAK_LIMIT
from audiolab.audio.recording import Recording
from audiolab.tasks.separation.model import ConvTasNet
from audiolab.tasks.separation.prediction import RecordingSeparation

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
model = ConvTasNet(8, 32, 16, bottleneck=8, hidden=8, skip=8, blocks=1, repeats=1).eval()
folder = Path(sys.argv[1])
for minutes in (2, 10):
    applied = RecordingSeparation(model, 8000)
    applied.predict(Recording(folder / f"{minutes}.wav"), folder / f"scratch{minutes}", "pcm16", plots=True)
    print(peak_mib())
"""


def test_memory_does_not_grow_with_the_recording(tmp_path: Path):
    """Ten minutes are 77 MB of talkers at 16 kHz: a child process says how much more than two minutes they took."""
    rng = np.random.default_rng(0)
    minute = (0.1 * rng.standard_normal(60 * RATE)).astype(np.float32)
    for minutes in (2, 10):
        with WaveWriter(tmp_path / f"{minutes}.wav", RATE, minutes * len(minute), "pcm16") as writer:
            for _ in range(minutes):
                writer.write(minute)
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    after_2, after_10 = map(float, told.stdout.split())
    assert soundfile.info(tmp_path / "scratch10" / "spk2.part").frames == 10 * len(minute)
    assert after_10 - after_2 < 12, told.stdout


# ---- files


def test_files_take_any_peak_and_integers_get_one_gain(talk, tmp_path: Path):
    loud = 8 * talk(6).sum(0)
    applied = RecordingSeparation(tiny(), RATE)
    expected = applied.talkers(loud, RATE)
    assert np.abs(expected).max() > 1.2
    written = {}
    for name in ("float", "pcm16", "pcm24"):
        found = applied.predict(Recording(loud, RATE), tmp_path / name, name, plots=False)
        files = [tmp_path / name / f"spk{number}.part" for number in (1, 2)]
        assert list(found.files.values()) == files
        assert {soundfile.info(path).subtype for path in files} == {writing.SUBTYPES[name]}
        written[name] = np.stack([soundfile.read(path, dtype="float32")[0] for path in files]), found
    assert close(written["float"][0], expected, 1e-6)
    assert written["float"][1].values["gain_db"] == 0
    for name, step in (("pcm16", 2**-15), ("pcm24", 2**-23)):
        wave, found = written[name]
        assert np.abs(wave).max() == pytest.approx(PEAK_LIMIT, abs=2**-15)
        assert close(wave, expected * 10 ** (found.values["gain_db"] / 20), step + 1e-4)
        assert f"as {name} would clip" in found.sentence
    quiet = applied.predict(Recording(loud / 100, RATE), tmp_path / "quiet", "pcm16", plots=False)
    assert quiet.values["gain_db"] == 0 and "clip" not in quiet.sentence
    levels = [float(level) for level in quiet.values["levels_dbfs"].split(";")]
    assert levels == pytest.approx((20 * np.log10(expected.std(1) / 100)).tolist(), abs=0.1)


def test_files_beyond_four_gigabytes_get_a_header_that_can_tell(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(writing, "_FULL_WAV_BYTES", 3000)
    wave = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    for num_samples, expected in ((700, "WAV"), (1000, "RF64")):
        with WaveWriter(tmp_path / "a.wav", 8000, num_samples) as writer:
            writer.write(wave[:num_samples])
        assert soundfile.info(tmp_path / "a.wav").format == expected
        assert soundfile.read(tmp_path / "a.wav", dtype="float32")[0].tolist() == wave[:num_samples].tolist()


@pytest.mark.parametrize("limit", [writing._FULL_WAV_BYTES, 100])
def test_the_time_of_writing_is_not_in_the_file(tmp_path: Path, monkeypatch, limit: int):
    monkeypatch.setattr(writing, "_FULL_WAV_BYTES", limit)
    wave = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    kept = tmp_path / "by_soundfile.wav"
    soundfile.write(kept, wave, 8000, "FLOAT", format="WAV" if limit > 100 else "RF64")
    with WaveWriter(tmp_path / "a.wav", 8000, len(wave)) as writer:
        writer.write(wave)
    written, stamped = (tmp_path / "a.wav").read_bytes(), bytearray(kept.read_bytes())
    if limit > 100:  # RF64 has no such chunk
        time = stamped.index(b"PEAK") + 12
        assert int.from_bytes(stamped[time : time + 4], "little") > 1.7e9  # as libsndfile writes it
        stamped[time : time + 4] = bytes(4)
    assert written == stamped
    assert soundfile.read(tmp_path / "a.wav", dtype="float32")[0].tolist() == wave.tolist()


def test_a_disk_that_takes_no_more_is_an_error_of_its_file(tmp_path: Path):
    with pytest.raises(OSError) as caught:
        WaveWriter(tmp_path / "no" / "folder.wav", 8000, 10)
    assert caught.value.filename == str(tmp_path / "no" / "folder.wav")


def test_a_running_spectrogram_is_that_of_the_whole(talk):
    wave = talk(7)[0]
    picture, blocks = RunningSpectrogram(len(wave), RATE), np.array_split(wave, [10, 400, 30000, 30001])
    for block in blocks:
        picture.add(block)
    size, hop = 512, 128
    window = np.hanning(size + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (0, size)), size)[::hop]
    level = picture.level_db()
    assert level.shape == picture.level_db().shape == (257, 1 + -(-(len(wave) - size) // hop))
    power = np.abs(np.fft.rfft(frames[: level.shape[1]] * window) * 2 / window.sum()).T ** 2
    assert close(10 ** (level / 10), power, 1e-6 * power.max())
    hour = RunningSpectrogram(3600 * RATE, RATE)
    assert hour.level_db().shape[1] <= 1200


# ---- predict


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """What makes a run folder of a model that was never trained: what predict needs of one."""

    def make(**model) -> Path:
        folder = tmp_path_factory.mktemp("run")
        config = compose_run(["task=separation", "data=separation/mix_mini"], "tiny")
        config["model"] = {"_target_": "audiolab.tasks.separation.model.ConvTasNet", **TINY, **model}
        OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
        weights = {f"model.{name}": value for name, value in tiny(**model).state_dict().items()}
        write_weights(folder / "checkpoints" / "model.safetensors", weights, {})
        return folder

    return make


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_predict_writes_what_infer_gives_for_files_of_every_kind(talk, run_folder, tmp_path: Path, capsys):
    run, out, given = run_folder(), tmp_path / "out", tmp_path / "in"
    wave = talk(9).sum(0)
    (given / "other").mkdir(parents=True)
    stereo = resample(np.stack([1.5 * wave, 0.5 * wave]), RATE, 44100).T
    soundfile.write(given / "stereo.wav", stereo, 44100, "FLOAT")
    soundfile.write(given / "phone.flac", resample(wave, RATE, 8000), 8000)
    soundfile.write(given / "talk.wav", wave[: 2 * RATE], RATE)
    soundfile.write(given / "other" / "Talk.flac", wave[-2 * RATE :], RATE)
    soundfile.write(given / "silence.wav", np.zeros(RATE), RATE)
    (given / "broken.wav").write_text("no audio")
    assert main([str(run), str(given), "-o", str(out), "--chunk-s", "4"]) == 2
    shown = capsys.readouterr().out
    assert "2 talkers a recording, separated in chunks of 4 s: <name>_spk1.wav" in shown
    assert "6 files, 1 of them could not be used" in shown
    rows = {Path(row["file"]).name: row for row in rows_of(out)}
    assert rows["stereo.wav"]["files"] == "stereo_spk1.wav;stereo_spk2.wav"
    assert rows["silence.wav"]["levels_dbfs"] == "silent;silent" and "1.00 s  2 talkers, silent\n" in shown
    assert rows["broken.wav"]["status"] == "error" and not rows["broken.wav"]["files"]
    assert rows["phone.flac"]["sample_rate"] == "8000" and "nothing above 4 kHz" in shown
    named = [rows[name]["files"].split(";")[0] for name in ("talk.wav", "Talk.flac")]
    assert all(name.casefold().startswith("talk-") and name.endswith("_spk1.wav") for name in named)
    assert len({name.casefold() for name in named}) == 2
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == sorted(
        ["predictions.csv", "predictions.settings.json"]
        + [name for row in rows.values() if row["files"] for name in row["files"].split(";")]
    )
    task = audiolab.load(str(run))
    for name, source in (("stereo.wav", stereo.mean(1)), ("talk.wav", soundfile.read(given / "talk.wav")[0])):
        rate = int(rows[name]["sample_rate"])
        found = task.infer(torch.from_numpy(source), rate, chunk_s=4.0)
        assert found["sample_rate"] == rate and found["sources"].dtype == torch.float32
        for file, talker in zip(rows[name]["files"].split(";"), found["sources"], strict=False):
            written, rate_written = soundfile.read(out / file, dtype="float32")
            assert rate_written == rate
            assert close(written, talker.numpy(), 1e-6)
    with pytest.raises(InputError, match="give one channel"):
        task.infer(torch.zeros(2, 100), RATE)


def test_what_is_written_is_no_input_and_what_is_gone_is_made_again(talk, run_folder, tmp_path: Path):
    run = run_folder()
    for number in (1, 2):
        soundfile.write(tmp_path / f"{number}.wav", talk(2).sum(0)[::number], RATE)
    first = predict(run, [tmp_path], out=tmp_path)
    assert [row["files"] for row in first] == ["1_spk1.wav;1_spk2.wav", "2_spk1.wav;2_spk2.wav"]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.wav")}
    assert predict(run, [tmp_path], out=tmp_path) == first  # the output folder is the input folder
    (tmp_path / "2_spk1.wav").unlink()
    assert predict(run, [tmp_path], out=tmp_path) == first
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.wav")}
    assert {name for name in before if before[name] != after[name]} == {"2_spk1.wav", "2_spk2.wav"}
    with pytest.raises(InputError, match=r"other settings \(sample_format: float there, pcm16 now\)"):
        predict(run, [tmp_path], out=tmp_path, sample_format="pcm16")


KILLED = """
import os, signal, sys
from audiolab import predict
from audiolab.audio import writing

write, calls = writing.WaveWriter.write, []

def killing(self, block):
    calls.append(self.path)
    if len(calls) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, block)

writing.WaveWriter.write = killing
predict.main(sys.argv[1:])
"""


def test_a_killed_command_leaves_no_half_written_file_and_goes_on(talk, run_folder, tmp_path: Path):
    run, out = run_folder(), tmp_path / "out"
    files = [tmp_path / f"{name}.wav" for name in "ab"]
    for path in files:
        soundfile.write(path, talk(4).sum(0), RATE)
    argv = [str(run), *map(str, files), "-o", str(out), "--chunk-s", "1", "--sample-format", "pcm16"]
    done = subprocess.run([sys.executable, "-c", KILLED, *argv], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    left = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert [row["file"] for row in rows_of(out)] == [str(files[0])]
    assert left == [
        ".unfinished-b/spk1.part",
        ".unfinished-b/spk2.part",
        "a_spk1.wav",
        "a_spk2.wav",
        "predictions.csv",
        "predictions.settings.json",
    ]
    whole = (out / "a_spk1.wav").stat().st_mtime_ns
    assert main(argv) == 0
    assert (out / "a_spk1.wav").stat().st_mtime_ns == whole
    assert (out / "b_spk2.wav").read_bytes() == (out / "a_spk2.wav").read_bytes()
    assert not list(out.glob(".unfinished*"))


def test_a_causal_run_streams_and_another_refuses(talk, run_folder, tmp_path: Path, capsys, caplog):
    wave = talk(3).sum(0)
    soundfile.write(tmp_path / "a.wav", wave, RATE, "FLOAT")
    causal = run_folder(norm="cLN", causal=True)
    options = ["--streaming", "--plots", "--hop-s", "2", "-o", str(tmp_path / "out")]
    assert main([str(causal), str(tmp_path / "a.wav"), *options]) == 0
    assert "separated as one stream" in capsys.readouterr().out
    assert "hop_s (--hop-s) have no effect with streaming" in caplog.text
    found = audiolab.load(str(causal)).infer(torch.from_numpy(wave), RATE, streaming=True)["sources"]
    written = soundfile.read(tmp_path / "out" / "a_spk2.wav", dtype="float32")[0]
    assert close(written, found[1].numpy(), 1e-6)
    assert rows_of(tmp_path / "out")[0]["files"] == "a_spk1.wav;a_spk2.wav;spectrograms/a.png"
    assert (tmp_path / "out" / "spectrograms" / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"streaming=True \(--streaming\) needs a causal model"):
        main([str(run_folder()), str(tmp_path / "a.wav"), "--streaming"])
    settings = json.loads((tmp_path / "out" / "predictions.settings.json").read_text())
    assert settings["streaming"] is True and settings["sample_format"] == "float"


def test_the_picture_of_a_recording_has_its_name(talk, tmp_path: Path):
    soundfile.write(tmp_path / "call $1$.wav", talk(1).sum(0), RATE)
    model = ConvTasNet(**TINY)
    for source, title in ((tmp_path / "call $1$.wav", r"call \$1\$.wav"), (talk(1).sum(0).astype(np.float32), "")):
        applied, recording = RecordingSeparation(model, RATE), Recording(source, RATE)
        found = applied.predict(recording, tmp_path / f"scratch{bool(title)}", "float", plots=True)
        assert found.files["spectrograms/*.png"].get_suptitle() == title
