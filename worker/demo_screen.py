"""The demo's screen: a live table of the busiest items, and the summary at the end."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from rich import box
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from forecaster.contract import QUANTILE_LEVELS
from worker.schemas import Forecast, ForecastStep

_LOW, _MIDDLE, _HIGH = (QUANTILE_LEVELS.index(level) for level in (0.1, 0.5, 0.9))


class Progress(NamedTuple):
    """Where the demo stands."""

    clock_ms: int
    order_lines: int
    events: int
    forecasts: int
    wall_s: float
    changed: Set[str]  # items with orders in the last step


def _band(step: ForecastStep) -> str:
    return f"{step.quantiles[_MIDDLE]:,.0f}  [dim]{step.quantiles[_LOW]:,.0f}–{step.quantiles[_HIGH]:,.0f}[/dim]"


def _age(milliseconds: int) -> str:
    minutes = milliseconds // 60_000
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"


def live_table(
    progress: Progress, items: Sequence[str], titles: Mapping[str, str], latest: Mapping[str, Forecast], zone: str
) -> Group:
    """The busiest items with what has sold today and what is forecast for today's final total and for tomorrow."""
    clock = dt.datetime.fromtimestamp(progress.clock_ms / 1000, ZoneInfo(zone))
    head = Text.assemble(
        ("shop ", "dim"),
        (clock.strftime("%a %d %b %Y %H:%M"), "bold"),
        ("  real order lines ", "dim"),
        f"{progress.order_lines:,}",
        ("  events ", "dim"),
        f"{progress.events:,}",
        ("  forecasts ", "dim"),
        f"{progress.forecasts:,}",
        ("  wall ", "dim"),
        f"{progress.wall_s:.0f} s",
    )
    table = Table(expand=True, pad_edge=False, box=box.SIMPLE_HEAD)
    table.add_column("item", no_wrap=True)
    table.add_column("product", no_wrap=True, ratio=1, min_width=10)
    table.add_column("sold\ntoday", justify="right")
    table.add_column("today in all\nmedian  10–90 %", justify="right")
    table.add_column("tomorrow\nmedian  10–90 %", justify="right")
    table.add_column("feature\nage", justify="right")
    for item_id in items:
        forecast = latest.get(item_id)
        if forecast is None:
            table.add_row(item_id, titles.get(item_id, ""), "", "[dim]no orders yet[/dim]", "", "")
            continue
        sold = f"{forecast.observed:,.0f}"
        table.add_row(
            item_id,
            titles.get(item_id, ""),
            f"[bold green]{sold}[/bold green]" if item_id in progress.changed else sold,
            _band(forecast.steps[0]),
            _band(forecast.steps[1]),
            _age(progress.clock_ms - forecast.cutoff + forecast.feature_age_ms.get("orders", 0)),
        )
    foot = Text(
        "Orders are real (Online Retail II, CC BY 4.0); clicks and reviews are invented from them. Green: ordered just "
        "now. Feature age: shop time since the newest order, of any item in its partition, that the forecast has seen.",
        style="dim",
    )
    return Group(head, table, foot)


def summary_panel(summary: Mapping[str, Any]) -> Panel:
    """What the demo did and how good its forecasts were."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right", style="bold")
    table.add_column()
    latency = summary["latency_ms"]
    rows = [
        (
            "events",
            f"{summary['events']:,}",
            f"{summary['order_lines']:,} real order lines, the rest invented from them",
        ),
        ("forecasts", f"{summary['forecasts']:,}", f"of {summary['items']:,} items, 28 days each, with 19 quantiles"),
        ("rejected", f"{summary['rejects']:,}", "records that went to a dead-letter topic"),
        ("latency, median", f"{latency['p50']:,.0f} ms", "from sending an order to the forecast that has seen it"),
        ("latency, 99 %", f"{latency['p99']:,.0f} ms", "orders come in bursts of two shop hours"),
        ("WAPE", _figure(summary["wape"], ".3f"), "of the median, one day ahead, against what then sold (0 = perfect)"),
        (
            "seasonal naive",
            _figure(summary["seasonal_naive_wape"], ".3f"),
            "WAPE of last week's same day, the same items and days",
        ),
        ("80 % band", _figure(summary["coverage_80"], ".0%"), "of days that sold within the 10 % to 90 % quantiles"),
        ("wall time", f"{summary['wall_s']:.0f} s", f"for {summary['days']} days of the shop"),
    ]
    for row in rows:
        table.add_row(*row)
    return Panel(table, title="shelfcast demo", title_align="left", expand=False)


def _figure(value: float | None, form: str) -> str:
    """A dash where the demo was too short for a forecast day to end."""
    return "–" if value is None else format(value, form)
