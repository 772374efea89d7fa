"""What a shop and its careless producers send: a seeded stream of orders, clicks and reviews with repeats, disorder,
events that are years late, and poison. Independent of the code under test."""

from __future__ import annotations

import enum
import json
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

SOURCES = ("orders", "clicks", "reviews")
CURRENCY = "GBP"
MAX_MESSAGE_BYTES = 20_000
# Location without a name: the whole shop. One location keeps another calendar than the shop does.
TIME_ZONES = {"": "Europe/London", "leeds": "Europe/London", "york": "America/New_York"}
# How far event times are shuffled: well inside the shortest retention, a day of 5-minute buckets.
DISORDER_MS = 12 * 3_600_000

_DAY_MS = 86_400_000
PRODUCTS = 96
_ODD_NAMES = ("Teetasse № 7", "50 % off|tin", "a/b@c", "mug mat", "zoë{1}")
_RECENT = 20_000
_REPEATED, _POISONED, _LATE = 0.03, 0.015, 0.005
_QUANTITIES = (1, 1, 1, 2, 3, 6, 12, 24, 0.5, 2.25, 0.125, 10.001)
_PRICES = (0.0, 0.42, 1.25, 2.55, 4.1234, 19.99, 0.000001, 149.5)

Event = dict[str, Any]


class Fate(enum.Enum):
    """What has to become of a record."""

    COUNTED = "features"
    DEAD = "dlq"
    LATE = "late"


class Sent(NamedTuple):
    """One record. `number` names one that is to be set aside, in its header; 0 = it is to be counted."""

    source: str
    partition: int
    key: bytes | None
    value: bytes | None
    fate: Fate = Fate.COUNTED
    event_id: str = ""
    number: int = 0


class Traffic:
    """`partition_of(product_id)` places products; `now_ms()` is the time that events happen around."""

    def __init__(
        self,
        seed: int,
        partition_count: int,
        partition_of: Callable[[str], int],
        now_ms: Callable[[], int],
        products: int = PRODUCTS,
    ) -> None:
        self._random = random.Random(seed)
        self._partition_count, self._partition_of, self._now_ms = partition_count, partition_of, now_ms
        names = [*_ODD_NAMES, *(f"p{n}" for n in range(products - len(_ODD_NAMES)))]
        self._locations: dict[str, list[str]] = {
            name: ["", "leeds", "york"] if n % 3 == 0 else [""] for n, name in enumerate(names)
        }
        self._names = names
        self._recent: list[Sent] = []
        self._events = 0
        self._set_aside = 0

    @property
    def items(self) -> list[tuple[str, str]]:
        """Every (product, location) that is ever ordered."""
        return [(name, location) for name, locations in self._locations.items() for location in locations]

    def opening(self) -> list[Sent]:
        """An order of every item."""
        return [self._placed("orders", self._order(name, location)) for name, location in self.items]

    def take(self, count: int) -> list[Sent]:
        """The next records of all sources."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Sent:
        dice = self._random.random()
        if dice < _REPEATED and self._recent:
            return self._random.choice(self._recent)
        source = self._random.choices(SOURCES, (50, 38, 12))[0]
        name = self._names[int(len(self._names) * self._random.random() ** 2)]  # some sell more than others
        event = self._event(source, name, self._random.choice(self._locations[name]))
        if dice < _REPEATED + _POISONED:
            return self._poison(source, event)
        if dice < _REPEATED + _POISONED + _LATE:
            event["event_time"] -= self._random.randrange(2 * 365, 5 * 365) * _DAY_MS
            return self._placed(source, event)._replace(fate=Fate.LATE, number=self._next_number())
        sent = self._placed(source, event)
        if len(self._recent) < _RECENT:
            self._recent.append(sent)
        else:
            self._recent[self._random.randrange(_RECENT)] = sent
        return sent

    def _next_number(self) -> int:
        self._set_aside += 1
        return self._set_aside

    def _placed(self, source: str, event: Event) -> Sent:
        name = event["product_id"]
        return Sent(source, self._partition_of(name), name.encode(), _raw(event), event_id=event.get("event_id", ""))

    # -- events ---------------------------------------------------------------------------------------------------

    def _event(self, source: str, name: str, location: str) -> Event:
        if source == "orders":
            return self._order(name, location)
        return self._click(name, location) if source == "clicks" else self._review(name)

    def _happened(self, name: str) -> Event:
        self._events += 1
        event = {
            "event_time": self._now_ms() - int(DISORDER_MS * self._random.random() ** 2),
            "product_id": name,
            "session_id": "not to be kept",
        }
        if self._random.random() < 0.7:  # the others can't be told from a second event that is just the same
            event["event_id"] = f"{self._events:x}"
        return event

    def _order(self, name: str, location: str) -> Event:
        dice, order = self._random.random(), self._happened(name)
        order |= {
            "order_id": f"A{self._events // 3}",
            "quantity": self._random.choice(_QUANTITIES),
            "unit_price": self._random.choice(_PRICES),
            "currency": self._random.choice(("", CURRENCY)),
        }
        if location:
            order["location_id"] = location
        if dice < 0.04:
            order["quantity"] *= -1
        elif dice < 0.10:
            order["kind"] = self._random.choice(("cancel", "return"))
        elif dice < 0.12:
            order["one_off"] = True
        return order

    def _click(self, name: str, location: str) -> Event:
        actions = ("view", "view", "view", "add_to_cart", "remove_from_cart", "wishlist")
        click = self._happened(name) | {"action": self._random.choice(actions)}
        return click | {"location_id": location} if location else click

    def _review(self, name: str) -> Event:
        return self._happened(name) | {"rating": self._random.randint(1, 5), "text": "Schöne Tasse, “gladly again”"}

    # -- poison ---------------------------------------------------------------------------------------------------

    def _poison(self, source: str, event: Event) -> Sent:
        """A record that can't be used, whatever else is right about it."""
        good = self._placed(source, event)
        at_fault = self._random.choice((*_MISPLACED, *_SPOILT, *_SPOILT_BY_SOURCE[source]))
        bad = good._replace(fate=Fate.DEAD, event_id="", number=self._next_number())
        if at_fault == "other partition":
            return bad._replace(partition=(good.partition + 1) % self._partition_count)
        if at_fault == "other key":
            return bad._replace(key=self._random.choice((None, b"", b"someone else")))
        return bad._replace(value=_spoil(at_fault, event, good.value or b"", self._now_ms()))


_MISPLACED = ("other partition", "other key")
_SPOILT = ("cut", "bytes", "list", "nested", "null", "huge", "no product", "no time", "text time", "no name", "future")
_SPOILT_BY_SOURCE: dict[str, Sequence[str]] = {
    "orders": ("NaN", "immense", "negative price", "kind", "currency", "negative return"),
    "clicks": ("action",),
    "reviews": ("rating",),
}
_REPLACED: dict[str, Event] = {
    "text time": {"event_time": "yesterday"},
    "no name": {"product_id": ""},
    "immense": {"quantity": 1e300},
    "negative price": {"unit_price": -1},
    "kind": {"kind": "theft"},
    "currency": {"currency": "USD"},
    "negative return": {"kind": "return", "quantity": -2},
    "action": {"action": "stare"},
    "rating": {"rating": 6},
    "huge": {"note": "x" * (MAX_MESSAGE_BYTES + 1)},
    "NaN": {"quantity": float("nan")},
}
_RAW: dict[str, bytes | None] = {
    "null": None,
    "bytes": b"\xff\xfe\x00",
    "list": b"[1, 2]",
    "nested": b'{"a":' + b"[" * 9_000 + b"]" * 9_000 + b"}",
}


def _spoil(at_fault: str, event: Event, raw: bytes, now_ms: int) -> bytes | None:
    if at_fault in _RAW:
        return _RAW[at_fault]
    if at_fault == "cut":
        return raw[: len(raw) // 2]
    if at_fault == "future":
        return _raw(event | {"event_time": now_ms + 400 * _DAY_MS})
    if at_fault in ("no product", "no time"):
        missing = {"no product": "product_id", "no time": "event_time"}[at_fault]
        return _raw({name: value for name, value in event.items() if name != missing})
    return _raw(event | _REPLACED[at_fault])


def _raw(event: Event) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()
