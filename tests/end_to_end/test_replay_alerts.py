"""A recording replayed twice raises the same alerts, whatever is killed; a backtest raises them too."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import urllib.request
from pathlib import Path

import msgspec
import pytest

from feature_store.recording_files import Recording
from tests.chaos.doomed_worker import DoomedWorker
from tests.chaos.seams import ALERT_SENT, CrashPoint
from tests.end_to_end.order_stream import wait_until
from tests.end_to_end.recordings import HOUR_MS, Written, write_recording
from tests.end_to_end.test_replay_equality import assert_same
from worker.backtest import BacktestOptions, run_backtest
from worker.backtest_variants import parse_variants
from worker.local_stack import LocalStack
from worker.local_worker import LocalWorker
from worker.schemas import Alert
from worker.testing import RawForecast, ReplayRun

_BEGIN = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)  # a Monday
_OPEN, _SELLING = range(8, 20), range(9, 13)
_DAYS, _SPIKE, _SILENCE = 16, (14, range(10, 12)), (15, range(10, 17))  # a day, and hours of it
_MUG = "mug"
_SETTINGS = {
    "SHELFCAST_TIME_ZONE": "UTC",
    "SHELFCAST_FORECAST_FREQS": "1h",
    "SHELFCAST_REFRESHED_FREQS": "",  # a forecast of each item and hour of two weeks would take minutes
    "SHELFCAST_KAFKA_SESSION_TIMEOUT_S": "3",
}


def _events(day: int, hour: int) -> list[tuple[str, str, int]]:
    """Source, product and number of an hour's events. What is only clicked on has no forecasts, so it costs little."""
    clicks = 0 if day == _SILENCE[0] and hour in _SILENCE[1] else 12
    mugs = 120 if day == _SPIKE[0] and hour in _SPIKE[1] else 12
    return [("clicks", "window", clicks), *([("orders", _MUG, mugs)] if hour in _SELLING else [])]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Two weeks of a shop: a rush on the last day but one, and on the last its click tracker dies for hours."""
    records = []
    for day, hour in itertools.product(range(_DAYS), _OPEN):
        begin_ms = int((_BEGIN + dt.timedelta(days=day, hours=hour)).timestamp() * 1000)
        for source, product, count in _events(day, hour):
            for n in range(count):
                when_ms = begin_ms + n * HOUR_MS // count
                more = {"action": "view"} if source == "clicks" else {"quantity": 1, "unit_price": 3}
                value = msgspec.json.encode({"event_time": when_ms, "product_id": product, **more})
                records.append(Written(source, product, value, when_ms))
    records.sort(key=lambda record: record.timestamp_ms)
    return write_recording(tmp_path_factory.mktemp("recording") / "shop", records)


def _alerts(raw: list[RawForecast]) -> list[Alert]:
    return [msgspec.json.decode(message.value or b"", type=Alert) for message in raw]


def _hour(time_ms: int) -> tuple[int, int]:
    found = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC) - _BEGIN
    return found.days, found.seconds // 3600


def _counted(worker: LocalWorker) -> str:
    with urllib.request.urlopen(f"http://{worker.address}/metrics", timeout=10) as response:
        return str(response.read().decode())


def test_two_replays_and_a_backtest_raise_the_same_alerts_though_workers_are_killed(
    stack: LocalStack, recording: Recording, tmp_path: Path
) -> None:
    with ReplayRun(recording.path, stack, tmp_path / "one", _SETTINGS) as run:
        run.send()
        worker = run.start_worker()
        run.wait_until_done()
        raw, forecasts = run.messages(run.settings.topic_alerts), run.forecasts().raw
        metrics, topic_clicks = _counted(worker), run.settings.topic_clicks
    alerts = _alerts(raw)

    # 1. What happened was found, told of once, and closed.
    by_id = {alert.alert_id: [a for a in alerts if a.alert_id == alert.alert_id] for alert in alerts}
    for told in by_id.values():
        assert [alert.sequence for alert in told] == list(range(1, len(told) + 1))
        assert (told[0].episode_state, told[-1].episode_state) == ("open", "close")
    opened = {(a.kind, a.item_id or a.subject, *_hour(a.event_time)) for a in alerts if a.episode_state == "open"}
    assert opened & {("demand_above", _MUG, _SPIKE[0], hour) for hour in (11, 12)}  # at the next tick, or the one after
    assert ("stream_silent", topic_clicks, _SILENCE[0], 12) in opened  # by then two dozen clicks were to come
    (back,) = [a for a in alerts if a.kind == "stream_silent" and a.episode_state == "close"]
    assert _hour(back.event_time) == (_SILENCE[0], 17)
    for kind, state in (("demand_above", "open"), ("stream_silent", "open"), ("stream_silent", "close")):
        assert f'shelfcast_alerts_total{{episode_state="{state}",kind="{kind}"' in metrics

    # 2. The same again, byte for byte, by workers that are killed: one around its first alert, others anywhere.
    with ReplayRun(recording.path, stack, tmp_path / "two", _SETTINGS) as run:
        run.send()
        doomed = DoomedWorker(tmp_path / "two", run._environment, CrashPoint(ALERT_SENT, "before", 1), seed=2)
        doomed.launch()
        wait_until(lambda: not doomed.is_running)
        first, _ = run.start_workers(2)
        first.kill()
        first.launch()
        run.wait_until_done()
        assert_same(run.messages(run.settings.topic_alerts), raw)
        assert_same(run.forecasts().raw, forecasts)

    # 3. And by a backtest, in its own words.
    sets = [f"{name.removeprefix('SHELFCAST_').lower()}={value}" for name, value in _SETTINGS.items()]
    variants = parse_variants([], sets, {}, recording)
    summary = run_backtest(recording, variants, BacktestOptions(tmp_path / "backtest", processes=2))
    (found,) = [variant["alerts"] for variant in summary["variants"]]
    assert summary == json.loads((tmp_path / "backtest" / "backtest.json").read_text())
    wanted = [(told[0].kind, told[0].item_id, told[0].opened_at, told[-1].event_time) for told in by_id.values()]
    episodes = [(row["kind"], row["item_id"], row["opened_at"], row["closed_at"]) for row in found["episodes"]]
    assert sorted(episodes) == sorted(wanted)
    assert found["raised"] == len(wanted)
    report = (tmp_path / "backtest" / "report.html").read_text()
    assert "Alerts of A" in report
    assert "no clicks since" in report
