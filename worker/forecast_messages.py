"""What is sent and stored of a forecast: a model's outputs, as messages of one lane, frequency and cutoff."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar, bucket_start_ms, week_of_day
from feature_store.events import CalendarEntry
from feature_store.features import FEATURE_INDEX, UNITS_PER_ONE, BucketRows
from feature_store.items import Item, ProductState
from feature_store.layout import ForecastSummary
from forecaster.contract import QUANTILE_LEVELS
from forecaster.inputs import ModelInputs, ModelOutputs, running_buckets
from worker.schemas import Forecast, ForecastStep

_Q10, _Q50, _Q90 = (QUANTILE_LEVELS.index(level) for level in (0.1, 0.5, 0.9))
_UNITS = FEATURE_INDEX["units"]


class LaneRead(Protocol):
    """What forecasts of some items of a lane start from."""

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


class Model(NamedTuple):
    """Which model made a forecast."""

    name: str
    version: str


BASELINE = Model("empirical", "1")


class Messages(NamedTuple):
    """Forecasts of one lane's items, ready to be sent; `done` is what is to be stored of them afterwards."""

    messages: list[tuple[str, bytes | None]]
    done: list[tuple[str, int | None, ForecastSummary | None]]


def rows_of(freq: str, read: LaneRead) -> BucketRows:
    """What was read, in buckets of the forecast's frequency: weeks are stored as days."""
    return read.rows._replace(bucket=week_of_day(read.rows.bucket)) if freq == "1w" else read.rows


def forecast_messages(rules: ForecastRules, freq: str, read: LaneRead, outputs: ModelOutputs, model: Model) -> Messages:
    """What is sent of one lane's forecasts of one frequency, and what is stored of them; row for row of `read`."""
    writer = _ForecastWriter(rules, freq, read, model)
    observed = writer.observed()
    rounded = _rounded(outputs, observed)
    made = Messages([], [])
    for i, (item, _) in enumerate(read.subjects):
        forecast, summary = writer.write(i, rounded, float(observed[i]))
        made.messages.append((item.item_id, msgspec.json.encode(forecast)))
        made.done.append((item.item_id, read.marks[i], summary))
    return made


class _Rounded(NamedTuple):
    """Model outputs as lists of decimals with three places: thousandths are what quantities are counted in."""

    quantiles: list[list[list[float]]]
    mean: list[list[float]]
    cumulative_quantiles: list[list[list[float]]]


def _rounded(outputs: ModelOutputs, observed: NDArray[np.float64]) -> _Rounded:
    """The model's 32-bit numbers as decimals; those of the running bucket at least what was observed in it, which they
    may be a little short of by their own precision."""
    quantiles, mean, cumulative = (np.round(array.astype(np.float64), 3) for array in outputs)
    quantiles[:, 0] = np.maximum(quantiles[:, 0], observed[:, None])
    mean[:, 0] = np.maximum(mean[:, 0], observed)
    return _Rounded(quantiles.tolist(), mean.tolist(), cumulative.tolist())


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

    def observed(self) -> NDArray[np.float64]:
        """Units sold so far in each item's running bucket: float64 (item,), exact to the thousandth, for it is summed
        in whole thousandths."""
        rows = rows_of(self._freq, self._read)
        running = rows.bucket == self._buckets[rows.item]
        sums = np.zeros(len(self._buckets), dtype=np.int64)
        np.add.at(sums, rows.item[running], rows.values[running, _UNITS])
        return np.asarray(sums / UNITS_PER_ONE[_UNITS], dtype=np.float64)

    def _bucket_edges(self, i: int) -> list[int]:
        key = (int(self._buckets[i]), self._zones[i])
        if key not in self._edges:
            steps: NDArray[np.int64] = key[0] + np.arange(self._rules.prediction_length[self._freq] + 1)
            self._edges[key] = bucket_start_ms(self._freq, steps, key[1]).tolist()
        return self._edges[key]

    def write(self, i: int, outputs: _Rounded, observed: float) -> tuple[Forecast, ForecastSummary]:
        """Message and summary of the i-th item."""
        read, rules, model = self._read, self._rules, self._model
        item = read.subjects[i][0]
        edges = self._bucket_edges(i)
        identity = [item.item_id, self._freq, read.cutoff_ms, sorted(read.positions.items()), *self._model]
        digest = hashlib.blake2b(msgspec.json.encode([*identity, rules.config_hash]), digest_size=12)
        quantiles, means = outputs.quantiles[i], outputs.mean[i]
        steps = [
            ForecastStep(start, end, means[k], quantiles[k], outputs.cumulative_quantiles[i][k])
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
