"""BSS-eval SDR in the best order of the estimates against mir_eval's bss_eval_sources: values, and CPU time a mixture.

    python benchmarks/sdr.py --packages <folder that holds mir_eval> --root <folder of mix_mini>

Mixtures of a test set with two and with three talkers; the estimates are the sources with noise and with a part of the
others. mir_eval computes SIR and SAR as well and cannot leave them out. Both are timed with the search for the order,
mir_eval's default, and with the order known; medians over the mixtures. Exit code 1 when a value differs by more than
1e-6 dB, or when ours is less than 30 times faster with the search.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from audiolab.audio.io import read_audio
from audiolab.metrics.separation import pit, sdr

LEAST = 30.0


def mixtures(root: Path, num_speakers: int, num: int) -> list[np.ndarray]:
    """Sources (speaker, time) of the first mixtures of the test set."""
    folder = root / f"Libri{num_speakers}Mix/wav16k/min/test"
    names = [path.name for path in sorted((folder / "s1").iterdir())[:num]]
    return [
        np.stack([read_audio(folder / f"s{one + 1}" / name)[0] for one in range(num_speakers)]).astype(np.float64)
        for name in names
    ]


def estimates_of(sources_st: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Sources with a tenth of the others, smeared by a short filter, and noise."""
    leaky = sources_st + 0.1 * (sources_st.sum(0) - sources_st)
    filtered = np.stack([np.convolve(wave, (0.8, 0.3, 0.1))[: leaky.shape[1]] for wave in leaky])
    return filtered + 0.05 * filtered.std() * generator.standard_normal(leaky.shape)


def main() -> int:
    """Time both on the same utterances, one at a time, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of mir_eval")
    parser.add_argument("--root", type=Path, required=True, help="folder of mix_mini")
    parser.add_argument("--num", type=int, default=9, help="mixtures of each number of talkers")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.path.insert(0, str(options.packages))
    warnings.simplefilter("ignore")  # mir_eval says that it will lose this module
    from mir_eval.separation import bss_eval_sources

    fine, generator = True, np.random.default_rng(0)
    for num_speakers in (2, 3):
        spent_s, furthest_db = [], 0.0
        for number, sources in enumerate(mixtures(options.root, num_speakers, options.num + 1)):
            estimates = estimates_of(sources, generator)
            found, wanted = torch.from_numpy(estimates), torch.from_numpy(sources)
            stamps_s = [time.process_time()]
            searched = pit(found[None], wanted[None], metric=sdr)[0]
            stamps_s.append(time.process_time())
            theirs = bss_eval_sources(sources, estimates)[0]
            stamps_s.append(time.process_time())
            ours = sdr(found, wanted)
            stamps_s.append(time.process_time())
            bss_eval_sources(sources, estimates, compute_permutation=False)
            stamps_s.append(time.process_time())
            furthest_db = max(furthest_db, np.abs(ours.numpy() - theirs).max(), abs(searched.item() - theirs.mean()))
            if number:  # the first one warms up
                spent_s.append(np.diff(stamps_s))
        ours_ms, theirs_ms, in_order_ms, theirs_in_order_ms = 1e3 * np.median(spent_s, 0)
        print(
            f"{num_speakers} talkers, values within {furthest_db:.0e} dB, CPU ms a mixture: with the search audiolab "
            f"{ours_ms:.1f}, mir_eval {theirs_ms:.0f} ({theirs_ms / ours_ms:.0f} times); in order {in_order_ms:.1f}, "
            f"{theirs_in_order_ms:.0f} ({theirs_in_order_ms / in_order_ms:.0f} times)"
        )
        fine &= furthest_db <= 1e-6 and theirs_ms / ours_ms >= LEAST
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
