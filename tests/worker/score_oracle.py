"""What live accuracy has to be, recomputed from recorded forecasts and orders alone: step by step, in plain Python and
with fractions. Shares no code with the worker."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

Sums = tuple[int, ...]
_INTERVALS = ((0.25, 0.75), (0.1, 0.9), (0.025, 0.975))
_KNOWN_FOR = 100


class Order(NamedTuple):
    """An order record that counts. `position`: its offset in the topic's partition that holds the item."""

    item_id: str
    position: int
    event_time: int
    thousandths: int


class Rules(NamedTuple):
    """By frequency the scored steps, and for how many buckets a closed one is corrected."""

    steps: Mapping[str, tuple[int, ...]]
    correction: Mapping[str, int]
    orders_topic: str
    time_zone_of: Callable[[str], str] = lambda _: "UTC"
    category_of: Callable[[str], str] = lambda _: ""


class Recomputed(NamedTuple):
    """Sums by (freq, day, version, segment, step), and by (item, freq, version, step, first day)."""

    rows: dict[tuple[str, int, str, str, int], Sums]
    items: dict[tuple[str, str, str, int, int], Sums]


class _Pending(NamedTuple):
    step: int
    version: str
    start: int
    end: int
    mean: float
    quantiles: list[float]


def recomputed(forecasts: Iterable[tuple[int, Any]], orders: Iterable[Order], rules: Rules) -> Recomputed:
    """From decoded messages of the forecasts topic, in the order of the topic, and from orders. With each message comes
    its item's life: how often it had been withdrawn before."""
    by_item: dict[tuple[str, str, int], list[Any]] = defaultdict(list)
    for life, forecast in stored_forecasts(forecasts):
        by_item[forecast.item_id, forecast.freq, life].append(forecast)
    orders_of: dict[str, list[Order]] = defaultdict(list)
    for order in orders:
        orders_of[order.item_id].append(order)
    rows: Counter[tuple[Any, ...]] = Counter()
    items: Counter[tuple[Any, ...]] = Counter()
    for (item_id, freq, _), own in by_item.items():
        if freq not in rules.steps:
            continue
        item = _Item(orders_of[item_id], rules)
        for forecast in own:
            item.take(forecast)
        category = rules.category_of(item_id)
        for (day, version, step, n), number in item.added.items():
            for segment in ("all", f"category:{category}") if category else ("all",):
                rows[freq, day, version, segment, step, n] += number
            items[item_id, freq, version, step, day - day % 28, n] += number
    return Recomputed(_joined(rows), _joined(items))


def stored_forecasts(forecasts: Iterable[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """One of each revision: a worker that was killed, or lost its lane, before it could store what it had sent has sent
    it in vain; its successor has seen at least as much."""
    best: dict[tuple[int, str, str, int], Any] = {}
    for life, forecast in forecasts:
        name = life, forecast.item_id, forecast.freq, forecast.revision
        if name not in best or sum(best[name].positions.values()) <= sum(forecast.positions.values()):
            best[name] = forecast
    return [(name[0], best[name]) for name in sorted(best)]


class _Item:
    """Goes through one item's forecasts of one frequency, by revision."""

    def __init__(self, orders: list[Order], rules: Rules) -> None:
        self._orders, self._rules = orders, rules
        self._last = -1
        self._kept: list[_Pending] = []
        self._used: dict[_Pending, int] = {}
        self.added: Counter[tuple[int, str, int, int]] = Counter()  # day, version, step, number of the sum

    def take(self, forecast: Any) -> None:
        freq, running = forecast.freq, forecast.steps[0].bucket_start
        seen = forecast.positions.get(self._rules.orders_topic, 0)
        is_fresh = running > self._last
        for one in self._kept:
            has_closed = one.end <= running and _buckets(freq, one.start, running) <= _KNOWN_FOR
            if has_closed if is_fresh else one in self._used:
                sales = (o for o in self._orders if o.position < seen and one.start <= o.event_time < one.end)
                self._score(one, sum(order.thousandths for order in sales), forecast)
        if is_fresh:
            self._last = running
            version = "baseline" if forecast.degraded else forecast.model_version
            for step in self._rules.steps[freq]:
                told = forecast.steps[step - 1]
                pending = _Pending(step, version, told.bucket_start, told.bucket_end, told.mean, _Row(told.quantiles))
                self._kept.append(pending)
        correction = self._rules.correction[freq]
        self._kept = [
            one for one in self._kept if one.start >= self._last or _buckets(freq, one.start, self._last) <= correction
        ]

    def _score(self, one: _Pending, sold: int, forecast: Any) -> None:
        if self._used.get(one) == sold:
            return
        day = _day(forecast.freq, one.start, self._rules.time_zone_of(forecast.item_id))
        for sign, units in ((1, sold), (-1, self._used.get(one))):
            if units is not None:
                for n, number in enumerate(scores(one, units, forecast.quantile_levels)):
                    self.added[day, one.version, one.step, n] += sign * number
        self._used[one] = sold


class _Row(list[float]):
    """A list that can be a key: by what it is, not by what is in it."""

    def __hash__(self) -> int:  # type: ignore[override]  # lists have none
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def scores(one: _Pending, sold: int, levels: list[float]) -> list[int]:
    """By the definitions, with fractions of a unit."""
    y, mean = Fraction(sold, 1000), Fraction(str(one.mean))
    quantiles = {level: Fraction(str(q)) for level, q in zip(levels, one.quantiles, strict=True)}
    loss = sum(2 * abs((y - q) * ((1 if y <= q else 0) - Fraction(str(level)))) for level, q in quantiles.items())
    squared = (y - mean) ** 2 * 1000
    numbers = [
        Fraction(1),
        y * 1000,
        abs(y - quantiles[0.5]) * 1000,
        (mean - y) * 1000,
        Fraction(int(squared + Fraction(1, 2))),
        loss * 1_000_000,
        *(Fraction(quantiles[low] <= y <= quantiles[high]) for low, high in _INTERVALS),
    ]
    assert all(number.denominator == 1 for number in numbers)
    return [int(number) for number in numbers]


def _buckets(freq: str, earlier: int, later: int) -> int:
    """How many buckets lie between two starts; days are 23 to 25 hours long."""
    length = {"1h": 3_600_000, "1d": 86_400_000, "1w": 7 * 86_400_000}[freq]
    return round((later - earlier) / length)


def _day(freq: str, start: int, time_zone: str) -> int:
    zone = ZoneInfo("UTC" if freq == "1h" else time_zone)
    return (dt.datetime.fromtimestamp(start / 1000, zone).date() - dt.date(1970, 1, 1)).days


def _joined(found: Counter[tuple[Any, ...]]) -> dict[Any, Sums]:
    names = sorted({name[:-1] for name in found})
    return {name: tuple(found[(*name, n)] for n in range(9)) for name in names}
