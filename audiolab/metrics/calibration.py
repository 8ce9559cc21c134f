"""Scores to log-likelihood ratios: affine calibration of one system, linear fusion of several."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit

from audiolab.errors import InputError
from audiolab.metrics.dcf import log_loss
from audiolab.metrics.det import FloatArray, as_labels, as_scores


@dataclass(frozen=True)
class Calibration:
    """Natural-log likelihood ratio = `weights` . scores + `offset`; plain numbers, so a checkpoint can hold it."""

    weights: tuple[float, ...]
    offset: float

    def __call__(self, scores: ArrayLike) -> FloatArray:
        """LLRs of scores of shape (trials,) for one system or (trials, systems); InputError where they do not fit.

        >>> Calibration(weights=(2.0,), offset=-1.0)([0.0, 1.0])
        array([-1.,  1.])
        """
        systems = _systems(scores)
        if systems.shape[1] != len(self.weights):
            raise InputError(
                f"This calibration was fitted on {len(self.weights)} systems and got scores of {systems.shape[1]}."
            )
        return systems @ np.array(self.weights) + self.offset


def fit_calibration(scores: ArrayLike, is_bonafide: ArrayLike, p_bonafide: float = 0.5) -> Calibration:
    """Prior-weighted logistic regression on development scores (Brümmer and du Preez, 2006).

    `scores` of shape (trials,) are calibrated, of shape (trials, systems) fused. `p_bonafide` is the prior the fit
    serves best: 0.5 minimises Cllr. Targets are smoothed as by Platt (1999), (N + 1) / (N + 2) instead of 1, so that a
    development set without errors still has a finite solution. The fit never sees evaluation scores: call it on dev.

    Raises InputError for non-finite scores, labels that do not match, one class only, or a prior outside 0..1.

    >>> generator = np.random.default_rng(0)
    >>> is_bonafide = np.arange(20_000) < 10_000
    >>> scores = 5 + 3 * generator.normal(np.where(is_bonafide, 1.0, -1.0))
    >>> calibration = fit_calibration(scores, is_bonafide)  # the true LLR is 2 (score - 5) / 3
    >>> round(calibration.weights[0], 2), round(calibration.offset)
    (0.67, -3)
    """
    systems = _systems(scores)
    genuine = as_labels(is_bonafide, len(systems))
    num_bonafide = np.count_nonzero(genuine)
    num_spoof = genuine.size - num_bonafide
    if not (num_bonafide and num_spoof):
        raise InputError("All trials are of one class: a calibration needs bona fide and spoof trials.")
    if not 0 < p_bonafide < 1:
        raise InputError(f"p_bonafide is {p_bonafide}: give a prior between 0 and 1.")

    centre, spread = systems.mean(axis=0), systems.std(axis=0)
    spread[spread == 0] = 1.0
    features = np.column_stack(((systems - centre) / spread, np.ones(genuine.size)))
    target = np.where(genuine, (num_bonafide + 1) / (num_bonafide + 2), 1 / (num_spoof + 2))
    weight = np.where(genuine, p_bonafide / num_bonafide, (1 - p_bonafide) / num_spoof)
    prior_log_odds = math.log(p_bonafide / (1 - p_bonafide))

    def loss_and_gradient(parameters: FloatArray) -> tuple[float, FloatArray]:
        log_odds = features @ parameters + prior_log_odds
        loss = weight @ (target * log_loss(-log_odds) + (1 - target) * log_loss(log_odds))
        return float(loss), features.T @ (weight * (expit(log_odds) - target))

    fit = minimize(loss_and_gradient, np.zeros(features.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-8})
    weights = fit.x[:-1] / spread
    return Calibration(tuple(weights.tolist()), float(fit.x[-1] - weights @ centre))


def _systems(scores: ArrayLike) -> FloatArray:
    array = np.asarray(scores)
    columns = array.T if array.ndim == 2 else [array]
    return np.column_stack([as_scores(column, "trial") for column in columns])
