"""The second separator: any length, any level, three speakers, few weights, and that it can learn real mixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from audiolab import build, config
from audiolab.audio.io import read_audio
from audiolab.errors import InputError
from audiolab.metrics.separation import pit, si_sdr, si_sdr_improvement
from audiolab.tasks.separation.model import ConvTasNet
from audiolab.tasks.separation.tf_mamba import TFMamba
from audiolab.training.optim import Optimization
from audiolab.training.schedules import Constant


def small(**options: object) -> TFMamba:
    torch.manual_seed(0)
    return TFMamba(**{"bin_channels": 8, "channels": 16, "num_blocks": 1, **options})


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_samples", [1, 7, 255, 256, 257, 511, 513, 16000, 16001])
def test_estimates_are_as_long_as_the_mixture_and_finite(num_samples: int) -> None:
    for sequence in ("mamba", "lstm"):
        estimate = small(sequence=sequence).eval()(noise(2, num_samples))
        assert estimate.shape == (2, 2, num_samples) and estimate.isfinite().all()


def test_the_level_of_the_input_is_that_of_the_output_and_nothing_else() -> None:
    model, wave = small().eval(), noise(1, 8000)
    estimate = model(wave)
    for gain_db in (-80.0, -20.0, 20.0):
        gain = 10 ** (gain_db / 20)
        assert torch.allclose(model(gain * wave) / gain, estimate, atol=1e-4)
    assert model(torch.zeros(1, 4000)).abs().max() == 0


def test_untrained_every_speaker_gets_about_an_equal_share_of_the_mixture() -> None:
    """So training starts at an SI-SDRi of about 0 dB: analysis and synthesis are the inverse of each other."""
    wave = noise(1, 12345)
    model = small(num_speakers=3)
    for mask in (model.narrow_mask, model.wide_mask):
        torch.nn.init.zeros_(mask.weight)
        torch.nn.init.zeros_(mask.bias)
    assert si_sdr(model(wave), wave[:, None]).min() > 20  # 0 Hz is left out
    assert si_sdr(3 * model(wave)[:, 0], wave).item() > 20


def test_all_bands_may_be_narrow() -> None:
    assert small(split_hz=8000.0).eval()(noise(1, 3000)).shape == (1, 2, 3000)


def test_an_item_does_not_depend_on_the_others_of_its_batch() -> None:
    model, wave = small().eval(), noise(3, 9000)
    assert torch.allclose(model(wave)[1:2], model(wave[1:2]), atol=1e-5)


@pytest.mark.parametrize("sequence", ["mamba", "lstm"])
def test_every_weight_gets_a_gradient(sequence: str) -> None:
    model = small(sequence=sequence)
    for layer in model.modules():  # what begins at zero would keep the gradient from the layers before it
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=0.1)
    model(noise(2, 6000)).square().mean().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.abs().sum()]
    assert without == []


def test_the_options_tell_how_large_it_is() -> None:
    header = (config.config_folder() / "model/separation/tf_mamba.yaml").read_text(encoding="utf-8").splitlines()[0]
    options = ["task=separation", "model=separation/tf_mamba", "data=separation/mix_mini"]
    composed = config.compose_run(options, "x")["model"]
    assert composed["sample_rate_hz"] == 16000
    count = sum(weight.numel() for weight in build.build(composed).parameters())
    assert f"{count:,} parameters for two speakers" in header


def test_the_documented_group_without_decay_is_all_but_the_matrices() -> None:
    schedule = Constant(warmup=0.0, warmup_start=1.0)
    no_decay = {"contains": ["bias", "norm", "A_log", ".D"], "weight_decay": 0.0}
    optimization = Optimization(1e-3, 0.01, (0.9, 0.999), 1e-8, schedule, {"no_decay": no_decay})
    model = small()
    free, rest = (optimization.assign(model)[group] for group in (*optimization.groups, optimization.rest))
    A_logs = {id(weight) for name, weight in model.named_parameters() if name.endswith("A_log")}
    assert len(A_logs) == 2 and A_logs <= {id(weight) for weight in free}
    assert all(weight.ndim < 2 or id(weight) in A_logs for weight in free) and all(weight.ndim > 1 for weight in rest)


def test_it_is_far_smaller_than_conv_tasnet() -> None:
    count = sum(weight.numel() for weight in TFMamba().parameters())
    assert count < sum(weight.numel() for weight in ConvTasNet().parameters()) / 30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split_hz": 3900.0}, "model.narrow_bins"),
        ({"wide_bins": 48}, "model.wide_bins"),
        ({"hop_samples": 400}, "model.hop_samples"),
        ({"channels": 15}, "even"),
        ({"sequence": "gru"}, "mamba or lstm"),
        ({"layers": ["conv", "attention"]}, "frequency"),
        ({"layers": []}, "one or more of conv, frequency, time"),
        ({"num_speakers": 1}, "model.num_speakers=1 does not fit: give 2 to 5"),
        ({"num_speakers": 6}, "model.num_speakers=6 does not fit: give 2 to 5"),
        ({"compression": -3}, "model.compression=-3 does not fit: give a number above 0 to 1"),
        ({"state": 0}, "model.state=0 does not fit: give a number from 1 up"),
        ({"num_blocks": 0}, "model.num_blocks=0 does not fit"),
        ({"wide_bins": 0}, "model.wide_bins=0 does not fit"),
        ({"dropout": 1.0}, "model.dropout=1.0 does not fit: give a number from 0 to 0.9"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        small(**options)


def test_it_learns_a_pair_of_real_mixtures(shared: Path) -> None:
    folder = shared / "data/mix_mini/Libri2Mix/wav16k/min/dev"
    names = sorted(path.name for path in (folder / "s1").iterdir())[:2]
    read = [
        [read_audio(folder / kind / name, start_s=0.5, duration_s=0.75)[0] for kind in ("s1", "s2")] for name in names
    ]
    sources_bst = torch.stack([torch.stack([torch.as_tensor(wave) for wave in pair]) for pair in read])
    torch.manual_seed(0)
    model = TFMamba(bin_channels=12, channels=32, num_blocks=2, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    mixture_bt = sources_bst.sum(1)
    for _ in range(50):
        optimizer.zero_grad()
        best_b, _ = pit(model(mixture_bt), sources_bst)
        (-best_b.mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    with torch.no_grad():
        estimate_bst = model.eval()(mixture_bt)
    _, order = pit(estimate_bst, sources_bst)
    estimate_bst = torch.take_along_dim(estimate_bst, order[..., None], dim=1)
    assert si_sdr_improvement(estimate_bst, sources_bst, mixture_bt[:, None]).mean() > 5
