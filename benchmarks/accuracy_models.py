"""Our own contestants of the accuracy benchmark: the shipped weights as they are, tuned to the shop, a transformer that
has seen nothing else, trees, some of them scaled to what groups of items sell, and what two of them say together.
Trained ones are kept in a folder, and taken from there the next time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.accuracy_tasks import Task
from forecaster.batches import Batches, Weighted, fixed_windows
from forecaster.contestants import of_model
from forecaster.contract import MODEL_NAME, NO_COVARIATES, Covariates
from forecaster.dataset import Window
from forecaster.fitting import Machine, Plan, Trainer
from forecaster.group_sales import GroupScaled
from forecaster.models.gbm_training import GbmPlan, train
from forecaster.models.patch_layers import PatchTransformerConfig
from forecaster.models.patch_transformer import PatchTransformer, load
from forecaster.predictor import load_model
from forecaster.rolling_origins import Contestants, Forecasts, Integers
from forecaster.run_folder import RunFolder
from forecaster.series import SeriesTable
from forecaster.sources import SeriesSource
from forecaster.teaching import taught
from forecaster.training_data import rehearsal, table_data

SHIPPED = Path(__file__).resolve().parents[1] / "triton_models" / MODEL_NAME / "1"
_GBM_BATCHES, _GBM_BATCH = 80, 500
_JUDGED = 8  # batches that choose the best weights
_RECENT_DAYS = 120
_TEACHER_SHARE = 0.25
_TREES = GbmPlan(mean_trees=300, quantile_trees=150)


class Own(NamedTuple):
    """A contestant of ours, and how long it learnt of this shop."""

    contestant: Contestants
    train_minutes: float


class Ensemble:
    """The mean of what several say of each quantile, whole where all of them say whole units, and the means of the last
    one, who has the best."""

    def __init__(self, name: str, members: Sequence[Contestants]) -> None:
        self.names = (name,)
        self.fallbacks: Mapping[str, int] = {}
        self._members = tuple(members)

    def forecast(
        self, table: SeriesTable, rows: Integers, running: int, prediction_length: int
    ) -> Mapping[str, Forecasts]:
        """See `rolling_origins.Contestants`."""
        said = [
            next(iter(member.forecast(table, rows, running, prediction_length).values())) for member in self._members
        ]
        quantiles = np.mean([forecasts.quantiles for forecasts in said], axis=0)
        whole = np.all([(f.quantiles == f.quantiles.round()).all(axis=(1, 2)) for f in said], axis=0)
        quantiles = np.where(whole[:, None, None], np.floor(quantiles + 0.5), quantiles)
        return {self.names[0]: Forecasts(quantiles, said[-1].mean)}


def own_contestants(task: Task, folder: Path, minutes: float, wanted: tuple[str, ...]) -> dict[str, Own]:
    """Those of `wanted` that can forecast the task's freq; each of the trained ones learns for about `minutes`."""
    made: dict[str, Own] = {}
    for name, make in _MAKERS.items():
        own = make(task, folder / name, minutes) if name in wanted else None
        if own is not None:
            made[name] = own
    for name, member in _GROUPED.items():
        if name in wanted and member in made and task.grouped:
            scaled = GroupScaled(name, made[member].contestant, ("event", *task.covariates.known))
            made[name] = made[member]._replace(contestant=scaled)
    best = "gbm_scaled" if "gbm_scaled" in made else "gbm"
    if "ensemble" in wanted and {"patch_transformer", best} <= set(made):
        both = [made[name] for name in ("patch_transformer", best)]
        minutes_of_both = sum(own.train_minutes for own in both)
        made["ensemble"] = Own(Ensemble("ensemble", [own.contestant for own in both]), minutes_of_both)
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
    return _new(task, "patch_transformer", folder, minutes)


def _taught(task: Task, folder: Path, minutes: float) -> Own:
    """From scratch, and of what the trees say."""
    trees = _trees(task, folder.parent / "gbm", minutes)
    own = _new(task, "patch_transformer_taught", folder, minutes)
    return own._replace(train_minutes=own.train_minutes + trees.train_minutes)


def _new(task: Task, name: str, folder: Path, minutes: float) -> Own:
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
    return _trained(task, name, folder, begin, plan)


def _trained(task: Task, name: str, folder: Path, begin: Callable[[], PatchTransformer], plan: Plan) -> Own:
    run = RunFolder(folder)
    if not run.holds_a_run:
        model = begin()
        covariates = model.config.covariates
        learnt, judged = _batches(task, covariates, 256, held_out=not task.final)
        if name == "shipped_tuned":
            invented = rehearsal(task.table, 0, task.origins[0]).sources
            learnt = dataclasses.replace(learnt, sources=[*learnt.sources, *invented])
        if name == "patch_transformer_taught":
            sources = taught(list(learnt.sources), folder.parent / "gbm", _TEACHER_SHARE, covariates)
            learnt = dataclasses.replace(learnt, sources=sources)
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
        # Their number is fixed, so that the last weeks, which say most of the next, are learnt from too.
        learnt, _ = _batches(task, task.covariates, _GBM_BATCH, held_out=False)
        learnt = dataclasses.replace(learnt, sources=[_recent(weighted) for weighted in learnt.sources])
        freq = task.table.freq
        windows = {freq: [learnt.draw(step) for step in range(1, _GBM_BATCHES + 1)]}
        train(windows, {}, _TREES, task.covariates).save(folder)
        run.write_summary({"status": "finished", "minutes": (time.monotonic() - started) / 60, "split": task.split})
    model = load_model(folder, threads=torch.get_num_threads())
    return Own(of_model("gbm", model), float(run.summary()["minutes"]))


def _batches(
    task: Task, covariates: Covariates, size: int, *, held_out: bool
) -> tuple[Batches, dict[str, list[Window]]]:
    """What is learnt from, and what chooses the best weights: the last buckets before the first origin, unless these
    are to be learnt from too."""
    kept = None if held_out else 0
    made = table_data(task.table, covariates, held_out=kept, end_bucket=task.origins[0], name=task.name)
    freqs = (task.table.freq,)
    learnt = Batches(made.sources, freqs, size, 0, covariates)
    if not held_out:
        return learnt, {}
    return learnt, dict(fixed_windows(Batches(made.held_out, freqs, size, 1, covariates), _JUDGED))


def _recent(weighted: Weighted) -> Weighted:
    """Trees can't extrapolate growth, but learn it from targets that have grown."""
    source = weighted.source
    if not isinstance(source, SeriesSource) or source.table.freq != "1d":
        return weighted
    return weighted._replace(source=dataclasses.replace(source, recent_share=1.0, recent_buckets=_RECENT_DAYS))


_MAKERS: dict[str, Callable[[Task, Path, float], Own | None]] = {
    "shipped": _shipped,
    "shipped_tuned": _tuned,
    "patch_transformer": _from_scratch,
    "gbm": _trees,
    "patch_transformer_taught": _taught,
}
_GROUPED = {"shipped_scaled": "shipped", "gbm_scaled": "gbm"}  # scaled to what groups sell, and of whom
OWN = (*_MAKERS, *_GROUPED, "ensemble")
