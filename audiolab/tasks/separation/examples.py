"""Mixtures to see and hear: which ones, their sounds at one level, and their spectrograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from audiolab.audio.level import peak_gain, rms_gain
from audiolab.reporting.example import Example
from audiolab.reporting.spectrograms import Panel, spectrograms

LEVEL_DBFS = -25.0
_WORDS = {0.0: "worst", 0.5: "median", 1.0: "best"}


def chosen_examples(table: pd.DataFrame, num_examples: int) -> dict[str, str]:
    """Return `role -> id` of mixtures from the worst to the best SI-SDRi, at even steps of their ranks.

    In an epoch of training, where one wants to hear the same mixtures each time, at even steps of the list of ids.

    >>> table = pd.DataFrame({"id": ["a", "b", "c"], "si_sdri": [3.0, 1.0, 2.0]})
    >>> chosen_examples(table, 3)
    {'worst': 'b', 'median': 'c', 'best': 'a'}
    """
    fixed = bool(table.attrs.get("headline_only"))
    heard = table[table["si_sdri"].notna()]
    ids = heard["id"] if fixed else heard.sort_values(["si_sdri", "id"])["id"]
    num = min(num_examples, len(ids))
    if num == 0:
        return {}
    shares = [0.5] if num == 1 else np.linspace(0, 1, num).tolist()
    places = {share: ids.iloc[round(share * (len(ids) - 1))] for share in shares}
    if fixed:
        return {f"example_{number + 1}": name for number, name in enumerate(places.values())}
    return {_WORDS.get(share, f"quantile_{100 * share:.0f}"): name for share, name in places.items()}


def example_of(
    name: str,
    mixture: np.ndarray,
    references: np.ndarray,
    estimates: np.ndarray,
    numbers: Mapping[str, Any],
    sample_rate: int,
) -> Example:
    """Show one mixture (time,), its references (speaker, time) and their estimates in the same order.

    The mixture is brought to -25 dBFS and references with it, each estimate to the level of its reference, as the level
    of an estimate may mean nothing; all together get softer where one would clip. `numbers` are those of the row.
    """
    estimates = np.stack([_like(one, other) for one, other in zip(estimates, references, strict=True)])
    gain = _gain(mixture, references, estimates)
    sounds = {"mix": gain * mixture}
    rows: list[list[Panel]] = [[("mixture", sounds["mix"])]]
    for index, (reference, estimate) in enumerate(zip(references, estimates, strict=True)):
        number = index + 1
        sounds |= {f"ref{number}": gain * reference, f"spk{number}": gain * estimate}
        before, after = numbers[f"si_sdr_mixture_{number}"], numbers[f"si_sdr_{number}"]
        told = f"talker {number}, estimate: {after:.1f} dB SI-SDR, {before:.1f} in the mixture"
        rows.append([(f"talker {number}, reference", sounds[f"ref{number}"]), (told, sounds[f"spk{number}"])])
    caption = f"{name}: SI-SDRi {numbers['si_sdri']:.1f} dB"
    sounds = {key: wave.astype(np.float32) for key, wave in sounds.items()}
    return Example(name, caption, sounds, sample_rate, spectrograms(rows, sample_rate, caption))


def _like(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Bring an estimate to the RMS of its reference; of a silent reference it stays as it is."""
    own, wanted = (float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) for wave in (estimate, reference))
    return estimate * (wanted / own) if own > 0 and wanted > 0 else estimate


def _gain(mixture: np.ndarray, *others: np.ndarray) -> float:
    """Return the one gain that brings the mixture to its level and leaves no sample of any signal beyond full scale."""
    peak = max(float(np.abs(wave).max()) for wave in (mixture, *others))
    gain = float(rms_gain(mixture, LEVEL_DBFS, peak_limit=np.inf)[0])
    return gain * peak_gain(gain * peak)
