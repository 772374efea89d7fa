"""What the network sees of an item: everything relative to the item's own scale, with "not observed" as a channel.

All functions are pure tensor maths, row by row. B items, L context buckets, S steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from feature_store.features import FEATURE_INDEX
from feature_store.known_future import KNOWN_CHANNELS

_UNITS = FEATURE_INDEX["units"]
_REVENUE = FEATURE_INDEX["revenue"]
_PRICE, _PROMOTION, _OPEN, _EVENT = (KNOWN_CHANNELS.index(n) for n in ("unit_price", "promotion", "open", "event"))
_CLOCK = slice(KNOWN_CHANNELS.index("hour_of_day"), KNOWN_CHANNELS.index("day_of_year") + 1)

# A bucket counts for at most this many times the item's typical bucket with sales: one wholesale order of thousands
# must not set the scale for a month.
_CAP = 4.0
_MIN_SCALE = 1e-3
_LOG_LIMIT = 8.0

PAST_WIDTH = 14
KNOWN_WIDTH = 5
CLOCK_WIDTH = 24 + 1 + 7 + 4
RUNNING_WIDTH = 15
ITEM_WIDTH = 13


class Resolution(NamedTuple):
    """How one frequency is cut and looked at, in buckets.

    A patch is two weeks of days, a day of hours or four weeks. `seasons` are pairs of a spacing and of how many past
    buckets so spaced are averaged for a step; `year` is the distance of the same bucket of last year, 0 where the
    context does not reach it; `error_lag` the season of the naive forecast whose error is the item's unit of loss.
    """

    patch: int
    half_life: float
    prior: float  # units per bucket
    seasons: tuple[tuple[int, tuple[int, ...]], ...]
    year: int
    around: int  # so many buckets on both sides of last year's are averaged
    error_lag: int


RESOLUTIONS: dict[str, Resolution] = {
    "1h": Resolution(24, 168.0, 1 / 24, ((24, (3, 14)), (168, (1, 2))), 0, 0, 168),
    "1d": Resolution(14, 28.0, 1.0, ((7, (1, 4, 13, 52)),), 364, 3, 7),
    "1w": Resolution(4, 13.0, 7.0, ((1, (4, 13)), (52, (1, 2))), 52, 1, 1),
}


def season_width(cut: Resolution) -> int:
    """Number of seasonal features of a step."""
    return 2 * sum(len(counts) for _, counts in cut.seasons) + (3 if cut.year else 0)


class Scales(NamedTuple):
    """Per item: float32 (B, 1)."""

    units: Tensor  # pieces per bucket, robust; above 0
    typical: Tensor  # pieces per bucket with sales; 0 = none has been seen
    lines: Tensor  # order lines per bucket
    views: Tensor
    carts: Tensor
    price: Tensor  # revenue per piece over the context, else the mean price that was announced; 0 = neither is known
    error: Tensor  # mean absolute error of the seasonal naive over the context; 0 = the past is too short


def scales(context: Tensor, known_price: Tensor, running: Tensor, elapsed: Tensor, cut: Resolution) -> Scales:
    """Scales of items. Recent buckets weigh more, by the half-life; the prior is assumed with the weight of half a
    bucket, so that an item with no closed bucket has a scale too.

    Args:
        context: (B, L, feature), NaN = not observed; a channel that is NaN throughout is not recorded.
        known_price: (B, L), NaN = not announced.
        running: (B, feature); elapsed: (B, 1).
    """
    half_life, prior = cut.half_life, cut.prior
    length = context.shape[1]
    age = torch.arange(length - 1, -1, -1, device=context.device, dtype=context.dtype)
    seen = torch.isfinite(context[:, :, _UNITS])
    weight = torch.exp2(-age / half_life) * seen
    past = torch.nan_to_num(context) * seen[:, :, None]
    units = past[:, :, _UNITS].clamp_min(0)
    selling = weight * (units > 0)
    typical = ((selling * units.sqrt()).sum(1) / selling.sum(1).clamp_min(1e-9)).square()[:, None]
    now = running[:, _UNITS, None]
    cap = torch.where(typical > 0, _CAP * typical, now.clamp_min(1.0))
    total = weight.sum(1, keepdim=True) + elapsed + 0.5
    mean = ((weight * torch.minimum(units, cap)).sum(1, keepdim=True) + torch.minimum(now, cap) + 0.5 * prior) / total
    scale = mean.clamp_min(_MIN_SCALE)

    def rate(name: str) -> Tensor:
        feature = FEATURE_INDEX[name]
        counted = (weight * past[:, :, feature]).sum(1, keepdim=True) + running[:, feature, None]
        return torch.where(recorded(context, name) > 0, (counted + 0.5 * prior) / total, scale)

    sold = units.sum(1, keepdim=True) + now
    revenue = past[:, :, _REVENUE].sum(1, keepdim=True) + running[:, _REVENUE, None]
    told = torch.isfinite(known_price)
    announced = torch.nan_to_num(known_price).sum(1, keepdim=True) / told.sum(1, keepdim=True).clamp_min(1)
    price = torch.where((sold > 0) & (revenue > 0), revenue / sold.clamp_min(1e-9), announced)
    lag = cut.error_lag
    both = seen[:, lag:] & seen[:, :-lag]
    miss = (units[:, lag:] - units[:, :-lag]).abs() * both
    error = miss.sum(1, keepdim=True) / both.sum(1, keepdim=True).clamp_min(1)
    return Scales(scale, typical, rate("order_lines"), rate("views"), rate("add_to_carts"), price, error)


def recorded(context: Tensor, name: str) -> Tensor:
    """Whether a channel was recorded in any bucket that was observed, or none was observed: 1 or 0, (B, 1)."""
    seen = torch.isfinite(context[:, :, _UNITS])
    told = torch.isfinite(context[:, :, FEATURE_INDEX[name]]) & seen
    return (told.any(1, keepdim=True) | ~seen.any(1, keepdim=True)).to(context.dtype)


def _log_ratio(value: Tensor, reference: Tensor) -> Tensor:
    """log of value / reference where both are positive, else 0; within ±1.5, since a price seldom changes fivefold."""
    known = (value > 0) & (reference > 0)
    ratio = torch.log(value.clamp_min(1e-6)) - torch.log(reference.clamp_min(1e-6))
    return torch.where(known, ratio.clamp(-1.5, 1.5), torch.zeros_like(ratio))


def _log1p(value: Tensor, scale: Tensor) -> Tensor:
    return torch.log1p((value / scale).clamp_min(0)).clamp_max(_LOG_LIMIT)


def known_features(known: Tensor, scale: Scales) -> Tensor:
    """Calendar beside the clock: (B, time, KNOWN_WIDTH)."""
    price = torch.nan_to_num(known[:, :, _PRICE])
    announced = torch.stack(
        [
            known[:, :, _PROMOTION],
            known[:, :, _OPEN],
            known[:, :, _EVENT],
            _log_ratio(price, scale.price),
            (price > 0).to(known.dtype),
        ],
        dim=-1,
    )
    return torch.nan_to_num(announced)


def past_features(context: Tensor, available: Tensor, known_past: Tensor, scale: Scales) -> Tensor:
    """Channels of the closed buckets: (B, L, PAST_WIDTH); a bucket that was not observed is all zeros."""
    seen = torch.isfinite(context[:, :, _UNITS])
    past = torch.nan_to_num(context)

    def channel(name: str) -> Tensor:
        return past[:, :, FEATURE_INDEX[name]]

    units = channel("units")
    reviews = channel("review_count")
    columns = [
        _log1p(units, scale.units),
        torch.ones_like(units),
        _log1p(channel("order_lines"), scale.lines),
        _log1p(channel("returned_units"), scale.units),
        _log_ratio(channel("revenue") / units.clamp_min(1e-9), scale.price),
        _log1p(channel("views"), scale.views),
        _log1p(channel("add_to_carts"), scale.carts),
        torch.log1p(reviews.clamp_min(0)),
        torch.where(reviews > 0, channel("rating_sum") / reviews.clamp_min(1.0) / 2 - 2, torch.zeros_like(reviews)),
        torch.nan_to_num(available, nan=1.0),
    ]
    stacked = torch.cat([torch.stack(columns, dim=-1), known_past[:, :, :4]], dim=-1)
    return stacked * seen[:, :, None]


def clock_features(known: Tensor) -> Tensor:
    """The clock of each bucket: (B, time, CLOCK_WIDTH): hour as one of 24 or none, weekday as one of 7, waves of the
    month and the year. Only the longest wave of the year, or a model learns the dates of its training data by heart."""
    hour, weekday, month_day, year_day = known[:, :, _CLOCK].unbind(-1)
    hours = torch.where(torch.isnan(hour), torch.full_like(hour, 24), hour.clamp(0, 23))
    month = 2 * torch.pi * (month_day - 1) / 31
    year = 2 * torch.pi * (year_day - 1) / 366
    waves = torch.stack([month.sin(), month.cos(), year.sin(), year.cos()], dim=-1)
    return torch.cat([_one_hot(hours, 25), _one_hot(weekday.clamp(0, 6), 7), waves], dim=-1)


def _one_hot(values: Tensor, count: int) -> Tensor:
    """Of the whole part of each value, in its own type: (…, count). One comparison: torch's own makes three passes."""
    places = torch.arange(count, device=values.device, dtype=values.dtype)
    return (values.floor()[..., None] == places).to(values.dtype)


def running_features(running: Tensor, elapsed: Tensor, scale: Scales) -> Tensor:
    """What is known of the running bucket: (B, RUNNING_WIDTH)."""

    def channel(name: str) -> Tensor:
        return running[:, FEATURE_INDEX[name], None].clamp_min(0)

    # Bumps along the bucket, since trade is not spread evenly over a day and a step of the clock is not a straight
    # line.
    centres = torch.linspace(0, 1, 8, device=running.device, dtype=running.dtype)
    bumps = torch.exp(-0.5 * ((elapsed - centres) * 8).square())
    return torch.cat(
        [
            _log1p(channel("units"), scale.units),
            _log1p(channel("order_lines"), scale.lines),
            _log1p(channel("returned_units"), scale.units),
            _log1p(channel("views"), scale.views),
            _log1p(channel("add_to_carts"), scale.carts),
            elapsed,
            1 - elapsed,
            bumps,
        ],
        dim=-1,
    )


def item_features(context: Tensor, days_since_launch: Tensor, scale: Scales) -> Tensor:
    """What the item is like: (B, ITEM_WIDTH)."""
    units = context[:, :, _UNITS]
    length = units.shape[1]
    known = torch.isfinite(units)
    seen = known.to(units.dtype)
    sold = (torch.nan_to_num(units) > 0).to(units.dtype)
    eighth = length // 8
    recent, recent_seen = torch.nan_to_num(units[:, -eighth:]), seen[:, -eighth:].sum(1, keepdim=True).clamp_min(1)
    place = torch.arange(1, length + 1, device=units.device, dtype=units.dtype)
    since_sale = length - (sold * place).amax(1, keepdim=True)
    age = torch.nan_to_num(days_since_launch).clamp(0, 3650)
    return torch.cat(
        [
            torch.log(scale.units) / 3,
            torch.log(scale.lines) / 3,
            _log1p(scale.typical, scale.units),
            _log1p(scale.error, scale.units),
            torch.log1p(age) / 4,
            torch.isnan(days_since_launch).to(units.dtype),
            seen.mean(1, keepdim=True),
            sold.sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1),
            sold[:, -eighth:].sum(1, keepdim=True) / recent_seen,
            _log1p(recent.sum(1, keepdim=True) / recent_seen, scale.units),
            torch.log1p(since_sale) / 4,
            recorded(context, "order_lines"),
            recorded(context, "views"),
        ],
        dim=-1,
    )


def seasonal_features(context: Tensor, cut: Resolution, steps: int, scale: Scales) -> Tensor:
    """Past of each step's own place in the season: (B, steps, season_width): for each spacing and count, the mean of
    the last so many buckets that lie a multiple of the spacing before the step, as a log of the scale, and whether any
    was seen; then the same bucket of last year with its neighbours, and what the month before that was like."""
    units = context[:, :, _UNITS]
    batch, length = units.shape[0], units.shape[1]
    values = torch.minimum(torch.nan_to_num(units), _CAP * scale.typical.clamp_min(1e-9))
    seen = torch.isfinite(units).to(units.dtype)
    steps_from_0 = torch.arange(steps, device=units.device)
    columns = []
    for spacing, counts in cut.seasons:
        whole = length // spacing * spacing
        by_place = values[:, length - whole :].reshape(batch, -1, spacing)
        seen_by_place = seen[:, length - whole :].reshape(batch, -1, spacing)
        for count in counts:
            number = seen_by_place[:, -count:].sum(1)
            mean = _log1p(by_place[:, -count:].sum(1) / number.clamp_min(1), scale.units)
            columns += [c[:, steps_from_0 % spacing] for c in (mean, (number > 0).to(units.dtype))]
    if cut.year:
        begin = length - cut.year
        offsets = torch.arange(-cut.around, cut.around + 1, device=units.device)
        at = (begin + steps_from_0[:, None] + offsets).clamp(0, length - 1)
        number = seen[:, at].sum(-1)
        mean = _log1p(values[:, at].sum(-1) / number.clamp_min(1), scale.units)
        before = max(begin - 4 * cut.patch, 0)
        month_seen = seen[:, before : begin + cut.patch].sum(1, keepdim=True)
        month = values[:, before : begin + cut.patch].sum(1, keepdim=True) / month_seen.clamp_min(1)
        columns += [mean, (number > 0).to(units.dtype), _log1p(month, scale.units).expand(-1, steps)]
    return torch.stack(columns, dim=-1)


def covariate_features(values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Further channels (B, time, n) in deviations from the training data's mean, and whether each is known:
    (B, time, 2 * n)."""
    known = torch.isfinite(values)
    standard = ((torch.nan_to_num(values) - mean) / deviation).clamp(-8, 8) * known
    return torch.cat([standard, known.to(values.dtype)], dim=-1)
