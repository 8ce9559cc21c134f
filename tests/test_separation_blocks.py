"""The block of Conv-TasNet and what it is made of: equal to torch's own operations, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from audiolab.errors import InputError
from audiolab.nn.depthwise import depthwise_conv
from audiolab.nn.frame_norm import channelwise_norm
from audiolab.nn.prelu import prelu
from audiolab.tasks.separation.blocks import Block

# kernel, dilation, causal, norm_first, depthwise_bias, residual, skip, frames
FORMS = [
    (3, 4, False, False, True, True, 6, 29),  # the paper's
    (3, 2, False, True, False, True, 6, 29),  # the seed's
    (3, 8, True, False, True, True, 6, 29),
    (3, 128, False, False, True, True, 6, 29),  # only the middle tap reaches the signal
    (3, 128, True, True, True, True, 6, 29),
    (4, 3, False, False, True, True, 6, 29),
    (2, 5, False, True, True, True, 6, 29),
    (1, 1, False, False, False, True, 6, 29),
    (5, 1, True, False, True, True, 6, 29),
    (3, 4, False, False, True, False, 6, 29),  # torchaudio's last block
    (3, 4, False, False, True, True, 0, 29),
    (3, 1, False, False, True, True, 6, 1),
]


def block_of(form, norm="gLN", dtype=torch.float64, recompute=False, seed=0):
    kernel, dilation, causal, norm_first, depthwise_bias, residual, skip, _ = form
    options = {"causal": causal, "norm_first": norm_first, "depthwise_bias": depthwise_bias, "residual": residual}
    block = Block(4, 7, skip, kernel, dilation, norm, **options, recompute=recompute).to(dtype)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in block.parameters():  # none may keep a value that hides a mistake
            value.copy_(0.5 * torch.randn(value.shape, generator=g, dtype=dtype) + 0.2)
    return block


def mixture(form, dtype=torch.float64, batch=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, form[-1], generator=g, dtype=dtype).requires_grad_()


def plain(block, x, form):
    """Torch's own operations, one after the other, on the block's parameters."""
    kernel, dilation, causal, norm_first, *_ = form
    weights = dict(block.named_parameters())

    def act_norm(x, place):
        def act(x):
            return F.prelu(x, weights[f"act{place}.weight"])

        def norm(x):
            return F.group_norm(x, 1, weights[f"norm{place}.weight"], weights[f"norm{place}.bias"], 1e-8)

        return act(norm(x)) if norm_first else norm(act(x))

    x = act_norm(F.conv1d(x, weights["expand.weight"], weights["expand.bias"]), 1)
    reach = (kernel - 1) * dilation
    left = reach if causal else reach // 2
    x = F.pad(x, (left, reach - left))
    x = F.conv1d(x, weights["depthwise.weight"], weights.get("depthwise.bias"), dilation=dilation, groups=x.shape[1])
    x = act_norm(x, 2)
    ends = []
    for name in ("residual", "skip"):
        if f"{name}.weight" in weights:
            ends.append(F.conv1d(x, weights[f"{name}.weight"], weights[f"{name}.bias"]))
    return ends


def gradients(outputs, inputs, seed=2):
    """Of a random projection of all outputs."""
    g = torch.Generator().manual_seed(seed)
    outputs = [output for output in outputs if output is not None]
    projected = sum((x * torch.randn(x.shape, generator=g, dtype=x.dtype)).sum() for x in outputs)
    return torch.autograd.grad(projected, inputs, retain_graph=True)


def assert_equal(ours, reference, relative):
    """Relative to the largest value of each tensor of the reference."""
    ours, reference = ([x for x in xs if x is not None] for xs in (ours, reference))
    for a, b in zip(ours, reference, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= relative * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_outputs_and_gradients_are_those_of_the_plain_operations(form):
    block, x = block_of(form), mixture(form)
    inputs = [x, *block.parameters()]
    ours, reference = block(x), plain(block, x, form)
    assert "FusedBlock" in str(next(y for y in ours if y is not None).grad_fn.next_functions)
    assert [end is None for end in ours] == [not form[5], not form[6]]
    assert_equal(ours, reference, 1e-12)
    if form[-1] > 1:
        assert_equal(gradients(ours, inputs), gradients(reference, inputs), 1e-10)
    with torch.no_grad():
        assert_equal(block(x), reference, 1e-12)
    assert_equal([block.ends(x)], [torch.cat(reference, 1)], 1e-12)  # what a GPU, a compiler or another norm runs
    assert_equal(gradients([block.ends(x)], inputs), gradients([torch.cat(reference, 1)], inputs), 1e-10)


@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_in_single_precision_the_difference_is_rounding(form):
    form = (*form[:-1], 2000)
    block, x = block_of(form, dtype=torch.float32), mixture(form, torch.float32)
    exact, x_exact = block_of(form), mixture(form).detach()
    exact.load_state_dict(block.state_dict())
    x_exact = x.detach().double().requires_grad_()
    reference = plain(exact, x_exact, form)
    wanted = gradients(reference, [x_exact, *exact.parameters()])
    ours = block(x)
    inputs = [x, *block.parameters()]
    g = torch.Generator().manual_seed(2)
    projected = sum((y * torch.randn(y.shape, generator=g, dtype=torch.float64).float()).sum() for y in ours)
    assert_equal(ours, reference, 1e-6)
    assert_equal(torch.autograd.grad(projected, inputs), wanted, 5e-6)


@pytest.mark.parametrize("form", FORMS[:3], ids=str)
def test_an_utterance_does_not_depend_on_its_batch(form):
    block, x = block_of(form), mixture(form)
    together = block(x)
    for item in range(len(x)):
        assert_equal(block(x[item : item + 1]), [y[item : item + 1] for y in together], 1e-14)
    assert block(x[:0])[0].shape == (0, 4, 29)
    strided = torch.empty(3, 29, 4, dtype=x.dtype).copy_(x.detach().mT).mT  # as after a transpose
    assert_equal(block(strided), together, 1e-14)


def kept_bytes(block, x):
    """What autograd keeps for the backward, every storage once, without parameters."""
    own = {value.untyped_storage().data_ptr() for value in [x, *block.parameters()]}
    storages = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = block(x)
    del outputs
    return sum(storages.values())


@pytest.mark.parametrize("norm", ["gLN", "cLN", "channelwise"])
@pytest.mark.parametrize("form", FORMS[1:3], ids=str)
def test_recomputed_gradients_are_the_same_bits_and_little_is_kept(form, norm):
    block, again = block_of(form, norm), block_of(form, norm, recompute=True)
    x = mixture(form)
    ours, reference = (gradients(each(x), [x, *each.parameters()]) for each in (again, block))
    assert all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))
    one = x.shape[0] * 7 * x.shape[-1] * x.itemsize  # a tensor of hidden size
    assert kept_bytes(again, x) < 0.5 * one
    assert norm != "gLN" or kept_bytes(block, x) < 2.5 * one


def test_recompute_with_batch_norm_is_refused():
    with pytest.raises(InputError, match=r"model.recompute does not go with model.norm=BN"):
        block_of(FORMS[0], "BN", recompute=True)


def test_frozen_parts_get_no_gradient_and_change_nothing_for_the_rest():
    form = FORMS[0]
    block, x = block_of(form), mixture(form)
    all_gradients = dict(
        zip(["x", *dict(block.named_parameters())], gradients(block(x), [x, *block.parameters()]), strict=True)
    )
    for frozen in (["expand.weight", "act1.weight"], ["depthwise.weight", "depthwise.bias", "norm2.bias"]):
        for name, value in block.named_parameters():
            value.requires_grad_(name not in frozen)
            value.grad = None
        wave = mixture(form).detach()
        learning = {name: value for name, value in block.named_parameters() if value.requires_grad}
        for name, gradient in zip(learning, gradients(block(wave), list(learning.values())), strict=True):
            assert torch.equal(gradient, all_gradients[name]), name
    block.requires_grad_(False)
    assert not block(x.detach())[0].requires_grad
    assert torch.equal(gradients(block(x), [x])[0], all_gradients["x"])


def test_a_second_derivative_is_refused():
    block, x, taps = block_of(FORMS[0]), mixture(FORMS[0]), torch.ones(4, 3, dtype=torch.float64)
    for y in (
        block(x)[0],
        depthwise_conv(x, taps, None, 1, 1),
        prelu(x, torch.tensor([0.25])),
        channelwise_norm(x, torch.ones(4), torch.zeros(4), 1e-8),
    ):
        with pytest.raises(RuntimeError, match=r"has no gradient of its own: leave out create_graph=True"):
            torch.autograd.grad(y.sum(), [x], create_graph=True)


def test_silence_gives_finite_outputs_and_gradients():
    for form in FORMS[:2]:
        block = block_of(form, dtype=torch.float32)
        torch.nn.init.zeros_(block.expand.bias)
        x = torch.zeros(1, 4, 50, requires_grad=True)
        outputs = block(x)
        assert all(torch.isfinite(y).all() for y in (*outputs, *gradients(outputs, [x, *block.parameters()])))


def test_a_compiler_and_autocast_get_the_plain_operations():
    form = FORMS[0]
    block, x = block_of(form, dtype=torch.float32), mixture(form, torch.float32)
    reference = block(x)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    assert_equal(compiled(x), reference, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = block(x)
    assert outputs[0].dtype == torch.bfloat16
    assert_equal([y.float() for y in outputs], reference, 0.05)


@pytest.mark.parametrize("norm", ["cLN", "channelwise", "BN"])
def test_other_norms_learn(norm):
    block, x = block_of(FORMS[2], norm), mixture(FORMS[2])
    inputs = [x, *block.parameters()]
    assert torch.autograd.gradcheck(lambda x: sum(y.sin().sum() for y in block(x)), [x], fast_mode=True)
    assert all(gradient.abs().max() > 0 for gradient in gradients(block(x), inputs))


@pytest.mark.parametrize("num_frames", [1, 2, 7, 20])
@pytest.mark.parametrize(
    ("taps", "dilation", "left"),
    [(3, 1, 1), (3, 2, 4), (3, 4, 0), (4, 3, 4), (2, 1, 0), (1, 1, 0), (3, 30, 30), (3, 9, 18)],
)
def test_depthwise_convolution_is_that_of_torch(taps, dilation, left, num_frames):
    g = torch.Generator().manual_seed(taps)
    shapes = ((2, 5, num_frames), (5, taps), (5,))
    inputs = [torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]
    x, weight, bias = inputs
    padded = F.pad(x, (left, (taps - 1) * dilation - left))
    reference = F.conv1d(padded, weight[:, None], bias, dilation=dilation, groups=5)
    ours = depthwise_conv(x, weight, bias, dilation, left)
    assert_equal([ours], [reference], 1e-12)
    assert_equal(gradients([ours], inputs), gradients([reference], inputs), 1e-12)
    without = depthwise_conv(x, weight, None, dilation, left)
    assert_equal([without + bias[:, None]], [reference], 1e-12)
    assert_equal(gradients([without], [weight]), gradients([reference], [weight]), 1e-12)


@pytest.mark.parametrize("slope", [0.25, 0.0, 1.0, -0.5, 3.0])
def test_prelu_is_that_of_torch(slope):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, 700, generator=g, dtype=torch.float64)  # several slabs
    x[0, 0, :5] = 0
    inputs = x.requires_grad_(), torch.tensor([slope], dtype=torch.float64, requires_grad=True)
    ours, reference = prelu(*inputs), F.prelu(*inputs)
    assert torch.equal(ours, reference)
    assert_equal(gradients([ours], inputs), gradients([reference], inputs), 1e-12)
