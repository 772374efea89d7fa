"""One process of a backtest: some lanes of one variant, with the evaluators that look at their forecasts."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from feature_store.recording_files import Recording
from worker.backtest_actuals import Actuals, CountingRules, count_actuals
from worker.backtest_alerts import RaisedAlerts
from worker.backtest_collector import Collector, Evaluator
from worker.backtest_keeping import ForecastFile
from worker.backtest_lanes import LaneJob, LanesRun, run_lanes
from worker.backtest_live_scores import LiveScores
from worker.backtest_models import NONE, calibrated_freqs, load_model
from worker.backtest_progress import ProgressNote
from worker.backtest_scores import AccuracySums, SampleItems
from worker.rules import alert_rules, lane_rules, scoring_rules

_COLLECT_EVERY = 200_000  # objects: most of what is made here lives until the next tick


@dataclass(frozen=True)
class ProcessJob:
    """What one process does. `forecasts`: the Parquet file that keeps them; None = they are not kept. `progress`: where
    it notes how far it is; None = nobody asks. `live_scoring`: whether forecasts are scored as a worker does, too."""

    lanes: LaneJob
    model: str
    end_ms: int
    forecasts: Path | None = None
    progress: Path | None = None
    live_scoring: bool = False


class ProcessResult(NamedTuple):
    """What came of it. `seconds` are those of the run itself, without imports, model and actuals."""

    lanes: LanesRun
    forecasts: int
    seconds: float
    found: dict[str, Any]  # results of the evaluators by name


def run_process(job: ProcessJob) -> ProcessResult:
    """Run to the end. Called in a process of its own."""
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, 50, 1_000)
    found: list[ProcessResult] = []

    async def run() -> None:
        # Not returned: at its end asyncio.run describes its task, and with it all arrays of a result, in words.
        found.append(await _run(job, _evaluators))

    asyncio.run(run())
    return found[0]


def _evaluators(job: ProcessJob, actuals: Actuals) -> dict[str, Evaluator]:
    settings = job.lanes.settings
    freqs = settings.forecast_freqs
    shown = "1d" if "1d" in freqs else freqs[0]
    found: dict[str, Evaluator] = {
        "accuracy": AccuracySums(),
        "samples": SampleItems(shown, actuals, settings.shop_calendar()),
    }
    rules = {freq: alert_rules(settings, freq) for freq in freqs if freq in settings.alert_freqs}
    found["alerts"] = RaisedAlerts(rules, settings.shop_calendar())
    if job.live_scoring:
        found["live_scores"] = LiveScores(scoring_rules(settings), settings.shop_calendar())
    if job.forecasts is not None:
        found["kept"] = ForecastFile(job.forecasts)
    return found


async def _run(job: ProcessJob, evaluators: Callable[[ProcessJob, Actuals], dict[str, Evaluator]]) -> ProcessResult:
    if job.model == NONE:
        return await _without_model(job)
    settings, note = job.lanes.settings, ProgressNote(job.progress)
    model = await load_model(job.model, settings)
    actuals = actuals_of(job.lanes, job.end_ms)
    named = evaluators(job, actuals)
    calendar, calibrated = settings.shop_calendar(), calibrated_freqs(job.model, settings)
    collector = Collector(model, actuals, calendar, list(named.values()), calibrated)

    def reached(event_time_ms: int) -> None:
        note.reached(event_time_ms)
        note.made(collector.forecasts)

    began = time.perf_counter()
    lanes = await run_lanes(job.lanes, collector.finish, reached)
    await collector.close()
    note.made(collector.forecasts)
    seconds = time.perf_counter() - began
    await model.close()
    return ProcessResult(lanes, collector.forecasts, seconds, {name: one.result() for name, one in named.items()})


async def _without_model(job: ProcessJob) -> ProcessResult:
    note = ProgressNote(job.progress)
    began = time.perf_counter()
    lanes = await run_lanes(job.lanes, None, note.reached)
    return ProcessResult(lanes, 0, time.perf_counter() - began, {})


def actuals_of(job: LaneJob, end_ms: int) -> Actuals:
    """What was sold of the items of a job's partitions."""
    settings, recording = job.settings, Recording.open(job.recording)
    rules = lane_rules(settings, clock_topic=settings.topic_clock, send=_unsent)
    counting = CountingRules(
        rules.retention.calendar,
        settings.forecast_freqs,
        rules.limits,
        rules.dedup_window_ms["orders"],
        rules.max_future_ms + job.interval_ms,  # a lane holds an event against the tick that names it
    )
    topics = [topic for topic in job.topics(recording) if settings.input_topics[topic] == "orders"]
    stretches = recording.merged(topics, partitions=job.partitions)
    return count_actuals(stretches, counting, job.partitions, end_ms)


async def _unsent(topic: str, partition: int, messages: Sequence[Any]) -> None:
    raise AssertionError("counting sends nothing")
