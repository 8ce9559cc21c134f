"""Streaming a causal model: the offline result at any chunk size, after the latency that is stated."""

from __future__ import annotations

import pytest
import torch
from separation_reference import small

from audiolab.errors import InputError
from audiolab.tasks.separation.streaming import ConvTasNetStream

CHUNKS = [[1], [7], [5000], [3, 500, 0, 8, 1]]
CAUSAL = {"causal": True, "norm": "cLN"}


def wave(num_samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(2, num_samples, generator=torch.Generator().manual_seed(seed))


def streamed(stream: ConvTasNetStream, wave_bt: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Feed chunks of these sizes, over and over; never may more than the latency be owed."""
    out, taken, given = [], 0, 0
    while taken < wave_bt.shape[-1]:
        chunk_bt = wave_bt[:, taken : taken + sizes[len(out) % len(sizes)]]
        out.append(stream.step(chunk_bt))
        taken, given = taken + chunk_bt.shape[-1], given + out[-1].shape[-1]
        assert 0 <= taken - given < stream.latency_samples
    return torch.cat([*out, stream.flush()], -1)


@pytest.mark.parametrize(
    "options",
    [
        CAUSAL,
        {**CAUSAL, "norm": "channelwise", "mask": "relu", "norm_first": True, "depthwise_bias": False},
        {**CAUSAL, "padding": "none", "kernel_size": 40, "encoder_relu": True},
        {**CAUSAL, "padding": "windows", "last_residual": False},
        {**CAUSAL, "skip": 0, "kernel_size": 20, "stride": 6, "block_kernel": 2, "num_speakers": 3, "mask": "softmax"},
        {**CAUSAL, "kernel_size": 8, "stride": 8, "hidden": 24},
    ],
)
@torch.no_grad()
def test_any_chunks_give_the_offline_result(options: dict):
    model = small(**options)
    for num_samples in (1, 17, 403):
        wave_bt = wave(num_samples)
        for sizes in CHUNKS:
            estimate_bst = streamed(model.stream(), wave_bt, sizes)
            assert estimate_bst.shape == (2, model.num_speakers, num_samples)
            assert (estimate_bst - model(wave_bt)).abs().max() < 1e-5


@torch.no_grad()
def test_the_latency_is_reached_and_no_sample_owed_at_its_end():
    model = small(**CAUSAL)
    stream, owed, given = model.stream(), [], 0
    for taken in range(1, 65):
        given += stream.step(wave(1)).shape[-1]
        owed.append(taken - given)
    assert max(owed) == stream.latency_samples - 1 == model.framing.kernel_size - 1


@torch.no_grad()
def test_after_a_flush_another_recording_begins():
    model = small(**CAUSAL)
    stream = model.stream()
    for seed in (0, 1):
        wave_bt = wave(301, seed)
        assert (streamed(stream, wave_bt, [100]) - model(wave_bt)).abs().max() < 1e-5


@torch.no_grad()
def test_a_long_stream_keeps_to_its_memory_and_to_the_offline_result():
    model = small(**CAUSAL)
    stream, wave_bt = model.stream(), wave(80_000)
    sizes = set()
    out = []
    for chunk_bt in wave_bt.split(800, -1):
        out.append(stream.step(chunk_bt))
        sizes.add(sum(block.frames_bct.numel() for block in stream._blocks))
    assert len(sizes) == 1
    estimate_bst = torch.cat([*out, stream.flush()], -1)
    assert (estimate_bst - model(wave_bt)).abs().max() < 1e-5


@torch.no_grad()
def test_a_quiet_recording_after_silence_streams_as_a_loud_one():
    model = small(**CAUSAL)
    wave_bt = torch.cat([torch.zeros(2, 200), wave(400)], -1)
    loud = streamed(model.stream(), wave_bt, [50])
    assert not loud[..., :180].any()
    assert torch.allclose(streamed(model.stream(), 1e-4 * wave_bt, [50]) * 1e4, loud, atol=1e-5)


def test_what_cannot_be_streamed_is_refused():
    with pytest.raises(InputError, match="not causal and needs the whole recording"):
        small().stream()
    stream = small(**CAUSAL).stream()
    with pytest.raises(InputError, match="without a sample"):
        stream.flush()
    stream.step(torch.zeros(2, 10))
    with pytest.raises(InputError, match="does not continue the stream"):
        stream.step(torch.zeros(1, 10))
