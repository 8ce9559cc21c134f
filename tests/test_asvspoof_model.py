"""Whole asvspoof models: sizes, composition, any length, gradients, learning, weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from asvspoof_models import assert_close, count, dual, sinc_only, tiny_bimamba, tiny_sinc, tiny_ssl, tone_batch
from torch.nn import functional as F

from audiolab import assemble, build, config
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.mhfa import MHFA
from audiolab.tasks.asvspoof.model import Detector
from audiolab.tasks.asvspoof.sinc import SincStream, band_pass_filters

CONF = Path(__file__).resolve().parent.parent / "conf" / "model" / "asvspoof"
OTHERS = ["xlsr_mamba_tiny", "wavlm_mhfa_tiny"]
pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


SSL = "model.front_end.ssl"
LORA_OPTIONS = [f"{SSL}.freeze_layers=all", f"{SSL}.lora={{r:8,alpha:32,dropout:0.1,targets:[q_proj,v_proj]}}"]


def from_yaml(name, *overrides, device="cpu"):
    composed = config.compose_run(["task=asvspoof", f"model=asvspoof/{name}", *overrides], "x")
    assemble.check(composed)
    with torch.device(device):
        return build.build(composed["model"])


@pytest.mark.parametrize(
    ("name", "total", "trainable"),
    [
        ("texture", 92_555, 92_555),
        ("sinc_small", 28_789, 28_789),
        ("sinc_mamba", 1_471_941, 1_471_941),
        ("dual_stream_tiny", 59_580, 54_524),
        ("xlsr_mamba_tiny", 34_420, 29_220),
        ("wavlm_mhfa_tiny", 29_504, 24_448),
    ],
)
def test_small_models_have_the_size_that_their_yaml_states_and_score(name, total, trainable):
    model = from_yaml(name)
    assert (count(model), count(model, trainable_only=True)) == (total, trainable)
    assert f"{total:,} parameters" in (CONF / f"{name}.yaml").read_text()
    assert model(torch.randn(2, 16_000)).shape == (2, 2)
    assert model.embed(torch.randn(2, 16_000)).shape == (2, model.embedding_dim)


@pytest.mark.parametrize(
    ("name", "overrides", "total", "trainable"),
    [
        ("dual_stream_se_mamba", [f"{SSL}.pretrained=null"], 317_119_070, 85_639_342),
        ("dual_stream_se_mamba", [f"{SSL}.pretrained=null", *LORA_OPTIONS], 317_119_070 + 786_432, 2_452_382),
        ("xlsr_mamba", ["model.front_end.pretrained=null"], 317_375_956, 312_638_420),
        ("wavlm_mhfa", ["model.front_end.pretrained=null"], 316_769_044, 312_036_116),
        ("wavlm_pooling", ["model.front_end.pretrained=null"], 315_601_756, 148_636),
    ],
)
def test_true_sizes(name, overrides, total, trainable):
    model = from_yaml(name, *overrides, device="meta")
    assert (count(model), count(model, trainable_only=True)) == (total, trainable)
    assert re.search(rf"{317_119_070 if 'dual' in name else total:,} parameters", (CONF / f"{name}.yaml").read_text())


def test_sizes_of_the_parts_of_the_full_model():
    model = from_yaml("dual_stream_se_mamba", f"{SSL}.pretrained=null", device="meta")
    assert count(model.front_end.ssl.encoder) == 315_453_120
    assert count(model) - count(model.front_end.ssl.encoder) == 1_665_950
    assert count(model.front_end.sinc) == 211_074
    assert count(model.front_end.fusion) == 203_632
    # as the public code: the opening norms of five sinc blocks are there and unused; ours freezes them
    as_published = from_yaml(
        "dual_stream_se_mamba", f"{SSL}.pretrained=null", "model.front_end.sinc.pre_activation=false", device="meta"
    )
    assert count(as_published) == count(model)
    assert count(as_published, trainable_only=True) == count(model, trainable_only=True) - 512


def test_the_model_is_the_blocks_in_the_order_of_the_specification():
    """The whole computation once more, step by step, from the weights alone (the encoder's states are given)."""
    model = dual({"pre_activation": True}, freeze_layers="all", mask_time_prob=0.0).eval()
    wave_bt = torch.randn(2, 5000)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point() and "ssl.encoder" not in name and "bank" not in name:
                value.add_(0.1 * torch.rand_like(value))
        states = model.encode(wave_bt)
        ours = model.classify(model.embed(wave_bt, states))
    w = {name: value.double() for name, value in model.state_dict().items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def batch_norm_selu(x, name):
        mean, variance, weight, bias = (
            w[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.selu((x - mean) / (variance + 1e-5).sqrt() * weight + bias)

    def convolve(x, name, padding):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding)

    def mamba(x, name):
        inner, gate = linear(x, f"{name}.in_proj").chunk(2, -1)
        kernel = w[f"{name}.conv1d.weight"]
        padded = F.pad(inner.mT, (kernel.shape[-1] - 1, 0))
        inner = F.silu(F.conv1d(padded, kernel, w[f"{name}.conv1d.bias"], groups=len(kernel))).mT
        rank, size = w[f"{name}.dt_proj.weight"].shape[1], w[f"{name}.A_log"].shape[1]
        step, b, c = linear(inner, f"{name}.x_proj").split([rank, size, size], -1)
        step = F.softplus(linear(step, f"{name}.dt_proj"))
        state, outputs = 0.0, []
        for t in range(x.shape[1]):
            decay = torch.exp(-step[:, t, :, None] * w[f"{name}.A_log"].exp())
            state = decay * state + (step[:, t] * inner[:, t])[..., None] * b[:, t, None]
            outputs.append((state * c[:, t, None]).sum(-1) + w[f"{name}.D"] * inner[:, t])
        return linear(torch.stack(outputs, 1) * F.silu(gate), f"{name}.out_proj")

    # A: layers of the encoder, weighed
    weights = torch.softmax(w["front_end.ssl.layer_logits"], 0)
    a = (states.double() * weights[:, None, None]).sum(1)
    # B: filter bank, residual blocks, maximum over frequency
    filters = torch.tensor(band_pass_filters(70, 129, 16_000), dtype=torch.float64)
    sinc = "front_end.sinc"
    x = F.max_pool2d(F.conv1d(wave_bt.double()[:, None], filters[:, None]).abs(), 3)[:, None]
    x = batch_norm_selu(x, f"{sinc}.norm.0")
    for i in range(3):
        block = f"{sinc}.blocks.{i}"
        y = x if i == 0 else batch_norm_selu(x, f"{block}.norm1.0")
        y = batch_norm_selu(convolve(y, f"{block}.conv1", (1, 1)), f"{block}.norm2.0")
        y = convolve(y, f"{block}.conv2", (0, 1))
        skip = convolve(x, f"{block}.skip", (0, 1)) if f"{block}.skip.weight" in w else x
        x = F.max_pool2d(y + skip, (1, 3))
    b = x.abs().amax(2).mT
    # C: fusion
    fusion = "front_end.fusion"
    a = linear(norm(a, f"{fusion}.norm_a"), f"{fusion}.project_a")
    b = linear(norm(b, f"{fusion}.norm_b"), f"{fusion}.project_b")
    assert a.shape[1] < b.shape[1]  # three blocks only: the sinc stream is the longer one here
    b = F.interpolate(b.mT, size=a.shape[1], mode="linear").mT
    x = linear(torch.cat([a, b], -1), f"{fusion}.join")
    gate = linear(x.mean(1, keepdim=True), f"{fusion}.squeeze_excitation.gate.0").relu()
    x = norm(x * linear(gate, f"{fusion}.squeeze_excitation.gate.2").sigmoid(), f"{fusion}.norm")
    # D: bidirectional blocks with one Mamba each
    for i in range(2):
        block = f"back_end.blocks.{i}"
        n = norm(x, f"{block}.norm1")
        m = mamba(n, f"{block}.mamba") + mamba(n.flip(1), f"{block}.mamba").flip(1)
        hidden = F.gelu(linear(norm(m, f"{block}.norm2"), f"{block}.feed_forward.0"))
        x = x + linear(hidden, f"{block}.feed_forward.2")
    # E: pooling and classifier
    x = norm(x, "back_end.pooling.norm")
    x = (torch.softmax(linear(x, "back_end.pooling.attention"), 1) * x).sum(1)
    assert_close(ours, linear(x, "classifier"))


def test_parts_are_joined_where_their_widths_differ_and_only_there():
    joined, direct = sinc_only(), Detector(tiny_sinc(channels=[4, 16]), tiny_bimamba(), dropout=0.0)
    assert count(joined.project) == 8 * 16 + 16 + 2 * 16
    assert count(direct.project) == 0
    with pytest.raises(InputError, match="reads one sequence of frames, but SSLStream gives 4 hidden states"):
        Detector(tiny_ssl(mix=False), tiny_bimamba(), dropout=0.0)
    with pytest.raises(InputError, match=r"MHFA reads 3 hidden states.*model.front_end.mix"):
        Detector(tiny_ssl(mix=False), MHFA(in_dim=16, num_layers=3), dropout=0.0)


def test_kept_states_stand_for_the_encoder_where_it_is_frozen():
    wave_bt, _ = tone_batch()
    model = dual(freeze_layers="all", mask_time_prob=0.0).eval()
    assert model.is_frozen
    assert_close(model(wave_bt, model.encode(wave_bt)), model(wave_bt), 1e-6)
    assert not torch.equal(model(wave_bt, torch.zeros_like(model.encode(wave_bt))), model(wave_bt))
    for other in (dual(), sinc_only()):
        assert not other.is_frozen
        with pytest.raises(InputError, match="they would be stale"):
            other(wave_bt, torch.zeros(6, 4, 8, 16))
    with pytest.raises(InputError, match="no encoder whose output could be kept"):
        sinc_only().encode(wave_bt)


@pytest.mark.parametrize("model", [dual, sinc_only])
def test_any_length_from_the_shortest_on(model):
    model = model().eval()
    needed = model.min_samples
    for num_samples in (needed, needed + 1, 4001):
        logits_bc = model(torch.randn(2, num_samples))
        assert logits_bc.shape == (2, 2)
        assert logits_bc.isfinite().all()
    assert model.frames(torch.zeros(1, 16_000)).shape[1] > model.frames(torch.zeros(1, needed)).shape[1] == 1
    for call in (model, model.encode) if model.is_frozen else (model,):
        with pytest.raises(InputError, match=f"at least {needed} samples"):
            call(torch.randn(2, needed - 1))
    with pytest.raises(InputError, match=re.escape("(2, 1, 4000)")):
        model(torch.randn(2, 1, 4000))


def test_streams_name_the_length_they_need():
    assert SincStream().min_samples == 128 + 3**7
    assert tiny_ssl().min_samples == 400
    assert sinc_only(channels=[4] * 6)(torch.zeros(1, 128 + 3**7)).shape == (1, 2)
    assert dual().min_samples == 400
    assert dual(sinc={"channels": [4] * 6}).min_samples == 128 + 3**7


def test_gradients_reach_every_trainable_parameter_and_no_other():
    wave_bt, label_b = tone_batch(num_samples=6000)
    models = (dual(), dual({"pre_activation": True}, gradient_checkpointing=True), sinc_only(), *map(from_yaml, OTHERS))
    for model in models:
        F.cross_entropy(model(wave_bt), label_b).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                if not re.search(
                    r"k_proj\.bias|(attention|pooling\.attention)\.bias", name
                ):  # they cancel in a softmax
                    assert parameter.grad.abs().max() > 0, name
                assert parameter.grad.isfinite().all(), name
            else:
                assert parameter.grad is None, name


def test_eval_is_deterministic_and_training_is_not():
    model, (wave_bt, _) = dual(), tone_batch()
    assert not torch.equal(model(wave_bt), model(wave_bt))
    model.eval()
    assert torch.equal(model(wave_bt), model(wave_bt))
    embedding_bd = model.embed(wave_bt)
    assert embedding_bd.shape == (6, 16)
    assert torch.equal(model.classify(embedding_bd), model(wave_bt))


def test_rows_of_a_batch_do_not_mix_in_eval():
    model, (wave_bt, _) = dual().eval(), tone_batch()
    assert_close(model(wave_bt)[2:3], model(wave_bt[2:3]))


def dual_without_masks():
    return dual({"max_masked_filters": 0}, mask_time_prob=0.0)


def sinc_without_masks():
    return sinc_only(num_blocks=1, channels=[8, 8], max_masked_filters=0)


@pytest.mark.parametrize("build_model", [dual_without_masks, sinc_without_masks])
def test_one_small_batch_is_learnt_in_a_few_steps(build_model):
    model, (wave_bt, label_b) = build_model(), tone_batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(model(wave_bt), label_b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.4
    assert losses[-1] < 0.1


def test_weights_round_trip_through_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    wave_bt, _ = tone_batch()
    model = dual().eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(9)
    other = dual().eval()
    assert not torch.equal(other(wave_bt), model(wave_bt))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert torch.equal(other(wave_bt), model(wave_bt))
    # the fixed filter bank is a function of the options and is not saved
    assert not any("bank" in name for name in model.state_dict())


def test_bfloat16_autocast_trains():
    model, (wave_bt, label_b) = dual(), tone_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(wave_bt), label_b)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
