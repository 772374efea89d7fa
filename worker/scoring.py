"""Scoring: what forecasts said, against what then sold. Pure functions: state in, state and sums out.

Of the first forecast that an item gets in each bucket the chosen steps are kept, as they were published. Whenever the
item is forecast again, what it has sold is read anyway: steps whose bucket has closed by then are scored. The outcome
that was used is kept for some more buckets; if events that came late have changed it, the difference of the score with
it and the one without is added. So at any time the sums are those of all scored steps with the outcomes as the features
had them when the item was last forecast, and can be recomputed from the topics:

* a forecast's `positions` say exactly which orders it has seen, so what an item has sold by then is known;
* going through an item's forecasts by revision, each that is in a later bucket than those before is kept; at each
  forecast all kept steps of earlier buckets are scored with what it has seen, if they are not too old to be corrected.

Everything is whole numbers. Measures are ratios of sums, as `forecaster/accuracy.py` defines them:

    wape = sum |y - median| / sum y         (GluonTS' ND; Kolassa and Schütz 2007)
    wql  = mean over levels of sum 2·|(y - q)·(1[y <= q] - level)| / sum y   (Gneiting and Raftery 2007; fev)
    bias = sum (mean - y) / sum y,  rmse = root of the mean of (y - mean)²,  coverage = share of y inside an interval

A kept forecast of a bucket is [step, label, unit, mean, increments …]: the mean in thousandths; from one quantile to
the next the increments in `unit` thousandths, 1000 when all are whole, and -n for n increments of 0 in a row, which
most items have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_store.score_state import SCORE_SUMS, ItemScores, RowName
from forecaster.contract import QUANTILE_LEVELS
from forecaster.score_sums import INTERVALS, MEDIAN

Integers = NDArray[np.int64]

BASELINE_VERSION = "baseline"  # forecasts that are degraded count under this name
ALL, CATEGORY = "all", "category:"
ITEM_WINDOW_DAYS = 28
LEVELS: Integers = np.array([round(level * 1000) for level in QUANTILE_LEVELS], dtype=np.int64)  # all are thousandths
_COUNT = len(QUANTILE_LEVELS)
_SUMS = len(SCORE_SUMS)
_HEAD = 4  # numbers of a kept forecast before its increments
_WHOLE = 1000
# Thousandths of a unit. What is beyond counts as this much: sums stay exact in the doubles of Redis' scripts.
_MOST, _MOST_SQUARED = 10_000_000_000, 2_000_000_000
_KNOWN_FOR = 100  # buckets; every frequency's forecasts look back on more
_HOURS, _WEEK, _WEEK_OFFSET = 24, 7, 3  # 1970-01-01 was a Thursday
_decode_kept = msgspec.json.Decoder(list[tuple[int, msgspec.Raw]]).decode
_decode_forecasts = msgspec.json.Decoder(list[list[int]]).decode
_decode_sums = msgspec.json.Decoder(list[list[str | int]]).decode
_encode = msgspec.json.Encoder().encode

# By bucket its forecasts as JSON, ascending: of dozens of buckets two or three are looked into.
Kept = dict[int, msgspec.Raw]


class ScoringRules(NamedTuple):
    """How forecasts of one frequency are scored.

    steps: ascending, 1 = the running bucket. correction: buckets for which a closed one is corrected.
    """

    freq: str
    steps: tuple[int, ...]
    correction: int


class Told(NamedTuple):
    """What forecasts say of the rules' steps, in thousandths of a unit, as published.

    quantiles: int64 (item, scored step, quantile), ascending. mean: int64 (item, scored step).
    """

    quantiles: Integers
    mean: Integers


class Subjects(NamedTuple):
    """Whose forecasts they are.

    running: int64 (item,): the running buckets. labels: (model version, category) of each. states: None = none yet.
    """

    running: Integers
    labels: Sequence[tuple[str, str]]
    states: Sequence[ItemScores | None]


class Scored(NamedTuple):
    """What is to be remembered, and what was added.

    states: of each item; None = nothing has changed. rows: by whose they are and by step, SCORE_SUMS to be added.
    windows: by place of the item (model version, first day) of its own sums that have changed.
    """

    states: list[ItemScores | None]
    rows: dict[RowName, dict[int, list[int]]]
    windows: dict[int, list[tuple[str, int]]]


class ItemSums(NamedTuple):
    """Of one item, model version, step and window of ITEM_WINDOW_DAYS that begins on `first_day`."""

    model_version: str
    step: int
    first_day: int
    sums: list[int]


class _Task(NamedTuple):
    """A kept forecast whose bucket has closed: units sold, and those that it was scored with before, -1 = never."""

    item: int
    bucket: int
    forecast: list[int]
    sold: int
    before: int


def day_of(freq: str, bucket: int) -> int:
    """Days since 1970-01-01 of the day in which a bucket lies: of hours the UTC one, of weeks their Monday."""
    if freq == "1h":
        return bucket // _HOURS
    return bucket * _WEEK - _WEEK_OFFSET if freq == "1w" else bucket


class Scoring:
    """One batch of forecasts: `owed` says whose sales are asked for, `score` takes them."""

    def __init__(self, rules: ScoringRules, subjects: Subjects) -> None:
        self._rules, self._subjects = rules, subjects
        self._running: list[int] = subjects.running.tolist()
        self._opened: dict[int, Kept] = {}  # by place of the item
        self.owed: list[tuple[int, int]] = []  # (item, bucket)
        for i, state in enumerate(subjects.states):
            if state is None:
                continue
            if self._is_fresh(i):
                buckets = [b for b in self._kept(i) if self._running[i] - _KNOWN_FOR <= b < self._running[i]]
            else:
                buckets = state.closed[::2]
            self.owed += [(i, bucket) for bucket in buckets]

    def _is_fresh(self, i: int) -> bool:
        """Whether it is the first forecast in its bucket."""
        state = self._subjects.states[i]
        return state is None or state.bucket < self._running[i]

    def _kept(self, i: int) -> Kept:
        if i not in self._opened:
            state = self._subjects.states[i]
            self._opened[i] = dict(_decode_kept(state.kept)) if state is not None else {}
        return self._opened[i]

    def score(self, told: Told, sold: Integers) -> Scored:
        """Score what has closed, correct what has changed, keep what is new.

        1. Find the steps to be scored or corrected, and what each adds to the sums.
        2. Sum up by segment, and by item.
        3. Put the new forecasts with the kept ones; drop those that are corrected no longer.

        Args:
            told: the new forecasts.
            sold: int64, thousandths of a unit, for each of `owed`.
        """
        outcomes = dict(zip(self.owed, sold.tolist(), strict=True))
        tasks = [task for i, state in enumerate(self._subjects.states) if state for task in self._tasks(i, outcomes)]
        added = _contributions(tasks)  # 1
        by_item, rows = self._by_item(tasks, added), self._by_segment(tasks, added)  # 2
        fresh = [i for i in range(len(self._running)) if self._is_fresh(i)]
        new = dict(zip(fresh, _packed(told, fresh, self._rules.steps), strict=True))
        states: list[ItemScores | None] = [None] * len(self._running)
        for i in sorted({*fresh, *by_item}):  # 3
            states[i] = self._state(i, new.get(i, []), outcomes, by_item.get(i, {}))
        windows = {i: sorted({(version, day) for version, _, day in by_item[i]}) for i in sorted(by_item)}
        return Scored(states, rows, windows)

    def _tasks(self, i: int, outcomes: Mapping[tuple[int, int], int]) -> list[_Task]:
        state = self._subjects.states[i]
        assert state is not None
        before = dict(zip(state.closed[::2], state.closed[1::2], strict=True))
        if not self._is_fresh(i) and all(outcomes[i, bucket] == units for bucket, units in before.items()):
            return []
        return [
            _Task(i, bucket, forecast, outcomes[i, bucket], before.get(bucket, -1))
            for bucket, raw in self._kept(i).items()
            if (i, bucket) in outcomes and outcomes[i, bucket] != before.get(bucket, -1)
            for forecast in _decode_forecasts(raw)
        ]

    def _label(self, task: _Task) -> tuple[str, str]:
        state = self._subjects.states[task.item]
        assert state is not None
        version, category = state.labels[task.forecast[1]]
        return version, category

    def _by_segment(self, tasks: Sequence[_Task], added: Integers) -> dict[RowName, dict[int, list[int]]]:
        groups: dict[tuple[int, str, str, int], list[int]] = {}
        for n, task in enumerate(tasks):
            day = day_of(self._rules.freq, task.bucket)
            groups.setdefault((day, *self._label(task), task.forecast[0]), []).append(n)
        rows: dict[RowName, dict[int, Integers]] = {}  # of several categories one row of all
        for (day, version, category, step), places in groups.items():
            total = added[places].sum(axis=0)
            for segment in (ALL, CATEGORY + category) if category else (ALL,):
                steps = rows.setdefault(RowName(day, version, segment), {})
                steps[step] = steps[step] + total if step in steps else total
        return {name: {step: total.tolist() for step, total in steps.items()} for name, steps in rows.items()}

    def _by_item(self, tasks: Sequence[_Task], added: Integers) -> dict[int, dict[tuple[str, int, int], list[int]]]:
        """By item, and by (model version, step, first day of the window)."""
        found: dict[int, dict[tuple[str, int, int], list[int]]] = {}
        for task, numbers in zip(tasks, added.tolist(), strict=True):
            day = day_of(self._rules.freq, task.bucket)
            name = (self._label(task)[0], task.forecast[0], day - day % ITEM_WINDOW_DAYS)
            sums = found.setdefault(task.item, {})
            sums[name] = [a + b for a, b in zip(sums[name], numbers, strict=True)] if name in sums else numbers
        return found

    def _state(
        self,
        i: int,
        new: list[list[int]],
        outcomes: Mapping[tuple[int, int], int],
        added: Mapping[tuple[str, int, int], list[int]],
    ) -> ItemScores:
        before, running = self._subjects.states[i], self._running[i]
        last = running if before is None else max(before.bucket, running)
        kept = {bucket: raw for bucket, raw in self._kept(i).items() if bucket >= last - self._rules.correction}
        labels = [] if before is None else before.labels
        if new:
            if len(labels) > 1:  # which takes looking into all of them
                labels, kept = _with_used_labels(labels, kept)
            own = list(self._subjects.labels[i])
            place = labels.index(own) if own in labels else len(labels)
            labels = labels if own in labels else [*labels, own]
            kept = _with_new(kept, running, [[forecast[0], place, *forecast[1:]] for forecast in new])
        closed = [(bucket, outcomes[i, bucket]) for bucket in kept if (i, bucket) in outcomes]
        sums = _item_sums(before, added, day_of(self._rules.freq, last))
        return ItemScores(
            bucket=last,
            revision=(0 if before is None else before.revision) + bool(added),
            labels=labels,
            closed=list(chain.from_iterable(closed)),
            kept=msgspec.Raw(_encode(list(kept.items()))),
            sums=msgspec.Raw(_encode(sums)),
        )


def item_sums(state: ItemScores) -> list[ItemSums]:
    """An item's own sums."""
    return [
        ItemSums(str(row[0]), int(row[1]), int(row[2]), [int(n) for n in row[3:]]) for row in _decode_sums(state.sums)
    ]


def _item_sums(
    before: ItemScores | None, added: Mapping[tuple[str, int, int], list[int]], last_day: int
) -> list[list[str | int]]:
    """Sums by version, step and window; windows before the last but one are gone."""
    sums = {} if before is None else {(s.model_version, s.step, s.first_day): s.sums for s in item_sums(before)}
    for name, numbers in added.items():
        sums[name] = [a + b for a, b in zip(sums[name], numbers, strict=True)] if name in sums else numbers
    oldest = last_day - last_day % ITEM_WINDOW_DAYS - ITEM_WINDOW_DAYS
    return [[*name, *numbers] for name, numbers in sorted(sums.items()) if name[2] >= oldest]


def _with_used_labels(labels: list[list[str]], kept: Kept) -> tuple[list[list[str]], Kept]:
    """Labels that kept forecasts still name, and the forecasts, with the places that those have then."""
    opened = {bucket: _decode_forecasts(raw) for bucket, raw in kept.items()}
    used = sorted({forecast[1] for forecasts in opened.values() for forecast in forecasts})
    if used == list(range(len(labels))):
        return labels, kept
    place = {old: n for n, old in enumerate(used)}
    moved = {
        bucket: msgspec.Raw(_encode([[forecast[0], place[forecast[1]], *forecast[2:]] for forecast in forecasts]))
        for bucket, forecasts in opened.items()
    }
    return [labels[old] for old in used], moved


def _with_new(kept: Kept, running: int, new: Collection[list[int]]) -> Kept:
    """The kept forecasts and those of a new one, by bucket."""
    out = dict(kept)
    for forecast in new:
        bucket = running + forecast[0] - 1
        own = _decode_forecasts(out[bucket]) if bucket in out else []
        out[bucket] = msgspec.Raw(_encode([*own, forecast]))
    return dict(sorted(out.items()))


def _packed(told: Told, fresh: Sequence[int], steps: Sequence[int]) -> list[list[list[int]]]:
    """Of some items the forecasts to be kept, as the module describes them but without their label."""
    quantiles = np.clip(told.quantiles[fresh], 0, _MOST).reshape(-1, _COUNT)
    mean = np.clip(told.mean[fresh], 0, _MOST).reshape(-1)
    unit = np.where((quantiles % _WHOLE == 0).all(axis=1), _WHOLE, 1)
    increments = np.diff(np.maximum.accumulate(quantiles, axis=1) // unit[:, None], axis=1, prepend=0).reshape(-1)
    # A run begins at each increment that is not 0, and at a 0 that follows no other 0 of its forecast.
    is_zero = increments == 0
    first = np.arange(len(increments)) % _COUNT == 0
    starts = np.flatnonzero(~is_zero | first | ~np.concatenate([[False], is_zero[:-1]]))
    lengths = np.diff(starts, append=len(increments))
    numbers = np.where(is_zero[starts], -lengths, increments[starts]).tolist()
    ends = np.searchsorted(starts, np.arange(len(unit) + 1) * _COUNT).tolist()
    rows = zip(unit.tolist(), mean.tolist(), ends, ends[1:], strict=False)
    forecasts = [[one_unit, one_mean, *numbers[begin:end]] for one_unit, one_mean, begin, end in rows]
    each = len(steps)
    return [
        [[step, *forecast] for step, forecast in zip(steps, forecasts[n * each : (n + 1) * each], strict=True)]
        for n in range(len(fresh))
    ]


def _unpacked(forecasts: Sequence[list[int]]) -> tuple[Integers, Integers]:
    """Quantiles int64 (forecast, quantile) and means int64 (forecast,) in thousandths of a unit."""
    numbers = np.array(list(chain.from_iterable(forecast[_HEAD:] for forecast in forecasts)), dtype=np.int64)
    increments = np.repeat(np.maximum(numbers, 0), np.maximum(-numbers, 1)).reshape(-1, _COUNT)
    unit = np.array([forecast[2] for forecast in forecasts], dtype=np.int64)
    mean = np.array([forecast[3] for forecast in forecasts], dtype=np.int64)
    return np.cumsum(increments, axis=1) * unit[:, None], mean


def _contributions(tasks: Sequence[_Task]) -> Integers:
    """What each task adds to the sums: int64 (task, SCORE_SUMS)."""
    if not tasks:
        return np.zeros((0, _SUMS), dtype=np.int64)
    quantiles, mean = _unpacked([task.forecast for task in tasks])
    added = score_sums(quantiles, mean, np.array([task.sold for task in tasks], dtype=np.int64))
    before = np.array([task.before for task in tasks], dtype=np.int64)
    again = before >= 0
    added[again] -= score_sums(quantiles[again], mean[again], before[again])
    return added


def score_sums(quantiles: Integers, mean: Integers, sold: Integers) -> Integers:
    """Scores of single steps: int64 (row, SCORE_SUMS).

    Args:
        quantiles: int64 (row, quantile), thousandths of a unit.
        mean: int64 (row,), thousandths.
        sold: int64 (row,), thousandths.
    """
    y = np.minimum(sold, _MOST)
    error = mean - y
    squared = np.minimum(np.abs(error), _MOST_SQUARED) ** 2
    miss = y[:, None] - quantiles
    loss = 2 * np.maximum(LEVELS * miss, (LEVELS - 1000) * miss).sum(axis=1)
    inside = [(quantiles[:, low] <= y) & (y <= quantiles[:, high]) for low, high in INTERVALS.values()]
    columns = [np.ones_like(y), y, np.abs(y - quantiles[:, MEDIAN]), error, (squared + 500) // 1000, loss, *inside]
    return np.stack([np.asarray(column, dtype=np.int64) for column in columns], axis=1)


class Measures(NamedTuple):
    """What sums say. NaN where nothing was sold, or nothing scored."""

    wape: float
    rmse: float  # units
    bias: float
    wql: float
    coverage: dict[str, float]  # by the share in per cent that the central interval promises


def measures(sums: Sequence[int]) -> Measures:
    """Of sums in the order of SCORE_SUMS, as many as there are added up."""
    count, actual, absolute, error, squared, loss, *inside = sums
    return Measures(
        wape=_ratio(absolute, actual),
        rmse=float(np.sqrt(_ratio(squared, 1000 * count))),
        bias=_ratio(error, actual),
        wql=_ratio(loss, 1000 * _COUNT * actual),
        coverage={share: _ratio(number, count) for share, number in zip(INTERVALS, inside, strict=True)},
    )


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator > 0 else float("nan")
