"""How long each codec takes for an utterance of 4 s at 16 kHz, and what that is of a training step.

    python benchmarks/codecs.py
    python benchmarks/codecs.py --model asvspoof/texture --batch-size 32 --p 0.3

One thread; medians of processor time, which a busy machine changes little. The share is that of the codec in (step +
codec) when a share p of the utterances goes through it, the step being forward and backward pass of a model of
conf/model on this machine's CPU. Codecs that run row by row are then timed on a batch in several threads, in elapsed
time: they run without the interpreter's lock, so the gain should be that of the control line, a hash that does too,
and both only show how many cores are free.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from audiolab import assemble, config
from audiolab.augment.codecs import CODECS, FAMILIES, round_trip
from audiolab.errors import InputError

NUM_SAMPLES = 64_600
SAMPLE_RATE = 16_000


def speech_like(num: int, generator: np.random.Generator) -> torch.Tensor:
    """Noise with a falling spectrum in bursts of a syllable's length, peak about 0.5, (num, time)."""
    noise = np.cumsum(generator.normal(size=(num, NUM_SAMPLES)), axis=1)
    noise -= np.apply_along_axis(lambda row: np.convolve(row, np.ones(64) / 64, "same"), 1, noise)
    bursts = np.abs(np.sin(2 * np.pi * 2.0 * np.arange(NUM_SAMPLES) / SAMPLE_RATE))
    wave = noise * bursts
    return torch.from_numpy((0.5 * wave / np.abs(wave).max()).astype(np.float32))


def milliseconds(call: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time) -> float:
    """Median time of one call, after one that fills caches."""
    call()
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append(clock() - start)
    return 1e3 * float(np.median(times))


def step_of(model: str, waves: torch.Tensor) -> Callable[[], None]:
    """Forward and backward pass of a model on a batch."""
    composed = config.compose_run(["task=asvspoof", f"model={model}"], "benchmark")
    task = assemble.build_task(composed).train()
    batch = {"wave": waves, "label": torch.arange(len(waves)) % 2, "id": [str(row) for row in range(len(waves))]}

    def step() -> None:
        task.zero_grad()
        task.loss(batch)[0].backward()

    return step


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="asvspoof/sinc_small", help="model of the training step (sinc_small)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--p", type=float, default=0.5, help="share of utterances that are coded (default 0.5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the second table (default 2)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each (default 5)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    waves = speech_like(options.batch_size, np.random.default_rng(0))
    step_ms = milliseconds(step_of(options.model, waves), options.repeats) / options.batch_size
    print(f"{options.model}: {step_ms:.1f} ms of training step an utterance (batch of {options.batch_size}, CPU)\n")
    print(f"{'codec':18}{'ms':>8}{'share of step':>16}   at p = {options.p}")
    for name in CODECS:
        try:
            coded_ms = milliseconds(lambda name=name: round_trip(waves[0], SAMPLE_RATE, name), options.repeats)
        except InputError as error:
            print(f"{name:18}{'-':>8}   {error}")
            continue
        share = options.p * coded_ms / (step_ms + options.p * coded_ms)
        print(f"{name:18}{coded_ms:8.1f}{100 * share:15.1f}%")

    print(f"\ngain of {options.threads} threads over one, batch of {options.batch_size}")
    buffers = [bytes(20_000_000)] * options.batch_size
    pool = ThreadPoolExecutor(options.threads)
    one = milliseconds(lambda: [hashlib.sha256(buffer).digest() for buffer in buffers], 3, time.perf_counter)
    several = milliseconds(
        lambda: list(pool.map(lambda buffer: hashlib.sha256(buffer).digest(), buffers)), 3, time.perf_counter
    )
    print(f"{'control (sha256)':18}{one / several:8.2f}x")
    for name in (members[0] for members in FAMILIES.values()):
        if CODECS[name].on_array is None:
            continue
        try:
            one, several = (
                milliseconds(lambda name=name, n=n: round_trip(waves, SAMPLE_RATE, name, n), 3, time.perf_counter)
                for n in (1, options.threads)
            )
        except InputError:
            continue
        print(f"{name:18}{one / several:8.2f}x")


if __name__ == "__main__":
    main()
