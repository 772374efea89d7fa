"""Events for tests, and the oracle: every sum recomputed event by event with Python's own integers and dates."""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from hypothesis import strategies as st

from feature_store.calendar_time import ShopCalendar
from feature_store.events import Action, EventBatch

EPOCH = dt.date(1970, 1, 1)
NOON_MS = 1_710_504_000_000  # 2024-03-15T12:00Z, a Friday
HOUR_MS = 3_600_000
DAY_MS = 86_400_000

# By (product, location, bucket): units, returned_units, order_lines, revenue, views, add_to_carts, review_count,
# rating_sum.
Sums = dict[tuple[str, str, int], tuple[int, ...]]


class Happened(NamedTuple):
    """One event, as EventBatch has it in columns."""

    event_time_ms: int
    product_id: str = "mug"
    location_id: str = ""
    action: Action = Action.SALE
    quantity: int = 1000
    unit_price: int = 2_500_000
    rating: int = 0
    one_off: bool = False


def batch_of(events: Sequence[Happened]) -> EventBatch:
    """The events as columns, rows numbered from 0."""
    series = list(dict.fromkeys((e.product_id, e.location_id) for e in events))
    return EventBatch(
        row=np.arange(len(events), dtype=np.int64),
        event_time_ms=np.array([e.event_time_ms for e in events], dtype=np.int64),
        series=tuple(series),
        series_index=np.array([series.index((e.product_id, e.location_id)) for e in events], dtype=np.int64),
        action=np.array([e.action for e in events], dtype=np.int8),
        quantity=np.array([e.quantity for e in events], dtype=np.int64),
        unit_price=np.array([e.unit_price for e in events], dtype=np.int64),
        rating=np.array([e.rating for e in events], dtype=np.int64),
        one_off=np.array([e.one_off for e in events], dtype=np.bool_),
    )


def events_between(
    first_ms: int,
    last_ms: int,
    *,
    products: Sequence[str] = ("mug", "tea pot"),
    locations: Sequence[str] = ("", "york"),
) -> st.SearchStrategy[Happened]:
    """Events of any kind. Orders carry a quantity and a price, reviews a rating."""
    when = st.integers(first_ms, last_ms)
    whose = {"product_id": st.sampled_from(products), "location_id": st.sampled_from(locations)}
    orders = st.builds(
        Happened,
        when,
        **whose,
        action=st.sampled_from([Action.SALE, Action.CANCEL, Action.RETURN]),
        quantity=st.integers(0, 5_000_000),
        unit_price=st.integers(0, 20_000_000_000),
        rating=st.just(0),
        one_off=st.booleans(),
    )
    clicks = st.builds(
        Happened,
        when,
        **whose,
        action=st.sampled_from([Action.VIEW, Action.ADD_TO_CART, Action.REMOVE_FROM_CART, Action.WISHLIST]),
        quantity=st.just(0),
        unit_price=st.just(0),
        rating=st.just(0),
        one_off=st.just(False),
    )
    reviews = st.builds(
        Happened,
        when,
        product_id=whose["product_id"],
        location_id=st.just(""),
        action=st.just(Action.REVIEW),
        quantity=st.just(0),
        unit_price=st.just(0),
        rating=st.integers(1, 5),
        one_off=st.just(False),
    )
    return st.one_of(orders, clicks, reviews)


def naive_bucket(freq: str, event_time_ms: int, zone: str) -> int:
    """Bucket of one event. Right in zones that never set clocks back over midnight."""
    if freq in ("5m", "1h"):
        return event_time_ms // {"5m": 300_000, "1h": HOUR_MS}[freq]
    date = dt.datetime.fromtimestamp(event_time_ms // 1000, ZoneInfo(zone)).date()
    return (date - EPOCH).days


def naive_contribution(e: Happened) -> tuple[int, ...]:
    """What one event adds to each feature."""
    sold = e.action is Action.SALE and not e.one_off
    returned = e.action in (Action.CANCEL, Action.RETURN)
    reviewed = e.action is Action.REVIEW
    revenue = Decimal(e.quantity) * Decimal(e.unit_price) / 1000
    return (
        e.quantity if sold else 0,
        e.quantity if returned else 0,
        int(sold),
        int(revenue.quantize(Decimal(1), rounding=ROUND_HALF_EVEN)) if sold else 0,
        int(e.action is Action.VIEW),
        int(e.action is Action.ADD_TO_CART),
        int(reviewed),
        e.rating if reviewed else 0,
    )


def naive_sums(events: Iterable[Happened], freq: str, calendar: ShopCalendar) -> Sums:
    """All sums, buckets that stayed empty left out."""
    sums: dict[tuple[str, str, int], tuple[int, ...]] = defaultdict(lambda: (0,) * 8)
    for e in events:
        added = naive_contribution(e)
        if any(added):
            cell = (e.product_id, e.location_id, naive_bucket(freq, e.event_time_ms, calendar.zone(e.location_id)))
            sums[cell] = tuple(a + b for a, b in zip(sums[cell], added, strict=True))
    return dict(sums)
