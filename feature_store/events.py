"""What comes in: the seven input messages, and `decode` from raw Kafka values to columns.

Messages are JSON objects in UTF-8. Unknown fields are ignored; a field that was ever published keeps its name and type.
Numbers become exact integers here: quantities in thousandths of a unit, money in millionths of the shop's currency.
Personal identifiers (session_id and the like) are simply not fields of these classes, so they are dropped on arrival.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple, cast
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


_ACTIONS = {action.name.lower(): int(action) for action in Action}


class Reason(enum.StrEnum):
    """Why a record went to the dead-letter topic."""

    NOT_JSON = "not_json"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    NOT_FINITE = "not_finite"
    UNKNOWN_ACTION = "unknown_action"
    UNKNOWN_KIND = "unknown_kind"
    BAD_RATING = "bad_rating"
    NEGATIVE_PRICE = "negative_price"
    OUT_OF_RANGE = "out_of_range"
    OTHER_CURRENCY = "other_currency"
    FAR_FUTURE = "far_future"
    TOO_LARGE = "too_large"
    EMPTY_PRODUCT_ID = "empty_product_id"
    WRONG_PARTITION = "wrong_partition"
    WRONG_KEY = "wrong_key"
    NULL_VALUE = "null_value"


class Reject(NamedTuple):
    """A record that could not be used: its row in the list given to `decode`, and why."""

    row: int
    reason: Reason
    detail: str


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

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def take(self, keep: NDArray[np.bool_]) -> EventBatch:
        """The events where `keep` is true. `series` stays as it is."""
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
        )


class Decoded(NamedTuple):
    """What `decode` made of a list of raw values. Every row is in exactly one of the three."""

    events: EventBatch
    states: list[StateChange]
    rejects: list[Reject]


@dataclass(frozen=True)
class DecodeLimits:
    """What `decode` holds a record to.

    `partition_of(product_id)` says where a product belongs; a record elsewhere, or under another key, is rejected.
    None = not checked.
    """

    currency: str = ""
    max_event_time_ms: int = 2**62
    max_message_bytes: int = 1_000_000
    partition: int | None = None
    partition_of: Callable[[str], int] | None = None
    max_quantity: float = 1e6
    max_unit_price: float = 1e6
    max_line_value: float = 1e8  # 90 such lines fit into one bucket before its revenue would pass 2^53 millionths


EVENT_CLASSES: dict[str, type[msgspec.Struct]] = {
    "orders": OrderEvent,
    "clicks": ClickEvent,
    "reviews": ReviewEvent,
    "products": ProductEvent,
    "calendar": CalendarEvent,
    "calendar_global": GlobalCalendarEvent,
    "stock": StockEvent,
}
_GLOBAL_CALENDAR_DECODER = msgspec.json.Decoder(GlobalCalendarEvent)
COMPACTED: frozenset[str] = frozenset({"products", "calendar", "calendar_global"})
_DECODERS = {source: msgspec.json.Decoder(cls) for source, cls in EVENT_CLASSES.items() if source != "calendar_global"}


def item_id_of(product_id: str, location_id: str) -> str:
    """Name of one forecast series; both parts percent-encoded, so it is unique and never parsed back."""
    product = quote(product_id, safe="")
    return f"{product}@{quote(location_id, safe='')}" if location_id else product


# What msgspec raises on bytes from outside. Brackets nested thousands deep give RecursionError, even in a field that
# is not read.
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _RejectError(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


# The field that msgspec names at the end of its message, and what is wrong when that field does not validate.
_REASON_BY_FIELD = {
    "product_id": Reason.EMPTY_PRODUCT_ID,
    "rating": Reason.BAD_RATING,
    "unit_price": Reason.NEGATIVE_PRICE,
    "action": Reason.UNKNOWN_ACTION,
    "kind": Reason.UNKNOWN_KIND,
}


_INVALID_CHARACTER = re.compile(r"invalid character \(byte (\d+)\)")


def _reason_of(error: Exception, raw: bytes) -> Reason:
    """Name what msgspec found. Its messages are stable: a test sends each kind of bad input."""
    message = str(error)
    if not isinstance(error, msgspec.ValidationError):
        at = _INVALID_CHARACTER.search(message)
        beyond_json = at is not None and raw[int(at[1]) :].startswith((b"NaN", b"Infinity"))
        return Reason.NOT_FINITE if beyond_json or "out of range" in message else Reason.NOT_JSON
    if "missing required field" in message:
        return Reason.MISSING_FIELD
    if "out of range" in message:
        return Reason.NOT_FINITE
    if not any(sign in message for sign in ("Invalid enum value", ">=", "<=", "length")):
        return Reason.WRONG_TYPE
    field_name = message.rpartition("`$.")[2].rstrip("`").rpartition(".")[2]
    reason = _REASON_BY_FIELD.get(field_name, Reason.OUT_OF_RANGE)
    return Reason.OUT_OF_RANGE if reason is Reason.NEGATIVE_PRICE and "<=" in message else reason


def _check_order(event: OrderEvent, limits: DecodeLimits) -> None:
    if event.currency and limits.currency and event.currency != limits.currency:
        detail = f"currency {event.currency!r}, but this shop's is {limits.currency!r}"
        raise _RejectError(Reason.OTHER_CURRENCY, detail)
    if not (math.isfinite(event.quantity) and math.isfinite(event.unit_price)):
        raise _RejectError(Reason.NOT_FINITE, "quantity or unit_price is not a finite number")
    quantity = abs(event.quantity)
    too_many, too_dear = quantity > limits.max_quantity, event.unit_price > limits.max_unit_price
    if too_many or too_dear or quantity * event.unit_price > limits.max_line_value:
        detail = f"quantity {event.quantity:g} at unit_price {event.unit_price:g} is beyond what can be counted exactly"
        raise _RejectError(Reason.OUT_OF_RANGE, detail)
    if event.quantity < 0 and event.kind != "sale":
        raise _RejectError(Reason.OUT_OF_RANGE, f"a {event.kind} has a negative quantity: {event.quantity:g}")


def _check(event: CountedEvent | StateEvent, limits: DecodeLimits) -> None:
    if event.event_time > limits.max_event_time_ms:
        raise _RejectError(Reason.FAR_FUTURE, f"event_time {event.event_time} is further ahead than settings allow")
    if isinstance(event, OrderEvent):
        _check_order(event, limits)


def _check_placement(product_id: str, key: bytes | None, limits: DecodeLimits) -> None:
    if limits.partition_of is None or limits.partition is None:
        return
    belongs = limits.partition_of(product_id)
    if belongs != limits.partition:
        detail = f"product_id {product_id!r} belongs to partition {belongs} by murmur2, not {limits.partition}"
        raise _RejectError(Reason.WRONG_PARTITION, detail)
    if key != product_id.encode():
        raise _RejectError(Reason.WRONG_KEY, f"the record's key is {key!r}, not its product_id {product_id!r}")


def _decode_one(
    source: str, raw: bytes | None, key: bytes | None, limits: DecodeLimits
) -> CountedEvent | StateEvent | Tombstone:
    if raw is None:
        if source not in COMPACTED:
            raise _RejectError(Reason.NULL_VALUE, f"a null value means nothing on the {source} topic")
        product_id = (key or b"").decode("utf-8", "replace")
        if not product_id:
            raise _RejectError(Reason.EMPTY_PRODUCT_ID, "a tombstone without a key")
        _check_placement(product_id, key, limits)
        return Tombstone(source, product_id)
    if len(raw) > limits.max_message_bytes:
        raise _RejectError(Reason.TOO_LARGE, f"{len(raw)} bytes, the limit is {limits.max_message_bytes}")
    try:
        event = cast(CountedEvent | StateEvent, _DECODERS[source].decode(raw))
    except _UNDECODABLE as error:
        raise _RejectError(_reason_of(error, raw), str(error)) from error
    _check_placement(event.product_id, key, limits)
    _check(event, limits)
    return event


@dataclass
class _Columns:
    """Growing columns of an EventBatch."""

    row: list[int] = field(default_factory=list)
    event_time: list[int] = field(default_factory=list)
    series: dict[tuple[str, str], int] = field(default_factory=dict)
    series_index: list[int] = field(default_factory=list)
    action: list[int] = field(default_factory=list)
    quantity: list[float] = field(default_factory=list)
    unit_price: list[float] = field(default_factory=list)
    rating: list[int] = field(default_factory=list)
    one_off: list[bool] = field(default_factory=list)

    def add(self, row: int, event: CountedEvent) -> None:
        action, quantity, unit_price, rating, one_off, location = _ACTIONS["review"], 0.0, 0.0, 0, False, ""
        if isinstance(event, OrderEvent):
            kind = "cancel" if event.quantity < 0 else event.kind
            action, quantity, unit_price = _ACTIONS[kind], abs(event.quantity), event.unit_price
            one_off, location = event.one_off, event.location_id
        elif isinstance(event, ClickEvent):
            action, location = _ACTIONS[event.action], event.location_id
        else:
            rating = event.rating
        self.row.append(row)
        self.event_time.append(event.event_time)
        self.series_index.append(self.series.setdefault((event.product_id, location), len(self.series)))
        self.action.append(action)
        self.quantity.append(quantity)
        self.unit_price.append(unit_price)
        self.rating.append(rating)
        self.one_off.append(one_off)

    def batch(self) -> EventBatch:
        return EventBatch(
            np.array(self.row, dtype=np.int64),
            np.array(self.event_time, dtype=np.int64),
            tuple(self.series),
            np.array(self.series_index, dtype=np.int64),
            np.array(self.action, dtype=np.int8),
            np.rint(np.array(self.quantity, dtype=np.float64) * 1e3).astype(np.int64),
            np.rint(np.array(self.unit_price, dtype=np.float64) * 1e6).astype(np.int64),
            np.array(self.rating, dtype=np.int64),
            np.array(self.one_off, dtype=np.bool_),
        )


def decode(
    sources: Sequence[str], values: Sequence[bytes | None], keys: Sequence[bytes | None], limits: DecodeLimits
) -> Decoded:
    """Turn raw records into columns, state changes and rejects. A malformed record costs only itself.

    Args:
        sources: what each record's topic carries, a key of EVENT_CLASSES (but calendar_global, for which there is
            `decode_global_calendar`); one entry a record, like values and keys.
        values: raw record values; None is a tombstone.
        keys: raw record keys.
        limits: what records are held to.
    """
    columns, states, rejects = _Columns(), [], []
    for row, (source, raw, key) in enumerate(zip(sources, values, keys, strict=True)):
        try:
            event = _decode_one(source, raw, key, limits)
        except _RejectError as error:
            rejects.append(Reject(row, error.reason, str(error)))
            continue
        if isinstance(event, OrderEvent | ClickEvent | ReviewEvent):
            columns.add(row, event)
        else:
            states.append(StateChange(row, event))
    return Decoded(columns.batch(), states, rejects)


def decode_global_calendar(raw: bytes) -> GlobalCalendarEvent:
    """One message of the whole shop's calendar. Raises ValueError, naming what is wrong with it."""
    try:
        return _GLOBAL_CALENDAR_DECODER.decode(raw)
    except _UNDECODABLE as error:
        raise ValueError(f"{_reason_of(error, raw)}: {error}") from error
