"""Decoded events of one topic as the columns that features are summed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_store.events import Action, ClickEvent, CountedEvent, EventBatch, OrderEvent, ReviewEvent

_ACTIONS = {action.name.lower(): int(action) for action in Action}


def _series(products: Sequence[str], locations: Sequence[str]) -> tuple[tuple[tuple[str, str], ...], NDArray[np.int64]]:
    """Distinct (product, location) pairs, and for each event the index of its own."""
    if any(locations):
        pairs = list(zip(products, locations, strict=True))
        index = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
        return tuple(index), np.array(list(map(index.__getitem__, pairs)), dtype=np.int64)
    numbers = {product: i for i, product in enumerate(dict.fromkeys(products))}
    series = tuple((product, "") for product in numbers)
    return series, np.array(list(map(numbers.__getitem__, products)), dtype=np.int64)


def _actions(names: Sequence[str]) -> NDArray[np.int8]:
    if names and names.count(names[0]) == len(names):  # as nearly always among orders
        return np.full(len(names), _ACTIONS[names[0]], dtype=np.int8)
    return np.array(list(map(_ACTIONS.__getitem__, names)), dtype=np.int8)


def _ids(events: Sequence[CountedEvent]) -> Sequence[str]:
    ids = [event.event_id for event in events]
    return ids if any(ids) else ()


def _order_columns(rows: NDArray[np.int64], events: Sequence[OrderEvent]) -> EventBatch:
    series, index = _series([e.product_id for e in events], [e.location_id for e in events])
    quantity = np.array([e.quantity for e in events], dtype=np.float64)
    price = np.array([e.unit_price for e in events], dtype=np.float64)
    kinds = _actions([e.kind for e in events])
    one_off = [e.one_off for e in events]
    sold_back = (quantity < 0) & (kinds == Action.SALE)
    with np.errstate(invalid="ignore"):  # what is not finite becomes negative here, and is rejected
        quantity_milli = np.rint(np.where(sold_back, -quantity, quantity) * 1e3).astype(np.int64)
        price_micro = np.rint(price * 1e6).astype(np.int64)
    return EventBatch(
        row=rows,
        event_time_ms=np.array([e.event_time for e in events], dtype=np.int64),
        series=series,
        series_index=index,
        action=np.where(sold_back, np.int8(Action.CANCEL), kinds),
        quantity=quantity_milli,
        unit_price=price_micro,
        rating=np.zeros(len(events), dtype=np.int64),
        one_off=np.array(one_off, dtype=np.bool_) if any(one_off) else np.zeros(len(events), dtype=np.bool_),
        event_id=_ids(events),
    )


def _click_columns(rows: NDArray[np.int64], events: Sequence[ClickEvent]) -> EventBatch:
    series, index = _series([e.product_id for e in events], [e.location_id for e in events])
    nothing = np.zeros(len(events), dtype=np.int64)
    return EventBatch(
        row=rows,
        event_time_ms=np.array([e.event_time for e in events], dtype=np.int64),
        series=series,
        series_index=index,
        action=_actions([e.action for e in events]),
        quantity=nothing,
        unit_price=nothing,
        rating=nothing,
        one_off=np.zeros(len(events), dtype=np.bool_),
        event_id=_ids(events),
    )


def _review_columns(rows: NDArray[np.int64], events: Sequence[ReviewEvent]) -> EventBatch:
    series, index = _series([e.product_id for e in events], [""] * len(events))
    nothing = np.zeros(len(events), dtype=np.int64)
    return EventBatch(
        row=rows,
        event_time_ms=np.array([e.event_time for e in events], dtype=np.int64),
        series=series,
        series_index=index,
        action=np.full(len(events), Action.REVIEW, dtype=np.int8),
        quantity=nothing,
        unit_price=nothing,
        rating=np.array([e.rating for e in events], dtype=np.int64),
        one_off=np.zeros(len(events), dtype=np.bool_),
        event_id=_ids(events),
    )


# By what a topic carries: events of its class, and the rows they come from, as columns.
COLUMNS: dict[str, Callable[[NDArray[np.int64], Any], EventBatch]] = {
    "orders": _order_columns,
    "clicks": _click_columns,
    "reviews": _review_columns,
}


def no_events() -> EventBatch:
    """A batch of none."""
    return _review_columns(np.empty(0, dtype=np.int64), [])
