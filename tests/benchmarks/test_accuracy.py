"""The accuracy benchmark's own arithmetic, on a small table; the real sets are not in the repository."""

import numpy as np
import pytest

from benchmarks.accuracy import judge
from benchmarks.accuracy_data import filled
from benchmarks.accuracy_models import Ensemble
from benchmarks.accuracy_tasks import Task
from forecaster.baselines_statsforecast import StatsForecast
from forecaster.contestants import empirical
from forecaster.rolling_origins import Contestants, seasonal_scale, targets
from forecaster.score_table import score_table
from tests.forecaster.builders import small_table

TABLE = small_table()
END = int(TABLE.end_bucket.max())
ROWS = np.flatnonzero(TABLE.first_bucket < END - 60)


def task(*origins: int) -> Task:
    return Task("small", TABLE, origins, 14, ROWS, ROWS, 7, "a small table")


def test_one_origin_scores_as_the_score_table_does() -> None:
    running = END - 14
    said = empirical().forecast(TABLE, ROWS, running, 14)["empirical"]
    expected = score_table(targets(TABLE, ROWS, running, 14), said, seasonal_scale(TABLE, ROWS, running, 7))
    assert judge(task(running), [empirical()], ROWS)["empirical"] == pytest.approx(expected, nan_ok=True)


def test_origins_are_pooled() -> None:
    first, second = END - 28, END - 14
    losses = [judge(task(running), [empirical()], ROWS)["empirical"] for running in (first, second)]
    sold = [float(np.nansum(targets(TABLE, ROWS, running, 14))) for running in (first, second)]
    both = judge(task(first, second), [empirical()], ROWS)["empirical"]
    pooled = sum(loss["wql"] * units for loss, units in zip(losses, sold, strict=True)) / sum(sold)
    assert both["wql"] == pytest.approx(pooled)


def test_an_ensembles_quantiles_are_the_mean_of_its_members_and_its_means_the_last_ones() -> None:
    naive = StatsForecast(["naive"], processes=1)
    members: list[Contestants] = [empirical(), naive]
    said = Ensemble("both", members).forecast(TABLE, ROWS[:5], END - 14, 14)["both"]
    one = empirical().forecast(TABLE, ROWS[:5], END - 14, 14)["empirical"]
    other = naive.forecast(TABLE, ROWS[:5], END - 14, 14)["naive"]
    mean = (one.quantiles + other.quantiles) / 2
    assert np.abs(said.quantiles - mean).max() <= 0.5
    whole = [(f.quantiles == f.quantiles.round()).all(axis=(1, 2)) for f in (one, other, said)]
    assert np.array_equal(whole[0] & whole[1], whole[2])
    assert said.quantiles[~whole[2]] == pytest.approx(mean[~whole[2]])
    assert np.array_equal(said.mean, other.mean)


def test_gaps_are_filled_from_before_and_at_the_start_from_after() -> None:
    nan = np.nan
    values = np.array([[nan, 2, nan, nan, 3], [1, nan, 4, nan, nan]], dtype=np.float32)
    assert filled(values).tolist() == [[2, 2, 2, 2, 3], [1, 1, 4, 4, 4]]
