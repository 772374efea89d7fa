"""Do records stand in the partitions that murmur2 gives their keys?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

_LOOK_AT = 1_000
_WAIT_S = 2.0


def misplaced_share(config: dict[str, Any], topic: str, partition_of: Callable[[str], int]) -> tuple[int, int]:
    """Look at up to a thousand records of a topic from its start: (looked at, misplaced). Nothing is committed."""
    consumer = Consumer(
        {**config, "group.id": "shelfcast-check", "enable.auto.commit": False, "enable.partition.eof": True}
    )
    seen = misplaced = 0
    try:
        partitions = consumer.list_topics(topic, timeout=15).topics[topic].partitions
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
        ended: set[int] = set()
        while seen < _LOOK_AT and len(ended) < len(partitions):
            message = consumer.poll(_WAIT_S)
            if message is None:
                break
            if message.error() is not None:
                ended.add(message.partition() or 0)
                continue
            seen += 1
            key = (message.key() or b"").decode("utf-8", "replace")
            misplaced += partition_of(key) != message.partition()
    finally:
        consumer.close()
    return seen, misplaced
