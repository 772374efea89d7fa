"""`shelfcast simulate`: the ledger by hand, contestants against what they say they are, and the command on a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from forecaster.baselines import empirical_forecast
from forecaster.contract import NO_COVARIATES
from forecaster.demand_distribution import Floats
from forecaster.inputs import ModelInputs, ModelOutputs
from forecaster.lead_time import LeadTime
from forecaster.series import SeriesTable
from forecaster.simulate import command
from forecaster.stock_comparison import Question, at_service, compare, implied_shortage_cost, unit_prices
from forecaster.stock_contestants import (
    ModelForecasts,
    MovingAverage,
    SeasonalNaive,
    Shop,
    everyone,
)
from forecaster.stock_simulation import Levels, StockRules, outcome, simulate

DAYS = 300


class Empirical:
    """The baseline as a model."""

    freqs = ("1d",)
    covariates = NO_COVARIATES

    def forecast(self, inputs: ModelInputs) -> ModelOutputs:
        return empirical_forecast(inputs, inputs.known.shape[1] - inputs.context.shape[1])


def table_of(units: Floats, price: float = 2.0) -> SeriesTable:
    items, days = units.shape
    zeros = np.zeros(items, dtype=np.int64)
    return SeriesTable(
        freq="1d",
        time_zone="UTC",
        item_ids=tuple(f"item{n}" for n in range(items)),
        first_bucket=zeros + 15_000,
        offsets=np.arange(items + 1, dtype=np.int64) * days,
        units=units.astype(np.float32).ravel(),
        columns={"unit_price": np.full(items * days, price, dtype=np.float32)},
        category_code=zeros,
        brand_code=zeros,
        launch_bucket=zeros + 15_000,
    )


def poisson(items: int = 40) -> Floats:
    weekly = np.tile([1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 0.0], DAYS // 7 + 1)[:DAYS]
    return np.random.default_rng(3).poisson(4.0 * weekly, size=(items, DAYS)).astype(np.float64)


def shop_of(units: Floats, lead_time: LeadTime, days: int = 84) -> Shop:
    table = table_of(units)
    return Shop.of(table, np.arange(len(units)), 15_000 + DAYS - days, days, 7, lead_time)


def question_of(shop: Shop, *, lost_sales: bool = True, order_cost: float = 0.0) -> Question:
    holding = np.full(len(shop.rows), 1.0)
    rules = StockRules(7, shop.lead_time, lost_sales, holding, implied_shortage_cost(holding, 7, 0.95), order_cost)
    return Question(shop, rules, slice(14, 49), slice(49, 84), "cycle_service", 0.95, order_cost > 0)


def test_a_ledger_worked_by_hand() -> None:
    rules = StockRules(2, LeadTime((1.0,)), True, np.array([0.5]), np.array([3.0]), order_cost=7.0, pack=2.0)
    level = np.array([[5.0]])
    ledger = simulate(np.array([[4.0, 3.0, np.nan, 6.0]]), rules, lambda day: Levels(level, level), np.array([2.0]))
    # Day 0 orders 4 (3 in packs of 2); serves 2 of 4. Day 1: 4 arrive, 3 are sold. Day 2 orders 4. Day 3: 1 + 4 for 6.
    assert ledger.short.tolist() == [[2.0, 0.0, 0.0, 1.0]]
    assert ledger.stock.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    assert ledger.holding.tolist() == [[0.0, 0.5, 0.5, 0.0]]
    assert ledger.shortage.tolist() == [[6.0, 0.0, 0.0, 3.0]]
    assert ledger.ordering.tolist() == [[7.0, 0.0, 7.0, 0.0]]
    # Cycles go from arrival to arrival: day 0, days 1 and 2.
    assert (ledger.cycles.tolist(), ledger.cycles_short.tolist()) == ([[1, 0, 1, 0]], [[1, 0, 0, 0]])
    told = outcome(ledger, slice(0, 4))
    assert (told.cost[0], told.fill_rate[0], told.cycle_service[0]) == (24 / 4, 1 - 3 / 13, 0.5)
    assert told.turns[0] == pytest.approx(10 / 4 * 365 / 0.5)


def test_what_is_owed_is_served_before_anything_is_in_stock_again() -> None:
    rules = StockRules(1, LeadTime((2.0,)), False, np.array([1.0]), np.array([1.0]))
    level = np.array([[3.0]])
    ledger = simulate(np.array([[5.0, 0.0, 0.0, 0.0]]), rules, lambda day: Levels(level, level), np.array([3.0]))
    assert ledger.shortage.tolist() == [[2.0, 2.0, 2.0, 0.0]]
    assert ledger.stock.tolist() == [[0.0, 0.0, 0.0, 3.0]]


def test_lead_times_are_drawn_from_their_distribution() -> None:
    items = 4_000
    rules = StockRules(10, LeadTime((1.0, 3.0), (0.25, 0.75)), True, np.ones(items), np.ones(items))
    level = np.full((1, items), 1.0)
    ledger = simulate(np.zeros((items, 4)), rules, lambda day: Levels(level, level), np.zeros(items))
    assert ledger.stock[0, [0, 2]].tolist() == [0.0, pytest.approx(0.25 * items, rel=0.1)]
    assert ledger.stock[0, 3] == items


def test_perfect_foresight_is_never_short_and_cheaper_than_who_guesses() -> None:
    shop = shop_of(poisson(), LeadTime((3.0,)))
    found = compare(question_of(shop), everyone(shop, {"model": Empirical()}, [28]))
    perfect = found["perfect foresight"].tuned
    assert (perfect.fill_rate[0], perfect.cycle_service[0]) == (1.0, 1.0)
    for name in ("model", "moving average, 28 days", "seasonal naive"):
        assert found[name].tuned.cost[0] > perfect.cost[0]
        assert found[name].tuned.cycle_service[0] == pytest.approx(0.95, abs=0.04)  # 40 items, five weeks
        assert at_service(found[name].judged, "cycle_service", 0.95)["cost"] > perfect.cost[0]


def test_the_moving_average_is_the_textbooks() -> None:
    units = poisson(3)
    shop = shop_of(units, LeadTime((2.0, 6.0), (0.5, 0.5)))
    past = units[:, DAYS - 84 - 28 + 7 : DAYS - 84 + 7].astype(np.float64)
    mean, deviation = past.mean(axis=1), past.std(axis=1, ddof=1)
    told = MovingAverage(28, shop).answer(7, np.array([0.0, 1.5]))
    assert told.levels[0] == pytest.approx(mean * 11)
    assert told.levels[1] == pytest.approx(mean * 11 + 1.5 * np.sqrt(11 * deviation**2 + 4 * mean**2))


def test_the_seasonal_naive_repeats_the_week_and_adds_its_errors() -> None:
    weekly = np.tile(np.arange(7.0), DAYS // 7 + 1)[None, :DAYS]
    shop = shop_of(weekly, LeadTime((3.0,)))
    told = SeasonalNaive(shop).answer(0, np.array([0.5, 0.9]))
    ahead = weekly[0, DAYS - 84 : DAYS - 84 + 10].sum()
    assert told.levels == pytest.approx(np.full((2, 1), ahead))  # it was never wrong


def test_own_odds_raise_the_probability_of_who_is_dear_to_be_short_of() -> None:
    shop = shop_of(poisson(2), LeadTime((3.0,)))
    shop = replace(shop, odds=np.array([1.0, 9.0]))
    assert shop.probabilities(np.array([0.5])).tolist() == [[0.5, 0.9]]
    plain, own = MovingAverage(28, shop), MovingAverage(28, shop, by_odds=True)
    at = np.array([0.0])
    assert own.answer(0, at).levels[0, 0] == pytest.approx(plain.answer(0, at).levels[0, 0])
    assert own.answer(0, at).levels[0, 1] == pytest.approx(plain.answer(0, np.array([1.2815516])).levels[0, 1])


def test_orders_of_economic_size_are_fewer() -> None:
    shop = shop_of(poisson(), LeadTime((3.0,)))
    every, economic = (
        compare(question_of(shop, order_cost=cost), [MovingAverage(28, shop)])["moving average, 28 days"]
        for cost in (0.0, 5_000.0)
    )
    assert economic.tuned.orders[0] < 0.7 * every.tuned.orders[0]


def test_a_target_beyond_all_factors_is_said_so() -> None:
    units = poisson()
    units[0, DAYS - 60] = 100_000  # nobody has that in stock
    shop = shop_of(units, LeadTime((3.0,)))
    model = ModelForecasts("model", Empirical(), shop)
    found = compare(question_of(shop), [model])["model"]
    filled = compare(replace(question_of(shop), service="fill_rate"), [model])["model"]
    assert np.isfinite(found.factor)
    assert np.isnan(filled.factor)
    assert filled.tuned.cost[0] == filled.judged.cost[-1]  # by the highest factor


def test_prices_are_the_last_known_ones_before_the_day() -> None:
    table = table_of(poisson(3), price=2.5)
    assert unit_prices(table, np.arange(3), 15_200).tolist() == [2.5] * 3
    bare = replace(table, columns={})
    assert unit_prices(bare, np.arange(3), 15_200).tolist() == [1.0] * 3
    revenue = replace(table, columns={"revenue": 4.0 * table.units})
    assert unit_prices(revenue, np.arange(3), 15_200) == pytest.approx([4.0] * 3)


@pytest.fixture
def sales(tmp_path: Path) -> Path:
    units = poisson(12)
    item, day = np.nonzero(units)
    path = tmp_path / "sales.parquet"
    columns = {
        "item_id": [f"item{n}" for n in item.tolist()],
        "bucket_start": (day + 15_000).astype("datetime64[D]"),
        "units": units[item, day].astype(np.float64),
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_the_command_writes_a_report_and_all_figures(sales: Path, tmp_path: Path) -> None:
    options = ["--series", str(sales), "--model", "none", "--lead-time", "2:0.5,4:0.5", "--output", str(tmp_path / "o")]
    done = CliRunner().invoke(command, [*options, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary == json.loads((tmp_path / "o" / "simulation.json").read_text())
    assert set(summary["contestants"]) == {
        *("moving average, 28 days", "moving average, 56 days", "seasonal naive", "perfect foresight")
    }
    assert summary["items"] == 12
    page = (tmp_path / "o" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lead-time", "soon"], "write whole days"),
        (["--lead-time", "2:0.5,4:0.4"], "write whole days"),
        (["--policy", "s-S"], "--order-cost"),
        (["--weeks", "60"], "no item sold"),
        (["--weeks", "1", "--min-selling-days", "91"], "no item sold"),
    ],
)
def test_what_can_not_be_simulated_is_named(sales: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(command, ["--series", str(sales), "--model", "none", *options])
    assert done.exit_code != 0
    assert message in done.output
