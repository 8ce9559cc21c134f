"""The shared Mamba against the slow path of `transformers`' MambaMixer: same shape, same weights, same numbers.

    python benchmarks/mamba.py                      (batch 8, time 500, channel 256, two threads: four minutes)
    python benchmarks/mamba.py --batch 512 --time 40 --channels 24       (many short sequences, as in separation)
    python benchmarks/mamba.py --device cuda --threads 8

A third side is the same layer with the recurrence written as a plain loop in autograd: what the hand-written backward
and the cutting of time gain over the obvious code. The sides alternate in one process; medians of wall time and of CPU
time (all threads; it is what counts on a shared machine). "kept" is what autograd keeps for the backward. Exit code 1
when the outputs or the gradients differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from audiolab.nn import mamba as mamba_module
from audiolab.nn.mamba import Mamba, scan_backend

TOLERANCE = 1e-5  # relative to the largest value, CPU


def plain_loop(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence, step by step, in autograd; same contract as `audiolab.nn.selective_scan.selective_scan`."""
    state = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for x_t, delta_t, B_t, C_t in zip(*(tensor.unbind(1) for tensor in (x, delta, B, C)), strict=True):
        state = torch.exp(delta_t[..., None] * A) * state + (delta_t * x_t)[..., None] * B_t[:, None]
        outputs.append((state @ C_t[..., None])[..., 0])
    return torch.stack(outputs, 1), state


class PlainMamba(Mamba):
    """The same layer over the plain loop."""

    def forward(self, features_btd: Tensor) -> Tensor:
        """Run whole sequences."""
        ours = mamba_module.selective_scan, mamba_module.by_hand
        mamba_module.selective_scan, mamba_module.by_hand = plain_loop, lambda tensor: False
        try:
            return super().forward(features_btd)
        finally:
            mamba_module.selective_scan, mamba_module.by_hand = ours


def kept_megabytes(layer: nn.Module, x: Tensor) -> float:
    """What autograd keeps for the backward, every storage once."""
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = layer(x)
    del y
    return sum(storages.values()) / 2**20


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


def main() -> int:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--time", type=int, default=500)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="timed turns of the training pass")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    config = MambaConfig(
        hidden_size=options.channels, num_hidden_layers=1, use_mambapy=False, use_associative_scan=False
    )
    layers: dict[str, nn.Module] = {
        "transformers slow path": MambaMixer(config, layer_idx=0).to(device),
        "plain loop": PlainMamba(options.channels).to(device),
        "audiolab": Mamba(options.channels).to(device),
    }
    weights = layers["audiolab"].state_dict()
    for layer in layers.values():
        layer.load_state_dict(weights, strict=True)
    x = torch.randn(options.batch, options.time, options.channels, device=device, requires_grad=True)
    weight = torch.randn_like(x)
    results: dict[str, tuple[Tensor, ...]] = {}

    def infer(layer: nn.Module) -> None:
        with torch.no_grad():
            layer(x)

    def train(name: str) -> None:
        y = layers[name](x)
        results[name] = (y.detach(), *torch.autograd.grad((y * weight).sum(), [x, *layers[name].parameters()]))

    kept = {name: kept_megabytes(layer, x) for name, layer in layers.items()}
    forward = alternate({name: lambda layer=layer: infer(layer) for name, layer in layers.items()}, 9, sync)
    both = alternate({name: lambda name=name: train(name) for name in layers}, options.repeats, sync)

    shape = (options.batch, options.time, options.channels)
    print(f"(batch, time, channel) {shape}, {options.threads} threads, {device}; audiolab runs {scan_backend(device)}")
    print(f"{'':24}{'forward, ms':>22}{'forward + backward, ms':>26}{'ratio':>16}{'kept, MB':>10}")
    print(f"{'':24}{'wall':>11}{'CPU':>11}{'wall':>13}{'CPU':>13}{'wall':>8}{'CPU':>8}")
    base = both["transformers slow path"]
    for name in layers:
        ratios = [slow / ours for slow, ours in zip(base, both[name], strict=True)]
        print(
            f"{name:24}{forward[name][0]:11.1f}{forward[name][1]:11.1f}{both[name][0]:13.1f}{both[name][1]:13.1f}"
            f"{ratios[0]:8.1f}{ratios[1]:8.1f}{kept[name]:10.1f}"
        )
    # results hold the output, the gradient of the input, then the parameters' in each layer's own order
    named = {
        key: dict(zip(("output", "input", *dict(layer.named_parameters())), results[key], strict=True))
        for key, layer in layers.items()
    }
    worst = max(
        float((named["audiolab"][name] - value).abs().max() / value.abs().max())
        for key in ("transformers slow path", "plain loop")
        for name, value in named[key].items()
    )
    print(f"largest relative difference of output and gradients: {worst:.1e} (tolerance {TOLERANCE:.0e})")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
