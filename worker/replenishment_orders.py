"""What is ordered of items that are due: quantities of each policy, and the messages of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from forecaster.demand_distribution import Demand, Floats
from forecaster.lead_time import demand_between, protected_demand
from forecaster.ordering import economic_quantity, fill_rate_level, order_quantity, shelf_life_cap
from worker.replenishment_policies import Policy
from worker.schemas import Replenishment

_DAY_MS = 86_400_000


class Outlook(NamedTuple):
    """What is kept of an item's forecast.

    Attributes:
        ends: end of each step, milliseconds UTC.
        cumulative: float32 (step, level), units from `cutoff` to each end.
    """

    forecast_id: str
    cutoff: int
    revision: int
    ends: tuple[int, ...]
    levels: tuple[float, ...]
    cumulative: NDArray[np.float32]


class StockReport(NamedTuple):
    """Stock of an item, in units."""

    event_time: int
    on_hand: float
    on_order: float


class Identity(NamedTuple):
    """Of an item."""

    item_id: str
    product_id: str
    location_id: str


class Due(NamedTuple):
    """An item at its review: what is known of it. `on_order` is in units, `time_ms` the event time reached."""

    identity: Identity
    policy: Policy
    outlook: Outlook
    stock: StockReport
    on_order: float
    review_time: int
    time_ms: int


def replenishment_id(item_id: str, review_time: int, policy: str) -> str:
    """Of the order of one item at one review."""
    return hashlib.blake2b(msgspec.json.encode([item_id, review_time, policy]), digest_size=12).hexdigest()


class _Levels(NamedTuple):
    """float64 (item,) each, units; `position` is what counts against them."""

    reorder_point: Floats
    order_up_to: Floats
    position: Floats


def orders_of(dues: Sequence[Due]) -> list[Replenishment | None]:
    """An order each, or None where nothing is needed. Those of one policy, moment, cutoff and steps are worked out
    together."""
    alike: dict[tuple[int, int, int, tuple[int, ...], tuple[float, ...]], list[int]] = {}
    for place, due in enumerate(dues):
        key = (id(due.policy), due.review_time, due.outlook.cutoff, due.outlook.ends, due.outlook.levels)
        alike.setdefault(key, []).append(place)
    found: list[Replenishment | None] = [None] * len(dues)
    for places in alike.values():
        for place, order in zip(places, _orders([dues[place] for place in places]), strict=True):
            found[place] = order
    return found


def _orders(dues: Sequence[Due]) -> list[Replenishment | None]:
    policy = dues[0].policy
    on_hand = np.array([due.stock.on_hand for due in dues])
    on_order = np.array([due.on_order for due in dues])
    levels = _levels(dues, on_hand + on_order)
    quantity = order_quantity(
        levels.position, levels.reorder_point, levels.order_up_to, min_order=policy.min_order, pack=policy.pack
    )
    columns = (np.round(c, 3).tolist() for c in (quantity, on_hand, on_order, *levels[:2]))
    return [
        _message(due, row) if row[0] > 0 else None for due, row in zip(dues, zip(*columns, strict=True), strict=True)
    ]


def _levels(dues: Sequence[Due], position: Floats) -> _Levels:
    policy, first = dues[0].policy, dues[0].outlook
    cumulative = np.stack([due.outlook.cumulative for due in dues])
    ends = np.array(first.ends, dtype=np.float64) - first.cutoff
    # A review is of its moment, a forecast of its cutoff, at or shortly before or after it.
    since = float(dues[0].review_time - first.cutoff)

    def demand(until_ms: float) -> Demand:
        return protected_demand(cumulative, ends, first.levels, policy.lead_time, max(since + until_ms, 0.0))

    period = float(policy.review_period_ms)
    protected = demand(period)
    if policy.name == "newsvendor":
        level = demand_between(demand(0.0), protected, policy.service_level)
        return _Levels(level, _capped(policy, level, demand), np.zeros(len(dues)))
    if policy.by_fill_rate:
        arriving = demand(0.0)
        needed = np.maximum(protected.mean() - arriving.mean(), 0.0)
        level = fill_rate_level(protected, arriving, needed, policy.service_level)
    else:
        level = protected.value(policy.service_level)
    batch: Floats | float = policy.batch if policy.batch is not None else 0.0
    if policy.batch is None:
        days = max(since + period + policy.lead_time.mean, 1.0) / _DAY_MS
        batch = economic_quantity(protected.mean() / days, policy.order_cost, policy.holding_cost)
    return _Levels(level, _capped(policy, level + batch, demand), position)


def _capped(policy: Policy, level: Floats, demand: Callable[[float], Demand]) -> Floats:
    return level if policy.shelf_life_ms is None else shelf_life_cap(level, demand(float(policy.shelf_life_ms)))


def _message(due: Due, row: Sequence[float]) -> Replenishment:
    quantity, on_hand, on_order, reorder_point, order_up_to = row
    policy, identity = due.policy, due.identity
    if policy.name == "newsvendor":
        reason = f"{order_up_to:g} are needed for one review period"
    else:
        held = f"{on_hand:g} on hand and {on_order:g} on order"
        reason = f"{held} are at or below {reorder_point:g}: up to {order_up_to:g}"
    return Replenishment(
        replenishment_id=replenishment_id(identity.item_id, due.review_time, policy.name),
        item_id=identity.item_id,
        product_id=identity.product_id,
        location_id=identity.location_id,
        quantity=quantity,
        reason=reason,
        policy=policy.name,
        review_time=due.review_time,
        event_time=due.time_ms,
        service_level=policy.service_level,
        service_measure="fill_rate" if policy.by_fill_rate else "cycle_service",
        lead_time_s=policy.lead_time.mean / 1000,
        forecast_id=due.outlook.forecast_id,
        on_hand=on_hand,
        on_order=on_order,
        reorder_point=reorder_point,
        order_up_to=order_up_to,
    )
