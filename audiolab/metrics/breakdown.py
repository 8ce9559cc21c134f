"""Metrics by attack and by condition (codec, compression, ...): the tables of ASVspoof 2019, 2021 and 5."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from audiolab.errors import InputError
from audiolab.metrics.costs import ASVSPOOF_COSTS, SpoofingCosts
from audiolab.metrics.dcf import bits, log_loss, sorted_act_dcf
from audiolab.metrics.det import FloatArray, IntArray, as_labels, as_scores, has_soft_scores
from audiolab.metrics.eer import SortedTrials
from audiolab.metrics.tandem import AsvErrorRates, TdcfVersion, rates_at, tdcf_weights

POOLED = "Pooled"
ASV_KEYS = ("target", "nontarget", "spoof")


@dataclass(frozen=True)
class Breakdown:
    """Tables of (attacks, conditions), the last row and column pooled; NaN where a cell has no trials of a class.

    A cell holds one attack's spoofs of a condition against all bona fide trials of that condition.
    """

    attacks: tuple[str, ...]
    conditions: tuple[str, ...]
    num_bonafide: IntArray
    num_spoof: IntArray
    eer: FloatArray
    min_dcf: FloatArray
    act_dcf: FloatArray
    cllr: FloatArray
    min_tdcf: FloatArray

    def by_attack(self, metric: str) -> dict[str, float]:
        """One metric's pooled-condition column, as attack -> value, "Pooled" last."""
        return dict(zip(self.attacks, getattr(self, metric)[:, -1].tolist(), strict=True))


def attack_table(
    scores: ArrayLike,
    is_bonafide: ArrayLike,
    attack: ArrayLike,
    condition: ArrayLike | None = None,
    asv: Mapping[tuple[str, str], AsvErrorRates] | None = None,
    version: TdcfVersion = "2019",
    conditions: Sequence[str] | None = None,
    costs: SpoofingCosts = ASVSPOOF_COSTS,
) -> Breakdown:
    """All metrics for each attack in each condition and pooled, from one sort of the trials.

    `scores`, `is_bonafide`, `attack`, `condition` have one entry a trial; the attack of bona fide trials is ignored.
    Without `condition` there is the pooled column only. `conditions` sets the order of the columns, else sorted.
    `asv` holds the ASV error rates of (attack, condition) cells, "Pooled" included, as `asv_table` makes them; the
    t-DCF of a cell is NaN without them, with fewer than 3 distinct scores, or where its normaliser is not positive
    (2019 form against an ASV system that rejects every spoof; the 2021 form is 1 there, as in the official tables).

    Raises InputError for scores as `compute_det` does, for columns of different lengths, for a condition that
    `conditions` does not list, and for ASV rates that fit no cell.

    >>> table = attack_table([2.0, 3.0, 0.0, 1.0, 2.5], [1, 1, 0, 0, 0], ["-", "-", "A07", "A07", "A08"])
    >>> table.by_attack("eer")
    {'A07': 0.0, 'A08': 0.75, 'Pooled': 0.41666666666666663}
    """
    values = as_scores(scores, "trial")
    genuine = as_labels(is_bonafide, values.size)
    SortedTrials.of(values[genuine], values[~genuine])  # refuses empty classes and decisions
    row, attacks = _factor(attack, "attack", ~genuine)
    column, columns = _factor(condition, "condition", np.ones_like(genuine), conditions)
    cells = {(name, place) for name in (*attacks, POOLED) for place in (*columns, POOLED)}
    if asv is not None and cells.isdisjoint(asv):
        raise InputError(
            "The ASV error rates are of none of the table's cells: give them by (attack, condition), for example "
            f"{(*attacks, POOLED)[0], (*columns, POOLED)[0]}, as asv_table does."
        )
    order = np.argsort(values)
    values, genuine, row, column = values[order], genuine[order], row[order], column[order]
    loss = log_loss(np.where(genuine, -values, values))

    shape = (len(attacks) + 1, len(columns) + 1)
    tables = {name: np.full(shape, math.nan) for name in ("eer", "min_dcf", "act_dcf", "cllr", "min_tdcf")}
    num_bonafide, num_spoof = np.zeros(shape[1], dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for j, (place, here) in enumerate(_members(columns, column, np.arange(values.size))):
        bonafide_at = here[genuine[here]]
        num_bonafide[j] = bonafide_at.size
        for i, (name, spoof_at) in enumerate(_members(attacks, row, here[~genuine[here]])):
            num_spoof[i, j] = spoof_at.size
            if bonafide_at.size and spoof_at.size:
                trials = SortedTrials(values[bonafide_at], values[spoof_at])
                cell = _cell(trials, asv.get((name, place)) if asv else None, version, costs)
                cell["cllr"] = bits(loss[bonafide_at].mean(), loss[spoof_at].mean())
                for metric, value in cell.items():
                    tables[metric][i, j] = value
    return Breakdown((*attacks, POOLED), (*columns, POOLED), num_bonafide, num_spoof, **tables)


def _cell(
    trials: SortedTrials, asv: AsvErrorRates | None, version: TdcfVersion, costs: SpoofingCosts
) -> dict[str, float]:
    cell = {
        "eer": trials.eer()[0],
        "min_dcf": trials.lowest_cost(*costs.dcf_weights)[0],
        "act_dcf": sorted_act_dcf(trials, costs),
    }
    if asv is not None and has_soft_scores(trials.bonafide, trials.spoof):
        weights = tdcf_weights(asv, version, costs)
        if min(weights.c1, weights.c2) >= 0 and weights.c0 + min(weights.c1, weights.c2) > 0:
            cell["min_tdcf"] = trials.lowest_cost(weights.c1, weights.c2, weights.c0)[0]
    return cell


def asv_table(
    scores: ArrayLike, key: ArrayLike, attack: ArrayLike, condition: ArrayLike | None = None
) -> dict[tuple[str, str], AsvErrorRates]:
    """ASV error rates of each attack in each condition and pooled, at the EER threshold of the condition.

    `key` is "target", "nontarget" or "spoof" for each trial; the attack of other trials is ignored. Cells without
    trials of all three kinds are left out. Raises InputError for non-finite scores, an unknown key, or columns of
    different lengths.

    >>> key = ["target", "target", "nontarget", "nontarget", "spoof", "spoof"]
    >>> rates = asv_table([3, 4, 0, 1, 2, 5], key, ["-", "-", "-", "-", "A07", "A08"])
    >>> {cell: asv.p_fa_spoof for cell, asv in rates.items()}
    {('A07', 'Pooled'): 1.0, ('A08', 'Pooled'): 1.0, ('Pooled', 'Pooled'): 1.0}
    """
    values = as_scores(scores, "ASV")
    everywhere = np.ones(values.size, dtype=bool)
    kind, _ = _factor(key, "ASV key", everywhere, ASV_KEYS)
    row, attacks = _factor(attack, "attack", kind == ASV_KEYS.index("spoof"))
    column, columns = _factor(condition, "condition", everywhere)
    order = np.argsort(values)
    values, kind, row, column = values[order], kind[order], row[order], column[order]
    rates = {}
    for place, here in _members(columns, column, np.arange(values.size)):
        target, nontarget, spoof = (here[kind[here] == code] for code in range(len(ASV_KEYS)))
        if target.size and nontarget.size:
            _, threshold = SortedTrials(values[target], values[nontarget]).eer()
            for name, spoof_at in _members(attacks, row, spoof):
                if spoof_at.size:
                    rates[name, place] = rates_at(threshold, values[target], values[nontarget], values[spoof_at])
    return rates


def _factor(
    labels: ArrayLike | None, name: str, where: np.ndarray, order: Sequence[str] | None = None
) -> tuple[IntArray, list[str]]:
    """Labels as indices into a list of names (sorted, or in the given order), -1 where `where` is False."""
    codes = np.full(where.size, -1, dtype=np.int64)
    if labels is None:
        return codes, []
    column = np.asarray(labels, dtype=object)
    if column.shape != where.shape:
        raise InputError(f"There are {where.size} scores and {name} labels of shape {column.shape}: pass one a trial.")
    if order is None:
        codes[where], names = pd.factorize(column[where], sort=True)
    else:
        codes[where], names = pd.Index(order).get_indexer(column[where]), order
    unnamed = where & (codes < 0)
    if unnamed.any():
        first = int(np.argmax(unnamed))
        fault = "is empty" if order is None else f"is none of {', '.join(order)}"
        raise InputError(f'The {name} of trial {first}, "{column[first]}", {fault}: check the trial list.')
    if POOLED in names:
        raise InputError(f'The name "{POOLED}" stands for all trials together: rename the {name} of that name.')
    return codes, list(names)


def _members(names: Sequence[str], codes: IntArray, among: IntArray) -> Iterator[tuple[str, IntArray]]:
    """Each name with the trials of `among` that have it, in their order, then all of them as pooled."""
    if names:
        small = codes[among].astype(np.min_scalar_type(len(names)))  # small integers are sorted by radix
        grouped = among[np.argsort(small, kind="stable")]
        ends = np.cumsum(np.bincount(small, minlength=len(names)))
        yield from zip(names, np.split(grouped, ends[:-1]), strict=True)
    yield POOLED, among
