"""Order policies compared on real sales: safety factors tuned on earlier weeks, costs and service on later ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forecaster.demand_distribution import Floats
from forecaster.ordering import economic_quantity
from forecaster.rolling_origins import targets
from forecaster.series import SeriesTable
from forecaster.stock_contestants import Contestant, Shop
from forecaster.stock_simulation import Ledger, Levels, Outcome, StockRules, outcome, simulate

Service = Literal["fill_rate", "cycle_service"]
DAYS_A_YEAR = 365
_START_WINDOW = 28  # days whose mean sales the stock of the first morning would cover
_PRICE_WINDOW = 182


@dataclass(frozen=True)
class Question:
    """What is compared.

    Attributes:
        tuning, judged: days of the shop on which factors are tuned, and costs are counted.
        service: which measure of service is to reach `target`.
        s_and_big_s: (R, s, S) with S above s by the economic quantity, in place of (R, S).
    """

    shop: Shop
    rules: StockRules
    tuning: slice
    judged: slice
    service: Service
    target: float
    s_and_big_s: bool = False


class Found(NamedTuple):
    """Of one contestant: outcomes by safety factor on the days of tuning and on those judged, the tuned factor, and
    what came of it on the days judged, float64 (1,) each. `factor` is NaN where the target was beyond all factors."""

    factors: Floats
    tuning: Outcome
    judged: Outcome
    factor: float
    tuned: Outcome


def unit_prices(table: SeriesTable, rows: NDArray[np.int64], day: int) -> Floats:
    """Price of a unit of each item before a day: float64 (item,). The last known `unit_price`, else revenue over units,
    else 1 for every item."""
    units = np.nan_to_num(targets(table, rows, day - _PRICE_WINDOW, _PRICE_WINDOW)).sum(axis=1, dtype=np.float64)
    if "unit_price" in table.columns:
        known = _column(table, rows, "unit_price", day)
        last = np.array([row[np.isfinite(row)][-1] if np.isfinite(row).any() else np.nan for row in known])
    elif "revenue" in table.columns:
        revenue = np.nan_to_num(_column(table, rows, "revenue", day)).sum(axis=1, dtype=np.float64)
        last = np.where((units > 0) & (revenue > 0), revenue / np.maximum(units, 1e-12), np.nan)
    else:
        return np.ones(len(rows))
    usable = np.isfinite(last) & (last > 0)
    return np.where(usable, last, np.median(last[usable]) if usable.any() else 1.0)


def _column(table: SeriesTable, rows: NDArray[np.int64], name: str, day: int) -> NDArray[np.float32]:
    at = day - _PRICE_WINDOW + np.arange(_PRICE_WINDOW) - table.first_bucket[rows, None]
    inside = (at >= 0) & (at < np.diff(table.offsets)[rows, None])
    cells = np.where(inside, table.offsets[rows, None] + at, 0)
    return np.where(inside, table.columns[name][cells], np.float32(np.nan))


def implied_shortage_cost(holding_cost: Floats, review_period: int, target: float) -> Floats:
    """Cost of a unit short for which `target` is the share of periods without shortage that costs least: of the
    newsvendor, whose unit too many is held for a review period (critical ratio b / (b + h R))."""
    return holding_cost * review_period * target / (1 - target)


def compare(
    question: Question, contestants: Sequence[Contestant], progress: Callable[[str], None] = lambda text: None
) -> dict[str, Found]:
    """Everyone's outcomes by name. Who has one factor only is not tuned."""
    found = {}
    for contestant in contestants:
        progress(contestant.name)
        ledger = _run(question, contestant, contestant.factors)
        tuning, judged = outcome(ledger, question.tuning), outcome(ledger, question.judged)
        if len(contestant.factors) == 1:
            found[contestant.name] = Found(contestant.factors, tuning, judged, float(contestant.factors[0]), judged)
            continue
        factor = _tuned(contestant.factors, getattr(tuning, question.service), question.target)
        chosen = np.array([factor if np.isfinite(factor) else contestant.factors[-1]])
        again = outcome(_run(question, contestant, chosen), question.judged)
        found[contestant.name] = Found(contestant.factors, tuning, judged, factor, again)
    return found


def at_service(factors: Outcome, service: Service, target: float) -> dict[str, float]:
    """Outcomes on the curve over all factors where service is `target`; NaN where the curve does not reach it."""
    reached: Floats = getattr(factors, service)
    rising = np.maximum.accumulate(reached)
    values = {name: float(np.interp(target, rising, values)) for name, values in factors._asdict().items()}
    inside = rising[0] <= target <= rising[-1]
    return values if inside else dict.fromkeys(values, float("nan"))


def _tuned(factors: Floats, service: Floats, target: float) -> float:
    rising = np.maximum.accumulate(service)
    return float(np.interp(target, rising, factors)) if rising[-1] >= target else float("nan")


def _run(question: Question, contestant: Contestant, factors: Floats) -> Ledger:
    shop, rules = question.shop, question.rules

    def levels(day: int) -> Levels:
        answer = contestant.answer(day, factors)
        if not question.s_and_big_s:
            return Levels(answer.levels, answer.levels)
        batch = economic_quantity(answer.rate, rules.order_cost, rules.holding_cost)
        return Levels(answer.levels, answer.levels + batch)

    window = min(_START_WINDOW, shop.history)
    start = shop.before(0, window).mean(axis=1) * (shop.review_period + shop.lead_time.mean)
    return simulate(shop.demand, rules, levels, np.ceil(start))


def summarise(question: Question, found: dict[str, Found]) -> dict[str, Any]:
    """Everything as one object for JSON."""
    return {
        "items": len(question.shop.rows),
        "days_of_tuning": question.tuning.stop - question.tuning.start,
        "days_judged": question.judged.stop - question.judged.start,
        "review_period_days": question.shop.review_period,
        "lead_time_days": dict(
            zip(map(str, question.shop.lead_time.durations), question.shop.lead_time.probabilities, strict=True)
        ),
        "policy": "s_S" if question.s_and_big_s else "order_up_to",
        "lost_sales": question.rules.lost_sales,
        "service": question.service,
        "target": question.target,
        "contestants": {name: _told(question, one) for name, one in found.items()},
    }


def _told(question: Question, found: Found) -> dict[str, Any]:
    def plain(values: dict[str, Any]) -> dict[str, Any]:
        return {name: (round(float(v), 6) if np.isfinite(v) else None) for name, v in values.items()}

    single = len(found.factors) == 1
    return {
        "factor": found.factor if np.isfinite(found.factor) else None,
        "tuned": plain({name: values[0] for name, values in found.tuned._asdict().items()}),
        "at_target": None if single else plain(at_service(found.judged, question.service, question.target)),
        "curve": [
            {"factor": float(factor)} | plain({name: values[n] for name, values in found.judged._asdict().items()})
            for n, factor in enumerate(found.factors)
        ],
    }
