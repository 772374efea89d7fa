"""Invented shops as tables of hourly, daily or weekly series: made in a second, for training on thousands of items.

`synthetic.generate` invents events; this invents their sums, with more habits of retail: trend, a week, a year and a
payday in demand, goods of one season, holidays with a run-up, promotions with price effects, intermittency, launches
and ends, stock-outs (told of or not), level shifts, views that lead sales, reviews that follow them. Seeded, numpy
only. A shop's items share its week, its holidays and part of its ups and downs, as real ones do; and shops differ, from
a grocer's steady handfuls to a wholesaler's bursts and a department store's thousands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import local_clock, week_of_day
from forecaster.series import SeriesTable

_FIRST_DAY = 18_997  # 2022-01-05, so that a table's first week is not a whole one
_CLICKS = ("views", "add_to_carts", "review_count", "rating_sum")
Floats = NDArray[np.float64]


class _Shop(NamedTuple):
    """What all items of a shop share, by day: (day,)."""

    demand: Floats
    holiday: Floats  # 1 on the days of a named event
    run_ups: list[Floats]  # of each holiday, how near it is: 1 on its day
    open: Floats


class _Habits(NamedTuple):
    """How a shop's items differ from another shop's."""

    level: tuple[float, float]  # mean and deviation of the logarithm of units a day
    evenness: float  # logarithm of the negative binomial's shape: large = Poisson
    year: float  # deviation of the yearly waves
    departments: int  # items of one share their peaks of the year
    peaks: float  # deviation of the logarithm of what a peak of the year makes of a department's demand
    growth: float  # deviation of an item's steady growth a day
    seasonal_goods: float  # share of items that sell in one season
    shifts: float  # chance of a level shift on a day
    mood: float  # daily deviation of an item's own slow ups and downs
    walk: float  # daily deviation of the whole shop's
    single: bool  # goods, not sums of many: a promotion or an empty shelf is of all that is counted
    launched: float  # share of items that begin after the table does


def generate_series(items: int, days: int, seed: int, freq: str = "1d") -> SeriesTable:
    """A shop of `items` series over `days` days (UTC). The same arguments give the same table.

    Which of price, promotion, views, reviews and availability a shop records differs from shop to shop.
    """
    if freq not in ("1h", "1d", "1w"):
        raise ValueError(f"series are invented by hour, day and week, not by {freq}")
    rng = np.random.default_rng(seed)
    clock = local_clock("1d", _FIRST_DAY + np.arange(days), "UTC")
    # Who counts by the week counts sums of many things or of money more often.
    habits = _habits(rng, large_share=1 / 2 if freq == "1w" else 1 / 6)
    shop = _shop(clock, habits.walk, rng)
    rate, columns = _demand(items, clock, shop, habits, rng)
    units = _counts(rate, habits.evenness, rng)
    first = _launches(units, habits.launched, rng)
    columns |= _signals(rate, units, rng)
    columns["event"] = np.broadcast_to(shop.holiday, units.shape)
    columns["open"] = np.broadcast_to(shop.open, units.shape)
    recorded = _recorded(rng)
    kept = {name: values for name, values in columns.items() if name in recorded}
    if rng.random() < 0.25:  # a worker that hears of no clicks and reviews counts none
        kept |= {name: np.zeros_like(units) for name in _CLICKS}
    day = _FIRST_DAY + first
    if freq == "1w":
        units, kept, first, day = _by_week(units, kept, first)
        if "event" in kept and rng.random() < 0.5:  # a shop that marks the week, not the day
            kept["event"] = np.ceil(kept["event"])
    elif freq == "1h":
        units, kept = _by_hour(units, kept, rng)
        first, day = 24 * first, 24 * day
    alive = np.arange(units.shape[1]) >= first[:, None]
    return SeriesTable(
        freq=freq,
        time_zone="UTC",
        item_ids=tuple(f"synthetic-{seed}-{i}" for i in range(items)),
        first_bucket=day,
        offsets=np.concatenate([[0], np.cumsum(units.shape[1] - first)]).astype(np.int64),
        units=units[alive].astype(np.float32),
        columns={name: values[alive].astype(np.float32) for name, values in kept.items()},
        category_code=np.zeros(items, dtype=np.int64),
        brand_code=np.zeros(items, dtype=np.int64),
        launch_bucket=day,
    )


def _recorded(rng: np.random.Generator) -> set[str]:
    """Channels that a shop keeps: many keep sales alone."""
    if rng.random() < 0.3:
        return set()
    always = {"open", "event"} if rng.random() < 0.7 else set[str]()
    chances = {"unit_price": 0.6, "promotion": 0.5, "order_lines": 0.4, "views": 0.3, "available_fraction": 0.2}
    kept = {name for name, chance in chances.items() if rng.random() < chance}
    if "views" in kept:
        kept |= set(_CLICKS)
    return always | kept


def _habits(rng: np.random.Generator, large_share: float) -> _Habits:
    # Some count money, or everything that a department sells: thousands, with little noise, and most of them change
    # little from one year to the next.
    large = rng.random() < large_share
    change = np.exp(rng.uniform(np.log(0.03), 0.0)) if large else 1.0
    return _Habits(
        level=(rng.uniform(3, 9) if large else rng.uniform(-3.0, 2.0), rng.uniform(0.5, 1.8)),
        evenness=rng.uniform(1.0, 6.0) if large else rng.uniform(-0.5, 4.0),
        year=rng.uniform(0.02, 0.2 if large else 0.4),
        departments=int(rng.integers(1, 15)),
        peaks=max(0.0, rng.uniform(-0.2, 0.5)),
        growth=change * rng.uniform(0.0, 0.0018),
        seasonal_goods=max(0.0, rng.uniform(-0.3, 0.3)),
        shifts=change * max(0.0, rng.uniform(-0.004, 0.006)),
        mood=change * rng.uniform(0.0, 0.05),
        walk=change * rng.uniform(0.0, 0.012),
        single=not large,
        launched=max(0.0, rng.uniform(-0.3, 0.6)),
    )


def _shop(clock: NDArray[np.float32], drift: float, rng: np.random.Generator) -> _Shop:
    days = len(clock)
    weekday, month_day = clock[:, 1].astype(int), clock[:, 2]
    week = rng.gamma(rng.uniform(4, 40), size=7)
    demand = (week / week.mean())[weekday]
    demand = demand * (1 + rng.uniform(0, 0.3) * np.exp(-(month_day - 1) / 4))  # payday
    # A slow common mood: the shop's own growth and fall.
    walk = np.cumsum(rng.normal(0, drift, days))
    demand = demand * np.exp(np.clip(walk - walk.mean(), -0.8, 0.8))
    holiday, run_ups, shut = np.zeros(days), list[Floats](), np.zeros(days, dtype=bool)
    for _ in range(int(rng.integers(3, 12))):
        distance = _days_to_holiday(clock, rng)
        holiday[distance == 0] = 1.0
        before = rng.uniform(1, 8)
        run_ups.append(np.where((distance <= 0) & (distance > -21), np.exp(distance / before), 0.0))
        if rng.random() < 0.3:
            shut |= distance == 0
    rest_day = int(rng.integers(0, 21))  # a weekday, in a third of the shops
    shut |= weekday == rest_day
    return _Shop(demand, holiday, run_ups, np.where(shut, 0.0, 1.0))


def _days_to_holiday(clock: NDArray[np.float32], rng: np.random.Generator) -> Floats:
    """Days since (negative: until) the nearest yearly return of a holiday of a fixed date, a fixed weekday, or one that
    wanders like Easter: (day,)."""
    weekday, year_day = clock[:, 1].astype(int), clock[:, 3].astype(int)
    time = np.arange(len(clock))
    kind, at, wanted = rng.integers(0, 3), rng.integers(1, 366), rng.integers(0, 7)
    days = np.flatnonzero(year_day == at)
    if not len(days):
        days = np.array([int((at - year_day[0]) % 365)])
    days = np.concatenate([[days[0] - 365], days, [days[-1] + 365]])
    if kind == 1:
        days = days + (wanted - (weekday[0] + days)) % 7
    elif kind == 2:
        days = days + rng.integers(-14, 15, len(days))
    apart = time[:, None] - days[None, :]
    return np.asarray(apart[time, np.abs(apart).argmin(1)], dtype=np.float64)


def _demand(
    items: int, clock: NDArray[np.float32], shop: _Shop, habits: _Habits, rng: np.random.Generator
) -> tuple[Floats, dict[str, Floats]]:
    """Expected units (item, day), before stock-outs cut them off, and price, promotion and availability."""
    days = len(clock)
    time, angle = np.arange(days), 2 * np.pi * clock[:, 3] / 365.25
    level = np.exp(rng.normal(*habits.level, (items, 1)))
    log = np.zeros((items, days))
    # A year of its own: two waves, common to a shop in part.
    for wave in (1, 2):
        common, own = rng.normal(0, habits.year / wave, 2), rng.normal(0, habits.year / wave, (items, 2))
        strength = common + own
        log += strength[:, :1] * np.sin(wave * angle) + strength[:, 1:] * np.cos(wave * angle)
    narrow = np.where(rng.random((items, 1)) < habits.seasonal_goods, rng.uniform(0.5, 4, (items, 1)), 0.0)
    log += narrow * (np.cos(angle - rng.uniform(0, 2 * np.pi, (items, 1))) - 0.5)
    log += _peaks(items, clock, habits, rng)
    log += np.clip(rng.normal(0, habits.growth, (items, 1)) * (time - days / 2), -1.2, 1.2)
    shifts = (rng.random((items, days)) < habits.shifts) * rng.normal(0, 0.6, (items, days))
    log += np.clip(np.cumsum(shifts, axis=1), -2, 2)
    log += _smooth(rng.normal(0, habits.mood * rng.uniform(0.2, 1.5, (items, 1)), (items, days)))
    log += _holiday_lift(items, shop, rng)
    price, promotion, lift = _prices(items, days, 1.0 if habits.single else rng.uniform(0.05, 0.5), rng)
    own_week = rng.gamma(30, 1 / 30, (items, 7))[:, clock[:, 1].astype(int)]
    available = 1.0 - _stock_outs(items, days, rng) * habits.single
    rate = level * np.exp(log) * lift * own_week * shop.demand * shop.open * available
    return rate, {"unit_price": price, "promotion": promotion, "available_fraction": available}


def _holiday_lift(items: int, shop: _Shop, rng: np.random.Generator) -> Floats:
    """Logarithm of what holidays do to each item's demand: (item, day). Some goods are bought for a holiday, most feel
    it a little, a few are forgotten over it."""
    out = np.zeros((items, len(shop.open)))
    for run_up in shop.run_ups:
        common = float(np.clip(rng.normal(0.1, 0.3), -0.6, 2.0))
        own = np.clip(common + rng.normal(0, 0.2, (items, 1)), -0.8, 3.0)
        own = np.where(rng.random((items, 1)) < 0.08, rng.uniform(0.5, 4, (items, 1)), own)
        out += np.log1p(own * run_up)
    return out


def _peaks(items: int, clock: NDArray[np.float32], habits: _Habits, rng: np.random.Generator) -> Floats:
    """Logarithm of what the peaks and troughs of the year do to each item's demand: (item, day). School begins, gardens
    are dug, heaters are bought: a few days or weeks around a date, that move a little and differ in size by year."""
    time, first = np.arange(len(clock)), float(clock[0, 3])
    years = int((first + len(clock)) // 365.25) + 2
    of_department = np.zeros((habits.departments, len(clock)))
    for department in range(habits.departments):
        for _ in range(int(rng.integers(0, 5))):
            width, height = np.exp(rng.uniform(np.log(3), np.log(45))), np.clip(rng.normal(0, habits.peaks), -1.5, 2.5)
            at = rng.uniform(0, 365.25) - first + 365.25 * np.arange(-1, years) + rng.normal(0, 2, years + 1)
            heights = height * rng.normal(1, 0.12, years + 1)
            of_department[department] += heights @ np.exp(-0.5 * ((time - at[:, None]) / width) ** 2)
    strength = np.clip(rng.normal(1, 0.3, (items, 1)), 0, 2)
    return np.asarray(strength * of_department[rng.integers(0, habits.departments, items)])


def _smooth(noise: Floats) -> Floats:
    """Noise that lasts for weeks: a random walk pulled back to 0."""
    out = np.empty_like(noise)
    state = np.zeros(len(noise))
    for day in range(noise.shape[1]):
        state = 0.97 * state + noise[:, day]
        out[:, day] = state
    return out


def _prices(items: int, days: int, concerned: float, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Price, promotion and what they make of demand: (item, day). `concerned`: share of what is counted that a
    promotion is of."""
    base = np.exp(rng.normal(1.5, 0.9, (items, 1))) + 0.1
    steps = (rng.random((items, days)) < 0.004) * rng.normal(0.01, 0.08, (items, days))
    price = base * np.exp(np.cumsum(steps, axis=1))
    elasticity = rng.uniform(0.5, 3.5, (items, 1))
    begins = rng.random((items, days)) < rng.uniform(0, 1 / 40)
    lasts = rng.integers(3, 15, (items, days))
    cut = rng.choice([0.1, 0.2, 0.3, 0.5], (items, days))
    left, depth = np.zeros(items), np.zeros(items)
    promotion, discount = np.zeros((items, days)), np.zeros((items, days))
    for day in range(days):
        left = np.where(begins[:, day], lasts[:, day], np.maximum(left - 1, 0))
        depth = np.where(begins[:, day], cut[:, day], depth)
        promotion[:, day] = left > 0
        discount[:, day] = np.where(left > 0, depth, 0.0)
    price = np.round(price * (1 - discount), 2).clip(0.01)
    lift = (1 - discount) ** -elasticity * np.where(promotion > 0, rng.uniform(1.0, 1.3, (items, 1)), 1.0)
    lift = 1 + concerned * (lift - 1)
    return price, promotion, lift * (price / base).clip(0.3, 3) ** (-0.3 * elasticity)


def _stock_outs(items: int, days: int, rng: np.random.Generator) -> Floats:
    """1 on days on which an item can't be bought; in some shops never."""
    chance = 0.0 if rng.random() < 0.5 else rng.uniform(0, 0.006)
    begins = rng.random((items, days)) < chance
    lasts = rng.integers(2, 25, (items, days))
    left, out = np.zeros(items), np.zeros((items, days))
    for day in range(days):
        left = np.where(begins[:, day], lasts[:, day], np.maximum(left - 1, 0))
        out[:, day] = left > 0
    return out


def _counts(rate: Floats, evenness: float, rng: np.random.Generator) -> Floats:
    """Negative binomial: Poisson of a gamma-distributed rate; some items are bought by the pack."""
    items = len(rate)
    shape = np.exp(rng.normal(evenness, 0.8, (items, 1)))
    lines = rng.poisson(np.minimum(rate * rng.gamma(shape, 1 / shape, rate.shape), 1e5))
    packed = rng.random((items, 1)) < rng.choice([0.0, 0.3])
    pack = np.where(packed, 1 + rng.gamma(1.0, 4.0, (items, 1)), 1.0)
    extra = rng.poisson(np.minimum(lines * (pack - 1) * rng.gamma(2.0, 0.5, rate.shape), 1e6))
    return np.asarray(lines + extra, dtype=np.float64)


def _launches(units: Floats, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Silences the time before each item's launch and after its end; index of each item's first day."""
    items, days = units.shape
    time = np.arange(days)
    launched = np.where(rng.random(items) < share, rng.integers(0, days - 30, items), 0)
    ended = np.where(rng.random(items) < 0.05, rng.integers(days // 2, days, items), days)
    units *= (time >= launched[:, None]) & (time < ended[:, None])
    sold = units > 0
    return np.where(sold.any(axis=1), sold.argmax(axis=1), launched).astype(np.int64)


def _signals(rate: Floats, units: Floats, rng: np.random.Generator) -> dict[str, Floats]:
    """Views and carts that lead sales by a day or so, reviews that follow them, order lines."""
    ahead = np.concatenate([rate[:, 1:], rate[:, -1:]], axis=1)
    interest = np.minimum(0.6 * rate + 0.4 * ahead, 1e5)
    views = rng.poisson(interest * rng.uniform(2, 30, (len(rate), 1)))
    carts = rng.poisson(interest * 1.3)
    days_late = 6
    before = np.concatenate([np.zeros((len(units), days_late)), units[:, :-days_late]], axis=1)
    reviews = rng.binomial(before.astype(np.int64), 0.02)
    stars = reviews * np.clip(rng.normal(4.1, 0.5, (len(units), 1)), 1, 5)
    lines = np.ceil(units / (1 + rng.gamma(1.0, 0.5, (len(units), 1))))
    return {
        "views": views.astype(np.float64),
        "add_to_carts": carts.astype(np.float64),
        "review_count": reviews.astype(np.float64),
        "rating_sum": stars,
        "order_lines": lines,
    }


_MEANS = ("unit_price", "promotion", "open", "event", "available_fraction")


def _by_week(
    units: Floats, columns: dict[str, Floats], first: NDArray[np.int64]
) -> tuple[Floats, dict[str, Floats], NDArray[np.int64], NDArray[np.int64]]:
    """Whole weeks of the days: sums of units and counts, means of the rest; each item's first week and its bucket."""
    day = _FIRST_DAY + np.arange(units.shape[1])
    week = week_of_day(day)
    begin = int(np.searchsorted(week, week[0] + 1))
    whole = (len(day) - begin) // 7

    def weekly(values: Floats) -> Floats:
        return values[:, begin : begin + 7 * whole].reshape(len(values), whole, 7)

    sums = weekly(units).sum(-1)
    out = {n: weekly(v).mean(-1) if n in _MEANS else weekly(v).sum(-1) for n, v in columns.items()}
    first_week = np.clip((first - begin) // 7, 0, whole - 1)
    return sums, out, first_week, int(week[begin]) + first_week


def _by_hour(units: Floats, columns: dict[str, Floats], rng: np.random.Generator) -> tuple[Floats, dict[str, Floats]]:
    """Hours of the days: what is counted falls into the hours by the shop's opening times and its rush hours, what is a
    level lasts all day. A shop's doors are shut at night in most shops, and half of those say so."""
    hour = np.arange(24)
    opens, lasts = rng.uniform(5, 11), rng.uniform(7, 24)
    rush = np.exp(rng.uniform(0, 1.2) * np.cos(2 * np.pi * (hour - rng.uniform(0, 24)) / 24))
    rush *= np.exp(rng.uniform(0, 0.8) * np.cos(4 * np.pi * (hour - rng.uniform(0, 24)) / 24))
    inside = (hour - opens) % 24 < lasts
    share = rush * np.where(inside, 1.0, rng.choice([0.0, 0.02]))
    share /= share.sum()

    def counted(values: Floats) -> Floats:
        left, out = values.astype(np.int64), np.empty((*values.shape, 24))
        for h in range(24):
            rest = share[h:].sum()
            out[:, :, h] = rng.binomial(left, min(1.0, share[h] / rest) if rest > 0 else 0.0)
            left = left - out[:, :, h].astype(np.int64)
        return out.reshape(len(values), -1)

    of_day = {name: np.repeat(values, 24, axis=1) for name, values in columns.items()}
    hours = {name: of_day[name] if name in _MEANS else counted(values) for name, values in columns.items()}
    hourly = counted(units)
    if "order_lines" in hours:
        hours["order_lines"] = np.minimum(np.ceil(hours["order_lines"]), hourly)
    if "rating_sum" in hours:
        stars = of_day["rating_sum"] / np.maximum(of_day["review_count"], 1)
        hours["rating_sum"] = hours["review_count"] * stars
    if "open" in hours and rng.random() < 0.5:
        hours["open"] = hours["open"] * np.tile(inside, units.shape[1])
    return hourly, hours
