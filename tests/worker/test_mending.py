"""A letter's value, changed as a person says, and what a worker would say of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from feature_store.decoding import DecodeLimits
from worker.dead_letters import DeadLetter, Place
from worker.errors import MendError
from worker.mending import Mended, mend, parse_fields, whole_value, with_fields
from worker.topic_reading import StoredRecord

LIMITS = DecodeLimits(currency="GBP", max_event_time_ms=2_000, max_message_bytes=200, partition_of=len)
ORDER = {"event_time": 1_000, "product_id": "mug", "quantity": 2, "unit_price": 2.5}


def mended(value: bytes | None, source: str = "orders", key: bytes | None = b"mug") -> Mended:
    letter = DeadLetter("orders/0/7/d", Place(0, 3), Place(0, 7), 0, key, "not_json", "")
    headers: list[tuple[str, bytes | None]] = [("trace", b"1"), ("shelfcast.reason", b"not_json"), ("none", None)]
    return mend(source, letter, StoredRecord(0, 3, 0, key, b"{", headers), value, LIMITS)


def test_it_is_keyed_and_placed_by_its_product_whatever_its_key_was() -> None:
    found = mended(json.dumps(ORDER | {"product_id": "tea pot"}).encode(), key=b"wrong")
    assert (found.key, found.partition, found.refusal) == (b"tea pot", 7, "")
    assert found.headers == [("trace", b"1"), ("none", None), ("shelfcast.retry_of", b"orders/0/7/d")]


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        ("other_currency", ORDER | {"currency": "SEK"}),
        ("far_future", ORDER | {"event_time": 2_001}),
        ("missing_field", {"product_id": "mug"}),
        ("empty_product_id", ORDER | {"product_id": ""}),
        ("too_large", ORDER | {"order_id": "x" * 200}),
        ("out_of_range", ORDER | {"quantity": 1e9}),
        ("wrong_type", ORDER | {"product_id": 5}),
        ("not_json", b"{"),
        ("not_json", b"\xff"),
        ("null_value", None),
    ],
)
def test_what_a_worker_would_reject_is_told_with_the_workers_own_reason(reason: str, value: Any) -> None:
    raw = json.dumps(value).encode() if isinstance(value, dict) else value
    assert f"a worker would reject it again, {reason}: " in mended(raw).refusal


def test_a_tombstone_keeps_its_key() -> None:
    found = mended(None, "products", key=b"lid")
    assert (found.key, found.value, found.partition, found.refusal) == (b"lid", None, 3, "")
    assert "empty_product_id" in mended(None, "products", key=None).refusal


def test_fields_take_the_types_of_their_names() -> None:
    fields = parse_fields("orders", ["product_id=22423", "quantity=2", "one_off=true", "order_id="])
    assert fields == {"product_id": "22423", "quantity": 2.0, "one_off": True, "order_id": ""}
    assert parse_fields("orders", ["original_event_time=null"]) == {"original_event_time": None}
    assert parse_fields("orders", ["order_id=a=b"]) == {"order_id": "a=b"}


@pytest.mark.parametrize(
    ("source", "assignment", "remedy"),
    [
        ("orders", "quantity", "FIELD=VALUE"),
        ("orders", "qty=2", "quantity"),  # names the fields there are
        ("orders", "quantity=two", "float"),
        ("orders", "kind=gift", "gift"),
        ("reviews", "rating=9", "<= 5"),
        ("calendar", "entries=[]", "--edit"),
    ],
)
def test_a_field_that_can_not_be_set_is_named_with_the_remedy(source: str, assignment: str, remedy: str) -> None:
    with pytest.raises(MendError, match=remedy) as error:
        parse_fields(source, [assignment])
    assert assignment in str(error.value)


def test_fields_that_are_not_set_keep_their_very_bytes() -> None:
    value = b'{"quantity": 2.50, "unit_price": 1e2, "note": {"a": [1.10]}, "quantity_": 9007199254740993}'
    changed = with_fields(value, {"quantity": 3.0, "kind": "cancel"})
    assert json.loads(changed, parse_float=str, parse_int=str) == {
        "quantity": "3.0",
        "unit_price": "1e2",
        "note": {"a": ["1.10"]},
        "quantity_": "9007199254740993",
        "kind": "cancel",
    }


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000])
def test_only_a_json_object_has_fields_to_set(value: bytes | None) -> None:
    with pytest.raises(MendError, match="--edit"):
        with_fields(value, {"quantity": 1})


@pytest.mark.parametrize("value", [b"", b"{", b"[1]", b"\xff"])
def test_a_whole_value_must_be_a_json_object(value: bytes) -> None:
    with pytest.raises(MendError, match=r"order\.json is not a JSON object"):
        whole_value(value, "order.json")
    assert whole_value(b' {"a": 1}\n', "order.json") == b'{"a": 1}'
