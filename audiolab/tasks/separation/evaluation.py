"""What a table of separated mixtures means: metrics, tables by condition, pictures.

A table has one row a mixture: `id`; what the set tells (`num_speakers`, `snr_db` of source 1 in the mixture,
`genders`, `overlap`, `speakers` as in `61/70`, `-` where one is not known, `length_s`); for each source r, from 1 up,
`si_sdr_r` of the estimate that fits it and `si_sdr_mixture_r` of the mixture, in dB; `permutation` with the number of
the estimate of each; the means of the row over its sources: `si_sdr`, `si_sdr_mixture`, `si_sdri`, `snr` and, outside
training, `sdr` and `sdri` of BSS-eval. A silent reference has no value: its cells are NaN, the means leave it out and
`silent_references` counts it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from audiolab.errors import UndefinedMetricError
from audiolab.metrics.interval import mean_interval
from audiolab.reporting.gains import before_and_after, gain_bars, gain_histogram
from audiolab.reporting.tables import breakdowns
from audiolab.tasks.separation.snr_bins import SNR_EDGES_DB, bin_names

log = logging.getLogger(__name__)

MEANS = ("si_sdri", "sdri", "si_sdr", "sdr", "snr", "si_sdr_mixture")
_SHOWN = ("sdri", "si_sdr", "si_sdr_mixture")  # in tables by condition, beside SI-SDRi
_UNKNOWN = "-"  # a talker
_OVERLAPS_PERCENT = (20.0, 40.0, 60.0, 80.0)

Cells = Iterator[tuple[str, float]]


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    """Compute the means over mixtures in dB, each with its 95 % interval over talkers, and the tables by condition.

    `worse_percent` are the mixtures that separation made worse. Raises UndefinedMetricError where every reference is
    silent, or where a model gives no numbers.
    """
    set_name, heard = table.attrs.get("set", "scores"), table[table["si_sdr_mixture"].notna()]
    if heard.empty:
        raise UndefinedMetricError(
            f"{set_name}: all references of all {len(table)} mixtures are silent, so there is nothing to measure: look "
            "at the sources of this set"
        )
    broken = heard.loc[heard["si_sdri"].isna(), "id"].tolist()
    if broken:
        raise UndefinedMetricError(
            f"{set_name}: the estimates of {len(broken)} of {len(heard)} mixtures hold samples that are no numbers, "
            f"first those of {broken[0]}: the weights have diverged, so train with a lower optimizer.lr"
        )
    values = dict(_means(heard))
    values |= {
        "worse_percent": 100 * float((heard["si_sdri"] < 0).mean()),
        "silent_references": float(table["silent_references"].sum()),
        "num_mixtures": float(len(heard)),
        "num_skipped": float(table.attrs.get("skipped", 0)),
    }
    if not table.attrs.get("headline_only"):
        values |= dict(_tables(heard))
        if silent := int(values["silent_references"]):
            mixtures = int((table["silent_references"] > 0).sum())
            log.warning(
                "%s: %d references of %d of the %d mixtures are silent, so that they have no ratio, and the means "
                "leave them out",
                *(set_name, silent, mixtures, len(table)),
            )
    return {name: value for name, value in values.items() if not math.isnan(value)}


def figures_of(table: pd.DataFrame, metrics: dict[str, float]) -> dict[str, Figure]:
    """Draw the histogram of SI-SDRi, SI-SDR before and after for each source, and SI-SDRi by SNR of the source."""
    set_name = table.attrs.get("set", "scores")
    heard, sources = table[table["si_sdri"].notna()], sources_of(table)
    low_high = metrics.get("si_sdri_low", math.nan), metrics.get("si_sdri_high", math.nan)
    figures = {
        "histogram": gain_histogram(
            heard["si_sdri"].to_numpy(), metrics["si_sdri"], low_high, "SI-SDRi", "Mixtures", f"SI-SDRi, {set_name}"
        ),
        "scatter": before_and_after(
            sources["si_sdr_mixture"].to_numpy(),
            sources["si_sdr"].to_numpy(),
            _kinds(sources),
            "SI-SDR",
            title=f"SI-SDR of each talker, {set_name}",
        ),
    }
    cells = breakdowns(metrics).get("snr")
    if cells is not None:
        bounds = cells[["si_sdri_low", "si_sdri_high"]].to_numpy() if "si_sdri_low" in cells else None
        names, sizes = list(cells.index), cells["talkers"].astype(int).tolist()
        figures["snr"] = gain_bars(
            names,
            cells["si_sdri"].to_numpy(),
            bounds,
            sizes,
            "SI-SDRi",
            "SNR of the talker in the mixture (dB)",
            f"SI-SDRi by SNR, {set_name}",
        )
    return figures


def sources_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each source that is not silent, with its own `si_sdr`, `si_sdr_mixture` and `si_sdri`.

    >>> row = {"id": "a", "si_sdr_1": 9.0, "si_sdr_2": None, "si_sdr_mixture_1": 1.0, "si_sdr_mixture_2": None}
    >>> sources_of(pd.DataFrame([row]))[["id", "source", "si_sdri"]].values.tolist()
    [['a', 1, 8.0]]
    """
    numbers = sorted(int(name.removeprefix("si_sdr_")) for name in table if re.fullmatch(r"si_sdr_\d+", str(name)))
    own = [name for name in table if re.fullmatch(r"si_sdr(_mixture)?_\d+", str(name)) or name in MEANS]
    parts = []
    for number in numbers:
        part = table.drop(columns=own).assign(source=number)
        for name in ("si_sdr", "si_sdr_mixture"):
            part[name] = table[f"{name}_{number}"].astype(np.float64)
        parts.append(part.assign(si_sdri=part["si_sdr"] - part["si_sdr_mixture"]))
    sources = pd.concat(parts, ignore_index=True)
    return sources[sources["si_sdri"].notna()]


def talkers_of(table: pd.DataFrame) -> list[list[str]]:
    """Return the talkers of each row; a row whose talkers are not known has one of its own.

    >>> talkers_of(pd.DataFrame({"id": ["a", "b"], "speakers": ["61/70", "-/-"]}))
    [['61', '70'], ['mixture b']]
    """
    speakers = table["speakers"].str.split("/") if "speakers" in table else [[_UNKNOWN]] * len(table)
    pairs = zip(table["id"], speakers, strict=True)
    return [[f"mixture {name}"] if _UNKNOWN in talkers else talkers for name, talkers in pairs]


def _means(part: pd.DataFrame) -> Cells:
    """The means that a table has columns for, with their intervals."""
    talkers = talkers_of(part)
    for name in MEANS:
        if name in part:
            yield name, float(part[name].mean())
            yield from zip((f"{name}_low", f"{name}_high"), mean_interval(part[name], talkers), strict=True)


def _tables(heard: pd.DataFrame) -> Cells:
    """Mixtures by number of talkers, genders and overlap, where they differ, and single sources by their SNR."""
    sources = sources_of(heard)
    yield from _by("snr", _bins(sources["si_sdr_mixture"], SNR_EDGES_DB), sources, "talkers")
    for column in ("num_speakers", "genders"):
        if column in heard and heard[column].nunique() > 1:
            yield from _by(column, heard[column].astype("category"), heard)
    if "overlap" in heard and heard["overlap"].nunique() > 1:
        yield from _by("overlap_percent", _bins(100 * heard["overlap"], _OVERLAPS_PERCENT), heard)


def _by(group: str, member: pd.Series, table: pd.DataFrame, counted: str = "mixtures") -> Cells:
    """The size and the means of each part of a table; `member` is a column of categories."""
    for name in member.cat.categories:
        part = table[(member == name).to_numpy()]
        if not part.empty:
            yield f"{group}/{name}/{counted}", float(len(part))
            low, high = mean_interval(part["si_sdri"], talkers_of(part))
            cells = {"si_sdri": float(part["si_sdri"].mean()), "si_sdri_low": low, "si_sdri_high": high}
            cells |= {key: float(part[key].mean()) for key in _SHOWN if key in part}
            yield from ((f"{group}/{name}/{key}", value) for key, value in cells.items())


def _bins(values: pd.Series, edges: Sequence[float]) -> pd.Series:
    """Sort values into bins, named by their ends, the lowest first."""
    return pd.cut(values, [-math.inf, *edges, math.inf], right=False, labels=bin_names(edges))


def _kinds(sources: pd.DataFrame) -> list[str] | None:
    """Say for each source whether its mixture has talkers of one sex or both; None where that is not known or alike."""
    if "genders" not in sources:
        return None
    kinds = [
        "unknown" if "?" in text else "one sex" if len(set(text)) == 1 else "both sexes" for text in sources["genders"]
    ]
    return kinds if len(set(kinds)) > 1 else None
