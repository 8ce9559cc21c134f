"""espeak-ng through ctypes: the same words in the same voice are the same samples, whatever was said before."""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from audiolab.audio import espeak
from audiolab.audio.espeak import EspeakVoice, synthesize, voice_variants
from audiolab.errors import InputError

ENGLISH = "The quick brown fox jumps over the lazy dog."
MANDARIN = "今天天气很好。我们去公园散步。"
# formant, Klatt and noise-excited voices keep different state between utterances
VOICES = [
    (ENGLISH, EspeakVoice()),
    (ENGLISH, EspeakVoice(variant="f3")),
    (ENGLISH, EspeakVoice(variant="klatt2")),
    (ENGLISH, EspeakVoice(variant="whisper")),
    (MANDARIN, EspeakVoice("cmn", variant="m1")),
]


def _digest(waveform: np.ndarray) -> str:
    return hashlib.sha256(waveform.tobytes()).hexdigest()


def _pitch_hz(waveform: np.ndarray, sample_rate: int) -> float:
    """Median over voiced 50 ms frames of the autocorrelation's peak between 60 and 400 Hz."""
    found = []
    for start in range(0, len(waveform) - 2048, 512):
        frame = waveform[start : start + 2048] * np.hanning(2048)
        correlation = np.correlate(frame, frame, "full")[2047:]
        low, high = sample_rate // 400, sample_rate // 60
        lag = low + int(np.argmax(correlation[low:high]))
        if correlation[lag] > 0.5 * correlation[0] and correlation[0] > 1e-3:
            found.append(sample_rate / lag)
    return float(np.median(found))


def test_same_arguments_same_samples_after_other_speech():
    first = [_digest(synthesize(text, voice)[0]) for text, voice in VOICES]
    for number in range(1, 4):
        synthesize(f"Something else, number {number}.", EspeakVoice(variant=f"m{number}", rate_wpm=150 + 40 * number))
    assert [_digest(synthesize(text, voice)[0]) for text, voice in reversed(VOICES)] == first[::-1]
    assert len(set(first)) == len(first)


def test_same_samples_in_threads_and_in_another_process():
    with ThreadPoolExecutor(4) as pool:
        threads = list(pool.map(lambda item: _digest(synthesize(*item)[0]), VOICES * 3))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from audiolab.audio.espeak import *; import hashlib\n"
        "print(hashlib.sha256(synthesize(sys.argv[2], EspeakVoice(variant='whisper'))[0].tobytes()).hexdigest())"
    )
    root = str(Path(espeak.__file__).parents[2])
    other = subprocess.run([sys.executable, "-c", code, root, ENGLISH], capture_output=True, text=True, check=True)
    assert threads == threads[:5] * 3
    assert threads[3] == other.stdout.strip()


def test_waveform_is_audible_speech_of_a_plausible_length():
    for text, voice in VOICES:
        waveform, sample_rate = synthesize(text, voice)
        assert (waveform.dtype, waveform.ndim, sample_rate) == (np.float32, 1, 22050)
        assert 2.0 < len(waveform) / sample_rate < 5.0
        assert 0.1 < np.abs(waveform).max() <= 1.0


def test_rate_pitch_range_variant_and_seed_do_what_they_say():
    plain, rate = synthesize(ENGLISH, EspeakVoice(variant="m1"))
    slow, _ = synthesize(ENGLISH, EspeakVoice(variant="m1", rate_wpm=100))
    assert 1.4 < len(slow) / len(plain) < 2.2
    high, _ = synthesize(ENGLISH, EspeakVoice(variant="m1", pitch=90))
    assert _pitch_hz(high, rate) > 1.2 * _pitch_hz(plain, rate)
    woman, _ = synthesize(ENGLISH, EspeakVoice(variant="f2"))
    assert _pitch_hz(woman, rate) > 1.4 * _pitch_hz(plain, rate)
    flat, _ = synthesize(ENGLISH, EspeakVoice(variant="m1", range=0))
    assert _digest(flat) != _digest(plain)
    whisper = EspeakVoice(variant="whisper")
    assert _digest(synthesize(ENGLISH, whisper, seed=1)[0]) != _digest(synthesize(ENGLISH, whisper, seed=2)[0])


def test_mandarin_is_read_as_mandarin():
    one, rate = synthesize("天", EspeakVoice("cmn"))
    six, _ = synthesize("天天天天天天", EspeakVoice("cmn"))
    assert 0.8 < (len(six) - len(one)) / rate < 3.0  # five syllables, not five names of characters
    assert _digest(synthesize("妈", EspeakVoice("cmn"))[0]) != _digest(synthesize("骂", EspeakVoice("cmn"))[0])  # tones


def test_every_variant_speaks():
    assert len(voice_variants()) > 50
    digests = {name: _digest(synthesize("hello", EspeakVoice(variant=name))[0]) for name in voice_variants()}
    assert len(set(digests.values())) > 80  # a few are the same voice under two names


@pytest.mark.parametrize(
    ("text", "voice", "message"),
    [
        ("a", {"language": "xx"}, "has no voice 'xx'"),
        ("a", {"variant": "f33"}, "has no voice variant 'f33'; it has .*f3"),
        ("...", {}, "nothing to say for '...'"),
        ("", {}, "nothing to say for ''"),
        ("a", {"rate_wpm": 900}, "rate_wpm is 900, outside 80 to 450"),
        ("a", {"pitch": -1}, "pitch is -1"),
        ("a", {"range": 100}, "range is 100"),
    ],
)
def test_wrong_requests(text, voice, message):
    with pytest.raises(InputError, match=message):
        synthesize(text, EspeakVoice(**voice))


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    espeak._package_paths.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'audiolab\[demo\]'"):
        synthesize("hello")
    monkeypatch.undo()
    espeak._package_paths.cache_clear()
    assert len(synthesize("hello")[0]) > 1000


def test_warns_only_while_another_package_keeps_the_library_loaded():
    other = ctypes.CDLL(espeak._package_paths()[0])
    with pytest.warns(RuntimeWarning, match="stays loaded"):
        synthesize("hello")
    _ctypes.dlclose(other._handle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = _digest(synthesize(ENGLISH)[0])
        assert _digest(synthesize(ENGLISH)[0]) == before
