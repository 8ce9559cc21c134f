"""G.711: the mu-law and A-law companding of telephony, exact to the bit.

The convention is that of ITU-T G.191 (STL), the normative reference code: samples are 16-bit, of which mu-law sees the
upper 14 and A-law the upper 12 bits, and negative samples are taken in ones' complement. (libsndfile and Python's
former `audioop` differ from it by one code at some negative segment boundaries; all decoders agree.) The logarithmic
formula, `torchaudio.functional.mu_law_encoding`, is another quantiser.

All functions take NumPy arrays or torch tensors of any shape, on any device, and are one look-up in a table.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch

from audiolab.errors import InputError

Samples = TypeVar("Samples", np.ndarray, torch.Tensor)

_SIGN = 0x80
_MU_BIAS = 33  # added to a 13-bit magnitude so that every segment has 16 steps
_A_INVERTED_BITS = 0x55  # even bits of an A-law code are sent inverted


def mulaw_encode(samples: Samples) -> Samples:
    """Mu-law codes (uint8) of int16 samples. Source: ITU-T G.711, table 2; G.191 `ulaw_compress`.

    >>> mulaw_encode(np.array([0, -1, 32767, -32768], np.int16)).tolist()
    [255, 127, 128, 0]
    """
    return _look_up(_mulaw_codes, samples, "int16", offset=32768)


def mulaw_decode(codes: Samples) -> Samples:
    """Samples (int16) of mu-law codes (uint8).

    >>> mulaw_decode(np.array([255, 127, 128, 0], np.uint8)).tolist()
    [0, 0, 32124, -32124]
    """
    return _look_up(_mulaw_samples, codes, "uint8", offset=0)


def alaw_encode(samples: Samples) -> Samples:
    """A-law codes (uint8) of int16 samples. Source: ITU-T G.711, table 1; G.191 `alaw_compress`.

    >>> alaw_encode(np.array([0, -1, 32767, -32768], np.int16)).tolist()
    [213, 85, 170, 42]
    """
    return _look_up(_alaw_codes, samples, "int16", offset=32768)


def alaw_decode(codes: Samples) -> Samples:
    """Samples (int16) of A-law codes (uint8).

    >>> alaw_decode(np.array([213, 85, 170, 42], np.uint8)).tolist()
    [8, -8, 32256, -32256]
    """
    return _look_up(_alaw_samples, codes, "uint8", offset=0)


def _look_up(table: Any, values: Any, dtype: str, offset: int) -> Any:
    """`table()[values + offset]` as the kind and on the device of `values`."""
    given = str(values.dtype).removeprefix("torch.")
    if given != dtype:
        raise InputError(f"G.711 got values of {given}, it takes {dtype}: convert them, full scale of int16 is 32768.")
    if isinstance(values, torch.Tensor):
        return torch.from_numpy(table()).to(values.device)[values.long() + offset]
    return table()[values.astype(np.int64) + offset]


@cache
def _mulaw_codes() -> np.ndarray:
    """Code of every int16 value from -32768 on."""
    value, magnitude = _ones_complement()
    biased = np.minimum((magnitude >> 2) + _MU_BIAS, 8191)
    segment = _floor_log2(biased) - 5
    step = (biased >> (segment + 1)) & 15
    code = np.where(value < 0, _SIGN, 0) | segment << 4 | step
    return (~code & 255).astype(np.uint8)


@cache
def _mulaw_samples() -> np.ndarray:
    code = ~np.arange(256) & 255
    magnitude = ((2 * (code & 15) + _MU_BIAS) << (code >> 4 & 7)) - _MU_BIAS
    return (4 * np.where(code & _SIGN, -magnitude, magnitude)).astype(np.int16)


@cache
def _alaw_codes() -> np.ndarray:
    """Code of every int16 value from -32768 on."""
    value, magnitude = _ones_complement()
    magnitude = magnitude >> 4
    segment = np.maximum(_floor_log2(np.maximum(magnitude, 1)) - 3, 0)
    step = (magnitude >> np.maximum(segment - 1, 0)) & 15
    code = np.where(value < 0, 0, _SIGN) | segment << 4 | step
    return (code ^ _A_INVERTED_BITS).astype(np.uint8)


@cache
def _alaw_samples() -> np.ndarray:
    code = np.arange(256) ^ _A_INVERTED_BITS
    segment = code >> 4 & 7
    magnitude = (16 * (code & 15) + 8 + np.where(segment > 0, 256, 0)) << np.maximum(segment - 1, 0)
    return np.where(code & _SIGN, magnitude, -magnitude).astype(np.int16)


def _ones_complement() -> tuple[np.ndarray, np.ndarray]:
    value = np.arange(-32768, 32768)
    return value, np.where(value < 0, ~value, value)


def _floor_log2(value: np.ndarray) -> np.ndarray:
    return np.frexp(value.astype(np.float64))[1] - 1
