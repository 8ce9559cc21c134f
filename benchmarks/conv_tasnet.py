"""Time and memory of Conv-TasNet beside torchaudio's and asteroid's, each in a process of its own.

    python benchmarks/conv_tasnet.py --torchaudio <folder with torchaudio> --asteroid <folder with asteroid>

Two threads, 2 x 2 s at 16 kHz, N=512 L=16 B=128 H=512 X=8 R=3: a training step (forward, negative SI-SDR, backward,
Adam), then separation without gradients in the paper's and the seed's size. The processes take turns; medians of CPU
seconds (all threads) and wall time, and the peak of resident memory less what the process had before it built its
model. `--compile` adds torch.compile, `--device cuda` runs on the GPU, there also in bfloat16. Without the two folders
only our own variants run. On a machine that is busy with something else, only one thread's CPU seconds mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

SIZES = {
    "paper": {"num_filters": 512, "kernel_size": 16, "stride": 8, "bottleneck": 128, "hidden": 512, "skip": 128},
    "seed": {"num_filters": 512, "kernel_size": 16, "stride": 8, "bottleneck": 128, "hidden": 256, "skip": 128},
}
SIDES = ("asteroid", "torchaudio", "audiolab", "audiolab recompute", "audiolab plain")


def build(side: str, size: dict[str, int]) -> Any:
    """Return the model of that side: (batch, time) -> (batch, speaker, time)."""
    from torch import nn

    if side.startswith("audiolab"):
        from audiolab.tasks.separation.model import ConvTasNet

        model = ConvTasNet(**size, recompute=side.endswith("recompute"))
        for block in model.blocks:
            block.fusable = block.fusable and not side.endswith("plain")
        return model
    if side == "asteroid":
        from asteroid.models import ConvTasNet as Asteroid

        return Asteroid(
            n_src=2, n_filters=size["num_filters"], kernel_size=size["kernel_size"], stride=size["stride"],
            bn_chan=size["bottleneck"], hid_chan=size["hidden"], skip_chan=size["skip"], mask_act="sigmoid",
        )  # fmt: skip
    from torchaudio.models import ConvTasNet as Torchaudio

    class WithChannel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Torchaudio(
                2, size["kernel_size"], size["num_filters"], msk_num_feats=size["bottleneck"],
                msk_num_hidden_feats=size["hidden"],
            )  # fmt: skip

        def forward(self, wave_bt: Any) -> Any:
            return self.model(wave_bt[:, None])

    return WithChannel()


def child(side: str, options: argparse.Namespace) -> None:
    """Do what the lines of standard input ask for, one JSON line each."""
    import torch

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    start_megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    torch.manual_seed(0)
    model = build(side, SIZES[options.size]).to(device)
    run = torch.compile(model) if options.compile else model
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    num_samples = round(options.seconds * options.rate)
    sources_bst = torch.randn(options.batch, 2, num_samples, device=device)
    mixture_bt = sources_bst.sum(1)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.bf16)

    def train() -> None:
        with autocast:
            estimate_bst = run(mixture_bt)
        estimate_bst = estimate_bst.float()
        scale = (estimate_bst * sources_bst).sum(-1, keepdim=True) / sources_bst.square().sum(-1, keepdim=True)
        target_bst = scale * sources_bst
        noise = (estimate_bst - target_bst).square().sum(-1)
        loss = -10 * torch.log10(target_bst.square().sum(-1) / (noise + 1e-8) + 1e-8).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def separate() -> None:
        with torch.inference_mode(), autocast:
            run(mixture_bt)

    for line in sys.stdin:
        if line.strip() == "memory":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - start_megabytes
            if device.type == "cuda":
                peak = torch.cuda.max_memory_allocated() / 2**20
            print(json.dumps(peak), flush=True)
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        {"train": train, "separate": separate}[line.strip()]()
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]), flush=True)


def start(side: str, options: argparse.Namespace, **changes: Any) -> subprocess.Popen[str]:
    """Start the process of one side."""
    flags = {"device": options.device, "threads": options.threads, "batch": options.batch, "rate": options.rate}
    flags |= {"seconds": options.seconds, **changes}
    command = [sys.executable, __file__, "--child", side]
    command += [text for name, value in flags.items() if value is not True for text in (f"--{name}", str(value))]
    command += [f"--{name}" for name, value in flags.items() if value is True]
    folders = [folder for folder in (options.asteroid, options.torchaudio, os.environ.get("PYTHONPATH")) if folder]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(process: subprocess.Popen[str], what: str) -> Any:
    """Have the process do one thing and return its answer."""
    assert process.stdin and process.stdout
    process.stdin.write(what + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        sys.exit(f"{' '.join(process.args)} ended with exit code {process.wait()}: -9 means that memory ran out")
    return json.loads(answer)


def compare(title: str, what: str, processes: dict[str, subprocess.Popen[str]], options: argparse.Namespace) -> None:
    """Let the processes take turns and print the table."""
    times: dict[str, list[Any]] = {name: [] for name in processes}
    for turn in range(options.repeats + options.warmup):
        for name, process in processes.items():
            answer = ask(process, what)
            if turn >= options.warmup:
                times[name].append(answer)
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    peaks = {name: ask(process, "memory") for name, process in processes.items()}
    libraries = [name for name in ("torchaudio", "asteroid") if name in processes]
    print(f"\n{title}")
    heads = "".join(f"{f'CPU / {name}':>18}{f'peak / {name}':>18}" for name in libraries)
    print(f"{'':22}{'CPU, s':>9}{'wall, s':>9}{'x real time':>13}{'peak, MB':>10}{heads}")
    for name, (cpu, wall) in medians.items():
        ratios = "".join(f"{cpu / medians[side][0]:18.2f}{peaks[name] / peaks[side]:18.2f}" for side in libraries)
        fast = options.batch * options.seconds / wall
        print(f"{name:22}{cpu:9.2f}{wall:9.2f}{fast:13.2f}{peaks[name]:10.0f}{ratios}", flush=True)
    for process in processes.values():
        process.stdin.close()
        process.wait()


def main() -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchaudio", metavar="FOLDER", help="where torchaudio is installed")
    parser.add_argument("--asteroid", metavar="FOLDER", help="where asteroid and asteroid_filterbanks are installed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rate", type=int, default=16000, help="samples a second")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--only", choices=("train", "separate"), help="one table alone")
    parser.add_argument("--sides", default=",".join(SIDES), help="which of: " + ", ".join(SIDES))
    parser.add_argument("--size", choices=tuple(SIZES), default="paper", help=argparse.SUPPRESS)
    parser.add_argument("--bf16", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options)
    sides = [side for side in options.sides.split(",") if getattr(options, side, True)]
    variants: dict[str, dict[str, Any]] = {"": {}}
    if options.device == "cuda":
        variants[" bf16"] = {"bf16": True}
    if options.compile:
        variants |= {f"{name} compiled": {**flags, "compile": True} for name, flags in variants.items()}
    shape = f"{options.batch} x {options.seconds:g} s at {options.rate} Hz, {options.device}, {options.threads} threads"
    for what, size in (("train", "paper"), ("separate", "paper"), ("separate", "seed")):
        if options.only in (None, what):
            chosen = sides if what == "train" else [side for side in sides if not side.endswith("recompute")]
            processes = {
                side + name: start(side, options, size=size, **flags)
                for name, flags in variants.items()
                for side in chosen
            }
            title = f"{'training step' if what == 'train' else 'separation'}, {size}'s size, {shape}"
            compare(title, what, processes, options)


if __name__ == "__main__":
    main()
