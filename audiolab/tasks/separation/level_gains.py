"""Gains that bring estimates to the level that they have in the mixture, from sums that are gathered block by block.

Shapes: s slot (output of the model), t time.
"""

from __future__ import annotations

import numpy as np

_ALIKE = 1e-2  # outputs whose correlation leaves less than this are one signal: its parts cannot be scaled apart
_SILENT = 1e-6  # of the loudest output's RMS


class LevelGains:
    """The gain of each output with which their sum is nearest to the mixture.

    Least squares, as far as the signals determine it: where outputs are one signal (a speaker is silent, and his output
    is what leaks from another) their ratio stays the model's, and one common gain is fitted. Silence keeps a gain of 1.
    These decisions have no gradient: `output.least_squares` is for training, and would scale each by itself.

    >>> LevelGains().add(np.array([[1.0, 0, 2], [0, 2, 0]]), np.array([0.5, 1, 1])).gains().tolist()
    [0.5, 0.5]
    >>> LevelGains().add(np.array([[2.0, 4], [1, 2]]), np.array([3.0, 6])).gains().tolist()
    [1.0, 1.0]
    """

    def __init__(self) -> None:
        self._gram_ss: np.ndarray | float = 0.0
        self._toward_s: np.ndarray | float = 0.0

    def add(self, estimate_st: np.ndarray, mixture_t: np.ndarray) -> LevelGains:
        """Take samples into account; returns itself."""
        estimate_st = estimate_st.astype(np.float64)
        self._gram_ss = self._gram_ss + estimate_st @ estimate_st.T
        self._toward_s = self._toward_s + estimate_st @ mixture_t.astype(np.float64)
        return self

    def gains(self) -> np.ndarray:
        """Return the gains so far, float32 (slot,)."""
        gram_ss, toward_s = np.asarray(self._gram_ss), np.asarray(self._toward_s)
        norm_s = np.sqrt(np.diag(gram_ss))
        heard_s = norm_s > _SILENT * norm_s.max()
        gain_s = np.ones(len(norm_s))
        if heard_s.any() and toward_s.any():
            if gram_ss.sum() > _ALIKE * np.square(norm_s).sum():  # else they cancel: there is no common gain
                gain_s[:] = toward_s.sum() / gram_ss.sum()
            scale_s = np.where(heard_s, norm_s, 1)
            unit_ss = gram_ss / scale_s / scale_s[:, None] * np.outer(heard_s, heard_s)
            rest_s = (toward_s - gram_ss @ gain_s) / scale_s * heard_s
            gain_s += np.linalg.pinv(unit_ss, rcond=_ALIKE, hermitian=True) @ rest_s / scale_s
        return gain_s.astype(np.float32)
