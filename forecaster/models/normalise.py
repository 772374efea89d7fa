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
ITEM_WIDTH = 8


class Scales(NamedTuple):
    """Per item: float32 (B, 1)."""

    units: Tensor  # pieces per bucket, robust; above 0
    typical: Tensor  # pieces per bucket with sales; 0 = none has been seen
    lines: Tensor  # order lines per bucket
    views: Tensor
    carts: Tensor
    price: Tensor  # revenue per piece over the context; 0 = nothing was sold


def scales(context: Tensor, running: Tensor, elapsed: Tensor, half_life: float, prior: float) -> Scales:
    """Scales of items. Recent buckets weigh more, by `half_life` in buckets; `prior` units per bucket are assumed
    with the weight of half a bucket, so that an item with no closed bucket has a scale too.

    Args:
        context: (B, L, feature), NaN = not observed.
        running: (B, feature); elapsed: (B, 1).
    """
    length = context.shape[1]
    age = torch.arange(length - 1, -1, -1, device=context.device, dtype=context.dtype)
    seen = torch.isfinite(context[:, :, _UNITS])
    weight = torch.exp2(-age / half_life) * seen
    past = torch.nan_to_num(context) * seen[:, :, None]
    units = past[:, :, _UNITS]
    selling = weight * (units > 0)
    typical = ((selling * units.sqrt()).sum(1) / selling.sum(1).clamp_min(1e-9)).square()[:, None]
    now = running[:, _UNITS, None]
    cap = torch.where(typical > 0, _CAP * typical, now.clamp_min(1.0))
    total = weight.sum(1, keepdim=True) + elapsed + 0.5
    mean = ((weight * torch.minimum(units, cap)).sum(1, keepdim=True) + torch.minimum(now, cap) + 0.5 * prior) / total

    def rate(name: str) -> Tensor:
        feature = FEATURE_INDEX[name]
        counted = (weight * past[:, :, feature]).sum(1, keepdim=True) + running[:, feature, None]
        return (counted + 0.5 * prior) / total

    sold = units.sum(1, keepdim=True) + now
    revenue = past[:, :, _REVENUE].sum(1, keepdim=True) + running[:, _REVENUE, None]
    price = torch.where(sold > 0, revenue / sold.clamp_min(1e-9), torch.zeros_like(sold))
    return Scales(mean.clamp_min(_MIN_SCALE), typical, rate("order_lines"), rate("views"), rate("add_to_carts"), price)


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
    seen = torch.isfinite(units)
    share_seen = seen.to(units.dtype).mean(1, keepdim=True)
    share_selling = (torch.nan_to_num(units) > 0).to(units.dtype).sum(1, keepdim=True) / seen.sum(
        1, keepdim=True
    ).clamp_min(1)
    recent = units[:, -units.shape[1] // 8 :]
    recent_mean = torch.nan_to_num(recent).sum(1, keepdim=True) / torch.isfinite(recent).sum(1, keepdim=True).clamp_min(
        1
    )
    age = torch.nan_to_num(days_since_launch).clamp(0, 3650)
    return torch.cat(
        [
            torch.log(scale.units) / 3,
            torch.log(scale.lines) / 3,
            _log1p(scale.typical, scale.units),
            torch.log1p(age) / 4,
            torch.isnan(days_since_launch).to(units.dtype),
            share_seen,
            share_selling,
            _log1p(recent_mean, scale.units),
        ],
        dim=-1,
    )


def seasonal_features(context: Tensor, patch: int, week: int, futures: int, scale: Scales) -> Tensor:
    """Past of each step's own place in the season: (B, futures * patch, 6): mean of the last `week` and of all
    patches at the same place, the same of the nearest `week`-spaced patches, each as a log of the scale and with
    whether any was seen.

    A patch is a week of days (`week` = 4 patches, a month) or a day of hours (`week` = 7 patches, the same weekday).
    """
    batch = context.shape[0]
    units = context[:, :, _UNITS].reshape(batch, -1, patch)
    seen = torch.isfinite(units).to(units.dtype)
    values = torch.minimum(torch.nan_to_num(units), _CAP * scale.typical.clamp_min(1e-9)[:, :, None])

    def mean(patches: list[int]) -> tuple[Tensor, Tensor]:
        count = seen[:, patches].sum(1)
        return _log1p(values[:, patches].sum(1) / count.clamp_min(1), scale.units), (count > 0).to(units.dtype)

    total = units.shape[1]
    recent, everything = mean(list(range(total - week, total))), mean(list(range(total)))
    steps = []
    for future in range(futures):
        spaced = [p for p in range(total) if (total + future - p) % week == 0]
        steps.append(torch.stack([*recent, *everything, *mean(spaced)], dim=-1))
    return torch.cat(steps, dim=1)
