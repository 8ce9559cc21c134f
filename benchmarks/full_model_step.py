"""One training step of the true-size model on this machine: seconds and peak memory, random weights.

    python benchmarks/full_model_step.py [--variant phase4|lora|frozen] [--batch 1] [--no-checkpointing]

The model is `model=asvspoof/dual_stream_se_mamba` (317,119,070 parameters) without its pretrained weights; a step is
forward, backward, clipping and AdamW on 64,600 samples. The parameter counts are printed beside it.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from audiolab import assemble, config
from audiolab.build import build

VARIANTS = {
    "phase4": [],
    "lora": [
        "model.front_end.ssl.freeze_layers=all",
        "model.front_end.ssl.lora={r: 8, alpha: 32, dropout: 0.1, targets: [q_proj, v_proj]}",
    ],
    "frozen": ["model.front_end.ssl.freeze_layers=all", "model.front_end.ssl.mask_time_prob=0.0"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="phase4")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="the first, which allocates, is not counted")
    parser.add_argument("--no-checkpointing", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = [
        "task=asvspoof",
        "model=asvspoof/dual_stream_se_mamba",
        "model.front_end.ssl.pretrained=null",
        f"model.front_end.ssl.gradient_checkpointing={not arguments.no_checkpointing}",
        *VARIANTS[arguments.variant],
    ]
    composed = config.compose_run(options, "step")
    assemble.check(composed)
    before_mib = _peak_mib(device)
    task = assemble.build_task(composed).to(device).train()
    total = sum(p.numel() for p in task.model.parameters())
    trainable = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    threads = torch.get_num_threads()
    print(f"{arguments.variant}: {total:,} parameters, {trainable:,} trainable; {device}, {threads} CPU threads")
    optimizer, _ = build(composed["optimizer"], schedule=build(composed["schedule"])).build(task, total_steps=100)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "wave": (0.1 * torch.randn(arguments.batch, 64_600, generator=generator)).to(device),
        "label": torch.arange(arguments.batch, device=device) % 2,
    }
    seconds = []
    for _ in range(arguments.steps):
        started_s = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            loss, _ = task.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        loss_value = float(loss.detach())
        seconds.append(time.perf_counter() - started_s)
        print(f"  step {len(seconds)}: loss {loss_value:.4f}, {seconds[-1]:.2f} s")
    print(
        f"batch {arguments.batch}: {min(seconds[1:] or seconds):.2f} s a step, peak {_peak_mib(device):,.0f} MiB "
        f"({before_mib:,.0f} MiB of it before the model was built)"
    )


def _peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # KiB on Linux


if __name__ == "__main__":
    main()
