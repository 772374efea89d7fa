"""Oracle: builders.naive_sums, event by event with Python's integers, decimals and dates."""

import random
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feature_store.calendar_time import ShopCalendar, bucket_start_ms
from feature_store.events import Action
from feature_store.features import (
    FEATURE_INDEX,
    FEATURES,
    SOURCE_FEATURES,
    UNITS_PER_ONE,
    BucketRows,
    aggregate,
    context,
    contributions,
    pool_product_rows,
)
from tests.feature_store.builders import (
    DAY_MS,
    NOON_MS,
    Happened,
    Sums,
    batch_of,
    events_between,
    naive_contribution,
    naive_sums,
)

CALENDAR = ShopCalendar("Europe/London", {"york": "America/New_York"})
EVENTS = st.lists(events_between(NOON_MS - 2 * DAY_MS, NOON_MS), max_size=30)
FREQS = st.sampled_from(["5m", "1h", "1d"])


def sums_of(events: Sequence[Happened], freq: str) -> Sums:
    batch = batch_of(events)
    found: Sums = {}
    for deltas in aggregate(batch, ("5m", "1h", "1d"), CALENDAR):
        if deltas.freq == freq:
            columns = np.zeros((len(deltas.bucket), len(FEATURES)), dtype=np.int64)
            columns[:, SOURCE_FEATURES[deltas.source]] = deltas.values
            cells = list(zip(deltas.series.tolist(), deltas.bucket.tolist(), strict=True))
            assert len(set(cells)) == len(cells), "each series and bucket has one row"
            for (series, bucket), values in zip(cells, columns.tolist(), strict=True):
                cell = (*batch.series[series], bucket)
                found[cell] = tuple(a + b for a, b in zip(found.get(cell, (0,) * 8), values, strict=True))
    return found


@given(EVENTS, FREQS)
def test_sums_equal_a_recomputation_event_by_event(events: list[Happened], freq: str) -> None:
    assert sums_of(events, freq) == naive_sums(events, freq, CALENDAR)


@given(EVENTS, FREQS, st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_the_order_of_events(events: list[Happened], freq: str, rng: random.Random) -> None:
    shuffled = rng.sample(events, len(events))
    assert sums_of(shuffled, freq) == sums_of(events, freq)


@given(EVENTS, FREQS, st.integers(0, 30))
def test_sums_do_not_depend_on_where_a_batch_is_split(events: list[Happened], freq: str, at: int) -> None:
    added: Sums = {}
    for part in (sums_of(events[:at], freq), sums_of(events[at:], freq)):
        for cell, values in part.items():
            added[cell] = tuple(a + b for a, b in zip(added.get(cell, (0,) * 8), values, strict=True))
    assert added == sums_of(events, freq)


def test_rows_come_sorted_by_series_then_bucket() -> None:
    events = [Happened(NOON_MS - i * DAY_MS, product) for i in (0, 2, 1) for product in ("b", "a")]
    for deltas in aggregate(batch_of(events), ("5m", "1h", "1d"), CALENDAR):
        pairs = list(zip(deltas.series.tolist(), deltas.bucket.tolist(), strict=True))
        assert len(pairs) == 6
        assert pairs == sorted(pairs)


def test_days_are_summed_event_by_event_where_a_zones_midnights_split_five_minutes() -> None:
    odd = ShopCalendar("Africa/Monrovia")  # 44 minutes 30 seconds behind UTC until 1972
    midnight_ms = int(bucket_start_ms("1d", np.array([100]), "Africa/Monrovia")[0])
    events = [Happened(midnight_ms - 1), Happened(midnight_ms)]
    assert not odd.days_consist_of("5m")
    days = [deltas for deltas in aggregate(batch_of(events), ("5m", "1d"), odd) if deltas.freq == "1d"]
    assert [deltas.bucket.tolist() for deltas in days] == [[99, 100]]


@given(st.integers(0, 10**9), st.integers(0, 10**12))
def test_revenue_is_rounded_half_to_even_line_by_line(quantity: int, unit_price: int) -> None:
    event = Happened(NOON_MS, quantity=quantity, unit_price=unit_price)
    revenue = contributions(batch_of([event]), "orders")[0, FEATURE_INDEX["revenue"]]
    assert int(revenue) == naive_contribution(event)[3]


def test_revenue_of_half_a_millionth_goes_to_the_even_neighbour() -> None:
    lines = [(1, 500), (1, 501), (1, 499), (3, 500), (500, 5), (1, 2_500), (1, 3_500)]
    events = [Happened(NOON_MS, quantity=quantity, unit_price=price) for quantity, price in lines]
    revenue = contributions(batch_of(events), "orders")[:, FEATURE_INDEX["revenue"]]
    assert revenue.tolist() == [0, 1, 0, 2, 2, 2, 4]


def test_a_one_off_sale_is_neither_learnt_from_nor_forecast() -> None:
    assert sums_of([Happened(NOON_MS, one_off=True)], "1d") == {}


def test_what_comes_back_never_lowers_what_was_sold() -> None:
    sale = Happened(NOON_MS, quantity=3000)
    back = [Happened(NOON_MS, action=action, quantity=5000) for action in (Action.CANCEL, Action.RETURN)]
    ((_, values),) = sums_of([sale, *back], "1d").items()
    assert values == (3000, 10_000, 1, 7_500_000, 0, 0, 0, 0)


def test_a_sale_of_nothing_is_an_order_line_all_the_same() -> None:
    ((_, values),) = sums_of([Happened(NOON_MS, quantity=0)], "1d").items()
    assert values == (0, 0, 1, 0, 0, 0, 0, 0)


def test_clicks_that_are_not_counted_leave_no_row() -> None:
    events = [Happened(NOON_MS, action=action) for action in (Action.WISHLIST, Action.REMOVE_FROM_CART)]
    assert sums_of(events, "5m") == {}
    assert sums_of([], "5m") == {}


def test_the_order_of_features_is_the_layouts() -> None:
    assert [feature.name for feature in FEATURES] == [
        "units",
        "returned_units",
        "order_lines",
        "revenue",
        "views",
        "add_to_carts",
        "review_count",
        "rating_sum",
    ]
    assert UNITS_PER_ONE.tolist() == [1000, 1000, 1, 1_000_000, 1, 1, 1, 1]


ROW = st.tuples(
    st.integers(0, 2), st.integers(-3, 12), st.lists(st.integers(0, 2**48), min_size=8, max_size=8).map(tuple)
)


def rows_of(rows: Sequence[tuple[int, int, tuple[int, ...]]]) -> BucketRows:
    return BucketRows(
        np.array([r[0] for r in rows], dtype=np.int64),
        np.array([r[1] for r in rows], dtype=np.int64),
        np.array([r[2] for r in rows], dtype=np.int64).reshape(-1, 8),
    )


@given(
    st.lists(ROW, max_size=20),
    st.lists(st.integers(0, 9), min_size=3, max_size=3),
    st.lists(st.integers(-5, 12), min_size=3, max_size=3),
    st.integers(1, 6),
)
def test_context_equals_a_recomputation_cell_by_cell(
    rows: list[tuple[int, int, tuple[int, ...]]], running: list[int], first: list[int], length: int
) -> None:
    found = context(rows_of(rows), np.array(running), np.array(first), length)
    assert found.context.shape == (3, length, 8)
    assert found.context.dtype == found.running.dtype == np.float32
    for item in range(3):
        for channel, per_one in enumerate((1000, 1000, 1, 1_000_000, 1, 1, 1, 1)):

            def total(bucket: int, item: int = item, channel: int = channel, per_one: int = per_one) -> np.float32:
                counted = sum(values[channel] for i, b, values in rows if (i, b) == (item, bucket))
                return np.float32(counted / per_one)

            for step in range(length):  # oldest first
                bucket = running[item] - length + step
                expected = np.float32(np.nan) if bucket < first[item] else total(bucket)
                np.testing.assert_equal(found.context[item, step, channel], expected)
            assert found.running[item, channel] == total(running[item])


def test_context_is_unknown_before_the_first_bucket_and_zero_after_it() -> None:
    row = rows_of([(0, 7, (2500, 0, 1, 0, 0, 0, 0, 0))])
    past = context(row, np.array([9]), np.array([6]), 5).context[0, :, 0]
    np.testing.assert_equal(past, np.array([np.nan, np.nan, 0, 2.5, 0], dtype=np.float32))


def test_items_at_a_location_read_their_products_clicks_and_reviews_but_not_its_orders() -> None:
    own = rows_of([(0, 5, (1, 1, 1, 1, 1, 1, 1, 1)), (1, 5, (2,) * 8)])
    product = rows_of([(0, 5, (9, 9, 9, 9, 10, 20, 30, 40)), (1, 6, (9,) * 8)])
    pooled = pool_product_rows(own, product, located=[True, False])
    rows = zip(pooled.item.tolist(), pooled.bucket.tolist(), map(tuple, pooled.values.tolist()), strict=True)
    assert list(rows) == [(0, 5, (1,) * 8), (1, 5, (2,) * 8), (0, 5, (0, 0, 0, 0, 10, 20, 30, 40))]
    assert product.values[0, 0] == 9, "what was given is left as it was"


def test_without_product_rows_items_read_their_own() -> None:
    own = rows_of([(0, 5, (1,) * 8)])
    pooled = pool_product_rows(own, rows_of([]), located=[True])
    assert (pooled.item.tolist(), pooled.bucket.tolist(), pooled.values.tolist()) == ([0], [5], [[1] * 8])
