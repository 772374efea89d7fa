"""`shelfcast forecast`: forecasts of the series of a table or a recording, into a file."""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from feature_store.calendar_time import FIXED_MS, bucket_of, bucket_start_ms, local_to_utc_ms
from forecaster.contract import MAX_BATCH_SIZE, MODEL_NAME, NO_COVARIATES, WINDOWS, Covariates
from forecaster.forecast_files import ForecastFile, bucket_dates, refuse_ending
from forecaster.group_sales import follow_groups
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.rolling_origins import Forecasts
from forecaster.series import SeriesTable
from forecaster.series_options import LoadedSeries, cleaning_options, load_series, series_options
from worker.backtest_models import SHIPPED
from worker.forecast_client import ForecastClient

# By name: it needs torch, which who asks Triton for forecasts need not have.
_PREDICTOR = "forecaster.predictor"
_TIMEOUT_S = 60.0  # nobody waits for a single answer here, and a busy server may take its time
_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"]


class _Model(NamedTuple):
    """What forecasts: its name, its frequencies (None = not told), channels of its own, and how it is asked."""

    name: str
    freqs: tuple[str, ...] | None
    covariates: Covariates
    forecast: Callable[[ModelInputs], Awaitable[ModelOutputs]]


@click.command("forecast")
@series_options
@click.option(
    "--prediction-length",
    type=click.IntRange(min=1),
    help="How many buckets to forecast.  [default: as many as the model can]",
)
@click.option(
    "--cutoff",
    type=click.DateTime(_TIMES),
    help="Start of the first bucket to forecast, local time: what the series tell of it and later is not looked at.  "
    "[default: after their last bucket]",
)
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of a model.  [default: the one that ships with shelfcast]",
)
@click.option("--triton", "triton_url", metavar="HOST:PORT", help="Ask the model that this Triton serves, by gRPC.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File to write, .parquet or .csv: item_id, bucket_start, step, mean, q0.005 … q0.995.",
)
@click.option(
    "--follow-groups",
    is_flag=True,
    help="Scale forecasts to what items of a category and brand sell together: days' means to the group's weekdays, "
    "holidays and season, weeks to the category's last year.",
)
@cleaning_options
def command(**arguments: Any) -> None:
    """Forecast every series of a table of past sales, or of a recording.

    \b
    shelfcast forecast --series sales.parquet --future promotions.csv --freq 1d --prediction-length 28 \\
        --output forecasts.parquet
    """
    began = time.perf_counter()
    freq, output = arguments["freq"], arguments["output"]
    most = WINDOWS[freq].max_prediction_length
    steps = arguments["prediction_length"] or most
    if steps > most:
        raise click.UsageError(
            f"--prediction-length {steps}: {most} buckets of {freq} are the most that models forecast"
        )
    if arguments["model"] is not None and arguments["triton_url"]:
        raise click.UsageError("--model and --triton are two models: name one")
    console = Console(stderr=True)
    try:
        refuse_ending(output)
        loaded = load_series(arguments, horizon=steps, console=console)
        running = _running(loaded.table, arguments["cutoff"])
        file = ForecastFile(output, loaded.table)
        name, items = asyncio.run(_run(arguments, loaded, file, (running, steps), console))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    first = _named(loaded.table, running)
    click.echo(
        f"{output}: {items:,} items x {steps} buckets of {freq} from {first} on, by {name}, "
        f"in {time.perf_counter() - began:.1f} s"
    )


def _named(table: SeriesTable, bucket: int) -> str:
    """A bucket's start, as a person would write it."""
    start = int(bucket_dates(table, np.array([bucket]))[0])
    if table.freq in FIXED_MS:
        return f"{dt.datetime.fromtimestamp(start / 1000, dt.UTC):%Y-%m-%dT%H:%M} UTC"
    return str(dt.date(1970, 1, 1) + dt.timedelta(days=start))


def _running(table: SeriesTable, cutoff: dt.datetime | None) -> int:
    """First bucket to forecast.

    Raises:
        click.UsageError: the cutoff starts no bucket, or the series end before it.
    """
    end = int(table.end_bucket.max())
    if cutoff is None:
        return end
    local_ms = np.array([int(cutoff.replace(tzinfo=dt.UTC).timestamp()) * 1000], dtype=np.int64)
    cutoff_ms = local_to_utc_ms(local_ms, table.time_zone)
    bucket = int(bucket_of(table.freq, cutoff_ms, table.time_zone)[0])
    if table.freq == "1w":
        starts = int(local_ms[0]) == int(bucket_dates(table, np.array([bucket]))[0]) * 86_400_000
    else:
        starts = int(cutoff_ms[0]) == int(bucket_start_ms(table.freq, np.array([bucket]), table.time_zone)[0])
    if not starts:
        raise click.UsageError(
            f"--cutoff {cutoff:%Y-%m-%dT%H:%M} is not the start of a bucket of {table.freq}: that begins at "
            f"{_named(table, bucket)}"
        )
    if bucket > end:
        raise click.UsageError(f"--cutoff {cutoff:%Y-%m-%dT%H:%M}: the series end at {_named(table, end)}")
    return bucket


async def _run(
    arguments: dict[str, Any], loaded: LoadedSeries, file: ForecastFile, span: tuple[int, int], console: Console
) -> tuple[str, int]:
    """Write the file; returns the model's name and how many items there are."""
    table, running = loaded.table, span[0]
    rows = np.flatnonzero(table.first_bucket < running)
    if not len(rows):
        raise click.ClickException(f"no item was sold before {_named(table, running)}: choose a later --cutoff")
    if len(rows) < len(table):
        console.print(f"{len(table) - len(rows):,} items begin later than {_named(table, running)}: not forecast")
    async with _model(arguments["model"], arguments["triton_url"]) as model:
        _check(model, loaded, console)
        with file, Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            made = _forecasts(model, table, (rows, *span), bar)
            if arguments["follow_groups"]:
                parts = [(outputs.quantiles, outputs.mean) async for _, outputs in made]
                said = Forecasts(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
                file.write(rows, running, follow_groups(table, rows, running, said, ("event", *model.covariates.known)))
            else:
                async for block, outputs in made:
                    file.write(block, running, outputs)
    return model.name, len(rows)


async def _forecasts(
    model: _Model, table: SeriesTable, wanted: tuple[NDArray[np.int64], int, int], bar: Progress
) -> AsyncIterator[tuple[NDArray[np.int64], ModelOutputs]]:
    """Blocks of the wanted rows and their forecasts, in order; as many at a time as there are cores."""
    rows, running, steps = wanted
    blocks = [rows[first : first + MAX_BATCH_SIZE] for first in range(0, len(rows), MAX_BATCH_SIZE)]
    task = bar.add_task("forecasting", total=len(rows))
    at_once = len(os.sched_getaffinity(0))
    for first in range(0, len(blocks), at_once):
        some = blocks[first : first + at_once]
        windows = [table.windows(block, np.full(len(block), running), steps, model.covariates) for block in some]
        answers = await asyncio.gather(*(model.forecast(window.inputs) for window in windows))
        for block, outputs in zip(some, answers, strict=True):
            yield block, outputs
            bar.advance(task, len(block))


def _check(model: _Model, loaded: LoadedSeries, console: Console) -> None:
    """Raise where the model can't forecast these series; say what it would want and what it does not look at."""
    freq = loaded.table.freq
    if model.freqs is not None and freq not in model.freqs:
        raise click.ClickException(
            f"{model.name} forecasts {', '.join(model.freqs)}, not {freq}: name another model with --model, or train "
            "one with `shelfcast train`"
        )
    wanted, found = (
        {*model.covariates.past, *model.covariates.known},
        {*loaded.covariates.past, *loaded.covariates.known},
    )
    if wanted - found:
        console.print(f"{model.name} was trained with {', '.join(sorted(wanted - found))}, which these series lack")
    if found - wanted:
        console.print(f"{model.name} does not look at {', '.join(sorted(found - wanted))}")


@asynccontextmanager
async def _model(folder: Path | None, triton_url: str | None) -> AsyncIterator[_Model]:
    if not triton_url:
        yield _of_folder(folder or SHIPPED)
        return
    client = ForecastClient(triton_url, model_name=MODEL_NAME, timeout_s=_TIMEOUT_S)
    try:
        await client.check_model()

        async def ask(inputs: ModelInputs) -> ModelOutputs:
            return (await client.forecast(inputs)).outputs

        yield _Model(f"{MODEL_NAME} of Triton at {triton_url}", None, NO_COVARIATES, ask)
    finally:
        await client.close()


def _of_folder(folder: Path) -> _Model:
    try:
        model = importlib.import_module(_PREDICTOR).load_model(folder, threads=1)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"a model of this process needs {error.name}: pip install 'shelfcast[embedded]', or name a --triton"
        ) from error
    except (OSError, ValueError) as error:
        raise click.ClickException(f"the model in {folder} can't be loaded: {error}") from error

    # A pass has few rows: two threads of one pass are hardly faster than one, two passes at a time are twice as fast.
    async def compute(inputs: ModelInputs) -> ModelOutputs:
        return await asyncio.to_thread(model.forecast, inputs)

    # A version of a model repository is named by its number, below the model's own folder.
    name = f"{folder.parent.name}/{folder.name}" if folder.name.isdigit() else folder.name
    return _Model(name, tuple(model.freqs), model.covariates, compute)
