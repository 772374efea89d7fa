"""What would have become of stock: real demand run through order policies, day by day, for all items at once.

A day goes: what was ordered a lead time ago arrives; on a review day orders are placed; demand is served; stock that is
left is paid for. Several runs (settings of one policy) go side by side. numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forecaster.demand_distribution import Floats
from forecaster.lead_time import LeadTime
from forecaster.ordering import order_quantity

_SEED = 0  # of lead times drawn: the same for everybody who is compared


class Levels(NamedTuple):
    """Of one review: reorder point and order-up-to level, float64 (run, item), in units."""

    reorder_point: Floats
    order_up_to: Floats


@dataclass(frozen=True)
class StockRules:
    """How the shop works.

    Attributes:
        review_period: days between looks at the stock, the first on day 0.
        lead_time: whole days until goods arrive; 0 = before that day's demand.
        lost_sales: demand without stock is lost; False = it is owed and served later.
        holding_cost: of a unit over a day, float64 (item,).
        shortage_cost: of a unit lost, or of a unit owed over a day, float64 (item,).
        order_cost: of an order of an item.
        min_order, pack: of an order, in units.
    """

    review_period: int
    lead_time: LeadTime
    lost_sales: bool
    holding_cost: Floats
    shortage_cost: Floats
    order_cost: float = 0.0
    min_order: float = 0.0
    pack: float = 1.0


class Ledger(NamedTuple):
    """What happened, summed over items: float64 (run, day), but for `cycles`.

    Attributes:
        demand, short: units asked for, and those of them that there was no stock for on that day.
        stock: units left in the evening.
        holding, shortage, ordering: costs.
        orders: how many were placed.
        cycles, cycles_short: float64 (run, day): replenishment cycles that ended on the day, and those of them in which
            something was short. A cycle is from one arrival to the next, a review period long.
    """

    demand: Floats
    short: Floats
    stock: Floats
    holding: Floats
    shortage: Floats
    ordering: Floats
    orders: Floats
    cycles: Floats
    cycles_short: Floats


def simulate(
    demand: NDArray[np.floating[Any]], rules: StockRules, levels: Callable[[int], Levels], start: NDArray[np.float64]
) -> Ledger:
    """Run stock through a stretch of days.

    Args:
        demand: (item, day) units; NaN counts as none.
        rules: how the shop works.
        levels: of a review day (0, review_period, …), for all runs.
        start: float64 (item,) on hand on the first morning.
    """
    units = np.nan_to_num(demand.astype(np.float64))
    items, days = units.shape
    drawn = np.random.default_rng(_SEED)
    durations = np.array(rules.lead_time.durations, dtype=np.int64)
    longest = int(durations.max())
    runs = len(levels(0).order_up_to)
    on_hand = np.broadcast_to(start, (runs, items)).copy()
    coming = np.zeros((longest + 1, runs, items))
    short_in_cycle = np.zeros((runs, items), dtype=np.bool_)
    ledger = Ledger(*(np.zeros((runs, days)) for _ in Ledger._fields))
    for day in range(days):
        slot = day % (longest + 1)
        if day % rules.review_period == 0:
            wanted = _orders(levels(day), on_hand + coming.sum(axis=0), rules)
            arrival = drawn.choice(durations, size=items, p=rules.lead_time.probabilities)
            for duration in np.unique(arrival).tolist():
                coming[(day + duration) % (longest + 1)][:, arrival == duration] += wanted[:, arrival == duration]
            ledger.orders[:, day] = (wanted > 0).sum(axis=1)
        on_hand += coming[slot]
        coming[slot] = 0.0
        asked = units[:, day]
        short = np.clip(asked - np.maximum(on_hand, 0.0), 0.0, asked)
        on_hand -= asked
        if rules.lost_sales:
            np.maximum(on_hand, 0.0, out=on_hand)
        short_in_cycle |= short > 0
        owed = short if rules.lost_sales else np.maximum(-on_hand, 0.0)
        left = np.maximum(on_hand, 0.0)
        ledger.demand[:, day] = asked.sum()
        ledger.short[:, day] = short.sum(axis=1)
        ledger.stock[:, day] = left.sum(axis=1)
        ledger.holding[:, day] = left @ rules.holding_cost
        ledger.shortage[:, day] = owed @ rules.shortage_cost
        if (day + 1 - durations[0]) % rules.review_period == 0:
            ledger.cycles[:, day] = items
            ledger.cycles_short[:, day] = short_in_cycle.sum(axis=1)
            short_in_cycle[:] = False
    return ledger._replace(ordering=ledger.orders * rules.order_cost)


def _orders(levels: Levels, position: Floats, rules: StockRules) -> Floats:
    return order_quantity(position, *levels, min_order=rules.min_order, pack=rules.pack)


class Outcome(NamedTuple):
    """Of a stretch of days, float64 (run,) each. Costs are a day's; `turns` are a year's sales over the mean stock."""

    cost: Floats
    holding: Floats
    shortage: Floats
    ordering: Floats
    fill_rate: Floats
    cycle_service: Floats
    lost_units: Floats
    mean_stock: Floats
    turns: Floats
    orders: Floats


def outcome(ledger: Ledger, days: slice) -> Outcome:
    """What a ledger says of some of its days."""
    part = Ledger(*(values[:, days] for values in ledger))
    count = part.demand.shape[1]
    total = part.demand.sum(axis=1)
    short, stock = part.short.sum(axis=1), part.stock.mean(axis=1)
    holding, shortage, ordering = (
        values.sum(axis=1) / count for values in (part.holding, part.shortage, part.ordering)
    )
    served = np.where(total > 0, 1 - short / np.maximum(total, 1e-12), 1.0)
    cycles = np.maximum(part.cycles.sum(axis=1), 1)
    return Outcome(
        cost=holding + shortage + ordering,
        holding=holding,
        shortage=shortage,
        ordering=ordering,
        fill_rate=served,
        cycle_service=1 - part.cycles_short.sum(axis=1) / cycles,
        lost_units=short,
        mean_stock=stock,
        turns=np.where(stock > 0, (total - short) / count * 365 / np.maximum(stock, 1e-12), np.inf),
        orders=part.orders.sum(axis=1),
    )
