"""Weights of other libraries: their outputs from their files, and runs that start from them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from separation_reference import OPTIONS, SIZES, facts, library_state, small, tensors
from torch.torch_version import TorchVersion

from audiolab import assemble, config, fine_tuning
from audiolab.errors import InputError
from audiolab.tasks.separation.library_weights import library_of, neutral_names
from audiolab.tasks.separation.model import ConvTasNet

TOLD = {"mask": "sigmoid", "blocks": 3}  # what a state dict of these small models does not tell
ASTEROID = {
    "asteroid_relu_gln": {"norm_type": "gLN", "mask_act": "relu"},
    "asteroid_sigmoid_causal_cumulative": {"norm_type": "cgLN", "mask_act": "sigmoid", "causal": True},
    "asteroid_relu_causal_channelwise": {"norm_type": "cLN", "mask_act": "relu", "causal": True},
    "asteroid_relu_noskip_reluenc": {"norm_type": "gLN", "mask_act": "relu", "encoder_activation": "relu"},
}


@pytest.mark.parametrize("variant", OPTIONS)
def test_names_are_those_of_the_recorded_map(variant: str, shared: Path):
    state, names = library_state(tensors(shared, variant)), facts(shared, variant)["mapping_to_canonical"]
    library = library_of(state)
    assert library == variant.partition("_")[0]
    renamed = neutral_names(state, library)
    assert dict(zip(state, renamed, strict=True)) == {name: names[name] for name in state}


def file_of(folder: Path, state: dict[str, Any], suffix: str, arguments: dict[str, Any] | None = None) -> Path:
    """A file as a library writes it; with `model_args` as asteroid serialises a model."""
    path = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    elif arguments is not None:
        versions = {"software_versions": {"torch_version": TorchVersion("2.1.0")}}
        whole = {"model_name": "ConvTasNet", "state_dict": OrderedDict(state), "model_args": arguments}
        torch.save({**whole, "infos": versions}, path)
    else:
        torch.save(OrderedDict(state), path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("variant", [name for name in OPTIONS if name not in ASTEROID])
@torch.no_grad()
def test_a_state_dict_gives_the_librarys_outputs(variant: str, suffix: str, shared: Path, tmp_path: Path):
    recorded = tensors(shared, variant)
    told = {**TOLD, "mask": OPTIONS[variant].get("mask", "sigmoid"), **({"stride": 8} if "L40" in variant else {})}
    model = ConvTasNet.from_library(file_of(tmp_path, library_state(recorded), suffix), **told)
    assert (model(recorded["in.1"]) - recorded["out.1"]).abs().max() < 2e-5


@pytest.mark.parametrize("variant", ASTEROID)
@torch.no_grad()
def test_a_serialised_model_of_asteroid_needs_no_option(variant: str, shared: Path, tmp_path: Path):
    recorded = tensors(shared, variant)
    arguments = {"stride": 8, "n_blocks": 3, "n_repeats": 2, "n_src": 2, "encoder_activation": None} | ASTEROID[variant]
    model = ConvTasNet.from_library(file_of(tmp_path, library_state(recorded), ".pth", arguments))
    assert (model(recorded["in.1"]) - recorded["out.1"]).abs().max() < 2e-5


@pytest.mark.parametrize("start", ["module.", "model.", "model.module."])
def test_wrapped_models_and_checkpoints_are_read(start: str, shared: Path, tmp_path: Path):
    state = {f"{start}{name}": value for name, value in library_state(tensors(shared, "naplab_causal")).items()}
    torch.save({"epoch": 3, "model_state_dict": state}, tmp_path / "x.ckpt")
    model = ConvTasNet.from_library(tmp_path / "x.ckpt", **TOLD)
    assert model.causal
    assert torch.equal(model.encoder.weight, state[f"{start}encoder.weight"])


class Run:
    """Code that a pickled file would run."""

    def __reduce__(self) -> tuple:
        return (print, ("run",))


def test_files_that_do_not_fit_are_refused_in_a_sentence(shared: Path, tmp_path: Path, capsys):
    state = library_state(tensors(shared, "torchaudio_sigmoid"))
    path = file_of(tmp_path, state, ".pth")
    seed = file_of(tmp_path, library_state(tensors(shared, "seed_relu_gln")), ".safetensors")
    for given, options, expected in [
        (tmp_path / "none.pth", {}, "is not a file"),
        (path, {}, "has 6 blocks: give blocks="),
        (path, {"blocks": 4}, "has 6 blocks: give blocks="),
        (path, {"blocks": 3, "hidden": 21}, "does not fit the options .*size mismatch"),
        (path, {"blocks": 3, "causal": True}, "model.norm=gLN looks at the whole recording"),
        (seed, {"blocks": 3}, "does not tell the activation of its masks"),
    ]:
        with pytest.raises(InputError, match=expected):
            ConvTasNet.from_library(given, **options)
    for name, content, expected in [
        ("code.pth", {"state_dict": Run()}, "could run code"),
        ("list.pth", [1, 2], "holds no state dict"),
        ("other.pth", {"layer.weight": torch.ones(2)}, "holds no ConvTasNet of torchaudio"),
        ("more.pth", {**state, "mask_generator.extra.weight": torch.ones(2)}, "is not a weight of torchaudio's"),
        ("less.pth", {k: v for k, v in state.items() if "output_conv" not in k}, "are not complete"),
        ("odd.pth", {"model_args": {"encoder_activation": "tanh"}, "state_dict": state}, "encoder_activation=tanh"),
    ]:
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=expected):
            ConvTasNet.from_library(tmp_path / name, **TOLD)
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be read as weights"):
        ConvTasNet.from_library(tmp_path / "cut.pth")
    assert "run" not in capsys.readouterr().out


def begun(path: Path, *options: str) -> tuple[Any, str | None]:
    """A fresh task of these options that starts from a file."""
    sizes = [f"model.{name}={value}" for name, value in SIZES.items()]
    model = ["task=separation", "data=separation/mix_mini", "data.root=/corpus", "model=separation/conv_tasnet", *sizes]
    composed = config.compose_run([*model, f"init.weights={path}", *options], "x")
    task = assemble.build_task(composed)
    return task, fine_tuning.start(task, composed)


def test_a_run_starts_from_a_file_of_another_library(shared: Path, tmp_path: Path, caplog):
    recorded = tensors(shared, "torchaudio_sigmoid")
    path = file_of(tmp_path, library_state(recorded), ".pth")
    with caplog.at_level(logging.WARNING):
        task, told = begun(path, "model.last_residual=false")
        assert "91 of 91 names start from" in told
        with torch.no_grad():
            assert (task.model(recorded["in.0"]) - recorded["out.0"]).abs().max() < 2e-5
        assert not caplog.records
        begun(path, "model.last_residual=false", "model.mask=relu", "model.norm_first=true")
    assert "torchaudio's ConvTasNet with model.mask=sigmoid, which differs here" in caplog.text
    task, told = begun(path, "init.allow_missing=[model.blocks.5.residual.]")
    assert "2 keep their own start" in told


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], r"2 missing there .first: model.blocks.5.residual.weight.*allow_missing"),
        (
            ["model.hidden=24", "init.allow_missing=[model.blocks.5.]"],
            "of another shape there .* 20x12x1, here 24x12x1",
        ),
        (
            ["model.last_residual=false", "model.num_speakers=3"],
            "of another shape there .first: model.mask.weight 48x12",
        ),
        (
            ["model.last_residual=false", "model.repeats=1"],
            "without a place in this model .first: model.blocks.2.residual",
        ),
    ],
)
def test_weights_of_other_sizes_are_refused_with_names_and_shapes(
    options: list[str], expected: str, shared: Path, tmp_path: Path
):
    path = file_of(tmp_path, library_state(tensors(shared, "torchaudio_sigmoid")), ".pth")
    with pytest.raises(InputError, match=expected):
        begun(path, *options)


def test_a_models_own_weights_are_no_librarys(tmp_path: Path):
    model = small()
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    assert model.foreign_weights(tmp_path / "own.safetensors") is None
