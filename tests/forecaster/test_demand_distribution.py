"""Distributions told by quantiles, against closed forms."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from stockpyl.loss_functions import normal_loss

from forecaster.contract import QUANTILE_LEVELS
from forecaster.demand_distribution import DemandDistribution, Floats, Mixture
from forecaster.lead_time import LeadTime, demand_between, demand_until, protected_demand

MEANS: Floats = np.array([50.0, 200.0, 1_000.0])
DEVIATIONS: Floats = np.array([8.0, 60.0, 50.0])


def normal(means: Floats = MEANS, deviations: Floats = DEVIATIONS) -> DemandDistribution:
    z = np.array([NormalDist().inv_cdf(level) for level in QUANTILE_LEVELS])
    return DemandDistribution(means[:, None] + deviations[:, None] * z, QUANTILE_LEVELS)


@pytest.mark.parametrize("probability", [0.005, 0.1, 0.37, 0.5, 0.77, 0.95, 0.99, 0.995])
def test_values_and_probabilities_are_each_others_inverse_and_near_the_normals(probability: float) -> None:
    demand = normal()
    value = demand.value(probability)
    exact = MEANS + DEVIATIONS * NormalDist().inv_cdf(probability)
    assert np.abs((value - exact) / DEVIATIONS).max() < 0.1  # between 0.975 and 0.995 the straight line is furthest
    assert demand.probability(value) == pytest.approx(np.full(3, probability))


def test_the_tail_is_exponential_and_goes_on_where_the_levels_end() -> None:
    rate = 0.25
    levels = np.array(QUANTILE_LEVELS)
    demand = DemandDistribution(-np.log(1 - levels)[None] / rate, QUANTILE_LEVELS)
    for probability in (0.999, 0.99999):
        assert demand.value(probability)[0] == pytest.approx(-math.log(1 - probability) / rate)
        assert demand.probability(demand.value(probability))[0] == pytest.approx(probability, abs=1e-12)


def test_mean_and_shortage_are_those_of_the_normal() -> None:
    demand = normal()
    assert demand.mean() == pytest.approx(MEANS, rel=0.01)
    for z in (-3.0, -1.0, 0.0, 0.7, 1.9, 2.8):
        stock = MEANS + z * DEVIATIONS
        exact = [normal_loss(s, m, d)[0] for s, m, d in zip(stock, MEANS, DEVIATIONS, strict=True)]
        assert demand.shortage(stock) / DEVIATIONS == pytest.approx(np.array(exact) / DEVIATIONS, abs=0.03)


def test_shortage_of_nothing_is_the_mean_and_what_is_owed_adds_to_it() -> None:
    demand = normal()
    assert demand.shortage(np.zeros(3)) == pytest.approx(demand.mean())
    assert demand.shortage(np.full(3, -4.0)) == pytest.approx(demand.mean() + 4)


def test_a_demand_that_is_nothing_but_zeros_needs_nothing() -> None:
    demand = DemandDistribution(np.zeros((2, len(QUANTILE_LEVELS))), QUANTILE_LEVELS)
    assert (demand.value(0.999) == 0).all()
    assert (demand.mean() == 0).all()
    assert (demand.shortage(np.zeros(2)) == 0).all()
    assert (demand.probability(np.zeros(2)) > 0.99).all()


def test_a_mixture_is_the_weighted_sum_of_its_distributions() -> None:
    early, late = normal(), normal(2 * MEANS, 1.5 * DEVIATIONS)
    mixture = Mixture([early, late], [0.7, 0.3])
    for probability in (0.2, 0.7, 0.9, 0.99):
        value = mixture.value(probability)
        by_hand = 0.7 * early.probability(value) + 0.3 * late.probability(value)
        assert by_hand == pytest.approx(np.full(3, probability), abs=1e-6)
    assert mixture.mean() == pytest.approx(0.7 * early.mean() + 0.3 * late.mean())
    assert Mixture([early], [1.0]).value(0.9) == pytest.approx(early.value(0.9))


def test_a_mixture_of_draws_has_the_quantiles_of_the_draws() -> None:
    draws = np.random.default_rng(0)
    lead = draws.choice([1, 4], size=400_000, p=[0.6, 0.4])
    demand = draws.normal(20.0 * lead, 3.0 * np.sqrt(lead))
    mixture = Mixture([normal(np.array([20.0 * n]), np.array([3.0 * math.sqrt(n)])) for n in (1, 4)], [0.6, 0.4])
    for probability in (0.1, 0.5, 0.75, 0.9, 0.95):
        assert mixture.value(probability)[0] == pytest.approx(np.quantile(demand, probability), abs=1.0)


def test_a_mixture_of_demands_that_are_certain_is_one_or_the_other() -> None:
    parts = [DemandDistribution(np.full((1, len(QUANTILE_LEVELS)), units), QUANTILE_LEVELS) for units in (10.0, 30.0)]
    mixture = Mixture(parts, [0.6, 0.4])
    values = [mixture.value(p)[0] for p in (0.1, 0.5, 0.59, 0.61, 0.7, 0.95)]
    assert values == pytest.approx([10.0, 10.0, 10.0, 30.0, 30.0, 30.0], abs=1e-4)
    assert Mixture(parts[:1], [1.0]).value(0.3)[0] == pytest.approx(parts[0].value(0.3)[0])


def test_values_of_mixtures_are_where_their_probability_is_reached() -> None:
    draws = np.random.default_rng(5)
    parts = []
    for scale in (1.0, 2.0, 4.0):
        quantiles = np.sort(np.floor(draws.gamma(0.4, 8 * scale, (200, len(QUANTILE_LEVELS)))), axis=1)
        parts.append(DemandDistribution(quantiles, QUANTILE_LEVELS))
    mixture = Mixture(parts, [0.5, 0.3, 0.2])
    for p in (0.01, 0.3, 0.62, 0.9, 0.97, 0.999):
        value = mixture.value(p)
        assert (mixture.probability(value + 1e-4) >= p).all()
        assert (mixture.probability(value - 1e-4, less=True) <= p).all()


@pytest.mark.parametrize("weights", [[0.5], [0.5, 0.4]])
def test_probabilities_that_do_not_add_up_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="do not sum to 1"):
        Mixture([normal(), normal()], weights)


CUMULATIVE = np.array([[[1.0, 2.0, 4.0], [2.0, 5.0, 9.0]]])
LEVELS = (0.1, 0.5, 0.9)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (0.0, [0.0, 0.0, 0.0]),
        (0.5, [0.5, 1.0, 2.0]),
        (1.0, [1.0, 2.0, 4.0]),
        (2.0, [1.5, 3.5, 6.5]),
        (3.0, [2.0, 5.0, 9.0]),
        (12.0, [20 - 3 * 2, 20.0, 20 + 4 * 2]),  # four times as long: the median four times, the spread twice
    ],
)
def test_demand_is_interpolated_between_steps_and_goes_on_after_them(time: float, expected: list[float]) -> None:
    assert demand_until(CUMULATIVE, [1.0, 3.0], LEVELS, time).quantiles[0] == pytest.approx(expected)


def test_an_uncertain_lead_time_mixes_the_demands_of_its_durations() -> None:
    lead_time = LeadTime((0.0, 2.0), (0.25, 0.75))
    mixed = protected_demand(CUMULATIVE, [1.0, 3.0], LEVELS, lead_time, 1.0)
    parts = [demand_until(CUMULATIVE, [1.0, 3.0], LEVELS, time) for time in (1.0, 3.0)]
    stock = np.array([4.5])
    assert mixed.probability(stock) == pytest.approx(
        0.25 * parts[0].probability(stock) + 0.75 * parts[1].probability(stock)
    )
    assert (lead_time.mean, lead_time.variance, lead_time.longest) == (1.5, 0.75, 2.0)


def test_demand_between_two_times_of_independent_normals_is_normal() -> None:
    early, late = normal(np.array([50.0]), np.array([6.0])), normal(np.array([130.0]), np.array([10.0]))
    between = demand_between(early, late, 0.9)
    assert between[0] == pytest.approx(80 + NormalDist().inv_cdf(0.9) * 8, rel=0.01)


@pytest.mark.parametrize(
    ("durations", "probabilities"), [((), ()), ((1.0,), (0.5,)), ((-1.0,), (1.0,)), ((1.0, 2.0), (1.0,))]
)
def test_lead_times_that_can_not_be_are_refused(durations: tuple[float, ...], probabilities: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="lead time"):
        LeadTime(durations, probabilities)
