"""Whether a Redis, and what stands in it, may be used: each finding is one sentence that names the remedy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from feature_store.layout import LAYOUT_VERSION
from feature_store.redis_calls import ResponseError

logger = logging.getLogger(__name__)


async def server_findings(redis: Any) -> list[str]:
    """What makes this server unfit."""
    findings = []
    try:
        info = await redis.info("server")
        info = info if "redis_version" in info else next(iter(info.values()))
        if tuple(int(part) for part in info["redis_version"].split(".")[:2]) < (6, 2):
            findings.append(f"Redis {info['redis_version']} is too old: use Redis 6.2 or newer, or Valkey.")
        policy = (await redis.config_get("maxmemory-policy")).get("maxmemory-policy")
        if policy not in (None, "noeviction"):
            findings.append(
                f"maxmemory-policy is {policy}: Redis would throw features away when memory runs short. "
                "Set 'maxmemory-policy noeviction'."
            )
    except ResponseError as error:
        logger.warning("Redis does not let its configuration be read (%s); check maxmemory-policy by hand", error)
    return findings


def partition_findings(partition: int, meta: Mapping[str, str], partition_count: int) -> list[str]:
    """What makes a partition's `meta` one that must not be added to."""
    if not meta:
        return []
    if int(meta["layout"]) != LAYOUT_VERSION:
        return [layout_refusal(partition, meta["layout"])]
    if int(meta["partition_count"]) != partition_count:
        return [partitions_refusal(partition, meta["partition_count"], partition_count)]
    return []


def layout_refusal(partition: int, stored: str) -> str:
    """Why a partition stored by another layout is refused."""
    if int(stored) > LAYOUT_VERSION:
        return (
            f"partition {partition} was stored by layout {stored}, this version knows up to {LAYOUT_VERSION}: "
            "run the newer shelfcast, or choose another namespace."
        )
    return (
        f"partition {partition} was stored by layout {stored}, this version reads {LAYOUT_VERSION} only: choose "
        "another namespace and read the topics from the start."
    )


def partitions_refusal(partition: int, stored: str, configured: int) -> str:
    """Why a partition stored for another number of partitions is refused."""
    return (
        f"partition {partition} was stored for {stored} partitions, the topics now have {configured}: products would "
        "change lanes. Go back to the old number, or choose another namespace and read the topics from the start."
    )
