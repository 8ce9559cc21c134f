"""The verb prepare, on a small tree in AISHELL-3's layout: stopped and gone on with, refused, and what it makes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from test_separation_demo import digest, lists, steps

from audiolab import assemble, config, prepare
from audiolab.errors import InputError, Preempted, RunError
from audiolab.preflight import disk
from audiolab.tasks.separation.aishell3 import Aishell3Data
from audiolab.tasks.separation.aishell3_lists import Speaker, choose_speakers, read_speakers
from audiolab.tasks.separation.librimix_writer import SETS, PlannedMixture, Utterance
from audiolab.tasks.separation.prepared_picture import draw_prepared, speakers_in
from audiolab.training.preparation import Facts, Made, Preparation, Work

NUMBERS = {"train": 150, "dev": 10, "test": 10}


@pytest.fixture
def command(shared: Path, tmp_path: Path) -> list[str]:
    """Options of a few mixtures into tmp_path/made."""
    return options(shared / "data/aishell3_mini", tmp_path / "made")


def options(root: Path, folder: Path, *more: str) -> list[str]:
    numbers = [f"data.mixtures.num_mixtures.{name}={num}" for name, num in NUMBERS.items()]
    own = ["task=separation", "data=separation/aishell3", f"data.root={root}", f"data.prepared={folder}"]
    return [*own, "data.num_workers=2", *numbers, *more]


@pytest.fixture(scope="module")
def made(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "made"
    assert prepare.main(options(shared / "data/aishell3_mini", folder)) == 0
    return folder


@pytest.fixture
def small(shared: Path, tmp_path: Path) -> Path:
    """A writable tree of five speakers."""
    root = tmp_path / "small"
    names = sorted(path.name for path in (shared / "data/aishell3_mini/train/wav").iterdir())[:5]
    for name in names:
        shutil.copytree(shared / f"data/aishell3_mini/train/wav/{name}", root / "train/wav" / name)
    shutil.copyfile(shared / "data/aishell3_mini/spk-info.txt", root / "spk-info.txt")
    listed = (shared / "data/aishell3_mini/train/content.txt").read_text().splitlines()
    (root / "train/content.txt").write_text("\n".join(line for line in listed if line[:7] in names) + "\n")
    return root


TWO_EACH = [
    "data.mixtures.subsets=[train]",
    *(f"data.mixtures.speakers.{name}={num}" for name, num in (("train", "null"), ("dev", 2), ("test", 2))),
    *(f"data.mixtures.num_mixtures.{name}={num}" for name, num in (("train", 4), ("dev", 2), ("test", 2))),
    "data.num_workers=0",
]


def run(argv: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "audiolab.prepare", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def wait_for(folder: Path, pattern: str, num: int, process: subprocess.Popen) -> None:
    started = time.monotonic()
    while len(list(folder.glob(pattern))) < num:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < 120
        time.sleep(0.002)


def test_interrupted_and_killed_it_goes_on_to_the_same_bytes(
    command: list[str], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "made"
    interrupted = run(command)
    wait_for(folder, ".work/utterances/*.json", 2, interrupted)
    os.killpg(interrupted.pid, signal.SIGINT)  # as Ctrl-C: to its workers too
    _, told = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    assert "stopped; the same command goes on: what is finished stays" in told and "Traceback" not in told
    kept = {path: path.stat().st_mtime_ns for path in folder.glob(".work/utterances/*.json")}
    assert kept and not (folder / "Libri2Mix").exists()

    killed = run(command)
    wait_for(folder, ".work/mixtures/*.json", 2, killed)
    killed.kill()
    killed.communicate(timeout=60)
    state = json.loads((folder / "prepared.json").read_text())
    assert state["finished"] is None and state["options"]["num_mixtures"] == NUMBERS
    time.sleep(1.5)  # its workers end with it
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    begun = {path: path.stat().st_mtime_ns for path in folder.glob(".work/mixtures/*.json")}
    assert 2 <= len(begun) < 8
    (folder / "Libri2Mix/wav16k/min/dev").mkdir(parents=True, exist_ok=True)
    (folder / "Libri2Mix/wav16k/min/dev/.half.0000.tmp.wav").write_bytes(b"half")
    done = json.loads(next(iter(begun)).read_text())["files"]
    damaged = folder / next(iter(done))
    damaged.write_bytes(damaged.read_bytes()[:100])

    with pytest.raises(InputError, match=r"was begun with snr_db=\[-3.0, 3.0\] \(now \[0, 0\]\): give another folder"):
        prepare.main([*command, "data.mixtures.snr_db=[0,0]"])
    assert prepare.main([*command, "data.num_workers=0"]) == 0  # another number of processes
    for path in (folder, made):
        state = json.loads((path / "prepared.json").read_text())
        state["finished"]["remarks"].pop()  # the path of the picture
        (path / "state").write_text(json.dumps(state))
    assert (folder / "state").read_text() == (made / "state").read_text()
    own = ("prepared.json", ".lock")
    for path in (folder, made):
        shutil.copytree(path, tmp_path / f"copy-{path is made}", ignore=lambda _, names: {n for n in names if n in own})
        (path / "state").unlink()
    assert digest(tmp_path / "copy-True") == digest(tmp_path / "copy-False")
    assert sorted(path.name for path in folder.iterdir() if path.name[0] == ".") == [".lock"]
    capsys.readouterr()


def test_a_finished_one_is_told_and_left_alone(
    made: Path, shared: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    command = options(shared / "data/aishell3_mini", made)
    assert prepare.main(command) == 0
    shown = capsys.readouterr().out
    assert f"prepared already, nothing was done: {made}" in shown
    assert "to train on it: python -m audiolab.run task=separation data=separation/aishell3 data.root=" in shown
    assert "model.num_speakers" not in shown  # has two talkers already
    assert "5 / 9" in shown and "utterances are several short ones in a row" in shown
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    with pytest.raises(
        InputError, match=r"was made with num_mixtures.train=150 \(now 7\); min_s=1.5 \(now 1.0\): give"
    ):
        prepare.main([*command, "data.mixtures.num_mixtures.train=7", "data.mixtures.min_s=1.0"])
    with pytest.raises(InputError, match="holds something else than mixtures of AISHELL-3: give a new or empty folder"):
        prepare.main([*command, f"data.prepared={shared / 'data/aishell3_mini'}"])


def test_sets_are_disjoint_levels_as_drawn_and_mixtures_sums(made: Path, shared: Path):
    speakers = {}
    sexes = {one.id: one.sex for one in read_speakers(shared / "data/aishell3_mini", ["train", "test"])}
    for name in SETS:
        found = lists_16k(made, name)
        info, rows = found["info"], found["mixtures"]
        assert len(rows) == rows["mixture_ID"].nunique() == NUMBERS[name]
        speakers[name] = set(info["speaker_1_ID"]) | set(info["speaker_2_ID"])
        for who in (1, 2):
            assert (info[f"speaker_{who}_sex"] == info[f"speaker_{who}_ID"].map(sexes)).all()
        assert not (info["speaker_1_ID"] == info["speaker_2_ID"]).any()
        for row, snr_db in zip(rows.itertuples(), found["metrics"]["source_1_SNR"], strict=True):
            mixture, one, two = (
                steps(made / path) for path in (row.mixture_path, row.source_1_path, row.source_2_path)
            )
            assert len(mixture) == row.length >= 1.5 * 16000
            assert np.array_equal(mixture, one + two)
            assert 10 * np.log10(np.sum(one**2) / np.sum(two**2)) == pytest.approx(snr_db, abs=1e-3)
            assert -3.01 < snr_db < 3.01
            assert 10 * np.log10(np.mean((mixture / 32768) ** 2)) == pytest.approx(-25.0, abs=0.01)
    assert [len(speakers[name]) for name in SETS] == [14, 3, 3]
    assert len(set.union(*speakers.values())) == 20
    sources = pd.read_csv(made / "train_sources.csv")
    assert set(sources["speaker"]) == speakers["train"] and all((made / path).is_file() for path in sources["file"])


def lists_16k(folder: Path, name: str) -> dict[str, pd.DataFrame]:
    return lists(folder, name, "Libri2Mix/wav16k/min")


def test_runs_read_it_by_the_options_that_made_it(made: Path, shared: Path, tmp_path: Path):
    section = composed(options(shared / "data/aishell3_mini", made))
    moved = {**section, "root": str(tmp_path / "gone")}  # the corpus itself is not needed any more
    data = build(moved)
    data.setup("fit")
    assert len(data.utterances("train")) == 150 and data.test_sets == ["test"]
    item = data.utterances("dev")[(0, 0)]
    assert item["sources"].shape == (2, *item["wave"].shape) and item["genders"] in ("MF", "FF", "MM")
    assert np.abs(item["sources"].sum(0) - item["wave"]).max() < 1e-6
    section["dynamic"]["p"] = 1.0
    mixed = build(section).utterances("train")[(0, 0)]
    assert mixed["wave"].shape == (32000,)
    with pytest.raises(InputError, match="is not prepared, or not to its end: give the same options once to python -m"):
        build({**section, "prepared": str(tmp_path / "other")})
    with pytest.raises(InputError, match=r"was made with snr_db"):
        build({**section, "mixtures": {**section["mixtures"], "snr_db": [0.0, 1.0]}})


def composed(argv: list[str]) -> dict[str, Any]:
    return config.compose_run(argv, "x")["data"]


def build(section: dict[str, Any]) -> Aishell3Data:
    return Aishell3Data(**{key: value for key, value in section.items() if key != "_target_"})


def test_three_speakers_of_44100_hz_of_the_longest_length(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for path in (small / "train/wav").rglob("*.wav"):
        wave, _ = soundfile.read(path)
        stereo = np.repeat(np.repeat(wave, 3)[:, None], 2, 1) if path.stem.endswith("1") else np.repeat(wave, 3)
        soundfile.write(path, stereo, 48000)
    three = [f"data.mixtures.speakers.{name}=3" for name in SETS]
    with pytest.raises(InputError, match=r"5 of 5 speakers have 10 utterances or more and 9 are wanted: want fewer"):
        prepare.main(options(small, tmp_path / "made", *TWO_EACH, *three, "data.num_speakers=3"))
    folder = tmp_path / "made"
    more = ["data.variant.length=max", "data.sample_rate_hz=8000", "data.mixtures.short=skip", "data.mixtures.min_s=1"]
    numbers = ["data.mixtures.speakers.dev=2", "data.mixtures.speakers.test=2", "data.mixtures.speakers.train=null"]
    copy_speakers(small, 4)
    command = options(small, folder, *TWO_EACH, *numbers, *more, *three, "data.num_speakers=3")
    assert prepare.main(command) == 0
    [told] = re.findall(r"to train on it: python -m audiolab.run (.*)", capsys.readouterr().out)
    task_and_data = assemble.prepare(config.compose_run(shlex.split(told), "x"))  # the model fits
    assert task_and_data[0].num_speakers == 3 and told.endswith(" model.num_speakers=3")
    assert prepare.main([*command, "model.num_speakers=4"]) == 0
    assert re.findall(r"model.num_speakers=\d", capsys.readouterr().out) == ["model.num_speakers=4"]
    row = pd.read_csv(folder / "Libri3Mix/wav8k/max/metadata/mixture_test_mix_clean.csv").iloc[0]
    parts = [steps(folder / row[name]) for name in ("mixture_path", *(f"source_{n}_path" for n in (1, 2, 3)))]
    assert np.array_equal(parts[0], sum(parts[1:])) and {len(part) for part in parts} == {row["length"]}
    definition = pd.read_csv(folder / "metadata/Libri3Mix/libri3mix_test-clean.csv").iloc[0]
    lengths = [soundfile.info(folder / "LibriSpeech" / definition[f"source_{n}_path"]).frames for n in (1, 2, 3)]
    assert max(lengths) == row["length"] and min(lengths) >= 8000
    levels = [10 * np.log10(np.mean(part.astype(float) ** 2)) for part in parts[1:]]
    assert all(-3.05 < levels[0] - level < 3.05 for level in levels[1:])


def copy_speakers(root: Path, num: int) -> None:
    """Add speakers: those that are there, upside down and louder."""
    content, people = (root / "train/content.txt").read_text(), (root / "spk-info.txt").read_text()
    for folder in sorted((root / "train/wav").iterdir())[:num]:
        other = f"SSB9{folder.name[4:]}"
        for path in folder.iterdir():
            wave, rate = soundfile.read(path)
            target = root / "train/wav" / other / f"{other}{path.stem[7:]}.wav"
            target.parent.mkdir(exist_ok=True)
            soundfile.write(target, -1.1 * wave, rate)
            content += f"{target.name}\t北 bei3\n"
        people += f"{other}\tB\tmale\tothers\n"
    (root / "train/content.txt").write_text(content)
    (root / "spk-info.txt").write_text(people)


def test_recordings_that_cannot_be_used_are_refused_or_left_out_and_listed(small: Path, tmp_path: Path):
    copy_speakers(small, 1)
    files = sorted((small / "train/wav").rglob("*.wav"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:3000])
    soundfile.write(files[11], np.zeros(32000), 16000)
    shutil.copyfile(files[22], files[35])
    command = options(small, tmp_path / "made", *TWO_EACH)
    with pytest.raises(InputError, match="^4 of 60 recordings cannot be used, the first: ") as refused:
        prepare.main(command)
    assert "data.on_bad_audio=skip data.max_bad_audio=4" in str(refused.value)
    with pytest.raises(InputError, match="4 of 60 audio files cannot be used and data.max_bad_audio=3 allows 3"):
        prepare.main([*command, "data.on_bad_audio=skip", "data.max_bad_audio=3"])
    assert prepare.main([*command, "data.on_bad_audio=skip", "data.max_bad_audio=4"]) == 0
    bad = pd.read_csv(tmp_path / "made/bad_audio.csv").set_index("file")["reason"]
    assert bad[str(files[0])].startswith("does not exist") and "cut off" in bad[str(files[1])]
    assert bad[str(files[11])] == "is silent (below -70 dBFS)"
    assert len(bad) == 4 and bad[str(files[35])] == f"has the same samples as {files[22]}"
    used = pd.concat(
        [pd.read_csv(path)["origin_path"] for path in (tmp_path / "made/metadata/LibriSpeech").iterdir()]
    ).str.cat()
    assert not any(path.stem in used for path in (files[0], files[1], files[11], files[35]))


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        (
            "train/content.txt",
            "SSB0010001.mp3\t北 bei3",
            r"content.txt, line 2: 'SSB0010001.mp3' where the name of a file",
        ),
        ("train/content.txt", "SSB00100001.wav", r"line 2: 'SSB00100001.wav' where a tab and what is said"),
        ("train/content.txt", "SSB99990001.wav\t北 bei3", "line 2: SSB99990001.wav is of SSB9999, whom spk-info.txt"),
        ("train/content.txt", "SSB00109999.wav\t北 bei3\nSSB00109999.wav\t北 bei3", "line 3: .* is in line 2 too"),
        ("spk-info.txt", "SSB0001\tB\tfemale", "line 2: .* where speaker, age group, gender and accent"),
        ("spk-info.txt", "SSB0001\tB\tother\tnorth", "line 2: 'other' where female or male in the third column"),
        ("spk-info.txt", "SSB0010\tB\tmale\tnorth\nSSB0010\tB\tmale\tnorth", "line 3: SSB0010 is listed a second time"),
    ],
)
def test_a_list_that_is_not_as_published_is_refused_with_file_and_line(
    small: Path, file: str, text: str, expected: str
):
    before = (small / file).read_text()
    (small / file).write_text("\ufeff\r\n" + text + "\r\n" + before.replace("\n", "\r\n"))
    with pytest.raises(InputError, match=expected):
        read_speakers(small, ["train"])
    (small / file).write_text("\ufeff" + before.replace("\n", "\r\n") + "\r\n")  # a BOM and \r\n do no harm
    assert [len(one.recordings) for one in read_speakers(small, ["train"])] == [10] * 5


def test_a_corpus_that_is_not_there_is_named_with_its_source(small: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"data.root=\S+nowhere does not exist: give the folder .* openslr.org/93"):
        read_speakers(tmp_path / "nowhere", ["train"])
    with pytest.raises(InputError, match=r"is not AISHELL-3, it has no test/content.txt: give the folder that holds"):
        read_speakers(small, ["train", "test"])
    (small / "train/content.txt").write_text("\n")
    with pytest.raises(InputError, match="content.txt has no lines"):
        read_speakers(small, ["train"])


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("data.mixtures.subsets=[dev]", "give \\[train\\], \\[test\\] or"),
        ("data.mixtures.speakers.dev=1", "speakers.dev=1 is too few for mixtures of 2 speakers"),
        ("data.mixtures.speakers.dev=null", "only train can be null"),
        ("data.mixtures.num_mixtures.dev=0", "counts from 1 up"),
        ("data.mixtures.snr_db=[3,-3]", "give \\[lowest, highest\\]"),
        ("data.mixtures.num_mixtures.dev=99999", "dev: .* and 99999 are wanted: want fewer"),
        ("data.mixtures.snr_db=3", "data.mixtures.snr_db=3 does not fit .*expected a list \\[...\\], each a number"),
        ("data.mixtures.snr_db=[a,b]", "expected a list"),
        ("data.mixtures.num_mixtures.train=many", "num_mixtures.train='many' does not fit .*: expected a whole number"),
        ("data.num_speakers=two", "data.num_speakers='two' does not fit .*: expected a whole number"),
        ("+data.mixtures.minimum=3", "data.mixtures.minimum is not an option of MixtureOptions"),
        ("data.mixtures.short=drop", "expected join, skip"),
    ],
)
def test_options_that_cannot_work_are_refused(command: list[str], option: str, expected: str):
    with pytest.raises(InputError, match=expected):
        prepare.main([*command, option])


def test_too_small_a_disk_is_said_before_anything_is_written(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(
        InputError, match=r"about \d+\.\d MiB will be written to \S+ and 1.0 MiB are free, which does not"
    ):
        prepare.main(command)
    assert not (tmp_path / "made").exists()


def test_women_and_men_are_balanced_as_far_as_there_are():
    people = [Speaker(f"{n:02d}", "F" if n % 4 else "M", ()) for n in range(40)]
    wanted = {"train": 10, "dev": 4, "test": 6}
    chosen = choose_speakers(people, wanted, 0, True, np.random.default_rng(0))
    assert {name: sum(one.sex == "M" for one in group) for name, group in chosen.items()} == {
        "train": 5,
        "dev": 2,
        "test": 3,
    }
    anyone = choose_speakers(people, {**wanted, "train": None}, 0, False, np.random.default_rng(0))
    names = [one.id for group in anyone.values() for one in group]
    assert len(names) == len(set(names)) == 40
    assert chosen != choose_speakers(people, wanted, 0, True, np.random.default_rng(1))


# The mechanism


class Toy(Preparation):
    name, choose_folder, num_workers = "a toy", "data.toy", 2

    def __init__(self, folder: Path, happens: str = "") -> None:
        self.folder, self.happens, self.options = folder, happens, {"a": {"b": 1}}

    def needed_mb(self) -> float:
        return 0.0

    def make(self, work: Work) -> Facts:
        jobs = {str(number): (str(self.folder), number, self.happens) for number in range(6)}
        return Facts({"all": {"sum": sum(work.do("numbers", jobs, write_number))}}, [])


def write_number(job: tuple[str, int, str]) -> Made:
    folder, number, happens = job
    if number == 4 and happens == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 4 and happens == "refused":
        raise InputError("four is not wanted")
    if number == 4 and happens == "signal":
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    (Path(folder) / str(number)).write_text(str(number))
    return Made(number, [str(number)])


@pytest.mark.parametrize(
    ("happens", "error", "sentence"),
    [
        (
            "killed",
            RunError,
            "a process of the preparation was killed, perhaps because memory ran out: the same command",
        ),
        ("refused", InputError, "four is not wanted"),
        ("signal", Preempted, "stopped by SIGTERM: what is finished stays, the same command goes on"),
    ],
)
def test_what_happens_to_a_process_ends_all_in_a_sentence(
    happens: str, error: type[Exception], sentence: str, tmp_path: Path
):
    started = time.monotonic()
    with pytest.raises(error, match=sentence):
        prepare._make(Toy(tmp_path / "toy", happens))
    assert time.monotonic() - started < 30
    assert Toy(tmp_path / "toy").facts() is None
    assert prepare._make(Toy(tmp_path / "toy")).sets == {"all": {"sum": 15}}


def test_options_that_did_not_fit_may_be_changed(small: Path, tmp_path: Path):
    command = options(small, tmp_path / "made", *TWO_EACH)
    copy_speakers(small, 1)
    many = "data.mixtures.num_mixtures.dev=200"
    for _ in range(2):
        with pytest.raises(InputError, match="dev: .* and 200 are wanted: want fewer"):
            prepare.main([*command, many])
    own, theirs = tmp_path / "made/notes.txt", next((tmp_path / "made/LibriSpeech/train-clean-100").rglob("*-*.flac"))
    own.write_text("of the user")
    assert (
        prepare.main([*command, "data.mixtures.short=skip", "data.mixtures.min_s=1"]) == 0
        and own.is_file()
        and not theirs.exists()
    )
    with pytest.raises(InputError, match="was made with num_mixtures.dev=2 "):
        prepare.main([*command, many])


def test_a_folder_that_is_being_filled_is_left_to_the_other(tmp_path: Path):
    (tmp_path / "toy").mkdir()
    held = os.open(tmp_path / "toy/.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)  # by another open file, as another process
    with pytest.raises(
        InputError, match="in use by another process: wait for it .* another one needs another data.toy="
    ):
        prepare._make(Toy(tmp_path / "toy"))
    os.close(held)


def test_a_folder_of_another_kind_and_a_damaged_one_are_named(tmp_path: Path):
    toy = Toy(tmp_path / "toy")
    toy.run(show_progress=False)
    assert toy.facts() == Facts({"all": {"sum": 15}}, [])
    state = json.loads((toy.folder / "prepared.json").read_text())
    (toy.folder / "prepared.json").write_text(json.dumps({**state, "name": "another"}))
    with pytest.raises(InputError, match="holds another, not a toy: give another folder with data.toy="):
        toy.facts()
    (toy.folder / "prepared.json").write_text("{")
    with pytest.raises(InputError, match=r"prepared.json is damaged: delete \S+toy and prepare it again"):
        toy.facts()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="holds something else than a toy"):
        Toy(tmp_path / "file").facts()


def test_help_needs_no_torch_and_what_is_read_as_it_lies_is_said(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = (
        "import sys, audiolab.prepare as p; p.main([])\n"
        "try: p.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'lightning', 'numpy') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(prepare.__file__).parents[1])}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert shown.count("python -m audiolab.prepare task=<task>") == 2 and shown.splitlines()[-1] == "[]"
    la_mini = shared / "data/la_mini"
    assert prepare.main(["task=asvspoof", "data=asvspoof/la_mini", f"data.root={la_mini}"]) == 0
    assert capsys.readouterr().out == f"nothing to prepare: {la_mini} is read as it lies\n"


def test_the_picture_tells_all_speakers_from_those_heard_and_nothing_is_cut_off():
    said = {name: [Utterance(f"{name}{n}", f"{name}{n}", "F", "", 16000) for n in range(4)] for name in SETS}
    mixtures = {name: [PlannedMixture(tuple(found[:2]), (0.0,))] * 2 for name, found in said.items()}
    facts = {name: [{"snrs_db": [1.0]}] * 2 for name in SETS}
    assert speakers_in(mixtures["dev"]) == {"dev0": 2, "dev1": 2}
    figure = draw_prepared(
        mixtures, facts, {"train": 14, "dev": 2, "test": 3}, 16000, "min", "mixtures of " + 9 * "long "
    )
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "train: 2 mixtures, 2 of 14 speakers",
        "dev: 2 mixtures, 2 speakers",
        "test: 2 mixtures, 2 of 3 speakers",
    ]
    figure.canvas.draw()
    drawn, page = legend.get_window_extent(), figure.bbox
    assert drawn.x0 > page.x0 and drawn.x1 < page.x1 and drawn.y0 >= page.y0
    assert all(float(tick).is_integer() for axes in figure.axes for tick in axes.get_yticks())
