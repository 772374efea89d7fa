"""How fast the orders of two real shops are replayed onto a broker, recorded from it and backtested without a model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.backtesting import events_per_s
from benchmarks.recording import record_topic
from benchmarks.replaying import PREFIX, replay_onto
from feature_store.recording_files import Recording
from worker.backtest_variants import recorded_span_ms
from worker.local_stack import LocalBroker
from worker.settings import load_settings
from worker.table_import import Target, write_events
from worker.table_mappings import READY
from worker.transport import murmur2_partition

_TOPIC = "shop.orders.v1"
_PARTITIONS = 8


def measure_shop(ready: str, source: Path, settings: tuple[str, ...]) -> dict[str, Any]:
    """Figures of all orders of a shop.

    Args:
        ready: one of the ready mappings of `shelfcast recording import`.
        source: its Parquet file.
        settings: name=value, as `shelfcast backtest --set` takes them.
    """
    with tempfile.TemporaryDirectory(prefix="shelfcast-benchmark-") as name:
        folder = Path(name)
        recording = _imported(ready, source, folder / "shop")
        orders = recording.rows(_TOPIC)
        with LocalBroker(folder) as broker:
            replayed = replay_onto(broker, recording)
            record_per_s = record_topic(broker.bootstrap_servers, PREFIX + _TOPIC, folder / "again", orders)
        backtest_per_s = events_per_s(recording, settings, folder)
    first_ms, last_ms = recorded_span_ms(recording, load_settings({}))
    return {
        "orders": orders,
        "replay_per_s": round(replayed.records / replayed.wall_s, 1),
        "record_per_s": round(record_per_s, 1),
        "backtest_per_s": round(backtest_per_s, 1),
        "times_real_time": round((last_ms - first_ms) / 1000 / (orders / backtest_per_s)),
    }


def _imported(ready: str, source: Path, path: Path) -> Recording:
    mapping = READY[ready]
    target = Target(path, ready, 0, {"orders": _TOPIC}, _PARTITIONS, murmur2_partition)
    write_events(target, {"orders": mapping.events(source, mapping.time_zone, False)["orders"]})
    return Recording.open(path)
