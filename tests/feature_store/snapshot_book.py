"""What was written to a partition, kept beside, and what a snapshot or a store holds of it: for tests of snapshots."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from feature_store.chunks import LARGE
from feature_store.events import item_id_of
from feature_store.items import Item, ProductState
from feature_store.layout import EventIds
from feature_store.snapshot_files import About, CalendarRecord, Snapshot, SnapshotWriter
from feature_store.snapshots import RestoreRules, Saved, save_partition
from feature_store.store import Claim, Done, FeatureStore
from tests.feature_store.stores import (
    apply,
    batch,
    cells,
    summary,
    sums,
)

ORDERS = "shop.orders.v1"
PRODUCTS = [f"product {n}/é" for n in range(40)]


class Book:
    """Writes to a partition, and keeps beside what every step has written."""

    def __init__(self, store: FeatureStore, claim: Claim, seed: int = 1, products: list[str] | None = None) -> None:
        self._store, self._claim, self._random = store, claim, random.Random(seed)
        self._products = products or PRODUCTS
        self.steps: list[dict[str, Any]] = []

    async def step(self) -> None:
        """One batch: some series of some products, ids, marks; now and then a forecast."""
        position = self._claim.positions.get(ORDERS, 0) + 1
        added, items = [], {}
        for product in self._random.sample(self._products, 3):
            location = self._random.choice(["", "york@1"])
            item_id = item_id_of(product, location)
            items[item_id] = Item(item_id, product, location, 5, position)
            freq = self._random.choice(["5m", "1h", "1d"])
            amount = self._random.choice([1, 1000, LARGE // 4 + 1])
            values = [self._random.randrange(300), *(self._random.randrange(3) for _ in range(8))]
            added.append((freq, item_id, [values[0], values[1] + amount, *values[2:]]))
        step = batch(
            self._claim,
            {ORDERS: position},
            [sums(item_id, values, freq=freq) for freq, item_id, values in added],
            dirty=list(items),
            items=items,
            products={
                product: ProductState(title=f"at {position}") for product in self._random.sample(self._products, 1)
            },
            newest={"orders": position},
            event_ids=[EventIds("orders", position // 10, [f"event {position}"])],
            oldest_generation={"orders": position // 10 - 1},
        )
        sequence = await apply(self._store, self._claim, step)
        done = self._random.choice(list(items))
        self.steps.append({
            "sequence": sequence,
            "added": added,
            "items": items,
            "products": step.products,
            "ids": ("orders", position // 10, f"event {position}"),
        })  # fmt: skip
        if self._random.random() < 0.5:
            await self._store.forecasts_done(self._claim, "1h", [Done(done, sequence, summary(revision=position))])

    def cells_at(self, position: int) -> Counter[tuple[str, str, int, int]]:
        """By frequency, series, bucket and place of the feature, what the first steps amount to."""
        out: Counter[tuple[str, str, int, int]] = Counter()
        for step in self.steps[:position]:
            for freq, item_id, (bucket, *values) in step["added"]:
                for place, value in enumerate(values):
                    out[freq, item_id, bucket, place] += value
        return +out

    def of(self, position: int, kind: str) -> dict[str, Any]:
        """Items or products as the first steps leave them."""
        return {name: value for step in self.steps[:position] for name, value in step[kind].items()}

    def ids_at(self, position: int) -> dict[tuple[str, int], set[str]]:
        """Ids that stand."""
        out: dict[tuple[str, int], set[str]] = defaultdict(set)
        for step in self.steps[:position]:
            source, generation, event_id = step["ids"]
            if generation >= position // 10 - 1:
                out[source, generation].add(event_id)
        return dict(out)

    def marks_at(self, position: int) -> dict[str, int]:
        """Forecasts owed at 1d, of which none is ever made."""
        return {name: step["sequence"] for step in self.steps[:position] for name in step["items"]}


async def save(store: FeatureStore, folder: Path, partitions: tuple[int, ...] = (0,), **meaning: Any) -> list[Saved]:
    writer = SnapshotWriter(folder)
    saved = [one for p in partitions if (one := await save_partition(store, writer, p)) is not None]
    writer.add_calendar(
        [CalendarRecord(b"shop", b'{"event_time": 1, "entries": [{"start_time": 3, "end_time": 9}]}', 7)]
    )
    writer.close(About(store.namespace, store.partition_count, store.forecast_freqs, meaning, chosen=False))
    return saved


def saved_cells(snapshot: Snapshot, partition: int = 0) -> Counter[tuple[str, str, int, int]]:
    out: Counter[tuple[str, str, int, int]] = Counter()
    for freq, series, _, rows in snapshot.sums(partition):
        for item, bucket, values in zip(rows.item.tolist(), rows.bucket.tolist(), rows.values.tolist(), strict=True):
            for place, value in enumerate(values):
                assert (freq, series[item], bucket, place) not in out, "a cell stands twice"
                out[freq, series[item], bucket, place] = value
    return +out


async def stored_cells(store: FeatureStore, claim: Claim, series: list[str]) -> Counter[tuple[str, str, int, int]]:
    out: Counter[tuple[str, str, int, int]] = Counter()
    for freq in ("5m", "1h", "1d"):
        for name, buckets in (await cells(store, claim, freq, series)).items():
            for bucket, values in buckets.items():
                out.update({(freq, name, bucket, place): value for place, value in enumerate(values)})
    return +out


def rules(**options: Any) -> RestoreRules:
    return RestoreRules(**{"partition_of": lambda product: 0, **options})
