"""How a training went, as a picture: loss, development metrics, learning rates, gradients, speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator

from audiolab.reporting.plots import BLUE, DPI, GRID, ORANGE, SYSTEM_COLOURS, VERMILION

SMOOTHED_SHARE = 0.02  # of the steps shown: the width of the moving mean
MAX_POINTS = 4000  # of a raw curve: more are not to be seen
MARKED_POINTS = 40  # up to so many values stand as dots too


def training_curves(
    log: pd.DataFrame, headline: Mapping[str, str], monitor: str, mode: Literal["min", "max"], title: str = ""
) -> Figure:
    """Draw a training from its metrics.csv, one panel for each kind of values that it has, over the optimiser steps.

    `headline` holds the metrics of `Task.headline` with their formats, `monitor` the column by which the best epoch is
    chosen and marked, the lowest or with `mode` "max" the highest. Values that are not finite leave gaps. What the
    final evaluation logged, after the last step, is no epoch and is left out.

    >>> log = pd.DataFrame({"step": [9, 19], "train/loss_step": [0.7, 0.3], "dev/eer": [20.0, 5.0]})
    >>> figure = training_curves(log, {"eer": "EER {:.2f} %"}, "dev/eer", "min")
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['Loss', 'EER (%)']
    """
    log = _of_training(log)
    panels: list[Callable[[Axes], None]] = []
    if {"train/loss_step", "train/loss_epoch"} & set(log):
        panels.append(lambda axes: _loss(axes, log))
    groups = _metrics_by_unit(log, headline, monitor)
    for label, columns in groups:
        panels.append(lambda axes, label=label, columns=columns: _metrics(axes, log, label, columns, monitor, mode))
    rates = {name.removeprefix("lr/"): name for name in log if name.startswith("lr/")}
    if rates:
        panels.append(lambda axes: _by_group(axes, log, rates, "Learning rate", smooth=False))
    norms = {name.split("/")[1]: name for name in log if name.startswith("health/") and name.endswith("/grad_norm")}
    if norms:
        panels.append(lambda axes: _by_group(axes, log, norms, "Gradient norm", smooth=True))
    if {"throughput/utterances_per_s", "throughput/utterances_per_s_epoch"} & set(log):
        panels.append(lambda axes: _speed(axes, log))

    figure, places = _places(len(panels), _num_epochs(log) > 1)
    if title:
        figure.suptitle(title, fontsize=11, y=1 - 0.12 / figure.get_figheight(), va="top")
    for number, (axes, draw) in enumerate(zip(places, panels, strict=True)):
        _prepare(axes, float(log["step"].max()))
        draw(axes)
        if number >= len(panels) - 2:
            axes.set_xlabel("Optimiser step", fontsize=9)
        if number == 0 or axes.get_subplotspec().is_first_row():
            _epoch_axis(axes, log)
        if axes.get_ylabel() != "Utterances/s":  # its two curves have the colours of their axes
            axes.legend(fontsize=7, frameon=True, framealpha=0.8, edgecolor="none", loc="best")
    return figure


def moving_mean(values: pd.Series, width: int) -> pd.Series:
    """Return the mean over the `width` values around each, over fewer at the ends; NaN counts for nothing.

    >>> moving_mean(pd.Series([1.0, 2.0, np.nan, 4.0, 6.0]), 3).tolist()
    [1.5, 1.5, 3.0, 5.0, 5.0]
    """
    return values.rolling(width, center=True, min_periods=1).mean()


def _of_training(log: pd.DataFrame) -> pd.DataFrame:
    """Leave out the rows after the last one of training, those of the final evaluation, and empty columns."""
    trained = [name for name in log if name.startswith(("train/", "lr/"))]
    rows = log[trained].notna().any(axis="columns") if trained else pd.Series(data=True, index=log.index)
    last = log.loc[rows, "step"].max()
    return log[log["step"] <= last].dropna(axis="columns", how="all")


def _places(num_panels: int, epochs_above: bool) -> tuple[Figure, list[Axes]]:
    """Return an empty figure with so many panels in two columns; of an odd number the first takes a whole row.

    Margins are fixed: looking for the best ones takes as long as drawing.
    """
    wide = num_panels % 2
    num_rows = max(1, (num_panels + wide) // 2)
    width_in, height_in = 9.2, 1.25 + 2.4 * num_rows
    figure = Figure(figsize=(width_in, height_in), dpi=DPI)
    FigureCanvasAgg(figure)
    margins = {"left": 0.75 / width_in, "right": 1 - 0.65 / width_in, "wspace": 0.36, "hspace": 0.22}
    grid = figure.add_gridspec(
        num_rows, 2, bottom=0.5 / height_in, top=1 - (0.85 if epochs_above else 0.45) / height_in, **margins
    )
    cells = [divmod(number, 2) for number in range(2 * num_rows)]
    places = [grid[0, :], *(grid[cell] for cell in cells[2:])] if wide else [grid[cell] for cell in cells[:num_panels]]
    return figure, [figure.add_subplot(place) for place in places]


def _prepare(axes: Axes, last: float) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(**GRID)
    axes.set_axisbelow(True)
    axes.set_xlim(0, 1.02 * max(last + 1, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k, 1.5M


def _epoch_axis(axes: Axes, log: pd.DataFrame) -> None:
    """Number the epochs above a panel, where they end."""
    if _num_epochs(log) < 2:
        return
    ends = log.loc[log["train/loss_epoch"].notna(), ["step", "epoch"]]
    above = axes.secondary_xaxis("top")
    every = max(1, -(-len(ends) // 6))
    shown = ends[(ends["epoch"] + 1) % _round(every) == 0]
    above.xaxis.set_major_locator(FixedLocator((shown["step"] + 1).to_list()))
    above.set_xticklabels([f"{epoch + 1:.0f}" for epoch in shown["epoch"]])
    above.set_xlabel("Epoch", fontsize=8, labelpad=2)
    above.tick_params(labelsize=8, length=2)
    above.spines["top"].set_visible(False)


def _num_epochs(log: pd.DataFrame) -> int:
    return int(log["train/loss_epoch"].notna().sum()) if {"train/loss_epoch", "epoch"} <= set(log) else 0


def _round(number: int) -> int:
    """Return the next of 1, 2, 5, 10, 20, 50 ..."""
    scale = 10 ** int(np.log10(number))
    return next(scale * digit for digit in (1, 2, 5, 10) if scale * digit >= number)


def _curve(axes: Axes, points: pd.DataFrame, column: str, colour: str, label: str, *, smooth: bool = True) -> None:
    """Draw a curve; where there are many points to `smooth` they are faint, under their moving mean."""
    width = max(1, round(SMOOTHED_SHARE * len(points))) | 1 if smooth else 1
    thin = slice(None, None, max(1, len(points) // MAX_POINTS))
    step, value = points["step"] + 1, points[column]
    if width == 1:
        marker = "." if len(points) <= MARKED_POINTS else ""
        axes.plot(step.iloc[thin], value.iloc[thin], color=colour, linewidth=1.0, marker=marker, label=label)
        return
    axes.plot(step.iloc[thin], value.iloc[thin], color=colour, linewidth=0.6, alpha=0.35)
    mean = moving_mean(value, width).where(value.notna())
    axes.plot(step.iloc[thin], mean.iloc[thin], color=colour, linewidth=1.4, label=f"{label}, mean of {width}")


def _dots(points: pd.DataFrame) -> dict[str, Any]:
    """Return how the values of epochs are drawn: with dots where there are few."""
    return {"linewidth": 1.3, "marker": "o" if len(points) <= MARKED_POINTS else "", "markersize": 3.5}


def _loss(axes: Axes, log: pd.DataFrame) -> None:
    if "train/loss_step" in log:
        steps = _points(log, "train/loss_step")
        _curve(axes, steps, "train/loss_step", BLUE, "steps")
        _mark_gaps(axes, steps, "train/loss_step")
    if "train/loss_epoch" in log:
        epochs = _points(log, "train/loss_epoch")
        axes.plot(epochs["step"] + 1, epochs["train/loss_epoch"], color=VERMILION, label="epoch mean", **_dots(epochs))
    axes.set_ylabel("Loss", fontsize=9)


def _metrics_by_unit(log: pd.DataFrame, headline: Mapping[str, str], monitor: str) -> list[tuple[str, dict[str, str]]]:
    """Return, for each panel, its axis label and its columns with their names: that of the monitored metric first.

    A metric that training logs too stands beside those of the sets, so the gap between them can be seen.

    Metrics with the same unit share a panel; the metric of the monitor has its own.
    """
    monitored = monitor.split("/", 1)[-1]
    panels: dict[tuple[str, str], dict[str, str]] = {}
    of_panel: dict[tuple[str, str], set[str]] = {}
    for metric in sorted(headline, key=lambda name: name != monitored):
        before, _, after = headline[metric].partition("{")
        unit = after.partition("}")[2].strip()
        columns = [name for name in log if name.count("/") == 1 and name.endswith(f"/{metric}")]
        columns = [
            name for name in sorted(columns, key=lambda name: name.startswith("train/")) if log[name].notna().any()
        ]
        panel = (monitored if metric == monitored else "", unit)
        for column in columns:
            panels.setdefault(panel, {})[column] = f"{column.split('/')[0]} {before.strip()}"
            of_panel.setdefault(panel, set()).add(before.strip())
    names = {panel: found.pop() if len(found) == 1 else "Other metrics" for panel, found in of_panel.items()}
    return [(f"{names[panel]} ({panel[1]})" if panel[1] else names[panel], found) for panel, found in panels.items()]


def _metrics(
    axes: Axes, log: pd.DataFrame, label: str, columns: Mapping[str, str], monitor: str, mode: Literal["min", "max"]
) -> None:
    for number, (column, name) in enumerate(columns.items()):
        points = _points(log, column)
        axes.plot(
            points["step"] + 1,
            points[column],
            color=SYSTEM_COLOURS[number % len(SYSTEM_COLOURS)],
            label=name,
            **_dots(points),
        )
        _mark_gaps(axes, points, column)
        if column == monitor and points[column].notna().any():
            at = points[column].idxmin() if mode == "min" else points[column].idxmax()
            best = points.loc[at]
            epoch = f", epoch {best['epoch'] + 1:.0f}" if "epoch" in points and pd.notna(best["epoch"]) else ""
            axes.plot(
                best["step"] + 1,
                best[column],
                linestyle="",
                marker="*",
                markersize=13,
                color=ORANGE,
                markeredgecolor="black",
                markeredgewidth=0.6,
                label=f"best: {best[column]:.4g}{epoch}",
                zorder=5,
                clip_on=False,
            )
    axes.set_ylabel(label, fontsize=9)


def _by_group(axes: Axes, log: pd.DataFrame, columns: Mapping[str, str], label: str, *, smooth: bool) -> None:
    peaks, lowest = [], np.inf
    for number, (group, column) in enumerate(columns.items()):
        points = _points(log, column)
        _curve(axes, points, column, SYSTEM_COLOURS[number % len(SYSTEM_COLOURS)], group, smooth=smooth)
        positive = points.loc[points[column] > 0, column]
        peaks += [float(positive.max())] if len(positive) else []
        lowest = min(lowest, float(positive.min())) if len(positive) else lowest
    if peaks and max(peaks) > 30 * lowest:
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(0.7 * lowest, min(peaks) / 1000))
    else:
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    axes.set_ylabel(label, fontsize=9)


def _speed(axes: Axes, log: pd.DataFrame) -> None:
    suffix = "" if "throughput/utterances_per_s" in log else "_epoch"
    rate, wait = (f"throughput/{name}{suffix}" for name in ("utterances_per_s", "data_wait_percent"))
    right = axes.twinx()
    for side, column, colour, label in (
        (axes, rate, BLUE, "Utterances/s"),
        (right, wait, VERMILION, "Waiting for data (%)"),
    ):
        _curve(side, _points(log, column), column, colour, label)
        side.set_ylabel(label, fontsize=9, color=colour)
    right.set_ylim(0, 100)
    right.tick_params(labelsize=8)
    right.spines["top"].set_visible(False)
    axes.set_ylim(0, 1.15 * max(1e-9, float(_points(log, rate)[rate].max())))


def _points(log: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the rows that have a value in a column, with NaN in the place of what is not finite."""
    points = log[log[column].notna()]
    return points.assign(**{column: points[column].where(np.isfinite(points[column]))})


def _mark_gaps(axes: Axes, points: pd.DataFrame, column: str) -> None:
    """Put crosses on the floor of a panel where a value is not finite."""
    gaps = points.loc[points[column].isna(), "step"] + 1
    if len(gaps):
        floor = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 5}
        cross = {"linestyle": "", "marker": "x", "markersize": 4, "color": VERMILION}
        axes.plot(gaps, np.full(len(gaps), 0.02), label="not finite", **cross, **floor)
