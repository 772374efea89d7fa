"""`shelfcast recording show|verify|cut|merge|import`: recordings looked at, checked, made of others and of tables."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click
from rich.console import Console
from rich.table import Table

from feature_store import recording_edit
from feature_store.events import EVENT_CLASSES
from feature_store.recording_files import Cut, Recording, TopicEntry
from feature_store.time_text import parse_time_ms, time_text
from worker.errors import SettingsError
from worker.settings import load_settings
from worker.table_import import Columns, Target, mapped_events, write_events
from worker.table_mappings import READY

_PIPE_WIDTH = 160  # where there is no terminal whose width is known
_SHOWN_SKIPPED = 5
_KINDS = [kind for kind in EVENT_CLASSES if kind != "calendar_global"]  # that one has no product


class _TimeType(click.ParamType):
    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_time_ms(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _PairType(click.ParamType):
    name = "FIELD=…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        field, equals, rest = value.partition("=")
        if not (field and equals and rest):
            self.fail(f"{value!r}: write FIELD=…, such as quantity=Quantity", param, ctx)
        return field, rest


_recording = click.argument("path", type=click.Path(path_type=Path), metavar="RECORDING")
_output = click.option(
    "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the new recording."
)


@click.group("recording")
def command() -> None:
    """Look at recordings, check them, and make new ones of them or of tables."""


@command.command("show")
@_recording
def show(path: Path) -> None:
    """Show what a recording holds: topics, partitions, offsets, times, sizes, gaps."""
    recording = Recording.open(path)
    manifest = recording.manifest
    console = _console()
    console.print(f"recorded from {manifest.source}, begun {time_text(manifest.created_ms)}", soft_wrap=True)
    if manifest.redacted_fields:
        console.print(f"fields taken out: {', '.join(manifest.redacted_fields)}", soft_wrap=True)
    for one in manifest.cuts:
        console.print(f"cut from a larger one: {_cut_text(one)}", soft_wrap=True)
    if manifest.snapshot is not None:
        console.print(f"starts from the snapshot in {manifest.snapshot}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("topic", overflow="fold")
    for name in ("partition", "records", "offsets", "missing"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("first", "newest"):
        table.add_column(name, no_wrap=True)
    for topic in recording.topics:
        _add_topic(table, recording, topic)
    console.print(table)


def _add_topic(table: Table, recording: Recording, topic: str) -> None:
    """A row for the topic, then one a partition."""
    entry = recording.manifest.topics[topic]
    files = recording.files(topic)
    size = sum((recording.path / file.path).stat().st_size for file in files if (recording.path / file.path).exists())
    rows = f"{recording.rows(topic):,}"
    table.add_row(
        topic,
        f"{entry.partition_count} in all",
        rows,
        f"{len(files)} file{'s' * (len(files) != 1)}",
        _missing(entry),
        _size(size),
    )
    for p in sorted({p for file in files for p in file.partitions}):
        ranges = [file.partitions[p] for file in files if p in file.partitions]
        table.add_row(
            "",
            str(p),
            f"{sum(one.rows for one in ranges):,}",
            f"{ranges[0].first_offset}-{ranges[-1].next_offset - 1}",
            _missing(entry, p),
            time_text(ranges[0].first_timestamp_ms),
            time_text(max(one.max_timestamp_ms for one in ranges)),
        )


def _missing(entry: TopicEntry, partition: int | None = None) -> str:
    gaps = [gap for gap in entry.gaps if partition in (None, gap.partition)]
    return f"{sum(gap.to_offset - gap.from_offset for gap in gaps):,}" if gaps else "-"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def _cut_text(one: Cut) -> str:
    parts = []
    if one.from_ms is not None:
        parts.append(f"from {time_text(one.from_ms)}")
    if one.to_ms is not None:
        parts.append(f"before {time_text(one.to_ms)}")
    if one.topics is not None:
        parts.append(f"topics {', '.join(one.topics)}")
    if one.product_ids is not None:
        parts.append(f"products {', '.join(one.product_ids)}")
    return "; ".join(parts)


@command.command("verify")
@_recording
def verify(path: Path) -> None:
    """Read all of a recording and compare it with its manifest: bytes, order, offsets, rows. Exit code 1 when anything
    is wrong."""
    recording = Recording.open(path)
    findings = recording.verify()
    for finding in findings:
        click.echo(finding)
    rows = sum(recording.rows(topic) for topic in recording.topics)
    click.echo(f"{len(findings)} findings" if findings else f"{path} is whole: {rows:,} records")
    sys.exit(1 if findings else 0)


@command.command("cut")
@_recording
@_output
@click.option("--from", "from_ms", type=_TimeType(), help="Without what is due before; ISO, UTC unless it tells more.")
@click.option("--to", "to_ms", type=_TimeType(), help="Without what is due then and later.")
@click.option("--topic", "topics", multiple=True, help="Only this topic; repeatable.")
@click.option("--product", "products", multiple=True, metavar="PRODUCT_ID", help="Only this product; repeatable.")
def cut(
    path: Path,
    output: Path,
    from_ms: int | None,
    to_ms: int | None,
    topics: tuple[str, ...],
    products: tuple[str, ...],
) -> None:
    """Write a part of a recording to a new one. Records keep their offsets; the new manifest says what was cut."""
    if from_ms is to_ms is None and not topics and not products:
        raise click.UsageError("say what to keep: --from, --to, --topic or --product")
    wanted = Cut(from_ms, to_ms, sorted(set(products)) or None, sorted(set(topics)) or None)
    rows = recording_edit.cut(Recording.open(path), output, wanted)
    click.echo(f"{output} holds {rows:,} records")


@command.command("merge")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RECORDING...")
@_output
def merge(paths: Sequence[Path], output: Path) -> None:
    """Put recordings of the same topics together in a new one. Records that several hold are kept once."""
    rows = recording_edit.merge([Recording.open(path) for path in paths], output)
    click.echo(f"{output} holds {rows:,} records")


@command.command("import")
@click.argument("path", type=click.Path(exists=True, path_type=Path), metavar="TABLE")
@_output
@click.option("--from", "ready", type=click.Choice(list(READY)), help="A public table whose columns are known.")
@click.option("--kind", type=click.Choice(_KINDS), help="What the rows of any other table are.")
@click.option(
    "--map", "columns", multiple=True, type=_PairType(), metavar="FIELD=COLUMN", help="Column of a field; repeatable."
)
@click.option(
    "--set", "constants", multiple=True, type=_PairType(), metavar="FIELD=VALUE", help="The same for all rows."
)
@click.option("--time-zone", help="Of times that tell none; the mapping's own, else the setting's.")
@click.option("--partitions", type=click.IntRange(min=1), help="Of each topic; the setting's partition_count.")
@click.option("--locations/--no-locations", default=True, help="Keep the shop that an order is of, where it is told.")
@click.option("--skip-invalid", is_flag=True, help="Leave out rows that make no event.")
def import_table(  # noqa: PLR0913 - each is an independent option
    path: Path,
    output: Path,
    ready: str | None,
    kind: str | None,
    columns: tuple[tuple[str, str], ...],
    constants: tuple[tuple[str, str], ...],
    time_zone: str | None,
    partitions: int | None,
    locations: bool,
    skip_invalid: bool,
) -> None:
    """Make a recording of a Parquet, CSV or JSON Lines table: each row an event, as a shop would have sent it.

    Either a ready mapping (--from), or --kind with --map FIELD=COLUMN for each field. Two imports of one table hold the
    same bytes.
    """
    from worker.transport import murmur2_partition  # noqa: PLC0415 - loads Faust, which nothing else here needs

    if (ready is None) == (kind is None):
        raise click.UsageError("say what the table is: --from one of the ready mappings, or --kind with --map")
    if ready is not None and (columns or constants or skip_invalid):
        raise click.UsageError("--map, --set and --skip-invalid go with --kind: a ready mapping knows its columns")
    settings = load_settings(os.environ)
    skipped: list[str] = []
    if ready is not None:
        events = READY[ready].events(path, _zone(time_zone or READY[ready].time_zone), locations)
    else:
        zone = _zone(time_zone or settings.time_zone)
        wanted = Columns(str(kind), dict(columns), dict(constants), zone, skip_invalid)
        events = {str(kind): mapped_events(path, wanted, skipped.append)}
    target = Target(
        output,
        source=f"{ready or kind}: {path.name}",
        created_ms=int(time.time() * 1000),
        topics={source: topic for topic, source in settings.input_topics.items()},
        partition_count=partitions or settings.partition_count,
        partition_of=murmur2_partition,
    )
    for topic, count in write_events(target, events).items():
        click.echo(f"{topic}: {count:,} events")
    for text in skipped[:_SHOWN_SKIPPED]:
        click.echo(f"left out: {text}")
    if skipped:
        click.echo(f"{len(skipped):,} rows left out")


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError) as error:
        raise SettingsError(f"unknown time zone {name!r}: use an IANA name such as Europe/London") from error
    return name


def _console() -> Console:
    """On standard output; colours only on a terminal."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=_PIPE_WIDTH)
