"""Orders of one partition's items: from forecasts and stock reports, in the order of their event time. No Kafka here.

Time is that of the records. An item is reviewed once a review period, of the latest moment that its policy names: as
soon as there is a forecast that was made at that moment or later, and stock; or with an older forecast once the
policy's wait is over, that is when a record of a later time comes. So what is ordered is a function of the records and
their order alone, and an order's id of item, moment and policy: a review that is held again after a kill can only give
the same id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

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


class _Item:
    """What is known of an item, and the moment of its last review."""

    __slots__ = ("identity", "orders", "outlook", "policy", "reviewed", "stock")

    def __init__(self, identity: Identity, policy: Policy) -> None:
        self.identity = identity
        self.policy = policy
        self.outlook: Outlook | None = None
        self.stock: StockReport | None = None
        self.orders: list[Replenishment] = []
        self.reviewed = -(2**62)

    def on_order(self, stock: StockReport, before: int) -> float:
        """Units on their way: what the report says, and own orders of earlier reviews that it can't have in it yet."""
        policy = self.policy
        by_stock = policy.on_order_from == "stock"
        within = policy.reported_within_ms if by_stock else int(policy.lead_time.longest)
        own = sum(
            order.quantity
            for order in self.orders
            if order.review_time < before and stock.event_time <= order.event_time + within
        )
        return own + (stock.on_order if by_stock else 0.0)

    def forget(self) -> None:
        """Orders that no report can still be waited for."""
        longest = max(self.policy.reported_within_ms, int(self.policy.lead_time.longest))
        stock_ms = self.stock.event_time if self.stock is not None else 0
        self.orders = [order for order in self.orders if stock_ms <= order.event_time + longest]


class Reviews:
    """Items of one partition.

    Attributes:
        time_ms: event time that has been reached.
        reviews, covered: how many were held, and those of them that ordered nothing.
    """

    def __init__(self, policy_of: Callable[[Identity, str], Policy], ordered: Iterable[Replenishment] = ()) -> None:
        """`ordered`: what this partition's orders were so far, as the output topic has them."""
        self._policy_of = policy_of
        self._ordered: dict[str, Replenishment] = {}
        self._by_item: dict[str, list[Replenishment]] = {}
        for order in ordered:
            # Of an id the first one counts, for consumers too.
            if self._ordered.setdefault(order.replenishment_id, order) is order:
                self._by_item.setdefault(order.item_id, []).append(order)
        self._items: dict[str, _Item] = {}
        self._categories: dict[str, str] = {}
        self._next_ms = -(2**62)  # before this no item is due
        self._restoring: Literal["no", "reviewed", "missed"] = "no"
        self.time_ms = -(2**62)
        self.reviews = self.covered = 0

    def forecast(self, identity: Identity, outlook: Outlook) -> list[Replenishment]:
        """A forecast of the frequency that the item's policy names; older ones than the known one are passed over."""
        made = self._advance(outlook.cutoff)
        item = self._item(identity)
        if item.outlook is None or (outlook.cutoff, outlook.revision) >= (item.outlook.cutoff, item.outlook.revision):
            item.outlook = outlook
        return made + self._review([item])

    def delisted(self, item_id: str, freq: str) -> list[Replenishment]:
        """The item is no longer forecast at a frequency: where its policy names that one, it is no longer ordered."""
        item = self._items.get(item_id)
        if item is not None and item.policy.freq == freq:
            item.outlook = None
        return []

    def stock(self, identity: Identity, report: StockReport) -> list[Replenishment]:
        """A stock report; older ones than the known one are passed over."""
        made = self._advance(report.event_time)
        item = self._item(identity)
        if item.stock is None or report.event_time >= item.stock.event_time:
            item.stock = report
            item.forget()
        return made + self._review([item])

    def category(self, product_id: str, category: str) -> list[Replenishment]:
        """A product's category, from now on."""
        if self._categories.get(product_id, "") == category:
            return []
        self._categories[product_id] = category
        for item in self._items.values():
            if item.identity.product_id == product_id:
                item.policy = self._policy_of(item.identity, category)
        self._next_ms = self.time_ms
        return []

    def policy(self, identity: Identity) -> Policy:
        """The item's policy, as things are."""
        item = self._items.get(identity.item_id)
        return item.policy if item is not None else self._policy_of(identity, self._category(identity))

    def restore(self, records: Iterable[Callable[[Reviews], object]], *, are_reviewed: bool) -> None:
        """Take records without ordering: those that were dealt with before a restart (`are_reviewed`), or those that
        came while nobody was there, of which only the last state matters."""
        self._restoring = "reviewed" if are_reviewed else "missed"
        for record in records:
            record(self)
        self._restoring = "no"

    def review_all(self) -> list[Replenishment]:
        """Hold the present review of whatever item has not had it."""
        return self._review(list(self._items.values()))

    def _advance(self, time_ms: int) -> list[Replenishment]:
        """Hold the reviews up to a record's time, before it is taken."""
        made: list[Replenishment] = []
        if time_ms > self.time_ms:
            self.time_ms = time_ms
            if time_ms >= self._next_ms:
                made = self._review(list(self._items.values()))
                self._next_ms = min((i.policy.wait_ends_after(time_ms) for i in self._items.values()), default=time_ms)
        return made

    def _item(self, identity: Identity) -> _Item:
        item = self._items.get(identity.item_id)
        if item is None:
            item = _Item(identity, self._policy_of(identity, self._category(identity)))
            item.orders = self._by_item.pop(identity.item_id, [])
            self._items[identity.item_id] = item
            self._next_ms = min(self._next_ms, item.policy.wait_ends_after(self.time_ms))
        return item

    def _category(self, identity: Identity) -> str:
        return self._categories.get(identity.product_id, "")

    def _review(self, items: Sequence[_Item]) -> list[Replenishment]:
        due = [
            item
            for item in items
            if item.outlook is not None
            and item.stock is not None
            and item.reviewed < (moment := item.policy.review_before(self.time_ms))
            and (item.outlook.cutoff >= moment or self.time_ms >= moment + item.policy.review_wait_ms)
        ]
        if not due or self._restoring == "missed":
            return []
        for item in due:
            item.reviewed = item.policy.review_before(self.time_ms)
        return self._order(due) if self._restoring == "no" else []

    def _order(self, items: Sequence[_Item]) -> list[Replenishment]:
        """1. Items of one policy, cutoff and steps are worked out together. 2. An order that was sent already is taken
        as it was sent."""
        self.reviews += len(items)
        alike: dict[tuple[Policy, int, tuple[int, ...], tuple[float, ...]], list[_Item]] = {}
        for item in items:
            assert item.outlook is not None
            key = (item.policy, item.outlook.cutoff, item.outlook.ends, item.outlook.levels)
            alike.setdefault(key, []).append(item)
        made = []
        for group in alike.values():
            for item, order in zip(group, _orders(group, self.time_ms), strict=True):
                if order is None:
                    self.covered += 1
                    continue
                sent = self._ordered.setdefault(order.replenishment_id, order)
                if sent is order:
                    made.append(order)
                if all(known is not sent for known in item.orders):
                    item.orders.append(sent)
        return made


def replenishment_id(item_id: str, review_time: int, policy: str) -> str:
    """Of the order of one item at one review."""
    return hashlib.blake2b(msgspec.json.encode([item_id, review_time, policy]), digest_size=12).hexdigest()


class _Levels(NamedTuple):
    """float64 (item,) each, units; `position` is what counts against them."""

    reorder_point: Floats
    order_up_to: Floats
    position: Floats


def _orders(items: Sequence[_Item], time_ms: int) -> list[Replenishment | None]:
    """Of items with one policy, cutoff and steps: an order each, or None where nothing is needed."""
    policy = items[0].policy
    review_time = policy.review_before(time_ms)
    stocks = [item.stock for item in items if item.stock is not None]
    on_hand = np.array([stock.on_hand for stock in stocks])
    on_order = np.array([item.on_order(stock, review_time) for item, stock in zip(items, stocks, strict=True)])
    levels = _levels(policy, items, review_time, on_hand + on_order)
    quantity = order_quantity(
        levels.position, levels.reorder_point, levels.order_up_to, min_order=policy.min_order, pack=policy.pack
    )
    columns = (np.round(c, 3).tolist() for c in (quantity, on_hand, on_order, *levels[:2]))
    return [
        _message(item, review_time, time_ms, row) if row[0] > 0 else None
        for item, row in zip(items, zip(*columns, strict=True), strict=True)
    ]


def _levels(policy: Policy, items: Sequence[_Item], review_time: int, position: Floats) -> _Levels:
    outlooks = [item.outlook for item in items if item.outlook is not None]
    first = outlooks[0]
    cumulative = np.stack([outlook.cumulative for outlook in outlooks])
    ends = np.array(first.ends, dtype=np.float64) - first.cutoff
    # A review is of its moment, a forecast of its cutoff, at or shortly before or after it.
    since = float(review_time - first.cutoff)

    def demand(until_ms: float) -> Demand:
        return protected_demand(cumulative, ends, first.levels, policy.lead_time, max(since + until_ms, 0.0))

    period = float(policy.review_period_ms)
    protected, arriving = demand(period), demand(0.0)
    if policy.name == "newsvendor":
        level = demand_between(arriving, protected, policy.service_level)
        return _Levels(level, _capped(policy, level, demand), np.zeros(len(items)))
    if policy.by_fill_rate:
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


def _message(item: _Item, review_time: int, time_ms: int, row: Sequence[float]) -> Replenishment:
    quantity, on_hand, on_order, reorder_point, order_up_to = row
    policy, outlook = item.policy, item.outlook
    assert outlook is not None
    if policy.name == "newsvendor":
        reason = f"{order_up_to:g} are needed for one review period"
    else:
        held = f"{on_hand:g} on hand and {on_order:g} on order"
        reason = f"{held} are at or below {reorder_point:g}: up to {order_up_to:g}"
    return Replenishment(
        replenishment_id=replenishment_id(item.identity.item_id, review_time, policy.name),
        item_id=item.identity.item_id,
        product_id=item.identity.product_id,
        location_id=item.identity.location_id,
        quantity=quantity,
        reason=reason,
        policy=policy.name,
        review_time=review_time,
        event_time=time_ms,
        service_level=policy.service_level,
        service_measure="fill_rate" if policy.by_fill_rate else "cycle_service",
        lead_time_s=policy.lead_time.mean / 1000,
        forecast_id=outlook.forecast_id,
        on_hand=on_hand,
        on_order=on_order,
        reorder_point=reorder_point,
        order_up_to=order_up_to,
    )
