"""Calibration on real shops: what is promised at each level, with and without, and after demand has doubled.

Forecasts of 28 days are made each day by the shipped weights, which have seen neither the weeks nor, of dunnhumby, the
shop; the worker's own functions adjust them, lane by lane, from nothing learnt on the first day. The data are public
sets that are not in this repository, as Parquet files of one folder (`--data`).
"""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy_data import dunnhumby_table, online_retail_table
from benchmarks.accuracy_models import SHIPPED
from benchmarks.calibration_judge import KINDS, STEPS, Judge, judged
from benchmarks.report import show
from feature_store.calibration_state import ItemCalibration, SegmentLevels
from forecaster.inputs import ModelOutputs
from forecaster.predictor import DemandModel, load_model
from forecaster.rolling_origins import targets
from forecaster.series import SeriesTable
from worker.calibration import Raw, Subjects, added, calibrate, owed_outcomes
from worker.transport import murmur2_partition

Integers = NDArray[np.int64]
_LANES = 8
_LIVE_DAYS = 90
_AFTER = 3  # days after the doubling from which on forecasts are judged
_BATCH = 256
_DOUBLED = ("units", "order_lines", "revenue")


class Shop(NamedTuple):
    """A table, the days on which forecasts are made, and the day on which demand doubles."""

    table: SeriesTable
    days: range
    doubles_on: int


def _online_retail(folder: Path) -> Shop:
    table = online_retail_table(folder, "1d")
    first = (dt.date(2011, 2, 28) - dt.date(1970, 1, 1)).days  # the weights know what is before
    return Shop(table, range(first, int(table.end_bucket.max())), first + 28)


def _dunnhumby(folder: Path) -> Shop:
    table = dunnhumby_table(folder, "1d")
    end = int(table.end_bucket.max())
    return Shop(table, range(end - 70, end), end - 42)


SHOPS: dict[str, Callable[[Path], Shop]] = {"online_retail": _online_retail, "dunnhumby": _dunnhumby}


def live_rows(shop: Shop, most: int) -> Integers:
    """Items that a worker would forecast on the first day, at most so many, drawn with a fixed seed."""
    table, first = shop.table, shop.days[0]
    begin = table.offsets[:-1] + np.maximum(first - _LIVE_DAYS - table.first_bucket, 0)
    stop = np.clip(table.offsets[:-1] + first - table.first_bucket, begin, table.offsets[1:])
    selling = np.concatenate([[0], np.cumsum(table.units > 0)])
    rows = np.flatnonzero((stop > begin) & (selling[stop] > selling[np.minimum(begin, stop)]))
    return rows if len(rows) <= most else np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def doubled(table: SeriesTable, rows: Integers, day: int) -> SeriesTable:
    """The table in which the series `rows` are ordered twice as often from a day on."""
    columns = {name: values.copy() for name, values in table.columns.items()} | {"units": table.units.copy()}
    for row in rows.tolist():
        begin, end = int(table.offsets[row]), int(table.offsets[row + 1])
        cells = slice(min(begin + max(day - int(table.first_bucket[row]), 0), end), end)
        for name in _DOUBLED:
            columns[name][cells] *= 2
    return dataclasses.replace(table, units=columns.pop("units"), columns=columns)


class Lane:
    """What a lane remembers between days."""

    def __init__(self, places: Integers) -> None:
        """`places` int64 (item,): of its items among all."""
        self.places = places
        self._states: dict[int, ItemCalibration] = {}
        self._segments: dict[str, SegmentLevels] = {}

    def adjust(self, outputs: ModelOutputs, day: int, sold: Callable[[Integers, Integers], Integers]) -> ModelOutputs:
        """A day's forecasts, made as it begins; `sold` tells thousandths of units by place and day."""
        made = [self._adjust(outputs, places, day, sold) for places in _parts(self.places)]
        return ModelOutputs(*(np.concatenate(columns) for columns in zip(*made, strict=True)))

    def _adjust(
        self, outputs: ModelOutputs, places: Integers, day: int, sold: Callable[[Integers, Integers], Integers]
    ) -> ModelOutputs:
        count = len(places)
        nothing, states = np.zeros(count, dtype=np.int64), [self._states.get(p) for p in places.tolist()]
        subjects = Subjects(np.full(count, day), [""] * count, nothing, states, self._segments)
        owed = np.array(owed_outcomes(subjects), dtype=np.int64).reshape(-1, 2)
        raw = Raw(*(array[places].astype(np.float64) for array in outputs))
        made = calibrate(raw, subjects, sold(places[owed[:, 0]], owed[:, 1]))
        self._states |= {p: state for p, state in zip(places.tolist(), made.states, strict=True) if state is not None}
        for zone, learnt in made.learnt.items():
            self._segments[zone] = added(self._segments.get(zone), learnt)
        return ModelOutputs(*(array.astype(np.float32) for array in made[:3]))


def _parts(places: Integers) -> Iterator[Integers]:
    for start in range(0, len(places), _BATCH):
        yield places[start : start + _BATCH]


class Run:
    """Forecasts of a stream of sales, day by day, raw and adjusted, and what they are worth."""

    def __init__(self, model: DemandModel, table: SeriesTable, rows: Integers, lanes: list[Lane], judge: Judge) -> None:
        self._model, self._table, self._rows, self._judge = model, table, rows, judge
        self.lanes = lanes

    def day(self, day: int, *, judged_too: bool) -> None:
        """Forecast a day, and when it is judged too, compare with what then happened."""
        window = self._table.windows(self._rows, np.full(len(self._rows), day), STEPS)
        raw = self._model.forecast(window.inputs)
        adjusted = ModelOutputs(*(array.copy() for array in raw))
        for lane in self.lanes:
            for own, made in zip(adjusted, lane.adjust(raw, day, self._sold), strict=True):
                own[lane.places] = made
        if judged_too:
            self._judge.add(day, targets(self._table, self._rows, day, STEPS), {"raw": raw, "adjusted": adjusted})

    def _sold(self, places: Integers, days: Integers) -> Integers:
        rows = self._rows[places]
        cells = self._table.offsets[rows] + days - self._table.first_bucket[rows]
        return np.asarray(np.rint(np.nan_to_num(self._table.units[cells]).astype(np.float64) * 1000), dtype=np.int64)


def figures_of(shop: Shop, model: DemandModel, most: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Every stream of a shop: as it was, with all items doubled, and with half of them doubled."""
    rows = live_rows(shop, most)
    volume = _volume(model, shop, rows)
    lane_of = np.array([murmur2_partition(shop.table.item_ids[row], _LANES) for row in rows.tolist()])
    lanes = [Lane(np.flatnonzero(lane_of == lane)) for lane in range(_LANES)]
    as_it_was = Judge(volume)
    run, before = Run(model, shop.table, rows, lanes, as_it_was), lanes
    for day in shop.days:
        if day == shop.doubles_on:
            before = copy.deepcopy(run.lanes)
        run.day(day, judged_too=True)
    say("as it was: done")
    figures: dict[str, Any] = {"items": len(rows), "as_it_was": judged(as_it_was, shop.days)}
    half = rows[np.random.default_rng(1).random(len(rows)) < 0.5]
    for name, chosen in (("doubled", rows), ("half_doubled", half)):
        judge = Judge(volume)
        run = Run(model, doubled(shop.table, chosen, shop.doubles_on), rows, copy.deepcopy(before), judge)
        for day in range(shop.doubles_on, shop.days[-1] + 1):
            run.day(day, judged_too=day >= shop.doubles_on + _AFTER)
        figures[name] = judged(judge, None)
        say(f"{name}: done")
    return figures


def _volume(model: DemandModel, shop: Shop, rows: Integers) -> NDArray[np.float64]:
    """Units a day expected of each item on the first day: float64 (item,)."""
    window = shop.table.windows(rows, np.full(len(rows), shop.days[0]), STEPS)
    return np.asarray(model.forecast(window.inputs).mean.mean(axis=1), dtype=np.float64)


def _cell(number: float | None) -> str:
    return "" if number is None else f"{number:.3f}"


def _table_rows(figures: dict[str, Any]) -> list[list[str]]:
    rows = []
    for stream in ("as_it_was", "doubled", "half_doubled"):
        for volume, by_kind in figures[stream].items():
            for kind in KINDS:
                cells = [_cell(by_kind[kind][who][what]) for what in ("worst", "wql") for who in ("raw", "adjusted")]
                error = _cell(by_kind[kind]["adjusted"]["worst_error"])
                rows.append([f"{stream}, {volume}, {kind}", cells[0], f"{cells[1]} ± {error}", *cells[2:]])
    return rows


@click.command()
@click.option("--dataset", type=click.Choice(list(SHOPS)), required=True, help="Which shop.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("../shared/data"),
    show_default=True,
    help="Folder of the Parquet files.",
)
@click.option("--items", default=1_500, show_default=True, help="At most so many, drawn from those that still sell.")
@click.option("--json", "as_json", is_flag=True, help="End in one line of JSON.")
def command(dataset: str, data: Path, items: int, as_json: bool) -> None:
    """Judge calibrated quantiles at each level: share(actual < q) at most level, share(actual <= q) at least level."""
    shop = SHOPS[dataset](data)
    figures = figures_of(shop, load_model(SHIPPED, threads=1), items, lambda line: click.echo(line, err=True))
    header = ["stream, items, steps", "missed by, raw", "adjusted", "WQL, raw", "adjusted"]
    title = f"{dataset}: by how much the worst level misses its promise in the worst four weeks"
    show(title, header, _table_rows(figures), {"dataset": dataset, **figures}, as_json)


if __name__ == "__main__":
    command()
