"""What RawBoost draws at random: the ranges, the numbers drawn, and the drawing.

Nothing here touches a waveform: the numbers drawn for an utterance can be recorded, replayed and moved to any device.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from audiolab.augment.notch import NotchBanks
from audiolab.errors import InputError

ALGORITHMS: dict[int, tuple[str, ...]] = {
    0: (),
    1: ("lnl",),
    2: ("isd",),
    3: ("ssi",),
    4: ("lnl", "isd", "ssi"),
    5: ("lnl", "isd"),
    6: ("lnl", "ssi"),
    7: ("isd", "ssi"),
    8: ("lnl", "isd"),  # both on the input, then added; all others one after the other
}
"""Which stages each numbered algorithm runs; 0 leaves the waveform as it is."""

DEFAULT_RANGES: dict[str, float] = {
    "N_f": 5,  # powers of the waveform that are filtered and added
    "nBands": 5,  # notches a bank
    "minF": 20.0,  # Hz, centre of a notch
    "maxF": 8000.0,
    "minBW": 100.0,  # Hz, width of a notch
    "maxBW": 1000.0,
    "minCoeff": 10,  # taps of a notch
    "maxCoeff": 100,
    "minG": 0.0,  # dB, peak gain of a bank
    "maxG": 0.0,
    "minBiasLinNonLin": 5.0,  # dB by which the gains of the powers from 2 on are lower: in [minG - 5, maxG - 20]
    "maxBiasLinNonLin": 20.0,
    "P": 10.0,  # %, most samples that impulsive noise may touch
    "g_sd": 2.0,  # gain of impulsive noise
    "SNRmin": 10.0,  # dB, of stationary noise
    "SNRmax": 40.0,
}
"""Ranges under the names of the official code (Tak et al., ICASSP 2022), with its values."""

_ORDERED_PAIRS = [
    ("minF", "maxF"),
    ("minBW", "maxBW"),
    ("minCoeff", "maxCoeff"),
    ("minG", "maxG"),
    ("minBiasLinNonLin", "maxBiasLinNonLin"),
    ("SNRmin", "SNRmax"),
]


@dataclass(frozen=True, eq=False)
class ImpulsiveNoise:
    """Signal-dependent impulses: sample `positions[i]` is multiplied by `gains[i]`; no position comes twice."""

    positions: np.ndarray
    gains: np.ndarray


@dataclass(frozen=True, eq=False)
class StationaryNoise:
    """Signal-independent noise: `white` (sample,) through the one notch bank, `snr_db` below the signal."""

    bank: NotchBanks
    white: np.ndarray
    snr_db: float


@dataclass(frozen=True, eq=False)
class RawBoostParams:
    """All numbers drawn for one waveform of `num_samples`; a stage that the algorithm does not run is None."""

    algo: int
    num_samples: int
    sample_rate: int
    lnl: NotchBanks | None = None  # bank i filters waveform ** (i + 1)
    isd: ImpulsiveNoise | None = None
    ssi: StationaryNoise | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same numbers as plain dicts, lists and numbers, which `json.dump` can write.

        >>> params = draw_params(2, 1000, np.random.default_rng(0))
        >>> record = params.to_dict()
        >>> record["algo"], len(record["isd"]["gains"]) == len(params.isd.gains)
        (2, True)
        """
        return _plain(asdict(self))

    def summary(self) -> dict[str, Any]:
        """The numbers drawn in a few hundred bytes: Hz rounded to 1, dB to 0.01, samples only counted.

        >>> draw_params(2, 1000, np.random.default_rng(0)).summary()
        {'algo': 2, 'num_impulses': 63}
        """
        record: dict[str, Any] = {"algo": self.algo}
        if self.lnl:
            record |= {"lnl": _summary(self.lnl)}
        if self.isd:
            record |= {"num_impulses": len(self.isd.positions)}
        if self.ssi:
            record |= {"ssi": _summary(self.ssi.bank), "snr_db": round(float(self.ssi.snr_db), 2)}
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> RawBoostParams:
        """The parameters that `to_dict` gave; applying them gives the same waveform again."""
        lnl, isd, ssi = (record[stage] for stage in ("lnl", "isd", "ssi"))
        return cls(
            algo=record["algo"],
            num_samples=record["num_samples"],
            sample_rate=record["sample_rate"],
            lnl=_banks_from_dict(lnl) if lnl else None,
            isd=ImpulsiveNoise(np.array(isd["positions"], np.int64), np.array(isd["gains"])) if isd else None,
            ssi=StationaryNoise(_banks_from_dict(ssi["bank"]), np.array(ssi["white"]), ssi["snr_db"]) if ssi else None,
        )


def draw_params(
    algo: int, num_samples: int, generator: np.random.Generator, *, sample_rate: int = 16000, **ranges: float
) -> RawBoostParams:
    """Draw all random numbers of RawBoost algorithm `algo` for one waveform of `num_samples`.

    `ranges` replace entries of `DEFAULT_RANGES`. The result depends on the arguments and the generator's state only.
    Raises InputError for an algorithm other than 0..8, an unknown range, or a range that cannot be drawn from.

    >>> params = draw_params(5, 64600, np.random.default_rng(0), P=1)
    >>> params.lnl.fc_hz.shape, params.isd.positions.size <= 646, params.ssi
    ((5, 5), True, None)
    """
    return draw_checked(algo, num_samples, generator, sample_rate, check_ranges(algo, sample_rate, ranges))


def check_ranges(algo: int, sample_rate: int, ranges: Mapping[str, float]) -> dict[str, float]:
    """`DEFAULT_RANGES` with `ranges` put in, once everything given is known to be usable, else InputError."""
    if isinstance(algo, bool) or not isinstance(algo, (int, np.integer)) or algo not in ALGORITHMS:
        stages = "; ".join(
            f"{number}: {' then '.join(names) or 'none'}" for number, names in list(ALGORITHMS.items())[:8]
        )
        raise InputError(f"RawBoost has no algorithm {algo!r}. Choose by its stages, {stages}; 8: lnl plus isd.")
    if not sample_rate > 0:
        raise InputError(f"The sample rate of RawBoost is {sample_rate!r}: give it in Hz, for example 16000.")
    for name, value in ranges.items():
        if name not in DEFAULT_RANGES:
            nearest = _nearest(name)
            raise InputError(
                f"RawBoost has no range {name!r}; did you mean {nearest!r}? The ranges are {', '.join(DEFAULT_RANGES)}."
            )
        if isinstance(value, (bool, str)) or not np.isscalar(value) or not np.isfinite(value):
            raise InputError(f"The RawBoost range {name} is {value!r}: give one finite number.")
    merged = DEFAULT_RANGES | dict(ranges)
    for name in ("N_f", "nBands", "minCoeff"):
        if merged[name] < 1 or (name != "minCoeff" and merged[name] != int(merged[name])):
            raise InputError(f"The RawBoost range {name} is {merged[name]}: give a whole number of at least 1.")
    for low, high in _ORDERED_PAIRS:
        if merged[low] > merged[high]:
            raise InputError(f"The RawBoost range {low} {merged[low]} is above {high} {merged[high]}: exchange them.")
    if merged["minF"] < 0 or merged["maxF"] > sample_rate / 2:
        raise InputError(
            f"RawBoost notches have their centres in {merged['minF']} to {merged['maxF']} Hz, but a signal at "
            f"{sample_rate} Hz reaches from 0 to {sample_rate / 2:g} Hz: pass, for example, maxF={sample_rate / 2:g}."
        )
    if merged["minBW"] <= 0:
        raise InputError(f"The RawBoost range minBW is {merged['minBW']} Hz: a notch needs a width above 0.")
    if not 0 <= merged["P"] <= 100:
        raise InputError(f"The RawBoost range P is {merged['P']}: it is a share of the samples in percent, 0 to 100.")
    return merged


def draw_checked(
    algo: int, num_samples: int, generator: np.random.Generator, sample_rate: int, ranges: Mapping[str, float]
) -> RawBoostParams:
    """`draw_params` with the complete `ranges` that `check_ranges` returned: no check is repeated."""
    if num_samples < 1:
        raise InputError(f"RawBoost was asked for a waveform of {num_samples} samples: it needs at least one.")
    stages = ALGORITHMS[algo]
    return RawBoostParams(
        algo=algo,
        num_samples=num_samples,
        sample_rate=sample_rate,
        lnl=_draw_banks(int(ranges["N_f"]), generator, ranges) if "lnl" in stages else None,
        isd=_draw_impulsive(num_samples, generator, ranges) if "isd" in stages else None,
        ssi=_draw_stationary(num_samples, generator, ranges) if "ssi" in stages else None,
    )


def _draw_banks(num_banks: int, generator: np.random.Generator, ranges: Mapping[str, float]) -> NotchBanks:
    """Parameters of `num_banks` banks; from the second on the gains are lowered by the two biases."""
    num_bands = int(ranges["nBands"])
    fc, bw, taps = generator.random((3, num_banks, num_bands))
    bias = np.arange(num_banks) > 0
    low_db = ranges["minG"] - ranges["minBiasLinNonLin"] * bias
    high_db = ranges["maxG"] - ranges["maxBiasLinNonLin"] * bias  # below low_db with the default biases, on purpose
    return NotchBanks(
        fc_hz=ranges["minF"] + (ranges["maxF"] - ranges["minF"]) * fc,
        bw_hz=ranges["minBW"] + (ranges["maxBW"] - ranges["minBW"]) * bw,
        taps=(ranges["minCoeff"] + (ranges["maxCoeff"] - ranges["minCoeff"]) * taps).astype(np.int64),
        gain_db=low_db + (high_db - low_db) * generator.random(num_banks),
    )


def _draw_impulsive(num_samples: int, generator: np.random.Generator, ranges: Mapping[str, float]) -> ImpulsiveNoise:
    num_impulses = int(num_samples * (ranges["P"] * generator.random() / 100.0))
    # Unordered is enough: the gains are independent of the position.
    positions = generator.choice(num_samples, num_impulses, replace=False, shuffle=False)
    u1, u2 = 2.0 * generator.random((2, num_impulses)) - 1.0
    return ImpulsiveNoise(positions, 1.0 + ranges["g_sd"] * u1 * u2)


def _draw_stationary(num_samples: int, generator: np.random.Generator, ranges: Mapping[str, float]) -> StationaryNoise:
    bank = _draw_banks(1, generator, ranges)
    snr_db = ranges["SNRmin"] + (ranges["SNRmax"] - ranges["SNRmin"]) * generator.random()
    return StationaryNoise(bank, generator.standard_normal(num_samples, dtype=np.float32), snr_db)


def _nearest(name: str) -> str:
    by_lower_case = {known.lower(): known for known in DEFAULT_RANGES}
    return by_lower_case[difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.0)[0]]


def _banks_from_dict(record: Mapping[str, Any]) -> NotchBanks:
    return NotchBanks(**{name: np.array(values) for name, values in record.items()})


def _summary(banks: NotchBanks) -> dict[str, Any]:
    return {
        "fc_hz": banks.fc_hz.round().astype(int).tolist(),
        "bw_hz": banks.bw_hz.round().astype(int).tolist(),
        "taps": banks.taps.tolist(),
        "gain_db": banks.gain_db.round(2).tolist(),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
