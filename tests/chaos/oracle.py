"""What the features have to be: recomputed event by event from the records sent, with datetime, Decimal and dicts.
Shares no code with what is tested."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from tests.chaos.traffic import TIME_ZONES, Fate, Sent

# Sources of which an event_id that comes again counts once. The others count every record.
DEDUPLICATED: frozenset[str] = frozenset({"orders", "reviews"})


class Cell(NamedTuple):
    """One feature of one bucket of one item: thousandths of a unit, millionths of the currency, or a count."""

    product: str
    location: str
    freq: str
    bucket: int
    feature: str


Cells = Counter[Cell]
Place = tuple[str, int]  # source, partition

_EPOCH = dt.date(1970, 1, 1).toordinal()
_ZONES = {location: ZoneInfo(name) for location, name in TIME_ZONES.items()}
_MICRO = Decimal(1_000_000)


class Oracle:
    """Knows every record by source, partition and offset, and what they amount to at any positions."""

    def __init__(self, deduplicated: frozenset[str] = DEDUPLICATED) -> None:
        self._deduplicated = deduplicated
        self._log: dict[Place, list[tuple[Sent, bool]]] = {}  # by offset: the record, and whether it counts
        self._aside: dict[int, tuple[Place, int]] = {}  # by number, of records to be set aside: where they are
        self._seen: dict[str, set[str]] = {}
        self._at: dict[Place, int] = {}
        self._cells: Cells = Counter()

    def add(self, sent: Sent) -> int:
        """Note a record as the next of its partition; returns its offset."""
        seen = self._seen.setdefault(sent.source, set())
        again = sent.source in self._deduplicated and sent.event_id != "" and sent.event_id in seen
        seen.add(sent.event_id)
        place = sent.source, sent.partition
        log = self._log.setdefault(place, [])
        log.append((sent, sent.fate is Fate.COUNTED and not again))
        if sent.number:
            self._aside[sent.number] = place, len(log) - 1
        return len(log) - 1

    def ends(self) -> dict[Place, int]:
        """Next offset of every partition that has records."""
        return {place: len(log) for place, log in list(self._log.items())}

    @property
    def cell_count(self) -> int:
        """Cells at the positions that were asked for last."""
        return len(self._cells)

    def cells_at(self, positions: Mapping[Place, int]) -> Cells:
        """Every cell that is not zero once the records below the positions are counted. Do not change it."""
        for place, log in list(self._log.items()):
            at, to = self._at.get(place, 0), positions.get(place, 0)
            for record, counts in log[at:to]:
                self._add(record, counts, 1)
            for record, counts in log[to:at]:
                self._add(record, counts, -1)
            self._at[place] = to
        return self._cells

    def _add(self, record: Sent, counts: bool, sign: int) -> None:
        if counts and record.value is not None:
            for cell, amount in _contributions(record.value):
                self._cells[cell] += sign * amount
                if not self._cells[cell]:
                    del self._cells[cell]

    def set_aside(self, number: int) -> tuple[Sent, int] | None:
        """A record that is to be set aside, and its offset; None when none has that number."""
        if number not in self._aside:
            return None
        place, offset = self._aside[number]
        return self._log[place][offset][0], offset

    def to_set_aside(self, positions: Mapping[Place, int]) -> set[int]:
        """Numbers of the records below the positions that belong in a topic beside the features."""
        return {n for n, (place, offset) in list(self._aside.items()) if offset < positions.get(place, 0)}

    def last_touch(self, positions: Mapping[Place, int]) -> dict[tuple[str, str], dict[str, int]]:
        """By item and source the offset of the last record, below the positions, that changed what its forecast starts
        from: clicks and reviews are the product's and change the forecasts of all its items."""
        touched: dict[tuple[str, str], dict[str, int]] = {}
        located: dict[str, set[str]] = {}
        order_of_sources = sorted(self._log.items(), key=lambda entry: entry[0][0] != "orders")
        for (source, partition), log in order_of_sources:
            for offset, (record, counts) in enumerate(log[: positions.get((source, partition), 0)]):
                if not counts or record.value is None:
                    continue
                event = json.loads(record.value)
                product, location = event["product_id"], event.get("location_id", "")
                if source == "orders":
                    located.setdefault(product, set()).add(location)
                for item in {location} if source == "orders" else located.get(product, set()):
                    touched.setdefault((product, item), {})[source] = offset
        return touched


def bucket_of(freq: str, event_time_ms: int, location: str) -> int:
    """Number of the bucket that a moment falls into: since the epoch, days by the location's calendar."""
    seconds = event_time_ms // 1000
    if freq == "5m":
        return seconds // 300
    if freq == "1h":
        return seconds // 3600
    return dt.datetime.fromtimestamp(seconds, _ZONES[location]).date().toordinal() - _EPOCH


def _contributions(value: bytes) -> Iterator[tuple[Cell, int]]:
    event = json.loads(value, parse_float=Decimal)
    product, location = event["product_id"], event.get("location_id", "")
    amounts = [(feature, amount) for feature, amount in _amounts(event) if amount]
    for freq in ("5m", "1h", "1d") if amounts else ():
        bucket = bucket_of(freq, event["event_time"], location)
        for feature, amount in amounts:
            yield Cell(product, location, freq, bucket, feature), amount


def _amounts(event: dict[str, Any]) -> list[tuple[str, int]]:
    if "rating" in event:
        return [("review_count", 1), ("rating_sum", event["rating"])]
    if "action" in event:
        feature = {"view": "views", "add_to_cart": "add_to_carts"}.get(event["action"])
        return [(feature, 1)] if feature else []
    quantity, price = Decimal(event["quantity"]), Decimal(event["unit_price"])
    if quantity < 0 or event.get("kind", "sale") != "sale":
        return [("returned_units", int(abs(quantity) * 1000))]
    if event.get("one_off"):
        return []
    revenue = int((quantity * price * _MICRO).quantize(Decimal(1), ROUND_HALF_EVEN))
    return [("units", int(quantity * 1000)), ("order_lines", 1), ("revenue", revenue)]
