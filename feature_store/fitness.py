"""Whether a Redis, and what stands in it, may be used: each finding is one sentence that names the remedy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from feature_store.layout import LAYOUT_VERSION
from feature_store.redis_calls import ResponseError
from feature_store.store_types import BackfillTable

logger = logging.getLogger(__name__)

RUNNING = " running"  # behind the digest of a table of which not all rows are in the features yet
CLUSTER_NODE = "This Redis is a node of a cluster: set redis_cluster to true."


async def servers_findings(servers: Mapping[str, Any], *, in_cluster: bool) -> list[str]:
    """What makes these servers unfit: clients by name."""
    findings = [finding for name, server in servers.items() for finding in await _findings(name, server, in_cluster)]
    return [CLUSTER_NODE] if CLUSTER_NODE in findings else findings


async def _findings(name: str, server: Any, in_cluster: bool) -> list[str]:
    findings = []
    try:
        about = await server.info("server")
        mode = about.get("redis_mode") or about.get("server_mode")  # the second is Valkey's word
        if mode == "cluster" and not in_cluster:
            findings.append(CLUSTER_NODE)
        version = about["redis_version"]
        if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
            findings.append(f"{name} {version} is too old: use Redis 6.2 or newer, or Valkey.")
        policy = (await server.config_get("maxmemory-policy")).get("maxmemory-policy")
        if policy not in (None, "noeviction"):
            findings.append(
                f"{name}: maxmemory-policy is {policy}, which throws features away when memory runs short. "
                "Set 'maxmemory-policy noeviction'."
            )
    except ResponseError as error:
        logger.warning("%s does not let itself be looked at (%s); check maxmemory-policy by hand", name, error)
    return findings


def partition_findings(
    partition: int, meta: Mapping[str, str], partition_count: int, *, may_be_filled: bool = False
) -> list[str]:
    """What makes a partition's `meta` one that must not be added to; `may_be_filled`: from a table, just now."""
    if not meta:
        return []
    if int(meta["layout"]) != LAYOUT_VERSION:
        return [layout_refusal(partition, meta["layout"])]
    if int(meta["partition_count"]) != partition_count:
        return [partitions_refusal(partition, meta["partition_count"], partition_count)]
    filled = [name for name, text in meta.items() if name.startswith("backfill:") and text.endswith(RUNNING)]
    if filled and not may_be_filled:
        sources = ", ".join(name.removeprefix("backfill:") for name in filled)
        return [
            f"partition {partition} is being filled from a table of {sources}: let `shelfcast backfill` end; if it was "
            "killed, run it again with the same tables."
        ]
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


def backfill_refusal(status: bytes, partition: int, table: BackfillTable) -> str:
    """Why a table is not filled in: b"OTHER" stands there already, or b"LIVE" events do."""
    if status == b"OTHER":
        return (
            f"partition {partition} was filled from another table of {table.source} before, or with another "
            "join: both together would count twice what is in both. Fill another namespace, with all tables at once"
        )
    return (
        f"partition {partition} has counted live {table.source} already: a table is filled in before a "
        "worker's first start. Fill another namespace, and have the workers go on there"
    )
