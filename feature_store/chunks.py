"""Chunks: how the bucket sums of a series stand in its one hash. No I/O here.

    field   letter of the frequency (m = 5m, h = 1h, d = 1d), letter of the source (o, c, r), number of the chunk:
            "do224" holds the daily orders of buckets 224 * CHUNK["1d"] up to 225 * CHUNK["1d"]
    value   "9:12k,0,3,35400k;11:1500,0,1,2950k;": for each bucket its place in the chunk, then the features of the
            source in order, integers in units_per_one-ths; k stands for three zeros

Buckets that hold nothing cost nothing. A bucket may stand several times: its rows add up. So what comes late is
appended without looking at the rest, and apply.lua adds rows up only when they are many. Sums must stay below 2^53,
where Lua's numbers end to be exact; rows below LARGE can't pass that together, so only a chunk that holds a larger one
(it begins with +) is added up and checked each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.features import FEATURES, SOURCE_FEATURES, SOURCES, BucketRows, Deltas, run_starts
from feature_store.layout import MAX_EXACT

# Buckets a chunk: large ones waste less memory on fields, small ones are quicker to write anew.
CHUNK: dict[str, int] = {"5m": 48, "1h": 72, "1d": 64}
# A chunk that holds this many rows a bucket is added up when something comes late.
MOST_ROWS_A_BUCKET = 2
# Between two additions of its rows a chunk grows by at most one batch and by what comes in order.
_MOST_ROWS = (MOST_ROWS_A_BUCKET + 2) * max(CHUNK.values())
LARGE = MAX_EXACT // 512
assert _MOST_ROWS <= MAX_EXACT // LARGE

FREQ_LETTERS: dict[str, str] = {"5m": "m", "1h": "h", "1d": "d"}
SOURCE_LETTERS: dict[str, str] = {source: source[0] for source in SOURCES}
SOURCE_WIDTHS: dict[str, int] = {source: columns.stop - columns.start for source, columns in SOURCE_FEATURES.items()}
_PREFIXES = {f"{f}{s}": (freq, source) for freq, f in FREQ_LETTERS.items() for source, s in SOURCE_LETTERS.items()}
_SHORTEST_ROW = {source: len("0:;") + 2 * width - 1 for source, width in SOURCE_WIDTHS.items()}
_MOST_ROWS_OF = {
    letters: (MOST_ROWS_A_BUCKET * CHUNK[freq], _SHORTEST_ROW[source]) for letters, (freq, source) in _PREFIXES.items()
}
# What apply.lua is told of all this.
SCRIPT_LIMITS: dict[str, Any] = {
    "max_exact": MAX_EXACT,
    "large_from": LARGE,
    "widths": {SOURCE_LETTERS[source]: width for source, width in SOURCE_WIDTHS.items()},
    "most_rows": {letters: rows for letters, (rows, _) in _MOST_ROWS_OF.items()},
    # A shorter text can't hold more rows, so most are never counted.
    "most_bytes": {letters: rows * shortest for letters, (rows, shortest) in _MOST_ROWS_OF.items()},
}
_TO_COMMAS = bytes.maketrans(b":;", b",,")


class PackedSums(NamedTuple):
    """What a batch adds, field by field; all fields of a series stand together, in the order of the series."""

    series: list[int]  # those that have something, ascending
    counts: list[int]  # fields of each
    fields: list[str]
    rows: list[str]
    large: list[int]  # positions in `fields` of those with a row of LARGE or more


def pack_sums(sums: Sequence[Deltas]) -> PackedSums:
    """Text of all rows, cut by series and chunk."""
    owners, large = [np.empty(0, np.int64)], [np.empty(0, np.bool_)]
    fields: list[str] = []
    rows: list[str] = []
    for part in sums:
        if len(part.series):
            chunk, offset = np.divmod(part.bucket, CHUNK[part.freq])
            starts = run_starts(part.series, chunk)
            prefix = FREQ_LETTERS[part.freq] + SOURCE_LETTERS[part.source]
            fields += [f"{prefix}{number}" for number in chunk[starts].tolist()]
            rows += _row_texts(starts, np.concatenate([offset[:, None], part.values], axis=1))
            owners.append(part.series[starts])
            is_large = ((part.values >= LARGE) | (part.values <= -LARGE)).any(axis=1)
            large.append(np.logical_or.reduceat(is_large, starts))
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner)
    series = counts.nonzero()[0]
    by_series = order.tolist()
    return PackedSums(
        series=series.tolist(),
        counts=counts[series].tolist(),
        fields=[fields[n] for n in by_series],
        rows=[rows[n] for n in by_series],
        large=np.flatnonzero(np.concatenate(large)[order]).tolist(),
    )


def _row_texts(starts: NDArray[np.intp], table: NDArray[np.int64]) -> list[str]:
    """One formatting for all: a call for each run would take twice as long."""
    row = "%d:" + ",".join(["%d"] * (table.shape[1] - 1)) + ";"
    counts = [after - start for start, after in pairwise([*starts.tolist(), len(table)])]
    templates = {count: row * count for count in set(counts)}
    text = "\n".join([templates[count] for count in counts]) % tuple(table.ravel().tolist())
    return text.replace("000,", "k,").replace("000;", "k;").split("\n")


def oldest_chunks(oldest_kept: Mapping[str, NDArray[np.int64]], series: Sequence[int]) -> dict[str, list[int]]:
    """By letter of the frequency, for each of some series: the oldest chunk that holds a bucket still kept."""
    return {FREQ_LETTERS[freq]: (oldest[series] // CHUNK[freq]).tolist() for freq, oldest in oldest_kept.items()}


def chunk_fields(freq: str, first_bucket: int, last_bucket: int) -> tuple[int, int, list[str]]:
    """First chunk and number of chunks that overlap the buckets, both included, and their fields source by source."""
    first, last = first_bucket // CHUNK[freq], last_bucket // CHUNK[freq]
    letter = FREQ_LETTERS[freq]
    fields = [f"{letter}{SOURCE_LETTERS[source]}{chunk}" for source in SOURCES for chunk in range(first, last + 1)]
    return first, max(last - first + 1, 0), fields


class ChunkTexts(NamedTuple):
    """Chunks of one source and frequency as they stand."""

    series: NDArray[np.int64]  # (chunk,): index of the series
    number: NDArray[np.int64]  # (chunk,)
    texts: Sequence[bytes]


def unpack_chunks(freq: str, by_source: Mapping[str, ChunkTexts]) -> BucketRows:
    """Rows of many chunks. `item` is the index of the series; a source's rows are zero in the columns of the others."""
    parts = [_unpack_source(freq, source, chunks) for source, chunks in by_source.items()]
    return BucketRows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _unpack_source(freq: str, source: str, chunks: ChunkTexts) -> BucketRows:
    counts = [text.count(b";") for text in chunks.texts]
    numbers = b"".join(chunks.texts).replace(b"k", b"000").translate(_TO_COMMAS).decode("ascii")
    table = np.fromstring(numbers, dtype=np.int64, sep=",") if numbers else np.empty(0, np.int64)
    table = table.reshape(-1, 1 + SOURCE_WIDTHS[source])
    values = np.zeros((len(table), len(FEATURES)), dtype=np.int64)
    values[:, SOURCE_FEATURES[source]] = table[:, 1:]
    bucket = np.repeat(chunks.number, counts) * CHUNK[freq] + table[:, 0]
    return BucketRows(np.repeat(chunks.series, counts), bucket, values)


def unpack_hash(flat: Sequence[bytes]) -> dict[str, BucketRows]:
    """All rows of one series' hash, by stored frequency; rows of a bucket are added up, buckets ascend."""
    found: dict[str, dict[str, list[tuple[int, bytes]]]] = {freq: {s: [] for s in SOURCES} for freq in FREQ_LETTERS}
    for field, text in zip(flat[::2], flat[1::2], strict=True):
        freq, source = _PREFIXES[field[:2].decode()]
        found[freq][source].append((int(field[2:]), text))
    return {freq: _merged(_unpack_all(freq, by_source)) for freq, by_source in found.items()}


def _unpack_all(freq: str, by_source: Mapping[str, Sequence[tuple[int, bytes]]]) -> BucketRows:
    chunks = {
        source: ChunkTexts(
            np.zeros(len(pairs), np.int64),
            np.array([number for number, _ in pairs], dtype=np.int64),
            [text for _, text in pairs],
        )
        for source, pairs in by_source.items()
    }
    return unpack_chunks(freq, chunks)


def _merged(rows: BucketRows) -> BucketRows:
    buckets, which = np.unique(rows.bucket, return_inverse=True)
    values = np.zeros((len(buckets), len(FEATURES)), dtype=np.int64)
    np.add.at(values, which, rows.values)
    return BucketRows(np.zeros(len(buckets), np.int64), buckets, values)
