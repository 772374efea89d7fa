"""`shelfcast snapshot` saves the features of a namespace as files; `shelfcast restore` brings them back."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow  # noqa: F401 - read and written deeper down; asked for here, so that the command says what to install

from feature_store.snapshot_files import About, CalendarRecord, SnapshotWriter
from feature_store.snapshots import DEDUP_WINDOWS, MEANING, RestoreRules, load_snapshot, save_partition
from feature_store.store import REDIS_ERRORS, FeatureStore, StoreError, StoreRefusedError
from worker.errors import ShelfcastError
from worker.settings import Settings, load_settings
from worker.topic_reading import Span, TopicReading
from worker.topics import kafka_client_config
from worker.transport import murmur2_partition


@click.command("snapshot")
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="A folder to be made.")
@click.option("--partition", "partitions", type=click.IntRange(min=0), multiple=True, help="Only these; repeatable.")
@click.option("--without-calendar", is_flag=True, help="Leave the whole shop's calendar out; Kafka is not asked then.")
def command(output: Path, partitions: tuple[int, ...], without_calendar: bool) -> None:
    """Save features, positions, items, products, event ids and forecasts as files, while workers go on.

    Each partition is saved as it stands at one moment. Its lane waits for some hundredths of a second.
    """
    settings = load_settings(os.environ)
    _refuse_absent(partitions, settings)
    run_on_store(settings, lambda store: save(settings, store, output, partitions, not without_calendar))


def meaning_of(settings: Settings) -> dict[str, Any]:
    """What has to be the same where a snapshot is restored."""
    meaning: dict[str, Any] = {name: getattr(settings, name) for name in MEANING}
    return {**meaning, DEDUP_WINDOWS: settings.dedup_window_ms}


async def save(
    settings: Settings, store: FeatureStore, output: Path, partitions: Sequence[int] = (), with_calendar: bool = True
) -> None:
    """Save a snapshot, and say what is in it."""
    await refuse_unfit(store)
    writer = SnapshotWriter(output)
    if with_calendar:
        writer.add_calendar(read_calendar(settings))
    found = 0
    for partition in partitions or range(settings.partition_count):
        saved = await save_partition(store, writer, partition)
        if saved is None:
            click.echo(f"partition {partition}: nothing stands there")
            continue
        found += 1
        click.echo(
            f"partition {partition}: {saved.items} items, {saved.series} series; its lane waited "
            f"{saved.held_s * 1000:.0f} ms"
        )
    if not found:
        raise ShelfcastError(
            f"namespace {settings.namespace!r} has no features: check SHELFCAST_NAMESPACE and SHELFCAST_REDIS_URL"
        )
    about = About(store.namespace, store.partition_count, store.forecast_freqs, meaning_of(settings), bool(partitions))
    writer.close(about)
    click.echo(f"saved in {output}")


def read_calendar(settings: Settings) -> list[CalendarRecord]:
    """The last record of each key of the whole shop's calendar."""
    reading, topic = TopicReading(kafka_client_config(settings)), settings.topic_calendar_global
    last: dict[bytes, CalendarRecord] = {}
    for record in reading.read(topic, dict.fromkeys(reading.partitions(topic), Span(0))):
        key = record.key or b""
        last.pop(key, None)
        if record.value is not None:
            last[key] = CalendarRecord(key, record.value, record.timestamp_ms)
    return list(last.values())


async def restore(
    settings: Settings, store: FeatureStore, folder: Path, rules: RestoreRules, partitions: Sequence[int] = ()
) -> None:
    """Restore a snapshot, and say what became of it."""
    if not rules.replace:  # what stands there may be of another layout then
        await refuse_unfit(store)
    restored = await load_snapshot(store, folder, rules, partitions or None)
    for partition in restored.before:
        click.echo(f"partition {partition}: was restored from this snapshot before, and is left as it is")
    if restored.partitions:
        click.echo(f"restored into namespace {settings.namespace!r}: partitions {_list(restored.partitions)}")
    for source in restored.ids_left_out:
        click.echo(
            f"event ids of {source} were left out: dedup_window_{source}_ms was another. Events of before the snapshot "
            "that are sent again would count twice"
        )
    if restored.positions_kept:
        click.echo("positions were kept: workers go on where the snapshot was taken")
    else:
        click.echo(
            "positions were not kept: workers read the topics of this namespace from their start"
            + (", without events of before " + _before_text(rules.before) if rules.before else "")
        )


def restore_rules(
    settings: Settings, *, keep_positions: bool = True, before: Mapping[str, int] | None = None, replace: bool = False
) -> RestoreRules:
    """How to restore under these settings."""
    count = settings.partition_count
    return RestoreRules(
        partition_of=lambda product_id: murmur2_partition(product_id, count),
        keep_positions=keep_positions,
        before=before or {},
        meaning=meaning_of(settings),
        replace=replace,
    )


def run_on_store(settings: Settings, call: Any) -> Any:
    """Run `await call(store)`, and tell a person what Redis has to say."""

    async def run() -> Any:
        store = FeatureStore(**settings.store_options())
        try:
            return await call(store)
        except StoreError as error:
            raise ShelfcastError(str(error)) from error
        except REDIS_ERRORS as error:
            raise ShelfcastError(f"Redis refuses ({error}): check SHELFCAST_REDIS_URL") from error
        finally:
            await store.close()

    return asyncio.run(run())


async def refuse_unfit(store: FeatureStore) -> None:
    """Raise StoreRefusedError when Redis must not be used. A person is waiting: one that is away is an error, too."""
    if findings := await store.check_server():
        raise StoreRefusedError(" ".join(findings))


def parse_time(text: str) -> int:
    """Milliseconds UTC of an ISO 8601 date or time, UTC unless it says otherwise, or of a number of milliseconds.

    Raises:
        ValueError: it is neither.
    """
    if text.isdigit():
        return int(text)
    moment = dt.datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() * 1000)


class TimeType(click.ParamType):
    """A moment on the command line, see parse_time."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_time(value)
        except ValueError:
            self.fail(f"{value!r} is no time: write 2026-03-04, 2026-03-04T12:00+01:00 or milliseconds", param, ctx)


def _refuse_absent(partitions: Sequence[int], settings: Settings) -> None:
    absent = [p for p in partitions if p >= settings.partition_count]
    if absent:
        raise ShelfcastError(
            f"there is no partition {absent[0]}: SHELFCAST_PARTITION_COUNT is {settings.partition_count}"
        )


def _list(partitions: Sequence[int]) -> str:
    return ", ".join(map(str, partitions))


def _before_text(before: Mapping[str, int]) -> str:
    return dt.datetime.fromtimestamp(max(before.values()) / 1000, dt.UTC).isoformat()
