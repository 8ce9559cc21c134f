"""RawBoost algorithm 5 (LnL, then ISD) on 64,600 samples: the official code against ours, on one thread.

    python benchmarks/rawboost.py --official <checkout of TakHemlata/RawBoost-antispoofing>

Only its RawBoost.py is loaded (the rest of that project imports librosa). Both sides draw anew for every waveform. The
order of the calls alternates within one process, and medians are compared: of elapsed time and, for a busy machine, of
the processor time of the process. First the convolutive part is run on both sides with the same draws, to show that the
same thing is timed.

The official `randRange` turns an array of one element into an int, a TypeError since NumPy 2.4. So its name in the
loaded module is bound to a function of this file that draws plain floats and ints, which is no slower.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from audiolab.augment.notch import NotchBanks
from audiolab.augment.rawboost import DEFAULT_RANGES, RawBoost, RawBoostParams, apply

NUM_SAMPLES = 64_600
BATCH_SIZE = 32
SAMPLE_RATE = 16_000


class Draws:
    """Replacement of the official `randRange` that remembers what it drew."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self.values: list[float] = []

    def __call__(self, low: float, high: float, integer: int) -> float:
        """A uniform draw, cut to a whole number if `integer`."""
        value = low + (high - low) * self.generator.random()  # low may be above high: gains
        self.values.append(int(value) if integer else value)
        return self.values[-1]


def load_official(folder: Path, draws: Draws) -> ModuleType:
    """RawBoost.py of the checkout, with `draws` in place of its `randRange`."""
    spec = importlib.util.spec_from_file_location("official_rawboost", folder / "RawBoost.py")
    official = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official)
    official.randRange = draws
    return official


def with_defaults(function: Callable[..., np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The official function of a waveform, all other arguments at their defaults (which have the same names)."""
    options = DEFAULT_RANGES | {"fs": SAMPLE_RATE}
    names = list(inspect.signature(function).parameters)[1:]
    arguments = {name: options[name] for name in names}
    return lambda wave: function(wave, **arguments)


def largest_difference(official_lnl: Callable[[np.ndarray], np.ndarray], draws: Draws, wave: np.ndarray) -> float:
    """Between the convolutive noise of the official code and ours in float64, with the same draws."""
    draws.values.clear()
    expected = official_lnl(wave)
    table = np.array(draws.values).reshape(int(DEFAULT_RANGES["N_f"]), -1)
    bands = table[:, :-1].reshape(len(table), -1, 3)
    banks = NotchBanks(bands[..., 0], bands[..., 1], bands[..., 2].astype(np.int64), table[:, -1])
    return np.abs(apply(wave, RawBoostParams(1, len(wave), SAMPLE_RATE, lnl=banks)) - expected).max()


def milliseconds(call: Callable[[], object]) -> np.ndarray:
    """How long one call takes: elapsed time and processor time."""
    start = np.array([time.perf_counter(), time.process_time()])
    call()
    return 1e3 * (np.array([time.perf_counter(), time.process_time()]) - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of TakHemlata/RawBoost-antispoofing")
    parser.add_argument("--repeats", type=int, default=40, help="timed calls of each (default 40)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    draws = Draws(rng)
    official = load_official(options.official, draws)
    official_lnl, official_isd = (
        with_defaults(official.LnL_convolutive_noise),
        with_defaults(official.ISD_additive_noise),
    )
    waves = np.clip(rng.normal(0.0, 0.1, (BATCH_SIZE, NUM_SAMPLES)), -1, 1).astype(np.float32)
    batch, single, generators = torch.from_numpy(waves), torch.from_numpy(waves[:1]), rng.spawn(BATCH_SIZE)
    boost = RawBoost(algo=5, sample_rate=SAMPLE_RATE)

    difference = largest_difference(official_lnl, draws, waves[0].astype(np.float64))
    print(f"LnL with the same draws differs by {difference:.1e} at most.")

    calls: dict[str, tuple[Callable[[], object], int]] = {
        "official": (lambda: official_isd(official_lnl(waves[0])), 1),
        "ours, one waveform": (lambda: boost(single, generators[:1]), 1),
        f"ours, batch of {BATCH_SIZE}": (lambda: boost(batch, generators), BATCH_SIZE),
    }
    times: dict[str, list[np.ndarray]] = {name: [] for name in calls}
    for repeat in range(options.repeats + 2):
        for name, (call, num_waves) in calls.items():
            elapsed = milliseconds(call) / num_waves
            if repeat >= 2:  # the first calls fill caches
                times[name].append(elapsed)

    medians = {name: np.median(elapsed, axis=0) for name, elapsed in times.items()}
    print(f"\nRawBoost algorithm 5, {NUM_SAMPLES} samples, 1 thread, {options.repeats} calls each, alternating")
    print(f"{'per waveform':22}{'elapsed ms':>12}{'ratio':>8}{'processor ms':>15}{'ratio':>8}")
    for name, (elapsed, processor) in medians.items():
        elapsed_ratio, processor_ratio = medians["official"] / (elapsed, processor)
        print(f"{name:22}{elapsed:12.2f}{elapsed_ratio:7.1f}x{processor:15.2f}{processor_ratio:7.1f}x")


if __name__ == "__main__":
    main()
