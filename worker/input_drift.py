"""Drift of inputs: what forecasts of a lane are made from is no longer what it was in the weeks before. Pure functions.

Of each day ratios of sums are watched, by a self-starting CUSUM (`worker/cusum.py`), for more and for less. Ratios,
since demand itself rises and falls for good reasons, which models are there to follow: clicks are held against orders,
and prices against the items' own of before, by their geometric mean, which neither the day's mix of items nor a few
odd prices move much (the index of Jevons 1865). A day counts for no more than 2.5 deviations (Lucas and Crosier 1982,
"Robust CUSUM: a robustness study for CUSUM quality control schemes"), so that it takes three to open an alert; and what
has changed by less than a tenth, or a share by less than five hundredths, is none, however sure it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from feature_store.score_state import RowName, SumsByStep
from worker.cusum import FEWEST_DAYS, OPENS, Sum, normal_values, summed
from worker.drift import Drift
from worker.input_sums import INPUT_SUMS, INPUTS

_KIND = "input_drift"
_MOST_OF_A_DAY = 2.5
_FEWEST_A_DAY = 10.0  # of what is divided by, on a day that counts; and of what is divided, on average
_LEAST_CHANGE, _LEAST_SHIFT = math.log(1.1), 0.05
_NOT_YET = 0.99 * OPENS
_LEAST_DEVIATION, _LEAST_SHARE_DEVIATION = 0.01, 0.005
_THOUSANDTHS = 1000.0
_IN_THOUSANDTHS = frozenset({"units", "returned_units", "log_price", "promoted", "log_listed"})


class Input(NamedTuple):
    """A ratio of two sums: of counts, whose logarithm is watched; a share of items; or a mean of logarithms."""

    name: str
    of: str
    over: str
    is_a: Literal["ratio", "share", "logarithm"] = "ratio"


WATCHED: tuple[Input, ...] = (
    Input("unit_price", "log_price", "compared", "logarithm"),
    Input("listed_price", "log_listed", "listed", "logarithm"),
    Input("units_per_line", "units", "order_lines"),
    Input("returned_per_unit", "returned_units", "units"),
    Input("views_per_line", "views", "order_lines"),
    Input("carts_per_line", "add_to_carts", "order_lines"),
    Input("reviews_per_line", "review_count", "order_lines"),
    Input("rating", "rating_sum", "review_count"),
    Input("promoted_share", "promoted", "items", "share"),
    Input("priced_share", "priced", "items", "share"),
    Input("uncategorised_share", "uncategorised", "items", "share"),
)


class _Day(NamedTuple):
    day: int
    of: float
    over: float


def input_drifts(rows: Mapping[RowName, SumsByStep]) -> list[Drift]:
    """All monitors of a lane and frequency. The newest day is left out: more of its items may be looked at yet."""
    by_day = {name.day: next(iter(sums.values())) for name, sums in rows.items() if name.segment == INPUTS and sums}
    days = sorted(by_day)[:-1]
    return [drift for one in WATCHED for drift in _monitored(one, [_day(one, day, by_day[day]) for day in days])]


def _day(one: Input, day: int, sums: Sequence[int]) -> _Day:
    def number(name: str) -> float:
        return sums[INPUT_SUMS.index(name)] / (_THOUSANDTHS if name in _IN_THOUSANDTHS else 1.0)

    return _Day(day, number(one.of), number(one.over))


def _monitored(one: Input, days: Sequence[_Day]) -> list[Drift]:
    days = [day for day in days if day.over >= _FEWEST_A_DAY]
    if len(days) <= FEWEST_DAYS:
        return []
    values = [_value(one, day.of, day.over) for day in days]
    least = _LEAST_SHARE_DEVIATION if one.is_a == "share" else _LEAST_DEVIATION
    capped = [max(-_MOST_OF_A_DAY, min(value, _MOST_OF_A_DAY)) for value in normal_values(values, least)]
    return [drift for sign in (1, -1) if (drift := _drift(one, days, sign, summed(capped, sign))) is not None]


def _drift(one: Input, days: Sequence[_Day], sign: int, found: Sum) -> Drift | None:
    """None where there was too little of it to be watched."""
    before, since = (
        tuple(sum(getattr(day, name) for day in part) for name in ("of", "over"))
        for part in (days[: found.begin], days[found.begin :])
    )
    if one.is_a == "ratio" and before[0] < _FEWEST_A_DAY * found.begin:
        return None
    change = abs(_value(one, *since) - _value(one, *before))
    is_large = change >= (_LEAST_SHIFT if one.is_a == "share" else _LEAST_CHANGE)
    evidence = found.evidence if is_large else min(found.evidence, _NOT_YET)
    observed, expected = (math.exp(of / over) if one.is_a == "logarithm" else of / over for of, over in (since, before))
    return Drift("", one.name, sign, evidence, days[found.begin].day, observed, expected, _KIND)


def _value(one: Input, of: float, over: float) -> float:
    """What is watched."""
    return math.log((of + 0.5) / (over + 0.5)) if one.is_a == "ratio" else of / over
