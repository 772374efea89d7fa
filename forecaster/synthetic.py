"""An invented shop: demand with the habits of retail, as the very events a real shop would send. Seeded, numpy only.

What is in it: fast and intermittent items; a day, a week and a year in demand; trend and level shifts; promotions with
price drops, announced in the product's calendar; launches; closed days, announced in the shop's; rare bulk orders;
clicks that lead sales; reviews that trail them; cancellations. What is not: stock-outs, cannibalisation, competitors.

Order lines of an item are Poisson in each hour, with a gamma-distributed mood of the day, so that daily totals are
over-dispersed as real ones are (negative binomial). Products carry no category and no brand: a model must not learn
codes that mean something else in the shop it will serve.
"""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import bucket_of, bucket_start_ms, local_clock
from feature_store.events import Action, CalendarEntry, EventBatch
from feature_store.items import ProductState

_HOUR_MS = 3_600_000
_DAY_MS = 86_400_000
_CHRISTMAS = (358, 359, 360)  # day of the year, closed in every invented shop
_LEAD_HOURS = 12  # views of an hour speak of the demand of that many hours from it on


class Shop(NamedTuple):
    """An invented shop's record. `products` has one entry for each of `batch.series`."""

    batch: EventBatch
    products: tuple[ProductState, ...]
    global_entries: tuple[CalendarEntry, ...]
    time_zone: str
    end_ms: int


class _Demand(NamedTuple):
    lines_per_hour: NDArray[np.float64]  # (item, hour)
    unit_price: NDArray[np.float64]  # (item, day)
    pack: NDArray[np.float64]  # (item,): mean units of an order line
    hour_ms: NDArray[np.int64]  # (hour,)


def generate(
    items: int, days: int, seed: int, first_day: dt.date = dt.date(2022, 1, 3), time_zone: str = "Europe/London"
) -> Shop:
    """A shop of `items` products over `days` local days from `first_day` on; product ids are synthetic-0 and so on.

    The same arguments give the same shop.
    """
    rng = np.random.default_rng(seed)
    first = (first_day - dt.date(1970, 1, 1)).days
    edges = bucket_start_ms("1d", first + np.arange(days + 1), time_zone)
    open_day = _open_days(first, days, time_zone, rng)
    demand, promotions = _demand(items, edges, open_day, time_zone, rng)
    parts = [_orders(demand, edges, rng), *_clicks(demand, rng)]
    parts.append(_reviews(parts[0], items, rng))
    batch = _merge(parts, items, int(edges[-1]))
    products = tuple(ProductState(calendar=entries) for entries in promotions)
    closed = tuple(
        CalendarEntry(start_time=int(edges[d]), end_time=int(edges[d + 1]), open=False)
        for d in np.flatnonzero(open_day == 0).tolist()
    )
    return Shop(batch, products, closed, time_zone, int(edges[-1]))


def _open_days(first: int, days: int, time_zone: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """1 on the days on which the shop trades: not on its weekly day of rest, if it keeps one, nor at Christmas or on
    a few holidays of its own."""
    clock = local_clock("1d", first + np.arange(days), time_zone)
    rest_day = int(rng.integers(0, 14))  # a weekday, or none in half of the shops
    closed = (clock[:, 1] == rest_day) | np.isin(clock[:, 3], _CHRISTMAS) | (rng.random(days) < 0.01)
    return np.where(closed, 0.0, 1.0)


def _demand(
    items: int, edges: NDArray[np.int64], open_day: NDArray[np.float64], time_zone: str, rng: np.random.Generator
) -> tuple[_Demand, list[tuple[CalendarEntry, ...]]]:
    days = len(edges) - 1
    hour_ms = np.arange(edges[0], edges[-1], _HOUR_MS, dtype=np.int64)
    day_of_hour = np.searchsorted(edges, hour_ms, side="right") - 1
    clock = local_clock("1h", hour_ms // _HOUR_MS, time_zone)
    level = np.exp(rng.normal(-0.5, 1.6, size=items))  # order lines a day: 0.03 to 20 for nine items in ten
    time = np.arange(days)
    yearly = 1 + rng.uniform(0, 0.5, (items, 1)) * np.sin(2 * np.pi * (time / 365.25 + rng.random((items, 1))))
    trend = np.exp(np.clip(rng.normal(0, 0.002, (items, 1)) * (time - days / 2), -1.2, 1.2))
    shifts = np.cumsum((rng.random((items, days)) < 0.004) * rng.normal(0, 0.7, (items, days)), axis=1)
    weekly = rng.gamma(6, 1 / 6, size=(items, 7))
    mood = rng.gamma(rng.uniform(1, 8, (items, 1)), size=(items, days))
    mood /= mood.mean(axis=1, keepdims=True)
    boost, unit_price, promotions = _promotions(items, edges, rng)
    launched = time >= np.where(rng.random(items) < 0.25, rng.integers(0, days, items), 0)[:, None]
    weekday = local_clock("1d", bucket_of("1d", edges[:-1], time_zone), time_zone)[:, 1]
    by_day = level[:, None] * yearly * trend * np.exp(np.clip(shifts, -2, 2)) * mood * boost * launched * open_day
    by_day = by_day * weekly[:, weekday.astype(np.int64)]
    lines = by_day[:, day_of_hour] * _hours_of_day(items, rng)[:, np.minimum(clock[:, 0], 23).astype(np.int64)]
    pack = np.where(rng.random(items) < 0.5, 1.0, 1 + rng.gamma(1.2, 5, size=items))
    return _Demand(lines, unit_price, pack, hour_ms), promotions


def _hours_of_day(items: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Share of a day's demand in each local hour: (item, 24). The whole shop trades by day or round the clock."""
    width = rng.uniform(2, 6)
    centre = rng.uniform(11, 18)
    centres = centre + rng.normal(0, 1, (items, 1))
    share = np.exp(-0.5 * ((np.arange(24) - centres) / width) ** 2)
    if rng.random() < 0.5:  # opening hours
        share[:, (np.arange(24) < centre - 5) | (np.arange(24) > centre + 5)] = 0.0
    return np.asarray(share / share.sum(axis=1, keepdims=True), dtype=np.float64)


def _promotions(
    items: int, edges: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[tuple[CalendarEntry, ...]]]:
    """Demand factor and price by item and day, and the calendar entries that announce them."""
    days = len(edges) - 1
    boost = np.ones((items, days))
    base_price = np.round(np.exp(rng.normal(1.5, 0.9, items)), 2) + 0.1
    unit_price = np.repeat(base_price[:, None], days, axis=1)
    entries: list[tuple[CalendarEntry, ...]] = []
    for item in range(items):
        announced = []
        announces_price = rng.random() < 0.5
        elasticity = rng.uniform(1.0, 3.5)
        for start in np.flatnonzero(rng.random(days) < 1 / 90).tolist():
            end = min(start + int(rng.integers(3, 15)), days)
            cut = float(rng.choice([0.1, 0.2, 0.3, 0.5]))
            boost[item, start:end] = (1 - cut) ** -elasticity * rng.uniform(1.0, 1.3)
            unit_price[item, start:end] = round(base_price[item] * (1 - cut), 2)
            announced.append(
                CalendarEntry(
                    start_time=int(edges[start]),
                    end_time=int(edges[end]),
                    unit_price=float(unit_price[item, start]) if announces_price else None,
                    promotion=True,
                )
            )
        entries.append(tuple(announced))
    return boost, unit_price, entries


class _Events(NamedTuple):
    item: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    action: NDArray[np.int8]
    quantity: NDArray[np.int64]  # thousandths
    unit_price: NDArray[np.int64]  # millionths
    rating: NDArray[np.int64]


def _uncounted(item: NDArray[np.int64], time_ms: NDArray[np.int64], action: int) -> _Events:
    zeros = np.zeros(len(item), dtype=np.int64)
    return _Events(item, time_ms, np.full(len(item), action, dtype=np.int8), zeros, zeros, zeros)


def _poisson_events(
    rate: NDArray[np.float64], hour_ms: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts = rng.poisson(np.minimum(rate, 1e4))
    item, hour = np.nonzero(counts)
    repeats = counts[item, hour]
    time_ms = np.repeat(hour_ms[hour], repeats) + rng.integers(0, _HOUR_MS, size=int(repeats.sum()))
    return np.repeat(item, repeats), time_ms


def _orders(demand: _Demand, edges: NDArray[np.int64], rng: np.random.Generator) -> _Events:
    item, time_ms = _poisson_events(demand.lines_per_hour, demand.hour_ms, rng)
    units = 1 + rng.poisson(rng.exponential(demand.pack[item] - 1 + 1e-9))
    units = np.where(rng.random(len(item)) < 0.001, units * 50, units)  # a wholesaler
    day = np.searchsorted(edges, time_ms, side="right") - 1
    price = np.rint(demand.unit_price[item, day] * 1e6).astype(np.int64)
    sales = _Events(
        item, time_ms, np.zeros(len(item), np.int8), units.astype(np.int64) * 1000, price, np.zeros(len(item), np.int64)
    )
    back = np.flatnonzero(rng.random(len(item)) < 0.02)
    late_ms = rng.exponential(2 * _DAY_MS, size=len(back)).astype(np.int64)
    cancels = _Events(
        item[back],
        time_ms[back] + late_ms,
        np.full(len(back), Action.CANCEL, np.int8),
        sales.quantity[back],
        price[back],
        sales.rating[back],
    )
    return _join([sales, cancels])


def _clicks(demand: _Demand, rng: np.random.Generator) -> list[_Events]:
    total = np.cumsum(np.pad(demand.lines_per_hour, ((0, 0), (1, _LEAD_HOURS)), mode="edge"), axis=1)
    ahead = (total[:, _LEAD_HOURS:-1] - total[:, : -_LEAD_HOURS - 1]) / _LEAD_HOURS
    interest = 0.5 * demand.lines_per_hour + 0.5 * ahead
    per_line = rng.uniform(2, 8, size=(len(interest), 1))
    views = _poisson_events(interest * per_line, demand.hour_ms, rng)
    carts = _poisson_events(interest * 1.2, demand.hour_ms, rng)
    return [_uncounted(*views, Action.VIEW), _uncounted(*carts, Action.ADD_TO_CART)]


def _reviews(orders: _Events, items: int, rng: np.random.Generator) -> _Events:
    liked = rng.uniform(0.4, 0.95, size=items)
    chosen = np.flatnonzero((orders.action == Action.SALE) & (rng.random(len(orders.item)) < 0.03))
    late_ms = rng.exponential(5 * _DAY_MS, size=len(chosen)).astype(np.int64)
    events = _uncounted(orders.item[chosen], orders.time_ms[chosen] + late_ms, Action.REVIEW)
    return events._replace(rating=1 + rng.binomial(4, liked[events.item]))


def _join(parts: list[_Events]) -> _Events:
    return _Events(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _merge(parts: list[_Events], items: int, end_ms: int) -> EventBatch:
    """All events before `end_ms` in time order."""
    events = _join(parts)
    kept = np.flatnonzero(events.time_ms < end_ms)
    order = kept[np.argsort(events.time_ms[kept], kind="stable")]
    return EventBatch(
        row=np.arange(len(order), dtype=np.int64),
        event_time_ms=events.time_ms[order],
        series=tuple((f"synthetic-{i}", "") for i in range(items)),
        series_index=events.item[order].astype(np.int64),
        action=events.action[order],
        quantity=events.quantity[order],
        unit_price=events.unit_price[order],
        rating=events.rating[order],
        one_off=np.zeros(len(order), dtype=np.bool_),
    )


def invent_clicks(orders: EventBatch, seed: int, views_per_line: float = 3.0) -> EventBatch:
    """Clicks that a shop's real orders might have left behind, for shops that recorded none: orders and clicks
    together, in time order. INVENTED: nobody clicked these; whoever shows them must say so.

    Half of the views come before an order line, some hours ahead (exponential, three hours on average); half come from
    visitors who did not buy, at any time within two days of an order line. One order line in three was in a cart first.
    """
    rng = np.random.default_rng(seed)
    sales = np.flatnonzero(orders.action == Action.SALE)
    buyers = np.repeat(sales, rng.poisson(views_per_line / 2, size=len(sales)))
    others = np.repeat(sales, rng.poisson(views_per_line / 2, size=len(sales)))
    carts = sales[rng.random(len(sales)) < 1 / 3]
    lead_ms = [
        rng.exponential(3 * _HOUR_MS, size=len(buyers)),
        rng.uniform(-2 * _DAY_MS, 2 * _DAY_MS, size=len(others)),
        rng.exponential(_HOUR_MS, size=len(carts)),
    ]
    source = np.concatenate([buyers, others, carts])
    time_ms = orders.event_time_ms[source] - np.concatenate(lead_ms).astype(np.int64)
    clicks = len(source)
    action = np.full(clicks, Action.VIEW, dtype=np.int8)
    action[clicks - len(carts) :] = Action.ADD_TO_CART
    zeros = np.zeros(clicks, dtype=np.int64)
    all_times = np.concatenate([orders.event_time_ms, time_ms])
    order = np.argsort(all_times, kind="stable")
    return EventBatch(
        row=np.arange(len(order), dtype=np.int64),
        event_time_ms=all_times[order],
        series=orders.series,
        series_index=np.concatenate([orders.series_index, orders.series_index[source]])[order],
        action=np.concatenate([orders.action, action])[order],
        quantity=np.concatenate([orders.quantity, zeros])[order],
        unit_price=np.concatenate([orders.unit_price, zeros])[order],
        rating=np.concatenate([orders.rating, zeros])[order],
        one_off=np.concatenate([orders.one_off, np.zeros(clicks, dtype=np.bool_)])[order],
    )
