"""When a training looks wrong: each rule takes plain numbers and returns a sentence, or None while all is well.

A false alarm costs a user's trust in all of them, so every rule asks for several values in a row and compares with
the run's own course, by medians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from statistics import median
from typing import Literal

_LEAST_FALL = 0.02  # share of the loss at the start: less than that over several epochs is no learning
_LEAST_WORSENING = 0.05  # share of the metric
_USUAL_MOVES = 3.0  # with 2, one in twenty runs of 60 validations in plain noise about their best is called overfitting
_RECENT_STEPS = 10
_CLIPPED_SHARE, _CLIPPED_BY = 0.95, 5.0


def robust_slope(values: Sequence[float]) -> float:
    """Return the median of the slopes between all pairs of values, a step apart each (Theil 1950, Sen 1968).

    >>> robust_slope([0.0, 1.0, 2.0, 99.0, 4.0])
    1.0
    """
    slopes = [(b - a) / (j - i) for (i, a), (j, b) in combinations(enumerate(values), 2)]
    return median(slopes) if slopes else 0.0


def loss_not_falling(start: float, losses: Sequence[float], patience: int) -> str | None:
    """Judge the mean training loss of each epoch against `start`, the mean of the first batches.

    It has to be lower than at the start, or on its way down within the last `patience` epochs.

    >>> loss_not_falling(0.7, [0.69, 0.6, 0.5, 0.5, 0.5], patience=5) is None
    True
    >>> print(loss_not_falling(0.693, [0.7, 0.69, 0.7, 0.69, 0.7], patience=5))
    the training loss does not fall: 0.693 in the first batches, 0.7 now, after 5 epochs (median of the last three); \
try optimizer.lr 10 times lower and 3 times higher, and whether labels and audio belong together
    """
    if len(losses) < patience:
        return None
    now, least = median(losses[-3:]), _LEAST_FALL * abs(start)
    falls = -robust_slope(losses[-patience:]) * (patience - 1)
    if now < start - least or falls > least:
        return None
    return (
        f"the training loss does not fall: {start:.4g} in the first batches, {now:.4g} now, after {len(losses)} epochs "
        "(median of the last three); try optimizer.lr 10 times lower and 3 times higher, and whether labels and audio "
        "belong together"
    )


def overfitting(
    metric: str,
    mode: Literal["min", "max"],
    epochs: Sequence[int],
    values: Sequence[float],
    losses: Sequence[float],
    patience: int,
) -> str | None:
    """Judge whether a development metric worsens while the training loss still falls.

    `values` were measured after `epochs` (counted from 0), when the training loss was `losses`. The last `patience`
    values have to be worse than those at the best epoch by more than the metric usually moves from one to the next.

    >>> epochs, losses = range(10), [0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.1, 0.1]
    >>> print(overfitting("dev/eer", "min", epochs, [20, 10, 8, 8.2, 8.5, 9.5, 11, 12, 13, 14], losses, patience=5))
    overfitting since epoch 3: dev/eer was 8 there and worse ever since (12, median of the last 5 values), while the \
training loss fell from 0.5 to 0.1; best.ckpt is of epoch 3: stop here, or try more augmentation, dropout or weight \
decay, a lower rate, or more data
    >>> overfitting("dev/eer", "min", epochs, [20, 10, 8, 8.5, 7.9, 8, 8.6, 8.1, 8.3, 8.4], losses, patience=5) is None
    True
    """
    known = [row for row in zip(epochs, values, losses, strict=True) if math.isfinite(row[1])]
    sign = 1 if mode == "min" else -1
    costs = [sign * value for _, value, _ in known]
    best = min(range(len(costs)), key=costs.__getitem__, default=0)
    if len(costs) - 1 - best < patience:
        return None
    there, now = median(costs[best : best + 3]), median(costs[-patience:])
    usual = median(abs(b - a) for a, b in pairwise(costs))
    if now - there <= max(_USUAL_MOVES * usual, _LEAST_WORSENING * abs(there)) or robust_slope(costs[best:]) <= 0:
        return None
    epoch, value, loss = known[best]
    if known[-1][2] > loss - _LEAST_FALL * abs(loss):
        return None
    return (
        f"overfitting since epoch {epoch + 1}: {metric} was {value:.4g} there and worse ever since ({sign * now:.4g}, "
        f"median of the last {patience} values), while the training loss fell from {loss:.4g} to {known[-1][2]:.4g}; "
        f"best.ckpt is of epoch {epoch + 1}: stop here, or try more augmentation, dropout or weight decay, a lower "
        "rate, or more data"
    )


def metric_not_measured(metric: str, values: Sequence[float]) -> str | None:
    """Judge a development metric that was not finite two times in a row.

    >>> metric_not_measured("dev/eer", [50.0, math.nan, 12.0]) is None
    True
    >>> print(metric_not_measured("dev/eer", [50.0, math.nan, math.nan]))
    dev/eer was not finite in the last two validations, so no epoch can be the best: the model's scores are likely not \
finite or all the same; try a lower optimizer.lr
    """
    if len(values) < 2 or any(math.isfinite(value) for value in values[-2:]):
        return None
    return (
        f"{metric} was not finite in the last two validations, so no epoch can be the best: the model's scores are "
        "likely not finite or all the same; try a lower optimizer.lr"
    )


def metric_constant(metric: str, rows: Sequence[Sequence[float]], patience: int) -> str | None:
    """Judge validations, each a row of all metrics of the set (the monitored one first), that repeat one another.

    A set of few trials gives the same error rate now and then, but not the same costs and rates all together.

    >>> metric_constant("dev/eer", [[6.25, 0.31], [6.25, 0.3], [6.25, 0.3]], patience=3) is None
    True
    >>> print(metric_constant("dev/eer", [[50.0, 1.0]] * 3, patience=3))
    dev/eer is exactly 50 in the last 3 validations, and every other metric of the set repeats itself too: the model \
gives every utterance the same score, or its weights do not change
    """
    last = [list(row) for row in rows[-patience:]]
    if len(last) < patience or any(row != last[0] for row in last) or not math.isfinite(last[0][0]):
        return None
    return (
        f"{metric} is exactly {last[0][0]:.4g} in the last {patience} validations, and every other metric of the set "
        "repeats itself too: the model gives every utterance the same score, or its weights do not change"
    )


def without_gradient(group: str, parameters: Sequence[str], num_steps: int) -> str:
    """Name the parameters of a group that no gradient has reached in the first steps.

    >>> print(without_gradient("rest", ["a.weight", "a.bias"], 20))
    2 trainable parameters of optimiser group rest got no gradient in the first 20 steps (a.weight, a.bias): the loss \
does not depend on them, and several processes (DDP) refuse that; use them or freeze them with requires_grad_(False)
    """
    names = ", ".join(parameters[:3]) + (" ..." if len(parameters) > 3 else "")
    return (
        f"{len(parameters)} trainable parameters of optimiser group {group} got no gradient in the first {num_steps} "
        f"steps ({names}): the loss does not depend on them, and several processes (DDP) refuse that; use them or "
        "freeze them with requires_grad_(False)"
    )


def gradient_zero(group: str, norms: Sequence[float], least_steps: int) -> str | None:
    """Judge a group's gradient norms, one a step, the latest last: exactly 0 for `least_steps` steps.

    >>> gradient_zero("rest", [0.0, 0.1, 0.0], 3) is None
    True
    >>> print(gradient_zero("encoder", [0.0] * 3, 3))
    the gradients of optimiser group encoder were exactly 0 in the last 3 steps: a detached branch, a dead activation \
or a loss that does not reach it; freeze it if that is meant
    """
    if len(norms) < least_steps or any(norms[-least_steps:]):
        return None
    return (
        f"the gradients of optimiser group {group} were exactly 0 in the last {least_steps} steps: a detached branch, "
        "a dead activation or a loss that does not reach it; freeze it if that is meant"
    )


def gradient_explodes(group: str, norms: Sequence[float], early: float, factor: float) -> str | None:
    """Judge a group's gradient norms: the last ten against those before, and against `early`, the largest at the start.

    A single large one is no explosion, nor is one that an untrained network had too.

    >>> calm = [1.0] * 90
    >>> gradient_explodes("rest", [*calm, *[1.0] * 9, 1e6], early=2.0, factor=10.0) is None
    True
    >>> print(gradient_explodes("rest", [*calm, *[50.0] * 10], early=2.0, factor=10.0))
    the gradient norm of optimiser group rest has risen to 50, from 1 before (medians of the last 10 and the 90 steps \
before): training is about to diverge; lower optimizer.lr or set trainer.gradient_clip_val near 1
    """
    before, recent = norms[:-_RECENT_STEPS], norms[-_RECENT_STEPS:]
    if len(before) < 4 * _RECENT_STEPS or median(recent) <= max(factor * median(before), early):
        return None
    return (
        f"the gradient norm of optimiser group {group} has risen to {median(recent):.3g}, from {median(before):.3g} "
        f"before (medians of the last {_RECENT_STEPS} and the {len(before)} steps before): training is about to "
        f"diverge; lower optimizer.lr or set trainer.gradient_clip_val near {_rounded(median(before))}"
    )


def always_clipped(norms: Sequence[float], limit: float, least_steps: int) -> str | None:
    """Judge the norms of the whole gradient against `trainer.gradient_clip_val`.

    Clipping at nearly every step is common; it is said where the norm is usually many times the limit, so that the
    direction of each step is all that is left of the gradient.

    >>> always_clipped([4.0] * 100, limit=3.0, least_steps=100) is None
    True
    >>> print(always_clipped([40.0] * 100, limit=3.0, least_steps=100))
    100 of the last 100 steps were clipped, and the gradient norm is usually 40, far above \
trainer.gradient_clip_val=3: every step has the same length, so raise the limit to about 80 or check the loss for a \
scale of its own
    """
    recent = norms[-least_steps:]
    above = sum(norm > limit for norm in recent)
    if len(recent) < least_steps or above < _CLIPPED_SHARE * least_steps or median(recent) < _CLIPPED_BY * limit:
        return None
    return (
        f"{above} of the last {least_steps} steps were clipped, and the gradient norm is usually {median(recent):.3g}, "
        f"far above trainer.gradient_clip_val={limit:g}: every step has the same length, so raise the limit to about "
        f"{_rounded(2 * median(recent))} or check the loss for a scale of its own"
    )


def weights_not_moving(group: str, ratios: Sequence[float], rate: float, least: float) -> str | None:
    """Judge a group's last five update-to-weight ratios ||change of a step|| / ||weights||, at a rate above 0.

    >>> weights_not_moving("rest", [1e-3, 0.0, 0.0, 0.0, 0.0], 1e-3, 1e-7) is None
    True
    >>> print(weights_not_moving("rest", [0.0] * 5, 1e-3, 1e-7))
    the weights of optimiser group rest hardly move: a step changes them by a share of 0, at a rate of 0.001; raise \
its lr, or check that its gradients are not 0 and that its precision is not too low
    """
    if len(ratios) < 5 or max(ratios[-5:]) >= least:
        return None
    return (
        f"the weights of optimiser group {group} hardly move: a step changes them by a share of "
        f"{median(ratios[-5:]):.2g}, at a rate of {rate:g}; raise its lr, or check that its gradients are not 0 and "
        "that its precision is not too low"
    )


def _rounded(value: float) -> str:
    return f"{float(f'{value:.1g}'):g}"
