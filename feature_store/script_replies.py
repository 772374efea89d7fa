"""Replies of the scripts, as Python has them. No I/O here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from feature_store.alert_state import unpack_alert_levels, unpack_item_alerts
from feature_store.calibration_state import unpack_item_calibration, unpack_segment_levels
from feature_store.chunks import ChunkTexts, unpack_chunks
from feature_store.features import SOURCES
from feature_store.score_state import unpack_scores
from feature_store.store_errors import BehindError, FencedError
from feature_store.store_types import Claim, Remembered, SeriesRead

# By the fields of Remembered.
_STATES: dict[str, Callable[[bytes], Any]] = {
    "calibration": unpack_item_calibration,
    "scores": unpack_scores,
    "alerts": unpack_item_alerts,
}


class WantedChunks(NamedTuple):
    """What read.lua was asked for: a stored frequency, the number of the first chunk, and how many of each source."""

    stored: str
    first: int
    each: int


def series_read(reply: Sequence[Any], items: Sequence[str], wanted: WantedChunks, remembered: Remembered) -> SeriesRead:
    """The reply of read.lua for some items."""
    meta = text_map(reply[1])
    marks = [int(mark) if mark else None for mark in reply[2].split(b",")] if items else []
    rest = iter(reply[5:])
    states = {
        name: _states(next(rest), unpack, len(items)) if is_wanted else []
        for (name, unpack), is_wanted in zip(_STATES.items(), remembered, strict=True)
    }
    by_source = {}
    for source in SOURCES:
        places, texts = next(rest), next(rest)
        number = np.fromstring(places.decode(), dtype=np.int64, sep=",") if places else np.empty(0, np.int64)
        series_of, chunk = np.divmod(number, wanted.each or 1)
        by_source[source] = ChunkTexts(series_of, wanted.first + chunk, texts.split(b"\n") if texts else [])
    return SeriesRead(
        numbers(meta, "position:"),
        numbers(meta, "newest:"),
        marks,
        unpack_chunks(wanted.stored, by_source),
        states["calibration"],
        {zone.decode(): unpack_segment_levels(text) for zone, text in zip(reply[3][::2], reply[3][1::2], strict=True)},
        states["scores"],
        states["alerts"],
        {name: unpack_alert_levels(text) for name, text in text_map(reply[4]).items()},
    )


def _states(texts: bytes, unpack: Callable[[bytes], Any], count: int) -> list[Any]:
    return [unpack(text) if text else None for text in texts.split(b"\n")] if count else []


def ids_by_source(flat_ids: Sequence[Any]) -> dict[str, set[str]]:
    """Source and event id in turns, as ids by source."""
    found: dict[str, set[str]] = {}
    for source, ids in zip(flat_ids[::2], flat_ids[1::2], strict=True):
        found.setdefault(source.decode(), set()).update(event_id.decode() for event_id in ids)
    return found


def text_map(parts: Sequence[bytes]) -> dict[str, str]:
    """A flat hash."""
    return {key.decode(): value.decode() for key, value in zip(parts[::2], parts[1::2], strict=True)}


def numbers(meta: Mapping[str, str], prefix: str) -> dict[str, int]:
    """Fields of `meta` that begin so, without that, as numbers."""
    return {name.removeprefix(prefix): int(value) for name, value in meta.items() if name.startswith(prefix)}


def raise_if_not_owner(status: bytes, claim: Claim) -> None:
    """Raise FencedError or BehindError when a script says that it has written nothing."""
    if status == b"FENCED":
        raise FencedError(f"partition {claim.partition} has been claimed by another worker")
    if status == b"BEHIND":
        raise behind(claim)


def behind(claim: Claim) -> BehindError:
    """Redis has less than was written."""
    return BehindError(f"partition {claim.partition}: Redis was emptied or rolled back since it was claimed")
