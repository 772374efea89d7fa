"""Topics: which a worker needs, with how many partitions; creates what is missing, checks what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from feature_store.events import COMPACTED
from worker.errors import TopicError
from worker.settings import Settings

_TIMEOUT_S = 15.0
ASIDE_BYTES = 2 * 1_048_588  # twice the default limit of Kafka's topics


class WantedTopic(NamedTuple):
    """A topic as it has to be."""

    name: str
    partitions: int
    compacted: bool
    keep_forever: bool = False
    most_bytes: int = 0  # 0 = the broker's default


def wanted_topics(settings: Settings) -> list[WantedTopic]:
    """Every topic a worker reads or writes."""
    count = settings.partition_count
    # A replay's records and ticks carry old timestamps: time-based retention would delete them at once. And compaction
    # would take away states that ticks name: a worker that is killed would come back to others than it had before.
    replaying = settings.clock == "event"
    wanted = [WantedTopic(settings.topic_calendar_global, 1, compacted=not replaying, keep_forever=replaying)]
    for topic, source in settings.input_topics.items():
        compacted = source in COMPACTED and not replaying
        wanted.append(WantedTopic(topic, count, compacted, keep_forever=replaying))
        for aside in ("dlq", "late"):
            # The largest record that an input topic takes, with our headers, must fit in here.
            wanted.append(WantedTopic(f"{topic}.{aside}", count, compacted=False, most_bytes=ASIDE_BYTES))
    wanted.append(WantedTopic(settings.topic_forecasts, count, compacted=True))
    wanted.append(WantedTopic(settings.topic_alerts, count, compacted=False, keep_forever=replaying))
    wanted.append(WantedTopic(settings.topic_accuracy, count, compacted=False, keep_forever=replaying))
    if replaying:
        wanted.append(WantedTopic(settings.topic_clock, count, compacted=False, keep_forever=True))
    return wanted


def kafka_client_config(settings: Settings) -> dict[str, Any]:
    """librdkafka configuration that reaches the broker of the settings."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "security.protocol": settings.kafka_security_protocol,
        "log_level": 2,  # connection trouble is told by errors, once, and not line after line on stderr
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        config["sasl.mechanisms"] = settings.kafka_sasl_mechanism
        config["sasl.username"] = settings.kafka_sasl_username
        config["sasl.password"] = settings.kafka_sasl_password
    if settings.kafka_security_protocol.endswith("SSL") and settings.kafka_ssl_ca_file:
        config["ssl.ca.location"] = settings.kafka_ssl_ca_file
    return config


def ensure_topics(settings: Settings, timeout_s: float = _TIMEOUT_S) -> list[str]:
    """Create missing topics when the settings allow it, and return findings about the others, each with its remedy.

    Raises:
        TopicError: the broker can't be reached, or refuses to create a topic.
    """
    admin = AdminClient(kafka_client_config(settings))
    try:
        existing = {name: len(topic.partitions) for name, topic in admin.list_topics(timeout=timeout_s).topics.items()}
    except KafkaException as error:
        raise TopicError(
            f"Kafka at {settings.kafka_bootstrap_servers} does not answer ({error.args[0].str()}): check "
            "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS, the security settings, and that the broker runs"
        ) from error
    wanted = wanted_topics(settings)
    missing = [topic for topic in wanted if topic.name not in existing]
    findings = []
    if missing and settings.create_topics:
        create_topics(admin, missing, settings.replication_factor)
    elif missing:
        names = ", ".join(topic.name for topic in missing)
        findings.append(f"missing topics: {names}. Create them, or set SHELFCAST_CREATE_TOPICS=true.")
    for topic in wanted:
        found = existing.get(topic.name)
        if found is not None and found != topic.partitions:
            findings.append(
                f"topic {topic.name} has {found} partitions, {topic.partitions} are needed: every keyed topic must "
                "have the same number. Set SHELFCAST_PARTITION_COUNT to it, or create the topic anew with that number."
            )
    present = [topic for topic in wanted if topic.name in existing]
    return findings + _config_findings(admin, present)


def create_topics(admin: AdminClient, topics: Sequence[WantedTopic], replication_factor: int) -> None:
    """Create topics; those that have come to be meanwhile are left as they are.

    Raises:
        TopicError: the broker refuses one.
    """
    new = []
    for topic in topics:
        config = {"cleanup.policy": "compact"} if topic.compacted else {}
        if topic.keep_forever:
            config["retention.ms"] = "-1"
            config["message.timestamp.type"] = "CreateTime"
        if topic.most_bytes:
            config["max.message.bytes"] = str(topic.most_bytes)
        new.append(NewTopic(topic.name, topic.partitions, replication_factor, config=config))
    for name, future in admin.create_topics(new, operation_timeout=_TIMEOUT_S).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                raise TopicError(f"topic {name} could not be created: {error.args[0].str()}") from error


def _config_findings(admin: AdminClient, topics: Sequence[WantedTopic]) -> list[str]:
    """Cleanup policy and retention of existing topics. A broker that does not tell is taken at its word."""
    resources = {topic.name: ConfigResource(ResourceType.TOPIC, topic.name) for topic in topics}
    if not resources:
        return []
    findings = []
    futures = {r.name: f for r, f in admin.describe_configs(list(resources.values())).items()}
    for topic in topics:
        try:
            entries = futures[topic.name].result(timeout=_TIMEOUT_S)
        except KafkaException:
            continue
        policy = entries["cleanup.policy"].value if "cleanup.policy" in entries else None
        if topic.compacted and policy is not None and "compact" not in policy:
            findings.append(f"topic {topic.name} is not compacted: set cleanup.policy=compact on it.")
        if not topic.compacted and policy is not None and "compact" in policy:
            findings.append(f"topic {topic.name} is compacted and would lose events: set cleanup.policy=delete on it.")
        retention = entries["retention.ms"].value if "retention.ms" in entries else None
        if topic.keep_forever and retention not in (None, "-1"):
            findings.append(f"topic {topic.name} forgets a replay's old records: set retention.ms=-1 on it.")
    return findings
