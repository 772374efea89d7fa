"""Where a replay goes: the names of its topics, the worker's settings that read them, and what stands there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from feature_store.recording_files import Recording
from worker.errors import SettingsError, TopicError
from worker.replayer import Standing, TickedTopics
from worker.settings import ENVIRONMENT_PREFIX, INPUT_SOURCES, Settings
from worker.topic_reading import Bounds, Span, TopicReading
from worker.topics import WantedTopic, create_topics, kafka_client_config

_TIMEOUT_S = 15.0
_PREFIX = "replay."
_SHARED = "calendar_global"  # of one partition, which every lane reads


class ReplayTopics(NamedTuple):
    """Topics of a replay: by recorded name what they are called there, and what its clock tells of (None = no clock).

    Offsets, and with them the positions in forecasts, count from 0 in these topics, whatever they were recorded at.
    """

    names: Mapping[str, str]
    partition_counts: Mapping[str, int]  # by recorded name
    ticked: TickedTopics | None

    def wanted(self) -> list[WantedTopic]:
        """As the topics have to be: nothing is ever deleted or compacted away, since ticks name offsets."""
        counts = {self.names[topic]: count for topic, count in self.partition_counts.items()}
        if self.ticked is not None:
            counts[self.ticked.clock] = self.ticked.partition_count
        return [WantedTopic(name, count, compacted=False, keep_forever=True) for name, count in counts.items()]


def replay_settings(settings: Settings, recording: Recording, prefix: str, topics: Sequence[str]) -> Settings:
    """Settings of a worker for the replay of some topics, made of the shop's: its topics prefixed, a namespace of its
    own, the clock of the replay.

    Raises:
        SettingsError: the recording's topics do not have the same number of partitions, or the prefix makes no name.
    """
    names = [f"topic_{source}" for source in (*INPUT_SOURCES, _SHARED)] + ["topic_clock"]
    changed: dict[str, Any] = {name: prefix + getattr(settings, name) for name in names}
    counts = {topic: recording.partition_count(topic) for topic in settings.input_topics if topic in topics}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{topic}: {count}" for topic, count in sorted(counts.items()))
        raise SettingsError(
            f"the recorded topics differ in their number of partitions ({told}), and a worker needs the same of each: "
            "choose topics with --topic"
        )
    changed["partition_count"] = next(iter(counts.values()), settings.partition_count)
    changed["namespace"] = replay_namespace(settings, prefix)
    changed["clock"] = "event"
    try:
        return msgspec.convert(msgspec.to_builtins(settings) | changed, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(
            f"--prefix {prefix!r} can't begin the name of a topic ({error}): use letters, digits, '.', '_' and '-'"
        ) from error


def replay_namespace(settings: Settings, prefix: str) -> str:
    """Of the replay's consumer group, Redis keys and outputs. Never the shop's: a replay without a prefix, on another
    broker, may share its Redis."""
    return (prefix or _PREFIX) + settings.namespace


def replay_environment(settings: Settings, shop: Settings) -> dict[str, str]:
    """The variables by which a replay's settings differ from the shop's."""
    changed = {}
    for name in msgspec.structs.fields(Settings):
        value = getattr(settings, name.name)
        if value != getattr(shop, name.name):
            changed[f"{ENVIRONMENT_PREFIX}{name.name.upper()}"] = str(value)
    return changed


def replay_topics(
    shop: Settings, recording: Recording, prefix: str, topics: Sequence[str], clock: bool
) -> ReplayTopics:
    """Which recorded topics go where. Ticks tell of those that lanes read."""
    counts = {topic: recording.partition_count(topic) for topic in topics}
    ticked = None
    if clock:
        keyed = [topic for topic in topics if topic in shop.input_topics]
        shared = [topic for topic in topics if topic == shop.topic_calendar_global]
        count = counts[keyed[0]] if keyed else shop.partition_count
        ticked = TickedTopics(
            prefix + shop.topic_clock, count, [prefix + topic for topic in keyed], [prefix + topic for topic in shared]
        )
    return ReplayTopics({topic: prefix + topic for topic in topics}, counts, ticked)


def refuse_recorded_topics(recording: Recording, settings: Settings, topics: ReplayTopics) -> None:
    """Raise TopicError when a replay would write into the topics that it was recorded from."""
    ours = {server.strip() for server in settings.kafka_bootstrap_servers.split(",")}
    source = {server.strip() for server in recording.manifest.source.split(",")}
    same = [topic for topic, name in topics.names.items() if name == topic]
    if same and ours & source:
        raise TopicError(
            f"{', '.join(same)} on {settings.kafka_bootstrap_servers} is what was recorded: its records would stand "
            "there twice. Replay under a --prefix, or on another broker (SHELFCAST_KAFKA_BOOTSTRAP_SERVERS)"
        )


def prepare_topics(settings: Settings, topics: ReplayTopics, resume: bool) -> dict[tuple[str, int], Standing]:
    """Create what is missing. Returns what a replay that was broken off has left, by topic and partition; empty unless
    `resume`.

    Raises:
        TopicError: the broker does not answer, a topic has another number of partitions, or it holds records.
    """
    config = kafka_client_config(settings)
    admin = AdminClient(config)
    try:
        there = {name: len(found.partitions) for name, found in admin.list_topics(timeout=_TIMEOUT_S).topics.items()}
    except KafkaException as error:
        raise TopicError(
            f"Kafka at {settings.kafka_bootstrap_servers} does not answer ({error.args[0].str()}): check "
            "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS, the security settings, and that the broker runs"
        ) from error
    wanted = topics.wanted()
    for topic in wanted:
        if there.get(topic.name, topic.partitions) != topic.partitions:
            raise TopicError(
                f"topic {topic.name} has {there[topic.name]} partitions, the recording has {topic.partitions}: delete "
                "that topic, or replay under another --prefix"
            )
    standing = _standing(TopicReading(config), [topic for topic in wanted if topic.name in there], resume)
    missing = [topic for topic in wanted if topic.name not in there]
    if missing:
        create_topics(admin, missing, settings.replication_factor)
    return standing


def _standing(reading: TopicReading, topics: Sequence[WantedTopic], resume: bool) -> dict[tuple[str, int], Standing]:
    found: dict[tuple[str, int], Standing] = {}
    for topic in topics:
        bounds = {p: b for p, b in reading.bounds(topic.name, range(topic.partitions)).items() if b.end}
        if bounds and not resume:
            raise TopicError(
                f"topic {topic.name} already holds records. If a replay of this recording was broken off, go on with "
                "--resume; otherwise replay under another --prefix, or delete the topic"
            )
        _refuse_forgotten(topic.name, bounds)
        # The end may be told too low: the last record is looked for from there on.
        for record in reading.read(topic.name, {p: Span(b.end - 1) for p, b in bounds.items()}):
            found[topic.name, record.partition] = Standing(
                record.offset + 1, record.timestamp_ms, record.key, record.value
            )
    return found


def _refuse_forgotten(topic: str, bounds: Mapping[int, Bounds]) -> None:
    for partition, (first, _) in bounds.items():
        if first:
            raise TopicError(
                f"topic {topic} partition {partition} begins at offset {first}: Kafka has deleted a part of the "
                "replay. Replay under another --prefix"
            )
