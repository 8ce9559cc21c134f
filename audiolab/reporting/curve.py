"""The score of a recording over time, as a picture."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from audiolab.reporting.plots import BLUE, DPI, GRID, VERMILION

MAX_COLUMNS = 1500  # of the waveform: more are not to be seen
MAX_TICKS = 10
TIME_STEPS_S = (30, 60, 120, 300, 600, 1200, 1800, 3600)  # between ticks of recordings of minutes and hours


def score_curve(
    start_s: np.ndarray,
    end_s: np.ndarray,
    score: np.ndarray,
    envelope: np.ndarray,
    duration_s: float,
    *,
    threshold: float | None,
    below: str,
    score_label: str,
    title: str = "",
) -> Figure:
    """Draw the waveform's envelope above and the score of each window, at its middle, below; NaN leaves a gap.

    `envelope` holds magnitudes at equal distances over the recording. With a threshold the regions that score at most
    that are marked in both and named `below`; where windows overlap, each stands for the time nearest to its middle.

    >>> figure = score_curve(*np.array([[0.0, 1], [2, 3], [1, -1]]), np.ones(300), 3.0, threshold=0.0, below="spoof",
    ...                      score_label="Score")
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['Waveform', 'Score']
    """
    figure = Figure(figsize=(9.0, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    above, curve = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.8))
    num_columns = min(MAX_COLUMNS, len(envelope))
    edges = np.linspace(0, len(envelope), num_columns, endpoint=False).astype(int)
    height = np.maximum.reduceat(envelope, edges)
    above.fill_between(edges / len(envelope) * duration_s, -height, height, color="#777777", linewidth=0)
    reach = max(float(height.max()), 1e-9)
    above.set(ylabel="Waveform", ylim=(-1.05 * reach, 1.05 * reach), yticks=[])

    middle_s = (start_s + end_s) / 2
    borders_s = np.concatenate(([0.0], (middle_s[1:] + middle_s[:-1]) / 2, [duration_s]))
    curve.plot(
        middle_s, score, color=BLUE, linewidth=1.4, marker="o", markersize=4 if len(score) <= 60 else 0, zorder=3
    )
    if threshold is not None:
        line = {"color": "black", "linewidth": 1.0, "linestyle": "--", "zorder": 4}
        curve.axhline(threshold, label=f"Threshold {threshold:.3g}", **line)
        label: str | None = below
        for begin, end in _runs(score <= threshold):
            for axes in (above, curve):
                region = axes.axvspan(borders_s[begin], borders_s[end], color=VERMILION, alpha=0.18, linewidth=0)
            if label:
                region.set_label(label)
            label = None
    label = "silent"
    for begin, end in _runs(np.isnan(score)):
        region = curve.axvspan(borders_s[begin], borders_s[end], color="#BBBBBB", alpha=0.3, linewidth=0)
        if label:
            region.set_label(label)
        label = None
    curve.set(xlabel="Time (s)", ylabel=score_label, xlim=(0.0, duration_s))
    if duration_s > TIME_STEPS_S[0] * MAX_TICKS / 2:
        step_s = next((step for step in TIME_STEPS_S if duration_s / step <= MAX_TICKS), TIME_STEPS_S[-1])
        curve.set_xlabel("Time (min:s)")
        curve.xaxis.set_major_locator(MultipleLocator(step_s))
        curve.xaxis.set_major_formatter(lambda value, _: f"{int(value) // 60}:{int(value) % 60:02d}")
    curve.grid(**GRID)
    for axes in (above, curve):
        axes.spines[["top", "right"]].set_visible(False)
    if curve.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _runs(marked: np.ndarray) -> list[tuple[int, int]]:
    """Return [begin, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], marked, [False])).astype(int)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]
