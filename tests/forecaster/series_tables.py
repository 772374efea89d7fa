"""Seeded tables of series for tests."""

from __future__ import annotations

import dataclasses

import numpy as np

from forecaster.series import SeriesTable

FIRST_DAY = 17_000


def made_table(items: int = 12, days: int = 200, seed: int = 0, *, covariates: bool = False) -> SeriesTable:
    """Daily series of differing rates, starts and weekly rhythms; the last is short, the last but one never sells."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(days // 2, days + 1, items)
    lengths[0], lengths[-1] = days, 20
    parts, columns = [], []
    for item, length in enumerate(lengths.tolist()):
        day = FIRST_DAY + days - length + np.arange(length)
        rhythm = 1 + 0.8 * np.sin(2 * np.pi * (day + item) / 7)
        promotion = (rng.random(length) < 0.1).astype(np.float32)
        rate = np.exp(rng.normal(0.5, 1)) * rhythm * (1 + promotion)
        parts.append(rng.poisson(rate if item != items - 2 else 0 * rate).astype(np.float32))
        columns.append(promotion)
    begin = FIRST_DAY + days - lengths
    return SeriesTable(
        freq="1d",
        time_zone="UTC",
        item_ids=tuple(f"item {n}" for n in range(items)),
        first_bucket=begin,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        units=np.concatenate(parts),
        columns={"promotion": np.concatenate(columns)} if covariates else {},
        category_code=np.arange(items) % 3,
        brand_code=np.zeros(items, dtype=np.int64),
        launch_bucket=begin,
    )


def changed_after(table: SeriesTable, running: int) -> SeriesTable:
    """The same past, and units of `running` and later that are others."""
    units = table.units.copy()
    for row in range(len(table)):
        first = int(table.offsets[row]) + max(running - int(table.first_bucket[row]), 0)
        units[first : table.offsets[row + 1]] = 1_000 + row
    return dataclasses.replace(table, units=units)
