"""What scoring remembers between forecasts, as it stands in Redis and in snapshots. No maths and no I/O here.

All of it is whole numbers, so that sums do not depend on the order in which items are forecast and a recomputation
agrees to the last digit. `worker/scoring.py` says what is made of them; this file how they are written: as JSON arrays,
the fields in the order of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

# What is summed of scored steps, in the order in which it is written. y: units sold, q: the quantile at a level.
#   count            scored steps
#   actual           y, thousandths of a unit
#   absolute_error   |y - median|, thousandths
#   error            mean - y, thousandths; above 0 = too much was forecast
#   squared_error    (mean - y)², thousandths of a unit squared, each rounded half up
#   quantile_loss    2 · |(y - q) · (1[y <= q] - level)| over all levels, millionths of a unit
#   inside_50, _80, _95  steps with y between the quantiles that bound the central interval of this share
SCORE_SUMS: tuple[str, ...] = (
    "count",
    "actual",
    "absolute_error",
    "error",
    "squared_error",
    "quantile_loss",
    "inside_50",
    "inside_80",
    "inside_95",
)

# Of one day, model version and segment: by step the sums of SCORE_SUMS.
SumsByStep = Mapping[int, Sequence[int]]


class ItemScores(msgspec.Struct, array_like=True, frozen=True):
    """Of one item and frequency.

    bucket: the last bucket in which a forecast was kept: the first that the item got in it.
    revision: how often `sums` has changed; that of the item's last message.
    labels: [model version, category] that forecasts in `kept` name by their place.
    closed: bucket, units sold in it (thousandths), bucket, units, …: buckets that were scored and may be corrected.
    kept: JSON of [[bucket, [forecast of it, …]], …], ascending; see worker/scoring.py for a forecast's numbers. Left as
        it is until it is needed: most events change nothing in it.
    sums: JSON of [[model version, step, first day, sums of SCORE_SUMS …], …].
    """

    bucket: int
    revision: int
    labels: list[list[str]]
    closed: list[int]
    kept: msgspec.Raw
    sums: msgspec.Raw


class ItemChallenge(msgspec.Struct, array_like=True, frozen=True):
    """Of one item and frequency the forecasts of two model versions at the same moments, which are scored alike.

    published: those of the version that is published. challenger: those of the other.
    """

    published: ItemScores
    challenger: ItemScores


class RowName(msgspec.Struct, frozen=True, order=True):
    """Whose sums they are.

    day: days since 1970-01-01 of the buckets that were forecast; see `worker/scoring.py`.
    model_version: the model's, or "baseline"; "-" of inputs.
    segment: "all", "category:" and its name, "against:" and the other version that it is compared with, or "inputs",
        whose sums are those of `worker/input_sums.py`.
    """

    day: int
    model_version: str
    segment: str


_encode = msgspec.json.Encoder().encode
_decode_item = msgspec.json.Decoder(ItemScores).decode
_decode_challenge = msgspec.json.Decoder(ItemChallenge).decode
_decode_sums = msgspec.json.Decoder(list[list[int]]).decode


def pack_scores(state: ItemScores | ItemChallenge) -> str:
    """A state as text."""
    return _encode(state).decode()


def unpack_scores(value: bytes | str) -> ItemScores:
    """The reverse of pack_scores."""
    return _decode_item(value)


def unpack_challenge(value: bytes | str) -> ItemChallenge:
    """The reverse of pack_scores."""
    return _decode_challenge(value)


def pack_sums_by_step(sums: SumsByStep) -> str:
    """Sums as text: [[step, sums …], …]."""
    return _encode([[step, *numbers] for step, numbers in sorted(sums.items())]).decode()


def unpack_sums_by_step(value: bytes | str) -> dict[int, list[int]]:
    """The reverse of pack_sums_by_step."""
    return {row[0]: row[1:] for row in _decode_sums(value)}


def pack_row_name(name: RowName) -> str:
    """The field under which a row stands: day, version, segment. Versions have no spaces."""
    return f"{name.day} {name.model_version} {name.segment}"


def unpack_row_name(field: str) -> RowName:
    """The reverse of pack_row_name."""
    day, version, segment = field.split(" ", 2)
    return RowName(int(day), version, segment)
