"""Oracle: librdkafka with `partitioner=murmur2`, and where the broker says that its records came to stand."""

import secrets

import pytest
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from worker.local_stack import LocalBroker
from worker.transport import murmur2_partition

KEYS = [
    *(f"SKU-{n:05d}" for n in range(200)),
    *("a" * n for n in range(1, 20)),  # every length of the last, incomplete block
    *(chr(n) for n in range(0x20, 0x7F)),
    *("café", "чайник", "湯のみ", "☕", "👩‍🍳", "e\u0301", "\x00", "mug\n", "ÿ" * 7),
]


@pytest.mark.parametrize("partition_count", [1, 8, 12])
def test_products_go_where_librdkafka_puts_them(broker: LocalBroker, partition_count: int) -> None:
    topic = f"murmur2-{secrets.token_hex(4)}"
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    for created in admin.create_topics([NewTopic(topic, partition_count, 1)]).values():
        created.result()
    landed: dict[str, int | None] = {}
    failures: list[KafkaError] = []

    def note(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failures.append(error)
        else:
            landed[(message.key() or b"").decode()] = message.partition()

    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "partitioner": "murmur2"})
    for key in KEYS:
        producer.produce(topic, key=key.encode(), value=b"{}", on_delivery=note)
    assert producer.flush(60) == 0
    assert failures == []
    assert landed == {key: murmur2_partition(key, partition_count) for key in KEYS}
    assert len(set(landed.values())) == partition_count
