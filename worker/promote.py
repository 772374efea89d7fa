"""`shelfcast promote`: have workers use the challenger, when it has been shown to be better."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterable

import click
from rich import box
from rich.console import Console
from rich.table import Table

from feature_store.store import FeatureStore
from worker.accuracy import merged_rows
from worker.comparison import Compared, Demands, compare, objections
from worker.errors import ModelError, ShelfcastError
from worker.forecast_client import ForecastClient
from worker.model import choose, used_version, with_servers
from worker.settings import Settings, load_settings


@click.command("promote")
@click.argument("version", required=False)
@click.option("--check", is_flag=True, help="Only print the evidence; exit with 1 where it does not suffice.")
@click.option("--force", is_flag=True, help="Promote without it.")
@click.option(
    "--significance",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="The most that chance may have to do with it.",
)
@click.option("--days", default=14, show_default=True, type=click.IntRange(2), help="Days of comparison asked for.")
@click.option("--gain", default=0.005, show_default=True, help="By what share WQL has to be lower at the first step.")
def command(version: str | None, check: bool, force: bool, significance: float, days: int, gain: float) -> None:
    """Have all running workers of the namespace use VERSION, by default the challenger, in place of the one they use
    now, if its forecasts were better on the same items at the same moments."""
    settings = load_settings(os.environ)
    if settings.model_version:
        raise ShelfcastError(
            f"SHELFCAST_MODEL_VERSION={settings.model_version} goes before what is promoted: unset it for workers"
        )
    demands = Demands(significance, days, gain)

    async def look(store: FeatureStore, client: ForecastClient) -> tuple[str, list[str]]:
        wanted = await _challenger(store, settings, version)
        present = await _present(store, client, settings)
        if present == wanted:
            raise ShelfcastError(f"workers of namespace {settings.namespace!r} use version {wanted} already")
        found = compare(await merged_rows(store, settings, settings.forecast_freqs), present, wanted)
        if found:
            Console().print(evidence_table(found, present, wanted))
        against = objections(found, demands) if found else [_nothing(present, wanted)]
        if not check and (force or not against):
            await choose(store, client, settings, wanted)
        return wanted, against

    wanted, against = asyncio.run(with_servers(settings, look))
    if against and not force:
        raise ShelfcastError("not promoted: " + "; ".join(against) if not check else "; ".join(against))
    if check:
        click.echo(f"version {wanted} is better: `shelfcast promote {wanted}` has workers use it")
    else:
        click.echo(
            f"workers of namespace {settings.namespace!r} take version {wanted} of {settings.model_name} over now"
        )


def _nothing(present: str, wanted: str) -> str:
    return (
        f"no forecasts of version {wanted} have been scored beside those of version {present}: have workers compare it "
        f"by `shelfcast model challenge {wanted}` for some weeks, or say --force"
    )


async def _challenger(store: FeatureStore, settings: Settings, version: str | None) -> str:
    chosen = version or settings.challenger_version or await store.choices().challenger_version(settings.model_name)
    if not chosen:
        raise click.UsageError("name a version: none is compared, see `shelfcast model challenge`")
    return chosen


async def _present(store: FeatureStore, client: ForecastClient, settings: Settings) -> str:
    used = used_version(settings, await client.versions(), await store.choices().wanted_version(settings.model_name))
    if not used:
        raise ModelError(f"Triton at {settings.triton_url} serves no version of {settings.model_name}")
    return used


def evidence_table(found: Iterable[Compared], present: str, wanted: str) -> Table:
    """What both versions were worth."""
    title = f"version {wanted} beside version {present}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("freq")
    for name in ("step", "forecasts", "days", f"WQL {present}", f"WQL {wanted}", f"WAPE {present}", f"WAPE {wanted}"):
        table.add_column(name, justify="right")
    for name in ("DM", "p better", "p worse"):
        table.add_column(name, justify="right")
    for one in found:
        test = one.test
        table.add_row(
            *(one.freq, str(one.step), f"{one.forecasts:,}", str(test.days)),
            *map(_told, (one.present.wql, one.challenger.wql, one.present.wape, one.challenger.wape)),
            *map(_told, (test.statistic, test.p_better, test.p_worse)),
        )
    return table


def _told(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
