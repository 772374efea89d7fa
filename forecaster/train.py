"""`shelfcast train`: from a shop's past, real or invented, to a folder with a model."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from feature_store.calendar_time import UnknownTimeZoneError
from feature_store.recording_files import RecordingError
from forecaster import checkpoints
from forecaster.batches import SourceError
from forecaster.checkpoints import CheckpointError
from forecaster.contract import NO_COVARIATES
from forecaster.fitting import DivergedError, Machine, Outcome, Plan, Trainer
from forecaster.models.patch_layers import PatchTransformerConfig
from forecaster.models.patch_transformer import PatchTransformer, load, parameter_count
from forecaster.run_folder import RunFolder
from forecaster.train_options import GBM, SHIPPED, resumed, shipped_model, stored_form, train_options
from forecaster.train_sources import Named, named_sources

_LEARNING_RATE, _FINE_TUNING_RATE = 2e-3, 3e-4
_STEPS = 6000


@click.command("train")
@train_options
@click.pass_context
def command(context: click.Context, /, **arguments: Any) -> None:
    """Train a demand forecaster on your own sales, and write it to a folder.

    Sources are tables (--series, with --future and --static), recordings of a shop's topics, Online Retail II and
    invented shops. Ctrl-C ends training after the step in hand, saves a checkpoint and keeps the best weights so far;
    --resume goes on. Several GPUs: accelerate launch --module worker train …
    """
    run = RunFolder(arguments["output"], arguments["keep"])
    stopped_by = 0
    try:
        summary = run.summary() if arguments["resume"] else {}
        if summary:
            arguments = resumed(context, arguments, summary["arguments"])
        elif run.holds_a_run:
            raise click.UsageError(f"{run.folder} holds a run: go on with it by --resume, or name another --output")
        if arguments["model"] == GBM:
            _grow_trees(arguments, run)
        else:
            stopped_by = _train(arguments, run, summary)
    except (SourceError, CheckpointError, DivergedError, RecordingError, UnknownTimeZoneError) as error:
        raise click.ClickException(str(error)) from error
    if stopped_by:
        context.exit(128 + stopped_by)  # as shells say it, so that a script does not go on as if it were done


def _grow_trees(arguments: Mapping[str, Any], run: RunFolder) -> None:
    if arguments["resume"] or arguments["from_"] or arguments["teacher"]:
        raise click.UsageError(
            "trees are grown in one go: --resume, --from and --teacher are for the patch_transformer"
        )
    # Imported here: LightGBM is not needed for the rest.
    from forecaster.train_gbm import grow  # noqa: PLC0415

    grow(named_sources(arguments), arguments, run)


def _train(arguments: Mapping[str, Any], run: RunFolder, summary: Mapping[str, Any]) -> int:
    """1. the model, 2. what it learns from, 3. training, 4. what is said of it. Returns the signal that ended it."""
    # 1.
    last = run.last_checkpoint() if summary else None
    start = _start(arguments, last)
    # 2.
    named = named_sources(arguments, start.config.covariates if start else None)
    model = _checked(start, named) if start else _fresh(arguments, named)
    described = named.described()
    if summary and described["fingerprint"] != summary["data"]["fingerprint"]:
        raise CheckpointError(
            f"the data is no longer what {run.folder} was trained on: begin another run, with --from {run.folder}"
        )
    # 3.
    plan = _plan(arguments)
    try:
        trainer = Trainer(model, named.batches, named.validation, plan, _machine(arguments), run)
    except ValueError as error:  # accelerate's, of a precision that the machine does not have
        raise click.UsageError(f"--precision {arguments['precision']}: {error}") from error
    if last is not None:
        step = trainer.resume(checkpoints.read(last))
        _say(trainer, f"going on from step {step} of {plan.steps}")
    learnt_from = _in_words([source.name for source in named.batches.sources])
    _say(trainer, f"{parameter_count(model):,} parameters on {trainer.device}; learning from {learnt_from}")
    facts = {"arguments": stored_form(arguments), "seed": arguments["seed"], "data": described, **_of_model(model)}
    if trainer.is_first:
        run.write_summary(facts | {"status": "running"})
    outcome = trainer.fit()
    # 4.
    if trainer.is_first:
        run.write_summary(facts | _of_outcome(outcome, trainer))
        click.echo(_told(outcome, plan, run))
    return outcome.stopped_by


def _start(arguments: Mapping[str, Any], last: Path | None) -> PatchTransformer | None:
    """The model to begin with: a checkpoint's, that of --from, or None for a new one."""
    folder = last
    if last is None and arguments["from_"]:
        folder = shipped_model() if arguments["from_"] == SHIPPED else Path(arguments["from_"])
    if folder is None:
        return None
    try:
        return load(folder)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{folder} holds no patch_transformer to begin with: {error}") from error


def _checked(model: PatchTransformer, named: Named) -> PatchTransformer:
    missing = [freq for freq in named.batches.freqs if freq not in model.config.freqs]
    if missing:
        known = " and ".join(model.config.freqs)
        raise click.UsageError(
            f"the weights of --from forecast {known}, not {' and '.join(missing)}: name the frequencies with "
            "--freq, or train from scratch"
        )
    return model


def _fresh(arguments: Mapping[str, Any], named: Named) -> PatchTransformer:
    width, heads = arguments["width"], arguments["heads"]
    if width % heads:
        raise click.UsageError(f"--width {width} can't be split among --heads {heads}")
    torch.manual_seed(arguments["seed"])
    covariates = named.batches.covariates
    config = PatchTransformerConfig(
        width=width,
        layers=arguments["layers"],
        heads=heads,
        freqs=named.batches.freqs,
        past_covariates=covariates.past,
        known_covariates=covariates.known,
    )
    model = PatchTransformer(config)
    if covariates != NO_COVARIATES:
        inputs = named.batches.draw(0).inputs
        model.fit_covariates(torch.from_numpy(inputs.context), torch.from_numpy(inputs.known))
    return model


def _plan(arguments: Mapping[str, Any]) -> Plan:
    return Plan(
        steps=arguments["steps"] or _STEPS,
        minutes=arguments["minutes"] or math.inf,
        learning_rate=arguments["learning_rate"] or (_FINE_TUNING_RATE if arguments["from_"] else _LEARNING_RATE),
        validate_every=arguments["validate_every"],
        patience=arguments["patience"],
    )


def _machine(arguments: Mapping[str, Any]) -> Machine:
    return Machine(**{name: arguments[name] for name in Machine.__dataclass_fields__})


def _say(trainer: Trainer, text: str) -> None:
    if trainer.is_first:
        click.echo(text)


def _in_words(names: Sequence[str]) -> str:
    """Names of sources, those that differ by a number alone as one."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r" \d+$", "", name), []).append(name)
    return ", ".join(some[0] if len(some) == 1 else f"{len(some)} x {stem}" for stem, some in alike.items())


def _of_model(model: PatchTransformer) -> dict[str, Any]:
    config = model.config
    return {
        "model": {
            "parameters": parameter_count(model),
            "freqs": list(config.freqs),
            "past_covariates": list(config.past_covariates),
            "known_covariates": list(config.known_covariates),
            "features_hash": config.features_hash,
        }
    }


def _of_outcome(outcome: Outcome, trainer: Trainer) -> dict[str, Any]:
    return {
        "status": "interrupted" if outcome.stopped_by else "finished",
        "device": trainer.device,
        "steps": outcome.step,
        "minutes": round(outcome.minutes, 3),
        "best_step": outcome.best_step,
        "validation_loss": outcome.score if outcome.best_step else None,
        "scores": outcome.scores,
    }


def _told(outcome: Outcome, plan: Plan, run: RunFolder) -> str:
    weights = f"the averaged weights of step {outcome.step}"
    if outcome.best_step:
        weights = f"the best weights, of step {outcome.best_step} (validation loss {outcome.score:.4f}),"
    lines = [f"{weights} are in {run.folder}"]
    if outcome.stopped_by:
        name = signal.Signals(outcome.stopped_by).name
        lines.append(f"{name} at step {outcome.step} of {plan.steps}: checkpoint in {outcome.checkpoint}")
        lines.append(f"go on with: shelfcast train --output {run.folder} --resume")
    return "\n".join(lines)
