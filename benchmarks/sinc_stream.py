"""The pooled sinc bank as one matrix product against conv1d, magnitude and max-pooling, and the encoder's layout.

    python benchmarks/sinc_stream.py --batch 4 --threads 2

64,600 samples an utterance, the sides alternating in one process, medians of wall and CPU time an utterance.
Exit code 1 when the two sides differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiolab.tasks.asvspoof.sinc import PooledSincBank, SincStream, band_pass_filters

NUM_SAMPLES = 64_600


def alternate(sides: dict[str, Callable[[], object]], repeats: int, sync: Callable[[], None]) -> dict[str, list[float]]:
    """[wall, CPU] median milliseconds of each side, the sides taking turns after one untimed turn each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            sync()
            wall, cpu = time.perf_counter(), time.process_time()
            side()
            sync()
            if turn:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: [1e3 * statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()
    }


def show(title: str, times: dict[str, list[float]], batch: int) -> None:
    """One line a side, and the ratio of the first to each."""
    print(f"{title:44}{'wall, ms':>10}{'CPU, ms':>10}{'ratio':>14}")
    first = next(iter(times.values()))
    for name, (wall, cpu) in times.items():
        print(f"  {name:42}{wall / batch:10.2f}{cpu / batch:10.2f}{first[0] / wall:7.2f}{first[1] / cpu:7.2f}")


def main() -> int:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wave_bt = 0.1 * torch.randn(options.batch, NUM_SAMPLES, device=device)
    filters = torch.tensor(band_pass_filters(70, 129, 16000), dtype=torch.float32, device=device)[:, None]
    bank = PooledSincBank(70, 129, 16000).to(device)

    @torch.no_grad()
    def convolution() -> Tensor:
        return F.max_pool2d(F.conv1d(wave_bt[:, None], filters).abs(), 3)

    print(f"batch {options.batch}, {options.threads} threads, {device}; milliseconds an utterance")
    sides = {"conv1d, |.|, max_pool2d": convolution, "PooledSincBank": lambda: bank(wave_bt)}
    show("bank, |.| and pooling", alternate(sides, options.repeats, sync), options.batch)

    stream = SincStream().to(device)
    pooled = F.selu(bank(wave_bt)[:, None])

    def encode(layout: torch.memory_format) -> None:
        features: Tensor = nn.Sequential(*stream.blocks)(pooled.to(memory_format=layout))
        features.square().mean().backward()

    layouts = {"contiguous": torch.contiguous_format, "channels last (ours)": torch.channels_last}
    sides = {name: lambda layout=layout: encode(layout) for name, layout in layouts.items()}
    show("residual encoder, forward + backward", alternate(sides, 2, sync), options.batch)

    ours, reference = bank(wave_bt), convolution()
    worst = float((ours - reference).abs().max() / reference.max())
    print(f"largest relative difference of the bank: {worst:.1e} (tolerance 1e-05)")
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
