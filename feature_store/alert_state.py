"""What alerts remember between forecasts, as it stands in Redis and in snapshots. No maths and no I/O here.

Everything is whole numbers, and sums of them do not depend on the order in which items are forecast, as calibration's
do not. `worker/alerts.py` says what they mean and what is made of them; this file how they are written: as JSON arrays,
the fields in the order of the classes.
"""

from __future__ import annotations

import msgspec


class Episode(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An alert that is open.

    kind: number of its kind.
    alert_id: of all its messages.
    sequence: of its last message.
    opened_ms, told_ms: event times of its first and last message.
    severity: number of the highest that was told.
    peak: thousandths: the most log evidence that a bucket ended with.
    """

    kind: int
    alert_id: str
    sequence: int
    opened_ms: int
    told_ms: int
    severity: int
    peak: int


class ItemAlerts(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Of one item and frequency.

    bucket: the running bucket as `evidence` was last brought up to its begin.
    first: the bucket of the first of `rates`.
    rates: thousandths of a unit expected in each bucket; -1 = not known.
    forecast_id: of the last forecast that `rates` were taken from.
    traits: thousandths, one for each of what else is expected of the item; see worker/alert_evidence.py.
    evidence: thousandths of a natural logarithm, one a detector.
    ages: buckets before `bucket` in which a detector has gathered its evidence, one a detector.
    past_ratings: count and sum of the ratings that new ones are held against.
    episodes: those open.
    closed: how many episodes it has had.
    quiet_until: the bucket up to which nothing new is opened.
    """

    bucket: int
    first: int
    rates: list[int]
    forecast_id: str
    traits: list[int]
    evidence: list[int]
    ages: list[int]
    past_ratings: list[int]
    episodes: list[Episode]
    closed: int
    quiet_until: int


class AlertLevels(msgspec.Struct, array_like=True, frozen=True):
    """Of all items of one lane and frequency: how much evidence opens an alert.

    period: the day in which the sums are gathered; they change the levels of the next one.
    wealth: millionths: what earlier openings have earned.
    judged: items judged in the period before.
    sums: openings in `period`, and items judged in it.
    """

    period: int
    wealth: int
    judged: int
    sums: list[int]


class Untold(msgspec.Struct, array_like=True, frozen=True):
    """An alert's message on its way: its state stands, so whoever has the lane next sends it, unless it is known that
    Kafka has it.

    topic, key, value: of the message.
    """

    topic: str
    key: str
    value: str


_encode = msgspec.json.Encoder().encode
_decode_item = msgspec.json.Decoder(ItemAlerts).decode
_decode_untold = msgspec.json.Decoder(Untold).decode
_decode_levels = msgspec.json.Decoder(AlertLevels).decode


def pack_alerts(state: ItemAlerts | AlertLevels | Untold) -> str:
    """A state as text."""
    return _encode(state).decode()


def unpack_item_alerts(value: bytes | str) -> ItemAlerts:
    """The reverse of pack_alerts."""
    return _decode_item(value)


def unpack_alert_levels(value: bytes | str) -> AlertLevels:
    """The reverse of pack_alerts."""
    return _decode_levels(value)


def unpack_untold(value: bytes | str) -> Untold:
    """The reverse of pack_alerts."""
    return _decode_untold(value)
