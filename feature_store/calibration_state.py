"""What calibration remembers between forecasts, as it stands in Redis and in snapshots. No maths and no I/O here.

Everything is whole numbers: sums of them do not depend on the order in which items are forecast, so a replay comes to
the same state with any number of workers and kills. `worker/calibration.py` says what they mean and what is made of
them; this file how they are written: as JSON arrays, the fields in the order of the classes.
"""

from __future__ import annotations

import msgspec


class PastForecast(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A forecast of one bucket, kept until the bucket has closed.

    bucket: the bucket that was forecast.
    segment: number of the segment whose levels it is to teach.
    observed: thousandths of a unit that had been sold in the bucket by then.
    quantiles: the model's own, less `observed`, in hundredths of a unit; one a level.
    """

    bucket: int
    segment: int
    observed: int
    quantiles: list[int]


class ItemCalibration(msgspec.Struct, array_like=True, frozen=True):
    """Of one item and frequency.

    shift: millionths, on the log-odds scale: by how much its quantiles are read at other levels than its segment's.
    bucket: that in which `past` was last added to.
    """

    shift: int
    bucket: int
    past: list[PastForecast]


class SegmentLevels(msgspec.Struct, array_like=True, frozen=True):
    """Of all segments of one lane, frequency and time zone.

    bucket: the running bucket in which the counts and ranks are gathered; they change the levels of the next one.
    levels: millionths, (segment × quantile): at which level of the model's own quantiles each level is read.
    scales: millionths, (segment): log of the factor by which the model's quantiles are multiplied.
    counts: (segment): past forecasts judged in `bucket`.
    ranks: ten-thousandths, (segment × quantile): their ranks, summed.
    """

    bucket: int
    levels: list[int]
    scales: list[int]
    counts: list[int]
    ranks: list[int]


_encode = msgspec.json.Encoder().encode
_decode_item = msgspec.json.Decoder(ItemCalibration).decode
_decode_levels = msgspec.json.Decoder(SegmentLevels).decode


def pack_state(state: ItemCalibration | SegmentLevels) -> str:
    """A state as text."""
    return _encode(state).decode()


def unpack_item_calibration(value: bytes | str) -> ItemCalibration:
    """The reverse of pack_state."""
    return _decode_item(value)


def unpack_segment_levels(value: bytes | str) -> SegmentLevels:
    """The reverse of pack_state."""
    return _decode_levels(value)
