"""Points in time as a person writes them."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo


def parse_time_ms(text: str, time_zone: str = "UTC") -> int:
    """Milliseconds since the epoch of an ISO 8601 date or time: 2011-03-01, 2011-03-01T14:30, 2011-03-01T14:30:00Z.
    One that names no offset is in `time_zone`.

    Raises:
        ValueError: it is not one.
    """
    try:
        when = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no time: write 2011-03-01, 2011-03-01T14:30 or 2011-03-01T14:30:00Z") from error
    if when.tzinfo is None:
        when = when.replace(tzinfo=ZoneInfo(time_zone))
    return (when - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def time_text(ms: int) -> str:
    """ISO 8601 in UTC, to the millisecond where there are any: what `parse_time_ms` reads. Far from our times, the
    milliseconds themselves."""
    try:
        when = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=ms)
    except OverflowError:
        return f"{ms} ms"
    return when.isoformat(timespec="milliseconds" if ms % 1000 else "seconds").replace("+00:00", "Z")
