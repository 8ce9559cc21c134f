"""One picture of a corpus: how long its files are, and how many each class has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from audiolab.preflight.files import FileFacts
from audiolab.preflight.lists import class_counts
from audiolab.reporting.plots import DPI, GRID, NUM_BINS, SYSTEM_COLOURS

_MOST_CLASSES = len(SYSTEM_COLOURS)


def corpus_picture(sets: Mapping[str, pd.DataFrame], facts: Mapping[str, FileFacts], title: str) -> Figure:
    """Draw histograms of the durations of every set, and stacked bars of its classes.

    >>> sets = {"train": pd.DataFrame({"id": ["a", "b"], "file": ["a", "b"], "label": ["x", "y"]})}
    >>> facts = {name: FileFacts(16000, 1, 16000, 0.5, 0.0, name) for name in ("a", "b")}
    >>> [axes.get_xlabel() for axes in corpus_picture(sets, facts, "mine").axes]
    ['Duration (s)', 'Files']
    """
    counts = {name: class_counts(listing) for name, listing in sets.items()}
    classes = list(dict.fromkeys(label for found in counts.values() for label in found))
    with_classes = 0 < len(classes) <= _MOST_CLASSES
    figure = Figure(figsize=(7.0, 3.0 + (0.9 + 0.35 * len(sets)) * with_classes), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    heights = [2.6, 0.6 + 0.35 * len(sets)][: 1 + with_classes]
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    axes = figure.add_subplot(grid[0])
    durations = {
        name: [facts[file].duration_s for file in dict.fromkeys(listing["file"]) if file in facts]
        for name, listing in sets.items()
    }
    everything = np.concatenate([np.asarray(found) for found in durations.values()])
    edges = np.histogram_bin_edges(everything, bins=NUM_BINS)
    for (name, found), colour in zip(durations.items(), np.resize(SYSTEM_COLOURS, len(durations)), strict=True):
        label = f"{name}: {len(found):,} files, {sum(found) / 3600:.2f} h"
        axes.stairs(np.histogram(found, bins=edges)[0], edges, color=colour, linewidth=1.4, label=label)
    axes.set(xlabel="Duration (s)", ylabel="Files", title=title)
    axes.legend(frameon=False)
    if with_classes:
        axes = figure.add_subplot(grid[1])
        left = np.zeros(len(counts))
        for label, colour in zip(classes, SYSTEM_COLOURS, strict=False):
            widths = np.array([found.get(label, 0) for found in counts.values()])
            axes.barh(list(counts), widths, left=left, color=colour, label=label)
            left += widths
        axes.invert_yaxis()
        axes.set_xlabel("Files")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in figure.axes:
        axes.set_axisbelow(True)
        axes.grid(**GRID)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
