"""Chunks whose speakers come in any order and at any gain become one recording; the orders are the best there are."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from audiolab.tasks.separation.level_gains import LevelGains
from audiolab.tasks.separation.speaker_order import OrderDecoder
from audiolab.tasks.separation.stitching import Stitcher, hann
from audiolab.tasks.separation.voices import VoiceMemory

RATE = 16000


@pytest.fixture(scope="module")
def reference(shared: Path) -> tuple[dict[str, np.ndarray], dict]:
    folder = shared / "reference" / "separation"
    return load_file(folder / "stitch_signals.safetensors"), json.loads((folder / "stitch_expected.json").read_text())


def stitched(stitcher: Stitcher, chunks: np.ndarray, mixture: np.ndarray, hop: int) -> np.ndarray:
    size = chunks.shape[-1]
    parts = [stitcher.push(i * hop, chunk, mixture[i * hop : i * hop + size]) for i, chunk in enumerate(chunks)]
    return np.concatenate([*parts, stitcher.finish()], axis=1)


# ---- the reference


@pytest.mark.parametrize("name", ["chunks", "chunks_random_gain"])
@pytest.mark.parametrize("delay", [0, 1, 8])
def test_the_reference_is_stitched_to_the_same_signal(reference, name: str, delay: int):
    signals, expected = reference
    chunks, hop, size = signals[name], expected["hop"], expected["window"]
    mixture = signals["source"].sum(0)
    stitcher = Stitcher(3, RATE, delay_chunks=delay, match_level=False)
    found = stitched(stitcher, chunks, mixture, hop)
    assert stitcher.orders == expected["perms"]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    total, weight = np.zeros_like(signals["stitched"], dtype=float), np.zeros(len(mixture))
    for i, order in enumerate(expected["perms"]):
        total[:, i * hop : i * hop + size] += window * chunks[i][order]
        weight[i * hop : i * hop + size] += window
    assert found[:, 1:] == pytest.approx((total / np.maximum(weight, 1e-9))[:, 1:], abs=1e-5)
    assert found[:, 0] == pytest.approx(chunks[0][:, 0], abs=1e-6)  # where the reference has no weight at all
    if name == "chunks":
        assert found[:, 1:] == pytest.approx(signals["stitched"][:, 1:], abs=1e-5)


def test_gains_of_chunks_are_matched_to_the_mixture(reference):
    signals, expected = reference
    mixture = signals["source"].sum(0)
    loud = signals["chunks_random_gain"] * np.array([1e-3, 1, 50, 1, 1, 1e3, 1], np.float32)[:, None, None]
    found = stitched(Stitcher(3, RATE), loud, mixture, expected["hop"])
    for speaker in range(3):
        source, estimate = signals["source"][speaker], found[speaker]
        for start in range(0, len(mixture), expected["hop"]):
            piece = slice(start, start + expected["hop"])
            level = estimate[piece] @ source[piece] / (source[piece] @ source[piece])
            assert level == pytest.approx(1, abs=0.12)  # the chunks' own noise at 10 to 20 dB explains the rest
    exact = np.stack([signals["source"][:, i * 300 : i * 300 + 600] for i in range(7)])
    exact = exact * np.random.default_rng(0).uniform(-3, 3, (7, 3, 1)).astype(np.float32)  # also turned over
    found = stitched(Stitcher(3, RATE), exact, mixture, expected["hop"])
    assert found == pytest.approx(signals["source"], abs=1e-5)


# ---- gains


def level_gains(estimate: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    half = estimate.shape[1] // 2
    parts = LevelGains().add(estimate[:, :half], mixture[:half]).add(estimate[:, half:], mixture[half:]).gains()
    assert parts == pytest.approx(LevelGains().add(estimate, mixture).gains(), rel=1e-5)
    return parts


def test_level_gains_stay_sound_where_the_signals_do_not_determine_them():
    rng = np.random.default_rng(0)
    speech, other = rng.standard_normal((2, 4000))
    assert level_gains(np.stack([speech / 7, other * 9]), speech + other) == pytest.approx([7, 1 / 9], rel=1e-5)
    # a speaker is silent, his output is what leaks from the other: the ratio of the two stays
    gains = level_gains(np.stack([speech, 0.1 * speech + 1e-4 * other]) * 5, speech)
    assert gains == pytest.approx([1 / 5.5, 1 / 5.5], rel=1e-3)
    assert level_gains(np.stack([speech, np.zeros(4000)]), 2 * speech) == pytest.approx([2, 2])
    assert level_gains(np.zeros((2, 5)), np.ones(5)).tolist() == [1, 1]
    assert level_gains(np.ones((2, 5)), np.zeros(5)).tolist() == [1, 1]
    opposite = level_gains(np.stack([speech, -speech]), speech)
    assert opposite[0] - opposite[1] == pytest.approx(1) and np.abs(opposite).max() <= 2


# ---- orders


def viterbi(links: list[np.ndarray], fits: list[np.ndarray]) -> tuple[list[list[int]], list[list[list[tuple]]]]:
    """The best path over all chunks at once, in plain loops; and at each chunk the best paths into each order."""
    size = len(fits[0])
    orders = list(permutations(range(size)))
    paths = {orders[0]: (0.0, [orders[0]])}
    history = [paths]
    for link, fit in zip(links, fits, strict=True):
        longer = {}
        for order in orders:
            scored = [
                (score + sum(link[a, b] for a, b in zip(before, order, strict=True)), path)
                for before, (score, path) in paths.items()
            ]
            score, path = max(scored, key=lambda item: item[0])
            longer[order] = (score + sum(fit[c, order[c]] for c in range(size)), [*path, order])
        paths = longer
        history.append(paths)
    best = max(paths.values(), key=lambda item: item[0])[1]
    return [list(order) for order in best], [[path for _, path in paths.values()] for paths in history]


@pytest.mark.parametrize("num_speakers", [2, 3, 4])
def test_decisions_on_the_way_are_the_global_ones_where_the_paths_merge(num_speakers: int):
    rng = np.random.default_rng(num_speakers)
    num_chunks, delay, waited, num_merged = 30, 10, [], 0
    for _ in range(4):
        links = [rng.uniform(0, 1, (num_speakers,) * 2) for _ in range(num_chunks)]
        fits = [rng.uniform(0, 1.5, (num_speakers,) * 2) for _ in range(num_chunks)]
        expected, history = viterbi(links, fits)
        decoder = OrderDecoder(num_speakers, delay)
        found, merged = decoder.push(), True
        for number, scores in enumerate(zip(links, fits, strict=True), 1):
            decided = decoder.push(*scores)
            # what the paths share, by the plain search: it must be given out at once
            shared = next((i for i in range(number + 1) if len({path[i] for path in history[number]}) > 1), number + 1)
            waited += [number - len(found) - i for i in range(len(decided))]
            found += decided
            merged = merged and shared > number - delay
            assert not merged or len(found) == shared
        found += decoder.finish()
        assert len(found) == num_chunks + 1
        assert not merged or [order.tolist() for order in found] == expected
        num_merged += merged
    assert num_merged >= 2 and max(waited) > 1  # some decisions did wait for later chunks


def test_later_evidence_changes_what_a_doubtful_link_said():
    same, doubtful = np.diag([0.9, 0.9]), np.array([[0.5, 0.51], [0.5, 0.5]])
    voices_say_same = np.array([[0, -0.1], [-0.1, 0]])
    for delay, expected in ((5, [0, 1]), (0, [1, 0])):
        decoder = OrderDecoder(2, delay)
        found = decoder.push() + decoder.push(doubtful) + decoder.push(same, voices_say_same) + decoder.push(same)
        found += decoder.finish()
        assert [order.tolist() for order in found] == [[0, 1], expected, expected, expected]


@pytest.mark.parametrize("num_speakers", [2, 5])
def test_a_decision_comes_within_the_delay_and_is_never_taken_back(num_speakers: int):
    rng = np.random.default_rng(0)
    decoder = OrderDecoder(num_speakers, delay=3)
    found = len(decoder.push())
    for number in range(2, 40):
        found += len(decoder.push(rng.uniform(0, 1, (num_speakers,) * 2)))
        assert found >= number - 3
        assert len(decoder._pending) <= 3
    assert found + len(decoder.finish()) == 39
    silent = OrderDecoder(num_speakers, delay=3)
    orders = silent.push() + silent.push(np.eye(num_speakers)[::-1])
    for _ in range(9):
        orders += silent.push(np.zeros((num_speakers,) * 2))
    orders += silent.finish()
    assert [order.tolist() for order in orders[1:]] == [list(range(num_speakers))[::-1]] * 10  # it stays


# ---- silence


def voices(shared: Path, num_samples: int, pauses: list[tuple[int, int]]) -> np.ndarray:
    """Two speakers of the real corpus, utterance after utterance, silent together in `pauses` (samples)."""
    import soundfile

    rows = []
    for folder in sorted((shared / "data/mix_mini/LibriSpeech/test-clean").iterdir())[:2]:
        waves = [soundfile.read(path, dtype="float32")[0] for path in sorted(folder.rglob("*.flac"))]
        rows.append(np.resize(np.concatenate(waves), num_samples))
    wave = np.stack(rows)
    for start, stop in pauses:
        wave[:, start:stop] = 0
    return wave


def test_a_speaker_who_is_silent_in_the_overlap_does_not_decide_by_noise(shared: Path):
    """One talks; the other's output holds noise that is the same in the wrong slot, at -30 dB."""
    wave = voices(shared, 10 * RATE, [])
    rng = np.random.default_rng(0)
    noise = 0.03 * wave.std() * rng.standard_normal(10 * RATE).astype(np.float32)
    wave[1, 4 * RATE : 6 * RATE] = 0
    first, second = wave[:, : 6 * RATE].copy(), wave[::-1, 4 * RATE :].copy()
    first[1, 4 * RATE :] = noise[4 * RATE : 6 * RATE]
    second[1, : 2 * RATE] += noise[4 * RATE : 6 * RATE]
    stitcher = Stitcher(2, RATE)
    mixture = wave.sum(0)
    stitcher.push(0, first, mixture[: 6 * RATE])
    stitcher.push(4 * RATE, second, mixture[4 * RATE :])
    stitcher.finish()
    assert stitcher.orders == [[0, 1], [1, 0]]


def test_voices_are_known_again_after_a_pause_longer_than_the_overlap(shared: Path):
    chunk, hop, num_samples = 4 * RATE, 3 * RATE, 40 * RATE
    pauses = [(start * RATE, (start + 3) * RATE) for start in (7, 16, 25, 34)]
    wave = voices(shared, num_samples, pauses)
    rng = np.random.default_rng(3)
    mixture = wave.sum(0) + 1e-4 * rng.standard_normal(num_samples).astype(np.float32)
    stitcher, placed = Stitcher(2, RATE), []
    for start in range(0, num_samples - chunk + 1, hop):
        order = rng.permutation(2)
        estimate = wave[order, start : start + chunk] + 1e-4 * rng.standard_normal((2, chunk)).astype(np.float32)
        placed.append(np.argsort(order).tolist())
        stitcher.push(start, estimate * rng.uniform(0.3, 3, (2, 1)).astype(np.float32), mixture[start : start + chunk])
    stitcher.finish()
    relative = [
        found == (expected if placed[0] == [0, 1] else expected[::-1])
        for found, expected in zip(stitcher.orders, placed, strict=True)
    ]
    assert all(relative)
    assert len({tuple(order) for order in placed}) == 2


def test_total_silence_and_equal_outputs_are_stitched_without_nan():
    for wave in (np.zeros((2, 900), np.float32), np.ones((2, 900), np.float32), np.zeros((5, 900), np.float32)):
        chunks = np.stack([wave[:, i * 100 : i * 100 + 300] for i in range(7)])
        found = stitched(Stitcher(len(wave), 8000, match_level=False), chunks, wave.sum(0), 100)
        assert found == pytest.approx(wave, abs=1e-6)


def test_voices_of_short_or_silent_chunks_say_nothing():
    memory = VoiceMemory(2, 8000)
    short = memory.spectra(np.ones((2, 10), np.float32), 1.0)
    memory.add(short, np.array([0, 1]))
    assert memory.fit(short).tolist() == [[0, 0], [0, 0]]
    silent = memory.spectra(np.zeros((2, 8000), np.float32), 1.0)
    assert silent[1].tolist() == [0, 0]


def test_chunks_of_any_length_and_distance(shared: Path):
    wave = voices(shared, 2 * RATE, [])
    edges = [(0, 9000), (3000, 12000), (11000, 20000), (12000, 30000), (29990, 32000), (30000, 32000)]
    stitcher = Stitcher(2, RATE)
    parts = [stitcher.push(a, wave[:: (-1) ** i, a:b], wave.sum(0)[a:b]) for i, (a, b) in enumerate(edges)]
    assert np.concatenate([*parts, stitcher.finish()], axis=1) == pytest.approx(wave, abs=1e-5)
    assert Stitcher(2, RATE).finish().shape == (2, 0)
    assert hann(600)[0] < 1e-9 and hann(600)[300] == 1.0


def test_what_overlaps_share_counts_for_more_than_the_voice():
    """Two noises exchange their colours amid the recording: who goes on without a break is the same speaker."""
    rng = np.random.default_rng(0)
    low = np.convolve(rng.standard_normal(16 * RATE), np.hanning(40), "same").astype(np.float32)
    high = np.diff(rng.standard_normal(16 * RATE), append=0).astype(np.float32)
    low, high = low / low.std(), high / high.std()
    wave = np.where(np.arange(16 * RATE) < 9 * RATE, [low, high], [high, low]).astype(np.float32)
    chunks = np.stack([wave[:, i * RATE : (i + 4) * RATE] for i in range(0, 13, 3)])
    stitcher = Stitcher(2, RATE)
    stitched(stitcher, chunks, wave.sum(0), 3 * RATE)
    assert stitcher.orders == [[0, 1]] * 5
