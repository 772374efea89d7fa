"""Mending a dead letter: its value changed as a person says, then judged exactly as the worker will judge it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, get_type_hints

import msgspec

from feature_store.decoding import DecodeLimits, decode
from feature_store.events import EVENT_CLASSES
from worker.dead_letters import OURS, RETRY_OF, DeadLetter, Place
from worker.errors import MendError
from worker.topic_reading import Span, StoredRecord, TopicReading

_NOT_AN_OBJECT = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Mended(NamedTuple):
    """A record to send in place of a letter: where to, and why it must not be sent; empty = a worker will use it."""

    letter: DeadLetter
    partition: int
    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    refusal: str


class _Keyed(msgspec.Struct):
    product_id: str = ""


class _Timed(msgspec.Struct):
    event_time: int


def mend(source: str, letter: DeadLetter, record: StoredRecord, value: bytes | None, limits: DecodeLimits) -> Mended:
    """The record that takes a letter's place with `value`: keyed by its product and placed where that belongs, with
    the headers that the original came with.

    `limits` are the worker's; their `partition` is filled in here, `max_event_time_ms` is the caller's.
    """
    if limits.partition_of is None:
        raise ValueError("a mended letter can't be placed without partition_of")
    key = _product_id(record.key, value).encode()
    partition = limits.partition_of(key.decode())
    rejects = decode(source, [value], [key], dataclasses.replace(limits, partition=partition)).rejects
    refusal = f"a worker would reject it again, {rejects[0].reason.value}: {rejects[0].detail}" if rejects else ""
    headers = [(name, text) for name, text in record.headers if not name.startswith(OURS)]
    return Mended(letter, partition, key, value, [*headers, (RETRY_OF, letter.name.encode())], refusal)


def _product_id(key: bytes | None, value: bytes | None) -> str:
    """Of a tombstone its key. Empty where there is none to be found: `decode` will say why."""
    if value is None:
        return (key or b"").decode("utf-8", "replace")
    try:
        return msgspec.json.decode(value, type=_Keyed).product_id
    except _NOT_AN_OBJECT:
        return ""


def refuse_outdated(reading: TopicReading, topic: str, mended: Sequence[Mended]) -> list[Mended]:
    """For a compacted topic, which keeps the last record of a key: refuse what would take the place of something newer.
    Raises TopicError."""
    wanted: dict[tuple[int, bytes], list[int]] = {}
    for n, m in enumerate(mended):
        wanted.setdefault((m.partition, m.key), []).append(n)
    out = list(mended)
    bounds = reading.bounds(topic, {partition for partition, _ in wanted})
    for record in reading.read(topic, {p: Span(held.first) for p, held in bounds.items()}):
        for n in wanted.get((record.partition, record.key or b""), ()):
            if not out[n].refusal and _is_newer(record, out[n]):
                where = Place(record.partition, record.offset)
                refusal = f"{topic} {where} says something newer of {out[n].key.decode()!r}, which would be lost"
                out[n] = out[n]._replace(refusal=refusal)
    return out


def _is_newer(record: StoredRecord, mended: Mended) -> bool:
    """Whether a record of the same key is newer. A null value has no event time: within a partition the offsets tell;
    a null value that would end up in another partition than it came from must not withdraw anything there."""
    if record.value is None:
        return record.partition == mended.letter.origin.partition and record.offset > mended.letter.origin.offset
    try:
        said_ms = msgspec.json.decode(record.value, type=_Timed).event_time
    except _NOT_AN_OBJECT:
        return False
    return mended.value is None or said_ms > msgspec.json.decode(mended.value, type=_Timed).event_time


def parse_fields(source: str, assignments: Sequence[str]) -> dict[str, Any]:
    """FIELD=VALUE pairs as values of the fields' own types.

    Raises:
        MendError: not a pair, no such field, or no value of its type.
    """
    types = get_type_hints(EVENT_CLASSES[source], include_extras=True)
    fields = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise MendError(f"--set {assignment}: write FIELD=VALUE, as in --set quantity=2")
        if name not in types:
            raise MendError(f"--set {assignment}: {source} have no field {name!r}; they have {', '.join(types)}")
        try:
            fields[name] = msgspec.convert(text, types[name], strict=False)
        except msgspec.ValidationError as error:
            whole = ". Lists and objects are given in a whole new value, with --edit" if text[:1] in ("[", "{") else ""
            raise MendError(f"--set {assignment}: {error}{whole}") from error
    return fields


def with_fields(value: bytes | None, fields: dict[str, Any]) -> bytes:
    """A JSON object with some fields replaced or added; the others keep their very bytes.

    Raises:
        MendError: the value is not a JSON object.
    """
    try:
        known = msgspec.json.decode(value or b"", type=dict[str, msgspec.Raw])
    except _NOT_AN_OBJECT as error:
        raise MendError(
            f"its value is not a JSON object ({error}), so --set has nothing to change: give a whole one with --edit"
        ) from error
    return msgspec.json.encode(known | {name: msgspec.Raw(msgspec.json.encode(v)) for name, v in fields.items()})


def whole_value(text: bytes, where_from: str) -> bytes:
    """A new value as given in a file.

    Raises:
        MendError: it is not a JSON object; names what is wrong and where.
    """
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except _NOT_AN_OBJECT as error:
        raise MendError(f"{where_from} is not a JSON object: {error}. Nothing was sent.") from error
    return text.strip()
