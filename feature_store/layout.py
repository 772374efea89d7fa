"""What stands in Redis: every key and every value, layout version 1. No I/O here.

All keys of partition `p` begin with the hash tag `{namespace:p}`, so one script can touch them on Redis Cluster too.
All keys but `meta` carry the partition's *incarnation*: when `meta` was lost, a new incarnation begins and leftovers
of the old one are never added to. Everything reads well in redis-cli:

    {ns:p}:meta                        hash   layout, partition_count, owner, incarnation, sequence (scripts applied),
                                              position:TOPIC (next offset), newest:SOURCE (event time, ms)
    {ns:p}:INC:items                   hash   item_id -> JSON of items.Item
    {ns:p}:INC:products                hash   product_id -> JSON of items.ProductState
    {ns:p}:INC:dirty:FREQ              hash   item_id -> sequence of the script that last touched it: a forecast is owed
    {ns:p}:INC:forecasts:FREQ          hash   item_id -> JSON of ForecastSummary: the last forecast sent
    {ns:p}:INC:sums:FREQ:SERIES        hash   bucket -> "units,returned_units,…": FEATURES in order, integers in
                                              units_per_one-ths; SERIES is the item_id of (product, location)

No key has a TTL: retention follows event time, and apply.lua drops buckets that the caller says have left it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from feature_store.features import FEATURES

LAYOUT_VERSION = 1
STORED_FREQS: tuple[str, ...] = ("5m", "1h", "1d")
# Lua's numbers are doubles: integers are exact below 2^53. A sum that would pass it is refused before any write.
MAX_EXACT = 2**53
# A script that touches more keys blocks Redis for others; unpack() fails outright near 8,000.
MAX_KEYS = 2000


class ForecastSummary(msgspec.Struct, frozen=True):
    """The last forecast of an item and frequency, as kept in Redis. Quantities in units."""

    forecast_id: str
    revision: int
    running_bucket: int
    cutoff: int
    issued_at: int
    model_name: str
    model_version: str
    degraded: bool
    bucket_start: list[int]
    mean: list[float]
    q10: list[float]
    q50: list[float]
    q90: list[float]


class SeriesSums(NamedTuple):
    """What to add to one series at one frequency, and what may be dropped from it."""

    freq: str
    series_id: str
    oldest_kept: int
    most_kept: int
    rows: list[list[int]]  # bucket, then one delta a feature


class Keys:
    """Names of one partition's keys."""

    def __init__(self, namespace: str, partition: int, incarnation: str = "") -> None:
        self.tag = f"{{{namespace}:{partition}}}"
        self._prefix = f"{self.tag}:{incarnation}"
        self.meta = f"{self.tag}:meta"
        self.items = f"{self._prefix}:items"
        self.products = f"{self._prefix}:products"

    def dirty(self, freq: str) -> str:
        """Marks of forecasts owed."""
        return f"{self._prefix}:dirty:{freq}"

    def forecasts(self, freq: str) -> str:
        """Summaries of the last forecasts sent."""
        return f"{self._prefix}:forecasts:{freq}"

    def sums(self, freq: str, series_id: str) -> str:
        """Bucket sums of one series."""
        return f"{self._prefix}:sums:{freq}:{series_id}"


def unpack_sums(
    hashes: Sequence[Sequence[bytes]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Read the replies of HGETALL on sums keys.

    Args:
        hashes: for each key the flat reply bucket, row, bucket, row, …

    Returns:
        int64 (row,): index of the key the row came from; int64 (row,): bucket; int64 (row, feature): sums.
    """
    lengths = [len(flat) // 2 for flat in hashes]
    origin = np.repeat(np.arange(len(hashes)), lengths)
    text = b",".join(part for flat in hashes for part in flat)
    numbers = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=",") if text else np.empty(0, np.int64)
    table = numbers.reshape(-1, 1 + len(FEATURES))
    return origin.astype(np.int64), table[:, 0], table[:, 1:]


def pack_hash(fields: Mapping[str, str]) -> list[str]:
    """A mapping as the flat list that HSET takes."""
    return [part for field_value in fields.items() for part in field_value]
