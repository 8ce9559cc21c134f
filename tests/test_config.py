"""Composition, and the sentence that answers each kind of slip."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiolab import assemble, build, config
from audiolab.errors import InputError
from audiolab.run import main

CONF = Path(__file__).resolve().parent.parent / "conf"
EXPERIMENTS = config.choices("experiment", [CONF])
MODELS = config.choices("model", [CONF])
LOSSES = config.choices("loss", [CONF])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task=asvspof"], "did you mean asvspoof"),
        (["task=asvspoof", "experiment=la_mini"], "did you mean asvspoof/la_mini"),
        (["task=asvspoof", "data=asvspoof/lamini"], "did you mean asvspoof/la_mini"),
        (["task=asvspoof", "model=sinc_small"], "did you mean asvspoof/sinc_small"),
        (["task=asvspoof", "loss=asvspoof/focl"], "did you mean asvspoof/focal"),
        (["task=asvspoof", "trainer=gpus"], "did you mean gpu"),
        (["task=asvspoof", "logger=[csv,wandbb]"], "did you mean wandb"),
        (["task=asvspoof", "data.rot=/x"], "did you mean data.root"),
        (["task=asvspoof", "optimzer.lr=1"], "did you mean optimizer.lr"),
        (["task=asvspoof", "trainer.max_epoch=3"], "did you mean trainer.max_epochs"),
        (["task=asvspoof", "sed=1"], "did you mean seed"),
        (["task=asvspoof", "data=asvspoof/la2019"], "give data.root="),
        (["task=asvspoof", "seed=[1"], "quote it"),
        (["task=asvspoof", "seed=1,2"], "add -m"),
        (["task=asvspoof", "banana"], "key=value"),
        (["tsk=asvspoof"], "did you mean task="),
        (["task=separation", "model=separation/conv_tasnett"], "did you mean separation/conv_tasnet"),
        (["task=separation", "experiment=separation/sead"], "did you mean separation/seed"),
        (["task=separation", "data.dynamic.pp=1"], "did you mean data.dynamic.p"),
        (["seed=1"], "no task is chosen"),
    ],
)
def test_a_slip_is_answered_with_the_nearest_valid_name(overrides: list[str], expected: str):
    with pytest.raises(InputError) as error:
        config.compose(overrides)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert "+" not in str(error.value).replace(" + ", "")  # Hydra's advice to append is wrong for a typo


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+model.wdth=3"], "model.wdth is not an option of"),
        (["~data.root"], "data.root is missing"),
        (["data.batch_size=many"], "data.batch_size='many' does not fit"),
        (["data.asv_scores=maybe"], "data.asv_scores='maybe' does not fit"),
        (["+trainer.devces=2"], "did you mean trainer.devices"),
        (["loss._target_=audiolab.tasks.asvspoof.losses.Nothing"], "cannot be imported"),
        (["seed=-1"], "whole number"),
        (["+data.seed=3"], "set by audiolab itself"),
    ],
)
def test_sections_are_checked_against_the_classes_they_build(overrides: list[str], expected: str):
    with pytest.raises(InputError, match=expected.replace("(", r"\(")):
        assemble.check(config.compose_run(["task=asvspoof", *overrides], "x"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.batch_size=0"], "data.batch_size=0 does not fit"),
        (["data.num_workers=-1"], "data.num_workers=-1 does not fit"),
        (["optimizer.lr=-1"], "give a positive rate"),
        (["trainer.precision=fp7"], "trainer.precision='fp7' does not fit Trainer: expected 64, 32, 16"),
        (["trainer.accelerator=mps"], "trainer options cannot be used here"),
        (["model.front_end.window_samples=[50]"], "50 samples does not divide"),
        (["trainer.devices=0"], "trainer.devices=0 is unknown"),
        (["trainer.max_epochs=0"], "whole number from 1 up"),
        (["monitor.metric=dev/foo"], "is never measured: there are dev/eer"),
        (["monitor.metric=eval/eer"], "is never measured: there are dev/eer"),  # "best" by a test set
        (["+optimizer.groups.lora={contains: [lora_]}"], "optimizer.groups.lora matches no trainable parameter"),
        (["callbacks=ema", "callbacks.ema.decay=1.5"], "moving average with decay=1.5"),
        (["loss=asvspoof/supcon", "module.mixup=1.0"], "does not go with SupConCrossEntropy"),
    ],
)
def test_values_that_cannot_work_are_refused_before_anything_is_written(
    overrides: list[str], expected: str, la_mini: Path, tmp_path: Path
):
    with pytest.raises(InputError, match=expected):
        main(["task=asvspoof", "data=asvspoof/la_mini", f"data.root={la_mini}", f"outputs={tmp_path}", *overrides])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_recipe_composes_and_fits_its_classes(experiment: str):
    overrides = [f"experiment={experiment}", "data.root=/corpus"]
    assemble.check(config.compose_run(overrides, "x"))
    header = (CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    for word in ("# ", "machine", "command"):
        assert word in header.lower()


def test_a_mistyped_root_is_not_filled_with_the_built_in_corpus(tmp_path: Path):
    with pytest.raises(InputError, match="choose data=asvspoof/la2019"):
        main(["task=asvspoof", f"data.root={tmp_path / 'corpora'}", f"outputs={tmp_path / 'out'}"])
    assert not list(tmp_path.iterdir())


def test_the_full_model_can_be_built_without_its_weights():
    import torch

    overrides = ["model=asvspoof/dual_stream_se_mamba", "model.front_end.ssl.pretrained=null"]
    section = config.compose_run(["task=asvspoof", *overrides], "x")
    with torch.device("meta"):
        model = build.build(section["model"])
    assert sum(parameter.numel() for parameter in model.parameters()) == 317_119_070


@pytest.mark.parametrize(
    ("section", "name"), [("model", name) for name in MODELS] + [("loss", name) for name in LOSSES]
)
def test_every_keyword_of_a_class_appears_in_its_yaml(section: str, name: str):
    import inspect

    composed = config.compose_run([f"task={name.split('/')[0]}", f"{section}={name}"], "x")
    assemble.check(composed)

    def compare(section: object, where: str) -> None:
        if not isinstance(section, dict):
            return
        for key, value in section.items():
            compare(value, f"{where}.{key}")
        if "_target_" in section:
            parameters = inspect.signature(build.locate(section["_target_"])).parameters
            assert set(section) - {"_target_"} == set(parameters), where

    compare(composed[section], section)


@pytest.mark.parametrize("task", config.choices("task", [CONF]))
def test_every_option_of_the_task_appears_in_its_yaml(task: str):
    import inspect

    module = config.compose_run([f"task={task}"], "x")["module"]
    parameters = inspect.signature(build.locate(module["_target_"])).parameters
    assert set(module) - {"_target_"} == set(parameters) - {"model", "criterion", "optimization"}


def test_an_experiment_picks_the_task_and_the_command_line_has_the_last_word():
    composed = config.compose_run(["experiment=asvspoof/la_mini", "seed=7"], "x")
    assert composed["task"] == "asvspoof"
    assert composed["recipe"] == "la_mini"
    assert composed["seed"] == 7
    assert composed["data"]["root"].endswith("la_mini")


def test_users_add_their_own_configs(tmp_path: Path):
    (tmp_path / "data" / "asvspoof").mkdir(parents=True)
    (tmp_path / "data" / "asvspoof" / "mine.yaml").write_text("defaults: [asvspoof/la2019@_here_]\nroot: /mine\n")
    composed = config.compose_run(["task=asvspoof", "data=asvspoof/mine"], "x", str(tmp_path))
    assert composed["data"]["root"] == "/mine"
    with pytest.raises(InputError, match="not a folder"):
        config.compose_run(["task=asvspoof"], "x", str(tmp_path / "nothing"))


def test_without_arguments_the_tasks_are_listed(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    shown = capsys.readouterr().out
    for task in config.choices("task", [CONF]):
        assert f"task={task}" in shown


@pytest.mark.parametrize(
    ("argv", "expected"), [(["--hlp"], "did you mean --help"), (["--config-dir"], "needs a folder")]
)
def test_wrong_flags(argv: list[str], expected: str):
    with pytest.raises(InputError, match=expected):
        main(["task=asvspoof", *argv])


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "-x", "a=b"])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str):
    with pytest.raises(InputError, match="cannot name a folder|cannot be read"):
        main(["task=asvspoof", f"name={name}"])


def test_processes_of_torchrun_need_a_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(InputError, match="give name="):
        main(["task=asvspoof"])


def test_sweeps_expand_to_named_jobs():
    jobs, swept = config.expand(["task=asvspoof", "model=asvspoof/a,asvspoof/b", "seed=range(2)"])
    assert swept == ["model", "seed"]
    names = [config.job_name(job, swept) for job in jobs]
    assert names == [
        "model-asvspoof-a_seed-0",
        "model-asvspoof-a_seed-1",
        "model-asvspoof-b_seed-0",
        "model-asvspoof-b_seed-1",
    ]


def test_the_configuration_of_a_recipe_can_be_looked_at_without_a_corpus(capsys: pytest.CaptureFixture[str]):
    assert main(["experiment=asvspoof/phase4", "--cfg"]) == 0
    assert "root: ???" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("callbacks=null", r"give callbacks=\[\] .*~callbacks.<name>"),
        ("logger=null", r"give logger=\[\]"),
        ("experiment=null", "leave it out"),
        ("loss=null", "give one of asvspoof/"),
        ("augment=[]", "give one of asvspoof/"),
        ("on_out_of_memory=halve", "give stop or halve_batch"),
    ],
)
def test_a_choice_that_is_none_is_refused_when_it_is_composed(option: str, expected: str):
    with pytest.raises(InputError, match=f"{option.partition('=')[0]}=.*{expected}"):
        config.compose_run(["task=asvspoof", option], "x")
