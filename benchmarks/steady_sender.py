"""Sends orders, clicks and reviews at an even rate, whether or not anybody keeps up. A program, run by `latency`.

    python -m benchmarks.steady_sender SENDING

SENDING is a `Sending` as JSON. Messages are made beforehand but for their event_time, which is the time of sending.
When all are acknowledged, `path` (.npz) holds of every event: `clock_s` float64, time.monotonic() just before its
produce(); `item` and `source` int64, numbers of product and source; `offset` int64, how many events of the source were
sent to its partition before. The producer lingers for librdkafka's default, 5 ms.
"""

from __future__ import annotations

import sys
import time

import msgspec
import numpy as np
from confluent_kafka import KafkaError, Message, Producer
from numpy.typing import NDArray

from benchmarks.mix import SOURCES, encode_event, make_mix
from benchmarks.shop import Zipf, product_number
from worker.transport import murmur2_partition

_PLACEHOLDER_MS = 1_111_111_111_111  # as many digits as any time until 2286
_TICK_S = 0.001
_FLUSH_S = 60.0


class Sending(msgspec.Struct):
    """What to send where. `config` is librdkafka's; `topics` are by source."""

    config: dict[str, str | int]
    topics: dict[str, str]
    partitions: int
    items: int
    rate: float
    seconds: float
    seed: int
    path: str


class Messages(msgspec.Struct):
    """Events ready to be sent, and where each will stand."""

    arguments: list[
        tuple[str, bytes, bytes, bytes, int]
    ]  # topic, value before and after its event_time, key, partition
    item: NDArray[np.int64]
    source: NDArray[np.int64]
    offset: NDArray[np.int64]


def make_messages(sending: Sending) -> Messages:
    """All messages of a sending, the same for the same."""
    zipf = Zipf(sending.items, _PLACEHOLDER_MS, _PLACEHOLDER_MS, sending.seed)
    events = make_mix(round(sending.rate * sending.seconds), zipf)
    arguments, offsets, ends = [], [], dict.fromkeys(((s, p) for s in SOURCES for p in range(sending.partitions)), 0)
    for event in events:
        before, _, after = encode_event(event).partition(b"%d" % _PLACEHOLDER_MS)
        partition = murmur2_partition(event.product_id, sending.partitions)
        arguments.append((sending.topics[event.source], before, after, event.product_id.encode(), partition))
        offsets.append(ends[event.source, partition])
        ends[event.source, partition] += 1
    return Messages(
        arguments,
        np.array([product_number(event.product_id) for event in events]),
        np.array([SOURCES.index(event.source) for event in events]),
        np.array(offsets),
    )


def send(producer: Producer, messages: Messages, rate: float) -> NDArray[np.float64]:
    """Send at an even rate; returns the clock of each. What is overdue leaves at once."""
    count, n = len(messages.arguments), 0
    clock_s = np.empty(count)
    began_s = time.monotonic()
    while n < count:
        now_s = time.monotonic()
        due = min(int((now_s - began_s) * rate) + 1, count)
        clock_s[n:due] = now_s
        now_ms = b"%d" % (time.time_ns() // 1_000_000)
        for topic, before, after, key, partition in messages.arguments[n:due]:
            producer.produce(topic, before + now_ms + after, key, partition)
        n = due
        producer.poll(0)
        time.sleep(max(began_s + n / rate - time.monotonic(), _TICK_S))
    return clock_s


def main() -> None:
    """See the module."""
    sending = msgspec.json.decode(sys.argv[1], type=Sending)
    failures: list[str] = []

    def undelivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error.str())

    # Without retries nothing is overtaken, so that offsets are known beforehand.
    own = {"message.send.max.retries": 0, "delivery.report.only.error": True, "on_delivery": undelivered}
    producer = Producer(sending.config | own)
    messages = make_messages(sending)
    print(msgspec.json.encode({"sending": True}).decode(), flush=True)
    clock_s = send(producer, messages, sending.rate)
    left = producer.flush(_FLUSH_S)
    if left or failures:
        sys.exit(f"Kafka did not take {left + len(failures)} events: {(failures or ['no answer'])[0]}")
    np.savez(sending.path, clock_s=clock_s, item=messages.item, source=messages.source, offset=messages.offset)
    print(msgspec.json.encode({"sent": True}).decode(), flush=True)


if __name__ == "__main__":
    main()
