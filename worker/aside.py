"""What a lane sets aside: dead letters and late events, as they came, with headers that say where from and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from feature_store.decoding import Reject
from worker.records import Records


class Message(NamedTuple):
    """One record to send."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


def letters(
    records: Records, partition: int, rejects: Iterable[Reject], late_rows: Iterable[int]
) -> dict[str, list[Message]]:
    """Messages by the topic they are to be sent to."""
    out: dict[str, list[Message]] = {}
    for row, reason, detail in rejects:
        letter = _letter(records, partition, row, reason.value, detail)
        out.setdefault(f"{records.topic}.dlq", []).append(letter)
    for row in late_rows:
        letter = _letter(records, partition, row, "late", "its day is older than what is retained")
        out.setdefault(f"{records.topic}.late", []).append(letter)
    return out


def _letter(records: Records, partition: int, row: int, reason: str, detail: str) -> Message:
    headers = [
        *records.headers(row),
        ("shelfcast.topic", records.topic.encode()),
        ("shelfcast.partition", str(partition).encode()),
        ("shelfcast.offset", str(records.offsets[row]).encode()),
        ("shelfcast.reason", reason.encode()),
        ("shelfcast.detail", detail.encode()),
    ]
    return Message(records.keys[row], records.values[row], headers)
