"""From stored buckets to the tensors of the contract: the one function behind live forecasts and training data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from feature_store.calendar_time import ShopCalendar, bucket_of, bucket_start_ms
from feature_store.events import CalendarEntry
from feature_store.features import BucketRows, context
from feature_store.items import Item, ProductState
from feature_store.known_future import KNOWN_CHANNELS, Span, known_channels
from forecaster.contract import FREQ_CODES, NO_COVARIATES, STATIC_CHANNELS, WINDOWS, Covariates, input_tensors

_DAY_MS = 86_400_000
_CODES = 1023
_OPEN = KNOWN_CHANNELS.index("open")


class ModelInputs(NamedTuple):
    """The input tensors of `contract.INPUTS`, in their order, with the item axis first."""

    context: NDArray[np.float32]
    available_fraction: NDArray[np.float32]
    known: NDArray[np.float32]
    running: NDArray[np.float32]
    elapsed_fraction: NDArray[np.float32]
    static: NDArray[np.float32]
    freq: NDArray[np.int32]


class ModelOutputs(NamedTuple):
    """The output tensors of `contract.OUTPUTS`, in their order, with the item axis first. In units, never NaN."""

    quantiles: NDArray[np.float32]
    mean: NDArray[np.float32]
    cumulative_quantiles: NDArray[np.float32]


class Subject(NamedTuple):
    """One item to forecast, with what was known of its product at the cutoff."""

    item: Item
    product: ProductState


@lru_cache(maxsize=100_000)
def hash_code(text: str) -> int:
    """A stable code 1..1023 of a category or brand name, 0 for the empty one."""
    return 1 + int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) % _CODES if text else 0


def running_buckets(freq: str, cutoff_ms: int, zones: Sequence[str]) -> NDArray[np.int64]:
    """Bucket that the cutoff falls into, for each time zone: int64 (item,)."""
    cutoff = np.array([cutoff_ms], dtype=np.int64)
    by_zone = {zone: int(bucket_of(freq, cutoff, zone)[0]) for zone in set(zones)}
    return np.array([by_zone[zone] for zone in zones], dtype=np.int64)


def build_inputs(  # noqa: PLR0913 - each argument is one source of truth; a bundle of them would only hide that
    freq: str,
    cutoff_ms: int,
    subjects: Sequence[Subject],
    rows: BucketRows,
    calendar: ShopCalendar,
    global_entries: Sequence[CalendarEntry],
    prediction_length: int,
) -> ModelInputs:
    """Inputs of the items at one cutoff. Bit for bit the same for the same arguments, whatever stands beside an item.

    Args:
        freq: a key of `contract.WINDOWS`.
        cutoff_ms: event time up to which events have been seen.
        subjects: the items, in the order of `rows.item`.
        rows: their stored buckets of this freq, product-level channels pooled (`features.pool_product_rows`).
        calendar: time zones of the shop's locations.
        global_entries: calendar entries of the whole shop; a product's own come after and win.
        prediction_length: number of steps asked for, the running bucket first.
    """
    length = WINDOWS[freq].context_length
    zones = [calendar.zone(subject.item.location_id) for subject in subjects]
    running_bucket = running_buckets(freq, cutoff_ms, zones)
    first_bucket = _first_buckets(freq, subjects, zones)
    past = context(rows, running_bucket, first_bucket, length)
    spans = [Span(int(b) - length, zone) for b, zone in zip(running_bucket, zones, strict=True)]
    entries = [_entries_of(subject, global_entries) for subject in subjects]
    known = known_channels(freq, spans, length + prediction_length, entries)
    available = known[:, :length, _OPEN].copy()
    available[np.isnan(past.context[:, :, 0])] = np.nan
    return ModelInputs(
        context=past.context,
        available_fraction=available,
        known=known,
        running=past.running,
        elapsed_fraction=_elapsed(freq, cutoff_ms, running_bucket, zones),
        static=np.array([_static(subject, cutoff_ms) for subject in subjects], dtype=np.float32).reshape(
            len(subjects), len(STATIC_CHANNELS)
        ),
        freq=np.full((len(subjects), 1), FREQ_CODES[freq], dtype=np.int32),
    )


def _first_buckets(freq: str, subjects: Sequence[Subject], zones: Sequence[str]) -> NDArray[np.int64]:
    first_ms = np.array([subject.item.first_event_ms for subject in subjects], dtype=np.int64)
    out = np.empty(len(subjects), dtype=np.int64)
    zone_of = np.array(zones, dtype=object)
    for zone in set(zones):
        rows = np.flatnonzero(zone_of == zone)
        out[rows] = bucket_of(freq, first_ms[rows], zone)
    return out


def _entries_of(subject: Subject, global_entries: Sequence[CalendarEntry]) -> list[CalendarEntry]:
    location = subject.item.location_id
    return [e for e in (*global_entries, *subject.product.calendar) if e.location_id in ("", location)]


def _elapsed(freq: str, cutoff_ms: int, running_bucket: NDArray[np.int64], zones: Sequence[str]) -> NDArray[np.float32]:
    by_key: dict[tuple[int, str], float] = {}
    for key in set(zip(running_bucket.tolist(), zones, strict=True)):
        bucket, zone = key
        start, end = bucket_start_ms(freq, np.array([bucket, bucket + 1]), zone).tolist()
        by_key[key] = (cutoff_ms - start) / (end - start)
    elapsed = [by_key[key] for key in zip(running_bucket.tolist(), zones, strict=True)]
    return np.array(elapsed, dtype=np.float32)[:, None]


def _static(subject: Subject, cutoff_ms: int) -> tuple[float, int, int]:
    product = subject.product
    launch_ms = subject.item.first_event_ms if product.launch_ms is None else product.launch_ms
    return ((cutoff_ms - launch_ms) / _DAY_MS, hash_code(product.category), hash_code(product.brand))


def check(inputs: ModelInputs, covariates: Covariates = NO_COVARIATES) -> None:
    """Hold the inputs to the contract: shapes that agree, one freq with its lengths.

    Raises:
        ValueError: says which tensor is wrong and what it ought to be.
    """
    items = len(inputs.freq)
    codes = set(inputs.freq.flatten().tolist())
    names = [freq for freq, code in FREQ_CODES.items() if codes == {code}]
    if not names:
        raise ValueError(f"freq must be one of the codes {FREQ_CODES} and the same in all {items} rows, not {codes}")
    window = WINDOWS.get(names[0])
    length, total = inputs.context.shape[1], inputs.known.shape[1]
    if window is None or length != window.context_length or not 1 <= total - length <= window.max_prediction_length:
        raise ValueError(f"{names[0]} with {length} context and {total - length} prediction buckets is not {window}")
    for tensor, array in zip(input_tensors(covariates), inputs, strict=True):
        free = {"context": length, "available_fraction": length, "known": total}.get(tensor.name, -1)
        expected = (items, *(free if size == -1 else size for size in tensor.dims))
        if array.shape != expected:
            raise ValueError(f"{tensor.name} has shape {array.shape}, expected {expected}")
