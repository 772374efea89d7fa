"""What live accuracy costs: time of a worker for its forecasts, and bytes of Redis for each item.

Lane, scheduler and store are a worker's own, on a Redis started for it; the model answers at once and nothing is sent,
so that what is timed is all but those two. Items sell as most do: nothing on most days. Days pass; each begins with
forecasts of all items, by which yesterday is scored; then every item is touched and forecast again. Runs with and
without scoring take turns.

python -m benchmarks.scoring
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np

from benchmarks.report import show
from feature_store.score_state import pack_scores
from feature_store.store import FeatureStore
from forecaster.contract import QUANTILE_LEVELS
from forecaster.inputs import ModelInputs, ModelOutputs
from worker.aside import Message
from worker.lane import Lane
from worker.local_stack import LocalRedis
from worker.records import Records
from worker.rules import forecast_rules, lane_rules
from worker.scheduler import Scheduler
from worker.settings import Settings

_FREQ_MS = {"1h": 3_600_000, "1d": 86_400_000}
_FIRST_MS = 20_000 * 86_400_000 + 1_000_000
_ITEMS, _SEED = 256, 3
_QUIET = 5  # buckets before the timed ones are as many as the furthest step, and these


class _Reply(NamedTuple):
    outputs: ModelOutputs
    model_version: str


class _Fetched:
    def timestamp(self) -> tuple[int, int]:
        return 1, 0

    def headers(self) -> None:
        return None


class Measured(NamedTuple):
    """Milliseconds of 256 forecasts: `fresh` begin a bucket, `touched` come later in it. item_bytes: of its state."""

    fresh: list[float]
    touched: list[float]
    item_bytes: float


class _Shop:
    def __init__(self, url: str, namespace: str, freq: str, *, scored: bool) -> None:
        self.settings = Settings(
            redis_url=url,
            namespace=namespace,
            partition_count=1,
            forecast_freqs=(freq,),
            scored_freqs=(freq,) if scored else (),
            calibrated_freqs=(),
        )
        self.freq, self.now_ms = freq, _FIRST_MS
        self._random = np.random.default_rng(_SEED)
        self._sent = 0
        self.store = FeatureStore(**self.settings.store_options())
        rules = forecast_rules(
            self.settings, live=False, global_entries=lambda _: (), infer=self._say, model_is_away=lambda: False
        )
        self.scheduler = Scheduler(rules)

    async def _say(self, inputs: ModelInputs) -> _Reply:
        shape = len(inputs.freq), self.settings.prediction_length(self.freq), len(QUANTILE_LEVELS)
        made = np.sort(self._random.negative_binomial(0.3, 0.2, shape), axis=2).astype(np.float32)
        made[:, 0] += inputs.running[:, :1]
        return _Reply(ModelOutputs(made, made.mean(axis=2), np.cumsum(made, axis=1)), "1")

    async def _send(self, topic: str, partition: int, messages: Sequence[Message]) -> None:
        return

    async def lane(self) -> Lane:
        rules = lane_rules(self.settings, clock_topic="", send=self._send)
        return Lane(self.store, await self.store.claim(0), dataclasses.replace(rules, now_ms=lambda: self.now_ms))

    async def touch(self, lane: Lane) -> None:
        order = {"event_time": self.now_ms, "quantity": 1, "unit_price": 2}
        names = [f"item{n}" for n in range(_ITEMS)]
        values: list[bytes | None] = [msgspec.json.encode(order | {"product_id": name}) for name in names]
        keys: list[bytes | None] = [name.encode() for name in names]
        offsets = range(self._sent, self._sent + _ITEMS)
        fetched: Any = [_Fetched()] * _ITEMS
        await lane.handle(Records(self.settings.topic_orders, self._sent, 0, offsets, keys, values, fetched))
        self._sent += _ITEMS

    async def forecast(self, lane: Lane) -> float:
        began = time.perf_counter()
        await self.scheduler.drain(lane)
        return 1000 * (time.perf_counter() - began)

    async def item_bytes(self) -> float:
        states = [await self.store.accuracy().peek_item(0, self.freq, f"item{n}") for n in range(_ITEMS)]
        return statistics.mean(len(pack_scores(state)) if state else 0 for state in states)


async def measure(url: str, freq: str, buckets: int) -> dict[bool, Measured]:
    """With and without scoring, in turns."""
    shops = {scored: _Shop(url, f"{freq}{scored}", freq, scored=scored) for scored in (False, True)}
    lanes = {scored: await shop.lane() for scored, shop in shops.items()}
    found = {scored: Measured([], [], 0.0) for scored in shops}
    first = shops[True].settings.prediction_length(freq) + _QUIET
    for bucket in range(first + buckets):
        for scored, shop in shops.items():
            lane = lanes[scored]
            shop.now_ms = _FIRST_MS + bucket * _FREQ_MS[freq]
            if bucket == 0 or bucket >= first:
                await shop.touch(lane)
                shop.now_ms += 1
            times = [await shop.forecast(lane)]
            if bucket >= first:
                await shop.touch(lane)
                times.append(await shop.forecast(lane))
                for kept, taken in zip(found[scored][:2], times, strict=True):
                    kept.append(taken)
    for scored, shop in shops.items():
        found[scored] = found[scored]._replace(item_bytes=await shop.item_bytes())
        await shop.store.close()
    return found


@click.command()
@click.option("--buckets", default=20, show_default=True, help="Timed buckets of each frequency.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as the last line too.")
def main(buckets: int, as_json: bool) -> None:
    """Measure, and print medians."""
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as folder, LocalRedis(Path(folder), append_only=False) as server:
        for freq in _FREQ_MS:
            found = asyncio.run(measure(server.url, freq, buckets))
            for scored, one in found.items():
                fresh, touched = statistics.median(one.fresh), statistics.median(one.touched)
                what = f"{freq}, {'scored' if scored else 'not scored'}"
                rows.append([what, f"{fresh:.1f}", f"{touched:.1f}", f"{one.item_bytes:,.0f}"])
                figures[what] = {"fresh_ms": fresh, "touched_ms": touched, "item_bytes": one.item_bytes}
    header = ["forecasts of 256 items", "first of a bucket, ms", "later ones, ms", "bytes an item"]
    show("Live accuracy: what it costs", header, rows, figures, as_json)


if __name__ == "__main__":
    main()
