"""AASIST against its public code: equal outputs with the published weights, and the time of a training step.

    python benchmarks/aasist.py --checkout <clone of github.com/clovaai/aasist> --ssl-checkout <.../SSL_Anti-spoofing>

Equality in eval mode on real recordings of la_mini, 64,600 samples each (for the back end on random frames of the
encoder's shape, random weights); then forward and backward in training mode, the sides alternating in one process,
medians an utterance. Exit code 1 when the sides differ by more than 1e-5 of the largest output.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import soundfile
import torch
from sinc_stream import NUM_SAMPLES, alternate, show
from torch import Tensor, nn

from audiolab.tasks.asvspoof.aasist import AASIST
from audiolab.tasks.asvspoof.aasist_backend import AASISTBackEnd
from audiolab.tasks.asvspoof.aasist_weights import state_from_official
from audiolab.tasks.asvspoof.sinc import SincStream

SSL_DIM, SSL_FRAMES = 1024, 201  # of XLS-R 300M on 64,600 samples
TOLERANCE = 1e-5


def module_from(path: Path) -> types.ModuleType:
    """Import one file of a checkout, with its folder's name kept out of sys.path."""
    spec = importlib.util.spec_from_file_location(f"public_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recordings(root: Path, num: int) -> Tensor:
    """The first files of la_mini's dev set, repeated to 64,600 samples."""
    files = sorted((root / "LA" / "ASVspoof2019_LA_dev" / "flac").glob("*.flac"))[:num]
    waves = [np.resize(soundfile.read(file, dtype="float32")[0], NUM_SAMPLES) for file in files]
    return torch.from_numpy(np.stack(waves))


def published(checkout: Path, name: str) -> tuple[nn.Module, AASIST]:
    """The public model and ours, both with the published weights `name`.pth."""
    options = json.loads((checkout / "config" / f"{name}.conf").read_text())["model_config"]
    weights = checkout / "models" / "weights" / f"{name}.pth"
    public = module_from(checkout / "models" / "AASIST.py").Model(options)
    public.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    first, second, third, fourth = options["filts"][1:]
    sinc = SincStream(
        options["filts"][0],
        channels=[first[1], second[1], third[1], *3 * [fourth[1]]],
        max_masked_filters=0,
        pre_activation=False,
    )
    graph_dim, stack_dim = options["gat_dims"]
    ratios, temperatures = options["pool_ratios"][:3], options["temperatures"][:3]
    ours = AASIST(sinc, graph_dim, stack_dim, ratios, temperatures, pretrained=str(weights))
    return public, ours


def ssl_back_end(checkout: Path) -> tuple[nn.Module, nn.Module]:
    """The public XLSR + AASIST without its encoder, and ours with its random weights; both frames -> logits."""

    class NoEncoder(nn.Module):
        def __init__(self, device: str) -> None:
            super().__init__()
            self.out_dim = SSL_DIM

        def extract_feat(self, frames_btd: Tensor) -> Tensor:
            return frames_btd

    sys.modules.setdefault("fairseq", types.ModuleType("fairseq"))
    code = module_from(checkout / "model.py")
    code.SSLModel = NoEncoder
    public = code.Model(None, "cpu")
    for norm in public.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    ours = nn.Sequential(AASISTBackEnd(SSL_DIM), nn.Dropout(0.5), nn.Linear(160, 2))
    state = state_from_official(public.state_dict(), encoder="")
    names = {name: f"2.{name[11:]}" if name.startswith("classifier.") else f"0.{name}" for name in state}
    ours.load_state_dict({names[name]: value for name, value in state.items()}, strict=True)
    return public, ours


def logits_of(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """The public AASIST returns the embedding too."""
    return output[1] if isinstance(output, tuple) else output


def compare(title: str, public: nn.Module, ours: nn.Module, batch: Tensor, repeats: int) -> float:
    """Print equality and times; return the largest relative difference of the logits."""
    public.eval(), ours.eval()
    with torch.no_grad():
        expected, found = logits_of(public(batch)), ours(batch)
    worst = float((found - expected).abs().max() / expected.abs().max())
    sizes = [sum(p.numel() for p in side.parameters()) for side in (public, ours)]
    print(f"{title}: parameters {sizes[0]:,} and {sizes[1]:,}; largest relative difference {worst:.1e}")
    public.train(), ours.train()

    def step(model: nn.Module) -> None:
        logits_of(model(batch)).square().mean().backward()
        model.zero_grad()

    sides = {"public code": lambda: step(public), "ours": lambda: step(ours)}
    show("forward + backward an utterance", alternate(sides, repeats, lambda: None), len(batch))
    return worst


def main() -> int:
    """Compare and time."""
    shared = Path(os.environ.get("AUDIOLAB_SHARED", "../shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--ssl-checkout", type=Path)
    parser.add_argument("--la-mini", type=Path, default=shared / "data" / "la_mini")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    wave_bt = recordings(options.la_mini, options.batch)
    worst = [
        compare(name, *published(options.checkout, name), wave_bt, options.repeats) for name in ("AASIST", "AASIST-L")
    ]
    if options.ssl_checkout is not None:
        frames_btd = torch.randn(options.batch, SSL_FRAMES, SSL_DIM)
        pair = ssl_back_end(options.ssl_checkout)
        worst.append(compare("back end on SSL frames", *pair, frames_btd, options.repeats))
    return int(max(worst) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
