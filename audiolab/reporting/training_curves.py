"""How a training went, as a picture: loss, development metrics, learning rates, gradients, speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from audiolab.reporting.plots import BLUE, DPI, GRID, ORANGE, SKY, SYSTEM_COLOURS, VERMILION

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
        panels.append(lambda axes: _by_group(axes, log, rates, "Learning rate"))
    norms = {name.split("/")[1]: name for name in log if name.startswith("health/") and name.endswith("/grad_norm")}
    if norms:
        panels.append(lambda axes: _by_group(axes, log, norms, "Gradient norm"))
    if {"throughput/utterances_per_s", "throughput/utterances_per_s_epoch"} & set(log):
        panels.append(lambda axes: _speed(axes, log))

    num_columns = min(2, max(1, len(panels)))
    num_rows = max(1, -(-len(panels) // num_columns))
    figure = Figure(figsize=(4.6 * num_columns, 0.5 + 2.45 * num_rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=11)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    last = max(float(log["step"].max()), 0.0) if len(log) else 0.0
    for number, (axes, draw) in enumerate(zip(grid.flat, panels, strict=False)):
        _prepare(axes, last)
        draw(axes)
        if number + num_columns >= len(panels):
            axes.set_xlabel("Optimiser step")
        if number < num_columns:
            _epoch_axis(axes, log)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False, loc="best")
    for axes in figure.axes[::-1]:
        if not axes.axison:
            axes.remove()
    return figure


def moving_mean(values: pd.Series, width: int) -> pd.Series:
    """Return the mean over the `width` values around each, over fewer at the ends; NaN counts for nothing.

    >>> moving_mean(pd.Series([1.0, 2.0, np.nan, 4.0, 6.0]), 3).tolist()
    [1.5, 1.5, 3.0, 5.0, 5.0]
    """
    return values.rolling(width, center=True, min_periods=1).mean()


def _of_training(log: pd.DataFrame) -> pd.DataFrame:
    """Leave out the rows after the last one of training, and what is not finite."""
    trained = [name for name in log if name.startswith(("train/", "lr/"))]
    rows = log[trained].notna().any(axis="columns") if trained else pd.Series(data=True, index=log.index)
    last = log.loc[rows, "step"].max()
    return log[log["step"] <= last].replace([np.inf, -np.inf], np.nan)


def _prepare(axes: Axes, last: float) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(**GRID)
    axes.set_axisbelow(True)
    axes.set_xlim(0, 1.02 * max(last + 1, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _epoch_axis(axes: Axes, log: pd.DataFrame) -> None:
    """Number the epochs above a panel, where they end."""
    if "train/loss_epoch" not in log:
        return
    ends = log.loc[log["train/loss_epoch"].notna(), ["step", "epoch"]] if "epoch" in log else log.iloc[:0]
    if len(ends) < 2:
        return
    above = axes.secondary_xaxis("top")
    every = max(1, -(-len(ends) // 6))
    shown = ends[(ends["epoch"] + 1) % _round(every) == 0]
    above.xaxis.set_major_locator(FixedLocator((shown["step"] + 1).to_list()))
    above.set_xticklabels([f"{epoch + 1:.0f}" for epoch in shown["epoch"]])
    above.set_xlabel("Epoch", fontsize=8, labelpad=2)
    above.tick_params(labelsize=8, length=2)
    above.spines["top"].set_visible(False)


def _round(number: int) -> int:
    """Return the next of 1, 2, 5, 10, 20, 50 ..."""
    scale = 10 ** int(np.log10(number))
    return next(scale * digit for digit in (1, 2, 5, 10) if scale * digit >= number)


def _loss(axes: Axes, log: pd.DataFrame) -> None:
    if "train/loss_step" in log:
        steps = _points(log, "train/loss_step")
        width = max(1, round(SMOOTHED_SHARE * len(steps))) | 1
        thin = steps.iloc[:: max(1, len(steps) // MAX_POINTS)]
        faint = width > 1
        axes.plot(
            thin["step"] + 1,
            thin["train/loss_step"],
            color=SKY if faint else BLUE,
            linewidth=0.6 if faint else 1.0,
            alpha=0.7,
            label="steps",
            marker="." if len(steps) <= MARKED_POINTS else "",
        )
        if faint:
            smooth = moving_mean(steps["train/loss_step"], width).iloc[:: max(1, len(steps) // MAX_POINTS)]
            axes.plot(thin["step"] + 1, smooth, color=BLUE, linewidth=1.4, label=f"mean of {width}")
    if "train/loss_epoch" in log:
        epochs = _points(log, "train/loss_epoch")
        marker = "o" if len(epochs) <= MARKED_POINTS else ""
        axes.plot(
            epochs["step"] + 1,
            epochs["train/loss_epoch"],
            color=VERMILION,
            linewidth=1.2,
            marker=marker,
            markersize=3.5,
            label="epoch mean",
        )
    axes.set_ylabel("Loss", fontsize=9)


def _metrics_by_unit(log: pd.DataFrame, headline: Mapping[str, str], monitor: str) -> list[tuple[str, dict[str, str]]]:
    """Return, for each panel, its axis label and its columns with their names: that of the monitored metric first.

    Metrics with the same unit share a panel; the metric of the monitor has its own.
    """
    monitored = monitor.split("/", 1)[-1]
    panels: dict[str, dict[str, str]] = {}
    for metric in sorted(headline, key=lambda name: name != monitored):
        before, _, after = headline[metric].partition("{")
        unit = after.partition("}")[2].strip()
        columns = [name for name in log if name.count("/") == 1 and name.endswith(f"/{metric}")]
        columns = [name for name in columns if not name.startswith("train/") and log[name].notna().any()]
        for column in columns:
            set_name = column.split("/")[0]
            own = metric == monitored
            panel = f"{before.strip()} ({unit})" if own and unit else before.strip() if own else _panel_of(unit)
            panels.setdefault(panel, {})[column] = f"{set_name} {before.strip()}"
    return list(panels.items())


def _panel_of(unit: str) -> str:
    return f"Other metrics ({unit})" if unit else "Other metrics"


def _metrics(
    axes: Axes, log: pd.DataFrame, label: str, columns: Mapping[str, str], monitor: str, mode: Literal["min", "max"]
) -> None:
    for number, (column, name) in enumerate(columns.items()):
        points = _points(log, column)
        axes.plot(
            points["step"] + 1,
            points[column],
            color=SYSTEM_COLOURS[number % len(SYSTEM_COLOURS)],
            linewidth=1.3,
            marker="o" if len(points) <= MARKED_POINTS else "",
            markersize=3.5,
            label=name,
        )
        if column == monitor:
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
            )
    axes.set_ylabel(label, fontsize=9)


def _by_group(axes: Axes, log: pd.DataFrame, columns: Mapping[str, str], label: str) -> None:
    lowest, highest = np.inf, 0.0
    for number, (group, column) in enumerate(columns.items()):
        points = _points(log, column)
        positive = points.loc[points[column] > 0, column]
        lowest, highest = min(lowest, positive.min()), max(highest, positive.max())
        thin = points.iloc[:: max(1, len(points) // MAX_POINTS)]
        axes.plot(
            thin["step"] + 1,
            thin[column],
            color=SYSTEM_COLOURS[number % len(SYSTEM_COLOURS)],
            linewidth=1.2 if len(thin) < 500 else 0.7,
            marker="." if len(points) <= MARKED_POINTS else "",
            label=group,
        )
    if highest > 30 * lowest:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    axes.set_ylabel(label, fontsize=9)


def _speed(axes: Axes, log: pd.DataFrame) -> None:
    suffix = "" if "throughput/utterances_per_s" in log else "_epoch"
    rate, wait = (f"throughput/{name}{suffix}" for name in ("utterances_per_s", "data_wait_percent"))
    points = _points(log, rate)
    marker = "." if len(points) <= MARKED_POINTS else ""
    thin = points.iloc[:: max(1, len(points) // MAX_POINTS)]
    axes.plot(thin["step"] + 1, thin[rate], color=BLUE, linewidth=1.2, marker=marker, label="utterances/s")
    axes.set_ylim(0, 1.15 * float(points[rate].max() or 1))
    axes.set_ylabel("Utterances/s", fontsize=9, color=BLUE)
    if wait in log:
        right = axes.twinx()
        right.plot(thin["step"] + 1, thin[wait], color=VERMILION, linewidth=1.0, marker=marker)
        right.set_ylim(0, 100)
        right.set_ylabel("Waiting for data (%)", fontsize=9, color=VERMILION)
        right.tick_params(labelsize=8)
        right.spines["top"].set_visible(False)
        axes.plot([], [], color=VERMILION, linewidth=1.0, label="waiting for data")


def _points(log: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the rows that have a value in a column, with one row without any in the place of each gap of NaN."""
    return log[log[column].notna()]
