"""Distributions of demand that are told by quantiles: values, probabilities, means, and what is short of a stock.

Demand is taken to be spread evenly between neighbouring levels. Below the lowest level it runs evenly down to 0 at
level 0. Beyond the highest one its tail is exponential, with the rate at which the quantiles rise from the level
nearest to 0.95 to the highest: the excess over a high threshold tends to a generalised Pareto distribution (J.
Pickands, 1975, Statistical inference using extreme order statistics), of which the exponential is the one with shape 0;
tails of quantile forecasts are made so by Y. Park, D. Maddix, F.-X. Aubet, K. Kan, J. Gasthaus and Y. Wang, 2022,
Learning quantile functions without quantile crossing for distribution-free time series forecasting. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TAIL_FROM = 0.95
_HALVINGS = 24  # of a mixture's bracket: to a ten-millionth of it


class DemandDistribution:
    """Demand of some items, each by its quantiles.

    Attributes:
        quantiles: float64 (item, level), ascending, at least 0, no NaN.
        levels: float64 (level,), ascending, within (0, 1).
        knots: float64 (item, 1 + level), the quantiles with 0 before them, which is at level 0.
    """

    def __init__(self, quantiles: NDArray[np.floating[Any]], levels: Sequence[float] | Floats) -> None:
        self.levels: Floats = np.asarray(levels, dtype=np.float64)
        # 32-bit quantiles may be a last bit out of order.
        self.quantiles: Floats = np.maximum.accumulate(np.maximum(quantiles.astype(np.float64), 0.0), axis=-1)
        if self.quantiles.ndim != 2 or self.quantiles.shape[1] != len(self.levels):
            raise ValueError(f"quantiles of shape {self.quantiles.shape} do not go with {len(self.levels)} levels")
        start = int(np.argmin(np.abs(self.levels[:-1] - _TAIL_FROM))) if len(self.levels) > 1 else 0
        rise = np.log((1 - self.levels[start]) / (1 - self.levels[-1]))
        spread = self.quantiles[:, -1] - self.quantiles[:, start]
        # Mean excess over the highest quantile: float64 (item,).
        self._excess: Floats = spread / rise if rise > 0 else np.zeros(len(self.quantiles))
        self.knots: Floats = np.concatenate([np.zeros((len(self.quantiles), 1)), self.quantiles], axis=1)
        self._heights: Floats = np.concatenate([[0.0], self.levels])

    def __len__(self) -> int:
        return len(self.quantiles)

    def value(self, probability: float | Floats) -> Floats:
        """Smallest demand that is not exceeded with this probability: float64 (item,).

        `probability`: within [0, 1), one for all or float64 (item,).
        """
        p = np.broadcast_to(np.asarray(probability, dtype=np.float64), (len(self),))
        right = np.clip(np.searchsorted(self._heights, p, side="left"), 1, len(self._heights) - 1)
        rows = np.arange(len(self))
        low, high = self.knots[rows, right - 1], self.knots[rows, right]
        share = (p - self._heights[right - 1]) / (self._heights[right] - self._heights[right - 1])
        inside = low + np.clip(share, 0.0, 1.0) * (high - low)
        beyond = np.log((1 - self.levels[-1]) / (1 - np.maximum(p, self.levels[-1])))
        return np.asarray(inside + self._excess * beyond)

    def probability(self, demand: Floats, *, less: bool = False) -> Floats:
        """Probability that demand is at most this, or `less` than this: float64 (item,). `demand`: float64 (item,)."""
        # The last knot not above it, or below it: where several levels are one value, they count in full or not at all.
        below = self.knots < demand[:, None] if less else self.knots <= demand[:, None]
        at = below.sum(axis=1) - 1
        rows, last = np.arange(len(self)), len(self._heights) - 1
        left = np.clip(at, 0, last - 1)
        low, high = self.knots[rows, left], self.knots[rows, left + 1]
        width = np.where(high > low, high - low, 1.0)
        inside = self._heights[left] + np.clip((demand - low) / width, 0.0, 1.0) * (
            self._heights[left + 1] - self._heights[left]
        )
        beyond = 1 - (1 - self.levels[-1]) * self._tail(demand - self.knots[:, -1])
        return np.where(demand < 0, 0.0, np.where(at >= last, beyond, inside))

    def _tail(self, over: Floats) -> Floats:
        """Share of the demand beyond the highest level that is further beyond it than this; without a tail none is."""
        has_tail = self._excess > 0
        return np.where(has_tail, np.exp(-np.maximum(over, 0.0) / np.where(has_tail, self._excess, 1.0)), over <= 0)

    def mean(self) -> Floats:
        """Expected demand, the integral of the quantile function over all levels: float64 (item,)."""
        pieces = 0.5 * (self.knots[:, 1:] + self.knots[:, :-1]) * np.diff(self._heights)
        tail = (1 - self.levels[-1]) * (self.knots[:, -1] + self._excess)
        return np.asarray(pieces.sum(axis=1) + tail)

    def shortage(self, stock: Floats) -> Floats:
        """Expected units that a stock is short of demand, E[(D − S)⁺]: float64 (item,). `stock`: float64 (item,).

        The loss function of inventory theory (E. Silver, D. Pyke and D. Thomas, 2017, Inventory and Production
        Management in Supply Chains, 4th edition, chapter 6), by integrating q(τ) − S over the levels above F(S).
        """
        low, high = self.knots[:, :-1], self.knots[:, 1:]
        floor = np.maximum(stock, 0.0)[:, None]
        width = np.where(high > low, high - low, 1.0)
        # Of each piece the part above the stock: a triangle or a trapezium.
        begin = np.clip((floor - low) / width, 0.0, 1.0)
        bottom = np.maximum(np.maximum(low, floor) - floor, 0.0)
        area = (1 - begin) * 0.5 * (bottom + np.maximum(high - floor, 0.0)) * np.diff(self._heights)
        top = self.knots[:, -1]
        over = np.maximum(floor[:, 0] - top, 0.0)
        tail = (1 - self.levels[-1]) * (np.maximum(top - floor[:, 0], 0.0) + self._excess * self._tail(over))
        return np.asarray(area.sum(axis=1) + tail + np.maximum(-stock, 0.0))


class Mixture:
    """One of several distributions of the same items, each with a probability: of demand over a lead time that is not
    certain. F(x) = Σ wᵢ Fᵢ(x), which is straight between all parts' quantiles, and is inverted there; where a part is
    in its tail, by halving the bracket."""

    def __init__(self, parts: Sequence[DemandDistribution], weights: Sequence[float]) -> None:
        self.parts = tuple(parts)
        self.weights = tuple(weights)
        if not parts or len(parts) != len(weights) or abs(sum(weights) - 1) > 1e-9:
            raise ValueError(f"probabilities {list(weights)} of {len(parts)} distributions do not sum to 1")
        self._knots: Floats = np.sort(np.concatenate([part.knots for part in parts], axis=1), axis=1)
        self._heights: Floats = np.stack([self.probability(knot) for knot in self._knots.T], axis=1)
        self._before: Floats = np.stack([self.probability(knot, less=True) for knot in self._knots.T], axis=1)
        # Up to this probability no part is in its tail: float64 (item,).
        self._straight_to: Floats = self.probability(np.min([part.knots[:, -1] for part in parts], axis=0))

    def __len__(self) -> int:
        return len(self.parts[0])

    def value(self, probability: float | Floats) -> Floats:
        """See DemandDistribution."""
        p = np.broadcast_to(np.asarray(probability, dtype=np.float64), (len(self),))
        rows, last = np.arange(len(self)), self._knots.shape[1] - 1
        right = np.clip((self._heights < p[:, None]).sum(axis=1), 1, last)
        low, high = self._knots[rows, right - 1], self._knots[rows, right]
        floor, ceiling = self._heights[rows, right - 1], self._before[rows, right]
        rises = ceiling > floor
        share = np.where(rises, (p - floor) / np.where(rises, ceiling - floor, 1.0), 1.0)
        straight: Floats = np.asarray(low + np.clip(share, 0.0, 1.0) * (high - low))
        bent = p > self._straight_to
        if not bent.any():
            return straight
        return np.where(bent, self._halved(p, low, np.where(self._heights[rows, right] >= p, high, np.inf)), straight)

    def _halved(self, p: Floats, low: Floats, high: Floats) -> Floats:
        values = np.stack([part.value(p) for part in self.parts])
        low, high = np.maximum(low, values.min(axis=0)), np.minimum(high, values.max(axis=0))
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            enough = self.probability(middle) >= p
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.asarray(high)

    def probability(self, demand: Floats, *, less: bool = False) -> Floats:
        """See DemandDistribution."""
        return self._mixed([part.probability(demand, less=less) for part in self.parts])

    def mean(self) -> Floats:
        """See DemandDistribution."""
        return self._mixed([part.mean() for part in self.parts])

    def shortage(self, stock: Floats) -> Floats:
        """See DemandDistribution."""
        return self._mixed([part.shortage(stock) for part in self.parts])

    def _mixed(self, values: Sequence[Floats]) -> Floats:
        return np.asarray(sum(weight * value for weight, value in zip(self.weights, values, strict=True)))


Demand = DemandDistribution | Mixture
