"""How a worker starts, refuses to start, stops, and outlives what it depends on."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.conftest import empty_redis
from tests.end_to_end.shop import PATIENCE_S, Shop, now_ms
from worker.cli import shelfcast
from worker.errors import LocalStackError, SettingsError
from worker.local_stack import LocalRedis, LocalStack
from worker.local_triton import LocalTriton


@pytest.fixture
def open_shop(stack: LocalStack, tmp_path: Path) -> Iterator[Any]:
    shops: list[Shop] = []

    def open_(**settings: Any) -> Shop:
        shops.append(Shop(stack, tmp_path, **settings))
        return shops[-1]

    yield open_
    for shop in shops:
        shop.close()


def test_producer_with_another_partitioner_stops_the_worker_with_the_remedy(open_shop: Any) -> None:
    shop = open_shop(partition_count=4, reject_window=50)
    worker = shop.start_worker()
    for n in range(300):
        order = {"event_time": now_ms(), "product_id": f"p{n}", "quantity": 1, "unit_price": 1}
        shop.send("orders", order, partitioner="consistent_random")
        if not worker.is_running:
            break
    worker.wait_until_ended(PATIENCE_S)
    worker.stop()
    assert worker.exit_code == 1
    (reason,) = [line for line in worker.log_path.read_text().splitlines() if line.startswith("error: ")]
    assert "partitioner=murmur2" in reason


def test_sigterm_drains_and_exits_0_with_the_group_at_the_stored_positions(open_shop: Any) -> None:
    shop = open_shop(forecast_interval_ms=5_000)
    worker = shop.start_worker()
    for n in range(40):
        shop.order(f"p{n}", 1)
    shop.forecast("p0", "1d")  # the first round; what is touched from now on is owed until the worker drains
    for n in range(40):
        shop.order(f"p{n}", 1)
    positions = shop.wait_for_positions("orders", 80)
    worker.stop()
    assert worker.exit_code == 0
    for n in range(40):
        shop.forecast(f"p{n}", "1d", lambda f: f.observed == 2)

    config = {"bootstrap.servers": shop.settings.kafka_bootstrap_servers, "group.id": shop.settings.namespace}
    consumer = Consumer(config)
    asked = [TopicPartition(shop.settings.topic_orders, p) for p in range(shop.settings.partition_count)]
    committed = {tp.partition: tp.offset for tp in consumer.committed(asked, timeout=15)}
    consumer.close()
    assert committed == positions


def test_triton_away_means_baseline_forecasts_and_back_by_itself(open_shop: Any, tmp_path: Path) -> None:
    with LocalTriton(tmp_path, Path("triton_models")) as triton:
        shop = open_shop(triton_url=triton.url, triton_timeout_s=1)
        shop.start_worker()
        shop.order("mug", 2)
        assert not shop.forecast("mug", "1d").degraded
        triton.kill()
        shop.order("mug", 3)
        stand_in = shop.forecast("mug", "1d", lambda f: f.observed == 5)
        assert stand_in.degraded
        assert stand_in.model_name == "empirical"
        assert stand_in.steps[0].quantiles[0] >= 5
        triton.start()
        # Nothing more is ordered: what was forecast by the baseline is forecast anew.
        again = shop.forecast("mug", "1d", lambda f: f.revision > stand_in.revision and not f.degraded)
        assert again.observed == 5


def test_worker_started_again_goes_on_where_it_was(open_shop: Any) -> None:
    shop = open_shop()
    first = shop.start_worker()
    shop.order("mug", 2)
    before = shop.forecast("mug", "1d")
    first.kill()
    shop.order("mug", 5)
    shop.start_worker()
    after = shop.forecast("mug", "1d", lambda f: f.observed == 7)
    assert after.revision > before.revision


def test_killed_worker_leaves_no_files(open_shop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))  # handed on to the worker
    shop = open_shop()
    worker = shop.start_worker()
    shop.order("mug")
    shop.forecast("mug", "1d")
    worker.kill()
    assert [*temporary.iterdir(), *worker.directory.iterdir()] == []


def test_redis_emptied_under_a_worker_is_rebuilt_from_the_topics(open_shop: Any, redis_server: LocalRedis) -> None:
    shop = open_shop()
    worker = shop.start_worker()
    shop.order("mug", 2)
    shop.forecast("mug", "1d")
    empty_redis(redis_server)
    shop.order("mug", 5)
    rebuilt = shop.forecast("mug", "1d", lambda f: f.observed == 7)
    assert rebuilt.positions[shop.settings.topic_orders] == 2
    assert worker.is_running


def test_topics_with_another_partition_count_are_refused_by_name(open_shop: Any) -> None:
    shop = open_shop()
    admin = AdminClient({"bootstrap.servers": shop.settings.kafka_bootstrap_servers})
    for future in admin.create_topics([NewTopic(shop.settings.topic_clicks, 3, 1)]).values():
        future.result()
    worker = shop.new_worker()
    with pytest.raises(LocalStackError, match=f"topic {shop.settings.topic_clicks} has 3 partitions, 2 are needed"):
        worker.start(PATIENCE_S)


def _shelfcast(shop: Shop, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "160", **shop.environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_check_names_what_is_missing_and_then_finds_everything_fit(open_shop: Any) -> None:
    shop = open_shop()
    found = _shelfcast(shop, "check")
    assert found.returncode == 1
    assert f"missing topics: {shop.settings.topic_calendar_global}" in found.stdout
    assert _shelfcast(shop, "check", "--create-topics").returncode == 0
    shop.send("orders", {"event_time": 1, "product_id": "x", "quantity": 1, "unit_price": 1})
    fit = _shelfcast(shop, "check")
    assert fit.returncode == 0, fit.stdout
    assert fit.stdout.count("ok ") == 6
    for n in range(8):
        shop.send("orders", {}, key=f"p{n}", partition=0)
    misplaced = _shelfcast(shop, "check")
    assert misplaced.returncode == 1
    assert "partitioner=murmur2" in misplaced.stdout


def test_check_names_servers_that_do_not_answer(open_shop: Any) -> None:
    shop = open_shop(
        kafka_bootstrap_servers="127.0.0.1:9", redis_url="redis://:secret@127.0.0.1:9/0", triton_url="127.0.0.1:9"
    )
    found = _shelfcast(shop, "check")
    assert found.returncode == 1
    for remedy in ("SHELFCAST_KAFKA_BOOTSTRAP_SERVERS", "SHELFCAST_REDIS_URL", "SHELFCAST_TRITON_URL"):
        assert remedy in found.stdout
    assert "secret" not in found.stdout


def test_show_prints_an_item_as_a_person_reads_it(open_shop: Any) -> None:
    shop = open_shop()
    shop.start_worker()
    shop.order("85123A", 3, unit_price=2.55)
    shop.forecast("85123A", "1d")
    shop.wait_for_summary("85123A", "1d")
    shown = _shelfcast(shop, "show", "85123A")
    assert shown.returncode == 0, shown.stderr
    assert "85123A" in shown.stdout
    assert "7.65" in shown.stdout  # revenue: 3 at 2.55
    assert "revision 1" in shown.stdout
    absent = _shelfcast(shop, "show", "nothing")
    assert absent.returncode == 1
    assert "no orders of 'nothing'" in absent.stderr


def test_misspelt_setting_is_named() -> None:
    result = CliRunner().invoke(shelfcast, ["worker"], env={"SHELFCAST_REDIS_ULR": "redis://x"})
    assert isinstance(result.exception, SettingsError)
    assert "SHELFCAST_REDIS_ULR" in str(result.exception)


def test_sigint_also_ends_with_exit_0(open_shop: Any) -> None:
    shop = open_shop()
    worker = shop.start_worker()
    worker.send_signal(signal.SIGINT)
    worker.wait_until_ended(PATIENCE_S)
    worker.stop()
    assert worker.exit_code == 0
