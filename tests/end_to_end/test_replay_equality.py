"""The same recording, settings and model give the same forecasts, byte for byte: at any speed, with any number of
workers, with kills -9 of workers and of the replay itself in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

import msgspec
import pytest

from feature_store.accuracy_store import Rows
from feature_store.recording_files import Recording
from feature_store.store import FeatureStore
from tests.end_to_end.recordings import (
    DAY_MS,
    HOUR_MS,
    PARTITIONS,
    START_MS,
    category_of,
    shop_records,
    write_recording,
)
from tests.end_to_end.replay_process import ReplayProcess
from tests.worker.score_oracle import Order, Rules, recomputed
from worker.accuracy import merged_rows
from worker.local_stack import LocalStack
from worker.schemas import Accuracy, Forecast, Replenishment
from worker.testing import RawForecast, ReplayedForecasts, ReplayRun

_HOURS = 10  # from 16:00 UTC: midnights of all zones lie in it
_SETTINGS = {
    "SHELFCAST_TIME_ZONE": "Europe/Lisbon",
    "SHELFCAST_LOCATION_TIME_ZONES": "azores=Atlantic/Azores",
    "SHELFCAST_FORECAST_FREQS": "1h,1d",
    "SHELFCAST_CALIBRATED_FREQS": "1h,1d",
    "SHELFCAST_PREDICTION_LENGTH_1H": "6",
    "SHELFCAST_PREDICTION_LENGTH_1D": "4",
    "SHELFCAST_SCORED_STEPS_1H": "1,2,6",
    "SHELFCAST_SCORED_STEPS_1D": "1,2",
    "SHELFCAST_SCORE_CORRECTION_1H": "3",
    "SHELFCAST_ITEM_ACCURACY_FREQS": "1h,1d",
    "SHELFCAST_ACCURACY_INTERVAL_S": "1800",
    "SHELFCAST_KAFKA_SESSION_TIMEOUT_S": "3",  # what a kill costs here
}
_WORKERS = 3  # each is killed once
_SENDING_S = 6  # long enough for the first kills to hit while records still come


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    records = shop_records(products=24, hours=_HOURS, orders=500)
    return write_recording(tmp_path_factory.mktemp("recording"), records)


class Replayed(NamedTuple):
    """What a replay has published, and what stood in Redis at its end: by frequency and row of all partitions."""

    forecasts: ReplayedForecasts
    accuracy: list[RawForecast]
    sums: dict[str, Rows]
    orders: list[RawForecast]


_POLICIES = """
[default]
freq = "1h"
review_period = "2h"
lead_time = { "1h" = 0.5, "3h" = 0.5 }
service_level = 0.95
"""


def ordered(run: ReplayRun, directory: Path) -> list[RawForecast]:
    """What `shelfcast replenish` makes of a replay's forecasts and stock; run twice: the second time adds nothing."""
    policies = directory / "policies.toml"
    policies.write_text(_POLICIES, encoding="utf-8")
    command = [sys.executable, "-m", "worker", "replenish", "--policies", str(policies), "--replay", "--to-end"]
    for _ in range(2):
        done = subprocess.run(
            command, env=os.environ | run.environment, check=False, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
    return run.messages(run.settings.topic_replenishment)


def replayed(run: ReplayRun, directory: Path) -> Replayed:
    async def rows() -> dict[str, Rows]:
        store = FeatureStore(**run.settings.store_options())
        try:
            return await merged_rows(store, run.settings, run.settings.forecast_freqs)
        finally:
            await store.close()

    accuracy = run.messages(run.settings.topic_accuracy)
    return Replayed(run.forecasts(), accuracy, asyncio.run(rows()), ordered(run, directory))


@pytest.fixture(scope="module")
def all_of_reference(stack: LocalStack, recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    """One worker, as fast as possible, undisturbed."""
    directory = tmp_path_factory.mktemp("reference")
    with ReplayRun(recording.path, stack, directory, _SETTINGS) as run:
        run.send()
        run.start_worker()
        run.wait_until_done()
        return replayed(run, directory)


@pytest.fixture(scope="module")
def reference(all_of_reference: Replayed) -> ReplayedForecasts:
    return all_of_reference.forecasts


def by_key(raw: Sequence[RawForecast]) -> dict[tuple[int, bytes], list[bytes | None]]:
    """Messages by partition and key, in the order of offsets. One that follows itself was sent again after a kill, and
    stands here once."""
    out: dict[tuple[int, bytes], list[bytes | None]] = {}
    for partition, _, key, value in raw:
        values = out.setdefault((partition, key), [])
        if not values or values[-1] != value:
            values.append(value)
    return out


def assert_same(raw: Sequence[RawForecast], reference: Sequence[RawForecast]) -> None:
    found, expected = by_key(raw), by_key(reference)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == values, f"{key}: {_first_difference(found[key], values)}"


def _first_difference(found: Sequence[bytes | None], expected: Sequence[bytes | None]) -> str:
    for n, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return f"message {n} is\n{(one or b'')[:600]!r} instead of\n{(other or b'')[:600]!r}"
    return f"{len(found)} messages instead of {len(expected)}"


def test_the_reference_holds_all_that_may_differ(reference: ReplayedForecasts) -> None:
    forecasts = reference.forecasts
    assert {f.freq for f in forecasts} == {"1h", "1d"}
    assert {f.location_id for f in forecasts} == {"", "lisbon", "azores"}
    assert any(one.value is None for one in reference.raw)  # delisted products
    assert not any(f.degraded for f in forecasts)
    assert any(step.quantiles != step.quantiles_raw for f in forecasts for step in f.steps), "calibration adjusts some"
    assert all(f.issued_at == f.cutoff for f in forecasts)
    assert len({f.forecast_id for f in forecasts}) == len(forecasts) > 800
    # Refreshed at the close of the hour although nothing happened to it, and touched more than once in an hour.
    cutoffs = {f.cutoff for f in forecasts}
    assert {cutoff % HOUR_MS for cutoff in cutoffs} == {0, 5_000}
    assert START_MS + 9 * HOUR_MS < max(cutoffs) < START_MS + DAY_MS
    for values in by_key(reference.raw).values():
        revisions = [0 if v is None else msgspec.json.decode(v, type=Forecast).revision for v in values]
        assert all(after == before + 1 or after == 0 for before, after in pairwise(revisions))


def test_speed_number_of_workers_and_kills_change_nothing(
    stack: LocalStack, recording: Recording, all_of_reference: Replayed, tmp_path: Path
) -> None:
    choose = random.Random(3)
    with ReplayRun(recording.path, stack, tmp_path, _SETTINGS) as run:
        workers = run.start_workers(_WORKERS)
        options = ["--speed", str(_HOURS * 3600 / _SENDING_S)]
        replay = ReplayProcess(tmp_path / "killed", recording.path, run.shop_environment, *options)
        replay.launch()
        replay.kill_while_sending(run.settings, run.settings.topic_clock, 3)
        resumed = ReplayProcess(tmp_path / "resumed", recording.path, run.shop_environment, *options, "--resume")
        resumed.launch()
        share = 2 * _HOURS * PARTITIONS * 8 // 10 / _WORKERS  # of the ticks: one kill in each, none near the end
        for n, worker in enumerate(choose.sample(workers, _WORKERS)):
            _wait_for_ticks(run, int((n + choose.random()) * share))
            time.sleep(choose.random() * 0.05)  # anywhere within a tick: which of its seams is hit does not matter
            worker.kill()
            worker.launch()  # not waited for: the next kill may come before the others have taken over its lanes
        resumed.output()
        assert run.send(resume=True).records == 0
        run.wait_until_done()
        found = replayed(run, tmp_path)
    assert_same(found.forecasts.raw, all_of_reference.forecasts.raw)
    assert_same(found.accuracy, all_of_reference.accuracy)
    assert found.sums == all_of_reference.sums
    assert_same(found.orders, all_of_reference.orders)
    made = [msgspec.json.decode(order.value or b"", type=Replenishment) for order in found.orders]
    assert len({order.replenishment_id for order in made}) == len(made) > 10
    assert any(name.segment == "inputs" for name in found.sums["1d"])
    assert sums_by_name(found.sums) == recomputed_sums(recording, found.forecasts)


def sums_by_name(sums: dict[str, Rows]) -> dict[tuple[str, int, str, str, int], tuple[int, ...]]:
    return {
        (freq, name.day, name.model_version, name.segment, step): tuple(numbers)
        for freq, rows in sums.items()
        for name, by_step in rows.items()
        if name.segment != "inputs"
        for step, numbers in by_step.items()
    }


def recomputed_sums(
    recording: Recording, forecasts: ReplayedForecasts
) -> dict[tuple[str, int, str, str, int], tuple[int, ...]]:
    """Order by order and forecast by forecast, from what was recorded and what was sent."""
    lives: Counter[tuple[int, bytes]] = Counter()
    messages = []
    for partition, _, key, value in forecasts.raw:
        if value is None:
            lives[partition, key] += 1
        else:
            messages.append((lives[partition, key], msgspec.json.decode(value, type=Forecast)))
    rules = Rules(
        steps={"1h": (1, 2, 6), "1d": (1, 2)},
        correction={"1h": 3, "1d": 7},
        orders_topic="replay.shop.orders.v1",
        time_zone_of=lambda item_id: "Atlantic/Azores" if item_id.endswith("@azores") else "Europe/Lisbon",
        category_of=lambda item_id: category_of(unquote(item_id.partition("@")[0])),
    )
    return recomputed(messages, counted_orders(recording), rules).rows


def counted_orders(recording: Recording) -> Iterator[Order]:
    """Sales that a worker counts, with their offsets in the replay's topic."""
    seen: set[str] = set()
    next_offset: Counter[int] = Counter()
    for rows in recording.merged(["shop.orders.v1"]):
        for partition, timestamp_ms, key, value in zip(
            rows.partition.tolist(), rows.timestamps_ms.tolist(), rows.keys, rows.values, strict=True
        ):
            offset = next_offset[partition]
            next_offset[partition] += 1
            try:
                event = json.loads(value or b"")
            except ValueError:
                continue
            is_late = event["event_time"] < timestamp_ms - 400 * DAY_MS
            is_future = event["event_time"] > timestamp_ms + HOUR_MS
            is_counted = key == event["product_id"].encode() and not is_late and not is_future
            if is_counted and event["event_id"] not in seen:
                seen.add(event["event_id"])
                item_id = quote(event["product_id"], safe="") + ("@" + event["location_id"]).rstrip("@")
                sold = event["quantity"] * 1000 if event["kind"] == "sale" else 0
                yield Order(item_id, offset, event["event_time"], sold)


def test_accuracy_equals_a_recomputation_from_recorded_orders_and_forecasts(
    recording: Recording, all_of_reference: Replayed
) -> None:
    expected = recomputed_sums(recording, all_of_reference.forecasts)
    assert sums_by_name(all_of_reference.sums) == expected
    assert {(freq, step) for freq, _, _, _, step in expected} >= {("1h", 1), ("1h", 2), ("1h", 6), ("1d", 1)}
    last = {
        (partition, key): msgspec.json.decode(values[-1] or b"", type=Accuracy)
        for (partition, key), values in by_key(all_of_reference.accuracy).items()
    }
    counts = {kind: sum(m.segment_kind == kind for m in last.values()) for kind in ("all", "category", "item")}
    assert min(counts.values()) > 3, counts


def _wait_for_ticks(run: ReplayRun, count: int) -> None:
    deadline = time.monotonic() + 60
    while run.ticks_done() < count:
        assert time.monotonic() < deadline
