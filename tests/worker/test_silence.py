"""Silence of a stream: what is expected of hours, and when too little of it comes. Oracles are worked by hand."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from feature_store.events import CalendarEntry
from worker.schemas import Alert
from worker.silence import (
    HISTORY,
    Expected,
    Heard,
    SilenceRules,
    Stream,
    StreamState,
    expected,
    first_hour_of,
    judge,
    pack_stream,
    unpack_stream,
    withdrawn,
)

_HOUR_MS, _MINUTE_MS = 3_600_000, 60_000
_CLICKS = Stream("shop.clicks.v1", "clicks")
_RULES = SilenceRules(15 * _MINUTE_MS, 6 * _HOUR_MS, "UTC")


def at(text: str) -> int:
    return int(dt.datetime.fromisoformat(f"{text}+00:00").timestamp() * 1000)


def heard(newest_ms: int, now_ms: int, rate: Callable[[dt.datetime], int]) -> Heard:
    """A stream that had `rate` events in each hour (of UTC) up to the newest."""
    first = first_hour_of(now_ms, newest_ms)
    hours = range(first, now_ms // _HOUR_MS + 1)
    counts = [rate(dt.datetime.fromtimestamp(h * 3600, dt.UTC)) if h <= newest_ms // _HOUR_MS else 0 for h in hours]
    return Heard(first, np.array(counts, dtype=np.int64), newest_ms)


def by_day(hour: dt.datetime) -> int:
    """A shop that is busy from 8 to 20 o'clock on weekdays, and asleep otherwise."""
    return 60 if 8 <= hour.hour < 20 and hour.weekday() < 5 else 0


def of(newest: str, now: str, rate: Callable[[dt.datetime], int] = by_day, **changes: object) -> Expected:
    rules = _RULES._replace(**{k: v for k, v in changes.items() if k != "entries"})  # type: ignore[arg-type] # a test's
    entries = changes.get("entries", ())
    assert isinstance(entries, Sequence)
    return expected(heard(at(newest), at(now), rate), at(now), rules, entries)


def test_what_the_same_hours_of_three_weeks_had_is_expected() -> None:
    found = of("2026-03-04T10:30", "2026-03-04T12:15")  # a Wednesday
    assert found.events == pytest.approx(60 * 1.75)
    pace = math.log(1.2) / 0.2  # hours are the same every week: the least spread
    assert found.evidence == pytest.approx(60 * 1.75 * pace)
    assert found.opens == pytest.approx(math.log(1000 * 60 * 12 * 5 / 7 * pace))
    assert found.evidence > found.opens


@pytest.mark.parametrize(
    ("newest", "now"), [("2026-03-04T19:59", "2026-03-05T08:00"), ("2026-03-06T19:59", "2026-03-09T08:00")]
)
def test_nights_and_weekends_are_no_silence(newest: str, now: str) -> None:
    assert of(newest, now).events == pytest.approx(1.0)


def test_closed_days_of_the_calendar_are_no_silence_and_tell_nothing_later() -> None:
    day = CalendarEntry(start_time=at("2026-03-04T00:00"), end_time=at("2026-03-05T00:00"), open=False)
    elsewhere = CalendarEntry(
        location_id="york", start_time=at("2026-03-03T00:00"), end_time=at("2026-03-09T00:00"), open=False
    )

    def closed_then(hour: dt.datetime) -> int:
        return 0 if (hour.month, hour.day) == (3, 4) else by_day(hour)

    assert of("2026-03-03T19:59", "2026-03-04T16:00", entries=[day, elsewhere]).events == pytest.approx(1.0)
    assert of("2026-03-03T19:59", "2026-03-04T16:00").events == pytest.approx(60 * 8 + 1)
    for week in ("2026-03-11", "2026-03-18"):
        found = of(f"{week}T10:00", f"{week}T12:00", closed_then, entries=[day])
        assert found.events == pytest.approx(120)


def test_one_strange_week_does_not_say_what_is_normal() -> None:
    def strange(hour: dt.datetime) -> int:
        return by_day(hour) * (20 if dt.date(2026, 2, 23) <= hour.date() < dt.date(2026, 3, 2) else 1)

    calm, found = of("2026-03-04T10:00", "2026-03-04T12:00"), of("2026-03-04T10:00", "2026-03-04T12:00", strange)
    assert found.events == calm.events
    assert found.evidence < calm.evidence / 10  # such a shop is not to be trusted by the hour


def test_nothing_is_expected_before_two_weeks_are_known() -> None:
    def young(hour: dt.datetime) -> int:
        return by_day(hour) if hour.date() >= dt.date(2026, 2, 20) else 0

    assert of("2026-03-04T10:00", "2026-03-04T12:00", young).events == 0
    assert of("2026-03-09T10:00", "2026-03-09T12:00", young).events == 120


def test_hours_are_local_ones_when_clocks_change() -> None:
    def london(hour: dt.datetime) -> int:  # open from 9 to 10 local time
        summer = hour >= dt.datetime(2026, 3, 29, 1, tzinfo=dt.UTC)
        return 40 if hour.hour + summer == 9 else 0

    assert of("2026-03-30T07:59", "2026-03-30T09:00", london, time_zone="Europe/London").events == pytest.approx(40)
    assert of("2026-03-30T09:00", "2026-03-30T10:00", london, time_zone="Europe/London").events == 0


def test_false_alarms_come_about_once_in_a_thousand_days() -> None:
    """Gaps of a Poisson stream, by simulation: the longest a day is far below what opens."""
    rng, days = np.random.default_rng(1), 400
    times = np.sort(rng.uniform(0, days * 86_400_000, rng.poisson(200 * days)))
    gaps = np.diff(times) / _HOUR_MS * 200 / 24 * math.log(1.2) / 0.2
    assert (gaps > math.log(1000 * 200 * math.log(1.2) / 0.2)).sum() <= 2


def _episode(newest: Sequence[str], now: Sequence[str]) -> list[Alert]:
    state, told = StreamState(), []
    for newest_at, now_at in zip(newest, now, strict=True):
        state = unpack_stream(pack_stream(state))
        since = state.since_ms or at(newest_at)
        found = expected(heard(since, at(now_at), by_day), at(now_at), _RULES, ())
        state, alert = judge(_CLICKS, state, at(newest_at), at(now_at), found, _RULES)
        told += [alert] if alert is not None else []
    return told


def test_an_episode_opens_once_gets_worse_is_told_of_again_and_closes() -> None:
    silent = "2026-03-04T08:10"
    now = ["08:11", "08:24", "08:26", "08:45", "08:50", "14:50", "15:00"]
    told = _episode([silent] * 6 + ["2026-03-04T14:55"], [f"2026-03-04T{text}" for text in now])
    assert [a.episode_state for a in told] == ["open", "update", "update", "close"]
    assert [a.severity for a in told] == ["major", "critical", "critical", "critical"]
    assert [a.sequence for a in told] == [1, 2, 3, 4]
    assert len({a.alert_id for a in told}) == 1
    assert {(a.subject, a.channel, a.item_id, a.kind) for a in told} == {
        ("shop.clicks.v1", "clicks", "", "stream_silent")
    }
    assert told[0].event_time - at(silent) == 16 * _MINUTE_MS
    assert told[0].reason == "no clicks since 2026-03-04 08:10 UTC, where 16 were expected"
    assert told[-1].expected == pytest.approx(60 * (6 + 5 / 6))
    assert _episode([silent], ["2026-03-04T08:24"]) == []  # shorter than the least


def test_a_stream_that_is_no_longer_listened_to_gets_its_close() -> None:
    open_one = StreamState(5, "id", 2, 6, 7, 1, 5)
    state, alert = withdrawn(_CLICKS, open_one, 9)
    assert (state, alert and alert.episode_state, alert and alert.sequence) == (StreamState(5), "close", 3)
    assert withdrawn(_CLICKS, StreamState(5), 9) == (StreamState(5), None)


def test_history_covers_what_is_looked_back_on() -> None:
    now = at("2026-03-04T12:00")
    assert now // _HOUR_MS - first_hour_of(now, now) == HISTORY
