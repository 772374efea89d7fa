"""`shelfcast demo`: four weeks of real orders through the whole of shelfcast, on servers of its own."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.live import Live

from feature_store.calendar_time import bucket_start_ms
from feature_store.clock_ticks import TickRules, ticks
from forecaster.accuracy import wape
from forecaster.contract import QUANTILE_LEVELS
from worker.demo_events import TIME_ZONE, DemoEvents, load_demo_events
from worker.demo_screen import Progress, live_table, summary_panel
from worker.demo_watch import ForecastWatch, Placed
from worker.errors import TopicError
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker
from worker.replay_pace import Pace
from worker.replayer import Replayer, TickedTopics
from worker.settings import Settings, load_settings
from worker.topics import ensure_topics, kafka_client_config

_STEP_MS = 2 * 3_600_000
_SHOWN = 12
_ANSWER_S = 60.0
_LOW, _MIDDLE, _HIGH = (QUANTILE_LEVELS.index(level) for level in (0.1, 0.5, 0.9))


@click.command("demo")
@click.option("--speed", default=0.0, help="Shop seconds a second; 0 = as fast as forecasts come.", show_default=True)
@click.option("--seconds", default=0.0, help="Stop replaying after this long; 0 = at the end.", show_default=True)
@click.option("--items", default=600, help="The busiest products.", show_default=True)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the summary here."
)
def command(speed: float, seconds: float, items: int, json_file: Path | None) -> None:
    """Replay four weeks of real orders and watch forecasts change."""
    console = Console()
    console.print("Starting a Kafka-compatible broker, Redis and Triton on this machine …")
    with LocalStack() as stack:
        console.print(f"Ready. Logs of the servers and the worker are in {stack.logs} while the demo runs.")
        summary = run_demo(stack, console, Bounds(speed, seconds), items)
    console.print(summary_panel(summary))
    if json_file is not None:
        json_file.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def demo_environment(stack: LocalStack) -> dict[str, str]:
    """Settings of the demo's worker: a replay with daily forecasts in the shop's own time zone."""
    return {
        "SHELFCAST_KAFKA_BOOTSTRAP_SERVERS": stack.bootstrap_servers,
        "SHELFCAST_KAFKA_SESSION_TIMEOUT_S": "6",
        # The embedded broker does not look for new records before this time is up.
        "SHELFCAST_KAFKA_FETCH_MAX_WAIT_MS": "10",
        "SHELFCAST_REDIS_URL": stack.redis_url,
        "SHELFCAST_TRITON_URL": stack.triton_url,
        "SHELFCAST_NAMESPACE": "demo",
        "SHELFCAST_PARTITION_COUNT": "4",
        "SHELFCAST_CLOCK": "event",
        "SHELFCAST_TIME_ZONE": TIME_ZONE,
        "SHELFCAST_CURRENCY": "GBP",
        "SHELFCAST_FORECAST_FREQS": "1d",
    }


class Step(NamedTuple):
    """Records to send, and the shop time at which they are all due."""

    first: int
    stop: int
    tick_ms: int
    closes_day: bool  # every item is forecast anew for the day that has begun


def steps_of(events: DemoEvents, settings: Settings) -> Iterator[Step]:
    """Two hours a step, leaving out those in which nothing happens, and a step just after each local midnight, the last
    one that of the last day."""
    calendar = settings.shop_calendar()
    rules = TickRules(calendar, settings.forecast_freqs, settings.out_of_orderness_ms, _STEP_MS)
    next_day = calendar.buckets("1d", np.array([events.last_ms]), [""]) + 1
    until_ms = int(bucket_start_ms("1d", next_day, settings.time_zone)[0]) + settings.out_of_orderness_ms
    closing = set(rules.closes(events.first_ms, until_ms).tolist())
    first = stop = 0
    for rows, tick_ms in ticks([events.rows], rules, until_ms):
        stop += 0 if rows is None else len(rows.due_ms)
        if tick_ms is not None:
            yield Step(first, stop, tick_ms, tick_ms in closing)
            first = stop


class Bounds(NamedTuple):
    """How fast to replay and how long: shop seconds a second, wall seconds; 0 = no bound."""

    speed: float = 0.0
    seconds: float = 0.0


def run_demo(stack: LocalStack, console: Console, bounds: Bounds, items: int) -> dict[str, Any]:
    """Start a worker on the stack, replay, show, and return the summary."""
    started = time.monotonic()
    environment = demo_environment(stack)
    settings = load_settings(environment)
    events = load_demo_events(settings, items)
    ensure_topics(settings)
    worker = LocalWorker(stack.directory, environment)
    watch = _watch(settings)
    try:
        worker.start()
        watch.start()
        with Live(console=console, refresh_per_second=8, transient=False) as live:
            replayed = _replay(events, settings, watch, worker, live, bounds)
        worker.stop()
        if worker.exit_code != 0:
            raise worker.failure(f"ended with exit code {worker.exit_code}")
    finally:
        watch.stop()
        worker.kill()
    return _summary(events, settings, watch, replayed, time.monotonic() - started)


def _watch(settings: Settings) -> ForecastWatch:
    aside = [f"{topic}.{kind}" for topic in settings.input_topics for kind in ("dlq", "late")]
    return ForecastWatch(kafka_client_config(settings), settings.topic_forecasts, settings.topic_orders, aside)


def _replay(
    events: DemoEvents,
    settings: Settings,
    watch: ForecastWatch,
    worker: LocalWorker,
    live: Live,
    bounds: Bounds,
) -> Step:
    """Send step after step, each once the forecasts of the one before it are there. Returns the last step sent."""
    ticked = TickedTopics(settings.topic_clock, settings.partition_count, events.rows.topics)
    replayer = Replayer(kafka_client_config(settings), ticked)
    began = time.monotonic()
    pace = Pace(bounds.speed)
    pace.wait_until(events.first_ms)
    busiest = [product for product, _ in Counter(filter(None, events.references)).most_common(_SHOWN)]
    order_lines = 0
    step = Step(0, 0, events.first_ms, closes_day=False)
    for step in steps_of(events, settings):
        rows, references = events.rows.part(step.first, step.stop), events.references[step.first : step.stop]
        orders = [Placed(*pair) for pair in zip(references, rows.offset.tolist(), strict=True) if pair[0]]
        order_lines += len(orders)
        pace.wait_until(step.tick_ms)
        watch.expect(orders, time.monotonic())
        replayer.send(rows)
        if step.closes_day:
            watch.expect_refresh(step.tick_ms)
        replayer.tick(step.tick_ms)
        replayer.flush()
        _await_forecasts(watch, worker)
        with watch.lock:
            changed = set(references)
            progress = Progress(
                step.tick_ms, order_lines, step.stop, watch.forecasts, time.monotonic() - began, changed
            )
            live.update(live_table(progress, busiest, events.titles, watch.latest, settings.time_zone))
        if bounds.seconds and time.monotonic() - began > bounds.seconds:
            break
    return step


def _await_forecasts(watch: ForecastWatch, worker: LocalWorker) -> None:
    deadline = time.monotonic() + _ANSWER_S
    while not watch.wait_until_seen(1.0):
        if not worker.is_running:
            raise worker.failure("ended")
        if time.monotonic() > deadline:
            raise worker.failure(f"made no forecast for {_ANSWER_S:.0f} s")
    if watch.failure:
        raise TopicError(f"reading forecasts: {watch.failure}")


def _summary(events: DemoEvents, settings: Settings, watch: ForecastWatch, last: Step, wall_s: float) -> dict[str, Any]:
    first_day, last_day = settings.shop_calendar().buckets("1d", np.array([events.first_ms, last.tick_ms]), ["", ""])
    actual, median, low, high, naive = [], [], [], [], []
    starts = bucket_start_ms("1d", np.arange(first_day, last_day + 1), settings.time_zone).tolist()
    for (item_id, start), ahead in watch.day_ahead.items():
        # Days that are over, and whose same day a week before was replayed too.
        day = int(first_day) + starts.index(start)
        if not first_day + 7 <= day < last_day:
            continue
        actual.append(events.sales.get((item_id, day), 0.0))
        naive.append(events.sales.get((item_id, day - 7), 0.0))
        median.append(ahead.quantiles[_MIDDLE])
        low.append(ahead.quantiles[_LOW])
        high.append(ahead.quantiles[_HIGH])
    y = np.array(actual)
    latencies_ms = np.array(watch.latencies_s or [0.0]) * 1000
    return {
        "events": last.stop,
        "order_lines": sum(map(bool, events.references[: last.stop])),
        "forecasts": watch.forecasts,
        "items": len(watch.latest),
        "rejects": watch.rejects,
        "latency_ms": {
            "p50": round(float(np.percentile(latencies_ms, 50)), 1),
            "p99": round(float(np.percentile(latencies_ms, 99)), 1),
        },
        "wape": round(float(wape(y, np.array(median))), 4) if len(y) else None,
        "seasonal_naive_wape": round(float(wape(y, np.array(naive))), 4) if len(y) else None,
        "coverage_80": round(float(np.mean((y >= np.array(low)) & (y <= np.array(high)))), 4) if len(y) else None,
        "days": int(last_day - first_day),
        "wall_s": round(wall_s, 1),
    }
