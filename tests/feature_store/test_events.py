import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.decoding import Decoded, DecodeLimits, Reason, decode, decode_global_calendar
from feature_store.events import Action, CalendarEvent, ProductEvent, StateChange, StockEvent, Tombstone, item_id_of

NOW_MS = 1_710_504_000_000
LIMITS = DecodeLimits(currency="GBP", max_event_time_ms=NOW_MS, max_message_bytes=500)
ORDER = {"event_time": NOW_MS, "product_id": "mug", "quantity": 2, "unit_price": 3.5}
CLICK = {"event_time": NOW_MS, "product_id": "mug", "action": "view"}
REVIEW = {"event_time": NOW_MS, "product_id": "mug", "rating": 4}
STOCK = {"event_time": NOW_MS, "product_id": "mug", "on_hand": 4}


def decode_one(source: str, message: Mapping[str, Any] | bytes | None, limits: DecodeLimits = LIMITS) -> Decoded:
    raw = json.dumps(message).encode() if isinstance(message, Mapping) else message
    return decode(source, [raw], [b"mug"], limits)


def reason_of(source: str, message: Mapping[str, Any] | bytes | None, limits: DecodeLimits = LIMITS) -> Reason:
    decoded = decode_one(source, message, limits)
    assert (len(decoded.events), decoded.states, len(decoded.rejects)) == (0, [], 1)
    assert decoded.rejects[0].row == 0
    assert decoded.rejects[0].detail
    return decoded.rejects[0].reason


def with_number(field: str, literal: str) -> bytes:
    return json.dumps({**ORDER, field: "HERE"}).replace('"HERE"', literal).encode()


def test_an_order_becomes_thousandths_and_millionths() -> None:
    events = decode_one("orders", {**ORDER, "location_id": "york", "one_off": True}).events
    assert events.series == (("mug", "york"),)
    assert events.event_time_ms.tolist() == [NOW_MS]
    assert (events.quantity.tolist(), events.unit_price.tolist()) == ([2000], [3_500_000])
    assert (events.action.tolist(), events.one_off.tolist()) == ([Action.SALE], [True])


@pytest.mark.parametrize("kind", ["sale", "cancel", "return"])
def test_each_kind_of_order_has_its_action(kind: str) -> None:
    assert decode_one("orders", {**ORDER, "kind": kind}).events.action.tolist() == [Action[kind.upper()]]


@pytest.mark.parametrize("action", ["view", "add_to_cart", "remove_from_cart", "wishlist"])
def test_each_click_has_its_action_and_no_quantity(action: str) -> None:
    events = decode_one("clicks", {**CLICK, "action": action, "location_id": "york"}).events
    assert events.action.tolist() == [Action[action.upper()]]
    assert (events.series, events.quantity.tolist(), events.unit_price.tolist()) == ((("mug", "york"),), [0], [0])


@pytest.mark.parametrize("rating", [1, 2, 3, 4, 5])
def test_a_review_keeps_its_stars(rating: int) -> None:
    events = decode_one("reviews", {**REVIEW, "rating": rating, "text": "holds tea"}).events
    assert (events.action.tolist(), events.rating.tolist()) == ([Action.REVIEW], [rating])


def test_products_calendars_and_stock_replace_what_was_known() -> None:
    product = {"event_time": 5, "product_id": "mug", "title": "Mug", "launch_time": 3, "image_embedding": [0.5]}
    entry = {"start_time": 10, "end_time": 20, "unit_price": 2.5, "promotion": True}
    calendar = {"event_time": 6, "product_id": "mug", "entries": [entry]}
    stock = {"event_time": 7, "product_id": "mug", "on_hand": -1.5, "on_order": 2}
    sent = {"products": product, "calendar": calendar, "stock": stock}
    known, announced, counted = (decode_one(source, message).states[0].event for source, message in sent.items())
    assert isinstance(known, ProductEvent)
    assert (known.title, known.launch_time, known.image_embedding, known.brand) == ("Mug", 3, [0.5], "")
    assert isinstance(announced, CalendarEvent)
    (said,) = announced.entries
    assert (said.start_time, said.end_time, said.unit_price, said.promotion, said.open) == (10, 20, 2.5, True, None)
    assert isinstance(counted, StockEvent)
    assert (counted.on_hand, counted.on_order, counted.location_id) == (-1.5, 2, "")


def test_the_whole_shops_calendar_is_read_or_says_what_is_wrong() -> None:
    raw = b'{"event_time": 1, "entries": [{"start_time": 10, "end_time": 20, "open": false}]}'
    assert [(e.start_time, e.open) for e in decode_global_calendar(raw).entries] == [(10, False)]
    with pytest.raises(ValueError, match=r"missing_field.*event_time"):
        decode_global_calendar(b"{}")
    with pytest.raises(ValueError, match="not_json"):
        decode_global_calendar(b'{"event_time": 1, "entries": ')


@pytest.mark.parametrize(
    "raw", [b"", b"mug", b"{", json.dumps(ORDER).encode() + b" x", b'{"product_id": "\xff"}', b"\xef\xbb\xbf{}"]
)
def test_what_is_not_json_is_rejected(raw: bytes) -> None:
    assert reason_of("orders", raw) is Reason.NOT_JSON


def test_brackets_nested_thousands_deep_are_rejected_even_where_nobody_reads_them() -> None:
    raw = json.dumps({**ORDER, "extra": "HERE"}).replace('"HERE"', "[" * 200_000 + "]" * 200_000).encode()
    generous = DecodeLimits(max_message_bytes=10**6)
    assert reason_of("orders", raw, generous) is Reason.NOT_JSON
    with pytest.raises(ValueError, match="not_json"):
        decode_global_calendar(b'{"extra": ' + b"[" * 200_000)


@pytest.mark.parametrize(
    ("source", "message", "field"),
    [("orders", ORDER, field) for field in ORDER]
    + [("clicks", CLICK, field) for field in CLICK]
    + [("reviews", REVIEW, field) for field in REVIEW]
    + [("stock", STOCK, field) for field in STOCK]
    + [("products", {"event_time": 1, "product_id": "mug"}, field) for field in ("event_time", "product_id")]
    + [("calendar", {"event_time": 1, "product_id": "mug"}, field) for field in ("event_time", "product_id")],
)
def test_a_missing_field_is_rejected(source: str, message: dict[str, Any], field: str) -> None:
    assert reason_of(source, {name: value for name, value in message.items() if name != field}) is Reason.MISSING_FIELD


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("orders", {**ORDER, "quantity": "2"}),
        ("orders", {**ORDER, "quantity": None}),
        ("orders", {**ORDER, "quantity": True}),
        ("orders", {**ORDER, "event_time": 1.5}),
        ("orders", {**ORDER, "product_id": 7}),
        ("orders", {**ORDER, "kind": 7}),
        ("reviews", {**REVIEW, "rating": 4.5}),
        ("clicks", {**CLICK, "action": None}),
        ("calendar", {"event_time": 1, "product_id": "mug", "entries": [7]}),
        ("orders", b"[]"),
        ("orders", b"null"),
    ],
)
def test_a_wrong_type_is_rejected(source: str, message: dict[str, Any] | bytes) -> None:
    assert reason_of(source, message) is Reason.WRONG_TYPE


@pytest.mark.parametrize("field", ["quantity", "unit_price"])
@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400])
def test_a_number_that_is_not_finite_is_rejected(field: str, literal: str) -> None:
    assert reason_of("orders", with_number(field, literal), DecodeLimits(max_message_bytes=10**6)) is Reason.NOT_FINITE


def test_the_word_nan_in_a_text_does_not_hide_what_is_wrong() -> None:
    assert reason_of("orders", b'{"product_id": "NaN", "order_id": "Infinity"') is Reason.NOT_JSON


@pytest.mark.parametrize(
    ("source", "message", "reason"),
    [
        ("clicks", {**CLICK, "action": "stare"}, Reason.UNKNOWN_ACTION),
        ("orders", {**ORDER, "kind": "gift"}, Reason.UNKNOWN_KIND),
        ("reviews", {**REVIEW, "rating": 0}, Reason.BAD_RATING),
        ("reviews", {**REVIEW, "rating": 6}, Reason.BAD_RATING),
        ("orders", {**ORDER, "unit_price": -0.01}, Reason.NEGATIVE_PRICE),
        ("orders", {**ORDER, "currency": "EUR"}, Reason.OTHER_CURRENCY),
        ("orders", {**ORDER, "product_id": ""}, Reason.EMPTY_PRODUCT_ID),
        ("orders", {**ORDER, "event_time": -1}, Reason.OUT_OF_RANGE),
        ("orders", {**ORDER, "quantity": -1, "kind": "return"}, Reason.OUT_OF_RANGE),
        ("orders", {**ORDER, "quantity": 1e6 + 1, "unit_price": 0}, Reason.OUT_OF_RANGE),
        ("orders", {**ORDER, "quantity": 0, "unit_price": 1e6 + 1}, Reason.OUT_OF_RANGE),
        ("orders", {**ORDER, "quantity": 20_000, "unit_price": 5_001}, Reason.OUT_OF_RANGE),
        ("stock", {**STOCK, "on_hand": 1e300}, Reason.OUT_OF_RANGE),
        ("stock", {**STOCK, "on_order": -1}, Reason.OUT_OF_RANGE),
        ("products", {"event_time": 1, "product_id": "mug", "launch_time": 10**30}, Reason.OUT_OF_RANGE),
    ],
)
def test_a_value_that_cannot_be_is_rejected(source: str, message: dict[str, Any], reason: Reason) -> None:
    assert reason_of(source, message) is reason


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"unit_price": -1}, Reason.NEGATIVE_PRICE),
        ({"unit_price": 1e300}, Reason.OUT_OF_RANGE),
        ({"start_time": -1}, Reason.OUT_OF_RANGE),
        ({"end_time": 10**25}, Reason.OUT_OF_RANGE),
    ],
)
def test_a_calendar_entry_that_cannot_be_is_rejected(said: dict[str, Any], reason: Reason) -> None:
    entry = {"start_time": 10, "end_time": 20, **said}
    assert reason_of("calendar", {"event_time": 1, "product_id": "mug", "entries": [entry]}) is reason


@pytest.mark.parametrize(("source", "message"), [("orders", ORDER), ("stock", STOCK)])
@pytest.mark.parametrize("ahead_ms", [1, 10**6, 10**30])
def test_the_far_future_is_rejected_and_the_last_allowed_millisecond_is_not(
    source: str, message: dict[str, Any], ahead_ms: int
) -> None:
    assert reason_of(source, {**message, "event_time": NOW_MS + ahead_ms}) is Reason.FAR_FUTURE
    assert decode_one(source, message).rejects == []


def test_one_byte_over_the_limit_is_rejected() -> None:
    raw = json.dumps(ORDER).encode()
    exact = raw + b" " * (LIMITS.max_message_bytes - len(raw))
    assert decode_one("orders", exact).rejects == []
    assert reason_of("orders", exact + b" ") is Reason.TOO_LARGE


def test_a_product_in_another_partition_than_its_own_is_rejected() -> None:
    limits = DecodeLimits(partition=3, partition_of={"mug": 3, "pot": 1}.__getitem__)
    assert decode_one("orders", ORDER, limits).rejects == []
    assert reason_of("orders", {**ORDER, "product_id": "pot"}, limits) is Reason.WRONG_PARTITION
    assert reason_of("stock", {**STOCK, "product_id": "pot"}, limits) is Reason.WRONG_PARTITION
    tombstone = decode("products", [None], [b"pot"], limits)
    assert [reject.reason for reject in tombstone.rejects] == [Reason.WRONG_PARTITION]


@pytest.mark.parametrize("source", ["orders", "clicks", "reviews", "stock"])
def test_a_null_value_on_a_topic_that_is_not_compacted_is_rejected(source: str) -> None:
    assert reason_of(source, None) is Reason.NULL_VALUE


@pytest.mark.parametrize("source", ["products", "calendar"])
def test_a_null_value_on_a_compacted_topic_withdraws_what_that_topic_said(source: str) -> None:
    assert decode_one(source, None).states == [StateChange(0, Tombstone(source, "mug"))]


@pytest.mark.parametrize("key", [None, b""])
def test_a_tombstone_without_a_key_is_rejected(key: bytes | None) -> None:
    assert [r.reason for r in decode("products", [None], [key], LIMITS).rejects] == [Reason.EMPTY_PRODUCT_ID]


def test_a_negative_sale_is_read_as_a_cancel_of_as_many() -> None:
    events = decode_one("orders", {**ORDER, "quantity": -2.5}).events
    assert (events.action.tolist(), events.quantity.tolist()) == ([Action.CANCEL], [2500])


def test_unknown_fields_and_personal_ones_leave_no_trace() -> None:
    decoded = decode_one("clicks", {**CLICK, "session_id": "s-4711", "user": {"name": "Ada"}, "new_field": [1]})
    assert decoded.rejects == []
    assert "4711" not in repr(decoded)
    assert "Ada" not in repr(decoded)


def test_the_shops_own_currency_and_none_are_taken_and_any_when_it_is_not_checked() -> None:
    for currency, limits in (("GBP", LIMITS), ("", LIMITS), ("EUR", DecodeLimits())):
        assert decode_one("orders", {**ORDER, "currency": currency}, limits).rejects == []


@given(st.decimals(0, 1_000_000, places=3))
def test_quantities_are_exact_thousandths(quantity: Decimal) -> None:
    decoded = decode_one("orders", with_number("quantity", f"{quantity:f}"))
    assert decoded.events.quantity.tolist() == [int(quantity * 1000)]


@given(st.decimals(0, 1_000_000, places=6))
def test_prices_are_exact_millionths(price: Decimal) -> None:
    decoded = decode_one("orders", with_number("unit_price", f"{price:f}"))
    assert decoded.events.unit_price.tolist() == [int(price * 1_000_000)]


GOOD = {
    "orders": st.sampled_from([ORDER, {**ORDER, "location_id": "york"}, {**ORDER, "event_id": "e1", "quantity": -3}]),
    "clicks": st.sampled_from([CLICK, {**CLICK, "action": "wishlist", "event_id": "c1"}]),
    "reviews": st.sampled_from([REVIEW, {**REVIEW, "rating": 1}]),
}
BAD = st.one_of(
    st.none(),
    st.binary(max_size=30),
    st.sampled_from(
        [
            b"{}",
            b'{"action": NaN}',
            b"{},{}",
            json.dumps({**ORDER, "event_time": 2**70}).encode(),
            json.dumps({**CLICK, "event_time": NOW_MS + 1}).encode(),
            json.dumps({**REVIEW, "rating": "5"}).encode(),
            json.dumps({**REVIEW, "text": "x" * 500}).encode(),
        ]
    ),
)


@pytest.mark.parametrize("source", ["orders", "clicks", "reviews"])
@given(data=st.data())
def test_a_malformed_record_costs_only_itself(source: str, data: st.DataObject) -> None:
    good_ones = GOOD[source].map(lambda message: (True, json.dumps(message).encode()))
    records = data.draw(st.lists(st.one_of(good_ones, BAD.map(lambda value: (False, value))), max_size=12))
    good = [(row, value) for row, (is_good, value) in enumerate(records) if is_good]
    bad = [row for row, (is_good, _) in enumerate(records) if not is_good]
    mixed = decode(source, [value for _, value in records], [b"mug"] * len(records), LIMITS)
    alone = decode(source, [value for _, value in good], [b"mug"] * len(good), LIMITS)
    assert [reject.row for reject in mixed.rejects] == bad
    assert mixed.events.row.tolist() == [row for row, _ in good]
    assert mixed.events.series == alone.events.series
    assert mixed.events.event_id == alone.events.event_id
    for column in ("event_time_ms", "series_index", "action", "quantity", "unit_price", "rating", "one_off"):
        assert getattr(mixed.events, column).tolist() == getattr(alone.events, column).tolist()


NAMES = st.text(alphabet=st.one_of(st.sampled_from("@%4025|{}: é"), st.characters(codec="utf-8")), max_size=6)


@given(NAMES.filter(bool), NAMES, NAMES.filter(bool), NAMES)
def test_no_two_series_share_an_item_id(product: str, location: str, product_2: str, location_2: str) -> None:
    same = (product, location) == (product_2, location_2)
    assert (item_id_of(product, location) == item_id_of(product_2, location_2)) == same


def test_item_ids_read_well() -> None:
    assert item_id_of("mug", "") == "mug"
    assert item_id_of("tea pot", "york/1") == "tea%20pot@york%2F1"
    assert item_id_of("mug@york", "") == "mug%40york"
