from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.latency_figures import bar_ms, distinct_per_s, first_covering, owed_each_second, percentiles_ms


def test_a_forecast_covers_the_offsets_below_its_position_and_a_late_older_one_covers_nothing_more() -> None:
    # Arrivals: at 1 s all below 3 is seen, at 2 s an older forecast comes, at 5 s all below 7.
    seen = first_covering(np.array([0, 2, 3, 6, 7]), np.array([3, 1, 7]), np.array([1.0, 2.0, 5.0]))
    assert seen.tolist() == [1.0, 1.0, 5.0, 5.0, float("inf")]


def test_without_arrivals_nothing_is_covered() -> None:
    assert first_covering(np.array([0]), np.array([], dtype=np.int64), np.array([])).tolist() == [float("inf")]


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 10)))
def test_the_first_covering_forecast_is_the_one_that_looking_at_all_of_them_finds(
    offsets: list[int], positions: list[int]
) -> None:
    clock = [0.5 * i for i in range(len(positions))]
    naive = [next((t for t, p in zip(clock, positions, strict=True) if p > o), float("inf")) for o in offsets]
    found = first_covering(np.array(offsets, dtype=np.int64), np.array(positions, dtype=np.int64), np.array(clock))
    assert found.tolist() == naive


def test_percentiles_are_in_milliseconds() -> None:
    found = percentiles_ms(np.arange(1001) / 1000)
    assert found == {"p50_ms": 500.0, "p99_ms": 990.0, "p999_ms": 999.0, "max_ms": 1000.0}


def test_items_are_counted_once_a_second() -> None:
    clock, item = np.array([0.1, 0.2, 0.9, 1.5, 1.6]), np.array([7, 7, 8, 7, 7])
    assert distinct_per_s(clock, item, [1.0, 2.0]) == 1.5


def test_an_item_is_owed_while_any_of_its_orders_is_unseen_and_as_stale_as_the_oldest_of_them() -> None:
    sent = np.array([0.2, 0.5, 0.6, 1.1])
    seen = np.array([0.4, 1.2, 2.5, 1.3])
    item = np.array([1, 2, 2, 1])
    # At 1 s items 1 and 2 were ordered in the second before, and item 2 waits since 0.5. At 2 s only item 1 was, which
    # is seen, while item 2 waits since 0.6.
    found = owed_each_second(sent, seen, item, [1.0, 2.0])
    assert found["share_forecast"] == 0.75
    assert found["stale_ms"]["p50_ms"] == 950.0
    assert found["stale_ms"]["max_ms"] == 1400.0


def test_when_all_is_seen_nothing_is_stale() -> None:
    found = owed_each_second(np.array([0.2]), np.array([0.4]), np.array([1]), [1.0])
    assert found == {"share_forecast": 1.0, "stale_ms": None}


def test_the_bar_is_one_and_a_half_rounds_over_the_items_touched() -> None:
    assert bar_ms(500, 2000) == 375.0
