"""Order lines of two real shops as the steps in which a worker would store them, and made-up busy items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_store.calendar_time import bucket_of
from feature_store.events import Action
from feature_store.features import FEATURES, SOURCE_FEATURES, SOURCES, Deltas
from feature_store.items import Item
from feature_store.layout import MAX_KEYS, STORED_FREQS, EventIds
from feature_store.store import Batch
from forecaster import online_retail

RETENTION = {"5m": 288, "1h": 504, "1d": 400}  # the worker's defaults
TOPIC = "orders"
_DAY_MS = 86_400_000
_MOST_SERIES = MAX_KEYS - 50


@dataclass(frozen=True)
class Lines:
    """Order lines, sorted by time."""

    time_zone: str
    product_ids: Sequence[str]
    event_time_ms: NDArray[np.int64]  # (line,)
    product: NDArray[np.int64]  # (line,): index into product_ids
    values: NDArray[np.int64]  # (line, feature of orders)

    def __len__(self) -> int:
        return len(self.event_time_ms)


class Steps(NamedTuple):
    """How lines are cut into batches."""

    most_lines: int
    most_ms: int  # of event time
    with_ids: bool = False  # each line has an event_id of 36 characters, kept for a day


def read_online_retail(path: Path) -> Lines:
    """Online Retail II, cleaned as for training."""
    lines = online_retail.read(path)
    sale = lines.action == Action.SALE
    thousandths = lines.quantity * 1000
    values = np.column_stack(
        [
            np.where(sale, thousandths, 0),
            np.where(sale, 0, thousandths),
            sale.astype(np.int64),
            np.where(sale, lines.quantity * lines.unit_price, 0),
        ]
    )
    return Lines(online_retail.TIME_ZONE, lines.product_ids, lines.event_time_ms, lines.product, values)


def read_dunnhumby(path: Path) -> Lines:
    """The Complete Journey's transactions; the times it gives are read as UTC."""
    table = pq.read_table(path, columns=["product_id", "quantity", "sales_value", "transaction_timestamp"])
    time_ms = _numbers(table["transaction_timestamp"], pa.int64())
    order = np.argsort(time_ms, kind="stable")
    products, product = np.unique(_numbers(table["product_id"], pa.int64())[order], return_inverse=True)
    quantity = _numbers(table["quantity"], pa.int64())[order]
    revenue = np.rint(_numbers(table["sales_value"], pa.float64())[order] * 1e6).astype(np.int64)
    values = np.column_stack([1000 * quantity, np.zeros_like(quantity), np.ones_like(quantity), revenue])
    return Lines("UTC", [str(number) for number in products.tolist()], time_ms[order], product, values)


def _numbers(column: Any, arrow_type: Any) -> NDArray[Any]:
    # from_dlpack and not to_numpy: it needs no numpy inside pyarrow, whose newer versions refuse numpy 1.
    return np.array(np.from_dlpack(column.combine_chunks().cast(arrow_type)))


def batches(lines: Lines, how: Steps) -> Iterator[Batch]:
    """Steps of one partition that has them all, each with what the worker stores beside the sums."""
    first_ms: dict[str, int] = {}
    position = -1
    bounds = list(_cuts(lines, how))
    for start, stop in pairwise(bounds):
        products, series = np.unique(lines.product[start:stop], return_inverse=True)
        names = [lines.product_ids[n] for n in products.tolist()]
        times = lines.event_time_ms[start:stop]
        watermark_ms = int(lines.event_time_ms[max(start - 1, 0)])
        newest_ms = int(times[-1])
        for name in names:
            first_ms.setdefault(name, int(times[0]))
        buckets = {freq: bucket_of(freq, times, lines.time_zone) for freq in STORED_FREQS}
        oldest = {
            freq: int(bucket_of(freq, np.array([watermark_ms]), lines.time_zone)[0]) - kept
            for freq, kept in RETENTION.items()
        }
        yield Batch(
            positions={TOPIC: (position, stop)},
            newest={"orders": newest_ms},
            items={name: Item(name, name, "", first_ms[name], newest_ms) for name in names},
            products={},
            dirty=names,
            series=names,
            sums=[aggregate(freq, series, buckets[freq], lines.values[start:stop]) for freq in STORED_FREQS],
            oldest_kept={freq: np.full(len(names), bucket) for freq, bucket in oldest.items()},
            event_ids=_ids(start, times) if how.with_ids else (),
            oldest_generation={"orders": newest_ms // _DAY_MS - 1} if how.with_ids else {},
        )
        position = stop


def _cuts(lines: Lines, how: Steps) -> Iterator[int]:
    start = 0
    while start < len(lines):
        yield start
        by_time = np.searchsorted(lines.event_time_ms, lines.event_time_ms[start] + how.most_ms)
        stop = min(start + how.most_lines, int(by_time))
        _, first_seen = np.unique(lines.product[start:stop], return_index=True)
        if len(first_seen) > _MOST_SERIES:
            stop = start + int(np.sort(first_seen)[_MOST_SERIES])
        start = stop
    yield len(lines)


def _ids(start: int, times: NDArray[np.int64]) -> list[EventIds]:
    generations = times // _DAY_MS
    ids = [f"{start + n:036x}" for n in range(len(times))]
    edges = [0, *(np.flatnonzero(np.diff(generations)) + 1).tolist(), len(times)]
    return [EventIds("orders", int(generations[a]), ids[a:b]) for a, b in pairwise(edges)]


def aggregate(freq: str, series: NDArray[np.int64], bucket: NDArray[np.int64], values: NDArray[np.int64]) -> Deltas:
    """Sums of order lines by series and bucket."""
    order = np.lexsort((bucket, series))
    series, bucket = series[order], bucket[order]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(series) != 0) | (np.diff(bucket) != 0)]))
    return Deltas("orders", freq, series[starts], bucket[starts], np.add.reduceat(values[order], starts, axis=0))


def busy_batch(series: int, first_bucket: int, hours: int) -> Batch:
    """Items with orders, clicks and reviews in every hour: the densest there can be."""
    random = np.random.default_rng(1)
    index = np.repeat(np.arange(series), hours)
    bucket = np.tile(np.arange(first_bucket, first_bucket + hours), series)
    values = random.integers(1, 60, size=(len(index), len(FEATURES))) * [feature.units_per_one for feature in FEATURES]
    sums = [Deltas(source, "1h", index, bucket, values[:, SOURCE_FEATURES[source]]) for source in SOURCES]
    return Batch({TOPIC: (-1, 1)}, {}, {}, {}, [], [f"busy{n}" for n in range(series)], sums)


def made_up_job() -> Lines:
    """What one of four partitions gets of 400,000 orders in six hours of 5,000 products, the n-th of which sells in
    proportion to 1/n."""
    count, products, span_ms, first_ms = 100_000, 1_250, 6 * 3_600_000, 1_763_733_600_000
    random = np.random.default_rng(1)
    weights = 1 / (1 + 4 * np.arange(products))
    quantity = 1000 * random.integers(1, 6, size=count)
    revenue = quantity * random.integers(50, 5000, size=count) * 10
    return Lines(
        "UTC",
        [f"p{n:05d}" for n in range(products)],
        first_ms + np.linspace(0, span_ms, count).astype(np.int64),
        random.choice(products, size=count, p=weights / weights.sum()),
        np.column_stack([quantity, np.zeros_like(quantity), np.ones_like(quantity), revenue]),
    )
