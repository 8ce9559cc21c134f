"""The asvspoof models: every block against the recorded numbers of the public code, then the whole models."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.backend import BiMambaBlock
from audiolab.tasks.asvspoof.fusion import SEFusion, SqueezeExcitation
from audiolab.tasks.asvspoof.head import AttentionPoolingHead
from audiolab.tasks.asvspoof.model import DualStreamSEMamba, SincMamba
from audiolab.tasks.asvspoof.sinc import (
    PooledSincBank,
    SincBlock,
    SincStream,
    band_pass_filters,
    mel_band_edges_hz,
)
from audiolab.tasks.asvspoof.wavlm import WavLMStream

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
    (r"^classifier/w/", "classifier."),
    (r"^first_bn\.", "norm.0."),
    (r"^encoder\.(\d)\.0\.bn(\d)\.", r"blocks.\1.norm\2.0."),
    (r"^encoder\.(\d)\.0\.conv_downsample\.", r"blocks.\1.skip."),
    (r"^encoder\.(\d)\.0\.conv", r"blocks.\1.conv"),
]
TINY_WAVLM = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "feat_proj_dropout": 0.5,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "layerdrop": 0.5,
}
LARGE_WAVLM = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
}
SMALL = {"sinc_channels": [4, 4, 8], "d_model": 16, "num_blocks": 2, "d_state": 4, "se_reduction": 4}


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


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


def assert_close(ours, reference, relative=1e-5):
    """Relative to the largest value of the reference."""
    ours, reference = (torch.as_tensor(value).detach().double() for value in (ours, reference))
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= relative * reference.abs().max()


def tone_batch(num=6, num_samples=2600, seed=0):
    """Waveforms with noise, half of them with a tone: something that a detector can learn at once."""
    g = torch.Generator().manual_seed(seed)
    wave_bt = 0.05 * torch.randn(num, num_samples, generator=g)
    label_b = torch.arange(num) % 2
    tone_t = 0.3 * torch.sin(2 * torch.pi * 1000 / 16000 * torch.arange(num_samples))
    return wave_bt + label_b[:, None] * tone_t, label_b


def dual(**options):
    defaults = {"pretrained": None, "wavlm_config": TINY_WAVLM, "freeze_layers": 1, "mask_time_length": 2} | SMALL
    return DualStreamSEMamba(**(defaults | options))


def count(module, trainable_only=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


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


def test_head(blocks):
    head = AttentionPoolingHead(dim=32)
    keys = [key for key in blocks if re.match(r"head/\w+/w/", key)]
    head.load_state_dict({our_name(key.removeprefix("head/")): torch.tensor(blocks[key]) for key in keys}, strict=True)
    head.eval()
    x = torch.tensor(blocks["head/x"])
    assert_close(head.pool(x), blocks["head/features"])
    assert (head.train().pool(x) == 0).any()  # the embedding is what the dropout leaves, as losses on it expect
    head.eval()
    assert_close(head(x), blocks["head/logits"])


# --- sizes ------------------------------------------------------------------------------------------------------


def test_parameter_totals():
    assert count(SincStream()) == 211_074
    assert count(SEFusion(1024, 64)) == 203_632
    block = BiMambaBlock()
    assert count(block) == 312_624
    assert count(block.mamba) == 145_440
    assert SincStream()(torch.zeros(1, 64_600)).shape == (1, 29, 64)


def test_parameter_totals_of_the_full_model():
    with torch.device("meta"):
        model = DualStreamSEMamba(pretrained=None, wavlm_config=LARGE_WAVLM, pre_activation=True)
    assert count(model.wavlm.wavlm) == 315_453_120
    assert count(model) - count(model.wavlm.wavlm) == 1_665_950
    assert count(model) == 317_119_070
    assert count(model, trainable_only=True) == 85_639_342
    # the public code has trainable opening norms in five of its sinc blocks and does not use them; ours freezes them
    assert count(SincStream(), trainable_only=True) == 211_074 - 512


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


# --- the WavLM stream -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stable", [True, False])
def test_hidden_states_equal_transformers(stable):
    config = TINY_WAVLM | {"do_stable_layer_norm": stable, "feat_extract_norm": "layer" if stable else "group"}
    stream = WavLMStream(pretrained=None, config=config).eval()
    wave_bt = torch.randn(2, 4000)
    with torch.no_grad():
        theirs = stream.wavlm(wave_bt, output_hidden_states=True)
        expected = [*theirs.hidden_states[:-1], theirs.last_hidden_state]
        ours = stream.hidden_states(wave_bt)
    assert len(ours) == len(expected) == 4
    for state, reference in zip(ours, expected, strict=True):
        assert_close(state, reference, 1e-6)


def test_output_is_the_softmax_weighted_sum():
    stream = WavLMStream(pretrained=None, config=TINY_WAVLM).eval()
    wave_bt = torch.randn(2, 4000)
    with torch.no_grad():
        states = torch.stack(stream.hidden_states(wave_bt))
        assert torch.equal(stream.layer_logits, torch.zeros(4))
        assert_close(stream(wave_bt), states.mean(0))
        stream.layer_logits.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0]))
        assert_close(stream(wave_bt), states[2])
        with torch.autocast("cpu", torch.bfloat16):
            assert stream(wave_bt).dtype == torch.float32


def test_frozen_parts_stay_frozen_and_in_eval_mode():
    stream = WavLMStream(pretrained=None, config=TINY_WAVLM, freeze_layers=2)
    encoder = stream.wavlm.encoder
    frozen = [stream.wavlm.feature_extractor, stream.wavlm.feature_projection, *encoder.layers[:2]]
    for mode in (stream.train(), stream.eval(), stream.train(True)):
        assert mode is stream
    for part in frozen:
        assert not any(module.training for module in part.modules())
        assert not any(parameter.requires_grad for parameter in part.parameters())
    assert all(module.training for module in encoder.layers[2].modules())
    assert all(parameter.requires_grad for parameter in encoder.layers[2].parameters())
    # dropout acts behind the frozen projection, not in it
    wave_bt = torch.randn(1, 4000)
    features = [stream.wavlm.feature_projection(stream.wavlm.feature_extractor(wave_bt).mT)[0] for _ in range(2)]
    assert torch.equal(*features)
    assert not torch.equal(stream(wave_bt), stream(wave_bt))


def test_fully_frozen_layers_have_no_dropout_at_all():
    config = TINY_WAVLM | {"hidden_dropout": 0.0}  # the dropout after the positional convolution is not frozen
    stream = WavLMStream(pretrained=None, config=config, freeze_layers=3)
    wave_bt = torch.randn(1, 4000)
    assert torch.equal(stream(wave_bt), stream(wave_bt))


def test_gradient_checkpointing_changes_no_gradient():
    wave_bt = torch.randn(2, 4000)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        stream = WavLMStream(None, TINY_WAVLM, freeze_layers=1, gradient_checkpointing=checkpointing)
        torch.manual_seed(2)
        calls = Counter()
        for layer in stream.wavlm.encoder.layers:
            layer.register_forward_pre_hook(lambda *_, calls=calls: calls.update(["forward"]))
        stream(wave_bt).square().mean().backward()
        assert calls["forward"] == (6 if checkpointing else 3)  # frozen layers are recomputed too
        gradients.append({name: p.grad for name, p in stream.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert "wavlm.masked_spec_embed" not in gradients[0]  # nothing is masked, so nothing is learnt for it
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-7), name


def test_time_mask_in_training_only():
    stream = WavLMStream(None, TINY_WAVLM, mask_time_prob=0.2, mask_time_length=5)
    masks = torch.stack([stream._draw_mask(3, 60) for _ in range(200)])
    per_utterance = masks.sum(-1)
    # 0.2 * 60 / 5 = 2.4 spans of 5 on average, at least 2, overlap allowed
    assert per_utterance.min() >= 5
    assert per_utterance.max() <= 15
    assert 8 < per_utterance.float().mean() < 12.5
    assert masks.any(0).all()
    assert stream._draw_mask(2, 4).sum() == 0
    assert stream._draw_mask(2, 7).sum() == 10
    wave_bt = torch.randn(1, 4000)
    stream(wave_bt).sum().backward()
    assert stream.wavlm.masked_spec_embed.grad.abs().sum() > 0
    stream.eval()
    with torch.no_grad():
        before = stream(wave_bt)
        stream.wavlm.masked_spec_embed.fill_(100.0)
        assert torch.equal(stream(wave_bt), before)


def test_local_folder_is_read_completely(tmp_path):
    torch.manual_seed(3)
    saved = WavLMStream(pretrained=None, config=TINY_WAVLM)
    saved.wavlm.save_pretrained(tmp_path)
    torch.manual_seed(4)
    for config in (None, TINY_WAVLM):
        loaded = WavLMStream(pretrained=str(tmp_path), config=config)
        ours, theirs = loaded.wavlm.state_dict(), saved.wavlm.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())


def test_incomplete_or_wrong_folders_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    def refuse(match, **options):
        with pytest.raises(InputError, match=match) as caught:
            WavLMStream(pretrained=str(tmp_path), **options)
        assert "pretrained=null" in str(caught.value) or "Remove the option" in str(caught.value)

    refuse("no config.json")
    saved = WavLMStream(pretrained=None, config=TINY_WAVLM).wavlm
    saved.config.save_pretrained(tmp_path)
    refuse("no WavLM weights that can be read")
    saved.save_pretrained(tmp_path)
    refuse(r"asks for hidden_size=32, but .* has 16", config={"hidden_size": 32})
    weights = load_file(tmp_path / "model.safetensors")
    fewer = {name: weight for name, weight in weights.items() if "layers.1.feed_forward" not in name}
    save_file(fewer, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refuse("lacks 4 of the weights")
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    refuse("no WavLM weights that can be read")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "wav2vec2"}))
    refuse("has a wav2vec2 model, not WavLM")


@pytest.mark.parametrize("name", ["nobody/no-such-wavlm", "no/such/folder/here"])
def test_unreachable_hub_or_missing_folder_is_explained(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        WavLMStream(pretrained=name)
    message = str(caught.value)
    for part in (repr(name), "neither a folder here nor in the local", "network", "pretrained=null"):
        assert part in message


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"config": None}, "neither pretrained weights nor a config"),
        ({"config": TINY_WAVLM | {"hiden_size": 8}}, "no option 'hiden_size'; did you mean 'hidden_size'"),
        ({"config": TINY_WAVLM | {"conv_dim": [8, 8]}}, "The WavLM config is not valid"),
        ({"config": TINY_WAVLM, "freeze_layers": 4}, "freeze_layers=4, but this WavLM has 3 layers"),
        ({"config": TINY_WAVLM, "freeze_layers": -1}, "give 0 to 3"),
    ],
)
def test_wavlm_options_are_checked(options, match):
    with pytest.raises(InputError, match=match):
        WavLMStream(pretrained=None, **options)


# --- whole models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [dual, lambda: SincMamba(**{k: v for k, v in SMALL.items() if k != "se_reduction"})])
def test_any_length_from_the_shortest_on(model):
    model = model().eval()
    needed = model.min_samples
    for num_samples in (needed, needed + 1, 4001):
        logits_bc = model(torch.randn(2, num_samples))
        assert logits_bc.shape == (2, 2)
        assert logits_bc.isfinite().all()
    assert model.frames(torch.zeros(1, 16_000)).shape[1] > model.frames(torch.zeros(1, needed)).shape[1] == 1
    with pytest.raises(InputError, match=f"at least {needed} samples"):
        model(torch.randn(2, needed - 1))
    with pytest.raises(InputError, match=re.escape("(2, 1, 4000)")):
        model(torch.randn(2, 1, 4000))


def test_full_size_streams_name_the_length_they_need():
    assert SincStream().min_samples == 128 + 3**7
    assert WavLMStream(None, TINY_WAVLM).min_samples == 400
    assert SincMamba(num_blocks=1)(torch.zeros(1, 128 + 3**7)).shape == (1, 2)
    assert dual().min_samples == 400
    assert dual(sinc_channels=[4] * 6).min_samples == 128 + 3**7


def test_gradients_reach_every_trainable_parameter_and_no_other():
    wave_bt, label_b = tone_batch(num_samples=6000)
    for model in (dual(), dual(pre_activation=True, gradient_checkpointing=False), SincMamba(num_blocks=1)):
        F.cross_entropy(model(wave_bt), label_b).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                if not re.search(r"k_proj\.bias|head\.attention\.bias", name):  # they cancel in a softmax
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
    return dual(mask_time_prob=0.0, max_masked_filters=0)


def sinc_without_masks():
    return SincMamba(sinc_channels=[8, 8], d_model=16, num_blocks=1, d_state=4, max_masked_filters=0)


@pytest.mark.parametrize("build", [dual_without_masks, sinc_without_masks])
def test_one_small_batch_is_learnt_in_a_few_steps(build):
    model, (wave_bt, label_b) = build(), tone_batch()
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


def test_unused_opening_norms_are_frozen_and_untouched():
    block = SincBlock(4, 8, first=False, pre_activation=False)
    before = {name: value.clone() for name, value in block.norm1.state_dict().items()}
    block(torch.randn(2, 4, 6, 9)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in block.norm1.state_dict().items())
    assert isinstance(SincBlock(4, 4, first=False, pre_activation=True).skip, nn.Identity)
