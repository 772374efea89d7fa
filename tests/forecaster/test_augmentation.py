"""Windows shown as if of another shop: what is changed, and that all else stays as it was drawn."""

import numpy as np

from feature_store.known_future import KNOWN_CHANNELS
from forecaster.augmentation import Elsewhere
from forecaster.dataset import Window
from forecaster.sources import SeriesSource
from tests.forecaster.builders import small_table

ROWS = 400
YEAR_DAY = KNOWN_CHANNELS.index("day_of_year")


def source() -> SeriesSource:
    return SeriesSource(small_table(), first_bucket=20_001, last_bucket=20_179, known_end=20_180)


def drawn(*, moved: bool) -> tuple[Window, Window]:
    """The same windows as the table has them and as they are shown."""
    plain = source().draw("1d", ROWS, np.random.default_rng(3))
    shown = Elsewhere(source(), moved).draw("1d", ROWS, np.random.default_rng(3))
    assert plain is not None
    assert shown is not None
    return plain, shown


def test_ages_are_unknown_or_higher_now_and_then() -> None:
    plain, shown = (window.inputs.static for window in drawn(moved=False))
    age, before = shown[:, 0], plain[:, 0]
    assert 0.05 < np.isnan(age).mean() < 0.16
    assert 0.2 < (age > before).mean() < 0.4
    assert not (age < before).any()
    np.testing.assert_array_equal(shown[:, 1:], plain[:, 1:])


def test_days_of_the_year_move_together() -> None:
    plain, shown = (window.inputs.known for window in drawn(moved=True))
    by = (shown[:, :, YEAR_DAY] - plain[:, :, YEAR_DAY]) % 366
    assert (by == by[:, :1]).all(), "context and future alike"
    assert len(np.unique(by[:, 0])) > ROWS / 3, "each window by itself"
    assert shown[:, :, YEAR_DAY].min() >= 1
    assert shown[:, :, YEAR_DAY].max() <= 366
    others = np.arange(len(KNOWN_CHANNELS)) != YEAR_DAY
    np.testing.assert_array_equal(shown[:, :, others], plain[:, :, others])


def test_sales_and_their_past_stay() -> None:
    plain, shown = drawn(moved=True)
    np.testing.assert_array_equal(shown.inputs.context, plain.inputs.context)
    np.testing.assert_array_equal(shown.units, plain.units)
    assert drawn(moved=False)[1].inputs.known.tobytes() == plain.inputs.known.tobytes()


def test_the_same_generator_shows_the_same() -> None:
    one, other = drawn(moved=True)[1], drawn(moved=True)[1]
    for a, b in zip(one.inputs, other.inputs, strict=True):
        np.testing.assert_array_equal(a, b)
