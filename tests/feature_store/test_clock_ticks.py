"""Ticks against a naive reading of their definition: minute by minute, with datetime."""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar
from feature_store.clock_ticks import Due, TickRules, ticks

_MINUTE_MS, _HOUR_MS = 60_000, 3_600_000
# Clocks go forward in Lisbon and the Azores on this day, an hour apart in local dates.
_START_MS = int(dt.datetime(2026, 3, 28, 20, tzinfo=dt.UTC).timestamp() * 1000)
_CALENDAR = ShopCalendar("Europe/Lisbon", {"azores": "Atlantic/Azores"})


class Rows(NamedTuple):
    due_ms: NDArray[np.int64]

    def part(self, first: int, stop: int) -> Rows:
        return Rows(self.due_ms[first:stop])


def _stretches(due_minutes: list[int], cuts: list[int]) -> list[Rows]:
    due = np.array(sorted(due_minutes), dtype=np.int64) * _MINUTE_MS + _START_MS
    return [Rows(part) for part in np.split(due, sorted(cut for cut in cuts if cut <= len(due)))]


def _naive(due_ms: list[int], rules: TickRules, until_ms: int) -> dict[int, list[int]]:
    """By tick the records that it names and no earlier one does."""
    named_after: dict[int, int] = {}
    end_ms = max((due_ms[-1] // rules.interval_ms + 1) * rules.interval_ms, until_ms)
    for due in due_ms:
        named_after[(due // rules.interval_ms + 1) * rules.interval_ms] = due
    moments = set(named_after)
    for t in range(due_ms[0] // _MINUTE_MS * _MINUTE_MS, end_ms + 1, _MINUTE_MS):
        for zone in ("Europe/Lisbon", "Atlantic/Azores"):
            seconds = (t - rules.out_of_orderness_ms) / 1000
            local = dt.datetime.fromtimestamp(seconds, ZoneInfo(zone))
            before = dt.datetime.fromtimestamp(seconds - 60, ZoneInfo(zone))
            midnight = "1d" in rules.forecast_freqs and local.date() != before.date()
            hour = "1h" in rules.forecast_freqs and local.minute == 0
            if (midnight or hour) and due_ms[0] < t <= end_ms:
                moments.add(t)
    out: dict[int, list[int]] = {}
    left = list(due_ms)
    for t in sorted(moments):
        out[t] = [due for due in left if due < t]
        left = [due for due in left if due >= t]
    assert not left
    return out


@settings(max_examples=60, deadline=None)
@given(
    due_minutes=st.lists(st.integers(0, 60 * 40), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=5),
    freqs=st.sampled_from([("1d",), ("1h",), ("1h", "1d")]),
    interval_minutes=st.sampled_from([7, 60, 24 * 60, 10_000]),
    lateness_minutes=st.sampled_from([0, 5]),
    go_on_minutes=st.sampled_from([0, 60 * 60]),
)
def test_each_record_is_named_by_the_first_tick_after_it(
    due_minutes: list[int],
    cuts: list[int],
    freqs: tuple[str, ...],
    interval_minutes: int,
    lateness_minutes: int,
    go_on_minutes: int,
) -> None:
    rules = TickRules(_CALENDAR, freqs, lateness_minutes * _MINUTE_MS, interval_minutes * _MINUTE_MS)
    until_ms = _START_MS + go_on_minutes * _MINUTE_MS
    found: dict[int, list[int]] = {}
    waiting: list[int] = []
    for rows, tick_ms in ticks(_stretches(due_minutes, cuts), rules, until_ms):
        waiting += rows.due_ms.tolist() if rows is not None else []
        if tick_ms is not None:
            assert tick_ms not in found
            found[tick_ms], waiting = waiting, []
    assert not waiting
    due_ms = [_START_MS + minute * _MINUTE_MS for minute in sorted(due_minutes)]
    assert found == _naive(due_ms, rules, until_ms)
    assert list(found) == sorted(found)


def test_quiet_nights_have_their_midnight_only() -> None:
    rules = TickRules(ShopCalendar("UTC"), ("1d",), 5_000)
    noon = int(dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC).timestamp() * 1000)
    rows = Rows(np.array([noon + 1, noon + 3 * 24 * _HOUR_MS]))
    midnights = [noon + 12 * _HOUR_MS + day * 24 * _HOUR_MS + 5_000 for day in range(3)]
    last = noon + 73 * _HOUR_MS
    assert [due.tick_ms for due in ticks([rows], rules)] == [noon + _HOUR_MS, *midnights, None, last]


def test_a_long_stretch_is_handed_on_before_its_tick() -> None:
    rules = TickRules(ShopCalendar("UTC"), ("1d",), 0, 24 * _HOUR_MS)
    first, second = Rows(np.array([1, 2])), Rows(np.array([3]))
    handed = list(ticks([first, second], rules))
    assert [(due.rows and due.rows.due_ms.tolist(), due.tick_ms) for due in handed] == [
        ([1, 2], None),
        ([3], None),
        (None, 24 * _HOUR_MS),
    ]


def test_nothing_recorded_has_no_ticks() -> None:
    rules = TickRules(ShopCalendar("UTC"), ("1d",), 0)
    nothing: list[Due[Rows]] = list(ticks([Rows(np.empty(0, dtype=np.int64))], rules, until_ms=10**12))
    assert nothing == []
