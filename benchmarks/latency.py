"""From an order's produce() to the first forecast that has seen it, as a consumer of the output topic meets it.

A live worker (clock = wall) on the embedded broker, Redis and Triton. Two orders, seven clicks and a review of ten
events leave at an even rate, whether or not forecasts keep up; all of them touch their item, so that its forecast is
owed. A forecast has seen an order when its positions cover the order's offset. Two months of history and a warm-up at
the same rate come before the orders that count.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from numpy.typing import NDArray

from benchmarks import latency_figures as maths
from benchmarks.forecast import make_inputs, time_model
from benchmarks.mix import SOURCES
from benchmarks.program import Program
from benchmarks.report import cpu_s, show
from benchmarks.shop import Zipf, encode, environment, make_orders, product_name, send
from benchmarks.steady_sender import Sending
from forecaster.contract import MODEL_NAME
from worker.errors import LocalStackError
from worker.forecast_client import ForecastClient
from worker.local_server import LocalServer
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker
from worker.settings import Settings, load_settings
from worker.topics import ensure_topics, kafka_client_config
from worker.transport import murmur2_partition

# Every fetch costs the embedded broker more the more its topics hold, and full cores delay all: few of them, then.
_GATHERED: dict[str, Any] = {"kafka_fetch_max_wait_ms": 50, "kafka_fetch_min_bytes": 100_000}
_RATES = (1000.0, 5000.0, 20_000.0)
_HISTORY_MS = 60 * 86_400_000
_HISTORY_ORDERS = 120  # an item, on average
_WARM_UP_S = 5.0
_QUARTERS = 4  # of the time that counts, told one by one: what grows meanwhile shows there
_PATIENCE_S = 600.0  # a worker that can't keep up is measured too
_MODEL_S = 3.0
_ORDERS = SOURCES.index("orders")


class _Seen(msgspec.Struct):
    """The fields of a forecast that are needed here."""

    item_id: str
    freq: str
    positions: dict[str, int]
    degraded: bool = False


class Arrivals:
    """Forecasts of one item and freq in order of arrival."""

    def __init__(self) -> None:
        self.clock_s: list[float] = []
        self.position: list[int] = []
        self.reached = 0


class ForecastReader:
    """Reads the output topic, and notes which position of the orders each forecast covers and when it came."""

    def __init__(self, settings: Settings) -> None:
        # The embedded broker does not look for new records before the wait is up.
        config = kafka_client_config(settings) | {"group.id": "latency", "fetch.wait.max.ms": 10}
        self._consumer = Consumer(config)
        self._consumer.assign(
            [TopicPartition(settings.topic_forecasts, p, OFFSET_BEGINNING) for p in range(settings.partition_count)]
        )
        self._orders_topic = settings.topic_orders
        self._decode = msgspec.json.Decoder(_Seen).decode
        self.arrivals: dict[tuple[str, str], Arrivals] = defaultdict(Arrivals)  # by (item_id, freq)
        self.degraded = 0

    def read_until(self, done: Callable[[], bool], what: str, *, patience_s: float = _PATIENCE_S) -> None:
        """Read until `done()`, which is asked some times a second. Raises LocalStackError when that takes too long."""
        deadline_s, ask_s = time.monotonic() + patience_s, 0.0
        while True:
            message = self._consumer.poll(0.05)
            now_s = time.monotonic()
            if message is not None and message.error() is None and message.value() is not None:
                self._note(self._decode(message.value() or b""), now_s)
            if now_s > ask_s:
                if done():
                    return
                if now_s > deadline_s:
                    raise LocalStackError(f"{what} did not come within {patience_s:g} s")
                ask_s = now_s + 0.1

    def has_seen(self, offsets: Mapping[str, int], freqs: Sequence[str]) -> Callable[[], bool]:
        """Does each item have a forecast of each freq that covers the offset given for it?"""
        missing = {(item, freq): offset for item, offset in offsets.items() for freq in freqs}

        def seen() -> bool:
            for key in [key for key, offset in missing.items() if self.arrivals[key].reached > offset]:
                del missing[key]
            return not missing

        return seen

    def close(self) -> None:
        self._consumer.close()

    def _note(self, seen: _Seen, now_s: float) -> None:
        arrivals, position = self.arrivals[seen.item_id, seen.freq], seen.positions.get(self._orders_topic, 0)
        arrivals.clock_s.append(now_s)
        arrivals.position.append(position)
        arrivals.reached = max(arrivals.reached, position)
        self.degraded += seen.degraded


class Sent(NamedTuple):
    """Events in order of sending, (event,) each; `offset` is of the whole topic."""

    clock_s: NDArray[np.float64]
    item: NDArray[np.int64]
    source: NDArray[np.int64]
    offset: NDArray[np.int64]

    def take(self, which: NDArray[np.bool_]) -> Sent:
        return Sent(self.clock_s[which], self.item[which], self.source[which], self.offset[which])


class Case:
    """One rate and set of frequencies: topics, a worker, a sender, the reader in this process."""

    def __init__(self, stack: LocalStack, freqs: str, rate: float, seconds: float, items: int) -> None:
        name = f"latency-{freqs.replace(',', '-')}-{rate:g}"
        variables = environment(stack, name, forecast_freqs=freqs, **_GATHERED)
        self._stack = stack
        self._rate, self._seconds, self._items = rate, seconds, items
        self._settings = load_settings(variables)
        self._worker = LocalWorker(stack.directory, variables, self._settings.namespace)

    def measure(self, model_forecasts_per_s: float) -> dict[str, Any]:
        """Figures of this case.

        1. History, and a forecast of every item.
        2. Send; meanwhile read what comes, until everything sent has been seen.
        3. Figures of the orders after the warm-up.
        """
        ensure_topics(self._settings)
        last, ends = self._send_history()
        reader = ForecastReader(self._settings)
        freqs = self._settings.forecast_freqs
        try:
            self._worker.start()
            reader.read_until(reader.has_seen(last, freqs), "forecasts of the history")  # 1
            sent, used_s = self._send(reader, ends)  # 2
        finally:
            reader.close()
            self._worker.kill()
        used = maths.cores_used(used_s[0], used_s[-1], self._seconds)
        quarter_s = self._seconds / _QUARTERS
        kafka = [maths.cores_used(*pair, quarter_s)["kafka"] for pair in pairwise(used_s)]
        figures = self._figures(sent, reader, model_forecasts_per_s)  # 3
        return figures | {"cores_used": used, "kafka_cores_by_quarter": kafka}

    def _send_history(self) -> tuple[dict[str, int], NDArray[np.int64]]:
        """Orders of two months. Returns each item's last offset, and the end of each partition."""
        settings, now_ms = self._settings, time.time_ns() // 1_000_000
        history = make_orders(self._items * _HISTORY_ORDERS, Zipf(self._items, now_ms - _HISTORY_MS, now_ms, seed=1))
        send(settings, ((settings.topic_orders, order.product_id, encode(order)) for order in history))
        ends, last = np.zeros(settings.partition_count, dtype=np.int64), {}
        for order in history:
            partition = murmur2_partition(order.product_id, settings.partition_count)
            last[order.product_id] = int(ends[partition])
            ends[partition] += 1
        return last, ends

    def _send(self, reader: ForecastReader, ends: NDArray[np.int64]) -> tuple[Sent, list[dict[str, float]]]:
        """What was sent, and the processor seconds so far of each process as the quarters begin and end."""
        settings, total_s = self._settings, _WARM_UP_S + self._seconds
        path = self._stack.directory / f"{settings.namespace}.npz"
        sending = Sending(
            config=kafka_client_config(settings),
            topics={source: getattr(settings, f"topic_{source}") for source in SOURCES},
            partitions=settings.partition_count,
            items=self._items,
            rate=self._rate,
            seconds=total_s,
            seed=2,
            path=str(path),
        )
        sender = Program(self._stack.directory, "benchmarks.steady_sender", [msgspec.json.encode(sending).decode()])
        servers: Sequence[LocalServer] = (
            self._worker,
            self._stack.triton,
            self._stack.kafka,
            self._stack.redis,
            sender,
        )
        sender.launch()
        try:
            reader.read_until(lambda: sender.told("sending", True) is not None, "the sender's messages")
            began_s, used = time.monotonic() + _WARM_UP_S, []
            for quarter in range(_QUARTERS + 1):
                reader.read_until(
                    _ended_or(sender, began_s + quarter * self._seconds / _QUARTERS),
                    "the last event",
                    patience_s=total_s + _PATIENCE_S,
                )
                used.append(_processor_s(servers))
            reader.read_until(lambda: not sender.is_running, "the sender's end")
            sender.wait_for("sent", True, 0)
        finally:
            sender.kill()
        sent = Sent(**np.load(path))
        orders = sent.source == _ORDERS
        partition_of = np.array([murmur2_partition(product_name(i), len(ends)) for i in range(self._items)])
        sent.offset[orders] += ends[partition_of[sent.item[orders]]]
        last = {
            product_name(i): o for i, o in zip(sent.item[orders].tolist(), sent.offset[orders].tolist(), strict=True)
        }
        reader.read_until(reader.has_seen(last, settings.forecast_freqs), "forecasts of the last orders")
        names = {self._worker.name: "worker", sender.name: "sender"}
        return sent, [{names.get(name, name): seconds for name, seconds in one.items()} for one in used]

    def _figures(self, sent: Sent, reader: ForecastReader, model_forecasts_per_s: float) -> dict[str, Any]:
        began_s = float(sent.clock_s[0]) + _WARM_UP_S
        counted = sent.take(sent.clock_s >= began_s)
        orders = counted.take(counted.source == _ORDERS)
        ended_s = float(counted.clock_s[-1])
        ends_s = [began_s + n for n in range(1, int(ended_s - began_s) + 1)]
        touched = maths.distinct_per_s(counted.clock_s, counted.item, ends_s)
        arrived = np.concatenate([np.array(found.clock_s) for found in reader.arrivals.values()])
        due_s = float(sent.clock_s[0]) + np.arange(len(sent.clock_s)) / self._rate
        by_freq = {}
        for freq in self._settings.forecast_freqs:
            seen_s = _seen_s(orders, reader, freq)
            owed = maths.owed_each_second(orders.clock_s, seen_s, orders.item, ends_s)
            waited_s = seen_s - orders.clock_s
            quarter = ((orders.clock_s - began_s) / self._seconds * _QUARTERS).astype(np.int64).clip(0, _QUARTERS - 1)
            medians = [maths.percentiles_ms(waited_s[quarter == n])["p50_ms"] for n in range(_QUARTERS)]
            by_freq[freq] = maths.percentiles_ms(waited_s) | {"p50_ms_by_quarter": medians} | owed
        return {
            "by_freq": by_freq,
            "forecasts_per_s": round(
                float(((arrived >= began_s) & (arrived < ended_s)).sum() / (ended_s - began_s)), 1
            ),
            "events_per_s": round(len(counted.item) / (ended_s - began_s), 1),
            "orders_per_s": round(len(orders.item) / (ended_s - began_s), 1),
            "sender_late_p99_ms": maths.percentiles_ms(sent.clock_s - due_s)["p99_ms"],
            "touched_items_per_s": round(touched, 1),
            "model_forecasts_per_s": model_forecasts_per_s,
            "bar_p99_ms": maths.bar_ms(touched, model_forecasts_per_s),
            "degraded": reader.degraded,
        }


def _processor_s(servers: Sequence[LocalServer]) -> dict[str, float]:
    """Processor seconds so far, of this process as "reader"."""
    return {server.name: cpu_s(server) for server in servers} | {"reader": time.process_time()}


def _ended_or(sender: Program, clock_s: float) -> Callable[[], bool]:
    """Has the sender ended, or is it this late?"""
    return lambda: not sender.is_running or time.monotonic() > clock_s


def _seen_s(orders: Sent, reader: ForecastReader, freq: str) -> NDArray[np.float64]:
    """When the first forecast that has seen it came: (order,)."""
    seen_s = np.empty(len(orders.item))
    for item in np.unique(orders.item).tolist():
        own, arrivals = orders.item == item, reader.arrivals[product_name(item), freq]
        seen_s[own] = maths.first_covering(orders.offset[own], np.array(arrivals.position), np.array(arrivals.clock_s))
    return seen_s


async def _model_forecasts_per_s(triton_url: str, batch_size: int) -> float:
    """Daily forecasts a second that the model makes with the machine to itself: two requests in flight."""
    client = ForecastClient(triton_url, model_name=MODEL_NAME, timeout_s=30)
    await client.check_model()
    found = await time_model(client, make_inputs("1d", batch_size), 2, _MODEL_S)
    await client.close()
    return found["forecasts_per_s"]


def measure(rates: Sequence[float], seconds: float, items: int, with_hourly: bool) -> dict[str, Any]:
    """Every rate with daily forecasts; and with hourly and daily ones, if wanted."""
    figures: dict[str, Any] = {}
    with LocalStack() as stack:
        alone = asyncio.run(_model_forecasts_per_s(stack.triton_url, Settings().forecast_batch_size))
        for rate in rates:
            found = Case(stack, "1d", rate, seconds, items).measure(alone)
            figures[f"{rate:g}"] = found.pop("by_freq")["1d"] | found
            if with_hourly:
                figures[f"{rate:g}"]["with_hourly"] = Case(stack, "1h,1d", rate, seconds, items).measure(alone)
    return figures | {"seconds": seconds, "items": items, "partitions": 4}


def _row(name: str, latency: Mapping[str, Any], case: Mapping[str, Any]) -> list[str]:
    return [
        name,
        *(f"{latency[key]:,.0f}" for key in ("p50_ms", "p99_ms", "p999_ms")),
        f"{case['bar_p99_ms']:,.0f}",
        f"{case['touched_items_per_s']:,.0f}",
        f"{case['forecasts_per_s']:,.0f}",
        " ".join(f"{median:,.0f}" for median in latency["p50_ms_by_quarter"]),
        " ".join(f"{cores:.2f}" for cores in case["kafka_cores_by_quarter"]),
    ]


@click.command()
@click.option("--rate", "rates", multiple=True, type=float, default=_RATES, show_default=True, help="Events a second.")
@click.option("--seconds", default=20.0, show_default=True, help="How long each rate is kept up, after the warm-up.")
@click.option("--items", default=2000, show_default=True, help="Items; the n-th has events in proportion to 1/n.")
@click.option("--hourly", is_flag=True, help="Also with hourly forecasts beside the daily ones.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(rates: Sequence[float], seconds: float, items: int, hourly: bool, as_json: bool) -> None:
    """Time from an order's produce() to the first forecast that has seen it."""
    figures = measure(rates, seconds, items, hourly)
    rows = []
    for rate in rates:
        case = figures[f"{rate:g}"]
        rows.append(_row(f"{rate:,g}/s: 1d", case, case))
        variant = case.get("with_hourly", {"by_freq": {}})
        rows += [_row(f"{rate:,g}/s: {freq} of both", found, variant) for freq, found in variant["by_freq"].items()]
    alone = figures[f"{rates[0]:g}"]["model_forecasts_per_s"]
    header = (
        *("events/s", "p50 ms", "p99 ms", "p99.9 ms", "bar", "touched/s", "forecasts/s"),
        *("p50 by quarter", "broker's cores"),
    )
    title = (
        "From produce() to the forecast that has seen the order\n"
        f"bar: 1.5 × touched items/s ÷ {alone:,.0f} forecasts/s, which the model makes alone"
    )
    show(title, header, rows, figures, as_json)


if __name__ == "__main__":
    command()
