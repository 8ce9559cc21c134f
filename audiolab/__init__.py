"""audiolab: a PyTorch Lightning + Hydra suite for speech experiments."""

from __future__ import annotations

__version__ = "0.1.0"
