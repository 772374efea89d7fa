"""`shelfcast evaluate` end to end on a small table of sales."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from forecaster.contestants import empirical
from forecaster.evaluate import BASELINES, command
from forecaster.evaluation import Group, Plan, draw_sample, evaluate
from forecaster.rolling_origins import origins_of, seasonal_scale, targets
from forecaster.score_table import score_table, table_of
from forecaster.train_options import shipped_model
from tests.forecaster.series_tables import made_table

_QUICK = "empirical,seasonal_naive,croston_sba"


@pytest.fixture(scope="module")
def sales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Daily sales of twelve items, the last one new, the last but one dead."""
    table = made_table()
    lengths = np.diff(table.offsets)
    item = np.repeat(np.arange(len(table)), lengths)
    day = np.concatenate([begin + np.arange(n) for begin, n in zip(table.first_bucket, lengths, strict=True)])
    columns = {
        "item_id": np.array(table.item_ids)[item],
        "bucket_start": pa.array(day.astype("datetime64[D]")),
        "units": table.units,
    }
    path = tmp_path_factory.mktemp("sales") / "sales.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def _run(*options: object) -> Result:
    return CliRunner().invoke(command, [str(option) for option in options])


def test_models_and_baselines_are_scored_side_by_side_and_written_down(sales: Path, tmp_path: Path) -> None:
    options = ("--origins", 2, "--stride", 7, "--prediction-length", 14, "--baselines", f"{_QUICK},auto_ets,lightgbm")
    result = _run("--series", sales, *options, "--baseline-series", 4, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert list(found["on_all"]) == ["shelfcast", "empirical", "seasonal_naive", "croston_sba"]
    assert list(found["on_sample"]) == [*found["on_all"], "auto_ets", "lightgbm"]
    assert found["lead"] == "shelfcast"
    assert len(found["origins"]) == 2
    # Of the item that is 20 days old nothing was known 21 days before the end; the later origin has it.
    assert found["on_all"]["shelfcast"]["targets"] == (found["series"] * 2 - 1) * 14
    assert found["on_sample"]["lightgbm"]["targets"] <= 4 * 2 * 14
    for scores in found["on_sample"].values():
        assert all(scores[name] is not None for name in ("mse", "mae", "mape", "wape", "r2", "sql", "wql", "mase"))
    assert json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8")) == found


def test_models_scaled_to_groups_stand_beside_the_models(sales: Path, tmp_path: Path) -> None:
    items = sorted(set(pq.read_table(sales)["item_id"].to_pylist()))
    static = tmp_path / "items.csv"
    static.write_text("item_id,category\n" + "".join(f"{item},{'ab'[i % 2]}\n" for i, item in enumerate(items)))
    options = ("--prediction-length", 14, "--baselines", "none", "--follow-groups", "--json")
    result = _run("--series", sales, "--static", static, *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])["on_sample"]
    assert list(found) == ["shelfcast", "shelfcast_scaled"]
    assert found["shelfcast"]["rmse"] != found["shelfcast_scaled"]["rmse"]
    assert found["shelfcast"]["wql"] == found["shelfcast_scaled"]["wql"], "quantiles of days stay as they are"
    without = _run("--series", sales, *options)
    assert without.exit_code == 1
    assert "--follow-groups: no item has a category or a brand" in without.output


def test_the_report_needs_no_other_file(sales: Path, tmp_path: Path) -> None:
    result = _run("--series", sales, "--prediction-length", 7, "--baselines", _QUICK, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)|@import|<script', page)
    assert page.count("<svg") >= 3 + 3  # three plots of everyone, and items
    for text in ("shelfcast", "croston_sba", "Calibration", "Error by horizon", "well forecast", "badly forecast"):
        assert text in page
    assert "WQL" in result.stdout


def test_models_have_names_and_baselines_can_stand_alone(sales: Path) -> None:
    common = ("--series", sales, "--prediction-length", 7, "--json")
    folder = shipped_model()
    both = _run(*common, "--model", f"a={folder}", "--model", f"b={folder}", "--baselines", "none")
    assert both.exit_code == 0, both.output
    scores = json.loads(both.stdout)["on_sample"]
    assert list(scores) == ["a", "b"]
    assert scores["a"] == scores["b"]
    alone = json.loads(_run(*common, "--model", "none", "--baselines", "empirical").stdout)
    assert list(alone["on_sample"]) == ["empirical"]
    assert alone["on_all"] == {}  # the sample is all there is


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--baselines", "arima"), "there are empirical, naive"),
        (("--model", "none", "--baselines", "none"), "nobody takes part"),
        (("--prediction-length", "29"), "at most 28 buckets of 1d"),
        (("--origins", "40"), "do not fit into 199 buckets of 1d: at most 7 do; lower --origins"),
        (("--model", "/nowhere"), "--model /nowhere: "),
        (("--model", "tsb=/nowhere"), "two contestants are called tsb"),
    ],
)
def test_what_cannot_be_done_is_said(sales: Path, options: tuple[str, ...], message: str) -> None:
    result = _run("--series", sales, *options)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())


def test_scores_over_origins_are_those_of_all_targets_together() -> None:
    table = made_table()
    origins = origins_of(table, 3, 7, 7)
    plan = Plan(origins, 7, 7, draw_sample(table, origins, 5, seed=1))
    found = evaluate(table, plan, [Group(empirical(), everywhere=True)])
    parts = [empirical().forecast(table, o.rows, o.running, 7)["empirical"] for o in origins]
    target = np.concatenate([targets(table, o.rows, o.running, 7) for o in origins])
    scale = np.concatenate([seasonal_scale(table, o.rows, o.running, 7) for o in origins])
    whole = type(parts[0])(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    result = found.results["empirical"]
    assert result.on_all is not None
    assert table_of(result.on_all) == pytest.approx(score_table(target, whole, scale))
    assert table_of(result.on_sample)["targets"] < table_of(result.on_all)["targets"]
    errors = result.series_error
    assert errors[:, 0].sum() / errors[:, 1].sum() == pytest.approx(table_of(result.on_sample)["mase"])
    assert [told.running for told in found.told] == [o.running for o in origins]


def test_an_origin_before_any_of_the_sample_had_begun_is_passed_over() -> None:
    table = made_table()
    origins = origins_of(table, 2, 21, 14)
    new = np.array([len(table) - 1])  # 20 days old
    found = evaluate(table, Plan(origins, 14, 7, new), [Group(empirical(), everywhere=False)])
    assert table_of(found.results["empirical"].on_sample)["targets"] == 14


def test_the_sample_is_seeded_and_has_only_series_with_targets() -> None:
    table = made_table(items=30)
    origins = origins_of(table, 1, 7, 7)
    drawn = draw_sample(table, origins, 10, seed=3)
    assert (
        drawn.tolist()
        == draw_sample(table, origins, 10, seed=3).tolist()
        != draw_sample(table, origins, 10, 4).tolist()
    )
    assert set(drawn) <= set(origins[0].rows)
    assert draw_sample(table, origins, 100, 0).tolist() == origins[0].rows.tolist()


def test_every_baseline_has_a_name_of_its_own() -> None:
    assert len(set(BASELINES)) == len(BASELINES) == 12
