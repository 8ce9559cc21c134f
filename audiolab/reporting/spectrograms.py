"""Spectrograms of several signals of one utterance in one picture, all on one scale of colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.signal import ShortTimeFFT

from audiolab.errors import InputError
from audiolab.reporting.plots import DPI

WINDOW_S = 0.032
RANGE_DB = 70.0  # below the loudest point of the picture: what is softer is black
MAX_COLUMNS = 1200  # of a panel: more are not to be seen

Panel = tuple[str, np.ndarray]


def spectrograms(rows: Sequence[Sequence[Panel]], sample_rate: int, title: str = "") -> Figure:
    """Draw the level in dB over time and frequency of each (title, signal (time,)), in rows of panels.

    A row of one panel is as wide as the others. The colours span 70 dB below the loudest point of all panels, so that
    panels can be compared. Raises InputError for no panel and for signals of different lengths.

    >>> tone = np.sin(0.3 * np.arange(8000))
    >>> figure = spectrograms([[("mixture", tone)], [("reference", tone), ("estimate", tone)]], 8000)
    >>> [axes.get_title() for axes in figure.axes[:3]]
    ['mixture', 'reference', 'estimate']
    """
    lengths = {len(signal) for row in rows for _, signal in row}
    if len(lengths) != 1:
        raise InputError(f"the signals have {sorted(lengths)} samples: give at least one, all of one length")
    levels = [[(name, _level_db(signal, sample_rate)) for name, signal in row] for row in rows]
    return level_panels(levels, lengths.pop() / sample_rate, sample_rate / 2, title)


def level_panels(rows: Sequence[Sequence[Panel]], duration_s: float, highest_hz: float, title: str = "") -> Figure:
    """Draw `spectrograms` from (title, levels in dB (frequency, time)), frequencies from 0 to `highest_hz`."""
    num_columns = max(map(len, rows))
    figure = Figure(figsize=(1.2 + 4.2 * num_columns, 0.6 + 1.75 * len(rows)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    top = max(float(level.max()) for row in rows for _, level in row)
    extent = (0.0, duration_s, 0.0, highest_hz / 1000)
    grid = figure.add_gridspec(len(rows), num_columns)
    shared = None
    for number, row in enumerate(rows):
        for column, (name, level) in enumerate(row):
            wide, last = len(row) < num_columns, number == len(rows) - 1
            place = grid[number, :] if wide else grid[number, column]
            axes = figure.add_subplot(place, sharey=shared)
            shared = shared or axes
            image = axes.imshow(
                level,
                origin="lower",
                aspect="auto",
                extent=extent,
                cmap="magma",
                vmin=top - RANGE_DB,
                vmax=top,
                interpolation="nearest",
            )
            axes.set_title(name, fontsize=9)
            axes.tick_params(labelsize=8, labelleft=column == 0, labelbottom=wide or last)
            if column == 0:
                axes.set_ylabel("kHz", fontsize=8)
            if last:
                axes.set_xlabel("Time (s)", fontsize=8)
    bar = figure.colorbar(image, ax=figure.axes, fraction=0.025, pad=0.01)
    bar.set_label("dB, the loudest at 0", fontsize=8)
    bar.set_ticks([top - drop for drop in range(0, int(RANGE_DB) + 1, 10)])
    bar.ax.set_yticklabels([str(-drop) for drop in range(0, int(RANGE_DB) + 1, 10)], fontsize=8)
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _level_db(signal: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return levels (frequency, frame) in dB, of as many frames as can be seen."""
    length = max(8, round(WINDOW_S * sample_rate))
    hop = max(length // 4, -(-len(signal) // MAX_COLUMNS))
    transform = ShortTimeFFT(np.hanning(length + 1)[:-1], hop, sample_rate, scale_to="magnitude")
    padded = np.pad(np.asarray(signal, dtype=np.float64), (0, max(0, length - len(signal))))
    spectrum = np.abs(transform.stft(padded))
    return 20 * np.log10(np.maximum(spectrum, 1e-10))
