"""How the forecasts of two variants of a backtest differ."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

SHOWN = 50
_SAME = 0.0005  # units: forecasts are published in thousandths


class Change(NamedTuple):
    """A forecast that two variants made differently; the step at which their medians are furthest apart."""

    item_id: str
    freq: str
    cutoff_ms: int
    step: int  # 1 = the running bucket
    median_a: float
    median_b: float


class Changes(NamedTuple):
    """Of two variants. Forecasts are the same when item, freq and cutoff are."""

    compared: int
    changed: int
    only_a: int
    only_b: int
    largest: list[Change]  # at most SHOWN


def compare(pairs: Iterable[tuple[Path, Path]]) -> Changes:
    """Compare files of forecasts pair by pair; no item is in more than one pair. Memory holds the medians of one
    frequency of a pair."""
    total = Changes(0, 0, 0, 0, [])
    for path_a, path_b in pairs:
        for freq in sorted(_freqs(path_a) | _freqs(path_b)):
            total = _joined(total, _compare(freq, _Medians(path_a, freq), _Medians(path_b, freq)))
    return total


def _freqs(path: Path) -> set[str]:
    return set(pc.unique(pq.read_table(path, columns=["freq"])["freq"]).cast(pa.string()).to_pylist())


class _Medians:
    """Medians of a file's forecasts of one frequency, by item and cutoff."""

    def __init__(self, path: Path, freq: str) -> None:
        table = pq.read_table(path, columns=["item_id", "cutoff_ms", "q50"], filters=[("freq", "==", freq)])
        self.rows = table.num_rows
        items = table["item_id"].cast(pa.string()).to_pylist()
        self.row_of = {key: row for row, key in enumerate(zip(items, table["cutoff_ms"].to_pylist(), strict=True))}
        flat = table["q50"].combine_chunks()
        values = flat.flatten() if self.rows else pa.array([], type=pa.float32())
        self.values: NDArray[np.float32] = np.array(np.from_dlpack(values)).reshape(self.rows, -1)


def _compare(freq: str, a: _Medians, b: _Medians) -> Changes:
    keys = [key for key in a.row_of if key in b.row_of]
    only_a, only_b = len(a.row_of) - len(keys), len(b.row_of) - len(keys)
    if not keys:
        return Changes(0, 0, only_a, only_b, [])
    steps = min(a.values.shape[1], b.values.shape[1])
    rows_a, rows_b = [a.row_of[key] for key in keys], [b.row_of[key] for key in keys]
    medians_a, medians_b = a.values[rows_a, :steps], b.values[rows_b, :steps]
    distance = np.abs(medians_a - medians_b)
    step = distance.argmax(axis=1)
    furthest = distance[np.arange(len(keys)), step]
    changed = furthest >= _SAME
    first = np.argsort(-furthest, kind="stable")[: min(SHOWN, int(changed.sum()))].tolist()
    largest = [
        Change(*_named(keys[n], freq), int(step[n]) + 1, float(medians_a[n, step[n]]), float(medians_b[n, step[n]]))
        for n in first
    ]
    return Changes(len(keys), int(changed.sum()), only_a, only_b, largest)


def _named(key: tuple[Any, Any], freq: str) -> tuple[str, str, int]:
    return key[0], freq, key[1]


def _joined(one: Changes, other: Changes) -> Changes:
    largest = sorted(
        [*one.largest, *other.largest],
        key=lambda c: (-abs(c.median_a - c.median_b), c.item_id, c.freq, c.cutoff_ms),
    )
    return Changes(
        one.compared + other.compared,
        one.changed + other.changed,
        one.only_a + other.only_a,
        one.only_b + other.only_b,
        largest[:SHOWN],
    )
