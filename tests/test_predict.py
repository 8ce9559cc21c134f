"""The verb predict and what a task does for it: files of every kind, windows, words, going on after a kill."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import audiolab
from audiolab import run
from audiolab.audio.find import find_audio
from audiolab.audio.io import read_audio
from audiolab.audio.recording import Recording
from audiolab.audio.windows import sliding_windows
from audiolab.errors import InputError
from audiolab.folder import RunFolder
from audiolab.predict import main, predict
from audiolab.reporting.predictions import PredictionFile
from audiolab.tasks.asvspoof.inference import Windowing, judge
from audiolab.tasks.asvspoof.module import SpoofingDetection
from audiolab.tasks.asvspoof.verdict import decide
from audiolab.training.task import Known

RATE = 16000
CALIBRATION = {"scale": 1.5, "offset": -0.25}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, la_mini: Path) -> Path:
    """A finished, calibrated run that judges 2.7 s, longer than every recording of the corpus; read only."""
    from conftest_corpus import make_tiny_la

    base = tmp_path_factory.mktemp("trained")
    root = make_tiny_la(la_mini, base / "tiny_la")
    options = ["task=asvspoof", "model=asvspoof/texture", "data=asvspoof/la_mini", "augment=asvspoof/none"]
    options += ["trainer=cpu", "trainer.max_epochs=2", "data.batch_size=8", "data.eval_samples=43200"]
    assert run.main([*options, "data.eval_batch_size=8", f"data.root={root}", f"outputs={base}", "name=done"]) == 0
    folder = base / "asvspoof" / "done"
    (folder / "checkpoints" / "calibration.json").write_text(json.dumps(CALIBRATION))
    return folder


@pytest.fixture(scope="module")
def task(trained: Path) -> SpoofingDetection:
    return audiolab.load(str(trained))


@pytest.fixture(scope="module")
def eval_files(trained: Path) -> list[Path]:
    root = Path(RunFolder.open(trained).config["data"]["root"])
    return sorted((root / "LA/ASVspoof2019_LA_eval/flac").iterdir())


@pytest.fixture(scope="module")
def speech(eval_files: list[Path]) -> np.ndarray:
    """About 20 s of real speech, bona fide and spoofed recordings one after the other."""
    return np.concatenate([read_audio(path)[0] for path in eval_files[:10]])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def infer(task: SpoofingDetection, wave: np.ndarray, **options) -> dict:
    return task.infer(torch.from_numpy(np.ascontiguousarray(wave)), RATE, **options)


# ---- the same numbers as the evaluation, and everywhere the same


def test_files_get_the_scores_of_the_evaluation(trained: Path, eval_files: list[Path], task, tmp_path: Path):
    rows = predict(trained, [eval_files[0].parent], out=tmp_path)
    with (trained / "scores" / "eval.csv").open() as file:
        expected = {row["id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert {Path(row["file"]).stem: row["score"] for row in rows} == pytest.approx(expected, abs=1e-5)
    assert [row["score"] for row in rows[:3]] == [infer(task, read_audio(p)[0])["score"] for p in eval_files[:3]]
    assert {row["num_windows"] for row in rows} == {1}


def test_a_run_that_judges_whole_utterances_does_so_up_to_16_s(trained: Path, speech: np.ndarray):
    whole = audiolab.load(str(trained))
    whole.eval_samples = None
    piece = speech[: RATE * 10]
    with torch.inference_mode():
        expected = whole(torch.from_numpy(piece)[None]).item()
    found = infer(whole, piece)
    assert found["score"] == pytest.approx(expected, abs=1e-6)
    assert (found["num_windows"], found["judged_s"]) == (1, 10.0)
    longer = infer(whole, speech[: RATE * 17], windows=True)
    assert longer["windows"][0]["end_s"] == 64600 / RATE
    assert longer["windows"][-1]["end_s"] == 17.0
    assert math.isfinite(infer(whole, piece[3000 : 3000 + RATE // 10])["score"])
    with pytest.raises(InputError, match="0.050 s is too short to judge"):
        infer(whole, piece[: RATE // 20])
    with pytest.raises(InputError, match="a sampling rate of 0 Hz cannot be used"):
        whole.infer(torch.from_numpy(piece), 0)


# ---- windows


def test_a_window_scores_as_the_piece_cut_out(task, speech: np.ndarray):
    found = infer(task, speech, window_s=1.5, hop_s=0.7, windows=True)
    windows = found["windows"]
    for window in windows[:3] + windows[-2:]:
        cut = speech[round(window["start_s"] * RATE) : round(window["end_s"] * RATE)]
        assert len(cut) == 1.5 * RATE
        assert infer(task, cut, window_s=1.5)["score"] == pytest.approx(window["score"], abs=1e-5)
    assert windows[-1]["end_s"] == pytest.approx(len(speech) / RATE, abs=1e-9)
    assert np.diff([window["start_s"] for window in windows])[:-1] == pytest.approx(0.7)
    scores = [window["score"] for window in windows]
    assert found["score"] == pytest.approx(np.mean(scores))
    assert found["lowest_score"] == min(scores)
    assert found["lowest_start_s"] == pytest.approx(windows[int(np.argmin(scores))]["start_s"], abs=1e-3)


def test_windows_of_joined_recordings_score_as_the_recordings(task, eval_files: list[Path], trained: Path):
    labels = {row["id"]: row["label"] for row in rows_of(trained / "scores" / "eval.csv")}
    bonafide = next(read_audio(path)[0] for path in eval_files if labels[path.stem] == "bonafide")
    spoof = next(read_audio(path)[0] for path in eval_files if labels[path.stem] == "spoof")
    size_s = 1.3
    parts = [wave[: round(size_s * RATE)] for wave in (bonafide, spoof, bonafide)]
    curve = infer(task, np.concatenate(parts), window_s=size_s, hop_s=size_s, windows=True)["windows"]
    alone = [infer(task, part, window_s=size_s)["score"] for part in parts]
    assert [window["score"] for window in curve] == pytest.approx(alone, abs=1e-5)
    assert abs(alone[0] - alone[1]) > 1e-3


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_batch_does_not_change_scores(task, speech: np.ndarray, batch_size: int):
    expected = infer(task, speech, window_s=1.0, windows=True)["windows"]
    found = infer(task, speech, window_s=1.0, windows=True, batch_size=batch_size)["windows"]
    assert [w["score"] for w in found] == pytest.approx([w["score"] for w in expected], abs=1e-4)


def test_sliding_windows_whatever_the_blocks():
    generator = np.random.default_rng(0)
    for _ in range(300):
        length, window = int(generator.integers(1, 60)), int(generator.integers(1, 20))
        hop = int(generator.integers(1, window + 1))
        signal = np.arange(length)
        cuts = np.sort(generator.integers(0, length + 1, size=3))
        blocks = [block for block in np.split(signal, cuts) if len(block)]
        found = list(sliding_windows(blocks, window, hop))
        starts = list(range(0, max(1, length - window + 1), hop))
        if starts[-1] + window < length:
            starts.append(length - window)
        assert [start for start, _ in found] == starts
        for start, piece in found:
            assert piece.tolist() == signal[start : start + window].tolist()
        assert set(np.concatenate([piece for _, piece in found])) == set(signal)


def test_silent_and_very_quiet_windows_are_left_out(task, speech: np.ndarray):
    second = speech[:RATE]
    noise = np.random.default_rng(0).normal(0, 1e-5, 2 * RATE).astype(np.float32)
    wave = np.concatenate([second, np.zeros(2 * RATE, np.float32), second, noise])
    found = infer(task, wave, window_s=1.0, hop_s=1.0, windows=True)
    heard = [window["score"] is not None for window in found["windows"]]
    assert heard == [True, False, False, True, False, False]
    assert found["score"] == pytest.approx(infer(task, second, window_s=1.0)["score"], abs=1e-5)
    assert (found["num_silent"], found["judged_s"], found["duration_s"]) == (4, 2.0, 6.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"window_s": 1e-4}, "the model needs at least"),
        ({"window_s": 1.0, "hop_s": 1.5}, "give a positive hop of at most a window"),
        ({"hop_s": -1.0}, "give a positive number of seconds"),
        ({"window_s": math.nan}, "give a positive number of seconds"),
        ({"batch_size": 0}, "give 1 or more"),
    ],
)
def test_windows_that_do_not_fit(trained: Path, eval_files: list[Path], tmp_path: Path, options: dict, expected: str):
    with pytest.raises(InputError, match=expected):
        predict(trained, eval_files[:1], out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_long_recording_is_never_in_memory_as_a_whole(tmp_path: Path):
    minutes = 20
    noise = np.random.default_rng(0).normal(0, 0.1, 8000 * 60).astype(np.float32)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 8000, 2, "PCM_16") as file:
        for _ in range(minutes):
            file.write(np.stack([noise, noise], axis=1))
    del noise
    shares: list[float] = []
    recording = Recording(tmp_path / "long.wav", on_read=shares.append)
    tracemalloc.start()
    found = judge(
        recording,
        lambda wave_bt: wave_bt.square().mean(1).log(),
        torch.device("cpu"),
        Windowing(hop_s=4.0),
        eval_samples=64600,
        min_samples=1,
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24e6  # at 16 kHz in float32 the recording takes 77 MB
    assert found.end_s[-1] == minutes * 60
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert len(found.envelope) == pytest.approx(minutes * 6000, rel=1e-3)


# ---- recordings


@pytest.mark.parametrize(
    ("name", "rate", "channels", "kind"),
    [
        ("a.wav", 16000, 1, "PCM_16"),
        ("a.wav", 44100, 2, "FLOAT"),
        ("a.wav", 8000, 1, "GSM610"),
        ("a.flac", 22050, 3, "PCM_24"),
        ("a.ogg", 48000, 2, "VORBIS"),
        ("a.mp3", 44100, 1, "MPEG_LAYER_III"),
    ],
)
def test_blocks_are_what_read_audio_gives_at_once(tmp_path: Path, name: str, rate: int, channels: int, kind: str):
    wave = 0.2 * np.random.default_rng(0).standard_normal((rate * 3 + 17, channels))
    soundfile.write(tmp_path / name, wave, rate, subtype=kind)
    for to_hz in (16000, rate):
        expected, _ = read_audio(tmp_path / name, sample_rate=to_hz)
        recording = Recording(tmp_path / name)
        found = np.concatenate(list(recording.blocks(to_hz, block_s=0.7)))
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7 if name == "a.mp3" else 0)  # libmpg123 rounds
        assert recording.num_samples(to_hz) == len(expected)
        wave_t, own_hz = read_audio(tmp_path / name)
        assert np.array_equal(Recording(wave_t, own_hz).read(to_hz), expected)
        with pytest.raises(InputError, match="a sampling rate of 0 Hz cannot be used"):
            Recording(wave_t, 0)


# ---- the command


@pytest.fixture
def odd_folder(tmp_path: Path, eval_files: list[Path]) -> Path:
    """One recording in many forms, and files that cannot be used."""
    folder = tmp_path / "calls"
    (folder / "sub").mkdir(parents=True)
    wave, _ = read_audio(eval_files[0])
    soundfile.write(folder / "plain.wav", wave, RATE, subtype="FLOAT")
    soundfile.write(folder / "stereo, with comma.wav", np.stack([wave, wave], axis=1), RATE, subtype="FLOAT")
    soundfile.write(folder / "sub" / "电话 ü $x$.flac", wave, RATE)
    soundfile.write(folder / "new\nline.wav", wave, RATE)
    soundfile.write(folder / "8k.wav", read_audio(eval_files[0], sample_rate=8000)[0], 8000)
    soundfile.write(folder / "44k.WAV", read_audio(eval_files[0], sample_rate=44100)[0], 44100)
    soundfile.write(folder / "short.wav", wave[4000:6000], RATE)
    (folder / "plain.wav").rename(folder / "not-utf8-\udcff.wav")  # the byte 0xff
    soundfile.write(folder / "silence.wav", np.zeros(8000), RATE)
    (folder / "broken.flac").write_bytes(eval_files[0].read_bytes()[:500])
    (folder / "phone.m4a").write_bytes(b"\0\0\0 ftypM4A ")
    (folder / "empty.wav").touch()
    (folder / "notes.txt").write_text("no audio")
    (folder / "._hidden.wav").write_text("left by another system")
    return folder


def test_files_of_every_kind_and_name(
    trained: Path, task, odd_folder: Path, eval_files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = [str(trained), str(odd_folder), "-o", str(tmp_path / "out")]
    assert main(argv) == 2
    shown = capsys.readouterr().out
    rows = {Path(row["file"]).name: row for row in rows_of(tmp_path / "out" / "predictions.csv")}
    bad = {"silence.wav", "broken.flac", "phone.m4a", "empty.wav"}
    good = {"not-utf8-\udcff.wav", "stereo, with comma.wav", "电话 ü $x$.flac", "new\nline.wav", "8k.wav", "44k.WAV"}
    assert set(rows) == bad | good | {"short.wav"}
    expected = infer(task, read_audio(eval_files[0])[0])["score"]
    for name in good:
        tolerance = 1e-4 if name not in ("8k.wav", "44k.WAV") else 10.0  # another bandwidth is another sound
        assert float(rows[name]["score"]) == pytest.approx(expected, abs=tolerance), name
        assert rows[name]["status"] == "ok" and not rows[name]["error"]
    assert float(rows["short.wav"]["judged_s"]) == pytest.approx(2000 / RATE, abs=1e-3)
    assert shown.count("at 8000 Hz it has nothing above 4 kHz") == 1
    for name in bad:
        assert rows[name]["status"] == "error" and not rows[name]["score"]
    assert "silent" in rows["silence.wav"]["error"]
    assert "is not audio that libsndfile" in rows["phone.m4a"]["error"]
    assert "high scores speak for bona fide speech" in shown
    assert "new\\nline.wav" in shown and "11 files, 4 of them could not be used" in shown
    line = next(line for line in shown.splitlines() if "stereo" in line)
    row = rows["stereo, with comma.wav"]
    probability = f"P(bona fide) {100 * float(row['probability_bonafide']):5.1f} %"
    assert ("  bona fide  " if row["verdict"] == "bonafide" else "  spoof  ") in line and probability in line
    assert main([*argv[:2], "-o", str(tmp_path / "lines"), "--format", "jsonl"]) == 2
    for line in (tmp_path / "lines" / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        beside = rows[Path(row["file"]).name]
        assert {key: "" if value is None else str(value) for key, value in row.items()} == beside


def test_what_is_there_is_not_judged_again(trained: Path, eval_files: list[Path], tmp_path: Path, monkeypatch):
    judged = []
    original = SpoofingDetection.predict_recording

    def noting(self, recording, known, **options):
        judged.append(Path(recording._source).name)
        return original(self, recording, known, **options)

    monkeypatch.setattr(SpoofingDetection, "predict_recording", noting)
    files = [tmp_path / f"{name}.flac" for name in "abc"]
    for path, source in zip(files, eval_files, strict=False):
        path.write_bytes(source.read_bytes())
    bad = tmp_path / "bad.wav"
    bad.write_text("x")
    first = predict(trained, [*files, bad], out=tmp_path / "out")
    text = (tmp_path / "out" / "predictions.csv").read_bytes()
    again = predict(trained, [*files, bad], out=tmp_path / "out")
    assert judged == ["a.flac", "b.flac", "c.flac"]  # a file that cannot be opened never gets that far
    assert again == first
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == text
    files[1].write_bytes(eval_files[5].read_bytes())
    third = predict(trained, [*files, bad, eval_files[7]], out=tmp_path / "out")
    assert judged[3:] == ["b.flac", eval_files[7].name]
    assert third[0] == first[0] and third[1]["score"] != first[1]["score"]
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert [Path(row["file"]).name for row in rows] == ["a.flac", "b.flac", "c.flac", "bad.wav", eval_files[7].name]
    predict(trained, [eval_files[8]], out=tmp_path / "out")  # another command adds to the table
    assert len(rows_of(tmp_path / "out" / "predictions.csv")) == 6
    with pytest.raises(InputError, match=r"made with other settings \(window_s: None there, 1.0 now\)"):
        predict(trained, files, out=tmp_path / "out", window_s=1.0)
    with pytest.raises(InputError, match="made with other settings"):
        predict(trained, files, out=tmp_path / "out", window_s=1.0, form="jsonl")
    predict(trained, files, out=tmp_path / "out", batch_size=2)  # how fast, not what
    predict(trained, files[:1], out=tmp_path / "out", window_s=1.0, overwrite=True)
    assert len(rows_of(tmp_path / "out" / "predictions.csv")) == 1


def test_a_killed_command_goes_on_and_ends_with_the_same_file(trained: Path, eval_files: list[Path], tmp_path: Path):
    calls = [tmp_path / f"{number:02d}.flac" for number in range(30)]
    for path, source in zip(calls, 2 * eval_files, strict=False):
        path.write_bytes(source.read_bytes())
    calls[7].write_text("broken")
    calls[20].unlink()
    os.mkfifo(calls[20])  # the command waits here for ever
    argv = [str(trained), *map(str, calls), "--window-s", "1"]
    cut = tmp_path / "cut" / "predictions.csv"
    process = subprocess.Popen(
        [sys.executable, "-m", "audiolab.predict", *argv, "-o", str(cut.parent)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not cut.exists() or cut.read_bytes().count(b"\n") < 21:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    calls[20].unlink()
    calls[20].write_bytes(eval_files[3].read_bytes())
    cut.write_bytes(cut.read_bytes()[:-7])  # as if the kill had come amid a line
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([*argv, "-o", str(cut.parent)]) == 2
        assert main([*argv, "-o", str(tmp_path / "whole")]) == 2
    finally:
        torch.set_num_threads(threads)
    assert cut.read_bytes() == (tmp_path / "whole" / "predictions.csv").read_bytes()
    assert [row["file"] for row in rows_of(cut)] == list(map(str, calls))


def test_a_run_with_other_weights_or_calibration_is_another_run(trained: Path, eval_files: list[Path], tmp_path: Path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(trained, other)
    predict(trained, eval_files[:1], out=tmp_path / "out")
    assert predict(other, eval_files[:1], out=tmp_path / "out")  # a copy is the same run
    (other / "checkpoints" / "calibration.json").write_text('{"scale": 9.0, "offset": 0.0}')
    with pytest.raises(InputError, match=r"other settings \(run: \w+ there, \w+ now\)"):
        predict(other, eval_files[:1], out=tmp_path / "out")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "predictions.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not from this version of predict"):
        predict(trained, eval_files[:1], out=tmp_path / "foreign")
    assert (tmp_path / "foreign" / "predictions.csv").read_text() == "a,b\n1,2\n"


def test_lists_and_standard_input(trained: Path, eval_files: list[Path], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(eval_files[0].parent)
    listed = tmp_path / "files.txt"
    listed.write_text(f"\ufeff{eval_files[0].name}\r\n\n{tmp_path / 'missing.wav'}\n{eval_files[1].name}")
    assert main([str(trained), "--list", str(listed), "-o", str(tmp_path / "a")]) == 2
    rows = rows_of(tmp_path / "a" / "predictions.csv")
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert "does not exist" in rows[1]["error"]

    def stdin(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    stdin(f"{eval_files[2].name}\0{eval_files[0].name}\0".encode())
    assert main([str(trained), str(eval_files[0].name), "-", "-o", str(tmp_path / "b")]) == 0
    rows = rows_of(tmp_path / "b" / "predictions.csv")
    assert [row["file"] for row in rows] == [eval_files[0].name, eval_files[2].name]
    stdin(eval_files[0].read_bytes())
    with pytest.raises(InputError, match="standard input is audio, not a list of paths"):
        main([str(trained), "-"])
    for argv, expected in (
        ([], "no input: give audio files"),
        ([str(tmp_path / "nothing.wav")], "nothing.wav does not exist"),
        (["--list", str(tmp_path / "no.txt")], r"no.txt cannot be read \(No such file"),
        ([str(eval_files[0]), "--prior", "1"], "--prior 1: give a probability"),
        ([str(tmp_path / "a")], "no audio files in"),
    ):
        with pytest.raises(InputError, match=expected):
            main([str(trained), *argv])
    with pytest.raises(InputError, match="predict has no option windows: this task has window_s"):
        predict(trained, eval_files[:1], out=tmp_path / "c", windows=3)
    assert not (tmp_path / "c").exists()


def test_curves(trained: Path, task, speech: np.ndarray, eval_files: list[Path], tmp_path: Path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "talk.wav", speech if folder == "one" else speech[::-1], RATE, "FLOAT")
    files = [tmp_path / "one" / "talk.wav", tmp_path / "two" / "talk.wav", eval_files[0]]
    rows = predict(trained, files, out=tmp_path / "out", curves=True, hop_s=0.9)
    names = sorted(path.name for path in (tmp_path / "out" / "curves").iterdir())
    assert len(names) == 4 and all(name.startswith("talk-") for name in names)  # none for a single window
    for path in (tmp_path / "out" / "curves").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    expected = infer(task, speech, hop_s=0.9, windows=True)["windows"]
    tables = [rows_of(path) for path in (tmp_path / "out" / "curves").glob("*.csv")]
    table = next(table for table in tables if float(table[0]["score"]) == pytest.approx(expected[0]["score"], abs=1e-6))
    assert [float(row["end_s"]) for row in table] == [window["end_s"] for window in expected]
    assert [float(row["score"]) for row in table] == [window["score"] for window in expected]
    assert rows[0]["num_spoof"] == sum(row["verdict"] == "spoof" for row in table)
    llr = [CALIBRATION["scale"] * window["score"] + CALIBRATION["offset"] for window in expected]
    probabilities = [1 / (1 + math.exp(-value)) for value in llr]
    assert [float(row["probability_bonafide"]) for row in table] == pytest.approx(probabilities)


# ---- what a score means


def test_verdict_and_probability_agree():
    known = Known({"eer_threshold": 5.0}, {"scale": 2.0, "offset": -1.0})
    found = decide(1.0, known, 0.5)
    assert found["probability_bonafide"] == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert found["threshold"] == pytest.approx(0.5)
    assert decide(1.0, known, 0.1)["probability_bonafide"] == pytest.approx(math.e / (math.e + 9))
    for prior in (0.01, 0.5, 0.9):
        for score in np.linspace(-4, 4, 33):
            found = decide(float(score), known, prior)
            assert (found["verdict"] == "bonafide") == (found["probability_bonafide"] > 0.5)
    assert decide(-1e6, known, 0.5)["probability_bonafide"] == 0.0
    assert decide(1e6, known, 0.5)["probability_bonafide"] == 1.0


@pytest.mark.parametrize("calibration", [None, {"scale": -0.3, "offset": 0.0}])
def test_without_a_usable_calibration_the_development_threshold_decides(calibration):
    known = Known({"eer_threshold": 0.25}, calibration)
    assert decide(0.3, known, 0.5) == {"verdict": "bonafide", "threshold": 0.25, "probability_bonafide": None}
    assert decide(0.25, known, 0.5)["verdict"] == "spoof"
    assert decide(0.3, Known({}, None), 0.5)["verdict"] is None


def test_an_option_without_effect_is_said(task, caplog: pytest.LogCaptureFixture):
    options = {"window_s": None, "hop_s": None, "batch_size": 16, "curves": False}
    legend = task.prediction_legend(Known({"eer_threshold": 0.25}, None), prior=0.3, **options)
    assert "the line is 0.2500" in legend
    assert "--prior has no effect" in caplog.text
    assert "no verdict" in task.prediction_legend(Known({}, None), prior=None, **options)


def test_infer_refuses_what_is_no_recording(task):
    with pytest.raises(InputError, match="give one channel"):
        task.infer(torch.randn(2, 8000), 8000)
    with pytest.raises(InputError, match="silent"):
        task.infer(torch.zeros(8000), 8000)
    with pytest.raises(InputError, match="sample 3 of the waveform is not a finite number"):
        task.infer(torch.tensor([0.0, 1.0, 0.0, math.nan]), 8000)


# ---- the table


def test_any_file_name_and_text_survives_the_table(tmp_path: Path):
    columns = {"text": str, "value": float, "count": int}
    names = ['a,"b".wav', "new\nline.wav", "\udcff.wav", "0012", "café.wav"]
    for form in ("csv", "jsonl"):
        table = PredictionFile(tmp_path, columns, {"s": 1}, form, overwrite=True)
        paths = [tmp_path / name for name in names]
        for path in paths:
            path.write_text("x")
        assert table.begin(paths) == paths
        for path in paths:
            table.add(path, {"text": "0012", "value": 0.1 + 0.2, "count": 3})
        written = table.finish()
        again = PredictionFile(tmp_path, columns, {"s": 1}, form)
        assert again.begin(paths) == []
        assert again.finish() == written
        assert [row["text"] for row in written] == ["0012"] * 5
        # every prefix of the file, as a kill may leave it, is read and completed
        path = tmp_path / f"predictions.{form}"
        whole = path.read_bytes()
        for end in range(whole.index(b"\n") + 1, len(whole), 7):
            path.write_bytes(whole[:end])
            table = PredictionFile(tmp_path, columns, {"s": 1}, form)
            for left in table.begin(paths):
                table.add(left, {"text": "0012", "value": 0.1 + 0.2, "count": 3})
            table.finish()
            assert path.read_bytes() == whole


def test_find_audio_lists_each_file_once_and_in_order(tmp_path: Path):
    for name in ("b.wav", "a.FLAC", "sub/c.opus", "x.txt", "y.raw"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_audio([tmp_path / "x.txt", tmp_path, tmp_path / "b.wav"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["x.txt", "a.FLAC", "b.wav", "sub/c.opus"]


# ---- the picture


def test_the_picture_marks_what_lies_below_the_threshold():
    from audiolab.reporting.curve import score_curve

    start_s = np.arange(0, 10, 1.0)
    score = np.array([3, 3, -1, -1, 3, np.nan, 3, 3, 3, -2])
    figure = score_curve(
        start_s, start_s + 2, score, np.ones(1100), 11.0, threshold=0.0, below="spoof", score_label="Score"
    )
    above, curve = figure.axes
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in above.patches]
    assert np.allclose(spans, [(2.5, 4.5), (9.5, 11.0)])
    assert [patch.get_label() for patch in curve.patches][::2] == ["spoof", "silent"]
    assert above.get_xlim() == curve.get_xlim() == (0.0, 11.0)


def test_help_of_a_run_names_the_options_of_its_task(trained: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([str(trained), "--help"])
    shown = capsys.readouterr().out
    assert "--window-s" in shown and "--curves" in shown and "--format" in shown
    with pytest.raises(InputError, match="does not exist"):
        main(["/no/run", "--help"])
