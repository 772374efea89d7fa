"""Tables of past events and live topics together count each event once: real Redis, lanes without a broker."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from feature_store.store import FeatureStore
from tests.feature_store.stores import fresh_namespace
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
from tests.worker.records import records_of
from worker import metrics
from worker.backfill import Aside, Backfill, _past_events, _table_files, command
from worker.errors import ShelfcastError, TableError
from worker.lane import Lane
from worker.lane_state import LaneRules
from worker.settings import Settings, load_settings
from worker.transport import murmur2_partition

ROOT = Path(__file__).parent.parent.parent
END = int(dt.datetime(2026, 3, 30, 9, tzinfo=dt.UTC).timestamp() * 1000)
DAY_MS = 86_400_000
FIRST, JOIN = END - 30 * DAY_MS, END - DAY_MS // 2
SOURCES = ("orders", "clicks", "reviews")


def environment(redis_url: str, **more: str) -> dict[str, str]:
    return {
        "SHELFCAST_REDIS_URL": redis_url,
        "SHELFCAST_NAMESPACE": fresh_namespace(),
        "SHELFCAST_PARTITION_COUNT": "2",
        "SHELFCAST_TIME_ZONE": ZONE,
        **more,
    }


def backfill(variables: Mapping[str, str], *arguments: str) -> str:
    """`shelfcast backfill`; returns what it printed."""
    result = CliRunner().invoke(command, arguments, env=variables, catch_exceptions=True)
    if isinstance(result.exception, ShelfcastError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def live_rules(settings: Settings, store: FeatureStore) -> LaneRules:
    """Of lanes that read the live topics at END."""
    rules = Backfill(settings, store, [], Aside())._rules()
    sources = {getattr(settings, f"topic_{source}"): source for source in SOURCES}
    return dataclasses.replace(rules, sources=sources, now_ms=lambda: END)


def topic_of(settings: Settings, source: str, events: Sequence[Event], partition: int) -> list[Event]:
    """The records of a partition of a source's topic."""
    return [event for event in events if murmur2_partition(event["product_id"], settings.partition_count) == partition]


async def read_live(settings: Settings, topics: Mapping[str, Sequence[Event]], batch: int = 40) -> None:
    """Read the topics to their ends from the stored positions, each batch under a new owner: as if workers died."""
    store = FeatureStore(**settings.store_options())
    rules = live_rules(settings, store)
    for partition in range(settings.partition_count):
        for source, events in topics.items():
            topic = getattr(settings, f"topic_{source}")
            log = topic_of(settings, source, events, partition)
            while (at := (claim := await store.claim(partition)).positions.get(topic, 0)) < len(log):
                lane = Lane(store, claim, rules)
                await lane.handle(
                    records_of(topic, list(log[max(at - 3, 0) : at + batch]), first_offset=max(at - 3, 0))
                )
    await store.close()


def shuffled(events: Sequence[Event], seed: int) -> list[Event]:
    """About in the order of their times, as they arrive."""
    random_ = random.Random(seed)
    return sorted(events, key=lambda event: event["event_time"] + random_.randrange(3_600_000))


async def compare(variables: Mapping[str, str], events: dict[str, list[Event]]) -> int:
    """All events counted once; returns the number of cells compared."""
    settings = load_settings(variables)
    store = FeatureStore(**settings.store_options())
    found = await stored_cells(store, settings, products_of(events))
    expected = standing(expected_cells(events), settings, END)
    assert standing(found, settings, END) == expected
    items = {(e["product_id"], e["location_id"]) for e in events["orders"]}
    for partition in range(settings.partition_count):
        claim = await store.claim(partition)
        own = {pair for pair in items if murmur2_partition(pair[0], settings.partition_count) == partition}
        assert {(item.product_id, item.location_id) for item in claim.items.values()} == own
        assert set(claim.dirty["1d"]) == set(claim.items), "a forecast is owed to every item"
    await store.close()
    return len(expected)


def dropped() -> float:
    found = [metrics.REGISTRY.get_sample_value("shelfcast_counted_before_total", {"source": s}) for s in SOURCES]
    return sum(value or 0 for value in found)


async def test_a_table_and_live_topics_that_overlap_count_each_event_once_with_kills_in_the_middle(
    redis_url: str, tmp_path: Path
) -> None:
    variables, seed = environment(redis_url), 1
    events = make_events(seed, FIRST, END, 1500)
    arguments = ["--before", str(JOIN)]
    for source, some in events.items():  # the table goes on beyond the join, the topics begin before it
        table = [event for event in some if event["event_time"] < JOIN + DAY_MS // 4]
        random.Random(seed).shuffle(table)
        arguments.append(f"{source}={write_table(tmp_path / f'{source}.parquet', table)}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.worker.doomed_backfill", str(seed), "8", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    ends = json.loads(done.stdout)
    assert set(ends) == {-9, 0}, done.stderr
    assert ends.count(-9) >= 4
    assert ends[-1] == 0
    before = dropped()
    topics = {s: shuffled([e for e in some if e["event_time"] >= JOIN - DAY_MS], seed) for s, some in events.items()}
    await read_live(load_settings(variables), topics)
    overlap = sum(event["event_time"] < JOIN for some in topics.values() for event in some)
    assert dropped() - before >= overlap > 10
    assert await compare(variables, events) > 1_000
    assert "before" in await asyncio.to_thread(backfill, variables, *arguments)  # done again it changes nothing
    assert await compare(variables, events) > 1_000


async def test_a_table_with_offsets_is_the_topic_itself_up_to_its_last_offset(redis_url: str, tmp_path: Path) -> None:
    variables = environment(redis_url)
    settings = load_settings(variables)
    events = make_events(5, FIRST, END, 900)
    topics = {source: shuffled(some, 5) for source, some in events.items()}
    arguments = ["--offsets", "--column", "clicks.offset=kafka offset"]
    ends: dict[str, dict[int, int]] = {}
    for source, some in topics.items():
        rows: list[tuple[Event, int, int]] = []
        for partition in range(2):
            log = topic_of(settings, source, some, partition)
            end = len(log) * 2 // 3 + partition
            ends.setdefault(source, {})[partition] = end
            rows += [(event, partition, offset) for offset, event in enumerate(log[:end])]
        rows += random.Random(5).sample(rows, 20)  # the sink has written some twice
        random.Random(6).shuffle(rows)
        places = {"partition": [p for _, p, _ in rows]}
        places["kafka offset" if source == "clicks" else "offset"] = [offset for _, _, offset in rows]
        path = write_table(tmp_path / f"{source}.parquet", [event for event, _, _ in rows], **places)
        arguments.append(f"{source}={path}")
    assert "60 left" not in await asyncio.to_thread(backfill, variables, *arguments)
    store = FeatureStore(**settings.store_options())
    for partition in range(2):
        positions = await store.peek_positions(partition)
        assert positions == {getattr(settings, f"topic_{s}"): ends[s][partition] for s in SOURCES}
    await store.close()
    await read_live(settings, topics)
    assert await compare(variables, events) > 500


async def test_no_worker_starts_on_features_that_are_half_filled(redis_url: str, tmp_path: Path) -> None:
    variables = environment(redis_url)
    settings = load_settings(variables)
    events = make_events(1, FIRST, JOIN, 30)
    path = write_table(tmp_path / "orders.parquet", events["orders"])
    (files,) = _table_files([f"orders={path}"], [])
    table = _past_events(settings, files, JOIN)
    store = FeatureStore(**settings.store_options())
    filling = Backfill(settings, store, [table], Aside())
    await store.backfill_marks().begin(await store.claim(1), filling._mark(table))
    (finding,) = await store.check_server()
    assert "partition 1 is being filled from a table of orders" in finding
    await filling.run()
    assert await store.check_server() == []
    await store.close()


async def _fill(variables: Mapping[str, str], *arguments: str) -> str:
    return await asyncio.to_thread(backfill, variables, *arguments)


async def test_a_second_table_or_one_after_live_events_is_refused(redis_url: str, tmp_path: Path) -> None:
    variables = environment(redis_url)
    events = make_events(1, FIRST, END, 60)
    one = write_table(tmp_path / "one.parquet", events["orders"])
    two = write_table(tmp_path / "two.parquet", events["orders"][:-1])
    await _fill(variables, f"orders={one}", "--before", str(JOIN))
    for arguments in ((f"orders={two}", "--before", str(JOIN)), (f"orders={one}", "--before", str(JOIN + 1))):
        with pytest.raises(ShelfcastError, match="another table of orders before"):
            await _fill(variables, *arguments)
    await read_live(load_settings(variables), {"clicks": events["clicks"]})
    clicks = write_table(tmp_path / "clicks.parquet", events["clicks"])
    with pytest.raises(ShelfcastError, match="counted live clicks already"):
        await _fill(variables, f"clicks={clicks}", "--before", str(JOIN))


async def test_tables_of_any_kind_are_read_by_the_columns_that_are_named(redis_url: str, tmp_path: Path) -> None:
    events = make_events(3, FIRST, JOIN, 120)
    rows = [
        {
            "Sold at": dt.datetime.fromtimestamp(e["event_time"] / 1000, dt.UTC).isoformat(timespec="milliseconds"),
            "SKU": e["product_id"],
            "quantity": e["quantity"],
            "unit_price": e["unit_price"],
            "kind": e["kind"],
            "location_id": e["location_id"],
            "event_id": e["event_id"],
        }
        for e in events["orders"]
    ]
    csv = tmp_path / "orders.csv"
    csv.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows[:50])]))
    lines = tmp_path / "orders.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows[50:])))
    clicks = tmp_path / "clicks.jsonl"
    clicks.write_text("\n".join(map(json.dumps, events["clicks"])))
    reviews = write_table(tmp_path / "reviews.parquet", events["reviews"])
    variables = environment(redis_url)
    names = ["--column", "orders.event_time=Sold at", "--column", "orders.product_id=SKU"]
    tables = [f"orders={csv}", f"orders={lines}", f"clicks={clicks}", f"reviews={reviews}"]
    await _fill(variables, *tables, *names, "--before", "2026-03-30")
    assert await compare(variables, events) > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["orders=TABLE", "--column", "orders.quantity=pieces"], "no column 'pieces'.*--column orders.quantity=NAME"),
        (["orders=TABLE", "--column", "orders.qty=quantity"], "orders have no field 'qty'"),
        (["orders=TABLE", "--column", "clicks.action=what"], "of which there is a table"),
        (["sales=TABLE"], "SOURCE one of orders, clicks, reviews"),
        (["orders=missing.csv"], r"missing\.csv can't be read"),
        (["orders=TABLE.xls"], "files that end in .parquet, .csv"),
    ],
)
async def test_what_is_wrong_with_a_table_is_named(
    redis_url: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    path = str(write_table(tmp_path / "t.parquet", make_events(1, FIRST, JOIN, 20)["orders"]))
    with pytest.raises(ShelfcastError, match=message):
        await _fill(environment(redis_url), *(a.replace("TABLE", path) for a in arguments), "--before", str(JOIN))


async def test_a_table_of_more_partitions_than_the_topics_is_refused(redis_url: str, tmp_path: Path) -> None:
    events = make_events(1, FIRST, JOIN, 20)["orders"]
    path = write_table(tmp_path / "t.parquet", events, partition=[4] * len(events), offset=range(len(events)))
    with pytest.raises(TableError, match="partition 4, but SHELFCAST_PARTITION_COUNT is 2"):
        await _fill(environment(redis_url), f"orders={path}", "--offsets")


async def test_rows_that_cannot_be_used_are_told_and_kept(redis_url: str, tmp_path: Path) -> None:
    variables = environment(redis_url)
    events = make_events(4, FIRST, JOIN, 200)
    bad = [{**events["orders"][n], "unit_price": -1.0, "event_id": f"bad{n}"} for n in range(3)]
    path = write_table(tmp_path / "orders.parquet", [*events["orders"], *bad])
    rejects = tmp_path / "rejects.jsonl"
    text = await _fill(variables, f"orders={path}", "--before", str(JOIN), "--rejects", str(rejects))
    assert "rows that can't be used: 3 negative_price" in text
    kept = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert sorted(json.loads(line["value"])["event_id"] for line in kept) == ["bad0", "bad1", "bad2"]
    settings = load_settings(variables)
    store = FeatureStore(**settings.store_options())
    only = {"orders": events["orders"]}
    found = await stored_cells(store, settings, products_of(only))
    assert standing(found, settings, JOIN) == standing(expected_cells(only), settings, JOIN)
    await store.close()


async def test_rows_that_stand_twice_count_once_when_they_have_ids(redis_url: str, tmp_path: Path) -> None:
    variables = environment(redis_url)
    events = make_events(7, FIRST, JOIN, 300)
    again = [{**event, "event_time": event["event_time"] + DAY_MS // 2} for event in events["reviews"][::5]]
    arguments = ["--before", str(JOIN + DAY_MS)]
    for source, some in {**events, "reviews": [*events["reviews"], *again]}.items():
        arguments.append(f"{source}={write_table(tmp_path / f'{source}.parquet', some)}")
    await _fill(variables, *arguments)
    assert await compare(variables, events) > 200


def test_how_tables_join_has_to_be_said(redis_url: str) -> None:
    for arguments in (["orders=t.csv"], ["orders=t.csv", "--offsets", "--before", "2026-03-04"]):
        result: Any = CliRunner().invoke(command, arguments, env=environment(redis_url))
        assert "either --before TIME or --offsets" in result.output
