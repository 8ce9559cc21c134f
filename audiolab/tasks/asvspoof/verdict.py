"""What a score means: the class it speaks for, by the run's calibration or its development threshold, in words."""

from __future__ import annotations

import argparse
import logging
import math
from typing import Any

import pandas as pd
from scipy.special import expit

from audiolab.errors import InputError
from audiolab.reporting.curve import score_curve
from audiolab.tasks.asvspoof.inference import Judged
from audiolab.tasks.asvspoof.protocols import BONAFIDE, SPOOF
from audiolab.tasks.asvspoof.trials import SAMPLE_RATE_HZ
from audiolab.training.task import Known, Prediction

log = logging.getLogger(__name__)

DEFAULT_PRIOR = 0.5  # of bona fide speech
WORDS = {BONAFIDE: "bona fide", SPOOF: "spoof"}
COLUMNS: dict[str, type] = {
    "verdict": str,
    "score": float,
    "probability_bonafide": float,
    "threshold": float,
    "duration_s": float,
    "sample_rate": int,
    "judged_s": float,
    "num_windows": int,
    "num_silent": int,
    "num_spoof": int,
    "lowest_score": float,
    "lowest_start_s": float,
    "lowest_end_s": float,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this task to those of the verb `predict`."""
    parser.add_argument(
        "--window-s",
        type=float,
        help="length of a window (default: the run's evaluation length; whole utterances "
        "where it has none, 4.04 s for recordings of more than 16 s)",
    )
    parser.add_argument("--hop-s", type=float, help="from the start of a window to the next (default: half a window)")
    parser.add_argument("--prior", type=float, help="probability of bona fide speech before hearing it (default 0.5)")
    parser.add_argument("--curves", action="store_true", help="write the score over time as curves/<name>.csv and .png")


def decide(score: float, known: Known, prior: float) -> dict[str, Any]:
    """Return `verdict`, `threshold` and, where the run is calibrated, `probability_bonafide`.

    Calibrated: the posterior at the stated prior, the verdict at 0.5 (equal costs), the threshold the score where it
    turns. Else the threshold of the development set's EER, and no probability.
    """
    probability = None
    if _is_calibrated(known):
        scale = known.calibration["scale"]
        offset = known.calibration["offset"] + math.log(prior / (1 - prior))
        threshold = -offset / scale
        probability = float(expit(scale * score + offset))
    else:
        threshold = known.dev.get("eer_threshold")
    verdict = None if threshold is None else BONAFIDE if score > threshold else SPOOF
    return {"verdict": verdict, "threshold": threshold, "probability_bonafide": probability}


def legend(known: Known, prior: float | None) -> str:
    """Say what the numbers mean: which class scores high, where the line is, and what the probability assumes."""
    if prior is not None and not 0 < prior < 1:
        raise InputError(f"--prior {prior:g}: give a probability of bona fide speech between 0 and 1")
    which = "high scores speak for bona fide speech, low ones for spoofed speech"
    if _is_calibrated(known):
        at = decide(0.0, known, prior or DEFAULT_PRIOR)["threshold"]
        return f"{which}; P(bona fide) is for a prior of {prior or DEFAULT_PRIOR:g}, 50 % at a score of {at:.4f}"
    if known.calibration is not None:
        log.warning("no probabilities: on its development set, spoofed speech scored as high as bona fide speech")
    if prior is not None:
        log.warning("--prior has no effect: the run has no calibration, which a finished training leaves")
    if "eer_threshold" not in known.dev:
        return f"{which}; no verdict: the run has no threshold, as its training is not finished"
    return f"{which}; the line is {known.dev['eer_threshold']:.4f}, where the errors on the development set are equal"


def _is_calibrated(known: Known) -> bool:
    """Whether probabilities can be stated: a scale of 0 or less comes from a detector that is no better than chance."""
    return known.calibration is not None and known.calibration["scale"] > 0


def interpret(judged: Judged, sample_rate: int, known: Known, prior: float, *, curves: bool) -> Prediction:
    """Say in words which class a recording is and where it sounds least bona fide; with its curve where asked for.

    A recording at less than the model's rate has no sound in the upper bands, which the sentence warns of.
    """
    values = {**judged.values(), "sample_rate": sample_rate}
    values |= decide(values["score"], known, prior)
    curve = curve_table(judged, known, prior)
    values["num_spoof"] = int((curve["verdict"] == SPOOF).sum()) if values["verdict"] else None
    word = WORDS.get(values["verdict"], "no verdict")
    sentence = f"{word:<9}  score {values['score']:8.4f}"
    if values["probability_bonafide"] is not None:
        sentence += f"  P(bona fide) {100 * values['probability_bonafide']:5.1f} %"
    sentence += f"  {values['judged_s']:.2f} s"
    if values["num_windows"] > 1:
        sentence += f" in {values['num_windows'] - values['num_silent']} windows"
        if values["num_spoof"]:
            sentence += f", {values['num_spoof']} of them spoof"
        sentence += (
            f"; most spoof-like {values['lowest_start_s']:.2f}-{values['lowest_end_s']:.2f} s"
            f" ({values['lowest_score']:.4f})"
        )
    if values["num_silent"]:
        sentence += f"; {values['num_silent']} silent windows left out"
    if sample_rate < SAMPLE_RATE_HZ:
        sentence += f"; at {sample_rate} Hz it has nothing above {sample_rate / 2000:g} kHz: trust this less"
    if curves and values["num_windows"] == 1:
        sentence += "; one window, no curve"
    files = {}
    if curves and values["num_windows"] > 1:
        threshold = values["threshold"]
        files["curves/*.csv"] = curve.to_csv(index=False)
        files["curves/*.png"] = score_curve(
            judged.start_s,
            judged.end_s,
            judged.score,
            judged.envelope,
            judged.duration_s,
            threshold=threshold,
            below="spoof",
            score_label="Score (high: bona fide)",
            title=f"{word}: mean score {values['score']:.3f}",
        )
    return Prediction({name: values[name] for name in COLUMNS}, sentence, files)


def curve_table(judged: Judged, known: Known, prior: float) -> pd.DataFrame:
    """Return one row a window: start_s, end_s, level_dbfs, score, probability_bonafide, verdict (or `silent`)."""
    rows = []
    for window in judged.windows():
        score = window["score"]
        found = {"verdict": "silent"} if score is None else decide(score, known, prior)
        rows.append({**window, "probability_bonafide": found.get("probability_bonafide"), "verdict": found["verdict"]})
    return pd.DataFrame(rows)
