"""Where the levels of talkers in their mixtures are divided: for tables of scores, and for what a check tells."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

SNR_EDGES_DB = (-10.0, -5.0, -2.5, 0.0, 2.5, 5.0, 10.0)


def bin_names(edges: Sequence[float]) -> list[str]:
    """Return the names of the bins between edges, and of those below and above them.

    >>> bin_names((-2.5, 0.0, 5.0))
    ['below -2.5', '-2.5 to 0', '0 to 5', 'from 5']
    """
    texts = [f"{edge:g}" for edge in edges]
    return [f"below {texts[0]}", *(f"{low} to {high}" for low, high in pairwise(texts)), f"from {texts[-1]}"]
