"""What stands in Redis: every key and every value, layout version 2. No I/O here.

All keys of partition `p` begin with the hash tag `{namespace:p}`, so one script can touch them on Redis Cluster too.
All keys but `meta` carry the partition's *incarnation*: when `meta` was lost, a new incarnation begins and leftovers
of the old one are never added to. Everything reads well in redis-cli:

    {ns:p}:meta                        hash   layout, partition_count, owner, incarnation, sequence (scripts applied),
                                              position:TOPIC (next offset), newest:SOURCE (event time, ms),
                                              ids:SOURCE (generations of ids that stand: "12 13"),
                                              before:SOURCE (event time, ms: what is older was counted from a table),
                                              backfill:SOURCE (table counted from, "DIGEST" or "DIGEST running"),
                                              restored (snapshot it was restored from),
                                              copy, copy_until, held_until (while a snapshot is made, see copy.lua)
    {ns:p}:INC:items                   hash   item_id -> JSON [product_id, location_id, first and last event, ms]
    {ns:p}:INC:products                hash   product_id -> JSON of items.ProductState
    {ns:p}:INC:dirty:FREQ              hash   item_id -> sequence of the script that last touched it: a forecast is owed
    {ns:p}:INC:forecasts:FREQ          hash   item_id -> the last forecast sent; see ForecastSummary
    {ns:p}:INC:calibration:FREQ        hash   item_id -> calibration_state.ItemCalibration
    {ns:p}:INC:segments:FREQ           hash   time zone -> calibration_state.SegmentLevels
    {ns:p}:INC:scores:FREQ             hash   item_id -> score_state.ItemScores
    {ns:p}:INC:challenge:FREQ          hash   item_id -> score_state.ItemChallenge
    {ns:p}:INC:alerts:FREQ             hash   item_id -> alert_state.ItemAlerts
    {ns:p}:INC:alert_levels:FREQ       hash   "items" -> alert_state.AlertLevels
    {ns:p}:INC:untold                  hash   "ALERT_ID SEQUENCE" -> alert_state.Untold: on its way to Kafka
    {ns:p}:INC:accuracy:FREQ           hash   "DAY VERSION SEGMENT" -> JSON [[step, sums …], …]; see score_state
    {ns:p}:INC:accuracy_sent:FREQ      hash   window -> what of it was published last; see accuracy_store.py
    {ns:p}:INC:sums:SERIES             hash   chunks of bucket sums; see chunks.py. SERIES is the item_id of
                                              (product, location)
    {ns:p}:INC:ids:SOURCE:GENERATION   set    event_ids counted, by stretch of event time: to know duplicates by
    {ns:p}:INC:changed                 set    while a snapshot is made: what has been written meanwhile
    {ns:p}:restoring                   hash   while a snapshot is restored: by whom, until when; see restore.lua

One key is of the whole namespace:

    {ns}:model_versions                hash   model name -> its version that workers are to ask Triton for; and what
                                              stands beside it of challengers and promotions: see model_choices.py

No feature has a TTL: retention follows event time, and apply.lua drops what the caller says has left it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from feature_store.items import Item, ProductState

LAYOUT_VERSION = 2
STORED_FREQS: tuple[str, ...] = ("5m", "1h", "1d")
# Lua's numbers are doubles: integers are exact below 2^53. A sum that would pass it is refused before any write.
MAX_EXACT = 2**53
# A script that touches more keys blocks Redis for others; unpack() fails outright near 8,000.
MAX_KEYS = 2000


class EventIds(NamedTuple):
    """Ids of a batch's events of one source and generation; no id twice in a batch."""

    source: str
    generation: int  # event time // the window in which duplicates are looked for
    ids: Sequence[str]


class ForecastSummary(msgspec.Struct, frozen=True):
    """The last forecast of an item and frequency. Quantities in units, one a step; the first step is the running
    bucket and the others follow it. Redis keeps quantities in hundredths, as a JSON array: the fields before the
    quantities in the order of `_SummaryRow`, then the quantities by step."""

    forecast_id: str
    revision: int
    running_bucket: int
    cutoff: int
    issued_at: int
    model_name: str
    model_version: str
    degraded: bool
    mean: list[float]
    q10: list[float]
    q50: list[float]
    q90: list[float]


class _SummaryRow(msgspec.Struct, array_like=True, frozen=True):
    """Revision and bucket come first: a claim reads no further."""

    revision: int
    running_bucket: int
    forecast_id: str
    cutoff: int
    issued_at: int
    model_name: str
    model_version: str
    degraded: bool
    mean: list[int]
    q10: list[int]
    q50: list[int]
    q90: list[int]


class _HeadRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    revision: int
    running_bucket: int


class _ItemRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    product_id: str
    location_id: str
    first_event_ms: int
    last_event_ms: int


_HUNDREDTHS = 100
_encode = msgspec.json.Encoder().encode
_decode_item = msgspec.json.Decoder(_ItemRow).decode
_decode_product = msgspec.json.Decoder(ProductState).decode
_decode_head = msgspec.json.Decoder(_HeadRow).decode
_decode_summary = msgspec.json.Decoder(_SummaryRow).decode


def model_versions_key(namespace: str) -> str:
    """Versions chosen by `shelfcast model`."""
    return f"{{{namespace}}}:model_versions"


class Keys:
    """Names of one partition's keys."""

    def __init__(self, namespace: str, partition: int, incarnation: str = "") -> None:
        self.tag = f"{{{namespace}:{partition}}}"
        self._prefix = f"{self.tag}:{incarnation}"
        self.meta = f"{self.tag}:meta"
        self.restoring = f"{self.tag}:restoring"
        self.changed = f"{self._prefix}:changed"
        self.items = f"{self._prefix}:items"
        self.products = f"{self._prefix}:products"

    def dirty(self, freq: str) -> str:
        """Marks of forecasts owed."""
        return f"{self._prefix}:dirty:{freq}"

    def forecasts(self, freq: str) -> str:
        """Summaries of the last forecasts sent."""
        return f"{self._prefix}:forecasts:{freq}"

    def calibration(self, freq: str) -> str:
        """What calibration remembers of items."""
        return f"{self._prefix}:calibration:{freq}"

    def segments(self, freq: str) -> str:
        """What calibration remembers of segments."""
        return f"{self._prefix}:segments:{freq}"

    def scores(self, freq: str) -> str:
        """What scoring remembers of items."""
        return f"{self._prefix}:scores:{freq}"

    def challenge(self, freq: str) -> str:
        """What a challenger said of items."""
        return f"{self._prefix}:challenge:{freq}"

    def alerts(self, freq: str) -> str:
        """What alerts remember of items."""
        return f"{self._prefix}:alerts:{freq}"

    def alert_levels(self, freq: str) -> str:
        """How much evidence opens an alert."""
        return f"{self._prefix}:alert_levels:{freq}"

    @property
    def untold(self) -> str:
        """Alerts whose state stands, and of which nobody has noted that Kafka has them."""
        return f"{self._prefix}:untold"

    def accuracy(self, freq: str) -> str:
        """Sums of scores by day, model version and segment."""
        return f"{self._prefix}:accuracy:{freq}"

    def accuracy_sent(self, freq: str) -> str:
        """What of them was published."""
        return f"{self._prefix}:accuracy_sent:{freq}"

    def sums(self, series_id: str) -> str:
        """Bucket sums of one series."""
        return f"{self._prefix}:sums:{series_id}"

    def ids(self, source: str, generation: int) -> str:
        """Event ids counted."""
        return f"{self._prefix}:ids:{source}:{generation}"

    def all_like(self, name: str = "") -> str:
        """Pattern of the incarnation's keys that begin so."""
        return f"{self._prefix}:{name}*"


def pack_item(item: Item) -> str:
    """The value of an item; its field is the item_id."""
    return _encode((item.product_id, item.location_id, item.first_event_ms, item.last_event_ms)).decode()


def unpack_item(item_id: str, value: bytes) -> Item:
    """Strings that are the same share their memory: there may be a hundred thousand items."""
    row = _decode_item(value)
    product_id = item_id if row.product_id == item_id else row.product_id
    return Item(item_id, product_id, sys.intern(row.location_id), row.first_event_ms, row.last_event_ms)


def pack_summary(summary: ForecastSummary) -> str:
    """The value of a forecast. Quantities lose what is below a hundredth of a unit."""
    row = _SummaryRow(
        revision=summary.revision,
        running_bucket=summary.running_bucket,
        forecast_id=summary.forecast_id,
        cutoff=summary.cutoff,
        issued_at=summary.issued_at,
        model_name=summary.model_name,
        model_version=summary.model_version,
        degraded=summary.degraded,
        mean=_to_hundredths(summary.mean),
        q10=_to_hundredths(summary.q10),
        q50=_to_hundredths(summary.q50),
        q90=_to_hundredths(summary.q90),
    )
    return _encode(row).decode()


def unpack_summary(value: bytes) -> ForecastSummary:
    """The reverse of pack_summary."""
    row = _decode_summary(value)
    return ForecastSummary(
        forecast_id=row.forecast_id,
        revision=row.revision,
        running_bucket=row.running_bucket,
        cutoff=row.cutoff,
        issued_at=row.issued_at,
        model_name=row.model_name,
        model_version=row.model_version,
        degraded=row.degraded,
        mean=[hundredths / _HUNDREDTHS for hundredths in row.mean],
        q10=[hundredths / _HUNDREDTHS for hundredths in row.q10],
        q50=[hundredths / _HUNDREDTHS for hundredths in row.q50],
        q90=[hundredths / _HUNDREDTHS for hundredths in row.q90],
    )


def unpack_head(value: bytes) -> tuple[int, int]:
    """Revision and running bucket of a forecast."""
    row = _decode_head(value)
    return row.revision, row.running_bucket


def pack_product(state: ProductState) -> str:
    """The value of a product, as text: the MessagePack reader in Redis does not know the binary type."""
    return _encode(state).decode()


def unpack_product(value: bytes) -> ProductState:
    """The reverse of pack_product."""
    return _decode_product(value)


def pack_hash(fields: Mapping[str, str]) -> list[str]:
    """A mapping as the flat list that HSET takes."""
    return [part for field_value in fields.items() for part in field_value]


def _to_hundredths(quantities: Sequence[float]) -> list[int]:
    return [round(quantity * _HUNDREDTHS) for quantity in quantities]
