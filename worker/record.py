"""`shelfcast record`: topics saved to files, byte for byte."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from feature_store.recording_files import Gap, Manifest, RecordingWriter, TopicEntry
from feature_store.recording_manifest import MANIFEST_NAME, load_manifest, positions_of
from feature_store.store import StoreError
from worker.errors import ShelfcastError
from worker.record_span import Partition, Places, Point, Start
from worker.recorded_snapshot import FOLDER, keep_copy, positions
from worker.redaction import NotJson, Redaction
from worker.settings import Settings, load_settings
from worker.topic_recorder import TopicRecorder, consumer_config
from worker.topics import kafka_client_config

_SHOWN_EVERY_S = 0.2


class _PointType(click.ParamType):
    """A Point; `words` are those it may be besides an offset and a time."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.name = "|".join([*words, "OFFSET", "TIME"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Point:
        try:
            return value if isinstance(value, Point) else Point.parse(value, self.words)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("record")
@click.argument("topics", nargs=-1, metavar="[TOPIC]...")
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the recording: a new one, or one to go on with.",
)
@click.option(
    "--from",
    "start",
    type=_PointType("earliest", "now"),
    default="earliest",
    show_default=True,
    help="Where to begin; times are ISO, and UTC unless they name an offset.",
)
@click.option(
    "--snapshot",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Begin where this snapshot was taken, whatever --from says, and keep a copy: replays do not start cold.",
)
@click.option("--to", "end", type=_PointType("end"), help="Where to end; without it at Ctrl-C.")
@click.option(
    "--redact",
    multiple=True,
    metavar="FIELDS",
    help="Fields to take out of JSON values, comma-separated: email,customer.name. Keys and headers stay.",
)
@click.option(
    "--not-json",
    type=click.Choice(["fail", "keep", "empty"]),
    default="fail",
    show_default=True,
    help="With --redact, what becomes of values that are no JSON objects.",
)
@click.option(
    "--roll-records", default=500_000, show_default=True, type=click.IntRange(min=1), help="Records in a file, at most."
)
@click.option(
    "--roll-seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="A new file after so long: what a kill costs to read again.",
)
def command(  # noqa: PLR0913 - each is an independent option
    topics: tuple[str, ...],
    output: Path,
    start: Point,
    snapshot: Path | None,
    end: Point | None,
    redact: tuple[str, ...],
    not_json: NotJson,
    roll_records: int,
    roll_seconds: float,
) -> None:
    """Record topics into a folder: keys, values, headers, partitions, offsets and timestamps as they are.

    Without TOPIC all input topics of the settings are recorded. After a kill the same command goes on where the
    recording ends, without loss or duplicate; --from then counts only for what has not begun yet.
    """
    settings = load_settings(os.environ)
    try:
        redaction = Redaction([field.strip() for text in redact for field in text.split(",")], not_json)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--redact") from error
    chosen = sorted(set(topics or [*settings.input_topics, settings.topic_calendar_global]))
    places = Places(consumer_config(kafka_client_config(settings)))
    try:
        standing = positions(snapshot) if snapshot is not None else {}
    except StoreError as error:
        raise ShelfcastError(str(error)) from error
    starts, manifest = _plan(settings, places, chosen, start, output, standing)
    manifest.redacted_fields = redaction.fields
    manifest.snapshot = FOLDER if snapshot is not None else None
    # Thousands of records are held at a time, and none is ever in a cycle: looking for cycles took half of all time.
    gc.set_threshold(500_000)
    stopped = _stop_signals()
    with RecordingWriter(output, manifest, roll_rows=roll_records) as writer:
        if snapshot is not None:
            keep_copy(snapshot, output)
        recorder = TopicRecorder(kafka_client_config(settings), writer, redaction, roll_s=roll_seconds)
        with _Screen(writer, recorder) as screen:
            recorder.run(starts, end, lambda: bool(stopped), screen.show)


def _plan(
    settings: Settings,
    places: Places,
    topics: Sequence[str],
    point: Point,
    output: Path,
    standing: Mapping[Partition, int],
) -> tuple[dict[Partition, Start], Manifest]:
    """Where to read each partition from, and what a new recording of them says; `standing` are a snapshot's
    positions."""
    counts = places.partition_counts(topics)
    partitions = [(topic, p) for topic, count in counts.items() for p in range(count)]
    begun = positions_of(load_manifest(output)) if (output / MANIFEST_NAME).exists() else {}
    begun = {key: offset for key, offset in standing.items() if key in partitions} | begun
    fresh = [key for key in partitions if key not in begun]
    starts = {key: Start(offset) for key, offset in begun.items()} | (places.starts(point, fresh) if fresh else {})
    exact: dict[str, dict[int, int]] = {topic: {} for topic in topics}
    for (topic, p), start in starts.items():
        if start.is_exact and topic in exact:
            exact[topic][p] = start.offset
    manifest = Manifest(
        source=settings.kafka_bootstrap_servers,
        created_ms=int(time.time() * 1000),
        topics={topic: TopicEntry(count, start_offsets=exact[topic]) for topic, count in counts.items()},
        schema_versions=_schemas(settings, topics),
    )
    return {key: starts[key] for key in partitions}, manifest


def _schemas(settings: Settings, topics: Sequence[str]) -> dict[str, str]:
    """By topic the JSON schema of its messages, where it is one of ours."""
    known = {
        **settings.input_topics,
        settings.topic_calendar_global: "calendar_global",
        settings.topic_forecasts: "forecast",
        settings.topic_clock: "clock",
    }
    return {topic: known[topic] for topic in topics if topic in known}


def _stop_signals() -> list[int]:
    """Fills with the first SIGINT or SIGTERM; a second one ends the process at once."""
    stopped: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        stopped.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return stopped


class _Screen:
    """How far a recording is: a line that changes on a terminal, and what there is in the end."""

    def __init__(self, writer: RecordingWriter, recorder: TopicRecorder) -> None:
        self._writer, self._recorder = writer, recorder
        self._console = Console(highlight=False, markup=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._gaps = {topic: len(entry.gaps) for topic, entry in writer.manifest.topics.items()}
        self._began_s = self._shown_s = time.monotonic()
        self._shown_records = 0

    def __enter__(self) -> _Screen:
        held = self._writer.rows
        if held:
            self._console.print(f"going on with {self._writer.path}, which holds {held:,} records")
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._live.stop()
        if kind is not None:
            return
        records, seconds = self._recorder.records, time.monotonic() - self._began_s
        rate = records / seconds if seconds else 0.0
        self._console.print(
            f"{records:,} records in {seconds:,.1f} s ({rate:,.0f}/s); {self._writer.path} holds {self._writer.rows:,}",
            soft_wrap=True,
        )
        for topic, entry in self._writer.manifest.topics.items():
            for text in _gap_lines(topic, entry.gaps[self._gaps[topic] :]):
                self._console.print(text, soft_wrap=True)

    def show(self) -> None:
        """Called often; draws now and then."""
        now_s = time.monotonic()
        if not self._console.is_terminal or now_s < self._shown_s + _SHOWN_EVERY_S:
            return
        records = self._recorder.records
        rate = (records - self._shown_records) / (now_s - self._shown_s)
        self._shown_s, self._shown_records = now_s, records
        self._live.update(Text(f"{records:,} records, {rate:,.0f}/s; Ctrl-C ends the recording"), refresh=True)


def _gap_lines(topic: str, gaps: Sequence[Gap]) -> list[str]:
    """One a partition: how much is missing, and where."""
    missing: Counter[int] = Counter()
    for gap in gaps:
        missing[gap.partition] += gap.to_offset - gap.from_offset
    return [
        f"{topic} partition {p}: {count:,} offsets from {min(g.from_offset for g in gaps if g.partition == p)} on held "
        "no record that could be read: deleted by retention or compaction, or marks of transactions"
        for p, count in sorted(missing.items())
    ]
