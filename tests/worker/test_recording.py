"""`shelfcast recording`: what it shows, and what it makes of tables, worked out by hand."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiokafka.partitioner import DefaultPartitioner
from click.testing import CliRunner, Result

from feature_store.events import EVENT_CLASSES
from feature_store.recording_files import Recording
from tests.feature_store.test_recording_edit import ROWS, record
from worker.cli import shelfcast

_PARTITIONS = 4


def run(*arguments: object, **settings: str) -> Result:
    environment = {f"SHELFCAST_{name.upper()}": value for name, value in settings.items()}
    return CliRunner().invoke(shelfcast, ["recording", *map(str, arguments)], env=environment)


def ms(text: str) -> int:
    """Of a time that tells its offset."""
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


def imported(path: Path, output: Path, *options: str) -> list[tuple[str, dict[str, Any]]]:
    """Topic and event, in the order of a replay. What each record has to be besides its value is checked here."""
    result = run("import", path, "--output", output, "--partitions", _PARTITIONS, *options)
    assert result.exit_code == 0, (result.output, result.exception)
    recording = Recording.open(output)
    assert recording.verify() == []
    partitioner, partitions = DefaultPartitioner(), list(range(_PARTITIONS))
    out = []
    for m in recording.merged():
        for topic, p, time_ms, key, value, headers in zip(
            m.topic.tolist(), m.partition.tolist(), m.timestamps_ms.tolist(), m.keys, m.values, m.headers, strict=True
        ):
            event = json.loads(value or b"")
            assert key == event["product_id"].encode()
            assert p == partitioner(key, partitions, partitions)
            assert time_ms == event["event_time"]
            assert headers is None
            out.append((m.topics[topic], event))
        assert m.due_ms.tolist() == m.timestamps_ms.tolist()
        assert m.timestamp_types.tolist() == [1] * len(m.offset)
    for topic in recording.topics:
        assert recording.partition_count(topic) == _PARTITIONS
        for columns in recording.columns(topic):
            assert columns.offsets.tolist() == list(range(len(columns.offsets)))
    return out


def told(kind: str, event: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that hold their defaults."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(EVENT_CLASSES[kind])}
    return {name: value for name, value in event.items() if value != defaults[name]}


def write(path: Path, **columns: tuple[Any, list[Any]]) -> Path:
    """A Parquet file of columns, each with its type."""
    path.parent.mkdir(exist_ok=True, parents=True)
    arrays = {name: pa.array(values, type=kind) for name, (kind, values) in columns.items()}
    pq.write_table(pa.table(arrays), path)
    return path


def stamps(*texts: str) -> tuple[Any, list[Any]]:
    return pa.timestamp("ms"), [dt.datetime.fromisoformat(text) for text in texts]


def test_online_retail_ii(tmp_path: Path) -> None:
    path = write(
        tmp_path / "retail.parquet",
        Invoice=(pa.large_string(), ["489434", "489434", "C489435", "489436", "489437"]),
        StockCode=(pa.large_string(), ["85048", "POST", "79323p", "79323P", "85048"]),
        Description=(pa.large_string(), ["LIGHTS", "POSTAGE", "CHERRY", "CHERRY", None]),
        Quantity=(pa.int32(), [12, 1, -3, 24, 6]),
        InvoiceDate=stamps(
            "2009-12-01T07:45:00", "2009-12-01T07:45:00", "2010-07-01T10:00:00", "2010-07-01T09:59:00", "2010-07-02"
        ),
        Price=(pa.float64(), [6.95, 18.0, 6.75, 6.75, 0.0]),
    )
    events = imported(path, tmp_path / "out", "--from", "online_retail_ii")
    assert [(topic, told("orders", event)) for topic, event in events] == [
        (
            "shop.orders.v1",
            {"event_time": time_ms, "product_id": product, "quantity": units, "unit_price": price, "currency": "GBP"}
            | {"event_id": event_id, "order_id": event_id.partition("-")[0]}
            | more,
        )
        for time_ms, product, units, price, event_id, more in (
            (ms("2009-12-01T07:45:00+00:00"), "85048", 12.0, 6.95, "489434-0", {}),
            (ms("2010-07-01T09:59:00+01:00"), "79323P", 24.0, 6.75, "489436-1", {}),
            (ms("2010-07-01T10:00:00+01:00"), "79323P", 3.0, 6.75, "C489435-2", {"kind": "cancel"}),
        )
    ]


def dunnhumby(path: Path) -> Path:
    return write(
        path,
        household_id=(pa.int16(), [900, 900, 901, 902]),
        store_id=(pa.int32(), [330, 330, 406, 406]),
        basket_id=(pa.int64(), [31198570044, 31198570044, 31198655051, 31198655052]),
        product_id=(pa.int32(), [1095275, 9878513, 6534178, 1095275]),
        quantity=(pa.int32(), [3, 0, 8000, 1]),
        sales_value=(pa.float64(), [1.0, 0.0, 20.0, 0.5]),
        transaction_timestamp=stamps(
            "2017-01-01T11:53:26", "2017-01-01T11:53:26", "2017-01-01T12:00:00", "2017-07-01T10:00:00"
        ),
    )


def test_dunnhumby(tmp_path: Path) -> None:
    path = dunnhumby(tmp_path / "transactions.parquet")
    events = imported(path, tmp_path / "out", "--from", "dunnhumby")
    first = {
        "event_time": ms("2017-01-01T11:53:26+00:00"),
        "product_id": "1095275",
        "quantity": 3.0,
        "unit_price": 0.333333,
        "event_id": "31198570044-0",
        "location_id": "330",
        "order_id": "31198570044",
        "currency": "USD",
    }
    second = first | {
        "event_time": ms("2017-07-01T10:00:00+00:00"),
        "quantity": 1.0,
        "unit_price": 0.5,
        "event_id": "31198655052-3",
        "location_id": "406",
        "order_id": "31198655052",
    }
    assert [told("orders", event) for _, event in events] == [first, second]
    bare = imported(path, tmp_path / "bare", "--from", "dunnhumby", "--no-locations")
    assert [event["location_id"] for _, event in bare] == ["", ""]


def test_eshop_clicks(tmp_path: Path) -> None:
    """Two sessions of one day begin at midnight and noon, one of the next at midnight; Warsaw is two hours ahead."""
    day, after = dt.date(2008, 4, 1), dt.date(2008, 4, 2)
    path = write(
        tmp_path / "clicks.parquet",
        date=(pa.date32(), [day, day, day, after, day]),
        session_id=(pa.int32(), [1, 1, 7, 9, 7]),
        order=(pa.int16(), [1, 2, 1, 1, 30000]),
        page2_clothing_model_code=(pa.int16(), [5, 8, 5, 217, 8]),
    )
    events = imported(path, tmp_path / "out", "--from", "eshop_clicks")
    expected = [
        ("2008-04-01T00:00:00+02:00", "5", 0),
        ("2008-04-01T00:00:01+02:00", "8", 1),
        ("2008-04-01T12:00:00+02:00", "5", 2),
        ("2008-04-01T20:19:59+02:00", "8", 4),
        ("2008-04-02T00:00:00+02:00", "217", 3),
    ]
    assert [told("clicks", event) for _, event in events] == [
        {"event_time": ms(time), "product_id": product, "action": "view", "event_id": f"eshop-{row}"}
        for time, product, row in expected
    ]


def test_yoochoose(tmp_path: Path) -> None:
    path = write(
        tmp_path / "clicks.parquet",
        ts=(pa.timestamp("us"), [dt.datetime(2014, 4, 1, 1, 2, 33, 88000), dt.datetime(2014, 4, 1, 1, 2, 21, 719000)]),
        session_id=(pa.int32(), [23422, 5182]),
        item_id=(pa.int32(), [214821371, 214821026]),
    )
    events = imported(path, tmp_path / "out", "--from", "yoochoose")
    assert [told("clicks", event) for _, event in events] == [
        {"event_time": ms(time), "product_id": product, "action": "view", "event_id": f"yoochoose-{row}"}
        for time, product, row in (
            ("2014-04-01T01:02:21.719+00:00", "214821026", 1),
            ("2014-04-01T01:02:33.088+00:00", "214821371", 0),
        )
    ]


def test_olist(tmp_path: Path) -> None:
    """An order of two of one product and one of another, its review, and an item whose order is not there."""
    folder, text = tmp_path / "olist", pa.large_string()
    write(
        folder / "olist_sample_orders.parquet",
        order_id=(text, ["o1", "o2"]),
        order_purchase_timestamp=stamps("2017-10-02T10:56:33", "2017-12-24T20:00:00"),
    )
    write(
        folder / "olist_sample_order_items.parquet",
        order_id=(text, ["o2", "o1", "o1", "o1", "o3"]),
        order_item_id=(pa.int64(), [1, 1, 2, 3, 1]),
        product_id=(text, ["vase", "vase", "vase", "lamp", "rug"]),
        price=(pa.float64(), [31.0, 29.99, 29.99, 8.72, 1.0]),
    )
    write(
        folder / "olist_sample_order_reviews.parquet",
        review_id=(text, ["r1", "r2"]),
        order_id=(text, ["o1", "o9"]),
        review_score=(pa.int64(), [4, 1]),
        review_comment_title=(text, ["Bom ", None]),
        review_comment_message=(text, ["Não veio tudo", None]),
        review_answer_timestamp=stamps("2017-10-12T03:43:48", "2017-10-12T03:43:48"),
    )
    write(
        folder / "olist_products.parquet",
        product_id=(text, ["rug", "vase", "lamp"]),
        product_category_name_english=(text, ["rugs", "housewares", None]),
    )
    events = imported(folder, tmp_path / "out", "--from", "olist")
    ordered, later = ms("2017-10-02T10:56:33-03:00"), ms("2017-12-24T20:00:00-02:00")
    by_topic: dict[str, list[dict[str, Any]]] = {}
    for topic, event in events:
        by_topic.setdefault(topic.split(".")[1], []).append(told(topic.split(".")[1], event))
    order = {"quantity": 1.0, "currency": "BRL", "order_id": "o1", "event_time": ordered}
    assert sorted(by_topic["orders"], key=lambda event: event["event_id"]) == [
        order | {"product_id": "vase", "unit_price": 29.99, "event_id": "o1-1"},
        order | {"product_id": "vase", "unit_price": 29.99, "event_id": "o1-2"},
        order | {"product_id": "lamp", "unit_price": 8.72, "event_id": "o1-3"},
        order | {"product_id": "vase", "unit_price": 31.0, "event_id": "o2-1", "order_id": "o2", "event_time": later},
    ]
    review = {"event_time": ms("2017-10-12T03:43:48-03:00"), "rating": 4, "text": "Bom\nNão veio tudo"}
    assert sorted(by_topic["reviews"], key=lambda event: event["product_id"]) == [
        review | {"product_id": "lamp", "event_id": "r1-o1-lamp"},
        review | {"product_id": "vase", "event_id": "r1-o1-vase"},
    ]
    assert sorted(by_topic["products"], key=lambda event: event["product_id"]) == [
        {"event_time": ordered, "product_id": "lamp"},
        {"event_time": ordered, "product_id": "vase", "category": "housewares"},
    ]


ORDERS_CSV = """when,sku,units,each,what,note
2026-03-29T01:30:00,mug,2,3.5,sale,a
2026-03-28 23:00:00,7,-1,3.5,sale,
2026-03-29T03:30:00,mug,1.25,0,return,c
"""
ORDER_OPTIONS = [
    *("--kind", "orders", "--map", "event_time=when", "--map", "product_id=sku", "--map", "quantity=units"),
    *("--map", "unit_price=each", "--map", "kind=what", "--map", "promotion_id=note"),
    *("--set", "currency=EUR", "--time-zone", "Europe/Lisbon"),
]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_any_table_with_a_mapping(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"sales.{kind}"
    header, *lines = (line.split(",") for line in ORDERS_CSV.splitlines())
    if kind == "csv":
        path.write_text(ORDERS_CSV)
    else:
        rows = [dict(zip(header, line, strict=True)) for line in lines]
        typed = [row | {"units": float(row["units"]), "each": float(row["each"])} for row in rows]
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in typed))
        else:
            times = [row | {"when": dt.datetime.fromisoformat(str(row["when"]))} for row in typed]
            pq.write_table(pa.Table.from_pylist(times), path)
    events = imported(path, tmp_path / "out", *ORDER_OPTIONS)
    rows_of = [{name: value for name, value in event.items() if name != "promotion_id"} for _, event in events]
    common = {"currency": "EUR", "unit_price": 3.5}
    assert [told("orders", event) for event in rows_of] == [
        common
        | {"event_time": ms("2026-03-28T23:00:00+00:00"), "product_id": "7", "quantity": -1.0}
        | {"event_id": "sales-1"},
        common
        | {"event_time": ms("2026-03-29T01:30:00+00:00"), "product_id": "mug", "quantity": 2.0}
        | {"event_id": "sales-0"},
        common
        | {"event_time": ms("2026-03-29T03:30:00+01:00"), "product_id": "mug", "quantity": 1.25}
        | {"event_id": "sales-2", "unit_price": 0.0, "kind": "return"},
    ]
    assert [event["promotion_id"] for _, event in events][1:] == ["a", "c"]


def test_a_number_that_names_a_product_keeps_its_zeros(tmp_path: Path) -> None:
    path = tmp_path / "views.csv"
    path.write_text("at,sku\n2026-03-01,00123\n")
    options = ["--kind", "clicks", "--map", "event_time=at", "--map", "product_id=sku", "--set", "action=view"]
    assert [event["product_id"] for _, event in imported(path, tmp_path / "out", *options)] == ["00123"]


def test_two_imports_hold_the_same_bytes(tmp_path: Path) -> None:
    path = dunnhumby(tmp_path / "transactions.parquet")
    for name in ("a", "b"):
        imported(path, tmp_path / name, "--from", "dunnhumby")
    files = [{p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).glob("*/*")} for n in ("a", "b")]
    assert files[0]
    assert files[0] == files[1]


def test_partitions_and_topics_are_the_settings(tmp_path: Path) -> None:
    path = dunnhumby(tmp_path / "transactions.parquet")
    output = tmp_path / "out"
    settings = {"partition_count": "3", "topic_orders": "other.orders"}
    assert run("import", path, "--from", "dunnhumby", "--output", output, **settings).exit_code == 0
    assert Recording.open(output).partition_count("other.orders") == 3
    assert Recording.open(output).manifest.schema_versions == {"other.orders": "orders"}


def test_rows_that_make_no_event_are_refused_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("t,p,a\n1000,mug,view\n2000,mug,stare\n3000,,view\n")
    options = ["--kind", "clicks", "--map", "event_time=t", "--map", "product_id=p", "--map", "action=a"]
    refused = run("import", path, "--output", tmp_path / "x", *options)
    assert "clicks.csv row 2: Invalid enum value 'stare'" in str(refused.exception)
    left = run("import", path, "--output", tmp_path / "y", *options, "--skip-invalid")
    assert "shop.clicks.v1: 1 events" in left.output
    assert "2 rows left out" in left.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "clicks"], "clicks need event_time, product_id, action"),
        (["--kind", "clicks", "--map", "colour=p"], "have no field colour"),
        (["--kind", "clicks", "--map", "event_time=T", "--map", "product_id=p", "--map", "action=a"], "no column T"),
        (["--from", "yoochoose"], "no column ts, item_id: its columns are t, p, a"),
        (["--from", "olist"], "is no folder"),
        (["--from", "online_retail_ii"], "clicks.csv"),
        (["--from", "yoochoose", "--map", "a=b"], "go with --kind"),
        ([], "say what the table is"),
        (["--kind", "clicks", "--map", "event_time"], "write FIELD="),
        (["--from", "yoochoose", "--time-zone", "Mars/Base"], "unknown time zone 'Mars/Base'"),
    ],
)
def test_what_cannot_be_imported_is_said(tmp_path: Path, options: list[str], message: str) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("t,p,a\n1000,mug,view\n")
    result = run("import", path, "--output", tmp_path / "out", *options)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)


def test_show_tells_what_there_is(tmp_path: Path) -> None:
    record(tmp_path / "whole", ROWS)
    shown = run("show", tmp_path / "whole").output.splitlines()
    assert shown[0] == "recorded from kafka:9092, begun 1970-01-01T00:00:00.007Z"
    rows = [line.split() for line in shown[2:]]
    assert rows[0][:7] == ["orders", "2", "in", "all", "14", "3", "files"]
    assert rows[1] == ["0", "6", "0-7", "2", "1970-01-01T00:00:00.010Z", "1970-01-01T00:00:00.050Z"]
    assert rows[2] == ["1", "8", "0-7", "-", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.070Z"]


def test_verify_tells_what_is_wrong(tmp_path: Path) -> None:
    recording = record(tmp_path / "whole", ROWS)
    assert "is whole: 15 records" in run("verify", tmp_path / "whole").output
    (recording.path / recording.files("orders")[0].path).unlink()
    damaged = run("verify", tmp_path / "whole")
    assert damaged.exit_code == 1
    assert "orders/000001.parquet: is missing" in damaged.output


def test_cut_and_merge(tmp_path: Path) -> None:
    record(tmp_path / "whole", ROWS)
    early, late = tmp_path / "early", tmp_path / "late"
    assert run("cut", tmp_path / "whole", "--output", early, "--to", "1970-01-01T00:00:00.030Z").exit_code == 0
    assert run("cut", tmp_path / "whole", "--output", late, "--from", "1970-01-01T00:00:00.030Z").exit_code == 0
    assert run("merge", late, early, "--output", tmp_path / "again").output.endswith("again holds 15 records\n")
    assert "before 1970-01-01T00:00:00.030Z" in run("show", tmp_path / "again").output
    product = run("cut", tmp_path / "whole", "--output", tmp_path / "mug", "--product", "mug", "--topic", "orders")
    assert product.output.endswith("mug holds 5 records\n")
    assert "say what to keep" in run("cut", tmp_path / "whole", "--output", tmp_path / "x").output
