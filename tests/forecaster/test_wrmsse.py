"""WRMSSE against a recomputation that loops over every sum of the hierarchy, and against numbers worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from forecaster import wrmsse

_STATES = {"CA_1": "CA", "CA_2": "CA", "TX_1": "TX"}
_DEPARTMENTS = {"F1": ("FOODS_1", "FOODS"), "F2": ("FOODS_2", "FOODS"), "H1": ("HOBBIES_1", "HOBBIES")}


def _shop() -> dict[str, list[str]]:
    rows = list(itertools.product(_DEPARTMENTS, _STATES))
    return {
        "item_id": [item for item, _ in rows],
        "dept_id": [_DEPARTMENTS[item][0] for item, _ in rows],
        "cat_id": [_DEPARTMENTS[item][1] for item, _ in rows],
        "store_id": [store for _, store in rows],
        "state_id": [_STATES[store] for _, store in rows],
    }


def _scale_by_loop(values: list[float]) -> float:
    while values and values[0] == 0:
        values = values[1:]
    while values and values[-1] == 0:
        values = values[:-1]
    changes = [(b - a) ** 2 for a, b in itertools.pairwise(values)]
    return sum(changes) / len(changes) if changes else math.nan


def test_it_is_the_weighted_root_of_scaled_errors_at_each_level() -> None:
    columns = _shop()
    count = len(columns["item_id"])
    rng = np.random.default_rng(0)
    past = rng.poisson(rng.gamma(3.0, 2.0, (count, 1)), (count, 50)).astype(np.float32)
    past[0, :30] = 0
    past[1, 40:] = 0
    dollars = rng.uniform(1, 20, count)
    target, mean = rng.poisson(2, (2, count, 7)).astype(np.float32)
    mean += 0.3

    by_level = []
    for names in wrmsse.M5_LEVELS:
        sums: dict[tuple[str, ...], list[int]] = {}
        for row in range(count):
            sums.setdefault(tuple(columns[name][row] for name in names), []).append(row)
        total = 0.0
        for rows in sums.values():
            error = sum((float(target[rows, step].sum()) - float(mean[rows, step].sum())) ** 2 for step in range(7)) / 7
            scale = _scale_by_loop([float(past[rows, day].sum()) for day in range(50)])
            total += math.sqrt(error / scale) * sum(dollars[rows]) / sum(dollars)
        by_level.append(total)

    levels = wrmsse.levels_of(columns)
    weights = wrmsse.weights_of(levels, past, dollars)
    assert wrmsse.wrmsse(levels, weights, target, mean) == pytest.approx(by_level)
    assert [len(level.keys) for level in levels] == [1, 2, 3, 2, 3, 4, 6, 6, 9, 3, 6, 9]
    assert sum(w.weight.sum() for w in weights) == pytest.approx(1)


def test_one_series_by_hand() -> None:
    levels = wrmsse.levels_of({"item_id": ["a"]}, [(), ("item_id",)])
    past = np.array([[0, 0, 2, 0, 1, 4, 0]], dtype=np.float32)
    weights = wrmsse.weights_of(levels, past, np.array([3.0]))
    # From the first 2 to the 4: changes of -2, 1, 3.
    assert weights[0].scale == pytest.approx([14 / 3])
    found = wrmsse.wrmsse(levels, weights, np.array([[1, 3]], np.float32), np.array([[2, 3]], np.float32))
    assert found == pytest.approx([math.sqrt(0.5 / (14 / 3))] * 2)


def test_too_much_here_and_too_little_there_cancel_out_above() -> None:
    levels = wrmsse.levels_of({"item_id": ["a", "b"]}, [(), ("item_id",)])
    weights = wrmsse.weights_of(levels, np.array([[1, 3, 1], [2, 2, 5]], np.float32), np.array([1.0, 1.0]))
    target = np.array([[4, 4], [4, 4]], np.float32)
    total, single = wrmsse.wrmsse(levels, weights, target, target + np.array([[1], [-1]], np.float32))
    assert total == 0 < single


def test_series_that_never_changed_are_left_out() -> None:
    levels = wrmsse.levels_of({"item_id": ["a", "b"]}, [("item_id",)])
    weights = wrmsse.weights_of(levels, np.array([[0, 0, 0], [1, 2, 1]], np.float32), np.array([0.0, 1.0]))
    target = np.ones((2, 2), np.float32)
    assert wrmsse.wrmsse(levels, weights, target, target + 1) == pytest.approx([1.0])
