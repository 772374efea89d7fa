"""Who says how much stock is enough: forecasts of a model, a moving average, the season before, and who knows it all.

Each is asked on review days for the demand that an order of that day has to cover, over lead time and review period,
and answers for a grid of safety factors at once. Demand is what was sold, and everyone sees all of it: sales that a
simulated stock would have missed stay in the past that the next forecast is made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from forecaster.contract import QUANTILE_LEVELS, WINDOWS
from forecaster.demand_distribution import Demand, DemandDistribution, Floats, Mixture
from forecaster.lead_time import LeadTime, protected_demand
from forecaster.predictor import DemandModel
from forecaster.rolling_origins import targets
from forecaster.series import SeriesTable

# Probabilities closer to 1 step by step: the log odds are evenly spaced.
PROBABILITIES: Floats = 1 / (1 + np.exp(-np.linspace(-1.5, 8.5, 51)))
SAFETY_FACTORS: Floats = np.linspace(-0.5, 6.0, 66)
_ONE: Floats = np.ones(1)
_NEARLY_ONE = 1 - 1e-15  # a probability of which a normal's quantile is still a number
_WEEK = 7
_ERROR_DAYS = 91  # origins, a day apart, whose errors the seasonal naive forecast learns from
_ROWS = 2_048  # windows at once: their inputs take about as many times 30 kB


class Answer(NamedTuple):
    """Order-up-to levels float64 (factor, item), and expected units a day, float64 (item,)."""

    levels: Floats
    rate: Floats


class Contestant(Protocol):
    """One who answers on review days."""

    @property
    def name(self) -> str: ...
    @property
    def factors(self) -> Floats:
        """Safety factors to choose from, float64 (factor,), ascending: probabilities, or standard deviations."""

    def answer(self, day: int, factors: Floats) -> Answer:
        """What covers the demand after the morning of a day of the shop."""


@dataclass(frozen=True)
class Shop:
    """Items of a table over a stretch of days.

    Attributes:
        table: daily series.
        rows: int64 (item,): those of its series that take part.
        first: day number (bucket) of day 0.
        days: how many.
        history: days before day 0 that `sold` begins at.
        sold: float64 (item, history + days) units; what is not known counts as none.
        review_period, lead_time: in days.
        odds: float64 (item,): a unit short over a unit too many, what they cost, as a multiple of the median item's.
            Where it is not 1 for all, a safety factor is the median item's, and the odds of each item's probability are
            its multiple of that one's: the critical ratios of the newsvendor, all moved together.
    """

    table: SeriesTable
    rows: NDArray[np.int64]
    first: int
    days: int
    history: int
    sold: Floats
    review_period: int
    lead_time: LeadTime
    odds: Floats

    @classmethod
    def of(
        cls, table: SeriesTable, rows: NDArray[np.int64], first: int, days: int, review_period: int, lead_time: LeadTime
    ) -> Shop:
        """Everything but the sales themselves, which are looked up."""
        history = _ERROR_DAYS + _WEEK + review_period + int(lead_time.longest)
        sold = np.nan_to_num(targets(table, rows, first - history, history + days)).astype(np.float64)
        return cls(table, rows, first, days, history, sold, review_period, lead_time, np.ones(len(rows)))

    @property
    def demand(self) -> Floats:
        """Units of the stretch itself: float64 (item, day)."""
        return self.sold[:, self.history :]

    @property
    def horizons(self) -> list[int]:
        """Days to be covered, for each duration of the lead time."""
        return [self.review_period + int(duration) for duration in self.lead_time.durations]

    @property
    def has_own_odds(self) -> bool:
        """Whether they are not those of the median item for all."""
        return bool(np.ptp(self.odds) > 1e-9)

    def probabilities(self, factors: Floats) -> Floats:
        """Of each item, float64 (factor, item), where the median item's are `factors`."""
        odds = (factors / (1 - factors))[:, None] * self.odds
        return np.asarray(odds / (1 + odds))

    def before(self, day: int, length: int) -> Floats:
        """Units of the days before a day: float64 (item, length)."""
        return self.sold[:, self.history + day - length : self.history + day]


def _of_demand(demand: Demand, shop: Shop, factors: Floats) -> Answer:
    horizon = shop.review_period + shop.lead_time.mean
    return Answer(np.stack([demand.value(p) for p in shop.probabilities(factors)]), demand.mean() / horizon)


class ModelForecasts:
    """Cumulative quantiles of a model; its forecasts of a review day are made once, in batches."""

    factors = PROBABILITIES

    def __init__(self, name: str, model: DemandModel, shop: Shop) -> None:
        self.name = name
        self._model = model
        self._shop = shop
        self._made: dict[int, Demand] = {}

    def answer(self, day: int, factors: Floats) -> Answer:
        """See Contestant."""
        if day not in self._made:
            self._made[day] = self._demand(day)
        return _of_demand(self._made[day], self._shop, factors)

    def _demand(self, day: int) -> Demand:
        shop = self._shop
        steps = min(max(shop.horizons), WINDOWS["1d"].max_prediction_length)
        parts = []
        for begin in range(0, len(shop.rows), _ROWS):
            rows = shop.rows[begin : begin + _ROWS]
            running = np.full(len(rows), shop.first + day)
            window = shop.table.windows(rows, running, steps, self._model.covariates)
            parts.append(self._model.forecast(window.inputs).cumulative_quantiles)
        ends = np.arange(1.0, steps + 1)
        return protected_demand(np.concatenate(parts), ends, QUANTILE_LEVELS, shop.lead_time, float(shop.review_period))


class MovingAverage:
    """Mean of the last `window` days, and z standard deviations of a day over them.

    S = μ (L + R) + z √(σ² (L + R) + μ² Var L) (E. Silver, D. Pyke and D. Thomas, 2017, Inventory and Production
    Management in Supply Chains, 4th edition, sections 6.9 and 6.10): with a certain lead time z σ √(L + R).
    """

    factors = SAFETY_FACTORS

    def __init__(self, window: int, shop: Shop, *, by_odds: bool = False) -> None:
        """`by_odds`: z is that of the median item, others have those of their own probabilities."""
        self.name = f"moving average, {window} days" + (", own ratios" if by_odds else "")
        self._window = window
        self._shop = shop
        self._by_odds = by_odds
        self._own: tuple[Floats, Floats] | None = None  # factors, and each item's own

    def answer(self, day: int, factors: Floats) -> Answer:
        """See Contestant."""
        lead_time, past = self._shop.lead_time, self._shop.before(day, self._window)
        mean, variance = past.mean(axis=1), past.var(axis=1, ddof=1)
        horizon = self._shop.review_period + lead_time.mean
        deviation = np.sqrt(variance * horizon + mean**2 * lead_time.variance)
        return Answer(np.maximum(mean * horizon + self._factors(factors) * deviation, 0.0), mean)

    def _factors(self, factors: Floats) -> Floats:
        if not self._by_odds:
            return factors[:, None]
        if self._own is None or self._own[0] is not factors:
            normal = NormalDist()
            shares = self._shop.probabilities(np.array([normal.cdf(z) for z in factors.tolist()]))
            own = [[normal.inv_cdf(min(p, _NEARLY_ONE)) for p in row] for row in shares.tolist()]
            self._own = factors, np.array(own)
        return self._own[1]


class SeasonalNaive:
    """The last week again and again, and quantiles of the errors that this made on the item's last 91 days."""

    name = "seasonal naive"
    factors = PROBABILITIES

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._sums = np.concatenate([np.zeros((len(shop.sold), 1)), np.cumsum(shop.sold, axis=1)], axis=1)

    def answer(self, day: int, factors: Floats) -> Answer:
        """See Contestant."""
        parts = [self._distribution(self._shop.history + day, horizon) for horizon in self._shop.horizons]
        return _of_demand(Mixture(parts, self._shop.lead_time.probabilities), self._shop, factors)

    def _distribution(self, at: int, horizon: int) -> DemandDistribution:
        origins = np.arange(at - horizon - _ERROR_DAYS + 1, at - horizon + 1)
        errors = self._sums[:, origins + horizon] - self._sums[:, origins] - self._naive(origins, horizon)
        samples = self._naive(np.array([at]), horizon) + errors
        return DemandDistribution(np.quantile(samples, QUANTILE_LEVELS, axis=1).T, QUANTILE_LEVELS)

    def _naive(self, origins: NDArray[np.int64], horizon: int) -> Floats:
        weeks, rest = divmod(horizon, _WEEK)
        begin = self._sums[:, origins - _WEEK]
        return np.asarray(weeks * (self._sums[:, origins] - begin) + self._sums[:, origins - _WEEK + rest] - begin)


class PerfectForesight:
    """Knows what will be sold: what stock costs when nothing is uncertain but how long goods take."""

    name = "perfect foresight"
    factors = _ONE

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    def answer(self, day: int, factors: Floats) -> Answer:
        """See Contestant."""
        at, horizon = self._shop.history + day, max(self._shop.horizons)
        level = self._shop.sold[:, at : at + horizon].sum(axis=1)
        return Answer(level * factors[:, None], level / horizon)


def everyone(shop: Shop, models_by_name: Mapping[str, DemandModel], windows: Sequence[int]) -> list[Contestant]:
    """All contestants, models first. `windows`: of the moving averages, in days."""
    models: list[Contestant] = [ModelForecasts(name, model, shop) for name, model in models_by_name.items()]
    averages = [MovingAverage(window, shop) for window in windows]
    if shop.has_own_odds:
        averages += [MovingAverage(window, shop, by_odds=True) for window in windows]
    return [*models, *averages, SeasonalNaive(shop), PerfectForesight(shop)]
