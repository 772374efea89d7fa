"""Variants of a backtest: which models and settings are compared, as they are named on the command line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from feature_store.recording_files import Recording
from worker.backtest_models import SHIPPED, refuse_unknown
from worker.errors import BacktestError
from worker.settings import ENVIRONMENT_PREFIX, Settings, load_settings

_SET = re.compile(r"(?:(?P<label>[A-Z]):)?(?P<name>[a-z][a-z0-9_]*)=(?P<value>.*)", re.DOTALL)
# A backtest has a Redis and a clock of its own, and partitions are the recording's.
_NOT_OURS = ("redis_url", "redis_cluster", "clock", "namespace", "partition_count")


@dataclass(frozen=True)
class Variant:
    """What one run of a backtest differs in. `own` are the settings given for it, by name."""

    label: str
    model: str
    own: Mapping[str, str]
    settings: Settings


def parse_variants(
    models: Sequence[str], sets: Sequence[str], environment: Mapping[str, str], recording: Recording
) -> list[Variant]:
    """Variants A, B, … from `--model` (in their order; none = the shipped model) and `--set`: `name=value` holds for
    all of them, `B:name=value` for B alone. A label without a model of its own takes the last model named.

    Raises:
        BacktestError, SettingsError: names what can't be and the remedy.
    """
    models = list(models) or [str(SHIPPED)]
    for model in models:
        refuse_unknown(model)
    common: dict[str, str] = {}
    own: dict[str, dict[str, str]] = {}
    for text in sets:
        match = _SET.fullmatch(text)
        if match is None:
            raise BacktestError(f"--set {text}: write name=value, or B:name=value for the second variant alone")
        if match["name"] in _NOT_OURS:
            raise BacktestError(f"--set {text}: a backtest sets {match['name']} itself")
        (own.setdefault(match["label"], {}) if match["label"] else common)[match["name"]] = match["value"]
    count = max(len(models), *(ord(label) - ord("A") + 1 for label in own), 1)
    variants = []
    for n in range(count):
        label = chr(ord("A") + n)
        given = common | own.get(label, {})
        model = models[min(n, len(models) - 1)]
        variants.append(Variant(label, model, given, _settings(given, environment, recording)))
    return variants


def _settings(given: Mapping[str, str], environment: Mapping[str, str], recording: Recording) -> Settings:
    overrides = {f"{ENVIRONMENT_PREFIX}{name.upper()}": value for name, value in given.items()}
    settings = load_settings({**environment, **overrides})
    counts = {topic: recording.partition_count(topic) for topic in recording.topics if topic in settings.input_topics}
    if not counts:
        raise BacktestError(
            f"{recording.path} holds none of the input topics {', '.join(settings.input_topics)}; it has "
            f"{', '.join(recording.topics)}: name them, for instance --set topic_orders=…"
        )
    if len(set(counts.values())) > 1:
        raise BacktestError(
            f"{recording.path}: the input topics have different numbers of partitions ({counts}), so that no lane "
            "could own them together: import them anew with one number"
        )
    fixed = {"clock": "event", "namespace": "backtest", "partition_count": next(iter(counts.values()))}
    return msgspec.structs.replace(settings, redis_cluster=False, **fixed)


def spread(recording: Recording, settings: Settings, processes: int) -> list[tuple[int, ...]]:
    """Partitions by process, so that each has about as many records; no process is left without any."""
    sizes = dict.fromkeys(range(settings.partition_count), 0)
    for topic in recording.topics:
        if topic in settings.input_topics:
            for file in recording.files(topic):
                for partition, part in file.partitions.items():
                    sizes[partition] += part.rows
    shares: list[_Share] = [_Share() for _ in range(max(1, min(processes, settings.partition_count)))]
    for partition, rows in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0])):
        least = min(shares, key=lambda share: share.rows)
        least.partitions.append(partition)
        least.rows += rows + 1
    return [tuple(sorted(share.partitions)) for share in shares]


@dataclass
class _Share:
    partitions: list[int] = dataclasses.field(default_factory=list)
    rows: int = 0


def recorded_span_ms(recording: Recording, settings: Settings) -> tuple[int, int]:
    """First and last timestamp of the input topics' records."""
    parts = [
        part
        for topic in recording.topics
        if topic in settings.input_topics
        for file in recording.files(topic)
        for part in file.partitions.values()
    ]
    if not parts:
        raise BacktestError(f"{recording.path} holds no records of the input topics")
    return min(part.first_timestamp_ms for part in parts), max(part.max_timestamp_ms for part in parts)
