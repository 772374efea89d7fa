"""A shop whose forecasts and stock reports are written by hand, and what `shelfcast replenish` makes of them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from forecaster.contract import QUANTILE_LEVELS
from worker.local_stack import LocalBroker
from worker.schemas import Forecast, ForecastStep, Replenishment
from worker.topic_reading import Span, TopicReading
from worker.transport import murmur2_partition

DAY_MS = 86_400_000
MONDAY_MS = 1_710_720_000_000  # 2024-03-18 00:00 UTC
_PARTITIONS = 2
_numbers = itertools.count()
_PROGRAM = """
import os, signal, sys
from worker import replenishment_stream, replenish

n, moments = int(sys.argv.pop(1)), iter(range(1, 10_000))

def moment():
    if next(moments) == n:
        os.kill(os.getpid(), signal.SIGKILL)

class MortalProducer(replenishment_stream.Producer):
    def produce(self, *arguments, on_delivery, **options):
        def heard(error, message):
            on_delivery(error, message)
            moment()
        super().produce(*arguments, on_delivery=heard, **options)
        moment()

class MortalConsumer(replenishment_stream.Consumer):
    def commit(self, **options):
        moment()
        super().commit(**options)
        moment()

replenishment_stream.Producer = MortalProducer
replenishment_stream.Consumer = MortalConsumer
replenish.command()
"""


def forecast(product_id: str, cutoff: int, per_day: float, *, revision: int = 1, steps: int = 14) -> bytes:
    """A daily forecast made at a midnight: every day sells from 0 to twice `per_day`, evenly, all days together."""
    levels = list(QUANTILE_LEVELS)
    days = [
        ForecastStep(
            cutoff + n * DAY_MS,
            cutoff + (n + 1) * DAY_MS,
            per_day,
            [2 * per_day * level for level in levels],
            [2 * per_day * (n + 1) * level for level in levels],
        )
        for n in range(steps)
    ]
    return msgspec.json.encode(
        Forecast(
            forecast_id=f"{product_id}-{cutoff}-{revision}",
            revision=revision,
            item_id=product_id,
            product_id=product_id,
            location_id="",
            freq="1d",
            cutoff=cutoff,
            positions={},
            issued_at=cutoff,
            steps=days,
            quantile_levels=levels,
            observed=0.0,
            model_name="by_hand",
            model_version="1",
            config_hash="0",
            feature_age_ms={},
        )
    )


def stock(product_id: str, event_time: int, on_hand: float, on_order: float = 0.0) -> bytes:
    report = {"event_time": event_time, "product_id": product_id, "on_hand": on_hand, "on_order": on_order}
    return json.dumps(report).encode()


class ReplenishedShop:
    """Topics of its own on the session's broker, and the command with settings for them."""

    def __init__(self, broker: LocalBroker, directory: Path) -> None:
        self.namespace = f"replenished{next(_numbers)}"
        self._config = {"bootstrap.servers": broker.bootstrap_servers}
        self._directory = directory
        self.forecasts, self.reports = f"{self.namespace}.forecasts.v1", f"{self.namespace}.stock"
        self.products, self.orders = f"{self.namespace}.products", f"{self.namespace}.replenishment.v1"
        topics = [NewTopic(name, _PARTITIONS, 1) for name in (self.forecasts, self.reports, self.products)]
        admin = AdminClient(self._config)  # kept until all is done
        for future in admin.create_topics(topics).values():
            future.result()
        self.environment = {
            "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "SHELFCAST_KAFKA_SESSION_TIMEOUT_S": "2",
            "SHELFCAST_NAMESPACE": self.namespace,
            "SHELFCAST_PARTITION_COUNT": str(_PARTITIONS),
            "SHELFCAST_TOPIC_STOCK": self.reports,
            "SHELFCAST_TOPIC_PRODUCTS": self.products,
        }

    def policies(self, text: str) -> None:
        (self._directory / "policies.toml").write_text(text)

    def send(self, topic: str, records: Sequence[tuple[str, bytes]]) -> None:
        """Key and value of each, into the partition of its product."""
        producer = Producer(self._config)
        for key, value in records:
            partition = murmur2_partition(key.partition("|")[0], _PARTITIONS)
            producer.produce(topic, key=key.encode(), value=value, partition=partition)
        assert producer.flush(60) == 0

    def run(self, *options: str, killed_at: int = 0) -> subprocess.CompletedProcess[str]:
        """The command in a process of its own; killed at its nth moment of handing over, hearing and committing."""
        path = str(self._directory / "policies.toml")
        command = [sys.executable, "-c", _PROGRAM, str(killed_at), "--policies", path, *options]
        return subprocess.run(
            command, env=os.environ | self.environment, check=False, capture_output=True, text=True, timeout=120
        )

    def start(self) -> subprocess.Popen[str]:
        """The command live, in a process of its own that runs on."""
        command = [sys.executable, "-m", "worker", "replenish", "--policies", str(self._directory / "policies.toml")]
        return subprocess.Popen(command, env=os.environ | self.environment, stdout=subprocess.PIPE, text=True)

    def has_orders_topic(self) -> bool:
        return bool(TopicReading(self._config).partitions(self.orders))

    def sent(self) -> list[Replenishment]:
        """Every order in the output topic, those sent twice too."""
        reading = TopicReading(self._config)
        spans = {p: Span(0) for p in reading.partitions(self.orders)}
        values: list[Any] = [record.value for record in reading.read(self.orders, spans)]
        return [msgspec.json.decode(value, type=Replenishment) for value in values]
