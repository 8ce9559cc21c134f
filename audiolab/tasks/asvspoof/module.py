"""The task: tell bona fide from spoofed speech, one score an utterance, higher = more bona fide."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from audiolab.audio.crop import fixed_length
from audiolab.audio.level import SILENCE_DBFS, normalize_rms, rms_dbfs
from audiolab.audio.resample import resample
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.calibration import calibration_of, fused_of, fusion_of
from audiolab.tasks.asvspoof.evaluation import comparison_of, figures_of, metrics_of, score_files_of
from audiolab.tasks.asvspoof.losses import Criterion
from audiolab.tasks.asvspoof.model import SpoofModel
from audiolab.tasks.asvspoof.protocols import BONAFIDE, SPOOF
from audiolab.tasks.asvspoof.sasv import sasv_figures, sasv_metrics
from audiolab.tasks.asvspoof.scoring import read_systems
from audiolab.tasks.asvspoof.trials import FACTS, SAMPLE_RATE_HZ
from audiolab.training.fgm import adversarial
from audiolab.training.mixup import Mixup
from audiolab.training.optim import Optimization
from audiolab.training.task import Batch, Task


class SpoofingDetection(Task):
    """One score an utterance, the criterion's, or with `score: bonafide_logit` that logit, as in the seed project.

    `mixup` is the a of Beta(a, a), `fgm` the length of the adversarial step on the embedding; 0 leaves either out.
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
        model: SpoofModel,
        criterion: Criterion,
        optimization: Optimization,
        level_dbfs: float | None,
        eval_samples: int | None,
        score: Literal["difference", "bonafide_logit"],
        mixup: float = 0.0,
        fgm: float = 0.0,
    ) -> None:
        super().__init__(model, optimization)
        name = type(criterion).__name__
        if mixup < 0 or fgm < 0:
            raise InputError(f"module.mixup={mixup}, fgm={fgm} do not fit: give numbers from 0 (off) up")
        if mixup > 0 and criterion.pairwise:
            raise InputError(
                f"module.mixup={mixup} does not go with {name}, which compares utterances by their labels, and a mixed "
                "one has two: set module.mixup=0 or choose another loss="
            )
        if score == "bonafide_logit" and not criterion.uses_logits:
            raise InputError(
                f"module.score=bonafide_logit does not go with {name}, which does not train the logits: "
                "set module.score=difference"
            )
        criterion.attach(model.embedding_dim)
        if not criterion.uses_logits:
            _freeze_classifier(model)
        self.criterion = criterion
        self.level_dbfs, self.eval_samples, self.score = level_dbfs, eval_samples, score
        self.mixup, self.fgm = mixup, fgm

    def forward(self, wave_bt: Tensor) -> Tensor:
        """Return scores (batch,) in float32 of waveforms (batch, time) at 16 kHz, higher = more bona fide."""
        embedding_bd = self.model.embed(self._at_level(wave_bt))
        logits_bc = self.model.classify(embedding_bd)
        if self.score == "bonafide_logit":
            return logits_bc[:, 1].float()
        return self.criterion.scores(embedding_bd, logits_bc)  # never probabilities, which saturate

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the criterion's loss in nats, with the adversarial one added where there is one, and the accuracy.

        Of a mixed utterance the accuracy counts the label with the larger share.
        """
        wave_bt, label_b = self._at_level(batch["wave"]), batch["label"]
        mixup = Mixup.draw(len(wave_bt), self.mixup) if self.mixup > 0 else None
        if mixup is not None:
            wave_bt = self._at_level(mixup.mix(wave_bt))

        def loss_of(embedding_bd: Tensor) -> Tensor:
            criterion = partial(self.criterion, embedding_bd, self.model.classify(embedding_bd))
            return criterion(label_b) if mixup is None else mixup.loss(criterion, label_b)

        embedding_bd = self.model.embed(wave_bt)
        loss = loss_of(embedding_bd)
        parts = {"accuracy": self._accuracy(embedding_bd, label_b if mixup is None else mixup.dominant(label_b))}
        if self.fgm > 0 and torch.is_grad_enabled():
            parts["adversarial_loss"] = loss_of(adversarial(embedding_bd, loss_of, self.fgm))
            loss = loss + parts["adversarial_loss"]
        return loss, {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def _accuracy(self, embedding_bd: Tensor, label_b: Tensor) -> Tensor:
        score_b = self.criterion.scores(embedding_bd, self.model.classify(embedding_bd))
        return ((score_b > self.criterion.boundary) == (label_b == 1)).float().mean()

    def _at_level(self, wave_bt: Tensor) -> Tensor:
        return wave_bt if self.level_dbfs is None else normalize_rms(wave_bt, self.level_dbfs)

    def rows(self, batch: Batch) -> list[dict[str, Any]]:
        """Return one scored trial a row."""
        score_b = self(batch["wave"]).tolist()
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
        score_b = self(torch.from_numpy(np.ascontiguousarray(wave)).to(self.device)[None])
        return {"score": float(score_b[0]), "judged_s": round(len(wave) / SAMPLE_RATE_HZ, 3)}

    @classmethod
    def interpret(cls, found: dict[str, Any], dev: dict[str, float]) -> dict[str, Any]:
        """Say in words which class a score speaks for, by the threshold of the development set's EER."""
        if "eer_threshold" not in dev:
            return {**found, "verdict": "no verdict: the run has no development threshold"}
        label = BONAFIDE if found["score"] > dev["eer_threshold"] else SPOOF
        return {**found, "threshold": dev["eer_threshold"], "verdict": label}


def _freeze_classifier(model: SpoofModel) -> None:
    """Freeze the parameters between embedding and logits: no loss reaches them, and DDP refuses to go on without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    logits_bc = model.eval().classify(torch.zeros(1, model.embedding_dim))
    model.train(training)
    if logits_bc.requires_grad:
        gradients = torch.autograd.grad(logits_bc.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.requires_grad_(False)
