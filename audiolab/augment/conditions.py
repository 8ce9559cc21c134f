"""Test conditions: what a recording may have gone through before it is judged, by name.

`none`; every codec of `audiolab.augment.codecs`; `noise_<snr>db` (white) and `pink_<snr>db`.
"""

from __future__ import annotations

import difflib

import numpy as np
import torch

from audiolab.augment.codecs import CODECS, find_codec, round_trip
from audiolab.augment.noise import add_noise, colored_noise
from audiolab.errors import InputError

_NOISY = {
    f"{name}_{snr_db}db": (kind, float(snr_db))
    for name, kind in (("noise", "white"), ("pink", "pink"))
    for snr_db in (30, 20, 15, 10, 5, 0)
}

CONDITIONS: tuple[str, ...] = ("none", *CODECS, *_NOISY)
"""Names of all conditions."""


def check_condition(condition: str) -> None:
    """Raise InputError unless the condition is known, and its codec installed."""
    if condition not in CONDITIONS:
        nearest = difflib.get_close_matches(str(condition), CONDITIONS, n=1, cutoff=0.0)[0]
        raise InputError(
            f"there is no condition {condition!r}; did you mean {nearest!r}? Give none, {', '.join(_NOISY)} "
            f"or a codec, {', '.join(CODECS)}."
        )
    if condition in CODECS:
        find_codec(condition)


def degrade(wave: np.ndarray, sample_rate: int, condition: str, generator: np.random.Generator) -> np.ndarray:
    """`wave` (time,) under a condition; same length and dtype, nothing clipped.

    The noise's samples come from `generator`, all else is deterministic. Raises InputError as `check_condition`.

    >>> degrade(np.ones(4, np.float32), 16000, "none", np.random.default_rng(0)).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    check_condition(condition)
    if condition == "none":
        return wave
    if condition in CODECS:
        return round_trip(wave, sample_rate, condition)
    kind, snr_db = _NOISY[condition]
    noise = colored_noise(kind, len(wave), generator)
    speech = torch.from_numpy(np.array(wave))
    return add_noise(speech, torch.from_numpy(noise).to(speech), snr_db).numpy()
