"""What training minimises, in scales of the item so that an item's volume does not set its say."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forecaster.contract import QUANTILE_LEVELS
from forecaster.models.patch_transformer import Scaled

# The mean learns from no more than this many typical buckets of the item at once. Beyond lie orders such as one of
# 74,215 pieces of an item that sells ten a day: seen once, they say nothing of next month's mean, and would drown
# all else.
_MEAN_LIMIT = 50.0


class Loss(NamedTuple):
    """Mean losses of a batch, scalars; `total` is their weighted sum."""

    total: Tensor
    quantiles: Tensor
    cumulative: Tensor
    mean: Tensor


def pinball(target: Tensor, quantiles: Tensor, levels: Tensor) -> Tensor:
    """max(q·(y - f), (q - 1)·(y - f)) for targets (…) and quantiles (…, quantile), averaged over the levels: (…)."""
    miss = target[..., None] - quantiles
    return torch.maximum(levels * miss, (levels - 1) * miss).mean(-1)


def loss(scaled: Scaled, running_units: Tensor, units: Tensor, cumulative_units: Tensor) -> Loss:
    """Losses of a batch; NaN targets are left out.

    Quantiles by pinball loss. The mean by Tweedie's deviance of power 1.5, whose minimum is the mean itself whatever
    the distribution (a squared error's is too, but one wholesale order would outvote a year).

    Args:
        scaled: the model's outputs.
        running_units: (B,) observed in the running bucket.
        units: (B, S) final totals; cumulative_units: (B, S) from the cutoff to each step's end.
    """
    steps = units.shape[1]
    first = torch.zeros(steps, device=units.device)
    first[0] = 1
    share = 1 + first * (scaled.remainder - 1)
    known = torch.isfinite(units)
    target = torch.nan_to_num(units - first * running_units[:, None]).clamp_min(0) / scaled.scale
    passed = torch.arange(1, steps + 1, device=units.device)
    target_sum = torch.nan_to_num(cumulative_units).clamp_min(0) / (scaled.scale * passed)
    levels = torch.tensor(QUANTILE_LEVELS, device=units.device)
    # One over the seasonal naive's error, as in SQL; by inputs alone, so that no quantile is bent.
    weight = torch.where(scaled.error > 0, 1 / scaled.error.clamp_min(0.2), torch.rsqrt(1 + scaled.burst)) * known
    total_weight = weight.sum().clamp_min(1e-6)

    by_step = (pinball(target, scaled.quantiles * share[..., None], levels) * weight).sum() / total_weight
    later = weight * (1 - first)
    by_sum = (pinball(target_sum, scaled.cumulative_quantiles, levels) * later).sum() / later.sum().clamp_min(1e-6)
    mean = torch.exp(scaled.log_mean) * share.clamp_min(1e-3)
    limited = torch.minimum(target, _MEAN_LIMIT * scaled.burst.clamp_min(1.0))
    # A deviance of power 1.5 of y/s is that of y times the root of s: by it items count by what they sell, so that sums
    # over items come out right. The 1 beside it is for those that hardly sell: their means are to be right as well.
    volume = (1 + scaled.scale.sqrt()) * known
    by_mean = (2 * (limited / mean.sqrt() + mean.sqrt()) * volume).sum() / volume.sum().clamp_min(1e-6)
    return Loss(by_step + 0.5 * by_sum + 0.1 * by_mean, by_step, by_sum, by_mean)
