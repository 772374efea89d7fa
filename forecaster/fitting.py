"""The training loop: one for every source of windows, on a CPU, a GPU, or several.

Everything random is a function of (seed, step), and everything else that a step depends on stands in the checkpoint,
so a run that was interrupted goes on as if it had not been. Only a limit in minutes makes the learning rate depend on
the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from feature_store.features import FEATURE_INDEX
from forecaster import loader
from forecaster.batches import Batches
from forecaster.checkpoints import Checkpoint
from forecaster.dataset import Window
from forecaster.interrupts import StopRequests
from forecaster.models.loss import Loss, loss
from forecaster.models.patch_transformer import PatchTransformer, Scaled
from forecaster.run_folder import RunFolder
from forecaster.training_state import TrainingState

_UNITS = FEATURE_INDEX["units"]
_RUNNING = 3  # place of `running` among the inputs
_LOG_EVERY = 20  # steps: what is logged is their mean


class DivergedError(Exception):
    """The loss is no longer a number; names the step and the remedy."""


@dataclass(frozen=True)
class Plan:
    """How long and how to train: what the weights depend on, beside the batches."""

    steps: int = 6000
    minutes: float = math.inf  # ends a run that is slower than thought; the schedule then ends with it
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    averaging: float = 0.995  # part of the averaged weights that a step keeps
    validate_every: int = 250
    patience: int = 8  # validations without improvement


@dataclass(frozen=True)
class Machine:
    """What a run computes with, and how often it saves: nothing that a reader of its scores need know."""

    precision: str = "fp32"  # of the forward pass: fp32, bf16 or fp16
    cpu: bool = False  # though there is a GPU
    workers: int = 1  # processes that draw batches
    checkpoint_every: int = 1000  # steps
    checkpoint_minutes: float = 10.0
    quiet: bool = False


class Outcome(NamedTuple):
    """How training ended."""

    score: float  # of the best weights on the validation windows; infinity where none were given
    scores: dict[str, float]  # the same by freq
    best_step: int
    step: int
    minutes: float
    stopped_by: int  # signal number, 0 = it ended by itself
    checkpoint: Path | None  # the last one


class Losses(nn.Module):
    """A model's losses as one module, so that a forward pass of any precision and any number of GPUs is of it."""

    def __init__(self, model: PatchTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> Loss:
        """Losses of a batch, see `loader.Tensors`."""
        *inputs, units, cumulative = tensors
        scaled = self.model.scaled(*inputs)
        with torch.autocast(units.device.type, enabled=False):
            full = Scaled(*(value.float() for value in scaled))
            return loss(full, inputs[_RUNNING][:, _UNITS], units, cumulative)


def validation_losses(model: PatchTransformer, validation: Mapping[str, Sequence[Window]]) -> dict[str, float]:
    """Mean total loss over fixed windows, by freq. Runs where the model is, and leaves it in training mode or not."""
    was_training = model.training
    model.eval()
    losses, device = Losses(model), model.device
    out = {}
    with torch.inference_mode():
        for freq, windows in validation.items():
            totals = [losses(*(t.to(device) for t in loader.tensors_of(window))).total for window in windows]
            out[freq] = float(torch.stack(totals).mean())
    model.train(was_training)
    return out


def mean_score(scores: Mapping[str, float]) -> float:
    """One number of the frequencies', all alike."""
    return sum(scores.values()) / len(scores)


def schedule(done: float) -> float:
    """Share of the learning rate: a short rise, then half a cosine down to nearly nothing."""
    rise = 0.05
    if done < rise:
        return max(done / rise, 0.02)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min((done - rise) / (1 - rise), 1.0)))


class Trainer:
    """One run: `fit` it, perhaps after `resume`. The model ends as the averaged weights that validated best."""

    def __init__(
        self,
        model: PatchTransformer,
        batches: Batches,
        validation: Mapping[str, Sequence[Window]],
        plan: Plan,
        machine: Machine = Machine(),
        run: RunFolder | None = None,
    ) -> None:
        """`validation`: windows by freq; empty = the last averaged weights are kept. `run`: None writes nothing.

        Raises:
            ValueError: this machine can't compute in the precision asked for.
        """
        self._accelerator = Accelerator(
            cpu=machine.cpu,
            mixed_precision="no" if machine.precision == "fp32" else machine.precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=len(model.config.freqs) > 1)],
        )
        self._batches, self._validation, self._plan, self._machine = batches, validation, plan, machine
        on_gpu = self._accelerator.device.type == "cuda"
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=on_gpu
        )
        model.train()
        self._losses, self._optimizer = self._accelerator.prepare(Losses(model), optimizer)
        self._state = TrainingState(model, optimizer, plan.averaging)
        self._run = run if self._accelerator.is_main_process else None
        self._logs: SummaryWriter | None = None
        self._saved: Path | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process, of those that train together, that speaks and writes."""
        return bool(self._accelerator.is_main_process)

    @property
    def device(self) -> str:
        """What it computes on, and how many of them."""
        count = self._accelerator.num_processes
        return f"{count} × {self._accelerator.device.type}" if count > 1 else str(self._accelerator.device.type)

    def resume(self, checkpoint: Checkpoint) -> int:
        """Go on from a checkpoint; returns its step.

        Raises:
            CheckpointError: it is of another model.
        """
        self._state.restore(checkpoint)
        if self._accelerator.scaler is not None and "scaler" in checkpoint.facts:
            self._accelerator.scaler.load_state_dict(checkpoint.facts["scaler"])
        return self._state.step

    def fit(self) -> Outcome:
        """Train until the plan is done, validations no longer improve, or SIGINT or SIGTERM comes; the last step is
        finished and saved.

        Raises:
            DivergedError: the loss is no longer a number.
        """
        state = self._state
        self._logs = self._run.logs(state.step) if self._run else None
        with StopRequests() as stop, self._progress() as progress:
            self._train(stop, progress)
        self._keep()
        if self._logs is not None:
            self._logs.close()
        state.take_best()
        return Outcome(
            state.best_score,
            state.best_scores,
            state.best_step,
            state.step,
            state.seconds / 60,
            stop.signal_number,
            self._saved,
        )

    def _train(self, stop: StopRequests, progress: tqdm[Any]) -> None:
        """1. draw, 2. step, 3. log, 4. validate, 5. save, until there is reason to end."""
        state, plan = self._state, self._plan
        before, meter, saved_at = state.seconds, _Meter(), time.monotonic()
        started = time.monotonic()
        for tensors in meter.timed(self._loaded()):
            state.step += 1
            state.seconds = before + time.monotonic() - started
            done, stopping = self._agreed(stop)
            meter.add(self._step(tensors, done), len(tensors[0]) * self._accelerator.num_processes)
            progress.update()
            if state.step % _LOG_EVERY == 0:
                self._log(meter.read(), done)
            over = done >= 1 or state.step >= plan.steps
            if state.step % plan.validate_every == 0 or (over and not stopping):
                self._validate(progress)
            over = over or stopping or (bool(self._validation) and state.without_gain >= plan.patience)
            minutes = (time.monotonic() - saved_at) / 60
            due = state.step % self._machine.checkpoint_every == 0 or minutes >= self._machine.checkpoint_minutes
            if due or over:
                self._save()
                saved_at = time.monotonic()
            if over:
                break

    def _loaded(self) -> Iterator[loader.Tensors]:
        accelerator = self._accelerator
        device = accelerator.device
        rank, steps = accelerator.process_index, range(self._state.step + 1, self._plan.steps + 1)
        workers, pin = self._machine.workers, device.type == "cuda"
        for tensors in loader.load(self._batches, steps, rank, workers=workers, pin=pin):
            yield tuple(tensor.to(device, non_blocking=True) for tensor in tensors)

    def _agreed(self, stop: StopRequests) -> tuple[float, bool]:
        """How much of the plan is done with this step, 0 to 1, and whether to stop after it: in all processes the
        same."""
        state, plan = self._state, self._plan
        answer = [max(state.step / plan.steps, state.seconds / (plan.minutes * 60)), stop.signal_number != 0]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(answer)  # of the first process
        return float(answer[0]), bool(answer[1])

    def _step(self, tensors: loader.Tensors, done: float) -> Loss:
        accelerator, model = self._accelerator, self._state.model
        torch.manual_seed(self._batches.seed * 1_000_003 + self._state.step)
        for group in self._optimizer.param_groups:
            group["lr"] = self._plan.learning_rate * schedule(done)
        losses: Loss = self._losses(*tensors)
        self._optimizer.zero_grad()
        accelerator.backward(losses.total)
        accelerator.unscale_gradients()
        # Apart, so that one wholesale order in the mean's loss does not still the quantiles' step.
        nn.utils.clip_grad_norm_(model.mean_head.parameters(), 1.0)
        nn.utils.clip_grad_norm_(model.parameters(), 1.5)
        self._optimizer.step()
        self._state.average()
        return losses

    def _log(self, means: dict[str, float], done: float) -> None:
        step = self._state.step
        if not math.isfinite(means["loss/total"]):
            raise DivergedError(f"the loss is no longer a number at step {step}: take a lower --learning-rate")
        self._write(means | {"learning_rate": self._plan.learning_rate * schedule(done)})

    def _validate(self, progress: tqdm[Any]) -> None:
        if not self._validation:
            return
        with self._accelerator.autocast():
            answer = [validation_losses(self._state.averaged, self._validation)]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(answer)  # last bits may differ, and the decision must not
        scores = answer[0]
        score = mean_score(scores)
        if self._state.judge(score, scores) and self._run:
            self._run.write_model(self._state.averaged)
        progress.set_postfix(validation=f"{score:.4f}", best=f"{self._state.best_score:.4f}")
        self._write({f"validation/{freq}": value for freq, value in scores.items()} | {"validation/mean": score})

    def _write(self, values: Mapping[str, float]) -> None:
        if self._logs is not None:
            for name, value in values.items():
                self._logs.add_scalar(name, value, self._state.step)

    def _save(self) -> None:
        if self._run is None:
            return
        checkpoint = self._state.checkpoint()
        if self._accelerator.scaler is not None:
            checkpoint.facts["scaler"] = self._accelerator.scaler.state_dict()
        self._saved = self._run.save(checkpoint, self._state.averaged)

    def _keep(self) -> None:
        """Where no validation has chosen weights, the last averaged ones are the run's model."""
        if self._run is not None and not self._state.best_step:
            self._run.write_model(self._state.averaged)

    def _progress(self) -> tqdm[Any]:
        hidden = self._machine.quiet or not self._accelerator.is_main_process
        return tqdm(total=self._plan.steps, initial=self._state.step, unit="step", disable=hidden, dynamic_ncols=True)


class _Meter:
    """Means of the losses since it was last read, and what the time went to."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._windows = 0
        self._waited = 0.0
        self._since = time.monotonic()

    def timed(self, batches: Iterator[loader.Tensors]) -> Iterator[loader.Tensors]:
        """The batches; waiting for each is counted."""
        while True:
            asked = time.monotonic()
            tensors = next(batches, None)
            self._waited += time.monotonic() - asked
            if tensors is None:
                return
            yield tensors

    def add(self, losses: Loss, windows: int) -> None:
        """Note a step. Nothing is fetched from a GPU here, which would wait for it."""
        self._sums.append(torch.stack([value.detach() for value in losses]))
        self._windows += windows

    def read(self) -> dict[str, float]:
        """Values to log, by name."""
        means = torch.stack(self._sums).mean(0).tolist()
        passed = time.monotonic() - self._since
        out = {f"loss/{name}": value for name, value in zip(Loss._fields, means, strict=True)}
        out |= {"speed/windows_per_second": self._windows / passed, "speed/waiting_share": self._waited / passed}
        self._sums, self._windows, self._waited, self._since = [], 0, 0.0, time.monotonic()
        return out
