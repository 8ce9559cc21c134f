"""The blocks of the asvspoof models against the recorded numbers of the public code, and the sinc stream."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from asvspoof_models import assert_close, count
from torch import nn
from torch.nn import functional as F

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.backend import AttentionPooling, BiMambaBlock
from audiolab.tasks.asvspoof.fusion import SEFusion, SqueezeExcitation
from audiolab.tasks.asvspoof.sinc import (
    PooledSincBank,
    SincBlock,
    SincStream,
    band_pass_filters,
    mel_band_edges_hz,
)

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")

# The map from the public project's weight names to ours, one pattern a line; names that no pattern matches are equal.
NAMES = [
    (r"^ln_wavlm\.", "norm_a."),
    (r"^ln_sinc\.", "norm_b."),
    (r"^wavlm_proj\.", "project_a."),
    (r"^sinc_proj\.", "project_b."),
    (r"^fusion_proj\.", "join."),
    (r"^se_layer\.fc\.", "squeeze_excitation.gate."),
    (r"^fc\.", "gate."),
    (r"^norm_f/w/", "norm."),
    (r"^attention_pool/w/", "attention."),
    (r"^classifier/w/", ""),
    (r"^first_bn\.", "norm.0."),
    (r"^encoder\.(\d)\.0\.bn(\d)\.", r"blocks.\1.norm\2.0."),
    (r"^encoder\.(\d)\.0\.conv_downsample\.", r"blocks.\1.skip."),
    (r"^encoder\.(\d)\.0\.conv", r"blocks.\1.conv"),
]


@pytest.fixture(scope="module")
def blocks(shared):
    return np.load(shared / "reference" / "asvspoof" / "model_blocks.npz")


@pytest.fixture(scope="module")
def blocks_info(shared):
    return json.loads((shared / "reference" / "asvspoof" / "model_blocks.json").read_text())


def our_name(name):
    for pattern, replacement in NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def load_reference(module, blocks, prefix):
    keys = [key for key in blocks if key.startswith(prefix)]
    module.load_state_dict({our_name(key.removeprefix(prefix)): torch.tensor(blocks[key]) for key in keys}, strict=True)
    return module.eval()


# --- blocks against the reference -------------------------------------------------------------------------------


def test_sinc_filters_and_band_edges(blocks):
    assert np.abs(mel_band_edges_hz(70, 16000) - blocks["sinc/edges_hz"]).max() < 1e-9
    assert_close(band_pass_filters(70, 129, 16000), blocks["sinc/band_pass"])


def sincnet_weights(info):
    """The formula of the reference's README for weight number j and flat index i."""
    weights = {}
    for j, name, shape in info["sincnet_params"]:
        i = np.arange(int(np.prod(shape)), dtype=np.float64)
        if name.endswith("running_mean"):
            value = 0.02 * np.sin(0.37 * i)
        elif name.endswith("running_var"):
            value = 1 + 0.1 * np.cos(0.37 * i)
        elif name.endswith("bias"):
            value = 0.05 * np.cos(0.37 * i + 1.1 * j)
        elif len(shape) > 1:
            value = np.sin(0.37 * i + 1.1 * j) / np.sqrt(np.prod(shape[1:]))
        else:
            value = 1 + 0.1 * np.sin(0.37 * i + 1.1 * j)
        weights[our_name(name)] = torch.tensor(value.reshape(shape), dtype=torch.float32)
    return weights


def load_sincnet(stream, info):
    weights = sincnet_weights(info)
    counters = {name: value for name, value in stream.state_dict().items() if name.endswith("num_batches_tracked")}
    stream.load_state_dict(weights | counters, strict=True)
    return stream.eval()


def test_sinc_stream(blocks, blocks_info):
    stream = load_sincnet(SincStream(), blocks_info)
    with torch.no_grad():
        assert_close(stream(torch.tensor(blocks["sincnet/x"])), blocks["sincnet/y"])


def test_pre_activation_is_the_published_block(blocks, blocks_info):
    """With the opening BN and SELU in use the numbers differ; the difference is exactly that BN and SELU."""
    stream = load_sincnet(SincStream(pre_activation=True), blocks_info)
    x = torch.tensor(blocks["sincnet/x"])
    with torch.no_grad():
        y = stream(x)
        assert (y - torch.tensor(blocks["sincnet/y"])).abs().max() > 0.01
        expected = stream.norm(stream.bank(x).unsqueeze(1))
        for block in stream.blocks:
            opened = expected if block.norm1 is None else F.selu(block.norm1[0](expected))
            main = block.conv2(F.selu(block.norm2[0](block.conv1(opened))))
            skipped = block.skip(expected)
            expected = F.max_pool2d(main + skipped, (1, 3))
        assert_close(y, expected.abs().amax(2).transpose(1, 2))


@pytest.mark.parametrize("case", ["nearest", "linear", "equal"])
def test_fusion(blocks, case):
    fusion = load_reference(SEFusion(dim_a=24, dim_b=8, dim=32), blocks, "fusion/w/")
    ours = fusion(*(torch.tensor(blocks[f"fusion/{case}/{stream}"]) for stream in ("wavlm", "sinc")))
    assert_close(ours, blocks[f"fusion/{case}/y"])


def test_squeeze_excitation(blocks):
    gate = load_reference(SqueezeExcitation(32, reduction=16), blocks, "se/w/")
    assert_close(gate(torch.tensor(blocks["se/x"])), blocks["se/y"])


def test_bidirectional_block(blocks):
    block = load_reference(BiMambaBlock(d_model=16, d_state=8), blocks, "pn_bimamba/w/")
    assert_close(block(torch.tensor(blocks["pn_bimamba/x"])), blocks["pn_bimamba/y"])


def test_attention_pooling_and_classifier(blocks):
    pooling, classifier = AttentionPooling(dim=32), nn.Linear(32, 2)
    for module, pattern in ((pooling, r"head/(norm_f|attention_pool)/w/"), (classifier, r"head/classifier/w/")):
        names = {key: our_name(key.removeprefix("head/")) for key in blocks if re.match(pattern, key)}
        module.load_state_dict({name: torch.tensor(blocks[key]) for key, name in names.items()}, strict=True)
    embedding_bd = pooling(torch.tensor(blocks["head/x"]))
    assert_close(embedding_bd, blocks["head/features"])
    assert_close(classifier(embedding_bd), blocks["head/logits"])


def test_parameter_totals():
    assert count(SincStream()) == 211_074
    assert count(SEFusion(1024, 64)) == 203_632
    block = BiMambaBlock()
    assert count(block) == 312_624
    assert count(block.mamba) == 145_440
    assert SincStream()(torch.zeros(1, 64_600)).shape == (1, 29, 64)


# --- the sinc stream --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_filters", "num_taps"), [(70, 129), (12, 31), (8, 32)])
@pytest.mark.parametrize("num_samples", [131, 132, 155, 156, 1000, 1001, 1002])
def test_bank_is_convolution_magnitude_and_pooling(num_filters, num_taps, num_samples):
    bank = PooledSincBank(num_filters, num_taps, 16000)
    wave_bt = torch.randn(3, num_samples)
    filters = torch.tensor(band_pass_filters(num_filters, num_taps, 16000), dtype=torch.float32)
    keep_f = (torch.arange(num_filters) % 5 != 2).float()
    for keep, kernel in ((None, filters), (keep_f, filters * keep_f[:, None])):
        expected = F.max_pool2d(F.conv1d(wave_bt[:, None], kernel[:, None]).abs(), 3)
        assert_close(bank(wave_bt, keep), expected)


def test_bank_in_pieces_and_under_autocast_is_the_same(monkeypatch):
    bank, wave_bt = PooledSincBank(70, 129, 16000), torch.randn(2, 3000)
    whole = bank(wave_bt)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bank(wave_bt), whole)
    monkeypatch.setattr("audiolab.tasks.asvspoof.sinc._PIECE_NUMEL", {"cpu": 5000, "cuda": 5000})
    assert_close(bank(wave_bt), whole, 1e-6)


def test_bank_passes_gradients_to_the_waveform():
    wave_bt = torch.randn(1, 200, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PooledSincBank(6, 31, 16000).double(), [wave_bt])


def test_frequency_mask_is_a_run_of_adjacent_filters():
    stream = SincStream(channels=[4], max_masked_filters=20)
    draws = torch.stack([stream._draw_kept(torch.zeros(1)) for _ in range(400)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    lengths = (draws == 0).sum(1)
    assert set(lengths.tolist()) == set(range(20))
    # a run that does not touch the lowest filter begins with exactly one step from 1 to 0
    starts = (draws[:, 0] == 0).int() + (draws.diff(dim=1) == -1).sum(1)
    assert torch.equal(starts, (lengths > 0).int())
    assert (draws[:, 0] == 0).any()
    assert (draws[:, -1] == 0).any()


def test_frequency_mask_acts_in_training_only_and_follows_the_seed(monkeypatch):
    stream = SincStream(channels=[4], max_masked_filters=20)
    seen = []
    run = stream.bank.forward
    monkeypatch.setattr(stream.bank, "forward", lambda wave, keep: seen.append(keep) or run(wave, keep))
    wave_bt = torch.randn(2, 1000)
    outputs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outputs.append(stream(wave_bt))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(seen[0], seen[2])
    stream.eval()(wave_bt)
    assert seen[-1] is None


def test_sinc_options_are_checked():
    with pytest.raises(InputError, match="max_masked_filters=80"):
        SincStream(max_masked_filters=80)


def test_sinc_encoder_runs_channels_last():
    stream = SincStream(channels=[4, 8]).eval()
    layouts = []
    for block in stream.blocks:
        block.register_forward_hook(lambda _module, _inputs, out: layouts.append(out.stride(1)))
    stream(torch.randn(2, 1000))
    assert layouts == [1, 1]


def test_unused_opening_norms_are_frozen_and_untouched():
    block = SincBlock(4, 8, first=False, pre_activation=False)
    before = {name: value.clone() for name, value in block.norm1.state_dict().items()}
    block(torch.randn(2, 4, 6, 9)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in block.norm1.state_dict().items())
    assert isinstance(SincBlock(4, 4, first=False, pre_activation=True).skip, nn.Identity)
