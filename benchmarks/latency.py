"""From an order's produce() to the first forecast that has seen it, as a consumer of the output topic meets it.

A live worker (clock = wall) on the embedded broker, Redis and Triton. Orders of random items leave at an even rate,
whether or not forecasts keep up. A forecast has seen an order when its positions cover the order's offset. Two months
of history and a warm-up at the same rate come before the orders that count.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition

from benchmarks.report import cpu_s, show
from benchmarks.shop import Order, Zipf, encode, environment, make_orders, send_orders
from worker.errors import TopicError
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker
from worker.settings import Settings, load_settings
from worker.topics import ensure_topics, kafka_client_config

_FREQS = ("1d", "1h,1d")
_HISTORY_MS = 60 * 86_400_000
_HISTORY_ORDERS = 120  # an item
_WARM_UP_S = 3.0
_PATIENCE_S = 60.0


class _Seen(msgspec.Struct):
    """The fields of a forecast that are needed here."""

    item_id: str
    freq: str
    positions: dict[str, int]
    degraded: bool = False


class _Arrival(NamedTuple):
    clock_s: float
    position: int


class _Sent(NamedTuple):
    item_id: str
    clock_s: float
    offset: int


class ForecastReader:
    """Reads the output topic in a thread of its own, and notes when which position of the orders was first covered."""

    def __init__(self, settings: Settings) -> None:
        config = kafka_client_config(settings) | {"group.id": "latency", "fetch.wait.max.ms": 10}
        self._consumer = Consumer(config)
        self._consumer.assign(
            [TopicPartition(settings.topic_forecasts, p, OFFSET_BEGINNING) for p in range(settings.partition_count)]
        )
        self._orders_topic = settings.topic_orders
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._changed = threading.Condition()
        self.arrivals: dict[tuple[str, str], list[_Arrival]] = defaultdict(list)  # by (item_id, freq), oldest first
        self.degraded = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._consumer.close()

    def wait_until_seen(self, offsets: Mapping[str, int], freqs: Iterable[str]) -> None:
        """Wait until each item has a forecast of each freq that covers the offset given for it."""
        wanted = [(item_id, freq, offset) for item_id, offset in offsets.items() for freq in freqs]

        def seen() -> bool:
            return all(found and found[-1].position > n for i, f, n in wanted for found in (self.arrivals.get((i, f)),))

        with self._changed:
            if not self._changed.wait_for(seen, _PATIENCE_S):
                raise TopicError(f"forecasts of the last orders did not come within {_PATIENCE_S:g} s")

    def _run(self) -> None:
        decoder = msgspec.json.Decoder(_Seen)
        while not self._stopping.is_set():
            message = self._consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            clock_s, seen = time.monotonic(), decoder.decode(message.value() or b"")
            with self._changed:
                arrival = _Arrival(clock_s, seen.positions.get(self._orders_topic, 0))
                self.arrivals[seen.item_id, seen.freq].append(arrival)
                self.degraded += seen.degraded
                self._changed.notify_all()


class SteadyOrders:
    """Sends orders at an even rate and keeps when each left and at which offset it stands."""

    def __init__(self, settings: Settings, items: Sequence[str]) -> None:
        config = kafka_client_config(settings) | {"partitioner": "murmur2", "linger.ms": 0}
        self._producer = Producer(config)
        self._topic = settings.topic_orders
        self._items = items
        self._random = random.Random(1)  # noqa: S311 - a seeded choice of items
        self._number = 0

    def send(self, rate: float, seconds: float) -> list[_Sent]:
        """Send `rate` orders a second; returns them once Kafka has all."""
        sent: list[_Sent] = []
        began = time.monotonic()
        for n in range(round(rate * seconds)):
            time.sleep(max(began + n / rate - time.monotonic(), 0))
            order = Order(self._number, time.time_ns() // 1_000_000, self._random.choice(self._items), 1, 250)
            self._number += 1
            noting = self._noting(order.product_id, time.monotonic(), sent)
            self._producer.produce(self._topic, encode(order), order.product_id.encode(), on_delivery=noting)
            self._producer.poll(0)
        self._producer.flush()
        return sent

    def _noting(self, item_id: str, clock_s: float, sent: list[_Sent]) -> Any:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                raise TopicError(f"Kafka did not take an order: {error.str()}")
            sent.append(_Sent(item_id, clock_s, message.offset() or 0))

        return delivered


def _latencies_ms(sent: Sequence[_Sent], reader: ForecastReader, freq: str) -> list[float]:
    out = []
    for order in sent:
        first = next(a for a in reader.arrivals[order.item_id, freq] if a.position > order.offset)
        out.append(1000 * (first.clock_s - order.clock_s))
    return out


def _measure_one(stack: LocalStack, freqs: str, rate: float, seconds: float, items: int) -> dict[str, Any]:
    variables = environment(stack, f"latency-{freqs.replace(',', '-')}-{rate:g}", forecast_freqs=freqs)
    settings = load_settings(variables)
    ensure_topics(settings)
    now_ms = time.time_ns() // 1_000_000
    history = make_orders(items * _HISTORY_ORDERS, Zipf(items, now_ms - _HISTORY_MS, now_ms, seed=1))
    placed = send_orders(settings, history)
    last = {order.product_id: placed[order.number][1] for order in history}
    worker, reader = LocalWorker(stack.directory, variables, settings.namespace), ForecastReader(settings)
    try:
        worker.start()
        reader.start()
        reader.wait_until_seen(last, settings.forecast_freqs)
        orders = SteadyOrders(settings, sorted(last))
        orders.send(rate, _WARM_UP_S)
        began, before = time.monotonic(), {s.name: cpu_s(s) for s in (worker, stack.triton, stack.kafka, stack.redis)}
        sent = orders.send(rate, seconds)
        ended, after = time.monotonic(), {s.name: cpu_s(s) for s in (worker, stack.triton, stack.kafka, stack.redis)}
        reader.wait_until_seen({order.item_id: order.offset for order in sent}, settings.forecast_freqs)
    finally:
        reader.stop()
        worker.kill()
    made = sum(began <= a.clock_s < ended for found in reader.arrivals.values() for a in found)
    names = {worker.name: "worker"}
    return {
        "orders_per_s": rate,
        "forecasts_per_s": round(made / (ended - began), 1),
        "degraded": reader.degraded,
        "latency_ms": {freq: _percentiles(_latencies_ms(sent, reader, freq)) for freq in settings.forecast_freqs},
        "cores_used": {names.get(n, n): round((after[n] - before[n]) / (ended - began), 2) for n in before},
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {name: round(float(np.percentile(values, q)), 1) for name, q in (("p50", 50), ("p99", 99), ("max", 100))}


def measure(rates: Sequence[float], seconds: float, items: int) -> dict[str, Any]:
    """Every rate with daily forecasts only, then with hourly and daily ones."""
    with LocalStack() as stack:
        cases = {
            f"{freqs} at {rate:g}/s": _measure_one(stack, freqs, rate, seconds, items)
            for freqs in _FREQS
            for rate in rates
        }
    return {"seconds": seconds, "items": items, "partitions": 4, "cases": cases}


@click.command()
@click.option("--rate", "rates", multiple=True, type=float, default=(20.0, 100.0), show_default=True, help="Orders/s.")
@click.option("--seconds", default=20.0, show_default=True, help="How long each rate is kept up.")
@click.option("--items", default=200, show_default=True, help="Items ordered, all equally often.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(rates: Sequence[float], seconds: float, items: int, as_json: bool) -> None:
    """Time from an order's produce() to the first forecast that has seen it."""
    figures = measure(rates, seconds, items)
    rows = [
        [
            f"{name}: {freq}",
            f"{latency['p50']:.0f}",
            f"{latency['p99']:.0f}",
            f"{latency['max']:.0f}",
            f"{case['forecasts_per_s']:.0f}",
            " ".join(f"{cores:.2f}" for cores in case["cores_used"].values()),
        ]
        for name, case in figures["cases"].items()
        for freq, latency in case["latency_ms"].items()
    ]
    header = ("forecasts", "p50 ms", "p99 ms", "max ms", "forecasts/s", "cores: worker, Triton, Kafka, Redis")
    show("From produce() to the forecast that has seen the order", header, rows, figures, as_json)


if __name__ == "__main__":
    command()
