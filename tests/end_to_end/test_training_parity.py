"""A recording replayed live, through Kafka, Redis, a worker and Triton, against the same recording run offline: every
tensor that the model was given and every forecast that was published, bit for bit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer
from numpy.typing import NDArray

from feature_store.calibration_state import ItemCalibration, SegmentLevels
from feature_store.clock_ticks import ticks
from feature_store.recording_files import Recording
from feature_store.store import FeatureStore
from forecaster.baselines import empirical_forecast
from forecaster.contract import FREQ_CODES, INPUTS, MODEL_NAME, render_config_pbtxt
from forecaster.inputs import ModelInputs, ModelOutputs
from tests.end_to_end.recordings import shop_records
from tests.end_to_end.shop import PATIENCE_S, Shop
from tests.worker.recordings import Recorded, write_recording
from worker.accuracy import merged_rows
from worker.backtest_collector import Collector, ForecastBatch
from worker.backtest_lanes import LaneJob, run_lanes
from worker.backtest_live_scores import LiveScores, live_summary, live_tables, merged_scores
from worker.backtest_models import BacktestModel
from worker.backtest_process import actuals_of
from worker.calibration import added
from worker.features_export import FeatureRows, export
from worker.forecast_messages import ForecastRules, Model, forecast_messages
from worker.lane_state import LaneRead
from worker.local_stack import LocalRedis, LocalStack
from worker.local_triton import LocalTriton
from worker.rules import forecast_rules, scoring_rules
from worker.schemas import ClockTick
from worker.settings import Settings
from worker.topics import ensure_topics, kafka_client_config

_FREQ_OF_CODE = {code: freq for freq, code in FREQ_CODES.items()}
_NAME = "input_writer"
_MODEL = """
import uuid
import numpy as np
import triton_python_backend_utils as pb_utils
from forecaster.baselines import empirical_forecast
from forecaster.contract import INPUTS, OUTPUTS
from forecaster.inputs import ModelInputs

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            arrays = [pb_utils.get_input_tensor_by_name(request, t.name).as_numpy() for t in INPUTS]
            inputs = ModelInputs(*arrays)
            np.savez(f"{FOLDER}/{uuid.uuid4().hex}.npz", *arrays)
            made = empirical_forecast(inputs, inputs.known.shape[1] - inputs.context.shape[1])
            tensors = [pb_utils.Tensor(t.name, np.ascontiguousarray(v)) for t, v in zip(OUTPUTS, made)]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
"""
_FREQS = ("1h", "1d")
_SOURCES = ("orders", "clicks", "reviews", "products", "calendar", "calendar_global", "stock")
_PARTITIONS = 3


def _topic(source: str) -> str:
    return f"parity.{source}.v1"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("recorded") / "shop"
    records = [
        Recorded(_topic(record.source), record.key, record.value, record.timestamp_ms)
        for record in shop_records(products=12, hours=10, orders=240)
    ]
    counts = {_topic(source): 1 if source == "calendar_global" else _PARTITIONS for source in _SOURCES}
    write_recording(path, records, counts)
    return Recording.open(path)


class Live(NamedTuple):
    """What came of the live replay: inputs that the model was given, by freq; forecasts published, by key in order."""

    settings: Settings
    inputs: dict[str, Counter[bytes]]
    published: dict[bytes, list[bytes]]
    tombstones: int
    store: Callable[[], FeatureStore]


@pytest.fixture(scope="module")
def live(stack: LocalStack, recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    given = tmp_path_factory.mktemp("inputs")
    repository = _model_repository(tmp_path_factory.mktemp("repository"), given)
    with LocalTriton(tmp_path_factory.mktemp("triton"), repository) as triton:
        shop = Shop(
            stack,
            tmp_path_factory.mktemp("shop"),
            clock="event",
            partition_count=_PARTITIONS,
            forecast_freqs=",".join(_FREQS),
            calibrated_freqs=",".join(_FREQS),
            location_time_zones="lisbon=Europe/Lisbon,azores=Atlantic/Azores",
            triton_url=triton.url,
            model_name=_NAME,
            max_reject_share=1,
            currency="",
            topic_clock=_topic("clock"),
            **{f"topic_{source}": _topic(source) for source in _SOURCES},
        )
        try:
            _replay(recording, shop)
            yield _what_came(shop, given)
        finally:
            shop.close()


def _model_repository(repository: Path, given: Path) -> Path:
    version = repository / _NAME / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(f"FOLDER = {str(given)!r}\n{_MODEL}")
    config = render_config_pbtxt().replace(f'name: "{MODEL_NAME}"', f'name: "{_NAME}"', 1)
    (repository / _NAME / "config.pbtxt").write_text(config)
    return repository


def _replay(recording: Recording, shop: Shop) -> None:
    """Send the recording and its clock, and wait until the worker has ticked to the end."""
    settings = shop.settings
    assert ensure_topics(settings) == []
    shop.start_worker()
    producer = Producer(kafka_client_config(settings))
    next_offsets: list[dict[str, int]] = [{} for _ in range(_PARTITIONS)]
    count = 0
    for due in ticks(recording.merged(), _job(recording, settings).tick_rules()):
        if due.rows is not None:
            columns = (due.rows.topic.tolist(), due.rows.partition.tolist(), due.rows.timestamps_ms.tolist())
            for n, (topic, partition, timestamp_ms) in enumerate(zip(*columns, strict=True)):
                name = due.rows.topics[topic]
                producer.produce(name, due.rows.values[n], due.rows.keys[n], partition, timestamp=timestamp_ms)
                # Every lane reads the whole shop's calendar.
                for own in next_offsets if name == _topic("calendar_global") else [next_offsets[partition]]:
                    own[name] = own.get(name, 0) + 1
        if due.tick_ms is not None:
            assert producer.flush(PATIENCE_S) == 0
            count += 1
            for partition in range(_PARTITIONS):
                tick = msgspec.json.encode(ClockTick(due.tick_ms, next_offsets[partition]))
                producer.produce(settings.topic_clock, tick, partition=partition)
    assert producer.flush(PATIENCE_S) == 0
    shop.wait_for_positions("clock", count * _PARTITIONS)


def _what_came(shop: Shop, given: Path) -> Live:
    inputs: dict[str, Counter[bytes]] = {freq: Counter() for freq in _FREQS}
    for path in given.glob("*.npz"):
        with np.load(path) as file:
            arrays = [file[name] for name in file.files]
        for row in range(len(arrays[0])):
            inputs[_FREQ_OF_CODE[int(arrays[-1][row, 0])]][b"".join(array[row].tobytes() for array in arrays)] += 1
    expected = sum(rows.total() for rows in inputs.values())
    records = shop.reader(shop.settings.topic_forecasts).wait_for(
        lambda found: found if sum(record.value is not None for record in found) >= expected else None
    )
    published: dict[bytes, list[bytes]] = {}
    for record in records:
        if record.value is not None:
            published.setdefault(record.key, []).append(record.value)
    return Live(shop.settings, inputs, published, sum(record.value is None for record in records), shop.store)


def _job(recording: Recording, settings: Settings) -> LaneJob:
    return LaneJob(recording.path, tuple(range(_PARTITIONS)), settings)


@pytest.mark.parametrize("freq", _FREQS)
def test_training_data_is_what_the_live_model_was_given_bit_for_bit(
    recording: Recording, live: Live, freq: str, tmp_path: Path
) -> None:
    output = tmp_path / "features.parquet"
    rows = export(recording, _job(recording, live.settings), FeatureRows(freq), output, processes=1)
    table = pq.read_table(output)
    columns = [_numbers(table[tensor.name]) for tensor in INPUTS]
    offline = Counter(b"".join(column[row].tobytes() for column in columns) for row in range(table.num_rows))
    assert rows == table.num_rows == live.inputs[freq].total() > 100
    assert offline == live.inputs[freq]


def _numbers(column: Any) -> NDArray[Any]:
    lists = column.combine_chunks()
    return np.array(np.from_dlpack(lists.flatten())).reshape(len(lists), -1)


class Messages:
    """An evaluator that writes forecasts as a worker would have published them."""

    def __init__(self, rules: ForecastRules) -> None:
        self._rules = rules
        self._items: dict[tuple[int, str, str], ItemCalibration] = {}
        self._segments: dict[tuple[int, str], dict[str, SegmentLevels]] = {}
        self.published: dict[bytes, list[bytes]] = {}

    def take(self, batch: ForecastBatch) -> None:
        start = 0
        for prepared in batch.prepared:
            stop = start + len(prepared.read.subjects)
            outputs = ModelOutputs(*(column[start:stop] for column in batch.outputs))
            key = prepared.lane.partition, batch.freq
            segments = self._segments.setdefault(key, {})
            names = [item.item_id for item, _ in prepared.read.subjects]
            assert isinstance(prepared.read, LaneRead)
            read = prepared.read._replace(
                calibrations=[self._items.get((*key, name)) for name in names], segments=dict(segments)
            )
            made = forecast_messages(self._rules, batch.freq, read, prepared.inputs, outputs, Model(_NAME, "1"))
            self._items |= {(*key, one.item_id): one.calibration for one in made.done if one.calibration is not None}
            segments |= {zone: added(segments.get(zone), learnt) for zone, learnt in made.additions.learnt.items()}
            for item_id, value in made.messages:
                self.published.setdefault(f"{item_id}|{batch.freq}".encode(), []).append(value or b"")
            start = stop

    def result(self) -> None:
        return


async def test_a_backtests_forecasts_are_those_of_the_live_replay_byte_for_byte(
    recording: Recording, live: Live, redis_server: LocalRedis
) -> None:
    settings = msgspec.structs.replace(live.settings, redis_url=redis_server.url, namespace="backtest")
    job = _job(recording, settings)
    messages = Messages(
        forecast_rules(settings, live=False, global_entries=lambda _: (), infer=_not_asked, model_is_away=lambda: False)
    )
    model = BacktestModel(_NAME, "1", _empirical, _nothing)
    collector = Collector(model, actuals_of(job, 0), settings.shop_calendar(), [messages])
    ran = await run_lanes(job, collector.finish)
    await collector.close()
    assert messages.published == live.published
    assert ran.set_aside[settings.topic_forecasts] == live.tombstones > 0


async def test_a_backtests_live_scoring_is_that_of_the_live_replay(
    recording: Recording, live: Live, redis_server: LocalRedis
) -> None:
    settings = msgspec.structs.replace(live.settings, redis_url=redis_server.url, namespace="scored-backtest")
    job = _job(recording, settings)
    scores = LiveScores(scoring_rules(settings), settings.shop_calendar())
    model = BacktestModel(_NAME, "1", _empirical, _nothing)
    collector = Collector(model, actuals_of(job, 0), settings.shop_calendar(), [scores], settings.calibrated_freqs)
    await run_lanes(job, collector.finish)
    await collector.close()
    found, store, deadline = merged_scores([scores.result()]), live.store(), time.monotonic() + PATIENCE_S
    while True:  # the last forecasts are stored a moment after they were sent
        expected = {
            freq: {name: sums for name, sums in rows.items() if name.segment != "inputs"}
            for freq, rows in (await merged_rows(store, live.settings, _FREQS)).items()
        }
        if found == expected:
            break
        assert time.monotonic() < deadline, (found, expected)
    await store.close()
    assert sum(len(rows) for rows in found.values()) > 5
    assert {line["freq"] for line in live_summary(found)} == set(_FREQS)
    assert len(live_tables(found)) == len(_FREQS)


async def _empirical(inputs: ModelInputs) -> ModelOutputs:
    return empirical_forecast(inputs, inputs.known.shape[1] - inputs.context.shape[1])


async def _nothing() -> None:
    return


async def _not_asked(inputs: ModelInputs) -> Any:
    raise AssertionError("the model is asked elsewhere")
