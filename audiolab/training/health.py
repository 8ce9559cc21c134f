"""Watches a training: stops it before a loss or gradient that is not finite reaches the weights, and says what looks
wrong.
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from audiolab.errors import InputError, RunError
from audiolab.training import bad_batch, health_rules
from audiolab.training.bad_batch import Finding, Step
from audiolab.training.course import Course, Limits
from audiolab.training.epoch_means import LOSS
from audiolab.training.evaluation import gather
from audiolab.training.gradients import UpdateProbe, squared_gradient_norms, squared_norms
from audiolab.training.items import collate
from audiolab.training.limits import check_range
from audiolab.training.sharding import is_sharded

log = logging.getLogger(__name__)

BAD_BATCH = "bad_batch.json"
_START_BATCHES = 20
_MOST_SKIPPED = 32  # GradScaler halves its factor at every skipped step: after 32 it is not the factor


@dataclass
class Waiting:
    """A trainable parameter that has not yet got a gradient other than 0, and its optimiser group."""

    group: str
    parameter: nn.Parameter
    got_zero: bool = False


class Health(L.Callback):
    """Checks every optimiser step with one fused reduction and one transfer; warns once of each kind, by group.

    A loss or gradient that is not finite raises RunError on all processes before the optimiser's step. With
    `precision=16-mixed` gradients are infinite now and then on purpose, so only the loss counts there, and gradients
    when no step at all succeeds. `first_steps` is how long a trainable parameter may go without a gradient (layers may
    be skipped at random), `window_steps` how many steps running medians go over, `patience` how many epochs or
    validations in a row make a trend. Logs `health/<group>/grad_norm` (before clipping) and
    `health/<group>/update_ratio`, ||change of the step|| / ||weights||.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"],
        patience: int,
        first_steps: int,
        window_steps: int,
        explosion_factor: float,
        least_update_ratio: float,
    ) -> None:
        for name, value in (("patience", patience), ("first_steps", first_steps), ("window_steps", window_steps)):
            check_range(f"callbacks.health.{name}", value, least=3)
        check_range("callbacks.health.explosion_factor", explosion_factor, above=1)
        check_range("callbacks.health.least_update_ratio", least_update_ratio, least=0)
        self.limits = Limits(monitor, mode, patience, first_steps, window_steps, explosion_factor, least_update_ratio)
        self.course = Course()
        self._loss_sum: Tensor | float = 0.0
        self._num_batches = self._num_steps = self._num_skipped = 0
        self._step: Step | None = None
        self._accumulated: list[tuple[Step, Tensor]] = []
        self._waiting: dict[str, Waiting] = {}
        self._probe: UpdateProbe | None = None
        self._rates: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The course of the run so far, so that a resumed run is judged as one that was never stopped."""
        return {**asdict(self.course), "loss_sum": float(self._loss_sum), "num_batches": self._num_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the course so far."""
        self._loss_sum, self._num_batches = state_dict["loss_sum"], state_dict["num_batches"]
        names = [field.name for field in fields(Course)]
        self.course = Course(**deepcopy({name: state_dict[name] for name in names}))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse trainable parameters that no optimiser group or several train."""
        homes: dict[int, list[str]] = {}
        for optimizer in trainer.optimizers:
            for number, group in enumerate(optimizer.param_groups):
                for parameter in group["params"]:
                    homes.setdefault(id(parameter), []).append(_name(group, number))
        trainable = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        wrong = [name for name, p in trainable.items() if len(homes.get(id(p), ())) != 1]
        if wrong and not is_sharded(trainer):
            raise InputError(
                f"{len(wrong)} of {len(trainable)} trainable parameters are not in exactly one optimiser group (first: "
                f"{wrong[0]}): give them a group in configure_optimizers, or freeze them with requires_grad_(False)"
            )
        if not is_sharded(trainer):  # a shard may be empty
            self._waiting = {name: Waiting(homes[id(p)][0], p) for name, p in trainable.items()}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch as the model gets it."""
        self._step = Step(trainer.current_epoch, batch_idx, batch)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Remember the loss, which is looked at with the gradients of the whole step."""
        self._accumulated.append((self._step, loss.detach()))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Stop if anything of this step is not finite, else take its norms down."""
        accumulated, self._accumulated = self._accumulated, []
        groups = optimizer.param_groups
        losses = torch.stack([loss.float() for _, loss in accumulated])
        squares = squared_gradient_norms(groups, pl_module.device)
        if is_sharded(trainer):
            dist.all_reduce(squares)
        finite = torch.stack([torch.isfinite(losses).all(), torch.isfinite(squares).all()]).float()
        if trainer.world_size > 1:  # a loss may be bad on one process alone, and all have to stop
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        waiting = {name: one for name, one in self._waiting.items() if one.parameter.grad is not None}
        parts = [finite, squares]
        if waiting:
            parts.append(squared_norms([one.parameter.grad for one in waiting.values()]))
        loss_fine, gradients_fine, *values = torch.cat(parts).tolist()  # the step's only wait for the device
        scales = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._num_skipped = 0 if gradients_fine else self._num_skipped + 1
        if not loss_fine or (not gradients_fine and (not scales or self._num_skipped >= _MOST_SKIPPED)):
            self._stop(trainer, pl_module, accumulated, losses)
        self._num_steps += 1
        names = [_name(group, number) for number, group in enumerate(groups)]
        norms = {name: math.sqrt(value) for name, value in zip(names, values, strict=False)}
        self.course.add_norms(norms, self.limits.first_steps, self.limits.window_steps)
        self._note_received(trainer, dict(zip(waiting, values[len(groups) :], strict=True)))
        if gradients_fine and (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            for name, norm in norms.items():
                pl_module.log(f"health/{name}/grad_norm", norm, rank_zero_only=True)
            self._probe = UpdateProbe(groups)
            self._rates = {name: group["lr"] for name, group in zip(names, groups, strict=True)}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the loss; after a step that is logged, see how far it moved the weights and judge."""
        self._step = None  # else two batches were on the device at a time
        if outputs:
            loss = (outputs.get("parts") or {}).get(LOSS, outputs["loss"] * trainer.accumulate_grad_batches)
            self._loss_sum = self._loss_sum + loss.detach().float()
            self._num_batches += 1
            if self.course.start is None and self._num_batches == _START_BATCHES:
                self.course.start = float(self._loss_sum) / self._num_batches
        if self._probe is None:
            return
        squares, self._probe = torch.stack(self._probe.squares()), None
        if is_sharded(trainer):
            dist.all_reduce(squares)
        groups = trainer.optimizers[0].param_groups
        for (name, rate), group, change, size in zip(self._rates.items(), groups, *squares.tolist(), strict=True):
            ratio = math.sqrt(change / size) if size > 0 else 0.0
            pl_module.log(f"health/{name}/update_ratio", ratio, rank_zero_only=True)
            if size > 0 and rate > 0.01 * group.get("initial_lr", rate):  # the end of a schedule is no fault
                self.course.add_ratio(name, ratio)
        clip = None if trainer.gradient_clip_algorithm == "value" else trainer.gradient_clip_val
        self._say(trainer, self.course.after_step(self.limits, self._rates, clip))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the metrics of the monitored set."""
        metrics, monitor = trainer.callback_metrics, self.limits.monitor
        if trainer.state.fn is not TrainerFn.FITTING or trainer.sanity_checking or monitor not in metrics:
            return
        same_set = f"{monitor.partition('/')[0]}/"
        names = [monitor, *sorted(name for name in metrics if name.startswith(same_set) and name != monitor)]
        self.course.validations.append([trainer.current_epoch, *(float(metrics[name]) for name in names)])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge loss and development metric over the epochs so far."""
        if self._num_batches:
            self.course.add_epoch(float(self._loss_sum) / self._num_batches)
        self._loss_sum, self._num_batches = 0.0, 0
        self._say(trainer, self.course.after_epoch(self.limits))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge what a run of few steps has not judged yet."""
        self._judge_waiting(trainer)

    def _note_received(self, trainer: L.Trainer, squares: dict[str, float]) -> None:
        for name, square in squares.items():
            self._waiting[name].got_zero = True
            if square != 0:
                del self._waiting[name]
        if self._num_steps == self.limits.first_steps:
            self._judge_waiting(trainer)

    def _judge_waiting(self, trainer: L.Trainer) -> None:
        zero = [name for name, one in self._waiting.items() if one.got_zero]
        if zero and trainer.is_global_zero:  # as attention over a single frame has it: no fault, but good to know
            log.info("the gradients of %s were exactly 0 in the first %d steps", ", ".join(zero), self._num_steps)
        by_group: dict[str, list[str]] = {}
        for name, one in self._waiting.items():
            if not one.got_zero:
                by_group.setdefault(one.group, []).append(name)
        found = {
            f"without {group}": health_rules.without_gradient(group, names, self._num_steps)
            for group, names in by_group.items()
        }
        self._say(trainer, self.course.news(found))
        self._waiting = {}

    def _say(self, trainer: L.Trainer, sentences: list[str]) -> None:
        for sentence in sentences if trainer.is_global_zero else ():
            log.warning("epoch %d: %s", trainer.current_epoch + 1, sentence)

    def _stop(
        self, trainer: L.Trainer, task: L.LightningModule, accumulated: list[tuple[Step, Tensor]], losses: Tensor
    ) -> NoReturn:
        """Find the batch and what is wrong with it, on all processes alike; raises RunError on each."""
        task.zero_grad()  # room for the graph of one batch more
        bad = [not fine for fine in torch.isfinite(losses).tolist()]
        first = [index for index in gather([bad.index(True) if any(bad) else None]) if index is not None]
        chosen = [min(first)] if first else range(len(accumulated))  # on every process: layers may exchange statistics
        found = [(index, self._compute_again(trainer, task, accumulated[index][0])) for index in chosen]
        index, finding = next((pair for pair in found if pair[1].is_bad), found[-1])
        to_blame = bad[index] if first else finding.is_bad
        rank = min(gather([(not to_blame, index, trainer.global_rank)]))[-1]
        told = ""
        if rank == trainer.global_rank:
            value = f"the loss ({float(losses[index])})" if first else "the gradient"
            told = self._tell(trainer, accumulated[index][0], finding, value)
        raise RunError(next(text for text in gather([told]) if text))  # the file is written before any process ends

    def _compute_again(self, trainer: L.Trainer, task: L.LightningModule, step: Step) -> Finding:
        if is_sharded(trainer):
            bad_ids = bad_batch.bad_inputs(step.batch)
            return Finding("in weights split over processes the module is not looked for", False, bad_ids, math.nan)
        guard = getattr(task, "guard", None)
        return bad_batch.compute_again(
            task,
            step,
            trainer.datamodule.seed,
            trainer.global_rank,
            trainer.precision_plugin.train_step_context(),
            num_parts=1 if guard is None else guard.train_parts,
        )

    def _tell(self, trainer: L.Trainer, step: Step, finding: Finding, value: str) -> str:
        run = Path(trainer.default_root_dir)
        rates = _given_rates(trainer.optimizers[0].param_groups)
        cause = bad_batch.cause_and_remedy(
            finding,
            run,
            str(trainer.precision),
            rates,
            self.course.norms.get("", [])[-10:],
            in_file=_is_in_files(trainer, step, finding.bad_ids),
        )
        facts = {
            "optimizer_step": trainer.global_step,
            "process": trainer.global_rank,
            "seed": trainer.datamodule.seed,
            "not_finite": value,
            "where": finding.where,
            "cause": cause[0],
            "bad_ids": finding.bad_ids,
        }
        bad_batch.write(run / BAD_BATCH, step, facts)
        return bad_batch.describe(step, finding, cause, value, run / BAD_BATCH, trainer.world_size)


def _name(group: dict[str, Any], number: int) -> str:
    return group.get("name", str(number))


def _given_rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    """Return the learning rates without warm-up and schedule, by the option that sets them."""
    rest = {_name(group, number): group.get("initial_lr", group["lr"]) for number, group in enumerate(groups)}
    general = {"optimizer.lr": rest.pop("rest")} if "rest" in rest else {}
    named = {name: rate for name, rate in rest.items() if not name.isdecimal() and rate not in general.values()}
    return {**general, **{f"optimizer.groups.{name}.lr": rate for name, rate in named.items()}} or {
        "optimizer.lr": max(rest.values())
    }


def _is_in_files(trainer: L.Trainer, step: Step, bad_ids: list[str]) -> bool:
    """Whether the bad utterances of a batch are bad as they are read, before augmentation."""
    dataset = trainer.datamodule.utterances("train")
    dataset.seed = trainer.datamodule.seed
    draws = [draw for name, draw in zip(step.batch["id"], step.batch["draw"], strict=True) if name in bad_ids]
    with suppress(InputError):  # a file that has gone meanwhile
        return bool(bad_ids) and bad_batch.bad_inputs(collate([dataset[draw] for draw in draws])) == bad_ids
    return False
