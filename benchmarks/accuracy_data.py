"""Real shops as tables of series: M5, Walmart, Online Retail II and dunnhumby, from the Parquet files of a folder.

The files are those that the sets were published as, put into Parquet; README.md of this folder says which.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_store.calendar_time import bucket_of
from feature_store.events import Action, EventBatch
from forecaster import online_retail
from forecaster.contract import Covariates
from forecaster.inputs import hash_code
from forecaster.recorded_series import counted_series
from forecaster.series import SeriesTable

Floats = NDArray[np.float32]
_DAY_MS = 86_400_000
_EPOCH = dt.date(1970, 1, 1)
M5_FIRST_DAY = (dt.date(2011, 1, 29) - _EPOCH).days  # d_1
M5_DAYS = 1941
M5_HORIZON = 28
M5_EVENT_TYPES = ("National", "Religious", "Cultural", "Sporting")
M5_COVARIATES = Covariates(known=("snap", *(f"event_{name.lower()}" for name in M5_EVENT_TYPES)))
WALMART_PAST = ("temperature", "fuel_price", "cpi", "unemployment", "markdown")
WALMART_COVARIATES = Covariates(past=WALMART_PAST)


class M5(NamedTuple):
    """The table, and what WRMSSE needs to know of each series."""

    table: SeriesTable
    keys: dict[str, tuple[str, ...]]  # item_id, dept_id, cat_id, store_id, state_id: one for each series


def numbers(column: Any, dtype: str) -> NDArray[Any]:
    """A column of Parquet as numpy; null is NaN where the dtype is of floats."""
    return np.asarray(column.to_numpy()).astype(dtype)


def m5(folder: Path) -> M5:
    """M5, d_1 to d_1941, with 28 future days: prices and events are covariates known ahead.

    Prices are missing for the first weeks and from d_1914 on: the first and the last known one stand in.
    """
    sales = pq.read_table(folder / "m5_sales_train.parquet")
    later = pq.read_table(folder / "m5_sales_d1914_d1941.parquet")
    ids = [_m5_id(table) for table in (sales, later)]
    later = later.take(pc.index_in(*ids))
    days = M5_DAYS + M5_HORIZON
    units = np.full((len(sales), days), np.nan, dtype=np.float32)
    for day in range(1, M5_DAYS + 1):
        units[:, day - 1] = numbers((sales if day <= 1913 else later)[f"d_{day}"], "float32")
    names = ("item_id", "dept_id", "cat_id", "store_id", "state_id")
    keys = {name: tuple(sales[name].to_pylist()) for name in names}
    calendar = pq.read_table(folder / "m5_calendar.parquet").slice(0, days)
    columns = {"unit_price": _m5_prices(folder, keys, numbers(calendar["wm_yr_wk"], "int64"))}
    columns |= _m5_calendar(calendar, keys["state_id"])
    # An item begins with its first sale; what stands before it is not demand.
    first = np.argmax(np.nan_to_num(units) > 0, axis=1)
    kept = np.arange(days) >= first[:, None]
    table = SeriesTable(
        freq="1d",
        time_zone="UTC",
        item_ids=tuple(ids[0].to_pylist()),
        first_bucket=M5_FIRST_DAY + first.astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(days - first)]).astype(np.int64),
        units=units[kept],
        columns={name: np.broadcast_to(values, units.shape)[kept] for name, values in columns.items()},
        category_code=np.array([hash_code(name) for name in keys["dept_id"]], dtype=np.int64),
        brand_code=np.array([hash_code(name) for name in keys["store_id"]], dtype=np.int64),
        launch_bucket=M5_FIRST_DAY + first.astype(np.int64),
    )
    return M5(table, keys)


def _m5_id(table: Any) -> Any:
    """Without the ending that says which file it is of."""
    return pc.replace_substring_regex(table["id"].combine_chunks(), "_(validation|evaluation)$", "")


def _m5_prices(folder: Path, keys: dict[str, tuple[str, ...]], week_of_day: NDArray[np.int64]) -> Floats:
    prices = pq.read_table(folder / "m5_sell_prices.parquet")
    place = {pair: i for i, pair in enumerate(zip(keys["store_id"], keys["item_id"], strict=True))}
    stores, items = prices["store_id"].combine_chunks(), prices["item_id"].combine_chunks()
    pair = numbers(stores.indices, "int64") * len(items.dictionary) + numbers(items.indices, "int64")
    distinct, row = np.unique(pair, return_inverse=True)
    store_names, item_names = stores.dictionary.to_pylist(), items.dictionary.to_pylist()
    series = [place[store_names[p // len(item_names)], item_names[p % len(item_names)]] for p in distinct.tolist()]
    weeks = np.unique(week_of_day)
    by_week = np.full((len(place), len(weeks)), np.nan, dtype=np.float32)
    week = np.searchsorted(weeks, numbers(prices["wm_yr_wk"], "int64"))
    by_week[np.array(series)[row], week] = numbers(prices["sell_price"], "float32")
    return filled(by_week)[:, np.searchsorted(weeks, week_of_day)]


def filled(values: Floats) -> Floats:
    """Gaps of each row filled with the last known value, those before the first with the first."""
    at = np.where(np.isfinite(values), np.arange(values.shape[1]), -1)
    last = np.maximum.accumulate(at, axis=1)
    first = np.argmax(at >= 0, axis=1)[:, None]
    return np.asarray(np.take_along_axis(values, np.where(last >= 0, last, first), axis=1))


def _m5_calendar(calendar: Any, states: tuple[str, ...]) -> dict[str, Floats]:
    types = [calendar[f"event_type_{n}"].to_pylist() for n in (1, 2)]
    out = {}
    for name in M5_EVENT_TYPES:
        out[f"event_{name.lower()}"] = np.array([name in pair for pair in zip(*types, strict=True)], dtype=np.float32)
    out["event"] = np.array([any(pair) for pair in zip(*types, strict=True)], dtype=np.float32)
    dates = calendar["date"].to_pylist()
    out["open"] = np.array([not (date.month == 12 and date.day == 25) for date in dates], dtype=np.float32)
    snap = np.stack([numbers(calendar[f"snap_{state}"], "float32") for state in ("CA", "TX", "WI")])
    out["snap"] = snap[[("CA", "TX", "WI").index(state) for state in states]]
    return out


def walmart(folder: Path) -> SeriesTable:
    """Walmart's weekly sales by store and department, in dollars, with holidays known ahead and other covariates of
    the past. Weeks end on the Fridays that name them, and stand for the week that begins on the Monday before."""
    sales = pq.read_table(folder / "walmart_weekly_sales.parquet")
    features = pq.read_table(folder / "walmart_features.parquet")
    store, dept = numbers(sales["Store"], "int64"), numbers(sales["Dept"], "int64")
    week = _weeks(sales["Date"])
    pairs, row = np.unique(store * 1000 + dept, return_inverse=True)
    first_week, end_week = int(week.min()), int(_weeks(features["Date"]).max()) + 1
    weeks = end_week - first_week
    units = np.full((len(pairs), weeks), np.nan, dtype=np.float32)
    units[row, week - first_week] = numbers(sales["Weekly_Sales"], "float32")
    by_store = _walmart_features(features, first_week, weeks)
    columns = {name: values[pairs // 1000] for name, values in by_store.items()}
    known = np.isfinite(units)
    first = np.argmax(known, axis=1)
    kept = np.arange(weeks) >= first[:, None]
    return SeriesTable(
        freq="1w",
        time_zone="UTC",
        item_ids=tuple(f"{p // 1000}_{p % 1000}" for p in pairs.tolist()),
        first_bucket=first_week + first.astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum(weeks - first)]).astype(np.int64),
        units=units[kept],
        columns={name: values[kept] for name, values in columns.items()},
        category_code=np.array([hash_code(f"department {p % 1000}") for p in pairs.tolist()], dtype=np.int64),
        brand_code=np.array([hash_code(f"store {p // 1000}") for p in pairs.tolist()], dtype=np.int64),
        launch_bucket=first_week + first.astype(np.int64),
    )


def _weeks(dates: Any) -> NDArray[np.int64]:
    days = np.array([(date - _EPOCH).days for date in dates.cast("date32").to_pylist()], dtype=np.int64)
    return bucket_of("1w", days * _DAY_MS, "UTC")


def _walmart_features(features: Any, first_week: int, weeks: int) -> dict[str, Floats]:
    """By store number: float32 (store, week)."""
    store, at = numbers(features["Store"], "int64"), _weeks(features["Date"]) - first_week
    markdown = np.sum([np.nan_to_num(numbers(features[f"MarkDown{n}"], "float32")) for n in range(1, 6)], axis=0)
    named = {
        "temperature": numbers(features["Temperature"], "float32"),
        "fuel_price": numbers(features["Fuel_Price"], "float32"),
        "cpi": numbers(features["CPI"], "float32"),
        "unemployment": numbers(features["Unemployment"], "float32"),
        "markdown": np.log1p(np.maximum(markdown, 0)),
        "event": numbers(features["IsHoliday"], "float32"),
    }
    out = {}
    for name, values in named.items():
        out[name] = np.full((int(store.max()) + 1, weeks), np.nan, dtype=np.float32)
        inside = at >= 0
        out[name][store[inside], at[inside]] = values[inside]
    return out


def online_retail_table(folder: Path, freq: str) -> SeriesTable:
    """Online Retail II, all goods, up to its last whole day."""
    lines = online_retail.read(folder / "online_retail_ii.parquet")
    last = dt.timedelta(days=int(lines.event_time_ms[-1] // _DAY_MS))
    end_ms = online_retail.day_start_ms(_EPOCH + last)
    return counted_series(lines.batch(), freq, online_retail.TIME_ZONE, end_ms=end_ms)


def dunnhumby_table(folder: Path, freq: str) -> SeriesTable:
    """dunnhumby's transactions over all stores, goods only, without lines above 100 units, which count something else
    than units; up to its last whole day."""
    read = pq.read_table(
        folder / "dunnhumby_transactions.parquet",
        columns=["product_id", "quantity", "sales_value", "transaction_timestamp"],
    )
    product, quantity = numbers(read["product_id"], "int64"), numbers(read["quantity"], "int64")
    time_ms = numbers(read["transaction_timestamp"].cast("timestamp[ms]"), "datetime64[ms]").astype(np.int64)
    value = numbers(read["sales_value"], "float64")
    kept = np.flatnonzero((quantity > 0) & (quantity <= 100))
    order = kept[np.argsort(time_ms[kept], kind="stable")]
    ids, series = np.unique(product[order], return_inverse=True)
    zeros = np.zeros(len(order), dtype=np.int64)
    batch = EventBatch(
        row=np.arange(len(order), dtype=np.int64),
        event_time_ms=time_ms[order],
        series=tuple((str(i), "") for i in ids.tolist()),
        series_index=series.astype(np.int64),
        action=np.full(len(order), Action.SALE, dtype=np.int8),
        quantity=quantity[order] * 1000,
        unit_price=np.rint(value[order] / quantity[order] * 1e6).astype(np.int64),
        rating=zeros,
        one_off=np.zeros(len(order), dtype=np.bool_),
    )
    return counted_series(batch, freq, "UTC", end_ms=int(time_ms[order[-1]]) // _DAY_MS * _DAY_MS)
