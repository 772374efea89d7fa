"""How much there is to be gained by better forecasts of what a shop orders by: dunnhumby's last eight weeks.

Beside the contestants of `replenishment` stand: negative binomial demand with a moving average's mean; the mean of two
contestants' levels; and two that know what nobody can, each item's mean of the very weeks that are judged, with
negative binomial or Poisson demand around it. No forecast of a level alone can be expected to do better than these.
A model is given by its folder; it must not have learnt from the last eight weeks, as those of `accuracy` have not (of
`--dataset dunnhumby_promotions` for `--promotions`, with which models are told what is promoted). All
costs are read off the curves at 95 % of cycles without shortage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import numpy as np
from scipy import stats

from benchmarks.replenishment import CASES, TABLES, Remembered
from benchmarks.report import show
from forecaster.demand_distribution import Floats
from forecaster.predictor import load_model
from forecaster.simulate import LeadTimeType, question_of
from forecaster.stock_comparison import Found, Question, at_service, compare
from forecaster.stock_contestants import PROBABILITIES, Answer, Contestant, ModelForecasts, MovingAverage, Shop
from forecaster.train_options import shipped_model

_WEEKS, _DISPERSION_DAYS = 8, 91
_LEVEL = 0.95
_WINDOWS = (28, 56, 91)


class NegativeBinomial:
    """Demand with a mean that `mean_of` tells for a day, and the dispersion of days that was or is; steps between whole
    units are evened out, as quantiles of forecasts are."""

    factors = PROBABILITIES

    def __init__(self, name: str, shop: Shop, mean_of: Callable[[int], Floats], *, is_poisson: bool = False) -> None:
        self.name, self._shop, self._mean_of, self._is_poisson = name, shop, mean_of, is_poisson

    def answer(self, day: int, factors: Floats) -> Answer:
        """See Contestant."""
        past = self._shop.before(day, _DISPERSION_DAYS)
        mean, ratio = past.mean(axis=1), np.full(len(past), 1.001)
        if not self._is_poisson:
            ratio = np.maximum(np.divide(past.var(axis=1, ddof=1), mean, out=np.ones(len(mean)), where=mean > 0), 1.001)
        rate = np.maximum(self._mean_of(day), 1e-3)
        horizon = self._shop.review_period + self._shop.lead_time.mean
        demand = stats.nbinom(rate * horizon / (ratio - 1), 1 / ratio)
        p = np.asarray(factors)[:, None]
        above = demand.ppf(p)
        low, high = demand.cdf(above - 1), demand.cdf(above)
        return Answer(above - 1 + np.clip((p - low) / np.maximum(high - low, 1e-12), 0.0, 1.0), rate)


class Mean:
    """Half of what each of two says."""

    factors = PROBABILITIES

    def __init__(self, one: Contestant, other: Contestant) -> None:
        self.name, self._parts = f"mean of {one.name} and {other.name}", (one, other)

    def answer(self, day: int, factors: Floats) -> Answer:
        """See Contestant."""
        one, other = (part.answer(day, factors) for part in self._parts)
        return Answer((one.levels + other.levels) / 2, (one.rate + other.rate) / 2)


def _contestants(question: Question, models: Sequence[Path]) -> list[Contestant]:
    shop = question.shop
    judged = shop.demand[:, question.judged.start :].mean(axis=1)
    averaged = NegativeBinomial("91 days, negative binomial", shop, lambda day: shop.before(day, 91).mean(axis=1))
    named = {"shipped": shipped_model()} | {path.name: path for path in models}
    ours = [ModelForecasts(name, Remembered(load_model(path, threads=1)), shop) for name, path in named.items()]
    return [
        *(MovingAverage(window, shop) for window in _WINDOWS),
        averaged,
        *ours,
        *(Mean(one, averaged) for one in ours),
        NegativeBinomial("mean of the judged weeks, negative binomial", shop, lambda _: judged),
        NegativeBinomial("mean of the judged weeks, Poisson", shop, lambda _: judged, is_poisson=True),
    ]


def measure(shop: str, data: Path, models: Sequence[Path], items: int) -> dict[str, Any]:
    """By contestant the cost at 95 %."""
    case = next(case for case in CASES if case.shop == shop)
    question = question_of(
        TABLES[shop](data),
        {
            **{"review_period": case.review_period, "lead_time": LeadTimeType().convert(case.lead_time, None, None)},
            **{"tuning_weeks": case.tuning_weeks, "weeks": _WEEKS, "service": "cycle", "target": 0.95},
            **{"policy": "order-up-to", "holding_rate": 0.25, "shortage_rate": None, "equal_shortage": False},
            **{"order_cost": 0.0, "min_order": 0.0, "pack": 1.0, "backorders": False},
            **{"min_selling_days": 20, "most": items},
        },
    )
    contestants = _contestants(question, models)
    found = compare(question, contestants)
    return {
        one.name: {
            **{key: round(float(value), 3) for key, value in _at_95(found[one.name]).items()},
            "cheapest": round(float(found[one.name].judged.cost.min()), 3),
            **(_before_tuning(question, one) if one.factors is PROBABILITIES else {}),
        }
        for one in contestants
    }


def _at_95(found: Found) -> dict[str, float]:
    equal = at_service(found.judged, "cycle_service", _LEVEL)
    factor = np.interp(_LEVEL, np.maximum.accumulate(found.judged.cycle_service), found.factors)
    return {"factor": float(factor)} | {key: equal[key] for key in ("cost", "holding", "shortage", "fill_rate")}


def _before_tuning(question: Question, contestant: Contestant) -> dict[str, float]:
    """Of the demand over lead time and review period, without any factor: bias of the mean, share of sums that lie at
    or below the 95 % level, and its quantile loss weighted by price."""
    shop = question.shop
    horizon = shop.review_period + int(shop.lead_time.longest)
    weight = question.rules.holding_cost / question.rules.holding_cost.mean()
    means, sums, inside, losses = 0.0, 0.0, [], []
    for day in range(question.judged.start, shop.days - horizon + 1, shop.review_period):
        demand = shop.demand[:, day : day + horizon].sum(axis=1)
        answer = contestant.answer(day, np.array([_LEVEL]))
        miss = demand - answer.levels[0]
        means, sums = means + float(answer.rate.sum()) * horizon, sums + float(demand.sum())
        inside.append(float((miss <= 0).mean()))
        losses.append(float((weight * np.maximum(_LEVEL * miss, (_LEVEL - 1) * miss)).mean()))
    told = {"bias": means / sums - 1, "inside_95": fmean(inside), "loss_95": fmean(losses)}
    return {name: round(value, 4) for name, value in told.items()}


@click.command()
@click.option("--promotions", is_flag=True, help="Models know promotions ahead.")
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder.")
@click.option("--model", "models", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--items", default=1_500, show_default=True, help="Drawn at random.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(promotions: bool, data: Path, models: tuple[Path, ...], items: int, as_json: bool) -> None:
    """What ordering costs, and what it would if each item's mean were known."""
    figures = measure("dunnhumby_promotions" if promotions else "dunnhumby", data, models, items)
    averages = [f"moving average, {window} days" for window in _WINDOWS]
    rows = [
        [
            name,
            f"{one['cost']:.1f}",
            *(f"{one['cost'] / figures[other]['cost'] - 1:+.1%}" for other in averages),
            f"{one['factor']:.2f}",
            *(f"{one[key]:.3f}" if key in one else "" for key in ("bias", "inside_95", "loss_95")),
        ]
        for name, one in figures.items()
    ]
    show(
        "dunnhumby, costs at 95 %",
        ("", "cost", "MA 28", "MA 56", "MA 91", "factor", "bias", "in 95 %", "loss"),
        rows,
        figures,
        as_json,
    )


if __name__ == "__main__":
    command()
