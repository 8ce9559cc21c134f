"""Mamba over many short sequences: the same numbers and gradients as over few."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from audiolab.nn import mamba as mamba_module
from audiolab.nn import many_sequences
from audiolab.nn.mamba import Mamba
from audiolab.nn.many_sequences import conv_silu, gated_scan
from audiolab.nn.selective_scan import selective_scan


def drawn(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def scan_inputs(steps: int, channels: int, states: int, sequences: int) -> list[torch.Tensor]:
    x, dt, A, B, C, D, gate, bias = drawn(
        *[(steps, channels, sequences)] * 2, (channels, states), *[(steps, states, sequences)] * 2,
        (channels,), (steps, channels, sequences), (channels,),
    )  # fmt: skip
    return [x, dt, (-A.detach().exp()).requires_grad_(), B, C, D, gate, bias]


@pytest.mark.parametrize("segment_len", [1, 3, 7, 50])
def test_scan_and_all_gradients_equal_the_other_layouts(segment_len: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(many_sequences, "_SEGMENT_NUMEL", segment_len * 5 * 3 * 4)
    tensors = scan_inputs(11, 5, 3, 4)

    def expected(x, dt, A, B, C, D, gate, bias):
        x, dt, B, C, gate = (tensor.permute(2, 0, 1) for tensor in (x, dt, B, C, gate))
        y, _ = selective_scan(x, F.softplus(dt + bias), A, B, C)
        return ((y + D * x) * F.silu(gate)).permute(1, 2, 0)

    sides = [function(*tensors) for function in (gated_scan, expected)]
    (weight,) = drawn(tuple(sides[0].shape))
    torch.testing.assert_close(*sides, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((side * weight).sum(), tensors) for side in sides]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


def test_gradcheck():
    tensors = scan_inputs(3, 2, 2, 3)
    assert torch.autograd.gradcheck(gated_scan, tensors)
    with pytest.raises(RuntimeError, match="has no gradient of its own"):
        torch.autograd.grad(gated_scan(*tensors).sum(), tensors[:1], create_graph=True)


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_convolution_and_its_gradients_equal_torchs(steps: int):
    x, weight, bias = tensors = drawn((steps, 3, 5), (3, 4), (3,))

    def expected(x, weight, bias):
        padded = F.pad(x.permute(2, 1, 0), (3, 0))
        return F.silu(F.conv1d(padded, weight[:, None], bias, groups=3)).permute(2, 1, 0)

    sides = [function(x, weight, bias) for function in (conv_silu, expected)]
    torch.testing.assert_close(*sides, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(side.square().sum(), tensors) for side in sides]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)
    assert torch.autograd.gradcheck(conv_silu, tensors)


@pytest.mark.parametrize(("kind", "relative"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("sequences", [25, 300])
def test_layer_gives_the_same_whether_sequences_or_channels_are_innermost(
    sequences: int, kind: torch.dtype, relative: float, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    layer = Mamba(24, d_state=4, expand=1).to(kind)
    nn.init.normal_(layer.D)
    (x,) = drawn((sequences, 13, 24))
    x = x.detach().to(kind).requires_grad_()
    calls = []

    def both() -> list[torch.Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    monkeypatch.setattr(mamba_module, "gated_scan", lambda *tensors: calls.append(1) or gated_scan(*tensors))
    ours = both()
    monkeypatch.setattr(mamba_module, "by_hand", lambda tensor: False)
    expected = both()
    assert len(calls) == 1
    for tensor, reference in zip(ours, expected, strict=True):
        assert tensor.dtype == kind
        assert (tensor - reference).abs().max() <= relative * reference.abs().max()
    monkeypatch.undo()
    part = layer(x[: sequences // 2])  # fewer than channels, or fewer: no matter
    assert (part - ours[0][: sequences // 2]).abs().max() <= relative * part.abs().max()


def test_extreme_steps_stay_finite():
    x, dt, A, B, C, D, gate, bias = (tensor.detach().float() for tensor in scan_inputs(50, 4, 3, 40))
    for scale in (1e4, 1e-6):
        tensors = [x, dt * scale, A * scale, B, C, D, gate, bias]
        y = gated_scan(*(tensor.requires_grad_() for tensor in tensors))
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum(), tensors))
