"""`shelfcast features RECORDING`: what models are given at each forecast, and what then happened, as training data.

The rows come out of a backtest's lanes: whatever a worker would have been asked to forecast at a tick, with the very
tensors it would have sent to the model, from features that had seen nothing later.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_store.recording_files import Recording, RecordingError
from forecaster.contract import INPUTS, WINDOWS, features_hash
from forecaster.inputs import ModelInputs, ModelOutputs
from worker.backtest_collector import Collector, ForecastBatch
from worker.backtest_lanes import LaneJob, run_lanes
from worker.backtest_models import BacktestModel
from worker.backtest_process import actuals_of
from worker.backtest_variants import parse_variants, recorded_span_ms, spread
from worker.errors import BacktestError
from worker.local_stack import LocalRedis
from worker.settings import Settings

_DAY = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
_HASH_RANGE = 2**32
_ARROW_TYPES = {"TYPE_FP32": pa.float32(), "TYPE_INT32": pa.int32()}


class FeatureRows(NamedTuple):
    """Which rows are wanted: forecasts of one frequency, a share of them."""

    freq: str
    sample: float = 1.0


@dataclass(frozen=True)
class ExportJob:
    """What one process writes to `path`: of the forecasts of its lanes' items those wanted."""

    lanes: LaneJob
    wanted: FeatureRows
    end_ms: int
    path: Path


def tensor_sizes(freq: str, prediction_length: int) -> dict[str, int]:
    """Numbers in each input tensor of one item, flattened, item axis left out."""
    length = WINDOWS[freq].context_length
    free = {"context": length, "available_fraction": length, "known": length + prediction_length}
    return {
        tensor.name: int(np.prod([free[tensor.name] if size == -1 else size for size in tensor.dims]))
        for tensor in INPUTS
    }


def export_schema(freq: str, prediction_length: int) -> Any:
    """Columns of the file: who and when, each input tensor flattened in row-major order (`freq` is among them, by its
    code), and the targets."""
    sizes = tensor_sizes(freq, prediction_length)
    fields = [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("location_id", pa.string(), nullable=False),
        pa.field("cutoff_ms", pa.int64(), nullable=False),
    ]
    fields += [pa.field(t.name, pa.list_(_ARROW_TYPES[t.triton_type], sizes[t.name]), nullable=False) for t in INPUTS]
    fields += [pa.field("target", pa.list_(pa.float32(), prediction_length), nullable=False)]
    about = {"features_hash": features_hash(), "freq": freq, "prediction_length": str(prediction_length)}
    return pa.schema(fields, metadata=about)


class FeatureFile:
    """An evaluator that writes down what the model was given. Targets not known yet are null."""

    def __init__(self, job: ExportJob) -> None:
        self._job = job
        self._schema = export_schema(job.wanted.freq, job.lanes.settings.prediction_length(job.wanted.freq))
        self._file = pq.ParquetWriter(job.path, self._schema, compression="zstd")

    def take(self, batch: ForecastBatch) -> None:
        """Write the rows of a batch that are in the sample."""
        if batch.freq != self._job.wanted.freq:
            return
        rows = self._sampled(batch)
        if not len(rows):
            return
        items = [batch.items[row] for row in rows.tolist()]
        columns = [
            pa.array([item.item_id for item in items]),
            pa.array([item.product_id for item in items]),
            pa.array([item.location_id for item in items]),
            pa.array(batch.cutoff_ms[rows]),
            *(_fixed_lists(tensor[rows]) for tensor in batch.inputs),
            _fixed_lists(batch.actual[rows], null_is_nan=True),
        ]
        self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def _sampled(self, batch: ForecastBatch) -> NDArray[np.intp]:
        """Chosen by a hash of item and cutoff, so that the same recording always gives the same rows."""
        if self._job.wanted.sample >= 1:
            return np.arange(len(batch.items))
        limit = self._job.wanted.sample * _HASH_RANGE
        pairs = zip(batch.items, batch.cutoff_ms.tolist(), strict=True)
        return np.flatnonzero([_hash(f"{item.item_id}|{cutoff}") < limit for item, cutoff in pairs])

    def result(self) -> None:
        """The file is complete then."""
        self._file.close()


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())


def _fixed_lists(values: NDArray[Any], *, null_is_nan: bool = False) -> Any:
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel(), from_pandas=null_is_nan), flat.shape[1])


async def _no_forecast(inputs: ModelInputs) -> ModelOutputs:
    """Stands where the model stands: what it is given is what is wanted."""
    items, steps = len(inputs.freq), inputs.known.shape[1] - inputs.context.shape[1]
    nothing = np.zeros((items, steps), dtype=np.float32)
    return ModelOutputs(nothing[:, :, None], nothing, nothing[:, :, None])


async def _close() -> None:
    return


def export_lanes(job: ExportJob) -> int:
    """Write the file of one process; returns how many forecasts were due, the ones left out by the sample too."""
    return asyncio.run(_export(job))


async def _export(job: ExportJob) -> int:
    settings = job.lanes.settings
    model = BacktestModel("features", "1", _no_forecast, _close)
    file = FeatureFile(job)
    collector = Collector(model, actuals_of(job.lanes, job.end_ms), settings.shop_calendar(), [file])
    await run_lanes(job.lanes, collector.finish)
    await collector.close()
    file.result()
    return collector.forecasts


@click.command("features")
@click.argument("recording", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Parquet file to write.",
)
@click.option(
    "--freq", type=click.Choice(list(WINDOWS)), default="1d", show_default=True, help="Frequency of forecasts."
)
@click.option("--every", "every_s", default=3600, show_default=True, help="Seconds of event time between cutoffs.")
@click.option("--sample", default=1.0, show_default=True, help="Share of the rows to keep, 0 to 1.")
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help="A setting of the worker.")
@click.option("--from", "since", type=click.DateTime(_DAY), help="First cutoff (UTC); before it only count.")
@click.option("--until", type=click.DateTime(_DAY), help="Last cutoff (UTC).")
@click.option("--processes", default=0, help="Processes that share the partitions.  [default: one a core]")
def command(**arguments: Any) -> None:
    """Write what a model would have been given at each forecast of RECORDING, and what then happened.

    A row is an item that was touched, or whose bucket had closed, at a cutoff. Each input tensor of the model is a
    column of flattened values, `target` the units of each step; those that had not ended are null.
    """
    freq, output = arguments["freq"], arguments["output"]
    try:
        recording = Recording.open(arguments["recording"])
        sets = [f"forecast_freqs={freq}", *arguments["sets"]]
        settings = parse_variants(["none"], sets, os.environ, recording)[0].settings
        since, until = _to_ms(arguments["since"]), _to_ms(arguments["until"])
        span = LaneJob(recording.path, (), settings, arguments["every_s"] * 1000, since, until)
        rows = export(recording, span, FeatureRows(freq, arguments["sample"]), output, arguments["processes"])
    except RecordingError as error:
        raise BacktestError(str(error)) from error
    click.echo(f"{output}: {rows:,} rows of {freq}")


def _to_ms(moment: dt.datetime | None) -> int | None:
    return None if moment is None else int(moment.replace(tzinfo=dt.UTC).timestamp() * 1000)


def export(recording: Recording, span: LaneJob, wanted: FeatureRows, output: Path, processes: int = 0) -> int:
    """Write `output`, atomically; returns its rows. `span` is a job without partitions.

    Raises:
        BacktestError: the settings do not forecast that frequency.
    """
    if wanted.freq not in span.settings.forecast_freqs:
        raise BacktestError(f"forecast_freqs is {span.settings.forecast_freqs}: rows of {wanted.freq} need it there")
    _, last_ms = recorded_span_ms(recording, span.settings)
    shares = spread(recording, span.settings, processes or len(os.sched_getaffinity(0)))
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="shelfcast-features-", dir=output.parent) as folder,
        LocalRedis(Path(folder), append_only=False) as redis,
    ):
        settings: Settings = msgspec.structs.replace(span.settings, redis_url=redis.url)
        lanes = [replace(span, partitions=share, settings=settings) for share in shares]
        jobs = [ExportJob(job, wanted, last_ms, Path(folder) / f"{n}.parquet") for n, job in enumerate(lanes)]
        if len(jobs) == 1:
            export_lanes(jobs[0])
        else:
            with ProcessPoolExecutor(len(jobs), mp_context=get_context("spawn")) as pool:
                list(pool.map(export_lanes, jobs))
        return _join([job.path for job in jobs], output, Path(folder) / "all.parquet")


def _join(parts: Sequence[Path], output: Path, whole: Path) -> int:
    """One file of several, row group by row group."""
    rows = 0
    with pq.ParquetWriter(whole, pq.read_schema(parts[0]), compression="zstd") as file:
        for path in parts:
            part = pq.ParquetFile(path)
            for group in range(part.num_row_groups):
                table = part.read_row_group(group)
                file.write_table(table)
                rows += table.num_rows
    whole.replace(output)
    return rows
