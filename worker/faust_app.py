"""The Faust app around a worker: topics, thin agents, pages; and the process that it is run in."""

from __future__ import annotations

import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import click
import faust
from faust.app.base import BootStrategy

from worker.app import Worker
from worker.errors import TopicError
from worker.pages import add_pages
from worker.record_fetcher import RecordBatch
from worker.settings import Settings
from worker.topics import ASIDE_BYTES, ensure_topics
from worker.transport import BatchSchema, BatchTransport, credentials

_COLLECT_EVERY = 200_000  # objects


class _App(faust.App):  # type: ignore[misc]
    """Without folders for Faust's tables: none are used, and a killed worker would leave its folders behind."""

    def _create_directories(self) -> None:
        pass


def create_app(settings: Settings) -> faust.App:
    """The Faust app of a worker: topics, thin agents, pages; `app.worker_service` is its Worker."""
    app = _App(
        settings.namespace,
        broker="aiokafka://" + settings.kafka_bootstrap_servers,
        broker_credentials=credentials(settings),
        broker_session_timeout=settings.kafka_session_timeout_s,
        broker_heartbeat_interval=settings.kafka_session_timeout_s / 3,
        broker_commit_interval=1.0,
        stream_buffer_maxsize=8,  # counts batches
        stream_wait_empty=False,  # lanes do their own draining
        producer_acks=-1,
        producer_max_request_size=ASIDE_BYTES,
        producer_max_batch_size=1_000_000,  # a forecast is 8 kB: the default would send them two by two
        producer_linger=0.002,  # seconds: forecasts of one batch leave together
        topic_disable_leader=True,
        topic_allow_declare=False,
        autodiscover=False,
        web_host=settings.web_host,
        web_bind=settings.web_host,
        web_port=settings.web_port,
        web_enabled=True,
    )
    app.transport = BatchTransport(app.conf.broker_consumer, app)
    worker = Worker(app, settings)
    app.worker_service = worker

    class Boot(BootStrategy):  # type: ignore[misc]
        def kafka_producer(self) -> list[Any]:
            """After the producer and before the consumer, so that it stops between them."""
            return [*super().kafka_producer(), worker]

    app.boot_strategy = Boot(app)
    app.on_partitions_assigned.connect(worker.on_assigned)
    for topic in worker.topics:
        _add_agent(app, topic, worker.on_batch)
    add_pages(app, worker.is_ready)
    return app


def _add_agent(app: faust.App, topic: str, on_batch: Callable[[RecordBatch], Awaitable[None]]) -> None:
    async def agent(stream: Any) -> None:
        async for batch in stream:
            await on_batch(batch)

    # Without Faust's acknowledgements: what may be committed is what lanes report as applied.
    channel = app.topic(topic, schema=BatchSchema(), acks=False)
    app.agent(channel, name=f"worker.agent.{topic}", concurrency=1)(agent)


def run_worker(settings: Settings) -> int:
    """Run until SIGTERM or a crash. Returns the exit code; after a crash the last line on stderr says why.

    Raises:
        TopicError: Kafka does not answer, or a topic is not as it has to be; nothing was started.
    """
    findings = ensure_topics(settings)
    if findings:
        raise TopicError(" ".join(findings))
    app = create_app(settings)
    process = faust.Worker(app, loglevel="INFO", quiet=True)
    for library in ("faust", "mode", "aiohttp"):
        logging.getLogger(library).setLevel(logging.WARNING)  # their INFO tells of each service's start and stop
    logging.getLogger("mode.timers").setLevel(logging.ERROR)  # a commit waits while Kafka is away, which is told
    # Fetched records are objects that Python's collector follows. Looking at them every 700, its default, took a
    # quarter of the processor time of ingest.
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, 50, 1_000)
    code = 0
    try:
        process.execute_from_commandline()
    except SystemExit as end:
        code = int(end.code or 0)
    reason = process.crash_reason or app.crash_reason
    if reason is not None:
        click.echo(f"error: {reason}", err=True)
        return 1
    return code
