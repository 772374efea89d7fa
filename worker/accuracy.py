"""`shelfcast accuracy`: how good the forecasts were whose buckets have closed, over all partitions."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import click
from rich import box
from rich.console import Console
from rich.table import Table

from feature_store.accuracy_store import Rows
from feature_store.events import item_id_of
from feature_store.score_state import SCORE_SUMS, SumsByStep
from feature_store.store import REDIS_ERRORS, FeatureStore
from worker.accuracy_messages import Window, add_to
from worker.errors import ShelfcastError
from worker.scoring import ALL, CATEGORY, measures
from worker.scoring import item_sums as sums_of_item
from worker.settings import Settings, load_settings
from worker.transport import murmur2_partition

_UNITS = SCORE_SUMS.index("actual")


class Line(NamedTuple):
    """One line of the table."""

    freq: str
    segment: str
    model_version: str
    window: Window
    step: int
    sums: list[int]


@click.command("accuracy")
@click.option("--freq", "freqs", multiple=True, help="Only of this frequency; may be given again.")
@click.option("--days", default=7, show_default=True, type=click.IntRange(1, 28), help="The last so many scored days.")
@click.option("--category", "categories", multiple=True, help="Only of this category; may be given again.")
@click.option("--item", "product_id", help="Of one item: a product, with --location where orders carry one.")
@click.option("--location", "location_id", default="", help="Location of --item.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the sums that measures are made of.")
def command(
    freqs: tuple[str, ...],
    days: int,
    categories: tuple[str, ...],
    product_id: str | None,
    location_id: str,
    as_json: bool,
) -> None:
    """Print how good forecasts were, by frequency, segment, model version and step.

    Of all items together and of each category over the last days; of a single item over windows of 28 days.
    """
    settings = load_settings(os.environ)
    chosen = _chosen_freqs(settings, freqs)
    if product_id is not None and categories:
        raise click.UsageError("--item and --category: ask for one of them")
    if location_id and product_id is None:
        raise click.UsageError("--location: say --item too")
    if product_id is None:
        rows = asyncio.run(_read(settings, lambda store: merged_rows(store, settings, chosen)))
        wanted = {CATEGORY + category for category in categories}
        lines = [line for line in lines_of(rows, days) if not wanted or line.segment in wanted]
    else:
        lines = asyncio.run(
            _read(settings, lambda store: _item_lines(store, settings, chosen, (product_id, location_id)))
        )
    if not lines:
        raise ShelfcastError(_nothing(settings, product_id, categories))
    if as_json:
        click.echo(json.dumps([told_of(line) for line in lines], indent=1))
    else:
        for (freq, window), own in groupby(lines, key=lambda line: (line.freq, line.window)):
            Console().print(lines_table(freq, window, own))


def _chosen_freqs(settings: Settings, freqs: tuple[str, ...]) -> list[str]:
    scored = [freq for freq in settings.forecast_freqs if settings.scored_steps(freq)]
    for freq in freqs:
        if freq not in scored:
            raise click.UsageError(
                f"--freq {freq}: not scored here, {', '.join(scored) or 'nothing'} is; see SHELFCAST_SCORED_FREQS"
            )
    return list(freqs) or scored


def _nothing(settings: Settings, product_id: str | None, categories: tuple[str, ...]) -> str:
    of = f"item {product_id!r}" if product_id is not None else " or ".join(map(repr, categories)) or "forecasts"
    return (
        f"nothing of {of} has been scored in namespace {settings.namespace!r}: a forecast is scored when its item is "
        "forecast again after the bucket has closed, a daily one after midnight"
    )


async def _read(settings: Settings, read: Any) -> Any:
    store = FeatureStore(**settings.store_options())
    try:
        await store.ping()
        return await read(store)
    except REDIS_ERRORS as error:
        raise ShelfcastError(f"Redis does not answer ({error}): check SHELFCAST_REDIS_URL") from error
    finally:
        await store.close()


async def merged_rows(store: FeatureStore, settings: Settings, freqs: Iterable[str]) -> dict[str, Rows]:
    """By frequency the sums of all partitions, added up."""
    merged: dict[str, Rows] = {}
    for freq in freqs:
        total = merged.setdefault(freq, {})
        for partition in range(settings.partition_count):
            for name, sums in (await store.accuracy().peek(partition, freq)).items():
                add_to(total.setdefault(name, {}), sums)
    return merged


def lines_of(rows: Mapping[str, Rows], days: int) -> list[Line]:
    """Of all items and of categories, over the last `days` that were scored."""
    lines = []
    for freq, by_name in rows.items():
        own = {n: sums for n, sums in by_name.items() if n.segment == ALL or n.segment.startswith(CATEGORY)}
        newest = max((name.day for name in own), default=0)
        window = Window(newest - days + 1, days)
        found: dict[tuple[str, str], dict[int, list[int]]] = {}
        for name, sums in own.items():
            if name.day >= window.first_day:
                add_to(found.setdefault((name.segment, name.model_version), {}), sums)
        for (segment, version), total in sorted(found.items(), key=lambda entry: (entry[0][0] != ALL, *entry[0])):
            lines += _by_step(freq, segment, version, window, total)
    return lines


async def _item_lines(
    store: FeatureStore, settings: Settings, freqs: Iterable[str], item: tuple[str, str]
) -> list[Line]:
    partition, item_id = murmur2_partition(item[0], settings.partition_count), item_id_of(*item)
    lines = []
    for freq in freqs:
        state = await store.accuracy().peek_item(partition, freq, item_id)
        for one in sums_of_item(state) if state is not None else []:
            window = Window(one.first_day, 28)
            lines += _by_step(freq, item_id, one.model_version, window, {one.step: one.sums})
    return sorted(lines, key=lambda line: (line.freq, line.window, line.model_version, line.step))


def _by_step(freq: str, segment: str, version: str, window: Window, sums: SumsByStep) -> list[Line]:
    return [Line(freq, segment, version, window, step, list(n)) for step, n in sorted(sums.items()) if n[0] > 0]


def told_of(line: Line) -> dict[str, Any]:
    """A line as JSON has it: null where nothing was sold."""
    found = measures(line.sums)._asdict()
    return {
        "freq": line.freq,
        "segment": line.segment,
        "model_version": line.model_version,
        "window_start": line.window.start,
        "window_days": line.window.days,
        "step": line.step,
        "sums": dict(zip(SCORE_SUMS, line.sums, strict=True)),
        **{name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()},
    }


def lines_table(freq: str, window: Window, lines: Iterable[Line]) -> Table:
    """What `shelfcast accuracy` prints of one frequency and window."""
    title = f"{freq}, {window.days} days from {window.start}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("of", overflow="fold", min_width=6)
    table.add_column("model", no_wrap=True)
    for name in ("step", "scored", "units", "WAPE", "WQL", "bias", "RMSE", "in 50", "80", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        found = measures(line.sums)
        table.add_row(
            *(line.segment.removeprefix(CATEGORY), line.model_version, str(line.step)),
            *(f"{line.sums[0]:,}", f"{line.sums[_UNITS] / 1000:,.0f}", _told(found.wape), _told(found.wql)),
            *(_told(found.bias), _told(found.rmse, 2), *(_told(share, 2) for share in found.coverage.values())),
        )
    return table


def _told(value: float, decimals: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"
