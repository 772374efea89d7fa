"""Fetched records for tests that need no broker."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from worker.records import Records


class Fetched(NamedTuple):
    """What a record carries beside key and value."""

    timestamp_ms: int = 0
    own_headers: Sequence[tuple[str, bytes]] = ()

    def timestamp(self) -> tuple[int, int]:
        return 1, self.timestamp_ms

    def headers(self) -> list[tuple[str, bytes]] | None:
        return list(self.own_headers) or None


def records_of(
    topic: str,
    values: Sequence[bytes | dict[str, Any] | None],
    *,
    first_offset: int = 0,
    start: int | None = None,
    log_start: int = 0,
    keys: Sequence[bytes | None] | None = None,
) -> Records:
    """Records without holes, keyed by their product_id unless told otherwise."""
    raw = [msgspec.json.encode(value) if isinstance(value, dict) else value for value in values]
    if keys is None:
        keys = [str(v.get("product_id", "")).encode() if isinstance(v, dict) else b"" for v in values]
    offsets = range(first_offset, first_offset + len(raw))
    messages = [Fetched() for _ in raw]
    return Records(topic, first_offset if start is None else start, log_start, offsets, keys, raw, messages)
