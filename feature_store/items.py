"""An item: one forecast series, and what is known of its product beside the counted events."""

from __future__ import annotations

import msgspec

from feature_store.events import CalendarEntry


class Item(msgspec.Struct, frozen=True):
    """A series that is forecast: it has had at least one order line. Times are milliseconds UTC."""

    item_id: str
    product_id: str
    location_id: str
    first_event_ms: int  # of its first order line
    last_event_ms: int  # the hour (UTC) of its last order line: an item is then written once an hour, not at each order


class ProductState(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last that was said of a product: its ProductEvent, its calendar, its stock by location."""

    known_from_ms: int = 0
    title: str = ""
    description: str = ""
    category: str = ""
    brand: str = ""
    launch_ms: int | None = None
    delisted: bool = False
    calendar_known_from_ms: int = 0
    calendar: tuple[CalendarEntry, ...] = ()
    stock: dict[str, tuple[int, int, int]] = {}  # location -> (event_time, on_hand, on_order), thousandths of a unit


NO_PRODUCT_STATE = ProductState()
