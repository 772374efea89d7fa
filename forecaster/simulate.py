"""`shelfcast simulate`: what order policies would have cost on a shop's own past sales."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forecaster.demand_distribution import Floats
from forecaster.evaluate import models_of
from forecaster.evaluation_summary import local_times
from forecaster.lead_time import LeadTime
from forecaster.rolling_origins import targets
from forecaster.series import SeriesTable
from forecaster.series_options import cleaning_options, load_series, source_options
from forecaster.stock_comparison import (
    DAYS_A_YEAR,
    Found,
    Question,
    compare,
    implied_shortage_cost,
    summarise,
    unit_prices,
)
from forecaster.stock_contestants import Shop, everyone
from forecaster.stock_simulation import StockRules

_SELLING_WINDOW = 91
_SEED = 0


class LeadTimeType(click.ParamType):
    """`7`, or `2:0.7,5:0.3`: whole days, each with its probability."""

    name = "DAYS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> LeadTime:
        if isinstance(value, LeadTime):
            return value
        parts = [part.partition(":") for part in str(value).split(",")]
        try:
            return LeadTime(
                tuple(float(int(days)) for days, _, _ in parts), tuple(float(p) if p else 1.0 for _, _, p in parts)
            )
        except ValueError:
            self.fail(f"{value}: write whole days, as in 7, or days with probabilities, as in 2:0.7,5:0.3", param, ctx)


@click.command("simulate")
@source_options
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="[NAME=]DIR",
    help="Folder of a model; may be given again. none = without one.  [default: the shipped one]",
)
@click.option(
    "--moving-average",
    "windows",
    multiple=True,
    type=click.IntRange(min=2, max=_SELLING_WINDOW),
    default=(28, 56),
    show_default=True,
    help="Days of a moving average to compare with; may be given again.",
)
@click.option(
    "--review-period", type=click.IntRange(min=1), default=7, show_default=True, help="Days between looks at the stock."
)
@click.option(
    "--lead-time", type=LeadTimeType(), default="7", show_default=True, help="Days, or 2:0.7,5:0.3 for a distribution."
)
@click.option("--weeks", type=click.IntRange(min=1), default=4, show_default=True, help="Last weeks, that are judged.")
@click.option(
    "--tuning-weeks",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Weeks before them, on which safety factors are tuned.",
)
@click.option(
    "--service",
    type=click.Choice(["fill-rate", "cycle"]),
    default="cycle",
    show_default=True,
    help="What reaches the target: the share of units served from stock, or of replenishment cycles without shortage.",
)
@click.option(
    "--target", type=click.FloatRange(0.5, 0.999), default=0.95, show_default=True, help="Service to be reached."
)
@click.option(
    "--policy",
    type=click.Choice(["order-up-to", "s-S"]),
    default="order-up-to",
    show_default=True,
    help="(R, S), or (R, s, S) with S above s by the economic quantity, which needs --order-cost.",
)
@click.option(
    "--holding-rate", type=click.FloatRange(min=0, min_open=True), default=0.25, show_default=True,
    help="Cost of holding a unit for a year, as a share of its price.",
)  # fmt: skip
@click.option(
    "--shortage-rate",
    type=click.FloatRange(min=0),
    help="Cost of a unit short, as a share of its price; with --backorders over a day.  "
    "[default: that for which the target costs least]",
)
@click.option(
    "--equal-shortage",
    is_flag=True,
    help="A unit short costs the same whatever its price: what the median item's does.",
)
@click.option(
    "--order-cost", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Cost of an order of an item."
)
@click.option("--min-order", type=click.FloatRange(min=0), default=0.0, help="Least units of an order.")
@click.option(
    "--pack", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Units come in packs of so many."
)
@click.option("--backorders", is_flag=True, help="Demand without stock is owed and served later, not lost.")
@click.option(
    "--min-selling-days",
    type=click.IntRange(min=0, max=_SELLING_WINDOW),
    default=1,
    show_default=True,
    help="Items that sold on so many of the 91 days before.",
)
@click.option("--items", "most", type=click.IntRange(min=1), help="At most so many items, drawn at random.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for simulation.json and report.html."
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as one line of JSON instead of a table.")
@cleaning_options
def command(as_json: bool, output: Path | None, **arguments: Any) -> None:
    """Run order policies on past sales: stock, lost sales, costs and service, week after week.

    \b
    shelfcast simulate --series sales.parquet --review-period 7 --lead-time 5 --target 0.95 --output simulated
    """
    messages = Console(stderr=True)
    models = models_of(arguments["models"], "1d")
    loaded = load_series(arguments, freq="1d", console=messages)
    question = question_of(loaded.table, arguments)
    with messages.status("simulating") as status:
        found = compare(
            question,
            everyone(question.shop, models, arguments["windows"]),
            progress=lambda name: status.update(f"simulating, {name}"),
        )
    summary = summarise(question, found) | {"headline": headline(question)}
    if output is not None:
        from forecaster.simulation_report import render_report  # noqa: PLC0415 - matplotlib, for who wants a report

        output.mkdir(parents=True, exist_ok=True)
        (output / "simulation.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        (output / "report.html").write_text(render_report(question, found, summary), encoding="utf-8")
        messages.print(f"written: {output / 'simulation.json'}, {output / 'report.html'}")
    if as_json:
        click.echo(json.dumps(summary))
    else:
        Console(width=max(Console().width, 110)).print(table_of(question, found))


def question_of(table: SeriesTable, arguments: dict[str, Any]) -> Question:
    """What is compared, from the command's arguments.

    Raises:
        click.ClickException: the table is too short, or no item sells often enough.
        click.UsageError: options that do not go together.
    """
    review, lead_time = arguments["review_period"], arguments["lead_time"]
    if arguments["policy"] == "s-S" and not arguments["order_cost"]:
        raise click.UsageError("--policy s-S orders the economic quantity, which is that of an --order-cost above 0")
    judged, tuning = 7 * arguments["weeks"], 7 * arguments["tuning_weeks"]
    # What the first orders bring has to have arrived before anything is counted.
    warm_up = -(-(review + int(lead_time.longest)) // review) * review
    end = int(table.end_bucket.max()) if len(table) else 0
    first = end - judged - tuning - warm_up
    rows = _rows(table, first, arguments["min_selling_days"], arguments["most"])
    if not len(rows):
        raise click.ClickException(
            f"no item sold on {arguments['min_selling_days']} of the {_SELLING_WINDOW} days before the first of the "
            f"{judged + tuning + warm_up} days that are simulated: lower --min-selling-days, --weeks or --tuning-weeks"
        )
    shop = Shop.of(table, rows, first, end - first, review, lead_time)
    price = unit_prices(table, rows, first)
    holding = arguments["holding_rate"] / DAYS_A_YEAR * price
    shortage = _shortage_cost(arguments, price, holding)
    ratio = shortage / holding
    shop = replace(shop, odds=ratio / np.median(ratio))
    rules = StockRules(
        review_period=review,
        lead_time=lead_time,
        lost_sales=not arguments["backorders"],
        holding_cost=holding,
        shortage_cost=shortage,
        order_cost=arguments["order_cost"],
        min_order=arguments["min_order"],
        pack=arguments["pack"],
    )
    return Question(
        shop,
        rules,
        slice(warm_up, warm_up + tuning),
        slice(warm_up + tuning, end - first),
        "fill_rate" if arguments["service"] == "fill-rate" else "cycle_service",
        arguments["target"],
        arguments["policy"] == "s-S",
    )


def _shortage_cost(arguments: dict[str, Any], price: Floats, holding: Floats) -> Floats:
    if arguments["shortage_rate"] is not None:
        cost = arguments["shortage_rate"] * price
    else:
        period = 1 if arguments["backorders"] else arguments["review_period"]
        cost = implied_shortage_cost(holding, period, arguments["target"])
    return np.full(len(cost), np.median(cost)) if arguments["equal_shortage"] else cost


def _rows(table: SeriesTable, first: int, selling_days: int, most: int | None) -> NDArray[np.int64]:
    begun: NDArray[np.int64] = np.flatnonzero(table.first_bucket < first)
    past = np.nan_to_num(targets(table, begun, first - _SELLING_WINDOW, _SELLING_WINDOW))
    rows: NDArray[np.int64] = begun[(past > 0).sum(axis=1) >= selling_days]
    if most is None or len(rows) <= most:
        return rows
    return np.asarray(np.sort(np.random.default_rng(_SEED).choice(rows, most, replace=False)))


def headline(question: Question) -> str:
    """What was asked, in a sentence."""
    shop, rules = question.shop, question.rules
    begin, end = local_times(
        shop.table, shop.first + np.array([question.judged.start, question.judged.stop - 1], dtype=np.int64)
    )
    durations = shop.lead_time.durations
    lead = f"{durations[0]:g}" if len(durations) == 1 else f"{min(durations):g} to {max(durations):g}"
    return (
        f"{len(shop.rows):,} items, {begin:%Y-%m-%d} to {end:%Y-%m-%d}; looked at every {shop.review_period} days, "
        f"lead time {lead} days; what is short is {'lost' if rules.lost_sales else 'owed'}"
    )


SERVICE_NAMES = {"fill_rate": "fill rate", "cycle_service": "cycle service"}


def table_of(question: Question, found: dict[str, Found]) -> Table:
    """What the tuned policies did, for a terminal."""
    table = Table(
        title=f"{headline(question)}\nsafety factors tuned to {question.target:.0%} {SERVICE_NAMES[question.service]} "
        "on the weeks before; costs a day",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in ("factor", "fill rate", "cycles", "cost", "holding", "shortage", "ordering", "units lost", "turns"):
        table.add_column(name, justify="right")
    for name, one in found.items():
        o = one.tuned
        factor = "–" if len(one.factors) == 1 else f"{one.factor:.3f}" if np.isfinite(one.factor) else "beyond"
        cells = [f"{o.fill_rate[0]:.2%}", f"{o.cycle_service[0]:.2%}"]
        cells += [f"{values[0]:,.2f}" for values in (o.cost, o.holding, o.shortage, o.ordering)]
        table.add_row(name, factor, *cells, f"{o.lost_units[0]:,.0f}", f"{o.turns[0]:.1f}")
    return table
