"""`decode`: raw Kafka records to columns, in bulk. A malformed record costs only itself.

Records are decoded and checked as whole columns; what looks wrong there is looked at again one by one, to name its
reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_store.event_columns import COLUMNS, no_events
from feature_store.events import (
    COMPACTED,
    EVENT_CLASSES,
    CountedEvent,
    EventBatch,
    GlobalCalendarEvent,
    OrderEvent,
    StateChange,
    StateEvent,
    Tombstone,
)


class Reason(StrEnum):
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


# Columns are rounded: what comes this near to a limit is looked at one by one.
_NEARLY = 1 - 1e-6
_GLOBAL_CALENDAR_DECODER = msgspec.json.Decoder(GlobalCalendarEvent)
_DECODERS = {source: msgspec.json.Decoder(cls) for source, cls in EVENT_CLASSES.items() if source != "calendar_global"}

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


def decode(source: str, values: Sequence[bytes | None], keys: Sequence[bytes | None], limits: DecodeLimits) -> Decoded:
    """Turn raw records of one topic into columns, or state changes, and rejects.

    Args:
        source: what the topic carries, a key of EVENT_CLASSES (but calendar_global, for which there is
            `decode_global_calendar`).
        values: raw record values; None is a tombstone.
        keys: raw record keys, one a value.
        limits: what records are held to.
    """
    if source not in COLUMNS:
        return _decode_states(source, values, keys, limits)
    rejects: list[Reject] = []
    rows, events = _parse(source, values, keys, limits, rejects)
    try:
        batch = COLUMNS[source](rows, events)
    except OverflowError:  # a time that no int64 holds
        rejects.clear()
        rows, events = _parse_each(source, values, keys, limits, rejects)
        batch = COLUMNS[source](rows, events)
    doubtful = (
        _misplaced(batch, keys, limits) | _beyond_limits(batch, source, limits) | _priced_elsewhere(events, limits)
    )
    wrong = np.zeros(len(batch), dtype=np.bool_)
    for i in np.flatnonzero(doubtful).tolist():
        row = int(rows[i])
        try:
            _check_placement(events[i].product_id, keys[row], limits)
            _check(events[i], limits)
        except _RejectError as error:
            rejects.append(Reject(row, error.reason, str(error)))
            wrong[i] = True
    if wrong.any():
        kept = np.flatnonzero(~wrong)
        batch = COLUMNS[source](rows[kept], [events[i] for i in kept.tolist()])
    return Decoded(batch, [], sorted(rejects))


def decode_global_calendar(raw: bytes) -> GlobalCalendarEvent:
    """One message of the whole shop's calendar. Raises ValueError, naming what is wrong with it."""
    try:
        return _GLOBAL_CALENDAR_DECODER.decode(raw)
    except _UNDECODABLE as error:
        raise ValueError(f"{_reason_of(error, raw)}: {error}") from error


def _decode_states(
    source: str, values: Sequence[bytes | None], keys: Sequence[bytes | None], limits: DecodeLimits
) -> Decoded:
    states, rejects = [], []
    for row, (raw, key) in enumerate(zip(values, keys, strict=True)):
        try:
            event = _decode_one(source, raw, key, limits)
        except _RejectError as error:
            rejects.append(Reject(row, error.reason, str(error)))
        else:
            states.append(StateChange(row, cast(StateEvent | Tombstone, event)))
    return Decoded(no_events(), states, rejects)


def _parse(
    source: str,
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    limits: DecodeLimits,
    rejects: list[Reject],
) -> tuple[NDArray[np.int64], list[Any]]:
    """Events that are of their class, and the rows they come from. Adds the others to `rejects`."""
    try:
        if None not in values and max(map(len, cast(Sequence[bytes], values)), default=0) <= limits.max_message_bytes:
            return np.arange(len(values)), list(map(_DECODERS[source].decode, cast(Sequence[bytes], values)))
    except _UNDECODABLE:
        pass
    return _parse_each(source, values, keys, limits, rejects)


def _parse_each(
    source: str,
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    limits: DecodeLimits,
    rejects: list[Reject],
) -> tuple[NDArray[np.int64], list[Any]]:
    """The same one by one, for batches of which some record is malformed."""
    rows, events = [], []
    for row, (raw, key) in enumerate(zip(values, keys, strict=True)):
        try:
            events.append(_decode_one(source, raw, key, limits))
            rows.append(row)
        except _RejectError as error:
            rejects.append(Reject(row, error.reason, str(error)))
    return np.array(rows, dtype=np.int64), cast(list[Any], events)


def _misplaced(batch: EventBatch, keys: Sequence[bytes | None], limits: DecodeLimits) -> NDArray[np.bool_]:
    """Where the key is not the product's, or the product not the partition's: bool (event,)."""
    out = np.zeros(len(batch), dtype=np.bool_)
    if limits.partition_of is None or limits.partition is None:
        return out
    expected = [product.encode() for product, _ in batch.series]
    wanted = list(map(expected.__getitem__, batch.series_index.tolist()))
    found = keys if len(batch) == len(keys) else [keys[row] for row in batch.row.tolist()]
    if wanted != found:
        out |= np.array([key != want for key, want in zip(found, wanted, strict=True)], dtype=np.bool_)
    elsewhere = [limits.partition_of(product) != limits.partition for product, _ in batch.series]
    if any(elsewhere):
        out |= np.array(elsewhere)[batch.series_index]
    return out


def _beyond_limits(batch: EventBatch, source: str, limits: DecodeLimits) -> NDArray[np.bool_]:
    """Where `_check` may have something to say: bool (event,). It names too many rather than too few."""
    out = batch.event_time_ms > limits.max_event_time_ms
    if source == "orders":
        quantity, unit_price = batch.quantity, batch.unit_price
        out |= (quantity < 0) | (quantity > limits.max_quantity * 1e3 * _NEARLY)
        out |= (unit_price < 0) | (unit_price > limits.max_unit_price * 1e6 * _NEARLY)
        out |= quantity.astype(np.float64) * unit_price > limits.max_line_value * 1e9 * _NEARLY
    return out


def _priced_elsewhere(events: Sequence[Any], limits: DecodeLimits) -> NDArray[np.bool_]:
    """Orders in a currency that is not the shop's: bool (event,)."""
    out = np.zeros(len(events), dtype=np.bool_)
    if limits.currency and events and isinstance(events[0], OrderEvent):
        ours = ("", limits.currency)
        currencies = [event.currency for event in events]
        if not set(ours).issuperset(currencies):
            out |= np.array([currency not in ours for currency in currencies], dtype=np.bool_)
    return out


def join_decoded(parts: Sequence[Decoded]) -> Decoded:
    """What several topics' records changed, as one. Rows count within the topic that each came from."""
    if len(parts) == 1:
        return parts[0]
    index: dict[tuple[str, str], int] = {}
    places = [
        np.array([index.setdefault(pair, len(index)) for pair in part.events.series], dtype=np.int64) for part in parts
    ]
    batches = [part.events for part in parts]
    columns = {
        name: np.concatenate([getattr(batch, name) for batch in batches])
        for name in ("row", "event_time_ms", "action", "quantity", "unit_price", "rating", "one_off")
    }
    series_index = np.concatenate([place[b.series_index] for place, b in zip(places, batches, strict=True)])
    events = EventBatch(series=tuple(index), series_index=series_index, **columns)
    return Decoded(events, [s for part in parts for s in part.states], [r for part in parts for r in part.rejects])
