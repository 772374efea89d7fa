"""A process that has imported all that a worker does, claims every partition, and tells its memory as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import worker.app  # noqa: F401 - its weight is part of the figure
from feature_store.store import FeatureStore


async def claim_all(url: str, partition_count: int, freqs: tuple[str, ...]) -> dict[str, float]:
    """MB of 10^6 bytes resident before, afterwards, and at the highest."""
    store = FeatureStore(url, namespace="shelfcast", partition_count=partition_count, forecast_freqs=freqs)
    imported_mb = _status_mb("VmRSS")
    claims = [await store.claim(partition) for partition in range(partition_count)]
    items = sum(len(claim.items) for claim in claims)
    told = {"rss_mb": _status_mb("VmRSS"), "peak_mb": _status_mb("VmHWM"), "imported_mb": imported_mb, "items": items}
    await store.close()
    return told


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise ValueError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(json.dumps(asyncio.run(claim_all(sys.argv[1], int(sys.argv[2]), tuple(sys.argv[3:])))))
