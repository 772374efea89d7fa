"""Our own contestants of the accuracy benchmark: the shipped weights as they are, tuned to the shop, a transformer that
has seen nothing else, trees, and what two of them say together. Trained ones are kept in a folder, and taken from there
the next time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.accuracy_tasks import Task
from forecaster.batches import Batches, fixed_windows
from forecaster.contestants import of_model
from forecaster.contract import MODEL_NAME, NO_COVARIATES, Covariates
from forecaster.dataset import Window
from forecaster.fitting import Machine, Plan, Trainer
from forecaster.models.gbm_training import GbmPlan, train
from forecaster.models.patch_layers import PatchTransformerConfig
from forecaster.models.patch_transformer import PatchTransformer, load
from forecaster.predictor import load_model
from forecaster.rolling_origins import Contestants, Forecasts, Integers
from forecaster.run_folder import RunFolder
from forecaster.series import SeriesTable
from forecaster.training_data import table_data

SHIPPED = Path(__file__).resolve().parents[1] / "triton_models" / MODEL_NAME / "1"
_GBM_BATCHES, _GBM_BATCH = 60, 500
_JUDGED = 8  # batches that choose the best weights


class Own(NamedTuple):
    """A contestant of ours, and how long it learnt of this shop."""

    contestant: Contestants
    train_minutes: float


class Ensemble:
    """The mean of what several say of each quantile and mean."""

    def __init__(self, name: str, members: Mapping[str, Contestants]) -> None:
        self.names = (name,)
        self.fallbacks: Mapping[str, int] = {}
        self._members = dict(members)

    def forecast(
        self, table: SeriesTable, rows: Integers, running: int, prediction_length: int
    ) -> Mapping[str, Forecasts]:
        """See `rolling_origins.Contestants`."""
        said = [
            next(iter(member.forecast(table, rows, running, prediction_length).values()))
            for member in self._members.values()
        ]
        quantiles = np.mean([forecasts.quantiles for forecasts in said], axis=0)
        return {self.names[0]: Forecasts(quantiles, np.mean([forecasts.mean for forecasts in said], axis=0))}


def own_contestants(task: Task, folder: Path, minutes: float, wanted: tuple[str, ...]) -> dict[str, Own]:
    """Those of `wanted` that can forecast the task's freq; each of the trained ones learns for about `minutes`."""
    made: dict[str, Own] = {}
    for name in wanted:
        if name == "ensemble":
            continue
        own = _MAKERS[name](task, folder / name, minutes)
        if own is not None:
            made[name] = own
    if "ensemble" in wanted and {"patch_transformer", "gbm"} <= set(made):
        both = {name: made[name].contestant for name in ("patch_transformer", "gbm")}
        minutes_of_both = sum(made[name].train_minutes for name in both)
        made["ensemble"] = Own(Ensemble("ensemble", both), minutes_of_both)
    return made


def _shipped(task: Task, folder: Path, minutes: float) -> Own | None:
    model = load_model(SHIPPED, threads=torch.get_num_threads())
    return Own(of_model("shipped", model), 0.0) if task.table.freq in model.freqs else None


def _tuned(task: Task, folder: Path, minutes: float) -> Own | None:
    def begin() -> PatchTransformer:
        return load(SHIPPED)

    if task.table.freq not in begin().config.freqs:
        return None
    return _trained(task, "shipped_tuned", folder, begin, Plan(minutes=minutes / 2, steps=100_000, learning_rate=3e-4))


def _from_scratch(task: Task, folder: Path, minutes: float) -> Own:
    def begin() -> PatchTransformer:
        torch.manual_seed(0)
        return PatchTransformer(
            PatchTransformerConfig(
                freqs=(task.table.freq,),
                past_covariates=task.covariates.past,
                known_covariates=task.covariates.known,
            )
        )

    plan = Plan(minutes=minutes, steps=100_000, validate_every=100, patience=100)
    return _trained(task, "patch_transformer", folder, begin, plan)


def _trained(task: Task, name: str, folder: Path, begin: Callable[[], PatchTransformer], plan: Plan) -> Own:
    run = RunFolder(folder)
    if not run.holds_a_run:
        model = begin()
        covariates = model.config.covariates
        learnt, judged = _batches(task, covariates, 256)
        if covariates != NO_COVARIATES:
            inputs = learnt.draw(0).inputs
            model.fit_covariates(torch.from_numpy(inputs.context), torch.from_numpy(inputs.known))
        trainer = Trainer(model, learnt, judged, plan, Machine(workers=1), run)
        outcome = trainer.fit()
        run.write_summary({"status": "finished", "minutes": outcome.minutes, "split": task.split})
    model_of_run = load_model(folder, threads=torch.get_num_threads())
    return Own(of_model(name, model_of_run), float(run.summary()["minutes"]))


def _trees(task: Task, folder: Path, minutes: float) -> Own:
    run = RunFolder(folder)
    if not run.holds_a_run:
        started = time.monotonic()
        learnt, judged = _batches(task, task.covariates, _GBM_BATCH)
        freq = task.table.freq
        windows = {freq: [learnt.draw(step) for step in range(1, _GBM_BATCHES + 1)]}
        train(windows, judged, GbmPlan(), task.covariates).save(folder)
        run.write_summary({"status": "finished", "minutes": (time.monotonic() - started) / 60, "split": task.split})
    model = load_model(folder, threads=torch.get_num_threads())
    return Own(of_model("gbm", model), float(run.summary()["minutes"]))


def _batches(task: Task, covariates: Covariates, size: int) -> tuple[Batches, dict[str, list[Window]]]:
    """What is learnt from, and what chooses the best weights: the last buckets before the first origin."""
    made = table_data(task.table, covariates, end_bucket=task.origins[0], name=task.name)
    freqs = (task.table.freq,)
    held_out = Batches(made.held_out, freqs, size, 1, covariates)
    return Batches(made.sources, freqs, size, 0, covariates), dict(fixed_windows(held_out, _JUDGED))


_MAKERS: dict[str, Callable[[Task, Path, float], Own | None]] = {
    "shipped": _shipped,
    "shipped_tuned": _tuned,
    "patch_transformer": _from_scratch,
    "gbm": _trees,
}
OWN = (*_MAKERS, "ensemble")
