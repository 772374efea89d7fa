"""What boosted trees see of an item and a step: one row for each (item, step), everything relative to the item's level.

numpy only. Trees cannot extrapolate, so that units are divided by the item's `level`; its logarithm is a feature, and
means learnt in those terms are multiplied back.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.features import FEATURE_INDEX
from feature_store.known_future import KNOWN_CHANNELS
from forecaster.contract import FREQ_CODES, PAST_CHANNELS, Covariates
from forecaster.inputs import ModelInputs

Floats = NDArray[np.float32]

_UNITS = FEATURE_INDEX["units"]
_PRICE, _PROMOTION, _OPEN, _EVENT = (KNOWN_CHANNELS.index(n) for n in ("unit_price", "promotion", "open", "event"))
_CLOCK = slice(KNOWN_CHANNELS.index("hour_of_day"), KNOWN_CHANNELS.index("day_of_year") + 1)
_EVENT_LIKE = {"promotion": _PROMOTION, "open": _OPEN, "event": _EVENT}
_DEMAND_SIGNALS = ("views", "add_to_carts", "returned_units", "review_count")
_LEAST_LEVEL = 1e-3


class _Cut(NamedTuple):
    """How one frequency is looked at, in buckets."""

    means: tuple[int, ...]  # means of the last so many
    lags: int  # single last buckets
    season: int  # same place of the week, or of the year where buckets are weeks
    seasons: tuple[int, ...]  # means of so many of them
    short_season: int  # same hour of any day; 0 = none
    year: int  # a year; 0 = the context is shorter
    half_life: float
    prior: float  # units a bucket


_CUTS: dict[int, _Cut] = {
    FREQ_CODES["1h"]: _Cut((6, 24, 72, 168, 336), 6, 168, (1, 2), 24, 0, 168.0, 1 / 24),
    FREQ_CODES["1d"]: _Cut((3, 7, 14, 28, 56, 91, 182, 364), 7, 7, (1, 2, 4, 8, 13, 26), 0, 364, 28.0, 1.0),
    FREQ_CODES["1w"]: _Cut((2, 4, 8, 13, 26, 52, 104), 6, 52, (1, 2), 0, 52, 13.0, 7.0),
}


class Rows(NamedTuple):
    """Features of (item, step) pairs, items outermost, and what brings answers back to units."""

    names: list[str]
    values: Floats  # (item * step, feature), NaN = not known
    level: Floats  # (item,): units a bucket, above 0
    categorical: list[str]


def build_rows(inputs: ModelInputs, covariates: Covariates) -> Rows:
    """Features of all items and steps of `inputs`, which are of one freq."""
    cut = _CUTS[int(inputs.freq[0, 0])]
    length = inputs.context.shape[1]
    items, steps = len(inputs.context), inputs.known.shape[1] - length
    units = inputs.context[:, :, _UNITS]
    units = np.where(np.nan_to_num(inputs.available_fraction, nan=1.0) > 0, units, np.nan)
    level = _level(units, inputs, cut)
    relative = units / level[:, None]
    by_item = _of_items(inputs, relative, level, cut) | _past_covariates(inputs, covariates)
    by_step = _of_calendar(inputs, covariates) | _of_seasons(relative, steps, cut)
    if cut.year:
        by_step |= _of_last_year(relative, steps, cut.year)
    by_step |= _of_running_bucket(inputs, level, steps)
    columns = [np.repeat(column, steps) for column in by_item.values()]
    columns += [np.ascontiguousarray(np.broadcast_to(column, (items, steps))).ravel() for column in by_step.values()]
    values = np.stack(columns, axis=1).astype(np.float32)
    return Rows([*by_item, *by_step], values, level, ["category", "brand"])


def _level(units: Floats, inputs: ModelInputs, cut: _Cut) -> Floats:
    """Units a bucket, recent ones weighing more; single outliers capped at four times a typical selling bucket."""
    age = np.arange(units.shape[1] - 1, -1, -1, dtype=np.float32)
    known = np.isfinite(units)
    weight = np.exp2(-age / cut.half_life) * known
    past = np.maximum(np.nan_to_num(units), 0)
    selling = weight * (past > 0)
    typical = np.square((selling * np.sqrt(past)).sum(1) / np.maximum(selling.sum(1), 1e-9))
    now = np.nan_to_num(inputs.running[:, _UNITS])
    cap = np.where(typical > 0, 4 * typical, np.maximum(now, 1.0))
    total = (weight * np.minimum(past, cap[:, None])).sum(1) + np.minimum(now, cap) + 0.5 * cut.prior
    level = total / (weight.sum(1) + np.nan_to_num(inputs.elapsed_fraction[:, 0]) + 0.5)
    return np.asarray(np.maximum(level, _LEAST_LEVEL), dtype=np.float32)


def _mean(values: Floats, axis: int = 1) -> Floats:
    known = np.isfinite(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _of_items(inputs: ModelInputs, relative: Floats, level: Floats, cut: _Cut) -> dict[str, Floats]:
    length = relative.shape[1]
    known = np.isfinite(relative)
    selling = np.nan_to_num(relative) > 0
    out: dict[str, Floats] = {"level": np.log(level)}
    out |= {f"mean_{n}": _mean(relative[:, -n:]) for n in cut.means}
    for n in (cut.means[2], cut.means[-3]):
        recent = relative[:, -n:]
        out[f"deviation_{n}"] = np.sqrt(np.maximum(_mean(recent**2) - _mean(recent) ** 2, 0))
        out[f"selling_{n}"] = _mean(np.where(known[:, -n:], selling[:, -n:], np.nan).astype(np.float32))
        out[f"largest_{n}"] = np.where(known[:, -n:], np.nan_to_num(recent), 0).max(1)
    out |= {f"lag_{n}": relative[:, length - n] for n in range(1, cut.lags + 1)}
    place = np.arange(length)
    out["since_sale"] = (length - 1 - np.where(selling, place, -1).max(1)).astype(np.float32)
    out["seen"] = known.sum(1).astype(np.float32)
    out["age"] = inputs.static[:, 0]
    out["category"], out["brand"] = inputs.static[:, 1], inputs.static[:, 2]
    for name in _DEMAND_SIGNALS:
        channel = inputs.context[:, :, FEATURE_INDEX[name]]
        for n in (cut.means[1], cut.means[3]):
            out[f"{name}_{n}"] = _mean(channel[:, -n:]) / level
    lines = _mean(inputs.context[:, -cut.means[3] :, FEATURE_INDEX["order_lines"]])
    out["lines"] = lines / level
    reviews = np.nan_to_num(inputs.context[:, :, FEATURE_INDEX["review_count"]]).sum(1)
    stars = np.nan_to_num(inputs.context[:, :, FEATURE_INDEX["rating_sum"]]).sum(1)
    out["rating"] = np.where(reviews > 0, stars / np.maximum(reviews, 1), np.nan)
    return out


def _past_covariates(inputs: ModelInputs, covariates: Covariates) -> dict[str, Floats]:
    out = {}
    for channel, name in enumerate(covariates.past, start=len(PAST_CHANNELS)):
        values = inputs.context[:, :, channel]
        out[f"{name}_last"] = values[:, -1]
        out[f"{name}_mean"] = _mean(values)
    return out


def _of_calendar(inputs: ModelInputs, covariates: Covariates) -> dict[str, Floats]:
    length = inputs.context.shape[1]
    known, steps = inputs.known, inputs.known.shape[1] - length
    out: dict[str, Floats] = {"step": np.arange(steps, dtype=np.float32)[None, :]}
    hour, weekday, month_day, year_day = np.moveaxis(known[:, length:, _CLOCK], -1, 0)
    out |= {"hour": hour, "weekday": weekday, "month_day": month_day, "year_day": year_day}
    for name, channel in _EVENT_LIKE.items():
        out |= _around(name, known[:, :, channel], length)
    price = known[:, :, _PRICE]
    past_revenue = np.nan_to_num(inputs.context[:, :, FEATURE_INDEX["revenue"]]).sum(1)
    past_units = np.nan_to_num(inputs.context[:, :, _UNITS]).sum(1)
    sold_at = np.where(past_revenue > 0, past_revenue / np.maximum(past_units, 1e-9), np.nan)[:, None]
    told = np.where(np.isfinite(price), price, np.nan)
    usual = np.where(np.isfinite(_mean(told[:, :length])), _mean(told[:, :length]), sold_at[:, 0])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        out["price_to_usual"] = told[:, length:] / usual
        out["price_to_last"] = told[:, length:] / told[:, length - 1 : length]
        out["price"] = np.log(told[:, length:])
    for channel, name in enumerate(covariates.known, start=len(KNOWN_CHANNELS)):
        out |= _around(name, known[:, :, channel], length)
    return out


def _around(name: str, values: Floats, length: int) -> dict[str, Floats]:
    """A channel at the step, at the one before it, and at the one after it."""
    after = np.concatenate([values[:, length + 1 :], np.full((len(values), 1), np.nan, np.float32)], axis=1)
    return {name: values[:, length:], f"{name}_before": values[:, length - 1 : -1], f"{name}_after": after}


def _of_seasons(relative: Floats, steps: int, cut: _Cut) -> dict[str, Floats]:
    """Means of past buckets at the step's own place of the week."""
    length = relative.shape[1]
    out = {}
    for n in cut.seasons:
        out[f"season_{n}"] = _spaced_mean(relative, steps, cut.season, n)
    if cut.short_season:
        for n in (3, 7, 14):
            out[f"hour_{n}"] = _spaced_mean(relative, steps, cut.short_season, n)
    else:
        before = length - cut.season + np.arange(steps) % cut.season
        out["season_share"] = _spaced_mean((relative > 0) + np.where(np.isfinite(relative), 0, np.nan), steps, 1, 8)
        out["season_last"] = relative[:, before]
    return out


def _spaced_mean(relative: Floats, steps: int, spacing: int, count: int) -> Floats:
    """Mean of the last `count` buckets that lie a multiple of `spacing` before each step: (item, step)."""
    length = relative.shape[1]
    phases = min(spacing, steps)
    at = length + np.arange(phases)[:, None] % spacing - spacing * (1 + np.arange(count))
    values = np.where(at >= 0, relative[:, np.clip(at, 0, length - 1)], np.nan)
    return _mean(values, axis=2)[:, np.arange(steps) % phases]


def _of_last_year(relative: Floats, steps: int, year: int) -> dict[str, Floats]:
    """The same days a year ago, and what followed a year ago on what had been: (item, step), NaN where not known."""
    length = relative.shape[1]
    start = length - year
    centre = start + np.arange(steps)
    out = {}
    for half in (1, 3) if year > 100 else (0, 1):
        at = centre[:, None] + np.arange(-half, half + 1)
        inside = (at >= 0) & (at < length)
        around = np.where(inside, relative[:, np.clip(at, 0, length - 1)], np.nan)
        out[f"year_ago_{2 * half + 1}"] = _mean(around, axis=2)
    recent = relative[:, max(start - 14, 0) : start + 14] if year > 100 else relative[:, max(start - 4, 0) : start]
    base = _mean(recent) if recent.shape[1] else np.full(len(relative), np.nan, np.float32)
    out["year_ago_level"] = np.broadcast_to(base[:, None], (len(relative), steps))
    return out


def _of_running_bucket(inputs: ModelInputs, level: Floats, steps: int) -> dict[str, Floats]:
    """What is known of the first step's bucket already; NaN at the others."""
    out = {}
    running = np.nan_to_num(inputs.running)
    told = {
        "elapsed": np.nan_to_num(inputs.elapsed_fraction[:, 0]),
        "running_units": running[:, _UNITS] / level,
        "running_views": running[:, FEATURE_INDEX["views"]] / level,
        "running_carts": running[:, FEATURE_INDEX["add_to_carts"]] / level,
    }
    for name, values in told.items():
        column = np.full((len(running), steps), np.nan, dtype=np.float32)
        column[:, 0] = values
        out[name] = column
    return out
