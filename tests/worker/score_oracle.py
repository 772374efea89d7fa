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
    time_zone: str = "UTC"
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


def recomputed(forecasts: Iterable[Any], orders: Iterable[Order], rules: Rules) -> Recomputed:
    """From decoded messages of the forecasts topic, in the order of the topic, and from orders."""
    by_item: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for forecast in stored_forecasts(forecasts):
        by_item[forecast.item_id, forecast.freq].append(forecast)
    orders_of: dict[str, list[Order]] = defaultdict(list)
    for order in orders:
        orders_of[order.item_id].append(order)
    rows: Counter[tuple[Any, ...]] = Counter()
    items: Counter[tuple[Any, ...]] = Counter()
    for (item_id, freq), own in by_item.items():
        if freq in rules.steps:
            _one_item(own, orders_of[item_id], rules, rows, items)
    return Recomputed(_joined(rows), _joined(items))


def stored_forecasts(forecasts: Iterable[Any]) -> list[Any]:
    """One of each revision: a worker that was killed, or lost its lane, before it could store what it had sent has sent
    it in vain; its successor has seen at least as much."""
    best: dict[tuple[str, str, int], Any] = {}
    for forecast in forecasts:
        name = forecast.item_id, forecast.freq, forecast.revision
        if name not in best or sum(best[name].positions.values()) <= sum(forecast.positions.values()):
            best[name] = forecast
    return [best[name] for name in sorted(best)]


def _one_item(
    forecasts: list[Any],
    orders: list[Order],
    rules: Rules,
    rows: Counter[tuple[Any, ...]],
    items: Counter[tuple[Any, ...]],
) -> None:
    freq, last = forecasts[0].freq, -1
    kept: list[_Pending] = []
    used: dict[_Pending, int] = {}
    category = rules.category_of(forecasts[0].item_id)
    for forecast in forecasts:
        running = forecast.steps[0].bucket_start
        seen = forecast.positions.get(rules.orders_topic, 0)
        is_fresh = running > last
        for one in kept:
            if is_fresh and (one.end > running or _buckets(freq, one.start, running) > _KNOWN_FOR):
                continue
            if not is_fresh and one not in used:
                continue
            sold = sum(o.thousandths for o in orders if o.position < seen and one.start <= o.event_time < one.end)
            if used.get(one) == sold:
                continue
            day = _day(freq, one.start, rules.time_zone)
            for sign, units in ((1, sold), (-1, used.get(one))):
                if units is None:
                    continue
                for n, number in enumerate(scores(one, units, forecast.quantile_levels)):
                    for segment in ("all", f"category:{category}") if category else ("all",):
                        rows[freq, day, one.version, segment, one.step, n] += sign * number
                    items[forecast.item_id, freq, one.version, one.step, day - day % 28, n] += sign * number
            used[one] = sold
        if is_fresh:
            last = running
            version = "baseline" if forecast.degraded else forecast.model_version
            for step in rules.steps[freq]:
                told = forecast.steps[step - 1]
                kept.append(_Pending(step, version, told.bucket_start, told.bucket_end, told.mean, _Row(told.quantiles)))
        kept = [one for one in kept if one.start >= last or _buckets(freq, one.start, last) <= rules.correction[freq]]


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
