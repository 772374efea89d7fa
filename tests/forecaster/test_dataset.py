import datetime as dt
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar
from feature_store.events import Action, EventBatch
from feature_store.features import FEATURE_INDEX, FEATURES
from forecaster.contract import PAST_CHANNELS, WINDOWS
from forecaster.dataset import History, Sampling, draw, stack
from tests.forecaster.builders import ZONE, small_history, small_shop

DAY_MS = 86_400_000
EPOCH_DAY = dt.date(1970, 1, 1)


def midnight_ms(date: dt.date) -> int:
    return int(dt.datetime(date.year, date.month, date.day, tzinfo=ZoneInfo(ZONE)).timestamp()) * 1000


CUTOFF_MS = midnight_ms(dt.date(2022, 8, 9)) + 14 * 3_600_000 + 37 * 60_000 + 5


def bucket(freq: str, time_ms: int) -> int:
    """The bucket by datetime alone."""
    if freq == "1h":
        return time_ms // 3_600_000
    local = dt.datetime.fromtimestamp(time_ms // 1000, ZoneInfo(ZONE)).date()
    return (local - EPOCH_DAY).days


def contribution(batch: EventBatch, row: int) -> dict[str, float]:
    """What one event adds, in units, as feature_store.features says in words."""
    action, quantity = int(batch.action[row]), float(batch.quantity[row]) / 1000
    if action == Action.SALE:
        return {"units": quantity, "order_lines": 1, "revenue": quantity * float(batch.unit_price[row]) / 1e6}
    if action in (Action.CANCEL, Action.RETURN):
        return {"returned_units": quantity}
    if action == Action.REVIEW:
        return {"review_count": 1, "rating_sum": float(batch.rating[row])}
    return {"views": 1} if action == Action.VIEW else {"add_to_carts": 1}


def naive_sums(batch: EventBatch, series: int, freq: str, start_ms: int, end_ms: int) -> dict[int, NDArray[np.float64]]:
    """Sums of one series by bucket over [start_ms, end_ms), event by event."""
    sums: dict[int, NDArray[np.float64]] = {}
    for row in np.flatnonzero(batch.series_index == series).tolist():
        time_ms = int(batch.event_time_ms[row])
        if start_ms <= time_ms < end_ms:
            of_bucket = sums.setdefault(bucket(freq, time_ms), np.zeros(len(FEATURES)))
            for name, value in contribution(batch, row).items():
                of_bucket[FEATURE_INDEX[name]] += value
    return sums


def first_order_ms(batch: EventBatch, series: int, start_ms: int) -> int:
    orders = np.isin(batch.action, (Action.SALE, Action.CANCEL, Action.RETURN)) & (batch.series_index == series)
    times = batch.event_time_ms[orders]
    return int(times[times >= start_ms].min())


@pytest.mark.parametrize("freq", ["1h", "1d"])
@pytest.mark.parametrize("past_days", [None, 10])
def test_a_window_equals_a_recomputation_event_by_event(freq: str, past_days: int | None) -> None:
    shop, history = small_shop(), small_history()
    start_ms = 0 if past_days is None else midnight_ms(dt.date(2022, 8, 9) - dt.timedelta(days=past_days))
    length, steps = WINDOWS[freq]
    known = np.flatnonzero(history.order_lines(start_ms, CUTOFF_MS))
    series = known[[0, 3, len(known) - 1]]
    window = history.window(freq, CUTOFF_MS, series, steps, start_ms)
    running = bucket(freq, CUTOFF_MS)
    for row, s in enumerate(series.tolist()):
        before = naive_sums(shop.batch, s, freq, start_ms, CUTOFF_MS)
        whole = naive_sums(shop.batch, s, freq, 0, shop.end_ms)
        first = bucket(freq, first_order_ms(shop.batch, s, start_ms))
        nothing = np.zeros(len(PAST_CHANNELS))
        expected = [
            before.get(b, nothing) if b >= first else np.full(len(PAST_CHANNELS), np.nan)
            for b in range(running - length, running)
        ]
        assert window.inputs.context[row] == pytest.approx(np.array(expected), rel=1e-6, nan_ok=True)
        assert window.inputs.running[row] == pytest.approx(before.get(running, nothing), rel=1e-6)
        totals = [float(whole.get(running + step, nothing)[0]) for step in range(steps)]
        assert window.units[row].tolist() == totals
        observed = float(before.get(running, nothing)[0])
        assert window.cumulative_units[row] == pytest.approx(np.cumsum(totals) - observed, abs=1e-3)


@pytest.mark.parametrize("freq", ["1h", "1d"])
def test_events_from_the_cutoff_on_change_no_input(freq: str) -> None:
    shop, history = small_shop(), small_history()
    series = np.flatnonzero(history.order_lines(0, CUTOFF_MS))
    later = shop.batch.event_time_ms >= CUTOFF_MS
    other = EventBatch(
        **{
            **shop.batch.__dict__,
            "quantity": np.where(later, shop.batch.quantity * 7 + 1000, shop.batch.quantity),
            "action": np.where(later, Action.SALE, shop.batch.action).astype(np.int8),
        }
    )
    changed = History(other, ShopCalendar(ZONE), shop.end_ms, shop.products, shop.global_entries)
    cut = History(shop.batch.take(~later), ShopCalendar(ZONE), shop.end_ms, shop.products, shop.global_entries)
    expected = history.window(freq, CUTOFF_MS, series, 5)
    for variant in (changed, cut):
        got = variant.window(freq, CUTOFF_MS, series, 5)
        for a, b in zip(got.inputs, expected.inputs, strict=True):
            assert np.array_equal(a, b, equal_nan=True)
    assert not np.array_equal(changed.window(freq, CUTOFF_MS, series, 5).units, expected.units)


def test_an_event_at_the_very_cutoff_is_not_seen() -> None:
    shop, history = small_shop(), small_history()
    sales = np.flatnonzero((shop.batch.action == Action.SALE) & (shop.batch.event_time_ms > CUTOFF_MS))
    row = int(sales[0])
    series, time_ms = shop.batch.series_index[row : row + 1], int(shop.batch.event_time_ms[row])
    before = history.window("1d", time_ms, series, 2).inputs.running[0, 0]
    after = history.window("1d", time_ms + 1, series, 2).inputs.running[0, 0]
    assert after - before == shop.batch.quantity[row] / 1000


def test_targets_beyond_the_record_are_unknown_not_zero() -> None:
    shop, history = small_shop(), small_history()
    cutoff_ms = shop.end_ms - 3 * DAY_MS + 1
    series = np.flatnonzero(history.order_lines(0, cutoff_ms))[:5]
    window = history.window("1d", cutoff_ms, series, 28)
    assert np.isfinite(window.units[:, :3]).all()
    assert np.isnan(window.units[:, 3:]).all()
    assert np.isnan(window.cumulative_units[:, 3:]).all()


def test_a_series_that_is_not_an_item_yet_is_refused() -> None:
    history = small_history()
    with pytest.raises(ValueError, match="not an item yet"):
        history.window("1d", history.start_ms, np.array([0]), 1)


def test_draws_are_seeded_and_know_every_item() -> None:
    history = small_history()
    sampling = Sampling(history.start_ms + 30 * DAY_MS, history.end_ms, 8)
    first = [draw(history, "1d", sampling, np.random.default_rng(5)) for _ in range(2)]
    assert first[0] is not None
    assert first[1] is not None
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first[0].inputs, first[1].inputs, strict=True))
    rng = np.random.default_rng(6)
    drawn = [w for w in (draw(history, "1d", sampling, rng) for _ in range(40)) if w is not None]
    seen = np.isfinite(stack(drawn).inputs.context[:, :, 0]).sum(axis=1)
    # Cold starts and full pasts are both familiar.
    assert (seen <= 7).mean() > 0.05
    assert ((seen > 7) & (seen <= 28)).mean() > 0.15
    assert (seen > 100).mean() > 0.15
