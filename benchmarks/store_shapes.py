"""The same sums in other shapes, to compare memory: what each shape keeps of the buckets that stand."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.store_data import RETENTION
from feature_store.chunks import unpack_hash
from feature_store.features import FEATURES
from feature_store.layout import STORED_FREQS

Sums = Mapping[str, Mapping[int, list[int]]]  # by freq and bucket: one value a feature
_BUCKET_S = {"5m": 300, "1h": 3_600, "1d": 86_400}


def chunks(pipe: Any, name: str, sums: Sums, raw: Mapping[bytes, bytes]) -> None:
    """This store's own: the hash as it stands."""
    pipe.hset(f"a:{name}", mapping=raw)


def hash_a_freq(pipe: Any, name: str, sums: Sums, raw: Mapping[bytes, bytes]) -> None:
    """A hash a frequency: bucket -> all features as text."""
    for freq, cells in sums.items():
        if cells:
            pipe.hset(f"b:{freq}:{name}", mapping={b: ",".join(map(str, values)) for b, values in cells.items()})


def packed_hash(pipe: Any, name: str, sums: Sums, raw: Mapping[bytes, bytes]) -> None:
    """The same with all features as float32, which counts exactly up to 16.7 million only."""
    for freq, cells in sums.items():
        if cells:
            rows = {b: struct.pack(f"<{len(FEATURES)}f", *values) for b, values in cells.items()}
            pipe.hset(f"c:{freq}:{name}", mapping=rows)


def bitfield(pipe: Any, name: str, sums: Sums, raw: Mapping[bytes, bytes]) -> None:
    """A string a frequency, a ring of all buckets kept, each feature an unsigned 32-bit counter."""
    for freq, cells in sums.items():
        row_bytes = 4 * len(FEATURES)
        pipe.setrange(f"d:{freq}:{name}", RETENTION[freq] * row_bytes - 1, b"\0")
        for bucket, values in cells.items():
            low = [value & 0xFFFFFFFF for value in values]
            pipe.setrange(
                f"d:{freq}:{name}", bucket % RETENTION[freq] * row_bytes, struct.pack(f"<{len(FEATURES)}I", *low)
            )


def key_a_feature(pipe: Any, name: str, sums: Sums, raw: Mapping[bytes, bytes]) -> None:
    """A key a frequency and feature, as RedisTimeSeries has it, uncompressed: a time and a double a sample."""
    for freq, cells in sums.items():
        for column, feature in enumerate(FEATURES):
            samples = [
                struct.pack("<qd", bucket * _BUCKET_S[freq] * 1000, float(values[column]))
                for bucket, values in sorted(cells.items())
                if values[column]
            ]
            if samples:
                pipe.set(f"e:{freq}:{feature.name}:{name}", b"".join(samples))


SHAPES: dict[str, Callable[[Any, str, Sums, Mapping[bytes, bytes]], None]] = {
    "chunks": chunks,
    "hash_a_freq_text": hash_a_freq,
    "hash_a_freq_float32": packed_hash,
    "bitfield_u32": bitfield,
    "key_a_feature": key_a_feature,
}


def decode(raw: Mapping[bytes, bytes], oldest: Mapping[str, int]) -> Sums:
    """The buckets of a stored hash that are still kept."""
    found = unpack_hash([part for pair in raw.items() for part in pair])
    out: dict[str, dict[int, list[int]]] = {}
    for freq in STORED_FREQS:
        rows = found[freq]
        cells = zip(rows.bucket.tolist(), rows.values.tolist(), strict=True)
        out[freq] = {bucket: values for bucket, values in cells if bucket >= oldest[freq]}
    return out


def empty(client: Any) -> None:
    """At once: Valkey would free memory in the background."""
    client.execute_command("FLUSHALL", "SYNC")


def used_bytes(client: Any) -> int:
    """Memory that Redis counts as its own, Lua not included."""
    return int(client.info("memory")["used_memory"])


def measure_shapes(
    client: Any, hashes: Mapping[str, Mapping[bytes, bytes]], oldest: Mapping[str, int]
) -> dict[str, int]:
    """Bytes an item of each shape, written into an empty Redis one after the other."""
    found = {}
    decoded = {name: decode(raw, oldest) for name, raw in hashes.items()}
    for shape, write in SHAPES.items():
        empty(client)
        before = used_bytes(client)
        names = list(hashes)
        for start in range(0, len(names), 200):
            pipe = client.pipeline(transaction=False)
            for name in names[start : start + 200]:
                write(pipe, name, decoded[name], hashes[name])
            pipe.execute()
        found[shape] = round((used_bytes(client) - before) / len(hashes))
    empty(client)
    return found
