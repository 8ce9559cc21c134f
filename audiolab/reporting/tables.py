"""Result tables for the terminal, with rich."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_GAP, _MARGIN = 3, 2  # characters between the columns of a breakdown, and at both its ends together


def console() -> Console:
    """Return the terminal to print tables on; a file or a pipe gets lines wide enough for them."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=max(terminal.width, 140))


def headline_lines(metrics: Mapping[str, float], headline: Mapping[str, str]) -> list[str]:
    """Return the metrics people quote, one a line; `x_calibrated` stands for `x` where there is one.

    >>> headline_lines({"eer": 12.341, "n": 3}, {"eer": "EER {:.2f} %"})
    ['EER 12.34 %']
    """
    return [form.format(metrics[name]) for name, form in headline.items() if quoted(metrics, name)]


def quoted(metrics: Mapping[str, float], name: str) -> bool:
    """Whether a metric is there to be quoted: a raw one is not where its calibrated twin is.

    >>> [quoted({"cllr": 3.1, "cllr_calibrated": 0.2}, name) for name in ("cllr", "cllr_calibrated", "eer")]
    [False, True, False]
    """
    return name in metrics and f"{name}_calibrated" not in metrics


def breakdowns(metrics: Mapping[str, float]) -> dict[str, pd.DataFrame]:
    """Turn keys `group/member/metric` into one table a group, a row a member.

    >>> breakdowns({"eer": 2.0, "attack/A07/eer": 1.0, "attack/A08/eer": 3.0})["attack"]["eer"].tolist()
    [1.0, 3.0]
    """
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in metrics.items():
        if key.count("/") == 2:
            group, member, metric = key.split("/")
            cells.setdefault(group, {}).setdefault(member, {})[metric] = value
    tables = {}
    for group, rows in cells.items():
        columns = dict.fromkeys([*max(rows.values(), key=len), *(name for row in rows.values() for name in row)])
        tables[group] = pd.DataFrame.from_dict(rows, orient="index", columns=None).reindex(columns=list(columns))
    return tables


def results_table(results: Mapping[str, Mapping[str, float]], headline: Mapping[str, str], title: str) -> Table:
    """Return one column a set, one line a headline metric; an interval stands in brackets beside its value."""
    table = _titled(title)
    table.add_column("")
    for set_name in results:
        table.add_column(set_name, justify="right")
    for name, form in headline.items():
        if any(name in metrics for metrics in results.values()):
            table.add_row(_label(form), *(_value(metrics, name, _form(form)) for metrics in results.values()))
    return table


def systems_table(results: Mapping[str, Mapping[str, float]], headline: Mapping[str, str], title: str) -> Table:
    """Return one line a system, one column a headline metric; an interval stands in brackets beside its value."""
    names = [name for name in headline if any(quoted(metrics, name) for metrics in results.values())]
    table = _titled(title)
    table.add_column("system", overflow="fold")
    for name in names:
        table.add_column(_label(headline[name]), justify="right")
    for system, metrics in results.items():
        cells = (_value(metrics, name, _form(headline[name])) if quoted(metrics, name) else "" for name in names)
        table.add_row(system, *cells)
    return table


def breakdown_tables(
    set_name: str, metrics: Mapping[str, float], headline: Mapping[str, str], width: int | None = None
) -> list[Table]:
    """Return the breakdowns of a set (by attack, codec, speaker ...); one wider than `width` characters as several.

    Numbers are never broken over lines: headings are, and columns that do not fit go to a further table.
    """
    tables = []
    for group, frame in breakdowns(metrics).items():
        metric, crossed, factors = group.partition("_by_")
        shown = metric if crossed else ""
        rows = factors.partition("_and_")[0] if crossed else group
        what = f"{_label(headline.get(shown, shown))} by {factors.replace('_', ' ')}" if crossed else f"by {group}"
        columns = {}
        for name in frame.columns:
            if name.endswith(("_low", "_high")):
                continue
            form = headline.get(shown if crossed else name)
            label = name if crossed else _label(form) if form else name.replace("_", " ")
            cells = [_value(row, name, _form(form) if form else "{:.4g}") for _, row in frame.iterrows()]
            columns[label] = (_narrow(label, cells), cells)
        members = [str(name) for name in frame.index]
        for part in _fitting(columns, max(map(len, [rows, *members])), width):
            table = _titled(f"{set_name} {what}", box=box.SIMPLE_HEAD, pad_edge=False)
            table.add_column(rows, no_wrap=True)
            for label in part:
                table.add_column(columns[label][0], justify="right", no_wrap=True)
            for number, member in enumerate(members):
                table.add_row(member, *(columns[label][1][number] for label in part))
            tables.append(table)
    return tables


def _narrow(label: str, cells: Sequence[str]) -> str:
    """Break a heading at spaces so that it is no wider than the cells below it, where its words allow."""
    needed = max(map(len, [*cells, *label.split()]))
    return "\n".join(textwrap.wrap(label, needed, break_long_words=False))


def _fitting(columns: Mapping[str, tuple[str, Sequence[str]]], first: int, width: int | None) -> list[list[str]]:
    """Divide columns into tables of at most `width` characters, each with the first column."""
    parts: list[list[str]] = [[]]
    used = first + _MARGIN
    for label, (heading, cells) in columns.items():
        wide = max(map(len, [*cells, *heading.splitlines()])) + _GAP
        if width is not None and parts[-1] and used + wide > width:
            parts.append([])
            used = first + _MARGIN
        parts[-1].append(label)
        used += wide
    return parts


def sweep_table(
    jobs: Sequence[Mapping[str, Any]], swept: Sequence[str], headline: Mapping[str, str], title: str
) -> Table:
    """Return one line a job: its swept options, its state and its headline metrics; below, mean ± SD over the repeats.

    A job is `{"options": {...}, "state": "finished" | ..., "metrics": {set: {metric: value}}}`.
    """
    columns = [
        (set_name, metric)
        for metric in headline
        for set_name in _sets(jobs)
        if any(quoted(job["metrics"].get(set_name, {}), metric) for job in jobs)
    ]
    table = _titled(title)
    for key in swept:
        table.add_column(key)
    table.add_column("state")
    for set_name, metric in columns:
        table.add_column(f"{set_name} {headline[metric].partition('{')[0].strip()}", justify="right")
    for job in jobs:
        cells = [_mean([job], set_name, metric, _form(headline[metric])) for set_name, metric in columns]
        table.add_row(*(str(job["options"].get(key, "")) for key in swept), job["state"], *cells)
    table.add_section()
    for members in repeats(jobs):
        if len(members) > 1:
            cells = [_mean(members, set_name, metric, _form(headline[metric])) for set_name, metric in columns]
            options = ["mean ± SD" if is_repeat(key) else str(members[0]["options"][key]) for key in swept]
            table.add_row(*options, f"{len(members)} jobs", *cells)
    return table


def sweep_breakdowns(
    jobs: Sequence[Mapping[str, Any]], swept: Sequence[str], headline: Mapping[str, str], title: str
) -> list[Table]:
    """Return, for every set and group (attack, codec, speaker ...), the first headline metric of each member.

    One column for each combination of the swept options, mean ± SD over the repeats.
    """
    metric, form = next(iter(headline.items()))
    combinations = repeats(jobs)
    tables = []
    for set_name in _sets(jobs):
        keys = dict.fromkeys(key for job in jobs for key in job["metrics"].get(set_name, {}))
        groups = dict.fromkeys(key.split("/")[0] for key in keys if key.count("/") == 2 and key.endswith(f"/{metric}"))
        for group in groups:
            table = _titled(f"{title}: {set_name} by {group}, {_label(form)}")
            table.add_column(group)
            for members in combinations:
                options = [
                    f"{key.rpartition('.')[2]}={members[0]['options'][key]}" for key in swept if not is_repeat(key)
                ]
                table.add_column("\n".join(options) or "mean ± SD", justify="right")
            for key in keys:
                if key.startswith(f"{group}/") and key.endswith(f"/{metric}"):
                    cells = (_mean(members, set_name, key, _form(form)) for members in combinations)
                    table.add_row(key.split("/")[1], *cells)
            tables.append(table)
    return tables


def sweep_rows(jobs: Sequence[Mapping[str, Any]], chosen: Collection[str] | None = None) -> pd.DataFrame:
    """Return one row a job with its options, its state and its metrics, all or those `chosen`, as `set/metric`.

    >>> jobs = [{"options": {"seed": 0}, "state": "finished", "metrics": {"test": {"snr": 9.5, "hum/50/snr": 3.0}}}]
    >>> sweep_rows(jobs, ["snr"]).columns.tolist(), sweep_rows(jobs)["test/hum/50/snr"].tolist()
    (['seed', 'state', 'test/snr'], [3.0])
    """
    rows = []
    for job in jobs:
        row = {**job["options"], "state": job["state"]}
        for name, metrics in job["metrics"].items():
            row |= {f"{name}/{key}": value for key, value in metrics.items() if chosen is None or key in chosen}
        rows.append(row)
    return pd.DataFrame(rows)


def is_repeat(option: str) -> bool:
    """Whether an option only repeats an experiment: the seed, and the fold of a cross-validation.

    >>> is_repeat("data.fold"), is_repeat("seed"), is_repeat("augment")
    (True, True, False)
    """
    return option.rpartition(".")[2] in ("seed", "fold")


def repeats(jobs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Group the finished jobs that repeat one another, in their order."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for job in jobs:
        if job["state"] == "finished":
            rest = tuple(value for key, value in job["options"].items() if not is_repeat(key))
            groups.setdefault(rest, []).append(job)
    return list(groups.values())


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (n - 1).

    >>> mean_and_sd([1.0, 2.0, 3.0])
    (2.0, 1.0)
    """
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def _form(form: str) -> str:
    """Return the number's format inside a headline format."""
    return "{" + form.partition("{")[2].partition("}")[0] + "}"


def _label(form: str) -> str:
    """Return name and unit of a headline format."""
    name, _, rest = form.partition("{")
    unit = rest.partition("}")[2].strip()
    return name.strip() + (f" ({unit})" if unit else "")


def _value(metrics: Mapping[str, float], name: str, form: str) -> str:
    interval = [_cell(metrics.get(f"{name}_{end}"), form) for end in ("low", "high")]
    return _cell(metrics.get(name), form) + (f" [{interval[0]}, {interval[1]}]" if all(interval) else "")


def _cell(value: float | None, form: str = "{:.4g}") -> str:
    return "" if value is None or math.isnan(value) else form.format(value)


def _titled(title: str, **options: Any) -> Table:
    """Return an empty table whose title stays on one line however narrow the table is."""
    return Table(title=Text(title, no_wrap=True, overflow="ignore"), title_justify="left", **options)


def _sets(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for job in jobs for name in job["metrics"]))


def _mean(jobs: Sequence[Mapping[str, Any]], set_name: str, metric: str, form: str) -> str:
    """Return mean ± SD of a metric over the jobs that have it; the value alone for one job."""
    values = [job["metrics"][set_name][metric] for job in jobs if metric in job["metrics"].get(set_name, {})]
    if not values:
        return ""
    mean, sd = mean_and_sd(values)
    return _cell(mean, form) + (f" ± {_cell(sd, form)}" if len(values) > 1 else "")
