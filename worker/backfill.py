"""`shelfcast backfill`: fill features from tables of past orders, clicks and reviews, before a worker's first start.

Rows go through the worker's own lane, in the order of their event time, and their places are kept as positions of a
topic of their own: so each counts once, whatever is killed, and a second run goes on where the first ended. The join to
the live topics is exact in one of two ways:

- `--before TIME`: the tables hold everything that happened before it. Later rows are left to the live topics; of those,
  lanes drop what happened earlier (shelfcast_counted_before), wherever it stands. Event time is the one thing that a
  warehouse and a topic surely have in common; the price is that the table has to be complete up to that time.
- `--offsets`: the tables have Kafka's partition and offset of each row, as sinks write them. They are the topic's own
  records then: the lane's position moves past them, and live reading goes on behind the last.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from feature_store.store import BackfillTable, Claim, FeatureStore, FencedError, StoreRefusedError
from worker.aside import Message
from worker.backfill_tables import SOURCES, PastEvents, TableFiles, slices
from worker.errors import ShelfcastError, TableError
from worker.lane import Lane
from worker.lane_state import LaneRules
from worker.rules import lane_rules
from worker.settings import Settings, load_settings
from worker.snapshot import TimeType, run_on_store
from worker.transport import murmur2_partition

# Event time by which a source runs ahead of the others at most. It must not pass a window of de-duplication: an id
# that has left it is no longer looked for.
_MOST_SLICE_MS, _LEAST_SLICE_MS = 86_400_000, 300_000
_MOST_AT_ONCE = 20_000  # rows in one step, as of a live lane
_SHOWN = 5


@click.command("backfill")
@click.argument("tables", nargs=-1, required=True, metavar="SOURCE=TABLE...")
@click.option("--before", type=TimeType(), help="The tables hold everything that happened before this time.")
@click.option("--offsets", is_flag=True, help="The tables have Kafka's columns partition and offset.")
@click.option(
    "--column", "columns", multiple=True, metavar="SOURCE.FIELD=NAME", help="Column of a field, if named otherwise."
)
@click.option(
    "--rejects",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for rows that can't be used, JSON Lines; it is appended to.",
)
def command(
    tables: tuple[str, ...], before: int | None, offsets: bool, columns: tuple[str, ...], rejects: Path | None
) -> None:
    """Fill features from tables of past events, before a worker's first start: SOURCE is orders, clicks or reviews,
    TABLE a Parquet, CSV or JSON Lines file whose columns are the fields of the messages. Give all tables at once.

    Killed, it is run again with the same tables and goes on. Workers start when it has ended.
    """
    if (before is None) != offsets:
        raise click.UsageError("say how the tables join the live topics: either --before TIME or --offsets")
    settings = load_settings(os.environ)
    files = _table_files(tables, columns)
    past = [_past_events(settings, one, before) for one in files]
    for table in past:
        left_out = f", {table.left_out} left to the live topic" if table.left_out else ""
        click.echo(f"{table.source}: {len(table)} rows{left_out}")
    aside = Aside(rejects)
    run_on_store(settings, lambda store: Backfill(settings, store, past, aside).run())
    aside.tell()


class Aside:
    """Rows that could not be used, and those too old to be kept."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._shown: list[str] = []
        self.counts: Counter[str] = Counter()

    async def send(self, topic: str, _: int, messages: Sequence[Message]) -> None:
        """In the place of the dead-letter and late topics."""
        lines = []
        for message in messages:
            headers = {name: value.decode() for name, value in message.headers}
            reason = headers["shelfcast.reason"]
            self.counts[reason] += 1
            value = (message.value or b"").decode("utf-8", "replace")
            lines.append(msgspec.json.encode({"reason": reason, "detail": headers["shelfcast.detail"], "value": value}))
            if topic.endswith(".dlq") and len(self._shown) < _SHOWN:
                self._shown.append(f"  {reason}: {headers['shelfcast.detail']}: {value[:200]}")
        if self._path is not None:
            await asyncio.to_thread(self._append, lines)

    def _append(self, lines: Sequence[bytes]) -> None:
        assert self._path is not None
        with self._path.open("ab") as file:
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())  # before the position moves past them

    def tell(self) -> None:
        """Say what was set aside in this run."""
        late = self.counts.pop("late", 0)
        if late:
            click.echo(f"{late} rows are older than what is kept (SHELFCAST_RETENTION_1D)")
        if self.counts:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
            where = f"; all of them are in {self._path}" if self._path else "; --rejects FILE keeps them"
            click.echo(f"rows that can't be used: {counts}{where}\n" + "\n".join(self._shown))


class Backfill:
    """Fills the partitions of a namespace from tables, one a source."""

    def __init__(self, settings: Settings, store: FeatureStore, tables: Sequence[PastEvents], aside: Aside) -> None:
        self._settings, self._store, self._tables, self._aside = settings, store, tables, aside
        self._now_ms = 0  # event time reached: what a lane takes for the clock

    async def run(self) -> None:
        """1. Mark in every partition what is being filled in: from now on no worker starts on it.
        2. Partition by partition, apply the rows that are not in yet.
        3. Mark that all are in.

        Raises:
            StoreRefusedError: the features hold live events, or another table of the source.
        """
        if findings := await self._store.check_server(may_be_filled=True):
            raise StoreRefusedError(" ".join(findings))
        self._refuse_absent_partitions()
        claims = {p: await self._store.claim(p) for p in range(self._settings.partition_count)}
        left: dict[int, list[PastEvents]] = {}
        for p, claim in claims.items():  # 1
            left[p] = [t for t in self._tables if await self._store.backfill_marks().begin(claim, self._mark(t))]
        try:
            for p, claim in claims.items():
                await self._fill(claim, left[p])  # 2
        except FencedError as error:
            raise StoreRefusedError(
                f"{error}: stop the workers of namespace {self._settings.namespace!r} and run the command again, it "
                "goes on where it stopped"
            ) from error
        for p, claim in claims.items():  # 3
            for table in left[p]:
                await self._store.backfill_marks().end(claim, self._mark(table))
        click.echo("all rows are in the features" if any(left.values()) else "all rows were in the features before")

    def _refuse_absent_partitions(self) -> None:
        count = self._settings.partition_count
        for table in self._tables:
            if absent := [p for p in table.partitions if not 0 <= p < count]:
                raise TableError(
                    f"rows of {table.source} are of partition {absent[0]}, but SHELFCAST_PARTITION_COUNT is {count}: "
                    "set it to what the topics have"
                )

    async def _fill(self, claim: Claim, tables: Sequence[PastEvents]) -> None:
        claim.before.clear()  # that is for live events: the rows happened before
        lane = Lane(self._store, claim, self._rules())
        rows = 0
        windows = [window for window in self._settings.dedup_window_ms.values() if window]
        slice_ms = max(min([_MOST_SLICE_MS, *windows]), _LEAST_SLICE_MS)
        for cut in slices(tables, claim.partition, slice_ms):
            self._now_ms = max(int(table.due_ms(claim.partition)[stop - 1]) for table, _, stop in cut)
            for table, first, stop in cut:
                for start in range(first, stop, _MOST_AT_ONCE):
                    rows += await self._step(lane, table, start, min(start + _MOST_AT_ONCE, stop))
        if tables:
            click.echo(f"partition {claim.partition}: {rows} rows counted in this run")

    async def _step(self, lane: Lane, table: PastEvents, first: int, stop: int) -> int:
        position = lane.claim.positions.get(table.topic, 0)
        if table.last_offset(lane.partition, stop) < position:
            return 0
        await lane.handle(table.records(lane.partition, first, stop))
        return stop - first

    def _mark(self, table: PastEvents) -> BackfillTable:
        return BackfillTable(table.source, table.digest, table.live_topic, table.before_ms)

    def _rules(self) -> LaneRules:
        rules = lane_rules(self._settings, clock_topic="", send=self._aside.send)
        sources = {table.topic: table.source for table in self._tables}
        return dataclasses.replace(rules, sources=sources, now_ms=lambda: self._now_ms)


def _past_events(settings: Settings, files: TableFiles, before_ms: int | None) -> PastEvents:
    count = settings.partition_count
    live_topic: str = getattr(settings, f"topic_{files.source}")
    return PastEvents(files, lambda name: murmur2_partition(name, count), before_ms=before_ms, live_topic=live_topic)


def _table_files(tables: Sequence[str], columns: Sequence[str]) -> list[TableFiles]:
    """SOURCE=TABLE and SOURCE.FIELD=NAME as they were typed."""
    paths: dict[str, list[Path]] = {}
    for text in tables:
        source, equals, path = text.partition("=")
        if not equals or source not in SOURCES:
            raise ShelfcastError(f"{text!r}: write SOURCE=TABLE, with SOURCE one of {', '.join(SOURCES)}")
        paths.setdefault(source, []).append(Path(path))
    named: dict[str, dict[str, str]] = {source: {} for source in paths}
    for text in columns:
        place, _, name = text.partition("=")
        source, _, field = place.partition(".")
        if not name or not field or source not in named:
            raise ShelfcastError(f"--column {text}: write SOURCE.FIELD=NAME, with a SOURCE of which there is a table")
        named[source][field] = name
    return [TableFiles(source, own, named[source]) for source, own in paths.items()]
