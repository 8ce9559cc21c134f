"""The texture front end: what its statistics do and do not depend on, and windows of several lengths side by side."""

from __future__ import annotations

import pytest
import torch

from audiolab.errors import InputError
from audiolab.tasks.asvspoof.texture import TextureFrontEnd, TextureStream


@pytest.fixture
def wave_bt() -> torch.Tensor:
    """Two noises with slow level changes, 1 s, well above the power floor."""
    time_t = torch.arange(16_000) / 16_000
    noise_bt = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(3))
    return noise_bt * (1.2 + torch.sin(2 * torch.pi * torch.tensor([[3.0], [90.0]]) * time_t))


def test_statistics_equal_their_definition(wave_bt: torch.Tensor) -> None:
    stream = TextureStream(window_samples=32, bins_per_band=4, lags=(1, 3), inactive_share=0.4)
    found_d = stream(wave_bt)[0, 0].double()
    level_kn = stream.levels(wave_bt)[0].double()
    active_n = level_kn.mean(0) > level_kn.mean(0).quantile(0.4, interpolation="lower")
    wanted = [level_kn[:, active_n].std(dim=1, correction=0).log()]
    for lag in (1, 3):
        change_kn = (level_kn[:, lag:] - level_kn[:, :-lag]).abs()[:, active_n[lag:]]
        # the few active frames that come before the first change are counted in the denominator
        share = active_n[lag:].sum() / active_n.sum()
        moments = [share * change_kn.pow(power).mean(1) for power in (1, 2, 4)]
        wanted += [moments[0].log(), moments[2].log() - 2 * moments[1].log()]
    torch.testing.assert_close(found_d, torch.cat(wanted), rtol=0, atol=2e-3)


def test_polarity_does_not_matter_and_level_hardly(wave_bt: torch.Tensor) -> None:
    stream = TextureStream()
    torch.testing.assert_close(stream(-wave_bt), stream(wave_bt))
    torch.testing.assert_close(stream(2.0 * wave_bt), stream(wave_bt), rtol=0, atol=0.05)


def test_statistics_follow_movement_within_a_pitch_period(wave_bt: torch.Tensor) -> None:
    """A modulation at 90 Hz moves the levels over 8 ms, one at 3 Hz does not."""
    stream = TextureStream(window_samples=64, lags=(8,))
    first_size_bk = stream(wave_bt)[:, 0, 16:32]
    assert (first_size_bk[1] > first_size_bk[0] + 0.1).all()


@pytest.mark.parametrize("segment_s", [None, 0.3])
def test_windows_of_several_lengths_stand_side_by_side(wave_bt: torch.Tensor, segment_s: float | None) -> None:
    front_end = TextureFrontEnd((32, 48, 64), segment_s=segment_s, segment_hop_s=0.1, dim=8).eval()
    parts = [stream(wave_bt) for stream in front_end.streams]
    assert [part.shape[2] for part in parts] == [8 * 17, 12 * 17, 16 * 17]
    assert {part.shape[1] for part in parts} == {1 if segment_s is None else 8}
    torch.testing.assert_close(front_end(wave_bt), front_end.projection(torch.cat(parts, dim=2)))


@pytest.mark.parametrize("num_samples", [288, 289, 5_001])
def test_any_length_from_the_shortest_on(num_samples: int) -> None:
    front_end = TextureFrontEnd().eval()
    assert front_end.min_samples == 288
    assert front_end(torch.randn(1, num_samples, generator=torch.Generator().manual_seed(0))).isfinite().all()


@pytest.mark.parametrize(("sizes", "bins", "match"), [((32, 50), 2, "50 samples .* multiple of 4"), ((), 2, "empty")])
def test_windows_that_do_not_divide_are_refused(sizes: tuple[int, ...], bins: int, match: str) -> None:
    with pytest.raises(InputError, match=match):
        TextureFrontEnd(sizes, bins)
