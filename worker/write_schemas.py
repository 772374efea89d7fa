"""Writes what is generated from classes: docs/schemas/*.json, and the settings table of the README.

python -m worker.write_schemas
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
from msgspec import Meta

from worker.schemas import json_schemas
from worker.settings import ENVIRONMENT_PREFIX, Settings

_ROOT = Path(__file__).parent.parent
_BEGIN, _END = "<!-- settings -->", "<!-- /settings -->"


def schema_files() -> dict[str, str]:
    """What each file in docs/schemas has to hold."""
    return {f"{name}.json": json.dumps(schema, indent=2) + "\n" for name, schema in json_schemas().items()}


def settings_table() -> str:
    """The settings as a Markdown table, for the README."""
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    hints = get_type_hints(Settings, include_extras=True)
    for info in msgspec.structs.fields(Settings):
        default = info.default if info.default is not msgspec.NODEFAULT else info.default_factory()
        meta = next(part for part in get_args(hints[info.name]) if isinstance(part, Meta))
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        shown = str(shown).lower() if isinstance(shown, bool) else shown
        value = f"`{shown}`" if shown not in ("", {}) else ""
        lines.append(f"| `{ENVIRONMENT_PREFIX}{info.name.upper()}` | {value} | {meta.description} |")
    return "\n".join(lines) + "\n"


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
