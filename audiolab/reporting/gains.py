"""Figures of what was gained in decibels: histogram, before against after, bars by condition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from audiolab.errors import InputError
from audiolab.reporting.plots import BLUE, GRID, NUM_BINS, SKY, SYSTEM_COLOURS, VERMILION, new_figure

_MARKERS = ("o", "^", "s", "D", "v", "P")
_SHARE_IN_VIEW = 0.005  # of the values at either end that an axis may leave out
_FEWEST_WITH_INTERVAL = 5


def gain_histogram(
    values_db: ArrayLike,
    mean_db: float,
    interval_db: tuple[float, float],
    quantity: str,
    counted: str,
    title: str = "",
) -> Figure:
    """Histogram of improvements in dB, what was made worse in another colour; mean and its 95 % interval as lines.

    `counted` names what is counted, in the plural.

    >>> gain_histogram([-1.0, 4.0, 6.0], 3.0, (1.0, 5.0), "SI-SDRi", "Mixtures").axes[0].get_xlabel()
    'SI-SDRi (dB)'
    """
    values = np.asarray(values_db, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        raise InputError("there are no values to draw, or some are not finite: leave those without a value out")
    figure, axes = new_figure(6.0, 4.0, title)
    reach = np.concatenate([values, [0.0]])
    width = _bin_width(float(np.ptp(reach)), values.size)
    first, last = math.floor(reach.min() / width), math.ceil(reach.max() / width)
    edges = width * np.arange(first, max(last, first + 1) + 1)  # zero is an edge: no bar has better and worse
    counts, _ = np.histogram(values, bins=edges)
    worse = edges[:-1] < 0
    share = 100 * np.mean(values < 0)
    for part, colour, label in (
        (~worse, BLUE, f"better: {100 - share:.1f} %"),
        (worse, VERMILION, f"worse: {share:.1f} %"),
    ):
        if not counts[part].any():
            continue
        axes.bar(edges[:-1][part], counts[part], width, align="edge", color=colour, alpha=0.6, label=label)
    axes.axvline(mean_db, color="black", linewidth=1.2, linestyle="--", label=f"mean {mean_db:.2f} dB")
    if np.isfinite(interval_db).all():
        low, high = interval_db
        axes.axvspan(low, high, color="black", alpha=0.12, linewidth=0, label=f"95 % {low:.2f} to {high:.2f}")
    axes.set_xlabel(f"{quantity} (dB)")
    axes.set_ylabel(counted)
    axes.yaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def before_and_after(
    before_db: ArrayLike, after_db: ArrayLike, kinds: Sequence[str] | None, quantity: str, title: str = ""
) -> Figure:
    """One dot for each pair of values in dB, and lines for no gain and for the mean gain; colours tell `kinds` apart.

    >>> figure = before_and_after([0.0, -3.0], [9.0, 8.0], ["one sex", "both sexes"], "SI-SDR")
    >>> figure.axes[0].get_ylabel()
    'SI-SDR of the estimate (dB)'
    """
    before, after = (np.asarray(values, dtype=np.float64) for values in (before_db, after_db))
    names = np.asarray([""] * before.size if kinds is None else kinds)
    if not before.size or before.shape != after.shape or names.shape != before.shape:
        raise InputError(
            f"{before.size} values before, {after.size} after and {names.size} kinds are no pairs: give as many of each"
        )
    figure, axes = new_figure(5.2, 5.2, title)
    gain = float(np.mean(after - before))
    x = np.array([_low(before), _high(before)])
    margin = 0.06 * max(float(np.ptp(x)), 1.0)
    x += (-margin, margin)
    axes.plot(x, x, color="#999999", linewidth=1.0, label="no gain", zorder=2)
    axes.plot(x, x + gain, color="black", linewidth=1.0, linestyle="--", label=f"mean gain {gain:.2f} dB", zorder=2)
    size = float(np.clip(3000 / before.size, 4, 26))
    for index, name in enumerate(sorted(set(names))):
        here = names == name
        colour, marker = SYSTEM_COLOURS[index % len(SYSTEM_COLOURS)], _MARKERS[index % len(_MARKERS)]
        label = f"{name}: {np.mean((after - before)[here]):.2f} dB" if name else None
        style = {"color": colour, "marker": marker, "alpha": 0.6, "edgecolors": "none", "zorder": 3}
        axes.scatter(before[here], after[here], size, label=label, **style)
    y = np.array([min(_low(after), x[0]), max(_high(after), x[0] + gain)])
    axes.set_xlim(*x)
    axes.set_ylim(y[0] - margin, y[1] + margin)
    axes.set_xlabel(f"{quantity} of the mixture (dB)")
    axes.set_ylabel(f"{quantity} of the estimate (dB)")
    axes.grid(**GRID)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def gain_bars(
    names: Sequence[str],
    values_db: ArrayLike,
    intervals_db: ArrayLike | None,
    sizes: Sequence[int],
    quantity: str,
    condition: str,
    title: str = "",
) -> Figure:
    """One bar a condition, with its 95 % interval (low, high) where there is one and how many values it is of.

    An interval of fewer than 5 values is left out: it says little, and can be so long that no bar is seen beside it.

    >>> figure = gain_bars(["below 0", "from 0"], [8.0, 5.0], [(7, 9), (4, 6)], [40, 41], "SI-SDRi", "SNR (dB)")
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['40', '41']
    """
    bars = np.asarray(values_db, dtype=np.float64)
    bounds = np.full((bars.size, 2), math.nan) if intervals_db is None else np.asarray(intervals_db, dtype=np.float64)
    if not len(names) or bars.shape != (len(names),) or bounds.shape != (len(names), 2) or len(sizes) != len(names):
        raise InputError(f"there are {len(names)} conditions and {bars.size} values: give one value a condition")
    bounds = np.where(np.asarray(sizes)[:, None] < _FEWEST_WITH_INTERVAL, math.nan, bounds)
    figure, axes = new_figure(max(4.0, 1.2 + 0.75 * len(names)), 4.0, title)
    places = np.arange(len(names))
    axes.bar(places, bars, width=0.7, color=SKY, edgecolor=BLUE, linewidth=0.8, zorder=2)
    axes.vlines(places, *bounds.T, color="black", linewidth=1.1, zorder=4)
    for end in bounds.T:
        axes.plot(places, end, "_", color="black", markersize=6, zorder=4)
    axes.axhline(0, color="black", linewidth=0.8, zorder=3)
    tops = np.fmax(np.fmax(bars, bounds[:, 1]), 0)
    for place, top, size in zip(places, tops, sizes, strict=True):
        axes.annotate(
            f"{size:,}", (place, top), (0, 3), textcoords="offset points", ha="center", fontsize=8, color="#555555"
        )
    axes.margins(y=0.1)
    broken = max(map(len, names)) > 7
    axes.set_xticks(places, [name.replace(" ", "\n", 1) if broken else name for name in names], fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(condition)
    axes.set_ylabel(f"{quantity} (dB)" + (" with 95 % interval" if np.isfinite(bounds).any() else ""))
    axes.grid(axis="y", **GRID)
    return figure


def _bin_width(reach_db: float, num_values: int) -> float:
    """Return a round width that gives about as many bins as the square root of the number of values, 60 at most."""
    wanted = max(reach_db, 1e-3) / float(np.clip(1.5 * math.sqrt(num_values), 8, NUM_BINS))
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(power * step for step in (1, 2, 2.5, 5, 10) if power * step >= 0.7 * wanted)


def _low(values: np.ndarray) -> float:
    return float(np.quantile(values, _SHARE_IN_VIEW) if values.size > 1 / _SHARE_IN_VIEW else values.min())


def _high(values: np.ndarray) -> float:
    return float(np.quantile(values, 1 - _SHARE_IN_VIEW) if values.size > 1 / _SHARE_IN_VIEW else values.max())
