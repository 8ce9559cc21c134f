"""Conv-TasNet: equal to the libraries' models, indifferent to level and length, and what its options refuse."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from separation_reference import OPTIONS, facts, reference_model, small, tensors
from torch import Tensor

from audiolab.audio.io import read_audio
from audiolab.errors import InputError
from audiolab.metrics.separation import si_sdr
from audiolab.nn.frame_norm import channelwise_norm, cumulative_norm
from audiolab.tasks.separation.framing import Framing
from audiolab.tasks.separation.model import ConvTasNet
from audiolab.tasks.separation.output import consistent, least_squares

CAUSAL = [{"norm": "cLN", "causal": True}, {"norm": "channelwise", "causal": True, "mask": "relu"}]
FORMS = [{}, {"norm": "BN"}, {"norm_first": True, "mask": "softmax"}, {"skip": 0, "encoder_relu": True}, *CAUSAL]


@pytest.fixture(scope="module")
def speech(shared: Path) -> tuple[Tensor, Tensor]:
    """A real mixture of two talkers (1, time) and its sources (1, 2, time), 2 s at 16 kHz."""
    folder = shared / "data/mix_mini/Libri2Mix/wav16k/min/test"
    name = sorted((folder / "mix_clean").glob("*.flac"))[0].name
    sources = [torch.from_numpy(read_audio(folder / part / name)[0]) for part in ("s1", "s2")]
    sources_bst = torch.stack(sources)[None, :, 8000:40000]
    return sources_bst.sum(1), sources_bst


@pytest.mark.parametrize("variant", OPTIONS)
def test_outputs_are_those_of_the_library_with_its_weights(variant: str, shared: Path):
    model, recorded = reference_model(shared, variant), tensors(shared, variant)
    assert sum(p.numel() for p in model.parameters()) == facts(shared, variant)["parameters"]
    for item in ("0", "1"):
        with torch.no_grad():
            estimate_bst = model(recorded[f"in.{item}"])
        assert estimate_bst.shape == recorded[f"out.{item}"].shape
        assert (estimate_bst - recorded[f"out.{item}"]).abs().max() < 2e-5


@torch.no_grad()
def test_filterbank_and_masks_are_torchaudios(shared: Path):
    model, recorded = reference_model(shared, "torchaudio_sigmoid"), tensors(shared, "torchaudio_sigmoid")
    encoded_bnt = model.encode(model.framing.pad(recorded["in.0"][:1]))
    assert (encoded_bnt - recorded["enc.0"]).abs().max() < 2e-5
    assert (model.masks(encoded_bnt) - recorded["mask.0"]).abs().max() < 2e-5


def best_si_sdr(estimate_bst: Tensor, target_bst: Tensor) -> Tensor:
    """Mean over speakers of the zero-mean SI-SDR in dB, of the better of all orders."""
    est, ref = (x - x.mean(-1, keepdim=True) for x in (estimate_bst, target_bst))
    orders = []
    for order in itertools.permutations(range(est.shape[1])):
        moved = est[:, list(order)]
        along = (moved * ref).sum(-1, keepdim=True) / ref.square().sum(-1, keepdim=True) * ref
        orders.append((10 * torch.log10(along.square().sum(-1) / (moved - along).square().sum(-1))).mean(1))
    return torch.stack(orders).amax(0)


@pytest.mark.parametrize("variant", ["torchaudio_sigmoid", "asteroid_relu_gln"])
def test_gradients_are_those_of_the_library(variant: str, shared: Path):
    model, recorded = reference_model(shared, variant), tensors(shared, variant)
    known = facts(shared, variant)
    loss = -best_si_sdr(model(recorded["in.0"]), recorded["target.0"]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(known["loss_in0"], abs=1e-3)
    parameters, names = dict(model.named_parameters()), known["mapping_to_canonical"]
    theirs = {name: recorded[f"grad.{name}"] for name in names if f"grad.{name}" in recorded}
    assert len(theirs) + len(known.get("no_grad", [])) == len(parameters)
    for name, grad in theirs.items():
        difference = (parameters[names[name]].grad - grad.reshape(parameters[names[name]].shape)).abs().max()
        assert difference <= 1e-3 * grad.abs().max(), name
    for name in known.get("no_grad", []):
        assert not parameters[names[name]].grad.any()


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 5_050_545),
        ({"last_residual": False}, 4_984_881),
        ({"norm_first": True, "depthwise_bias": False, "mask": "relu"}, 5_038_257),
        ({"norm_first": True, "depthwise_bias": False, "mask": "relu", "hidden": 256}, 2_629_809),
        ({"skip": 0}, 3_474_609),
        ({"norm": "cLN", "causal": True}, 5_050_545),
    ],
)
def test_sizes_are_the_published_ones(options: dict, count: int):
    with torch.device("meta"):
        model = ConvTasNet(**options)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.receptive_field_frames == 1531
    if not options:
        assert model.macs_per_frame == 4_976_640


@torch.no_grad()
def test_the_receptive_field_is_what_changes_a_mask():
    model = small(norm="channelwise", block_kernel=5, causal=True)
    encoded_bnt = torch.randn(1, 32, 200, generator=torch.Generator().manual_seed(0))
    changed_bnt = encoded_bnt.clone()
    changed_bnt[..., 50] += 1
    moved = (model.masks(encoded_bnt) != model.masks(changed_bnt)).any(2).any(1)[0].nonzero()
    assert (moved.min(), moved.max()) == (50, 49 + model.receptive_field_frames)


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("padding", ["full", "none", "windows"])
@torch.no_grad()
def test_any_length_comes_back(options: dict, padding: str):
    model = small(padding=padding, **options)
    for num_samples in (1, 7, 8, 15, 16, 17, 803):
        estimate_bst = model(torch.randn(2, num_samples, generator=torch.Generator().manual_seed(0)))
        assert estimate_bst.shape == (2, 2, num_samples)
        assert estimate_bst.isfinite().all()
    if padding == "full":
        assert (estimate_bst != 0).all(1).all()


@pytest.mark.parametrize(("kernel_size", "stride"), [(16, 8), (40, 8), (20, 6), (8, 8)])
def test_every_sample_lies_in_equally_many_frames(kernel_size: int, stride: int):
    framing = Framing(kernel_size, stride, "full")
    for num_samples in (1, 5, 99, 100):
        positions = framing.pad(torch.ones(1, num_samples)).unfold(-1, kernel_size, stride).shape[1]
        assert positions == framing.num_frames(num_samples)
        covered = torch.zeros((positions - 1) * stride + kernel_size)
        for frame in range(positions):
            covered[frame * stride : frame * stride + kernel_size] += 1
        inside = covered[framing.left : framing.left + num_samples]
        assert inside.numel() == num_samples
        assert inside.min() >= kernel_size // stride
        assert inside.max() <= -(-kernel_size // stride)


@pytest.mark.parametrize("options", FORMS)
@torch.no_grad()
def test_no_level_is_special(options: dict, speech: tuple[Tensor, Tensor]):
    mixture_bt, sources_bst = speech
    model = small(**options)
    usual_bst = model(mixture_bt)
    for gain_db in (-80, -55, -20, 20):
        gain = 10 ** (gain_db / 20)
        estimate_bst = model(mixture_bt * gain)
        assert si_sdr(estimate_bst / gain, usual_bst).min() > 60
        change = si_sdr(estimate_bst, sources_bst) - si_sdr(usual_bst, sources_bst)
        assert change.abs().max() < 0.01
        assert torch.allclose(estimate_bst / gain, usual_bst, atol=1e-3 * float(usual_bst.abs().max()))


@torch.no_grad()
def test_without_the_gain_a_low_level_would_be_special(speech: tuple[Tensor, Tensor]):
    for model in (small(), small(norm="cLN", causal=True, input_eps=1e-8)):
        wave_bt = speech[0]
        assert si_sdr(model.separate(wave_bt * 1e-4), model.separate(wave_bt)).min() < 40


@pytest.mark.parametrize("options", FORMS)
def test_silence_gives_silence_and_finite_gradients(options: dict):
    model = small(**options).train()
    noise_bt = 0.1 * torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    half_bt = torch.cat([torch.zeros(1, 200), noise_bt[:, :200]], 1)
    estimate_bst = model(torch.cat([torch.zeros(1, 400), noise_bt, half_bt, 1e-30 * noise_bt]))
    assert not estimate_bst[0].any()
    assert estimate_bst[1:].isfinite().all()
    estimate_bst.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_masks_may_exceed_one_or_sum_to_one():
    encoded_bnt = torch.randn(1, 32, 20, generator=torch.Generator().manual_seed(0))
    for mask in ("relu", "sigmoid", "softmax"):
        model = small(mask=mask)
        torch.nn.init.constant_(model.mask.bias, 3.0)
        mask_bsnt = model.masks(encoded_bnt)
        assert (mask_bsnt.max() > 2) == (mask == "relu")
        assert mask_bsnt.min() >= 0
        assert torch.allclose(mask_bsnt.sum(1), torch.ones(1, 32, 20)) == (mask == "softmax")


@pytest.mark.parametrize("options", FORMS)
@torch.no_grad()
def test_only_a_causal_model_is_blind_to_what_comes_later(options: dict):
    model = small(**options)
    wave_bt = torch.randn(1, 800, generator=torch.Generator().manual_seed(0))
    changed_bt = wave_bt.clone()
    changed_bt[:, 400:] *= 10
    difference_t = (model(wave_bt) - model(changed_bt)).abs().amax((0, 1))
    assert (difference_t[: 400 - 15].max() == 0) == model.causal
    assert difference_t[400:].max() > 0


@pytest.mark.parametrize("options", [{}, {"norm": "cLN", "causal": True}])
def test_recomputing_changes_no_gradient(options: dict):
    wave_bt = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    grads = []
    for recompute in (False, True):
        model = small(recompute=recompute, **options).train()
        model(wave_bt).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for kept, again in zip(*grads, strict=True):
        assert torch.allclose(kept, again, rtol=1e-4, atol=1e-5 * float(kept.abs().max()))


def test_least_squares_and_consistency(speech: tuple[Tensor, Tensor]):
    mixture_bt, sources_bst = speech
    skewed_bst = sources_bst * torch.tensor([[[0.003], [40.0]]])
    assert torch.allclose(least_squares(skewed_bst, mixture_bt), sources_bst, atol=1e-4)
    noise_bst = sources_bst + 0.01 * torch.randn(sources_bst.shape, generator=torch.Generator().manual_seed(0))
    levelled_bst = least_squares(100 * noise_bst, mixture_bt)
    assert torch.allclose(si_sdr(levelled_bst, sources_bst), si_sdr(noise_bst, sources_bst), atol=1e-3)
    assert torch.allclose(consistent(100 * noise_bst, mixture_bt).sum(1), mixture_bt, atol=1e-5)
    assert not torch.allclose(levelled_bst.sum(1), mixture_bt, atol=1e-3)
    model = small(output="consistent")
    assert torch.allclose(model(mixture_bt).sum(1), mixture_bt, atol=1e-5)
    assert not model(0 * mixture_bt).any()


def test_gains_of_silent_and_equal_estimates_are_finite_and_so_are_their_gradients():
    wave_t = torch.randn(200, generator=torch.Generator().manual_seed(0))
    for pair in ([0 * wave_t, wave_t], [0 * wave_t, 0 * wave_t], [wave_t, wave_t]):
        estimate_bst = torch.stack(pair)[None].requires_grad_()
        levelled_bst = least_squares(estimate_bst, 2 * wave_t[None])
        levelled_bst.sum().backward()
        assert levelled_bst.isfinite().all()
        assert estimate_bst.grad.isfinite().all()
    assert torch.allclose(levelled_bst[0, 0], wave_t, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"causal": True}, "model.norm=gLN looks at the whole recording"),
        ({"causal": True, "norm": "BN"}, "model.norm=BN looks at whole batches"),
        ({"causal": True, "norm": "cLN", "output": "least_squares"}, "needs the whole recording"),
        ({"skip": 0, "last_residual": False}, "model.skip=0 takes the masks from"),
        ({"stride": 17}, "model.stride=17 would leave samples between"),
        ({"stride": 4, "padding": "windows"}, "half a kernel"),
        ({"num_speakers": 6}, "give 2 to 5"),
        ({"num_speakers": 1}, "give 2 to 5"),
        ({"mask": "tanh"}, "model.mask='tanh' does not fit"),
        ({"norm": "cln"}, "model.norm='cln' does not fit"),
        ({"padding": "same"}, "model.padding='same' does not fit"),
        ({"output": "loud"}, "model.output='loud' does not fit"),
        ({"blocks": 0}, "model.blocks=0 does not fit"),
        ({"skip": -1}, "model.skip=-1 does not fit"),
        ({"recompute": True, "norm": "BN"}, "count each batch twice"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict, expected: str):
    with pytest.raises(InputError, match=expected):
        ConvTasNet(**options)


@pytest.mark.parametrize("shape", [(2, 0), (100,), (2, 2, 100)])
def test_mixtures_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(InputError, match=r"give \(batch, time\) with at least one sample"):
        small()(torch.zeros(shape))


def naive_cumulative(x_bct: Tensor, eps: float) -> Tensor:
    """The definition, frame by frame, in double precision."""
    frames = []
    for last in range(x_bct.shape[-1]):
        so_far = x_bct[..., : last + 1].double()
        mean, variance = so_far.mean((1, 2)), so_far.var((1, 2), correction=0)
        frames.append((x_bct[..., last].double() - mean[:, None]) / (variance[:, None] + eps).sqrt())
    return torch.stack(frames, -1)


def test_norms_over_frames_are_their_definition_and_differentiable():
    g = torch.Generator().manual_seed(0)
    x_bct = 3 + torch.randn(2, 4, 30, generator=g)
    ones, zeros = torch.ones(4), torch.zeros(4)
    expected = naive_cumulative(x_bct, 1e-8)
    assert torch.allclose(cumulative_norm(x_bct, ones, zeros, 1e-8)[0].double(), expected, atol=1e-5)
    first, sums = cumulative_norm(x_bct[..., :11], ones, zeros, 1e-8)
    second, _ = cumulative_norm(x_bct[..., 11:], ones, zeros, 1e-8, sums)
    assert torch.allclose(torch.cat([first, second], -1).double(), expected, atol=1e-5)
    alone = torch.nn.functional.layer_norm(x_bct.mT, (4,), eps=1e-8).mT
    assert torch.allclose(channelwise_norm(x_bct, ones, zeros, 1e-8), alone, atol=1e-5)
    inputs = [torch.randn(shape, generator=g).double().requires_grad_() for shape in ((2, 4, 5), (4,), (4,))]
    assert torch.autograd.gradcheck(lambda x, w, b: cumulative_norm(x, w, b, 1e-8)[0], inputs)
    assert torch.autograd.gradcheck(lambda x, w, b: channelwise_norm(x, w, b, 1e-8), inputs)


def test_ten_minutes_are_normalised_as_exactly_as_the_first_second():
    g = torch.Generator().manual_seed(0)
    x_bct = 1 + torch.randn(1, 8, 600_000, generator=g)  # frames of 1 ms
    normed_bct, _ = cumulative_norm(x_bct, torch.ones(8), torch.zeros(8), 1e-8)
    for last in (999, 599_999):
        so_far = x_bct[..., : last + 1].double()
        expected = (so_far[..., -1] - so_far.mean()) / so_far.std(correction=0)
        assert torch.allclose(normed_bct[..., last].double(), expected, atol=2e-6)


def test_half_precision_of_a_model_on_silence_is_finite():
    for options in ({}, {"norm": "cLN", "causal": True}):
        model = small(**options).train()
        with torch.autocast("cpu", torch.bfloat16):
            estimate_bst = model(torch.cat([torch.zeros(1, 400), torch.ones(1, 400).cumsum(-1)]))
        estimate_bst.float().square().sum().backward()
        assert estimate_bst.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
