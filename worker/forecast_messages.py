"""What is sent and stored of a forecast: a model's outputs, as messages of one lane, frequency and cutoff."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_store.alert_state import AlertLevels, ItemAlerts
from feature_store.calendar_time import ShopCalendar, bucket_start_ms
from feature_store.calibration_state import ItemCalibration, SegmentLevels
from feature_store.events import CalendarEntry
from feature_store.features import FEATURE_INDEX, UNITS_PER_ONE, BucketRows
from feature_store.items import Item, ProductState
from feature_store.layout import ForecastSummary
from feature_store.score_state import ItemScores
from feature_store.store_types import Additions, Done
from forecaster.contract import QUANTILE_LEVELS
from forecaster.inputs import ModelInputs, ModelOutputs, running_buckets
from worker.alert_messages import Sources, alerts_made, not_judged
from worker.alert_table import AlertRules
from worker.calibration import Raw, Subjects, calibrate, owed_outcomes
from worker.challenger import Shadowed
from worker.schemas import Alert, Forecast, ForecastStep
from worker.scored_forecasts import input_rows, item_accuracy, not_scored, scored_forecasts
from worker.scoring import BASELINE_VERSION, ScoringRules
from worker.sold import rows_of, sold_in

_Q10, _Q50, _Q90 = (QUANTILE_LEVELS.index(level) for level in (0.1, 0.5, 0.9))
_UNITS = FEATURE_INDEX["units"]


class LaneRead(Protocol):
    """What forecasts of some items of a lane start from."""

    @property
    def partition(self) -> int: ...
    @property
    def cutoff_ms(self) -> int: ...
    @property
    def positions(self) -> dict[str, int]: ...
    @property
    def feature_age_ms(self) -> dict[str, int]: ...
    @property
    def subjects(self) -> list[tuple[Item, ProductState]]: ...
    @property
    def revisions(self) -> list[int]: ...
    @property
    def marks(self) -> list[int | None]: ...
    @property
    def rows(self) -> BucketRows: ...
    @property
    def calibrations(self) -> list[ItemCalibration | None]: ...
    @property
    def segments(self) -> dict[str, SegmentLevels]: ...
    @property
    def scores(self) -> list[ItemScores | None]: ...
    @property
    def alerts(self) -> list[ItemAlerts | None]: ...
    @property
    def alert_levels(self) -> dict[str, AlertLevels]: ...


class Reply(Protocol):
    """A model's answer."""

    @property
    def outputs(self) -> ModelOutputs: ...
    @property
    def model_version(self) -> str: ...


@dataclass(frozen=True)
class ForecastRules:
    """What all forecasts of a worker have in common."""

    topic: str
    freqs: tuple[str, ...]
    stored_freq: Mapping[str, str]
    stored_buckets: Mapping[str, int]  # how many of them before the running one a forecast looks back on
    prediction_length: Mapping[str, int]
    calendar: ShopCalendar
    global_entries: Callable[[int], Sequence[CalendarEntry]]  # the whole shop's calendar, as known at a cutoff
    config_hash: str
    model_name: str
    batch_size: int
    refresh_per_s: int
    infer: Callable[[ModelInputs], Awaitable[Reply]]
    model_is_away: Callable[[], bool]
    issued_at_ms: Callable[[int], int]  # from the cutoff: the wall clock live, the cutoff itself in replay
    calibrated_freqs: Collection[str] = ()  # of these, quantiles are adjusted to what has sold
    scoring: Mapping[str, ScoringRules] = field(default_factory=dict)  # by frequency; absent = it is not scored
    topic_accuracy: str = ""
    shadow: Callable[[Sequence[Shadowed]], Awaitable[None]] | None = None  # hears of forecasts that were published
    item_accuracy_freqs: Collection[str] = ()  # of these, each item's own accuracy is published
    alert_rules: Mapping[str, AlertRules] = field(default_factory=dict)  # by frequency; absent = none are raised
    topic_alerts: str = ""
    input_drift_freqs: Collection[str] = ()  # of these, and where they are scored, inputs are summed up too


class Model(NamedTuple):
    """Which model made a forecast."""

    name: str
    version: str


BASELINE = Model("empirical", "1")


class Messages(NamedTuple):
    """Forecasts of one lane's items, ready to be sent, with alerts and the accuracy of their items' earlier ones
    (key, value); `done` and `additions` are what is to be stored of them afterwards."""

    messages: list[tuple[str, bytes | None]]
    accuracy: list[tuple[str, bytes]]
    alerts: list[tuple[str, Alert]]
    done: list[Done]
    additions: Additions


class Remembered(NamedTuple):
    """What calibration has remembered of a lane's items, row for row, and of its segments, by time zone."""

    calibrations: Sequence[ItemCalibration | None]
    segments: Mapping[str, SegmentLevels]


class CalibratedOutputs(NamedTuple):
    """A model's outputs as they are sent.

    quantiles_raw: the model's own; None = nothing was adjusted.
    states, learnt: what calibration is to remember, by item and by time zone.
    """

    outputs: ModelOutputs
    quantiles_raw: NDArray[np.float32] | None
    states: Sequence[ItemCalibration | None]
    learnt: dict[str, SegmentLevels]


def forecast_messages(
    rules: ForecastRules, freq: str, read: LaneRead, inputs: ModelInputs, outputs: ModelOutputs, model: Model
) -> Messages:
    """What is sent of one lane's forecasts of one frequency, and what is stored of them; row for row of `read`."""
    writer = _ForecastWriter(rules, freq, read, model)
    observed = writer.observed()
    units = observed / UNITS_PER_ONE[_UNITS]
    if freq in rules.calibrated_freqs and model != BASELINE:  # of a baseline's quantiles nothing was learnt
        remembered = Remembered(read.calibrations, read.segments)
        calibrated = calibrated_outputs(freq, read, outputs, remembered, rules.calendar)
    else:
        calibrated = CalibratedOutputs(outputs, None, [None] * len(read.subjects), {})
    rounded = rounded_outputs(calibrated.outputs, calibrated.quantiles_raw, units)
    if freq in rules.scoring:
        version = BASELINE_VERSION if model == BASELINE else model.version
        scored = scored_forecasts(rules.scoring[freq], read, rounded, version, rules.calendar)
        if freq in rules.input_drift_freqs:
            scored.rows.update(input_rows(freq, read, inputs, rules.calendar))
    else:
        scored = not_scored(len(read.subjects))
    told = _as_lists(rounded)
    written = [writer.write(i, told, float(units[i])) for i in range(len(read.subjects))]
    judged = not_judged(len(written))
    if freq in rules.alert_rules:
        sources = Sources(inputs, calibrated.outputs, [forecast.forecast_id for forecast, _ in written])
        judged = alerts_made(freq, read, sources, rules.alert_rules[freq], rules.calendar)
    made = Messages([], [], judged.messages, [], Additions(calibrated.learnt, scored.rows, judged.levels))
    for i, (forecast, summary) in enumerate(written):
        made.messages.append((forecast.item_id, msgspec.json.encode(forecast)))
        states = calibrated.states[i], scored.states[i], judged.states[i]
        made.done.append(Done(forecast.item_id, read.marks[i], summary, *states))
    if freq in rules.item_accuracy_freqs:
        made.accuracy.extend(item_accuracy(freq, read, scored, rules.model_name))
    return made


def calibrated_outputs(
    freq: str, read: LaneRead, outputs: ModelOutputs, remembered: Remembered, calendar: ShopCalendar
) -> CalibratedOutputs:
    """Learn from what has sold since the items' earlier forecasts, and adjust these."""
    zones = [calendar.zone(item.location_id) for item, _ in read.subjects]
    running = running_buckets(freq, read.cutoff_ms, zones)
    rows = rows_of(freq, read.rows)
    observed = sold_in(rows, np.arange(len(zones)), running)
    raw = Raw(*(array.astype(np.float64) for array in outputs))
    units = observed / UNITS_PER_ONE[_UNITS]
    # What was observed counts as a unit's fraction there, as a 32-bit number here: the rest may fall a little below 0.
    raw.quantiles[:, 0] = np.maximum(raw.quantiles[:, 0] - units[:, None], 0.0)
    raw.mean[:, 0] = np.maximum(raw.mean[:, 0] - units, 0.0)
    # What was remembered of an item that has been withdrawn meanwhile is of another life.
    states = [state if before else None for state, before in zip(remembered.calibrations, read.revisions, strict=True)]
    subjects = Subjects(running, zones, observed, states, remembered.segments)
    owed = np.array(owed_outcomes(subjects), dtype=np.int64).reshape(-1, 2)
    made = calibrate(raw, subjects, sold_in(rows, owed[:, 0], owed[:, 1]))
    made.quantiles[:, 0] += units[:, None]
    made.mean[:, 0] += units
    adjusted = ModelOutputs(*(array.astype(np.float32) for array in made[:3]))
    return CalibratedOutputs(adjusted, outputs.quantiles, made.states, made.learnt)


class Rounded(NamedTuple):
    """Model outputs with three decimals: thousandths are what quantities are counted in. float64, as ModelOutputs."""

    quantiles: NDArray[np.float64]
    mean: NDArray[np.float64]
    cumulative_quantiles: NDArray[np.float64]
    quantiles_raw: NDArray[np.float64] | None


class _Lists(NamedTuple):
    """The same as lists."""

    quantiles: list[list[list[float]]]
    mean: list[list[float]]
    cumulative_quantiles: list[list[list[float]]]
    quantiles_raw: list[list[list[float]]] | None


def rounded_outputs(
    outputs: ModelOutputs, quantiles_raw: NDArray[np.float32] | None, observed: NDArray[np.float64]
) -> Rounded:
    """The model's 32-bit numbers as decimals; those of the running bucket at least what was observed in it, which they
    may be a little short of by their own precision."""
    quantiles, mean, cumulative = map(_rounded, outputs)
    quantiles[:, 0] = np.maximum(quantiles[:, 0], observed[:, None])
    mean[:, 0] = np.maximum(mean[:, 0], observed)
    rounded_raw: NDArray[np.float64] | None = None
    if quantiles_raw is not None:
        rounded_raw = _rounded(quantiles_raw)
        rounded_raw[:, 0] = np.maximum(rounded_raw[:, 0], observed[:, None])
    return Rounded(quantiles, mean, cumulative, rounded_raw)


def _rounded(array: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.round(array.astype(np.float64), 3), dtype=np.float64)


def _as_lists(rounded: Rounded) -> _Lists:
    raw = None
    if rounded.quantiles_raw is not None:
        # Most items sell whole units: as integers these are made and written in a fraction of the time. By item, so
        # that a message does not depend on its batch.
        whole = (rounded.quantiles_raw == np.rint(rounded.quantiles_raw)).all(axis=(1, 2)).tolist()
        raw = [
            (row.astype(np.int64) if is_whole else row).tolist()
            for row, is_whole in zip(rounded.quantiles_raw, whole, strict=True)
        ]
    return _Lists(rounded.quantiles.tolist(), rounded.mean.tolist(), rounded.cumulative_quantiles.tolist(), raw)


class _ForecastWriter:
    """Turns rows of model outputs into messages of one lane, frequency and cutoff."""

    def __init__(self, rules: ForecastRules, freq: str, read: LaneRead, model: Model) -> None:
        self._rules = rules
        self._freq = freq
        self._read = read
        self._model = model
        zones = [rules.calendar.zone(item.location_id) for item, _ in read.subjects]
        self._buckets = running_buckets(freq, read.cutoff_ms, zones)
        self._zones = zones
        self._edges: dict[tuple[int, str], list[int]] = {}

    def observed(self) -> NDArray[np.int64]:
        """Units sold so far in each item's running bucket, in thousandths: int64 (item,)."""
        return sold_in(rows_of(self._freq, self._read.rows), np.arange(len(self._buckets)), self._buckets)

    def _bucket_edges(self, i: int) -> list[int]:
        key = (int(self._buckets[i]), self._zones[i])
        if key not in self._edges:
            steps: NDArray[np.int64] = key[0] + np.arange(self._rules.prediction_length[self._freq] + 1)
            self._edges[key] = bucket_start_ms(self._freq, steps, key[1]).tolist()
        return self._edges[key]

    def write(self, i: int, outputs: _Lists, observed: float) -> tuple[Forecast, ForecastSummary]:
        """Message and summary of the i-th item."""
        read, rules, model = self._read, self._rules, self._model
        item = read.subjects[i][0]
        edges = self._bucket_edges(i)
        identity = [item.item_id, self._freq, read.cutoff_ms, sorted(read.positions.items()), *self._model]
        digest = hashlib.blake2b(msgspec.json.encode([*identity, rules.config_hash]), digest_size=12)
        quantiles, means = outputs.quantiles[i], outputs.mean[i]
        raw = outputs.quantiles_raw[i] if outputs.quantiles_raw is not None else [None] * len(quantiles)
        steps = [
            ForecastStep(start, end, means[k], quantiles[k], outputs.cumulative_quantiles[i][k], raw[k])
            for k, (start, end) in enumerate(pairwise(edges))
        ]
        forecast = Forecast(
            forecast_id=digest.hexdigest(),
            revision=read.revisions[i] + 1,
            item_id=item.item_id,
            product_id=item.product_id,
            location_id=item.location_id,
            freq=self._freq,
            cutoff=read.cutoff_ms,
            positions=read.positions,
            issued_at=rules.issued_at_ms(read.cutoff_ms),
            steps=steps,
            quantile_levels=list(QUANTILE_LEVELS),
            observed=observed,
            model_name=model.name,
            model_version=model.version,
            config_hash=rules.config_hash,
            feature_age_ms=read.feature_age_ms,
            degraded=model == BASELINE,
        )
        summary = ForecastSummary(
            forecast_id=forecast.forecast_id,
            revision=forecast.revision,
            running_bucket=int(self._buckets[i]),
            cutoff=forecast.cutoff,
            issued_at=forecast.issued_at,
            model_name=model.name,
            model_version=model.version,
            degraded=forecast.degraded,
            mean=means,
            q10=[row[_Q10] for row in quantiles],
            q50=[row[_Q50] for row in quantiles],
            q90=[row[_Q90] for row in quantiles],
        )
        return forecast, summary
