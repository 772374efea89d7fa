"""`shelfcast show ITEM`: an item's features and last forecast, as a person reads them."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
from typing import Any
from zoneinfo import ZoneInfo

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from feature_store.calendar_time import bucket_start_ms
from feature_store.features import FEATURES, UNITS_PER_ONE
from feature_store.layout import ForecastSummary
from feature_store.store import REDIS_ERRORS, FeatureStore
from worker.errors import ShelfcastError
from worker.settings import Settings, load_settings
from worker.transport import murmur2_partition


@click.command("show")
@click.argument("product_id")
@click.option("--location", "location_id", default="", help="Location, for items that have one.")
@click.option("--last", default=8, show_default=True, help="How many buckets of each frequency.")
def command(product_id: str, location_id: str, last: int) -> None:
    """Print an item's features and last forecast. The item is a PRODUCT_ID, with --location where orders carry one."""
    settings = load_settings(os.environ)
    if not asyncio.run(show(settings, product_id, location_id, last, Console())):
        click.echo(
            f"no orders of {product_id!r}{f' at {location_id!r}' if location_id else ''} are in the features of "
            f"namespace {settings.namespace!r}",
            err=True,
        )
        sys.exit(1)


async def show(settings: Settings, product_id: str, location_id: str, last: int, console: Console) -> bool:
    """Print to `console`; False when there is no such item."""
    store = FeatureStore(**settings.store_options())
    partition = murmur2_partition(product_id, settings.partition_count)
    try:
        found = await store.look_up(partition, product_id, location_id)
    except REDIS_ERRORS as error:
        raise ShelfcastError(f"Redis does not answer ({error}): check SHELFCAST_REDIS_URL") from error
    finally:
        await store.close()
    if found is None or found.item is None:
        return False
    zone = settings.shop_calendar().zone(location_id)
    when = _clock(zone)
    console.print(f"[bold]{found.item.item_id}[/bold], partition {partition}, times in {zone}")
    console.print(f"orders from {when(found.item.first_event_ms)} to {when(found.item.last_event_ms)}")
    for freq, (buckets, values) in found.sums.items():
        console.print(_sums_table(freq, buckets[-last:], values[-last:], zone))
    for freq, forecast in found.forecasts.items():
        console.print(_forecast_table(freq, forecast, last, zone) if forecast else f"no {freq} forecast yet")
    return True


def _clock(zone: str) -> Any:
    return lambda ms: dt.datetime.fromtimestamp(ms / 1000, ZoneInfo(zone)).strftime("%a %Y-%m-%d %H:%M")


def _sums_table(freq: str, buckets: Any, values: Any, zone: str) -> Table:
    table = Table(title=f"{freq} buckets that hold something", title_justify="left")
    table.add_column("from")
    for feature in FEATURES:
        table.add_column(feature.name, justify="right")
    when = _clock(zone)
    starts = bucket_start_ms(freq, buckets, zone).tolist() if len(buckets) else []
    for start, row in zip(starts, (values / UNITS_PER_ONE).tolist(), strict=True):
        table.add_row(when(start), *(f"{value:g}" for value in np.round(row, 2)))
    return table


def _forecast_table(freq: str, forecast: ForecastSummary, last: int, zone: str) -> Table:
    when = _clock(zone)
    stand_in = ", a baseline stood in" if forecast.degraded else ""
    table = Table(
        title=f"{freq} forecast, revision {forecast.revision}, has seen events up to {when(forecast.cutoff)}, "
        f"model {forecast.model_name} {forecast.model_version}{stand_in}",
        title_justify="left",
    )
    for name in ("from", "mean", "10%", "median", "90%"):
        table.add_column(name, justify="left" if name == "from" else "right")
    buckets = forecast.running_bucket + np.arange(len(forecast.mean))
    starts = bucket_start_ms(freq, buckets, zone).tolist()
    rows = zip(starts, forecast.mean, forecast.q10, forecast.q50, forecast.q90, strict=True)
    for n, (start, *values) in enumerate(rows):
        if n == last:
            break
        table.add_row(when(start), *(f"{value:.1f}" for value in values))
    return table
