"""Order policies against closed forms and exact methods of stockpyl."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats
from stockpyl.eoq import economic_order_quantity
from stockpyl.newsvendor import newsvendor_normal, newsvendor_poisson, newsvendor_poisson_cost
from stockpyl.ss import s_s_cost_discrete, s_s_discrete_exact

from forecaster.contract import QUANTILE_LEVELS
from forecaster.demand_distribution import DemandDistribution, Floats
from forecaster.lead_time import LeadTime
from forecaster.ordering import critical_ratio, economic_quantity, fill_rate_level, order_quantity, shelf_life_cap
from forecaster.stock_simulation import Levels, StockRules, outcome, simulate

Z: Floats = np.array([NormalDist().inv_cdf(level) for level in QUANTILE_LEVELS])


@pytest.mark.parametrize(("holding", "stockout"), [(0.18, 0.70), (1.0, 4.0), (1.0, 19.0), (2.0, 1.0)])
def test_the_newsvendor_with_normal_demand(holding: float, stockout: float) -> None:
    exact, _ = newsvendor_normal(holding, stockout, 50, 8)
    demand = DemandDistribution((50 + 8 * Z)[None], QUANTILE_LEVELS)
    assert demand.value(critical_ratio(stockout, holding))[0] == pytest.approx(exact, abs=0.4)


@pytest.mark.parametrize(("holding", "stockout", "mean"), [(0.18, 0.70, 50), (1.0, 4.0, 12), (1.0, 19.0, 3)])
def test_the_newsvendor_with_poisson_demand(holding: float, stockout: float, mean: float) -> None:
    exact, _ = newsvendor_poisson(holding, stockout, mean)
    levels = np.arange(1, 1000) / 1000
    demand = DemandDistribution(stats.poisson.ppf(levels, mean)[None], levels)
    ordered = order_quantity(np.zeros(1), np.full(1, 1e9), demand.value(critical_ratio(stockout, holding)))
    assert ordered[0] == exact


@pytest.mark.parametrize(("order_cost", "holding", "rate"), [(8.0, 0.225, 1300.0), (100.0, 3.0, 20.0)])
def test_the_economic_quantity(order_cost: float, holding: float, rate: float) -> None:
    exact, _ = economic_order_quantity(order_cost, holding, rate)
    assert economic_quantity(np.array([rate]), order_cost, holding)[0] == pytest.approx(exact)


def test_the_level_of_a_fill_rate_leaves_the_share_short() -> None:
    protected = DemandDistribution((300 + 40 * Z)[None], QUANTILE_LEVELS)
    arriving = DemandDistribution((200 + 33 * Z)[None], QUANTILE_LEVELS)
    level = fill_rate_level(protected, arriving, np.array([100.0]), 0.98)
    assert protected.shortage(level)[0] - arriving.shortage(level)[0] == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize(
    ("position", "reorder", "up_to", "min_order", "pack", "expected"),
    [
        (3.0, 10.0, 10.0, 0.0, 1.0, 7.0),
        (3.0, 10.0, 10.5, 0.0, 1.0, 8.0),
        (10.0, 10.0, 10.0, 0.0, 1.0, 0.0),
        (9.9999, 10.0, 10.0, 0.0, 1.0, 0.0),
        (11.0, 10.0, 30.0, 0.0, 1.0, 0.0),
        (10.0, 10.0, 30.0, 0.0, 6.0, 24.0),
        (29.0, 30.0, 30.0, 5.0, 2.0, 6.0),
        (-4.0, 1.0, 1.0, 0.0, 0.25, 5.0),
        (0.0, 2.7, 2.7, 0.0, 0.9, 2.7),
    ],
)
def test_orders_have_a_least_size_and_whole_packs(
    position: float, reorder: float, up_to: float, min_order: float, pack: float, expected: float
) -> None:
    found = order_quantity(np.array([position]), np.array([reorder]), np.array([up_to]), min_order=min_order, pack=pack)
    assert found[0] == pytest.approx(expected)


def test_no_more_is_stocked_than_is_sold_before_it_spoils() -> None:
    sellable = DemandDistribution((20 + 4 * Z)[None], QUANTILE_LEVELS)
    assert shelf_life_cap(np.array([50.0]), sellable)[0] == pytest.approx(20.0, rel=0.01)
    assert shelf_life_cap(np.array([9.0]), sellable)[0] == 9.0


def test_costs_above_zero_are_needed() -> None:
    with pytest.raises(ValueError, match="above 0"):
        critical_ratio(0.0, 1.0)


def long_run_cost(rules: StockRules, levels: Levels, demand: Floats) -> float:
    """Of an item and day, once the beginning is forgotten."""
    ledger = simulate(demand, rules, lambda day: levels, levels.order_up_to[0])
    return float(outcome(ledger, slice(100, demand.shape[1])).cost[0]) / len(demand)


def rules_of(holding: float, shortage: float, items: int, lead_time: int, order_cost: float = 0.0) -> StockRules:
    return StockRules(
        review_period=1,
        lead_time=LeadTime((float(lead_time),)),
        lost_sales=False,
        holding_cost=np.full(items, holding),
        shortage_cost=np.full(items, shortage),
        order_cost=order_cost,
    )


@pytest.mark.parametrize(("level", "lead_time"), [(18, 2), (24, 2), (9, 0)])
def test_a_base_stock_costs_in_the_simulation_what_it_costs_on_paper(level: int, lead_time: int) -> None:
    """With everything short owed, stock after a day is the level less the demand of L + 1 days."""
    demand = np.random.default_rng(1).poisson(6.0, size=(400, 2_000)).astype(np.float64)
    paper = newsvendor_poisson_cost(level, 1.0, 9.0, 6.0 * (lead_time + 1))
    at = np.full((1, 400), float(level))
    assert long_run_cost(rules_of(1.0, 9.0, 400, lead_time), Levels(at, at), demand) == pytest.approx(paper, rel=0.01)


def test_s_and_big_s_cost_in_the_simulation_what_they_cost_on_paper() -> None:
    demand = np.random.default_rng(2).poisson(10.0, size=(400, 2_000)).astype(np.float64)
    for s, big_s in ((6, 40), (11, 25)):
        paper = s_s_cost_discrete(s, big_s, 1.0, 4.0, 64.0, True, 10)
        levels = Levels(np.full((1, 400), float(s)), np.full((1, 400), float(big_s)))
        assert long_run_cost(rules_of(1.0, 4.0, 400, 0, 64.0), levels, demand) == pytest.approx(paper, rel=0.01)


def test_a_quantile_and_the_economic_quantity_are_near_the_best_s_and_big_s() -> None:
    holding, stockout, order_cost, mean = 1.0, 9.0, 64.0, 20.0
    *_, best = s_s_discrete_exact(holding, stockout, order_cost, True, mean)
    levels = np.arange(1, 1000) / 1000
    demand = DemandDistribution(stats.poisson.ppf(levels, mean)[None], levels)
    s = float(demand.value(critical_ratio(stockout, holding))[0])
    big_s = s + float(economic_quantity(demand.mean(), order_cost, holding)[0])
    ours = s_s_cost_discrete(round(s), round(big_s), holding, stockout, order_cost, True, mean)
    assert ours < 1.2 * best
