"""A live worker on a real broker, Redis and Triton."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import jsonschema
import msgspec
import pytest

from tests.end_to_end.shop import Received, Shop, now_ms
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker
from worker.schemas import Forecast, json_schemas
from worker.transport import murmur2_partition


@pytest.fixture(scope="module")
def shop(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = Shop(stack, tmp_path_factory.mktemp("live"), max_message_bytes=10_000)
    yield shop
    shop.close()


@pytest.fixture(scope="module", autouse=True)
def worker(shop: Shop) -> LocalWorker:
    return shop.start_worker()


def test_order_changes_the_forecast_of_its_item(shop: Shop) -> None:
    shop.order("mug", 3)
    before = shop.forecast("mug", "1h")
    shop.order("mug", 4)
    after = shop.forecast("mug", "1h", lambda f: f.revision > before.revision)

    assert before.observed == 3
    assert after.observed == 7
    assert after.forecast_id != before.forecast_id
    assert after.steps[0].quantiles[0] >= 7  # the running bucket's final total can't be below what has been sold
    assert after.positions[shop.settings.topic_orders] > before.positions[shop.settings.topic_orders]


def test_forecast_covers_the_horizon_from_the_running_bucket_on(shop: Shop) -> None:
    shop.order("lamp", 1)
    for freq, steps in (("1h", 48), ("1d", 28)):
        forecast = shop.forecast("lamp", freq)
        assert len(forecast.steps) == steps
        assert forecast.steps[0].bucket_start <= forecast.cutoff < forecast.steps[0].bucket_end
        for one, following in zip(forecast.steps, forecast.steps[1:], strict=False):
            assert one.bucket_end == following.bucket_start
            assert one.quantiles == sorted(one.quantiles)
            assert all(a <= b for a, b in zip(one.cumulative_quantiles, following.cumulative_quantiles, strict=True))
        assert not forecast.degraded
        assert forecast.model_name == "demand_forecaster"


def test_forecast_is_published_in_its_products_own_partition(shop: Shop) -> None:
    shop.order("käse/1", 1)
    forecast = shop.forecast("k%C3%A4se%2F1", "1d")
    assert forecast.product_id == "käse/1"
    records = shop.reader(shop.settings.topic_forecasts).records
    found = {r.partition for r in records if r.key == b"k%C3%A4se%2F1|1d"}
    assert found == {murmur2_partition("käse/1", shop.settings.partition_count)}


def test_messages_validate_against_the_published_schema(shop: Shop) -> None:
    shop.order("vase", 2)
    shop.forecast("vase", "1d")
    validator = jsonschema.Draft202012Validator(json_schemas()["forecast"])
    values = [r.value for r in shop.reader(shop.settings.topic_forecasts).records if r.value is not None]
    assert values
    for value in values:
        validator.validate(json.loads(value))


def test_click_and_review_reach_the_forecasts_of_every_location(shop: Shop) -> None:
    shop.order("sofa", 1, location_id="bath")
    shop.order("sofa", 2, location_id="york")
    first = {place: shop.forecast(f"sofa@{place}", "1d") for place in ("bath", "york")}
    assert {f.location_id for f in first.values()} == {"bath", "york"}
    shop.send("clicks", {"event_time": now_ms(), "product_id": "sofa", "action": "view"})
    seen_click = {
        place: shop.forecast(f"sofa@{place}", "1d", lambda f: shop.settings.topic_clicks in f.positions)
        for place in ("bath", "york")
    }
    assert all(seen_click[place].revision > first[place].revision for place in first)
    assert all("clicks" in f.feature_age_ms for f in seen_click.values())


def test_tombstoned_product_has_its_forecasts_tombstoned(shop: Shop) -> None:
    shop.order("chair", 1)
    for freq in ("1h", "1d"):
        shop.forecast("chair", freq)
    shop.send("products", None, key="chair")

    def withdrawn(records: list[Received]) -> bool:
        last = {r.key: r.value for r in records}
        return all(last.get(f"chair|{freq}".encode(), b"") is None for freq in ("1h", "1d"))

    assert shop.reader(shop.settings.topic_forecasts).wait_for(withdrawn)
    shop.send("products", {"event_time": now_ms(), "product_id": "chair", "title": "Chair"})
    shop.order("chair", 1)
    shop.forecast("chair", "1d", lambda f: f.observed == 2)


_ORDER: dict[str, Any] = {"product_id": "bad", "quantity": 1, "unit_price": 1}
_NEIGHBOUR = next(f"p{n}" for n in range(99) if murmur2_partition(f"p{n}", 2) == murmur2_partition("bad", 2))
_BAD: list[tuple[str, str, dict[str, Any] | bytes]] = [
    ("not_json", "orders", b"{"),
    ("not_json", "orders", b"\xff\xfe"),
    ("missing_field", "orders", {"product_id": "bad"}),
    ("wrong_type", "orders", _ORDER | {"event_time": "today"}),
    ("wrong_type", "orders", b"[1, 2]"),
    ("not_finite", "orders", b'{"event_time": 1, "product_id": "bad", "quantity": NaN, "unit_price": 1}'),
    ("not_finite", "orders", b'{"event_time": 1, "product_id": "bad", "quantity": 1e999, "unit_price": 1}'),
    ("unknown_kind", "orders", _ORDER | {"event_time": 1, "kind": "gift"}),
    ("unknown_action", "clicks", {"event_time": 1, "product_id": "bad", "action": "stare"}),
    ("bad_rating", "reviews", {"event_time": 1, "product_id": "bad", "rating": 6}),
    ("negative_price", "orders", _ORDER | {"event_time": 1, "unit_price": -1}),
    ("other_currency", "orders", _ORDER | {"event_time": 1, "currency": "SEK"}),
    ("far_future", "orders", _ORDER | {"event_time": now_ms() + 10**10}),
    ("too_large", "orders", b'{"pad": "' + b"x" * 10_000 + b'"}'),
    ("wrong_key", "orders", _ORDER | {"event_time": 1, "product_id": _NEIGHBOUR}),
    ("empty_product_id", "orders", _ORDER | {"event_time": 1, "product_id": ""}),
]


def _at_least(n: int, records: list[Received]) -> list[Received] | None:
    return records if len(records) >= n else None


def test_each_kind_of_bad_input_goes_to_the_dead_letters_and_nothing_stops(shop: Shop, worker: LocalWorker) -> None:
    for _, source, value in _BAD:
        shop.send(source, value, key="bad")
    for source in ("orders", "clicks", "reviews"):
        wanted = sorted(reason for reason, s, _ in _BAD if s == source)
        topic = getattr(shop.settings, f"topic_{source}")
        letters = shop.reader(f"{topic}.dlq").wait_for(partial(_at_least, len(wanted)))
        assert sorted(r.headers["shelfcast.reason"].decode() for r in letters) == wanted
        sent = {v if isinstance(v, bytes) else msgspec.json.encode(v) for _, s, v in _BAD if s == source}
        assert {r.value for r in letters} == sent
        for letter in letters:
            assert letter.headers["shelfcast.topic"] == topic.encode()
            assert int(letter.headers["shelfcast.offset"]) >= 0
    shop.order("after-bad", 1)
    shop.forecast("after-bad", "1d")
    assert worker.is_running


def test_record_in_a_foreign_partition_goes_to_the_dead_letters(shop: Shop) -> None:
    wrong = 1 - murmur2_partition("stray", shop.settings.partition_count)
    shop.send("orders", _ORDER | {"event_time": now_ms(), "product_id": "stray"}, partition=wrong)

    def arrived(records: list[Received]) -> Received | None:
        return next((r for r in records if r.headers["shelfcast.reason"] == b"wrong_partition"), None)

    letter = shop.reader(f"{shop.settings.topic_orders}.dlq").wait_for(arrived)
    assert letter.partition == wrong
    assert b"murmur2" in letter.headers["shelfcast.detail"]


def test_event_older_than_the_retention_goes_to_the_late_topic(shop: Shop) -> None:
    long_ago = now_ms() - (shop.settings.retention_1d + 2) * 86_400_000
    shop.order("old", 1, event_time=long_ago)
    records = shop.reader(f"{shop.settings.topic_orders}.late").wait_for(lambda rs: rs or None)
    assert json.loads(records[0].value)["product_id"] == "old"


def test_forecast_decodes_as_any_json_consumer_would_read_it(shop: Shop) -> None:
    shop.order("plain", 1.25)
    shop.forecast("plain", "1d")
    record = next(r for r in shop.reader(shop.settings.topic_forecasts).records if r.key == b"plain|1d")
    assert record.value is not None
    message = json.loads(record.value)
    assert message["observed"] == 1.25
    assert set(message) == set(Forecast.__struct_fields__)
