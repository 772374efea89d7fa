"""Every message ever published must still decode to the same values. A golden file is never changed: a new version of a
message gets files of its own."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from feature_store.decoding import DecodeLimits, decode, decode_global_calendar
from feature_store.events import (
    EVENT_CLASSES,
    Action,
    CalendarEntry,
    CalendarEvent,
    GlobalCalendarEvent,
    ProductEvent,
    StockEvent,
)
from worker.schemas import PUBLISHED, Accuracy, AccuracyStep, Alert, ClockTick, Forecast, ForecastStep, Replenishment

GOLDEN = Path(__file__).parent / "golden"
LIMITS = DecodeLimits(currency="GBP")


def test_every_message_has_a_file_with_all_fields_and_one_with_the_required_ones() -> None:
    names = {path.stem for path in GOLDEN.glob("*.json")}
    assert names == {f"{name}_v1_{what}" for name in (*EVENT_CLASSES, *PUBLISHED) for what in ("full", "minimal")}


@pytest.mark.parametrize(
    ("name", "series", "event_time", "action", "quantity", "unit_price", "rating", "one_off"),
    [
        ("orders_v1_full", ("mug", "york"), 1710504000001, Action.RETURN, 1234, 2_345_678, 0, True),
        ("orders_v1_minimal", ("mug", ""), 1710504000001, Action.SALE, 3000, 500_000, 0, False),
        ("clicks_v1_full", ("mug", "york"), 1710504000002, Action.ADD_TO_CART, 0, 0, 0, False),
        ("clicks_v1_minimal", ("mug", ""), 1710504000002, Action.VIEW, 0, 0, 0, False),
        ("reviews_v1_full", ("mug", ""), 1710504000003, Action.REVIEW, 0, 0, 5, False),
        ("reviews_v1_minimal", ("mug", ""), 1710504000003, Action.REVIEW, 0, 0, 1, False),
    ],
)
def test_counted_events_decode_as_ever(
    name: str,
    series: tuple[str, str],
    event_time: int,
    action: Action,
    quantity: int,
    unit_price: int,
    rating: int,
    one_off: bool,
) -> None:
    decoded = decode(name.partition("_")[0], [(GOLDEN / f"{name}.json").read_bytes()], [b"mug"], LIMITS)
    assert decoded.rejects == []
    events = decoded.events
    assert events.series == (series,)
    assert (events.event_time_ms.tolist(), events.action.tolist()) == ([event_time], [action])
    assert (events.quantity.tolist(), events.unit_price.tolist()) == ([quantity], [unit_price])
    assert (events.rating.tolist(), events.one_off.tolist()) == ([rating], [one_off])


SAID = CalendarEntry(1710600000000, 1710700000000, "york", 1.99, True, False, "fair")
SAID_TO_ALL = CalendarEntry(1710600000000, 1710700000000, "york", 1.99, False, True, "bank holiday")
UNSAID = CalendarEntry(1710800000000, 1710900000000, "", None, None, None, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "products_v1_full",
            ProductEvent(1710504000004, "mug", "Mug", "Holds tea", "cups", "Acme", 1700000000000, [0.25, -1.5]),
        ),
        ("products_v1_minimal", ProductEvent(1710504000004, "mug", "", "", "", "", None, None)),
        ("calendar_v1_full", CalendarEvent(1710504000005, "mug", [SAID, UNSAID])),
        ("calendar_v1_minimal", CalendarEvent(1710504000005, "mug", [])),
        ("stock_v1_full", StockEvent(1710504000007, "mug", -1.5, "york", 12.25)),
        ("stock_v1_minimal", StockEvent(1710504000007, "mug", 7.0, "", 0.0)),
    ],
)
def test_state_messages_decode_as_ever(name: str, expected: Any) -> None:
    decoded = decode(name.partition("_")[0], [(GOLDEN / f"{name}.json").read_bytes()], [b"mug"], LIMITS)
    assert [event for _, event in decoded.states] == [expected]


@pytest.mark.parametrize(("what", "entries"), [("full", [SAID_TO_ALL, UNSAID]), ("minimal", [])])
def test_the_whole_shops_calendar_decodes_as_ever(what: str, entries: list[CalendarEntry]) -> None:
    raw = (GOLDEN / f"calendar_global_v1_{what}.json").read_bytes()
    assert decode_global_calendar(raw) == GlobalCalendarEvent(1710504000006, entries)


FORECAST = Forecast(
    forecast_id="f-1",
    revision=3,
    item_id="mug@york",
    product_id="mug",
    location_id="york",
    freq="1h",
    cutoff=1710504000123,
    positions={"shop.orders.v1": 42, "shop.clicks.v1": 7},
    issued_at=1710504000456,
    steps=[
        ForecastStep(1710504000000, 1710507600000, 2.5, [1.0, 2.0, 4.0], [0.5, 1.5, 3.5], [0.9, 2.1, 4.2]),
    ],
    quantile_levels=[0.1, 0.5, 0.9],
    observed=0.5,
    model_name="demand_forecaster",
    model_version="1",
    config_hash="0123456789ab",
    feature_age_ms={"orders": 12, "clicks": 0},
    degraded=True,
)
BARE_FORECAST = Forecast(
    forecast_id="f-1",
    revision=1,
    item_id="mug",
    product_id="mug",
    location_id="",
    freq="1d",
    cutoff=1710504000123,
    positions={},
    issued_at=1710504000456,
    steps=[ForecastStep(1710460800000, 1710547200000, 0.0, [0.0], [0.0], None)],
    quantile_levels=[0.5],
    observed=0.0,
    model_name="seasonal_naive",
    model_version="",
    config_hash="0123456789ab",
    feature_age_ms={},
    degraded=False,
)

REPLENISHMENT = Replenishment(
    replenishment_id="r-1",
    item_id="mug@york",
    product_id="mug",
    location_id="york",
    quantity=24.0,
    reason="3 on hand and 12 on order are at or below 31.5: up to 31.5",
    policy="order_up_to",
    review_time=1710504000000,
    event_time=1710504000456,
    service_level=0.95,
    service_measure="fill_rate",
    lead_time_s=259200.0,
    forecast_id="f-1",
    on_hand=3.0,
    on_order=12.0,
    reorder_point=31.5,
    order_up_to=31.5,
)
BARE_REPLENISHMENT = Replenishment(
    replenishment_id="r-1",
    item_id="mug",
    product_id="mug",
    location_id="",
    quantity=1.0,
    reason="",
    policy="s_S",
    review_time=1710504000000,
    event_time=1710504000456,
    service_level=0.5,
    service_measure="cycle_service",
    lead_time_s=0.0,
    forecast_id="f-1",
    on_hand=0.0,
    on_order=0.0,
    reorder_point=0.25,
    order_up_to=1.0,
)

ALERT = Alert(
    alert_id="a-1",
    episode_state="update",
    sequence=2,
    kind="demand_above",
    event_time=1710504000456,
    opened_at=1710503000000,
    window_start=1710500400000,
    item_id="mug@york",
    product_id="mug",
    location_id="york",
    subject="mugs",
    channel="order_lines",
    freq="1h",
    observed=31.0,
    expected=9.5,
    tail_probability=1.25e-05,
    severity="major",
    forecast_id="f-1",
    reason="31 order lines since 11:00, 9.5 expected",
)
BARE_ALERT = Alert(
    alert_id="a-1",
    episode_state="open",
    sequence=1,
    kind="stream_silent",
    event_time=1710504000456,
    opened_at=1710504000456,
    window_start=1710500400000,
    observed=0.0,
    expected=0.5,
    tail_probability=1.0,
    severity="minor",
    item_id="",
    product_id="",
    location_id="",
    subject="",
    channel="",
    freq="",
    forecast_id="",
    reason="",
)

ACCURACY = Accuracy(
    segment_kind="item",
    segment="mug@york",
    product_id="mug",
    location_id="york",
    freq="1d",
    window_start="2024-03-01",
    window_days=28,
    revision=3,
    partition=2,
    event_time=1710504000456,
    model_name="demand_forecaster",
    model_version="3",
    steps=[
        AccuracyStep(
            step=1,
            sums={"count": 2, "actual": 3000, "absolute_error": 1000, "error": -500, "squared_error": 125},
            wape=0.333333,
            rmse=0.25,
            bias=-0.166667,
            wql=0.21,
            coverage={"50": 0.5, "80": 1.0, "95": 1.0},
        )
    ],
)
BARE_ACCURACY = Accuracy(
    segment_kind="all",
    freq="1d",
    window_start="2024-03-01",
    window_days=1,
    revision=1,
    partition=0,
    event_time=1710504000456,
    model_version="baseline",
    steps=[AccuracyStep(step=1, sums={})],
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy_v1_full", ACCURACY),
        ("accuracy_v1_minimal", BARE_ACCURACY),
        ("forecast_v1_full", FORECAST),
        ("forecast_v1_minimal", BARE_FORECAST),
        ("replenishment_v1_full", REPLENISHMENT),
        ("replenishment_v1_minimal", BARE_REPLENISHMENT),
        ("alert_v1_full", ALERT),
        ("alert_v1_minimal", BARE_ALERT),
        ("clock_v1_full", ClockTick(1710504000008, {"shop.orders.v1": 42, "shop.clicks.v1": 0}, {"shop.orders.v1": 7})),
        ("clock_v1_minimal", ClockTick(1710504000008, {})),
    ],
)
def test_published_messages_decode_as_ever(
    name: str, expected: Accuracy | Alert | Forecast | Replenishment | ClockTick
) -> None:
    assert msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes(), type=type(expected)) == expected


@pytest.mark.parametrize(
    "name", ["accuracy_v1_full", "alert_v1_full", "forecast_v1_full", "replenishment_v1_full", "clock_v1_full"]
)
def test_what_is_published_still_has_every_field(name: str) -> None:
    golden = msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes())
    decoded = msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes(), type=PUBLISHED[name.partition("_")[0]])
    assert msgspec.json.decode(msgspec.json.encode(decoded)) == golden
