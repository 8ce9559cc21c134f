"""What decoding mixtures and their sources tells: lengths, whether they belong together, levels, talkers.

Shapes: s source, t time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from audiolab.audio import mixing
from audiolab.audio.files import AudioFiles
from audiolab.audio.io import AudioError
from audiolab.preflight.findings import Finding
from audiolab.tasks.separation.corpora.base import MixtureSet
from audiolab.tasks.separation.mixtures import Mixtures, all_heard
from audiolab.tasks.separation.snr_bins import SNR_EDGES_DB, bin_names

GROUP = "mixtures"
LOOKED_AT = 100  # mixtures of a set that are taken apart, at even distances
SAME_DB = -30.0  # a rest this far below the mixture is rounding and dither
EXACT_DB = -150.0
STRANGE_DB = -3.0  # a rest above this means that the sources are not those of the mixture


@dataclass
class _Seen:
    """What was found in the mixtures of a set, each as `id: what`."""

    snr_db: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    genders: Counter[str] = field(default_factory=Counter)
    rest_db: list[float] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    other_levels: list[str] = field(default_factory=list)
    other_sound: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    loud: list[str] = field(default_factory=list)


def examine_mixtures(set_name: str, listed: MixtureSet, sample_rate_hz: int) -> list[Finding]:
    """Check the lengths of all mixtures of a set, and what a hundred of them hold; unreadable files are passed over."""
    mixtures = Mixtures(
        listed,
        AudioFiles(sample_rate_hz, in_memory=False),
        None,
        crop_samples=None,
        short="pad",
        most_samples=None,
    )
    findings = _lengths(set_name, mixtures)
    chosen = np.unique(np.linspace(0, len(mixtures) - 1, LOOKED_AT).round().astype(int))
    seen = _Seen()
    for index in chosen.tolist():
        try:
            length = mixtures.length(mixtures.mixtures[index])
            mixture_t, sources_st = mixtures.signals(mixtures.mixtures[index], 0, length)
        except AudioError:  # told of as a file
            continue
        _look(mixtures, index, mixture_t, sources_st, seen)
    if seen.snr_db:
        findings += [*_sums(set_name, listed, seen), *_levels(set_name, seen), _statistics(set_name, seen)]
    return findings


def rest_db(mixture_t: np.ndarray, sources_st: np.ndarray) -> tuple[float, float]:
    """Return what is left of a mixture, in dB of it, without its sources, and without those at their best levels.

    >>> rest_db(np.array([1.0, 1.0, 0.0]), np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))[0]
    -3.010299956639812
    """
    power = max(float(mixing.mean_power(mixture_t)), np.finfo(np.float64).tiny)
    gains, *_ = np.linalg.lstsq(sources_st.T.astype(np.float64), mixture_t.astype(np.float64), rcond=None)
    rests = (mixture_t - sources_st.sum(axis=0), mixture_t - gains @ sources_st)
    as_is, at_best = (
        10 * float(np.log10(max(float(mixing.mean_power(rest)), 1e-20 * power) / power)) for rest in rests
    )
    return as_is, at_best


def _look(mixtures: Mixtures, index: int, mixture_t: np.ndarray, sources_st: np.ndarray, seen: _Seen) -> None:
    mixture = mixtures.mixtures[index]
    seen.snr_db.append(mixing.input_snr_db(mixture_t, sources_st[0]))
    seen.overlap.append(mixing.overlap(sources_st, mixtures.files.sample_rate_hz))
    seen.genders[mixture.genders] += 1
    if not all_heard(sources_st):
        seen.silent.append(mixture.id)
    if (peak := float(np.abs(mixture_t).max())) > 1.0:
        seen.loud.append(f"{mixture.id}: peak {peak:.2f}")
    if mixture.file is None:
        return
    as_is, at_best = rest_db(mixture_t, sources_st)
    seen.rest_db.append(as_is)
    if as_is <= SAME_DB:
        return
    if at_best <= SAME_DB:
        seen.other_levels.append(mixture.id)
    elif at_best > STRANGE_DB:
        seen.strange.append(f"{mixture.id}: {at_best:.1f} dB of it are left without its sources")
    else:
        seen.other_sound.append(f"{mixture.id}: {as_is:.1f} dB")


def _lengths(set_name: str, mixtures: Mixtures) -> list[Finding]:
    unequal = []
    for mixture in mixtures.mixtures:
        try:
            mixtures.length(mixture)
        except AudioError as error:
            if "its mixture" in error.reason:
                unequal.append(f"{error.path} {error.reason}")
    if not unequal:
        return []
    found = f"{len(unequal):,} of {len(mixtures):,} mixtures differ in length from a source"
    return [
        Finding(GROUP, f"{set_name} lengths", "problem", found, "write them again, or take them out", tuple(unequal))
    ]


def _sums(set_name: str, listed: MixtureSet, seen: _Seen) -> list[Finding]:
    check, num = f"{set_name} sums", len(seen.rest_db)
    if not num:
        return []
    of = f"of {num} mixtures that were looked at"
    findings = []
    if seen.strange:
        found = f"{len(seen.strange)} {of} do not hold their sources"
        remedy = "look for exchanged, shifted or cut files"
        findings.append(Finding(GROUP, check, "problem", found, remedy, tuple(seen.strange)))
    if seen.other_levels:
        found = f"in {len(seen.other_levels)} {of} the sources have other levels than in the mixture"
        remedy = "write mixture and sources with one common gain"
        findings.append(Finding(GROUP, check, "problem", found, remedy, tuple(seen.other_levels)))
    if seen.other_sound and not listed.noisy:
        found = f"{len(seen.other_sound)} {of} hold something beside their sources"
        remedy = "noise is learned to be removed; if there should be none, make them again"
        findings.append(Finding(GROUP, check, "warning", found, remedy, tuple(seen.other_sound)))
    if not findings:
        noise = f"the noise is {-np.median(seen.rest_db):.1f} dB below the mixture (median)"
        most = f"{max(seen.rest_db):.0f} dB" if max(seen.rest_db) > EXACT_DB else "0"
        clean = f"mixture = sum of sources in all {num} looked at (rest at most {most})"
        findings.append(Finding(GROUP, check, "ok", noise if seen.other_sound else clean))
    return findings


def _levels(set_name: str, seen: _Seen) -> list[Finding]:
    findings = []
    for items, what, remedy in (
        (seen.silent, "have a silent source", "the loss leaves it out; take them out if there should be speech"),
        (seen.loud, "pass full scale", "nothing clips them here; other programs would"),
    ):
        if items:
            found = f"{len(items)} of {len(seen.snr_db)} looked at {what}"
            findings.append(Finding(GROUP, f"{set_name} levels", "warning", found, remedy, tuple(items)))
    return findings


def _statistics(set_name: str, seen: _Seen) -> Finding:
    known = np.array([snr_db for snr_db in seen.snr_db if np.isfinite(snr_db)])
    words = []
    if len(known):
        span = f"{known.min():.1f} to {known.max():.1f} dB, median {np.median(known):.1f}"
        words.append(f"source 1 against the rest {span} ({histogram(known, SNR_EDGES_DB)})")
    words.append(f"all talk {100 * np.median(seen.overlap):.0f} % of the time (median)")
    if set(seen.genders) != {"?"}:
        words.append(", ".join(f"{genders} {number}" for genders, number in sorted(seen.genders.items())))
    return Finding(GROUP, f"{set_name} SNR", "ok", "; ".join(words))


def histogram(values: np.ndarray, edges: Sequence[float]) -> str:
    """Count values between edges, in words; empty bins at both ends are left out.

    >>> histogram(np.array([-1.0, 1.0, 1.5, 9.0]), (-5, 0, 5))
    '-5 to 0: 1, 0 to 5: 2, from 5: 1'
    """
    bounds = [-np.inf, *edges, np.inf]
    counts, _ = np.histogram(values, bounds)
    names = bin_names(edges)
    used = np.flatnonzero(counts)
    return ", ".join(f"{names[i]}: {counts[i]}" for i in range(used[0], used[-1] + 1))
