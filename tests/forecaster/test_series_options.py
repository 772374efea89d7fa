"""The options that train, evaluate and forecast share, through a command that prints what it was given."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from forecaster.series_options import cleaning_options, load_series, series_options
from tests.forecaster.tables import cells_of, write_table

D = [dt.date(2024, 3, 4) + dt.timedelta(days=n) for n in range(12)]


@click.command()
@series_options
@cleaning_options
def command(**arguments: Any) -> None:
    """Load and say what came of it."""
    loaded = load_series(arguments, horizon=1, console=Console(width=100))
    for item in loaded.table.item_ids:
        click.echo(f"{item}: {cells_of(loaded.table, item)} {loaded.table.freq} {loaded.table.time_zone}")
    click.echo(str(loaded.covariates))


def ran(*options: str | Path) -> str:
    result = CliRunner().invoke(command, [str(option) for option in options], catch_exceptions=False)
    return f"{result.exit_code} {result.output}"


def shop(folder: Path) -> Path:
    return write_table(
        folder / "sales.csv", sku=["a"] * 12, day=D, units=[1, 2, 1, 2, 1, 2, 90, 2, 1, 2, -1, 1], heat=range(12)
    )


NAMED = ("--column", "item_id=sku", "--column", "bucket_start=day")


def test_a_table_is_read_and_cleaned_by_its_options(tmp_path: Path) -> None:
    snow = write_table(tmp_path / "future.csv", day=D, heat=range(12), snow=range(12))
    output = ran(
        *("--series", shop(tmp_path), "--future", snow, *NAMED, "--time-zone", "Europe/London"),
        *("--outliers", "iqr", "--outlier-action", "clip"),
    )
    limit = round(float(np.float32(2 + 3 * np.sqrt(2))), 4)  # the third quartile and the median are 2
    assert f"a: [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, {limit}, 2.0, 1.0, 2.0, 0.0, 1.0, None] 1d Europe/London" in output
    assert "Covariates(past=(), known=('heat', 'snow'))" in output
    assert "negative: returns" in output
    assert "outliers: iqr, clip" in output
    assert output.startswith("0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "one source of past sales is needed"),
        (("--series", "SHOP", "--recording", "FOLDER"), "one source of past sales is needed"),
        (("--recording", "FOLDER", "--column", "units=qty"), "--column goes with --series"),
        (("--recording", "FOLDER"), "is not a recording"),
        (("--series", "SHOP"), "has no column item_id"),
        (("--series", "SHOP", "--column", "units"), "write NAME=COLUMN"),
        (("--series", "SHOP", *NAMED, "--column", "units=heat", "--column", "units=units"), "names units twice"),
        (("--series", "SHOP", *NAMED, "--stock-outs", "recorded"), "no column available_fraction"),
        (("--series", "SHOP", *NAMED, "--time-zone", "Mars"), "unknown time zone 'Mars'"),
        (("--series", "SHOP", *NAMED, "--freq", "5m"), "'5m' is not one of '1h', '1d', '1w'"),
    ],
)
def test_what_can_not_be_is_one_line_and_an_exit_code(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    named = {"SHOP": shop(tmp_path), "FOLDER": tmp_path}
    output = ran(*(named.get(option, option) for option in options))
    assert not output.startswith("0")
    assert message in output
