"""Rates, waiting, time left, counters and disk: by known numbers, and in a real run by independent counts."""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import rich
import torch
from test_run import command, options

from audiolab import assemble
from audiolab.config import compose_run
from audiolab.folder import RunFolder
from audiolab.tasks.asvspoof.trials import SpoofingTrials
from audiolab.training import device, rates
from audiolab.training.device import device_warnings, of_all_ranks, read_gpu, resident_mb
from audiolab.training.disk import checkpoint_bytes, disk_warning
from audiolab.training.loading import TimedLoader
from audiolab.training.progress import WIDTH, Bar, fitting_line
from audiolab.training.rates import Tally, wait_advice
from audiolab.training.throughput import Throughput
from audiolab.training.time_left import in_words, time_left_s, work_left

GB = 10**9


def test_rates_are_sums_over_the_processes_and_the_wait_is_that_of_the_slowest():
    tally = Tally()
    for _ in range(3):
        tally.add(Tally(utterances=8, audio_s=24.0, waited_s=0.5, spent_s=2.0, batches=1))
    found = rates.rates([tally, Tally(20, 60.0, 3.0, 6.0, 3)])
    assert found == {"utterances_per_s": 44 / 6, "audio_hours_per_hour": 22.0, "data_wait_percent": 50.0}


@pytest.mark.parametrize(
    ("percent", "left_s", "options", "expected"),
    [
        (19.0, 1e6, ["data.num_workers=4"], None),
        (50.0, 100.0, ["data.num_workers=4"], None),  # half a minute is no trouble
        (50.0, None, ["data.num_workers=4"], None),
        (50.0, 3600.0, ["data.in_memory=true", "data.num_workers=4"], "30 min more: try data.in_memory=true or data.n"),
        (50.0, 3600.0, [], "a faster disk"),
    ],
)
def test_waiting_is_worth_a_sentence_only_where_it_costs(percent: float, left_s, options: list[str], expected):
    advice = wait_advice(percent, 20.0, left_s, options)
    assert advice is None if expected is None else expected in advice


def trainer_at(epoch: int, **more: object) -> SimpleNamespace:
    facts = {"current_epoch": epoch, "max_epochs": 10, "num_training_batches": 50, "max_steps": -1, "global_step": 0}
    facts |= {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "enable_validation": True}
    return SimpleNamespace(**{**facts, **more})


@pytest.mark.parametrize(
    ("trainer", "done", "expected"),
    [
        (trainer_at(0), 0, (500, 10)),
        (trainer_at(0), 20, (480, 10)),
        (trainer_at(9), 50, (0, 0)),
        (trainer_at(3), 50, (300, 6)),  # at the epoch's end, after its validation
        (
            trainer_at(3, check_val_every_n_epoch=4),
            20,
            (330, 2),
        ),  # after the 4th epoch, which is under way, and the 8th
        (trainer_at(4, check_val_every_n_epoch=4), 50, (250, 1)),
        (trainer_at(0, enable_validation=False), 20, (480, 0)),
        (trainer_at(2, max_steps=80, global_step=60, accumulate_grad_batches=2), 20, (40, 1)),
        (trainer_at(0, max_epochs=-1), 0, None),
        (trainer_at(0, max_epochs=None), 0, None),
        (trainer_at(0, num_training_batches=float("inf")), 3, None),
    ],
)
def test_the_work_that_is_left(trainer: SimpleNamespace, done: int, expected: tuple[int, int] | None):
    assert work_left(trainer, done) == expected


def test_the_time_left_is_robust_against_one_slow_epoch():
    assert time_left_s([0.1, 0.1, 5.0, 0.1, 0.1], [2.0], 100, 3) == pytest.approx(16.0)
    assert time_left_s([], [2.0], 100, 3) is None
    assert in_words(119.0) == "2 min"


def test_right_after_a_resume_the_time_left_is_known(tmp_path: Path):
    before = throughput(tmp_path)
    before.batch_s.extend([0.5] * 7)
    before.validation_s.append(10.0)
    after = throughput(tmp_path)
    assert after.left_s(trainer_at(3)) is None
    after.load_state_dict(before.state_dict())
    assert after.left_s(trainer_at(3)) == pytest.approx(350 * 0.5 + 7 * 10)
    assert before.state_dict() == {"batch_s": [0.5] * 5, "validation_s": [10.0]}  # plain numbers, the latest five


def throughput(folder: Path) -> Throughput:
    return Throughput(folder / "checkpoints", 5, 20, 30, 95, 4)


def test_a_filling_disk_is_said_while_there_is_time():
    steady = [50 * GB] * 6
    assert disk_warning(steady, 2 * GB, 100, 4) is None
    first_epochs = [50 * GB, 44 * GB, 42 * GB, 40 * GB]  # best, last and three kept, which then replace one another
    assert disk_warning([*first_epochs, 40 * GB], 2 * GB, 100, 4) is None
    growing = [50 * GB, 44 * GB, 41 * GB, 38 * GB, 35 * GB]
    assert disk_warning(growing, 2 * GB, 9, 4) is None  # 27 GB are left for 9 epochs of 3 GB
    sentence = disk_warning(growing, 2 * GB, 10, 4)
    assert sentence and "loses 3.0 GB an epoch and has 35.0 GB left: it will be full in about 11 epochs" in sentence
    assert disk_warning([8 * GB], 2 * GB, None, 4) is None
    assert "8.0 GB left, and a checkpoint of this run takes 2.1 GB" in disk_warning([8 * GB], 21 * GB // 10, None, 4)
    assert disk_warning([8 * GB], 0, None, 4) is None  # nothing is known yet


def test_the_size_of_a_checkpoint_is_that_of_the_largest(tmp_path: Path):
    assert checkpoint_bytes(tmp_path / "none") == 0
    for name, size in (("best.ckpt", 10), ("last.ckpt", 30), ("notes.txt", 99)):
        (tmp_path / name).write_bytes(bytes(size))
    assert checkpoint_bytes(tmp_path) == 30


class FakeNvml:
    """The counters of a GPU that this machine does not have."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_TEMPERATURE_GPU = 0
    utilisation, reasons, fails = 83, 0x40, ()

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-1234"
        return "handle"

    def _read(self, name: str, value: object) -> object:
        if name in self.fails:
            raise self.NVMLError(name)
        return value

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> object:
        return self._read("utilisation", SimpleNamespace(gpu=self.utilisation))

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> object:
        return self._read("temperature", 71)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> object:
        return self._read("power", 312_500)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> object:
        return self._read("reasons", self.reasons)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    nvml = FakeNvml()
    monkeypatch.setattr(device, "_nvml", lambda: nvml)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    properties = SimpleNamespace(total_memory=4 * 2**30, uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return nvml


def test_the_counters_of_a_gpu_are_read_as_far_as_it_tells_them(a_gpu: FakeNvml):
    memory = {"gpu_memory_allocated_mb": 2048.0, "gpu_memory_peak_mb": 3072.0, "gpu_memory_total_mb": 4096.0}
    whole = {
        "gpu_utilisation_percent": 83.0,
        "gpu_temperature_c": 71.0,
        "gpu_power_w": 312.5,
        "gpu_slowed_by_heat": 1.0,
    }
    assert read_gpu(torch.device("cuda", 0)) == memory | whole
    a_gpu.fails = ("utilisation", "power")
    del whole["gpu_utilisation_percent"], whole["gpu_power_w"]
    assert read_gpu(torch.device("cuda", 0)) == memory | whole


def test_without_nvidias_library_that_is_said_once(
    a_gpu: FakeNvml, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    device._nvml.cache_clear()
    assert device._nvml() is None and device._nvml() is None
    device._nvml.cache_clear()
    assert [record.getMessage().count("install audiolab[gpu]") for record in caplog.records] == [1]


def test_a_gpu_in_trouble_is_said_by_cause(a_gpu: FakeNvml):
    counters = read_gpu(torch.device("cuda", 0))
    assert list(device_warnings(counters, None, 30, 95)) == ["heat"]
    assert "71 °C" in device_warnings(counters, None, 30, 95)["heat"]
    a_gpu.reasons = 0x4  # the power cap, which is normal
    counters = read_gpu(torch.device("cuda", 0))
    assert device_warnings(counters, 31.0, 30, 75) == {}
    assert set(device_warnings(counters, 12.0, 30, 74)) == {"idle", "memory"}
    other = counters | {"gpu_utilisation_percent": 5.0, "gpu_temperature_c": 90.0}
    both = of_all_ranks([counters, other])
    assert (both["gpu_utilisation_percent"], both["gpu_temperature_c"]) == (5.0, 90.0)


def test_an_idle_gpu_is_said_once_and_only_after_minutes(
    a_gpu: FakeNvml, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    callback, counters = throughput(tmp_path), {"gpu_utilisation_percent": 10.0}
    for second in range(0, 590, 10):
        callback._warn_of_device(counters, float(second))
    assert not caplog.records
    for second in range(590, 1400, 10):
        callback._warn_of_device(counters, float(second))
    assert [record.getMessage()[:29] for record in caplog.records] == ["the GPU was busy 10 % of the "]


def test_this_process_has_a_size_and_uses_the_processor():
    clock = device.ProcessClock()
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert 0 < clock.percent() < 250
    before, block = resident_mb(), bytearray(64 * 2**20)
    assert resident_mb() - before > 50 and len(block)


class SlowItems(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        time.sleep(0.01)
        return index


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_counts_the_waiting_and_not_the_work(num_workers: int):
    loader = TimedLoader(SlowItems(), batch_size=2, num_workers=num_workers)
    got = []
    for batch in loader:
        got += batch.tolist()
        time.sleep(0.15)  # the worker has the next one ready by then
    assert got == list(range(8))
    if num_workers == 0:
        assert 0.08 <= loader.waited_s < 0.5
    first = loader.waited_s
    assert len(list(loader)) == 4
    assert loader.waited_s >= first + (0.08 if num_workers == 0 else 0.02)


def test_a_line_keeps_what_matters_within_the_terminal():
    parts = ["epoch 100/100", "loss 0.0812", "dev EER 12.50 %", "other_dev EER 11.11 %", "123.4 s"]
    line = fitting_line(parts, ["310 utt/s", "4 min left"])
    assert line.endswith("123.4 s") and len("  ".join(parts)) > WIDTH - 12
    line = fitting_line([*parts[:3], parts[4]], ["310 utt/s", "4 min left"])
    assert line.endswith("310 utt/s  4 min left") and len(line) <= WIDTH
    assert fitting_line(["x" * 60], ["310 utt/s", "4 min left"]).endswith("x  4 min left")


class Independent(L.Callback):
    """Counts and times training by itself."""

    def __init__(self) -> None:
        self.utterances: list[int] = []
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: object) -> None:
        self.utterances.append(0)
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: object, outputs: object, batch: dict, *_: object) -> None:
        self.utterances[-1] += batch["wave"].shape[0]
        if trainer.is_last_batch:
            self.seconds.append(time.perf_counter() - self.began)


def rows_of(run: RunFolder) -> list[dict[str, float]]:
    with (run.path / "metrics.csv").open() as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def test_a_real_run_logs_what_an_independent_count_finds(
    tiny_la: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    read, lag_s = SpoofingTrials.read, 0.02

    def slowly(self: SpoofingTrials, *arguments: object) -> dict:
        time.sleep(lag_s)
        return read(self, *arguments)

    monkeypatch.setattr(SpoofingTrials, "read", slowly)
    monkeypatch.setattr(rates, "WORTH_SAYING_S", 0.0)
    more = ["trainer.max_epochs=3", "trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=3"]
    more += ["callbacks.throughput.line_every_minutes=1e-9", "data.in_memory=false"]
    config = compose_run(options(tiny_la, tmp_path, *more), "run")
    run = RunFolder.create(config)
    data, task = assemble.prepare(config)
    trainer, independent = assemble.build_trainer(config, run.path, run, training=True), Independent()
    trainer.callbacks.append(independent)
    trainer.fit(task, data)

    rows = rows_of(run)
    epochs = [row for row in rows if "train/loss_epoch" in row]
    assert independent.utterances == [24, 24, 24]
    for row, utterances, seconds in zip(epochs, independent.utterances, independent.seconds, strict=True):
        assert row["throughput/utterances_per_s_epoch"] == pytest.approx(utterances / seconds, rel=0.05)
        assert row["throughput/audio_hours_per_hour_epoch"] / row["throughput/utterances_per_s_epoch"] == pytest.approx(
            8000 / 16000, rel=1e-5
        )
        slept = 100 * utterances * lag_s / seconds
        assert slept - 1 < row["throughput/data_wait_percent_epoch"] < 100
    windows = [row for row in rows if "throughput/utterances_per_s" in row]
    assert [row["step"] for row in windows] == [2, 5, 8]  # every third optimiser step, and no other
    assert all(row["device/memory_mb"] > 50 and row["device/cpu_percent"] >= 0 for row in windows)

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert all(len(line) <= WIDTH for line in lines)
    ends = [line for line in lines if "  dev EER " in line]
    assert len(ends) == 3 and all(" utt/s" in line for line in ends)
    assert [line.endswith(" left") for line in ends] == [True, True, False]
    within = [line for line in lines if "batch " in line]
    assert len(within) == 3 and "batch 6/6" in within[0] and "loss " in within[0] and "left" in within[0]
    advice = [record.getMessage() for record in caplog.records if "waits for its data" in record.getMessage()]
    assert len(advice) == 1 and "data.in_memory=true" in advice[0]

    state = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    kept = next(value for name, value in state.items() if "Throughput" in name)
    assert len(kept["batch_s"]) == len(kept["validation_s"]) == 3
    bar = Bar()
    trainer.callback_metrics["train/loss_epoch"] = torch.tensor(1.0)
    assert set(bar.get_metrics(trainer, task)) == {"loss"}  # nothing is left


def test_two_processes_are_counted_together(tiny_la: Path, tmp_path: Path):
    more = ["augment=asvspoof/none", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    more += ["trainer.check_val_every_n_epoch=2", "data.batch_size=2", "callbacks.throughput.line_every_minutes=1e-9"]
    done = command("audiolab.run", *options(tiny_la, tmp_path, *more, "name=two"))
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("epoch 1/2  loss") and " s  " in line)
    seconds = float(line.split(" s  ")[0].split("  ")[-1])
    rows = rows_of(RunFolder.open(tmp_path / "out/asvspoof/two"))
    first = next(row for row in rows if "train/loss_epoch" in row)
    rate = first["throughput/utterances_per_s_epoch"]
    assert 0.7 * 24 < rate * seconds < 1.3 * 24 + 0.06 * rate  # of both; the line is rounded
    assert first["throughput/audio_hours_per_hour_epoch"] / rate == pytest.approx(0.5, rel=1e-5)
    assert all(0 <= row["throughput/data_wait_percent"] <= 100 for row in rows if "throughput/data_wait_percent" in row)
    assert [row["step"] for row in rows if "throughput/utterances_per_s" in row] == list(range(12))


def test_the_bar_is_one_line_of_a_narrow_terminal_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    monkeypatch.setattr(rich, "_console", None)  # Lightning sets that of the whole process
    bar = Bar(console_kwargs={"file": screen, "width": 80, "force_terminal": True, "color_system": None})
    metrics = {"train/loss_step": 0.1754, "train/loss_epoch": 0.459, "health/rest/grad_norm": 1.0}
    facts = {
        "training": True,
        "sanity_checking": False,
        "progress_bar_metrics": metrics,
        "loggers": [],
        "callbacks": [],
    }
    trainer = trainer_at(2, **facts, state=SimpleNamespace(fn="fit"), progress_bar_callback=bar)
    bar._trainer = trainer
    bar._init_progress(trainer)
    bar.on_train_epoch_start(trainer, None)
    bar.on_train_batch_end(trainer, None, None, None, 11)
    bar.refresh(hard=True)
    line = screen.getvalue().rpartition("epoch")[2]
    assert line.startswith(" 3/10") and "12/50" in line and line.rstrip().endswith("loss: 0.175")
    assert "\n" not in line
    bar._stop_progress()
    assert screen.getvalue().endswith("\x1b[1A\x1b[2K")
