"""Long recordings and streams: real-time factor of chunks against a whole pass, memory by length, latency of streams.

    python benchmarks/separation_stream.py --size 128,64,128,64,6,2 --minutes 1 5 --threads 1

`--size` is N,B,H,Sc,X,R of a Conv-TasNet of two talkers with random weights (default the paper's). The real-time factor
(RTF) is CPU seconds for one second of audio. Each memory figure is the peak of a child process, less that of a child
which only builds the model. A stream's algorithmic latency is a frame and the wait for a whole step, its computed one
the CPU time of a step.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from audiolab.audio.recording import Recording
from audiolab.audio.writing import WaveWriter
from audiolab.tasks.separation.model import ConvTasNet
from audiolab.tasks.separation.prediction import RecordingSeparation

RATE = 16000
NAMES = ("num_filters", "bottleneck", "hidden", "skip", "blocks", "repeats")


def make_model(size: tuple[int, ...], **options: object) -> ConvTasNet:
    """A Conv-TasNet with seeded random weights."""
    torch.manual_seed(0)
    return ConvTasNet(**dict(zip(NAMES, size, strict=True)), **options).eval()


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise at -20 dBFS: what is in it changes no time."""
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of a call, all threads."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def measure(job: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """Return CPU seconds and peak memory in MiB of a child process that does a job."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue, job, arguments))
    child.start()
    found = queue.get()
    child.join()
    return found


def _child(queue: multiprocessing.Queue, job: Callable[..., None], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(arguments[0])
    seconds = cpu_seconds(lambda: job(*arguments[1:]))
    queue.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def only_model(size: tuple[int, ...], path: Path) -> None:
    """Build the model and run it on a moment."""
    RecordingSeparation(make_model(size), RATE).talkers(noise(0.1), RATE)


def whole(size: tuple[int, ...], path: Path) -> None:
    """One pass over everything."""
    with torch.inference_mode():
        make_model(size)(torch.from_numpy(Recording(path).read(RATE))[None])


def chunked(size: tuple[int, ...], path: Path) -> None:
    """What predict does."""
    with tempfile.TemporaryDirectory() as folder:
        applied = RecordingSeparation(make_model(size), RATE)
        applied.predict(Recording(path), Path(folder) / "scratch", "float", plots=False)


def compare_chunks(size: tuple[int, ...], minutes: list[float], whole_up_to: float, threads: int) -> None:
    """RTF and memory of chunks and of one pass, by length."""
    print(f"{'minutes':>8}{'RTF chunks':>12}{'RTF whole':>12}{'MiB chunks':>12}{'MiB whole':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for length in minutes:
            path = Path(folder) / "noise.wav"
            with WaveWriter(path, RATE, round(length * 60 * RATE)) as writer:
                for second in range(round(length * 60)):
                    writer.write(noise(1, second))
            base_s, base_mib = measure(only_model, threads, size, path)
            jobs = [chunked, whole] if length <= whole_up_to else [chunked]
            found = [measure(job, threads, size, path) for job in jobs]
            rtf = [f"{(seconds - base_s) / (length * 60):12.4f}" for seconds, _ in found]
            mib = [f"{peak - base_mib:12.0f}" for _, peak in found]
            missing = ["           -"] * (2 - len(jobs))
            print(f"{length:8.1f}{''.join(rtf + missing)}{''.join(mib + missing)}")


def compare_steps(size: tuple[int, ...], steps_ms: list[float], seconds: float) -> float:
    """Latency and RTF of the causal model's stream by step; returns the largest difference to the whole pass."""
    model = make_model(size, norm="cLN", causal=True)
    wave = torch.from_numpy(noise(seconds))[None]
    offline, worst = None, 0.0

    def pass_over() -> None:
        nonlocal offline
        with torch.inference_mode():
            offline = model(wave)

    pass_over()
    print(f"causal, whole pass: RTF {cpu_seconds(pass_over) / seconds:.4f}")
    print(f"{'step, ms':>9}{'algorithmic, ms':>17}{'a step, ms':>12}{'95 %, ms':>10}{'RTF':>8}{'to offline':>12}")
    for step_ms in steps_ms:
        stream, size_samples, times, parts = model.stream(), round(step_ms * RATE / 1000), [], []
        for start in range(0, wave.shape[1], size_samples):
            piece = wave[:, start : start + size_samples]
            times.append(cpu_seconds(lambda piece=piece, stream=stream, parts=parts: parts.append(stream.step(piece))))
        latency_ms = 1000 * (stream.latency_samples + size_samples - 1) / RATE
        parts.append(stream.flush())
        difference = float((torch.cat(parts, -1) - offline).abs().max() / offline.abs().max())
        worst = max(worst, difference)
        middle, high = 1000 * statistics.median(times), 1000 * float(np.quantile(times, 0.95))
        print(
            f"{step_ms:9.1f}{latency_ms:17.2f}{middle:12.2f}{high:10.2f}{sum(times) / seconds:8.3f}{difference:12.1e}"
        )
    return worst


def main() -> int:
    """Run and print the tables; exit code 1 when a stream differs from the whole pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="512,128,512,128,8,3", help="N,B,H,Sc,X,R")
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.5, 2.0, 10.0])
    parser.add_argument("--whole-up-to", type=float, default=2.0, help="minutes that are also separated in one pass")
    parser.add_argument("--steps-ms", type=float, nargs="+", default=[2.0, 10.0, 40.0, 160.0])
    parser.add_argument("--stream-s", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = tuple(map(int, options.size.split(",")))
    parameters = sum(parameter.numel() for parameter in make_model(size).parameters())
    print(f"N,B,H,Sc,X,R = {options.size}: {parameters:,} parameters, {options.threads} threads, {RATE} Hz")
    compare_chunks(size, options.minutes, options.whole_up_to, options.threads)
    worst = compare_steps(size, options.steps_ms, options.stream_s)
    return int(worst > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
