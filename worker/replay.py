"""`shelfcast replay`: send a recording onto a broker again, with the clock by which its forecasts come out the same."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from feature_store.clock_ticks import DEFAULT_INTERVAL_MS, TickRules, ticks
from feature_store.recording_files import Recording, RecordingError
from feature_store.store import StoreError
from feature_store.time_text import parse_time_ms
from worker.errors import ShelfcastError
from worker.recorded_snapshot import restore_recorded, with_calendar
from worker.replay_keys import PauseKeys
from worker.replay_pace import Pace
from worker.replay_topics import (
    ReplayTopics,
    prepare_topics,
    refuse_recorded_topics,
    replay_environment,
    replay_settings,
    replay_topics,
)
from worker.replayer import Replayer
from worker.settings import Settings, load_settings
from worker.topics import kafka_client_config

_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SHOW_EVERY_S = 0.2


class _DurationType(click.ParamType):
    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)([smhd])", value)
        if match is None or not int(match[1]):
            self.fail(f"{value!r} is no duration: write 15m, 1h or 1d", param, ctx)
        return int(match[1]) * _UNITS_MS[match[2]]


class _TimeType(click.ParamType):
    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_time_ms(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class ReplayPlan(NamedTuple):
    """What to replay and how. Times are milliseconds, UTC; speed 0 = as fast as possible."""

    recording: Recording
    topics: Sequence[str]
    speed: float = 0.0
    tick_ms: int = DEFAULT_INTERVAL_MS
    from_ms: int | None = None
    to_ms: int | None = None
    resume: bool = False


class Replayed(NamedTuple):
    """What a replay has sent, without what stood there before."""

    records: int
    ticks: int
    wall_s: float


@click.command("replay")
@click.argument("recording", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prefix", default="replay.", show_default=True, help="Before the names of topics and the namespace.")
@click.option(
    "--topic", "topics", multiple=True, metavar="TOPIC", help="Only this one, by its recorded name; repeatable."
)
@click.option(
    "--speed",
    default=0.0,
    type=click.FloatRange(min=0),
    help="Recorded seconds a second, 1 = real time.  [default: as fast as possible]",
)
@click.option(
    "--tick",
    "tick_ms",
    type=_DurationType(),
    default=DEFAULT_INTERVAL_MS,
    help="Recorded time between two ticks of the clock, which is when a worker forecasts: 15m, 1h, 1d.  [default: 1h]",
)
@click.option("--no-clock", is_flag=True, help="Records only, for a worker with SHELFCAST_CLOCK=wall.")
@click.option("--from", "from_ms", type=_TimeType(), help="Begin with what is due at this time, UTC unless it says.")
@click.option("--to", "to_ms", type=_TimeType(), help="End before what is due at this time.")
@click.option("--resume", is_flag=True, help="Go on with a replay that was broken off.")
@click.option(
    "--print-environment", is_flag=True, help="Send nothing; print the settings of a worker for this replay, for eval."
)
def command(recording: Path, prefix: str, topics: tuple[str, ...], **options: Any) -> None:
    """Send RECORDING again: the same partitions, keys, values, headers and timestamps, in the order of timestamps.

    A worker for the replay, in another terminal, is kept apart from the shop's by the prefix:

        eval "$(shelfcast replay RECORDING --print-environment)" && shelfcast worker

    Key p (or the signal USR1) pauses and goes on, Ctrl-C ends.
    """
    try:
        opened = Recording.open(recording)
        shop = load_settings(os.environ)
        chosen = list(topics) or opened.topics
        settings = replay_settings(shop, opened, prefix, chosen)
        if options.pop("print_environment"):
            for name, value in replay_environment(settings, shop).items():
                click.echo(f"export {name}={shlex.quote(value)}")
            return
        where = replay_topics(shop, opened, prefix, chosen, clock=not options.pop("no_clock"))
        plan = ReplayPlan(opened, chosen, **options)
        with PauseKeys() as keys:
            done = run_replay(plan, settings, where, Console(stderr=True), keys)
    except RecordingError as error:
        raise ShelfcastError(str(error)) from error
    except KeyboardInterrupt:
        raise ShelfcastError("ended before the recording did; --resume goes on") from None
    click.echo(
        f"{done.records:,} records and {done.ticks:,} ticks in {done.wall_s:.1f} s "
        f"({done.records / max(done.wall_s, 1e-9):,.0f} records/s)"
    )


def run_replay(
    plan: ReplayPlan,
    settings: Settings,
    where: ReplayTopics,
    console: Console | None = None,
    keys: PauseKeys | None = None,
) -> Replayed:
    """Replay with the settings of the replay's worker.

    1. Refuse what would do harm; create topics; bring back the features that the recording starts from.
    2. Send stretch after stretch, each record once it is due, and each tick behind the records that it names.
    3. Wait until Kafka has everything.

    Raises:
        TopicError: the topics are the recorded ones, do not fit, or hold records; or Kafka refused a record.
        RecordingError: the recording is damaged.
    """
    refuse_recorded_topics(plan.recording, settings, where)  # 1
    standing = prepare_topics(settings, where, plan.resume)
    if not plan.resume:
        _restore(plan.recording, settings)
    started_s = time.monotonic()
    replayer = Replayer(kafka_client_config(settings), where.ticked, standing=standing)
    rules = TickRules(settings.shop_calendar(), settings.forecast_freqs, settings.out_of_orderness_ms, plan.tick_ms)
    recorded = plan.recording.merged(plan.topics, from_ms=plan.from_ms, to_ms=plan.to_ms)
    calendar = next((topic for topic, name in where.names.items() if name == settings.topic_calendar_global), "")
    merged = with_calendar(recorded, plan.recording, calendar)
    total = sum(plan.recording.rows(topic) for topic in plan.topics)
    with _screen(console, total) as show:
        pace = Pace(plan.speed, lambda: show.look(keys))
        for rows, tick_ms in ticks(merged, rules):  # 2
            if rows is not None:
                names = [where.names[topic] for topic in rows.topics]
                for start, stop in pace.parts(rows.due_ms):
                    replayer.send(rows.part(start, stop), names)
                    show.sent(stop - start, int(rows.due_ms[stop - 1]))
            if tick_ms is not None:
                pace.wait_until(tick_ms)
                replayer.tick(tick_ms)
        replayer.flush()  # 3
    return Replayed(replayer.sent, replayer.ticks, time.monotonic() - started_s)


def _restore(recording: Recording, settings: Settings) -> None:
    try:
        asyncio.run(restore_recorded(recording, settings))
    except StoreError as error:
        raise ShelfcastError(
            f"{recording.path} starts from a snapshot, which can't be brought back under namespace "
            f"{settings.namespace!r}: {error} (another --prefix begins anew)"
        ) from error


class _Screen:
    """The progress bar; nothing where there is no console."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total, state="") if progress else None
        self._waiting, self._shown_s, self._due_ms = 0, 0.0, 0
        self._paused = False

    def sent(self, records: int, due_ms: int) -> None:
        """So many more records are on their way; the last was due then."""
        self._waiting, self._due_ms = self._waiting + records, due_ms
        self._show()

    def look(self, keys: PauseKeys | None) -> bool:
        """Whether the replay is to stand still."""
        paused = keys is not None and keys.paused()
        if paused != self._paused:
            self._paused, self._shown_s = paused, 0.0
            self._show()
        return paused

    def _show(self) -> None:
        if self._progress is None or self._task is None or time.monotonic() - self._shown_s < _SHOW_EVERY_S:
            return
        when = dt.datetime.fromtimestamp(self._due_ms / 1000, dt.UTC)
        self._progress.update(
            self._task,
            advance=self._waiting,
            description=f"{when:%Y-%m-%d %H:%M} UTC",
            state="paused: p goes on" if self._paused else "",
        )
        self._waiting, self._shown_s = 0, time.monotonic()

    def end(self) -> None:
        """Show what is left to show."""
        self._shown_s = 0.0
        self._show()


@contextmanager
def _screen(console: Console | None, total: int) -> Iterator[_Screen]:
    if console is None:
        yield _Screen(None, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console) as progress:
        screen = _Screen(progress, total)
        yield screen
        screen.end()
