import datetime as dt
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store.events import Action
from forecaster import online_retail

SLICE = Path(__file__).parents[2] / "worker" / "demo_data" / "online_retail_ii_march_2011.parquet"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few lines as the set publishes them: each odd kind once."""
    at = dt.datetime(2010, 7, 1, 10, 30)
    winter = dt.datetime(2010, 12, 1, 10, 30)
    rows = [
        ("489434", "85123A", "LANTERN", 6, at, 2.55),
        ("489435", "85123a", "LANTERN ", 4, winter, 2.95),
        ("C489436", "85123A", "LANTERN", -2, at, 2.55),
        ("489437", "47503J ", "CLOCK", 1, at, 1.0),
        ("489438", "DCGS0058", "GLOVES", 3, at, 0.83),
        ("489439", "22222", "check?", -30, at, 0.0),
        ("489440", "22222", None, 7, at, 0.0),
        ("A489441", "B", "Adjust bad debt", 1, at, -53594.36),
        *[
            ("489442", code, "not goods", 1, at, 4.0)
            for code in (
                "POST", "DOT", "C2", "M", "m", "D", "S", "BANK CHARGES", "AMAZONFEE", "CRUK", "PADS", "B",
                "gift_0001_20", "TEST001", "ADJUST2",
            )
        ],
    ]  # fmt: skip
    names = ("Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price")
    types = (pa.large_string(), pa.large_string(), pa.large_string(), pa.int32(), pa.timestamp("ms"), pa.float64())
    columns = [pa.array(column, type=kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
    path = tmp_path_factory.mktemp("retail") / "published.parquet"
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), path)
    return path


def test_only_goods_at_a_price_are_kept(published: Path) -> None:
    lines = online_retail.read(published)
    assert lines.product_ids == ("47503J", "85123A", "DCGS0058")
    assert len(lines) == 5


def test_cancellations_have_positive_quantities(published: Path) -> None:
    events = list(online_retail.read(published).events())
    cancels = [event for event in events if event.kind == "cancel"]
    assert [(event.order_id, event.quantity, event.unit_price) for event in cancels] == [("C489436", 2.0, 2.55)]
    assert all(event.quantity > 0 and event.currency == "GBP" for event in events)


def test_times_are_the_shops_local_time(published: Path) -> None:
    lines = online_retail.read(published)
    summer = int(dt.datetime(2010, 7, 1, 9, 30, tzinfo=dt.UTC).timestamp()) * 1000
    winter = int(dt.datetime(2010, 12, 1, 10, 30, tzinfo=dt.UTC).timestamp()) * 1000
    assert lines.event_time_ms.tolist() == [summer] * 4 + [winter]


def test_titles_are_the_first_text_of_each_product(published: Path) -> None:
    expected = {"47503J": "CLOCK", "85123A": "LANTERN", "DCGS0058": "GLOVES"}
    assert online_retail.read(published).titles() == expected


def test_a_slice_reads_back_as_what_was_cut(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "slice.parquet"
    assert online_retail.write_slice(published, out, dt.date(2010, 7, 1), dt.date(2010, 7, 1)) == 4
    again, whole = online_retail.read(out), online_retail.read(published)
    expected = list(itertools.islice(whole.events(), 4))
    assert list(again.events()) == expected
    assert set(pq.read_schema(out).names).isdisjoint({"CustomerID", "Country"})


def test_another_table_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="neither Online Retail II"):
        online_retail.read(tmp_path / "other.parquet")


def test_the_demo_slice_is_four_clean_weeks() -> None:
    lines = online_retail.read(SLICE)
    assert len(lines) == 31_069
    assert pq.read_schema(SLICE).names == online_retail.SLICE_SCHEMA.names
    first = online_retail.day_start_ms(dt.date(2011, 2, 28))
    end = online_retail.day_start_ms(dt.date(2011, 3, 28))
    assert lines.event_time_ms.min() >= first
    assert lines.event_time_ms.max() < end
    assert (np.diff(lines.event_time_ms) >= 0).all()
    assert lines.quantity.min() > 0
    assert lines.unit_price.min() > 0
    assert set(lines.action.tolist()) == {Action.SALE, Action.CANCEL}
    cancelled = {lines.order_ids[order][0] for order in lines.order[lines.action == Action.CANCEL].tolist()}
    assert cancelled == {"C"}
    assert not {"POST", "DOT", "M", "D"} & set(lines.product_ids)


def test_events_and_columns_say_the_same() -> None:
    lines = online_retail.read(SLICE)
    batch = lines.batch()
    events = list(lines.events())
    assert [event.event_time for event in events] == batch.event_time_ms.tolist()
    assert [batch.series[s][0] for s in batch.series_index.tolist()] == [event.product_id for event in events]
    assert [round(event.quantity * 1000) for event in events] == batch.quantity.tolist()
    assert [round(event.unit_price * 1e6) for event in events] == batch.unit_price.tolist()
    assert len({event.event_id for event in events}) == len(events)


def test_the_closed_days_of_the_slice_are_none() -> None:
    lines = online_retail.read(SLICE)
    shut = [(entry.start_time, entry.end_time) for entry in online_retail.closures()]
    assert not any(((lines.event_time_ms >= a) & (lines.event_time_ms < b)).any() for a, b in shut)
    assert shut[0][1] - shut[0][0] == 11 * 86_400_000
