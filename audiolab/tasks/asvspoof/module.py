"""The task: tell bona fide from spoofed speech, one score an utterance, higher = more bona fide."""

from __future__ import annotations

import argparse
import sys
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from audiolab.audio.level import normalize_rms
from audiolab.audio.recording import Recording
from audiolab.tasks.asvspoof.evaluation import figures_of, metrics_of, score_files_of
from audiolab.tasks.asvspoof.inference import Judged, Windowing, judge
from audiolab.tasks.asvspoof.protocols import BONAFIDE, SPOOF
from audiolab.tasks.asvspoof.verdict import COLUMNS, DEFAULT_PRIOR, add_options, interpret, legend
from audiolab.training.optim import Optimization
from audiolab.training.task import Batch, Known, Prediction, Task


class SpoofingDetection(Task):
    """Two logits an utterance; the score is their difference (bona fide - spoof), or the bona fide logit alone.

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
    }
    prediction_columns: ClassVar[dict[str, type]] = COLUMNS

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
        """Every metric of a score table: `evaluation.metrics_of`."""
        return metrics_of(table)

    @classmethod
    def plots(cls, table: pd.DataFrame, metrics: dict[str, float]) -> dict[str, Figure]:
        """DET curve, score histogram and error by attack: `evaluation.figures_of`."""
        return figures_of(table, metrics)

    @classmethod
    def score_files(cls, table: pd.DataFrame) -> dict[str, str]:
        """Return the official two- and four-column files: `evaluation.score_files_of`."""
        return score_files_of(table)

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
        batch_size: int,
        window_s: float | None,
        hop_s: float | None,
        prior: float | None,
        curves: bool,
    ) -> Prediction:
        """Score a recording and say which class it is: `verdict.interpret`."""
        judged = self._judge(recording, Windowing(window_s, hop_s, batch_size))
        return interpret(judged, known, prior or DEFAULT_PRIOR, curves=curves)

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
        def score(wave_bt: Tensor) -> Tensor:
            return self.scores(self(wave_bt))

        least = self.model.min_samples
        return judge(recording, score, self.device, windowing, eval_samples=self.eval_samples, min_samples=least)
