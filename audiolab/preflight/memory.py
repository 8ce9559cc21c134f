"""What the model and a batch need of memory, against what is there."""

from __future__ import annotations

from audiolab.preflight.findings import Finding, size
from audiolab.training.footprint import Footprint

GROUP = "machine"
BACKWARD = 1.3  # peak of a step over what forward keeps: 1.13 measured on a Mamba, 1.31 on a convolutional network
_HALF = 0.6  # assumed share of the activations under 16 bits: norms, losses and recurrences stay in 32


def check_memory(
    footprint: Footprint,
    item_mb: float | None,
    batch_size: int,
    precision: str,
    shards: int,
    total_mb: float | None,
    free_mb: float | None,
    device: str,
    process_mb: float = 0.0,
) -> Finding:
    """Compare what training needs with the memory of one device, for the processes that share it.

    `item_mb` are one item and its float32 activations, None: not measured. `shards` is the number of devices that share
    weights, gradients and optimiser state (FSDP), else 1. `process_mb` is what the process itself takes of this memory
    besides, where that is known, and is then part of what is free. Only what cannot fit at all is a problem.

    >>> needs = Footprint(weights_mb=1000.0, trainable_mb=1000.0, averages_mb=0.0)
    >>> print(check_memory(needs, 100.0, 32, "32-true", 1, 80000.0, 79000.0, "GPU").found)
    about 8.0 GiB or more: weights, gradients, optimiser 3.9 GiB, 32 items and their activations 4.1 GiB; 77.1 GiB free on the GPU
    >>> check_memory(needs, 100.0, 32, "32-true", 1, 6000.0, 5000.0, "GPU").state
    'problem'
    """  # noqa: E501
    parts = {"this process as it is": process_mb} if process_mb else {}
    parts["weights, gradients, optimiser"] = exact_mb = footprint.training_mb / shards
    if item_mb is not None:
        share = _HALF if "16" in precision else 1.0
        parts[f"{batch_size} items and their activations"] = item_mb * batch_size * share * BACKWARD
    need_mb = sum(parts.values())
    listed = ", ".join(f"{name} {size(mb)}" for name, mb in parts.items())
    words = f"about {size(need_mb)} or more: {listed}" if item_mb is not None else f"{listed}; a batch was not measured"
    if free_mb is None or total_mb is None:
        return Finding(GROUP, "memory", "ok", words)
    words += f"; {size(free_mb)} {'for it' if process_mb else 'free'} on the {device}"
    remedy = "give a smaller data.batch_size and as much more trainer.accumulate_grad_batches"
    if exact_mb > total_mb:
        return Finding(GROUP, "memory", "problem", words, "choose a smaller model, freeze more of it, or use FSDP")
    if need_mb > total_mb and "16" not in precision:
        return Finding(GROUP, "memory", "problem", words, remedy)
    if need_mb > free_mb:
        return Finding(GROUP, "memory", "warning", words, f"{remedy}, or free the {device}")
    return Finding(GROUP, "memory", "ok", words)


def check_kept_audio(duration_s: float, num_processes: int, free_mb: float | None) -> Finding:
    """Compare the memory of a corpus that is kept decoded (16 kHz float32, in every process) with what is free.

    >>> check_kept_audio(36000.0, 2, 2000.0).state
    'warning'
    """
    need_mb = duration_s * 16_000 * 4 / 2**20 * num_processes
    words = f"data.in_memory keeps {size(need_mb)} of audio"
    if free_mb is not None and need_mb > free_mb:
        remedy = "set data.in_memory=false"
        return Finding(GROUP, "audio in memory", "warning", f"{words}; {size(free_mb)} are free", remedy)
    return Finding(GROUP, "audio in memory", "ok", words)
