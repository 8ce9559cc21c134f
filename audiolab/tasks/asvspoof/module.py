"""The task: tell bona fide from spoofed speech, one score an utterance, higher = more bona fide."""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from audiolab.audio.crop import fixed_length
from audiolab.audio.level import SILENCE_DBFS, normalize_rms, rms_dbfs
from audiolab.audio.resample import resample
from audiolab.errors import InputError
from audiolab.metrics.bootstrap import eer_interval
from audiolab.metrics.spoofing import AsvErrorRates, attack_table, evaluate
from audiolab.reporting.plots import attack_bars, det_plot, score_histogram
from audiolab.tasks.asvspoof.data import SAMPLE_RATE_HZ
from audiolab.tasks.asvspoof.protocols import BONAFIDE, SPOOF
from audiolab.training.optim import Optimization
from audiolab.training.task import Batch, Task

log = logging.getLogger(__name__)

_BOOTSTRAP_SEED = 20190415
_NUM_RESAMPLES = 500


class SpoofingDetection(Task):
    """Two logits an utterance; the score is their difference (bona fide - spoof), or the bona fide logit alone.

    `level_dbfs` is the RMS level that every waveform is brought to before the model (None: as it is). `eval_samples`
    is the length that `infer` cuts or repeats a recording to, as the DataModule does for dev and eval.
    """

    headline: ClassVar[dict[str, str]] = {
        "eer": "EER {:.2f} %",
        "min_tdcf_2019": "min t-DCF 2019 {:.4f}",
        "min_tdcf_2021": "min t-DCF 2021 {:.4f}",
        "min_dcf": "min DCF {:.4f}",
        "act_dcf": "act DCF {:.4f}",
        "cllr": "Cllr {:.4f} bit",
    }

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        optimization: Optimization,
        level_dbfs: float | None,
        eval_samples: int | None,
        score: Literal["difference", "bonafide_logit"],
    ) -> None:
        super().__init__(model, optimization)
        self.criterion = criterion
        self.level_dbfs, self.eval_samples, self.score = level_dbfs, eval_samples, score

    def forward(self, wave_bt: Tensor) -> Tensor:
        """Return logits (batch, 2) of waveforms (batch, time) at 16 kHz."""
        return self.model(wave_bt if self.level_dbfs is None else normalize_rms(wave_bt, self.level_dbfs))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the criterion's loss in nats and the accuracy."""
        logits_bc = self(batch["wave"])
        accuracy = (logits_bc.argmax(1) == batch["label"]).float().mean()
        return self.criterion(logits_bc, batch["label"]), {"accuracy": accuracy}

    def scores(self, logits_bc: Tensor) -> Tensor:
        """Return scores (batch,) in float32: never probabilities, which saturate, never half precision."""
        logits_bc = logits_bc.float()
        return logits_bc[:, 1] - logits_bc[:, 0] if self.score == "difference" else logits_bc[:, 1]

    def rows(self, batch: Batch) -> list[dict[str, Any]]:
        """Return one scored trial a row."""
        score_b = self.scores(self(batch["wave"])).tolist()
        columns = zip(batch["id"], batch["speaker"], batch["attack"], batch["label"].tolist(), score_b, strict=True)
        return [
            {"id": name, "speaker": speaker, "attack": attack, "label": BONAFIDE if label else SPOOF, "score": score}
            for name, speaker, attack, label, score in columns
        ]

    @classmethod
    def metrics(cls, table: pd.DataFrame) -> dict[str, float]:
        """Compute EER in % with a bootstrap interval over speakers, DCFs, Cllr, both t-DCFs, and rows by attack."""
        genuine, score = _columns(table)
        asv = {attack: AsvErrorRates(**rates) for attack, rates in table.attrs.get("asv", {}).items()}
        pooled = evaluate(score[genuine], score[~genuine], asv.get("Pooled"))
        for warning in pooled.warnings():
            log.warning("%s: %s", table.attrs.get("set", "scores"), warning)
        low, high = _interval(table, np.ones(len(table), dtype=bool))
        values = {
            "eer": 100 * pooled.eer,
            "eer_low": low,
            "eer_high": high,
            "eer_threshold": pooled.eer_threshold,
            "eer_ties_spoof_first": 100 * pooled.eer_ties_spoof_first,
            "min_dcf": pooled.min_dcf,
            "act_dcf": pooled.act_dcf,
            "cllr": pooled.cllr,
            "min_tdcf_2019": pooled.min_tdcf_2019,
            "min_tdcf_2021": pooled.min_tdcf_2021,
            "num_bonafide": pooled.num_bonafide,
            "num_spoof": pooled.num_spoof,
            "num_skipped": table.attrs.get("skipped", 0),
        }
        cells = {(attack, "Pooled"): rates for attack, rates in asv.items()}
        by_version = {
            version: attack_table(score, genuine, table["attack"], asv=cells or None, version=version)
            for version in ("2019", "2021")
        }
        breakdown = by_version["2019"]
        for index, attack in enumerate(breakdown.attacks[:-1]):
            low, high = _interval(table, genuine | (table["attack"] == attack).to_numpy())
            values |= {
                f"attack/{attack}/trials": int(breakdown.num_spoof[index, -1]),
                f"attack/{attack}/eer": 100 * breakdown.eer[index, -1],
                f"attack/{attack}/eer_low": low,
                f"attack/{attack}/eer_high": high,
                f"attack/{attack}/min_dcf": breakdown.min_dcf[index, -1],
            }
            if asv:
                for version, tables in by_version.items():
                    values[f"attack/{attack}/min_tdcf_{version}"] = tables.min_tdcf[index, -1]
        return {name: float(value) for name, value in values.items() if value is not None and not math.isnan(value)}

    @classmethod
    def plots(cls, table: pd.DataFrame, metrics: dict[str, float]) -> dict[str, Figure]:
        """Draw the DET curve, the score histogram and the error by attack."""
        genuine, score = _columns(table)
        set_name = table.attrs.get("set", "scores")
        attacks = sorted(set(table.loc[~genuine, "attack"]))
        ends = [[metrics.get(f"attack/{a}/eer_{end}", math.nan) / 100 for end in ("low", "high")] for a in attacks]
        return {
            "det": det_plot({set_name: (score[genuine], score[~genuine])}, title=f"DET, {set_name}"),
            "histogram": score_histogram(
                score[genuine], score[~genuine], metrics["eer_threshold"], title=f"Scores, {set_name}"
            ),
            "attacks": attack_bars(
                attacks,
                [metrics[f"attack/{a}/eer"] / 100 for a in attacks],
                None if np.isnan(ends).any() else ends,
                overall=metrics["eer"] / 100,
                title=f"EER by attack, {set_name}",
            ),
        }

    @classmethod
    def score_files(cls, table: pd.DataFrame) -> dict[str, str]:
        """Return the official two-column (`utterance score`) and four-column (`utterance attack key score`) files."""
        two = "".join(f"{row.id} {row.score!r}\n" for row in table.itertuples())
        four = "".join(f"{row.id} {row.attack} {row.label} {row.score!r}\n" for row in table.itertuples())
        return {"2col.txt": two, "4col.txt": four}

    @torch.inference_mode()
    def infer(self, waveform: Tensor, sample_rate: int) -> dict[str, Any]:
        """Score one recording, (time,) at any rate; of a long one the first `eval_samples`, `judged_s` says how much.

        Raises InputError for digital silence and for anything but one channel.
        """
        waveform = torch.as_tensor(waveform)
        if waveform.ndim != 1 or len(waveform) == 0:
            raise InputError(
                f"a waveform of shape {tuple(waveform.shape)} cannot be judged: give one channel as (time,), "
                "for stereo the mean of the channels"
            )
        if float(rms_dbfs(waveform)) < SILENCE_DBFS:
            raise InputError("the recording is silent: there is no speech to judge")
        wave = waveform.detach().cpu().numpy().astype(np.float32)
        wave = resample(wave, sample_rate, SAMPLE_RATE_HZ) if sample_rate != SAMPLE_RATE_HZ else wave
        if self.eval_samples is not None:
            wave = fixed_length(wave, self.eval_samples)
        logits_bc = self(torch.from_numpy(np.ascontiguousarray(wave)).to(self.device)[None])
        return {"score": float(self.scores(logits_bc)[0]), "judged_s": round(len(wave) / SAMPLE_RATE_HZ, 3)}

    @classmethod
    def interpret(cls, found: dict[str, Any], dev: dict[str, float]) -> dict[str, Any]:
        """Say in words which class a score speaks for, by the threshold of the development set's EER."""
        if "eer_threshold" not in dev:
            return {**found, "verdict": "no verdict: the run has no development threshold"}
        label = BONAFIDE if found["score"] > dev["eer_threshold"] else SPOOF
        return {**found, "threshold": dev["eer_threshold"], "verdict": label}


def _columns(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return (table["label"] == BONAFIDE).to_numpy(), table["score"].to_numpy(np.float64)


def _interval(table: pd.DataFrame, where: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the EER in %, NaN where there is one speaker only."""
    part = table[where]
    if part["speaker"].nunique() < 2:
        return math.nan, math.nan
    genuine, score = _columns(part)
    generator = np.random.default_rng(_BOOTSTRAP_SEED)
    low, high = eer_interval(score, genuine, part["speaker"], generator, _NUM_RESAMPLES)
    return 100 * low, 100 * high
