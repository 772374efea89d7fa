"""Online Retail II as order events: what is goods and what is not, cancellations, prices, the shop's local time.

Online Retail II, Daqing Chen, UCI Machine Learning Repository, doi 10.24432/C5CG6D, CC BY 4.0: two years of order
lines of a British web shop for gifts, many of whose customers are wholesalers. Times are the shop's own, to the minute.

What is left out, and why:

* lines that are not goods. Goods have codes of five digits and perhaps letters (85123A); beside them stand a second
  range of the catalogue, DCGS…, and one stray, SP1002. Everything else is bookkeeping: postage (POST, DOT, C2, C3),
  manual lines and discounts (M, D, S), fees (BANK CHARGES, AMAZONFEE), charity (CRUK), bad debt (B), swatches
  (PADS), vouchers (gift_…), tests and corrections (TEST…, ADJUST…);
* lines at a price of 0 or below: samples, write-offs, corrections of stock. Every negative quantity outside a
  cancellation is one of these.

An invoice starting with C cancels: its lines have negative quantities and become events of kind `cancel` with positive
ones. The code's letters come in both cases (85123a); they mean the same article and are read as capitals.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_store.calendar_time import bucket_start_ms
from feature_store.events import Action, CalendarEntry, EventBatch, OrderEvent

TIME_ZONE = "Europe/London"
CURRENCY = "GBP"
_GOODS = re.compile(r"\d{5}[A-Z]*|DCGS.*|SP1002")
_HOUR_MS = 3_600_000
# Days on which the shop is shut: its Christmas holidays and England's bank holidays, all announced long before. It is
# shut on Saturdays too, which a model can see from the day of the week.
_CLOSED_FROM_TO = (
    ("2009-12-24", "2010-01-03"),
    ("2010-04-02", "2010-04-05"),
    ("2010-05-03", "2010-05-03"),
    ("2010-05-31", "2010-05-31"),
    ("2010-08-30", "2010-08-30"),
    ("2010-12-24", "2011-01-03"),
    ("2011-04-22", "2011-04-25"),
    ("2011-04-29", "2011-04-29"),
)


@dataclass(frozen=True)
class OrderLines:
    """Order lines as columns, sorted by time; lines of one minute keep the order they were published in.

    Attributes:
        event_time_ms: int64 (line,), UTC.
        product_ids: distinct products; `product` int64 (line,) indexes them.
        order_ids: distinct invoices; `order` int64 (line,) indexes them.
        descriptions: distinct texts; `description` int64 (line,) indexes them. Empty = none was given.
        action: int8 (line,): Action.SALE or Action.CANCEL.
        quantity: int64 (line,), whole units, above 0.
        unit_price: int64 (line,), millionths of a pound, above 0.
    """

    event_time_ms: NDArray[np.int64]
    product_ids: tuple[str, ...]
    product: NDArray[np.int64]
    order_ids: tuple[str, ...]
    order: NDArray[np.int64]
    descriptions: tuple[str, ...]
    description: NDArray[np.int64]
    action: NDArray[np.int8]
    quantity: NDArray[np.int64]
    unit_price: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def between(self, start_ms: int, end_ms: int) -> OrderLines:
        """The lines from `start_ms` on, before `end_ms`. The lists of distinct values stay as they are."""
        first, last = np.searchsorted(self.event_time_ms, [start_ms, end_ms]).tolist()
        cut = slice(first, last)
        return OrderLines(
            self.event_time_ms[cut],
            self.product_ids,
            self.product[cut],
            self.order_ids,
            self.order[cut],
            self.descriptions,
            self.description[cut],
            self.action[cut],
            self.quantity[cut],
            self.unit_price[cut],
        )

    def batch(self) -> EventBatch:
        """The lines as the columns that `features.bucket_rows` reads; series are (product_id, "")."""
        lines = len(self)
        return EventBatch(
            row=np.arange(lines, dtype=np.int64),
            event_time_ms=self.event_time_ms,
            series=tuple((product_id, "") for product_id in self.product_ids),
            series_index=self.product,
            action=self.action,
            quantity=self.quantity * 1000,
            unit_price=self.unit_price,
            rating=np.zeros(lines, dtype=np.int64),
            one_off=np.zeros(lines, dtype=np.bool_),
        )

    def events(self) -> Iterator[OrderEvent]:
        """The lines as messages, in order. `event_id` is the line's place in its file: unique within one reading."""
        columns = (self.event_time_ms, self.product, self.order, self.action, self.quantity, self.unit_price)
        for line, (time_ms, product, order, action, quantity, price) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            kind: Literal["sale", "cancel"] = "cancel" if action == Action.CANCEL else "sale"
            yield OrderEvent(
                event_time=time_ms,
                product_id=self.product_ids[product],
                quantity=float(quantity),
                unit_price=price / 1e6,
                event_id=f"{self.order_ids[order]}-{line}",
                order_id=self.order_ids[order],
                kind=kind,
                currency=CURRENCY,
            )

    def titles(self) -> dict[str, str]:
        """Each product's text as it was first written in these lines; products without any are left out."""
        out: dict[str, str] = {}
        for product, description in zip(self.product.tolist(), self.description.tolist(), strict=True):
            if self.descriptions[description]:
                out.setdefault(self.product_ids[product], self.descriptions[description])
        return out


def day_start_ms(day: dt.date) -> int:
    """First millisecond (UTC) of a local date of the shop."""
    number = np.array([(day - dt.date(1970, 1, 1)).days], dtype=np.int64)
    return int(bucket_start_ms("1d", number, TIME_ZONE)[0])


def closures() -> list[CalendarEntry]:
    """Calendar entries of the whole shop for the days on which it is shut."""
    day = dt.timedelta(days=1)
    return [
        CalendarEntry(
            start_time=day_start_ms(dt.date.fromisoformat(first)),
            end_time=day_start_ms(dt.date.fromisoformat(last) + day),
            open=False,
        )
        for first, last in _CLOSED_FROM_TO
    ]


def read(path: Path) -> OrderLines:
    """Clean order lines of a file, which is either the set as published (columns Invoice, StockCode, Description,
    Quantity, InvoiceDate, Price) or a slice written by `write_slice`. Sorted by time.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has neither set of columns.
    """
    names = set(pq.read_schema(path).names)
    if names >= _PUBLISHED:
        return _clean(pq.read_table(path, columns=sorted(_PUBLISHED)))
    if set(SLICE_SCHEMA.names) <= names:
        return _from_slice(pq.read_table(path, columns=SLICE_SCHEMA.names))
    raise ValueError(
        f"{path} is neither Online Retail II as published nor a slice of it: its columns are {sorted(names)}"
    )


_PUBLISHED = {"Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price"}
SLICE_SCHEMA = pa.schema(
    [
        ("event_time", pa.timestamp("ms", tz="UTC")),
        ("product_id", pa.string()),
        ("order_id", pa.string()),
        ("kind", pa.string()),
        ("quantity", pa.int32()),
        ("unit_price", pa.float64()),
        ("description", pa.string()),
    ]
)


def _numbers(column: Any, arrow_type: Any) -> NDArray[Any]:
    # from_dlpack and not to_numpy: it needs no numpy inside pyarrow, whose newer versions refuse numpy 1.
    return np.array(np.from_dlpack(column.combine_chunks().cast(arrow_type)))


def _coded(column: Any) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Distinct texts of a column and each row's index into them; null is the empty text."""
    coded = pc.fill_null(column.combine_chunks(), "").dictionary_encode()
    indices = np.array(np.from_dlpack(coded.indices.cast(pa.int64())))
    return tuple(coded.dictionary.to_pylist()), indices


def _recoded(texts: list[str], index: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The same after several distinct texts became one, or were lost with the rows that carried them."""
    used = sorted({texts[i] for i in np.unique(index).tolist()})
    place = {text: i for i, text in enumerate(used)}
    new_index = np.array([place.get(text, -1) for text in texts], dtype=np.int64)
    return tuple(used), new_index[index]


def _clean(table: Any) -> OrderLines:
    codes, code = _coded(table["StockCode"])
    invoices, invoice = _coded(table["Invoice"])
    quantity = _numbers(table["Quantity"], pa.int64())
    unit_price = np.rint(_numbers(table["Price"], pa.float64()) * 1e6).astype(np.int64)
    texts, text = _coded(table["Description"])
    products = [product.strip().upper() for product in codes]
    is_goods = np.array([_GOODS.fullmatch(product) is not None for product in products])[code]
    cancels = np.array([name.startswith("C") for name in invoices])[invoice]
    keep = is_goods & (unit_price > 0) & np.where(cancels, quantity < 0, quantity > 0)
    local_ms = _numbers(table["InvoiceDate"], pa.int64())[keep]
    time_ms = _utc_ms(local_ms)
    rows = np.flatnonzero(keep)[np.argsort(time_ms, kind="stable")]
    product_ids, product = _recoded(products, code[rows])
    order_ids, order = _recoded(list(invoices), invoice[rows])
    descriptions, description = _recoded([text.strip() for text in texts], text[rows])
    return OrderLines(
        event_time_ms=np.sort(time_ms, kind="stable"),
        product_ids=product_ids,
        product=product,
        order_ids=order_ids,
        order=order,
        descriptions=descriptions,
        description=description,
        action=np.where(cancels, Action.CANCEL, Action.SALE).astype(np.int8)[rows],
        quantity=np.abs(quantity)[rows],
        unit_price=unit_price[rows],
    )


def _utc_ms(local_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """UTC of the shop's local times. Offsets change on the hour, so each distinct hour is asked for once. Of the
    hour that comes twice in autumn the first is meant: the shop is asleep then anyway."""
    zone, epoch = ZoneInfo(TIME_ZONE), dt.datetime(1970, 1, 1)
    hours, hour = np.unique(local_ms // _HOUR_MS, return_inverse=True)
    local = (epoch + dt.timedelta(hours=int(h)) for h in hours)
    starts_ms = np.array([int(start.replace(tzinfo=zone).timestamp()) * 1000 for start in local], dtype=np.int64)
    return np.asarray(starts_ms[hour] + local_ms % _HOUR_MS, dtype=np.int64)


def write_slice(source: Path, out: Path, start: dt.date, end: dt.date) -> int:
    """Write the clean lines of the local dates `start` to `end`, both inclusive, as the columns of SLICE_SCHEMA:
    what a demo sends and what may be shipped. No customer and no country is in it. Returns the number of lines."""
    lines = read(source).between(day_start_ms(start), day_start_ms(end + dt.timedelta(days=1)))
    kinds = np.where(lines.action == Action.CANCEL, "cancel", "sale").tolist()
    columns = [
        lines.event_time_ms.tolist(),
        [lines.product_ids[i] for i in lines.product.tolist()],
        [lines.order_ids[i] for i in lines.order.tolist()],
        kinds,
        lines.quantity.tolist(),
        (lines.unit_price / 1e6).tolist(),
        [lines.descriptions[i] for i in lines.description.tolist()],
    ]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SLICE_SCHEMA, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=SLICE_SCHEMA), out, compression="zstd", compression_level=19)
    return len(lines)


def _from_slice(table: Any) -> OrderLines:
    product_ids, product = _coded(table["product_id"])
    order_ids, order = _coded(table["order_id"])
    descriptions, description = _coded(table["description"])
    kinds, kind = _coded(table["kind"])
    actions = np.array([Action[name.upper()] for name in kinds], dtype=np.int8)
    return OrderLines(
        event_time_ms=_numbers(table["event_time"], pa.int64()),
        product_ids=product_ids,
        product=product,
        order_ids=order_ids,
        order=order,
        descriptions=descriptions,
        description=description,
        action=actions[kind],
        quantity=_numbers(table["quantity"], pa.int64()),
        unit_price=np.rint(_numbers(table["unit_price"], pa.float64()) * 1e6).astype(np.int64),
    )
