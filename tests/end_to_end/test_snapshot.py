"""A shop's whole way: features filled from a table, a live worker that is killed and saved while it counts, and a
second one that goes on from the snapshot in a namespace of its own. Both come to what all events amount to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from feature_store.recording_files import Recording
from feature_store.snapshots import calendar_entries
from tests.end_to_end.shop import PATIENCE_S, Shop, now_ms
from tests.worker.past_events import (
    ZONE,
    Event,
    expected_cells,
    make_events,
    products_of,
    standing,
    stored_cells,
    write_table,
)
from worker.cli import shelfcast
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker
from worker.settings import Settings, load_settings
from worker.topics import ensure_topics

_DAY_MS = 86_400_000


@pytest.fixture
def shop(servers: LocalStack, tmp_path: Path) -> Iterator[Shop]:
    servers.kafka.start()
    servers.redis.start()
    # Nobody is at the model server's address: forecasts come from the baseline.
    shop = Shop(servers, tmp_path, triton_url="127.0.0.1:9", triton_timeout_s=1, time_zone=ZONE)
    yield shop
    shop.close()


def _run(shop: Shop, *arguments: str, **settings: str) -> str:
    more = {f"SHELFCAST_{name.upper()}": value for name, value in settings.items()}
    result = CliRunner().invoke(shelfcast, arguments, env=shop.environment | more)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def _wait_for(settings: Settings, shop: Shop, ends: dict[str, int]) -> None:
    """Until all records of the topics are in the features of a namespace."""

    async def positions() -> dict[str, int]:
        store = type(shop.store())(**settings.store_options())
        found = [await store.peek_positions(p) for p in range(settings.partition_count)]
        await store.close()
        return {topic: sum(at.get(topic, 0) for at in found) for topic in ends}

    deadline = time.monotonic() + PATIENCE_S
    while (found := asyncio.run(positions())) != ends:
        assert time.monotonic() < deadline, f"at {found} of {ends}"
        time.sleep(0.05)


def _cells(settings: Settings, shop: Shop, events: dict[str, list[Event]], last_ms: int) -> dict[Any, int]:
    async def read() -> dict[Any, int]:
        store = type(shop.store())(**settings.store_options())
        cells = await stored_cells(store, settings, products_of(events))
        await store.close()
        return standing(cells, settings, last_ms)

    return asyncio.run(read())


def test_a_worker_goes_on_from_a_snapshot_of_one_that_was_filled_from_a_table_killed_and_counting(
    shop: Shop, tmp_path: Path
) -> None:
    settings = shop.settings
    ensure_topics(settings)
    end, join = now_ms(), now_ms() - _DAY_MS // 4
    events = make_events(3, end - 20 * _DAY_MS, end, 900)
    for some in events.values():
        some.sort(key=lambda event: event["event_time"])
    entry = {"start_time": 5, "end_time": 6, "event_name": "sale"}
    shop.send("calendar_global", {"event_time": 1, "entries": [entry]}, key="shop", partition=0)
    tables = [
        f"{source}={write_table(tmp_path / f'{source}.parquet', [e for e in some if e['event_time'] < join + 60_000])}"
        for source, some in events.items()
    ]
    assert "all rows are in the features" in _run(shop, "backfill", *tables, "--before", str(join))

    live = {source: [e for e in some if e["event_time"] >= join - 2 * _DAY_MS] for source, some in events.items()}
    ends = {getattr(settings, f"topic_{source}"): len(some) for source, some in live.items()}
    snapshot_is_made = threading.Event()

    def send() -> None:
        for source, some in live.items():
            for n, event in enumerate(some):
                if n == len(some) * 3 // 4 and source == "reviews":  # the rest comes after the snapshot
                    snapshot_is_made.wait(PATIENCE_S)
                shop.send(source, event)

    sending = threading.Thread(target=send)
    worker = shop.start_worker()
    sending.start()
    shop.wait_for_positions("orders", 5)
    worker.kill()
    worker.start()
    shop.wait_for_positions("orders", 15)
    told = _run(shop, "snapshot", "--output", str(tmp_path / "saved"))
    snapshot_is_made.set()
    assert "its lane waited" in told
    assert [e.event_name for e in calendar_entries(tmp_path / "saved")] == ["sale"]

    there = f"{settings.namespace}-again"
    settings_there = load_settings(shop.environment | {"SHELFCAST_NAMESPACE": there})
    assert "positions were kept" in _run(shop, "restore", str(tmp_path / "saved"), namespace=there)
    second: LocalWorker = shop.start_worker(namespace=there)
    sending.join()
    _wait_for(settings, shop, ends)
    _wait_for(settings_there, shop, ends)
    worker.stop()
    second.stop()
    expected = standing(expected_cells(events), settings, end)
    assert _cells(settings, shop, events, end) == expected
    assert _cells(settings_there, shop, events, end) == expected
    assert len(expected) > 1_000
    manifest = msgspec.json.decode((tmp_path / "saved" / "manifest.json").read_bytes())
    saved = sum(sum(p["fields"]["positions"].get(topic, 0) for topic in ends) for p in manifest["partitions"].values())
    assert 15 <= saved < sum(ends.values()), "the snapshot was made while records were counted"

    _run(shop, "record", "--snapshot", str(tmp_path / "saved"), "--to", "end", "--output", str(tmp_path / "recorded"))
    recording = Recording.open(tmp_path / "recorded")
    assert recording.verify() == []
    assert sum(recording.rows(topic) for topic in ends) == sum(ends.values()) - saved
    for p, fields in manifest["partitions"].items():
        positions = fields["fields"]["positions"]
        assert [recording.manifest.topics[topic].start_offsets[int(p)] for topic in ends] == [
            positions.get(topic, 0) for topic in ends
        ]
