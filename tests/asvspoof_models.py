"""What the tests of the asvspoof models share: tiny encoders, models on them, comparison."""

from __future__ import annotations

import torch

from audiolab.tasks.asvspoof.backend import BiMamba
from audiolab.tasks.asvspoof.dual_stream import DualStream
from audiolab.tasks.asvspoof.model import Detector
from audiolab.tasks.asvspoof.sinc import SincStream
from audiolab.tasks.asvspoof.ssl import SSLStream

TINY_WAVLM = {
    "model_type": "wavlm",
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
TINY_WAV2VEC2 = TINY_WAVLM | {"model_type": "wav2vec2", "conv_bias": True}
LORA = {"r": 2, "alpha": 8, "dropout": 0.1, "targets": ["q_proj", "v_proj"]}


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


def tiny_ssl(config=TINY_WAVLM, **options):
    return SSLStream(None, config, **({"mask_time_length": 2} | options))


def tiny_sinc(**options):
    return SincStream(**({"channels": [4, 4, 8]} | options))


def tiny_bimamba(num_blocks=2):
    return BiMamba(dim=16, num_blocks=num_blocks, d_state=4)


def dual(sinc=None, **ssl):
    """The dual-stream model; `sinc` holds options of the sinc stream, the rest are the encoder's."""
    stream = tiny_ssl(**({"freeze_layers": 1, "mask_time_prob": 0.075} | ssl))
    return Detector(DualStream(stream, tiny_sinc(**(sinc or {})), dim=16, se_reduction=4), tiny_bimamba(), dropout=0.1)


def sinc_only(num_blocks=2, **sinc):
    return Detector(tiny_sinc(**sinc), tiny_bimamba(num_blocks), dropout=0.1)


def count(module, trainable_only=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)
