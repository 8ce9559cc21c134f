"""Options that have to lie in a range."""

from __future__ import annotations

import math

from audiolab.errors import InputError


def check_range(
    option: str, value: float, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> None:
    """Raise InputError unless `least <= value <= most` and `value > above`.

    >>> check_range("callbacks.throughput.wait_percent", 200, least=0, most=100)
    Traceback (most recent call last):
    audiolab.errors.InputError: callbacks.throughput.wait_percent=200 does not fit: give a number from 0 to 100
    >>> check_range("callbacks.health.explosion_factor", 1.0, above=1)
    Traceback (most recent call last):
    audiolab.errors.InputError: callbacks.health.explosion_factor=1.0 does not fit: give a number above 1
    """
    if least <= value <= most and value > above:
        return
    first = f"above {above:g}" if above > -math.inf else f"from {least:g}"
    last = f" to {most:g}" if most < math.inf else "" if above > -math.inf else " up"
    raise InputError(f"{option}={value} does not fit: give a number {first}{last}")
