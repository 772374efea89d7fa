"""What scoring, calibration and alerts cost of the events a second that one worker process takes in.

The same backlog, timed as `ingest` times it, with the three on and off in turns, each pair on the same servers within
a minute: machines drift, so ratios are taken pair by pair, and which of a pair goes first alternates.

* `put off`: nothing is forecast (forecast_interval_ms of an hour), as in `ingest`; what the three would then cost lies
  on the path of events itself.
* `baseline`: touched items are forecast all the while, from the baseline, for there is no model server. What the
  worker does for a forecast takes turns with events on its one event loop.
* `model`: the same with the shipped model in Triton, on the same cores.

The first forecast of an item in a bucket is the one that costs: by it the closed buckets are scored. In a backlog of
hours that is worked off in seconds most forecasts are first ones; live they come once an hour. `--hours` says how much
event time the events lie in.

A worker that forecasts is timed once it has sent 6,000 of them. What it has sent in the timed part is counted by the
ends of the output topic: a run that makes fewer forecasts leaves more time for events, so both are shown, and `cpu_s`,
the worker's processor time of the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click
import numpy as np
from confluent_kafka import Consumer, TopicPartition

from benchmarks.contestants import Shelfcast
from benchmarks.ingest import Backlog, Run, full_backlog, job_backlog, time_run
from benchmarks.report import show
from benchmarks.shop import environment
from worker.local_stack import LocalStack
from worker.settings import Settings, load_settings
from worker.topics import kafka_client_config

_OFF = {"calibrated_freqs": "", "scored_freqs": "", "alert_freqs": ""}
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "put off": {"forecast_interval_ms": 3_600_000},
    "baseline": {},
    "model": {},
}
_RESAMPLES = 2_000
_HOUR_MS = 3_600_000
_FORECAST_BEFORE = 6_000  # hourly and daily ones of the items that a warm-up touches


class Timed(NamedTuple):
    """A run, and how many forecasts it has sent in its timed part."""

    run: Run
    forecasts: int


def time_one(stack: LocalStack, way: str, backlog: Backlog, number: int, *, three: bool) -> Timed:
    """One timed run, with the three or without."""
    namespace = f"cost-{way.replace(' ', '-')}-{'with' if three else 'without'}-{number}"
    variables = environment(stack, namespace, kafka_session_timeout_s=10, **_SETTINGS[way], **({} if three else _OFF))
    settings = load_settings(variables)
    before = [0]

    def settle() -> None:
        while way != "put off" and before[0] < _FORECAST_BEFORE:
            time.sleep(0.1)
            before[0] = _sent(settings)

    run = time_run(stack, Shelfcast(stack.directory, variables), backlog, settle)
    return Timed(run, _sent(settings) - before[0])


def _sent(settings: Settings) -> int:
    """Forecasts in the output topic, superseded ones included."""
    consumer = Consumer(kafka_client_config(settings) | {"group.id": settings.namespace})
    try:
        ends = [
            consumer.get_watermark_offsets(TopicPartition(settings.topic_forecasts, partition), timeout=10)
            for partition in range(settings.partition_count)
        ]
        return sum(high for _, high in ends)
    finally:
        consumer.close()


def measure(events: int, hours: float, rounds: int, ways: Sequence[str], *, full: bool) -> dict[str, Any]:
    """By way of forecasting, what was taken in with and without. The events happened in the last `hours`."""
    now_ms, span_ms = time.time_ns() // 1_000_000, round(hours * _HOUR_MS)
    backlog = full_backlog(events, now_ms, span_ms) if full else job_backlog(events, now_ms, False, span_ms)
    found: dict[str, dict[bool, list[Timed]]] = {}
    for has_model in (False, True):
        chosen = [way for way in ways if (way == "model") == has_model]
        if not chosen:
            continue
        with LocalStack(triton=has_model) as stack:
            for number in range(rounds):
                for way in chosen:
                    pair = found.setdefault(way, {True: [], False: []})
                    for three in (number % 2 == 0, number % 2 == 1):
                        pair[three].append(time_one(stack, way, backlog, number, three=three))
    return {way: _summary(pair) for way, pair in found.items()}


def _summary(pair: Mapping[bool, Sequence[Timed]]) -> dict[str, Any]:
    """Medians, and the ratios of pairs with a 95 % interval of their median by bootstrap."""
    ratios = [a.run.events_per_s / b.run.events_per_s for a, b in zip(pair[True], pair[False], strict=True)]
    drawn = np.random.default_rng(1).choice(ratios, size=(_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {
        **{("with" if three else "without"): _told(timed) for three, timed in pair.items()},
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 3),
        "ratio_interval": [round(float(low), 3), round(float(high), 3)],
    }


def _told(timed: Sequence[Timed]) -> dict[str, Any]:
    return {
        "events_per_s": [round(one.run.events_per_s) for one in timed],
        "events_per_s_median": round(statistics.median(one.run.events_per_s for one in timed)),
        "cpu_s": [one.run.cpu_s for one in timed],
        "forecasts": [one.forecasts for one in timed],
        "correct": all(one.run.correct for one in timed),
    }


def _row(way: str, found: Mapping[str, Any]) -> list[str]:
    low, high = found["ratio_interval"]
    return [
        way,
        *(f"{found[name]['events_per_s_median']:,}" for name in ("without", "with")),
        f"{1 - found['ratio']:.1%}",
        f"{1 - high:.1%} to {1 - low:.1%}",
        *(f"{statistics.median(found[name]['forecasts']):,.0f}" for name in ("without", "with")),
        *(f"{statistics.median(found[name]['cpu_s']):.2f}" for name in ("without", "with")),
        "yes" if found["without"]["correct"] and found["with"]["correct"] else "NO",
    ]


@click.command()
@click.option("--events", default=600_000, show_default=True, help="Events in the backlog.")
@click.option("--hours", default=1.0, show_default=True, help="Event time that they lie in; `ingest` has 6.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Pairs of each way.")
@click.option(
    "--way", "ways", multiple=True, type=click.Choice(list(_SETTINGS)), help="May be given again.  [default: all]"
)
@click.option("--full", is_flag=True, help="Orders, clicks and reviews of full size, not small orders.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(events: int, hours: float, rounds: int, ways: tuple[str, ...], full: bool, as_json: bool) -> None:
    """What scoring, calibration and alerts cost of ingest throughput."""
    figures = measure(events, hours, rounds, ways or tuple(_SETTINGS), full=full)
    header = ("forecasts", "events/s off", "on", "cost", "95 %", "made off", "on", "CPU s off", "on", "correct")
    rows = [_row(way, found) for way, found in figures.items()]
    title = f"Scoring, calibration and alerts on and off, {events:,} events of {hours:g} h, medians of {rounds} pairs"
    show(
        title,
        header,
        rows,
        {"events": events, "hours": hours, "rounds": rounds, "full": full, "ways": figures},
        as_json,
    )


if __name__ == "__main__":
    command()
