"""Batches as a function of (seed, step), alone and through worker processes."""

import numpy as np
import pytest
import torch

from forecaster import loader
from forecaster.batches import Batches, SourceError, Weighted, fixed_windows
from forecaster.contract import FREQ_CODES
from forecaster.dataset import Window
from forecaster.sources import HistorySource
from forecaster.training_data import table_data
from tests.forecaster.builders import small_history, small_table

DAY_MS = 86_400_000


class Marked:
    """A source whose windows say which one it is."""

    def __init__(self, freqs: tuple[str, ...], mark: float, empty: bool = False) -> None:
        self.freqs = freqs
        self.mark = mark
        self.empty = empty

    def draw(self, freq: str, size: int, rng: np.random.Generator) -> Window | None:
        if self.empty:
            return None
        source = table_data(small_table(items=3)).sources[0].source
        window = source.draw("1d", size, rng)
        assert window is not None
        return window._replace(units=np.full_like(window.units, self.mark))


def mixed(size: int = 24, seed: int = 3) -> Batches:
    history = small_history()
    events = HistorySource(history, history.start_ms + 20 * DAY_MS, history.end_ms)
    sources = [Weighted(events, 0.5), *table_data(small_table()).sources]
    return Batches(sources, ("1d", "1h"), size, seed)


def equal(one: Window, other: Window) -> bool:
    pairs = zip((*one.inputs, *one[1:]), (*other.inputs, *other[1:]), strict=True)
    return all(a.shape == b.shape and np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    batches = mixed()
    later = batches.draw(7)
    for step in (1, 2, 7):
        assert equal(batches.draw(step), mixed().draw(step))
    assert equal(later, batches.draw(7))
    assert not equal(later, batches.draw(8))
    assert not equal(later, mixed(seed=4).draw(7))
    assert all(len(batches.draw(step).units) == 24 for step in range(6))


def test_processes_that_train_together_share_the_freq_and_nothing_else() -> None:
    batches = mixed()
    for step in range(12):
        one, other = batches.draw(step, 0), batches.draw(step, 1)
        assert set(one.inputs.freq.flatten().tolist()) == set(other.inputs.freq.flatten().tolist())
        assert not equal(one, other)


def test_sources_are_drawn_by_their_shares() -> None:
    batches = Batches([Weighted(Marked(("1d",), 1.0), 3.0), Weighted(Marked(("1d",), 2.0), 1.0)], ("1d",), 32)
    marks = np.concatenate([batches.draw(step).units[:, 0] for step in range(60)])
    assert (marks == 1.0).mean() == pytest.approx(0.75, abs=0.06)


def test_a_source_with_nothing_at_the_moment_is_stood_in_for() -> None:
    batches = Batches(
        [Weighted(Marked(("1d",), 1.0, empty=True), 9.0), Weighted(Marked(("1d",), 2.0), 1.0)], ("1d",), 8
    )
    assert (batches.draw(1).units == 2.0).all()
    with pytest.raises(SourceError, match=r"too few\s+items"):
        Batches([Weighted(Marked(("1d",), 1.0, empty=True), 1.0)], ("1d",), 8).draw(1)


def test_a_freq_without_a_source_is_refused_by_name() -> None:
    with pytest.raises(SourceError, match="1w"):
        Batches([Weighted(Marked(("1d",), 1.0), 1.0)], ("1d", "1w"))


def test_fixed_windows_are_of_each_freq() -> None:
    windows = fixed_windows(mixed(), 2)
    assert {freq: len(some) for freq, some in windows.items()} == {"1d": 2, "1h": 2}
    assert all((window.inputs.freq == FREQ_CODES[freq]).all() for freq, some in windows.items() for window in some)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_neither_batches_nor_their_order(workers: int) -> None:
    batches = mixed()
    loaded = list(loader.load(batches, range(3, 7), workers=workers))
    assert len(loaded) == 4
    for step, tensors in enumerate(loaded, start=3):
        for found, expected in zip(tensors, loader.tensors_of(batches.draw(step)), strict=True):
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_raised_here(workers: int) -> None:
    batches = Batches([Weighted(Marked(("1d",), 1.0, empty=True), 1.0)], ("1d",), 8)
    with pytest.raises(SourceError, match="too few"):
        next(loader.load(batches, range(1, 3), workers=workers))
