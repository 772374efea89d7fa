"""How many events a second one worker process takes from Kafka into exact features; plain Faust beside it.

Orders stand in the topic before a worker starts. The time runs from the first positions seen in Redis to the last, so
that start-up and the group's first join are outside of it; what was already applied at the first sight is not counted.
Then every cell is compared with a plain dict. Forecasting is put off (forecast_interval_ms of an hour, no model
server): what a worker owes is marked all the same, which is part of taking an event in.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import click
import redis

from benchmarks.report import cpu_s, show
from benchmarks.shop import Order, Zipf, environment, make_orders, send_orders
from feature_store.features import FEATURE_INDEX
from feature_store.store import FeatureStore
from worker.local_server import LocalServer
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker
from worker.settings import Settings, load_settings
from worker.topics import ensure_topics
from worker.transport import murmur2_partition

_PRODUCTS, _SEED = 5_000, 1
_SPAN_MS = 6 * 3_600_000  # of event time; the last order happens as the benchmark begins
_BUCKET_MS = {"5m": 300_000, "1h": 3_600_000, "1d": 86_400_000}  # the shop's zone is UTC
_UNITS, _LINES, _REVENUE = (FEATURE_INDEX[name] for name in ("units", "order_lines", "revenue"))
_POLL_S = 0.02
_PATIENCE_S = 300.0
_LOOK_UPS = 64  # at once

Cells = Counter[tuple[str, str, int, str]]  # (product, freq, bucket, what is summed)


class Run(NamedTuple):
    """One timed run of one program."""

    program: str
    events: int
    seconds: float
    cpu_s: dict[str, float]  # by process
    correct: bool

    @property
    def events_per_s(self) -> float:
        return self.events / self.seconds


class FaustPeer(LocalServer):
    """`faust_peer` as a process of its own; it ends by itself."""

    name: ClassVar[str] = "faust-peer"

    def __init__(self, directory: Path, arguments: Sequence[str]) -> None:
        super().__init__(directory)
        self._arguments = arguments

    def _command(self) -> list[str]:
        # -P: the modules beside the program are not to be found by their bare names.
        return [sys.executable, "-P", str(Path(__file__).with_name("faust_peer.py")), *self._arguments]

    def _answers(self) -> bool:
        return True


def recompute(orders: Iterable[Order], freqs: Iterable[str]) -> Cells:
    """Order by order: units, cents and order lines of each product, freq and bucket."""
    cells: Cells = Counter()
    for order in orders:
        for freq in freqs:
            cell = (order.product_id, freq, order.event_ms // _BUCKET_MS[freq])
            cells[*cell, "units"] += order.quantity
            cells[*cell, "cents"] += order.quantity * order.cents
            cells[*cell, "lines"] += 1
    return cells


async def _time_worker(stack: LocalStack, settings: dict[str, str], orders: Sequence[Order]) -> Run:
    parsed = load_settings(settings)
    store = _store(parsed)
    worker = LocalWorker(stack.directory, settings, parsed.namespace)
    servers: dict[str, LocalServer] = {"program": worker, "kafka": stack.kafka, "redis": stack.redis}

    async def applied() -> int:
        positions = await asyncio.gather(*(store.peek_positions(p) for p in range(parsed.partition_count)))
        return sum(found.get(parsed.topic_orders, 0) for found in positions)

    worker.launch()
    try:
        before = await _wait_until(worker, applied, lambda count: count > 0)
        began, cpu_before = time.monotonic(), {name: cpu_s(server) for name, server in servers.items()}
        await _wait_until(worker, applied, lambda count: count >= len(orders))
        seconds = time.monotonic() - began
        used = {name: round(cpu_s(server) - cpu_before[name], 2) for name, server in servers.items()}
    finally:
        worker.kill()  # it would first make the forecasts it owes
    correct = await _stored(store, parsed, {order.product_id for order in orders}) == recompute(orders, _BUCKET_MS)
    await store.close()
    return Run("shelfcast worker", len(orders) - before, seconds, used, correct)


async def _wait_until(
    worker: LocalWorker, applied: Callable[[], Coroutine[Any, Any, int]], enough: Callable[[int], bool]
) -> int:
    deadline = time.monotonic() + _PATIENCE_S
    while not enough(count := await applied()):
        if not worker.is_running:
            raise worker.failure("ended")
        if time.monotonic() > deadline:
            raise worker.failure(f"has applied {count} records in {_PATIENCE_S:g} s")
        await asyncio.sleep(_POLL_S)
    return count


def _store(settings: Settings) -> FeatureStore:
    return FeatureStore(**settings.store_options())


async def _stored(store: FeatureStore, settings: Settings, products: set[str]) -> Cells:
    """What stands in Redis, in whole units and cents; a part of one would make a cell differ."""
    cells: Cells = Counter()
    slots = asyncio.Semaphore(_LOOK_UPS)

    async def read(product: str) -> None:
        async with slots:
            found = await store.look_up(murmur2_partition(product, settings.partition_count), product, "")
        for freq, (buckets, values) in found.sums.items() if found else ():
            for bucket, row in zip(buckets.tolist(), values.tolist(), strict=True):
                cells[product, freq, bucket, "units"] = row[_UNITS] / 1000
                cells[product, freq, bucket, "cents"] = row[_REVENUE] / 10_000
                cells[product, freq, bucket, "lines"] = row[_LINES]

    await asyncio.gather(*(read(product) for product in products))
    return cells


def _time_peer(stack: LocalStack, settings: Settings, orders: Sequence[Order], wanted: int) -> Run:
    arguments = [settings.kafka_bootstrap_servers, settings.topic_orders, settings.redis_url, str(wanted)]
    peer = FaustPeer(stack.directory, arguments)
    servers: dict[str, LocalServer] = {"kafka": stack.kafka, "redis": stack.redis}
    cpu_before = {name: cpu_s(server) for name, server in servers.items()}
    peer.launch()
    try:
        peer.wait_until_ended(_PATIENCE_S)
        used = {name: round(cpu_s(server) - cpu_before[name], 2) for name, server in servers.items()}
        result = json.loads(peer.log_path.read_text(encoding="utf-8").splitlines()[-1])
    except ValueError as error:
        raise peer.failure("ended without a result") from error
    finally:
        peer.kill()
    numbers = [int(order_id.removeprefix("o")) for order_id in result["order_ids"]]
    expected = recompute([orders[number] for number in set(numbers)], ["5m"])
    client = redis.Redis.from_url(settings.redis_url, decode_responses=True)
    stored: Cells = Counter()
    for product in {product for product, *_ in expected}:
        for bucket, row in cast(dict[str, str], client.hgetall(f"peer:{product}")).items():
            units, cents = row.split(",")
            stored[product, "5m", int(bucket), "units"] = int(units)
            stored[product, "5m", int(bucket), "cents"] = int(cents)
        client.delete(f"peer:{product}")
    client.close()
    correct = stored == Counter({cell: value for cell, value in expected.items() if cell[3] != "lines"})
    used["program"] = round(result["cpu_s"], 2)
    return Run("Faust, take(1000)", result["events"], result["seconds"], used, correct)


def measure(events: int, peer_events: int, runs: int) -> dict[str, Any]:
    """Both programs in turn, `runs` times, on the same topic."""
    now_ms = time.time_ns() // 1_000_000
    orders = make_orders(events, Zipf(_PRODUCTS, now_ms - _SPAN_MS, now_ms, _SEED))
    with LocalStack(triton=False) as stack:
        timed: list[Run] = []
        for n in range(runs):
            variables = environment(stack, f"ingest{n}", "ingest", forecast_interval_ms=3_600_000)
            if n == 0:
                ensure_topics(load_settings(variables))
                send_orders(load_settings(variables), orders)
            timed.append(asyncio.run(_time_worker(stack, variables, orders)))
            timed.append(_time_peer(stack, load_settings(variables), orders, peer_events))
    return {"in_topic": events, "products": _PRODUCTS, "partitions": 4, "runs": runs} | {
        run.program: _summary([r for r in timed if r.program == run.program]) for run in timed[:2]
    }


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    rates = [run.events_per_s for run in runs]
    median = sorted(runs, key=lambda run: run.events_per_s)[len(runs) // 2]
    return {
        "events": median.events,
        "seconds": round(median.seconds, 2),
        "events_per_s": round(statistics.median(rates)),
        "events_per_s_range": [round(min(rates)), round(max(rates))],
        "cpu_us_per_event": {name: round(1e6 * used / median.events, 1) for name, used in median.cpu_s.items()},
        "cpu_s": median.cpu_s,
        "correct": all(run.correct for run in runs),
    }


@click.command()
@click.option("--events", default=200_000, show_default=True, help="Orders in the topic.")
@click.option("--peer-events", default=60_000, show_default=True, help="How many of them plain Faust reads.")
@click.option("--runs", default=3, show_default=True, help="The median is shown.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(events: int, peer_events: int, runs: int, as_json: bool) -> None:
    """Events a second of one worker process, from Kafka into exact features."""
    figures = measure(events, peer_events, runs)
    programs = [name for name, found in figures.items() if isinstance(found, dict)]
    slowest = min(figures[name]["events_per_s"] for name in programs)
    rows = [
        [
            name,
            f"{figures[name]['events_per_s']:,}",
            "{:,}–{:,}".format(*figures[name]["events_per_s_range"]),
            f"{figures[name]['events_per_s'] / slowest:.1f}",
            f"{figures[name]['cpu_s']['program']:.2f} for {figures[name]['events']:,}",
            f"{figures[name]['cpu_s']['redis']:.2f}",
            "yes" if figures[name]["correct"] else "NO",
        ]
        for name in programs
    ]
    header = ("program", "events/s", "range", "ratio", "CPU s", "Redis CPU s", "correct")
    show(f"Kafka to features, median of {runs}", header, rows, figures, as_json)
    sys.exit(0 if all(figures[name]["correct"] for name in programs) else 1)


if __name__ == "__main__":
    command()
