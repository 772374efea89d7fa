import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from worker.write_schemas import main, schema_files, settings_table, with_settings_table

ROOT = Path(__file__).parent.parent
SCHEMAS = ROOT / "docs" / "schemas"
GOLDEN = ROOT / "tests" / "golden"


def schema_of(name: str) -> Any:
    return json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))


def golden(name: str, what: str = "full") -> Any:
    return json.loads((GOLDEN / f"{name}_v1_{what}.json").read_text(encoding="utf-8"))


def test_the_committed_schemas_are_those_of_the_classes() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.iterdir()}
    assert committed == schema_files(), "run: python -m worker.write_schemas"


def test_the_readmes_settings_table_is_that_of_the_class() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_settings_table(text) == text, "run: python -m worker.write_schemas"


@pytest.mark.parametrize("name", [name.removesuffix(".json") for name in schema_files()])
def test_a_schema_is_sound_and_takes_its_golden_messages(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema_of(name))
    for what in ("full", "minimal"):
        jsonschema.validate(golden(name, what), schema_of(name), jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", [name.removesuffix(".json") for name in schema_files()])
def test_the_minimal_message_has_nothing_that_could_be_left_out(name: str) -> None:
    for field in golden(name, "minimal"):
        message = golden(name, "minimal")
        del message[field]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(message, schema_of(name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("orders", {"quantity": "2"}),
        ("orders", {"unit_price": -1}),
        ("orders", {"kind": "gift"}),
        ("orders", {"product_id": ""}),
        ("orders", {"event_time": -1}),
        ("orders", {"event_time": 1.5}),
        ("clicks", {"action": "stare"}),
        ("reviews", {"rating": 0}),
        ("reviews", {"rating": 6}),
        ("products", {"launch_time": "today"}),
        ("calendar", {"entries": [{"start_time": 1}]}),
        ("calendar_global", {"entries": [{"start_time": 1, "end_time": 2, "open": "no"}]}),
        ("stock", {"on_order": -1}),
        ("forecast", {"revision": 0}),
        ("forecast", {"steps": [{}]}),
        ("alert", {"episode_state": "opened"}),
        ("alert", {"sequence": 0}),
        ("alert", {"tail_probability": 1.5}),
        ("alert", {"severity": "high"}),
        ("accuracy", {"window_days": 0}),
        ("accuracy", {"steps": [{"step": 0, "sums": {}}]}),
        ("replenishment", {"quantity": 0}),
        ("replenishment", {"service_level": 1}),
        ("clock", {"next_offsets": {"shop.orders.v1": "7"}}),
    ],
)
def test_a_schema_refuses_what_a_worker_would(name: str, said: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**golden(name), **said}, schema_of(name))


def test_unknown_fields_pass() -> None:
    jsonschema.validate({**golden("orders"), "session_id": "s-1"}, schema_of("orders"))


def test_writing_again_changes_only_what_lies_between_the_markers(tmp_path: Path) -> None:
    text = "# title\n<!-- settings -->\nold\n<!-- /settings -->\nend\n"
    (tmp_path / "README.md").write_text(text)
    stale = tmp_path / "docs" / "schemas" / "gone.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    for _ in range(2):
        main(tmp_path)
        expected = f"# title\n<!-- settings -->\n{settings_table()}<!-- /settings -->\nend\n"
        assert (tmp_path / "README.md").read_text() == expected
        assert {path.name: path.read_text() for path in stale.parent.iterdir()} == schema_files()
    assert with_settings_table("no markers") == "no markers"
