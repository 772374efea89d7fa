"""Messages that shelfcast publishes. Nothing is ever retyped; new fields have defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from feature_store.events import EVENT_CLASSES

Milliseconds = Annotated[int, Meta(description="milliseconds since the epoch, UTC")]


class ForecastStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """One bucket of the future. The first step is the running bucket: its values are of the bucket's final total."""

    bucket_start: Milliseconds
    bucket_end: Milliseconds
    mean: Annotated[float, Meta(ge=0, description="expected units")]
    quantiles: Annotated[list[float], Meta(description="units at each of quantile_levels, ascending")]
    cumulative_quantiles: Annotated[
        list[float], Meta(description="units from cutoff to bucket_end, at each of quantile_levels")
    ]
    quantiles_raw: Annotated[list[float], Meta(description="before calibration, when it is on")] | None = None


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """The demand forecast of one item and frequency. Key: item_id|freq. Consumers keep the greatest revision."""

    forecast_id: Annotated[str, Meta(description="hash of item, freq, cutoff, positions, model and configuration")]
    revision: Annotated[int, Meta(ge=1, description="counts up by item and freq")]
    item_id: str
    product_id: str
    location_id: str
    freq: str
    cutoff: Annotated[int, Meta(description="event time up to which events have been seen, milliseconds UTC")]
    positions: Annotated[dict[str, int], Meta(description="by topic the next offset: exactly which events were seen")]
    issued_at: Milliseconds
    steps: list[ForecastStep]
    quantile_levels: list[float]
    observed: Annotated[float, Meta(ge=0, description="units sold so far in the running bucket")]
    model_name: str
    model_version: str
    config_hash: str
    feature_age_ms: Annotated[
        dict[str, int], Meta(description="by source, how long before cutoff the lane's newest event happened")
    ]
    degraded: Annotated[bool, Meta(description="true = a baseline stood in for the model")] = False


class Replenishment(msgspec.Struct, frozen=True, kw_only=True):
    """An order of one item. Key: item_id. The same order may be sent twice: consumers keep the first of an id."""

    replenishment_id: Annotated[str, Meta(description="hash of item, review_time and policy")]
    item_id: str
    product_id: str
    location_id: str = ""
    quantity: Annotated[float, Meta(gt=0, description="units to order, whole packs")]
    reason: Annotated[str, Meta(description="for a person: what is there, and what is needed")] = ""
    policy: Annotated[str, Meta(description="order_up_to, s_S or newsvendor")]
    review_time: Annotated[
        int, Meta(description="moment of the review that the order is of, milliseconds UTC: one order a review")
    ]
    event_time: Annotated[int, Meta(description="event time at which it was decided, milliseconds UTC")]
    service_level: Annotated[float, Meta(gt=0, lt=1, description="share of periods, or with fill_rate of units")]
    service_measure: Annotated[str, Meta(description="cycle_service or fill_rate")] = "cycle_service"
    lead_time_s: Annotated[float, Meta(ge=0, description="expected seconds until the goods arrive")]
    forecast_id: Annotated[str, Meta(description="of the forecast that it was decided by")]
    on_hand: Annotated[float, Meta(description="units in stock; below zero = owed to customers")]
    on_order: Annotated[float, Meta(ge=0, description="units on their way before this order")]
    reorder_point: Annotated[float, Meta(ge=0, description="units at or below which is ordered")]
    order_up_to: Annotated[float, Meta(ge=0, description="units up to which is ordered")]


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """What has left its forecast, or another promise. Key: item_id|kind, or subject|kind where it is of no item. The
    same message may be sent twice after a crash: consumers keep the first of each alert_id and sequence."""

    alert_id: Annotated[str, Meta(description="of one episode: the same from open to close")]
    episode_state: Annotated[Literal["open", "update", "close"], Meta(description="an episode opens and closes once")]
    sequence: Annotated[int, Meta(ge=1, description="counts up within the episode")]
    kind: Annotated[
        str,
        Meta(
            description="demand_above, demand_below, interest_above, review_below, stream_silent, error_drift, "
            "input_drift or promotion; others may come"
        ),
    ]
    event_time: Annotated[int, Meta(description="event time at which it was found, milliseconds UTC")]
    opened_at: Annotated[int, Meta(description="event_time of the episode's first message, milliseconds UTC")]
    window_start: Annotated[int, Meta(description="from when on was counted, milliseconds UTC")]
    item_id: Annotated[str, Meta(description="empty = it is of no single item")] = ""
    product_id: str = ""
    location_id: str = ""
    subject: Annotated[str, Meta(description="whose it is where it is of no item: a topic, a group of items")] = ""
    channel: Annotated[str, Meta(description="what was counted: order_lines, units, ...; of drift the measure")] = ""
    freq: Annotated[str, Meta(description="of the forecasts that it was judged by")] = ""
    observed: Annotated[float, Meta(description="what was counted since window_start")]
    expected: Annotated[float, Meta(description="what was to be expected of the same time")]
    tail_probability: Annotated[
        float, Meta(ge=0, le=1, description="chance of something as far from expected, in this window alone")
    ]
    severity: Annotated[Literal["minor", "major", "critical"], Meta(description="by how far it is from expected")]
    forecast_id: Annotated[str, Meta(description="of the forecast that it left, made before window_start")] = ""
    reason: Annotated[str, Meta(description="for a person")] = ""


class AccuracyStep(msgspec.Struct, frozen=True):
    """Forecasts of one step ahead."""

    step: Annotated[int, Meta(ge=1, description="1 = the bucket that was running when it was forecast")]
    sums: Annotated[
        dict[str, int],
        Meta(
            description="whole numbers that add up over partitions and windows: count; actual, absolute_error (of the "
            "median) and error (mean - actual) in thousandths of a unit; squared_error (of the mean) in thousandths of "
            "a unit squared; quantile_loss, over all levels, in millionths of a unit; inside_50, inside_80, inside_95"
        ),
    ]
    wape: Annotated[float | None, Meta(description="absolute_error / actual; null where nothing was sold")] = None
    rmse: Annotated[float | None, Meta(description="units")] = None
    bias: Annotated[float | None, Meta(description="error / actual; above 0 = too much was forecast")] = None
    wql: Annotated[float | None, Meta(description="mean over levels of quantile_loss / actual")] = None
    coverage: Annotated[
        dict[str, float], Meta(description="by the share in per cent that a central interval promises, that inside it")
    ] = {}


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """How good forecasts of a partition were, now that their buckets have closed. Key: freq, model_version,
    window_start, window_days, segment_kind and segment. Consumers keep the greatest revision of each key and partition,
    of equal ones the later: a worker that was killed before it could note what it had sent is followed by one that
    sends that revision again."""

    segment_kind: Annotated[str, Meta(description="all, category or item")]
    segment: Annotated[str, Meta(description="the category or item_id")] = ""
    product_id: str = ""
    location_id: str = ""
    freq: str
    window_start: Annotated[str, Meta(description="first day of the buckets that were forecast, ISO 8601")]
    window_days: Annotated[int, Meta(ge=1, description="how many days")]
    revision: Annotated[int, Meta(ge=1, description="counts up; late events correct what was published")]
    partition: Annotated[int, Meta(ge=0, description="whose items: the sums of all partitions add up")]
    event_time: Annotated[int, Meta(description="event time at which it was found, milliseconds UTC")]
    model_name: str = ""
    model_version: Annotated[str, Meta(description="baseline = forecasts that were degraded")]
    steps: list[AccuracyStep]


class ClockTick(msgspec.Struct, frozen=True):
    """A replay's clock, one message a partition: all records below next_offsets happened before event_time."""

    event_time: Milliseconds
    next_offsets: Annotated[dict[str, int], Meta(description="by topic the first offset that is not yet due")]
    arrived: Annotated[
        dict[str, int] | None,
        Meta(description="by topic how many records of all partitions came since the tick before; null = not known"),
    ] = None


PUBLISHED: dict[str, type[msgspec.Struct]] = {
    "forecast": Forecast,
    "replenishment": Replenishment,
    "alert": Alert,
    "accuracy": Accuracy,
    "clock": ClockTick,
}


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema (2020-12) of every message, inputs and outputs, by file name without its ending."""
    classes = {**EVENT_CLASSES, **PUBLISHED}
    schemas = {}
    for name, cls in classes.items():
        (reference,), definitions = msgspec.json.schema_components([cls], ref_template="#/$defs/{name}")
        schemas[name] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **reference, "$defs": definitions}
    return schemas
