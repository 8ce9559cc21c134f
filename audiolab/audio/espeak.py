"""Synthetic speech from espeak-ng: English, Mandarin and some hundred other languages, about 300 x real time.

espeak-ng (GPL) is loaded at run time from the package espeakng-loader, the extra `demo`.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from audiolab.errors import InputError

# Names and values of espeak-ng's speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 1 << 15
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_MAX_DATA_PATH = 155  # espeak-ng keeps paths in buffers of 160 bytes

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_lock = threading.Lock()  # the library is one global synthesiser


@dataclass(frozen=True)
class EspeakVoice:
    """A talker: ``language`` as espeak names it ("en-us", "en-gb", "cmn"), ``variant`` one of `voice_variants` or None.

    ``rate_wpm`` is 80 to 450 words a minute; ``pitch`` and ``range`` (how far the pitch moves) are 0 to 99, 50 being
    the variant's own.
    """

    language: str = "en-us"
    variant: str | None = None
    rate_wpm: int = 175
    pitch: int = 50
    range: int = 50

    def __post_init__(self) -> None:
        for name, low, high in (("rate_wpm", 80, 450), ("pitch", 0, 99), ("range", 0, 99)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"espeak voice: {name} is {value}, outside {low} to {high}.")


def synthesize(text: str, voice: EspeakVoice | None = None, seed: int = 0) -> tuple[np.ndarray, int]:
    """Speak a text: float32 waveform (time,), full scale 1.0, and its sampling rate (22,050 Hz).

    The same arguments give the same samples, in any order of calls and in any process; ``seed`` moves the noise of
    consonants and breath. Numbers and abbreviations are read out; there is no pause at either end.
    Raises `InputError` where espeakng-loader is not installed, a language or variant is unknown, or nothing in the
    text can be spoken.

    >>> waveform, sample_rate = synthesize("Good morning.", EspeakVoice(variant="f3"))
    >>> sample_rate, waveform.dtype.name
    (22050, 'float32')
    """
    voice = voice or EspeakVoice()
    name = _voice_name(voice)
    chunks: list[np.ndarray] = []

    @_Callback
    def collect(samples: ctypes.Array, num_samples: int, _events: int) -> int:
        if samples and num_samples > 0:
            chunks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    encoded = text.replace("\0", " ").encode()
    with _lock, _fresh_library() as (library, sample_rate):
        library.espeak_SetSynthCallback(collect)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        if library.espeak_SetVoiceByName(name.encode()) != 0:
            raise InputError(f"espeak-ng has no voice {name!r}: use a language such as 'en-us', 'en-gb' or 'cmn'.")
        for parameter, value in ((_RATE, voice.rate_wpm), (_PITCH, voice.pitch), (_RANGE, voice.range)):
            library.espeak_SetParameter(parameter, int(value), 0)
        library.espeak_Synth(encoded, len(encoded) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        library.espeak_Synchronize()
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    if not samples.any():
        raise InputError(f"espeak-ng has nothing to say for {text!r}: give words that {name!r} can read.")
    return samples.astype(np.float32) / 32768, sample_rate


@cache
def voice_variants() -> tuple[str, ...]:
    """Names of the voice variants (talkers) that every language can take, sorted: f1 to f5, m1 to m8, klatt ...

    >>> "f3" in voice_variants()
    True
    """
    return tuple(sorted(path.name for path in (_package_paths()[1] / "voices" / "!v").iterdir()))


def _voice_name(voice: EspeakVoice) -> str:
    """Name for espeak, which would take an unknown variant for none and say nothing."""
    if voice.variant is None:
        return voice.language
    if voice.variant not in voice_variants():
        raise InputError(f"espeak-ng has no voice variant {voice.variant!r}; it has {', '.join(voice_variants())}.")
    return f"{voice.language}+{voice.variant}"


@cache
def _package_paths() -> tuple[str, Path]:
    """Shared library and data folder of espeakng-loader."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError(
            "Synthetic speech needs espeak-ng, which is not installed: pip install 'audiolab[demo]' (espeakng-loader)."
        ) from error
    data = Path(espeakng_loader.get_data_path())
    if len(os.fsencode(data)) > _MAX_DATA_PATH:
        raise InputError(
            f"espeak-ng cannot use a data folder whose path is longer than {_MAX_DATA_PATH} bytes ({data}): "
            "install the environment under a shorter path."
        )
    return espeakng_loader.get_library_path(), data


@contextmanager
def _fresh_library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Load, initialise and unload the library (0.3 ms), and give it with its sampling rate.

    It keeps state from one utterance to the next (phase of the voice, flutter, noise) that its own initialisation
    does not reset, so only a newly loaded library says the same text twice in the same way.
    """
    library_path, data = _package_paths()
    library = ctypes.CDLL(library_path)
    sample_rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), _INITIALIZE_DONT_EXIT)
    try:
        if sample_rate <= 0:
            raise InputError(f"espeak-ng cannot use its data folder {data}: install espeakng-loader again.")
        yield library, sample_rate
    finally:
        library.espeak_Terminate()
        _unload(library)
    _warn_if_loaded(library_path)


def _unload(library: ctypes.CDLL) -> None:
    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


def _warn_if_loaded(library_path: str) -> None:
    if sys.platform == "win32":
        return
    try:
        _unload(ctypes.CDLL(library_path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY))
    except OSError:
        return  # not loaded any more
    warnings.warn(
        f"{library_path} stays loaded (another package uses it), so the same text may differ in small details "
        "each time it is spoken.",
        RuntimeWarning,
        stacklevel=2,
    )
