"""The task: tell bona fide from spoofed speech, one score an utterance, higher = more bona fide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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
from audiolab.tasks.asvspoof.calibration import calibration_of, fused_of, fusion_of
from audiolab.tasks.asvspoof.evaluation import comparison_of, figures_of, metrics_of, score_files_of
from audiolab.tasks.asvspoof.protocols import BONAFIDE, SPOOF
from audiolab.tasks.asvspoof.sasv import sasv_figures, sasv_metrics
from audiolab.tasks.asvspoof.scoring import read_systems
from audiolab.tasks.asvspoof.trials import FACTS, SAMPLE_RATE_HZ
from audiolab.training.optim import Optimization
from audiolab.training.task import Batch, Task


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
        "act_dcf_calibrated": "act DCF calibrated {:.4f}",
        "cllr_calibrated": "Cllr calibrated {:.4f} bit",
        "a_dcf": "a-DCF {:.4f}",
        "t_eer": "t-EER {:.2f} %",
    }
    scoring_files: ClassVar[dict[str, str]] = {
        "protocol": "trial list or key; may be left out where the score files hold their own labels",
        "asv": "ASV scores, for the t-DCF; published:asvspoof5 takes that corpus' published ASV error rates instead",
        "asv-key": "ASV trial metadata, where the ASV scores have no keys (2021)",
    }
    scoring_options: ClassVar[dict[str, str]] = {
        "subset": "phase of a 2021 list: progress, eval (default), hidden, all",
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
        label_b = [BONAFIDE if label else SPOOF for label in batch["label"].tolist()]
        columns = {"id": batch["id"], **{name: batch[name] for name in FACTS if name in batch}}
        columns |= {"label": label_b, "score": score_b}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @classmethod
    def metrics(cls, table: pd.DataFrame) -> dict[str, float]:
        """Every metric of a score table: `evaluation.metrics_of`, with SASV scores `sasv.sasv_metrics`."""
        return sasv_metrics(table) if "sasv_score" in table else metrics_of(table)

    @classmethod
    def plots(cls, table: pd.DataFrame, metrics: dict[str, float]) -> dict[str, Figure]:
        """DET curve, score histogram and error by attack: `evaluation.figures_of`."""
        return sasv_figures(table, metrics) if "sasv_score" in table else figures_of(table, metrics)

    @classmethod
    def calibration(cls, table: pd.DataFrame) -> dict[str, Any] | None:
        """Affine map of development scores to natural-log likelihood ratios: `calibration.calibration_of`."""
        return calibration_of(table)

    @classmethod
    def score_files(cls, table: pd.DataFrame) -> dict[str, str]:
        """Return the official two- and four-column files: `evaluation.score_files_of`."""
        return {} if "sasv_score" in table else score_files_of(table)

    @classmethod
    def read_systems(cls, scores: Mapping[str, Path], **given: str) -> dict[str, pd.DataFrame]:
        """Read bare score files and their trial list: `scoring.read_systems`."""
        files = {name: Path(given[name]) for name in ("protocol", "asv_key") if name in given}
        return read_systems(scores, **{**given, **files})

    @classmethod
    def comparison(cls, tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
        """Draw the DET curves of several systems."""
        judged = {name: table for name, table in tables.items() if not table["score"].isna().any()}
        return {"det": comparison_of(judged)} if judged else {}

    @classmethod
    def fusion(cls, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
        """Fit weights by logistic regression: `calibration.fusion_of`."""
        return fusion_of(tables)

    @classmethod
    def fused(cls, tables: Mapping[str, pd.DataFrame], fusion: Mapping[str, Any]) -> pd.DataFrame:
        """Return the weighted sum of the systems' scores, a log-likelihood ratio: `calibration.fused_of`."""
        return fused_of(tables, fusion)

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
