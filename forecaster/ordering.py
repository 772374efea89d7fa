"""Order policies: how high to fill up, when, and how much to order. Pure arithmetic over items, numpy only.

Sources: E. Silver, D. Pyke and D. Thomas, 2017, Inventory and Production Management in Supply Chains, 4th edition
(below: SPT); L. Snyder and Z.-J. Shen, 2019, Fundamentals of Supply Chain Theory, 2nd edition.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forecaster.demand_distribution import Demand, Floats


def critical_ratio(underage_cost: float, overage_cost: float) -> float:
    """Share of demand outcomes that stock should cover: cu / (cu + co), of what a unit too few and a unit too many cost
    (K. Arrow, T. Harris and J. Marschak, 1951, Optimal Inventory Policy; SPT section 10.2).

    Raises:
        ValueError: a cost is not above 0.
    """
    if underage_cost <= 0 or overage_cost <= 0:
        raise ValueError("the costs of a unit too few and of a unit too many are above 0")
    return underage_cost / (underage_cost + overage_cost)


def economic_quantity(demand_rate: Floats, order_cost: float, holding_cost: Floats | float) -> Floats:
    """Order quantity at which ordering and holding cost the same, √(2 K λ / h): float64 (item,) (F. Harris, 1913, How
    many parts to make at once). `demand_rate` in units, `holding_cost` of a unit, in the same time."""
    return np.asarray(np.sqrt(2 * order_cost * np.maximum(demand_rate, 0.0) / holding_cost))


def shelf_life_cap(level: Floats, sellable: Demand) -> Floats:
    """An order-up-to level that orders no more than is expected to be sold before it spoils: float64 (item,).
    `sellable` is the demand until goods that are ordered now would spoil."""
    return np.minimum(level, sellable.mean())


def fill_rate_level(protected: Demand, before_arrival: Demand, period_demand: Floats, fill_rate: float) -> Floats:
    """Lowest order-up-to level at which the share `fill_rate` of demand is met from stock: float64 (item,).

    Expected shortage of a review period is that at its end less that at its start, E[(D(R+L) − S)⁺] − E[(D(L) − S)⁺]
    (SPT section 6.9, with both terms, as for large shares short), found by halving.
    """
    allowed = (1 - fill_rate) * period_demand
    low, high = np.zeros(len(protected)), np.asarray(protected.value(1 - 1e-9)) + 1.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        enough = protected.shortage(middle) - before_arrival.shortage(middle) <= allowed
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.asarray(high)


def order_quantity(
    position: NDArray[np.float64],
    reorder_point: NDArray[np.float64],
    order_up_to: NDArray[np.float64],
    *,
    min_order: NDArray[np.float64] | float = 0.0,
    pack: NDArray[np.float64] | float = 1.0,
) -> Floats:
    """What to order: nothing while the position is above the reorder point, else what is missing to the order-up-to
    level, at least `min_order`, rounded up to whole packs. Arrays broadcast; float64.

    (R, S) has its reorder point at the order-up-to level: whatever is missing is ordered (SPT section 6.4). `position`
    is what is on hand, less what is owed to customers, and what is on order.
    """
    missing = order_up_to - position
    # A thousandth is what quantities are counted in; a smaller rest is what floating point left.
    due = (position <= reorder_point) & (missing > 5e-4)
    wanted = np.maximum(missing, min_order)
    packs = np.ceil(wanted / pack - 1e-9)
    return np.where(due, packs * pack, 0.0)
