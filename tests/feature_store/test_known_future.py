"""Oracle: each bucket minute by minute, asking which entry of the list spoke last."""

import datetime as dt
from collections.abc import Sequence
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from feature_store.calendar_time import local_clock
from feature_store.events import CalendarEntry
from feature_store.known_future import KNOWN_CHANNELS, Span, known_channels
from tests.feature_store.builders import HOUR_MS, NOON_MS, naive_bucket

MINUTE_MS = 60_000
HOUR = NOON_MS // HOUR_MS
LENGTH = 6
SPOKEN = ("unit_price", "promotion", "open", "event")


def channels(
    entries: Sequence[CalendarEntry], freq: str = "1h", first: int = HOUR, length: int = LENGTH, zone: str = "UTC"
) -> dict[str, NDArray[np.float32]]:
    found = known_channels(freq, [Span(first, zone)], length, [entries])
    assert found.shape == (1, length, len(KNOWN_CHANNELS))
    assert found.dtype == np.float32
    return {name: found[0, :, i] for i, name in enumerate(KNOWN_CHANNELS)}


def last_said(entries: Sequence[CalendarEntry], minute: int, field: str) -> Any:
    spoken = [getattr(e, field) for e in entries if e.start_time <= minute * MINUTE_MS < e.end_time]
    return next((value for value in reversed(spoken) if value is not None), None)


def naive(entries: Sequence[CalendarEntry], hour: int) -> dict[str, float]:
    minutes = range(hour * 60, hour * 60 + 60)
    overlapping = [
        e for e in entries if any(e.start_time <= m * MINUTE_MS < e.end_time for m in minutes) and e.unit_price
    ]

    def share(field: str, unsaid: bool) -> float:
        said = [last_said(entries, minute, field) for minute in minutes]
        return sum(bool(unsaid if value is None else value) for value in said) / 60

    return {
        "unit_price": (overlapping[-1].unit_price or 0.0) if overlapping else float("nan"),
        "promotion": share("promotion", False),
        "open": share("open", True),
        "event": share("event_name", False),
    }


MINUTES = st.integers(-60, 60 * (LENGTH + 1)).map(lambda minute: NOON_MS + minute * MINUTE_MS)
ENTRY = st.builds(
    CalendarEntry,
    start_time=MINUTES,
    end_time=MINUTES,
    location_id=st.just(""),
    unit_price=st.one_of(st.none(), st.sampled_from([1.5, 2.25])),
    promotion=st.one_of(st.none(), st.booleans()),
    open=st.one_of(st.none(), st.booleans()),
    event_name=st.sampled_from([None, "", "fair"]),
)


@given(st.lists(ENTRY, max_size=6))
def test_what_is_known_equals_a_recomputation_minute_by_minute(entries: list[CalendarEntry]) -> None:
    found = channels(entries)
    for step in range(LENGTH):
        expected = naive(entries, HOUR + step)
        got = {name: found[name][step] for name in SPOKEN}
        np.testing.assert_equal(got, {name: np.float32(value) for name, value in expected.items()})


def test_where_nothing_is_said_the_shop_is_open_without_price_or_promotion() -> None:
    found = channels([])
    assert np.isnan(found["unit_price"]).all()
    assert [set(found[name].tolist()) for name in ("promotion", "open", "event")] == [{0.0}, {1.0}, {0.0}]


def hours(first: float, last: float, **said: Any) -> CalendarEntry:
    return CalendarEntry(NOON_MS + int(first * HOUR_MS), NOON_MS + int(last * HOUR_MS), **said)


def test_an_entry_that_opens_overrules_an_earlier_one_that_closes() -> None:
    assert channels([hours(0, 3, open=False), hours(1, 2, open=True)])["open"].tolist() == [0, 1, 0, 1, 1, 1]
    assert channels([hours(1, 2, open=True), hours(0, 3, open=False)])["open"].tolist() == [0, 0, 0, 1, 1, 1]


def test_an_entry_that_ends_a_promotion_overrules_the_one_that_began_it() -> None:
    entries = [hours(0, 3, promotion=True), hours(1.5, 3, promotion=False)]
    assert channels(entries)["promotion"].tolist() == [1, 0.5, 0, 0, 0, 0]


def test_two_entries_that_say_the_same_count_once() -> None:
    assert channels([hours(0.5, 1, promotion=True)] * 2)["promotion"].tolist() == [0.5, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0.5, 0.25), (-5, 0), (LENGTH, LENGTH + 1)])
def test_an_entry_that_is_empty_or_outside_changes_nothing(start: float, end: float) -> None:
    found = channels([hours(start, end, promotion=True, open=False, unit_price=2.0, event_name="fair")])
    np.testing.assert_equal(found, channels([]))


def test_the_furthest_times_that_decode_can_be_laid() -> None:
    found = channels([CalendarEntry(0, 2**53, promotion=True, open=False, unit_price=1e9)])
    assert found["promotion"].tolist() == [1.0] * LENGTH
    assert found["open"].tolist() == [0.0] * LENGTH
    assert found["unit_price"].tolist() == [1e9] * LENGTH


def test_fractions_are_of_the_days_own_length() -> None:
    zone = ZoneInfo("Europe/London")
    midnight_ms = int(dt.datetime(2024, 3, 31, tzinfo=zone).timestamp()) * 1000  # a day of 23 hours
    day = naive_bucket("1d", midnight_ms, "Europe/London")
    entry = CalendarEntry(midnight_ms, midnight_ms + 11 * HOUR_MS + HOUR_MS // 2, promotion=True)
    found = channels([entry], "1d", day - 1, 3, "Europe/London")
    assert found["promotion"].tolist() == [0, 0.5, 0]


def test_a_skipped_date_is_left_as_if_nothing_was_said() -> None:
    skipped_ms = int(dt.datetime(2011, 12, 30, 10, tzinfo=dt.UTC).timestamp()) * 1000
    day = naive_bucket("1d", skipped_ms, "Pacific/Apia")  # 2011-12-31
    entry = CalendarEntry(skipped_ms - HOUR_MS * 24, skipped_ms + HOUR_MS * 24, promotion=True, unit_price=2.0)
    found = channels([entry], "1d", day - 2, 3, "Pacific/Apia")
    assert found["promotion"].tolist() == [1, 0, 1]
    np.testing.assert_equal(found["unit_price"].tolist(), [2.0, float("nan"), 2.0])


def test_an_item_does_not_change_with_those_beside_it() -> None:
    lists = [[], [hours(0, 2, promotion=True)], [hours(1, 3, open=False)], []]
    spans = [Span(HOUR, "UTC"), Span(HOUR + 1, "UTC"), Span(HOUR, "Asia/Tokyo"), Span(HOUR, "UTC")]
    together = known_channels("1h", spans, LENGTH, lists)
    for i, (span, entries) in enumerate(zip(spans, lists, strict=True)):
        np.testing.assert_equal(together[i], known_channels("1h", [span], LENGTH, [entries])[0])


def test_the_clock_channels_are_the_local_clock() -> None:
    found = channels([], zone="Asia/Tokyo")
    expected = local_clock("1h", HOUR + np.arange(LENGTH), "Asia/Tokyo")
    names = ("hour_of_day", "day_of_week", "day_of_month", "day_of_year")
    np.testing.assert_equal(np.stack([found[name] for name in names], axis=1), expected)
    assert found["hour_of_day"].tolist() == [21, 22, 23, 0, 1, 2]
