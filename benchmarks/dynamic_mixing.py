"""Time of a training item on one thread: mixed anew, listed, read from disk; and of ways to change a source's speed.

    python benchmarks/dynamic_mixing.py --root ../shared/data/mix_mini

CPU milliseconds an item of 2 s at 16 kHz (mean of --items, files read once before). The ways to change the speed of
2 s by a drawn factor: soxr at its qualities (any factor), scipy's polyphase filter (factors of whole numbers up to 20).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import scipy.signal
import soxr

from audiolab import build, config

VARIANTS = {
    "listed mixture": ["data.dynamic.p=0"],
    "dynamic": ["data.dynamic.speed=[1,1]"],
    "dynamic, speed": ["data.dynamic.speed=[0.9,1.1]"],
    "dynamic, speed, 3 talkers": ["data.dynamic.speed=[0.9,1.1]", "data.num_speakers=3"],
    "dynamic, speed, equaliser": ["data.dynamic.speed=[0.9,1.1]", "data.dynamic.equalizer_db=4"],
    "dynamic, speed, room": ["data.dynamic.speed=[0.9,1.1]", "data.dynamic.reverb_p=1"],
    "listed mixture, from disk": ["data.dynamic.p=0", "data.in_memory=false"],
    "dynamic, speed, from disk": ["data.dynamic.speed=[0.9,1.1]", "data.in_memory=false"],
}


def milliseconds(step: Callable[[int], object], num: int) -> float:
    """CPU milliseconds of one call of `step`, after as many calls that do not count."""
    for number in range(num):
        step(number)
    started_s = time.process_time()
    for number in range(num):
        step(number)
    return 1000 * (time.process_time() - started_s) / num


def main() -> None:
    """Print one line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of mix_mini")
    parser.add_argument("--items", type=int, default=300)
    given = parser.parse_args()
    for name, options in VARIANTS.items():
        options = ["task=separation", "data=separation/mix_mini", f"data.root={given.root}", *options]
        data = build.build(config.compose_run(options, "benchmark")["data"], seed=0)
        train = data.utterances("train")
        for index in range(len(train)):  # every file is in memory, or in the system's cache
            train[(0, index)]
        spent_ms = milliseconds(lambda number, train=train: train[(1, number % len(train))], given.items)
        print(f"{name:32s} {spent_ms:6.2f} ms an item")
    generator = np.random.default_rng(0)
    factors = generator.uniform(0.9, 1.1, given.items)
    wave = generator.standard_normal(36000).astype(np.float32)
    for quality in ("HQ", "MQ", "LQ"):

        def stretch(number: int, quality: str = quality) -> np.ndarray:
            return soxr.resample(wave[: round(32000 * factors[number])], factors[number], 1.0, quality=quality)

        print(f"{f'soxr {quality}':32s} {milliseconds(stretch, given.items):6.2f} ms a source")

    def polyphase(number: int) -> np.ndarray:
        factor = Fraction(factors[number]).limit_denominator(20)
        return scipy.signal.resample_poly(wave[: round(32000 * factors[number])], factor.denominator, factor.numerator)

    print(f"{'scipy polyphase':32s} {milliseconds(polyphase, given.items):6.2f} ms a source")


if __name__ == "__main__":
    main()
