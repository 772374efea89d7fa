"""A small backtest from recording to report, against a recomputation in plain Python."""

from __future__ import annotations

import datetime as dt
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rich.console import Console

from feature_store.recording_files import Recording
from tests.worker.recordings import Recorded, write_recording
from worker.backtest import BacktestOptions, command, run_backtest
from worker.backtest_report import write_report
from worker.backtest_variants import parse_variants
from worker.errors import BacktestError, SettingsError

_ORDERS, _CLICKS = "shop.orders.v1", "shop.clicks.v1"
_PARTITIONS = {_ORDERS: 3, _CLICKS: 3}
_ZONE = ZoneInfo("Europe/London")
_DAYS = 9
_START = dt.datetime(2026, 3, 24, tzinfo=_ZONE)  # clocks change on the sixth day
_SETTINGS = ("time_zone=Europe/London", "touched_freqs=1h", "refreshed_freqs=1d")


class Sale(NamedTuple):
    product_id: str
    time_ms: int
    units: int


def _ms(day: int, hour: float) -> int:
    """A local time of the shop."""
    moment = _START.replace(tzinfo=None) + dt.timedelta(days=day, hours=hour)
    return int(moment.replace(tzinfo=_ZONE).timestamp() * 1000)


def _sales() -> list[Sale]:
    rng = random.Random(7)
    found = [
        Sale(f"p{n}", _ms(day, 9 + 8 * rng.random()), rng.randint(1, 6))
        for day in range(_DAYS)
        for n in range(8)
        if rng.random() < 0.7
    ]
    return sorted(found, key=lambda sale: sale.time_ms)


def _order(sale: Sale, **fields: Any) -> Recorded:
    value = {"event_time": sale.time_ms, "product_id": sale.product_id, "quantity": sale.units, "unit_price": 2.0}
    return Recorded(_ORDERS, sale.product_id, value | fields, sale.time_ms)


@pytest.fixture(scope="module")
def sales() -> list[Sale]:
    return _sales()


@pytest.fixture(scope="module")
def recording(sales: list[Sale], tmp_path_factory: pytest.TempPathFactory) -> Recording:
    records = [_order(sale, event_id=f"e{n}") for n, sale in enumerate(sales)]
    again = sales[5]
    records += [
        _order(again, event_id="e5"),  # the producer sent it twice
        _order(sales[9], kind="cancel"),
        Recorded(_ORDERS, "p1", b"{", sales[12].time_ms),
        Recorded(_CLICKS, "p2", {"event_time": sales[3].time_ms, "product_id": "p2", "action": "view"}, _ms(4, 20.5)),
    ]
    path = tmp_path_factory.mktemp("recorded") / "shop"
    write_recording(path, sorted(records, key=lambda record: record.timestamp_ms), _PARTITIONS)
    return Recording.open(path)


class Ran(NamedTuple):
    summary: dict[str, Any]
    output: Path

    def kept(self, label: str) -> Iterator[dict[str, Any]]:
        for path in sorted((self.output / "forecasts" / label).glob("*.parquet")):
            yield from pq.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def ran(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Two baselines, in one process."""
    output = tmp_path_factory.mktemp("backtest")
    variants = parse_variants(["empirical", "seasonal_naive"], _SETTINGS, {}, recording)
    return Ran(run_backtest(recording, variants, BacktestOptions(output, processes=1, keep_forecasts=True)), output)


def _bucket(freq: str, time_ms: int) -> int:
    if freq == "1h":
        return time_ms // 3_600_000
    return dt.datetime.fromtimestamp(time_ms / 1000, _ZONE).date().toordinal()


def _bucket_end_ms(freq: str, bucket: int) -> int:
    if freq == "1h":
        return (bucket + 1) * 3_600_000
    after = dt.datetime.combine(dt.date.fromordinal(bucket + 1), dt.time(), _ZONE)
    return int(after.timestamp() * 1000)


class Outcome(NamedTuple):
    forecast: Mapping[str, Any]
    step: int
    units: float


def _outcomes(ran: Ran, label: str, sales: list[Sale], freq: str) -> list[Outcome]:
    """Every step of every forecast whose bucket has ended."""
    sold: Counter[tuple[str, int]] = Counter()
    for sale in sales:
        sold[sale.product_id, _bucket(freq, sale.time_ms)] += sale.units
    out = []
    for forecast in ran.kept(label):
        if forecast["freq"] == freq:
            running = _bucket(freq, forecast["cutoff_ms"])
            for step in range(len(forecast["mean"])):
                if _bucket_end_ms(freq, running + step) <= sales[-1].time_ms:
                    out.append(Outcome(forecast, step, sold[forecast["item_id"], running + step]))
    return out


def _row(ran: Ran, label: str, freq: str, steps: tuple[int, int]) -> dict[str, Any]:
    (variant,) = [v for v in ran.summary["variants"] if v["label"] == label]
    (row,) = [
        row
        for row in variant["accuracy"]
        if (row["freq"], row["kind"], (row["first_step"], row["last_step"])) == (freq, "all", steps)
    ]
    found: dict[str, Any] = row
    return found


@pytest.mark.parametrize(("freq", "steps"), [("1d", (1, 1)), ("1d", (2, 7)), ("1d", (1, 28)), ("1h", (1, 48))])
@pytest.mark.parametrize("label", ["A", "B"])
def test_every_forecast_is_scored_against_what_then_happened(
    ran: Ran, sales: list[Sale], label: str, freq: str, steps: tuple[int, int]
) -> None:
    outcomes = [o for o in _outcomes(ran, label, sales, freq) if steps[0] <= o.step + 1 <= steps[1]]
    total = sum(o.units for o in outcomes)
    errors = [o.forecast["mean"][o.step] - o.units for o in outcomes]
    found = _row(ran, label, freq, steps)
    assert found["targets"] == len(outcomes) > 0
    assert found["wape"] == pytest.approx(
        sum(abs(o.forecast["q50"][o.step] - o.units) for o in outcomes) / total, abs=2e-6
    )
    assert found["bias"] == pytest.approx(sum(errors) / total, abs=2e-6)
    assert found["rmse"] == pytest.approx((sum(e * e for e in errors) / len(errors)) ** 0.5, abs=2e-6)
    inside = [o.forecast["q10"][o.step] <= o.units <= o.forecast["q90"][o.step] for o in outcomes]
    assert found["coverage_80"] == pytest.approx(sum(inside) / len(inside), abs=2e-6)


def test_touched_items_get_hourly_forecasts_and_all_items_daily_ones_at_each_days_close(
    ran: Ran, sales: list[Sale]
) -> None:
    forecasts = list(ran.kept("A"))
    hourly = {(f["item_id"], f["cutoff_ms"]) for f in forecasts if f["freq"] == "1h"}
    ticks = {(sale.product_id, (sale.time_ms // 3_600_000 + 1) * 3_600_000) for sale in sales}
    # The click of the fourth day is the only other thing that touches an item.
    assert hourly - ticks == {("p2", _ms(4, 21))}
    assert ticks <= hourly
    first: dict[str, int] = {}
    for sale in sales:
        first.setdefault(sale.product_id, sale.time_ms)
    closes = [_ms(day, 0) + 5_000 for day in range(1, _DAYS)]
    expected = {(item, close) for item, time_ms in first.items() for close in closes if time_ms < close}
    assert {(f["item_id"], f["cutoff_ms"]) for f in forecasts if f["freq"] == "1d"} == expected


def test_what_a_lane_sets_aside_is_counted(ran: Ran, sales: list[Sale]) -> None:
    for variant in ran.summary["variants"]:
        assert variant["set_aside"] == {f"{_ORDERS}.dlq": 1}
        assert variant["events"] == len(sales) + 4


def test_changed_forecasts_are_counted_and_the_largest_differences_named(ran: Ran) -> None:
    medians = [{(f["item_id"], f["freq"], f["cutoff_ms"]): f["q50"] for f in ran.kept(label)} for label in ("A", "B")]
    assert medians[0].keys() == medians[1].keys()
    furthest = {
        key: max(abs(a - b) for a, b in zip(medians[0][key], medians[1][key], strict=True)) for key in medians[0]
    }
    (changes,) = ran.summary["changes"]
    assert (changes["a"], changes["b"]) == ("A", "B")
    assert (changes["compared"], changes["only_a"], changes["only_b"]) == (len(furthest), 0, 0)
    assert changes["changed"] == sum(distance >= 0.0005 for distance in furthest.values()) > 0
    named = [abs(row["median_a"] - row["median_b"]) for row in changes["largest"]]
    assert named == pytest.approx(sorted(furthest.values(), reverse=True)[: len(named)])
    for row in changes["largest"]:
        key = row["item_id"], row["freq"], row["cutoff_ms"]
        assert medians[0][key][row["step"] - 1] == row["median_a"]
        assert medians[1][key][row["step"] - 1] == row["median_b"]


def test_the_summary_and_the_report_are_written(ran: Ran) -> None:
    assert json.loads((ran.output / "backtest.json").read_text()) == ran.summary
    report = (ran.output / "report.html").read_text()
    assert report.count("<svg") == 2 + 3  # error, calibration, and a good, a median and a bad item
    assert "http" not in report.replace("http://www.w3.org", "").replace("https://www.w3.org", "")
    assert ran.summary["changes"][0]["largest"][0]["item_id"] in report


def test_several_processes_find_the_same(recording: Recording, ran: Ran, tmp_path: Path) -> None:
    variants = parse_variants(["empirical"], _SETTINGS, {}, recording)
    summary = run_backtest(recording, variants, BacktestOptions(tmp_path, processes=2))
    (found,), expected = summary["variants"], ran.summary["variants"][0]
    assert found["forecasts"] == expected["forecasts"]
    for row, other in zip(found["accuracy"], expected["accuracy"], strict=True):
        assert row == pytest.approx(other, abs=2e-6)
    assert not (tmp_path / "forecasts").exists()


def test_the_report_names_settings_of_all_variants_once_and_then_each_variants_own(ran: Ran, tmp_path: Path) -> None:
    first, second = ran.summary["variants"]
    second = second | {"settings": second["settings"] | {"touched_freqs": "1h,1d", "live_days": "60"}}
    write_report(tmp_path / "report.html", ran.summary | {"variants": [first, second]}, [])
    report = (tmp_path / "report.html").read_text()
    common, of_first, of_second = (re.findall("<code>(.*?)</code>", part) for part in re.split('class="dot"', report))
    assert common == ["time_zone=Europe/London", "refreshed_freqs=1d"]
    assert of_first == ["touched_freqs=1h"]
    assert of_second == ["touched_freqs=1h,1d", "live_days=60"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminal_is_shown_the_event_time_reached_and_forecasts_made(
    recording: Recording, tmp_path: Path, processes: int
) -> None:
    variants = parse_variants(["empirical"], _SETTINGS, {}, recording)
    options = BacktestOptions(tmp_path, processes=processes, until_ms=_ms(7, 0))
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    summary = run_backtest(recording, variants, options, bar_console=terminal)
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "starting" in shown
    assert "2026-03-30 22:00 UTC" in shown  # the last hour to close before it was to stop
    assert f"{summary['variants'][0]['forecasts']} forecasts" in shown


def test_nothing_is_shown_where_there_is_no_terminal(recording: Recording, tmp_path: Path) -> None:
    variants = parse_variants(["none"], _SETTINGS, {}, recording)
    file = Console(file=io.StringIO())
    run_backtest(recording, variants, BacktestOptions(tmp_path, processes=1), bar_console=file)
    assert file.file.getvalue() == ""  # type: ignore[attr-defined]


def test_without_a_model_everything_is_counted_and_nothing_forecast(recording: Recording, tmp_path: Path) -> None:
    variants = parse_variants(["none"], _SETTINGS, {}, recording)
    (found,) = run_backtest(recording, variants, BacktestOptions(tmp_path, processes=1))["variants"]
    assert (found["events"], found["forecasts"]) == (sum(map(recording.rows, recording.topics)), 0)
    assert found["set_aside"] == {f"{_ORDERS}.dlq": 1}


def test_forecasts_begin_and_end_where_asked_and_see_what_came_before(
    recording: Recording, ran: Ran, tmp_path: Path
) -> None:
    variants = parse_variants(["empirical"], _SETTINGS, {}, recording)
    options = BacktestOptions(tmp_path, processes=1, from_ms=_ms(6, 0), until_ms=_ms(7, 0), keep_forecasts=True)
    part = Ran(run_backtest(recording, variants, options), tmp_path)
    found = {(f["item_id"], f["cutoff_ms"]): f["mean"] for f in part.kept("A") if f["freq"] == "1d"}
    whole = {(f["item_id"], f["cutoff_ms"]): f["mean"] for f in ran.kept("A") if f["freq"] == "1d"}
    assert {cutoff for _, cutoff in found} == {_ms(6, 0) + 5_000}
    assert found == {key: mean for key, mean in whole.items() if key[1] == _ms(6, 0) + 5_000}


def test_the_command_prints_the_accuracy_and_where_the_report_is(recording: Recording, tmp_path: Path) -> None:
    arguments = [str(recording.path), "--model", "empirical", "--processes", "1", "--output", str(tmp_path / "out")]
    sets = [text for setting in _SETTINGS for text in ("--set", setting)]
    done = CliRunner().invoke(command, [*arguments, *sets], catch_exceptions=False)
    assert done.exit_code == 0
    assert "accuracy by horizon" in done.output
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("models", "sets", "message"),
    [
        (["no_such_folder"], [], "--model no_such_folder: not a model"),
        ([], ["live_days"], "--set live_days: write name=value"),
        ([], ["redis_url=redis://elsewhere"], "a backtest sets redis_url itself"),
        ([], ["topic_orders=other", "topic_clicks=another"], "holds none of the input topics"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(
    recording: Recording, models: list[str], sets: list[str], message: str
) -> None:
    with pytest.raises(BacktestError, match=message):
        parse_variants(models, sets, {}, recording)


def test_an_unknown_setting_is_refused(recording: Recording) -> None:
    with pytest.raises(SettingsError, match="SHELFCAST_NO_SUCH is not a setting"):
        parse_variants(["none"], ["no_such=1"], {}, recording)


def test_settings_hold_for_all_variants_or_for_one(recording: Recording) -> None:
    sets = ["live_days=30", "B:live_days=60", "C:time_zone=Asia/Tokyo"]
    a, b, c = parse_variants(["empirical", "none"], sets, {}, recording)
    assert [v.label for v in (a, b, c)] == ["A", "B", "C"]
    assert [v.model for v in (a, b, c)] == ["empirical", "none", "none"]
    assert [v.settings.live_days for v in (a, b, c)] == [30, 60, 30]
    assert [v.settings.time_zone for v in (a, b, c)] == ["UTC", "UTC", "Asia/Tokyo"]
    assert {v.settings.partition_count for v in (a, b, c)} == {3}
