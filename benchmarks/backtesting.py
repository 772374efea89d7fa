"""How fast a backtest goes: events a second without a model, forecasts a second beside what the model alone makes, and
a year of Online Retail II.

The year asks for hourly forecasts of the items touched in each hour and daily ones of every live item at each day's
close. `days` bounds how much of it is forecast: the rest is then taken to go at the same pace, which the figures say.
"""

from __future__ import annotations

import datetime as dt
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.forecast import make_inputs
from feature_store.recording_files import Manifest, RecordColumns, Recording, RecordingWriter, TopicEntry
from forecaster import online_retail
from forecaster.predictor import load_model
from worker.backtest import BacktestOptions, VariantRun, run_variant
from worker.backtest_models import NONE, SHIPPED
from worker.backtest_variants import parse_variants, spread
from worker.transport import murmur2_partition

YEAR = (dt.date(2009, 12, 1), dt.date(2010, 12, 1))
PARTITIONS = 8
_ORDERS, _CALENDAR = "shop.orders.v1", "shop.calendar_global.v1"
_SETTINGS = (
    f"time_zone={online_retail.TIME_ZONE}",
    f"currency={online_retail.CURRENCY}",
    "touched_freqs=1h",
    "refreshed_freqs=1d",
)
_YEARS_FORECASTS = 1_425_000  # 425,000 hourly and 1,000,000 daily
_MODEL_SECONDS = 5.0
_ROWS = 256
_DAY_MS = 86_400_000


def record_online_retail(source: Path, path: Path, first: dt.date = YEAR[0], end: dt.date = YEAR[1]) -> Recording:
    """Orders of the local dates from `first` up to, not including, `end` as a recording, with the days on which the
    shop is shut."""
    lines = online_retail.read(source).between(online_retail.day_start_ms(first), online_retail.day_start_ms(end))
    orders = [(event.product_id, msgspec.json.encode(event)) for event in lines.events()]
    partition = np.array([murmur2_partition(product_id, PARTITIONS) for product_id in lines.product_ids])[lines.product]
    manifest = Manifest("Online Retail II", 0, {_ORDERS: TopicEntry(PARTITIONS), _CALENDAR: TopicEntry(1)})
    with RecordingWriter(path, manifest) as writer:
        for p in range(PARTITIONS):
            rows = np.flatnonzero(partition == p)
            writer.append(_columns(_ORDERS, p, lines.event_time_ms[rows], [orders[row] for row in rows.tolist()]))
        closures = msgspec.json.encode({"event_time": 0, "entries": online_retail.closures()})
        writer.append(_columns(_CALENDAR, 0, lines.event_time_ms[:1], [("closures", closures)]))
    return Recording.open(path)


def _columns(topic: str, partition: int, times_ms: Any, pairs: list[tuple[str, bytes]]) -> RecordColumns:
    count = len(pairs)
    return RecordColumns(
        topic,
        partition,
        np.arange(count, dtype=np.int64),
        np.array(times_ms, dtype=np.int64),
        np.ones(count, dtype=np.int8),
        [key.encode() for key, _ in pairs],
        [value for _, value in pairs],
        [None] * count,
    )


def model_pace(freq: str) -> float:
    """Forecasts a second of the shipped model alone, in this process on one core, for about _MODEL_SECONDS."""
    predictor, inputs = load_model(SHIPPED), make_inputs(freq, _ROWS)
    predictor.forecast(inputs)
    began, made = time.perf_counter(), 0
    while time.perf_counter() < began + _MODEL_SECONDS:
        predictor.forecast(inputs)
        made += _ROWS
    return made / (time.perf_counter() - began)


def _model_forecasts_per_s(hourly_share: float) -> float:
    """Of the model alone on all cores, for a mix of hourly and daily forecasts."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        hourly, daily = (sum(pool.map(model_pace, [freq] * cores)) for freq in ("1h", "1d"))
    return 1 / (hourly_share / hourly + (1 - hourly_share) / daily)


@contextmanager
def _year(source: Path) -> Iterator[Recording]:
    with tempfile.TemporaryDirectory(prefix="shelfcast-benchmark-") as folder:
        yield record_online_retail(source, Path(folder) / "year")


def events_per_s(recording: Recording, settings: Sequence[str], folder: Path) -> float:
    """Events a second that a backtest without a model counts. `settings`: name=value."""
    run = _run(recording, NONE, BacktestOptions(folder), settings)
    return _pace(run, sum(result.lanes.events for result in run.results))


def _run(recording: Recording, model: str, options: BacktestOptions, settings: Sequence[str] = _SETTINGS) -> VariantRun:
    (variant,) = parse_variants([model], settings, {}, recording)
    shares = spread(recording, variant.settings, len(os.sched_getaffinity(0)))
    return run_variant(recording, variant, options, shares, keep=False)


def _pace(run: VariantRun, count: int) -> float:
    return count / max(result.seconds for result in run.results)


def measure_backtest(source: Path, days: int | None = None) -> dict[str, Any]:
    """Measure on Online Retail II as published.

    Args:
        source: its Parquet file.
        days: how many days of the year, the last ones but for the week at its end, are forecast; None = all. The year's
            time is then made up from their pace and the year's number of forecasts.
    """
    with _year(source) as recording, tempfile.TemporaryDirectory(prefix="shelfcast-benchmark-") as folder:
        counted_per_s = events_per_s(recording, _SETTINGS, Path(folder))
        options = BacktestOptions(Path(folder))
        if days is not None:
            until_ms = online_retail.day_start_ms(YEAR[1] - dt.timedelta(days=7))
            options = options._replace(from_ms=until_ms - days * _DAY_MS, until_ms=until_ms)
        run = _run(recording, str(SHIPPED), options)
    made = sum(result.forecasts for result in run.results)
    hourly = sum(_count(result.found["accuracy"], "1h") for result in run.results)
    # What comes before the days asked for only fills the features, at the pace measured above.
    forecasts_per_s = made / max(result.seconds - result.lanes.filling_s for result in run.results)
    return {
        "backtest_per_s": round(counted_per_s, 1),
        "model_forecasts_per_s": round(_model_forecasts_per_s(hourly / made), 1),
        "backtest_forecasts_per_s": round(forecasts_per_s, 1),
        "online_retail_year_s": round(run.wall_s if days is None else _YEARS_FORECASTS / forecasts_per_s, 1),
        "days": days,
        "forecasts": made,
    }


def _count(found: Any, freq: str) -> int:
    """Forecasts of one frequency."""
    return sum(sums.forecasts for (own, _), sums in found.items() if own == freq)
