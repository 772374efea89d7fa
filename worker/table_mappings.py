"""Ready mappings: public tables as a shop's events. Each says what it leaves out, and what it makes up.

Every mapping takes a file (or the folder of several) and returns events by source, in the order of the rows; the same
file always gives the same ids. What a row says of a person (customer, household, session) goes into no event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from feature_store.calendar_time import local_to_utc_ms
from feature_store.events import ClickEvent, OrderEvent, ProductEvent, ReviewEvent
from forecaster import online_retail
from worker.errors import TableError
from worker.tables import numbers, read_table, utc_ms

_DAY_MS = 86_400_000
Events = dict[str, Iterable[msgspec.Struct]]


class ReadyMapping(NamedTuple):
    """`events(path, time_zone, with_locations)` by source. `time_zone` is the one that the file's times are in."""

    events: Callable[[Path, str, bool], Events]
    time_zone: str


def _online_retail_ii(path: Path, time_zone: str, with_locations: bool) -> Events:
    """Online Retail II: see `forecaster.online_retail` for what is left out. Its times are always the shop's."""
    try:
        return {"orders": online_retail.read(path).events()}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise TableError(f"{path} can't be read as Online Retail II: {error}") from error


def _dunnhumby(path: Path, time_zone: str, with_locations: bool) -> Events:
    """dunnhumby's transactions, one order a line, the basket as its order. Left out: lines of no quantity (they have no
    unit price), and of more than 100, which are fuel and coupons and count something other than units. The file's times
    are UTC; the shops are in New York's zone (its weeks turn over at 05:00 in winter and 04:00 in summer)."""
    names = ("transaction_timestamp", "product_id", "store_id", "basket_id", "quantity", "sales_value")
    table = read_table(path, names)
    times = utc_ms(path, names[0], table[names[0]], time_zone)
    quantity, sales = numbers(table["quantity"], pa.int64()), numbers(table["sales_value"], pa.float64())
    rows = np.flatnonzero((quantity > 0) & (quantity <= 100) & (sales >= 0))
    price = np.round(sales[rows] / quantity[rows], 6)
    columns = [times[rows], quantity[rows].astype(np.float64), price]
    texts = [table[name].cast(pa.string()).take(pa.array(rows)).to_pylist() for name in names[1:4]]

    def events() -> Iterator[OrderEvent]:
        numeric = (column.tolist() for column in columns)
        for row, time_ms, units, each, product, store, basket in zip(rows.tolist(), *numeric, *texts, strict=True):
            yield OrderEvent(
                time_ms,
                product,
                units,
                each,
                event_id=f"{basket}-{row}",
                location_id=store if with_locations else "",
                order_id=basket,
                currency="USD",
            )

    return {"orders": events()}


def _eshop_clicks(path: Path, time_zone: str, with_locations: bool) -> Events:
    """A clothing shop's page views. The file tells only date and order in the session; the time of day is made up: a
    day's sessions begin evenly spread over 24 hours in the order of their numbers, and their views follow each other by
    a second, but never into the next day."""
    names = ("date", "session_id", "order", "page2_clothing_model_code")
    table = read_table(path, names)
    day = numbers(table["date"].cast(pa.timestamp("ms")), pa.int64()) // _DAY_MS
    session, place = numbers(table["session_id"], pa.int64()), numbers(table["order"], pa.int64())
    pairs, visit = np.unique(np.stack([day, session]), axis=1, return_inverse=True)
    visit = visit.reshape(-1)
    first = np.searchsorted(pairs[0], pairs[0])  # of each visit the number of its day's first
    rank = np.arange(len(first)) - first
    visits_a_day = np.searchsorted(pairs[0], pairs[0], side="right") - first
    begins_ms = rank * _DAY_MS // visits_a_day
    of_day_ms = np.minimum(begins_ms[visit] + (place - 1) * 1000, _DAY_MS - 1)
    times = local_to_utc_ms(day * _DAY_MS + of_day_ms, time_zone)
    products = table["page2_clothing_model_code"].cast(pa.string()).to_pylist()
    return {
        "clicks": (
            ClickEvent(time_ms, product, "view", event_id=f"eshop-{row}")
            for row, (time_ms, product) in enumerate(zip(times.tolist(), products, strict=True))
        )
    }


def _yoochoose(path: Path, time_zone: str, with_locations: bool) -> Events:
    """YOOCHOOSE's clicks, each a view."""
    table = read_table(path, ("ts", "item_id"))
    times = utc_ms(path, "ts", table["ts"], time_zone).tolist()
    products = table["item_id"].cast(pa.string()).to_pylist()
    return {
        "clicks": (
            ClickEvent(time_ms, product, "view", event_id=f"yoochoose-{row}")
            for row, (time_ms, product) in enumerate(zip(times, products, strict=True))
        )
    }


def _olist(path: Path, time_zone: str, with_locations: bool) -> Events:
    """Olist's orders, an event an item of one unit when the order was placed; reviews when they were answered, of each
    product of their order; products as they were first ordered, with their English category. Left out: items and
    reviews of orders that the file of orders does not have. Reads olist_*.parquet of a folder."""
    if not path.is_dir():
        raise TableError(
            f"{path} is no folder: give the one that holds Olist's files, olist_sample_orders.parquet etc."
        )
    orders = read_table(path / "olist_sample_orders.parquet", ("order_id", "order_purchase_timestamp"))
    bought = utc_ms(path, "order_purchase_timestamp", orders["order_purchase_timestamp"], time_zone)
    placed_ms = dict(zip(orders["order_id"].to_pylist(), bought.tolist(), strict=True))
    items = read_table(
        path / "olist_sample_order_items.parquet", ("order_id", "order_item_id", "product_id", "price")
    ).to_pylist()
    items = [item for item in items if item["order_id"] in placed_ms]
    products_of: dict[str, dict[str, None]] = {}
    known_from_ms: dict[str, int] = {}
    for item in items:
        order_id, product_id = item["order_id"], item["product_id"]
        products_of.setdefault(order_id, {})[product_id] = None
        known_from_ms[product_id] = min(placed_ms[order_id], known_from_ms.get(product_id, placed_ms[order_id]))
    return {
        "orders": (
            OrderEvent(
                placed_ms[item["order_id"]],
                item["product_id"],
                1.0,
                item["price"],
                event_id=f"{item['order_id']}-{item['order_item_id']}",
                order_id=item["order_id"],
                currency="BRL",
            )
            for item in items
        ),
        "reviews": _olist_reviews(path, time_zone, products_of),
        "products": _olist_products(path, known_from_ms),
    }


def _olist_reviews(path: Path, time_zone: str, products_of: dict[str, dict[str, None]]) -> Iterator[ReviewEvent]:
    names = ("review_id", "order_id", "review_score", "review_comment_title", "review_comment_message")
    table = read_table(path / "olist_sample_order_reviews.parquet", (*names, "review_answer_timestamp"))
    times = utc_ms(path, "review_answer_timestamp", table["review_answer_timestamp"], time_zone)
    columns = (table[name].to_pylist() for name in names)
    for time_ms, review_id, order_id, score, title, message in zip(times.tolist(), *columns, strict=True):
        text = "\n".join(part.strip() for part in (title, message) if part and part.strip())
        for product_id in products_of.get(order_id, {}):
            # One review can stand for several orders: only with order and product is it told apart.
            event_id = f"{review_id}-{order_id}-{product_id}"
            yield ReviewEvent(time_ms, product_id, score, event_id=event_id, text=text)


def _olist_products(path: Path, known_from_ms: dict[str, int]) -> Iterator[ProductEvent]:
    table: Any = read_table(path / "olist_products.parquet", ("product_id", "product_category_name_english"))
    for product_id, category in zip(table[0].to_pylist(), table[1].to_pylist(), strict=True):
        if product_id in known_from_ms:
            yield ProductEvent(known_from_ms[product_id], product_id, category=category or "")


READY: dict[str, ReadyMapping] = {
    "online_retail_ii": ReadyMapping(_online_retail_ii, online_retail.TIME_ZONE),
    "dunnhumby": ReadyMapping(_dunnhumby, "UTC"),
    "eshop_clicks": ReadyMapping(_eshop_clicks, "Europe/Warsaw"),
    "yoochoose": ReadyMapping(_yoochoose, "UTC"),
    "olist": ReadyMapping(_olist, "America/Sao_Paulo"),
}
