"""The self-supervised stream: WavLM and wav2vec 2.0 against transformers, freezing, LoRA, what it loads and refuses."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from asvspoof_models import LORA, TINY_WAV2VEC2, TINY_WAVLM, assert_close, tiny_ssl

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.lora import add_lora
from audiolab.tasks.asvspoof.ssl import SSLStream
from audiolab.tasks.asvspoof.wavlm_attention import relative_position_buckets

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def transformers_model(stream):
    """The encoder as transformers builds it, with the weights of ours."""
    import transformers

    name = {"wavlm": "WavLMModel", "wav2vec2": "Wav2Vec2Model"}[stream.encoder.config.model_type]
    model = getattr(transformers, name)(stream.encoder.config)
    model.load_state_dict(stream.encoder.state_dict(), strict=True)
    return model.eval()


@pytest.mark.parametrize("config", [TINY_WAVLM, TINY_WAV2VEC2], ids=["wavlm", "wav2vec2"])
@pytest.mark.parametrize("stable", [True, False])
def test_hidden_states_equal_transformers(config, stable):
    config = config | {"do_stable_layer_norm": stable, "feat_extract_norm": "layer" if stable else "group"}
    stream = SSLStream(pretrained=None, config=config).eval()
    wave_bt = torch.randn(2, 4000)
    with torch.no_grad():
        for parameter in stream.encoder.encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # gates and position bias that are not near zero
        theirs = transformers_model(stream)(wave_bt, output_hidden_states=True)
        expected = [*theirs.hidden_states[:-1], theirs.last_hidden_state]
        ours = stream.hidden_states(wave_bt)
    assert len(ours) == len(expected) == 4
    for state, reference in zip(ours, expected, strict=True):
        assert_close(state, reference, 2e-6)


def test_position_buckets_equal_transformers():
    from transformers import WavLMConfig
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    config = WavLMConfig()
    attention = WavLMAttention(16, 2, num_buckets=config.num_buckets, max_distance=config.max_bucket_distance)
    buckets = relative_position_buckets(1000, config.num_buckets, config.max_bucket_distance)
    assert torch.equal(attention.rel_attn_embed(buckets).permute(2, 0, 1), attention.compute_bias(1000, 1000))


def test_output_is_the_softmax_weighted_sum():
    stream = SSLStream(pretrained=None, config=TINY_WAVLM).eval()
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
    stream = SSLStream(pretrained=None, config=TINY_WAVLM, freeze_layers=2)
    encoder = stream.encoder.encoder
    frozen = [stream.encoder.feature_extractor, stream.encoder.feature_projection, *encoder.layers[:2]]
    for mode in (stream.train(), stream.eval(), stream.train(True)):
        assert mode is stream
    for part in frozen:
        assert not any(module.training for module in part.modules())
        assert not any(parameter.requires_grad for parameter in part.parameters())
    assert all(module.training for module in encoder.layers[2].modules())
    assert all(parameter.requires_grad for parameter in encoder.layers[2].parameters())
    # dropout acts behind the frozen projection, not in it
    wave_bt = torch.randn(1, 4000)
    features = [stream.encoder.feature_projection(stream.encoder.feature_extractor(wave_bt).mT)[0] for _ in range(2)]
    assert torch.equal(*features)
    assert not torch.equal(stream(wave_bt), stream(wave_bt))


def test_fully_frozen_layers_have_no_dropout_at_all():
    config = TINY_WAVLM | {"hidden_dropout": 0.0}  # the dropout after the positional convolution is not frozen
    stream = SSLStream(pretrained=None, config=config, freeze_layers=3)
    wave_bt = torch.randn(1, 4000)
    assert torch.equal(stream(wave_bt), stream(wave_bt))


@pytest.mark.parametrize(
    "options", [{"freeze_layers": 1}, {"freeze_layers": "all", "lora": LORA}], ids=["plain", "lora"]
)
def test_gradient_checkpointing_changes_no_gradient(options):
    wave_bt = torch.randn(2, 4000)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        stream = SSLStream(None, TINY_WAVLM, gradient_checkpointing=checkpointing, **options)
        torch.manual_seed(2)
        calls = Counter()
        for layer in stream.encoder.encoder.layers:
            layer.register_forward_pre_hook(lambda *_, calls=calls: calls.update(["forward"]))
        stream(wave_bt).square().mean().backward()
        assert calls["forward"] == (6 if checkpointing else 3)  # frozen layers are recomputed too
        gradients.append({name: p.grad for name, p in stream.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert "encoder.masked_spec_embed" not in gradients[0]  # nothing is masked, so nothing is learnt for it
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-7), name


def test_time_mask_in_training_only():
    stream = SSLStream(None, TINY_WAVLM, mask_time_prob=0.2, mask_time_length=5)
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
    assert stream.encoder.masked_spec_embed.grad.abs().sum() > 0
    stream.eval()
    with torch.no_grad():
        before = stream(wave_bt)
        stream.encoder.masked_spec_embed.fill_(100.0)
        assert torch.equal(stream(wave_bt), before)


def test_local_folder_is_read_completely(tmp_path):
    torch.manual_seed(3)
    saved = SSLStream(pretrained=None, config=TINY_WAVLM)
    saved.encoder.save_pretrained(tmp_path)
    torch.manual_seed(4)
    for config in (None, TINY_WAVLM):
        loaded = SSLStream(pretrained=str(tmp_path), config=config)
        ours, theirs = loaded.encoder.state_dict(), saved.encoder.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())


def test_incomplete_or_wrong_folders_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    def refuse(match, **options):
        with pytest.raises(InputError, match=match) as caught:
            SSLStream(pretrained=str(tmp_path), **options)
        assert "pretrained=null" in str(caught.value) or "front_end.config=null" in str(caught.value)

    refuse("no config.json")
    saved = SSLStream(pretrained=None, config=TINY_WAVLM).encoder
    saved.config.save_pretrained(tmp_path)
    refuse("no encoder weights that can be read")
    saved.save_pretrained(tmp_path)
    refuse(r"asks for hidden_size=32, but .* has 16", config={"hidden_size": 32})
    weights = load_file(tmp_path / "model.safetensors")
    fewer = {name: weight for name, weight in weights.items() if "layers.1.feed_forward" not in name}
    save_file(fewer, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refuse("lacks 4 of the weights")
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    refuse("no encoder weights that can be read")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "hubert"}))
    refuse("has a hubert model, neither WavLM nor wav2vec 2.0")
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "wav2vec2"}))
    refuse("asks for model_type='wavlm', but .* has 'wav2vec2'", config=TINY_WAVLM)


def test_unreachable_hub_or_missing_folder_is_explained(monkeypatch):
    name = "nobody/no-such-wavlm"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        SSLStream(pretrained=name)
    message = str(caught.value)
    for part in (repr(name), "neither a folder here nor complete in the local", "network", "pretrained=null"):
        assert part in message
    for path in ("no/such/folder/here", "/nowhere/wavlm", "~/nowhere", "./wavlm", "wavlm.safetensors"):
        with pytest.raises(InputError, match=r"The folder pretrained='.*' of the encoder does not exist"):
            SSLStream(pretrained=path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"config": None}, "neither pretrained weights nor a config"),
        ({"config": TINY_WAVLM | {"model_type": "whisper"}}, "model_type='whisper'; give wavlm or wav2vec2"),
        ({"config": TINY_WAVLM | {"hiden_size": 8}}, "no option 'hiden_size'; did you mean 'hidden_size'"),
        ({"config": TINY_WAVLM | {"conv_dim": [8, 8]}}, "The WavLM config is not valid"),
        ({"freeze_layers": 4}, "freeze_layers=4, but 3 layers of the encoder are in use"),
        ({"freeze_layers": -1}, "give 0 to 3"),
        ({"layers": [1], "freeze_layers": 2}, "but 1 layers of the encoder are in use"),
        ({"layers": [2, 4]}, "hidden states 0 to 3"),
        ({"layers": [2, 1]}, "ascending list"),
        ({"layers": []}, "ascending list"),
        ({"layers": "last"}, "ascending list"),
        ({"lora": LORA}, "freeze_layers=0: give all"),
        ({"freeze_layers": "all", "lora": {"rank": 8}}, "no option 'rank'"),
        ({"freeze_layers": "all", "lora": {"r": 8}}, "lora.alpha is missing"),
        ({"freeze_layers": "all", "lora": LORA | {"r": 0}}, "r=0"),
        ({"freeze_layers": "all", "lora": LORA | {"targets": ["query"]}}, "choose from .*'q_proj'"),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(InputError, match=match):
        SSLStream(pretrained=None, **({"config": TINY_WAVLM} | options))


def test_a_pretraining_checkpoint_of_wav2vec2_is_read(tmp_path):
    """XLS-R's public weights carry the prefix and the quantiser of pre-training."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    whole = Wav2Vec2ForPreTraining(Wav2Vec2Config(**TINY_WAV2VEC2))
    whole.save_pretrained(tmp_path)
    stream = SSLStream(pretrained=str(tmp_path), config=TINY_WAV2VEC2)
    for name, weight in whole.wav2vec2.state_dict().items():
        assert torch.equal(stream.encoder.state_dict()[name], weight), name


# --- which states, and keeping them -----------------------------------------------------------------------------


def test_layers_above_the_highest_are_taken_out():
    wave_bt = torch.randn(2, 4000)
    torch.manual_seed(1)
    states = tiny_ssl().eval().hidden_states(wave_bt)
    for layers in ([0, 2], [1], [3]):
        torch.manual_seed(1)
        stream = tiny_ssl(layers=layers).eval()
        assert len(stream.encoder.encoder.layers) == layers[-1]
        for number, state in zip(layers, stream.hidden_states(wave_bt), strict=True):
            assert torch.equal(state, states[number])
        output = stream(wave_bt)
        assert_close(output, sum(states[number] for number in layers) / len(layers), 1e-6)
        output.square().mean().backward()
        for name, parameter in stream.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
        assert (stream.layer_logits is None) == (len(layers) == 1)


def test_states_without_a_mix_are_all_of_them():
    wave_bt = torch.randn(2, 4000)
    stream = tiny_ssl(mix=False).eval()
    assert stream.num_layers == 4
    assert torch.equal(stream(wave_bt), stream.encode(wave_bt))
    assert stream(wave_bt).shape == (2, 4, 12, 16)


def test_a_frozen_encoder_has_no_graph_no_dropout_and_states_that_can_be_kept():
    wave_bt = torch.randn(2, 4000)
    stream = tiny_ssl(freeze_layers="all").train()
    assert stream.is_frozen
    assert not any(module.training for module in stream.encoder.modules())
    assert [name for name, p in stream.named_parameters() if p.requires_grad] == ["layer_logits"]
    states = stream.encode(wave_bt)
    assert not states.requires_grad
    assert torch.equal(states, stream.encode(wave_bt))
    assert_close(stream(wave_bt, states), stream(wave_bt), 1e-6)
    stream(wave_bt, states.half()).square().mean().backward()
    assert stream.layer_logits.grad.abs().max() > 0
    with pytest.raises(InputError, match="2 hidden states were given; 4 are in use"):
        stream(wave_bt, states[:, :2])


@pytest.mark.parametrize(
    "options",
    [{"freeze_layers": 3}, {"freeze_layers": "all", "lora": LORA}, {"freeze_layers": "all", "mask_time_prob": 0.1}],
)
def test_states_that_change_in_training_may_not_be_kept(options):
    stream, wave_bt = tiny_ssl(**options).train(), torch.randn(2, 4000)
    with torch.no_grad():
        for name, parameter in stream.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert not stream.is_frozen
    assert not torch.equal(stream.encode(wave_bt), stream.encode(wave_bt))


# --- LoRA -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[TINY_WAVLM, TINY_WAV2VEC2], ids=["wavlm", "wav2vec2"])
def with_and_without_lora(request):
    """Two streams with the same encoder weights."""
    streams = []
    for lora in (LORA, None):
        torch.manual_seed(5)
        streams.append(tiny_ssl(request.param, freeze_layers="all", lora=lora))
    return streams


def draw_adapters(stream):
    with torch.no_grad():
        for name, parameter in stream.named_parameters():
            if "lora_B" in name:
                parameter.normal_()


def test_lora_changes_nothing_until_it_has_learnt_and_then_equals_merged_weights(with_and_without_lora):
    adapted, plain = (stream.eval() for stream in with_and_without_lora)
    wave_bt = torch.randn(2, 4000)
    assert_close(adapted(wave_bt), plain(wave_bt), 1e-6)  # attention may take another kernel where it has a gradient
    draw_adapters(adapted)
    assert (adapted(wave_bt) - plain(wave_bt)).abs().max() > 0.01
    for layer, merged in zip(adapted.encoder.encoder.layers, plain.encoder.encoder.layers, strict=True):
        for name in LORA["targets"]:
            adapter = getattr(layer.attention, name)
            product = adapter.lora_B["default"].weight @ adapter.lora_A["default"].weight
            getattr(merged.attention, name).weight.data += LORA["alpha"] / LORA["r"] * product.detach()
    assert_close(adapted(wave_bt), plain(wave_bt))


def test_each_adapter_acts(with_and_without_lora):
    """WavLM's own attention reads the weights of its projections and would pass every adapter by."""
    adapted, plain = (stream.eval() for stream in with_and_without_lora)
    wave_bt = torch.randn(1, 4000)
    reference = plain(wave_bt)
    adapters = [(name, p) for name, p in adapted.named_parameters() if "lora_B" in name]
    assert len(adapters) == 3 * 2
    for name, parameter in adapters:
        parameter.data.normal_()
        assert not torch.allclose(adapted(wave_bt), reference, atol=1e-4), name
        parameter.data.zero_()


def test_lora_trains_adapters_and_nothing_else_of_the_encoder(with_and_without_lora):
    stream, _ = with_and_without_lora
    stream.train()
    draw_adapters(stream)
    wave_bt = torch.randn(2, 4000)
    stream(wave_bt).square().mean().backward()
    for name, parameter in stream.named_parameters():
        if "lora_" in name or name == "layer_logits":
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
    training = {name for name, module in stream.encoder.named_modules() if module.training}
    assert training
    assert all("lora_dropout" in name for name in training)
    assert not torch.equal(stream(wave_bt), stream(wave_bt))
    assert torch.equal(stream.eval()(wave_bt), stream(wave_bt))


def test_lora_is_applied_once(with_and_without_lora):
    stream, _ = with_and_without_lora
    with pytest.raises(InputError, match="has LoRA adapters already"):
        add_lora(stream.encoder, LORA)


def test_adapters_come_back_from_a_strict_load():
    stream, wave_bt = tiny_ssl(freeze_layers="all", lora=LORA).eval(), torch.randn(2, 4000)
    draw_adapters(stream)
    other = tiny_ssl(freeze_layers="all", lora=LORA).eval()
    assert not torch.equal(other(wave_bt), stream(wave_bt))
    weights = stream.state_dict()
    other.load_state_dict(weights, strict=True)
    assert torch.equal(other(wave_bt), stream(wave_bt))
    del weights[next(name for name in weights if "lora_B" in name)]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(weights, strict=True)
