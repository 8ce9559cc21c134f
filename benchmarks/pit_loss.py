"""The PIT SI-SDR loss, forward and backward, against torchmetrics' and asteroid's, for 2 to 5 speakers.

    python benchmarks/pit_loss.py --packages <folder that holds torchmetrics, lightning_utilities and asteroid>

16 utterances of 4 s at 16 kHz; the sides take turns in one process, medians of CPU time. torchmetrics compares
speakers one by one (`mode="speaker-wise"`), asteroid all pairs (`PITLossWrapper(pairwise_neg_sisdr)`). Losses and
gradients are compared first: exit code 1 when they differ, or when at four speakers ours takes more than a third of
torchmetrics' or a sixth of asteroid's time.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from sinc_stream import alternate
from torch import Tensor

from audiolab.tasks.separation.losses import SISDRLoss

MOST = {"torchmetrics": 1 / 3, "asteroid": 1 / 6}  # of their time at four speakers
Loss = Callable[[Tensor, Tensor], Tensor]


def published(packages: Path) -> dict[str, Loss]:
    """The losses of the public packages."""
    sys.path.insert(0, str(packages))
    asteroid = types.ModuleType("asteroid")  # its losses alone: the rest asks for packages that are not needed
    asteroid.__path__ = [str(packages / "asteroid")]
    losses = types.ModuleType("asteroid.losses")
    losses.__path__ = [str(packages / "asteroid" / "losses")]
    sys.modules |= {"asteroid": asteroid, "asteroid.losses": losses}
    from asteroid.losses.pit_wrapper import PITLossWrapper
    from asteroid.losses.sdr import pairwise_neg_sisdr
    from torchmetrics.functional.audio import permutation_invariant_training
    from torchmetrics.functional.audio import scale_invariant_signal_noise_ratio as si_snr

    return {
        "torchmetrics": lambda e, s: -permutation_invariant_training(e, s, si_snr, mode="speaker-wise")[0].mean(),
        "asteroid": PITLossWrapper(pairwise_neg_sisdr, pit_from="pw_mtx"),
    }


def signals(num_items: int, num_speakers: int, num_samples: int) -> tuple[Tensor, Tensor]:
    """Estimates at about 10 dB in another order, and sources."""
    generator = torch.Generator().manual_seed(num_speakers)
    sources = torch.randn(num_items, num_speakers, num_samples, generator=generator)
    noise = torch.randn(sources.shape, generator=generator)
    return (sources.roll(1, 1) + 0.3 * noise).requires_grad_(), sources


def step(loss: Loss, estimate: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward; returns value and gradient."""
    estimate.grad = None
    value = loss(estimate, sources)
    value.backward()
    return value.detach(), estimate.grad


def main() -> int:
    """Compare, then print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the public packages")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    criterion = SISDRLoss(soft_cap_db=80.0, zero_mean=True, silent_references="leave_out")
    sides: dict[str, Loss] = {"audiolab": lambda e, s: criterion(e, s)[0], **published(options.packages)}
    print(f"{'speakers':10}" + "".join(f"{name + ', CPU ms':>22}" for name in sides) + f"{'ours / theirs':>22}")
    fine = True
    for num_speakers in (2, 3, 4, 5):
        pair = signals(options.batch, num_speakers, round(options.seconds * 16_000))
        value, gradient = step(sides["audiolab"], *pair)
        for name, loss in sides.items():
            other, other_gradient = step(loss, *pair)
            far = (gradient - other_gradient).norm() / gradient.norm()
            if abs(value - other) > 1e-3 or far > 1e-3:
                print(f"{name}: loss {other:.4f} against {value:.4f} dB, gradients differ by {far:.1e}")
                fine = False
        steps = {name: partial(step, loss, *pair) for name, loss in sides.items()}
        medians = alternate(steps, options.repeats, bool)
        cpu_ms = {name: cpu for name, (_, cpu) in medians.items()}
        ratios = {name: cpu_ms["audiolab"] / cpu_ms[name] for name in MOST}
        shown = "".join(f"{cpu:22.1f}" for cpu in cpu_ms.values())
        print(f"{num_speakers:<10}{shown}{'  '.join(f'{ratio:.3f}' for ratio in ratios.values()):>22}")
        fine &= num_speakers != 4 or all(ratios[name] <= most for name, most in MOST.items())
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
