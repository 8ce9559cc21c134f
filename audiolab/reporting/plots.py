"""Figures of detection experiments: DET curves, score histograms, bars per attack, tables as heat maps.

Every function returns a `matplotlib.figure.Figure` with an Agg canvas and leaves pyplot's global state alone; save it
with `figure.savefig(path)`. Rates come in as fractions and are drawn in percent. Colours are those of Okabe and Ito,
which colour-blind readers can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import ArrayLike
from scipy.special import ndtri

from audiolab.errors import InputError
from audiolab.metrics.det import FloatArray, as_scores, compute_det

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
ORANGE, SKY, PURPLE = "#E69F00", "#56B4E9", "#CC79A7"
SYSTEM_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
SYSTEM_LINES = ("-", "--", "-.")
GRID: dict[str, Any] = {"color": "#E5E5E5", "linewidth": 0.6}

DPI = 150
DET_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
DET_TICKS_WIDE = (0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99)
NUM_BINS = 60


def det_plot(systems: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str = "") -> Figure:
    """DET curves, name -> (bona fide scores, spoof scores), on probit axes in percent with the EER of each marked.

    Curves pass through every operating point, without smoothing; the mark is the operating point whose mean of miss
    and false-alarm rate is the EER. The axes run from 0.1 % to 50 %, or to 99 % where an EER lies above 40 %. Raises
    InputError for no system, and for scores as `compute_det` does.

    >>> generator = np.random.default_rng(0)
    >>> figure = det_plot({"LFCC-GMM": (generator.normal(3, 1, 100), generator.normal(0, 1, 900))})
    >>> figure.axes[0].get_xlabel()
    'False alarm rate: spoofed speech accepted (%)'
    """
    if not systems:
        raise InputError("There is no system to draw: pass at least one name with its bona fide and spoof scores.")
    curves = {name: compute_det(*scores)[:2] for name, scores in systems.items()}
    points = {name: int(np.argmin(np.abs(miss - false_alarm))) for name, (miss, false_alarm) in curves.items()}
    eers = {name: (miss[points[name]] + false_alarm[points[name]]) / 2 for name, (miss, false_alarm) in curves.items()}
    ticks = DET_TICKS if max(eers.values()) <= 0.4 else DET_TICKS_WIDE
    limits = ndtri((ticks[0], ticks[-1]))
    legend_columns = 2 if len(systems) > 3 and max(map(len, systems)) <= 16 else 1
    figure, axes = new_figure(5.0, 5.3 + 0.22 * math.ceil(len(systems) / legend_columns), title)
    axes.plot(limits, limits, color="#CCCCCC", linewidth=0.8, zorder=1)
    for index, (name, (miss, false_alarm)) in enumerate(curves.items()):
        style: dict[str, Any] = {
            "color": SYSTEM_COLOURS[index % len(SYSTEM_COLOURS)],
            "linestyle": SYSTEM_LINES[index // len(SYSTEM_COLOURS) % len(SYSTEM_LINES)],
            "linewidth": 1.6,
        }
        x, y = _probit(false_alarm), _probit(miss)
        axes.plot(*_corners(x, y), **style, zorder=2)
        mark = {**style, "marker": "o", "markersize": 7, "markeredgecolor": "white"}
        at = points[name]
        axes.plot(*np.clip([[x[at]], [y[at]]], *limits), **mark, zorder=3, clip_on=False)
        axes.plot([], [], **mark, label=f"{name}: EER {100 * eers[name]:.2f} %")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ndtri(ticks)))
        axis.set_ticklabels([f"{100 * tick:g}" for tick in ticks])
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_xlabel("False alarm rate: spoofed speech accepted (%)")
    axes.set_ylabel("Miss rate: bona fide speech rejected (%)")
    axes.grid(**GRID)
    figure.legend(loc="outside lower center", ncols=legend_columns, frameon=False)
    return figure


def score_histogram(bonafide: ArrayLike, spoof: ArrayLike, threshold: float | None = None, title: str = "") -> Figure:
    """Histograms of both classes, each normalised to unit area, over common bins; a line at `threshold`.

    With a threshold the legend tells how much of each class falls on its wrong side. Raises InputError for empty or
    non-finite scores.

    >>> score_histogram([1.0, 2.0, 3.0], [0.0, 1.5], threshold=1.2).axes[0].get_ylabel()
    'Density'
    """
    classes = as_scores(bonafide, "bona fide"), as_scores(spoof, "spoof")
    figure, axes = new_figure(6.0, 4.0, title)
    everything = np.concatenate(classes)
    edges = np.histogram_bin_edges(everything, bins=NUM_BINS)
    labels = [f"Bona fide ({classes[0].size:,})", f"Spoofed ({classes[1].size:,})"]
    if threshold is not None:
        labels[0] += f": {100 * np.mean(classes[0] <= threshold):.2f} % rejected"
        labels[1] += f": {100 * np.mean(classes[1] > threshold):.2f} % accepted"
    for scores, colour, label in zip(classes, (BLUE, VERMILION), labels, strict=True):
        density, _ = np.histogram(scores, bins=edges, density=True)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(density, edges, color=colour, linewidth=1.4, label=label)
    if threshold is not None:
        axes.axvline(threshold, color="black", linewidth=1.2, linestyle="--", label=f"Threshold {threshold:.3g}")
    axes.set_xlabel("Score (higher is more bona fide)")
    axes.set_ylabel("Density")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)  # below, where it covers no data
    return figure


def attack_bars(
    names: Sequence[str],
    values: ArrayLike,
    intervals: ArrayLike | None = None,
    overall: float | None = None,
    title: str = "",
    quantity: str = "EER",
    percent: bool = True,
    sort: bool = False,
) -> Figure:
    """One horizontal bar per attack, from the top in the given order or, with `sort`, from the highest value.

    `values` are drawn in percent, or as they are without `percent` (a t-DCF, say); `quantity` names them. `intervals`
    holds the 95 % interval (low, high) of each attack, `overall` the pooled value, drawn as a line. Attacks whose value
    is NaN are marked "no value". Raises InputError for no attack and for lengths that differ.

    >>> figure = attack_bars(["A07", "A08"], [0.02, 0.1], intervals=[(0.01, 0.03), (0.07, 0.14)], overall=0.05)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['A07', 'A08']
    """
    scale, decimals = (100.0, 2) if percent else (1.0, 3)
    bars = scale * np.asarray(values, dtype=np.float64)
    bounds = None if intervals is None else scale * np.asarray(intervals, dtype=np.float64)
    if not len(names) or bars.shape != (len(names),) or (bounds is not None and bounds.shape != (len(names), 2)):
        raise InputError(
            f"There are {len(names)} attacks, values of shape {bars.shape} and intervals of shape "
            f"{None if bounds is None else bounds.shape}: pass one value and one (low, high) an attack."
        )
    order = np.argsort(-bars, kind="stable") if sort else np.arange(len(names))
    bars, rows = bars[order], np.arange(len(names))
    figure, axes = new_figure(6.0, 1.1 + 0.27 * (len(names) + (overall is not None)), title)
    axes.barh(rows, np.nan_to_num(bars), height=0.72, color=SKY, edgecolor=BLUE, linewidth=0.8, zorder=2)
    right = np.nan_to_num(bars)
    if bounds is not None:
        low, high = bounds[order].T
        axes.hlines(rows, low, high, color="black", linewidth=1.1, zorder=4)
        axes.plot([low, high], [rows, rows], "|", color="black", markersize=6, zorder=4)
        right = np.fmax(right, high)
    reach = right.max()
    if overall is not None:
        reach = max(reach, scale * overall)
        label = f"Pooled {scale * overall:.{decimals}f}"
        axes.axvline(scale * overall, color=VERMILION, linewidth=1.3, linestyle="--", label=label, zorder=3)
        figure.legend(loc="outside lower right", frameon=False)
    reach = reach or 1.0
    for row, bar, end in zip(rows, bars, right, strict=True):
        text = "no value" if np.isnan(bar) else f"{bar:.{decimals}f}"
        patch = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        axes.text(float(end) + 0.02 * reach, float(row), text, va="center", fontsize=8, bbox=patch, zorder=5)
    axes.set_yticks(rows, [names[index] for index in order])
    axes.set_xlim(0, 1.13 * reach)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    unit = f"{quantity} (%)" if percent else quantity
    axes.set_xlabel(unit if bounds is None else f"{unit} with 95 % interval")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", **GRID)
    return figure


def heat_map(
    values: ArrayLike, rows: Sequence[str], columns: Sequence[str], quantity: str, title: str = "", decimals: int = 1
) -> Figure:
    """A table as colours with its numbers on them; NaN is an empty cell.

    `quantity` names the values at the colour bar. The last row and column are set apart where they are called
    "Pooled". Raises InputError for values of another shape than (rows, columns).

    >>> figure = heat_map([[1.0, 2.5], [3.0, np.nan]], ["A07", "A08"], ["none", "alaw"], "EER (%)")
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['1.0', '2.5', '3.0']
    """
    cells = np.asarray(values, dtype=np.float64)
    if cells.shape != (len(rows), len(columns)) or not cells.size:
        raise InputError(f"The values have shape {cells.shape}: pass ({len(rows)}, {len(columns)}), one a cell.")
    name_in = 0.075 * max(map(len, rows))
    figure, axes = new_figure(1.6 + name_in + 0.52 * len(columns), 1.3 + 0.27 * len(rows), title)
    image = axes.imshow(np.ma.masked_invalid(cells), cmap="viridis", aspect="auto")
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(quantity)
    bar.outline.set_visible(False)
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            colour = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
            axes.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    wide = max(map(len, columns)) > 6
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if wide else {}
    axes.set_xticks(range(len(columns)), columns, fontsize=8, **turned)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if rows[-1] == "Pooled" and len(rows) > 1:
        axes.axhline(len(rows) - 1.5, color="white", linewidth=3)
    if columns[-1] == "Pooled" and len(columns) > 1:
        axes.axvline(len(columns) - 1.5, color="white", linewidth=3)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)


def plain_title(text: str, longest: int = 60) -> str:
    """Return a text of a user, such as a file's name, as a picture can show it: in one line, in the font's characters.

    >>> plain_title("a$b$ \\u4f60\\ud800.wav"), plain_title("abcdefgh", longest=5)
    ('a\\\\$b\\\\$ ??.wav', 'ab...')
    """
    font = get_font(findfont(FontProperties()))
    known = "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in text)
    short = known if len(known) <= longest else f"{known[: longest - 3]}..."
    return short.replace("$", r"\$")  # no formula


def new_figure(width_in: float, height_in: float, title: str) -> tuple[Figure, Axes]:
    """Return an empty figure in the house style, and its axes."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=11)
    return figure, axes


def _probit(rate: FloatArray | float) -> FloatArray:
    """Normal quantiles, with rates of 0 and 1 far outside the axes instead of at infinity."""
    return np.clip(ndtri(rate), -9.0, 9.0)


def _corners(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """A staircase without the points inside its steps: the same line, a hundredth of the points."""
    moves_x = np.diff(x) != 0
    turns = np.flatnonzero(moves_x[1:] != moves_x[:-1]) + 1
    keep = np.concatenate(([0], turns, [x.size - 1]))
    return x[keep], y[keep]
