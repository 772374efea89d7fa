"""The composition root: wires lanes, feature store, scheduler and forecast client into a worker.

Agents are thin: each hands the batches of one topic to the lane of their partition. `Worker` owns the lanes and
everything that lives as long as the process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import faust
from mode import Service

from feature_store.events import CalendarEntry
from feature_store.lane_totals import FIRST_LANE
from feature_store.outage import Outage
from feature_store.store import FeatureStore, StoreClosedError
from forecaster.contract import ROWS_PER_PASS
from forecaster.inputs import ModelInputs
from worker.accuracy_reports import AccuracyReporter
from worker.aside import Message
from worker.contest import Contest
from worker.errors import ForecastUnavailableError, TopicError, WatchdogError
from worker.forecast_client import ForecastClient, ForecastReply
from worker.forecast_messages import ForecastRules
from worker.global_calendar import GlobalCalendar
from worker.lane import Lane
from worker.lane_keeper import LaneKeeper
from worker.lane_state import LaneRules
from worker.record_fetcher import RecordBatch, passing_errors
from worker.rules import forecast_rules, lane_rules, report_rules, watch_rules
from worker.scheduler import Scheduler
from worker.settings import Settings
from worker.silence_watch import SilenceWatch
from worker.topics import kafka_client_config
from worker.transport import (
    RETRIABLE_SEND_ERRORS,
    BatchConsumer,
    send_batch,
)
from worker.watchdog import KafkaAside, LastWords, Watchdog

logger = logging.getLogger(__name__)

_CALENDAR_S = 60.0
_RESEND_PAUSE_S = 0.5
_DRAIN_S = 20.0
_SEEK_S = 5.0
_REPORT_S = 1.0
_LISTEN_S = 5.0
_ROUNDS_AT_ONCE = 2  # of each freq: while the model works on one, the other is read, written and sent


class Worker(Service):  # type: ignore[misc]
    """All between Faust's agents and the outside: lanes, store, scheduler, model. Starts before the consumer."""

    logger = logger

    def __init__(self, app: faust.App, settings: Settings) -> None:
        super().__init__()
        self._app = app
        self._settings = settings
        self._forecasting: list[asyncio.Task[None]] = []
        self._reassigning: set[asyncio.Task[None]] = set()
        self._joined = False
        self._connected = False
        self._replaying = settings.clock == "event"
        self._kafka_outage = Outage(
            logger,
            f"Kafka at {settings.kafka_bootstrap_servers} is away (%s): what is to be sent is kept, reading goes on "
            "when it is back",
            "Kafka is back after %.1f s",
        )
        self.topics = list(settings.input_topics) + ([settings.topic_clock] if self._replaying else [])

    # -- life -----------------------------------------------------------------------------------------------------

    async def on_start(self) -> None:
        """Connect; refuse to start on anything that `shelfcast check` would refuse."""
        settings = self._settings
        self._store = FeatureStore(**settings.store_options())
        await self._store.refuse_unfit_server()
        self._calendar = GlobalCalendar(kafka_client_config(settings), settings.topic_calendar_global)
        self._calendar.start()
        if not await asyncio.to_thread(self._calendar.ready.wait, _CALENDAR_S):
            raise TopicError(f"{settings.topic_calendar_global} could not be read to its end in {_CALENDAR_S:.0f} s")
        self._client = ForecastClient(
            settings.triton_url,
            model_name=settings.model_name,
            model_version=settings.model_version,
            timeout_s=settings.triton_timeout_s,
            tls=settings.triton_tls,
        )
        self._contest = Contest(settings, self._store, self._client, self._send)
        self._scheduler = Scheduler(self._forecast_rules())
        self._reporter = AccuracyReporter(report_rules(settings), self._store.accuracy())
        watched = watch_rules(settings, self._global_entries)
        self._silence = SilenceWatch(watched, self._store.streams()) if watched is not None else None
        contested = await self._contest.begin()
        await self._check_model()
        consumer: BatchConsumer = self._app.consumer
        self._lanes = LaneKeeper(
            self._store,
            consumer,
            self._lane_rules(),
            topics=self.topics,
            on_tick=self._on_tick if self._replaying else None,
            crash=self._app.crash,
        )
        consumer.batch_topics = frozenset(self.topics)
        consumer.on_seek = self._on_seek
        consumer.fetcher_config = kafka_client_config(settings) | {
            "group.id": f"{settings.namespace}.fetcher",  # librdkafka insists on one; nothing is joined or committed
            "fetch.wait.max.ms": settings.kafka_fetch_max_wait_ms,
            "fetch.min.bytes": settings.kafka_fetch_min_bytes,
        }
        self._aside = KafkaAside(kafka_client_config(settings))
        self._watchdog = self._new_watchdog()
        self._watchdog.start()
        self._connected = True
        if not self._replaying:
            for freq in settings.forecast_freqs * _ROUNDS_AT_ONCE:
                self._forecasting.append(asyncio.create_task(self._forecast_forever(freq)))
            self._forecasting.append(asyncio.create_task(self._repeat(_REPORT_S, self._report)))
            if self._silence is not None:
                self._forecasting.append(asyncio.create_task(self._repeat(_LISTEN_S, self._listen)))
            for pause_s, step in contested:
                self._forecasting.append(asyncio.create_task(self._repeat(pause_s, step)))

    def _new_watchdog(self) -> Watchdog:
        loop = asyncio.get_running_loop()

        def bark(error: WatchdogError) -> None:
            asyncio.run_coroutine_threadsafe(self._app.crash(error), loop)

        return Watchdog(
            self._aside,
            self._kafka_outage,
            self._positions,
            excused=lambda: self._store.is_away,
            bark=bark,
            last_words=LastWords("aiokafka", passing_errors.name),
            # A replay stands still on purpose between the ticks of its clock.
            patience_s=0.0 if self._replaying else self._settings.watchdog_s,
        )

    def _positions(self) -> dict[tuple[str, int], int | None]:
        """Next offset of everything assigned; None where the lane has not begun or has read nothing yet."""
        lanes = dict(self._lanes.lanes)
        return {
            (topic, partition): lanes[partition].claim.positions.get(topic) if partition in lanes else None
            for partition in tuple(self._lanes.assigned)
            for topic in self.topics
        }

    async def _check_model(self) -> None:
        """A wrong model stops the worker; one that is away does not: a baseline stands in, and a replay waits."""
        try:
            await self._client.check_model()
        except ForecastUnavailableError as error:
            logger.warning("%s; starting all the same", error)

    async def on_stop(self) -> None:
        """Drain; the consumer has stopped already, the producer has not.

        1. Let the round of forecasts under way end.
        2. Live: make the forecasts still owed to touched items, as far as the time allows.
        3. Close the lanes and let the step that each may be in end; then close the connections.
        """
        if not self._connected:
            return
        self._watchdog.stop()
        await self._end_of(self._forecasting)  # 1
        if not self._replaying:  # 2
            drains = [asyncio.create_task(self._scheduler.drain(lane)) for lane in self._lanes.lanes.values()]
            await self._end_of(drains)
        await self._end_of(self._lanes.close())  # 3
        self._calendar.stop()
        await self._store.close()
        await self._client.close()
        await self._contest.close()

    async def _end_of(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        if tasks:
            _, unfinished = await asyncio.wait(tasks, timeout=_DRAIN_S)
            if unfinished:
                logger.warning("stopping with forecasts still owed; the partitions' next owner makes them")

    def is_ready(self) -> bool:
        """All lanes assigned are running."""
        return self._joined and self._lanes.all_run

    async def on_assigned(self, _: Any, assigned: Any, **__: Any) -> None:
        """Faust's signal after each rebalance, also when there was nothing to assign."""
        self._joined = True

    async def _on_seek(self, assigned: set[tuple[str, int]]) -> None:
        """After a rebalance: begin the lanes. While Redis is away that takes longer than Faust would wait, and Faust
        cancels what it no longer waits for, also when the next rebalance comes: it sees only as much as is usual."""
        task = asyncio.create_task(self._reassign(assigned))
        self._reassigning.add(task)
        task.add_done_callback(self._reassigning.discard)
        await asyncio.wait([task], timeout=_SEEK_S)

    async def _reassign(self, assigned: set[tuple[str, int]]) -> None:
        try:
            await self._lanes.reassign(assigned)
        except StoreClosedError:
            return
        except Exception as error:
            if self._app.should_stop:  # the consumer ends before the lanes do; the next owner begins them
                return
            logger.error("beginning lanes: %s", error)
            await self._app.crash(error)

    async def on_batch(self, batch: RecordBatch) -> None:
        """Called by the agents: leave the batch with the lane of its partition."""
        self._lanes.offer(batch)

    # -- forecasts ------------------------------------------------------------------------------------------------

    async def _forecast_forever(self, freq: str) -> None:
        """Live: each interval the touched items, and as many stale ones as the pace allows."""
        interval_s = self._settings.forecast_interval_ms / 1000
        loop = asyncio.get_running_loop()
        try:
            while not self.should_stop:
                started = loop.time()
                lanes = [lane for lane in self._lanes.lanes.values() if not lane.closed]
                await self._client.probe()
                sent = await self._scheduler.run_freq(freq, lanes)
                for lane in lanes:
                    if lane.closed:
                        self._lanes.lose(lane, "fenced")
                if sent < ROWS_PER_PASS:  # else more is waiting
                    await self.sleep(max(interval_s - (loop.time() - started), 0.001))  # ends early when stopping
        except StoreClosedError:
            return
        except Exception as error:
            logger.error("forecasting: %s", error)
            await self._app.crash(error)

    async def _on_tick(self, lane: Lane) -> None:
        """In a replay: all that is due at its clock."""
        await self._scheduler.drain(lane)
        if not lane.closed:
            await self._reporter.report(lane)
            if self._silence is not None and lane.partition == FIRST_LANE and lane.arrived is not None:
                arrived = dict.fromkeys(lane.arrived, lane.clock_ms())
                await self._silence.look_replayed(lane, lane.clock_ms(), arrived)

    async def _repeat(self, every_s: float, step: Callable[[], Awaitable[None]]) -> None:
        try:
            while not self.should_stop:
                await self.sleep(every_s)
                await step()
        except StoreClosedError:
            return
        except Exception as error:
            logger.error("%s: %s", step.__qualname__, error)
            await self._app.crash(error)

    async def _report(self) -> None:
        await self._reporter.report_all(self._lanes.lanes)

    async def _listen(self) -> None:
        if self._silence is not None:
            now_ms, first = time.time_ns() // 1_000_000, self._lanes.lanes.get(FIRST_LANE)
            await self._silence.look_live(first, now_ms, self._aside.ends_if_told, self._aside.awaits_record)

    async def _infer(self, inputs: ModelInputs) -> ForecastReply:
        return await self._client.forecast(inputs, wait=self._replaying)

    # -- rules ----------------------------------------------------------------------------------------------------

    def _lane_rules(self) -> LaneRules:
        clock_topic = self._settings.topic_clock if self._replaying else ""
        rules = lane_rules(self._settings, clock_topic=clock_topic, send=self._send)
        return dataclasses.replace(
            rules,
            global_calendar_topic=self._settings.topic_calendar_global,
            global_calendar_read=self._calendar.wait_until_read,
        )

    def _forecast_rules(self) -> ForecastRules:
        return forecast_rules(
            self._settings,
            live=not self._replaying,
            global_entries=self._global_entries,
            infer=self._infer,
            model_is_away=lambda: self._client.is_away,
            shadow=self._contest.shadow,
        )

    def _global_entries(self, event_time_ms: int) -> Sequence[CalendarEntry]:
        """The shop's calendar: as it is now, or in a replay as it was."""
        return self._calendar.entries_at(event_time_ms) if self._replaying else self._calendar.entries()

    async def _send(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        """Send records; returns when Kafka has acknowledged them. While Kafka is away, tries again: a record whose
        acknowledgement was lost may then stand twice, which consumers of forecasts and dead letters can tell."""
        with self._kafka_outage.call() as wait:
            while True:
                try:
                    return await send_batch(self._app.producer, topic, partition, messages)
                except RETRIABLE_SEND_ERRORS as error:
                    wait(error)
                    await asyncio.sleep(_RESEND_PAUSE_S)
