"""How long training will still take, from what the latest epochs took."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import lightning as L

UNITS_S = (("s", 1), ("min", 60), ("h", 3600), ("days", 86400))


def time_left_s(
    batch_s: Sequence[float], validation_s: Sequence[float], num_batches: int, num_validations: int
) -> float | None:
    """Return the seconds for so many batches and validations, each as long as the median of the latest.

    None where no batch has been timed. A validation that was never timed counts nothing.

    >>> time_left_s([0.5, 0.4, 9.0], [10.0], num_batches=100, num_validations=2)
    70.0
    """
    if not batch_s:
        return None
    return num_batches * median(batch_s) + num_validations * (median(validation_s) if validation_s else 0.0)


def work_left(trainer: L.Trainer, done: int) -> tuple[int, int] | None:
    """Return the batches and validations to come when `done` batches of the current epoch are done.

    None where nobody can know: epochs or batches without a limit.
    """
    epochs, an_epoch, every = trainer.max_epochs, trainer.num_training_batches, trainer.check_val_every_n_epoch
    if epochs is None or epochs < 0 or an_epoch == float("inf"):
        return None
    batches = max(0, (epochs - trainer.current_epoch) * int(an_epoch) - done)
    if trainer.max_steps >= 0:
        batches = min(batches, (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
    if not trainer.enable_validation or not every:
        return batches, 0
    at_end = trainer.current_epoch + (batches + done) // int(an_epoch)
    first = trainer.current_epoch + (done >= an_epoch)  # at an epoch's end its own validation has been
    return batches, at_end // every - first // every


def in_words(seconds: float) -> str:
    """Return a duration in its own unit, two digits of it.

    >>> [in_words(seconds) for seconds in (0.2, 48, 250, 9500, 600_000)]
    ['1 s', '48 s', '4 min', '2.6 h', '6.9 days']
    """
    name, unit_s = [unit for unit in UNITS_S if unit[1] <= max(1.0, seconds)][-1]
    value = seconds / unit_s
    return f"{value:.1f} {name}" if unit_s >= 3600 and value < 10 else f"{max(1, round(value))} {name}"
