"""Writes what is generated from classes: docs/schemas/*.json, and the settings table of the README.

python -m worker.write_schemas
"""

from __future__ import annotations

import json
from pathlib import Path

from worker.schemas import json_schemas
from worker.settings import settings_table

_ROOT = Path(__file__).parent.parent
_BEGIN, _END = "<!-- settings -->", "<!-- /settings -->"


def schema_files() -> dict[str, str]:
    """What each file in docs/schemas has to hold."""
    return {f"{name}.json": json.dumps(schema, indent=2) + "\n" for name, schema in json_schemas().items()}


def with_settings_table(text: str) -> str:
    """The text with the settings table between its markers; unchanged when it has none."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return f"{before}{begin}\n{settings_table()}{end}{after}" if begin and end else text


def main(root: Path = _ROOT) -> None:
    """Rewrite the files below `root`; schemas of messages that no longer exist go."""
    directory, files = root / "docs" / "schemas", schema_files()
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("*.json"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    readme = root / "README.md"
    readme.write_text(with_settings_table(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
