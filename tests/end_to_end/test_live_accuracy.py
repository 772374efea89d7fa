"""Live workers that are killed while orders come in, many of them late: accuracy equals a recomputation from the
topics; a challenger is scored beside the published version, and takes its place once it is promoted."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from feature_store.accuracy_store import Rows
from forecaster.contract import MODEL_NAME
from tests.end_to_end.order_stream import wait_until
from tests.end_to_end.shop import Shop, now_ms
from tests.worker.score_oracle import Order, Rules, recomputed
from worker.accuracy import merged_rows
from worker.cli import shelfcast
from worker.errors import ModelError
from worker.local_stack import LocalBroker, LocalRedis, LocalStack
from worker.local_triton import MODEL_REPOSITORY, LocalTriton
from worker.schemas import Forecast

_DAY_MS = 86_400_000
_PRODUCTS = [f"item{n}" for n in range(6)]
_STEPS = {"1h": (1, 24), "1d": (1, 7, 28)}
_CORRECTION = {"1h": 12, "1d": 7}
Sums = dict[tuple[str, int, str, str, int], tuple[int, ...]]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """With two versions, of which the second is newer."""
    directory = tmp_path_factory.mktemp("challenger")
    for extra in ((), ("--precision", "bf16")):
        model = ("--model", MODEL_REPOSITORY / MODEL_NAME / "1", "--repository", directory / "models", *extra)
        made = CliRunner().invoke(shelfcast, ["export", *map(str, model)])
        assert made.exit_code == 0, made.output
    with LocalTriton(directory / "triton", directory / "models") as server:
        yield server


@pytest.fixture
def shop(
    servers: LocalStack, broker: LocalBroker, redis_server: LocalRedis, triton: LocalTriton, tmp_path: Path
) -> Iterator[Shop]:
    shop = Shop(servers, tmp_path, triton_url=triton.url, challenger_share="1")
    yield shop
    shop.close()


def run(shop: Shop, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    for name, value in shop.environment.items():
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(shelfcast, arguments, env=dict(os.environ))


def rows_of(shop: Shop) -> dict[str, Rows]:
    async def read() -> dict[str, Rows]:
        store = shop.store()
        try:
            return await merged_rows(store, shop.settings, _STEPS)
        finally:
            await store.close()

    return asyncio.run(read())


def scored(shop: Shop) -> Sums:
    return {
        (freq, name.day, name.model_version, name.segment, step): tuple(numbers)
        for freq, rows in rows_of(shop).items()
        for name, by_step in rows.items()
        if not name.segment.startswith(("against:", "inputs"))
        for step, numbers in by_step.items()
    }


def forecasts_of(shop: Shop) -> list[Forecast]:
    """Whatever has come by now."""
    reader, looks = shop.reader(shop.settings.topic_forecasts), itertools.count()
    reader.wait_for(lambda _: next(looks) > 40)
    return [msgspec.json.decode(r.value, type=Forecast) for r in reader.records if r.value is not None]


def expected(shop: Shop) -> Sums:
    """From the topics."""
    forecasts = forecasts_of(shop)
    orders = []
    for record in shop.reader(shop.settings.topic_orders).records:
        event = json.loads(record.value or b"")
        orders.append(Order(event["product_id"], record.offset, event["event_time"], event["quantity"] * 1000))
    rules = Rules(_STEPS, _CORRECTION, shop.settings.topic_orders, time_zone_of=lambda _: "Europe/London")
    return recomputed([(0, forecast) for forecast in forecasts], orders, rules).rows


def test_accuracy_of_workers_that_are_killed_equals_a_recomputation(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = random.Random(7)
    assert run(shop, monkeypatch, "model", "use", "1").exit_code == 0
    workers = [shop.start_worker(web_port=0)]
    assert isinstance(run(shop, monkeypatch, "model", "challenge", "9").exception, ModelError)
    assert run(shop, monkeypatch, "model", "challenge", "2").exit_code == 0  # of a worker that runs
    sent = 0
    for days_ago in range(6, -1, -1):
        for _ in range(3):
            for product in _PRODUCTS:
                late_ms = choose.choice([0, 0, 0, 1, 2]) * _DAY_MS + choose.randrange(3_600_000)
                shop.order(product, choose.randrange(1, 9), event_time=now_ms() - days_ago * _DAY_MS - late_ms)
                sent += 1
            if days_ago in (4, 1):
                workers[0].kill()
                workers[0].start()
        if days_ago == 3:
            workers.append(shop.start_worker(web_port=0))  # lanes go from one to the other
    shop.wait_for_positions("orders", sent)
    shop.reader(shop.settings.topic_orders).wait_for(lambda records: len(records) == sent)
    deadline = time.monotonic() + 60
    while (found := scored(shop)) != (wanted := expected(shop)):
        assert time.monotonic() < deadline, {k: (found.get(k), wanted.get(k)) for k in found.keys() | wanted.keys()}
    assert {freq for freq, *_ in found} == {"1h", "1d"}
    shown = run(shop, monkeypatch, "accuracy")
    assert shown.exit_code == 0, shown.output

    wait_until(lambda: any(name.segment == "against:2" for name in rows_of(shop)["1d"]))
    refused = run(shop, monkeypatch, "promote")
    assert "14 are asked for" in str(refused.exception), refused.output
    assert "chosen by `shelfcast model use 1`" in run(shop, monkeypatch, "model", "list").output
    done = run(shop, monkeypatch, "promote", "--force")
    assert done.exit_code == 0, done.output

    def has_switched() -> bool:
        shop.order("item0")
        return any(forecast.model_version == "2" for forecast in forecasts_of(shop))

    wait_until(has_switched)
    assert run(shop, monkeypatch, "model", "current").output == "2\n"
    assert "use version 2 already" in str(run(shop, monkeypatch, "promote").exception)
