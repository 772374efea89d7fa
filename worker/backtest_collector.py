"""Collector: makes the forecasts that a backtest's lanes owe, many at once, and shows them to evaluators.

A lane need not wait for them: neither features nor what is owed next depend on what a forecast says. So inputs of many
ticks are gathered until the model's passes are full, which a forecast never depends on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar
from feature_store.calibration_state import ItemCalibration, SegmentLevels
from feature_store.items import Item
from feature_store.store import Heads
from forecaster.contract import ROWS_PER_PASS
from forecaster.inputs import ModelInputs, ModelOutputs, running_buckets
from worker.backtest_actuals import Actuals
from worker.backtest_models import BacktestModel
from worker.calibration import added
from worker.forecast_messages import Remembered, calibrated_outputs
from worker.scheduler import Prepared

_ROWS_AT_ONCE = 16 * ROWS_PER_PASS  # as many as one request to a served model may have


class ForecastBatch(NamedTuple):
    """Forecasts of one frequency, row for row, and what then happened.

    items: of each row.
    cutoff_ms: int64 (row,).
    running: int64 (row,): the first step's bucket.
    revisions: of each row.
    touched: bool (row,): an event had touched the item; else its bucket had closed.
    inputs, outputs: the model's.
    actual: float32 (row, step): units; NaN = the bucket has not ended in the recording.
    prepared: where the rows come from, in their order.
    """

    freq: str
    items: list[Item]
    cutoff_ms: NDArray[np.int64]
    running: NDArray[np.int64]
    revisions: list[int]
    touched: NDArray[np.bool_]
    inputs: ModelInputs
    outputs: ModelOutputs
    actual: NDArray[np.float32]
    prepared: Sequence[Prepared]


class Evaluator(Protocol):
    """Looks at every forecast of one process of a backtest; what alerts or orders would come of them, for instance."""

    def take(self, batch: ForecastBatch) -> None:
        """Batches of an item and frequency come in the order of their cutoffs."""
        ...

    def result(self) -> Any:
        """What it found, once, at the end. Goes from one process to another."""
        ...


class _Pending(NamedTuple):
    """One lane's prepared forecasts, with each row's first bucket, and whether an event had touched its item."""

    prepared: Prepared
    running: NDArray[np.int64]
    touched: list[bool]


class _LaneMemory(NamedTuple):
    """What a worker keeps in Redis for calibration: by item_id, and by time zone."""

    items: dict[str, ItemCalibration]
    segments: dict[str, SegmentLevels]


class Collector:
    """`finish` is the scheduler's; `close` when the lanes have ended."""

    def __init__(
        self,
        model: BacktestModel,
        actuals: Actuals,
        calendar: ShopCalendar,
        evaluators: Sequence[Evaluator],
        calibrated_freqs: Collection[str] = (),
    ) -> None:
        self._model, self._actuals, self._calendar = model, actuals, calendar
        self._evaluators = evaluators
        self._pending: dict[str, list[_Pending]] = {}
        self._calibrated_freqs = calibrated_freqs
        self._remembered: dict[tuple[int, str], _LaneMemory] = {}  # by partition and frequency
        self.forecasts = 0

    async def finish(self, freq: str, prepared: Sequence[Prepared]) -> None:
        """Take forecasts that are owed. What a lane remembers of them is as if they had been published."""
        pending = self._pending.setdefault(freq, [])
        for one in prepared:
            zones = [self._calendar.zone(item.location_id) for item, _ in one.read.subjects]
            running = running_buckets(freq, one.read.cutoff_ms, zones)
            rows = zip(one.read.subjects, one.read.marks, one.read.revisions, running.tolist(), strict=True)
            done = [(item.item_id, mark, Heads(before + 1, bucket)) for (item, _), mark, before, bucket in rows]
            touched = [one.lane.is_touched(freq, item.item_id) for item, _ in one.read.subjects]
            one.lane.note_done(freq, done)
            pending.append(_Pending(one, running, touched))
        if sum(len(one.running) for one in pending) >= _ROWS_AT_ONCE:
            await self._make(freq)

    async def close(self) -> None:
        """Make the forecasts that are left."""
        for freq in self._pending:
            await self._make(freq)

    async def _make(self, freq: str) -> None:
        pending, self._pending[freq] = self._pending[freq], []
        if not pending:
            return
        inputs = ModelInputs(
            *(np.concatenate(parts) for parts in zip(*(one.prepared.inputs for one in pending), strict=True))
        )
        parts = [
            await self._model.forecast(ModelInputs._make(column[first : first + _ROWS_AT_ONCE] for column in inputs))
            for first in range(0, len(inputs.freq), _ROWS_AT_ONCE)
        ]
        outputs = ModelOutputs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        if freq in self._calibrated_freqs:
            outputs = self._calibrated(freq, pending, outputs)
        self.forecasts += len(outputs.mean)
        batch = self._batch(freq, pending, inputs, outputs)
        for evaluator in self._evaluators:
            evaluator.take(batch)

    def _calibrated(self, freq: str, pending: Sequence[_Pending], outputs: ModelOutputs) -> ModelOutputs:
        """As a worker's scheduler would, one batch of a lane after the other; what is to be remembered stays here."""
        made, start = [], 0
        for one in pending:
            stop = start + len(one.running)
            own, item_ids = (
                ModelOutputs(*(array[start:stop] for array in outputs)),
                [i.item_id for i, _ in one.prepared.read.subjects],
            )
            memory = self._remembered.setdefault((one.prepared.lane.partition, freq), _LaneMemory({}, {}))
            remembered = Remembered([memory.items.get(item_id) for item_id in item_ids], memory.segments)
            done = calibrated_outputs(freq, one.prepared.read, own, remembered, self._calendar)
            new = {item_id: state for item_id, state in zip(item_ids, done.states, strict=True) if state is not None}
            memory.items.update(new)
            for zone, learnt in done.learnt.items():
                memory.segments[zone] = added(memory.segments.get(zone), learnt)
            made.append(done.outputs)
            start = stop
        return ModelOutputs(*(np.concatenate(columns) for columns in zip(*made, strict=True)))

    def _batch(
        self, freq: str, pending: Sequence[_Pending], inputs: ModelInputs, outputs: ModelOutputs
    ) -> ForecastBatch:
        reads = [one.prepared.read for one in pending]
        items = [item for read in reads for item, _ in read.subjects]
        running = np.concatenate([one.running for one in pending])
        zones = [self._calendar.zone(item.location_id) for item in items]
        item_ids = [item.item_id for item in items]
        return ForecastBatch(
            freq=freq,
            items=items,
            cutoff_ms=np.repeat([read.cutoff_ms for read in reads], [len(read.subjects) for read in reads]),
            running=running,
            revisions=[before + 1 for read in reads for before in read.revisions],
            touched=np.array([mark for one in pending for mark in one.touched], dtype=np.bool_),
            inputs=inputs,
            outputs=outputs,
            actual=self._actuals.targets(freq, item_ids, running, zones, outputs.mean.shape[1]),
            prepared=[one.prepared for one in pending],
        )
