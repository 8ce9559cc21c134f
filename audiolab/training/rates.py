"""Rates of training, from what each process counted, and what to say when they are held up by data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audiolab.training.time_left import in_words

WORTH_SAYING_S = 60.0  # waiting for less than that in all is nobody's trouble


@dataclass
class Tally:
    """What one process did in a stretch of training: utterances, seconds of audio, seconds waited and spent in all."""

    utterances: float = 0.0
    audio_s: float = 0.0
    waited_s: float = 0.0
    spent_s: float = 0.0
    batches: float = 0.0

    def add(self, other: Tally) -> None:
        """Add a batch, or another stretch."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def rates(tallies: Sequence[Tally]) -> dict[str, float]:
    """Return the rates of a stretch from the tallies of all processes, which went through it together.

    `data_wait_percent` is that of the process that waits longest: the others wait for its gradients.

    >>> rates([Tally(60, 180.0, 1.0, 10.0), Tally(40, 180.0, 4.0, 10.0)])
    {'utterances_per_s': 10.0, 'audio_hours_per_hour': 36.0, 'data_wait_percent': 40.0}
    """
    spent_s = max(max(tally.spent_s for tally in tallies), 1e-9)
    return {
        "utterances_per_s": sum(tally.utterances for tally in tallies) / spent_s,
        "audio_hours_per_hour": sum(tally.audio_s for tally in tallies) / spent_s,
        "data_wait_percent": 100 * max(tally.waited_s for tally in tallies) / spent_s,
    }


def wait_advice(
    data_wait_percent: float, limit_percent: float, left_s: float | None, options: Sequence[str]
) -> str | None:
    """Say in a sentence that training waits for its data, and which `options` may help; None where it does not matter.

    >>> wait_advice(35.0, 20.0, left_s=7200.0, options=["data.num_workers=4"])
    'training waits for its data 35 % of the time, which will cost 42 min more: try data.num_workers=4'
    """
    lost_s = (left_s or 0.0) * data_wait_percent / 100
    if data_wait_percent <= limit_percent or lost_s < WORTH_SAYING_S:
        return None
    remedy = f"try {' or '.join(options)}" if options else "a faster disk would help, or less work for the processors"
    return (
        f"training waits for its data {data_wait_percent:.0f} % of the time, which will cost {in_words(lost_s)} more: "
        f"{remedy}"
    )
