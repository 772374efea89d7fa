"""`shelfcast replenish`: orders from forecasts and stock."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click
import msgspec
from confluent_kafka.admin import AdminClient

from worker import metrics
from worker.errors import SettingsError, TopicError
from worker.replenishment import Reviews
from worker.replenishment_orders import Identity
from worker.replenishment_policies import Policies, Policy
from worker.replenishment_stream import ReplenishmentStream, StreamPlan
from worker.schemas import Replenishment
from worker.settings import Settings, load_settings
from worker.topic_reading import TopicReading
from worker.topics import WantedTopic, create_topics, kafka_client_config
from worker.transport import murmur2_partition


@click.command("replenish")
@click.option(
    "--policies",
    "path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file: how items are ordered.",
)
@click.option("--dry-run", is_flag=True, help="Print the orders that would be sent now; send and commit nothing.")
@click.option(
    "--replay",
    "replaying",
    is_flag=True,
    help="Hold every review since the topics begin, for a replayed recording; live only those from now on are held.",
)
@click.option("--to-end", is_flag=True, help="End when all that stands in the topics is dealt with.")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), default=0, help="Port of /metrics.  [default: none is served]"
)
def command(path: Path, dry_run: bool, replaying: bool, to_end: bool, metrics_port: int) -> None:
    """Order stock: read forecasts and stock reports, write orders to NAMESPACE.replenishment.v1, each once.

    \b
    shelfcast replenish --policies policies.toml --dry-run
    """
    if dry_run and (replaying or to_end):
        raise click.UsageError("--dry-run shows the present review alone: it goes without --replay and --to-end")
    settings = load_settings(os.environ)
    policies = Policies.read(path)
    plan = _plan(settings, policies, replaying)
    _check(settings, plan, make_output=not dry_run)
    for policy in policies.all():
        if policy.freq not in settings.forecast_freqs:
            raise SettingsError(
                f"{path}: a policy is by forecasts of {policy.freq}, and SHELFCAST_FORECAST_FREQS has "
                f"{', '.join(settings.forecast_freqs)}"
            )

    def policy_of(identity: Identity, category: str) -> Policy:
        return policies.of(identity.item_id, identity.product_id, category)

    stream = ReplenishmentStream(plan, lambda ordered: Reviews(policy_of, ordered), _print)
    if dry_run:
        orders = stream.dry_run(range(settings.partition_count))
        _print(orders)
        click.echo(f"{len(orders):,} orders would be sent", err=True)
        return
    if metrics_port:
        metrics.serve(settings.web_host, metrics_port)
    stopped: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        stopped.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    stream.run(lambda: bool(stopped), to_end=to_end)


def _plan(settings: Settings, policies: Policies, replaying: bool) -> StreamPlan:
    sources = {settings.topic_forecasts: "forecasts", settings.topic_stock: "stock"}
    if policies.need_categories:
        sources[settings.topic_products] = "products"
    return StreamPlan(
        config=kafka_client_config(settings),
        sources=sources,
        output=settings.topic_replenishment,
        group=f"{settings.namespace}.replenishment",
        session_timeout_s=settings.kafka_session_timeout_s,
        replaying=replaying,
        latest_ms=(lambda: 2**62) if replaying else (lambda: time.time_ns() // 1_000_000 + settings.max_future_ms),
        partition_of=lambda product_id: murmur2_partition(product_id, settings.partition_count),
    )


def _check(settings: Settings, plan: StreamPlan, *, make_output: bool) -> None:
    """Topics to read are there with the partitions of the settings; the output is made where it is missing.

    Raises:
        TopicError: one is not as it has to be; names the remedy.
    """
    reading, count = TopicReading(plan.config), settings.partition_count
    for topic in plan.sources:
        found = len(reading.partitions(topic))
        if not found:
            raise TopicError(
                f"topic {topic} does not exist on {settings.kafka_bootstrap_servers}: start a worker with the same "
                "settings first, it makes the topics; or create it with `shelfcast check --create-topics`"
            )
        if found != count:
            raise TopicError(f"topic {topic} has {found} partitions, not {count}: set SHELFCAST_PARTITION_COUNT to it")
    found = len(reading.partitions(plan.output))
    if not found and not make_output:
        return
    if not found and not settings.create_topics:
        raise TopicError(f"topic {plan.output} does not exist: create it with {count} partitions")
    if not found:
        # Who starts anew has to find the orders that were sent: they are few, and worth keeping.
        wanted = WantedTopic(plan.output, count, compacted=False, keep_forever=True)
        create_topics(AdminClient(dict(plan.config)), [wanted], settings.replication_factor)
    elif found != count:
        raise TopicError(f"topic {plan.output} has {found} partitions, not {count}, as the forecasts have")


def _print(orders: Sequence[Replenishment]) -> None:
    """A line of JSON an order."""
    for order in orders:
        click.echo(msgspec.json.encode(order).decode())
