"""Oracle: each instant's local date and hour by zoneinfo."""

import datetime as dt
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.calendar_time import (
    ShopCalendar,
    UnknownTimeZoneError,
    bucket_of,
    bucket_start_ms,
    local_clock,
    week_of_day,
)
from tests.feature_store.builders import DAY_MS, EPOCH, HOUR_MS, naive_bucket

ZONES = [
    "UTC",
    "Europe/London",
    "America/New_York",
    "America/Santiago",  # its clocks jump at midnight
    "Africa/Cairo",
    "Asia/Kolkata",
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Apia",
]
TIMES_MS = st.integers(2 * DAY_MS, 36_500 * DAY_MS)  # 1970 to 2069


def moment_ms(text: str, zone: str = "UTC") -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1000


def day_number(text: str) -> int:
    return (dt.date.fromisoformat(text) - EPOCH).days


def one(values: np.ndarray) -> int:  # type: ignore[type-arg]
    (value,) = values.tolist()
    return int(value)


def bucket(freq: str, event_time_ms: int, zone: str) -> int:
    return one(bucket_of(freq, np.array([event_time_ms]), zone))


def start(freq: str, number: int, zone: str) -> int:
    return one(bucket_start_ms(freq, np.array([number]), zone))


@pytest.mark.parametrize(
    ("zone", "date", "hours"),
    [
        ("Europe/London", "2024-03-31", 23),
        ("Europe/London", "2024-06-15", 24),
        ("Europe/London", "2024-10-27", 25),
        ("America/New_York", "2024-03-10", 23),
        ("America/New_York", "2024-11-03", 25),
        ("America/Santiago", "2023-09-03", 23),
        ("America/Santiago", "2023-04-01", 25),
        ("Africa/Cairo", "2023-04-28", 23),
        ("Pacific/Apia", "2011-12-29", 24),
        ("Pacific/Apia", "2011-12-30", 0),
        ("Pacific/Apia", "2011-12-31", 24),
    ],
)
def test_a_day_lasts_as_long_as_its_clocks_say(zone: str, date: str, hours: int) -> None:
    day = day_number(date)
    assert start("1d", day + 1, zone) - start("1d", day, zone) == hours * HOUR_MS


def test_a_day_without_a_midnight_begins_when_the_clocks_have_jumped() -> None:
    day = day_number("2023-09-03")
    jump_ms = moment_ms("2023-09-03T04:00")
    assert start("1d", day, "America/Santiago") == jump_ms
    assert bucket("1d", jump_ms - 1, "America/Santiago") == day - 1
    assert bucket("1d", jump_ms, "America/Santiago") == day


def test_nothing_ever_falls_into_a_date_that_was_skipped() -> None:
    line_crossed_ms = moment_ms("2011-12-30T10:00")
    assert bucket("1d", line_crossed_ms - 1, "Pacific/Apia") == day_number("2011-12-29")
    assert bucket("1d", line_crossed_ms, "Pacific/Apia") == day_number("2011-12-31")
    assert start("1d", day_number("2011-12-30"), "Pacific/Apia") == line_crossed_ms


@given(TIMES_MS, st.sampled_from(ZONES), st.sampled_from(["5m", "1h", "1d"]))
def test_an_event_falls_into_its_local_date(event_time_ms: int, zone: str, freq: str) -> None:
    assert bucket(freq, event_time_ms, zone) == naive_bucket(freq, event_time_ms, zone)


@given(st.integers(moment_ms("1987-01-01"), moment_ms("2011-12-01")))
def test_where_clocks_went_back_over_midnight_a_day_does_not_end_twice(event_time_ms: int) -> None:
    """Clocks of St John's went back from 00:01 to 23:01: the new date had begun and keeps the hour that follows."""
    zone = "America/St_Johns"
    reached = max(naive_bucket("1d", event_time_ms - minutes * 60_000, zone) for minutes in range(121))
    assert bucket("1d", event_time_ms, zone) == reached


def test_the_minute_after_midnight_begins_a_day_that_going_back_does_not_end() -> None:
    day = day_number("2010-11-07")
    midnight_ms = moment_ms("2010-11-07T00:00", "America/St_Johns")
    assert start("1d", day, "America/St_Johns") == midnight_ms
    assert bucket("1d", midnight_ms + 30 * 60_000, "America/St_Johns") == day
    assert start("1d", day + 1, "America/St_Johns") - midnight_ms == 25 * HOUR_MS


@given(TIMES_MS, st.sampled_from(ZONES), st.sampled_from(["5m", "1h", "1d", "1w"]))
def test_a_bucket_holds_its_start_and_not_its_end(event_time_ms: int, zone: str, freq: str) -> None:
    number = bucket(freq, event_time_ms, zone)
    first_ms, end_ms = start(freq, number, zone), start(freq, number + 1, zone)
    assert first_ms <= event_time_ms < end_ms
    assert bucket(freq, first_ms, zone) == number == bucket(freq, end_ms - 1, zone)
    assert bucket(freq, end_ms, zone) > number


@given(TIMES_MS, st.sampled_from(ZONES))
def test_weeks_start_on_monday(event_time_ms: int, zone: str) -> None:
    date = dt.datetime.fromtimestamp(event_time_ms // 1000, ZoneInfo(zone)).date()
    monday = date - dt.timedelta(days=date.weekday())
    week = bucket("1w", event_time_ms, zone)
    assert start("1w", week, zone) == start("1d", (monday - EPOCH).days, zone)
    assert start("1w", week + 1, zone) == start("1d", (monday - EPOCH).days + 7, zone)
    assert one(week_of_day(np.array([(date - EPOCH).days]))) == week


@given(TIMES_MS, st.sampled_from(ZONES))
def test_the_local_clock_is_that_of_the_buckets_start(event_time_ms: int, zone: str) -> None:
    hour = bucket("1h", event_time_ms, zone)
    local = dt.datetime.fromtimestamp(start("1h", hour, zone) // 1000, ZoneInfo(zone))
    hour_of_day, *date = local_clock("1h", np.array([hour]), zone)[0].tolist()
    assert date == [local.weekday(), local.day, local.timetuple().tm_yday]
    day = (local.date() - EPOCH).days
    if start("1d", day + 1, zone) - start("1d", day, zone) == DAY_MS:
        assert hour_of_day == local.hour
    else:
        assert abs(hour_of_day - local.hour) <= 1


def test_days_and_weeks_have_no_hour() -> None:
    for freq, number in (("1d", 19_797), ("1w", 2_829)):  # 2024-03-15; the week from 2024-03-18 on
        clock = local_clock(freq, np.array([number]), "Europe/London")[0]
        assert np.isnan(clock[0])
    assert local_clock("1d", np.array([19_797]), "Europe/London")[0, 1:].tolist() == [4, 15, 75]
    assert local_clock("1w", np.array([2_829]), "Europe/London")[0, 1:].tolist() == [0, 18, 78]


@given(st.lists(st.tuples(TIMES_MS, st.sampled_from(["", "york", "boston", "oslo"])), max_size=20))
def test_each_location_keeps_its_own_days(events: list[tuple[int, str]]) -> None:
    calendar = ShopCalendar("Europe/London", {"boston": "America/New_York", "oslo": "Europe/Oslo"})
    zone = {"": "Europe/London", "york": "Europe/London", "boston": "America/New_York", "oslo": "Europe/Oslo"}
    times = np.array([event_time_ms for event_time_ms, _ in events], dtype=np.int64)
    for freq in ("5m", "1h", "1d"):
        found = calendar.buckets(freq, times, [location for _, location in events])
        assert found.tolist() == [naive_bucket(freq, at_ms, zone[location]) for at_ms, location in events]


def test_hours_are_those_of_utc_whatever_the_zone() -> None:
    for zone in ZONES:
        assert bucket("1h", 7 * HOUR_MS + 1, zone) == 7
        assert bucket("5m", 7 * HOUR_MS + 1, zone) == 84


@pytest.mark.parametrize("name", ["Mars/Base", "", "../etc/passwd", "Europe/London "])
def test_a_zone_that_does_not_exist_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnknownTimeZoneError, match="Europe/London"):
        ShopCalendar(name)
    with pytest.raises(UnknownTimeZoneError):
        ShopCalendar("UTC", {"york": name})
