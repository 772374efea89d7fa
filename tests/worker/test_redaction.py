"""What is redacted is gone; everything else is as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.redaction import NotJsonError, Redaction

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c", "é"]), inner),
    max_leaves=12,
)


def without(value: Any, path: list[str]) -> Any:
    """The field taken out, by the words of the definition."""
    if isinstance(value, list):
        return [without(one, path) for one in value]
    if not isinstance(value, dict) or path[0] not in value:
        return value
    if len(path) == 1:
        return {name: one for name, one in value.items() if name != path[0]}
    return {name: without(one, path[1:]) if name == path[0] else one for name, one in value.items()}


@given(
    value=st.dictionaries(st.sampled_from(["a", "b", "c", "é"]), _json),
    fields=st.lists(st.sampled_from(["a", "b.a", "b.c.a", "b", "é", "é.é"]), min_size=1, max_size=3),
)
def test_fields_are_gone_and_the_rest_is_the_same(value: dict[str, Any], fields: list[str]) -> None:
    expected = value
    for field in fields:
        expected = without(expected, field.split("."))
    raw = json.dumps(value, indent=1).encode()
    (redacted,) = Redaction(fields)([raw])
    assert redacted is not None
    assert json.loads(redacted) == expected
    if not {field.split(".")[0] for field in fields} & set(value):
        assert redacted == raw


def test_numbers_keep_their_digits_and_names_said_twice_go_twice() -> None:
    values: list[bytes | None] = [b'{"x":1.10, "mail":"a","big":12345678901234567890123,"m\\u0061il":"b"}', None]
    assert Redaction(["mail"])(values) == [b'{"x":1.10,"big":12345678901234567890123}', None]


@pytest.mark.parametrize("value", [b"", b"text", b"[1]", b'{"a":', b"\xff", b'"mail"'])
def test_what_is_no_object_is_kept_or_emptied_or_refused_as_asked(value: bytes) -> None:
    assert Redaction(["mail"], "keep")([value]) == [value]
    assert Redaction(["mail"], "empty")([value]) == [b""]
    with pytest.raises(NotJsonError) as caught:
        Redaction(["mail"])([b"{}", value])
    assert caught.value.row == 1
    assert Redaction([])([value]) == [value]


@pytest.mark.parametrize("field", ["", "a..b", ".a"])
def test_a_field_needs_a_name(field: str) -> None:
    with pytest.raises(ValueError, match="needs a name"):
        Redaction([field])
