"""Orders of one partition's items: from forecasts and stock reports, in the order of their event time. No Kafka here.

Time is that of the records. An item is reviewed once a review period, of the latest moment that its policy names: as
soon as there is a forecast that was made at that moment or later, and stock; or with an older forecast once the
policy's wait is over, that is when a record of a later time comes. So what is ordered is a function of the records and
their order alone, and an order's id of item, moment and policy: a review that is held again after a kill can only give
the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from worker.replenishment_orders import Due, Identity, Outlook, StockReport, orders_of
from worker.replenishment_policies import Policy
from worker.schemas import Replenishment


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
        are_put_off: orders are not returned at once but by `orders`: many are worked out together for a fraction of
            what each costs alone. What is ordered stays the same.
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
        self._due: dict[str, Due] = {}
        self._made: list[Replenishment] = []
        self._restoring: Literal["no", "reviewed", "missed"] = "no"
        self.time_ms = -(2**62)
        self.are_put_off = False
        self.reviews = self.covered = 0

    def orders(self) -> list[Replenishment]:
        """Those of all reviews since this was called last."""
        made = self._made + self._work_out()
        self._made = []
        return made

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
        """1. What is known of each item is noted. 2. Unless they are put off, the orders are worked out."""
        self.reviews += len(items)
        for item in items:
            if item.identity.item_id in self._due:  # its next review counts the order of this one
                self._made += self._work_out()
            assert item.outlook is not None
            assert item.stock is not None
            on_order = item.on_order(item.stock, item.reviewed)
            self._due[item.identity.item_id] = Due(
                item.identity, item.policy, item.outlook, item.stock, on_order, item.reviewed, self.time_ms
            )
        return [] if self.are_put_off else self.orders()

    def _work_out(self) -> list[Replenishment]:
        """Orders of the items due. One that was sent already is taken as it was sent."""
        dues = list(self._due.values())
        self._due.clear()
        made = []
        for due, order in zip(dues, orders_of(dues), strict=True):
            if order is None:
                self.covered += 1
                continue
            sent = self._ordered.setdefault(order.replenishment_id, order)
            if sent is order:
                made.append(order)
            known = self._items[due.identity.item_id].orders
            if all(one is not sent for one in known):
                known.append(sent)
        return made
