"""What made a loss or gradient that is not finite: which batch, which module, which file, and what to do about it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from audiolab.reporting.scores import write_text
from audiolab.training.gradients import squared_norms
from audiolab.training.memory import is_out_of_memory
from audiolab.training.parts import cut
from audiolab.training.randomness import seed_step

_EXTREME = 100.0  # +40 dB over full scale: no waveform that was read and augmented as it should be
_HUGE_WEIGHT, _HIGH_RATE, _ABSURD_RATE = 1e6, 0.1, 1.0  # cut-off frequencies in Hz are weights too
_NAMED = 3


@dataclass(frozen=True)
class Step:
    """One batch as the model saw it, on its device, augmented, with the place that seeds its draws."""

    epoch: int
    batch_idx: int
    batch: Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """What computing a batch again has shown: `where` in words, and the facts that tell the causes apart."""

    where: str
    is_bad: bool
    bad_ids: list[str]
    """Utterances that were not finite, or far beyond full scale, before they reached the model."""
    largest_weight: float


class FirstBadModule:
    """Context that watches the modules of a network and remembers the first whose output is not finite.

    `order` holds the names of the modules in the order in which they returned. A module that got something not finite
    itself is not to blame; the first of those is `reached`, in case what came before it is no module.

    >>> network = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    >>> _ = nn.init.constant_(network[0].bias, torch.inf)
    >>> with FirstBadModule(network) as watch:
    ...     _ = network(torch.zeros(1, 1))
    >>> watch.bad
    '0 (Linear)'
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.order = network, []
        self.bad: str | None = None
        self.reached: str | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> FirstBadModule:
        for name, module in self.network.named_modules():
            hook = self._hook(name or "the task", f"{name or 'the task'} ({type(module).__name__})")
            self._hooks.append(module.register_forward_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str, label: str) -> Any:
        def watch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.order.append(name)
            if self.bad is not None or _is_finite(output):
                return
            if _is_finite((args, kwargs)):
                self.bad = label
            elif self.reached is None:
                self.reached = label

        return watch


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors(list(vars(value).values()))


def _is_finite(value: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(value))


def bad_inputs(batch: Mapping[str, Any]) -> list[str]:
    """Return the ids of a batch whose values are not finite, or whose waveform is far beyond full scale.

    >>> bad_inputs({"id": ["a", "b", "c"], "wave": torch.tensor([[0.5], [torch.nan], [1e30]])})
    ['b', 'c']
    """
    ids, bad = batch["id"], set()
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.shape[:1] == (len(ids),):
            peak_b = value.reshape(len(ids), -1).abs().amax(1) if value.numel() else value.new_zeros(len(ids))
            fine_b = (peak_b <= _EXTREME) if key == "wave" else torch.isfinite(peak_b)
            bad |= {ids[row] for row, fine in enumerate(fine_b.tolist()) if not fine}
    return sorted(bad)


def compute_again(
    task: nn.Module, step: Step, seed: int, rank: int, context: AbstractContextManager, num_parts: int = 1
) -> Finding:
    """Compute loss and gradients of a batch once more, with the same draws, and find where they stop being finite.

    `context` is that of the trainer's precision, `num_parts` that of the memory guard. Gradients do not reach the
    parameters' `grad`, nor other processes.
    """
    parameters = {name: p for name, p in task.named_parameters() if p.requires_grad}
    seed_step(seed, step.epoch, step.batch_idx, rank)
    where = None
    try:
        with context:
            for part in cut(dict(step.batch), num_parts):  # all of them: layers may talk to other processes
                found = _first_fault(task, part, parameters)
                where = where or found
        is_bad, where = where is not None, where or "computed once more, its loss and gradients were finite"
    except (RuntimeError, ValueError) as error:  # the rest is known all the same
        reason = "memory did not suffice" if is_out_of_memory(error) else str(error).split("\n")[0][:100]
        is_bad, where = where is not None, where or f"it could not be computed once more ({reason})"
    peaks = [float(p.detach().abs().amax()) for p in parameters.values() if p.numel()]
    largest = math.nan if any(map(math.isnan, peaks)) else max(peaks, default=0.0)
    return Finding(where, is_bad, bad_inputs(step.batch), largest)


def _first_fault(task: nn.Module, batch: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> str | None:
    """Say where the loss of a batch, or else its gradient, stops being finite; None where both are."""
    with FirstBadModule(task) as watch:
        loss, _ = task.loss(batch)
    if not _is_finite(loss):
        if watch.bad is not None:
            return f"the first module to return a value that is not finite is {watch.bad}"
        if watch.reached is not None:
            return f"what {watch.reached} was given is not finite already, and no module made it"
        return "every module's output is finite, the loss made of them is not"
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    bad = _not_finite(dict(zip(parameters, gradients, strict=True)))
    if not bad:
        return None
    first = max(bad, key=lambda name: _last_call(watch.order, name))
    return (
        f"the loss is finite, the gradient is not from {first} backwards ({len(bad)} of {len(parameters)} parameters)"
    )


def _not_finite(gradients: Mapping[str, Tensor | None]) -> list[str]:
    known = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    finite = torch.isfinite(squared_norms(list(known.values()))).tolist() if known else []
    return [name for name, fine in zip(known, finite, strict=True) if not fine]


def _last_call(order: list[str], parameter: str) -> int:
    """Return when the module of a parameter returned last: what is later in forward order is earlier backwards."""
    owner = parameter.rpartition(".")[0]
    return len(order) - 1 - order[::-1].index(owner) if owner in order else -1


def cause_and_remedy(
    finding: Finding, run: Path, precision: str, rates: Mapping[str, float], norms: list[float], in_file: bool
) -> tuple[str, str]:
    """Return the likely cause and what to do, in words.

    `rates` are learning rates as they were given, by option; `norms` are those of the gradient in the steps before.
    `in_file`: the audio of `finding.bad_ids` is like that on disk, so no augmentation made it so.
    """
    go_on = f"python -m audiolab.resume {run}"
    restart = f"going on would come to this batch again, so give the command in {run / 'command.txt'} another name= and"
    if finding.bad_ids:
        what = f"{_listed(finding.bad_ids)} {'is' if len(finding.bad_ids) == 1 else 'are'} not finite or far beyond "
        if in_file:
            return f"{what}full scale in the audio file", f"replace the file and go on with {go_on}"
        return f"{what}full scale after augmentation, not in the file", f"{restart} another augment="
    option, rate = max(rates.items(), key=lambda pair: pair[1])
    slower = f"{option}={rate / 10:.1g} (now {rate:.3g}), a longer schedule.warmup or trainer.gradient_clip_val=1"
    if rate > _ABSURD_RATE:
        slower = f"a usual {option}, which is from 1e-5 to 1e-3 (now {rate:.3g})"
    known = [norm for norm in norms if math.isfinite(norm)]
    rises = len(known) > 2 and known[-1] > 10 * median(known)
    if rises or rate > _HIGH_RATE or not finding.largest_weight < _HUGE_WEIGHT:
        course = f"gradient norm up from {median(known):.3g} to {known[-1]:.3g}, " if rises else ""
        return f"training diverged ({course}largest weight {finding.largest_weight:.3g})", f"{restart} {slower}"
    if precision.startswith("16"):
        return f"an overflow of {precision}", f"{restart} trainer.precision=bf16-mixed or 32-true"
    return (
        f"a division, logarithm or root there (training has not diverged: largest weight {finding.largest_weight:.3g})",
        f"correct the code and go on with {go_on}; otherwise {restart} {slower}",
    )


def _listed(ids: list[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")


def describe(step: Step, finding: Finding, cause: tuple[str, str], what: str, file: Path, num_processes: int) -> str:
    """Return the sentences of the error; `file`, in the run folder, is what `write` wrote."""
    ids = list(step.batch["id"])
    where = f"{finding.where[0].upper()}{finding.where[1:]}"
    checkpoints = "there is no checkpoint yet"
    if any((file.parent / "checkpoints").glob("*.ckpt")):
        checkpoints = "the checkpoints of the steps before are untouched"
    of_all = " of one process" if num_processes > 1 else ""
    return (
        f"{what} is not finite in epoch {step.epoch + 1}, batch {step.batch_idx + 1}, with the {len(ids)} utterances"
        f"{of_all} {_listed(ids)} (all of them: {file}); {checkpoints}. "
        f"{where}. Likely cause: {cause[0]}; {cause[1]}."
    )


def write(path: Path, step: Step, facts: Mapping[str, Any]) -> None:
    """Write what it takes to make the batch again: `draws` are the (epoch, item) of `data.utterances("train")`.

    Epoch and batch are counted from 1, as in the sentences of the error; in `draws` both count from 0, as in samplers.
    """
    counted = "epoch and batch from 1; draws are (epoch, item) from 0, as data.utterances('train') takes them"
    content = {"epoch": step.epoch + 1, "batch": step.batch_idx + 1, "counted": counted, **facts}
    text = json.dumps({**content, "ids": list(step.batch["id"])}, indent=1)
    draws = json.dumps([list(draw) for draw in step.batch["draw"]])  # one line, not four for each
    write_text(path, f'{text[:-2]},\n "draws": {draws}\n}}')
