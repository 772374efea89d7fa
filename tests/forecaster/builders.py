"""Inputs of the contract for tests."""

import functools

import numpy as np

from feature_store.calendar_time import ShopCalendar
from forecaster.dataset import History
from forecaster.inputs import ModelInputs
from forecaster.probes import random_inputs
from forecaster.series import SeriesTable
from forecaster.synthetic import Shop, generate

__all__ = ["ZONE", "random_inputs", "small_history", "small_shop", "small_table", "take"]

ZONE = "Europe/London"


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
