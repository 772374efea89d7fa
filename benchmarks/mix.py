"""All that a shop sends: orders, clicks and reviews in turn, as full-size messages with an event_id each.

Of ten events two are orders, seven clicks and one a review.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks.shop import Contribution, Zipf, make_event_ids, product_name

SOURCES = ("orders", "clicks", "reviews")
_SHARES = (0.2, 0.7, 0.1)
_KINDS = ("sale",) * 9 + ("return",)
_ACTIONS = ("view",) * 7 + ("add_to_cart", "remove_from_cart", "wishlist")
_WORDS = "arrived early and looks even better than it did in the picture my sister wants the same one for her kitchen"


class Event(NamedTuple):
    """One event. `fields` are those of its message, the price in whole cents beside them."""

    source: str
    event_ms: int
    product_id: str
    fields: dict[str, Any]
    cents: int = 0


def make_mix(count: int, zipf: Zipf, *, first_order_all: bool = False) -> list[Event]:
    """The same events for the same arguments, in order of event time. With `first_order_all` they begin with an order
    of every product."""
    product, event_ms = zipf.draw(count)
    random = np.random.default_rng([zipf.seed, 2])
    source = random.choice(len(SOURCES), size=count, p=_SHARES)
    if first_order_all:
        product[: zipf.products], source[: zipf.products] = np.arange(zipf.products), 0
    draws = random.integers(0, 5000, size=(count, 3))
    columns = (source.tolist(), event_ms.tolist(), product.tolist(), draws.tolist(), make_event_ids(count, zipf.seed))
    return [
        _event(SOURCES[s], ms, product_name(p), draw, event_id)
        for s, ms, p, draw, event_id in zip(*columns, strict=True)
    ]


def _event(source: str, event_ms: int, product_id: str, draw: list[int], event_id: str) -> Event:
    a, b, c = draw
    common = {"event_id": event_id, "event_time": event_ms, "product_id": product_id}
    if source == "orders":
        cents = 50 + c
        more = {
            "order_id": f"order-{a:04d}-{b:04d}",
            "kind": _KINDS[a % len(_KINDS)],
            "quantity": 1 + b % 5,
            "unit_price": cents / 100,
            "location_id": "",
            "currency": "GBP",
            "promotion_id": None,
            "one_off": False,
            "original_event_time": None,
        }
        return Event(source, event_ms, product_id, common | more, cents)
    if source == "clicks":
        more = {"action": _ACTIONS[a % len(_ACTIONS)], "location_id": "", "session_id": f"session-{b:04d}-{c:04d}"}
    else:
        more = {"rating": 1 + a % 5, "text": _WORDS[: 20 + b % len(_WORDS)]}
    return Event(source, event_ms, product_id, common | more)


def encode_event(event: Event) -> bytes:
    """JSON: orders about 270 bytes, clicks 170, reviews 190."""
    return msgspec.json.encode(event.fields)


def contribution(event: Event) -> Contribution:
    """What the event adds to which features, money in whole cents."""
    return event.product_id, event.event_ms, _added(event)


def _added(event: Event) -> dict[str, int]:
    fields = event.fields
    if event.source == "reviews":
        return {"review_count": 1, "rating_sum": fields["rating"]}
    if event.source == "clicks":
        return {"view": {"views": 1}, "add_to_cart": {"add_to_carts": 1}}.get(fields["action"], {})
    quantity = fields["quantity"]
    if fields["kind"] == "return":
        return {"returned_units": quantity}
    return {"units": quantity, "order_lines": 1, "revenue": quantity * event.cents}
