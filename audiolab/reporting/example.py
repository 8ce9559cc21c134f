"""One utterance to see and hear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Example:
    """`sounds` by name, each (time,) within full scale, and perhaps a picture; `caption` says what is heard."""

    id: str
    caption: str
    sounds: dict[str, np.ndarray]
    sample_rate: int
    figure: Figure | None = None
