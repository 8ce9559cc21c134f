"""The dual-stream front end: a self-supervised encoder and the sinc stream, fused by squeeze-excitation."""

from __future__ import annotations

from torch import Tensor

from audiolab.tasks.asvspoof.fusion import SEFusion
from audiolab.tasks.asvspoof.model import FrontEnd
from audiolab.tasks.asvspoof.sinc import SincStream
from audiolab.tasks.asvspoof.ssl import SSLStream


class DualStream(FrontEnd):
    """Waveform (batch, time) -> fused frames (batch, frames, dim), as many as the encoder gives."""

    def __init__(
        self, ssl: SSLStream, sinc: SincStream, dim: int = 144, se_reduction: int = 16, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.ssl, self.sinc = ssl, sinc
        self.fusion = SEFusion(ssl.dim, sinc.dim, dim, se_reduction, dropout)
        self.dim, self.min_samples = dim, max(ssl.min_samples, sinc.min_samples)

    @property
    def is_frozen(self) -> bool:
        """Whether the encoder's states may be kept; the sinc stream always runs."""
        return self.ssl.is_frozen

    def encode(self, wave_bt: Tensor) -> Tensor:
        """Waveform -> the encoder's states."""
        return self.ssl.encode(wave_bt)

    def encoder_name(self) -> str:
        """Return a name for the encoder's weights and the states in use."""
        return self.ssl.encoder_name()

    def forward(self, wave_bt: Tensor, states: Tensor | None = None) -> Tensor:
        """Fuse the streams; `states` are the encoder's, when they were computed before."""
        ssl_btd = self.ssl(wave_bt) if states is None else self.ssl(wave_bt, states)
        return self.fusion(ssl_btd, self.sinc(wave_bt))
