"""The shared Mamba: equal to the reference, to the plain recurrence and to itself one frame at a time."""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from audiolab.errors import InputError
from audiolab.nn import mamba as mamba_module
from audiolab.nn.mamba import Mamba, scan_backend, scan_with_kernel
from audiolab.nn.selective_scan import ScanPlan, plan_scan, selective_scan

PLANS = [
    None,
    ScanPlan(37, 1),  # one segment, one chunk: the plain loop
    ScanPlan(16, 1),  # segments of unequal length
    ScanPlan(37, 5),  # chunks, the last one padded
    ScanPlan(16, 4),
    ScanPlan(10, 7),  # whole chunks of padding
    ScanPlan(1, 1),
    ScanPlan(37, 37),
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recurrence(x, delta, A, B, C, state):
    """The definition, step by step, in autograd."""
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        state = decay * state + (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        outputs.append((state * C[:, t, None]).sum(-1))
    return torch.stack(outputs, 1), state


def scan_inputs(batch, num_steps, channels, states, dtype=torch.float64, seed=0, delta_max=1.0, rate_max=3.0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=dtype)

    def uniform(high, *shape):
        return torch.rand(shape, generator=g, dtype=dtype) * high

    tensors = (
        normal(batch, num_steps, channels),
        uniform(delta_max, batch, num_steps, channels),
        -uniform(rate_max, channels, states),
        normal(batch, num_steps, states),
        normal(batch, num_steps, states),
        normal(batch, channels, states),
    )
    return [tensor.requires_grad_() for tensor in tensors]


def assert_close(ours, reference, relative=1e-5):
    """Relative to the largest value of the reference."""
    ours, reference = (torch.as_tensor(value).detach().double() for value in (ours, reference))
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= relative * reference.abs().max()


def reference_mamba(shared):
    blocks = np.load(shared / "reference" / "asvspoof" / "model_blocks.npz")
    layer = Mamba(d_model=16, d_state=8, d_conv=4, expand=2)
    prefix = "mamba/w/"
    weights = {key.removeprefix(prefix): torch.tensor(blocks[key]) for key in blocks if key.startswith(prefix)}
    layer.load_state_dict(weights, strict=True)
    return layer, torch.tensor(blocks["mamba/x"]), torch.tensor(blocks["mamba/y"])


# --- the scan ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
def test_scan_and_all_gradients_equal_the_recurrence_however_time_is_cut(plan):
    tensors = scan_inputs(2, 37, 3, 4)
    y, last = selective_scan(*tensors, plan=plan)
    y_expected, last_expected = recurrence(*tensors)
    assert_close(y, y_expected, 1e-12)
    assert_close(last, last_expected, 1e-12)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    ours = torch.autograd.grad((y * weights).sum() + last.sum(), tensors)
    expected = torch.autograd.grad((y_expected * weights).sum() + last_expected.sum(), tensors)
    for gradient, reference in zip(ours, expected, strict=True):
        assert_close(gradient, reference, 1e-12)


@pytest.mark.parametrize("plan", [ScanPlan(3, 1), ScanPlan(7, 3)])
def test_gradcheck(plan):
    tensors = scan_inputs(2, 7, 3, 2)
    assert torch.autograd.gradcheck(lambda *inputs: selective_scan(*inputs, plan=plan), tensors)
    with pytest.raises(RuntimeError, match="has no gradient of its own"):
        torch.autograd.grad(selective_scan(*tensors, plan=plan)[0].sum(), tensors[:1], create_graph=True)


@pytest.mark.parametrize("plan", [None, ScanPlan(4000, 40)])
@pytest.mark.parametrize(("delta_max", "rate_max"), [(0.1, 16.0), (50.0, 1e3), (1e4, 1e4), (1e-6, 1e-6)])
def test_long_sequences_and_extreme_steps_stay_finite_and_equal_the_recurrence(plan, delta_max, rate_max):
    tensors = scan_inputs(1, 4000, 4, 3, torch.float32, delta_max=delta_max, rate_max=rate_max)
    y, last = selective_scan(*tensors, plan=plan)
    with torch.no_grad():
        y_expected, last_expected = recurrence(*(tensor.double() for tensor in tensors))
    assert_close(y, y_expected)
    assert_close(last, last_expected)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum(), tensors))


def test_plan_bounds_the_working_memory_and_cuts_small_problems_into_chunks():
    assert plan_scan(10**6, 8 * 512 * 16, "cpu").segment_len * 8 * 512 * 16 <= 2**20
    assert plan_scan(10**6, 24 * 288 * 16, "cuda").segment_len * 24 * 288 * 16 <= 2**25
    assert plan_scan(500, 32 * 16, "cpu").num_chunks > 10
    assert plan_scan(3, 2**30, "cpu") == ScanPlan(3, 1)
    for device, state_numel in (("cpu", 2**20), ("cpu", 2**9), ("cuda", 2**24), ("cuda", 2**17)):
        plan = plan_scan(4000, state_numel, device)
        assert plan.segment_len / plan.num_chunks >= 10


def test_backward_keeps_a_fraction_of_the_states():
    tensors = scan_inputs(2, 400, 32, 16, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        selective_scan(*tensors)
    all_states = 2 * 400 * 32 * 16
    inputs = sum(tensor.numel() for tensor in tensors)
    assert sum(kept) <= inputs + all_states / 8


def test_autocast_changes_neither_the_scan_nor_its_gradients():
    tensors = scan_inputs(2, 37, 3, 4, torch.float32)
    y, _ = selective_scan(*tensors)
    expected = torch.autograd.grad(y.sum(), tensors)
    with torch.autocast("cpu", torch.bfloat16):
        y_autocast, _ = selective_scan(*tensors)
        gradients = torch.autograd.grad(y_autocast.sum(), tensors)
    assert y_autocast.dtype == torch.float32
    assert torch.equal(y, y_autocast)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_empty_sequence_is_refused():
    with pytest.raises(InputError, match="at least one frame"):
        selective_scan(*(tensor[:, :0] for tensor in scan_inputs(1, 1, 2, 2)))
    with pytest.raises(InputError, match=r"got \(1, 0, 4\)"):
        Mamba(d_model=4)(torch.zeros(1, 0, 4))


# --- the layer --------------------------------------------------------------------------------------------------


def test_layer_equals_the_reference_and_loads_its_weights(shared):
    layer, x, y = reference_mamba(shared)
    assert_close(layer(x), y)


def test_step_by_step_equals_the_whole_sequence(shared):
    layer, x, y = reference_mamba(shared)
    state, frames = None, []
    with torch.no_grad():
        for t in range(x.shape[1]):
            frame, state = layer.step(x[:, t], state)
            frames.append(frame)
    assert_close(torch.stack(frames, 1), y)


def test_layer_is_causal(shared):
    layer, x, _ = reference_mamba(shared)
    changed = x.clone()
    changed[:, 20:] = 3.0
    y, y_changed = layer(x), layer(changed)
    assert torch.equal(y[:, :20], y_changed[:, :20])
    assert (y[:, 20:] != y_changed[:, 20:]).any()


def test_parameters_and_initialisation_are_those_of_mamba_ssm():
    torch.manual_seed(0)
    layer = Mamba(d_model=144)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    assert shapes == {
        "A_log": (288, 16),
        "D": (288,),
        "in_proj.weight": (576, 144),
        "conv1d.weight": (288, 1, 4),
        "conv1d.bias": (288,),
        "x_proj.weight": (9 + 32, 288),
        "dt_proj.weight": (288, 9),
        "dt_proj.bias": (288,),
        "out_proj.weight": (144, 288),
    }
    assert sum(math.prod(shape) for shape in shapes.values()) == 145_440
    step = F.softplus(layer.dt_proj.bias)
    assert step.min() >= 1e-3 * 0.9999
    assert step.max() <= 0.1 * 1.0001
    # log-uniform: the median of 288 draws is near the geometric mean 0.01
    assert 0.006 < step.median() < 0.017
    weight = layer.dt_proj.weight * 9**0.5  # uniform in -1 .. 1
    assert -1 <= weight.min() < -0.99
    assert 0.99 < weight.max() <= 1
    assert abs(weight.mean()) < 0.05
    assert torch.allclose(layer.A_log.exp(), torch.arange(1.0, 17.0).expand(288, 16))
    assert torch.equal(layer.D, torch.ones(288))


def test_dt_rank():
    assert Mamba(d_model=20, dt_rank=3).x_proj.out_features == 3 + 32
    assert Mamba(d_model=20).dt_rank == 2
    with pytest.raises(InputError, match="dt_rank='full'"):
        Mamba(d_model=20, dt_rank="full")


def test_wrong_shapes_are_named():
    layer = Mamba(d_model=8)
    with pytest.raises(InputError, match=r"\(batch, time, 8\) here and got \(2, 5, 9\)"):
        layer(torch.zeros(2, 5, 9))
    with pytest.raises(InputError, match=r"\(batch, 8\) here and got \(2, 5, 8\)"):
        layer.step(torch.zeros(2, 5, 8))


def test_every_parameter_and_the_input_get_a_gradient(shared):
    layer, x, _ = reference_mamba(shared)
    x.requires_grad_()
    layer(x).square().sum().backward()
    for name, tensor in {"input": x, **dict(layer.named_parameters())}.items():
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, name


def test_autocast_keeps_the_layer_near_float32_and_returns_half(shared):
    layer, x, y = reference_mamba(shared)
    with torch.autocast("cpu", torch.bfloat16):
        y_half = layer(x)
    assert y_half.dtype == torch.bfloat16
    assert_close(y_half.float(), y, 0.02)


def test_float64_layer_agrees_with_float32(shared):
    layer, x, y = reference_mamba(shared)
    assert_close(layer.double()(x.double()), y, 1e-6)


# --- the kernel of mamba_ssm ------------------------------------------------------------------------------------


def test_kernel_is_called_in_its_own_layout():
    x, delta, A, B, C, _ = (tensor.detach() for tensor in scan_inputs(2, 11, 3, 4))
    gate, bias, D = x.flip(1), torch.tensor([0.1, -0.2, 0.3]).double(), torch.tensor([1.0, 2.0, 3.0]).double()

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        """The documented contract of mamba_ssm.ops.selective_scan_interface: (batch, channel or state, time)."""
        assert all(tensor.is_contiguous() for tensor in (u, delta, B, C, z))
        assert delta_softplus
        step = F.softplus(delta + delta_bias[:, None])
        inputs = (tensor.transpose(1, 2) for tensor in (u, step))
        zero = u.new_zeros(*u.shape[:2], A.shape[1])
        y, _ = recurrence(*inputs, A, B.transpose(1, 2), C.transpose(1, 2), zero)
        return (y.transpose(1, 2) + D[:, None] * u) * F.silu(z)

    ours = scan_with_kernel(selective_scan_fn, x, delta, A, B, C, D, gate, bias)
    y, _ = selective_scan(x, F.softplus(delta + bias), A, B, C)
    assert_close(ours, (y + D * x) * F.silu(gate), 1e-12)


@pytest.fixture
def fresh_import(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    mamba_module._load_kernel.cache_clear()
    yield
    mamba_module._load_kernel.cache_clear()


def test_absent_kernel_gives_its_reason_without_a_warning(monkeypatch, fresh_import):
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name == "mamba_ssm":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scan_backend("cuda") == "pure PyTorch (mamba_ssm is not installed)"


def test_broken_kernel_warns_once_and_falls_back(monkeypatch, tmp_path, fresh_import):
    package = tmp_path / "mamba_ssm"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('undefined symbol: _ZN3c10')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(RuntimeWarning, match="undefined symbol") as caught:
        first, second = scan_backend("cuda"), scan_backend("cuda")
    assert len(caught) == 1
    assert first == second
    assert "RuntimeError: undefined symbol" in first


def test_working_kernel_is_taken(monkeypatch, tmp_path, fresh_import):
    package = tmp_path / "mamba_ssm" / "ops"
    package.mkdir(parents=True)
    (package / "selective_scan_interface.py").write_text("def selective_scan_fn():\n    return 'ran'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert scan_backend("cuda") == "mamba_ssm kernel"
    assert mamba_module._load_kernel()[0]() == "ran"
