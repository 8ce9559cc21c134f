"""The models of this task: waveform (batch, time), 16 kHz -> logits (batch, 2), column 0 spoof, column 1 bona fide.

A model is a `Detector`, a front end joined to a back end (each a section of the model's YAML), or a `SpoofModel` of
its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from audiolab.errors import InputError


class HoldsEncoder(nn.Module):
    """What may have a frozen encoder, whose states of a waveform may be kept and given back; here: has none."""

    @property
    def is_frozen(self) -> bool:
        """Whether `encode` gives the same states for the same waveform throughout the training."""
        return False

    def encode(self, wave_bt: Tensor) -> Tensor:
        """Waveform -> states that take its place. Raises InputError where there is no encoder."""
        raise self._no_encoder()

    def encoder_name(self) -> str:
        """Return a name for the weights and options behind `encode`. Raises InputError where there is no encoder."""
        raise self._no_encoder()

    def _no_encoder(self) -> InputError:
        return InputError(f"{type(self).__name__} has no encoder whose output could be kept")


class FrontEnd(HoldsEncoder):
    """Waveform (batch, time) -> frames (batch, frames, dim), or (batch, num_layers, frames, dim) with `num_layers` set.

    `encode` is the part of the work that does not depend on anything trained, where there is one: when `is_frozen`, its
    output may be kept and given back as `states` instead of being computed again.
    """

    dim: int
    min_samples: int
    num_layers: int | None = None


class BackEnd(nn.Module):
    """Frames (batch, frames, in_dim) -> embedding (batch, dim).

    With `num_layers` set it wants (batch, num_layers, frames, in_dim): every hidden state of an encoder.
    """

    in_dim: int
    dim: int
    num_layers: int | None = None


class SpoofModel(HoldsEncoder, ABC):
    """A detector in two halves: `embed` gives one vector (batch, embedding_dim) an utterance, `classify` its logits.

    Losses on the embedding (OC-Softmax, SupCon, mixup, adversarial noise) work between the halves. Any length of at
    least `min_samples` works and gives correspondingly many frames; the fixed crops of this task need no padding mask,
    so there is none.
    """

    embedding_dim: int
    min_samples: int

    @abstractmethod
    def _embed(self, wave_bt: Tensor, states: Tensor | None) -> Tensor: ...

    @abstractmethod
    def classify(self, embedding_bd: Tensor) -> Tensor:
        """Embedding -> logits (batch, 2)."""

    def embed(self, wave_bt: Tensor, states: Tensor | None = None) -> Tensor:
        """Waveform, with `states` if `encode` ran before, -> embedding (batch, embedding_dim).

        Raises InputError below `min_samples`, and for states that a trainable encoder would have given differently.
        """
        self.check(wave_bt)
        if states is not None and not self.is_frozen:
            raise InputError(
                f"{type(self).__name__} was given states of an encoder, but it has no frozen one: they would be stale"
            )
        return self._embed(wave_bt, states)

    def forward(self, wave_bt: Tensor, states: Tensor | None = None) -> Tensor:
        """Waveform -> logits (batch, 2)."""
        return self.classify(self.embed(wave_bt, states))

    def check(self, wave_bt: Tensor) -> None:
        """Raise InputError for anything but (batch, time) of at least `min_samples`."""
        if wave_bt.ndim != 2 or wave_bt.shape[1] < self.min_samples:
            raise InputError(
                f"{type(self).__name__} got a waveform of shape {tuple(wave_bt.shape)}; it wants (batch, time) with at "
                f"least {self.min_samples} samples at 16 kHz. Give longer audio or repeat it."
            )


class Detector(SpoofModel):
    """A front end, a back end, dropout on the embedding, a linear classifier.

    Where the front end's `dim` is not the back end's `in_dim`, a linear layer and LayerNorm join them, else nothing.

    >>> import torch
    >>> from audiolab.tasks.asvspoof.backend import BiMamba
    >>> from audiolab.tasks.asvspoof.sinc import SincStream
    >>> detector = Detector(SincStream(channels=(8, 8)), BiMamba(dim=16, num_blocks=1), dropout=0.1)
    >>> detector.embed(torch.zeros(2, 4000)).shape, detector(torch.zeros(2, 4000)).shape
    (torch.Size([2, 16]), torch.Size([2, 2]))
    """

    def __init__(self, front_end: FrontEnd, back_end: BackEnd, dropout: float) -> None:
        super().__init__()
        _check_layers(front_end, back_end)
        self.front_end, self.back_end = front_end, back_end
        self.project = nn.Identity()
        if front_end.dim != back_end.in_dim:
            self.project = nn.Sequential(nn.Linear(front_end.dim, back_end.in_dim), nn.LayerNorm(back_end.in_dim))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(back_end.dim, 2)
        self.embedding_dim, self.min_samples = back_end.dim, front_end.min_samples

    @property
    def is_frozen(self) -> bool:
        """Whether the front end's states may be kept."""
        return self.front_end.is_frozen

    def encode(self, wave_bt: Tensor) -> Tensor:
        """Waveform -> the front end's states, for `embed`."""
        self.check(wave_bt)
        return self.front_end.encode(wave_bt)

    def encoder_name(self) -> str:
        """Return a name for the front end's encoder."""
        return self.front_end.encoder_name()

    def frames(self, wave_bt: Tensor, states: Tensor | None = None) -> Tensor:
        """Waveform -> what the back end reads."""
        self.check(wave_bt)
        return self.project(self.front_end(wave_bt) if states is None else self.front_end(wave_bt, states))

    def classify(self, embedding_bd: Tensor) -> Tensor:
        """Embedding -> logits (batch, 2)."""
        return self.classifier(embedding_bd)

    def _embed(self, wave_bt: Tensor, states: Tensor | None) -> Tensor:
        return self.dropout(self.back_end(self.frames(wave_bt, states)))


def _check_layers(front_end: FrontEnd, back_end: BackEnd) -> None:
    """Refuse a back end that wants each layer of an encoder on a front end that gives one sequence, and so on."""
    given, wanted = front_end.num_layers, back_end.num_layers
    if given == wanted:
        return

    def words(number: int | None) -> str:
        return "one sequence of frames" if number is None else f"{number} hidden states"

    raise InputError(
        f"{type(back_end).__name__} reads {words(wanted)}, but {type(front_end).__name__} gives {words(given)}: set "
        "model.front_end.mix to false for a back end that weighs the layers itself, else to true, and "
        "model.back_end.num_layers to the number of hidden states."
    )
