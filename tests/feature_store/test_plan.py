"""What one batch changes. Sums are compared with builders.naive_sums."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.calendar_time import ShopCalendar, bucket_start_ms
from feature_store.decoding import Decoded, DecodeLimits, decode
from feature_store.events import (
    Action,
    CalendarEntry,
    CalendarEvent,
    EventBatch,
    ProductEvent,
    StateChange,
    StateEvent,
    StockEvent,
    Tombstone,
    item_id_of,
)
from feature_store.features import FEATURES, SOURCE_FEATURES
from feature_store.items import Item, ProductState
from feature_store.plan import LaneView, Plan, Retention, plan_batch, split_late
from tests.feature_store.builders import (
    DAY_MS,
    HOUR_MS,
    NOON_MS,
    Happened,
    Sums,
    batch_of,
    events_between,
    naive_bucket,
    naive_sums,
)

CALENDAR = ShopCalendar("Europe/London", {"tokyo": "Asia/Tokyo", "honolulu": "Pacific/Honolulu"})
RETENTION = Retention(CALENDAR, {"5m": 12, "1h": 24, "1d": 10})
NOTHING_KNOWN = LaneView({}, {}, {})


def plan_of(
    events: Sequence[Happened] = (),
    states: Sequence[StateEvent | Tombstone] = (),
    view: LaneView = NOTHING_KNOWN,
    watermark_ms: int | None = NOON_MS,
) -> Plan:
    changes = [StateChange(row, event) for row, event in enumerate(states)]
    return plan_batch(Decoded(batch_of(events), changes, []), view, RETENTION, watermark_ms)


def planned(plan: Plan, freq: str) -> dict[str, dict[int, tuple[int, ...]]]:
    found: dict[str, dict[int, tuple[int, ...]]] = {}
    for deltas in plan.sums:
        if deltas.freq == freq:
            columns = np.zeros((len(deltas.bucket), len(FEATURES)), dtype=np.int64)
            columns[:, SOURCE_FEATURES[deltas.source]] = deltas.values
            for series, bucket, row in zip(
                deltas.series.tolist(), deltas.bucket.tolist(), columns.tolist(), strict=True
            ):
                cells = found.setdefault(plan.series[series], {})
                cells[bucket] = tuple(a + b for a, b in zip(cells.get(bucket, (0,) * 8), row, strict=True))
    return found


def late_rows(batch: EventBatch, watermark_ms: int | None) -> list[int]:
    return [int(row) for row in split_late(batch, RETENTION, np.full(len(batch), watermark_ms or 0))[1]]


def day_start_ms(day: int, zone: str) -> int:
    return int(bucket_start_ms("1d", np.array([day]), zone)[0])


@pytest.mark.parametrize(
    ("location", "zone"), [("", "Europe/London"), ("tokyo", "Asia/Tokyo"), ("honolulu", "Pacific/Honolulu")]
)
def test_an_event_is_late_from_the_millisecond_before_its_locations_oldest_day(location: str, zone: str) -> None:
    oldest_ms = day_start_ms(naive_bucket("1d", NOON_MS, zone) - 10, zone)
    events = [Happened(oldest_ms - 1, location_id=location), Happened(oldest_ms, location_id=location)]
    kept, late = split_late(batch_of(events), RETENTION, np.full(len(events), NOON_MS))
    assert late.tolist() == [0]
    assert kept.row.tolist() == [1]


@given(st.lists(events_between(NOON_MS - 13 * DAY_MS, NOON_MS, locations=("", "tokyo", "honolulu")), max_size=20))
def test_late_and_kept_events_are_all_events_by_their_local_day(events: list[Happened]) -> None:
    kept, late = split_late(batch_of(events), RETENTION, np.full(len(events), NOON_MS))

    def is_late(e: Happened) -> bool:
        zone = CALENDAR.zone(e.location_id)
        return naive_bucket("1d", e.event_time_ms, zone) < naive_bucket("1d", NOON_MS, zone) - 10

    assert late.tolist() == [row for row, e in enumerate(events) if is_late(e)]
    assert kept.row.tolist() == [row for row, e in enumerate(events) if not is_late(e)]


def test_nothing_is_late_before_the_first_watermark() -> None:
    batch = batch_of([Happened(0), Happened(NOON_MS)])
    assert late_rows(batch, None) == []
    assert [(d.freq, len(d.bucket)) for d in plan_of([Happened(0)], watermark_ms=None).sums] == [
        ("5m", 1),
        ("1h", 1),
        ("1d", 1),
    ]


@given(st.lists(events_between(NOON_MS - 3 * DAY_MS, NOON_MS, locations=("", "tokyo")), max_size=20))
def test_an_event_corrects_exactly_the_frequencies_whose_bucket_still_stands(events: list[Happened]) -> None:
    plan = plan_of(events)
    for freq, kept in (("5m", 12), ("1h", 24), ("1d", 10)):
        expected: dict[str, dict[int, tuple[int, ...]]] = {}
        sums: Sums = naive_sums(events, freq, CALENDAR)
        for (product, location, bucket), values in sums.items():
            if bucket >= naive_bucket(freq, NOON_MS, CALENDAR.zone(location)) - kept:
                expected.setdefault(item_id_of(product, location), {})[bucket] = values
        assert planned(plan, freq) == expected


def test_an_order_of_yesterday_corrects_its_hour_and_day_but_not_its_five_minutes() -> None:
    plan = plan_of([Happened(NOON_MS - 20 * HOUR_MS)])
    assert [(d.freq, len(d.bucket)) for d in plan.sums] == [("1h", 1), ("1d", 1)]


@pytest.mark.parametrize(("freq", "width_ms", "kept"), [("5m", 300_000, 12), ("1h", HOUR_MS, 24)])
def test_the_oldest_bucket_that_stands_is_corrected_and_the_one_before_it_is_not(
    freq: str, width_ms: int, kept: int
) -> None:
    oldest = NOON_MS // width_ms - kept
    assert planned(plan_of([Happened(oldest * width_ms)]), freq).keys() == {"mug"}
    assert planned(plan_of([Happened(oldest * width_ms - 1)]), freq) == {}


def test_sums_say_what_may_be_dropped_by_each_locations_own_days() -> None:
    plan = plan_of([Happened(NOON_MS, location_id=location) for location in ("tokyo", "honolulu")])
    limits = {
        (freq, plan.series[i]): oldest
        for freq, kept in plan.oldest_kept.items()
        for i, oldest in enumerate(kept.tolist())
    }
    assert limits["5m", "mug@tokyo"] == NOON_MS // 300_000 - 12
    for location in ("tokyo", "honolulu"):
        assert limits["1d", f"mug@{location}"] == naive_bucket("1d", NOON_MS, CALENDAR.zone(location)) - 10
    # At London's noon Tokyo's date is the same and Honolulu's too, but twelve hours later they differ.
    later = plan_of([Happened(NOON_MS, location_id="tokyo")], watermark_ms=NOON_MS + 6 * HOUR_MS)
    assert later.oldest_kept["1d"].tolist() == [limits["1d", "mug@honolulu"] + 1]


def known_mug(first_ms: int, last_ms: int) -> LaneView:
    return LaneView({"mug": Item("mug", "mug", "", first_ms, last_ms)}, {"mug": ["mug"]}, {})


def test_an_item_spans_its_first_order_line_to_the_hour_of_its_last_in_whatever_order_they_come() -> None:
    events = [Happened(NOON_MS + 7), Happened(NOON_MS - 5), Happened(NOON_MS - 2, action=Action.RETURN)]
    assert plan_of(events).items == {"mug": Item("mug", "mug", "", NOON_MS - 5, NOON_MS)}
    known = known_mug(NOON_MS - 3, NOON_MS + HOUR_MS)
    assert plan_of(events, view=known).items == {"mug": Item("mug", "mug", "", NOON_MS - 5, NOON_MS + HOUR_MS)}


def test_an_item_is_not_written_again_for_another_order_in_the_same_hour() -> None:
    plan = plan_of([Happened(NOON_MS + 7)], view=known_mug(NOON_MS - 3, NOON_MS))
    assert (plan.items, plan.touched) == ({}, ["mug"])


def test_clicks_and_reviews_alone_make_no_item() -> None:
    clicks = [Happened(NOON_MS, action=action, rating=0) for action in (Action.VIEW, Action.REVIEW)]
    plan = plan_of(clicks)
    assert (plan.items, plan.touched) == ({}, [])
    assert plan.series == ["mug"]
    assert {deltas.source for deltas in plan.sums} == {"clicks", "reviews"}


MUGS = {i: Item(i, "mug", i.partition("@")[2], 0, 0) for i in ("mug", "mug@york", "mug@tokyo")}
SHOP = LaneView({**MUGS, "pot": Item("pot", "pot", "", 0, 0)}, {"mug": list(MUGS), "pot": ["pot"]}, {})


def test_an_order_touches_its_own_item_only() -> None:
    assert plan_of([Happened(NOON_MS, location_id="york")], view=SHOP).touched == ["mug@york"]


@pytest.mark.parametrize("action", [Action.VIEW, Action.WISHLIST, Action.REVIEW])
def test_a_click_or_review_touches_every_location_of_its_product(action: Action) -> None:
    assert sorted(plan_of([Happened(NOON_MS, action=action)], view=SHOP).touched) == sorted(MUGS)


@pytest.mark.parametrize(
    "state",
    [
        ProductEvent(1, "mug", title="Mug"),
        CalendarEvent(1, "mug"),
        StockEvent(1, "mug", 3),
        Tombstone("products", "mug"),
        Tombstone("calendar", "mug"),
    ],
)
def test_new_state_touches_every_location_of_its_product(state: StateEvent | Tombstone) -> None:
    assert sorted(plan_of(states=[state], view=SHOP).touched) == sorted(MUGS)


def test_an_item_that_a_batch_begins_is_touched_by_it() -> None:
    events = [Happened(NOON_MS, "jug"), Happened(NOON_MS, "jug", "york", action=Action.VIEW)]
    assert plan_of(events, view=SHOP).touched == ["jug"]


PRODUCT = ProductEvent(100, "mug", title="Mug", category="cups", brand="Acme", launch_time=50)
ENTRY = CalendarEntry(10, 20, promotion=True)


def state_after(*states: StateEvent | Tombstone, known: ProductState | None = None) -> ProductState:
    view = LaneView({}, {}, {} if known is None else {"mug": known})
    return plan_of(states=states, view=view).products["mug"]


def test_each_source_replaces_its_own_part_of_what_is_known() -> None:
    after = state_after(PRODUCT, CalendarEvent(100, "mug", [ENTRY]), StockEvent(100, "mug", 1.5, "york", 2))
    assert after == ProductState(100, "Mug", "", "cups", "Acme", 50, False, 100, (ENTRY,), {"york": (100, 1500, 2000)})


@pytest.mark.parametrize(
    "older",
    [ProductEvent(99, "mug", title="Cup"), CalendarEvent(99, "mug"), StockEvent(99, "mug", 9, "york")],
)
def test_what_is_older_than_what_it_would_replace_changes_nothing(older: StateEvent) -> None:
    known = state_after(PRODUCT, CalendarEvent(100, "mug", [ENTRY]), StockEvent(100, "mug", 1.5, "york", 2))
    assert state_after(older, known=known) == known


def test_of_two_at_the_same_time_the_later_in_the_topic_stands() -> None:
    assert state_after(PRODUCT, ProductEvent(100, "mug", title="Cup")).title == "Cup"
    assert state_after(CalendarEvent(100, "mug", [ENTRY]), CalendarEvent(100, "mug")).calendar == ()
    assert state_after(StockEvent(100, "mug", 1), StockEvent(100, "mug", 2)).stock == {"": (100, 2000, 0)}


def test_stock_is_kept_by_location() -> None:
    after = state_after(StockEvent(100, "mug", 1, "york"), StockEvent(50, "mug", 2, "tokyo"))
    assert after.stock == {"york": (100, 1000, 0), "tokyo": (50, 2000, 0)}


def test_a_products_tombstone_delists_it_until_it_is_announced_again() -> None:
    gone = state_after(PRODUCT, Tombstone("products", "mug"))
    assert gone.delisted
    assert state_after(ProductEvent(99, "mug"), known=gone).delisted
    assert not state_after(ProductEvent(100, "mug"), known=gone).delisted
    assert state_after(StockEvent(200, "mug", 1), known=gone).delisted


def test_a_calendars_tombstone_empties_the_calendar_and_delists_nothing() -> None:
    known = state_after(PRODUCT, CalendarEvent(100, "mug", [ENTRY]))
    after = state_after(Tombstone("calendar", "mug"), known=known)
    assert (after.calendar, after.delisted, after.title) == ((), False, "Mug")
    assert state_after(CalendarEvent(99, "mug", [ENTRY]), known=after).calendar == ()


def test_null_values_on_both_compacted_topics_reach_the_right_part() -> None:
    known = LaneView({}, {}, {"mug": state_after(PRODUCT, CalendarEvent(100, "mug", [ENTRY]))})
    for source, delisted, calendar in (("products", True, (ENTRY,)), ("calendar", False, ())):
        decoded = decode(source, [None], [b"mug"], DecodeLimits())
        state = plan_batch(decoded, known, RETENTION, None).products["mug"]
        assert (state.delisted, state.calendar) == (delisted, calendar)


def test_any_stock_that_decodes_can_be_planned() -> None:
    raw = json.dumps({"event_time": 1, "product_id": "mug", "on_hand": -1e9, "on_order": 1e9}).encode()
    plan = plan_batch(decode("stock", [raw], [b"mug"], DecodeLimits()), NOTHING_KNOWN, RETENTION, None)
    assert plan.products["mug"].stock == {"": (1, -(10**12), 10**12)}
