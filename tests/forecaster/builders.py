"""Inputs of the contract for tests."""

import functools

import numpy as np

from feature_store.calendar_time import ShopCalendar
from feature_store.known_future import KNOWN_CHANNELS, Span, known_channels
from forecaster.contract import FREQ_CODES, PAST_CHANNELS, STATIC_CHANNELS, WINDOWS
from forecaster.dataset import History
from forecaster.inputs import ModelInputs
from forecaster.series import SeriesTable
from forecaster.synthetic import Shop, generate

ZONE = "Europe/London"


def random_inputs(freq: str, items: int, seed: int, steps: int | None = None) -> ModelInputs:
    """Demand from dead to wild, pasts from none to full, any elapsed fraction, with and without an announced price."""
    rng = np.random.default_rng(seed)
    window = WINDOWS[freq]
    length, steps = window.context_length, steps or window.max_prediction_length
    rate = np.exp(rng.normal(0, 3, size=(items, 1, 1)))
    context = rng.poisson(rate, size=(items, length, len(PAST_CHANNELS))).astype(np.float32)
    context *= rng.random((items, length, 1)) < rng.random((items, 1, 1))
    unseen = np.where(rng.random(items) < 0.3, length, rng.integers(0, length, items))
    context[np.arange(length) < unseen[:, None]] = np.nan
    span = Span(20_000 if freq == "1d" else 480_000, ZONE)
    known = known_channels(freq, [span] * items, length + steps, [[]] * items)
    known[: items // 2, :, KNOWN_CHANNELS.index("unit_price")] = 3.5
    available = known[:, :length, KNOWN_CHANNELS.index("open")].copy()
    available[np.isnan(context[:, :, 0])] = np.nan
    static = np.full((items, len(STATIC_CHANNELS)), 7, dtype=np.float32)
    static[::3, 0] = np.nan
    return ModelInputs(
        context,
        available,
        known,
        rng.poisson(rate[:, 0], size=(items, len(PAST_CHANNELS))).astype(np.float32),
        rng.random((items, 1)).astype(np.float32),
        static,
        np.full((items, 1), FREQ_CODES[freq], dtype=np.int32),
    )


def take(inputs: ModelInputs, rows: list[int]) -> ModelInputs:
    """Some rows, in the order asked for."""
    return ModelInputs._make(column[rows] for column in inputs)


@functools.cache
def small_shop() -> Shop:
    """A seeded invented shop of 40 items and 260 days."""
    return generate(items=40, days=260, seed=3)


@functools.cache
def small_history() -> History:
    """The same, arranged for windows."""
    shop = small_shop()
    return History(shop.batch, ShopCalendar(shop.time_zone), shop.end_ms, shop.products, shop.global_entries)


def small_table(items: int = 12, days: int = 220, seed: int = 0) -> SeriesTable:
    """A seeded table of daily Poisson sales with a weekly rhythm and a price; item i begins on day 3 i."""
    rng = np.random.default_rng(seed)
    first = np.arange(items) * 3
    rate = np.exp(rng.normal(1, 1, items))[:, None] * (1 + 0.6 * (np.arange(days) % 7 > 4))
    kept = np.arange(days) >= first[:, None]
    price = np.broadcast_to(np.exp(rng.normal(1, 0.3, items))[:, None], (items, days))
    return SeriesTable(
        freq="1d",
        time_zone=ZONE,
        item_ids=tuple(f"item-{i}" for i in range(items)),
        first_bucket=20_000 + first.astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(days - first)]).astype(np.int64),
        units=rng.poisson(rate).astype(np.float32)[kept],
        columns={"unit_price": price.astype(np.float32)[kept]},
        category_code=np.ones(items, dtype=np.int64),
        brand_code=np.zeros(items, dtype=np.int64),
        launch_bucket=20_000 + first.astype(np.int64),
    )
