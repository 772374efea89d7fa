"""Redaction: fields taken out of JSON values, all else left as it is, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

NotJson = Literal["fail", "keep", "empty"]


class Redaction:
    """Takes fields out of values that are JSON objects. `customer.email` is the field `email` of an object, or of each
    object of a list, in the field `customer`.

    Of a value that holds any of them, the other fields keep their bytes and order, but not the space between them, and
    of fields of one name the last stays. A value that holds none is left alone, as is null. For a value that is no JSON
    object, `not_json` says: fail; keep it, whatever it holds; or empty it.

    Raises:
        ValueError: a field has no name.
    """

    def __init__(self, fields: Sequence[str], not_json: NotJson = "fail") -> None:
        if not all(all(field.split(".")) for field in fields):
            raise ValueError(f"{', '.join(fields)}: a field to redact needs a name, such as email or customer.email")
        self.fields = sorted(set(fields))
        self._not_json = not_json
        self._decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._encoder = msgspec.json.Encoder()
        self._tree: dict[str, Any] = {}
        for field in sorted(self.fields, key=lambda name: -name.count(".")):
            *above, last = field.split(".")
            node = self._tree
            for name in above:
                node = node.setdefault(name, {})
            node[last] = None  # the whole field goes, so what was to go from inside it does not matter any more

    def __call__(self, values: list[bytes | None]) -> list[bytes | None]:
        """The values without the fields.

        Raises:
            NotJsonError: one is no JSON object, and `not_json` is fail.
        """
        return [self._value(row, value) for row, value in enumerate(values)] if self.fields else values

    def _value(self, row: int, value: bytes | None) -> bytes | None:
        if value is None:
            return None
        try:
            fields = self._decoder.decode(value)
            return self._encoder.encode(fields) if self._strip(fields, self._tree) else value
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if self._not_json == "fail":
                raise NotJsonError(row) from error
            return b"" if self._not_json == "empty" else value

    def _strip(self, fields: dict[str, msgspec.Raw], tree: dict[str, Any]) -> bool:
        """Whether any of the fields was there, or what it may stand in."""
        there = [name for name in tree if name in fields]
        for name in there:
            if tree[name] is None:
                del fields[name]
            else:
                fields[name] = self._inner(fields[name], tree[name])
        return bool(there)

    def _inner(self, raw: msgspec.Raw, tree: dict[str, Any]) -> msgspec.Raw:
        """An object, or a list of some, without fields."""
        start = bytes(raw).lstrip()[:1]
        if start == b"{":
            fields = self._decoder.decode(raw)
            self._strip(fields, tree)
            return msgspec.Raw(self._encoder.encode(fields))
        if start == b"[":
            parts = msgspec.json.decode(raw, type=list[msgspec.Raw])
            return msgspec.Raw(self._encoder.encode([self._inner(part, tree) for part in parts]))
        return raw


class NotJsonError(Exception):
    """A value is no JSON object, so that nothing can be taken out of it. `row`: its place among the values."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row
