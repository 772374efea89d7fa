"""`shelfcast forecast` against the shipped model, a model with covariates, and a real Triton."""

from __future__ import annotations

import datetime as dt
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from pyarrow import csv

from feature_store.calendar_time import bucket_start_ms
from forecaster.contract import MODEL_NAME, QUANTILE_LEVELS, WINDOWS, Covariates
from forecaster.inputs import ModelOutputs
from forecaster.models.gbm import GbmModel
from forecaster.models.gbm_training import GbmPlan, train
from forecaster.models.patch_layers import PatchTransformerConfig
from forecaster.models.patch_transformer import PatchTransformer
from forecaster.predictor import load_model
from forecaster.recorded_series import counted_series
from forecaster.series import SeriesTable
from forecaster.table_files import Layout, read_series
from tests.forecaster.builders import ZONE, small_shop
from tests.forecaster.tables import write_table
from tests.worker.recordings import Recorded, write_recording
from worker.cli import shelfcast
from worker.local_triton import MODEL_REPOSITORY, LocalTriton

SHIPPED = MODEL_REPOSITORY / MODEL_NAME / "1"
QUANTILES = [f"q{level:g}" for level in QUANTILE_LEVELS]
MONDAY = dt.date(2024, 3, 4)


def run(*options: object) -> Result:
    return CliRunner().invoke(shelfcast, ["forecast", *map(str, options)], catch_exceptions=False)


@functools.cache
def counts(freq: str) -> SeriesTable:
    shop = small_shop()
    return counted_series(shop.batch, freq, ZONE, end_ms=shop.end_ms)


def series_file(folder: Path, freq: str) -> Path:
    """The invented shop's counts, as a table."""
    table = counts(freq)
    item = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    bucket = np.arange(len(item)) - table.offsets[item] + table.first_bucket[item]
    return write_table(
        folder / f"{freq}.parquet",
        item_id=[table.item_ids[i] for i in item],
        bucket_start=pa.array(bucket_start_ms(freq, bucket, ZONE)),
        units=pa.array(table.units),
        **{name: pa.array(column) for name, column in table.columns.items()},
    )


def assert_holds(written: Any, items: tuple[str, ...], expected: ModelOutputs) -> None:
    """A file of forecasts, item by item and step by step."""
    steps = expected.mean.shape[1]
    assert written["item_id"].to_pylist() == [item for item in items for _ in range(steps)]
    assert written["step"].to_pylist() == [*range(1, steps + 1)] * len(items)
    assert numbers(written, "mean").tolist() == expected.mean.ravel().tolist()
    for place, name in enumerate(QUANTILES):
        assert numbers(written, name).tolist() == expected.quantiles[:, :, place].ravel().tolist()


def numbers(table: Any, name: str) -> NDArray[np.float32]:
    return np.array(table[name].to_pylist(), dtype=np.float32)


@pytest.mark.parametrize("freq", ["1h", "1d"])
def test_the_file_holds_the_very_forecasts_of_the_shipped_model(tmp_path: Path, freq: str) -> None:
    source = series_file(tmp_path, freq)
    result = run("--series", source, "--freq", freq, "--time-zone", ZONE, "--output", tmp_path / "out.parquet")
    assert result.exit_code == 0, result.output
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.column_names == ["item_id", "bucket_start", "step", "mean", *QUANTILES]
    table = read_series(source, freq, ZONE)
    rows, steps = np.arange(len(table)), WINDOWS[freq].max_prediction_length
    window = table.windows(rows, table.end_bucket, steps)
    assert_holds(written, table.item_ids, load_model(SHIPPED).forecast(window.inputs))
    end = int(table.end_bucket[0])
    if freq == "1d":
        assert written["bucket_start"][0].as_py() == dt.date(1970, 1, 1) + dt.timedelta(days=end)
    else:
        assert written["bucket_start"][1].as_py() == dt.datetime.fromtimestamp((end + 1) * 3600, dt.UTC)
    assert f"{len(table)} items x {steps} buckets of {freq} from " in result.output
    assert "by demand_forecaster/1" in result.output


def test_triton_gives_the_very_same_file(tmp_path: Path, triton_server: LocalTriton) -> None:
    source = series_file(tmp_path, "1d")
    options = ("--series", source, "--time-zone", ZONE, "--prediction-length", 7)
    for name, more in (("own", ()), ("triton", ("--triton", triton_server.url))):
        result = run(*options, *more, "--output", tmp_path / f"{name}.parquet")
        assert result.exit_code == 0, result.output
    own, served = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("own", "triton"))
    assert own.equals(served)
    assert own.num_rows == 7 * len(counts("1d"))


def test_what_comes_from_the_cutoff_on_is_not_looked_at(tmp_path: Path) -> None:
    """The same as of a table that ends there; items that begin later are left out, and that is said."""
    table = counts("1d")
    running = int(np.sort(table.first_bucket)[-2])
    cutoff = dt.date(1970, 1, 1) + dt.timedelta(days=running)
    whole = series_file(tmp_path, "1d")
    rows = pq.read_table(whole)
    kept = np.array(rows["bucket_start"].to_pylist()) < int(bucket_start_ms("1d", np.array([running]), ZONE)[0])
    pq.write_table(rows.filter(pa.array(kept.tolist())), tmp_path / "past.parquet")
    options = ("--time-zone", ZONE, "--prediction-length", 5)
    cut = run("--series", whole, *options, "--cutoff", cutoff.isoformat(), "--output", tmp_path / "cut.parquet")
    past = run("--series", tmp_path / "past.parquet", *options, "--output", tmp_path / "of_past.parquet")
    assert cut.exit_code == past.exit_code == 0, cut.output + past.output
    assert pq.read_table(tmp_path / "cut.parquet").equals(pq.read_table(tmp_path / "of_past.parquet"))
    later = int((table.first_bucket >= running).sum())
    assert f"{later} items begin later than {cutoff}: not forecast" in cut.output


def weekly_shop(folder: Path) -> tuple[Path, Path]:
    """Weeks that begin on Fridays, with a covariate of the past and one that is known ahead."""
    rng = np.random.default_rng(2)
    snow = rng.integers(0, 2, 240)
    weeks = [dt.date(2022, 1, 7) + dt.timedelta(weeks=w) for w in range(80)]
    series = write_table(
        folder / "weekly.csv",
        item_id=[item for item in "abc" for _ in weeks],
        bucket_start=weeks * 3,
        units=(1 + rng.poisson(5, 240) + 20 * snow).tolist(),
        heat=rng.normal(20, 5, 240).tolist(),
        snow=snow.tolist(),
    )
    ahead = [weeks[-1] + dt.timedelta(weeks=w) for w in range(1, 5)]
    return series, write_table(folder / "ahead.csv", bucket_start=ahead, snow=[1, 0, 1, 1])


def trained_trees(series: Path, ahead: Path) -> GbmModel:
    """A few trees, of a few cutoffs."""
    table = read_series(series, "1w", future=ahead)
    covariates = Covariates(("heat",), ("snow",))
    cutoffs = [table.windows(np.arange(3), table.first_bucket + week, 4, covariates) for week in range(20, 76, 2)]
    plan = GbmPlan(mean_trees=20, quantile_trees=20, least_rows=3, levels=(0.1, 0.5, 0.9))
    return train({"1w": cutoffs[:-4]}, {"1w": cutoffs[-4:]}, plan, covariates)


def test_a_model_with_covariates_is_given_those_of_past_and_future(tmp_path: Path) -> None:
    series, ahead = weekly_shop(tmp_path)
    trained_trees(series, ahead).save(tmp_path / "own")
    options = ("--series", series, "--freq", "1w", "--prediction-length", 4, "--model", tmp_path / "own")
    result = run(*options, "--future", ahead, "--output", tmp_path / "out.csv")
    assert result.exit_code == 0, result.output
    written = csv.read_csv(tmp_path / "out.csv")
    # The next week, named as the table names its own: by its Friday.
    assert written["bucket_start"].to_pylist()[:2] == [dt.date(2023, 7, 21), dt.date(2023, 7, 28)]
    table = read_series(series, "1w", future=ahead, layout=Layout(horizon=4))
    window = table.windows(np.arange(3), table.end_bucket, 4, Covariates(("heat",), ("snow",)))
    assert window.inputs.known[0, -4:, -1].tolist() == [1, 0, 1, 1]
    expected = load_model(tmp_path / "own").forecast(window.inputs)
    assert numbers(written, "q0.5") == pytest.approx(expected.quantiles[:, :, 9].ravel(), rel=1e-5)
    unknown = run(*options, "--output", tmp_path / "unknown.csv")
    assert unknown.exit_code == 0
    assert csv.read_csv(tmp_path / "unknown.csv")["q0.5"] != written["q0.5"]
    bare = write_table(
        tmp_path / "bare.csv", item_id=["a"] * 9, bucket_start=[MONDAY + dt.timedelta(weeks=w) for w in range(9)],
        units=range(9), wind=range(9),
    )  # fmt: skip
    result = run("--series", bare, *options[2:], "--output", tmp_path / "bare_out.csv")
    assert "was trained with heat, snow, which these series lack" in result.output
    assert "does not look at wind" in result.output


def test_means_follow_groups_of_items_when_asked(tmp_path: Path) -> None:
    source, static = series_file(tmp_path, "1d"), tmp_path / "items.csv"
    static.write_text("item_id,category\n" + "".join(f"{item},all\n" for item in counts("1d").item_ids))
    asked = ("--series", source, "--time-zone", ZONE, "--static", static, "--output")
    assert run(*asked, tmp_path / "plain.parquet").exit_code == 0
    assert run(*asked, tmp_path / "scaled.parquet", "--follow-groups").exit_code == 0
    plain, scaled = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("plain", "scaled"))
    factor = (numbers(scaled, "mean") / numbers(plain, "mean")).reshape(-1, WINDOWS["1d"].max_prediction_length)
    assert np.allclose(factor, factor[0], rtol=1e-4), "items of a group are scaled alike"
    assert not np.allclose(factor, 1, atol=0.01)
    assert scaled["q0.5"] == plain["q0.5"]
    nameless = run("--series", source, "--time-zone", ZONE, "--output", tmp_path / "no.parquet", "--follow-groups")
    assert nameless.exit_code == 1
    assert "no item has a category or a brand" in nameless.output
    assert not (tmp_path / "no.parquet").exists()


def test_a_recording_is_forecast_from_its_last_whole_bucket_on(tmp_path: Path) -> None:
    start_ms = 1_709_510_400_000  # 4 March 2024
    records = [
        Recorded("shop.orders.v1", item, {"event_time": t, "product_id": item, "quantity": 2, "unit_price": 3}, t)
        for item, every in (("a", 7), ("b", 30))
        for t in range(start_ms, start_ms + 240 * 3_600_000, every * 3_600_000)
    ]
    write_recording(tmp_path / "r", records, {"shop.orders.v1": 2})
    result = run("--recording", tmp_path / "r", "--prediction-length", 3, "--output", tmp_path / "out.parquet")
    assert result.exit_code == 0, result.output
    written = pq.read_table(tmp_path / "out.parquet")
    assert sorted(set(written["item_id"].to_pylist())) == ["a", "b"]
    assert written["bucket_start"].to_pylist()[:3] == [dt.date(2024, 3, day) for day in (13, 14, 15)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prediction-length", "29"), "--prediction-length 29: 28 buckets of 1d are the most"),
        (("--cutoff", "2024-03-05T07:00"), "not the start of a bucket of 1d: that begins at 2024-03-05"),
        (("--cutoff", "2024-04-01"), "the series end at 2024-03-14"),
        (("--cutoff", "2024-03-04"), "no item was sold before 2024-03-04"),
        (("--model", "EMPTY"), "can't be loaded"),
        (("--model", "EMPTY", "--triton", "127.0.0.1:1"), "--model and --triton are two models"),
        (("--output", "out.xlsx"), r"ends in .parquet or .csv"),
        (("--output", "EMPTY/series.csv/out.csv"), "series.csv"),
    ],
)
def test_what_can_not_be_is_one_line_and_leaves_no_file(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    days = [MONDAY + dt.timedelta(days=n) for n in range(10)]
    source = write_table(tmp_path / "series.csv", item_id=["a"] * 10, bucket_start=days, units=range(1, 11))
    output = () if "--output" in options else ("--output", tmp_path / "out.csv")
    result = run("--series", source, *output, *(o.replace("EMPTY", str(tmp_path)) for o in options))
    assert result.exit_code != 0
    assert message in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["series.csv"]


def test_a_frequency_that_the_model_was_not_trained_for_is_named(tmp_path: Path) -> None:
    config = PatchTransformerConfig(width=16, layers=1, heads=2, step_width=8, freqs=["1w"])
    PatchTransformer(config).save_pretrained(tmp_path / "weekly")
    source = write_table(tmp_path / "s.csv", item_id=["a"], bucket_start=[MONDAY], units=[1])
    result = run("--series", source, "--model", tmp_path / "weekly", "--output", tmp_path / "out.csv")
    assert result.exit_code == 1
    assert "weekly forecasts 1w, not 1d: name another model" in result.output
