"""What comes in: the seven input messages, and the columns that countable ones become.

Messages are JSON objects in UTF-8. Unknown fields are ignored; a field that was ever published keeps its name and type.
Numbers become exact integers in the columns: quantities in thousandths of a unit, money in millionths of the shop's
currency.
Personal identifiers (session_id and the like) are simply not fields of these classes, so they are dropped on arrival.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Annotated, Literal, NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

EventTime = Annotated[int, Meta(ge=0, description="milliseconds since the epoch, UTC")]
# Not held against the clock as event_time is, so it needs a bound that int64 columns can take.
AnyTime = Annotated[int, Meta(ge=0, le=2**53, description="milliseconds since the epoch, UTC; may lie ahead")]
ProductId = Annotated[str, Meta(min_length=1, description="also the record's key")]
LocationId = Annotated[str, Meta(description="empty = the whole shop")]
EventId = Annotated[str, Meta(description="unique per event; empty = no de-duplication")]


class OrderEvent(msgspec.Struct, frozen=True, gc=False):
    """One order line: a sale, its cancellation, or goods that came back."""

    event_time: EventTime
    product_id: ProductId
    quantity: Annotated[float, Meta(description="units; a negative sale is read as a cancel")]
    unit_price: Annotated[float, Meta(ge=0, description="per unit, in the shop's currency")]
    event_id: EventId = ""
    location_id: LocationId = ""
    order_id: str = ""
    kind: Literal["sale", "cancel", "return"] = "sale"
    currency: Annotated[str, Meta(description="ISO 4217; empty = the shop's own")] = ""
    promotion_id: str | None = None
    one_off: Annotated[bool, Meta(description="a bulk order that is not to be learnt from")] = False
    original_event_time: AnyTime | None = None


class ClickEvent(msgspec.Struct, frozen=True, gc=False):
    """Something a visitor did with a product."""

    event_time: EventTime
    product_id: ProductId
    action: Literal["view", "add_to_cart", "remove_from_cart", "wishlist"]
    event_id: EventId = ""
    location_id: LocationId = ""


class ReviewEvent(msgspec.Struct, frozen=True, gc=False):
    """A customer's rating, with or without words."""

    event_time: EventTime
    product_id: ProductId
    rating: Annotated[int, Meta(ge=1, le=5, description="stars")]
    event_id: EventId = ""
    text: str = ""


class ProductEvent(msgspec.Struct, frozen=True):
    """What is known of a product from `event_time` on. A tombstone (null value) delists it."""

    event_time: EventTime
    product_id: ProductId
    title: str = ""
    description: str = ""
    category: str = ""
    brand: str = ""
    launch_time: AnyTime | None = None
    image_embedding: list[float] | None = None


class CalendarEntry(msgspec.Struct, frozen=True):
    """A stretch of time, end exclusive, and what holds in it. Null = says nothing about that."""

    start_time: AnyTime
    end_time: AnyTime
    location_id: Annotated[str, Meta(description="empty = every location")] = ""
    unit_price: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    promotion: bool | None = None
    open: bool | None = None
    event_name: str | None = None


class CalendarEvent(msgspec.Struct, frozen=True):
    """A product's whole list of calendar entries, known from `event_time` on; it replaces the list before it."""

    event_time: EventTime
    product_id: ProductId
    entries: list[CalendarEntry] = []


class GlobalCalendarEvent(msgspec.Struct, frozen=True):
    """The same for the whole shop. The record's key names the list, so that several can stand side by side."""

    event_time: EventTime
    entries: list[CalendarEntry] = []


class StockEvent(msgspec.Struct, frozen=True):
    """Stock of a product at a location at `event_time`."""

    event_time: EventTime
    product_id: ProductId
    on_hand: Annotated[float, Meta(ge=-1e9, le=1e9, description="units; below zero = owed to customers")]
    location_id: LocationId = ""
    on_order: Annotated[float, Meta(ge=0, le=1e9, description="units on their way")] = 0.0


CountedEvent = OrderEvent | ClickEvent | ReviewEvent
StateEvent = ProductEvent | CalendarEvent | StockEvent


class Action(enum.IntEnum):
    """Column code of what an event did: the kinds of orders, the actions of clicks, and a review."""

    SALE = 0
    CANCEL = 1
    RETURN = 2
    VIEW = 3
    ADD_TO_CART = 4
    REMOVE_FROM_CART = 5
    WISHLIST = 6
    REVIEW = 7


ORDER_ACTIONS = (Action.SALE, Action.CANCEL, Action.RETURN)


class Tombstone(NamedTuple):
    """A null value on a compacted topic: what that topic said of the product is withdrawn."""

    source: str
    product_id: str


class StateChange(NamedTuple):
    """A message that replaces what was known of a product, in its row's place among the batch."""

    row: int
    event: StateEvent | Tombstone


@dataclass(frozen=True)
class EventBatch:
    """Countable events as columns, one entry an event, in the order of arrival.

    Attributes:
        row: int64 (event,): place of the record in the list given to `decode`.
        event_time_ms: int64 (event,), UTC.
        series: distinct (product_id, location_id) pairs of the batch.
        series_index: int64 (event,): index into `series`.
        action: int8 (event,), codes of `Action`.
        quantity: int64 (event,), thousandths of a unit, never negative; 0 for clicks and reviews.
        unit_price: int64 (event,), millionths of the shop's currency.
        rating: int64 (event,), stars 1 to 5; 0 for other events.
        one_off: bool (event,).
        event_id: ids as sent, one an event, empty = none; an empty sequence where no event of the batch has one.
    """

    row: NDArray[np.int64]
    event_time_ms: NDArray[np.int64]
    series: tuple[tuple[str, str], ...]
    series_index: NDArray[np.int64]
    action: NDArray[np.int8]
    quantity: NDArray[np.int64]
    unit_price: NDArray[np.int64]
    rating: NDArray[np.int64]
    one_off: NDArray[np.bool_]
    event_id: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def take(self, keep: NDArray[np.bool_]) -> EventBatch:
        """The events where `keep` is true. `series` stays as it is."""
        if keep.all():
            return self
        return EventBatch(
            self.row[keep],
            self.event_time_ms[keep],
            self.series,
            self.series_index[keep],
            self.action[keep],
            self.quantity[keep],
            self.unit_price[keep],
            self.rating[keep],
            self.one_off[keep],
            list(compress(self.event_id, keep.tolist())),
        )


EVENT_CLASSES: dict[str, type[msgspec.Struct]] = {
    "orders": OrderEvent,
    "clicks": ClickEvent,
    "reviews": ReviewEvent,
    "products": ProductEvent,
    "calendar": CalendarEvent,
    "calendar_global": GlobalCalendarEvent,
    "stock": StockEvent,
}
COMPACTED: frozenset[str] = frozenset({"products", "calendar", "calendar_global"})


def item_id_of(product_id: str, location_id: str) -> str:
    """Name of one forecast series; both parts percent-encoded, so it is unique and never parsed back."""
    plain = product_id.isascii() and product_id.isalnum()  # `quote` takes ten times as long to find that out
    product = product_id if plain else quote(product_id, safe="")
    return f"{product}@{quote(location_id, safe='')}" if location_id else product
