"""Whole runs of the task on a few real mixtures: train, see, hear, judge again, go on where a run stopped."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from separation_corpora import open_data
from test_resume import ended, last_step, losses, start, wait_for
from test_run import weights

from audiolab import assemble, config, resume, run, test
from audiolab.audio.io import read_audio
from audiolab.errors import InputError
from audiolab.folder import RunFolder
from audiolab.reporting.scores import read_scores
from audiolab.results import print_headline, print_intervals, report
from audiolab.tasks.separation.module import SpeechSeparation
from audiolab.training.items import collate

SMALL = [
    "model.num_filters=32",
    "model.bottleneck=16",
    "model.skip=16",
    "model.hidden=32",
    "model.blocks=2",
    "model.repeats=1",
]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


@pytest.fixture(scope="module")
def tiny_mix(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """A list of 8 real mixtures to train on, 4 of dev and 5 of test, whose talkers are others."""
    mix_mini, rows = shared / "data/mix_mini", []
    for part, sets in (("dev", ["train"] * 8 + ["dev"] * 4), ("test", ["test"] * 5)):
        lists = (
            f"Libri2Mix/wav16k/min/metadata/mixture_{part}_mix_clean.csv",
            f"metadata/Libri2Mix/libri2mix_{part}-clean_info.csv",
        )
        files, talkers = (pd.read_csv(mix_mini / name, nrows=len(sets), dtype=str) for name in lists)
        for column in ("mixture_path", "source_1_path", "source_2_path"):
            files[column] = [str(mix_mini / path) for path in files[column]]
        rows.append(files.drop(columns="length").merge(talkers).assign(set=sets))
    path = tmp_path_factory.mktemp("tiny_mix") / "list.csv"
    pd.concat(rows).to_csv(path, index=False)
    return path


def options(root: Path, outputs: Path, *more: str) -> list[str]:
    return [
        "task=separation",
        "data=separation/csv",
        f"data.root={root}",
        "trainer=cpu",
        "trainer.log_every_n_steps=1",
        "trainer.max_epochs=2",
        "data.crop_samples=8000",
        "data.max_length_s=1.0",
        "data.num_workers=0",
        f"outputs={outputs}",
        *SMALL,
        *more,
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_mix: Path) -> Path:
    """A finished run of two epochs with examples in training too; read only."""
    outputs = tmp_path_factory.mktemp("finished")
    more = ["logger=[csv,tensorboard,wandb]", "module.examples_every_n_epochs=2", "module.num_examples=2"]
    assert run.main(options(tiny_mix, outputs, "name=done", *more)) == 0
    return outputs / "separation/done"


def sounds(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_audio(path)[0] for path in sorted(folder.glob("*.wav"))}


def test_a_run_measures_everything_and_training_only_what_is_quick(finished: Path):
    results = json.loads((finished / "metrics.json").read_text())
    for set_name in ("dev", "test"):
        for metric in SpeechSeparation.headline:
            assert (
                results[set_name][f"{metric}_low"] <= results[set_name][metric] <= results[set_name][f"{metric}_high"]
            )
        assert results[set_name]["silent_references"] == 0
        for plot in ("histogram", "scatter", "snr", "worst", "best"):
            assert (finished / f"plots/{set_name}_{plot}.png").read_bytes().startswith(b"\x89PNG")
    assert any(name.startswith("genders/MF/") for name in results["test"])
    with (finished / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["train/si_sdri"]) for row in rows].count(True) == 2
    assert [bool(row["dev/si_sdri"]) for row in rows].count(True) == 3
    assert [bool(row["dev/sdri"]) for row in rows].count(True) == 1  # of the final evaluation


def test_saved_scores_give_the_reported_numbers_without_model_or_audio(finished: Path):
    reported = json.loads((finished / "metrics.json").read_text())
    for set_name in ("dev", "test"):
        assert SpeechSeparation.metrics(read_scores(finished / f"scores/{set_name}.csv")) == reported[set_name]


def test_examples_are_what_the_table_says_to_the_ear(finished: Path):
    """Mixture = sum of the references, and the files give the SI-SDR of their row, within 16 bits."""
    from audiolab.metrics.separation import si_sdr

    table = read_scores(finished / "scores/test.csv").set_index("id")
    heard = sounds(finished / "audio/test")
    names = {"worst": table["si_sdri"].idxmin(), "best": table["si_sdri"].idxmax()}
    assert {name.rpartition("_")[0] for name in heard} == {f"{role}_{name}" for role, name in names.items()}
    for role, name in names.items():
        mix, *of = (
            torch.from_numpy(heard[f"{role}_{name}_{kind}"]) for kind in ("mix", "ref1", "ref2", "spk1", "spk2")
        )
        assert torch.allclose(of[0] + of[1], mix, atol=3 / 2**15)
        for number in (1, 2):
            found = si_sdr(of[number + 1].double(), of[number - 1].double()).item()
            assert found == pytest.approx(table.loc[name, f"si_sdr_{number}"], abs=0.1)
    assert len(sounds(finished / "audio/dev/epoch_0002")) == 10 and not (finished / "audio/dev/epoch_0001").exists()
    assert {path.name for path in (finished / "plots").glob("dev_epoch*")} == {
        f"dev_epoch_0002_example_{number}.png" for number in (1, 2)
    }


def test_loggers_can_play_the_examples(finished: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(finished / "tensorboard")).Reload().Tags()
    assert {"dev/example_1/mix", "test/worst/spk1", "test/best/ref2"} <= set(tags["audio"])
    assert {"test/worst", "test/histogram"} <= set(tags["images"])
    media = next((finished / "wandb").glob("offline-run-*")) / "files/media"
    played = [path.relative_to(media).as_posix() for path in media.rglob("*.wav")]
    assert len(played) == 30  # two of dev in training, two each of dev and test after it, five sounds each
    assert any(path.startswith("audio/test/worst/mix_") for path in played)
    wave, rate = read_audio(media / next(path for path in played if path.startswith("audio/test/worst/mix_")))
    assert rate == 16000 and len(wave) == 16000 and 0.01 < np.abs(wave).max() < 1


def test_a_test_tells_intervals_beside_the_plain_lines(finished: Path, capsys: pytest.CaptureFixture[str]):
    results = json.loads((finished / "metrics.json").read_text())
    print_intervals(results, SpeechSeparation)
    print_headline({"test": results["test"]}, SpeechSeparation)
    shown = capsys.readouterr().out
    value, low, high = (results["test"][f"si_sdri{end}"] for end in ("", "_low", "_high"))
    assert f"{value:.2f} [{low:.2f}, {high:.2f}]" in shown and f"\nSI-SDRi {value:.2f} dB\n" in shown
    print_intervals({"test": {"si_sdri": 3.0}}, SpeechSeparation)
    assert capsys.readouterr().out == ""


def test_a_trainer_for_another_machine_names_how_to_look_at_the_run_on_this_one(tiny_mix: Path, tmp_path: Path):
    with pytest.raises(InputError, match="to look at the run on this one, add trainer=cpu plan=true"):
        run.main(options(tiny_mix, tmp_path, "plan=true", "trainer.accelerator=tpu"))


def test_the_next_step_that_a_run_names_is_the_tasks(finished: Path, capsys: pytest.CaptureFixture[str]):
    report(RunFolder.open(finished))
    assert f"audiolab.predict {finished} my.wav          write a WAV file for each talker" in capsys.readouterr().out


def test_a_test_repeats_the_numbers_and_refuses_mixtures_of_other_talkers_or_rates(
    finished: Path, tiny_mix: Path, shared: Path, capsys: pytest.CaptureFixture[str]
):
    reported = json.loads((finished / "metrics.json").read_text())["test"]
    test.main([str(finished)])
    assert f"SI-SDRi {reported['si_sdri']:.2f} dB" in capsys.readouterr().out.splitlines()
    test.main([str(finished), "--set", "dev"])
    [folder] = (finished / "tests").glob("dev-*")
    assert (
        f"scores and plots: {folder}" in capsys.readouterr().out.splitlines() and (folder / "scores/dev.csv").is_file()
    )
    three = ["data=separation/mix_mini3", f"data.root={shared / 'data/mix_mini'}"]
    with pytest.raises(InputError, match="data.num_speakers=3 but the model separates 2: set model.num_speakers=3"):
        test.test(str(finished), three)
    with pytest.raises(InputError, match="data.sample_rate_hz=8000 but the model works at 16000 Hz"):
        test.test(str(finished), ["data.sample_rate_hz=8000"])


def test_model_and_data_of_a_run_have_to_agree_before_anything_is_written(tiny_mix: Path, tmp_path: Path):
    for option, expected in (
        ("model.num_speakers=3", "data.num_speakers=2 but the model separates 3"),
        ("module.sample_rate_hz=8000", "data.sample_rate_hz=16000 but the model works at 8000 Hz"),
        ("monitor.metric=dev/sdri", "dev/sdri is never measured"),
        ("module.num_examples=-1", "module.num_examples=-1"),
    ):
        with pytest.raises(InputError, match=expected):
            run.main(options(tiny_mix, tmp_path / "out", option))
    assert not (tmp_path / "out").exists()


def test_plan_shows_work_reach_and_latency(tiny_mix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    causal = ["model=separation/conv_tasnet_causal", "model.blocks=2", "model.repeats=1", "model.hidden=32"]
    assert run.main([*options(tiny_mix, tmp_path / "out"), *causal, "plan=true"]) == 0
    shown = capsys.readouterr().out
    assert "multiply-adds a second of audio, 10^9" in shown and "receptive field without norms, s" in shown
    assert [line.split()[-2] for line in shown.splitlines() if "latency of a stream, ms" in line] == ["1.0"]
    assert not (tmp_path / "out").exists()


def test_mixit_wants_an_estimate_for_each_talker_of_two_mixtures(caplog: pytest.LogCaptureFixture):
    for num_speakers, talkers, told in ((2, 2, "set model.num_speakers=4"), (5, 3, "hold two"), (4, 2, "")):
        chosen = [*SMALL, "loss=separation/mixit", f"model.num_speakers={num_speakers}"]
        task = assemble.build_task(config.compose_run(["task=separation", *chosen], "x"))
        caplog.clear()
        task.check_data(SimpleNamespace(num_speakers=talkers, sample_rate_hz=task.sample_rate_hz))
        assert told in caplog.text and bool(told) == bool(caplog.text)
    with pytest.raises(
        InputError, match="data.num_speakers=5 but the model gives 4 estimates: set model.num_speakers=5"
    ):
        task.check_data(SimpleNamespace(num_speakers=5, sample_rate_hz=task.sample_rate_hz))


def test_one_batch_of_real_speech_can_be_learnt_by_heart(shared: Path):
    data = open_data("mix_mini", f"root={shared / 'data/mix_mini'}", "crop_samples=8000", "overfit=2", seed=1)
    data.setup("fit")
    items = data.utterances("train")
    batch = collate([items[(0, index)] for index in range(2)])
    composed = config.compose_run(["task=separation", *SMALL, "model.num_filters=64", "model.hidden=64"], "x")
    task = assemble.build_task(composed).train()
    optimizer = torch.optim.Adam(task.parameters(), 5e-3)
    for _ in range(100):
        loss, parts = task.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 5.0)
        optimizer.step()
    assert parts["si_sdri"] > 6
    numbers = task.eval().rows(batch)
    assert np.mean([row["si_sdri"] for row in numbers]) > 6
    assert all({"sdri", "genders", "speakers", "overlap", "snr_db"} <= set(row) for row in numbers)


def test_two_processes_give_the_numbers_and_the_examples_of_one(tiny_mix: Path, tmp_path: Path):
    """Five test mixtures on two processes: one has three of them, the examples may be the other's."""
    more = ["trainer.max_epochs=1", "module.num_examples=1", "data.batch_size=2", "data.dynamic.p=1.0"]
    assert run.main(options(tiny_mix, tmp_path, "name=two", *more, *TWO)) == 0
    folder = tmp_path / "separation/two"
    alone = test.test(str(folder), ["trainer=cpu"], sets=["dev", "test"], out=str(tmp_path / "one"))
    assert alone == json.loads((folder / "metrics.json").read_text())
    for set_name in ("dev", "test"):
        names = [f"scores/{set_name}.csv", *(p.relative_to(folder) for p in (folder / f"audio/{set_name}").iterdir())]
        assert len(names) == 6
        for name in names:
            assert (folder / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_a_run_with_dynamic_mixing_that_is_killed_goes_on_to_the_same_weights(tiny_mix: Path, tmp_path: Path):
    argv = options(
        tiny_mix,
        tmp_path,
        "data.dynamic.p=0.8",
        "data.dynamic.speed=[0.9,1.1]",
        "trainer.accumulate_grad_batches=2",
        "data.batch_size=1",
        "callbacks.checkpoints.every_n_steps=1",
        "module.num_examples=0",
    )
    whole, cut = tmp_path / "separation/whole", tmp_path / "separation/cut"
    assert run.main([*argv, "name=whole"]) == 0
    process = start("audiolab.run", *argv, "name=cut", "data.num_workers=1")
    wait_for(process, lambda: last_step(cut) >= 5)
    process.send_signal(signal.SIGKILL)
    ended(process)
    assert not (cut / "metrics.json").exists()
    resume.main([str(cut)])
    expected, found = weights(whole), weights(cut)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert (cut / "metrics.json").read_text() == (whole / "metrics.json").read_text()
    assert {step: losses(whole)[step] for step in losses(cut)} == losses(cut)
    assert RunFolder.open(cut).results == json.loads((whole / "metrics.json").read_text())
