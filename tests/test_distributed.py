"""Several processes of one run: the numbers of one process, one folder, and one sentence when a process dies."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import distributed_workers as workers
import pytest
import torch
from conftest_corpus import PROTOCOLS
from test_feature_cache import FROZEN
from test_run import EVERYTHING, ROOT, command, options, weights

from audiolab import cluster, processes, resume, run, test
from audiolab.errors import InputError, OutOfMemory, RunError
from audiolab.folder import RunFolder
from audiolab.launch import num_processes
from audiolab.processes import on_processes

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


@pytest.fixture(autouse=True)
def torchruns_port_is_taken() -> Iterator[None]:
    """Another program listens on 29500, torch's default port, during all of these tests."""
    with contextlib.closing(socket.socket()) as taken:
        with contextlib.suppress(OSError):  # in use already: taken all the same
            taken.bind(("0.0.0.0", 29500))
            taken.listen()
        yield


def keep_trials(root: Path, set_name: str, wanted: int) -> None:
    """Keep so many trials of a set, bona fide and spoofed ones in turn."""
    path = root / f"LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.{PROTOCOLS[set_name]}.txt"
    lines = path.read_text().splitlines()
    bonafide, spoof = ([line for line in lines if line.endswith(f" {label}")] for label in ("bonafide", "spoof"))
    kept = [line for pair in zip(bonafide, spoof, strict=False) for line in pair][:wanted]
    path.write_text("".join(f"{line}\n" for line in kept))


def test_every_number_of_an_evaluation_on_several_processes_is_that_of_one(
    tiny_la: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """Four processes, five trials of one set and three of the other: one process has none of those."""
    keep_trials(tiny_la, "dev", 3)
    keep_trials(tiny_la, "eval", 5)
    argv = options(tiny_la, tmp_path, *TWO, "trainer.devices=4", "data.batch_size=2", "data.eval_batch_size=1")
    argv += ["data.asv_scores=none"]  # theirs have more attacks than these few trials
    assert run.main([*argv, *EVERYTHING, "name=four", "logger=[csv,wandb]"]) == 0
    shown = capfd.readouterr()
    assert [path.name for path in (tmp_path / "out/asvspoof").iterdir()] == ["four"]
    folder = tmp_path / "out/asvspoof/four"
    assert shown.out.count("epoch 2/2") == 1 and shown.out.count("eval by attack") == 1
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    assert len(list(csv.DictReader((folder / "metrics.csv").open()))) > 4
    log = (folder / "run.log").read_text()
    assert log.count("epoch 2/2") == 1 and "sync_dist" not in log
    reported = json.loads((folder / "metrics.json").read_text())
    assert (reported["dev"]["num_bonafide"], reported["eval"]["num_bonafide"]) == (2, 3)
    alone = test.test(str(folder), ["trainer=cpu"], sets=["dev", "eval"], out=str(tmp_path / "one"))
    again = test.test(str(folder), TWO, sets=["dev", "eval"], out=str(tmp_path / "two"))
    assert alone == again
    assert alone["eval"] == reported["eval"]
    assert {name: value for name, value in reported["dev"].items() if "calibrated" not in name} == alone["dev"]
    for set_name in ("dev", "eval"):
        tables = [(place / "scores" / f"{set_name}.csv").read_bytes() for place in (folder, tmp_path / "one")]
        assert tables == [(tmp_path / "two/scores" / f"{set_name}.csv").read_bytes()] * 2


def test_torchrun_and_a_sweep_at_the_same_time_each_keep_to_their_folders(tiny_la: Path, tmp_path: Path):
    argv = options(tiny_la, tmp_path, "trainer.max_epochs=1", "data.batch_size=2", "logger=[csv,wandb]")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "audiolab.run"]
    commands = [
        [*torchrun, *argv, *TWO, "name=torchrun"],
        ["audiolab.run", "-m", *argv, *TWO, "trainer.devices=1,2", "name=sweep"],
    ]
    environment = {**os.environ, "COLUMNS": "200", "MASTER_PORT": "29500"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *words], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=-1
        )
        for words in commands
    ]
    (by_torchrun, errors), (by_sweep, sweep_errors) = (process.communicate(timeout=300) for process in started)
    assert [process.returncode for process in started] == [0, 0], errors + sweep_errors
    out = tmp_path / "out/asvspoof"
    assert {path.name for path in out.iterdir()} == {"torchrun", "sweep"}
    jobs = {"trainer.devices-1", "trainer.devices-2"}
    assert {path.name for path in (out / "sweep").iterdir() if (path / "config.yaml").exists()} == jobs
    assert by_torchrun.count("eval by attack") == 1 and by_torchrun.count("epoch 1/1") == 1
    assert by_sweep.count("epoch 1/1") == 2 and by_sweep.count("every metric of every job") == 1
    for folder in (out / "torchrun", *(out / "sweep" / job for job in jobs)):
        assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
        assert len(list(folder.glob("metrics*.csv"))) == 1
        assert len(RunFolder.open(folder).results) == 2
    assert audible(out / "torchrun") == audible(out / "sweep/trainer.devices-2")


def audible(folder: Path) -> dict[str, list[float]]:
    """The final weights of a run as plain numbers."""
    return {name: tensor.flatten().tolist() for name, tensor in weights(folder).items()}


def epoch_means(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "metrics.csv").open(newline="") as file:
        names = ("step", "epoch", "train/loss_epoch", "train/accuracy")
        return [tuple(row[name] for name in names) for row in csv.DictReader(file) if row["train/loss_epoch"]]


SMOOTH = [  # no batch norm, no dropout, a loss that is a mean over utterances
    "model=asvspoof/wavlm_mhfa_tiny",
    "model.dropout=0.0",
    "model.front_end.mask_time_prob=0.0",
    "loss=asvspoof/focal",
    *(
        f"+model.front_end.config.{name}=0.0"
        for name in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
    ),
]


def test_the_step_of_two_processes_is_that_of_one_with_twice_the_batch(tiny_la: Path, tmp_path: Path):
    """Compared by Adam's mean gradient after one step: later ones blow up what is noise about a gradient of zero."""
    argv = options(tiny_la, tmp_path, *SMOOTH, "trainer.max_epochs=1")
    assert run.main([*argv, "data.batch_size=4", "trainer.limit_train_batches=1", "name=one"]) == 0
    two = ["data.batch_size=1", "trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=2", "name=two"]
    assert run.main([*argv, *TWO, *two]) == 0
    gradients = []
    for name in ("one", "two"):
        state = torch.load(tmp_path / f"out/asvspoof/{name}/checkpoints/last.ckpt", weights_only=True)
        moments = state["optimizer_states"][0]["state"].values()
        gradients.append(torch.cat([moment["exp_avg"].flatten() for moment in moments]))
    assert gradients[0].abs().max() > 1e-4
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[0].abs().max()
    one, two = (epoch_means(tmp_path / f"out/asvspoof/{name}") for name in ("one", "two"))
    assert [float(cell) for cell in two[0]] == pytest.approx([float(cell) for cell in one[0]], rel=1e-5)


def test_unreadable_files_of_all_processes_are_counted_and_listed_once_and_stop_nobody(
    tiny_la: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """With one utterance a batch an unreadable one would leave its process with nothing, and the other waiting."""
    victims = []
    for set_name, numbers in (("train", (2, 3, 9)), ("dev", (4, 5))):
        files = sorted((tiny_la / f"LA/ASVspoof2019_LA_{set_name}/flac").iterdir())
        victims += [files[number] for number in numbers]
    for path in victims:
        path.write_bytes(path.read_bytes()[:2000])
    argv = options(tiny_la, tmp_path, *TWO, "data.batch_size=1", "data.on_bad_audio=skip", "trainer.max_epochs=1")
    assert run.main([*argv, "data.max_bad_audio=5", "name=skip"]) == 0
    listed = list(csv.DictReader((tmp_path / "out/asvspoof/skip/bad_audio.csv").open()))
    assert sorted(row["file"] for row in listed) == sorted(str(path) for path in victims)
    results = RunFolder.open(tmp_path / "out/asvspoof/skip").results
    assert results["dev"]["num_skipped"] == 2
    assert capfd.readouterr().err.count("audiolab: skipped") == 5
    with pytest.raises(InputError, match=r"5 of 56 audio files cannot be used and data.max_bad_audio=4 allows 4"):
        run.main([*argv, "data.max_bad_audio=4", "name=cap"])


def test_two_processes_fill_and_use_one_feature_cache(tiny_la: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    cache = tmp_path / "cache"
    argv = [*FROZEN, f"data.root={tiny_la}", f"outputs={tmp_path / 'out'}", f"data.feature_cache={cache}", *TWO]
    assert run.main([*argv, "trainer.max_epochs=1", "data.batch_size=2", "name=filled"]) == 0
    shown = capfd.readouterr().out
    assert [shown.count(f"{number} utterances of {name}") for number, name in ((24, "train"), (16, "eval"))] == [1, 1]
    assert len(list(cache.rglob("*.npy"))) == 24 + 16 + 16
    assert not list(cache.rglob("*.tmp"))
    results = RunFolder.open(tmp_path / "out/asvspoof/filled").results
    assert test.test(str(tmp_path / "out/asvspoof/filled"), ["trainer=cpu"])["eval"]["eer"] == results["eval"]["eer"]
    assert "feature cache" not in capfd.readouterr().out


def test_processes_know_who_they_are_and_the_first_one_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    assert on_processes(workers.answer, 2, str(tmp_path)) == (0, 2)
    assert [(tmp_path / f"{rank}.txt").read_text().split()[1:] for rank in (0, 1)] == [["0", "2"], ["1", "2"]]
    assert "OMP_NUM_THREADS" not in os.environ and "RANK" not in os.environ
    assert {number: signal.getsignal(number) for number in before} == before


def test_the_process_that_is_done_first_waits_for_the_others():
    assert on_processes(workers.late_and_early, 2) == 2


@pytest.mark.parametrize(
    ("how", "kind", "expected"),
    [
        ("input", InputError, "train.txt, line 3: no label"),
        ("memory", OutOfMemory, "the device has no memory left"),
        ("bug", RunError, r"process 1 of 2 .* failed with KeyError: 'fold'; its trace is above; to go on: X"),
        ("exit", RunError, "process 1 of 2 .* ended with exit code 3 without a word; to go on: X"),
        ("SIGKILL", RunError, "process 1 of 2 .* was killed by SIGKILL: most likely .* out of memory; to go on: X"),
        ("SIGSEGV", RunError, "process 1 of 2 .* was killed by SIGSEGV; to go on: X"),
    ],
)
def test_a_process_that_fails_ends_all_with_one_sentence(
    how: str, kind: type[Exception], expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    started_s = time.monotonic()
    with pytest.raises(kind, match=expected):
        on_processes(workers.fail, 2, how, go_on="to go on: X")
    assert time.monotonic() - started_s < 30  # process 0 would have slept for 60


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def children_of(pid: int) -> list[int]:
    """The processes of a run, in the order in which they were started (multiprocessing starts a tracker too)."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_parent_that_is_stopped_leaves_no_orphans(how: signal.Signals, tmp_path: Path):
    code = f"import distributed_workers as w, audiolab.processes as p; p.on_processes(w.wait, 2, {str(tmp_path)!r})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    files = [tmp_path / f"{rank}.txt" for rank in (0, 1)]
    deadline_s = time.monotonic() + 60
    while not all(file.is_file() and file.read_text() for file in files):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    pids = [int(file.read_text().split()[0]) for file in files]
    parent.send_signal(how)
    errors = parent.communicate(timeout=30)[1]
    deadline_s = time.monotonic() + 10
    while any(map(alive, pids)):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    ending = {signal.SIGTERM: "Preempted: stopped by SIGTERM", signal.SIGINT: "KeyboardInterrupt"}.get(how, "")
    assert (ending in errors) and parent.returncode != 0


def test_a_killed_process_and_an_interrupt_stop_a_training_that_then_goes_on_to_the_same_weights(
    tiny_la: Path, tmp_path: Path
):
    argv = options(tiny_la, tmp_path, *TWO, "data.batch_size=2", "data.num_workers=1", "trainer.max_epochs=3")
    argv += ["callbacks.checkpoints.every_n_steps=1", "callbacks.checkpoints.keep=30"]
    assert run.main([*argv, "name=whole"]) == 0
    folder = tmp_path / "out/asvspoof/cut"

    def stopped_at(checkpoint: str, how: str, *words: str) -> tuple[int, str, str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=-1
        )
        deadline_s = time.monotonic() + 300
        while not (folder / "checkpoints" / checkpoint).exists():
            assert process.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.005)
        children = children_of(process.pid)
        assert len(children) == 2
        if how == "kill":
            os.kill(children[1], signal.SIGKILL)
        else:
            process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
        assert not any(map(alive, children))
        return process.returncode, output, errors

    code, _, errors = stopped_at("step0000007.ckpt", "kill", "audiolab.run", *argv, "name=cut")
    assert code == 1
    said = [line for line in errors.splitlines() if line.startswith("audiolab: process")]
    assert said == [
        "audiolab: process 1 of 2 (counted from 0) was killed by SIGKILL: most likely the machine ran out of memory; "
        f"to go on: python -m audiolab.resume {folder}"
    ]
    assert "Traceback" not in errors
    code, output, _ = stopped_at("step0000014.ckpt", "interrupt", "audiolab.resume", str(folder))
    assert code == 130
    assert output.count(f"to go on: python -m audiolab.resume {folder}") == 1
    resume.main([str(folder)])
    assert audible(folder) == audible(tmp_path / "out/asvspoof/whole")
    assert epoch_means(folder) == epoch_means(tmp_path / "out/asvspoof/whole")
    assert RunFolder.open(folder).results == RunFolder.open(tmp_path / "out/asvspoof/whole").results


def test_a_slurm_job_of_one_task_starts_its_own_processes_and_srun_is_left_to_itself(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")):  # a batch script
        monkeypatch.setenv(name, value)
    assert not cluster.started_by_launcher() and num_processes({"devices": 4}) == 4
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # submitit, srun --ntasks=1
    assert not cluster.started_by_launcher() and num_processes({"devices": 4}) == 4
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")  # srun, one task a device
    monkeypatch.setenv("SLURM_PROCID", "5")
    assert cluster.started_by_launcher() and num_processes({"devices": 4}) == 1
    assert (cluster.rank(), cluster.world_size()) == (5, 8)
    with pytest.raises(InputError, match="give name="):
        run.main(["task=asvspoof"])


def test_other_processes_wait_for_the_folder_with_their_options(tmp_path: Path):
    config = {"task": "t", "name": "n", "outputs": str(tmp_path), "module": {}, "model": {}, "data": {"fold": 1}}
    RunFolder.create({**config, "plan": False})
    assert RunFolder.join(config, patience_s=0.0).path == tmp_path / "t/n"
    with pytest.raises(InputError, match="did not appear with these options within 0 s"):
        RunFolder.join({**config, "data": {"fold": 2}}, patience_s=0.0)


FAKE_SLURM = {  # a controller of one node: jobs run at once, one after the other
    "sbatch": """import os, re, subprocess, sys
script = open(sys.argv[1]).read()
job, tasks = "4242", int(re.search("ntasks-per-node=([0-9]+)", script)[1])
open(os.environ["FAKE_SLURM_SCRIPT"], "w").write(script)
print("Submitted batch job", job, flush=True)
tasks = {"SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": tasks, "SLURM_JOB_NUM_NODES": 1, "SLURM_NNODES": 1}
facts = {"SLURM_JOB_ID": job, "SLURM_JOB_NAME": "run", "SLURM_PROCID": 0, "SLURM_NODEID": 0, "SLURM_LOCALID": 0}
facts |= {"SLURM_JOB_NODELIST": "localhost", **tasks}
array = re.search("array=0-([0-9]+)", script)
for index in range(int(array[1]) + 1) if array else [None]:
    own = {} if index is None else {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": index}
    environment = {**os.environ, **{key: str(value) for key, value in {**facts, **own}.items()}}
    with open(os.environ["FAKE_SLURM_SCRIPT"] + ".log", "a") as log:
        subprocess.Popen(["bash", sys.argv[1]], env=environment, stdout=log, stderr=log)
""",
    "srun": """import os, sys
os.environ["SLURM_STEP_NUM_TASKS"] = os.environ["SLURM_NTASKS"]
words = sys.argv[1:]
command = words[next(i for i, word in enumerate(words) if "python" in word):]
os.execvp(command[0], command)
""",
    "sacct": "print('JobID|State|NodeList')",
}


def test_a_sweep_as_slurm_jobs_of_two_processes_each(tiny_la: Path, tmp_path: Path):
    """submitit's own path through sbatch and srun, with stand-ins for them: one task a job starts two processes."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in FAKE_SLURM.items():
        (programs / name).write_text(f"#!{sys.executable}\n{code}")
        (programs / name).chmod(0o755)
    paths = {"PATH": f"{programs}:{os.environ['PATH']}", "FAKE_SLURM_SCRIPT": str(tmp_path / "script")}
    argv = options(tiny_la, tmp_path, *TWO, "data.batch_size=2", "trainer.max_epochs=1", "seed=0,1", "name=cluster")
    slurm = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=2"]
    done = command("audiolab.run", "-m", *argv, *slurm, env=paths)
    assert done.returncode == 0, done.stderr + (tmp_path / "script.log").read_text()
    script = (tmp_path / "script").read_text()
    for line in ("--partition=gpu", "--gpus-per-node=2", "--ntasks-per-node=1", "--time=1440", "--signal=USR2@120"):
        assert f"#SBATCH {line}" in script
    assert "2 jobs" in done.stdout and "mean ± SD" in done.stdout
    folder = tmp_path / "out/asvspoof/cluster"
    assert {path.parent.name for path in folder.glob("*/metrics.json")} == {"seed-0", "seed-1"}
    output = (tmp_path / "script.log").read_text()  # the stand-in for srun leaves it there
    assert output.count("epoch 1/1") == 2 and all(f"cluster/seed-{seed}" in output for seed in (0, 1))


def test_what_does_not_go_with_several_processes_is_refused():
    for overrides, expected in (
        ([*TWO, "trainer.sync_batchnorm=true"], "needs GPUs"),
        (["hydra/launcher=slurm"], "add -m, also for a single job"),
    ):
        with pytest.raises(InputError, match=expected):
            run.main(["task=asvspoof", *overrides])
