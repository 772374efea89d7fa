"""`shelfcast train` end to end: real processes, real signals, seconds of training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from feature_store.calendar_time import bucket_start_ms
from forecaster import contract, train
from forecaster.accuracy import pinball as scored_pinball
from forecaster.dataset import Window
from forecaster.fitting import Losses
from forecaster.loader import tensors_of
from forecaster.models.loss import loss, pinball
from forecaster.models.patch_layers import PatchTransformerConfig
from forecaster.models.patch_transformer import PatchTransformer, Scaled, load
from forecaster.predictor import load_model
from forecaster.run_folder import RunFolder, save_model
from forecaster.series import SeriesTable
from forecaster.synthetic_series import generate_series
from forecaster.training_data import rehearsal
from tests.forecaster.builders import ZONE, random_inputs, small_table

ROOT = Path(__file__).parents[2]
SLICE = ROOT / "worker" / "demo_data" / "online_retail_ii_march_2011.parquet"
TINY = ["--width", "16", "--layers", "1", "--heads", "2", "--batch", "8", "--validate-every", "10", "--quiet"]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small table as a file."""
    table = small_table()
    counts = np.diff(table.offsets)
    day = np.concatenate([first + np.arange(n) for first, n in zip(table.first_bucket, counts, strict=True)])
    columns = {
        "item_id": np.repeat(table.item_ids, counts),
        "bucket_start": bucket_start_ms("1d", day, ZONE),
        "units": table.units,
        "unit_price": table.columns["unit_price"],
    }
    path = tmp_path_factory.mktemp("series") / "sales.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with an untrained model of days and hours."""
    torch.manual_seed(5)
    folder = tmp_path / "tiny"
    save_model(PatchTransformer(PatchTransformerConfig(width=16, layers=1, heads=2, step_width=8)), folder)
    return folder


def invoke(*options: object) -> Result:
    return CliRunner().invoke(train.command, [str(option) for option in options])


def of_series(series: Path) -> list[str]:
    return ["--series", str(series), "--time-zone", ZONE, "--workers", "0"]


def started(*options: object, **kwargs: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "worker", "train", *map(str, options)]
    # One thread: two that wait for each other are slow where tests run beside each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )


def test_a_run_interrupted_by_ctrl_c_goes_on_to_the_same_bits(tmp_path: Path, series: Path) -> None:
    options = ["--series", series, "--time-zone", ZONE, *TINY, "--steps", 80, "--checkpoint-every", 5]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    # As a terminal does it: to all processes of the group, those that draw batches too.
    process = started(*options, "--output", parted, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (parted / "checkpoints" / "step-00000005").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGINT, told
    assert f"shelfcast train --output {parted} --resume" in told
    summary = json.loads((parted / "training.json").read_text())
    assert summary["status"] == "interrupted"
    assert str(parted / "checkpoints" / f"step-{summary['steps']:08d}") in told
    assert np.isfinite(load_model(parted).forecast(random_inputs("1d", 2, 0)).quantiles).all()

    for rest in (["--output", parted, "--resume"], [*options, "--output", whole]):
        ended = started(*rest)
        text = ended.communicate(timeout=120)[0]
        assert ended.returncode == 0, text
    for name in ("model.safetensors", "checkpoints/step-00000080/state.safetensors"):
        one, other = load_file(whole / name), load_file(parted / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_two_processes_train_one_model(tmp_path: Path, series: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = [*of_series(series), *TINY, "--steps", "12", "--output", str(tmp_path / "run"), "--cpu"]
    done = subprocess.run(
        [*launch, "--module", "worker", "train", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (summary["status"], summary["device"], summary["steps"]) == ("finished", "2 × cpu", 12)
    assert done.stdout.count("parameters on 2 × cpu") == 1  # one of them speaks
    assert load(tmp_path / "run").config.freqs == ["1d"]


def test_the_run_says_what_it_was_made_with(tmp_path: Path, series: Path) -> None:
    result = invoke(
        *of_series(series), *TINY, "--steps", 20, "--output", tmp_path, "--seed", 4, "--until", "2025-04-09"
    )
    assert result.exit_code == 0, result.output
    summary = RunFolder(tmp_path).summary()
    assert summary["arguments"]["until"] == "2025-04-09"
    assert summary["arguments"]["series"] == str(series)
    assert (summary["seed"], summary["steps"], summary["status"]) == (4, 20, "finished")
    assert summary["model"]["features_hash"] == contract.features_hash()
    assert summary["scores"]["1d"] == summary["validation_loss"]
    assert summary["versions"]["torch"] == torch.__version__
    assert load(tmp_path).config.features_hash == contract.features_hash()


def test_fine_tuning_begins_with_the_weights_it_is_given(tmp_path: Path, series: Path, tiny: Path) -> None:
    options = [*of_series(series), "--batch", 8, "--quiet", "--validate-every", 1, "--steps", 1]
    result = invoke(*options, "--from", tiny, "--output", tmp_path / "tuned", "--learning-rate", 1e-12)
    assert result.exit_code == 0, result.output
    before, after = load(tiny).state_dict(), load(tmp_path / "tuned").state_dict()
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    assert invoke(*options, "--from", tiny, "--output", tmp_path / "other").exit_code == 0
    assert not all(torch.equal(v, before[n]) for n, v in load(tmp_path / "other").state_dict().items())


def test_the_shipped_weights_can_be_fine_tuned(tmp_path: Path, series: Path) -> None:
    options = [*of_series(series), "--batch", 4, "--quiet", "--steps", 1, "--from", "shipped", "--output", tmp_path]
    result = invoke(*options)
    assert result.exit_code == 0, result.output
    assert load(tmp_path).config.width > 16


def test_weights_tuned_to_less_than_two_years_of_weeks_rehearse_whole_years(tmp_path: Path) -> None:
    weeks = np.arange(0, 60, 1)
    starts = np.datetime64("2024-01-01") + 7 * weeks
    sold = [("a", 3), ("b", 9)]
    columns = {
        "item_id": np.repeat([item for item, _ in sold], len(weeks)),
        "bucket_start": pa.array(np.tile(starts, len(sold)).astype("datetime64[D]")),
        "units": np.concatenate([np.full(len(weeks), units) for _, units in sold]),
    }
    path = tmp_path / "weeks.parquet"
    pq.write_table(pa.table(columns), path)
    options = ("--series", path, "--freq", "1w", "--from", "shipped", "--steps", 1, "--workers", 0, "--batch", 8)
    for folder, more, rehearses in (("short", (), True), ("alone", ("--synthetic", 0), False)):
        result = invoke(*options, *more, "--output", tmp_path / folder)
        assert result.exit_code == 0, result.output
        names = [source["name"] for source in RunFolder(tmp_path / folder).summary()["data"]["sources"]]
        assert names[0] == "weeks.parquet"
        assert (len(names) > 1) is rehearses


def test_who_has_two_years_of_weeks_needs_no_rehearsal() -> None:
    def table(weeks: int) -> SeriesTable:
        return generate_series(5, 7 * (weeks + 2), 1, "1w")

    assert rehearsal(table(90), 0).sources
    assert not rehearsal(table(110), 0).sources
    assert rehearsal(table(110), 0, int(table(110).end_bucket.max()) - 20).sources
    assert not rehearsal(small_table(), 0).sources, "of days a year and a month is seen at once"


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision_trains(tmp_path: Path, series: Path, precision: str) -> None:
    options = [*of_series(series), *TINY, "--steps", 20, "--output", tmp_path, "--precision", precision]
    process = started(*options)  # its own: accelerate keeps to one precision in a process
    told = process.communicate(timeout=120)[0]
    assert process.returncode == 0, told
    assert load(tmp_path).state_dict()["norm.weight"].dtype == torch.float32
    assert RunFolder(tmp_path).summary()["validation_loss"] is not None


def test_trees_are_trained_by_the_same_command(tmp_path: Path, series: Path) -> None:
    result = invoke(*of_series(series), "--model", "gbm", "--steps", 3, "--batch", 4, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert load_model(tmp_path).freqs == ("1d",)
    assert RunFolder(tmp_path).summary()["scores"]["1d"] > 0
    refused = invoke(*of_series(series), "--model", "gbm", "--held-out", 0, "--output", tmp_path / "other")
    assert refused.exit_code == 2
    assert "--held-out" in refused.output


def test_trees_teach_a_transformer(tmp_path: Path, series: Path) -> None:
    trees, run = tmp_path / "trees", tmp_path / "run"
    assert invoke(*of_series(series), "--model", "gbm", "--steps", 3, "--batch", 4, "--output", trees).exit_code == 0
    result = invoke(*of_series(series), *TINY, "--steps", 4, "--teacher", trees, "--output", run)
    assert result.exit_code == 0, result.output
    assert load(run).config.freqs == ["1d"]
    alone = invoke(*of_series(series), *TINY, "--steps", 4, "--output", tmp_path / "alone")
    assert alone.exit_code == 0, alone.output
    fingerprints = [RunFolder(folder).summary()["data"]["fingerprint"] for folder in (run, tmp_path / "alone")]
    assert fingerprints[0] != fingerprints[1], "who is taught learns from other units"
    weekly = ["--synthetic", 40, "--freq", "1w", "--workers", 0]
    refused = invoke(*weekly, *TINY, "--teacher", trees, "--output", tmp_path / "weeks")
    assert refused.exit_code == 2, refused.output
    assert "forecast 1d" in refused.output


def test_invented_shops_alone_are_enough(tmp_path: Path) -> None:
    result = invoke("--synthetic", 40, *TINY, "--steps", 2, "--output", tmp_path, "--workers", 0, "--freq", "1d")
    assert result.exit_code == 0, result.output
    assert load(tmp_path).config.freqs == ["1d"]


def test_what_can_not_be_is_said(tmp_path: Path, series: Path, tiny: Path) -> None:
    out = ["--output", tmp_path / "run"]
    refused = {
        "nothing to train on": ["--synthetic", 0, *out],
        "--until goes with": ["--until", "2025-01-01", *out],
        "--held-out goes with --series": ["--held-out", 3, *out],
        "one frequency": [*of_series(series), "--freq", "1d", "--freq", "1h", *out],
        "too few are left": [*of_series(series), "--held-out", 500, *out],
        "can't be split among": [*of_series(series), "--width", 10, "--heads", 4, *out],
        "holds no training run": [*out, "--resume"],
        "forecast 1h and 1d, not 1w": ["--synthetic", 40, "--freq", "1w", "--from", tiny, *out],
        "holds no patch_transformer": [*of_series(series), "--from", tmp_path, *out],
        "--resume, --from and --teacher are for": [*of_series(series), "--model", "gbm", "--from", "shipped", *out],
        "of another family": [*of_series(series), "--teacher", tiny, *out],
        "holds no trees": [*of_series(series), "--teacher", tmp_path, *out],
    }
    for text, options in refused.items():
        result = invoke(*options)
        assert result.exit_code in (1, 2), (text, result.output)
        assert text in " ".join(result.output.split()), result.output
    assert not RunFolder(tmp_path / "run").holds_a_run


def test_a_run_is_not_overwritten_nor_gone_on_with_otherwise(tmp_path: Path, series: Path) -> None:
    out = ["--output", tmp_path / "run"]
    begun = [*of_series(series), *TINY, "--steps", 2, *out]
    assert invoke(*begun).exit_code == 0
    assert "holds a run" in invoke(*begun).output
    other_seed = invoke(*out, "--resume", "--seed", 9)
    assert other_seed.exit_code == 2
    assert "begun with --seed 0" in other_seed.output
    longer = invoke(*out, "--resume", "--steps", 4, "--seed", 0)
    assert longer.exit_code == 0, longer.output
    assert RunFolder(tmp_path / "run").summary()["steps"] == 4
    table = pq.read_table(series)
    kept = series.read_bytes()
    try:
        pq.write_table(table.slice(0, len(table) - 400), series)
        changed = invoke(*out, "--resume", "--steps", 6)
    finally:
        series.write_bytes(kept)
    assert changed.exit_code == 1
    assert "no longer what" in changed.output


def test_pinball_agrees_with_the_score() -> None:
    rng = np.random.default_rng(0)
    target, quantiles = rng.random((3, 4)), rng.random((3, 4, 19))
    levels = torch.tensor(contract.QUANTILE_LEVELS, dtype=torch.float64)
    trained_on = pinball(torch.from_numpy(target), torch.from_numpy(quantiles), levels).numpy()
    scored = scored_pinball(target, quantiles, contract.QUANTILE_LEVELS).mean(axis=-1) / 2
    assert trained_on == pytest.approx(scored)


def test_the_means_loss_is_least_at_the_mean_of_skewed_demand() -> None:
    demand = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 9.0])[:, None]  # mean 10 / 6, median 0

    def by_mean(mean: float) -> float:
        levels = len(contract.QUANTILE_LEVELS)
        nothing = torch.zeros(6, 1, levels)
        one = torch.ones(6, 1)
        scaled = Scaled(nothing, torch.full((6, 1), float(np.log(mean))), nothing, one, one, one, one)
        return float(loss(scaled, torch.zeros(6), demand, demand).mean)

    losses = {mean: by_mean(mean) for mean in (0.5, 1.0, 10 / 6, 2.5, 4.0)}
    assert min(losses, key=lambda mean: losses[mean]) == 10 / 6


def test_unknown_targets_do_not_touch_the_loss() -> None:
    torch.manual_seed(0)
    model = PatchTransformer(PatchTransformerConfig(width=16, layers=1, heads=2, step_width=8)).eval()
    inputs = random_inputs("1d", 3, 0)
    units = np.abs(np.random.default_rng(0).normal(20, 9, (3, 28))).astype(np.float32) + inputs.running[:, :1]
    window = Window(inputs, units.copy(), np.cumsum(units, axis=1, dtype=np.float32))
    window.units[:, 10:] = np.nan
    window.cumulative_units[:, 10:] = np.nan
    total = float(Losses(model)(*tensors_of(window)).total.detach())
    assert np.isfinite(total)
    window.cumulative_units[:, 20:] = 1e6  # units are still unknown there
    assert float(Losses(model)(*tensors_of(window)).total.detach()) == total
