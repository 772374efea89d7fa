"""Options of `shelfcast train`, and how a run that goes on gets them back from training.json."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from forecaster.contract import MODEL_NAME, WINDOWS
from forecaster.series_options import cleaning_options, source_options

_Command = TypeVar("_Command", bound=Callable[..., Any])

PATCH_TRANSFORMER, GBM = "patch_transformer", "gbm"
SHIPPED = "shipped"
_DATE = "%Y-%m-%d"
# What a run may go on with otherwise than it began; all else decides what the weights become.
_MAY_CHANGE = frozenset(
    {"resume", "output", "steps", "minutes", "patience", "workers", "cpu", "checkpoint_every", "checkpoint_minutes"}
    | {"keep", "quiet"}
)
_Count = click.IntRange(min=1)
_Above0 = click.FloatRange(min=0, min_open=True)

_DATA = [
    click.option(
        "--online-retail",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Online Retail II as Parquet.",
    ),
    click.option(
        "--until",
        type=click.DateTime([_DATE]),
        help="Last local date of --series or --online-retail that may be seen.  [default: all; 2011-02-27 of "
        "--online-retail]",
    ),
    click.option(
        "--held-out",
        type=click.IntRange(min=0),
        help="Last buckets of --series that choose the best weights and are not learnt from; 0 = none, and the last "
        "weights are kept. Of events it is the last four weeks.  [default: 672 of 1h, 28 of 1d, 13 of 1w]",
    ),
    click.option(
        "--synthetic",
        type=click.IntRange(min=0),
        help="Items of invented shops to learn from too.  [default: 600, with --series 0; 200 where --from is tuned to "
        "less than two years of weeks, which alone would teach it to forget the year]",
    ),
    click.option(
        "--freq",
        "freqs",
        multiple=True,
        type=click.Choice(list(WINDOWS)),
        help="Frequency to forecast; may be given again.  [default: 1d and 1h, with --series 1d]",
    ),
]
_MODEL = [
    click.option(
        "--model",
        type=click.Choice([PATCH_TRANSFORMER, GBM]),
        default=PATCH_TRANSFORMER,
        show_default=True,
        help="Family: the served transformer, or boosted trees.",
    ),
    click.option(
        "--from",
        "from_",
        metavar=f"{SHIPPED}|DIR",
        help="Fine-tune these weights, whose sizes and covariates stay.",
    ),
    click.option(
        "--teacher",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder of trees (--model gbm) to learn from, beside what has happened: distillation.",
    ),
    click.option(
        "--teacher-share",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.25,
        show_default=True,
        help="Share of the windows in which the teacher's forecast takes the place of what has happened.",
    ),
    click.option("--width", type=_Count, default=96, show_default=True, help="Numbers of a token."),
    click.option("--layers", type=_Count, default=3, show_default=True, help="Blocks of attention."),
    click.option("--heads", type=_Count, default=4, show_default=True, help="Heads of each."),
]
_PLAN = [
    click.option("--steps", type=_Count, help="Batches to learn from.  [default: 6000, of gbm 200]"),
    click.option("--minutes", type=_Above0, help="Stop after so long, whatever --steps says."),
    click.option("--batch", type=_Count, default=160, show_default=True, help="Windows of a batch, on each GPU."),
    click.option("--learning-rate", type=_Above0, help="The highest.  [default: 0.002, with --from 0.0003]"),
    click.option("--validate-every", type=_Count, default=250, show_default=True, help="Steps between validations."),
    click.option("--patience", type=_Count, default=8, show_default=True, help="Stop after so many without gain."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random."),
]
_MACHINE = [
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        default="fp32",
        show_default=True,
        help="Of forward passes; weights are fp32 always.",
    ),
    click.option("--cpu", is_flag=True, help="Leave a GPU alone."),
    click.option(
        "--workers", type=click.IntRange(min=0), default=1, show_default=True, help="Processes that draw batches."
    ),
    click.option("--checkpoint-every", type=_Count, default=1000, show_default=True, help="Steps between checkpoints."),
    click.option(
        "--checkpoint-minutes", type=_Above0, default=10.0, show_default=True, help="At most so long between."
    ),
    click.option("--keep", type=_Count, default=3, show_default=True, help="Checkpoints that stay, the last ones."),
    click.option("--quiet", is_flag=True, help="No progress bar."),
]
_RUN = [
    click.option(
        "--output",
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the run: model, training.json, checkpoints, logs.",
    ),
    click.option("--resume", is_flag=True, help="Go on with the run in --output, with the options it was begun with."),
]


def train_options(command: _Command) -> _Command:
    """All of them."""
    own = [*_DATA, *_MODEL, *_PLAN, *_MACHINE, *_RUN]
    command = cleaning_options(command)
    for option in reversed(own):
        command = option(command)
    return source_options(command)


def shipped_model() -> Path:
    """The newest version of the model that comes with the project."""
    versions = (Path(__file__).resolve().parent.parent / "triton_models" / MODEL_NAME).iterdir()
    return max((folder for folder in versions if folder.name.isdigit()), key=lambda folder: int(folder.name))


def stored_form(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON has them, in the words that a user would type."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value.resolve())
        if isinstance(value, dt.datetime):
            return value.strftime(_DATE)
        return list(value) if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in arguments.items() if name != "resume"}


def resumed(context: click.Context, arguments: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run that goes on: those it was begun with, and what was typed now of those that may change.

    Raises:
        click.UsageError: something was typed that may not change, and differs.
    """
    out = dict(arguments)
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in stored or name == "output":
            continue
        typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        before = parameter.type_cast_value(context, stored[name])
        if typed and name not in _MAY_CHANGE and stored_form({name: arguments[name]})[name] != stored[name]:
            raise click.UsageError(
                f"this run was begun with {parameter.opts[0]} {stored[name]}, and what it has learnt depends on it: "
                "leave the option out, or begin another run with --from"
            )
        if not typed:
            out[name] = before
    return out
