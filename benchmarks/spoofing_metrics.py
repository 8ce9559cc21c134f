"""Anti-spoofing metrics: our time and numbers against the official code, on the same arrays, in one process.

    git clone https://github.com/clovaai/aasist                  (ASVspoof 2019: EER, legacy t-DCF)
    git clone https://github.com/asvspoof-challenge/2021         (ASVspoof 2021: revised t-DCF, 14 x 8 tables)
    python benchmarks/spoofing_metrics.py --official aasist --official2021 2021/eval-package

Scores are drawn at the size of 2019 LA eval (7,355 bona fide, 63,882 spoofed trials), the tables at the size of 2021
LA (148,176 trials). One core, the sides alternating, medians of CPU time, so that neighbours on the machine do not
count. Exit code 1 when the numbers differ.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from audiolab.metrics.spoofing import asv_error_rates, asv_table, attack_table, compute_eer, evaluate, t_eer

NUM_BONAFIDE, NUM_SPOOF = 7_355, 63_882
NUM_TABLE_TRIALS = 148_176
ATTACKS = [f"A{number:02d}" for number in range(7, 20)]
CODECS = ["none", "alaw", "pstn", "g722", "ulaw", "gsm", "opus"]
COSTS_2019 = {
    "Pspoof": 0.05,
    "Ptar": 0.9405,
    "Pnon": 0.0095,
    "Cmiss_asv": 1,
    "Cfa_asv": 10,
    "Cmiss_cm": 1,
    "Cfa_cm": 10,
}
WHERE = (
    "Give --official a checkout of clovaai/aasist and --official2021 the eval-package folder of a checkout of "
    "asvspoof-challenge/2021 (both on GitHub) to time the official code beside ours."
)


def load(folder: Path, name: str) -> ModuleType:
    """A module of a checkout, imported with its folder on the path as its authors run it."""
    if not (folder / f"{name}.py").is_file():
        sys.exit(f"{folder} holds no {name}.py. {WHERE}")
    sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def alternate(sides: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], dict[str, object]]:
    """Median milliseconds and last result of each side, the sides taking turns after one untimed turn each."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, object] = {}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            with contextlib.redirect_stdout(io.StringIO()):
                start = time.process_time()
                results[name] = side()
                elapsed_ms = 1e3 * (time.process_time() - start)
            if turn:
                times[name].append(elapsed_ms)
    return {name: statistics.median(values) for name, values in times.items()}, results


def draw_scores(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """CM scores of bona fide and spoofed trials with an EER near 5 %, and ASV scores (target, nontarget, spoof)."""
    asv_scores = tuple(generator.normal(mean, 1.0, size) for mean, size in ((4, 5_370), (0, 33_327), (3, 63_882)))
    return generator.normal(3.3, 1.0, NUM_BONAFIDE), generator.normal(0.0, 1.0, NUM_SPOOF), asv_scores


def draw_tables(generator: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """CM and ASV trial lists of the 2021 LA track, one row a trial, as the official package joins them."""
    genuine = generator.random(NUM_TABLE_TRIALS) < 0.1
    shared = {
        "attack": np.where(genuine, "bonafide", generator.choice(ATTACKS, genuine.size)).astype(object),
        "codec": generator.choice(CODECS, genuine.size).astype(object),
    }
    key = np.where(genuine, generator.choice(["target", "nontarget"], genuine.size), "spoof").astype(object)
    means = pd.Series({"target": 4.0, "nontarget": 0.0, "spoof": 3.0})[key].to_numpy()
    label = np.where(genuine, "bonafide", "spoof").astype(object)
    cm = pd.DataFrame(shared | {"label": label, "score": generator.normal(np.where(genuine, 3.3, 0.0))})
    return cm, pd.DataFrame(shared | {"label": key, "score": generator.normal(means)})


def time_single_sets(official: ModuleType, official2021: ModuleType | None, repeats: int) -> bool:
    """EER and t-DCFs on one score set; True where the numbers agree."""
    bonafide, spoof, asv_scores = draw_scores(np.random.default_rng(0))
    asv = asv_error_rates(*asv_scores)

    def legacy() -> float:
        curve, _ = official.compute_tDCF(bonafide, spoof, asv.p_fa, asv.p_miss, asv.p_miss_spoof, COSTS_2019, False)
        return curve[np.argmin(curve)]

    def revised() -> float:
        costs = official2021_costs | {"Cfa_spoof": 10, "Cmiss": 1, "Cfa": 10}
        curve, _ = official2021.compute_tDCF(bonafide, spoof, asv.p_fa, asv.p_miss, asv.p_fa_spoof, costs, False)
        return curve[np.argmin(curve)]

    official2021_costs = {key: COSTS_2019[key] for key in ("Pspoof", "Ptar", "Pnon")}
    agree = True
    times, results = alternate(
        {"official": lambda: official.compute_eer(bonafide, spoof), "ours": lambda: compute_eer(bonafide, spoof)},
        repeats,
    )
    agree &= report("EER", times, np.array(results["official"]), np.array(results["ours"]))

    times, results = alternate(
        {
            "official": lambda: (official.compute_eer(bonafide, spoof)[0], legacy()),
            "ours": lambda: evaluate(bonafide, spoof, asv),
        },
        repeats,
    )
    ours = results["ours"]
    agree &= report("EER, t-DCF 2019 (ours: all metrics)", times, results["official"], (ours.eer, ours.min_tdcf_2019))
    if official2021 is not None:
        times, results = alternate(
            {
                "official": lambda: (official.compute_eer(bonafide, spoof)[0], legacy(), revised()),
                "ours": lambda: evaluate(bonafide, spoof, asv),
            },
            repeats,
        )
        ours = (results["ours"].eer, results["ours"].min_tdcf_2019, results["ours"].min_tdcf_2021)
        agree &= report("EER, both t-DCF (ours: all metrics)", times, results["official"], ours)
    times, _ = alternate({"ours": lambda: t_eer(bonafide, spoof, *asv_scores)}, repeats)
    print(f"{'t-EER with 102,579 ASV trials':38s} {'-':>11s} {times['ours']:9.2f}")
    return agree


def time_tables(package: ModuleType, repeats: int) -> bool:
    """The attack x codec tables of 2021 LA with the ASV rates of each cell; True where the numbers agree."""
    cm, asv = draw_tables(np.random.default_rng(1))
    rows = ("attack", [*ATTACKS, "Pooled"], "spoof")
    columns = ("codec", [*CODECS, "Pooled"], "both")

    def official() -> tuple[np.ndarray, np.ndarray]:
        weights = package.compute_tDCF_C012(asv, *rows, *columns)
        return package.compute_decomposed_mintdcf_eer(cm, *rows, *columns, C012_buf=weights)

    def ours() -> tuple[np.ndarray, np.ndarray]:
        rates = asv_table(asv["score"], asv["label"], asv["attack"], asv["codec"])
        table = attack_table(
            cm["score"], cm["label"] == "bonafide", cm["attack"], cm["codec"], rates, "2021", conditions=CODECS
        )
        return table.min_tdcf, table.eer

    times, results = alternate({"official": official, "ours": ours}, repeats)
    return report("14 x 8 tables of EER and t-DCF", times, np.array(results["official"]), np.array(results["ours"]))


def report(name: str, times_ms: dict[str, float], official: object, ours: object) -> bool:
    """Print one line of the table; True where the two results are equal to 1e-12."""
    equal = bool(np.allclose(official, ours, rtol=0, atol=1e-12))
    ratio = times_ms["official"] / times_ms["ours"]
    verdict = "equal" if equal else "DIFFERENT"
    print(f"{name:38s} {times_ms['official']:11.2f} {times_ms['ours']:9.2f} {ratio:7.1f}  {verdict}")
    return equal


def main() -> int:
    """Run the benchmark; 0 when all numbers agree with the official code."""
    parser = argparse.ArgumentParser(description="Anti-spoofing metrics: ours against the official code.", epilog=WHERE)
    parser.add_argument("--official", type=Path, help="folder of a checkout of clovaai/aasist")
    parser.add_argument("--official2021", type=Path, help="eval-package folder of asvspoof-challenge/2021")
    parser.add_argument("--repeats", type=int, default=9, help="timed turns of each side (default 9)")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if options.official is None:
        bonafide, spoof, asv_scores = draw_scores(np.random.default_rng(0))
        asv = asv_error_rates(*asv_scores)
        times, _ = alternate({"ours": lambda: evaluate(bonafide, spoof, asv)}, options.repeats)
        print(f"All metrics on {NUM_BONAFIDE + NUM_SPOOF:,} trials: {times['ours']:.2f} ms. {WHERE}")
        return 0
    official = load(options.official, "evaluation")
    metrics2021 = load(options.official2021, "eval_metrics") if options.official2021 else None
    print(f"{NUM_BONAFIDE:,} + {NUM_SPOOF:,} trials, one core, CPU time, median of {options.repeats}")
    print(f"{'':38s} {'official ms':>11s} {'ours ms':>9s} {'ratio':>7s}")
    agree = time_single_sets(official, metrics2021, options.repeats)
    if options.official2021:
        agree &= time_tables(load(options.official2021, "main"), options.repeats)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
