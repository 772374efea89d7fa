"""What the feature store costs: bytes an item and an event id, events a second, the time of a read, a worker's memory.

Bytes an item: order lines of two real shops, stored as a live worker would, in steps of at most an hour of the shop's
time, so that retention follows. Then every item gets an hourly and a daily forecast (the baseline's) and keeps its
marks, as if all were owed. The same sums in other shapes stand beside it, without items, forecasts and marks.

Events a second: a backlog in steps of 20,000 events, through `FeatureStore.apply` alone. Steps are made beforehand;
what is timed is the making of text, Redis, and its append-only file.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import redis

from benchmarks.report import cpu_s, show
from benchmarks.store_data import (
    RETENTION,
    TOPIC,
    Lines,
    Steps,
    batches,
    busy_batch,
    made_up_job,
    read_dunnhumby,
    read_online_retail,
)
from benchmarks.store_shapes import measure_shapes, used_bytes
from feature_store.calendar_time import ShopCalendar, bucket_of
from feature_store.items import NO_PRODUCT_STATE, Item
from feature_store.layout import STORED_FREQS, EventIds, ForecastSummary
from feature_store.store import Batch, Claim, Done, FeatureStore
from forecaster.baselines import empirical_forecast
from forecaster.contract import QUANTILE_LEVELS
from forecaster.inputs import Subject, build_inputs
from worker.local_stack import LocalRedis

_LIVE = Steps(most_lines=20_000, most_ms=3_600_000)
_BACKLOG = Steps(most_lines=20_000, most_ms=2**62)
_FORECAST_STEPS = {"1h": 48, "1d": 28}
_DATA = Path(__file__).parents[2] / "shared" / "data"
_PARTITIONS = 4
_READ_ITEMS, _READ_HOURS, _READS = 512, 336, 30
_SHAPED = 5_000  # items at most that are written in every shape; bit fields of more would fill the memory
_IDS = 200_000
_HOUR_MS = 3_600_000
_CUTOFF_MS = 1_763_733_600_000  # a Friday, 14:00 UTC


class Sizes(NamedTuple):
    """How much is measured."""

    claimed_items: int
    copied_items: int
    runs: int


class Speed(NamedTuple):
    """Of a backlog."""

    events_per_s: float
    redis_us_per_event: float
    python_us_per_event: float


@contextmanager
def fresh_redis(*, append_only: bool) -> Iterator[LocalRedis]:
    """An empty Redis of its own."""
    with tempfile.TemporaryDirectory() as directory, LocalRedis(Path(directory), append_only=append_only) as server:
        yield server


@asynccontextmanager
async def open_store(server: LocalRedis) -> Any:
    """A store on it."""
    store = FeatureStore(
        server.url, namespace="shelfcast", partition_count=_PARTITIONS, forecast_freqs=tuple(_FORECAST_STEPS)
    )
    try:
        yield store
    finally:
        await store.close()


async def apply_all(store: FeatureStore, claim: Claim, steps: Iterable[Batch]) -> None:
    """One after the other, remembered as a lane does."""
    for batch in steps:
        await store.apply(claim, batch)
        claim.positions.update({topic: after for topic, (_, after) in batch.positions.items()})
        claim.items.update(batch.items)


async def forecast_all(store: FeatureStore, claim: Claim, lines: Lines) -> None:
    """A forecast of every item at the end of the lines, by the baseline. Marks stay."""
    cutoff_ms = int(lines.event_time_ms[-1])
    for freq, items in itertools.product(_FORECAST_STEPS, _parts(list(claim.items.values()), _READ_ITEMS)):
        running = int(bucket_of(freq, np.array([cutoff_ms]), lines.time_zone)[0])
        names = [item.item_id for item in items]
        found = await store.read(claim, freq, names, freq, names, running - _READ_HOURS, running)
        subjects = [Subject(item, NO_PRODUCT_STATE) for item in items]
        calendar, steps = ShopCalendar(lines.time_zone), _FORECAST_STEPS[freq]
        outputs = empirical_forecast(build_inputs(freq, cutoff_ms, subjects, found.rows, calendar, [], steps), steps)
        q10, q50, q90 = (outputs.quantiles[:, :, QUANTILE_LEVELS.index(level)].tolist() for level in (0.1, 0.5, 0.9))
        done = [
            Done(name, None, _summary(running, cutoff_ms, list(values)))
            for name, *values in zip(names, outputs.mean.tolist(), q10, q50, q90, strict=True)
        ]
        await store.forecasts_done(claim, freq, done)


def _summary(running_bucket: int, cutoff_ms: int, quantities: Sequence[list[float]]) -> ForecastSummary:
    return ForecastSummary(
        "0123456789abcdef01234567",
        12,
        running_bucket,
        cutoff_ms,
        cutoff_ms + 60_123,
        "demand_forecaster",
        "1",
        False,
        *quantities,
    )


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


async def measure_memory(lines: Lines, copied_items: int) -> dict[str, Any]:
    """Bytes an item, by what they are for; of many more such items; and the sums in other shapes."""
    with fresh_redis(append_only=False) as server:
        client = redis.Redis.from_url(server.url, socket_timeout=60)
        before = used_bytes(client)
        async with open_store(server) as store:
            claim = await store.claim(0)
            await apply_all(store, claim, batches(lines, _LIVE))
            await forecast_all(store, claim, lines)
            read_ms = await time_reads(store, claim, _busiest(lines), int(lines.event_time_ms[-1]) // _HOUR_MS)
        used, items = used_bytes(client) - before, len(claim.items)
        by_use = {
            use: round(sum(client.memory_usage(key, samples=0) or 0 for key in client.keys(f"*:{use}*")) / items)
            for use in ("sums", "items", "forecasts", "dirty")
        }
        copied = copy_up(client, len(claim.items), copied_items)
        copied_bytes = round((used_bytes(client) - before) / copied)
        cutoff = lines.event_time_ms[-1:]
        oldest = {f: int(bucket_of(f, cutoff, lines.time_zone)[0]) - RETENTION[f] for f in STORED_FREQS}
        keys = sorted(client.keys("*:sums:*"))
        hashes: dict[str, Any] = {
            str(n): client.hgetall(key) for n, key in enumerate(keys[:: len(keys) // _SHAPED + 1])
        }
        shapes = measure_shapes(client, hashes, oldest)
        client.close()
    return {
        "items": items,
        "events": len(lines),
        "redis_bytes_per_item": round(used / items),
        "of_it": by_use,
        "copied": {
            "items": copied,
            "redis_bytes_per_item": copied_bytes,
            "gb_of_a_million_items": round(copied_bytes / 1e3, 2),
        },
        "sums_bytes_per_item_by_shape": shapes,
        "read_512_items_ms": read_ms,
    }


def copy_up(client: Any, items: int, wanted: int) -> int:
    """Copy all that stands of each item under other names until there are so many; returns how many there are."""
    sums = client.keys("*:sums:*")
    hashes = [key for use in ("items", "forecasts", "dirty") for key in client.keys(f"*:{use}*")]
    copies = max(wanted // items - 1, 0)
    for copy in range(copies):
        for part in _parts(sums, 1_000):
            pipe = client.pipeline(transaction=False)
            for key in part:
                pipe.copy(key, key + b"-%d" % copy)
            pipe.execute()
    for key in hashes:
        for part in _parts(list(client.hgetall(key).items()), 1_000):
            for copy in range(copies):
                client.hset(key, mapping={field + b"-%d" % copy: value for field, value in part})
    return items * (1 + copies)


def _busiest(lines: Lines) -> list[str]:
    """Items with the most lines in the hours that a read covers."""
    recent = lines.product[lines.event_time_ms >= lines.event_time_ms[-1] - _READ_HOURS * _HOUR_MS]
    counts = np.bincount(recent, minlength=len(lines.product_ids))
    return [lines.product_ids[n] for n in np.argsort(-counts)[:_READ_ITEMS].tolist()]


async def time_reads(store: FeatureStore, claim: Claim, items: Sequence[str], last_bucket: int) -> float:
    """Milliseconds, median of many."""
    took = []
    for _ in range(_READS):
        began = time.perf_counter()
        await store.read(claim, "1h", items, "1h", items, last_bucket - _READ_HOURS, last_bucket)
        took.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(took), 1)


async def measure_dense_read() -> float:
    """The same of items that sold, were clicked and reviewed in every hour."""
    last_bucket = _CUTOFF_MS // _HOUR_MS
    with fresh_redis(append_only=False) as server:
        async with open_store(server) as store:
            claim = await store.claim(0)
            batch = busy_batch(_READ_ITEMS, last_bucket - _READ_HOURS, _READ_HOURS + 1)
            await apply_all(store, claim, [batch])
            return await time_reads(store, claim, batch.series, last_bucket)


async def measure_speed(lines: Lines, how: Steps) -> Speed:
    """A backlog, into an empty Redis with an append-only file."""
    steps = list(batches(lines, how))
    with fresh_redis(append_only=True) as server:
        async with open_store(server) as store:
            claim = await store.claim(0)
            redis_before, python_before, began = cpu_s(server), time.process_time(), time.perf_counter()
            await apply_all(store, claim, steps)
            wall, python = time.perf_counter() - began, time.process_time() - python_before
            redis_cpu = cpu_s(server) - redis_before
    return Speed(round(len(lines) / wall), round(redis_cpu / len(lines) * 1e6, 2), round(python / len(lines) * 1e6, 2))


async def measure_ids(runs: int) -> dict[str, float]:
    """Ids of 36 characters: what they weigh, and what they cost a backlog of a made-up shop of 1,250 products."""
    job = made_up_job()
    off = [await measure_speed(job, _BACKLOG) for _ in range(runs)]
    on = [await measure_speed(job, _BACKLOG._replace(with_ids=True)) for _ in range(runs)]
    with fresh_redis(append_only=False) as server:
        client = redis.Redis.from_url(server.url, socket_timeout=60)
        async with open_store(server) as store:
            claim = await store.claim(0)
            before = used_bytes(client)
            ids = EventIds("orders", 1, [f"{n:036x}" for n in range(_IDS)])
            await apply_all(store, claim, [Batch({TOPIC: (-1, 1)}, {}, {}, {}, [], event_ids=[ids])])
        weight = (used_bytes(client) - before) / _IDS
        client.close()
    return {
        "redis_bytes_per_id": round(weight),
        "events_per_s_off": statistics.median(speed.events_per_s for speed in off),
        "events_per_s_on": statistics.median(speed.events_per_s for speed in on),
        "redis_us_per_event_off": statistics.median(speed.redis_us_per_event for speed in off),
        "redis_us_per_event_on": statistics.median(speed.redis_us_per_event for speed in on),
        "python_us_per_event_off": statistics.median(speed.python_us_per_event for speed in off),
        "python_us_per_event_on": statistics.median(speed.python_us_per_event for speed in on),
    }


async def measure_rss(items: int) -> float:
    """MB of a process that has all a worker imports and claims all partitions of so many items with forecasts."""
    flat = [[1.23] * steps for steps in _FORECAST_STEPS.values()]
    with fresh_redis(append_only=False) as server:
        async with open_store(server) as store:
            for partition in range(_PARTITIONS):
                claim = await store.claim(partition)
                names = [f"product-{n}" for n in range(partition, items, _PARTITIONS)]
                owned = {name: Item(name, name, "", _CUTOFF_MS - n, _CUTOFF_MS + n) for n, name in enumerate(names)}
                await apply_all(store, claim, [Batch({TOPIC: (-1, 1)}, {}, owned, {}, [])])
                for freq, quantities in zip(_FORECAST_STEPS, flat, strict=True):
                    running = _CUTOFF_MS // _HOUR_MS
                    done = [Done(name, None, _summary(running, _CUTOFF_MS, [quantities] * 4)) for name in names]
                    await store.forecasts_done(claim, freq, done)
        arguments = [server.url, str(_PARTITIONS), *_FORECAST_STEPS]
        program = [sys.executable, "-m", "benchmarks.store_claims", *arguments]
        told = await asyncio.to_thread(subprocess.run, program, capture_output=True, text=True, check=True)
    return float(json.loads(told.stdout)["rss_mb"])


async def measure(shops: dict[str, Lines], sizes: Sizes) -> dict[str, Any]:
    """All figures."""
    figures: dict[str, Any] = {}
    for shop, lines in shops.items():
        speeds = [await measure_speed(lines, _BACKLOG) for _ in range(sizes.runs)]
        figures[shop] = await measure_memory(lines, sizes.copied_items) | {
            "apply_events_per_s": statistics.median(speed.events_per_s for speed in speeds),
            "redis_us_per_event": statistics.median(speed.redis_us_per_event for speed in speeds),
            "python_us_per_event": statistics.median(speed.python_us_per_event for speed in speeds),
        }
    figures["event_ids"] = await measure_ids(sizes.runs)
    figures["read_512_items_ms"] = await measure_dense_read()
    figures[f"worker_rss_mb_{sizes.claimed_items // 1000}k_items"] = await measure_rss(sizes.claimed_items)
    return figures


@click.command()
@click.option(
    "--online-retail",
    type=click.Path(path_type=Path),
    default=_DATA / "online_retail_ii.parquet",
    help="Online Retail II as Parquet.  [default: ../shared/data/online_retail_ii.parquet]",
)
@click.option(
    "--dunnhumby",
    type=click.Path(path_type=Path),
    default=_DATA / "dunnhumby_transactions.parquet",
    help="Transactions of The Complete Journey as Parquet.  [default: ../shared/data/dunnhumby_transactions.parquet]",
)
@click.option("--items", default=100_000, show_default=True, help="How many a worker claims.")
@click.option("--copied-items", default=200_000, show_default=True, help="To how many the items of a shop are copied.")
@click.option("--runs", default=3, show_default=True, help="Of each backlog; the median counts.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(online_retail: Path, dunnhumby: Path, items: int, copied_items: int, runs: int, as_json: bool) -> None:
    """Memory and speed of the feature store."""
    shops = {
        "online_retail": _read("--online-retail", online_retail, read_online_retail),
        "dunnhumby": _read("--dunnhumby", dunnhumby, read_dunnhumby),
    }
    figures = asyncio.run(measure(shops, Sizes(items, copied_items, runs)))
    show("Feature store", ("figure", "value"), list(_rows(figures)), figures, as_json)


def _read(option: str, path: Path, read: Callable[[Path], Lines]) -> Lines:
    if not path.exists():
        raise click.UsageError(f"there is no {path}: name the file with {option}")
    return read(path)


def _rows(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _rows(value, f"{prefix}{name}: ")
        else:
            yield f"{prefix}{name.replace('_', ' ')}", f"{value:,}"


if __name__ == "__main__":
    command()
