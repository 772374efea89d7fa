"""LightGBM through mlforecast: one model for each quantile level and one for the mean, over all series together.

Every lag is at least as long as the horizon, so that each step is forecast directly from what was sold; a model of a
quantile cannot be fed its own forecasts. Beside lags and rolling sums it sees the calendar, the series' category and
brand, prices, promotions, events, closed days, and further covariates known ahead. What a level says below the one
before it is sorted upwards; what is below 0 becomes 0.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from lightgbm import LGBMRegressor
from mlforecast import MLForecast
from mlforecast.lag_transforms import RollingMean, RollingStd
from numpy.typing import NDArray

from feature_store.calendar_time import local_clock
from forecaster.contract import QUANTILE_LEVELS
from forecaster.rolling_origins import Forecasts, Integers, filled_past
from forecaster.series import SeriesTable

NAMES = ("lightgbm", "lightgbm_scaled")
_STATIC = ("category", "brand", "level")
_CLOCK = ("hour_of_day", "day_of_week", "day_of_month", "day_of_year")
_KNOWN = ("unit_price", "promotion", "open", "event")
# Season of the lags, windows of the rolling means, and how much past is learnt from, in buckets.
_SEASONS = {"1h": 24, "1d": 7, "1w": 52}
_WINDOWS = {"1h": (24, 168), "1d": (7, 28, 91), "1w": (4, 13)}
_LONGEST = {"1h": 1_344, "1d": 730, "1w": 260}
_LAGS = 4  # seasons back, beyond the first the horizon allows


class LightGbm:
    """LightGBM with mlforecast's features; trained anew at each origin on the series it is asked about."""

    def __init__(
        self,
        *,
        known: Sequence[str] = (),
        scaled: bool = False,
        rounds: int = 100,
        training_rows: int = 400_000,
        threads: int = 0,
    ) -> None:
        """
        Args:
            known: further columns of the table that are known ahead.
            scaled: learn each series as multiples of its own mean, as `lightgbm_scaled`. Of much use where
                series differ by orders of magnitude, of some harm where they are counts.
            rounds: of boosting, for each level.
            training_rows: at most so many are learnt from, a seeded sample.
            threads: 0 = one a core.
        """
        self.names = (NAMES[scaled],)
        self.fallbacks: Mapping[str, int] = {}
        self._known = tuple(known)
        self._scaled = scaled
        self._rounds = rounds
        self._training_rows = training_rows
        self._threads = threads

    def forecast(
        self, table: SeriesTable, rows: Integers, running: int, prediction_length: int
    ) -> Mapping[str, Forecasts]:
        """See `rolling_origins.Contestants`.

        Raises:
            ValueError: no series is long enough for one lag of the horizon's length.
        """
        frame, columns = self._frame(table, rows, running, prediction_length)
        scale = frame.groupby("unique_id")["y"].mean().to_numpy()
        scale = np.where((scale > 0) & self._scaled, scale, 1.0)
        frame["level"] = scale[frame["unique_id"]]
        frame["y"] /= frame["level"]
        past = frame[frame["ds"] < running]
        future = frame[frame["ds"] >= running].drop(columns=["y", *_STATIC])
        pipeline = self._pipeline(table.freq, prediction_length)
        features = pipeline.preprocess(past, static_features=list(_STATIC), dropna=False)
        features = features[features[f"lag{prediction_length}"].notna()]
        if not len(features):
            raise ValueError(
                f"no series has more than {prediction_length} buckets before the first origin to learn from"
            )
        if len(features) > self._training_rows:
            features = features.sample(self._training_rows, random_state=0)
        self._fit(pipeline, features.drop(columns=["unique_id", "ds", "y"]), features["y"].to_numpy())
        with warnings.catch_warnings():
            # LightGBM takes a price that is not known as it is.
            warnings.filterwarnings("ignore", "Found null values")
            said = pipeline.predict(prediction_length, X_df=future[["unique_id", "ds", *columns]])
        shape, level_of = (len(rows), prediction_length), scale[:, None]
        # mlforecast answers by unique_id, here the place in `rows`, and time.
        said = said.sort_values(["unique_id", "ds"])
        levels = np.stack([said[f"q{level:g}"].to_numpy().reshape(shape) for level in QUANTILE_LEVELS], axis=2)
        quantiles = (np.maximum(np.sort(levels, axis=2), 0.0) * level_of[:, :, None]).astype(np.float32)
        mean = (np.maximum(said["mean"].to_numpy().reshape(shape), 0.0) * level_of).astype(np.float32)
        return {self.names[0]: Forecasts(quantiles, mean)}

    def _fit(self, pipeline: MLForecast, features: pd.DataFrame, units: NDArray[np.float32]) -> None:
        """What `fit_models` does, side by side: one thread a model, since LightGBM's own threads wait for each other at
        every split, and on busy cores most of the time."""
        with ThreadPoolExecutor(self._threads or os.cpu_count()) as pool:
            fitted = pool.map(lambda model: model.fit(features, units), pipeline.models.values())
            pipeline.models_ = dict(zip(pipeline.models, fitted, strict=True))

    def _pipeline(self, freq: str, horizon: int) -> MLForecast:
        common = {
            "n_estimators": self._rounds,
            "learning_rate": 0.1,
            "num_leaves": 31,
            "max_bin": 127,
            "min_child_samples": 50,
        }
        common |= {"verbosity": -1, "seed": 0, "deterministic": True, "n_jobs": 1}
        models = {
            f"q{level:g}": LGBMRegressor(objective="quantile", alpha=level, **common) for level in QUANTILE_LEVELS
        }
        models["mean"] = LGBMRegressor(objective="tweedie", tweedie_variance_power=1.2, **common)
        season = _SEASONS[freq]
        first_season = -(-horizon // season) * season
        lags = sorted({*range(horizon, horizon + 7), *(first_season + season * n for n in range(_LAGS))})
        rolling = [RollingMean(window, min_samples=1) for window in _WINDOWS[freq]]
        rolling.append(RollingStd(_WINDOWS[freq][-1], min_samples=2))
        return MLForecast(models, freq=1, lags=lags, lag_transforms={horizon: rolling})

    def _frame(
        self, table: SeriesTable, rows: Integers, running: int, prediction_length: int
    ) -> tuple[pd.DataFrame, list[str]]:
        """The series' last buckets and those of the horizon, in long form, and the names of what is known ahead."""
        longest = _LONGEST[table.freq]
        pasts = [filled_past(table, row, running, _SEASONS[table.freq], longest) for row in rows.tolist()]
        lengths = np.array([len(past) + prediction_length for past in pasts])
        item = np.repeat(np.arange(len(rows)), lengths)
        begin = np.array([running - len(past) for past in pasts])
        bucket = np.arange(len(item)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + begin[item]
        blank = np.full(prediction_length, np.nan, dtype=np.float32)
        frame = {
            "unique_id": item,
            "ds": bucket,
            "y": np.concatenate([part for past in pasts for part in (past, blank)]),
            "category": table.category_code[rows][item],
            "brand": table.brand_code[rows][item],
        }
        clock = local_clock(table.freq, np.arange(bucket.min(), running + prediction_length), table.time_zone)
        known = dict(zip(_CLOCK, clock[bucket - bucket.min()].T, strict=True))
        at = bucket - table.first_bucket[rows][item]
        inside = (at >= 0) & (at < np.diff(table.offsets)[rows][item])
        cells = np.where(inside, table.offsets[rows][item] + at, 0)
        for name in (*_KNOWN, *self._known):
            if name in table.columns:
                known[name] = np.where(inside, table.columns[name][cells], np.float32(np.nan))
        told = {name: values for name, values in known.items() if np.isfinite(values).any()}
        return pd.DataFrame(frame | told), list(told)
