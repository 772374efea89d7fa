"""Options of the commands that take a shop's past sales (`train`, `evaluate`, `forecast`), and what they read.

@click.command("evaluate")
@series_options
@cleaning_options
def command(**arguments: Any) -> None:
    loaded = load_series(arguments)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
from rich.console import Console

from feature_store.calendar_time import ShopCalendar, UnknownTimeZoneError
from feature_store.recording_files import Recording, RecordingError
from forecaster.cleaning import CleaningReport, CleaningRules, clean
from forecaster.contract import WINDOWS, Covariates
from forecaster.recorded_series import recorded_series
from forecaster.series import SeriesTable
from forecaster.table_files import Layout, SeriesFileError, covariates_of, future_columns, read_series

_File = click.Path(exists=True, dir_okay=False, path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., Any])
_DEFAULTS = CleaningRules()


class LoadedSeries(NamedTuple):
    """A source's series after cleaning; what it has beyond a worker's channels; what cleaning changed."""

    table: SeriesTable
    covariates: Covariates
    report: CleaningReport


_Option = Callable[[Any], Any]


def _all_of(options: Sequence[_Option], command: _Command) -> _Command:
    for option in reversed(options):  # so that help lists them in their order
        command = option(command)
    return command


def freq_option(command: _Command) -> _Command:
    """`--freq`, one."""
    return click.option(
        "--freq", type=click.Choice(list(WINDOWS)), default="1d", show_default=True, help="Width of the buckets."
    )(command)


def source_options(command: _Command) -> _Command:
    """Where series come from; without `--freq`, of which some commands take several."""
    options = [
        click.option(
            "--series",
            type=_File,
            help="Table of past sales, Parquet or CSV: item_id, bucket_start, units and any covariates.",
        ),
        click.option(
            "--future",
            type=_File,
            help="Table of what is known ahead: item_id, bucket_start, unit_price, promotion, … Without item_id a row "
            "holds for every item.",
        ),
        click.option(
            "--static", type=_File, help="Table of the items: item_id, category, brand, title, launch_time, …"
        ),
        click.option(
            "--recording",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="A recording of the shop's topics, instead of --series.",
        ),
        click.option(
            "--time-zone", default="UTC", show_default=True, help="Whose dates the buckets are, an IANA name."
        ),
        click.option(
            "--column",
            "columns",
            multiple=True,
            metavar="NAME=COLUMN",
            help="The tables' own name of a column: --column units=qty.",
        ),
        click.option(
            "--absent",
            type=click.Choice(["zero", "missing"]),
            default="zero",
            show_default=True,
            help="What a bucket without a row means: nothing was sold, or nobody knows.",
        ),
    ]
    return _all_of(options, command)


def series_options(command: _Command) -> _Command:
    """Where series come from, and their frequency."""
    return source_options(freq_option(command))


def cleaning_options(command: _Command) -> _Command:
    """What is cleaned; see `cleaning.CleaningRules`."""

    def choice(name: str, values: list[str], text: str) -> _Option:
        field = name.removeprefix("--").replace("-", "_")
        default = getattr(_DEFAULTS, field)
        return click.option(name, type=click.Choice(values), default=default, show_default=True, help=text)

    options = [
        choice("--negative", ["returns", "missing", "keep"], "Units below 0: goods that came back, or not known."),
        choice("--missing", ["leave", "zero", "interpolate"], "Units that are not known, between buckets that are."),
        choice("--outliers", ["none", "iqr", "zscore"], "Totals far above the item's other buckets with sales."),
        click.option(
            "--outlier-factor",
            type=click.FloatRange(min=0),
            default=0.0,
            help="How far: interquartile ranges above the third quartile, or standard deviations (robust) above the "
            "median.  [default: 3 and 6]",
        ),
        choice("--outlier-action", ["mask", "clip"], "Take outliers for not known, or lower them to the limit."),
        choice(
            "--stock-outs",
            ["none", "recorded", "suspected"],
            "Zeros taken for not known: with available_fraction 0; also runs of them that are improbably long.",
        ),
        choice(
            "--one-off",
            ["none", "flagged", "large"],
            "Buckets not to be learnt from: whose column one_off is set; also those far above the item's median.",
        ),
        click.option(
            "--one-off-factor",
            type=click.FloatRange(min=1),
            default=_DEFAULTS.one_off_factor,
            show_default=True,
            help="How many times the median is large.",
        ),
    ]
    return _all_of(options, command)


def cleaning_rules(arguments: Mapping[str, Any]) -> CleaningRules:
    """The rules that a command with `cleaning_options` was given; the default ones for one without."""
    return CleaningRules(**{name: arguments[name] for name in CleaningRules.__dataclass_fields__ if name in arguments})


def load_series(
    arguments: Mapping[str, Any], *, freq: str = "", horizon: int = 0, console: Console | None = None
) -> LoadedSeries:
    """The series that a command's arguments name, cleaned; what cleaning changed is printed to `console`.

    Args:
        arguments: of a command with `source_options` and, where it has them, `freq_option` and `cleaning_options`.
        freq: where the command has no `--freq` of one value.
        horizon: buckets after the last known units that series have cells for, see `series_cells.Layout`.

    Raises:
        click.UsageError: not exactly one source, or options that do not go together.
        click.ClickException: the source can't be read; names the place and the remedy.
    """
    freq = freq or arguments["freq"]
    series, recording = arguments.get("series"), arguments.get("recording")
    try:
        if series is not None and recording is None:
            table, covariates = _from_files(series, arguments, freq, horizon)
        elif recording is not None and series is None:
            table, covariates = _from_recording(recording, arguments, freq, horizon), Covariates()
        else:
            raise click.UsageError("one source of past sales is needed: --series TABLE or --recording FOLDER")
        cleaned, report = clean(table, cleaning_rules(arguments))
    except (SeriesFileError, RecordingError, UnknownTimeZoneError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if console is not None and any(change.buckets for change in report.changes):
        console.print(report.table())
    return LoadedSeries(cleaned, covariates, report)


def _from_files(series: Path, arguments: Mapping[str, Any], freq: str, horizon: int) -> tuple[SeriesTable, Covariates]:
    columns = parse_columns(arguments.get("columns", ()))
    future, static = arguments.get("future"), arguments.get("static")
    layout = Layout(arguments.get("absent", "zero"), horizon)
    table = read_series(
        series, freq, arguments["time_zone"], static=static, future=future, columns=columns, layout=layout
    )
    return table, covariates_of(table, () if future is None else future_columns(future, columns))


def _from_recording(recording: Path, arguments: Mapping[str, Any], freq: str, horizon: int) -> SeriesTable:
    given = [name for name in ("future", "static", "columns") if arguments.get(name)]
    if given:
        option = {"columns": "--column"}.get(given[0], f"--{given[0]}")
        raise click.UsageError(f"{option} goes with --series; a recording says all that is known in its own topics")
    tables = recorded_series(
        Recording.open(recording), freq, ShopCalendar(arguments["time_zone"]), Layout(horizon=horizon)
    )
    return tables[0]  # one time zone, one table


def parse_columns(texts: tuple[str, ...]) -> dict[str, str]:
    """`NAME=COLUMN` options as {name: column}.

    Raises:
        click.UsageError: one is no such pair, or a name comes twice.
    """
    out: dict[str, str] = {}
    for text in texts:
        name, equals, column = text.partition("=")
        if not (name and equals and column):
            raise click.UsageError(f"--column {text}: write NAME=COLUMN, as in --column units=qty")
        if name in out:
            raise click.UsageError(f"--column names {name} twice: {out[name]} and {column}")
        out[name] = column
    return out
