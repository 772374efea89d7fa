"""Alerts about inputs that drift, on the days of two real shops: how many on what really happened, and how soon after
something has broken.

Real are orders, returns and prices of Online Retail II, and orders and prices of dunnhumby, by local days and in the
lanes in which a worker of 8 partitions has their products. Clicks were not recorded by either: views are invented,
eight to an order line on average (negative binomial, by item and day). Each day the items that sold in the 90 days
before are summed up and judged by the worker's own functions, on the days that it keeps. Of what breaks, each case is
laid over the untouched stream from one day on, at six moments in four of the lanes; found is the alert of its input and
lane that opens within three weeks.
"""

from __future__ import annotations

import datetime as dt
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.accuracy_data import numbers
from benchmarks.report import show
from feature_store.features import FEATURE_INDEX, FEATURES
from feature_store.known_future import KNOWN_CHANNELS
from feature_store.score_state import RowName, SumsByStep
from forecaster.contract import STATIC_CHANNELS
from forecaster.inputs import ModelInputs
from worker.accuracy_messages import Origin
from worker.drift import drift_news
from worker.input_drift import WATCHED, input_drifts
from worker.input_sums import Bucket, input_sums
from worker.transport import murmur2_partition

Floats = NDArray[np.float32]
_PARTITIONS, _LIVE_DAYS, _CONTEXT, _KEPT_DAYS = 8, 90, 60, 42
_FIRST_JUDGED = 60  # days after the shop's first one
_VIEWS_A_LINE, _DISPERSION = 8.0, 2.0
_WITHIN_DAYS, _BREAKS = 21, 6
_DAY_MS = 86_400_000
_EPOCH = dt.date(1970, 1, 1)


class Lane(NamedTuple):
    """features: float32 (item, day, feature). first_day: days since 1970-01-01 of the first."""

    features: Floats
    first_day: int


def _rows(folder: Path, shop: str) -> tuple[NDArray[Any], ...]:
    """Product, day, units (below 0 = returned) and revenue of each line."""
    if shop == "online_retail":
        table = pq.read_table(
            folder / "online_retail_ii.parquet", columns=["StockCode", "InvoiceDate", "Quantity", "Price"]
        )
        product = np.array(table["StockCode"].to_pylist(), dtype=str)
        units, price = numbers(table["Quantity"], "f8"), numbers(table["Price"], "f8")
        kept = (
            (price > 0) & (np.char.str_len(product) >= 5) & np.char.isdigit(np.array([p[:5] for p in product.tolist()]))
        )
        time = table["InvoiceDate"]
        revenue = units * price
    else:
        columns = ["product_id", "transaction_timestamp", "quantity", "sales_value"]
        table = pq.read_table(folder / "dunnhumby_transactions.parquet", columns=columns)
        product = numbers(table["product_id"], "i8").astype(str)
        units, revenue = numbers(table["quantity"], "f8"), numbers(table["sales_value"], "f8")
        kept = (units > 0) & (units < 200)  # fuel is sold by the thousandth of a gallon
        time = table["transaction_timestamp"]
    day = (np.asarray(time.to_numpy()).astype("datetime64[D]") - np.datetime64("1970-01-01")).astype(np.int64)
    return product[kept], day[kept], units[kept], revenue[kept]


def lanes(folder: Path, shop: str) -> list[Lane]:
    """A shop's days, lane by lane."""
    product, day, units, revenue = _rows(folder, shop)
    names, item = np.unique(product, return_inverse=True)
    first, days = int(day.min()), int(day.max() - day.min()) + 1
    features = np.zeros((len(names), days, len(FEATURES)), dtype=np.float32)
    sold = units > 0
    for name, values, rows in (
        ("units", units, sold),
        ("returned_units", -units, ~sold),
        ("order_lines", np.ones_like(units), sold),
        ("revenue", revenue, sold),
    ):
        np.add.at(features[:, :, FEATURE_INDEX[name]], (item[rows], day[rows] - first), values[rows])
    mean = features[:, :, FEATURE_INDEX["order_lines"]] * _VIEWS_A_LINE
    random = np.random.default_rng(5)
    views = random.negative_binomial(_DISPERSION, _DISPERSION / (_DISPERSION + mean))
    features[:, :, FEATURE_INDEX["views"]] = views
    lane = np.array([murmur2_partition(name, _PARTITIONS) for name in names.tolist()])
    return [Lane(features[lane == p], first) for p in range(_PARTITIONS)]


def _sums(features: Floats, day: int, first_day: int, uncategorised: float) -> Mapping[RowName, SumsByStep]:
    """Of the items that are live on the day."""
    before = features[:, max(day - _LIVE_DAYS, 0) : day, FEATURE_INDEX["order_lines"]].sum(axis=1)
    own = features[before > 0, day - _CONTEXT : day]
    count = len(own)
    known = np.zeros((count, _CONTEXT + 1, len(KNOWN_CHANNELS)), dtype=np.float32)
    known[:, :, KNOWN_CHANNELS.index("unit_price")] = np.nan
    static = np.zeros((count, len(STATIC_CHANNELS)), dtype=np.float32)
    static[round(uncategorised * count) :, STATIC_CHANNELS.index("category_code")] = 7
    nothing = np.zeros((count, 0), dtype=np.float32)
    inputs = ModelInputs(own, nothing, known, nothing, nothing, static, np.zeros((count, 1), dtype=np.int32))
    closed = np.full(count, first_day + day - 1, dtype=np.int64)
    return input_sums(Bucket("1d", closed), inputs, np.ones(count, dtype=np.bool_))


def alerts(lane: Lane, days: range, bare_since: int = 1_000_000) -> Iterator[tuple[int, str]]:
    """Day and input of each alert that opens; nothing stands before the first day. From `bare_since` on a third of the
    items have no category."""
    rows: dict[RowName, SumsByStep] = {}
    noted: dict[str, str] = {}
    for day in days:
        rows |= _sums(lane.features, day, lane.first_day, 1 / 3 if day >= bare_since else 0.0)
        rows = {name: sums for name, sums in rows.items() if name.day >= lane.first_day + day - _KEPT_DAYS}
        news = drift_news(input_drifts(rows), noted, Origin(0, "1d", "m", (lane.first_day + day) * _DAY_MS))
        noted = {name: note for name, note in (noted | news.notes).items() if name not in news.gone}
        for _, alert in news.messages:
            if alert.episode_state == "open":
                yield day, alert.channel


def _prices(features: Floats, day: int) -> None:
    features[:, day:, FEATURE_INDEX["revenue"]] *= 1.25


def _packs(features: Floats, day: int) -> None:
    features[:, day:, FEATURE_INDEX["units"]] *= 6


def _clicks(features: Floats, day: int) -> None:
    column = FEATURE_INDEX["views"]
    features[:, day:, column] = np.random.default_rng(day).binomial(features[:, day:, column].astype(np.int64), 0.5)


def _nothing(features: Floats, day: int) -> None:
    pass


BREAKS: Mapping[str, tuple[str, Callable[[Floats, int], None]]] = {
    "prices in another currency (1.25)": ("unit_price", _prices),
    "pieces counted instead of packs of 6": ("units_per_line", _packs),
    "half of the clicks not recorded": ("views_per_line", _clicks),
    "a third of the categories lost": ("uncategorised_share", _nothing),
}


def broken(shop: list[Lane], what: str) -> dict[str, Any]:
    """How many lanes tell of it, and after how many days."""
    channel, change = BREAKS[what]
    days, found, watched = shop[0].features.shape[1], [], 0
    moments = np.linspace(_FIRST_JUDGED + _KEPT_DAYS, days - _WITHIN_DAYS - 1, _BREAKS).astype(int).tolist()
    for number, moment in enumerate(moments):
        for lane in shop[number % 2 :: 2]:
            features = lane.features.copy()
            change(features, moment)
            since = moment if what.startswith("a third") else days
            told = alerts(
                Lane(features, lane.first_day), range(moment - _KEPT_DAYS, moment + _WITHIN_DAYS), bare_since=since
            )
            delays = [day - moment for day, name in told if name == channel and day > moment]
            watched += 1
            found += delays[:1]
    return {
        "lanes": watched,
        "found": len(found),
        "median_days": statistics.median(found) if found else None,
        "most_days": max(found, default=None),
    }


def untouched(shop: list[Lane]) -> dict[str, Any]:
    """Alerts by input in a lane and year, over all days."""
    days = range(_FIRST_JUDGED, shop[0].features.shape[1])
    told = Counter(name for lane in shop for _, name in alerts(lane, days))
    years = len(days) * len(shop) / 365.25
    return {
        "lane_years": round(years, 2),
        "alerts": dict(sorted(told.items())),
        "a_lane_and_year": round(sum(told.values()) / years, 2),
        "inputs": [one.name for one in WATCHED],
    }


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder.")
@click.option("--shop", "shops", multiple=True, type=click.Choice(["online_retail", "dunnhumby"]))
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(data: Path, shops: tuple[str, ...], as_json: bool) -> None:
    """Alerts of drifting inputs on real shops, untouched and broken."""
    figures: dict[str, Any] = {}
    rows = []
    for name in shops or ("online_retail", "dunnhumby"):
        shop = lanes(data, name)
        figures[name] = {"untouched": untouched(shop), "broken": {what: broken(shop, what) for what in BREAKS}}
        own = figures[name]["untouched"]
        rows.append(
            [
                name,
                "untouched",
                f"{own['a_lane_and_year']} a lane and year",
                msgspec.json.encode(own["alerts"]).decode(),
            ]
        )
        for what, one in figures[name]["broken"].items():
            rows.append(
                [
                    name,
                    what,
                    f"{one['found']} of {one['lanes']}",
                    f"days {one['median_days']}, at most {one['most_days']}",
                ]
            )
    show("Drift of inputs", ("shop", "what", "alerts", ""), rows, figures, as_json)


if __name__ == "__main__":
    command()
