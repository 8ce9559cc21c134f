"""The task: tell bona fide from spoofed speech, one score an utterance, higher = more bona fide."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from audiolab.audio.level import normalize_rms
from audiolab.audio.recording import Recording
from audiolab.errors import InputError
from audiolab.tasks.asvspoof.calibration import calibration_of, fused_of, fusion_in_words, fusion_of
from audiolab.tasks.asvspoof.evaluation import comparison_of, figures_of, metrics_of, score_files_of
from audiolab.tasks.asvspoof.inference import Judged, Windowing, judge
from audiolab.tasks.asvspoof.losses import Criterion
from audiolab.tasks.asvspoof.model import SpoofModel
from audiolab.tasks.asvspoof.protocols import BONAFIDE, SPOOF
from audiolab.tasks.asvspoof.sasv import sasv_figures, sasv_metrics
from audiolab.tasks.asvspoof.scoring import read_systems
from audiolab.tasks.asvspoof.trials import FACTS
from audiolab.tasks.asvspoof.verdict import COLUMNS, DEFAULT_PRIOR, add_options, interpret, legend
from audiolab.training.fgm import adversarial
from audiolab.training.mixup import Mixup
from audiolab.training.optim import Optimization
from audiolab.training.task import Batch, Known, Prediction, Task


class SpoofingDetection(Task):
    """One score an utterance, the criterion's, or with `score: bonafide_logit` that logit, as in the seed project.

    `mixup` is the a of Beta(a, a), `fgm` the length of the adversarial step on the embedding; 0 leaves either out.
    `level_dbfs` is the RMS level that every waveform is brought to before the model (None: as it is). `eval_samples`
    is the length of dev and eval items, and so of the windows that `infer` judges (None: whole utterances).
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
    prediction_columns: ClassVar[dict[str, type]] = COLUMNS
    prediction_in_words: ClassVar[str] = "score your own audio"

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

    def forward(self, wave_bt: Tensor, states: Tensor | None = None) -> Tensor:
        """Return scores (batch,) in float32 of waveforms (batch, time) at 16 kHz, higher = more bona fide.

        `states` is what `encode` made of the waveforms before, where it did.
        """
        embedding_bd = self.model.embed(self._at_level(wave_bt), states)
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

        embedding_bd = self.model.embed(wave_bt, batch.get("states"))
        loss = loss_of(embedding_bd)
        parts = {"accuracy": self._accuracy(embedding_bd, label_b if mixup is None else mixup.dominant(label_b))}
        if self.fgm > 0 and torch.is_grad_enabled():
            parts["adversarial_loss"] = loss_of(adversarial(embedding_bd, loss_of, self.fgm))
            loss = loss + parts["adversarial_loss"]
        return loss, {name: value.detach() for name, value in parts.items()}

    def loss_weight(self, batch: Batch) -> float | Tensor:
        """Return what the criterion divides the loss of a batch by."""
        return self.criterion.total_weight(batch["label"])

    @torch.no_grad()
    def _accuracy(self, embedding_bd: Tensor, label_b: Tensor) -> Tensor:
        score_b = self.criterion.scores(embedding_bd, self.model.classify(embedding_bd))
        return ((score_b > self.criterion.boundary) == (label_b == 1)).float().mean()

    def why_features_change(self) -> str | None:
        """Say why the encoder's states of a waveform may not be kept from epoch to epoch; None where they may."""
        if self.mixup > 0:
            return "mixup trains on sums of waveforms: set module.mixup=0"
        if not self.model.is_frozen:
            return (
                "the model has no encoder that stays as it is: choose one, with freeze_layers=all, lora=null and "
                "mask_time_prob=0 (model=asvspoof/wavlm_pooling)"
            )
        return None

    def encode(self, wave_bt: Tensor) -> Tensor:
        """Return the frozen encoder's states of waveforms (batch, time) at 16 kHz."""
        return self.model.encode(self._at_level(wave_bt))

    def encoder_name(self) -> str:
        """Name the encoder's weights, the states in use and the level of its input."""
        return f"{self.model.encoder_name()}-{self.level_dbfs}"

    def _at_level(self, wave_bt: Tensor) -> Tensor:
        return wave_bt if self.level_dbfs is None else normalize_rms(wave_bt, self.level_dbfs)

    def rows(self, batch: Batch) -> list[dict[str, Any]]:
        """Return one scored trial a row."""
        score_b = self(batch["wave"], batch.get("states")).tolist()
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
    def fusion_in_words(cls, fusion: Mapping[str, Any]) -> list[str]:
        """Tell the weights, and a system that the development scores would rather subtract."""
        return fusion_in_words(fusion)

    @classmethod
    def fused(cls, tables: Mapping[str, pd.DataFrame], fusion: Mapping[str, Any]) -> pd.DataFrame:
        """Return the weighted sum of the systems' scores, a log-likelihood ratio: `calibration.fused_of`."""
        return fused_of(tables, fusion)

    @torch.inference_mode()
    def infer(
        self,
        waveform: Tensor,
        sample_rate: int,
        *,
        window_s: float | None = None,
        hop_s: float | None = None,
        batch_size: int = 16,
        windows: bool = False,
    ) -> dict[str, Any]:
        """Score one recording, (time,) at any rate, as `predict` does: `score` is the mean over its windows.

        Windows are those of `inference.Windowing`; with `windows` the result has one row each (`start_s`, `end_s`,
        `level_dbfs`, `score`, None where silent). Raises InputError for silence and for anything but one channel.
        """
        wave = torch.as_tensor(waveform).detach().cpu().numpy().astype(np.float32)
        judged = self._judge(Recording(wave, sample_rate), Windowing(window_s, hop_s, batch_size))
        return {**judged.values(), **({"windows": judged.windows()} if windows else {})}

    @torch.inference_mode()
    def predict_recording(
        self,
        recording: Recording,
        known: Known,
        *,
        scratch: Path,
        batch_size: int,
        window_s: float | None,
        hop_s: float | None,
        prior: float | None,
        curves: bool,
    ) -> Prediction:
        """Score a recording and say which class it is: `verdict.interpret`."""
        judged = self._judge(recording, Windowing(window_s, hop_s, batch_size))
        return interpret(judged, recording.sample_rate, known, prior or DEFAULT_PRIOR, curves=curves)

    @classmethod
    def add_predict_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add windows, prior and curves."""
        add_options(parser)

    def prediction_legend(self, known: Known, **options: Any) -> str:
        """Say which class scores high: `verdict.legend`; refuse windows that do not fit the model."""
        windowing = Windowing(options["window_s"], options["hop_s"], options["batch_size"])
        windowing.samples(sys.maxsize, self.eval_samples, self.model.min_samples)
        return legend(known, options["prior"])

    def _judge(self, recording: Recording, windowing: Windowing) -> Judged:
        least = self.model.min_samples
        return judge(recording, self, self.device, windowing, eval_samples=self.eval_samples, min_samples=least)


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
