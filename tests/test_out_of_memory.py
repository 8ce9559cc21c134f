"""Memory that runs out: told in a sentence, or the batch goes through the model in parts with the same result."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hungry import Hungry, allocate_too_much
from lightning.pytorch.strategies import FSDPStrategy
from test_run import EVERYTHING, ROOT, command, options, weights
from torch import nn

from audiolab import out_of_memory, predict, resume, run, test
from audiolab.errors import InputError, OutOfMemory
from audiolab.folder import RunFolder
from audiolab.tasks.asvspoof.losses import WeightedCrossEntropy
from audiolab.training import feature_cache
from audiolab.training.memory import MemoryGuard, is_out_of_memory
from audiolab.training.parts import cut, loss_in_parts

HUNGRY = {"fits": 100, "fits_eval": 100, "passes": None, "rank": None, "where": "forward", "dropout": 0.0}


def hungry(root: Path, tmp_path: Path, *more: str, **of_the_model: object) -> list[str]:
    """Options of a run of two epochs, three optimiser steps of 2 x 4 utterances each, with a model of little memory."""
    file = tmp_path / "conf/model/asvspoof/hungry.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"_target_": "hungry.Hungry", **HUNGRY, **of_the_model}))
    quick = [text for text in options(root, tmp_path) if not text.startswith(("model=", "augment="))]
    own = ["augment=asvspoof/none", "trainer.accumulate_grad_batches=2", "model=asvspoof/hungry"]
    return ["--config-dir", str(tmp_path / "conf"), *quick, *own, *more]


def losses(folder: Path) -> list[float]:
    rows = csv.DictReader((folder / "metrics.csv").open())
    return [float(row["train/loss_step"]) for row in rows if row["train/loss_step"]]


def assert_alike(folder: Path, other: Path) -> None:
    assert losses(folder) == pytest.approx(losses(other), abs=1e-6)
    assert len(losses(folder)) == 6
    ours, theirs = weights(folder), weights(other)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-6), name
    reported = [json.loads((path / "metrics.json").read_text()) for path in (folder, other)]
    assert reported[0]["eval"] == pytest.approx(reported[1]["eval"], abs=1e-4)


def parts_in(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["callbacks"]["MemoryGuard"]["train_parts"]


@pytest.fixture
def enough(tiny_la: Path, tmp_path: Path) -> Path:
    """A run whose memory suffices."""
    assert run.main(hungry(tiny_la, tmp_path, "name=enough")) == 0
    return tmp_path / "out/asvspoof/enough"


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_halved_in_mid_epoch_a_run_has_the_same_losses_and_weights(
    tiny_la: Path, tmp_path: Path, enough: Path, where: str, caplog: pytest.LogCaptureFixture
):
    """With accumulation, class weights, evaluation that runs out too, and a counter that a failed pass moved."""
    argv = hungry(tiny_la, tmp_path, "name=halved", fits=2, fits_eval=3, passes=[3, 4], where=where)
    assert run.main([*argv, "on_out_of_memory=halve_batch"]) == 0
    folder = tmp_path / "out/asvspoof/halved"
    assert_alike(folder, enough)
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert said[0] == "out of memory in training with 4 utterances at once: batches now go through the model in 2 parts"
    assert [text.split("with ")[1] for text in said[1:3]] == [
        "8 utterances at once: batches now go through the model in 2 parts",
        "4 utterances at once: batches now go through the model in 4 parts",
    ]
    assert "in 2 parts" in (folder / "run.log").read_text()
    assert parts_in(folder / "checkpoints/last.ckpt") == 2
    assert weights(folder)["model.num_seen"] == 48


def test_a_resumed_run_goes_on_in_as_many_parts_to_the_same_weights(tiny_la: Path, tmp_path: Path):
    """With dropout, whose draws depend on the parts: a run that began again with whole batches would end otherwise."""
    argv = hungry(tiny_la, tmp_path, "name=halved", fits=2, passes=[3], dropout=0.5)
    assert run.main([*argv, "on_out_of_memory=halve_batch"]) == 0
    whole, cut_off = tmp_path / "out/asvspoof/halved", tmp_path / "out/asvspoof/cut"
    shutil.copytree(whole, cut_off)
    (cut_off / "metrics.json").unlink()
    for name in ("last.ckpt", "step0000006.ckpt"):
        (cut_off / "checkpoints" / name).unlink()
    shutil.copyfile(cut_off / "checkpoints/step0000003.ckpt", cut_off / "checkpoints/last.ckpt")
    resume.main([str(cut_off)])
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(cut_off)[name]), name


def test_two_processes_of_which_one_runs_out(tiny_la: Path, tmp_path: Path):
    """The other waits in the exchange of gradients; both end as one process with the whole batch does."""
    loss = "loss=asvspoof/focal"  # a mean over utterances, which two processes take as one does
    assert run.main(hungry(tiny_la, tmp_path, "name=one", loss)) == 0
    argv = hungry(tiny_la, tmp_path, "name=two", loss, "data.batch_size=2", fits=1, passes=[2], rank=1)
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "on_out_of_memory=halve_batch"]
    done = command("audiolab.run", *argv, *two, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "out/asvspoof/two"
    ours, theirs = weights(folder), weights(tmp_path / "out/asvspoof/one")
    for name in set(theirs) - {"model.num_seen"}:
        assert torch.allclose(ours[name], theirs[name], atol=1e-6), name
    assert "on another process: batches now go in 2 parts" in (folder / "run.log").read_text()
    assert parts_in(folder / "checkpoints/last.ckpt") == 2


def test_without_the_option_the_run_stops_with_a_sentence_and_goes_on_with_it(
    tiny_la: Path, tmp_path: Path, enough: Path
):
    folder = tmp_path / "out/asvspoof/stops"
    with pytest.raises(OutOfMemory) as told:
        run.main(hungry(tiny_la, tmp_path, "name=stops", fits=2, passes=[7]))
    for part in (
        "out of memory (asked for 4,194,304.00 GiB) on the CPU (",
        "in epoch 2 of training with 4 utterances at once, wave (4, 8000)",
        f"python -m audiolab.resume {folder} on_out_of_memory=halve_batch goes on from step0000003.ckpt",
        "data.batch_size=2 trainer.accumulate_grad_batches=4, trainer.precision=bf16-mixed or a model",
    ):
        assert part in str(told.value)
    assert "DefaultCPUAllocator" in (folder / "run.log").read_text()  # the trace
    for wrong, expected in (
        ("seed=1", "seed cannot be changed"),
        ("on_out_of_memory=halve", "give stop or halve_batch"),
    ):
        with pytest.raises(InputError, match=expected):
            resume.main([str(folder), wrong])
    assert RunFolder.open(folder).config["on_out_of_memory"] == "stop"
    resume.main([str(folder), "on_out_of_memory=halve_batch"])
    assert RunFolder.open(folder).config["on_out_of_memory"] == "halve_batch"
    assert_alike(folder, enough)


def test_one_utterance_that_does_not_fit_ends_the_run(tiny_la: Path, tmp_path: Path):
    with pytest.raises(OutOfMemory, match=r"with 1 of 4 utterances at once.* smaller parts of the batch do not help"):
        run.main(hungry(tiny_la, tmp_path, "name=none", "on_out_of_memory=halve_batch", fits=0))


def test_evaluation_and_prediction_say_their_own_options(tiny_la: Path, tmp_path: Path, enough: Path):
    with pytest.raises(OutOfMemory, match=r"in evaluation with 8 utterances .* with a smaller data.eval_batch_size"):
        run.main(hungry(tiny_la, tmp_path, "name=dev", fits_eval=3))
    model = enough / "model.json"
    model.write_text(model.read_text().replace('"fits_eval": 100', '"fits_eval": 3'))
    with pytest.raises(OutOfMemory, match=r"test with data.eval_batch_size=4, which leaves the results as they are"):
        test.test(str(enough))
    reported = json.loads((enough / "metrics.json").read_text())
    assert test.test(str(enough), ["data.eval_batch_size=2"])["eval"]["eer"] == reported["eval"]["eer"]
    wave = next((tiny_la / "LA/ASVspoof2019_LA_eval/flac").iterdir())
    with pytest.raises(OutOfMemory, match=rf"{wave.name}: out of memory .* --batch-size 8 goes on with this file"):
        predict.predict(str(enough), [wave], batch_size=16)
    assert predict.predict(str(enough), [wave], batch_size=3)[0]["status"] == "ok"


def test_a_plan_says_what_would_fit(tiny_la: Path, tmp_path: Path):
    with pytest.raises(OutOfMemory, match=r"plan the run with data.batch_size=2 trainer.accumulate_grad_batches=4, "):
        run.main(hungry(tiny_la, tmp_path, "plan=true", fits=3))


def test_while_memory_suffices_the_option_changes_no_bit(tiny_la: Path, tmp_path: Path):
    """With everything on that draws, remembers or takes gradients inside the loss."""
    argv = options(tiny_la, tmp_path, "trainer.accumulate_grad_batches=2", *EVERYTHING, "trainer.max_epochs=1")
    for choice in ("stop", "halve_batch"):
        assert run.main([*argv, f"name={choice}", f"on_out_of_memory={choice}"]) == 0
    stop, halve = (tmp_path / "out/asvspoof" / choice for choice in ("stop", "halve_batch"))
    assert losses(stop) == losses(halve)
    for name, tensor in weights(stop).items():
        assert torch.equal(tensor, weights(halve)[name]), name
    assert (stop / "metrics.json").read_bytes() == (halve / "metrics.json").read_bytes()


def test_nothing_of_a_failed_attempt_stays_in_memory():
    guard, held = MemoryGuard(halve=True), []

    def attempt(num_parts: int) -> list[int]:
        assert all(tensor() is None for tensor in held)
        activation = torch.ones(3, requires_grad=True).exp()
        held.append(weakref.ref(activation))
        if num_parts < 4:
            allocate_too_much()
        return [num_parts]

    assert guard._halving("evaluation", attempt, 5, lambda: None) == [4]
    assert (len(held), guard.eval_parts, guard.train_parts) == (3, 4, 1)


def test_what_is_out_of_memory():
    with pytest.raises(RuntimeError) as of_the_cpu:
        allocate_too_much()
    signs = ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "CUDA error: out of memory"]
    found = [of_the_cpu.value, torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), *map(RuntimeError, signs)]
    assert all(is_out_of_memory(error) for error in found)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(OSError("No space left on device"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "scaled"])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 5, 9])
def test_parts_have_the_gradients_of_the_whole(precision: str, num_parts: int):
    """With class weights and gradients from before; under autocast, and with the scale of half precision."""
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), WeightedCrossEntropy(0.1, 0.9)
    unused = nn.Parameter(torch.zeros(3))
    batch = {"id": list("abcde"), "x": torch.randn(5, 4), "label": torch.tensor([0, 1, 1, 0, 1]), "all": "of it"}

    def loss_of(part):
        assert part["all"] == "of it"
        logits_bc = model(part["x"])
        assert not in_parts or all(earlier() is None for earlier in held)  # one part at a time
        held.append(weakref.ref(logits_bc))
        return criterion(logits_bc, logits_bc, part["label"]), {"mean": part["x"].mean()}

    parameters = [*model.parameters(), unused]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=precision == "scaled")
    gradients, values, held = [], [], []
    for in_parts in (False, True):
        for parameter in parameters:
            parameter.grad = None if parameter is unused else torch.ones_like(parameter)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            if in_parts:
                parts = cut(batch, num_parts)
                assert len(parts) == min(num_parts, 5)
                scale = scaler.scale(torch.ones(())) if precision == "scaled" else 1.0
                counts = [criterion.total_weight(part["label"]) for part in parts]
                loss, named = loss_in_parts(loss_of, parts, counts, parameters, scale)
                assert parameters[0].grad.equal(torch.ones(8, 4))
            else:
                loss, named = loss_of(batch)
        scaler.scale(loss / 2).backward()
        gradients.append([parameter.grad for parameter in parameters])
        values.append(loss.item())
    tolerance = 2e-2 if precision == "bfloat16" else 1e-5
    assert values[0] == pytest.approx(values[1], abs=tolerance)
    assert gradients[1][-1] is None
    for whole, ours in zip(gradients[0][:-1], gradients[1][:-1], strict=True):
        assert torch.allclose(whole, ours, rtol=tolerance, atol=tolerance)
    if num_parts == 1:
        assert named["mean"].item() == pytest.approx(batch["x"].mean().item())


def test_cached_features_are_computed_in_parts_too(caplog: pytest.LogCaptureFixture):
    model = Hungry(fits=9, fits_eval=2, passes=None, rank=None, where="forward", dropout=0.0).eval()
    task = SimpleNamespace(encode=model.embed, device=torch.device("cpu"), guard=MemoryGuard(halve=True))
    wave_bt = torch.randn(5, 400)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        found = feature_cache._encode(task, wave_bt)
        expected = torch.cat([model.embed(row[None]) for row in wave_bt])
    assert model.sizes[:6] == [5, 3, 2, 1, 1, 1]
    assert torch.allclose(torch.stack([*map(torch.from_numpy, found)]), expected, atol=1e-6)


def test_sharded_models_are_refused():
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    config = {"on_out_of_memory": "halve_batch", "trainer": {"strategy": "fsdp"}}
    with pytest.raises(InputError, match="halve_batch does not go with trainer.strategy=fsdp"):
        out_of_memory.check_trainer(config, trainer)
