"""One picture of mixtures that were just made: levels, lengths, and how much every speaker is in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from audiolab.reporting.plots import DPI, GRID, SYSTEM_COLOURS
from audiolab.tasks.separation.librimix_writer import Mode, PlannedMixture

_NUM_BINS = 40


def speakers_in(mixtures: Iterable[PlannedMixture]) -> Counter[str]:
    """Return in how many of the mixtures each speaker is, only those who are in one."""
    return Counter(one.speaker for mixture in mixtures for one in mixture.utterances)


def draw_prepared(
    mixtures: Mapping[str, Sequence[PlannedMixture]],
    facts: Mapping[str, Sequence[dict[str, Any]]],
    num_speakers: Mapping[str, int],
    sample_rate_hz: int,
    mode: Mode,
    title: str,
) -> Figure:
    """Draw histograms of the SNRs of source 1 and of the lengths, and bars of the speakers, by set.

    `num_speakers` were chosen for each set; where mixtures are few, not all of them are in one.
    """
    figure = Figure(figsize=(7.0, 7.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    levels, lengths, talkers = figure.subplots(3, 1)
    colours = dict(zip(mixtures, SYSTEM_COLOURS, strict=False))
    for axes, label, values in (
        (levels, "SNR of source 1 (dB)", {name: [one["snrs_db"][0] for one in found] for name, found in facts.items()}),
        (
            lengths,
            "Length of a mixture (s)",
            {name: [one.num_samples(mode) / sample_rate_hz for one in found] for name, found in mixtures.items()},
        ),
    ):
        axes.hist(list(values.values()), bins=_NUM_BINS, stacked=True, color=list(colours.values()))
        axes.set(xlabel=label, ylabel="Mixtures")
    left = 0
    for name, found in mixtures.items():
        counts = [number for _, number in speakers_in(found).most_common()]
        of = "" if len(counts) == num_speakers[name] else f"{len(counts)} of "
        label = f"{name}: {len(found):,} mixtures, {of}{num_speakers[name]} speakers"
        talkers.bar(range(left, left + len(counts)), counts, color=colours[name], label=label)
        left += len(counts)
    talkers.set(xlabel="Speakers", ylabel="Mixtures with them", xticks=[])
    figure.legend(
        loc="outside lower center", ncols=1, frameon=False, fontsize=9
    )  # in a row they may be wider than the page
    for axes in (levels, lengths, talkers):
        axes.set_axisbelow(True)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", **GRID)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def write_picture(figure: Figure, path: Path) -> None:
    """Write a PNG so that it appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp.png")
    figure.savefig(temporary, dpi=DPI, metadata={"Software": None})
    temporary.replace(path)
