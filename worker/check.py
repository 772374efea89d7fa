"""`shelfcast check`: inspect Kafka, Redis and Triton as a worker would, and name each remedy."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable

import click

from feature_store.store import REDIS_ERRORS, FeatureStore
from worker.errors import ShelfcastError
from worker.forecast_client import ForecastClient
from worker.partitioner_check import misplaced_share
from worker.settings import Settings, load_settings
from worker.topics import ensure_topics, kafka_client_config
from worker.transport import murmur2_partition

_PATIENCE_S = 5.0  # a person is waiting


@click.command("check")
@click.option("--create-topics", is_flag=True, help="Also create missing topics.")
def command(create_topics: bool) -> None:
    """Inspect Kafka, Redis and Triton before the first start. Exit code 1 when something must be mended."""
    environment = {"SHELFCAST_CREATE_TOPICS": "true" if create_topics else "false"}
    settings = load_settings({**os.environ, **environment})
    fit = True
    for name, findings in check_all(settings):
        fit = fit and not findings
        click.echo(f"{'ok  ' if not findings else 'MEND'}  {name}")
        for finding in findings:
            click.echo(f"      - {finding}")
    sys.exit(0 if fit else 1)


def check_all(settings: Settings) -> Iterable[tuple[str, list[str]]]:
    """(what was looked at, findings with remedies), one after the other."""
    kafka = f"Kafka {settings.kafka_bootstrap_servers}: topics, partition counts, compaction, retention"
    try:
        topic_findings = ensure_topics(settings, _PATIENCE_S)
        yield kafka, topic_findings
        if not topic_findings:
            yield from _check_placement(settings)
    except ShelfcastError as error:
        yield kafka, [str(error)]
    redis = (
        f"Redis {_without_password(settings.redis_url)}: version, eviction policy, stored layout and partition count"
    )
    yield redis, asyncio.run(_check_redis(settings))
    triton = f"Triton {settings.triton_url}: model {settings.model_name}, tensors and features_hash"
    yield triton, asyncio.run(_check_model(settings))


def _check_placement(settings: Settings) -> Iterable[tuple[str, list[str]]]:
    """Look at the last records of each counted topic: do they stand where murmur2 puts their keys?"""
    for topic in (settings.topic_orders, settings.topic_clicks, settings.topic_reviews):
        seen, misplaced = misplaced_share(
            kafka_client_config(settings), topic, lambda key: murmur2_partition(key, settings.partition_count)
        )
        findings = []
        if misplaced:
            findings.append(
                f"{misplaced} of {seen} records looked at stand in another partition than murmur2 gives their key: set "
                "'partitioner=murmur2' in librdkafka producers, and key records by product_id."
            )
        yield f"partitioner of {topic}: {seen} records looked at", findings


async def _check_redis(settings: Settings) -> list[str]:
    store = FeatureStore(**settings.store_options())
    try:
        return await store.check_server()
    except REDIS_ERRORS as error:
        return [f"Redis does not answer ({error}): check SHELFCAST_REDIS_URL and that the server runs."]
    finally:
        await store.close()


async def _check_model(settings: Settings) -> list[str]:
    client = ForecastClient(
        settings.triton_url,
        model_name=settings.model_name,
        model_version=settings.model_version,
        timeout_s=settings.triton_timeout_s,
        tls=settings.triton_tls,
    )
    try:
        await client.check_model()
    except ShelfcastError as error:
        return [str(error)]
    finally:
        await client.close()
    return []


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
