"""Real speech for tests of signal processing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile as sf


def la_mini_speech(la_mini: Path, num_samples: int) -> np.ndarray:
    """The first `num_samples` of some training utterances one after the other, 16 kHz, peak 0.7, float32."""
    files = sorted((la_mini / "LA/ASVspoof2019_LA_train/flac").glob("*.flac"))[::90]
    speech = np.concatenate([sf.read(file, dtype="float32")[0] for file in files])[:num_samples]
    assert len(speech) == num_samples
    return 0.7 * speech / np.abs(speech).max()
