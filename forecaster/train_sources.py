"""The sources that the arguments of `shelfcast train` name."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click
import numpy as np
from rich.console import Console

from feature_store.calendar_time import ShopCalendar, bucket_of, bucket_start_ms
from feature_store.recording_files import Recording
from forecaster.batches import Batches, Weighted, fixed_windows
from forecaster.contract import NO_COVARIATES, Covariates
from forecaster.dataset import Window
from forecaster.series import SeriesTable
from forecaster.series_options import load_series
from forecaster.teaching import TeacherError, taught
from forecaster.training_data import (
    NO_DATA,
    TrainingData,
    recorded_data,
    rehearsal,
    retail_data,
    synthetic_data,
    synthetic_held_out,
    table_data,
)

_RETAIL_UNTIL = dt.date(2011, 2, 27)  # what the shipped weights were chosen without
_SYNTHETIC_ITEMS = 600
_JUDGED_BATCHES = 8  # of each freq
_EPOCH = dt.date(1970, 1, 1)


class Named(NamedTuple):
    """What a model is to learn, and from what."""

    batches: Batches
    validation: dict[str, list[Window]]  # by freq; empty = nothing is held out
    held_out: list[Weighted]

    def described(self) -> dict[str, Any]:
        """For training.json."""

        def listed(sources: Sequence[Weighted]) -> list[dict[str, Any]]:
            return [{"name": s.name, "share": s.share, "freqs": list(s.source.freqs)} for s in sources]

        return {
            "fingerprint": self.batches.fingerprint(),
            "sources": listed(self.batches.sources),
            "held_out": listed(self.held_out),
        }


def named_sources(arguments: Mapping[str, Any], covariates: Covariates | None = None) -> Named:
    """Sources to learn from, and windows to judge by.

    Args:
        covariates: those that the model has; None = those that the table has.

    Raises:
        click.UsageError: options that do not go together.
        SourceError, RecordingError, UnknownTimeZoneError, click.ClickException: nothing can be learnt from a source.
    """
    _refuse_what_does_not_go_together(arguments)
    seed, freqs = arguments["seed"], arguments["freqs"] or (("1d",) if arguments["series"] else ("1d", "1h"))
    data = _events(arguments, freqs)
    own = NO_COVARIATES
    if arguments["series"]:
        loaded = load_series({**arguments, "recording": None}, freq=freqs[0], console=Console(stderr=True))
        own = loaded.covariates
        end = _end_bucket(loaded.table, arguments["until"])
        data += table_data(
            loaded.table,
            own if covariates is None else covariates,
            held_out=arguments["held_out"],
            end_bucket=end,
            name=arguments["series"].name,
        )
        if arguments["from_"] and arguments["synthetic"] is None:
            data += rehearsal(loaded.table, seed, end)
    if not data.sources:
        raise click.UsageError(
            "nothing to train on: give --series, --recording, --online-retail or --synthetic above 0"
        )
    if not data.held_out and arguments["held_out"] != 0:
        data += synthetic_held_out(seed, freqs)
    covariates = own if covariates is None else covariates
    sources = data.sources
    if arguments["teacher"]:
        try:
            sources = taught(sources, arguments["teacher"], arguments["teacher_share"], covariates)
        except TeacherError as error:
            raise click.UsageError(f"--teacher: {error}") from error
    batches = Batches(sources, freqs, arguments["batch"], seed, covariates)
    return Named(batches, _judged(data.held_out, freqs, arguments, covariates), data.held_out)


def _judged(
    held_out: list[Weighted], freqs: Sequence[str], arguments: Mapping[str, Any], covariates: Covariates
) -> dict[str, list[Window]]:
    known = [freq for freq in freqs if any(freq in weighted.source.freqs for weighted in held_out)]
    # Another seed, so that the last windows that are learnt from are not those that judge.
    judged = Batches(held_out, known, min(arguments["batch"], 160), arguments["seed"] + 1, covariates)
    return dict(fixed_windows(judged, _JUDGED_BATCHES))


def _events(arguments: Mapping[str, Any], freqs: Sequence[str]) -> TrainingData:
    seed, data = arguments["seed"], NO_DATA
    if arguments["online_retail"]:
        until = arguments["until"].date() if arguments["until"] else _RETAIL_UNTIL
        data += retail_data(arguments["online_retail"], until, seed, freqs)
    if arguments["recording"]:
        data += recorded_data(Recording.open(arguments["recording"]), ShopCalendar(arguments["time_zone"]), freqs)
    items = arguments["synthetic"]
    if items is None:
        items = 0 if arguments["series"] else _SYNTHETIC_ITEMS
    return data + synthetic_data(items, seed, freqs) if items else data


def _end_bucket(table: SeriesTable, until: dt.datetime | None) -> int | None:
    """The first bucket that is not over by the end of the local date `until`."""
    if until is None:
        return None
    day = np.array([(until.date() - _EPOCH).days + 1])
    midnight = bucket_start_ms("1d", day, table.time_zone)
    return int(bucket_of(table.freq, midnight, table.time_zone)[0])


def _refuse_what_does_not_go_together(arguments: Mapping[str, Any]) -> None:
    if arguments["series"] and len(arguments["freqs"]) > 1:
        raise click.UsageError("a table has one frequency: give --freq once with --series")
    if arguments["until"] and not (arguments["series"] or arguments["online_retail"]):
        raise click.UsageError("--until goes with --series or --online-retail")
    if not arguments["series"]:
        given = [name for name in ("future", "static", "columns", "held_out") if arguments[name]]
        if given:
            option = {"columns": "--column", "held_out": "--held-out"}.get(given[0], f"--{given[0]}")
            raise click.UsageError(f"{option} goes with --series")
