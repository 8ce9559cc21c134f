"""The task: from a mixture of talkers, one waveform for each."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from torch import Tensor

from audiolab.audio.recording import Recording
from audiolab.audio.writing import SampleFormat
from audiolab.errors import InputError
from audiolab.metrics.separation import si_sdr
from audiolab.reporting.example import Example
from audiolab.tasks.separation.evaluation import figures_of, metrics_of
from audiolab.tasks.separation.examples import chosen_examples, example_of
from audiolab.tasks.separation.losses import Criterion
from audiolab.tasks.separation.prediction import COLUMNS, RecordingSeparation, add_options, legend
from audiolab.tasks.separation.scoring import numbers_of, order_of
from audiolab.tasks.separation.separator import SPEAKERS, Separator
from audiolab.training.data import SpeechData
from audiolab.training.optim import Optimization
from audiolab.training.task import Batch, Known, Prediction, Task

log = logging.getLogger(__name__)

FACTS = ("num_speakers", "snr_db", "genders", "overlap", "speakers")
"""What a set may tell of a mixture; see `evaluation`."""


class SpeechSeparation(Task):
    """Mixtures `wave` (batch, time) and their `sources` (batch, speaker, time) in; dB of SI-SDR, SNR and SDR out.

    `sample_rate_hz` is the rate that the model works at. `num_examples` mixtures of each set are kept to see and hear
    when a run is evaluated, and with `examples_every_n_epochs` as many in training.
    """

    headline: ClassVar[dict[str, str]] = {
        "si_sdri": "SI-SDRi {:.2f} dB",
        "sdri": "SDRi {:.2f} dB",
        "si_sdr": "SI-SDR {:.2f} dB",
        "sdr": "SDR {:.2f} dB",
        "snr": "SNR {:.2f} dB",
        "si_sdr_mixture": "SI-SDR of the mixture {:.2f} dB",
    }
    only_after_training: ClassVar[tuple[str, ...]] = ("sdri", "sdr")

    prediction_columns: ClassVar[dict[str, type]] = COLUMNS
    prediction_in_words: ClassVar[str] = "write a WAV file for each talker of your own recordings"
    prediction_batch_size: ClassVar[int] = 1  # a chunk is long: more at once costs memory and, on a CPU, saves no time

    def __init__(
        self,
        model: Separator,
        criterion: Criterion,
        optimization: Optimization,
        sample_rate_hz: int,
        num_examples: int,
        examples_every_n_epochs: int | None,
    ) -> None:
        super().__init__(model, optimization)
        if num_examples < 0 or (examples_every_n_epochs is not None and examples_every_n_epochs < 1):
            raise InputError(
                f"module.num_examples={num_examples}, module.examples_every_n_epochs={examples_every_n_epochs} do not "
                "fit: give numbers from 0 and from 1 up, or null for no examples in training"
            )
        self.criterion, self.sample_rate_hz, self.num_examples = criterion, sample_rate_hz, num_examples
        self.examples_every_n_epochs = examples_every_n_epochs

    def forward(self, mixture_bt: Tensor) -> Tensor:
        """Return estimates (batch, speaker, time) of mixtures (batch, time) at the model's rate, in any order."""
        return self.model(mixture_bt)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the criterion's loss in dB and its parts; `si_sdri` of training can be held against that of dev."""
        mixture_bt, sources_bst = self.criterion.problem(batch["wave"], batch.get("sources"))
        estimate_bst = self.model(mixture_bt)
        loss, parts = self.criterion(estimate_bst, sources_bst)
        if not self.criterion.remixes:
            parts = {**parts, "si_sdri": _improvement(estimate_bst.detach(), sources_bst, mixture_bt)}
        return loss, parts

    def rows(self, batch: Batch) -> list[dict[str, Any]]:
        """Return one row a mixture: what the set tells of it, and what was measured (`scoring.numbers_of`).

        BSS-eval's SDR takes longer than separation itself, and is left out while training goes on.
        """
        mixture_bt = batch["wave"]
        fitting = self._trainer is not None and self._trainer.state.fn is TrainerFn.FITTING
        numbers = numbers_of(self(mixture_bt).float(), batch["sources"], mixture_bt, bss_eval=not fitting)
        length_s = mixture_bt.shape[-1] / self.sample_rate_hz
        facts = {name: _plain(batch[name]) for name in FACTS if name in batch}
        return [
            {"id": name, **{key: values[i] for key, values in facts.items()}, "length_s": length_s, **numbers[i]}
            for i, name in enumerate(batch["id"])
        ]

    @classmethod
    def metrics(cls, table: pd.DataFrame) -> dict[str, float]:
        """Every metric of a table of mixtures: `evaluation.metrics_of`."""
        return metrics_of(table)

    @classmethod
    def plots(cls, table: pd.DataFrame, metrics: dict[str, float]) -> dict[str, Figure]:
        """Histogram of SI-SDRi, SI-SDR before and after, SI-SDRi by SNR: `evaluation.figures_of`."""
        return figures_of(table, metrics)

    def facts(self) -> dict[str, str]:
        """What the model says of itself at its sampling rate: `Separator.facts`."""
        return self.model.facts(self.sample_rate_hz)

    def check_data(self, data: SpeechData) -> None:
        """Refuse data of another number of talkers, or of another rate, than the model has.

        One that is trained on sums of two mixtures must have an estimate for each talker of a mixture, and should have
        one for each of a sum; that is only warned of, as mixtures of up to so many talkers may have fewer.
        """
        talkers, model = data.num_speakers, self.model.num_speakers
        if self.criterion.remixes:
            remedy = f"set model.num_speakers={min(2 * talkers, SPEAKERS[-1])}"
            if model < talkers:
                raise InputError(
                    f"data.num_speakers={talkers} but the model gives {model} estimates: {remedy}, as it is trained on "
                    "sums of two mixtures"
                )
            if model < 2 * talkers:
                log.warning(
                    "the model gives %d estimates, but sums of two mixtures of data.num_speakers=%d, on which this "
                    "loss trains, have up to %d talkers, so that some estimates hold two%s",
                    *(model, talkers, 2 * talkers, f": {remedy}" if model < SPEAKERS[-1] else ""),
                )
        elif model != talkers:
            raise InputError(
                f"data.num_speakers={talkers} but the model separates {model}: set model.num_speakers={talkers}, or "
                f"test a run that was trained on mixtures of {talkers}"
            )
        if data.sample_rate_hz != self.sample_rate_hz:
            raise InputError(
                f"data.sample_rate_hz={data.sample_rate_hz} but the model works at {self.sample_rate_hz} Hz: set "
                f"data.sample_rate_hz={self.sample_rate_hz}"
            )

    def examples(self, table: pd.DataFrame) -> dict[str, str]:
        """Return mixtures from the worst to the best; in training always the same: `examples.chosen_examples`."""
        return chosen_examples(table, self.num_examples)

    def example(self, batch: Batch) -> Example:
        """Return mixture, references and estimates of one mixture, at one level, and their spectrograms."""
        mixture_bt, sources_bst = batch["wave"], batch["sources"]
        estimate_bst = self(mixture_bt).float()
        [numbers] = numbers_of(estimate_bst, sources_bst, mixture_bt, bss_eval=False)
        order = [int(number) - 1 for number in numbers["permutation"].split("-")]
        signals = (signal[0].float().cpu().numpy() for signal in (mixture_bt, sources_bst, estimate_bst[:, order]))
        return example_of(batch["id"][0], *signals, numbers, self.sample_rate_hz)

    def infer(
        self,
        waveform: Tensor,
        sample_rate: int,
        *,
        chunk_s: float | None = None,
        hop_s: float | None = None,
        batch_size: int = 1,
        streaming: bool = False,
    ) -> dict[str, Any]:
        """Separate one recording, (time,) at any rate, as `predict` does.

        `sources` are (speaker, time) in float32 at the same rate, at the level that they have in the recording.
        """
        wave = torch.as_tensor(waveform).detach().cpu().float().numpy()
        applied = self._applied(batch_size=batch_size, chunk_s=chunk_s, hop_s=hop_s, streaming=streaming)
        return {"sources": torch.from_numpy(applied.talkers(wave, sample_rate)), "sample_rate": sample_rate}

    def predict_recording(
        self,
        recording: Recording,
        known: Known,
        *,
        scratch: Path,
        batch_size: int,
        sample_format: SampleFormat,
        plots: bool,
        **options: Any,
    ) -> Prediction:
        """Write a WAV file for each talker, and say how loud each is: `prediction.RecordingSeparation.predict`."""
        return self._applied(batch_size=batch_size, **options).predict(recording, scratch, sample_format, plots=plots)

    @classmethod
    def add_predict_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add chunks, streaming, sample format and pictures."""
        add_options(parser)

    def prediction_legend(self, known: Known, *, sample_format: SampleFormat, plots: bool, **options: Any) -> str:
        """Say what is written; refuse options that do not fit each other or the model."""
        return legend(self._applied(**options), plots)

    def _applied(self, **options: Any) -> RecordingSeparation:
        return RecordingSeparation(self.model, self.sample_rate_hz, self.device, **options)


def _improvement(estimate_bst: Tensor, sources_bst: Tensor, mixture_bt: Tensor) -> Tensor:
    """Return the mean SI-SDRi in dB over the references of a batch that are not silent, 0 where all are."""
    with torch.autocast(mixture_bt.device.type, enabled=False):
        estimate_bst, sources_bst, mixture_b1t = estimate_bst.float(), sources_bst.float(), mixture_bt[:, None].float()
        values_ber, order_br = order_of(estimate_bst, sources_bst)
        gain_br = values_ber.gather(1, order_br[:, None])[:, 0] - si_sdr(mixture_b1t, sources_bst)
    return gain_br.nanmean().nan_to_num(nan=0.0)


def _plain(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, Tensor) else list(column)
