"""The training loop: it learns, stops, saves, and goes on as if it had not been interrupted."""

import json
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from forecaster import checkpoints
from forecaster.batches import Batches, Weighted, fixed_windows
from forecaster.checkpoints import CheckpointError
from forecaster.contract import features_hash
from forecaster.dataset import Window
from forecaster.fitting import DivergedError, Machine, Outcome, Plan, Trainer, mean_score, schedule, validation_losses
from forecaster.models.patch_layers import PatchTransformerConfig
from forecaster.models.patch_transformer import PatchTransformer
from forecaster.predictor import load_model
from forecaster.run_folder import RunFolder
from forecaster.sources import Source
from forecaster.training_data import table_data
from tests.forecaster.builders import random_inputs, small_table

PLAN = Plan(steps=12, validate_every=3)
MACHINE = Machine(workers=0, quiet=True, checkpoint_every=100)


class Interrupting:
    """A source that sends this process a signal when it is asked for the n-th time."""

    def __init__(self, source: Source, at: int, number: int = signal.SIGINT) -> None:
        self._source, self._at, self._number = source, at, number
        self.freqs = source.freqs

    def draw(self, freq: str, size: int, rng: np.random.Generator) -> Window | None:
        self._at -= 1
        if self._at == 0:
            os.kill(os.getpid(), self._number)
        return self._source.draw(freq, size, rng)


DATA = table_data(small_table(items=6))
SOURCE = DATA.sources[0].source
VALIDATION = fixed_windows(Batches(DATA.held_out, ("1d",), 12, 1), 2)


def tiny(seed: int = 0, freqs: Sequence[str] = ("1d",)) -> PatchTransformer:
    torch.manual_seed(seed)
    return PatchTransformer(PatchTransformerConfig(width=16, layers=1, heads=2, step_width=8, freqs=freqs))


def trainer(
    run: RunFolder | None = None, plan: Plan = PLAN, source: Source = SOURCE, machine: Machine = MACHINE, seed: int = 0
) -> tuple[PatchTransformer, Trainer]:
    model = tiny(seed)
    return model, Trainer(model, Batches([Weighted(source, 1.0)], ("1d",), 16, seed), VALIDATION, plan, machine, run)


def same_files(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logged(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run.folder / "logs"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_training_learns_and_is_the_same_for_the_same_seed() -> None:
    before = mean_score(validation_losses(tiny(), VALIDATION))
    scores = []
    for _ in range(2):
        model, run = trainer()
        scores.append(run.fit().score)
        assert mean_score(validation_losses(model, VALIDATION)) == scores[-1]
    assert scores[0] == scores[1] < before


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, parted = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parted")
    assert trainer(whole)[1].fit().step == 12
    stopped = trainer(parted, source=Interrupting(SOURCE, at=5))[1].fit()
    assert stopped[3:] == (5, stopped.minutes, signal.SIGINT, parted.checkpoints / "step-00000005")
    _, second = trainer(parted, seed=0)
    assert second.resume(checkpoints.read(parted.last_checkpoint())) == 5
    end = second.fit()
    assert (end.step, end.stopped_by) == (12, 0)
    for name in ("model.safetensors", "checkpoints/step-00000012/state.safetensors"):
        assert same_files(whole.folder / name, parted.folder / name), name
    facts = [json.loads((run.last_checkpoint() / "state.json").read_text()) for run in (whole, parted)]
    assert [fact.pop("seconds") > 0 for fact in facts] == [True, True]
    assert facts[0] == facts[1]


def test_the_interrupted_run_leaves_models_that_forecast(tmp_path: Path) -> None:
    run, before = RunFolder(tmp_path), signal.getsignal(signal.SIGINT)
    outcome = trainer(run, source=Interrupting(SOURCE, at=2, number=signal.SIGTERM))[1].fit()
    assert (outcome.step, outcome.stopped_by, outcome.best_step) == (2, signal.SIGTERM, 0)
    for folder in (tmp_path, run.last_checkpoint()):
        made = load_model(folder).forecast(random_inputs("1d", 2, 0))
        assert np.isfinite(made.quantiles).all()
        assert json.loads((folder / "config.json").read_text())["features_hash"] == features_hash()
    assert signal.getsignal(signal.SIGINT) is before


def test_the_folder_holds_the_best_weights_not_the_last(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    # A rate so high that later weights are worse.
    plan = Plan(steps=40, validate_every=1, learning_rate=0.5, patience=3, averaging=0.0)
    model, training = trainer(run, plan)
    outcome = training.fit()
    assert outcome.step - outcome.best_step == 3  # stopped early
    assert mean_score(validation_losses(model, VALIDATION)) == outcome.score
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    last = load_file(run.last_checkpoint() / "model.safetensors")
    assert any(not torch.equal(last[name], stored[name]) for name in stored)


def test_logs_tell_losses_rate_speed_and_validation(tmp_path: Path) -> None:
    run, plan = RunFolder(tmp_path), Plan(steps=40, validate_every=10)
    outcome = trainer(run, plan)[1].fit()
    found = logged(run)
    assert {"loss/total", "loss/quantiles", "loss/mean", "learning_rate", "speed/windows_per_second"} <= found.keys()
    assert [step for step, _ in found["loss/total"]] == [20, 40]
    assert dict(found["learning_rate"])[20] == pytest.approx(plan.learning_rate * schedule(0.5), rel=1e-6)
    judged = dict(found["validation/mean"])
    assert list(judged) == [10, 20, 30, 40]
    assert min(judged.values()) == pytest.approx(outcome.score, rel=1e-6)
    assert judged == dict(found["validation/1d"])


def test_logs_of_a_run_that_goes_on_tell_each_step_once(tmp_path: Path) -> None:
    run, plan = RunFolder(tmp_path), Plan(steps=40, validate_every=10)
    trainer(run, plan, Interrupting(SOURCE, at=30), Machine(workers=0, quiet=True, checkpoint_every=20))[1].fit()
    # As if it had been killed at step 30, after the checkpoint of step 20.
    (run.checkpoints / "step-00000030").rename(tmp_path / "lost")
    _, second = trainer(run, plan)
    assert second.resume(checkpoints.read(run.last_checkpoint())) == 20
    second.fit()
    assert [step for step, _ in logged(run)["validation/mean"]] == [10, 20, 30, 40]


def test_only_the_last_checkpoints_stay(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, keep=2)
    trainer(run, machine=Machine(workers=0, quiet=True, checkpoint_every=2))[1].fit()
    assert [path.name for path in checkpoints.listed(run.checkpoints)] == ["step-00000010", "step-00000012"]
    assert not list(run.checkpoints.glob("*.partial"))


def test_a_damaged_or_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        run.last_checkpoint()
    trainer(run)[1].fit()
    checkpoint = checkpoints.read(run.last_checkpoint())
    wider = PatchTransformer(PatchTransformerConfig(width=32, layers=1, heads=2, step_width=8, freqs=("1d",)))
    other = Trainer(wider, Batches(DATA.sources, ("1d",), 16), VALIDATION, PLAN, MACHINE)
    with pytest.raises(CheckpointError, match="not of this model"):
        other.resume(checkpoint)
    (run.last_checkpoint() / "state.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="step-00000012"):
        checkpoints.read(run.last_checkpoint())


def test_without_held_out_windows_the_last_average_is_kept(tmp_path: Path) -> None:
    run, model = RunFolder(tmp_path), tiny()
    outcome: Outcome = Trainer(model, Batches(DATA.sources, ("1d",), 16), {}, PLAN, MACHINE, run).fit()
    assert (outcome.step, outcome.best_step, outcome.score) == (12, 0, math.inf)
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    averaged = load_file(run.last_checkpoint() / "model.safetensors")
    assert all(torch.equal(averaged[name], stored[name]) for name in stored)


def test_a_loss_that_is_no_number_ends_training() -> None:
    plan = Plan(steps=40, learning_rate=1e30)
    with pytest.raises(DivergedError, match=r"step 20.*--learning-rate"):
        trainer(plan=plan)[1].fit()


def test_a_limit_in_minutes_ends_the_schedule_too() -> None:
    outcome = trainer(plan=Plan(steps=10**6, minutes=0.02, validate_every=10**6))[1].fit()
    assert outcome.step < 10**6
    assert outcome.best_step == outcome.step  # judged at its end
    assert outcome.minutes >= 0.02
