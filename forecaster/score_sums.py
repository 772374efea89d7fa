"""ScoreSums: accuracy of any number of forecasts in a few arrays, by step. numpy only.

Every measure is a ratio of sums, so what many processes have summed adds up, and steps can be pooled afterwards. The
definitions are those of `accuracy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from forecaster import accuracy
from forecaster.contract import QUANTILE_LEVELS

MEDIAN = QUANTILE_LEVELS.index(0.5)
# Central intervals by the share that they promise: indices of their lower and upper level.
INTERVALS: dict[str, tuple[int, int]] = {
    "50": (QUANTILE_LEVELS.index(0.25), QUANTILE_LEVELS.index(0.75)),
    "80": (QUANTILE_LEVELS.index(0.1), QUANTILE_LEVELS.index(0.9)),
    "95": (QUANTILE_LEVELS.index(0.025), QUANTILE_LEVELS.index(0.975)),
}


class Forecasts(Protocol):
    """What is scored of forecasts, in units: `inputs.ModelOutputs` has it, and baselines have no more."""

    @property
    def quantiles(self) -> NDArray[np.float32]:
        """float32 (item, step, quantile), ascending over QUANTILE_LEVELS."""

    @property
    def mean(self) -> NDArray[np.float32]:
        """float32 (item, step)."""


class ScoreSums:
    """Sums over forecasts of one frequency, `sums[name]`: float64 (step,), those by level (step, level)."""

    def __init__(self, steps: int) -> None:
        levels = len(QUANTILE_LEVELS)
        self.steps = steps
        self.forecasts = 0
        names = ["count", "actual", "actual_square", "abs_median", "abs_mean", "square_mean", "error_mean"]
        names += ["scaled", "scaled_count", "percentage", "percentage_count"]
        self.sums: dict[str, NDArray[np.float64]] = {name: np.zeros(steps) for name in names}
        self.sums |= {f"inside_{share}": np.zeros(steps) for share in INTERVALS}
        self.sums |= {name: np.zeros((steps, levels)) for name in ("pinball", "scaled_pinball", "below", "not_above")}

    def add(self, target: NDArray[np.float32], outputs: Forecasts, scale: NDArray[np.float64] | None = None) -> None:
        """Count forecasts.

        Args:
            target: float32 (item, step): what happened; NaN = not known, the step is left out.
            outputs: the forecasts of the same items and steps.
            scale: float64 (item,), as `accuracy.seasonal_error`; None = no scaled error.
        """
        self.forecasts += len(target)
        y = target.astype(np.float64)
        known = np.isfinite(y)
        median = outputs.quantiles[:, :, MEDIAN]
        sums = self.sums
        sums["count"] += known.sum(axis=0)
        sums["actual"] += np.nansum(np.abs(y), axis=0)
        sums["actual_square"] += np.nansum(y**2, axis=0)
        sums["abs_median"] += np.nansum(np.abs(y - median), axis=0)
        sums["abs_mean"] += np.nansum(np.abs(y - outputs.mean), axis=0)
        sums["square_mean"] += np.nansum((y - outputs.mean) ** 2, axis=0)
        sums["error_mean"] += np.nansum(outputs.mean - y, axis=0)
        percentage = np.abs(y - median) / np.where(y != 0, np.abs(y), np.nan)
        sums["percentage"] += np.nansum(percentage, axis=0)
        sums["percentage_count"] += np.isfinite(percentage).sum(axis=0)
        loss = accuracy.pinball(np.where(known, y, 0.0), outputs.quantiles, QUANTILE_LEVELS)
        if not known.all():
            loss[~known] = 0.0
        sums["pinball"] += loss.sum(axis=0)
        # A target that is not known is not below anything either: comparing NaN is false.
        sums["below"] += (target[:, :, None] < outputs.quantiles).sum(axis=0)
        sums["not_above"] += (target[:, :, None] <= outputs.quantiles).sum(axis=0)
        for share, (lower, upper) in INTERVALS.items():
            inside = (target >= outputs.quantiles[:, :, lower]) & (target <= outputs.quantiles[:, :, upper])
            sums[f"inside_{share}"] += inside.sum(axis=0)
        if scale is not None:
            usable = np.where(scale > 0, scale, np.nan)[:, None]
            scaled = np.abs(y - median) / usable
            sums["scaled"] += np.nansum(scaled, axis=0)
            sums["scaled_count"] += np.isfinite(scaled).sum(axis=0)
            sums["scaled_pinball"] += np.einsum("isq,i->sq", loss, np.nan_to_num(1 / usable[:, 0]))

    def merge(self, other: ScoreSums) -> None:
        """Add what another has summed."""
        self.forecasts += other.forecasts
        for name, values in other.sums.items():
            self.sums[name] += values

    def scores(self, steps: Sequence[int] | slice = slice(None)) -> dict[str, float]:
        """Measures over some steps; NaN where nothing is known, or nothing was sold."""
        total = {name: values[steps].sum(axis=0) for name, values in self.sums.items()}
        count, actual = float(total["count"]), float(total["actual"])
        out = {
            "targets": count,
            "wql": _ratio(float(total["pinball"].mean()), actual),
            "wape": _ratio(float(total["abs_median"]), actual),
            "wape_mean": _ratio(float(total["abs_mean"]), actual),
            "rmse": float(np.sqrt(_ratio(float(total["square_mean"]), count))),
            "bias": _ratio(float(total["error_mean"]), actual),
            "mase": _ratio(float(total["scaled"]), float(total["scaled_count"])),
        }
        return out | {f"coverage_{share}": _ratio(float(total[f"inside_{share}"]), count) for share in INTERVALS}

    def by_step(self) -> dict[str, list[float]]:
        """The same for each step alone. Beside them `loss`: the mean quantile loss of a step over the mean units of all
        steps, which also tells of steps at which hardly anything is ever sold."""
        rows = [self.scores([step]) for step in range(self.steps)]
        out = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
        mean = _ratio(float(self.sums["actual"].sum()), float(self.sums["count"].sum()))
        losses = zip(self.sums["pinball"].mean(axis=1).tolist(), self.sums["count"].tolist(), strict=True)
        return out | {"loss": [_ratio(loss, count * mean) for loss, count in losses]}

    def calibration(self) -> dict[str, list[float]]:
        """By quantile level the share of targets `below` it, and of those `not_above` it. Forecasts keep their promise
        where the level lies between the two: of an item that mostly sells nothing many quantiles are 0, and so are most
        targets."""
        count = float(self.sums["count"].sum())
        return {
            name: [_ratio(float(value), count) for value in self.sums[name].sum(axis=0)]
            for name in ("below", "not_above")
        }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")
